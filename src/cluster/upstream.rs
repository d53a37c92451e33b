#![forbid(unsafe_code)]
//! One connection to a server: requests go out as they are, answers come in the same order, and a
//! [`Ticket`] for each says whose it is.
//!
//! Every request that is sent has exactly one answer, since nothing quiet is ever sent: what its client
//! does not want to hear is dropped on the way back. An answer that does not have the shape its request
//! calls for ends the connection, and with it all requests under way on it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::plan::Rules;
use super::target::Target;
use crate::net::{Input, Progress, Stream};
use crate::protocol::answer::{self, Framed, Shape, Verdict};
use crate::protocol::{self, Dialect};

/// An answer up to this long is waited for; a longer one is passed on as it comes.
const WHOLE_MAX: usize = 48 << 10;

/// A connection that keeps the worker busy for this many bytes has to let others take their turn.
const TURN_MAX: usize = 256 << 10;

/// A buffer that has grown beyond this is given back once it is empty.
const KEEP: usize = 256 << 10;

const END: &[u8] = b"END\r\n";
const CRLF: &[u8] = b"\r\n";

/// Which answers the client does not hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiet {
    /// It hears all.
    Loud,
    /// Not a miss.
    Miss,
    /// Not that it went well.
    Success,
    /// None (`noreply`).
    All,
}

impl Quiet {
    #[inline]
    pub fn swallows(self, verdict: Verdict) -> bool {
        match self {
            Quiet::Loud => false,
            Quiet::Miss => verdict == Verdict::Miss,
            Quiet::Success => matches!(verdict, Verdict::Done | Verdict::Hit),
            Quiet::All => true,
        }
    }
}

/// Whose an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// A client's; the generation tells it from another in the same seat.
    Client {
        seat: u32,
        generation: u32,
        slot: u32,
    },
    /// A task's, for the client in this seat, if any.
    Task {
        task: u32,
        generation: u32,
        tag: u16,
        seat: u32,
    },
    /// It is asked whether the server is alive.
    Probe,
    /// A key is deleted that was written elsewhere.
    Delete,
    /// The server is emptied.
    Flush,
    /// The answer has to be good, or the server does not let us in.
    Greeting,
    /// How far the leader of a group has come with what the client in this seat has written.
    Position {
        seat: u32,
        generation: u32,
        group: u32,
        partition: u16,
    },
    /// How far a node has come; as the target's [`forgotten`](Target::forgotten) was.
    Positions { forgotten: u64 },
    /// Nobody's: a copy.
    Nobody,
}

/// What is known of a request whose answer is to come.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    pub to: To,
    pub shape: Shape,
    pub quiet: Quiet,
    /// What the client of a binary request is to find in its answer.
    pub opcode: u8,
    pub opaque: u32,
    /// Of a get of several, the keys that have not been told of, which have entries of their own, and
    /// one for the end; else 0.
    pub keys: u16,
    /// The request had a value: a server that does not know the command takes it for commands.
    pub body: bool,
    /// For those who keep answers: the key that is written, see [`Writes::note`]; 0 if none is.
    ///
    /// [`Writes::note`]: super::hotkey::writes::Writes::note
    pub wrote: u16,
    /// In milliseconds on the worker's clock.
    pub sent: u64,
}

/// A key of a get of several.
#[derive(Debug, Clone, Copy)]
pub struct KeyTicket {
    pub slot: u32,
    /// A part of the key's hash. If two keys of one get share it they may change places, no more: a
    /// value is told with its key.
    pub tag: u32,
}

/// Why a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens there, or there is no way.
    Refused,
    /// It has not come about in time.
    ConnectTimeout,
    /// The server has closed it.
    Closed,
    /// An answer has not come in time.
    TimedOut,
    /// What came is no answer.
    Garbage,
    /// The server wants other credentials.
    Denied,
    /// It is no longer wanted.
    Retired,
    /// What it answers is more than may be kept now; the connection goes on.
    TooMuch,
}

