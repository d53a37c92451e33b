#![forbid(unsafe_code)]
//! Who leads a group of copies, where a service outside decides: etcd, or what a test puts in its place.
//!
//! ```text
//! /larder/C/g/G/leader        who leads, under a lease
//! /larder/C/g/G/isr           who has everything that was ever acknowledged
//! /larder/C/g/G/candidate/N   how much one has that would like to lead, under a lease
//! /larder/C/nodes/N           where a node is and what it belongs to, under a lease
//! ```
//! * [`directory`] is the service: requests out, answers in. [`wire`] puts them into its words,
//!   [`etcd`] carries these.
//! * [`elector`] is one node's part, a state machine over (answers, now).
//!
//! Why nobody is fooled:
//! * Whoever leads wrote the leader's key when there was none, in one transaction with the members in
//!   sync. The revision of that transaction is the epoch, so epochs rise.
//! * It takes mutations until half a second before its lease can have run out, counted from the
//!   beginning of the last renewal on a clock that never goes back.
//! * It may go on without etcd for as long as every copy in sync vouches: answering a heartbeat is a
//!   promise not to stand for two seconds, counted from answering by the copy and from sending by the
//!   leader. Nobody else may stand. Whoever stands does not vouch until the outcome is known.
//! * A copy is waited for before the service learns that it is in sync, and until the service knows
//!   that it is not.
//! * Members are processes, not machines: one that has restarted has nothing and is nobody's heir.

// The service.
pub mod directory;

// One node's part.
pub mod elector;

// The service over HTTP.
pub mod etcd;

// Requests and answers in the words of etcd's gateway.
pub mod wire;

/// The service in memory, over time as it is told: also what tests speak to over HTTP.
#[cfg(test)]
#[path = "../../../tests/common/gateway.rs"]
mod gateway;
#[cfg(test)]
mod simulation;

/// For so long a copy that has answered a heartbeat does not stand, in milliseconds.
pub const VOUCH: u64 = 2000;

/// So long before its lease can have run out a leader takes no more mutations, in milliseconds.
pub const MARGIN: u64 = 500;

/// Between a candidate and the next best, in milliseconds.
pub const RANK: u64 = 100;

/// What is known is read again so often, whether or not a change was told of, in milliseconds.
pub const POLL: u64 = 1000;

/// Before asking a service again that did not answer, in milliseconds.
pub const RETRY: u64 = 200;
