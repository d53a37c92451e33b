#![forbid(unsafe_code)]
//! Requests that more than one answer belongs to: those whose routes ask for more than one server, those
//! that are copied to other servers when they have been done, those that go to all.
//!
//! A task keeps its request, since it may be sent again, and answers its client's slot once. What is to
//! be sent for a route a [`Walk`] knows.

// Those whose routes ask for more than one server.
mod walks;

use std::sync::Arc;

use slab::Slab;

use super::hot::{Copy, Reading};
use super::wanted::Wanted;
use super::{Forward, Proxy, Refused};
use crate::cluster::front::{Event, refusal};
use crate::cluster::plan::Plan;
use crate::cluster::rewrite::{self, Owned};
use crate::cluster::route::{Send, Tag, Walk};
use crate::cluster::target::Target;
use crate::cluster::upstream::{Fault, KeyTicket, Quiet, Sink, Ticket, To};
use crate::protocol::Dialect;
use crate::protocol::answer::{Shape, Verdict};
use crate::settings::proxy::Command;

/// Bytes that requests of tasks may hold on one worker.
const BYTES_MAX: usize = 64 << 20;

/// All tasks of one worker.
#[derive(Default)]
pub(super) struct Tasks {
    slab: Slab<Task>,
    generation: u32,
    /// Bytes of requests and answers that are kept.
    bytes: usize,
    /// Sends that wait for their time: when, of which task, what.
    delayed: Vec<(u64, u32, u32, Send)>,
}

/// One request.
struct Task {
    generation: u32,
    /// Of when it began: its routes and pools are those of this one.
    plan: Arc<Plan>,
    /// To the client, and in the shape that it expects.
    ticket: Ticket,
    /// One key of a get of several.
    of_many: bool,
    command: Command,
    key: Box<[u8]>,
    request: Owned,
    value: Value,
    kind: Kind,
    /// What has been answered and may be needed.
    replies: Vec<Reply>,
    /// Writes that others than the owners of their keys are sent: by which send, whose key, and which.
    elsewhere: Vec<(Tag, Arc<Target>, Box<[u8]>)>,
}

impl Task {
    /// What its client wants to be told of the key.
    fn wanted(&self) -> Option<Wanted<'_>> {
        Wanted::of(&self.ticket, &self.request.head, &self.key)
    }
}

/// Where the value of a request is, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// With it.
    Whole,
    /// It is sent on as it comes, when all that comes before it is done.
    Awaited,
    /// This connection, which the serial tells from others, waits for it.
    Wanted { upstream: usize, serial: u64 },
    /// It goes its way.
    Given,
}

/// How far a request is whose value is sent on as it comes.
pub(super) enum Turn {
    /// Its value has to wait.
    NotYet,
    /// It goes over this connection, which the serial tells from others.
    Over { upstream: usize, serial: u64 },
    /// It is not wanted any more.
    Gone,
}

/// What has come of one send.
struct Reply {
    tag: Tag,
    bytes: Vec<u8>,
    verdict: Verdict,
    /// What it was sent with, if that is not the client's.
    key: Option<Box<[u8]>>,
}

pub(super) enum Kind {
    Walk(Option<Walk>),
    /// Answered with the one answer there is.
    Once,
    /// Copied to the next servers when its own has done it.
    Copied {
        pool: usize,
        owner: usize,
    },
    /// A read of a hot key, whose answer is kept.
    Hot(Reading),
    /// A read of a hot key from a server that has a copy.
    Copy(Copy),
    /// A copy of a hot key, for a server that is not its own. Nobody waits for the answer.
    Filled {
        hash: u64,
        at: usize,
        /// When the owner was asked for the value, and what it calls it.
        read: u64,
        cas: Option<u64>,
    },
    /// Sent to all servers: how many have not answered, and the worst answer so far.
    All {
        left: usize,
        worst: Option<(Vec<u8>, Verdict)>,
    },
}

/// What is said of a pool that is there no more.
fn gone() -> String {
    format!("the pool {}", Fault::Retired.text())
}

fn next_random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

impl Proxy {
    /// Something that cannot be foreseen.
    pub(super) fn draw(&mut self) -> u64 {
        next_random(&mut self.random)
    }

    /// Requests of this worker that wait for a server.
    pub(super) fn busy(&self, place: usize) -> u64 {
        let requests = |&number: &usize| {
            let upstream = self.upstreams.get(number);
            upstream.map_or(0, |upstream| upstream.requests() as u64)
        };
        let shared = self.servers[place].shared.iter();
        shared.flatten().map(requests).sum()
    }

