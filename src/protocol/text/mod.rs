#![forbid(unsafe_code)]
//! Classic commands, both directions.
//!
//! Only blanks separate words; every other byte but the line end is part of one. A line ends at
//! `\n`, and one `\r` before it does not count.

// The keys of a multiget.
mod keys;

// Commands by their words.
mod line;

use memchr::memchr;

pub(super) use keys::word_end;
pub use keys::{NextKey, keys_length, lacks_end, next_key, next_key_by, other_key, usual_key};
use line::Line;

use super::Rules;
use super::request::{Key, Mode, Op, Parsed, Refusal, Request, Store, Style};
use super::words::word;

/// The longest key, unless the [rules](Rules) say otherwise.
pub const KEY_MAX: usize = 250;
/// The longest value that can be announced.
const LENGTH_MAX: i32 = i32::MAX - 2;
/// The longest line that may stand there without its end, unless it is a multiget; with longer keys, so
/// much more than a key.
const LINE_MAX: usize = 2048;
/// A multiget of so many bytes is answered before its line has ended. A shorter one is waited for, so
/// that a wrong key in it is the only answer, as with memcached.
const STREAM_FROM: usize = 16 << 10;
/// Shorter lines, end included, are no command at all.
const LINE_MIN: usize = 4;

pub const BAD_FORMAT: &str = "CLIENT_ERROR bad command line format";
pub const BAD_DELTA: &str = "CLIENT_ERROR invalid numeric delta argument";
pub const BAD_EXPTIME: &str = "CLIENT_ERROR invalid exptime argument";
pub const ERROR: &str = "ERROR";

/// What the start of `input` asks for.
pub fn parse(input: &[u8]) -> Parsed<'_> {
    parse_by(Rules::default(), input)
}

/// As [`parse`], by other rules than memcached's. In line where requests are planned, whoever else calls it.
#[inline(always)]
pub fn parse_by(rules: Rules, input: &[u8]) -> Parsed<'_> {
    if let Some(parsed) = usual_set(input) {
        return parsed;
    }
    if input.starts_with(b"get")
        && let Some(parsed) = parse_get(input)
    {
        return parsed;
    }
    parse_line(rules, input)
}

/// As [`parse_by`], for what is looked at as a whole line.
#[inline]
fn parse_line(rules: Rules, input: &[u8]) -> Parsed<'_> {
    let Some(end) = memchr(b'\n', input) else {
        return if input.len() > LINE_MAX {
            unfinished(rules, input)
        } else {
            Parsed::Incomplete
        };
    };
    let taken = end + 1;
    if taken < LINE_MIN {
        return refuse(BAD_FORMAT, taken);
    }
    let line = match &input[..end] {
        [line @ .., b'\r'] => line,
        line => line,
    };
    Line { line, taken, rules }.parse()
}

/// The longest line that may stand there without its end; for input buffers. A key of a multiget may
/// come after any number of others.
pub fn line_max(rules: Rules) -> usize {
    match rules.long_keys() {
        true => rules.key_max() + LINE_MAX,
        false => LINE_MAX,
    }
}

/// A line without its end, of more than [`LINE_MAX`] bytes.
#[cold]
fn unfinished(rules: Rules, input: &[u8]) -> Parsed<'_> {
    if rules.long_keys() && input.len() >= STREAM_FROM {
        // Any number of long keys may follow here too.
        let line = Line {
            line: input,
            taken: input.len(),
            rules,
        };
        let mut rest = input;
        let begun = match word(&mut rest) {
            Some(b"gat") => line.gat(rest, false),
            Some(b"gats") => line.gat(rest, true),
            _ => Parsed::Incomplete,
        };
        if let Parsed::Request { .. } = begun {
            return begun;
        }
    }
    if input.len() > line_max(rules) {
        Parsed::Close
    } else {
        Parsed::Incomplete
    }
}

