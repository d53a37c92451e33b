#![forbid(unsafe_code)]
//! Long values by segment: of what a copy has already, nothing is sent again.
//!
//! ```text
//! source                                copy
//!   CHUNK: OFFER ─────────────────────▶        there is another value for this key
//!          ◀───────────────────────────  SEGMENTS: digests of what stands under the key
//!   CHUNK: PATCH, once for each segment
//!   that differs, then for the root ──▶        puts it together beside the old one
//! ```
//! The same without an offer where a CHECK has shown that the copy's value is not what it should be. The
//! value is only linked when it is whole and has the root that was told: nobody sees half of it, and
//! whatever has become of the old one meanwhile does no harm.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::data::{Data, Long};
use super::frame::Broken;
use super::message::put_u64;
use crate::store::journal::Record;
use crate::store::merkle;

/// Bytes of a segment, but for the last. In unit tests values are shorter.
pub const SEGMENT: usize = if cfg!(test) { 4 << 10 } else { merkle::SEGMENT };

/// Values of longer keys come whole: what is asked for is kept until it is sent.
pub const KEY_MAX: usize = 4 << 10;

/// Whether parts of a value may be enough.
pub fn are_worth_it(key: &[u8], length: usize) -> bool {
    length >= 2 * SEGMENT && key.len() <= KEY_MAX
}

/// Takes a value in and gives a digest of each segment.
#[derive(Default)]
pub struct Digests {
    done: Vec<u64>,
    hasher: Box<Xxh3>,
    /// Bytes of the segment that is being hashed.
    filled: usize,
}

impl Digests {
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(SEGMENT - self.filled));
            self.hasher.update(part);
            self.filled += part.len();
            bytes = rest;
            if self.filled == SEGMENT {
                self.end_segment();
            }
        }
    }

    fn end_segment(&mut self) {
        self.done.push(self.hasher.digest());
        self.hasher.reset();
        self.filled = 0;
    }

    pub fn finish(mut self) -> Vec<u64> {
        if self.filled > 0 {
            self.end_segment();
        }
        self.done
    }
}

/// The digests of a value that is held.
pub fn digests(value: &impl Long) -> Vec<u64> {
    let mut digests = Digests::default();
    let mut offset = 0;
    while offset < value.length() {
        let slice = value.slice(offset);
        digests.update(slice);
        offset += slice.len();
    }
    digests.finish()
}

/// As they are told.
pub fn tell(digests: &[u64]) -> Vec<u8> {
    let mut told = Vec::with_capacity(digests.len() * 8);
    digests
        .iter()
        .for_each(|digest| put_u64(&mut told, *digest));
    told
}

/// What a copy says of the value that it has for a key; nothing if that is not long.
pub fn tell_of<D: Data>(data: &D, key: &[u8]) -> Vec<u8> {
    let opened = data.open(key);
    let long = opened.and_then(|opened| opened.long);
    long.map_or(Vec::new(), |long| tell(&digests(&long)))
}

/// What stands for the whole value.
pub fn root(digests: &[u64]) -> u64 {
    xxh3_64(&tell(digests))
}

/// The segments of a value that another, of whatever length, does not have in the same place.
pub fn differing(ours: &[u64], told: &[u8]) -> Vec<usize> {
    let mut theirs = told.chunks_exact(8);
    let mut differing = Vec::new();
    for (at, digest) in ours.iter().enumerate() {
        if theirs.next() != Some(&digest.to_le_bytes()) {
            differing.push(at);
        }
    }
    differing
}

/// A value that a copy puts together from the one that it has and from what comes.
pub struct Building<D: Data> {
    key: Vec<u8>,
    old: Option<D::Long>,
    /// Nothing: there is no room for it.
    upload: Option<D::Upload>,
    digests: Digests,
    filled: usize,
    total: usize,
    /// The old value has become too short.
    short: bool,
}

/// What has come of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Built {
    Done,
    NoRoom,
    /// Its root is not what was told: the old value has changed meanwhile.
    Other,
}

/// Of a stretch of a value: the total length, and where what its record brings belongs.
pub(super) fn place_of(record: &Record<'_>) -> (usize, usize) {
    let argument = record.argument;
    ((argument >> 32) as usize, argument as u32 as usize)
}

impl<D: Data> Building<D> {
    /// Begins with the first record, which has the key.
    pub fn new(data: &D, record: &Record<'_>, skew: i64) -> Building<D> {
        let (total, _) = place_of(record);
        Building {
            key: record.key.to_vec(),
            old: data.open(record.key).and_then(|opened| opened.long),
            upload: data.begin(record, skew, total),
            digests: Digests::default(),
            filled: 0,
            total,
            short: false,
        }
    }

    /// Takes a record in. The root once that has come.
    pub fn take(&mut self, data: &D, record: &Record<'_>) -> Result<Option<u64>, Broken> {
        let (total, offset) = place_of(record);
        let length = record.value.len();
        let is_root = offset == total;
        let fits = is_root && length == 8 || length > 0 && offset + length <= total;
        if total != self.total || offset < self.filled || !fits {
            return Err(Broken::Malformed);
        }
        self.keep(data, offset);
        if is_root {
            let root = record.value.first_chunk().copied();
            return Ok(root.map(u64::from_le_bytes));
        }
        self.fill(data, record.value);
        Ok(None)
    }

