#![forbid(unsafe_code)]
//! What the threads of one server share about replication: whether mutations are taken here, how far
//! they have got, and what can be told of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::data::{Data, StoreData};
use super::group::{Group, Level, Verdict, Votes};
use super::history::Epoch;
use super::session::{Node, Role};
use super::sink;
use super::source::{Scrubbed, SourceCounts};
use super::waiting::Waiting;
use crate::settings::{Ack, Backpressure, Settings};
use crate::store::journal::{ALL, Journal, Kind, PARTITIONS, Role as LogRole};

/// One node's.
pub struct Replicas {
    /// Mutations are taken here, if a lease allows it where one is needed.
    leading: AtomicBool,
    /// The number of the epoch that this node leads in, or has led in last.
    epoch: AtomicU64,
    id: u64,
    /// A service outside decides who leads.
    elected: bool,
    /// Until when its lease allows mutations, and until when no copy in sync stands, on the node's
    /// clock.
    lease_until: AtomicU64,
    vouched_until: AtomicU64,
    /// It does not lead any more, and no other leader has counted on it since.
    fallen: AtomicBool,
    /// An operator has told this node to stand for leader, whatever it lacks.
    forced: AtomicBool,
    /// No copy is kept from here any more: the server stops.
    ended: AtomicBool,
    level: Level,
    /// So many have to be in sync for two-phase commit, this node among them.
    min_isr: u8,
    /// Those of keys that begin so, longest prefix first.
    prefixes: Vec<(Vec<u8>, Level)>,
    /// Any key has another level than async.
    holds: bool,
    /// As long as this node leads there is nothing to ask before a mutation: no lease, no level, no
    /// pressure.
    unasked: bool,
    /// Whoever waits longer for copies is answered anyhow, or refused.
    ack_timeout: Duration,
    refuses: bool,
    backpressure: Backpressure,
    /// A copy in sync is about to fall off the log.
    pressed: AtomicBool,
    /// Mutations that waited or were refused for that.
    pub pressed_back: AtomicU64,
    /// Where copies connect to.
    listens: OnceLock<SocketAddr>,
    /// Where clients reach the leader.
    leader_clients: Mutex<Option<SocketAddr>>,
    export: Mutex<Exporting>,
    started: Instant,
    state: Mutex<State>,
    /// Called when copies have got further.
    waiting: Waiting,
    pub late: AtomicU64,
    /// Rung when the role has changed.
    bell: Mutex<Option<Box<dyn Fn() + Send>>>,
}

/// A copy that has come.
pub struct Guest {
    pub node: u64,
    pub address: SocketAddr,
    /// What has been sent there since it came.
    pub counts: SourceCounts,
    /// Since it came first.
    pub scrubbed: Scrubbed,
}

/// What is behind the lock.
pub struct State {
    pub node: Node,
    pub group: Group,
    pub data: StoreData,
    /// Counts every change of role: sessions of before are over.
    pub reign: u64,
    /// Who has come for copies in this reign, once each.
    pub guests: Vec<Guest>,
    /// Whom this node follows, as the user wrote it.
    pub follows: Option<String>,
    pub recovering_until: Option<u64>,
    /// Prepared mutations, and what has become of them.
    pub votes: Votes,
    pub verdicts: BTreeMap<u64, Verdict>,
    pub tickets: u64,
    pub committed: u64,
    pub aborted: u64,
    /// Names and values of what is known of the service that decides who leads.
    pub election: Vec<(&'static str, String)>,
}

/// The share of the log by which a copy in sync may be behind before mutations feel it.
const PRESSED: f64 = 0.75;

/// Verdicts that nobody has asked for are forgotten beyond this many.
const VERDICTS_MAX: usize = 100_000;

impl State {
    pub fn guest(&self, node: u64) -> Option<&Guest> {
        self.guests.iter().find(|guest| guest.node == node)
    }

    /// Copies that make no progress fall out of sync, those that have been gone for long are forgotten.
    pub fn tick(&mut self, now: u64) {
        self.group.tick(now);
        let group = &self.group;
        self.guests.retain(|guest| group.knows(guest.node));
    }

