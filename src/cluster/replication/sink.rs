#![forbid(unsafe_code)]
//! The side of a connection that becomes a copy: applies records, tells how far it is, says what it has
//! when it is asked.

use std::collections::VecDeque;
use std::slice;

use arrayvec::ArrayVec;

use super::compare::{Listing, each_leaf, tell_leaves};
use super::data::{Data, Extended};
use super::frame::Broken;
use super::history::History;
use super::message::{self, Heartbeat, Message, Mode, Positions, Tier, Type};
use super::segments::{self, Building, Built, SEGMENT};
use super::skew::Skew;
use super::{HEARTBEAT, Moment, PREPARED_MAX, SKEW_ALARM};
use crate::store::journal::record::victims;
use crate::store::journal::{self, Journal, Kind, PARTITIONS, Record, Row};

/// Items that one step of a walk looks at, about.
const STEP: usize = 2048;

/// Records that are applied together, and where the memory of each was asked for.
#[derive(Default)]
struct Run<'r> {
    records: ArrayVec<Record<'r>, 32>,
    spots: ArrayVec<u64, 32>,
}

/// What a copy knows that outlives its connections.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Whose log it has; of the last source that began to send.
    pub history: History,
    /// A bit for each partition that is whole: its items are those of the log at its position.
    pub whole: u64,
    flushes: Flushes,
    /// A flush that has been announced, Unix seconds.
    pub flush_due: Option<u32>,
    /// Digests before these sequences say nothing.
    ahead: [u64; PARTITIONS],
    /// The source counts on it.
    pub in_sync: bool,
    /// The source's last CAS id that was heard of.
    pub cas: u64,
    /// By how much the source's clock is ahead, milliseconds.
    pub clock: Skew,
    pub source_records: u64,
    /// Where clients reach the source; empty if that was not said.
    pub source_clients: String,
    /// When a source was last heard, and when it was last promised to stand by.
    pub heard_at: u64,
    pub vouched_at: u64,
    /// Nothing is promised: this node stands itself.
    pub abstains: bool,
    pub counts: CopyCounts,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyCounts {
    pub records: u64,
    pub items: u64,
    pub digests_equal: u64,
    pub digests_differed: u64,
    pub values_differed: u64,
    pub no_room: u64,
    pub clock_alarms: u64,
}

impl Default for Copy {
    fn default() -> Copy {
        Copy {
            history: History::default(),
            whole: 0,
            flushes: Flushes::default(),
            flush_due: None,
            ahead: [0; PARTITIONS],
            in_sync: false,
            cas: 0,
            clock: Skew::default(),
            source_records: 0,
            source_clients: String::new(),
            heard_at: 0,
            vouched_at: 0,
            abstains: false,
            counts: CopyCounts::default(),
        }
    }
}

impl Copy {
    /// How far it is, for a source.
    pub fn positions<D: Data>(&self, data: &D) -> Positions {
        let seq = data.journal().positions();
        // Where something newer than its place has been taken in, another leader may never have had it.
        let ahead = (0..PARTITIONS)
            .filter(|&number| seq[number] < self.ahead[number])
            .fold(0, |set, number| set | 1 << number);
        Positions {
            epoch: self.history.epoch(),
            whole: if self.flushes.are_complete() {
                self.whole & !ahead
            } else {
                0
            },
            seq,
            items: data.items(),
        }
    }

    /// What a digest or a record that goes on from another says of a partition there need not be so here
    /// yet: it is not whole, or newer things may have come before.
    fn is_unsure_of(&self, number: usize, seq: u64) -> bool {
        self.whole & 1 << number == 0 || seq <= self.ahead[number]
    }

    fn skew(&self) -> i64 {
        let ahead = self.clock.ms();
        if ahead.abs() < SKEW_ALARM {
            0
        } else {
            ahead.div_euclid(1000)
        }
    }
}

