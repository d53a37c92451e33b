#![forbid(unsafe_code)]
//! Where slots come from: a bin's free ones, a fresh page, an item that has to go, another bin's page.
//!
//! Lock order: a bin's mutex, then (trying only) a pair. The bin of chunks comes after all others;
//! whoever holds its mutex takes no other bin's.

use std::sync::atomic::Ordering::Relaxed;

use super::bins::{BinState, HAND_STEPS, Page};
use super::copies::Why;
use super::raw::{Arena, Ghost, Handle, KEY_SHORT, NewItem, Slot, State, flag};
use super::{Cx, Inner, Put, Upload};
use crate::observe::events;

/// How often a request for memory starts over before it gives up.
const ATTEMPTS: usize = 16;
/// Slots of the HOT ring that are looked at before the hand gets its turn.
const RING_STEPS: usize = 32;

/// Slots that are kept free in a bin whose items are being evicted: one of so many, and at most.
const AHEAD_SHARE: usize = 256;
const AHEAD_MOST: usize = 128;

/// Where an item's value fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    Slot(u8),
    /// A chunk-sized slot and a chain behind it.
    Chain,
}

/// Why an item leaves the table from below.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Its slot is needed.
    Evicted(Ghost),
    /// It is expired or flushed.
    Dead,
    /// Its page is needed elsewhere.
    Moved,
}

