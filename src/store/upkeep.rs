#![forbid(unsafe_code)]
//! What background threads do for the store: bounded steps that are told the time.
//!
//! The maintainer settles flushes, grows the table when workers lag, and moves pages to the bins
//! that would get most out of them. The crawler walks pages for what is expired, and skips those
//! whose earliest expiry lies ahead.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::bins::BinState;
use super::mover::Mover;
use super::raw::{Handle, Slot, State};
use super::read::Hit;
use super::{Cx, Inner, Store};
use crate::observe::counters::CLASSES;
use crate::observe::events::{self, Crawled};
use crate::settings;

/// Pages of the arena in use at which huge pages begin to pay; below, an idle server stays small.
const HUGE_FROM: usize = 512;
/// How often the maintainer looks.
const MAINTAIN_EVERY: Duration = Duration::from_millis(100);
/// And while items are being evicted.
const MAINTAIN_BUSY: Duration = Duration::from_millis(10);
/// In every so many steps, bins that have pages to spare give them up.
const RELEASE_EVERY: u64 = 8;
/// Pages whose expiry the maintainer looks at in one step, and those it reaps at most.
const DUE: (u32, usize) = (4096, 16);
/// Pairs that the maintainer splits at most in one step.
const SPLITS: usize = 4096;
/// Seconds after which the crawler looks again whether a run would pay, and after which it runs if it
/// would find anything at all.
const CRAWL_EVERY: (u32, u32) = (60, 3600);
/// A run pays if one in so many pages holds something that is expired.
const CRAWL_PAYS: usize = 100;
/// In seconds: what expires within it is told to watchers.
const HOUR: u32 = 3600;
/// How long it waits for work.
const CRAWL_IDLE: Duration = Duration::from_millis(200);
/// Seconds for which a crawl that was asked for keeps the automatic one away.
const CRAWL_REST: u32 = 60;

/// State of the background work.
pub(super) struct Upkeep {
    pub(super) crawler: Mutex<Crawler>,
    pub(super) crawler_on: AtomicBool,
    pub(super) crawler_running: AtomicBool,
    pub(super) crawler_starts: AtomicU64,
    pub(super) crawler_sleep: AtomicU32,
    pub(super) crawler_tocrawl: AtomicU32,
    /// The maintainer is there to start the crawler by itself.
    maintained: bool,
    pub(super) juggles: AtomicU64,
    pub(super) mover: Mutex<Mover>,
    /// Evictions of each bin when the maintainer last looked.
    evictions: Mutex<Vec<u64>>,
    /// The page whose expiry it looks at next.
    due: AtomicU32,
    pub(super) automove: AtomicU32,
    /// Whether pages may move at all.
    reassign: bool,
    pub(super) reassigning: AtomicBool,
    pub(super) tuning: Mutex<super::control::LruTuning>,
    pub(super) track_sizes: bool,
}

#[derive(Default)]
pub(super) struct Crawler {
    walk: Option<Walk>,
    /// Items that may still be looked at in this run.
    budget: u64,
    /// When to look again whether a run would pay.
    next_look: u32,
    began: u32,
    last_run: u32,
    /// What this run has found, by class.
    found: Vec<Crawled>,
    /// The mark of the last flush that a run began behind.
    flushed: u32,
}

/// A walk over the items of some classes, page by page in the order of memory: whatever becomes of
/// pages meanwhile, none is passed over.
#[derive(Debug, Clone, Copy)]
pub struct Walk {
    /// A bit for each class.
    pub(super) classes: u64,
    page: u32,
    slot: usize,
}

impl Walk {
    pub(super) fn new(classes: u64) -> Walk {
        Walk {
            classes,
            page: 1,
            slot: 0,
        }
    }
}

impl Upkeep {
    pub(super) fn new(settings: &settings::Store) -> Upkeep {
        Upkeep {
            crawler: Mutex::default(),
            crawler_on: AtomicBool::new(settings.lru_crawler),
            crawler_running: AtomicBool::new(false),
            crawler_starts: AtomicU64::new(0),
            crawler_sleep: AtomicU32::new(settings.lru_crawler_sleep),
            crawler_tocrawl: AtomicU32::new(settings.lru_crawler_tocrawl),
            maintained: settings.lru_maintainer,
            juggles: AtomicU64::new(0),
            mover: Mutex::default(),
            evictions: Mutex::default(),
            due: AtomicU32::new(0),
            automove: AtomicU32::new(settings.slab_automove),
            reassign: settings.slab_reassign,
            reassigning: AtomicBool::new(false),
            tuning: Mutex::new(super::control::LruTuning::new(settings)),
            track_sizes: settings.track_sizes,
        }
    }
}

