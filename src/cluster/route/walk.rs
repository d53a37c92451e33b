//! One request on its way through routes that need more than a choice.
#![forbid(unsafe_code)]

// What one place misses is read from another.
mod fill;

// Keys that go to another group.
mod moving;

use std::sync::Arc;

use super::{Progress, Question, Tree, choose, has_moved, in_share};
use crate::settings::proxy::{Command, Failure, Route, RouteId, Wait};
use fill::FillStage;
use moving::MovingStage;

/// Names a send, and the reply to it.
pub type Tag = u16;

/// Names a key: 0 is the client's own, others are found with [`Walk::key`].
pub type KeyId = u16;

/// What a walk wants done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Send(Send),
    /// The client's answer. There is exactly one.
    Answer(Source),
}

/// Something to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    pub tag: Tag,
    pub pool: usize,
    pub key: KeyId,
    pub what: What,
    pub ttl: Ttl,
    /// Milliseconds to wait before.
    pub delay_ms: u64,
    /// Whether [`Walk::outcome`] has to be told what came of it. What nobody awaits is sent, and its
    /// reply is dropped.
    pub awaited: bool,
}

/// What a send consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The client's request.
    Request,
    /// A plain read of the key.
    Read,
    /// How long the key still lives.
    Life,
    /// A token to fill the key with.
    Token,
    /// An `add` of the value that came with the reply to `of`.
    Fill { of: Tag, life: Life, token: Token },
    /// A delete of the key.
    Delete,
}

/// What allows a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// What the reply to this, a [`What::Token`], has said.
    Of(Tag),
    /// The server has none to give: nothing but that the key is not there.
    Unknown,
    /// Nothing does.
    Refused,
}

/// How long what fills a server lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Seconds(u32),
    /// What the reply to this, a [`What::Life`], has said.
    Of(Tag),
}

/// What becomes of the TTL of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ttl {
    #[default]
    AsIs,
    /// At most so many seconds.
    AtMost(u32),
    /// So many seconds.
    Exactly(u32),
}

/// Longer TTLs are moments since 1970.
const RELATIVE_MAX: i64 = 60 * 60 * 24 * 30;

impl Ttl {
    fn at_most(self, most: Option<u32>) -> Ttl {
        match (self, most) {
            (_, None) => self,
            (Ttl::AsIs, Some(most)) => Ttl::AtMost(most),
            (Ttl::AtMost(ttl), Some(most)) => Ttl::AtMost(ttl.min(most)),
            (Ttl::Exactly(ttl), Some(most)) => Ttl::Exactly(ttl.min(most)),
        }
    }

    fn exactly(self, ttl: Option<u32>) -> Ttl {
        ttl.map_or(self, Ttl::Exactly)
    }

    /// The expiry time to send for the one a client gave: seconds from now, or since 1970 where
    /// that is more than 30 days; 0 is never, less is at once.
    pub fn apply(self, exptime: i64, unix_seconds: u64) -> i64 {
        let as_sent = |seconds: i64| {
            if seconds > RELATIVE_MAX {
                seconds.saturating_add(unix_seconds as i64)
            } else {
                seconds
            }
        };
        match self {
            Ttl::AsIs => exptime,
            _ if exptime < 0 => exptime,
            Ttl::Exactly(ttl) => as_sent(ttl.into()),
            Ttl::AtMost(most) => {
                let left = if exptime > RELATIVE_MAX {
                    exptime - unix_seconds as i64
                } else {
                    exptime
                };
                if exptime == 0 || left > i64::from(most) {
                    as_sent(most.into())
                } else {
                    exptime
                }
            }
        }
    }
}

/// What came of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A value.
    Hit,
    /// No such key.
    Miss,
    /// It was done.
    Done,
    /// The server refused, as asked: `NOT_STORED`, `EXISTS`.
    Refused,
    /// The client is at fault: any server would say so.
    ClientError,
    Failed(Failure),
}

impl Outcome {
    /// Fan-outs answer with the worst.
    fn badness(self) -> u8 {
        match self {
            Outcome::Hit | Outcome::Done => 0,
            Outcome::Miss => 1,
            Outcome::Refused => 2,
            Outcome::ClientError => 3,
            Outcome::Failed(_) => 4,
        }
    }

    fn failure(self) -> Option<Failure> {
        match self {
            Outcome::Miss => Some(Failure::Miss),
            Outcome::Failed(failure) => Some(failure),
            _ => None,
        }
    }
}

