#![forbid(unsafe_code)]
//! Values that are compared with their digests: by the scrubber, and at reads if that is wanted.
//!
//! A value of a segment or more has its digests laid down beside it when it is stored. It is compared
//! while it is pinned, without its lock; a value that is not what it was is unlinked, counted and
//! logged. The scrubber walks all bins, page by page, as fast as it may.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::merkle::{self, DIGEST, Tree};
use super::raw::{Handle, PairGuard, Place, Slot, Spot, flag};
use super::read::{Pin, hold};
use super::{Cx, Inner, Miss, Store};
use crate::settings::{self, Verify as When};

/// How long the scrubber rests when it has been round.
const REST: Duration = Duration::from_secs(10);
/// How long a step may last, by the rate.
const STEP: Duration = Duration::from_millis(50);

/// State and counts of verification.
pub(super) struct Verify {
    when: When,
    /// Bytes per second.
    rate: u64,
    at: Mutex<At>,
    bytes: AtomicU64,
    passes: AtomicU64,
    bad: AtomicU64,
}

/// Where the scrubber is.
#[derive(Debug, Default, Clone, Copy)]
struct At {
    bin: usize,
    page: usize,
    slot: usize,
}

/// What verification has come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Bytes of values compared.
    pub bytes: u64,
    /// How often the scrubber has been through all of memory.
    pub passes: u64,
    /// Values that were not what they had been, and are gone.
    pub bad: u64,
}

impl Verify {
    pub(super) fn new(settings: &settings::Store) -> Verify {
        Verify {
            when: settings.verify,
            rate: settings.scrub_rate,
            at: Mutex::default(),
            bytes: AtomicU64::new(0),
            passes: AtomicU64::new(0),
            bad: AtomicU64::new(0),
        }
    }

    /// Values are compared when they are read.
    #[inline]
    pub(super) fn reads(&self) -> bool {
        self.when == When::Read
    }
}

impl Inner {
    /// Whether a value of so many bytes gets digests.
    pub(super) fn verifies(&self, length: usize) -> bool {
        length >= merkle::SEGMENT && self.verify.when != When::Off
    }

