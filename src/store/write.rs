#![forbid(unsafe_code)]
//! Storing values, at hand or arriving.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::alloc::Fit;
use super::chain::Version;
use super::copies::Before;
use super::merkle;
use super::raw::{Handle, Item, KEY_SHORT, NewItem, PairGuard, Parked, Place, Slot, State, flag};
use super::read::Pin;
use super::{COPY_MAX, Cx, Inner, Mode, Put, Refused, Store, Stored};

/// A value that is still arriving, in memory that is taken as it comes; nobody sees it before
/// [`Store::finish`], and dropping it gives the memory back.
pub struct Upload {
    inner: Arc<Inner>,
    /// The item's own slot, with the chunks hanging off it. Taken when it is linked or dropped.
    head: Option<Parked>,
    /// The chunk that is being filled; `None` while it is the item's own slot.
    chunk: Option<Parked>,
    /// What that holds begins here, has room for so much, and so much of it is filled.
    at: usize,
    room: usize,
    filled: usize,
    owner: Handle,
    /// Bytes in all, those of a long key before the value included.
    length: usize,
    arrived: usize,
    /// The slab class that is charged if there is no memory.
    class: u8,
    /// The digests of what has arrived, if the item will have any.
    tree: Option<Box<merkle::Builder>>,
}

impl Upload {
    /// For a value of `length` bytes that begins at `at` in the item's own slot, behind the bytes of
    /// `lead`.
    ///
    /// # Errors
    /// There is no memory for `lead`.
    pub(super) fn new(
        inner: Arc<Inner>,
        cx: Cx<'_>,
        head: Slot<'_>,
        at: usize,
        lead: &[u8],
        length: usize,
        class: u8,
    ) -> Result<Upload, Refused> {
        let verified = inner.verifies(length);
        let whole = lead.len() + length;
        let mut upload = Upload {
            tree: None,
            inner,
            room: (head.size() - at).min(whole),
            owner: head.handle(),
            head: Some(head.park()),
            chunk: None,
            at,
            filled: 0,
            length: whole,
            arrived: 0,
            class,
        };
        upload.write(cx, lead)?;
        // The digests are of the value alone.
        upload.tree = verified.then(|| Box::new(merkle::Builder::new(length)));
        Ok(upload)
    }

    /// Where the next bytes go; empty when the value is whole.
    ///
    /// # Errors
    /// There is no memory for them. What has arrived is still there, for whoever wants to try again.
    pub fn spare(&mut self, cx: Cx<'_>) -> Result<&mut [u8], Refused> {
        if self.filled == self.room && self.arrived < self.length {
            self.add_chunk(cx)?;
        }
        let (at, room) = (self.at + self.filled, self.room - self.filled);
        Ok(match self.chunk.as_mut().or(self.head.as_mut()) {
            Some(slot) => slot.bytes_mut(&self.inner.arena, at, room),
            None => &mut [],
        })
    }

    #[cold]
    fn add_chunk(&mut self, cx: Cx<'_>) -> Result<(), Refused> {
        let missing = self.length - self.arrived;
        let Some((mut chunk, room)) = self.inner.take_chunk(cx, missing, self.class) else {
            return Err(Refused::NoMemory);
        };
        let at = chunk.write_chunk(self.owner, room);
        let chunk = chunk.park();
        // The head's state is BUSY, a chunk's is CHUNK: `hang` tells them apart by that.
        if let Some(last) = self.chunk.as_mut().or(self.head.as_mut()) {
            last.hang(&self.inner.arena, &chunk);
        }
        self.chunk = Some(chunk);
        (self.at, self.room, self.filled) = (at, room, 0);
        Ok(())
    }

    /// `n` bytes of [`spare`](Upload::spare) have been filled.
    pub fn advance(&mut self, n: usize) {
        assert!(
            self.filled + n <= self.room,
            "more bytes than there was room for"
        );
        if let Some(tree) = &mut self.tree
            && let Some(slot) = self.chunk.as_mut().or(self.head.as_mut())
        {
            tree.update(slot.bytes_mut(&self.inner.arena, self.at + self.filled, n));
        }
        self.filled += n;
        self.arrived += n;
    }

