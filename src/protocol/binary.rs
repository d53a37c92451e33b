#![forbid(unsafe_code)]
//! Binary requests: a header of 24 bytes, then extras, key and value, one behind the other.
//!
//! Numbers are big-endian. Data type and vbucket are not looked at. Every rule but the last needs the
//! header alone, so that a wrong request is refused before its body arrives.

use super::Rules;
use super::request::{
    Arith, Create, Delete, Fetch, Key, Mode, Op, Parsed, Refusal, Request, Store, Style,
};
use super::text::KEY_MAX;

/// Bytes of a header.
pub const HEADER: usize = 24;
/// The opcode of `repl`.
pub const REPL: u8 = 0xe0;
/// The first byte of a request.
pub const MAGIC: u8 = 0x80;
/// The longest body.
const BODY_MAX: u32 = 1 << 30;
/// The expiry that asks INCREMENT and DECREMENT not to create.
const DO_NOT_CREATE: u32 = u32::MAX;

const INVALID: (u16, &str) = (0x04, "Invalid arguments");
const UNKNOWN: (u16, &str) = (0x81, "Unknown command");

/// What opcodes mean, quiet ones apart.
mod opcode {
    pub const GET: u8 = 0x00;
    pub const SET: u8 = 0x01;
    pub const ADD: u8 = 0x02;
    pub const REPLACE: u8 = 0x03;
    pub const DELETE: u8 = 0x04;
    pub const INCREMENT: u8 = 0x05;
    pub const DECREMENT: u8 = 0x06;
    pub const QUIT: u8 = 0x07;
    pub const FLUSH: u8 = 0x08;
    pub const NOOP: u8 = 0x0a;
    pub const VERSION: u8 = 0x0b;
    pub const GETK: u8 = 0x0c;
    pub const APPEND: u8 = 0x0e;
    pub const PREPEND: u8 = 0x0f;
    pub const STAT: u8 = 0x10;
    pub const TOUCH: u8 = 0x1c;
    pub const GAT: u8 = 0x1d;
    pub const SASL_LIST: u8 = 0x20;
    pub const SASL_AUTH: u8 = 0x21;
    pub const SASL_STEP: u8 = 0x22;
    pub const GATK: u8 = 0x23;
    /// Larder's own: what proxies and followers ask, in the place of a key as words behind `repl`.
    pub const REPL: u8 = super::REPL;
}

/// The opcode whose meaning this one has, and whether it is the quiet one.
#[inline]
fn plain(code: u8) -> (u8, bool) {
    match code {
        0x09 => (opcode::GET, true),
        0x0d => (opcode::GETK, true),
        // SET to FLUSH, in the order of the loud ones.
        0x11..=0x18 => (code - 0x10, true),
        0x19 => (opcode::APPEND, true),
        0x1a => (opcode::PREPEND, true),
        0x1e => (opcode::GAT, true),
        0x24 => (opcode::GATK, true),
        code => (code, false),
    }
}

/// The opcode that asks for the same and is answered in any case.
pub fn loud(code: u8) -> u8 {
    plain(code).0
}

/// A header, as far as it is looked at.
struct Header {
    opcode: u8,
    key: usize,
    extras: usize,
    body: u32,
    opaque: u32,
    cas: u64,
}

impl Header {
    #[inline]
    fn read(bytes: &[u8; HEADER]) -> Header {
        let &[_, opcode, k0, k1, extras, _, _, _, rest @ ..] = bytes;
        let &[b0, b1, b2, b3, o0, o1, o2, o3, cas @ ..] = &rest;
        Header {
            opcode,
            key: usize::from(u16::from_be_bytes([k0, k1])),
            extras: usize::from(extras),
            body: u32::from_be_bytes([b0, b1, b2, b3]),
            opaque: u32::from_be_bytes([o0, o1, o2, o3]),
            cas: u64::from_be_bytes(cas),
        }
    }

    /// What comes behind extras and key; none if they do not fit into the body.
    #[inline]
    fn value(&self) -> Option<usize> {
        (self.body as usize).checked_sub(self.key + self.extras)
    }

    /// The client cannot be followed any further.
    #[cold]
    fn hang_up<'a>(&self, (status, text): (u16, &'static str)) -> Parsed<'a> {
        Parsed::Refused {
            reply: self.refusal(status, text),
            taken: HEADER,
            skip: 0,
            close: true,
        }
    }

    /// memcached skips too much here if there are extras or a key, and loses its place.
    #[cold]
    fn unknown<'a>(&self) -> Parsed<'a> {
        let (status, text) = UNKNOWN;
        Parsed::Refused {
            reply: self.refusal(status, text),
            taken: HEADER,
            skip: u64::from(self.body),
            close: false,
        }
    }

    fn refusal(&self, status: u16, text: &'static str) -> Refusal {
        Refusal::Binary {
            opcode: self.opcode,
            opaque: self.opaque,
            status,
            text,
        }
    }
}

