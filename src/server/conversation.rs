#![forbid(unsafe_code)]
//! What one client says, as a state machine over bytes; where they come from it does not know.
//!
//! A conversation holds nothing between two commands: input waits in the worker's [`Input`], replies
//! are built in the worker's [`Replies`]. Values longer than [`WHOLE_MAX`](command::WHOLE_MAX) need not pass through a
//! buffer at all: [`spare`](Conversation::spare) says where to read them to.

use std::time::Instant;

use super::batch::{Batch, SoFar};
use super::control::{Control, Stop};
use super::forward::Outgoing;
use super::plan::Plan;
use super::trace;
use crate::admin::Subscription;
use crate::cluster::replication::group::Level;
use crate::command::auth::{self, Admission};
use crate::command::{
    self, Ballot, Context, Dump, Mark, Next, Pending, Read as Keys, Replies, Session,
};
use crate::net::Input;
use crate::observe::board::Activity;
use crate::observe::events::Reason;
use crate::protocol::Dialect;
use crate::protocol::request::Refusal;
use crate::protocol::text;
use crate::settings::Protocol;
use crate::store::{Refused, Upload};

/// Beyond so many bytes of input it is remembered how much of it was looked at in vain.
const LONG_INPUT: usize = 64 << 10;

/// What a conversation gets from its worker for one turn.
pub struct Turn<'w> {
    pub context: Context<'w>,
    pub input: &'w mut Input,
    /// Empty before and after each turn.
    pub replies: &'w mut Replies,
    pub control: &'w Control,
    pub limits: Limits,
}

/// Bounds that options set.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// `-R`
    pub requests_per_event: usize,
    /// Requests, and keys of them, after which others get their turn.
    pub turn: usize,
    /// Bytes of replies that may wait for a client before no more of its requests are run.
    pub replies: usize,
}

/// What a client has been served in one turn.
#[derive(Debug, Clone, Copy, Default)]
pub struct Served {
    pub requests: usize,
    /// Those of gets.
    pub keys: usize,
}

/// One client's.
pub struct Conversation {
    state: State,
    /// Decided by the first byte, unless the listener has.
    dialect: Option<Dialect>,
    session: Session,
    /// When the last command ended, or bytes of a value or a reply moved; on the server's clock.
    active: u32,
    /// Why it will have ended.
    reason: Reason,
    /// What the replies so far wait for, and the next request.
    wait: Option<Wait>,
    /// What is for the leader.
    outgoing: Option<Box<Outgoing>>,
    /// Bytes of a long line, or a long key, that were looked at and have no end.
    seen: usize,
}

/// Where in the stream of requests the next byte belongs.
pub(super) enum State {
    /// To a command.
    Commands,
    /// To the keys of a get; its replies so far begin at the mark, if none has been sent.
    Keys { how: Keys, mark: Option<Mark> },
    /// To a value that is read straight into its item, or to its terminator.
    Value(Box<Pending>),
    /// To a value that goes to the leader, of which so much is missing.
    Leaving {
        outgoing: Box<Outgoing>,
        missing: usize,
    },
    /// To the rest of a refused request; the reply follows when that many bytes have passed.
    Skip { bytes: u64, reply: Refusal },
    /// To the rest of a line that has been answered already.
    SkipLine,
    /// To nobody before the dump is over, which is sent as fast as the client takes it.
    Dump(Box<Dump>),
    /// To nobody: the client is sent what happens, until it goes.
    Watch(Subscription),
    /// To nobody: what waits is sent, then the connection ends.
    Closing,
}

/// What is waited for before anything more is run.
#[derive(Debug)]
pub enum Wait {
    /// The verdict on a mutation.
    Verdict(Box<Ballot>),
    /// Its turn: another mutation of the key is under way.
    Turn { place: u64, since: Instant },
}

/// What running the input has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// All that can be run has been.
    Starved,
    /// Replies should be sent before more is run.
    Enough,
    /// The connection ends when what waits is sent.
    Close,
}

/// What is missing at the end of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// The end of a line.
    Line,
    /// A value, or its end.
    Value,
    /// The end of a binary request.
    Packet,
}

impl Conversation {
    pub fn new(protocol: Protocol, session: Session, now: u32) -> Conversation {
        Conversation {
            state: State::Commands,
            dialect: match protocol {
                Protocol::Negotiate => None,
                Protocol::Ascii => Some(Dialect::Text),
                Protocol::Binary => Some(Dialect::Binary),
            },
            session,
            active: now,
            reason: Reason::Error,
            wait: None,
            outgoing: None,
            seen: 0,
        }
    }

