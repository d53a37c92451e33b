#![forbid(unsafe_code)]
//! The thread that keeps copies: accepts them, or dials the leader, and moves bytes between sockets
//! and [sessions](crate::cluster::replication::session).
//!
//! It sleeps in one poll, which the log's bell wakes. While the log is busy the bell stays silent and
//! the thread looks by itself every few milliseconds, so that mutations do not pay for waking it, and
//! records go in frames of many; unless somebody waits for copies.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

use super::control::Control;
use crate::cluster::election::VOUCH;
use crate::cluster::replication::data::{Data, StoreData};
use crate::cluster::replication::diary::Diary;
use crate::cluster::replication::frame;
use crate::cluster::replication::replicas::{Guest, Replicas, State};
use crate::cluster::replication::session::{End, Role, Session};
use crate::cluster::replication::source::Scrubbed;
use crate::cluster::replication::{DIGEST_EVERY, Moment, SKEW_ALARM, SUSPECT};
use crate::command::Shared;
use crate::net::{Keyring, News, Outward, Progress, Stream, Ways};
use crate::settings::{self, EndpointTls, PeerTls};
use crate::store::journal::{PARTITIONS, Reader};

const WAKE: Token = Token(usize::MAX);
const LISTENER: Token = Token(usize::MAX - 1);

/// Bytes that wait for a socket before no more are made for it.
const OUT_MAX: usize = 256 << 10;
/// Bytes read at a time.
const READ: usize = 256 << 10;
/// How long to wait for more while the log is busy: until there are about so many records, but no
/// shorter and no longer than this. What a frame costs is shared by those of one partition.
const GATHERED: u64 = 1024;
const NAP: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(4));
/// The poll never sleeps longer.
const TICK: Duration = Duration::from_millis(50);
/// Records in a millisecond from which on the log counts as busy.
const BUSY: u64 = 4;
/// Connections at a time: four copies, and those that come again before the old ones are known to be
/// gone.
const CONNECTIONS: usize = 16;
/// How long copies may take to get the last records, in milliseconds.
const FAREWELL: u64 = 500;
/// Milliseconds after which the memory of a log that nobody reads is given back.
const UNREAD: u64 = 3_600_000;
/// Milliseconds before dialling again, at first and at most.
const BACKOFF: (u64, u64) = (50, 2000);

/// One socket and what goes through it.
struct Line {
    stream: Stream,
    session: Session<StoreData>,
    dialer: bool,
    peer: SocketAddr,
    input: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    /// The socket takes no more at the moment.
    blocked: bool,
    readable: bool,
    /// The other side has sent its last bytes.
    closed: bool,
    joined: bool,
    /// It has been said that the other side's clock is wrong, or this one.
    skewed: bool,
    reign: u64,
}

/// How fast the log grows.
#[derive(Default)]
struct Pace {
    /// When that was looked at last, and how many records there were.
    at: u64,
    records: u64,
    /// Records in a millisecond.
    speed: u64,
}

impl Pace {
    fn note(&mut self, now: u64, records: u64) {
        if now > self.at {
            // It may have gone back, where a copy began anew.
            self.speed = records.saturating_sub(self.records) / (now - self.at);
            (self.at, self.records) = (now, records);
        }
    }

    /// How long to wait for more, if the log is busy.
    fn nap(&self) -> Option<Duration> {
        let gathered = Duration::from_micros(GATHERED * 1000 / self.speed.max(1));
        (self.speed >= BUSY).then(|| gathered.clamp(NAP.0, NAP.1))
    }
}

/// What a turn for everybody has come to.
struct Round {
    /// There is more to do at once.
    more: bool,
    /// Commits were logged that have not been sent.
    decided: bool,
    /// Records that are known of, those included.
    records: u64,
}

struct Keeper {
    replicas: Arc<Replicas>,
    poll: Poll,
    listener: Option<TcpListener>,
    lines: Slab<Line>,
    dial_at: u64,
    backoff: u64,
    called_at: u64,
    /// When there was last somebody who reads the log.
    read_at: u64,
    marked_at: u64,
    scrubbed_at: u64,
    scrub_every: u64,
    tls: Option<PeerTls>,
    pace: Pace,
    diary: Diary,
    /// Mutations of clients go to the leader.
    forwards: bool,
    /// Where it has said that clients reach it, and where it was dialled.
    leader_said: Option<(String, SocketAddr)>,
    /// The server stops since.
    ending_since: Option<u64>,
    buffer: Vec<u8>,
}