/// `get` and `gets`, whose line need not be there as a whole: its keys are pulled one by one.
#[inline]
fn parse_get(input: &[u8]) -> Option<Parsed<'_>> {
    let (command, cas) = match input {
        [b'g', b'e', b't', b' ', ..] => (4, false),
        [b'g', b'e', b't', b's', b' ', ..] => (5, true),
        _ => return None,
    };
    if input.len() < STREAM_FROM && memchr(b'\n', input).is_none() {
        return Some(Parsed::Incomplete);
    }
    let blanks = input[command..].iter().position(|&byte| byte != b' ');
    let start = match blanks {
        Some(blanks) => command + blanks,
        None => return Some(Parsed::Incomplete),
    };
    Some(match &input[start..] {
        [b'\n', ..] => refuse(BAD_FORMAT, start + 1),
        [b'\r', b'\n', ..] => refuse(BAD_FORMAT, start + 2),
        [b'\r'] => Parsed::Incomplete,
        _ => Parsed::Request {
            request: Request {
                op: Op::Get { cas, touch: None },
                style: Style::Text { noreply: false },
            },
            taken: start,
        },
    })
}

/// A `get` of one key, as it nearly always stands there: the key, and the bytes taken. Nothing does not
/// say that there is none.
#[inline(always)]
pub fn usual_get(input: &[u8]) -> Option<(&[u8], usize)> {
    if !input.starts_with(b"get ") {
        return None;
    }
    let (key, taken) = usual_key(&input[3..])?;
    let end = 3 + taken;
    input[end..].starts_with(b"\r\n").then_some((key, end + 2))
}

/// A `set` as it nearly always stands there: one blank between words, digits, and no more of them than
/// always fit. Nothing does not say that there is none.
#[inline(always)]
fn usual_set(input: &[u8]) -> Option<Parsed<'_>> {
    let [b's', b'e', b't', b' ', line @ ..] = input else {
        return None;
    };
    let key = &line[..word_end(line).filter(|length| (1..=KEY_MAX).contains(length))?];
    let rest = line[key.len()..].strip_prefix(b" ")?;
    let (flags, rest) = usual_number(rest)?;
    let (exptime, rest) = usual_number(rest.strip_prefix(b" ")?)?;
    let (length, rest) = usual_number(rest.strip_prefix(b" ")?)?;
    let (noreply, rest) = match rest {
        [b'\r', b'\n', rest @ ..] => (false, rest),
        _ => (true, rest.strip_prefix(b" noreply\r\n")?),
    };
    Some(Parsed::Request {
        request: Request {
            op: Op::Store(Store {
                flags,
                exptime: i64::from(exptime),
                ..Store::new(plain(key), Mode::Set, length as usize)
            }),
            style: Style::Text { noreply },
        },
        taken: input.len() - rest.len(),
    })
}

/// One to nine digits, and what follows them.
#[inline(always)]
pub(super) fn usual_number(text: &[u8]) -> Option<(u32, &[u8])> {
    let (mut value, mut digits) = (0, 0);
    while let Some(digit) = text.get(digits).map(|byte| byte.wrapping_sub(b'0'))
        && digit <= 9
    {
        if digits == 9 {
            return None;
        }
        value = value * 10 + u32::from(digit);
        digits += 1;
    }
    (digits > 0).then_some((value, &text[digits..]))
}
/// Bytes up to and including the line end, if it is there.
pub fn skip_line(input: &[u8]) -> Option<usize> {
    memchr(b'\n', input).map(|end| end + 1)
}

fn refuse<'a>(line: &'static str, taken: usize) -> Parsed<'a> {
    Parsed::Refused {
        reply: Refusal::Line(line),
        taken,
        skip: 0,
        close: false,
    }
}
fn plain(raw: &[u8]) -> Key<'_> {
    Key { raw, base64: false }
}
#[cfg(test)]
mod tests {
    use super::keys::any_key;
    use super::*;

