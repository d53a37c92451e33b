#![forbid(unsafe_code)]
//! What an outcome looks like in each dialect.

use crate::protocol::request::{Refusal, Style};
use crate::store::{Counted, Deleted, Stored};

use super::Next;
use super::meta;
use super::replies::{Replies, Room};

/// Binary status codes.
pub const STATUS_OK: u16 = 0x00;
pub const STATUS_NOT_FOUND: u16 = 0x01;
pub const STATUS_EXISTS: u16 = 0x02;
pub const STATUS_TOO_LARGE: u16 = 0x03;
pub const STATUS_INVALID: u16 = 0x04;
pub const STATUS_NOT_STORED: u16 = 0x05;
pub const STATUS_NON_NUMERIC: u16 = 0x06;
pub const STATUS_AUTH: u16 = 0x20;
pub const STATUS_CONTINUE: u16 = 0x21;
pub const STATUS_UNKNOWN: u16 = 0x81;
pub const STATUS_NO_MEMORY: u16 = 0x82;

/// Bytes of a binary header.
pub const HEADER: usize = 24;

const NO_MEMORY: &[u8] = b"SERVER_ERROR out of memory\r\n";
const NON_NUMERIC: &[u8] = b"CLIENT_ERROR cannot increment or decrement non-numeric value";

/// A line for text and meta. Meta errors are never suppressed, text ones by `noreply`.
pub fn line(style: &Style<'_>, line: &[u8], replies: &mut Replies) {
    if !matches!(style, Style::Text { noreply: true }) {
        replies.line(line);
    }
}

/// A mutation that has to go to another node; mcrouter and others try one on such an answer.
const NOT_LEADING: &str = "SERVER_ERROR not leader";

/// Binary clients take this for a failure that passes.
pub const STATUS_NOT_NOW: u16 = 0x86;

/// Says that this node takes no mutations.
#[cold]
pub fn not_leading(style: &Style<'_>, replies: &mut Replies) {
    refusal(&not_leading_later(style), replies);
}

/// As [`not_leading`], for a request whose value still has to pass.
#[cold]
pub fn not_leading_later(style: &Style<'_>) -> Refusal {
    refused(style, NOT_LEADING, STATUS_NOT_NOW, "Not leader")
}

/// A mutation that copies have no room for at the moment. The number makes mcrouter try another server.
#[cold]
pub fn busy_later(style: &Style<'_>) -> Refusal {
    refused(style, "SERVER_ERROR 307 busy", STATUS_NOT_NOW, "Busy")
}

/// What a mutation is answered with whose value is too long for any node.
pub fn too_large_later(style: &Style<'_>) -> Refusal {
    refused(
        style,
        "SERVER_ERROR object too large for cache",
        STATUS_TOO_LARGE,
        "Too large.",
    )
}

/// What a mutation is answered with whose value is too long to be voted on.
pub fn too_long_later(style: &Style<'_>) -> Refusal {
    refused(
        style,
        "SERVER_ERROR object too large for two-phase commit",
        STATUS_TOO_LARGE,
        "Too large for two-phase commit",
    )
}

/// What a mutation is answered with that copies could not agree upon: it may still come to be, if this
/// node fails now.
pub fn aborted_later(style: &Style<'_>) -> Refusal {
    refused(
        style,
        "SERVER_ERROR repl aborted, outcome unknown",
        STATUS_NOT_NOW,
        "Aborted, outcome unknown",
    )
}

/// What a mutation is answered with that too few copies could vote on: nothing has been done, see
/// `--repl-min-isr`.
pub fn too_few_later(style: &Style<'_>) -> Refusal {
    refused(
        style,
        "SERVER_ERROR not enough copies in sync",
        STATUS_NOT_NOW,
        "Not enough copies in sync",
    )
}

/// A refusal as `style` has it: a line, a packet, or nothing.
#[cold]
pub fn refused(style: &Style<'_>, line: &'static str, status: u16, text: &'static str) -> Refusal {
    match *style {
        Style::Text { noreply: true } => Refusal::Silent,
        Style::Text { .. } | Style::Meta { .. } => Refusal::Line(line),
        Style::Binary { opcode, opaque, .. } => Refusal::Binary {
            opcode,
            opaque,
            status,
            text,
        },
    }
}

/// What a refused request is answered with.
pub fn refusal(refusal: &Refusal, replies: &mut Replies) {
    match *refusal {
        Refusal::Silent => {}
        Refusal::Line(line) => replies.line(line.as_bytes()),
        Refusal::Binary {
            opcode,
            opaque,
            status,
            text,
        } => binary(opcode, opaque, status, 0, text.as_bytes(), replies),
    }
}

