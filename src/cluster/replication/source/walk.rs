#![forbid(unsafe_code)]
//! Walks: what a copy lacks, or has otherwise.

use super::super::compare::{Theirs, each_leaf};
use super::super::data::Data;
use super::super::frame;
use super::super::message::{Message, Type};
use super::{BATCH, LOOK, STEP, Source, State, WAVE};
use crate::store::journal::{INLINE_MAX, Kind, LEAVES, Lost, PARTITIONS, Record, partition};

/// What the copy has in the leaves of the present wave.
#[derive(Default)]
pub(super) struct Wave {
    /// Of each of its partitions.
    pub(super) theirs: Vec<Option<Theirs>>,
    /// The copy has nothing at all.
    pub(super) empty: bool,
    /// Bytes of lists so far.
    pub(super) told: u64,
    /// The copy has said everything.
    pub(super) listed: bool,
    /// Where the walk goes on.
    pub(super) next: Option<usize>,
    pub(super) began: bool,
}

impl<D: Data> Source<D> {
    /// Goes on with a repair. False: there is nothing to be done now.
    pub(super) fn send_walk(
        &mut self,
        data: &D,
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<bool, Lost> {
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
            if !self.segments.are_settled() {
                return Ok(false);
            }
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
    pub(super) fn begin_wave(&mut self, data: &D, now: u64, out: &mut Vec<u8>) -> bool {
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
    pub(super) fn send_prepared(&mut self, data: &D, now: u64, out: &mut Vec<u8>) {
        for number in 0..PARTITIONS {
            if self.states[number] == State::Walked {
                self.send_prepared_of(data, number, now, out);
            }
        }
    }

    pub(super) fn send_prepared_of(
        &mut self,
        data: &D,
        number: usize,
        now: u64,
        out: &mut Vec<u8>,
    ) {
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

    pub(super) fn queue(&mut self, mut found: Vec<(usize, u64, Vec<u8>)>) {
        found.sort_by_key(|(number, _, _)| *number);
        self.found.extend(found);
    }

    /// Sends what a walk has found, each item behind the log that it contains, as far as one frame
    /// goes.
    pub(super) fn send_found(&mut self, data: &D, now: u64, out: &mut Vec<u8>) -> Result<(), Lost> {
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
        let seq = record.seq;
        if self.cursors[number].seq <= seq {
            self.send_log_of(data, number, seq, now, out)?;
            self.found.push_front((number, seq, opened.bytes));
        } else if let Some(long) = opened.long {
            if !self.offer(number, &record, now, out) {
                self.send_long(Type::Chunk, number, opened.bytes, long);
            }
        } else {
            self.send_record(Type::Chunk, number, &record, now, out);
        }
        Ok(())
    }

    pub(super) fn end_wave(&mut self, data: &D, now: u64, out: &mut Vec<u8>) {
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
    pub(super) fn prove(&self, data: &D, number: usize) {
        if !data.journal().is_follower() {
            data.journal().mark(number);
        }
    }
}
