#![forbid(unsafe_code)]
//! Where the answers of a server end, and what they come to; they are not taken apart any further.
//!
//! A server is trusted no more than a client: what does not have the shape that its request calls for
//! is [`Framed::Garbage`], and whoever reads it can no longer tell where the next answer begins.

use memchr::{memchr, memchr2};

use super::{Rules, number, text};

/// The longest line of an answer, as far as keys are no longer than memcached's.
const LINE_MAX: usize = 2048;
/// The longest value that is believed in.
const VALUE_MAX: u64 = 1 << 30;
const END: &[u8] = b"END\r\n";
const CRLF: &[u8] = b"\r\n";
/// Bytes of a binary header.
pub const HEADER: usize = 24;
/// The first byte of a binary answer.
const MAGIC: u8 = 0x81;

/// The shape of the answer that a request calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// At most one value, and `END`.
    Get,
    /// Any number of values, and `END`.
    Gets,
    /// One line of a classic command.
    Line,
    /// One line of a meta command, or a value.
    Meta,
    /// One line of `repl position` or `repl lease`.
    Repl,
    /// A binary packet with this opcode.
    Binary(u8),
}

/// What an answer comes to, whatever its dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A value, or what else was asked to be shown.
    Hit,
    /// The key is not there.
    Miss,
    /// It has been done.
    Done,
    /// A condition did not hold: `NOT_STORED`, `EXISTS`, `NS`, `EX`.
    Refused,
    /// The request is wrong.
    ClientError,
    /// The server cannot do it, at least not now.
    ServerError,
    /// The server does not know the command, and may take what follows it for others.
    Unknown,
}

/// What the start of the input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framed {
    /// A whole answer, or the last part of one.
    Whole { length: usize, verdict: Verdict },
    /// A value: a line of `head` bytes in which the key is `key_start..key_end` (empty but for
    /// `VALUE`), then `body` bytes with the line end.
    Value {
        key_start: usize,
        key_end: usize,
        head: usize,
        body: usize,
    },
    /// Nothing can be said before more bytes arrive.
    Incomplete,
    /// No answer of this shape.
    Garbage,
}

/// The longest line of an answer by these rules: it may have a key, and that in base64.
pub fn line_max(rules: Rules) -> usize {
    match rules.long_keys() {
        true => rules.key_max() / 3 * 4 + LINE_MAX,
        false => LINE_MAX,
    }
}

/// Finds the end of the answer, or of its next part, at the start of `input`; no line is longer than
/// `most`.
#[inline]
pub fn frame(shape: Shape, most: usize, input: &[u8]) -> Framed {
    match shape {
        Shape::Get => get(most, input),
        Shape::Gets => values(most, input),
        Shape::Line => line(most, input, classic),
        Shape::Meta => meta(most, input),
        Shape::Repl => line(most, input, |text| {
            (text.starts_with(b"POSITION ") || text.starts_with(b"LEASE ")).then_some(Verdict::Done)
        }),
        Shape::Binary(opcode) => binary(opcode, input),
    }
}

/// A value with all that belongs to it, if it is at hand; else as [`values`].
#[inline]
fn get(most: usize, input: &[u8]) -> Framed {
    let framed = values(most, input);
    if let Framed::Value { head, body, .. } = framed
        && let Some(end) = input.get(head + body..head + body + END.len())
    {
        return if end == END && &input[head + body - CRLF.len()..head + body] == CRLF {
            Framed::Whole {
                length: head + body + END.len(),
                verdict: Verdict::Hit,
            }
        } else {
            Framed::Garbage
        };
    }
    framed
}

#[inline]
fn values(most: usize, input: &[u8]) -> Framed {
    if let Some(rest) = input.strip_prefix(b"VALUE ") {
        return value_line(most, rest);
    }
    if input.starts_with(END) {
        return Framed::Whole {
            length: END.len(),
            verdict: Verdict::Miss,
        };
    }
    if b"VALUE ".starts_with(input) || END.starts_with(input) {
        return Framed::Incomplete;
    }
    line(most, input, |_| None)
}

/// Where the key of a `VALUE` begins.
const KEY: usize = b"VALUE ".len();

/// `key flags length [cas]`
#[inline]
fn value_line(most: usize, rest: &[u8]) -> Framed {
    usual_value_line(rest).unwrap_or_else(|| any_value_line(most, rest))
}

