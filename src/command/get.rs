#![forbid(unsafe_code)]
//! Reading: `get gets gat gats`, key by key.
//!
//! A hit is encoded under the item's lock straight into the reply buffer: no intermediate copy, no
//! allocation. Only values beyond [`COPY_MAX`](crate::store::COPY_MAX) stay where they are, pinned.

use crate::observe::events::{DETAIL, FETCHERS};
use crate::observe::{Counter, ThreadCounters};
use crate::store::{self, Hit, Miss, Queue};

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

/// Reads up to [`BATCH`] keys in order and appends the hits. Longer slices are cut into batches.
pub fn keys(cx: &Context<'_>, keys: &[&[u8]], read: Read, replies: &mut Replies) {
    let store = cx.store();
    for batch in keys.chunks(BATCH) {
        let mut hashes = [0; BATCH];
        for (hash, key) in hashes.iter_mut().zip(batch) {
            *hash = store.hash(key);
            store.prefetch(*hash);
        }
        if batch.len() > 1 {
            for hash in &hashes[..batch.len()] {
                store.prefetch_items(*hash);
            }
        }
        for (hash, key) in hashes.iter().zip(batch) {
            one(cx, key, *hash, read, replies);
        }
    }
}

/// Reads one key whose hash is known and appends what it holds.
#[inline]
pub fn one(cx: &Context<'_>, key: &[u8], hash: u64, read: Read, replies: &mut Replies) {
    let show = |hit: &Hit<'_>| {
        value(key, hit, read.cas, replies);
        count_hit(cx.counters, hit, read.touch.is_some());
        (hit.class(), hit.length())
    };
    let found = match read.touch {
        None => cx.store().get(cx.caller(), key, hash, show),
        Some(expires) => {
            let touch = store::Fetch {
                touch: Some(expires),
                ..store::Fetch::default()
            };
            cx.store().fetch(cx.caller(), key, hash, &touch, show)
        }
    };
    if found.is_err() {
        count_miss(cx.counters, read.touch.is_some());
    }
    if cx.tapped(FETCHERS | DETAIL) {
        tell(cx, key, found);
    }
}

/// Behind the last key.
pub fn end(replies: &mut Replies) {
    replies.push(b"END\r\n");
}

#[inline(always)]
fn value(key: &[u8], hit: &Hit<'_>, cas: bool, replies: &mut Replies) {
    let length = hit.length();
    let inline = hit.inline();
    let mut room = replies.room(80 + key.len() + inline.map_or(0, <[u8]>::len));
    room.put(b"VALUE ");
    room.put(key);
    room.put(b" ");
    room.number(u64::from(hit.flags()));
    room.put(b" ");
    room.number(length as u64);
    if cas {
        room.put(b" ");
        room.number(hit.cas());
    }
    room.put(b"\r\n");
    match inline {
        Some(bytes) => {
            room.put(bytes);
            room.put(b"\r\n");
        }
        None => {
            replies.attach_value(hit);
            replies.push(b"\r\n");
        }
    }
}

/// A read that found something; one that touches counts as a touch only.
#[inline]
pub fn count_hit(counters: &ThreadCounters, hit: &Hit<'_>, touched: bool) {
    let class = &counters.classes[usize::from(hit.class() & 63)];
    if touched {
        counters.general.touch_cmds.add(1);
        class.touch_hits.add(1);
    } else {
        counters.general.get_cmds.add(1);
        let by_queue: &Counter = match hit.queue() {
            Queue::Hot => &class.hits_to_hot,
            Queue::Warm => &class.hits_to_warm,
            Queue::Cold => &class.hits_to_cold,
            Queue::Temp => &class.hits_to_temp,
        };
        by_queue.add(1);
    }
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
