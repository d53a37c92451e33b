#![forbid(unsafe_code)]
//! One client, as a state machine.
//!
//! Every wake-up runs the same [`advance`](Connection::advance), whether the socket has become
//! readable or writable: send what waits; if something still waits, stop; else run what has been
//! read, read, and again. The poll tells of edges only, and replies born while reading get no edge
//! of their own: sending first and reading only when nothing waits makes that right by
//! construction, and bounds what a client that does not read can make the server hold.
//!
//! Between two commands a connection owns no buffer: input is read into the worker's [`Input`],
//! replies are built in the worker's [`Replies`], and only what is incomplete on either side moves
//! into the connection. Values longer than [`WHOLE_MAX`] never pass through a buffer at all, they
//! are read from the socket into their item.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::control::{Control, Stop};
use crate::admin::Subscription;
use crate::command::auth::{self, Admission};
use crate::command::{
    self, BATCH, Context, Dump, Flushed, Mark, Next, Pending, Read as Keys, Replies, Session,
    WHOLE_MAX, get,
};
use crate::net::{Input, Progress, Stream};
use crate::observe::board::{Activity, Row};
use crate::protocol::request::{Op, Parsed, Refusal, Request};
use crate::protocol::text::{self, NextKey};
use crate::protocol::{self, Dialect};
use crate::settings::Protocol;
use crate::store::Upload;

/// Replies are sent when this many bytes have gathered, or when the input is drained.
pub const SEND_AT: usize = 64 << 10;

/// What a key of a get that is too long is answered with.
const BAD_KEY: Refusal = Refusal::Line("CLIENT_ERROR bad command line format");

/// A client that keeps the worker busy for this many bytes, in either direction, has to let the
/// others take their turn.
const TURN_MAX: usize = 256 << 10;

/// What a connection gets from its worker for one turn.
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

/// What the worker is to do with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to do before the next event.
    Wait,
    /// It has more to do, once the others had their turn.
    Again,
    Close,
}

/// One client.
pub struct Connection {
    stream: Stream,
    state: State,
    /// Decided by the first byte, unless the listener has.
    dialect: Option<Dialect>,
    session: Session,
    /// The start of a command whose end has not arrived.
    kept: Vec<u8>,
    /// What the socket has not taken yet; while there is some, nothing is read.
    waiting: Option<Box<Replies>>,
    /// When the last command ended, or bytes of a value or a reply moved; on the server's clock.
    active: u32,
    /// What `stats conns` shows of it.
    row: Arc<Row>,
    /// The poll has been asked to tell when it takes more.
    watched_for_writing: bool,
    /// The poll has told that the peer sends no more: the next short read is not the last.
    hung_up: bool,
    /// It is in the worker's list of those that have more to do.
    pub queued: bool,
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

/// What a read has come to.
enum Read {
    Some {
        bytes: usize,
        /// The socket holds no more: the poll will tell when it does.
        last: bool,
    },
    Nothing,
    /// The peer sends no more.
    Ended,
}

/// What running the input has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ran {
    /// All that can be run has been.
    Starved,
    /// Replies should be sent before more is run.
    Enough,
    /// The connection ends when what waits is sent.
    Close,
}

