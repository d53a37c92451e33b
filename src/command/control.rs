#![forbid(unsafe_code)]
//! What is asked of the server rather than of a key.

use crate::observe::counters::CLASSES;
use crate::observe::events;
use crate::protocol::number;
use crate::protocol::request::{Op, Request, Shutdown, Style};
use crate::protocol::words;
use crate::settings::MEMCACHED_VERSION;
use crate::store::control::{Crawled, Reassigned};

use super::context::{Context, Session};
use super::dump::{Dump, Format};
use super::replies::Replies;
use super::{Next, auth, is_start_of, reply, stats};

const BAD_FORMAT: &[u8] = b"CLIENT_ERROR bad command line format";
const OK: &[u8] = b"OK";
const ERROR: &[u8] = b"ERROR";
const BUSY: &[u8] = b"BUSY currently processing crawler request";

/// What a command that changes something answers in text.
type Line = &'static [u8];

pub fn control(
    cx: &Context<'_>,
    session: &mut Session,
    request: &Request<'_>,
    value: &[u8],
    replies: &mut Replies,
) -> Next {
    let style = &request.style;
    let line = match &request.op {
        Op::Noop => {
            answer(style, b"MN", replies);
            return Next::Flush;
        }
        Op::Quit => {
            if matches!(style, Style::Binary { .. }) {
                answer(style, b"", replies);
            }
            return Next::Close;
        }
        Op::Version => {
            version(style, replies);
            return Next::Done;
        }
        Op::FlushAll { exptime } => {
            flush_all(cx, *exptime, style, replies);
            return Next::Done;
        }
        Op::Stats { words } => {
            stats::stats(cx, words, style, replies);
            return Next::Done;
        }
        Op::SaslListMechanisms | Op::SaslAuth { .. } | Op::SaslStep { .. } => {
            if let Style::Binary { opcode, opaque, .. } = *style {
                auth::sasl(cx, session, &request.op, (opcode, opaque), value, replies);
            }
            return Next::Done;
        }
        Op::Shutdown(mode) => match shutdown(cx, *mode) {
            Ok(graceful) => return Next::Shutdown { graceful },
            Err(line) => line,
        },
        Op::Watch { words } => match watch(cx, session, words, replies) {
            Ok(next) => return next,
            Err(line) => line,
        },
        Op::LruCrawler { words } => match lru_crawler(cx, session, words, replies) {
            Ok(next) => return next,
            Err(line) => line,
        },
        Op::Verbosity { level } => {
            cx.shared.set_verbosity(*level);
            OK
        }
        Op::CacheMemlimit { megabytes } => cache_memlimit(cx, *megabytes),
        Op::Lru { words } => lru(cx, words).unwrap_or(ERROR),
        Op::Slabs { words } => slabs(cx, words),
        Op::Repl { words } if matches!(style, Style::Binary { .. }) => {
            super::repl::packet(cx, session, words, style, replies);
            return Next::Done;
        }
        Op::Repl { words } if super::repl::is_forwarding(words) => {
            session.forwarded = true;
            reply::line(style, b"OK", replies);
            return Next::Renegotiate;
        }
        Op::Repl { words } => {
            super::repl::repl(cx, words, style, replies);
            return Next::Done;
        }
        Op::RefreshCerts => match cx.shared.reload_certificates() {
            Ok(()) => OK,
            Err(why) => {
                log::warn!("{why}");
                reply::line(style, why.as_bytes(), replies);
                return Next::Done;
            }
        },
        #[cfg(feature = "debug-commands")]
        Op::DebugTime { words } => debug::time(cx, words),
        #[cfg(feature = "debug-commands")]
        Op::DebugItem { words } => debug::item(cx, words),
        #[cfg(feature = "debug-commands")]
        Op::Misbehave => debug::misbehave(),
        _ => ERROR,
    };
    reply::line(style, line, replies);
    Next::Done
}

/// A line for text and meta, an empty success for binary unless it is to be quiet.
fn answer(style: &Style<'_>, line: &[u8], replies: &mut Replies) {
    match *style {
        Style::Binary { quiet: true, .. } => {}
        Style::Binary { opcode, opaque, .. } => {
            reply::binary(opcode, opaque, reply::STATUS_OK, 0, b"", replies);
        }
        Style::Text { .. } | Style::Meta { .. } => reply::line(style, line, replies),
    }
}

