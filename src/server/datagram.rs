#![forbid(unsafe_code)]
//! UDP: one datagram in, one numbered sequence of datagrams out.
//!
//! Every datagram is a conversation of its own, run to its end with the worker's buffers. Its reply
//! is sent in one sequence, however many commands it answers, since that is what clients put
//! together. A reply that the system does not take at once is waited for before the next request is
//! read: no more than one waits per socket and worker, the rest queues in the kernel, or is dropped
//! there as UDP has it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use mio::event::Source;
use mio::net::UdpSocket;

use super::connection::Outcome;
use super::conversation::{Conversation, Lack, Ran, Served, Turn};
use crate::command::{Replies, Session};
use crate::net::Datagrams;
use crate::observe::board::{Activity, Row};
use crate::protocol::datagram::{self, Frames, HEADER, PAYLOAD_MAX};
use crate::settings::Protocol;

/// Datagrams answered before the connections get their turn.
const TURN_MAX: usize = 64;

/// Bytes of a reply beyond which no further key or command is answered. A long value may stand
/// above it: it is not copied.
pub const REPLY_MAX: usize = 1 << 20;

/// What takes the place of a longer one.
const TOO_LONG: &[u8] = b"SERVER_ERROR out of memory writing get response";

/// One worker's share of a UDP socket.
pub struct Door {
    socket: UdpSocket,
    protocol: Protocol,
    number: i32,
    row: Arc<Row>,
    waiting: Option<Waiting>,
    /// The poll has been asked to tell when it takes more.
    watched_for_writing: bool,
    /// It is in the worker's list of those that have more to do.
    pub queued: bool,
}

/// A reply that has not been taken yet.
struct Waiting {
    to: SocketAddr,
    /// The datagram that was not taken.
    next: Vec<u8>,
    frames: Frames,
    rest: Replies,
}

impl Door {
    pub fn new(datagrams: Datagrams, row: Arc<Row>) -> Door {
        Door {
            number: datagrams.number(),
            protocol: datagrams.protocol,
            socket: datagrams.socket,
            row,
            waiting: None,
            watched_for_writing: false,
            queued: false,
        }
    }

    pub fn source(&mut self) -> &mut impl Source {
        &mut self.socket
    }

    /// What `stats conns` and the logs call it.
    pub fn number(&self) -> i32 {
        self.number
    }

    /// Whether the poll has to be asked, from now on, to tell when it takes more.
    pub fn wants_writable(&mut self) -> bool {
        self.waiting.is_some() && !std::mem::replace(&mut self.watched_for_writing, true)
    }

    /// Sends what waits, then answers what has arrived.
    pub fn advance(&mut self, turn: &mut Turn<'_>) -> Outcome {
        if let Some(waiting) = self.waiting.take() {
            let Waiting {
                to,
                next,
                frames,
                mut rest,
            } = waiting;
            if !self.send(to, Some(next), frames, &mut rest, turn) {
                return Outcome::Wait;
            }
        }
        for _ in 0..TURN_MAX {
            let from = match self.receive(turn) {
                Ok(from) => from,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Outcome::Wait,
                    // The kernel tells of a client that is gone here; the next may be well.
                    _ => continue,
                },
            };
            let Some((id, _)) = datagram::parse(turn.input.unread()) else {
                turn.input.clear();
                continue;
            };
            turn.input.take(HEADER);
            self.row.command_at(turn.context.now);
            self.answer(turn);
            turn.input.clear();
            // A reply that cannot be counted cannot be put together either.
            let sent = match datagram::frames(id, turn.replies.waiting()) {
                Some(frames) => {
                    let mut replies = std::mem::take(turn.replies);
                    let sent = self.send(from, None, frames, &mut replies, turn);
                    *turn.replies = replies;
                    sent
                }
                None => true,
            };
            turn.replies.clear();
            if !sent {
                return Outcome::Wait;
            }
        }
        Outcome::Again
    }

    fn receive(&mut self, turn: &mut Turn<'_>) -> io::Result<SocketAddr> {
        turn.input.clear();
        let (length, from) = self.socket.recv_from(turn.input.space())?;
        turn.input.filled(length);
        let general = &turn.context.counters.general;
        general.bytes_read.add(length as u64);
        Ok(from)
    }

    /// Runs what the datagram asks for.
    fn answer(&self, turn: &mut Turn<'_>) {
        let session = Session::single(turn.context.shared);
        let mut conversation = Conversation::new(self.protocol, session, turn.context.now);
        let mut served = Served::default();
        loop {
            match conversation.run(turn, &mut served) {
                Ran::Close => return,
                Ran::Starved => break,
                Ran::Enough if turn.replies.waiting() < turn.limits.replies => {}
                Ran::Enough => {
                    let lack = conversation.lacks(turn.input.unread());
                    if !matches!(lack, None | Some(Lack::Packet)) {
                        turn.replies.clear();
                        turn.replies.line(TOO_LONG);
                    }
                    return;
                }
            }
        }
        match conversation.lacks(turn.input.unread()) {
            None | Some(Lack::Packet) => {}
            Some(Lack::Line) => turn.replies.line(b"CLIENT_ERROR bad command line format"),
            Some(Lack::Value) => turn.replies.line(b"CLIENT_ERROR bad data chunk"),
        }
    }

    /// Sends `next`, then the rest of the frames; false if the system takes no more now, and the
    /// rest waits.
    fn send(
        &mut self,
        to: SocketAddr,
        mut next: Option<Vec<u8>>,
        mut frames: Frames,
        replies: &mut Replies,
        turn: &Turn<'_>,
    ) -> bool {
        let mut buffer = [0; HEADER + PAYLOAD_MAX];
        loop {
            let datagram: &[u8] = match &next {
                Some(datagram) => datagram,
                None => {
                    let Some((header, range)) = frames.next() else {
                        self.row.set(Activity::Read);
                        return true;
                    };
                    buffer[..HEADER].copy_from_slice(&header);
                    let length = HEADER + range.len();
                    replies.take_into(&mut buffer[HEADER..length]);
                    &buffer[..length]
                }
            };
            match self.socket.send_to(datagram, to) {
                Ok(sent) => {
                    let general = &turn.context.counters.general;
                    general.bytes_written.add(sent as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.waiting = Some(Waiting {
                        to,
                        next: datagram.to_vec(),
                        frames,
                        rest: replies.take_rest(),
                    });
                    self.row.set(Activity::WriteMany);
                    return false;
                }
                // Nobody is told of a datagram that is lost.
                Err(error) => log::debug!(">{} {to}: {error}", self.number),
            }
            next = None;
        }
    }
}
