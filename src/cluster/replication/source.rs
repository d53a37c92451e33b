#![forbid(unsafe_code)]
//! The side of a connection that has the items: sends the log, walks, repairs.
//!
//! Everything goes through one ordered stream. An item that a walk has read under its lock contains
//! its partition's log up to some sequence; the log is sent up to exactly there, then the item, then
//! the rest: nothing older can overtake anything newer.

use std::collections::VecDeque;
use std::sync::Arc;

use super::compare::{Theirs, differing_leaves, differing_nodes, each_leaf};
use super::data::{Data, Long, Opened};
use super::frame::{self, Broken};
use super::message::{self, Heartbeat, LEAF_WORDS, Leaves, Message, Mode, Positions, Tier, Type};
use super::{HEARTBEAT, SCRUB_BYTES_PER_SECOND, WINDOW, history::Epoch, history::History};
use crate::store::journal::{
    self, Cursor, INLINE_MAX, Kind, LEAVES, Lost, PARTITIONS, Record, Row, partition,
};

/// Bytes of records in one frame, about.
const BATCH: usize = 64 << 10;
/// Bytes of a long value in one record.
const PIECE: usize = 64 << 10;
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

/// What the copy has in the leaves of the present wave.
#[derive(Default)]
struct Wave {
    /// Of each of its partitions.
    theirs: Vec<Option<Theirs>>,
    /// The copy has nothing at all.
    empty: bool,
    /// Bytes of lists so far.
    told: u64,
    /// The copy has said everything.
    listed: bool,
    /// Where the walk goes on.
    next: Option<usize>,
    began: bool,
}

/// A long value on its way.
struct Sending<L> {
    /// Its record, without the value.
    record: Vec<u8>,
    kind: Type,
    value: Value<L>,
    offset: usize,
    partition: usize,
}

enum Value<L> {
    /// Of an item.
    Held(L),
    /// Of a prepared mutation: its record, and where in that it begins.
    Prepared(Arc<[u8]>, usize),
}

impl<L: Long> Long for Value<L> {
    fn length(&self) -> usize {
        match self {
            Value::Held(long) => long.length(),
            Value::Prepared(bytes, start) => bytes.len() - start,
        }
    }

    fn slice(&self, offset: usize) -> &[u8] {
        match self {
            Value::Held(long) => long.slice(offset),
            Value::Prepared(bytes, start) => &bytes[start + offset..],
        }
    }
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
    pub counts: SourceCounts,
    pub in_sync: bool,
    /// When the copy sent what it has answered last, on this clock.
    pub vouched_at: Option<u64>,
    turn: usize,
    /// The copy has been told what time it is here.
    greeted: bool,
    /// Of the next wave's digests.
    salt: u64,
}