impl Store {
    /// One step of the maintainer. Returns how long to wait before the next.
    pub fn maintain(&self, cx: Cx<'_>) -> Duration {
        let inner = &self.inner;
        let juggles = inner.upkeep.juggles.fetch_add(1, Relaxed);
        inner.flush.mark(cx.now);
        inner.note_now(cx.now);
        inner
            .table
            .grow(&inner.arena, SPLITS, |key| inner.hasher.hash(key));
        let (used, limit) = inner.pool.usage();
        if used >= HUGE_FROM && !inner.huge.swap(true, Relaxed) {
            inner.arena.region().advise_huge();
            inner.table.advise_huge();
        }
        inner.serve_reassign(cx);
        if !inner.fixed {
            inner.shrink(cx);
        }
        let automove = inner.upkeep.automove.load(Relaxed);
        if automove > 0 && inner.upkeep.reassign {
            if juggles.is_multiple_of(RELEASE_EVERY) {
                inner.release_pages(cx);
            }
            if inner.evicting && used >= limit {
                inner.move_pages(cx, automove > 1);
            }
        }
        if inner.upkeep.maintained {
            inner.reap_due(cx);
        }
        if inner.refill_bins(cx) {
            MAINTAIN_BUSY
        } else {
            MAINTAIN_EVERY
        }
    }

    /// One step of the crawler: at most a page. Returns how long to wait before the next.
    pub fn crawl_step(&self, cx: Cx<'_>) -> Duration {
        let inner = &self.inner;
        let upkeep = &inner.upkeep;
        let mut crawler = lock(&upkeep.crawler);
        if crawler.walk.is_none() {
            let may = upkeep.maintained && upkeep.crawler_on.load(Relaxed);
            if !(may && inner.crawl_is_due(&mut crawler, cx.now)) {
                return CRAWL_IDLE;
            }
            inner.start_crawl(&mut crawler, cx.now, u64::MAX);
        }
        let Some(mut walk) = crawler.walk else {
            return CRAWL_IDLE;
        };
        let mut seen = 0;
        let more = inner.crawl_page(cx, &mut walk, &mut crawler.found, &mut seen);
        crawler.budget = crawler.budget.saturating_sub(seen);
        if more && crawler.budget > 0 && upkeep.crawler_on.load(Relaxed) {
            crawler.walk = Some(walk);
            let pause = u64::from(upkeep.crawler_sleep.load(Relaxed));
            return Duration::from_micros(if seen == 0 { 0 } else { pause });
        }
        crawler.last_run = cx.now;
        crawler.next_look = crawler.next_look.max(cx.now + CRAWL_EVERY.0);
        crawler.walk = None;
        if cx.counters.log.wants(events::SYSTEM) {
            let (elapsed, next) = (cx.now - crawler.began, crawler.next_look - cx.now);
            for (class, found) in crawler.found.iter().enumerate() {
                if found.examined > 0 {
                    cx.counters.log.crawler(class, found, elapsed, next);
                }
            }
        }
        upkeep.crawler_running.store(false, Relaxed);
        CRAWL_IDLE
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}

/// Where the kernel says whether it gives huge pages.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

fn huge_pages_are_off() -> bool {
    std::fs::read_to_string(HUGE_PAGES).is_ok_and(|modes| modes.contains("[never]"))
}

impl Inner {
    fn start_crawl(&self, crawler: &mut Crawler, now: u32, classes: u64) {
        let most = u64::from(self.upkeep.crawler_tocrawl.load(Relaxed));
        crawler.walk = Some(Walk::new(classes));
        crawler.began = now;
        crawler.found = vec![Crawled::default(); CLASSES];
        crawler.budget = if most == 0 { u64::MAX } else { most };
        self.upkeep.crawler_running.store(true, Relaxed);
        self.upkeep.crawler_starts.fetch_add(1, Relaxed);
    }

    /// Starts a crawl that somebody asked for. False if one is running.
    pub(super) fn request_crawl(&self, now: u32, classes: u64) -> bool {
        let mut crawler = lock(&self.upkeep.crawler);
        if crawler.walk.is_some() {
            return false;
        }
        self.start_crawl(&mut crawler, now, classes);
        crawler.next_look = now + CRAWL_REST;
        true
    }

    /// Whether a walk over these classes has to look into a bin.
    fn walks_bin(&self, classes: u64, bin: usize) -> bool {
        bin == self.bins.len() - 1 || classes & 1 << self.class_of_bin(bin as u8) != 0
    }