impl Fault {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Fault::Refused => "cannot be reached",
            Fault::ConnectTimeout => "cannot be reached in time",
            Fault::Closed => "has closed the connection",
            Fault::TimedOut => "has not answered in time",
            Fault::Garbage => "has answered what is no answer",
            Fault::Denied => "has refused our credentials",
            Fault::TooMuch => "has answered more than can be kept now",
            Fault::Retired => "has been taken out of the configuration",
        }
    }
}

/// Where answers go.
pub trait Sink {
    /// The whole answer. True if the client has more than enough to take now.
    fn whole(&mut self, ticket: &Ticket, answer: &[u8], verdict: Verdict) -> bool;
    /// The value of one key of several, with its line.
    fn value(&mut self, ticket: &Ticket, key: KeyTicket, value: &[u8]) -> bool;
    /// One key of several is not there.
    fn missing(&mut self, ticket: &Ticket, key: KeyTicket);
    /// All keys that were asked for together have been told of.
    fn end(&mut self, ticket: &Ticket);
    /// The server has said this instead of telling of a key.
    fn refused(&mut self, ticket: &Ticket, key: KeyTicket, line: &[u8]);
    /// A piece of a long answer: the first has the head; `key` if it is one of several.
    fn part(&mut self, ticket: &Ticket, key: Option<KeyTicket>, bytes: &[u8]) -> bool;
    /// The long answer is over.
    fn done(&mut self, ticket: &Ticket, key: Option<KeyTicket>);
    /// There will be no answer, or no more of it.
    fn failed(&mut self, ticket: &Ticket, key: Option<KeyTicket>, server: usize, fault: Fault);
    /// Whether the client has more than enough to take now; `key` is the next one of several.
    fn is_full(&self, ticket: &Ticket, key: Option<KeyTicket>) -> bool;
}

/// Where in the stream of answers the next byte belongs.
#[derive(Debug, Clone, Copy)]
enum Reading {
    /// To an answer, or to the next part of one.
    Answer,
    /// To a long value and, as its last two, its line end.
    Value { left: usize, key: Option<KeyTicket> },
    /// To the end of a get whose long value has passed.
    Tail,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is none; one may be made when this time has come.
    Closed {
        retry_at: u64,
    },
    /// Under way since.
    Connecting {
        since: u64,
    },
    Open,
}

/// What running the answers has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// The poll will tell.
    Wait,
    /// There is more, once the others had their turn.
    Again,
    /// A client does not take its answer; it has to be told when it does.
    Paused,
    Ended(Fault),
}

/// One connection.
pub struct Upstream {
    /// The server's place in the worker's list.
    pub server: usize,
    pub dialect: Dialect,
    /// The longest line of its answers.
    line_max: usize,
    /// For one long request at a time; else shared by all.
    pub private: bool,
    /// Tells it from another in its place.
    pub serial: u64,
    /// The seat of a client whose long value is on its way.
    pub uploads_for: Option<usize>,
    /// The server that the value was meant for, and its key, if this one stands in for it.
    pub stands_in: Option<(Arc<Target>, Box<[u8]>)>,
    pub state: State,
    /// Where it is connected to, over a network.
    pub peer: Option<SocketAddr>,
    /// It takes no more requests, and ends when those under way have been answered.
    pub leaving: bool,
    stream: Option<Stream>,
    /// The start of an answer whose end has not arrived.
    kept: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    /// What its server had not taken when it was last tried: these bytes are counted among those of all.
    pub left: usize,
    tickets: VecDeque<Ticket>,
    keys: VecDeque<KeyTicket>,
    reading: Reading,
    /// When an answer, or a piece of a long value, has last passed.
    moved: u64,
    /// The line of keys that is being written, with as many keys as it has, and where it began.
    line: Option<Ticket>,
    line_at: usize,
    /// It is in the worker's list of those that have something to send.
    pub dirty: bool,
    /// Since when a client that takes nothing is waited for.
    pub paused: Option<u64>,
    /// The socket may hold more than has been read.
    more: bool,
    /// Attempts in a row that came to nothing.
    pub attempts: u32,
    answered: u32,
}