fn version(style: &Style<'_>, replies: &mut Replies) {
    let version = MEMCACHED_VERSION.as_bytes();
    match *style {
        Style::Binary { opcode, opaque, .. } => {
            reply::binary(opcode, opaque, reply::STATUS_OK, 0, version, replies);
        }
        Style::Text { .. } | Style::Meta { .. } => {
            replies.push(b"VERSION ");
            replies.line(version);
        }
    }
}

fn flush_all(cx: &Context<'_>, exptime: Option<i64>, style: &Style<'_>, replies: &mut Replies) {
    let allowed = cx.shared.settings.store.flush_enabled;
    match *style {
        // A refused binary flush does not count, a refused text one does.
        Style::Binary { opcode, opaque, .. } if !allowed => {
            return reply::binary_error(opcode, opaque, reply::STATUS_AUTH, replies);
        }
        _ => cx.counters.general.flush_cmds.add(1),
    }
    if !allowed {
        return reply::line(style, b"CLIENT_ERROR flush_all not allowed", replies);
    }
    let Some(exptime) = exptime else {
        return reply::line(style, b"CLIENT_ERROR invalid exptime argument", replies);
    };
    let at = if exptime > 0 {
        cx.expiry(exptime)
    } else {
        cx.now
    };
    cx.store().flush_all(cx.now, at);
    cx.shared.leases.revoke_all();
    answer(style, OK, replies);
}

/// Whether to stop in order.
fn shutdown(cx: &Context<'_>, mode: Shutdown) -> Result<bool, Line> {
    if !cx.shared.settings.security.shutdown_command {
        return Err(b"SERVER_ERROR: shutdown not enabled");
    }
    match mode {
        Shutdown::Now => Ok(false),
        Shutdown::Graceful => Ok(true),
        Shutdown::Invalid => Err(b"CLIENT_ERROR invalid shutdown mode"),
    }
}

fn watch(
    cx: &Context<'_>,
    session: &Session,
    words: &[u8],
    replies: &mut Replies,
) -> Result<Next, Line> {
    if !cx.shared.settings.watch.enabled || session.single {
        return Err(b"CLIENT_ERROR watch commands not allowed");
    }
    if !replies.is_empty() {
        return Err(b"ERROR cannot pipeline other commands before watch");
    }
    // In the order in which a word cut short is completed; 0 is accepted and brings nothing.
    const STREAMS: [(&[u8], u32); 10] = [
        (b"rawcmds", 0),
        (b"evictions", events::EVICTIONS),
        (b"fetchers", events::FETCHERS),
        (b"mutations", events::MUTATIONS),
        (b"sysevents", events::SYSTEM),
        (b"connevents", events::CONNECTIONS),
        (b"proxyreqs", 0),
        (b"proxyevents", 0),
        (b"proxyuser", 0),
        (b"deletions", events::DELETIONS),
    ];
    let mut streams = None;
    for word in words::words(words) {
        let (_, stream) = STREAMS
            .iter()
            .find(|(name, _)| is_start_of(word, name))
            .ok_or(ERROR)?;
        streams = Some(streams.unwrap_or(0) | stream);
    }
    let subscription = cx
        .shared
        .watchers
        .subscribe(streams.unwrap_or(events::FETCHERS))
        .ok_or(b"WATCHER_TOO_MANY log watcher limit reached" as Line)?;
    replies.line(OK);
    Ok(Next::Watch(subscription))
}

fn lru_crawler(
    cx: &Context<'_>,
    session: &Session,
    words: &[u8],
    replies: &mut Replies,
) -> Result<Next, Line> {
    let words: Vec<&[u8]> = words::words(words).take(3).collect();
    let store = cx.store();
    let enabled = store.tuning().crawler;
    Err(match words[..] {
        [what, which] if is_start_of(what, b"crawl") => {
            if !enabled {
                return Err(b"CLIENT_ERROR lru crawler disabled");
            }
            match store.crawl(cx.now, classes(which)?) {
                // Nothing to do is done at once.
                Crawled::Started | Crawled::NothingToDo => OK,
                Crawled::Busy => BUSY,
            }
        }
        [what, which] if is_start_of(what, b"metadump") => {
            let refusals: [Line; 2] = [
                b"ERROR metadump not allowed",
                b"ERROR cannot pipeline other commands before metadump",
            ];
            return dump(cx, session, which, Format::Meta, refusals, replies);
        }
        [what, which] if is_start_of(what, b"mgdump") => {
            let refusals: [Line; 2] = [
                b"ERROR key dump not allowed",
                b"ERROR cannot pipeline other commands before mgdump",
            ];
            return dump(cx, session, which, Format::Mg, refusals, replies);
        }
        [what, items] if is_start_of(what, b"tocrawl") => {
            store.set_crawler_tocrawl(unsigned(items).ok_or(BAD_FORMAT)?);
            OK
        }
        [what, time] if is_start_of(what, b"sleep") => {
            let microseconds = unsigned(time).ok_or(BAD_FORMAT)?;
            if microseconds > 1_000_000 {
                return Err(b"CLIENT_ERROR sleep must be one second or less");
            }
            store.set_crawler_sleep(microseconds);
            OK
        }
        [what] if is_start_of(what, b"enable") => {
            if store.tuning().crawler {
                return Err(b"ERROR failed to start lru crawler thread");
            }
            store.set_crawler(true);
            OK
        }
        [what] if is_start_of(what, b"disable") => {
            store.set_crawler(false);
            OK
        }
        _ => ERROR,
    })
}

