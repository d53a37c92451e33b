#![forbid(unsafe_code)]
//! Requests that have been understood, run one after the other.

use super::conversation::{Served, State};
use super::forward::Outgoing;
use super::plan::{Plan, Step, Then};
use super::trace;
use crate::command::get::LookUp;
use crate::command::{self, Context, Mark, Next, Read as Keys, Replies, Session, auth, get};
use crate::protocol::Dialect;
use crate::protocol::request::{Refusal, Request, Style};
use crate::protocol::text;

/// What a key of a get that is too long is answered with.
const BAD_KEY: Refusal = Refusal::Line("CLIENT_ERROR bad command line format");

/// Requests that are run one after the other.
pub struct Batch<'b, 'c> {
    pub context: &'b Context<'c>,
    pub session: &'b mut Session,
    pub replies: &'b mut Replies,
    /// Bytes of replies that may wait.
    pub limit: usize,
    pub input: &'b [u8],
    pub dialect: Dialect,
    pub forwards: bool,
    pub so_far: &'b mut SoFar,
}

/// What has become of a batch.
pub struct SoFar {
    /// Where the step that is run begins and ends in the input.
    begin: usize,
    pub end: usize,
    /// It has ended amid the keys of a get, whose replies begin at `mark`.
    pub keys: Option<Keys>,
    pub mark: Option<Mark>,
    /// What is to be done next, where the rest of the input belongs, and what is for the leader.
    pub next: Next,
    pub(super) skip: Option<State>,
    pub outgoing: Option<Box<Outgoing>>,
    /// The connection is to end.
    pub broken: bool,
}

impl SoFar {
    /// Nothing yet.
    #[inline]
    pub fn new(keys: Option<Keys>, mark: Option<Mark>) -> SoFar {
        SoFar {
            begin: 0,
            end: 0,
            keys,
            mark,
            next: Next::Done,
            skip: None,
            outgoing: None,
            broken: false,
        }
    }
}

// Each is called in one place, and all are on the way of every request.
impl Batch<'_, '_> {
    /// Runs the steps of a plan. True: as many replies wait as may.
    #[inline(always)]
    pub fn run(&mut self, plan: &Plan<'_>, traced: bool, served: &mut Served) -> bool {
        for (step, step_end) in &plan.steps {
            self.so_far.begin = std::mem::replace(&mut self.so_far.end, *step_end);
            let replied = self.replies.bytes().len();
            let begins = !matches!(step, Step::Keys { first: false, .. });
            if traced && begins {
                trace::request(self.context.connection, self.dialect, self.bytes());
            }
            served.requests += usize::from(begins);
            if self.forwards {
                if let Some(refusal) = outgoing_refusal(step) {
                    self.send_out(refusal);
                    continue;
                }
                if self.so_far.outgoing.is_some() {
                    // It has to wait for the answer.
                    self.so_far.end = self.so_far.begin;
                    break;
                }
            }
            match step {
                Step::Keys {
                    how,
                    start,
                    lookups,
                    first,
                    then,
                } => {
                    if *first {
                        self.so_far.mark = Some(self.replies.mark());
                    }
                    let lookups = &plan.lookups[lookups.clone()];
                    served.keys += self.keys(*how, *start, lookups, *then);
                }
                Step::Request {
                    request,
                    hash,
                    value,
                } => self.request(request, *hash, *value),
                Step::Refused { reply, skip, close } => self.refused(reply, *skip, *close),
                Step::Line => {}
                Step::HangUp => self.so_far.broken = true,
            }
            if traced {
                let replies = self.replies.bytes().get(replied..).unwrap_or(b"");
                trace::reply(self.context.connection, self.dialect, replies);
            }
            if self.replies.waiting() >= self.limit {
                return true;
            }
            if self.so_far.broken
                || self.so_far.skip.is_some()
                || !matches!(self.so_far.next, Next::Done)
            {
                break;
            }
        }
        false
    }

