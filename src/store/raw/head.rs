//! What stands at the head of each slot, and the names of slots.

use std::num::NonZeroU32;
use std::sync::atomic::{
    AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed},
};

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
pub struct Word(pub(super) u32);

const COUNTER_SHIFT: u32 = 8;
const COUNTER_MASK: u32 = 0b11 << COUNTER_SHIFT;
pub(super) const STATE_SHIFT: u32 = 10;
pub(super) const STATE_MASK: u32 = 0b111 << STATE_SHIFT;
/// Numbers that [`Word::standing`] gives.
pub const STANDINGS: usize = 1 << 5;
/// The slot stands in its bin's HOT ring, whatever has become of it since.
pub(super) const QUEUED: u32 = 1 << 13;

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
pub(super) const CAS: usize = size_of::<u64>();
/// A checksum of what an item holds.
pub(super) const CHECK: usize = size_of::<u32>();
/// Pins and next chunk.
pub(super) const EXTENSION: usize = 8;
/// The first slot of the digests, behind those two.
pub(super) const TREE: usize = 4;
/// Length and hash of a long key, at the end of the extension.
pub(super) const LONG: usize = 12;
/// The pin word's mark of an item that has been unlinked.
pub(super) const UNLINKED: u32 = 1 << 31;
