//! Slots of which somebody has hold: to send a value, to fill a new item, to change one where it stands.

use std::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Relaxed},
};

use super::arena::Arena;
use super::head::{
    EXTENSION, HEAD, Handle, LONG, QUEUED, STATE_MASK, STATE_SHIFT, State, TREE, UNLINKED, Word,
    flag,
};
use super::item::{Cursor, Item};
use super::long::KEY_SHORT;

/// A large item that stays where it is until [`Pinned::release`].
#[derive(Debug)]
pub struct Pinned {
    pub(super) handle: Handle,
    pub(super) length: usize,
}

impl Pinned {
    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// Its owner has changed it.
    pub(super) fn set_length(&mut self, length: usize) {
        self.length = length;
    }

    /// The longest run of bytes from `offset` on. `from` remembers the part that was looked at last,
    /// so that reading in order walks the chain once.
    pub fn slice<'p>(
        &'p self,
        arena: &'p Arena,
        offset: usize,
        from: &std::cell::Cell<(u32, usize)>,
    ) -> &'p [u8] {
        if offset >= self.length {
            return &[];
        }
        // SAFETY: the pin keeps the item's bytes in place and unchanged.
        let item = unsafe { arena.item(self.handle) };
        let offset = offset + item.lead();
        let (chunk, begins) = from.get();
        let mut cursor = if begins <= offset {
            Cursor {
                chunk: Handle::from_raw(chunk),
                begins,
            }
        } else {
            Cursor::default()
        };
        loop {
            let part = cursor.rest(&item);
            if offset < cursor.begins + part.len() {
                from.set((cursor.chunk.map_or(0, Handle::raw), cursor.begins));
                return &part[offset - cursor.begins..];
            }
            if !cursor.next_piece(&item) {
                return &[];
            }
        }
    }

    pub fn verified(&self, arena: &Arena) -> bool {
        arena.head(self.handle).word().has(flag::VERIFIED)
    }

    /// See [`Item::digests`].
    pub fn digests(&self, arena: &Arena) -> Option<Vec<u8>> {
        // SAFETY: the pin keeps the item and its chains in place and unchanged.
        unsafe { arena.item(self.handle) }.digests()
    }

    /// Gives the pin back, and with it the item's slot if the item was unlinked meanwhile and this
    /// was its last pin.
    pub fn release(self, arena: &Arena) -> Option<Slot<'_>> {
        if arena.extension(self.handle)[0].fetch_sub(1, AcqRel) != UNLINKED + 1 {
            return None;
        }
        let bin = arena.head(self.handle).word().bin();
        // SAFETY: unlinked and without pins: nobody else knows the slot.
        Some(unsafe { arena.slot(self.handle, bin) })
    }
}

/// A slot that was put aside, without its arena; see [`Slot::park`].
#[derive(Debug)]
pub struct Parked {
    handle: Handle,
    bin: u8,
}

impl Parked {
    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    /// Hangs a chunk behind this slot, which is a large item's first one or its last chunk so far.
    pub fn hang(&mut self, arena: &Arena, chunk: &Parked) {
        let head = arena.head(self.handle);
        let next = if head.word().state() == State::Chunk {
            &head.expires
        } else {
            arena.extension(self.handle)[1]
        };
        next.store(chunk.handle.raw(), Relaxed);
    }

    pub fn unpark(self, arena: &Arena) -> Slot<'_> {
        // SAFETY: parking gave up the slot, whose owner this was.
        unsafe { arena.slot(self.handle, self.bin) }
    }

    /// Bytes of the slot behind its head.
    pub fn bytes_mut<'p>(
        &'p mut self,
        arena: &'p Arena,
        offset: usize,
        length: usize,
    ) -> &'p mut [u8] {
        assert!(offset >= HEAD && offset + length <= arena.slot_size(self.bin));
        // SAFETY: the slot has one owner, who is borrowed mutably; the range was just checked.
        unsafe { std::slice::from_raw_parts_mut(arena.at(self.handle).add(offset), length) }
    }
}

/// A slot with one owner: allocated, not linked.
pub struct Slot<'a> {
    pub(super) arena: &'a Arena,
    pub(super) handle: Handle,
    pub(super) bin: u8,
}

/// What the head of a new item says.
#[derive(Debug, Clone, Copy)]
pub struct NewItem<'k> {
    /// Of more than [`KEY_SHORT`] bytes it is kept like a part of the value, before that.
    pub key: &'k [u8],
    pub hash: u64,
    pub length: usize,
    pub client_flags: u32,
    pub expires: u32,
    pub accessed: u32,
    pub large: bool,
    /// A large one that will get digests.
    pub verified: bool,
    pub binary_key: bool,
}

