#![forbid(unsafe_code)]
//! One connection between two copies, from the first frame to the last: (bytes, now) to (state, bytes).
//!
//! ```text
//! dialer                         acceptor
//!   HELLO  ───────────────────────▶
//!          ◀───────────────────────  HELLO
//!   AUTH   ───────────────────────▶            with a secret: each proves that it knows it
//!          ◀───────────────────────  AUTH
//!   POSITIONS ────────────────────▶
//!          ◀───────────────────────  MODE      then the acceptor is the source
//! ```
//! An acceptor that has started empty answers with a reverse MODE; then it sends POSITIONS, gets a
//! MODE, and becomes a copy of the dialer until it is whole.

use super::data::Data;
use super::frame::{self, Broken, Frame};
use super::history::Epoch;
use super::message::{self, Hello, Message, Mode, Tier, Type};
use super::sink::{self, Context, Copy, Sink};
use super::source::Source;
use super::{DEAD, HEARTBEAT, Moment};
use crate::store::journal::{ALL, Kind, Lost, PARTITIONS};

/// Why a leader goes away that stops in good order.
const RESIGNED: &str = "the leader has resigned";

/// What this node may be to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes mutations.
    Leader,
    /// It copies somebody, or waits to.
    Follower,
    /// It should lead and has nothing: it takes the items of the first copy that has some.
    Recovering,
}

/// What a session knows of its node.
pub struct Node {
    pub id: u64,
    pub cluster: u64,
    pub secret: Option<ring::hmac::Key>,
    pub role: Role,
    pub copy: Copy,
    /// The highest epoch that was heard of.
    pub seen: u64,
    /// Whom it followed last.
    pub leader: u64,
    /// Where clients reach it, `host:port`, or `:port` on the host that copies dial.
    pub clients: String,
}

impl Node {
    pub fn new(id: u64, cluster: &str, secret: Option<&[u8]>, role: Role) -> Node {
        Node {
            id,
            cluster: xxhash_rust::xxh3::xxh3_64(cluster.as_bytes()),
            secret: secret.map(|secret| ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret)),
            role,
            copy: Copy::default(),
            seen: 0,
            leader: 0,
            clients: String::new(),
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.copy.history.epoch()
    }

    /// Begins to lead: a new epoch behind everything that is here. `number` of the epoch; 0 for the
    /// next after the highest that was seen.
    pub fn lead<D: Data>(&mut self, data: &D, number: u64) -> Epoch {
        let number = number.max(self.seen.max(self.epoch().number) + 1);
        let epoch = Epoch {
            number,
            id: self.id,
        };
        self.seen = number;
        let positions = data.journal().positions();
        self.copy.history.open(epoch, &positions);
        self.copy.whole = ALL;
        self.role = Role::Leader;
        // No id that a former leader has given out may come again.
        let last = self.copy.cas.max(data.last_cas());
        data.raise_cas(last.saturating_add(1 << 32));
        data.lead();
        // A commit has needed the votes of all who may be promoted: what was prepared may have been
        // acknowledged.
        for number in 0..PARTITIONS {
            for bytes in data.journal().prepared(number) {
                sink::commit(data, &bytes, 0, false);
                data.journal().resolve(number, &bytes, Kind::Commit);
            }
        }
        if let Some(due) = self.copy.flush_due.take() {
            data.flush_all(Some(due));
        }
        epoch
    }

    /// Leaves leading to another.
    pub fn follow<D: Data>(&mut self, data: &D) {
        self.role = Role::Follower;
        self.copy.in_sync = false;
        data.follow();
    }
}

enum State<D: Data> {
    Hello,
    Auth,
    /// The acceptor waits for positions, or the dialer for a mode.
    Positions,
    Source(Box<Source<D>>),
    Sink(Box<Sink<D>>),
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Broken(Broken),
    /// The other side said so.
    GoneAway(String),
    /// Refused here, and said so.
    Refused(String),
    /// Nothing was heard.
    Silent,
    /// The copy has fallen off the log: it has to come again, and will be compared.
    Behind,
    /// An empty leader has got what it needs.
    Recovered,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Broken(broken) => broken.fmt(f),
            End::GoneAway(reason) => write!(f, "the other side ended it: {reason}"),
            End::Refused(reason) => write!(f, "refused: {reason}"),
            End::Silent => write!(f, "nothing was heard for too long"),
            End::Behind => write!(f, "the copy has fallen off the log"),
            End::Recovered => write!(f, "recovered from a copy"),
        }
    }
}