/// As it nearly always stands there: a key of plain text, and numbers that always fit, without a `cas`.
/// Nothing does not say that it is wrong.
#[inline(always)]
fn usual_value_line(rest: &[u8]) -> Option<Framed> {
    let key = text::word_end(rest).filter(|&length| length > 0)?;
    let (_, words) = text::usual_number(rest[key..].strip_prefix(b" ")?)?;
    let (length, words) = text::usual_number(words.strip_prefix(b" ")?)?;
    let after = words.strip_prefix(CRLF)?;
    Some(Framed::Value {
        key_start: KEY,
        key_end: KEY + key,
        head: KEY + rest.len() - after.len(),
        body: length as usize + CRLF.len(),
    })
}

#[inline(never)]
fn any_value_line(most: usize, rest: &[u8]) -> Framed {
    // A key may have any byte but a blank and a line end.
    let Some(key) = memchr2(b' ', b'\n', rest) else {
        return unfinished(most, rest);
    };
    let Some(end) = memchr(b'\n', &rest[key..]).map(|end| key + end) else {
        return unfinished(most, rest);
    };
    let Some((b'\r', words)) = rest[key..end].split_last() else {
        return Framed::Garbage;
    };
    let mut words = words.split(|&byte| byte == b' ').skip(1);
    let flags = words.next().and_then(number::unsigned);
    let length = words.next().and_then(number::unsigned);
    let (Some(_), Some(length @ 0..=VALUE_MAX), 1..) = (flags, length, key) else {
        return Framed::Garbage;
    };
    if words
        .next()
        .is_some_and(|cas| number::unsigned(cas).is_none())
        || words.next().is_some()
    {
        return Framed::Garbage;
    }
    Framed::Value {
        key_start: KEY,
        key_end: KEY + key,
        head: KEY + end + 1,
        body: length as usize + CRLF.len(),
    }
}

/// More may come, unless it is too much already.
fn unfinished(most: usize, line: &[u8]) -> Framed {
    if line.len() > most {
        Framed::Garbage
    } else {
        Framed::Incomplete
    }
}

fn line(most: usize, input: &[u8], own: fn(&[u8]) -> Option<Verdict>) -> Framed {
    let Some(end) = memchr(b'\n', input) else {
        return unfinished(most, input);
    };
    let Some((b'\r', text)) = input[..end].split_last() else {
        return Framed::Garbage;
    };
    if text.len() > most {
        return Framed::Garbage;
    }
    match own(text).or_else(|| error(text)) {
        Some(verdict) => Framed::Whole {
            length: end + 1,
            verdict,
        },
        None => Framed::Garbage,
    }
}

/// What any command may be answered.
fn error(text: &[u8]) -> Option<Verdict> {
    if text == b"ERROR" {
        Some(Verdict::Unknown)
    } else if text.starts_with(b"SERVER_ERROR") {
        Some(Verdict::ServerError)
    } else if text.starts_with(b"CLIENT_ERROR") {
        Some(Verdict::ClientError)
    } else if text.starts_with(b"ERROR ") {
        // `ERROR Too many open connections`
        Some(Verdict::ServerError)
    } else {
        None
    }
}

#[inline]
fn classic(text: &[u8]) -> Option<Verdict> {
    Some(match text {
        b"STORED" | b"DELETED" | b"TOUCHED" | b"OK" => Verdict::Done,
        b"NOT_FOUND" => Verdict::Miss,
        b"NOT_STORED" | b"EXISTS" => Verdict::Refused,
        [b'0'..=b'9', ..] if number::unsigned(text.trim_ascii_end()).is_some() => Verdict::Done,
        _ if text.starts_with(b"VERSION ") => Verdict::Done,
        _ => return None,
    })
}

#[inline]
fn meta(most: usize, input: &[u8]) -> Framed {
    if let Some(rest) = input.strip_prefix(b"VA ") {
        let Some(end) = memchr(b'\n', rest) else {
            return unfinished(most, rest);
        };
        let Some((b'\r', words)) = rest[..end].split_last() else {
            return Framed::Garbage;
        };
        let digits = words.split(|&byte| byte == b' ').next();
        let Some(length @ 0..=VALUE_MAX) = digits.and_then(number::unsigned) else {
            return Framed::Garbage;
        };
        let (head, body) = (3 + end + 1, length as usize + CRLF.len());
        return match input.get(head..head + body) {
            Some(value) if value.ends_with(CRLF) => Framed::Whole {
                length: head + body,
                verdict: Verdict::Hit,
            },
            Some(_) => Framed::Garbage,
            None => Framed::Value {
                key_start: 0,
                key_end: 0,
                head,
                body,
            },
        };
    }
    line(most, input, |text| {
        let (code, rest) = text.split_at_checked(2)?;
        if !rest.is_empty() && rest[0] != b' ' {
            return None;
        }
        Some(match code {
            b"HD" | b"MN" => Verdict::Done,
            b"EN" | b"NF" => Verdict::Miss,
            b"NS" | b"EX" => Verdict::Refused,
            b"ME" => Verdict::Hit,
            _ => return None,
        })
    })
}

