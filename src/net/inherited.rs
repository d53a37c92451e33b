#![forbid(unsafe_code)]
//! Sockets that whoever started the program has opened for it: `sd_listen_fds(3)`.

use std::io;

use listenfd::ListenFd;
use mio::net::{TcpListener, UdpSocket, UnixListener};

use super::address::reason;
use super::listen::{Acceptor, Datagrams, ListenError, Listener, Sockets};
use crate::settings::{EndpointTls, Protocol};

/// Takes the sockets that `LISTEN_FDS` announces, if `LISTEN_PID` means this process: of TCP and
/// Unix, listening, and of UDP. Nothing if there are none.
///
/// # Errors
/// One of them is of another kind, or cannot be used.
pub fn take(protocol: Protocol) -> Result<Option<Sockets>, ListenError> {
    let mut given = ListenFd::from_env();
    if given.len() == 0 {
        return Ok(None);
    }
    let mut sockets = Sockets::default();
    for place in 0..given.len() {
        let failed = |error: io::Error| {
            let reason = reason(&error);
            ListenError::new(format!("cannot use socket {place} of LISTEN_FDS: {reason}"))
        };
        let acceptor = if let Ok(socket) = given.take_tcp_listener(place) {
            socket.map(|socket| {
                socket.set_nonblocking(true)?;
                let options = socket2::SockRef::from(&socket);
                options.set_keepalive(true)?;
                options.set_tcp_nodelay(true)?;
                Ok(Acceptor::Tcp(TcpListener::from_std(socket)))
            })
        } else if let Ok(socket) = given.take_unix_listener(place) {
            socket.map(|socket| {
                socket.set_nonblocking(true)?;
                Ok(Acceptor::Unix(UnixListener::from_std(socket)))
            })
        } else {
            let socket = given.take_udp_socket(place).map_err(failed)?;
            if let Some(socket) = socket {
                socket.set_nonblocking(true).map_err(failed)?;
                sockets.datagrams.push(Datagrams {
                    socket: UdpSocket::from_std(socket),
                    protocol,
                });
            }
            None
        };
        if let Some(acceptor) = acceptor {
            sockets.listeners.push(Listener {
                acceptor: acceptor.map_err(failed)?,
                protocol,
                tls: EndpointTls::Default,
                tag: None,
                ack: None,
            });
        }
    }
    Ok(Some(sockets))
}
