#![forbid(unsafe_code)]
//! Pages that move: from bins that make little of them to bins that would make more, to the pool, and
//! back to the system.
//!
//! What a page is worth to a bin is told by its marginal hits: those on items that the hand would have
//! taken next, for each byte that such items take, weighted by the root of their size so that large
//! items are not starved for the sake of small ones.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::alloc::{Leaving, Victim};
use super::bins::{BinState, Page};
use super::raw::{Handle, Slot, State};
use super::upkeep::lock;
use super::{Cx, Inner, PAGE};
use crate::observe::events;

/// A bin gets a page if it makes this much more of it than the one that loses it, divided by
/// `slab_automove_ratio`: four times by default.
const WORTH_MOVING: f64 = 3.2;
/// Evictions that make a round, after which pages may move and what was seen counts for less.
const ROUND: f64 = 1024.0;
/// What a bin remembers of its marginal hits after a round, with the default window of 10.
const DECAY: f64 = 0.97;
/// Pages that may move in a round: one in so many, and at most so many.
const ROUND_SHARE: usize = 256;
const ROUND_MOST: usize = 16;
/// Pages that may move in one step, when rounds have piled up.
const STEP_MOST: f64 = 64.0;
/// A bin with evictions keeps this share of the pages that its part of the evicted bytes amounts to.
const FLOOR: f64 = 0.02;
/// A bin gives pages to the pool while it could do without so many, in halves.
const SPARE_HALVES: usize = 5;
/// Pages that a bin gives to the pool in one turn.
const RELEASE_MOST: usize = 128;
/// Pages that are looked at to find the one that is emptied with the least harm.
const CANDIDATES: usize = 64;
/// Of these, pages whose slots are looked at, and slots on each.
const SAMPLED: (usize, usize) = (8, 32);

#[derive(Default)]
pub(super) struct Mover {
    /// By bin.
    bins: Vec<Seen>,
    /// Pages that may move.
    credit: f64,
    /// Classes of a `slabs reassign`; the source may be any.
    pub(super) request: Option<(Option<u8>, u8)>,
}

/// A bin's counts when it was last looked at, and what has become of them.
#[derive(Default, Clone, Copy)]
struct Seen {
    /// Decayed marginal hits, and evicted bytes.
    hits: f64,
    flow: f64,
    cold_hits: u64,
    evictions: u64,
}

/// What has become of moves.
#[derive(Default)]
pub(super) struct Moves {
    pub pages: AtomicU64,
    pub rescues: AtomicU64,
    pub chunk_rescues: AtomicU64,
    /// Dead items found on the way.
    pub reclaims: AtomicU64,
    /// Items that could not be moved just then.
    pub busy: AtomicU64,
    /// Items that could not be moved because there was nowhere to move them, and mostly went.
    pub no_room: AtomicU64,
    /// Whose turn it is.
    turn: AtomicUsize,
}

/// What may be done to empty a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// Its items move to where there is room.
    Room,
    /// Where there is none, items go.
    Eviction,
}

/// What decides whether a bin gets or gives a page.
#[derive(Debug, Clone, Copy)]
struct Standing {
    bin: usize,
    pages: usize,
    floor: usize,
    /// Slots of a page, and their bytes.
    per_page: f64,
    size: f64,
    hits: f64,
    /// Items that the hand may take.
    cold: f64,
    /// It has evicted items lately.
    pressed: bool,
}

impl Standing {
    fn worth(&self) -> f64 {
        (self.hits + 1.0) / (self.cold.max(1.0) * self.size.sqrt())
    }
}

/// The bin that should lose a page, and the one that should get it.
fn choose(standings: &[Standing], factor: f64) -> Option<(usize, usize)> {
    let by_worth = |a: &&Standing, b: &&Standing| a.worth().total_cmp(&b.worth());
    let rich = standings
        .iter()
        .filter(|one| one.pages > one.floor)
        .min_by(by_worth)?;
    let poor = standings
        .iter()
        .filter(|one| one.pressed && one.bin != rich.bin)
        .max_by(by_worth)?;
    (poor.worth() > factor * rich.worth()).then_some((rich.bin, poor.bin))
}

