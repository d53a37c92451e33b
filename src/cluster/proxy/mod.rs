#![forbid(unsafe_code)]
//! One worker's part of the proxy: chooses a server for each request, sends it there over a connection
//! that all its clients share, and passes the answer back.
//!
//! A request that goes to one server is copied once, into what that connection sends next, and its
//! answer once, into what its client is sent next. The keys of a get of several are put on one line for
//! each server; every key has a slot of its own, so that the values leave in the order of the keys.

// Connections to servers.
mod connections;

// Requests for groups of nodes.
mod grouped;

// Keys that are asked for far more often than others.
mod hot;

// Servers that stand in for one that is down.
mod standing_in;

// What a proxy shows of itself.
mod stats;

// Requests that more than one answer belongs to.
mod tasks;

// Long values on their way to servers.
mod uploads;

// What clients that read a key want to be told.
mod wanted;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mio::{Registry, Token};
use slab::Slab;

use super::Cluster;
use super::front::{Front, Positions, refusal};
use super::hotkey::writes::Writes;
use super::plan::{Plan, Pool, Rules};
use super::ring::Ring;
use super::route::{Question, Settled};
use super::target::Target;
use super::upstream::{Fault, KeyTicket, Quiet, Ticket, To, Upstream};
use crate::net::Input;
use crate::net::buffer::SIZE;
use crate::protocol::Dialect;
use crate::protocol::answer::{self, Shape};
use crate::settings::proxy::{COMMANDS, Command, Commands};

use hot::Heats;
use tasks::Tasks;

pub use hot::Shown;
pub use uploads::{Long, Upload};

/// The longest line of keys: servers take longer ones only if they begin with `get`.
const LINE_MAX: usize = 1900;

/// Bytes of a long value that wait for its server before no more is read from the client.
const UPLOAD_MAX: usize = 256 << 10;

/// What a request needs to be sent on.
#[derive(Debug, Clone, Copy)]
pub struct Forward<'a> {
    /// The request as it is sent: line, or header with extras and key, in two pieces, and what follows
    /// it.
    pub pieces: [&'a [u8]; 3],
    pub key: &'a [u8],
    pub command: Command,
    pub dialect: Dialect,
    pub shape: Shape,
    pub quiet: Quiet,
    /// The opcode that the client used, and its opaque.
    pub opcode: u8,
    pub opaque: u32,
    /// It has a value.
    pub body: bool,
}

impl<'a> Forward<'a> {
    /// A get of classic text with one key.
    #[inline]
    pub fn get(line: &'a [u8], key: &'a [u8], command: Command) -> Forward<'a> {
        Forward {
            pieces: [line, b"", b""],
            key,
            command,
            dialect: Dialect::Text,
            shape: Shape::Get,
            quiet: Quiet::Loud,
            opcode: 0,
            opaque: 0,
            body: false,
        }
    }
}

/// A server as this worker sees it.
struct Server {
    target: Arc<Target>,
    rules: Rules,
    /// The connections that all clients share, by dialect.
    shared: [Vec<usize>; 2],
    /// Connections for long requests that none is under way on.
    idle: Vec<usize>,
    /// All connections for long requests.
    private: usize,
    /// It belongs to the configuration.
    wanted: bool,
    /// What has been counted since the last tick.
    requests: u64,
    /// By dialect.
    answered: [u32; 2],
    /// Keys that are being deleted there.
    deleting: Option<Deleting>,
    /// The place of its pool in the plan.
    pool: usize,
    /// See [`Target::moves`], when its connections were last looked at.
    moves: u64,
    /// A node's: how far its log has come.
    log: LogOf,
}

/// How far the log of a node has come, as it has said itself to this worker.
#[derive(Debug)]
struct LogOf {
    positions: Option<Positions>,
    /// As the target's [`forgotten`](Target::forgotten) was then.
    forgotten: u64,
    /// When it was last asked, and whether the answer is to come.
    asked_at: u64,
    asked: bool,
    /// It knows what it is asked.
    tells: bool,
}

impl LogOf {
    const UNKNOWN: LogOf = LogOf {
        positions: None,
        forgotten: 0,
        asked_at: 0,
        asked: false,
        tells: true,
    };
}

/// Keys that have been written elsewhere while their server was down, and are being deleted.
struct Deleting {
    /// Answers to come.
    left: usize,
    /// All has gone well so far.
    good: bool,
}

/// Why a request is not sent.
enum Refused {
    Busy,
    Unreachable,
}