    /// Moves a walk to the next page it has to look at, if it is not at one; says whose that is.
    fn next_page(&self, walk: &mut Walk) -> Option<u8> {
        let end = self.pool.fresh();
        while walk.page < end {
            let bin = self.pages.entry(walk.page).bin();
            match bin {
                Some(bin) if self.walks_bin(walk.classes, usize::from(bin)) => return Some(bin),
                _ => {
                    walk.page += 1;
                    walk.slot = 0;
                }
            }
        }
        None
    }

    /// Whether a run would pay: what is expired says the earliest expiry of each page, and a flush
    /// leaves nothing that would not have to go.
    fn crawl_is_due(&self, crawler: &mut Crawler, now: u32) -> bool {
        let mark = self.flush.mark(now);
        if mark != crawler.flushed {
            crawler.flushed = mark;
            return true;
        }
        if now < crawler.next_look {
            return false;
        }
        crawler.next_look = now + CRAWL_EVERY.0;
        let (mut all, mut due) = (0, 0);
        for page in 1..self.pool.fresh() {
            let entry = self.pages.entry(page);
            if entry.bin().is_some() {
                all += 1;
                due += usize::from(entry.soonest_expiry() <= now);
            }
        }
        due * CRAWL_PAYS > all || due > 0 && now >= crawler.last_run + CRAWL_EVERY.1
    }

    /// Reaps what is dead on one page. False when the walk is over.
    fn crawl_page(
        &self,
        cx: Cx<'_>,
        walk: &mut Walk,
        found: &mut [Crawled],
        seen: &mut u64,
    ) -> bool {
        let Some(bin) = self.next_page(walk) else {
            return false;
        };
        let page = walk.page;
        let mut gone = Vec::new();
        {
            let state = self.bins[usize::from(bin)].lock();
            if self.pages.entry(page).bin() != Some(bin) {
                // It has just moved, and is looked at again.
                return true;
            }
            walk.page += 1;
            walk.slot = 0;
            if self.pages.entry(page).soonest_expiry() > cx.now && self.flush.mark(cx.now) == 0 {
                return true;
            }
            self.reap_page(cx, &state, page, walk.classes, |class, expires, slot| {
                *seen += 1;
                let found = &mut found[usize::from(class)];
                found.examined += 1;
                if slot.is_none() && expires != 0 {
                    found.expiring += 1;
                    found.soon += u64::from(expires.saturating_sub(cx.now) <= HOUR);
                }
                let counters = &cx.counters.classes[usize::from(class)];
                counters.crawler_items_checked.add(1);
                if let Some(slot) = slot {
                    found.reclaimed += 1;
                    counters.crawler_reclaimed.add(1);
                    gone.push(slot);
                }
            });
        }
        for slot in gone {
            self.give(slot);
        }
        true
    }

    /// Reaps what is expired on pages that are due, a few pages in one call: so memory comes back
    /// within a second or so while there is little of it, and the crawler is for the rest.
    fn reap_due(&self, cx: Cx<'_>) {
        let end = self.pool.fresh();
        let mut page = self.upkeep.due.load(Relaxed);
        let mut reaped = 0;
        for _ in 0..DUE.0.min(end) {
            page = if page + 1 < end { page + 1 } else { 1 };
            let entry = self.pages.entry(page);
            if page >= end || entry.soonest_expiry() > cx.now {
                continue;
            }
            let Some(bin) = entry.bin() else { continue };
            let mut gone = Vec::new();
            {
                let state = self.bins[usize::from(bin)].lock();
                // It may have moved meanwhile.
                if entry.bin() == Some(bin) {
                    self.reap_page(cx, &state, page, u64::MAX, |_, _, slot| gone.extend(slot));
                }
            }
            for slot in gone {
                self.give(slot);
            }
            reaped += 1;
            if reaped == DUE.1 {
                break;
            }
        }
        self.upkeep.due.store(page, Relaxed);
    }

    /// Reaps what is dead on a page, of some classes, and notes when the next will be. `each` is told
    /// every item's class and expiry, and its slot if it went.
    fn reap_page<'s>(
        &'s self,
        cx: Cx<'_>,
        state: &BinState,
        page: u32,
        classes: u64,
        mut each: impl FnMut(u8, u32, Option<Slot<'s>>),
    ) {
        let entry = self.pages.entry(page);
        // Reset first: what is noted from here on, by those who store meanwhile, is kept.
        entry.set_soonest_expiry(u32::MAX);
        let mut soonest = u32::MAX;
        for slot in 0..entry.carved() {
            let handle = self.arena.handle(page, slot, state.pages.size());
            let head = self.arena.head(handle);
            let word = head.word();
            if !(word.linked() || word.state() == State::Busy) {
                continue;
            }
            let expires = head.expires.load(Relaxed);
            if !word.linked() {
                // It may be linked in a moment, or be on its way out.
                if expires != 0 {
                    soonest = soonest.min(expires.max(cx.now + 1));
                }
                continue;
            }
            let class = self.class_of_slot(handle);
            let wanted = classes & 1 << class != 0;
            let slot = if wanted && self.is_dead(cx.now, head) && !self.hides() {
                self.reap_dead(cx, state, handle)
            } else {
                None
            };
            if slot.is_none() && expires != 0 {
                // What could not be reaped now has another turn in a second.
                soonest = soonest.min(expires.max(cx.now + u32::from(wanted)));
            }
            each(class, expires, slot);
        }
        entry.expires_at(soonest);
    }