impl Inner {
    /// Lets the pages move that evictions since the last time have earned. `aggressive` is automove 2.
    pub(super) fn move_pages(&self, cx: Cx<'_>, aggressive: bool) {
        let tuning = *lock(&self.upkeep.tuning);
        let mut guard = lock(&self.upkeep.mover);
        let mover = &mut *guard;
        mover.bins.resize(self.bins.len(), Seen::default());
        let counts = |bin: usize| self.bins[bin].evictions.load(Relaxed);
        let evicted: u64 = (0..self.bins.len())
            .map(|bin| counts(bin) - mover.bins[bin].evictions)
            .sum();
        let (used, _) = self.pool.usage();
        let rounds = evicted as f64 / ROUND;
        let each = (used / ROUND_SHARE).clamp(1, ROUND_MOST) as f64;
        mover.credit = (mover.credit + rounds * each).min(STEP_MOST);
        if mover.credit < 1.0 && rounds < 1.0 {
            // Not enough to judge by; what was counted stays for the next time.
            mover.credit -= rounds * each;
            return;
        }
        let forget = 1.0 - (1.0 - DECAY) * 10.0 / f64::from(tuning.automove_window.max(1));
        let forget = forget.clamp(0.5, 1.0);
        // Of a round that is not over, its share.
        let whole = rounds as i32;
        let part = rounds - f64::from(whole);
        let decay = forget.powi(whole) * (1.0 - (1.0 - forget) * part);
        let mut flow = 0.0;
        let mut standings: Vec<Standing> = Vec::with_capacity(self.bins.len());
        for (bin, shared) in self.bins.iter().enumerate() {
            let (pages, size) = {
                let state = shared.lock();
                (state.pages.pages().len(), state.pages.size())
            };
            let seen = &mut mover.bins[bin];
            let (cold_hits, evictions) = (shared.cold_hits.load(Relaxed), counts(bin));
            let lost = evictions - seen.evictions;
            seen.hits = seen.hits * decay + (cold_hits - seen.cold_hits) as f64;
            seen.flow = seen.flow * decay + (lost as usize * size) as f64;
            (seen.cold_hits, seen.evictions) = (cold_hits, evictions);
            flow += seen.flow;
            if pages == 0 {
                continue;
            }
            // A large item takes several slots.
            let items = self.items_in(bin as u8).max(1) as f64;
            let slots = (pages * (PAGE / size)) as f64;
            let each = (slots / items).max(1.0);
            standings.push(Standing {
                bin,
                pages,
                floor: 1,
                per_page: (PAGE / size) as f64 / each,
                size: size as f64 * each,
                hits: seen.hits,
                cold: self.cold_in(bin as u8) as f64,
                pressed: lost > 0,
            });
        }
        for one in &mut standings {
            let share = mover.bins[one.bin].flow / flow.max(1.0);
            one.floor += (FLOOR * share * used as f64) as usize;
        }
        let factor = if aggressive {
            1.0
        } else {
            WORTH_MOVING / tuning.automove_ratio.max(0.01)
        };
        while mover.credit >= 1.0 {
            let Some((from, to)) = choose(&standings, factor) else {
                break;
            };
            mover.credit -= 1.0;
            if !self.move_page(cx, from as u8, to as u8) {
                break;
            }
            for one in &mut standings {
                if one.bin == from {
                    one.pages -= 1;
                    one.cold = (one.cold - one.per_page).max(0.0);
                } else if one.bin == to {
                    one.pages += 1;
                    one.cold += one.per_page;
                }
            }
        }
    }

