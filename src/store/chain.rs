#![forbid(unsafe_code)]
//! Values that have become longer, without being written again: `append` and `prepend` on a chain of
//! chunks.
//!
//! What is new is laid into chunks of its own while the item is pinned, without its lock. Then, under
//! the lock and if nobody else holds the value, at most two slots of the old value are touched: the
//! one that the new bytes join, and the one before it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::merkle::{self, Tree};
use super::raw::{ChainEdit, Handle, Link, Slot};
use super::read::Pin;
use super::write::Pieces;
use super::{Cx, Inner, Mode, Put, Refused, Stored};

/// Bytes over which a checksum may be made under an item's lock.
const SEALED_MOST: usize = 256 << 10;

/// Chunks that hang nowhere yet. Dropping them gives them back.
struct Loose<'s> {
    inner: &'s Inner,
    owner: Handle,
    class: u8,
    chunks: Vec<Slot<'s>>,
    at: usize,
    room: usize,
    /// Bytes still to come.
    missing: usize,
}

impl<'s> Loose<'s> {
    fn new(inner: &'s Inner, owner: Handle, class: u8, missing: usize) -> Loose<'s> {
        Loose {
            inner,
            owner,
            class,
            chunks: Vec::new(),
            at: 0,
            room: 0,
            missing,
        }
    }

    fn write(&mut self, cx: Cx<'_>, mut bytes: &[u8]) -> Result<(), Refused> {
        while !bytes.is_empty() {
            if self.room == 0 {
                let taken = self.inner.take_chunk(cx, self.missing, self.class);
                let Some((mut chunk, room)) = taken else {
                    return Err(Refused::NoMemory);
                };
                self.at = chunk.write_chunk(self.owner, room);
                self.room = room;
                self.chunks.push(chunk);
            }
            let n = self.room.min(bytes.len());
            if let Some(chunk) = self.chunks.last_mut() {
                chunk.bytes_mut(self.at, n).copy_from_slice(&bytes[..n]);
            }
            self.at += n;
            self.room -= n;
            self.missing -= n;
            bytes = &bytes[n..];
        }
        Ok(())
    }
}

impl Drop for Loose<'_> {
    fn drop(&mut self) {
        for chunk in self.chunks.drain(..) {
            self.inner.give(chunk);
        }
    }
}

/// An item as it was when its lock was given back.
#[derive(Clone, Copy)]
pub(super) struct Version {
    pub handle: Handle,
    pub length: usize,
    pub cas: u64,
}