/// Binds the port for copies, if there is to be one, and starts the thread.
///
/// # Errors
/// The address cannot be had, or no thread.
pub fn start(
    shared: &Arc<Shared>,
    replicas: &Arc<Replicas>,
    control: Arc<Control>,
) -> io::Result<(JoinHandle<()>, Option<SocketAddr>)> {
    let settings = &shared.settings.replication;
    if let Some(tls) = &settings.tls {
        // What cannot be read is told at once.
        keyring(tls)
            .and_then(|_| outward(tls, "localhost"))
            .map_err(io::Error::other)?;
    }
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    let mut listener = match &settings.listen {
        Some(address) => Some(bind(address)?),
        None => None,
    };
    let address = listener
        .as_ref()
        .and_then(|listener| listener.local_addr().ok());
    if let Some(listener) = &mut listener {
        poll.registry()
            .register(listener, LISTENER, Interest::READABLE)?;
    }
    if let Some(address) = address {
        replicas.listens_on(address);
    }
    let bell = waker.clone();
    replicas.on_change(Box::new(move || {
        let _ = bell.wake();
    }));
    let mut keeper = Keeper {
        replicas: replicas.clone(),
        poll,
        listener,
        lines: Slab::new(),
        dial_at: 0,
        backoff: BACKOFF.0,
        called_at: 0,
        marked_at: 0,
        scrubbed_at: 0,
        read_at: 0,
        scrub_every: settings.scrub_seconds * 1000,
        tls: settings.tls.clone(),
        pace: Pace::default(),
        diary: Diary::default(),
        forwards: settings.forwards,
        leader_said: None,
        ending_since: None,
        buffer: vec![0; READ],
    };
    let store = shared.store.clone();
    let thread = Builder::new()
        .name("replication".to_owned())
        .spawn(move || {
            let Some(journal) = store.journal() else {
                return;
            };
            let bell = Box::new(move || {
                let _ = waker.wake();
            });
            let Some(reader) = journal.reader(bell) else {
                return;
            };
            keeper.replicas.waiting().naps_here();
            if let Err(error) = keeper.run(&reader, &control) {
                log::error!("replication has ended: {error}");
            }
        })?;
    Ok((thread, address))
}

/// What is shown to those who dial, and asked of them. The files are read for every connection, so
/// that new certificates are used without a restart.
fn keyring(tls: &PeerTls) -> Result<Keyring, String> {
    let settings = settings::Tls {
        enabled: true,
        chain_cert: Some(tls.cert.clone()),
        key: Some(tls.key.clone()),
        ca_cert: Some(tls.ca.clone()),
        ..settings::Tls::default()
    };
    Keyring::load(&settings)?.ok_or_else(|| "no certificate to show".to_owned())
}

/// The same towards a leader, whose certificate bears this name if there is no other.
fn outward(tls: &PeerTls, host: &str) -> Result<Outward, String> {
    Outward::load(&Ways {
        authorities: Some(&tls.ca),
        identity: Some((&tls.cert, &tls.key)),
        name: tls.name.as_deref().unwrap_or(host),
        verify: true,
    })
}

fn resolve(address: &str) -> io::Result<SocketAddr> {
    address
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("{address} has no address")))
}

fn bind(address: &str) -> io::Result<TcpListener> {
    let told = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("cannot listen for copies on {address}: {error}"),
        )
    };
    TcpListener::bind(resolve(address).map_err(told)?).map_err(told)
}

