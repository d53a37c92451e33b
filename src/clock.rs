#![forbid(unsafe_code)]
//! Seconds since start, and expiry times as clients write them.
//!
//! The server keeps time as memcached does: a `u32` of seconds on its own clock, which reads
//! [`START`] when the process begins, so that "60 seconds ago" is never negative. Everything in the
//! store is stamped with it; wall-clock time is only computed where a client sees it.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::Relaxed};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What the clock reads when the server starts.
pub const START: u32 = 62;

/// How much `uptime` lags behind the clock: memcached's shows 2 at start.
pub const UPTIME_LAG: u32 = 60;

/// Relative times end here (30 days); anything larger is a date.
pub const RELATIVE_MAX: i64 = 60 * 60 * 24 * 30;

/// Where they end with [`Clock::with_long_ttl`]: dates before the year 2001 lie behind any clock.
pub const LONG_RELATIVE_MAX: i64 = 999_999_999;

/// The coarse clock that every thread reads and one thread advances.
#[derive(Debug)]
pub struct Clock {
    now: AtomicU32,
    /// Unix time at which the clock would have read 0.
    epoch: AtomicI64,
    /// When it was made, and what it read then.
    started: Instant,
    first: u32,
    /// The longest relative time.
    relative_max: i64,
    /// Seconds by which `debugtime` has moved the clock.
    shift: AtomicI64,
    paused: AtomicBool,
}

impl Clock {
    pub fn new() -> Clock {
        Clock::reading(START)
    }

    /// Goes on with a clock that read 0 at `epoch`, a Unix time, and was last seen at `stopped`. Should
    /// the system's time lie behind that, it goes on from there.
    pub fn resumed(epoch: i64, stopped: u32) -> Clock {
        let now = (unix_time() - epoch).clamp(i64::from(stopped), i64::from(u32::MAX));
        Clock::reading(now as u32)
    }

    /// Takes times of up to 31 years for relative ones.
    #[must_use]
    pub fn with_long_ttl(self) -> Clock {
        Clock {
            relative_max: LONG_RELATIVE_MAX,
            ..self
        }
    }

    fn reading(now: u32) -> Clock {
        Clock {
            now: AtomicU32::new(now),
            epoch: AtomicI64::new(unix_time() - i64::from(now)),
            started: Instant::now(),
            first: now,
            relative_max: RELATIVE_MAX,
            shift: AtomicI64::new(0),
            paused: AtomicBool::new(false),
        }
    }

    /// Seconds on the server's clock.
    #[inline]
    pub fn now(&self) -> u32 {
        self.now.load(Relaxed)
    }

    /// Seconds as `stats` shows them.
    pub fn uptime(&self) -> u32 {
        self.now().saturating_sub(UPTIME_LAG)
    }

    /// Unix time of an instant on the server's clock.
    pub fn to_unix(&self, at: u32) -> i64 {
        self.epoch.load(Relaxed) + i64::from(at)
    }

    /// Unix time, by the coarse clock.
    pub fn unix_now(&self) -> i64 {
        self.to_unix(self.now())
    }

    /// Advances the clock; called about once a second by the clock thread.
    pub fn tick(&self) {
        if self.paused.load(Relaxed) {
            return;
        }
        let elapsed = self.started.elapsed().as_secs() as i64;
        let now = i64::from(self.first) + elapsed + self.shift.load(Relaxed);
        self.now
            .store(now.clamp(1, i64::from(u32::MAX)) as u32, Relaxed);
    }

    /// The moment an item dies, from an expiry time as clients give it: 0 never (returned as 0),
    /// up to 30 days relative (or 31 years), beyond that a Unix date; negative or past dates are dead at once
    /// (returned as 1, which always lies behind the clock).
    #[inline]
    pub fn expiry(&self, exptime: i64) -> u32 {
        match exptime {
            0 => 0,
            1.. if exptime <= self.relative_max => self.now().saturating_add(exptime as u32),
            _ if exptime < 0 => 1,
            _ => {
                let relative = exptime - self.epoch.load(Relaxed);
                if relative <= 0 {
                    1
                } else {
                    u32::try_from(relative).unwrap_or(u32::MAX)
                }
            }
        }
    }

    /// `debugtime p`
    pub fn pause(&self) {
        self.paused.store(true, Relaxed);
    }

    /// `debugtime r`
    pub fn resume(&self) {
        self.paused.store(false, Relaxed);
    }

    /// `debugtime N`: moves the clock by `seconds`, at once.
    pub fn shift(&self, seconds: i64) {
        self.shift.fetch_add(seconds, Relaxed);
        let now = i64::from(self.now()) + seconds;
        self.now
            .store(now.clamp(1, i64::from(u32::MAX)) as u32, Relaxed);
    }
}

fn unix_time() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs() as i64)
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_follows_the_rules_of_the_wire() {
        let clock = Clock::new();
        let now = clock.now();
        assert_eq!(clock.expiry(0), 0);
        assert_eq!(clock.expiry(-1), 1);
        assert_eq!(clock.expiry(1), now + 1);
        assert_eq!(clock.expiry(RELATIVE_MAX), now + RELATIVE_MAX as u32);
        assert_eq!(clock.expiry(RELATIVE_MAX + 1), 1, "a date in 1970");
        assert_eq!(clock.expiry(clock.unix_now() + 100), now + 100);
        assert_eq!(clock.expiry(i64::MAX), u32::MAX);
    }

    #[test]
    fn with_long_ttl_a_year_is_relative_and_a_date_is_a_date() {
        let clock = Clock::new().with_long_ttl();
        let (now, year) = (clock.now(), 365 * 24 * 3600);
        assert_eq!(clock.expiry(year), now + year as u32);
        assert_eq!(clock.expiry(LONG_RELATIVE_MAX), now + 999_999_999);
        assert_eq!(clock.expiry(LONG_RELATIVE_MAX + 1), 1, "a date in 2001");
        assert_eq!(clock.expiry(-1), 1);
        let far = clock.unix_now() + 50 * year;
        assert_eq!(clock.expiry(far), now + 50 * year as u32);
        assert_eq!(clock.expiry(i64::MAX), u32::MAX);
    }

    #[test]
    fn a_clock_goes_on_where_it_stopped_and_counts_the_time_between() {
        let epoch = unix_time() - 1000;
        assert!((1000..1010).contains(&Clock::resumed(epoch, 990).now()));
        let clock = Clock::resumed(epoch, 5000);
        assert_eq!(clock.now(), 5000, "time does not run backwards");
        clock.tick();
        assert!((5000..5010).contains(&clock.now()));
        assert!((clock.unix_now() - unix_time()).abs() < 10);
    }

    #[test]
    fn a_shifted_clock_stays_shifted() {
        let clock = Clock::new();
        clock.shift(100);
        assert_eq!(clock.now(), START + 100);
        clock.tick();
        assert!(clock.now() >= START + 100);
        assert_eq!(clock.uptime(), clock.now() - 60);
    }
}
