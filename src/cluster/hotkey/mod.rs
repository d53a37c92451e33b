//! Keys that are asked for far more often than others, found in constant memory and kept from
//! making one server hot.
//!
//! Each worker counts its reads with the space-saving algorithm: 256 counters, of which the least
//! goes to a key that has none, by every eighth of such reads on average: chance decides, so that no
//! order of reads can keep a key out. Keys that are read once do not wear the counters out that way, nor
//! cost much. Whoever takes a counter over inherits its count as a doubt, so that
//! *count − doubt* is never more than was really asked. In each second a key is hot that was read
//! more often than a number and than a share of all; it stays hot for two seconds after.
//!
//! A hot key is answered from [`cache`] first. Where that cannot be, because the value is too large
//! or the cache is turned off, so that it is hot for its server still, reads are spread over the next
//! servers of its preference list ([`HotKeys::spread`]), which are given [`copies`]; [`two_choices`]
//! takes the less busy of two.
#![forbid(unsafe_code)]

pub mod cache;
pub mod copies;
pub mod writes;

use crate::hash::hashkit;
use crate::settings::proxy::HotKeys as Settings;

/// Counters per worker.
pub const COUNTERS: usize = 256;
/// Slots of the index over them: a power of two that stays half empty.
const SLOTS: usize = 1024;
const NONE: u16 = u16::MAX;
/// A key that keeps its counter for so many reads is worth being remembered.
const REMEMBER: u32 = 8;
/// One of so many reads of a key without a counter gives it one.
const ADMITTED: u64 = 8;
const WINDOW_MS: u64 = 1000;
/// Windows a key stays hot after its last hot one.
const COOLING: u8 = 2;
/// Servers over which a key is spread at least: two would leave too much where chance has put several
/// hot keys on one server.
const SPREAD_MIN: usize = 4;

/// What is known of a key that has just been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heat {
    Cold,
    Hot(Hot),
}

/// A hot key, until the next read of any key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hot {
    counter: u16,
    /// Names the key in [`cache`] and [`writes`].
    pub hash: u64,
    /// From how many servers to read it: 1 is its own alone.
    pub spread: usize,
}

#[derive(Debug, Clone, Default)]
struct Counter {
    hash: u64,
    count: u32,
    doubt: u32,
    /// Reads of it that went to a server.
    forwarded: u32,
    /// Windows for which it is hot still.
    hot: u8,
    spread: u8,
    /// Empty until the counter is worth it.
    key: Vec<u8>,
}

/// One worker's counters.
#[derive(Debug)]
pub struct HotKeys {
    settings: Settings,
    servers: usize,
    seed: u64,
    counters: Vec<Counter>,
    /// Which counter has a hash: open addressing.
    index: Box<[u16; SLOTS]>,
    /// No counter has less than this, and where to look for one that has just as much.
    least: u32,
    hand: usize,
    /// Decides who gets a counter.
    dice: u64,
    window_ends: u64,
    reads: u32,
    /// Of hot keys, and those of them that went to a server.
    hot_reads: u32,
    forwarded: u32,
    hot_keys: usize,
    /// What the last full second was like.
    top: Vec<Top>,
}

/// A key of the top list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Top {
    pub key: Box<[u8]>,
    /// In the last full second.
    pub reads: u32,
    pub hot: bool,
    pub spread: usize,
}

impl HotKeys {
    /// For a worker whose reads go to so many servers. `seed` makes the hash that nobody outside can
    /// aim at; workers that share [`writes`] must share it.
    pub fn new(settings: &Settings, servers: usize, seed: u64, now: u64) -> HotKeys {
        HotKeys {
            settings: settings.clone(),
            servers: servers.max(1),
            seed,
            counters: Vec::new(),
            index: Box::new([NONE; SLOTS]),
            least: 0,
            hand: 0,
            dice: seed | 1,
            window_ends: now + WINDOW_MS,
            reads: 0,
            hot_reads: 0,
            forwarded: 0,
            hot_keys: 0,
            top: Vec::new(),
        }
    }

