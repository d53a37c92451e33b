#![forbid(unsafe_code)]
//! Removing: `delete`, `md`, binary DELETE.

use crate::observe::events::{DELETIONS, DETAIL, LEASES, MUTATIONS};
use crate::protocol::request::{self, Style};
use crate::store::{self, Deleted};

use super::context::Context;
use super::replies::Replies;
use super::reply;

pub fn delete(
    cx: &Context<'_>,
    op: &request::Delete<'_>,
    style: &Style<'_>,
    key: &[u8],
    hash: u64,
    replies: &mut Replies,
) {
    if cx.tapped(DETAIL) && !matches!(style, Style::Meta { .. }) {
        cx.shared.prefixes.delete(key);
    }
    if cx.tapped(LEASES) {
        cx.shared.leases.revoke(hash);
    }
    cx.tell_lookup(key, hash);
    let how = store::Delete {
        cas: op.cas,
        new_cas: op.new_cas,
        stale: op.stale,
        drop_value: op.drop_value,
        touch: op.touch.map(|ttl| cx.expiry(ttl)),
        flags: op.flags,
    };
    let deleted = cx.store().delete(cx.caller(), key, hash, &how);
    if op.drop_value && matches!(deleted, Deleted::Deleted { .. }) {
        tell_dropped(cx, key, hash);
    }
    let general = &cx.counters.general;
    match deleted {
        // Stale items stay, so that they count as no deletion.
        Deleted::Deleted { .. } if op.stale => {}
        Deleted::Deleted { class, length } => {
            let length = if op.drop_value { 0 } else { length };
            let class_counters = &cx.counters.classes[usize::from(class & 63)];
            class_counters.delete_hits.add(1);
            let name = match style {
                Style::Text { .. } => "delete",
                Style::Meta { .. } => "md",
                // memcached tells nobody of binary deletions.
                Style::Binary { .. } => "",
            };
            if cx.tapped(DELETIONS) && !name.is_empty() {
                cx.counters.log.deleted(key, name, class, length);
            }
        }
        Deleted::NotFound => general.delete_misses.add(1),
        Deleted::Exists if matches!(style, Style::Meta { .. }) => general.delete_misses.add(1),
        Deleted::Exists | Deleted::NoMemory => {}
    }
    reply::deleted(style, key, op.key.base64, deleted, replies);
}

/// Tells that an empty value has been stored, after one more look-up, as memcached does it.
#[cold]
fn tell_dropped(cx: &Context<'_>, key: &[u8], hash: u64) {
    cx.tell_lookup(key, hash);
    if !cx.tapped(MUTATIONS) {
        return;
    }
    let quiet = store::Fetch {
        quiet: true,
        ..store::Fetch::default()
    };
    let found = cx.store().fetch(cx.caller(), key, hash, &quiet, |hit| {
        (hit.class(), hit.expires())
    });
    if let Ok((class, expires)) = found {
        let ttl = if expires == 0 {
            0
        } else {
            expires.wrapping_sub(cx.now)
        };
        let log = &cx.counters.log;
        log.item_store(key, "stored", "set", ttl, class, cx.connection, 0);
    }
}