    /// Bytes of a value on its way to the leader.
    pub fn leaving(&self) -> usize {
        match &self.state {
            State::Leaving { outgoing, .. } => outgoing.bytes.capacity(),
            _ => 0,
        }
    }

    /// What goes to the leader, before anything more is run.
    pub fn take_outgoing(&mut self) -> Option<Box<Outgoing>> {
        self.outgoing.take()
    }

    /// What the replies so far, and the next request, wait for.
    pub fn take_wait(&mut self) -> Option<Wait> {
        self.wait.take()
    }

    /// A request was answered with an error. If others of its replies are still to come, nobody could
    /// tell what belongs to what.
    pub fn failed(&mut self) {
        if matches!(self.state, State::Keys { .. }) {
            self.end(Reason::Error);
        }
    }

    /// How far copies must have come with what was changed; nothing if nothing was.
    pub fn take_level(&mut self) -> Option<Level> {
        self.session.take_level()
    }

    /// When something happened last.
    pub fn active(&self) -> u32 {
        self.active
    }

    /// Nothing more will be read; what waits is sent, then the connection ends.
    pub fn end(&mut self, reason: Reason) {
        self.state = State::Closing;
        self.reason = reason;
    }

    /// Whether it has come to its end.
    pub fn ended(&self) -> bool {
        matches!(self.state, State::Closing)
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// A dump is under way.
    pub fn dumping(&self) -> bool {
        matches!(self.state, State::Dump(_))
    }

    /// What the client watches.
    pub fn subscription(&self) -> Option<&Subscription> {
        match &self.state {
            State::Watch(subscription) => Some(subscription),
            _ => None,
        }
    }

    /// What it is at, having left `kept` behind.
    pub fn activity(&self, kept: &[u8]) -> Activity {
        match &self.state {
            // A line that is whole waits for its value.
            State::Commands if line_ends(kept) => Activity::ReadValue,
            State::Commands | State::Keys { .. } | State::SkipLine => Activity::Read,
            State::Value(_) | State::Leaving { .. } => Activity::ReadValue,
            State::Skip { .. } => Activity::Swallow,
            State::Dump(_) => Activity::WriteMany,
            State::Watch(_) => Activity::Watch,
            State::Closing => Activity::Closing,
        }
    }

    /// What the client would have to send to be understood, having left `rest` behind; nothing if
    /// all it has said is done with.
    pub fn lacks(&self, rest: &[u8]) -> Option<Lack> {
        match &self.state {
            State::Closing => None,
            State::Commands if rest.is_empty() => None,
            State::Commands if self.dialect == Some(Dialect::Binary) => Some(Lack::Packet),
            State::Commands if !rest.contains(&b'\n') => Some(Lack::Line),
            State::Keys { .. } | State::SkipLine => Some(Lack::Line),
            _ => Some(Lack::Value),
        }
    }

    /// Where the next bytes belong if no input waits, and they are part of a long value.
    pub fn spare(&mut self, context: &Context<'_>) -> Option<&mut [u8]> {
        if let State::Value(pending) = &mut self.state
            && pending.upload.missing() > 0
            && let Err(why) = pending.upload.spare(context.caller())
        {
            self.give_up(context, why);
        }
        match &mut self.state {
            State::Value(pending) if pending.upload.missing() > 0 => {
                pending.upload.spare(context.caller()).ok()
            }
            _ => None,
        }
    }

    /// There is no memory for the rest of a value: it is skipped.
    #[cold]
    fn give_up(&mut self, context: &Context<'_>, why: Refused) {
        if let State::Value(pending) = std::mem::replace(&mut self.state, State::Commands) {
            let (bytes, reply) = command::give_up(context, *pending, why);
            self.state = State::Skip { bytes, reply };
        }
    }

    /// So many bytes have been put there.
    pub fn filled(&mut self, n: usize, now: u32) {
        if let State::Value(pending) = &mut self.state {
            pending.upload.advance(n);
            self.active = now;
        }
    }

    /// Some replies have been sent and cannot be taken back.
    pub fn sent(&mut self, now: u32) {
        self.active = now;
        if let State::Keys { mark, .. } = &mut self.state {
            *mark = None;
        }
    }

    /// Nothing can be run before more is read.
    #[inline]
    pub fn starves(&self, input: &Input) -> bool {
        input.is_empty() && matches!(self.state, State::Commands | State::Keys { .. })
    }

    /// Runs what has been read, as far as it goes.
    pub fn run(&mut self, turn: &mut Turn<'_>, served: &mut Served) -> Ran {
        loop {
            let input = turn.input.unread();
            match &mut self.state {
                State::Commands | State::Keys { .. } => {
                    if input.is_empty() {
                        return Ran::Starved;
                    }
                    if served.requests + served.keys >= turn.limits.turn {
                        return Ran::Enough;
                    }
                    if input.len() > LONG_INPUT && self.still_starved(turn) {
                        return Ran::Starved;
                    }
                    if let Some(ran) = self.batch(turn, served) {
                        return ran;
                    }
                }
                State::Value(pending) => {
                    let (taken, copied) = copy(input, &mut pending.upload, &turn.context);
                    turn.input.take(taken);
                    if let Err(why) = copied {
                        self.give_up(&turn.context, why);
                        continue;
                    }
                    if pending.upload.missing() > 0 {
                        return Ran::Starved;
                    }
                    let length = pending.terminator();
                    let Some(terminator) = turn.input.unread().get(..length) else {
                        return Ran::Starved;
                    };
                    let State::Value(pending) = std::mem::replace(&mut self.state, State::Commands)
                    else {
                        continue;
                    };
                    let session = &mut self.session;
                    let (next, again) =
                        command::finish(&turn.context, session, pending, terminator, turn.replies);
                    match again {
                        Some(pending) => self.state = State::Value(pending),
                        None => turn.input.take(length),
                    }
                    self.active = turn.context.now;
                    if let Some(ran) = self.follow(next, turn.control) {
                        return ran;
                    }
                }
                State::Leaving { outgoing, missing } => {
                    let here = input.len().min(*missing);
                    outgoing.bytes.extend_from_slice(&input[..here]);
                    *missing -= here;
                    turn.input.take(here);
                    if *missing > 0 {
                        return Ran::Starved;
                    }
                    self.active = turn.context.now;
                    let State::Leaving { outgoing, .. } =
                        std::mem::replace(&mut self.state, State::Commands)
                    else {
                        continue;
                    };
                    match outgoing.ill_terminated() {
                        Some(refusal) => command::refuse(&refusal, turn.replies),
                        None => {
                            self.outgoing = Some(outgoing);
                            return Ran::Enough;
                        }
                    }
                }
                State::Skip { bytes, reply } => {
                    let here = usize::try_from(*bytes).map_or(input.len(), |n| n.min(input.len()));
                    *bytes -= here as u64;
                    turn.input.take(here);
                    if *bytes > 0 {
                        return Ran::Starved;
                    }
                    command::refuse(reply, turn.replies);
                    self.state = State::Commands;
                }
                State::SkipLine => match text::skip_line(input) {
                    Some(line) => {
                        turn.input.take(line);
                        self.state = State::Commands;
                    }
                    None => {
                        let all = input.len();
                        turn.input.take(all);
                        return Ran::Starved;
                    }
                },
                State::Dump(dump) => {
                    if !dump.step(&turn.context, turn.replies) {
                        self.state = State::Commands;
                    }
                    return Ran::Enough;
                }
                State::Watch(subscription) => {
                    turn.replies.push(&subscription.take());
                    let all = input.len();
                    turn.input.take(all);
                    return Ran::Starved;
                }
                State::Closing => return Ran::Close,
            }
        }
    }

    /// Whether a long line, or a key of a get, whose end had not arrived still has none.
    #[cold]
    fn still_starved(&mut self, turn: &Turn<'_>) -> bool {
        let (input, rules) = (turn.input.unread(), turn.context.shared.rules);
        if self.seen == 0 || self.dialect != Some(Dialect::Text) {
            return false;
        }
        let in_keys = matches!(self.state, State::Keys { .. });
        let starved = text::lacks_end(rules, in_keys, input, self.seen);
        self.seen = input.len();
        starved
    }

    /// Takes what somebody says who has yet to show credentials. `None`: go on.
    fn admit(&mut self, turn: &mut Turn<'_>) -> Option<Ran> {
        let input = turn.input.unread();
        let admission = auth::admit(&turn.context, &mut self.session, input, turn.replies);
        self.active = turn.context.now;
        match admission {
            Admission::Incomplete => Some(Ran::Starved),
            Admission::Taken(bytes) => {
                turn.input.take(bytes);
                (turn.replies.waiting() >= turn.limits.replies).then_some(Ran::Enough)
            }
            Admission::Close => {
                self.end(Reason::Error);
                Some(Ran::Close)
            }
        }
    }

    /// Runs up to [`BATCH`](command::BATCH) requests or keys: all are looked at first, so that the
    /// memory they need is on its way when the first of them is run. `None`: go on.
    fn batch(&mut self, turn: &mut Turn<'_>, served: &mut Served) -> Option<Ran> {
        let (keys, mark) = match &self.state {
            State::Keys { how, mark } => (Some(*how), *mark),
            _ => (None, None),
        };
        let context = &turn.context;
        let input = turn.input.unread();
        let traced = log::log_enabled!(log::Level::Debug);
        let negotiated = self.dialect.is_none();
        let dialect = *self
            .dialect
            .get_or_insert_with(|| Dialect::of(input.first().copied().unwrap_or_default()));
        if traced && negotiated {
            trace::negotiated(context.connection, dialect);
        }
        if self.session.is_locked() && dialect == Dialect::Text {
            return self.admit(turn);
        }
        let mut plan = Plan::empty();
        let forwards = self.session.forwards(context);
        plan.fill(context, dialect, keys, forwards, input);
        plan.prefetch(context);
        let mut done = SoFar::new(keys, mark);
        let mut batch = Batch {
            context,
            session: &mut self.session,
            replies: &mut *turn.replies,
            limit: turn.limits.replies,
            input,
            dialect,
            forwards,
            so_far: &mut done,
        };
        let enough = batch.run(&plan, traced, served);
        let starved = plan.starved && plan.steps.last().is_none_or(|(_, last)| *last == done.end);
        drop(plan);
        if input.len() > LONG_INPUT {
            self.seen = if done.end == 0 { input.len() } else { 0 };
        }
        turn.input.take(done.end);
        self.active = context.now;
        // Mostly everything is as it was: no state is put in the place of the same, and none dropped.
        if done.skip.is_some() || done.keys.is_some() || !matches!(self.state, State::Commands) {
            self.state = match (done.skip, done.keys) {
                (Some(skip), _) => skip,
                (None, Some(how)) => State::Keys {
                    how,
                    mark: done.mark,
                },
                (None, None) => State::Commands,
            };
        }
        let ran = if matches!(done.next, Next::Done) {
            std::mem::forget(done.next);
            None
        } else {
            self.follow(done.next, turn.control)
        };
        if done.outgoing.is_some() {
            self.outgoing = done.outgoing;
            return Some(Ran::Enough);
        }
        if done.broken {
            self.end(Reason::Error);
            Some(Ran::Close)
        } else if ran.is_some() {
            ran
        } else if enough {
            Some(Ran::Enough)
        } else if starved && matches!(self.state, State::Commands | State::Keys { .. }) {
            Some(Ran::Starved)
        } else {
            None
        }
    }

    /// Does what a command asks of its connection. `None`: go on.
    fn follow(&mut self, next: Next, control: &Control) -> Option<Ran> {
        match next {
            Next::Done => None,
            Next::Close => {
                self.end(Reason::Normal);
                Some(Ran::Close)
            }
            Next::Value(pending) => {
                self.state = State::Value(pending);
                None
            }
            Next::Skip { bytes, then } => {
                self.state = State::Skip { bytes, reply: then };
                None
            }
            Next::Keys(how) => {
                self.state = State::Keys { how, mark: None };
                None
            }
            Next::Flush => Some(Ran::Enough),
            Next::Renegotiate => {
                self.dialect = None;
                Some(Ran::Enough)
            }
            Next::Vote(ballot) => {
                self.wait = Some(Wait::Verdict(ballot));
                Some(Ran::Enough)
            }
            Next::Queue { place, since } => {
                self.wait = Some(Wait::Turn { place, since });
                Some(Ran::Enough)
            }
            Next::Dump(dump) => {
                self.state = State::Dump(dump);
                None
            }
            Next::Watch(subscription) => {
                self.state = State::Watch(subscription);
                None
            }
            Next::Shutdown { graceful } => {
                let why = if graceful {
                    Stop::Graceful
                } else {
                    Stop::Normal
                };
                if let Err(error) = control.stop(why) {
                    log::error!("cannot wake the acceptor: {error}");
                }
                self.end(Reason::Shutdown);
                Some(Ran::Close)
            }
        }
    }
}

/// Whether there is a line with its end in what was left behind, whose value is waited for.
fn line_ends(kept: &[u8]) -> bool {
    let near = kept.len().saturating_sub(command::WHOLE_MAX + 2);
    kept[near..].contains(&b'\n')
}

/// Moves what fits from the input into a value; says how much that was, and whether there was memory.
fn copy(mut from: &[u8], to: &mut Upload, context: &Context<'_>) -> (usize, Result<(), Refused>) {
    let before = from.len();
    while !from.is_empty() {
        let spare = match to.spare(context.caller()) {
            Ok(spare) => spare,
            Err(why) => return (before - from.len(), Err(why)),
        };
        let n = spare.len().min(from.len());
        if n == 0 {
            break;
        }
        spare[..n].copy_from_slice(&from[..n]);
        from = &from[n..];
        to.advance(n);
    }
    (before - from.len(), Ok(()))
}

#[cfg(test)]
mod tests;
