#![forbid(unsafe_code)]
//! Words of a line: what blanks, and nothing else, separate.

use nom::bytes::complete::take_while;
use nom::error::{Error, ErrorKind};
use nom::sequence::preceded;
use nom::{IResult, Parser};

/// Bytes before the first blank; all of them if there is none.
#[inline(always)]
pub fn until_blank(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    // Flags and zeroes are the most usual words.
    if let [b'!'..=b'z', b' ', ..] = bytes {
        return 1;
    }
    let mut at = 0;
    while let Some(eight) = bytes[at..].first_chunk() {
        // Where the lowest blank stands the top bit is set, and below it none is.
        let other = u64::from_le_bytes(*eight) ^ (ONES * 0x20);
        let blanks = other.wrapping_sub(ONES) & !other & (ONES * 0x80);
        if blanks != 0 {
            return at + blanks.trailing_zeros() as usize / 8;
        }
        at += eight.len();
    }
    while bytes.get(at).is_some_and(|&byte| byte != b' ') {
        at += 1;
    }
    at
}

/// A word as a parser: at least one byte up to a blank or the end.
#[inline(always)]
fn token(line: &[u8]) -> IResult<&[u8], &[u8]> {
    match until_blank(line) {
        0 => Err(nom::Err::Error(Error::new(line, ErrorKind::TakeTill1))),
        length => {
            let (word, rest) = line.split_at(length);
            Ok((rest, word))
        }
    }
}

/// The next word of a line, taken off it.
#[inline(always)]
pub fn word<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut word = preceded(take_while(|byte| byte == b' '), token);
    let (left, word) = word.parse(*rest).ok()?;
    *rest = left;
    Some(word)
}

/// All words of a line.
#[inline]
pub fn words(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || word(&mut rest))
}

/// The last word of a line.
pub fn last(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|&byte| byte != b' ');
    let line = &line[..end.map_or(0, |last| last + 1)];
    let blank = line.iter().rposition(|&byte| byte == b' ');
    &line[blank.map_or(0, |blank| blank + 1)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blanks_separate() {
        for (line, expected) in [
            ("", vec![]),
            ("   ", vec![]),
            ("a", vec!["a"]),
            ("  set   key\t1 0 ", vec!["set", "key\t1", "0"]),
            ("a\u{a0}b \0 \u{ff}", vec!["a\u{a0}b", "\0", "\u{ff}"]),
            (
                "longer than eight bytes!!! and_then_some_more",
                vec!["longer", "than", "eight", "bytes!!!", "and_then_some_more"],
            ),
        ] {
            let found: Vec<&[u8]> = words(line.as_bytes()).collect();
            let expected: Vec<&[u8]> = expected.iter().map(|word| word.as_bytes()).collect();
            assert_eq!(found, expected, "{line}");
            assert_eq!(last(line.as_bytes()), *expected.last().unwrap_or(&&b""[..]));
        }
    }

    #[test]
    fn the_first_blank_is_found_wherever_it_stands() {
        for length in 0..40 {
            for other in [0x1f, 0x21, 0x00, 0x7f, 0x80, 0xa0, 0xff] {
                let mut line = vec![other; 40];
                line[length] = b' ';
                assert_eq!(until_blank(&line), length);
                assert_eq!(until_blank(&line[..length]), length);
            }
        }
    }
}
