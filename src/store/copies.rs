#![forbid(unsafe_code)]
//! What those who keep copies need of the store: its mutations told to the [`journal`],
//! records applied, and walks that see every item.
//!
//! The leader logs under the lock of the pair: whoever reads an item under that lock and then asks for
//! the end of its partition's log knows which records the item contains. A follower hides what is
//! dead and takes it out when the leader says so; what it must give up for want of memory it marks.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use super::journal::{self, Change, INLINE_MAX, Journal, Kind, Record, Role};
use super::raw::{Item, flag};
use super::read::Hit;
use super::{Cx, Inner, Mode, Put, Refused, Store, Stored, Upload};

/// An item's marks as records have them.
fn marks(item: &Item<'_>) -> u8 {
    let word = item.head().word();
    [
        (flag::STALE, journal::record::STALE),
        (flag::TOKEN_SENT, journal::record::TOKEN_SENT),
        (flag::BINARY_KEY, journal::record::BINARY_KEY),
    ]
    .iter()
    .filter(|(flag, _)| word.has(*flag))
    .fold(0, |marks, (_, mark)| marks | mark)
}

/// The marks of a record as flags of an item, all but the key's.
fn lease_flags(marks: u8) -> u8 {
    let stale = if marks & journal::record::STALE != 0 {
        flag::STALE
    } else {
        0
    };
    let sent = if marks & journal::record::TOKEN_SENT != 0 {
        flag::TOKEN_SENT
    } else {
        0
    };
    stale | sent
}

thread_local! {
    static LOGGED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread has logged anything since it was asked last.
pub fn take_logged() -> bool {
    LOGGED.take()
}

fn digest(item: &Item<'_>, place: u64) -> u64 {
    journal::item_digest(place, item.cas(), item.client_flags(), item.length())
}

/// Logs a flush that has come due, or that will at `expires` (Unix seconds), if `change` says that it
/// has been set.
#[cold]
pub(super) fn log_flush(journal: &Journal, expires: u32, change: impl FnOnce() -> bool) {
    let record = Record {
        expires,
        // Tells one flush from another: the records of its partitions have it in common.
        cas: journal.next_flush(),
        ..Record::new(Kind::Flush, b"")
    };
    journal.flush(&record, change);
}

impl Inner {
    /// Dead items are hidden, not taken out: that is for the leader to decide.
    #[inline]
    pub(super) fn hides(&self) -> bool {
        self.journal
            .as_ref()
            .is_some_and(|journal| journal.is_follower())
    }

    /// A key is about to be stored.
    #[inline]
    pub(super) fn expect(&self, key: &[u8]) {
        if let Some(journal) = &self.journal {
            journal.expect(journal::place(key));
        }
    }

    /// What the log has to know of an item before it changes; goes to
    /// [`log_stored`](Inner::log_stored).
    #[inline]
    pub(super) fn before(&self, item: &Item<'_>) -> u64 {
        match self.journal {
            None => 0,
            Some(_) => digest(item, journal::place(&item.key())),
        }
    }

    /// An item is as it should be; `before` is 0 if there was none.
    #[inline]
    pub(super) fn log_stored(&self, item: &Item<'_>, before: u64) {
        if let Some(journal) = &self.journal {
            self.log_item(journal, item, before);
        }
    }

    #[cold]
    #[inline(never)]
    fn log_item(&self, journal: &Journal, item: &Item<'_>, before: u64) {
        let key = item.key();
        let place = journal::place(&key);
        let change = Change(before ^ digest(item, place));
        if journal.is_follower() {
            return journal.change(place, change);
        }
        let length = item.length();
        let mut gathered = Vec::new();
        let (kind, value) = if length > INLINE_MAX {
            (Kind::PutLater, &[][..])
        } else if let Some(value) = item.small(length) {
            (Kind::Put, value)
        } else {
            item.pieces(|piece| gathered.extend_from_slice(piece));
            (Kind::Put, &gathered[..])
        };
        let record = Record {
            kind,
            value,
            argument: length as u64,
            ..self.describe(journal, item, &key)
        };
        journal.append(place, &record, change);
        LOGGED.set(true);
    }

    /// An item's expiry or marks have changed, and nothing else.
    #[cold]
    pub(super) fn log_meta(&self, item: &Item<'_>) {
        if let Some(journal) = &self.journal
            && !journal.is_follower()
        {
            let key = item.key();
            let record = self.describe(journal, item, &key);
            journal.append(journal::place(&key), &record, Change::default());
            LOGGED.set(true);
        }
    }

    /// A record of everything but the value.
    fn describe<'k>(&self, journal: &Journal, item: &Item<'_>, key: &'k [u8]) -> Record<'k> {
        Record {
            kind: Kind::Meta,
            marks: marks(item),
            client_flags: item.client_flags(),
            expires: journal.to_wire(item.head().expires.load(Relaxed)),
            seq: 0,
            cas: item.cas(),
            argument: 0,
            key,
            value: &[],
        }
    }

    /// An item is about to be taken out; `for_room`: to make room.
    #[inline]
    pub(super) fn log_gone(&self, item: &Item<'_>, for_room: bool) {
        if let Some(journal) = &self.journal {
            self.log_item_gone(journal, item, for_room);
        }
    }

    #[cold]
    #[inline(never)]
    fn log_item_gone(&self, journal: &Journal, item: &Item<'_>, for_room: bool) {
        let key = item.key();
        let place = journal::place(&key);
        let change = Change(digest(item, place));
        match (journal.is_follower(), for_room) {
            (true, true) => journal.lose(place, change),
            (true, false) => journal.change(place, change),
            (false, _) => {
                let record = Record {
                    cas: item.cas(),
                    ..Record::new(Kind::Delete, &key)
                };
                journal.append(place, &record, change);
                LOGGED.set(true);
            }
        }
    }

    #[cold]
    pub(super) fn flush_and_log(&self, journal: &Journal, now: u32, at: u32) {
        let expires = if at <= now { 0 } else { journal.to_wire(at) };
        log_flush(journal, expires, || {
            self.flush.set(now, at);
            true
        });
        if at <= now {
            // Copies learn from the log what is gone.
            self.request_crawl(now, u64::MAX);
        }
    }
}

/// An item that a walk has come to.
pub struct Seen<'g> {
    pub hit: Hit<'g>,
    pub key: Cow<'g, [u8]>,
    /// See [`journal::place`].
    pub place: u64,
    /// See [`journal::item_digest`].
    pub digest: u64,
    /// The last record of its partition that it contains.
    pub seq: u64,
}

