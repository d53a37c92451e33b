#![forbid(unsafe_code)]
//! What frames say.

use crate::store::journal::{LEAVES, NODES, PARTITIONS, Row};

use super::frame::{self, Broken, Frame};
use super::history::{Epoch, History};

/// Words of a set of leaves.
pub const LEAF_WORDS: usize = LEAVES / 64;

/// A set of leaves, a bit for each.
pub type Leaves = [u64; LEAF_WORDS];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Type {
    /// Both ways: who speaks.
    Hello = 1,
    /// Both ways: that the speaker knows the secret.
    Auth = 2,
    /// Copy to source: how far it is.
    Positions = 3,
    /// Source to copy: what it will get.
    Mode = 4,
    /// Records of the log.
    Batch = 5,
    /// Items as they are at this place of the log.
    Chunk = 6,
    Ack = 7,
    /// A prepared mutation that cannot be kept.
    Nak = 8,
    Heartbeat = 9,
    /// A copy's leaves, which differ from a digest in the log.
    Row = 10,
    /// Source to copy: tell me what you have in these leaves.
    ListRequest = 11,
    /// Digests of items.
    List = 12,
    ListEnd = 13,
    /// Source to copy: which of the listed items are not mine.
    Drop = 14,
    /// From here on these partitions are as mine.
    Synced = 15,
    /// What follows may be newer than its place; digests before the argument say nothing.
    Ahead = 16,
    /// Copy to source: log this key again.
    Fetch = 17,
    /// The speaker will not go on with this connection.
    GoAway = 18,
    /// Source to copy: where clients reach it.
    Clients = 19,
    /// The beginning of what the next frame of another type says the end of.
    Fragment = 20,
    /// A copy's inner nodes, where it is to be compared.
    Nodes = 21,
    /// Source to copy: tell me your leaves under these nodes.
    LeavesRequest = 22,
    /// Those.
    Leaves = 23,
    /// Copy to source: what it has of a long value, in answer to an offer if the count is 1.
    Segments = 24,
}

impl Type {
    pub fn from_byte(byte: u8) -> Option<Type> {
        use Type::*;
        [
            Hello,
            Auth,
            Positions,
            Mode,
            Batch,
            Chunk,
            Ack,
            Nak,
            Heartbeat,
            Row,
            ListRequest,
            List,
            ListEnd,
            Drop,
            Synced,
            Ahead,
            Fetch,
            GoAway,
            Clients,
            Fragment,
            Nodes,
            LeavesRequest,
            Leaves,
            Segments,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hello {
    /// Chosen once for each process.
    pub node: u64,
    /// Of the cluster's name: those of another one are refused.
    pub cluster: u64,
    pub nonce: [u8; 16],
    pub epoch: Epoch,
    pub items: u64,
    /// It knows a secret and wants to hear of it.
    pub secret: bool,
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// Whose log it has.
    pub epoch: Epoch,
    /// A bit for each partition that is whole.
    pub whole: u64,
    pub seq: [u64; PARTITIONS],
    pub items: u64,
}

/// How a partition is brought up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Tier {
    /// From the log.
    Tail = 0,
    /// What differs, and then from the log.
    Diff = 1,
    /// Everything, and then from the log.
    Full = 2,
}

/// What a copy will get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mode {
    /// The acceptor is empty and wants what the dialer has: roles change.
    pub reverse: bool,
    pub tiers: [Tier; PARTITIONS],
    /// Where each partition's log goes on behind.
    pub start: [u64; PARTITIONS],
    pub history: History,
}

/// What is said when there is nothing else to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heartbeat {
    /// The speaker's wall clock, milliseconds.
    pub unix_ms: u64,
    /// A source's last CAS id.
    pub cas: u64,
    /// Records it has logged.
    pub records: u64,
    /// When the source sent it, on its own clock; a copy sends back what it heard last.
    pub sent_ms: u64,
    /// The copy that hears this is in sync, as far as acknowledgements go.
    pub in_sync: bool,
}

