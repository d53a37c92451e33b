//! Whether a server may be asked.
//!
//! A pure machine: what happened to requests and probes goes in with the time, a state comes out.
//! One for each server; whoever owns it sends the probes it asks for.
//!
//! ```text
//!            failures in a row, or most of a second's requests
//!        ┌────────────────────────────────────────────────────┐
//!        │                                                    ▼
//!        Up ◄──── time, nothing failed ──── HalfOpen ◄────── Down
//!        │                                    │  good probes,  ▲
//!        │                                    │  deletes sent  │
//!        │                                    └── any failure ─┘
//! ```
//!
//! A server that is down gets probes and nothing else. When enough of them in a row were good, the
//! deletes that were meant for it meanwhile are sent, and only then it gets keys again: a tenth of
//! them for five seconds (always the same tenth, so that what is written is read from the same
//! server), then all but those whose deletes have not been answered. A server that goes down again and
//! again is probed less and less often, until it has stayed up for a minute.
#![forbid(unsafe_code)]

use crate::settings::proxy::Health as Settings;

/// Whether a server may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All its keys.
    Up,
    /// No key.
    Down,
    /// Some of its keys, see [`Health::admits`].
    HalfOpen,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// So many requests were answered, whatever the answer.
    Answered(u32),
    /// No answer in time.
    TimedOut,
    /// The connection could not be made, broke with requests in flight, or said nonsense.
    Failed,
    /// Nobody listens there: that is no accident of one request, and counts as three.
    Refused,
    ProbeAnswered,
    ProbeFailed,
    /// The deletes that waited for the server when it answered again have been answered.
    Drained,
}

/// One server's health.
#[derive(Debug, Clone)]
pub struct Health {
    settings: Settings,
    state: State,
    /// Failures of requests since the last that was answered, and of probes since the last good one: a
    /// server that answers probes alone is no better for it.
    in_a_row: u32,
    bad_probes: u32,
    /// The second that is being counted, and what it has seen.
    window: u64,
    answered: u32,
    failed: u32,
    good_probes: u32,
    /// Good probes were enough; the deletes are on their way.
    waits_for_deletes: bool,
    /// When the half-open time ends, or ended.
    open_at: u64,
    next_probe: u64,
    /// When it went down lately, oldest first.
    downs: Vec<u64>,
    /// Milliseconds between probes of a server that is down; doubles with flapping.
    wait: u64,
    /// Makes probes of several proxies drift apart.
    jitter: u64,
}

/// Flaps remembered, however many the settings want.
const DOWNS_MAX: usize = 64;

impl Health {
    /// A server that nothing is known of, taken for up. `seed` should differ between servers and
    /// processes.
    pub fn new(settings: &Settings, seed: u64, now: u64) -> Health {
        let mut health = Health {
            settings: settings.clone(),
            state: State::Up,
            in_a_row: 0,
            bad_probes: 0,
            window: now / 1000,
            answered: 0,
            failed: 0,
            good_probes: 0,
            waits_for_deletes: false,
            open_at: 0,
            next_probe: 0,
            downs: Vec::new(),
            wait: settings.probe_ms,
            jitter: seed | 1,
        };
        health.next_probe = now + health.jittered(settings.probe_ms);
        health
    }

