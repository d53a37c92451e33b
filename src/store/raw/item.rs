//! Items as readers see them.

use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::arena::Arena;
use super::head::{HEAD, Handle, Head, Word, flag};
use super::long::LongCells;
use super::slot::Pinned;

/// Whether two keys of the same length are equal. A call would cost more than comparing a key of the
/// usual length does here.
#[inline(always)]
fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() == b.len() && (16..=32).contains(&a.len()) {
        let back = a.len() - 16;
        a[..16] == b[..16] && a[back..] == b[back..]
    } else {
        a == b
    }
}

/// An item whose bytes may be read for as long as `'g`.
#[derive(Clone, Copy)]
pub struct Item<'g> {
    pub(super) arena: &'g Arena,
    pub(super) handle: Handle,
    pub(super) word: Word,
    /// Where its slot begins.
    pub(super) at: NonNull<u8>,
}

impl<'g> Item<'g> {
    pub fn handle(&self) -> Handle {
        self.handle
    }

    #[inline]
    pub fn head(&self) -> &'g Head {
        // SAFETY: as in `Arena::head`; the arena is borrowed for `'g`.
        unsafe { self.at.cast::<Head>().as_ref() }
    }

    /// The small fields as they were when this view was made.
    #[inline]
    pub fn word(&self) -> Word {
        self.word
    }

    #[inline]
    pub(super) fn bytes(&self, offset: usize, length: usize) -> &'g [u8] {
        // SAFETY: whoever made this view vouched for the item's bytes, and the callers below stay
        // within its slot: key, flags and value were fitted into it when it was allocated.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().add(offset), length) }
    }

    #[inline]
    fn key_offset(&self) -> usize {
        self.arena.header + self.word.extension()
    }

    /// The key, if it is not a long one; nothing otherwise.
    #[inline]
    pub(super) fn short_key(&self) -> &'g [u8] {
        self.bytes(self.key_offset(), self.word.key_length())
    }

    /// Whether it is the item of this key, which is not empty. A long one is none.
    #[inline]
    pub fn is_key(&self, key: &[u8]) -> bool {
        self.word.key_length() == key.len() && same(self.short_key(), key)
    }

    #[inline]
    pub fn client_flags(&self) -> u32 {
        if !self.word.has(flag::CLIENT) {
            return 0;
        }
        let at = self.key_offset() + self.word.key_length();
        let bytes = self.bytes(at, 4);
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[inline]
    pub fn length(&self) -> usize {
        self.head().length.load(Relaxed) as usize
    }

    #[inline]
    pub fn cas(&self) -> u64 {
        self.arena.cas(self.handle)
    }

    #[inline]
    pub(super) fn value_offset(&self) -> usize {
        self.key_offset() + self.word.key_length() + if self.word.has(flag::CLIENT) { 4 } else { 0 }
    }

    /// Bytes of its first slot in use, without the extension: what its size class goes by.
    #[inline(always)]
    pub fn total(&self) -> usize {
        if self.word.has(flag::LARGE) {
            return self.arena.total(self.handle);
        }
        self.value_offset() + self.length()
    }

    /// The whole value, if it lies in one piece.
    pub fn inline(&self) -> Option<&'g [u8]> {
        if self.chained() {
            return None;
        }
        Some(self.bytes(self.value_offset() + self.lead(), self.length()))
    }

    fn chained(&self) -> bool {
        self.word.has(flag::LARGE) && self.arena.first_chunk(self.handle).is_some()
    }

    /// What the extension says of its key, if it is a long one.
    pub(super) fn long(&self) -> Option<LongCells<'g>> {
        self.arena.long_cells(self.handle, self.word)
    }

    /// Bytes of a long key, which stand before the value.
    pub(super) fn lead(&self) -> usize {
        self.long().map_or(0, |long| long.key_length())
    }

    /// The whole value, if it is not a large one's. `length` is the item's.
    #[inline]
    pub fn small(&self, length: usize) -> Option<&'g [u8]> {
        debug_assert_eq!(length, self.length());
        if self.word.has(flag::LARGE) {
            return None;
        }
        Some(self.bytes(self.value_offset(), length))
    }

    /// The whole value, if it is not a large one's and has no client flags. `length` is the item's.
    #[inline]
    pub fn plain(&self, length: usize) -> Option<&'g [u8]> {
        debug_assert_eq!(length, self.length());
        // Nearly always the usual way, so that one test serves for both.
        if self.word.has(flag::CLIENT | flag::LARGE) {
            return None;
        }
        let at = self.arena.header + self.word.key_length();
        Some(self.bytes(at, length))
    }

    /// Calls `piece` with the parts of the value in order.
    pub fn pieces(&self, mut piece: impl FnMut(&[u8])) {
        let mut lead = self.lead();
        self.stream(|part| {
            let skipped = lead.min(part.len());
            lead -= skipped;
            if lead == 0 {
                piece(&part[skipped..]);
            }
            true
        });
    }

    /// Calls `part` with the parts of a long key and of the value in order, until it says that it has
    /// seen enough.
    pub(super) fn stream(&self, mut part: impl FnMut(&'g [u8]) -> bool) {
        let mut cursor = Cursor::default();
        while part(cursor.rest(self)) && cursor.next_piece(self) {}
    }

    /// Writes down what the item holds, if the arena has checks: for whoever has just filled or changed
    /// it, before anybody else sees it.
    #[inline]
    pub fn seal(&self) {
        if let Some(cell) = self.arena.check_cell(self.handle) {
            cell.store(self.sum(), Relaxed);
        }
    }

    /// Whether the item holds what was [sealed](Item::seal).
    pub fn intact(&self) -> bool {
        let cell = self.arena.check_cell(self.handle);
        cell.is_some_and(|cell| cell.load(Relaxed) == self.sum())
    }

    /// A checksum over key, client flags, value, their lengths, expiry and CAS.
    #[inline(never)]
    fn sum(&self) -> u32 {
        let word = self.head().word();
        let layout = word.0 & 0xff
            | u32::from(word.flags() & (flag::CLIENT | flag::LARGE | flag::VERIFIED | flag::LONG))
                << 8;
        let seed = u64::from(layout) << 32 | self.length() as u64;
        let item = Item { word, ..*self };
        let begin = item.key_offset();
        let sum = if word.has(flag::LARGE) {
            let mut sum = xxhash_rust::xxh3::Xxh3::with_seed(seed);
            if let Some(long) = item.long() {
                sum.update(&long.hash().to_le_bytes());
                sum.update(&long.key_length().to_le_bytes());
            }
            sum.update(item.bytes(begin, item.value_offset() - begin));
            item.stream(|part| {
                sum.update(part);
                true
            });
            sum.digest()
        } else {
            let end = item.value_offset() + item.length();
            xxhash_rust::xxh3::xxh3_64_with_seed(item.bytes(begin, end - begin), seed)
        };
        (sum >> 32) as u32 ^ sum as u32 ^ self.arena.check_mask(self.handle)
    }

    /// The digests of the value, one behind the other, as they were laid down; nothing if it has none.
    pub fn digests(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut next = self.arena.first_digests(self.handle);
        next?;
        while let Some(chunk) = next {
            let cursor = Cursor {
                chunk: Some(chunk),
                begins: 0,
            };
            bytes.extend_from_slice(cursor.rest(self));
            next = self.arena.chunk(chunk).next();
        }
        Some(bytes)
    }

    /// Counts one more reference that outlives the lock. Only large items can be pinned.
    #[inline(always)]
    pub fn pin(&self) -> Option<Pinned> {
        if !self.word.has(flag::LARGE) {
            return None;
        }
        Some(self.arena.pin(self.handle))
    }

    /// Nobody sends this value at the moment.
    pub fn unpinned(&self) -> bool {
        !self.word.has(flag::LARGE) || self.arena.extension(self.handle)[0].load(Acquire) == 0
    }
}

