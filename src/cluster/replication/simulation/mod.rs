#![forbid(unsafe_code)]
//! Whole groups in one thread: nodes, network, clock, clients and faults from one seed.
//!
//! Nodes speak through the real sessions and keep the real journal; only the items are a plain map.
//! Time moves in steps of milliseconds. A node that crashes loses everything, as a cache does. Who
//! leads is decided by an agreement that knows who is in sync, and that lets nobody lead before the
//! former leader has stopped.

// What is lived through, and what must hold.
mod histories;

use std::collections::{BTreeMap, VecDeque};

use super::data::Data;
use super::group::{Group, Verdict, Votes};
use super::linearizable::{Action, Operation};
use super::model::{Entry, Model};
use super::session::{End, Node, Role, Session};
use super::sink;
use super::source::Scrubbed;
use super::{Moment, SUSPECT};
use crate::cluster::dice::Dice;
use crate::store::journal::{self, ALL, Change, Kind, PARTITIONS, Record, partition, place};

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    bytes: Vec<u8>,
    /// How many of them have arrived.
    arrived: usize,
    /// When the pieces of the others do, and how long they are.
    pieces: VecDeque<(u64, usize)>,
    /// Nothing arrives before this.
    blocked_until: u64,
}

impl Pipe {
    fn send(&mut self, at: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            let at = self.pieces.back().map_or(at, |(last, _)| at.max(*last));
            self.pieces.push_back((at, bytes.len()));
            self.bytes.extend_from_slice(bytes);
        }
    }

    fn arrive(&mut self, now: u64) {
        while now >= self.blocked_until && self.pieces.front().is_some_and(|(at, _)| *at <= now) {
            let piece = self.pieces.pop_front();
            self.arrived += piece.map_or(0, |(_, length)| length);
        }
    }

    /// So many of the first bytes that have arrived are done with.
    fn done(&mut self, bytes: usize) {
        self.bytes.drain(..bytes);
        self.arrived -= bytes;
    }
}

/// A connection: the dialer's side first.
struct Wire {
    dialer: usize,
    acceptor: usize,
    sessions: [Option<Session<Model>>; 2],
    pipes: [Pipe; 2],
}

struct SimNode {
    node: Node,
    data: Model,
    group: Group,
    votes: Votes,
    /// How far the values of copies have been compared.
    scrubbed: BTreeMap<u64, Scrubbed>,
    dial_at: u64,
}

/// A client's mutation that waits for its votes.
struct Waiting {
    ticket: u64,
    key: usize,
    began: u64,
    action: Action,
}

struct World {
    dice: Dice,
    now: u64,
    nodes: Vec<SimNode>,
    wires: Vec<Wire>,
    leader: usize,
    keys: Vec<Vec<u8>>,
    waiting: Vec<Waiting>,
    histories: Vec<Vec<Operation>>,
    tickets: u64,
    /// Everything the run has done, in one number.
    trace: u64,
    incarnations: u64,
    faults: Faults,
    promotions: u64,
    /// What somebody says, before it is sent.
    said: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    cuts: bool,
    blocks: bool,
    crashes: bool,
    flushes: bool,
    long_values: bool,
    two_phase: bool,
    /// Records are lost or doubled in the log, values rot.
    damage: bool,
    /// Nobody's vote is waited for.
    careless: bool,
}

const SECRET: &[u8] = b"simulated";

/// Bytes of long values, at least, and how many more: some segments, and some pieces.
const LONG: usize = 5000;
const LONGEST: u64 = 20_000;

impl World {
    fn new(seed: u64, nodes: usize, faults: Faults) -> World {
        let mut world = World {
            dice: Dice::new(seed),
            now: 1000,
            nodes: Vec::new(),
            wires: Vec::new(),
            leader: 0,
            keys: Vec::new(),
            waiting: Vec::new(),
            histories: Vec::new(),
            tickets: 0,
            trace: 0,
            incarnations: 0,
            faults,
            promotions: 0,
            said: Vec::new(),
        };
        // In few partitions, so that histories are short and still meet there.
        let mut number = 0;
        while world.keys.len() < 6 {
            let key = format!("key{number}").into_bytes();
            number += 1;
            if partition(place(&key)) < 3 {
                world.keys.push(key);
            }
        }
        world.histories = vec![Vec::new(); world.keys.len()];
        for _ in 0..nodes {
            let born = world.born(Role::Follower);
            world.nodes.push(born);
        }
        let first = &mut world.nodes[0];
        first.node.lead(&first.data, 0);
        first.group = Group::new(&first.data.journal.positions());
        world
    }