    fn move_page(&self, cx: Cx<'_>, from: u8, to: u8) -> bool {
        let emptied = self.empty_page(cx, from, Means::Eviction);
        if cx.counters.log.wants(events::SYSTEM) {
            let (from, to) = (self.class_of_bin(from), self.class_of_bin(to));
            cx.counters.log.slab_move(from, to, emptied.is_some());
        }
        let Some(page) = emptied else {
            return false;
        };
        self.pool.give(page);
        let mut state = self.bins[usize::from(to)].lock();
        if let Page::Granted(page) = self.pool.take(false) {
            state.pages.add_page(&self.pages, page);
        }
        true
    }

    /// Takes a page from the bin that can best spare one, for a bin that has nothing to give up.
    pub(super) fn steal_page(&self, cx: Cx<'_>, wanting: u8) -> bool {
        let richest = (0..self.bins.len())
            .filter(|&bin| bin != usize::from(wanting))
            .filter_map(|bin| Some((self.bins[bin].try_lock()?.pages.pages().len(), bin)))
            .max();
        match richest {
            Some((pages, bin)) if pages > 1 => {
                match self.empty_page(cx, bin as u8, Means::Eviction) {
                    Some(page) => {
                        self.pool.give(page);
                        true
                    }
                    None => false,
                }
            }
            _ => false,
        }
    }

    /// Gives the pages to the pool that bins could do without.
    pub(super) fn release_pages(&self, cx: Cx<'_>) {
        for bin in 0..self.bins.len() as u8 {
            for _ in 0..RELEASE_MOST {
                let spare = {
                    let state = self.bins[usize::from(bin)].lock();
                    let per_page = PAGE / state.pages.size();
                    // Else what is freed ahead of need would go to the pool, and come back with the next items.
                    let free = Inner::spare_slots(&state);
                    free * 2 > per_page * SPARE_HALVES && state.pages.pages().len() > 1
                };
                if !spare {
                    break;
                }
                let Some(page) = self.empty_page(cx, bin, Means::Room) else {
                    break;
                };
                if cx.counters.log.wants(events::SYSTEM) {
                    cx.counters.log.slab_move(self.class_of_bin(bin), 0, true);
                }
                self.pool.give(page);
            }
        }
    }

    /// Gives pages back to the system that are over a limit that was lowered: free ones first, then
    /// those of the bins that have most.
    pub(super) fn shrink(&self, cx: Cx<'_>) {
        // Of a limit that others need room under, a good part at a time.
        let (used, limit) = self.pool.usage();
        let most = ((used + self.pool.free()).saturating_sub(limit) / 4).max(STEP_MOST as usize);
        for _ in 0..most {
            let Some(page) = self.pool.take_over_limit() else {
                break;
            };
            self.pages.discard(&self.arena, page);
            self.pool.bury(page);
        }
        let (used, limit) = self.pool.usage();
        for _ in 0..used.saturating_sub(limit).min(most) {
            let most = (0..self.bins.len())
                .map(|bin| (self.bins[bin].lock().pages.pages().len(), bin))
                .max();
            match most {
                Some((pages, bin)) if pages > 1 => {
                    let Some(page) = self.empty_page(cx, bin as u8, Means::Eviction) else {
                        return;
                    };
                    self.pool.give(page);
                }
                _ => return,
            }
        }
    }

    /// Carries out a `slabs reassign`: one of memcached's pages is 16 of ours.
    pub(super) fn serve_reassign(&self, cx: Cx<'_>) {
        let Some((from, to)) = lock(&self.upkeep.mover).request.take() else {
            return;
        };
        for _ in 0..(1 << 20) / PAGE {
            let source = self
                .sources_of(from)
                .max_by_key(|&bin| self.bins[bin].lock().pages.pages().len());
            let Some(source) = source else { break };
            let page =
                (0..CANDIDATES).find_map(|_| self.empty_page(cx, source as u8, Means::Eviction));
            let Some(page) = page else { break };
            let target = self
                .bins_of(Some(to))
                .max_by_key(|&bin| self.bins[bin].lock().pages.used());
            match target {
                // Past the pool, whose limit classes with their first page may have exceeded.
                Some(target) => {
                    let mut state = self.bins[target].lock();
                    state.pages.add_page(&self.pages, page);
                }
                None => self.pool.give(page),
            }
        }
        self.upkeep.reassigning.store(false, Relaxed);
    }

