#![forbid(unsafe_code)]
//! Bins: slots of one size, the pages they are cut from, and the order in which they are given up.
//!
//! memcached's slab classes are what the outside sees; each is made of one or more bins, so that a
//! slot wastes a few per cent rather than a quarter. Beside them stands one bin of 16 KiB slots, of
//! which all large values are chained.
//!
//! Who goes first, when a bin must give up an item (a clock over slots, no lists):
//! * New items of a bin under pressure wait in its HOT ring. One that was hit there moves on to
//!   MAIN; one that was not is the first to go, and leaves a ghost in the table.
//! * A key that comes back while its ghost is there goes to MAIN at once, and tells the ring that it
//!   was too short (a ghost of the ring) or too long (a ghost of the hand).
//! * A hand sweeps the slots: a hit counter above 0 is lowered, an item at 0 goes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use super::raw::{Arena, BinPages, Handle, PageTable, State};

/// Slots the hand looks at before it takes the best it has seen.
pub const HAND_STEPS: usize = 128;
/// The ring's share of a bin's slots, in 1/1024: at least, at first, at most.
const HOT_SHARE: (u32, u32, u32) = (51, 102, 512);

/// One bin.
pub struct Bin {
    state: Mutex<BinState>,
    /// What its items are. Those of chunks are counted by class.
    pub census: Census,
    /// Hits that found their item's counter at 0: what a bin of this size would have lost had it
    /// been smaller. The page mover goes by it.
    pub cold_hits: AtomicU64,
    /// Evictions so far.
    pub evictions: AtomicU64,
    /// Keys that came back after the ring, or the hand, had given them up.
    hot_ghosts: AtomicU32,
    main_ghosts: AtomicU32,
}

/// What a bin knows beside its pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    pub hot_share: u32,
    pub pressed: bool,
    pub census: [u64; 4],
    /// The HOT ring, as handles.
    pub hot: Vec<u32>,
}

/// How many items there are of each kind, roughly: the hand and a client may be at the same item.
#[derive(Default)]
pub struct Census {
    linked: AtomicI64,
    hot: AtomicI64,
    /// MAIN items hit since the hand last came by.
    warm: AtomicI64,
    temporary: AtomicI64,
}

impl Census {
    fn kind(&self, state: State, counter: u32) -> Option<&AtomicI64> {
        match state {
            State::Hot => Some(&self.hot),
            State::Temp => Some(&self.temporary),
            State::Main if counter > 0 => Some(&self.warm),
            _ => None,
        }
    }

    pub fn enter(&self, state: State, counter: u32) {
        self.linked.fetch_add(1, Relaxed);
        if let Some(kind) = self.kind(state, counter) {
            kind.fetch_add(1, Relaxed);
        }
    }

    pub fn leave(&self, state: State, counter: u32) {
        self.linked.fetch_sub(1, Relaxed);
        if let Some(kind) = self.kind(state, counter) {
            kind.fetch_sub(1, Relaxed);
        }
    }

    /// An item that stays has changed its state or counter.
    pub fn change(&self, from: (State, u32), to: (State, u32)) {
        if let Some(kind) = self.kind(from.0, from.1) {
            kind.fetch_sub(1, Relaxed);
        }
        if let Some(kind) = self.kind(to.0, to.1) {
            kind.fetch_add(1, Relaxed);
        }
    }

    pub fn linked(&self) -> u64 {
        self.linked.load(Relaxed).max(0) as u64
    }

    pub fn hot(&self) -> u64 {
        self.hot.load(Relaxed).max(0) as u64
    }

    pub fn warm(&self) -> u64 {
        self.warm.load(Relaxed).max(0) as u64
    }

    pub fn temporary(&self) -> u64 {
        self.temporary.load(Relaxed).max(0) as u64
    }

    /// MAIN items that were not hit since the hand last came by.
    pub fn cold(&self) -> u64 {
        self.linked()
            .saturating_sub(self.hot() + self.warm() + self.temporary())
    }

    /// Its four numbers, for who keeps them.
    pub fn keep(&self) -> [u64; 4] {
        [self.linked(), self.hot(), self.warm(), self.temporary()]
    }