/// One part of a value, or of what comes before it: which, and where in the whole it begins.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cursor {
    /// `None` is the item's own slot.
    pub(super) chunk: Option<Handle>,
    pub(super) begins: usize,
}

impl Cursor {
    /// The bytes of this part.
    pub(super) fn rest<'g>(&self, item: &Item<'g>) -> &'g [u8] {
        let arena = item.arena;
        match self.chunk {
            None => {
                let offset = item.value_offset();
                let length = if item.chained() {
                    arena.slot_size(item.word.bin()) - offset
                } else {
                    item.lead() + item.length()
                };
                item.bytes(offset, length)
            }
            Some(chunk) => {
                let used = arena.head(chunk).length.load(Relaxed) as usize;
                // SAFETY: a chunk of a readable item is readable as long; `used` bytes behind its
                // head were filled before the item was linked.
                unsafe { std::slice::from_raw_parts(arena.at(chunk).add(HEAD), used) }
            }
        }
    }

    pub(super) fn next_piece(&mut self, item: &Item<'_>) -> bool {
        let arena = item.arena;
        let length = self.rest(item).len();
        let next = match self.chunk {
            None if item.word.has(flag::LARGE) => arena.first_chunk(item.handle),
            None => None,
            Some(chunk) => arena.chunk(chunk).next(),
        };
        if next.is_some() {
            *self = Cursor {
                chunk: next,
                begins: self.begins + length,
            };
        }
        next.is_some()
    }
}
