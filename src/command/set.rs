#![forbid(unsafe_code)]
//! Keeping a value: `set add replace append prepend cas`, `ms`, and the binary ones.
//!
//! A value at hand goes into the store with one call ([`whole`]); one that is too long to wait for
//! is read straight into the memory it will stay in ([`begin`], [`finish`]).

use crate::observe::events::{DETAIL, LEASES, MUTATIONS};
use crate::protocol::request::{self, Refusal, Style};
use crate::store::{self, Put, Refused, Stored, Upload};

use super::context::{Context, Session};
use super::replies::Replies;
use super::{Next, agree, reply};

const TOO_LARGE: &str = "SERVER_ERROR object too large for cache";
const NO_MEMORY: &str = "SERVER_ERROR out of memory storing object";
const NO_MEMORY_LATE: &str = "SERVER_ERROR Out of memory during read";
const BAD_CHUNK: &str = "CLIENT_ERROR bad data chunk";

/// Everything about a store but the key and the value.
#[derive(Debug, Clone, Copy)]
struct Plan {
    hash: u64,
    mode: store::Mode,
    length: usize,
    flags: u32,
    expires: u32,
    cas: Option<u64>,
    new_cas: Option<u64>,
    invalidate: bool,
    vivify: Option<u32>,
    binary_key: bool,
    /// The token of the lease to store with.
    lease: Option<u64>,
    /// If there is no room for the new value the old one must go, lest it be read as the new one.
    clears: bool,
}

impl Plan {
    fn new(cx: &Context<'_>, op: &request::Store<'_>, style: &Style<'_>, hash: u64) -> Plan {
        let binary = matches!(style, Style::Binary { .. });
        let joins = matches!(op.mode, request::Mode::Append | request::Mode::Prepend);
        // A binary store that compares is a plain one where no item has a CAS id.
        let compares = |_: &u64| !binary || cx.shared.settings.store.cas;
        let (mode, cas) = match (op.mode, op.cas.filter(compares)) {
            (request::Mode::Set | request::Mode::Replace, Some(cas)) => {
                (store::Mode::Set, Some(cas))
            }
            // Text and meta `add` do not look at it; a binary ADD becomes a compare-and-store.
            (request::Mode::Add, Some(cas)) if binary => (store::Mode::Set, Some(cas)),
            (request::Mode::Add, _) => (store::Mode::Add, None),
            (request::Mode::Set, None) => (store::Mode::Set, None),
            (request::Mode::Replace, None) => (store::Mode::Replace, None),
            (request::Mode::Append, cas) => (store::Mode::Append, cas.filter(|&cas| cas != 0)),
            (request::Mode::Prepend, cas) => (store::Mode::Prepend, cas.filter(|&cas| cas != 0)),
        };
        let vivify = op.vivify.filter(|_| joins).map(|ttl| cx.expiry(ttl));
        Plan {
            hash,
            mode,
            length: op.length,
            flags: op.flags,
            expires: vivify.unwrap_or_else(|| cx.expiry(op.exptime)),
            cas,
            new_cas: op.new_cas,
            invalidate: op.invalidate,
            vivify,
            binary_key: op.key.base64,
            lease: op.lease,
            clears: match style {
                Style::Meta { .. } => true,
                Style::Binary { .. } => op.mode == request::Mode::Set,
                Style::Text { .. } => op.mode == request::Mode::Set && cas.is_none(),
            },
        }
    }

    fn put<'k>(&self, key: &'k [u8]) -> Put<'k> {
        Put {
            key,
            hash: self.hash,
            mode: self.mode,
            flags: self.flags,
            expires: self.expires,
            cas: self.cas,
            new_cas: self.new_cas,
            invalidate: self.invalidate,
            vivify: self.vivify,
            binary_key: self.binary_key,
        }
    }

    /// The command's name in the log.
    fn name(&self) -> &'static str {
        match (self.mode, self.cas) {
            (store::Mode::Set, Some(_)) => "cas",
            (store::Mode::Set, None) => "set",
            (store::Mode::Add, _) => "add",
            (store::Mode::Replace, _) => "replace",
            (store::Mode::Append, _) => "append",
            (store::Mode::Prepend, _) => "prepend",
        }
    }
}

