#![forbid(unsafe_code)]
//! One connection under TLS, behind the same calls as one without.
//!
//! What is read from the socket is put where its plaintext is asked for, handed to the TLS engine
//! from there piece by piece, and written over by the plaintext that comes out. So a connection
//! needs no buffer of its own but for a record whose end has not arrived.
//!
//! What is written becomes records of up to 16 KiB, however many slices it comes in. Of what has
//! been encrypted and not taken by the socket, the caller is told that it is blocked, and offers the
//! same bytes again: they count as written once the socket has all of their ciphertext.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::{ClientConnection, Connection, Error, HandshakeKind, ServerConfig, ServerConnection};

use super::Outward;
use crate::net::stream::{Progress, retry};

/// Bytes the engine reads at a time at most; plaintext that is asked for in smaller pieces waits
/// in the engine.
const PIECE: usize = 4096;

/// What is to be told of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Both sides have agreed, and not by taking up an earlier session.
    NewSession,
    /// It has ended in disagreement.
    Failed {
        /// Before anything was agreed.
        handshake: bool,
        reason: String,
    },
}

/// A connection under TLS, from the first byte of its handshake.
pub struct Secured {
    socket: TcpStream,
    session: Box<Connection>,
    /// Bytes that are encrypted, and not yet reported as written.
    owed: usize,
    /// The last read has left nothing behind, neither in the socket nor in the engine.
    drained: bool,
    /// The peer has said that it sends no more.
    ended: bool,
    greeting: bool,
    news: Option<News>,
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Secured {
    /// Puts a connection under TLS.
    ///
    /// # Errors
    /// The TLS engine's.
    pub(in crate::net) fn new(
        socket: TcpStream,
        terms: Arc<ServerConfig>,
    ) -> Result<Secured, Error> {
        Ok(Secured::over(socket, ServerConnection::new(terms)?.into()))
    }

    /// As [`new`](Secured::new), towards a server.
    ///
    /// # Errors
    /// The TLS engine's.
    pub(in crate::net) fn towards(socket: TcpStream, outward: &Outward) -> Result<Secured, Error> {
        let (config, name) = (outward.config.clone(), outward.name.clone());
        let session = ClientConnection::new(config, name)?;
        Ok(Secured::over(socket, session.into()))
    }

    fn over(socket: TcpStream, session: Connection) -> Secured {
        Secured {
            socket,
            session: Box::new(session),
            owed: 0,
            drained: false,
            ended: false,
            greeting: true,
            news: None,
        }
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub fn socket_mut(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// What has happened since the last call, if it is to be told.
    pub fn news(&mut self) -> Option<News> {
        self.news.take()
    }

    pub fn drained(&self) -> bool {
        self.drained
    }

    pub fn wants_write(&self) -> bool {
        self.session.wants_write()
    }

    pub fn read(&mut self, into: &mut [u8]) -> Progress {
        match self.plaintext(into) {
            Progress::Blocked => {}
            progress => return progress,
        }
        let moved = if into.len() < PIECE {
            self.read_piece(into)
        } else {
            self.read_all(into)
        };
        let moved = match moved {
            Ok(moved) => moved,
            Err(progress) => return progress,
        };
        if self.greeting && !self.session.is_handshaking() {
            self.greeting = false;
            if self.session.handshake_kind() != Some(HandshakeKind::Resumed) {
                self.news = Some(News::NewSession);
            }
        }
        // The handshake's answers, and those to a change of keys. If the socket takes no more, the
        // caller sees that there is something to write.
        if self.flush() == Progress::Closed {
            return Progress::Closed;
        }
        match moved {
            0 if self.ended => Progress::Closed,
            0 if self.drained => Progress::Blocked,
            _ => Progress::Moved(moved),
        }
    }

    /// Reads from the socket what fits, and leaves its plaintext in the same place.
    fn read_all(&mut self, into: &mut [u8]) -> Result<usize, Progress> {
        let arrived = match retry(|| self.socket.read(into)) {
            Progress::Moved(n) => n,
            progress => return Err(progress),
        };
        self.drained = arrived < into.len();
        let mut fed = 0;
        let mut moved = 0;
        while fed < arrived && !self.ended {
            let mut rest = &into[fed..arrived];
            match self.session.read_tls(&mut rest) {
                Ok(n) => fed += n,
                // Reading from memory does not fail, and the engine has room for any record.
                Err(_) => return Err(Progress::Closed),
            }
            self.process()?;
            // No further than what has been fed: behind it is ciphertext. The engine has to keep
            // no more than what the first record had brought before.
            while let Progress::Moved(n) = self.plaintext(&mut into[moved..fed]) {
                moved += n;
                if moved == fed {
                    break;
                }
            }
        }
        if moved == arrived {
            // There may be more that found no room.
            self.drained = false;
        }
        Ok(moved)
    }

    /// Reads one piece from the socket, for a caller that asks for less.
    fn read_piece(&mut self, into: &mut [u8]) -> Result<usize, Progress> {
        let (session, socket) = (&mut self.session, &mut self.socket);
        match retry(|| session.read_tls(socket)) {
            Progress::Moved(_) => {}
            progress => return Err(progress),
        }
        self.drained = false;
        self.process()?;
        match self.plaintext(into) {
            Progress::Moved(n) => Ok(n),
            _ => Ok(0),
        }
    }

    /// Has the engine work on what it has been fed.
    fn process(&mut self) -> Result<(), Progress> {
        match self.session.process_new_packets() {
            Ok(state) => {
                self.ended |= state.peer_has_closed();
                if self.ended {
                    self.drained = false;
                }
                Ok(())
            }
            Err(error) => {
                self.news = Some(News::Failed {
                    handshake: self.session.is_handshaking(),
                    reason: error.to_string(),
                });
                // The peer may want to know; it is closed either way.
                let _ = self.flush();
                Err(Progress::Closed)
            }
        }
    }

    /// Takes plaintext that the engine holds.
    fn plaintext(&mut self, into: &mut [u8]) -> Progress {
        match self.session.reader().read(into) {
            Ok(0) if !into.is_empty() => Progress::Closed,
            Ok(n) => Progress::Moved(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Progress::Blocked,
            Err(_) => Progress::Closed,
        }
    }

    pub fn write(&mut self, from: &[u8]) -> Progress {
        self.write_with(|session| session.writer().write(from))
    }

    pub fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> Progress {
        self.write_with(|session| session.writer().write_vectored(from))
    }

    fn write_with(
        &mut self,
        encrypt: impl FnOnce(&mut Connection) -> io::Result<usize>,
    ) -> Progress {
        if self.owed == 0 {
            // The engine takes more only if it holds nothing back.
            match self.flush() {
                Progress::Moved(_) => {}
                progress => return progress,
            }
            match encrypt(&mut self.session) {
                // Before the other side has agreed, the engine takes so much and no more.
                Ok(0) => return Progress::Blocked,
                Ok(n) => self.owed = n,
                Err(_) => return Progress::Closed,
            }
        }
        match self.flush() {
            Progress::Moved(_) => Progress::Moved(std::mem::take(&mut self.owed)),
            progress => progress,
        }
    }

    /// Gives the socket what is encrypted; `Moved(0)` if nothing is left.
    pub fn flush(&mut self) -> Progress {
        let (session, socket) = (&mut self.session, &mut self.socket);
        while session.wants_write() {
            match retry(|| session.write_tls(socket)) {
                Progress::Moved(_) => {}
                progress => return progress,
            }
        }
        Progress::Moved(0)
    }
}

impl Drop for Secured {
    /// Tells the peer that this is the end, if it can be told at once.
    fn drop(&mut self) {
        self.session.send_close_notify();
        let _ = self.flush();
    }
}
