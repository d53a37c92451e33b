//! Replication between programs of their own, broken on purpose: signals, and a connection that fails.
//!
//! Every test runs in short form. The long forms, with their figures, are
//! `cargo test --test failures -- --ignored --nocapture --test-threads=1`; `LARDER_PROGRAM` names another
//! build of the program for them, as a release one.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/dice.rs"]
mod dice;

mod crashes;
mod damage;
mod faults;
mod mixed;
mod network;
mod nodes;
mod syncing;
mod votes;
mod writers;
