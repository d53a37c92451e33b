//! MurmurHash3, x86, 32 bits: seed 0 for `-o hash_algorithm=murmur3`.
#![forbid(unsafe_code)]

pub(super) fn hash(key: &[u8], seed: u32) -> u32 {
    let (blocks, tail) = key.as_chunks::<4>();
    let mut state = seed;
    for block in blocks {
        state ^= scramble(u32::from_le_bytes(*block));
        state = state
            .rotate_left(13)
            .wrapping_mul(5)
            .wrapping_add(0xe654_6b64);
    }
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    state ^= scramble(u32::from_le_bytes(last));
    state ^= key.len() as u32;
    state = (state ^ (state >> 16)).wrapping_mul(0x85eb_ca6b);
    state = (state ^ (state >> 13)).wrapping_mul(0xc2b2_ae35);
    state ^ (state >> 16)
}

fn scramble(word: u32) -> u32 {
    word.wrapping_mul(0xcc9e_2d51)
        .rotate_left(15)
        .wrapping_mul(0x1b87_3593)
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_values() {
        for (key, expected) in VALUES {
            assert_eq!(super::hash(key, 0), *expected, "{}", key.escape_ascii());
        }
    }

    const VALUES: &[(&[u8], u32)] = &[
        (b"", 0x0000_0000),
        (b"a", 0x3c25_69b2),
        (b"ab", 0x9bbf_d75f),
        (b"abc", 0xb3dd_93fa),
        (b"key_12345", 0x6462_1e38),
        (b"foo:bar:baz:", 0x019d_f30c),
        (b"Four score and seven years ago", 0xf790_a4e0),
        (b"key_0000000000000001", 0xf312_8dcb),
        (b"The quick brown fox jumps over the lazy dog", 0x2e4f_f723),
    ];
}
