#![forbid(unsafe_code)]
//! The side of a connection that has the items: sends the log, walks, repairs.
//!
//! Everything goes through one ordered stream. An item that a walk has read under its lock contains
//! its partition's log up to some sequence; the log is sent up to exactly there, then the item, then
//! the rest: nothing older can overtake anything newer.

// The log on its way.
mod log;

// Values that are compared.
mod scrub;

// Values of which the copy has parts.
mod segments;

// What the copy lacks.
mod walk;

use std::collections::VecDeque;

use log::Sending;
use scrub::Scrub;
pub use scrub::Scrubbed;
use segments::Segments;
use walk::Wave;

use super::compare::{differing_leaves, differing_nodes};
use super::data::Data;
use super::frame::Broken;
use super::message::{self, Heartbeat, LEAF_WORDS, Leaves, Message, Mode, Positions, Tier, Type};
use super::skew::Skew;
use super::{HEARTBEAT, Moment, WINDOW, history::Epoch, history::History};
use crate::store::journal::{Cursor, LEAVES, Lost, PARTITIONS, Row};

/// Bytes of records in one frame, about.
const BATCH: usize = 64 << 10;
/// Bytes of a long value in one record. In unit tests values are shorter.
const PIECE: usize = if cfg!(test) { 4 << 10 } else { 64 << 10 };
/// Items that one step of a walk looks at, about.
const STEP: usize = 256;
/// Items that are looked at before what was found is sent: more of a partition in one frame, and the
/// log does not wait for long.
const LOOK: u64 = 32 << 10;
/// Items that are listed in one wave of a repair, about.
const WAVE: u64 = 2 << 20;
/// Bytes of lists that a copy may send in one wave: there may be more items than was expected.
const TOLD_MOST: u64 = 64 * WAVE;

/// How far a partition is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The log is enough.
    Tail,
    /// The copy's nodes are awaited.
    WantsNodes,
    /// Its leaves under these nodes are.
    WantsLeaves(u64),
    /// These leaves differ; its turn will come.
    Differs(Box<Leaves>),
    /// Being walked, in the present wave.
    Walked,
}

/// What has been done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceCounts {
    pub records: u64,
    pub bytes: u64,
    pub items_walked: u64,
    pub items_repaired: u64,
    /// Partitions that were sent whole.
    pub fulls: u64,
    /// Partitions that were compared.
    pub diffs: u64,
    /// Repairs that a digest in the log has asked for.
    pub digest_repairs: u64,
    /// Values that the copy had differently under the same CAS.
    pub scrub_repairs: u64,
    /// Long values of which only segments that differ were sent.
    pub values_patched: u64,
    /// By how much the copy's clock is ahead, milliseconds.
    pub clock_skew: i64,
}

pub struct Source<D: Data> {
    epoch: Epoch,
    cursors: Box<[Cursor; PARTITIONS]>,
    states: Vec<State>,
    wave: Option<Wave>,
    /// Items of the copy when it came: how large waves may be.
    copy_items: u64,
    sending: Option<Sending<D::Long>>,
    segments: Segments<D::Long>,
    /// What walks have found: partition, the sequence it contains, its record. Goes before all else.
    found: VecDeque<(usize, u64, Vec<u8>)>,
    /// Bytes put into the stream, and bytes the copy has taken out of it.
    sent: u64,
    taken: u64,
    acked: Box<[u64; PARTITIONS]>,
    /// A partition counts from this byte of the stream on: before, the copy was not whole.
    whole_from: Box<[u64; PARTITIONS]>,
    sent_at: u64,
    /// Of the last heartbeat.
    beat_at: u64,
    heard_at: u64,
    progress_at: u64,
    naks: Vec<(usize, u64)>,
    scrub: Option<Scrub>,
    scrubbed: Scrubbed,
    pub counts: SourceCounts,
    pub in_sync: bool,
    /// When the copy sent what it has answered last, on this clock.
    pub vouched_at: Option<u64>,
    turn: usize,
    /// The copy has been told what time it is here.
    greeted: bool,
    /// Of the next wave's digests.
    salt: u64,
    /// The copy's.
    clock: Skew,
}

