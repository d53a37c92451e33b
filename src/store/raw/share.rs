//! A region cut into parts that have one owner each: plain bytes.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::memory::{HUGE, Region, ReserveError};

/// A part of a region that nobody else has. It is zero at first, and costs nothing until it is touched.
pub struct Share {
    region: Arc<Region>,
    offset: usize,
    bytes: usize,
}

impl Share {
    /// Reserves `count` parts of `bytes` each, in huge pages if the kernel has some and they are worth it:
    /// who writes to all of the parts in turn needs few of them, and little time for first touches.
    ///
    /// # Errors
    /// The system does not give the address space.
    pub fn reserve(count: usize, bytes: usize) -> Result<Vec<Share>, ReserveError> {
        let total = count * bytes;
        let region = Arc::new(Region::reserve(total)?);
        if total >= HUGE / 4 {
            region.advise_huge();
        }
        let share = |number| Share {
            region: region.clone(),
            offset: number * bytes,
            bytes,
        };
        Ok((0..count).map(share).collect())
    }
}

impl Deref for Share {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: within the region, which is mapped as long as there is a share of it and was zeroed;
        // shares do not overlap, and nobody else touches the region.
        unsafe {
            std::slice::from_raw_parts(self.region.base().as_ptr().add(self.offset), self.bytes)
        }
    }
}

impl DerefMut for Share {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and whoever has a share mutably is alone with it.
        unsafe {
            std::slice::from_raw_parts_mut(self.region.base().as_ptr().add(self.offset), self.bytes)
        }
    }
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share({} bytes)", self.bytes)
    }
}

/// A share as numbers that all threads may change.
#[derive(Debug)]
pub struct Words(Share);

impl Words {
    /// As [`Share::reserve`], for parts of so many numbers, 0 at first.
    ///
    /// # Errors
    /// As there.
    pub fn reserve(count: usize, numbers: usize) -> Result<Vec<Words>, ReserveError> {
        let shares = Share::reserve(count, numbers * size_of::<AtomicU64>())?;
        Ok(shares.into_iter().map(Words).collect())
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        let Share {
            region,
            offset,
            bytes,
        } = &self.0;
        // SAFETY: as for the bytes of a share; it begins and ends at multiples of 8, was zeroed, and is
        // only ever used as these atomics.
        unsafe {
            let base = region.base().as_ptr().add(*offset);
            std::slice::from_raw_parts(base.cast(), bytes / size_of::<AtomicU64>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_apart() {
        use std::sync::atomic::Ordering::Relaxed;
        let words = Words::reserve(2, 100).unwrap();
        words[0][99].store(7, Relaxed);
        assert!(words[1].len() == 100 && words[1].iter().all(|word| word.load(Relaxed) == 0));
        assert_eq!(words[0][99].load(Relaxed), 7);
    }

    #[test]
    fn shares_are_zero_and_apart_and_outlive_one_another() {
        let mut shares = Share::reserve(3, 1000).unwrap();
        for (number, share) in shares.iter_mut().enumerate() {
            assert!(share.len() == 1000 && share.iter().all(|byte| *byte == 0));
            share.fill(number as u8 + 1);
        }
        let last = shares.pop().unwrap();
        assert!(shares[1].iter().all(|byte| *byte == 2));
        drop(shares);
        assert!(last.iter().all(|byte| *byte == 3));
    }
}
