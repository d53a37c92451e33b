#![forbid(unsafe_code)]
//! What a client that reads a key wants to be told of it, and the answer that tells it, made from what is
//! known of the key rather than from what its server has said to the same request.

use std::io::Write as _;

use crate::cluster::hotkey::cache::Answer;
use crate::cluster::upstream::Ticket;
use crate::protocol::answer::{HEADER, Shape, Verdict};
use crate::protocol::{number, words::words};

const CRLF: &[u8] = b"\r\n";

/// Binary opcodes of reads, loud and quiet.
const GET: u8 = 0x00;
const GETK: u8 = 0x0c;
const GETKQ: u8 = 0x0d;

/// A read of one key that anybody can answer who knows flags, CAS id and value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    key: &'a [u8],
    form: Form<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Form<'a> {
    Classic {
        cas: bool,
    },
    /// With these flags.
    Meta(&'a [u8]),
    Binary {
        opcode: u8,
        opaque: u32,
    },
}

/// What is known of a key that is there.
#[derive(Debug, Clone, Copy)]
struct Known<'a> {
    flags: u32,
    cas: u64,
    value: &'a [u8],
    /// The key as meta shows it, behind `k`.
    key: &'a [u8],
    /// What meta says beyond what it was asked for, with the blanks before: ` W`, ` X`, ` Z`.
    more: &'a [u8],
}

