//! `larder proxy`: what runs in place of the workers that serve from the store.
#![forbid(unsafe_code)]

// What one client says, and what is done about it.
mod client;

// Requests as they are sent on.
mod request;

// `stats` of a proxy.
mod stats;

// One thread with its share of the clients, and connections of its own to all servers.
mod worker;

pub use worker::Worker;
