#![forbid(unsafe_code)]
//! Recent mutations in order, and a digest of all items: what copies are kept by.
//!
//! Keys fall into 64 partitions by a hash that is the same on every node. Each partition has a log of
//! its own, numbered from 1, whose recent end lies in a ring; a key's records stand in the order in
//! which its mutations happened, because whoever mutates appends under the lock of the key's bucket
//! pair. Beside the log lies a row of 1,024 leaves, each the XOR over the items of one stretch of
//! hashes: two copies with equal rows hold the same items.
//!
//! A partition's lock comes after a pair's bit and is held for a copy of at most a few KiB.

// Who waits for the next entry.
mod bell;

// What tells that items are the same.
mod digest;

// One partition's log.
mod log;

// Entries of the log.
pub mod record;

// Their memory.
mod ring;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

pub use bell::{Bell, Reader};
pub use digest::{
    FANOUT, NODES, Row, item_digest, leaf, nodes, partition, place, row_digest, short,
};
use log::Log;
pub use record::{Kind, Malformed, Record};
use ring::Ring;
pub use ring::{Cursor, Lost, Read};

use super::raw;

/// Fixed for all nodes that speak to one another. Unit tests run thousands of groups of nodes, and
/// have fewer of everything; the tests over sockets have what is used.
const PARTITION_BITS: u32 = if cfg!(test) { 3 } else { 6 };
pub const PARTITIONS: usize = 1 << PARTITION_BITS;

/// All partitions, a bit for each.
pub const ALL: u64 = u64::MAX >> (64 - PARTITIONS);

/// Leaves of a partition.
pub const LEAVES: usize = if cfg!(test) { 64 } else { 1024 };

/// Longer values are not copied into the log.
pub const INLINE_MAX: usize = super::COPY_MAX;

/// A partition's ring is never smaller: one record with the longest key and value fits.
const RING_LEAST: usize = if cfg!(test) { 16 << 10 } else { 128 << 10 };

/// Bytes of each ring that are touched before the first record comes: the kernel takes milliseconds to find
/// a huge page, and whoever mutates, or applies what others have, would wait for one after the other.
const TOUCHED: usize = 1 << 20;
/// A page is never smaller.
const PAGE: usize = 4096;

/// Bytes of victims that wait for one another, about.
const GONE_MOST: usize = 1024;

/// Cache lines of the next record that are asked for: of most records all.
const NEXT_LINES: usize = 4;

/// A digest goes into a partition's log after so many records.
const DIGEST_EVERY: u32 = 100_000;

/// Whether a copy has to be told that an expiry time has become another. If that moves it by less than a
/// hundredth of what is left, it is told later: when a whole step has been passed, be it in steps of
/// different length, so that small moves do not add up.
pub fn moves(before: u32, after: u32, now: u32) -> bool {
    if before == after || before == 0 || after == 0 {
        return before != after;
    }
    match (after.saturating_sub(now) / 100).checked_ilog2() {
        Some(step) => before >> step != after >> step,
        None => true,
    }
}

/// What a mutation does to its leaf: what it takes out XOR what it puts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Mutations are appended; what is dead is buried.
    Leader,
    /// Mutations come from the leader, with their places in its log.
    Follower,
}

/// A row as it was at one place of the log.
#[derive(Debug, Clone)]
pub struct Frozen {
    pub seq: u64,
    pub row: Box<Row>,
}

/// One partition. What is outside its lock is changed inside. Mutations ask for all of it before they
/// need it: it fills four cache lines.
#[repr(align(128))]
struct Partition {
    /// See [`Row`].
    row: raw::Words,
    /// Sequence of the last record, for whoever may be a moment late.
    seq: AtomicU64,
    /// Where the next record will go.
    next: raw::Signpost,
    log: raw::Lock<Log>,
}

/// A partition's log, locked for the mutation of one of its keys. Whoever locks it before the item is
/// written to does not wait there until that has reached the cache.
pub struct Entry<'j> {
    journal: &'j Journal,
    partition: &'j Partition,
    log: raw::Held<'j, Log>,
}