/// Passes over a value that is longer than anything of its kind (credentials), and says `status`.
pub fn no_room(style: &Style<'_>, status: u16, bytes: usize) -> Next {
    let then = match *style {
        Style::Binary { opcode, opaque, .. } => Refusal::Binary {
            opcode,
            opaque,
            status,
            text: status_text(status),
        },
        Style::Text { .. } | Style::Meta { .. } => Refusal::Silent,
    };
    Next::Skip {
        bytes: bytes as u64,
        then,
    }
}

/// What a binary status says when nothing better is known.
pub fn status_text(status: u16) -> &'static str {
    match status {
        STATUS_NOT_FOUND => "Not found",
        STATUS_EXISTS => "Data exists for key.",
        STATUS_TOO_LARGE => "Too large.",
        STATUS_INVALID => "Invalid arguments",
        STATUS_NOT_STORED => "Not stored.",
        STATUS_NON_NUMERIC => "Non-numeric server-side value for incr or decr",
        STATUS_AUTH => "Auth failure.",
        STATUS_UNKNOWN => "Unknown command",
        STATUS_NO_MEMORY => "Out of memory",
        _ => "",
    }
}

/// A binary header; the body follows.
#[inline]
#[allow(clippy::too_many_arguments)]
pub fn header(
    room: &mut Room<'_>,
    opcode: u8,
    opaque: u32,
    status: u16,
    key: usize,
    extras: u8,
    body: usize,
    cas: u64,
) {
    let mut header = [0; HEADER];
    header[0] = 0x81;
    header[1] = opcode;
    header[2..4].copy_from_slice(&(key as u16).to_be_bytes());
    header[4] = extras;
    header[6..8].copy_from_slice(&status.to_be_bytes());
    header[8..12].copy_from_slice(&(body as u32).to_be_bytes());
    header[12..16].copy_from_slice(&opaque.to_be_bytes());
    header[16..24].copy_from_slice(&cas.to_be_bytes());
    room.put(&header);
}

/// A binary packet with a body and nothing else.
pub fn binary(opcode: u8, opaque: u32, status: u16, cas: u64, body: &[u8], replies: &mut Replies) {
    let mut room = replies.room(HEADER + body.len());
    header(&mut room, opcode, opaque, status, 0, 0, body.len(), cas);
    room.put(body);
}

/// A binary error with its usual text.
pub fn binary_error(opcode: u8, opaque: u32, status: u16, replies: &mut Replies) {
    let text = status_text(status).as_bytes();
    binary(opcode, opaque, status, 0, text, replies);
}

/// What became of a value; never `TooLarge` or `NoMemory`, which are refused before.
// There are few who call it, and most often it has nothing to say.
#[inline(always)]
pub fn stored(
    length: usize,
    style: &Style<'_>,
    key: &[u8],
    binary_key: bool,
    stored: Stored,
    replies: &mut Replies,
) {
    match *style {
        Style::Text { noreply: true } => {}
        Style::Text { noreply: false } => replies.push(match stored {
            Stored::Stored { .. } => b"STORED\r\n",
            Stored::Exists => b"EXISTS\r\n",
            Stored::NotFound => b"NOT_FOUND\r\n",
            Stored::NotStored | Stored::TooLarge | Stored::NoMemory => b"NOT_STORED\r\n",
        }),
        Style::Meta { flags, quiet } => {
            let (code, cas, length) = match stored {
                Stored::Stored { .. } if quiet => return,
                Stored::Stored { cas, length, .. } => (b"HD", cas, length),
                Stored::Exists => (b"EX", 0, length),
                Stored::NotFound => (b"NF", 0, length),
                Stored::NotStored | Stored::TooLarge | Stored::NoMemory => (b"NS", 0, length),
            };
            meta::stored(code, flags, key, binary_key, cas, length, replies);
        }
        Style::Binary {
            opcode,
            opaque,
            quiet,
        } => match stored {
            Stored::Stored { .. } if quiet => {}
            Stored::Stored { cas, .. } => binary(opcode, opaque, STATUS_OK, cas, b"", replies),
            Stored::Exists => binary_error(opcode, opaque, STATUS_EXISTS, replies),
            Stored::NotFound => binary_error(opcode, opaque, STATUS_NOT_FOUND, replies),
            Stored::NotStored | Stored::TooLarge | Stored::NoMemory => {
                let status = match opcode {
                    0x02 | 0x12 => STATUS_EXISTS,
                    0x03 | 0x13 => STATUS_NOT_FOUND,
                    _ => STATUS_NOT_STORED,
                };
                binary_error(opcode, opaque, status, replies);
            }
        },
    }
}

