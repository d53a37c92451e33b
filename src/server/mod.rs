//! Threads, sockets, who runs what: builds everything, runs it, joins everything.

// What runs in place of the workers if it is a proxy.
mod proxy;

// How the server is told to stop.
pub mod control;

// Accepting connections.
pub mod listener;

// What workers do when clients come and go.
mod reception;

// One thread that serves its share of the clients.
mod worker;

// Requests that are run one after the other.
mod batch;

// What one client says, as a state machine over bytes.
pub mod conversation;

// What lies ahead in a client's input.
mod plan;

// Mutations on their way from a follower to its leader.
mod forward;

// One client's socket.
mod connection;

// UDP.
mod datagram;

// Copies on other nodes.
mod export;
mod replication;

// Who leads, where etcd decides.
mod election;

// Threads that keep the house.
mod background;

// One limit for all memory.
mod budget;

// Limits, user, daemon, pid file.
mod process;

// Signals.
mod signals;

// Word to the service manager.
mod notify;

// What `-vv` tells.
mod trace;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use mio::{Poll, Waker};

use budget::Budget;
use control::{Control, Stop};
use conversation::Limits;
use forward::Forward;
use listener::{Inbox, Listening, Rules};
use worker::Worker;

use crate::cluster::Cluster;
use crate::command::Shared;
use crate::command::auth::Credentials;
use crate::net::{Datagrams, Keyring, listen};
use crate::observe::board::Activity;
use crate::settings::{Endpoint, Settings};
use crate::store::Store;

/// The exit code for what the system refuses (EX_OSERR).
const REFUSED: i32 = 71;

/// The exit code for options that cannot be followed (EX_USAGE).
const USAGE: i32 = 64;

/// Why the server could not start or go on.
#[derive(Debug)]
pub struct Failure {
    /// One or more lines for the user.
    pub message: String,
    /// What the process exits with.
    pub code: i32,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure {
            message: error.to_string(),
            code: REFUSED,
        }
    }
}

/// A server whose sockets are bound and whose workers run; it accepts nobody before
/// [`serve`](Server::serve).
pub struct Server {
    shared: Arc<Shared>,
    control: Arc<Control>,
    listening: Listening,
    datagrams: Vec<SocketAddr>,
    copies: Option<SocketAddr>,
    inboxes: Vec<Arc<Inbox>>,
    workers: Vec<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    /// What a proxy is in front of.
    cluster: Option<Arc<Cluster>>,
}