impl Connection {
    pub fn new(
        stream: Stream,
        protocol: Protocol,
        session: Session,
        row: Arc<Row>,
        now: u32,
    ) -> Connection {
        Connection {
            stream,
            state: State::Commands,
            dialect: match protocol {
                Protocol::Negotiate => None,
                Protocol::Ascii => Some(Dialect::Text),
                Protocol::Binary => Some(Dialect::Binary),
            },
            session,
            kept: Vec::new(),
            waiting: None,
            active: now,
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
        self.waiting.is_some() && !std::mem::replace(&mut self.watched_for_writing, true)
    }

    /// The poll has told that the peer has shut its side.
    pub fn hang_up(&mut self) {
        self.hung_up = true;
    }

    /// Whether it has been idle for longer than `timeout` seconds.
    pub fn idle(&self, now: u32, timeout: u32) -> bool {
        self.stream.may_idle_out()
            && !matches!(self.state, State::Watch(_))
            && now.saturating_sub(self.active) > timeout
    }

    /// What the client watches.
    pub fn subscription(&self) -> Option<&Subscription> {
        match &self.state {
            State::Watch(subscription) => Some(subscription),
            _ => None,
        }
    }

    /// Sends, runs and reads until there is no more to do now.
    pub fn advance(&mut self, turn: &mut Turn<'_>) -> Outcome {
        if let Some(mut waiting) = self.waiting.take() {
            match self.send(&mut waiting, &turn.context) {
                Flushed::All => {}
                Flushed::Blocked => {
                    self.waiting = Some(waiting);
                    return Outcome::Wait;
                }
                Flushed::Closed => return Outcome::Close,
            }
        }
        turn.input.load(&mut self.kept);
        let mut requests = 0;
        let outcome = self.serve(turn, &mut requests);
        if requests > turn.limits.requests_per_event {
            let yields = (requests - 1) / turn.limits.requests_per_event;
            turn.context.counters.general.conn_yields.add(yields as u64);
        }
        turn.input.save(&mut self.kept);
        self.row.command_at(self.active);
        if !turn.replies.is_empty() {
            if outcome != Outcome::Close {
                self.waiting = Some(Box::new(turn.replies.take_rest()));
            }
            turn.replies.clear();
        }
        outcome
    }

    fn serve(&mut self, turn: &mut Turn<'_>, requests: &mut usize) -> Outcome {
        // Bytes that have gone in or out in this turn.
        let mut work = 0;
        // The socket holds no more: the poll will tell when it does.
        let mut drained = false;
        loop {
            if let State::Dump(_) = self.state {
                // A step may find little to send and has taken its time all the same.
                work += TURN_MAX / 8;
            }
            let ran = self.run(turn, requests);
            if ran == Ran::Close {
                self.state = State::Closing;
            }
            if ran == Ran::Starved && !drained && work <= TURN_MAX {
                match self.read(turn) {
                    Read::Some { bytes, last } => {
                        work += bytes;
                        drained = last;
                        continue;
                    }
                    Read::Nothing => drained = true,
                    Read::Ended => self.state = State::Closing,
                }
            }
            work += turn.replies.waiting();
            match self.send(turn.replies, &turn.context) {
                Flushed::All => {}
                Flushed::Blocked => return Outcome::Wait,
                Flushed::Closed => return Outcome::Close,
            }
            match (&self.state, ran) {
                (State::Closing, _) => return Outcome::Close,
                (_, Ran::Starved) if drained => return Outcome::Wait,
                _ if work > TURN_MAX => return Outcome::Again,
                _ => {}
            }
        }
    }

    fn read(&mut self, turn: &mut Turn<'_>) -> Read {
        let (progress, asked) = match &mut self.state {
            State::Value(pending) if turn.input.is_empty() && pending.upload.missing() > 0 => {
                let spare = pending.upload.spare();
                let asked = spare.len();
                let progress = self.stream.read(spare);
                if let Progress::Moved(n) = progress {
                    pending.upload.advance(n);
                    self.active = turn.context.now;
                }
                (progress, asked)
            }
            _ => {
                let space = turn.input.space();
                let asked = space.len();
                let progress = self.stream.read(space);
                if let Progress::Moved(n) = progress {
                    turn.input.filled(n);
                }
                (progress, asked)
            }
        };
        match progress {
            Progress::Moved(bytes) => {
                turn.context.counters.general.bytes_read.add(bytes as u64);
                Read::Some {
                    bytes,
                    last: bytes < asked && !self.hung_up,
                }
            }
            Progress::Blocked => Read::Nothing,
            Progress::Closed => Read::Ended,
        }
    }

    fn send(&mut self, replies: &mut Replies, context: &Context<'_>) -> Flushed {
        let (flushed, sent) = replies.flush(&mut self.stream);
        if sent > 0 {
            self.active = context.now;
            context.counters.general.bytes_written.add(sent as u64);
            // What has been sent cannot be taken back.
            if let State::Keys { mark, .. } = &mut self.state {
                *mark = None;
            }
        }
        flushed
    }

    /// Runs what has been read, as far as it goes.
    fn run(&mut self, turn: &mut Turn<'_>, requests: &mut usize) -> Ran {
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
            Admission::Close => Some(Ran::Close),
        }
    }

    /// Runs up to [`BATCH`] requests or keys: all are looked at first, so that the memory they
    /// need is on its way when the first of them is run. `None`: go on.
    fn batch(&mut self, turn: &mut Turn<'_>, requests: &mut usize) -> Option<Ran> {
        let (mut keys, mut mark) = match &self.state {
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
        let mut plan = Plan::empty();
        plan.fill(dialect, keys, input, context);
        // A single look-up has nothing to overlap with.
        if plan.steps.len() > 2 {
            for (step, _) in &plan.steps {
                if let Step::Key { hash, .. } | Step::Request { hash, .. } = step
                    && *hash != 0
                {
                    context.store().prefetch_items(*hash);
                }
            }
        }
        let mut end = 0;
        let mut next = Next::Done;
        let mut enough = false;
        let mut skip = None;
        for (step, step_end) in &plan.steps {
            end = *step_end;
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
                Step::Refused {
                    reply,
                    skip: 0,
                    close,
                } => {
                    command::refuse(reply, turn.replies);
                    if *close {
                        next = Next::Close;
                    }
                }
                Step::Refused {
                    reply, skip: bytes, ..
                } => {
                    skip = Some(State::Skip {
                        bytes: *bytes,
                        reply: *reply,
                    });
                }
                Step::HangUp => next = Next::Close,
            }
            enough = turn.replies.waiting() >= turn.limits.replies;
            if enough || !matches!(next, Next::Done) {
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
        if ran.is_some() {
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
            Next::Close => Some(Ran::Close),
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
                self.row.set(Activity::Watch);
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
}

impl<'i> Plan<'i> {
    fn empty() -> Plan<'i> {
        Plan {
            steps: ArrayVec::new(),
            starved: false,
        }
    }

    /// Understands the input as far as it goes, for at most [`BATCH`] steps, beginning in the
    /// midst of a get if `keys` says so.
    fn fill(
        &mut self,
        dialect: Dialect,
        mut keys: Option<Keys>,
        input: &'i [u8],
        context: &Context<'_>,
    ) {
        let mut at = 0;
        let mut first = false;
        while !self.steps.is_full() {
            let rest = &input[at..];
            if let Some(how) = keys {
                let (step, taken) = match text::next_key(rest) {
                    NextKey::Key { key, taken } => {
                        let hash = context.store().hash(key);
                        context.store().prefetch(hash);
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
    }
}