/// Where an answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The reply to this send.
    Reply(Tag),
    /// What a server without the key says to a read or a delete; `NOT_STORED` to a store.
    Null,
    /// The words of an `error` or `fault` route.
    Error(RouteId),
    /// `SERVER_ERROR 307 busy`: a limit has been reached.
    Busy,
    /// The key got longer than keys may be: `CLIENT_ERROR`.
    KeyTooLong,
    /// `SERVER_ERROR`: the key moves, and whether the other place has it cannot be found out.
    Unknown,
}

/// What is known of a request beyond its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Manner {
    /// It changes what is there, and creates what is not.
    pub creates: bool,
    /// Its value is sent on as it comes, so it can be sent once.
    pub once: bool,
}

/// An outcome and its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    pub outcome: Outcome,
    pub source: Source,
}

/// What a walk asks of the world.
pub trait World {
    /// Requests that wait for the server of a pool that owns the key; `u64::MAX` if it is down.
    fn load(&self, pool: usize, key: &[u8]) -> u64;
    /// The route of a key of a pool that goes from one of its groups to another.
    fn moving(&self, pool: usize, key: &[u8]) -> Option<RouteId> {
        let _ = (pool, key);
        None
    }
    /// Sixty-four random bits.
    fn random(&mut self) -> u64;
    /// Nanoseconds of a clock that never goes back.
    fn nanoseconds(&self) -> u64;
    /// The time of day.
    fn unix_seconds(&self) -> u64;
    /// The longest key that servers take.
    fn key_max(&self) -> usize;
}

/// What a subtree is entered with.
#[derive(Debug, Clone, Copy)]
struct Context {
    command: Command,
    what: What,
    key: KeyId,
    ttl: Ttl,
    delay_ms: u64,
    awaited: bool,
    /// Between an old place and a new one of its key: pools are taken as they are.
    moves: bool,
    parent: Option<u16>,
}

/// A route that waits for what lies below it.
#[derive(Debug)]
struct Frame {
    route: RouteId,
    context: Context,
    state: State,
}

#[derive(Debug)]
enum State {
    Failover {
        /// Place of the first child, and how many were asked.
        first: usize,
        asked: usize,
        /// A miss, to be preferred to a later failure.
        held: Option<Reply>,
    },
    Fanout {
        expected: usize,
        replies: Vec<Reply>,
        answered: bool,
    },
    /// Tier and warmup alike: ask the first, then the second, then fill the first.
    Fill(FillStage),
    /// Between an old place and a new one.
    Moving(MovingStage),
    /// A place is taken in `in_flight`, and given back afterwards.
    Counted,
    /// It has given its reply.
    Over,
}

/// One request on its way. Drop it when the client has gone.
#[derive(Debug)]
pub struct Walk {
    tree: Arc<Tree>,
    listener: Option<Box<str>>,
    keys: Vec<Vec<u8>>,
    frames: Vec<Frame>,
    /// The contexts of sends whose outcome is owed, by tag.
    sends: Vec<Option<Context>>,
    answered: bool,
    manner: Manner,
    /// Fills that were refused and are tried again.
    refills: u8,
}

impl Walk {
    /// Enters a route. What is to be done is appended to `actions`.
    pub fn start(
        tree: &Arc<Tree>,
        route: RouteId,
        question: &Question<'_>,
        manner: Manner,
        world: &mut impl World,
        actions: &mut Vec<Action>,
    ) -> Walk {
        let mut walk = Walk {
            tree: tree.clone(),
            listener: question.listener.map(Into::into),
            keys: vec![question.key.to_vec()],
            frames: Vec::new(),
            sends: Vec::new(),
            answered: false,
            manner,
            refills: 0,
        };
        let context = Context {
            command: question.command,
            what: What::Request,
            key: 0,
            ttl: Ttl::AsIs,
            delay_ms: 0,
            awaited: true,
            moves: false,
            parent: None,
        };
        walk.enter(route, context, world, actions);
        walk
    }

    /// What came of a send that was awaited. Of others, and of those reported before, nothing comes.
    pub fn outcome(
        &mut self,
        tag: Tag,
        outcome: Outcome,
        world: &mut impl World,
        actions: &mut Vec<Action>,
    ) {
        let context = self.sends.get_mut(usize::from(tag)).and_then(Option::take);
        if let Some(context) = context {
            let source = Source::Reply(tag);
            self.leave(context, Reply { outcome, source }, world, actions);
        }
    }

    /// The bytes of a key.
    pub fn key(&self, id: KeyId) -> &[u8] {
        &self.keys[usize::from(id)]
    }

