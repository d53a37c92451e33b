//! Slots of the arena: items, chunks of large values, free slots.

use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use super::long::{KEY_SHORT, LongCells};
use super::{PAGE, Region, ReserveError, Source};

/// A slot, by its place in the arena. Zero is no slot, so page 0 is never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(NonZeroU32);

impl Handle {
    pub fn from_raw(raw: u32) -> Option<Handle> {
        NonZeroU32::new(raw).map(Handle)
    }

    pub fn raw(self) -> u32 {
        self.0.get()
    }
}

/// What a slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// In its page's free list, or never used.
    Free = 0,
    /// Allocated and not linked: being filled, or on its way back.
    Busy = 1,
    /// Linked, new.
    Hot = 2,
    /// Linked, swept by the hand.
    Main = 3,
    /// Linked, too short-lived to be worth sorting.
    Temp = 4,
    /// Part of a large value.
    Chunk = 5,
}

impl State {
    #[inline]
    const fn of(number: u32) -> State {
        match number {
            0 => State::Free,
            1 => State::Busy,
            2 => State::Hot,
            3 => State::Main,
            4 => State::Temp,
            _ => State::Chunk,
        }
    }

    /// What a [standing](Word::standing) is made of: state and counter.
    pub const fn of_standing(standing: usize) -> (State, u32) {
        let (state, counter) = (standing >> 2, standing & 0b11);
        (State::of(state as u32), counter as u32)
    }
}

/// Bits of an item's flag byte.
pub mod flag {
    /// Four bytes of client flags stand before the value.
    pub const CLIENT: u8 = 1;
    /// Read since it was stored.
    pub const FETCHED: u8 = 1 << 1;
    pub const STALE: u8 = 1 << 2;
    /// Somebody has been told to recache it.
    pub const TOKEN_SENT: u8 = 1 << 3;
    /// The key came as base64.
    pub const BINARY_KEY: u8 = 1 << 4;
    /// Has the extension with pins and the next chunk.
    pub const LARGE: u8 = 1 << 5;
    /// Of a large item: the extension also leads to the digests of its value.
    pub const VERIFIED: u8 = 1 << 6;
    /// Of a large item: its key is a long one, see [`super::super::long`].
    pub const LONG: u8 = 1 << 7;
}

/// The first 16 bytes of every slot.
#[repr(C)]
pub struct Head {
    /// Item: expiry on the server's clock. Chunk and free slot: the next one.
    pub expires: AtomicU32,
    /// Item: last access. Chunk: the item it belongs to.
    pub accessed: AtomicU32,
    word: AtomicU32,
    /// Item: bytes of the value. Chunk: bytes used.
    pub length: AtomicU32,
}

/// The four small fields of a head, read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word(u32);

const COUNTER_SHIFT: u32 = 8;
const COUNTER_MASK: u32 = 0b11 << COUNTER_SHIFT;
const STATE_SHIFT: u32 = 10;
const STATE_MASK: u32 = 0b111 << STATE_SHIFT;
/// Numbers that [`Word::standing`] gives.
pub const STANDINGS: usize = 1 << 5;
/// The slot stands in its bin's HOT ring, whatever has become of it since.
const QUEUED: u32 = 1 << 13;

impl Word {
    /// Bytes of the key, if it is not a long one: those count none here.
    #[inline]
    pub fn key_length(self) -> usize {
        (self.0 & 0xff) as usize
    }

    /// 0 to 3: how often it was hit since the hand last came by.
    #[inline]
    pub fn counter(self) -> u32 {
        (self.0 & COUNTER_MASK) >> 8
    }

    #[inline]
    pub fn state(self) -> State {
        State::of((self.0 & STATE_MASK) >> STATE_SHIFT)
    }

    /// State and counter as one number, below [`STANDINGS`].
    #[inline]
    pub fn standing(self) -> usize {
        ((self.0 & (STATE_MASK | COUNTER_MASK)) >> COUNTER_SHIFT) as usize
    }

    /// Of MAIN, and next to go: its counter is 0.
    #[inline]
    pub fn cold(self) -> bool {
        self.0 & (STATE_MASK | COUNTER_MASK) == (State::Main as u32) << STATE_SHIFT
    }

    /// After one more hit: marked as read, its counter one higher but not above `most`.
    #[inline]
    pub fn hit(self, most: u32) -> Word {
        let step = u32::from(self.counter() < most) << COUNTER_SHIFT;
        Word((self.0 + step) | u32::from(flag::FETCHED) << 16)
    }

    #[inline]
    pub fn queued(self) -> bool {
        self.0 & QUEUED != 0
    }

    #[inline]
    pub fn flags(self) -> u8 {
        (self.0 >> 16) as u8
    }

    #[inline]
    pub fn has(self, flag: u8) -> bool {
        self.flags() & flag != 0
    }

