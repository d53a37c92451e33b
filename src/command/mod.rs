#![forbid(unsafe_code)]
//! What a request does: [`execute`] gives every request its meaning, once for all dialects; the
//! request's style decides what the answer looks like.
//!
//! The caller owns the input. It parses a request, waits for its value if that is short
//! ([`body_length`], [`WHOLE_MAX`]), hashes ahead of execution to overlap cache misses ([`prepare`]),
//! and does what [`Next`] says.

// What commands may touch.
pub mod context;

// What waits to be sent.
pub mod replies;

// `get gets gat gats`
pub mod get;

// Who may come in.
pub mod auth;

mod agree;
mod arith;
mod control;
mod delete;
mod dump;
mod lease;
mod meta;
mod repl;
mod reply;
mod set;
mod stats;
mod touch;

use std::time::Instant;

use crate::admin::Subscription;
use crate::cluster::replication::PREPARED_MAX;
use crate::cluster::replication::group::Level;
use crate::protocol::base64;
use crate::protocol::request::{Key, Op, Refusal, Request, Style};
use crate::protocol::words::words;
use crate::store::Refused;
use crate::store::journal::record;

pub use agree::QUEUE;
pub use context::{Context, Session, Shared, log_level};
pub use dump::Dump;
use get::LookUp;
pub use get::{BATCH, Read};
pub use replies::{Flushed, Mark, Replies};
pub use set::{Pending, ill_terminated as ill_ended};
pub use stats::emitted;

/// Longer values are not waited for: [`begin`] takes memory for them at once.
pub const WHOLE_MAX: usize = 16 << 10;

/// What the caller has to do after a request.
pub enum Next {
    /// Go on with the next request.
    Done,
    /// The keys that follow are to be read: [`get::many`], or [`get::one`] for each, then
    /// [`get::end`].
    Keys(Read),
    /// Read the value into the upload, then its terminator ([`Pending::terminator`] bytes), then
    /// call [`finish`].
    Value(Box<Pending>),
    /// Pass over so many bytes of input, then answer with [`refuse`].
    Skip { bytes: u64, then: Refusal },
    /// Send what waits at once; then go on.
    Flush,
    /// Send what waits, then hang up.
    Close,
    /// Send what waits, then the lines of the subscription as they come, and read nothing more.
    Watch(Subscription),
    /// Send what waits and what the dump appends, step by step; then go on.
    Dump(Box<Dump>),
    /// The reply waits for a verdict, and so does everything behind it.
    Vote(Box<Ballot>),
    /// What follows may be of another dialect.
    Renegotiate,
    /// Another mutation of the key, by its [`place`](crate::store::journal::place), is under way: run
    /// it again when that is over, or has taken too long.
    Queue { place: u64, since: Instant },
    /// Hang up and stop the server.
    Shutdown { graceful: bool },
}

/// A mutation that copies vote on.
#[derive(Debug, Clone, Copy)]
pub struct Ballot {
    /// By which the verdict is asked for.
    pub ticket: u64,
    /// Its reply stands behind this.
    pub mark: Mark,
    /// The reply if it is not to be.
    pub refusal: Refusal,
}

/// Bytes that follow a request's line or header and belong to it: its value and the terminator.
pub fn body_length(request: &Request<'_>) -> usize {
    match &request.op {
        Op::Store(store) => store.length + set::terminator_length(&request.style),
        Op::SaslAuth { length, .. } | Op::SaslStep { length, .. } => *length,
        _ => 0,
    }
}

/// The look-up that the request begins with, if it has a key. Its hash goes to [`execute`] or
/// [`begin`].
#[inline]
pub fn prepare<'a>(cx: &Context<'a>, request: &Request<'a>) -> Option<LookUp<'a>> {
    let key = key_of(&request.op)?;
    if cx.shared.replicas.is_some() {
        foresee(cx, &request.op, &key);
    }
    Some(if key.base64 {
        let mut room = None;
        let hash = cx.store().hash(decoded(&key, &mut room));
        LookUp::with_hash(cx.store(), key.raw, hash)
    } else {
        LookUp::new(cx.store(), key.raw)
    })
}

