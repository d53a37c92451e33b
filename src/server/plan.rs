#![forbid(unsafe_code)]
//! What lies ahead in the input: requests and keys that are understood before the first of them is
//! run, so that the memory they need is on its way by then.

use std::ops::Range;

use arrayvec::ArrayVec;

use crate::command::get::LookUp;
use crate::command::{self, BATCH, Context, Read as Keys, WHOLE_MAX};
use crate::protocol::request::{Op, Parsed, Refusal, Request, Style};
use crate::protocol::text::{self, NextKey};
use crate::protocol::{self, Dialect};

const TEXT: Style<'static> = Style::Text { noreply: false };

/// A part of the input that has been understood.
pub enum Step<'i> {
    /// Keys of a get.
    Keys {
        how: Keys,
        /// Where they begin in the input.
        start: usize,
        /// Which of the look-ups they are.
        lookups: Range<usize>,
        /// The get begins with them.
        first: bool,
        then: Then,
    },
    Request {
        request: Request<'i>,
        /// Of its key; 0 if it has none.
        hash: u64,
        /// With its terminator, empty if the request has none. `None`: it is too long to be
        /// waited for here.
        value: Option<&'i [u8]>,
    },
    Refused {
        reply: Refusal,
        /// Bytes that have to pass before the reply is given.
        skip: u64,
        close: bool,
    },
    /// A whole line for the leader.
    Line,
    HangUp,
}

/// What follows the keys of a get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// More keys, which are not understood yet.
    More,
    /// The line is over.
    End,
    /// A key that is too long; the get is over, and its line too if `line_ends`.
    BadKey { line_ends: bool },
}

/// Up to [`BATCH`] requests and keys.
pub struct Plan<'i> {
    /// What will be looked up, in order. Those who store look up as well.
    pub lookups: ArrayVec<LookUp<'i>, BATCH>,
    /// Each with where it ends in the input.
    pub steps: ArrayVec<(Step<'i>, usize), BATCH>,
    /// The steps are all there is before more input arrives.
    pub starved: bool,
}

