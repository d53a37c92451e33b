#![forbid(unsafe_code)]
//! The wire between two copies: frames with a checksum.
//!
//! ```text
//! magic u16 | version u8 | type u8 | length u32 | crc32c u32 | epoch u64 | partition u16 | count u16
//! ```
//! All little-endian; `length` is that of the payload behind the 24 bytes of header, at most 1 MiB;
//! the checksum is of everything but itself.

use super::message::Type;

/// Bytes before the payload.
pub const HEADER: usize = 24;

/// The longest payload.
pub const PAYLOAD_MAX: usize = 1 << 20;

const MAGIC: u16 = 0x524c;
const VERSION: u8 = 2;

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
                "the other side speaks version {version} of the replication protocol, not {VERSION}"
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

/// Appends a frame whose payload `write` appends; it must not be longer than [`PAYLOAD_MAX`].
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
    out.resize(start + HEADER, 0);
    start
}

/// Fills in the header of a frame whose payload has been appended.
pub fn end(out: &mut [u8], start: usize, kind: Type, epoch: u64, partition: usize, count: usize) {
    let length = out.len() - start - HEADER;
    debug_assert!(length <= PAYLOAD_MAX);
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
