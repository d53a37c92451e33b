#![forbid(unsafe_code)]
//! Counters and events, as hot code writes them. Who reads them is not known here.

// Per-thread counters, written by one thread and read by any.
pub mod counters;

// How many clients are connected, and whether more are let in.
pub mod admission;

// What happens, as `watch` tells it.
pub mod events;

// What wakes a thread that sleeps until there is something to do.
pub mod bell;

// Counts per key prefix.
pub mod prefix;

// One row per live connection.
pub mod board;

pub use admission::Admission;
pub use bell::Bell;
pub use board::Board;
pub use counters::{ClassCounters, Counter, Registry, ThreadCounters};
pub use events::Taps;
pub use prefix::Prefixes;
