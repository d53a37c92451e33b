#![forbid(unsafe_code)]
//! Keys that are asked for far more often than others: their answers are given again for a tenth of a
//! second, unless a write to them has been seen; those that cannot be are read from several servers.
//!
//! Reads of any dialect count and are answered from the same, as far as what is kept tells all that they ask
//! for ([`Wanted`]).
//!
//! A server other than the key's own is asked only while it has a copy that this worker has had made,
//! and not for as long after a write as one made before it may live: whoever has been told of a write
//! through this proxy reads nothing older through it.

use std::collections::{HashMap, HashSet};

use super::tasks::Kind;
use super::wanted::{Wanted, keepable};
use super::{Forward, Proxy};
use crate::cluster::Cluster;
use crate::cluster::hotkey::cache::{Answer, Cache};
use crate::cluster::hotkey::copies::Copies;
use crate::cluster::hotkey::{Heat, Hot, HotKeys, two_choices};
use crate::cluster::plan::Plan;
use crate::cluster::rewrite;
use crate::cluster::upstream::Quiet;
use crate::protocol::Dialect;
use crate::protocol::answer::{Shape, Verdict};
use crate::protocol::text::KEY_MAX;
use crate::settings::proxy::{Command, HotKeys as HotKeySettings};

/// How often the lists of workers are put together, in milliseconds.
const PUBLISH: u64 = 1000;

/// Larger values are not copied to other servers, but read from their own alone.
const COPY_MAX: usize = 1 << 20;

/// Milliseconds that a copy may be late: on its way to a server that is slow to take it, and what the
/// server's clock is coarse by.
const LATE: u64 = 2000;

/// What one worker knows of hot keys.
pub(super) struct Heats {
    keys: HotKeys,
    cache: Cache,
    copies: Copies,
    /// Bytes of the values of hot keys, as they have been seen since the last tick.
    sizes: HashMap<u64, usize>,
    /// Hot keys whose owner is being asked for an answer to keep: others who read them meanwhile are not
    /// held up by that.
    asked: HashSet<u64>,
    /// Values that are kept; 0 if none are.
    keep_max: usize,
    /// Seconds.
    copy_ttl: u32,
    pub enabled: bool,
    published: u64,
    /// Reads that were answered here.
    pub hits: u64,
}

/// A read of a hot key from its own server. Places hold for as long as the task's plan is the worker's.
pub(super) struct Reading {
    pub hash: u64,
    pub pool: usize,
    /// The key's stamp before, see [`Writes`](crate::cluster::hotkey::writes::Writes).
    pub stamp: u32,
    pub since: u64,
    pub dialect: Dialect,
    /// Servers that are to be given a copy.
    pub fills: Vec<usize>,
}

/// A read of a hot key from a server that has a copy; whoever owns the key then is asked if that fails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copy {
    pub hash: u64,
    pub stamp: u32,
    pub pool: usize,
    /// Holds for as long as the task's plan is the worker's.
    pub at: usize,
    /// What the owner calls the value.
    pub cas: Option<u64>,
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
        // Each worker sees its part of the reads.
        let its = HotKeySettings {
            reads_per_second: settings.reads_per_second.div_ceil(cluster.workers),
            ..settings.clone()
        };
        let keeps = settings.cache_ms > 0 && settings.cache_entries > 0;
        Heats {
            keys: HotKeys::new(&its, servers, cluster.seed, now),
            copies: Copies::new(u64::from(settings.spread_ttl) * 1000),
            sizes: HashMap::new(),
            asked: HashSet::new(),
            keep_max: if keeps { settings.cache_value_bytes } else { 0 },
            copy_ttl: settings.spread_ttl,
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

    /// Counts a read. Keys that memcached would not have are none that everybody asks for: they are not
    /// worth the memory of being remembered.
    #[inline]
    fn read(&mut self, key: &[u8], now: u64) -> Heat {
        if key.len() > KEY_MAX {
            return Heat::Cold;
        }
        self.keys.read(key, now)
    }

    /// Whether an answer is worth being kept, as far as is known.
    fn keeps(&self, hash: u64) -> bool {
        let size = self.sizes.get(&hash).copied().unwrap_or_default();
        self.keep_max > 0 && size <= self.keep_max
    }

    fn may_copy(&self, hash: u64) -> bool {
        self.sizes.get(&hash).is_none_or(|&size| size <= COPY_MAX)
    }
}