impl From<Broken> for End {
    fn from(broken: Broken) -> End {
        End::Broken(broken)
    }
}

pub struct Session<D: Data> {
    dialer: bool,
    state: State<D>,
    ours: Hello,
    theirs: Hello,
    heard_at: u64,
    /// It brings an empty leader back.
    reverse: bool,
    /// What fragments have brought of a payload, and how many bytes they have taken.
    begun: (Vec<u8>, usize),
}

impl<D: Data> Session<D> {
    /// Begins one; a dialer speaks first.
    pub fn new(
        dialer: bool,
        node: &Node,
        data: &D,
        nonce: [u8; 16],
        now: u64,
        out: &mut Vec<u8>,
    ) -> Session<D> {
        let ours = Hello {
            node: node.id,
            cluster: node.cluster,
            nonce,
            epoch: node.epoch(),
            items: data.items(),
            secret: node.secret.is_some(),
        };
        if dialer {
            message::write(out, ours.epoch.number, 0, &Message::Hello(ours));
        }
        Session {
            dialer,
            state: State::Hello,
            ours,
            theirs: Hello::default(),
            heard_at: now,
            reverse: false,
            begun: (Vec::new(), 0),
        }
    }

    /// The other node's id, once it has said it.
    pub fn peer(&self) -> u64 {
        self.theirs.node
    }

    /// Both sides have shown who they are, and which is the source.
    pub fn introduced(&self) -> bool {
        matches!(self.state, State::Source(_) | State::Sink(_))
    }

    pub fn source(&mut self) -> Option<&mut Source<D>> {
        match &mut self.state {
            State::Source(source) => Some(source),
            _ => None,
        }
    }

    pub fn sink(&self) -> Option<&Sink<D>> {
        match &self.state {
            State::Sink(sink) => Some(sink),
            _ => None,
        }
    }

    /// Takes in what has come; returns the bytes that are done with.
    ///
    /// # Errors
    /// It is over; what is in `out` should still be sent.
    pub fn receive(
        &mut self,
        node: &mut Node,
        data: &D,
        input: &[u8],
        at: Moment,
        out: &mut Vec<u8>,
    ) -> Result<usize, End> {
        let mut used = 0;
        while !matches!(&self.state, State::Sink(sink) if sink.busy()) {
            let Some((frame, length)) = frame::parse(&input[used..])? else {
                break;
            };
            used += length;
            self.heard_at = at.now;
            let (mut payload, mut before) = (Vec::new(), 0);
            if frame.kind == Type::Fragment || !self.begun.0.is_empty() {
                if !matches!(self.state, State::Source(_) | State::Sink(_)) {
                    return Err(Broken::Unexpected(frame.kind).into());
                }
                if self.begun.0.len() + frame.payload.len() > frame::WHOLE_MAX {
                    return Err(Broken::Malformed.into());
                }
                self.begun.0.extend_from_slice(frame.payload);
                self.begun.1 += length;
                if frame.kind == Type::Fragment {
                    continue;
                }
                (payload, before) = std::mem::take(&mut self.begun);
            }
            let (frame, length) = match before {
                0 => (frame, length),
                whole => (
                    Frame {
                        payload: &payload,
                        ..frame
                    },
                    whole,
                ),
            };
            let message = message::read(&frame)?;
            if let Message::GoAway { epoch, reason } = message {
                // Only somebody who has been let in is believed.
                if !matches!(self.state, State::Hello | State::Auth) {
                    node.seen = node.seen.max(epoch.number);
                }
                if matches!(self.state, State::Sink(_)) && reason == RESIGNED {
                    // There is nobody any more who counts on what was promised.
                    (node.copy.heard_at, node.copy.vouched_at) = (0, 0);
                }
                return Err(End::GoneAway(reason.to_owned()));
            }
            let partition = usize::from(frame.partition);
            match &mut self.state {
                State::Sink(sink) if sink::is_for_sink(frame.kind) => {
                    if frame.epoch < node.epoch().number {
                        return Err(self.refuse(node, "an older leader", out));
                    }
                    let mut cx = Context {
                        data,
                        copy: &mut node.copy,
                        number: partition,
                        out,
                    };
                    sink.receive(&mut cx, message, length, at)?;
                    if self.reverse && node.copy.whole == ALL {
                        return Err(End::Recovered);
                    }
                }
                State::Source(source)
                    if !sink::is_for_sink(frame.kind)
                        || matches!(frame.kind, Type::Heartbeat | Type::ListEnd) =>
                {
                    source.receive(data, partition, message, at, out)?;
                }
                State::Sink(_) | State::Source(_) => {
                    return Err(Broken::Unexpected(frame.kind).into());
                }
                _ => self.shake(node, data, frame.kind, message, at.now, out)?,
            }
        }
        Ok(used)
    }