    /// Sends a write to its server, and to the next ones when that has done it.
    #[cold]
    pub(super) fn copy(&mut self, seat: usize, request: &Forward<'_>, pool: usize, owner: usize) {
        let ticket = self.ticket(request);
        let kind = Kind::Copied { pool, owner };
        let Some(task) = self.add_task(seat, ticket, false, request, kind) else {
            return;
        };
        let bytes = request.pieces.concat();
        self.send_or_answer(task, owner, request.dialect, &bytes, ticket);
    }

    /// Sends the only request of a task, or ends it by saying why not.
    pub(super) fn send_or_answer(
        &mut self,
        task: usize,
        place: usize,
        dialect: Dialect,
        bytes: &[u8],
        ticket: Ticket,
    ) {
        if let Err(refused) = self.send_for(task, 0, place, dialect, bytes, ticket) {
            let answer = refusal(&ticket, &self.excuse(place, &refused));
            self.answer(task, &answer, Verdict::ServerError);
            self.end_task(task);
        }
    }

    /// Sends a set that no client waits for, of the worker's own.
    pub(super) fn send_own_task(
        &mut self,
        kind: Kind,
        place: usize,
        dialect: Dialect,
        request: &[u8],
    ) {
        let mut ticket = self.own_ticket(To::Nobody, 0);
        ticket.body = true;
        if let Dialect::Binary = dialect {
            (ticket.shape, ticket.opaque) = (Shape::Binary(rewrite::SET), 0);
        }
        self.tasks.generation = self.tasks.generation.wrapping_add(1);
        let task = self.tasks.slab.insert(Task {
            generation: self.tasks.generation,
            plan: self.plan.clone(),
            ticket,
            of_many: false,
            command: Command::Set,
            key: Box::default(),
            request: Owned {
                dialect: Dialect::Text,
                head: Box::default(),
                body: Box::default(),
            },
            value: Value::Whole,
            kind,
            replies: Vec::new(),
            elsewhere: Vec::new(),
        });
        // One that is not sent is sent again later, if it is still wanted then.
        if self
            .send_for(task, 0, place, dialect, request, ticket)
            .is_err()
        {
            self.end_task(task);
        }
    }

    /// Notes that a send of a task goes to another server than the key's own.
    pub(super) fn stands_in(&mut self, number: usize, tag: Tag, of: Arc<Target>, key: &[u8]) {
        if let Some(task) = self.tasks.slab.get_mut(number) {
            task.elsewhere.push((tag, of, key.into()));
        }
    }

    /// Sends a request without a key to every server, of groups to the leaders, and answers it when all
    /// have.
    pub fn to_all(&mut self, seat: usize, request: &Forward<'_>) {
        let ticket = self.ticket(request);
        let kind = Kind::All {
            left: 0,
            worst: None,
        };
        let Some(task) = self.add_task(seat, ticket, false, request, kind) else {
            return;
        };
        self.cluster.writes.all_written(self.now);
        if let Some(client) = self.front.seats.get_mut(seat) {
            client.written.untold(self.now);
        }
        let bytes = request.pieces.concat();
        let places: Vec<usize> = self
            .plan
            .pools
            .iter()
            .zip(&self.places)
            .flat_map(|(pool, places)| match pool.seats.len() {
                0 => places,
                // They come first.
                leaders => &places[..leaders],
            })
            .copied()
            .collect();
        for place in places {
            match self.send_for(task, 0, place, request.dialect, &bytes, ticket) {
                Ok(()) => {
                    if let Some(Kind::All { left, .. }) = self.kind(task) {
                        *left += 1;
                    }
                }
                Err(refused) => {
                    let answer = refusal(&ticket, &self.excuse(place, &refused));
                    if let Some(Kind::All { worst, .. }) = self.kind(task) {
                        *worst = Some((answer, Verdict::ServerError));
                    }
                }
            }
        }
        self.all_told(task);
    }

    fn kind(&mut self, task: usize) -> Option<&mut Kind> {
        self.tasks.slab.get_mut(task).map(|task| &mut task.kind)
    }

