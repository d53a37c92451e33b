#![forbid(unsafe_code)]
//! The thread that finds out who leads, where etcd decides: it asks what the
//! [elector](crate::cluster::election::elector) wants to know and does what follows.
//!
//! Nobody waits for it. How long mutations may be taken stands in [`Replicas`], and is looked at by
//! whoever takes one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::control::Control;
use crate::cluster::election::VOUCH;
use crate::cluster::election::directory::{Answer, Directory, Failed, Request};
use crate::cluster::election::elector::{Effect, Elector, Local};
use crate::cluster::election::etcd::{Bell, Etcd};
use crate::cluster::election::wire::{Keys, Me};
use crate::cluster::replication::SUSPECT;
use crate::cluster::replication::data::Data;
use crate::cluster::replication::replicas::Replicas;
use crate::cluster::replication::session::Role;
use crate::settings::{Ack, Election, Settings};

/// Between two looks at what has changed.
const TICK: Duration = Duration::from_millis(20);
/// What is told of the election is brought up to date so often.
const TELL: Duration = Duration::from_millis(200);
/// How long the last records may take on their way to the copies when the server stops.
const FAREWELL: Duration = Duration::from_secs(1);

struct Clerk {
    elector: Elector,
    keys: Keys,
    etcd: Etcd,
    replicas: Arc<Replicas>,
    changed: Arc<AtomicBool>,
    /// Changes at etcd are told of for as long as this is there.
    _bell: Arc<Bell>,
    told_at: Instant,
}

/// Starts it. `clients` and `copies`: what this node listens on.
///
/// # Errors
/// Files that etcd's TLS or user needs, or no thread.
pub fn start(
    settings: &Settings,
    election: &Election,
    replicas: &Arc<Replicas>,
    clients: Option<SocketAddr>,
    copies: Option<SocketAddr>,
    control: Arc<Control>,
) -> io::Result<JoinHandle<()>> {
    let replication = &settings.replication;
    let patience = Duration::from_millis((election.ttl_ms / 4).clamp(250, 2000));
    let etcd = Etcd::new(&election.etcd, patience)
        .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
    let me = introduced(settings, election, replicas, clients, copies);
    log::info!(
        "node {} of group {}: clients come to {}, copies to {}",
        me.name,
        me.group,
        me.clients,
        me.copies
    );
    let keep_members = replication.ack != Ack::TwoPhase;
    let elector = Elector::new(me, election.ttl_ms, keep_members, replication.recover_ms);
    let keys = Keys::new(&replication.cluster);
    let changed = Arc::new(AtomicBool::new(false));
    let rung = changed.clone();
    let bell: Arc<Bell> = Arc::new(move || rung.store(true, Ordering::Release));
    etcd.clone()
        .start_watch(keys.all(), Arc::downgrade(&bell))?;
    let mut clerk = Clerk {
        elector,
        keys,
        etcd,
        replicas: replicas.clone(),
        changed,
        _bell: bell,
        told_at: Instant::now(),
    };
    Builder::new()
        .name("election".to_owned())
        .spawn(move || clerk.run(&control))
}

/// This node's addresses as others reach them.
fn introduced(
    settings: &Settings,
    election: &Election,
    replicas: &Replicas,
    clients: Option<SocketAddr>,
    copies: Option<SocketAddr>,
) -> Me {
    let shown = |address: Option<SocketAddr>| address.map_or(String::new(), |it| it.to_string());
    let clients = election.advertise.clone().unwrap_or_else(|| shown(clients));
    let listen = settings.replication.listen.as_deref().unwrap_or_default();
    let port = copies.map_or(0, |address| address.port());
    let host = match copies {
        // Everywhere is no address to connect to: that of the clients is.
        Some(address) if address.ip().is_unspecified() => clients.rsplit_once(':'),
        _ => listen.rsplit_once(':'),
    };
    let host = host.map_or("", |(host, _)| host);
    Me {
        id: replicas.state().node.id,
        name: election.node.clone(),
        group: election.group.clone(),
        copies: election
            .repl_advertise
            .clone()
            .unwrap_or_else(|| format!("{host}:{port}")),
        clients,
    }
}

