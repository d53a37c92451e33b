#![forbid(unsafe_code)]
//! One thread that serves its share of the clients.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::connection::{Connection, Held, Outcome, SEND_AT};
use super::control::Control;
use super::conversation::{Conversation, Limits, Turn};
use super::datagram::{self, Door};
use super::forward::Forward;
use super::listener::{Arrival, Inbox};
use super::reception::{Reception, caller};
use crate::cluster::replication::replicas::level_of;
use crate::command::{Context, Replies, Session, Shared};
use crate::net::{self, Datagrams, Input};
use crate::observe::ThreadCounters;
use crate::observe::board::Activity;
use crate::observe::events::Reason;
use crate::protocol::{Rules, text};

/// The token of the inbox; connections have their place in the slab.
pub const WAKE: Token = Token(usize::MAX);

/// The token of the first UDP socket; more follow.
const DOORS: usize = usize::MAX / 2;

/// Events taken from the kernel at a time.
const EVENTS: usize = 256;

/// Bytes of replies a worker has room for before it has to ask for more.
const OUTPUT: usize = 2 * SEND_AT;

/// How often idle connections are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Everything one worker owns.
pub struct Worker {
    pub poll: Poll,
    pub inbox: Arc<Inbox>,
    pub control: Arc<Control>,
    pub shared: Arc<Shared>,
    pub counters: Arc<ThreadCounters>,
    pub limits: Limits,
    /// Seconds; 0 is never.
    pub idle_timeout: u32,
    /// Bytes that its connections may hold between their turns, all together; 0 is no limit.
    pub buffer_limit: usize,
    /// Its share of the UDP sockets.
    pub datagrams: Vec<Datagrams>,
    /// The way to the leader, for mutations that come to a follower.
    pub forward: Option<Arc<Forward>>,
    /// Which of the workers it is.
    pub number: usize,
}

/// The part that changes while it runs.
struct Desk {
    connections: Slab<Connection>,
    doors: Vec<Door>,
    /// Those that have more to do, in the order of their turns.
    ready: VecDeque<usize>,
    input: Input,
    replies: Replies,
}

