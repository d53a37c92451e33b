#![forbid(unsafe_code)]
//! Threads that keep the house while the workers serve. Each calls a bounded step of somebody else
//! and sleeps; none is ever waited for by a worker.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::control::Control;
use crate::clock::Clock;

const SECOND: Duration = Duration::from_secs(1);

/// Advances the clock once a second.
///
/// # Errors
/// The system cannot start a thread.
pub fn start_clock(clock: Arc<Clock>, control: Arc<Control>) -> io::Result<JoinHandle<()>> {
    Builder::new().name("clock".to_owned()).spawn(move || {
        // Counted from one start, so that late wake-ups do not add up to a lost second.
        let mut next = Instant::now() + SECOND;
        while control.sleep_until(next) {
            clock.tick();
            next += SECOND;
        }
    })
}
