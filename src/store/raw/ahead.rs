//! Asking for memory before it is needed.

/// A cache line, in bytes.
const LINE: usize = 64;

/// Asks for the cache line that a value begins in.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program can see.
        unsafe { _mm_prefetch(std::ptr::from_ref(value).cast(), _MM_HINT_T0) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

/// Asks for the cache lines of a stretch of bytes.
#[inline(always)]
pub fn prefetch_bytes(bytes: &[u8]) {
    bytes.iter().step_by(LINE).for_each(prefetch);
}
