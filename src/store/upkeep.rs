#![forbid(unsafe_code)]
//! What background threads do for the store: bounded steps that are told the time.
//!
//! The maintainer settles flushes, grows the table when workers lag, and moves pages to the bins
//! that would get most out of them. The crawler walks pages for what is expired, and skips those
//! whose earliest expiry lies ahead.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::bins::Page;
use super::raw::{Handle, State};
use super::read::Hit;
use super::{Cx, Inner, PAGE, Store};
use crate::settings;

/// Pages of the arena in use at which huge pages begin to pay; below, an idle server stays small.
const HUGE_FROM: usize = 512;
/// How often the maintainer looks.
const MAINTAIN_EVERY: Duration = Duration::from_millis(100);
/// Pairs that the maintainer splits at most in one step.
const SPLITS: usize = 4096;
/// A bin gets a page if it makes this much more of it than the one that loses it.
const WORTH_MOVING: f64 = 4.0;
/// What a bin remembers of its cold hits from one round of the mover to the next.
const DECAY: f64 = 0.97;
/// Seconds between two walks of the crawler, at first and at most.
const CRAWL_EVERY: (u32, u32) = (60, 3600);
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
    pub(super) automove: AtomicU32,
    pub(super) reassigning: AtomicBool,
    pub(super) tuning: Mutex<super::control::LruTuning>,
    pub(super) track_sizes: bool,
}

#[derive(Default)]
pub(super) struct Crawler {
    walk: Option<Walk>,
    /// Items that may still be looked at in this run.
    budget: u64,
    next_run: u32,
    /// What the run has found so far.
    reclaimed: u64,
    interval: u32,
}

#[derive(Default)]
pub(super) struct Mover {
    /// By bin: decayed cold hits, and the counts when it was last looked at.
    bins: Vec<Seen>,
    /// Classes of a `slabs reassign`; the source may be any.
    pub(super) request: Option<(Option<u8>, u8)>,
}

#[derive(Default, Clone, Copy)]
struct Seen {
    worth: f64,
    cold_hits: u64,
    evictions: u64,
}

/// A walk over the items of some classes, page by page.
#[derive(Debug, Clone, Copy)]
pub struct Walk {
    /// A bit for each class.
    pub(super) classes: u64,
    bin: usize,
    page: usize,
    slot: usize,
}

impl Walk {
    pub(super) fn new(classes: u64) -> Walk {
        Walk {
            classes,
            bin: 0,
            page: 0,
            slot: 0,
        }
    }
}

