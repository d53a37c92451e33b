//! Under a service manager: sockets that are handed over, and word that it serves.

mod common;

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::Client;

const PATIENCE: Duration = Duration::from_secs(30);

/// The program with one socket handed over; killed with the value.
struct Activated {
    child: Child,
}

impl Activated {
    /// The shell moves the socket to where it is looked for, and becomes the program.
    fn start(socket: OwnedFd, pid: &str, arguments: &[&str], notify: Option<&Path>) -> Activated {
        let script = format!("LISTEN_PID={pid} LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 0</dev/null");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_larder"), "-u", "root"]);
        command.args(arguments).stdin(Stdio::from(socket));
        command.stderr(Stdio::piped());
        if let Some(path) = notify {
            command.env("NOTIFY_SOCKET", path);
        }
        Activated {
            child: command.spawn().unwrap(),
        }
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_tcp_socket_can_be_handed_over() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // It waits in the backlog until there is somebody to accept it.
    let mut client = Client::to(address);
    client.send("version\r\n");
    let _server = Activated::start(socket.into(), "$$", &["-p", "11211"], None);
    client.expect("VERSION 1.6.45\r\n");
    client.ask(
        "set a 0 0 1\r\nx\r\nget a\r\n",
        "STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n",
    );
    let address = address.to_string();
    client.send("stats conns\r\n");
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line| line != "END") {
        lines.push(client.line());
    }
    let listening = lines.iter().filter(|line| line.ends_with("conn_listening"));
    assert_eq!(listening.count(), 1, "no other is opened: {lines:?}");
    assert!(
        lines
            .iter()
            .any(|line| line.ends_with(&format!("addr tcp:{address}")))
    );
}

#[test]
fn so_can_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("larder");
    let socket = UnixListener::bind(&path).unwrap();
    let _server = Activated::start(socket.into(), "$$", &[], None);
    let mut client = Client::local(&path);
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
}

#[test]
fn so_can_a_udp_socket() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let _server = Activated::start(socket.into(), "$$", &[], None);
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.send_to(b"\0\x07\0\0\0\x01\0\0version\r\n", address)
        .unwrap();
    let mut answer = [0; 100];
    let (length, _) = peer.recv_from(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"\0\x07\0\0\0\x01\0\0VERSION 1.6.45\r\n");
}

#[test]
fn sockets_of_another_process_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = folder.path().join("own");
    let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let arguments = ["-s", own.to_str().unwrap()];
    let notify = folder.path().join("notify");
    let _server = Activated::start(socket.into(), "1", &arguments, Some(&notify));
    let mut state = [0; 100];
    manager.recv(&mut state).unwrap();
    Client::local(&own).ask("version\r\n", "VERSION 1.6.45\r\n");
}

#[test]
fn what_is_no_socket_is_told() {
    let file = fs::File::open("/dev/null").unwrap();
    let mut server = Activated::start(file.into(), "$$", &[], None);
    assert_eq!(server.child.wait().unwrap().code(), Some(71));
    let mut said = String::new();
    std::io::Read::read_to_string(server.child.stderr.as_mut().unwrap(), &mut said).unwrap();
    assert!(
        said.starts_with("cannot use socket 0 of LISTEN_FDS: "),
        "{said}"
    );
}

#[test]
fn the_manager_hears_when_it_serves_and_when_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let notify = folder.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut server = Activated::start(socket.into(), "$$", &[], Some(&notify));
    let hear = || {
        let mut state = [0; 100];
        let length = manager.recv(&mut state).expect("a state");
        String::from_utf8(state[..length].to_vec()).unwrap()
    };
    assert!(hear().starts_with("READY=1\n"));
    Client::to(address).ask("version\r\n", "VERSION 1.6.45\r\n");
    let id = server.child.id().to_string();
    assert!(Command::new("kill").arg(&id).status().unwrap().success());
    assert!(hear().starts_with("STOPPING=1\n"));
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}
