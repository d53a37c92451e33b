#![forbid(unsafe_code)]
//! How the server is told to stop, from any thread.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mio::Waker;

/// Why the server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGINT, SIGTERM, `shutdown`
    Normal,
    /// SIGUSR1, `shutdown graceful`
    Graceful,
}

/// Shared by all threads of one server.
#[derive(Debug)]
pub struct Control {
    /// 0 while running, then a [`Stop`].
    stop: AtomicU8,
    /// Wakes the acceptor, which ends the others.
    waker: Waker,
    /// What sleeping threads wait on; holds whether to end.
    ended: Mutex<bool>,
    bell: Condvar,
    /// And those who may be called before their time.
    calls: Condvar,
}

impl Control {
    pub fn new(waker: Waker) -> Control {
        Control {
            stop: AtomicU8::new(0),
            waker,
            ended: Mutex::new(false),
            bell: Condvar::new(),
            calls: Condvar::new(),
        }
    }

    /// Asks the server to stop; the first reason given counts.
    ///
    /// # Errors
    /// The acceptor could not be woken; it will stop when it wakes.
    pub fn stop(&self, why: Stop) -> io::Result<()> {
        let value = match why {
            Stop::Normal => 1,
            Stop::Graceful => 2,
        };
        // Err means that someone else was first, which is as good.
        let _ = self
            .stop
            .compare_exchange(0, value, Ordering::AcqRel, Ordering::Acquire);
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_all();
        self.calls.notify_all();
        self.waker.wake()
    }

    pub fn stopping(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Acquire) {
            0 => None,
            2 => Some(Stop::Graceful),
            _ => Some(Stop::Normal),
        }
    }

    /// Sleeps; false means that the server stops and the thread should end.
    pub fn sleep(&self, duration: Duration) -> bool {
        self.sleep_until(Instant::now() + duration)
    }

    /// Sleeps until an instant; false means that the server stops and the thread should end.
    pub fn sleep_until(&self, deadline: Instant) -> bool {
        self.sleep_at(&self.bell, deadline, || false)
    }

    /// The same, or until something is so; whoever makes it so [calls](Control::call) then.
    pub fn sleep_unless(&self, deadline: Instant, is_so: impl Fn() -> bool) -> bool {
        self.sleep_at(&self.calls, deadline, is_so)
    }

    fn sleep_at(&self, bell: &Condvar, deadline: Instant, is_so: impl Fn() -> bool) -> bool {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || is_so() {
                return true;
            }
            (ended, _) = bell
                .wait_timeout(ended, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    /// Lets those who sleep look whether what they sleep for is so.
    pub fn call(&self) {
        // Nobody is between looking and sleeping while this is held.
        drop(self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        self.calls.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use mio::{Poll, Token};

    use super::*;

    #[test]
    fn sleepers_are_called() {
        let poll = Poll::new().unwrap();
        let control = Control::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let so = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                let late = Instant::now() + Duration::from_secs(3600);
                control.sleep_unless(late, || so.load(Ordering::Acquire))
            });
            so.store(true, Ordering::Release);
            control.call();
            assert!(sleeper.join().unwrap(), "the server goes on");
        });
    }

    #[test]
    fn the_first_reason_counts_and_sleepers_wake() {
        let poll = Poll::new().unwrap();
        let control = Control::new(Waker::new(poll.registry(), Token(0)).unwrap());
        assert!(control.sleep(Duration::from_millis(1)));
        assert_eq!(control.stopping(), None);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| control.sleep(Duration::from_secs(3600)));
            control.stop(Stop::Graceful).unwrap();
            control.stop(Stop::Normal).unwrap();
            assert!(!sleeper.join().unwrap());
        });
        assert_eq!(control.stopping(), Some(Stop::Graceful));
    }
}