pub enum Message<'a> {
    Hello(Hello),
    Auth([u8; 32]),
    Positions(Box<Positions>),
    Mode(Box<Mode>),
    /// Encoded records.
    Batch(&'a [u8]),
    Chunk(&'a [u8]),
    /// Bytes taken so far; then (partition, sequence) pairs.
    Ack {
        bytes: u64,
        positions: Vec<(usize, u64)>,
    },
    Nak {
        seq: u64,
    },
    Heartbeat(Heartbeat),
    Row {
        seq: u64,
        lossy: Leaves,
        row: Box<Row>,
    },
    /// The leaves, and the salt of the [`short`](crate::store::journal::short) digests that are to be
    /// listed.
    ListRequest(Leaves, u64),
    /// Of some of those leaves, in order: how many items (7 bits in a byte, the top bit: more to come),
    /// and the digests, three bytes each. The first leaf is told, the last is wherever it ends.
    List {
        first: usize,
        items: &'a [u8],
    },
    ListEnd,
    /// A bit for each item that was listed of the partition.
    Drop(&'a [u8]),
    Synced(u64),
    Ahead(u64),
    Fetch(&'a [u8]),
    GoAway {
        epoch: Epoch,
        reason: &'a str,
    },
    /// `host:port`, or `:port` on the host that the copy has dialled.
    Clients(&'a str),
    /// See [`nodes`](crate::store::journal::nodes).
    Nodes(Box<[u32; NODES]>),
    /// A bit for each node.
    LeavesRequest(u64),
    /// [`Short`](crate::store::journal::short) ones, three bytes each, salted with 0.
    Leaves(&'a [u8]),
    /// Digests of the segments of the value that stands under a key, 8 bytes each; none: it is to come
    /// whole.
    Segments {
        offered: bool,
        key: &'a [u8],
        digests: &'a [u8],
    },
}

/// Digests of three bytes.
pub fn shorts(bytes: &[u8]) -> impl ExactSizeIterator<Item = u32> {
    bytes
        .chunks_exact(3)
        .map(|three| u32::from_le_bytes([three[0], three[1], three[2], 0]))
}

pub fn put_short(out: &mut Vec<u8>, short: u32) {
    out.extend_from_slice(&short.to_le_bytes()[..3]);
}

/// Takes values off a payload.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    pub fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    pub fn flag(&mut self) -> Option<bool> {
        self.bytes::<1>().map(|[byte]| byte != 0)
    }

    fn words<const N: usize>(&mut self) -> Option<[u64; N]> {
        let mut words = [0; N];
        for word in &mut words {
            *word = self.u64()?;
        }
        Some(words)
    }

    /// What is counted up here: whoever says more does so to make it overflow.
    fn counted(&mut self) -> Option<u64> {
        self.u64().filter(|&number| number < 1 << 63)
    }

    pub fn epoch(&mut self) -> Option<Epoch> {
        Some(Epoch {
            number: self.counted()?,
            id: self.u64()?,
        })
    }
}

pub fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_epoch(out: &mut Vec<u8>, epoch: Epoch) {
    put_u64(out, epoch.number);
    put_u64(out, epoch.id);
}

impl Hello {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.node);
        put_u64(out, self.cluster);
        out.extend_from_slice(&self.nonce);
        put_epoch(out, self.epoch);
        put_u64(out, self.items);
        out.push(u8::from(self.secret));
    }
}

/// Reads a frame's payload.
///
/// # Errors
/// It says nothing sensible.
pub fn read<'a>(frame: &Frame<'a>) -> Result<Message<'a>, Broken> {
    decode(frame).ok_or(Broken::Malformed)
}

