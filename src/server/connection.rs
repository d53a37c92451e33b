#![forbid(unsafe_code)]
//! One client's socket.
//!
//! Every wake-up runs the same [`advance`](Connection::advance), whether the socket has become
//! readable or writable: send what waits; if something still waits, stop; else run what has been
//! read, read, and again. The poll tells of edges only, and replies born while reading get no edge
//! of their own: sending first and reading only when nothing waits makes that right by
//! construction, and bounds what a client that does not read can make the server hold.
//!
//! Between two commands a connection owns no buffer: input is read into the worker's input buffer,
//! replies are built in the worker's reply buffer, and only what is incomplete on either side moves
//! into the connection. Long values never pass through a buffer at all, they are read from the
//! socket into their item.

use std::sync::Arc;

use super::conversation::{Conversation, Ran, Served, Turn, Wait};
use super::forward::{Answered, Outgoing, Slot};
use crate::admin::Subscription;
use crate::cluster::replication::group::Level;
use crate::cluster::replication::replicas::{Awaited, Hold, Reach};
use crate::command::{self, Context, Flushed, Mark, Replies};
use crate::net::{News, Progress, Stream};
use crate::observe::board::{Activity, Row};
use crate::observe::events::{self, Reason};
use crate::protocol::Dialect;
use crate::protocol::request::Refusal;
use crate::store::copies;

/// Replies are sent when this many bytes have gathered, or when the input is drained.
pub const SEND_AT: usize = 64 << 10;

/// A client that keeps the worker busy for this many bytes, in either direction, has to let the
/// others take their turn.
const TURN_MAX: usize = 128 << 10;

/// A client has to let the others take their turn after so many times `-R` requests and keys. They are
/// sent in one piece and answered in one: turns of twenty would cost a system call or two each.
pub const PATIENCE: usize = 32;

/// A step of a TLS handshake takes as long as so many bytes.
const HANDSHAKE_STEP: usize = TURN_MAX / 8;

/// What a client hears whose mutations have not reached enough copies in time; they may or may not
/// last.
const LATE: &[u8] = b"SERVER_ERROR not enough copies in time, outcome unknown";

/// What a client hears whose mutations the leader has not answered.
const GONE: &[u8] = b"SERVER_ERROR the leader has gone, outcome unknown";

/// What the worker is to do with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to do before the next event.
    Wait,
    /// Nothing to do before copies have got further.
    Held,
    /// It has more to do, once the others had their turn.
    Again,
    Close(Reason),
}

/// One client.
pub struct Connection {
    stream: Stream,
    conversation: Conversation,
    /// The start of a command whose end has not arrived.
    kept: Vec<u8>,
    /// What the socket has not taken yet; while there is some, nothing is read.
    waiting: Option<Box<Replies>>,
    /// Replies to mutations that copies do not have yet; while there are some, nothing is read.
    held: Option<Box<Holding>>,
    /// Mutations that the leader has not answered yet; until it has, nothing is read.
    away: Option<Box<Away>>,
    /// What `stats conns` shows of it.
    row: Arc<Row>,
    /// The poll has been asked to tell when it takes more.
    watched_for_writing: bool,
    /// The poll has told that the peer sends no more: the next short read is not the last.
    hung_up: bool,
    /// It is in the worker's list of those that have more to do.
    pub queued: bool,
}

/// Replies that are held back.
struct Holding {
    hold: Hold,
    replies: Box<Replies>,
    /// The last reply begins here, and is this if copies do not agree.
    otherwise: Option<(Mark, Refusal)>,
}

/// Mutations that are on their way to the leader.
struct Away {
    outgoing: Box<Outgoing>,
    slot: Arc<Slot>,
    /// What was answered before.
    replies: Box<Replies>,
}

/// Bytes of memory that a connection keeps from one turn to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Input that is no whole command yet.
    pub input: usize,
    /// Replies that the socket has not taken.
    pub replies: usize,
}

