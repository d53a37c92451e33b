#![forbid(unsafe_code)]
//! A key that belongs to another group than a while ago, while not all proxies know that, and not all keys
//! are where they belong.
//!
//! Proxies hear of a group within moments of each other, so two of them may be one stage apart, never two:
//!
//! | stage | reads | what is written |
//! | --- | --- | --- |
//! | before | old | old |
//! | settling | old, then new | old, then new forgets it |
//! | bringing | new, then old, which fills new | old forgets it, then new |
//! | ending | new | old forgets it, then new |
//! | after | new | new |
//!
//! Whoever writes has both changed before the client is told, so whatever stage a reader is at finds that or
//! nothing older. What changes a value changes it where it is, and the other forgets it after that. What is read
//! from the old place fills the new one by a token that was handed out there before: whoever changes or deletes
//! the key there makes the token void, and reaches the old place before the new one, so that no token that is
//! younger fills it with what was there before.
//!
//! What creates a key that it does not find is sent only where the key is, or when it is in neither place. A
//! long value that is sent on as it comes is sent once: all else is done before it, and what the old place has
//! been given meanwhile it forgets after it.

use super::{Action, Context, Life, Outcome, Reply, Source, State, Tag, Token, Walk, What, World};
use super::{alone, fill};
use crate::settings::proxy::{Command, Failure, Moving, Route, RouteId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MovingStage {
    /// The place that has it, if any has, gets the request.
    There,
    /// That place is asked whether it has the key, for a request that is sent once or would create it.
    Seeking,
    /// The new place is asked that, before the old one stores what must not be there.
    Looking,
    /// The other one forgets the key; then this is the answer.
    Forgetting(Reply),
    /// The old place has forgotten the key, or has been asked to delete it; the new one gets the request.
    OldIsDone,
    /// The same, and what a delete has come to at the old place.
    Last(Option<Reply>),
    /// The new place is asked for a token. What it said before:
    Asking(Option<Reply>),
    /// The old place is read, to answer the client. What the new one has said:
    Reading(Token, Option<Reply>),
    /// The old place is read, so that the new one can change what it had.
    Fetching(Token, Option<Reply>),
    /// The old place is asked how long the value of the reply `of` lives.
    Aging {
        of: Tag,
        token: Token,
        /// What is answered if it has gone; nothing if the client has its answer.
        before: Option<Before>,
    },
    /// The new place is being filled, and gets the request after that. What it said before:
    Filling(Option<Reply>),
    /// It has got the request, with what was brought over.
    Again,
}

/// What the new place said before a change, if it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before(Option<Reply>);

impl MovingStage {
    /// Whether a reply may still become the answer, or fill the new place.
    pub(super) fn needs(&self, tag: Tag) -> bool {
        let is = |reply: &Reply| reply.source == Source::Reply(tag);
        let token = |token: &Token| *token == Token::Of(tag);
        match self {
            MovingStage::There
            | MovingStage::Seeking
            | MovingStage::Looking
            | MovingStage::OldIsDone
            | MovingStage::Again => false,
            MovingStage::Forgetting(reply) => is(reply),
            MovingStage::Last(reply) | MovingStage::Asking(reply) | MovingStage::Filling(reply) => {
                reply.as_ref().is_some_and(is)
            }
            MovingStage::Reading(of, reply) | MovingStage::Fetching(of, reply) => {
                token(of) || reply.as_ref().is_some_and(is)
            }
            MovingStage::Aging {
                of,
                token: by,
                before,
            } => {
                *of == tag
                    || token(by)
                    || before.is_some_and(|Before(reply)| reply.as_ref().is_some_and(is))
            }
        }
    }
}

/// What stores whatever was there, or takes it away.
fn overwrites(command: Command) -> bool {
    matches!(command, Command::Set | Command::Delete)
}

/// Whether a place that was asked for the life of a key has it.
fn is_there(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Done | Outcome::Hit)
}

