#![forbid(unsafe_code)]
//! The words behind `stats`, and binary STAT: which numbers are meant, and what they look like.

use std::fmt::Arguments;

use crate::admin::{stats, stats_store};
use crate::observe::counters::CLASSES;
use crate::protocol::number;
use crate::protocol::request::Style;
use crate::protocol::words;

use super::context::Context;
use super::replies::Replies;
use super::{is_start_of, reply};

/// `stats cachedump` shows no more than this.
const CACHEDUMP_MAX: usize = 2 << 20;

/// Items shown under one look at the store.
const STEP: usize = 1024;

pub fn stats(cx: &Context<'_>, words: &[u8], style: &Style<'_>, replies: &mut Replies) {
    match *style {
        Style::Binary { opcode, opaque, .. } => binary(cx, words, opcode, opaque, replies),
        Style::Text { .. } | Style::Meta { .. } => text(cx, words, style, replies),
    }
}

/// Appends numbers that somebody else emits, as `style` has it.
pub fn emitted(
    style: &Style<'_>,
    replies: &mut Replies,
    run: impl FnOnce(&mut crate::admin::Emit<'_>),
) {
    let Style::Binary { opcode, opaque, .. } = *style else {
        return emit_text(replies, run);
    };
    let mut packet = |name: &[u8], value: &[u8]| packet(opcode, opaque, name, value, replies);
    run(&mut |name: Arguments<'_>, value: Arguments<'_>| {
        packet(name.to_string().as_bytes(), value.to_string().as_bytes());
    });
    packet(b"", b"");
}

fn text(cx: &Context<'_>, words: &[u8], style: &Style<'_>, replies: &mut Replies) {
    let mut tokens = words::words(words);
    let Some(what) = tokens.next() else {
        emit_text(replies, |emit| {
            stats::general(&cx.shared.view(), emit);
        });
        return;
    };
    // Words may be cut short, as memcached has it; the first that fits is meant.
    if is_start_of(what, b"reset") {
        reset(cx);
        reply::line(style, b"RESET", replies);
    } else if is_start_of(what, b"detail") {
        detail(cx, tokens.next(), style, replies);
    } else if is_start_of(what, b"settings") {
        emit_text(replies, |emit| stats::settings(&cx.shared.view(), emit));
    } else if is_start_of(what, b"cachedump") {
        cachedump(cx, tokens.next(), tokens.next(), style, replies);
    } else if is_start_of(what, b"conns") {
        emit_text(replies, |emit| stats::connections(&cx.shared.view(), emit));
    } else if !emit_text_if(replies, |emit| engine(cx, what, emit)) {
        reply::line(style, b"ERROR", replies);
    }
}

/// What has to be called by its whole name.
fn engine(cx: &Context<'_>, what: &[u8], emit: &mut crate::admin::Emit<'_>) -> bool {
    let view = cx.shared.view();
    match what {
        b"items" => stats_store::items(&view, emit),
        b"slabs" => stats_store::slabs(&view, emit),
        b"sizes" => stats_store::sizes(&view, emit),
        b"larder" => stats::larder(&view, emit),
        b"replication" => match &cx.shared.replicas {
            Some(replicas) => replicas.tell(|name, value| {
                emit(format_args!("{name}"), format_args!("{value}"));
            }),
            None => return false,
        },
        _ => return false,
    }
    true
}

fn emit_text(replies: &mut Replies, run: impl FnOnce(&mut crate::admin::Emit<'_>)) {
    emit_text_if(replies, |emit| {
        run(emit);
        true
    });
}

/// Runs what emits lines; if it says that there is nothing of the kind, no end follows.
fn emit_text_if(
    replies: &mut Replies,
    run: impl FnOnce(&mut crate::admin::Emit<'_>) -> bool,
) -> bool {
    let shown = run(&mut |name: Arguments<'_>, value: Arguments<'_>| {
        replies.format(format_args!("STAT {name} {value}\r\n"));
    });
    if shown {
        replies.push(b"END\r\n");
    }
    shown
}

/// One of several packets that answer the same request.
fn packet(opcode: u8, opaque: u32, name: &[u8], value: &[u8], replies: &mut Replies) {
    let body = name.len() + value.len();
    let mut room = replies.room(reply::HEADER + body);
    let status = reply::STATUS_OK;
    reply::header(&mut room, opcode, opaque, status, name.len(), 0, body, 0);
    room.put(name);
    room.put(value);
}

fn binary(cx: &Context<'_>, key: &[u8], opcode: u8, opaque: u32, replies: &mut Replies) {
    let mut packet = |name: &[u8], value: &[u8]| packet(opcode, opaque, name, value, replies);
    let mut emit = |name: Arguments<'_>, value: Arguments<'_>| {
        packet(name.to_string().as_bytes(), value.to_string().as_bytes());
    };
    let known = if key.is_empty() {
        stats::general(&cx.shared.view(), &mut emit);
        true
    } else if key.starts_with(b"reset") {
        reset(cx);
        true
    } else if key.starts_with(b"settings") {
        stats::settings(&cx.shared.view(), &mut emit);
        true
    } else if let Some(what) = key.strip_prefix(b"detail") {
        if !cx.shared.settings.store.dump_enabled {
            false
        } else if what.starts_with(b" dump") {
            let mut dump = Replies::default();
            dump_prefixes(cx, &mut dump);
            packet(b"detailed", dump.bytes());
            true
        } else if what.starts_with(b" on") || what.starts_with(b" off") {
            cx.shared
                .registry
                .taps()
                .want_detail(what.starts_with(b" on"));
            true
        } else {
            false
        }
    } else {
        engine(cx, key, &mut emit)
    };
    if known {
        packet(b"", b"");
    } else {
        reply::binary_error(opcode, opaque, reply::STATUS_NOT_FOUND, replies);
    }
}

fn reset(cx: &Context<'_>) {
    cx.shared.registry.reset();
    cx.shared.prefixes.clear();
}

fn detail(cx: &Context<'_>, what: Option<&[u8]>, style: &Style<'_>, replies: &mut Replies) {
    if !cx.shared.settings.store.dump_enabled {
        return reply::line(style, b"CLIENT_ERROR stats detail not allowed", replies);
    }
    let taps = cx.shared.registry.taps();
    match what {
        Some(what) if is_start_of(what, b"on") => taps.want_detail(true),
        Some(what) if is_start_of(what, b"off") => taps.want_detail(false),
        Some(what) if is_start_of(what, b"dump") => return dump_prefixes(cx, replies),
        _ => {
            let usage = b"CLIENT_ERROR usage: stats detail on|off|dump";
            return reply::line(style, usage, replies);
        }
    }
    reply::line(style, b"OK", replies);
}

fn dump_prefixes(cx: &Context<'_>, replies: &mut Replies) {
    cx.shared.prefixes.each(|prefix, counts| {
        replies.push(b"PREFIX ");
        replies.push(prefix);
        replies.format(format_args!(
            " get {} hit {} set {} del {}\r\n",
            counts.gets, counts.hits, counts.sets, counts.deletes
        ));
    });
    replies.push(b"END\r\n");
}

fn cachedump(
    cx: &Context<'_>,
    class: Option<&[u8]>,
    limit: Option<&[u8]>,
    style: &Style<'_>,
    replies: &mut Replies,
) {
    let fail = |line: &[u8], replies: &mut Replies| reply::line(style, line, replies);
    if !cx.shared.settings.store.dump_enabled {
        return fail(b"CLIENT_ERROR stats cachedump not allowed", replies);
    }
    let (Some(class), Some(limit)) = (class, limit) else {
        return fail(b"CLIENT_ERROR bad command line", replies);
    };
    let (Some(class), Some(limit)) = (number::unsigned32(class), number::unsigned32(limit)) else {
        return fail(b"CLIENT_ERROR bad command line format", replies);
    };
    if class >= CLASSES as u32 {
        return fail(b"CLIENT_ERROR Illegal slab id", replies);
    }
    let mut left = if limit == 0 { u32::MAX } else { limit };
    let before = replies.waiting();
    if let Ok(mut dump) = cx.store().dump(1 << class) {
        let mut more = true;
        while more {
            let mut full = false;
            more = cx.store().dump_step(cx.caller(), &mut dump, STEP, |hit| {
                if hit.binary_key() {
                    return true;
                }
                if left == 0 || replies.waiting() - before > CACHEDUMP_MAX {
                    full = true;
                    return false;
                }
                left -= 1;
                let expires = match hit.expires() {
                    0 => 0,
                    at => cx.shared.clock.to_unix(at),
                };
                replies.push(b"ITEM ");
                replies.push(&hit.key());
                replies.format(format_args!(" [{} b; {expires} s]\r\n", hit.length()));
                true
            });
            more &= !full;
        }
    }
    replies.push(b"END\r\n");
}
