#![forbid(unsafe_code)]
//! What the log is told of mutations, under the lock of their pair.

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use super::{digest, marks};
use crate::store::journal::{self, Change, Entry, INLINE_MAX, Journal, Kind, Record};
use crate::store::raw::Item;
use crate::store::write::Pieces;
use crate::store::{Inner, Mode, Store};

thread_local! {
    static LOGGED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread has logged anything since it was asked last.
pub fn take_logged() -> bool {
    LOGGED.take()
}

/// Logs a flush that has come due, or that will at `expires` (Unix seconds), if `change` says that it
/// has been set.
#[cold]
pub(in crate::store) fn log_flush(journal: &Journal, expires: u32, change: impl FnOnce() -> bool) {
    let record = Record {
        expires,
        // Tells one flush from another: the records of its partitions have it in common.
        cas: journal.next_flush(),
        ..Record::new(Kind::Flush, b"")
    };
    journal.flush(&record, change);
}

/// What the log has to know of an item that changes.
#[derive(Clone, Copy, Default)]
pub(in crate::store) struct Before {
    /// Where its key belongs, if there was one.
    place: Option<u64>,
    digest: u64,
}

/// As [`Before`], with the log of the item's partition locked: for changes that take nothing else.
pub(in crate::store) struct Held<'j> {
    entry: Entry<'j>,
    place: u64,
    digest: u64,
}

/// Why an item goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Why {
    Asked,
    Dead,
    ForRoom,
}

#[inline(always)]
fn hold<'j>(journal: &'j Journal, item: &Item<'_>, key: &[u8]) -> Held<'j> {
    let place = journal::place(key);
    let digest = digest(item, place);
    Held {
        entry: journal.enter(place),
        place,
        digest,
    }
}

// What those pay for who keep no copies is one branch each: the rest stands elsewhere.
#[cold]
#[inline(never)]
fn before(item: &Item<'_>) -> Before {
    let place = journal::place(&item.key());
    Before {
        place: Some(place),
        digest: digest(item, place),
    }
}

#[cold]
#[inline(never)]
fn log_item_gone(journal: &Journal, item: &Item<'_>, why: Why) {
    let key = item.key();
    let place = journal::place(&key);
    // Of a victim nobody knew that it would go.
    journal.expect(place);
    let change = Change(digest(item, place));
    match (journal.is_follower(), why) {
        (true, Why::ForRoom) => journal.lose(place, change),
        (true, _) => journal.change(place, change),
        (false, Why::Dead | Why::ForRoom) => journal.give_up(place, item.cas(), &key, change),
        (false, Why::Asked) => {
            let record = Record {
                cas: item.cas(),
                ..Record::new(Kind::Delete, &key)
            };
            journal.append(place, &record, change);
            LOGGED.set(true);
        }
    }
}

impl Inner {
    /// Dead items are hidden, not taken out: that is for the leader to decide.
    #[inline]
    pub(in crate::store) fn hides(&self) -> bool {
        self.journal
            .as_ref()
            .is_some_and(|journal| journal.is_follower())
    }

    /// What the log has to know of an item before it changes; goes to
    /// [`log_stored`](Inner::log_stored).
    #[inline]
    pub(in crate::store) fn before(&self, item: &Item<'_>) -> Before {
        match self.journal {
            None => Before::default(),
            Some(_) => before(item),
        }
    }

