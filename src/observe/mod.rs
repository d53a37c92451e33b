#![forbid(unsafe_code)]
//! Counters and events, as hot code writes them. Who reads them is not known here.

/// Per-thread counters, written by one thread and read by any.
pub mod counters;

/// How many clients are connected, and whether more are let in.
pub mod admission;

pub use admission::Admission;
pub use counters::{ClassCounters, Counter, ThreadCounters};
