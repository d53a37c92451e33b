//! Larder, a memcached server.
//!
//! # Bird's eye view
//!
//! A client's bytes come in through [`net`], become a request in [`protocol`], are given meaning by
//! [`command`], which asks [`store`], and leave as reply bytes the way they came. [`server`] owns the
//! threads and sockets that make this happen; [`admin`] shows people what [`observe`] has counted.
//!
//! The modules below stand in the order of their layers: each uses only those above it in this file.
//! `protocol`, `net` and `store` do not know one another: bytes, sockets, items. `tests/layers.rs`
//! reads this file and keeps it true.
//!
//! | module | knows | never |
//! | --- | --- | --- |
//! | [`clock`] [`settings`] [`hash`] | nothing | does I/O |
//! | [`observe`] | how to count | asks who reads |
//! | [`protocol`] | three dialects, both directions | copies a key, sees an item or a socket |
//! | [`net`] | sockets, addresses, buffers | sees a request |
//! | [`store`] | items, memory, time as it is told | sees a client or a thread |
//! | [`cluster`] | other servers | sees a client or a command |
//! | [`admin`] | counters and events | decides anything |
//! | [`command`] | what a request means, once for all dialects | waits |
//! | [`server`] | threads, connections, who runs what | parses or stores |
//! | [`cli`] | how options are spelt | is known by anybody |
//!
//! # The life of a `get`
//!
//! A worker's poll says that a socket is readable. The connection reads into the worker's buffer,
//! takes requests off it until it has a batch, and for each key computes the hash and asks for the
//! bucket's cache line; then for the lines of the items whose tag matches; then it executes them in
//! order. A hit is copied once, under the bit of its bucket pair, from the item into the worker's
//! reply buffer; a value over 4 KiB is pinned instead and sent from where it lies. One write sends
//! the replies of the batch. Nothing is allocated, and no lock but the pair's bit is taken.
//!
//! # The life of a `set`
//!
//! A value that has arrived whole is stored in one step: over the old one where it stands, if its
//! slot is of the right size, else into a slot taken from the bin. A larger one is read from the socket
//! straight into its chunks, and linked when it is whole: nobody sees half a value, and a client that
//! dies half-way gives everything back.
//!
//! # Threads
//!
//! The main thread accepts and hands over. Each worker has one poll, its connections and its
//! buffers. Beside them: a clock, the maintainer and the crawler (which call the store's bounded
//! steps), a writer for watchers, one that waits for signals, one that keeps copies, and where etcd decides
//! who leads, one that asks it; where a follower sends mutations to its leader, a few that carry
//! them. Workers wait for none of them.
//!
//! # Invariants
//!
//! * Lock order: a bin's mutex, then a bucket pair's bit, and that only by trying. A worker that holds
//!   a pair's bit takes nothing else. Only the splitter of a pair holds two.
//! * Counters have one writer each; `stats` sums them. Nothing on a request's path is shared by all
//!   workers but the items themselves and two numbers (CAS ids, items in the table).
//! * What one client can make the server hold is bounded: an unfinished command, one value, and
//!   replies up to a limit beyond which nothing more is read from it; under TLS also a record on its
//!   way in and 64 KiB on their way out.
//! * Unsafe code is in `store/raw` and `server/process.rs`, each block with its reason. Every other
//!   file forbids it.
//!
//! # Deliberately absent
//!
//! Reference counts of small items (they are copied under their lock), links between items (the LRU is a
//! clock over slots), a second hash table while the first grows (it grows a pair at a time), callbacks
//! from below to above (whoever is above reads what lies below), and an async runtime.

// Seconds since start, and expiry times.
pub mod clock;

// Every option as plain data.
pub mod settings;

// Key hashes.
pub mod hash;

// Counters and events, as written by hot code.
pub mod observe;

// Bytes to requests and responses to bytes.
pub mod protocol;

// Sockets and buffers.
pub mod net;

// Items in memory.
pub mod store;

// Other servers: which one has a key, and how it fares.
pub mod cluster;

// Counters and events, as read by people.
pub mod admin;

// What a request does: protocol and store joined.
pub mod command;

// Threads, sockets, who runs what.
pub mod server;

// The command line.
pub mod cli;
