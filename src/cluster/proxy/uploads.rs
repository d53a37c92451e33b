#![forbid(unsafe_code)]
//! Long values on their way to servers, each over a connection of its own while it lasts: a client that
//! is slow to bring its value holds up nobody.

use super::tasks::Turn;
use super::{Forward, Proxy, Refused, UPLOAD_MAX};
use crate::cluster::rewrite::{self, Change, Owned};
use crate::cluster::route::Settled;
use crate::cluster::upstream::{Fault, Ticket, To};
use crate::protocol::Dialect;

/// Long values on their way to one server at a time, and connections kept for more of them.
const PRIVATE_MAX: usize = 64;
const IDLE_MAX: usize = 2;

/// A long value on its way to a server.
#[derive(Debug, Clone, Copy)]
pub struct Long {
    way: Way,
    /// Bytes to come, the line end counted.
    left: u64,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    /// Over this connection, which the serial tells from others.
    Over { upstream: usize, serial: u64 },
    /// Not before a task, which the generation tells from others, has done what comes before it.
    Behind { task: usize, generation: u32 },
}

/// What has become of a piece of a long value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upload {
    /// So many bytes are on their way.
    Taken(usize),
    /// The server has to take some first, or others have to do something; the seat is called then.
    Full,
    /// It is complete: the answer will come.
    Done,
    /// The connection has ended, and the client has been told: so many bytes are to be passed over.
    Gone(u64),
}

impl Proxy {
    /// Begins to send a long value, whose request `forward` is but for the value, over a connection of
    /// its own: a client that is slow to bring its value holds up nobody. `None` if it cannot be sent;
    /// the client has been told.
    pub fn begin_upload(
        &mut self,
        seat: usize,
        forward: &Forward<'_>,
        length: u64,
    ) -> Option<Long> {
        self.asked[forward.command as usize] += 1;
        let mut ticket = self.ticket(forward);
        let Settled::Pool(pool) = self.settle(seat, forward.command, forward.key) else {
            return None;
        };
        self.note_writer(seat, forward.command);
        if let Some(route) = self.way_of_moved(pool, forward.key) {
            let (task, generation) = self.walk_long(seat, forward, route)?;
            return Some(Long {
                way: Way::Behind { task, generation },
                left: length,
            });
        }
        let owner = self.owner(pool, forward.key);
        let mut place = owner;
        let mut stands_in = None;
        let mut head = forward.pieces.concat();
        if !self.servers[owner].target.admits(forward.key) {
            let Some(instead) = self.instead(pool, owner, forward.command, forward.key) else {
                self.refuse(seat, &ticket, owner, &Refused::Unreachable);
                return None;
            };
            place = instead.place;
            stands_in = instead.of.map(|target| (target, forward.key.into()));
            let change = Change {
                key: None,
                ttl: instead.ttl,
                now: self.unix,
            };
            let terminator = usize::from(forward.dialect == Dialect::Text) * 2;
            let value = length as usize - terminator;
            if let Some(changed) = rewrite::head(&Owned::of(forward), &change, value) {
                head = changed;
            }
        }
        let client = self.front.seats.get_mut(seat)?;
        ticket.to = To::Client {
            seat: seat as u32,
            generation: client.generation,
            slot: client.slots.end(),
        };
        match self.begin_value_at(place, forward.dialect, &head, ticket, seat) {
            Ok((upstream, serial)) => {
                self.upstreams[upstream].stands_in = stands_in;
                self.front.seats.get_mut(seat)?.slots.reserve();
                Some(Long {
                    way: Way::Over { upstream, serial },
                    left: length,
                })
            }
            Err(refused) => {
                self.refuse(seat, &ticket, place, &refused);
                None
            }
        }
    }

