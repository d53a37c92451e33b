//! Pages cut into slots, and which of the slots are free.
//!
//! Each page keeps its own list of free slots, so that a whole page can be taken from its bin
//! without a search. Pages with a free slot hang in their bin's list of partial pages. A page is
//! cut as it fills: slots from `carved` on have never been used and are not in the list.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{Arena, Handle, PAGE, Region, ReserveError, Slot, Source, State};

/// What is known of one page. Written under the mutex of the bin it belongs to.
#[repr(C)]
pub struct PageEntry {
    /// Bin plus one; 0 is a page that no bin has.
    bin: AtomicU32,
    carved: AtomicU32,
    free_count: AtomicU32,
    free_head: AtomicU32,
    next: AtomicU32,
    previous: AtomicU32,
    /// Where it stands in its bin's list of pages.
    position: AtomicU32,
    /// No item in it expires before this; `u32::MAX` when none expires.
    soonest: AtomicU32,
}

impl PageEntry {
    pub fn bin(&self) -> Option<u8> {
        self.bin.load(Relaxed).checked_sub(1).map(|bin| bin as u8)
    }

    pub fn soonest_expiry(&self) -> u32 {
        self.soonest.load(Relaxed)
    }

    pub fn set_soonest_expiry(&self, at: u32) {
        self.soonest.store(at, Relaxed);
    }

    /// An item that expires at `at` (0 is never) lives here. Takes no lock: two writers may race,
    /// and the later expiry may win; the lazy check still finds the other item.
    #[inline]
    pub fn expires_at(&self, at: u32) {
        if at != 0 && at < self.soonest.load(Relaxed) {
            self.soonest.fetch_min(at, Relaxed);
        }
    }

    /// Slots that have ever been handed out.
    pub fn carved(&self) -> usize {
        self.carved.load(Relaxed) as usize
    }
}

/// One entry for every page of the arena.
pub struct PageTable {
    region: Region,
    pages: usize,
}

impl PageTable {
    pub fn reserve(source: &mut Source, pages: usize) -> Result<PageTable, ReserveError> {
        let bytes = pages * size_of::<PageEntry>();
        Ok(PageTable {
            region: source.region(bytes, bytes)?,
            pages,
        })
    }

    /// Pages there are, page 0 included.
    pub fn len(&self) -> usize {
        self.pages
    }

    /// Bytes of the entries of all pages.
    pub fn bytes(&self) -> usize {
        self.region.bytes()
    }

    /// A checksum over all entries, for when nobody changes them.
    pub fn digest(&self) -> u64 {
        self.region.digest(self.pages * size_of::<PageEntry>())
    }

    /// Makes the entry of a page anew, of whose slots those in `free` are free.
    pub(super) fn rebuild(
        &self,
        arena: &Arena,
        page: u32,
        carved: usize,
        free: &[Handle],
        soonest: u32,
    ) {
        let entry = self.entry(page);
        if free.len() == carved {
            entry.bin.store(0, Relaxed);
            return;
        }
        let mut head = 0;
        for &handle in free.iter().rev() {
            arena.head(handle).expires.store(head, Relaxed);
            head = handle.raw();
        }
        entry.carved.store(carved as u32, Relaxed);
        entry.free_head.store(head, Relaxed);
        entry.free_count.store(free.len() as u32, Relaxed);
        entry.soonest.store(soonest, Relaxed);
    }

    /// Gives the memory of a page that no bin has back to the system.
    pub fn discard(&self, arena: &Arena, page: u32) {
        assert!(self.entry(page).bin().is_none());
        // SAFETY: no bin has the page, and whoever calls this got it from `BinPages::remove_page` and
        // has not passed it on yet.
        unsafe { arena.discard(page) }
    }

    pub fn entry(&self, page: u32) -> &PageEntry {
        assert!((page as usize) < self.pages);
        // SAFETY: within the region, aligned, zeroed at first (a valid entry), and only ever used as
        // entries, all of whose fields are atomics.
        unsafe {
            &*self
                .region
                .base()
                .as_ptr()
                .cast::<PageEntry>()
                .add(page as usize)
        }
    }
}

/// The pages of one bin; whoever has a reference to this holds the bin's mutex.
pub struct BinPages {
    bin: u8,
    size: usize,
    per_page: usize,
    pages: Vec<u32>,
    /// First page with a free slot; 0 is none.
    partial: u32,
    used: usize,
}

impl BinPages {
    /// A bin without pages. `bin` must be used for one `BinPages` of an arena only.
    pub fn new(bin: u8, arena: &Arena) -> BinPages {
        let size = arena.slot_size(bin);
        BinPages {
            bin,
            size,
            per_page: PAGE / size,
            pages: Vec::new(),
            partial: 0,
            used: 0,
        }
    }

    pub fn size(&self) -> usize {
        self.size
    }

    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Whether a slot can be had without another page.
    pub fn has_free(&self) -> bool {
        self.partial != 0
    }

    /// Slots handed out.
    pub fn used(&self) -> usize {
        self.used
    }

    pub fn capacity(&self) -> usize {
        self.pages.len() * self.per_page
    }

    /// Adds a page that no bin has.
    pub fn add_page(&mut self, table: &PageTable, page: u32) {
        let entry = table.entry(page);
        assert!(page != 0 && entry.bin().is_none());
        entry.bin.store(u32::from(self.bin) + 1, Relaxed);
        entry.carved.store(0, Relaxed);
        entry.free_count.store(0, Relaxed);
        entry.free_head.store(0, Relaxed);
        entry.position.store(self.pages.len() as u32, Relaxed);
        entry.soonest.store(u32::MAX, Relaxed);
        self.pages.push(page);
        self.push_partial(table, page);
    }

