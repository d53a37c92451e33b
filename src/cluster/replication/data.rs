#![forbid(unsafe_code)]
//! What the protocol asks of the items: [`Data`], for the store and for the models of tests.

use std::sync::Arc;

use crate::clock::Clock;
use crate::observe::ThreadCounters;
pub use crate::store::copies::Extended;
use crate::store::copies::Seen;
use crate::store::journal::{INLINE_MAX, Journal, Kind, Record};
use crate::store::merkle;
use crate::store::{Cx, Fetch, Pin, Store, Upload};

/// An item that a walk shows, under its lock.
pub struct Item<'a> {
    /// A [`Kind::Put`] with its value, or a [`Kind::PutLater`] if that is long; its sequence is the last
    /// of its partition that it contains, its argument the length of the value.
    pub record: Record<'a>,
    /// See [`journal::place`](crate::store::journal::place).
    pub place: u64,
    /// See [`journal::item_digest`](crate::store::journal::item_digest).
    pub digest: u64,
    /// Of its value, if that was asked for, and whether that is of its BLAKE3 root.
    pub value_digest: (u64, bool),
}

/// One item, with what it takes to send its value however long that is.
pub struct Opened<L> {
    /// Its record, encoded; without the value if that is long.
    pub bytes: Vec<u8>,
    pub long: Option<L>,
}

/// A long value that stays as it is while it is sent.
pub trait Long {
    fn length(&self) -> usize;
    /// Bytes from `offset` on, some of them; none at the end.
    fn slice(&self, offset: usize) -> &[u8];

    /// So many bytes from `offset` on, or as many as there are.
    fn bytes(&self, offset: usize, most: usize) -> Vec<u8> {
        let most = most.min(self.length() - offset);
        let mut bytes = Vec::with_capacity(most);
        while bytes.len() < most {
            let slice = self.slice(offset + bytes.len());
            bytes.extend_from_slice(&slice[..slice.len().min(most - bytes.len())]);
        }
        bytes
    }
}

impl Long for Pin {
    fn length(&self) -> usize {
        Pin::length(self)
    }

    fn slice(&self, offset: usize) -> &[u8] {
        Pin::slice(self, offset)
    }
}

/// The items of one node, and the log of their mutations.
pub trait Data {
    type Long: Long;
    type Upload;

    fn journal(&self) -> &Journal;
    /// Items, dead ones included.
    fn items(&self) -> u64;
    fn last_cas(&self) -> u64;
    /// CAS ids go on behind this one.
    fn raise_cas(&self, past: u64);