    /// Bytes still missing.
    pub fn missing(&self) -> usize {
        self.length - self.arrived
    }

    /// Appends bytes that are at hand.
    pub(super) fn write(&mut self, cx: Cx<'_>, mut bytes: &[u8]) -> Result<(), Refused> {
        while !bytes.is_empty() {
            let spare = self.spare(cx)?;
            let n = spare.len().min(bytes.len());
            assert!(n > 0, "more bytes than the value was to have");
            spare[..n].copy_from_slice(&bytes[..n]);
            self.advance(n);
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn write_pieces(&mut self, cx: Cx<'_>, value: &Pieces<'_>) -> Result<(), Refused> {
        let mut failed = Ok(());
        value(&mut |piece| {
            if failed.is_ok() {
                failed = self.write(cx, piece);
            }
        });
        failed
    }

    /// Writes an old value, which is small or held, and a new one before or behind it.
    fn write_joined(
        &mut self,
        cx: Cx<'_>,
        mode: Mode,
        value: &Pieces<'_>,
        small: &[u8],
        held: Option<&Pin>,
    ) -> Result<(), Refused> {
        if mode == Mode::Prepend {
            self.write_pieces(cx, value)?;
        }
        self.write(cx, small)?;
        if let Some(held) = held {
            let mut offset = 0;
            while offset < held.length() {
                let piece = held.slice(offset);
                self.write(cx, piece)?;
                offset += piece.len();
            }
        }
        if mode == Mode::Append {
            self.write_pieces(cx, value)?;
        }
        Ok(())
    }

    /// The item, with all that belongs to it, for whoever links it.
    pub(super) fn into_slot<'i>(mut self, cx: Cx<'_>, inner: &'i Inner) -> Option<Slot<'i>> {
        let mut slot = self.head.take()?.unpark(&inner.arena);
        if let Some(tree) = self.tree.take() {
            let tree = tree.finish();
            // Without memory for them the value has no digests, and is as good as any other.
            if let Some(digests) = inner.lay_digests(cx, slot.handle(), &tree, self.class) {
                slot.hang_digests(digests);
            }
        }
        Some(slot)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(head) = self.head.take() {
            self.inner.give(head.unpark(&self.inner.arena));
        }
    }
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("whole", &self.length)
            .field("missing", &self.missing())
            .finish()
    }
}

/// Calls what it is given with the parts of a value, in order.
pub(super) type Pieces<'v> = dyn Fn(&mut dyn FnMut(&[u8])) + 'v;

/// What the item that is there means for one that is to be stored.
enum Verdict {
    Store,
    /// Store it, but as a stale item with the old one's expiry (`I` with an older CAS).
    StoreStale {
        token_sent: bool,
        expires: u32,
    },
    Refuse(Stored),
}

impl Inner {
    /// Whether a put may go ahead; counts what it decides.
    fn judge(&self, cx: Cx<'_>, put: &Put<'_>, old: Option<&Item<'_>>) -> Verdict {
        let Some(old) = old else {
            return match (put.mode, put.cas) {
                (Mode::Set | Mode::Replace, Some(_)) => Verdict::Refuse(Stored::NotFound),
                (Mode::Set | Mode::Add, _) => Verdict::Store,
                (Mode::Append | Mode::Prepend, _) if put.vivify.is_some() => Verdict::Store,
                _ => Verdict::Refuse(Stored::NotStored),
            };
        };
        let counters = || &cx.counters.classes[usize::from(self.class_of(old))];
        match (put.mode, put.cas) {
            (Mode::Add, _) => {
                self.bump_time(old, cx.now);
                Verdict::Refuse(Stored::NotStored)
            }
            (Mode::Append | Mode::Prepend, Some(cas))
                if self.arena.has_cas() && cas != old.cas() =>
            {
                Verdict::Refuse(Stored::Exists)
            }
            (Mode::Set | Mode::Replace, Some(cas)) => {
                if self.arena.has_cas() && cas == old.cas() && cas != 0 {
                    counters().cas_hits.add(1);
                    Verdict::Store
                } else if put.invalidate && cas < old.cas() && cas != 0 {
                    counters().cas_hits.add(1);
                    Verdict::StoreStale {
                        token_sent: old.word().has(flag::TOKEN_SENT),
                        expires: old.head().expires.load(Relaxed),
                    }
                } else {
                    counters().cas_badval.add(1);
                    Verdict::Refuse(Stored::Exists)
                }
            }
            _ => Verdict::Store,
        }
    }