    /// The bins that the pages of a class come from. Values that are chained end in bins of other classes,
    /// which have few items of their own then.
    pub(super) fn sources_of(&self, class: Option<u8>) -> impl Iterator<Item = usize> + '_ {
        let chained = class.is_some_and(|class| class != 0 && self.is_chained(class));
        let ends = (0..self.bins.len() - 1).filter(move |&bin| {
            chained && self.bins[bin].lock().pages.used() as u64 > 2 * self.items_in(bin as u8)
        });
        self.bins_of(class).chain(ends)
    }

    /// The page of a bin that is emptied with the least harm, of some that are looked at.
    fn easiest_page(&self, state: &BinState) -> Option<u32> {
        let pages = state.pages.pages();
        let turn = self.moves.turn.fetch_add(1, Relaxed);
        let looked_at = (0..pages.len().min(CANDIDATES))
            .map(|step| pages[(turn.wrapping_mul(CANDIDATES + 1) + step) % pages.len()]);
        let full = PAGE / state.pages.size();
        let (used, page) = looked_at
            .clone()
            .map(|page| (state.pages.used_in(&self.pages, page), page))
            .min()?;
        if used < full {
            return Some(page);
        }
        let size = state.pages.size();
        looked_at.take(SAMPLED.0).min_by_key(|&page| {
            let carved = self.pages.entry(page).carved();
            let step = (carved / SAMPLED.1).max(1);
            let slots = (0..carved).step_by(step);
            slots
                .filter(|&slot| {
                    let word = self.arena.head(self.arena.handle(page, slot, size)).word();
                    word.counter() > 0
                })
                .count()
        })
    }

    /// Frees one page of a bin, wherever its hand stands: live items move elsewhere in the bin if they
    /// were hit lately, for which others may have to go, and go themselves otherwise. The page belongs
    /// to the caller then, who gives it to the pool. Nothing if something on it could not be moved now.
    pub(super) fn empty_page(&self, cx: Cx<'_>, bin: u8, means: Means) -> Option<u32> {
        let means = if self.evicting { means } else { Means::Room };
        let mut gone = Vec::new();
        let page = {
            let mut state = self.bins[usize::from(bin)].lock();
            let page = self.easiest_page(&state)?;
            state.pages.close_page(&self.pages, page);
            let size = state.pages.size();
            for slot in 0..self.pages.entry(page).carved() {
                let handle = self.arena.handle(page, slot, size);
                let word = self.arena.head(handle).word();
                match word.state() {
                    State::Free => {}
                    State::Busy => {
                        self.moves.busy.fetch_add(1, Relaxed);
                    }
                    State::Chunk => self.rescue_chunk(cx, &mut state, handle, means, &mut gone),
                    _ => self.rescue(cx, &mut state, handle, means, &mut gone),
                }
                // What a large item has left on other pages has room for the next.
                let mut others = Vec::new();
                for mut slot in gone.drain(..) {
                    while let Some(chunk) = slot.pop_chunk() {
                        others.push(chunk);
                    }
                    others.push(slot);
                }
                for slot in others {
                    if slot.bin() == bin {
                        state.pages.give(&self.pages, &self.arena, slot);
                    } else {
                        gone.push(slot);
                    }
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
        self.moves.pages.fetch_add(1, Relaxed);
        Some(page)
    }

    /// Moves an item off its page, or lets it go.
    fn rescue<'s>(
        &'s self,
        cx: Cx<'_>,
        state: &mut BinState,
        handle: Handle,
        means: Means,
        gone: &mut Vec<Slot<'s>>,
    ) {
        let head = self.arena.head(handle);
        let word = head.word();
        if self.is_dead(cx.now, head) {
            self.moves.reclaims.fetch_add(1, Relaxed);
            gone.extend(self.reap(cx, state, handle, Leaving::Dead));
            return;
        }
        let worth = word.counter() > 0 || word.state() != State::Main;
        let slot = if worth || state.pages.has_free() {
            self.take_to_move(cx, state, handle, worth && means == Means::Eviction, gone)
        } else {
            None
        };
        if !self.arena.head(handle).word().linked() {
            // It went to make room for itself.
            gone.extend(slot);
            return;
        }
        let Some(slot) = slot else {
            self.moves.no_room.fetch_add(1, Relaxed);
            if means == Means::Eviction {
                gone.extend(self.reap(cx, state, handle, Leaving::Moved));
            }
            return;
        };
        match self.move_item(state, handle, slot) {
            Ok(old) => {
                self.moves.rescues.fetch_add(1, Relaxed);
                gone.push(old);
            }
            Err(slot) => {
                self.moves.busy.fetch_add(1, Relaxed);
                gone.push(slot);
            }
        }
    }

    /// A slot for what has to leave a page. With `evict`, colder items go for it.
    fn take_to_move<'s>(
        &'s self,
        cx: Cx<'_>,
        state: &mut BinState,
        leaving: Handle,
        evict: bool,
        gone: &mut Vec<Slot<'s>>,
    ) -> Option<Slot<'s>> {
        let mut free = state.pages.take(&self.pages, &self.arena);
        if free.is_none()
            && evict
            && let Page::Granted(page) = self.pool.take(false)
        {
            state.pages.add_page(&self.pages, page);
            free = state.pages.take(&self.pages, &self.arena);
        }
        if free.is_some() || !evict {
            return free;
        }
        let bin = self.arena.head(leaving).word().bin();
        let page = self.arena.page_of(leaving);
        // The hand may come by the very page; what it takes there needs no other place.
        for _ in 0..4 {
            let mut slot = match self.evict(cx, bin, state)? {
                Victim::Here(slot) => slot,
                Victim::Elsewhere(slot) => {
                    gone.push(slot);
                    continue;
                }
            };
            let mut found = None;
            while let Some(chunk) = slot.pop_chunk() {
                if found.is_none() && chunk.bin() == bin && self.page_of(&chunk) != page {
                    found = Some(chunk);
                } else {
                    gone.push(chunk);
                }
            }
            if found.is_none() && self.page_of(&slot) != page {
                return Some(slot);
            }
            gone.push(slot);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    fn page_of(&self, slot: &Slot<'_>) -> u32 {
        self.arena.page_of(slot.handle())
    }

    /// Copies an item into `slot` and links the copy in its place. Returns the slot that is free
    /// now: the old one, or `slot` itself if the item could not be moved.
    fn move_item<'s>(
        &'s self,
        state: &BinState,
        handle: Handle,
        slot: Slot<'s>,
    ) -> Result<Slot<'s>, Slot<'s>> {
        let Some(hash) = self.peek_hash(state, handle) else {
            return Err(slot);
        };
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
        self.census_of(place.handle())
            .change((word.state(), word.counter()), (to, word.counter()));
        Ok(left)
    }

    /// Moves a chunk off its page, or lets the item go that it belongs to.
    fn rescue_chunk<'s>(
        &'s self,
        cx: Cx<'_>,
        state: &mut BinState,
        chunk: Handle,
        means: Means,
        gone: &mut Vec<Slot<'s>>,
    ) {
        let bin = self.arena.head(chunk).word().bin();
        let Some(owner) = self.arena.chunk(chunk).owner() else {
            return;
        };
        let head = self.arena.head(owner);
        let dead = self.is_dead(cx.now, head);
        let worth = head.word().counter() > 0 || head.word().state() != State::Main;
        let slot = if dead || !(worth || state.pages.has_free()) {
            None
        } else {
            self.take_to_move(cx, state, chunk, worth && means == Means::Eviction, gone)
        };
        if self.arena.head(chunk).word().state() != State::Chunk
            || self.arena.chunk(chunk).owner() != Some(owner)
        {
            gone.extend(slot);
            return;
        }
        // The owner's key may be looked at under the mutex of the owner's bin only.
        let chunks;
        let owners = if bin == self.arena.chunk_bin() {
            &*state
        } else {
            chunks = self.bins[usize::from(self.arena.chunk_bin())].lock();
            &*chunks
        };
        let Some(slot) = slot else {
            if dead {
                gone.extend(self.reap(cx, owners, owner, Leaving::Dead));
            } else {
                self.moves.no_room.fetch_add(1, Relaxed);
                if means == Means::Eviction {
                    gone.extend(self.reap(cx, owners, owner, Leaving::Moved));
                }
            }
            return;
        };
        match self.move_chunk(owners, owner, chunk, slot) {
            Ok(left) => {
                self.moves.chunk_rescues.fetch_add(1, Relaxed);
                gone.push(left);
            }
            // It could not be done now: the page stays, and the slot goes back unused.
            Err(slot) => {
                self.moves.busy.fetch_add(1, Relaxed);
                gone.push(slot);
            }
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
        let Some(hash) = self.peek_hash(owners, owner) else {
            return Err(slot);
        };
        let Some(mut guard) = self.table.try_lock(&self.arena, hash) else {
            return Err(slot);
        };
        let Some(place) = guard.find_handle(hash, owner) else {
            return Err(slot);
        };
        guard.relocate_chunk(&place, chunk, slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(bin: usize, pages: usize, size: f64, hits: f64, pressed: bool) -> Standing {
        let per_page = PAGE as f64 / size;
        Standing {
            bin,
            pages,
            floor: 1,
            per_page,
            size,
            hits,
            cold: pages as f64 * per_page / 2.0,
            pressed,
        }
    }

    #[test]
    fn a_page_goes_where_it_is_hit_most() {
        let idle = standing(0, 100, 200.0, 0.0, true);
        let busy = standing(1, 100, 200.0, 1000.0, true);
        assert_eq!(choose(&[idle, busy], 4.0), Some((0, 1)));
        assert_eq!(choose(&[busy, idle], 4.0), Some((0, 1)));
        // Not much more is not enough, and neither is a bin that evicts nothing.
        let nearly = standing(1, 100, 200.0, 2.0, true);
        assert_eq!(choose(&[idle, nearly], 4.0), None);
        assert_eq!(choose(&[idle, nearly], 1.0), Some((0, 1)));
        let content = Standing {
            pressed: false,
            ..busy
        };
        assert_eq!(choose(&[idle, content], 4.0), None);
    }

    #[test]
    fn a_bin_keeps_its_floor() {
        let busy = standing(1, 100, 200.0, 1000.0, true);
        let last = standing(0, 1, 200.0, 0.0, true);
        assert_eq!(choose(&[last, busy], 4.0), None);
        let rare = Standing {
            pages: 5,
            floor: 5,
            ..last
        };
        assert_eq!(choose(&[rare, busy], 4.0), None);
    }

    #[test]
    fn large_items_weigh_more_than_by_their_number() {
        // The same hits for each byte: the larger items are worth more than by the number of hits,
        // and less than by their bytes.
        let small = standing(0, 100, 100.0, 10_000.0, true);
        let large = standing(1, 100, 10_000.0, 100.0, true);
        let ratio = small.worth() / large.worth();
        assert!((5.0..20.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn what_has_got_pages_is_worth_less() {
        let mut standings = [
            standing(0, 100, 200.0, 0.0, true),
            standing(1, 2, 200.0, 100.0, true),
        ];
        let mut moves = 0;
        while let Some((from, to)) = choose(&standings, 4.0) {
            assert_eq!((from, to), (0, 1));
            standings[0].pages -= 1;
            standings[0].cold = (standings[0].cold - standings[0].per_page).max(0.0);
            standings[1].pages += 1;
            standings[1].cold += standings[1].per_page;
            moves += 1;
        }
        // It comes to an end before the other has nothing left.
        assert!((10..99).contains(&moves), "{moves}");
    }
}