    fn born(&mut self, role: Role) -> SimNode {
        self.incarnations += 1;
        let node = Node::new(self.incarnations, "simulation", Some(SECRET), role);
        SimNode {
            node,
            data: Model::new(journal::Role::Follower),
            group: Group::default(),
            votes: Votes::default(),
            scrubbed: BTreeMap::new(),
            dial_at: 0,
        }
    }

    fn note(&mut self, what: u64) {
        self.trace = (self.trace.rotate_left(5) ^ what).wrapping_mul(0x2545_f491_4f6c_dd1d);
    }

    fn step(&mut self) {
        self.now += 1 + self.dice.roll(30);
        self.inject();
        self.clients();
        self.dial();
        self.exchange();
        self.lead();
    }

    fn inject(&mut self) {
        if self.faults.cuts && !self.wires.is_empty() && self.dice.once_in(60) {
            let at = self.dice.roll(self.wires.len() as u64) as usize;
            self.cut(at);
        }
        if self.faults.blocks && !self.wires.is_empty() && self.dice.once_in(60) {
            let at = self.dice.roll(self.wires.len() as u64) as usize;
            let side = self.dice.roll(2) as usize;
            self.wires[at].pipes[side].blocked_until = self.now + self.dice.roll(2000);
        }
        if self.faults.crashes && self.dice.once_in(120) {
            let at = self.dice.roll(self.nodes.len() as u64) as usize;
            self.crash(at);
        }
        if self.faults.damage && self.dice.once_in(25) {
            self.damage();
        }
    }

    /// Something rots in a copy, behind everybody's back.
    fn damage(&mut self) {
        let at = self.dice.roll(self.nodes.len() as u64) as usize;
        if at == self.leader {
            return;
        }
        let data = &self.nodes[at].data;
        let key = &self.keys[self.dice.roll(self.keys.len() as u64) as usize];
        match self.dice.roll(3) {
            0 => {
                if let Some(entry) = data.items.borrow_mut().get_mut(key)
                    && !entry.value.is_empty()
                {
                    let place = self.dice.roll(entry.value.len() as u64) as usize;
                    entry.value[place] ^= 1;
                }
            }
            1 => data.remove(key),
            _ => {
                let stray = Entry {
                    value: b"stray".to_vec(),
                    cas: 3,
                    flags: 0,
                    marks: 0,
                    flushed: false,
                };
                data.store(key, stray);
            }
        }
    }

    fn cut(&mut self, at: usize) {
        let wire = self.wires.swap_remove(at);
        let peer = self.nodes[wire.dialer].node.id;
        let now = self.now;
        self.nodes[wire.acceptor].group.leave(peer, now);
    }

    fn crash(&mut self, at: usize) {
        self.note(at as u64 + 100);
        while let Some(wire) = self
            .wires
            .iter()
            .position(|wire| wire.dialer == at || wire.acceptor == at)
        {
            self.cut(wire);
        }
        if at != self.leader {
            // Its prepares have vanished with it.
            self.nodes[at] = self.born(Role::Follower);
            return;
        }
        let in_sync: Vec<u64> = self.nodes[at]
            .group
            .in_sync()
            .map(|member| member.node)
            .collect();
        let heirs: Vec<usize> = (0..self.nodes.len())
            .filter(|&other| other != at && in_sync.contains(&self.nodes[other].node.id))
            .filter(|&other| self.nodes[other].node.copy.whole == ALL)
            .collect();
        if heirs.is_empty() && self.faults.two_phase {
            // Nobody may follow it: the items would be gone whatever the protocol did.
            return;
        }
        // Nobody is told what has become of what waited.
        for waiting in std::mem::take(&mut self.waiting) {
            self.unknown(&waiting);
        }
        self.promotions += 1;
        if heirs.is_empty() {
            self.nodes[at] = self.born(Role::Recovering);
            return;
        }
        let heir = heirs[self.dice.roll(heirs.len() as u64) as usize];
        self.nodes[at] = self.born(Role::Follower);
        while let Some(wire) = self.wires.iter().position(|wire| wire.dialer == heir) {
            self.cut(wire);
        }
        self.leader = heir;
        let seen = self
            .nodes
            .iter()
            .map(|node| node.node.seen)
            .max()
            .unwrap_or(0);
        let new = &mut self.nodes[heir];
        new.node.lead(&new.data, seen + 1);
        new.group = Group::new(&new.data.journal.positions());
        new.scrubbed.clear();
        self.note(heir as u64 + 200);
    }

