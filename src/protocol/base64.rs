#![forbid(unsafe_code)]
//! Keys in base64 (meta flag `b`), with the leniency clients rely on: bytes outside the alphabet are
//! passed over, and what follows the first padded group is not looked at.

/// The longest key, in bytes.
pub const DECODED_MAX: usize = 250;

/// Room that every key of up to [`DECODED_MAX`] bytes fits in.
pub const ENCODED_MAX: usize = DECODED_MAX.div_ceil(3) * 4;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The six bits of a letter; `=` counts as zeros.
fn bits(byte: u8) -> Option<u32> {
    let bits = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        b'=' => 0,
        _ => return None,
    };
    Some(u32::from(bits))
}

/// Writes the base64 of up to [`DECODED_MAX`] bytes and returns its length.
pub fn encode(bytes: &[u8], into: &mut [u8; ENCODED_MAX]) -> usize {
    let mut length = 0;
    for (group, out) in bytes.chunks(3).zip(into.chunks_exact_mut(4)) {
        let mut all = [0; 3];
        all[..group.len()].copy_from_slice(group);
        let word = u32::from_be_bytes([0, all[0], all[1], all[2]]);
        for (place, letter) in out.iter_mut().enumerate() {
            *letter = if place <= group.len() {
                ALPHABET[(word >> (18 - 6 * place)) as usize & 63]
            } else {
                b'='
            };
        }
        length += 4;
    }
    length
}

/// Writes what `text` stands for and returns its length; `None` if it is not base64, empty, or
/// longer than a key.
pub fn decode(text: &[u8], into: &mut [u8; DECODED_MAX]) -> Option<usize> {
    let letters = text.iter().filter(|&&byte| bits(byte).is_some()).count();
    if letters == 0 || letters % 4 != 0 {
        return None;
    }
    let mut length = 0;
    let (mut word, mut have, mut padding) = (0, 0, 0);
    for &byte in text {
        let Some(bits) = bits(byte) else {
            continue;
        };
        word = word << 6 | bits;
        have += 1;
        padding += usize::from(byte == b'=');
        if have < 4 {
            continue;
        }
        let keep = 3usize.checked_sub(padding).filter(|&keep| keep > 0)?;
        let group = &u32::to_be_bytes(word)[1..][..keep];
        into.get_mut(length..length + keep)?.copy_from_slice(group);
        length += keep;
        if padding > 0 {
            break;
        }
        (word, have) = (0, 0);
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &[u8]) -> Option<Vec<u8>> {
        let mut into = [0; DECODED_MAX];
        decode(text, &mut into).map(|length| into[..length].to_vec())
    }

    #[test]
    fn known_texts() {
        for (plain, text) in [
            (&b"f"[..], &b"Zg=="[..]),
            (b"fo", b"Zm8="),
            (b"foo", b"Zm9v"),
            (b"foobar", b"Zm9vYmFy"),
            (b"\xff\x00\xfe", b"/wD+"),
        ] {
            let mut into = [0; ENCODED_MAX];
            let length = encode(plain, &mut into);
            assert_eq!(&into[..length], text);
            assert_eq!(decoded(text).as_deref(), Some(plain));
        }
    }

    #[test]
    fn odd_texts() {
        for (text, expected) in [
            (&b""[..], None),
            (b"Zg=", None),
            (b"Z===", None),
            (b"====", None),
            (b"!!!!", None),
            (b"Z-g=_=", Some(&b"f"[..])),
            (b"Zg==Zg==", Some(b"f")),
            (&[b'A'; 340], None),
        ] {
            assert_eq!(decoded(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn every_length_comes_back() {
        let plain: Vec<u8> = (0..=249).collect();
        for n in 1..=plain.len() {
            let mut into = [0; ENCODED_MAX];
            let length = encode(&plain[..n], &mut into);
            assert_eq!(decoded(&into[..length]).as_deref(), Some(&plain[..n]));
        }
    }
}