impl<'a> Wanted<'a> {
    /// What the request with this line or header wants. `None`: more than is known, or something else than
    /// a read.
    pub fn of(ticket: &Ticket, head: &'a [u8], key: &'a [u8]) -> Option<Wanted<'a>> {
        let form = match ticket.shape {
            Shape::Get => Form::Classic {
                cas: match head {
                    [b'g', b'e', b't', b' ', ..] => false,
                    [b'g', b'e', b't', b's', b' ', ..] => true,
                    _ => return None,
                },
            },
            Shape::Meta => {
                let flags = head.strip_prefix(b"mg ")?.trim_ascii_start();
                let flags = flags.strip_prefix(key)?.trim_ascii_end();
                // Keys in base64 are shown in it or not as they have been stored.
                let known =
                    |flag: &[u8]| matches!(flag, b"v" | b"f" | b"s" | b"c" | b"k" | [b'O', ..]);
                if !words(flags).all(known) {
                    return None;
                }
                Form::Meta(flags)
            }
            Shape::Binary(GET | GETK) => Form::Binary {
                opcode: ticket.opcode,
                opaque: ticket.opaque,
            },
            _ => return None,
        };
        Some(Wanted { key, form })
    }

    /// Whether the CAS id is wanted.
    pub fn cas(&self) -> bool {
        match self.form {
            Form::Classic { cas } => cas,
            Form::Meta(flags) => words(flags).any(|flag| flag == b"c"),
            Form::Binary { .. } => true,
        }
    }

    /// Whether it is to be told of a stale value that it is.
    fn asks_freshness(&self) -> bool {
        matches!(self.form, Form::Meta(_))
    }

    /// The request that is sent instead, for all that can be known, and the shape of its answer; `None`:
    /// its own tells it.
    pub fn all(&self) -> Option<(Vec<u8>, Shape)> {
        match self.form {
            Form::Classic { .. } => Some(([b"gets ", self.key, CRLF].concat(), Shape::Get)),
            Form::Meta(_) => Some(([b"mg ", self.key, b" k v f c\r\n"].concat(), Shape::Meta)),
            Form::Binary { .. } => None,
        }
    }

    /// The answer, if what is kept tells it.
    pub fn kept(&self, answer: &Answer) -> Option<Vec<u8>> {
        match answer {
            Answer::Miss => Some(self.miss()),
            Answer::Hit { cas: None, .. } if self.cas() => None,
            Answer::Hit {
                known_fresh: false, ..
            } if self.asks_freshness() => None,
            Answer::Hit {
                flags, cas, value, ..
            } => Some(self.hit(&Known {
                flags: *flags,
                cas: cas.unwrap_or_default(),
                value,
                key: self.key,
                more: b"",
            })),
        }
    }

    /// The answer made of one to [`all`](Wanted::all), or to a plain read of a copy, whose value its owner
    /// calls `cas`. `None`: it can be passed on.
    pub fn told(&self, answer: &[u8], verdict: Verdict, cas: Option<u64>) -> Option<Vec<u8>> {
        match verdict {
            _ if matches!(self.form, Form::Binary { .. }) && cas.is_none() => None,
            Verdict::Miss => Some(self.miss()),
            Verdict::Hit => {
                let mut known = known(answer)?;
                known.cas = cas.unwrap_or(known.cas);
                if known.key.is_empty() {
                    known.key = self.key;
                }
                Some(self.hit(&known))
            }
            _ => None,
        }
    }

    fn hit(&self, known: &Known<'_>) -> Vec<u8> {
        let Known {
            flags, cas, value, ..
        } = *known;
        let mut out = Vec::with_capacity(self.key.len() + value.len() + 96);
        // Writing to a vector does not fail.
        match self.form {
            Form::Classic { cas: with } => {
                out.extend_from_slice(b"VALUE ");
                out.extend_from_slice(self.key);
                let _ = write!(out, " {flags} {}", value.len());
                if with {
                    let _ = write!(out, " {cas}");
                }
                out.extend_from_slice(CRLF);
                out.extend_from_slice(value);
                out.extend_from_slice(b"\r\nEND\r\n");
            }
            Form::Meta(wanted) => {
                let with_value = words(wanted).any(|flag| flag == b"v");
                let _ = match with_value {
                    true => write!(out, "VA {}", value.len()),
                    false => write!(out, "HD"),
                };
                for flag in words(wanted) {
                    let _ = match flag {
                        b"f" => write!(out, " f{flags}"),
                        b"s" => write!(out, " s{}", value.len()),
                        b"c" => write!(out, " c{cas}"),
                        _ => Ok(()),
                    };
                    self.echo(flag, known.key, &mut out);
                }
                out.extend_from_slice(known.more);
                out.extend_from_slice(CRLF);
                if with_value {
                    out.extend_from_slice(value);
                    out.extend_from_slice(CRLF);
                }
            }
            Form::Binary { opcode, opaque } => {
                let shown = if matches!(opcode, GETK | GETKQ) {
                    self.key
                } else {
                    b""
                };
                header(&mut out, opcode, opaque, 0, shown.len(), 4, value.len());
                out[16..HEADER].copy_from_slice(&cas.to_be_bytes());
                out.extend_from_slice(&flags.to_be_bytes());
                out.extend_from_slice(shown);
                out.extend_from_slice(value);
            }
        }
        out
    }

    fn miss(&self) -> Vec<u8> {
        match self.form {
            Form::Classic { .. } => b"END\r\n".to_vec(),
            Form::Meta(wanted) => {
                let mut out = b"EN".to_vec();
                for flag in words(wanted) {
                    self.echo(flag, self.key, &mut out);
                }
                out.extend_from_slice(CRLF);
                out
            }
            Form::Binary { opcode, opaque } => {
                let mut out = Vec::new();
                let (key, text): (&[u8], &[u8]) = match opcode {
                    GETK | GETKQ => (self.key, b""),
                    _ => (b"", b"Not found"),
                };
                header(&mut out, opcode, opaque, 1, key.len(), 0, text.len());
                out.extend_from_slice(key);
                out.extend_from_slice(text);
                out
            }
        }
    }

    /// Flags that come back whatever there is.
    fn echo(&self, flag: &[u8], key: &[u8], out: &mut Vec<u8>) {
        match flag {
            b"k" => {
                out.extend_from_slice(b" k");
                out.extend_from_slice(key);
            }
            [b'O', ..] => {
                out.push(b' ');
                out.extend_from_slice(flag);
            }
            _ => {}
        }
    }
}

fn header(
    out: &mut Vec<u8>,
    opcode: u8,
    opaque: u32,
    status: u16,
    key: usize,
    extras: u8,
    value: usize,
) {
    out.resize(HEADER, 0);
    let body = key + usize::from(extras) + value;
    (out[0], out[1], out[4]) = (0x81, opcode, extras);
    out[2..4].copy_from_slice(&(key as u16).to_be_bytes());
    out[6..8].copy_from_slice(&status.to_be_bytes());
    out[8..12].copy_from_slice(&(body as u32).to_be_bytes());
    out[12..16].copy_from_slice(&opaque.to_be_bytes());
}