/// Whether a request has not found the key. Text and binary say of some that they have not stored.
fn has_missed(command: Command, outcome: Outcome) -> bool {
    let needs_it = matches!(
        command,
        Command::Replace | Command::Append | Command::Prepend
    );
    outcome == Outcome::Miss || needs_it && outcome == Outcome::Refused
}

/// Whether something may have changed.
fn has_changed(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Done | Outcome::Hit | Outcome::Failed(_))
}

/// Times that a key is brought over anew, for one request, when that was refused.
const REFILLS_MAX: u8 = 3;

/// What is answered when a key would be created that another place may have.
const UNKNOWN: Reply = Reply {
    outcome: Outcome::Failed(Failure::Error),
    source: Source::Unknown,
};

/// The places of a route.
#[derive(Clone, Copy)]
struct Places {
    old: RouteId,
    new: RouteId,
    ttl: Option<u32>,
    stage: Moving,
}

impl Walk {
    fn places(&self, id: RouteId) -> Places {
        match self.tree.routes[id] {
            Route::Moving {
                old,
                new,
                ttl,
                stage,
            } => Places {
                old,
                new,
                ttl,
                stage,
            },
            _ => unreachable!("this one moves keys"),
        }
    }

    pub(super) fn enter_moving(
        &mut self,
        id: RouteId,
        context: Context,
        world: &mut impl World,
        actions: &mut Vec<Action>,
    ) {
        let Places {
            old, new, stage, ..
        } = self.places(id);
        let context = Context {
            moves: true,
            ..context
        };
        let read = context.command.is_read();
        if read && (stage == Moving::Ending || !context.awaited) {
            return self.enter(new, context, world, actions);
        }
        if !context.awaited {
            // Nobody is told when it is done, and it is done in both places as soon as may be.
            let (to, other) = match stage {
                Moving::Settling => (old, new),
                Moving::Bringing | Moving::Ending => (new, old),
            };
            self.enter(other, fill::forgetting(context), world, actions);
            return self.enter(to, context, world, actions);
        }
        let manner = self.manner;
        let careful = (manner.creates || manner.once) && !overwrites(context.command);
        let (first, to, what) = match stage {
            Moving::Settling if careful => (MovingStage::Seeking, old, fill::aging(context)),
            Moving::Bringing if careful && context.command != Command::Add => {
                (MovingStage::Seeking, new, fill::aging(context))
            }
            // It is stored only if the key is not there: what the other place has counts.
            Moving::Settling if context.command == Command::Add => {
                (MovingStage::Looking, new, fill::aging(context))
            }
            Moving::Settling => (MovingStage::There, old, context),
            _ if context.command == Command::Delete => (MovingStage::OldIsDone, old, context),
            _ if overwrites(context.command) => {
                (MovingStage::OldIsDone, old, fill::forgetting(context))
            }
            Moving::Bringing if context.command == Command::Add => {
                (MovingStage::Asking(None), new, asking(context))
            }
            _ => (MovingStage::There, new, context),
        };
        let parent = self.frame(id, context, State::Moving(first)).parent;
        self.enter(to, Context { parent, ..what }, world, actions);
    }

