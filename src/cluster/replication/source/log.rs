#![forbid(unsafe_code)]
//! The log on its way to the copy, and long values, which go in pieces.

use std::sync::Arc;

use super::super::data::{Data, Long};
use super::super::frame;
use super::super::message::{Message, Type};
use super::{BATCH, PIECE, Source};
use crate::store::journal::{self, Kind, Lost, PARTITIONS, Record};

/// A long value on its way.
pub(super) struct Sending<L> {
    /// Its record, without the value.
    pub(super) record: Vec<u8>,
    pub(super) kind: Type,
    pub(super) value: Value<L>,
    pub(super) offset: usize,
    pub(super) partition: usize,
}

pub(super) enum Value<L> {
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

impl<D: Data> Source<D> {
    /// Sends what is new in the log of some partitions. False: nothing is.
    pub(super) fn send_log(&mut self, data: &D, now: u64, out: &mut Vec<u8>) -> Result<bool, Lost> {
        data.journal().settle();
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
    pub(super) fn send_log_of(
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
    pub(super) fn send_later(
        &mut self,
        data: &D,
        number: usize,
        (seq, cas): (u64, u64),
        key: &[u8],
        now: u64,
        out: &mut Vec<u8>,
    ) {
        let (bytes, long) = match data.open(key) {
            Some(opened) => (opened.bytes, opened.long),
            None => (Vec::new(), None),
        };
        let record = Record::parse(&bytes).ok().map(|(record, _)| record);
        if record.as_ref().is_none_or(|record| record.cas != cas) {
            // It has been replaced: what is there now is sent in its place, so that a copy which has
            // this sequence has at least this mutation.
            let until = data.journal().seq(number);
            self.say(now, number, &Message::Ahead(until), out);
        }
        match (record, long) {
            (Some(record), None) => {
                let record = Record { seq, ..record };
                self.send_record(Type::Batch, number, &record, now, out);
            }
            (Some(record), Some(long)) => {
                let mut bytes = Vec::new();
                Record { seq, ..record }.encode(&mut bytes);
                self.send_long(Type::Batch, number, bytes, long);
            }
            (None, _) => {
                let gone = Record {
                    seq,
                    ..Record::new(Kind::Delete, key)
                };
                self.send_record(Type::Batch, number, &gone, now, out);
            }
        }
    }

    pub(super) fn send_record(
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

    pub(super) fn send_long(
        &mut self,
        kind: Type,
        partition: usize,
        record: Vec<u8>,
        long: D::Long,
    ) {
        self.sending = Some(Sending {
            record,
            kind,
            value: Value::Held(long),
            offset: 0,
            partition,
        });
    }

    /// Sends a prepared mutation whose value is long, in pieces, outside of the log.
    pub(super) fn send_long_prepare(
        &mut self,
        number: usize,
        prepared: &[u8],
        now: u64,
        out: &mut Vec<u8>,
    ) {
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

    pub(super) fn send_piece(&mut self, now: u64, out: &mut Vec<u8>) {
        let Some(mut sending) = self.sending.take() else {
            return;
        };
        let Ok((record, _)) = Record::parse(&sending.record) else {
            return;
        };
        let total = sending.value.length();
        let piece = sending.value.bytes(sending.offset, PIECE);
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
}
