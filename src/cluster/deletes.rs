//! Deletes for a server that is down, remembered until it comes back.
//!
//! A key is remembered once. When there is no room for another, the oldest is forgotten and
//! counted: the server may then keep an item that somebody has deleted, unless it is emptied. Keys that have been taken out
//! to be deleted are [held](Deletes::holds) until it is known what has come of it.
#![forbid(unsafe_code)]

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// Bytes of keys, whatever the number: half of what as many keys of the longest kind would take.
const BYTES_PER_KEY: usize = 128;

/// A bounded list of keys, oldest first.
#[derive(Debug)]
pub struct Deletes {
    keys: VecDeque<Arc<[u8]>>,
    known: HashSet<Arc<[u8]>>,
    under_way: HashSet<Arc<[u8]>>,
    bytes: usize,
    most: usize,
    forgotten: u64,
}

impl Deletes {
    /// Room for `most` keys.
    pub fn new(most: usize) -> Deletes {
        Deletes {
            keys: VecDeque::new(),
            known: HashSet::new(),
            under_way: HashSet::new(),
            bytes: 0,
            most: most.max(1),
            forgotten: 0,
        }
    }

    /// Room for another number of keys. Those that are there stay until the next is remembered.
    pub fn set_most(&mut self, most: usize) {
        self.most = most.max(1);
    }

    /// Remembers a key. Whether nothing had to be forgotten for it.
    pub fn push(&mut self, key: &[u8]) -> bool {
        if self.known.contains(key) {
            return true;
        }
        let mut kept_all = true;
        while !self.keys.is_empty()
            && (self.keys.len() >= self.most
                || self.bytes + key.len() > self.most.saturating_mul(BYTES_PER_KEY))
        {
            self.pop();
            self.forgotten += 1;
            kept_all = false;
        }
        let key: Arc<[u8]> = key.into();
        self.bytes += key.len();
        self.known.insert(key.clone());
        self.keys.push_back(key);
        kept_all
    }

    /// Takes out up to `most` keys to be deleted, oldest first; none while others are under way.
    /// [`settle`](Deletes::settle) has to follow.
    pub fn take(&mut self, most: usize) -> Vec<Arc<[u8]>> {
        if !self.under_way.is_empty() {
            return Vec::new();
        }
        let keys: Vec<_> = std::iter::from_fn(|| self.pop()).take(most).collect();
        self.under_way.extend(keys.iter().cloned());
        keys
    }

    /// The keys that were taken out have been deleted, or have to be remembered again; how many.
    pub fn settle(&mut self, good: bool) -> usize {
        let keys = std::mem::take(&mut self.under_way);
        if !good {
            for key in &keys {
                self.push(key);
            }
        }
        keys.len()
    }

    /// Whether a key is to be deleted, or is being deleted.
    pub fn holds(&self, key: &[u8]) -> bool {
        self.known.contains(key) || self.under_way.contains(key)
    }

    /// Whether there is nothing to delete, and nothing under way.
    pub fn is_settled(&self) -> bool {
        self.keys.is_empty() && self.under_way.is_empty()
    }

    fn pop(&mut self) -> Option<Arc<[u8]>> {
        let key = self.keys.pop_front()?;
        self.known.remove(&key);
        self.bytes -= key.len();
        if self.keys.is_empty() {
            // What a long outage took is given back.
            self.keys = VecDeque::new();
            self.known = HashSet::new();
        }
        Some(key)
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Bytes of the keys that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keys that were dropped for want of room, ever.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_come_in_order_and_once() {
        let mut deletes = Deletes::new(10);
        for key in ["a", "b", "a", "c"] {
            assert!(deletes.push(key.as_bytes()));
        }
        let keys: Vec<_> = std::iter::from_fn(|| deletes.pop()).collect();
        assert_eq!(keys, [b"a"[..].into(), b"b"[..].into(), b"c"[..].into()]);
        assert!(deletes.is_empty());
        assert_eq!(deletes.bytes(), 0);
    }

    #[test]
    fn what_is_under_way_is_held_until_it_is_settled() {
        let mut deletes = Deletes::new(10);
        for key in ["a", "b", "c"] {
            deletes.push(key.as_bytes());
        }
        assert_eq!(deletes.take(2).len(), 2);
        assert!(deletes.take(2).is_empty(), "one after the other");
        assert!(deletes.holds(b"a") && deletes.holds(b"c") && !deletes.holds(b"d"));
        // Written elsewhere again meanwhile.
        deletes.push(b"a");
        assert_eq!(deletes.settle(true), 2);
        assert!(deletes.holds(b"a") && !deletes.holds(b"b"));
        assert_eq!(deletes.take(9).len(), 2);
        assert_eq!(deletes.settle(false), 2);
        assert_eq!(deletes.len(), 2);
        assert_eq!(deletes.take(9).len(), 2);
        assert!(!deletes.is_settled());
        deletes.settle(true);
        assert!(deletes.is_settled() && !deletes.holds(b"a"));
    }

    #[test]
    fn the_oldest_are_forgotten_and_counted() {
        let mut deletes = Deletes::new(2);
        assert!(deletes.push(b"a"));
        assert!(deletes.push(b"b"));
        assert!(!deletes.push(b"c"));
        assert_eq!(deletes.forgotten(), 1);
        assert_eq!(deletes.pop().as_deref(), Some(&b"b"[..]));
        // It is unknown now, so it is remembered again.
        assert!(deletes.push(b"b"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn never_more_than_it_may_hold(
            most in 1..20_usize,
            keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..250), 0..200),
        ) {
            let mut deletes = Deletes::new(most);
            let mut last = None;
            for key in &keys {
                deletes.push(key);
                last = Some(key);
                prop_assert!(deletes.len() <= most);
                prop_assert!(deletes.bytes() <= (most * BYTES_PER_KEY).max(250));
                prop_assert_eq!(deletes.keys.len(), deletes.known.len());
            }
            let left: Vec<_> = std::iter::from_fn(|| deletes.pop()).collect();
            if let Some(last) = last {
                prop_assert!(left.iter().any(|key| **key == last[..]), "the newest is kept");
            }
        }
    }
}
