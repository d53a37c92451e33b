#![forbid(unsafe_code)]
//! Listening sockets and their options.
//!
//! Each entry of `-l` is resolved and every address it stands for is bound. An address in use is
//! passed over as long as the entry binds another one; whatever else goes wrong is fatal.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use mio::event::Source;
use mio::net::{TcpListener, UdpSocket, UnixListener};
use mio::{Interest, Registry, Token};
use socket2::{Domain, SockAddr, Socket, Type};

use super::address::{reason, resolve};
use super::inherited;
use super::stream::{Stream, show};
use crate::settings::{Ack, Endpoint, EndpointTls, Listen, Protocol};

/// The largest send buffer asked for a UDP socket, in bytes.
const SEND_BUFFER_MAX: usize = 256 << 20;

/// A socket that yields connections.
#[derive(Debug)]
pub enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    /// The next connection that waits.
    ///
    /// # Errors
    /// `WouldBlock` if none waits; otherwise the system's.
    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Acceptor::Tcp(socket) => socket.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Acceptor::Unix(socket) => socket.accept().map(|(stream, _)| Stream::Unix(stream)),
        }
    }

    /// The address to connect to, if it is one of the network.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Acceptor::Tcp(socket) => socket.local_addr().ok(),
            Acceptor::Unix(_) => None,
        }
    }

    /// The address, as `stats conns` shows it.
    pub fn name(&self) -> String {
        match self {
            Acceptor::Tcp(_) => match self.local_address() {
                Some(address) => show(&address),
                None => "<unknown>".to_owned(),
            },
            Acceptor::Unix(socket) => {
                let address = socket.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                match path {
                    Some(path) => format!("unix:{}", path.display()),
                    None => "unix:".to_owned(),
                }
            }
        }
    }

    /// The descriptor's number.
    pub fn number(&self) -> i32 {
        use std::os::fd::AsRawFd;
        match self {
            Acceptor::Tcp(socket) => socket.as_raw_fd(),
            Acceptor::Unix(socket) => socket.as_raw_fd(),
        }
    }
}

impl Source for Acceptor {
    fn register(&mut self, registry: &Registry, token: Token, what: Interest) -> io::Result<()> {
        match self {
            Acceptor::Tcp(socket) => socket.register(registry, token, what),
            Acceptor::Unix(socket) => socket.register(registry, token, what),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, what: Interest) -> io::Result<()> {
        match self {
            Acceptor::Tcp(socket) => socket.reregister(registry, token, what),
            Acceptor::Unix(socket) => socket.reregister(registry, token, what),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Acceptor::Tcp(socket) => socket.deregister(registry),
            Acceptor::Unix(socket) => socket.deregister(registry),
        }
    }
}

/// A listening socket and what its connections are to be.
#[derive(Debug)]
pub struct Listener {
    pub acceptor: Acceptor,
    pub protocol: Protocol,
    pub tls: EndpointTls,
    pub tag: Option<Arc<str>>,
    pub ack: Option<Ack>,
}

/// A UDP socket and what its requests are to be.
#[derive(Debug)]
pub struct Datagrams {
    pub socket: UdpSocket,
    pub protocol: Protocol,
}

impl Datagrams {
    /// The same socket for another thread: whichever asks first gets a datagram.
    ///
    /// # Errors
    /// The system's.
    pub fn share(&self) -> io::Result<Datagrams> {
        Ok(Datagrams {
            socket: UdpSocket::from_std(std::net::UdpSocket::from(
                self.socket.as_fd().try_clone_to_owned()?,
            )),
            protocol: self.protocol,
        })
    }

    /// The address, as `stats conns` shows it.
    pub fn name(&self) -> String {
        match self.socket.local_addr() {
            Ok(SocketAddr::V4(address)) => format!("udp:{address}"),
            Ok(SocketAddr::V6(address)) => format!("udp6:{address}"),
            Err(_) => "udp:<unknown>".to_owned(),
        }
    }

