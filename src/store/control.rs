#![forbid(unsafe_code)]
//! What is asked of the store as a whole: limits, tuning, pages, the crawler, dumps, and the numbers
//! behind `stats`. None of it is on a request's path.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use super::bins::Census;
use super::raw::State as SlotState;
use super::upkeep::{Walk, lock};
use super::{Cx, Hit, Inner, PAGE, Queue, Store};
use crate::settings;

/// What can be changed while the server runs, as it is now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// Bytes for items.
    pub max_bytes: u64,
    pub segmented: bool,
    pub hot_lru_pct: u32,
    pub warm_lru_pct: u32,
    pub hot_max_factor: f64,
    pub warm_max_factor: f64,
    /// Items that live at most this many seconds have a queue of their own; `None` is off.
    pub temporary_ttl: Option<u32>,
    pub crawler: bool,
    /// Microseconds.
    pub crawler_sleep: u32,
    /// Items per run and class; 0 is no limit.
    pub crawler_tocrawl: u32,
    pub automove: u32,
    pub automove_ratio: f64,
    pub automove_window: u32,
    /// The watermark of `flush_all` on the server's clock; 0 before the first.
    pub oldest: u32,
}

/// What `slabs reassign` came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reassigned {
    Started,
    Busy,
    BadClass,
    NoSpare,
    Same,
}

/// What a request to the crawler came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crawled {
    Started,
    Busy,
    /// Nothing in these classes.
    NothingToDo,
}

/// How far a dump has come.
#[derive(Debug)]
pub struct Dump {
    walk: Walk,
}

/// Shares and factors of the LRU queues, which are shown and changed and of no effect on the clock (it
/// finds its own), and the automover's knobs.
#[derive(Debug, Clone, Copy)]
pub(super) struct LruTuning {
    hot_pct: u32,
    warm_pct: u32,
    hot_factor: f64,
    warm_factor: f64,
    pub(super) automove_ratio: f64,
    pub(super) automove_window: u32,
}

impl LruTuning {
    pub(super) fn new(settings: &settings::Store) -> LruTuning {
        LruTuning {
            hot_pct: settings.hot_lru_pct,
            warm_pct: settings.warm_lru_pct,
            hot_factor: settings.hot_max_factor,
            warm_factor: settings.warm_max_factor,
            automove_ratio: settings.slab_automove_ratio,
            automove_window: settings.slab_automove_window,
        }
    }
}

/// One queue of a class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueState {
    pub items: u64,
    /// Seconds since the oldest item was accessed.
    pub age: u32,
}

/// One slab class as it is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassState {
    pub chunk_size: u64,
    pub chunks_per_page: u64,
    pub pages: u64,
    pub chunks: u64,
    pub used_chunks: u64,
    pub free_chunks: u64,
    pub hot: QueueState,
    pub warm: QueueState,
    pub cold: QueueState,
    pub temp: QueueState,
    /// Seconds the item evicted last had not been accessed.
    pub evicted_time: u32,
}

impl ClassState {
    fn count(&mut self, census: &Census) {
        self.hot.items += census.hot();
        self.warm.items += census.warm();
        self.cold.items += census.cold();
        self.temp.items += census.temporary();
    }
}

/// The store as it is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    pub hash_power: u32,
    pub hash_bytes: u64,
    pub hash_expanding: bool,
    /// Pages in no class.
    pub free_pages: u64,
    /// Bytes of pages.
    pub page_bytes: u64,
    /// Bytes that only count as taken.
    pub taken: u64,
    /// Slots that are not free.
    pub used_slots: u64,
    pub crawler_running: bool,
    pub crawler_starts: u64,
    pub maintainer_juggles: u64,
    pub malloc_fails: u64,
    pub reassign_running: bool,
    pub reassign_rescues: u64,
    pub reassign_chunk_rescues: u64,
    pub reassign_inline_reclaim: u64,
    pub reassign_busy_items: u64,
    pub reassign_busy_deletes: u64,
    pub reassign_busy_nomem: u64,
    pub slabs_moved: u64,
}

impl Hit<'_> {
    /// Whether it lies in `queue`; what `stats cachedump` filters by.
    pub fn lies_in(&self, queue: Queue) -> bool {
        self.queue() == queue
    }
}

/// memcached's page, in which `stats slabs` counts.
const FOREIGN_PAGE: u64 = 1 << 20;
/// Slots behind the hand that are looked at to tell the age of a class.
const AGE_SAMPLE: usize = 32;