/// A value on its way into the store. Dropping it gives the memory back and changes nothing.
pub struct Pending {
    /// Where the bytes go.
    pub upload: Upload,
    plan: Plan,
    key: Box<[u8]>,
    style: Kept,
    /// Copies vote on it when it is whole.
    agrees: bool,
}

impl Pending {
    /// Bytes to be read behind the value.
    pub fn terminator(&self) -> usize {
        terminator_length(&self.style.style())
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(super) fn hash(&self) -> u64 {
        self.plan.hash
    }

    pub(super) fn lease(&self) -> Option<u64> {
        self.plan.lease
    }

    pub(super) fn kept(&self) -> Kept {
        self.style.clone()
    }

    /// Whether it does the same whatever the key holds.
    pub(super) fn is_blind(&self) -> bool {
        self.plan.mode == store::Mode::Set && self.plan.cas.is_none() && !self.plan.invalidate
    }
}

/// A style that has outlived its line.
#[derive(Clone)]
pub(super) enum Kept {
    Text {
        noreply: bool,
    },
    Meta {
        flags: Box<[u8]>,
        quiet: bool,
    },
    Binary {
        opcode: u8,
        opaque: u32,
        quiet: bool,
    },
}

impl Kept {
    fn new(style: &Style<'_>) -> Kept {
        match *style {
            Style::Text { noreply } => Kept::Text { noreply },
            Style::Meta { flags, quiet } => Kept::Meta {
                flags: flags.into(),
                quiet,
            },
            Style::Binary {
                opcode,
                opaque,
                quiet,
            } => Kept::Binary {
                opcode,
                opaque,
                quiet,
            },
        }
    }

    pub(super) fn style(&self) -> Style<'_> {
        match *self {
            Kept::Text { noreply } => Style::Text { noreply },
            Kept::Meta { ref flags, quiet } => Style::Meta { flags, quiet },
            Kept::Binary {
                opcode,
                opaque,
                quiet,
            } => Style::Binary {
                opcode,
                opaque,
                quiet,
            },
        }
    }
}

/// Keeps a value that is at hand; `value` is what followed the line, with its terminator.
pub fn whole(
    cx: &Context<'_>,
    op: &request::Store<'_>,
    style: &Style<'_>,
    key: &[u8],
    hash: u64,
    value: &[u8],
    replies: &mut Replies,
) {
    let plan = Plan::new(cx, op, style, hash);
    count_prefix(cx, style, key);
    let (value, terminator) = value.split_at(op.length.min(value.len()));
    if !terminated(style, terminator) {
        if op.length > cx.store().value_max(key.len(), plan.flags) {
            let refusal = refused(cx, &plan, style, key, Refused::TooLarge);
            return reply::refusal(&refusal, replies);
        }
        return bad_chunk(cx, &plan, style, key, replies);
    }
    cx.tell_lookup(key, hash);
    let stored = keep(cx, &plan, || {
        cx.store().put(cx.caller(), &plan.put(key), value)
    });
    settle(cx, &plan, style, key, stored, replies);
}

/// Takes memory for a value that is not at hand yet.
pub fn begin(
    cx: &Context<'_>,
    op: &request::Store<'_>,
    style: &Style<'_>,
    key: &[u8],
    hash: u64,
    agrees: bool,
) -> Next {
    let mut plan = Plan::new(cx, op, style, hash);
    // What is agreed upon does not go without a vote either.
    plan.clears &= !agrees;
    count_prefix(cx, style, key);
    match cx.store().begin(cx.caller(), &plan.put(key), op.length) {
        Ok(upload) => Next::Value(Box::new(Pending {
            upload,
            plan,
            key: key.into(),
            style: Kept::new(style),
            agrees,
        })),
        Err(why) => Next::Skip {
            bytes: (op.length + terminator_length(style)) as u64,
            then: refused(cx, &plan, style, key, why),
        },
    }
}