/// The status of a whole binary answer.
pub fn status(packet: &[u8]) -> u16 {
    match packet {
        [_, _, _, _, _, _, high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

#[inline]
fn binary(opcode: u8, input: &[u8]) -> Framed {
    let Some(header) = input.first_chunk::<HEADER>() else {
        return match input.first() {
            None | Some(&MAGIC) => Framed::Incomplete,
            Some(_) => Framed::Garbage,
        };
    };
    let body = u64::from(u32::from_be_bytes([
        header[8], header[9], header[10], header[11],
    ]));
    let inside = u64::from(u16::from_be_bytes([header[2], header[3]])) + u64::from(header[4]);
    if header[0] != MAGIC || header[1] != opcode || inside > body || body > VALUE_MAX + 0x1_0100 {
        return Framed::Garbage;
    }
    let length = HEADER + body as usize;
    if input.len() < length {
        return Framed::Value {
            key_start: 0,
            key_end: 0,
            head: HEADER,
            body: body as usize,
        };
    }
    let verdict = match status(header) {
        0x00 if matches!(opcode, 0x00 | 0x0c | 0x1d | 0x23) => Verdict::Hit,
        0x00 => Verdict::Done,
        0x01 => Verdict::Miss,
        0x02 | 0x05 => Verdict::Refused,
        0x03 | 0x04 | 0x06 => Verdict::ClientError,
        0x81 => Verdict::Unknown,
        _ => Verdict::ServerError,
    };
    Framed::Whole { length, verdict }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(shape: Shape, input: &[u8]) -> Framed {
        super::frame(shape, LINE_MAX, input)
    }

    fn whole(shape: Shape, input: &str) -> (usize, Verdict) {
        match frame(shape, input.as_bytes()) {
            Framed::Whole { length, verdict } => (length, verdict),
            other => panic!("{input:?}: {other:?}"),
        }
    }

    #[test]
    fn lines_have_a_verdict() {
        use Verdict::{ClientError, Done, Hit, Miss, Refused, ServerError, Unknown};
        for (shape, line, verdict) in [
            (Shape::Line, "STORED", Done),
            (Shape::Line, "18446744073709551615", Done),
            (Shape::Line, "5  ", Done),
            (Shape::Line, "NOT_FOUND", Miss),
            (Shape::Line, "EXISTS", Refused),
            (Shape::Line, "ERROR", Unknown),
            (Shape::Line, "ERROR Too many open connections", ServerError),
            (Shape::Get, "SERVER_ERROR out of memory", ServerError),
            (Shape::Gets, "CLIENT_ERROR bad", ClientError),
            (Shape::Gets, "END", Miss),
            (Shape::Meta, "HD Oabc", Done),
            (Shape::Meta, "EN", Miss),
            (Shape::Meta, "NF k", Miss),
            (Shape::Meta, "NS", Refused),
            (Shape::Meta, "ME key exp=-1", Hit),
        ] {
            let input = format!("{line}\r\nmore");
            assert_eq!(whole(shape, &input), (line.len() + 2, verdict), "{line}");
            for end in 0..line.len() + 2 {
                let part = &input.as_bytes()[..end];
                assert_eq!(frame(shape, part), Framed::Incomplete, "{part:?}");
            }
        }
    }

    #[test]
    fn values_end_where_their_length_says() {
        let one = "VALUE k 0 5\r\na\r\nbc\r\nEND\r\n";
        assert_eq!(whole(Shape::Get, one), (one.len(), Verdict::Hit));
        let value = Framed::Value {
            key_start: 6,
            key_end: 7,
            head: 13,
            body: 7,
        };
        assert_eq!(frame(Shape::Gets, one.as_bytes()), value);
        for end in 13..one.len() {
            assert_eq!(frame(Shape::Get, &one.as_bytes()[..end]), value);
        }
        for end in 0..13 {
            assert_eq!(
                frame(Shape::Get, &one.as_bytes()[..end]),
                Framed::Incomplete
            );
        }
        let meta = "VA 2 f1 s2\r\nab\r\n";
        assert_eq!(whole(Shape::Meta, meta), (meta.len(), Verdict::Hit));
        let odd = "VALUE c\rr\t\0 0 1\r\nx\r\nEND\r\n";
        assert_eq!(whole(Shape::Get, odd), (odd.len(), Verdict::Hit));
        assert!(matches!(
            frame(Shape::Gets, b"VALUE k 1 2 18446744073709551615\r\n"),
            Framed::Value { body: 4, .. }
        ));
    }

    #[test]
    fn a_usual_value_line_is_what_any_would_be() {
        let mut usual = 0;
        for key in [
            "k",
            "key:0000000000000001",
            "c\r",
            "n\n",
            "b ",
            "",
            "\u{e9}\u{e9}",
        ] {
            for flags in ["0", "4294967295", "", "-1", "x", "999999999"] {
                for length in [
                    "1",
                    "1048576",
                    "",
                    "1073741825",
                    "999999999",
                    "18446744073709551616",
                ] {
                    for end in ["\r\n", "\n", " 7\r\n", " \r\n", "\r", ""] {
                        let line = format!("{key} {flags} {length}{end}");
                        let padded = format!("{line}and much more that follows");
                        for text in [line, padded] {
                            if let Some(framed) = usual_value_line(text.as_bytes()) {
                                assert_eq!(
                                    framed,
                                    any_value_line(LINE_MAX, text.as_bytes()),
                                    "{text:?}"
                                );
                                usual += 1;
                            }
                        }
                    }
                }
            }
        }
        assert!(usual > 10, "{usual}");
    }

    #[test]
    fn nonsense_is_garbage() {
        let long = "x".repeat(LINE_MAX + 1);
        let long_value = format!("VALUE {long}");
        for (shape, input) in [
            (Shape::Get, "HTTP/1.1 400 Bad Request\r\n"),
            (Shape::Get, "STORED\r\n"),
            (Shape::Get, "VALUE k 0 1\r\nabEND\r\n\r\n"),
            (Shape::Get, "VALUE k 0 1\r\na\r\nSTORED\r\n"),
            (Shape::Get, "VALUE k 0 -1\r\n"),
            (Shape::Get, "VALUE k 0 99999999999\r\n"),
            (Shape::Get, "VALUE k 0 18446744073709551616\r\n"),
            (Shape::Get, "VALUE k 0 1 2 3\r\n"),
            (Shape::Get, "VALUE k 0\r\n"),
            (Shape::Get, "VALUE  0 1\r\n"),
            (Shape::Get, "VALUE k 0 1\n"),
            (Shape::Get, &long_value),
            (Shape::Line, "VALUE k 0 1\r\n"),
            (Shape::Line, "END\r\n"),
            (Shape::Line, "STORED\n"),
            (Shape::Line, "\r\n"),
            (Shape::Line, &long),
            (Shape::Meta, "STORED\r\n"),
            (Shape::Meta, "VA x\r\n"),
            (Shape::Meta, "VA 1\r\nabc\r\n"),
            (Shape::Meta, "HDX\r\n"),
            (Shape::Binary(0), "STORED\r\n"),
        ] {
            assert_eq!(frame(shape, input.as_bytes()), Framed::Garbage, "{input}");
        }
    }

    fn packet(opcode: u8, status: u16, key: u16, body: u32) -> Vec<u8> {
        let mut packet = vec![MAGIC, opcode];
        packet.extend_from_slice(&key.to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(&status.to_be_bytes());
        packet.extend_from_slice(&body.to_be_bytes());
        packet.resize(HEADER + body as usize, 0);
        packet
    }

    #[test]
    fn packets() {
        for (status, verdict) in [
            (0, Verdict::Hit),
            (1, Verdict::Miss),
            (2, Verdict::Refused),
            (4, Verdict::ClientError),
            (0x81, Verdict::Unknown),
            (0x82, Verdict::ServerError),
        ] {
            let packet = packet(0, status, 0, 9);
            let whole = Framed::Whole {
                length: packet.len(),
                verdict,
            };
            assert_eq!(frame(Shape::Binary(0), &packet), whole);
            assert_eq!(frame(Shape::Binary(1), &packet), Framed::Garbage);
            assert_eq!(frame(Shape::Binary(0), &packet[..23]), Framed::Incomplete);
        }
        assert_eq!(
            frame(Shape::Binary(0), &packet(0, 0, 9, 8)),
            Framed::Garbage,
            "a key longer than the body"
        );
        let mut huge = packet(0, 0, 0, 0);
        huge[8] = 0xff;
        assert_eq!(frame(Shape::Binary(0), &huge), Framed::Garbage);
    }
}
