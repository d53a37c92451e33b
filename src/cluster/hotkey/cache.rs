//! Answers given again for a tenth of a second.
//!
//! One worker's, for keys that are hot. An answer is dropped when its time is over, when any worker
//! has seen a write to its key ([`super::writes`]), or to make room: the oldest goes first.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::writes::Writes;
use crate::settings::proxy::HotKeys as Settings;

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Miss,
    Hit {
        flags: u32,
        /// Where it was asked for.
        cas: Option<u64>,
        /// The value without its line end. Shared: a slow client does not keep it from leaving the
        /// cache.
        value: Arc<[u8]>,
        /// The server was asked in meta, which tells of a stale value that it is: it is not.
        known_fresh: bool,
    },
}

#[derive(Debug)]
struct Entry {
    /// Another pool may have another value under the same key.
    pool: usize,
    key: Box<[u8]>,
    answer: Answer,
    until: u64,
    stamp: u32,
    /// Tells an entry from an older one of the same key in `order`.
    serial: u64,
}

/// A hash that is one already.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// See the module.
#[derive(Debug)]
pub struct Cache {
    writes: Arc<Writes>,
    life_ms: u64,
    value_max: usize,
    entries_max: usize,
    entries: HashMap<u64, Entry, BuildHasherDefault<AsIs>>,
    /// Hashes and serials, oldest first; some are of entries that are gone.
    order: VecDeque<(u64, u64)>,
    serial: u64,
    bytes: usize,
}

impl Cache {
    pub fn new(settings: &Settings, writes: Arc<Writes>) -> Cache {
        Cache {
            writes,
            life_ms: settings.cache_ms,
            value_max: settings.cache_value_bytes,
            entries_max: settings.cache_entries,
            entries: HashMap::default(),
            order: VecDeque::new(),
            serial: 0,
            bytes: 0,
        }
    }

    /// The answer for a key of a pool, if there is a good one. `hash` is [`super::Hot::hash`].
    pub fn get(&mut self, hash: u64, pool: usize, key: &[u8], now: u64) -> Option<&Answer> {
        let entry = self.entries.get(&hash)?;
        if entry.until <= now || entry.stamp != self.writes.stamp(hash) {
            self.remove(hash);
            return None;
        }
        let entry = &self.entries[&hash];
        (entry.pool == pool && *entry.key == *key).then_some(&entry.answer)
    }

    /// Whether the answer for a key comes to its end, so that one who reads it now had better ask for
    /// another: the others have it meanwhile.
    pub fn is_aging(&self, hash: u64, now: u64) -> bool {
        let entry = self.entries.get(&hash);
        entry.is_some_and(|entry| entry.until <= now + self.life_ms / 4)
    }

    /// Keeps an answer. `stamp` is [`Writes::stamp`] from before its request was sent.
    pub fn put(
        &mut self,
        hash: u64,
        (pool, key): (usize, &[u8]),
        answer: Answer,
        stamp: u32,
        now: u64,
    ) {
        let size = match &answer {
            Answer::Miss => 0,
            Answer::Hit { value, .. } => value.len(),
        };
        if self.life_ms == 0 || self.entries_max == 0 || size > self.value_max {
            return;
        }
        if stamp != self.writes.stamp(hash) {
            return;
        }
        self.remove(hash);
        while self.entries.len() >= self.entries_max || self.order.len() >= 2 * self.entries_max {
            let Some((oldest, serial)) = self.order.pop_front() else {
                break;
            };
            if self
                .entries
                .get(&oldest)
                .is_some_and(|entry| entry.serial == serial)
            {
                self.remove(oldest);
            }
        }
        self.serial += 1;
        self.bytes += key.len() + size;
        self.order.push_back((hash, self.serial));
        self.entries.insert(
            hash,
            Entry {
                pool,
                key: key.into(),
                answer,
                until: now + self.life_ms,
                stamp,
                serial: self.serial,
            },
        );
    }

