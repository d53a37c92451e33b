#![forbid(unsafe_code)]
//! The recent end of one partition's log: a bounded stretch of bytes that forgets its oldest records.
//!
//! Beside the bytes stands where every few KiB of them begin. The oldest go by such stretches and are
//! sent by such stretches: whoever appends reads nothing that has left the caches long ago, and
//! whoever reads looks at no record.

use std::collections::VecDeque;

use super::record::{HEADER, Record};
use crate::store::raw::{self, Share};

/// Bytes of a stretch, about.
const STRETCH: u64 = 4 << 10;

/// A cache line, in bytes.
const LINE: usize = 64;

/// Bytes of the next record that are asked for, at most.
const AHEAD: usize = 1536;

#[derive(Debug)]
pub struct Ring {
    bytes: Share,
    /// Where the oldest record begins, and where the next one will: counted from the first byte ever.
    start: u64,
    end: u64,
    /// Where in `bytes` the next one will.
    head: usize,
    /// Sequence of the oldest record, and of the next one; the same while there is none.
    first: u64,
    next: u64,
    /// The oldest record, one in every stretch, and every one whose value is elsewhere.
    marks: VecDeque<Mark>,
    /// From here on the next record gets a mark.
    mark_at: u64,
    /// Marks that have gone.
    unmarked: u64,
}

/// Where a record begins.
#[derive(Debug, Clone, Copy)]
struct Mark {
    seq: u64,
    at: u64,
    /// Its value is elsewhere ([`Kind::is_later`]), and the next mark is that of the record behind it.
    later: bool,
}

/// How far a reader has come; it only goes on in the ring it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The next record to be read.
    pub seq: u64,
    /// Where it begins, and the number of the mark before that, if this is known.
    at: Option<(u64, u64)>,
}

impl Cursor {
    /// In front of a record.
    pub fn before(seq: u64) -> Cursor {
        Cursor { seq, at: None }
    }
}

/// The ring no longer has, or never had, what a cursor stands before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Read {
    pub records: usize,
    /// It is one record, whose value has to be fetched ([`Kind::is_later`]). No other reading has any.
    pub later: bool,
}

impl Ring {
    /// An empty ring whose first record will be `next`.
    pub fn new(bytes: Share, next: u64) -> Ring {
        Ring {
            bytes,
            start: 0,
            end: 0,
            head: 0,
            first: next,
            next,
            marks: VecDeque::new(),
            mark_at: 0,
            unmarked: 0,
        }
    }

