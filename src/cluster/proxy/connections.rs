#![forbid(unsafe_code)]
//! A worker's connections to servers: made when first needed, made again after a rest, watched for
//! answers that do not come.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mio::Interest;

use super::{Deleting, Proxy, Refused, Server, UPLOAD_MAX, token};
use crate::cluster::health::Event;
use crate::cluster::rewrite::Own;
use crate::cluster::target::Pulse;
use crate::cluster::upstream::{Fault, Quiet, Ran, Sink, State, Ticket, To, Upstream};
use crate::protocol::Dialect;
use crate::protocol::answer::Shape;

/// How often deadlines are looked at while something is under way.
const TICK: Duration = Duration::from_millis(20);

/// Milliseconds after which a client may be owed more than its limit, if it is not to blame.
const GRANT_AFTER: u64 = 40;

/// The shortest and the longest rest after a failed attempt to connect, in milliseconds.
const REST_MIN: u64 = 20;
const REST_MAX: u64 = 1000;

/// Deletes that are sent to a server at a time when it has come back.
const DELETES: usize = 512;

impl Proxy {
    /// The connection to a server that a client shares with others, if it can take one request more.
    #[inline]
    pub(super) fn connection(
        &mut self,
        place: usize,
        dialect: Dialect,
        seat: usize,
    ) -> Result<usize, Refused> {
        let server = &mut self.servers[place];
        server.requests += 1;
        let shared = &server.shared[dialect as usize];
        // One client keeps to one connection, or its requests would overtake each other.
        let nth = if shared.len() > 1 {
            seat % shared.len()
        } else {
            0
        };
        if let Some(&number) = shared.get(nth)
            && let Some(upstream) = self.upstreams.get(number)
            && !matches!(upstream.state, State::Closed { .. })
        {
            // A server that takes all it is sent does not suffer for others that do not.
            let full =
                upstream.left > 0 && self.cluster.queued() >= self.plan.settings.limits.queue_bytes;
            return if upstream.requests() < server.rules.requests_max
                && upstream.waiting() < server.rules.bytes_max
                && !full
            {
                Ok(number)
            } else {
                server.target.counts.busy.fetch_add(1, Relaxed);
                Err(Refused::Busy)
            };
        }
        let number = self.shared(place, dialect, seat);
        self.connect(number)
    }

    pub(super) fn add_upstream(&mut self, place: usize, dialect: Dialect, private: bool) -> usize {
        self.serial += 1;
        let upstream = Upstream::new(place, dialect, self.cluster.requests, private, self.serial);
        self.upstreams.insert(upstream)
    }

    #[cold]
    pub(super) fn connect(&mut self, number: usize) -> Result<usize, Refused> {
        let upstream = &mut self.upstreams[number];
        if let State::Closed { retry_at } = upstream.state
            && self.now < retry_at
        {
            return Err(Refused::Unreachable);
        }
        let target = self.servers[upstream.server].target.clone();
        let begun = target.connect(upstream.attempts).and_then(|mut stream| {
            self.registry.register(
                &mut stream,
                token(number),
                Interest::READABLE | Interest::WRITABLE,
            )?;
            Ok(stream)
        });
        match begun {
            Ok(stream) => {
                upstream.begin(stream, self.now);
                if let Some((request, shape)) = target.greeting(upstream.dialect) {
                    let mut ticket = self.own_ticket(To::Greeting, 0);
                    (ticket.shape, ticket.body) = (shape, true);
                    self.upstreams[number].send(&request, ticket);
                }
                Ok(number)
            }
            Err(error) => {
                log::info!("{}: {error}", target.place);
                self.fail(number, Fault::Refused);
                Err(Refused::Unreachable)
            }
        }
    }