impl Upkeep {
    pub(super) fn new(settings: &settings::Store) -> Upkeep {
        Upkeep {
            crawler: Mutex::new(Crawler {
                interval: CRAWL_EVERY.0,
                ..Crawler::default()
            }),
            crawler_on: AtomicBool::new(settings.lru_crawler),
            crawler_running: AtomicBool::new(false),
            crawler_starts: AtomicU64::new(0),
            crawler_sleep: AtomicU32::new(settings.lru_crawler_sleep),
            crawler_tocrawl: AtomicU32::new(settings.lru_crawler_tocrawl),
            maintained: settings.lru_maintainer,
            juggles: AtomicU64::new(0),
            mover: Mutex::new(Mover::default()),
            automove: AtomicU32::new(if settings.slab_reassign {
                settings.slab_automove
            } else {
                0
            }),
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
        inner.upkeep.juggles.fetch_add(1, Relaxed);
        inner.flush.mark(cx.now);
        inner
            .table
            .grow(&inner.arena, SPLITS, |key| inner.hasher.hash(key));
        let (used, limit) = inner.pool.usage();
        if used >= HUGE_FROM && !inner.huge.swap(true, Relaxed) {
            inner.arena.region().advise_huge();
            inner.table.advise_huge();
        }
        inner.serve_reassign(cx);
        if used > limit + inner.bins.len() {
            inner.shrink(cx, used - limit);
        } else if inner.upkeep.automove.load(Relaxed) > 0 && inner.evicting && used >= limit {
            inner.move_pages(cx);
        }
        MAINTAIN_EVERY
    }

    /// One step of the crawler: at most a page. Returns how long to wait before the next.
    pub fn crawl_step(&self, cx: Cx<'_>) -> Duration {
        let inner = &self.inner;
        let upkeep = &inner.upkeep;
        let mut crawler = lock(&upkeep.crawler);
        if crawler.walk.is_none() {
            let due = cx.now >= crawler.next_run;
            if !(due && upkeep.maintained && upkeep.crawler_on.load(Relaxed)) {
                return Duration::from_millis(200);
            }
            inner.start_crawl(&mut crawler, u64::MAX);
        }
        let Some(mut walk) = crawler.walk else {
            return Duration::from_millis(200);
        };
        let mut seen = 0;
        let more = inner.crawl_page(cx, &mut walk, &mut crawler, &mut seen);
        crawler.budget = crawler.budget.saturating_sub(seen);
        if more && crawler.budget > 0 && upkeep.crawler_on.load(Relaxed) {
            crawler.walk = Some(walk);
            let pause = u64::from(upkeep.crawler_sleep.load(Relaxed));
            return Duration::from_micros(if seen == 0 { 0 } else { pause });
        }
        // A walk that found much comes again soon, one that found nothing takes its time.
        let step = CRAWL_EVERY.0;
        crawler.interval = if crawler.reclaimed * 100 > seen.max(1) {
            crawler.interval.saturating_sub(step).max(step)
        } else {
            (crawler.interval + step).min(CRAWL_EVERY.1)
        };
        crawler.next_run = cx.now + crawler.interval;
        crawler.walk = None;
        upkeep.crawler_running.store(false, Relaxed);
        Duration::from_millis(200)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}

impl Inner {
    fn start_crawl(&self, crawler: &mut Crawler, classes: u64) {
        let most = u64::from(self.upkeep.crawler_tocrawl.load(Relaxed));
        crawler.walk = Some(Walk::new(classes));
        crawler.budget = if most == 0 { u64::MAX } else { most };
        crawler.reclaimed = 0;
        self.upkeep.crawler_running.store(true, Relaxed);
        self.upkeep.crawler_starts.fetch_add(1, Relaxed);
    }

    /// Starts a crawl that somebody asked for. False if one is running.
    pub(super) fn request_crawl(&self, now: u32, classes: u64) -> bool {
        let mut crawler = lock(&self.upkeep.crawler);
        if crawler.walk.is_some() {
            return false;
        }
        self.start_crawl(&mut crawler, classes);
        crawler.next_run = now + CRAWL_REST;
        true
    }

    /// Whether a walk over these classes has to look into a bin.
    fn walks_bin(&self, classes: u64, bin: usize) -> bool {
        bin == self.bins.len() - 1 || classes & 1 << self.class_of_bin(bin as u8) != 0
    }

    /// Moves a walk to the next page it has to look at.
    fn next_page(&self, walk: &mut Walk) -> bool {
        while walk.bin < self.bins.len() {
            if self.walks_bin(walk.classes, walk.bin)
                && walk.page < self.bins[walk.bin].lock().pages.pages().len()
            {
                return true;
            }
            *walk = Walk {
                bin: walk.bin + 1,
                page: 0,
                slot: 0,
                ..*walk
            };
        }
        false
    }

    /// Reaps what is dead on one page. False when the walk is over.
    fn crawl_page(
        &self,
        cx: Cx<'_>,
        walk: &mut Walk,
        crawler: &mut Crawler,
        seen: &mut u64,
    ) -> bool {
        if !self.next_page(walk) {
            return false;
        }
        let mut gone = Vec::new();
        {
            let state = self.bins[walk.bin].lock();
            let Some(&page) = state.pages.pages().get(walk.page) else {
                return true;
            };
            let entry = self.pages.entry(page);
            walk.page += 1;
            if entry.soonest_expiry() > cx.now && self.flush.mark(cx.now) == 0 {
                return true;
            }
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
                if expires > cx.now {
                    soonest = soonest.min(expires);
                }
                if !word.linked() {
                    continue;
                }
                *seen += 1;
                let class = self.class_of_slot(handle);
                let counters = &cx.counters.classes[usize::from(class)];
                counters.crawler_items_checked.add(1);
                if walk.classes & 1 << class != 0 && self.is_dead(cx.now, head) {
                    match self.reap_dead(cx, &state, handle) {
                        Some(slot) => {
                            counters.crawler_reclaimed.add(1);
                            crawler.reclaimed += 1;
                            gone.push(slot);
                        }
                        None => soonest = soonest.min(cx.now),
                    }
                }
            }
            entry.expires_at(soonest);
        }
        for slot in gone {
            self.give(slot);
        }
        true
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
            if !self.next_page(walk) {
                return false;
            }
            let state = self.bins[walk.bin].lock();
            let Some(&page) = state.pages.pages().get(walk.page) else {
                continue;
            };
            let carved = self.pages.entry(page).carved();
            while walk.slot < carved && shown < limit {
                let handle = self.arena.handle(page, walk.slot, state.pages.size());
                walk.slot += 1;
                let Some(key) = state.pages.peek_key(&self.pages, &self.arena, handle) else {
                    continue;
                };
                let hash = self.hasher.hash(key);
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

    fn class_of_slot(&self, handle: Handle) -> u8 {
        let head = self.arena.head(handle);
        let bin = head.word().bin();
        if bin == self.arena.chunk_bin() {
            let total = self.arena.overhead(head.word().key_length(), false, false)
                + head.length.load(Relaxed) as usize;
            self.classes
                .class_of_total(total + super::classes::MEMCACHED_EXTRA)
        } else {
            self.classes.class_of_bin(bin)
        }
    }

    /// Takes the most useful page moves of one round.
    fn move_pages(&self, cx: Cx<'_>) {
        let mut mover = lock(&self.upkeep.mover);
        mover.bins.resize(self.bins.len(), Seen::default());
        let mut evicted = 0;
        let mut rich: Option<(f64, usize)> = None;
        let mut poor: Option<(f64, usize)> = None;
        for (number, bin) in self.bins.iter().enumerate() {
            let (pages, used, size) = {
                let state = bin.lock();
                (
                    state.pages.pages().len(),
                    state.pages.used(),
                    state.pages.size(),
                )
            };
            let seen = &mut mover.bins[number];
            let (cold_hits, evictions) = (bin.cold_hits.load(Relaxed), bin.evictions.load(Relaxed));
            let lost = evictions - seen.evictions;
            seen.worth = seen.worth * DECAY + (cold_hits - seen.cold_hits) as f64;
            (seen.cold_hits, seen.evictions) = (cold_hits, evictions);
            evicted += lost;
            if pages == 0 {
                continue;
            }
            let cold = (used as u64).saturating_sub(bin.warm()).max(1) as f64;
            let worth = (seen.worth + 1.0) * (size as f64).sqrt() / (cold * size as f64);
            // A bin keeps a page, and more while it is rare: a fiftieth of what there is.
            if pages > 1 && rich.is_none_or(|(least, _)| worth < least) {
                rich = Some((worth, number));
            }
            if lost > 0 && poor.is_none_or(|(most, _)| worth > most) {
                poor = Some((worth, number));
            }
        }
        drop(mover);
        let (Some((least, from)), Some((most, to))) = (rich, poor) else {
            return;
        };
        if from == to || most < WORTH_MOVING * least {
            return;
        }
        let (used, _) = self.pool.usage();
        let rounds = (evicted as usize / 64).clamp(1, (used / 256).clamp(1, 16));
        for _ in 0..rounds {
            if !self.move_page(cx, from as u8, to as u8) {
                break;
            }
        }
    }

    fn move_page(&self, cx: Cx<'_>, from: u8, to: u8) -> bool {
        if self.bins[usize::from(from)].lock().pages.pages().len() < 2 {
            return false;
        }
        let Some(page) = self.empty_page(cx, from) else {
            return false;
        };
        self.pool.give(page);
        let mut state = self.bins[usize::from(to)].lock();
        if let Page::Granted(page) = self.pool.take(false) {
            state.pages.add_page(&self.pages, page);
        }
        true
    }

    /// Gives pages back that are over a limit that was lowered, from the bins that have most.
    fn shrink(&self, cx: Cx<'_>, over: usize) {
        for _ in 0..over.min(64) {
            let most = (0..self.bins.len())
                .map(|bin| (self.bins[bin].lock().pages.pages().len(), bin))
                .max();
            match most {
                Some((pages, bin)) if pages > 1 => {
                    let Some(page) = self.empty_page(cx, bin as u8) else {
                        return;
                    };
                    self.pages.discard(&self.arena, page);
                    self.pool.give(page);
                }
                _ => return,
            }
        }
    }

    /// Carries out a `slabs reassign`: one of memcached's pages is 16 of ours.
    fn serve_reassign(&self, cx: Cx<'_>) {
        let Some((from, to)) = lock(&self.upkeep.mover).request.take() else {
            return;
        };
        for _ in 0..(1 << 20) / PAGE {
            let source = self
                .bins_of(from)
                .max_by_key(|&bin| self.bins[bin].lock().pages.pages().len());
            let Some(source) = source else { break };
            if self.bins[source].lock().pages.pages().is_empty() {
                break;
            }
            let Some(page) = self.empty_page(cx, source as u8) else {
                break;
            };
            self.pool.give(page);
            let target = self
                .bins_of(Some(to))
                .max_by_key(|&bin| self.bins[bin].lock().pages.used());
            if let (Some(target), Page::Granted(page)) = (target, self.pool.take(false)) {
                self.bins[target].lock().pages.add_page(&self.pages, page);
            }
        }
        self.upkeep.reassigning.store(false, Relaxed);
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
        self.arena.region().advise_huge();
        self.table.advise_huge();
        self.arena
            .region()
            .populate(bytes)
            .map_err(|error| format!("cannot take {} MiB of memory at once: {error}", bytes >> 20))
    }
}