    /// Whether the client has its answer.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// Whether outcomes are owed still: until then the walk must be kept.
    pub fn is_over(&self) -> bool {
        self.answered && self.sends.iter().all(Option::is_none)
    }

    /// Whether the reply to a send may still become the answer, or fill another server. Others can
    /// be dropped.
    pub fn needs(&self, tag: Tag) -> bool {
        let is = |reply: &Reply| reply.source == Source::Reply(tag);
        self.frames.iter().any(|frame| match &frame.state {
            State::Failover { held, .. } => held.as_ref().is_some_and(is),
            State::Fanout {
                replies, answered, ..
            } => !answered && replies.iter().any(is),
            State::Fill(FillStage::Filling(reply)) => is(reply),
            State::Fill(FillStage::Life { of, before }) => {
                *of == tag || before.as_ref().is_some_and(is)
            }
            State::Moving(stage) => stage.needs(tag),
            State::Fill(_) | State::Counted | State::Over => false,
        })
    }

    fn enter(
        &mut self,
        id: RouteId,
        mut context: Context,
        world: &mut impl World,
        actions: &mut Vec<Action>,
    ) {
        let tree = self.tree.clone();
        match &tree.routes[id] {
            Route::Pool { pool } => {
                let key = self.key(context.key);
                let moving = match context.moves {
                    true => None,
                    false => world.moving(*pool, key),
                };
                match moving {
                    Some(route) => self.enter(route, context, world, actions),
                    None => self.send(*pool, context, actions),
                }
            }
            Route::Match { rules, otherwise } => {
                let question = Question {
                    command: context.command,
                    key: self.key(context.key),
                    listener: self.listener.as_deref(),
                };
                let next = choose(rules, *otherwise, &question);
                self.enter(next, context, world, actions);
            }
            Route::Random { children } => {
                let random = world.random();
                let at = crate::cluster::hotkey::two_choices(random, children.len(), |at| {
                    self.load(children[at], &context, world)
                });
                self.enter(children[at], context, world, actions);
            }
            Route::Migrate {
                from,
                to,
                start,
                length,
            } => {
                let now = world.unix_seconds();
                let key = self.key(context.key);
                let (here, there) = if has_moved(key, *start, *length, now) {
                    (*to, *from)
                } else {
                    (*from, *to)
                };
                self.enter(here, context, world, actions);
                if context.command == Command::Delete
                    && Progress::at(*start, *length, now) == Progress::Under
                {
                    self.enter(there, alone(context), world, actions);
                }
            }
            Route::Null => self.leave(context, null(context.command), world, actions),
            Route::Error { .. } => self.leave(context, error(id), world, actions),
            Route::Rewrite {
                to,
                strip,
                prefix,
                suffix,
                ttl,
                ttl_max,
            } => {
                context.ttl = context.ttl.exactly(*ttl).at_most(*ttl_max);
                match self.rewritten(context.key, strip, prefix, suffix, world.key_max()) {
                    Some(key) => {
                        context.key = key;
                        self.enter(*to, context, world, actions);
                    }
                    None => {
                        let reply = Reply {
                            outcome: Outcome::ClientError,
                            source: Source::KeyTooLong,
                        };
                        self.leave(context, reply, world, actions);
                    }
                }
            }
            Route::Limit { to, commands, .. } => {
                if !commands.has(context.command) {
                    return self.enter(*to, context, world, actions);
                }
                let gate = &tree.gates[id];
                let allowed = gate
                    .rate
                    .as_ref()
                    .is_none_or(|bucket| bucket.take(world.nanoseconds()));
                // What nobody awaits cannot be counted out again.
                let counted = gate.in_flight.as_ref().filter(|_| context.awaited);
                if !allowed || counted.is_some_and(|most| !most.enter()) {
                    let busy = Reply {
                        outcome: Outcome::Failed(Failure::Busy),
                        source: Source::Busy,
                    };
                    return self.leave(context, busy, world, actions);
                }
                match counted {
                    Some(_) => {
                        let below = self.frame(id, context, State::Counted);
                        self.enter(*to, below, world, actions);
                    }
                    None => self.enter(*to, context, world, actions),
                }
            }
            Route::Fault {
                to,
                share,
                delay_ms,
                error: words,
            } => {
                let unit = (world.random() >> 11) as f64 / (1_u64 << 53) as f64;
                let struck = unit < *share;
                if struck && words.is_some() {
                    return self.leave(context, error(id), world, actions);
                }
                if struck {
                    context.delay_ms = context.delay_ms.saturating_add(*delay_ms);
                }
                self.enter(*to, context, world, actions);
            }
            Route::Shadow {
                main,
                copies,
                share,
            } => {
                let copied = in_share(self.key(context.key), *share);
                self.enter(*main, context, world, actions);
                if copied {
                    self.enter(*copies, alone(context), world, actions);
                }
            }
            Route::Failover {
                children, order, ..
            } => {
                let first = tree.first_child(*order, children.len(), self.key(context.key));
                if !context.awaited {
                    return self.enter(children[first], context, world, actions);
                }
                let state = State::Failover {
                    first,
                    asked: 1,
                    held: None,
                };
                let below = self.frame(id, context, state);
                self.enter(children[first], below, world, actions);
            }
            Route::Fanout { children, wait } => {
                self.fan_out(id, children, *wait, context, world, actions);
            }
            Route::Tier { near, far, .. } => {
                self.enter_fill(id, *near, *far, true, context, world, actions);
            }
            Route::Warmup { cold, warm, .. } => {
                self.enter_fill(id, *cold, *warm, false, context, world, actions);
            }
            Route::Moving { .. } => self.enter_moving(id, context, world, actions),
        }
    }

