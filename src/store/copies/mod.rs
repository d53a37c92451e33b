#![forbid(unsafe_code)]
//! What those who keep copies need of the store: its mutations told to the [`journal`],
//! records applied, and walks that see every item.
//!
//! The leader logs under the lock of the pair: whoever reads an item under that lock and then asks for
//! the end of its partition's log knows which records the item contains. A follower hides what is
//! dead and takes it out when the leader says so; what it must give up for want of memory it marks.

// What the log is told of mutations.
mod log;

// What a follower is told to do.
mod apply;

// Walks that see every item.
mod walk;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

pub use apply::Extended;
pub use log::take_logged;
pub(in crate::store) use log::{Before, Why, log_flush};
pub use walk::Seen;

use super::journal::{self, Journal, Role};
use super::raw::{Item, flag};
use super::{Cx, Store};

/// An item's marks as records have them.
fn marks(item: &Item<'_>) -> u8 {
    let word = item.head().word();
    [
        (flag::STALE, journal::record::STALE),
        (flag::TOKEN_SENT, journal::record::TOKEN_SENT),
        (flag::BINARY_KEY, journal::record::BINARY_KEY),
    ]
    .iter()
    .filter(|(flag, _)| word.has(*flag))
    .fold(0, |marks, (_, mark)| marks | mark)
}

fn digest(item: &Item<'_>, place: u64) -> u64 {
    journal::item_digest(
        place,
        item.cas(),
        item.client_flags(),
        marks(item),
        item.length(),
    )
}

impl Store {
    /// There is one if copies are kept.
    #[inline]
    pub fn journal(&self) -> Option<&Arc<Journal>> {
        self.inner.journal.as_ref()
    }

    /// Items in the table, dead ones included.
    pub fn items(&self) -> u64 {
        self.inner.table.items() as u64
    }

    /// The last CAS id given out.
    pub fn last_cas(&self) -> u64 {
        self.inner.cas.load(Relaxed)
    }

    /// CAS ids go on behind this one.
    pub fn raise_cas(&self, past: u64) {
        self.inner.cas.fetch_max(past, Relaxed);
    }

    /// Takes a CAS id.
    pub fn take_cas(&self) -> u64 {
        self.inner.next_cas(None)
    }

    /// From here on this store decides for itself.
    pub fn lead(&self, cx: Cx<'_>) {
        if let Some(journal) = &self.inner.journal {
            journal.set_role(Role::Leader);
        }
        self.inner.request_crawl(cx.now, u64::MAX);
    }

    /// From here on another store's records decide.
    pub fn follow(&self) {
        if let Some(journal) = &self.inner.journal {
            journal.set_role(Role::Follower);
        }
    }
}

#[cfg(test)]
mod tests;