    /// Whether an item of so many bytes may not be stored.
    #[inline]
    fn is_too_large(&self, total: usize) -> bool {
        total + self.classes.extra() > self.item_size_max
    }

    /// Whether an item with this expiry is too short-lived for the clock.
    fn is_temporary(&self, now: u32, expires: u32) -> bool {
        let above = self.temporary_ttl.load(Relaxed);
        expires != 0 && expires.saturating_sub(now) < above
    }

    /// Links a filled slot, if the put may go ahead now.
    fn link<'s>(&'s self, cx: Cx<'_>, put: &Put<'_>, slot: Slot<'s>, cas: u64) -> Stored {
        let (mut guard, found) = self.find_to_store(cx, put.key, put.hash);
        let old = found.ok();
        let verdict = self.judge(cx, put, old.map(|place| guard.item(&place)).as_ref());
        let head = self.arena.head(slot.handle());
        match verdict {
            Verdict::Refuse(stored) => {
                drop(guard);
                self.give(slot);
                return stored;
            }
            Verdict::StoreStale {
                token_sent,
                expires,
            } => {
                let token = if token_sent { flag::TOKEN_SENT } else { 0 };
                head.expires.store(expires, Relaxed);
                head.update(|word| word.with_flags(word.flags() | flag::STALE | token));
            }
            Verdict::Store => {}
        }
        // A value that took its time to arrive counts from now: what was flushed meanwhile is older.
        head.accessed.store(self.stamp(cx.now), Relaxed);
        self.arena.set_cas(slot.handle(), cas);
        let (handle, item) = (slot.handle(), slot.item());
        item.seal();
        let (class, length) = (self.class_of(&item), item.length());
        let expires = head.expires.load(Relaxed);
        self.note_expiry(handle, expires);
        self.count_in(cx, &item);
        let place = match old {
            None => {
                let ghost = guard.take_ghost(put.hash);
                let word = head.word();
                let moved = &cx.counters.classes[usize::from(class)];
                if let Some(ghost) = ghost {
                    self.bins[usize::from(word.bin())].ghost_seen(ghost.hot);
                    moved.moves_to_warm.add(1);
                }
                let (state, counter) = if self.is_temporary(cx.now, expires) {
                    (State::Temp, 0)
                } else if ghost.is_some() {
                    (State::Main, 1)
                } else if word.queued() && self.segmented.load(Relaxed) {
                    (State::Hot, 0)
                } else {
                    moved.moves_to_cold.add(1);
                    (State::Main, 0)
                };
                match guard.insert(put.hash, slot, state, counter) {
                    Ok(()) => {
                        self.census_of(handle).enter(state, counter);
                        if self.journal.is_some()
                            && let Some(place) = guard.find_handle(put.hash, handle)
                        {
                            self.log_stored(&guard.item(&place), Before::default());
                        }
                        None
                    }
                    Err(back) => {
                        // Its pair is full, and all that could extend it is in use.
                        self.count_out(cx, &back.item());
                        drop(guard);
                        self.give(back);
                        return Stored::NoMemory;
                    }
                }
            }
            Some(place) => {
                // What replaces an item takes its rank over.
                let rank = if self.is_temporary(cx.now, expires) {
                    (State::Temp, 0)
                } else {
                    (State::Main, guard.item(&place).word().counter().min(1))
                };
                let (before, old) = self.replace(cx, &mut guard, &place, slot, rank);
                self.log_stored(&guard.item(&place), before);
                old
            }
        };
        drop(guard);
        if let Some(old) = place {
            self.give(old);
        } else {
            self.table.grow(&self.arena, 1, |key| self.hasher.hash(key));
        }
        self.stored(cas, class, length)
    }