    /// Sends what stands before a long value over a connection that waits for the value then. Returns which
    /// that is, and its serial.
    pub(super) fn begin_value_at(
        &mut self,
        place: usize,
        dialect: Dialect,
        head: &[u8],
        ticket: Ticket,
        seat: usize,
    ) -> Result<(usize, u64), Refused> {
        let number = self.private(place, dialect)?;
        let upstream = &mut self.upstreams[number];
        upstream.send(head, ticket);
        upstream.uploads_for = Some(seat);
        let serial = upstream.serial;
        self.mark(number);
        Ok((number, serial))
    }

    /// Whether a long value for this key can be sent on as it comes: not if it may have to be sent again,
    /// or to several.
    pub fn streams(&self, seat: usize, request: &Forward<'_>) -> bool {
        match self.settle(seat, request.command, request.key) {
            Settled::Pool(pool) => self.plan.pools[pool].rules.replicas == 1,
            Settled::Route(_) => false,
        }
    }

    /// More of a long value.
    pub fn upload(&mut self, long: &mut Long, bytes: &[u8]) -> Upload {
        let (number, serial) = match long.way {
            Way::Over { upstream, serial } => (upstream, serial),
            Way::Behind { task, generation } => match self.turn_of(task, generation) {
                Turn::NotYet => return Upload::Full,
                Turn::Gone => return Upload::Gone(long.left),
                Turn::Over { upstream, serial } => {
                    long.way = Way::Over { upstream, serial };
                    (upstream, serial)
                }
            },
        };
        let Some(upstream) = self
            .upstreams
            .get_mut(number)
            .filter(|upstream| upstream.serial == serial && upstream.uploads_for.is_some())
        else {
            return Upload::Gone(long.left);
        };
        if long.left == 0 {
            upstream.uploads_for = None;
            self.settle_private(number);
            return Upload::Done;
        }
        if upstream.waiting() > UPLOAD_MAX {
            return Upload::Full;
        }
        let here = usize::try_from(long.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        upstream.send_piece(&bytes[..here]);
        upstream.touch(self.now);
        long.left -= here as u64;
        self.mark(number);
        Upload::Taken(here)
    }

    /// A long value will not be completed: its client has gone.
    pub fn abandon(&mut self, long: Long) {
        match long.way {
            Way::Over { upstream, serial } => self.let_go(upstream, serial),
            Way::Behind { task, generation } => self.give_up(task, generation),
        }
    }

    /// The rest of a long value will not come.
    pub(super) fn let_go(&mut self, number: usize, serial: u64) {
        if let Some(upstream) = self.upstreams.get_mut(number)
            && upstream.serial == serial
        {
            // A server that refuses a value drops the old one when it has seen the line: it has to. What
            // the socket does not take now is lost, as with a client that is cut off.
            let _ = upstream.flush();
            self.fail(number, Fault::Retired);
        }
    }

    /// A connection that nothing is under way on, for a long request.
    fn private(&mut self, place: usize, dialect: Dialect) -> Result<usize, Refused> {
        let server = &mut self.servers[place];
        server.requests += 1;
        let upstreams = &self.upstreams;
        let idle = server.idle.iter().rposition(|&number| {
            upstreams
                .get(number)
                .is_some_and(|upstream| upstream.dialect == dialect)
        });
        if let Some(at) = idle {
            return Ok(server.idle.swap_remove(at));
        }
        if server.private >= PRIVATE_MAX {
            return Err(Refused::Busy);
        }
        server.private += 1;
        let number = self.add_upstream(place, dialect, true);
        self.connect(number)
    }

    /// A long request may have come to its end on a connection of its own.
    pub(super) fn settle_private(&mut self, number: usize) {
        let Some(upstream) = self.upstreams.get_mut(number) else {
            return;
        };
        if !upstream.private || upstream.uploads_for.is_some() || upstream.requests() > 0 {
            return;
        }
        upstream.settle_elsewhere();
        let leaving = upstream.leaving;
        let server = &mut self.servers[upstream.server];
        if server.wanted && !leaving && server.idle.len() < IDLE_MAX {
            if !server.idle.contains(&number) {
                server.idle.push(number);
            }
        } else {
            self.fail(number, Fault::Retired);
        }
    }
}