    /// The descriptor's number.
    pub fn number(&self) -> i32 {
        use std::os::fd::AsRawFd;
        self.socket.as_raw_fd()
    }
}

/// Everything the server is reached by.
#[derive(Debug, Default)]
pub struct Sockets {
    pub listeners: Vec<Listener>,
    pub datagrams: Vec<Datagrams>,
    /// A line for each network port.
    ports: Option<String>,
}

impl Sockets {
    /// Writes the ports found to a file, for those who wait for the server to be there.
    pub fn announce(&self, port_file: &Path) {
        if let Some(ports) = &self.ports {
            write_ports(port_file, ports);
        }
    }
}

/// Why the server cannot listen, in the words users of memcached know; may be several lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenError(String);

impl ListenError {
    pub(super) fn new(text: String) -> ListenError {
        ListenError(text)
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ListenError {}

/// Why one entry could not be bound: a line of its own, unless the reason says it all.
struct EntryError {
    detail: Option<String>,
    reason: String,
}

impl EntryError {
    fn at(call: &str, error: &io::Error) -> EntryError {
        EntryError {
            detail: Some(format!("{call}: {}", reason(error))),
            reason: reason(error),
        }
    }
}

/// Binds everything that is asked for. Sockets that have been handed over, if the program looks for
/// them, take the place of all that is asked for.
///
/// # Errors
/// The first entry that binds nothing, or a socket that cannot be made to listen.
pub fn bind(listen: &Listen) -> Result<Sockets, ListenError> {
    if listen.inherit
        && let Some(sockets) = inherited::take(listen.protocol)?
    {
        return Ok(sockets);
    }
    let mut sockets = Sockets::default();
    if let Some(path) = &listen.unix_socket {
        let socket = bind_unix(path, listen.unix_mask, listen.backlog).map_err(|error| {
            ListenError(format!(
                "failed to listen on UNIX socket: {}: {}",
                path.display(),
                reason(&error)
            ))
        })?;
        sockets.listeners.push(Listener {
            acceptor: Acceptor::Unix(socket),
            protocol: listen.protocol,
            tls: EndpointTls::Plain,
            tag: None,
            ack: None,
        });
        return Ok(sockets);
    }
    let everywhere = [Endpoint {
        host: None,
        port: None,
        protocol: None,
        tls: EndpointTls::Default,
        tag: None,
        ack: None,
    }];
    let endpoints: &[Endpoint] = if listen.endpoints.is_empty() {
        &everywhere
    } else {
        &listen.endpoints
    };
    let mut ports = String::new();
    if listen.tcp_port != 0 {
        for endpoint in endpoints {
            bind_tcp(endpoint, listen, &mut sockets.listeners, &mut ports)
                .map_err(|error| failure("TCP", listen.tcp_port, listen, error))?;
        }
    }
    if listen.udp_port != 0 {
        for endpoint in endpoints {
            bind_udp(endpoint, listen, &mut sockets.datagrams, &mut ports)
                .map_err(|error| failure("UDP", listen.udp_port, listen, error))?;
        }
    }
    sockets.ports = Some(ports);
    Ok(sockets)
}

fn failure(transport: &str, port: i32, listen: &Listen, error: EntryError) -> ListenError {
    let mut text = String::new();
    if let Some(detail) = error.detail {
        text.push_str(&detail);
        text.push('\n');
    }
    match &listen.interfaces {
        Some(interfaces) => text.push_str(&format!(
            "failed to listen on one of interface(s) {interfaces}: {}",
            error.reason
        )),
        None => text.push_str(&format!(
            "failed to listen on {transport} port {port}: {}",
            error.reason
        )),
    }
    ListenError(text)
}

fn addresses(endpoint: &Endpoint, port: i32) -> Result<Vec<SocketAddr>, EntryError> {
    // -1 asks for any port, as 0 does in the socket calls.
    let port = endpoint
        .port
        .unwrap_or_else(|| u16::try_from(port).unwrap_or(0));
    resolve(endpoint.host.as_deref(), port).map_err(|error| EntryError::at("getaddrinfo()", &error))
}

fn bind_tcp(
    endpoint: &Endpoint,
    listen: &Listen,
    listeners: &mut Vec<Listener>,
    ports: &mut String,
) -> Result<(), EntryError> {
    let before = listeners.len();
    let mut last = None;
    for address in addresses(endpoint, listen.tcp_port)? {
        let Some(socket) = bound(address, Type::STREAM, &mut last)? else {
            continue;
        };
        socket
            .listen(listen.backlog)
            .map_err(|error| EntryError::at("listen()", &error))?;
        note_port(ports, "TCP", socket.local_addr());
        listeners.push(Listener {
            acceptor: Acceptor::Tcp(TcpListener::from_std(socket.into())),
            protocol: endpoint.protocol.unwrap_or(listen.protocol),
            tls: endpoint.tls,
            tag: endpoint.tag.as_deref().map(Into::into),
            ack: endpoint.ack,
        });
    }
    bound_some(listeners.len() > before, last)
}

fn bind_udp(
    endpoint: &Endpoint,
    listen: &Listen,
    datagrams: &mut Vec<Datagrams>,
    ports: &mut String,
) -> Result<(), EntryError> {
    let before = datagrams.len();
    let mut last = None;
    for mut address in addresses(endpoint, listen.udp_port)? {
        if listen.endpoints.is_empty() && !listen.udp_public {
            // Nobody has asked for the network by name.
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        if !address.ip().is_loopback() && !listen.udp_public {
            return Err(EntryError {
                detail: Some(format!(
                    "refusing UDP on {address}: it answers forged senders; \
                     use -l 127.0.0.1, or -o udp_public if you mean it"
                )),
                reason: "Operation not permitted".to_owned(),
            });
        }
        let Some(socket) = bound(address, Type::DGRAM, &mut last)? else {
            continue;
        };
        widen_send_buffer(&socket);
        note_port(ports, "UDP", socket.local_addr());
        datagrams.push(Datagrams {
            socket: UdpSocket::from_std(socket.into()),
            protocol: endpoint.protocol.unwrap_or(listen.protocol),
        });
    }
    bound_some(datagrams.len() > before, last)
}

/// A socket of its own for `address`; none where another address has to do, because the kernel does not
/// speak this family or `last` tells why not.
fn bound(
    address: SocketAddr,
    kind: Type,
    last: &mut Option<io::Error>,
) -> Result<Option<Socket>, EntryError> {
    let Ok(socket) = new_socket(address, kind) else {
        return Ok(None);
    };
    match socket.bind(&address.into()) {
        Ok(()) => Ok(Some(socket)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            *last = Some(error);
            Ok(None)
        }
        Err(error) => Err(EntryError::at("bind()", &error)),
    }
}

fn bound_some(some: bool, last: Option<io::Error>) -> Result<(), EntryError> {
    if some {
        return Ok(());
    }
    Err(EntryError {
        detail: None,
        reason: last.map_or_else(
            || "Address family not supported by protocol".to_owned(),
            |error| reason(&error),
        ),
    })
}

fn new_socket(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        // Without it the IPv6 wildcard would take the port of the IPv4 one as well.
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // On UDP it would let another server take half of the requests.
        socket.set_reuse_address(true)?;
        // Accepted sockets inherit these, so that accepting costs no further call.
        socket.set_keepalive(true)?;
        socket.set_linger(None)?;
        socket.set_tcp_nodelay(true)?;
    }
    Ok(socket)
}

/// Finds the largest send buffer the system grants.
fn widen_send_buffer(socket: &Socket) {
    let Ok(mut low) = socket.send_buffer_size() else {
        return;
    };
    let mut high = SEND_BUFFER_MAX;
    while low <= high {
        let middle = low + (high - low) / 2;
        if socket.set_send_buffer_size(middle).is_ok() {
            low = middle + 1;
        } else {
            high = middle - 1;
        }
    }
}

fn note_port(ports: &mut String, transport: &str, address: io::Result<SockAddr>) {
    let Some(address) = address.ok().and_then(|address| address.as_socket()) else {
        return;
    };
    let family = if address.is_ipv4() { "INET" } else { "INET6" };
    ports.push_str(&format!("{transport} {family}: {}\n", address.port()));
}

/// Readers must never see half a file: it is written beside and then renamed. Failing to write
/// it is reported, and the server runs all the same.
fn write_ports(path: &Path, ports: &str) {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lck");
    let beside = Path::new(&beside);
    let written = File::options()
        .append(true)
        .create(true)
        .open(beside)
        .and_then(|mut file| file.write_all(ports.as_bytes()))
        .and_then(|()| fs::rename(beside, path));
    if let Err(error) = written {
        eprintln!(
            "Failed to open \"{}\": {}",
            beside.display(),
            reason(&error)
        );
    }
}

fn bind_unix(path: &Path, mask: u32, backlog: i32) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_keepalive(true)?;
    socket.set_linger(None)?;
    // The kernel gives the file the mode of the unbound socket less the umask: so there is never a
    // moment at which more may connect than the mask allows.
    let mode = Permissions::from_mode(mask & 0o777);
    let file = File::from(OwnedFd::from(socket));
    file.set_permissions(mode.clone())?;
    let socket = Socket::from(OwnedFd::from(file));
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, mode)?;
    socket.listen(backlog)?;
    Ok(UnixListener::from_std(socket.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(port: i32) -> Listen {
        Listen {
            tcp_port: port,
            interfaces: Some("127.0.0.1".to_owned()),
            endpoints: vec![Endpoint {
                host: Some("127.0.0.1".to_owned()),
                port: None,
                protocol: Some(Protocol::Ascii),
                tls: EndpointTls::Default,
                tag: None,
                ack: None,
            }],
            ..Listen::default()
        }
    }

    #[test]
    fn ports_are_chosen_and_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ports");
        let mut listen = local(-1);
        listen.udp_port = -1;
        let sockets = bind(&listen).unwrap();
        sockets.announce(&file);
        let tcp = sockets.listeners[0].acceptor.local_address().unwrap();
        let udp = sockets.datagrams[0].socket.local_addr().unwrap();
        assert_eq!(sockets.listeners[0].protocol, Protocol::Ascii);
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            format!("TCP INET: {}\nUDP INET: {}\n", tcp.port(), udp.port())
        );
    }

