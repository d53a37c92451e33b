#![forbid(unsafe_code)]
//! One client of the proxy: its socket, and what it says as a state machine over bytes.
//!
//! As with a client of the store, every wake-up runs the same [`advance`](Client::advance), and between
//! two requests a client owns no buffer for input. What it is owed is kept in its seat; nothing more is
//! read from it while that is too much, or while it does not take what it is sent.

use std::sync::Arc;

use super::request::{self, Scratch};
use super::stats;
use crate::admin::Subscription;
use crate::cluster::proxy::{Forward, Long, Proxy, Upload};
use crate::cluster::slots::Slots;
use crate::command::auth::{self, Admission};
use crate::command::{self, Context, Next, Replies, Session};
use crate::net::buffer::SIZE;
use crate::net::{Input, Progress, Stream};
use crate::observe::board::{Activity, Row};
use crate::observe::events::Reason;
use crate::protocol::request::{Key, Mode, Op, Parsed, Refusal, Request, Style};
use crate::protocol::text::{self, NextKey};
use crate::protocol::{self, Dialect};
use crate::server::connection::{Outcome, tell};
use crate::server::control::{Control, Stop};
use crate::settings::Protocol;
use crate::settings::proxy::Command;

/// A value up to this long is waited for, and sent on when it is whole.
const WHOLE_MAX: usize = 32 << 10;

/// A client that keeps the worker busy for this many bytes has to let the others take their turn.
const TURN_MAX: usize = 256 << 10;

/// A step of a TLS handshake takes as long as so many bytes.
const HANDSHAKE_STEP: usize = TURN_MAX / 8;

const BAD_KEY: &[u8] = b"CLIENT_ERROR bad command line format\r\n";
const BAD_CHUNK: &[u8] = b"CLIENT_ERROR bad data chunk\r\n";
/// What concerns one server's store has to be asked of that server.
const SERVERS_OWN: &str = "CLIENT_ERROR the proxy has no store: ask the server itself";

/// The longest value that is kept whole because it may have to be sent again, or to several servers.
const GATHER_MAX: u64 = 8 << 20;

/// Requests between two looks at what the client is owed.
const BATCH: usize = 64;

/// What a client gets from its worker for one turn, beside its input.
pub struct Desk<'w> {
    pub context: Context<'w>,
    /// For what is answered here; empty between two requests.
    pub replies: &'w mut Replies,
    pub scratch: &'w mut Scratch,
    pub control: &'w Control,
    pub proxy: &'w mut Proxy,
    pub limits: Limits,
}

/// What one client may make the proxy hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests and keys that wait for their answers.
    pub requests: usize,
    /// Bytes of answers.
    pub bytes: usize,
    /// The longest value that is sent on.
    pub value: u64,
}

impl Limits {
    pub fn of(limits: &crate::settings::proxy::Limits) -> Limits {
        Limits {
            requests: limits.client_requests,
            bytes: limits.client_bytes,
            value: limits.value_bytes,
        }
    }
}

/// Where in the stream of requests the next byte belongs.
enum State {
    /// To a command.
    Commands,
    /// To the keys of a get whose line has not ended; its start is kept.
    Keys { command: Box<[u8]> },
    /// To a long value that is sent on as it comes.
    Long(Long),
    /// To a request with a long value that cannot be sent on as it comes.
    Gather { request: Vec<u8>, left: usize },
    /// To nobody before all requests so far have been answered: a long value took a way of its own.
    Behind,
    /// To the rest of a refused request; the reply follows when that many bytes have passed.
    Skip { bytes: u64, reply: Refusal },
    /// To the rest of a line that has been answered already.
    SkipLine,
    /// To nobody: the client is sent what happens, until it goes.
    Watch(Subscription),
    /// To nobody: what it is owed is sent, then the connection ends.
    Closing,
}

/// What running the input has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ran {
    /// All that can be run has been.
    Starved,
    /// No more is run before no more than so many requests, and half the bytes, are waiting.
    Enough(usize),
    /// No more is run before a server has taken some.
    Full,
    Close,
}

