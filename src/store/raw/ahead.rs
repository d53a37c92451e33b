//! Asking for memory before it is needed.

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

/// Asks for the cache lines of a stretch of bytes.
#[inline(always)]
pub fn prefetch_bytes(bytes: &[u8]) {
    bytes.iter().step_by(LINE).for_each(prefetch);
}
