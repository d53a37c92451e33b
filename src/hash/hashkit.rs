//! The hashes by which clients and other proxies choose a server for a key: libmemcached's,
//! twemproxy's, spymemcached's, mcrouter's. All but [`xxh3`] and [`murmur64`] end at 32 bits.
//!
//! They are what those programs compute on x86-64, where a C `char` is signed: several of them
//! extend the sign of bytes from 0x80 on. Keys of ASCII hash alike everywhere.
#![forbid(unsafe_code)]

use md5::{Digest, Md5};

use super::{jenkins, murmur3};
use crate::settings::proxy::{JavaHash, KeyHash};

const FNV_32_OFFSET: u32 = 0x811c_9dc5;
const FNV_32_PRIME: u32 = 0x0100_0193;
const FNV_64_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_64_PRIME: u64 = 0x0100_0000_01b3;

/// The hash of a key, or of the part of it that counts. `seed` matters to xxh3 alone.
#[inline]
pub fn hash(function: KeyHash, seed: u64, key: &[u8]) -> u32 {
    match function {
        KeyHash::Md5 => md5_words(key)[0],
        KeyHash::OneAtATime => one_at_a_time(key),
        KeyHash::Crc => (crc32fast::hash(key) >> 16) & 0x7fff,
        KeyHash::Crc16 => crc16(key),
        KeyHash::Crc32a => crc32fast::hash(key),
        KeyHash::Fnv1_64 => fnv1_64(key),
        KeyHash::Fnv1a64 => fnv1a_64(key),
        KeyHash::Fnv1_32 => fnv1_32(key),
        KeyHash::Fnv1a32 => fnv1a_32(key),
        KeyHash::Hsieh => hsieh(key),
        KeyHash::Murmur => murmur(key),
        KeyHash::Murmur3 => murmur3::hash(key, length_seed(key)),
        KeyHash::Jenkins => jenkins::hash(key, 13),
        KeyHash::Xxh3 => xxh3(key, seed) as u32,
        KeyHash::Java(function) => java(function, key),
    }
}

/// XXH3, 64 bits: memcached's proxy.
pub fn xxh3(key: &[u8], seed: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key, seed)
}

/// The four little-endian words of an MD5 digest. The first is ketama's key hash; a label gives a
/// point with each.
pub fn md5_words(text: &[u8]) -> [u32; 4] {
    let digest: [u8; 16] = Md5::digest(text).into();
    let (words, _) = digest.as_chunks::<4>();
    std::array::from_fn(|index| u32::from_le_bytes(words[index]))
}

/// A byte as C's signed `char` widens.
fn widened(byte: u8) -> u32 {
    byte.cast_signed() as u32
}

fn one_at_a_time(key: &[u8]) -> u32 {
    let mut state = key.iter().fold(0_u32, |state, &byte| {
        let state = state.wrapping_add(widened(byte));
        let state = state.wrapping_add(state << 10);
        state ^ (state >> 6)
    });
    state = state.wrapping_add(state << 3);
    state ^= state >> 11;
    state.wrapping_add(state << 15)
}

fn fnv1_32(key: &[u8]) -> u32 {
    key.iter().fold(FNV_32_OFFSET, |state, &byte| {
        state.wrapping_mul(FNV_32_PRIME) ^ widened(byte)
    })
}

fn fnv1a_32(key: &[u8]) -> u32 {
    key.iter().fold(FNV_32_OFFSET, |state, &byte| {
        (state ^ widened(byte)).wrapping_mul(FNV_32_PRIME)
    })
}

/// FNV-1 with 64 bits, cut to 32 at the end.
fn fnv1_64(key: &[u8]) -> u32 {
    key.iter().fold(FNV_64_OFFSET, |state, &byte| {
        state.wrapping_mul(FNV_64_PRIME) ^ (byte.cast_signed() as u64)
    }) as u32
}

/// What hashkit calls by this name: the constants of 64 bits in arithmetic of 32.
fn fnv1a_64(key: &[u8]) -> u32 {
    key.iter().fold(FNV_64_OFFSET as u32, |state, &byte| {
        (state ^ widened(byte)).wrapping_mul(FNV_64_PRIME as u32)
    })
}

/// CCITT's polynomial over an accumulator of 32 bits whose upper half is never cut off.
fn crc16(key: &[u8]) -> u32 {
    key.iter().fold(0_u32, |state, &byte| {
        let index = ((state >> 8) as u8) ^ byte;
        (state << 8) ^ u32::from(CRC16[usize::from(index)])
    })
}

