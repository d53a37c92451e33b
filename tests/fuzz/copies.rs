//! Two copies that speak to each other, and somebody in between who knows the wire: frames are changed,
//! dropped, doubled and made up, each with a right checksum. Whoever reads them must not fall over,
//! whatever they say, and must be ready for the next connection.

use std::sync::Arc;

use larder::cluster::replication::Moment;
use larder::cluster::replication::data::{Data, StoreData};
use larder::cluster::replication::frame::{self, HEADER};
use larder::cluster::replication::message::Type;
use larder::cluster::replication::replicas::{Replicas, State};
use larder::cluster::replication::session::Session;
use larder::settings::{self, Protocol};
use larder::store::journal::{Kind, Record, partition, place};

use super::Server;

/// What one side may want to say at once.
const SAID_MAX: usize = 4 << 20;

/// Numbers that are added to, multiplied, or taken for a length.
const ODD: [u64; 12] = [
    0,
    1,
    2,
    63,
    64,
    1 << 16,
    70_000,
    1 << 20,
    (70_000 << 32) | 65_536,
    u32::MAX as u64,
    (1 << 63) - 1,
    u64::MAX,
];

/// The input, as it is used up; zeroes behind its end.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn below(&mut self, n: usize) -> usize {
        (usize::from(self.byte()) << 8 | usize::from(self.byte())) % n.max(1)
    }

    fn number(&mut self) -> u64 {
        match self.byte() {
            byte @ 0..=127 => ODD[usize::from(byte) % ODD.len()],
            byte => u64::from(byte - 128),
        }
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

struct Side {
    server: Server,
    replicas: Arc<Replicas>,
    session: Option<Session<StoreData>>,
    /// What it has been sent and not used up.
    input: Vec<u8>,
    out: Vec<u8>,
}

impl Side {
    fn new(id: u64, leads: bool, follows: bool) -> Side {
        let server = Server::new(|settings| {
            settings.store.max_bytes = 8 << 20;
            settings.store.journal = Some(settings::Journal {
                ring_bytes: 8 << 20,
                follower: true,
            });
            settings.replication.follow = follows.then(String::new);
        });
        let replicas = server.shared.replicas.clone();
        let replicas = replicas.expect("a store that keeps a log");
        replicas.state().node.id = id;
        if leads {
            replicas.lead(0);
        }
        Side {
            server,
            replicas,
            session: None,
            input: Vec::new(),
            out: Vec::new(),
        }
    }

    fn connect(&mut self, dialer: bool, now: u64) {
        self.input.clear();
        self.out.clear();
        let state = self.replicas.state();
        let nonce = [state.node.id as u8; 16];
        let session = Session::new(dialer, &state.node, &state.data, nonce, now, &mut self.out);
        self.session = Some(session);
    }

    /// The sequence that the next record of a partition has.
    fn next(&self, number: usize) -> u64 {
        self.replicas.state().data.journal().seq(number) + 1
    }

    /// Lets it take in what has come, and say what it has to say. False: the connection is over.
    fn turn(&mut self, now: u64) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        let mut state = self.replicas.state();
        let State { node, data, .. } = &mut *state;
        let out = &mut self.out;
        let at = Moment {
            now,
            unix_ms: 1_700_000_000_000 + now,
        };
        match session.receive(node, data, &self.input, at, out) {
            Ok(used) => drop(self.input.drain(..used)),
            Err(end) => {
                assert!(!end.to_string().is_empty());
                return false;
            }
        }
        let alive = session.pump(node, data, at, 64 << 10, out);
        assert!(out.len() < SAID_MAX, "{} bytes at once", out.len());
        alive.is_ok()
    }
}

/// A frame that the script makes up.
fn made_up(script: &mut Script<'_>, next: impl Fn(usize) -> u64, out: &mut Vec<u8>) {
    let kind = Type::from_byte(script.byte() % 32).unwrap_or(Type::Batch);
    let mut number = script.below(64);
    let mut payload = Vec::new();
    if matches!(kind, Type::Batch | Type::Chunk) {
        let key = format!("k{}", script.below(64));
        number = partition(place(key.as_bytes()));
        for step in 0..=u64::from(script.byte() % 4) {
            let value = vec![b'v'; [0, 1, 5, 100, 5000, 65_536][script.below(6)]];
            let record = Record {
                seq: match script.byte() % 4 {
                    0 => script.number(),
                    _ => next(number) + step,
                },
                marks: script.byte() % 8,
                cas: script.number(),
                argument: script.number(),
                client_flags: script.number() as u32,
                expires: script.number() as u32,
                value: &value,
                ..Record::new(Kind::Put, key.as_bytes())
            };
            let start = payload.len();
            record.encode(&mut payload);
            // Of whatever kind.
            payload[start + 4] = (record.marks << 5) | (script.byte() % 32);
        }
    } else {
        for _ in 0..script.below(80) {
            payload.extend_from_slice(&script.number().to_le_bytes());
        }
        let rest = script.byte().into();
        payload.extend_from_slice(script.bytes(rest));
    }
    let epoch = 1 + script.number() / 2;
    frame::write(out, kind, epoch, number, 1, |out| out.append(&mut payload));
}

