#![forbid(unsafe_code)]
//! What one client says, as a state machine over bytes; where they come from it does not know.
//!
//! A conversation holds nothing between two commands: input waits in the worker's [`Input`], replies
//! are built in the worker's [`Replies`]. Values longer than [`WHOLE_MAX`] need not pass through a
//! buffer at all: [`spare`](Conversation::spare) says where to read them to.

use arrayvec::ArrayVec;

use super::control::{Control, Stop};
use crate::admin::Subscription;
use crate::command::auth::{self, Admission};
use crate::command::get::LookUp;
use crate::command::{
    self, BATCH, Context, Dump, Mark, Next, Pending, Read as Keys, Replies, Session, WHOLE_MAX, get,
};
use crate::net::Input;
use crate::observe::board::Activity;
use crate::observe::events::Reason;
use crate::protocol::request::{Op, Parsed, Refusal, Request};
use crate::protocol::text::{self, NextKey};
use crate::protocol::{self, Dialect};
use crate::settings::Protocol;
use crate::store::Upload;

/// A get with so many bytes of keys, or more, is worth a batch of its own.
const MANY: usize = 160;

/// What a key of a get that is too long is answered with.
const BAD_KEY: Refusal = Refusal::Line("CLIENT_ERROR bad command line format");

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
    /// Bytes of replies that may wait for a client before no more of its requests are run.
    pub replies: usize,
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
}

