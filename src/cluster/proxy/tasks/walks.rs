#![forbid(unsafe_code)]
//! Tasks whose routes ask for more than one server: what a [`Walk`] wants done is done here, and it is told
//! what has come of it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Kind, Proxy, Value, next_random};
use crate::cluster::front::{nothing, refusal};
use crate::cluster::plan::Plan;
use crate::cluster::proxy::{Forward, Refused};
use crate::cluster::rewrite::{self, Change};
use crate::cluster::route::{
    Action, Life, Manner, Outcome, Question, Send, Source, Tag, Token, Ttl, Walk, What, World,
};
use crate::cluster::upstream::{Fault, To};
use crate::protocol::Dialect;
use crate::protocol::answer::{Shape, Verdict};
use crate::settings::proxy::{Command, Failure, Route, RouteId};

/// What a walk sees of the world.
struct View<'p> {
    proxy: &'p Proxy,
    /// Of when the walk began.
    plan: Arc<Plan>,
    random: u64,
}

impl World for View<'_> {
    fn load(&self, pool: usize, key: &[u8]) -> u64 {
        let Some(pool) = self.proxy.pool_now(&self.plan, pool) else {
            return u64::MAX;
        };
        let server = &self.proxy.servers[self.proxy.owner(pool, key)];
        if !server.target.admits(key) {
            return u64::MAX;
        }
        self.proxy.busy(self.proxy.owner(pool, key))
    }

    fn moving(&self, pool: usize, key: &[u8]) -> Option<RouteId> {
        // Routes are those of the plan that the walk began with.
        self.plan.way_of_moved(pool, key)
    }

    fn random(&mut self) -> u64 {
        next_random(&mut self.random)
    }

    fn nanoseconds(&self) -> u64 {
        self.proxy.cluster.nanoseconds()
    }

    fn unix_seconds(&self) -> u64 {
        self.proxy.unix
    }

    fn key_max(&self) -> usize {
        self.proxy.cluster.requests.key_max()
    }
}

impl Proxy {
    /// Begins a request whose route is more than a pool.
    #[cold]
    pub(in crate::cluster::proxy) fn walk(
        &mut self,
        seat: usize,
        request: &Forward<'_>,
        route: RouteId,
    ) {
        let ticket = self.ticket(request);
        let kind = Kind::Walk(None);
        let Some(task) = self.add_task(seat, ticket, false, request, kind) else {
            return;
        };
        self.start(task, seat, route);
    }

    /// Begins a request whose long value is sent on as it comes, when its turn has come. Returns the task, and
    /// what tells it from others; nothing if the client has been told that it cannot be.
    #[cold]
    pub(in crate::cluster::proxy) fn walk_long(
        &mut self,
        seat: usize,
        request: &Forward<'_>,
        route: RouteId,
    ) -> Option<(usize, u32)> {
        let ticket = self.ticket(request);
        let task = self.add_task(seat, ticket, false, request, Kind::Walk(None))?;
        let generation = self.tasks.slab.get_mut(task).map(|task| {
            task.value = Value::Awaited;
            task.generation
        })?;
        self.start(task, seat, route);
        Some((task, generation))
    }

    /// Begins one key of a get of several whose route is more than a pool.
    #[cold]
    pub(in crate::cluster::proxy) fn walk_key(
        &mut self,
        seat: usize,
        command: &[u8],
        key: &[u8],
        what: Command,
        route: RouteId,
    ) {
        let line = [command, b" ", key, b"\r\n"].concat();
        let request = Forward::get(&line, key, what);
        let ticket = self.ticket(&request);
        if let Some(task) = self.add_task(seat, ticket, true, &request, Kind::Walk(None)) {
            self.start(task, seat, route);
        }
    }

    fn start(&mut self, number: usize, seat: usize, route: RouteId) {
        let listener = self
            .front
            .seats
            .get(seat)
            .and_then(|it| it.listener.clone());
        let Some(task) = self.tasks.slab.get(number) else {
            return;
        };
        let question = Question {
            command: task.command,
            key: &task.key,
            listener: listener.as_deref(),
        };
        let manner = Manner {
            creates: rewrite::creates(&task.request),
            once: task.value != Value::Whole,
        };
        let mut actions = Vec::new();
        let tree = self.plan.tree.clone();
        let mut view = View {
            proxy: self,
            plan: self.plan.clone(),
            random: self.random,
        };
        let walk = Walk::start(&tree, route, &question, manner, &mut view, &mut actions);
        self.random = view.random;
        if let Some(Kind::Walk(place)) = self.kind(number) {
            *place = Some(walk);
        }
        self.act(number, actions);
    }