    /// Goes by other settings from now on. What is known of the server stays.
    pub fn set(&mut self, settings: &Settings) {
        if self.wait == self.settings.probe_ms {
            self.wait = settings.probe_ms;
        }
        settings.clone_into(&mut self.settings);
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// When the next probe is due. The owner sends one then and calls [`Health::probing`].
    pub fn next_probe(&self) -> u64 {
        self.next_probe
    }

    /// A probe is being sent.
    pub fn probing(&mut self, now: u64) {
        let wait = match self.state {
            State::Down => self.wait,
            _ => self.settings.probe_ms,
        };
        self.next_probe = now + self.jittered(wait);
    }

    /// Whether the deletes that wait for the server should be sent now: it answers, and [`Event::Drained`]
    /// is all it waits for.
    pub fn wants_deletes(&self) -> bool {
        self.waits_for_deletes
    }

    /// Whether a key of this hash may be asked of the server, in any state.
    pub fn admits(&self, key_hash: u64) -> bool {
        admits(self.state, self.settings.half_open_share, key_hash)
    }

    /// What happened at `now`, in milliseconds of a clock that never goes back.
    pub fn on(&mut self, event: Event, now: u64) -> State {
        self.tick(now);
        match event {
            Event::Answered(count) => {
                (self.in_a_row, self.bad_probes) = (0, 0);
                self.answered = self.answered.saturating_add(count);
            }
            Event::TimedOut | Event::Failed | Event::Refused => {
                let weight = if event == Event::Refused { 3 } else { 1 };
                self.in_a_row = self.in_a_row.saturating_add(weight);
                self.failed(now);
            }
            Event::ProbeAnswered => {
                self.bad_probes = 0;
                self.good_probes = self.good_probes.saturating_add(1);
                if self.state == State::Down && self.good_probes >= self.settings.good_probes {
                    self.waits_for_deletes = true;
                }
            }
            // A probe is a request that nobody but us misses: the same failure.
            Event::ProbeFailed => {
                self.good_probes = 0;
                self.waits_for_deletes = false;
                self.bad_probes = self.bad_probes.saturating_add(1);
                self.failed(now);
            }
            Event::Drained => {
                if self.state == State::Down && self.waits_for_deletes {
                    self.waits_for_deletes = false;
                    self.state = State::HalfOpen;
                    self.open_at = now + self.settings.half_open_ms;
                    (self.in_a_row, self.bad_probes) = (0, 0);
                    (self.answered, self.failed) = (0, 0);
                    self.next_probe = now + self.jittered(self.settings.probe_ms);
                    self.tick(now);
                }
            }
        }
        self.state
    }

    /// What time alone changes. [`Health::on`] does it too.
    pub fn tick(&mut self, now: u64) -> State {
        if now / 1000 != self.window {
            self.window = now / 1000;
            (self.answered, self.failed) = (0, 0);
        }
        if self.state == State::HalfOpen && now >= self.open_at {
            self.state = State::Up;
        }
        // It has to stay up that long: the wait itself may have been longer.
        if self.state == State::Up
            && now.saturating_sub(self.open_at) > self.settings.flap_window_ms
        {
            self.wait = self.settings.probe_ms;
        }
        self.state
    }

    fn failed(&mut self, now: u64) {
        self.failed = self.failed.saturating_add(1);
        if self.state == State::HalfOpen || self.state == State::Up && self.has_failed() {
            self.go_down(now);
        }
    }

    fn has_failed(&self) -> bool {
        let total = self.answered.saturating_add(self.failed);
        self.in_a_row.saturating_add(self.bad_probes) >= self.settings.failures
            || total >= self.settings.failure_sample
                && self.failed as f32 >= total as f32 * self.settings.failure_share
    }

    fn go_down(&mut self, now: u64) {
        let oldest = now.saturating_sub(self.settings.flap_window_ms);
        self.downs.retain(|&down| down >= oldest);
        if self.downs.len() == DOWNS_MAX {
            self.downs.remove(0);
        }
        self.downs.push(now);
        let flaps = self.downs.len().min(DOWNS_MAX) as u32;
        // With longer waits it goes down less often in the same time, and is no better.
        let backed_off = self.wait > self.settings.probe_ms;
        if backed_off || flaps >= self.settings.flaps.min(DOWNS_MAX as u32) {
            let most = self.settings.backoff_max_ms.max(self.settings.probe_ms);
            self.wait = self.wait.saturating_mul(2).min(most);
        }
        self.state = State::Down;
        self.good_probes = 0;
        self.waits_for_deletes = false;
        self.next_probe = now + self.jittered(self.wait);
    }

    /// A wait, longer or shorter by a share drawn from a generator of its own.
    fn jittered(&mut self, wait: u64) -> u64 {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let unit = (self.jitter >> 11) as f64 / (1_u64 << 53) as f64;
        let factor = 1.0 + f64::from(self.settings.jitter) * (2.0 * unit - 1.0);
        ((wait as f64 * factor) as u64).max(1)
    }
}

/// Whether a server in this state may be asked for a key of this hash: the same keys are admitted
/// for as long as the state lasts, by every worker.
#[inline]
pub fn admits(state: State, half_open_share: f32, key_hash: u64) -> bool {
    match state {
        State::Up => true,
        State::Down => false,
        State::HalfOpen => {
            // The ring used some bits of the hash; the product depends on all of them.
            let spread = key_hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            (spread as f32) < half_open_share * (1 << 24) as f32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings() -> Settings {
        Settings {
            jitter: 0.0,
            ..Settings::default()
        }
    }

    fn new() -> Health {
        Health::new(&settings(), 1, 0)
    }

    fn down(health: &mut Health, now: u64) {
        while health.on(Event::Failed, now) != State::Down {}
    }

    fn revive(health: &mut Health, now: u64) {
        health.on(Event::ProbeAnswered, now);
        health.on(Event::ProbeAnswered, now);
        health.on(Event::Drained, now);
    }

    #[test]
    fn three_failures_in_a_row_are_enough() {
        let mut health = new();
        assert_eq!(health.on(Event::Failed, 0), State::Up);
        assert_eq!(health.on(Event::TimedOut, 1), State::Up);
        assert_eq!(health.on(Event::Answered(1), 2), State::Up);
        assert_eq!(health.on(Event::Failed, 3), State::Up);
        assert_eq!(health.on(Event::ProbeFailed, 4), State::Up);
        assert_eq!(health.on(Event::TimedOut, 5), State::Down);
    }

    #[test]
    fn nobody_listening_is_enough_by_itself() {
        assert_eq!(new().on(Event::Refused, 0), State::Down);
        let patient = Settings {
            failures: 4,
            ..settings()
        };
        let mut health = Health::new(&patient, 1, 0);
        assert_eq!(health.on(Event::Refused, 0), State::Up);
        assert_eq!(health.on(Event::Failed, 1), State::Down);
    }

    #[test]
    fn good_probes_do_not_make_up_for_requests() {
        let mut health = new();
        health.on(Event::TimedOut, 0);
        health.on(Event::ProbeAnswered, 500);
        health.on(Event::TimedOut, 1000);
        health.on(Event::ProbeAnswered, 1500);
        assert_eq!(health.on(Event::TimedOut, 2000), State::Down);
        // Nor do bad ones add up for ever.
        let mut health = new();
        for n in 0..10 {
            assert_eq!(health.on(Event::ProbeFailed, n * 5000), State::Up);
            health.on(Event::ProbeAnswered, n * 5000 + 1000);
        }
    }

    #[test]
    fn half_of_a_second_is_enough() {
        let mut health = new();
        for n in 0..10 {
            health.on(Event::Answered(1), 10 + n);
            let state = health.on(Event::Failed, 10 + n);
            // The twentieth makes the sample.
            assert_eq!(state, if n < 9 { State::Up } else { State::Down });
        }
        let mut health = new();
        for n in 0..40 {
            // As many, over more than a second.
            health.on(Event::Answered(1), n * 120);
            assert_eq!(health.on(Event::Failed, n * 120), State::Up);
        }
    }

    #[test]
    fn it_comes_back_by_probes_deletes_and_time() {
        let mut health = new();
        down(&mut health, 0);
        assert_eq!(health.on(Event::Drained, 100), State::Down);
        health.on(Event::ProbeAnswered, 1000);
        assert!(!health.wants_deletes());
        health.on(Event::ProbeAnswered, 2000);
        assert!(health.wants_deletes());
        assert_eq!(health.state(), State::Down, "deletes come first");
        assert_eq!(health.on(Event::Drained, 2100), State::HalfOpen);
        assert_eq!(health.tick(7099), State::HalfOpen);
        assert_eq!(health.tick(7100), State::Up);
    }

    #[test]
    fn a_bad_probe_begins_anew() {
        let mut health = new();
        down(&mut health, 0);
        health.on(Event::ProbeAnswered, 1000);
        health.on(Event::ProbeAnswered, 2000);
        health.on(Event::ProbeFailed, 3000);
        assert_eq!(health.on(Event::Drained, 3100), State::Down);
        health.on(Event::ProbeAnswered, 4000);
        assert!(!health.wants_deletes());
    }

    #[test]
    fn one_failure_closes_a_server_that_is_half_open() {
        let mut health = new();
        down(&mut health, 0);
        revive(&mut health, 1000);
        assert_eq!(health.on(Event::TimedOut, 1500), State::Down);
    }

    #[test]
    fn half_open_admits_a_tenth_and_always_the_same() {
        let mut health = new();
        down(&mut health, 0);
        assert!(!(0..1000).any(|hash| health.admits(hash)));
        revive(&mut health, 1000);
        let admitted = |health: &Health| -> Vec<u64> {
            (0..100_000_u64)
                .filter(|&hash| health.admits(hash))
                .collect()
        };
        let first = admitted(&health);
        assert!((9_000..11_000).contains(&first.len()), "{}", first.len());
        health.tick(3000);
        assert_eq!(admitted(&health), first);
        health.tick(6000);
        assert_eq!(admitted(&health).len(), 100_000);
    }

    #[test]
    fn flapping_doubles_the_wait() {
        let mut health = new();
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..10 {
            down(&mut health, now);
            waits.push(health.next_probe() - now);
            revive(&mut health, now + 100);
            now += 1000;
        }
        assert_eq!(
            waits,
            [
                1000, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000
            ]
        );
        // A quiet minute later all is forgotten.
        now += 70_000;
        health.tick(now);
        down(&mut health, now);
        assert_eq!(health.next_probe() - now, 1000);
    }

    /// As it goes with a server that answers probes and nothing else: with real waits there are never
    /// three downs in a minute once it is probed rarely.
    #[test]
    fn a_server_that_only_answers_probes_is_asked_ever_less() {
        let mut health = new();
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..12 {
            down(&mut health, now);
            let wait = health.next_probe() - now;
            waits.push(wait);
            now += 2 * wait;
            revive(&mut health, now);
            now += 5000;
            assert_eq!(health.tick(now), State::Up);
        }
        assert_eq!(waits[..3], [1000, 1000, 2000]);
        assert_eq!(waits[7..], [60_000; 5], "{waits:?}");
    }

    #[test]
    fn probes_drift() {
        let settings = Settings::default();
        let mut health = Health::new(&settings, 77, 0);
        let mut seen = Vec::new();
        for n in 0..200 {
            health.probing(n * 1000);
            seen.push(health.next_probe() - n * 1000);
        }
        assert!(seen.iter().all(|wait| (900..=1100).contains(wait)));
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 50, "{}", seen.len());
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (1..50_u32).prop_map(Event::Answered),
            2 => Just(Event::TimedOut),
            2 => Just(Event::Failed),
            3 => Just(Event::ProbeAnswered),
            1 => Just(Event::ProbeFailed),
            2 => Just(Event::Drained),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever happens: keys come back only over deletes, and nothing grows.
        #[test]
        fn down_ends_with_drained_only(events in prop::collection::vec((event(), 0..3000_u64), 1..400)) {
            let mut health = new();
            let mut now = 0;
            for (event, wait) in events {
                now += wait;
                let before = health.tick(now);
                let wanted = health.wants_deletes();
                let after = health.on(event, now);
                if before == State::Down && after != State::Down {
                    prop_assert_eq!(event, Event::Drained);
                    prop_assert!(wanted);
                    prop_assert_eq!(after, State::HalfOpen);
                }
                if after == State::Down && before != State::Down {
                    let failure =
                        matches!(event, Event::Failed | Event::TimedOut | Event::ProbeFailed);
                    prop_assert!(failure);
                }
                prop_assert!(health.downs.len() <= DOWNS_MAX);
                prop_assert!(health.wait <= 60_000);
            }
        }
    }
}