/// The lifetime from which on an item is no temporary one, in seconds; 0 where none is.
pub(super) fn above(temporary_ttl: Option<u32>) -> u32 {
    temporary_ttl.map_or(0, |ttl| ttl.saturating_add(1))
}

impl Store {
    pub fn tuning(&self) -> Tuning {
        let inner = &self.inner;
        let upkeep = &inner.upkeep;
        let lru = *lock(&upkeep.tuning);
        let temporary = inner.temporary_ttl.load(Relaxed);
        Tuning {
            max_bytes: inner.max_bytes.load(Relaxed),
            segmented: inner.segmented.load(Relaxed),
            hot_lru_pct: lru.hot_pct,
            warm_lru_pct: lru.warm_pct,
            hot_max_factor: lru.hot_factor,
            warm_max_factor: lru.warm_factor,
            temporary_ttl: temporary.checked_sub(1),
            crawler: upkeep.crawler_on.load(Relaxed),
            crawler_sleep: upkeep.crawler_sleep.load(Relaxed),
            crawler_tocrawl: upkeep.crawler_tocrawl.load(Relaxed),
            automove: upkeep.automove.load(Relaxed),
            automove_ratio: lru.automove_ratio,
            automove_window: lru.automove_window,
            oldest: (inner.flush.marks.load(Relaxed) >> 32) as u32,
        }
    }

    /// `cache_memlimit`, bytes. False: the memory was taken at start or lies in a file, or so much
    /// address space is not to be had.
    pub fn set_max_bytes(&self, bytes: u64) -> bool {
        let inner = &self.inner;
        if inner.fixed || !inner.pool.set_limit((bytes / PAGE as u64) as usize) {
            return false;
        }
        inner.max_bytes.store(bytes, Relaxed);
        inner.set_page_limit();
        true
    }

    /// See [`set_budget`](Store::set_budget); `u64::MAX` without such a limit.
    pub fn budget(&self) -> u64 {
        self.inner.budget.load(Relaxed)
    }

    /// What items may take of a limit that they share with all else, beside their own
    /// ([`set_max_bytes`](Store::set_max_bytes)).
    pub fn set_budget(&self, bytes: u64) {
        let inner = &self.inner;
        inner.budget.store(bytes, Relaxed);
        inner.set_page_limit();
    }

    /// `lru mode`
    pub fn set_segmented(&self, segmented: bool) {
        let inner = &self.inner;
        inner.segmented.store(segmented, Relaxed);
        let most = super::read::counter_max(segmented);
        inner.counter_max.store(most, Relaxed);
    }

    /// `lru tune`; checked by the caller.
    pub fn set_lru_shares(&self, hot_pct: u32, warm_pct: u32, hot_factor: f64, warm_factor: f64) {
        let mut lru = lock(&self.inner.upkeep.tuning);
        *lru = LruTuning {
            hot_pct,
            warm_pct,
            hot_factor,
            warm_factor,
            ..*lru
        };
    }

    /// `lru temp_ttl`
    pub fn set_temporary_ttl(&self, ttl: Option<u32>) {
        self.inner.temporary_ttl.store(above(ttl), Relaxed);
    }

    /// `lru_crawler enable`, `disable`
    pub fn set_crawler(&self, on: bool) {
        self.inner.upkeep.crawler_on.store(on, Relaxed);
    }

    pub fn set_crawler_sleep(&self, microseconds: u32) {
        self.inner.upkeep.crawler_sleep.store(microseconds, Relaxed);
    }

    pub fn set_crawler_tocrawl(&self, items: u32) {
        self.inner.upkeep.crawler_tocrawl.store(items, Relaxed);
    }

    /// `slabs automove`: 0, 1 or 2.
    pub fn set_automove(&self, mode: u32) {
        self.inner.upkeep.automove.store(mode, Relaxed);
    }

    pub fn set_automove_ratio(&self, ratio: f64) {
        lock(&self.inner.upkeep.tuning).automove_ratio = ratio;
    }

    pub fn set_automove_window(&self, seconds: u32) {
        lock(&self.inner.upkeep.tuning).automove_window = seconds;
    }

