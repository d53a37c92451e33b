#![forbid(unsafe_code)]
//! How many clients are connected, and whether more are let in.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Kept by the acceptor and the workers, read by `stats`.
#[derive(Debug)]
pub struct Admission {
    /// Client connections open now, over all workers.
    open: AtomicUsize,
    accepting: AtomicBool,
    /// How often accepting has been suspended (`listen_disabled_num`).
    suspensions: AtomicU64,
    /// Microseconds spent suspended (`time_in_listen_disabled_us`).
    suspended_us: AtomicU64,
}

impl Default for Admission {
    fn default() -> Admission {
        Admission {
            open: AtomicUsize::new(0),
            accepting: AtomicBool::new(true),
            suspensions: AtomicU64::new(0),
            suspended_us: AtomicU64::new(0),
        }
    }
}

impl Admission {
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// One more connection, unless `limit` are open already.
    pub fn admit(&self, limit: usize) -> bool {
        self.open
            .fetch_update(Relaxed, Relaxed, |open| (open < limit).then_some(open + 1))
            .is_ok()
    }

    /// A connection has been closed.
    pub fn leave(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    pub fn accepting(&self) -> bool {
        self.accepting.load(Relaxed)
    }

    /// Accepting stops until [`resume`](Admission::resume).
    pub fn suspend(&self) {
        self.accepting.store(false, Relaxed);
        self.suspensions.fetch_add(1, Relaxed);
    }

    /// Accepting goes on, after so many microseconds.
    pub fn resume(&self, suspended_us: u64) {
        self.suspended_us.fetch_add(suspended_us, Relaxed);
        self.accepting.store(true, Relaxed);
    }

    pub fn suspensions(&self) -> u64 {
        self.suspensions.load(Relaxed)
    }

    pub fn suspended_us(&self) -> u64 {
        self.suspended_us.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_are_admitted() {
        let admission = Admission::default();
        assert!(admission.admit(2));
        assert!(admission.admit(2));
        assert!(!admission.admit(2));
        admission.leave();
        assert!(admission.admit(2));
        assert_eq!(admission.open(), 2);
    }
}