    /// Goes on with what [`keep`](Census::keep) gave.
    pub fn resume(&self, kept: [u64; 4]) {
        let cells = [&self.linked, &self.hot, &self.warm, &self.temporary];
        for (cell, kept) in cells.into_iter().zip(kept) {
            cell.store(kept as i64, Relaxed);
        }
    }
}

/// What a bin's mutex guards.
pub struct BinState {
    pub pages: BinPages,
    /// Slots whose items are new, oldest first. A slot's QUEUED bit says that it stands here.
    pub hot: VecDeque<Handle>,
    hot_share: u32,
    hand: Hand,
    /// There has been no free slot of late: new items have to prove themselves.
    pub pressed: bool,
}

#[derive(Default)]
struct Hand {
    page: usize,
    slot: usize,
}

impl Bin {
    pub fn new(bin: u8, arena: &Arena) -> Bin {
        Bin {
            state: Mutex::new(BinState {
                pages: BinPages::new(bin, arena),
                hot: VecDeque::new(),
                hot_share: HOT_SHARE.1,
                hand: Hand::default(),
                pressed: false,
            }),
            census: Census::default(),
            cold_hits: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            hot_ghosts: AtomicU32::new(0),
            main_ghosts: AtomicU32::new(0),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, BinState> {
        self.state
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    pub fn try_lock(&self) -> Option<MutexGuard<'_, BinState>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(std::sync::TryLockError::Poisoned(broken)) => Some(broken.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    /// What is not in its pages, for when nobody uses it.
    pub fn keep(&self) -> Kept {
        let state = self.lock();
        Kept {
            hot_share: state.hot_share,
            pressed: state.pressed,
            census: self.census.keep(),
            hot: state.hot.iter().map(|handle| handle.raw()).collect(),
        }
    }

    /// Goes on with what an earlier process has kept of it; its pages are there already.
    pub fn resume(&mut self, kept: &Kept) {
        self.census.resume(kept.census);
        let mut state = self.lock();
        state.hot_share = kept.hot_share.clamp(HOT_SHARE.0, HOT_SHARE.2);
        state.pressed = kept.pressed;
        state.hot = kept
            .hot
            .iter()
            .copied()
            .filter_map(Handle::from_raw)
            .collect();
    }

    /// A key came back whose ghost was still there.
    pub fn ghost_seen(&self, hot: bool) {
        let seen = if hot {
            &self.hot_ghosts
        } else {
            &self.main_ghosts
        };
        seen.fetch_add(1, Relaxed);
    }

    /// Moves the ring's share after what the ghosts have told: a key that came back to the ring says
    /// that the ring is too short, one that came back to MAIN that it takes too much.
    pub fn adapt(&self, state: &mut BinState) {
        let (hot, main) = (
            self.hot_ghosts.load(Relaxed),
            self.main_ghosts.load(Relaxed),
        );
        if hot + main < 64 {
            return;
        }
        self.hot_ghosts.fetch_sub(hot, Relaxed);
        self.main_ghosts.fetch_sub(main, Relaxed);
        let step = (hot.abs_diff(main) * 16 / (hot + main)).min(16);
        let share = if hot > main {
            state.hot_share + step
        } else {
            state.hot_share.saturating_sub(step)
        };
        state.hot_share = share.clamp(HOT_SHARE.0, HOT_SHARE.2);
    }
}

impl BinState {
    /// How long the ring should be, with so many items in the bin.
    pub fn hot_target(&self, items: u64) -> usize {
        items as usize * self.hot_share as usize / 1024
    }

    /// The next slot for the hand; nothing if the bin has no pages.
    pub fn advance(&mut self, table: &PageTable, arena: &Arena) -> Option<Handle> {
        for _ in 0..=self.pages.pages().len() {
            let pages = self.pages.pages();
            if pages.is_empty() {
                return None;
            }
            if self.hand.page >= pages.len() {
                self.hand = Hand::default();
            }
            let page = pages[self.hand.page];
            if self.hand.slot < table.entry(page).carved() {
                let handle = arena.handle(page, self.hand.slot, self.pages.size());
                self.hand.slot += 1;
                return Some(handle);
            }
            self.hand = Hand {
                page: self.hand.page + 1,
                slot: 0,
            };
        }
        None
    }

    /// The slots before the hand, on its page.
    pub fn ahead<'a>(
        &'a self,
        table: &'a PageTable,
        arena: &'a Arena,
        most: usize,
    ) -> impl Iterator<Item = Handle> + 'a {
        let page = self.pages.pages().get(self.hand.page).copied();
        let slots = page.map_or(0..0, |page| {
            let carved = table.entry(page).carved();
            self.hand.slot.min(carved)..carved.min(self.hand.slot + most)
        });
        slots.filter_map(move |slot| Some(arena.handle(page?, slot, self.pages.size())))
    }

    /// Forgets the slots of a page that is about to leave the bin: behind this, they may be cut
    /// differently.
    pub fn forget_page(&mut self, arena: &Arena, page: u32) {
        self.hot.retain(|&handle| arena.page_of(handle) != page);
    }
}

/// Pages that no bin has, and how many there may be in all.
pub struct Pool {
    state: Mutex<PoolState>,
}

struct PoolState {
    /// Pages with memory.
    free: Vec<u32>,
    /// Pages whose memory has been given back.
    bare: Vec<u32>,
    /// The first page that was never used.
    fresh: u32,
    /// Pages that exist: 1 up to this.
    end: u32,
    /// Pages in bins.
    used: usize,
    limit: usize,
}

/// What a bin gets when it asks for a page.
pub enum Page {
    Granted(u32),
    /// The limit is reached.
    Full,
}

impl Pool {
    pub fn new(arena: &Arena, limit: usize) -> Pool {
        Pool {
            state: Mutex::new(PoolState {
                free: Vec::new(),
                bare: Vec::new(),
                fresh: 1,
                end: arena.pages() as u32,
                used: 0,
                limit,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    /// A page, if the limit allows one more. A bin's `first` is granted beyond it, as memcached
    /// grants each class one page, so that no size is ever without memory.
    pub fn take(&self, first: bool) -> Page {
        let mut state = self.lock();
        if state.used >= state.limit && !first {
            return Page::Full;
        }
        let page = match state.free.pop().or_else(|| state.bare.pop()) {
            Some(page) => page,
            None if state.fresh < state.end => {
                state.fresh += 1;
                state.fresh - 1
            }
            None => return Page::Full,
        };
        state.used += 1;
        Page::Granted(page)
    }

    pub fn give(&self, page: u32) {
        let mut state = self.lock();
        state.used -= 1;
        state.free.push(page);
    }

    /// The first page that was never used.
    pub fn fresh(&self) -> u32 {
        self.lock().fresh
    }

    /// Goes on with the pages of an earlier process: which of them no bin has, and the first that was
    /// never used.
    pub fn resume(&self, free: Vec<u32>, fresh: u32) {
        let mut state = self.lock();
        state.used = fresh as usize - 1 - free.len();
        state.free = free;
        state.fresh = fresh;
    }

    /// A free page, if more pages have memory than there may be.
    pub fn take_over_limit(&self) -> Option<u32> {
        let mut state = self.lock();
        if state.used + state.free.len() <= state.limit {
            return None;
        }
        state.free.pop()
    }

    /// Takes back a page that [`take_over_limit`](Pool::take_over_limit) gave, without its memory.
    pub fn bury(&self, page: u32) {
        self.lock().bare.push(page);
    }

    /// Pages with memory that no bin has.
    pub fn free(&self) -> usize {
        self.lock().free.len()
    }

    /// Pages in bins, and how many there may be.
    pub fn usage(&self) -> (usize, usize) {
        let state = self.lock();
        (state.used, state.limit)
    }

    pub fn set_limit(&self, pages: usize) -> bool {
        let mut state = self.lock();
        if pages + 1 > state.end as usize {
            return false;
        }
        state.limit = pages;
        true
    }
}
