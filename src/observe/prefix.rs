#![forbid(unsafe_code)]
//! Counts per key prefix, for `stats detail`. Off unless asked for; then one lock for all threads,
//! as a tool for looking around and not for always.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

/// Prefixes beyond this many are not counted.
pub const PREFIXES_MAX: usize = 1 << 16;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PrefixCounts {
    pub gets: u64,
    pub hits: u64,
    pub sets: u64,
    pub deletes: u64,
}

#[derive(Debug)]
pub struct Prefixes {
    /// Ends a prefix; keys without it are not counted.
    delimiter: u8,
    counts: Mutex<HashMap<Box<[u8]>, PrefixCounts>>,
}

impl Prefixes {
    pub fn new(delimiter: u8) -> Prefixes {
        Prefixes {
            delimiter,
            counts: Mutex::default(),
        }
    }

    pub fn delimiter(&self) -> u8 {
        self.delimiter
    }

    #[cold]
    pub fn get(&self, key: &[u8], hit: bool) {
        self.count(key, |counts| {
            counts.gets += 1;
            counts.hits += u64::from(hit);
        });
    }

    #[cold]
    pub fn set(&self, key: &[u8]) {
        self.count(key, |counts| counts.sets += 1);
    }

    #[cold]
    pub fn delete(&self, key: &[u8]) {
        self.count(key, |counts| counts.deletes += 1);
    }

    pub fn clear(&self) {
        *self.counts() = HashMap::new();
    }

    /// Shows every prefix and its counts, in no order.
    pub fn each(&self, mut show: impl FnMut(&[u8], &PrefixCounts)) {
        for (prefix, counts) in self.counts().iter() {
            show(prefix, counts);
        }
    }

    fn count(&self, key: &[u8], add: impl FnOnce(&mut PrefixCounts)) {
        let Some(end) = memchr::memchr(self.delimiter, key) else {
            return;
        };
        let prefix = &key[..end];
        // memcached's keys end at a NUL here, and a delimiter behind one does not count.
        if prefix.contains(&0) {
            return;
        }
        let mut all = self.counts();
        if let Some(counts) = all.get_mut(prefix) {
            add(counts);
        } else if all.len() < PREFIXES_MAX {
            add(all.entry(prefix.into()).or_default());
        }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, PrefixCounts>> {
        self.counts
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(prefixes: &Prefixes) -> Vec<(Vec<u8>, PrefixCounts)> {
        let mut all = Vec::new();
        prefixes.each(|prefix, counts| all.push((prefix.to_vec(), *counts)));
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    #[test]
    fn counts_go_to_what_stands_before_the_first_delimiter() {
        let prefixes = Prefixes::new(b':');
        prefixes.get(b"foo:1", true);
        prefixes.get(b"foo:bar:2", false);
        prefixes.set(b":empty");
        prefixes.delete(b"foo:1");
        prefixes.set(b"none");
        prefixes.set(b"a\0b:1");
        let foo = PrefixCounts {
            gets: 2,
            hits: 1,
            sets: 0,
            deletes: 1,
        };
        let empty = PrefixCounts {
            sets: 1,
            ..PrefixCounts::default()
        };
        assert_eq!(
            all(&prefixes),
            [(b"".to_vec(), empty), (b"foo".to_vec(), foo)]
        );
        prefixes.clear();
        assert_eq!(all(&prefixes), []);
    }

    #[test]
    fn prefixes_are_bounded() {
        let prefixes = Prefixes::new(b'/');
        for n in 0..PREFIXES_MAX + 10 {
            prefixes.set(format!("{n}/x").as_bytes());
        }
        prefixes.set(b"0/again");
        let all = all(&prefixes);
        assert_eq!(all.len(), PREFIXES_MAX);
        assert_eq!(all[0].1.sets, 2, "known prefixes still count");
    }
}
