//! Items in memory: what every command means, for one key at a time.
//!
//! ```text
//! key ── hash ──► table: pair of buckets ──► handle ──► slot in a page of a bin
//! ```
//!
//! * `raw` is the memory: arena, slots, buckets, and all unsafe code.
//! * `classes` maps sizes to memcached's slab classes and to our bins.
//! * `bins` says which slot is free and which item goes next.
//! * `alloc` gets a slot, `mover` moves pages, `read`, `write`, `chain` and `edit` do what requests ask, `upkeep` is what
//!   background threads call, `control` what administrators ask for.
//!
//! # Locks
//! A bin's mutex, then a pair's bit, and that only by trying. A worker holds one pair bit and
//! nothing else: memory is taken before, and given back after. Only the splitter of a pair holds
//! two. The chunk bin's mutex comes after those of the other bins. `pool` and the table's spare buckets
//! are leaves.
//!
//! # Time
//! Every operation is told the time ([`Cx::now`]). What a `flush_all` has killed is told by the
//! time of an item's last access; so that an item stored in the second of the flush lives, accesses
//! after it are stamped one second ahead (`Inner::stamp`).

mod alloc;
mod bins;
mod chain;
mod classes;
// Limits, tuning, pages, the crawler, dumps, numbers.
pub mod control;
// What those who keep copies need: mutations told to the log, records applied, walks.
pub mod copies;
mod edit;
// Recent mutations in order, for those who keep copies.
pub mod journal;
// Segment trees of values.
pub mod merkle;
mod mover;
mod raw;
mod read;
mod record;
mod recover;
// Leaving memory behind and finding it again.
pub mod restart;
mod upkeep;
mod verify;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::hash::Hasher;
use crate::observe::ThreadCounters;
use crate::observe::counters::CLASSES;
use crate::settings;

use bins::{Bin, Census, Pool};
use classes::Classes;
use copies::Why;
use raw::{Arena, Handle, Head, Item, PAGE, PageTable, PairGuard, Place, Source, Table};
use restart::Age;

pub use raw::Spot;
pub use read::{Hit, Pin};
pub use write::Upload;

/// What an operation needs to know of the thread that calls it.
#[derive(Debug, Clone, Copy)]
pub struct Cx<'a> {
    /// Seconds on the server's clock.
    pub now: u32,
    pub counters: &'a ThreadCounters,
}

/// Values up to this many bytes are shown as one slice under the lock; longer ones are pinned.
pub const COPY_MAX: usize = 4096;

/// The longest value that is looked at as a number.
pub const COUNT_MAX: usize = 8192;

/// All items. Shared by reference between threads.
pub struct Store {
    inner: Arc<Inner>,
}

/// Why there is nothing to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    NotFound,
    Expired,
    Flushed,
    /// `Fetch::vivify` found no memory.
    NoMemory,
}

/// The queue an item was in when it was hit, as `stats items` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    Hot,
    Warm,
    Cold,
    Temp,
}

/// How to fetch; expiry times are on the server's clock (`Clock::expiry`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Fetch {
    pub touch: Option<u32>,
    pub vivify: Option<u32>,
    /// Win if the item expires before this.
    pub recache: Option<u32>,
    /// `recache` is compared with the expiry before `touch` changes it.
    pub recache_first: bool,
    pub new_cas: Option<u64>,
    /// Do not count as an access (`u`, `me`).
    pub quiet: bool,
    /// Stale items and tokens matter (meta); classic reads leave them alone.
    pub leases: bool,
    /// Mark a vivified item's key as base64.
    pub binary_key: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Set,
    Add,
    Replace,
    Append,
    Prepend,
}

/// What to store, all but the value.
#[derive(Debug, Clone, Copy)]
pub struct Put<'a> {
    pub key: &'a [u8],
    pub hash: u64,
    pub mode: Mode,
    pub flags: u32,
    /// On the server's clock.
    pub expires: u32,
    pub cas: Option<u64>,
    pub new_cas: Option<u64>,
    pub invalidate: bool,
    pub vivify: Option<u32>,
    pub binary_key: bool,
}