/// What one step has come to: bytes of the input that are done with, and whether to go on.
type Step = (usize, Option<Ran>);

/// One client.
pub struct Client {
    stream: Stream,
    pub seat: usize,
    state: State,
    /// Decided by the first byte, unless the listener has.
    dialect: Option<Dialect>,
    session: Session,
    /// The start of a request whose end has not arrived.
    kept: Vec<u8>,
    /// Bytes of a long one that have been looked through for its end; 0 if there is none.
    seen: usize,
    row: Arc<Row>,
    /// When it has last said something; on the server's clock.
    active: u32,
    reason: Reason,
    /// The poll has been asked to tell when it takes more.
    watched_for_writing: bool,
    /// The poll has told that the peer sends no more: the next short read is not the last.
    hung_up: bool,
    /// It does not take more now.
    blocked: bool,
    /// It has more to say, and is heard when no more than so many of its requests wait.
    held_up: Option<usize>,
    /// It is in the worker's list of those that have more to do.
    pub queued: bool,
}

impl Client {
    pub fn new(
        stream: Stream,
        seat: usize,
        protocol: Protocol,
        session: Session,
        row: Arc<Row>,
        now: u32,
    ) -> Client {
        Client {
            stream,
            seat,
            state: State::Commands,
            dialect: match protocol {
                Protocol::Negotiate => None,
                Protocol::Ascii => Some(Dialect::Text),
                Protocol::Binary => Some(Dialect::Binary),
            },
            session,
            kept: Vec::new(),
            seen: 0,
            row,
            active: now,
            reason: Reason::Error,
            watched_for_writing: false,
            hung_up: false,
            blocked: false,
            held_up: None,
            queued: false,
        }
    }

    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Whether the poll has to be asked, from now on, to tell when it takes more.
    pub fn wants_writable(&mut self) -> bool {
        (self.blocked || self.stream.wants_flush())
            && !std::mem::replace(&mut self.watched_for_writing, true)
    }

    /// The poll has told that it takes more.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }

    /// The poll has told that the peer has shut its side.
    pub fn hang_up(&mut self) {
        self.hung_up = true;
    }

    /// Whether it has more to say than it is heard before some of its requests have been answered.
    #[inline]
    pub fn is_held_up(&self) -> bool {
        self.held_up.is_some()
    }

    /// Whether it has been idle for longer than `timeout` seconds.
    pub fn idle(&self, now: u32, timeout: u32) -> bool {
        self.stream.may_idle_out()
            && self.subscription().is_none()
            && now.saturating_sub(self.active) > timeout
    }

    /// What the client watches.
    pub fn subscription(&self) -> Option<&Subscription> {
        match &self.state {
            State::Watch(subscription) => Some(subscription),
            _ => None,
        }
    }

    /// A long value that is on its way, if the client goes before it is whole.
    pub fn upload(&self) -> Option<Long> {
        match &self.state {
            State::Long(long) => Some(*long),
            _ => None,
        }
    }

    /// Reads and runs until there is no more to do now.
    pub fn advance(&mut self, input: &mut Input, desk: &mut Desk<'_>) -> Outcome {
        match self.stream.flush() {
            Progress::Moved(_) => {}
            Progress::Blocked => return Outcome::Wait,
            Progress::Closed => return Outcome::Close(Reason::Normal),
        }
        desk.proxy.front.touch(self.seat);
        if self.blocked {
            return Outcome::Wait;
        }
        self.held_up = None;
        self.row.set(Activity::Parse);
        let asked = desk.asked(self.seat);
        input.load(&mut self.kept);
        let outcome = self.serve(input, desk);
        input.save(&mut self.kept);
        if desk.asked(self.seat) != asked {
            desk.proxy.front.asked_from(self.seat, asked);
        }
        self.row.command_at(self.active);
        self.row.set(self.activity());
        outcome
    }

