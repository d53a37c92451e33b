#![forbid(unsafe_code)]
//! A server as all workers know it: where it is, how it fares, what it has been asked.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::deletes::Deletes;
use super::dialects::Dialects;
use super::health::{Event, Health, State, admits};
use crate::net::{Outward, Stream, Ways, address};
use crate::protocol::answer::{HEADER, Shape};
use crate::protocol::{Dialect, binary};
use crate::settings::proxy::{self, Address, Forgotten};

/// States as they are mirrored.
const UP: u8 = 0;
const DOWN: u8 = 1;
const HALF_OPEN: u8 = 2;
/// Beside the state: some keys are not to be asked for, since they have yet to be deleted.
const WITHHOLDS: u8 = 4;

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
    dialects: Dialects,
    /// Keys that have been written elsewhere while it was not asked for them.
    deletes: Deletes,
    /// How many of them have to be done before it is asked for anything.
    owed: usize,
    /// Whether it has to be emptied, since some of them have been forgotten.
    stale: Stale,
}

/// Whether a server may have what it should have been told to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stale {
    No,
    /// It has to be emptied before it is asked for any key.
    Yes,
    /// It is being emptied.
    Emptied,
}

impl Vital {
    /// Whether a key has yet to be deleted.
    fn holds(&self, key: &[u8]) -> bool {
        self.stale != Stale::No || self.deletes.holds(key)
    }
}

/// What a server is sent before it is asked for its keys again.
#[derive(Debug, Default)]
pub struct Due {
    /// To forget all it has.
    pub empty: bool,
    /// To delete these.
    pub keys: Vec<Arc<[u8]>>,
}

impl Due {
    pub fn is_nothing(&self) -> bool {
        !self.empty && self.keys.is_empty()
    }
}

/// What has become of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulse {
    /// It has been answered.
    Good,
    /// It has been answered, but not as by one that can be asked for keys: other credentials are wanted, or
    /// fewer connections.
    Refused,
    /// It has not been answered, though somebody is there.
    Silent,
    /// Nobody is there.
    Away,
}

/// A connection that blocks, under TLS or not.
pub trait Way: Read + Write + Send {}