impl Seen<'_> {
    /// A record of everything but the value.
    pub fn record(&self, store: &Store, kind: Kind) -> Record<'_> {
        let hit = &self.hit;
        let journal = store.journal();
        Record {
            kind,
            marks: hit.record_marks(),
            client_flags: hit.flags(),
            expires: journal.map_or(0, |journal| journal.to_wire(hit.expires())),
            seq: self.seq,
            cas: hit.cas(),
            argument: hit.length() as u64,
            key: &self.key,
            value: &[],
        }
    }
}

impl<'g> Hit<'g> {
    /// Marks as records have them.
    pub fn record_marks(&self) -> u8 {
        marks(self.item())
    }

    /// Calls `piece` with the parts of the value, in order. For short values: the lock is held.
    pub fn pieces(&self, piece: impl FnMut(&[u8])) {
        self.item().pieces(piece);
    }
}

impl Store {
    /// There is one if copies are kept.
    #[inline]
    pub fn journal(&self) -> Option<&Arc<Journal>> {
        self.inner.journal.as_ref()
    }

    /// Items in the table, dead ones included.
    pub fn items(&self) -> u64 {
        self.inner.table.items() as u64
    }

    /// The last CAS id given out.
    pub fn last_cas(&self) -> u64 {
        self.inner.cas.load(Relaxed)
    }

    /// CAS ids go on behind this one.
    pub fn raise_cas(&self, past: u64) {
        self.inner.cas.fetch_max(past, Relaxed);
    }