    /// The hash by which a key is known here.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        hashkit::xxh3(key, self.seed)
    }

    /// Counts a read, before it is answered from anywhere.
    #[inline]
    pub fn read(&mut self, key: &[u8], now: u64) -> Heat {
        if now >= self.window_ends {
            self.close_window(now);
        }
        let hash = self.hash(key);
        self.reads = self.reads.saturating_add(1);
        let at = match self.find(hash) {
            Some(at) => {
                let counter = &mut self.counters[at];
                counter.count = counter.count.saturating_add(1);
                at
            }
            None if self.counters.len() == COUNTERS && !self.admits() => return Heat::Cold,
            None => match self.take_over(hash) {
                Some(at) => at,
                None => return Heat::Cold,
            },
        };
        self.judge(at, hash, key)
    }

    /// Whether a key without a counter gets one for this read.
    #[inline]
    fn admits(&mut self) -> bool {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice.is_multiple_of(ADMITTED)
    }

    /// Whether the key of a counter is hot now that it has been read once more.
    fn judge(&mut self, at: usize, hash: u64, key: &[u8]) -> Heat {
        let (least, share) = (self.settings.reads_per_second, self.share());
        // Without a cache there is no need to see whether it helps.
        let first = match self.settings.cache_ms {
            0 => SPREAD_MIN.min(self.spread_max()),
            _ => 1,
        };
        let counter = &mut self.counters[at];
        let sure = counter.count - counter.doubt;
        if sure >= REMEMBER && counter.key.is_empty() {
            counter.key.extend_from_slice(key);
        }
        // Not only when the second is over: a second is long for a server that is being flooded.
        if counter.hot == 0 && sure > least && f64::from(sure) > share * f64::from(self.reads) {
            counter.hot = COOLING;
            counter.spread = first as u8;
            self.hot_keys += 1;
        }
        if counter.hot == 0 {
            return Heat::Cold;
        }
        self.hot_reads = self.hot_reads.saturating_add(1);
        Heat::Hot(Hot {
            counter: at as u16,
            hash,
            spread: usize::from(counter.spread),
        })
    }

    /// A read of a hot key could not be answered here and goes to a server.
    pub fn forwarded(&mut self, hot: Hot) {
        self.forwarded = self.forwarded.saturating_add(1);
        let counter = &mut self.counters[usize::from(hot.counter)];
        if counter.hash == hot.hash {
            counter.forwarded = counter.forwarded.saturating_add(1);
        }
    }

    /// Whether any key is hot: while none is, writes need not look.
    pub fn any(&self) -> bool {
        self.hot_keys > 0
    }

    /// Servers from which a key is read at present: what a write to it has to reach.
    pub fn spread(&self, key: &[u8]) -> usize {
        if self.hot_keys == 0 {
            return 1;
        }
        match self.find(self.hash(key)) {
            Some(at) if self.counters[at].hot > 0 => usize::from(self.counters[at].spread),
            _ => 1,
        }
    }

    /// Hashes of the keys that are hot, for [`writes::Writes::announce`].
    pub fn hot_hashes(&self) -> impl Iterator<Item = u64> {
        let hot = self.counters.iter().filter(|counter| counter.hot > 0);
        hot.map(|counter| counter.hash)
    }

    /// The keys read most in the last full second, most first.
    pub fn top(&self) -> impl Iterator<Item = &Top> {
        self.top.iter()
    }

    /// A sixteenth of a server's share, unless the settings know better: 50 keys that take 90 % of
    /// all reads must be hot in front of five servers.
    fn share(&self) -> f64 {
        if self.settings.share > 0.0 {
            self.settings.share.into()
        } else {
            1.0 / (16 * self.servers) as f64
        }
    }

    fn spread_max(&self) -> usize {
        self.settings.spread.min(self.servers).max(1)
    }

    #[inline]
    fn slot(hash: u64) -> usize {
        (hash >> 32) as usize % SLOTS
    }

    #[inline]
    fn find(&self, hash: u64) -> Option<usize> {
        let mut slot = HotKeys::slot(hash);
        loop {
            match self.index[slot] {
                NONE => return None,
                at if self.counters[usize::from(at)].hash == hash => return Some(at.into()),
                _ => slot = (slot + 1) % SLOTS,
            }
        }
    }

    fn insert(&mut self, hash: u64, at: usize) {
        let mut slot = HotKeys::slot(hash);
        while self.index[slot] != NONE {
            slot = (slot + 1) % SLOTS;
        }
        self.index[slot] = at as u16;
    }

    /// Takes a hash out of the index. What stands behind it moves up, so that no gap ends a search
    /// too early.
    fn remove(&mut self, hash: u64) {
        let mut gap = HotKeys::slot(hash);
        loop {
            match self.index[gap] {
                NONE => return,
                at if self.counters[usize::from(at)].hash == hash => break,
                _ => gap = (gap + 1) % SLOTS,
            }
        }
        let mut slot = gap;
        loop {
            slot = (slot + 1) % SLOTS;
            let at = self.index[slot];
            if at == NONE {
                break;
            }
            let home = HotKeys::slot(self.counters[usize::from(at)].hash);
            // It may move into the gap unless its home lies behind the gap.
            if (slot + SLOTS - home) % SLOTS >= (slot + SLOTS - gap) % SLOTS {
                self.index[gap] = at;
                gap = slot;
            }
        }
        self.index[gap] = NONE;
    }

    /// Gives a key the least counter, or a fresh one. Those of hot keys are not to be had, or a hot
    /// key would be forgotten whenever a second begins; all of them may be hot.
    fn take_over(&mut self, hash: u64) -> Option<usize> {
        if self.counters.len() < COUNTERS {
            let at = self.counters.len();
            self.counters.push(Counter {
                hash,
                count: 1,
                ..Counter::default()
            });
            self.insert(hash, at);
            self.least = 0;
            return Some(at);
        }
        if self.hot_keys == COUNTERS {
            return None;
        }
        let at = self.least_counter();
        self.remove(self.counters[at].hash);
        let counter = &mut self.counters[at];
        let mut key = std::mem::take(&mut counter.key);
        key.clear();
        *counter = Counter {
            hash,
            count: counter.count.saturating_add(1),
            doubt: counter.count,
            key,
            ..Counter::default()
        };
        self.insert(hash, at);
        Some(at)
    }

    /// A counter of a key that is not hot, of which none has less; there must be one. Each round over all
    /// of them without finding one raises the least count, which takes that many reads to happen again: a
    /// few steps per read.
    fn least_counter(&mut self) -> usize {
        loop {
            for _ in 0..COUNTERS {
                let at = self.hand;
                self.hand = (self.hand + 1) % COUNTERS;
                let counter = &self.counters[at];
                if counter.hot == 0 && counter.count <= self.least {
                    return at;
                }
            }
            let cold = self.counters.iter().filter(|counter| counter.hot == 0);
            self.least = cold.map(|counter| counter.count).min().unwrap_or(0);
        }
    }

    /// A second is over: who is hot, who no longer, whose reads need more servers.
    fn close_window(&mut self, now: u64) {
        let elapsed = now + WINDOW_MS - self.window_ends;
        let seconds = elapsed as f64 / 1000.0;
        let least = f64::from(self.settings.reads_per_second) * seconds;
        let share = self.share() * f64::from(self.reads);
        // What a server gets when all get the same.
        let sent = self.reads.saturating_sub(self.hot_reads) + self.forwarded;
        let fair = f64::from(sent) / self.servers as f64;
        let most = self.spread_max();
        // Hot for its server, of whose share this is a part.
        let warm = self.share() * self.servers as f64;
        self.hot_keys = 0;
        self.top.clear();
        for counter in &mut self.counters {
            let sure = f64::from(counter.count - counter.doubt);
            if sure > least && sure > share {
                counter.hot = COOLING;
            } else {
                counter.hot = counter.hot.saturating_sub(1);
            }
            if counter.hot == 0 {
                counter.spread = 0;
            } else {
                self.hot_keys += 1;
                let wanted = f64::from(counter.forwarded) / fair.max(1.0);
                counter.spread = if wanted > warm {
                    (wanted.ceil() as usize).max(SPREAD_MIN).min(most) as u8
                } else if counter.spread > 1 && wanted * 4.0 > warm {
                    counter.spread
                } else {
                    1
                };
            }
            let reads = (sure / seconds) as u32;
            if !counter.key.is_empty() && reads > 0 {
                self.top.push(Top {
                    key: counter.key.as_slice().into(),
                    reads,
                    hot: counter.hot > 0,
                    spread: usize::from(counter.spread.max(1)),
                });
            }
            // Keys keep their counters into the next second, and begin it with nothing.
            (counter.count, counter.doubt, counter.forwarded) = (0, 0, 0);
        }
        self.top.sort_by_key(|top| std::cmp::Reverse(top.reads));
        self.least = 0;
        (self.reads, self.hot_reads, self.forwarded) = (0, 0, 0);
        self.window_ends = now + WINDOW_MS;
    }
}