impl<T: Read + Write + Send> Way for T {}

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

    /// Over a stream that blocks.
    ///
    /// # Errors
    /// TLS cannot be spoken as it is set up.
    pub fn over(&self, stream: impl Way + 'static) -> io::Result<Box<dyn Way>> {
        Ok(match &self.tls {
            Some(outward) => Box::new(outward.blocking(stream)?),
            None => Box::new(stream),
        })
    }

    /// What a server is shown that asks for credentials, and the shape of its answer.
    pub fn greeting(&self, dialect: Dialect) -> Option<(Vec<u8>, Shape)> {
        let (user, password) = self.credentials.as_ref()?;
        Some(match dialect {
            Dialect::Text => {
                let value = format!("{user} {password}");
                let request = format!("set auth 0 0 {}\r\n{value}\r\n", value.len());
                (request.into_bytes(), Shape::Line)
            }
            Dialect::Binary => {
                const AUTHENTICATE: u8 = 0x21;
                const MECHANISM: &[u8] = b"PLAIN";
                let value = format!("\0{user}\0{password}");
                let body = MECHANISM.len() + value.len();
                let mut request = vec![0; HEADER];
                (request[0], request[1]) = (binary::MAGIC, AUTHENTICATE);
                request[3] = MECHANISM.len() as u8;
                request[8..12].copy_from_slice(&(body as u32).to_be_bytes());
                request.extend_from_slice(MECHANISM);
                request.extend_from_slice(value.as_bytes());
                (request, Shape::Binary(AUTHENTICATE))
            }
        })
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
    /// The share of keys it gets while it is half open, as the bits of an `f32`.
    share: AtomicU32,
    /// It is emptied when some of its deletes have been forgotten.
    empties: AtomicBool,
    /// When its name was last looked up.
    resolved: AtomicU64,
    /// How often an address of its name has turned out to be its no more.
    moves: AtomicU64,
    /// A follower's: what was written before then, it has; 0 if that is not known of anything.
    fresh_at: AtomicU64,
    /// How often that was forgotten.
    forgotten: AtomicU64,
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
                dialects: Dialects::default(),
                deletes: Deletes::new(deletes),
                owed: 0,
                stale: Stale::No,
            }),
            state: AtomicU8::new(UP),
            share: AtomicU32::new(pool.health.half_open_share.to_bits()),
            empties: AtomicBool::new(pool.forgotten_deletes == Forgotten::Flush),
            resolved: AtomicU64::new(now),
            moves: AtomicU64::new(0),
            fresh_at: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
        };
        if let Err(error) = target.resolve() {
            log::warn!("{}: {}", target.place, address::reason(&error));
        }
        target
    }

    /// What was written before this time, this follower has.
    #[inline]
    pub fn fresh_at(&self) -> u64 {
        self.fresh_at.load(Relaxed)
    }

    /// Tells that, as it was asked when [`forgotten`](Target::forgotten) was so.
    pub fn set_fresh(&self, at: u64, forgotten: u64) {
        if self.forgotten() == forgotten {
            self.fresh_at.fetch_max(at, AcqRel);
        }
        if self.forgotten() != forgotten {
            self.fresh_at.store(0, Relaxed);
        }
    }

    /// Perhaps it is another process now, or begins anew: what it has is not known.
    pub fn forget_fresh(&self) {
        self.forgotten.fetch_add(1, AcqRel);
        self.fresh_at.store(0, Relaxed);
    }

    /// How often what it has was forgotten.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Acquire)
    }

    /// Takes up another configuration of its pool; how it is entered holds for connections to come.
    pub fn set(&self, access: Access, pool: &proxy::Pool, deletes: usize) {
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = access;
        let mut vital = self.lock();
        vital.health.set(&pool.health);
        vital.deletes.set_most(deletes);
        self.share
            .store(pool.health.half_open_share.to_bits(), Relaxed);
        self.empties
            .store(pool.forgotten_deletes == Forgotten::Flush, Relaxed);
    }

    /// What it is shown before anything else.
    pub fn greeting(&self, dialect: Dialect) -> Option<(Vec<u8>, Shape)> {
        let access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
        access.greeting(dialect)
    }

    /// Whether it may be asked for a key, whose hash is only looked at while it is half open.
    #[inline]
    pub fn admits(&self, key: &[u8]) -> bool {
        match self.state.load(Acquire) {
            UP => true,
            DOWN => false,
            state => self.share_of(state, key) && self.takes(key),
        }
    }

    /// Whether a key belongs to those that are asked for in this state.
    #[cold]
    fn share_of(&self, state: u8, key: &[u8]) -> bool {
        match state & !WITHHOLDS {
            UP => true,
            DOWN => false,
            _ => {
                let share = f32::from_bits(self.share.load(Relaxed));
                admits(State::HalfOpen, share, super::key_hash(key))
            }
        }
    }

    /// Whether it can be asked for a key at all, be it its turn or not: it is not down, and the key has
    /// not to be deleted first.
    #[cold]
    pub fn takes(&self, key: &[u8]) -> bool {
        let state = self.state.load(Acquire);
        state & !WITHHOLDS != DOWN && (state & WITHHOLDS == 0 || !self.lock().holds(key))
    }

    /// Whether it is asked for nothing at all.
    #[inline]
    pub fn is_down(&self) -> bool {
        self.state.load(Acquire) & !WITHHOLDS == DOWN
    }

    /// For people.
    pub fn state_name(&self) -> &'static str {
        match self.state.load(Acquire) & !WITHHOLDS {
            UP => "up",
            DOWN => "down",
            _ => "half-open",
        }
    }

    /// Tells what has happened.
    pub fn on(&self, event: Event, now: u64) {
        let mut vital = self.lock();
        let wanted = vital.health.wants_deletes();
        vital.health.on(event, now);
        if !wanted && vital.health.wants_deletes() {
            vital.owed = vital.deletes.len();
        }
        self.mirror(&vital);
    }

    /// So many requests have been answered, whatever the answer.
    pub fn answered(&self, dialect: Dialect, count: u32, now: u64) {
        self.lock().dialects.answered(dialect);
        self.on(Event::Answered(count), now);
    }

    /// It has been asked whether it is alive.
    pub fn probed(&self, dialect: Dialect, pulse: Pulse, now: u64) {
        let counts = {
            let dialects = &mut self.lock().dialects;
            let counts = pulse != Pulse::Silent || dialects.counts(dialect, false);
            match pulse {
                Pulse::Good | Pulse::Refused => dialects.answered(dialect),
                Pulse::Silent => dialects.silent(dialect),
                Pulse::Away => {}
            }
            counts
        };
        if pulse == Pulse::Good {
            self.on(Event::ProbeAnswered, now);
        } else if counts {
            self.on(Event::ProbeFailed, now);
        }
    }

    /// What it is asked in what no client has asked.
    pub fn dialect(&self) -> Dialect {
        self.lock().dialects.own()
    }

    /// See [`Dialects::counts`].
    pub fn counts(&self, dialect: Dialect, clients: bool) -> bool {
        self.lock().dialects.counts(dialect, clients)
    }

    /// What time alone changes. True if a probe is due, which the caller then sends.
    pub fn tick(&self, now: u64) -> bool {
        let mut vital = self.lock();
        vital.health.tick(now);
        self.mirror(&vital);
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
        let state = self.state.load(Acquire);
        if self.share_of(state, key) && !vital.holds(key) {
            return false;
        }
        self.push(&mut vital, key);
        true
    }

    /// What was written elsewhere has been answered there: a delete that was sent meanwhile may have
    /// come before it, so the key is deleted once more.
    pub fn remember_again(&self, key: &[u8]) {
        self.push(&mut self.lock(), key);
    }

    fn push(&self, vital: &mut Vital, key: &[u8]) {
        if !vital.deletes.push(key) {
            self.counts.deletes_forgotten.fetch_add(1, Relaxed);
            if self.empties.load(Relaxed) {
                vital.stale = Stale::Yes;
            }
        }
        self.mirror(vital);
    }

    /// Takes what is to be deleted now, up to `most` keys, if the server can take it and nothing is on
    /// its way; [`drained`](Target::drained) has to follow.
    pub fn drain(&self, most: usize, now: u64) -> Due {
        let mut vital = self.lock();
        // Those that stand in for it keep what they have until it is asked for all its keys again.
        let ready = vital.health.wants_deletes() || vital.health.tick(now) == State::Up;
        if !ready || vital.stale == Stale::Emptied {
            return Due::default();
        }
        let due = Due {
            empty: vital.stale == Stale::Yes,
            keys: vital.deletes.take(most),
        };
        if due.empty {
            vital.stale = Stale::Emptied;
        }
        self.come_back(&mut vital, now);
        due
    }

    /// What was due has been done, or has not.
    pub fn drained(&self, good: bool, now: u64) {
        let mut vital = self.lock();
        // More may have been forgotten meanwhile.
        if vital.stale == Stale::Emptied {
            vital.stale = if good { Stale::No } else { Stale::Yes };
        }
        let count = vital.deletes.settle(good);
        if good {
            self.counts.deletes_sent.fetch_add(count as u64, Relaxed);
            vital.owed = vital.owed.saturating_sub(count);
        } else {
            vital.owed = vital.deletes.len();
        }
        self.come_back(&mut vital, now);
    }

    /// It is asked for keys again when all has been deleted that waited when it answered again. Others
    /// are written elsewhere meanwhile, and there may never be none: each of them is withheld until it
    /// has been deleted.
    fn come_back(&self, vital: &mut Vital, now: u64) {
        if vital.owed == 0 && vital.stale == Stale::No && vital.health.wants_deletes() {
            vital.health.on(Event::Drained, now);
        }
        self.mirror(vital);
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
        let withholds = if vital.deletes.is_settled() && vital.stale == Stale::No {
            0
        } else {
            WITHHOLDS
        };
        let before = self.state.swap(state | withholds, AcqRel);
        if before & !WITHHOLDS != state {
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
            self.is_now_at(address::resolve(Some(host), *port)?);
        }
        Ok(())
    }

    fn is_now_at(&self, found: Vec<SocketAddr>) {
        let mut known = self.addresses();
        let left = known.iter().any(|address| !found.contains(address));
        *known = found;
        if left {
            self.moves.fetch_add(1, AcqRel);
        }
    }

    /// Changes when connections may go to where it is no more.
    pub fn moves(&self) -> u64 {
        self.moves.load(Acquire)
    }

    /// Whether its name stands for this address.
    pub fn is_at(&self, address: SocketAddr) -> bool {
        self.addresses().contains(&address)
    }

    fn addresses(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
                let addresses = self.addresses();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        let mut pool = proxy::Pool::new("p");
        pool.health.jitter = 0.0;
        let target = Target::new(
            Address::Unix("/none".into()),
            Access::default(),
            &pool,
            100,
            0,
        );
        for _ in 0..3 {
            target.on(Event::Failed, 0);
        }
        assert!(target.is_down());
        target
    }

    fn answers_probes(target: &Target, now: u64) {
        target.on(Event::ProbeAnswered, now);
        target.on(Event::ProbeAnswered, now);
    }

    #[test]
    fn a_server_comes_back_though_its_keys_are_written_elsewhere_all_the_time() {
        let target = target();
        assert!(target.remember(b"a") && target.remember(b"b"));
        answers_probes(&target, 1000);
        assert_eq!(target.drain(10, 1000).keys.len(), 2);
        assert!(target.remember(b"a"));
        assert!(target.is_down());
        target.drained(true, 1001);
        assert_eq!(target.state_name(), "half-open");
        assert!(
            target.drain(10, 1002).is_nothing(),
            "not before all keys are its own"
        );
        target.tick(6001);
        assert_eq!(target.state_name(), "up");
        for now in 6001..6100 {
            assert!(!target.admits(b"a") && !target.takes(b"a"));
            assert!(target.admits(b"b") && target.admits(b"c"));
            assert_eq!(target.drain(10, now).keys.len(), 1);
            assert!(!target.admits(b"a"), "its delete is under way");
            assert!(
                target.remember(b"a"),
                "so it is written elsewhere once more"
            );
            target.drained(true, now);
        }
        assert_eq!(target.drain(10, 6100).keys.len(), 1);
        target.drained(true, 6100);
        assert!(target.admits(b"a") && !target.remember(b"a"));
        // A write that was under way when the delete passed it.
        target.remember_again(b"a");
        assert!(!target.admits(b"a"));
    }

    #[test]
    fn it_is_emptied_when_deletes_have_been_forgotten() {
        let target = target();
        for n in 0..101 {
            assert!(target.remember(format!("k{n}").as_bytes()));
        }
        answers_probes(&target, 1000);
        let due = target.drain(1000, 1000);
        assert!(due.empty && due.keys.len() == 100);
        assert!(target.is_down());
        target.drained(false, 1001);
        let due = target.drain(1000, 1002);
        assert!(due.empty, "it has not been emptied");
        // What is forgotten while it is being emptied may have been written before that.
        for n in 0..101 {
            assert!(target.remember(format!("l{n}").as_bytes()));
        }
        target.drained(true, 1003);
        assert!(target.is_down() && !target.takes(b"other"));
        assert!(target.drain(1000, 1004).empty);
        target.drained(true, 1005);
        assert_eq!(target.state_name(), "half-open");
        assert!(target.takes(b"other"));
    }

    #[test]
    fn another_configuration_is_taken_up() {
        let target = target();
        let mut pool = proxy::Pool::new("p");
        pool.forgotten_deletes = Forgotten::Serve;
        pool.health.half_open_share = 1.0;
        target.set(Access::default(), &pool, 1);
        assert!(target.remember(b"a") && target.remember(b"b"));
        answers_probes(&target, 1000);
        let due = target.drain(10, 1000);
        assert!(!due.empty && due.keys.len() == 1);
        target.drained(true, 1001);
        assert_eq!(target.state_name(), "half-open");
        assert!((0..100).all(|n| target.admits(format!("k{n}").as_bytes())));
    }

    #[test]
    fn it_has_moved_when_an_address_is_its_no_more() {
        let [a, b] = ["127.0.0.1:1", "127.0.0.1:2"].map(|text| text.parse().unwrap());
        let target = target();
        target.is_now_at(vec![a]);
        assert_eq!(target.moves(), 0);
        target.is_now_at(vec![b, a]);
        assert_eq!(target.moves(), 0, "one more");
        target.is_now_at(vec![a, b]);
        assert_eq!(target.moves(), 0, "in another order");
        target.is_now_at(vec![b]);
        assert_eq!(target.moves(), 1);
        assert!(target.is_at(b) && !target.is_at(a));
    }

    #[test]
    fn what_is_told_of_the_process_before_does_not_count() {
        let target = target();
        target.set_fresh(50, target.forgotten());
        target.set_fresh(40, target.forgotten());
        assert_eq!(target.fresh_at(), 50);
        let before = target.forgotten();
        target.forget_fresh();
        assert_eq!(target.fresh_at(), 0);
        target.set_fresh(60, before);
        assert_eq!(target.fresh_at(), 0);
        target.set_fresh(60, target.forgotten());
        assert_eq!(target.fresh_at(), 60);
    }

    #[test]
    fn what_could_not_be_deleted_is_owed_still() {
        let target = target();
        assert!(target.remember(b"a"));
        answers_probes(&target, 1000);
        assert_eq!(target.drain(10, 1000).keys.len(), 1);
        target.drained(false, 1001);
        assert!(target.is_down());
        assert_eq!(target.drain(10, 1002).keys.len(), 1);
        target.drained(true, 1003);
        assert_eq!(target.state_name(), "half-open");
        // Without anything to delete it need not wait.
        let target = self::target();
        answers_probes(&target, 1000);
        assert!(target.drain(10, 1000).is_nothing());
        assert_eq!(target.state_name(), "half-open");
    }
}
