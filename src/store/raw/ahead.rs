//! Asking for memory before it is needed.

use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

/// A cache line, in bytes.
const LINE: usize = 64;

/// Asks for the cache line that a value begins in.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    prefetch_at(std::ptr::from_ref(value).cast());
}

#[inline(always)]
fn prefetch_at(place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program can see, and never faults.
        unsafe { _mm_prefetch(place.cast(), _MM_HINT_T0) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Asks for all cache lines of a value, which begins with one.
#[inline(always)]
pub fn prefetch_whole<T>(value: &T) {
    let begin = std::ptr::from_ref(value).cast::<u8>();
    for offset in (0..size_of::<T>()).step_by(LINE) {
        prefetch_at(begin.wrapping_add(offset));
    }
}

/// Asks for the cache lines that bytes begin with, up to `most` bytes of them.
#[inline(always)]
pub fn prefetch_bytes(bytes: &[u8], most: usize) {
    let begin = bytes.as_ptr();
    let mut offset = 0;
    while offset < most {
        prefetch_at(begin.wrapping_add(offset));
        offset += LINE;
    }
}

/// Where somebody will write next, for others who ask for that memory before they may look at it.
#[derive(Debug, Default)]
pub struct Signpost(AtomicPtr<u8>);

impl Signpost {
    #[inline]
    pub fn set(&self, bytes: &[u8]) {
        self.0.store(bytes.as_ptr().cast_mut(), Relaxed);
    }

    /// Asks for some cache lines from there on.
    #[inline]
    pub fn prefetch(&self, lines: usize) {
        let begin = self.0.load(Relaxed);
        // An address that nothing is at is looked up in vain each time.
        if begin.is_null() {
            return;
        }
        for line in 0..lines {
            prefetch_at(begin.wrapping_add(line * LINE));
        }
    }
}