/// What a read has come to.
enum Read {
    Some {
        /// What it has cost, in bytes.
        bytes: usize,
        /// The socket holds no more: the poll will tell when it does.
        last: bool,
    },
    Nothing,
    /// The peer sends no more.
    Ended(Reason),
}

impl Connection {
    pub fn new(stream: Stream, conversation: Conversation, row: Arc<Row>) -> Connection {
        Connection {
            stream,
            conversation,
            kept: Vec::new(),
            waiting: None,
            held: None,
            away: None,
            row,
            watched_for_writing: false,
            hung_up: false,
            queued: false,
        }
    }

    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Whether the poll has to be asked, from now on, to tell when it takes more.
    pub fn wants_writable(&mut self) -> bool {
        (self.waiting.is_some() || self.stream.wants_flush())
            && !std::mem::replace(&mut self.watched_for_writing, true)
    }

    /// The poll has told that the peer has shut its side.
    pub fn hang_up(&mut self) {
        self.hung_up = true;
    }

    /// Whether it has been idle for longer than `timeout` seconds.
    pub fn idle(&self, now: u32, timeout: u32) -> bool {
        self.stream.may_idle_out()
            && self.subscription().is_none()
            && now.saturating_sub(self.conversation.active()) > timeout
    }

    /// What it keeps from one turn to the next.
    #[inline]
    pub fn held(&self) -> Held {
        Held {
            input: self.kept.capacity() + self.conversation.leaving(),
            replies: self.waiting.as_ref().map_or(0, |waiting| waiting.size()),
        }
    }

    /// What the client watches.
    pub fn subscription(&self) -> Option<&Subscription> {
        self.conversation.subscription()
    }

    /// Sends, runs and reads until there is no more to do now.
    pub fn advance(&mut self, turn: &mut Turn<'_>) -> Outcome {
        match self.stream.flush() {
            Progress::Moved(_) => {}
            Progress::Blocked => return Outcome::Wait,
            Progress::Closed => return Outcome::Close(Reason::Normal),
        }
        if let Some(mut waiting) = self.waiting.take() {
            match self.send(&mut waiting, &turn.context) {
                Flushed::All => {}
                Flushed::Blocked => {
                    self.waiting = Some(waiting);
                    return Outcome::Wait;
                }
                Flushed::Closed => return Outcome::Close(Reason::Normal),
            }
        }
        if self.held.is_some()
            && let Some(outcome) = self.release(turn)
        {
            return outcome;
        }
        if self.away.is_some()
            && let Some(outcome) = self.come_back(turn)
        {
            return outcome;
        }
        self.row.set(Activity::Parse);
        turn.input.load(&mut self.kept);
        let mut served = Served::default();
        let outcome = self.serve(turn, &mut served);
        if served.requests > turn.limits.requests_per_event {
            let yields = (served.requests - 1) / turn.limits.requests_per_event;
            turn.context.counters.general.conn_yields.add(yields as u64);
        }
        turn.input.save(&mut self.kept);
        if !turn.replies.is_empty() {
            if let Outcome::Wait | Outcome::Again | Outcome::Held = outcome {
                self.waiting = Some(Box::new(turn.replies.take_rest()));
            }
            turn.replies.clear();
        }
        self.row.command_at(self.conversation.active());
        self.row.set(match &self.waiting {
            Some(_) => Activity::WriteMany,
            None => self.conversation.activity(&self.kept),
        });
        outcome
    }

    /// Whether copies have what was held back, which is sent then. `None`: go on.
    fn release(&mut self, turn: &mut Turn<'_>) -> Option<Outcome> {
        let mut holding = self.held.take()?;
        let replicas = turn.context.shared.replicas.as_ref()?;
        let reach = replicas.held(&mut holding.hold);
        if reach == Reach::Waiting {
            self.held = Some(holding);
            return Some(Outcome::Held);
        }
        let Holding {
            mut replies,
            otherwise,
            ..
        } = *holding;
        match (reach, otherwise) {
            (Reach::Waiting | Reach::Reached, _) => {}
            (Reach::Aborted, Some((mark, refusal))) => {
                replies.rewind(mark);
                command::refuse(&refusal, &mut replies);
                self.conversation.failed();
            }
            (Reach::Refused | Reach::Aborted, _) => {
                // Which of the replies would have been wrong cannot be told apart: one error for all.
                replies.clear();
                replies.line(LATE);
                self.conversation.end(Reason::Error);
            }
        }
        match self.send(&mut replies, &turn.context) {
            Flushed::All => None,
            Flushed::Blocked => {
                self.waiting = Some(replies);
                Some(Outcome::Wait)
            }
            Flushed::Closed => Some(Outcome::Close(Reason::Normal)),
        }
    }

