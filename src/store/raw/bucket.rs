//! The table: pairs of buckets, each pair behind one spin bit.
//!
//! A key has a pair (by linear hashing), a home bucket in it, and a tag. Its entry stands in the
//! home bucket, or, when that is full, in the other one, or in an extension bucket that hangs off
//! the pair. An entry whose live bit is clear but whose tag is not 0 is a ghost: it remembers a key
//! that was evicted not long ago.

use std::mem::ManuallyDrop;
use std::sync::atomic::{
    AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard};

use super::item::overwrite;
use super::salvage::Intact;
use super::{Arena, Handle, Item, KEY_SHORT, Region, ReserveError, Slot, Source, State};

/// Entries of a bucket.
const ENTRIES: usize = 12;
/// Items per pair, in quarters, at which the table grows: 72 % of its 24 entries.
const QUARTERS_PER_PAIR: usize = 69;
/// The last entry of a bucket, which holds the number of the next one when `CHAINED` is set.
const LINK: usize = ENTRIES - 1;

const LOCKED: u32 = 1;
/// The bucket's last entry is a link to an extension bucket.
const CHAINED: u32 = 1 << 1;
/// An entry whose home this is may stand in the other bucket of the pair.
const SPILLED: u32 = 1 << 2;
const LIVE_SHIFT: u32 = 4;
const LIVE_MASK: u32 = 0xfff << LIVE_SHIFT;

#[repr(C, align(64))]
struct Bucket {
    /// Tags 0 to 7.
    tags_low: AtomicU64,
    /// Tags 8 to 11.
    tags_high: AtomicU32,
    /// Lock (the even bucket's serves the pair), flags, map of live entries.
    control: AtomicU32,
    handles: [AtomicU32; ENTRIES],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    fn control(&self) -> u32 {
        self.control.load(Relaxed)
    }

    fn live(&self) -> u32 {
        (self.control() & LIVE_MASK) >> LIVE_SHIFT
    }

    fn set_live(&self, entry: usize, live: bool) {
        let bit = 1 << (LIVE_SHIFT + entry as u32);
        let control = self.control();
        self.control
            .store(if live { control | bit } else { control & !bit }, Relaxed);
    }

    fn set_flag(&self, flag: u32) {
        self.control.store(self.control() | flag, Relaxed);
    }

    /// Entries that may hold items.
    fn usable(&self) -> u32 {
        if self.control() & CHAINED != 0 {
            (1 << LINK) - 1
        } else {
            (1 << ENTRIES) - 1
        }
    }

    /// The entries with this tag, live or ghosts.
    #[inline]
    fn matches(&self, tag: u8) -> u32 {
        let low = self.tags_low.load(Relaxed);
        let high = u64::from(self.tags_high.load(Relaxed));
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{
                _mm_cmpeq_epi8, _mm_movemask_epi8, _mm_set_epi64x, _mm_set1_epi8,
            };
            // SAFETY: SSE2 is part of every x86-64.
            let equal = unsafe {
                let tags = _mm_set_epi64x(high as i64, low as i64);
                _mm_movemask_epi8(_mm_cmpeq_epi8(tags, _mm_set1_epi8(tag as i8)))
            };
            equal as u32 & 0xfff
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let (low, high) = (low.to_le_bytes(), high.to_le_bytes());
            let tags = low.iter().chain(&high[..ENTRIES - 8]);
            tags.enumerate()
                .fold(0, |map, (at, &other)| map | u32::from(other == tag) << at)
        }
    }

    fn tag(&self, entry: usize) -> u8 {
        if entry < 8 {
            (self.tags_low.load(Relaxed) >> (entry * 8)) as u8
        } else {
            (self.tags_high.load(Relaxed) >> ((entry - 8) * 8)) as u8
        }
    }

    fn set_tag(&self, entry: usize, tag: u8) {
        if entry < 8 {
            let shift = entry * 8;
            let tags = self.tags_low.load(Relaxed) & !(0xff << shift);
            self.tags_low.store(tags | u64::from(tag) << shift, Relaxed);
        } else {
            let shift = (entry - 8) * 8;
            let tags = self.tags_high.load(Relaxed) & !(0xff << shift);
            self.tags_high
                .store(tags | u32::from(tag) << shift, Relaxed);
        }
    }

    fn handle(&self, entry: usize) -> u32 {
        self.handles[entry].load(Relaxed)
    }

    fn clear(&self) {
        self.tags_low.store(0, Relaxed);
        self.tags_high.store(0, Relaxed);
        self.control.store(self.control() & LOCKED, Relaxed);
    }
}