    fn dial(&mut self) {
        for at in 0..self.nodes.len() {
            if at == self.leader
                || self.now < self.nodes[at].dial_at
                || self.wires.iter().any(|wire| wire.dialer == at)
            {
                continue;
            }
            self.nodes[at].dial_at = self.now + 50 + self.dice.roll(100);
            let nonce = [self.dice.roll(256) as u8; 16];
            let mut out = Vec::new();
            let dialer = &self.nodes[at];
            let first = Session::new(true, &dialer.node, &dialer.data, nonce, self.now, &mut out);
            let acceptor = &self.nodes[self.leader];
            let second = Session::new(
                false,
                &acceptor.node,
                &acceptor.data,
                nonce,
                self.now,
                &mut Vec::new(),
            );
            let mut wire = Wire {
                dialer: at,
                acceptor: self.leader,
                sessions: [Some(first), Some(second)],
                pipes: [Pipe::default(), Pipe::default()],
            };
            wire.pipes[0].send(self.now + 1, &out);
            self.wires.push(wire);
        }
    }

    fn exchange(&mut self) {
        let mut ended = Vec::new();
        for at in 0..self.wires.len() {
            for side in 0..2 {
                let delay = self.now + 1 + self.dice.roll(10);
                let wire = &mut self.wires[at];
                let number = [wire.dialer, wire.acceptor][side];
                let input = &mut wire.pipes[1 - side];
                input.arrive(self.now);
                let Some(session) = &mut wire.sessions[side] else {
                    continue;
                };
                let node = &mut self.nodes[number];
                let out = &mut self.said;
                out.clear();
                let moment = Moment {
                    now: self.now,
                    unix_ms: self.now,
                };
                let taken = session.receive(
                    &mut node.node,
                    &node.data,
                    &input.bytes[..input.arrived],
                    moment,
                    out,
                );
                let result = match taken {
                    Ok(used) => {
                        input.done(used);
                        session.pump(&mut node.node, &node.data, moment, 100_000, out)
                    }
                    Err(end) => Err(end),
                };
                if side == 0 && self.now > session.heard_at() + SUSPECT {
                    ended.push((at, End::Silent));
                }
                wire.pipes[side].send(delay, out);
                if let Err(end) = result {
                    ended.push((at, end));
                    break;
                }
            }
        }
        ended.dedup_by_key(|(at, _)| *at);
        for (at, end) in ended.into_iter().rev() {
            assert!(!matches!(end, End::Broken(_)), "{end} at {}", self.now);
            let acceptor = self.wires[at].acceptor;
            let recovered = end == End::Recovered;
            self.cut(at);
            if recovered && self.nodes[acceptor].node.role == Role::Recovering {
                let node = &mut self.nodes[acceptor];
                node.node.lead(&node.data, 0);
                node.group = Group::new(&node.data.journal.positions());
            }
        }
    }