    fn activity(&self) -> Activity {
        match &self.state {
            State::Commands if self.kept.contains(&b'\n') => Activity::ReadValue,
            State::Commands | State::Keys { .. } | State::SkipLine | State::Behind => {
                Activity::Read
            }
            State::Long(_) | State::Gather { .. } => Activity::ReadValue,
            State::Skip { .. } => Activity::Swallow,
            State::Watch(_) => Activity::Watch,
            State::Closing => Activity::Closing,
        }
    }

    fn serve(&mut self, input: &mut Input, desk: &mut Desk<'_>) -> Outcome {
        let mut work = 0;
        let mut drained = false;
        loop {
            match self.run(input, desk) {
                Ran::Close | Ran::Full => return Outcome::Wait,
                Ran::Enough(requests) => {
                    self.held_up = Some(requests);
                    return Outcome::Wait;
                }
                Ran::Starved if drained => return Outcome::Wait,
                Ran::Starved => {}
            }
            if work > TURN_MAX {
                return Outcome::Again;
            }
            let space = input.space();
            let asked = space.len();
            let progress = self.stream.read(space);
            let failed = match self.stream.news() {
                Some(news) => tell(&desk.context, &news),
                None => false,
            };
            match progress {
                Progress::Moved(0) => work += HANDSHAKE_STEP,
                Progress::Moved(n) => {
                    input.filled(n);
                    desk.context.counters.general.bytes_read.add(n as u64);
                    work += n;
                    drained = self.stream.drained(n, asked) && !self.hung_up;
                }
                Progress::Blocked => drained = true,
                Progress::Closed => {
                    let reason = if failed {
                        Reason::Error
                    } else {
                        Reason::Normal
                    };
                    if let State::Long(_) = self.state {
                        // Half a value is no request, and nothing else is under way.
                        return Outcome::Close(reason);
                    }
                    self.end(reason);
                }
            }
        }
    }

    /// Nothing more is read; what it is owed is sent, then the connection ends.
    fn end(&mut self, reason: Reason) {
        self.state = State::Closing;
        self.reason = reason;
    }

    /// Sends what is ready.
    pub fn send(&mut self, slots: &mut Slots, context: &Context<'_>, limits: Limits) -> Outcome {
        match self.stream.flush() {
            Progress::Moved(_) => {}
            Progress::Blocked => {
                self.blocked = !slots.ready().is_empty();
                return Outcome::Wait;
            }
            Progress::Closed => return Outcome::Close(Reason::Normal),
        }
        while !slots.ready().is_empty() {
            match self.stream.write(slots.ready()) {
                Progress::Moved(n @ 1..) => {
                    slots.advance(n);
                    context.counters.general.bytes_written.add(n as u64);
                }
                Progress::Moved(_) | Progress::Blocked => {
                    self.blocked = true;
                    return Outcome::Wait;
                }
                Progress::Closed => return Outcome::Close(Reason::Normal),
            }
        }
        self.blocked = false;
        match (&self.state, self.held_up) {
            (State::Closing, _) if slots.is_empty() => Outcome::Close(self.reason),
            (State::Closing, _) => Outcome::Wait,
            (_, Some(requests)) => {
                if slots.len() <= requests && slots.bytes() <= limits.bytes / 2 {
                    Outcome::Again
                } else {
                    Outcome::Wait
                }
            }
            _ => Outcome::Wait,
        }
    }