/// What a ghost remembers of an evicted item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ghost {
    /// It was evicted from the HOT ring, not by the hand.
    pub hot: bool,
}

impl Ghost {
    const HOT: u32 = 1 << 15;

    fn encode(self, hash: u64, age: u32) -> u32 {
        u32::from(fingerprint(hash)) << 16 | if self.hot { Ghost::HOT } else { 0 } | age & 0x7fff
    }
}

/// The tag of a hash: 1 to 255, for 0 is an empty entry.
#[inline]
fn tag_of(hash: u64) -> u8 {
    let tag = (hash >> 56) as u8;
    if tag == 0 { 1 } else { tag }
}

/// The bits of a hash that a ghost keeps beside its tag.
fn fingerprint(hash: u64) -> u16 {
    (hash >> 40) as u16
}

/// Which bucket of its pair is a key's home.
#[inline]
fn home_of(hash: u64) -> usize {
    (hash >> 39) as usize & 1
}

/// The hash table of all items.
pub struct Table {
    pairs: Region,
    extensions: Region,
    /// High half: the mask of a hash's bits that the next round of splits decides on, all pairs of
    /// which will exist when it is over. Low half: the pairs that exist.
    geometry: AtomicU64,
    items: AtomicUsize,
    /// Items at which the next pair is split.
    threshold: AtomicUsize,
    /// Held by whoever splits.
    splitting: Mutex<()>,
    /// A leaf: whoever holds it waits for nothing, so that a store with a pair in hand may wait for it.
    spare: Mutex<Spare>,
    expand: bool,
}

/// What a process knows of a table beside its buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableState {
    pub pairs: u64,
    pub items: u64,
    /// Extension buckets that were ever used, and the unused one 0.
    pub extensions: u32,
    /// Those of them that are free again.
    pub free: Vec<u32>,
}

/// Extension buckets that nobody uses.
struct Spare {
    /// Those that were used once and are free again.
    free: Vec<u32>,
    /// The first one never used. 0 is no bucket.
    fresh: u32,
}

impl Table {
    /// A table that starts with `2^level` pairs and has address space for `items`.
    pub fn reserve(
        source: &mut Source,
        level: u32,
        items: usize,
        expand: bool,
    ) -> Result<Table, ReserveError> {
        let pairs = (items * 4 / QUARTERS_PER_PAIR).max(1 << level) + 1;
        let pairs = pairs.next_power_of_two();
        let bytes = pairs * 2 * size_of::<Bucket>();
        let least = (2 * size_of::<Bucket>()) << (level + 1);
        // A table that must not grow has nearly all its items in extensions.
        let extensions = if expand { bytes / 4 } else { bytes };
        Ok(Table {
            pairs: source.region(least, bytes.max(least))?,
            extensions: source.region(1 << 20, extensions.max(1 << 20))?,
            geometry: AtomicU64::new(pack(1 << level)),
            items: AtomicUsize::new(0),
            threshold: AtomicUsize::new(if expand {
                (1 << level) * QUARTERS_PER_PAIR / 4
            } else {
                usize::MAX
            }),
            splitting: Mutex::new(()),
            spare: Mutex::new(Spare {
                free: Vec::new(),
                fresh: 1,
            }),
            expand,
        })
    }

    /// What is not in its memory, for when nobody uses it.
    pub fn state(&self) -> TableState {
        let spare = self.spare();
        TableState {
            pairs: self.pairs() as u64,
            items: self.items.load(Relaxed) as u64,
            extensions: spare.fresh,
            free: spare.free.clone(),
        }
    }

    /// Goes on with what an earlier process has left in its memory. False if that cannot be.
    pub fn resume(&mut self, state: &TableState) -> bool {
        let bucket = size_of::<Bucket>();
        let pairs = state.pairs as usize;
        let fits = (1..=self.pairs.bytes() / (2 * bucket)).contains(&pairs)
            && (1..=self.extensions.bytes() / bucket).contains(&(state.extensions as usize))
            && state.free.iter().all(|&free| free < state.extensions);
        if fits {
            self.geometry.store(pack(pairs), Relaxed);
            self.items.store(state.items as usize, Relaxed);
            if self.expand {
                self.threshold.store(pairs * QUARTERS_PER_PAIR / 4, Relaxed);
            }
            let mut spare = self.spare();
            spare.fresh = state.extensions;
            spare.free.clone_from(&state.free);
        }
        fits
    }