    /// Forgets everything; the first record will be `next`.
    #[cold]
    #[inline(never)]
    pub fn restart(&mut self, next: u64) {
        self.unmarked += self.marks.len() as u64;
        self.marks.clear();
        self.start = self.end;
        (self.first, self.next) = (next, next);
        self.mark_at = self.end;
    }

    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of records it holds.
    pub fn used(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Bytes from a record on; all that could be there if it is gone.
    pub fn behind(&self, seq: u64) -> usize {
        if seq >= self.next {
            return 0;
        }
        if seq < self.first {
            return self.capacity();
        }
        let own = self.marks.partition_point(|mark| mark.seq <= seq) - 1;
        (self.end - self.marks[own].at) as usize
    }

    /// Sequence of the oldest record.
    #[cfg(test)]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Appends a record under this sequence, which follows that of the last one.
    #[inline(always)]
    pub fn push(&mut self, seq: u64, record: &Record<'_>) {
        let length = record.length();
        if length > self.capacity() {
            // It cannot be held: whoever comes to it will find it gone.
            self.restart(seq + 1);
            return;
        }
        while self.capacity() - self.used() < length {
            self.forget_oldest();
        }
        if self.start == self.end {
            self.first = seq;
        }
        let later = record.kind.is_later();
        if later || self.end >= self.mark_at {
            self.marks.push_back(Mark {
                seq,
                at: self.end,
                later,
            });
            self.mark_at = match later {
                true => self.end,
                false => self.end + STRETCH.min(self.bytes.len() as u64 / 32),
            };
        }
        let place = self.bytes.get_mut(self.head..self.head + length);
        match place.and_then(|place| place.split_first_chunk_mut::<HEADER>()) {
            Some((head, rest)) => {
                record.write_header(seq, head);
                let (key, value) = rest.split_at_mut(record.key.len());
                key.copy_from_slice(record.key);
                value.copy_from_slice(record.value);
                self.head += length;
            }
            None => {
                let mut header = [0; HEADER];
                record.write_header(seq, &mut header);
                for part in [&header[..], record.key, record.value] {
                    self.write_around(part);
                }
            }
        }
        if self.head == self.bytes.len() {
            self.head = 0;
        }
        self.end += length as u64;
        self.next = seq + 1;
        // The next one is probably as long, and this memory has left the caches long ago.
        raw::prefetch_bytes(&self.bytes[self.head..], length.min(AHEAD) + LINE);
    }

    /// What the next record will be written to, or the beginning of that.
    #[inline]
    pub fn ahead(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// Forgets the oldest stretch.
    #[inline(never)]
    fn forget_oldest(&mut self) {
        self.unmarked += u64::from(self.marks.pop_front().is_some());
        (self.start, self.first) = match self.marks.front() {
            Some(mark) => (mark.at, mark.seq),
            None => {
                self.mark_at = self.end;
                (self.end, self.next)
            }
        };
    }

    #[cold]
    fn write_around(&mut self, bytes: &[u8]) {
        let first = bytes.len().min(self.bytes.len() - self.head);
        self.bytes[self.head..self.head + first].copy_from_slice(&bytes[..first]);
        self.bytes[..bytes.len() - first].copy_from_slice(&bytes[first..]);
        self.head = (self.head + bytes.len()) % self.bytes.len();
    }

    fn length_at(&self, at: u64) -> u64 {
        let mut length = [0; 4];
        let start = (at % self.bytes.len() as u64) as usize;
        for (offset, byte) in length.iter_mut().enumerate() {
            *byte = self.bytes[(start + offset) % self.bytes.len()];
        }
        u64::from(u32::from_le_bytes(length))
    }

    /// Whether a cursor stands before something that is here, or at the end.
    pub fn holds(&self, seq: u64, last: u64) -> bool {
        seq == last + 1 || (seq >= self.first && seq <= last && self.start < self.end)
    }

    /// Appends whole records up to sequence `last` to `out`, about `limit` bytes of them but at least
    /// one, and moves the cursor.
    ///
    /// # Errors
    /// The cursor's record is gone.
    pub fn read(
        &self,
        cursor: &mut Cursor,
        last: u64,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<Read, Lost> {
        if cursor.seq > last {
            return Ok(Read::default());
        }
        if cursor.seq < self.first {
            return Err(Lost);
        }
        if cursor.seq >= self.next {
            return Ok(Read::default());
        }
        let (own, at) = self.find(cursor);
        let end = Mark {
            seq: self.next,
            at: self.end,
            later: false,
        };
        let mark = |index: usize| self.marks.get(index).copied().unwrap_or(end);
        let later = self.marks[own].later;
        let mut until = Mark {
            seq: cursor.seq,
            at,
            later: false,
        };
        if later {
            until = mark(own + 1);
        } else {
            for index in own + 1..=self.marks.len() {
                let next = mark(index);
                if next.seq - 1 > last || next.at - at > limit as u64 {
                    break;
                }
                until = next;
                if next.later {
                    break;
                }
            }
        }
        if until.seq == cursor.seq {
            // No whole stretch: as many records as there may be.
            while until.seq <= last && until.seq < mark(own + 1).seq {
                let length = self.length_at(until.at);
                if until.seq > cursor.seq && until.at - at + length > limit as u64 {
                    break;
                }
                until.at += length;
                until.seq += 1;
            }
        }
        let begin = (at % self.bytes.len() as u64) as usize;
        let total = (until.at - at) as usize;
        let first = total.min(self.bytes.len() - begin);
        out.extend_from_slice(&self.bytes[begin..begin + first]);
        out.extend_from_slice(&self.bytes[..total - first]);
        let records = (until.seq - cursor.seq) as usize;
        // The mark may not be there yet, or be one of those that follow.
        let reached = (own..self.marks.len())
            .take_while(|index| self.marks[*index].seq <= until.seq)
            .last();
        *cursor = Cursor {
            seq: until.seq,
            at: Some((until.at, self.unmarked + reached.unwrap_or(own) as u64)),
        };
        Ok(Read { records, later })
    }

    /// The last mark up to a cursor's record, which is here, and where that begins.
    fn find(&self, cursor: &Cursor) -> (usize, u64) {
        if let Some((at, mark)) = cursor.at
            && let Some(index) = mark.checked_sub(self.unmarked)
        {
            // One that was not there yet may be there now.
            let index = index as usize;
            let next = self
                .marks
                .get(index + 1)
                .filter(|next| next.seq <= cursor.seq);
            return (index + usize::from(next.is_some()), at);
        }
        let own = self.marks.partition_point(|mark| mark.seq <= cursor.seq) - 1;
        let mark = self.marks[own];
        let at = (mark.seq..cursor.seq).fold(mark.at, |at, _| at + self.length_at(at));
        (own, at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Kind;
    use super::*;

    fn ring(capacity: usize, next: u64) -> Ring {
        let share = Share::reserve(1, capacity).unwrap().pop();
        Ring::new(share.unwrap(), next)
    }

    fn push(ring: &mut Ring, seq: u64, length: usize) {
        let value = vec![seq as u8; length];
        let record = Record {
            value: &value,
            ..Record::new(Kind::Put, b"k")
        };
        ring.push(seq, &record);
    }

    fn sequences(bytes: &[u8]) -> Vec<u64> {
        let found = sequences_of(bytes, |_| ());
        found.into_iter().map(|(seq, ())| seq).collect()
    }

    fn sequences_of<T>(mut bytes: &[u8], what: impl Fn(&Record<'_>) -> T) -> Vec<(u64, T)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (record, rest) = Record::parse(bytes).unwrap();
            assert!(record.value.iter().all(|&byte| byte == record.seq as u8));
            found.push((record.seq, what(&record)));
            bytes = rest;
        }
        found
    }

    #[test]
    fn the_oldest_go_and_readers_are_told() {
        let mut ring = ring(1000, 1);
        let mut cursor = Cursor::before(1);
        for seq in 1..=200 {
            push(&mut ring, seq, (seq as usize * 37) % 150);
            let mut out = Vec::new();
            let read = ring.read(&mut cursor, seq, 10_000, &mut out).unwrap();
            assert_eq!(read.records, 1);
            assert_eq!(sequences(&out), [seq]);
        }
        assert!(ring.used() <= 1000);
        let first = ring.first();
        assert!((180..=199).contains(&first), "{first}");
        let mut out = Vec::new();
        let mut old = Cursor::before(first - 1);
        assert_eq!(ring.read(&mut old, 200, 100, &mut out), Err(Lost));
        let mut rest = Cursor::before(first);
        while ring.read(&mut rest, 200, 100, &mut out).unwrap().records > 0 {}
        assert_eq!(sequences(&out), (first..=200).collect::<Vec<_>>());
        assert!(ring.holds(201, 200) && ring.holds(first, 200));
        assert!(!ring.holds(first - 1, 200) && !ring.holds(202, 200));
    }

    #[test]
    fn a_record_that_does_not_fit_is_a_gap() {
        let mut ring = ring(200, 1);
        push(&mut ring, 1, 10);
        push(&mut ring, 2, 500);
        push(&mut ring, 3, 10);
        let mut out = Vec::new();
        let read = ring.read(&mut Cursor::before(2), 3, 1000, &mut out);
        assert_eq!(read, Err(Lost));
        let read = ring.read(&mut Cursor::before(3), 3, 1000, &mut out);
        assert_eq!(read.map(|read| read.records), Ok(1));
        assert_eq!(sequences(&out), [3]);
    }

    #[test]
    fn reading_ends_where_it_is_told_to() {
        let mut ring = ring(10_000, 8);
        for seq in 8..=20 {
            push(&mut ring, seq, 20);
        }
        let mut out = Vec::new();
        let mut cursor = Cursor::before(10);
        while ring
            .read(&mut cursor, 14, 10_000, &mut out)
            .unwrap()
            .records
            > 0
        {}
        assert_eq!(sequences(&out), [10, 11, 12, 13, 14]);
        assert_eq!(cursor.seq, 15);
    }

    #[test]
    fn whatever_is_asked_for_comes_whole_and_in_order() {
        let mut dice = 0x9e37_79b9_7f4a_7c15u64;
        let mut roll = move |sides: u64| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            (dice >> 11) % sides
        };
        let mut ring = ring(100_000, 1);
        let mut later = std::collections::BTreeSet::new();
        let mut cursor = Cursor::before(1);
        let mut seen = 0;
        for seq in 1..=20_000 {
            if roll(100) == 0 {
                later.insert(seq);
                ring.push(seq, &Record::new(Kind::PutLater, b"k"));
            } else {
                push(&mut ring, seq, roll(300) as usize);
            }
            if roll(30) > 0 {
                continue;
            }
            if roll(10) == 0 {
                // Somebody comes anew, anywhere.
                cursor = Cursor::before(ring.first() + roll(seq + 1 - ring.first()));
            }
            let last = cursor.seq + roll(200);
            let limit = roll(20_000) as usize;
            let (from, mut out) = (cursor.seq, Vec::new());
            let read = match ring.read(&mut cursor, last, limit, &mut out) {
                Ok(read) => read,
                Err(Lost) => {
                    assert!(from < ring.first());
                    cursor = Cursor::before(ring.first());
                    continue;
                }
            };
            let found = sequences_of(&out, |record| record.kind == Kind::PutLater);
            let expected: Vec<_> = (from..from + read.records as u64)
                .map(|seq| (seq, later.contains(&seq)))
                .collect();
            assert_eq!(found, expected);
            assert_eq!(cursor.seq, from + read.records as u64);
            assert_eq!(read.records > 0, from <= seq, "at least one");
            assert!(read.records == 1 || out.len() <= limit.max(1));
            assert_eq!(read.later, found.iter().any(|(_, later)| *later));
            assert!(!read.later || read.records == 1);
            seen += read.records;
        }
        assert!(seen > 10_000, "{seen}");
    }
}
