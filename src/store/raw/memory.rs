//! Ranges of address space that are reserved at once and touched little by little.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What regions are aligned to, and multiples of.
pub const HUGE: usize = 2 << 20;

/// A zeroed range of memory that costs nothing until it is touched; or part of a file, with what it
/// holds.
pub struct Region {
    base: NonNull<u8>,
    bytes: usize,
    in_file: bool,
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
    /// It is the file's memory that is not to be had.
    pub in_file: bool,
    pub source: io::Error,
}

impl fmt::Display for ReserveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.in_file {
            return write!(
                f,
                "cannot map {} MiB of the memory file: {}",
                self.bytes >> 20,
                self.source
            );
        }
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
                in_file: false,
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
        Ok(Region {
            base,
            bytes,
            in_file: false,
        })
    }

    /// Maps `bytes` of a file from `offset` on, both multiples of [`HUGE`] and within it.
    pub(super) fn map(file: &File, offset: usize, bytes: usize) -> Result<Region, ReserveError> {
        let mut region = Region::reserve(bytes)?;
        // SAFETY: the range is ours, nothing has been placed there, and the mapping replaces it whole.
        let mapped = unsafe {
            libc::mmap(
                region.base.as_ptr().cast(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(ReserveError {
                bytes,
                in_file: true,
                source: io::Error::last_os_error(),
            });
        }
        region.in_file = true;
        Ok(region)
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

    /// A checksum over the first `bytes`, a multiple of 32, for when nobody changes them. They must be
    /// atomics throughout.
    pub(super) fn digest(&self, bytes: usize) -> u64 {
        assert!(bytes <= self.bytes && bytes.is_multiple_of(32));
        let mut digest = xxhash_rust::xxh3::Xxh3::new();
        let mut buffer = [0u8; 4096];
        for begin in (0..bytes).step_by(buffer.len()) {
            let length = buffer.len().min(bytes - begin);
            for (at, part) in buffer[..length].chunks_exact_mut(8).enumerate() {
                // SAFETY: within the region, which is mapped, aligned, and made of atomics here.
                let word = unsafe {
                    let at = self.base.as_ptr().add(begin + at * 8);
                    &*at.cast::<AtomicU64>()
                };
                part.copy_from_slice(&word.load(Relaxed).to_le_bytes());
            }
            digest.update(&buffer[..length]);
        }
        digest.digest()
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
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
        // Before Linux 5.14: each page by hand.
        for offset in (0..bytes).step_by(4096) {
            // SAFETY: within our mapping, which nobody uses yet; what is written is what is there.
            unsafe {
                let byte = self.base.as_ptr().add(offset);
                byte.write_volatile(byte.read_volatile());
            }
        }
        Ok(())
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
        // Dropping the pages of a file would leave them in it.
        let advice = if self.in_file {
            libc::MADV_REMOVE
        } else {
            libc::MADV_DONTNEED
        };
        // SAFETY: the caller promises that the range is ours and without readers.
        unsafe {
            libc::madvise(self.base.as_ptr().add(offset).cast(), bytes, advice);
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
