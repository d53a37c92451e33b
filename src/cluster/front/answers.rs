#![forbid(unsafe_code)]
//! Where answers of servers go: to the slots of the clients that have asked, to tasks, or to whom a probe or a
//! delete matters.

use super::{Event, Front, Position, Positions, Seat};
use crate::cluster::slots::Slots;
use crate::cluster::target::Pulse;
use crate::cluster::upstream::{Fault, KeyTicket, Quiet, Sink, Ticket, To};
use crate::protocol::Dialect;
use crate::protocol::answer::{HEADER, Shape, Verdict};
use crate::settings::proxy::Command;

/// The binary status of what a server could not do, at least not now.
const TEMPORARY_FAILURE: u16 = 0x86;

/// An answer of the proxy's own, in the shape that the request calls for.
pub fn refusal(ticket: &Ticket, why: &str) -> Vec<u8> {
    match ticket.shape {
        Shape::Binary(_) => packet(ticket, TEMPORARY_FAILURE, why),
        _ => format!("SERVER_ERROR {why}\r\n").into_bytes(),
    }
}

/// What a server without the key would say.
pub fn nothing(ticket: &Ticket, command: Command) -> Vec<u8> {
    let stores = matches!(
        command,
        Command::Set
            | Command::Add
            | Command::Replace
            | Command::Append
            | Command::Prepend
            | Command::Cas
    );
    let reads = matches!(command, Command::Get | Command::Gat | Command::Debug);
    let line: &[u8] = match ticket.shape {
        Shape::Binary(_) => {
            let (status, text) = if stores {
                (5, "Not stored.")
            } else {
                (1, "Not found")
            };
            return packet(ticket, status, text);
        }
        Shape::Meta if stores => b"NS\r\n",
        Shape::Meta if reads => b"EN\r\n",
        Shape::Meta => b"NF\r\n",
        _ if stores => b"NOT_STORED\r\n",
        _ if reads => b"END\r\n",
        _ => b"NOT_FOUND\r\n",
    };
    line.to_vec()
}

fn packet(ticket: &Ticket, status: u16, text: &str) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet[0] = 0x81;
    packet[1] = ticket.opcode;
    packet[6..8].copy_from_slice(&status.to_be_bytes());
    packet[8..12].copy_from_slice(&(text.len() as u32).to_be_bytes());
    packet[12..16].copy_from_slice(&ticket.opaque.to_be_bytes());
    packet.extend_from_slice(text.as_bytes());
    packet
}

/// The header of a binary answer with the opcode that its client has used, and what follows it; `None` if it
/// is right as it stands.
#[inline]
fn readdressed<'a>(ticket: &Ticket, answer: &'a [u8]) -> Option<([u8; HEADER], &'a [u8])> {
    match ticket.shape {
        Shape::Binary(opcode) if opcode != ticket.opcode => {
            let (head, rest) = answer.split_first_chunk::<HEADER>()?;
            let mut head = *head;
            head[1] = ticket.opcode;
            Some((head, rest))
        }
        _ => None,
    }
}

/// Whether an answer says that a node was asked for what is the leader's only.
#[cold]
fn is_no_leader(answer: &[u8]) -> bool {
    answer.starts_with(b"SERVER_ERROR not leader") || answer.ends_with(b"Not leader")
}

/// What has become of a probe.
fn pulse(outcome: Result<Verdict, Fault>) -> Pulse {
    match outcome {
        // One that does not know the question is alive.
        Ok(Verdict::Done | Verdict::Unknown) => Pulse::Good,
        Ok(_) | Err(Fault::Denied) => Pulse::Refused,
        Err(Fault::Closed | Fault::TimedOut | Fault::Garbage) => Pulse::Silent,
        Err(Fault::Refused | Fault::ConnectTimeout | Fault::Retired | Fault::TooMuch) => {
            Pulse::Away
        }
    }
}

impl Front {
    /// The seat and the slot that an answer belongs to; `None` if that is no client's, or has gone.
    #[inline]
    fn place(&mut self, ticket: &Ticket, key: Option<KeyTicket>) -> Option<(&mut Seat, u32)> {
        let To::Client {
            seat,
            generation,
            slot,
        } = ticket.to
        else {
            return None;
        };
        let slot = key.map_or(slot, |key| key.slot);
        Some((self.client(seat, generation)?, slot))
    }