/// Lets go a value for whose rest there is no memory. Returns how many bytes of it, and behind it, are
/// still to come, and the answer.
pub fn give_up(cx: &Context<'_>, pending: Pending, why: Refused) -> (u64, Refusal) {
    let Pending {
        upload,
        plan,
        key,
        style,
        ..
    } = pending;
    let style = style.style();
    let rest = upload.missing() + terminator_length(&style);
    drop(upload);
    let refusal = match refused(cx, &plan, &style, &key, why) {
        Refusal::Line(_) => Refusal::Line(NO_MEMORY_LATE),
        Refusal::Binary {
            opcode,
            opaque,
            status,
            ..
        } => Refusal::Binary {
            opcode,
            opaque,
            status,
            text: NO_MEMORY_LATE.trim_start_matches("SERVER_ERROR "),
        },
        silent => silent,
    };
    (rest as u64, refusal)
}

/// Links a value that has arrived; `terminator` is what followed it. One that has to wait for its turn
/// is given back.
pub fn finish(
    cx: &Context<'_>,
    session: &mut Session,
    pending: Box<Pending>,
    terminator: &[u8],
    replies: &mut Replies,
) -> (Next, Option<Box<Pending>>) {
    let style = pending.style.style();
    if !terminated(&style, terminator) {
        bad_chunk(cx, &pending.plan, &style, &pending.key, replies);
        return (Next::Done, None);
    }
    if cx.follows() {
        reply::not_leading(&style, replies);
        return (Next::Done, None);
    }
    if pending.agrees {
        return agree::agree_to_upload(cx, session, pending, replies);
    }
    let Pending {
        upload,
        plan,
        key,
        style,
        ..
    } = *pending;
    cx.tell_lookup(&key, plan.hash);
    let stored = keep(cx, &plan, || {
        cx.store().finish(cx.caller(), &plan.put(&key), upload)
    });
    settle(cx, &plan, &style.style(), &key, stored, replies);
    (Next::Done, None)
}

/// Puts a value that has arrived into another store, `inner`'s, where its key has this hash. `holds`: its
/// lease does.
pub(super) fn try_upload(
    cx: &Context<'_>,
    inner: &Context<'_>,
    pending: Pending,
    hash: u64,
    holds: bool,
    replies: &mut Replies,
) {
    let Pending {
        upload,
        plan,
        key,
        style,
        ..
    } = pending;
    cx.tell_lookup(&key, plan.hash);
    let value = cx.store().withdraw(cx.caller(), upload);
    let plan = Plan { hash, ..plan };
    let stored = if holds {
        inner.store().put(inner.caller(), &plan.put(&key), &value)
    } else {
        Stored::NotStored
    };
    settle(inner, &plan, &style.style(), &key, stored, replies);
}

/// Stores, if the lease allows it; without one, whoever holds the key's lease loses it.
#[inline]
fn keep(cx: &Context<'_>, plan: &Plan, store: impl FnOnce() -> Stored) -> Stored {
    if let Some(token) = plan.lease {
        let leases = &cx.shared.leases;
        let stored = leases.redeem(plan.hash, token, cx.now, store);
        return stored.unwrap_or(Stored::NotStored);
    }
    if cx.tapped(LEASES) {
        cx.shared.leases.revoke(plan.hash);
    }
    store()
}

/// Bytes that follow a value.
pub fn terminator_length(style: &Style<'_>) -> usize {
    match style {
        Style::Text { .. } | Style::Meta { .. } => 2,
        Style::Binary { .. } => 0,
    }
}

fn terminated(style: &Style<'_>, terminator: &[u8]) -> bool {
    matches!(style, Style::Binary { .. }) || terminator == b"\r\n"
}

/// What a value is answered with whose terminator is none.
pub fn ill_terminated(style: &Style<'_>, terminator: &[u8]) -> Option<Refusal> {
    match style {
        _ if terminated(style, terminator) => None,
        Style::Text { noreply: true } => Some(Refusal::Silent),
        _ => Some(Refusal::Line(BAD_CHUNK)),
    }
}