    /// Says that this node leads no more, and is about to end.
    pub fn resign(&self, node: &Node, out: &mut Vec<u8>) {
        let epoch = node.epoch();
        let reason = RESIGNED;
        message::write(out, epoch.number, 0, &Message::GoAway { epoch, reason });
    }

    fn refuse(&self, node: &Node, reason: &str, out: &mut Vec<u8>) -> End {
        let epoch = Epoch {
            number: node.seen.max(node.epoch().number),
            ..node.epoch()
        };
        message::write(out, epoch.number, 0, &Message::GoAway { epoch, reason });
        End::Refused(reason.to_owned())
    }

    /// One step of the handshake.
    fn shake(
        &mut self,
        node: &mut Node,
        data: &D,
        kind: Type,
        message: Message<'_>,
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let number = self.ours.epoch.number;
        match (&self.state, message) {
            (State::Hello, Message::Hello(theirs)) => {
                self.theirs = theirs;
                if theirs.cluster != self.ours.cluster {
                    return Err(self.refuse(node, "another cluster", out));
                }
                if theirs.node == self.ours.node {
                    return Err(self.refuse(node, "this is the same node", out));
                }
                if theirs.secret != self.ours.secret {
                    return Err(self.refuse(
                        node,
                        "one side has a secret and the other has none",
                        out,
                    ));
                }
                if !self.dialer {
                    message::write(out, number, 0, &Message::Hello(self.ours));
                }
                self.state = if self.ours.secret {
                    State::Auth
                } else {
                    State::Positions
                };
                if self.dialer {
                    match &node.secret {
                        Some(key) => {
                            let proof = self.proof(key, true);
                            message::write(out, number, 0, &Message::Auth(proof));
                        }
                        None => self.introduce(node, data, out)?,
                    }
                }
                Ok(())
            }
            (State::Auth, Message::Auth(proof)) => {
                let Some(key) = &node.secret else {
                    return Err(Broken::Unexpected(kind).into());
                };
                if !self.is_proof(key, &proof) {
                    return Err(Broken::Stranger.into());
                }
                self.state = State::Positions;
                if self.dialer {
                    self.introduce(node, data, out)
                } else {
                    let proof = self.proof(key, false);
                    message::write(out, number, 0, &Message::Auth(proof));
                    Ok(())
                }
            }
            (State::Positions, Message::Positions(positions)) => {
                node.seen = node.seen.max(positions.epoch.number);
                if self.dialer {
                    // An empty acceptor asks for what is here.
                    if !self.reverse {
                        return Err(Broken::Unexpected(kind).into());
                    }
                } else {
                    match node.role {
                        Role::Leader => {}
                        Role::Recovering if positions.items > 0 => {
                            let mode = Mode {
                                reverse: true,
                                tiers: [Tier::Full; PARTITIONS],
                                start: [0; PARTITIONS],
                                history: node.copy.history.clone(),
                            };
                            message::write(out, number, 0, &Message::Mode(Box::new(mode)));
                            let ours = Message::Positions(Box::new(node.copy.positions(data)));
                            message::write(out, number, 0, &ours);
                            self.reverse = true;
                            return Ok(());
                        }
                        Role::Recovering => {
                            return Err(self.refuse(node, "not leading yet", out));
                        }
                        Role::Follower => return Err(self.refuse(node, "not the leader", out)),
                    }
                    // Whoever has items of a later reign is not to be flushed by an earlier one.
                    if positions.items > 0 && positions.epoch > node.epoch() {
                        return Err(self.refuse(
                            node,
                            "the copy has a later epoch than the leader",
                            out,
                        ));
                    }
                }
                let (mut source, mode) = Source::new(data, &node.copy.history, &positions, now);
                message::write(
                    out,
                    mode.history.epoch().number,
                    0,
                    &Message::Mode(Box::new(mode)),
                );
                source.tell_clients(&node.clients, now, out);
                self.state = State::Source(Box::new(source));
                Ok(())
            }
            (State::Positions, Message::Mode(mode)) => {
                if mode.reverse {
                    if !self.dialer || data.items() == 0 {
                        return Err(Broken::Unexpected(kind).into());
                    }
                    self.reverse = true;
                    return Ok(());
                }
                let theirs = mode.history.epoch();
                node.seen = node.seen.max(theirs.number);
                // The empty-leader rule: what is here is not given up for somebody who has led no
                // later, and who is another than before.
                let same = node.epoch() == theirs;
                if self.dialer && data.items() > 0 && !same && theirs <= node.epoch() {
                    return Err(self.refuse(
                        node,
                        "the leader's epoch is not newer than the copy's",
                        out,
                    ));
                }
                node.leader = self.theirs.node;
                let sink = Sink::new(data, &mut node.copy, &mode, now, out);
                self.state = State::Sink(Box::new(sink));
                Ok(())
            }
            _ => Err(Broken::Unexpected(kind).into()),
        }
    }

