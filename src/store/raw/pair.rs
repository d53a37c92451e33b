//! A locked pair of buckets: the way to the items whose keys belong to it.

use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering::Relaxed;

use super::bucket::{
    Bucket, CHAINED, ENTRIES, Ghost, LINK, LIVE_SHIFT, SPILLED, fingerprint, home_of, put_entry,
    release, tag_of,
};
use super::salvage::Intact;
use super::slot::overwrite;
use super::table::{Spare, Table};
use super::{Arena, Handle, Item, KEY_SHORT, Slot, State};

/// Where a look-up begins, found without a lock: a hint.
#[derive(Clone, Copy)]
pub struct Spot<'t> {
    pub(super) geometry: u64,
    pub(super) buckets: &'t [Bucket; 2],
    /// An entry of the home bucket that looked like the key's; [`ENTRIES`] for none.
    pub(super) entry: u32,
}

impl Spot<'_> {
    /// Asks for the cache line of the home bucket.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let bucket = &self.buckets[home_of(hash)];
            // SAFETY: a prefetch reads nothing that the program can see.
            unsafe { _mm_prefetch(std::ptr::from_ref(bucket).cast(), _MM_HINT_T0) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = hash;
    }

    /// Asks for the cache lines of the items that the look-up will compare.
    #[inline]
    pub fn prefetch_items(&mut self, hash: u64, arena: &Arena) {
        let bucket = &self.buckets[home_of(hash)];
        let mut found = bucket.matches(tag_of(hash)) & bucket.live();
        self.entry = found.trailing_zeros();
        while found != 0 {
            arena.prefetch(bucket.handle(found.trailing_zeros() as usize));
            found &= found - 1;
        }
    }
}

/// Where an entry stands, for the guard that found it.
#[derive(Clone, Copy)]
pub struct Place<'t> {
    bucket: &'t Bucket,
    entry: usize,
}

impl Place<'_> {
    pub fn handle(&self) -> Handle {
        Handle::from_raw(self.bucket.handle(self.entry)).expect("a live entry has a handle")
    }
}

/// A locked pair: the only way to the items whose keys belong to it.
pub struct PairGuard<'t> {
    pub(super) table: &'t Table,
    pub(super) arena: &'t Arena,
    pub(super) buckets: &'t [Bucket; 2],
}

impl Drop for PairGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        release(&self.buckets[0].control);
    }
}

