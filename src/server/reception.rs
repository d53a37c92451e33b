#![forbid(unsafe_code)]
//! What workers do alike when clients come and go, be they a server's or a proxy's.

use std::sync::Arc;

use mio::{Interest, Registry, Token};

use super::listener::{Arrival, Inbox};
use crate::command::Shared;
use crate::net::Stream;
use crate::observe::ThreadCounters;
use crate::observe::board::{Activity, Row};
use crate::observe::events::{self, Peer, Reason};

/// A worker's door to its clients.
#[derive(Clone, Copy)]
pub struct Reception<'w> {
    pub registry: &'w Registry,
    pub shared: &'w Shared,
    pub counters: &'w ThreadCounters,
}

impl Reception<'_> {
    /// Takes a client in: TLS, the poll, its row for `stats conns`. `None` if that cannot be; it has
    /// been counted out, then.
    pub fn admit(&self, arrival: Arrival, token: Token, now: u32) -> Option<(Stream, Arc<Row>)> {
        let number = arrival.stream.number();
        let stream = match &self.shared.keyring {
            Some(keyring) => arrival.stream.secure(keyring, arrival.tls),
            None => Ok(arrival.stream),
        };
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                log::warn!("cannot begin TLS: {error}");
                self.shared.admission.leave();
                return None;
            }
        };
        // Before the row is there nothing can be asked of it: the first event comes later.
        let registered = self
            .registry
            .register(&mut stream, token, Interest::READABLE);
        if let Err(error) = registered {
            log::warn!("cannot watch a connection: {error}");
            self.shared.admission.leave();
            return None;
        }
        let row = self.shared.board.enter(
            number,
            &stream.peer(),
            Some(arrival.listener),
            Activity::NewCommand,
            now,
        );
        if self.counters.log.wants(events::CONNECTIONS) {
            self.counters.log.connection_new(peer(&stream), number);
        }
        log::debug!("<{number} new {} client connection", arrival.protocol);
        Some((stream, row))
    }

    /// Asks to be told when a client takes bytes, from now on: one that has been slow will be so
    /// again. False if the system refuses.
    pub fn watch_writable(&self, stream: &mut Stream, token: Token) -> bool {
        let both = Interest::READABLE | Interest::WRITABLE;
        let registered = self.registry.reregister(stream, token, both);
        if let Err(error) = &registered {
            log::warn!("cannot watch a connection: {error}");
        }
        registered.is_ok()
    }

    /// Closes a client's connection, which also takes it out of the poll.
    pub fn dismiss<C>(
        &self,
        mut client: C,
        stream: impl Fn(&mut C) -> &mut Stream,
        reason: Reason,
    ) {
        let stream = stream(&mut client);
        let number = stream.number();
        if self.counters.log.wants(events::CONNECTIONS) {
            let log = &self.counters.log;
            log.connection_closed(peer(stream), reason, number);
        }
        log::debug!("<{number} connection closed.");
        // The number may be taken again as soon as the descriptor is closed.
        self.shared.board.leave(number);
        drop(client);
        self.shared.admission.leave();
    }
}

/// What another thread calls when it has something for a connection.
pub fn caller(inbox: &Arc<Inbox>, connection: usize) -> impl Fn() + Send + Sync + use<> {
    let inbox = inbox.clone();
    move || {
        if inbox.call(connection)
            && let Err(error) = inbox.wake()
        {
            log::warn!("cannot wake a worker: {error}");
        }
    }
}

fn peer(stream: &Stream) -> Peer {
    match stream.peer_address() {
        Some(address) => Peer::Tcp(address.ip(), address.port()),
        None => Peer::Local,
    }
}