impl Upstream {
    /// `rules` are those of requests.
    pub fn new(
        server: usize,
        dialect: Dialect,
        rules: protocol::Rules,
        private: bool,
        serial: u64,
    ) -> Upstream {
        Upstream {
            server,
            dialect,
            line_max: answer::line_max(rules),
            private,
            serial,
            uploads_for: None,
            stands_in: None,
            state: State::Closed { retry_at: 0 },
            peer: None,
            leaving: false,
            stream: None,
            kept: Vec::new(),
            out: Vec::new(),
            sent: 0,
            left: 0,
            tickets: VecDeque::new(),
            keys: VecDeque::new(),
            reading: Reading::Answer,
            moved: 0,
            line: None,
            line_at: 0,
            dirty: false,
            paused: None,
            more: false,
            attempts: 0,
            answered: 0,
        }
    }

    /// Begins anew over a socket that is being connected.
    pub fn begin(&mut self, stream: Stream, now: u64) {
        self.stream = Some(stream);
        self.peer = None;
        self.state = State::Connecting { since: now };
        self.reading = Reading::Answer;
        self.kept = Vec::new();
        self.paused = None;
        self.more = false;
    }

    pub fn stream(&mut self) -> Option<&mut Stream> {
        self.stream.as_mut()
    }

    /// Requests under way.
    #[inline]
    pub fn requests(&self) -> usize {
        self.tickets.len()
    }