    #[inline]
    pub fn bin(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Bytes between the header and the key.
    #[inline]
    pub fn extension(self) -> usize {
        // One test for nearly all items; what lies behind it must not be done without a jump.
        if self.has(flag::LARGE) {
            self.extension_of_large()
        } else {
            0
        }
    }

    #[cold]
    #[inline(never)]
    fn extension_of_large(self) -> usize {
        let tree = if self.has(flag::VERIFIED) { TREE } else { 0 };
        let long = if self.has(flag::LONG) { LONG } else { 0 };
        EXTENSION + tree + long
    }

    #[inline]
    pub fn linked(self) -> bool {
        matches!(self.state(), State::Hot | State::Main | State::Temp)
    }

    #[inline]
    fn with_state(self, state: State) -> Word {
        Word(self.0 & !STATE_MASK | (state as u32) << STATE_SHIFT)
    }

    #[inline]
    pub fn with_counter(self, counter: u32) -> Word {
        Word(self.0 & !COUNTER_MASK | counter << 8)
    }

    #[inline]
    pub fn with_flags(self, flags: u8) -> Word {
        Word(self.0 & !(0xff << 16) | u32::from(flags) << 16)
    }
}

impl Head {
    #[inline]
    pub fn word(&self) -> Word {
        Word(self.word.load(Acquire))
    }

    /// Replaces `old` by `new`; says whether nobody else was faster. The word of a linked item
    /// changes under its pair's lock, but for HOT to MAIN and the counter, which the hand changes
    /// without: whoever loses the race leaves it.
    #[inline]
    pub fn change(&self, old: Word, new: Word) -> bool {
        self.word
            .compare_exchange(old.0, new.0, AcqRel, Relaxed)
            .is_ok()
    }

    /// Repeats until `edit` has been applied.
    pub fn update(&self, edit: impl Fn(Word) -> Word) -> Word {
        loop {
            let old = self.word();
            let new = edit(old);
            if self.change(old, new) {
                return new;
            }
        }
    }

    /// A slot that was never used: what stood here belongs to nobody.
    pub(super) fn reset(&self) {
        self.word
            .store((State::Busy as u32) << STATE_SHIFT, Relaxed);
    }

    pub fn set_state(&self, state: State) {
        self.update(|word| word.with_state(state));
    }

    /// To `state`, with this counter.
    pub fn place(&self, state: State, counter: u32) {
        self.update(|word| word.with_state(state).with_counter(counter));
    }

    /// HOT to MAIN, unless it is no longer HOT.
    pub fn demote(&self, counter: u32) -> bool {
        let old = self.word();
        old.state() == State::Hot
            && self.change(old, old.with_state(State::Main).with_counter(counter))
    }

    pub fn set_queued(&self, queued: bool) {
        self.update(|word| {
            Word(if queued {
                word.0 | QUEUED
            } else {
                word.0 & !QUEUED
            })
        });
    }
}

/// Bytes before the key of an item without CAS and without extension.
pub(super) const HEAD: usize = size_of::<Head>();
const CAS: usize = size_of::<u64>();
/// A checksum of what an item holds.
const CHECK: usize = size_of::<u32>();
/// Pins and next chunk.
const EXTENSION: usize = 8;
/// The first slot of the digests, behind those two.
const TREE: usize = 4;
/// Length and hash of a long key, at the end of the extension.
const LONG: usize = 12;
/// Cells of [`Arena::notes`].
pub const NOTES: usize = 32;
/// The pin word's mark of an item that has been unlinked.
const UNLINKED: u32 = 1 << 31;

/// The memory of all items.
pub struct Arena {
    region: Region,
    /// A handle is an offset shifted right by this.
    shift: u32,
    /// Header of an item: 24 bytes, 8 less without CAS, 4 more with a check.
    header: usize,
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
    fn check_mask(&self, handle: Handle) -> u32 {
        if !self.checked {
            return 0;
        }
        let expires = u64::from(self.head(handle).expires.load(Relaxed));
        let both = self.cas(handle).rotate_left(32) ^ expires;
        (both.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    }

    #[inline]
    fn check_cell(&self, handle: Handle) -> Option<&AtomicU32> {
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
    fn pin(&self, handle: Handle) -> Pinned {
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
    arena: &'g Arena,
    handle: Handle,
    word: Word,
    /// Where its slot begins.
    at: NonNull<u8>,
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
    fn bytes(&self, offset: usize, length: usize) -> &'g [u8] {
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
    fn value_offset(&self) -> usize {
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
struct Cursor {
    /// `None` is the item's own slot.
    chunk: Option<Handle>,
    begins: usize,
}

impl Cursor {
    /// The bytes of this part.
    fn rest<'g>(&self, item: &Item<'g>) -> &'g [u8] {
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

    fn next_piece(&mut self, item: &Item<'_>) -> bool {
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

/// A large item that stays where it is until [`Pinned::release`].
#[derive(Debug)]
pub struct Pinned {
    handle: Handle,
    length: usize,
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
    arena: &'a Arena,
    handle: Handle,
    bin: u8,
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
