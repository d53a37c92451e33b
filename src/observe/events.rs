#![forbid(unsafe_code)]
//! What happens, as `watch` tells it: each thread writes finished lines into a ring of its own,
//! bounded and lossy, and one reader collects them: now and then, and as soon as a ring fills. A part
//! of each ring is each stream's own, so that a flood of one does not cost the lines of another.
//!
//! Nobody watching costs one relaxed load per place where something could be told. A full ring, or
//! one that the reader holds at that moment, loses the line and counts it: no worker ever waits.

use std::io::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use super::bell::Bell;
use super::counters::Counter;
use crate::settings::KEY_MAX;

/// `watch fetchers`
pub const FETCHERS: u32 = 1;
/// `watch mutations`
pub const MUTATIONS: u32 = 1 << 1;
/// `watch evictions`
pub const EVICTIONS: u32 = 1 << 2;
/// `watch deletions`
pub const DELETIONS: u32 = 1 << 3;
/// `watch connevents`
pub const CONNECTIONS: u32 = 1 << 4;
/// `watch sysevents`
pub const SYSTEM: u32 = 1 << 5;
/// Streams there are.
const STREAMS: usize = 6;
/// Not a stream: `stats detail on`, kept here so that a request asks one question only.
pub const DETAIL: u32 = 1 << 31;
/// Nor is this: leases have been handed out, so that whoever changes a key has to look for one.
pub const LEASES: u32 = 1 << 30;

/// Which streams anybody wants, and the number of the last line. One for the whole server.
#[derive(Debug, Default)]
pub struct Taps {
    wanted: AtomicU32,
    last: AtomicU64,
    full: Bell,
}

impl Taps {
    #[inline]
    pub fn wanted(&self) -> u32 {
        self.wanted.load(Relaxed)
    }

    /// The streams in `streams` are wanted from now on, and no others; what is no stream stays.
    pub fn want(&self, streams: u32) {
        let _ = self.wanted.fetch_update(Relaxed, Relaxed, |old| {
            Some(old & (DETAIL | LEASES) | streams)
        });
    }

    /// From now on and for good.
    pub fn want_leases(&self) {
        self.wanted.fetch_or(LEASES, Relaxed);
    }

    pub fn want_detail(&self, on: bool) {
        if on {
            self.wanted.fetch_or(DETAIL, Relaxed);
        } else {
            self.wanted.fetch_and(!DETAIL, Relaxed);
        }
    }

    /// Rung when so much waits in a ring that it should be read soon.
    pub fn full(&self) -> &Bell {
        &self.full
    }

    /// Lines get numbers above this from now on; the number itself is used up.
    pub fn mark(&self) -> u64 {
        self.last.fetch_add(1, Relaxed) + 1
    }
}

/// A line that was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Place in the order of all threads' lines.
    pub number: u64,
    /// The stream it belongs to.
    pub stream: u32,
    /// With its newline.
    pub line: Vec<u8>,
}

#[derive(Debug, Default)]
struct Ring {
    lines: Vec<Told>,
    bytes: usize,
    /// Of these, by stream.
    of_stream: [usize; STREAMS],
}

/// The part of a ring that each stream has to itself, beside what all share, and the part in use at which
/// the reader is called.
const OWN_SHARE: usize = 8;
const CALL_SHARE: usize = 4;

/// One thread's lines.
#[derive(Debug)]
pub struct Log {
    taps: Arc<Taps>,
    ring: Mutex<Ring>,
    /// Bytes of lines that may wait, beside what streams have of their own.
    capacity: usize,
    /// `log_worker_written`
    pub written: Counter,
    /// `log_worker_dropped`
    pub dropped: Counter,
}

/// What a run of the crawler has found in one class.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Crawled {
    /// Items looked at.
    pub examined: u64,
    /// Those of them that were dead.
    pub reclaimed: u64,
    /// Those that live on, but not for ever.
    pub expiring: u64,
    /// Those that have an hour at most.
    pub soon: u64,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Error,
    Normal,
    IdleTimeout,
    Shutdown,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    Local,
    Tcp(IpAddr, u16),
    Udp,
}