impl<'a> Put<'a> {
    /// Without flags, expiry or conditions.
    pub fn new(mode: Mode, key: &'a [u8], hash: u64) -> Put<'a> {
        Put {
            key,
            hash,
            mode,
            flags: 0,
            expires: 0,
            cas: None,
            new_cas: None,
            invalidate: false,
            vivify: None,
            binary_key: false,
        }
    }
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// With its new CAS (0 with `-C`), slab class and length of the value now held.
    Stored {
        cas: u64,
        class: u8,
        length: usize,
    },
    NotStored,
    Exists,
    NotFound,
    TooLarge,
    NoMemory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    TooLarge,
    NoMemory,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Delete {
    pub cas: Option<u64>,
    pub new_cas: Option<u64>,
    pub stale: bool,
    pub drop_value: bool,
    pub touch: Option<u32>,
    pub flags: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// Gone (or made stale), and what it was: slab class and bytes of its value.
    Deleted {
        class: u8,
        length: usize,
    },
    NotFound,
    Exists,
    /// There is none for the tombstone.
    NoMemory,
}

#[derive(Debug, Clone, Copy)]
pub struct Arith {
    pub up: bool,
    pub delta: u64,
    pub cas: Option<u64>,
    pub new_cas: Option<u64>,
    pub touch: Option<u32>,
    /// Create with this value and expiry on a miss.
    pub create: Option<(u64, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    Number {
        value: u64,
        cas: u64,
        /// Before this request changed it.
        expires: u32,
        class: u8,
        created: bool,
    },
    NotFound,
    NonNumeric,
    Exists,
    NotStored,
    NoMemory,
}

/// What all threads share.
struct Inner {
    arena: Arena,
    pages: PageTable,
    table: Table,
    bins: Vec<Bin>,
    /// What the items of chunks are, by class.
    chained: Box<[Census; CLASSES]>,
    pool: Pool,
    classes: Classes,
    /// Slab class by bin; [`CHAINED`] for the bin of chunks.
    bin_classes: Box<[u8; 256]>,
    hasher: Hasher,
    item_size_max: usize,
    max_bytes: AtomicU64,
    /// See [`settings::Store::taken`].
    taken: u64,
    /// What items may have of a limit that they share with all else; `u64::MAX` without one.
    budget: AtomicU64,
    /// The limit cannot change: all item memory was taken at start (`-L`), or lies in a file.
    fixed: bool,
    /// What `hash_power_level` shows at least.
    hash_power: u32,
    /// Items may be given up for new ones (no `-M`).
    evicting: bool,
    /// New items are put to the test (`lru mode segmented`).
    segmented: AtomicBool,
    /// Where hit counters end: 3, or 1 in flat mode.
    counter_max: AtomicU32,
    /// TTLs up to this make an item temporary; 0 is off.
    temporary_ttl: AtomicU32,
    cas: AtomicU64,
    flush: Flush,
    /// Seconds since last access of the last item evicted, by class.
    evicted_age: [AtomicU32; CLASSES],
    moves: mover::Moves,
    huge: AtomicBool,
    upkeep: upkeep::Upkeep,
    verify: verify::Verify,
    /// The memory file, if there is one.
    files: Option<restart::Files>,
    /// There is one if copies are kept, or if this is one.
    journal: Option<Arc<journal::Journal>>,
}

/// Which items are dead whatever their expiry.
///
/// An item is dead if it was last accessed up to the mark. Accesses behind a flush must lie behind
/// its mark, even in the same second: from then on they are stamped with [`floor`](Flush::floor), one
/// second ahead of the clock if need be.
struct Flush {
    /// High half: the mark. Low half: when the next flush is due, [`NO_FLUSH`] for none.
    marks: AtomicU64,
    /// The earliest stamp that an access gets.
    floor: AtomicU32,
    /// Who is told of flushes that come due.
    journal: Option<Arc<journal::Journal>>,
}

const NO_FLUSH: u32 = u32::MAX;

/// What a second is to the items.
#[derive(Clone, Copy)]
struct Moment {
    /// On the server's clock.
    now: u32,
    /// Items last accessed up to here are dead.
    mark: u32,
    /// What an access is stamped with.
    stamp: u32,
}

impl Moment {
    /// Whether it kills an item with these times.
    #[inline]
    fn kills(&self, expires: u32, accessed: u32) -> bool {
        expires != 0 && expires <= self.now || accessed <= self.mark
    }
}

impl Flush {
    fn new(journal: Option<Arc<journal::Journal>>) -> Flush {
        Flush {
            marks: AtomicU64::new(u64::from(NO_FLUSH)),
            floor: AtomicU32::new(0),
            journal,
        }
    }

    /// The mark, on the server's clock; 0 before the first flush.
    #[inline]
    fn mark(&self, now: u32) -> u32 {
        let marks = self.marks.load(Relaxed);
        if now >= marks as u32 {
            self.settle(now);
            return (self.marks.load(Relaxed) >> 32) as u32;
        }
        (marks >> 32) as u32
    }

    #[inline]
    fn moment(&self, now: u32) -> Moment {
        let mark = self.mark(now);
        let stamp = now.max(self.floor.load(Relaxed));
        Moment { now, mark, stamp }
    }

    fn set(&self, now: u32, at: u32) {
        self.settle(now);
        self.set_settled(now, at);
    }

    /// As [`set`](Flush::set), when one that had come due has been settled.
    fn set_settled(&self, now: u32, at: u32) {
        let mark = (self.marks.load(Relaxed) >> 32) as u32;
        if at <= now {
            let mark = now.max(self.floor.load(Relaxed));
            self.floor.fetch_max(mark + 1, Relaxed);
            self.marks
                .store(u64::from(mark) << 32 | u64::from(NO_FLUSH), Relaxed);
        } else {
            self.marks
                .store(u64::from(mark) << 32 | u64::from(at), Relaxed);
        }
    }

    /// Makes a flush that has come due part of the past, so that a later one cannot undo it. What was
    /// stamped so far is dead; stamps from here on lie behind the mark.
    #[cold]
    fn settle(&self, now: u32) {
        let marks = self.marks.load(Relaxed);
        let (passed, due) = ((marks >> 32) as u32, marks as u32);
        if now < due {
            return;
        }
        let settle = || {
            let mark = (due - 1).max(self.floor.load(Relaxed)).max(passed);
            self.floor.fetch_max(mark + 1, Relaxed);
            let settled = u64::from(mark) << 32 | u64::from(NO_FLUSH);
            // Err means that another thread has done the same.
            self.marks
                .compare_exchange(marks, settled, Relaxed, Relaxed)
                .is_ok()
        };
        match &self.journal {
            Some(journal) if !journal.is_follower() => copies::log_flush(journal, 0, settle),
            _ => {
                settle();
            }
        }
    }
}

impl Inner {
    /// A store without items for these settings, or one that is about to take over those in its
    /// memory.
    fn build(settings: &settings::Store, source: &mut Source) -> Result<Inner, String> {
        let hasher = match settings.hash_algorithm {
            Some(algorithm) => Hasher::named(algorithm),
            None => Hasher::keyed()
                .map_err(|error| format!("no random numbers for the hash seed: {error}"))?,
        };
        let classes = Classes::new(settings);
        let mut sizes: Vec<usize> = (0..classes.bin_count())
            .map(|bin| classes.bin_size(bin as u8))
            .collect();
        sizes.push(CHUNK);
        let limit = settings.max_bytes as usize;
        // Every bin may take one page beyond the limit, and one value of the largest size must fit.
        let slack = (sizes.len() + 16) * PAGE;
        let least = limit + slack;
        // In a file the limit stays as it is.
        let most = match source {
            Source::Anonymous => least.max(LIMIT_RESERVE),
            Source::File(_) => least,
        };
        let arena = Arena::reserve(
            source,
            least,
            most,
            settings.cas,
            settings.crash_restart,
            &sizes,
        )
        .map_err(|error| error.to_string())?;
        let pages = PageTable::reserve(source, arena.pages()).map_err(|error| error.to_string())?;
        let power = if settings.hash_power == 0 {
            16
        } else {
            settings.hash_power
        };
        let level = power.saturating_sub(4).max(4);
        let items = arena.region().bytes() / sizes[0].max(32);
        let table = Table::reserve(source, level, items, settings.hash_expand)
            .map_err(|error| error.to_string())?;
        let bins = (0..arena.bins())
            .map(|bin| Bin::new(bin as u8, &arena))
            .collect();
        let pool = Pool::new(&arena, limit / PAGE);
        let mut bin_classes = Box::new([CHAINED; 256]);
        for bin in 0..classes.bin_count() as u8 {
            bin_classes[usize::from(bin)] = classes.class_of_bin(bin);
        }
        let journal = settings.journal.map(|journal| {
            let role = if journal.follower {
                journal::Role::Follower
            } else {
                journal::Role::Leader
            };
            Arc::new(journal::Journal::new(journal.ring_bytes, role))
        });
        let inner = Inner {
            pages,
            table,
            bins,
            chained: Box::new(std::array::from_fn(|_| Census::default())),
            pool,
            classes,
            bin_classes,
            hasher,
            item_size_max: settings.item_size_max,
            max_bytes: AtomicU64::new(settings.max_bytes),
            taken: settings.taken,
            budget: AtomicU64::new(u64::MAX),
            fixed: settings.large_pages || matches!(source, Source::File(_)),
            hash_power: power,
            evicting: settings.evict,
            segmented: AtomicBool::new(settings.lru_maintainer),
            counter_max: AtomicU32::new(read::counter_max(settings.lru_maintainer)),
            temporary_ttl: AtomicU32::new(control::above(settings.temporary_ttl)),
            // memcached's first item gets 2.
            cas: AtomicU64::new(1),
            flush: Flush::new(journal.clone()),
            evicted_age: std::array::from_fn(|_| AtomicU32::new(0)),
            moves: mover::Moves::default(),
            huge: AtomicBool::new(false),
            upkeep: upkeep::Upkeep::new(settings),
            verify: verify::Verify::new(settings),
            files: None,
            journal,
            arena,
        };
        if inner.taken > 0 {
            inner.set_page_limit();
        }
        if settings.large_pages {
            inner.preallocate(limit)?;
        }
        Ok(inner)
    }

    /// The time that an access now is stamped with.
    #[inline]
    fn stamp(&self, now: u32) -> u32 {
        self.flush.moment(now).stamp
    }

    #[inline]
    fn is_dead(&self, now: u32, head: &Head) -> bool {
        let (expires, accessed) = (head.expires.load(Relaxed), head.accessed.load(Relaxed));
        self.flush.moment(now).kills(expires, accessed)
    }

    fn class_of_bin(&self, bin: u8) -> usize {
        match self.bin_classes[usize::from(bin)] {
            CHAINED => usize::from(self.classes.largest()),
            class => usize::from(class),
        }
    }

    /// The slab class that memcached would have put an item in.
    #[inline]
    fn class_of(&self, item: &Item<'_>) -> u8 {
        class_of(&self.classes, &self.bin_classes, item)
    }

    /// The next CAS id; taken by every attempt to store, as memcached does.
    #[inline]
    fn next_cas(&self, given: Option<u64>) -> u64 {
        match given {
            Some(cas) => cas,
            None => self.cas.fetch_add(1, Relaxed) + 1,
        }
    }

    fn count_in(&self, cx: Cx<'_>, item: &Item<'_>) {
        let counters = &cx.counters.classes[usize::from(self.class_of(item))];
        counters.items.add(1);
        counters
            .bytes
            .add((item.total() + self.classes.extra()) as u64);
        cx.counters.general.total_items.add(1);
    }

    fn count_out(&self, cx: Cx<'_>, item: &Item<'_>) {
        let counters = &cx.counters.classes[usize::from(self.class_of(item))];
        counters.items.sub(1);
        counters
            .bytes
            .sub((item.total() + self.classes.extra()) as u64);
    }

    /// Changes when a linked item expires.
    fn set_expiry(&self, handle: Handle, expires: u32) {
        self.arena.set_expires(handle, expires);
        self.note_expiry(handle, expires);
    }

    /// Tells an item's page when it expires, so that the crawler knows where to look.
    fn note_expiry(&self, handle: Handle, expires: u32) {
        if expires != 0 {
            self.pages
                .entry(self.arena.page_of(handle))
                .expires_at(expires);
        }
    }

    /// The living item of a key, under its pair's lock. A dead one is taken out on the way.
    fn find<'s>(
        &'s self,
        cx: Cx<'_>,
        key: &[u8],
        hash: u64,
    ) -> (PairGuard<'s>, Result<Place<'s>, Miss>) {
        self.look_up(cx, key, hash, false)
    }

    /// As [`find`](Inner::find), for those who store: a dead item is memory reclaimed for the new one.
    fn find_to_store<'s>(
        &'s self,
        cx: Cx<'_>,
        key: &[u8],
        hash: u64,
    ) -> (PairGuard<'s>, Result<Place<'s>, Miss>) {
        self.look_up(cx, key, hash, true)
    }

    #[inline(always)]
    fn look_up<'s>(
        &'s self,
        cx: Cx<'_>,
        key: &[u8],
        hash: u64,
        storing: bool,
    ) -> (PairGuard<'s>, Result<Place<'s>, Miss>) {
        let mut miss = Miss::NotFound;
        loop {
            let guard = self.table.lock(&self.arena, hash);
            match guard.find(hash, key) {
                None => return (guard, Err(miss)),
                Some(place) if self.is_dead(cx.now, guard.item(&place).head()) => {
                    if !storing && self.hides() {
                        return (guard, Err(self.why_dead(cx, &place)));
                    }
                    // This gives the lock back, so somebody may store the key meanwhile: look again.
                    miss = self.bury(cx, guard, place, hash, storing);
                }
                Some(place) => return (guard, Ok(place)),
            }
        }
    }