    /// What a leader does beside its sessions.
    fn lead(&mut self) {
        let leader = self.leader;
        for wire in &mut self.wires {
            if wire.acceptor != leader {
                continue;
            }
            let peer = self.nodes[wire.dialer].node.id;
            let Some(session) = &mut wire.sessions[1] else {
                continue;
            };
            let Some(source) = session.source() else {
                continue;
            };
            let node = &mut self.nodes[leader];
            if !node
                .group
                .members()
                .any(|member| member.node == peer && member.connected)
            {
                node.group.join(peer, self.now);
                let before = node.scrubbed.get(&peer).copied();
                source.go_on_scrubbing(before.unwrap_or_default(), self.now);
            }
            node.scrubbed.insert(peer, source.scrubbed());
            let positions = node.data.journal.positions();
            let (ready, progress) = (source.ready(), source.progress_at());
            node.group
                .progress(peer, &source.acked(), ready, progress, self.now, &positions);
            for (number, seq) in source.take_naks() {
                node.votes.refuse(number, seq);
            }
            if self.dice.once_in(20) {
                source.scrub(self.now);
            }
        }
        let node = &mut self.nodes[leader];
        if node.node.role != Role::Leader {
            return;
        }
        node.group.tick(self.now);
        let mut nobody = Group::default();
        let voters = if self.faults.careless {
            &mut nobody
        } else {
            &mut node.group
        };
        let verdicts = node.votes.decide(voters, true, self.now);
        for (ticket, number, seq, verdict) in verdicts {
            let data = &self.nodes[leader].data;
            let prepared = data.journal.prepared(number);
            let bytes = prepared
                .iter()
                .find(|bytes| Record::parse(bytes).is_ok_and(|(record, _)| record.seq == seq));
            let bytes = bytes.expect("it was prepared");
            if verdict == Verdict::Commit {
                sink::commit(data, bytes, 0, false);
                data.journal.resolve(number, bytes, Kind::Commit);
            } else {
                data.journal.resolve(number, bytes, Kind::Abort);
            }
            let at = self
                .waiting
                .iter()
                .position(|waiting| waiting.ticket == ticket)
                .expect("somebody waits");
            let waiting = self.waiting.swap_remove(at);
            if verdict == Verdict::Commit {
                self.done(&waiting);
            } else {
                self.unknown(&waiting);
            }
        }
        if self.dice.once_in(10) {
            for number in 0..3 {
                self.nodes[leader].data.journal.mark(number);
            }
        }
    }

    fn done(&mut self, waiting: &Waiting) {
        self.note(waiting.ticket);
        self.histories[waiting.key].push(Operation {
            began: waiting.began,
            ended: Some(self.now),
            action: waiting.action,
        });
    }

    fn unknown(&mut self, waiting: &Waiting) {
        self.histories[waiting.key].push(Operation {
            began: waiting.began,
            ended: None,
            action: waiting.action,
        });
    }

    fn clients(&mut self) {
        for _ in 0..self.dice.roll(4) {
            let key = self.dice.roll(self.keys.len() as u64) as usize;
            if self.nodes[self.leader].node.role != Role::Leader {
                continue;
            }
            if self.faults.two_phase {
                self.agreed(key);
            } else {
                self.plain(key);
            }
        }
    }

    fn plain(&mut self, key: usize) {
        let data = &self.nodes[self.leader].data;
        let key = &self.keys[key];
        let what = self.dice.roll(20);
        match what {
            0..12 => {
                let fill = self.dice.roll(256) as u8;
                let old = match self.dice.roll(20) {
                    0 if self.faults.long_values => Some(Vec::new()),
                    // Another of which much is as it was.
                    1 if self.faults.long_values => data.read(key),
                    _ => None,
                };
                let value = match old {
                    None => vec![fill; 1 + self.dice.roll(20) as usize],
                    Some(mut value) => {
                        let length = value.len() as u64;
                        let place = self.dice.roll(length + 1) as usize;
                        value.truncate(value.len() - self.dice.roll(length / 4 + 1) as usize);
                        if let Some(byte) = value.get_mut(place) {
                            *byte ^= fill | 1;
                        }
                        if value.len() < LONG {
                            let more = LONG + self.dice.roll(LONGEST) as usize;
                            value.extend_from_slice(&vec![fill; more]);
                        }
                        value
                    }
                };
                data.write(key, value);
            }
            12 => data.remove(key),
            13 => data.evict(key),
            14..16 => {
                let kind = [Kind::Append, Kind::Prepend][self.dice.roll(2) as usize];
                let bytes = vec![self.dice.roll(256) as u8; 1 + self.dice.roll(100) as usize];
                if data.extend_long(key, kind, &bytes).is_none() {
                    data.remove(key);
                }
            }
            16 if self.faults.flushes && self.dice.once_in(10) => data.flush_all(None),
            _ => {
                let entry = data.items.borrow().get(key).cloned();
                if let Some(entry) = entry {
                    let record = Record {
                        marks: entry.marks ^ 1,
                        cas: entry.cas,
                        client_flags: entry.flags,
                        ..Record::new(Kind::Meta, key)
                    };
                    let mut items = data.items.borrow_mut();
                    let mut change = 0;
                    if let Some(entry) = items.get_mut(key) {
                        change = Model::digest(key, entry);
                        entry.marks ^= 1;
                        change ^= Model::digest(key, entry);
                    }
                    data.journal.append(place(key), &record, Change(change));
                }
            }
        }
        self.note(what);
    }

