#![forbid(unsafe_code)]
//! Counters and events, as hot code writes them. Who reads them is not known here.

/// Per-thread counters, written by one thread and read by any.
pub mod counters;

pub use counters::{ClassCounters, Counter, ThreadCounters};