/// Flushes are logged in every partition, and partitions do not come to them at the same time: the
/// first that does hides everything, and what the others still bring from before is dead on arrival.
#[derive(Debug, Clone, Default)]
struct Flushes {
    /// The last ones, oldest first.
    seen: VecDeque<u64>,
    /// Those before.
    forgotten: u64,
    /// How many each partition has come to.
    passed: PerPartition,
    /// There may still be items that are hidden by one.
    hide: bool,
}

#[derive(Debug, Clone)]
struct PerPartition([u64; PARTITIONS]);

impl Default for PerPartition {
    fn default() -> PerPartition {
        PerPartition([0; PARTITIONS])
    }
}

impl Flushes {
    /// Flushes that are remembered.
    const MOST: usize = 64;

    fn count(&self) -> u64 {
        self.forgotten + self.seen.len() as u64
    }

    fn are_ahead_of(&self, partition: usize) -> bool {
        self.passed.0[partition] < self.count()
    }

    /// All partitions have come to all flushes.
    fn are_complete(&self) -> bool {
        let count = self.count();
        self.passed.0.iter().all(|passed| *passed == count)
    }

    /// A partition has come to a flush; true if it is the first to do so.
    fn come_to(&mut self, partition: usize, flush: u64) -> bool {
        let known = self.seen.iter().position(|seen| *seen == flush);
        let at = match known {
            Some(at) => self.forgotten + at as u64 + 1,
            None => {
                if self.seen.len() == Flushes::MOST {
                    self.seen.pop_front();
                    self.forgotten += 1;
                }
                self.seen.push_back(flush);
                self.hide = true;
                self.count()
            }
        };
        self.passed.0[partition] = self.passed.0[partition].max(at);
        known.is_none()
    }

    /// A partition begins where all of them are past.
    fn skip(&mut self, partition: usize) {
        self.passed.0[partition] = self.count();
    }
}

/// What a frame is taken in with.
pub struct Context<'a, D> {
    pub data: &'a D,
    pub copy: &'a mut Copy,
    /// The frame's partition.
    pub number: usize,
    /// Where what is said in answer goes.
    pub out: &'a mut Vec<u8>,
}

impl<D: Data> Context<'_, D> {
    fn log(&self) -> &Journal {
        self.data.journal()
    }

    /// What comes was flushed before it came.
    fn dead(&self) -> bool {
        self.copy.flushes.are_ahead_of(self.number)
    }
}

/// What it takes to say what is here.
enum Walk {
    /// Items are looked for, from this place on.
    Look(usize),
    /// What was found is told, from this partition on.
    Tell(usize),
}

/// A long value on its way in.
struct Arriving<U> {
    key: Vec<u8>,
    /// Nothing: there is no room for it.
    upload: Option<U>,
}

pub struct Sink<D: Data> {
    epoch: u64,
    arriving: Option<Arriving<D::Upload>>,
    building: Option<Building<D>>,
    /// A long value that is being prepared: its sequence, and what has come of it.
    preparing: Option<(u64, Vec<u8>)>,
    taken: u64,
    told: u64,
    /// Partitions whose position has changed since the last acknowledgement.
    moved: u64,
    /// The leaves of partitions that are compared, as they were when that began.
    rows: Vec<Option<Box<Row>>>,
    /// What the source has asked about.
    listings: Vec<Option<Listing>>,
    walk: Option<Walk>,
    heard_at: u64,
    sent_at: u64,
    source_sent_ms: u64,
}

