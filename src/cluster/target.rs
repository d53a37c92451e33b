#![forbid(unsafe_code)]
//! A server as all workers know it: where it is, how it fares, what it has been asked.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::deletes::Deletes;
use super::health::{Event, Health, State, admits};
use crate::net::{Outward, Stream, Ways, address};
use crate::settings::proxy::{self, Address};

/// States as they are mirrored.
const UP: u8 = 0;
const DOWN: u8 = 1;
const HALF_OPEN: u8 = 2;

/// What has been counted of one server, by all workers.
#[derive(Debug, Default)]
pub struct Counts {
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    pub timeouts: AtomicU64,
    pub connects: AtomicU64,
    pub busy: AtomicU64,
    /// Requests for its keys that other servers got.
    pub failovers: AtomicU64,
    /// Changes of its state.
    pub changes: AtomicU64,
    pub deletes_sent: AtomicU64,
    pub deletes_forgotten: AtomicU64,
    /// Copies for it that were dropped because it took them too slowly.
    pub copies_dropped: AtomicU64,
}

/// How a server fares, and what waits for it.
#[derive(Debug)]
struct Vital {
    health: Health,
    /// Keys that have been written elsewhere while it was not asked for them.
    deletes: Deletes,
    /// Some have been taken out and are on their way.
    draining: bool,
}

/// How a server is entered.
#[derive(Debug, Clone, Default)]
pub struct Access {
    pub tls: Option<Outward>,
    /// User and password.
    pub credentials: Option<(String, String)>,
}

impl Access {
    /// Reads the files that a pool names.
    ///
    /// # Errors
    /// A line for the user.
    pub fn load(pool: &proxy::Pool, place: &Address) -> Result<Access, String> {
        let host = match place {
            Address::Tcp { host, .. } => host.as_str(),
            Address::Unix(_) => "localhost",
        };
        let tls = match &pool.tls {
            None => None,
            Some(tls) => Some(Outward::load(&Ways {
                authorities: tls.ca.as_deref(),
                identity: tls.certificate.as_deref().zip(tls.key.as_deref()),
                name: tls.server_name.as_deref().unwrap_or(host),
                verify: tls.verify,
            })?),
        };
        let credentials = match &pool.auth {
            None => None,
            Some(auth) => {
                let path = &auth.password_file;
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("{}: {}", path.display(), address::reason(&error)))?;
                let password = text.lines().next().unwrap_or("").to_owned();
                Some((auth.user.clone(), password))
            }
        };
        Ok(Access { tls, credentials })
    }
}

/// One server.
#[derive(Debug)]
pub struct Target {
    pub place: Address,
    access: Mutex<Access>,
    addresses: Mutex<Vec<SocketAddr>>,
    pub counts: Counts,
    vital: Mutex<Vital>,
    /// Mirrors the state, for those who only look.
    state: AtomicU8,
    /// The share of keys it gets while it is half open.
    share: f32,
    /// When its name was last looked up.
    resolved: AtomicU64,
}

/// Numbers servers, so that they are not probed at the same moment.
static SEED: AtomicU64 = AtomicU64::new(0);