impl Proxy {
    /// Counts a read; true if it has been answered, or is on its way with a note to keep its answer.
    #[inline]
    pub(super) fn is_hot(&mut self, seat: usize, request: &Forward<'_>, pool: usize) -> bool {
        match self.heats.read(request.key, self.now) {
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
        match self.heats.read(key, self.now) {
            Heat::Cold => false,
            Heat::Hot(hot) => {
                let line = [command, b" ", key, b"\r\n"].concat();
                let request = Forward::get(&line, key, Command::Get);
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
        let ticket = self.ticket(request);
        let Some(wanted) = Wanted::of(&ticket, request.pieces[0], request.key) else {
            return false;
        };
        let refreshes =
            !self.heats.asked.contains(&hot.hash) && self.heats.cache.is_aging(hot.hash, self.now);
        let kept = match self.heats.cache.get(hot.hash, pool, request.key, self.now) {
            Some(answer) if !refreshes => wanted
                .kept(answer)
                .map(|bytes| (bytes, *answer == Answer::Miss)),
            _ => None,
        };
        if let Some((bytes, miss)) = kept {
            self.heats.hits += 1;
            self.say_kept(
                seat,
                &bytes,
                miss && (of_many || ticket.quiet == Quiet::Miss),
                of_many,
            );
            return true;
        }
        // Of a group only the leader has what a client that has been told of a write may expect.
        let owner = self.owner(pool, request.key);
        if !self.servers[owner].target.admits(request.key) {
            return false;
        }
        self.heats.keys.forwarded(hot);
        self.cluster.writes.announce(hot.hash, self.now);
        let stamp = self.cluster.writes.stamp(hot.hash);
        let mut fills = Vec::new();
        let mut at = match self.is_grouped(pool) {
            true => owner,
            false => self.holder(pool, request.key, hot, owner, &mut fills),
        };
        // What the client may compare with has to be its own server's.
        let cas = self.heats.copies.cas(hot.hash, at);
        if wanted.cas() && cas.is_none() {
            at = owner;
        }
        let keeps = self.heats.keeps(hot.hash) && !self.heats.asked.contains(&hot.hash);
        if at == owner && fills.is_empty() && !keeps {
            return false;
        }
        let mut sent = ticket;
        let (bytes, kind) = if at == owner {
            self.heats.asked.insert(hot.hash);
            let bytes = match wanted.all() {
                Some((bytes, shape)) => {
                    sent.shape = shape;
                    bytes
                }
                None => request.pieces.concat(),
            };
            let reading = Reading {
                hash: hot.hash,
                pool,
                stamp,
                since: self.now,
                dialect: request.dialect,
                fills,
            };
            (bytes, Kind::Hot(reading))
        } else {
            let bytes = match request.dialect {
                Dialect::Text => {
                    sent.shape = Shape::Get;
                    [b"get ", request.key, b"\r\n"].concat()
                }
                Dialect::Binary => request.pieces.concat(),
            };
            let copy = Copy {
                hash: hot.hash,
                stamp,
                pool,
                at,
                cas,
            };
            (bytes, Kind::Copy(copy))
        };
        let Some(task) = self.add_task(seat, ticket, of_many, request, kind) else {
            return true;
        };
        self.send_or_answer(task, at, request.dialect, &bytes, sent);
        true
    }

    /// Answers a client with what is kept.
    fn say_kept(&mut self, seat: usize, bytes: &[u8], silent: bool, of_many: bool) {
        if let Some(client) = self.front.seats.get_mut(seat)
            && !silent
        {
            let end: &[u8] = if of_many { b"END\r\n" } else { b"" };
            client.slots.say(bytes.strip_suffix(end).unwrap_or(bytes));
        }
        self.front.touch(seat);
    }

    /// Who is read from: the owner, or another that has a copy. If the owner, those that are to be given
    /// one are put into `fills`.
    fn holder(
        &mut self,
        pool: usize,
        key: &[u8],
        hot: Hot,
        owner: usize,
        fills: &mut Vec<usize>,
    ) -> usize {
        let life = u64::from(self.heats.copy_ttl) * 1000;
        let written = &self.cluster.writes;
        if hot.spread <= 1
            || !self.heats.may_copy(hot.hash)
            || written.written_within(hot.hash, life + LATE, self.now)
        {
            return owner;
        }
        let (servers, places) = (&self.servers, &self.places[pool]);
        let others = self.plan.pools[pool]
            .ring
            .preference(key)
            .map(|member| places[member])
            .filter(|&place| place != owner && servers[place].target.admits(key))
            .take(hot.spread - 1);
        let mut holders = vec![owner];
        for place in others {
            if self.heats.copies.has(hot.hash, place, self.now) {
                holders.push(place);
            }
            if self.heats.copies.begin(hot.hash, place, self.now) {
                fills.push(place);
            }
        }
        if !fills.is_empty() {
            return owner;
        }
        let random = self.draw();
        holders[two_choices(random, holders.len(), |at| self.busy(holders[at]))]
    }

    /// The owner of a hot key has answered: the answer is kept, and copied where that is wanted.
    pub(super) fn read_from_owner(
        &mut self,
        reading: &Reading,
        key: &[u8],
        bytes: &[u8],
        verdict: Verdict,
    ) {
        self.heats.asked.remove(&reading.hash);
        let answer = keepable(key, bytes, verdict);
        let value = match &answer {
            Some(Answer::Hit {
                flags, cas, value, ..
            }) => Some((*flags, *cas, value.clone())),
            _ => None,
        };
        if let Some(answer) = answer {
            self.keep_hot(reading.hash, reading.stamp, (reading.pool, key), answer);
        }
        if reading.fills.is_empty() {
            return;
        }
        let unwritten = self.cluster.writes.stamp(reading.hash) == reading.stamp;
        let value = value.filter(|(_, _, value)| unwritten && value.len() <= COPY_MAX);
        let Some((flags, cas, value)) = value else {
            for &place in &reading.fills {
                self.heats.copies.lost(reading.hash, place);
            }
            return;
        };
        let request = rewrite::set(reading.dialect, key, flags, self.heats.copy_ttl, &value);
        for &at in &reading.fills {
            let kind = Kind::Filled {
                hash: reading.hash,
                at,
                read: reading.since,
                cas,
            };
            self.send_own_task(kind, at, reading.dialect, &request);
        }
    }

    /// A server has been sent a copy, and has said this.
    pub(super) fn filled(
        &mut self,
        hash: u64,
        at: usize,
        read: u64,
        cas: Option<u64>,
        verdict: Verdict,
    ) {
        if verdict == Verdict::Done {
            self.heats.copies.made(hash, at, read, cas);
        } else {
            self.heats.copies.lost(hash, at);
        }
    }

    /// A server that should have had a copy has none, or has failed.
    pub(super) fn copy_is_lost(&mut self, hash: u64, at: usize) {
        self.heats.copies.lost(hash, at);
    }

    /// A server that has a copy of a hot key has answered.
    pub(super) fn read_from_copy(
        &mut self,
        copy: &Copy,
        key: &[u8],
        bytes: &[u8],
        verdict: Verdict,
    ) {
        if let Some(Answer::Hit { flags, value, .. }) = keepable(key, bytes, verdict) {
            let answer = Answer::Hit {
                flags,
                value,
                cas: copy.cas,
                known_fresh: false,
            };
            self.keep_hot(copy.hash, copy.stamp, (copy.pool, key), answer);
        }
    }

    /// Keeps an answer that a hot key of a pool has been given.
    fn keep_hot(&mut self, hash: u64, stamp: u32, key: (usize, &[u8]), answer: Answer) {
        if let Answer::Hit { value, .. } = &answer {
            self.heats.sizes.insert(hash, value.len());
        }
        self.heats.cache.put(hash, key, answer, stamp, self.now);
    }

    /// What is done each second: old answers go, and the lists of all workers are put together.
    pub(super) fn tend_hot(&mut self) {
        if !self.heats.enabled || self.now.saturating_sub(self.heats.published) < PUBLISH {
            return;
        }
        self.heats.published = self.now;
        self.heats.cache.tick(self.now);
        self.heats.copies.tick(self.now);
        self.heats.sizes.clear();
        // Those that were refused are not answered.
        self.heats.asked.clear();
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