/// One worker's proxy.
pub struct Proxy {
    pub front: Front,
    registry: Registry,
    cluster: Arc<Cluster>,
    plan: Arc<Plan>,
    generation: u64,
    /// The places in `servers` of the pools' servers. They hold for as long as the plan is this one; those of
    /// a server that has gone are another's with a plan after the next.
    places: Vec<Vec<usize>>,
    servers: Slab<Server>,
    /// The rings of pools that take servers off that are down, if any are, and who is left.
    ejected: Option<Vec<Option<Ring>>>,
    live: Vec<Vec<usize>>,
    serial: u64,
    upstreams: Slab<Upstream>,
    /// Those that have something to send.
    dirty: Vec<usize>,
    /// Those on which a line of keys has been begun.
    open: Vec<usize>,
    /// Those that wait for a client to take its answers.
    paused: Vec<usize>,
    /// Those that end when what is under way on them has been answered.
    leaving: Vec<usize>,
    /// Those that have more to read, once others had their turn.
    again: VecDeque<usize>,
    input: Input,
    tasks: Tasks,
    heats: Heats,
    /// What has been asked for since the last tick, by command.
    asked: [u64; COMMANDS],
    /// Of the worker; the first asks servers whether they are alive.
    number: usize,
    now: u64,
    /// The time of day, in seconds.
    unix: u64,
    ticked: u64,
    /// For choices that should not be foreseen.
    random: u64,
}

/// The poll's token of a connection to a server; even ones are free for clients.
pub fn token(upstream: usize) -> Token {
    Token(upstream << 1 | 1)
}

impl Proxy {
    /// `number`: the worker's; the first asks servers whether they are alive.
    pub fn new(registry: Registry, cluster: Arc<Cluster>, number: usize) -> Proxy {
        let plan = cluster.plan();
        let limit = plan.settings.limits.client_bytes;
        let mut proxy = Proxy {
            front: Front::new(limit, cluster.writes.clone()),
            registry,
            generation: cluster.generation(),
            plan: plan.clone(),
            places: Vec::new(),
            servers: Slab::new(),
            ejected: None,
            live: Vec::new(),
            serial: 0,
            upstreams: Slab::new(),
            dirty: Vec::new(),
            open: Vec::new(),
            paused: Vec::new(),
            leaving: Vec::new(),
            again: VecDeque::new(),
            // A line of an answer has to fit, and what is read along with its end.
            input: Input::for_commands(answer::line_max(cluster.requests) + SIZE),
            tasks: Tasks::default(),
            heats: Heats::new(&cluster, &plan, 0, 0),
            asked: [0; COMMANDS],
            number,
            cluster,
            now: 0,
            unix: unix_seconds(),
            ticked: 0,
            random: getrandom::u64().unwrap_or_default() | 1,
        };
        proxy.adopt(plan);
        proxy
    }

    /// Looks at the clock, for all that follows. Takes up a new configuration.
    pub fn begin_round(&mut self) {
        let now = self.cluster.now();
        if now / 1000 != self.now / 1000 {
            self.unix = unix_seconds();
        }
        self.now = now;
        self.front.now = now;
        if self.is_due() {
            // Before the first request in a while is sent to where a server was then.
            self.follow_names();
        }
        let generation = self.cluster.generation();
        if generation != self.generation {
            self.generation = generation;
            self.adopt(self.cluster.plan());
        }
    }

    /// Takes up a configuration: servers that were there keep their connections, those that are gone
    /// keep them until nothing is under way on them.
    fn adopt(&mut self, plan: Arc<Plan>) {
        for (_, server) in &mut self.servers {
            server.wanted = false;
        }
        self.places.clear();
        for (number, pool) in plan.pools.iter().enumerate() {
            let mut places = Vec::new();
            for target in &pool.targets {
                let known = self
                    .servers
                    .iter()
                    .find(|(_, server)| Arc::ptr_eq(&server.target, target))
                    .map(|(place, _)| place);
                let place = known.unwrap_or_else(|| {
                    self.servers.insert(Server {
                        moves: target.moves(),
                        target: target.clone(),
                        rules: pool.rules,
                        shared: [Vec::new(), Vec::new()],
                        idle: Vec::new(),
                        private: 0,
                        wanted: true,
                        requests: 0,
                        answered: [0; 2],
                        deleting: None,
                        pool: number,
                        log: LogOf::UNKNOWN,
                    })
                });
                self.servers[place].wanted = true;
                self.servers[place].rules = pool.rules;
                self.servers[place].pool = number;
                self.front.name(place, target.place.to_string());
                places.push(place);
            }
            self.places.push(places);
        }
        self.front.limit = plan.settings.limits.client_bytes;
        let servers = self.places.iter().map(Vec::len).sum();
        self.heats = Heats::new(&self.cluster, &plan, servers, self.now);
        self.plan = plan;
        self.ejected = None;
        self.live.clear();
        self.eject();
        self.retire();
    }