    /// Makes a task and reserves its client's slot. `None`: too much is kept already, and the client
    /// has been told.
    pub(super) fn add_task(
        &mut self,
        seat: usize,
        mut ticket: Ticket,
        of_many: bool,
        request: &Forward<'_>,
        kind: Kind,
    ) -> Option<usize> {
        let client = self.front.seats.get_mut(seat)?;
        let slot = client.slots.reserve();
        ticket.to = To::Client {
            seat: seat as u32,
            generation: client.generation,
            slot,
        };
        let owned = Owned::of(request);
        let size = owned.head.len() + owned.body.len();
        if self.tasks.bytes + size > BYTES_MAX {
            let busy = refusal(&ticket, "307 busy");
            self.front.touch(seat);
            if let Some(client) = self.front.seats.get_mut(seat) {
                match of_many {
                    true => client.slots.fail_key(slot, &busy),
                    false if ticket.quiet == Quiet::All => client.slots.silence(slot),
                    false => client.slots.fill(slot, &busy),
                }
            }
            return None;
        }
        self.tasks.bytes += size;
        self.tasks.generation = self.tasks.generation.wrapping_add(1);
        Some(self.tasks.slab.insert(Task {
            generation: self.tasks.generation,
            plan: self.plan.clone(),
            ticket,
            of_many,
            command: request.command,
            key: request.key.into(),
            request: owned,
            value: Value::Whole,
            kind,
            replies: Vec::new(),
            elsewhere: Vec::new(),
        }))
    }

    pub(super) fn end_task(&mut self, task: usize) {
        if let Some(task) = self.tasks.slab.try_remove(task) {
            let kept: usize = task.replies.iter().map(|reply| reply.bytes.len()).sum();
            let size = task.request.head.len() + task.request.body.len() + kept;
            self.tasks.bytes = self.tasks.bytes.saturating_sub(size);
            if let To::Client { seat, .. } = task.ticket.to
                && matches!(task.value, Value::Awaited | Value::Wanted { .. })
            {
                self.front.call(seat as usize);
            }
            if let Value::Wanted { upstream, serial } = task.value {
                self.let_go(upstream, serial);
            }
        }
    }

    /// Whether the long value of a task can be sent on.
    pub(super) fn turn_of(&mut self, number: usize, generation: u32) -> Turn {
        let found = self.tasks.slab.get_mut(number);
        let Some(task) = found.filter(|task| task.generation == generation) else {
            return Turn::Gone;
        };
        match task.value {
            Value::Awaited => Turn::NotYet,
            Value::Wanted { upstream, serial } => {
                task.value = Value::Given;
                Turn::Over { upstream, serial }
            }
            Value::Whole | Value::Given => Turn::Gone,
        }
    }

    /// The client of a task has gone before its long value could be sent on.
    pub(super) fn give_up(&mut self, number: usize, generation: u32) {
        let found = self.tasks.slab.get(number);
        if found.is_some_and(|task| task.generation == generation) {
            self.end_task(number);
        }
    }

    /// Begins to send the long value of a task, as [`send_for`](Proxy::send_for): `head` is what stands before
    /// it.
    fn begin_value(
        &mut self,
        number: usize,
        tag: Tag,
        place: usize,
        dialect: Dialect,
        head: &[u8],
        mut ticket: Ticket,
    ) -> Result<(), Refused> {
        let Some(task) = self.tasks.slab.get(number) else {
            return Ok(());
        };
        let To::Client { seat, .. } = task.ticket.to else {
            return Ok(());
        };
        ticket.to = To::Task {
            task: number as u32,
            generation: task.generation,
            tag,
            seat,
        };
        ticket.sent = self.now;
        let (upstream, serial) =
            self.begin_value_at(place, dialect, head, ticket, seat as usize)?;
        if let Some(task) = self.tasks.slab.get_mut(number) {
            task.value = Value::Wanted { upstream, serial };
        }
        self.front.call(seat as usize);
        Ok(())
    }

    /// Sends bytes for a task.
    pub(super) fn send_for(
        &mut self,
        number: usize,
        tag: Tag,
        place: usize,
        dialect: Dialect,
        bytes: &[u8],
        mut ticket: Ticket,
    ) -> Result<(), Refused> {
        let Some(task) = self.tasks.slab.get(number) else {
            return Ok(());
        };
        let generation = task.generation;
        let seat = match task.ticket.to {
            To::Client { seat, .. } => seat,
            _ => u32::MAX,
        };
        let upstream = self.connection(place, dialect, number)?;
        ticket.to = To::Task {
            task: number as u32,
            generation,
            tag,
            seat,
        };
        ticket.sent = self.now;
        self.upstreams[upstream].send(bytes, ticket);
        self.mark(upstream);
        Ok(())
    }

