//! The memory of all items: where slots lie, and what their heads and extensions hold.

use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed},
};

use super::head::{
    CAS, CHECK, EXTENSION, HEAD, Handle, Head, LONG, State, TREE, UNLINKED, Word, flag,
};
use super::item::Item;
use super::long::{KEY_SHORT, LongCells};
use super::slot::{Pinned, Slot};
use super::{PAGE, Region, ReserveError, Source};

/// Cells of [`Arena::notes`].
pub const NOTES: usize = 32;

/// The memory of all items.
pub struct Arena {
    region: Region,
    /// A handle is an offset shifted right by this.
    shift: u32,
    /// Header of an item: 24 bytes, 8 less without CAS, 4 more with a check.
    pub(super) header: usize,
    cas: bool,
    checked: bool,
    /// Slot size of each bin; the last bin's slots are what large values are chained of.
    sizes: Vec<u32>,
}

impl Arena {
    /// Reserves room for `least` to `most` bytes of pages. `sizes` are the slot sizes of the bins,
    /// which are rounded up to what the range demands.
    pub fn reserve(
        source: &mut Source,
        least: usize,
        most: usize,
        cas: bool,
        checked: bool,
        sizes: &[usize],
    ) -> Result<Arena, ReserveError> {
        // Page 0 is not used, so that no handle is 0.
        let region = source.region(least + PAGE, most + PAGE)?;
        let mut shift = 3;
        while (region.bytes() >> shift) > u32::MAX as usize {
            shift += 1;
        }
        let sizes = sizes
            .iter()
            .map(|&size| (size.next_multiple_of(1 << shift)) as u32)
            .collect();
        Ok(Arena {
            region,
            shift,
            header: HEAD + if cas { CAS } else { 0 } + if checked { CHECK } else { 0 },
            cas,
            checked,
            sizes,
        })
    }

    /// Slot size of a bin.
    #[inline]
    pub fn slot_size(&self, bin: u8) -> usize {
        self.sizes[usize::from(bin)] as usize
    }

    /// Bins, the one for chunks included.
    pub fn bins(&self) -> usize {
        self.sizes.len()
    }

    /// The bin of the slots that large values are chained of.
    pub fn chunk_bin(&self) -> u8 {
        (self.sizes.len() - 1) as u8
    }

    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Gives the memory of a page back to the system.
    ///
    /// # Safety
    /// No bin has the page.
    pub(super) unsafe fn discard(&self, page: u32) {
        // SAFETY: a page is a multiple of 4096 within the region, and without a bin nobody counts on
        // what it holds.
        unsafe { self.region.release(page as usize * PAGE, PAGE) }
    }

    /// Pages that fit; numbers below 1 and from here on are invalid.
    pub fn pages(&self) -> usize {
        self.region.bytes() / PAGE
    }

    /// Items carry a check of what they hold.
    pub fn checked(&self) -> bool {
        self.checked
    }

    pub fn has_cas(&self) -> bool {
        self.cas
    }

    /// Bytes of an item with these traits that do not hold its value: what its size class goes by.
    #[inline]
    pub fn overhead(&self, key_length: usize, client_flags: bool) -> usize {
        // The bins of small items have no room set aside for an extension.
        let extension = if key_length > KEY_SHORT {
            EXTENSION + TREE + LONG
        } else {
            0
        };
        self.header + key_length + if client_flags { 4 } else { 0 } + extension
    }

    /// Where the value of an item with this word begins in its slot; of one with a long key: where that
    /// begins, which comes before the value.
    #[inline]
    pub fn value_offset(&self, word: Word) -> usize {
        let client = if word.has(flag::CLIENT) { 4 } else { 0 };
        self.header + word.extension() + word.key_length() + client
    }

    /// What the size class of an item goes by; a moment old if its pair is not locked.
    pub fn total(&self, handle: Handle) -> usize {
        let head = self.head(handle);
        let word = head.word();
        let key_length = match self.long_cells(handle, word) {
            Some(long) => long.key_length(),
            None => word.key_length(),
        };
        self.overhead(key_length, word.has(flag::CLIENT)) + head.length.load(Relaxed) as usize
    }