    pub(super) fn moving(
        &mut self,
        parent: usize,
        stage: MovingStage,
        reply: Reply,
        world: &mut impl World,
        actions: &mut Vec<Action>,
    ) {
        let places = self.places(self.frames[parent].route);
        let above = self.frames[parent].context;
        let below = Context {
            parent: Some(parent as u16),
            ..above
        };
        let command = above.command;
        let read = command.is_read();
        let Places { old, new, ttl, .. } = places;
        let settling = places.stage == Moving::Settling;
        let manner = self.manner;
        let (next, to, what) = match stage {
            MovingStage::There if settling => {
                let missed = has_missed(command, reply.outcome);
                if missed && !manner.once {
                    (MovingStage::Last(None), new, below)
                } else if !read && has_changed(reply.outcome) {
                    let forgets = fill::forgetting(below);
                    (MovingStage::Forgetting(reply), new, forgets)
                } else {
                    return self.over(parent, reply, world, actions);
                }
            }
            MovingStage::There => {
                let missed = has_missed(command, reply.outcome);
                if missed && places.stage == Moving::Bringing && !manner.once {
                    (MovingStage::Asking(Some(reply)), new, asking(below))
                } else if !read && has_changed(reply.outcome) {
                    let forgets = fill::forgetting(below);
                    (MovingStage::Forgetting(reply), old, forgets)
                } else {
                    return self.over(parent, reply, world, actions);
                }
            }
            MovingStage::Seeking if is_there(reply.outcome) => {
                (MovingStage::There, if settling { old } else { new }, below)
            }
            MovingStage::Seeking | MovingStage::Looking
                if matches!(reply.outcome, Outcome::Failed(_))
                    && (manner.creates || manner.once) =>
            {
                return self.over(parent, UNKNOWN, world, actions);
            }
            MovingStage::Seeking if settling => (MovingStage::Looking, new, fill::aging(below)),
            MovingStage::Seeking => (MovingStage::Asking(None), new, asking(below)),
            MovingStage::Looking if is_there(reply.outcome) => {
                (MovingStage::Last(None), new, below)
            }
            MovingStage::Looking => (MovingStage::There, old, below),
            MovingStage::Forgetting(answer) => return self.over(parent, answer, world, actions),
            MovingStage::OldIsDone => {
                let deleted = command == Command::Delete && reply.outcome == Outcome::Done;
                (MovingStage::Last(deleted.then_some(reply)), new, below)
            }
            MovingStage::Last(deleted) => {
                let reply = match deleted {
                    Some(deleted) if reply.outcome == Outcome::Miss => deleted,
                    _ => reply,
                };
                // A long value takes its time, in which the old place may have been given another.
                if manner.once && !settling && has_changed(reply.outcome) {
                    let forgets = fill::forgetting(below);
                    (MovingStage::Forgetting(reply), old, forgets)
                } else {
                    // Settling, it was nowhere, or has been changed where it belongs from now on.
                    return self.over(parent, reply, world, actions);
                }
            }
            MovingStage::Asking(before) => {
                let token = match (reply.outcome, reply.source) {
                    (Outcome::Done, Source::Reply(tag)) => Token::Of(tag),
                    // It does not know of tokens.
                    (Outcome::Failed(Failure::Error), _) => Token::Unknown,
                    _ => Token::Refused,
                };
                if read {
                    (MovingStage::Reading(token, before), old, below)
                } else {
                    let reads = reading(below);
                    (MovingStage::Fetching(token, before), old, reads)
                }
            }
            MovingStage::Reading(token, before) => {
                let of = match (reply.outcome, reply.source) {
                    // The group that it went from may be gone for good.
                    (Outcome::Failed(Failure::Down), _) => {
                        let reply = before.unwrap_or(reply);
                        return self.over(parent, reply, world, actions);
                    }
                    (Outcome::Hit, Source::Reply(of)) if command == Command::Get => of,
                    _ => return self.over(parent, reply, world, actions),
                };
                if token == Token::Refused {
                    return self.over(parent, reply, world, actions);
                }
                let stage = match ttl {
                    Some(_) => State::Over,
                    None => State::Moving(MovingStage::Aging {
                        of,
                        token,
                        before: None,
                    }),
                };
                self.frames[parent].state = stage;
                self.leave(above, reply, world, actions);
                let (to, what) = match ttl {
                    Some(ttl) => {
                        let life = Life::Seconds(ttl);
                        (new, fill::filled(alone(above), of, life, token))
                    }
                    None => (old, fill::aging(below)),
                };
                return self.enter(to, what, world, actions);
            }
            MovingStage::Fetching(token, before) => match (reply.outcome, reply.source) {
                (Outcome::Hit, Source::Reply(of)) if token != Token::Refused => match ttl {
                    Some(ttl) => {
                        let fills = fill::filled(below, of, Life::Seconds(ttl), token);
                        (MovingStage::Filling(before), new, fills)
                    }
                    None => {
                        let before = Some(Before(before));
                        let aging = MovingStage::Aging { of, token, before };
                        (aging, old, fill::aging(below))
                    }
                },
                (outcome, _) => {
                    let absent = matches!(outcome, Outcome::Miss | Outcome::ClientError);
                    return self.as_it_is(parent, before, absent, world, actions);
                }
            },
            MovingStage::Aging { of, token, before } => {
                let life = match reply.source {
                    Source::Reply(tag) if is_there(reply.outcome) => Some(Life::Of(tag)),
                    _ => None,
                };
                match (before, life) {
                    (None, life) => {
                        self.frames[parent].state = State::Over;
                        if let Some(life) = life {
                            let fills = fill::filled(alone(above), of, life, token);
                            self.enter(new, fills, world, actions);
                        }
                        return;
                    }
                    (Some(Before(before)), Some(life)) => {
                        let fills = fill::filled(below, of, life, token);
                        (MovingStage::Filling(before), new, fills)
                    }
                    // It has gone meanwhile.
                    (Some(Before(before)), None) => {
                        let absent = reply.outcome == Outcome::Miss;
                        return self.as_it_is(parent, before, absent, world, actions);
                    }
                }
            }
            MovingStage::Filling(before) => match reply.outcome {
                // Perhaps the token has been forgotten, and it is not there.
                Outcome::Refused if manner.creates => {
                    self.refills += 1;
                    if self.refills > REFILLS_MAX {
                        return self.over(parent, UNKNOWN, world, actions);
                    }
                    (MovingStage::Seeking, new, fill::aging(below))
                }
                // Filled, or somebody else has changed it meanwhile.
                Outcome::Done | Outcome::Refused => (MovingStage::Again, new, below),
                _ => return self.as_it_is(parent, before, false, world, actions),
            },
            MovingStage::Again => {
                if has_changed(reply.outcome) {
                    let forgets = fill::forgetting(below);
                    (MovingStage::Forgetting(reply), old, forgets)
                } else {
                    return self.over(parent, reply, world, actions);
                }
            }
        };
        self.frames[parent].state = State::Moving(next);
        self.enter(to, what, world, actions);
    }

