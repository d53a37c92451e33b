#![forbid(unsafe_code)]
//! One client's connection, whatever it runs over.

use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

/// What became of a read or a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// This many bytes, at least one.
    Moved(usize),
    /// None now: the poll says when to try again.
    Blocked,
    /// The peer has ended its side, or the connection is broken.
    Closed,
}

#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    #[inline]
    pub fn read(&mut self, into: &mut [u8]) -> Progress {
        retry(|| match self {
            Stream::Tcp(socket) => socket.read(into),
            Stream::Unix(socket) => socket.read(into),
        })
    }

    #[inline]
    pub fn write(&mut self, from: &[u8]) -> Progress {
        retry(|| match self {
            Stream::Tcp(socket) => socket.write(from),
            Stream::Unix(socket) => socket.write(from),
        })
    }

    /// Writes from several places with one call; the slices should not all be empty.
    pub fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> Progress {
        retry(|| match self {
            Stream::Tcp(socket) => socket.write_vectored(from),
            Stream::Unix(socket) => socket.write_vectored(from),
        })
    }

    /// Idle connections are closed only if they came over a network.
    pub fn may_idle_out(&self) -> bool {
        matches!(self, Stream::Tcp(_))
    }

    /// The peer, as `stats conns` shows it.
    pub fn peer(&self) -> String {
        match self {
            Stream::Tcp(_) => match self.peer_address() {
                Some(address) => show(&address),
                None => "<unknown>".to_owned(),
            },
            // Its own end has no name; what it came through has.
            Stream::Unix(socket) => match socket.local_addr() {
                Ok(address) => match address.as_pathname() {
                    Some(path) => format!("unix:{}", path.display()),
                    None => "unix:".to_owned(),
                },
                Err(_) => "unix:".to_owned(),
            },
        }
    }

    /// The peer's address, if it has one.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(socket) => socket.peer_addr().ok(),
            Stream::Unix(_) => None,
        }
    }

    /// The descriptor's number: what `stats conns` and the logs call a connection.
    pub fn number(&self) -> i32 {
        use std::os::fd::AsRawFd;
        match self {
            Stream::Tcp(socket) => socket.as_raw_fd(),
            Stream::Unix(socket) => socket.as_raw_fd(),
        }
    }
}

/// An address as `stats conns` shows it.
pub fn show(address: &SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => format!("tcp:{address}"),
        SocketAddr::V6(address) => format!("tcp6:{address}"),
    }
}

fn retry(mut attempt: impl FnMut() -> io::Result<usize>) -> Progress {
    loop {
        return match attempt() {
            Ok(0) => Progress::Closed,
            Ok(n) => Progress::Moved(n),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::WouldBlock => Progress::Blocked,
                _ => Progress::Closed,
            },
        };
    }
}

impl Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, what: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(socket) => socket.register(registry, token, what),
            Stream::Unix(socket) => socket.register(registry, token, what),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, what: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(socket) => socket.reregister(registry, token, what),
            Stream::Unix(socket) => socket.reregister(registry, token, what),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Stream::Tcp(socket) => socket.deregister(registry),
            Stream::Unix(socket) => socket.deregister(registry),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;

    fn pair() -> (Stream, StdStream) {
        let (ours, theirs) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Stream::Unix(UnixStream::from_std(ours)), theirs)
    }

    #[test]
    fn bytes_move_until_the_peer_leaves() {
        let (mut ours, mut theirs) = pair();
        let mut bytes = [0; 8];
        assert_eq!(ours.read(&mut bytes), Progress::Blocked);
        theirs.write_all(b"abc").unwrap();
        assert_eq!(ours.read(&mut bytes), Progress::Moved(3));
        assert_eq!(
            ours.write_vectored(&[IoSlice::new(b"de"), IoSlice::new(b"f")]),
            Progress::Moved(3)
        );
        let mut answer = [0; 3];
        theirs.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"def");
        drop(theirs);
        assert_eq!(ours.read(&mut bytes), Progress::Closed);
        assert_eq!(ours.write(b"x"), Progress::Closed);
    }
}