impl<'a> Slot<'a> {
    pub fn handle(&self) -> Handle {
        self.handle
    }

    pub fn bin(&self) -> u8 {
        self.bin
    }

    pub fn size(&self) -> usize {
        self.arena.slot_size(self.bin)
    }

    /// Writes header, key and client flags. Returns where the value begins; if the key is a long one, it
    /// has to be written there first.
    pub fn write_head(&mut self, new: &NewItem<'_>) -> usize {
        let arena = self.arena;
        let client = if new.client_flags != 0 {
            flag::CLIENT
        } else {
            0
        };
        let large = match (new.large, new.verified) {
            (false, _) => 0,
            (true, false) => flag::LARGE,
            (true, true) => flag::LARGE | flag::VERIFIED,
        };
        let binary = if new.binary_key { flag::BINARY_KEY } else { 0 };
        let (key, long) = if new.key.len() > KEY_SHORT {
            assert!(new.large, "an item with a long key is a large one");
            (&b""[..], flag::LONG)
        } else {
            (new.key, 0)
        };
        let head = arena.head(self.handle);
        head.expires.store(new.expires, Relaxed);
        head.accessed.store(new.accessed, Relaxed);
        head.length.store(new.length as u32, Relaxed);
        head.update(|word| {
            Word(
                word.0 & QUEUED
                    | key.len() as u32
                    | (State::Busy as u32) << STATE_SHIFT
                    | u32::from(client | large | binary | long) << 16
                    | u32::from(self.bin) << 24,
            )
        });
        let mut at = arena.header;
        if new.large {
            let [pins, next] = arena.extension(self.handle);
            pins.store(0, Relaxed);
            next.store(0, Relaxed);
            at += EXTENSION;
            if let Some(tree) = arena.tree_cell(self.handle) {
                tree.store(0, Relaxed);
                at += TREE;
            }
            if let Some(cells) = arena.long_cells(self.handle, head.word()) {
                cells.set(new.key.len(), new.hash);
                at += LONG;
            }
        }
        self.bytes_mut(at, key.len()).copy_from_slice(key);
        at += key.len();
        if client != 0 {
            self.bytes_mut(at, 4)
                .copy_from_slice(&new.client_flags.to_le_bytes());
            at += 4;
        }
        at
    }

    /// Makes this slot a copy of an unpinned item of the same bin, chunks and all: they belong to the
    /// copy from here on.
    pub(super) fn take_over(&mut self, item: &Item<'_>) {
        let arena = self.arena;
        assert!(item.word.bin() == self.bin && item.unpinned());
        let (from, to) = (item.head(), arena.head(self.handle));
        for (from, to) in [
            (&from.expires, &to.expires),
            (&from.accessed, &to.accessed),
            (&from.length, &to.length),
        ] {
            to.store(from.load(Relaxed), Relaxed);
        }
        let used = match item.inline() {
            Some(value) => item.value_offset() + item.lead() + value.len(),
            None => self.size(),
        };
        let bytes = item.bytes(HEAD, used - HEAD);
        self.bytes_mut(HEAD, used - HEAD).copy_from_slice(bytes);
        to.update(|word| {
            let kept = item.word.0 & !(STATE_MASK | QUEUED);
            Word(kept | word.0 & QUEUED | (State::Busy as u32) << STATE_SHIFT)
        });
        if item.word.has(flag::LARGE) {
            for first in [
                arena.first_chunk(self.handle),
                arena.first_digests(self.handle),
            ] {
                let mut chunk = first;
                while let Some(handle) = chunk {
                    arena
                        .head(handle)
                        .accessed
                        .store(self.handle.raw(), Relaxed);
                    chunk = arena.chunk(handle).next();
                }
            }
            arena.extension(item.handle)[1].store(0, Relaxed);
            if let Some(tree) = arena.tree_cell(item.handle) {
                tree.store(0, Relaxed);
            }
        }
    }

    /// Makes this slot a copy of a chunk of the same bin.
    pub(super) fn take_over_chunk(&mut self, chunk: Handle) {
        let arena = self.arena;
        let from = arena.head(chunk);
        let used = from.length.load(Relaxed) as usize;
        assert!(from.word().bin() == self.bin);
        let Some(owner) = arena.chunk(chunk).owner() else {
            return;
        };
        let at = self.write_chunk(owner, used);
        arena
            .head(self.handle)
            .expires
            .store(from.expires.load(Relaxed), Relaxed);
        // SAFETY: the caller has locked the pair of the chunk's item, which nobody has pinned: the
        // chunk's bytes do not change meanwhile.
        let bytes = unsafe { std::slice::from_raw_parts(arena.at(chunk).add(HEAD), used) };
        self.bytes_mut(at, used).copy_from_slice(bytes);
    }