    /// Lets go of servers that are no longer wanted, once nothing is under way.
    fn retire(&mut self) {
        if self.servers.iter().all(|(_, server)| server.wanted) {
            return;
        }
        let gone: Vec<usize> = self
            .servers
            .iter()
            .filter(|(_, server)| !server.wanted)
            .map(|(place, _)| place)
            .collect();
        for place in gone {
            let its: Vec<usize> = self
                .upstreams
                .iter()
                .filter(|(_, upstream)| upstream.server == place)
                .map(|(number, _)| number)
                .collect();
            // Its deletes may be under way to those that stood in for it: they name it by its place.
            if self.servers[place].deleting.is_none()
                && its.iter().all(|&number| self.upstreams[number].is_quiet())
            {
                for number in its {
                    self.fail(number, Fault::Retired);
                    self.upstreams.try_remove(number);
                }
                self.servers.remove(place);
            }
        }
    }

    /// A seat for a new client, which has come by the listener with this tag.
    pub fn sit(&mut self, owner: usize, listener: Option<Arc<str>>) -> usize {
        let seat = self.front.sit(owner);
        if let Some(client) = self.front.seats.get_mut(seat) {
            client.listener = listener;
        }
        seat
    }

    /// Where a request goes.
    #[inline]
    fn settle(&self, seat: usize, command: Command, key: &[u8]) -> Settled {
        let tree = &self.plan.tree;
        let listener = self
            .front
            .seats
            .get(seat)
            .and_then(|it| it.listener.as_deref());
        let root = match listener {
            None => tree.root(),
            Some(tag) => self.plan.root_of(tag),
        };
        let question = Question {
            command,
            key,
            listener,
        };
        tree.settle(root, &question, self.unix)
    }

    /// The server of a pool that owns a key.
    #[inline]
    fn owner(&self, pool: usize, key: &[u8]) -> usize {
        let ring = match &self.ejected {
            None => &self.plan.pools[pool].ring,
            Some(rings) => rings[pool].as_ref().unwrap_or(&self.plan.pools[pool].ring),
        };
        self.places[pool][ring.owner(key)]
    }

    /// Takes servers that are down off the rings of pools that want it, and puts them back.
    fn eject(&mut self) {
        let wants = |pool: &Pool| pool.rules.eject;
        if !self.plan.pools.iter().any(wants) {
            return;
        }
        let live = |pool: &Pool| -> Vec<usize> {
            let up = |at: &usize| !wants(pool) || !pool.targets[*at].is_down();
            (0..pool.targets.len()).filter(up).collect()
        };
        let all: Vec<Vec<usize>> = self.plan.pools.iter().map(live).collect();
        if all == self.live {
            return;
        }
        let rings = self.plan.pools.iter().zip(&all);
        self.ejected = Some(rings.map(|(pool, live)| pool.ring_among(live)).collect());
        self.live = all;
    }

    /// Sends a request of a client on, or answers it.
    #[inline]
    pub fn forward(&mut self, seat: usize, request: &Forward<'_>) {
        self.asked[request.command as usize] += 1;
        let pool = match self.settle(seat, request.command, request.key) {
            Settled::Pool(pool) => pool,
            Settled::Route(route) => return self.walk(seat, request, route),
        };
        if self.is_grouped(pool) {
            return self.forward_to_group(seat, request, pool);
        }
        let place = self.owner(pool, request.key);
        if !self.servers[place].target.admits(request.key) {
            return self.stand_in(seat, request, pool, place);
        }
        if self.plan.pools[pool].rules.replicas > 1 && Commands::WRITES.has(request.command) {
            return self.copy(seat, request, pool, place);
        }
        if request.command == Command::Get && self.heats.enabled && self.is_hot(seat, request, pool)
        {
            return;
        }
        self.send(seat, request, &request.pieces, place);
    }

    /// Sends a request of a client to a server. Returns the connection that it is sent on.
    #[inline]
    fn send(
        &mut self,
        seat: usize,
        request: &Forward<'_>,
        pieces: &[&[u8]],
        place: usize,
    ) -> Option<usize> {
        let mut ticket = self.ticket(request);
        let found = self.connection(place, request.dialect, seat);
        let client = self.front.seats.get_mut(seat)?;
        match found {
            Ok(number) => {
                ticket.to = To::Client {
                    seat: seat as u32,
                    generation: client.generation,
                    slot: client.slots.reserve(),
                };
                let upstream = &mut self.upstreams[number];
                for piece in pieces {
                    if !piece.is_empty() {
                        upstream.send_piece(piece);
                    }
                }
                upstream.push_ticket(ticket);
                self.mark(number);
                Some(number)
            }
            Err(refused) => {
                self.refuse(seat, &ticket, place, &refused);
                None
            }
        }
    }