    fn keep(
        &mut self,
        number: usize,
        tag: Tag,
        bytes: Vec<u8>,
        verdict: Verdict,
        key: Option<Box<[u8]>>,
    ) {
        if let Some(task) = self.tasks.slab.get_mut(number) {
            self.tasks.bytes += bytes.len();
            match task.replies.iter_mut().find(|reply| reply.tag == tag) {
                Some(reply) => (reply.bytes, reply.verdict) = (bytes, verdict),
                None => task.replies.push(Reply {
                    tag,
                    bytes,
                    verdict,
                    key,
                }),
            }
        }
    }

    /// What servers have said to tasks and probes since the last call.
    pub fn run_tasks(&mut self) {
        while !self.front.events.is_empty() {
            for event in std::mem::take(&mut self.front.events) {
                match event {
                    Event::Answer {
                        task,
                        generation,
                        tag,
                        bytes,
                        verdict,
                    } => self.answered(task as usize, generation, tag, bytes, verdict, None),
                    Event::Failed {
                        task,
                        generation,
                        tag,
                        server,
                        fault,
                    } => {
                        let ticket = match self.tasks.slab.get(task as usize) {
                            Some(task) => task.ticket,
                            None => continue,
                        };
                        let bytes = refusal(&ticket, &self.front.failure(server, fault));
                        let why = Some(fault);
                        let verdict = Verdict::ServerError;
                        self.answered(task as usize, generation, tag, bytes, verdict, why);
                    }
                    Event::Probed {
                        server,
                        dialect,
                        pulse,
                    } => self.probed(server, dialect, pulse),
                    Event::Deleted { server, good } => self.deleted(server, good),
                    Event::Told {
                        server,
                        forgotten,
                        positions,
                    } => self.told_positions(server, forgotten, positions),
                    Event::Untold { server } => {
                        if let Some(server) = self.servers.get_mut(server) {
                            server.log.tells = false;
                        }
                    }
                }
            }
        }
    }

    fn answered(
        &mut self,
        number: usize,
        generation: u32,
        tag: Tag,
        bytes: Vec<u8>,
        verdict: Verdict,
        fault: Option<Fault>,
    ) {
        let Some(task) = self.tasks.slab.get_mut(number) else {
            return;
        };
        if task.generation != generation {
            return;
        }
        // What is known of hot keys begins anew with a plan, and places may be others' by then.
        let current = Arc::ptr_eq(&task.plan, &self.plan);
        task.elsewhere.retain(|(of, target, key)| {
            if *of == tag {
                target.remember_again(key);
            }
            *of != tag
        });
        match &mut task.kind {
            Kind::Walk(_) => self.walked(number, tag, bytes, verdict, fault),
            Kind::Once => {
                self.answer(number, &bytes, verdict);
                self.end_task(number);
            }
            Kind::Copied { pool, owner } => {
                let (pool, owner) = (*pool, *owner);
                self.answer(number, &bytes, verdict);
                if matches!(verdict, Verdict::Done | Verdict::Hit | Verdict::Miss) {
                    self.send_copies(number, pool, owner);
                }
                self.end_task(number);
            }
            Kind::Hot(_) => {
                let kind = std::mem::replace(&mut task.kind, Kind::Once);
                let told = task.wanted().and_then(|it| it.told(&bytes, verdict, None));
                let key = std::mem::take(&mut task.key);
                self.answer(number, told.as_ref().unwrap_or(&bytes), verdict);
                self.end_task(number);
                if let Kind::Hot(reading) = kind
                    && current
                {
                    self.read_from_owner(&reading, &key, &bytes, verdict);
                }
            }
            Kind::Copy(copy) => {
                let copy = *copy;
                if verdict == Verdict::Hit {
                    let wanted = task.wanted();
                    let told = wanted.and_then(|it| it.told(&bytes, verdict, copy.cas));
                    let key = std::mem::take(&mut task.key);
                    self.answer(number, told.as_ref().unwrap_or(&bytes), verdict);
                    self.end_task(number);
                    if current {
                        self.read_from_copy(&copy, &key, &bytes, verdict);
                    }
                    return;
                }
                task.kind = Kind::Once;
                if current {
                    self.copy_is_lost(copy.hash, copy.at);
                }
                self.ask_owner(number, copy.pool);
            }
            Kind::Filled {
                hash,
                at,
                read,
                cas,
            } => {
                let (hash, at, read, cas) = (*hash, *at, *read, *cas);
                self.end_task(number);
                if current {
                    self.filled(hash, at, read, cas, verdict);
                }
            }
            Kind::All { left, worst } => {
                *left -= 1;
                let bad = |verdict: Verdict| verdict != Verdict::Done;
                if worst
                    .as_ref()
                    .is_none_or(|(_, was)| !bad(*was) && bad(verdict))
                {
                    *worst = Some((bytes, verdict));
                }
                self.all_told(number);
            }
        }
    }