    /// A mutation or a read as two-phase commit has it.
    fn agreed(&mut self, number: usize) {
        // The checker's histories are short.
        if self.histories[number].len() >= 40 {
            return;
        }
        let (now, leader) = (self.now, self.leader);
        let key = self.keys[number].clone();
        let at = place(&key);
        let node = &mut self.nodes[leader];
        let old = node.data.first_number(&key);
        if self.dice.once_in(3) {
            self.histories[number].push(Operation {
                began: now,
                ended: Some(now),
                action: Action::Read(old),
            });
            return;
        }
        if node.votes.busy(at) {
            return;
        }
        self.tickets += 1;
        let ticket = self.tickets;
        let action = match (self.dice.roll(6), old) {
            (0, Some(_)) => Action::Write(None),
            (1 | 2, Some(old)) => Action::Count(old + 1),
            _ => Action::Write(Some(ticket << 20)),
        };
        let value = match action {
            Action::Write(Some(value)) | Action::Count(value) => {
                let mut bytes = value.to_le_bytes().to_vec();
                if self.faults.long_values && self.dice.once_in(8) {
                    let more = LONG + self.dice.roll(LONGEST) as usize;
                    bytes.extend_from_slice(&vec![7; more]);
                }
                Some(bytes)
            }
            _ => None,
        };
        let record = Record {
            kind: if value.is_some() {
                Kind::Prepare
            } else {
                Kind::PrepareDelete
            },
            cas: node.data.take_cas(),
            value: value.as_ref().map_or(&[], |value| &value[..]),
            ..Record::new(Kind::Prepare, &key)
        };
        let seq = node.data.journal.append(at, &record, Change::default());
        node.votes.begin(ticket, at, seq, now);
        self.waiting.push(Waiting {
            ticket,
            key: number,
            began: now,
            action,
        });
    }

    /// No more faults: everybody comes to have the same.
    fn settle(&mut self, seed: u64) {
        let faults = std::mem::take(&mut self.faults);
        for wire in &mut self.wires {
            wire.pipes
                .iter_mut()
                .for_each(|pipe| pipe.blocked_until = 0);
        }
        for round in 0.. {
            if round >= 600 {
                for node in &self.nodes {
                    eprintln!(
                        "{} {:?} epoch {:?} whole {:x} items {} positions {:?} copy {:?}",
                        node.node.id,
                        node.node.role,
                        node.node.epoch(),
                        node.node.copy.whole,
                        node.data.items(),
                        &node.data.journal.positions()[..3],
                        node.node.copy.counts
                    );
                    for (key, entry) in node.data.items.borrow().iter() {
                        eprintln!(
                            "  {} {:x} {} bytes cas {} flags {} marks {}",
                            String::from_utf8_lossy(key),
                            place(&entry.value),
                            entry.value.len(),
                            entry.cas,
                            entry.flags,
                            entry.marks
                        );
                    }
                }
                panic!("seed {seed}: no rest in sight, {faults:?}");
            }
            self.now += 20;
            self.dial();
            self.exchange();
            self.lead();
            if round % 10 == 9 {
                for number in 0..3 {
                    self.nodes[self.leader].data.journal.mark(number);
                }
            }
            if round % 10 == 5 && self.waiting.is_empty() && self.equal() {
                break;
            }
            // A value that has rotted is found by the next comparison.
        }
    }

    fn equal(&self) -> bool {
        let leader = &self.nodes[self.leader];
        if leader.node.role != Role::Leader {
            // There was nobody to recover from.
            return self.nodes.iter().all(|node| node.data.items() == 0);
        }
        let positions = leader.data.journal.positions();
        self.nodes.iter().enumerate().all(|(at, node)| {
            at == self.leader
                || node.node.copy.whole == ALL
                    && node.data.same_living(&leader.data)
                    && node.data.journal.positions() == positions
                    && (0..PARTITIONS).all(|number| {
                        node.data.journal.row(number).row == leader.data.journal.row(number).row
                            && node.data.journal.prepared(number).is_empty()
                    })
        })
    }
}
