#![forbid(unsafe_code)]
//! Mutations under two-phase commit: found out in a store of their own, prepared in the log, and made
//! so when every copy in sync has voted.
//!
//! What a command would do is not computed a second time: the item is copied into a small store, the
//! command runs there, and what has become of the item is what is prepared. The reply it gave waits
//! for the verdict. One mutation of a key is under way at a time.

use std::time::{Duration, Instant};

use crate::cluster::replication::PREPARED_MAX;
use crate::cluster::replication::session::Role;
use crate::observe::events::LEASES;
use crate::protocol::request::{self, Mode, Op, Request, Style};
use crate::store::Stored;
use crate::store::copies::Seen;
use crate::store::journal::{self, Change, Journal, Kind, Record};

use super::context::{Context, Session, Shared};
use super::get::{self, Read};
use super::replies::Replies;
use super::{Ballot, Next, key_of, plain, reply, set};

/// How long a mutation waits for another one of its key. Then it is refused with a number that makes
/// mcrouter try another server.
pub const QUEUE: Duration = Duration::from_millis(50);

/// Runs a mutation as [`execute`](super::execute) would, up to the vote. `None`: it has no key to vote
/// on.
pub fn agree(
    cx: &Context<'_>,
    session: &mut Session,
    request: &Request<'_>,
    hash: u64,
    value: &[u8],
    replies: &mut Replies,
) -> Option<Next> {
    let key = key_of(&request.op)?;
    let mut room = None;
    let key = plain(&key, &mut room);
    let tried = Tried {
        key,
        style: &request.style,
        blind: is_blind(cx, key, &request.op),
    };
    let mut unlocked = *session;
    try_out(
        cx,
        session,
        &tried,
        replies,
        |inner, hash_there, replies| {
            let Op::Store(op) = &request.op else {
                lease_holds(cx, hash, None);
                return super::execute(inner, &mut unlocked, request, hash_there, value, replies);
            };
            if !lease_holds(cx, hash, op.lease) {
                let (length, binary_key) = (op.length, op.key.base64);
                reply::stored(
                    length,
                    &request.style,
                    key,
                    binary_key,
                    Stored::NotStored,
                    replies,
                );
                return Next::Done;
            }
            let request = Request {
                op: Op::Store(request::Store {
                    lease: None,
                    ..op.clone()
                }),
                style: request.style,
            };
            super::execute(inner, &mut unlocked, &request, hash_there, value, replies)
        },
    )
}

/// The same for a value that has arrived in pieces. It is given back if it has to wait.
pub fn agree_to_upload(
    cx: &Context<'_>,
    session: &mut Session,
    pending: Box<set::Pending>,
    replies: &mut Replies,
) -> (Next, Option<Box<set::Pending>>) {
    let key: Box<[u8]> = pending.key().into();
    let kept = pending.kept();
    let style = kept.style();
    let tried = Tried {
        key: &key,
        style: &style,
        blind: pending.is_blind(),
    };
    let mut pending = Some(pending);
    let next = try_out(cx, session, &tried, replies, |inner, hash, replies| {
        if let Some(pending) = pending.take() {
            let holds = lease_holds(cx, pending.hash(), pending.lease());
            set::try_upload(cx, inner, *pending, hash, holds, replies);
        }
        Next::Done
    });
    (next.unwrap_or(Next::Done), pending)
}

/// Reads a key that is given a new expiry.
pub fn agree_to_touch(
    cx: &Context<'_>,
    session: &mut Session,
    key: &[u8],
    hash: u64,
    read: Read,
    replies: &mut Replies,
) -> Option<Next> {
    let tried = Tried {
        key,
        style: &Style::Text { noreply: false },
        blind: false,
    };
    try_out(
        cx,
        session,
        &tried,
        replies,
        |inner, hash_there, replies| {
            lease_holds(cx, hash, None);
            get::one(inner, key, hash_there, read, replies);
            Next::Done
        },
    )
}

/// Whether a mutation may be run: the key's lease has this token, or it needs none, which ends the lease.
fn lease_holds(cx: &Context<'_>, hash: u64, token: Option<u64>) -> bool {
    let leases = &cx.shared.leases;
    match token {
        Some(token) => leases.redeem(hash, token, cx.now, || ()).is_some(),
        None => {
            if cx.tapped(LEASES) {
                leases.revoke(hash);
            }
            true
        }
    }
}

/// Whether what becomes of the key does not depend on what it holds.
fn is_blind(cx: &Context<'_>, key: &[u8], op: &Op<'_>) -> bool {
    matches!(op, Op::Store(op) if op.mode == Mode::Set
        && op.cas.is_none()
        && !op.invalidate
        && op.length <= cx.store().value_max(key.len(), op.flags))
}