    /// There is nothing to bring over: what the new place has said stands, or, if it has not been asked, it is
    /// asked now. Unless the key is known to be `absent`, nothing that would create it is.
    fn as_it_is(
        &mut self,
        parent: usize,
        before: Option<Reply>,
        absent: bool,
        world: &mut impl World,
        actions: &mut Vec<Action>,
    ) {
        if let Some(before) = before {
            return self.over(parent, before, world, actions);
        }
        if self.manner.creates && !absent {
            return self.over(parent, UNKNOWN, world, actions);
        }
        let places = self.places(self.frames[parent].route);
        let below = Context {
            parent: Some(parent as u16),
            ..self.frames[parent].context
        };
        self.frames[parent].state = State::Moving(MovingStage::Again);
        self.enter(places.new, below, world, actions);
    }

    fn over(
        &mut self,
        parent: usize,
        reply: Reply,
        world: &mut impl World,
        actions: &mut Vec<Action>,
    ) {
        let above = self.frames[parent].context;
        self.frames[parent].state = State::Over;
        self.leave(above, reply, world, actions);
    }
}

/// The new place is asked for a token.
fn asking(context: Context) -> Context {
    Context {
        command: Command::Get,
        what: What::Token,
        ..context
    }
}

fn reading(context: Context) -> Context {
    Context {
        command: Command::Get,
        what: What::Read,
        ..context
    }
}