impl<D: Data> Source<D> {
    /// For a copy that is so far; also says what it should be told.
    pub fn new(data: &D, history: &History, positions: &Positions, now: u64) -> (Source<D>, Mode) {
        let log = data.journal();
        log.open_rings();
        let mut states = Vec::with_capacity(PARTITIONS);
        let mut tiers = [Tier::Tail; PARTITIONS];
        let mut start = positions.seq;
        let mut counts = SourceCounts::default();
        let is_tail = |number: usize| {
            let seq = positions.seq[number];
            let known = positions.whole & 1 << number != 0
                && history.contains(positions.epoch, number, seq)
                && seq <= log.seq(number);
            let untouched = seq == 0 && log.seq(number) == 0;
            untouched || known && log.holds(number, seq + 1)
        };
        let mut tails: Vec<bool> = (0..PARTITIONS).map(is_tail).collect();
        let past = |number| (1..=positions.seq[number]).contains(&log.flushed(number));
        if tails.contains(&false) || (0..PARTITIONS).any(past) {
            // A flush hides the items of all partitions once the first one comes to it. None may come to
            // one that others have behind them, and may have jumped over.
            for (number, tail) in tails.iter_mut().enumerate() {
                *tail &= log.flushed(number) <= positions.seq[number];
            }
        }
        for number in 0..PARTITIONS {
            if tails[number] {
                states.push(State::Tail);
                continue;
            }
            start[number] = log.seq(number);
            if positions.items == 0 {
                tiers[number] = Tier::Full;
                counts.fulls += 1;
                states.push(State::Differs(Box::new([u64::MAX; LEAF_WORDS])));
            } else {
                tiers[number] = Tier::Diff;
                counts.diffs += 1;
                states.push(State::WantsNodes);
            }
        }
        let mode = Mode {
            reverse: false,
            tiers,
            start,
            history: history.clone(),
        };
        let source = Source {
            epoch: history.epoch(),
            cursors: Box::new(start.map(|seq| Cursor::before(seq + 1))),
            states,
            wave: None,
            copy_items: positions.items,
            sending: None,
            segments: Segments::new(),
            found: VecDeque::new(),
            sent: 0,
            taken: 0,
            acked: Box::new(start),
            whole_from: Box::new(tiers.map(|tier| match tier {
                Tier::Tail => 0,
                Tier::Diff | Tier::Full => u64::MAX,
            })),
            sent_at: now,
            beat_at: now,
            heard_at: now,
            progress_at: now,
            naks: Vec::new(),
            scrub: None,
            scrubbed: Scrubbed::default(),
            counts,
            in_sync: false,
            vouched_at: None,
            turn: 0,
            greeted: false,
            salt: 1,
            clock: Skew::default(),
        };
        (source, mode)
    }

    /// The sequences up to which the copy has everything; 0 for partitions that are not whole.
    pub fn acked(&self) -> [u64; PARTITIONS] {
        std::array::from_fn(|number| {
            if self.taken >= self.whole_from[number] {
                self.acked[number]
            } else {
                0
            }
        })
    }

    /// Every partition is whole and follows the log.
    pub fn ready(&self) -> bool {
        self.whole_from.iter().all(|from| self.taken >= *from)
    }

    /// Nothing is being repaired.
    fn quiet(&self) -> bool {
        self.wave.is_none() && self.states.iter().all(|state| *state == State::Tail)
    }

    pub fn heard_at(&self) -> u64 {
        self.heard_at
    }

    /// When the copy last took something, or had taken everything.
    pub fn progress_at(&self) -> u64 {
        self.progress_at
    }

    /// Prepared mutations that the copy cannot keep, since the last time this was asked.
    pub fn take_naks(&mut self) -> Vec<(usize, u64)> {
        std::mem::take(&mut self.naks)
    }

    /// Bytes on their way.
    pub fn in_flight(&self) -> u64 {
        self.sent - self.taken
    }

    pub fn receive(
        &mut self,
        data: &D,
        frame_partition: usize,
        message: Message<'_>,
        at: Moment,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let now = at.now;
        self.heard_at = now;
        match message {
            Message::Ack { bytes, positions } => {
                if bytes > self.sent {
                    return Err(Broken::Malformed);
                }
                if bytes > self.taken || self.taken == self.sent {
                    self.progress_at = now;
                }
                self.taken = self.taken.max(bytes);
                for (number, seq) in positions {
                    self.acked[number] = self.acked[number].max(seq);
                }
            }
            Message::Nak { seq } => self.naks.push((frame_partition, seq)),
            Message::Heartbeat(beat) => {
                if beat.sent_ms > 0 && beat.sent_ms <= now {
                    self.vouched_at = Some(self.vouched_at.unwrap_or(0).max(beat.sent_ms));
                }
                self.clock.heard(beat.unix_ms, at.unix_ms, now);
                self.counts.clock_skew = self.clock.ms();
                if self.taken == self.sent {
                    self.progress_at = now;
                }
            }
            Message::Row { seq, lossy, row } => {
                self.compare(data, frame_partition, seq, &lossy, &row);
            }
            Message::Nodes(nodes) => {
                if self.states[frame_partition] != State::WantsNodes {
                    return Err(Broken::Unexpected(Type::Nodes));
                }
                let differ = differing_nodes(&data.journal().row(frame_partition).row, &nodes);
                if differ == 0 {
                    self.is_equal(data, frame_partition, now, out);
                } else {
                    self.states[frame_partition] = State::WantsLeaves(differ);
                    let request = Message::LeavesRequest(differ);
                    self.say(now, frame_partition, &request, out);
                }
            }
            Message::Leaves(told) => {
                let State::WantsLeaves(nodes) = self.states[frame_partition] else {
                    return Err(Broken::Unexpected(Type::Leaves));
                };
                let row = data.journal().row(frame_partition).row;
                let differ = differing_leaves(&row, nodes, told).ok_or(Broken::Malformed)?;
                if differ.iter().all(|word| *word == 0) {
                    self.is_equal(data, frame_partition, now, out);
                } else {
                    self.states[frame_partition] = State::Differs(differ);
                }
            }
            Message::List { first, items } => {
                let Some(wave) = self.wave.as_mut().filter(|wave| !wave.listed) else {
                    return Err(Broken::Unexpected(Type::List));
                };
                wave.told += items.len() as u64;
                let theirs = wave.theirs[frame_partition].as_mut();
                theirs
                    .filter(|_| wave.told <= TOLD_MOST)
                    .and_then(|theirs| theirs.take(first, items))
                    .ok_or(Broken::Malformed)?;
            }
            Message::ListEnd => match &mut self.wave {
                Some(wave) => wave.listed = true,
                None => return Err(Broken::Unexpected(Type::ListEnd)),
            },
            Message::Fetch(key) => {
                self.counts.scrub_repairs += 1;
                data.log_again(key);
            }
            Message::Segments {
                offered,
                key,
                digests,
            } => {
                self.counts.scrub_repairs += u64::from(!offered);
                self.segments.told(offered, key, digests)?;
            }
            _ => return Err(Broken::Malformed),
        }
        Ok(())
    }

