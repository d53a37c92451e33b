#![forbid(unsafe_code)]
//! One thread of a proxy: its share of the clients, and its own connections to all servers.
//!
//! Each round takes what the poll tells of, hears clients and servers, then sends: first what servers
//! are asked, then what clients are answered, each with one write for all that has gathered.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll, Token};
use slab::Slab;

use super::client::{Client, Desk, Limits};
use super::request::Scratch;
use crate::cluster::Cluster;
use crate::cluster::proxy::Proxy;
use crate::command::{Context, Replies, Session, Shared};
use crate::net::Input;
use crate::observe::ThreadCounters;
use crate::observe::events::Reason;
use crate::server::connection::Outcome;
use crate::server::control::Control;
use crate::server::listener::{Arrival, Inbox};
use crate::server::reception::{Reception, caller};
use crate::server::worker::{WAKE, longest_command};

/// Events taken from the kernel at a time.
const EVENTS: usize = 256;

/// How often idle connections are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// How long answers may wait for others that they are sent with.
const LINGER: Duration = Duration::from_millis(1);

/// Everything one worker owns.
pub struct Worker {
    pub poll: Poll,
    pub inbox: Arc<Inbox>,
    pub control: Arc<Control>,
    pub shared: Arc<Shared>,
    pub cluster: Arc<Cluster>,
    pub counters: Arc<ThreadCounters>,
    /// The first asks servers whether they are alive.
    pub number: usize,
    /// Seconds; 0 is never.
    pub idle_timeout: u32,
}

/// The part that changes while it runs.
struct Table {
    clients: Slab<Client>,
    /// Those that have more to do, in the order of their turns.
    ready: VecDeque<usize>,
    input: Input,
    replies: Replies,
    scratch: Scratch,
    proxy: Proxy,
    limits: Limits,
}

/// Connections to servers have odd tokens.
fn token(client: usize) -> Token {
    Token(client << 1)
}