/// Where in the stream of requests the next byte belongs.
enum State {
    /// To a command.
    Commands,
    /// To the keys of a get; its replies so far begin at the mark, if none has been sent.
    Keys { how: Keys, mark: Option<Mark> },
    /// To a value that is read straight into its item, or to its terminator.
    Value(Box<Pending>),
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
        }
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
            State::Commands if kept.contains(&b'\n') => Activity::ReadValue,
            State::Commands | State::Keys { .. } | State::SkipLine => Activity::Read,
            State::Value(_) => Activity::ReadValue,
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
    pub fn spare(&mut self) -> Option<&mut [u8]> {
        match &mut self.state {
            State::Value(pending) if pending.upload.missing() > 0 => Some(pending.upload.spare()),
            _ => None,
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

    /// Runs what has been read, as far as it goes.
    pub fn run(&mut self, turn: &mut Turn<'_>, requests: &mut usize) -> Ran {
        loop {
            let input = turn.input.unread();
            match &mut self.state {
                State::Commands | State::Keys { .. } => {
                    if input.is_empty() {
                        return Ran::Starved;
                    }
                    if let Some(ran) = self.batch(turn, requests) {
                        return ran;
                    }
                }
                State::Value(pending) => {
                    let taken = copy(input, &mut pending.upload);
                    turn.input.take(taken);
                    if pending.upload.missing() > 0 {
                        return Ran::Starved;
                    }
                    let length = pending.terminator();
                    let Some(terminator) = turn.input.unread().get(..length) else {
                        return Ran::Starved;
                    };
                    if let State::Value(pending) =
                        std::mem::replace(&mut self.state, State::Commands)
                    {
                        command::finish(&turn.context, *pending, terminator, turn.replies);
                    }
                    turn.input.take(length);
                    self.active = turn.context.now;
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

    /// Runs up to [`BATCH`] requests or keys: all are looked at first, so that the memory they
    /// need is on its way when the first of them is run. `None`: go on.
    fn batch(&mut self, turn: &mut Turn<'_>, requests: &mut usize) -> Option<Ran> {
        let (keys, mut mark) = match &self.state {
            State::Keys { how, mark } => (Some(*how), *mark),
            _ => (None, None),
        };
        let context = &turn.context;
        let input = turn.input.unread();
        let dialect = *self
            .dialect
            .get_or_insert_with(|| Dialect::of(input.first().copied().unwrap_or_default()));
        if self.session.is_locked() && dialect == Dialect::Text {
            return self.admit(turn);
        }
        if let Some(how) = keys {
            return self.keys(turn, how, mark);
        }
        let mut plan = Plan::empty();
        if let Some(how) = plan.fill(dialect, input, context) {
            *requests += 1;
            let taken = plan.taken;
            drop(plan);
            turn.input.take(taken);
            let mark = turn.replies.mark();
            return self.keys(turn, how, Some(mark));
        }
        // A single look-up has nothing to overlap with.
        if plan.steps.len() > 2 {
            for (step, _) in &plan.steps {
                if let Step::Key { hash, .. } | Step::Request { hash, .. } = step
                    && *hash != 0
                {
                    let store = context.store();
                    store.prefetch_items(&mut store.prefetch(*hash), *hash);
                }
            }
        }
        let mut keys = None;
        let mut end = 0;
        let mut next = Next::Done;
        let mut enough = false;
        let mut broken = false;
        let mut skip = None;
        for (step, step_end) in &plan.steps {
            let start = std::mem::replace(&mut end, *step_end);
            if !matches!(step, Step::Key { first: false, .. } | Step::End) {
                *requests += 1;
            }
            match step {
                Step::Key {
                    key,
                    hash,
                    how,
                    first,
                } => {
                    if *first {
                        mark = Some(turn.replies.mark());
                    }
                    keys = Some(*how);
                    get::one(context, key, *hash, *how, turn.replies);
                }
                Step::End => {
                    keys = None;
                    get::end(turn.replies);
                }
                Step::BadKey { line_ends } => {
                    keys = None;
                    if let Some(mark) = mark {
                        turn.replies.rewind(mark);
                    }
                    command::refuse(&BAD_KEY, turn.replies);
                    if !line_ends {
                        skip = Some(State::SkipLine);
                    }
                }
                Step::Request {
                    request,
                    hash,
                    value,
                } => {
                    let session = &mut self.session;
                    next = match value {
                        Some(value) => {
                            command::execute(context, session, request, *hash, value, turn.replies)
                        }
                        None => command::begin(context, session, request, *hash, turn.replies),
                    };
                }
                Step::Refused { reply, .. } if self.session.is_locked() => {
                    // What is answered in binary; text is admitted elsewhere.
                    let reply = auth::refuse_wrong(&input[start..], *reply);
                    command::refuse(&reply, turn.replies);
                    broken = true;
                }
                Step::Refused {
                    reply,
                    skip: 0,
                    close,
                } => {
                    command::refuse(reply, turn.replies);
                    broken = *close;
                }
                Step::Refused {
                    reply, skip: bytes, ..
                } => {
                    skip = Some(State::Skip {
                        bytes: *bytes,
                        reply: *reply,
                    });
                }
                Step::HangUp => broken = true,
            }
            enough = turn.replies.waiting() >= turn.limits.replies;
            if enough || broken || !matches!(next, Next::Done) {
                break;
            }
        }
        let starved = plan.starved && plan.steps.last().is_none_or(|(_, last)| *last == end);
        drop(plan);
        turn.input.take(end);
        self.active = context.now;
        self.state = match (skip, keys) {
            (Some(skip), _) => skip,
            (None, Some(how)) => State::Keys { how, mark },
            (None, None) => State::Commands,
        };
        let ran = self.follow(next, turn.control);
        if broken {
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

    /// Runs up to [`BATCH`] keys of one get. `None`: go on.
    fn keys(&mut self, turn: &mut Turn<'_>, how: Keys, mark: Option<Mark>) -> Option<Ran> {
        let context = &turn.context;
        let store = context.store();
        let input = turn.input.unread();
        let mut batch: ArrayVec<LookUp<'_>, BATCH> = ArrayVec::new();
        let mut at = 0;
        // What ended the batch, if it is not full.
        let mut last = None;
        while !batch.is_full() {
            let NextKey::Key { key, taken } = text::next_key(&input[at..]) else {
                last = Some(text::next_key(&input[at..]));
                break;
            };
            at += taken;
            batch.push(LookUp::new(store, key));
        }
        let limit = turn.limits.replies;
        let read = get::many(context, &mut batch, how, limit, turn.replies);
        let mut taken = if read < batch.len() { 0 } else { at };
        if read < batch.len() {
            for _ in 0..read {
                if let NextKey::Key { taken: more, .. } = text::next_key(&input[taken..]) {
                    taken += more;
                }
            }
        }
        self.state = State::Keys { how, mark };
        let mut ran = None;
        if taken < at {
            // The rest waits until replies have been sent.
            ran = Some(Ran::Enough);
        } else {
            match last {
                None | Some(NextKey::Key { .. }) => {}
                Some(NextKey::End { taken: end }) => {
                    taken += end;
                    get::end(turn.replies);
                    self.state = State::Commands;
                }
                Some(NextKey::TooLong) => {
                    if let Some(mark) = mark {
                        turn.replies.rewind(mark);
                    }
                    command::refuse(&BAD_KEY, turn.replies);
                    let line = text::skip_line(&input[at..]);
                    taken += line.unwrap_or(input.len() - at);
                    self.state = match line {
                        Some(_) => State::Commands,
                        None => State::SkipLine,
                    };
                }
                Some(NextKey::Incomplete) => ran = Some(Ran::Starved),
            }
            if turn.replies.waiting() >= turn.limits.replies {
                ran = Some(Ran::Enough);
            }
        }
        self.active = context.now;
        drop(batch);
        turn.input.take(taken);
        ran
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

/// Moves what fits from the input into a value; returns how much that was.
fn copy(mut from: &[u8], to: &mut Upload) -> usize {
    let before = from.len();
    loop {
        let spare = to.spare();
        let n = spare.len().min(from.len());
        if n == 0 {
            return before - from.len();
        }
        spare[..n].copy_from_slice(&from[..n]);
        from = &from[n..];
        to.advance(n);
    }
}

/// A part of the input that has been understood.
enum Step<'i> {
    Key {
        key: &'i [u8],
        hash: u64,
        how: Keys,
        /// The first of its request.
        first: bool,
    },
    /// All keys of a get are through.
    End,
    /// A key of a get is too long; the get is over.
    BadKey {
        line_ends: bool,
    },
    Request {
        request: Request<'i>,
        hash: u64,
        /// With its terminator, empty if the request has none. `None`: it is too long to be
        /// waited for here.
        value: Option<&'i [u8]>,
    },
    Refused {
        reply: Refusal,
        /// Bytes that have to pass before the reply is given.
        skip: u64,
        close: bool,
    },
    HangUp,
}

/// What lies ahead in the input.
struct Plan<'i> {
    /// Each with where it ends in the input.
    steps: ArrayVec<(Step<'i>, usize), BATCH>,
    /// The steps are all there is before more input arrives.
    starved: bool,
    /// Bytes of the input that were understood.
    taken: usize,
}

impl<'i> Plan<'i> {
    fn empty() -> Plan<'i> {
        Plan {
            steps: ArrayVec::new(),
            starved: false,
            taken: 0,
        }
    }

    /// Understands the input as far as it goes, for at most [`BATCH`] steps. A get of many keys that
    /// stands in front is a batch of its own: how to read its keys is returned, and they follow.
    fn fill(&mut self, dialect: Dialect, input: &'i [u8], context: &Context<'_>) -> Option<Keys> {
        let mut keys = None;
        let mut at = 0;
        let mut first = false;
        while !self.steps.is_full() {
            let rest = &input[at..];
            if let Some(how) = keys {
                let (step, taken) = match text::next_key(rest) {
                    NextKey::Key { key, taken } => {
                        let hash = context.store().hash(key);
                        let _ = context.store().prefetch(hash);
                        let step = Step::Key {
                            key,
                            hash,
                            how,
                            first: std::mem::take(&mut first),
                        };
                        (step, taken)
                    }
                    NextKey::End { taken } => {
                        keys = None;
                        (Step::End, taken)
                    }
                    NextKey::TooLong => {
                        keys = None;
                        let line = text::skip_line(rest);
                        let line_ends = line.is_some();
                        (Step::BadKey { line_ends }, line.unwrap_or(rest.len()))
                    }
                    NextKey::Incomplete => {
                        self.starved = true;
                        break;
                    }
                };
                at += taken;
                let over = matches!(step, Step::BadKey { line_ends: false });
                self.steps.push((step, at));
                if over {
                    break;
                }
                continue;
            }
            match protocol::parse(dialect, rest) {
                Parsed::Request { request, taken } => {
                    if let Op::Get { cas, touch } = request.op {
                        keys = Some(Keys {
                            cas,
                            touch: touch.map(|exptime| context.expiry(exptime)),
                        });
                        first = true;
                        at += taken;
                        let many = input
                            .get(at..at + MANY)
                            .is_some_and(|line| memchr::memchr(b'\n', line).is_none());
                        if many && self.steps.is_empty() {
                            self.taken = at;
                            return keys;
                        }
                        continue;
                    }
                    at += taken;
                    let length = command::body_length(&request);
                    let value = match input[at..].get(..length) {
                        Some(value) => Some(value),
                        None if length > WHOLE_MAX => None,
                        None => {
                            self.starved = true;
                            break;
                        }
                    };
                    at += value.map_or(0, <[u8]>::len);
                    let hash = command::prepare(context, &request);
                    self.steps.push((
                        Step::Request {
                            request,
                            hash,
                            value,
                        },
                        at,
                    ));
                    if value.is_none() {
                        break;
                    }
                }
                Parsed::Incomplete => {
                    self.starved = true;
                    break;
                }
                Parsed::Refused {
                    reply,
                    taken,
                    skip,
                    close,
                } => {
                    at += taken;
                    let here = usize::try_from(skip)
                        .map_or(usize::MAX, |skip| skip)
                        .min(input.len() - at);
                    at += here;
                    let skip = skip - here as u64;
                    self.steps.push((Step::Refused { reply, skip, close }, at));
                    if skip > 0 || close {
                        break;
                    }
                }
                Parsed::Close => {
                    self.steps.push((Step::HangUp, at));
                    break;
                }
            }
        }
        None
    }
}
