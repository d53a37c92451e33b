#![forbid(unsafe_code)]
//! Requests for groups of nodes: writes go to the leader, reads to whom the pool's policy allows, and
//! to followers while the leader is down.

use std::io::Write;

use super::standing_in::Instead;
use super::{Forward, Proxy, Refused, Server};
use crate::cluster::front::{Least, Positions};
use crate::cluster::route::Ttl;
use crate::cluster::upstream::To;
use crate::protocol::answer::{HEADER, Shape};
use crate::protocol::{Dialect, binary};
use crate::settings::proxy::{Command, Commands, Reads, RouteId};
use crate::store::journal;

/// Bytes of `position` and a partition.
const POSITION_MAX: usize = 16;

/// Milliseconds between two times that a worker asks a node how far its log has come.
const ASKED_AGAIN: u64 = 2;

impl Proxy {
    #[inline]
    pub(super) fn is_grouped(&self, pool: usize) -> bool {
        !self.plan.pools[pool].seats.is_empty()
    }

    /// Sends a request of a client to a node of its key's group.
    pub(super) fn forward_to_group(&mut self, seat: usize, request: &Forward<'_>, pool: usize) {
        if let Some(route) = self.way_of_moved(pool, request.key) {
            self.note_writer(seat, request.command);
            return self.walk(seat, request, route);
        }
        if request.command == Command::Get && self.heats.enabled && self.is_hot(seat, request, pool)
        {
            return;
        }
        let place = self.node(pool, seat, request.command, request.dialect, request.key);
        if !self.servers[place].target.takes(request.key) {
            let ticket = self.ticket(request);
            return self.refuse(seat, &ticket, place, &Refused::Unreachable);
        }
        let sent = self.send(seat, request, &request.pieces, place);
        if let Some(number) = sent
            && Commands::WRITES.has(request.command)
            && self.plan.pools[pool].reads == Reads::OwnWrites
        {
            self.ask_position(seat, number, place, pool, request.key);
        }
    }

    /// Behind a write, asks how far its leader's log has come with it.
    fn ask_position(&mut self, seat: usize, number: usize, place: usize, pool: usize, key: &[u8]) {
        let rules = &self.plan.pools[pool];
        let group = rules.ring.owner(key);
        let Some(client) = self.front.seats.get_mut(seat) else {
            return;
        };
        if rules.seats[group].len() == 1 {
            // There is nobody who could be behind.
            return;
        }
        if !self.servers[place].log.tells {
            return client.written.untold(self.now);
        }
        client.written.asked();
        let partition = journal::partition(journal::place(key));
        let to = To::Position {
            seat: seat as u32,
            generation: client.generation,
            group: rules.group_ids[group],
            partition: partition as u16,
        };
        let mut room = [0; POSITION_MAX];
        let mut words = std::io::Cursor::new(&mut room[..]);
        // There is room for it.
        let _ = write!(words, "position {partition}");
        let length = words.position() as usize;
        self.ask_of_log(number, place, to, &room[..length]);
    }

    /// Asks how far a node's log has come in all partitions, unless that has just been done.
    fn ask_positions(&mut self, place: usize, dialect: Dialect) {
        let server = &self.servers[place];
        let log = &server.log;
        if log.asked || !log.tells || self.now < log.asked_at + ASKED_AGAIN {
            return;
        }
        let forgotten = server.target.forgotten();
        if let Ok(number) = self.connection(place, dialect, 0) {
            let log = &mut self.servers[place].log;
            (log.asked, log.asked_at) = (true, self.now);
            self.ask_of_log(number, place, To::Positions { forgotten }, b"positions");
        }
    }

    fn ask_of_log(&mut self, number: usize, place: usize, to: To, words: &[u8]) {
        let mut ticket = self.own_ticket(to, place);
        let upstream = &mut self.upstreams[number];
        match upstream.dialect {
            Dialect::Text => {
                ticket.shape = Shape::Repl;
                upstream.send_piece(b"repl ");
                upstream.send_piece(words);
                upstream.send_piece(b"\r\n");
            }
            Dialect::Binary => {
                ticket.shape = Shape::Binary(binary::REPL);
                let mut head = [0; HEADER];
                (head[0], head[1]) = (binary::MAGIC, binary::REPL);
                (head[3], head[11]) = (words.len() as u8, words.len() as u8);
                head[12..16].copy_from_slice(&ticket.opaque.to_be_bytes());
                upstream.send_piece(&head);
                upstream.send_piece(words);
            }
        }
        upstream.push_ticket(ticket);
        self.mark(number);
    }

    /// A node has said how far its log has come, or has not.
    pub(super) fn told_positions(
        &mut self,
        place: usize,
        forgotten: u64,
        positions: Option<Positions>,
    ) {
        if let Some(server) = self.servers.get_mut(place) {
            server.log.asked = false;
            if positions.is_some() {
                (server.log.positions, server.log.forgotten) = (positions, forgotten);
            }
        }
    }

    /// The route of a key that belonged to another group a while ago.
    pub(super) fn way_of_moved(&self, pool: usize, key: &[u8]) -> Option<RouteId> {
        self.plan.way_of_moved(pool, key)
    }

    /// A client that writes reads what it has written from where it is.
    pub(super) fn note_writer(&mut self, seat: usize, command: Command) {
        if Commands::WRITES.has(command)
            && let Some(client) = self.front.seats.get_mut(seat)
        {
            client.written.untold(self.now);
        }
    }