/// The first four bytes as a number; the caller has checked that they are there.
#[inline]
fn number32(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

#[inline]
fn number64(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Opcode and opaque of a whole header whose lengths can be right: what is known of a request before
/// its shape is looked at.
pub fn sound(input: &[u8]) -> Option<(u8, u32)> {
    let header = Header::read(input.first_chunk()?);
    let sound = input[0] == MAGIC && header.value().is_some() && header.body <= BODY_MAX;
    sound.then_some((header.opcode, header.opaque))
}

/// What the start of `input` asks for.
pub fn parse(input: &[u8]) -> Parsed<'_> {
    parse_by(Rules::default(), input)
}

/// As [`parse`], by other rules than memcached's.
pub fn parse_by(rules: Rules, input: &[u8]) -> Parsed<'_> {
    let Some((bytes, rest)) = input.split_first_chunk::<HEADER>() else {
        return match input.first() {
            None | Some(&MAGIC) => Parsed::Incomplete,
            Some(_) => Parsed::Close,
        };
    };
    if bytes[0] != MAGIC {
        return Parsed::Close;
    }
    let header = Header::read(bytes);
    let Some(length) = header.value() else {
        return header.hang_up(UNKNOWN);
    };
    if header.body > BODY_MAX || header.key > rules.key_max() {
        return header.hang_up(INVALID);
    }
    let (code, quiet) = plain(header.opcode);
    let has_key = header.key > 0;
    // Extras, key and value, in the shape that the opcode wants them. memcached lets a value stand
    // behind TOUCH, GAT and STAT, and then takes it for a header.
    let shaped = match code {
        opcode::GET | opcode::GETK | opcode::DELETE => header.extras == 0 && has_key && length == 0,
        opcode::SET | opcode::ADD | opcode::REPLACE => header.extras == 8 && has_key,
        opcode::APPEND | opcode::PREPEND => header.extras == 0 && has_key,
        opcode::INCREMENT | opcode::DECREMENT => header.extras == 20 && has_key && length == 0,
        opcode::TOUCH | opcode::GAT | opcode::GATK => header.extras == 4 && has_key && length == 0,
        opcode::NOOP | opcode::VERSION | opcode::QUIT | opcode::SASL_LIST => header.body == 0,
        opcode::FLUSH => matches!(header.extras, 0 | 4) && !has_key && length == 0,
        // What stands in the place of a key here is none, and need not be as long.
        opcode::STAT => header.extras == 0 && header.key <= KEY_MAX && length == 0,
        opcode::SASL_AUTH | opcode::SASL_STEP => {
            header.extras == 0 && has_key && header.key <= KEY_MAX
        }
        opcode::REPL if header.extras == 0 && has_key && header.key <= KEY_MAX && length == 0 => {
            true
        }
        _ => return header.unknown(),
    };
    if !shaped {
        return header.hang_up(INVALID);
    }
    let Some((extras, key)) = rest
        .get(..header.extras + header.key)
        .and_then(|rest| rest.split_at_checked(header.extras))
    else {
        return Parsed::Incomplete;
    };
    Parsed::Request {
        request: Request {
            op: op(code, &header, extras, key, length),
            style: Style::Binary {
                opcode: header.opcode,
                opaque: header.opaque,
                quiet,
            },
        },
        taken: HEADER + header.extras + header.key,
    }
}

