#![forbid(unsafe_code)]
//! One entry of the log, as it lies in a ring and as it goes over the wire: 40 bytes of header,
//! little-endian, then the key, then the value.
//!
//! ```text
//!  0 length u32 (header included)   4 kind, 5 bits, and marks, 3   5 key length u24
//!  8 client flags u32              12 expires u32 (Unix seconds; 0 never)
//! 16 sequence u64                  24 cas u64   32 argument u64
//! ```

use super::INLINE_MAX;

/// Bytes before the key.
pub const HEADER: usize = 40;

/// The longest key.
pub const KEY_MAX: usize = (1 << 24) - 1;

/// Bits of a [`Kind`].
const KIND_BITS: u32 = 5;

/// The item is stale (`I`).
pub const STALE: u8 = 1;
/// Somebody has been told to recache it (`W`).
pub const TOKEN_SENT: u8 = 1 << 1;
/// Its key was sent as base64 (`b`).
pub const BINARY_KEY: u8 = 1 << 2;

/// What a record says about its key. Records carry the resulting state, so that applying one twice
/// does no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The item is this.
    Put = 1,
    /// The item is too long for the log: whoever needs it reads it from the store.
    PutLater = 2,
    /// A stretch of a long value; the argument is total length << 32 | offset.
    Part = 3,
    /// Its expiry, marks and CAS are these; the value stays.
    Meta = 4,
    /// It is gone: deleted, expired or evicted.
    Delete = 5,
    /// Everything that was there is dead; with an expiry, once that has come.
    Flush = 6,
    /// The digest of the partition at this place of the log is the argument.
    Digest = 7,
    /// The item will be this, if a commit follows; until then nobody sees it.
    Prepare = 8,
    /// It will be gone, if a commit follows.
    PrepareDelete = 9,
    /// What the record with the argument's sequence prepared is so from here on.
    Commit = 10,
    /// It will never be.
    Abort = 11,
    /// A value that was replaced before it could be sent; a later record follows for its key.
    Superseded = 12,
    /// Not in the log: the key's value must have this digest (argument), which is that of its root if
    /// the client flags are 1.
    Check = 13,
    /// As [`Prepare`](Kind::Prepare), of a value that is too long for the log; its length is the argument.
    PrepareLater = 14,
    /// A stretch of it; the argument is total length << 32 | offset.
    PreparePart = 15,
    /// The value goes on with these bytes, if the item has the CAS id of the argument and the length
    /// that stands where others have their expiry; what else it has stays.
    Append = 16,
    /// It begins with them.
    Prepend = 17,
    /// Not in the log: the item will be this, with a value of so many bytes (argument). The copy says
    /// which segments of it it has.
    Offer = 18,
    /// Not in the log: a segment of that, which the copy has not; the argument is total length << 32 |
    /// offset. Behind the end stands the root of the whole value.
    Patch = 19,
    /// They have expired or made room: the [`victims`] of the value, and whatever is older. What is newer
    /// under their keys stays.
    Gone = 20,
}

impl Kind {
    /// Its value is too long for the log.
    pub fn is_later(self) -> bool {
        matches!(self, Kind::PutLater | Kind::PrepareLater)
    }

    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Put,
            2 => Kind::PutLater,
            3 => Kind::Part,
            4 => Kind::Meta,
            5 => Kind::Delete,
            6 => Kind::Flush,
            7 => Kind::Digest,
            8 => Kind::Prepare,
            9 => Kind::PrepareDelete,
            10 => Kind::Commit,
            11 => Kind::Abort,
            12 => Kind::Superseded,
            13 => Kind::Check,
            14 => Kind::PrepareLater,
            15 => Kind::PreparePart,
            16 => Kind::Append,
            17 => Kind::Prepend,
            18 => Kind::Offer,
            19 => Kind::Patch,
            20 => Kind::Gone,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    pub kind: Kind,
    pub marks: u8,
    pub client_flags: u32,
    /// Unix seconds; 0 is never.
    pub expires: u32,
    /// Its place in the log of its partition, from 1.
    pub seq: u64,
    pub cas: u64,
    /// See [`Kind`].
    pub argument: u64,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// Bytes that are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Record<'a> {
    /// A record that says no more than its kind and key.
    pub fn new(kind: Kind, key: &'a [u8]) -> Record<'a> {
        Record {
            kind,
            marks: 0,
            client_flags: 0,
            expires: 0,
            seq: 0,
            cas: 0,
            argument: 0,
            key,
            value: &[],
        }
    }

    /// As the log keeps it: without a value that is prepared and too long.
    pub fn for_ring(&self) -> Record<'a> {
        if self.kind == Kind::Prepare && self.value.len() > INLINE_MAX {
            Record {
                kind: Kind::PrepareLater,
                argument: self.value.len() as u64,
                value: &[],
                ..*self
            }
        } else {
            *self
        }
    }