fn dump(
    cx: &Context<'_>,
    session: &Session,
    which: &[u8],
    format: Format,
    [forbidden, pipelined]: [Line; 2],
    replies: &mut Replies,
) -> Result<Next, Line> {
    if !cx.store().tuning().crawler {
        return Err(b"CLIENT_ERROR lru crawler disabled");
    }
    if !cx.shared.settings.store.dump_enabled || session.single {
        return Err(forbidden);
    }
    if !replies.is_empty() {
        return Err(pipelined);
    }
    let classes = if which == b"hash" {
        u64::MAX
    } else {
        classes(which)?
    };
    match cx.store().dump(classes) {
        Ok(walk) => {
            replies.line(OK);
            Ok(Next::Dump(Box::new(Dump::new(walk, format))))
        }
        Err(Crawled::Busy) => Err(BUSY),
        Err(_) => {
            replies.line(OK);
            replies.push(format.end());
            Ok(Next::Done)
        }
    }
}

/// `all`, or numbers of classes with commas between them, as a set of bits.
fn classes(words: &[u8]) -> Result<u64, Line> {
    const BAD_CLASS: Line = b"BADCLASS invalid class id";
    if words == b"all" {
        return Ok(u64::MAX);
    }
    let mut classes = 0;
    for word in words
        .split(|&byte| byte == b',')
        .filter(|word| !word.is_empty())
    {
        let class = unsigned(word)
            .filter(|class| (1..CLASSES as u32).contains(class))
            .ok_or(BAD_CLASS)?;
        classes |= 1 << class;
    }
    Ok(classes)
}

fn cache_memlimit(cx: &Context<'_>, megabytes: u64) -> Line {
    match megabytes {
        0..8 => b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m",
        8..=1_000_000_000 => {
            if cx.store().set_max_bytes(megabytes << 20) {
                OK
            } else {
                b"MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust"
            }
        }
        _ => b"MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes",
    }
}

fn lru(cx: &Context<'_>, words: &[u8]) -> Option<Line> {
    let words: Vec<&[u8]> = words::words(words).take(6).collect();
    let maintained = cx.shared.settings.store.lru_maintainer;
    match words[..] {
        [what, hot, warm, hot_factor, warm_factor, ..] if is_start_of(what, b"tune") => {
            let (hot, warm) = (unsigned(hot)?, unsigned(warm)?);
            let (hot_factor, warm_factor) = (decimal(hot_factor)?, decimal(warm_factor)?);
            if hot.saturating_add(warm) > 80 {
                return Some(b"ERROR hot and warm pcts must not exceed 80");
            }
            if hot_factor <= 0.0 || warm_factor <= 0.0 {
                return Some(b"ERROR hot/warm age factors must be greater than 0");
            }
            cx.store()
                .set_lru_shares(hot, warm, hot_factor, warm_factor);
        }
        [what, mode, ..] if is_start_of(what, b"mode") && maintained => {
            let segmented = if is_start_of(mode, b"flat") {
                false
            } else if is_start_of(mode, b"segmented") {
                true
            } else {
                return None;
            };
            cx.store().set_segmented(segmented);
        }
        [what, ttl, ..] if is_start_of(what, b"temp_ttl") && maintained => {
            let ttl = number::signed32(ttl)?;
            cx.store().set_temporary_ttl(u32::try_from(ttl).ok());
        }
        _ => return None,
    }
    Some(OK)
}

