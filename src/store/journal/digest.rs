#![forbid(unsafe_code)]
//! Which leaf an item belongs to, and what it adds there: two rows of leaves that are equal stand for the
//! same items.

use super::{LEAVES, PARTITION_BITS};

/// The leaves of one partition.
pub type Row = [u64; LEAVES];

/// The hash of a key by which nodes divide the keys; the same everywhere.
#[inline]
pub fn place(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// The partition of a [`place`].
#[inline]
pub fn partition(place: u64) -> usize {
    (place >> (u64::BITS - PARTITION_BITS)) as usize
}

/// The leaf of a [`place`] in its partition.
#[inline]
pub fn leaf(place: u64) -> usize {
    (place >> 48) as usize & (LEAVES - 1)
}

/// What an item adds to its leaf. Its CAS identifies its value within one history.
#[inline]
pub fn item_digest(place: u64, cas: u64, client_flags: u32, marks: u8, length: usize) -> u64 {
    let mix = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let seed = mix(place ^ 0x9e37_79b9_7f4a_7c15, cas ^ 0xd6e8_feb8_6659_fd93);
    let marks = u64::from(marks).wrapping_mul(0x8ebc_6af0_9c88_c6e3);
    mix(
        seed ^ 0xa076_1d64_78bd_642f,
        place.rotate_left(32)
            ^ (u64::from(client_flags) | (length as u64) << 32)
            ^ marks
            ^ 0xe703_7ed1_a0b4_28db,
    ) ^ seed.rotate_left(17)
}

/// The digest of a row.
pub fn row_digest(row: &Row) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for leaf in row {
        hasher.update(&leaf.to_le_bytes());
    }
    hasher.digest()
}

/// Leaves under one inner node.
pub const FANOUT: usize = 16;

/// Inner nodes of a partition.
pub const NODES: usize = LEAVES / FANOUT;

/// What is told first of a row: the XOR of the leaves under each node, cut short.
pub fn nodes(row: &Row) -> [u32; NODES] {
    std::array::from_fn(|node| {
        let leaves = &row[node * FANOUT..][..FANOUT];
        leaves.iter().fold(0, |sum, leaf| sum ^ leaf) as u32
    })
}

/// 24 bits of a digest, others for another salt: enough to find what differs. Whatever two nodes
/// overlook so, the next [`Kind::Digest`] finds, and then it is looked for with another salt.
#[inline]
pub fn short(digest: u64, salt: u64) -> u32 {
    (digest.wrapping_mul(salt | 1) >> 40) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_items_differ_in_every_part() {
        let mut seen = std::collections::HashSet::new();
        for place in [1, 2, 1 << 40, u64::MAX] {
            for cas in [0, 1, 2, 1 << 32, u64::MAX] {
                for flags in [0, 1, 1 << 31] {
                    for length in [0, 1, 1 << 20] {
                        for marks in 0..8 {
                            assert!(seen.insert(item_digest(place, cas, flags, marks, length)));
                        }
                    }
                }
            }
        }
    }
}
