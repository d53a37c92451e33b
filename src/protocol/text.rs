#![forbid(unsafe_code)]
//! Classic commands, both directions.
//!
//! Only blanks separate words; every other byte but the line end is part of one. A line ends at
//! `\n`, and one `\r` before it does not count.

use memchr::{memchr, memchr2};

use super::Rules;
use super::request::{
    Arith, Delete, Key, Mode, Op, Parsed, Refusal, Request, Shutdown, Store, Style,
};
use super::words::{self, word};
use super::{meta, number};

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
    if let Some(parsed) = parse_get(input) {
        return parsed;
    }
    if let Some(parsed) = usual_set(input) {
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
                key: plain(key),
                mode: Mode::Set,
                length: length as usize,
                flags,
                exptime: i64::from(exptime),
                cas: None,
                new_cas: None,
                invalidate: false,
                vivify: None,
                lease: None,
            }),
            style: Style::Text { noreply },
        },
        taken: input.len() - rest.len(),
    })
}

/// One to nine digits, and what follows them.
#[inline(always)]
fn usual_number(text: &[u8]) -> Option<(u32, &[u8])> {
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

/// Where the first byte up to a blank stands, or an earlier one that is not ASCII, if `bytes` show one
/// and are not too few to be looked at this way.
#[inline(always)]
fn word_end(bytes: &[u8]) -> Option<usize> {
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
fn any_key(rules: Rules, input: &[u8]) -> NextKey<'_> {
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

/// A command line without its end.
struct Line<'a> {
    line: &'a [u8],
    taken: usize,
    rules: Rules,
}

impl<'a> Line<'a> {
    fn parse(self) -> Parsed<'a> {
        let mut rest = self.line;
        // A blank in front makes an empty command, which is none.
        let command = if rest.first() == Some(&b' ') {
            None
        } else {
            word(&mut rest)
        };
        match command.unwrap_or(b"") {
            b"set" => self.store(rest, Mode::Set, false),
            b"add" => self.store(rest, Mode::Add, false),
            b"replace" => self.store(rest, Mode::Replace, false),
            b"append" => self.store(rest, Mode::Append, false),
            b"prepend" => self.store(rest, Mode::Prepend, false),
            b"cas" => self.store(rest, Mode::Set, true),
            b"lease-set" => self.lease_set(rest),
            b"lease-get" => self.mcrouter(rest, |key| Op::LeaseGet { key }),
            b"metaget" => self.mcrouter(rest, |key| Op::MetaGet { key }),
            b"get" | b"gets" => refuse(BAD_FORMAT, self.taken),
            b"gat" => self.gat(rest, false),
            b"gats" => self.gat(rest, true),
            b"delete" => self.delete(rest),
            b"incr" => self.arith(rest, true),
            b"decr" => self.arith(rest, false),
            b"touch" => self.touch(rest),
            b"quit" => self.loud(Op::Quit),
            b"version" => self.loud(Op::Version),
            b"stats" => self.loud(Op::Stats { words: rest }),
            b"watch" => self.loud(Op::Watch { words: rest }),
            b"flush_all" => self.flush_all(rest),
            b"verbosity" => match word(&mut rest).and_then(number::unsigned32) {
                Some(level) => self.request(Op::Verbosity { level }),
                None => self.refuse(BAD_FORMAT),
            },
            b"cache_memlimit" => match word(&mut rest).and_then(number::unsigned32) {
                Some(megabytes) => self.request(Op::CacheMemlimit {
                    megabytes: u64::from(megabytes),
                }),
                None => self.refuse(ERROR),
            },
            b"shutdown" => {
                let mode = match (word(&mut rest), word(&mut rest)) {
                    (None, _) => Shutdown::Now,
                    (Some(b"graceful"), None) => Shutdown::Graceful,
                    _ => Shutdown::Invalid,
                };
                self.request(Op::Shutdown(mode))
            }
            b"slabs" => self.request(Op::Slabs { words: rest }),
            b"repl" => self.request(Op::Repl { words: rest }),
            b"lru" => self.request(Op::Lru { words: rest }),
            b"lru_crawler" => self.request(Op::LruCrawler { words: rest }),
            b"refresh_certs" => self.request(Op::RefreshCerts),
            b"debugtime" => self.request(Op::DebugTime { words: rest }),
            b"debugitem" => self.request(Op::DebugItem { words: rest }),
            [b'm', command @ (b'g' | b's' | b'd' | b'a' | b'n' | b'e')] => {
                meta::parse(self.rules, *command, rest, self.taken)
            }
            b"misbehave" => self.request(Op::Misbehave),
            _ => self.unknown(),
        }
    }

    fn time(&self, word: &[u8]) -> Option<i64> {
        number::time(word, self.rules.long_times)
    }

    fn noreply(&self) -> bool {
        // memcached's last word is the 23rd, if there are more; so many take 45 bytes.
        if self.line.len() >= 45
            && let Some(word) = words::words(self.line).nth(22)
        {
            return word == b"noreply";
        }
        match self.line.strip_suffix(b"noreply") {
            Some(before) => matches!(before, [] | [.., b' ']),
            None => self.line.ends_with(b" ") && words::last(self.line) == b"noreply",
        }
    }

    /// A request whose reply `noreply` can suppress.
    fn request(self, op: Op<'a>) -> Parsed<'a> {
        let noreply = self.noreply();
        Parsed::Request {
            request: Request {
                op,
                style: Style::Text { noreply },
            },
            taken: self.taken,
        }
    }

    /// A request that answers whatever its last word is.
    fn loud(self, op: Op<'a>) -> Parsed<'a> {
        Parsed::Request {
            request: Request {
                op,
                style: Style::Text { noreply: false },
            },
            taken: self.taken,
        }
    }

    /// An error that `noreply` suppresses.
    fn refuse(self, line: &'static str) -> Parsed<'a> {
        self.refuse_after(line, 0)
    }

    fn refuse_after(self, line: &'static str, skip: u64) -> Parsed<'a> {
        let reply = if self.noreply() {
            Refusal::Silent
        } else {
            Refusal::Line(line)
        };
        Parsed::Refused {
            reply,
            taken: self.taken,
            skip,
            close: false,
        }
    }

    fn unknown(self) -> Parsed<'a> {
        let mut rest = self.line;
        let several = word(&mut rest).is_some() && word(&mut rest).is_some();
        if several && words::last(self.line).starts_with(b"HTTP/") {
            return Parsed::Close;
        }
        self.refuse(ERROR)
    }

    fn store(self, mut rest: &'a [u8], mode: Mode, with_cas: bool) -> Parsed<'a> {
        // Flags and expiry are read as C's functions read them, on behind a word of white space.
        let key = word(&mut rest);
        let flags_on = rest;
        let flags = word(&mut rest);
        let exptime_on = rest;
        let exptime = word(&mut rest);
        let (Some(key), Some(flags), Some(exptime), Some(length)) =
            (key, flags, exptime, word(&mut rest))
        else {
            return refuse(BAD_FORMAT, self.taken);
        };
        // Without a length, nobody knows how much to skip: what follows is taken for commands.
        let length = match number::signed32(length) {
            Some(length @ 0..=LENGTH_MAX) => length as usize,
            _ => return refuse(BAD_FORMAT, self.taken),
        };
        let skip = length as u64 + 2;
        let flags = number::short(flags).or_else(|| number::strtoul(flags_on));
        let flags = flags.map(|flags| flags as u32);
        let exptime = match number::short(exptime) {
            Some(exptime) => i64::try_from(exptime).ok(),
            None => number::strtol(exptime_on),
        };
        let exptime = match self.rules.long_times {
            true => exptime,
            false => exptime.map(|time| i64::from(time as i32)),
        };
        let (Some(flags), Some(exptime), true) =
            (flags, exptime, key.len() <= self.rules.key_max())
        else {
            return self.refuse_after(BAD_FORMAT, skip);
        };
        let cas = if with_cas {
            match word(&mut rest).and_then(number::unsigned) {
                Some(cas) => Some(cas),
                None => return self.refuse_after(BAD_FORMAT, skip),
            }
        } else {
            None
        };
        self.request(Op::Store(Store {
            key: plain(key),
            mode,
            length,
            flags,
            exptime,
            cas,
            new_cas: None,
            invalidate: false,
            vivify: None,
            lease: None,
        }))
    }

    /// A read of mcrouter's: one key, and never a bare `ERROR`, which would take the server out of
    /// its service.
    fn mcrouter(self, mut rest: &'a [u8], op: fn(Key<'a>) -> Op<'a>) -> Parsed<'a> {
        match word(&mut rest) {
            Some(key) if key.len() <= self.rules.key_max() => self.loud(op(plain(key))),
            _ => refuse(BAD_FORMAT, self.taken),
        }
    }

    /// `lease-set KEY TOKEN FLAGS EXPTIME LENGTH`
    fn lease_set(self, mut rest: &'a [u8]) -> Parsed<'a> {
        let key = word(&mut rest);
        let token = word(&mut rest).and_then(number::unsigned);
        let flags = word(&mut rest).and_then(number::unsigned);
        let exptime = word(&mut rest).and_then(number::strtol);
        let Some(length @ 0..=LENGTH_MAX) = word(&mut rest).and_then(number::signed32) else {
            return refuse(BAD_FORMAT, self.taken);
        };
        let (Some(key @ [..]), Some(lease), Some(flags), Some(exptime)) = (
            key.filter(|key| key.len() <= self.rules.key_max()),
            token,
            flags,
            exptime,
        ) else {
            return self.refuse_after(BAD_FORMAT, length as u64 + 2);
        };
        self.request(Op::Store(Store {
            key: plain(key),
            mode: Mode::Add,
            length: length as usize,
            flags: flags as u32,
            exptime: i64::from(exptime as i32),
            cas: None,
            new_cas: None,
            invalidate: false,
            vivify: None,
            lease: Some(lease),
        }))
    }

    fn gat(self, mut rest: &'a [u8], cas: bool) -> Parsed<'a> {
        let Some(exptime) = word(&mut rest) else {
            return refuse(BAD_FORMAT, self.taken);
        };
        let mut keys = rest;
        if word(&mut keys).is_none() {
            return refuse(BAD_FORMAT, self.taken);
        }
        let Some(exptime) = self.time(exptime) else {
            return refuse(BAD_EXPTIME, self.taken);
        };
        // The keys stand where the rest of the line begins.
        let taken = self.line.len() - rest.len();
        Parsed::Request {
            request: Request {
                op: Op::Get {
                    cas,
                    touch: Some(exptime),
                },
                style: Style::Text { noreply: false },
            },
            taken,
        }
    }

    fn delete(self, mut rest: &'a [u8]) -> Parsed<'a> {
        match word(&mut rest) {
            None => refuse(BAD_FORMAT, self.taken),
            Some(key) if key.len() > self.rules.key_max() => self.refuse(BAD_FORMAT),
            Some(key) => self.request(Op::Delete(Delete {
                key: plain(key),
                cas: None,
                new_cas: None,
                stale: false,
                drop_value: false,
                touch: None,
                flags: 0,
            })),
        }
    }

    fn arith(self, mut rest: &'a [u8], up: bool) -> Parsed<'a> {
        let (Some(key), Some(delta)) = (word(&mut rest), word(&mut rest)) else {
            return refuse(BAD_FORMAT, self.taken);
        };
        if key.len() > self.rules.key_max() {
            return self.refuse(BAD_FORMAT);
        }
        match number::unsigned(delta) {
            None => self.refuse(BAD_DELTA),
            Some(delta) => self.request(Op::Arith(Arith {
                key: plain(key),
                up,
                delta,
                cas: None,
                new_cas: None,
                touch: None,
                create: None,
            })),
        }
    }

    fn touch(self, mut rest: &'a [u8]) -> Parsed<'a> {
        let (Some(key), Some(exptime)) = (word(&mut rest), word(&mut rest)) else {
            return refuse(BAD_FORMAT, self.taken);
        };
        if key.len() > self.rules.key_max() {
            return self.refuse(BAD_FORMAT);
        }
        match self.time(exptime) {
            None => self.refuse(BAD_EXPTIME),
            Some(exptime) => self.request(Op::Touch {
                key: plain(key),
                exptime,
            }),
        }
    }

    fn flush_all(self, mut rest: &'a [u8]) -> Parsed<'a> {
        let exptime = match word(&mut rest) {
            None => Some(0),
            Some(b"noreply") if word(&mut rest).is_none() => Some(0),
            Some(exptime) => self.time(exptime),
        };
        self.request(Op::FlushAll { exptime })
    }
}

fn plain(raw: &[u8]) -> Key<'_> {
    Key { raw, base64: false }
}

#[cfg(test)]
mod tests {
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
