//! Placements that compute a server from the hash and the number of servers alone.
#![forbid(unsafe_code)]

use crate::hash::hashkit;

/// mcrouter's seed.
pub(super) const CH3_SEED: u64 = 4_193_360_111;
/// Bit positions between the tries of `ch3`, and so at most 2^23 servers.
const CH3_STRIDE: usize = 23;
const CH3_TRIES: usize = 32;

/// Lamping and Veach's jump consistent hash: a bucket below `buckets`, which is at least 1.
pub(super) fn jump(mut key: u64, buckets: u32) -> u32 {
    let mut bucket = 0_i64;
    let mut next = 0_i64;
    while next < i64::from(buckets) {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let step = (1_i64 << 31) as f64 / ((key >> 33) + 1) as f64;
        next = ((bucket + 1) as f64 * step) as i64;
    }
    bucket as u32
}

/// Another hash from a hash: splitmix64's finish.
pub(super) fn rehash(hash: u64) -> u64 {
    let hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Random bits of a key by position: its MurmurHash64A, then the hash of that, and so on. The walk
/// asks for them in runs that begin near the first, so two words are enough to remember.
struct Bits {
    first: u64,
    /// The word asked for last, and which one it is.
    word: u64,
    index: usize,
}

impl Bits {
    fn new(key: &[u8]) -> Bits {
        let first = hashkit::murmur64(key, CH3_SEED);
        Bits {
            first,
            word: first,
            index: 0,
        }
    }

    fn at(&mut self, position: usize) -> bool {
        let index = position / 64;
        if index < self.index {
            (self.word, self.index) = (self.first, 0);
        }
        while self.index < index {
            self.word = hashkit::murmur64(&self.word.to_le_bytes(), CH3_SEED);
            self.index += 1;
        }
        self.word >> (position % 64) & 1 == 1
    }
}

/// mcrouter's `ch3` (FurcHash): a server below `servers`, which is at least 1 and at most 2^23.
///
/// A walk down a binary tree whose leaves are the numbers below the next power of two: the first
/// set bit says at which level the key turns off, further bits which number it gets there. A number
/// that is too large is tried again with bits further on; after 32 tries it is 0.
pub(super) fn ch3(key: &[u8], servers: u32) -> u32 {
    if servers <= 1 {
        return 0;
    }
    let mut bits = Bits::new(key);
    let mut level = servers.next_power_of_two().trailing_zeros() as usize;
    let mut position = level;
    for _ in 0..CH3_TRIES {
        while !bits.at(position) {
            level -= 1;
            if level == 0 {
                return 0;
            }
            position = level;
        }
        position += CH3_STRIDE;
        let mut number = 1;
        for _ in 1..level {
            number = number << 1 | u32::from(bits.at(position));
            position += CH3_STRIDE;
        }
        if number < servers {
            return number;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_has_all() {
        assert_eq!(jump(12345, 1), 0);
        assert_eq!(ch3(b"key", 1), 0);
    }

    #[test]
    fn jump_agrees_with_its_authors() {
        // key, then buckets and expected for each column
        let text = include_str!("../../../tests/data/ketama/jump_u64.csv");
        let mut lines = text.lines();
        let buckets: Vec<u32> = lines
            .next()
            .unwrap()
            .split(',')
            .skip(1)
            .map(|name| name[1..].parse().unwrap())
            .collect();
        let mut checked = 0;
        for line in lines {
            let mut cells = line.split(',').map(|cell| cell.parse::<u64>().unwrap());
            let key = cells.next().unwrap();
            for (&count, expected) in buckets.iter().zip(cells) {
                assert_eq!(u64::from(jump(key, count)), expected, "{key} of {count}");
                checked += 1;
            }
        }
        assert_eq!(checked, 2000 * 13);
    }

    #[test]
    fn ch3_reaches_its_largest_size() {
        let seen = (0..2000_u32)
            .map(|n| ch3(&n.to_le_bytes(), 1 << 23))
            .max()
            .unwrap();
        assert!(seen > 1 << 22 && seen < 1 << 23);
    }
}