    /// A checksum over all buckets in use, for when nobody changes them.
    pub fn digest(&self) -> u64 {
        let extensions = self.spare().fresh as usize * size_of::<Bucket>();
        self.pairs.digest(self.bytes()) ^ self.extensions.digest(extensions).rotate_left(1)
    }

    fn spare(&self) -> MutexGuard<'_, Spare> {
        self.spare
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }

    /// Items in it.
    pub fn items(&self) -> usize {
        self.items.load(Relaxed)
    }

    /// Pairs for so many items, and no fewer than there are.
    pub fn pairs_for(&self, items: usize) -> usize {
        let most = self.pairs.bytes() / (2 * size_of::<Bucket>());
        (items * 4 / QUARTERS_PER_PAIR + 1).clamp(self.pairs(), most)
    }

    /// Pairs in use.
    pub fn pairs(&self) -> usize {
        pairs_in(self.geometry.load(Relaxed))
    }

    /// Bytes of buckets in use.
    pub fn bytes(&self) -> usize {
        self.pairs() * 2 * size_of::<Bucket>()
    }

    pub fn advise_huge(&self) {
        self.pairs.advise_huge();
    }

    #[inline]
    fn pair_of(&self, hash: u64) -> usize {
        pair_in(self.geometry.load(Acquire), hash)
    }

    #[inline]
    fn pair(&self, pair: usize) -> &[Bucket; 2] {
        debug_assert!((pair + 1) * 2 * size_of::<Bucket>() <= self.pairs.bytes());
        // SAFETY: `pair` is below the number of pairs in use, which never exceeds the region; the
        // region is aligned, zeroed at first (a valid bucket), and only ever used as buckets, all of
        // whose fields are atomics.
        unsafe { &*self.pairs.base().as_ptr().cast::<[Bucket; 2]>().add(pair) }
    }

    fn extension(&self, number: u32) -> &Bucket {
        debug_assert!((number as usize + 1) * size_of::<Bucket>() <= self.extensions.bytes());
        // SAFETY: as in `pair`; numbers are handed out by `take_extension` only.
        unsafe {
            &*self
                .extensions
                .base()
                .as_ptr()
                .cast::<Bucket>()
                .add(number as usize)
        }
    }

    /// Where a look-up of `hash` will begin, as things are now.
    #[inline]
    pub fn spot(&self, hash: u64) -> Spot<'_> {
        let geometry = self.geometry.load(Acquire);
        Spot {
            geometry,
            buckets: self.pair(pair_in(geometry, hash)),
            entry: ENTRIES as u32,
        }
    }

    /// Locks the pair of a hash; waits for it.
    #[inline]
    pub fn lock<'t>(&'t self, arena: &'t Arena, hash: u64) -> PairGuard<'t> {
        self.lock_at(&self.spot(hash), arena, hash)
    }

    /// As [`lock`](Table::lock), when it is known where the pair was.
    #[inline]
    pub fn lock_at<'t>(&'t self, spot: &Spot<'t>, arena: &'t Arena, hash: u64) -> PairGuard<'t> {
        let mut buckets = spot.buckets;
        acquire(&buckets[0].control);
        if self.geometry.load(Acquire) != spot.geometry {
            buckets = self.lock_again(buckets, hash);
        }
        PairGuard {
            table: self,
            arena,
            buckets,
        }
    }

    /// The table has grown: the pair that is locked may no longer be the one of this hash.
    #[cold]
    #[inline(never)]
    fn lock_again<'t>(&'t self, locked: &'t [Bucket; 2], hash: u64) -> &'t [Bucket; 2] {
        let mut buckets = locked;
        loop {
            let now = self.pair(self.pair_of(hash));
            if std::ptr::eq(now, buckets) {
                return buckets;
            }
            release(&buckets[0].control);
            buckets = now;
            acquire(&buckets[0].control);
        }
    }

    /// Locks one of the pairs in use: for walks.
    pub fn lock_pair<'t>(&'t self, arena: &'t Arena, pair: usize) -> PairGuard<'t> {
        let buckets = self.pair(pair.min(self.pairs() - 1));
        acquire(&buckets[0].control);
        PairGuard {
            table: self,
            arena,
            buckets,
        }
    }

    /// Locks the pair of a hash if nobody has it: for those who hold a bin's mutex.
    pub fn try_lock<'t>(&'t self, arena: &'t Arena, hash: u64) -> Option<PairGuard<'t>> {
        let pair = self.pair_of(hash);
        let buckets = self.pair(pair);
        if !try_acquire(&buckets[0].control) {
            return None;
        }
        let guard = PairGuard {
            table: self,
            arena,
            buckets,
        };
        (self.pair_of(hash) == pair).then_some(guard)
    }

    /// Splits pairs while there are more items than fit comfortably, at most `most` of them; for
    /// whoever has just linked an item, and holds no lock.
    #[inline]
    pub fn grow(&self, arena: &Arena, most: usize, rehash: impl Fn(&[u8]) -> u64) {
        if self.items.load(Relaxed) > self.threshold.load(Relaxed) {
            self.split(arena, most, rehash);
        }
    }

    #[cold]
    fn split(&self, arena: &Arena, most: usize, rehash: impl Fn(&[u8]) -> u64) {
        for _ in 0..most {
            let Ok(_splitting) = self.splitting.try_lock() else {
                return;
            };
            if self.items.load(Relaxed) <= self.threshold.load(Relaxed) {
                return;
            }
            let upper = self.pairs();
            if (upper + 1) * 2 * size_of::<Bucket>() > self.pairs.bytes() {
                self.threshold.store(usize::MAX, Relaxed);
                return;
            }
            self.split_pair(arena, upper, &rehash);
        }
    }

    /// Moves what belongs there to the new pair `upper`, from the one that had it so far.
    fn split_pair(&self, arena: &Arena, upper: usize, rehash: &impl Fn(&[u8]) -> u64) {
        let level = upper.ilog2();
        let lower = upper - (1 << level);
        let old = PairGuard {
            table: self,
            arena,
            buckets: self.pair(lower),
        };
        acquire(&old.buckets[0].control);
        let new = PairGuard {
            table: self,
            arena,
            buckets: self.pair(upper),
        };
        acquire(&new.buckets[0].control);

        let mut entries: [(u64, u32); 64] = [(0, 0); 64];
        let mut more = Vec::new();
        let mut count = 0;
        let mut ghosts: [(u8, u32); 2 * ENTRIES] = [(0, 0); 2 * ENTRIES];
        let mut ghost_count = 0;
        old.each_bucket(|bucket, in_pair| {
            let usable = bucket.usable();
            for entry in (0..ENTRIES).filter(|entry| usable & 1 << entry != 0) {
                let (tag, raw) = (bucket.tag(entry), bucket.handle(entry));
                if bucket.live() & 1 << entry == 0 {
                    if tag != 0 && in_pair {
                        ghosts[ghost_count] = (tag, raw);
                        ghost_count += 1;
                    }
                    continue;
                }
                let Some(handle) = Handle::from_raw(raw) else {
                    continue;
                };
                // SAFETY: the entry is live and its pair is locked.
                let hash = unsafe { arena.item(handle) }.hash(rehash);
                if count < entries.len() {
                    entries[count] = (hash, raw);
                    count += 1;
                } else {
                    more.push((hash, raw));
                }
            }
        });
        // In hand until all entries are placed again: they may need as many as they give back.
        let mut spare = self.spare();
        old.release_extensions(&mut spare);
        for bucket in old.buckets {
            bucket.clear();
        }
        for &(hash, raw) in entries[..count].iter().chain(&more) {
            let side = if hash as usize & 1 << level != 0 {
                &new
            } else {
                &old
            };
            side.place(hash, raw, Some(&mut spare));
        }
        drop(spare);
        // Which side a ghost belongs to is not known; it stays, and half of them can be found.
        for &(tag, raw) in &ghosts[..ghost_count] {
            for bucket in old.buckets {
                let room = bucket.usable() & !bucket.live() & bucket.matches(0);
                if room != 0 {
                    let entry = room.trailing_zeros() as usize;
                    bucket.set_tag(entry, tag);
                    bucket.handles[entry].store(raw, Relaxed);
                    break;
                }
            }
        }
        self.geometry.store(pack(upper + 1), Release);
        if self.expand {
            self.threshold
                .store((upper + 1) * QUARTERS_PER_PAIR / 4, Relaxed);
        }
    }

    fn take_extension(&self, spare: &mut Spare) -> Option<u32> {
        if let Some(number) = spare.free.pop() {
            return Some(number);
        }
        let number = spare.fresh;
        if (number as usize + 1) * size_of::<Bucket>() > self.extensions.bytes() {
            return None;
        }
        spare.fresh += 1;
        Some(number)
    }
}