    /// Does what a walk wants done, and what comes of that.
    fn act(&mut self, number: usize, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Answer(source) => self.answer_from(number, source),
                Action::Send(send) if send.delay_ms > 0 => {
                    let due = self.now + send.delay_ms;
                    if let Some(task) = self.tasks.slab.get(number) {
                        let generation = task.generation;
                        let undelayed = Send {
                            delay_ms: 0,
                            ..send
                        };
                        self.tasks
                            .delayed
                            .push((due, number as u32, generation, undelayed));
                    }
                }
                Action::Send(send) => {
                    if let Err(outcome) = self.send_of(number, &send)
                        && send.awaited
                    {
                        self.keep_refusal(number, send.tag, "the request cannot be sent on");
                        actions.extend(self.outcome(number, send.tag, outcome));
                    }
                }
            }
        }
        let over = match self.kind(number) {
            Some(Kind::Walk(Some(walk))) => walk.is_over(),
            _ => false,
        };
        let waits = self
            .tasks
            .delayed
            .iter()
            .any(|(_, task, ..)| *task as usize == number);
        if over && !waits {
            self.end_task(number);
        }
    }

    /// Tells a walk what has come of a send; returns what is to be done now.
    fn outcome(&mut self, number: usize, tag: Tag, outcome: Outcome) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(task) = self.tasks.slab.get_mut(number) else {
            return actions;
        };
        let Kind::Walk(place) = &mut task.kind else {
            return actions;
        };
        let Some(mut walk) = place.take() else {
            return actions;
        };
        let plan = task.plan.clone();
        let mut view = View {
            proxy: self,
            plan,
            random: self.random,
        };
        walk.outcome(tag, outcome, &mut view, &mut actions);
        self.random = view.random;
        if let Some(Kind::Walk(place)) = self.kind(number) {
            *place = Some(walk);
        }
        actions
    }

    /// A server has answered one of the sends of a walk, or will not.
    pub(super) fn walked(
        &mut self,
        number: usize,
        tag: Tag,
        bytes: Vec<u8>,
        verdict: Verdict,
        fault: Option<Fault>,
    ) {
        let outcome = match fault {
            Some(Fault::TimedOut | Fault::ConnectTimeout) => Outcome::Failed(Failure::Timeout),
            Some(Fault::TooMuch) => Outcome::Failed(Failure::Busy),
            Some(_) => Outcome::Failed(Failure::Down),
            None => outcome_of(verdict, &bytes),
        };
        self.keep(number, tag, bytes, verdict, None);
        let actions = self.outcome(number, tag, outcome);
        self.act(number, actions);
    }

    /// What the client is told if this send is to be the answer, and nothing is known of it.
    fn keep_refusal(&mut self, number: usize, tag: Tag, why: &str) {
        let Some(task) = self.tasks.slab.get(number) else {
            return;
        };
        if !task.replies.iter().any(|reply| reply.tag == tag) {
            let answer = refusal(&task.ticket, why);
            self.keep(number, tag, answer, Verdict::ServerError, None);
        }
    }

    /// Makes a request and sends it.
    fn send_of(&mut self, number: usize, send: &Send) -> Result<(), Outcome> {
        let unsendable = Outcome::ClientError;
        let Some(task) = self.tasks.slab.get(number) else {
            return Err(unsendable);
        };
        let Kind::Walk(Some(walk)) = &task.kind else {
            return Err(unsendable);
        };
        let key: Box<[u8]> = walk.key(send.key).into();
        let Some(pool) = self.pool_now(&task.plan, send.pool) else {
            self.keep_refusal(number, send.tag, &super::gone());
            return Err(Outcome::Failed(Failure::Down));
        };
        let command = match send.what {
            What::Request => task.command,
            What::Read | What::Life => Command::Get,
            // For the leader only.
            What::Token => Command::Add,
            What::Fill { .. } => Command::Add,
            What::Delete => Command::Delete,
        };
        let owner = self.owner(pool, &key);
        let (place, capped) = if self.servers[owner].target.admits(&key) {
            (owner, Ttl::AsIs)
        } else {
            match self.instead(pool, owner, command, &key) {
                Some(instead) => {
                    if let Some(of) = instead.of
                        && send.awaited
                    {
                        self.stands_in(number, send.tag, of, &key);
                    }
                    (instead.place, instead.ttl)
                }
                None => {
                    if command == Command::Delete {
                        self.is_remembered(pool, owner, &key);
                    }
                    let why = self.excuse(owner, &Refused::Unreachable);
                    self.keep_refusal(number, send.tag, &why);
                    return Err(Outcome::Failed(Failure::Down));
                }
            }
        };
        let Some(task) = self.tasks.slab.get(number) else {
            return Err(unsendable);
        };
        let (mut ticket, value) = (task.ticket, task.value);
        let same_key = send.key == 0;
        let (dialect, bytes) = match send.what {
            What::Request => {
                let ttl = match capped {
                    Ttl::AtMost(most) => at_most(send.ttl, most),
                    _ => send.ttl,
                };
                let change = Change {
                    key: (!same_key).then_some(&key),
                    ttl,
                    now: self.unix,
                };
                let bytes = match (same_key, ttl) {
                    (true, Ttl::AsIs) => {
                        Some([&task.request.head[..], &task.request.body].concat())
                    }
                    _ => rewrite::request(&task.request, &change),
                };
                (task.request.dialect, bytes.ok_or(unsendable)?)
            }
            // No text has such a key.
            What::Read | What::Life | What::Token | What::Fill { .. }
                if key.iter().any(|&byte| byte <= b' ') =>
            {
                return Err(unsendable);
            }
            What::Read => {
                ticket.shape = Shape::Get;
                (Dialect::Text, [b"get ", &key[..], b"\r\n"].concat())
            }
            What::Delete => {
                let dialect = self.servers[place].target.dialect();
                let (bytes, shape) = rewrite::Own::Delete(&key).put(dialect, ticket.opaque);
                ticket.shape = shape;
                (dialect, bytes)
            }
            What::Life => {
                ticket.shape = Shape::Meta;
                (Dialect::Text, [b"mg ", &key[..], b" t\r\n"].concat())
            }
            What::Token => {
                ticket.shape = Shape::Repl;
                (Dialect::Text, [b"repl lease ", &key[..], b"\r\n"].concat())
            }
            What::Fill { of, life, token } => {
                let reply_to = |tag: Tag| task.replies.iter().find(|reply| reply.tag == tag);
                let life = match life {
                    Life::Seconds(ttl) => Some(ttl),
                    Life::Of(tag) => reply_to(tag).and_then(|reply| rewrite::life_in(&reply.bytes)),
                };
                let ttl = Ttl::Exactly(life.ok_or(unsendable)?).apply(0, self.unix);
                let hit = reply_to(of).filter(|reply| reply.verdict == Verdict::Hit);
                let value = hit.and_then(|reply| {
                    let dialect = match reply.bytes.first() {
                        Some(0x81) => Dialect::Binary,
                        _ => Dialect::Text,
                    };
                    rewrite::value_of(dialect, &reply.bytes)
                });
                let (flags, value) = value.ok_or(unsendable)?;
                ticket.shape = Shape::Line;
                let (command, token) = match token {
                    Token::Of(tag) => {
                        let said = reply_to(tag).map(|reply| reply.bytes.trim_ascii_end());
                        let token = said.and_then(|said| said.strip_prefix(b"LEASE"));
                        (&b"lease-set "[..], token.ok_or(unsendable)?)
                    }
                    Token::Unknown => (&b"add "[..], &b""[..]),
                    Token::Refused => return Err(unsendable),
                };
                let head = format!(" {flags} {ttl} {}\r\n", value.len());
                let line = [command, &key[..], token, head.as_bytes(), value, b"\r\n"].concat();
                (Dialect::Text, line)
            }
        };
        ticket.body = matches!(send.what, What::Fill { .. }) || ticket.body;
        if !send.awaited {
            ticket.to = To::Nobody;
            ticket.sent = self.now;
            return match self.connection(place, dialect, number) {
                Ok(upstream) => {
                    self.upstreams[upstream].send(&bytes, ticket);
                    self.mark(upstream);
                    Ok(())
                }
                Err(_) => Err(unsendable),
            };
        }
        let sent = match (value, send.what) {
            (Value::Awaited, What::Request) => {
                self.begin_value(number, send.tag, place, dialect, &bytes, ticket)
            }
            // Its value is not here.
            (Value::Wanted { .. } | Value::Given, What::Request) => return Err(unsendable),
            _ => self.send_for(number, send.tag, place, dialect, &bytes, ticket),
        };
        if let Err(refused) = sent {
            let answer = refusal(&ticket, &self.excuse(place, &refused));
            self.keep(number, send.tag, answer, Verdict::ServerError, None);
            return Err(Outcome::Failed(match refused {
                Refused::Busy => Failure::Busy,
                Refused::Unreachable => Failure::Down,
            }));
        }
        if !same_key {
            // The answer has to look as if it had been sent under the client's key.
            self.keep(number, send.tag, Vec::new(), Verdict::Miss, Some(key));
        }
        Ok(())
    }

    fn answer_from(&mut self, number: usize, source: Source) {
        let Some(task) = self.tasks.slab.get(number) else {
            return;
        };
        let (bytes, verdict) = match source {
            Source::Reply(tag) => {
                let Some(reply) = task.replies.iter().find(|reply| reply.tag == tag) else {
                    return;
                };
                let bytes = match &reply.key {
                    Some(sent) => {
                        rewrite::answer(task.request.dialect, &reply.bytes, &task.key, sent)
                    }
                    None => reply.bytes.clone(),
                };
                (bytes, reply.verdict)
            }
            Source::Null => (nothing(&task.ticket, task.command), Verdict::Miss),
            Source::Error(route) => {
                let words = match task.plan.tree.route(route) {
                    Route::Error { message } => message.clone(),
                    Route::Fault { error, .. } => error.clone().unwrap_or_default(),
                    _ => String::new(),
                };
                (refusal(&task.ticket, &words), Verdict::ServerError)
            }
            Source::Busy => (refusal(&task.ticket, "307 busy"), Verdict::ServerError),
            Source::Unknown => {
                let why = "the key moves between groups, and one of them cannot be asked";
                (refusal(&task.ticket, why), Verdict::ServerError)
            }
            Source::KeyTooLong => {
                let why = "the key is too long with what the route adds";
                (refusal(&task.ticket, why), Verdict::ClientError)
            }
        };
        self.answer(number, &bytes, verdict);
    }

    /// Sends what has waited for its time.
    pub(in crate::cluster::proxy) fn send_delayed(&mut self) {
        let mut due = Vec::new();
        self.tasks.delayed.retain(|(when, task, generation, send)| {
            if *when > self.now {
                return true;
            }
            due.push((*task as usize, *generation, send.clone()));
            false
        });
        for (number, generation, send) in due {
            let task = self.tasks.slab.get(number);
            if task.is_some_and(|task| task.generation == generation) {
                self.act(number, vec![Action::Send(send)]);
            }
        }
    }

    /// Whether something waits for its time.
    pub(in crate::cluster::proxy) fn has_delayed(&self) -> bool {
        !self.tasks.delayed.is_empty()
    }
}

fn outcome_of(verdict: Verdict, answer: &[u8]) -> Outcome {
    match verdict {
        Verdict::Hit => Outcome::Hit,
        Verdict::Miss => Outcome::Miss,
        Verdict::Done => Outcome::Done,
        Verdict::Refused => Outcome::Refused,
        Verdict::ClientError => Outcome::ClientError,
        Verdict::ServerError if answer.starts_with(b"SERVER_ERROR 307") => {
            Outcome::Failed(Failure::Busy)
        }
        Verdict::ServerError | Verdict::Unknown => Outcome::Failed(Failure::Error),
    }
}

/// A life that is shortened further.
fn at_most(ttl: Ttl, most: u32) -> Ttl {
    match ttl {
        Ttl::AsIs => Ttl::AtMost(most),
        Ttl::AtMost(seconds) => Ttl::AtMost(seconds.min(most)),
        Ttl::Exactly(seconds) => Ttl::Exactly(seconds.min(most)),
    }
}