    #[inline]
    fn ticket(&self, request: &Forward<'_>) -> Ticket {
        Ticket {
            to: To::Nobody,
            shape: request.shape,
            quiet: request.quiet,
            opcode: request.opcode,
            opaque: request.opaque,
            keys: 0,
            body: request.body,
            wrote: self.note_write(request),
            sent: self.now,
        }
    }

    /// Whoever keeps answers has to know of writes; returns what is told again with the answer.
    #[inline]
    fn note_write(&self, request: &Forward<'_>) -> u16 {
        if !Commands::WRITES.has(request.command) || !self.heats.enabled {
            return 0;
        }
        let hash = self.heats.hash(request.key);
        self.cluster.writes.written(hash, self.now);
        Writes::note(hash)
    }

    /// Tells a client that its request is not sent.
    #[cold]
    fn refuse(&mut self, seat: usize, ticket: &Ticket, place: usize, refused: &Refused) {
        self.front.touch(seat);
        if ticket.quiet != Quiet::All {
            let answer = refusal(ticket, &self.excuse(place, refused));
            if let Some(client) = self.front.seats.get_mut(seat) {
                client.slots.say(&answer);
            }
        }
    }

    /// One key of a get of several: `command` is what its line begins with. Once all keys have been
    /// given, [`end_keys`](Proxy::end_keys) sends them.
    #[inline]
    pub fn key(&mut self, seat: usize, command: &[u8], key: &[u8]) {
        let what = match command.get(1) {
            Some(b'a') => Command::Gat,
            _ => Command::Get,
        };
        self.asked[what as usize] += 1;
        let pool = match self.settle(seat, what, key) {
            Settled::Pool(pool) => pool,
            Settled::Route(route) => return self.walk_key(seat, command, key, what, route),
        };
        if self.is_grouped(pool)
            && let Some(route) = self.way_of_moved(pool, key)
        {
            return self.walk_key(seat, command, key, what, route);
        }
        if what == Command::Get
            && self.heats.enabled
            && self.is_hot_of_many(seat, command, key, pool)
        {
            return;
        }
        let mut server = self.owner(pool, key);
        if self.is_grouped(pool) {
            self.note_writer(seat, what);
            server = self.node(pool, seat, what, Dialect::Text, key);
        } else if !self.servers[server].target.admits(key) {
            server = self.stand_in_for(pool, server, key);
        }
        let upstream = self.connection(server, Dialect::Text, seat);
        let Some(client) = self.front.seats.get_mut(seat) else {
            return;
        };
        let slot = client.slots.reserve();
        let generation = client.generation;
        match upstream {
            Ok(number) => {
                let tag = super::tag(key);
                let upstream = &mut self.upstreams[number];
                if !upstream.line_is_open() {
                    upstream.begin_line(command, keys_ticket(seat, generation, self.now));
                    self.open.push(number);
                }
                if upstream.send_key(key, KeyTicket { slot, tag }) > LINE_MAX {
                    upstream.end_line();
                }
            }
            Err(refused) => {
                let line = format!("SERVER_ERROR {}\r\n", self.excuse(server, &refused));
                self.front.seats[seat].slots.fail_key(slot, line.as_bytes());
            }
        }
    }

    /// The keys of a get that have been given are sent; `last` if no more follow.
    pub fn end_keys(&mut self, seat: usize, last: bool) {
        let Some(client) = self.front.seats.get_mut(seat) else {
            return;
        };
        if last {
            client.slots.end_of_get();
        }
        for number in self.open.drain(..) {
            let Some(upstream) = self.upstreams.get_mut(number) else {
                continue;
            };
            upstream.end_line();
            if !upstream.dirty {
                upstream.dirty = true;
                self.dirty.push(number);
            }
        }
        self.front.touch(seat);
    }

    fn excuse(&self, server: usize, refused: &Refused) -> String {
        match refused {
            // mcrouter then asks elsewhere and does not count it as a failure.
            Refused::Busy => "307 busy".to_owned(),
            Refused::Unreachable => self.front.failure(server, Fault::Refused),
        }
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn keys_ticket(seat: usize, generation: u32, now: u64) -> Ticket {
    Ticket {
        to: To::Client {
            seat: seat as u32,
            generation,
            slot: 0,
        },
        shape: Shape::Gets,
        quiet: Quiet::Loud,
        opcode: 0,
        opaque: 0,
        keys: 0,
        body: false,
        wrote: 0,
        sent: now,
    }
}