impl Log {
    pub fn new(taps: Arc<Taps>, capacity: usize) -> Log {
        Log {
            taps,
            ring: Mutex::new(Ring::default()),
            capacity,
            written: Counter::default(),
            dropped: Counter::default(),
        }
    }

    /// Everything that is wanted: streams, and [`DETAIL`].
    #[inline]
    pub fn wanted(&self) -> u32 {
        self.taps.wanted()
    }

    /// Whether anybody watches one of `streams`.
    #[inline]
    pub fn wants(&self, streams: u32) -> bool {
        self.wanted() & streams != 0
    }

    /// Tells one line; `what` is everything after `gid=… `, without a newline.
    #[cold]
    pub fn tell(&self, stream: u32, what: std::fmt::Arguments<'_>) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        // The reader holds the lock for a swap of two vectors only.
        let Some(mut ring) = (0..100).find_map(|_| self.ring.try_lock().ok()) else {
            self.dropped.add(1);
            return;
        };
        let number = self.taps.last.fetch_add(1, Relaxed) + 1;
        let mut line = Vec::with_capacity(160);
        // Writing to a vector cannot fail.
        let _ = writeln!(
            line,
            "ts={}.{} gid={number} {what}",
            now.as_secs(),
            now.subsec_micros()
        );
        let cost = line.len() + size_of::<Told>();
        let own = stream.trailing_zeros() as usize % STREAMS;
        if ring.bytes + cost > self.capacity
            && ring.of_stream[own] + cost > self.capacity / OWN_SHARE
        {
            self.dropped.add(1);
            return;
        }
        ring.bytes += cost;
        ring.of_stream[own] += cost;
        ring.lines.push(Told {
            number,
            stream,
            line,
        });
        self.written.add(1);
        let waits = ring.bytes;
        drop(ring);
        if waits > self.capacity / CALL_SHARE {
            self.taps.full.ring();
        }
    }

    /// Takes what has been told; for the one reader.
    pub fn take(&self, into: &mut Vec<Told>) {
        let taken = {
            let mut ring = self
                .ring
                .lock()
                .unwrap_or_else(|broken| broken.into_inner());
            std::mem::take(&mut *ring)
        };
        into.extend(taken.lines);
    }

    /// A key was looked up; `status` is `not_found`, `found`, `flushed` or `expired`.
    pub fn item_get(&self, key: &[u8], status: &str, class: u8, connection: i32, length: usize) {
        self.tell(
            FETCHERS,
            format_args!(
                "type=item_get key={} status={status} clsid={class} cfd={connection} size={length}",
                Shown(key)
            ),
        );
    }

    /// A value was to be kept; `ttl` in seconds from now.
    #[allow(clippy::too_many_arguments)]
    pub fn item_store(
        &self,
        key: &[u8],
        status: &str,
        command: &str,
        ttl: u32,
        class: u8,
        connection: i32,
        length: usize,
    ) {
        self.tell(
            MUTATIONS,
            format_args!(
                "type=item_store key={} status={status} cmd={command} ttl={ttl} clsid={class} cfd={connection} size={length}",
                Shown(key)
            ),
        );
    }

    /// An item had to go; `ttl` in seconds from now, -1 for none, `idle` seconds since its last access.
    pub fn eviction(
        &self,
        key: &[u8],
        fetched: bool,
        ttl: i64,
        idle: u32,
        class: u8,
        length: usize,
    ) {
        let fetched = if fetched { "yes" } else { "no" };
        self.tell(
            EVICTIONS,
            format_args!(
                "type=eviction key={} fetch={fetched} ttl={ttl} la={idle} clsid={class} size={length}",
                Shown(key)
            ),
        );
    }

    /// An item was deleted; `command` is `delete` or `md`.
    pub fn deleted(&self, key: &[u8], command: &str, class: u8, length: usize) {
        self.tell(
            DELETIONS,
            format_args!(
                "type=deleted key={} cmd={command} clsid={class} size={length}",
                Shown(key)
            ),
        );
    }