    /// A connection has ended, or has to.
    pub(super) fn fail(&mut self, number: usize, fault: Fault) {
        let Some(upstream) = self.upstreams.get_mut(number) else {
            return;
        };
        let target = self.servers[upstream.server].target.clone();
        let (place, counts) = (&target.place, &target.counts);
        let asked = upstream.is_asked();
        let taken = target.counts(upstream.dialect, asked);
        match fault {
            Fault::TimedOut if taken => target.on(Event::TimedOut, self.now),
            Fault::Refused => target.on(Event::Refused, self.now),
            Fault::ConnectTimeout | Fault::Denied => target.on(Event::Failed, self.now),
            Fault::Garbage if taken => target.on(Event::Failed, self.now),
            Fault::Closed if taken && upstream.requests() > 0 => {
                target.on(Event::Failed, self.now);
            }
            _ => {}
        }
        if upstream.requests() > 0 {
            counts.failures.fetch_add(1, Relaxed);
            log::info!("{place} {}", fault.text());
        }
        if fault == Fault::TimedOut {
            counts.timeouts.fetch_add(1, Relaxed);
        }
        let retry_at = match fault {
            Fault::Refused | Fault::ConnectTimeout => {
                upstream.attempts = upstream.attempts.saturating_add(1);
                let rest = (REST_MIN << upstream.attempts.min(8)).min(REST_MAX);
                // All workers, and all proxies, shall not come at the same time.
                let jitter = crate::cluster::key_hash(&self.now.to_ne_bytes()) % (rest / 4 + 1);
                self.now + rest + jitter
            }
            _ => self.now,
        };
        let server = upstream.server;
        // A server that has died with requests under way is known to be down before more are sent there. One
        // that hangs up on who enters is not tried again and again.
        let tries_again = fault == Fault::Closed && asked && !upstream.private;
        upstream.fail(fault, retry_at, &mut self.front);
        self.cluster.requeue(std::mem::take(&mut upstream.left), 0);
        if upstream.private {
            let server = &mut self.servers[upstream.server];
            server.private -= 1;
            server.idle.retain(|&idle| idle != number);
            if let Some(seat) = upstream.uploads_for.take() {
                self.front.call(seat);
            }
            self.upstreams.remove(number);
        }
        if tries_again && !self.upstreams[number].leaving {
            // If that fails, it has been told where it matters.
            let _ = self.connect(number);
        }
        self.look_again(server);
    }

    /// A connection to a server has ended, or another has begun: of a group's node it is not known any
    /// more whether it leads, and what it has.
    fn look_again(&mut self, server: usize) {
        let server = &mut self.servers[server];
        let pool = self.plan.pools.get(server.pool);
        if pool.is_some_and(|pool| !pool.seats.is_empty()) {
            server.target.forget_fresh();
            server.log.tells = true;
            self.cluster.bell.ring();
        }
    }

    /// Whether a client's requests can go to a server on a connection that is there; if not, one is
    /// begun.
    pub(super) fn is_connected(&mut self, place: usize, dialect: Dialect, seat: usize) -> bool {
        let number = self.shared(place, dialect, seat);
        match self.upstreams[number].state {
            State::Open => true,
            State::Connecting { .. } => false,
            State::Closed { .. } => {
                // Whether it can be had is seen the next time.
                let _ = self.connect(number);
                false
            }
        }
    }

    /// The connection that a client shares with others, be it open or not.
    fn shared(&mut self, place: usize, dialect: Dialect, seat: usize) -> usize {
        if self.servers[place].shared[dialect as usize].is_empty() {
            for _ in 0..self.servers[place].rules.connections {
                let number = self.add_upstream(place, dialect, false);
                self.servers[place].shared[dialect as usize].push(number);
            }
        }
        let shared = &self.servers[place].shared[dialect as usize];
        shared[seat % shared.len()]
    }

    pub(super) fn mark(&mut self, number: usize) {
        let upstream = &mut self.upstreams[number];
        if !upstream.dirty {
            upstream.dirty = true;
            self.dirty.push(number);
        }
    }