    /// Asks for the memory that a key is looked for in, and for that of the log. Returns its spot, for
    /// [`approach`](Data::approach).
    fn foresee(&self, key: &[u8], place: u64) -> u64 {
        let _ = (key, place);
        0
    }
    /// Asks for the memory of the items at this spot, when the first has had time to arrive.
    fn approach(&self, spot: u64) {
        let _ = spot;
    }
    /// Makes an item what a record with its whole value says. `skew`: by how many seconds the writer's
    /// clock is ahead. `dead`: it was flushed before it came. False: no room; what was there has gone.
    fn put(&self, record: &Record<'_>, skew: i64, dead: bool) -> bool;
    /// As [`put`](Data::put), for a value of this length that comes in pieces. Nothing: no room.
    fn begin(&self, record: &Record<'_>, skew: i64, length: usize) -> Option<Self::Upload>;
    /// There is no room for what a key should have: it goes, and is known to be missing.
    fn lose(&self, key: &[u8]);
    /// Adds bytes; false: there is no room for them.
    fn fill(&self, upload: &mut Self::Upload, bytes: &[u8]) -> bool;
    fn finish(&self, record: &Record<'_>, skew: i64, dead: bool, upload: Self::Upload) -> bool;
    /// Adds bytes to a value, if the item is what the record says that it was.
    fn extend(&self, record: &Record<'_>) -> Extended;
    /// Sets expiry, marks and CAS.
    fn meta(&self, record: &Record<'_>, skew: i64);
    fn delete(&self, key: &[u8]);
    /// Takes an item out, unless it is newer than this CAS id.
    fn give_up(&self, key: &[u8], cas: u64);
    /// Where a key's item is found again; several may have the same.
    fn spot(&self, key: &[u8]) -> u64;
    /// Takes the item with this digest out, if it is still there.
    fn delete_exactly(&self, spot: u64, digest: u64);
    /// Hides everything that is there.
    fn flush(&self);
    /// Takes out what has been hidden so.
    fn purge(&self);
    /// Flushes, now or at a Unix time, as a command would.
    fn flush_all(&self, at: Option<u32>);
    /// Logs a key as it is.
    fn log_again(&self, key: &[u8]);
    /// Decides for itself from here on.
    fn lead(&self);
    /// Leaves decisions to another.
    fn follow(&self);

    /// Shows about `limit` items from a place on; returns where to go on. With `values`, also digests
    /// of their values.
    fn walk(
        &self,
        from: usize,
        limit: usize,
        values: bool,
        each: &mut dyn FnMut(&Item<'_>),
    ) -> Option<usize>;
    fn open(&self, key: &[u8]) -> Option<Opened<Self::Long>>;
    /// Digests of an item and of its value, which is read as it lies there. `rooted`: of its BLAKE3
    /// root.
    fn digests(&self, key: &[u8], rooted: bool) -> Option<(u64, u64)>;
}

/// The store of a server.
pub struct StoreData {
    pub store: Arc<Store>,
    pub clock: Arc<Clock>,
    pub counters: Arc<ThreadCounters>,
    journal: Arc<Journal>,
}

impl StoreData {
    /// Nothing if the store keeps no log.
    pub fn new(
        store: &Arc<Store>,
        clock: &Arc<Clock>,
        counters: Arc<ThreadCounters>,
    ) -> Option<StoreData> {
        Some(StoreData {
            journal: store.journal()?.clone(),
            store: store.clone(),
            clock: clock.clone(),
            counters,
        })
    }

    fn cx(&self) -> Cx<'_> {
        Cx {
            now: self.clock.now(),
            counters: &self.counters,
        }
    }
}

/// Of a root that stands with its value, what is compared of it.
fn first_bytes(root: &merkle::Digest) -> u64 {
    root.first_chunk()
        .map_or(0, |eight| u64::from_le_bytes(*eight))
}

/// What a value should be: by the root that was made of it when it was stored, if there is one, so that
/// nobody is given what has rotted here; else what it is. And whether it is by the root.
fn value_digest(seen: &Seen<'_>) -> (u64, bool) {
    if let Some(root) = seen.hit.stored_root() {
        return (first_bytes(&root), true);
    }
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    seen.hit.pieces(|piece| hasher.update(piece));
    (hasher.digest(), false)
}

/// Takes bytes in and gives a digest of them all.
enum Digester {
    Root(Box<merkle::Builder>),
    Plain(Box<xxhash_rust::xxh3::Xxh3>),
}

impl Digester {
    fn new(rooted: bool, length: usize) -> Digester {
        if rooted {
            Digester::Root(Box::new(merkle::Builder::new(length)))
        } else {
            Digester::Plain(Box::default())
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Digester::Root(builder) => builder.update(bytes),
            Digester::Plain(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> u64 {
        match self {
            Digester::Root(builder) => first_bytes(&builder.finish().root),
            Digester::Plain(hasher) => hasher.digest(),
        }
    }
}

impl Data for StoreData {
    type Long = Pin;
    type Upload = Upload;

    fn journal(&self) -> &Journal {
        &self.journal
    }

    fn items(&self) -> u64 {
        self.store.items()
    }

    fn last_cas(&self) -> u64 {
        self.store.last_cas()
    }

    fn raise_cas(&self, past: u64) {
        self.store.raise_cas(past);
    }

    fn foresee(&self, key: &[u8], place: u64) -> u64 {
        self.journal.expect(place);
        let hash = self.store.hash(key);
        self.store.prefetch(hash);
        hash
    }

    fn approach(&self, spot: u64) {
        let mut seen = self.store.prefetch(spot);
        self.store.prefetch_items(&mut seen, spot);
    }

    fn put(&self, record: &Record<'_>, skew: i64, dead: bool) -> bool {
        let expires = self.journal.from_wire(record.expires, skew);
        self.store.apply_put(self.cx(), record, expires, dead)
    }

    fn begin(&self, record: &Record<'_>, skew: i64, length: usize) -> Option<Upload> {
        let expires = self.journal.from_wire(record.expires, skew);
        let begun = self.store.apply_begin(self.cx(), record, expires, length);
        begun.ok()
    }

    fn lose(&self, key: &[u8]) {
        self.store.apply_lose(self.cx(), key);
    }

    fn fill(&self, upload: &mut Upload, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Ok(spare) = upload.spare(self.cx()) else {
                return false;
            };
            let n = spare.len().min(bytes.len());
            if n == 0 {
                return false;
            }
            spare[..n].copy_from_slice(&bytes[..n]);
            upload.advance(n);
            bytes = &bytes[n..];
        }
        true
    }

    fn finish(&self, record: &Record<'_>, skew: i64, dead: bool, upload: Upload) -> bool {
        if upload.missing() > 0 {
            return false;
        }
        let expires = self.journal.from_wire(record.expires, skew);
        self.store
            .apply_finish(self.cx(), record, expires, dead, upload)
    }

    fn extend(&self, record: &Record<'_>) -> Extended {
        self.store.apply_extend(self.cx(), record)
    }

    fn meta(&self, record: &Record<'_>, skew: i64) {
        let expires = self.journal.from_wire(record.expires, skew);
        self.store.apply_meta(record, expires);
    }

    fn delete(&self, key: &[u8]) {
        self.store.apply_delete(self.cx(), key);
    }

    fn give_up(&self, key: &[u8], cas: u64) {
        self.store.apply_gone(self.cx(), key, cas);
    }

    fn spot(&self, key: &[u8]) -> u64 {
        self.store.hash(key)
    }

    fn delete_exactly(&self, spot: u64, digest: u64) {
        self.store.apply_delete_exactly(self.cx(), spot, digest);
    }

    fn flush(&self) {
        self.store.apply_flush(self.clock.now());
    }

    fn purge(&self) {
        let now = self.clock.now();
        let mut next = Some(0);
        while let Some(from) = next {
            let mut dead = Vec::new();
            next = self.store.walk_pairs(from, 1024, |seen| {
                if self.store.seen_flushed(now, &seen.hit) {
                    dead.push(seen.key.to_vec());
                }
            });
            for key in dead {
                self.store.apply_delete(self.cx(), &key);
            }
        }
    }

    fn flush_all(&self, at: Option<u32>) {
        let now = self.clock.now();
        let at = at.map_or(now, |unix| self.journal.from_wire(unix, 0));
        self.store.flush_all(now, at);
    }

    fn log_again(&self, key: &[u8]) {
        self.store.log_again(key);
    }

    fn lead(&self) {
        self.store.lead(self.cx());
    }

    fn follow(&self) {
        self.store.follow();
    }

    fn walk(
        &self,
        from: usize,
        limit: usize,
        values: bool,
        each: &mut dyn FnMut(&Item<'_>),
    ) -> Option<usize> {
        let now = self.clock.now();
        // What is dead goes, and is logged so, instead of being shown; a follower only shows.
        let buries = !self.journal.is_follower();
        let mut dead: Vec<Vec<u8>> = Vec::new();
        let next = self.store.walk_pairs(from, limit, |seen| {
            if buries && self.store.seen_dead(now, &seen.hit) {
                dead.push(seen.key.to_vec());
                return;
            }
            let value_digest = match values {
                true => value_digest(seen),
                false => (0, false),
            };
            with_record(&self.store, seen, |record| {
                each(&Item {
                    record,
                    place: seen.place,
                    digest: seen.digest,
                    value_digest,
                });
            });
        });
        let quiet = Fetch {
            quiet: true,
            ..Fetch::default()
        };
        for key in dead {
            let hash = self.store.hash(&key);
            let _ = self.store.fetch(self.cx(), &key, hash, &quiet, |_| ());
        }
        next
    }

    fn open(&self, key: &[u8]) -> Option<Opened<Pin>> {
        self.store.look(key, |seen| {
            let mut bytes = Vec::new();
            with_record(&self.store, seen, |record| record.encode(&mut bytes));
            let long = if seen.hit.length() > INLINE_MAX {
                seen.hit.pin()
            } else {
                None
            };
            Opened { bytes, long }
        })
    }

    fn digests(&self, key: &[u8], rooted: bool) -> Option<(u64, u64)> {
        // A long value is held, and read without its lock.
        let (digest, mut digester, held) = self.store.look(key, |seen| {
            let mut digester = Digester::new(rooted, seen.hit.length());
            let held = match seen.hit.length() > INLINE_MAX {
                true => seen.hit.pin(),
                false => None,
            };
            if held.is_none() {
                seen.hit.pieces(|piece| digester.update(piece));
            }
            (seen.digest, digester, held)
        })?;
        if let Some(held) = held {
            let mut offset = 0;
            while offset < Long::length(&held) {
                let slice = Long::slice(&held, offset);
                digester.update(slice);
                offset += slice.len();
            }
        }
        Some((digest, digester.finish()))
    }
}

/// Makes a record of an item: with its value, if that is short.
fn with_record(store: &Store, seen: &Seen<'_>, then: impl FnOnce(Record<'_>)) {
    let mut gathered = Vec::new();
    if seen.hit.length() > INLINE_MAX {
        return then(seen.record(store, Kind::PutLater));
    }
    let value = match seen.hit.inline() {
        Some(value) => value,
        None => {
            seen.hit.pieces(|piece| gathered.extend_from_slice(piece));
            &gathered
        }
    };
    then(Record {
        value,
        ..seen.record(store, Kind::Put)
    });
}
