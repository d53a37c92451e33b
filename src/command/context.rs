#![forbid(unsafe_code)]
//! What commands may touch.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::admin::{View, Watchers};
use crate::clock::Clock;
use crate::cluster::replication::data::StoreData;
use crate::cluster::replication::group::Level;
use crate::cluster::replication::replicas::Replicas;
use crate::net::Keyring;
use crate::observe::{Admission, Board, Prefixes, Registry, ThreadCounters, events};
use crate::protocol::Rules;
use crate::settings::{Ack, Settings};
use crate::store::{self, Store};

use super::auth::Credentials;
use super::lease::Leases;

/// `verbosity` stops here.
pub const VERBOSITY_MAX: u32 = 2;

/// What a verbosity lets through: 1 what goes wrong, 2 what clients ask, 3 more.
pub fn log_level(verbosity: u32) -> log::LevelFilter {
    match verbosity {
        // Silent, as memcached, but where the operator has to do something.
        0 => log::LevelFilter::Error,
        1 => log::LevelFilter::Info,
        2 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    }
}

/// What all connections share. Made once, by the server.
pub struct Shared {
    pub settings: Settings,
    /// What requests may say.
    pub rules: Rules,
    pub clock: Arc<Clock>,
    pub store: Arc<Store>,
    pub registry: Arc<Registry>,
    pub board: Arc<Board>,
    pub admission: Arc<Admission>,
    pub prefixes: Prefixes,
    pub watchers: Arc<Watchers>,
    pub credentials: Credentials,
    pub leases: Leases,
    /// What is known of copies, if there are any, or this is one.
    pub replicas: Option<Arc<Replicas>>,
    /// Where mutations are tried out before copies vote on them.
    pub agreement: Option<Mutex<Box<Shared>>>,
    /// What TLS is served with, if it is.
    pub keyring: Option<Keyring>,
    /// When its files were read, on the server's clock.
    certificates_read: AtomicU32,
    /// `-v`, `verbosity`
    verbosity: AtomicU32,
}

impl Shared {
    /// Takes the store's memory and reads the users' passwords. Fails with a message for the user.
    pub fn new(settings: Settings, keyring: Option<Keyring>) -> Result<Shared, String> {
        let credentials = Credentials::load(&settings.security)?;
        let registry = Arc::new(Registry::new(settings.watch.worker_buffer));
        let (store, age) = Store::open(&settings.store, &registry.register())?;
        let clock = match age {
            Some(age) => Clock::resumed(age.epoch, age.stopped),
            None => Clock::new(),
        };
        let long = settings.store.long_ttl;
        let clock = if long { clock.with_long_ttl() } else { clock };
        store.note_epoch(clock.to_unix(0));
        let watchers = Watchers::new(registry.taps().clone(), settings.watch.watcher_buffer);
        let clock = Arc::new(clock);
        let store = Arc::new(store);
        let replicas = match StoreData::new(&store, &clock, registry.register()) {
            Some(data) => {
                let id = getrandom::u64()
                    .map_err(|error| format!("no random number for the node's id: {error}"))?;
                Some(Arc::new(Replicas::new(&settings, data, id)))
            }
            None => None,
        };
        let agrees = settings.levels().any(|level| level == Ack::TwoPhase);
        let agreement = match &replicas {
            Some(_) if agrees => {
                let mut scratch = Settings::default();
                scratch.store.item_size_max = settings.store.item_size_max;
                scratch.store.max_bytes = (16 << 20) + 4 * settings.store.item_size_max as u64;
                let mut scratch = Shared::new(scratch, None)?;
                scratch.clock = clock.clone();
                Some(Mutex::new(Box::new(scratch)))
            }
            _ => None,
        };
        let shared = Shared {
            rules: Rules {
                long_times: long,
                key_bytes: settings.store.key_max as u32,
            },
            credentials,
            // No token is one of an earlier run.
            leases: Leases::new(registry.taps().clone(), (clock.unix_now() as u64) << 32),
            replicas,
            agreement,
            keyring,
            certificates_read: AtomicU32::new(0),
            watchers: Arc::new(watchers),
            clock,
            store,
            registry,
            board: Arc::default(),
            admission: Arc::default(),
            prefixes: Prefixes::new(settings.store.prefix_delimiter),
            verbosity: AtomicU32::new(u32::from(settings.process.verbosity)),
            settings,
        };
        shared
            .registry
            .taps()
            .want_detail(shared.settings.store.detail);
        Ok(shared)
    }