    /// The copy's leaves have come, where a digest in the log differed.
    fn compare(&mut self, data: &D, number: usize, seq: u64, lossy: &Leaves, theirs: &Row) {
        let frozen = data.journal().frozen(number);
        let Some(ours) = frozen.filter(|frozen| frozen.seq == seq) else {
            // A later digest will tell.
            return;
        };
        if self.states[number] != State::Tail {
            return;
        }
        let mut differing = Box::new([0u64; LEAF_WORDS]);
        for leaf in 0..LEAVES {
            let known = lossy[leaf / 64] & 1 << (leaf % 64) != 0;
            if ours.row[leaf] != theirs[leaf] && !known {
                differing[leaf / 64] |= 1 << (leaf % 64);
            }
        }
        if differing.iter().any(|word| *word != 0) {
            self.counts.digest_repairs += 1;
            self.states[number] = State::Differs(differing);
        }
    }

    /// A partition of the copy has the same items, as far as short digests tell.
    fn is_equal(&mut self, data: &D, number: usize, now: u64, out: &mut Vec<u8>) {
        self.states[number] = State::Tail;
        self.send_prepared_of(data, number, now, out);
        self.say(now, number, &Message::Synced(1 << number), out);
        self.whole_from[number] = self.sent;
        self.prove(data, number);
    }

    fn say(&mut self, now: u64, number: usize, message: &Message<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        message::write(out, self.epoch.number, number, message);
        self.said(now, out.len() - start);
    }

    fn said(&mut self, now: u64, bytes: usize) {
        self.sent += bytes as u64;
        self.counts.bytes += bytes as u64;
        self.sent_at = now;
    }

    /// Appends what there is to say, about `room` bytes of it. True: there is more.
    ///
    /// # Errors
    /// The copy has fallen off the log; it has to come again.
    pub fn pump(
        &mut self,
        data: &D,
        at: Moment,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, Lost> {
        let now = at.now;
        if !self.greeted || self.sent_at > self.beat_at && now >= self.beat_at + HEARTBEAT {
            // The copy vouches in answer to heartbeats, however much else is said; and it has to know
            // the time before the first expiry comes.
            self.greeted = true;
            self.beat(data, at, out);
        }
        let limit = out.len() + room;
        loop {
            if out.len() >= limit || self.in_flight() >= WINDOW {
                return Ok(out.len() >= limit);
            }
            if self.sending.is_some() {
                self.send_piece(now, out);
                continue;
            }
            if self.send_asked(data, now, out)? {
                continue;
            }
            if !self.found.is_empty() {
                self.send_found(data, now, out)?;
                continue;
            }
            if self.send_log(data, now, out)? {
                continue;
            }
            if self.send_walk(data, now, out)? {
                continue;
            }
            if self.send_checks(data, now) {
                continue;
            }
            break;
        }
        if now >= self.sent_at + HEARTBEAT {
            self.beat(data, at, out);
        }
        Ok(false)
    }

    /// Says where clients reach this node.
    pub fn tell_clients(&mut self, address: &str, now: u64, out: &mut Vec<u8>) {
        self.say(now, 0, &Message::Clients(address), out);
    }

    /// A heartbeat at once: what it says has changed.
    pub fn beat(&mut self, data: &D, at: Moment, out: &mut Vec<u8>) {
        let now = at.now;
        let beat = Heartbeat {
            unix_ms: at.unix_ms,
            cas: data.last_cas(),
            records: data.journal().records(),
            sent_ms: now,
            in_sync: self.in_sync,
        };
        self.beat_at = now;
        self.say(now, 0, &Message::Heartbeat(beat), out);
    }
}