    /// A run of the crawler is over; `elapsed` seconds it took, and after `next` there may be another.
    pub fn crawler(&self, class: usize, found: &Crawled, elapsed: u32, next: u32) {
        // memcached would not run again for fewer than one in a hundred.
        let mark = found.expiring / 100 + 1;
        self.tell(
            SYSTEM,
            format_args!(
                "type=lru_crawler crawler={class} lru=cold low_mark={mark} next_reclaims={} since_run=0 \
                 next_run={next} elapsed={elapsed} examined={} reclaimed={}",
                found.soon, found.examined, found.reclaimed
            ),
        );
    }

    /// A page has been taken from one class for another, or 0 for whoever needs one.
    pub fn slab_move(&self, from: usize, to: usize, moved: bool) {
        let state = if moved { "ok" } else { "fail" };
        self.tell(
            SYSTEM,
            format_args!("type=slab_move src={from} dst={to} state={state}"),
        );
    }

    pub fn connection_new(&self, peer: Peer, connection: i32) {
        self.tell(
            CONNECTIONS,
            format_args!("type=conn_new {peer} cfd={connection}"),
        );
    }

    /// TLS has failed on a connection.
    pub fn tls_error(&self, connection: i32, reason: &str) {
        self.tell(
            CONNECTIONS,
            format_args!("type=conntlserr fd={connection} msg={reason}"),
        );
    }

    pub fn connection_closed(&self, peer: Peer, reason: Reason, connection: i32) {
        let reason = match reason {
            Reason::Error => "error",
            Reason::Normal => "normal",
            Reason::IdleTimeout => "idle_timeout",
            Reason::Shutdown => "shutdown",
        };
        self.tell(
            CONNECTIONS,
            format_args!("type=conn_close {peer} reason={reason} cfd={connection}"),
        );
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Local => f.write_str("rip=unix rport=0 transport=local"),
            Peer::Tcp(address, port) => write!(f, "rip={address} rport={port} transport=tcp"),
            Peer::Udp => f.write_str("rip= rport=0 transport=udp"),
        }
    }
}

/// A key as lines about it show it: [escaped](Escaped), and of one that is longer than memcached's the
/// beginning, with `+` and how many bytes more there are.
struct Shown<'a>(&'a [u8]);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.split_at_checked(KEY_MAX) {
            Some((start, rest)) if !rest.is_empty() => {
                write!(f, "{}+{}", Escaped(start), rest.len())
            }
            _ => Escaped(self.0).fmt(f),
        }
    }
}

