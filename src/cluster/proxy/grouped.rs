#![forbid(unsafe_code)]
//! Requests for groups of nodes: writes go to the leader, reads to whom the pool's policy allows, and
//! to followers while the leader is down.

use super::standing_in::Instead;
use super::{Forward, Proxy, Refused};
use crate::cluster::route::Ttl;
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
        let place = self.node(pool, seat, request.command, request.key);
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
        }
    }

    /// The node of a key's group that is asked.
    pub(super) fn node(&mut self, pool: usize, seat: usize, command: Command, key: &[u8]) -> usize {
        self.note_writer(seat, command);
        let wrote_at = self.front.seats.get(seat).map_or(0, |it| it.wrote_at);
        let reads = self.plan.pools[pool].reads;
        if Commands::WRITES.has(command) || reads == Reads::Leader {
            let leader = self.owner(pool, key);
            return if Commands::WRITES.has(command) || self.servers[leader].target.admits(key) {
                leader
            } else {
                self.follower(pool, key).unwrap_or(leader)
            };
        }
        let first = self.draw() as usize;
        let rules = &self.plan.pools[pool];
        let oldest = match reads {
            Reads::Leader => u64::MAX,
            // Its answer has come within the timeout, or the client has been told otherwise.
            Reads::OwnWrites if wrote_at > 0 => wrote_at + rules.rules.timeout,
            Reads::OwnWrites | Reads::Any => 0,
            Reads::Bounded(bound) => self.now.saturating_sub(bound).max(1),
        };
        let seats = &rules.seats[rules.ring.owner(key)];
        let places = &self.places[pool];
        let chosen = (0..seats.len()).find_map(|step| {
            let at = first.wrapping_add(step) % seats.len();
            let place = places[seats[at]];
            let target = &self.servers[place].target;
            (target.admits(key) && (at == 0 || target.fresh_at() >= oldest)).then_some(place)
        });
        chosen
            .or_else(|| self.follower(pool, key))
            .unwrap_or_else(|| places[seats[0]])
    }

    /// A follower that can be asked, the one that is least behind.
    fn follower(&self, pool: usize, key: &[u8]) -> Option<usize> {
        let rules = &self.plan.pools[pool];
        let seats = &rules.seats[rules.ring.owner(key)];
        let places = &self.places[pool];
        let others = seats[1..].iter().map(|seat| places[*seat]);
        others
            .filter(|place| self.servers[*place].target.admits(key))
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
        if !Commands::WRITES.has(command)
            && let Some(place) = self.follower(pool, key)
        {
            return Some(as_is(place));
        }
        self.servers[leader]
            .target
            .takes(key)
            .then(|| as_is(leader))
    }
}