    /// Takes out an item that is expired or flushed.
    #[cold]
    fn bury(
        &self,
        cx: Cx<'_>,
        guard: PairGuard<'_>,
        place: Place<'_>,
        hash: u64,
        storing: bool,
    ) -> Miss {
        let miss = self.why_dead(cx, &place);
        if storing {
            let item = guard.item(&place);
            cx.counters.classes[usize::from(self.class_of(&item))]
                .reclaimed
                .add(1);
        } else if self.hides() {
            return miss;
        }
        self.unlink(cx, guard, place, hash);
        miss
    }

    /// What killed an item; counted.
    fn why_dead(&self, cx: Cx<'_>, place: &Place<'_>) -> Miss {
        let accessed = self.arena.head(place.handle()).accessed.load(Relaxed);
        let general = &cx.counters.general;
        if accessed <= self.flush.mark(cx.now) {
            general.get_flushed.add(1);
            Miss::Flushed
        } else {
            general.get_expired.add(1);
            Miss::Expired
        }
    }

    /// Takes an item out for good.
    fn unlink<'s>(&'s self, cx: Cx<'_>, mut guard: PairGuard<'s>, place: Place<'s>, hash: u64) {
        let item = guard.item(&place);
        if self.journal.is_some() {
            let why = match self.is_dead(cx.now, item.head()) {
                true => Why::Dead,
                false => Why::Asked,
            };
            self.log_gone(&item, why);
        }
        self.count_out(cx, &item);
        self.leave_census(&item);
        let slot = guard.remove(place, hash, None);
        drop(guard);
        if let Some(slot) = slot {
            self.give(slot);
        }
    }

    /// Where an item is counted by its kind.
    fn census_of(&self, handle: Handle) -> &Census {
        let bin = self.arena.head(handle).word().bin();
        if bin == self.arena.chunk_bin() {
            &self.chained[usize::from(self.class_of_slot(handle))]
        } else {
            &self.bins[usize::from(bin)].census
        }
    }

    fn enter_census(&self, item: &Item<'_>) {
        let word = item.word();
        self.census_of(item.handle())
            .enter(word.state(), word.counter());
    }

    fn leave_census(&self, item: &Item<'_>) {
        let word = item.word();
        self.census_of(item.handle())
            .leave(word.state(), word.counter());
    }

    /// Items of a bin.
    fn items_in(&self, bin: u8) -> u64 {
        if bin == self.arena.chunk_bin() {
            self.chained.iter().map(Census::linked).sum()
        } else {
            self.bins[usize::from(bin)].census.linked()
        }
    }

    /// Of these, MAIN ones that were not hit lately.
    fn cold_in(&self, bin: u8) -> u64 {
        if bin == self.arena.chunk_bin() {
            self.chained.iter().map(Census::cold).sum()
        } else {
            self.bins[usize::from(bin)].census.cold()
        }
    }
}