    /// Makes prepared mutations so, or not, as the votes are. Returns how many were decided, which is
    /// how many records that has logged but for those of deletions.
    ///
    /// `alone`: this node may say by itself that a copy is not in sync.
    pub fn decide(&mut self, alone: bool, now: u64) -> u64 {
        let due = self.votes.decide(&mut self.group, alone, now);
        for &(ticket, number, seq, verdict) in &due {
            let log = self.data.journal();
            if let Some(bytes) = log.prepared_at(number, seq) {
                if verdict == Verdict::Commit {
                    sink::commit(&self.data, &bytes, 0, false);
                    log.resolve(number, &bytes, Kind::Commit);
                } else {
                    log.resolve(number, &bytes, Kind::Abort);
                }
            }
            match verdict {
                Verdict::Commit => self.committed += 1,
                Verdict::Abort => self.aborted += 1,
            }
            self.verdicts.insert(ticket, verdict);
            if self.verdicts.len() > VERDICTS_MAX {
                self.verdicts.pop_first();
            }
        }
        due.len() as u64
    }

    /// Whether copies have what a hold asks for.
    fn reached(&self, hold: &Hold) -> bool {
        hold.level == Level::Async
            || (0..PARTITIONS).all(|number| {
                self.group
                    .reached(hold.level, number, hold.positions[number])
            })
    }
}

/// A level as options have it.
pub fn level_of(ack: Ack) -> Level {
    match ack {
        Ack::Async => Level::Async,
        Ack::Copies(copies) => Level::Copies(copies),
        Ack::TwoPhase => Level::TwoPhase,
    }
}

/// What a mutation waits for: first for this, then until copies have what has been logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    first: Option<Awaited>,
    level: Level,
    positions: [u64; PARTITIONS],
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// The verdict on this ticket.
    Verdict(u64),
    /// No mutation of the key at this place is under way any more, or this is over.
    Turn { place: u64, until: Instant },
    /// No copy in sync is about to fall off the log.
    Room,
}

impl Hold {
    pub fn new(first: Option<Awaited>) -> Hold {
        Hold {
            first,
            level: Level::Async,
            positions: [0; PARTITIONS],
            since: Instant::now(),
        }
    }

    /// Holds what has been logged so far, too, until that has got as far as a level asks.
    pub fn and_copies(self, journal: &Journal, level: Level) -> Hold {
        Hold {
            level,
            positions: journal.positions(),
            ..self
        }
    }
}

/// What has become of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Waiting,
    Reached,
    /// Too late, and that is to be told.
    Refused,
    /// Copies could not agree.
    Aborted,
}

/// What goes to a server that is no copy, and how far that is.
#[derive(Debug, Default)]
pub struct Exporting {
    target: Option<String>,
    walked: bool,
    items: u64,
    records: u64,
    refused: u64,
    failed: Option<String>,
}

impl Exporting {
    /// Where items are to be sent to, if anywhere.
    pub fn target(&self) -> Option<String> {
        self.target.clone()
    }

    /// Begins to send to another, or to nobody.
    pub fn begin(&mut self, target: Option<String>) {
        *self = Exporting {
            target,
            ..Exporting::default()
        };
    }

    /// How far it is: whether all items have been walked, items and records sent, and requests that
    /// were answered by an error.
    pub fn note(&mut self, walked: bool, items: u64, records: u64, refused: u64) {
        (self.walked, self.items) = (walked, items);
        (self.records, self.refused) = (records, refused);
    }

    /// It is over.
    pub fn end(&mut self, failed: String) {
        self.target = None;
        self.failed = Some(failed);
    }

    fn tell(&self, mut line: impl FnMut(&str, &dyn std::fmt::Display)) {
        match (&self.target, &self.failed) {
            (Some(target), _) => {
                line("export_to", target);
                let state = if self.walked { "following" } else { "walking" };
                line("export_state", &state);
            }
            (None, Some(failed)) => line("export_failed", failed),
            (None, None) => return,
        }
        line("export_items", &self.items);
        line("export_records", &self.records);
        line("export_refused", &self.refused);
    }
}

/// Why a promotion is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPromoted {
    AlreadyLeading,
    /// Its items are not whole.
    NotWhole,
    /// The last leader did not count on it: it may lack what was acknowledged.
    OutOfSync,
    /// A service outside decides who leads.
    Elected,
    /// It stands for leader there, as soon as there is none.
    Stands,
}