    /// Bytes that wait to be sent.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.out.len() - self.sent
    }

    /// The answer to the first request has passed.
    #[inline]
    fn complete(&mut self, ticket: &Ticket) {
        self.tickets.pop_front();
        // What a server says to those does not show that it does its work.
        if !matches!(ticket.to, To::Probe | To::Greeting | To::Positions { .. }) {
            self.answered += 1;
        }
    }

    /// Answers to requests that have come since the last call.
    pub fn take_answered(&mut self) -> u32 {
        std::mem::take(&mut self.answered)
    }

    /// Whether nothing is under way.
    pub fn is_quiet(&self) -> bool {
        self.tickets.is_empty() && self.uploads_for.is_none()
    }

    /// A piece of a long value has come: its answer may take its time from here.
    pub fn touch(&mut self, now: u64) {
        self.moved = now;
    }

    /// Whether anything is under way that is more than an attempt.
    pub fn is_asked(&self) -> bool {
        let tries = |to: To| matches!(to, To::Greeting | To::Probe);
        self.tickets.iter().any(|ticket| !tries(ticket.to))
    }

    /// Whether a client's request is under way on it.
    pub fn serves(&self, seat: u32, generation: u32) -> bool {
        self.tickets.iter().any(|ticket| {
            matches!(ticket.to, To::Client { seat: s, generation: g, .. } if (s, g) == (seat, generation))
        })
    }

    /// Whether others than the one that has the turn wait for answers.
    pub fn holds_up_others(&self) -> bool {
        let seat = |ticket: &Ticket| match ticket.to {
            To::Client {
                seat, generation, ..
            }
            | To::Position {
                seat, generation, ..
            } => Some((seat, generation)),
            _ => None,
        };
        let first = self.tickets.front().map(seat);
        self.tickets
            .iter()
            .any(|ticket| Some(seat(ticket)) != first)
    }

    /// The request that has the turn.
    pub fn next(&self) -> Option<&Ticket> {
        self.tickets.front()
    }

    /// The key of several that the next part of an answer is about, or comes behind.
    pub fn next_key(&self, ticket: &Ticket) -> Option<KeyTicket> {
        match self.reading {
            Reading::Value { key, .. } => key,
            _ if ticket.keys > 1 => self.keys.front().copied(),
            _ => None,
        }
    }

    /// Queues a request.
    #[inline]
    pub fn send(&mut self, request: &[u8], ticket: Ticket) {
        self.send_piece(request);
        self.tickets.push_back(ticket);
    }

    /// Queues a request in pieces; the ticket comes with the last.
    #[inline]
    pub fn send_piece(&mut self, bytes: &[u8]) {
        // Some keys of a get go a way of their own, while others are put on a line.
        if self.line.is_some() {
            self.end_line();
        }
        self.out.extend_from_slice(bytes);
    }

    #[inline]
    pub fn push_ticket(&mut self, ticket: Ticket) {
        self.tickets.push_back(ticket);
    }

    /// Begins the line of a get: `ticket` is for all its keys.
    pub fn begin_line(&mut self, command: &[u8], ticket: Ticket) {
        self.line_at = self.out.len();
        self.out.extend_from_slice(command);
        self.line = Some(ticket);
    }

    /// Puts a key on the line of a get that has been begun; returns the length of the line.
    /// [`end_line`](Upstream::end_line) completes it, or another request.
    #[inline]
    pub fn send_key(&mut self, key: &[u8], ticket: KeyTicket) -> usize {
        self.out.push(b' ');
        self.out.extend_from_slice(key);
        self.keys.push_back(ticket);
        if let Some(line) = &mut self.line {
            line.keys += 1;
        }
        self.out.len() - self.line_at
    }

    /// Ends the line of keys.
    #[inline]
    pub fn end_line(&mut self) {
        if let Some(mut ticket) = self.line.take() {
            self.out.extend_from_slice(CRLF);
            ticket.keys += 1;
            self.tickets.push_back(ticket);
        }
    }

    /// Whether a line of keys has been begun.
    #[inline]
    pub fn line_is_open(&self) -> bool {
        self.line.is_some()
    }

    /// Sends what waits, as far as it goes.
    pub fn flush(&mut self) -> Result<(), Fault> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        if let State::Connecting { .. } = self.state {
            return Ok(());
        }
        if stream.flush() == Progress::Closed {
            return Err(Fault::Closed);
        }
        while self.sent < self.out.len() {
            match stream.write(&self.out[self.sent..]) {
                Progress::Moved(n @ 1..) => self.sent += n,
                Progress::Moved(_) | Progress::Blocked => {
                    if self.sent > KEEP {
                        self.out.drain(..self.sent);
                        self.line_at = self.line_at.saturating_sub(self.sent);
                        self.sent = 0;
                    }
                    return Ok(());
                }
                Progress::Closed => return Err(Fault::Closed),
            }
        }
        self.out.clear();
        self.sent = 0;
        if self.out.capacity() > KEEP {
            self.out = Vec::new();
        }
        Ok(())
    }

    /// The request at the head of the queue is overdue.
    pub fn overdue(&self, now: u64, rules: &Rules) -> Option<Fault> {
        if let State::Connecting { since } = self.state {
            return (now.saturating_sub(since) > rules.connect_timeout)
                .then_some(Fault::ConnectTimeout);
        }
        let first = self.tickets.front()?;
        if self.paused.is_some() || (self.uploads_for.is_some() && self.waiting() == 0) {
            return None;
        }
        // A server that answers is not asked to answer faster, and a long value may take its time as
        // long as it moves.
        let since = self.moved.max(first.sent);
        let timeout = match first.to {
            To::Probe => rules.timeout.min(rules.probe_timeout),
            _ => rules.timeout,
        };
        (now.saturating_sub(since) > timeout).then_some(Fault::TimedOut)
    }

    /// Reads answers and hands them out, as far as it goes.
    pub fn run(&mut self, input: &mut Input, sink: &mut impl Sink, now: u64) -> Ran {
        input.load(&mut self.kept);
        let ran = self.serve(input, sink, now);
        input.save(&mut self.kept);
        ran
    }

    fn serve(&mut self, input: &mut Input, sink: &mut impl Sink, now: u64) -> Ran {
        let mut work = 0;
        let mut wary = self.paused.take().is_some();
        loop {
            let before = self.tickets.len();
            let answers = self.answers(input, sink, &mut wary);
            if self.tickets.len() != before || matches!(self.reading, Reading::Value { .. }) {
                self.moved = now;
            }
            match answers {
                Ok(false) => {}
                Ok(true) => {
                    self.paused = Some(now);
                    return Ran::Paused;
                }
                Err(fault) => return Ran::Ended(fault),
            }
            if !self.more && work > 0 {
                return Ran::Wait;
            }
            if work > TURN_MAX {
                return Ran::Again;
            }
            let Some(stream) = &mut self.stream else {
                return Ran::Wait;
            };
            let space = input.space();
            let asked = space.len();
            if asked == 0 {
                // A frame that is waited for always fits.
                return Ran::Ended(Fault::Garbage);
            }
            match stream.read(space) {
                Progress::Moved(n) => {
                    input.filled(n);
                    work += n.max(1);
                    self.more = !stream.drained(n, asked) || n == 0;
                }
                Progress::Blocked => {
                    self.more = false;
                    return Ran::Wait;
                }
                Progress::Closed => return Ran::Ended(Fault::Closed),
            }
        }
    }

    /// The peer has shut its side: the next short read is not the last.
    pub fn hang_up(&mut self) {
        self.more = true;
    }

    /// Hands out what has been read. `Ok(true)`: a client has more than enough.
    fn answers(
        &mut self,
        input: &mut Input,
        sink: &mut impl Sink,
        wary: &mut bool,
    ) -> Result<bool, Fault> {
        loop {
            let bytes = input.unread();
            if bytes.is_empty() {
                return Ok(false);
            }
            let Some(&ticket) = self.tickets.front() else {
                return Err(Fault::Garbage);
            };
            if *wary && sink.is_full(&ticket, self.next_key(&ticket)) {
                return Ok(true);
            }
            let taken = match self.reading {
                Reading::Answer => self.answer(&ticket, bytes, sink, wary)?,
                Reading::Value { left, key } => {
                    self.long_value(&ticket, bytes, left, key, sink, wary)?
                }
                Reading::Tail => match bytes.get(..END.len()) {
                    Some(END) => {
                        *wary |= sink.part(&ticket, None, END);
                        sink.done(&ticket, None);
                        self.complete(&ticket);
                        self.reading = Reading::Answer;
                        END.len()
                    }
                    None if END.starts_with(bytes) => 0,
                    _ => return Err(Fault::Garbage),
                },
            };
            if taken == 0 {
                return Ok(false);
            }
            input.take(taken);
        }
    }

    /// Takes an answer or a part of one off the input; 0: more has to arrive.
    #[inline]
    fn answer(
        &mut self,
        ticket: &Ticket,
        bytes: &[u8],
        sink: &mut impl Sink,
        wary: &mut bool,
    ) -> Result<usize, Fault> {
        let framed = answer::frame(ticket.shape, self.line_max, bytes);
        let (key_start, key_end, head, body) = match framed {
            Framed::Whole { length, verdict } => {
                let answer = &bytes[..length];
                if let Shape::Binary(_) = ticket.shape
                    && answer[12..16] != ticket.opaque.to_be_bytes()
                {
                    return Err(Fault::Garbage);
                }
                if ticket.keys > 0 {
                    self.end_of_keys(ticket, answer, verdict, sink);
                } else {
                    *wary |= sink.whole(ticket, answer, verdict);
                }
                self.complete(ticket);
                return match verdict {
                    _ if ticket.to == To::Greeting && verdict != Verdict::Done => {
                        Err(Fault::Denied)
                    }
                    Verdict::Unknown if ticket.body => Err(Fault::Garbage),
                    _ => Ok(length),
                };
            }
            Framed::Value {
                key_start,
                key_end,
                head,
                body,
            } => (key_start, key_end, head, body),
            Framed::Incomplete => return Ok(0),
            Framed::Garbage => return Err(Fault::Garbage),
        };
        let tail = if ticket.shape == Shape::Get {
            END.len()
        } else {
            0
        };
        if let Some(value) = bytes.get(..head + body)
            && tail == 0
        {
            // One of several.
            if !value.ends_with(CRLF) {
                return Err(Fault::Garbage);
            }
            let key = self.key_of(ticket, &bytes[key_start..key_end], sink)?;
            *wary |= sink.value(ticket, key, value);
            return Ok(value.len());
        }
        if head + body + tail <= WHOLE_MAX {
            return Ok(0);
        }
        if let Shape::Binary(_) = ticket.shape
            && bytes[12..16] != ticket.opaque.to_be_bytes()
        {
            return Err(Fault::Garbage);
        }
        let key = match ticket.shape {
            Shape::Gets => Some(self.key_of(ticket, &bytes[key_start..key_end], sink)?),
            _ => None,
        };
        *wary |= sink.part(ticket, key, &bytes[..head]);
        self.reading = Reading::Value { left: body, key };
        Ok(head)
    }

    /// Passes on what has come of a long value; its last two bytes are looked at.
    fn long_value(
        &mut self,
        ticket: &Ticket,
        bytes: &[u8],
        left: usize,
        key: Option<KeyTicket>,
        sink: &mut impl Sink,
        wary: &mut bool,
    ) -> Result<usize, Fault> {
        let text = !matches!(ticket.shape, Shape::Binary(_));
        let here = if !text || bytes.len() >= left {
            bytes.len().min(left)
        } else {
            // The line end is looked at as a whole.
            bytes.len().min(left - CRLF.len())
        };
        if here == 0 {
            return Ok(0);
        }
        let piece = &bytes[..here];
        if here == left && text && !piece.ends_with(CRLF) {
            return Err(Fault::Garbage);
        }
        *wary |= sink.part(ticket, key, piece);
        self.reading = Reading::Value {
            left: left - here,
            key,
        };
        if here == left {
            self.reading = Reading::Answer;
            match ticket.shape {
                Shape::Get => self.reading = Reading::Tail,
                Shape::Gets => sink.done(ticket, key),
                _ => {
                    sink.done(ticket, key);
                    self.complete(ticket);
                }
            }
        }
        Ok(here)
    }

    /// Finds the key that a value belongs to; those before it are missing.
    #[inline]
    fn key_of(
        &mut self,
        ticket: &Ticket,
        key: &[u8],
        sink: &mut impl Sink,
    ) -> Result<KeyTicket, Fault> {
        let tag = super::tag(key);
        let Some(front) = self.tickets.front_mut() else {
            return Err(Fault::Garbage);
        };
        while front.keys > 1 {
            let Some(next) = self.keys.pop_front() else {
                break;
            };
            front.keys -= 1;
            if next.tag == tag {
                return Ok(next);
            }
            sink.missing(ticket, next);
        }
        Err(Fault::Garbage)
    }

    fn end_of_keys(
        &mut self,
        ticket: &Ticket,
        line: &[u8],
        verdict: Verdict,
        sink: &mut impl Sink,
    ) {
        // One of the count stands for the end itself.
        for _ in 1..ticket.keys {
            let Some(key) = self.keys.pop_front() else {
                break;
            };
            if verdict == Verdict::Miss {
                sink.missing(ticket, key);
            } else {
                sink.refused(ticket, key, line);
            }
        }
        sink.end(ticket);
    }

    /// The request of a connection for one at a time is over, one way or the other.
    pub fn settle_elsewhere(&mut self) {
        if let Some((target, key)) = self.stands_in.take() {
            target.remember_again(&key);
        }
    }

    /// Ends the connection: every request under way on it fails.
    pub fn fail(&mut self, fault: Fault, retry_at: u64, sink: &mut impl Sink) {
        self.end_line();
        self.stream = None;
        self.state = State::Closed { retry_at };
        self.out = Vec::new();
        self.sent = 0;
        self.kept = Vec::new();
        self.paused = None;
        self.more = false;
        if let (Reading::Value { key: Some(key), .. }, Some(ticket)) =
            (self.reading, self.tickets.front())
        {
            sink.failed(ticket, Some(key), self.server, fault);
        }
        self.reading = Reading::Answer;
        self.settle_elsewhere();
        while let Some(ticket) = self.tickets.pop_front() {
            if ticket.keys == 0 {
                sink.failed(&ticket, None, self.server, fault);
                continue;
            }
            for _ in 1..ticket.keys {
                if let Some(key) = self.keys.pop_front() {
                    sink.failed(&ticket, Some(key), self.server, fault);
                }
            }
            sink.end(&ticket);
        }
    }
}
