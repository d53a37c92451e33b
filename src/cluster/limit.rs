//! Rates and numbers that are bounded for the whole process: every worker takes from the same
//! bucket, without a lock.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::settings::proxy::Rate;

const NANOS: f64 = 1e9;

/// A bucket of tokens: as many as `burst` at first, and `per_second` more each second.
///
/// It is kept as one number, the time at which it would be full again. Taking a token moves that
/// ahead; it must not lie further ahead than all tokens take to come back.
#[derive(Debug)]
pub struct TokenBucket {
    full_at: AtomicU64,
    /// Nanoseconds for one token to come.
    step: u64,
    /// Nanoseconds for all of them.
    depth: u64,
}

impl TokenBucket {
    pub fn new(rate: Rate) -> TokenBucket {
        let step = (NANOS / rate.per_second).clamp(1.0, 1e15) as u64;
        TokenBucket {
            full_at: AtomicU64::new(0),
            step,
            depth: step.saturating_mul(u64::from(rate.burst.max(1))),
        }
    }

    /// Takes a token, if there is one. `now` is nanoseconds of a clock that never goes back.
    pub fn take(&self, now: u64) -> bool {
        let taken = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let next = full_at.max(now).saturating_add(self.step);
                (next - now <= self.depth).then_some(next)
            });
        taken.is_ok()
    }
}

/// So many at a time.
#[derive(Debug)]
pub struct InFlight {
    now: AtomicU64,
    most: u64,
}

impl InFlight {
    pub fn new(most: u32) -> InFlight {
        InFlight {
            now: AtomicU64::new(0),
            most: most.into(),
        }
    }

    /// Whether there is room for one more, which is then counted until [`InFlight::leave`].
    pub fn enter(&self) -> bool {
        self.now
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                (now < self.most).then_some(now + 1)
            })
            .is_ok()
    }

    pub fn is_empty(&self) -> bool {
        self.now.load(Ordering::Relaxed) == 0
    }

    pub fn leave(&self) {
        // One that was never counted must not make room for 2^64.
        let _ = self
            .now
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                now.checked_sub(1)
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn bucket(per_second: f64, burst: u32) -> TokenBucket {
        TokenBucket::new(Rate { per_second, burst })
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let bucket = bucket(10.0, 5);
        let taken = |now| {
            std::iter::repeat_with(|| bucket.take(now))
                .take_while(|&ok| ok)
                .count()
        };
        assert_eq!(taken(SECOND), 5);
        assert_eq!(taken(SECOND), 0);
        assert_eq!(taken(SECOND + SECOND / 10), 1);
        assert_eq!(taken(SECOND * 2), 5, "it fills up, and no further");
        assert_eq!(taken(SECOND * 100), 5);
    }

    #[test]
    fn so_many_at_a_time() {
        let most = InFlight::new(2);
        assert!(most.enter() && most.enter() && !most.enter());
        most.leave();
        assert!(most.enter() && !most.enter());
        most.leave();
        most.leave();
        most.leave();
        assert!(most.enter() && most.enter() && !most.enter());
    }

    proptest! {
        /// Over any stretch of time: no more than the burst and what came meanwhile.
        #[test]
        fn never_more_than_it_grants(
            per_second in 0.5..5000.0_f64,
            burst in 1..100_u32,
            waits in prop::collection::vec(0..50_000_000_u64, 1..300),
        ) {
            let bucket = bucket(per_second, burst);
            let mut now = SECOND;
            let mut taken = 0_u64;
            for wait in waits {
                now += wait;
                taken += u64::from(bucket.take(now));
                let earned = (now - SECOND) as f64 / bucket.step as f64;
                prop_assert!(taken as f64 <= f64::from(burst) + earned + 1.0);
            }
        }
    }
}