    /// As [`before`](Inner::before), where until [`log_held`](Inner::log_held) nothing happens that is
    /// logged itself: no memory is taken, no item goes, no moment is asked for.
    #[inline]
    pub(in crate::store) fn hold_log(&self, item: &Item<'_>, key: &[u8]) -> Option<Held<'_>> {
        let journal = self.journal.as_deref()?;
        Some(hold(journal, item, key))
    }

    /// As [`log_stored`](Inner::log_stored).
    #[inline]
    pub(in crate::store) fn log_held(&self, item: &Item<'_>, key: &[u8], held: Held<'_>) {
        if let Some(journal) = &self.journal {
            self.log_item(journal, item, key, held);
        }
    }

    /// An item is as it should be; `before` is the default if there was none.
    #[inline]
    pub(in crate::store) fn log_stored(&self, item: &Item<'_>, before: Before) {
        if let Some(journal) = &self.journal {
            self.enter_and_log(journal, item, before);
        }
    }

    #[cold]
    #[inline(never)]
    fn enter_and_log(&self, journal: &Journal, item: &Item<'_>, before: Before) {
        let key = item.key();
        let place = before.place.unwrap_or_else(|| journal::place(&key));
        let held = Held {
            entry: journal.enter(place),
            place,
            digest: before.digest,
        };
        self.log_item(journal, item, &key, held);
    }

    #[inline(always)]
    fn log_item(&self, journal: &Journal, item: &Item<'_>, key: &[u8], held: Held<'_>) {
        let Held { entry, place, .. } = held;
        let change = Change(held.digest ^ digest(item, place));
        if journal.is_follower() {
            return entry.change(place, change);
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
            ..self.describe(journal, item, key)
        };
        entry.append(place, &record, change);
        LOGGED.set(true);
    }

    /// As [`log_stored`](Inner::log_stored), for an item of this CAS id and length whose value has been
    /// extended by `added` bytes, which `value` shows: a long one is not sent again for a few bytes.
    pub(in crate::store) fn log_extended(
        &self,
        item: &Item<'_>,
        before: Before,
        mode: Mode,
        (cas, length): (u64, usize),
        value: &Pieces<'_>,
    ) {
        let Some(journal) = &self.journal else {
            return;
        };
        let added = item.length() - length;
        if journal.is_follower() || item.length() <= INLINE_MAX || added > INLINE_MAX {
            return self.enter_and_log(journal, item, before);
        }
        let key = item.key();
        let place = before.place.unwrap_or_else(|| journal::place(&key));
        let mut bytes = Vec::with_capacity(added);
        value(&mut |piece| bytes.extend_from_slice(piece));
        let kind = match mode {
            Mode::Prepend => Kind::Prepend,
            _ => Kind::Append,
        };
        let record = Record {
            cas: item.cas(),
            argument: cas,
            expires: length as u32,
            value: &bytes,
            ..Record::new(kind, &key)
        };
        journal.append(place, &record, Change(before.digest ^ digest(item, place)));
        LOGGED.set(true);
    }

    /// An item's expiry or marks have changed, and nothing else.
    #[cold]
    pub(in crate::store) fn log_meta(&self, item: &Item<'_>, before: Before) {
        if let Some(journal) = &self.journal
            && !journal.is_follower()
        {
            let key = item.key();
            let place = before.place.unwrap_or_else(|| journal::place(&key));
            let record = self.describe(journal, item, &key);
            journal.append(place, &record, Change(before.digest ^ digest(item, place)));
            LOGGED.set(true);
        }
    }

    /// A record of everything but the value.
    #[inline(always)]
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

    /// An item is about to be taken out.
    #[inline]
    pub(in crate::store) fn log_gone(&self, item: &Item<'_>, why: Why) {
        if let Some(journal) = &self.journal {
            log_item_gone(journal, item, why);
        }
    }

    #[cold]
    pub(in crate::store) fn flush_and_log(&self, journal: &Journal, now: u32, at: u32) {
        let expires = if at <= now { 0 } else { journal.to_wire(at) };
        // One that has just come due is logged first: below, the logs are locked.
        self.flush.settle(now);
        log_flush(journal, expires, || {
            self.flush.set_settled(now, at);
            true
        });
        if at <= now {
            // Copies learn from the log what is gone.
            self.request_crawl(now, u64::MAX);
        }
    }
}

impl Store {
    /// A key will soon be changed: asks for the memory that the log will need for it.
    #[cold]
    pub fn foresee(&self, key: &[u8]) {
        if let Some(journal) = &self.inner.journal {
            journal.expect(journal::place(key));
        }
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
}
