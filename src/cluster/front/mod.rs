#![forbid(unsafe_code)]
//! The side of the proxy that faces clients: a seat for each, with what it is owed, and where answers
//! that come from servers go.

// Where answers of servers go.
mod answers;

// What clients have written.
mod written;

use std::sync::Arc;

use slab::Slab;

use super::hotkey::writes::Writes;
use super::slots::Slots;
use super::target::Pulse;
use super::upstream::Fault;
use crate::protocol::Dialect;
use crate::protocol::answer::Verdict;

pub use answers::{nothing, refusal};
pub use written::{Least, Position, Positions, Written};

/// How many times its limit a client may be owed, if its answers come in an order that calls for it.
const EXTRA_MAX: usize = 64;

/// Bytes of long answers to tasks that are gathered at a time.
const GATHERED_MAX: usize = 64 << 20;

/// Answers of fewer bytes may wait for those that come behind them.
const TOGETHER_MAX: usize = 16 << 10;

/// Buffers kept for clients to come.
const SPARE: usize = 64;

/// One client.
#[derive(Debug)]
pub struct Seat {
    pub slots: Slots,
    /// Tells it from whoever had the seat before.
    pub generation: u32,
    /// What the server calls it.
    pub owner: usize,
    /// What it has written to groups.
    pub written: Written,
    /// The tag of the listener it has come by.
    pub listener: Option<Arc<str>>,
    /// It is in the list of those that may have something to send.
    touched: bool,
    /// The first slot of what has been asked for in one piece last: see [`Front::lingers`].
    asked_from: u32,
    /// It is in the list of those whose answers wait for others.
    lingers: bool,
    /// It has been sent half an answer whose rest will not come.
    pub broken: bool,
    /// Bytes it may be owed beyond the limit, until it is owed nothing.
    pub extra: usize,
}

/// What has come of a request that was not a client's own.
#[derive(Debug)]
pub enum Event {
    Answer {
        task: u32,
        generation: u32,
        tag: u16,
        bytes: Vec<u8>,
        verdict: Verdict,
    },
    Failed {
        task: u32,
        generation: u32,
        tag: u16,
        server: usize,
        fault: Fault,
    },
    /// A server has been asked whether it is alive.
    Probed {
        server: usize,
        dialect: Dialect,
        pulse: Pulse,
    },
    /// A key has been deleted that was written elsewhere while this server was down, or it has been
    /// emptied because such keys are not known any more.
    Deleted { server: usize, good: bool },
    /// A node has said how far its log has come, as it was asked when its [`forgotten`] was so; or does not
    /// say.
    ///
    /// [`forgotten`]: super::target::Target::forgotten
    Told {
        server: usize,
        forgotten: u64,
        positions: Option<Positions>,
    },
    /// A node does not know what it was asked.
    Untold { server: usize },
}

/// Whose a long answer is: the task, what tells it from another in its place, and its tag.
type Gathered = (u32, u32, u16);

/// A long answer to a task.
struct Gathering {
    request: Gathered,
    /// As far as it has come; nothing where there is no room for it.
    bytes: Option<Vec<u8>>,
}

/// Everything on the clients' side.
pub struct Front {
    pub seats: Slab<Seat>,
    generation: u32,
    /// Seats that may have something to send.
    touched: Vec<usize>,
    /// Seats whose answers wait for others to be sent with, and since when.
    lingering: Vec<usize>,
    lingering_since: u64,
    /// Seats whose long values can go on.
    called: Vec<usize>,
    spare: Vec<Vec<u8>>,
    /// Bytes that may be kept for one client before its servers have to wait.
    pub limit: usize,
    /// What tasks and probes have to be told.
    pub events: Vec<Event>,
    /// Long answers to tasks, as far as they have come, and the bytes of all.
    gathering: Vec<Gathering>,
    gathered: usize,
    /// The names of servers, as failures are told, by their place in the worker's list.
    names: Vec<String>,
    writes: Arc<Writes>,
    /// On the cluster's clock.
    pub now: u64,
    /// Bytes of answers that were dropped because nobody takes them any more.
    pub orphans: u64,
    /// A node was asked for what is the leader's only.
    pub misled: bool,
}

impl Front {
    pub fn new(limit: usize, writes: Arc<Writes>) -> Front {
        Front {
            seats: Slab::new(),
            generation: 0,
            touched: Vec::new(),
            lingering: Vec::new(),
            lingering_since: 0,
            called: Vec::new(),
            spare: Vec::new(),
            limit,
            events: Vec::new(),
            gathering: Vec::new(),
            gathered: 0,
            names: Vec::new(),
            writes,
            now: 0,
            orphans: 0,
            misled: false,
        }
    }

    /// A seat for a new client.
    pub fn sit(&mut self, owner: usize) -> usize {
        self.generation = self.generation.wrapping_add(1);
        self.seats.insert(Seat {
            slots: Slots::default(),
            generation: self.generation,
            owner,
            written: Written::default(),
            listener: None,
            touched: false,
            asked_from: 0,
            lingers: false,
            broken: false,
            extra: 0,
        })
    }

    /// The client has gone; answers that are on their way to it are dropped.
    pub fn leave(&mut self, seat: usize) {
        if let Some(mut seat) = self.seats.try_remove(seat) {
            seat.slots.advance(usize::MAX / 2);
            seat.slots.relax(&mut self.spare, SPARE);
        }
    }

    #[inline]
    pub fn seat(&mut self, seat: usize) -> Option<&mut Seat> {
        self.seats.get_mut(seat)
    }

