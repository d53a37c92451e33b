#![forbid(unsafe_code)]
//! Counters and events, as people read them. Nothing here knows dialects or sockets: numbers go to
//! an [`Emit`], lines for watchers into buffers that the server sends from.

// `stats`, `stats settings`, `stats conns`
pub mod stats;

// `stats items`, `stats slabs`, `stats sizes`
pub mod stats_store;

// `watch`
pub mod watch;

use crate::clock::Clock;
use crate::observe::{Admission, Board, Registry};
use crate::settings::Settings;
use crate::store::Store;

pub use watch::{Subscription, Watchers};

/// Where a name and its value go.
pub type Emit<'a> = dyn FnMut(std::fmt::Arguments<'_>, std::fmt::Arguments<'_>) + 'a;

/// Everything that is looked at.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub settings: &'a Settings,
    pub clock: &'a Clock,
    pub store: &'a Store,
    pub registry: &'a Registry,
    pub board: &'a Board,
    pub admission: &'a Admission,
    pub watchers: &'a Watchers,
    /// When the files of TLS were read, on the server's clock.
    pub certificates_read: u32,
    pub verbosity: u32,
}
