#![forbid(unsafe_code)]
//! Requests for groups of nodes: writes go to the leader, reads to whom the pool's policy allows, and
//! to followers while the leader is down.

use super::standing_in::Instead;
use super::{Forward, Proxy, Refused};
use crate::cluster::route::Ttl;
use crate::protocol::Dialect;
use crate::settings::proxy::{Command, Commands, Reads, RouteId};

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
        if self.servers[place].target.takes(request.key) {
            return self.send(seat, request, &request.pieces, place);
        }
        let ticket = self.ticket(request);
        self.refuse(seat, &ticket, place, &Refused::Unreachable);
    }

    /// The route of a key that belonged to another group a while ago.
    pub(super) fn way_of_moved(&self, pool: usize, key: &[u8]) -> Option<RouteId> {
        let pools = &self.plan.pools;
        let before = pools[pool].before.as_ref()?;
        let moved = pools[before.pool].group_of(key) != pools[pool].group_of(key);
        moved.then_some(before.route)
    }

    /// A client that writes reads what it has written from where it is.
    pub(super) fn note_writer(&mut self, seat: usize, command: Command) {
        if Commands::WRITES.has(command)
            && let Some(client) = self.front.seats.get_mut(seat)
        {
            client.wrote_at = self.now;
            client.written = false;
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
        self.note_writer(seat, command);
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
        let oldest = match reads {
            Reads::Leader => u64::MAX,
            Reads::OwnWrites => self.written_by(pool, seat).max(1),
            // It has had all once.
            Reads::Any => 1,
            Reads::Bounded(bound) => self.now.saturating_sub(bound).max(1),
        };
        let rules = &self.plan.pools[pool];
        let seats = &rules.seats[rules.ring.owner(key)];
        let places = &self.places[pool];
        let chosen = (0..seats.len()).find_map(|step| {
            let at = first.wrapping_add(step) % seats.len();
            let place = places[seats[at]];
            let target = &self.servers[place].target;
            (target.admits(key) && (at == 0 || target.fresh_at() >= oldest)).then_some(place)
        });
        let leader = places[seats[0]];
        let Some(chosen) = chosen else {
            // Nobody that has enough can be asked: rather nothing than what is too old.
            let oldest = if oldest == 1 { 0 } else { oldest };
            return self.follower(pool, key, oldest).unwrap_or(leader);
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

    /// When all that a client has written was there; 0 if it has written nothing.
    fn written_by(&mut self, pool: usize, seat: usize) -> u64 {
        let timeout = self.plan.pools[pool].rules.timeout;
        let Some(client) = self.front.seats.get_mut(seat) else {
            return 0;
        };
        if client.wrote_at == 0 || client.written {
            return client.wrote_at;
        }
        // The answers have come within the timeout, or the client has been told otherwise.
        let late = client.wrote_at + timeout;
        if !client.slots.is_empty() {
            return late;
        }
        // They have come. A millisecond counts as a whole one.
        client.wrote_at = late.min(self.cluster.now() + 1);
        client.written = true;
        client.wrote_at
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