    /// The seat has something to send, or may have.
    #[inline]
    pub fn touch(&mut self, number: usize) {
        if let Some(seat) = self.seats.get_mut(number)
            && !seat.touched
        {
            seat.touched = true;
            seat.slots.lend(&mut self.spare);
            self.touched.push(number);
        }
    }

    /// Takes a seat off the list of those that may have something to send.
    pub fn next_touched(&mut self) -> Option<usize> {
        loop {
            let number = self.touched.pop()?;
            if let Some(seat) = self.seats.get_mut(number) {
                seat.touched = false;
                return Some(number);
            }
        }
    }

    /// What has been asked for from this slot on has come in one piece.
    #[inline]
    pub fn asked_from(&mut self, number: usize, slot: u32) {
        if let Some(seat) = self.seats.get_mut(number) {
            seat.asked_from = slot;
        }
    }

    /// Whether what is ready for a client waits for the rest of what it has asked for in one piece: three
    /// servers' answers would be three system calls otherwise, of which each costs more than all that is
    /// done here for a request. It waits for a millisecond at most ([`linger_over`](Front::linger_over)).
    #[inline]
    pub fn lingers(&mut self, number: usize) -> bool {
        let Some(seat) = self.seats.get_mut(number) else {
            return false;
        };
        let slots = &seat.slots;
        if slots.ready().is_empty() && !slots.is_empty() && !seat.broken {
            // There is nothing yet.
            return true;
        }
        let done = slots.next().wrapping_sub(seat.asked_from);
        let asked = slots.end().wrapping_sub(seat.asked_from);
        // Whether the slot whose turn it is lies behind the first of the last piece.
        if !(1..asked).contains(&done) || seat.broken || slots.ready().len() > TOGETHER_MAX {
            return false;
        }
        if !seat.lingers {
            seat.lingers = true;
            if self.lingering.is_empty() {
                self.lingering_since = self.now;
            }
            self.lingering.push(number);
        }
        true
    }

    /// Whether any answers wait for others.
    #[inline]
    pub fn has_lingering(&self) -> bool {
        !self.lingering.is_empty()
    }

    /// Takes a seat off the list of those whose answers have waited for long enough.
    #[inline]
    pub fn linger_over(&mut self) -> Option<usize> {
        if self.now <= self.lingering_since {
            return None;
        }
        loop {
            let number = self.lingering.pop()?;
            if let Some(seat) = self.seats.get_mut(number)
                && std::mem::take(&mut seat.lingers)
            {
                return Some(number);
            }
        }
    }

    /// The client's long value can go on, or will not.
    pub fn call(&mut self, seat: usize) {
        if !self.called.contains(&seat) {
            self.called.push(seat);
        }
    }

    /// Takes a seat off the list of those that are called.
    pub fn next_called(&mut self) -> Option<usize> {
        self.called.pop()
    }

    /// What a server is called where its failures are told.
    pub fn name(&mut self, server: usize, name: String) {
        if self.names.len() <= server {
            self.names.resize(server + 1, String::new());
        }
        self.names[server] = name;
    }

    /// Whether a seat that is full may be given more: it is not its client that keeps the others
    /// waiting but a server, perhaps one that waits for another client like this.
    pub fn grant(&mut self, seat: usize) -> bool {
        let limit = self.limit;
        let Some(seat) = self.seats.get_mut(seat) else {
            return true;
        };
        if !seat.slots.ready().is_empty() || seat.extra >= EXTRA_MAX * limit {
            return false;
        }
        seat.extra += limit;
        true
    }

    /// Gives back the memory that a client does not need now.
    pub fn relax(&mut self, seat: usize) {
        if let Some(seat) = self.seats.get_mut(seat) {
            seat.slots.relax(&mut self.spare, SPARE);
            if seat.slots.is_empty() {
                seat.extra = 0;
            }
        }
    }

    #[inline]
    fn client(&mut self, seat: u32, generation: u32) -> Option<&mut Seat> {
        let found = self.seats.get_mut(seat as usize)?;
        if found.generation != generation {
            return None;
        }
        if !found.touched {
            found.touched = true;
            found.slots.lend(&mut self.spare);
            self.touched.push(seat as usize);
        }
        Some(found)
    }

    /// Keeps a piece of a long answer to a task.
    fn gather(&mut self, request: Gathered, bytes: &[u8]) {
        let known = self.gathering.iter().position(|it| it.request == request);
        let at = known.unwrap_or_else(|| {
            self.gathering.push(Gathering {
                request,
                bytes: Some(Vec::new()),
            });
            self.gathering.len() - 1
        });
        let all = &mut self.gathering[at].bytes;
        let Some(so_far) = all else {
            return;
        };
        if self.gathered + bytes.len() > GATHERED_MAX {
            self.gathered -= so_far.len();
            *all = None;
        } else {
            self.gathered += bytes.len();
            so_far.extend_from_slice(bytes);
        }
    }

    /// Ends the gathering of a long answer; `None` if there is none, or not the whole of it.
    fn take_gathered(&mut self, request: Gathered) -> Option<Vec<u8>> {
        let at = self.gathering.iter().position(|it| it.request == request)?;
        let bytes = self.gathering.swap_remove(at).bytes?;
        self.gathered -= bytes.len();
        Some(bytes)
    }

    /// What a client is told that a server has failed.
    pub fn failure(&self, server: usize, fault: Fault) -> String {
        if fault == Fault::TooMuch {
            // mcrouter, and our own routes, then ask elsewhere.
            return "307 busy".to_owned();
        }
        format!("{} {}", self.name_of(server), fault.text())
    }

    fn name_of(&self, server: usize) -> &str {
        self.names.get(server).map_or("a server", String::as_str)
    }
}