/// A request whose shape is right.
#[inline]
fn op<'a>(code: u8, header: &Header, extras: &[u8], raw: &'a [u8], length: usize) -> Op<'a> {
    let key = Key { raw, base64: false };
    // Nobody has CAS 0: it stands for any.
    let cas = Some(header.cas).filter(|&cas| cas != 0);
    let fetch = |value, touch| {
        Op::Fetch(Fetch {
            key,
            value,
            touch,
            vivify: None,
            recache: None,
            known_cas: None,
            new_cas: None,
            bump: true,
        })
    };
    let store = |mode, flags, exptime| {
        Op::Store(Store {
            flags,
            exptime,
            cas,
            ..Store::new(key, mode, length)
        })
    };
    // Expiry times have no sign here.
    let expiry = |at: usize| i64::from(number32(&extras[at..]));
    match code {
        opcode::GET | opcode::GETK => fetch(true, None),
        opcode::GAT | opcode::GATK => fetch(true, Some(expiry(0))),
        opcode::TOUCH => fetch(false, Some(expiry(0))),
        opcode::SET => store(Mode::Set, number32(extras), expiry(4)),
        opcode::ADD => store(Mode::Add, number32(extras), expiry(4)),
        opcode::REPLACE => store(Mode::Replace, number32(extras), expiry(4)),
        opcode::APPEND => store(Mode::Append, 0, 0),
        opcode::PREPEND => store(Mode::Prepend, 0, 0),
        opcode::DELETE => Op::Delete(Delete {
            cas,
            ..Delete::new(key)
        }),
        opcode::INCREMENT | opcode::DECREMENT => Op::Arith(Arith {
            cas,
            create: (number32(&extras[16..]) != DO_NOT_CREATE).then(|| Create {
                initial: number64(&extras[8..]),
                exptime: expiry(16),
            }),
            ..Arith::new(key, code == opcode::INCREMENT, number64(extras))
        }),
        opcode::FLUSH => Op::FlushAll {
            exptime: Some(i64::from(number32(extras))),
        },
        opcode::STAT => Op::Stats { words: raw },
        opcode::REPL => Op::Repl { words: raw },
        opcode::VERSION => Op::Version,
        opcode::QUIT => Op::Quit,
        opcode::SASL_LIST => Op::SaslListMechanisms,
        opcode::SASL_AUTH => Op::SaslAuth {
            mechanism: raw,
            length,
        },
        opcode::SASL_STEP => Op::SaslStep {
            mechanism: raw,
            length,
        },
        _ => Op::Noop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request as a client would write it.
    fn packet(opcode: u8, extras: &[u8], key: &[u8], value: &[u8], cas: u64) -> Vec<u8> {
        let body = extras.len() + key.len() + value.len();
        let mut packet = vec![MAGIC, opcode];
        packet.extend_from_slice(&(key.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[extras.len() as u8, 0, 0, 0]);
        packet.extend_from_slice(&(body as u32).to_be_bytes());
        packet.extend_from_slice(b"opaq");
        packet.extend_from_slice(&cas.to_be_bytes());
        for part in [extras, key, value] {
            packet.extend_from_slice(part);
        }
        packet
    }

    fn asked(packet: &[u8]) -> (Op<'_>, bool, usize) {
        match parse(packet) {
            Parsed::Request {
                request:
                    Request {
                        op,
                        style:
                            Style::Binary {
                                opcode,
                                opaque,
                                quiet,
                            },
                    },
                taken,
            } => {
                assert_eq!((opcode, &opaque.to_be_bytes()), (packet[1], b"opaq"));
                (op, quiet, taken)
            }
            parsed => panic!("{packet:?}: {parsed:?}"),
        }
    }

    /// Status, bytes to skip and whether to close.
    fn refused(packet: &[u8]) -> (u16, u64, bool) {
        match parse(packet) {
            Parsed::Refused {
                reply:
                    Refusal::Binary {
                        status,
                        opcode,
                        opaque,
                        text,
                    },
                taken: HEADER,
                skip,
                close,
            } => {
                assert_eq!((opcode, &opaque.to_be_bytes()), (packet[1], b"opaq"));
                let said = if status == 0x04 { INVALID } else { UNKNOWN };
                assert_eq!((status, text), said);
                (status, skip, close)
            }
            parsed => panic!("{packet:?}: {parsed:?}"),
        }
    }

    const FLAGS_AND_EXPIRY: &[u8] = &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xfe];

    #[test]
    fn reads_and_touches() {
        for (code, quiet, extras, value, touch) in [
            (0x00, false, &b""[..], true, None),
            (0x09, true, b"", true, None),
            (0x0c, false, b"", true, None),
            (0x0d, true, b"", true, None),
            (0x1c, false, &[0, 0, 0, 9], false, Some(9)),
            (0x1d, false, &[0, 0, 1, 0], true, Some(256)),
            (0x1e, true, &[0, 0, 1, 0], true, Some(256)),
            (0x23, false, &[0xff; 4], true, Some(0xffff_ffff)),
            (0x24, true, &[0xff; 4], true, Some(0xffff_ffff)),
        ] {
            // A CAS in a read means nothing.
            let packet = packet(code, extras, b"key", b"", 5);
            let (op, is_quiet, taken) = asked(&packet);
            assert_eq!((is_quiet, taken), (quiet, packet.len()), "{code:#x}");
            let Op::Fetch(fetch) = op else {
                panic!("{code:#x}: {op:?}")
            };
            assert_eq!((fetch.value, fetch.touch), (value, touch), "{code:#x}");
            assert_eq!((fetch.key.raw, fetch.known_cas), (&b"key"[..], None));
        }
    }

    #[test]
    fn stores() {
        for (code, quiet, extras, mode, flags, exptime) in [
            (0x01, false, FLAGS_AND_EXPIRY, Mode::Set, 7, 0xffff_fffe),
            (0x02, false, FLAGS_AND_EXPIRY, Mode::Add, 7, 0xffff_fffe),
            (0x03, false, FLAGS_AND_EXPIRY, Mode::Replace, 7, 0xffff_fffe),
            (0x11, true, FLAGS_AND_EXPIRY, Mode::Set, 7, 0xffff_fffe),
            (0x12, true, FLAGS_AND_EXPIRY, Mode::Add, 7, 0xffff_fffe),
            (0x13, true, FLAGS_AND_EXPIRY, Mode::Replace, 7, 0xffff_fffe),
            (0x0e, false, b"", Mode::Append, 0, 0),
            (0x0f, false, b"", Mode::Prepend, 0, 0),
            (0x19, true, b"", Mode::Append, 0, 0),
            (0x1a, true, b"", Mode::Prepend, 0, 0),
        ] {
            for (value, cas) in [(&b""[..], 0), (b"value", 3)] {
                let packet = packet(code, extras, b"key", value, cas);
                let (op, is_quiet, taken) = asked(&packet);
                assert_eq!(is_quiet, quiet, "{code:#x}");
                assert_eq!(taken, packet.len() - value.len(), "{code:#x}");
                let Op::Store(store) = op else {
                    panic!("{code:#x}: {op:?}")
                };
                assert_eq!((store.mode, store.length), (mode, value.len()));
                assert_eq!((store.flags, store.exptime), (flags, exptime));
                assert_eq!(store.cas, (cas != 0).then_some(cas));
                assert_eq!(store.key.raw, b"key");
            }
        }
    }

    #[test]
    fn counts_and_deletes() {
        let mut extras = [0; 20];
        extras[7] = 2;
        extras[15] = 3;
        extras[19] = 4;
        for (code, quiet, up) in [
            (0x05, false, true),
            (0x06, false, false),
            (0x15, true, true),
            (0x16, true, false),
        ] {
            let packet = packet(code, &extras, b"n", b"", 6);
            let (op, is_quiet, _) = asked(&packet);
            let Op::Arith(arith) = op else {
                panic!("{code:#x}: {op:?}")
            };
            assert_eq!((is_quiet, arith.up), (quiet, up), "{code:#x}");
            let create = Create {
                initial: 3,
                exptime: 4,
            };
            assert_eq!((arith.delta, arith.create), (2, Some(create)));
            assert_eq!(arith.cas, Some(6));
        }
        extras[16..].fill(0xff);
        let packet_of_ones = packet(0x05, &extras, b"n", b"", 0);
        let (op, ..) = asked(&packet_of_ones);
        assert!(
            matches!(
                op,
                Op::Arith(Arith {
                    create: None,
                    cas: None,
                    ..
                })
            ),
            "all ones: do not create"
        );
        for (code, quiet) in [(0x04, false), (0x14, true)] {
            let packet = packet(code, b"", b"k", b"", 8);
            let (op, is_quiet, _) = asked(&packet);
            let Op::Delete(delete) = op else {
                panic!("{code:#x}: {op:?}")
            };
            assert_eq!((is_quiet, delete.cas), (quiet, Some(8)));
        }
    }

    #[test]
    fn the_rest() {
        let mechanism = b"PLAIN";
        for (code, quiet, extras, key, value, op) in [
            (0x07, false, &b""[..], &b""[..], &b""[..], Op::Quit),
            (0x17, true, b"", b"", b"", Op::Quit),
            (
                0x08,
                false,
                b"",
                b"",
                b"",
                Op::FlushAll { exptime: Some(0) },
            ),
            (
                0x18,
                true,
                &[0, 0, 0, 5],
                b"",
                b"",
                Op::FlushAll { exptime: Some(5) },
            ),
            (0x0a, false, b"", b"", b"", Op::Noop),
            (0x0b, false, b"", b"", b"", Op::Version),
            (0x10, false, b"", b"", b"", Op::Stats { words: b"" }),
            (
                0x10,
                false,
                b"",
                b"items",
                b"",
                Op::Stats { words: b"items" },
            ),
            (0x20, false, b"", b"", b"", Op::SaslListMechanisms),
            (
                0x21,
                false,
                b"",
                mechanism,
                b"\0u\0p",
                Op::SaslAuth {
                    mechanism,
                    length: 4,
                },
            ),
            (
                0x22,
                false,
                b"",
                mechanism,
                b"",
                Op::SaslStep {
                    mechanism,
                    length: 0,
                },
            ),
        ] {
            let packet = packet(code, extras, key, value, 0);
            let taken = packet.len() - value.len();
            assert_eq!(asked(&packet), (op, quiet, taken), "{code:#x}");
        }
    }

    #[test]
    fn wrong_shapes_end_the_connection() {
        let key = &b"key"[..];
        let long = [b'k'; 251];
        for (code, extras, key, value) in [
            (0x00, &b""[..], &b""[..], &b""[..]),
            (0x00, b"x", key, b""),
            (0x00, b"", key, b"v"),
            (0x00, b"", &long, b""),
            (0x04, b"", b"", b""),
            (0x04, b"", key, b"v"),
            (0x01, b"1234", key, b"v"),
            (0x01, FLAGS_AND_EXPIRY, b"", b"v"),
            (0x11, b"", key, b"v"),
            (0x0e, b"1", key, b"v"),
            (0x0e, b"", b"", b"v"),
            (0x05, b"", key, b""),
            (0x05, &[0; 20], key, b"v"),
            (0x05, &[0; 20], b"", b""),
            (0x1c, b"", key, b""),
            (0x1d, &[0; 4], b"", b""),
            (0x1d, &[0; 4], key, b"v"),
            (0x0a, b"", key, b""),
            (0x0b, b"", b"", b"v"),
            (0x07, b"1", b"", b""),
            (0x08, b"123", b"", b""),
            (0x08, &[0; 4], key, b""),
            (0x08, &[0; 4], b"", b"v"),
            (0x10, b"1", key, b""),
            (0x10, b"", key, b"v"),
            (0x20, b"", key, b""),
            (0x21, b"", b"", b"v"),
            (0x21, b"1", key, b"v"),
            // The key is looked at before the opcode.
            (0xee, b"", &long, b""),
        ] {
            let packet = packet(code, extras, key, value, 0);
            assert_eq!(refused(&packet), (0x04, 0, true), "{code:#x} {packet:?}");
        }
    }

    #[test]
    fn impossible_lengths_end_the_connection() {
        let mut packet = packet(0x01, FLAGS_AND_EXPIRY, b"key", b"", 0);
        for (body, refusal) in [
            (2u32, (0x81, 0, true)),
            (10, (0x81, 0, true)),
            ((1 << 30) + 1, (0x04, 0, true)),
            (0x8000_0000, (0x04, 0, true)),
            (u32::MAX, (0x04, 0, true)),
        ] {
            packet[8..12].copy_from_slice(&body.to_be_bytes());
            assert_eq!(refused(&packet), refusal, "{body}");
            assert_eq!(sound(&packet), None);
        }
        packet[8..12].copy_from_slice(&(1u32 << 30).to_be_bytes());
        assert_eq!(sound(&packet), Some((0x01, 0x6f70_6171)));
        let (op, ..) = asked(&packet);
        assert!(matches!(op, Op::Store(Store { length, .. }) if length == (1 << 30) - 11));
    }

    #[test]
    fn unknown_opcodes_keep_in_step() {
        for code in [0x1b, 0x1f, 0x25, 0x30, 0x3d, 0x45, 0x80, 0xff] {
            let packet = packet(code, b"1234", b"key", b"value", 0);
            assert_eq!(refused(&packet), (0x81, 12, false), "{code:#x}");
        }
    }

    #[test]
    fn another_magic_hangs_up() {
        for input in [&b"get a\r\n"[..], b"\x81", &[0x81; 30]] {
            assert_eq!(parse(input), Parsed::Close);
        }
    }

    #[test]
    fn a_request_may_arrive_in_pieces() {
        for packet in [
            packet(0x00, b"", b"key", b"", 0),
            packet(0x01, FLAGS_AND_EXPIRY, b"key", b"value", 1),
            packet(0x05, &[1; 20], b"key", b"", 0),
            packet(0x0a, b"", b"", b"", 0),
        ] {
            let (_, _, taken) = asked(&packet);
            for end in 0..taken {
                assert_eq!(parse(&packet[..end]), Parsed::Incomplete, "{end}");
            }
            for end in taken..=packet.len() {
                assert_eq!(parse(&packet[..end]), parse(&packet), "{end}");
            }
        }
        for packet in [
            packet(0x00, b"", b"", b"", 0),
            packet(0x77, b"1", b"key", b"", 0),
        ] {
            for end in 0..=packet.len() {
                let expected = if end < HEADER {
                    Parsed::Incomplete
                } else {
                    parse(&packet)
                };
                assert_eq!(parse(&packet[..end]), expected, "{end}");
            }
        }
    }
}