    /// What lies below a new frame is entered with its answer.
    fn frame(&mut self, route: RouteId, context: Context, state: State) -> Context {
        self.frames.push(Frame {
            route,
            context,
            state,
        });
        Context {
            parent: Some((self.frames.len() - 1) as u16),
            ..context
        }
    }

    fn send(&mut self, pool: usize, context: Context, actions: &mut Vec<Action>) {
        let tag = self.sends.len() as Tag;
        self.sends.push(context.awaited.then_some(context));
        actions.push(Action::Send(Send {
            tag,
            pool,
            key: context.key,
            what: context.what,
            ttl: context.ttl,
            delay_ms: context.delay_ms,
            awaited: context.awaited,
        }));
    }

    fn rewritten(
        &mut self,
        key: KeyId,
        strip: &[u8],
        prefix: &[u8],
        suffix: &[u8],
        most: usize,
    ) -> Option<KeyId> {
        if strip.is_empty() && prefix.is_empty() && suffix.is_empty() {
            return Some(key);
        }
        let old = self.key(key);
        let rest = old.strip_prefix(strip).unwrap_or(old);
        let new = [prefix, rest, suffix].concat();
        if new.is_empty() || new.len() > most {
            return None;
        }
        if let Some(known) = self.keys.iter().position(|known| *known == new) {
            return Some(known as KeyId);
        }
        self.keys.push(new);
        Some((self.keys.len() - 1) as KeyId)
    }

    /// Requests that wait where a subtree would send this first.
    fn load(&self, mut id: RouteId, context: &Context, world: &impl World) -> u64 {
        loop {
            id = match &self.tree.routes[id] {
                Route::Pool { pool } => return world.load(*pool, self.key(context.key)),
                Route::Match { rules, otherwise } => {
                    let question = Question {
                        command: context.command,
                        key: self.key(context.key),
                        listener: self.listener.as_deref(),
                    };
                    choose(rules, *otherwise, &question)
                }
                Route::Null | Route::Error { .. } => return 0,
                Route::Failover { children, .. }
                | Route::Fanout { children, .. }
                | Route::Random { children } => children[0],
                Route::Tier { near: to, .. }
                | Route::Warmup { cold: to, .. }
                | Route::Moving { new: to, .. }
                | Route::Migrate { to, .. }
                | Route::Shadow { main: to, .. }
                | Route::Rewrite { to, .. }
                | Route::Limit { to, .. }
                | Route::Fault { to, .. } => *to,
            };
        }
    }

    fn fan_out(
        &mut self,
        id: RouteId,
        children: &[RouteId],
        wait: Wait,
        context: Context,
        world: &mut impl World,
        actions: &mut Vec<Action>,
    ) {
        if !context.awaited || wait == Wait::None {
            for &child in children {
                self.enter(child, alone(context), world, actions);
            }
            return self.leave(context, null(context.command), world, actions);
        }
        if wait == Wait::Primary {
            self.enter(children[0], context, world, actions);
            for &child in &children[1..] {
                self.enter(child, alone(context), world, actions);
            }
            return;
        }
        let state = State::Fanout {
            expected: children.len(),
            replies: Vec::new(),
            answered: false,
        };
        let below = self.frame(id, context, state);
        for &child in children {
            self.enter(child, below, world, actions);
        }
    }