impl Target {
    /// Its name is looked up once; one that cannot be is looked up again later. `now` is on the
    /// cluster's clock, as everywhere.
    pub fn new(
        place: Address,
        access: Access,
        pool: &proxy::Pool,
        deletes: usize,
        now: u64,
    ) -> Target {
        let seed = SEED.fetch_add(1, Relaxed) << 32 ^ u64::from(std::process::id());
        let target = Target {
            place,
            access: Mutex::new(access),
            addresses: Mutex::default(),
            counts: Counts::default(),
            vital: Mutex::new(Vital {
                health: Health::new(&pool.health, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), now),
                deletes: Deletes::new(deletes),
                draining: false,
            }),
            state: AtomicU8::new(UP),
            share: pool.health.half_open_share,
            resolved: AtomicU64::new(now),
        };
        if let Err(error) = target.resolve() {
            log::warn!("{}: {}", target.place, address::reason(&error));
        }
        target
    }

    /// How it is entered, for connections to come.
    pub fn set_access(&self, access: Access) {
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = access;
    }

    /// What it is shown before anything else.
    pub fn credentials(&self) -> Option<(String, String)> {
        let access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
        access.credentials.clone()
    }

    /// Whether it may be asked for a key, whose hash is only looked at while it is half open.
    #[inline]
    pub fn admits(&self, key: &[u8]) -> bool {
        match self.state.load(Acquire) {
            UP => true,
            DOWN => false,
            _ => admits(State::HalfOpen, self.share, super::key_hash(key)),
        }
    }

    /// Whether it is asked for nothing at all.
    #[inline]
    pub fn is_down(&self) -> bool {
        self.state.load(Acquire) == DOWN
    }

    /// For people.
    pub fn state_name(&self) -> &'static str {
        match self.state.load(Acquire) {
            UP => "up",
            DOWN => "down",
            _ => "half-open",
        }
    }

    /// Tells what has happened.
    pub fn on(&self, event: Event, now: u64) {
        let mut vital = self.lock();
        // It comes back to all its keys only when nothing waits for it.
        let waits = vital.health.state() == State::HalfOpen
            && (vital.draining || !vital.deletes.is_empty());
        if !(waits && matches!(event, Event::Answered(_) | Event::ProbeAnswered)) {
            vital.health.on(event, now);
        }
        self.mirror(&vital);
    }

    /// What time alone changes. True if a probe is due, which the caller then sends.
    pub fn tick(&self, now: u64) -> bool {
        let mut vital = self.lock();
        if !vital.draining && vital.deletes.is_empty() {
            vital.health.tick(now);
            self.mirror(&vital);
        }
        let due = now >= vital.health.next_probe();
        if due {
            vital.health.probing(now);
        }
        due
    }

    /// When the next probe is due.
    pub fn next_probe(&self) -> u64 {
        self.lock().health.next_probe()
    }

    /// A key is written elsewhere: it has to be deleted here before it is read here again. False if
    /// it is to be asked for the key after all.
    pub fn remember(&self, key: &[u8]) -> bool {
        let mut vital = self.lock();
        if self.admits(key) {
            return false;
        }
        if !vital.deletes.push(key) {
            self.counts.deletes_forgotten.fetch_add(1, Relaxed);
        }
        true
    }

    /// Takes up to `most` keys to be deleted now, if the server can take them and none are on their
    /// way; [`drained`](Target::drained) has to follow.
    pub fn drain(&self, most: usize, now: u64) -> Vec<Arc<[u8]>> {
        let mut vital = self.lock();
        // Those that stand in for it keep what they have until it is asked for all its keys again.
        let ready = vital.health.wants_deletes() || vital.health.clone().tick(now) == State::Up;
        if vital.draining || !ready {
            return Vec::new();
        }
        let keys: Vec<_> = std::iter::from_fn(|| vital.deletes.pop())
            .take(most)
            .collect();
        if !keys.is_empty() {
            vital.draining = true;
        } else if vital.health.wants_deletes() {
            vital.health.on(Event::Drained, now);
            self.mirror(&vital);
        }
        keys
    }

    /// The keys have been deleted, or have not.
    pub fn drained(&self, keys: &[Arc<[u8]>], good: bool) {
        let mut vital = self.lock();
        vital.draining = false;
        if good {
            self.counts
                .deletes_sent
                .fetch_add(keys.len() as u64, Relaxed);
        } else {
            for key in keys {
                vital.deletes.push(key);
            }
        }
    }

    /// Keys that wait to be deleted, and those that were forgotten.
    pub fn deletes(&self) -> usize {
        self.lock().deletes.len()
    }

    fn mirror(&self, vital: &Vital) {
        let state = match vital.health.state() {
            State::Up => UP,
            State::Down => DOWN,
            State::HalfOpen => HALF_OPEN,
        };
        if self.state.swap(state, AcqRel) != state {
            log::info!("{} is {}", self.place, self.state_name());
            self.counts.changes.fetch_add(1, Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vital> {
        self.vital.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks its name up. This may take long: not for workers.
    ///
    /// # Errors
    /// The resolver's; the addresses known before stay.
    pub fn resolve(&self) -> io::Result<()> {
        if let Address::Tcp { host, port } = &self.place {
            let found = address::resolve(Some(host), *port)?;
            *self
                .addresses
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = found;
        }
        Ok(())
    }

    /// Looks its name up if that was last done so many milliseconds ago.
    ///
    /// # Errors
    /// As [`resolve`](Target::resolve).
    pub fn resolve_when_due(&self, now: u64, every: u64) -> io::Result<()> {
        if now.saturating_sub(self.resolved.load(Relaxed)) < every {
            return Ok(());
        }
        self.resolved.store(now, Relaxed);
        self.resolve()
    }

    /// Begins to connect; attempts go round the addresses of its name.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(&self, attempt: u32) -> io::Result<Stream> {
        self.counts.connects.fetch_add(1, Relaxed);
        let stream = match &self.place {
            Address::Unix(path) => Stream::connect_local(path),
            Address::Tcp { .. } => {
                let addresses = self
                    .addresses
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                match addresses.get(attempt as usize % addresses.len().max(1)) {
                    Some(&address) => Stream::connect(address),
                    None => Err(io::ErrorKind::NotFound.into()),
                }
            }
        }?;
        let access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
        match &access.tls {
            Some(outward) => stream.secure_towards(outward),
            None => Ok(stream),
        }
    }
}