    /// Takes over a page that was this bin's in an earlier process. False if that cannot be.
    pub fn adopt_page(&mut self, table: &PageTable, page: u32) -> bool {
        let entry = table.entry(page);
        let (carved, free) = (entry.carved(), entry.free_count.load(Relaxed) as usize);
        if entry.bin() != Some(self.bin) || carved > self.per_page || free > carved {
            return false;
        }
        entry.position.store(self.pages.len() as u32, Relaxed);
        entry.next.store(0, Relaxed);
        entry.previous.store(0, Relaxed);
        self.pages.push(page);
        self.used += carved - free;
        if self.has_room(entry) {
            self.push_partial(table, page);
        }
        true
    }

    /// Takes a page away all of whose slots are free.
    pub fn remove_page(&mut self, table: &PageTable, page: u32) {
        let entry = table.entry(page);
        assert!(
            entry.bin() == Some(self.bin)
                && entry.free_count.load(Relaxed) == entry.carved.load(Relaxed)
        );
        self.drop_partial(table, page);
        let position = entry.position.load(Relaxed) as usize;
        self.pages.swap_remove(position);
        if let Some(&moved) = self.pages.get(position) {
            table.entry(moved).position.store(position as u32, Relaxed);
        }
        entry.bin.store(0, Relaxed);
    }

    /// Hangs a page out of the list of partial pages, so that none of its slots is handed out.
    pub fn close_page(&mut self, table: &PageTable, page: u32) {
        if self.has_room(table.entry(page)) {
            self.drop_partial(table, page);
        }
        table.entry(page).next.store(CLOSED, Relaxed);
    }

    /// Undoes [`close_page`](BinPages::close_page).
    pub fn open_page(&mut self, table: &PageTable, page: u32) {
        let entry = table.entry(page);
        if entry.next.load(Relaxed) == CLOSED {
            entry.next.store(0, Relaxed);
            if self.has_room(entry) {
                self.push_partial(table, page);
            }
        }
    }

    /// Slots of a page that are in use.
    pub fn used_in(&self, table: &PageTable, page: u32) -> usize {
        let entry = table.entry(page);
        (entry.carved.load(Relaxed) - entry.free_count.load(Relaxed)) as usize
    }

    fn has_room(&self, entry: &PageEntry) -> bool {
        entry.free_count.load(Relaxed) > 0 || entry.carved() < self.per_page
    }

    fn push_partial(&mut self, table: &PageTable, page: u32) {
        let entry = table.entry(page);
        entry.next.store(self.partial, Relaxed);
        entry.previous.store(0, Relaxed);
        if self.partial != 0 {
            table.entry(self.partial).previous.store(page, Relaxed);
        }
        self.partial = page;
    }

    fn drop_partial(&mut self, table: &PageTable, page: u32) {
        let entry = table.entry(page);
        let (next, previous) = (entry.next.load(Relaxed), entry.previous.load(Relaxed));
        if next == CLOSED {
            return;
        }
        if previous != 0 {
            table.entry(previous).next.store(next, Relaxed);
        } else {
            self.partial = next;
        }
        if next != 0 {
            table.entry(next).previous.store(previous, Relaxed);
        }
    }

    /// A free slot, if there is one.
    pub fn take<'a>(&mut self, table: &PageTable, arena: &'a Arena) -> Option<Slot<'a>> {
        let page = self.partial;
        if page == 0 {
            return None;
        }
        let entry = table.entry(page);
        let handle = match Handle::from_raw(entry.free_head.load(Relaxed)) {
            Some(handle) => {
                entry
                    .free_head
                    .store(arena.head(handle).expires.load(Relaxed), Relaxed);
                entry
                    .free_count
                    .store(entry.free_count.load(Relaxed) - 1, Relaxed);
                arena.head(handle).set_state(State::Busy);
                handle
            }
            None => {
                let carved = entry.carved();
                entry.carved.store(carved as u32 + 1, Relaxed);
                let handle = arena.handle(page, carved, self.size);
                arena.head(handle).reset();
                handle
            }
        };
        if !self.has_room(entry) {
            self.drop_partial(table, page);
        }
        self.used += 1;
        // SAFETY: a slot in a free list, or never used, is known to nobody; it is in neither now.
        Some(unsafe { arena.slot(handle, self.bin) })
    }

    /// Takes a slot back.
    pub fn give(&mut self, table: &PageTable, arena: &Arena, slot: Slot<'_>) {
        let handle = slot.handle();
        let page = arena.page_of(handle);
        let entry = table.entry(page);
        assert_eq!(entry.bin(), Some(self.bin));
        let had_room = self.has_room(entry);
        let head = arena.head(handle);
        debug_assert_ne!(head.word().state(), State::Free);
        head.set_state(State::Free);
        head.expires.store(entry.free_head.load(Relaxed), Relaxed);
        entry.free_head.store(handle.raw(), Relaxed);
        entry
            .free_count
            .store(entry.free_count.load(Relaxed) + 1, Relaxed);
        self.used -= 1;
        if !had_room && entry.next.load(Relaxed) != CLOSED {
            self.push_partial(table, page);
        }
    }

    /// The hash of the key of an item of this bin, if the slot holds a linked one; `hash` computes it.
    pub fn peek_hash(
        &self,
        table: &PageTable,
        arena: &Arena,
        handle: Handle,
        hash: impl Fn(&[u8]) -> u64,
    ) -> Option<u64> {
        if table.entry(arena.page_of(handle)).bin() != Some(self.bin) {
            return None;
        }
        // SAFETY: slots of this bin are handed out by `take`, which borrows `self` mutably.
        unsafe { arena.peek_hash(handle, hash) }
    }
}

/// `next` of a page that hands out no slots.
const CLOSED: u32 = u32::MAX;
