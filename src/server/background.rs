#![forbid(unsafe_code)]
//! Threads that keep the house while the workers serve. Each calls a bounded step of somebody else
//! and sleeps; none is ever waited for by a worker.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::control::Control;
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::cluster::groups::Scout;
use crate::command::Shared;
use crate::store::{Cx, Store};

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

/// How long a line for watchers waits at most, if not so many come that they have to be fetched sooner.
const WATCH: Duration = Duration::from_millis(20);

/// Hands out to those who watch what the threads have told.
///
/// # Errors
/// The system cannot start a thread.
pub fn start_watch(shared: &Arc<Shared>, control: Arc<Control>) -> io::Result<JoinHandle<()>> {
    let shared = shared.clone();
    let calls = control.clone();
    let full = shared.registry.taps().full();
    full.on_ring(move || calls.call());
    Builder::new().name("watch".to_owned()).spawn(move || {
        let full = shared.registry.taps().full();
        loop {
            full.answer();
            let watched = shared.watchers.count() > 0;
            if watched {
                shared.watchers.pump(&shared.registry);
            }
            // A new watcher has to be noticed, too.
            let wait = if watched { WATCH } else { 5 * WATCH };
            if !control.sleep_unless(Instant::now() + wait, || full.is_rung()) {
                break;
            }
        }
    })
}

/// Looks the names of servers up again from time to time.
///
/// # Errors
/// The system cannot start a thread.
pub fn start_resolver(cluster: Arc<Cluster>, control: Arc<Control>) -> io::Result<JoinHandle<()>> {
    Builder::new().name("resolver".to_owned()).spawn(move || {
        loop {
            let wait = cluster.resolve();
            if !control.sleep(wait) {
                break;
            }
        }
    })
}

/// Between two looks at groups, however many call.
const REST: Duration = Duration::from_millis(20);

/// Looks at groups of nodes behind a proxy, as often as need be, and when called.
///
/// # Errors
/// The system cannot start a thread.
pub fn start_scout(cluster: Arc<Cluster>, control: Arc<Control>) -> io::Result<JoinHandle<()>> {
    Builder::new().name("scout".to_owned()).spawn(move || {
        let mut scout = Scout::default();
        let calls = control.clone();
        cluster.bell.on_ring(move || calls.call());
        loop {
            let wait = scout.look(&cluster);
            if !control.sleep(REST)
                || !control.sleep_unless(Instant::now() + wait, || cluster.bell.is_rung())
            {
                break;
            }
        }
    })
}

/// Keeps all memory under one limit.
///
/// # Errors
/// The system cannot start a thread.
pub fn start_budget(
    budget: Budget,
    shared: &Arc<Shared>,
    control: Arc<Control>,
) -> io::Result<JoinHandle<()>> {
    let shared = shared.clone();
    // Before anybody is served.
    budget.step(&shared);
    Builder::new().name("budget".to_owned()).spawn(
        move || {
            while control.sleep(budget.step(&shared)) {}
        },
    )
}

/// Calls one of the store's steps again and again, as often as it asks for.
///
/// # Errors
/// The system cannot start a thread.
pub fn start_steps(
    name: &str,
    shared: &Arc<Shared>,
    control: Arc<Control>,
    step: impl Fn(&Store, Cx<'_>) -> Duration + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let counters = shared.registry.register();
    let shared = shared.clone();
    Builder::new().name(name.to_owned()).spawn(move || {
        loop {
            let wait = step(
                &shared.store,
                Cx {
                    now: shared.clock.now(),
                    counters: &counters,
                },
            );
            if !control.sleep(wait) {
                break;
            }
        }
    })
}