fn bad_chunk(cx: &Context<'_>, plan: &Plan, style: &Style<'_>, key: &[u8], replies: &mut Replies) {
    count_set(cx, class_of(cx, plan, key));
    if matches!(style, Style::Meta { .. }) && plan.new_cas.is_none() {
        // The line has taken an id before the value was looked at.
        cx.store().use_up_cas();
    }
    if !matches!(style, Style::Text { noreply: true }) {
        replies.line(BAD_CHUNK.as_bytes());
    }
}

/// Counts and answers.
fn settle(
    cx: &Context<'_>,
    plan: &Plan,
    style: &Style<'_>,
    key: &[u8],
    stored: Stored,
    replies: &mut Replies,
) {
    let joins = matches!(plan.mode, store::Mode::Append | store::Mode::Prepend);
    let class = match stored {
        Stored::TooLarge => {
            let refusal = refused(cx, plan, style, key, Refused::TooLarge);
            return reply::refusal(&refusal, replies);
        }
        Stored::NoMemory => {
            let refusal = refused(cx, plan, style, key, Refused::NoMemory);
            return reply::refusal(&refusal, replies);
        }
        Stored::Stored { class, .. } if !joins => class,
        _ => class_of(cx, plan, key),
    };
    count_set(cx, class);
    if stored == Stored::NotFound {
        cx.counters.general.cas_misses.add(1);
    }
    if cx.tapped(MUTATIONS) {
        let status = match stored {
            Stored::Stored { .. } => "stored",
            Stored::NotStored => "not_stored",
            Stored::Exists => "exists",
            Stored::NotFound => "not_found",
            Stored::TooLarge => "too_large",
            Stored::NoMemory => "no_memory",
        };
        let length = match stored {
            Stored::Stored { length, .. } => length,
            _ => plan.length,
        };
        tell(cx, plan, key, status, class, length);
    }
    reply::stored(plan.length, style, key, plan.binary_key, stored, replies);
}

/// Counts a value that finds no room, and says how to answer.
#[cold]
fn refused(cx: &Context<'_>, plan: &Plan, style: &Style<'_>, key: &[u8], why: Refused) -> Refusal {
    let (counter, status, line, code, text) = match why {
        Refused::TooLarge => (
            &cx.counters.general.store_too_large,
            "too_large",
            TOO_LARGE,
            reply::STATUS_TOO_LARGE,
            "Too large.",
        ),
        Refused::NoMemory => (
            &cx.counters.general.store_no_memory,
            "no_memory",
            NO_MEMORY,
            reply::STATUS_NO_MEMORY,
            "Out of memory allocating item",
        ),
    };
    counter.add(1);
    if cx.tapped(MUTATIONS) {
        tell(cx, plan, key, status, 0, 0);
    }
    if plan.clears {
        cx.tell_lookup(key, plan.hash);
        cx.store()
            .delete(cx.caller(), key, plan.hash, &store::Delete::default());
    }
    reply::refused(style, line, code, text)
}

#[cold]
fn tell(cx: &Context<'_>, plan: &Plan, key: &[u8], status: &str, class: u8, length: usize) {
    // What is joined to a value lives as long as that.
    let expires = match plan.mode {
        store::Mode::Append | store::Mode::Prepend if status == "stored" => {
            let quiet = store::Fetch {
                quiet: true,
                ..store::Fetch::default()
            };
            cx.store()
                .fetch(cx.caller(), key, plan.hash, &quiet, |hit| hit.expires())
                .unwrap_or(0)
        }
        _ => plan.expires,
    };
    let ttl = match expires {
        0 => 0,
        at => at.wrapping_sub(cx.now),
    };
    cx.counters
        .log
        .item_store(key, status, plan.name(), ttl, class, cx.connection, length);
}

fn class_of(cx: &Context<'_>, plan: &Plan, key: &[u8]) -> u8 {
    cx.store().class_of(key.len(), plan.flags, plan.length)
}

#[inline]
fn count_set(cx: &Context<'_>, class: u8) {
    cx.counters.classes[usize::from(class & 63)].set_cmds.add(1);
}

#[inline]
fn count_prefix(cx: &Context<'_>, style: &Style<'_>, key: &[u8]) {
    if cx.tapped(DETAIL) && !matches!(style, Style::Meta { .. }) {
        cx.shared.prefixes.set(key);
    }
}