    /// Runs what has been read, as far as it goes.
    fn run(&mut self, input: &mut Input, desk: &mut Desk<'_>) -> Ran {
        loop {
            let bytes = input.unread();
            let (taken, ran) = match &mut self.state {
                State::Closing => return Ran::Close,
                State::Behind => {
                    if desk.owes(self.seat) {
                        return Ran::Enough(0);
                    }
                    self.state = State::Commands;
                    continue;
                }
                State::Commands | State::Keys { .. } => {
                    if bytes.is_empty() {
                        return Ran::Starved;
                    }
                    if let Some(seat) = desk.proxy.front.seat(self.seat)
                        && (seat.slots.len() > desk.limits.requests
                            || seat.slots.bytes() > desk.limits.bytes)
                    {
                        return Ran::Enough(desk.limits.requests / 2);
                    }
                    self.active = desk.context.now;
                    if self.seen > 0 && self.still_starved(bytes, desk) {
                        return Ran::Starved;
                    }
                    let (taken, ran) = self.requests(bytes, desk);
                    if bytes.len() > SIZE {
                        self.seen = if taken == 0 { bytes.len() } else { 0 };
                    }
                    (taken, ran)
                }
                State::Long(long) => match desk.proxy.upload(long, bytes) {
                    Upload::Taken(0) => return Ran::Starved,
                    Upload::Taken(n) => {
                        self.active = desk.context.now;
                        (n, None)
                    }
                    Upload::Full => return Ran::Full,
                    Upload::Done => {
                        self.state = State::Behind;
                        (0, None)
                    }
                    Upload::Gone(bytes) => {
                        self.state = State::Skip {
                            bytes,
                            reply: Refusal::Silent,
                        };
                        (0, None)
                    }
                },
                State::Gather { request, left } => {
                    let here = bytes.len().min(*left);
                    request.extend_from_slice(&bytes[..here]);
                    *left -= here;
                    self.active = desk.context.now;
                    if *left > 0 {
                        (here, Some(Ran::Starved))
                    } else {
                        let whole = std::mem::take(request);
                        self.state = State::Commands;
                        let dialect = self.dialect.unwrap_or(Dialect::Text);
                        let rules = desk.context.shared.rules;
                        if let Parsed::Request { request, taken } =
                            protocol::parse_by(rules, dialect, &whole)
                        {
                            self.request(&request, &whole, taken, desk);
                        }
                        (here, None)
                    }
                }
                State::Skip { bytes: left, reply } => {
                    let here = usize::try_from(*left).map_or(bytes.len(), |n| n.min(bytes.len()));
                    *left -= here as u64;
                    if *left == 0 {
                        command::refuse(reply, desk.replies);
                        self.state = State::Commands;
                        desk.say(self.seat);
                        (here, None)
                    } else {
                        (here, Some(Ran::Starved))
                    }
                }
                State::SkipLine => match text::skip_line(bytes) {
                    Some(line) => {
                        self.state = State::Commands;
                        (line, None)
                    }
                    None => (bytes.len(), Some(Ran::Starved)),
                },
                State::Watch(subscription) => {
                    desk.replies.push(&subscription.take());
                    desk.say(self.seat);
                    (bytes.len(), Some(Ran::Starved))
                }
            };
            input.take(taken);
            if let Some(ran) = ran {
                return ran;
            }
        }
    }

    /// Whether a long line, or a key of a get, whose end had not arrived still has none.
    #[cold]
    fn still_starved(&mut self, input: &[u8], desk: &Desk<'_>) -> bool {
        let (rules, seen) = (desk.context.shared.rules, self.seen);
        let in_keys = matches!(self.state, State::Keys { .. });
        let starved =
            self.dialect == Some(Dialect::Text) && text::lacks_end(rules, in_keys, input, seen);
        self.seen = if starved { input.len() } else { 0 };
        starved
    }

    /// Takes what somebody says who has yet to show credentials.
    fn admit(&mut self, input: &[u8], desk: &mut Desk<'_>) -> Step {
        let admission = auth::admit(&desk.context, &mut self.session, input, desk.replies);
        desk.say(self.seat);
        match admission {
            Admission::Incomplete => (0, Some(Ran::Starved)),
            Admission::Taken(bytes) => (bytes, None),
            Admission::Close => {
                self.end(Reason::Error);
                (0, Some(Ran::Close))
            }
        }
    }