    /// The poll has something to tell of a connection to a server.
    pub fn ready(&mut self, number: usize, writable: bool, hung_up: bool) {
        let Some(upstream) = self.upstreams.get_mut(number) else {
            return;
        };
        if hung_up {
            upstream.hang_up();
        }
        if let State::Connecting { .. } = upstream.state {
            let Some(stream) = upstream.stream() else {
                return;
            };
            match stream.connected() {
                Ok(true) => {
                    upstream.peer = stream.peer_address();
                    upstream.state = State::Open;
                    upstream.attempts = 0;
                }
                Ok(false) => return,
                Err(_) => return self.fail(number, Fault::Refused),
            }
            let server = upstream.server;
            self.look_again(server);
        }
        let Some(upstream) = self.upstreams.get_mut(number) else {
            return;
        };
        if writable && !upstream.dirty {
            upstream.dirty = true;
            self.dirty.push(number);
        }
        if upstream.paused.is_none() {
            self.run(number);
        }
    }

    pub(super) fn run(&mut self, number: usize) {
        let Some(upstream) = self.upstreams.get_mut(number) else {
            return;
        };
        if !matches!(upstream.state, State::Open) {
            return;
        }
        let ran = upstream.run(&mut self.input, &mut self.front, self.now);
        if std::mem::take(&mut self.front.misled) {
            self.cluster.bell.ring();
        }
        match ran {
            Ran::Wait => {
                // Under TLS, what could not be sent may be sent once something has been read.
                if self.upstreams[number].waiting() > 0 {
                    self.mark(number);
                }
                self.settle_private(number);
            }
            Ran::Again => self.again.push_back(number),
            Ran::Paused => self.paused.push(number),
            Ran::Ended(fault) => self.fail(number, fault),
        }
    }

    /// Goes on where more is to be read, or a client takes its answers again.
    pub fn go_on(&mut self) {
        for _ in 0..self.again.len() {
            if let Some(number) = self.again.pop_front() {
                self.run(number);
            }
        }
        for number in std::mem::take(&mut self.paused) {
            let Some(upstream) = self.upstreams.get(number) else {
                continue;
            };
            let Some(since) = upstream.paused else {
                continue;
            };
            let timeout = self.servers[upstream.server].rules.timeout;
            let waited = self.now.saturating_sub(since);
            let full = upstream
                .next()
                .copied()
                .filter(|ticket| self.front.is_full(ticket, upstream.next_key(ticket)));
            let Some(To::Client { seat, .. } | To::Task { seat, .. }) =
                full.map(|ticket| ticket.to)
            else {
                self.run(number);
                continue;
            };
            let seat = seat as usize;
            if waited > GRANT_AFTER && self.front.grant(seat) {
                self.run(number);
                continue;
            }
            // Whoever holds up others has to go.
            if waited > timeout
                && upstream.holds_up_others()
                && let Some(client) = self.front.seats.get_mut(seat)
            {
                client.broken = true;
                self.front.touch(seat);
            }
            self.paused.push(number);
        }
    }

    /// Sends what waits for servers.
    pub fn flush(&mut self) {
        while let Some(number) = self.dirty.pop() {
            let Some(upstream) = self.upstreams.get_mut(number) else {
                continue;
            };
            upstream.dirty = false;
            match upstream.flush() {
                Ok(()) => {
                    let left = upstream.waiting();
                    if left != upstream.left {
                        self.cluster.requeue(upstream.left, left);
                        upstream.left = left;
                    }
                    if let Some(seat) = upstream.uploads_for
                        && upstream.waiting() <= UPLOAD_MAX / 2
                    {
                        self.front.call(seat);
                    }
                }
                Err(fault) => self.fail(number, fault),
            }
        }
    }

