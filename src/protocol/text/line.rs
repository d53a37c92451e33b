#![forbid(unsafe_code)]
//! What a whole line asks for.

use super::{BAD_DELTA, BAD_EXPTIME, BAD_FORMAT, ERROR, LENGTH_MAX, Rules, plain, refuse};
use crate::protocol::request::{
    Arith, Delete, Key, Mode, Op, Parsed, Refusal, Request, Shutdown, Store, Style,
};
use crate::protocol::words::{self, word};
use crate::protocol::{meta, number};

/// A command line without its end.
pub struct Line<'a> {
    pub line: &'a [u8],
    pub taken: usize,
    pub rules: Rules,
}

impl<'a> Line<'a> {
    pub fn parse(self) -> Parsed<'a> {
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
            flags,
            exptime,
            cas,
            ..Store::new(plain(key), mode, length)
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
            flags: flags as u32,
            exptime: i64::from(exptime as i32),
            lease: Some(lease),
            ..Store::new(plain(key), Mode::Add, length as usize)
        }))
    }

    pub fn gat(self, mut rest: &'a [u8], cas: bool) -> Parsed<'a> {
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
            Some(key) => self.request(Op::Delete(Delete::new(plain(key)))),
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
            Some(delta) => self.request(Op::Arith(Arith::new(plain(key), up, delta))),
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
