#![forbid(unsafe_code)]
//! One key at a time: `touch`, `mg`, `me`, and the binary GET, GAT and TOUCH families.

use crate::observe::events::{DETAIL, FETCHERS};
use crate::protocol::request::{self, Style};
use crate::protocol::words::words;
use crate::store::{self, Hit, Miss};

use super::context::Context;
use super::get::{count_hit, count_miss};
use super::replies::Replies;
use super::{meta, reply};

/// `touch`
pub fn touch(
    cx: &Context<'_>,
    exptime: i64,
    style: &Style<'_>,
    key: &[u8],
    hash: u64,
    replies: &mut Replies,
) {
    let how = store::Fetch {
        touch: Some(cx.expiry(exptime)),
        ..store::Fetch::default()
    };
    let found = cx.store().fetch(cx.caller(), key, hash, &how, |hit| {
        count_hit(cx.counters, hit, true);
        (hit.class(), hit.length())
    });
    if found.is_err() {
        count_miss(cx.counters, true);
    }
    if cx.tapped(FETCHERS) {
        cx.tell_fetch(key, found);
    }
    let answer: &[u8] = if found.is_ok() {
        b"TOUCHED"
    } else {
        b"NOT_FOUND"
    };
    reply::line(style, answer, replies);
}

/// `mg`, and what binary clients read with.
pub fn fetch(
    cx: &Context<'_>,
    op: &request::Fetch<'_>,
    style: &Style<'_>,
    key: &[u8],
    hash: u64,
    replies: &mut Replies,
) {
    match *style {
        Style::Binary {
            opcode,
            opaque,
            quiet,
        } => fetch_binary(cx, op, (opcode, opaque, quiet), key, hash, replies),
        Style::Meta { flags, quiet } => fetch_meta(cx, op, (flags, quiet), key, hash, replies),
        Style::Text { .. } => {}
    }
}

fn how(
    cx: &Context<'_>,
    op: &request::Fetch<'_>,
    times: meta::Times,
    flags: &[u8],
) -> store::Fetch {
    store::Fetch {
        touch: times.touch,
        vivify: times.of_created(flags),
        recache: op.recache.map(|ttl| cx.expiry(ttl)),
        recache_first: op.recache.is_some() && op.touch.is_some() && recache_first(flags),
        new_cas: op.new_cas,
        quiet: !op.bump,
        leases: true,
        binary_key: false,
    }
}

/// Flags are heeded in their order: whether `R` stands before `T`.
fn recache_first(flags: &[u8]) -> bool {
    words(flags)
        .find(|token| matches!(token[0], b'R' | b'T'))
        .is_some_and(|token| token[0] == b'R')
}

fn fetch_meta(
    cx: &Context<'_>,
    op: &request::Fetch<'_>,
    (flags, quiet): (&[u8], bool),
    key: &[u8],
    hash: u64,
    replies: &mut Replies,
) {
    let touches = op.touch.is_some();
    let mut created = false;
    let times = meta::Times {
        touch: op.touch.map(|ttl| cx.expiry(ttl)),
        vivify: op.vivify.map(|ttl| cx.expiry(ttl)),
    };
    let found = cx
        .store()
        .fetch(cx.caller(), key, hash, &how(cx, op, times, flags), |hit| {
            let value = op.value && op.known_cas != Some(hit.cas());
            meta::fetched(hit, key, flags, value, times, cx.now, replies);
            count_hit(cx.counters, hit, touches);
            created = hit.created();
            (hit.class(), hit.length())
        });
    if found.is_err() {
        // A miss counts as a read even if it was to touch.
        count_miss(cx.counters, false);
        if !quiet {
            meta::echo(b"EN", flags, key, op.key.base64, replies);
        }
    }
    if cx.tapped(FETCHERS) {
        // What has been created was not there to be found.
        let found = if created { Err(Miss::NotFound) } else { found };
        cx.tell_fetch(key, found);
    }
}

fn fetch_binary(
    cx: &Context<'_>,
    op: &request::Fetch<'_>,
    (opcode, opaque, quiet): (u8, u32, bool),
    key: &[u8],
    hash: u64,
    replies: &mut Replies,
) {
    let with_key = matches!(opcode, 0x0c | 0x0d | 0x23 | 0x24);
    let touches = op.touch.is_some();
    let shown: &[u8] = if with_key { key } else { b"" };
    let show = |hit: &Hit<'_>| {
        let length = if op.value { hit.length() } else { 0 };
        let inline = if op.value {
            hit.inline()
        } else {
            Some(&b""[..])
        };
        let body = 4 + shown.len() + length;
        let mut room =
            replies.room(reply::HEADER + 4 + shown.len() + inline.map_or(0, <[u8]>::len));
        reply::header(
            &mut room,
            opcode,
            opaque,
            reply::STATUS_OK,
            shown.len(),
            4,
            body,
            hit.cas(),
        );
        room.put(&hit.flags().to_be_bytes());
        room.put(shown);
        match inline {
            Some(bytes) => room.put(bytes),
            None => {
                drop(room);
                replies.attach_value(hit);
            }
        }
        count_hit(cx.counters, hit, touches);
        (hit.class(), hit.length())
    };
    let found = match op.touch {
        None => cx.store().get(cx.caller(), key, hash, show),
        Some(_) => {
            let how = store::Fetch {
                touch: op.touch.map(|ttl| cx.expiry(ttl)),
                ..store::Fetch::default()
            };
            cx.store().fetch(cx.caller(), key, hash, &how, show)
        }
    };
    if found.is_err() {
        count_miss(cx.counters, touches);
        if !quiet {
            miss_binary(opcode, opaque, shown, replies);
        }
    }
    if cx.tapped(FETCHERS | DETAIL) {
        tell(cx, key, found);
    }
}

/// The key in place of the text, where the request wants keys.
fn miss_binary(opcode: u8, opaque: u32, shown: &[u8], replies: &mut Replies) {
    let status = reply::STATUS_NOT_FOUND;
    if shown.is_empty() {
        return reply::binary_error(opcode, opaque, status, replies);
    }
    let mut room = replies.room(reply::HEADER + shown.len());
    let length = shown.len();
    reply::header(&mut room, opcode, opaque, status, length, 0, length, 0);
    room.put(shown);
}

#[cold]
fn tell(cx: &Context<'_>, key: &[u8], found: Result<(u8, usize), Miss>) {
    if cx.tapped(DETAIL) {
        cx.shared.prefixes.get(key, found.is_ok());
    }
    if cx.tapped(FETCHERS) {
        cx.tell_fetch(key, found);
    }
}

/// `me`
pub fn describe(cx: &Context<'_>, key: &[u8], hash: u64, replies: &mut Replies) {
    let quiet = store::Fetch {
        quiet: true,
        ..store::Fetch::default()
    };
    let found = cx.store().fetch(cx.caller(), key, hash, &quiet, |hit| {
        meta::described(hit, key, cx.now, replies);
        (hit.class(), hit.length())
    });
    if found.is_err() {
        replies.push(b"EN\r\n");
    }
    cx.counters.general.meta_cmds.add(1);
    if cx.tapped(FETCHERS) {
        cx.tell_fetch(key, found);
    }
}