impl Worker {
    /// Runs until the inbox says that it is over.
    ///
    /// # Errors
    /// The poll's.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let limits = Limits::of(&self.cluster.limits());
        let registry = self.poll.registry().try_clone()?;
        let mut table = Table {
            clients: Slab::new(),
            ready: VecDeque::new(),
            input: Input::for_commands(longest_command(self.shared.rules)),
            replies: Replies::default(),
            scratch: Scratch::default(),
            proxy: Proxy::new(registry, self.cluster.clone(), self.number),
            limits,
        };
        let mut swept = self.shared.clock.now();
        loop {
            let timeout = if !table.ready.is_empty() {
                Some(Duration::ZERO)
            } else {
                let idle = (self.idle_timeout > 0 && !table.clients.is_empty()).then_some(SWEEP);
                let lingering = table.proxy.front.has_lingering().then_some(LINGER);
                let waits = [table.proxy.patience(), idle, lingering];
                waits.into_iter().flatten().min()
            };
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let now = self.shared.clock.now();
            table.proxy.begin_round();
            for _ in 0..table.ready.len() {
                if let Some(key) = table.ready.pop_front() {
                    if let Some(client) = table.clients.get_mut(key) {
                        client.queued = false;
                    }
                    self.turn(&mut table, key, now);
                }
            }
            let mut woken = false;
            for event in events.iter() {
                let number = event.token().0;
                if event.token() == WAKE {
                    woken = true;
                } else if number & 1 == 1 {
                    table.proxy.ready(
                        number >> 1,
                        event.is_writable(),
                        event.is_read_closed() || event.is_error(),
                    );
                } else if let Some(client) = table.clients.get_mut(number >> 1) {
                    if event.is_read_closed() {
                        client.hang_up();
                    }
                    if event.is_writable() {
                        client.unblock();
                    }
                    if !client.queued {
                        self.turn(&mut table, number >> 1, now);
                    }
                }
            }
            if woken {
                if self.inbox.ended() {
                    return Ok(());
                }
                for key in self.inbox.called() {
                    self.turn(&mut table, key, now);
                }
                for arrival in self.inbox.take() {
                    self.welcome(&mut table, arrival, now);
                }
            }
            table.proxy.go_on();
            table.proxy.tick();
            table.proxy.run_tasks();
            table.proxy.flush();
            while let Some(seat) = table.proxy.front.next_called() {
                if let Some(seat) = table.proxy.front.seat(seat) {
                    let owner = seat.owner;
                    self.turn(&mut table, owner, now);
                }
            }
            self.send(&mut table, now);
            if self.idle_timeout > 0 && now != swept {
                swept = now;
                self.sweep(&mut table, now);
            }
        }
    }

    fn welcome(&mut self, table: &mut Table, arrival: Arrival, now: u32) {
        let (protocol, tag) = (arrival.protocol, arrival.tag.clone());
        let entry = table.clients.vacant_entry();
        let key = entry.key();
        let Some((stream, row)) = self.reception().admit(arrival, token(key), now) else {
            return;
        };
        let seat = table.proxy.sit(key, tag);
        let session = Session::new(&self.shared);
        entry.insert(Client::new(stream, seat, protocol, session, row, now));
    }

    fn turn(&mut self, table: &mut Table, key: usize, now: u32) {
        let Some(client) = table.clients.get_mut(key) else {
            return;
        };
        let mut desk = Desk {
            context: Context {
                shared: &self.shared,
                counters: &self.counters,
                now,
                connection: client.stream().number(),
            },
            replies: &mut table.replies,
            scratch: &mut table.scratch,
            control: &self.control,
            proxy: &mut table.proxy,
            limits: table.limits,
        };
        let outcome = client.advance(&mut table.input, &mut desk);
        if let Some(subscription) = client.subscription() {
            subscription.on_lines(caller(&self.inbox, key));
        }
        self.follow(table, key, outcome);
    }

    fn follow(&mut self, table: &mut Table, key: usize, outcome: Outcome) {
        match outcome {
            Outcome::Wait | Outcome::Held => {
                let Some(client) = table.clients.get_mut(key) else {
                    return;
                };
                if client.wants_writable()
                    && !self.reception().watch_writable(client.stream(), token(key))
                {
                    self.close(table, key, Reason::Error);
                }
            }
            Outcome::Again => {
                if let Some(client) = table.clients.get_mut(key)
                    && !std::mem::replace(&mut client.queued, true)
                {
                    table.ready.push_back(key);
                }
            }
            Outcome::Close(reason) => self.close(table, key, reason),
        }
    }

    /// Sends what clients are answered.
    fn send(&mut self, table: &mut Table, now: u32) {
        while let Some(number) = table.proxy.front.linger_over() {
            self.send_to(table, number, now);
        }
        while let Some(number) = table.proxy.front.next_touched() {
            let Some(seat) = table.proxy.front.seat(number) else {
                continue;
            };
            // One that is held up is to be heard as soon as may be.
            let held_up = match table.clients.get(seat.owner) {
                Some(client) => client.is_held_up(),
                None => continue,
            };
            if held_up || !table.proxy.front.lingers(number) {
                self.send_to(table, number, now);
            }
        }
    }

    fn send_to(&mut self, table: &mut Table, number: usize, now: u32) {
        let Some(seat) = table.proxy.front.seat(number) else {
            return;
        };
        let owner = seat.owner;
        let Some(client) = table.clients.get_mut(owner) else {
            return;
        };
        let outcome = if seat.broken {
            Outcome::Close(Reason::Error)
        } else {
            let context = Context {
                shared: &self.shared,
                counters: &self.counters,
                now,
                connection: client.stream().number(),
            };
            client.send(&mut seat.slots, &context, table.limits)
        };
        table.proxy.front.relax(number);
        self.follow(table, owner, outcome);
    }

    fn close(&mut self, table: &mut Table, key: usize, reason: Reason) {
        let Some(client) = table.clients.try_remove(key) else {
            return;
        };
        if let Some(long) = client.upload() {
            table.proxy.abandon(long);
        }
        table.proxy.front.leave(client.seat);
        self.reception().dismiss(client, Client::stream, reason);
    }

    fn reception(&self) -> Reception<'_> {
        Reception {
            registry: self.poll.registry(),
            shared: &self.shared,
            counters: &self.counters,
        }
    }

    fn sweep(&mut self, table: &mut Table, now: u32) {
        let idle: Vec<usize> = table
            .clients
            .iter()
            .filter(|(_, client)| client.idle(now, self.idle_timeout))
            .map(|(key, _)| key)
            .collect();
        for key in idle {
            self.counters.general.idle_kicks.add(1);
            self.close(table, key, Reason::IdleTimeout);
        }
    }
}