/// All partitions.
pub struct Journal {
    partitions: Box<[Partition]>,
    /// A [`Role`]: whether it is a follower's.
    follower: AtomicBool,
    /// Unix time at which the store's clock would have read 0.
    epoch: AtomicI64,
    ring_bytes: usize,
    /// A bit for each reader that sleeps until something is appended.
    asleep: AtomicUsize,
    bells: Mutex<Vec<(usize, Bell)>>,
    lost_locally: AtomicU64,
    /// Tells one flush from another, on whatever node it was.
    flushes: AtomicU64,
    /// A bit for each partition in which items are gone that no record tells of yet.
    unsettled: AtomicU64,
}

impl Journal {
    /// An empty one. `ring_bytes` are divided between the partitions once somebody reads.
    pub fn new(ring_bytes: usize, role: Role) -> Journal {
        // Half a megabyte that is changed all over: in one huge page rather than many.
        let rows = raw::Words::reserve(PARTITIONS, LEAVES).expect("address space for 512 KiB");
        let partitions = rows.into_iter().map(|row| Partition {
            row,
            seq: AtomicU64::new(0),
            next: raw::Signpost::default(),
            log: raw::Lock::new(Log::default()),
        });
        Journal {
            partitions: partitions.collect(),
            follower: AtomicBool::new(role == Role::Follower),
            epoch: AtomicI64::new(0),
            ring_bytes,
            asleep: AtomicUsize::new(0),
            bells: Mutex::default(),
            lost_locally: AtomicU64::new(0),
            flushes: AtomicU64::new(getrandom::u64().unwrap_or(0)),
            unsettled: AtomicU64::new(0),
        }
    }

