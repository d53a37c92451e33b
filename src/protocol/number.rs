#![forbid(unsafe_code)]
//! Decimals as clients write them.

/// Digits that a number of 32 bits may have, with its sign, and one of 64 bits: leading zeros count.
const DIGITS: (usize, usize) = (11, 22);

/// Digits only, up to 2^64 - 1.
#[inline]
pub fn unsigned(text: &[u8]) -> Option<u64> {
    short(text).or_else(|| long(text))
}

/// As [`unsigned`], of 1 to 19 digits: so few cannot overflow.
#[inline]
pub fn short(text: &[u8]) -> Option<u64> {
    if !matches!(text.len(), 1..=19) {
        return None;
    }
    let mut value = 0;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + u64::from(digit);
    }
    Some(value)
}

/// As [`unsigned`], of 20 digits and more.
#[cold]
fn long(text: &[u8]) -> Option<u64> {
    let (zeros, text) = text.split_at(text.len().checked_sub(20)?);
    let (front, [last]) = text.split_last_chunk()?;
    let fits = zeros.len() + 20 <= DIGITS.1 && zeros.iter().all(|&digit| digit == b'0');
    if !fits || !last.is_ascii_digit() {
        return None;
    }
    let value = short(front)?.checked_mul(10)?;
    value.checked_add(u64::from(last - b'0'))
}

/// As [`unsigned`], up to 2^32 - 1.
pub fn unsigned32(text: &[u8]) -> Option<u32> {
    let value = unsigned(text).filter(|_| text.len() <= DIGITS.0)?;
    u32::try_from(value).ok()
}

/// Digits with an optional minus, in the range of an `i32`. A lone minus is 0, as in memcached.
#[inline]
pub fn signed32(text: &[u8]) -> Option<i32> {
    if text.len() > DIGITS.0 {
        return None;
    }
    signed(text).and_then(|value| i32::try_from(value).ok())
}

/// A time as clients give it: as [`signed32`], or in the range of an `i64`.
pub fn time(text: &[u8], long: bool) -> Option<i64> {
    if long {
        signed(text)
    } else {
        signed32(text).map(i64::from)
    }
}

#[inline]
fn signed(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let value = match digits {
        [] if negative => 0,
        digits => i64::try_from(unsigned(digits)?).ok()?,
    };
    Some(if negative { -value } else { value })
}

/// As C's `strtol` reads the start of a word.
pub fn strtol(text: &[u8]) -> Option<i64> {
    let (negative, value) = magnitude(text)?;
    if negative {
        0i64.checked_sub_unsigned(value)
    } else {
        i64::try_from(value).ok()
    }
}

/// As C's `strtoul` reads the start of a word, refusing what a minus made negative.
pub fn strtoul(text: &[u8]) -> Option<u64> {
    let (negative, value) = magnitude(text)?;
    if !negative {
        return Some(value);
    }
    let value = value.wrapping_neg();
    (value as i64 >= 0).then_some(value)
}

/// White space, a sign, digits; behind them the word's end, a NUL or white space, and then anything.
fn magnitude(text: &[u8]) -> Option<(bool, u64)> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r');
    let start = text.iter().position(|byte| !blank(byte))?;
    let (negative, digits) = match &text[start..] {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    let end = digits
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(digits.len());
    if digits
        .get(end)
        .is_some_and(|byte| !blank(byte) && *byte != 0)
    {
        return None;
    }
    let zeroes = digits[..end]
        .iter()
        .take_while(|&&byte| byte == b'0')
        .count();
    match &digits[zeroes..end] {
        [] if zeroes > 0 => Some((negative, 0)),
        digits => Some((negative, unsigned(digits)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (text, value) in [
            ("0", Some(0)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("99999999999999999999", None),
            ("9999999999999999999", Some(9_999_999_999_999_999_999)),
            ("00000000000000000001", Some(1)),
            ("1844674407370955161x", None),
            ("x8446744073709551615", None),
            ("", None),
            ("+1", None),
            ("1a", None),
            ("0018446744073709551615", Some(u64::MAX)),
            ("00018446744073709551615", None),
            ("0118446744073709551615", None),
            ("000000000000000000000x", None),
        ] {
            assert_eq!(unsigned(text.as_bytes()), value, "{text}");
        }
        for (text, value) in [
            ("4294967295", Some(u32::MAX)),
            ("4294967296", None),
            ("00000000005", Some(5)),
            ("000000000005", None),
        ] {
            assert_eq!(unsigned32(text.as_bytes()), value, "{text}");
        }
        for (text, value) in [
            ("-1", Some(-1)),
            ("-", Some(0)),
            ("2147483647", Some(i32::MAX)),
            ("2147483648", None),
            ("-2147483648", Some(i32::MIN)),
            ("00000000005", Some(5)),
            ("000000000005", None),
            ("-00000000005", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(signed32(text.as_bytes()), value, "{text}");
        }
        assert_eq!(strtol(b"-9"), Some(-9));
        assert_eq!(strtol(b"+9"), Some(9));
        assert_eq!(strtol(b"9x"), None);
        assert_eq!(strtol(b"9\0x"), Some(9));
        assert_eq!(strtol(b"\t9\tx"), Some(9));
        assert_eq!(strtol(b"000000000000000000000000009"), Some(9));
        assert_eq!(strtol(b""), None);
        assert_eq!(strtol(b"-"), None);
        assert_eq!(strtoul(b"-1"), None);
        assert_eq!(strtoul(b"4294967296"), Some(1 << 32));
    }
}
