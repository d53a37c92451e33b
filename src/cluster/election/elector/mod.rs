#![forbid(unsafe_code)]
//! One node's part in finding out who leads.
//!
//! [`ask`](Elector::ask) says what to ask the service next; [`answer`](Elector::answer) takes what it
//! said. In between time passes, and the node goes on. What follows for the node comes out as
//! [`Effect`]s, in order.

// A node that does not lead.
mod campaign;

// One that does.
mod reign;

use std::collections::VecDeque;

use super::directory::{Answer, Failed, InSync, Leader, Member, NOT_FOUND, Request, View};
use super::wire::Me;
use super::{MARGIN, POLL, RETRY};

/// What a node is like at one moment.
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// It may take mutations: its lease lasts, or all in sync vouch.
    pub allowed: bool,
    /// All its partitions are whole.
    pub whole: bool,
    /// The epoch of what it has, and how many records of it.
    pub epoch: u64,
    pub applied: u64,
    /// The highest epoch it has heard of.
    pub seen: u64,
    /// It has promised not to stand before this time.
    pub promised_until: u64,
    /// A leader speaks to it.
    pub hears: bool,
    /// An operator has told it to stand, whatever it lacks.
    pub forced: bool,
    /// A leader's: copies that should be counted as in sync, or not any more.
    pub wishes: Vec<(u64, bool)>,
    /// A leader's: copies that are waited for.
    pub in_sync: Vec<u64>,
}

/// What a node has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Lead in this epoch, with these copies counted as in sync from the start.
    Lead { epoch: u64, in_sync: Vec<u64> },
    /// Lead no more, and copy who is there; nothing while nobody leads.
    Follow(Option<String>),
    /// As a leader, take mutations until this time.
    Lease(u64),
    /// Vouch for nobody, or do so again.
    Abstain(bool),
    /// Count a copy as in sync, or not any more.
    Count(u64, bool),
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    id: u64,
    /// When its last renewal, or its grant, began.
    began: u64,
    renew_at: u64,
}

#[derive(Debug)]
enum Standing {
    Following,
    Candidate {
        /// When it had said how much it has.
        said_at: Option<u64>,
        turn_at: Option<u64>,
    },
    /// A campaign has had no answer: nothing is promised to anybody before its lease is known to be
    /// over.
    Doubtful,
    Leading(Reign),
}

#[derive(Debug)]
struct Reign {
    epoch: u64,
    /// The revision of the leader's key.
    created: u64,
    /// The key hangs on the present lease.
    held: bool,
    in_sync: InSync,
    /// A change of the members has had no answer.
    doubt: bool,
}

/// What has been counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub elections: u64,
    pub reigns: u64,
    /// Reigns that ended because no lease could be kept, and somebody did not vouch.
    pub fenced: u64,
    pub failures: u64,
}

/// One node's part.
pub struct Elector {
    me: Me,
    /// Milliseconds that a lease lasts.
    ttl: u64,
    /// The members in sync stay so under a new leader. Not where votes count: what a new leader has
    /// found in doubt would be seen before they have it.
    keep_members: bool,
    /// How long there has to be nobody with the items before one without them leads.
    recover: u64,
    lease: Option<Lease>,
    registered: bool,
    view: Option<View>,
    read_at: u64,
    stale: bool,
    standing: Standing,
    /// Whom this node follows: the epoch and the address.
    follows: Option<(u64, String)>,
    leaderless_since: Option<u64>,
    retry_at: u64,
    asked: Option<(Request, u64)>,
    unreachable_since: Option<u64>,
    told: Option<&'static str>,
    /// Another process has registered itself under this node's name since.
    doubled: bool,
    effects: VecDeque<Effect>,
    pub counts: Counts,
}