/// The geometry of a table of so many pairs.
fn pack(pairs: usize) -> u64 {
    let mask = (pairs + 1).next_power_of_two() as u64 - 1;
    mask << 32 | pairs as u64
}

#[inline]
fn pairs_in(geometry: u64) -> usize {
    geometry as u32 as usize
}

/// Linear hashing: what the longer mask leads to, if that pair exists already.
#[inline]
fn pair_in(geometry: u64, hash: u64) -> usize {
    let mask = geometry >> 32;
    let pair = hash & mask;
    let pair = if pair as u32 >= geometry as u32 {
        pair & mask >> 1
    } else {
        pair
    };
    pair as usize
}

#[inline]
fn try_acquire(control: &AtomicU32) -> bool {
    let seen = control.load(Relaxed);
    seen & LOCKED == 0
        && control
            .compare_exchange(seen, seen | LOCKED, Acquire, Relaxed)
            .is_ok()
}

#[inline]
fn acquire(control: &AtomicU32) {
    if !try_acquire(control) {
        wait(control);
    }
}

/// The holder copies at most 4 KiB, so spinning a little is nearly always enough; if it was
/// preempted, its core is the better place for it to run than ours is to spin.
#[cold]
fn wait(control: &AtomicU32) {
    let mut tries = 0u32;
    while !try_acquire(control) {
        tries += 1;
        match tries {
            0..64 => std::hint::spin_loop(),
            64..256 => std::thread::yield_now(),
            _ => std::thread::sleep(std::time::Duration::from_micros(50)),
        }
    }
}