    /// Puts bytes into the slot they belong to. True if the client has more than enough to take now.
    #[inline]
    fn put(
        &mut self,
        ticket: &Ticket,
        key: Option<KeyTicket>,
        bytes: &[u8],
        put: impl FnOnce(&mut Slots, u32),
    ) -> bool {
        let limit = self.limit;
        match self.place(ticket, key) {
            Some((seat, slot)) => {
                put(&mut seat.slots, slot);
                seat.slots.bytes() > limit
            }
            None => {
                self.orphans += bytes.len() as u64;
                false
            }
        }
    }

    /// A node has said how far its log has come, or will not.
    fn positions(&mut self, ticket: &Ticket, answer: Option<(&[u8], Verdict)>) {
        let server = ticket.opaque as usize;
        let said = answer.and_then(|(answer, verdict)| {
            if verdict == Verdict::Unknown {
                self.events.push(Event::Untold { server });
            }
            let body = match ticket.shape {
                Shape::Binary(_) => answer.get(HEADER..)?,
                _ => answer,
            };
            (verdict == Verdict::Done).then(|| Positions::parse(body))?
        });
        match ticket.to {
            To::Position {
                seat,
                generation,
                group,
                partition,
            } => {
                let position = said.and_then(|said| {
                    let seq = *said.seqs.first()?;
                    let reign = said.reign;
                    (said.seqs.len() == 1).then_some(Position { reign, seq })
                });
                let now = self.now;
                if let Some(seat) = self.seats.get_mut(seat as usize)
                    && seat.generation == generation
                {
                    seat.written.told(group, partition.into(), position, now);
                }
            }
            To::Positions { forgotten } => self.events.push(Event::Told {
                server,
                forgotten,
                positions: said,
            }),
            _ => {}
        }
    }

    /// A request of the worker's own has been answered, or will not be.
    fn own(&mut self, ticket: &Ticket, outcome: Result<Verdict, Fault>) {
        let server = ticket.opaque as usize;
        let verdict = outcome.ok();
        let event = match (ticket.to, verdict) {
            (To::Probe, _) => Event::Probed {
                server,
                dialect: match ticket.shape {
                    Shape::Binary(_) => Dialect::Binary,
                    _ => Dialect::Text,
                },
                pulse: pulse(outcome),
            },
            // A key that a server does not take has no value there.
            (To::Delete, verdict) => Event::Deleted {
                server,
                good: matches!(
                    verdict,
                    Some(Verdict::Done | Verdict::Miss | Verdict::ClientError)
                ),
            },
            (To::Flush, verdict) => {
                if verdict == Some(Verdict::ClientError) {
                    log::error!(
                        "{} refuses flush_all (-F): it may answer values that have been deleted since; \
                         start it anew, and without -F, or with larger limits.deletes here",
                        self.name_of(server)
                    );
                }
                Event::Deleted {
                    server,
                    good: matches!(verdict, Some(Verdict::Done | Verdict::ClientError)),
                }
            }
            _ => return,
        };
        self.events.push(event);
    }
}

impl Sink for Front {
    #[inline]
    fn whole(&mut self, ticket: &Ticket, answer: &[u8], verdict: Verdict) -> bool {
        if ticket.wrote > 0 {
            self.writes.written_again(ticket.wrote, self.now);
        }
        if verdict == Verdict::ServerError {
            self.misled |= is_no_leader(answer);
        }
        match ticket.to {
            To::Client { .. } => self.put(ticket, None, answer, |slots, slot| {
                if ticket.quiet.swallows(verdict) {
                    slots.silence(slot);
                } else if let Some((head, rest)) = readdressed(ticket, answer) {
                    slots.fill_two(slot, &head, rest);
                } else {
                    slots.fill(slot, answer);
                }
            }),
            To::Task {
                task,
                generation,
                tag,
                seat,
            } => {
                self.events.push(Event::Answer {
                    task,
                    generation,
                    tag,
                    bytes: answer.to_vec(),
                    verdict,
                });
                // It is not among what the client is owed yet: others before it may be.
                let owed = self.seats.get(seat as usize);
                owed.is_some_and(|seat| seat.slots.bytes() > self.limit)
            }
            To::Position { .. } | To::Positions { .. } => {
                self.positions(ticket, Some((answer, verdict)));
                false
            }
            _ => {
                self.own(ticket, Ok(verdict));
                false
            }
        }
    }

