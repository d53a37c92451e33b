#![forbid(unsafe_code)]
//! Keys that are not text, as meta flag `b` carries them: RFC 4648, with padding.

use super::text::KEY_MAX;

/// The longest key that an encoded key of [`KEY_MAX`] bytes decodes to.
pub const DECODED_MAX: usize = KEY_MAX / 4 * 3;
/// The longest encoding of a key of [`KEY_MAX`] bytes.
pub const ENCODED_MAX: usize = KEY_MAX.div_ceil(3) * 4;

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

/// Decodes `text` and says how long the key is. Bytes outside the alphabet are skipped, as in
/// memcached; nothing if there is no key in it or its end is missing.
pub fn decode(text: &[u8], key: &mut [u8; DECODED_MAX]) -> Option<usize> {
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
            key.get_mut(length..length + keep)?
                .copy_from_slice(&bytes[1..1 + keep]);
            length += keep;
            group = 0;
            if padding > 0 {
                return Some(length).filter(|&length| length > 0);
            }
        }
    }
    (count > 0 && count % 4 == 0).then_some(length)
}

/// Encodes a key and says how long the text is.
pub fn encode(key: &[u8], text: &mut [u8; ENCODED_MAX]) -> usize {
    let mut length = 0;
    for group in key[..key.len().min(KEY_MAX)].chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            text[length] = if place <= group.len() {
                ALPHABET[(bits >> (18 - 6 * place)) as usize & 63]
            } else {
                b'='
            };
            length += 1;
        }
    }
    length
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
            let mut room = [0; ENCODED_MAX];
            let length = encode(key.as_bytes(), &mut room);
            assert_eq!(&room[..length], text.as_bytes());
            let mut room = [0; DECODED_MAX];
            let length = decode(text.as_bytes(), &mut room).unwrap();
            assert_eq!(&room[..length], key.as_bytes());
        }
    }

    #[test]
    fn what_is_no_key() {
        for text in ["", "=", "Zg", "Zg=", "####", "===="] {
            assert_eq!(
                decode(text.as_bytes(), &mut [0; DECODED_MAX]),
                None,
                "{text}"
            );
        }
    }
}
