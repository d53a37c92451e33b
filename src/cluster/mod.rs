//! Other servers: which of them has a key ([`ring`]), and how they fare.
#![forbid(unsafe_code)]

pub mod ring;