    /// Takes a CAS id.
    pub fn take_cas(&self) -> u64 {
        self.inner.next_cas(None)
    }

    /// Asks for the memory of items that are about to be changed, some dozens at most.
    pub fn expect<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) {
        let mut spots: ArrayVec<_, 64> = ArrayVec::new();
        for key in keys.take(spots.capacity()) {
            self.inner.expect(key);
            let hash = self.hash(key);
            spots.push((hash, self.prefetch(hash)));
        }
        for (hash, spot) in &mut spots {
            self.prefetch_items(spot, *hash);
        }
    }

    /// A follower's: makes the item what a record with its whole value says; `dead`: it was flushed
    /// before it came. False: there is no room for it, and what was there has gone.
    pub fn apply_put(&self, cx: Cx<'_>, record: &Record<'_>, expires: u32, dead: bool) -> bool {
        let hash = self.hash(record.key);
        let put = record_put(record, hash, expires);
        let stored = self.put(cx, &put, record.value);
        self.applied(cx, record, hash, stored, dead)
    }

    /// As [`apply_put`](Store::apply_put), for a value that arrives in pieces.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn apply_begin(
        &self,
        cx: Cx<'_>,
        record: &Record<'_>,
        expires: u32,
        length: usize,
    ) -> Result<Upload, Refused> {
        let put = record_put(record, self.hash(record.key), expires);
        self.begin(cx, &put, length)
    }

    /// Links what [`apply_begin`](Store::apply_begin) began.
    pub fn apply_finish(
        &self,
        cx: Cx<'_>,
        record: &Record<'_>,
        expires: u32,
        dead: bool,
        upload: Upload,
    ) -> bool {
        let hash = self.hash(record.key);
        let put = record_put(record, hash, expires);
        let stored = self.finish(cx, &put, upload);
        self.applied(cx, record, hash, stored, dead)
    }

    fn applied(
        &self,
        cx: Cx<'_>,
        record: &Record<'_>,
        hash: u64,
        stored: Stored,
        dead: bool,
    ) -> bool {
        let inner = &self.inner;
        if !matches!(stored, Stored::Stored { .. }) {
            self.apply_lose(cx, record.key);
            return false;
        }
        let lease = lease_flags(record.marks);
        if lease != 0 || dead {
            let guard = inner.table.lock(&inner.arena, hash);
            if let Some(place) = guard.find(hash, record.key) {
                let item = guard.item(&place);
                let head = item.head();
                head.update(|word| word.with_flags(word.flags() | lease));
                if dead {
                    let mark = inner.flush.mark(cx.now);
                    head.accessed.store(mark, Relaxed);
                }
            }
        }
        true
    }

    /// A follower's: there is no room for what a key should have.
    pub fn apply_lose(&self, cx: Cx<'_>, key: &[u8]) {
        self.apply_delete(cx, key);
        if let Some(journal) = &self.inner.journal
            && journal.is_follower()
        {
            journal.lose(journal::place(key), Change::default());
        }
    }

    /// A follower's: sets an item's expiry, marks and CAS.
    pub fn apply_meta(&self, record: &Record<'_>, expires: u32) {
        let inner = &self.inner;
        let hash = self.hash(record.key);
        let guard = inner.table.lock(&inner.arena, hash);
        let Some(place) = guard.find(hash, record.key) else {
            return;
        };
        let item = guard.item(&place);
        let before = inner.before(&item);
        let head = item.head();
        head.expires.store(expires, Relaxed);
        inner.note_expiry(item.handle(), expires);
        let lease = lease_flags(record.marks);
        head.update(|word| {
            word.with_flags(word.flags() & !(flag::STALE | flag::TOKEN_SENT) | lease)
        });
        inner.arena.set_cas(item.handle(), record.cas);
        inner.log_stored(&guard.item(&place), before);
    }

    /// A follower's: takes an item out, dead or alive.
    pub fn apply_delete(&self, cx: Cx<'_>, key: &[u8]) {
        let inner = &self.inner;
        let hash = self.hash(key);
        let guard = inner.table.lock(&inner.arena, hash);
        if let Some(place) = guard.find(hash, key) {
            inner.unlink(cx, guard, place, hash);
        }
    }

    /// A follower's: takes an item out if it is still the one with this digest.
    pub fn apply_delete_exactly(&self, cx: Cx<'_>, key: &[u8], exactly: u64) {
        let inner = &self.inner;
        let hash = self.hash(key);
        let guard = inner.table.lock(&inner.arena, hash);
        if let Some(place) = guard.find(hash, key)
            && digest(&guard.item(&place), journal::place(key)) == exactly
        {
            inner.unlink(cx, guard, place, hash);
        }
    }

    /// A follower's: hides everything that is there.
    pub fn apply_flush(&self, now: u32) {
        self.inner.flush.set(now, now);
    }

    /// Logs an item once more, as it is, or that it is gone.
    pub fn log_again(&self, key: &[u8]) {
        let inner = &self.inner;
        let Some(journal) = &inner.journal else {
            return;
        };
        let hash = self.hash(key);
        let guard = inner.table.lock(&inner.arena, hash);
        match guard.find(hash, key) {
            Some(place) => {
                let item = guard.item(&place);
                let before = inner.before(&item);
                inner.log_stored(&item, before);
            }
            None => {
                let record = Record::new(Kind::Delete, key);
                journal.append(journal::place(key), &record, Change::default());
            }
        }
    }

    /// From here on this store decides for itself.
    pub fn lead(&self, cx: Cx<'_>) {
        if let Some(journal) = &self.inner.journal {
            journal.set_role(Role::Leader);
        }
        self.inner.request_crawl(cx.now, u64::MAX);
    }

    /// From here on another store's records decide.
    pub fn follow(&self) {
        if let Some(journal) = &self.inner.journal {
            journal.set_role(Role::Follower);
        }
    }

    /// Shows about `limit` items from the pair `from` on, dead ones too, and returns where to go on.
    /// Items that stay in the table for the whole of a walk are all seen, some of them twice.
    pub fn walk_pairs(
        &self,
        from: usize,
        limit: usize,
        mut each: impl FnMut(&Seen<'_>),
    ) -> Option<usize> {
        let inner = &self.inner;
        let mut pair = from;
        let mut shown = 0;
        // The table grows at its end, and a pair that is split gives items to a later one only.
        while pair < inner.table.pairs() {
            if shown >= limit {
                return Some(pair);
            }
            let guard = inner.table.lock_pair(&inner.arena, pair);
            guard.each(|item| {
                let key = item.key();
                let place = journal::place(&key);
                shown += 1;
                each(&Seen {
                    hit: Hit::shown(inner, item),
                    key,
                    place,
                    digest: digest(&item, place),
                    seq: inner
                        .journal
                        .as_ref()
                        .map_or(0, |journal| journal.seq(journal::partition(place))),
                });
            });
            pair += 1;
        }
        None
    }

    /// Whether what a walk has seen is dead.
    pub fn seen_dead(&self, now: u32, hit: &Hit<'_>) -> bool {
        self.inner
            .flush
            .moment(now)
            .kills(hit.expires(), hit.accessed())
    }

    /// Whether a flush has killed what a walk has seen.
    pub fn seen_flushed(&self, now: u32, hit: &Hit<'_>) -> bool {
        self.inner.flush.moment(now).kills(0, hit.accessed())
    }

    /// Looks at one item as a walk would, dead or alive.
    pub fn look<R>(&self, key: &[u8], look: impl FnOnce(&Seen<'_>) -> R) -> Option<R> {
        let inner = &self.inner;
        let hash = self.hash(key);
        let guard = inner.table.lock(&inner.arena, hash);
        let place = guard.find(hash, key)?;
        let item = guard.item(&place);
        let place = journal::place(key);
        Some(look(&Seen {
            hit: Hit::shown(inner, item),
            key: item.key(),
            place,
            digest: digest(&item, place),
            seq: inner
                .journal
                .as_ref()
                .map_or(0, |journal| journal.seq(journal::partition(place))),
        }))
    }
}

fn record_put<'r>(record: &Record<'r>, hash: u64, expires: u32) -> Put<'r> {
    Put {
        key: record.key,
        hash,
        mode: Mode::Set,
        flags: record.client_flags,
        expires,
        cas: None,
        new_cas: Some(record.cas),
        invalidate: false,
        vivify: None,
        binary_key: record.marks & journal::record::BINARY_KEY != 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::journal::{Cursor, PARTITIONS, partition};
    use super::super::{Arith, Delete, Fetch};
    use super::*;
    use crate::observe::{Registry, ThreadCounters};
    use crate::settings;

    struct Node {
        store: Store,
        counters: Arc<ThreadCounters>,
        read: [Cursor; PARTITIONS],
        flushed: BTreeMap<usize, usize>,
        flushes: Vec<u64>,
    }

    impl Node {
        fn new(follower: bool, megabytes: u64) -> Node {
            let store = Store::new(&settings::Store {
                max_bytes: megabytes << 20,
                journal: Some(settings::Journal {
                    ring_bytes: 256 << 20,
                    follower,
                }),
                ..settings::Store::default()
            })
            .unwrap();
            store.journal().unwrap().open_rings();
            Node {
                store,
                counters: Registry::new(64 << 10).register(),
                read: [Cursor::before(1); PARTITIONS],
                flushed: BTreeMap::new(),
                flushes: Vec::new(),
            }
        }

        fn cx(&self, now: u32) -> Cx<'_> {
            Cx {
                now,
                counters: &self.counters,
            }
        }

        /// Applies everything the leader has logged since the last time.
        fn catch_up(&mut self, leader: &Node, now: u32) {
            for number in 0..PARTITIONS {
                let mut bytes = Vec::new();
                let log = leader.store.journal().unwrap();
                while log
                    .read(
                        number,
                        &mut self.read[number],
                        u64::MAX,
                        1 << 20,
                        &mut bytes,
                    )
                    .unwrap()
                    .records
                    > 0
                {}
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (record, behind) = Record::parse(rest).unwrap();
                    self.apply(leader, number, &record, now);
                    rest = behind;
                }
            }
        }

        fn apply(&mut self, leader: &Node, number: usize, record: &Record<'_>, now: u32) {
            let journal = self.store.journal().unwrap().clone();
            let expires = journal.from_wire(record.expires, 0);
            let dead = self.flushed.get(&number).copied().unwrap_or(0) < self.flushes.len();
            match record.kind {
                Kind::Put => assert!(self.store.apply_put(self.cx(now), record, expires, dead)),
                Kind::PutLater => {
                    let whole = leader.store.look(record.key, |seen| {
                        let mut value = Vec::new();
                        seen.hit.pieces(|piece| value.extend_from_slice(piece));
                        let mut bytes = Vec::new();
                        Record {
                            value: &value,
                            ..seen.record(&leader.store, Kind::Put)
                        }
                        .encode(&mut bytes);
                        bytes
                    });
                    if let Some(bytes) = whole {
                        let (record, _) = Record::parse(&bytes).unwrap();
                        let expires = journal.from_wire(record.expires, 0);
                        let cx = self.cx(now);
                        let length = record.value.len();
                        let mut upload = self
                            .store
                            .apply_begin(cx, &record, expires, length)
                            .unwrap();
                        let mut rest = record.value;
                        while !rest.is_empty() {
                            let n = {
                                let spare = upload.spare(cx).unwrap();
                                let n = spare.len().min(rest.len());
                                spare[..n].copy_from_slice(&rest[..n]);
                                n
                            };
                            upload.advance(n);
                            rest = &rest[n..];
                        }
                        assert!(self.store.apply_finish(cx, &record, expires, dead, upload));
                    }
                }
                Kind::Meta => self.store.apply_meta(record, expires),
                Kind::Delete => self.store.apply_delete(self.cx(now), record.key),
                // It will be logged again when it comes due.
                Kind::Flush if record.expires != 0 => {}
                Kind::Flush => {
                    let known = self.flushes.iter().position(|flush| *flush == record.cas);
                    let at = known.unwrap_or_else(|| {
                        self.flushes.push(record.cas);
                        self.store.apply_flush(now);
                        self.flushes.len() - 1
                    });
                    self.flushed.insert(number, at + 1);
                }
                Kind::Digest => {
                    assert_eq!(
                        journal.freeze(number),
                        record.argument,
                        "digest of {number}"
                    );
                }
                other => panic!("{other:?}"),
            }
            journal.replay(number, std::slice::from_ref(record));
        }

        fn living(&self, now: u32) -> BTreeMap<String, String> {
            let mut items = BTreeMap::new();
            let mut from = Some(0);
            while let Some(pair) = from {
                from = self.store.walk_pairs(pair, 100, |seen| {
                    if self.store.seen_dead(now, &seen.hit) {
                        return;
                    }
                    let hit = &seen.hit;
                    let mut value = Vec::new();
                    hit.pieces(|piece| value.extend_from_slice(piece));
                    let rest = format!(
                        "{} bytes {:x} cas {} flags {} expires {} marks {}",
                        value.len(),
                        journal::place(&value),
                        hit.cas(),
                        hit.flags(),
                        hit.expires(),
                        hit.record_marks()
                    );
                    items.insert(String::from_utf8_lossy(&seen.key).into_owned(), rest);
                });
            }
            items
        }

        fn expect_equal(&self, leader: &Node, now: u32) {
            let (ours, theirs) = (self.living(now), leader.living(now));
            for (key, item) in &theirs {
                assert_eq!(ours.get(key), Some(item), "{key}");
            }
            for (key, item) in &ours {
                assert_eq!(Some(item), theirs.get(key), "{key}");
            }
        }

        /// The leaves as the items make them.
        fn check_rows(&self) {
            let mut rows = vec![[0u64; journal::LEAVES]; PARTITIONS];
            let mut from = Some(0);
            while let Some(pair) = from {
                from = self.store.walk_pairs(pair, 100, |seen| {
                    rows[partition(seen.place)][journal::leaf(seen.place)] ^= seen.digest;
                });
            }
            for (number, row) in rows.iter().enumerate() {
                assert!(
                    *self.store.journal().unwrap().row(number).row == *row,
                    "row {number}"
                );
            }
        }
    }

    /// Marsaglia's xorshift.
    fn dice(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    fn mutate(node: &Node, seed: &mut u64, now: u32) {
        let cx = node.cx(now);
        let store = &node.store;
        let key = format!("key{}", dice(seed) % 300);
        let key = key.as_bytes();
        let hash = store.hash(key);
        let length = match dice(seed) % 20 {
            0 => 5000 + dice(seed) as usize % 60_000,
            1..4 => dice(seed) as usize % 4097,
            _ => dice(seed) as usize % 100,
        };
        let value = vec![b'0' + (dice(seed) % 10) as u8; length];
        let expires = match dice(seed) % 3 {
            0 => now + 1 + dice(seed) as u32 % 4,
            _ => 0,
        };
        let put = |mode| Put {
            key,
            hash,
            mode,
            flags: length as u32 % 3,
            expires,
            cas: None,
            new_cas: None,
            invalidate: false,
            vivify: None,
            binary_key: false,
        };
        match dice(seed) % 16 {
            0..6 => {
                store.put(cx, &put(Mode::Set), &value);
            }
            6 => {
                store.put(cx, &put(Mode::Add), &value);
            }
            7 => {
                store.put(cx, &put(Mode::Append), &value[..length.min(200)]);
            }
            8 => {
                store.put(cx, &put(Mode::Prepend), &value[..length.min(200)]);
            }
            9 => {
                let how = Arith {
                    up: length % 2 == 0,
                    delta: length as u64,
                    cas: None,
                    new_cas: None,
                    touch: None,
                    create: (length % 3 == 0).then_some((7, expires)),
                };
                store.arith(cx, key, hash, &how);
            }
            10 => {
                store.delete(cx, key, hash, &Delete::default());
            }
            11 => {
                let how = Delete {
                    stale: true,
                    touch: Some(expires),
                    ..Delete::default()
                };
                store.delete(cx, key, hash, &how);
            }
            12 => {
                let how = Delete {
                    drop_value: true,
                    ..Delete::default()
                };
                store.delete(cx, key, hash, &how);
            }
            13 => {
                let how = Fetch {
                    touch: Some(expires),
                    leases: true,
                    ..Fetch::default()
                };
                let _ = store.fetch(cx, key, hash, &how, |_| ());
            }
            14 => {
                let how = Fetch {
                    vivify: Some(expires),
                    leases: true,
                    recache: Some(now + 2),
                    ..Fetch::default()
                };
                let _ = store.fetch(cx, key, hash, &how, |_| ());
            }
            _ if dice(seed) % 100 < 2 => store.flush_all(now, now + dice(seed) as u32 % 3),
            _ => {
                let _ = store.get(cx, key, hash, |_| ());
            }
        }
    }

    #[test]
    fn a_copy_that_applies_the_log_is_equal() {
        for round in 1..=4u64 {
            let mut seed = round * 0x9e37_79b9;
            let leader = Node::new(false, 64);
            let mut follower = Node::new(true, 64);
            let mut now = 100;
            for step in 0..6000 {
                if step % 500 == 0 {
                    now += 1;
                }
                mutate(&leader, &mut seed, now);
                if step % 700 == 0 {
                    leader.store.crawl_step(leader.cx(now));
                    for number in 0..PARTITIONS {
                        leader.store.journal().unwrap().mark(number);
                    }
                    follower.catch_up(&leader, now);
                    leader.check_rows();
                    follower.check_rows();
                    follower.expect_equal(&leader, now);
                }
            }
            assert_eq!(follower.store.journal().unwrap().lost_locally(), 0);
        }
    }

    #[test]
    fn what_is_evicted_goes_on_both_sides() {
        let leader = Node::new(false, 2);
        let mut follower = Node::new(true, 4);
        for number in 0..20_000u32 {
            let key = format!("key{number}");
            let key = key.as_bytes();
            let put = Put {
                key,
                hash: leader.store.hash(key),
                mode: Mode::Set,
                flags: 0,
                expires: 0,
                cas: None,
                new_cas: None,
                invalidate: false,
                vivify: None,
                binary_key: false,
            };
            leader.store.put(leader.cx(100), &put, &[b'x'; 200]);
            if number % 1000 == 0 {
                follower.catch_up(&leader, 100);
            }
        }
        follower.catch_up(&leader, 100);
        assert!(leader.store.items() < 15_000);
        leader.check_rows();
        follower.expect_equal(&leader, 100);
    }

    #[test]
    fn a_follower_hides_what_is_dead_and_says_what_it_gave_up() {
        let mut follower = Node::new(true, 2);
        let leader = Node::new(false, 64);
        let key = b"key";
        let hash = leader.store.hash(key);
        let put = Put {
            key,
            hash,
            mode: Mode::Set,
            flags: 0,
            expires: 105,
            cas: None,
            new_cas: None,
            invalidate: false,
            vivify: None,
            binary_key: false,
        };
        leader.store.put(leader.cx(100), &put, b"value");
        follower.catch_up(&leader, 100);
        let hash = follower.store.hash(key);
        let get = |node: &Node, now| node.store.get(node.cx(now), key, hash, |_| ());
        assert!(get(&follower, 104).is_ok());
        assert_eq!(get(&follower, 105), Err(super::super::Miss::Expired));
        assert_eq!(follower.store.items(), 1, "hidden, not gone");
        follower.check_rows();
        for number in 0..20_000u32 {
            let key = format!("key{number}");
            let record = Record {
                cas: u64::from(number) + 10,
                value: &[b'x'; 300],
                ..Record::new(Kind::Put, key.as_bytes())
            };
            follower
                .store
                .apply_put(follower.cx(100), &record, 0, false);
        }
        assert!(follower.store.items() < 19_000);
        assert!(follower.store.journal().unwrap().lost_locally() > 1000);
        follower.check_rows();
    }
}