/// The less busy of two that chance proposes out of `count`, which is at least 1.
#[inline]
pub fn two_choices(random: u64, count: usize, load: impl Fn(usize) -> u64) -> usize {
    if count <= 1 {
        return 0;
    }
    let first = (random >> 32) as usize % count;
    let second = (first + 1 + (random as u32) as usize % (count - 1)) % count;
    if load(second) < load(first) {
        second
    } else {
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn settings() -> Settings {
        Settings::default()
    }

    fn key(n: u64) -> Vec<u8> {
        format!("key:{n}").into_bytes()
    }

    /// A stream in which key 0 has so many of 100 reads, and the others are drawn from a million.
    fn stream(percent: u64) -> impl Iterator<Item = Vec<u8>> {
        let mut state = 88_172_645_463_325_252_u64;
        std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let n = if state % 100 < percent {
                0
            } else {
                1 + state / 100 % 1_000_000
            };
            key(n)
        })
    }

    #[test]
    fn a_key_that_everybody_wants_is_hot_within_the_second() {
        let mut hot = HotKeys::new(&settings(), 5, 7, 0);
        let mut found = None;
        for (n, key) in stream(20).take(20_000).enumerate() {
            let heat = hot.read(&key, n as u64 / 20);
            if key == b"key:0" {
                if heat != Heat::Cold && found.is_none() {
                    found = Some(n);
                }
            } else {
                assert_eq!(heat, Heat::Cold);
            }
        }
        assert!(found.unwrap() < 6500, "{found:?}");
        assert!(hot.any());
        hot.read(b"x", 1001);
        let top = hot.top().next().unwrap();
        assert_eq!(*top.key, b"key:0"[..]);
        assert!(top.hot && top.reads > 3000, "{top:?}");
    }

    #[test]
    fn nothing_is_hot_where_all_are_alike_or_few() {
        let mut hot = HotKeys::new(&settings(), 5, 7, 0);
        for (n, key) in stream(0).take(100_000).enumerate() {
            assert_eq!(hot.read(&key, n as u64 / 50), Heat::Cold);
        }
        // All reads are of one key, but there are no thousand in a second.
        let mut hot = HotKeys::new(&settings(), 5, 7, 0);
        for n in 0..5000 {
            assert_eq!(hot.read(b"a", n * 2), Heat::Cold);
        }
        assert!(!hot.any());
    }

    #[test]
    fn a_hot_key_is_not_forgotten_when_a_second_begins() {
        let mut hot = HotKeys::new(&settings(), 5, 7, 0);
        let mut cold = 0;
        for (n, key) in stream(5).take(200_000).enumerate() {
            // 50,000 reads a second, of which 2,500 are of one key.
            let heat = hot.read(&key, n as u64 / 50);
            cold += u32::from(n > 50_000 && key == b"key:0" && heat == Heat::Cold);
        }
        assert_eq!(cold, 0);
    }

    #[test]
    fn all_counters_may_be_hot() {
        let settings = Settings {
            reads_per_second: 1,
            share: 0.000_001,
            ..settings()
        };
        let mut hot = HotKeys::new(&settings, 1, 7, 0);
        for n in 0..100_000 {
            hot.read(&key(n % COUNTERS as u64), 500);
        }
        assert_eq!(hot.hot_keys, COUNTERS);
        assert_eq!(hot.read(b"another", 501), Heat::Cold);
    }

    #[test]
    fn a_key_cools_down() {
        let mut hot = HotKeys::new(&settings(), 2, 7, 0);
        for n in 0..2000 {
            hot.read(b"a", n / 4);
        }
        assert!(hot.any());
        for second in 1..6 {
            hot.read(b"b", second * 1000 + 100);
        }
        assert!(!hot.any());
        assert_eq!(hot.spread(b"a"), 1);
    }

    #[test]
    fn reads_are_spread_when_the_cache_does_not_answer_them() {
        let mut hot = HotKeys::new(&settings(), 8, 7, 0);
        let mut spread = Vec::new();
        for second in 0..6 {
            for n in 0..10_000 {
                let key = if n % 2 == 0 { key(0) } else { key(1 + n) };
                if let Heat::Hot(heat) = hot.read(&key, second * 1000 + n / 11) {
                    hot.forwarded(heat);
                }
            }
            spread.push(hot.spread(b"key:0"));
        }
        // Half of all reads are four servers' share.
        assert_eq!(spread[0], 1);
        assert!(spread[2..].iter().all(|&spread| spread == 4), "{spread:?}");

        // With the cache answering nearly all it goes back to its own server.
        for second in 6..10 {
            for n in 0..10_000 {
                let key = if n % 2 == 0 { key(0) } else { key(1 + n) };
                hot.read(&key, second * 1000 + n / 11);
            }
        }
        assert_eq!(hot.spread(b"key:0"), 1);
    }

    #[test]
    fn of_two_the_less_busy() {
        let load = [5, 1, 9, 0];
        let mut chosen = [0; 4];
        let mut random = 1_u64;
        for _ in 0..1000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            chosen[two_choices(random, 4, |at| load[at])] += 1;
        }
        assert_eq!(chosen[2], 0, "the busiest never wins");
        assert!(chosen[3] > chosen[1] && chosen[1] > chosen[0]);
        assert_eq!(two_choices(3, 1, |_| 0), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against exact counts: never more than was asked, and every key that has more than a
        /// 256th of all has a counter, unless chance has kept it out so often as it never does.
        #[test]
        fn counts_are_sound(keys in prop::collection::vec(0..2000_u64, 1..4000), skew in 1..6_u32) {
            let mut hot = HotKeys::new(&settings(), 3, 99, 0);
            let mut exact: HashMap<Vec<u8>, u32> = HashMap::new();
            for n in &keys {
                let key = key(n.pow(skew) / 2000_u64.pow(skew - 1));
                hot.read(&key, 0);
                *exact.entry(key).or_default() += 1;
            }
            prop_assert!(hot.counters.len() <= COUNTERS);
            let used = hot.index.iter().filter(|slot| **slot != NONE).count();
            prop_assert_eq!(used, hot.counters.len());
            for (key, &count) in &exact {
                match hot.find(hot.hash(key)) {
                    Some(at) => {
                        let counter = &hot.counters[at];
                        prop_assert!(counter.count - counter.doubt <= count);
                    }
                    None => prop_assert!(count as usize <= keys.len() / COUNTERS + 60 * ADMITTED as usize),
                }
            }
        }
    }
}