/// What is tried out.
struct Tried<'t> {
    key: &'t [u8],
    style: &'t Style<'t>,
    /// It does the same whatever the key holds.
    blind: bool,
}

/// Runs a mutation on a copy of its item, and prepares what has become of that.
fn try_out(
    cx: &Context<'_>,
    session: &mut Session,
    tried: &Tried<'_>,
    replies: &mut Replies,
    run: impl FnOnce(&Context<'_>, u64, &mut Replies) -> Next,
) -> Option<Next> {
    let (replicas, scratch) = (cx.shared.replicas.as_ref()?, cx.shared.agreement.as_ref()?);
    let journal = cx.store().journal()?;
    let Tried { key, style, blind } = *tried;
    let place = journal::place(key);
    // Nobody else begins a vote meanwhile.
    let scratch = scratch.lock().unwrap_or_else(|broken| broken.into_inner());
    if !replicas.leading() {
        session.queued_since = None;
        reply::not_leading(style, replies);
        return Some(Next::Done);
    }
    let (busy, enough) = {
        let state = replicas.state();
        (state.votes.busy(place), state.group.enough())
    };
    if busy {
        let since = *session.queued_since.get_or_insert_with(Instant::now);
        if since.elapsed() < QUEUE {
            return Some(Next::Queue { place, since });
        }
    }
    session.queued_since = None;
    if busy || !enough {
        let refusal = if busy {
            reply::busy_later(style)
        } else {
            reply::too_few_later(style)
        };
        reply::refusal(&refusal, replies);
        return Some(Next::Done);
    }
    let inner = Context {
        shared: &scratch,
        counters: cx.counters,
        now: cx.now,
        connection: cx.connection,
    };
    let before = if blind {
        None
    } else {
        snapshot(cx, cx.shared, journal, key)
    };
    if let Some((record, _)) = before.as_ref().and_then(|bytes| Record::parse(bytes).ok()) {
        let expires = journal.from_wire(record.expires, 0);
        scratch
            .store
            .apply_put(inner.caller(), &record, expires, false);
    }
    scratch.store.raise_cas(cx.store().last_cas());
    let mark = replies.mark();
    let next = run(&inner, scratch.store.hash(key), replies);
    let after = snapshot(&inner, &scratch, journal, key);
    scratch.store.apply_delete(inner.caller(), key);
    cx.store().raise_cas(scratch.store.last_cas());
    if before == after {
        return Some(next);
    }
    let prepared = match after.as_ref().and_then(|bytes| Record::parse(bytes).ok()) {
        Some((record, _)) => Record {
            kind: Kind::Prepare,
            ..record
        },
        None => Record {
            cas: cx.store().take_cas(),
            ..Record::new(Kind::PrepareDelete, key)
        },
    };
    let length = prepared.length();
    let under_way = journal.prepared_bytes(journal::partition(place));
    let mut state = replicas.state();
    let refusal = if state.node.role != Role::Leader || !replicas.leading() {
        Some(reply::not_leading_later(style))
    } else if !state.group.enough() {
        Some(reply::too_few_later(style))
    } else if length > PREPARED_MAX {
        Some(reply::too_long_later(style))
    } else if under_way + length > PREPARED_MAX {
        Some(reply::busy_later(style))
    } else {
        None
    };
    if let Some(refusal) = refusal {
        replies.rewind(mark);
        reply::refusal(&refusal, replies);
        return Some(Next::Done);
    }
    let seq = journal.append(place, &prepared, Change::default());
    let now = replicas.now();
    state.tickets += 1;
    let ticket = state.tickets;
    state.votes.begin(ticket, place, seq, now);
    Some(Next::Vote(Box::new(Ballot {
        ticket,
        mark,
        refusal: reply::aborted_later(style),
    })))
}

/// An item with its value as a record; nothing if there is none, or none that lives.
fn snapshot(cx: &Context<'_>, shared: &Shared, journal: &Journal, key: &[u8]) -> Option<Vec<u8>> {
    let store = &shared.store;
    store.look(key, |seen: &Seen<'_>| {
        if store.seen_dead(cx.now, &seen.hit) {
            return None;
        }
        let mut gathered = Vec::new();
        let value = match seen.hit.inline() {
            Some(value) => value,
            None => {
                gathered.reserve(seen.hit.length());
                seen.hit.pieces(|piece| gathered.extend_from_slice(piece));
                &gathered
            }
        };
        let record = Record {
            seq: 0,
            expires: journal.to_wire(seen.hit.expires()),
            value,
            ..seen.record(store, Kind::Put)
        };
        let mut bytes = Vec::with_capacity(record.length());
        record.encode(&mut bytes);
        Some(bytes)
    })?
}
