#![forbid(unsafe_code)]
//! What a process writes down beside its memory file: named values and a list of numbers.
//!
//! ```text
//! larder memory file 1
//! max_bytes 67108864
//! ...
//! numbers 2
//!
//! (numbers, 4 bytes each, lowest first) (checksum over all that, 8 bytes)
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

const FIRST_LINE: &str = "larder memory file 1";
/// Holds the count of the numbers behind the lines.
const NUMBERS: &str = "numbers";
/// Bytes of the checksum.
const SUM: usize = 8;

/// A record, read or to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    lines: Vec<(String, String)>,
    pub numbers: Vec<u32>,
}

impl Record {
    /// Adds a line. Neither part holds a line end, nor the name a blank.
    pub fn put(&mut self, name: impl Into<String>, value: impl ToString) {
        self.lines.push((name.into(), value.to_string()));
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        let mut lines = self.lines.iter();
        lines.find_map(|(other, value)| (other == name).then_some(value.as_str()))
    }

    /// The numbers that a line holds.
    pub fn words<T: std::str::FromStr>(&self, name: &str) -> Option<Vec<T>> {
        let words = self.get(name)?.split(' ');
        words.map(|word| word.parse().ok()).collect()
    }

    /// The one number that a line holds.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = format!("{FIRST_LINE}\n").into_bytes();
        for (name, value) in &self.lines {
            bytes.extend_from_slice(format!("{name} {value}\n").as_bytes());
        }
        bytes.extend_from_slice(format!("{NUMBERS} {}\n\n", self.numbers.len()).as_bytes());
        for number in &self.numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let sum = xxh3_64(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Nothing if these bytes are not what [`encode`](Record::encode) gave.
    pub fn decode(bytes: &[u8]) -> Option<Record> {
        let (bytes, sum) = bytes.split_last_chunk::<SUM>()?;
        if xxh3_64(bytes) != u64::from_le_bytes(*sum) {
            return None;
        }
        let end = bytes.windows(2).position(|two| two == b"\n\n")?;
        let text = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return None;
        }
        let mut record = Record::default();
        for line in lines {
            let (name, value) = line.split_once(' ')?;
            record.put(name, value);
        }
        let (name, count) = record.lines.pop()?;
        let words = bytes[end + 2..].chunks_exact(4);
        if name != NUMBERS || count.parse() != Ok(words.len()) || !words.remainder().is_empty() {
            return None;
        }
        record.numbers = words
            .filter_map(|word| Some(u32::from_le_bytes(*word.first_chunk()?)))
            .collect();
        Some(record)
    }

    /// Writes it to a file, which holds either all of it or what it held before.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&self.encode())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_as_it_was_written_and_not_otherwise() {
        let mut record = Record::default();
        record.put("max_bytes", 64 << 20);
        record.put("hash_seed", "1 2 3 4");
        record.numbers = vec![7, u32::MAX, 0];
        let bytes = record.encode();
        let read = Record::decode(&bytes).expect("what was written");
        assert_eq!(read, record);
        assert_eq!(read.number("max_bytes"), Some(64u64 << 20));
        assert_eq!(read.words("hash_seed"), Some(vec![1u64, 2, 3, 4]));
        assert_eq!(read.get("nothing"), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(Record::decode(&damaged), None, "byte {at}");
            assert_eq!(Record::decode(&bytes[..at]), None, "cut at {at}");
        }
    }
}