impl<D: Data> Sink<D> {
    /// Begins to follow as `mode` says.
    pub fn new(data: &D, copy: &mut Copy, mode: &Mode, now: u64, out: &mut Vec<u8>) -> Sink<D> {
        data.journal().open_rings();
        let epoch = mode.history.epoch().number;
        copy.history = mode.history.clone();
        copy.in_sync = false;
        copy.clock.begin();
        let compares = mode.tiers.contains(&Tier::Diff);
        if !copy.flushes.are_complete() || compares && copy.flushes.hide {
            // The source may never have had that flush: what it has hidden goes, and comes again.
            data.purge();
            copy.flushes.hide = false;
        }
        let mut rows: Vec<_> = (0..PARTITIONS).map(|_| None).collect();
        for (number, row) in rows.iter_mut().enumerate() {
            match mode.tiers[number] {
                Tier::Tail => copy.whole |= 1 << number,
                Tier::Diff | Tier::Full => {
                    copy.whole &= !(1 << number);
                    copy.flushes.skip(number);
                    copy.ahead[number] = 0;
                    if mode.tiers[number] == Tier::Diff {
                        let frozen = data.journal().row(number).row;
                        let nodes = Message::Nodes(Box::new(journal::nodes(&frozen)));
                        message::write(out, epoch, number, &nodes);
                        *row = Some(frozen);
                    }
                    data.journal().jump(number, mode.start[number]);
                }
            }
        }
        Sink {
            epoch,
            arriving: None,
            building: None,
            preparing: None,
            taken: 0,
            told: 0,
            moved: u64::MAX,
            rows,
            listings: (0..PARTITIONS).map(|_| None).collect(),
            walk: None,
            heard_at: now,
            sent_at: now,
            source_sent_ms: 0,
        }
    }

    pub fn heard_at(&self) -> u64 {
        self.heard_at
    }

    /// It walks: nothing more is taken in before that is over.
    pub fn busy(&self) -> bool {
        self.walk.is_some()
    }

    /// Takes one frame in. `length` is that of the whole frame.
    pub fn receive(
        &mut self,
        cx: &mut Context<'_, D>,
        message: Message<'_>,
        length: usize,
        at: Moment,
    ) -> Result<(), Broken> {
        self.heard_at = at.now;
        cx.copy.heard_at = at.now;
        self.taken += length as u64;
        match message {
            Message::Batch(bytes) => self.records(cx, bytes, true)?,
            Message::Chunk(bytes) => self.records(cx, bytes, false)?,
            Message::Heartbeat(beat) => {
                let copy = &mut *cx.copy;
                copy.cas = copy.cas.max(beat.cas);
                copy.in_sync = beat.in_sync;
                copy.source_records = beat.records;
                copy.clock.heard(beat.unix_ms, at.unix_ms, at.now);
                if copy.clock.ms().abs() >= SKEW_ALARM {
                    copy.counts.clock_alarms += 1;
                }
                if !copy.abstains {
                    // Heard is answered: it is a promise, and the source counts on it.
                    self.source_sent_ms = beat.sent_ms;
                    copy.vouched_at = at.now;
                }
                self.beat(cx.data, at, cx.out);
            }
            Message::LeavesRequest(nodes) => {
                let Some(row) = self.rows[cx.number].take() else {
                    return Err(Broken::Unexpected(Type::LeavesRequest));
                };
                let told = tell_leaves(&row, nodes);
                self.say(cx, &Message::Leaves(&told));
            }
            Message::ListRequest(leaves, salt) => {
                for leaf in each_leaf(&leaves) {
                    // What was given up here will be made good.
                    cx.log().found_again(cx.number, leaf);
                }
                self.listings[cx.number] = Some(Listing::new(leaves, salt));
            }
            Message::ListEnd => self.walk = Some(Walk::Look(0)),
            Message::Drop(strangers) => {
                if let Some(listing) = self.listings[cx.number].take() {
                    for (digest, spot) in listing.named(strangers) {
                        cx.data.delete_exactly(spot, digest);
                    }
                }
            }
            Message::Synced(partitions) => {
                cx.copy.whole |= partitions;
                for number in (0..PARTITIONS).filter(|number| partitions & 1 << number != 0) {
                    self.listings[number] = None;
                    self.rows[number] = None;
                }
            }
            Message::Clients(address) => cx.copy.source_clients = address.to_owned(),
            Message::Ahead(until) => {
                let ahead = &mut cx.copy.ahead[cx.number];
                *ahead = until.max(*ahead);
            }
            _ => return Err(Broken::Malformed),
        }
        Ok(())
    }