fn slabs(cx: &Context<'_>, words: &[u8]) -> Line {
    let words: Vec<&[u8]> = words::words(words).take(4).collect();
    match words[..] {
        [what, from, to] if is_start_of(what, b"reassign") => reassign(cx, from, to),
        [what, ref how @ ..] if !how.is_empty() && is_start_of(what, b"automove") => {
            automove(cx, how).unwrap_or_else(|line| line)
        }
        _ => ERROR,
    }
}

fn reassign(cx: &Context<'_>, from: &[u8], to: &[u8]) -> Line {
    if !cx.shared.settings.store.slab_reassign {
        return b"CLIENT_ERROR slab reassignment disabled";
    }
    let (Some(from), Some(to)) = (number::signed32(from), number::signed32(to)) else {
        return BAD_FORMAT;
    };
    if from == to {
        return b"SAME src and dst class are identical";
    }
    const BAD_CLASS: Line = b"BADCLASS invalid src or dst class id";
    let Ok(to) = u32::try_from(to) else {
        return BAD_CLASS;
    };
    let from = match from {
        -1 => None,
        from => match u32::try_from(from) {
            Ok(from) => Some(from),
            Err(_) => return BAD_CLASS,
        },
    };
    match cx.store().reassign(from, to) {
        Reassigned::Started => OK,
        Reassigned::Busy => b"BUSY currently processing reassign request",
        Reassigned::BadClass => BAD_CLASS,
        // With any source allowed there is none at all.
        Reassigned::NoSpare if from.is_none() => BAD_CLASS,
        Reassigned::NoSpare => b"NOSPARE source class has no spare pages",
        Reassigned::Same => b"SAME src and dst class are identical",
    }
}

fn automove(cx: &Context<'_>, how: &[&[u8]]) -> Result<Line, Line> {
    let store = cx.store();
    let value = how.get(1).copied();
    if is_start_of(how[0], b"ratio") {
        store.set_automove_ratio(value.and_then(decimal).ok_or(ERROR)?);
    } else if is_start_of(how[0], b"freeratio") {
        // Belongs to a flash tier, which there is none of.
        value.and_then(decimal).ok_or(ERROR)?;
    } else if is_start_of(how[0], b"window") {
        let seconds = value.and_then(unsigned).ok_or(BAD_FORMAT)?;
        if !(3..=1800).contains(&seconds) {
            return Err(b"CLIENT_ERROR automove window too low or too high");
        }
        store.set_automove_window(seconds);
    } else {
        let mode = unsigned(how[0]).ok_or(BAD_FORMAT)?;
        if mode > 2 {
            return Err(ERROR);
        }
        store.set_automove(mode);
    }
    Ok(OK)
}

fn unsigned(word: &[u8]) -> Option<u32> {
    number::unsigned32(word)
}

fn decimal(word: &[u8]) -> Option<f64> {
    std::str::from_utf8(word)
        .ok()?
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())
}

/// Commands that memcached's own tests expect of a debug build.
#[cfg(feature = "debug-commands")]
mod debug {
    use super::*;

    /// `debugtime p | r | SECONDS`
    pub fn time(cx: &Context<'_>, words: &[u8]) -> Line {
        let clock = &cx.shared.clock;
        match words::words(words).next() {
            Some(b"p") => clock.pause(),
            Some(b"r") => clock.resume(),
            Some(word) => match number::strtol(word) {
                Some(seconds) => clock.shift(seconds),
                None => return ERROR,
            },
            None => return ERROR,
        }
        OK
    }

    /// Tries what a sandbox should forbid: a new socket, and another program. `OK` if it does.
    pub fn misbehave() -> Line {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0");
        let program = std::process::Command::new("true").status();
        if socket.is_ok() || program.is_ok() {
            ERROR
        } else {
            OK
        }
    }

    /// `debugitem ref | unref KEY`: there are no references to leak, so that only the look-up is
    /// left of it.
    pub fn item(cx: &Context<'_>, words: &[u8]) -> Line {
        let words: Vec<&[u8]> = words::words(words).take(2).collect();
        let [what, key] = words[..] else {
            return ERROR;
        };
        if is_start_of(what, b"lock") || is_start_of(what, b"unlock") {
            return OK;
        }
        if !is_start_of(what, b"ref") && !is_start_of(what, b"unref") {
            return ERROR;
        }
        let quiet = crate::store::Fetch {
            quiet: true,
            ..crate::store::Fetch::default()
        };
        let hash = cx.store().hash(key);
        match cx.store().fetch(cx.caller(), key, hash, &quiet, |_| ()) {
            Ok(()) => OK,
            Err(_) if key == b"reffed" => OK,
            Err(_) => b"MISS",
        }
    }
}
