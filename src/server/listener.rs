#![forbid(unsafe_code)]
//! Accepts connections and hands them to the workers, one after the other.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token, Waker};
use socket2::SockRef;

use super::control::Control;
use crate::net::{Acceptor, Listener, Stream};
use crate::observe::{Admission, ThreadCounters};
use crate::settings::{Ack, EndpointTls, Protocol};

/// How long accepting rests before the limit is looked at again.
const REST: Duration = Duration::from_millis(10);

/// The token of the waker; listeners have their index.
pub const WAKE: Token = Token(usize::MAX);

/// A connection on its way to a worker.
#[derive(Debug)]
pub struct Arrival {
    pub stream: Stream,
    /// Where it came in, as `stats conns` shows it.
    pub listener: Arc<str>,
    pub protocol: Protocol,
    pub tls: EndpointTls,
    /// The listener's tag.
    pub tag: Option<Arc<str>>,
    /// When its mutations are answered.
    pub ack: Option<Ack>,
}

/// Where a worker finds its new connections.
#[derive(Debug)]
pub struct Inbox {
    arrivals: Mutex<Vec<Arrival>>,
    /// Connections that other threads have something for.
    called: Mutex<Vec<usize>>,
    /// Set by the acceptor for the worker to see that it should end.
    end: AtomicBool,
    waker: Waker,
}

impl Inbox {
    pub fn new(waker: Waker) -> Inbox {
        Inbox {
            arrivals: Mutex::new(Vec::new()),
            called: Mutex::new(Vec::new()),
            end: AtomicBool::new(false),
            waker,
        }
    }

    /// Hands one over; the worker is not woken yet.
    pub fn put(&self, arrival: Arrival) {
        self.arrivals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(arrival);
    }

    /// What has arrived since the last call.
    pub fn take(&self) -> Vec<Arrival> {
        std::mem::take(&mut *self.arrivals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A connection is to have a turn. One that is gone by then, or another in its place, takes no harm.
    /// True: the worker has to be woken; it has not been for others.
    #[must_use]
    pub fn call(&self, connection: usize) -> bool {
        let mut called = self.called.lock().unwrap_or_else(PoisonError::into_inner);
        let first = called.is_empty();
        if !called.contains(&connection) {
            called.push(connection);
        }
        first
    }

    /// Those called since the last time.
    pub fn called(&self) -> Vec<usize> {
        std::mem::take(&mut *self.called.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// # Errors
    /// The system's.
    pub fn wake(&self) -> io::Result<()> {
        self.waker.wake()
    }

    /// Tells the worker to end.
    ///
    /// # Errors
    /// The system's.
    pub fn end(&self) -> io::Result<()> {
        self.end.store(true, Ordering::Release);
        self.wake()
    }

    pub fn ended(&self) -> bool {
        self.end.load(Ordering::Acquire)
    }
}

/// What the acceptor needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Clients that may be connected at a time.
    pub limit: usize,
    /// Tell those above the limit, and close; else let them wait.
    pub fast: bool,
    pub backlog: i32,
}

/// The loop of the thread that accepts.
#[derive(Debug)]
pub struct Listening {
    pub poll: Poll,
    pub listeners: Vec<Listener>,
    /// The listeners' addresses, as `stats conns` shows them.
    pub names: Vec<Arc<str>>,
    pub inboxes: Vec<Arc<Inbox>>,
    pub admission: Arc<Admission>,
    pub counters: Arc<ThreadCounters>,
    pub rules: Rules,
}

impl Listening {
    /// Runs until `control` says stop.
    ///
    /// # Errors
    /// The poll's.
    pub fn run(mut self, control: &Control) -> io::Result<()> {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            self.poll.registry().register(
                &mut listener.acceptor,
                Token(index),
                Interest::READABLE,
            )?;
        }
        let mut events = Events::with_capacity(64);
        let mut turn = 0;
        // Since when nobody is accepted, if so.
        let mut resting: Option<Instant> = None;
        while control.stopping().is_none() {
            match self.poll.poll(&mut events, resting.map(|_| REST)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let mut full = false;
            if let Some(since) = resting {
                if self.admission.open() >= self.rules.limit {
                    continue;
                }
                resting = None;
                self.set_backlog(self.rules.backlog);
                self.admission.resume(since.elapsed().as_micros() as u64);
                // Edges that came while resting are gone: every listener is asked.
                for index in 0..self.listeners.len() {
                    full |= self.accept_all(index, &mut turn);
                }
            } else {
                for event in events.iter() {
                    if event.token() != WAKE {
                        full |= self.accept_all(event.token().0, &mut turn);
                    }
                }
            }
            if full {
                resting = Some(Instant::now());
                self.set_backlog(0);
                self.admission.suspend();
            }
        }
        Ok(())
    }

    /// Accepts until no more wait. True if accepting has to rest.
    fn accept_all(&self, index: usize, turn: &mut usize) -> bool {
        let Some(listener) = self.listeners.get(index) else {
            return false;
        };
        let mut woken = vec![false; self.inboxes.len()];
        let full = loop {
            if !self.rules.fast && self.admission.open() >= self.rules.limit {
                break true;
            }
            let mut stream = match listener.acceptor.accept() {
                Ok(stream) => stream,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => break false,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => {
                        log::warn!("accept(): {error}");
                        // Out of descriptors or memory: whoever waits has to wait on.
                        break true;
                    }
                },
            };
            if !self.admission.admit(self.rules.limit) {
                self.counters.general.rejected_connections.add(1);
                // It may not arrive; the connection is closed either way.
                let _ = stream.write(b"ERROR Too many open connections\r\n");
                continue;
            }
            self.counters.general.total_connections.add(1);
            let to = *turn % self.inboxes.len();
            *turn = turn.wrapping_add(1);
            self.inboxes[to].put(Arrival {
                stream,
                listener: self.names[index].clone(),
                protocol: listener.protocol,
                tag: listener.tag.clone(),
                ack: listener.ack,
                tls: listener.tls,
            });
            woken[to] = true;
        };
        for (inbox, _) in self.inboxes.iter().zip(woken).filter(|(_, woken)| *woken) {
            if let Err(error) = inbox.wake() {
                log::error!("cannot wake a worker: {error}");
            }
        }
        full
    }

    /// With none, the kernel turns newcomers away itself.
    fn set_backlog(&self, backlog: i32) {
        for listener in &self.listeners {
            let set = match &listener.acceptor {
                Acceptor::Tcp(socket) => SockRef::from(socket).listen(backlog),
                Acceptor::Unix(socket) => SockRef::from(socket).listen(backlog),
            };
            if let Err(error) = set {
                log::warn!("listen(): {error}");
            }
        }
    }
}