    fn refused(input: &str) -> (Refusal, usize, u64) {
        match parse(input.as_bytes()) {
            Parsed::Refused {
                reply,
                taken,
                skip,
                close: false,
            } => (reply, taken, skip),
            parsed => panic!("{input:?}: {parsed:?}"),
        }
    }

    /// The bytes of `lines`, each of which may have been damaged in one place.
    fn damaged<'l>(lines: &'l [&str]) -> impl Iterator<Item = Vec<u8>> + 'l {
        const OTHERS: &[u8] = b"\x00\t\n\r 09:-k\xa0\xff";
        lines.iter().flat_map(|line| {
            let bytes = line.as_bytes();
            let whole = std::iter::once(bytes.to_vec());
            let places = (0..bytes.len()).flat_map(move |at| {
                let replaced = OTHERS.iter().map(move |&other| {
                    let mut line = bytes.to_vec();
                    line[at] = other;
                    line
                });
                let added = OTHERS.iter().map(move |&other| {
                    let mut line = bytes.to_vec();
                    line.insert(at, other);
                    line
                });
                let cut = [
                    bytes[..at].to_vec(),
                    [&bytes[..at], &bytes[at + 1..]].concat(),
                ];
                replaced.chain(added).chain(cut)
            });
            whole.chain(places)
        })
    }

    #[test]
    fn a_usual_set_is_what_any_set_would_be() {
        let lines = [
            "set a 0 0 1\r\nx\r\nset b 0 0 1\r\n",
            "set key_000000000000000000001 12345 86400 100\r\nvalue",
            "set key_000000000000000000001 999999999 999999999 999999999 noreply\r\nvalue",
            "set k 0 0 1 noreply \r\nset k 0 0 1 2 noreply\r\n",
        ];
        let mut usual = 0;
        for line in damaged(&lines) {
            if let Some(parsed) = usual_set(&line) {
                assert_eq!(parsed, parse_line(Rules::default(), &line), "{line:?}");
                usual += 1;
            }
        }
        assert!(usual > 300, "{usual} of them are usual");
    }

    #[test]
    fn a_usual_get_is_what_any_get_would_be() {
        let lines = [
            "get key_000000000000000000001\r\nget b\r\nnext one",
            "get k\r\nget other keys\r\n",
            "gets key_000000000000000000001 another one\r\n",
        ];
        let mut usual = 0;
        for line in damaged(&lines) {
            let Some((key, taken)) = usual_get(&line) else {
                continue;
            };
            usual += 1;
            let Some(Parsed::Request { request, taken: at }) = parse_get(&line) else {
                panic!("{line:?}");
            };
            let how = Op::Get {
                cas: false,
                touch: None,
            };
            assert_eq!(request.op, how, "{line:?}");
            let rest = &line[at - 1..];
            let first = any_key(Rules::default(), rest);
            let expected = NextKey::Key {
                key,
                taken: key.len() + 1,
            };
            assert_eq!(first, expected, "{line:?}");
            let end = any_key(Rules::default(), &rest[key.len() + 1..]);
            assert_eq!(end, NextKey::End { taken: 2 }, "{line:?}");
            assert_eq!(taken, at + key.len() + 2);
        }
        assert!(usual > 300, "{usual} of them are usual");
    }

    #[test]
    fn wrong_lines_get_the_error_of_memcached() {
        let line = Refusal::Line;
        let long = "k".repeat(251);
        for (input, reply, skip) in [
            ("\r\n", line(BAD_FORMAT), 0),
            ("a\r\n", line(BAD_FORMAT), 0),
            ("mn\n", line(BAD_FORMAT), 0),
            ("ab\r\n", line(ERROR), 0),
            ("nonsense\r\n", line(ERROR), 0),
            ("nonsense noreply\r\n", Refusal::Silent, 0),
            (
                "nonsense b c d e f g h i j k l m n o p q r s t u v noreply w\r\n",
                Refusal::Silent,
                0,
            ),
            (
                "nonsense b c d e f g h i j k l m n o p q r s t u v w noreply\r\n",
                line(ERROR),
                0,
            ),
            (" get a\r\n", line(ERROR), 0),
            ("get\r\n", line(BAD_FORMAT), 0),
            ("get  \r\n", line(BAD_FORMAT), 0),
            ("gets \n", line(BAD_FORMAT), 0),
            ("gat 0\r\n", line(BAD_FORMAT), 0),
            ("gat x a\r\n", line(BAD_EXPTIME), 0),
            ("set a 0 0\r\n", line(BAD_FORMAT), 0),
            ("set a 0 0 -1\r\n", line(BAD_FORMAT), 0),
            ("set a 0 0 2147483646\r\n", line(BAD_FORMAT), 0),
            ("set a 0 0 x noreply\r\n", line(BAD_FORMAT), 0),
            ("set a x 0 5\r\n", line(BAD_FORMAT), 7),
            ("set a 0 x 5 noreply\r\n", Refusal::Silent, 7),
            ("cas a 0 0 5\r\n", line(BAD_FORMAT), 7),
            ("cas a 0 0 5 -1\r\n", line(BAD_FORMAT), 7),
            ("delete\r\n", line(BAD_FORMAT), 0),
            ("incr a\r\n", line(BAD_FORMAT), 0),
            ("incr a x\r\n", line(BAD_DELTA), 0),
            ("incr a -1 noreply\r\n", Refusal::Silent, 0),
            ("touch a\r\n", line(BAD_FORMAT), 0),
            ("touch a x\r\n", line(BAD_EXPTIME), 0),
            ("verbosity\r\n", line(BAD_FORMAT), 0),
            ("verbosity x\r\n", line(BAD_FORMAT), 0),
            ("cache_memlimit\r\n", line(ERROR), 0),
        ] {
            assert_eq!(refused(input), (reply, input.len(), skip), "{input:?}");
        }
        assert_eq!(refused(&format!("set {long} 0 0 5\r\n")).2, 7);
        assert_eq!(refused(&format!("delete {long}\r\n")).0, line(BAD_FORMAT));
    }

    #[test]
    fn requests_are_taken_apart() {
        let Parsed::Request { request, taken } = parse(b"set k 4294967297 -5 3 noreply\r\nabc\r\n")
        else {
            panic!()
        };
        assert_eq!(taken, 31);
        assert_eq!(request.style, Style::Text { noreply: true });
        let Op::Store(store) = request.op else {
            panic!()
        };
        assert_eq!(
            (store.key.raw, store.flags, store.exptime, store.length),
            (&b"k"[..], 1, -5, 3)
        );
        let Parsed::Request { request, taken } = parse(b"gats  60   a b\r\n") else {
            panic!()
        };
        assert_eq!(
            request.op,
            Op::Get {
                cas: true,
                touch: Some(60)
            }
        );
        assert_eq!(
            next_key(&b"gats  60   a b\r\n"[taken..]),
            NextKey::Key {
                key: b"a",
                taken: 4
            }
        );
        assert!(matches!(parse(b"delete k 0\r\n"), Parsed::Request { .. }));
    }

    #[test]
    fn long_lines_without_end() {
        assert_eq!(parse(&[b'x'; 2048]), Parsed::Incomplete);
        assert_eq!(parse(&[b'x'; 2049]), Parsed::Close);
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Parsed::Close);
    }

    #[test]
    fn a_line_may_arrive_in_pieces() {
        for input in [
            "set k 0 0 3 noreply\r\n",
            "gat 0 a b\r\n",
            "delete k\r\n",
            "flush_all 5\r\n",
        ] {
            for end in 0..input.len() {
                assert_eq!(
                    parse(&input.as_bytes()[..end]),
                    Parsed::Incomplete,
                    "{:?}",
                    &input[..end]
                );
            }
        }
    }
}