    /// Leaves the items to the next server, if there is a memory file; for when nobody uses the store any
    /// more.
    ///
    /// # Errors
    /// A line for the user: the next server will start with an empty cache.
    pub fn leave(&self) -> Result<(), String> {
        let age = store::restart::Age {
            epoch: self.clock.to_unix(0),
            stopped: self.clock.now(),
        };
        self.store.leave(age, &self.registry.totals().classes)
    }

    /// What `stats` looks at.
    pub fn view(&self) -> View<'_> {
        View {
            settings: &self.settings,
            clock: &self.clock,
            store: &self.store,
            registry: &self.registry,
            board: &self.board,
            admission: &self.admission,
            watchers: &self.watchers,
            certificates_read: self.certificates_read.load(Relaxed),
            verbosity: self.verbosity(),
        }
    }

    /// Reads the files of users and certificates again; returns what went wrong. What cannot be read
    /// stays as it was.
    pub fn reload(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if let Err(why) = self.credentials.reload(&self.settings.security) {
            failures.push(why);
        }
        if self.keyring.is_some()
            && let Err(why) = self.reload_certificates()
        {
            failures.push(format!(
                "Could not reload TLS certificates on SIGHUP: {why}"
            ));
        }
        failures
    }

    /// Reads the certificates again, for connections to come.
    ///
    /// # Errors
    /// A line for the user; what was known before stays.
    pub fn reload_certificates(&self) -> Result<(), String> {
        let Some(keyring) = &self.keyring else {
            return Err("Error TLS not enabled".to_owned());
        };
        keyring.reload()?;
        self.certificates_read.store(self.clock.now(), Relaxed);
        Ok(())
    }

    pub fn verbosity(&self) -> u32 {
        self.verbosity.load(Relaxed)
    }

    pub fn set_verbosity(&self, level: u32) {
        let level = level.min(VERBOSITY_MAX);
        self.verbosity.store(level, Relaxed);
        log::set_max_level(log_level(level));
    }
}

/// What a command may touch: made anew for each wake-up of a connection.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub shared: &'a Shared,
    pub counters: &'a ThreadCounters,
    /// Seconds on the server's clock.
    pub now: u32,
    /// The connection's descriptor, as logs call it.
    pub connection: i32,
}

