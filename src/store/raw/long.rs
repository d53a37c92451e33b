//! Keys that are too long for an item's header (`-o max_key_size`).
//!
//! An item with such a key is always a large one, and its header counts no bytes of a key. Length and
//! hash stand at the end of its extension; the key itself comes before the value, and lies in slot
//! and chunks with it as one stream of bytes. So nobody who looks for a short key meets more than a
//! length that differs, and nobody who wants to know where an item belongs has to read a long one.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::Item;

/// The longest key that stands in the header of an item.
pub const KEY_SHORT: usize = 250;

/// Length and hash of a long key, where its item has them.
#[derive(Clone, Copy)]
pub struct LongCells<'a>(&'a [AtomicU32; 3]);

impl<'a> LongCells<'a> {
    pub(super) fn new(cells: &'a [AtomicU32; 3]) -> LongCells<'a> {
        LongCells(cells)
    }

    pub fn key_length(&self) -> usize {
        self.0[0].load(Relaxed) as usize
    }

    pub fn hash(&self) -> u64 {
        u64::from(self.0[1].load(Relaxed)) | u64::from(self.0[2].load(Relaxed)) << 32
    }

    pub(super) fn set(&self, key_length: usize, hash: u64) {
        self.0[0].store(key_length as u32, Relaxed);
        self.0[1].store(hash as u32, Relaxed);
        self.0[2].store((hash >> 32) as u32, Relaxed);
    }
}

impl<'g> Item<'g> {
    /// The key. A long one is copied together if it does not lie in one piece.
    pub fn key(&self) -> Cow<'g, [u8]> {
        let lead = self.lead();
        if lead == 0 {
            return Cow::Borrowed(self.short_key());
        }
        let mut key = Cow::Borrowed(&b""[..]);
        self.stream(|part| {
            let part = &part[..part.len().min(lead - key.len())];
            if key.is_empty() {
                key = Cow::Borrowed(part);
            } else {
                key.to_mut().extend_from_slice(part);
            }
            key.len() < lead
        });
        key
    }

    /// The value, copied together.
    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(self.length());
        self.pieces(|piece| value.extend_from_slice(piece));
        value
    }

    /// The hash of the key; `hash` computes it.
    pub fn hash(&self, hash: impl Fn(&[u8]) -> u64) -> u64 {
        match self.long() {
            Some(long) => long.hash(),
            None => hash(self.short_key()),
        }
    }

    /// Whether it is the item of this long key, which has this hash.
    pub fn is_long_key(&self, hash: u64, key: &[u8]) -> bool {
        // The hash first: keys that differ in their last byte only are told apart by it.
        let same = |long: LongCells<'_>| long.hash() == hash && long.key_length() == key.len();
        if !self.long().is_some_and(same) {
            return false;
        }
        let mut rest = key;
        self.stream(|part| {
            let (here, behind) = rest.split_at(rest.len().min(part.len()));
            if part[..here.len()] != *here {
                return false;
            }
            rest = behind;
            !rest.is_empty()
        });
        rest.is_empty()
    }
}