impl Replicas {
    /// Nothing if the store keeps no log. `id`: chosen at random for this process.
    pub fn new(settings: &Settings, data: StoreData, id: u64) -> Replicas {
        let holds = settings.levels().any(|level| level != Ack::Async);
        let settings = &settings.replication;
        let elected = settings.election.is_some();
        let role = if settings.follow.is_some() || elected {
            Role::Follower
        } else {
            Role::Recovering
        };
        data.journal().set_role(LogRole::Follower);
        data.journal().set_epoch(data.clock.to_unix(0));
        let node = Node::new(id, &settings.cluster, settings.secret.as_deref(), role);
        let level = level_of(settings.ack);
        let mut prefixes: Vec<_> = settings.ack_prefixes.clone();
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        let prefixes = prefixes
            .into_iter()
            .map(|(prefix, ack)| (prefix, level_of(ack)))
            .collect();
        let recovering_until = Some(settings.recover_ms);
        let replicas = Replicas {
            leading: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            id,
            elected,
            lease_until: AtomicU64::new(0),
            vouched_until: AtomicU64::new(0),
            fallen: AtomicBool::new(false),
            forced: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            level,
            min_isr: settings.min_isr,
            prefixes,
            holds,
            unasked: !holds && !elected && settings.backpressure == Backpressure::Off,
            ack_timeout: Duration::from_millis(settings.ack_timeout_ms),
            refuses: settings.ack_refuses,
            backpressure: settings.backpressure,
            pressed: AtomicBool::new(false),
            pressed_back: AtomicU64::new(0),
            listens: OnceLock::new(),
            leader_clients: Mutex::default(),
            export: Mutex::default(),
            started: Instant::now(),
            state: Mutex::new(State {
                node,
                group: Group::default(),
                data,
                reign: 0,
                guests: Vec::new(),
                follows: settings.follow.clone(),
                recovering_until: recovering_until.filter(|_| role == Role::Recovering),
                votes: Votes::default(),
                verdicts: BTreeMap::new(),
                tickets: 0,
                committed: 0,
                aborted: 0,
                election: Vec::new(),
            }),
            waiting: Waiting::default(),
            late: AtomicU64::new(0),
            bell: Mutex::default(),
        };
        if role == Role::Recovering && settings.recover_ms == 0 {
            replicas.lead(0);
        }
        replicas
    }

    /// Puts digests into the log, which copies compare with their own. False: this is for the leader.
    pub fn mark(&self) -> bool {
        if self.leading() {
            let state = self.state();
            (0..PARTITIONS).for_each(|number| state.data.journal().mark(number));
        }
        self.leading()
    }

    /// Whether mutations are taken here.
    #[inline]
    pub fn leading(&self) -> bool {
        self.leading.load(Relaxed) && (!self.elected || self.allowed_for() > 0)
    }

    /// In which epoch this node leads, and how far its log has come in a partition: all that has been
    /// answered before is in it. Takes no lock. Nothing if it does not lead.
    pub fn position(&self, log: &Journal, partition: usize) -> Option<(Epoch, u64)> {
        let epoch = || {
            let number = self.epoch.load(Acquire);
            self.leading().then_some(Epoch {
                number,
                id: self.id,
            })
        };
        let before = epoch()?;
        let seq = log.seq(partition);
        // Were it not its own log any more, it would not lead.
        fence(Acquire);
        (epoch() == Some(before)).then_some((before, seq))
    }

    /// In whose epoch this node's log is, and how far that has come; 0 in partitions that are not whole.
    pub fn positions(&self) -> (Epoch, [u64; PARTITIONS]) {
        let state = self.state();
        let positions = state.node.copy.positions(&state.data);
        let whole = |number: usize| positions.whole & 1 << number != 0;
        let seqs = std::array::from_fn(|number| match whole(number) {
            true => positions.seq[number],
            false => 0,
        });
        (positions.epoch, seqs)
    }

    /// Mutations are taken here, and there is nothing else to know about any of them.
    #[inline]
    pub fn takes_freely(&self) -> bool {
        self.unasked && self.leading.load(Relaxed)
    }