    /// Lays digests into slots, for an item that they are to hang off.
    pub(super) fn lay_digests<'i>(
        &'i self,
        cx: Cx<'_>,
        owner: Handle,
        tree: &Tree,
        class: u8,
    ) -> Option<Vec<Slot<'i>>> {
        let mut slots: Vec<Slot<'i>> = Vec::new();
        let mut missing = (1 + tree.leaves.len()) * DIGEST;
        let (mut at, mut room) = (0, 0);
        for digest in tree.bytes() {
            let mut rest = &digest[..];
            while !rest.is_empty() {
                if room == 0 {
                    let Some((mut slot, taken)) = self.take_chunk(cx, missing, class) else {
                        for slot in slots {
                            self.give(slot);
                        }
                        return None;
                    };
                    at = slot.write_chunk(owner, taken);
                    room = taken;
                    missing -= taken;
                    slots.push(slot);
                }
                let n = room.min(rest.len());
                if let Some(slot) = slots.last_mut() {
                    slot.bytes_mut(at, n).copy_from_slice(&rest[..n]);
                }
                at += n;
                room -= n;
                rest = &rest[n..];
            }
        }
        Some(slots)
    }

    /// Compares a value that is held with its digests. Returns the segments that differ; `None` if the
    /// digests themselves are not what they were.
    fn compare(&self, held: &Pin, digests: &[u8]) -> Option<Vec<usize>> {
        let tree = Tree::read(digests)?;
        let count = merkle::segments(held.length());
        if tree.leaves.len() != count {
            return None;
        }
        self.verify.bytes.fetch_add(held.length() as u64, Relaxed);
        let mut builder = merkle::Builder::new(held.length());
        let mut offset = 0;
        while offset < held.length() {
            let piece = held.slice(offset);
            builder.update(piece);
            offset += piece.len();
        }
        let found = builder.finish();
        Some(found.differing(&tree).collect())
    }

    /// As [`find`](Inner::find), for those who read: if reads are verified, the value has just been
    /// compared with its digests.
    pub(super) fn find_checked<'s>(
        self: &'s Arc<Self>,
        cx: Cx<'_>,
        key: &[u8],
        hash: u64,
    ) -> (PairGuard<'s>, Result<Place<'s>, Miss>) {
        let mut checked = None;
        loop {
            let (guard, found) = self.find(cx, key, hash);
            let Ok(place) = found else {
                return (guard, found);
            };
            let item = guard.item(&place);
            let version = (item.handle(), item.cas(), item.length());
            if !self.verify.reads() || !item.word().has(flag::VERIFIED) || checked == Some(version)
            {
                return (guard, found);
            }
            drop(guard);
            if self.check(cx, hash, version.0) {
                checked = Some(version);
            }
        }
    }

    /// The lock of a key whose value, if it has digests, has just been compared with them.
    #[cold]
    #[inline(never)]
    pub(super) fn checked<'s>(
        self: &'s Arc<Self>,
        cx: Cx<'_>,
        key: &[u8],
        hash: u64,
        spot: &Spot<'s>,
        mut guard: PairGuard<'s>,
    ) -> PairGuard<'s> {
        let mut checked = None;
        loop {
            let version = match guard.find_at(spot, hash, key) {
                Some((_, item)) if item.word().has(flag::VERIFIED) => {
                    (item.handle(), item.cas(), item.length())
                }
                _ => return guard,
            };
            if checked == Some(version) {
                return guard;
            }
            drop(guard);
            if self.check(cx, hash, version.0) {
                checked = Some(version);
            }
            guard = self.table.lock_at(spot, &self.arena, hash);
        }
    }

    /// Whether a value is what it was when it was stored. If not, it is gone behind this.
    #[cold]
    #[inline(never)]
    pub(super) fn check(self: &Arc<Self>, cx: Cx<'_>, hash: u64, handle: Handle) -> bool {
        let guard = self.table.lock(&self.arena, hash);
        let Some(place) = guard.find_handle(hash, handle) else {
            return true;
        };
        let item = guard.item(&place);
        let (Some(digests), Some(pinned)) = (item.digests(), item.pin()) else {
            return true;
        };
        let cas = item.cas();
        let key = item.key();
        let shown = String::from_utf8_lossy(&key[..key.len().min(100)]).into_owned();
        drop(guard);
        let held = hold(self, pinned);
        let differing = self.compare(&held, &digests);
        if differing.as_ref().is_some_and(Vec::is_empty) {
            return true;
        }
        // As long as it is held its slot belongs to nobody else, and its value does not change.
        let guard = self.table.lock(&self.arena, hash);
        if let Some(place) = guard.find_handle(hash, handle)
            && guard.item(&place).cas() == cas
        {
            self.unlink(cx, guard, place, hash);
        } else {
            drop(guard);
        }
        self.verify.bad.fetch_add(1, Relaxed);
        match differing {
            Some(segments) => log::error!(
                "memory has changed by itself: {} of {} segments of the value of {shown:?} (the first is number {}); it is dropped",
                segments.len(),
                merkle::segments(held.length()),
                segments.first().map_or(0, |first| first + 1)
            ),
            None => log::error!(
                "memory has changed by itself: the digests of the value of {shown:?}; it is dropped"
            ),
        }
        false
    }

    /// What is left of a step: the next items with digests, up to about so many bytes. False when
    /// the scrubber has been round.
    fn scrub(self: &Arc<Self>, cx: Cx<'_>, at: &mut At, bytes: u64) -> bool {
        let before = self.verify.bytes.load(Relaxed);
        while self.verify.bytes.load(Relaxed) - before < bytes {
            // The page, if the walk is not over; and on it the next item that can be compared.
            let next = {
                let Some(bin) = self.bins.get(at.bin) else {
                    *at = At::default();
                    self.verify.passes.fetch_add(1, Relaxed);
                    return false;
                };
                // Values with digests are chained, and stand in the bin of chunks.
                if at.bin != usize::from(self.arena.chunk_bin()) {
                    at.bin += 1;
                    continue;
                }
                let state = bin.lock();
                let Some(&page) = state.pages.pages().get(at.page) else {
                    *at = At {
                        bin: at.bin + 1,
                        ..At::default()
                    };
                    continue;
                };
                let carved = self.pages.entry(page).carved();
                let size = state.pages.size();
                let found = (at.slot..carved).find_map(|slot| {
                    let handle = self.arena.handle(page, slot, size);
                    let word = self.arena.head(handle).word();
                    if !word.linked() || !word.has(flag::VERIFIED) {
                        return None;
                    }
                    Some((slot, handle, self.peek_hash(&state, handle)?))
                });
                match found {
                    Some((slot, handle, hash)) => {
                        at.slot = slot + 1;
                        Some((handle, hash))
                    }
                    None => {
                        at.page += 1;
                        at.slot = 0;
                        None
                    }
                }
            };
            if let Some((handle, hash)) = next {
                self.check(cx, hash, handle);
            }
        }
        true
    }
}

impl Store {
    /// One step of the scrubber. Returns how long to wait before the next.
    pub fn scrub_step(&self, cx: Cx<'_>) -> Duration {
        let verify = &self.inner.verify;
        if verify.when == When::Off || verify.rate == 0 {
            return REST;
        }
        let mut at = verify.at.lock().unwrap_or_else(PoisonError::into_inner);
        let before = verify.bytes.load(Relaxed);
        let step = verify.rate * STEP.as_millis() as u64 / 1000;
        let more = self.inner.scrub(cx, &mut at, step.max(1));
        let done = verify.bytes.load(Relaxed) - before;
        let pause = Duration::from_nanos(done * 1_000_000_000 / verify.rate);
        if more { pause } else { pause.max(REST) }
    }

    /// What verification has come to.
    pub fn verified(&self) -> Verified {
        let verify = &self.inner.verify;
        Verified {
            bytes: verify.bytes.load(Relaxed),
            passes: verify.passes.load(Relaxed),
            bad: verify.bad.load(Relaxed),
        }
    }
}

/// The root of an item's value, if it is known or quickly found.
pub(super) fn root_of(item: &super::raw::Item<'_>) -> Option<merkle::Digest> {
    if let Some(digests) = item.digests() {
        return digests.first_chunk().copied();
    }
    if item.length() > merkle::SEGMENT {
        return None;
    }
    let mut builder = merkle::Builder::new(item.length());
    item.pieces(|piece| builder.update(piece));
    Some(builder.finish().root)
}