    fn log(&self, partition: usize) -> raw::Held<'_, Log> {
        self.partitions[partition].log()
    }

    #[inline]
    pub fn is_follower(&self) -> bool {
        self.follower.load(Relaxed)
    }

    pub fn set_role(&self, role: Role) {
        self.settle();
        self.follower.store(role == Role::Follower, Relaxed);
    }

    /// Tells at which Unix time the store's clock would have read 0.
    pub fn set_epoch(&self, unix: i64) {
        self.epoch.store(unix, Relaxed);
    }

    /// An expiry time on the store's clock as records have it.
    #[inline]
    pub fn to_wire(&self, expires: u32) -> u32 {
        match expires {
            0 => 0,
            at => (self.epoch.load(Relaxed) + i64::from(at)).clamp(1, i64::from(u32::MAX)) as u32,
        }
    }

    /// An expiry time of a record on the store's clock; `skew` is by how many seconds the writer's
    /// clock is ahead of ours.
    pub fn from_wire(&self, expires: u32, skew: i64) -> u32 {
        match expires {
            0 => 0,
            at => {
                let relative = i64::from(at) - skew - self.epoch.load(Relaxed);
                relative.clamp(1, i64::from(u32::MAX)) as u32
            }
        }
    }

    /// Appends a record, whose sequence it finds, and changes the leaf. Returns the sequence.
    #[inline(never)]
    pub fn append(&self, place: u64, record: &Record<'_>, change: Change) -> u64 {
        self.enter(place).append(place, record, change)
    }

    /// The leader has taken an item out by itself: it had expired, or made room. Copies are told of
    /// several together, for nobody waits for it. What becomes of the key later is told later, or has
    /// another CAS id.
    pub fn give_up(&self, place: u64, cas: u64, key: &[u8], change: Change) {
        let mut entry = self.enter(place);
        if key.len() > record::VICTIM_KEY_MAX || entry.log.ring.is_none() {
            let record = Record {
                cas,
                ..Record::new(Kind::Delete, key)
            };
            entry.append(place, &record, change);
            return;
        }
        entry.partition.change(place, change);
        let gone = entry.log.gone.get_or_insert_default();
        let first = gone.victims.is_empty();
        gone.cas = gone.cas.max(cas);
        record::add_victim(&mut gone.victims, cas, key);
        if gone.victims.len() >= GONE_MOST {
            entry.log.settle();
            entry.partition.moved(&entry.log);
        } else if first {
            self.unsettled.fetch_or(1 << partition(place), Relaxed);
        } else {
            return;
        }
        drop(entry);
        self.tell();
    }

    /// Makes records of what is gone and waits for more. Whoever reads the log looks here first.
    #[inline]
    pub fn settle(&self) {
        if self.unsettled.load(Relaxed) != 0 {
            self.settle_all();
        }
    }

    #[cold]
    fn settle_all(&self) {
        let mut unsettled = self.unsettled.swap(0, Relaxed);
        while unsettled != 0 {
            let partition = &self.partitions[unsettled.trailing_zeros() as usize];
            unsettled &= unsettled - 1;
            let mut log = partition.log();
            log.settle();
            partition.moved(&log);
        }
    }

    /// Locks the log of a key's partition.
    #[inline]
    pub fn enter(&self, place: u64) -> Entry<'_> {
        let partition = &self.partitions[partition(place)];
        Entry {
            journal: self,
            partition,
            log: partition.log(),
        }
    }

    /// A mutation of this key is on its way: asks for the memory that it will be told to.
    #[inline]
    pub fn expect(&self, place: u64) {
        let partition = &self.partitions[partition(place)];
        raw::prefetch_whole(partition);
        raw::prefetch(&partition.row[leaf(place)]);
        partition.next.prefetch(NEXT_LINES);
    }

    /// Wakes whoever sleeps until something is appended.
    #[inline]
    fn tell(&self) {
        if self.asleep.load(Relaxed) != 0 {
            self.wake();
        }
    }

    /// A follower's: appends what the leader has sent, with its sequences.
    pub fn replay(&self, partition: usize, records: &[Record<'_>]) {
        let partition = &self.partitions[partition];
        let mut log = partition.log();
        for record in records {
            log.replay(record);
        }
        partition.moved(&log);
        drop(log);
        self.tell();
    }

    /// Keeps what a record prepares, until it is decided.
    pub fn prepare(&self, partition: usize, record: &Record<'_>) {
        self.log(partition).prepare(record);
    }

    /// The records that have been prepared and not decided, with their values.
    pub fn prepared(&self, partition: usize) -> Vec<Arc<[u8]>> {
        let log = self.log(partition);
        log.prepared.iter().map(|one| one.bytes.clone()).collect()
    }

    /// The one of these that was prepared at a sequence.
    pub fn prepared_at(&self, partition: usize, seq: u64) -> Option<Arc<[u8]>> {
        let log = self.log(partition);
        let one = log.prepared.iter().find(|one| one.seq == seq)?;
        Some(one.bytes.clone())
    }

    /// Bytes of such records.
    pub fn prepared_bytes(&self, partition: usize) -> usize {
        self.log(partition).prepared_bytes
    }

    /// The record that was prepared at a sequence, which is decided now.
    pub fn take_prepared(&self, partition: usize, seq: u64) -> Option<Arc<[u8]>> {
        let mut log = self.log(partition);
        let at = log.prepared.iter().position(|one| one.seq == seq)?;
        Some(log.take_prepared(at).bytes)
    }

    /// Logs that what was prepared by this record is so, or is not to be, unless that has been logged.
    pub fn resolve(&self, partition: usize, prepared: &[u8], kind: Kind) {
        let Ok((record, _)) = Record::parse(prepared) else {
            return;
        };
        let partition = &self.partitions[partition];
        let mut log = partition.log();
        let Some(at) = log.prepared.iter().position(|one| one.seq == record.seq) else {
            return;
        };
        log.take_prepared(at);
        let resolution = Record {
            cas: record.cas,
            argument: record.seq,
            ..Record::new(kind, record.key)
        };
        log.push(&resolution);
        partition.seq.store(log.seq, Relaxed);
        drop(log);
        self.tell();
    }

    /// Changes a leaf without a record: a follower's mutations.
    pub fn change(&self, place: u64, change: Change) {
        self.enter(place).change(place, change);
    }

    /// As [`change`](Journal::change), for an item that a follower had to give up on its own.
    pub fn lose(&self, place: u64, change: Change) {
        let partition = &self.partitions[partition(place)];
        let mut log = partition.log();
        let leaf = leaf(place);
        partition.change(place, change);
        let lossy = log.lossy.get_or_insert_default();
        lossy[leaf / 64] |= 1 << (leaf % 64);
        self.lost_locally.fetch_add(1, Relaxed);
    }

    /// Items that were given up locally.
    pub fn lost_locally(&self) -> u64 {
        self.lost_locally.load(Relaxed)
    }

    /// Takes a leaf's mark of being lossy off.
    pub fn found_again(&self, partition: usize, leaf: usize) {
        if let Some(lossy) = &mut self.log(partition).lossy {
            lossy[leaf / 64] &= !(1 << (leaf % 64));
        }
    }

    /// The lossy leaves of a partition, a bit for each.
    pub fn lossy(&self, partition: usize) -> [u64; LEAVES / 64] {
        self.log(partition)
            .lossy
            .as_deref()
            .copied()
            .unwrap_or_default()
    }

    /// Runs `change` while nothing can be appended anywhere; if it says that something has changed,
    /// appends a record to every partition.
    pub fn flush(&self, record: &Record<'_>, change: impl FnOnce() -> bool) {
        let mut logs: Vec<_> = self.partitions.iter().map(Partition::log).collect();
        if !change() {
            return;
        }
        for (partition, log) in self.partitions.iter().zip(&mut logs) {
            log.push(record);
            partition.seq.store(log.seq, Relaxed);
        }
        drop(logs);
        self.tell();
    }

    /// A number that no other flush has.
    pub fn next_flush(&self) -> u64 {
        self.flushes.fetch_add(1, Relaxed)
    }

    /// Puts a digest into the log of a partition; of an empty one as well, for a copy may have something
    /// there.
    pub fn mark(&self, partition: usize) {
        {
            let partition = &self.partitions[partition];
            let mut log = partition.log();
            log.mark(partition);
            partition.seq.store(log.seq, Relaxed);
        }
        self.tell();
    }

    /// Sequence of the last record of a partition. Whoever reads an item under its lock and then asks
    /// knows which records the item contains.
    #[inline]
    pub fn seq(&self, partition: usize) -> u64 {
        self.partitions[partition].seq.load(Relaxed)
    }

    /// Sequence of a partition's last flush that a copy can come to, or up to which there may have been one; 0 if
    /// there is none.
    pub fn flushed(&self, partition: usize) -> u64 {
        self.log(partition).flushed
    }

    /// Those of all partitions.
    pub fn positions(&self) -> [u64; PARTITIONS] {
        self.settle();
        std::array::from_fn(|partition| self.seq(partition))
    }

    /// The sum of those: records appended so far.
    pub fn records(&self) -> u64 {
        self.positions().iter().sum()
    }

    /// Sets the end of a partition's log; what was in its ring, and what was prepared, is forgotten.
    pub fn jump(&self, partition: usize, seq: u64) {
        let partition = &self.partitions[partition];
        let mut log = partition.log();
        log.seq = seq;
        partition.seq.store(seq, Relaxed);
        log.frozen = None;
        // There may have been one before.
        log.flushed = seq;
        log.prepared.clear();
        log.prepared_bytes = 0;
        log.gone = None;
        if let Some(ring) = &mut log.ring {
            ring.restart(seq + 1);
        }
    }

    /// Takes memory for the rings, if there is none yet. Until then only positions and digests are kept.
    pub fn open_rings(&self) {
        let capacity = (self.ring_bytes / PARTITIONS).max(RING_LEAST);
        if self.log(PARTITIONS - 1).ring.is_some() {
            return;
        }
        let shares = match raw::Share::reserve(PARTITIONS, capacity) {
            Ok(shares) => shares,
            Err(error) => {
                ::log::error!("no log for copies, which come again and again: {error}");
                return;
            }
        };
        for (number, mut share) in shares.into_iter().enumerate() {
            for page in share.iter_mut().take(TOUCHED).step_by(PAGE) {
                *page = 0;
            }
            let mut log = self.log(number);
            if log.ring.is_none() {
                let next = log.seq + 1;
                log.ring = Some(Ring::new(share, next));
            }
        }
    }

    /// Gives the rings' memory back.
    pub fn close_rings(&self) {
        self.settle();
        for partition in 0..PARTITIONS {
            self.log(partition).ring = None;
        }
    }

    /// Bytes that the rings hold and could hold.
    pub fn ring_usage(&self) -> (usize, usize) {
        (0..PARTITIONS).fold((0, 0), |(used, room), partition| {
            match &self.log(partition).ring {
                Some(ring) => (used + ring.used(), room + ring.capacity()),
                None => (used, room),
            }
        })
    }

    /// The share of a partition's ring that is taken by a record and what follows it, 0 to 1; 1 if it
    /// is gone.
    pub fn depth(&self, partition: usize, seq: u64) -> f64 {
        if seq > self.seq(partition) {
            return 0.0;
        }
        match &self.log(partition).ring {
            Some(ring) => ring.behind(seq) as f64 / ring.capacity() as f64,
            None => 1.0,
        }
    }

    /// Whether the log can be read from a record on.
    pub fn holds(&self, partition: usize, seq: u64) -> bool {
        let log = self.log(partition);
        match &log.ring {
            Some(ring) => ring.holds(seq, log.seq),
            None => seq == log.seq + 1,
        }
    }

    /// Appends to `out` what stands behind the cursor, up to sequence `last`: whole records, about
    /// `limit` bytes.
    ///
    /// # Errors
    /// The cursor's record is gone.
    pub fn read(
        &self,
        partition: usize,
        cursor: &mut Cursor,
        last: u64,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<Read, Lost> {
        let log = self.log(partition);
        let last = last.min(log.seq);
        match &log.ring {
            Some(ring) => ring.read(cursor, last, limit, out),
            None if cursor.seq > last => Ok(Read::default()),
            None => Err(Lost),
        }
    }

    /// The leaves of a partition, and the place of the log at which they are so.
    pub fn row(&self, partition: usize) -> Frozen {
        let partition = &self.partitions[partition];
        let mut log = partition.log();
        log.settle();
        partition.moved(&log);
        Frozen {
            seq: log.seq,
            row: partition.row(),
        }
    }

    /// The leaves as they were at the last digest.
    pub fn frozen(&self, partition: usize) -> Option<Frozen> {
        self.log(partition).frozen.clone()
    }

    /// Keeps the leaves as they are now, and returns their digest: what a follower does when it
    /// comes to a [`Kind::Digest`].
    pub fn freeze(&self, partition: usize) -> u64 {
        let partition = &self.partitions[partition];
        partition.log().freeze(partition)
    }
}

impl Entry<'_> {
    /// See [`Journal::append`].
    #[inline(always)]
    pub fn append(mut self, place: u64, record: &Record<'_>, change: Change) -> u64 {
        let (partition, journal) = (self.partition, self.journal);
        partition.change(place, change);
        let seq = self.log.push(record);
        if self.log.since_digest >= DIGEST_EVERY {
            self.log.mark(partition);
        }
        partition.moved(&self.log);
        drop(self);
        journal.tell();
        seq
    }

    /// See [`Journal::change`].
    #[inline]
    pub fn change(self, place: u64, change: Change) {
        self.partition.change(place, change);
    }
}

