#![forbid(unsafe_code)]
//! Reading: `get gets gat gats`, key by key.
//!
//! A hit is encoded under the item's lock straight into the reply buffer: no intermediate copy, no
//! allocation. Only values beyond [`COPY_MAX`](crate::store::COPY_MAX) stay where they are, pinned.

use crate::observe::events::{DETAIL, FETCHERS};
use crate::observe::{Counter, ThreadCounters};
use crate::store::{self, Hit, Miss, Queue, Spot, Store};

use super::context::Context;
use super::replies::Replies;

/// Keys looked up together, so that their cache misses overlap.
pub const BATCH: usize = 32;

/// How the keys of one `get` are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// Show the CAS.
    pub cas: bool,
    /// The new expiry time, on the server's clock.
    pub touch: Option<u32>,
}

/// A key of a batch.
pub struct LookUp<'a> {
    key: &'a [u8],
    hash: u64,
    spot: Spot<'a>,
}

impl<'a> LookUp<'a> {
    /// Asks for the memory that the key will be looked for in.
    #[inline]
    pub fn new(store: &'a Store, key: &'a [u8]) -> LookUp<'a> {
        LookUp::with_hash(store, key, store.hash(key))
    }

    /// As [`new`](LookUp::new), of a key that stands for another one, which has this hash.
    #[inline]
    pub fn with_hash(store: &'a Store, key: &'a [u8], hash: u64) -> LookUp<'a> {
        let spot = store.prefetch(hash);
        LookUp { key, hash, spot }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn key(&self) -> &'a [u8] {
        self.key
    }

    /// Asks for the memory of the items it will be compared with; the table has had time to arrive.
    #[inline]
    pub fn prefetch(&mut self, store: &'a Store) {
        store.prefetch_items(&mut self.spot, self.hash);
    }
}

/// Reads the keys of a batch in order and appends the hits, until replies of `limit` bytes wait.
/// Returns how many keys have been read.
pub fn many<'a>(
    cx: &Context<'a>,
    batch: &[LookUp<'a>],
    read: Read,
    limit: usize,
    replies: &mut Replies,
) -> usize {
    let store = cx.store();
    if read.touch.is_some() || cx.tapped(FETCHERS | DETAIL) {
        for (at, LookUp { key, hash, .. }) in batch.iter().enumerate() {
            one(cx, key, *hash, read, replies);
            if replies.waiting() >= limit {
                return at + 1;
            }
        }
        return batch.len();
    }
    let reader = store.reader(cx.caller());
    let general = &cx.counters.general;
    let mut left = batch;
    while let [LookUp { key, hash, spot }, rest @ ..] = left {
        left = rest;
        let found = reader.get(key, *hash, spot, |hit| {
            value(key, hit, read.cas, replies);
            count_read(cx.counters, hit);
        });
        if found.is_err() {
            general.get_misses.add(1);
        }
        if replies.waiting() >= limit {
            break;
        }
    }
    let read = batch.len() - left.len();
    general.get_cmds.add(read as u64);
    read
}

/// Reads one key whose hash is known and appends what it holds.
#[inline]
pub fn one(cx: &Context<'_>, key: &[u8], hash: u64, read: Read, replies: &mut Replies) {
    let found = match read.touch {
        None => cx.store().get(cx.caller(), key, hash, |hit| {
            value(key, hit, read.cas, replies);
            count_hit(cx.counters, hit, false)
        }),
        Some(expires) => touched(cx, key, hash, read.cas, expires, replies),
    };
    if found.is_err() {
        count_miss(cx.counters, read.touch.is_some());
    }
    if cx.tapped(FETCHERS | DETAIL) {
        tell(cx, key, found);
    }
}

/// Reads one key and gives it a new expiry.
#[inline(never)]
fn touched(
    cx: &Context<'_>,
    key: &[u8],
    hash: u64,
    cas: bool,
    expires: u32,
    replies: &mut Replies,
) -> Result<(u8, usize), Miss> {
    let touch = store::Fetch {
        touch: Some(expires),
        ..store::Fetch::default()
    };
    cx.store().fetch(cx.caller(), key, hash, &touch, |hit| {
        value(key, hit, cas, replies);
        count_hit(cx.counters, hit, true)
    })
}

/// Behind the last key.
pub fn end(replies: &mut Replies) {
    replies.push(b"END\r\n");
}