/// Who made room.
pub(super) enum Victim<'s> {
    /// An item of the bin, whose slot this is.
    Here(Slot<'s>),
    /// A large item whose last chunk stood in the bin; this is its first slot, with all chunks.
    Elsewhere(Slot<'s>),
}

impl Inner {
    /// Where an item fits; `total` is without the extension, for which bins have room.
    #[inline]
    pub(super) fn fit(&self, total: usize) -> Fit {
        match self.classes.bin_of(total) {
            Some(bin) => Fit::Slot(bin),
            None => Fit::Chain,
        }
    }

    /// A slot of a bin for an item; nothing if there is none to be had, even by eviction. `class` is
    /// charged for it.
    pub(super) fn take(&self, cx: Cx<'_>, bin: u8, class: u8) -> Option<Slot<'_>> {
        self.take_for(cx, bin, class, true)
    }

    /// As [`take`](Inner::take), for an item or for a chunk.
    fn take_for(&self, cx: Cx<'_>, bin: u8, class: u8, item: bool) -> Option<Slot<'_>> {
        for _ in 0..ATTEMPTS {
            let mut state = self.bins[usize::from(bin)].lock();
            if let Some(slot) = state.pages.take(&self.pages, &self.arena) {
                if item {
                    self.enrol(cx, &mut state, &slot);
                }
                if cx.counters.log.wants(events::EVICTIONS) {
                    let gone = self.evict_another(cx, bin, &mut state);
                    drop(state);
                    if let Some(gone) = gone {
                        self.give(gone);
                    }
                }
                return Some(slot);
            }
            if let Page::Granted(page) = self.pool.take(state.pages.pages().is_empty()) {
                state.pages.add_page(&self.pages, page);
                continue;
            }
            match self.evict(cx, bin, &mut state) {
                Some(Victim::Here(mut slot)) => {
                    if item {
                        self.enrol(cx, &mut state, &slot);
                    }
                    drop(state);
                    self.give_chunks(&mut slot);
                    return Some(slot);
                }
                Some(Victim::Elsewhere(slot)) => {
                    drop(state);
                    self.give(slot);
                    continue;
                }
                None => drop(state),
            }
            if !self.evicting || !self.steal_page(cx, bin) {
                std::thread::yield_now();
                if !self.evicting {
                    break;
                }
            }
        }
        cx.counters.classes[usize::from(class)].outofmemory.add(1);
        None
    }

    /// Gives back a slot, and the chunks that hang off it.
    pub(super) fn give(&self, mut slot: Slot<'_>) {
        self.give_chunks(&mut slot);
        self.give_one(slot);
    }

    fn give_chunks(&self, slot: &mut Slot<'_>) {
        while let Some(chunk) = slot.pop_chunk() {
            self.give_one(chunk);
        }
    }

    fn give_one(&self, slot: Slot<'_>) {
        let mut state = self.bins[usize::from(slot.bin())].lock();
        state.pages.give(&self.pages, &self.arena, slot);
    }

    /// Slots that are kept free ahead of need in a bin that gives up items. Those in use count with the
    /// free ones, so that it is the same before and after some have been freed.
    fn ahead(state: &BinState) -> usize {
        (state.pages.capacity() / AHEAD_SHARE).min(AHEAD_MOST)
    }

    /// Slots that are missing in a bin to those.
    fn missing_ahead(state: &BinState) -> usize {
        let free = state.pages.capacity() - state.pages.used();
        Inner::ahead(state).saturating_sub(free)
    }

    /// Free slots of a bin that are not kept ahead of need.
    pub(super) fn spare_slots(state: &BinState) -> usize {
        let free = state.pages.capacity() - state.pages.used();
        free.saturating_sub(if state.pressed {
            Inner::ahead(state)
        } else {
            0
        })
    }

    /// Evicts an item for a slot that was freed ahead of need and has just been taken. The maintainer would
    /// do that in a moment; but who watches evictions expects to see one behind each item that a full
    /// class is given.
    #[cold]
    fn evict_another(&self, cx: Cx<'_>, bin: u8, state: &mut BinState) -> Option<Slot<'_>> {
        let (used, limit) = self.pool.usage();
        let full = self.evicting && state.pressed && used >= limit;
        if !full || Inner::missing_ahead(state) == 0 {
            return None;
        }
        match self.evict(cx, bin, state)? {
            Victim::Here(slot) | Victim::Elsewhere(slot) => Some(slot),
        }
    }

    /// Evicts ahead of need in bins that have evicted since the last time, so that whoever stores finds
    /// a free slot.
    pub(super) fn refill(&self, cx: Cx<'_>, bin: u8) {
        let mut gone = Vec::new();
        {
            let mut state = self.bins[usize::from(bin)].lock();
            // A large item leaves many slots.
            let each = state.pages.used() / (self.items_in(bin) as usize).max(1);
            for _ in 0..Inner::missing_ahead(&state) / each.max(1) {
                match self.evict(cx, bin, &mut state) {
                    Some(Victim::Here(slot) | Victim::Elsewhere(slot)) => gone.push(slot),
                    None => break,
                }
            }
        }
        for slot in gone {
            self.give(slot);
        }
    }

    /// Puts a slot that is about to hold a new item into the HOT ring, if its bin is under pressure.
    fn enrol(&self, cx: Cx<'_>, state: &mut BinState, slot: &Slot<'_>) {
        if !state.pressed {
            return;
        }
        if state.pages.used() * 8 < state.pages.capacity() * 7 {
            // Plenty of room again: items are no longer told apart when they come.
            state.pressed = false;
        }
        let head = self.arena.head(slot.handle());
        if !head.word().queued() {
            head.set_queued(true);
            state.hot.push_back(slot.handle());
        }
        let bin = slot.bin();
        if state.hot.len() > state.hot_target(self.items_in(bin)) + 64 {
            self.demote_oldest(cx, state);
        }
    }

    /// Lets the oldest item of the ring stay, without having to prove itself.
    fn demote_oldest(&self, cx: Cx<'_>, state: &mut BinState) {
        let Some(handle) = state.hot.pop_front() else {
            return;
        };
        let head = self.arena.head(handle);
        head.set_queued(false);
        let word = head.word();
        if word.state() == State::Hot {
            self.demote(cx, handle, word.counter().min(1));
        }
    }

    /// Makes a HOT item a MAIN one.
    fn demote(&self, cx: Cx<'_>, handle: Handle, counter: u32) {
        let head = self.arena.head(handle);
        if !head.demote(counter) {
            return;
        }
        self.census_of(handle)
            .change((State::Hot, 0), (State::Main, counter));
        let counters = &cx.counters.classes[usize::from(self.class_of_slot(handle))];
        if counter > 0 {
            counters.moves_to_warm.add(1);
        } else {
            counters.moves_to_cold.add(1);
        }
    }

    /// Takes an item's slot, by the order of the bin's clock.
    pub(super) fn evict(&self, cx: Cx<'_>, bin: u8, state: &mut BinState) -> Option<Victim<'_>> {
        let shared = &self.bins[usize::from(bin)];
        shared.adapt(state);
        state.pressed = true;
        if self.evicting && self.segmented.load(Relaxed) {
            let target = state.hot_target(self.items_in(bin));
            if let Some(slot) = self.evict_hot(cx, state, target) {
                return Some(Victim::Here(slot));
            }
        }
        // Of a large item, the hand meets one slot among the many of its chunks.
        let chained = bin == self.arena.chunk_bin();
        let most = if chained {
            state.pages.capacity()
        } else {
            HAND_STEPS
        };
        let (mut seen, mut passed) = (0, 0);
        let mut best: Option<(u32, Handle)> = None;
        let mut ends = None;
        while seen < HAND_STEPS && passed < most {
            passed += 1;
            let Some(handle) = state.advance(&self.pages, &self.arena) else {
                break;
            };
            let head = self.arena.head(handle);
            let word = head.word();
            if word.state() == State::Chunk && !chained {
                ends = ends.or(Some(handle));
                if self.evicting && self.is_cold_end(handle) {
                    let owner = self.evict_owner(cx, handle);
                    if owner.is_some() {
                        return owner.map(Victim::Elsewhere);
                    }
                }
                continue;
            }
            if !word.linked() {
                continue;
            }
            seen += 1;
            if self.is_dead(cx.now, head) {
                let slot = self.reap(cx, state, handle, Leaving::Dead);
                if slot.is_some() {
                    return slot.map(Victim::Here);
                }
                continue;
            }
            if !self.evicting {
                continue;
            }
            let rank = match word.state() {
                State::Main => word.counter(),
                // Lost its place in the ring: it counts as old.
                State::Hot if !word.queued() => {
                    self.demote(cx, handle, word.counter());
                    word.counter()
                }
                State::Hot => 4,
                _ => 5,
            };
            if rank == 0 {
                let slot = self.reap(cx, state, handle, Leaving::Evicted(Ghost { hot: false }));
                if slot.is_some() {
                    return slot.map(Victim::Here);
                }
                continue;
            }
            if rank <= 3 && head.change(word, word.with_counter(rank - 1)) {
                let class = usize::from(self.class_of_slot(handle));
                let counters = &cx.counters.classes[class];
                counters.moves_within_lru.add(1);
                if rank == 1 {
                    self.census_of(handle)
                        .change((State::Main, 1), (State::Main, 0));
                    counters.moves_to_cold.add(1);
                }
            }
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, handle));
            }
        }
        // Nothing was at 0 within the bound: the best seen goes, new and short-lived items last.
        if let Some((_, handle)) = best {
            let slot = self.reap(cx, state, handle, Leaving::Evicted(Ghost { hot: false }));
            if slot.is_some() {
                return slot.map(Victim::Here);
            }
        }
        let end = ends.filter(|_| self.evicting)?;
        self.evict_owner(cx, end).map(Victim::Elsewhere)
    }

    /// Lets go what is oldest in the HOT ring and was not hit there, while the ring is too long.
    fn evict_hot(&self, cx: Cx<'_>, state: &mut BinState, target: usize) -> Option<Slot<'_>> {
        for _ in 0..RING_STEPS {
            if state.hot.len() <= target {
                return None;
            }
            let handle = state.hot.pop_front()?;
            let head = self.arena.head(handle);
            head.set_queued(false);
            let word = head.word();
            if word.state() != State::Hot {
                continue;
            }
            if word.counter() > 0 {
                self.demote(cx, handle, 1);
                continue;
            }
            let slot = self.reap(cx, state, handle, Leaving::Evicted(Ghost { hot: true }));
            if slot.is_some() {
                return slot;
            }
            // Its pair was busy, or it was pinned; the hand will find it.
            self.demote(cx, handle, 0);
        }
        None
    }

    /// Whether a slot holds the end of a large value that nobody has asked for lately.
    fn is_cold_end(&self, chunk: Handle) -> bool {
        self.arena.chunk(chunk).owner().is_some_and(|owner| {
            let word = self.arena.head(owner).word();
            word.state() == State::Main && word.counter() == 0
        })
    }

    /// Lets go the large item that a chunk belongs to; for whoever holds the mutex of the chunk's bin.
    fn evict_owner(&self, cx: Cx<'_>, chunk: Handle) -> Option<Slot<'_>> {
        let owner = self.arena.chunk(chunk).owner()?;
        let state = self.bins[usize::from(self.arena.chunk_bin())].lock();
        self.reap(cx, &state, owner, Leaving::Evicted(Ghost { hot: false }))
    }

    /// Unlinks an item of a bin whose mutex is held. Nothing if its pair is busy or it is pinned.
    pub(super) fn reap(
        &self,
        cx: Cx<'_>,
        state: &BinState,
        handle: Handle,
        why: Leaving,
    ) -> Option<Slot<'_>> {
        let hash = self.peek_hash(state, handle)?;
        let mut guard = self.table.try_lock(&self.arena, hash)?;
        let place = guard.find_handle(hash, handle)?;
        let item = guard.item(&place);
        if !item.unpinned() && why != Leaving::Dead {
            return None;
        }
        let word = item.word();
        let head = self.arena.head(handle);
        let class = self.class_of(&item);
        let counters = &cx.counters.classes[usize::from(class)];
        let unfetched = !word.has(flag::FETCHED);
        match why {
            Leaving::Dead => {
                counters.reclaimed.add(1);
                if unfetched {
                    counters.expired_unfetched.add(1);
                }
            }
            Leaving::Evicted(_) | Leaving::Moved => {
                counters.evicted.add(1);
                if head.expires.load(Relaxed) != 0 {
                    counters.evicted_nonzero.add(1);
                }
                if unfetched {
                    counters.evicted_unfetched.add(1);
                }
                let age = cx.now.saturating_sub(head.accessed.load(Relaxed));
                self.evicted_age[usize::from(class)].store(age, Relaxed);
                if cx.counters.log.wants(events::EVICTIONS) {
                    let expires = head.expires.load(Relaxed);
                    let left = if expires == 0 {
                        -1
                    } else {
                        i64::from(expires) - i64::from(cx.now)
                    };
                    cx.counters.log.eviction(
                        &item.key(),
                        !unfetched,
                        left,
                        age,
                        class,
                        item.length(),
                    );
                }
                if matches!(why, Leaving::Evicted(_)) {
                    self.bins[usize::from(word.bin())]
                        .evictions
                        .fetch_add(1, Relaxed);
                }
            }
        }
        let ghost = match why {
            Leaving::Evicted(ghost) => Some((ghost, cx.now)),
            _ => None,
        };
        self.log_gone(&item, Why::ForRoom);
        self.count_out(cx, &item);
        self.leave_census(&item);
        guard.remove(place, hash, ghost)
    }

    /// As [`reap`](Inner::reap), for an item that is expired or flushed.
    pub(super) fn reap_dead(
        &self,
        cx: Cx<'_>,
        state: &BinState,
        handle: Handle,
    ) -> Option<Slot<'_>> {
        self.reap(cx, state, handle, Leaving::Dead)
    }

    /// Memory for the beginning of a value that is not at hand as one small slice.
    pub(super) fn allocate(
        self: &std::sync::Arc<Self>,
        cx: Cx<'_>,
        put: &Put<'_>,
        length: usize,
    ) -> Option<Upload> {
        let long = put.key.len() > KEY_SHORT;
        let large = length > super::COPY_MAX || long;
        let total = self.arena.overhead(put.key.len(), put.flags != 0) + length;
        let class = self.classes.class_of_total(total + self.classes.extra());
        let fit = self.fit(total);
        let bin = match fit {
            Fit::Slot(bin) => bin,
            Fit::Chain => self.arena.chunk_bin(),
        };
        let mut slot = self.take(cx, bin, class)?;
        let at = slot.write_head(&NewItem {
            key: put.key,
            hash: put.hash,
            length,
            client_flags: put.flags,
            expires: put.expires,
            accessed: self.stamp(cx.now),
            large: large || fit == Fit::Chain,
            verified: self.verifies(length),
            binary_key: put.binary_key,
        });
        let lead = if long { put.key } else { b"" };
        Upload::new(self.clone(), cx, slot, at, lead, length, class).ok()
    }

    /// The hash of the key of an item that stands in a bin whose mutex is held.
    pub(super) fn peek_hash(&self, state: &BinState, handle: Handle) -> Option<u64> {
        let hash = |key: &[u8]| self.hasher.hash(key);
        state
            .pages
            .peek_hash(&self.pages, &self.arena, handle, hash)
    }

    /// A slot for the next bytes of a value of which so many are missing, and how many of them it is
    /// to hold: a chunk, or at the end a slot of a bin that they just fit.
    pub(super) fn take_chunk(
        &self,
        cx: Cx<'_>,
        missing: usize,
        class: u8,
    ) -> Option<(Slot<'_>, usize)> {
        let chunk = self.arena.slot_size(self.arena.chunk_bin());
        let full = Arena::chunk_room(chunk);
        let bin = match self.classes.bin_of(missing.min(full) + chunk - full) {
            Some(bin) if missing < full => bin,
            _ => self.arena.chunk_bin(),
        };
        let slot = self.take_for(cx, bin, class, false)?;
        Some((slot, missing.min(full)))
    }
}