    /// Makes this slot a chunk of `owner`. Returns where its data begins.
    pub fn write_chunk(&mut self, owner: Handle, used: usize) -> usize {
        let head = self.arena.head(self.handle);
        head.expires.store(0, Relaxed);
        head.accessed.store(owner.raw(), Relaxed);
        head.length.store(used as u32, Relaxed);
        head.update(|word| {
            Word(word.0 & QUEUED | (State::Chunk as u32) << STATE_SHIFT | u32::from(self.bin) << 24)
        });
        HEAD
    }

    /// A chunk holds so many bytes less than it was made for.
    pub fn shorten_chunk(&mut self, by: usize) {
        let length = &self.arena.head(self.handle).length;
        length.store(length.load(Relaxed) - by as u32, Relaxed);
    }

    /// Bytes of the slot behind its head.
    #[inline]
    pub fn bytes_mut(&mut self, offset: usize, length: usize) -> &mut [u8] {
        assert!(offset >= HEAD && offset + length <= self.size());
        // SAFETY: the slot has one owner, who is borrowed mutably; the range was just checked.
        unsafe { std::slice::from_raw_parts_mut(self.arena.at(self.handle).add(offset), length) }
    }

    /// Puts the slot aside for later, without borrowing the arena.
    pub fn park(self) -> Parked {
        Parked {
            handle: self.handle,
            bin: self.bin,
        }
    }

    /// Hangs the slots that hold the digests of its value off a large item that is not linked yet.
    pub fn hang_digests(&mut self, slots: Vec<Slot<'a>>) {
        let arena = self.arena;
        let Some(cell) = arena.tree_cell(self.handle) else {
            return;
        };
        hang_all(arena, cell, slots);
    }

    /// Takes the first chunk off a large item.
    pub fn pop_chunk(&mut self) -> Option<Slot<'a>> {
        let arena = self.arena;
        let word = arena.head(self.handle).word();
        if word.state() == State::Chunk || !word.has(flag::LARGE) {
            return None;
        }
        let (link, chunk) = match arena.first_chunk(self.handle) {
            Some(chunk) => (arena.extension(self.handle)[1], chunk),
            None => (
                arena.tree_cell(self.handle)?,
                arena.first_digests(self.handle)?,
            ),
        };
        let next = arena.chunk(chunk).next().map_or(0, Handle::raw);
        link.store(next, Relaxed);
        let bin = arena.head(chunk).word().bin();
        // SAFETY: the chunks of an item belong to whoever owns it, and this one has just been
        // taken off its chain.
        Some(unsafe { arena.slot(chunk, bin) })
    }

    /// The item as a reader would see it.
    pub fn item(&self) -> Item<'_> {
        // SAFETY: the slot belongs to us, and is borrowed as long as the view.
        unsafe { self.arena.item(self.handle) }
    }
}

/// Makes slots a chain that hangs behind a link.
pub(super) fn hang_all(arena: &Arena, link: &AtomicU32, slots: Vec<Slot<'_>>) {
    let mut link = link;
    for slot in slots {
        link.store(slot.handle.raw(), Relaxed);
        link = &arena.head(slot.handle).expires;
    }
    link.store(0, Relaxed);
}

/// Replaces the value of a linked item where it stands, keeping the first `keep` bytes of the old one.
///
/// # Safety
/// * The item is linked, and its pair is locked by the caller.
/// * No [`Item`] of it is alive, and it has no pins.
/// * Client flags, `keep` bytes and `parts` fit behind the key in its slot; with `keep` above 0 the
///   client flags are those it has.
#[inline(always)]
pub(super) unsafe fn overwrite(
    arena: &Arena,
    handle: Handle,
    client_flags: u32,
    keep: usize,
    parts: &[&[u8]],
) {
    let head = arena.head(handle);
    let word = head.word();
    let mut at = arena.header + word.extension() + word.key_length();
    let put = |at: usize, bytes: &[u8]| {
        // SAFETY: the caller vouches for exclusive access and for the room; `bytes` lies outside the
        // slot, because no view into it is alive.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), arena.at(handle).add(at), bytes.len())
        }
    };
    let client = if client_flags != 0 { flag::CLIENT } else { 0 };
    if client != 0 {
        put(at, &client_flags.to_le_bytes());
        at += 4;
    }
    let mut length = keep;
    for part in parts {
        put(at + length, part);
        length += part.len();
    }
    head.length.store(length as u32, Relaxed);
    if word.flags() & flag::CLIENT != client {
        head.update(|word| word.with_flags(word.flags() & !flag::CLIENT | client));
    }
}