    /// The node of a key's group that is asked.
    pub(super) fn node(
        &mut self,
        pool: usize,
        seat: usize,
        command: Command,
        dialect: Dialect,
        key: &[u8],
    ) -> usize {
        let reads = self.plan.pools[pool].reads;
        if Commands::WRITES.has(command) || reads == Reads::Leader {
            let leader = self.owner(pool, key);
            return if Commands::WRITES.has(command) || self.servers[leader].target.admits(key) {
                leader
            } else {
                self.follower(pool, key, 0).unwrap_or(leader)
            };
        }
        let first = self.draw() as usize;
        let mut partition = 0;
        let least = match reads {
            Reads::Leader => Least::LEADER,
            Reads::OwnWrites => {
                let (least, of) = self.written_by(pool, seat, key);
                partition = of;
                least
            }
            Reads::Any => Least::NOTHING,
            Reads::Bounded(bound) => Least {
                time: self.now.saturating_sub(bound),
                position: None,
            },
        };
        let rules = &self.plan.pools[pool];
        let seats = &rules.seats[rules.ring.owner(key)];
        let places = &self.places[pool];
        let mut behind = None;
        let chosen = (0..seats.len()).find_map(|step| {
            let at = first.wrapping_add(step) % seats.len();
            let place = places[seats[at]];
            if !self.servers[place].target.admits(key) {
                return None;
            }
            if at == 0 || self.has(place, &least, partition) {
                return Some(place);
            }
            if least.position.is_some() {
                behind = Some(place);
            }
            None
        });
        let leader = places[seats[0]];
        if let Some(behind) = behind {
            // Perhaps it has come further than it is known to have.
            self.ask_positions(behind, dialect);
        }
        let Some(chosen) = chosen else {
            // Nobody that has enough can be asked: rather nothing than what is too old.
            return match least {
                Least::NOTHING => self.follower(pool, key, 0).unwrap_or(leader),
                _ => leader,
            };
        };
        // Behind a new connection there may be a new process: what that has is asked first.
        if chosen == leader
            || self.is_connected(chosen, dialect, seat)
            || !self.servers[leader].target.admits(key)
        {
            chosen
        } else {
            leader
        }
    }

    /// Whether a follower has what somebody must find there who reads a key of this partition.
    fn has(&self, place: usize, least: &Least, partition: usize) -> bool {
        let Server { target, log, .. } = &self.servers[place];
        let mut time = least.time;
        if let Some((position, at)) = least.position {
            let known = log.positions.as_ref();
            match known.filter(|known| {
                known.reign == position.reign && log.forgotten == target.forgotten()
            }) {
                Some(known) => {
                    let there = known.seqs.get(partition).copied().unwrap_or(0);
                    if there < position.seq {
                        return false;
                    }
                    if time == 0 {
                        return true;
                    }
                }
                // Of another leader's log it is known by time how far it has come.
                None => time = time.max(at),
            }
        }
        // It has had all once.
        target.fresh_at() >= time.max(1)
    }

    /// What has to be there for a client to read a key, and the key's partition, if that matters.
    fn written_by(&mut self, pool: usize, seat: usize, key: &[u8]) -> (Least, usize) {
        let rules = &self.plan.pools[pool];
        let timeout = rules.rules.timeout;
        let Some(client) = self.front.seats.get_mut(seat) else {
            return (Least::NOTHING, 0);
        };
        let (mut group, mut partition) = (0, 0);
        if client.written.by_position() {
            group = rules.group_ids[rules.ring.owner(key)];
            partition = journal::partition(journal::place(key));
        }
        let answered = client.slots.is_empty();
        let now = self.cluster.now();
        let least = client
            .written
            .least(group, partition, answered, timeout, now);
        (least, partition)
    }

    /// A follower that can be asked and has what was written before then, the one that is least behind.
    fn follower(&self, pool: usize, key: &[u8], oldest: u64) -> Option<usize> {
        let rules = &self.plan.pools[pool];
        let seats = &rules.seats[rules.ring.owner(key)];
        let places = &self.places[pool];
        let others = seats[1..].iter().map(|seat| places[*seat]);
        others
            .filter(|place| {
                let target = &self.servers[*place].target;
                target.admits(key) && target.fresh_at() >= oldest
            })
            .max_by_key(|place| self.servers[*place].target.fresh_at())
    }

    /// Who is asked for a key whose leader is down.
    pub(super) fn in_group(
        &self,
        pool: usize,
        leader: usize,
        command: Command,
        key: &[u8],
    ) -> Option<Instead> {
        let as_is = |place| Instead {
            place,
            ttl: Ttl::AsIs,
            of: None,
        };
        let oldest = match self.plan.pools[pool].reads {
            Reads::Leader | Reads::Any => 0,
            Reads::Bounded(bound) => self.now.saturating_sub(bound).max(1),
            // Whoever asks may have written.
            Reads::OwnWrites => u64::MAX,
        };
        if !Commands::WRITES.has(command)
            && let Some(place) = self.follower(pool, key, oldest)
        {
            return Some(as_is(place));
        }
        self.servers[leader]
            .target
            .takes(key)
            .then(|| as_is(leader))
    }
}