impl Store {
    /// A store for these settings, in memory of its own. Fails if the system refuses the address space.
    pub fn new(settings: &settings::Store) -> Result<Store, String> {
        let inner = Inner::build(settings, &mut Source::Anonymous)?;
        Ok(Store {
            inner: Arc::new(inner),
        })
    }

    /// As [`new`](Store::new), in the memory file if the settings name one: with the items that a server
    /// before has left there, which are counted in `counters`, and the clock they are stamped by.
    ///
    /// # Errors
    /// Also if the file cannot be used, or there is a record beside it that is none.
    pub fn open(
        settings: &settings::Store,
        counters: &ThreadCounters,
    ) -> Result<(Store, Option<Age>), String> {
        let Some(path) = &settings.memory_file else {
            return Ok((Store::new(settings)?, None));
        };
        let (inner, age) = Inner::in_file(settings, path, counters)?;
        let inner = Arc::new(inner);
        Ok((Store { inner }, age))
    }

    /// The hash of a key; every operation wants it, so that a batch can prefetch.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.inner.hasher.hash(key)
    }

    /// First pass of a batch: asks for the bucket's cache line.
    #[inline]
    pub fn prefetch(&self, hash: u64) -> Spot<'_> {
        let spot = self.inner.table.spot(hash);
        spot.prefetch(hash);
        spot
    }

    /// Second pass: asks for the lines of the items whose tag matches.
    #[inline]
    pub fn prefetch_items<'s>(&'s self, spot: &mut Spot<'s>, hash: u64) {
        spot.prefetch_items(hash, &self.inner.arena);
    }

    /// The longest value that fits beside a key of this length.
    pub fn value_max(&self, key_length: usize, flags: u32) -> usize {
        let overhead =
            self.inner.arena.overhead(key_length, flags != 0) + self.inner.classes.extra();
        self.inner.item_size_max.saturating_sub(overhead)
    }

    /// `flush_all`: everything last accessed before `at` is dead once `at` has come; with `at` up to
    /// `now`, everything that is there is dead from here on.
    pub fn flush_all(&self, now: u32, at: u32) {
        let inner = &self.inner;
        match &inner.journal {
            None => inner.flush.set(now, at),
            Some(journal) => inner.flush_and_log(journal, now, at),
        }
        inner.note_now(now);
    }
}

/// See [`Inner::class_of`].
#[inline]
fn class_of(classes: &Classes, bin_classes: &[u8; 256], item: &Item<'_>) -> u8 {
    match bin_classes[usize::from(item.word().bin())] {
        CHAINED => class_of_chained(classes, item.total()),
        class => class,
    }
}

#[cold]
fn class_of_chained(classes: &Classes, total: usize) -> u8 {
    classes.class_of_total(total + classes.extra())
}

/// Stands for the class of items whose class only their size tells.
const CHAINED: u8 = 0;

/// Slot size of the bin that large values are chained of.
const CHUNK: usize = 16 << 10;
/// Address space to reserve, so that the limit can be raised while the server runs: just below the 32
/// GiB from which on slots would have to be aligned to 16 bytes.
const LIMIT_RESERVE: usize = (32 << 30) - (4 << 20);

#[cfg(test)]
mod tests;