impl Clerk {
    fn run(&mut self, control: &Control) {
        loop {
            while self.step() {}
            if self.told_at.elapsed() >= TELL {
                self.tell();
            }
            if !control.sleep(TICK) {
                break;
            }
        }
        self.leave();
    }

    /// Asks one thing, if there is any. This may take long.
    fn step(&mut self) -> bool {
        if self.changed.swap(false, Ordering::AcqRel) {
            self.elector.changed();
        }
        let local = self.look();
        let request = self.elector.ask(self.replicas.now(), &local);
        self.take_effect();
        let Some(request) = request else {
            return false;
        };
        let answer = self.call(&request);
        self.elector.answer(self.replicas.now(), answer);
        self.take_effect();
        true
    }

    fn call(&mut self, request: &Request) -> Result<Answer, Failed> {
        let (path, body) = self.keys.encode(self.elector.me(), request);
        let answer = self.etcd.call(path, &body)?;
        self.keys
            .decode(request, &answer)
            .ok_or_else(|| Failed::Unreachable(format!("{path}: not understood: {answer}")))
    }

    fn look(&self) -> Local {
        let allowed = self.replicas.leading();
        let state = self.replicas.state();
        let now = self.replicas.now();
        let copy = &state.node.copy;
        let leads = state.node.role == Role::Leader;
        Local {
            allowed,
            whole: copy.whole == u64::MAX,
            epoch: state.node.epoch().number,
            applied: state.data.journal().positions().iter().sum(),
            seen: state.node.seen,
            promised_until: if copy.vouched_at > 0 {
                copy.vouched_at + VOUCH
            } else {
                0
            },
            hears: !leads && copy.heard_at > 0 && now < copy.heard_at + SUSPECT,
            forced: self.replicas.forced(),
            wishes: state.group.wishes(),
            in_sync: state.group.in_sync().map(|member| member.node).collect(),
        }
    }

    fn take_effect(&mut self) {
        let mut any = false;
        while let Some(effect) = self.elector.effect() {
            any |= !matches!(effect, Effect::Lease(_));
            match effect {
                Effect::Lead { epoch, in_sync } => self.replicas.lead_with(epoch, &in_sync),
                Effect::Follow(leader) => self.replicas.follow(leader),
                Effect::Lease(until) => self.replicas.set_lease(until),
                Effect::Abstain(abstains) => {
                    self.replicas.state().node.copy.abstains = abstains;
                }
                Effect::Count(node, in_sync) => {
                    self.replicas.state().group.set_in_sync(node, in_sync);
                }
            }
        }
        if any {
            self.tell();
        }
    }

    /// For `stats replication`.
    fn tell(&mut self) {
        self.told_at = Instant::now();
        let (me, counts) = (self.elector.me(), self.elector.counts);
        let mut told = vec![
            ("election", "etcd".to_owned()),
            ("group", me.group.clone()),
            ("name", me.name.clone()),
        ];
        let reached = self.elector.unreachable_since().is_none();
        told.push(("etcd_reached", u8::from(reached).to_string()));
        if self.elector.view().is_some() {
            let name = self.elector.leader().unwrap_or("none");
            told.push(("leader_name", name.to_owned()));
            let members = self.elector.in_sync().map(|known| &known.members);
            let names: Vec<&str> = members
                .into_iter()
                .flatten()
                .map(|member| member.name.as_str())
                .collect();
            told.push(("in_sync_names", names.join(" ")));
        }
        told.push(("elections", counts.elections.to_string()));
        told.push(("reigns", counts.reigns.to_string()));
        told.push(("fenced", counts.fenced.to_string()));
        told.push(("etcd_failures", counts.failures.to_string()));
        self.replicas.state().election = told;
    }

    /// The server stops: once the copies have everything, somebody else may lead at once.
    fn leave(&mut self) {
        let since = Instant::now();
        while !self.replicas.has_ended() && since.elapsed() < FAREWELL {
            std::thread::sleep(TICK / 4);
        }
        if let Some(request) = self.elector.resign()
            && let Err(failed) = self.call(&request)
        {
            log::warn!("the lease at etcd is left to run out: {failed:?}");
        }
    }
}
