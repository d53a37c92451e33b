//! Buckets of the table: twelve tags, a control word, twelve handles.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// Entries of a bucket.
pub(super) const ENTRIES: usize = 12;
/// The last entry of a bucket, which holds the number of the next one when `CHAINED` is set.
pub(super) const LINK: usize = ENTRIES - 1;

const LOCKED: u32 = 1;
/// The bucket's last entry is a link to an extension bucket.
pub(super) const CHAINED: u32 = 1 << 1;
/// An entry whose home this is may stand in the other bucket of the pair.
pub(super) const SPILLED: u32 = 1 << 2;
pub(super) const LIVE_SHIFT: u32 = 4;
const LIVE_MASK: u32 = 0xfff << LIVE_SHIFT;

#[repr(C, align(64))]
pub(super) struct Bucket {
    /// Tags 0 to 7.
    tags_low: AtomicU64,
    /// Tags 8 to 11.
    tags_high: AtomicU32,
    /// Lock (the even bucket's serves the pair), flags, map of live entries.
    pub(super) control: AtomicU32,
    pub(super) handles: [AtomicU32; ENTRIES],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    pub(super) fn control(&self) -> u32 {
        self.control.load(Relaxed)
    }

    pub(super) fn live(&self) -> u32 {
        (self.control() & LIVE_MASK) >> LIVE_SHIFT
    }

    pub(super) fn set_live(&self, entry: usize, live: bool) {
        let bit = 1 << (LIVE_SHIFT + entry as u32);
        let control = self.control();
        self.control
            .store(if live { control | bit } else { control & !bit }, Relaxed);
    }

    pub(super) fn set_flag(&self, flag: u32) {
        self.control.store(self.control() | flag, Relaxed);
    }

    /// Entries that may hold items.
    pub(super) fn usable(&self) -> u32 {
        if self.control() & CHAINED != 0 {
            (1 << LINK) - 1
        } else {
            (1 << ENTRIES) - 1
        }
    }

    /// The entries with this tag, live or ghosts.
    #[inline]
    pub(super) fn matches(&self, tag: u8) -> u32 {
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

    pub(super) fn tag(&self, entry: usize) -> u8 {
        if entry < 8 {
            (self.tags_low.load(Relaxed) >> (entry * 8)) as u8
        } else {
            (self.tags_high.load(Relaxed) >> ((entry - 8) * 8)) as u8
        }
    }

    pub(super) fn set_tag(&self, entry: usize, tag: u8) {
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

    pub(super) fn handle(&self, entry: usize) -> u32 {
        self.handles[entry].load(Relaxed)
    }

    pub(super) fn clear(&self) {
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
    pub(super) const HOT: u32 = 1 << 15;

    pub(super) fn encode(self, hash: u64, age: u32) -> u32 {
        u32::from(fingerprint(hash)) << 16 | if self.hot { Ghost::HOT } else { 0 } | age & 0x7fff
    }
}

/// The tag of a hash: 1 to 255, for 0 is an empty entry.
#[inline]
pub(super) fn tag_of(hash: u64) -> u8 {
    let tag = (hash >> 56) as u8;
    if tag == 0 { 1 } else { tag }
}

/// The bits of a hash that a ghost keeps beside its tag.
pub(super) fn fingerprint(hash: u64) -> u16 {
    (hash >> 40) as u16
}

/// Which bucket of its pair is a key's home.
#[inline]
pub(super) fn home_of(hash: u64) -> usize {
    (hash >> 39) as usize & 1
}

/// Takes an entry that nobody lives in: an empty one, or else the oldest ghost's.
pub(super) fn put_entry(bucket: &Bucket, tag: u8, raw: u32) -> bool {
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

#[inline]
pub(super) fn try_acquire(control: &AtomicU32) -> bool {
    let seen = control.load(Relaxed);
    seen & LOCKED == 0
        && control
            .compare_exchange(seen, seen | LOCKED, Acquire, Relaxed)
            .is_ok()
}

#[inline]
pub(super) fn acquire(control: &AtomicU32) {
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
pub(super) fn release(control: &AtomicU32) {
    control.store(control.load(Relaxed) & !LOCKED, Release);
}