    /// The kind of the record that `bytes` begin with.
    pub fn kind_of(bytes: &[u8]) -> Option<Kind> {
        Kind::from_byte(bytes.get(4)? & ((1 << KIND_BITS) - 1))
    }

    /// Bytes it takes.
    pub fn length(&self) -> usize {
        HEADER + self.key.len() + self.value.len()
    }

    /// Writes its header, with this sequence. In whole words: what is written in small pieces and read in
    /// large ones right behind that is waited for.
    #[inline]
    pub fn write_header(&self, seq: u64, out: &mut [u8; HEADER]) {
        let first = u32::from(self.kind as u8) | u32::from(self.marks) << KIND_BITS;
        let key = first | (self.key.len() as u32) << 8;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let words = [
            pair(self.length() as u32, key),
            pair(self.client_flags, self.expires),
            seq,
            self.cas,
            self.argument,
        ];
        for (place, word) in out.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut header = [0; HEADER];
        self.write_header(self.seq, &mut header);
        out.extend_from_slice(&header);
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
    }

    /// The record that `bytes` begin with, and what follows it.
    ///
    /// # Errors
    /// They begin with no whole record.
    pub fn parse(bytes: &'a [u8]) -> Result<(Record<'a>, &'a [u8]), Malformed> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>().ok_or(Malformed)?;
        let u32_at = |at: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&header[at..at + 4]);
            u32::from_le_bytes(four)
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let key_length = (u32_at(4) >> 8) as usize;
        let body = (u32_at(0) as usize)
            .checked_sub(HEADER)
            .filter(|&body| body >= key_length && body <= rest.len())
            .ok_or(Malformed)?;
        let (body, rest) = rest.split_at(body);
        let (key, value) = body.split_at(key_length);
        let record = Record {
            kind: Record::kind_of(header).ok_or(Malformed)?,
            marks: header[4] >> KIND_BITS,
            client_flags: u32_at(8),
            expires: u32_at(12),
            seq: u64_at(16),
            cas: u64_at(24),
            argument: u64_at(32),
            key,
            value,
        };
        Ok((record, rest))
    }
}

/// Longer keys get a record of their own.
pub const VICTIM_KEY_MAX: usize = 1024;

/// Adds an item to the value of a [`Kind::Gone`]: its CAS id, u64, the length of its key, u16, and that.
#[inline]
pub fn add_victim(value: &mut Vec<u8>, cas: u64, key: &[u8]) {
    value.extend_from_slice(&cas.to_le_bytes());
    value.extend_from_slice(&(key.len() as u16).to_le_bytes());
    value.extend_from_slice(key);
}

/// CAS ids and keys of the items that a [`Kind::Gone`] is about, by its value.
pub fn victims(mut value: &[u8]) -> impl Iterator<Item = Result<(u64, &[u8]), Malformed>> {
    std::iter::from_fn(move || {
        if value.is_empty() {
            return None;
        }
        let one = || {
            let (cas, rest) = value.split_first_chunk()?;
            let (length, rest) = rest.split_first_chunk()?;
            let (key, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            Some((u64::from_le_bytes(*cas), key, rest))
        };
        let (cas, key, rest) = match one() {
            Some(one) => one,
            None => {
                value = &[];
                return Some(Err(Malformed));
            }
        };
        value = rest;
        Some(Ok((cas, key)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was() {
        let record = Record {
            kind: Kind::Part,
            marks: STALE | BINARY_KEY,
            client_flags: 0xdead_beef,
            expires: 1_700_000_000,
            seq: u64::MAX - 3,
            cas: 1 << 53,
            argument: 77 << 32 | 5,
            key: &[b'k'; 70_000],
            value: b"\x00value\r\n",
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(bytes.len(), record.length());
        bytes.extend_from_slice(b"rest");
        assert_eq!(Record::parse(&bytes), Ok((record, &b"rest"[..])));
    }

    #[test]
    fn victims_come_back_as_they_were() {
        let mut value = Vec::new();
        let longest = [b'k'; VICTIM_KEY_MAX];
        add_victim(&mut value, 7, b"key");
        add_victim(&mut value, u64::MAX, &longest);
        let all: Vec<_> = victims(&value).collect();
        assert_eq!(all, [Ok((7, &b"key"[..])), Ok((u64::MAX, &longest[..]))]);
        for length in 14..value.len() {
            let cut: Vec<_> = victims(&value[..length]).collect();
            assert_eq!(cut, [Ok((7, &b"key"[..])), Err(Malformed)], "{length}");
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let mut good = Vec::new();
        Record::new(Kind::Put, b"key").encode(&mut good);
        assert!(Record::parse(&good).is_ok());
        for length in 0..good.len() {
            assert_eq!(Record::parse(&good[..length]), Err(Malformed), "{length}");
        }
        for (at, byte) in [(0, 39), (0, 255), (3, 255), (4, 0), (4, 31), (7, 1)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(Record::parse(&bad), Err(Malformed), "{at}");
        }
    }
}