    fn introduce(&mut self, node: &Node, data: &D, out: &mut Vec<u8>) -> Result<(), End> {
        let positions = Message::Positions(Box::new(node.copy.positions(data)));
        message::write(out, self.ours.epoch.number, 0, &positions);
        Ok(())
    }

    /// What both sides have said so far, from the point of view of one.
    fn transcript(&self, dialer: bool) -> Vec<u8> {
        let mut said = if dialer {
            b"dial".to_vec()
        } else {
            b"take".to_vec()
        };
        let (first, second) = if self.dialer {
            (&self.ours, &self.theirs)
        } else {
            (&self.theirs, &self.ours)
        };
        first.encode(&mut said);
        second.encode(&mut said);
        said
    }

    fn proof(&self, key: &ring::hmac::Key, dialer: bool) -> [u8; 32] {
        let tag = ring::hmac::sign(key, &self.transcript(dialer));
        let mut proof = [0; 32];
        proof.copy_from_slice(tag.as_ref());
        proof
    }

    fn is_proof(&self, key: &ring::hmac::Key, proof: &[u8; 32]) -> bool {
        ring::hmac::verify(key, &self.transcript(!self.dialer), proof).is_ok()
    }

    /// Says what there is to say, about `room` bytes of it. True: there is more.
    ///
    /// # Errors
    /// It is over.
    pub fn pump(
        &mut self,
        node: &mut Node,
        data: &D,
        at: Moment,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, End> {
        let now = at.now;
        if now > self.heard_at + DEAD {
            return Err(End::Silent);
        }
        match &mut self.state {
            State::Source(source) => source.pump(data, at, room, out).map_err(|Lost| End::Behind),
            State::Sink(sink) => {
                let more = sink.work(data, now, out);
                if !more || sink.heard_at() + HEARTBEAT < now {
                    sink.tell(data, at, out);
                }
                if more {
                    // Whoever is busy cannot hear.
                    self.heard_at = now;
                }
                if self.reverse && node.copy.whole == ALL {
                    return Err(End::Recovered);
                }
                Ok(more)
            }
            _ => Ok(false),
        }
    }

    /// When it was last heard of.
    pub fn heard_at(&self) -> u64 {
        self.heard_at
    }
}
