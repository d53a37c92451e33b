//! Larder, a memcached server. (The architecture prose goes here.)

/// Seconds since start, and expiry times.
pub mod clock;

/// Key hashes.
pub mod hash;

/// Every option as plain data.
pub mod settings;

/// Counters and events, as written by hot code.
pub mod observe;

/// Bytes to requests and responses to bytes.
pub mod protocol;

/// Sockets and buffers.
pub mod net;

/// Items in memory.
pub mod store;

/// Counters and events, as read by people.
pub mod admin;

/// What a request does: protocol and store joined.
pub mod command;

/// Threads, sockets, who runs what.
pub mod server;

/// The command line.
pub mod cli;
