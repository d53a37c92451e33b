#![forbid(unsafe_code)]
//! Meta commands: `mg ms md ma mn me`, a key, and flags of one letter with an argument glued on.

use super::Rules;
use super::base64;
use super::number;
use super::request::{
    Arith, Create, Delete, Fetch, Key, Mode, Op, Parsed, Refusal, Request, Store, Style,
};
use super::text::BAD_FORMAT;
use super::words::{word, words};

/// Words of a request, command and key included.
const WORDS_MAX: usize = 20;
/// Words whose first byte is looked at before anything else.
const WORDS_SEEN: usize = 24;
/// An opaque token with its letter.
const OPAQUE_MAX: usize = 32;
/// What comes after the value of `ms`.
const LINE_END: u64 = 2;

pub const TOO_MANY_FLAGS: &str = "CLIENT_ERROR options flags are too long";
pub const DUPLICATE_FLAG: &str = "CLIENT_ERROR duplicate flag";
/// Hexadecimal digits of the root of a value (`H`, Larder's own).
const ROOT_DIGITS: usize = 64;
pub const INVALID_FLAG: &str = "CLIENT_ERROR invalid flag";
pub const BAD_TOKEN: &str = "CLIENT_ERROR bad token in command line format";
pub const BAD_INITIAL: &str = "CLIENT_ERROR invalid numeric initial value";
pub const BAD_DELTA: &str = "CLIENT_ERROR invalid numeric delta value";
pub const BAD_KEY: &str = "CLIENT_ERROR error decoding key";
pub const LONG_OPAQUE: &str = "CLIENT_ERROR opaque token too long";
/// What `ma` says of all of them but the last.
pub const ARITH_FLAG: &str = "CLIENT_ERROR invalid or duplicate flag";
pub const STORE_MODE: &str = "CLIENT_ERROR invalid mode for ms M token";
pub const ARITH_MODE: &str = "CLIENT_ERROR invalid mode for ma M token";

/// Takes a line apart whose first word is a meta command; `rest` is what stands behind that word.
pub(super) fn parse<'a>(rules: Rules, command: u8, mut rest: &'a [u8], taken: usize) -> Parsed<'a> {
    let refuse = |line| Parsed::Refused {
        reply: Refusal::Line(line),
        taken,
        skip: 0,
        close: false,
    };
    let request = |op, style| Parsed::Request {
        request: Request { op, style },
        taken,
    };
    if command == b'n' {
        return request(
            Op::Noop,
            Style::Meta {
                flags: &[],
                quiet: false,
            },
        );
    }
    let Some(key) = word(&mut rest) else {
        return refuse(BAD_FORMAT);
    };
    if command == b'e' {
        if key.len() > rules.key_max() || !words(rest).take(WORDS_SEEN - 2).all(begins_a_flag) {
            return refuse(BAD_FORMAT);
        }
        // Where memcached looks for it, but without wanting a word behind it.
        let base64 = words(rest).next() == Some(b"b");
        if base64 && !base64::is_key(key) {
            return refuse(BAD_FORMAT);
        }
        return request(
            Op::Describe {
                key: Key { raw: key, base64 },
            },
            Style::Meta {
                flags: rest,
                quiet: false,
            },
        );
    }
    let mut length = 0;
    if command == b's' {
        match word(&mut rest).and_then(number::signed32) {
            Some(bytes) if (0..=i32::MAX - 2).contains(&bytes) => length = bytes as usize,
            _ => return refuse(BAD_FORMAT),
        }
    }
    let before = if command == b's' { 3 } else { 2 };
    let flags = match Flags::read(rules, key, rest, before) {
        Ok(flags) => flags,
        // Told before anything else, even the length: there is nothing to skip.
        Err(Wrong::Word) => return refuse(BAD_FORMAT),
        Err(Wrong::Flags(line)) => {
            let line = if command == b'a' && line != LONG_OPAQUE {
                ARITH_FLAG
            } else {
                line
            };
            let skip = if command == b's' {
                length as u64 + LINE_END
            } else {
                0
            };
            return Parsed::Refused {
                reply: Refusal::Line(line),
                taken,
                skip,
                close: false,
            };
        }
    };
    if flags.root && command != b'g' {
        return Parsed::Refused {
            reply: Refusal::Line(INVALID_FLAG),
            taken,
            skip: if command == b's' {
                length as u64 + LINE_END
            } else {
                0
            },
            close: false,
        };
    }
    let key = Key {
        raw: key,
        base64: flags.base64,
    };
    let style = Style::Meta {
        flags: rest,
        quiet: flags.quiet,
    };
    match command {
        b'g' => request(
            Op::Fetch(Fetch {
                key,
                value: flags.value,
                touch: flags.touch,
                vivify: flags.vivify,
                recache: flags.recache,
                known_cas: flags.cas,
                new_cas: flags.new_cas,
                bump: flags.bump,
            }),
            style,
        ),
        b's' => {
            let mode = match flags.mode {
                None | Some(b'S') => Mode::Set,
                Some(b'E') => Mode::Add,
                Some(b'A') => Mode::Append,
                Some(b'P') => Mode::Prepend,
                Some(b'R') => Mode::Replace,
                Some(_) => {
                    let reply = Refusal::Line(STORE_MODE);
                    return Parsed::Refused {
                        reply,
                        taken,
                        skip: length as u64 + LINE_END,
                        close: false,
                    };
                }
            };
            request(
                Op::Store(Store {
                    key,
                    mode,
                    length,
                    flags: flags.client,
                    exptime: flags.touch.unwrap_or(0),
                    cas: flags.cas,
                    // 0 asks for the next id, here alone.
                    new_cas: flags.new_cas.filter(|&cas| cas != 0),
                    invalidate: flags.stale,
                    vivify: flags.vivify,
                    lease: None,
                }),
                style,
            )
        }
        b'd' => request(
            Op::Delete(Delete {
                key,
                cas: flags.cas,
                new_cas: flags.new_cas,
                stale: flags.stale,
                drop_value: flags.drop_value,
                touch: flags.touch,
                flags: flags.client,
            }),
            style,
        ),
        _ => {
            let up = match flags.mode {
                None | Some(b'I' | b'+') => true,
                Some(b'D' | b'-') => false,
                Some(_) => return refuse(ARITH_MODE),
            };
            request(
                Op::Arith(Arith {
                    key,
                    up,
                    delta: flags.delta,
                    cas: flags.cas,
                    new_cas: flags.new_cas,
                    touch: flags.touch,
                    create: flags.vivify.map(|exptime| Create {
                        initial: flags.initial,
                        exptime,
                    }),
                }),
                style,
            )
        }
    }
}