impl Server {
    /// Builds everything that `settings` ask for.
    ///
    /// # Errors
    /// No memory, no socket, no thread.
    pub fn bind(mut settings: Settings) -> Result<Server, Failure> {
        add_listeners(&mut settings);
        let poll = Poll::new()?;
        let control = Arc::new(Control::new(Waker::new(poll.registry(), listener::WAKE)?));
        let keyring = Keyring::load(&settings.tls).map_err(|message| Failure {
            message,
            code: USAGE,
        })?;
        // Nobody is to find a server that is about to end for want of them.
        Credentials::load(&settings.security).map_err(|message| Failure { message, code: 1 })?;
        // Before the store: what a memory file holds must not be lost on a port in use.
        let sockets = listen::bind(&settings.listen).map_err(|error| Failure {
            message: error.to_string(),
            code: REFUSED,
        })?;
        let budget = settings.store.total_memory.map(Budget::new).transpose();
        let budget = budget.map_err(|message| Failure {
            message,
            code: USAGE,
        })?;
        if let Some(budget) = &budget {
            let items = &mut settings.store.max_bytes;
            *items = (*items).min(budget.limit());
        }
        let shared =
            Shared::new(settings, keyring).map_err(|message| Failure { message, code: 1 })?;
        let shared = Arc::new(shared);
        let settings = &shared.settings;
        if let Some(path) = &settings.process.port_file {
            sockets.announce(path);
        }

        let cluster = match &settings.proxy {
            Some(mode) => {
                let refused = |message| Failure {
                    message,
                    code: USAGE,
                };
                let cluster =
                    Cluster::new(mode.proxy.clone(), settings.server.threads, shared.rules);
                Some(Arc::new(cluster.map_err(refused)?))
            }
            None => None,
        };
        let (mut forward, mut carriers) = (None, Vec::new());
        if let Some(replicas) = &shared.replicas {
            let clients = sockets
                .listeners
                .iter()
                .find_map(|listener| listener.acceptor.local_address());
            let advertised = settings.replication.election.as_ref();
            let advertised = advertised.and_then(|election| election.advertise.clone());
            let here = || clients.map_or_else(String::new, |at| format!(":{}", at.port()));
            replicas.state().node.clients = advertised.unwrap_or_else(here);
            if settings.replication.forwards {
                let started = Forward::start(&shared, replicas, &control)?;
                (forward, carriers) = (Some(started.0), started.1);
            }
        }
        let mut inboxes = Vec::new();
        let mut workers = Vec::new();
        for number in 0..settings.server.threads.max(1) {
            let (inbox, worker) = match &cluster {
                Some(cluster) => start_proxy(number, &shared, &control, cluster)?,
                None => {
                    let datagrams = share(&sockets.datagrams, number, settings)?;
                    start_worker(number, &shared, &control, datagrams, forward.clone())?
                }
            };
            inboxes.push(inbox);
            workers.push(worker);
        }
        let mut copies = None;
        let mut others = carriers;
        others.extend([
            background::start_clock(shared.clock.clone(), control.clone())?,
            background::start_watch(&shared, control.clone())?,
            background::start_steps("maintainer", &shared, control.clone(), Store::maintain)?,
            background::start_steps("crawler", &shared, control.clone(), Store::crawl_step)?,
            background::start_steps("scrubber", &shared, control.clone(), Store::scrub_step)?,
        ]);
        if let Some(cluster) = &cluster {
            others.push(background::start_resolver(
                cluster.clone(),
                control.clone(),
            )?);
            others.push(background::start_scout(cluster.clone(), control.clone())?);
        }
        if let Some(budget) = budget {
            others.push(background::start_budget(budget, &shared, control.clone())?);
        }
        if let Some(replicas) = &shared.replicas {
            let (thread, address) = replication::start(&shared, replicas, control.clone())?;
            others.push(thread);
            others.extend(export::start(&shared, replicas, control.clone())?);
            copies = address;
            if let Some(election) = &settings.replication.election {
                let clients = sockets
                    .listeners
                    .iter()
                    .find_map(|listener| listener.acceptor.local_address());
                let thread = election::start(
                    settings,
                    election,
                    replicas,
                    clients,
                    copies,
                    control.clone(),
                )?;
                others.push(thread);
            }
        }

        for (class, size, chunks) in shared.store.classes() {
            log::debug!("slab class {class:3}: chunk size {size:9} perslab {chunks:7}");
        }
        let mut names: Vec<Arc<str>> = Vec::new();
        for listener in &sockets.listeners {
            let name: Arc<str> = listener.acceptor.name().into();
            let (number, now) = (listener.acceptor.number(), shared.clock.now());
            shared
                .board
                .enter(number, &name, None, Activity::Listening, now);
            let protocol = listener.protocol.name();
            log::debug!("<{number} server listening ({protocol})");
            names.push(name);
        }
        let listening = Listening {
            poll,
            names,
            listeners: sockets.listeners,
            inboxes: inboxes.clone(),
            admission: shared.admission.clone(),
            counters: shared.registry.register(),
            rules: Rules {
                limit: settings.server.max_connections,
                fast: settings.server.maxconns_fast,
                backlog: settings.listen.backlog,
            },
        };
        let datagrams = sockets
            .datagrams
            .iter()
            .filter_map(|datagrams| datagrams.socket.local_addr().ok())
            .collect();
        Ok(Server {
            copies,
            datagrams,
            shared,
            control,
            listening,
            inboxes,
            workers,
            others,
            cluster,
        })
    }

    /// What stops it, from any thread.
    pub fn control(&self) -> Arc<Control> {
        self.control.clone()
    }

    /// What a proxy is in front of; a configuration can be given to it while it runs.
    pub fn cluster(&self) -> Option<Arc<Cluster>> {
        self.cluster.clone()
    }

    /// Where copies connect to, if they may.
    pub fn copies_address(&self) -> Option<SocketAddr> {
        self.copies
    }

    /// The addresses it answers datagrams at.
    pub fn datagram_addresses(&self) -> &[SocketAddr] {
        &self.datagrams
    }

    /// The network addresses it can be connected to.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listening
            .listeners
            .iter()
            .filter_map(|listener| listener.acceptor.local_address())
            .collect()
    }

    /// Serves until told to stop, then ends every thread.
    ///
    /// # Errors
    /// Accepting has become impossible.
    pub fn serve(self) -> Result<Stop, Failure> {
        notify::tell(notify::READY);
        let served = self.listening.run(&self.control);
        notify::tell(notify::STOPPING);
        // Whoever sleeps has to wake, even if it was accepting that failed.
        let woken = self.control.stop(Stop::Normal);
        for inbox in &self.inboxes {
            inbox.end()?;
        }
        for thread in self.workers.into_iter().chain(self.others) {
            if thread.join().is_err() {
                return Err(Failure {
                    message: "a thread has panicked".to_owned(),
                    code: 1,
                });
            }
        }
        served?;
        woken?;
        let stop = self.control.stopping().unwrap_or(Stop::Normal);
        // Who wants items to outlive a crash wants them to outlive a plain stop, too.
        if stop == Stop::Graceful || self.shared.settings.store.crash_restart {
            self.shared
                .leave()
                .map_err(|message| Failure { message, code: 1 })?;
        }
        Ok(stop)
    }
}