    /// `slabs reassign`: one page of class `from` (`None`: any) to class `to`; 0 is the pool. The
    /// maintainer carries it out.
    pub fn reassign(&self, from: Option<u32>, to: u32) -> Reassigned {
        let inner = &self.inner;
        let last = u32::from(inner.classes.largest());
        if from == Some(to) {
            return Reassigned::Same;
        }
        if to > last || from.is_some_and(|from| from == 0 || from > last) {
            return Reassigned::BadClass;
        }
        let from = from.map(|from| from as u8);
        let pages: usize = inner
            .sources_of(from)
            .map(|bin| inner.bins[bin].lock().pages.pages().len())
            .sum();
        if (pages * PAGE) as u64 <= FOREIGN_PAGE {
            return Reassigned::NoSpare;
        }
        if inner.upkeep.reassigning.swap(true, Relaxed) {
            return Reassigned::Busy;
        }
        lock(&inner.upkeep.mover).request = Some((from, to as u8));
        Reassigned::Started
    }

    /// `lru_crawler crawl`: the background crawler visits the classes whose bits are set.
    pub fn crawl(&self, now: u32, classes: u64) -> Crawled {
        let inner = &self.inner;
        if !inner.has_items(classes) {
            Crawled::NothingToDo
        } else if inner.request_crawl(now, classes) {
            Crawled::Started
        } else {
            Crawled::Busy
        }
    }

    /// A walk over every live item of the classes whose bits are set (`hash` order is the same).
    /// `Err(Busy)` while the crawler runs.
    pub fn dump(&self, classes: u64) -> Result<Dump, Crawled> {
        let inner = &self.inner;
        if inner.upkeep.crawler_running.load(Relaxed) {
            return Err(Crawled::Busy);
        }
        if !inner.has_items(classes) {
            return Err(Crawled::NothingToDo);
        }
        Ok(Dump {
            walk: Walk::new(classes),
        })
    }