fn decode<'a>(frame: &Frame<'a>) -> Option<Message<'a>> {
    let mut from = Reader(frame.payload);
    if usize::from(frame.partition) >= PARTITIONS {
        return None;
    }
    Some(match frame.kind {
        Type::Hello => Message::Hello(Hello {
            node: from.u64()?,
            cluster: from.u64()?,
            nonce: from.bytes()?,
            epoch: from.epoch()?,
            items: from.u64()?,
            secret: from.flag()?,
        }),
        Type::Auth => Message::Auth(from.bytes()?),
        Type::Positions => Message::Positions(Box::new(Positions {
            epoch: from.epoch()?,
            whole: from.u64()?,
            items: from.u64()?,
            seq: from.words()?,
        })),
        Type::Mode => {
            let reverse = from.flag()?;
            let mut tiers = [Tier::Tail; PARTITIONS];
            for (tier, byte) in tiers.iter_mut().zip(from.bytes::<PARTITIONS>()?) {
                *tier = match byte {
                    0 => Tier::Tail,
                    1 => Tier::Diff,
                    2 => Tier::Full,
                    _ => return None,
                };
            }
            Message::Mode(Box::new(Mode {
                reverse,
                tiers,
                start: from.words()?,
                history: History::decode(&mut from)?,
            }))
        }
        Type::Batch => Message::Batch(frame.payload),
        Type::Chunk => Message::Chunk(frame.payload),
        Type::Ack => {
            let bytes = from.u64()?;
            let mut positions = Vec::new();
            for _ in 0..frame.count.min(PARTITIONS as u16) {
                let partition = usize::from(from.u16()?);
                if partition >= PARTITIONS {
                    return None;
                }
                positions.push((partition, from.u64()?));
            }
            Message::Ack { bytes, positions }
        }
        Type::Nak => Message::Nak { seq: from.u64()? },
        Type::Heartbeat => Message::Heartbeat(Heartbeat {
            unix_ms: from.u64()?,
            cas: from.counted()?,
            records: from.u64()?,
            sent_ms: from.u64()?,
            in_sync: from.flag()?,
        }),
        Type::Row => Message::Row {
            seq: from.u64()?,
            lossy: from.words()?,
            row: {
                let mut row = Box::new([0; LEAVES]);
                for leaf in row.iter_mut() {
                    *leaf = from.u64()?;
                }
                row
            },
        },
        Type::ListRequest => Message::ListRequest(from.words()?, from.u64()?),
        Type::List => Message::List {
            first: usize::from(frame.count),
            items: frame.payload,
        },
        Type::ListEnd => Message::ListEnd,
        Type::Drop => Message::Drop(frame.payload),
        Type::Synced => Message::Synced(from.u64()?),
        Type::Ahead => Message::Ahead(from.u64()?),
        Type::Fetch => Message::Fetch(frame.payload),
        Type::GoAway => Message::GoAway {
            epoch: from.epoch()?,
            reason: std::str::from_utf8(from.0).ok()?,
        },
        Type::Clients => Message::Clients(std::str::from_utf8(frame.payload).ok()?),
        // It is put together with what follows it.
        Type::Fragment => return None,
        Type::Nodes => {
            let mut nodes = Box::new([0; NODES]);
            for node in nodes.iter_mut() {
                *node = from.bytes().map(u32::from_le_bytes)?;
            }
            Message::Nodes(nodes)
        }
        Type::LeavesRequest => Message::LeavesRequest(from.u64()?),
        Type::Leaves => Message::Leaves(frame.payload),
        Type::Segments => {
            let key = usize::from(from.u16()?);
            let (key, digests) = from.0.split_at_checked(key)?;
            Message::Segments {
                offered: frame.count == 1,
                key,
                digests,
            }
        }
    })
}

/// Appends a message, with what the frame around it has to say.
pub fn write(out: &mut Vec<u8>, epoch: u64, partition: usize, message: &Message<'_>) {
    let (kind, count) = match message {
        Message::Hello(_) => (Type::Hello, 0),
        Message::Auth(_) => (Type::Auth, 0),
        Message::Positions(_) => (Type::Positions, 0),
        Message::Mode(_) => (Type::Mode, 0),
        Message::Batch(_) => (Type::Batch, 0),
        Message::Chunk(_) => (Type::Chunk, 0),
        Message::Ack { positions, .. } => (Type::Ack, positions.len()),
        Message::Nak { .. } => (Type::Nak, 0),
        Message::Heartbeat(_) => (Type::Heartbeat, 0),
        Message::Row { .. } => (Type::Row, 0),
        Message::ListRequest(..) => (Type::ListRequest, 0),
        Message::List { first, .. } => (Type::List, *first),
        Message::ListEnd => (Type::ListEnd, 0),
        Message::Drop(_) => (Type::Drop, 0),
        Message::Synced(_) => (Type::Synced, 0),
        Message::Ahead(_) => (Type::Ahead, 0),
        Message::Fetch(_) => (Type::Fetch, 0),
        Message::GoAway { .. } => (Type::GoAway, 0),
        Message::Clients(_) => (Type::Clients, 0),
        Message::Nodes(_) => (Type::Nodes, 0),
        Message::LeavesRequest(_) => (Type::LeavesRequest, 0),
        Message::Leaves(_) => (Type::Leaves, 0),
        Message::Segments { offered, .. } => (Type::Segments, usize::from(*offered)),
    };
    frame::write(out, kind, epoch, partition, count, |out| {
        encode(out, message)
    });
}

