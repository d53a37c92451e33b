#![forbid(unsafe_code)]
//! Long values of which the copy has some segments.

use std::collections::VecDeque;

use super::super::data::{Data, Long, Opened};
use super::super::frame::Broken;
use super::super::message::Type;
use super::super::segments::{self, KEY_MAX, SEGMENT};
use super::Source;
use crate::store::journal::{Kind, Lost, Record, partition, place};

/// Offers that are not answered, at most: what else there is comes whole.
const OFFERS: usize = 1024;
/// Bytes of what the copy has asked for of its own accord. The next round of comparing finds the rest.
const ASKED: usize = 1 << 20;

/// What the copy has said of a value.
struct Asked {
    key: Vec<u8>,
    digests: Vec<u8>,
}

/// A value some of whose segments are on their way.
struct Patching<L> {
    /// Its record, without the value.
    record: Vec<u8>,
    value: L,
    /// Segments that are still to be sent.
    rest: VecDeque<usize>,
    root: u64,
    partition: usize,
    begun: bool,
}

pub(super) struct Segments<L> {
    /// Offers that have not been answered.
    offered: usize,
    asked: VecDeque<Asked>,
    asked_bytes: usize,
    patching: Option<Patching<L>>,
}

impl<L> Segments<L> {
    pub(super) fn new() -> Segments<L> {
        Segments {
            offered: 0,
            asked: VecDeque::new(),
            asked_bytes: 0,
            patching: None,
        }
    }

    /// Nothing is on its way, nor asked for.
    pub(super) fn are_settled(&self) -> bool {
        self.offered == 0 && self.asked.is_empty() && self.patching.is_none()
    }

    /// The copy has said what it has of a value, because that was offered or for itself.
    ///
    /// # Errors
    /// It was not offered.
    pub(super) fn told(&mut self, offered: bool, key: &[u8], digests: &[u8]) -> Result<(), Broken> {
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(Broken::Malformed);
        }
        if offered {
            let left = self.offered.checked_sub(1);
            self.offered = left.ok_or(Broken::Unexpected(Type::Segments))?;
        } else if self.asked_bytes > ASKED {
            return Ok(());
        }
        self.asked_bytes += key.len() + digests.len();
        self.asked.push_back(Asked {
            key: key.to_vec(),
            digests: digests.to_vec(),
        });
        Ok(())
    }
}

impl<D: Data> Source<D> {
    /// Offers a value to a copy that may have had another one under its key. False: it should be sent
    /// whole.
    pub(super) fn offer(
        &mut self,
        number: usize,
        record: &Record<'_>,
        now: u64,
        out: &mut Vec<u8>,
    ) -> bool {
        let has_some = self.wave.as_ref().is_some_and(|wave| !wave.empty);
        let length = record.argument as usize;
        if !has_some
            || self.segments.offered >= OFFERS
            || !segments::are_worth_it(record.key, length)
        {
            return false;
        }
        self.segments.offered += 1;
        let offer = Record {
            kind: Kind::Offer,
            value: &[],
            ..*record
        };
        self.send_record(Type::Chunk, number, &offer, now, out);
        true
    }

    /// Sends the next of what the copy has asked for, once it has the log that this contains. False:
    /// there is nothing.
    pub(super) fn send_asked(
        &mut self,
        data: &D,
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<bool, Lost> {
        if let Some(patching) = self.segments.patching.take() {
            self.send_patch(patching, now, out);
            return Ok(true);
        }
        let Some(asked) = self.segments.asked.front() else {
            return Ok(false);
        };
        let number = partition(place(&asked.key));
        let opened = data.open(&asked.key);
        let contains = opened.as_ref().map_or(0, |opened| {
            Record::parse(&opened.bytes).map_or(0, |(record, _)| record.seq)
        });
        if self.cursors[number].seq <= contains {
            self.send_log_of(data, number, contains, now, out)?;
            return Ok(true);
        }
        let Some(Asked { key, digests }) = self.segments.asked.pop_front() else {
            return Ok(false);
        };
        self.segments.asked_bytes -= key.len() + digests.len();
        let Some(Opened { bytes, long }) = opened else {
            // It has gone, as the log has said.
            return Ok(true);
        };
        let Some(value) = long else {
            if let Ok((record, _)) = Record::parse(&bytes) {
                self.send_record(Type::Chunk, number, &record, now, out);
            }
            return Ok(true);
        };
        let ours = segments::digests(&value);
        let rest = segments::differing(&ours, &digests);
        if rest.len() == ours.len() {
            self.send_long(Type::Chunk, number, bytes, value);
        } else {
            self.counts.values_patched += 1;
            self.segments.patching = Some(Patching {
                record: bytes,
                value,
                rest: rest.into(),
                root: segments::root(&ours),
                partition: number,
                begun: false,
            });
        }
        Ok(true)
    }

    /// Sends one segment of a value, or its root behind all of them.
    fn send_patch(&mut self, mut patching: Patching<D::Long>, now: u64, out: &mut Vec<u8>) {
        let Ok((record, _)) = Record::parse(&patching.record) else {
            return;
        };
        let total = patching.value.length();
        let next = patching.rest.pop_front();
        let (offset, value) = match next {
            Some(at) => (at * SEGMENT, patching.value.bytes(at * SEGMENT, SEGMENT)),
            None => (total, patching.root.to_le_bytes().to_vec()),
        };
        let part = Record {
            kind: Kind::Patch,
            argument: (total as u64) << 32 | offset as u64,
            // Only the first has the key.
            key: match std::mem::replace(&mut patching.begun, true) {
                true => &[],
                false => record.key,
            },
            value: &value,
            ..record
        };
        self.send_record(Type::Chunk, patching.partition, &part, now, out);
        if next.is_some() {
            self.segments.patching = Some(patching);
        }
    }
}
