#![forbid(unsafe_code)]
//! Requests as they are sent on: as they came, except that nothing quiet is sent. A quiet request may
//! or may not be answered, and only an answer tells that the next one belongs to the next request; so
//! `noreply`, the meta flag `q` and quiet opcodes are taken out, and the answer is dropped where the
//! client would not have heard it.

use crate::cluster::proxy::Forward;
use crate::cluster::rewrite::{self, Own};
use crate::cluster::upstream::Quiet;
use crate::protocol::answer::{HEADER, Shape};
use crate::protocol::request::{Key, Mode, Op, Request, Style};
use crate::protocol::{Dialect, base64, binary};
use crate::settings::proxy::Command;

const CRLF: &[u8] = b"\r\n";

/// Room for what has to be written anew; used again and again.
#[derive(Debug, Default)]
pub struct Scratch {
    line: Vec<u8>,
    key: Vec<u8>,
}

/// The key of a request that has one and no more.
pub fn key_of<'a>(op: &Op<'a>) -> Option<Key<'a>> {
    match op {
        Op::Fetch(op) => Some(op.key),
        Op::Store(op) => Some(op.key),
        Op::Delete(op) => Some(op.key),
        Op::Arith(op) => Some(op.key),
        Op::Touch { key, .. }
        | Op::Describe { key }
        | Op::LeaseGet { key }
        | Op::MetaGet { key } => Some(*key),
        _ => None,
    }
}

/// What a request does, as routes know it.
fn command_of(op: &Op<'_>) -> Command {
    match op {
        Op::Fetch(op) if !op.value && op.touch.is_some() && op.vivify.is_none() => Command::Touch,
        Op::Fetch(op) if op.touch.is_some() || op.vivify.is_some() => Command::Gat,
        Op::Store(op) if op.cas.is_some() => Command::Cas,
        Op::Store(op) => match op.mode {
            Mode::Set => Command::Set,
            Mode::Add => Command::Add,
            Mode::Replace => Command::Replace,
            Mode::Append => Command::Append,
            Mode::Prepend => Command::Prepend,
        },
        Op::Arith(op) if op.up => Command::Incr,
        Op::Arith(_) => Command::Decr,
        Op::Delete(_) => Command::Delete,
        Op::Touch { .. } => Command::Touch,
        Op::Describe { .. } => Command::Debug,
        _ => Command::Get,
    }
}

/// What is sent for a request whose line or header is `head`, and which `body` follows, its value and
/// terminator, as far as they are at hand.
pub fn forward<'a>(
    request: &Request<'a>,
    key: Key<'a>,
    head: &'a [u8],
    body: &'a [u8],
    scratch: &'a mut Scratch,
) -> Forward<'a> {
    scratch.line.clear();
    let has_body = matches!(request.op, Op::Store(_));
    let key = if key.base64 {
        // The parser has refused what is no base64.
        base64::decode_into(key.raw, &mut scratch.key);
        &scratch.key[..]
    } else {
        key.raw
    };
    let mut forward = Forward {
        pieces: [head, b"", body],
        key,
        command: command_of(&request.op),
        dialect: Dialect::Text,
        shape: Shape::Line,
        quiet: Quiet::Loud,
        opcode: 0,
        opaque: 0,
        body: has_body,
    };
    match request.style {
        Style::Text { noreply: false } => {}
        Style::Text { noreply: true } => {
            forward.quiet = Quiet::All;
            forward.pieces = match without_noreply(head) {
                // The word is its key: another has to come behind it, or it is silent as it stands.
                b"delete" => [b"delete noreply 0", CRLF, body],
                line => [line, CRLF, body],
            };
        }
        Style::Meta { flags, quiet } => {
            forward.shape = Shape::Meta;
            if quiet {
                forward.quiet = match request.op {
                    Op::Fetch(_) => Quiet::Miss,
                    _ => Quiet::Success,
                };
                without_q(head, flags, &mut scratch.line);
                forward.pieces = [&scratch.line, b"", body];
            }
        }
        Style::Binary {
            opcode,
            opaque,
            quiet,
        } => {
            let loud = binary::loud(opcode);
            forward.dialect = Dialect::Binary;
            forward.shape = Shape::Binary(loud);
            (forward.opcode, forward.opaque) = (opcode, opaque);
            if quiet && let Some((header, rest)) = head.split_first_chunk::<HEADER>() {
                forward.quiet = match request.op {
                    Op::Fetch(_) => Quiet::Miss,
                    _ => Quiet::Success,
                };
                scratch.line.extend_from_slice(header);
                scratch.line[1] = loud;
                forward.pieces = [&scratch.line, rest, body];
            }
        }
    }
    forward
}