/// What an answer tells of a key that is there.
fn known(answer: &[u8]) -> Option<Known<'_>> {
    if answer.first() == Some(&0x81) {
        let (header, body) = answer.split_first_chunk::<HEADER>()?;
        let (flags, rest) = body.split_first_chunk()?;
        let key = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let (_, cas) = header.split_last_chunk()?;
        return Some(Known {
            flags: u32::from_be_bytes(*flags),
            cas: u64::from_be_bytes(*cas),
            value: rest.get(key..)?,
            key: b"",
            more: b"",
        });
    }
    let end = memchr::memchr(b'\n', answer)? + 1;
    let (line, rest) = answer.split_at(end);
    let line = line.trim_ascii_end();
    let mut parts = words(line);
    let mut known = Known {
        flags: 0,
        cas: 0,
        value: b"",
        key: b"",
        more: b"",
    };
    let length = match parts.next()? {
        b"VALUE" => {
            parts.next()?;
            known.flags = number::unsigned32(parts.next()?)?;
            let length = number::unsigned(parts.next()?)?;
            known.cas = parts.next().and_then(number::unsigned).unwrap_or_default();
            length
        }
        // As `all` has asked: the key, flags and CAS id, and what is said beyond that.
        b"VA" => {
            let length = number::unsigned(parts.next()?)?;
            let shown = line.windows(2).position(|two| two == b" k")? + 2;
            let flags = shown + line[shown..].windows(2).position(|two| two == b" f")?;
            known.key = &line[shown..flags];
            let mut parts = words(&line[flags..]);
            let (f, c) = (parts.next()?, parts.next()?);
            known.flags = number::unsigned32(f.strip_prefix(b"f")?)?;
            known.cas = number::unsigned(c.strip_prefix(b"c")?)?;
            known.more = &line[flags + 1 + f.len() + 1 + c.len()..];
            length
        }
        _ => return None,
    };
    known.value = rest.get(..usize::try_from(length).ok()?)?;
    Some(known)
}