const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = (index as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            let carry = value & 0x8000 != 0;
            value <<= 1;
            if carry {
                value ^= 0x1021;
            }
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

/// Paul Hsieh's SuperFastHash with start value 0.
fn hsieh(key: &[u8]) -> u32 {
    let half = |bytes: &[u8]| u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let (blocks, tail) = key.as_chunks::<4>();
    let mut state = 0_u32;
    for block in blocks {
        state = state.wrapping_add(half(&block[..2]));
        state = (state << 16) ^ (half(&block[2..]) << 11) ^ state;
        state = state.wrapping_add(state >> 11);
    }
    match *tail {
        [_, _, last] => {
            state = state.wrapping_add(half(tail));
            state ^= state << 16;
            state ^= widened(last) << 18;
            state = state.wrapping_add(state >> 11);
        }
        [_, _] => {
            state = state.wrapping_add(half(tail));
            state ^= state << 11;
            state = state.wrapping_add(state >> 17);
        }
        [byte] => {
            state = state.wrapping_add(u32::from(byte));
            state ^= state << 10;
            state = state.wrapping_add(state >> 1);
        }
        _ => {}
    }
    for (left, right) in [(3, 5), (4, 17), (25, 6)] {
        state ^= state << left;
        state = state.wrapping_add(state >> right);
    }
    state
}

/// hashkit seeds both murmurs with the length of the key.
fn length_seed(key: &[u8]) -> u32 {
    0xdead_beef_u32.wrapping_mul(key.len() as u32)
}

/// MurmurHash2, 32 bits.
fn murmur(key: &[u8]) -> u32 {
    const FACTOR: u32 = 0x5bd1_e995;
    let (blocks, tail) = key.as_chunks::<4>();
    let mut state = length_seed(key) ^ (key.len() as u32);
    for block in blocks {
        let word = u32::from_le_bytes(*block).wrapping_mul(FACTOR);
        let word = (word ^ (word >> 24)).wrapping_mul(FACTOR);
        state = state.wrapping_mul(FACTOR) ^ word;
    }
    if !tail.is_empty() {
        let mut last = [0; 4];
        last[..tail.len()].copy_from_slice(tail);
        state = (state ^ u32::from_le_bytes(last)).wrapping_mul(FACTOR);
    }
    state = (state ^ (state >> 13)).wrapping_mul(FACTOR);
    state ^ (state >> 15)
}

/// MurmurHash64A: mcrouter's `ch3`.
pub fn murmur64(key: &[u8], seed: u64) -> u64 {
    const FACTOR: u64 = 0xc6a4_a793_5bd1_e995;
    let (blocks, tail) = key.as_chunks::<8>();
    let mut state = seed ^ (key.len() as u64).wrapping_mul(FACTOR);
    for block in blocks {
        let word = u64::from_le_bytes(*block).wrapping_mul(FACTOR);
        let word = (word ^ (word >> 47)).wrapping_mul(FACTOR);
        state = (state ^ word).wrapping_mul(FACTOR);
    }
    if !tail.is_empty() {
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        state = (state ^ u64::from_le_bytes(last)).wrapping_mul(FACTOR);
    }
    state = (state ^ (state >> 47)).wrapping_mul(FACTOR);
    state ^ (state >> 47)
}

/// spymemcached hashes strings: CRC over UTF-8, the others over UTF-16 units. Bytes that are no
/// UTF-8 count as the replacement character, as Java decodes them.
fn java(function: JavaHash, key: &[u8]) -> u32 {
    match function {
        JavaHash::Native => units(key).fold(0, |state, unit| {
            state.wrapping_mul(31).wrapping_add(u32::from(unit))
        }),
        JavaHash::Fnv1_32 => units(key).fold(FNV_32_OFFSET, |state, unit| {
            state.wrapping_mul(FNV_32_PRIME) ^ u32::from(unit)
        }),
        JavaHash::Fnv1a32 => units(key).fold(FNV_32_OFFSET, |state, unit| {
            (state ^ u32::from(unit)).wrapping_mul(FNV_32_PRIME)
        }),
        JavaHash::Fnv1_64 => units(key).fold(FNV_64_OFFSET, |state, unit| {
            state.wrapping_mul(FNV_64_PRIME) ^ u64::from(unit)
        }) as u32,
        JavaHash::Fnv1a64 => units(key).fold(FNV_64_OFFSET, |state, unit| {
            (state ^ u64::from(unit)).wrapping_mul(FNV_64_PRIME)
        }) as u32,
    }
}

fn units(key: &[u8]) -> impl Iterator<Item = u16> {
    key.utf8_chunks().flat_map(|chunk| {
        let replacement = (!chunk.invalid().is_empty()).then_some(0xfffd);
        chunk.valid().encode_utf16().chain(replacement)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_values() {
        assert_eq!(hash(KeyHash::Crc32a, 0, b"123456789"), 0xcbf4_3926);
        assert_eq!(hash(KeyHash::Fnv1a32, 0, b"foobar"), 0xbf9c_f968);
        assert_eq!(hash(KeyHash::Fnv1_32, 0, b"foobar"), 0x31f0_b262);
        assert_eq!(
            hash(KeyHash::Java(JavaHash::Native), 0, b"hello"),
            99_162_322
        );
        assert_eq!(crc16(b"123456789") & 0xffff, 0x31c3);
        assert_eq!(md5_words(b"")[0], 0xd98c_1dd4);
    }

    #[test]
    fn java_strings_hash_by_utf16_units() {
        let native = |key: &str| hash(KeyHash::Java(JavaHash::Native), 0, key.as_bytes());
        // U+1F600 is the pair d83d de00.
        assert_eq!(native("\u{1f600}"), 0xd83d * 31 + 0xde00);
        assert_eq!(native("\u{e9}"), 0xe9);
        assert_eq!(
            hash(KeyHash::Java(JavaHash::Native), 0, b"\xff"),
            0xfffd,
            "what is no UTF-8 is replaced"
        );
    }

    #[test]
    fn empty_keys_hash() {
        for function in KeyHash::ALL {
            hash(function, 0, b"");
        }
    }
}