/// Only the holder changes a control word, so giving the lock back is a store.
#[inline]
fn release(control: &AtomicU32) {
    control.store(control.load(Relaxed) & !LOCKED, Release);
}

/// Where a look-up begins, found without a lock: a hint.
#[derive(Clone, Copy)]
pub struct Spot<'t> {
    geometry: u64,
    buckets: &'t [Bucket; 2],
    /// An entry of the home bucket that looked like the key's; [`ENTRIES`] for none.
    entry: u32,
}

impl Spot<'_> {
    /// Asks for the cache line of the home bucket.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let bucket = &self.buckets[home_of(hash)];
            // SAFETY: a prefetch reads nothing that the program can see.
            unsafe { _mm_prefetch(std::ptr::from_ref(bucket).cast(), _MM_HINT_T0) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = hash;
    }

    /// Asks for the cache lines of the items that the look-up will compare.
    #[inline]
    pub fn prefetch_items(&mut self, hash: u64, arena: &Arena) {
        let bucket = &self.buckets[home_of(hash)];
        let mut found = bucket.matches(tag_of(hash)) & bucket.live();
        self.entry = found.trailing_zeros();
        while found != 0 {
            arena.prefetch(bucket.handle(found.trailing_zeros() as usize));
            found &= found - 1;
        }
    }
}

/// Where an entry stands, for the guard that found it.
#[derive(Clone, Copy)]
pub struct Place<'t> {
    bucket: &'t Bucket,
    entry: usize,
}

impl Place<'_> {
    pub fn handle(&self) -> Handle {
        Handle::from_raw(self.bucket.handle(self.entry)).expect("a live entry has a handle")
    }
}

/// A locked pair: the only way to the items whose keys belong to it.
pub struct PairGuard<'t> {
    table: &'t Table,
    arena: &'t Arena,
    buckets: &'t [Bucket; 2],
}

impl Drop for PairGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        release(&self.buckets[0].control);
    }
}

