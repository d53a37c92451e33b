#![forbid(unsafe_code)]
//! The wire between two copies: frames with a checksum.
//!
//! ```text
//! magic u16 | version u8 | type u8 | length u32 | crc32c u32 | epoch u64 | partition u16 | count u16
//! ```
//! All little-endian; `length` is that of the payload behind the 24 bytes of header, at most 1 MiB;
//! the checksum is of everything but itself. What is longer comes in several frames: those of type
//! FRAGMENT hold the beginning of the payload of the next frame of another type.

use super::message::Type;

/// Bytes before the payload.
pub const HEADER: usize = 24;

/// The longest payload.
pub const PAYLOAD_MAX: usize = 1 << 20;

/// The longest payload of several frames together: that of a record with the longest key.
pub const WHOLE_MAX: usize = 17 << 20;

const MAGIC: u16 = 0x524c;
const VERSION: u8 = 3;

/// One frame, as it lies in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: Type,
    /// The sender's.
    pub epoch: u64,
    pub partition: u16,
    /// Entries of the payload, where it has any.
    pub count: u16,
    pub payload: &'a [u8],
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The other side speaks something else.
    Foreign,
    /// It speaks a version that is not known here.
    Version(u8),
    TooLong(u32),
    Checksum,
    /// A frame that says nothing sensible.
    Malformed,
    /// One that has no business where it came.
    Unexpected(Type),
    /// It does not know the secret.
    Stranger,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Foreign => write!(f, "the other side does not speak the replication protocol"),
            Broken::Version(version) => write!(
                f,
                "the other side speaks version {version} of the replication protocol, not {VERSION}: update the node with the older larder"
            ),
            Broken::TooLong(length) => write!(f, "a frame of {length} bytes is too long"),
            Broken::Checksum => write!(f, "a frame was damaged on its way"),
            Broken::Malformed => write!(f, "a frame could not be understood"),
            Broken::Unexpected(kind) => write!(f, "a frame of type {kind:?} came out of turn"),
            Broken::Stranger => write!(f, "the other side does not know the replication secret"),
        }
    }
}

/// The frame that `input` begins with, and the bytes it takes; nothing if it is not whole yet.
///
/// # Errors
/// It begins with no frame: the connection has to go.
pub fn parse(input: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Broken> {
    let Some((header, rest)) = input.split_first_chunk::<HEADER>() else {
        // What cannot become a header is refused at once.
        let magic = MAGIC.to_le_bytes();
        let known = magic.len().min(input.len());
        return if input[..known] == magic[..known] {
            Ok(None)
        } else {
            Err(Broken::Foreign)
        };
    };
    if u16::from_le_bytes([header[0], header[1]]) != MAGIC {
        return Err(Broken::Foreign);
    }
    if header[2] != VERSION {
        return Err(Broken::Version(header[2]));
    }
    let u32_at = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let length = u32_at(4);
    if length as usize > PAYLOAD_MAX {
        return Err(Broken::TooLong(length));
    }
    let Some(payload) = rest.get(..length as usize) else {
        return Ok(None);
    };
    if checksum(header, payload) != u32_at(8) {
        return Err(Broken::Checksum);
    }
    let frame = Frame {
        kind: Type::from_byte(header[3]).ok_or(Broken::Malformed)?,
        epoch: u64::from(u32_at(12)) | u64::from(u32_at(16)) << 32,
        partition: u16::from_le_bytes([header[20], header[21]]),
        count: u16::from_le_bytes([header[22], header[23]]),
        payload,
    };
    Ok(Some((frame, HEADER + payload.len())))
}

fn checksum(header: &[u8; HEADER], payload: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&header[..8]);
    let sum = crc32c::crc32c_append(sum, &header[12..]);
    crc32c::crc32c_append(sum, payload)
}

/// Appends a frame whose payload `write` appends; it must not be longer than [`WHOLE_MAX`].
pub fn write(
    out: &mut Vec<u8>,
    kind: Type,
    epoch: u64,
    partition: usize,
    count: usize,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let start = begin(out);
    write(out);
    end(out, start, kind, epoch, partition, count);
}