    fn records(
        &mut self,
        cx: &mut Context<'_, D>,
        mut bytes: &[u8],
        logged: bool,
    ) -> Result<(), Broken> {
        let (data, number) = (cx.data, cx.number);
        let mut next = data.journal().seq(number) + 1;
        // While one is applied, the memory of the other is on its way.
        let mut runs = [Run::default(), Run::default()];
        let mut latest = 0;
        while !bytes.is_empty() {
            let (record, rest) = Record::parse(bytes).map_err(|_| Broken::Malformed)?;
            bytes = rest;
            if logged {
                if record.seq < next {
                    // It has come twice.
                    continue;
                }
                if record.seq > next {
                    return Err(Broken::Malformed);
                }
            }
            let place = journal::place(record.key);
            if !record.key.is_empty() && journal::partition(place) != number {
                return Err(Broken::Malformed);
            }
            if matches!(record.kind, Kind::Put | Kind::Meta | Kind::Delete) {
                let run = &mut runs[latest];
                run.spots.push(data.foresee(record.key, place));
                run.records.push(record);
                next += 1;
                if run.records.is_full() {
                    run.spots.iter().for_each(|spot| data.approach(*spot));
                    latest = 1 - latest;
                    self.apply_run(cx, &mut runs[latest], logged);
                }
            } else {
                self.apply_runs(cx, &mut runs, latest, logged);
                self.apply(cx, &record, logged)?;
                next = data.journal().seq(number) + 1;
            }
        }
        self.apply_runs(cx, &mut runs, latest, logged);
        Ok(())
    }