#[inline(always)]
fn value(key: &[u8], hit: &Hit<'_>, cas: bool, replies: &mut Replies) {
    let most = if cas { 0 } else { SHORT };
    if let Some(bytes) = hit.plain()
        && bytes.len() < most
    {
        let mut room = replies.room(24 + key.len() + bytes.len());
        room.put(b"VALUE ");
        room.put_key(key);
        let (end, used) = short_end(bytes.len());
        room.put_short(end, used);
        room.put(bytes);
        room.put(b"\r\n");
        return;
    }
    line(key, hit, cas, replies);
    match hit.inline() {
        Some(bytes) => replies.push(bytes),
        None => replies.attach_value(hit),
    }
    replies.push(b"\r\n");
}

/// The line before any value.
#[inline(never)]
fn line(key: &[u8], hit: &Hit<'_>, cas: bool, replies: &mut Replies) {
    let mut room = replies.room(80 + key.len());
    room.put(b"VALUE ");
    room.put_key(key);
    room.put(b" ");
    room.number(u64::from(hit.flags()));
    room.put(b" ");
    room.number(hit.length() as u64);
    if cas {
        room.put(b" ");
        room.number(hit.cas());
    }
    room.put(b"\r\n");
}

/// Values of fewer bytes are short.
const SHORT: usize = 1000;

/// How most lines end: flags 0, a short length, no CAS; and how many of the bytes count.
static SHORT_ENDS: ([[u8; 8]; SHORT], [u8; SHORT]) = short_ends();

/// As [`SHORT_ENDS`] has it.
#[inline(always)]
fn short_end(length: usize) -> ([u8; 8], usize) {
    (SHORT_ENDS.0[length], usize::from(SHORT_ENDS.1[length]))
}

const fn short_ends() -> ([[u8; 8]; SHORT], [u8; SHORT]) {
    let mut ends = ([[0; 8]; SHORT], [0; SHORT]);
    let mut length = 0;
    while length < SHORT {
        let (ones, tens, hundreds) = (digit(length), digit(length / 10), digit(length / 100));
        (ends.0[length], ends.1[length]) = match length {
            100.. => ([b' ', b'0', b' ', hundreds, tens, ones, b'\r', b'\n'], 8),
            10.. => ([b' ', b'0', b' ', tens, ones, b'\r', b'\n', 0], 7),
            _ => ([b' ', b'0', b' ', ones, b'\r', b'\n', 0, 0], 6),
        };
        length += 1;
    }
    ends
}

const fn digit(number: usize) -> u8 {
    b'0' + (number % 10) as u8
}

/// A read that found something; one that touches counts as a touch only. Returns class and length.
#[inline(always)]
pub fn count_hit(counters: &ThreadCounters, hit: &Hit<'_>, touched: bool) -> (u8, usize) {
    let number = if touched {
        let number = hit.class();
        counters.general.touch_cmds.add(1);
        counters.classes[usize::from(number & 63)].touch_hits.add(1);
        number
    } else {
        counters.general.get_cmds.add(1);
        count_read(counters, hit)
    };
    (number, hit.length())
}

/// What a hit is to its class, which is returned.
#[inline(always)]
fn count_read(counters: &ThreadCounters, hit: &Hit<'_>) -> u8 {
    let number = hit.class();
    let class = &counters.classes[usize::from(number & 63)];
    let by_queue: &Counter = match hit.queue() {
        Queue::Hot => &class.hits_to_hot,
        Queue::Warm => &class.hits_to_warm,
        Queue::Cold => &class.hits_to_cold,
        Queue::Temp => &class.hits_to_temp,
    };
    by_queue.add(1);
    number
}

/// A read that found nothing.
pub fn count_miss(counters: &ThreadCounters, touched: bool) {
    let general = &counters.general;
    if touched {
        general.touch_cmds.add(1);
        general.touch_misses.add(1);
    } else {
        general.get_cmds.add(1);
        general.get_misses.add(1);
    }
}

#[cold]
#[inline(never)]
fn tell(cx: &Context<'_>, key: &[u8], found: Result<(u8, usize), Miss>) {
    if cx.tapped(DETAIL) {
        cx.shared.prefixes.get(key, found.is_ok());
    }
    if cx.tapped(FETCHERS) {
        cx.tell_fetch(key, found);
    }
}

#[cfg(test)]
mod tests {
    use super::{SHORT, short_end};

    #[test]
    fn a_short_line_ends_as_a_long_one_would() {
        for length in 0..SHORT {
            let (bytes, used) = short_end(length);
            assert_eq!(&bytes[..used], format!(" 0 {length}\r\n").as_bytes());
        }
    }
}