impl<'t> PairGuard<'t> {
    pub(super) fn arena(&self) -> &'t Arena {
        self.arena
    }

    /// The entry of a key, and its item; looks at the entry that the spot names first.
    #[inline(always)]
    pub fn find_at(&self, spot: &Spot<'t>, hash: u64, key: &[u8]) -> Option<(Place<'t>, Item<'_>)> {
        let entry = spot.entry as usize;
        let bucket = &self.buckets[home_of(hash)];
        // The other entries with this tag are other keys', if this one is the key's.
        if entry < ENTRIES && bucket.control() & 1 << (LIVE_SHIFT + spot.entry) != 0 {
            let place = Place { bucket, entry };
            let item = self.item(&place);
            if item.is_key(key) {
                return Some((place, item));
            }
        }
        let place = PairGuard::search(self.table, self.arena, self.buckets, hash, key)?;
        Some((place, self.item(&place)))
    }

    /// As [`find`](PairGuard::find); its parts are handed over in registers, so that nobody who only
    /// tries [`find_at`](PairGuard::find_at) has to lay out a guard in memory.
    #[inline(never)]
    fn search(
        table: &'t Table,
        arena: &'t Arena,
        buckets: &'t [Bucket; 2],
        hash: u64,
        key: &[u8],
    ) -> Option<Place<'t>> {
        let guard = ManuallyDrop::new(PairGuard {
            table,
            arena,
            buckets,
        });
        guard.find(hash, key)
    }

    /// The entry of a key.
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<Place<'t>> {
        if key.len() > KEY_SHORT {
            return self.find_long(hash, key);
        }
        self.find_with(hash, |item| item.is_key(key))
    }

    #[cold]
    #[inline(never)]
    fn find_long(&self, hash: u64, key: &[u8]) -> Option<Place<'t>> {
        self.find_with(hash, |item| item.is_long_key(hash, key))
    }

    #[inline(always)]
    fn find_with(&self, hash: u64, is_key: impl Fn(&Item<'_>) -> bool) -> Option<Place<'t>> {
        let tag = tag_of(hash);
        let home = &self.buckets[home_of(hash)];
        let found = self.find_in(home, tag, &is_key);
        if found.is_some() || home.control() & SPILLED == 0 {
            return found;
        }
        self.find_spilled(hash, |this, bucket| this.find_in(bucket, tag, &is_key))
    }

    #[inline]
    fn find_in(
        &self,
        bucket: &'t Bucket,
        tag: u8,
        is_key: impl Fn(&Item<'_>) -> bool,
    ) -> Option<Place<'t>> {
        let mut found = bucket.matches(tag) & bucket.live();
        while found != 0 {
            let place = Place {
                bucket,
                entry: found.trailing_zeros() as usize,
            };
            if is_key(&self.item(&place)) {
                return Some(place);
            }
            found &= found - 1;
        }
        None
    }

    /// The entry of a slot.
    pub fn find_handle(&self, hash: u64, handle: Handle) -> Option<Place<'t>> {
        let tag = tag_of(hash);
        let look = |bucket: &'t Bucket| {
            let mut found = bucket.matches(tag) & bucket.live();
            while found != 0 {
                let place = Place {
                    bucket,
                    entry: found.trailing_zeros() as usize,
                };
                if place.handle() == handle {
                    return Some(place);
                }
                found &= found - 1;
            }
            None
        };
        look(&self.buckets[home_of(hash)])
            .or_else(|| self.find_spilled(hash, |_, bucket| look(bucket)))
    }

    /// Looks beyond the home bucket.
    #[cold]
    fn find_spilled(
        &self,
        hash: u64,
        look: impl Fn(&Self, &'t Bucket) -> Option<Place<'t>>,
    ) -> Option<Place<'t>> {
        let other = &self.buckets[1 - home_of(hash)];
        if let Some(place) = look(self, other) {
            return Some(place);
        }
        let mut bucket = &self.buckets[1];
        while bucket.control() & CHAINED != 0 {
            bucket = self.table.extension(bucket.handle(LINK));
            if let Some(place) = look(self, bucket) {
                return Some(place);
            }
        }
        None
    }

    /// The item of an entry.
    #[inline]
    pub fn item(&self, place: &Place<'t>) -> Item<'_> {
        // SAFETY: the entry is live and its pair is locked as long as `self` lives; whoever changes
        // the item through this guard borrows it mutably.
        unsafe { self.arena.item(place.handle()) }
    }

    /// As [`item`](PairGuard::item).
    pub fn item_of(&self, place: &Place<'_>) -> Item<'_> {
        // SAFETY: as in `item`.
        unsafe { self.arena.item(place.handle()) }
    }

    /// Changes the value of an item where it stands. See [`overwrite`] for what must fit. In line, for it
    /// nearly always gets one part.
    #[inline(always)]
    pub fn overwrite(
        &mut self,
        place: &Place<'t>,
        slot: usize,
        client_flags: u32,
        keep: usize,
        parts: &[&[u8]],
    ) {
        let item = self.item(place);
        let word = item.word();
        // An extension, or a long key, is none of those whose value changes where it stands.
        assert!(!word.has(super::flag::LARGE));
        let room = slot - self.arena.overhead(word.key_length(), client_flags != 0);
        let length = keep + parts.iter().map(|part| part.len()).sum::<usize>();
        assert!(length <= room && item.unpinned() && keep <= item.length());
        assert!(keep == 0 || (client_flags != 0) == word.has(super::flag::CLIENT));
        // SAFETY: the entry is live, its pair is locked and borrowed mutably, so no view of the
        // item is alive; it has no pins and cannot get one without the lock; the new bytes fit.
        unsafe { overwrite(self.arena, place.handle(), client_flags, keep, parts) }
    }

    /// The ghost of a key, which is laid to rest by this.
    pub fn take_ghost(&mut self, hash: u64) -> Option<Ghost> {
        let bucket = &self.buckets[home_of(hash)];
        let mut found = bucket.matches(tag_of(hash)) & !bucket.live() & bucket.usable();
        while found != 0 {
            let entry = found.trailing_zeros() as usize;
            let raw = bucket.handle(entry);
            if (raw >> 16) as u16 == fingerprint(hash) {
                bucket.set_tag(entry, 0);
                return Some(Ghost {
                    hot: raw & Ghost::HOT != 0,
                });
            }
            found &= found - 1;
        }
        None
    }

    /// Links a new item; its slot comes back if nothing is left to extend its pair with.
    pub fn insert(
        &mut self,
        hash: u64,
        slot: Slot<'t>,
        state: State,
        counter: u32,
    ) -> Result<(), Slot<'t>> {
        if !self.place(hash, slot.handle().raw(), None) {
            return Err(slot);
        }
        self.arena.head(slot.handle()).place(state, counter);
        self.table.items.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Links an item that an earlier process has left. False if nothing is left to extend
    /// its pair with.
    pub fn adopt(&mut self, hash: u64, found: &Intact<'_>) -> bool {
        let placed = self.place(hash, found.item().handle().raw(), None);
        if placed {
            self.table.items.fetch_add(1, Relaxed);
        }
        placed
    }

    /// Lets an entry lead to another item of its key, one that an earlier process has left.
    pub fn adopt_instead(&mut self, place: &Place<'t>, found: &Intact<'_>) {
        place.bucket.handles[place.entry].store(found.item().handle().raw(), Relaxed);
    }

    /// Takes out an entry whose item is given up.
    pub fn forget(&mut self, place: Place<'t>) {
        place.bucket.set_live(place.entry, false);
        place.bucket.set_tag(place.entry, 0);
        self.table.items.fetch_sub(1, Relaxed);
    }

    fn place(&self, hash: u64, raw: u32, spare: Option<&mut Spare>) -> bool {
        let home = &self.buckets[home_of(hash)];
        if put_entry(home, tag_of(hash), raw) {
            return true;
        }
        home.set_flag(SPILLED);
        if put_entry(&self.buckets[1 - home_of(hash)], tag_of(hash), raw) {
            return true;
        }
        self.place_extended(hash, raw, spare)
    }

    #[cold]
    fn place_extended(&self, hash: u64, raw: u32, spare: Option<&mut Spare>) -> bool {
        let mut bucket = &self.buckets[1];
        while bucket.control() & CHAINED != 0 {
            bucket = self.table.extension(bucket.handle(LINK));
            if put_entry(bucket, tag_of(hash), raw) {
                return true;
            }
        }
        let number = match spare {
            Some(spare) => self.table.take_extension(spare),
            None => self.table.take_extension(&mut self.table.spare()),
        };
        let Some(number) = number else { return false };
        let extension = self.table.extension(number);
        extension.clear();
        // The last entry makes room for the link, and moves.
        if bucket.live() & 1 << LINK != 0 {
            put_entry(extension, bucket.tag(LINK), bucket.handle(LINK));
        }
        bucket.set_live(LINK, false);
        bucket.set_tag(LINK, 0);
        bucket.handles[LINK].store(number, Relaxed);
        bucket.set_flag(CHAINED);
        // What moved may have had its home here.
        for bucket in self.buckets {
            bucket.set_flag(SPILLED);
        }
        put_entry(extension, tag_of(hash), raw)
    }

    /// Links a new item in the place of an old one of the same key. Returns the old one's slot,
    /// unless it is pinned.
    pub fn replace(
        &mut self,
        place: &Place<'t>,
        slot: Slot<'t>,
        state: State,
        counter: u32,
    ) -> Option<Slot<'t>> {
        let old = place.handle();
        self.arena.head(slot.handle()).place(state, counter);
        place.bucket.handles[place.entry].store(slot.handle().raw(), Relaxed);
        // SAFETY: the item was linked, and its only entry now leads elsewhere.
        unsafe { self.arena.unlink(old) }
    }

    /// Moves an item to another slot of its bin. Returns the slot that it leaves, or the other one if
    /// the item is pinned.
    pub fn relocate(
        &mut self,
        place: &Place<'t>,
        mut slot: Slot<'t>,
        state: State,
    ) -> Result<Slot<'t>, Slot<'t>> {
        let item = self.item(place);
        if !item.unpinned() {
            return Err(slot);
        }
        slot.take_over(&item);
        let counter = item.word().counter();
        let left = self.replace(place, slot, state, counter);
        Ok(left.expect("an item without pins gives its slot back"))
    }

    /// Moves a chunk of an item to another slot of its bin. Returns the slot that it leaves, or the
    /// other one if the item is pinned or the chunk is not its.
    pub fn relocate_chunk(
        &mut self,
        place: &Place<'t>,
        chunk: Handle,
        mut slot: Slot<'t>,
    ) -> Result<Slot<'t>, Slot<'t>> {
        let item = self.item(place);
        if !item.unpinned() || !item.word().has(super::flag::LARGE) {
            return Err(slot);
        }
        let bin = slot.bin();
        slot.take_over_chunk(chunk);
        if !self.arena.relink_chunk(item.handle(), chunk, slot.handle()) {
            return Err(slot);
        }
        // The copy belongs to the item now, as the chunk did before.
        // SAFETY: the chunk was part of an item that is locked and has no pins, and hangs nowhere now.
        Ok(unsafe { self.arena.slot(chunk, bin) })
    }

    /// Takes an entry out, leaving a ghost if one is wanted; `age` is any clock that moves on.
    /// Returns the item's slot, unless somebody has it pinned: then it comes back with the last pin.
    pub fn remove(
        &mut self,
        place: Place<'t>,
        hash: u64,
        ghost: Option<(Ghost, u32)>,
    ) -> Option<Slot<'t>> {
        let handle = place.handle();
        place.bucket.set_live(place.entry, false);
        match ghost {
            Some((ghost, age)) => {
                place.bucket.handles[place.entry].store(ghost.encode(hash, age), Relaxed)
            }
            None => place.bucket.set_tag(place.entry, 0),
        }
        self.table.items.fetch_sub(1, Relaxed);
        // SAFETY: the item was linked, and its only entry is gone.
        unsafe { self.arena.unlink(handle) }
    }

    /// Shows every item of the pair.
    pub fn each<'g>(&'g self, mut visit: impl FnMut(Item<'g>)) {
        self.each_bucket(|bucket, _| {
            let live = bucket.live() & bucket.usable();
            for entry in (0..ENTRIES).filter(|entry| live & 1 << entry != 0) {
                if let Some(handle) = Handle::from_raw(bucket.handle(entry)) {
                    // SAFETY: the entry is live, and its pair is locked as long as the view lives.
                    visit(unsafe { self.arena.item(handle) });
                }
            }
        });
    }

    fn each_bucket(&self, mut visit: impl FnMut(&Bucket, bool)) {
        visit(&self.buckets[0], true);
        let mut bucket = &self.buckets[1];
        visit(bucket, true);
        while bucket.control() & CHAINED != 0 {
            bucket = self.table.extension(bucket.handle(LINK));
            visit(bucket, false);
        }
    }

    fn release_extensions(&self, spare: &mut Spare) {
        let mut bucket = &self.buckets[1];
        while bucket.control() & CHAINED != 0 {
            let number = bucket.handle(LINK);
            spare.free.push(number);
            bucket = self.table.extension(number);
        }
    }
}