    /// Whether the leader has answered what was forwarded; then that is sent. `None`: go on.
    fn come_back(&mut self, turn: &mut Turn<'_>) -> Option<Outcome> {
        let mut away = self.away.take()?;
        let replies = &mut away.replies;
        match away.slot.take() {
            None => {
                self.away = Some(away);
                return Some(Outcome::Held);
            }
            Some(Answered::All(answer)) => replies.push(&answer),
            Some(Answered::Unsent) => {
                for refusal in &away.outgoing.refusals {
                    command::refuse(refusal, replies);
                }
            }
            Some(Answered::Cut(answer)) => {
                replies.push(&answer);
                if answer.is_empty() && away.outgoing.dialect == Dialect::Text {
                    replies.line(GONE);
                }
                self.conversation.end(Reason::Error);
            }
        }
        match self.send(&mut away.replies, &turn.context) {
            Flushed::All => None,
            Flushed::Blocked => {
                self.waiting = Some(away.replies);
                Some(Outcome::Wait)
            }
            Flushed::Closed => Some(Outcome::Close(Reason::Normal)),
        }
    }

    /// What has to be sent to the leader, and where the answer is waited for.
    pub fn away(&mut self) -> Option<(&mut Outgoing, &Arc<Slot>)> {
        let away = self.away.as_mut()?;
        Some((&mut away.outgoing, &away.slot))
    }

    /// It could not be sent, for too much waits already.
    pub fn turn_back(&mut self) {
        if let Some(away) = &self.away {
            away.slot.fill(Answered::Unsent);
        }
    }

    /// What the replies so far wait for, if anything has been changed and that is to be known
    /// elsewhere first.
    fn hold(&mut self, turn: &mut Turn<'_>) -> Option<Box<Holding>> {
        let replicas = turn.context.shared.replicas.as_ref()?;
        let logged = (replicas.holds() || replicas.paces()) && copies::take_logged();
        let level = self.conversation.take_level();
        let mut otherwise = None;
        let first = match self.conversation.take_wait() {
            Some(Wait::Verdict(ballot)) => {
                otherwise = Some((ballot.mark, ballot.refusal));
                Some(Awaited::Verdict(ballot.ticket))
            }
            Some(Wait::Turn { place, since }) => Some(Awaited::Turn {
                place,
                until: since + command::QUEUE,
            }),
            None if logged => replicas.pace(),
            None => None,
        };
        let mut hold = Hold::new(first);
        if logged
            && replicas.holds()
            && !turn.replies.is_empty()
            && let Some(level) = level.filter(|level| *level != Level::Async)
        {
            hold = hold.and_copies(turn.context.store().journal()?, level);
        }
        (first.is_some() || replicas.waits(&hold)).then(|| {
            Box::new(Holding {
                hold,
                replies: Box::new(turn.replies.take_rest()),
                otherwise,
            })
        })
    }

    /// What it waits for, if it waits for copies.
    pub fn holding(&self) -> Option<&Hold> {
        self.held.as_ref().map(|holding| &holding.hold)
    }

    /// Whether copies, or the leader, have to be heard before the replies so far are sent.
    fn waits_for_others(&mut self, turn: &mut Turn<'_>) -> bool {
        self.held = self.hold(turn);
        if self.held.is_some() {
            return true;
        }
        if let Some(outgoing) = self.conversation.take_outgoing() {
            self.away = Some(Box::new(Away {
                outgoing,
                slot: Arc::default(),
                replies: Box::new(turn.replies.take_rest()),
            }));
        }
        self.away.is_some()
    }