    /// Applies what is left of two runs, of which one is later.
    fn apply_runs(
        &mut self,
        cx: &mut Context<'_, D>,
        runs: &mut [Run<'_>; 2],
        latest: usize,
        logged: bool,
    ) {
        let spots = &runs[latest].spots;
        spots.iter().for_each(|spot| cx.data.approach(*spot));
        for run in [1 - latest, latest] {
            self.apply_run(cx, &mut runs[run], logged);
        }
    }

    /// Applies records that only concern their keys.
    fn apply_run(&mut self, cx: &mut Context<'_, D>, run: &mut Run<'_>, logged: bool) {
        let Run { records, spots } = run;
        if records.is_empty() {
            return;
        }
        let (skew, dead) = (cx.copy.skew(), cx.dead());
        let (data, copy) = (cx.data, &mut *cx.copy);
        for record in records.iter() {
            match record.kind {
                Kind::Meta => data.meta(record, skew),
                Kind::Delete => data.delete(record.key),
                _ => {
                    if !data.put(record, skew, dead) {
                        copy.counts.no_room += 1;
                    }
                }
            }
        }
        if logged {
            data.journal().replay(cx.number, records);
            self.moved |= 1 << cx.number;
            copy.counts.records += records.len() as u64;
        } else {
            copy.counts.items += records.len() as u64;
        }
        records.clear();
        spots.clear();
    }

    fn apply(
        &mut self,
        cx: &mut Context<'_, D>,
        record: &Record<'_>,
        logged: bool,
    ) -> Result<(), Broken> {
        let (data, number) = (cx.data, cx.number);
        let log = data.journal();
        // What is kept of the record in the log; nothing of a value that is not whole yet.
        let mut kept = Some(*record);
        let key;
        match record.kind {
            Kind::Part => match self.part(cx, record)? {
                Some(arrived) => {
                    key = arrived;
                    kept = Some(Record {
                        kind: Kind::PutLater,
                        argument: record.argument >> 32,
                        key: &key,
                        value: &[],
                        ..*record
                    });
                }
                None => kept = None,
            },
            Kind::Append | Kind::Prepend => match data.extend(record) {
                Extended::Done => {}
                Extended::NoRoom => cx.copy.counts.no_room += 1,
                // Where newer things may have come before this, or all of it is still to come, the
                // item is what it should be or will be.
                Extended::Other if cx.copy.is_unsure_of(number, record.seq) => {}
                Extended::Other => self.fetch(cx, record.key),
            },
            Kind::Flush if record.expires != 0 => cx.copy.flush_due = Some(record.expires),
            Kind::Flush => {
                if cx.copy.flushes.come_to(number, record.cas) {
                    cx.copy.flush_due = None;
                    data.flush();
                }
            }
            Kind::Digest => {
                // Frozen behind the record itself, as the source does.
                log.replay(number, slice::from_ref(record));
                self.moved |= 1 << number;
                self.digest(cx, record);
                return Ok(());
            }
            Kind::Prepare | Kind::PrepareDelete => self.prepare(cx, record),
            Kind::PreparePart => {
                let arrived = self.prepare_part(cx, record)?;
                kept = arrived.then_some(Record {
                    kind: Kind::PrepareLater,
                    argument: record.argument >> 32,
                    value: &[],
                    ..*record
                });
            }
            Kind::Commit => match log.take_prepared(number, record.argument) {
                Some(bytes) => commit(data, &bytes, cx.copy.skew(), cx.dead()),
                None => self.fetch(cx, record.key),
            },
            Kind::Abort => {
                log.take_prepared(number, record.argument);
            }
            Kind::Superseded => {}
            Kind::Gone => {
                for victim in victims(record.value) {
                    let (_, key) = victim.map_err(|_| Broken::Malformed)?;
                    let place = journal::place(key);
                    if journal::partition(place) != number {
                        return Err(Broken::Malformed);
                    }
                    data.foresee(key, place);
                }
                for (cas, key) in victims(record.value).flatten() {
                    data.give_up(key, cas);
                }
            }
            Kind::Check => {
                self.check(cx, record);
                return Ok(());
            }
            Kind::Offer => {
                self.ask(cx, true, record.key, &segments::tell_of(data, record.key));
                return Ok(());
            }
            Kind::Patch => {
                self.patch(cx, record)?;
                return Ok(());
            }
            // Those are applied in runs; and what is not in the log is sent in parts.
            Kind::Put | Kind::Meta | Kind::Delete | Kind::PutLater | Kind::PrepareLater => {
                return Err(Broken::Malformed);
            }
        }
        cx.copy.counts.items += u64::from(!logged);
        if logged && let Some(kept) = kept {
            cx.copy.counts.records += 1;
            log.replay(number, slice::from_ref(&kept));
            self.moved |= 1 << number;
        }
        Ok(())
    }

    /// Keeps what is prepared, if there is room.
    fn prepare(&self, cx: &mut Context<'_, D>, record: &Record<'_>) {
        if cx.log().prepared_bytes(cx.number) + record.length() > PREPARED_MAX {
            self.say(cx, &Message::Nak { seq: record.seq });
            cx.copy.counts.no_room += 1;
        } else {
            cx.log().prepare(cx.number, record);
        }
    }

    /// A stretch of a long value that is prepared. True if it was the last one.
    fn prepare_part(
        &mut self,
        cx: &mut Context<'_, D>,
        record: &Record<'_>,
    ) -> Result<bool, Broken> {
        let (total, offset) = segments::place_of(record);
        let mut value = match self.preparing.take() {
            _ if offset == 0 => Vec::new(),
            Some((seq, value)) if seq == record.seq && value.len() == offset => value,
            _ => return Err(Broken::Malformed),
        };
        if total > PREPARED_MAX || offset + record.value.len() > total || record.value.is_empty() {
            return Err(Broken::Malformed);
        }
        value.extend_from_slice(record.value);
        if value.len() < total {
            self.preparing = Some((record.seq, value));
            return Ok(false);
        }
        let prepared = Record {
            kind: Kind::Prepare,
            argument: total as u64,
            value: &value,
            ..*record
        };
        self.prepare(cx, &prepared);
        Ok(true)
    }

    /// A stretch of a long value. Returns its key if it was the last one.
    fn part(
        &mut self,
        cx: &mut Context<'_, D>,
        record: &Record<'_>,
    ) -> Result<Option<Vec<u8>>, Broken> {
        let (skew, dead) = (cx.copy.skew(), cx.dead());
        let (data, counts) = (cx.data, &mut cx.copy.counts);
        let (total, offset) = segments::place_of(record);
        let last = offset + record.value.len() >= total;
        if offset == 0 {
            let arriving = Arriving {
                key: record.key.to_vec(),
                upload: data.begin(record, skew, total),
            };
            if arriving.upload.is_none() {
                counts.no_room += 1;
                data.lose(record.key);
            }
            self.arriving = Some(arriving);
        }
        // Only the first stretch has the key.
        let mut arriving = self.arriving.take().ok_or(Broken::Malformed)?;
        if let Some(upload) = &mut arriving.upload
            && !data.fill(upload, record.value)
        {
            counts.no_room += 1;
            data.lose(&arriving.key);
            arriving.upload = None;
        }
        if !last {
            self.arriving = Some(arriving);
            return Ok(None);
        }
        if let Some(upload) = arriving.upload {
            let record = Record {
                key: &arriving.key,
                ..*record
            };
            if !data.finish(&record, skew, dead, upload) {
                counts.no_room += 1;
            }
        }
        Ok(Some(arriving.key))
    }

    fn digest(&self, cx: &mut Context<'_, D>, record: &Record<'_>) {
        let number = cx.number;
        let log = cx.data.journal();
        let ours = log.freeze(number);
        if cx.copy.is_unsure_of(number, record.seq) {
            return;
        }
        if ours == record.argument {
            cx.copy.counts.digests_equal += 1;
            return;
        }
        let lossy = log.lossy(number);
        if lossy.iter().all(|word| *word == 0) {
            cx.copy.counts.digests_differed += 1;
        }
        if let Some(frozen) = log.frozen(number) {
            let row = Message::Row {
                seq: frozen.seq,
                lossy,
                row: frozen.row,
            };
            self.say(cx, &row);
        }
    }

    fn check(&self, cx: &mut Context<'_, D>, record: &Record<'_>) {
        let rooted = record.client_flags == 1;
        let Some((digest, value)) = cx.data.digests(record.key, rooted) else {
            return;
        };
        if record.value != digest.to_le_bytes() || value == record.argument {
            return;
        }
        cx.copy.counts.values_differed += 1;
        let told = segments::tell_of(cx.data, record.key);
        // A short one comes by the log.
        if segments::are_worth_it(record.key, told.len() / 8 * SEGMENT) {
            self.ask(cx, false, record.key, &told);
        } else {
            self.fetch(cx, record.key);
        }
    }

    /// Asks for an item as it is now.
    fn fetch(&self, cx: &mut Context<'_, D>, key: &[u8]) {
        self.say(cx, &Message::Fetch(key));
    }

    /// Asks for a long value of which these segments are here.
    fn ask(&self, cx: &mut Context<'_, D>, offered: bool, key: &[u8], digests: &[u8]) {
        let segments = Message::Segments {
            offered,
            key,
            digests,
        };
        self.say(cx, &segments);
    }

    fn say(&self, cx: &mut Context<'_, D>, message: &Message<'_>) {
        message::write(cx.out, self.epoch, cx.number, message);
    }

    /// A segment of a value, or its root.
    fn patch(&mut self, cx: &mut Context<'_, D>, record: &Record<'_>) -> Result<(), Broken> {
        let (data, skew) = (cx.data, cx.copy.skew());
        if !record.key.is_empty() {
            self.building = Some(Building::new(data, record, skew));
        }
        let mut building = self.building.take().ok_or(Broken::Malformed)?;
        let Some(root) = building.take(data, record)? else {
            self.building = Some(building);
            return Ok(());
        };
        match building.finish(data, record, skew, cx.dead(), root) {
            (_, Built::Done) => cx.copy.counts.items += 1,
            (_, Built::NoRoom) => cx.copy.counts.no_room += 1,
            (key, Built::Other) => self.ask(cx, false, &key, &[]),
        }
        Ok(())
    }

    /// One step of what takes longer. True: there is more.
    pub fn work(&mut self, data: &D, now: u64, out: &mut Vec<u8>) -> bool {
        match self.walk.take() {
            None => return false,
            Some(Walk::Look(from)) => {
                let listings = &mut self.listings;
                let next = data.walk(from, STEP, false, &mut |item| {
                    if let Some(listing) = &mut listings[journal::partition(item.place)]
                        && listing.wants(item.place)
                    {
                        let spot = data.spot(item.record.key);
                        listing.push(item.place, item.digest, spot);
                    }
                });
                self.walk = Some(next.map_or(Walk::Tell(0), Walk::Look));
            }
            Some(Walk::Tell(from)) => {
                let epoch = self.epoch;
                let mut rest = self.listings.iter_mut().enumerate().skip(from);
                let next = rest.find_map(|(number, listing)| Some((number, listing.as_mut()?)));
                match next {
                    Some((number, listing)) => {
                        listing.tell(|first, items| {
                            message::write(out, epoch, number, &Message::List { first, items });
                        });
                        self.walk = Some(Walk::Tell(number + 1));
                    }
                    None => message::write(out, epoch, 0, &Message::ListEnd),
                }
                self.sent_at = now;
            }
        }
        true
    }

    /// Says how far it is, if that has changed; and that it is there.
    pub fn tell(&mut self, data: &D, at: Moment, out: &mut Vec<u8>) {
        if self.taken > self.told || self.moved != 0 {
            let positions = (0..PARTITIONS)
                .filter(|number| self.moved & 1 << number != 0)
                .map(|number| (number, data.journal().seq(number)))
                .collect();
            let ack = Message::Ack {
                bytes: self.taken,
                positions,
            };
            message::write(out, self.epoch, 0, &ack);
            (self.told, self.moved, self.sent_at) = (self.taken, 0, at.now);
        } else if at.now >= self.sent_at + HEARTBEAT {
            self.beat(data, at, out);
        }
    }

    fn beat(&mut self, data: &D, at: Moment, out: &mut Vec<u8>) {
        let beat = Heartbeat {
            unix_ms: at.unix_ms,
            cas: data.last_cas(),
            records: data.journal().records(),
            sent_ms: self.source_sent_ms,
            in_sync: false,
        };
        message::write(out, self.epoch, 0, &Message::Heartbeat(beat));
        self.sent_at = at.now;
    }
}

/// Makes what was prepared so.
pub fn commit<D: Data>(data: &D, prepared: &[u8], skew: i64, dead: bool) {
    let Ok((record, _)) = Record::parse(prepared) else {
        return;
    };
    if record.kind == Kind::PrepareDelete {
        data.delete(record.key);
    } else {
        let put = Record {
            kind: Kind::Put,
            argument: record.value.len() as u64,
            ..record
        };
        data.put(&put, skew, dead);
    }
}

/// Types that a sink expects.
pub fn is_for_sink(kind: Type) -> bool {
    matches!(
        kind,
        Type::Batch
            | Type::Chunk
            | Type::Heartbeat
            | Type::LeavesRequest
            | Type::ListRequest
            | Type::ListEnd
            | Type::Drop
            | Type::Synced
            | Type::Ahead
            | Type::Clients
    )
}
