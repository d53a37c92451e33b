#![forbid(unsafe_code)]
//! One client's connection, whatever it runs over.

use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::path::Path;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

use super::tls::{Keyring, News, Outward, Secured};
use crate::settings::EndpointTls;

/// What became of a read or a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// This many bytes. None at all is a step of a TLS handshake: the next call goes on with it.
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
    Tls(Box<Secured>),
}

impl Stream {
    /// Begins to connect to a server; [`connected`](Stream::connected) tells the outcome.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(address: SocketAddr) -> io::Result<Stream> {
        let socket = TcpStream::connect(address)?;
        // What is not sent at once should not wait for an acknowledgement.
        socket.set_nodelay(true)?;
        Ok(Stream::Tcp(socket))
    }

    /// Puts it under TLS towards a server, if it goes over a network.
    ///
    /// # Errors
    /// The TLS engine's.
    pub fn secure_towards(self, outward: &Outward) -> io::Result<Stream> {
        match self {
            Stream::Tcp(socket) => match Secured::towards(socket, outward) {
                Ok(secured) => Ok(Stream::Tls(Box::new(secured))),
                Err(error) => Err(io::Error::other(error)),
            },
            stream => Ok(stream),
        }
    }

    /// As [`connect`](Stream::connect), through a Unix socket.
    ///
    /// # Errors
    /// The system's.
    pub fn connect_local(path: &Path) -> io::Result<Stream> {
        Ok(Stream::Unix(UnixStream::connect(path)?))
    }

    /// Whether connecting has come to its end.
    ///
    /// # Errors
    /// The reason why it has failed.
    pub fn connected(&self) -> io::Result<bool> {
        let error = match self {
            Stream::Unix(socket) => socket.take_error()?,
            Stream::Tcp(_) | Stream::Tls(_) => match self.tcp() {
                Some(socket) => socket.take_error()?,
                None => None,
            },
        };
        if let Some(error) = error {
            return Err(error);
        }
        match self.tcp().map(TcpStream::peer_addr) {
            Some(Err(error)) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Ok(true),
        }
    }

    /// Puts it under TLS as its listener asks, if it came over a network.
    ///
    /// # Errors
    /// The TLS engine's.
    pub fn secure(self, keyring: &Keyring, listener: EndpointTls) -> io::Result<Stream> {
        match (self, keyring.terms(listener)) {
            (Stream::Tcp(socket), Some(terms)) => match Secured::new(socket, terms) {
                Ok(secured) => Ok(Stream::Tls(Box::new(secured))),
                Err(error) => Err(io::Error::other(error)),
            },
            (stream, _) => Ok(stream),
        }
    }

    #[inline]
    pub fn read(&mut self, into: &mut [u8]) -> Progress {
        match self {
            Stream::Tcp(socket) => retry(|| socket.read(into)),
            Stream::Unix(socket) => retry(|| socket.read(into)),
            Stream::Tls(secured) => secured.read(into),
        }
    }

    /// Whether a read that has moved so many bytes of those asked for has taken all there was: the
    /// poll will tell when there is more.
    #[inline]
    pub fn drained(&self, moved: usize, asked: usize) -> bool {
        match self {
            Stream::Tcp(_) | Stream::Unix(_) => moved < asked,
            Stream::Tls(secured) => secured.drained(),
        }
    }

    /// After [`Progress::Blocked`], the same bytes have to be offered again.
    #[inline]
    pub fn write(&mut self, from: &[u8]) -> Progress {
        match self {
            Stream::Tcp(socket) => retry(|| socket.write(from)),
            Stream::Unix(socket) => retry(|| socket.write(from)),
            Stream::Tls(secured) => secured.write(from),
        }
    }

    /// Writes from several places with one call; the slices should not all be empty. As to blocking,
    /// see [`write`](Stream::write).
    pub fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> Progress {
        match self {
            Stream::Tcp(socket) => retry(|| socket.write_vectored(from)),
            Stream::Unix(socket) => retry(|| socket.write_vectored(from)),
            Stream::Tls(secured) => secured.write_vectored(from),
        }
    }

    /// Sends what the stream has to say on its own account, such as its part of a handshake;
    /// `Moved(0)` if nothing is left.
    #[inline]
    pub fn flush(&mut self) -> Progress {
        match self {
            Stream::Tcp(_) | Stream::Unix(_) => Progress::Moved(0),
            Stream::Tls(secured) => secured.flush(),
        }
    }

    /// Whether there is something left to [`flush`](Stream::flush).
    #[inline]
    pub fn wants_flush(&self) -> bool {
        matches!(self, Stream::Tls(secured) if secured.wants_write())
    }

    /// What has happened since the last call, if it is to be told.
    #[inline]
    pub fn news(&mut self) -> Option<News> {
        match self {
            Stream::Tcp(_) | Stream::Unix(_) => None,
            Stream::Tls(secured) => secured.news(),
        }
    }

    /// Idle connections are closed only if they came over a network.
    pub fn may_idle_out(&self) -> bool {
        self.tcp().is_some()
    }

    /// The socket, if it is one of the network.
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Stream::Tcp(socket) => Some(socket),
            Stream::Tls(secured) => Some(secured.socket()),
            Stream::Unix(_) => None,
        }
    }

    /// The peer, as `stats conns` shows it.
    pub fn peer(&self) -> String {
        match self {
            Stream::Tcp(_) | Stream::Tls(_) => match self.peer_address() {
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
        self.tcp().and_then(|socket| socket.peer_addr().ok())
    }

    /// The descriptor's number: what `stats conns` and the logs call a connection.
    pub fn number(&self) -> i32 {
        use std::os::fd::AsRawFd;
        match self {
            Stream::Tcp(socket) => socket.as_raw_fd(),
            Stream::Unix(socket) => socket.as_raw_fd(),
            Stream::Tls(secured) => secured.socket().as_raw_fd(),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Stream::Tcp(socket) => socket,
            Stream::Unix(socket) => socket,
            Stream::Tls(secured) => secured.socket_mut(),
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

/// Tries until it is not a signal that came between.
#[inline]
pub(super) fn retry(mut attempt: impl FnMut() -> io::Result<usize>) -> Progress {
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
        self.source().register(registry, token, what)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, what: Interest) -> io::Result<()> {
        self.source().reregister(registry, token, what)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.source().deregister(registry)
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