    /// What the extension of an item with a long key says of it.
    pub(super) fn long_cells(&self, handle: Handle, word: Word) -> Option<LongCells<'_>> {
        if !(word.has(flag::LARGE) && word.has(flag::LONG)) {
            return None;
        }
        let at = self.header + word.extension() - LONG;
        // SAFETY: as in `extension`, of which these 12 bytes are the last.
        Some(LongCells::new(unsafe {
            &*self.at(handle).add(at).cast::<[AtomicU32; 3]>()
        }))
    }

    /// Value bytes that a chunk of `slot` bytes holds.
    pub fn chunk_room(slot: usize) -> usize {
        slot - HEAD
    }

    /// The slot number `slot` of a page whose slots have `size` bytes.
    pub fn handle(&self, page: u32, slot: usize, size: usize) -> Handle {
        debug_assert!(page > 0 && (slot + 1) * size <= PAGE);
        let offset = page as usize * PAGE + slot * size;
        Handle::from_raw((offset >> self.shift) as u32).expect("page 0 is not used")
    }

    pub fn page_of(&self, handle: Handle) -> u32 {
        (self.offset(handle) / PAGE) as u32
    }

    /// Where on its page a slot begins.
    pub(super) fn place_in_page(&self, handle: Handle) -> usize {
        self.offset(handle) % PAGE
    }

    #[inline]
    fn offset(&self, handle: Handle) -> usize {
        (handle.raw() as usize) << self.shift
    }

    #[inline]
    pub(super) fn at(&self, handle: Handle) -> *mut u8 {
        let offset = self.offset(handle);
        debug_assert!(offset + HEAD + CAS <= self.region.bytes());
        // SAFETY: handles are made by `handle` from pages within the region.
        unsafe { self.region.base().as_ptr().add(offset) }
    }

    /// The atomics at the head of a slot, whatever it is used for.
    #[inline]
    pub fn head(&self, handle: Handle) -> &Head {
        // SAFETY: the address is within the region and a multiple of 8; the region is mapped as long
        // as `self` lives; the first 16 bytes of a slot are only ever used as these atomics.
        unsafe { &*self.at(handle).cast::<Head>() }
    }

    /// The CAS of an item; 0 with `-C`.
    #[inline]
    pub fn cas(&self, handle: Handle) -> u64 {
        self.cas_cell(handle).map_or(0, |cell| cell.load(Relaxed))
    }

    #[inline]
    pub fn set_cas(&self, handle: Handle, cas: u64) {
        if let Some(cell) = self.cas_cell(handle) {
            let mask = self.check_mask(handle);
            cell.store(cas, Relaxed);
            self.change_check(handle, mask);
        }
    }

    /// Changes the expiry of a linked item, whose pair is locked.
    #[inline]
    pub fn set_expires(&self, handle: Handle, expires: u32) {
        let mask = self.check_mask(handle);
        self.head(handle).expires.store(expires, Relaxed);
        self.change_check(handle, mask);
    }

    /// Lets an item's check follow a change of its expiry or CAS, from what its mask was.
    #[inline]
    fn change_check(&self, handle: Handle, mask: u32) {
        if let Some(cell) = self.check_cell(handle) {
            cell.store(cell.load(Relaxed) ^ mask ^ self.check_mask(handle), Relaxed);
        }
    }

    /// What expiry and CAS do to an item's check; 0 without checks.
    #[inline]
    pub(super) fn check_mask(&self, handle: Handle) -> u32 {
        if !self.checked {
            return 0;
        }
        let expires = u64::from(self.head(handle).expires.load(Relaxed));
        let both = self.cas(handle).rotate_left(32) ^ expires;
        (both.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    }

    #[inline]
    pub(super) fn check_cell(&self, handle: Handle) -> Option<&AtomicU32> {
        // SAFETY: as in `head`: the last 4 bytes of an item's header are this atomic when the arena
        // has checks, and the header is a multiple of 4.
        self.checked
            .then(|| unsafe { &*self.at(handle).add(self.header - CHECK).cast::<AtomicU32>() })
    }

    #[inline]
    fn cas_cell(&self, handle: Handle) -> Option<&AtomicU64> {
        // SAFETY: as in `head`: bytes 16 to 24 of an item are this atomic when the arena has CAS.
        // In a chunk they are value bytes, but nobody asks a chunk for its CAS.
        self.has_cas()
            .then(|| unsafe { &*self.at(handle).add(HEAD).cast::<AtomicU64>() })
    }

    /// Counts one more reference to a large item whose pair is locked.
    #[inline(never)]
    pub(super) fn pin(&self, handle: Handle) -> Pinned {
        self.extension(handle)[0].fetch_add(1, Relaxed);
        Pinned {
            handle,
            length: self.head(handle).length.load(Relaxed) as usize,
        }
    }

    /// Pins, and the next chunk, of a large item.
    pub(super) fn extension(&self, handle: Handle) -> [&AtomicU32; 2] {
        // SAFETY: as in `head`: these 8 bytes of a large item are only ever used as two atomics, and
        // the header is a multiple of 4.
        unsafe {
            let cells = self.at(handle).add(self.header).cast::<AtomicU32>();
            [&*cells, &*cells.add(1)]
        }
    }

    /// What leads to the digests of a large item's value, if it may have some.
    pub(super) fn tree_cell(&self, handle: Handle) -> Option<&AtomicU32> {
        let word = self.head(handle).word();
        // SAFETY: as in `extension`, of which these 4 bytes are part then.
        (word.has(flag::LARGE) && word.has(flag::VERIFIED)).then(|| unsafe {
            let at = self.at(handle).add(self.header + EXTENSION);
            &*at.cast::<AtomicU32>()
        })
    }

    /// The first slot of the digests of a large item's value, which is a chunk like others.
    pub fn first_digests(&self, handle: Handle) -> Option<Handle> {
        Handle::from_raw(self.tree_cell(handle)?.load(Relaxed))
    }

    /// Asks for the cache lines at the head of a slot.
    #[inline]
    pub fn prefetch(&self, raw: u32) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let offset = (raw as usize) << self.shift;
            let at = self
                .region
                .base()
                .as_ptr()
                .wrapping_add(offset)
                .cast::<i8>();
            // SAFETY: a prefetch reads nothing that the program can see, and never faults.
            unsafe {
                _mm_prefetch(at, _MM_HINT_T0);
                _mm_prefetch(at.wrapping_add(64), _MM_HINT_T0);
                _mm_prefetch(at.wrapping_add(128), _MM_HINT_T0);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = raw;
    }

    /// # Safety
    /// The caller vouches for one of: the item is linked and its pair is locked for `'g`; it is
    /// pinned for `'g`; its slot is allocated and belongs to the caller for `'g`.
    #[inline]
    pub(super) unsafe fn item<'g>(&'g self, handle: Handle) -> Item<'g> {
        // SAFETY: it lies behind the start of a region, which is not null.
        let at = unsafe { NonNull::new_unchecked(self.at(handle)) };
        // SAFETY: as in `head`.
        let word = unsafe { at.cast::<Head>().as_ref() }.word();
        Item {
            arena: self,
            handle,
            word,
            at,
        }
    }

    /// # Safety
    /// The slot belongs to bin `bin`, and nobody but the caller refers to it until it is linked or
    /// given back.
    pub(super) unsafe fn slot(&self, handle: Handle, bin: u8) -> Slot<'_> {
        Slot {
            arena: self,
            handle,
            bin,
        }
    }

    /// The hash of a linked item's key; `hash` computes it.
    ///
    /// # Safety
    /// The slot is not handed out again meanwhile: the mutex of its bin is held.
    pub(super) unsafe fn peek_hash(
        &self,
        handle: Handle,
        hash: impl Fn(&[u8]) -> u64,
    ) -> Option<u64> {
        let word = self.head(handle).word();
        if !word.linked() {
            return None;
        }
        if let Some(long) = self.long_cells(handle, word) {
            return Some(long.hash());
        }
        let start = self.header + word.extension();
        // SAFETY: a linked item's key was written before its state was (release, acquire), never
        // changes while it is linked, and stays in place when it is unlinked until the slot is
        // handed out again, which the caller rules out.
        Some(hash(unsafe {
            std::slice::from_raw_parts(self.at(handle).add(start), word.key_length())
        }))
    }

    /// Takes back an item that is no longer in the table, unless it is pinned.
    ///
    /// # Safety
    /// The item was linked, its pair is locked, and no entry leads to it any more.
    pub(super) unsafe fn unlink(&self, handle: Handle) -> Option<Slot<'_>> {
        let head = self.head(handle);
        let word = head.word();
        head.set_state(State::Busy);
        if word.has(flag::LARGE) && self.extension(handle)[0].fetch_or(UNLINKED, AcqRel) != 0 {
            return None;
        }
        // SAFETY: no entry and no pin is left, so nobody but the caller knows the slot.
        Some(unsafe { self.slot(handle, word.bin()) })
    }

    /// No pin outlives its process.
    pub(super) fn forget_pins(&self, item: Handle) {
        self.extension(item)[0].store(0, Relaxed);
    }

    /// The first cells of the page that holds no items, for the store's own use.
    pub fn notes(&self) -> &[AtomicU64; NOTES] {
        // SAFETY: page 0 is mapped, aligned, and holds no slots; its first bytes are only ever used as
        // these atomics.
        unsafe { self.region.base().cast::<[AtomicU64; NOTES]>().as_ref() }
    }

    /// Hangs `new` where `old` hangs in an item's chain. False if it does not.
    pub(super) fn relink_chunk(&self, item: Handle, old: Handle, new: Handle) -> bool {
        let chains = [Some(self.extension(item)[1]), self.tree_cell(item)];
        for mut link in chains.into_iter().flatten() {
            while let Some(chunk) = Handle::from_raw(link.load(Relaxed)) {
                if chunk == old {
                    link.store(new.raw(), Relaxed);
                    return true;
                }
                link = &self.head(chunk).expires;
            }
        }
        false
    }

    /// The chunk behind a large item's first slot.
    pub fn first_chunk(&self, handle: Handle) -> Option<Handle> {
        Handle::from_raw(self.extension(handle)[1].load(Relaxed))
    }

    pub fn chunk(&self, handle: Handle) -> ChunkView<'_> {
        ChunkView {
            head: self.head(handle),
        }
    }
}

/// The fields of a chunk.
pub struct ChunkView<'a> {
    head: &'a Head,
}

impl ChunkView<'_> {
    pub fn next(&self) -> Option<Handle> {
        Handle::from_raw(self.head.expires.load(Relaxed))
    }

    /// The item it belongs to.
    pub fn owner(&self) -> Option<Handle> {
        Handle::from_raw(self.head.accessed.load(Relaxed))
    }
}
