#![forbid(unsafe_code)]
//! Copies of a store on other nodes: one leads, the others follow.
//!
//! Everything here is state machines over (bytes, now): they do no I/O, read no clock and hold no
//! thread, so that tests run thousands of histories with faults from a seed. The server gives them
//! sockets and time.
//!
//! * [`session`] is one connection: the handshake, then a [`source`] on the side that has the items
//!   and a [`sink`] on the one that copies them.
//! * [`group`] is what a leader knows of its copies together: who is in sync, who has what, which
//!   prepared mutations may be committed.
//! * [`history`] tells how far two logs are the same; [`frame`] and [`message`] are the wire.
//! * `compare` is how two copies find what differs, and `segments` what of a long value does; [`data`]
//!   is what is asked of the items.
//!
//! Positions, partitions and digests are the [journal](crate::store::journal)'s.

// How two copies find what differs.
mod compare;

// What is asked of the items.
pub mod data;

// What has happened, for the log.
pub mod diary;

// Items for servers that know nothing of copies.
pub mod export;

// Checksummed frames.
pub mod frame;

// Who is in sync, who has what.
pub mod group;

// Who led when.
pub mod history;

// What frames say.
pub mod message;

// What threads share.
pub mod replicas;

// Long values of which a copy has parts.
mod segments;

// One connection.
pub mod session;

// The side that copies.
pub mod sink;

// Other nodes' clocks.
pub mod skew;

// The side that has the items.
pub mod source;

// Who waits for copies.
pub mod waiting;

#[cfg(test)]
mod linearizable;
#[cfg(test)]
mod model;
#[cfg(test)]
mod simulation;

/// When something happens, in milliseconds: on the node's own clock, which never goes back, and since 1970
/// by the one on the wall.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub now: u64,
    pub unix_ms: u64,
}

/// Something is said at least so often, in milliseconds.
pub const HEARTBEAT: u64 = 250;

/// A copy that has heard nothing for so long connects anew: within a second of the silence's beginning,
/// however long it takes to look, and to dial.
pub const SUSPECT: u64 = 800;

/// Nobody waits longer for the other side.
pub const DEAD: u64 = 3000;

/// A copy that takes nothing for so long is out of sync: within two seconds, as above.
pub const NO_PROGRESS: u64 = 1750;

/// Votes that take longer are not waited for.
pub const VOTE_TIMEOUT: u64 = 500;

/// An outside agreement on who is in sync that takes longer is not waited for.
pub const AGREE_TIMEOUT: u64 = 400;

/// A copy that has come so often lately has to stay before it counts as in sync.
pub const FLAPS: usize = 3;
/// What is lately.
pub const FLAP_WINDOW: u64 = 60_000;
/// How long it has to stay.
pub const FLAP_PROBATION: u64 = 5000;

/// Bytes that may be on their way to a copy.
pub const WINDOW: u64 = 8 << 20;

/// Bytes of prepared mutations that a copy keeps for one partition.
pub const PREPARED_MAX: usize = 16 << 20;

/// Clocks that are further apart, in milliseconds, are an alarm: expiry times follow the leader's then.
pub const SKEW_ALARM: i64 = 1000;

/// How fast values are compared.
pub const SCRUB_BYTES_PER_SECOND: u64 = 50 << 20;

/// A digest goes into the log of a partition that has changed at least so often.
pub const DIGEST_EVERY: u64 = 9_500;
