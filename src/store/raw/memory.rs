//! Ranges of address space that are reserved at once and touched little by little.

use std::fmt;
use std::io;
use std::ptr::NonNull;

/// A private, zeroed range of memory that costs nothing until it is touched.
pub struct Region {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a `Region` owns its mapping, and hands out its address only; what is done with the bytes
// is argued where it is done.
unsafe impl Send for Region {}
// SAFETY: as above: sharing the address shares nothing else.
unsafe impl Sync for Region {}

/// The system would not give the address space.
#[derive(Debug)]
pub struct ReserveError {
    pub bytes: usize,
    pub source: io::Error,
}

impl fmt::Display for ReserveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the system refuses to reserve {} MiB of address space: {} (see vm.overcommit_memory and ulimit -v)",
            self.bytes >> 20,
            self.source
        )
    }
}

impl std::error::Error for ReserveError {}

impl Region {
    /// Reserves `bytes`, rounded up to whole 2 MiB, aligned to 2 MiB.
    pub fn reserve(bytes: usize) -> Result<Region, ReserveError> {
        const HUGE: usize = 2 << 20;
        let bytes = bytes.max(1).next_multiple_of(HUGE);
        let span = bytes + HUGE;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no
        // memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                span,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(ReserveError {
                bytes,
                source: io::Error::last_os_error(),
            });
        }
        let start = start.cast::<u8>();
        let lead = start.align_offset(HUGE).min(HUGE);
        // SAFETY: `lead` is at most HUGE, and the mapping is HUGE longer than `bytes`.
        let base = unsafe { start.add(lead) };
        if lead > 0 {
            // SAFETY: the lead is ours and nothing has been placed there.
            unsafe { libc::munmap(start.cast(), lead) };
        }
        if HUGE > lead {
            // SAFETY: likewise for what lies behind the aligned range.
            unsafe { libc::munmap(base.add(bytes).cast(), HUGE - lead) };
        }
        let base = NonNull::new(base).expect("a mapping is never at address 0");
        Ok(Region { base, bytes })
    }

    /// Reserves the most that the system gives, between `least` and `most` bytes, halving.
    pub fn reserve_between(least: usize, most: usize) -> Result<Region, ReserveError> {
        let mut wanted = most.max(least);
        loop {
            match Region::reserve(wanted) {
                Ok(region) => return Ok(region),
                Err(error) if wanted <= least => return Err(error),
                Err(_) => wanted = (wanted / 2).max(least),
            }
        }
    }

    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Asks for huge pages from here on. Says whether the kernel agreed.
    pub fn advise_huge(&self) -> bool {
        // SAFETY: the range is our mapping, and the advice changes no contents.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.bytes, libc::MADV_HUGEPAGE) == 0 }
    }

    /// Touches the first `bytes` so that they are resident.
    pub fn populate(&self, bytes: usize) -> io::Result<()> {
        const MADV_POPULATE_WRITE: libc::c_int = 23;
        let bytes = bytes.min(self.bytes);
        // SAFETY: the range is our mapping; populating it keeps its contents.
        let done = unsafe { libc::madvise(self.base.as_ptr().cast(), bytes, MADV_POPULATE_WRITE) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Region {
    /// Gives the memory of a range back to the system; it reads as zeroes afterwards.
    ///
    /// # Safety
    /// * `offset` and `bytes` are multiples of 4096 and lie within the region.
    /// * Nobody holds a reference into the range but to atomics, and nobody counts on its contents.
    pub unsafe fn release(&self, offset: usize, bytes: usize) {
        debug_assert!(offset + bytes <= self.bytes);
        // SAFETY: the caller promises that the range is ours and without readers.
        unsafe {
            libc::madvise(
                self.base.as_ptr().add(offset).cast(),
                bytes,
                libc::MADV_DONTNEED,
            );
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever borrowed from it borrowed from `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_aligned_and_zero() {
        let region = Region::reserve(3 << 20).unwrap();
        assert_eq!(region.bytes(), 4 << 20);
        assert_eq!(region.base().as_ptr() as usize % (2 << 20), 0);
        // SAFETY: the first byte of a fresh region is mapped and nobody else has it.
        assert_eq!(unsafe { region.base().as_ptr().read() }, 0);
    }
}
