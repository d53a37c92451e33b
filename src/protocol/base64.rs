#![forbid(unsafe_code)]
//! Keys that are not text, as meta flag `b` carries them: RFC 4648, with padding.

use super::text::KEY_MAX;

/// The longest key that an encoded key of [`KEY_MAX`] bytes decodes to.
pub const DECODED_MAX: usize = decoded_max(KEY_MAX);

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn value(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

/// The longest key that an encoded key of so many bytes decodes to.
pub const fn decoded_max(encoded: usize) -> usize {
    encoded / 4 * 3
}

/// Whether `text` is the encoding of a key.
pub fn is_key(text: &[u8]) -> bool {
    decode_to(text, |_, _| Some(())).is_some()
}

/// As [`decode`], into a buffer that is cleared before: empty if there is no key in it.
pub fn decode_into(text: &[u8], key: &mut Vec<u8>) {
    key.clear();
    key.resize(decoded_max(text.len()), 0);
    let length = decode(text, key).unwrap_or(0);
    key.truncate(length);
}

/// Decodes `text` and says how long the key is. Bytes outside the alphabet are skipped, as in
/// memcached; nothing if there is no key in it, its end is missing, or `key` is too short for it. What
/// follows the padding counts towards whole groups of four, and for nothing else.
pub fn decode(text: &[u8], key: &mut [u8]) -> Option<usize> {
    decode_to(text, |at, bytes| {
        key.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
        Some(())
    })
}

/// Hands out the bytes of a key, with where they belong.
#[inline]
fn decode_to(text: &[u8], mut put: impl FnMut(usize, &[u8]) -> Option<()>) -> Option<usize> {
    let counts = |byte: &&u8| **byte == b'=' || value(**byte).is_some();
    if !text.iter().filter(counts).count().is_multiple_of(4) {
        return None;
    }
    let mut length = 0;
    let (mut group, mut count, mut padding) = (0u32, 0, 0);
    for &byte in text {
        let bits = match value(byte) {
            Some(bits) => bits,
            None if byte == b'=' => {
                padding += 1;
                0
            }
            None => continue,
        };
        group = group << 6 | bits;
        count += 1;
        if count % 4 == 0 {
            if padding > 2 {
                return None;
            }
            let bytes = group.to_be_bytes();
            let keep = 3 - padding;
            put(length, &bytes[1..1 + keep])?;
            length += keep;
            group = 0;
            if padding > 0 {
                return Some(length).filter(|&length| length > 0);
            }
        }
    }
    (count > 0).then_some(length)
}

/// The encoding of a key, four bytes at a time.
pub fn encoded(key: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    key.chunks(3).map(|group| {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        std::array::from_fn(|place| match place <= group.len() {
            true => ALPHABET[(bits >> (18 - 6 * place)) as usize & 63],
            false => b'=',
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (key, text) in [
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            let found: Vec<u8> = encoded(key.as_bytes()).flatten().collect();
            assert_eq!(found, text.as_bytes());
            let mut room = b"old".to_vec();
            decode_into(text.as_bytes(), &mut room);
            assert_eq!(room, key.as_bytes());
        }
    }

    #[test]
    fn keys_of_any_length() {
        let key: Vec<u8> = (0..1000u32).map(|n| (n * 7) as u8).collect();
        for length in [1, 250, 251, 255, 256, 999, 1000] {
            let key = &key[..length];
            let text: Vec<u8> = encoded(key).flatten().collect();
            assert!(is_key(&text));
            let mut room = vec![0; decoded_max(text.len())];
            assert_eq!(decode(&text, &mut room), Some(length));
            assert_eq!(&room[..length], key);
            assert_eq!(decode(&text, &mut room[..length - 1]), None, "no room");
        }
    }

    #[test]
    fn what_is_no_key() {
        for text in ["", "=", "Zg", "Zg=", "####", "====", "Zg==x", "Zm9vYmFy="] {
            assert_eq!(
                decode(text.as_bytes(), &mut [0; DECODED_MAX]),
                None,
                "{text}"
            );
        }
    }
}
