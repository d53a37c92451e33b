#![forbid(unsafe_code)]
//! What is asked of the store as a whole: limits, tuning, pages, the crawler, dumps, and the numbers
//! behind `stats`. None of it is on a request's path.
//!
//! (skeleton: signatures that `admin` and `command` build on)

use super::{Cx, Hit, Queue, Store};

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
pub struct Dump {}

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

impl Store {
    pub fn tuning(&self) -> Tuning {
        unimplemented!()
    }
    /// `cache_memlimit`, bytes. False: the memory was taken at start and cannot change.
    pub fn set_max_bytes(&self, _bytes: u64) -> bool {
        unimplemented!()
    }
    /// `lru mode`
    pub fn set_segmented(&self, _segmented: bool) {
        unimplemented!()
    }
    /// `lru tune`; checked by the caller.
    pub fn set_lru_shares(
        &self,
        _hot_pct: u32,
        _warm_pct: u32,
        _hot_factor: f64,
        _warm_factor: f64,
    ) {
        unimplemented!()
    }
    /// `lru temp_ttl`
    pub fn set_temporary_ttl(&self, _ttl: Option<u32>) {
        unimplemented!()
    }
    /// `lru_crawler enable`, `disable`
    pub fn set_crawler(&self, _on: bool) {
        unimplemented!()
    }
    pub fn set_crawler_sleep(&self, _microseconds: u32) {
        unimplemented!()
    }
    pub fn set_crawler_tocrawl(&self, _items: u32) {
        unimplemented!()
    }
    /// `slabs automove`: 0, 1 or 2.
    pub fn set_automove(&self, _mode: u32) {
        unimplemented!()
    }
    pub fn set_automove_ratio(&self, _ratio: f64) {
        unimplemented!()
    }
    pub fn set_automove_window(&self, _seconds: u32) {
        unimplemented!()
    }
    /// `slabs reassign`: one page of class `from` (`None`: any) to class `to`; 0 is the pool.
    pub fn reassign(&self, _from: Option<u32>, _to: u32) -> Reassigned {
        unimplemented!()
    }

    /// `lru_crawler crawl`: the background crawler visits the classes whose bits are set.
    pub fn crawl(&self, _classes: u64) -> Crawled {
        unimplemented!()
    }
    /// A walk over every live item of the classes whose bits are set (`hash` order is the same).
    /// `Err(Busy)` while the crawler or another dump runs.
    pub fn dump(&self, _classes: u64) -> Result<Dump, Crawled> {
        unimplemented!()
    }
    /// Shows up to about `limit` more items, each under its lock and without counting as an access;
    /// false when there are no more. `each` returns false to stop early.
    pub fn dump_step(
        &self,
        _cx: Cx<'_>,
        _dump: &mut Dump,
        _limit: usize,
        _each: impl FnMut(&Hit<'_>) -> bool,
    ) -> bool {
        unimplemented!()
    }

    pub fn state(&self) -> State {
        unimplemented!()
    }
    /// The class with this number, if it exists (1 to 63).
    pub fn class(&self, _class: u8, _now: u32) -> Option<ClassState> {
        unimplemented!()
    }
    /// Items by size, rounded up to a multiple of 32, if `-o track_sizes` is on.
    pub fn sizes(&self) -> Option<Vec<(u64, u64)>> {
        unimplemented!()
    }
    /// The class of an item with such a key, flags and value; what `cmd_set` counts under.
    pub fn class_of(&self, _key_length: usize, _flags: u32, _length: usize) -> u8 {
        unimplemented!()
    }
}
