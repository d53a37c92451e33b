//! Bob Jenkins' lookup3 for little-endian words: start value 0 for `-o hash_algorithm=jenkins`, 13
//! for libmemcached's keys.
#![forbid(unsafe_code)]

pub(super) fn hash(key: &[u8], initial: u32) -> u32 {
    let start = 0xdead_beef_u32
        .wrapping_add(key.len() as u32)
        .wrapping_add(initial);
    let mut words = [start; 3];
    let mut rest = key;
    while rest.len() > 12 {
        let (block, tail) = rest.split_at(12);
        add(&mut words, block);
        mix(&mut words);
        rest = tail;
    }
    if !rest.is_empty() {
        add(&mut words, rest);
        finish(&mut words);
    }
    words[2]
}

/// Adds up to 12 bytes, the missing ones being 0.
fn add(words: &mut [u32; 3], block: &[u8]) {
    for (word, bytes) in words.iter_mut().zip(block.chunks(4)) {
        let mut padded = [0; 4];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = word.wrapping_add(u32::from_le_bytes(padded));
    }
}

fn mix([a, b, c]: &mut [u32; 3]) {
    for shift in [4, 6, 8, 16, 19, 4] {
        *a = a.wrapping_sub(*c) ^ c.rotate_left(shift);
        *c = c.wrapping_add(*b);
        (*a, *b, *c) = (*b, *c, *a);
    }
}

fn finish([a, b, c]: &mut [u32; 3]) {
    for shift in [14, 11, 25, 16, 4, 14, 24] {
        *c = (*c ^ *b).wrapping_sub(b.rotate_left(shift));
        (*a, *b, *c) = (*b, *c, *a);
    }
    // Seven turns leave the word changed last in the middle.
    *c = *b;
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
        (b"", 0xdead_beef),
        (b"a", 0x58d6_8708),
        (b"ab", 0xfbb3_a8df),
        (b"abc", 0x0e39_7631),
        (b"key_12345", 0xfcb8_cfc4),
        (b"foo:bar:baz:", 0xe692_898a),
        (b"Four score and seven years ago", 0x1777_0551),
        (b"key_0000000000000001", 0x34dc_f7c2),
        (b"The quick brown fox jumps over the lazy dog", 0x64a2_cd46),
    ];
}