impl Worker {
    /// Runs until the inbox says that it is over.
    ///
    /// # Errors
    /// The poll's.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut desk = Desk {
            connections: Slab::new(),
            doors: self.open_doors()?,
            ready: VecDeque::new(),
            input: Input::for_commands(longest_command(self.shared.rules)),
            replies: Replies::with_capacity(OUTPUT),
        };
        let mut swept = self.shared.clock.now();
        loop {
            let timeout = if !desk.ready.is_empty() {
                Some(Duration::ZERO)
            } else if self.idle_timeout > 0 && !desk.connections.is_empty() {
                Some(SWEEP)
            } else {
                None
            };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let now = self.shared.clock.now();
            // Those already in the list had a turn before this poll; those that wake get theirs
            // after them.
            for _ in 0..desk.ready.len() {
                if let Some(key) = desk.ready.pop_front() {
                    if let Some(door) = door(&mut desk, key) {
                        door.queued = false;
                        self.turn_of_door(&mut desk, key, now);
                        continue;
                    }
                    if let Some(connection) = desk.connections.get_mut(key) {
                        connection.queued = false;
                    }
                    self.turn(&mut desk, key, now);
                }
            }
            let mut woken = false;
            for event in events.iter() {
                if event.token() == WAKE {
                    woken = true;
                    continue;
                }
                let key = event.token().0;
                if let Some(door) = door(&mut desk, key) {
                    if !door.queued {
                        self.turn_of_door(&mut desk, key, now);
                    }
                    continue;
                }
                let Some(connection) = desk.connections.get_mut(key) else {
                    continue;
                };
                if event.is_read_closed() {
                    connection.hang_up();
                }
                if !connection.queued {
                    self.turn(&mut desk, key, now);
                }
            }
            if woken {
                if self.inbox.ended() {
                    return Ok(());
                }
                for key in self.inbox.called() {
                    self.turn(&mut desk, key, now);
                }
                for arrival in self.inbox.take() {
                    self.welcome(&mut desk, arrival, now);
                }
            }
            if self.idle_timeout > 0 && now != swept {
                swept = now;
                self.sweep(&mut desk, now);
            }
        }
    }

    /// Takes its share of the UDP sockets into the poll.
    fn open_doors(&mut self) -> io::Result<Vec<Door>> {
        let mut doors = Vec::new();
        for (place, datagrams) in std::mem::take(&mut self.datagrams).into_iter().enumerate() {
            let (name, number) = (datagrams.name(), datagrams.number());
            let now = self.shared.clock.now();
            let row = self
                .shared
                .board
                .enter(number, &name, None, Activity::Read, now);
            let mut door = Door::new(datagrams, row);
            self.poll.registry().register(
                door.source(),
                Token(DOORS + place),
                Interest::READABLE,
            )?;
            doors.push(door);
        }
        Ok(doors)
    }

    fn turn_of_door(&mut self, desk: &mut Desk, key: usize, now: u32) {
        let Desk {
            doors,
            ready,
            input,
            replies,
            ..
        } = desk;
        let Some(door) = key
            .checked_sub(DOORS)
            .and_then(|place| doors.get_mut(place))
        else {
            return;
        };
        let mut turn = Turn {
            context: Context {
                shared: &self.shared,
                counters: &self.counters,
                now,
                connection: door.number(),
            },
            input,
            replies,
            control: &self.control,
            limits: Limits {
                replies: datagram::REPLY_MAX,
                turn: usize::MAX,
                ..self.limits
            },
        };
        if door.advance(&mut turn) == Outcome::Again {
            door.queued = true;
            ready.push_back(key);
        }
        if door.wants_writable() {
            let registered = self.poll.registry().reregister(
                door.source(),
                Token(key),
                Interest::READABLE | Interest::WRITABLE,
            );
            if let Err(error) = registered {
                log::warn!("cannot watch a UDP socket: {error}");
            }
        }
    }

    fn welcome(&mut self, desk: &mut Desk, arrival: Arrival, now: u32) {
        let protocol = arrival.protocol;
        let level = arrival.ack.map(level_of);
        let entry = desk.connections.vacant_entry();
        let admitted = self.reception().admit(arrival, Token(entry.key()), now);
        let Some((stream, row)) = admitted else {
            return;
        };
        let session = Session::new(&self.shared).with_level(level);
        let conversation = Conversation::new(protocol, session, now);
        entry.insert(Connection::new(stream, conversation, row));
    }

    fn turn(&mut self, desk: &mut Desk, key: usize, now: u32) {
        let Some(connection) = desk.connections.get_mut(key) else {
            return;
        };
        let mut turn = Turn {
            context: Context {
                shared: &self.shared,
                counters: &self.counters,
                now,
                connection: connection.stream().number(),
            },
            input: &mut desk.input,
            replies: &mut desk.replies,
            control: &self.control,
            limits: self.limits,
        };
        let before = connection.held();
        let mut outcome = connection.advance(&mut turn);
        let after = connection.held();
        if before != after && !self.account(before, after) {
            outcome = Outcome::Close(Reason::Error);
        }
        if outcome == Outcome::Wait
            && connection.wants_writable()
            && !self
                .reception()
                .watch_writable(connection.stream(), Token(key))
        {
            return self.close(desk, key, Reason::Error);
        }
        if let Some(subscription) = connection.subscription() {
            subscription.on_lines(caller(&self.inbox, key));
        }
        if outcome == Outcome::Held && !self.wait_elsewhere(connection, key) {
            outcome = Outcome::Again;
        }
        match outcome {
            Outcome::Wait | Outcome::Held => {}
            Outcome::Again => {
                connection.queued = true;
                desk.ready.push_back(key);
            }
            Outcome::Close(reason) => self.close(desk, key, reason),
        }
    }

    /// Sees to it that a connection gets a turn when that which it waits for has come. False: it has.
    fn wait_elsewhere(&self, connection: &mut Connection, key: usize) -> bool {
        if let (Some(hold), Some(replicas)) = (connection.holding(), &self.shared.replicas) {
            replicas.waiting().push(Box::new(caller(&self.inbox, key)));
            // It may have been reached before it was waited for.
            return replicas.waits(hold);
        }
        if let (Some((outgoing, slot)), Some(forward)) = (connection.away(), &self.forward)
            && !outgoing.bytes.is_empty()
        {
            let then = Box::new(caller(&self.inbox, key));
            if !forward.send(self.number, outgoing, slot, then) {
                connection.turn_back();
                return false;
            }
        }
        true
    }

    /// Counts what connections hold. False if this one has to go, for it holds more than before and
    /// all together hold too much.
    fn account(&self, before: Held, after: Held) -> bool {
        let general = &self.counters.general;
        for (count, bytes, before, after) in [
            (
                &general.read_buf_count,
                &general.read_buf_bytes,
                before.input,
                after.input,
            ),
            (
                &general.response_obj_count,
                &general.response_obj_bytes,
                before.replies,
                after.replies,
            ),
        ] {
            count.add(u64::from(after > 0).wrapping_sub(u64::from(before > 0)));
            bytes.add((after as u64).wrapping_sub(before as u64));
        }
        let held = general
            .read_buf_bytes
            .get()
            .wrapping_add(general.response_obj_bytes.get());
        if self.buffer_limit == 0 || held <= self.buffer_limit as u64 {
            return true;
        }
        if after.input > before.input {
            general.read_buf_oom.add(1);
            return false;
        }
        if after.replies > before.replies {
            general.response_obj_oom.add(1);
            return false;
        }
        true
    }

    fn close(&mut self, desk: &mut Desk, key: usize, reason: Reason) {
        let Some(connection) = desk.connections.try_remove(key) else {
            return;
        };
        let held = connection.held();
        if held != Held::default() {
            self.account(held, Held::default());
        }
        self.reception()
            .dismiss(connection, Connection::stream, reason);
    }

    fn reception(&self) -> Reception<'_> {
        Reception {
            registry: self.poll.registry(),
            shared: &self.shared,
            counters: &self.counters,
        }
    }

    fn sweep(&mut self, desk: &mut Desk, now: u32) {
        let idle: Vec<usize> = desk
            .connections
            .iter()
            .filter(|(_, connection)| connection.idle(now, self.idle_timeout))
            .map(|(key, _)| key)
            .collect();
        for key in idle {
            self.counters.general.idle_kicks.add(1);
            self.close(desk, key, Reason::IdleTimeout);
        }
    }
}

/// Bytes that input may have to hold for one command, and what is read along with its end. Longer lines
/// have been hung up on by then.
pub(super) fn longest_command(rules: Rules) -> usize {
    text::line_max(rules) + net::buffer::SIZE
}

fn door(desk: &mut Desk, key: usize) -> Option<&mut Door> {
    desk.doors.get_mut(key.checked_sub(DOORS)?)
}