/// Asks for the memory in which copies will be told of a change of this key, if the operation may be one.
#[cold]
fn foresee(cx: &Context<'_>, op: &Op<'_>, key: &Key<'_>) {
    if changes_items(op) {
        let mut room = None;
        cx.store().foresee(plain(key, &mut room));
    }
}

fn key_of<'a>(op: &Op<'a>) -> Option<Key<'a>> {
    match op {
        Op::Fetch(op) => Some(op.key),
        Op::Store(op) => Some(op.key),
        Op::Delete(op) => Some(op.key),
        Op::Arith(op) => Some(op.key),
        Op::Touch { key, .. }
        | Op::Describe { key }
        | Op::LeaseGet { key }
        | Op::MetaGet { key } => Some(*key),
        _ => None,
    }
}

/// What a request comes to before it is tried here: it is refused, or agreed upon. `None`: go on.
#[cold]
fn ask_copies(
    cx: &Context<'_>,
    session: &mut Session,
    request: &Request<'_>,
    hash: u64,
    value: &[u8],
    replies: &mut Replies,
) -> Option<Next> {
    let changes = changes_items(&request.op);
    if if changes {
        cx.follows()
    } else {
        cx.refuses_reads() && key_of(&request.op).is_some()
    } {
        reply::not_leading(&request.style, replies);
        return Some(Next::Done);
    }
    if !changes {
        return None;
    }
    if cx.busy() {
        reply::refusal(&reply::busy_later(&request.style), replies);
        return Some(Next::Done);
    }
    let mut room = None;
    let key = key_of(&request.op);
    let key = key.as_ref().map(|key| plain(key, &mut room));
    if raise(cx, session, key) {
        agree::agree(cx, session, request, hash, value, replies)
    } else {
        None
    }
}

/// Notes how far copies must have come with a change of this key, or of all. Whether they must agree to
/// it first, which says that by itself.
#[inline]
fn raise(cx: &Context<'_>, session: &mut Session, key: Option<&[u8]>) -> bool {
    let Some(replicas) = &cx.shared.replicas else {
        return false;
    };
    let level = match key {
        Some(key) => replicas.level_of(key, session.listener),
        None => replicas.highest_level(session.listener),
    };
    if level == Level::TwoPhase && key.is_some() {
        return true;
    }
    session.raise(level);
    false
}

