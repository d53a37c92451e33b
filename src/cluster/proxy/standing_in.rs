#![forbid(unsafe_code)]
//! Servers that stand in for one that is down: the next ones clockwise.
//!
//! What is written to them lives for a few seconds only, and the key is remembered, to be deleted on its
//! own server before that is asked for it again: nothing is read from it then that is older than what
//! was written meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::tasks::Kind;
use super::{Forward, Proxy, Refused};
use crate::cluster::front::nothing;
use crate::cluster::rewrite::{self, Change, Owned};
use crate::cluster::route::Ttl;
use crate::cluster::target::Target;
use crate::cluster::upstream::Quiet;
use crate::settings::proxy::{Command, Commands};

/// Who is asked instead of a server, and what for.
pub(super) struct Instead {
    pub place: usize,
    /// What is written there lives so long.
    pub ttl: Ttl,
    /// The server that has to forget the key: it is to be told again when the write has been answered.
    pub of: Option<Arc<Target>>,
}

impl Proxy {
    /// A request for a key whose server is not to be asked for it now.
    #[cold]
    pub(super) fn stand_in(
        &mut self,
        seat: usize,
        request: &Forward<'_>,
        pool: usize,
        owner: usize,
    ) {
        let Some(instead) = self.instead(pool, owner, request.command, request.key) else {
            let ticket = self.ticket(request);
            if request.command == Command::Delete && self.is_remembered(pool, owner, request.key) {
                // It will have been deleted when the server is asked again.
                if request.quiet != Quiet::All
                    && let Some(client) = self.front.seats.get_mut(seat)
                {
                    client.slots.say(&nothing(&ticket, request.command));
                    self.front.touch(seat);
                }
                return;
            }
            return self.refuse(seat, &ticket, owner, &Refused::Unreachable);
        };
        let bytes = match instead.ttl {
            Ttl::AsIs => None,
            ttl => {
                let change = Change {
                    key: None,
                    ttl,
                    now: self.unix,
                };
                rewrite::request(&Owned::of(request), &change)
            }
        };
        let Some(of) = instead.of else {
            match bytes {
                Some(bytes) => self.send(seat, request, &[&bytes], instead.place),
                None => self.send(seat, request, &request.pieces, instead.place),
            };
            return;
        };
        let kind = if self.plan.pools[pool].rules.replicas > 1 {
            Kind::Copied {
                pool,
                owner: instead.place,
            }
        } else {
            Kind::Once
        };
        let ticket = self.ticket(request);
        if let Some(task) = self.add_task(seat, ticket, false, request, kind) {
            self.stands_in(task, 0, of, request.key);
            let bytes = bytes.unwrap_or_else(|| request.pieces.concat());
            self.send_or_answer(task, instead.place, request.dialect, &bytes, ticket);
        }
    }

    /// The server that is asked for a key of a get of several instead of its own.
    #[cold]
    pub(super) fn stand_in_for(&mut self, pool: usize, owner: usize, key: &[u8]) -> usize {
        self.instead(pool, owner, Command::Get, key)
            .map_or(owner, |instead| instead.place)
    }

    /// Who is asked instead of the owner of a key; the owner, if it is to be asked after all. `None`:
    /// nobody can be.
    pub(super) fn instead(
        &mut self,
        pool: usize,
        owner: usize,
        command: Command,
        key: &[u8],
    ) -> Option<Instead> {
        if self.is_grouped(pool) {
            return self.in_group(pool, owner, command, key);
        }
        let rules = self.plan.pools[pool].rules;
        let as_is = |place| Instead {
            place,
            ttl: Ttl::AsIs,
            of: None,
        };
        let target = self.servers[owner].target.clone();
        let next = self.plan.pools[pool]
            .ring
            .preference(key)
            .skip(1)
            .take(rules.failover)
            .map(|member| self.places[pool][member])
            .find(|&place| self.servers[place].target.admits(key));
        let Some(place) = next else {
            // What nobody else can take it gets, unless it cannot take it either.
            return target.takes(key).then(|| as_is(owner));
        };
        if Commands::WRITES.has(command) {
            if rules.retry_deletes && !target.remember(key) {
                return Some(as_is(owner));
            }
            target.counts.failovers.fetch_add(1, Relaxed);
            return Some(Instead {
                place,
                ttl: Ttl::AtMost(rules.failover_ttl),
                of: rules.retry_deletes.then_some(target),
            });
        }
        target.counts.failovers.fetch_add(1, Relaxed);
        Some(as_is(place))
    }

    /// Remembers the key of a delete for a server that is down.
    pub(super) fn is_remembered(&self, pool: usize, owner: usize, key: &[u8]) -> bool {
        self.plan.pools[pool].rules.retry_deletes && self.servers[owner].target.remember(key)
    }
}

impl Owned {
    /// A copy of a request.
    pub fn of(request: &Forward<'_>) -> Owned {
        let [first, second, body] = request.pieces;
        Owned {
            dialect: request.dialect,
            head: [first, second].concat().into(),
            body: body.into(),
        }
    }
}
