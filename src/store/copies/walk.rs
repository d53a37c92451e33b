#![forbid(unsafe_code)]
//! Walks that see every item.

use std::borrow::Cow;
use std::sync::Arc;

use super::{digest, marks};
use crate::store::journal::{self, Kind, Record};
use crate::store::merkle;
use crate::store::raw::Item;
use crate::store::read::Hit;
use crate::store::{Inner, Store};

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

    /// The root that was made of the value when it was stored, if one was.
    pub fn stored_root(&self) -> Option<merkle::Digest> {
        self.item().digests()?.first_chunk().copied()
    }

    /// Calls `piece` with the parts of the value, in order. For short values: the lock is held.
    pub fn pieces(&self, piece: impl FnMut(&[u8])) {
        self.item().pieces(piece);
    }
}

impl Inner {
    /// What a walk shows of an item whose pair is locked.
    fn seen<'g>(self: &'g Arc<Self>, item: Item<'g>) -> Seen<'g> {
        let key = item.key();
        let place = journal::place(&key);
        let journal = self.journal.as_ref();
        Seen {
            digest: digest(&item, place),
            seq: journal.map_or(0, |journal| journal.seq(journal::partition(place))),
            hit: Hit::shown(self, item),
            key,
            place,
        }
    }
}

impl Store {
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
            inner.table.foresee(&inner.arena, pair);
            let guard = inner.table.lock_pair(&inner.arena, pair);
            guard.each(|item| {
                shown += 1;
                each(&inner.seen(item));
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
        Some(look(&inner.seen(guard.item(&place))))
    }
}