/// The listeners that the configuration of a proxy names come on top of those of the command line.
fn add_listeners(settings: &mut Settings) {
    let Some(mode) = &settings.proxy else {
        return;
    };
    let own = &mode.proxy.listeners;
    let endpoints = &mut settings.listen.endpoints;
    if !own.is_empty() && endpoints.is_empty() {
        // No endpoint means all addresses; one more must not change that.
        endpoints.push(Endpoint::default());
    }
    endpoints.extend(own.iter().map(|listener| listener.endpoint.clone()));
}

/// A worker's share of the UDP sockets: of a single address, every worker serves it; of several,
/// each is served by one, as memcached has it.
fn share(all: &[Datagrams], worker: usize, settings: &Settings) -> io::Result<Vec<Datagrams>> {
    let threads = settings.server.threads.max(1);
    let single = settings.listen.endpoints.len() < 2;
    all.iter()
        .enumerate()
        .filter(|(place, _)| single || place % threads == worker)
        .map(|(_, datagrams)| datagrams.share())
        .collect()
}

fn start_worker(
    number: usize,
    shared: &Arc<Shared>,
    control: &Arc<Control>,
    datagrams: Vec<Datagrams>,
    forward: Option<Arc<Forward>>,
) -> io::Result<(Arc<Inbox>, JoinHandle<()>)> {
    let poll = Poll::new()?;
    let inbox = Arc::new(Inbox::new(Waker::new(poll.registry(), worker::WAKE)?));
    let server = &shared.settings.server;
    let worker = Worker {
        poll,
        inbox: inbox.clone(),
        control: control.clone(),
        shared: shared.clone(),
        counters: shared.registry.register(),
        limits: Limits {
            requests_per_event: server.requests_per_event.max(1),
            turn: server
                .requests_per_event
                .max(1)
                .saturating_mul(connection::PATIENCE),
            replies: server.reply_limit.min(connection::SEND_AT),
        },
        idle_timeout: server.idle_timeout,
        buffer_limit: match server.read_buffer_limit {
            0 => 0,
            // One unfinished command must always be allowed.
            limit => (limit / server.threads.max(1)).max(worker::longest_command(shared.rules)),
        },
        datagrams,
        forward,
        number,
    };
    let thread = run_worker(number, control, move || worker.run())?;
    Ok((inbox, thread))
}

fn start_proxy(
    number: usize,
    shared: &Arc<Shared>,
    control: &Arc<Control>,
    cluster: &Arc<Cluster>,
) -> io::Result<(Arc<Inbox>, JoinHandle<()>)> {
    let poll = Poll::new()?;
    let inbox = Arc::new(Inbox::new(Waker::new(poll.registry(), worker::WAKE)?));
    let worker = proxy::Worker {
        poll,
        inbox: inbox.clone(),
        control: control.clone(),
        shared: shared.clone(),
        cluster: cluster.clone(),
        number,
        counters: shared.registry.register(),
        idle_timeout: shared.settings.server.idle_timeout,
    };
    let thread = run_worker(number, control, move || worker.run())?;
    Ok((inbox, thread))
}

fn run_worker(
    number: usize,
    control: &Arc<Control>,
    run: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let control = control.clone();
    Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || {
            if let Err(error) = run() {
                log::error!("worker {number}: {error}");
                // Nobody would serve its clients: better to end than to look alive.
                let _ = control.stop(Stop::Normal);
            }
        })
}

fn serve(settings: Settings) -> Result<Stop, Failure> {
    let process = settings.process.clone();
    process::prepare(
        &process,
        settings.server.max_connections,
        settings.server.threads,
    )?;
    let server = Server::bind(settings)?;
    let signals = signals::listen(
        server.control(),
        server.shared.clone(),
        server.cluster.clone(),
    )?;
    let pid_file = process
        .pid_file
        .as_deref()
        .and_then(process::PidFile::write);
    let served = server.serve();
    signals.end();
    drop(pid_file);
    served
}

/// Runs a server until it is told to stop; returns the exit code of the process.
pub fn run(settings: Settings) -> i32 {
    let verbosity = settings.process.verbosity;
    match serve(settings) {
        Ok(Stop::Graceful) => {
            eprintln!("Gracefully stopping");
            0
        }
        Ok(Stop::Normal) => {
            if verbosity > 0 {
                eprintln!("Exiting normally");
            }
            0
        }
        Err(failure) => {
            eprintln!("{failure}");
            failure.code
        }
    }
}
