#![forbid(unsafe_code)]
//! Counting: `incr decr`, `ma`, binary INCREMENT and DECREMENT.

use crate::observe::events::{FETCHERS, MUTATIONS};
use crate::protocol::request::{self, Style};
use crate::store::{self, Counted, Miss};

use super::context::Context;
use super::meta::Times;
use super::replies::Replies;
use super::reply;

pub fn arith(
    cx: &Context<'_>,
    op: &request::Arith<'_>,
    style: &Style<'_>,
    key: &[u8],
    hash: u64,
    replies: &mut Replies,
) {
    cx.tell_lookup(key, hash);
    let times = Times {
        touch: op.touch.map(|ttl| cx.expiry(ttl)),
        vivify: op.create.map(|create| cx.expiry(create.exptime)),
    };
    let expiry = match style {
        Style::Meta { flags, .. } => times.of_created(flags),
        Style::Text { .. } | Style::Binary { .. } => times.vivify,
    };
    let how = store::Arith {
        up: op.up,
        delta: op.delta,
        // Nobody has CAS 0: it means "any" here.
        cas: op.cas.filter(|&cas| cas != 0),
        new_cas: op.new_cas,
        touch: times.touch,
        create: op.create.map(|create| create.initial).zip(expiry),
    };
    let counted = cx.store().arith(cx.caller(), key, hash, &how);
    match counted {
        Counted::Number {
            class,
            created: false,
            ..
        } => {
            let counters = &cx.counters.classes[usize::from(class & 63)];
            if op.up {
                counters.incr_hits.add(1);
            } else {
                counters.decr_hits.add(1);
            }
        }
        Counted::NotFound if op.up => cx.counters.general.incr_misses.add(1),
        Counted::NotFound => cx.counters.general.decr_misses.add(1),
        _ => {}
    }
    if let Counted::Number {
        created: true,
        value,
        class,
        ..
    } = counted
        && cx.tapped(FETCHERS | MUTATIONS)
    {
        // As memcached does it: looked for once more, then stored by an add.
        let ttl = match style {
            Style::Binary { .. } => expiry.filter(|&at| at != 0),
            Style::Text { .. } | Style::Meta { .. } => None,
        };
        let ttl = ttl.map_or(0, |at| at.wrapping_sub(cx.now));
        if cx.tapped(FETCHERS) {
            cx.tell_fetch(key, Err(Miss::NotFound));
        }
        if cx.tapped(MUTATIONS) {
            let length = itoa::Buffer::new().format(value).len();
            let log = &cx.counters.log;
            log.item_store(key, "stored", "add", ttl, class, cx.connection, length);
        }
    }
    let value = matches!(style, Style::Meta { flags, .. } if super::asks_for(flags, b'v'));
    reply::counted(
        style,
        key,
        op.key.base64,
        value,
        op.create.is_some(),
        times,
        cx.now,
        counted,
        replies,
    );
}