/// What is wrong with flags.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// A word begins with what can be no flag.
    Word,
    Flags(&'static str),
}

fn begins_a_flag(word: &[u8]) -> bool {
    matches!(word[0], b'0'..=b'9' | b'A'..=b'z')
}

/// What the flags of a request say.
#[derive(Debug)]
struct Flags {
    base64: bool,
    quiet: bool,
    value: bool,
    bump: bool,
    stale: bool,
    drop_value: bool,
    root: bool,
    touch: Option<i64>,
    vivify: Option<i64>,
    recache: Option<i64>,
    cas: Option<u64>,
    new_cas: Option<u64>,
    client: u32,
    initial: u64,
    delta: u64,
    mode: Option<u8>,
}

impl Flags {
    /// Reads them all before any error but those that leave nothing to read on for is told: the last
    /// one found is what the client hears, as with memcached.
    fn read(rules: Rules, key: &[u8], rest: &[u8], before: usize) -> Result<Flags, Wrong> {
        let mut flags = Flags {
            base64: false,
            quiet: false,
            value: false,
            bump: true,
            stale: false,
            drop_value: false,
            root: false,
            touch: None,
            vivify: None,
            recache: None,
            cas: None,
            new_cas: None,
            client: 0,
            initial: 0,
            delta: 1,
            mode: None,
        };
        let mut count = before;
        let mut seen = 0u64;
        let mut wrong = None;
        // An error behind which only the form of the others counts.
        let mut last = None;
        let mut opaque = 0;
        for token in words(rest) {
            let (letter, argument) = (token[0], &token[1..]);
            count += 1;
            if !begins_a_flag(token) && count <= WORDS_SEEN {
                return Err(Wrong::Word);
            }
            if last.is_some() || count > WORDS_MAX {
                continue;
            }
            // No two letters share a bit; a digit is no flag anyway.
            let bit = 1u64 << (letter & 63);
            if seen & bit != 0 && !letter.is_ascii_digit() {
                last = Some(DUPLICATE_FLAG);
                continue;
            }
            seen |= bit;
            match letter {
                b'b' => {
                    flags.base64 = true;
                    if !base64::is_key(key) {
                        wrong = Some(BAD_KEY);
                    }
                }
                b'N' | b'T' | b'R' => match number::time(argument, rules.long_times) {
                    None => wrong = Some(BAD_TOKEN),
                    time if letter == b'N' => flags.vivify = time,
                    time if letter == b'T' => flags.touch = time,
                    time => flags.recache = time,
                },
                b'C' | b'E' => match number::unsigned(argument) {
                    None => wrong = Some(BAD_TOKEN),
                    cas if letter == b'C' => flags.cas = cas,
                    cas => flags.new_cas = cas,
                },
                b'F' => match number::unsigned32(argument) {
                    Some(client) => flags.client = client,
                    None => wrong = wrong.or(Some(BAD_FORMAT)),
                },
                b'J' => match number::unsigned(argument) {
                    Some(initial) => flags.initial = initial,
                    None => wrong = Some(BAD_INITIAL),
                },
                b'D' => match number::unsigned(argument) {
                    Some(delta) => flags.delta = delta,
                    None => wrong = Some(BAD_DELTA),
                },
                // A NUL byte is no mode to memcached, a missing one is a wrong one.
                b'M' => {
                    flags.mode =
                        Some(argument.first().copied().unwrap_or(b' ')).filter(|&mode| mode != 0)
                }
                b'O' => opaque = token.len(),
                b'q' => flags.quiet = true,
                b'v' => flags.value = true,
                b'u' => flags.bump = false,
                b'I' => flags.stale = true,
                b'x' => flags.drop_value = true,
                b'H' => {
                    flags.root = true;
                    let hex = argument.iter().all(u8::is_ascii_hexdigit);
                    if !(hex && matches!(argument.len(), 0 | ROOT_DIGITS)) {
                        wrong = Some(BAD_TOKEN);
                    }
                }
                b'c' | b'f' | b'h' | b'k' | b'l' | b's' | b't' | b'P' | b'L' => {}
                _ => last = Some(INVALID_FLAG),
            }
        }
        if key.len() > rules.key_max() {
            return Err(Wrong::Flags(BAD_FORMAT));
        }
        if count > WORDS_MAX {
            return Err(Wrong::Flags(TOO_MANY_FLAGS));
        }
        match last.or(wrong) {
            Some(line) => Err(Wrong::Flags(line)),
            None if opaque > OPAQUE_MAX => Err(Wrong::Flags(LONG_OPAQUE)),
            None => Ok(flags),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::text;
    use super::*;

    fn refused(line: &str) -> (&'static str, u64) {
        match text::parse(format!("{line}\r\n").as_bytes()) {
            Parsed::Refused {
                reply: Refusal::Line(said),
                skip,
                ..
            } => (said, skip),
            parsed => panic!("{line}: {parsed:?}"),
        }
    }

    #[test]
    fn wrong_flags_get_the_error_of_memcached() {
        let long = "k".repeat(251);
        let opaque = "O".repeat(33);
        let many = "a b c d e f g h i j k l m n o p q r s".to_owned();
        for (line, said, skip) in [
            ("mg", BAD_FORMAT, 0),
            ("mg a !", BAD_FORMAT, 0),
            ("mg a v v", DUPLICATE_FLAG, 0),
            ("mg a q 1", INVALID_FLAG, 0),
            ("mg a v v !", BAD_FORMAT, 0),
            ("mg a Tx v v", DUPLICATE_FLAG, 0),
            ("mg a z", INVALID_FLAG, 0),
            ("mg a Tx", BAD_TOKEN, 0),
            ("mg a T", BAD_TOKEN, 0),
            ("mg # b", BAD_KEY, 0),
            ("ms a", BAD_FORMAT, 0),
            ("ms a x", BAD_FORMAT, 0),
            ("ms a 2 !", BAD_FORMAT, 0),
            ("ma a !", BAD_FORMAT, 0),
            ("me a !", BAD_FORMAT, 0),
            ("ms a 2 Fx", BAD_FORMAT, 4),
            ("ms a 2 MX", STORE_MODE, 4),
            ("ma a Jx", ARITH_FLAG, 0),
            ("ma a MX", ARITH_MODE, 0),
            ("ma a Dx", ARITH_FLAG, 0),
            (&format!("mg {long}"), BAD_FORMAT, 0),
            (&format!("mg a {opaque}"), LONG_OPAQUE, 0),
            (&format!("mg a {many}"), TOO_MANY_FLAGS, 0),
        ] {
            assert_eq!(refused(line), (said, skip), "{line}");
        }
    }

    #[test]
    fn flags_arrive() {
        let Parsed::Request { request, .. } = text::parse(b"mg key v T30 N5 R9 C7 E8 q k O123\r\n")
        else {
            panic!()
        };
        let Op::Fetch(fetch) = request.op else {
            panic!()
        };
        assert!(fetch.value && fetch.bump);
        assert_eq!(
            (fetch.touch, fetch.vivify, fetch.recache),
            (Some(30), Some(5), Some(9))
        );
        assert_eq!((fetch.known_cas, fetch.new_cas), (Some(7), Some(8)));
        assert!(matches!(request.style, Style::Meta { quiet: true, .. }));
        let Parsed::Request { request, .. } = text::parse(b"ms key 3 MA T60 F5 I\r\nabc\r\n")
        else {
            panic!()
        };
        let Op::Store(store) = request.op else {
            panic!()
        };
        assert_eq!(
            (store.mode, store.length, store.flags, store.exptime),
            (Mode::Append, 3, 5, 60)
        );
        assert!(store.invalidate);
        assert!(matches!(
            text::parse(b"mn anything\r\n"),
            Parsed::Request {
                request: Request { op: Op::Noop, .. },
                ..
            }
        ));
    }
}
