#![forbid(unsafe_code)]
//! Where slots come from: a bin's free ones, a fresh page, an item that has to go, another bin's page.
//!
//! Lock order: a bin's mutex, then (trying only) a pair. The bin of chunks comes after all others;
//! whoever holds its mutex takes no other bin's.

use std::sync::atomic::Ordering::Relaxed;

use super::bins::{BinState, HAND_STEPS, Page};
use super::raw::{Ghost, Handle, NewItem, Slot, State, flag};
use super::{Cx, Inner, Put, Upload};
use crate::observe::events;

/// How often a request for memory starts over before it gives up.
const ATTEMPTS: usize = 16;
/// Slots of the HOT ring that are looked at before the hand gets its turn.
const RING_STEPS: usize = 32;

/// Where an item's value fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    Slot(u8),
    /// A chunk-sized slot and a chain behind it.
    Chain,
}

/// Why an item leaves the table from below.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// Its slot is needed.
    Evicted(Ghost),
    /// It is expired or flushed.
    Dead,
    /// Its page is needed elsewhere.
    Moved,
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

    /// A slot of a bin; nothing if there is none to be had, even by eviction. `class` is charged for it.
    pub(super) fn take(&self, cx: Cx<'_>, bin: u8, class: u8) -> Option<Slot<'_>> {
        for _ in 0..ATTEMPTS {
            let mut state = self.bins[usize::from(bin)].lock();
            if let Some(slot) = state.pages.take(&self.pages, &self.arena) {
                self.enrol(cx, &mut state, &slot);
                return Some(slot);
            }
            if let Page::Granted(page) = self.pool.take(state.pages.pages().is_empty()) {
                state.pages.add_page(&self.pages, page);
                continue;
            }
            let victim = self.evict(cx, bin, &mut state);
            if let Some(mut slot) = victim {
                self.enrol(cx, &mut state, &slot);
                drop(state);
                self.give_chunks(&mut slot);
                return Some(slot);
            }
            drop(state);
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
        if state.hot.len() > state.hot_target() + 64 {
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
        if word.state() == State::Hot && head.demote(word.counter().min(1)) {
            let counters = &cx.counters.classes[self.class_of_bin(word.bin())];
            if word.counter() > 0 {
                self.bins[usize::from(word.bin())].warmed();
                counters.moves_to_warm.add(1);
            } else {
                counters.moves_to_cold.add(1);
            }
        }
    }

    /// Takes an item's slot, by the order of the bin's clock.
    fn evict(&self, cx: Cx<'_>, bin: u8, state: &mut BinState) -> Option<Slot<'_>> {
        let shared = &self.bins[usize::from(bin)];
        shared.adapt(state);
        state.pressed = true;
        if self.evicting && self.segmented.load(Relaxed) {
            for _ in 0..RING_STEPS {
                if state.hot.len() <= state.hot_target() {
                    break;
                }
                let Some(handle) = state.hot.pop_front() else {
                    break;
                };
                let head = self.arena.head(handle);
                head.set_queued(false);
                let word = head.word();
                if word.state() != State::Hot {
                    continue;
                }
                if word.counter() > 0 {
                    if head.demote(1) {
                        shared.warmed();
                        cx.counters.classes[self.class_of_bin(bin)]
                            .moves_to_warm
                            .add(1);
                    }
                    continue;
                }
                let slot = self.reap(cx, state, handle, Leaving::Evicted(Ghost { hot: true }));
                if slot.is_some() {
                    return slot;
                }
                // Its pair was busy, or it was pinned; the hand will find it.
                head.demote(0);
            }
        }
        let mut best: Option<(u32, Handle)> = None;
        for _ in 0..HAND_STEPS {
            let Some(handle) = state.advance(&self.pages, &self.arena) else {
                break;
            };
            let head = self.arena.head(handle);
            let word = head.word();
            if !word.linked() {
                continue;
            }
            if self.is_dead(cx.now, head) {
                let slot = self.reap(cx, state, handle, Leaving::Dead);
                if slot.is_some() {
                    return slot;
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
                    head.demote(word.counter());
                    word.counter()
                }
                State::Hot => 4,
                _ => 5,
            };
            if rank == 0 {
                let slot = self.reap(cx, state, handle, Leaving::Evicted(Ghost { hot: false }));
                if slot.is_some() {
                    return slot;
                }
                continue;
            }
            if rank <= 3 && head.change(word, word.with_counter(rank - 1)) && rank == 1 {
                shared.cooled();
                let counters = &cx.counters.classes[self.class_of_bin(bin)];
                counters.moves_within_lru.add(1);
            }
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, handle));
            }
        }
        // Nothing was at 0 within the bound: the best seen goes, new and short-lived items last.
        let (_, handle) = best?;
        self.reap(cx, state, handle, Leaving::Evicted(Ghost { hot: false }))
    }

    /// Unlinks an item of a bin whose mutex is held. Nothing if its pair is busy or it is pinned.
    fn reap(&self, cx: Cx<'_>, state: &BinState, handle: Handle, why: Leaving) -> Option<Slot<'_>> {
        let hash = self
            .hasher
            .hash(state.pages.peek_key(&self.pages, &self.arena, handle)?);
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
                        item.key(),
                        !unfetched,
                        left,
                        age,
                        class,
                        item.length(),
                    );
                }
                self.bins[usize::from(word.bin())]
                    .evictions
                    .fetch_add(1, Relaxed);
            }
        }
        let ghost = match why {
            Leaving::Evicted(ghost) => Some((ghost, cx.now)),
            _ => None,
        };
        self.count_out(cx, &item);
        if word.state() == State::Main && word.counter() > 0 {
            self.bins[usize::from(word.bin())].cooled();
        }
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

    /// Takes a page from the bin that can best spare one, for a bin that has nothing to give up.
    fn steal_page(&self, cx: Cx<'_>, wanting: u8) -> bool {
        let richest = (0..self.bins.len())
            .filter(|&bin| bin != usize::from(wanting))
            .filter_map(|bin| Some((self.bins[bin].try_lock()?.pages.pages().len(), bin)))
            .max();
        match richest {
            Some((pages, bin)) if pages > 1 => match self.empty_page(cx, bin as u8) {
                Some(page) => {
                    self.pool.give(page);
                    true
                }
                None => false,
            },
            _ => false,
        }
    }

    /// Frees one page of a bin, wherever its hand stands: live items move to free slots of the bin
    /// if they were hit lately, and go otherwise. The page belongs to the caller then, who gives it to
    /// the pool. Nothing if something on it could not be moved now.
    pub(super) fn empty_page(&self, cx: Cx<'_>, bin: u8) -> Option<u32> {
        let mut gone = Vec::new();
        let page = {
            let mut state = self.bins[usize::from(bin)].lock();
            let turn = self.emptying.fetch_add(1, Relaxed);
            let pages = state.pages.pages();
            let &page = pages.get(turn % pages.len().max(1))?;
            state.pages.close_page(&self.pages, page);
            let size = state.pages.size();
            for slot in 0..self.pages.entry(page).carved() {
                let handle = self.arena.handle(page, slot, size);
                let word = self.arena.head(handle).word();
                match word.state() {
                    State::Free | State::Busy => {}
                    State::Chunk => gone.extend(self.rescue_chunk(cx, &mut state, handle, bin)),
                    _ => gone.extend(self.rescue(cx, &mut state, handle)),
                }
            }
            page
        };
        for slot in gone {
            self.give(slot);
        }
        let mut state = self.bins[usize::from(bin)].lock();
        if self.pages.entry(page).bin() != Some(bin) {
            return None;
        }
        if state.pages.used_in(&self.pages, page) > 0 {
            state.pages.open_page(&self.pages, page);
            return None;
        }
        state.forget_page(&self.arena, page);
        state.pages.remove_page(&self.pages, page);
        self.pages_moved.fetch_add(1, Relaxed);
        Some(page)
    }

    /// Moves an item off its page, or lets it go. Returns the slot that it leaves.
    fn rescue(&self, cx: Cx<'_>, state: &mut BinState, handle: Handle) -> Option<Slot<'_>> {
        let head = self.arena.head(handle);
        let word = head.word();
        if self.is_dead(cx.now, head) {
            return self.reap(cx, state, handle, Leaving::Dead);
        }
        let worth = word.counter() > 0 || word.state() != State::Main;
        if !worth {
            return self.reap(cx, state, handle, Leaving::Moved);
        }
        let Some(slot) = self.take_to_move(state) else {
            return self.reap(cx, state, handle, Leaving::Moved);
        };
        match self.move_item(state, handle, slot) {
            Ok(old) => {
                self.rescues.fetch_add(1, Relaxed);
                Some(old)
            }
            Err(slot) => {
                state.pages.give(&self.pages, &self.arena, slot);
                None
            }
        }
    }

    /// A slot for what has to leave a page: nothing is evicted for it.
    fn take_to_move(&self, state: &mut BinState) -> Option<Slot<'_>> {
        let free = state.pages.take(&self.pages, &self.arena);
        if free.is_some() {
            return free;
        }
        if let Page::Granted(page) = self.pool.take(false) {
            state.pages.add_page(&self.pages, page);
        }
        state.pages.take(&self.pages, &self.arena)
    }

    /// Copies an item into `slot` and links the copy in its place. Returns the slot that is free
    /// now: the old one, or `slot` itself if the item could not be moved.
    fn move_item<'s>(
        &'s self,
        state: &BinState,
        handle: Handle,
        slot: Slot<'s>,
    ) -> Result<Slot<'s>, Slot<'s>> {
        let Some(key) = state.pages.peek_key(&self.pages, &self.arena, handle) else {
            return Err(slot);
        };
        let hash = self.hasher.hash(key);
        let Some(mut guard) = self.table.try_lock(&self.arena, hash) else {
            return Err(slot);
        };
        let Some(place) = guard.find_handle(hash, handle) else {
            return Err(slot);
        };
        let item = guard.item(&place);
        let word = item.word();
        self.note_expiry(slot.handle(), item.head().expires.load(Relaxed));
        // A HOT item's place in the ring is lost with its slot; it counts as swept once.
        let to = if word.state() == State::Temp {
            State::Temp
        } else {
            State::Main
        };
        let left = guard.relocate(&place, slot, to)?;
        if word.state() == State::Hot && word.counter() > 0 {
            self.bins[usize::from(word.bin())].warmed();
        }
        Ok(left)
    }

    /// Moves a chunk off its page, or lets the item go that it belongs to.
    fn rescue_chunk(
        &self,
        cx: Cx<'_>,
        state: &mut BinState,
        chunk: Handle,
        bin: u8,
    ) -> Option<Slot<'_>> {
        let owner = self.arena.chunk(chunk).owner()?;
        let head = self.arena.head(owner);
        let worth = !self.is_dead(cx.now, head)
            && (head.word().counter() > 0 || head.word().state() != State::Main);
        let slot = if worth {
            self.take_to_move(state)
        } else {
            None
        };
        // The owner's key may be looked at under the mutex of the owner's bin only.
        let chunks;
        let owners = if bin == self.arena.chunk_bin() {
            &*state
        } else {
            chunks = self.bins[usize::from(self.arena.chunk_bin())].lock();
            &*chunks
        };
        let Some(slot) = slot else {
            return self.reap(cx, owners, owner, Leaving::Moved);
        };
        let moved = self.move_chunk(owners, owner, chunk, slot);
        match moved {
            Ok(left) => {
                self.rescues.fetch_add(1, Relaxed);
                Some(left)
            }
            // Neither could be done now: the page stays, and the slot goes back unused.
            Err(slot) => Some(slot),
        }
    }

    /// Copies a chunk into `slot` and hangs the copy in its place. Returns the slot that is free now.
    fn move_chunk<'s>(
        &'s self,
        owners: &BinState,
        owner: Handle,
        chunk: Handle,
        slot: Slot<'s>,
    ) -> Result<Slot<'s>, Slot<'s>> {
        let Some(key) = owners.pages.peek_key(&self.pages, &self.arena, owner) else {
            return Err(slot);
        };
        let hash = self.hasher.hash(key);
        let Some(mut guard) = self.table.try_lock(&self.arena, hash) else {
            return Err(slot);
        };
        let Some(place) = guard.find_handle(hash, owner) else {
            return Err(slot);
        };
        guard.relocate_chunk(&place, chunk, slot)
    }

    /// Memory for a value that is not at hand as one small slice.
    pub(super) fn allocate(
        self: &std::sync::Arc<Self>,
        cx: Cx<'_>,
        put: &Put<'_>,
        length: usize,
    ) -> Option<Upload> {
        let large = length > super::COPY_MAX;
        let total = self.arena.overhead(put.key.len(), put.flags != 0, false) + length;
        let class = self
            .classes
            .class_of_total(total + super::classes::MEMCACHED_EXTRA);
        let fit = self.fit(total);
        let bin = match fit {
            Fit::Slot(bin) => bin,
            Fit::Chain => self.arena.chunk_bin(),
        };
        let mut slot = self.take(cx, bin, class)?;
        let at = slot.write_head(&NewItem {
            key: put.key,
            length,
            client_flags: put.flags,
            expires: put.expires,
            accessed: self.stamp(cx.now),
            large: large || fit == Fit::Chain,
            binary_key: put.binary_key,
        });
        let room = (slot.size() - at).min(length);
        let owner = slot.handle();
        let mut upload = Upload::new(self.clone(), slot.park(), at, room, length);
        let mut rest = length - room;
        while rest > 0 {
            let full = super::raw::Arena::chunk_room(self.arena.slot_size(self.arena.chunk_bin()));
            let used = rest.min(full);
            let bin = match self
                .classes
                .bin_of(used + self.arena.slot_size(self.arena.chunk_bin()) - full)
            {
                Some(bin) if used < full => bin,
                _ => self.arena.chunk_bin(),
            };
            let mut chunk = self.take(cx, bin, class)?;
            let at = chunk.write_chunk(owner, used);
            upload.push_chunk(chunk, at, used);
            rest -= used;
        }
        Some(upload)
    }
}
