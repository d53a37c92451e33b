//! Copies of hot keys on servers that are not their own, as far as this worker has made them.
//!
//! A server is only asked for a copy that it has confirmed to this worker: what else it may have under
//! that key is from another time, when it owned the key or stood in for its owner. Copies live for a
//! few seconds and are made anew when half of that is over.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::COUNTERS;

/// Copies known at a time: as many as all keys that can be hot, on as many servers as they can be
/// spread over.
const COPIES_MAX: usize = COUNTERS * 8;

/// Milliseconds after which a copy that has been sent and not confirmed is sent again.
const RETRY_MS: u64 = 1000;

#[derive(Debug, Default)]
struct Copy {
    /// It is there until then.
    until: u64,
    /// When it was last sent.
    sent: Option<u64>,
    /// What its owner called the value.
    cas: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Copies {
    life_ms: u64,
    of: HashMap<(u64, usize), Copy>,
}

impl Copies {
    /// For copies that live so long.
    pub fn new(life_ms: u64) -> Copies {
        Copies {
            life_ms,
            of: HashMap::new(),
        }
    }

    /// Whether a server has a copy.
    pub fn has(&self, hash: u64, server: usize, now: u64) -> bool {
        let copy = self.of.get(&(hash, server));
        copy.is_some_and(|copy| copy.until > now)
    }

    /// Whether a server is to be sent a copy, because it has none or not for long; if so it is noted
    /// that it is.
    pub fn begin(&mut self, hash: u64, server: usize, now: u64) -> bool {
        if self.of.len() >= COPIES_MAX && !self.of.contains_key(&(hash, server)) {
            return false;
        }
        let copy = self.of.entry((hash, server)).or_default();
        let fresh = copy.until > now + self.life_ms / 2;
        let waits = copy.sent.is_some_and(|sent| now < sent + RETRY_MS);
        if fresh || waits {
            return false;
        }
        copy.sent = Some(now);
        true
    }

    /// A server has confirmed a copy of what its owner said at `read`, with this `cas`.
    pub fn made(&mut self, hash: u64, server: usize, read: u64, cas: Option<u64>) {
        if let Some(copy) = self.of.get_mut(&(hash, server)) {
            (copy.until, copy.sent, copy.cas) = (read + self.life_ms, None, cas);
        }
    }

    /// What the owner calls the value that a server has a copy of.
    pub fn cas(&self, hash: u64, server: usize) -> Option<u64> {
        self.of.get(&(hash, server))?.cas
    }

    /// A server has turned out not to have a copy.
    pub fn lost(&mut self, hash: u64, server: usize) {
        self.of.remove(&(hash, server));
    }

    /// Forgets what is over. To be called each second.
    pub fn tick(&mut self, now: u64) {
        let waits = |sent: u64| now < sent + RETRY_MS;
        self.of
            .retain(|_, copy| copy.until > now || copy.sent.is_some_and(waits));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_confirmed_is_there() {
        let mut copies = Copies::new(2000);
        assert!(!copies.has(1, 3, 0));
        assert!(copies.begin(1, 3, 0));
        assert!(!copies.begin(1, 3, 10), "it is on its way");
        assert!(!copies.has(1, 3, 10));
        copies.made(1, 3, 5, Some(77));
        assert_eq!((copies.cas(1, 3), copies.cas(1, 4)), (Some(77), None));
        assert!(copies.has(1, 3, 2004) && !copies.has(1, 3, 2005) && !copies.has(1, 4, 10));
        assert!(!copies.begin(1, 3, 900), "young");
        assert!(copies.begin(1, 3, 1100), "half its life is over");
        assert!(copies.has(1, 3, 1100), "the old one is there meanwhile");
        copies.lost(1, 3);
        copies.made(1, 3, 1100, None);
        assert!(!copies.has(1, 3, 1200), "confirmed too late");
    }

    #[test]
    fn bounded_and_forgotten() {
        let mut copies = Copies::new(2000);
        for hash in 0..10_000 {
            copies.begin(hash, 0, 0);
            copies.made(hash, 0, 0, None);
        }
        assert_eq!(copies.of.len(), COPIES_MAX);
        copies.tick(1999);
        assert_eq!(copies.of.len(), COPIES_MAX);
        copies.tick(2000);
        assert!(copies.of.is_empty());
        // One that is never confirmed does not stay.
        copies.begin(1, 0, 3000);
        copies.tick(3500);
        assert!(!copies.begin(1, 0, 3500));
        copies.tick(4000);
        assert!(copies.of.is_empty());
    }
}
