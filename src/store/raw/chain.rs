//! Chains of chunks that change while their item stays where it is.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::head::HEAD;
use super::slot::hang_all;
use super::{Arena, Handle, PairGuard, Parked, Pinned, Place, Slot, flag};

/// What hangs behind what in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Behind the item's own slot.
    Own,
    Chunk(Handle),
}

/// One chunk of a chain.
#[derive(Debug, Clone, Copy)]
pub struct ChunkAt {
    pub handle: Handle,
    /// Bytes of the value in it, and how many there could be.
    pub used: usize,
    pub room: usize,
}

/// A chain as it is as long as a pin keeps it so.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    /// Bytes of the value in the item's own slot.
    pub own: usize,
    pub first: ChunkAt,
    pub last: ChunkAt,
    pub before_last: Link,
}

/// How a chain changes.
#[derive(Debug, Clone, Copy)]
pub enum ChainEdit<'b> {
    /// These bytes go into the free room of the last chunk.
    Append { last: Handle, bytes: &'b [u8] },
    /// The new chunks hang behind a link, and in the place of a chunk that leaves.
    Link {
        behind: Link,
        replacing: Option<Handle>,
    },
    /// These bytes come first in the item's own slot, whose others move up; what has no room there
    /// any more is in the new chunks, which hang behind it, and in the place of a chunk that leaves.
    Prepend {
        bytes: &'b [u8],
        replacing: Option<Handle>,
    },
}

impl Pinned {
    /// The chain of the value; nothing if it stands in one slot, or if there is a long key in it.
    pub fn chain(&self, arena: &Arena) -> Option<Chain> {
        let handle = self.handle();
        if arena.head(handle).word().has(flag::LONG) {
            return None;
        }
        let mut at = arena.first_chunk(handle)?;
        let own = arena.slot_size(arena.head(handle).word().bin()) - value_offset(arena, handle);
        let look = |handle: Handle| {
            let head = arena.head(handle);
            ChunkAt {
                handle,
                used: head.length.load(Relaxed) as usize,
                room: arena.slot_size(head.word().bin()) - HEAD,
            }
        };
        let first = look(at);
        let mut before_last = Link::Own;
        while let Some(next) = arena.chunk(at).next() {
            before_last = Link::Chunk(at);
            at = next;
        }
        Some(Chain {
            own,
            first,
            last: look(at),
            before_last,
        })
    }
}

/// Where the value begins in the slot of a large item.
fn value_offset(arena: &Arena, handle: Handle) -> usize {
    arena.value_offset(arena.head(handle).word())
}

impl<'t> PairGuard<'t> {
    /// Hangs other digests off an item that only the caller has pinned. Returns those that hung there.
    pub fn swap_digests(&mut self, place: &Place<'t>, slots: Vec<Slot<'t>>) -> Vec<Slot<'t>> {
        let arena = self.arena();
        let handle = place.handle();
        let Some(cell) = arena.tree_cell(handle) else {
            return slots;
        };
        let mut left = Vec::new();
        let mut next = arena.first_digests(handle);
        while let Some(old) = next {
            next = arena.chunk(old).next();
            let bin = arena.head(old).word().bin();
            // SAFETY: digests are read under the pair's lock or by those who have the item pinned; the
            // lock is borrowed mutably here, and behind the swap they hang nowhere.
            left.push(unsafe { arena.slot(old, bin) });
        }
        hang_all(arena, cell, slots);
        left
    }

    /// Changes the chain of an item that the caller has pinned, and nobody else; `chunks` are the new
    /// ones, and `length` that of the whole value from here on. Returns the slot of the chunk that
    /// left, or else the chunks, if the item is not the pinned one or others have it pinned as well.
    pub fn edit_chain(
        &mut self,
        place: &Place<'t>,
        pinned: &mut Pinned,
        edit: ChainEdit<'_>,
        chunks: Vec<Slot<'t>>,
        length: usize,
    ) -> Result<Option<Slot<'t>>, Vec<Slot<'t>>> {
        let handle = place.handle();
        let arena = self.arena();
        if handle != pinned.handle() || arena.extension(handle)[0].load(Acquire) != 1 {
            return Err(chunks);
        }
        // From here on: the pair is locked, so no pin can be added; the only one is the caller's, and
        // it is borrowed mutably, so no slice of the value is alive.
        let put = |slot: Handle, at: usize, bytes: &[u8]| {
            assert!(at + bytes.len() <= arena.slot_size(arena.head(slot).word().bin()));
            // SAFETY: the slot is one of the item's, to which nobody else has access as argued
            // above, the bytes fit, and `bytes` lies elsewhere.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), arena.at(slot).add(at), bytes.len());
            }
        };
        let mut splice = None;
        match edit {
            ChainEdit::Append { last, bytes } => {
                let head = arena.head(last);
                let used = head.length.load(Relaxed);
                put(last, HEAD + used as usize, bytes);
                head.length.store(used + bytes.len() as u32, Relaxed);
            }
            ChainEdit::Link { behind, replacing } => splice = Some((behind, replacing)),
            ChainEdit::Prepend { bytes, replacing } => {
                let begin = value_offset(arena, handle);
                let end = arena.slot_size(arena.head(handle).word().bin());
                assert!(begin + bytes.len() <= end);
                // SAFETY: both ranges lie in the item's own slot, to which nobody else has access.
                unsafe {
                    let value = arena.at(handle).add(begin);
                    std::ptr::copy(value, value.add(bytes.len()), end - begin - bytes.len());
                }
                put(handle, begin, bytes);
                splice = Some((Link::Own, replacing));
            }
        }
        let left = splice.and_then(|(behind, replacing)| {
            let link = match behind {
                Link::Own => arena.extension(handle)[1],
                Link::Chunk(chunk) => &arena.head(chunk).expires,
            };
            let rest = match replacing {
                Some(old) => {
                    assert_eq!(link.load(Relaxed), old.raw(), "it hangs there");
                    arena.head(old).expires.load(Relaxed)
                }
                None => link.load(Relaxed),
            };
            let mut before: Option<Parked> = None;
            for chunk in chunks {
                let raw = chunk.handle().raw();
                let chunk = chunk.park();
                match before.as_mut() {
                    Some(before) => before.hang(arena, &chunk),
                    None => link.store(raw, Relaxed),
                }
                before = Some(chunk);
            }
            let last = before?;
            arena.head(last.handle()).expires.store(rest, Relaxed);
            replacing.map(|old| {
                let bin = arena.head(old).word().bin();
                // SAFETY: the chunk was part of the item, which nobody else has access to, and hangs
                // nowhere now.
                unsafe { arena.slot(old, bin) }
            })
        });
        arena.head(handle).length.store(length as u32, Relaxed);
        pinned.set_length(length);
        Ok(left)
    }
}