    /// Milliseconds for which an elected leader may take mutations, as things are. A process that was
    /// stopped and goes on finds that it may not.
    pub fn allowed_for(&self) -> u64 {
        let until = self.lease_until.load(Relaxed);
        let until = until.max(self.vouched_until.load(Relaxed));
        until.saturating_sub(self.now())
    }

    /// This node has led, and what it holds may have been changed elsewhere since: its lease is over, and
    /// no other leader counts on it yet.
    #[inline]
    pub fn fenced(&self) -> bool {
        self.elected
            && if self.leading.load(Relaxed) {
                self.allowed_for() == 0
            } else {
                self.fallen.load(Relaxed)
            }
    }

    /// Another leader counts on this node.
    pub fn follows_again(&self) {
        self.fallen.store(false, Relaxed);
    }

    /// Whether a service outside decides who leads.
    pub fn elected(&self) -> bool {
        self.elected
    }

    /// Whether an operator has told it to stand.
    pub fn forced(&self) -> bool {
        self.forced.load(Relaxed)
    }

    /// The last record has been sent. Nothing is taken from now on.
    pub fn end(&self) {
        self.leading.store(false, Relaxed);
        self.ended.store(true, Relaxed);
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// The lease lasts until then.
    pub fn set_lease(&self, until: u64) {
        self.lease_until.store(until, Relaxed);
    }

    /// Looks at what copies have promised.
    pub fn count_vouchers(&self, group: &Group, vouch: u64) {
        if self.elected && self.leading.load(Relaxed) {
            self.vouched_until
                .store(group.vouched_until(vouch), Relaxed);
        }
    }

    /// Milliseconds on this node's own clock, which never goes back; 0 is before everything.
    pub fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }

    /// Milliseconds of wall-clock time.
    pub fn unix_ms() -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_millis() as u64)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes to a server that is no copy.
    pub fn export(&self) -> MutexGuard<'_, Exporting> {
        self.export.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where clients reach the leader, if that is connected.
    pub fn leader_clients(&self) -> Option<SocketAddr> {
        *self
            .leader_clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_leader_clients(&self, address: Option<SocketAddr>) {
        *self
            .leader_clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = address;
    }

    /// Tells where copies connect to, once.
    pub fn listens_on(&self, address: SocketAddr) {
        let _ = self.listens.set(address);
    }

    /// Looks whether a copy in sync is about to fall off the log.
    pub fn weigh(&self) {
        if self.backpressure == Backpressure::Off {
            return;
        }
        let state = self.state();
        let log = state.data.journal();
        let pressed = self.leading()
            && state.group.in_sync().any(|member| {
                (0..PARTITIONS).any(|number| log.depth(number, member.acked[number] + 1) > PRESSED)
            });
        self.pressed.store(pressed, Relaxed);
    }

    /// Mutations are refused for the moment.
    #[inline]
    pub fn busy(&self) -> bool {
        let busy = self.backpressure == Backpressure::Refuse && self.pressed.load(Relaxed);
        if busy {
            self.pressed_back.fetch_add(1, Relaxed);
        }
        busy
    }

    /// Mutations may have to wait for copies to keep up.
    #[inline]
    pub fn paces(&self) -> bool {
        self.backpressure == Backpressure::Delay
    }

    /// Whoever has just mutated has to wait, if this gives what for.
    #[inline]
    pub fn pace(&self) -> Option<Awaited> {
        if !self.paces() || !self.pressed.load(Relaxed) {
            return None;
        }
        self.pressed_back.fetch_add(1, Relaxed);
        Some(Awaited::Room)
    }

    /// Begins to lead, in this epoch or the next one (0).
    pub fn lead(&self, epoch: u64) {
        self.lead_with(epoch, &[]);
    }

    /// The same, with copies that counted as in sync before.
    pub fn lead_with(&self, epoch: u64, in_sync: &[u64]) {
        let mut guard = self.state();
        let state = &mut *guard;
        let epoch = state.node.lead(&state.data, epoch);
        self.epoch.store(epoch.number, Release);
        state.group = Group::new(&state.data.journal().positions());
        state.group.freeze(self.elected);
        state.group.require(usize::from(self.min_isr));
        state.group.inherit(in_sync, self.now());
        state.guests.clear();
        self.forced.store(false, Relaxed);
        self.lease_until.store(0, Relaxed);
        self.vouched_until.store(0, Relaxed);
        state.reign += 1;
        state.recovering_until = None;
        self.leading.store(true, Relaxed);
        self.fallen.store(false, Relaxed);
        drop(guard);
        self.ring();
    }

    /// Takes no more mutations, and copies another, or nobody for now.
    pub fn follow(&self, leader: Option<String>) {
        // First: nothing is taken that would not be sent, and nothing read that may be old.
        if self.leading.load(Relaxed) {
            self.fallen.store(true, Relaxed);
        }
        self.leading.store(false, Relaxed);
        let mut guard = self.state();
        let state = &mut *guard;
        state.node.follow(&state.data);
        state.votes.clear();
        state.reign += 1;
        state.recovering_until = None;
        state.follows = leader;
        drop(guard);
        self.waiting.progress();
        self.ring();
    }

    /// `repl promote`
    ///
    /// # Errors
    /// It leads already, or may lack what was acknowledged and is not `forced`.
    pub fn promote(&self, forced: bool) -> Result<u64, NotPromoted> {
        {
            let state = self.state();
            if self.leading() {
                return Err(NotPromoted::AlreadyLeading);
            }
            if self.elected {
                if !forced {
                    return Err(NotPromoted::Elected);
                }
                self.forced.store(true, Relaxed);
                return Err(NotPromoted::Stands);
            }
            let copy = &state.node.copy;
            if !forced && state.node.role == Role::Follower {
                if copy.whole != ALL {
                    return Err(NotPromoted::NotWhole);
                }
                if !copy.in_sync {
                    return Err(NotPromoted::OutOfSync);
                }
            }
        }
        self.lead(0);
        Ok(self.state().node.epoch().number)
    }

    /// Who is called when the role has changed.
    pub fn on_change(&self, bell: Box<dyn Fn() + Send>) {
        *self.bell.lock().unwrap_or_else(PoisonError::into_inner) = Some(bell);
    }

    fn ring(&self) {
        if let Some(bell) = &*self.bell.lock().unwrap_or_else(PoisonError::into_inner) {
            bell();
        }
    }

    /// Mutations may have to wait for copies before they are answered.
    #[inline]
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// The level of a key: its own, or that of the `listener` where its client has come in, or that of
    /// all others.
    #[inline]
    pub fn level_of(&self, key: &[u8], listener: Option<Level>) -> Level {
        let own = self
            .prefixes
            .iter()
            .find(|(prefix, _)| key.starts_with(prefix));
        own.map_or_else(|| listener.unwrap_or(self.level), |(_, level)| *level)
    }

    /// The highest level that a key may have.
    pub fn highest_level(&self, listener: Option<Level>) -> Level {
        let own = self.prefixes.iter().map(|(_, level)| *level);
        own.fold(listener.unwrap_or(self.level), Level::max)
    }

    /// Whether a hold still waits. Unlike [`held`](Replicas::held), this can be asked again.
    pub fn waits(&self, hold: &Hold) -> bool {
        if !self.leading() {
            return false;
        }
        let state = self.state();
        match hold.first {
            Some(Awaited::Verdict(ticket)) => state.votes.waits(ticket),
            Some(Awaited::Turn { place, until }) => {
                state.votes.busy(place) && Instant::now() < until
            }
            Some(Awaited::Room) => self.pressed.load(Relaxed),
            None => hold.since.elapsed() < self.ack_timeout && !state.reached(hold),
        }
    }

    /// What has become of a hold; a verdict is told once.
    pub fn held(&self, hold: &mut Hold) -> Reach {
        let leads = self.leading();
        let mut state = self.state();
        match hold.first {
            Some(Awaited::Verdict(ticket)) => match state.verdicts.remove(&ticket) {
                Some(Verdict::Commit) => {}
                None if leads && state.votes.waits(ticket) => return Reach::Waiting,
                Some(Verdict::Abort) | None => return Reach::Aborted,
            },
            Some(Awaited::Turn { place, until }) => {
                if leads && state.votes.busy(place) && Instant::now() < until {
                    return Reach::Waiting;
                }
            }
            Some(Awaited::Room) if leads && self.pressed.load(Relaxed) => return Reach::Waiting,
            Some(Awaited::Room) | None => {}
        }
        hold.first = None;
        if state.reached(hold) {
            return Reach::Reached;
        }
        if leads && hold.since.elapsed() < self.ack_timeout {
            return Reach::Waiting;
        }
        self.late.fetch_add(1, Relaxed);
        if self.refuses || !leads {
            Reach::Refused
        } else {
            Reach::Reached
        }
    }

    /// Those who wait until copies have got further, or some milliseconds have passed.
    pub fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// Names and values for `stats replication`.
    pub fn tell(&self, mut line: impl FnMut(&str, &dyn std::fmt::Display)) {
        let state = self.state();
        let (node, copy) = (&state.node, &state.node.copy);
        let role = match node.role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Recovering => "recovering",
        };
        line("role", &role);
        line("node", &format_args!("{:016x}", node.id));
        let epoch = node.epoch();
        line("epoch", &epoch.number);
        line("epoch_id", &format_args!("{:016x}", epoch.id));
        line(
            "level",
            &match self.level {
                Level::Async => "async".to_owned(),
                Level::Copies(copies) => format!("ack={copies}"),
                Level::TwoPhase => "2pc".to_owned(),
            },
        );
        if let Some(address) = self.listens.get() {
            line("listens", address);
        }
        line("ack_late", &self.late.load(Relaxed));
        line("pressed_back", &self.pressed_back.load(Relaxed));
        line("min_isr", &self.min_isr);
        line("committed", &state.committed);
        line("aborted", &state.aborted);
        let log = state.data.journal();
        let positions = log.positions();
        line("records", &positions.iter().sum::<u64>());
        let (used, room) = log.ring_usage();
        line("ring_bytes", &used);
        line("ring_limit", &room);
        let now = self.now();
        if node.role == Role::Follower {
            if let Some(follows) = &state.follows {
                line("follows", follows);
            }
            line("leader", &format_args!("{:016x}", node.leader));
            if let Some(address) = self.leader_clients() {
                line("leader_clients", &address);
            }
            line("whole_partitions", &copy.whole.count_ones());
            line("in_sync", &u8::from(copy.in_sync));
            line("clock_skew_ms", &copy.clock.ms());
        }
        for (name, value) in &state.election {
            line(name, value);
        }
        if self.elected {
            line("writes_allowed_ms", &self.allowed_for().min(1 << 40));
        }
        let counts = &copy.counts;
        line("copy_records", &counts.records);
        line("copy_items", &counts.items);
        line("digests_equal", &counts.digests_equal);
        line("digests_differed", &counts.digests_differed);
        line("values_differed", &counts.values_differed);
        line("no_room", &counts.no_room);
        line("clock_alarms", &counts.clock_alarms);
        line("lost_locally", &log.lost_locally());
        line("in_sync_changes", &state.group.changes);
        self.export().tell(&mut line);
        for member in state.group.members() {
            let mut line = |name: &str, value: &dyn std::fmt::Display| {
                line(&format!("follower:{:016x}:{name}", member.node), value);
            };
            line(
                "state",
                &match (member.connected, member.ready) {
                    (false, _) => "gone",
                    (true, false) => "syncing",
                    (true, true) => "streaming",
                },
            );
            line("in_sync", &u8::from(member.in_sync));
            // As of now, not of when the copy was last looked at: who reads from it goes by this.
            let records = member.behind(&positions);
            line("lag_records", &records);
            line("lag_bytes", &member.bytes_in_flight);
            let behind = match records {
                0 => 0,
                _ => now.saturating_sub(member.caught_up_at).max(1),
            };
            line("lag_ms", &behind);
            if let Some(guest) = state.guest(member.node) {
                let counts = &guest.counts;
                line("address", &guest.address);
                line("sent_records", &counts.records);
                line("sent_bytes", &counts.bytes);
                line("items_walked", &counts.items_walked);
                line("items_repaired", &counts.items_repaired);
                line("full_syncs", &u8::from(counts.fulls > 0));
                line("diff_syncs", &u8::from(counts.diffs > 0));
                line("digest_repairs", &counts.digest_repairs);
                line("scrub_repairs", &counts.scrub_repairs);
                line("values_patched", &counts.values_patched);
                line("scrubs", &guest.scrubbed.rounds);
                line("scrub_items", &guest.scrubbed.items);
                line("clock_skew_ms", &counts.clock_skew);
            }
        }
    }
}
