//! Finding what is intact in the pages of a process that has crashed.
//!
//! Nothing that is read here is believed: every number is checked against the page it comes from
//! before it leads anywhere, and an item counts only if its check does. The table and the lists of
//! free slots, which may have been in the middle of a change, are not looked at but made anew.

use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

use super::super::merkle;
use super::head::flag;
use super::{Arena, Handle, Item, KEY_SHORT, PAGE, PageTable, State};
use crate::settings::KEY_LONGEST;

/// Pages that nobody else uses, for as long as this lives.
pub struct Salvage<'a> {
    arena: &'a Arena,
    pages: &'a PageTable,
}

/// An item that has been found intact.
pub struct Intact<'a> {
    item: Item<'a>,
}

impl<'a> Intact<'a> {
    pub fn item(&self) -> Item<'a> {
        self.item
    }
}

impl<'a> Salvage<'a> {
    /// The borrows make sure that nothing has been handed out yet.
    pub fn new(arena: &'a mut Arena, pages: &'a mut PageTable) -> Salvage<'a> {
        Salvage { arena, pages }
    }

    pub fn arena(&self) -> &'a Arena {
        self.arena
    }

    /// The page behind the last that a bin has.
    pub fn end(&self) -> u32 {
        let last = (1..self.pages.len() as u32)
            .rev()
            .find(|&page| self.pages.entry(page).bin().is_some());
        last.map_or(1, |page| page + 1)
    }

    /// Slot size of a page, and how many of its slots have ever been handed out.
    fn cut(&self, page: u32) -> Option<(usize, usize)> {
        let entry = self.pages.entry(page);
        let bin = entry.bin()?;
        let known = usize::from(bin) < self.arena.bins();
        let size = known.then(|| self.arena.slot_size(bin))?;
        Some((size, entry.carved().min(PAGE / size)))
    }

    fn slots(&self, page: u32) -> impl Iterator<Item = Handle> + use<'a> {
        let (size, count) = self.cut(page).unwrap_or_default();
        let arena = self.arena;
        (0..count).map(move |slot| arena.handle(page, slot, size))
    }

    /// Shows the intact items of a page, and gives up the others; returns how many those were. Different
    /// pages may be looked at by different threads.
    pub fn inspect(&self, page: u32, mut each: impl FnMut(Intact<'a>)) -> u64 {
        let mut lost = 0;
        for handle in self.slots(page) {
            if !self.arena.head(handle).word().linked() {
                continue;
            }
            match self.check(handle) {
                Some(item) => each(Intact { item }),
                None => {
                    lost += 1;
                    self.drop(handle);
                }
            }
        }
        lost
    }

    /// Gives up an item that was found: its slot will be free.
    pub fn drop(&self, handle: Handle) {
        self.arena.head(handle).set_state(State::Free);
    }

    /// The item in a slot, if all of it is as it was sealed.
    fn check(&self, handle: Handle) -> Option<Item<'a>> {
        let arena = self.arena;
        let head = arena.head(handle);
        let word = head.word();
        let bin = word.bin();
        let known = flag::CLIENT
            | flag::FETCHED
            | flag::STALE
            | flag::TOKEN_SENT
            | flag::BINARY_KEY
            | flag::LARGE
            | flag::VERIFIED
            | flag::LONG;
        let large = word.has(flag::LARGE);
        if self.pages.entry(arena.page_of(handle)).bin() != Some(bin)
            || word.flags() & !known != 0
            || word.has(flag::LONG) && !large
        {
            return None;
        }
        let room = arena.slot_size(bin).checked_sub(arena.value_offset(word))?;
        let length = head.length.load(Relaxed) as usize;
        let (keys, key_length, lead) = match arena.long_cells(handle, word) {
            None => (1..=KEY_SHORT, word.key_length(), 0),
            Some(long) => (
                KEY_SHORT + 1..=KEY_LONGEST,
                long.key_length(),
                long.key_length(),
            ),
        };
        if !keys.contains(&key_length) {
            return None;
        }
        if large && arena.first_chunk(handle).is_some() {
            let rest = (lead + length).checked_sub(room)?;
            self.check_chain(handle, arena.first_chunk(handle), rest)?;
        } else if lead + length > room {
            return None;
        }
        if let Some(digests) = arena.first_digests(handle) {
            self.check_chain(handle, Some(digests), merkle::bytes_for(length))?;
        }
        // SAFETY: nobody else uses the arena, and key, flags and value lie within the slot and, if
        // there are chunks, within theirs.
        let item = unsafe { arena.item(handle) };
        if !item.intact() {
            return None;
        }
        if large {
            arena.forget_pins(handle);
        }
        Some(item)
    }

    /// Whether the chunks behind an item's slot are its own and hold so many bytes.
    fn check_chain(&self, owner: Handle, first: Option<Handle>, mut rest: usize) -> Option<()> {
        let mut next = first;
        while let Some(chunk) = next {
            let size = self.size_of_slot(chunk)?;
            let head = self.arena.head(chunk);
            let used = head.length.load(Relaxed) as usize;
            let fits = head.word().state() == State::Chunk
                && Some(head.word().bin()) == self.pages.entry(self.arena.page_of(chunk)).bin()
                && self.arena.chunk(chunk).owner() == Some(owner)
                && (1..=Arena::chunk_room(size)).contains(&used);
            if !fits {
                return None;
            }
            // Every chunk takes something off, so that a ring of them comes to an end.
            rest = rest.checked_sub(used)?;
            next = self.arena.chunk(chunk).next();
        }
        (rest == 0).then_some(())
    }

    /// The size of the slot that a handle leads to, if it leads to one.
    fn size_of_slot(&self, handle: Handle) -> Option<usize> {
        let page = self.arena.page_of(handle);
        if page == 0 || page as usize >= self.pages.len() {
            return None;
        }
        let (size, count) = self.cut(page)?;
        let at = self.arena.place_in_page(handle);
        (at.is_multiple_of(size) && at / size < count).then_some(size)
    }

    /// Adds the chunks of an item that was found to those in use.
    pub fn note_chunks(&self, item: Handle, used: &mut HashSet<Handle>) {
        if !self.arena.head(item).word().has(flag::LARGE) {
            return;
        }
        for first in [self.arena.first_chunk(item), self.arena.first_digests(item)] {
            let mut next = first;
            while let Some(chunk) = next {
                used.insert(chunk);
                next = self.arena.chunk(chunk).next();
            }
        }
    }

    /// Makes a page one whose slots are the items not given up, which are shown, chunks in use, and free
    /// ones. If there are free ones only, it belongs to no bin any more.
    pub fn rebuild(&self, page: u32, chunks: &HashSet<Handle>, mut each: impl FnMut(&Item<'a>)) {
        let mut soonest = u32::MAX;
        let mut carved = 0;
        let mut free = Vec::new();
        for handle in self.slots(page) {
            let head = self.arena.head(handle);
            let word = head.word();
            carved += 1;
            head.set_queued(false);
            if word.linked() {
                let expires = head.expires.load(Relaxed);
                if expires != 0 {
                    soonest = soonest.min(expires);
                }
                // The rings are gone, and with them the items' places there.
                head.demote(word.counter());
                // SAFETY: what is still linked has been checked, and nobody else uses the arena.
                each(&unsafe { self.arena.item(handle) });
            } else if word.state() != State::Chunk || !chunks.contains(&handle) {
                head.set_state(State::Free);
                free.push(handle);
            }
        }
        self.pages.rebuild(self.arena, page, carved, &free, soonest);
    }
}