/// A key as logs and dumps show it: all but letters, digits and `-._~` as `%XX`.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a [u8]);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::fmt::Write;
        for &byte in self.0 {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(log: &Log) -> Vec<String> {
        let mut lines = Vec::new();
        log.take(&mut lines);
        lines
            .iter()
            .map(|told| {
                let line = String::from_utf8(told.line.clone()).unwrap();
                line.split_once(' ').unwrap().1.to_owned()
            })
            .collect()
    }

    #[test]
    fn lines_look_as_watchers_expect() {
        let log = Log::new(Arc::default(), 4096);
        log.item_get(b"a b", "found", 1, 30, 5);
        log.item_store(b"k", "stored", "set", 60, 2, 31, 0);
        log.eviction(b"\xff", true, -1, 9, 3, 7);
        log.deleted(b"k", "md", 4, 1);
        log.connection_new(Peer::Tcp([127, 0, 0, 1].into(), 99), 32);
        log.connection_closed(Peer::Local, Reason::IdleTimeout, 33);
        log.tls_error(34, "received fatal alert");
        let found = Crawled {
            examined: 700,
            reclaimed: 30,
            expiring: 250,
            soon: 4,
        };
        log.crawler(5, &found, 2, 60);
        log.slab_move(5, 0, true);
        assert_eq!(
            told(&log),
            [
                "gid=1 type=item_get key=a%20b status=found clsid=1 cfd=30 size=5\n",
                "gid=2 type=item_store key=k status=stored cmd=set ttl=60 clsid=2 cfd=31 size=0\n",
                "gid=3 type=eviction key=%FF fetch=yes ttl=-1 la=9 clsid=3 size=7\n",
                "gid=4 type=deleted key=k cmd=md clsid=4 size=1\n",
                "gid=5 type=conn_new rip=127.0.0.1 rport=99 transport=tcp cfd=32\n",
                "gid=6 type=conn_close rip=unix rport=0 transport=local reason=idle_timeout cfd=33\n",
                "gid=7 type=conntlserr fd=34 msg=received fatal alert\n",
                "gid=8 type=lru_crawler crawler=5 lru=cold low_mark=3 next_reclaims=4 since_run=0 \
                 next_run=60 elapsed=2 examined=700 reclaimed=30\n",
                "gid=9 type=slab_move src=5 dst=0 state=ok\n",
            ]
        );
        assert_eq!(log.written.get(), 9);
    }

    #[test]
    fn of_a_long_key_the_beginning_is_shown() {
        assert_eq!(Shown(&[b'k'; 250]).to_string(), "k".repeat(250));
        assert_eq!(
            Shown(&[b' '; 252]).to_string(),
            format!("{}+2", "%20".repeat(250))
        );
    }

    #[test]
    fn a_full_ring_loses_lines_and_counts_them() {
        let log = Log::new(Arc::default(), 300);
        for _ in 0..10 {
            log.deleted(b"k", "delete", 1, 1);
        }
        let kept = told(&log).len() as u64;
        assert!(kept > 0 && kept < 10);
        assert_eq!(log.written.get(), kept);
        assert_eq!(log.dropped.get(), 10 - kept);
        log.deleted(b"k", "delete", 1, 1);
        assert_eq!(told(&log).len(), 1, "room again once read");
    }

    #[test]
    fn a_flood_of_one_stream_leaves_the_others_their_part() {
        let log = Log::new(Arc::default(), 8192);
        while log.dropped.get() == 0 {
            log.item_get(b"flood", "found", 1, 30, 5);
        }
        log.item_store(b"k", "stored", "set", 60, 2, 31, 0);
        log.eviction(b"e", true, -1, 9, 3, 7);
        let lines = told(&log);
        let kinds: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        assert_eq!(
            kinds[kinds.len() - 3..],
            ["type=item_get", "type=item_store", "type=eviction"]
        );
        // What was read makes room for all again.
        log.item_get(b"flood", "found", 1, 30, 5);
        assert_eq!(log.dropped.get(), 1);
    }

    #[test]
    fn the_reader_is_called_before_lines_are_lost() {
        let taps = Arc::new(Taps::default());
        let log = Log::new(taps.clone(), 8192);
        let calls = Arc::new(AtomicU32::new(0));
        let count = calls.clone();
        taps.full().on_ring(move || {
            count.fetch_add(1, Relaxed);
        });
        log.deleted(b"k", "delete", 1, 1);
        assert!(!taps.full().is_rung(), "one line can wait");
        for round in 1..3 {
            while !taps.full().is_rung() {
                log.deleted(b"k", "delete", 1, 1);
            }
            log.deleted(b"k", "delete", 1, 1);
            assert_eq!(log.dropped.get(), 0);
            assert_eq!(calls.load(Relaxed), round, "called once");
            taps.full().answer();
            assert!(told(&log).len() > 2);
        }
    }

    #[test]
    fn detail_and_streams_do_not_disturb_each_other() {
        let taps = Taps::default();
        taps.want_detail(true);
        taps.want(FETCHERS | SYSTEM);
        assert_eq!(taps.wanted(), DETAIL | FETCHERS | SYSTEM);
        taps.want(0);
        assert_eq!(taps.wanted(), DETAIL);
        taps.want_detail(false);
        assert_eq!(taps.wanted(), 0);
    }
}