impl<'t> PairGuard<'t> {
    pub(super) fn arena(&self) -> &'t Arena {
        self.arena
    }

    /// The entry of a key, and its item; looks at the entry that the spot names first.
    #[inline(always)]
    pub fn find_at(&self, spot: &Spot<'t>, hash: u64, key: &[u8]) -> Option<(Place<'t>, Item<'_>)> {
        let entry = spot.entry as usize;
        let bucket = &self.buckets[home_of(hash)];
        // The other entries with this tag are other keys', if this one is the key's.
        if entry < ENTRIES && bucket.control() & 1 << (LIVE_SHIFT + spot.entry) != 0 {
            let place = Place { bucket, entry };
            let item = self.item(&place);
            if item.is_key(key) {
                return Some((place, item));
            }
        }
        let place = PairGuard::search(self.table, self.arena, self.buckets, hash, key)?;
        Some((place, self.item(&place)))
    }

    /// As [`find`](PairGuard::find); its parts are handed over in registers, so that nobody who only
    /// tries [`find_at`](PairGuard::find_at) has to lay out a guard in memory.
    #[inline(never)]
    fn search(
        table: &'t Table,
        arena: &'t Arena,
        buckets: &'t [Bucket; 2],
        hash: u64,
        key: &[u8],
    ) -> Option<Place<'t>> {
        let guard = ManuallyDrop::new(PairGuard {
            table,
            arena,
            buckets,
        });
        guard.find(hash, key)
    }

    /// The entry of a key.
    #[inline]
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<Place<'t>> {
        if key.len() > KEY_SHORT {
            return self.find_long(hash, key);
        }
        self.find_with(hash, |item| item.is_key(key))
    }

    #[cold]
    #[inline(never)]
    fn find_long(&self, hash: u64, key: &[u8]) -> Option<Place<'t>> {
        self.find_with(hash, |item| item.is_long_key(hash, key))
    }

    #[inline(always)]
    fn find_with(&self, hash: u64, is_key: impl Fn(&Item<'_>) -> bool) -> Option<Place<'t>> {
        let tag = tag_of(hash);
        let home = &self.buckets[home_of(hash)];
        let found = self.find_in(home, tag, &is_key);
        if found.is_some() || home.control() & SPILLED == 0 {
            return found;
        }
        self.find_spilled(hash, |this, bucket| this.find_in(bucket, tag, &is_key))
    }

    #[inline]
    fn find_in(
        &self,
        bucket: &'t Bucket,
        tag: u8,
        is_key: impl Fn(&Item<'_>) -> bool,
    ) -> Option<Place<'t>> {
        let mut found = bucket.matches(tag) & bucket.live();
        while found != 0 {
            let place = Place {
                bucket,
                entry: found.trailing_zeros() as usize,
            };
            if is_key(&self.item(&place)) {
                return Some(place);
            }
            found &= found - 1;
        }
        None
    }

    /// The entry of a slot.
    pub fn find_handle(&self, hash: u64, handle: Handle) -> Option<Place<'t>> {
        let tag = tag_of(hash);
        let look = |bucket: &'t Bucket| {
            let mut found = bucket.matches(tag) & bucket.live();
            while found != 0 {
                let place = Place {
                    bucket,
                    entry: found.trailing_zeros() as usize,
                };
                if place.handle() == handle {
                    return Some(place);
                }
                found &= found - 1;
            }
            None
        };
        look(&self.buckets[home_of(hash)])
            .or_else(|| self.find_spilled(hash, |_, bucket| look(bucket)))
    }

    /// Looks beyond the home bucket.
    #[cold]
    fn find_spilled(
        &self,
        hash: u64,
        look: impl Fn(&Self, &'t Bucket) -> Option<Place<'t>>,
    ) -> Option<Place<'t>> {
        let other = &self.buckets[1 - home_of(hash)];
        if let Some(place) = look(self, other) {
            return Some(place);
        }
        let mut bucket = &self.buckets[1];
        while bucket.control() & CHAINED != 0 {
            bucket = self.table.extension(bucket.handle(LINK));
            if let Some(place) = look(self, bucket) {
                return Some(place);
            }
        }
        None
    }

    /// The item of an entry.
    #[inline]
    pub fn item(&self, place: &Place<'t>) -> Item<'_> {
        // SAFETY: the entry is live and its pair is locked as long as `self` lives; whoever changes
        // the item through this guard borrows it mutably.
        unsafe { self.arena.item(place.handle()) }
    }

    /// As [`item`](PairGuard::item).
    pub fn item_of(&self, place: &Place<'_>) -> Item<'_> {
        // SAFETY: as in `item`.
        unsafe { self.arena.item(place.handle()) }
    }

    /// Changes the value of an item where it stands. See [`overwrite`] for what must fit. In line, for it
    /// nearly always gets one part.
    #[inline(always)]
    pub fn overwrite(
        &mut self,
        place: &Place<'t>,
        slot: usize,
        client_flags: u32,
        keep: usize,
        parts: &[&[u8]],
    ) {
        let item = self.item(place);
        let word = item.word();
        // An extension, or a long key, is none of those whose value changes where it stands.
        assert!(!word.has(super::flag::LARGE));
        let room = slot - self.arena.overhead(word.key_length(), client_flags != 0);
        let length = keep + parts.iter().map(|part| part.len()).sum::<usize>();
        assert!(length <= room && item.unpinned() && keep <= item.length());
        assert!(keep == 0 || (client_flags != 0) == word.has(super::flag::CLIENT));
        // SAFETY: the entry is live, its pair is locked and borrowed mutably, so no view of the
        // item is alive; it has no pins and cannot get one without the lock; the new bytes fit.
        unsafe { overwrite(self.arena, place.handle(), client_flags, keep, parts) }
    }

    /// The ghost of a key, which is laid to rest by this.
    pub fn take_ghost(&mut self, hash: u64) -> Option<Ghost> {
        let bucket = &self.buckets[home_of(hash)];
        let mut found = bucket.matches(tag_of(hash)) & !bucket.live() & bucket.usable();
        while found != 0 {
            let entry = found.trailing_zeros() as usize;
            let raw = bucket.handle(entry);
            if (raw >> 16) as u16 == fingerprint(hash) {
                bucket.set_tag(entry, 0);
                return Some(Ghost {
                    hot: raw & Ghost::HOT != 0,
                });
            }
            found &= found - 1;
        }
        None
    }

    /// Links a new item; its slot comes back if nothing is left to extend its pair with.
    pub fn insert(
        &mut self,
        hash: u64,
        slot: Slot<'t>,
        state: State,
        counter: u32,
    ) -> Result<(), Slot<'t>> {
        if !self.place(hash, slot.handle().raw(), None) {
            return Err(slot);
        }
        self.arena.head(slot.handle()).place(state, counter);
        self.table.items.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Links an item that an earlier process has left. False if nothing is left to extend
    /// its pair with.
    pub fn adopt(&mut self, hash: u64, found: &Intact<'_>) -> bool {
        let placed = self.place(hash, found.item().handle().raw(), None);
        if placed {
            self.table.items.fetch_add(1, Relaxed);
        }
        placed
    }

    /// Lets an entry lead to another item of its key, one that an earlier process has left.
    pub fn adopt_instead(&mut self, place: &Place<'t>, found: &Intact<'_>) {
        place.bucket.handles[place.entry].store(found.item().handle().raw(), Relaxed);
    }

    /// Takes out an entry whose item is given up.
    pub fn forget(&mut self, place: Place<'t>) {
        place.bucket.set_live(place.entry, false);
        place.bucket.set_tag(place.entry, 0);
        self.table.items.fetch_sub(1, Relaxed);
    }

    pub(super) fn place(&self, hash: u64, raw: u32, spare: Option<&mut Spare>) -> bool {
        let home = &self.buckets[home_of(hash)];
        if put_entry(home, tag_of(hash), raw) {
            return true;
        }
        home.set_flag(SPILLED);
        if put_entry(&self.buckets[1 - home_of(hash)], tag_of(hash), raw) {
            return true;
        }
        self.place_extended(hash, raw, spare)
    }

    #[cold]
    fn place_extended(&self, hash: u64, raw: u32, spare: Option<&mut Spare>) -> bool {
        let mut bucket = &self.buckets[1];
        while bucket.control() & CHAINED != 0 {
            bucket = self.table.extension(bucket.handle(LINK));
            if put_entry(bucket, tag_of(hash), raw) {
                return true;
            }
        }
        let number = match spare {
            Some(spare) => self.table.take_extension(spare),
            None => self.table.take_extension(&mut self.table.spare()),
        };
        let Some(number) = number else { return false };
        let extension = self.table.extension(number);
        extension.clear();
        // The last entry makes room for the link, and moves.
        if bucket.live() & 1 << LINK != 0 {
            put_entry(extension, bucket.tag(LINK), bucket.handle(LINK));
        }
        bucket.set_live(LINK, false);
        bucket.set_tag(LINK, 0);
        bucket.handles[LINK].store(number, Relaxed);
        bucket.set_flag(CHAINED);
        // What moved may have had its home here.
        for bucket in self.buckets {
            bucket.set_flag(SPILLED);
        }
        put_entry(extension, tag_of(hash), raw)
    }

    /// Links a new item in the place of an old one of the same key. Returns the old one's slot,
    /// unless it is pinned.
    pub fn replace(
        &mut self,
        place: &Place<'t>,
        slot: Slot<'t>,
        state: State,
        counter: u32,
    ) -> Option<Slot<'t>> {
        let old = place.handle();
        self.arena.head(slot.handle()).place(state, counter);
        place.bucket.handles[place.entry].store(slot.handle().raw(), Relaxed);
        // SAFETY: the item was linked, and its only entry now leads elsewhere.
        unsafe { self.arena.unlink(old) }
    }

    /// Moves an item to another slot of its bin. Returns the slot that it leaves, or the other one if
    /// the item is pinned.
    pub fn relocate(
        &mut self,
        place: &Place<'t>,
        mut slot: Slot<'t>,
        state: State,
    ) -> Result<Slot<'t>, Slot<'t>> {
        let item = self.item(place);
        if !item.unpinned() {
            return Err(slot);
        }
        slot.take_over(&item);
        let counter = item.word().counter();
        let left = self.replace(place, slot, state, counter);
        Ok(left.expect("an item without pins gives its slot back"))
    }

    /// Moves a chunk of an item to another slot of its bin. Returns the slot that it leaves, or the
    /// other one if the item is pinned or the chunk is not its.
    pub fn relocate_chunk(
        &mut self,
        place: &Place<'t>,
        chunk: Handle,
        mut slot: Slot<'t>,
    ) -> Result<Slot<'t>, Slot<'t>> {
        let item = self.item(place);
        if !item.unpinned() || !item.word().has(super::flag::LARGE) {
            return Err(slot);
        }
        let bin = slot.bin();
        slot.take_over_chunk(chunk);
        if !self.arena.relink_chunk(item.handle(), chunk, slot.handle()) {
            return Err(slot);
        }
        // The copy belongs to the item now, as the chunk did before.
        // SAFETY: the chunk was part of an item that is locked and has no pins, and hangs nowhere now.
        Ok(unsafe { self.arena.slot(chunk, bin) })
    }

    /// Takes an entry out, leaving a ghost if one is wanted; `age` is any clock that moves on.
    /// Returns the item's slot, unless somebody has it pinned: then it comes back with the last pin.
    pub fn remove(
        &mut self,
        place: Place<'t>,
        hash: u64,
        ghost: Option<(Ghost, u32)>,
    ) -> Option<Slot<'t>> {
        let handle = place.handle();
        place.bucket.set_live(place.entry, false);
        match ghost {
            Some((ghost, age)) => {
                place.bucket.handles[place.entry].store(ghost.encode(hash, age), Relaxed)
            }
            None => place.bucket.set_tag(place.entry, 0),
        }
        self.table.items.fetch_sub(1, Relaxed);
        // SAFETY: the item was linked, and its only entry is gone.
        unsafe { self.arena.unlink(handle) }
    }

    /// Shows every item of the pair.
    pub fn each<'g>(&'g self, mut visit: impl FnMut(Item<'g>)) {
        self.each_bucket(|bucket, _| {
            let live = bucket.live() & bucket.usable();
            for entry in (0..ENTRIES).filter(|entry| live & 1 << entry != 0) {
                if let Some(handle) = Handle::from_raw(bucket.handle(entry)) {
                    // SAFETY: the entry is live, and its pair is locked as long as the view lives.
                    visit(unsafe { self.arena.item(handle) });
                }
            }
        });
    }

    pub(super) fn each_bucket(&self, mut visit: impl FnMut(&Bucket, bool)) {
        visit(&self.buckets[0], true);
        let mut bucket = &self.buckets[1];
        visit(bucket, true);
        while bucket.control() & CHAINED != 0 {
            bucket = self.table.extension(bucket.handle(LINK));
            visit(bucket, false);
        }
    }

    pub(super) fn release_extensions(&self, spare: &mut Spare) {
        let mut bucket = &self.buckets[1];
        while bucket.control() & CHAINED != 0 {
            let number = bucket.handle(LINK);
            spare.free.push(number);
            bucket = self.table.extension(number);
        }
    }
}