    fn serve(&mut self, turn: &mut Turn<'_>, served: &mut Served) -> Outcome {
        // Bytes that have gone in or out in this turn.
        let mut work = 0;
        // The socket holds no more: the poll will tell when it does.
        let mut drained = false;
        loop {
            if self.conversation.dumping() {
                // A step may find little to send and has taken its time all the same.
                work += TURN_MAX / 8;
            }
            let ran = if self.conversation.starves(turn.input) {
                Ran::Starved
            } else {
                self.conversation.run(turn, served)
            };
            if ran == Ran::Starved && !drained && work <= TURN_MAX {
                match self.read(turn) {
                    Read::Some { bytes, last } => {
                        work += bytes;
                        drained = last;
                        continue;
                    }
                    Read::Nothing => drained = true,
                    Read::Ended(reason) => self.conversation.end(reason),
                }
            }
            work += turn.replies.waiting();
            if turn.context.shared.replicas.is_some() && self.waits_for_others(turn) {
                return Outcome::Held;
            }
            match self.send(turn.replies, &turn.context) {
                Flushed::All => {}
                Flushed::Blocked => return Outcome::Wait,
                Flushed::Closed => return Outcome::Close(Reason::Normal),
            }
            if self.conversation.ended() {
                return Outcome::Close(self.conversation.reason());
            }
            if ran == Ran::Starved && drained {
                return Outcome::Wait;
            }
            if work > TURN_MAX || served.requests + served.keys >= turn.limits.turn {
                return Outcome::Again;
            }
        }
    }

    fn read(&mut self, turn: &mut Turn<'_>) -> Read {
        let straight = if turn.input.is_empty() {
            self.conversation.spare(&turn.context)
        } else {
            None
        };
        let (progress, asked) = match straight {
            Some(spare) => {
                let progress = self.stream.read(spare);
                let asked = spare.len();
                if let Progress::Moved(n @ 1..) = progress {
                    self.conversation.filled(n, turn.context.now);
                }
                (progress, asked)
            }
            None => {
                let space = turn.input.space();
                let asked = space.len();
                let progress = self.stream.read(space);
                if let Progress::Moved(n) = progress {
                    turn.input.filled(n);
                }
                (progress, asked)
            }
        };
        let failed = match self.stream.news() {
            Some(news) => tell(&turn.context, &news),
            None => false,
        };
        match progress {
            Progress::Moved(0) => Read::Some {
                bytes: HANDSHAKE_STEP,
                last: false,
            },
            Progress::Moved(bytes) => {
                turn.context.counters.general.bytes_read.add(bytes as u64);
                Read::Some {
                    bytes,
                    last: self.stream.drained(bytes, asked) && !self.hung_up,
                }
            }
            Progress::Blocked => Read::Nothing,
            Progress::Closed if failed => Read::Ended(Reason::Error),
            Progress::Closed => Read::Ended(Reason::Normal),
        }
    }

    fn send(&mut self, replies: &mut Replies, context: &Context<'_>) -> Flushed {
        let (flushed, sent) = replies.flush(&mut self.stream);
        if sent > 0 {
            self.conversation.sent(context.now);
            context.counters.general.bytes_written.add(sent as u64);
        }
        flushed
    }
}

/// Counts and tells what TLS has to say of a connection; true if it has failed.
#[cold]
pub(super) fn tell(context: &Context<'_>, news: &News) -> bool {
    let (general, log) = (&context.counters.general, &context.counters.log);
    let News::Failed { handshake, reason } = news else {
        general.ssl_new_sessions.add(1);
        return false;
    };
    if *handshake {
        general.ssl_handshake_errors.add(1);
    } else {
        general.ssl_proto_errors.add(1);
    }
    if log.wants(events::CONNECTIONS) {
        log.tls_error(context.connection, reason);
    }
    log::info!("<{} TLS failed, closing: {reason}", context.connection);
    true
}
