#![forbid(unsafe_code)]
//! The recent end of one partition's log: a bounded stretch of bytes that forgets its oldest records.

use super::record::{HEADER, Record};

#[derive(Debug)]
pub struct Ring {
    bytes: Box<[u8]>,
    /// Where the oldest record begins, and where the next one will: counted from the first byte ever.
    start: u64,
    end: u64,
    /// Sequence of the oldest record, which is also that of the next one while there is none.
    first: u64,
}

/// How far a reader has come; it only goes on in the ring it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The next record to be read.
    pub seq: u64,
    /// Where it begins, if that is known.
    at: Option<u64>,
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

impl Ring {
    /// An empty ring whose first record will be `next`.
    pub fn new(capacity: usize, next: u64) -> Ring {
        Ring {
            bytes: vec![0; capacity].into_boxed_slice(),
            start: 0,
            end: 0,
            first: next,
        }
    }

    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of records it holds.
    pub fn used(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Sequence of the oldest record.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Appends a record, which follows the last one in sequence.
    pub fn push(&mut self, record: &Record<'_>) {
        let length = record.length();
        if length > self.capacity() {
            // It cannot be held: whoever comes to it will find it gone.
            (self.start, self.first) = (self.end, record.seq + 1);
            return;
        }
        while self.capacity() - self.used() < length {
            self.forget_oldest();
        }
        if self.start == self.end {
            self.first = record.seq;
        }
        let mut at = self.end;
        for part in [&record.header()[..], record.key, record.value] {
            self.write(at, part);
            at += part.len() as u64;
        }
        self.end = at;
    }

    fn forget_oldest(&mut self) {
        self.start += self.length_at(self.start);
        self.first += 1;
    }

    fn length_at(&self, at: u64) -> u64 {
        let mut length = [0; 4];
        let start = (at % self.bytes.len() as u64) as usize;
        for (offset, byte) in length.iter_mut().enumerate() {
            *byte = self.bytes[(start + offset) % self.bytes.len()];
        }
        u64::from(u32::from_le_bytes(length))
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let start = (at % self.bytes.len() as u64) as usize;
        let first = bytes.len().min(self.bytes.len() - start);
        self.bytes[start..start + first].copy_from_slice(&bytes[..first]);
        self.bytes[..bytes.len() - first].copy_from_slice(&bytes[first..]);
    }

    /// Whether a cursor stands before something that is here, or at the end.
    pub fn holds(&self, seq: u64, last: u64) -> bool {
        seq == last + 1 || (seq >= self.first && seq <= last && self.start < self.end)
    }

    /// Appends whole records up to sequence `last` to `out`, about `limit` bytes of them but at least
    /// one, and moves the cursor. Returns how many.
    ///
    /// # Errors
    /// The cursor's record is gone.
    pub fn read(
        &self,
        cursor: &mut Cursor,
        last: u64,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, Lost> {
        if cursor.seq > last {
            return Ok(0);
        }
        let mut at = self.find(cursor)?;
        let begin = at;
        let mut count = 0;
        while at < self.end && cursor.seq <= last {
            let length = self.length_at(at);
            if count > 0 && (at - begin + length) as usize > limit {
                break;
            }
            at += length;
            cursor.seq += 1;
            count += 1;
        }
        let start = (begin % self.bytes.len() as u64) as usize;
        let total = (at - begin) as usize;
        let first = total.min(self.bytes.len() - start);
        out.extend_from_slice(&self.bytes[start..start + first]);
        out.extend_from_slice(&self.bytes[..total - first]);
        cursor.at = Some(at);
        Ok(count)
    }

    fn find(&self, cursor: &Cursor) -> Result<u64, Lost> {
        if cursor.seq < self.first {
            return Err(Lost);
        }
        if let Some(at) = cursor.at
            && (self.start..=self.end).contains(&at)
        {
            return Ok(at);
        }
        let mut at = self.start;
        for _ in self.first..cursor.seq {
            if at >= self.end {
                return Err(Lost);
            }
            debug_assert!(self.length_at(at) >= HEADER as u64);
            at += self.length_at(at);
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Kind;
    use super::*;

    fn push(ring: &mut Ring, seq: u64, length: usize) {
        let value = vec![seq as u8; length];
        ring.push(&Record {
            seq,
            value: &value,
            ..Record::new(Kind::Put, b"k")
        });
    }

    fn sequences(mut bytes: &[u8]) -> Vec<u64> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (record, rest) = Record::parse(bytes).unwrap();
            assert!(record.value.iter().all(|&byte| byte == record.seq as u8));
            found.push(record.seq);
            bytes = rest;
        }
        found
    }

    #[test]
    fn the_oldest_go_and_readers_are_told() {
        let mut ring = Ring::new(1000, 1);
        let mut cursor = Cursor::before(1);
        for seq in 1..=200 {
            push(&mut ring, seq, (seq as usize * 37) % 150);
            let mut out = Vec::new();
            let count = ring.read(&mut cursor, seq, 10_000, &mut out).unwrap();
            assert_eq!(count, 1);
            assert_eq!(sequences(&out), [seq]);
        }
        assert!(ring.used() <= 1000);
        let first = ring.first();
        assert!((180..=199).contains(&first), "{first}");
        let mut out = Vec::new();
        let mut old = Cursor::before(first - 1);
        assert_eq!(ring.read(&mut old, 200, 100, &mut out), Err(Lost));
        let mut rest = Cursor::before(first);
        while ring.read(&mut rest, 200, 100, &mut out).unwrap() > 0 {}
        assert_eq!(sequences(&out), (first..=200).collect::<Vec<_>>());
        assert!(ring.holds(201, 200) && ring.holds(first, 200));
        assert!(!ring.holds(first - 1, 200) && !ring.holds(202, 200));
    }

    #[test]
    fn a_record_that_does_not_fit_is_a_gap() {
        let mut ring = Ring::new(200, 1);
        push(&mut ring, 1, 10);
        push(&mut ring, 2, 500);
        push(&mut ring, 3, 10);
        let mut out = Vec::new();
        let read = ring.read(&mut Cursor::before(2), 3, 1000, &mut out);
        assert_eq!(read, Err(Lost));
        assert_eq!(ring.read(&mut Cursor::before(3), 3, 1000, &mut out), Ok(1));
        assert_eq!(sequences(&out), [3]);
    }

    #[test]
    fn reading_ends_where_it_is_told_to() {
        let mut ring = Ring::new(10_000, 8);
        for seq in 8..=20 {
            push(&mut ring, seq, 20);
        }
        let mut out = Vec::new();
        let mut cursor = Cursor::before(10);
        assert_eq!(ring.read(&mut cursor, 14, 10_000, &mut out), Ok(5));
        assert_eq!(sequences(&out), [10, 11, 12, 13, 14]);
        assert_eq!(cursor.seq, 15);
    }
}