/// Reads keys and gives them a new expiry: as [`get::many`], where copies may have to know. Returns also
/// what has to be done before the next key.
pub fn touch_many(
    cx: &Context<'_>,
    session: &mut Session,
    batch: &[LookUp<'_>],
    read: Read,
    limit: usize,
    replies: &mut Replies,
) -> (usize, Next) {
    for (at, lookup) in batch.iter().enumerate() {
        let (key, hash) = (lookup.key(), lookup.hash());
        let agreed = if raise(cx, session, Some(key)) {
            agree::agree_to_touch(cx, session, key, hash, read, replies)
        } else {
            get::one(cx, key, hash, read, replies);
            Some(Next::Done)
        };
        match agreed {
            Some(next @ Next::Queue { .. }) => return (at, next),
            Some(Next::Done) | None if replies.waiting() < limit => {}
            next => return (at + 1, next.unwrap_or(Next::Done)),
        }
    }
    (batch.len(), Next::Done)
}

/// Where the bytes of a base64 key go.
enum Decoded {
    Short([u8; base64::DECODED_MAX]),
    Long(Vec<u8>),
}

impl Decoded {
    /// Room for what a text of so many bytes decodes to.
    fn new(encoded: usize) -> Decoded {
        match base64::decoded_max(encoded) {
            ..=base64::DECODED_MAX => Decoded::Short([0; base64::DECODED_MAX]),
            most => Decoded::Long(vec![0; most]),
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Decoded::Short(bytes) => bytes,
            Decoded::Long(bytes) => bytes,
        }
    }
}

/// The bytes of a key, whichever way it was written.
#[inline]
fn plain<'a>(key: &Key<'a>, room: &'a mut Option<Decoded>) -> &'a [u8] {
    if key.base64 {
        decoded(key, room)
    } else {
        key.raw
    }
}

#[cold]
fn decoded<'a>(key: &Key<'a>, room: &'a mut Option<Decoded>) -> &'a [u8] {
    let room = room.insert(Decoded::new(key.raw.len())).bytes();
    match base64::decode(key.raw, room) {
        Some(length) => &room[..length],
        // The parser has refused such keys.
        None => key.raw,
    }
}

/// Runs a request whose line, and whose value with its terminator (`value`, empty for requests
/// without one), are at hand. `hash` comes from [`prepare`].
pub fn execute(
    cx: &Context<'_>,
    session: &mut Session,
    request: &Request<'_>,
    hash: u64,
    value: &[u8],
    replies: &mut Replies,
) -> Next {
    let style = &request.style;
    let mut room = None;
    if session.is_locked()
        && let Some(next) = auth::refuse_stranger(request, replies)
    {
        return next;
    }
    if let Some(replicas) = &cx.shared.replicas
        && !replicas.takes_freely()
        && let Some(next) = ask_copies(cx, session, request, hash, value, replies)
    {
        return next;
    }
    match &request.op {
        Op::Get { cas, touch } => {
            return Next::Keys(Read {
                cas: *cas,
                touch: touch.map(|ttl| cx.expiry(ttl)),
            });
        }
        Op::Fetch(op) => {
            touch::fetch(cx, op, style, plain(&op.key, &mut room), hash, replies);
        }
        Op::Store(op) => {
            let key = plain(&op.key, &mut room);
            set::whole(cx, op, style, key, hash, value, replies);
        }
        Op::Delete(op) => {
            delete::delete(cx, op, style, plain(&op.key, &mut room), hash, replies);
        }
        Op::Arith(op) => {
            arith::arith(cx, op, style, plain(&op.key, &mut room), hash, replies);
        }
        Op::Touch { key, exptime } => {
            let key = plain(key, &mut room);
            touch::touch(cx, *exptime, style, key, hash, replies);
        }
        Op::LeaseGet { key } => lease::get(cx, key.raw, hash, replies),
        Op::MetaGet { key } => lease::describe(cx, key.raw, hash, style, replies),
        Op::Describe { key } => {
            touch::describe(cx, plain(key, &mut room), hash, replies);
        }
        _ => return control::control(cx, session, request, value, replies),
    }
    Next::Done
}

/// Starts a request whose value is not at hand.
pub fn begin(
    cx: &Context<'_>,
    session: &mut Session,
    request: &Request<'_>,
    hash: u64,
    replies: &mut Replies,
) -> Next {
    if session.is_locked()
        && let Some(next) = auth::refuse_stranger(request, replies)
    {
        return next;
    }
    let Op::Store(op) = &request.op else {
        let status = if cx.shared.settings.security.sasl {
            reply::STATUS_NO_MEMORY
        } else {
            reply::STATUS_UNKNOWN
        };
        return reply::no_room(&request.style, status, body_length(request));
    };
    if cx.follows() {
        return Next::Skip {
            bytes: body_length(request) as u64,
            then: reply::not_leading_later(&request.style),
        };
    }
    if cx.busy() {
        return Next::Skip {
            bytes: body_length(request) as u64,
            then: reply::busy_later(&request.style),
        };
    }
    let mut room = None;
    let key = plain(&op.key, &mut room);
    let agrees = raise(cx, session, Some(key));
    if agrees && op.length + key.len() + record::HEADER > PREPARED_MAX {
        return Next::Skip {
            bytes: body_length(request) as u64,
            then: reply::too_long_later(&request.style),
        };
    }
    set::begin(cx, op, &request.style, key, hash, agrees)
}

/// Whether an operation goes to the leader from a follower that forwards: what changes items, and what
/// gives out a token for that.
pub fn is_for_leader(op: &Op<'_>) -> bool {
    changes_items(op) || matches!(op, Op::LeaseGet { .. })
}

/// What a request that goes to another node is answered with if its value does not end where it should.
pub fn ill_terminated(request: &Request<'_>, value: &[u8]) -> Option<Refusal> {
    match &request.op {
        Op::Store(op) => set::ill_terminated(&request.style, value.get(op.length..)?),
        _ => None,
    }
}

/// Whether the value of a request that goes to another node may have its length; the answer if not.
pub fn too_large_to_forward(cx: &Context<'_>, request: &Request<'_>) -> Option<Refusal> {
    let most = cx.shared.settings.store.item_size_max;
    (body_length(request) > most + 2).then(|| reply::too_large_later(&request.style))
}

/// What a request is answered with that has to go to the leader.
pub fn not_leading(style: &Style<'_>) -> Refusal {
    reply::not_leading_later(style)
}

/// Whether an operation is for the leader only.
fn changes_items(op: &Op<'_>) -> bool {
    match op {
        Op::Get { touch, .. } => touch.is_some(),
        Op::Fetch(op) => op.touch.is_some() || op.vivify.is_some(),
        Op::Store(_) | Op::Delete(_) | Op::Arith(_) | Op::Touch { .. } | Op::FlushAll { .. } => {
            true
        }
        _ => false,
    }
}

/// Ends a store whose value has arrived; `terminator` is what came behind it. One that has to wait is
/// given back, for another attempt.
pub fn finish(
    cx: &Context<'_>,
    session: &mut Session,
    pending: Box<Pending>,
    terminator: &[u8],
    replies: &mut Replies,
) -> (Next, Option<Box<Pending>>) {
    set::finish(cx, session, pending, terminator, replies)
}

/// Lets go a value for whose rest there is no memory: the bytes still to be skipped, and the answer.
pub fn give_up(cx: &Context<'_>, pending: Pending, why: Refused) -> (u64, Refusal) {
    set::give_up(cx, pending, why)
}

/// Answers a request that was refused.
pub fn refuse(refusal: &Refusal, replies: &mut Replies) {
    reply::refusal(refusal, replies);
}

/// Whether `word` is `whole` or begins it: memcached lets words be cut short.
fn is_start_of(word: &[u8], whole: &[u8]) -> bool {
    whole.starts_with(word)
}

/// Whether a request's meta flags have one that begins with this letter.
fn asks_for(flags: &[u8], letter: u8) -> bool {
    words(flags).any(|token| token[0] == letter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::request::{self, Mode, Style};
    use crate::settings::Settings;

    const TEXT: Style<'static> = Style::Text { noreply: false };

    /// Runs requests one after another against a store of its own.
    struct Bench {
        shared: Shared,
        counters: std::sync::Arc<crate::observe::ThreadCounters>,
        session: Session,
    }

    impl Bench {
        fn new() -> Bench {
            let mut settings = Settings::default();
            settings.store.max_bytes = 8 << 20;
            let shared = Shared::new(settings, None).unwrap();
            let counters = shared.registry.register();
            let session = Session::new(&shared);
            Bench {
                shared,
                counters,
                session,
            }
        }

        fn cx(&self) -> Context<'_> {
            Context {
                shared: &self.shared,
                counters: &self.counters,
                now: self.shared.clock.now(),
                connection: 9,
            }
        }

        fn run(&mut self, op: Op<'_>, style: Style<'_>, value: &[u8]) -> String {
            let mut replies = Replies::default();
            let request = Request { op, style };
            let mut session = self.session;
            let cx = self.cx();
            let hash = prepare(&cx, &request).map_or(0, |lookup| lookup.hash());
            execute(&cx, &mut session, &request, hash, value, &mut replies);
            self.session = session;
            String::from_utf8(replies.to_vec()).unwrap()
        }

        fn set(&mut self, mode: Mode, key: &str, value: &str) -> String {
            self.run(
                store(mode, key, value.len()),
                TEXT,
                format!("{value}\r\n").as_bytes(),
            )
        }

        fn get(&mut self, keys: &[&str], cas: bool) -> String {
            let mut replies = Replies::default();
            let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
            let cx = self.cx();
            read_all(&cx, &keys, Read { cas, touch: None }, &mut replies);
            get::end(&mut replies);
            String::from_utf8(replies.to_vec()).unwrap()
        }
    }

    fn key(key: &str) -> Key<'_> {
        Key {
            raw: key.as_bytes(),
            base64: false,
        }
    }

    fn store(mode: Mode, name: &str, length: usize) -> Op<'_> {
        Op::Store(request::Store {
            flags: 7,
            ..request::Store::new(key(name), mode, length)
        })
    }

    fn arith(name: &str, up: bool, delta: u64) -> Op<'_> {
        Op::Arith(request::Arith::new(key(name), up, delta))
    }

    fn delete(name: &str) -> Op<'_> {
        Op::Delete(request::Delete::new(key(name)))
    }

    fn read_all(cx: &Context<'_>, keys: &[&[u8]], read: Read, replies: &mut Replies) {
        let batch: Vec<get::LookUp<'_>> = keys
            .iter()
            .map(|key| get::LookUp::new(cx.store(), key))
            .collect();
        let done = get::many(cx, &batch, read, usize::MAX, replies);
        assert_eq!(done, keys.len());
    }

    #[test]
    fn text_stores_and_reads() {
        let mut bench = Bench::new();
        assert_eq!(bench.set(Mode::Replace, "a", "x"), "NOT_STORED\r\n");
        assert_eq!(bench.set(Mode::Set, "a", "one"), "STORED\r\n");
        assert_eq!(bench.set(Mode::Add, "a", "x"), "NOT_STORED\r\n");
        assert_eq!(bench.set(Mode::Append, "a", "+"), "STORED\r\n");
        assert_eq!(bench.set(Mode::Prepend, "a", "-"), "STORED\r\n");
        assert_eq!(
            bench.get(&["a", "b", "a"], false),
            "VALUE a 7 5\r\n-one+\r\nVALUE a 7 5\r\n-one+\r\nEND\r\n"
        );
        assert_eq!(
            bench.run(store(Mode::Set, "a", 3), TEXT, b"abcde"),
            "CLIENT_ERROR bad data chunk\r\n"
        );
        let totals = bench.shared.registry.totals();
        assert_eq!(totals.general.get_cmds, 3);
        assert_eq!(totals.general.get_misses, 1);
        assert_eq!(totals.over_classes(|class| class.get_hits()), 2);
        assert_eq!(totals.over_classes(|class| class.set_cmds), 6);
    }

    #[test]
    fn text_counts_touches_and_deletes() {
        let mut bench = Bench::new();
        assert_eq!(bench.run(arith("n", true, 1), TEXT, b""), "NOT_FOUND\r\n");
        bench.set(Mode::Set, "n", "10");
        assert_eq!(bench.run(arith("n", false, 1), TEXT, b""), "9\r\n");
        assert_eq!(bench.get(&["n"], false), "VALUE n 7 2\r\n9 \r\nEND\r\n");
        assert_eq!(bench.run(arith("n", true, u64::MAX), TEXT, b""), "8\r\n");
        bench.set(Mode::Set, "w", "word");
        assert_eq!(
            bench.run(arith("w", true, 1), TEXT, b""),
            "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
        );
        let touch = |name| Op::Touch {
            key: key(name),
            exptime: 100,
        };
        assert_eq!(bench.run(touch("n"), TEXT, b""), "TOUCHED\r\n");
        assert_eq!(bench.run(touch("m"), TEXT, b""), "NOT_FOUND\r\n");
        assert_eq!(bench.run(delete("n"), TEXT, b""), "DELETED\r\n");
        assert_eq!(bench.run(delete("n"), TEXT, b""), "NOT_FOUND\r\n");
        let quiet = Style::Text { noreply: true };
        assert_eq!(bench.run(delete("w"), quiet, b""), "");
        let totals = bench.shared.registry.totals();
        assert_eq!(totals.general.incr_misses, 1);
        assert_eq!(totals.over_classes(|class| class.decr_hits), 1);
        assert_eq!(totals.over_classes(|class| class.delete_hits), 2);
        assert_eq!(totals.general.touch_cmds, 2);
        assert_eq!(totals.general.touch_misses, 1);
    }

    #[test]
    fn what_is_stored_in_the_second_of_a_flush_was_accessed_now() {
        let mut bench = Bench::new();
        let flush = Op::FlushAll { exptime: Some(0) };
        assert_eq!(bench.run(flush, TEXT, b""), "OK\r\n");
        bench.set(Mode::Set, "a", "one");
        let meta = Style::Meta {
            flags: b"",
            quiet: false,
        };
        let said = bench.run(Op::Describe { key: key("a") }, meta, b"");
        assert!(said.contains(" la=0 "), "{said}");
    }

    #[test]
    fn a_value_too_large_takes_the_old_one_with_it() {
        let mut bench = Bench::new();
        bench.set(Mode::Set, "a", "old");
        let too_large = |mode| Request {
            op: store(mode, "a", 2 << 20),
            style: TEXT,
        };
        for (mode, left) in [(Mode::Add, true), (Mode::Set, false)] {
            let request = too_large(mode);
            let cx = bench.cx();
            let hash = prepare(&cx, &request).map_or(0, |lookup| lookup.hash());
            let mut session = bench.session;
            match begin(&cx, &mut session, &request, hash, &mut Replies::default()) {
                Next::Skip { bytes, then } => {
                    assert_eq!(bytes, (2 << 20) + 2);
                    assert_eq!(
                        then,
                        Refusal::Line("SERVER_ERROR object too large for cache")
                    );
                }
                _ => panic!("not refused"),
            }
            assert_eq!(bench.get(&["a"], false).starts_with("VALUE"), left);
        }
    }

    #[test]
    fn a_large_value_arrives_in_pieces_and_is_sent_pinned() {
        let mut bench = Bench::new();
        let length = 300_000;
        let request = Request {
            op: store(Mode::Set, "big", length),
            style: TEXT,
        };
        let value: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        let cx = bench.cx();
        let hash = prepare(&cx, &request).map_or(0, |lookup| lookup.hash());
        let mut session = bench.session;
        let Next::Value(mut pending) =
            begin(&cx, &mut session, &request, hash, &mut Replies::default())
        else {
            panic!("not begun");
        };
        let mut rest = &value[..];
        while pending.upload.missing() > 0 {
            let spare = pending.upload.spare(cx.caller()).expect("memory");
            let n = spare.len().min(rest.len()).min(1000);
            spare[..n].copy_from_slice(&rest[..n]);
            pending.upload.advance(n);
            rest = &rest[n..];
        }
        let mut replies = Replies::default();
        finish(&cx, &mut session, pending, b"\r\n", &mut replies);
        assert_eq!(replies.bytes(), b"STORED\r\n");
        replies.clear();
        let read = Read {
            cas: false,
            touch: None,
        };
        read_all(&cx, &[b"big", b"big"], read, &mut replies);
        get::end(&mut replies);
        let one = [b"VALUE big 7 300000\r\n", &value[..], b"\r\n"].concat();
        let expected = [&one[..], &one, b"END\r\n"].concat();
        assert_eq!(replies.waiting(), expected.len());
        assert!(replies.bytes().len() < 100, "values are not copied");
        assert!(replies.to_vec() == expected);
        // Sent a bit at a time, moved out half way, nothing is lost or doubled.
        let mut sent = Vec::new();
        while !replies.is_empty() {
            let mut slices = [std::io::IoSlice::new(&[]); 7];
            let n = replies.slices(&mut slices);
            let all: Vec<u8> = slices[..n]
                .iter()
                .flat_map(|slice| slice.to_vec())
                .collect();
            let n = all.len().min(17_001);
            sent.extend_from_slice(&all[..n]);
            replies.advance(n);
            if sent.len() > 200_000 && sent.len() < 220_000 {
                replies = replies.take_rest();
            }
        }
        assert!(sent == expected);
        bench.set(Mode::Set, "big", "small");
    }
}