impl Inner {
    /// Adds `added` bytes to a value that is held. `Ok(None)`: it has no chunks, or is being read by
    /// others, or has changed meanwhile; then it has to be done in another way.
    pub(super) fn extend_chain(
        self: &Arc<Self>,
        cx: Cx<'_>,
        put: &Put<'_>,
        held: &mut Pin,
        version: Version,
        added: usize,
        value: &Pieces<'_>,
    ) -> Result<Option<Stored>, Refused> {
        // A checksum over all of a long value is not made under its lock.
        if self.arena.checked() && version.length > SEALED_MOST {
            return Ok(None);
        }
        let Some(chain) = held.chain() else {
            return Ok(None);
        };
        let length = version.length + added;
        if held.verified() != self.verifies(length) {
            // It is written again, this time with digests.
            return Ok(None);
        }
        let total = self.arena.overhead(put.key.len(), put.flags != 0) + length;
        let class = self.classes.class_of_total(total + self.classes.extra());
        let full = super::raw::Arena::chunk_room(self.arena.slot_size(self.arena.chunk_bin()));
        let mut bytes = Vec::new();
        let mut loose;
        let edit = if put.mode == Mode::Append {
            let last = chain.last;
            let free = last.room - last.used;
            if added <= free {
                value(&mut |piece| bytes.extend_from_slice(piece));
                loose = Loose::new(self, version.handle, class, 0);
                ChainEdit::Append {
                    last: last.handle,
                    bytes: &bytes,
                }
            } else if last.used + added <= full {
                // A larger chunk takes the place of the last. It gets as much again, for the next time.
                let room = (last.used * 2).clamp(last.used + added, full);
                loose = Loose::new(self, version.handle, class, room);
                loose.write(cx, held.slice(version.length - last.used))?;
                loose.fill(cx, value)?;
                loose.shorten();
                ChainEdit::Link {
                    behind: chain.before_last,
                    replacing: Some(last.handle),
                }
            } else {
                loose = Loose::new(self, version.handle, class, added);
                loose.fill(cx, value)?;
                ChainEdit::Link {
                    behind: Link::Chunk(last.handle),
                    replacing: None,
                }
            }
        } else {
            // The item's own slot stays full: as much as comes in at its front goes out at its end,
            // into chunks behind it.
            let own = chain.own;
            let first = chain.first;
            let joins = added + first.used <= full;
            let out = added + if joins { first.used } else { 0 };
            loose = Loose::new(self, version.handle, class, out);
            let mut passed = 0;
            let mut failed = Ok(());
            value(&mut |piece| {
                let stays = own.saturating_sub(passed).min(piece.len());
                bytes.extend_from_slice(&piece[..stays]);
                passed += piece.len();
                if failed.is_ok() {
                    failed = loose.write(cx, &piece[stays..]);
                }
            });
            failed?;
            let front = held.slice(0);
            loose.write(cx, &front[own - bytes.len()..])?;
            if joins {
                loose.write(cx, held.slice(own))?;
            }
            ChainEdit::Prepend {
                bytes: &bytes,
                replacing: joins.then_some(first.handle),
            }
        };
        let mut digests = Digests {
            inner: self,
            slots: match held.verified() {
                true => {
                    let held = (&*held, version.handle);
                    self.digests_of_extended(cx, put.mode, held, added, value, class)?
                }
                false => Vec::new(),
            },
        };
        let (mut guard, found) = self.find_to_store(cx, put.key, put.hash);
        let Ok(place) = found else {
            drop(guard);
            return Ok(None);
        };
        let item = guard.item(&place);
        let same = item.handle() == version.handle
            && item.length() == version.length
            && item.cas() == version.cas;
        if !same {
            drop(guard);
            return Ok(None);
        }
        let before = self.before(&item);
        self.count_out(cx, &item);
        self.leave_census(&item);
        let chunks = std::mem::take(&mut loose.chunks);
        let edited = held.edit(&mut guard, &place, edit, chunks, length);
        let item = guard.item(&place);
        self.count_in(cx, &item);
        self.enter_census(&item);
        let left = match edited {
            Ok(left) => left,
            Err(chunks) => {
                drop(guard);
                loose.chunks = chunks;
                return Ok(None);
            }
        };
        if held.verified() {
            digests.slots = guard.swap_digests(&place, std::mem::take(&mut digests.slots));
        }
        let item = guard.item(&place);
        let cas = self.next_cas(put.new_cas);
        self.renew(cx, &item, cas, item.head().expires.load(Relaxed), 0);
        let was = (version.cas, version.length);
        self.log_extended(&item, before, put.mode, was, value);
        let class = self.class_of(&item);
        drop(guard);
        if let Some(left) = left {
            self.give(left);
        }
        Ok(Some(self.stored(cas, class, length)))
    }
}

impl Inner {
    /// The digests of a value that is held, with so many bytes more before or behind it, in slots that
    /// hang nowhere yet. Full segments that stay where they are need not be read again.
    fn digests_of_extended<'i>(
        &'i self,
        cx: Cx<'_>,
        mode: Mode,
        (held, owner): (&Pin, Handle),
        added: usize,
        value: &Pieces<'_>,
        class: u8,
    ) -> Result<Vec<Slot<'i>>, Refused> {
        let length = held.length() + added;
        let tree = held.digests().and_then(|digests| Tree::read(&digests));
        let mut known = tree.map_or(Vec::new(), |tree| tree.leaves);
        if mode == Mode::Prepend || merkle::segments(held.length()) == 1 {
            known.clear();
        }
        known.truncate(held.length() / merkle::SEGMENT);
        let mut offset = known.len() * merkle::SEGMENT;
        let mut builder = merkle::Builder::resume(length, known);
        if mode == Mode::Prepend {
            value(&mut |piece| builder.update(piece));
        }
        while offset < held.length() {
            let piece = held.slice(offset);
            builder.update(piece);
            offset += piece.len();
        }
        if mode == Mode::Append {
            value(&mut |piece| builder.update(piece));
        }
        self.lay_digests(cx, owner, &builder.finish(), class)
            .ok_or(Refused::NoMemory)
    }
}

/// Slots of digests that hang nowhere. Dropping them gives them back.
struct Digests<'s> {
    inner: &'s Inner,
    slots: Vec<Slot<'s>>,
}

impl Drop for Digests<'_> {
    fn drop(&mut self) {
        for slot in self.slots.drain(..) {
            self.inner.give(slot);
        }
    }
}

impl Loose<'_> {
    fn fill(&mut self, cx: Cx<'_>, value: &Pieces<'_>) -> Result<(), Refused> {
        let mut failed = Ok(());
        value(&mut |piece| {
            if failed.is_ok() {
                failed = self.write(cx, piece);
            }
        });
        failed
    }

    /// The last chunk is not filled: it holds what it holds.
    fn shorten(&mut self) {
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.shorten_chunk(self.room);
        }
    }
}