/// Takes an entry that nobody lives in: an empty one, or else the oldest ghost's.
fn put_entry(bucket: &Bucket, tag: u8, raw: u32) -> bool {
    let room = bucket.usable() & !bucket.live();
    if room == 0 {
        return false;
    }
    let empty = room & bucket.matches(0);
    let entry = if empty != 0 {
        empty.trailing_zeros() as usize
    } else {
        oldest_ghost(bucket, room)
    };
    bucket.set_tag(entry, tag);
    bucket.handles[entry].store(raw, Relaxed);
    bucket.set_live(entry, true);
    true
}

/// Ages are 15 bits of a clock that wraps; the oldest is the one furthest behind the newest.
fn oldest_ghost(bucket: &Bucket, ghosts: u32) -> usize {
    let ages = || {
        (0..ENTRIES)
            .filter(|entry| ghosts & 1 << entry != 0)
            .map(|entry| (entry, bucket.handle(entry) & 0x7fff))
    };
    let newest = ages().map(|(_, age)| age).reduce(|a, b| {
        if a.wrapping_sub(b) & 0x4000 == 0 {
            a
        } else {
            b
        }
    });
    let newest = newest.unwrap_or(0);
    ages()
        .max_by_key(|&(_, age)| newest.wrapping_sub(age) & 0x7fff)
        .map_or(0, |(entry, _)| entry)
}