    /// How long the poll may wait.
    pub fn patience(&self) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let busy = self.has_delayed()
            || self.upstreams.iter().any(|(_, upstream)| {
                upstream.requests() > 0 || matches!(upstream.state, State::Connecting { .. })
            });
        if busy {
            return Some(TICK);
        }
        if self.number > 0 {
            return None;
        }
        let wanted = self.servers.iter().filter(|(_, server)| server.wanted);
        let next = wanted.map(|(_, server)| server.target.next_probe()).min()?;
        Some(Duration::from_millis(next.saturating_sub(self.now)).max(TICK))
    }

    /// Whether it is time for a look at deadlines.
    pub(super) fn is_due(&self) -> bool {
        self.now.saturating_sub(self.ticked) >= TICK.as_millis() as u64
    }

    /// Looks at deadlines, and at what is to be told and asked from time to time.
    pub fn tick(&mut self) {
        if !self.is_due() {
            return;
        }
        self.ticked = self.now;
        for (sum, asked) in self.cluster.asked.iter().zip(&mut self.asked) {
            if *asked > 0 {
                sum.fetch_add(std::mem::take(asked), Relaxed);
            }
        }
        for (_, upstream) in &mut self.upstreams {
            let its = &mut self.servers[upstream.server].answered;
            its[upstream.dialect as usize] += upstream.take_answered();
        }
        for (_, server) in &mut self.servers {
            let requests = std::mem::take(&mut server.requests);
            if requests > 0 {
                server.target.counts.requests.fetch_add(requests, Relaxed);
            }
            let answered = std::mem::take(&mut server.answered);
            for (dialect, count) in [Dialect::Text, Dialect::Binary].into_iter().zip(answered) {
                if count > 0 {
                    server.target.answered(dialect, count, self.now);
                }
            }
        }
        self.eject();
        self.retire();
        self.follow_names();
        let overdue: Vec<(usize, Fault)> = self
            .upstreams
            .iter()
            .filter_map(|(number, upstream)| {
                let rules = &self.servers[upstream.server].rules;
                Some((number, upstream.overdue(self.now, rules)?))
            })
            .collect();
        for (number, fault) in overdue {
            self.fail(number, fault);
        }
        self.send_delayed();
        self.tend_hot();
        if self.number == 0 {
            self.probe();
        }
    }

    /// Where a name does not stand for the address any more that a connection goes to, another takes its
    /// place, and it ends when what is under way on it has been answered.
    pub(super) fn follow_names(&mut self) {
        let moved = |server: &Server| server.moves != server.target.moves();
        let moved: Vec<usize> = self
            .servers
            .iter()
            .filter(|(_, server)| moved(server))
            .map(|(place, _)| place)
            .collect();
        for place in moved {
            let target = self.servers[place].target.clone();
            let moves = target.moves();
            let its = |upstream: &Upstream| upstream.server == place && !upstream.leaving;
            let connecting =
                |upstream: &Upstream| matches!(upstream.state, State::Connecting { .. });
            let known = self.upstreams.iter().map(|(_, upstream)| upstream);
            if known.clone().any(|it| its(it) && connecting(it)) {
                // It is not known yet where to.
                continue;
            }
            self.servers[place].moves = moves;
            let gone = |upstream: &Upstream| upstream.peer.is_some_and(|peer| !target.is_at(peer));
            let stale: Vec<usize> = self
                .upstreams
                .iter()
                .filter(|(_, upstream)| its(upstream) && gone(upstream))
                .map(|(number, _)| number)
                .collect();
            for number in stale {
                log::info!("{} is elsewhere now", target.place);
                self.replace(place, number);
            }
        }
        let upstreams = &self.upstreams;
        let over: Vec<usize> = self
            .leaving
            .extract_if(.., |number| {
                let upstream = upstreams.get(*number);
                upstream.is_none_or(|it| !it.leaving || it.is_quiet() && it.waiting() == 0)
            })
            .collect();
        for number in over {
            if self.upstreams.get(number).is_some_and(|it| it.leaving) {
                self.fail(number, Fault::Retired);
                self.upstreams.try_remove(number);
            }
        }
    }

    /// Puts a fresh connection in the place of one that is leaving.
    fn replace(&mut self, place: usize, number: usize) {
        self.upstreams[number].leaving = true;
        self.servers[place].idle.retain(|&idle| idle != number);
        if self.upstreams[number].private {
            return self.settle_private(number);
        }
        self.leaving.push(number);
        let dialect = self.upstreams[number].dialect;
        let fresh = self.add_upstream(place, dialect, false);
        for shared in &mut self.servers[place].shared[dialect as usize] {
            if *shared == number {
                *shared = fresh;
            }
        }
    }

    /// Asks servers whether they are alive, and sends them the deletes that wait.
    fn probe(&mut self) {
        let wanted: Vec<usize> = self
            .servers
            .iter()
            .filter(|(_, server)| server.wanted)
            .map(|(place, _)| place)
            .collect();
        for place in wanted {
            let target = self.servers[place].target.clone();
            if target.tick(self.now) && !self.send_own(place, Own::Probe, To::Probe, place) {
                target.on(Event::ProbeFailed, self.now);
            }
            if self.servers[place].deleting.is_none() {
                self.send_deletes(place);
            }
        }
    }

    /// Sends a server some of the deletes that wait for it, if it can take them, and those that stood in
    /// for it: they have the keys no longer than needed, or what they have would be read from them the
    /// next time.
    fn send_deletes(&mut self, place: usize) {
        if !self.servers[place].wanted {
            // Its pool may be another one now.
            return;
        }
        let target = self.servers[place].target.clone();
        let due = target.drain(DELETES, self.now);
        if due.is_nothing() {
            return;
        }
        let keys = &due.keys;
        let pool = self.servers[place].pool;
        let failover = self.servers[place].rules.failover;
        let mut requests: Vec<(usize, usize)> = Vec::new();
        for (nth, key) in keys.iter().enumerate() {
            requests.push((place, nth));
            let others = self.plan.pools[pool].ring.preference(key).skip(1);
            for other in others.take(failover) {
                let other = self.places[pool][other];
                if self.servers[other].target.is_down() {
                    self.servers[other].target.remember(key);
                } else {
                    requests.push((other, nth));
                }
            }
        }
        self.servers[place].deleting = Some(Deleting {
            left: requests.len() + usize::from(due.empty),
            good: true,
        });
        if due.empty {
            log::warn!(
                "{} is emptied: not all deletes for it are known",
                target.place
            );
            if !self.send_own(place, Own::Flush, To::Flush, place) {
                self.deleted(place, false);
            }
        }
        for (to, nth) in requests {
            if !self.send_own(to, Own::Delete(&keys[nth]), To::Delete, place) {
                self.deleted(place, false);
            }
        }
    }

    /// A server has been asked whether it is alive.
    pub(super) fn probed(&mut self, place: usize, dialect: Dialect, pulse: Pulse) {
        if let Some(server) = self.servers.get(place) {
            server.target.probed(dialect, pulse, self.now);
            if pulse == Pulse::Good && self.servers[place].deleting.is_none() {
                self.send_deletes(place);
            }
        }
    }

    /// A delete that had waited has been answered, or never will be.
    pub(super) fn deleted(&mut self, place: usize, good: bool) {
        let Some(server) = self.servers.get_mut(place) else {
            return;
        };
        let Some(deleting) = &mut server.deleting else {
            return;
        };
        deleting.good &= good;
        deleting.left -= 1;
        if deleting.left == 0
            && let Some(all) = server.deleting.take()
        {
            server.target.drained(all.good, self.now);
            if all.good {
                self.send_deletes(place);
            }
        }
    }

    /// Sends something of the worker's own, about the server at the place `about`, in a dialect that the server
    /// takes.
    fn send_own(&mut self, place: usize, own: Own<'_>, to: To, about: usize) -> bool {
        let dialect = self.servers[place].target.dialect();
        // A server that is down is tried whenever a probe is due.
        if let Some(&number) = self.servers[place].shared[dialect as usize].first()
            && let Some(upstream) = self.upstreams.get_mut(number)
            && let State::Closed { retry_at } = &mut upstream.state
        {
            *retry_at = 0;
        }
        match self.connection(place, dialect, 0) {
            Ok(number) => {
                let mut ticket = self.own_ticket(to, about);
                let (request, shape) = own.put(dialect, ticket.opaque);
                ticket.shape = shape;
                self.upstreams[number].send(&request, ticket);
                self.mark(number);
                true
            }
            Err(_) => false,
        }
    }

    pub(super) fn own_ticket(&self, to: To, place: usize) -> Ticket {
        Ticket {
            to,
            shape: Shape::Line,
            quiet: Quiet::Loud,
            opcode: 0,
            opaque: place as u32,
            keys: 0,
            body: false,
            wrote: 0,
            sent: self.now,
        }
    }
}