    /// Sends the request of a task, as its client has made it, to whoever is asked now for keys of a pool
    /// that was there when the task began.
    fn ask_owner(&mut self, number: usize, pool: usize) {
        let Some(task) = self.tasks.slab.get(number) else {
            return;
        };
        let (ticket, dialect) = (task.ticket, task.request.dialect);
        let (key, bytes) = (task.key.clone(), task.request.head.clone());
        let Some(pool) = self.pool_now(&task.plan, pool) else {
            let answer = refusal(&ticket, &gone());
            self.answer(number, &answer, Verdict::ServerError);
            return self.end_task(number);
        };
        let mut place = self.owner(pool, &key);
        if !self.servers[place].target.admits(&key) {
            place = self.stand_in_for(pool, place, &key);
        }
        self.send_or_answer(number, place, dialect, &bytes, ticket);
    }

    /// Answers a task that went to all servers, if all have answered.
    fn all_told(&mut self, number: usize) {
        let Some(Kind::All { left: 0, worst }) = self.kind(number) else {
            return;
        };
        if let Some((bytes, verdict)) = worst.take() {
            self.cluster.writes.all_written(self.now);
            self.answer(number, &bytes, verdict);
        }
        self.end_task(number);
    }

    /// The place of a pool of a plan that may be over; nothing if there is no such pool any more.
    fn pool_now(&self, plan: &Arc<Plan>, pool: usize) -> Option<usize> {
        if Arc::ptr_eq(plan, &self.plan) {
            return Some(pool);
        }
        self.plan.same_pool(plan, pool)
    }

    /// Sends what the owner of a key has done to the next servers, which nobody waits for.
    fn send_copies(&mut self, number: usize, pool: usize, owner: usize) {
        let Some(task) = self.tasks.slab.get(number) else {
            return;
        };
        let Some(bytes) = rewrite::copy(&task.request) else {
            return;
        };
        let Some(pool) = self.pool_now(&task.plan, pool) else {
            return;
        };
        let ticket = Ticket {
            to: To::Nobody,
            sent: self.now,
            ..task.ticket
        };
        let (dialect, rules) = (task.request.dialect, self.plan.pools[pool].rules);
        let places: Vec<usize> = self.plan.pools[pool]
            .ring
            .preference(&task.key)
            .skip(1)
            .take(rules.replicas - 1)
            .map(|member| self.places[pool][member])
            .filter(|&place| place != owner)
            .collect();
        for place in places {
            let target = self.servers[place].target.clone();
            // What it has missed must not be read from it later.
            if target.is_down() {
                if let Some(task) = self.tasks.slab.get(number) {
                    target.remember(&task.key);
                }
                continue;
            }
            match self.connection(place, dialect, 0) {
                Ok(upstream) if self.upstreams[upstream].waiting() < rules.bytes_max / 2 => {
                    self.upstreams[upstream].send(&bytes, ticket);
                    self.mark(upstream);
                }
                _ => {
                    let dropped = &target.counts.copies_dropped;
                    dropped.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
        }
    }

    /// Answers the client.
    pub(super) fn answer(&mut self, number: usize, bytes: &[u8], verdict: Verdict) {
        let Some(task) = self.tasks.slab.get(number) else {
            return;
        };
        let ticket = task.ticket;
        if !task.of_many {
            self.front.whole(&ticket, bytes, verdict);
            return;
        }
        let To::Client { slot, .. } = ticket.to else {
            return;
        };
        let key = KeyTicket { slot, tag: 0 };
        match (verdict, bytes.strip_suffix(b"END\r\n")) {
            (Verdict::Hit, Some(value)) => {
                self.front.value(&ticket, key, value);
            }
            (Verdict::Miss, _) => self.front.missing(&ticket, key),
            _ => self.front.refused(&ticket, key, bytes),
        }
    }

    /// Requests that more than one answer belongs to, and the bytes they hold.
    pub(super) fn tasks_open(&self) -> (usize, usize) {
        (self.tasks.slab.len(), self.tasks.bytes)
    }
}