fn encode(out: &mut Vec<u8>, message: &Message<'_>) {
    match message {
        Message::Hello(hello) => hello.encode(out),
        Message::Auth(proof) => out.extend_from_slice(proof),
        Message::Positions(positions) => {
            put_epoch(out, positions.epoch);
            put_u64(out, positions.whole);
            put_u64(out, positions.items);
            positions.seq.iter().for_each(|seq| put_u64(out, *seq));
        }
        Message::Mode(mode) => {
            out.push(u8::from(mode.reverse));
            out.extend(mode.tiers.iter().map(|tier| *tier as u8));
            mode.start.iter().for_each(|seq| put_u64(out, *seq));
            mode.history.encode(out);
        }
        Message::Batch(bytes)
        | Message::Chunk(bytes)
        | Message::Fetch(bytes)
        | Message::List { items: bytes, .. }
        | Message::Drop(bytes)
        | Message::Leaves(bytes) => out.extend_from_slice(bytes),
        Message::Nodes(nodes) => {
            for node in nodes.iter() {
                out.extend_from_slice(&node.to_le_bytes());
            }
        }
        Message::LeavesRequest(nodes) => put_u64(out, *nodes),
        Message::Ack { bytes, positions } => {
            put_u64(out, *bytes);
            for (partition, seq) in positions {
                out.extend_from_slice(&(*partition as u16).to_le_bytes());
                put_u64(out, *seq);
            }
        }
        Message::Nak { seq } => put_u64(out, *seq),
        Message::Heartbeat(beat) => {
            for value in [beat.unix_ms, beat.cas, beat.records, beat.sent_ms] {
                put_u64(out, value);
            }
            out.push(u8::from(beat.in_sync));
        }
        Message::Row { seq, lossy, row } => {
            put_u64(out, *seq);
            lossy.iter().for_each(|word| put_u64(out, *word));
            row.iter().for_each(|leaf| put_u64(out, *leaf));
        }
        Message::ListRequest(leaves, salt) => {
            leaves.iter().for_each(|word| put_u64(out, *word));
            put_u64(out, *salt);
        }
        Message::ListEnd => {}
        Message::Clients(address) => out.extend_from_slice(address.as_bytes()),
        Message::Segments { key, digests, .. } => {
            out.extend_from_slice(&(key.len() as u16).to_le_bytes());
            out.extend_from_slice(key);
            out.extend_from_slice(digests);
        }
        Message::Synced(partitions) => put_u64(out, *partitions),
        Message::Ahead(until) => put_u64(out, *until),
        Message::GoAway { epoch, reason } => {
            put_epoch(out, *epoch);
            out.extend_from_slice(reason.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_payloads_are_refused_and_never_panic() {
        // Every type with every length of noise: it is understood or refused.
        for kind in 0..=25u8 {
            let Some(kind) = Type::from_byte(kind) else {
                continue;
            };
            for length in (0..200).chain([8 * 1042, 70_000]) {
                for fill in [0u8, 1, 0xff] {
                    let payload = vec![fill; length];
                    let frame = Frame {
                        kind,
                        epoch: 1,
                        partition: 3,
                        count: 0xffff,
                        payload: &payload,
                    };
                    let _ = read(&frame);
                }
            }
        }
    }

    const HELLO: Hello = Hello {
        node: 1,
        cluster: 2,
        nonce: [3; 16],
        epoch: Epoch { number: 4, id: 5 },
        items: 6,
        secret: true,
    };

    #[test]
    fn an_epoch_that_has_no_next_is_not_believed() {
        let mut hello = HELLO;
        for (number, believed) in [
            (4, true),
            ((1 << 63) - 1, true),
            (1 << 63, false),
            (u64::MAX, false),
        ] {
            hello.epoch.number = number;
            let mut out = Vec::new();
            write(&mut out, 9, 0, &Message::Hello(hello));
            let (frame, _) = frame::parse(&out).unwrap().unwrap();
            assert_eq!(read(&frame).is_ok(), believed, "{number}");
        }
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let hello = HELLO;
        let mut out = Vec::new();
        write(&mut out, 9, 0, &Message::Hello(hello));
        let (frame, used) = frame::parse(&out).unwrap().unwrap();
        assert_eq!((used, frame.epoch), (out.len(), 9));
        assert!(matches!(read(&frame), Ok(Message::Hello(same)) if same == hello));

        let mut history = History::default();
        history.open(hello.epoch, &[8; PARTITIONS]);
        let mode = Mode {
            reverse: true,
            tiers: std::array::from_fn(|n| [Tier::Tail, Tier::Diff, Tier::Full][n % 3]),
            start: [77; PARTITIONS],
            history,
        };
        out.clear();
        write(&mut out, 9, 0, &Message::Mode(Box::new(mode.clone())));
        let (frame, _) = frame::parse(&out).unwrap().unwrap();
        assert!(matches!(read(&frame), Ok(Message::Mode(same)) if *same == mode));

        out.clear();
        let positions = vec![(3, 4), (PARTITIONS - 1, u64::MAX)];
        let ack = Message::Ack {
            bytes: 17,
            positions: positions.clone(),
        };
        write(&mut out, 9, 0, &ack);
        let (frame, _) = frame::parse(&out).unwrap().unwrap();
        assert!(
            matches!(read(&frame), Ok(Message::Ack { bytes: 17, positions: same }) if same == positions)
        );
    }
}