    /// Runs requests as long as nothing else than a request follows.
    fn requests(&mut self, input: &[u8], desk: &mut Desk<'_>) -> Step {
        if let State::Keys { .. } = self.state {
            return self.more_keys(input, desk);
        }
        let dialect = *self
            .dialect
            .get_or_insert_with(|| Dialect::of(input.first().copied().unwrap_or_default()));
        if self.session.is_locked() && dialect == Dialect::Text {
            return self.admit(input, desk);
        }
        let mut at = 0;
        // As many as fit into the bounds of one client are not worth a look at them each.
        for _ in 0..BATCH {
            let rest = &input[at..];
            if dialect == Dialect::Text
                && let Some((key, taken)) = text::usual_get(rest)
            {
                let get = Forward::get(&rest[..taken], key, Command::Get);
                desk.proxy.forward(self.seat, &get);
                at += taken;
                if at == input.len() {
                    break;
                }
                continue;
            }
            let (taken, ran) = match protocol::parse_by(desk.context.shared.rules, dialect, rest) {
                Parsed::Request { request, taken } => match request.op {
                    Op::Get { .. } => self.get(rest, taken, desk),
                    _ => self.request(&request, rest, taken, desk),
                },
                Parsed::Incomplete => (0, Some(Ran::Starved)),
                Parsed::Refused {
                    reply,
                    taken,
                    skip,
                    close,
                } => {
                    let (reply, skip, close) = if self.session.is_locked() {
                        (auth::refuse_wrong(rest, reply), 0, true)
                    } else {
                        (reply, skip, close)
                    };
                    if skip > 0 {
                        self.state = State::Skip { bytes: skip, reply };
                    } else {
                        command::refuse(&reply, desk.replies);
                        desk.say(self.seat);
                    }
                    if close {
                        self.end(Reason::Error);
                    }
                    (taken, close.then_some(Ran::Close))
                }
                Parsed::Close => {
                    self.end(Reason::Error);
                    (0, Some(Ran::Close))
                }
            };
            at += taken;
            if ran.is_some() {
                return (at, ran);
            }
            if at == input.len() || !matches!(self.state, State::Commands) {
                break;
            }
        }
        (at, None)
    }

    /// A request that is no get of classic text.
    fn request(
        &mut self,
        request: &Request<'_>,
        input: &[u8],
        taken: usize,
        desk: &mut Desk<'_>,
    ) -> Step {
        let key = match request::key_of(&request.op) {
            Some(key) if !self.session.is_locked() => key,
            _ => return self.local(request, input, taken, desk),
        };
        let length = command::body_length(request);
        let head = &input[..taken];
        let Some(body) = input[taken..].get(..length) else {
            if length <= WHOLE_MAX {
                return (0, Some(Ran::Starved));
            }
            return self.begin_long(request, key, head, length as u64, desk);
        };
        let text = !matches!(request.style, Style::Binary { .. });
        if text && length > 0 && !body.ends_with(b"\r\n") {
            // A server would find the same; but a value is never taken for commands here.
            if !matches!(request.style, Style::Text { noreply: true }) {
                desk.replies.push(BAD_CHUNK);
                desk.say(self.seat);
            }
        } else {
            let forward = request::forward(request, key, head, body, desk.scratch);
            desk.proxy.forward(self.seat, &forward);
        }
        (taken + length, None)
    }

    /// A value that is longer than is waited for: it is sent on as it comes.
    fn begin_long(
        &mut self,
        request: &Request<'_>,
        key: Key<'_>,
        head: &[u8],
        length: u64,
        desk: &mut Desk<'_>,
    ) -> Step {
        if length > desk.limits.value {
            return self.refuse_long(request, key, head.len(), length, desk);
        }
        let owes = desk.owes(self.seat);
        let forward = request::forward(request, key, head, b"", desk.scratch);
        if !desk.proxy.streams(self.seat, &forward) {
            if length > GATHER_MAX {
                return self.refuse_long(request, key, head.len(), length, desk);
            }
            self.state = State::Gather {
                request: head.to_vec(),
                left: length as usize,
            };
            return (head.len(), None);
        }
        if owes {
            // What went before has to be done: the value goes another way.
            return (0, Some(Ran::Enough(0)));
        }
        self.state = match desk.proxy.begin_upload(self.seat, &forward, length) {
            Some(long) => State::Long(long),
            None => State::Skip {
                bytes: length,
                reply: Refusal::Silent,
            },
        };
        (head.len(), None)
    }

