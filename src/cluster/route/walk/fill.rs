#![forbid(unsafe_code)]
//! Tier and warmup: what one place misses is read from another, and put there.

use super::alone;
use super::{Action, Context, Life, Outcome, Reply, Source, State, Tag, Token, Walk, What, World};
use crate::settings::proxy::{Command, Route, RouteId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FillStage {
    First,
    Second,
    /// The second is asked how long the value of the reply `of` lives, to fill the first with it. Before
    /// a change, what the first said:
    Life {
        of: Tag,
        before: Option<Reply>,
    },
    /// The first is being filled, and gets the client's request after that. What it said before:
    Filling(Reply),
    Again,
    /// A write; the other has to forget the key when it is done.
    Write,
}

impl Walk {
    /// `tier`: reads begin at `first`, writes go to `second`. Else (warmup) both begin at `first`.
    #[allow(clippy::too_many_arguments)] // a route taken apart
    pub(super) fn enter_fill(
        &mut self,
        id: RouteId,
        first: RouteId,
        second: RouteId,
        tier: bool,
        context: Context,
        world: &mut impl World,
        actions: &mut Vec<Action>,
    ) {
        let overwrites = matches!(
            context.command,
            Command::Set | Command::Add | Command::Cas | Command::Delete
        );
        if context.command.is_read() || !tier && !overwrites {
            if !context.awaited {
                return self.enter(first, context, world, actions);
            }
            let below = self.frame(id, context, State::Fill(FillStage::First));
            return self.enter(first, below, world, actions);
        }
        let (written, other) = if tier {
            (second, first)
        } else {
            (first, second)
        };
        if context.awaited {
            if tier {
                // A read that follows before this is answered must not find what was there, nor, when
                // it has been answered, what such a read has put there meanwhile.
                self.enter(other, forgetting(alone(context)), world, actions);
            }
            let below = self.frame(id, context, State::Fill(FillStage::Write));
            self.enter(written, below, world, actions);
        } else {
            self.enter(written, context, world, actions);
            self.enter(other, forgetting(context), world, actions);
        }
    }

    pub(super) fn filling(
        &mut self,
        parent: usize,
        stage: FillStage,
        reply: Reply,
        world: &mut impl World,
        actions: &mut Vec<Action>,
    ) {
        let tree = self.tree.clone();
        let above = self.frames[parent].context;
        let (first, second, tier, ttl) = match tree.routes[self.frames[parent].route] {
            Route::Tier { near, far, ttl } => (near, far, true, Some(ttl)),
            Route::Warmup { cold, warm, ttl } => (cold, warm, false, ttl),
            _ => unreachable!("only these two fill"),
        };
        let below = Context {
            parent: Some(parent as u16),
            ..above
        };
        let read = above.command.is_read();
        match stage {
            // A near server that is down costs a longer way, and nothing else.
            FillStage::First
                if reply.outcome == Outcome::Miss
                    || tier && matches!(reply.outcome, Outcome::Failed(_)) =>
            {
                // A change needs the value here first: it is read, added, and changed then.
                let below = if read {
                    below
                } else {
                    Context {
                        command: Command::Get,
                        what: What::Read,
                        ..below
                    }
                };
                self.frames[parent].state = State::Fill(if read {
                    FillStage::Second
                } else {
                    FillStage::Filling(reply)
                });
                self.enter(second, below, world, actions);
            }
            FillStage::Second => {
                let fills = match (reply.outcome, reply.source) {
                    (Outcome::Hit, Source::Reply(of)) => {
                        (above.command == Command::Get).then_some(of)
                    }
                    _ => None,
                };
                let stage = match (fills, ttl) {
                    (Some(of), None) => State::Fill(FillStage::Life { of, before: None }),
                    _ => State::Over,
                };
                self.frames[parent].state = stage;
                self.leave(above, reply, world, actions);
                match (fills, ttl) {
                    (Some(of), Some(ttl)) => {
                        let life = Life::Seconds(ttl);
                        self.enter(
                            first,
                            filled(alone(above), of, life, Token::Unknown),
                            world,
                            actions,
                        );
                    }
                    (Some(_), None) => self.enter(second, aging(below), world, actions),
                    (None, _) => {}
                }
            }
            FillStage::Life { of, before } => {
                let known = matches!(reply.outcome, Outcome::Done | Outcome::Hit);
                let life = match reply.source {
                    Source::Reply(tag) if known => Some(Life::Of(tag)),
                    _ => None,
                };
                self.frames[parent].state = match (before, life) {
                    (Some(before), Some(_)) => State::Fill(FillStage::Filling(before)),
                    _ => State::Over,
                };
                match (before, life) {
                    (None, Some(life)) => {
                        self.enter(
                            first,
                            filled(alone(above), of, life, Token::Unknown),
                            world,
                            actions,
                        );
                    }
                    (Some(_), Some(life)) => {
                        self.enter(
                            first,
                            filled(below, of, life, Token::Unknown),
                            world,
                            actions,
                        );
                    }
                    // It has gone meanwhile.
                    (Some(before), None) => self.leave(above, before, world, actions),
                    (None, None) => {}
                }
            }
            FillStage::Filling(before) => match (reply.outcome, reply.source) {
                (Outcome::Hit, Source::Reply(of)) => match ttl {
                    Some(ttl) => {
                        let life = Life::Seconds(ttl);
                        self.enter(
                            first,
                            filled(below, of, life, Token::Unknown),
                            world,
                            actions,
                        );
                    }
                    None => {
                        let before = Some(before);
                        self.frames[parent].state = State::Fill(FillStage::Life { of, before });
                        self.enter(second, aging(below), world, actions);
                    }
                },
                // Filled, or somebody else has filled it meanwhile.
                (Outcome::Done | Outcome::Refused, _) => {
                    self.frames[parent].state = State::Fill(FillStage::Again);
                    self.enter(first, below, world, actions);
                }
                _ => {
                    self.frames[parent].state = State::Over;
                    self.leave(above, before, world, actions);
                }
            },
            FillStage::Write => {
                self.frames[parent].state = State::Over;
                let other = if tier { first } else { second };
                self.enter(other, forgetting(alone(above)), world, actions);
                self.leave(above, reply, world, actions);
            }
            FillStage::First | FillStage::Again => {
                self.frames[parent].state = State::Over;
                self.leave(above, reply, world, actions);
            }
        }
    }
}

pub(super) fn forgetting(context: Context) -> Context {
    Context {
        command: Command::Delete,
        what: What::Delete,
        ..context
    }
}

pub(super) fn filled(context: Context, of: Tag, life: Life, token: Token) -> Context {
    Context {
        command: Command::Add,
        what: What::Fill { of, life, token },
        ..context
    }
}

pub(super) fn aging(context: Context) -> Context {
    Context {
        command: Command::Get,
        what: What::Life,
        ..context
    }
}
