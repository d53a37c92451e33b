#![forbid(unsafe_code)]
//! One partition's log: what gets which sequence, and what waits to get one.

use std::sync::Arc;

use super::record::{Kind, Record};
use super::ring::Ring;
use super::{Frozen, LEAVES, Partition, row_digest};

/// What whoever has locked it sees.
#[derive(Default)]
pub(super) struct Log {
    /// Sequence of the last record.
    pub(super) seq: u64,
    pub(super) ring: Option<Ring>,
    /// The leaves that hold less than they should: something was given up for want of memory.
    pub(super) lossy: Option<Box<[u64; LEAVES / 64]>>,
    pub(super) frozen: Option<Frozen>,
    pub(super) since_digest: u32,
    /// Sequence of the last flush, if there was one since the log began here.
    pub(super) flushed: u64,
    /// What has been prepared and neither committed nor aborted.
    pub(super) prepared: Vec<Prepared>,
    pub(super) prepared_bytes: usize,
    /// Items that are gone, which the next record of [`Kind::Gone`] will tell: once so many wait, or
    /// somebody looks at the log.
    pub(super) gone: Option<Box<Gone>>,
}

/// Items that are gone and that no record tells of yet.
#[derive(Default)]
pub(super) struct Gone {
    /// The highest CAS id among them.
    pub(super) cas: u64,
    pub(super) victims: Vec<u8>,
}

/// A mutation that is neither committed nor aborted.
pub(super) struct Prepared {
    pub(super) seq: u64,
    pub(super) cas: u64,
    /// Its record, with the whole value.
    pub(super) bytes: Arc<[u8]>,
}

impl Gone {
    /// Whether a record may not come first: it could be of one of these keys, with a CAS id that a client
    /// has chosen and that makes it look older; or it is about all that is there.
    #[inline]
    pub(super) fn waits_before(&self, record: &Record<'_>) -> bool {
        match record.kind {
            Kind::Delete => false,
            Kind::Flush => true,
            _ => record.cas <= self.cas,
        }
    }
}

impl Log {
    #[inline(always)]
    pub(super) fn push(&mut self, record: &Record<'_>) -> u64 {
        if let Some(gone) = &self.gone
            && gone.waits_before(record)
        {
            self.settle();
        }
        self.seq += 1;
        self.since_digest += 1;
        match record.kind {
            Kind::Put | Kind::PutLater if !self.prepared.is_empty() => {
                let record = self.commit(record);
                self.keep(&record);
            }
            Kind::Prepare | Kind::PrepareDelete => {
                self.prepare(&Record {
                    seq: self.seq,
                    ..*record
                });
                self.keep(&record.for_ring());
            }
            Kind::Flush => {
                self.note_flush(record, self.seq);
                self.keep(record);
            }
            _ => self.keep(record),
        }
        self.seq
    }

    /// Makes a record of what is gone.
    #[cold]
    #[inline(never)]
    pub(super) fn settle(&mut self) {
        if let Some(gone) = &mut self.gone
            && !gone.victims.is_empty()
        {
            gone.cas = 0;
            let victims = std::mem::take(&mut gone.victims);
            self.seq += 1;
            self.since_digest += 1;
            self.keep(&Record {
                value: &victims,
                ..Record::new(Kind::Gone, b"")
            });
            if let Some(gone) = &mut self.gone {
                // Its memory serves again.
                gone.victims = victims;
                gone.victims.clear();
            }
        }
    }

    /// Keeps a record under the last sequence.
    #[inline(always)]
    pub(super) fn keep(&mut self, record: &Record<'_>) {
        if let Some(ring) = &mut self.ring {
            ring.push(self.seq, record);
        }
    }

    pub(super) fn note_flush(&mut self, record: &Record<'_>, seq: u64) {
        if record.expires == 0 {
            self.flushed = seq;
        }
    }

    pub(super) fn prepare(&mut self, record: &Record<'_>) {
        if self.prepared.iter().any(|one| one.seq == record.seq) {
            return;
        }
        let mut bytes = Vec::with_capacity(record.length());
        record.encode(&mut bytes);
        self.prepared_bytes += bytes.len();
        self.prepared.push(Prepared {
            seq: record.seq,
            cas: record.cas,
            bytes: bytes.into(),
        });
    }

    pub(super) fn take_prepared(&mut self, at: usize) -> Prepared {
        let one = self.prepared.swap_remove(at);
        self.prepared_bytes -= one.bytes.len();
        one
    }

    /// A mutation that had been prepared needs no second copy of its value in the log.
    #[cold]
    #[inline(never)]
    pub(super) fn commit<'r>(&mut self, record: &Record<'r>) -> Record<'r> {
        let same = |one: &Prepared| {
            one.cas == record.cas
                && Record::parse(&one.bytes).is_ok_and(|(prepared, _)| {
                    prepared.kind == Kind::Prepare && prepared.key == record.key
                })
        };
        match self.prepared.iter().position(same) {
            None => *record,
            Some(at) => Record {
                kind: Kind::Commit,
                argument: self.take_prepared(at).seq,
                value: &[],
                ..*record
            },
        }
    }

    pub(super) fn replay(&mut self, record: &Record<'_>) {
        if record.seq != self.seq + 1
            && let Some(ring) = &mut self.ring
        {
            ring.restart(record.seq);
        }
        self.seq = record.seq;
        match record.kind {
            Kind::Prepare => self.keep(&record.for_ring()),
            Kind::Flush => {
                self.note_flush(record, record.seq);
                self.keep(record);
            }
            _ => self.keep(record),
        }
    }

    pub(super) fn freeze(&mut self, partition: &Partition) -> u64 {
        let row = partition.row();
        let digest = row_digest(&row);
        self.frozen = Some(Frozen { seq: self.seq, row });
        digest
    }

    /// Appends a digest and keeps the row that it is of.
    #[cold]
    #[inline(never)]
    pub(super) fn mark(&mut self, partition: &Partition) {
        let row = partition.row();
        let record = Record {
            argument: row_digest(&row),
            ..Record::new(Kind::Digest, b"")
        };
        self.push(&record);
        self.frozen = Some(Frozen { seq: self.seq, row });
        self.since_digest = 0;
    }
}