impl Partition {
    #[inline]
    fn log(&self) -> raw::Held<'_, Log> {
        self.log.hold()
    }

    /// Shows how far the log is.
    #[inline]
    fn moved(&self, log: &Log) {
        self.seq.store(log.seq, Relaxed);
        if let Some(ring) = &log.ring {
            self.next.set(ring.ahead());
        }
    }

    /// Changes a leaf; for whoever has locked the log. A locked instruction would wait for every line
    /// that has been written to before.
    #[inline]
    fn change(&self, place: u64, change: Change) {
        let leaf = &self.row[leaf(place)];
        leaf.store(leaf.load(Relaxed) ^ change.0, Relaxed);
    }

    /// The leaves as they are.
    fn row(&self) -> Box<Row> {
        let mut row = Box::new([0; LEAVES]);
        for (leaf, now) in row.iter_mut().zip(&self.row[..]) {
            *leaf = now.load(Relaxed);
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put<'a>(key: &'a [u8], value: &'a [u8], cas: u64) -> Record<'a> {
        Record {
            cas,
            value,
            ..Record::new(Kind::Put, key)
        }
    }

    #[test]
    fn small_moves_of_an_expiry_do_not_add_up() {
        assert!(moves(0, 5, 1) && moves(5, 0, 1) && !moves(0, 0, 1) && !moves(7, 7, 1));
        assert!(moves(50, 51, 1), "a second counts where there are few");
        for ttl in [200, 3600, 90_000] {
            let (mut known, mut told, mut before) = (ttl, 0, ttl);
            for now in 1..10_000 {
                let after = now + ttl;
                if moves(before, after, now) {
                    (known, told) = (after, told + 1);
                }
                before = after;
                assert!(after - known <= ttl / 100, "{ttl} {now}");
            }
            assert!(told <= 10_000 / (ttl / 200), "{ttl} {told}");
        }
    }

    #[test]
    fn a_log_that_nobody_reads_gives_its_memory_back() {
        let journal = Journal::new(1 << 20, Role::Leader);
        let at = place(b"key");
        journal.open_rings();
        journal.append(at, &put(b"key", b"0", 1), Change(5));
        assert!(journal.ring_usage().0 > 0 && journal.holds(partition(at), 1));
        journal.close_rings();
        assert_eq!(journal.ring_usage(), (0, 0));
        journal.append(at, &put(b"key", b"1", 2), Change(6));
        journal.open_rings();
        assert!(!journal.holds(partition(at), 2) && journal.holds(partition(at), 3));
        assert_eq!(journal.row(partition(at)).row[leaf(at)], 5 ^ 6);
    }

    #[test]
    fn records_are_numbered_and_read_in_order() {
        let journal = Journal::new(1 << 20, Role::Leader);
        let at = place(b"key");
        assert_eq!(journal.append(at, &put(b"key", b"0", 1), Change(5)), 1);
        let mut cursor = Cursor::before(1);
        let mut out = Vec::new();
        let read = journal.read(partition(at), &mut cursor, u64::MAX, 1000, &mut out);
        assert_eq!(read, Err(Lost), "nothing was kept before somebody read");
        journal.open_rings();
        for cas in 2..=5 {
            journal.append(at, &put(b"key", b"value", cas), Change(cas));
        }
        let mut cursor = Cursor::before(2);
        let read = journal.read(partition(at), &mut cursor, u64::MAX, 1000, &mut out);
        assert_eq!(read.map(|read| read.records), Ok(4));
        let (record, _) = Record::parse(&out).unwrap();
        assert_eq!(
            (record.seq, record.cas, record.value),
            (2, 2, &b"value"[..])
        );
        assert_eq!(journal.seq(partition(at)), 5);
        let row = journal.row(partition(at)).row;
        assert_eq!(row[leaf(at)], 2 ^ 3 ^ 4);
    }

    #[test]
    fn what_is_gone_is_told_together_and_before_what_it_could_be_taken_for() {
        let journal = Journal::new(1 << 20, Role::Leader);
        journal.open_rings();
        let at = place(b"key");
        let number = partition(at);
        journal.append(at, &put(b"key", b"0", 5), Change(7));
        journal.give_up(at, 5, b"key", Change(7));
        journal.append(at, &put(b"key", b"1", 6), Change(1));
        assert_eq!(journal.seq(number), 2, "no record yet, and none is needed");
        journal.give_up(at, 6, b"key", Change(1));
        // A client gives it an id that it has had.
        journal.append(at, &put(b"key", b"2", 6), Change(2));
        journal.give_up(at, 6, b"key", Change(2));
        let frozen = journal.row(number);
        assert_eq!((frozen.seq, frozen.row[leaf(at)]), (5, 0));
        journal.give_up(at, 9, &[b'l'; record::VICTIM_KEY_MAX + 1], Change(0));
        let mut out = Vec::new();
        let mut cursor = Cursor::before(1);
        while journal
            .read(number, &mut cursor, u64::MAX, 10_000, &mut out)
            .is_ok_and(|read| read.records > 0)
        {}
        let (mut rest, mut told) = (&out[..], Vec::new());
        while let Ok((record, behind)) = Record::parse(rest) {
            let cas = match record.kind {
                Kind::Gone => record::victims(record.value)
                    .map(|victim| victim.unwrap().0)
                    .collect(),
                _ => vec![record.cas],
            };
            told.push((record.kind, cas));
            rest = behind;
        }
        assert_eq!(
            told,
            [
                (Kind::Put, vec![5]),
                (Kind::Put, vec![6]),
                (Kind::Gone, vec![5, 6]),
                (Kind::Put, vec![6]),
                (Kind::Gone, vec![6]),
                (Kind::Delete, vec![9]),
            ]
        );
    }

    #[test]
    fn a_partition_fills_four_cache_lines() {
        assert!(size_of::<Partition>() <= 4 * 64);
    }

    #[test]
    fn a_digest_stands_where_the_row_was_so() {
        let journal = Journal::new(1 << 20, Role::Leader);
        journal.open_rings();
        let at = place(b"key");
        let number = partition(at);
        journal.append(at, &put(b"key", b"", 1), Change(77));
        journal.mark(number);
        journal.append(at, &put(b"key", b"", 2), Change(99));
        let frozen = journal.frozen(number).unwrap();
        assert_eq!((frozen.seq, frozen.row[leaf(at)]), (2, 77));
        let mut out = Vec::new();
        journal
            .read(number, &mut Cursor::before(2), 2, 1000, &mut out)
            .unwrap();
        let (record, _) = Record::parse(&out).unwrap();
        assert_eq!(record.kind, Kind::Digest);
        assert_eq!(record.argument, row_digest(&frozen.row));
    }

    #[test]
    fn a_flush_stands_in_every_partition() {
        let journal = Journal::new(1 << 20, Role::Leader);
        journal.flush(&Record::new(Kind::Flush, b""), || false);
        assert_eq!(journal.positions(), [0; PARTITIONS]);
        journal.flush(&Record::new(Kind::Flush, b""), || true);
        assert_eq!(journal.positions(), [1; PARTITIONS]);
    }

    #[test]
    fn what_was_prepared_is_committed_without_its_value() {
        let journal = Journal::new(1 << 20, Role::Leader);
        journal.open_rings();
        let at = place(b"key");
        let number = partition(at);
        let prepare = Record {
            kind: Kind::Prepare,
            ..put(b"key", b"value", 7)
        };
        assert_eq!(journal.append(at, &prepare, Change::default()), 1);
        assert_eq!(journal.prepared(number).len(), 1);
        journal.append(at, &put(b"key", b"another", 6), Change::default());
        assert_eq!(journal.prepared(number).len(), 1, "not that one");
        journal.append(at, &put(b"key", b"value", 7), Change::default());
        assert!(journal.prepared(number).is_empty());
        let mut out = Vec::new();
        journal
            .read(number, &mut Cursor::before(3), 3, 1000, &mut out)
            .unwrap();
        let (record, _) = Record::parse(&out).unwrap();
        assert_eq!(
            (record.kind, record.argument, record.value),
            (Kind::Commit, 1, &b""[..])
        );
        journal.append(at, &prepare, Change::default());
        let bytes = journal.prepared(number).remove(0);
        journal.resolve(number, &bytes, Kind::Abort);
        journal.resolve(number, &bytes, Kind::Abort);
        assert_eq!(journal.seq(number), 5, "once");
        assert_eq!(journal.take_prepared(number, 4), None);
    }

    #[test]
    fn expiry_times_cross_clocks() {
        let journal = Journal::new(1 << 20, Role::Follower);
        journal.set_epoch(1_000_000);
        assert_eq!(journal.to_wire(0), 0);
        assert_eq!(journal.to_wire(100), 1_000_100);
        assert_eq!(journal.from_wire(1_000_100, 0), 100);
        assert_eq!(journal.from_wire(1_000_100, 5), 95);
        assert_eq!(journal.from_wire(1, 0), 1, "long dead");
    }
}