    /// Evicts ahead in the bins that have evicted since the last time; whether there were any.
    fn refill_bins(&self, cx: Cx<'_>) -> bool {
        let mut seen = lock(&self.upkeep.evictions);
        seen.resize(self.bins.len(), 0);
        let (used, limit) = self.pool.usage();
        let mut any = false;
        for (bin, seen) in seen.iter_mut().enumerate() {
            let evictions = &self.bins[bin].evictions;
            if *seen != evictions.load(Relaxed) {
                any = true;
                if self.evicting && used >= limit {
                    self.refill(cx, bin as u8);
                }
                *seen = evictions.load(Relaxed);
            }
        }
        any
    }

    /// Shows the living items of a walk, about `limit` of them. False when it is over.
    pub(super) fn walk_items(
        self: &std::sync::Arc<Self>,
        cx: Cx<'_>,
        walk: &mut Walk,
        limit: usize,
        mut each: impl FnMut(&Hit<'_>) -> bool,
    ) -> bool {
        let mut shown = 0;
        while shown < limit {
            let Some(bin) = self.next_page(walk) else {
                return false;
            };
            let page = walk.page;
            let state = self.bins[usize::from(bin)].lock();
            if self.pages.entry(page).bin() != Some(bin) {
                continue;
            }
            let carved = self.pages.entry(page).carved();
            while walk.slot < carved && shown < limit {
                let handle = self.arena.handle(page, walk.slot, state.pages.size());
                walk.slot += 1;
                let Some(hash) = self.peek_hash(&state, handle) else {
                    continue;
                };
                // Whoever has the pair is quick; but a bin's mutex is held here, so it is only tried.
                let Some(guard) = (0..1000).find_map(|_| self.table.try_lock(&self.arena, hash))
                else {
                    continue;
                };
                let Some(place) = guard.find_handle(hash, handle) else {
                    continue;
                };
                let item = guard.item(&place);
                if self.is_dead(cx.now, item.head())
                    || walk.classes & 1 << self.class_of(&item) == 0
                {
                    continue;
                }
                shown += 1;
                if !each(&Hit::shown(self, item)) {
                    return true;
                }
            }
            if walk.slot >= carved {
                walk.page += 1;
                walk.slot = 0;
            }
        }
        true
    }

    pub(super) fn class_of_slot(&self, handle: Handle) -> u8 {
        let head = self.arena.head(handle);
        let bin = head.word().bin();
        if bin == self.arena.chunk_bin() {
            let total = self.arena.total(handle);
            self.classes.class_of_total(total + self.classes.extra())
        } else {
            self.classes.class_of_bin(bin)
        }
    }

    /// The bins whose items count under a class; all of them for none.
    pub(super) fn bins_of(&self, class: Option<u8>) -> impl Iterator<Item = usize> + '_ {
        let last = self.bins.len() - 1;
        (0..self.bins.len()).filter(move |&bin| match class {
            None => true,
            Some(0) => false,
            Some(class) => {
                if bin == last {
                    self.is_chained(class)
                } else {
                    usize::from(class) == self.class_of_bin(bin as u8)
                }
            }
        })
    }

    /// A class none of whose items fits a slot.
    pub(super) fn is_chained(&self, class: u8) -> bool {
        (0..self.classes.bin_count()).all(|bin| self.classes.class_of_bin(bin as u8) != class)
    }

    /// Takes all item memory now, in huge pages where the kernel gives them.
    pub(super) fn preallocate(&self, bytes: usize) -> Result<(), String> {
        self.huge.store(true, Relaxed);
        let agreed = self.arena.region().advise_huge();
        self.table.advise_huge();
        if !agreed || huge_pages_are_off() {
            log::warn!(
                "-L: the kernel gives no huge pages here (see {HUGE_PAGES}: it must say madvise or \
                 always); using ordinary ones"
            );
        }
        self.arena.region().populate(bytes).map_err(|error| {
            format!(
                "-L: the system cannot give {} MiB at once: {error}; a smaller -m may do",
                bytes >> 20
            )
        })
    }
}
