#![forbid(unsafe_code)]
//! Keys that are asked for far more often than others: their answers are given again for a tenth of a
//! second, unless a write to them has been seen.

use super::tasks::Kind;
use super::{Forward, Proxy};
use crate::cluster::Cluster;
use crate::cluster::hotkey::cache::{Answer, Cache};
use crate::cluster::hotkey::{Heat, Hot, HotKeys};
use crate::cluster::plan::Plan;
use crate::cluster::rewrite;
use crate::cluster::upstream::Quiet;
use crate::protocol::answer::{Shape, Verdict};
use crate::protocol::{Dialect, number, words::words};
use crate::settings::proxy::Command;

/// How often the lists of workers are put together, in milliseconds.
const PUBLISH: u64 = 1000;

/// What one worker knows of hot keys.
pub(super) struct Heats {
    keys: HotKeys,
    cache: Cache,
    pub enabled: bool,
    published: u64,
    /// Reads that were answered here.
    pub hits: u64,
}

/// A key of the list that is shown.
#[derive(Debug, Clone)]
pub struct Shown {
    pub key: Vec<u8>,
    /// In the last full second.
    pub reads: u64,
    pub hot: bool,
}

impl Heats {
    pub fn new(cluster: &Cluster, plan: &Plan, servers: usize, now: u64) -> Heats {
        let settings = &plan.settings.hot_keys;
        Heats {
            keys: HotKeys::new(settings, servers, cluster.seed, now),
            cache: Cache::new(settings, cluster.writes.clone()),
            enabled: settings.enabled,
            published: 0,
            hits: 0,
        }
    }

    /// The hash by which writes are told apart.
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.keys.hash(key)
    }
}

impl Proxy {
    /// Counts a read; true if it has been answered, or is on its way with a note to keep its answer.
    #[inline]
    pub(super) fn is_hot(&mut self, seat: usize, request: &Forward<'_>, pool: usize) -> bool {
        match self.heats.keys.read(request.key, self.now) {
            Heat::Cold => false,
            Heat::Hot(hot) => self.read_hot(seat, request, pool, hot, false),
        }
    }

    /// As [`is_hot`](Proxy::is_hot), for one key of a get of several.
    #[inline]
    pub(super) fn is_hot_of_many(
        &mut self,
        seat: usize,
        command: &[u8],
        key: &[u8],
        pool: usize,
    ) -> bool {
        match self.heats.keys.read(key, self.now) {
            Heat::Cold => false,
            Heat::Hot(hot) => {
                let line = [command, b" ", key, b"\r\n"].concat();
                let request = Forward {
                    pieces: [&line, b"", b""],
                    key,
                    command: Command::Get,
                    dialect: Dialect::Text,
                    shape: Shape::Get,
                    quiet: Quiet::Loud,
                    opcode: 0,
                    opaque: 0,
                    body: false,
                };
                self.read_hot(seat, &request, pool, hot, true)
            }
        }
    }

    fn read_hot(
        &mut self,
        seat: usize,
        request: &Forward<'_>,
        pool: usize,
        hot: Hot,
        of_many: bool,
    ) -> bool {
        let with_cas = request.pieces[0].starts_with(b"gets");
        let line = match self.heats.cache.get(hot.hash, request.key, self.now) {
            Some(Answer::Miss) => Some(Vec::new()),
            Some(Answer::Hit { cas: None, .. }) if with_cas => None,
            Some(Answer::Hit { flags, cas, value }) => {
                let cas = cas.filter(|_| with_cas).map(|cas| format!(" {cas}"));
                let head = format!(" {flags} {}{}\r\n", value.len(), cas.unwrap_or_default());
                let block = [b"VALUE ", request.key, head.as_bytes(), value, b"\r\n"];
                Some(block.concat())
            }
            None => None,
        };
        if let Some(mut line) = line {
            self.heats.hits += 1;
            if let Some(client) = self.front.seats.get_mut(seat) {
                if !of_many {
                    line.extend_from_slice(b"END\r\n");
                    client.slots.say(&line);
                } else if !line.is_empty() {
                    client.slots.say(&line);
                }
            }
            self.front.touch(seat);
            return true;
        }
        let owner = self.owner(pool, request.key);
        if !self.servers[owner].target.admits(request.key) {
            return false;
        }
        self.heats.keys.forwarded(hot);
        self.cluster.writes.announce(hot.hash, self.now);
        let stamp = self.cluster.writes.stamp(hot.hash);
        let kind = Kind::Hot {
            hash: hot.hash,
            stamp,
        };
        let ticket = self.ticket(request);
        let Some(task) = self.add_task(seat, ticket, of_many, request, kind) else {
            return true;
        };
        let bytes = request.pieces.concat();
        self.send_or_answer(task, owner, Dialect::Text, &bytes, ticket);
        true
    }

    /// Keeps an answer that a hot key has been given.
    pub(super) fn keep_hot(
        &mut self,
        hash: u64,
        stamp: u32,
        key: &[u8],
        bytes: &[u8],
        verdict: Verdict,
    ) {
        let answer = match verdict {
            Verdict::Miss => Answer::Miss,
            Verdict::Hit => {
                let Some((flags, value)) = rewrite::value_of(Dialect::Text, bytes) else {
                    return;
                };
                let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or(b"");
                let cas = words(line.trim_ascii_end())
                    .nth(4)
                    .and_then(number::unsigned);
                Answer::Hit {
                    flags,
                    cas,
                    value: value.into(),
                }
            }
            _ => return,
        };
        self.heats.cache.put(hash, key, answer, stamp, self.now);
    }

    /// What is done each second: old answers go, and the lists of all workers are put together.
    pub(super) fn tend_hot(&mut self) {
        if !self.heats.enabled || self.now.saturating_sub(self.heats.published) < PUBLISH {
            return;
        }
        self.heats.published = self.now;
        self.heats.cache.tick(self.now);
        for hash in self.heats.keys.hot_hashes() {
            self.cluster.writes.announce(hash, self.now);
        }
        let top = self.heats.keys.top().map(|top| Shown {
            key: top.key.to_vec(),
            reads: u64::from(top.reads),
            hot: top.hot,
        });
        self.cluster.publish(self.number, top.collect());
    }
}