    /// The step's part of the input.
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        &self.input[self.so_far.begin..self.so_far.end]
    }

    /// The step goes to the leader.
    #[inline(always)]
    fn send_out(&mut self, refusal: Refusal) {
        let dialect = self.dialect;
        let outgoing = self
            .so_far
            .outgoing
            .get_or_insert_with(|| Box::new(Outgoing::new(dialect)));
        outgoing.add(&self.input[self.so_far.begin..self.so_far.end], refusal);
    }

    /// Keys of a get, which begin at `start`. Returns how many have been read.
    #[inline(always)]
    fn keys(&mut self, how: Keys, start: usize, lookups: &[LookUp<'_>], then: Then) -> usize {
        let context = self.context;
        let read = if how.touch.is_some() && context.shared.replicas.is_some() {
            let read;
            (read, self.so_far.next) = command::touch_many(
                context,
                self.session,
                lookups,
                how,
                self.limit,
                self.replies,
            );
            read
        } else {
            get::many(context, lookups, how, self.limit, self.replies)
        };
        self.so_far.keys = match then {
            _ if read < lookups.len() => {
                // The others wait until replies have been sent.
                let rules = context.shared.rules;
                self.so_far.end = start + text::keys_length(rules, &self.input[start..], read);
                Some(how)
            }
            Then::More => Some(how),
            Then::End => {
                get::end(self.replies);
                None
            }
            Then::BadKey { line_ends } => {
                if let Some(mark) = self.so_far.mark {
                    self.replies.rewind(mark);
                }
                command::refuse(&BAD_KEY, self.replies);
                if !line_ends {
                    self.so_far.skip = Some(State::SkipLine);
                }
                None
            }
        };
        read
    }

    /// A request, with its value if that is at hand.
    #[inline(always)]
    fn request(&mut self, request: &Request<'_>, hash: u64, value: Option<&[u8]>) {
        let context = self.context;
        let then = match value {
            Some(value) if self.forwards && command::is_for_leader(&request.op) => {
                // What would leave the leader in doubt about where the next one begins.
                if let Some(refusal) = command::ill_terminated(request, value) {
                    command::refuse(&refusal, self.replies);
                }
                Next::Done
            }
            Some(value) => {
                command::execute(context, self.session, request, hash, value, self.replies)
            }
            None if self.forwards && command::is_for_leader(&request.op) => {
                match begin_to_send_out(self.context, self.dialect, request, self.bytes()) {
                    Ok(leaving) => {
                        self.so_far.skip = Some(leaving);
                        Next::Done
                    }
                    Err(then) => then,
                }
            }
            None => command::begin(context, self.session, request, hash, self.replies),
        };
        // Where there is nothing to do next, no more of it is read than that: the whole of
        // what was just written in parts would be waited for, with all that was written
        // before.
        if matches!(then, Next::Done) {
            std::mem::forget(then);
        } else {
            if let Next::Queue { .. } = then {
                // It is run again.
                self.so_far.end = self.so_far.begin;
            }
            self.so_far.next = then;
        }
    }

    /// Something that is answered with `reply` once `skip` more bytes have passed.
    #[inline(always)]
    fn refused(&mut self, reply: &Refusal, skip: u64, close: bool) {
        if self.session.is_locked() {
            // What is answered in binary; text is admitted elsewhere.
            let reply = auth::refuse_wrong(&self.input[self.so_far.begin..], *reply);
            command::refuse(&reply, self.replies);
            self.so_far.broken = true;
        } else if skip == 0 {
            command::refuse(reply, self.replies);
            self.so_far.broken = close;
        } else {
            let reply = *reply;
            self.so_far.skip = Some(State::Skip { bytes: skip, reply });
        }
    }
}

/// What a request of these bytes comes to that is for the leader, and whose value is still to come.
///
/// # Errors
/// It is too large.
#[cold]
fn begin_to_send_out(
    context: &Context<'_>,
    dialect: Dialect,
    request: &Request<'_>,
    bytes: &[u8],
) -> Result<State, Next> {
    let missing = command::body_length(request);
    if let Some(then) = command::too_large_to_forward(context, request) {
        let bytes = missing as u64;
        return Err(Next::Skip { bytes, then });
    }
    let mut outgoing = Box::new(Outgoing::new(dialect));
    outgoing.add(bytes, command::not_leading(&request.style));
    Ok(State::Leaving { outgoing, missing })
}

/// What a step that goes to the leader as it is will be answered with if it cannot; nothing if it does not
/// go there.
fn outgoing_refusal(step: &Step<'_>) -> Option<Refusal> {
    match step {
        Step::Request {
            request,
            value: Some(value),
            ..
        } if command::is_for_leader(&request.op)
            && command::ill_terminated(request, value).is_none() =>
        {
            Some(command::not_leading(&request.style))
        }
        Step::Line => Some(command::not_leading(&Style::Text { noreply: false })),
        _ => None,
    }
}