    /// Takes what is missing up to an offset from the old value.
    fn keep(&mut self, data: &D, until: usize) {
        if let Some(old) = self.old.take() {
            while self.filled < until && self.filled < old.length() {
                let slice = old.slice(self.filled);
                self.fill(data, &slice[..slice.len().min(until - self.filled)]);
            }
            self.old = Some(old);
        }
        if self.filled < until {
            (self.short, self.filled) = (true, until);
        }
    }

    fn fill(&mut self, data: &D, bytes: &[u8]) {
        self.digests.update(bytes);
        self.filled += bytes.len();
        if let Some(upload) = &mut self.upload
            && !data.fill(upload, bytes)
        {
            self.upload = None;
        }
    }

    /// Makes it the key's value, if it is what it should be.
    pub fn finish(
        self,
        data: &D,
        record: &Record<'_>,
        skew: i64,
        dead: bool,
        told: u64,
    ) -> (Vec<u8>, Built) {
        let built = if self.short || root(&self.digests.finish()) != told {
            Built::Other
        } else if let Some(upload) = self.upload {
            let record = Record {
                key: &self.key,
                ..*record
            };
            match data.finish(&record, skew, dead, upload) {
                true => Built::Done,
                false => Built::NoRoom,
            }
        } else {
            data.lose(&self.key);
            Built::NoRoom
        };
        (self.key, built)
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{LongValue, Model};
    use super::*;
    use crate::store::journal::{Kind, Role};

    fn value(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at / 7) as u8).collect()
    }

    #[test]
    fn only_segments_that_differ_are_named() {
        let old = value(5 * SEGMENT + 77);
        let mut new = old.clone();
        let told = tell(&digests(&LongValue(old.clone())));
        assert_eq!(told.len(), 6 * 8);
        let named = |new: &[u8]| differing(&digests(&LongValue(new.to_vec())), &told);
        assert_eq!(named(&new), [0; 0]);
        new[0] ^= 1;
        new[3 * SEGMENT - 1] ^= 1;
        assert_eq!(named(&new), [0, 2]);
        new.truncate(4 * SEGMENT);
        assert_eq!(named(&new), [0, 2]);
        new.extend_from_slice(&old[4 * SEGMENT..]);
        new.extend_from_slice(&value(2 * SEGMENT));
        assert_eq!(named(&new), [0, 2, 5, 6, 7]);
        assert_eq!(
            differing(&digests(&LongValue(old)), &[]),
            [0, 1, 2, 3, 4, 5]
        );
    }

    #[test]
    fn a_value_is_linked_only_if_it_is_the_one_that_was_told() {
        let old = value(3 * SEGMENT + 5);
        let mut new = old.clone();
        new[SEGMENT + 1] ^= 1;
        let told = root(&digests(&LongValue(new.clone())));
        let total = new.len() as u64;
        for (before, outcome) in [
            (Some(old.clone()), Built::Done),
            (Some(value(3 * SEGMENT + 4)), Built::Other),
            (Some(value(2 * SEGMENT)), Built::Other),
            (None, Built::Other),
        ] {
            let data = Model::new(Role::Follower);
            if let Some(before) = before.clone() {
                data.write(b"key", before);
            }
            let first = Record {
                cas: 9,
                argument: total << 32 | SEGMENT as u64,
                value: &new[SEGMENT..2 * SEGMENT],
                ..Record::new(Kind::Patch, b"key")
            };
            let last = Record {
                argument: total << 32 | total,
                key: b"",
                value: &told.to_le_bytes(),
                ..first
            };
            let mut building = Building::new(&data, &first, 0);
            assert_eq!(building.take(&data, &first), Ok(None));
            assert_eq!(
                building.take(&data, &first),
                Err(Broken::Malformed),
                "twice"
            );
            assert_eq!(building.take(&data, &last), Ok(Some(told)));
            let built = building.finish(&data, &last, 0, false, told);
            assert_eq!(built, (b"key".to_vec(), outcome));
            let expected = match built.1 {
                Built::Done => Some(new.clone()),
                _ => before,
            };
            assert!(data.read(b"key") == expected);
        }
    }

    #[test]
    fn what_does_not_belong_there_is_refused() {
        let data = Model::new(Role::Follower);
        for (argument, length) in [
            (100 << 32 | 100, 7),
            (100 << 32 | 100, 9),
            (100 << 32 | 99, 2),
            (100 << 32 | 101, 8),
            (100 << 32, 0),
            (99 << 32, 1),
        ] {
            let first = Record {
                argument: 100 << 32,
                ..Record::new(Kind::Patch, b"key")
            };
            let mut building = Building::new(&data, &first, 0);
            let value = vec![1; length];
            let record = Record {
                argument,
                value: &value,
                ..first
            };
            let taken = building.take(&data, &record);
            assert_eq!(taken, Err(Broken::Malformed), "{argument:x} {length}");
        }
    }
}