    #[inline]
    fn value(&mut self, ticket: &Ticket, key: KeyTicket, value: &[u8]) -> bool {
        self.put(ticket, Some(key), value, |slots, slot| {
            slots.fill(slot, value)
        })
    }

    #[inline]
    fn missing(&mut self, ticket: &Ticket, key: KeyTicket) {
        self.put(ticket, Some(key), b"", Slots::silence);
    }

    fn end(&mut self, _: &Ticket) {}

    fn refused(&mut self, ticket: &Ticket, key: KeyTicket, line: &[u8]) {
        self.put(ticket, Some(key), b"", |slots, slot| {
            slots.fail_key(slot, line)
        });
    }

    fn part(&mut self, ticket: &Ticket, key: Option<KeyTicket>, bytes: &[u8]) -> bool {
        match ticket.to {
            To::Client { .. } if ticket.quiet == Quiet::All => false,
            To::Client { .. } => self.put(ticket, key, bytes, |slots, slot| {
                match readdressed(ticket, bytes).filter(|_| slots.is_untold(slot)) {
                    Some((head, rest)) => {
                        slots.part(slot, &head);
                        slots.part(slot, rest);
                    }
                    None => slots.part(slot, bytes),
                }
            }),
            To::Task {
                task,
                generation,
                tag,
                ..
            } => {
                self.gather((task, generation, tag), bytes);
                false
            }
            _ => false,
        }
    }

    fn done(&mut self, ticket: &Ticket, key: Option<KeyTicket>) {
        let To::Task {
            task,
            generation,
            tag,
            ..
        } = ticket.to
        else {
            self.put(ticket, key, b"", Slots::done);
            return;
        };
        let event = match self.take_gathered((task, generation, tag)) {
            Some(bytes) => Event::Answer {
                task,
                generation,
                tag,
                bytes,
                verdict: Verdict::Hit,
            },
            None => Event::Failed {
                task,
                generation,
                tag,
                server: usize::MAX,
                fault: Fault::TooMuch,
            },
        };
        self.events.push(event);
    }

    fn failed(&mut self, ticket: &Ticket, key: Option<KeyTicket>, server: usize, fault: Fault) {
        match ticket.to {
            To::Client { .. } => {
                let line = refusal(ticket, &self.failure(server, fault));
                let Some((seat, slot)) = self.place(ticket, key) else {
                    return;
                };
                if seat.slots.is_flowing(slot) {
                    seat.broken = true;
                } else if key.is_some() {
                    seat.slots.fail_key(slot, &line);
                } else if ticket.quiet == Quiet::All {
                    seat.slots.silence(slot);
                } else {
                    seat.slots.cut(slot);
                    seat.slots.fill(slot, &line);
                }
            }
            To::Task {
                task,
                generation,
                tag,
                ..
            } => {
                self.take_gathered((task, generation, tag));
                self.events.push(Event::Failed {
                    task,
                    generation,
                    tag,
                    server,
                    fault,
                });
            }
            To::Position { .. } | To::Positions { .. } => self.positions(ticket, None),
            _ => self.own(ticket, Err(fault)),
        }
    }

    fn is_full(&self, ticket: &Ticket, key: Option<KeyTicket>) -> bool {
        let (number, slot) = match ticket.to {
            To::Client { seat, slot, .. } => (seat, Some(key.map_or(slot, |key| key.slot))),
            To::Task { seat, .. } => (seat, None),
            _ => return false,
        };
        let Some(seat) = self.seats.get(number as usize) else {
            return false;
        };
        if let To::Client { generation, .. } = ticket.to
            && seat.generation != generation
        {
            return false;
        }
        // What all the others wait for is never held back for their sake.
        let bytes = if slot.is_some_and(|slot| seat.slots.is_next(slot)) {
            seat.slots.ready().len()
        } else {
            seat.slots.bytes()
        };
        bytes > self.limit + seat.extra
    }
}