impl Keeper {
    fn run(&mut self, reader: &Reader<'_>, control: &Control) -> io::Result<()> {
        let mut events = Events::with_capacity(64);
        let mut timeout = Duration::ZERO;
        loop {
            match self.poll.poll(&mut events, Some(timeout)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            reader.rise();
            if control.stopping().is_some() && self.may_end() {
                self.resign();
                return Ok(());
            }
            for event in events.iter() {
                match event.token() {
                    WAKE => {}
                    LISTENER => self.accept(),
                    Token(key) => {
                        if let Some(line) = self.lines.get_mut(key) {
                            line.readable |= event.is_readable() || event.is_read_closed();
                            line.closed |= event.is_read_closed();
                            line.blocked &= !event.is_writable();
                        }
                    }
                }
            }
            self.dial();
            let turn = self.round();
            timeout = if turn.more {
                Duration::ZERO
            } else if let Some(nap) = self.pace.nap().filter(|_| !self.replicas.waiting().any()) {
                if self.replicas.leading() && !self.lines.iter().any(|(_, line)| line.blocked) {
                    // What copies say meanwhile can wait as well, unless somebody begins to wait for it.
                    std::thread::park_timeout(nap);
                    Duration::ZERO
                } else {
                    nap
                }
            } else if self.is_stuck() {
                self.tick_length()
            } else {
                // From here on the bell is rung. What came before is looked at once more, unless it is
                // this thread's own; commits go with what follows them, if that comes soon.
                reader.sleep();
                let missed = self.replicas.leading() && reader.records() != turn.records;
                match (missed, turn.decided) {
                    (true, _) => Duration::ZERO,
                    (false, true) => NAP.0,
                    (false, false) => self.tick_length(),
                }
            };
        }
    }

    /// No copy takes anything at the moment: what is appended is not to be told, the sockets will say
    /// when they take something again.
    fn is_stuck(&self) -> bool {
        let mut lines = self.lines.iter();
        !self.lines.is_empty() && lines.all(|(_, line)| line.joined && line.blocked)
    }

    /// The server stops. Copies that follow get what they have not got yet, if that is soon done.
    fn may_end(&mut self) -> bool {
        let now = self.replicas.now();
        let since = *self.ending_since.get_or_insert(now);
        let state = self.replicas.state();
        let positions = state.data.journal().positions();
        let mut following = state
            .group
            .members()
            .filter(|member| member.connected && member.ready);
        now > since + FAREWELL || following.all(|member| member.behind(&positions) == 0)
    }

    /// Lets the copies know that nobody leads here any more: what they have promised is void.
    fn resign(&mut self) {
        let led = self.replicas.leading();
        self.replicas.end();
        let state = self.replicas.state();
        for (_, line) in &mut self.lines {
            if led && line.session.source().is_some() {
                line.session.resign(&state.node, &mut line.out);
                let _ = line.stream.write(&line.out[line.sent..]);
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let mut arrived = Vec::new();
        loop {
            match listener.accept() {
                Ok(arrival) => arrived.push(arrival),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    log::warn!("cannot accept a copy: {error}");
                    break;
                }
            }
        }
        for (stream, peer) in arrived {
            let _ = stream.set_nodelay(true);
            let stream = Stream::Tcp(stream);
            let secured = match &self.tls {
                None => Ok(stream),
                Some(tls) => keyring(tls)
                    .map_err(io::Error::other)
                    .and_then(|keys| stream.secure(&keys, EndpointTls::Mutual)),
            };
            let stream = match secured {
                Ok(stream) => stream,
                Err(error) => {
                    log::warn!("{peer}: {error}");
                    continue;
                }
            };
            if self.lines.len() >= CONNECTIONS && !self.make_room() {
                log::warn!("{peer}: too many copies");
                continue;
            }
            self.begin(stream, peer, false);
        }
    }

    /// Ends the connection that has been silent longest of those that have not shown who they are: strangers
    /// keep no copy out. Whether there was one.
    fn make_room(&mut self) -> bool {
        let stranger = self
            .lines
            .iter()
            .filter(|(_, line)| !line.dialer && !line.session.introduced())
            .min_by_key(|(_, line)| line.session.heard_at())
            .map(|(key, _)| key);
        let Some(key) = stranger else {
            return false;
        };
        let end = End::Refused("others came before it had shown who it is".to_owned());
        self.end(key, &end, self.replicas.now());
        true
    }

    /// Connects to the leader, if this node should follow and does not.
    fn dial(&mut self) {
        let now = self.replicas.now();
        if now < self.dial_at || self.lines.iter().any(|(_, line)| line.dialer) {
            return;
        }
        let leader = {
            let state = self.replicas.state();
            match state.node.role {
                Role::Follower => state.follows.clone(),
                Role::Leader | Role::Recovering => None,
            }
        };
        let Some(leader) = leader else {
            return;
        };
        // Not all at once: the leader may just have come back.
        let jitter = getrandom::u32().unwrap_or(0) as u64 % self.backoff.max(1);
        self.dial_at = now + self.backoff + jitter;
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
        let connected = resolve(&leader).and_then(|peer| {
            let stream = Stream::connect(peer)?;
            let stream = match &self.tls {
                None => stream,
                Some(tls) => {
                    let host = leader
                        .rsplit_once(':')
                        .map_or(&leader[..], |(host, _)| host);
                    let outward = outward(tls, host).map_err(io::Error::other)?;
                    stream.secure_towards(&outward)?
                }
            };
            Ok((stream, peer))
        });
        match connected {
            Ok((stream, peer)) => self.begin(stream, peer, true),
            Err(error) => log::warn!("cannot connect to the leader {leader}: {error}"),
        }
    }

    fn begin(&mut self, mut stream: Stream, peer: SocketAddr, dialer: bool) {
        let mut nonce = [0; 16];
        if let Err(error) = getrandom::fill(&mut nonce) {
            log::error!("no random numbers for a handshake: {error}");
            return;
        }
        let entry = self.lines.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self
            .poll
            .registry()
            .register(&mut stream, Token(entry.key()), interest);
        if let Err(error) = registered {
            log::warn!("{peer}: cannot watch a connection: {error}");
            return;
        }
        let mut out = Vec::new();
        let now = self.replicas.now();
        let state = self.replicas.state();
        let session = Session::new(dialer, &state.node, &state.data, nonce, now, &mut out);
        entry.insert(Line {
            stream,
            session,
            dialer,
            peer,
            input: Vec::new(),
            out,
            sent: 0,
            blocked: false,
            readable: true,
            closed: false,
            joined: false,
            skewed: false,
            reign: state.reign,
        });
    }

    /// How long nothing is looked at if nothing happens. Whoever waits may have waited long enough.
    fn tick_length(&self) -> Duration {
        if self.replicas.waiting().any() {
            TICK / 5
        } else {
            TICK
        }
    }

    /// One turn for everybody.
    fn round(&mut self) -> Round {
        let mut records = self.replicas.state().data.journal().records();
        let now = self.replicas.now();
        let at = Moment {
            now,
            unix_ms: Replicas::unix_ms(),
        };
        let mut more = false;
        let mut ended: Vec<(usize, End)> = Vec::new();
        let mut joined: Vec<usize> = Vec::new();
        let mut reverse_done = false;
        let mut progressed = false;
        for (key, line) in &mut self.lines {
            let mut guard = self.replicas.state();
            let state = &mut *guard;
            if line.reign != state.reign {
                ended.push((key, End::Refused("the role has changed".to_owned())));
                continue;
            }
            let before = line.joined;
            let turned = turn(line, state, &mut self.buffer, at, &mut progressed);
            if line.joined && !before {
                joined.push(key);
            }
            match turned {
                Ok(again) => more |= again,
                Err(end) => {
                    reverse_done |= end == End::Recovered;
                    ended.push((key, end));
                }
            }
        }
        for key in joined {
            self.end_older(key, now);
        }
        for (key, end) in ended {
            self.end(key, &end, now);
        }
        if self.forwards {
            self.find_leader();
        }
        if reverse_done {
            log::info!("replication: recovered from a copy");
            self.replicas.lead(0);
            more = true;
        }
        self.replicas
            .count_vouchers(&self.replicas.state().group, VOUCH);
        let alone = !self.replicas.elected();
        let decided = if self.replicas.leading() {
            self.replicas.state().decide(alone, now)
        } else {
            0
        };
        if decided > 0 {
            records += decided;
            progressed = true;
        }
        self.tick(now);
        self.replicas.weigh();
        if progressed || now >= self.called_at + self.tick_length().as_millis() as u64 {
            self.called_at = now;
            self.replicas.waiting().progress();
        }
        self.pace.note(now, records);
        Round {
            more,
            decided: decided > 0,
            records,
        }
    }

    /// Looks where clients reach the leader, for those who write here.
    fn find_leader(&mut self) {
        let following = self
            .lines
            .iter()
            .find(|(_, line)| line.dialer && line.session.sink().is_some());
        let said = match following {
            Some((_, line)) => {
                let state = self.replicas.state();
                let said = state.node.copy.source_clients.clone();
                Some((said, line.peer))
            }
            None => None,
        };
        if said == self.leader_said {
            return;
        }
        let address = said.as_ref().and_then(|(said, peer)| {
            let here = said.strip_prefix(':').map(str::parse);
            match here {
                Some(port) => Some(SocketAddr::new(peer.ip(), port.ok()?)),
                None if said.is_empty() => None,
                None => resolve(said)
                    .map_err(|error| {
                        log::warn!("replication: where clients reach the leader: {error}")
                    })
                    .ok(),
            }
        });
        self.replicas.set_leader_clients(address);
        self.leader_said = said;
    }

    /// What has to be done now and then.
    fn tick(&mut self, now: u64) {
        let mut state = self.replicas.state();
        state.tick(now);
        self.diary.look(&state, now);
        let recovering = state.recovering_until.is_some_and(|until| now >= until);
        if state.node.role == Role::Follower && state.node.copy.in_sync {
            self.replicas.follows_again();
        }
        let leading = self.replicas.leading();
        if leading && now >= self.marked_at + DIGEST_EVERY {
            self.marked_at = now;
            for number in 0..PARTITIONS {
                state.data.journal().mark(number);
            }
        }
        drop(state);
        if recovering
            && !self
                .lines
                .iter()
                .any(|(_, line)| line.session.sink().is_some())
        {
            log::info!("replication: no follower with items has come: leads empty");
            self.replicas.lead(0);
        }
        if !self.lines.is_empty() || self.replicas.export().target().is_some() {
            self.read_at = now;
        } else if now >= self.read_at + UNREAD {
            // Whoever comes now is compared. Nobody may have read it since it was given back.
            self.read_at = now;
            self.replicas.state().data.journal().close_rings();
        }
        if leading && self.scrub_every > 0 && now >= self.scrubbed_at + self.scrub_every {
            self.scrubbed_at = now;
        }
        if leading && self.scrub_every > 0 {
            // Those that were away then, or not done, are not left out.
            let sources = self.lines.iter_mut();
            for source in sources.filter_map(|(_, line)| line.session.source()) {
                if source.scrubbed().began < self.scrubbed_at {
                    source.scrub(now);
                }
            }
        }
    }

    /// A copy has come again before the end of its last connection was noticed: what that one still says is
    /// old, and when it ends the copy has not gone.
    fn end_older(&mut self, key: usize, now: u64) {
        let Some(peer) = self.lines.get(key).map(|line| line.session.peer()) else {
            return;
        };
        let lines = self.lines.iter_mut();
        let older = lines
            .filter(|(other, line)| *other != key && line.joined && line.session.peer() == peer);
        let older: Vec<usize> = older
            .map(|(other, line)| {
                line.joined = false;
                other
            })
            .collect();
        for other in older {
            let end = End::Refused("the copy has come again".to_owned());
            self.end(other, &end, now);
        }
    }

    fn end(&mut self, key: usize, end: &End, now: u64) {
        let Some(mut line) = self.lines.try_remove(key) else {
            return;
        };
        // What has been said last is worth a try.
        let _ = line.stream.write(&line.out[line.sent..]);
        let level = match end {
            End::Broken(_) => log::Level::Warn,
            _ => log::Level::Info,
        };
        log::log!(level, "{}: {end}", line.peer);
        if line.joined {
            self.replicas.state().group.leave(line.session.peer(), now);
        }
        if line.dialer {
            self.dial_at = self.dial_at.min(now + BACKOFF.1);
            if line.session.sink().is_some() {
                // It had worked: the next attempt comes at once.
                self.backoff = BACKOFF.0;
                self.dial_at = now + BACKOFF.0;
            }
        }
    }
}

/// Reads, lets the session work, and writes. True: there is more to do at once.
fn turn(
    line: &mut Line,
    state: &mut State,
    buffer: &mut [u8],
    at: Moment,
    progressed: &mut bool,
) -> Result<bool, End> {
    let now = at.now;
    let mut more = false;
    let State {
        node,
        data,
        group,
        guests,
        votes,
        ..
    } = state;
    let gone = |stream: &mut Stream| {
        let failed = match (stream.news(), stream.connected()) {
            (Some(News::Failed { reason, .. }), _) => reason,
            (_, Err(error)) => error.to_string(),
            _ => "the connection was closed".to_owned(),
        };
        End::GoneAway(failed)
    };
    if line.readable && line.input.len() < frame::HEADER + frame::PAYLOAD_MAX {
        match line.stream.read(buffer) {
            Progress::Closed => return Err(gone(&mut line.stream)),
            Progress::Blocked => line.readable = false,
            Progress::Moved(n) => {
                // What comes after a short read is told, but for the end behind the last bytes.
                line.readable = line.closed || !line.stream.drained(n, buffer.len());
                more |= line.readable;
                line.input.extend_from_slice(&buffer[..n]);
                // A handshake may have been what kept it from writing.
                line.blocked &= !matches!(line.stream, Stream::Tls(_));
            }
        }
    }
    if !line.input.is_empty() {
        let used = line
            .session
            .receive(node, data, &line.input, at, &mut line.out)?;
        line.input.drain(..used);
    }
    let ahead = match (line.session.source(), line.dialer) {
        (Some(source), _) => source.counts.clock_skew,
        (None, true) => node.copy.clock.ms(),
        (None, false) => 0,
    };
    if (ahead.abs() >= SKEW_ALARM) != line.skewed {
        line.skewed = !line.skewed;
        let peer = line.peer;
        if line.skewed {
            log::error!(
                "{peer}: its clock is {ahead} ms ahead of this one: expiry times follow the leader's; set the clocks right"
            );
        } else {
            log::info!("{peer}: its clock agrees with this one");
        }
    }
    if line.out.len() - line.sent < OUT_MAX {
        let room = OUT_MAX - (line.out.len() - line.sent);
        more |= line.session.pump(node, data, at, room, &mut line.out)?;
    }
    if line.dialer && line.session.source().is_none() && now > line.session.heard_at() + SUSPECT {
        return Err(End::Silent);
    }
    let peer = line.session.peer();
    if let Some(source) = line.session.source() {
        if !line.joined {
            line.joined = true;
            group.join(peer, now);
            let before = guests.iter().position(|guest| guest.node == peer);
            let before = before.map(|at| guests.swap_remove(at).scrubbed);
            source.go_on_scrubbing(before.unwrap_or_else(|| Scrubbed::new(now)), now);
            guests.push(Guest {
                node: peer,
                address: line.peer,
                counts: source.counts,
                scrubbed: source.scrubbed(),
            });
        }
        let positions = data.journal().positions();
        let acked = source.acked();
        *progressed |= group.progressed(peer, &acked);
        group.progress(
            peer,
            &acked,
            source.ready(),
            source.progress_at(),
            now,
            &positions,
        );
        group.note(peer, source.in_flight());
        for (number, seq) in source.take_naks() {
            votes.refuse(number, seq);
        }
        group.vouched(peer, source.vouched_at);
        let in_sync = group.in_sync().any(|member| member.node == peer);
        if source.in_sync != in_sync {
            source.in_sync = in_sync;
            source.beat(data, at, &mut line.out);
        }
        if let Some(guest) = guests.iter_mut().find(|guest| guest.node == peer) {
            guest.counts = source.counts;
            guest.scrubbed = source.scrubbed();
        }
    }
    while line.sent < line.out.len() && !line.blocked {
        match line.stream.write(&line.out[line.sent..]) {
            Progress::Moved(n) => line.sent += n,
            Progress::Blocked => line.blocked = true,
            Progress::Closed => return Err(gone(&mut line.stream)),
        }
    }
    match line.stream.flush() {
        Progress::Moved(_) => {}
        Progress::Blocked => line.blocked = true,
        Progress::Closed => return Err(gone(&mut line.stream)),
    }
    if line.sent == line.out.len() {
        line.out.clear();
        line.sent = 0;
        if line.out.capacity() > 4 * OUT_MAX {
            line.out = Vec::new();
        }
    } else if line.sent > OUT_MAX {
        line.out.drain(..line.sent);
        line.sent = 0;
    }
    Ok(more && !line.blocked)
}