    /// A subtree has its reply: its parent goes on, or the client gets it.
    fn leave(
        &mut self,
        context: Context,
        reply: Reply,
        world: &mut impl World,
        actions: &mut Vec<Action>,
    ) {
        if !context.awaited {
            return;
        }
        let Some(parent) = context.parent else {
            if !self.answered {
                self.answered = true;
                actions.push(Action::Answer(reply.source));
            }
            return;
        };
        let tree = self.tree.clone();
        let parent = usize::from(parent);
        let route = self.frames[parent].route;
        let above = self.frames[parent].context;
        match (&mut self.frames[parent].state, &tree.routes[route]) {
            (State::Counted, _) => {
                if let Some(in_flight) = &tree.gates[route].in_flight {
                    in_flight.leave();
                }
                self.frames[parent].state = State::Over;
                self.leave(above, reply, world, actions);
            }
            (
                State::Failover { first, asked, held },
                Route::Failover {
                    children,
                    on,
                    ttl_max,
                    ..
                },
            ) => {
                let goes_on = reply
                    .outcome
                    .failure()
                    .is_some_and(|failure| on.has(failure))
                    && *asked < children.len()
                    && tree.gates[route]
                        .rate
                        .as_ref()
                        .is_none_or(|bucket| bucket.take(world.nanoseconds()));
                if goes_on {
                    if reply.outcome == Outcome::Miss {
                        *held = Some(reply);
                    }
                    let child = children[(*first + *asked) % children.len()];
                    *asked += 1;
                    let below = Context {
                        parent: Some(parent as u16),
                        ttl: above.ttl.at_most(*ttl_max),
                        ..above
                    };
                    return self.enter(child, below, world, actions);
                }
                let failed = matches!(reply.outcome, Outcome::Failed(_));
                let reply = held.take().filter(|_| failed).unwrap_or(reply);
                self.leave(above, reply, world, actions);
            }
            (
                State::Fanout {
                    expected,
                    replies,
                    answered,
                },
                Route::Fanout { wait, .. },
            ) => {
                if *answered {
                    return;
                }
                replies.push(reply);
                if let Some(verdict) = verdict(*wait, *expected, replies) {
                    *answered = true;
                    self.leave(above, verdict, world, actions);
                }
            }
            (State::Fill(stage), _) => {
                let stage = *stage;
                self.filling(parent, stage, reply, world, actions);
            }
            (State::Moving(stage), _) => {
                let stage = *stage;
                self.moving(parent, stage, reply, world, actions);
            }
            (State::Over, _) => {}
            _ => unreachable!("a frame has the state of its route"),
        }
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        for frame in &self.frames {
            if let (State::Counted, Some(in_flight)) =
                (&frame.state, &self.tree.gates[frame.route].in_flight)
            {
                in_flight.leave();
            }
        }
    }
}

/// The same, with nobody waiting for it.
fn alone(context: Context) -> Context {
    Context {
        awaited: false,
        parent: None,
        ..context
    }
}

fn null(command: Command) -> Reply {
    let outcome = match command {
        Command::Set | Command::Add | Command::Replace | Command::Append | Command::Prepend => {
            Outcome::Refused
        }
        _ => Outcome::Miss,
    };
    Reply {
        outcome,
        source: Source::Null,
    }
}

fn error(id: RouteId) -> Reply {
    Reply {
        outcome: Outcome::Failed(Failure::Error),
        source: Source::Error(id),
    }
}

/// What a fan-out answers with, when it can be said.
fn verdict(wait: Wait, expected: usize, replies: &[Reply]) -> Option<Reply> {
    let all = replies.len() == expected;
    let worst = || {
        let worst = replies.iter().max_by_key(|reply| reply.outcome.badness());
        worst.copied()
    };
    let last = replies.last()?;
    match wait {
        Wait::First if !matches!(last.outcome, Outcome::Failed(_)) => Some(*last),
        Wait::Majority => {
            let alike = |one: &&Reply| one.outcome.badness() == last.outcome.badness();
            if replies.iter().filter(alike).count() > expected / 2 {
                // The first of them: the client gets what came earliest.
                replies.iter().find(alike).copied()
            } else if all {
                most_common(replies)
            } else {
                None
            }
        }
        _ if all => worst(),
        _ => None,
    }
}

/// Without a majority: what most say, and of as many the worst.
fn most_common(replies: &[Reply]) -> Option<Reply> {
    let count = |reply: &&Reply| {
        let badness = reply.outcome.badness();
        let alike = replies
            .iter()
            .filter(|other| other.outcome.badness() == badness);
        (alike.count(), badness)
    };
    replies.iter().max_by_key(count).copied()
}
