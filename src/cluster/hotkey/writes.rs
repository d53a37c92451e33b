//! Writes seen by any worker, so that none gives out a cached answer from before one.
//!
//! A table of stamps by key hash, shared by all workers. A read remembers the stamp it was sent
//! under; what it brings back is good only while the stamp is the same. A write to a key that is hot
//! on some worker changes its stamp twice, when it is sent and when it is answered: whoever has seen
//! the answer to a write through this proxy reads nothing older through it.
//!
//! Keys that share a stamp drop each other's answers, which costs a read. Writes to keys that are
//! hot nowhere change nothing and contend with nobody.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

const STAMPS: usize = 4096;
/// Milliseconds: a key is announced again each second while it is hot.
const ANNOUNCED_MS: u64 = 3000;

#[derive(Debug, Default)]
struct Slot {
    /// Tenths of a second until which a key of this slot counts as hot.
    hot_until: AtomicU32,
    stamp: AtomicU32,
    /// Tenths of a second at which a key of this slot was last written while it was hot; 0 is never.
    written: AtomicU32,
}

/// The shared table: 48 KiB.
#[derive(Debug)]
pub struct Writes(Box<[Slot]>);

impl Default for Writes {
    fn default() -> Writes {
        Writes((0..STAMPS).map(|_| Slot::default()).collect())
    }
}

impl Writes {
    fn slot(&self, hash: u64) -> &Slot {
        &self.0[(hash >> 20) as usize % STAMPS]
    }

    /// Says that a key is hot; to be said again each second. Must come before the first
    /// [`Writes::stamp`] of the key.
    pub fn announce(&self, hash: u64, now: u64) {
        let until = ((now + ANNOUNCED_MS) / 100) as u32;
        self.slot(hash).hot_until.fetch_max(until, Ordering::SeqCst);
    }

    /// What is kept of a hash until the write is answered, for
    /// [`written_again`](Writes::written_again); never 0.
    pub fn note(hash: u64) -> u16 {
        ((hash >> 20) as usize % STAMPS) as u16 + 1
    }

    /// A write has been answered.
    #[inline]
    pub fn written_again(&self, note: u16, now: u64) {
        self.written((u64::from(note) - 1) << 20, now);
    }

    /// What a read is sent under.
    pub fn stamp(&self, hash: u64) -> u32 {
        self.slot(hash).stamp.load(Ordering::SeqCst)
    }

    /// A write is sent, or has been answered. `hash` is computed only when it matters to anybody.
    pub fn written(&self, hash: u64, now: u64) {
        let slot = self.slot(hash);
        if u64::from(slot.hot_until.load(Ordering::SeqCst)) * 100 + 100 > now {
            slot.stamp.fetch_add(1, Ordering::SeqCst);
            let tenths = ((now / 100) as u32).max(1);
            slot.written.fetch_max(tenths, Ordering::SeqCst);
        }
    }

    /// Whether a key has been written within so many milliseconds, as far as it was hot.
    pub fn written_within(&self, hash: u64, milliseconds: u64, now: u64) -> bool {
        let written = u64::from(self.slot(hash).written.load(Ordering::SeqCst));
        written > 0 && now < written * 100 + 100 + milliseconds
    }

    /// Everything is written, or has been: `flush_all`.
    pub fn all_written(&self, now: u64) {
        for slot in 0..STAMPS as u64 {
            self.written(slot << 20, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_to_hot_keys_count() {
        let writes = Writes::default();
        let hash = 0x1234_5678_9abc_def0;
        let before = writes.stamp(hash);
        writes.written(hash, 5000);
        assert_eq!(writes.stamp(hash), before);
        writes.announce(hash, 5000);
        writes.written(hash, 5000);
        assert_ne!(writes.stamp(hash), before);
        assert!(writes.written_within(hash, 1000, 5900));
        assert!(!writes.written_within(hash, 1000, 6200));
        assert!(!writes.written_within(hash ^ (1 << 25), 1000, 5000));
        let before = writes.stamp(hash);
        writes.written(hash ^ (1 << 25), 5000);
        assert_eq!(writes.stamp(hash), before, "another key");
        writes.all_written(5000);
        assert_ne!(writes.stamp(hash), before);
        let before = writes.stamp(hash);
        writes.written(hash, 9000);
        assert_eq!(writes.stamp(hash), before, "it is hot no longer");
    }
}