    /// A value that is too long to be sent on. As with a server that refuses one, the old value goes
    /// with it, lest it be taken for the new one.
    fn refuse_long(
        &mut self,
        request: &Request<'_>,
        key: Key<'_>,
        taken: usize,
        length: u64,
        desk: &mut Desk<'_>,
    ) -> Step {
        self.state = State::Skip {
            bytes: length,
            reply: too_large(&request.style),
        };
        if let Op::Store(op) = &request.op
            && (op.mode == Mode::Set && op.cas.is_none()
                || matches!(request.style, Style::Meta { .. }))
        {
            let delete = request::delete(&request.style, key, desk.scratch);
            desk.proxy.forward(self.seat, &delete);
        }
        (taken, None)
    }

    /// A get of classic text, whose keys begin at `keys`.
    #[inline]
    fn get(&mut self, input: &[u8], keys: usize, desk: &mut Desk<'_>) -> Step {
        let rest = &input[keys..];
        // Most gets have one key.
        let rules = desk.context.shared.rules;
        if let NextKey::Key { key, taken } = text::next_key_by(rules, rest)
            && let NextKey::End { taken: end } = text::next_key_by(rules, &rest[taken..])
        {
            let line = &input[..keys + taken + end];
            let command = match line[1] {
                b'a' => Command::Gat,
                _ => Command::Get,
            };
            let get = Forward::get(line, key, command);
            desk.proxy.forward(self.seat, &get);
            return (line.len(), None);
        }
        self.get_many(input, keys, desk)
    }

    fn get_many(&mut self, input: &[u8], keys: usize, desk: &mut Desk<'_>) -> Step {
        let rest = &input[keys..];
        // A wrong key is the only answer, if the line is at hand.
        let mut at = 0;
        let (end, whole) = loop {
            match text::next_key_by(desk.context.shared.rules, &rest[at..]) {
                NextKey::Key { taken, .. } => at += taken,
                NextKey::End { taken } => break (at + taken, true),
                NextKey::Incomplete => break (at, false),
                NextKey::TooLong => {
                    desk.replies.push(BAD_KEY);
                    desk.say(self.seat);
                    let line = text::skip_line(&rest[at..]);
                    if line.is_none() {
                        self.state = State::SkipLine;
                    }
                    return (line.map_or(input.len(), |line| keys + at + line), None);
                }
            }
        };
        let command = input[..keys].trim_ascii_end();
        desk.send_keys(self.seat, command, rest, end, whole);
        if !whole {
            self.state = State::Keys {
                command: command.into(),
            };
        }
        (keys + end, (!whole).then_some(Ran::Starved))
    }

    /// More keys of a get that is longer than is waited for.
    fn more_keys(&mut self, input: &[u8], desk: &mut Desk<'_>) -> Step {
        let State::Keys { command } = &self.state else {
            return (0, None);
        };
        let mut at = 0;
        let (next, ran) = loop {
            match text::next_key_by(desk.context.shared.rules, &input[at..]) {
                NextKey::Key { taken, .. } => at += taken,
                NextKey::End { taken } => {
                    at += taken;
                    break (Some(State::Commands), None);
                }
                NextKey::Incomplete => break (None, Some(Ran::Starved)),
                NextKey::TooLong => break (Some(State::SkipLine), None),
            }
        };
        let last = matches!(next, Some(State::Commands));
        desk.send_keys(self.seat, command, input, at, last);
        if let Some(State::SkipLine) = next {
            // Values may have been sent: this ends the get in place of END.
            desk.replies.push(BAD_KEY);
            desk.say(self.seat);
        }
        if let Some(next) = next {
            self.state = next;
        }
        (at, ran)
    }

