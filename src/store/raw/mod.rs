//! Raw memory: the only unsafe code of the store, behind types that cannot be misused.
//!
//! ```text
//! arena    one reserved range, pages of 64 KiB, each cut into slots of one size
//!
//! slot     0        4        8    9     10    11   12       16       24
//! item     expires  atime    nkey state flags bin  nbytes   cas      [pins next] key [flags] value
//! chunk    next     owner    0    state 0     bin  used     data
//! free     next     -        0    state -     bin
//!          (cas is absent with -C; pins and next stand only in items over 4 KiB of value, or with a long key)
//!
//! table    pairs of 64-byte buckets: 12 tags, control word, 12 handles
//! ```
//!
//! Who may touch what:
//! * The 16 bytes at the head of a slot, and all of the table, are atomics: reading them needs no
//!   lock, and can at worst show a state that is a moment old.
//! * Key and value bytes are reached through [`Item`] (borrowed from a locked pair, see
//!   [`PairGuard::item`]), [`Pinned`] (a counted reference to a large item) or [`Slot`] (a slot that was
//!   allocated and not yet linked: one owner). Nothing else makes a reference to them.
//! * A linked item's key never changes. Its value changes only under its pair's lock, and only
//!   while it has no pins, or none but that of whoever changes it.
//! * A slot goes back to its bin only after it was unlinked under its pair's lock and its last pin
//!   is gone; it is handed out again only under its bin's mutex.

mod ahead;
mod arena;
mod bucket;
mod chain;
mod file;
mod head;
mod item;
mod lock;
mod long;
mod memory;
mod pages;
mod pair;
mod salvage;
mod share;
mod slot;
mod table;

pub use ahead::{Signpost, prefetch, prefetch_bytes, prefetch_whole};
pub use arena::Arena;
pub use bucket::Ghost;
pub use chain::{Chain, ChainEdit, Link};
pub use file::{MemoryFile, Source};
pub use head::{Handle, Head, STANDINGS, State, Word, flag};
pub use item::Item;
pub use lock::{Held, Lock};
pub use long::KEY_SHORT;
pub use memory::{Region, ReserveError};
pub use pages::{BinPages, PageTable};
pub use pair::{PairGuard, Place, Spot};
pub use salvage::{Intact, Salvage};
pub use share::{Share, Words};
pub use slot::{NewItem, Parked, Pinned, Slot};
pub use table::{Table, TableState};

/// A page: what a bin grows by.
pub const PAGE: usize = 64 << 10;
