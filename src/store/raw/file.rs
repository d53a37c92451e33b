//! Memory that outlives the process: a file mapped into it.
//!
//! Every region is mapped shared, so what the process writes is in the file at once, whatever
//! becomes of the process; only the system itself can lose it. Handles are offsets and the table's
//! links are numbers, so that none of it has to lie where it lay before.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::memory::{HUGE, Region, ReserveError};

/// The file, held by one process at a time.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    /// Bytes that have been given out as regions.
    used: usize,
}

/// Where regions come from.
pub enum Source {
    Anonymous,
    File(MemoryFile),
}

impl Source {
    /// A region of the most bytes to be had, between `least` and `most`; of `most` if it is part of
    /// a file, for it must be found there again.
    pub fn region(&mut self, least: usize, most: usize) -> Result<Region, ReserveError> {
        match self {
            Source::Anonymous => Region::reserve_between(least, most),
            Source::File(file) => file.region(most),
        }
    }

    /// Begins anew with the first region, with what it holds.
    pub fn reuse(&mut self) {
        if let Source::File(file) = self {
            file.used = 0;
        }
    }

    /// Makes everything in the file behind `offset` read as zeroes, which is how regions begin.
    pub fn clear_from(&self, offset: usize) -> io::Result<()> {
        match self {
            Source::Anonymous => Ok(()),
            Source::File(file) => file.clear_from(offset as u64),
        }
    }
}

impl MemoryFile {
    /// Opens a file, or makes an empty one that only its owner may read.
    ///
    /// # Errors
    /// It cannot be opened for writing, or another process has it (`WouldBlock`).
    pub fn open(path: &Path) -> io::Result<MemoryFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        // SAFETY: a call about a descriptor of ours.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(MemoryFile { file, used: 0 })
    }

    /// Bytes of the file.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn clear_from(&self, offset: u64) -> io::Result<()> {
        let length = self.length()?;
        if length > offset {
            self.file.set_len(offset)?;
            self.file.set_len(length)?;
        }
        Ok(())
    }

    /// Makes sure that `bytes` from the start on can be written: a mapped page that the file system has no
    /// room for would end the process.
    pub fn ensure_room(&self, bytes: usize) -> io::Result<()> {
        let descriptor = self.file.as_raw_fd();
        if (self.length()? as usize) < bytes {
            self.file.set_len(bytes as u64)?;
        }
        if self.is_memory()? {
            // To allocate is to fill here, which takes its time; the room is only looked at.
            // SAFETY: a struct of plain numbers, for which all zeroes is a value.
            let mut room: libc::statvfs = unsafe { std::mem::zeroed() };
            // SAFETY: a call about a descriptor of ours; `room` outlives it.
            if unsafe { libc::fstatvfs(descriptor, &raw mut room) } != 0 {
                return Err(io::Error::last_os_error());
            }
            let held = self.file.metadata()?.blocks() * 512;
            let free = room.f_bavail * room.f_frsize;
            if room.f_blocks > 0 && free + held < bytes as u64 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            return Ok(());
        }
        // SAFETY: as above.
        if unsafe { libc::fallocate(descriptor, 0, 0, bytes as libc::off_t) } != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether the file lies in memory itself, and ends with the system.
    fn is_memory(&self) -> io::Result<bool> {
        const TMPFS: i64 = 0x0102_1994;
        // SAFETY: a struct of plain numbers, for which all zeroes is a value.
        let mut system: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: a call about a descriptor of ours; `system` outlives it.
        if unsafe { libc::fstatfs(self.file.as_raw_fd(), &raw mut system) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(system.f_type as i64 == TMPFS)
    }

    fn region(&mut self, bytes: usize) -> Result<Region, ReserveError> {
        let bytes = bytes.max(1).next_multiple_of(HUGE);
        let end = (self.used + bytes) as u64;
        let refused = |source| ReserveError {
            bytes,
            in_file: true,
            source,
        };
        if self.length().map_err(refused)? < end {
            self.file.set_len(end).map_err(refused)?;
        }
        let region = Region::map(&self.file, self.used, bytes)?;
        self.used += bytes;
        Ok(region)
    }
}
