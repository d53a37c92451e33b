//! What happens to a request between client and server.
//!
//! A [`Tree`] is a configuration's routes, immutable and shared by all workers; a reload makes
//! another, and requests under way finish on theirs. [`Tree::settle`] is the way of nearly every
//! request: through rules to one pool. Where more is to be done, a [`Walk`] says what to send and is
//! told what came of it, until it names the answer. It does no I/O, knows no clock and holds no
//! reply: whoever drives it has those.
#![forbid(unsafe_code)]

mod walk;

pub use walk::{
    Action, KeyId, Life, Manner, Outcome, Reply, Send, Source, Tag, Token, Ttl, Walk, What, World,
};

use crate::cluster::limit::{InFlight, TokenBucket};
use crate::hash::hashkit;
use crate::settings::proxy::{Command, Order, Proxy, Route, RouteId, Rule};

/// What is to be routed.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub command: Command,
    pub key: &'a [u8],
    /// The tag of the listener the client came by.
    pub listener: Option<&'a str>,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// To this pool and nowhere else.
    Pool(usize),
    /// To begin a [`Walk`] with.
    Route(RouteId),
}

/// Routes, and what they count.
#[derive(Debug)]
pub struct Tree {
    routes: Vec<Route>,
    root: RouteId,
    gates: Vec<Gate>,
    host: u64,
}

/// What a route lets through.
#[derive(Debug, Default)]
struct Gate {
    rate: Option<TokenBucket>,
    in_flight: Option<InFlight>,
}

impl Tree {
    /// The routes of a configuration. `host` is this machine's name, for what differs between
    /// proxies.
    pub fn build(proxy: &Proxy, host: &str) -> Tree {
        let gates = proxy.routes.iter().map(|route| match route {
            Route::Failover { rate, .. } => Gate {
                rate: rate.map(TokenBucket::new),
                in_flight: None,
            },
            Route::Limit {
                rate, in_flight, ..
            } => Gate {
                rate: rate.map(TokenBucket::new),
                in_flight: in_flight.map(InFlight::new),
            },
            _ => Gate::default(),
        });
        Tree {
            gates: gates.collect(),
            routes: proxy.routes.clone(),
            root: proxy.root,
            host: hashkit::xxh3(host.as_bytes(), 0),
        }
    }

    /// The route of requests that came by no listener with a route of its own.
    pub fn root(&self) -> RouteId {
        self.root
    }

    pub fn route(&self, id: RouteId) -> &Route {
        &self.routes[id]
    }

    /// Follows rules and migrations. `unix_seconds` is the time of day, which decides the latter.
    #[inline]
    pub fn settle(&self, mut id: RouteId, question: &Question<'_>, unix_seconds: u64) -> Settled {
        loop {
            id = match &self.routes[id] {
                Route::Pool { pool } => return Settled::Pool(*pool),
                Route::Match { rules, otherwise } => choose(rules, *otherwise, question),
                Route::Migrate {
                    from,
                    to,
                    start,
                    length,
                } => {
                    let progress = Progress::at(*start, *length, unix_seconds);
                    if question.command == Command::Delete && progress == Progress::Under {
                        return Settled::Route(id);
                    }
                    if has_moved(question.key, *start, *length, unix_seconds) {
                        *to
                    } else {
                        *from
                    }
                }
                _ => return Settled::Route(id),
            };
        }
    }

    /// The order in which a failover asks its children, as the place of the first.
    fn first_child(&self, order: Order, children: usize, key: &[u8]) -> usize {
        let by = match order {
            Order::Given => 0,
            Order::Key => key_hash(key),
            Order::Host => self.host,
        };
        (by % children as u64) as usize
    }
}

fn choose(rules: &[Rule], otherwise: RouteId, question: &Question<'_>) -> RouteId {
    let applies = |rule: &&Rule| {
        question.key.starts_with(&rule.prefix)
            && rule.commands.has(question.command)
            && rule
                .listener
                .as_ref()
                .is_none_or(|tag| question.listener == Some(tag))
    };
    rules.iter().find(applies).map_or(otherwise, |rule| rule.to)
}

/// How far a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Before,
    Under,
    Over,
}

impl Progress {
    fn at(start: u64, length: u64, now: u64) -> Progress {
        if now < start {
            Progress::Before
        } else if now - start < length {
            Progress::Under
        } else {
            Progress::Over
        }
    }
}

/// Whether a key belongs to the new place already. Each key changes once.
fn has_moved(key: &[u8], start: u64, length: u64, now: u64) -> bool {
    match Progress::at(start, length, now) {
        Progress::Before => false,
        Progress::Over => true,
        Progress::Under => {
            let turn = (u128::from(key_hash(key)) * u128::from(length)) >> 64;
            turn < u128::from(now - start)
        }
    }
}

/// Spreads keys over what is no server; unlike the hashes of the rings.
fn key_hash(key: &[u8]) -> u64 {
    hashkit::xxh3(key, 0x726f_7574)
}

/// Whether a key is among this share of all.
fn in_share(key: &[u8], share: f64) -> bool {
    let unit = (key_hash(key) >> 11) as f64 / (1_u64 << 53) as f64;
    unit < share
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
