#![forbid(unsafe_code)]
//! The keys of a multiget, one by one.

use memchr::{memchr, memchr2};

use super::{KEY_MAX, Rules};

/// What comes next on the line of a multiget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextKey<'a> {
    Key {
        key: &'a [u8],
        taken: usize,
    },
    /// The line is over.
    End {
        taken: usize,
    },
    Incomplete,
    /// A longer key than there may be.
    TooLong,
}

/// What nearly always comes next on the line of a multiget: one blank, a key, and a blank or the line
/// end. The key, and the bytes taken; nothing does not say that there is no key.
#[inline(always)]
pub fn usual_key(input: &[u8]) -> Option<(&[u8], usize)> {
    let blank = usize::from(input.first() == Some(&b' '));
    let rest = &input[blank..];
    if let Some(length @ 1..=KEY_MAX) = word_end(rest)
        && let [b' ', ..] | [b'\r', b'\n', ..] = rest[length..]
    {
        return Some((&rest[..length], blank + length));
    }
    None
}

/// The next key of a multiget.
#[inline(always)]
pub fn next_key(input: &[u8]) -> NextKey<'_> {
    next_key_by(Rules::default(), input)
}

/// As [`next_key`], by other rules than memcached's.
#[inline(always)]
pub fn next_key_by(rules: Rules, input: &[u8]) -> NextKey<'_> {
    if let Some((key, taken)) = usual_key(input) {
        return NextKey::Key { key, taken };
    }
    other_key(rules, input)
}

/// As [`next_key_by`], where there is no [`usual_key`].
#[inline(always)]
pub fn other_key(rules: Rules, input: &[u8]) -> NextKey<'_> {
    if let [b'\r', b'\n', ..] = input {
        return NextKey::End { taken: 2 };
    }
    any_key(rules, input)
}

/// Whether input of which `seen` bytes lacked the end of their line, or of the next key where `in_keys`,
/// lacks it still, and may. So what comes in by the byte is not looked through from the start each time.
pub fn lacks_end(rules: Rules, in_keys: bool, input: &[u8], seen: usize) -> bool {
    let Some(new) = input.get(seen..) else {
        return false;
    };
    let (end, most) = match in_keys {
        true => (memchr2(b' ', b'\n', new), rules.key_max()),
        false => (memchr(b'\n', new), super::line_max(rules)),
    };
    end.is_none() && input.len() <= most
}

/// Where the first byte up to a blank stands, or an earlier one that is not ASCII, if `bytes` show one
/// and are not too few to be looked at this way.
#[inline(always)]
pub fn word_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(pair) = bytes[at..].first_chunk() {
        if let Some(end) = end_in(pair) {
            return Some(at + end);
        }
        at += 16;
    }
    // What is left, behind what has been looked at already.
    let end = end_in(bytes.last_chunk()?)?;
    Some(bytes.len() - 16 + end)
}

/// See [`word_end`].
#[inline(always)]
fn end_in(pair: &[u8; 16]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    // The top bit stays clear where a byte is from 0x21 to 0xa0, up to the first that is not.
    let ends = |word: u64| word.wrapping_sub(ONES * 0x21) & (ONES * 0x80);
    let pair = u128::from_le_bytes(*pair);
    let (first, second) = (ends(pair as u64), ends((pair >> 64) as u64));
    if first | second == 0 {
        return None;
    }
    let (ends, skipped) = if first != 0 { (first, 0) } else { (second, 8) };
    Some(skipped + ends.trailing_zeros() as usize / 8)
}

/// As [`next_key`], whatever stands there.
#[inline(never)]
pub fn any_key(rules: Rules, input: &[u8]) -> NextKey<'_> {
    let mut start = 0;
    while input.get(start) == Some(&b' ') {
        start += 1;
    }
    let rest = &input[start..];
    // A key ends within this, or it is a long one; a CR may stand before the LF.
    let window = &rest[..rest.len().min(KEY_MAX + 2)];
    let Some(length) = memchr2(b' ', b'\n', window) else {
        return if rest.len() < KEY_MAX + 2 {
            NextKey::Incomplete
        } else {
            long_key(rules, rest, start)
        };
    };
    let mut key = &rest[..length];
    if rest[length] == b'\n' {
        // The line end is left for the next call, unless there is no key before it.
        if let [before @ .., b'\r'] = key {
            key = before;
        }
        if key.is_empty() {
            return NextKey::End {
                taken: start + length + 1,
            };
        }
    }
    if key.len() > KEY_MAX {
        return long_key(rules, rest, start);
    }
    NextKey::Key {
        key,
        taken: start + key.len(),
    }
}

/// As [`next_key`], where more than [`KEY_MAX`] bytes stand behind `start` blanks.
#[cold]
fn long_key(rules: Rules, rest: &[u8], start: usize) -> NextKey<'_> {
    let window = &rest[..rest.len().min(rules.key_max() + 2)];
    let Some(length) = memchr2(b' ', b'\n', window) else {
        return if rest.len() < rules.key_max() + 2 {
            NextKey::Incomplete
        } else {
            NextKey::TooLong
        };
    };
    let key = match &rest[..length] {
        [before @ .., b'\r'] if rest[length] == b'\n' => before,
        key => key,
    };
    match key.len() <= rules.key_max() {
        true => NextKey::Key {
            key,
            taken: start + key.len(),
        },
        false => NextKey::TooLong,
    }
}

/// Bytes of the next `count` keys of a multiget, which are known to stand there.
pub fn keys_length(rules: Rules, input: &[u8], count: usize) -> usize {
    let mut at = 0;
    for _ in 0..count {
        if let NextKey::Key { taken, .. } = next_key_by(rules, &input[at..]) {
            at += taken;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_multiget_come_one_by_one() {
        let mut rest = &b"a  bb ccc \r\nnext"[..];
        let mut keys = Vec::new();
        loop {
            match next_key(rest) {
                NextKey::Key { key, taken } => {
                    keys.push(key);
                    rest = &rest[taken..];
                }
                NextKey::End { taken } => {
                    rest = &rest[taken..];
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(keys, [&b"a"[..], b"bb", b"ccc"]);
        assert_eq!(rest, b"next");
        assert_eq!(
            next_key(&[b'x'; 251]),
            NextKey::Incomplete,
            "the last byte may be a line end's"
        );
        assert_eq!(next_key(&[b'x'; 252]), NextKey::TooLong);
        assert_eq!(next_key(b"   "), NextKey::Incomplete);
    }
}