    /// Shows up to about `limit` more items, each under its lock and without counting as an access;
    /// false when there are no more. `each` returns false to stop early.
    pub fn dump_step(
        &self,
        cx: Cx<'_>,
        dump: &mut Dump,
        limit: usize,
        each: impl FnMut(&Hit<'_>) -> bool,
    ) -> bool {
        self.inner.walk_items(cx, &mut dump.walk, limit, each)
    }

    pub fn state(&self) -> State {
        let inner = &self.inner;
        let upkeep = &inner.upkeep;
        let (used, free) = (inner.pool.usage().0, inner.pool.free());
        let moves = &inner.moves;
        // What memcached's table would be at this number of items.
        let mut power = inner.hash_power;
        while power < 32 && inner.table.pairs() as f64 * 17.25 > 1.5 * (1u64 << power) as f64 {
            power += 1;
        }
        State {
            hash_power: power,
            hash_bytes: inner.table.bytes() as u64,
            hash_expanding: false,
            free_pages: free as u64 * PAGE as u64 / FOREIGN_PAGE,
            page_bytes: (used + free) as u64 * PAGE as u64,
            taken: inner.taken,
            used_slots: inner
                .bins
                .iter()
                .map(|bin| bin.lock().pages.used() as u64)
                .sum(),
            crawler_running: upkeep.crawler_running.load(Relaxed),
            crawler_starts: upkeep.crawler_starts.load(Relaxed),
            maintainer_juggles: upkeep.juggles.load(Relaxed),
            reassign_running: upkeep.reassigning.load(Relaxed),
            reassign_rescues: moves.rescues.load(Relaxed),
            reassign_chunk_rescues: moves.chunk_rescues.load(Relaxed),
            reassign_inline_reclaim: moves.reclaims.load(Relaxed),
            reassign_busy_items: moves.busy.load(Relaxed),
            reassign_busy_nomem: moves.no_room.load(Relaxed),
            slabs_moved: moves.pages.load(Relaxed) * PAGE as u64 / FOREIGN_PAGE,
            ..State::default()
        }
    }

    /// Number, chunk size and chunks per page of each slab class.
    pub fn classes(&self) -> impl Iterator<Item = (u8, usize, usize)> {
        let classes = &self.inner.classes;
        (1..=classes.largest()).map(|class| {
            (
                class,
                classes.chunk_size(class),
                classes.chunks_per_page(class),
            )
        })
    }

    /// The class with this number, if it exists (1 to 63); `held` are the bytes of its items, which
    /// those know who count.
    pub fn class(&self, class: u8, held: u64, now: u32) -> Option<ClassState> {
        let inner = &self.inner;
        if class == 0 || class > inner.classes.largest() {
            return None;
        }
        let mut state = ClassState {
            chunk_size: inner.classes.chunk_size(class) as u64,
            chunks_per_page: inner.classes.chunks_per_page(class) as u64,
            evicted_time: inner.evicted_age[usize::from(class)].load(Relaxed),
            ..ClassState::default()
        };
        let mut bytes = 0;
        let chunks = usize::from(inner.arena.chunk_bin());
        for bin in inner.bins_of(Some(class)) {
            let shared = &inner.bins[bin];
            let guard = shared.lock();
            if bin != chunks {
                bytes += guard.pages.pages().len() as u64 * PAGE as u64;
                state.chunks += guard.pages.capacity() as u64;
                state.used_chunks += guard.pages.used() as u64;
                state.count(&shared.census);
            }
            let (hot_age, cold_age) = inner.ages(&guard, now);
            state.hot.age = state.hot.age.max(hot_age);
            state.warm.age = state.warm.age.max(cold_age);
            state.cold.age = state.cold.age.max(cold_age);
        }
        state.pages = bytes.div_ceil(FOREIGN_PAGE);
        // What is chained has no pages of its own class; it is shown as memcached would hold it.
        let chained = &inner.chained[usize::from(class)];
        state.count(chained);
        if chained.linked() > 0 {
            let size = state.chunk_size;
            let used = (held / size).max(chained.linked());
            let pages = (held.div_ceil(FOREIGN_PAGE)).max(1);
            state.pages += pages;
            state.chunks += (pages * state.chunks_per_page).max(used);
            state.used_chunks += used;
        }
        state.free_chunks = state.chunks.saturating_sub(state.used_chunks);
        Some(state)
    }

    /// Items by size, rounded up to a multiple of 32, if `-o track_sizes` is on.
    pub fn sizes(&self) -> Option<Vec<(u64, u64)>> {
        let inner = &self.inner;
        if !inner.upkeep.track_sizes {
            return None;
        }
        let mut sizes = BTreeMap::new();
        for bin in &inner.bins {
            let state = bin.lock();
            for &page in state.pages.pages() {
                for slot in 0..inner.pages.entry(page).carved() {
                    let handle = inner.arena.handle(page, slot, state.pages.size());
                    if inner.arena.head(handle).word().linked() {
                        let total = inner.arena.total(handle) + inner.classes.extra();
                        *sizes
                            .entry((total as u64).next_multiple_of(32))
                            .or_insert(0) += 1;
                    }
                }
            }
        }
        Some(sizes.into_iter().collect())
    }

    /// The class of an item with such a key, flags and value; what `cmd_set` counts under.
    pub fn class_of(&self, key_length: usize, flags: u32, length: usize) -> u8 {
        let inner = &self.inner;
        let total = inner.arena.overhead(key_length, flags != 0) + length;
        inner.classes.class_of_total(total + inner.classes.extra())
    }
}

impl Inner {
    /// Lets the pool have what both limits allow.
    pub(super) fn set_page_limit(&self) {
        let page = PAGE as u64;
        let own = self.max_bytes.load(Relaxed).saturating_sub(self.taken) / page;
        // Every bin may have its first page beyond the limit.
        let shared = (self.budget.load(Relaxed) / page).saturating_sub(self.bins.len() as u64);
        // It has been as high before, or higher.
        self.pool.set_limit(own.min(shared) as usize);
    }

    /// Whether any class of a set may have items.
    fn has_items(&self, classes: u64) -> bool {
        (1..=self.classes.largest())
            .filter(|class| classes & 1 << class != 0)
            .any(|class| {
                self.bins_of(Some(class))
                    .any(|bin| self.bins[bin].lock().pages.used() > 0)
            })
    }

    /// Seconds since the oldest item of the ring, and the next ones before the hand, were accessed.
    fn ages(&self, state: &super::bins::BinState, now: u32) -> (u32, u32) {
        let age = |handle| {
            let head = self.arena.head(handle);
            let linked = matches!(head.word().state(), SlotState::Hot | SlotState::Main);
            linked.then(|| now.saturating_sub(head.accessed.load(Relaxed)))
        };
        let hot = state
            .hot
            .iter()
            .take(AGE_SAMPLE)
            .find_map(|&handle| age(handle))
            .unwrap_or(0);
        let cold = state
            .ahead(&self.pages, &self.arena, AGE_SAMPLE)
            .filter_map(age)
            .max()
            .unwrap_or(0);
        (hot, cold)
    }
}
