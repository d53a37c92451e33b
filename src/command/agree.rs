#![forbid(unsafe_code)]
//! Mutations under two-phase commit: found out in a store of their own, prepared in the log, and made
//! so when every copy in sync has voted.
//!
//! What a command would do is not computed a second time: the item is copied into a small store, the
//! command runs there, and what has become of the item is what is prepared. The reply it gave waits
//! for the verdict. One mutation of a key is under way at a time.

use crate::cluster::replication::replicas::State;
use crate::cluster::replication::session::Role;
use crate::protocol::request::Request;
use crate::store::copies::Seen;
use crate::store::journal::{self, Change, Journal, Kind, Record};

use super::context::{Context, Session, Shared};
use super::replies::Replies;
use super::{Next, key_of, plain, reply};

/// Another mutation of the key is under way. The number makes mcrouter try another server.
const BUSY: &[u8] = b"SERVER_ERROR 307 busy";

/// Nothing has been done: see `--repl-min-isr`.
const TOO_FEW: &[u8] = b"SERVER_ERROR not enough copies in sync";

/// Longer values are not agreed upon.
pub const VALUE_MAX: usize = 256 << 10;

const TOO_LONG: &[u8] = b"SERVER_ERROR object too large for two-phase commit";

/// Runs a mutation as [`execute`](super::execute) would, up to the vote.
pub fn agree(
    cx: &Context<'_>,
    session: &mut Session,
    request: &Request<'_>,
    value: &[u8],
    replies: &mut Replies,
) -> Option<Next> {
    let (replicas, scratch) = (cx.shared.replicas.as_ref()?, cx.shared.agreement.as_ref()?);
    let journal = cx.store().journal()?;
    let key = key_of(&request.op)?;
    let mut room = None;
    let key = plain(&key, &mut room);
    let place = journal::place(key);
    let scratch = scratch.lock().unwrap_or_else(|broken| broken.into_inner());
    let mut state = replicas.state();
    if state.node.role != Role::Leader || !replicas.leading() {
        reply::not_leading(&request.style, replies);
        return Some(Next::Done);
    }
    if state.votes.busy(place) {
        reply::line(&request.style, BUSY, replies);
        return Some(Next::Done);
    }
    if !state.group.enough() {
        reply::line(&request.style, TOO_FEW, replies);
        return Some(Next::Done);
    }
    let inner = Context {
        shared: &scratch,
        counters: cx.counters,
        now: cx.now,
        connection: cx.connection,
    };
    let before = snapshot(cx, cx.shared, journal, key);
    if before.as_ref().is_some_and(|bytes| bytes.len() > VALUE_MAX) {
        reply::line(&request.style, TOO_LONG, replies);
        return Some(Next::Done);
    }
    if let Some((record, _)) = before.as_ref().and_then(|bytes| Record::parse(bytes).ok()) {
        let expires = journal.from_wire(record.expires, 0);
        scratch
            .store
            .apply_put(inner.caller(), &record, expires, false);
    }
    scratch.store.raise_cas(cx.store().last_cas());
    let hash = scratch.store.hash(key);
    let next = super::execute(&inner, session, request, hash, value, replies);
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
    let seq = journal.append(place, &prepared, Change::default());
    Some(Next::Vote(begin(&mut state, place, seq, replicas.now())))
}

fn begin(state: &mut State, place: u64, seq: u64, now: u64) -> u64 {
    state.tickets += 1;
    state.votes.begin(state.tickets, place, seq, now);
    state.tickets
}

/// An item with its value as a record; nothing if there is none, or none that lives.
fn snapshot(cx: &Context<'_>, shared: &Shared, journal: &Journal, key: &[u8]) -> Option<Vec<u8>> {
    let store = &shared.store;
    store.look(key, |seen: &Seen<'_>| {
        if store.seen_dead(cx.now, &seen.hit) {
            return None;
        }
        let mut value = Vec::with_capacity(seen.hit.length());
        seen.hit.pieces(|piece| value.extend_from_slice(piece));
        let mut bytes = Vec::new();
        Record {
            seq: 0,
            expires: journal.to_wire(seen.hit.expires()),
            value: &value,
            ..seen.record(store, Kind::Put)
        }
        .encode(&mut bytes);
        Some(bytes)
    })?
}