impl Elector {
    pub fn new(me: Me, ttl: u64, keep_members: bool, recover: u64) -> Elector {
        Elector {
            me,
            ttl,
            keep_members,
            recover,
            lease: None,
            registered: false,
            view: None,
            read_at: 0,
            stale: true,
            standing: Standing::Following,
            follows: None,
            leaderless_since: None,
            retry_at: 0,
            asked: None,
            unreachable_since: None,
            told: None,
            doubled: false,
            effects: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    pub fn me(&self) -> &Me {
        &self.me
    }

    /// What the service knew when it was last asked.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Who is in sync: a leader's own word, or what the service knew.
    pub fn in_sync(&self) -> Option<&InSync> {
        match &self.standing {
            Standing::Leading(reign) => Some(&reign.in_sync),
            _ => self.view.as_ref()?.in_sync.as_ref(),
        }
    }

    /// The name of who leads.
    pub fn leader(&self) -> Option<&str> {
        match &self.standing {
            Standing::Leading(_) => Some(&self.me.name),
            _ => Some(&self.view.as_ref()?.leader.as_ref()?.name),
        }
    }

    /// What the node is, in words for whoever looks for a mistake.
    pub fn standing(&self) -> impl std::fmt::Debug {
        &self.standing
    }

    /// Since when the service has not answered.
    pub fn unreachable_since(&self) -> Option<u64> {
        self.unreachable_since
    }

    pub fn effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Something has changed at the service.
    pub fn changed(&mut self) {
        self.stale = true;
    }

    /// The lease, to give it back when the node ends: whoever comes next need not wait.
    pub fn resign(&mut self) -> Option<Request> {
        let lease = self.lease.take()?;
        Some(Request::Revoke { lease: lease.id })
    }

    /// What to ask now; nothing before something has changed, or time has passed.
    pub fn ask(&mut self, now: u64, local: &Local) -> Option<Request> {
        if matches!(self.standing, Standing::Leading(_)) && !local.allowed {
            self.counts.fenced += 1;
            log::warn!(
                "group {}: the lease could not be renewed and not every copy in sync vouches: mutations are refused until etcd says who leads",
                self.me.group
            );
            self.step_down(None);
        }
        if self.doubled && matches!(self.standing, Standing::Leading(_)) {
            self.step_down(None);
        }
        if self.asked.is_some() || now < self.retry_at {
            return None;
        }
        let request = self.next(now, local)?;
        self.asked = Some((request.clone(), now));
        Some(request)
    }

    fn next(&mut self, now: u64, local: &Local) -> Option<Request> {
        let Some(lease) = self.lease else {
            if matches!(self.standing, Standing::Doubtful) {
                self.follow_again();
            }
            let seconds = self.ttl.div_ceil(1000);
            return Some(Request::Grant { seconds });
        };
        if matches!(self.standing, Standing::Doubtful) {
            return Some(Request::Revoke { lease: lease.id });
        }
        if now >= lease.renew_at {
            return Some(Request::Renew { lease: lease.id });
        }
        if !self.registered {
            return Some(Request::Register { lease: lease.id });
        }
        if self.stale || now >= self.read_at + POLL {
            return Some(self.read());
        }
        let view = self.view.take()?;
        let request = match self.standing {
            Standing::Leading(_) => self.lead(&view, lease.id, local),
            Standing::Following | Standing::Candidate { .. } => {
                self.follow(&view, lease.id, now, local)
            }
            Standing::Doubtful => None,
        };
        self.view = Some(view);
        request
    }

    fn read(&mut self) -> Request {
        // What changes from now on may not be in the answer.
        self.stale = false;
        Request::Read
    }

    fn turn_to(&mut self, leader: &Leader) {
        let whom = (leader.epoch, leader.copies.clone());
        if self.follows.as_ref() == Some(&whom) {
            return;
        }
        log::info!(
            "group {}: {} leads in epoch {}, following it at {}",
            self.me.group,
            leader.name,
            leader.epoch,
            leader.copies
        );
        self.told = None;
        self.effects
            .push_back(Effect::Follow(Some(leader.copies.clone())));
        self.follows = Some(whom);
    }

    fn step_down(&mut self, leader: Option<&Leader>) {
        self.standing = Standing::Following;
        self.follows = None;
        self.stale = true;
        match leader {
            Some(leader) => self.turn_to(leader),
            None => self.effects.push_back(Effect::Follow(None)),
        }
    }

    /// A candidate no more.
    fn follow_again(&mut self) {
        self.standing = Standing::Following;
        self.effects.push_back(Effect::Abstain(false));
        self.stale = true;
    }

    fn lose_lease(&mut self) {
        self.lease = None;
        self.registered = false;
        self.stale = true;
        match &mut self.standing {
            Standing::Leading(reign) => reign.held = false,
            Standing::Candidate { .. } | Standing::Doubtful => self.follow_again(),
            Standing::Following => {}
        }
    }

    /// Takes what the service said to what was asked last.
    pub fn answer(&mut self, now: u64, result: Result<Answer, Failed>) {
        let Some((request, began)) = self.asked.take() else {
            return;
        };
        match result {
            Ok(answer) => {
                if let Some(since) = self.unreachable_since.take() {
                    log::info!("etcd answers again, after {} ms", now - since);
                }
                self.take(request, began, now, answer);
            }
            Err(Failed::Unreachable(why)) => {
                self.counts.failures += 1;
                if self.unreachable_since.is_none() {
                    self.unreachable_since = Some(now);
                    let then = match self.standing {
                        Standing::Leading(_) => {
                            "mutations are taken while the lease lasts, or all copies in sync vouch"
                        }
                        _ => "nothing changes as long as the leader is heard",
                    };
                    log::warn!("etcd does not answer: {why}; {then}");
                }
                self.retry_at = now + RETRY;
                self.doubt(&request);
            }
            Err(Failed::Refused { code, message }) => {
                self.counts.failures += 1;
                self.refused(&request, code, &message, now);
            }
        }
    }

    /// Names tell which processes are over: of two with the same one the younger stays.
    fn find_double(&mut self, view: &View) {
        let named = view.nodes.iter().find(|node| node.name == self.me.name);
        let doubled = match named {
            Some(node) => node.id != self.me.id,
            None => {
                self.registered = false;
                false
            }
        };
        if doubled && !self.doubled {
            log::error!(
                "another process is node {}, too: this one neither leads nor stands; give each node a --node of its own",
                self.me.name
            );
        }
        self.doubled = doubled;
    }

    /// Whether it was done is not known.
    fn doubt(&mut self, request: &Request) {
        self.stale = true;
        match (request, &mut self.standing) {
            (Request::Campaign { .. }, _) => self.standing = Standing::Doubtful,
            (Request::Agree { .. }, Standing::Leading(reign)) => reign.doubt = true,
            _ => {}
        }
    }

    fn refused(&mut self, request: &Request, code: i64, message: &str, now: u64) {
        if code == NOT_FOUND {
            // Nothing hangs on a lease that is not there.
            self.lose_lease();
            return;
        }
        log::error!("etcd refuses: {message}");
        self.stale = true;
        self.retry_at = now + POLL;
        if matches!(request, Request::Campaign { .. }) {
            self.follow_again();
        }
    }

    fn take(&mut self, request: Request, began: u64, now: u64, answer: Answer) {
        match (request, answer) {
            (Request::Grant { .. }, Answer::Granted(id)) => {
                self.registered = false;
                self.lease = Some(Lease {
                    id,
                    began,
                    renew_at: began + self.ttl / 3,
                });
            }
            (Request::Renew { .. }, Answer::Renewed(false)) => {
                if matches!(self.standing, Standing::Leading(_)) {
                    log::warn!("the lease at etcd is lost, asking for another");
                }
                self.lose_lease();
            }
            (Request::Renew { .. }, Answer::Renewed(true)) => {
                if let Some(lease) = &mut self.lease {
                    lease.began = began;
                    lease.renew_at = began + self.ttl / 3;
                }
                self.hold();
            }
            (Request::Revoke { .. }, Answer::Revoked) => self.lose_lease(),
            (Request::Read, Answer::View(view)) => {
                self.read_at = now;
                self.find_double(&view);
                self.view = Some(view);
            }
            (Request::Register { .. }, Answer::Written(_)) => {
                self.registered = true;
                self.stale = true;
            }
            (Request::Stand { .. }, Answer::Written(_)) => {
                if let Standing::Candidate { said_at, .. } = &mut self.standing {
                    *said_at = Some(now);
                }
            }
            (Request::Campaign { floor, members, .. }, Answer::Written(Some(revision))) => {
                self.begin(revision, floor, members);
            }
            (Request::Campaign { .. }, Answer::Written(None)) => self.follow_again(),
            (Request::Reclaim { .. }, Answer::Written(written)) => {
                self.stale = true;
                if let (Some(revision), Standing::Leading(reign)) = (written, &mut self.standing) {
                    reign.created = revision;
                    reign.held = true;
                    log::info!("group {}: leading on, under a new lease", self.me.group);
                    self.hold();
                }
            }
            (Request::Agree { members, .. }, Answer::Written(written)) => {
                self.stale = true;
                if let (Some(revision), Standing::Leading(reign)) = (written, &mut self.standing) {
                    for gone in &reign.in_sync.members {
                        if !members.iter().any(|member| member.id == gone.id) {
                            self.effects.push_back(Effect::Count(gone.id, false));
                        }
                    }
                    let names: Vec<&str> =
                        members.iter().map(|member| member.name.as_str()).collect();
                    log::info!("group {}: in sync: {}", self.me.group, names.join(" "));
                    reign.in_sync = InSync {
                        members,
                        by: self.me.id,
                        modified: revision,
                    };
                    reign.doubt = false;
                }
            }
            (request, answer) => {
                log::error!("etcd answers {request:?} with {answer:?}");
                self.doubt(&request);
            }
        }
    }

    fn begin(&mut self, revision: u64, floor: u64, members: Vec<Member>) {
        let epoch = revision.max(floor);
        log::info!("group {}: leading in epoch {epoch}", self.me.group);
        self.counts.reigns += 1;
        let others = members.iter().map(|member| member.id);
        let in_sync = others.filter(|id| *id != self.me.id).collect();
        self.effects.push_back(Effect::Abstain(false));
        self.effects.push_back(Effect::Lead { epoch, in_sync });
        self.standing = Standing::Leading(Reign {
            epoch,
            created: revision,
            held: true,
            in_sync: InSync {
                members,
                by: self.me.id,
                modified: revision,
            },
            doubt: false,
        });
        self.follows = None;
        self.leaderless_since = None;
        self.told = None;
        self.stale = true;
        self.hold();
    }

    /// As far as the lease goes.
    fn hold(&mut self) {
        if let (Some(lease), Standing::Leading(reign)) = (&self.lease, &self.standing)
            && reign.held
        {
            let until = (lease.began + self.ttl).saturating_sub(MARGIN);
            self.effects.push_back(Effect::Lease(until));
        }
    }
}