    /// Puts an item in the place of another: gives that back, and what is to be told of it.
    #[inline]
    fn replace<'s>(
        &'s self,
        cx: Cx<'_>,
        guard: &mut PairGuard<'s>,
        place: &Place<'s>,
        slot: Slot<'s>,
        (state, counter): (State, u32),
    ) -> (Before, Option<Slot<'s>>) {
        let old = guard.item(place);
        let before = self.before(&old);
        self.count_out(cx, &old);
        self.leave_census(&old);
        self.census_of(slot.handle()).enter(state, counter);
        (before, guard.replace(place, slot, state, counter))
    }

    #[inline]
    pub(super) fn stored(&self, cas: u64, class: u8, length: usize) -> Stored {
        let cas = if self.arena.has_cas() { cas } else { 0 };
        Stored::Stored { cas, class, length }
    }

    /// Overwrites an item where it stands, if its slot is of the right size for the new one. Its first
    /// `keep` bytes stay, if the client flags stay too.
    #[inline(always)]
    pub(super) fn overwrite<'s>(
        &'s self,
        cx: Cx<'_>,
        guard: &mut PairGuard<'s>,
        place: &Place<'s>,
        client_flags: u32,
        keep: usize,
        parts: &[&[u8]],
    ) -> bool {
        let item = guard.item(place);
        let (word, old_length, old_total) = (item.word(), item.length(), item.total());
        let length = keep + parts.iter().map(|part| part.len()).sum::<usize>();
        if length > COPY_MAX || word.has(flag::LARGE) {
            return false;
        }
        let total = self.arena.overhead(word.key_length(), client_flags != 0) + length;
        if old_length > COPY_MAX || self.fit(total) != Fit::Slot(word.bin()) {
            return false;
        }
        let slot = self.arena.slot_size(word.bin());
        guard.overwrite(place, slot, client_flags, keep, parts);
        let counters = &cx.counters.classes[usize::from(self.classes.class_of_bin(word.bin()))];
        counters.bytes.add(total as u64);
        counters.bytes.sub(old_total as u64);
        cx.counters.general.total_items.add(1);
        true
    }

    /// Marks an item as just stored. `marks` are flags of its own.
    #[inline]
    pub(super) fn renew(&self, cx: Cx<'_>, item: &Item<'_>, cas: u64, expires: u32, marks: u8) {
        self.renew_at(self.stamp(cx.now), item, cas, expires, marks);
    }

    /// As [`renew`](Inner::renew); `stamp` is that of the access.
    #[inline]
    fn renew_at(&self, stamp: u32, item: &Item<'_>, cas: u64, expires: u32, marks: u8) {
        let head = item.head();
        head.expires.store(expires, Relaxed);
        self.note_expiry(item.handle(), expires);
        head.accessed.store(stamp, Relaxed);
        self.arena.set_cas(item.handle(), cas);
        let word = head.word();
        let kept = flag::CLIENT | flag::LARGE | flag::VERIFIED | flag::LONG;
        let flags = word.flags() & kept | marks;
        if flags != word.flags() {
            head.update(|word| word.with_flags(flags));
        }
        item.seal();
    }

    /// `set`, `add`, `replace`, `cas` of a value at hand. Made twice: those who keep no copies pay one branch.
    fn put<const LOGS: bool>(self: &Arc<Self>, cx: Cx<'_>, put: &Put<'_>, value: &[u8]) -> Stored {
        let total = self.arena.overhead(put.key.len(), put.flags != 0) + value.len();
        if self.is_too_large(total) {
            return Stored::TooLarge;
        }
        let cas = self.next_cas(put.new_cas);
        let large = value.len() > COPY_MAX || put.key.len() > KEY_SHORT;
        let bin = match self.fit(total) {
            Fit::Slot(bin) if !large => bin,
            _ => {
                return self.put_new(cx, put, value.len(), &|write| write(value), cas);
            }
        };
        // As `find_to_store`, in line.
        let (mut guard, found) = self.look_up(cx, put.key, put.hash, true);
        if let Ok(place) = found
            && let Some(stored) =
                self.put_over::<LOGS>(cx, &mut guard, &place, put, value, bin, cas)
        {
            return stored;
        }
        drop(guard);
        let class = self.classes.class_of_bin(bin);
        let Some(mut slot) = self.take(cx, bin, class) else {
            return Stored::NoMemory;
        };
        let at = slot.write_head(&NewItem {
            key: put.key,
            hash: put.hash,
            length: value.len(),
            client_flags: put.flags,
            expires: put.expires,
            accessed: self.stamp(cx.now),
            large: false,
            verified: false,
            binary_key: put.binary_key,
        });
        slot.bytes_mut(at, value.len()).copy_from_slice(value);
        self.link(cx, put, slot, cas)
    }

    /// Stores a value of this length in memory of its own, whatever that takes.
    fn put_new(
        self: &Arc<Self>,
        cx: Cx<'_>,
        put: &Put<'_>,
        length: usize,
        value: &Pieces<'_>,
        cas: u64,
    ) -> Stored {
        let Some(mut upload) = self.allocate(cx, put, length) else {
            return Stored::NoMemory;
        };
        if upload.write_pieces(cx, value).is_err() {
            return Stored::NoMemory;
        }
        match upload.into_slot(cx, self) {
            Some(slot) => self.link(cx, put, slot, cas),
            None => Stored::NoMemory,
        }
    }

    /// Stores over the item that is there, in the slot it has. `None` if it needs one of bin `bin`, or
    /// one that is sorted elsewhere.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    fn put_over<'s, const LOGS: bool>(
        &'s self,
        cx: Cx<'_>,
        guard: &mut PairGuard<'s>,
        place: &Place<'s>,
        put: &Put<'_>,
        value: &[u8],
        bin: u8,
        cas: u64,
    ) -> Option<Stored> {
        let item = guard.item(place);
        let word = item.word();
        if word.bin() != bin || word.has(flag::LARGE) || self.is_temporary(cx.now, put.expires) {
            return None;
        }
        let mut marks = if put.binary_key { flag::BINARY_KEY } else { 0 };
        let expires = match self.judge(cx, put, Some(&item)) {
            Verdict::Refuse(stored) => return Some(stored),
            Verdict::Store => put.expires,
            Verdict::StoreStale {
                token_sent,
                expires,
            } => {
                marks |= flag::STALE | if token_sent { flag::TOKEN_SENT } else { 0 };
                expires
            }
        };
        // May itself log something, where a flush has come due.
        let stamp = self.stamp(cx.now);
        let held = match LOGS {
            true => self.hold_log(&guard.item(place), put.key),
            false => None,
        };
        if !self.overwrite(cx, guard, place, put.flags, 0, &[value]) {
            return None;
        }
        let item = guard.item(place);
        self.renew_at(stamp, &item, cas, expires, marks);
        if let Some(held) = held {
            self.log_held(&item, put.key, held);
        }
        Some(self.stored(cas, self.classes.class_of_bin(bin), value.len()))
    }

    /// `append` and `prepend`. `value` calls its argument with the pieces of the new bytes.
    fn extend(
        self: &Arc<Self>,
        cx: Cx<'_>,
        put: &Put<'_>,
        added: usize,
        value: &Pieces<'_>,
    ) -> Stored {
        let cas = self.next_cas(put.new_cas);
        loop {
            let (mut guard, found) = self.find_to_store(cx, put.key, put.hash);
            let Ok(place) = found else {
                match self.judge(cx, put, None) {
                    Verdict::Refuse(stored) => return stored,
                    _ => {
                        drop(guard);
                        let fresh = Put {
                            mode: Mode::Add,
                            cas: None,
                            new_cas: Some(cas),
                            expires: put.vivify.unwrap_or(0),
                            ..*put
                        };
                        match self.put_new(cx, &fresh, added, value, cas) {
                            Stored::NotStored => continue,
                            stored => return stored,
                        }
                    }
                }
            };
            let item = guard.item(&place);
            if let Verdict::Refuse(stored) = self.judge(cx, put, Some(&item)) {
                return stored;
            }
            let (word, handle, old_length) = (item.word(), item.handle(), item.length());
            let (flags, expires) = (item.client_flags(), item.head().expires.load(Relaxed));
            let length = old_length + added;
            let total = self.arena.overhead(put.key.len(), flags != 0) + length;
            if self.is_too_large(total) {
                return Stored::NotStored;
            }
            let plain = Put {
                flags,
                expires,
                new_cas: Some(cas),
                binary_key: false,
                ..*put
            };
            if length <= COPY_MAX && !word.has(flag::LARGE) {
                let mut scratch = [0; COPY_MAX];
                let mut filled = 0;
                value(&mut |piece| {
                    scratch[filled..filled + piece.len()].copy_from_slice(piece);
                    filled += piece.len();
                });
                let keep = if put.mode == Mode::Append {
                    old_length
                } else {
                    0
                };
                if keep == 0 {
                    item.pieces(|piece| {
                        scratch[filled..filled + piece.len()].copy_from_slice(piece);
                        filled += piece.len();
                    });
                }
                let before = self.before(&item);
                if self.overwrite(cx, &mut guard, &place, flags, keep, &[&scratch[..filled]]) {
                    let item = guard.item(&place);
                    self.renew(cx, &item, cas, expires, 0);
                    self.log_stored(&item, before);
                    return self.stored(cas, self.classes.class_of_bin(word.bin()), length);
                }
            }
            let item = guard.item(&place);
            // A large value is held in place and copied without the lock; a small one is copied out.
            let pin = item.pin();
            let mut small = Vec::new();
            if pin.is_none() {
                item.pieces(|piece| small.extend_from_slice(piece));
            }
            let version = Version {
                handle,
                length: old_length,
                cas: item.cas(),
            };
            drop(guard);
            let mut held = pin.map(|pinned| super::read::hold(self, pinned));
            if let Some(held) = held.as_mut().filter(|_| added > 0) {
                match self.extend_chain(cx, &plain, held, version, added, value) {
                    Ok(Some(stored)) => return stored,
                    Ok(None) => {}
                    Err(_) => return Stored::NotStored,
                }
            }
            let Some(mut upload) = self.allocate(cx, &plain, length) else {
                return Stored::NotStored;
            };
            if upload
                .write_joined(cx, put.mode, value, &small, held.as_ref())
                .is_err()
            {
                return Stored::NotStored;
            }
            drop(held);
            let Some(slot) = upload.into_slot(cx, self) else {
                return Stored::NoMemory;
            };
            if let Some(stored) = self.link_over(cx, &plain, slot, cas, version, Some(value)) {
                return stored;
            }
        }
    }

    /// Links a slot in the place of one certain version of an item; nothing if that is gone. `added`:
    /// that value goes on with this one, and has otherwise not changed.
    pub(super) fn link_over<'s>(
        &'s self,
        cx: Cx<'_>,
        put: &Put<'_>,
        slot: Slot<'s>,
        cas: u64,
        version: Version,
        added: Option<&Pieces<'_>>,
    ) -> Option<Stored> {
        let (mut guard, found) = self.find_to_store(cx, put.key, put.hash);
        let same = found.ok().filter(|place| {
            let item = guard.item(place);
            item.handle() == version.handle
                && item.length() == version.length
                && item.cas() == version.cas
        });
        let Some(place) = same else {
            drop(guard);
            self.give(slot);
            return None;
        };
        self.arena.set_cas(slot.handle(), cas);
        let item = slot.item();
        item.seal();
        let (class, length) = (self.class_of(&item), item.length());
        self.note_expiry(slot.handle(), put.expires);
        self.count_in(cx, &item);
        let word = guard.item(&place).word();
        let state = if word.state() == State::Temp {
            State::Temp
        } else {
            State::Main
        };
        let rank = (state, word.counter().min(1));
        let (before, old) = self.replace(cx, &mut guard, &place, slot, rank);
        let item = guard.item(&place);
        match added {
            Some(added) => {
                let was = (version.cas, version.length);
                self.log_extended(&item, before, put.mode, was, added);
            }
            None => self.log_stored(&item, before),
        }
        drop(guard);
        if let Some(old) = old {
            self.give(old);
        }
        Some(self.stored(cas, class, length))
    }
}

