#![forbid(unsafe_code)]
//! A server as all workers know it: where it is, how it fares, what it has been asked.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::net::{Stream, address};
use crate::settings::proxy::Address;

/// What has been counted of one server, by all workers.
#[derive(Debug, Default)]
pub struct Counts {
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    pub timeouts: AtomicU64,
    pub connects: AtomicU64,
    pub busy: AtomicU64,
    pub bytes_out: AtomicU64,
    pub bytes_in: AtomicU64,
}

/// One server.
#[derive(Debug)]
pub struct Target {
    pub place: Address,
    addresses: Mutex<Vec<SocketAddr>>,
    pub counts: Counts,
}

impl Target {
    /// Its name is looked up once; one that cannot be is looked up again later.
    pub fn new(place: Address) -> Target {
        let target = Target {
            place,
            addresses: Mutex::default(),
            counts: Counts::default(),
        };
        if let Err(error) = target.resolve() {
            log::warn!("{}: {}", target.place, address::reason(&error));
        }
        target
    }

    /// Looks its name up. This may take long: not for workers.
    ///
    /// # Errors
    /// The resolver's; the addresses known before stay.
    pub fn resolve(&self) -> io::Result<()> {
        if let Address::Tcp { host, port } = &self.place {
            let found = address::resolve(Some(host), *port)?;
            *self
                .addresses
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = found;
        }
        Ok(())
    }

    /// Begins to connect; attempts go round the addresses of its name.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(&self, attempt: u32) -> io::Result<Stream> {
        self.counts.connects.fetch_add(1, Relaxed);
        match &self.place {
            Address::Unix(path) => Stream::connect_local(path),
            Address::Tcp { .. } => {
                let addresses = self
                    .addresses
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                match addresses.get(attempt as usize % addresses.len().max(1)) {
                    Some(&address) => Stream::connect(address),
                    None => Err(io::ErrorKind::NotFound.into()),
                }
            }
        }
    }
}