/// Leaves room for a header; its place goes to [`end`].
pub fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    start
}

/// Fills in the header of a frame whose payload has been appended, or of several if that is too long
/// for one.
pub fn end(
    out: &mut Vec<u8>,
    start: usize,
    kind: Type,
    epoch: u64,
    partition: usize,
    count: usize,
) {
    if out.len() - start - HEADER > PAYLOAD_MAX {
        let long = out.split_off(start);
        let mut pieces = long[HEADER..].chunks(PAYLOAD_MAX).peekable();
        while let Some(piece) = pieces.next() {
            let start = begin(out);
            out.extend_from_slice(piece);
            let kind = match pieces.peek() {
                Some(_) => Type::Fragment,
                None => kind,
            };
            end(out, start, kind, epoch, partition, count);
        }
        return;
    }
    let length = out.len() - start - HEADER;
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&MAGIC.to_le_bytes());
    header[2] = VERSION;
    header[3] = kind as u8;
    header[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    header[12..20].copy_from_slice(&epoch.to_le_bytes());
    header[20..22].copy_from_slice(&(partition as u16).to_le_bytes());
    header[22..24].copy_from_slice(&(count as u16).to_le_bytes());
    let sum = checksum(&header, &out[start + HEADER..]);
    header[8..12].copy_from_slice(&sum.to_le_bytes());
    out[start..start + HEADER].copy_from_slice(&header);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut out = b"before".to_vec();
        write(&mut out, Type::Batch, 7 << 40, 63, 2, |out| {
            out.extend_from_slice(b"payload")
        });
        out.split_off(6)
    }

    #[test]
    fn a_frame_comes_back_as_it_was() {
        let bytes = sample();
        let frame = Frame {
            kind: Type::Batch,
            epoch: 7 << 40,
            partition: 63,
            count: 2,
            payload: b"payload",
        };
        assert_eq!(parse(&bytes), Ok(Some((frame, bytes.len()))));
        for length in 0..bytes.len() {
            assert_eq!(parse(&bytes[..length]), Ok(None), "{length}");
        }
    }

    #[test]
    fn what_is_too_long_for_one_frame_comes_in_several() {
        let payload: Vec<u8> = (0..PAYLOAD_MAX * 2 + 5).map(|at| at as u8).collect();
        let mut out = Vec::new();
        write(&mut out, Type::Batch, 7, 3, 1, |out| {
            out.extend_from_slice(&payload);
        });
        let mut rest = &out[..];
        let (mut kinds, mut whole) = (Vec::new(), Vec::new());
        while let Some((frame, length)) = parse(rest).unwrap() {
            assert_eq!((frame.epoch, frame.partition, frame.count), (7, 3, 1));
            kinds.push(frame.kind);
            whole.extend_from_slice(frame.payload);
            rest = &rest[length..];
        }
        assert_eq!(kinds, [Type::Fragment, Type::Fragment, Type::Batch]);
        assert!(whole == payload && rest.is_empty());
    }

    #[test]
    fn every_damage_is_found() {
        let bytes = sample();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                match parse(&bad) {
                    Err(_) => {}
                    // A length that has grown waits for more, and no more than the limit.
                    Ok(None) => assert!((4..8).contains(&at), "{at}"),
                    Ok(Some(_)) => panic!("byte {at} bit {bit} went unnoticed"),
                }
            }
        }
    }

    #[test]
    fn strangers_are_refused_early() {
        assert_eq!(parse(b"GET / HTTP/1.1"), Err(Broken::Foreign));
        assert_eq!(parse(b"g"), Err(Broken::Foreign));
        let mut long = sample();
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(parse(&long), Err(Broken::TooLong(u32::MAX)));
        let mut other = sample();
        other[2] = 9;
        assert_eq!(parse(&other), Err(Broken::Version(9)));
    }
}