impl<'a> Context<'a> {
    /// What the store wants to know of the caller.
    #[inline]
    pub fn caller(&self) -> store::Cx<'a> {
        store::Cx {
            now: self.now,
            counters: self.counters,
        }
    }

    #[inline]
    pub fn store(&self) -> &'a Store {
        &self.shared.store
    }

    /// Whether mutations have to go to another node.
    #[inline]
    pub fn follows(&self) -> bool {
        match &self.shared.replicas {
            None => false,
            Some(replicas) => !replicas.leading(),
        }
    }

    /// Whether reads have to go to another node, too: what is agreed upon is not to be read here when it
    /// may have been changed elsewhere.
    #[inline]
    pub fn refuses_reads(&self) -> bool {
        let replicas = self.shared.replicas.as_ref();
        self.shared.agreement.is_some() && replicas.is_some_and(|replicas| replicas.fenced())
    }

    /// Whether mutations are refused until copies have kept up.
    #[inline]
    pub fn busy(&self) -> bool {
        let replicas = self.shared.replicas.as_ref();
        replicas.is_some_and(|replicas| replicas.busy())
    }

    /// Whether somebody watches, or counts prefixes: see [`events`].
    #[inline]
    pub fn tapped(&self, what: u32) -> bool {
        self.counters.log.wants(what)
    }

    /// An expiry time as clients give it, on the server's clock.
    #[inline]
    pub fn expiry(&self, exptime: i64) -> u32 {
        self.shared.clock.expiry(exptime)
    }

    /// Tells watchers of fetches about the look-up that a mutation of this key begins with.
    #[inline]
    pub fn tell_lookup(&self, key: &[u8], hash: u64) {
        if self.tapped(events::FETCHERS) {
            self.look_up_and_tell(key, hash);
        }
    }

    #[cold]
    fn look_up_and_tell(&self, key: &[u8], hash: u64) {
        let quiet = store::Fetch {
            quiet: true,
            ..store::Fetch::default()
        };
        let found = self.store().fetch(self.caller(), key, hash, &quiet, |hit| {
            (hit.class(), hit.length())
        });
        self.tell_fetch(key, found);
    }

    /// Tells watchers of fetches what became of one: class and length of what was found.
    #[cold]
    pub fn tell_fetch(&self, key: &[u8], found: Result<(u8, usize), store::Miss>) {
        let (status, (class, length)) = match found {
            Ok(found) => ("found", found),
            Err(store::Miss::Flushed) => ("flushed", (0, 0)),
            Err(store::Miss::Expired) => ("expired", (0, 0)),
            Err(store::Miss::NotFound | store::Miss::NoMemory) => ("not_found", (0, 0)),
        };
        self.counters
            .log
            .item_get(key, status, class, self.connection, length);
    }
}

/// What the server remembers of one client's standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Credentials are asked for and have not been shown.
    locked: bool,
    /// A SASL exchange has begun and waits for its second step.
    pub(super) sasl_started: bool,
    /// There is nobody to send more than one reply to: what streams is refused.
    pub(super) single: bool,
    /// What it says has come to another node first.
    pub(super) forwarded: bool,
    /// The level of where the client has come in, if that has one.
    pub(super) listener: Option<Level>,
    /// The highest level of the keys that were changed since this was asked.
    level: Option<Level>,
    /// Since when a mutation of its waits for another one of the key.
    pub(super) queued_since: Option<Instant>,
}

impl Session {
    /// For a new connection.
    pub fn new(shared: &Shared) -> Session {
        let security = &shared.settings.security;
        Session {
            locked: security.sasl || security.auth_file.is_some(),
            sasl_started: false,
            single: false,
            forwarded: false,
            listener: None,
            level: None,
            queued_since: None,
        }
    }

    /// Its changes have this level, unless their keys have one.
    pub fn with_level(self, listener: Option<Level>) -> Session {
        Session { listener, ..self }
    }

    /// For one datagram, which has one reply.
    pub fn single(shared: &Shared) -> Session {
        Session {
            single: true,
            ..Session::new(shared)
        }
    }

    /// Whether its mutations go to the leader.
    #[inline]
    pub fn forwards(&self, cx: &Context<'_>) -> bool {
        cx.shared.settings.replication.forwards
            && !self.forwarded
            && !self.single
            && !self.locked
            && cx.follows()
    }

    /// A key of this level is about to be changed.
    #[inline]
    pub(super) fn raise(&mut self, level: Level) {
        self.level = self.level.max(Some(level));
    }

    /// How far copies must have come with what was changed since the last time this was asked; nothing
    /// if it was not the client's doing.
    pub fn take_level(&mut self) -> Option<Level> {
        self.level.take()
    }

    /// Whether the client still has to say who it is: text then goes to
    /// [`admit`](super::auth::admit) instead of the parser.
    #[inline]
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    pub(super) fn open(&mut self) {
        self.locked = false;
    }

    pub(super) fn lock(&mut self) {
        self.locked = true;
    }
}