/// What is kept of an answer to a read, if that says all there is.
pub(super) fn keepable(key: &[u8], answer: &[u8], verdict: Verdict) -> Option<Answer> {
    match verdict {
        Verdict::Miss => Some(Answer::Miss),
        Verdict::Hit => {
            let known = known(answer)?;
            let in_meta = answer.starts_with(b"VA ");
            if !known.more.is_empty() || in_meta && known.key != key {
                return None;
            }
            Some(Answer::Hit {
                flags: known.flags,
                cas: Some(known.cas),
                value: known.value.into(),
                known_fresh: in_meta,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::upstream::{Quiet, To};

    fn ticket(shape: Shape, opcode: u8) -> Ticket {
        Ticket {
            to: To::Nobody,
            shape,
            quiet: Quiet::Loud,
            opcode,
            opaque: 0x0102_0304,
            keys: 0,
            body: false,
            wrote: 0,
            sent: 0,
        }
    }

    fn hit(known_fresh: bool) -> Answer {
        Answer::Hit {
            flags: 5,
            cas: Some(77),
            value: b"hi".as_slice().into(),
            known_fresh,
        }
    }

    fn said(shape: Shape, head: &str, answer: &Answer) -> Option<String> {
        let ticket = ticket(shape, 0);
        let wanted = Wanted::of(&ticket, head.as_bytes(), b"key")?;
        wanted
            .kept(answer)
            .map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn what_is_kept_is_told_as_a_server_does() {
        for (shape, head, there, gone) in [
            (
                Shape::Get,
                "get key\r\n",
                "VALUE key 5 2\r\nhi\r\nEND\r\n",
                "END\r\n",
            ),
            (
                Shape::Get,
                "gets  key\r\n",
                "VALUE key 5 2 77\r\nhi\r\nEND\r\n",
                "END\r\n",
            ),
            (Shape::Meta, "mg key\r\n", "HD\r\n", "EN\r\n"),
            (Shape::Meta, "mg  key v\r\n", "VA 2\r\nhi\r\n", "EN\r\n"),
            (
                Shape::Meta,
                "mg key O1 s  k v c f\n",
                "VA 2 O1 s2 kkey c77 f5\r\nhi\r\n",
                "EN O1 kkey\r\n",
            ),
            (
                Shape::Meta,
                "mg key k f\r\n",
                "HD kkey f5\r\n",
                "EN kkey\r\n",
            ),
        ] {
            assert_eq!(said(shape, head, &hit(true)).unwrap(), there, "{head}");
            assert_eq!(said(shape, head, &Answer::Miss).unwrap(), gone, "{head}");
        }
    }

    #[test]
    fn what_is_not_known_is_asked() {
        for head in [
            "mg key t\r\n",
            "mg key h\r\n",
            "mg key b\r\n",
            "mg key v T0\r\n",
            "mg key E1\r\n",
        ] {
            assert!(
                Wanted::of(&ticket(Shape::Meta, 0), head.as_bytes(), b"key").is_none(),
                "{head}"
            );
        }
        assert!(Wanted::of(&ticket(Shape::Line, 0), b"touch key 1\r\n", b"key").is_none());
        assert!(Wanted::of(&ticket(Shape::Binary(0x1d), 0x1d), b"", b"key").is_none());
        // It might be stale, and the client would have to be told.
        assert!(said(Shape::Meta, "mg key v\r\n", &hit(false)).is_none());
        assert!(said(Shape::Get, "get key\r\n", &hit(false)).is_some());
    }

    #[test]
    fn packets() {
        for (opcode, key) in [(0x00, ""), (0x09, ""), (0x0c, "key"), (0x0d, "key")] {
            let loud = if key.is_empty() { GET } else { GETK };
            let ticket = ticket(Shape::Binary(loud), opcode);
            let wanted = Wanted::of(&ticket, b"", b"key").unwrap();
            let packet = wanted.kept(&hit(false)).unwrap();
            let length = 4 + key.len() as u8 + 2;
            let mut expected = vec![
                0x81,
                opcode,
                0,
                key.len() as u8,
                4,
                0,
                0,
                0,
                0,
                0,
                0,
                length,
            ];
            expected.extend_from_slice(&[1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0, 5]);
            expected.extend_from_slice(key.as_bytes());
            expected.extend_from_slice(b"hi");
            assert_eq!(packet, expected);
            assert_eq!(keepable(b"key", &packet, Verdict::Hit), Some(hit(false)));
            let miss = wanted.kept(&Answer::Miss).unwrap();
            assert_eq!((miss[1], miss[7], miss[12]), (opcode, 1, 1));
            assert!(miss.ends_with(if key.is_empty() { b"Not found" } else { b"key" }));
            // A copy has another CAS id than its owner.
            let told = wanted.told(&packet, Verdict::Hit, Some(9)).unwrap();
            assert_eq!((told[23], told.len()), (9, packet.len()));
        }
    }

    #[test]
    fn answers_in_meta() {
        let ticket = ticket(Shape::Meta, 0);
        let wanted = Wanted::of(&ticket, b"mg key s k f v Ox\r\n", b"key").unwrap();
        let (request, shape) = wanted.all().unwrap();
        assert_eq!(
            (&request[..], shape),
            (&b"mg key k v f c\r\n"[..], Shape::Meta)
        );
        let answer = b"VA 2 kkey f5 c77\r\nhi\r\n";
        assert_eq!(keepable(b"key", answer, Verdict::Hit), Some(hit(true)));
        let told = wanted.told(answer, Verdict::Hit, None).unwrap();
        assert_eq!(told, b"VA 2 s2 kkey f5 Ox\r\nhi\r\n");
        // Who is told that the value is stale, and that it is his to renew, is told so once.
        let stale = b"VA 2 kkey f5 c77 W X\r\nhi\r\n";
        assert_eq!(keepable(b"key", stale, Verdict::Hit), None);
        let told = wanted.told(stale, Verdict::Hit, None).unwrap();
        assert_eq!(told, b"VA 2 s2 kkey f5 Ox W X\r\nhi\r\n");
        // One that was stored under a key in base64.
        let odd = b"VA 2 ka2V5 b f5 c77\r\nhi\r\n";
        assert_eq!(keepable(b"key", odd, Verdict::Hit), None);
        let told = wanted.told(odd, Verdict::Hit, None).unwrap();
        assert_eq!(told, b"VA 2 s2 ka2V5 b f5 Ox\r\nhi\r\n");
        assert_eq!(
            wanted.told(b"EN kkey\r\n", Verdict::Miss, None).unwrap(),
            b"EN kkey Ox\r\n"
        );
        let classic = b"VALUE key 5 2 77\r\nhi\r\nEND\r\n";
        assert_eq!(keepable(b"key", classic, Verdict::Hit), Some(hit(false)));
        assert_eq!(
            wanted.told(b"SERVER_ERROR x\r\n", Verdict::ServerError, None),
            None
        );
    }
}