/// What became of a deletion.
pub fn deleted(
    style: &Style<'_>,
    key: &[u8],
    base64: bool,
    deleted: Deleted,
    replies: &mut Replies,
) {
    match *style {
        Style::Text { noreply: true } => {}
        Style::Text { noreply: false } => replies.push(match deleted {
            Deleted::Deleted { .. } => b"DELETED\r\n",
            Deleted::NotFound => b"NOT_FOUND\r\n",
            Deleted::Exists => b"EXISTS\r\n",
            Deleted::NoMemory => NO_MEMORY,
        }),
        Style::Meta { flags, quiet } => {
            let code = match deleted {
                Deleted::NoMemory => return replies.push(NO_MEMORY),
                Deleted::Deleted { .. } if quiet => return,
                Deleted::Deleted { .. } => b"HD",
                Deleted::NotFound => b"NF",
                Deleted::Exists => b"EX",
            };
            meta::echo(code, flags, key, base64, replies);
        }
        Style::Binary {
            opcode,
            opaque,
            quiet,
        } => match deleted {
            Deleted::Deleted { .. } if quiet => {}
            Deleted::Deleted { .. } => binary(opcode, opaque, STATUS_OK, 0, b"", replies),
            Deleted::NotFound => binary_error(opcode, opaque, STATUS_NOT_FOUND, replies),
            Deleted::Exists => binary_error(opcode, opaque, STATUS_EXISTS, replies),
            Deleted::NoMemory => binary_error(opcode, opaque, STATUS_NO_MEMORY, replies),
        },
    }
}

/// What became of an `incr` or `decr`. `value`: meta flag `v`. `creates`: it was allowed to.
#[allow(clippy::too_many_arguments)]
pub fn counted(
    style: &Style<'_>,
    key: &[u8],
    base64: bool,
    value: bool,
    creates: bool,
    times: meta::Times,
    now: u32,
    counted: Counted,
    replies: &mut Replies,
) {
    match *style {
        Style::Text { noreply: true } => {}
        Style::Text { noreply: false } => match counted {
            Counted::Number { value, .. } => {
                let mut room = replies.room(22);
                room.number(value);
                room.put(b"\r\n");
            }
            Counted::NotFound => replies.push(b"NOT_FOUND\r\n"),
            Counted::NonNumeric => replies.line(NON_NUMERIC),
            Counted::NoMemory => replies.push(NO_MEMORY),
            Counted::Exists => replies.push(b"EXISTS\r\n"),
            Counted::NotStored => replies.push(b"NOT_STORED\r\n"),
        },
        Style::Meta { flags, quiet } => match counted {
            Counted::Number { .. } if quiet => {}
            Counted::Number {
                value: number,
                cas,
                expires,
                created,
                ..
            } => {
                let shown = value.then_some(number);
                meta::counted(
                    shown, flags, key, base64, cas, expires, times, created, now, replies,
                );
            }
            Counted::NotFound => meta::echo(b"NF", flags, key, base64, replies),
            Counted::Exists => meta::echo(b"EX", flags, key, base64, replies),
            Counted::NotStored => meta::echo(b"NS", flags, key, base64, replies),
            Counted::NonNumeric => replies.line(NON_NUMERIC),
            Counted::NoMemory if creates => {
                replies.line(b"SERVER_ERROR Out of memory allocating new item");
            }
            Counted::NoMemory => replies.push(NO_MEMORY),
        },
        Style::Binary {
            opcode,
            opaque,
            quiet,
        } => match counted {
            Counted::Number { .. } if quiet => {}
            Counted::Number { value, cas, .. } => {
                binary(
                    opcode,
                    opaque,
                    STATUS_OK,
                    cas,
                    &value.to_be_bytes(),
                    replies,
                );
            }
            Counted::NotFound => binary_error(opcode, opaque, STATUS_NOT_FOUND, replies),
            Counted::Exists => binary_error(opcode, opaque, STATUS_EXISTS, replies),
            Counted::NotStored => binary_error(opcode, opaque, STATUS_NOT_STORED, replies),
            Counted::NonNumeric => binary_error(opcode, opaque, STATUS_NON_NUMERIC, replies),
            Counted::NoMemory => {
                let text: &[u8] = if creates {
                    b"Out of memory allocating new item"
                } else {
                    b"Out of memory incrementing value"
                };
                binary(opcode, opaque, STATUS_NO_MEMORY, 0, text, replies);
            }
        },
    }
}
