#![forbid(unsafe_code)]
//! What a follower does to its items when it is told.

use std::sync::atomic::Ordering::Relaxed;

use super::digest;
use crate::store::journal::{self, Change, Kind, Record};
use crate::store::raw::flag;
use crate::store::{Cx, Mode, Put, Refused, Store, Stored, Upload};

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

/// What has become of a value that was to go on with some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extended {
    Done,
    /// The item is not what the record says that it was.
    Other,
    /// There is no room for all of it: it has gone, and is known to be missing.
    NoRoom,
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

impl Store {
    /// A follower's: makes the item what a record with its whole value says; `dead`: it was flushed
    /// before it came. False: there is no room for it, and what was there has gone.
    pub fn apply_put(&self, cx: Cx<'_>, record: &Record<'_>, expires: u32, dead: bool) -> bool {
        self.apply(cx, record, expires, dead, |put| {
            self.put(cx, put, record.value)
        })
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
        self.apply(cx, record, expires, dead, |put| {
            self.finish(cx, put, upload)
        })
    }

    fn apply(
        &self,
        cx: Cx<'_>,
        record: &Record<'_>,
        expires: u32,
        dead: bool,
        store: impl FnOnce(&Put<'_>) -> Stored,
    ) -> bool {
        let inner = &self.inner;
        let hash = self.hash(record.key);
        let stored = store(&record_put(record, hash, expires));
        if !matches!(stored, Stored::Stored { .. }) {
            self.apply_lose(cx, record.key);
            return false;
        }
        let lease = lease_flags(record.marks);
        if lease != 0 || dead {
            let guard = inner.table.lock(&inner.arena, hash);
            if let Some(place) = guard.find(hash, record.key) {
                let item = guard.item(&place);
                let before = inner.before(&item);
                let head = item.head();
                head.update(|word| word.with_flags(word.flags() | lease));
                inner.log_stored(&item, before);
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

    /// A follower's: takes an item out, unless it is newer than this CAS id.
    pub fn apply_gone(&self, cx: Cx<'_>, key: &[u8], cas: u64) {
        let inner = &self.inner;
        let hash = self.hash(key);
        let guard = inner.table.lock(&inner.arena, hash);
        if let Some(place) = guard.find(hash, key)
            && guard.item(&place).cas() <= cas
        {
            inner.unlink(cx, guard, place, hash);
        }
    }

    /// A follower's: takes out the item with this digest, of those whose keys have this hash.
    pub fn apply_delete_exactly(&self, cx: Cx<'_>, hash: u64, exactly: u64) {
        let inner = &self.inner;
        let guard = inner.table.lock(&inner.arena, hash);
        let mut found = None;
        guard.each(|item| {
            if digest(&item, journal::place(&item.key())) == exactly {
                found = Some(item.handle());
            }
        });
        if let Some(place) = found.and_then(|handle| guard.find_handle(hash, handle)) {
            inner.unlink(cx, guard, place, hash);
        }
    }

    /// A follower's: adds bytes to a value, if the item is the one that the leader added them to.
    pub fn apply_extend(&self, cx: Cx<'_>, record: &Record<'_>) -> Extended {
        let inner = &self.inner;
        let hash = self.hash(record.key);
        let flushed = {
            let guard = inner.table.lock(&inner.arena, hash);
            let Some(place) = guard.find(hash, record.key) else {
                return Extended::Other;
            };
            let item = guard.item(&place);
            let was = (item.cas(), item.length() as u64);
            if was != (record.argument, u64::from(record.expires)) {
                return Extended::Other;
            }
            // The leader has found it alive. Whether it has been flushed or has expired here meanwhile
            // is not asked.
            let accessed = &item.head().accessed;
            let flushed = inner.flush.moment(cx.now).kills(0, accessed.load(Relaxed));
            accessed.store(inner.stamp(cx.now), Relaxed);
            flushed
        };
        let put = Put {
            mode: match record.kind {
                Kind::Prepend => Mode::Prepend,
                _ => Mode::Append,
            },
            cas: Some(record.argument),
            ..record_put(record, hash, 0)
        };
        let timeless = Cx { now: 0, ..cx };
        let stored = self.put(timeless, &put, record.value);
        if !matches!(stored, Stored::Stored { .. }) {
            self.apply_lose(cx, record.key);
            return Extended::NoRoom;
        }
        let guard = inner.table.lock(&inner.arena, hash);
        if let Some(place) = guard.find(hash, record.key) {
            let accessed = match flushed {
                true => inner.flush.mark(cx.now),
                false => inner.stamp(cx.now),
            };
            let item = guard.item(&place);
            item.head().accessed.store(accessed, Relaxed);
        }
        Extended::Done
    }

    /// A follower's: hides everything that is there.
    pub fn apply_flush(&self, now: u32) {
        self.inner.flush.set(now, now);
    }
}