    /// What is answered here, or goes to all servers.
    fn local(
        &mut self,
        request: &Request<'_>,
        input: &[u8],
        taken: usize,
        desk: &mut Desk<'_>,
    ) -> Step {
        let length = command::body_length(request);
        let Some(body) = input[taken..].get(..length) else {
            if length <= WHOLE_MAX {
                return (0, Some(Ran::Starved));
            }
            let next = command::begin(&desk.context, &mut self.session, request, 0, desk.replies);
            let ran = self.follow(next, desk);
            return (taken, ran);
        };
        let open = !self.session.is_locked();
        let next = match &request.op {
            Op::FlushAll { exptime: Some(_) } if open => {
                let forward = request::to_all(request, &input[..taken], desk.scratch);
                desk.proxy.to_all(self.seat, &forward);
                Next::Done
            }
            Op::CacheMemlimit { .. }
            | Op::Lru { .. }
            | Op::LruCrawler { .. }
            | Op::Slabs { .. }
            | Op::Extstore { .. }
            | Op::DebugTime { .. }
            | Op::DebugItem { .. }
            | Op::Misbehave
                if open =>
            {
                command::refuse(&Refusal::Line(SERVERS_OWN), desk.replies);
                Next::Done
            }
            Op::Stats { words } if open && stats::answers(words) => {
                stats::answer(desk, words, &request.style);
                Next::Done
            }
            _ => command::execute(
                &desk.context,
                &mut self.session,
                request,
                0,
                body,
                desk.replies,
            ),
        };
        let ran = self.follow(next, desk);
        (taken + length, ran)
    }

    fn follow(&mut self, next: Next, desk: &mut Desk<'_>) -> Option<Ran> {
        desk.say(self.seat);
        match next {
            Next::Close => {
                self.end(Reason::Normal);
                return Some(Ran::Close);
            }
            Next::Skip { bytes, then } => self.state = State::Skip { bytes, reply: then },
            Next::Watch(subscription) => self.state = State::Watch(subscription),
            Next::Shutdown { graceful } => {
                let why = if graceful {
                    Stop::Graceful
                } else {
                    Stop::Normal
                };
                if let Err(error) = desk.control.stop(why) {
                    log::error!("cannot wake the acceptor: {error}");
                }
                self.end(Reason::Shutdown);
                return Some(Ran::Close);
            }
            // Those that read or write the store are not run here.
            Next::Done
            | Next::Flush
            | Next::Keys(_)
            | Next::Value(_)
            | Next::Dump(_)
            | Next::Vote(_)
            | Next::Queue { .. }
            | Next::Renegotiate => {}
        }
        None
    }
}

impl Desk<'_> {
    /// The slot of what a client will ask for next.
    #[inline]
    fn asked(&mut self, seat: usize) -> u32 {
        let seat = self.proxy.front.seat(seat);
        seat.map_or(0, |seat| seat.slots.end())
    }

    /// Whether a client waits for answers.
    fn owes(&mut self, seat: usize) -> bool {
        let seat = self.proxy.front.seat(seat);
        seat.is_some_and(|seat| !seat.slots.is_empty())
    }

    /// What has been answered here takes its place among the answers of servers.
    fn say(&mut self, seat: usize) {
        if !self.replies.is_empty() {
            if let Some(seat) = self.proxy.front.seat(seat) {
                seat.slots.say(self.replies.bytes());
            }
            self.replies.clear();
        }
    }

    /// Sends the keys in the first `end` bytes of the input on; `last` if no more of their get follow.
    fn send_keys(&mut self, seat: usize, command: &[u8], input: &[u8], end: usize, last: bool) {
        let (mut at, rules) = (0, self.context.shared.rules);
        // What stands behind a key shows where it ends.
        while at < end
            && let NextKey::Key { key, taken } = text::next_key_by(rules, &input[at..])
        {
            self.proxy.key(seat, command, key);
            at += taken;
        }
        self.proxy.end_keys(seat, last);
    }
}

/// What a value is answered with that is longer than any that is sent on.
fn too_large(style: &Style<'_>) -> Refusal {
    match *style {
        Style::Text { noreply: true } => Refusal::Silent,
        Style::Text { .. } | Style::Meta { .. } => {
            Refusal::Line("SERVER_ERROR object too large for cache")
        }
        Style::Binary { opcode, opaque, .. } => Refusal::Binary {
            opcode,
            opaque,
            status: 0x03,
            text: "Too large.",
        },
    }
}