impl Store {
    /// Takes a CAS id that no item will have.
    pub fn use_up_cas(&self) {
        self.inner.next_cas(None);
    }

    /// Stores a value that is at hand. On `TooLarge` and `NoMemory` nothing has changed: the caller
    /// decides whether the old item goes.
    #[inline]
    pub fn put(&self, cx: Cx<'_>, put: &Put<'_>, value: &[u8]) -> Stored {
        match put.mode {
            Mode::Append | Mode::Prepend => {
                if self.refuses(put, value.len()) {
                    return Stored::TooLarge;
                }
                self.inner
                    .extend(cx, put, value.len(), &|write| write(value))
            }
            _ if self.inner.journal.is_some() => self.inner.put::<true>(cx, put, value),
            _ => self.inner.put::<false>(cx, put, value),
        }
    }

    fn refuses(&self, put: &Put<'_>, length: usize) -> bool {
        let inner = &self.inner;
        let total = inner.arena.overhead(put.key.len(), put.flags != 0) + length;
        inner.is_too_large(total)
    }

    /// Memory for a value of `length` bytes that will arrive piece by piece.
    pub fn begin(&self, cx: Cx<'_>, put: &Put<'_>, length: usize) -> Result<Upload, Refused> {
        if self.refuses(put, length) {
            return Err(Refused::TooLarge);
        }
        self.inner
            .allocate(cx, put, length)
            .ok_or(Refused::NoMemory)
    }

    /// The bytes of an upload that have all arrived and that will not be linked.
    pub fn withdraw(&self, cx: Cx<'_>, mut upload: Upload) -> Vec<u8> {
        upload.tree = None;
        let mut value = Vec::new();
        if let Some(slot) = upload.into_slot(cx, &self.inner) {
            let item = slot.item();
            value.reserve_exact(item.length());
            item.pieces(|piece| value.extend_from_slice(piece));
            self.inner.give(slot);
        }
        value
    }

    /// Links an upload whose bytes have all arrived.
    pub fn finish(&self, cx: Cx<'_>, put: &Put<'_>, upload: Upload) -> Stored {
        assert_eq!(upload.missing(), 0, "an upload is linked when it is whole");
        let inner = &self.inner;
        let Some(slot) = upload.into_slot(cx, inner) else {
            return Stored::NoMemory;
        };
        match put.mode {
            Mode::Append | Mode::Prepend => {
                let item = slot.item();
                let stored =
                    inner.extend(cx, put, item.length(), &|write| item.pieces(&mut *write));
                inner.give(slot);
                stored
            }
            _ => {
                let cas = inner.next_cas(put.new_cas);
                inner.link(cx, put, slot, cas)
            }
        }
    }
}
