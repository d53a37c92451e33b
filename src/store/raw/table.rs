//! The table: pairs of buckets, each pair behind one spin bit.
//!
//! A key has a pair (by linear hashing), a home bucket in it, and a tag. Its entry stands in the
//! home bucket, or, when that is full, in the other one, or in an extension bucket that hangs off
//! the pair. An entry whose live bit is clear but whose tag is not 0 is a ghost: it remembers a key
//! that was evicted not long ago.

use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard};

use super::bucket::{Bucket, ENTRIES, acquire, release, try_acquire};
use super::pair::{PairGuard, Spot};
use super::{Arena, Handle, Region, ReserveError, Source, prefetch};

/// Items per pair, in quarters, at which the table grows: 72 % of its 24 entries.
const QUARTERS_PER_PAIR: usize = 69;

/// The hash table of all items.
pub struct Table {
    pairs: Region,
    extensions: Region,
    /// High half: the mask of a hash's bits that the next round of splits decides on, all pairs of
    /// which will exist when it is over. Low half: the pairs that exist.
    geometry: AtomicU64,
    pub(super) items: AtomicUsize,
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
pub(super) struct Spare {
    /// Those that were used once and are free again.
    pub(super) free: Vec<u32>,
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

    pub(super) fn spare(&self) -> MutexGuard<'_, Spare> {
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

    pub(super) fn extension(&self, number: u32) -> &Bucket {
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

    /// Asks for the memory of pairs that a walk will soon come to, and of their items.
    pub fn foresee(&self, arena: &Arena, pair: usize) {
        const BUCKETS: usize = 24;
        const ITEMS: usize = 8;
        let pairs = self.pairs();
        if pair + BUCKETS < pairs {
            self.pair(pair + BUCKETS).iter().for_each(prefetch);
        }
        if pair + ITEMS < pairs {
            for bucket in self.pair(pair + ITEMS) {
                let mut live = bucket.live() & bucket.usable();
                while live != 0 {
                    arena.prefetch(bucket.handle(live.trailing_zeros() as usize));
                    live &= live - 1;
                }
            }
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

    pub(super) fn take_extension(&self, spare: &mut Spare) -> Option<u32> {
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