impl<'i> Plan<'i> {
    pub fn empty() -> Plan<'i> {
        Plan {
            lookups: ArrayVec::new(),
            steps: ArrayVec::new(),
            starved: false,
        }
    }

    /// Understands the input as far as it goes. `keys`: it begins amid a get's. `forwards`: mutations go
    /// to the leader.
    pub fn fill(
        &mut self,
        context: &Context<'i>,
        dialect: Dialect,
        keys: Option<Keys>,
        forwards: bool,
        input: &'i [u8],
    ) {
        let mut next = match keys {
            Some(how) => self.keys(context, how, false, input, 0),
            None => Some(0),
        };
        let rules = context.shared.rules;
        let refuses_reads = context.refuses_reads();
        while let Some(at) = next {
            if self.steps.is_full() || self.lookups.is_full() {
                break;
            }
            if at == input.len() {
                self.starved = true;
                break;
            }
            if dialect == Dialect::Text
                && !refuses_reads
                && let Some((key, taken)) = text::usual_get(&input[at..])
            {
                let lookups = self.lookups.len()..self.lookups.len() + 1;
                self.lookups.push(LookUp::new(context.store(), key));
                let step = Step::Keys {
                    how: Keys {
                        cas: false,
                        touch: None,
                    },
                    start: at + 3,
                    lookups,
                    first: true,
                    then: Then::End,
                };
                self.steps.push((step, at + taken));
                next = Some(at + taken);
                continue;
            }
            next = match protocol::parse_by(rules, dialect, &input[at..]) {
                Parsed::Request {
                    request:
                        Request {
                            op: Op::Get { touch, .. },
                            ..
                        },
                    taken,
                } if refuses_reads || touch.is_some() && context.follows() => {
                    // A change of expiry is for the leader, and what may be old for nobody.
                    let rest = &input[at + taken..];
                    let end = rest.iter().position(|byte| *byte == b'\n');
                    self.starved |= end.is_none();
                    end.map(|end| {
                        let at = at + taken + end + 1;
                        let step = if forwards {
                            Step::Line
                        } else {
                            Step::Refused {
                                reply: command::not_leading(&TEXT),
                                skip: 0,
                                close: false,
                            }
                        };
                        self.steps.push((step, at));
                        at
                    })
                }
                Parsed::Request {
                    request:
                        Request {
                            op: Op::Get { cas, touch },
                            ..
                        },
                    taken,
                } => {
                    let how = Keys {
                        cas,
                        touch: touch.map(|exptime| context.expiry(exptime)),
                    };
                    self.keys(context, how, true, input, at + taken)
                }
                Parsed::Request { request, taken } => {
                    self.request(context, request, input, at, at + taken)
                }
                Parsed::Incomplete => {
                    self.starved = true;
                    None
                }
                Parsed::Refused {
                    reply,
                    taken,
                    skip,
                    close,
                } => {
                    let at = at + taken;
                    let here = (input.len() - at).min(skip.try_into().unwrap_or(usize::MAX));
                    let skip = skip - here as u64;
                    self.steps
                        .push((Step::Refused { reply, skip, close }, at + here));
                    (skip == 0 && !close).then_some(at + here)
                }
                Parsed::Close => {
                    self.steps.push((Step::HangUp, at));
                    None
                }
            };
        }
    }

    /// Asks for the items that will be looked at, when there are several to wait for at once.
    pub fn prefetch(&mut self, context: &Context<'i>) {
        if self.lookups.len() > 1 {
            for lookup in &mut self.lookups {
                lookup.prefetch(context.store());
            }
        }
    }

    /// Takes the keys that stand at `at`. Returns where the next request stands if that is known.
    fn keys(
        &mut self,
        context: &Context<'i>,
        how: Keys,
        first: bool,
        input: &'i [u8],
        mut at: usize,
    ) -> Option<usize> {
        let rules = context.shared.rules;
        let (before, start) = (self.lookups.len(), at);
        let store = context.store();
        let then = loop {
            let rest = &input[at..];
            let (key, taken) = match text::usual_key(rest) {
                Some(usual) => usual,
                None => match text::other_key(rules, rest) {
                    NextKey::Key { key, taken } => (key, taken),
                    NextKey::End { taken } => {
                        at += taken;
                        break Then::End;
                    }
                    NextKey::TooLong => {
                        let line = text::skip_line(rest);
                        at += line.unwrap_or(rest.len());
                        let line_ends = line.is_some();
                        break Then::BadKey { line_ends };
                    }
                    NextKey::Incomplete => {
                        self.starved = true;
                        break Then::More;
                    }
                },
            };
            // One too many has asked for its memory early.
            if self.lookups.try_push(LookUp::new(store, key)).is_err() {
                break Then::More;
            }
            at += taken;
        };
        let step = Step::Keys {
            how,
            start,
            lookups: before..self.lookups.len(),
            first,
            then,
        };
        self.steps.push((step, at));
        match then {
            Then::End | Then::BadKey { line_ends: true } => Some(at),
            Then::More | Then::BadKey { line_ends: false } => None,
        }
    }

    /// Takes a request whose line begins at `from` and ends at `at`, with its value if it has one.
    fn request(
        &mut self,
        context: &Context<'i>,
        request: Request<'i>,
        input: &'i [u8],
        from: usize,
        at: usize,
    ) -> Option<usize> {
        let length = command::body_length(&request);
        let value = input[at..].get(..length);
        // A long line is not taken apart again for every part of a value.
        if value.is_none() && length <= WHOLE_MAX && at - from <= WHOLE_MAX {
            self.starved = true;
            return None;
        }
        let mut hash = 0;
        if let Some(lookup) = command::prepare(context, &request) {
            hash = lookup.hash();
            self.lookups.push(lookup);
        }
        let end = at + value.map_or(0, <[u8]>::len);
        self.steps.push((
            Step::Request {
                request,
                hash,
                value,
            },
            end,
        ));
        value.map(|_| end)
    }
}