/// A walk that compares values, slowly.
#[derive(Default)]
struct Scrub {
    next: usize,
    /// When it may go on.
    due: u64,
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
        if tails.contains(&false) {
            // A flush hides the items of all partitions once the first one comes to it. None may come to
            // one that others have behind them.
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
            counts,
            in_sync: false,
            vouched_at: None,
            turn: 0,
            greeted: false,
            salt: 1,
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

    /// Starts comparing values, if that is not being done.
    pub fn scrub(&mut self, now: u64) {
        self.scrub.get_or_insert(Scrub { next: 0, due: now });
    }

    pub fn receive(
        &mut self,
        data: &D,
        frame_partition: usize,
        message: Message<'_>,
        now: u64,
        unix_ms: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
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
                self.counts.clock_skew = beat.unix_ms as i64 - unix_ms as i64;
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
        now: u64,
        unix_ms: u64,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, Lost> {
        if !self.greeted || self.sent_at > self.beat_at && now >= self.beat_at + HEARTBEAT {
            // The copy vouches in answer to heartbeats, however much else is said; and it has to know
            // the time before the first expiry comes.
            self.greeted = true;
            self.beat(data, now, unix_ms, out);
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
            self.beat(data, now, unix_ms, out);
        }
        Ok(false)
    }

    /// Says where clients reach this node.
    pub fn tell_clients(&mut self, address: &str, now: u64, out: &mut Vec<u8>) {
        self.say(now, 0, &Message::Clients(address), out);
    }

    /// A heartbeat at once: what it says has changed.
    pub fn beat(&mut self, data: &D, now: u64, unix_ms: u64, out: &mut Vec<u8>) {
        let beat = Heartbeat {
            unix_ms,
            cas: data.last_cas(),
            records: data.journal().records(),
            sent_ms: now,
            in_sync: self.in_sync,
        };
        self.beat_at = now;
        self.say(now, 0, &Message::Heartbeat(beat), out);
    }

    /// Sends what is new in the log of some partitions. False: nothing is.
    fn send_log(&mut self, data: &D, now: u64, out: &mut Vec<u8>) -> Result<bool, Lost> {
        for step in 0..PARTITIONS {
            let number = (self.turn + step) % PARTITIONS;
            if self.send_log_of(data, number, u64::MAX, now, out)? {
                // Everybody gets a turn.
                self.turn = number + 1;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sends one frame of a partition's log, up to `last`. False: there is nothing.
    fn send_log_of(
        &mut self,
        data: &D,
        number: usize,
        last: u64,
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<bool, Lost> {
        let cursor = &mut self.cursors[number];
        if cursor.seq > data.journal().seq(number) {
            return Ok(false);
        }
        let start = frame::begin(out);
        let read = match data.journal().read(number, cursor, last, BATCH, out) {
            Ok(read) => read,
            Err(lost) => {
                out.truncate(start);
                return Err(lost);
            }
        };
        self.counts.records += read.records as u64;
        if read.records == 0 {
            out.truncate(start);
            return Ok(false);
        }
        if !read.later {
            let (kind, epoch) = (Type::Batch, self.epoch.number);
            frame::end(out, start, kind, epoch, number, read.records);
            self.said(now, out.len() - start);
            return Ok(true);
        }
        // The value has to be fetched.
        let bytes = out[start + frame::HEADER..].to_vec();
        out.truncate(start);
        let Ok((record, _)) = Record::parse(&bytes) else {
            return Ok(true);
        };
        if record.kind != Kind::PrepareLater {
            self.send_later(data, number, (record.seq, record.cas), record.key, now, out);
        } else if let Some(prepared) = data.journal().prepared_at(number, record.seq) {
            let start = journal::record::HEADER + record.key.len();
            self.sending = Some(Sending {
                record: bytes,
                kind: Type::Batch,
                value: Value::Prepared(prepared, start),
                offset: 0,
                partition: number,
            });
        } else {
            // It has been decided meanwhile. A CAS that nothing has: the copy is ahead of its place.
            self.send_later(data, number, (record.seq, 0), record.key, now, out);
        }
        Ok(true)
    }

    /// Sends the value of a record that is too long for the log, or what has become of it.
    fn send_later(
        &mut self,
        data: &D,
        number: usize,
        (seq, cas): (u64, u64),
        key: &[u8],
        now: u64,
        out: &mut Vec<u8>,
    ) {
        let opened = data.open(key);
        let record = opened
            .as_ref()
            .and_then(|opened| Record::parse(&opened.bytes).ok())
            .map(|(record, _)| record);
        if record.as_ref().is_none_or(|record| record.cas != cas) {
            // It has been replaced: what is there now is sent in its place, so that a copy which has
            // this sequence has at least this mutation.
            let until = data.journal().seq(number);
            self.say(now, number, &Message::Ahead(until), out);
        }
        match (record, opened.as_ref()) {
            (Some(record), Some(opened)) if opened.long.is_none() => {
                let record = Record { seq, ..record };
                self.send_record(Type::Batch, number, &record, now, out);
            }
            (Some(record), Some(_)) => {
                let mut bytes = Vec::new();
                Record { seq, ..record }.encode(&mut bytes);
                self.send_long(Type::Batch, number, bytes, opened);
            }
            _ => {
                let gone = Record {
                    seq,
                    ..Record::new(Kind::Delete, key)
                };
                self.send_record(Type::Batch, number, &gone, now, out);
            }
        }
    }

    fn send_record(
        &mut self,
        kind: Type,
        number: usize,
        record: &Record<'_>,
        now: u64,
        out: &mut Vec<u8>,
    ) {
        let start = out.len();
        frame::write(out, kind, self.epoch.number, number, 1, |out| {
            record.encode(out);
        });
        self.said(now, out.len() - start);
    }

    fn send_long(
        &mut self,
        kind: Type,
        partition: usize,
        record: Vec<u8>,
        opened: Option<Opened<D::Long>>,
    ) {
        if let Some(long) = opened.and_then(|opened| opened.long) {
            self.sending = Some(Sending {
                record,
                kind,
                value: Value::Held(long),
                offset: 0,
                partition,
            });
        }
    }

    /// Sends a prepared mutation whose value is long, in pieces, outside of the log.
    fn send_long_prepare(&mut self, number: usize, prepared: &[u8], now: u64, out: &mut Vec<u8>) {
        let Ok((record, _)) = Record::parse(prepared) else {
            return;
        };
        let total = record.value.len() as u64;
        for (at, value) in record.value.chunks(PIECE).enumerate() {
            let part = Record {
                kind: Kind::PreparePart,
                argument: total << 32 | (at * PIECE) as u64,
                value,
                ..record
            };
            self.send_record(Type::Chunk, number, &part, now, out);
        }
    }

    fn send_piece(&mut self, now: u64, out: &mut Vec<u8>) {
        let Some(mut sending) = self.sending.take() else {
            return;
        };
        let Ok((record, _)) = Record::parse(&sending.record) else {
            return;
        };
        let total = sending.value.length();
        let mut piece = Vec::with_capacity(PIECE.min(total - sending.offset));
        while piece.len() < PIECE {
            let slice = sending.value.slice(sending.offset + piece.len());
            if slice.is_empty() {
                break;
            }
            let take = slice.len().min(PIECE - piece.len());
            piece.extend_from_slice(&slice[..take]);
        }
        let part = Record {
            kind: match sending.value {
                Value::Held(_) => Kind::Part,
                Value::Prepared(..) => Kind::PreparePart,
            },
            argument: (total as u64) << 32 | sending.offset as u64,
            key: match (&sending.value, sending.offset) {
                (Value::Held(_), 1..) => &[],
                _ => record.key,
            },
            value: &piece,
            ..record
        };
        let (kind, number) = (sending.kind, sending.partition);
        self.send_record(kind, number, &part, now, out);
        sending.offset += piece.len();
        if sending.offset < total && !piece.is_empty() {
            self.sending = Some(sending);
        }
    }

    /// Goes on with a repair. False: there is nothing to be done now.
    fn send_walk(&mut self, data: &D, now: u64, out: &mut Vec<u8>) -> Result<bool, Lost> {
        if self.wave.is_none() && !self.begin_wave(data, now, out) {
            return Ok(false);
        }
        let Some(wave) = &mut self.wave else {
            return Ok(false);
        };
        if !wave.listed {
            return Ok(false);
        }
        if !wave.began {
            wave.began = true;
            wave.next = Some(0);
            self.send_prepared(data, now, out);
            return Ok(true);
        }
        let Some(mut from) = wave.next else {
            self.end_wave(data, now, out);
            return Ok(true);
        };
        let mut found: Vec<(usize, u64, Vec<u8>)> = Vec::new();
        let (mut seen, mut bytes) = (0, 0);
        while seen < LOOK && bytes < BATCH {
            let next = data.walk(from, STEP, false, &mut |item| {
                seen += 1;
                let number = partition(item.place);
                let Some(theirs) = wave.theirs[number].as_mut() else {
                    return;
                };
                if !wave.empty && !theirs.lacks(item.place, item.digest) {
                    return;
                }
                let mut record = Vec::new();
                item.record.encode(&mut record);
                bytes += record.len();
                found.push((number, item.record.seq, record));
            });
            wave.next = next;
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        self.counts.items_walked += seen;
        self.counts.items_repaired += found.len() as u64;
        self.queue(found);
        Ok(true)
    }

    /// Chooses the partitions of the next wave, and asks what the copy has in them.
    fn begin_wave(&mut self, data: &D, now: u64, out: &mut Vec<u8>) -> bool {
        // Those that still have to tell what they have join the others.
        let telling = |state: &State| matches!(state, State::WantsNodes | State::WantsLeaves(_));
        if self.states.iter().any(telling) {
            return false;
        }
        let each = self.copy_items.max(data.items()) / (PARTITIONS * LEAVES) as u64 + 1;
        let mut wave = Wave {
            theirs: (0..PARTITIONS).map(|_| None).collect(),
            empty: self.copy_items == 0,
            ..Wave::default()
        };
        wave.listed = wave.empty;
        self.salt = self.salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut expected = 0;
        let mut some = false;
        for number in 0..PARTITIONS {
            let State::Differs(leaves) = &self.states[number] else {
                continue;
            };
            let items = each_leaf(leaves).count() as u64 * each;
            if some && expected + items > WAVE && !wave.empty {
                continue;
            }
            expected += items;
            some = true;
            let state = std::mem::replace(&mut self.states[number], State::Walked);
            if let State::Differs(leaves) = state {
                if !wave.empty {
                    let request = Message::ListRequest(*leaves, self.salt);
                    self.say(now, number, &request, out);
                }
                wave.theirs[number] = Some(Theirs::new(leaves, self.salt));
            }
        }
        if some && !wave.empty {
            self.say(now, 0, &Message::ListEnd, out);
        }
        if some {
            self.wave = Some(wave);
        }
        some
    }

    /// What has been prepared and not decided belongs to what a copy must have.
    fn send_prepared(&mut self, data: &D, now: u64, out: &mut Vec<u8>) {
        for number in 0..PARTITIONS {
            if self.states[number] == State::Walked {
                self.send_prepared_of(data, number, now, out);
            }
        }
    }

    fn send_prepared_of(&mut self, data: &D, number: usize, now: u64, out: &mut Vec<u8>) {
        let before = self.cursors[number].seq;
        for bytes in data.journal().prepared(number) {
            if let Ok((record, _)) = Record::parse(&bytes)
                && record.seq < before
            {
                if record.value.len() > INLINE_MAX {
                    self.send_long_prepare(number, &bytes, now, out);
                } else {
                    self.send_record(Type::Chunk, number, &record, now, out);
                }
            }
        }
    }

    fn queue(&mut self, mut found: Vec<(usize, u64, Vec<u8>)>) {
        found.sort_by_key(|(number, _, _)| *number);
        self.found.extend(found);
    }

    /// Sends what a walk has found, each item behind the log that it contains, as far as one frame
    /// goes.
    fn send_found(&mut self, data: &D, now: u64, out: &mut Vec<u8>) -> Result<(), Lost> {
        let Some(&(number, _, _)) = self.found.front() else {
            return Ok(());
        };
        let start = frame::begin(out);
        let mut count = 0;
        while let Some((other, seq, bytes)) = self.found.front() {
            let next = self.cursors[number].seq;
            let long = Record::kind_of(bytes) == Some(Kind::PutLater);
            if *other != number || next <= *seq || next > seq + 1 || long {
                break;
            }
            if out.len() - start > BATCH {
                break;
            }
            out.extend_from_slice(bytes);
            count += 1;
            self.found.pop_front();
        }
        if count > 0 {
            frame::end(out, start, Type::Chunk, self.epoch.number, number, count);
            self.said(now, out.len() - start);
            return Ok(());
        }
        out.truncate(start);
        let Some((number, seq, bytes)) = self.found.pop_front() else {
            return Ok(());
        };
        if self.cursors[number].seq <= seq {
            self.send_log_of(data, number, seq, now, out)?;
            self.found.push_front((number, seq, bytes));
            return Ok(());
        }
        // It is long, or the log has been sent beyond it meanwhile: it is looked up again.
        let Ok((record, _)) = Record::parse(&bytes) else {
            return Ok(());
        };
        if record.kind == Kind::Check {
            return Ok(());
        }
        let Some(opened) = data.open(record.key) else {
            return Ok(());
        };
        let Ok((record, _)) = Record::parse(&opened.bytes) else {
            return Ok(());
        };
        let (seq, bytes) = (record.seq, opened.bytes.clone());
        if self.cursors[number].seq <= seq {
            self.send_log_of(data, number, seq, now, out)?;
            self.found.push_front((number, seq, bytes));
        } else if opened.long.is_some() {
            self.send_long(Type::Chunk, number, bytes, Some(opened));
        } else {
            self.send_record(Type::Chunk, number, &record, now, out);
        }
        Ok(())
    }

    fn end_wave(&mut self, data: &D, now: u64, out: &mut Vec<u8>) {
        let Some(wave) = self.wave.take() else {
            return;
        };
        // It is empty no longer.
        self.copy_items = self.copy_items.max(1);
        let mut partitions = 0;
        for (number, theirs) in wave.theirs.iter().enumerate() {
            let Some(theirs) = theirs else { continue };
            if let Some(strangers) = theirs.strangers() {
                self.say(now, number, &Message::Drop(&strangers), out);
            }
            partitions |= 1 << number;
            self.states[number] = State::Tail;
        }
        self.say(now, 0, &Message::Synced(partitions), out);
        for number in (0..PARTITIONS).filter(|number| partitions & 1 << number != 0) {
            self.whole_from[number] = self.whole_from[number].min(self.sent);
            if !wave.empty {
                self.prove(data, number);
            }
        }
    }

    /// Short digests have been compared: a whole one in the log tells whether that was enough. Who only
    /// gives its items back to an empty leader has no log of its own.
    fn prove(&self, data: &D, number: usize) {
        if !data.journal().is_follower() {
            data.journal().mark(number);
        }
    }

    /// Goes on with comparing values. False: not now.
    fn send_checks(&mut self, data: &D, now: u64) -> bool {
        if !self.quiet() || self.in_flight() > WINDOW / 4 {
            return false;
        }
        let Some(scrub) = &mut self.scrub else {
            return false;
        };
        if now < scrub.due {
            return false;
        }
        let mut found: Vec<(usize, u64, Vec<u8>)> = Vec::new();
        let mut looked = 0;
        let next = data.walk(scrub.next, STEP, true, &mut |item| {
            looked += item.record.argument + 64;
            let record = Record {
                kind: Kind::Check,
                client_flags: u32::from(item.value_digest.1),
                argument: item.value_digest.0,
                value: &item.digest.to_le_bytes(),
                ..item.record
            };
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            found.push((partition(item.place), item.record.seq, bytes));
        });
        match next {
            Some(next) => {
                scrub.next = next;
                scrub.due = now + (looked * 1000 / SCRUB_BYTES_PER_SECOND).min(1000);
            }
            None => self.scrub = None,
        }
        self.queue(found);
        true
    }
}