    #[test]
    fn a_port_in_use_is_told_in_memcacheds_words() {
        let sockets = bind(&local(-1)).unwrap();
        let port = sockets.listeners[0]
            .acceptor
            .local_address()
            .unwrap()
            .port();
        assert_eq!(
            bind(&local(i32::from(port))).unwrap_err().to_string(),
            "failed to listen on one of interface(s) 127.0.0.1: Address already in use"
        );
        let mut listen = local(i32::from(port));
        listen.interfaces = None;
        assert_eq!(
            bind(&listen).unwrap_err().to_string(),
            format!("failed to listen on TCP port {port}: Address already in use")
        );
    }

    #[test]
    fn unknown_hosts_are_told() {
        let mut listen = local(-1);
        listen.endpoints[0].host = Some("no such host".to_owned());
        let text = bind(&listen).unwrap_err().to_string();
        assert!(text.starts_with("getaddrinfo(): "), "{text}");
    }

    #[test]
    fn udp_stays_on_the_loopback_unless_told() {
        let mut listen = local(0);
        listen.udp_port = -1;
        listen.endpoints[0].host = None;
        let text = bind(&listen).unwrap_err().to_string();
        assert!(text.starts_with("refusing UDP on 0.0.0.0:0"), "{text}");
        listen.udp_public = true;
        assert!(!bind(&listen).unwrap().datagrams.is_empty());
        // Without -l it is the loopback that is meant.
        listen.udp_public = false;
        listen.endpoints.clear();
        for datagrams in bind(&listen).unwrap().datagrams {
            let address = datagrams.socket.local_addr().unwrap();
            assert!(address.ip().is_loopback(), "{address}");
        }
    }

    #[test]
    fn a_unix_socket_has_its_mode_and_replaces_its_own_kind_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listen = Listen {
            unix_socket: Some(path.clone()),
            unix_mask: 0o660,
            ..Listen::default()
        };
        for _ in 0..2 {
            bind(&listen).unwrap();
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o660);
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        assert!(bind(&listen).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
    }
}
