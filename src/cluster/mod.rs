//! Other servers: which of them has a key ([`ring`]), what becomes of a request on its way to them
//! ([`route`]), how they fare ([`health`]), what too many want of them ([`hotkey`]), and what
//! passes between them and clients ([`proxy`]).
#![forbid(unsafe_code)]

// Deletes that wait for a server to come back.
pub mod deletes;

// Which dialects a server takes.
pub mod dialects;

// Whether a server may be asked.
pub mod health;

// Keys that are asked for far more often than others.
pub mod hotkey;

// Rates, and numbers of things at a time.
pub mod limit;

// Groups of nodes behind a proxy.
pub mod groups;

// Who belongs to a pool, as it changes.
pub mod membership;

// Key to server.
pub mod ring;

// What happens to a request between client and server.
pub mod route;

// Requests under another key, or with another life.
pub mod rewrite;

// A server as all workers know it.
pub mod target;

// What one client is owed, in order.
pub mod slots;

// One connection to a server.
pub mod upstream;

// Where answers go.
pub mod front;

// The pools of one configuration.
pub mod plan;

// Requests on their way to servers and back.
pub mod proxy;

// Copies of a store on other nodes.
pub mod replication;

// Who leads a group of copies, where a service outside decides.
pub mod election;

#[cfg(test)]
#[path = "../../tests/common/dice.rs"]
mod dice;

pub use plan::Cluster;

/// A hash of a key for uses inside one process: matching answers with keys, choosing a share of them.
#[inline]
pub fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// The part of it that a key is matched by.
#[inline]
fn tag(key: &[u8]) -> u32 {
    key_hash(key) as u32
}