/// Takes what one side has said to the other, as the script wants it.
fn carry(script: &mut Script<'_>, said: &mut Vec<u8>, out: &mut Vec<u8>) {
    let said = std::mem::take(said);
    let mut rest = &said[..];
    let mut frames = Vec::new();
    while let Ok(Some((frame, length))) = frame::parse(rest) {
        frames.push((frame, &rest[..length]));
        rest = &rest[length..];
    }
    let chosen = script.below(frames.len().max(1));
    for (at, (frame, bytes)) in frames.into_iter().enumerate() {
        if at != chosen {
            out.extend_from_slice(bytes);
            continue;
        }
        let (mut kind, mut epoch) = (frame.kind, frame.epoch);
        let mut number = usize::from(frame.partition);
        let mut payload = frame.payload.to_vec();
        match script.byte() % 10 {
            0 => kind = Type::from_byte(script.byte() % 32).unwrap_or(kind),
            1 => epoch = script.number(),
            2 => number = script.below(70),
            3 => payload.truncate(script.below(payload.len() + 1)),
            4 => continue,
            5 => out.extend_from_slice(bytes),
            6 if !payload.is_empty() => {
                for _ in 0..1 + script.byte() % 8 {
                    let at = script.below(payload.len());
                    payload[at] ^= 1 << (script.byte() % 8);
                }
            }
            7 if payload.len() >= 8 => {
                let at = script.below(payload.len() - 7);
                payload[at..at + 8].copy_from_slice(&script.number().to_le_bytes());
            }
            8 => {
                let at = script.below(payload.len() + 1);
                let length = script.byte().into();
                payload.splice(at..at, script.bytes(length).iter().copied());
            }
            _ => {
                // Not even a frame any more.
                let mut bytes = bytes.to_vec();
                let at = script.below(bytes.len().min(HEADER));
                bytes[at] ^= 1 << (script.byte() % 8);
                out.extend_from_slice(&bytes);
                continue;
            }
        }
        frame::write(out, kind, epoch, number, 1, |out| out.append(&mut payload));
    }
    out.extend_from_slice(rest);
}

/// What clients of the leader do.
fn command(script: &mut Script<'_>) -> Vec<u8> {
    let key = format!("k{}", script.below(64));
    let value = "x".repeat([0, 1, 10, 300, 5000, 70_000, 200_000][script.below(7)]);
    let length = value.len();
    let text = match script.byte() % 9 {
        0 => format!("delete {key}\r\n"),
        1 => format!("append {key} 0 0 {length}\r\n{value}\r\n"),
        2 => format!("prepend {key} 0 0 {length}\r\n{value}\r\n"),
        3 => format!("touch {key} {}\r\n", script.below(300)),
        4 => format!("flush_all {}\r\n", script.byte() % 3),
        5 => format!("md {key} I T30\r\nmg {key} v R60 E{}\r\n", script.number()),
        _ => format!("set {key} 5 {} {length}\r\n{value}\r\n", script.byte()),
    };
    [&[0], text.as_bytes()].concat()
}

fn turns(sides: &mut [Side], now: u64) {
    for side in sides {
        for _ in 0..3 {
            if !side.turn(now) {
                side.session = None;
                break;
            }
        }
    }
}

pub fn copies(input: &[u8]) {
    let mut script = Script(input);
    // Empty leaders come as well.
    let leads = script.byte() % 8 < 7;
    let mut sides = [Side::new(1, leads, false), Side::new(2, false, true)];
    let mut now = 1000;
    while !script.0.is_empty() {
        if sides.iter().any(|side| side.session.is_none()) {
            sides[0].connect(false, now);
            sides[1].connect(true, now);
            // Mostly nobody meddles with the handshake.
            for _ in 0..4 * u8::from(script.byte() % 4 > 0) {
                let [one, other] = &mut sides;
                other.input.append(&mut one.out);
                one.input.append(&mut other.out);
                turns(&mut sides, now);
            }
        }
        let [one, other] = &mut sides;
        match script.byte() % 7 {
            0 | 1 => {
                let said = command(&mut script);
                one.server.session(Protocol::Negotiate, &said);
                let state = one.replicas.state();
                state.data.journal().mark(script.below(64));
            }
            2 => {
                other.input.append(&mut one.out);
                one.input.append(&mut other.out);
            }
            3 => carry(&mut script, &mut one.out, &mut other.input),
            4 => carry(&mut script, &mut other.out, &mut one.input),
            5 => match script.byte() % 2 {
                0 => made_up(&mut script, |number| other.next(number), &mut one.input),
                _ => made_up(&mut script, |number| one.next(number), &mut other.input),
            },
            _ => one.session = None,
        }
        now += u64::from(script.byte()) * 4;
        turns(&mut sides, now);
    }
    for side in &sides {
        let sent = side
            .server
            .session(Protocol::Negotiate, b"\0mn\r\nget k1\r\n");
        assert!(sent.starts_with(b"MN\r\n"), "{sent:?}");
        // What is there is there whole: its length is what it says.
        assert!(sent.ends_with(b"END\r\n"), "{sent:?}");
    }
}
