#![forbid(unsafe_code)]
//! The eight bytes before every UDP payload: request id, sequence number, number of datagrams,
//! reserved; each a big-endian number of 16 bits.
//!
//! A request is one datagram. A reply is as many as it takes, in one sequence per request: clients
//! put them back in order by it. (memcached begins a sequence for every part of its reply, which no
//! client can put together.)

use std::ops::Range;

/// Bytes of a frame.
pub const HEADER: usize = 8;
/// Payload of a datagram that is sent: 1400 bytes with its frame.
pub const PAYLOAD_MAX: usize = 1400 - HEADER;

/// The id and the payload of a request; nothing if it is no single, whole datagram.
pub fn parse(datagram: &[u8]) -> Option<(u16, &[u8])> {
    let (&[id0, id1, _, _, total0, total1, _, _], payload) =
        datagram.split_first_chunk::<HEADER>()?;
    let alone = u16::from_be_bytes([total0, total1]) == 1;
    (alone && !payload.is_empty()).then_some((u16::from_be_bytes([id0, id1]), payload))
}

/// The datagrams that a reply of `length` bytes is sent in: what to put before which part of it. An
/// empty reply is sent in none; `None` says that the reply, of 91 MB or more, needs more than can
/// be counted.
pub fn frames(id: u16, length: usize) -> Option<Frames> {
    Some(Frames {
        id,
        sequence: 0,
        total: u16::try_from(length.div_ceil(PAYLOAD_MAX)).ok()?,
        length,
    })
}

/// See [`frames`].
#[derive(Debug, Clone)]
pub struct Frames {
    id: u16,
    sequence: u16,
    total: u16,
    length: usize,
}

impl Iterator for Frames {
    type Item = ([u8; HEADER], Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.sequence == self.total {
            return None;
        }
        let [id0, id1] = self.id.to_be_bytes();
        let [sequence0, sequence1] = self.sequence.to_be_bytes();
        let [total0, total1] = self.total.to_be_bytes();
        let frame = [id0, id1, sequence0, sequence1, total0, total1, 0, 0];
        let start = usize::from(self.sequence) * PAYLOAD_MAX;
        self.sequence += 1;
        Some((frame, start..self.length.min(start + PAYLOAD_MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_single_datagrams() {
        for (datagram, parsed) in [
            (&b""[..], None),
            (b"\x12\x34\0\0\0\x01\0", None),
            (b"\x12\x34\0\0\0\x01\0\0", None),
            (b"\x12\x34\0\0\0\x01\0\0x", Some((0x1234, &b"x"[..]))),
            // Sequence and the reserved number are not looked at.
            (
                b"\xff\xff\0\x09\0\x01\x09\x09version\r\n",
                Some((0xffff, b"version\r\n")),
            ),
            (b"\x12\x34\0\0\0\0\0\0x", None),
            (b"\x12\x34\0\0\0\x02\0\0x", None),
            (b"\x12\x34\0\0\x01\x01\0\0x", None),
        ] {
            assert_eq!(parse(datagram), parsed, "{datagram:?}");
        }
    }

    #[test]
    fn a_reply_is_one_sequence() {
        for (length, lengths) in [
            (0, &[][..]),
            (1, &[1]),
            (1392, &[1392]),
            (1393, &[1392, 1]),
            (3000, &[1392, 1392, 216]),
        ] {
            let mut end = 0;
            let frames: Vec<_> = frames(0x0102, length).unwrap().collect();
            assert_eq!(frames.len(), lengths.len());
            for (place, ((frame, range), expected)) in frames.iter().zip(lengths).enumerate() {
                let total = lengths.len() as u8;
                assert_eq!(frame, &[1, 2, 0, place as u8, 0, total, 0, 0]);
                assert_eq!((range.start, range.len()), (end, *expected));
                end = range.end;
            }
            assert_eq!(end, length);
        }
    }

    #[test]
    fn more_than_can_be_counted() {
        let most = usize::from(u16::MAX) * PAYLOAD_MAX;
        let last = frames(1, most).unwrap().last().unwrap();
        assert_eq!(&last.0[2..6], b"\xff\xfe\xff\xff");
        assert_eq!(last.1.end, most);
        assert!(frames(1, most + 1).is_none());
    }
}