    /// Drops what has had its time. To be called each second, so that keys that are hot no longer
    /// leave nothing behind.
    pub fn tick(&mut self, now: u64) {
        while let Some(&(hash, serial)) = self.order.front() {
            match self.entries.get(&hash) {
                Some(entry) if entry.serial == serial && entry.until > now => break,
                Some(entry) if entry.serial == serial => self.remove(hash),
                _ => {}
            }
            self.order.pop_front();
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn remove(&mut self, hash: u64) {
        if let Some(entry) = self.entries.remove(&hash) {
            let value = match entry.answer {
                Answer::Miss => 0,
                Answer::Hit { value, .. } => value.len(),
            };
            self.bytes -= entry.key.len() + value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cache(settings: &Settings) -> (Cache, Arc<Writes>) {
        let writes = Arc::new(Writes::default());
        (Cache::new(settings, writes.clone()), writes)
    }

    fn hit(value: &[u8]) -> Answer {
        Answer::Hit {
            flags: 3,
            cas: None,
            value: value.into(),
            known_fresh: false,
        }
    }

    #[test]
    fn an_answer_lives_for_a_tenth_of_a_second() {
        let (mut cache, writes) = cache(&Settings::default());
        cache.put(1, (0, b"a"), hit(b"v"), writes.stamp(1), 1000);
        cache.put(2, (0, b"b"), Answer::Miss, writes.stamp(2), 1000);
        assert_eq!(cache.get(1, 0, b"a", 1099), Some(&hit(b"v")));
        assert_eq!(cache.get(2, 0, b"b", 1099), Some(&Answer::Miss));
        assert_eq!(cache.get(1, 0, b"z", 1099), None, "same hash, other key");
        assert_eq!(cache.get(1, 1, b"a", 1099), None, "same key, other pool");
        assert!(!cache.is_aging(1, 1074) && cache.is_aging(1, 1075) && !cache.is_aging(3, 1075));
        assert_eq!(cache.get(1, 0, b"a", 1100), None);
        cache.tick(1100);
        assert!(cache.is_empty());
        assert_eq!((cache.bytes(), cache.order.len()), (0, 0));
    }

    #[test]
    fn a_write_ends_it_and_what_was_read_before_is_not_kept() {
        let (mut cache, writes) = cache(&Settings::default());
        writes.announce(1, 1000);
        let stamp = writes.stamp(1);
        cache.put(1, (0, b"a"), hit(b"old"), stamp, 1000);
        writes.written(1, 1001);
        assert_eq!(cache.get(1, 0, b"a", 1002), None);
        // This read was on its way when the write passed.
        cache.put(1, (0, b"a"), hit(b"old"), stamp, 1003);
        assert_eq!(cache.get(1, 0, b"a", 1004), None);
        cache.put(1, (0, b"a"), hit(b"new"), writes.stamp(1), 1005);
        assert_eq!(cache.get(1, 0, b"a", 1006), Some(&hit(b"new")));
    }

    #[test]
    fn large_values_are_not_kept() {
        let (mut cache, writes) = cache(&Settings::default());
        cache.put(1, (0, b"a"), hit(&[0; 65_536]), writes.stamp(1), 0);
        cache.put(2, (0, b"b"), hit(&[0; 65_537]), writes.stamp(2), 0);
        assert!(cache.get(1, 0, b"a", 1).is_some());
        assert!(cache.get(2, 0, b"b", 1).is_none());
    }

    proptest! {
        #[test]
        fn bounded_whatever_comes(
            puts in prop::collection::vec((0..40_u64, 0..200_usize, 0..30_u64), 1..300),
        ) {
            let settings = Settings { cache_entries: 8, cache_value_bytes: 100, ..Settings::default() };
            let (mut cache, writes) = cache(&settings);
            let mut now = 0;
            for (hash, size, wait) in puts {
                now += wait;
                cache.put(hash, (0, &hash.to_le_bytes()), hit(&vec![1; size]), writes.stamp(hash), now);
                if hash % 5 == 0 {
                    cache.tick(now);
                }
                prop_assert!(cache.len() <= 8 && cache.order.len() <= 16);
                prop_assert!(cache.bytes() <= 8 * 108);
                let bytes: usize = cache.entries.values().map(|entry| {
                    let Answer::Hit { value, .. } = &entry.answer else { return 0 };
                    value.len() + entry.key.len()
                }).sum();
                prop_assert_eq!(bytes, cache.bytes());
            }
        }
    }
}