/// A delete whose answer nobody hears, in the dialect of a request.
pub fn delete<'a>(style: &Style<'_>, key: Key<'a>, scratch: &'a mut Scratch) -> Forward<'a> {
    let (dialect, opcode) = match style {
        Style::Binary { .. } => (Dialect::Binary, rewrite::DELETE),
        Style::Text { .. } | Style::Meta { .. } => (Dialect::Text, 0),
    };
    match key.base64 {
        true => base64::decode_into(key.raw, &mut scratch.key),
        false => key.raw.clone_into(&mut scratch.key),
    }
    let (bytes, shape) = Own::Delete(&scratch.key).put(dialect, 0);
    scratch.line = bytes;
    Forward {
        pieces: [&scratch.line, b"", b""],
        key: &scratch.key,
        command: Command::Delete,
        dialect,
        shape,
        quiet: Quiet::All,
        opcode,
        opaque: 0,
        body: false,
    }
}

/// A request without a key that every server is to get.
pub fn to_all<'a>(request: &Request<'a>, head: &'a [u8], scratch: &'a mut Scratch) -> Forward<'a> {
    let none = Key {
        raw: b"",
        base64: false,
    };
    forward(request, none, head, b"", scratch)
}

/// A line without the words `noreply` at its end.
fn without_noreply(line: &[u8]) -> &[u8] {
    let mut line = line.trim_ascii_end();
    while let Some(before) = line.strip_suffix(b" noreply") {
        line = before.trim_ascii_end();
    }
    line
}

/// A line of a meta command without the flag `q`; `flags` is how it ends, but for the line end.
fn without_q(head: &[u8], flags: &[u8], line: &mut Vec<u8>) {
    let end = head.strip_suffix(b"\n").unwrap_or(head);
    let end = end.strip_suffix(b"\r").unwrap_or(end);
    line.extend_from_slice(&end[..end.len() - flags.len()]);
    for flag in flags.split(|&byte| byte == b' ') {
        if !flag.is_empty() && flag[0] != b'q' {
            line.push(b' ');
            line.extend_from_slice(flag);
        }
    }
    line.extend_from_slice(CRLF);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{self, request::Parsed};

    fn sent(dialect: Dialect, input: &[u8]) -> (Vec<u8>, Quiet, Shape) {
        let Parsed::Request { request, taken } = protocol::parse(dialect, input) else {
            panic!("{input:?}")
        };
        let (head, body) = input.split_at(taken);
        let mut scratch = Scratch::default();
        let key = key_of(&request.op).unwrap();
        let forward = forward(&request, key, head, body, &mut scratch);
        (forward.pieces.concat(), forward.quiet, forward.shape)
    }

    #[test]
    fn loud_requests_are_sent_as_they_came() {
        for input in [
            "set k 1 0 3\r\nabc\r\n",
            "cas  k 1 0 3 9 \nabc\r\n",
            "incr k 1\r\n",
            "ms k 2 T3 c Oabc\r\nab\r\n",
            "mg k v t\r\n",
            "mg qqq q1q\r\n",
        ] {
            let (bytes, quiet, _) = sent(Dialect::Text, input.as_bytes());
            if input.contains("q1q") {
                assert_eq!((&bytes[..], quiet), (&b"mg qqq\r\n"[..], Quiet::Miss));
            } else {
                assert_eq!((&bytes[..], quiet), (input.as_bytes(), Quiet::Loud));
            }
        }
    }

    #[test]
    fn quiet_requests_are_sent_loud() {
        for (input, loud, quiet) in [
            (
                "set k 1 0 1 noreply\r\nx\r\n",
                "set k 1 0 1\r\nx\r\n",
                Quiet::All,
            ),
            ("delete k  noreply \n", "delete k\r\n", Quiet::All),
            ("delete noreply\r\n", "delete noreply 0\r\n", Quiet::All),
            (
                "delete noreply noreply\r\n",
                "delete noreply 0\r\n",
                Quiet::All,
            ),
            ("mg k q v\r\n", "mg k v\r\n", Quiet::Miss),
            (
                "ms k 1 c q T5\r\nx\r\n",
                "ms k 1 c T5\r\nx\r\n",
                Quiet::Success,
            ),
            ("md k q\r\n", "md k\r\n", Quiet::Success),
            ("ma k  q  D2\n", "ma k D2\r\n", Quiet::Success),
        ] {
            let (bytes, how, _) = sent(Dialect::Text, input.as_bytes());
            assert_eq!((&bytes[..], how), (loud.as_bytes(), quiet), "{input}");
        }
        let packet = |opcode: u8| {
            let mut packet = vec![0x80, opcode, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1];
            packet.extend_from_slice(b"opaq\0\0\0\0\0\0\0\0k");
            packet
        };
        for (opcode, loud, quiet) in [
            (0x00, 0x00, Quiet::Loud),
            (0x09, 0x00, Quiet::Miss),
            (0x0d, 0x0c, Quiet::Miss),
            (0x14, 0x04, Quiet::Success),
        ] {
            let (bytes, how, shape) = sent(Dialect::Binary, &packet(opcode));
            assert_eq!((bytes, how), (packet(loud), quiet));
            assert_eq!(shape, Shape::Binary(loud));
        }
    }
}
