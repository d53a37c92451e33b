//! UDP: requests of one datagram, replies of one sequence.

mod common;

use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use common::binary::{Answer, Packet};
use common::{Client, Program, TestServer, program, settings};
use larder::settings::Settings;

const PATIENCE: Duration = Duration::from_secs(30);

fn udp() -> Settings {
    let mut settings = settings();
    settings.listen.udp_port = -1;
    settings
}

/// A client with its own socket.
struct Peer {
    socket: UdpSocket,
}

impl Peer {
    fn of(server: &TestServer) -> Peer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server.datagram_address()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer { socket }
    }

    fn send(&self, id: u16, payload: impl AsRef<[u8]>) {
        let [high, low] = id.to_be_bytes();
        let frame = [high, low, 0, 0, 0, 1, 0, 0];
        let datagram = [&frame, payload.as_ref()].concat();
        self.socket.send(&datagram).unwrap();
    }

    /// One whole reply: as many datagrams as it says it has, each of them once.
    #[track_caller]
    fn receive(&self, id: u16) -> Vec<u8> {
        let mut parts: Vec<Option<Vec<u8>>> = Vec::new();
        loop {
            let mut datagram = [0; 2048];
            let length = self.socket.recv(&mut datagram).expect("an answer");
            assert!((9..=1400).contains(&length), "{length}");
            let number = |at: usize| u16::from_be_bytes([datagram[at], datagram[at + 1]]);
            assert_eq!((number(0), number(6)), (id, 0));
            parts.resize(usize::from(number(4)), None);
            let part = &mut parts[usize::from(number(2))];
            assert!(part.is_none(), "a number came twice");
            *part = Some(datagram[8..length].to_vec());
            if parts.iter().all(Option::is_some) {
                return parts.into_iter().flatten().flatten().collect();
            }
        }
    }

    #[track_caller]
    fn ask(&self, id: u16, request: impl AsRef<[u8]>, expected: impl AsRef<[u8]>) {
        self.send(id, request);
        let answer = self.receive(id);
        assert!(
            answer == expected.as_ref(),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
}

#[test]
fn text_and_meta_are_answered_in_one_message_each() {
    let mut settings = udp();
    // Several workers would take two datagrams in any order.
    settings.server.threads = 1;
    let server = TestServer::start_with(settings);
    let peer = Peer::of(&server);
    peer.ask(1, "set a 0 0 1\r\nx\r\n", "STORED\r\n");
    peer.ask(
        0xffff,
        "get a b a\r\n",
        "VALUE a 0 1\r\nx\r\nVALUE a 0 1\r\nx\r\nEND\r\n",
    );
    peer.ask(2, "get b\r\n", "END\r\n");
    peer.ask(3, "mg a v s k\r\n", "VA 1 s1 ka\r\nx\r\n");
    peer.ask(4, "ms a 2 c\r\nyz\r\nmn\r\n", "HD c3\r\nMN\r\n");
    peer.ask(5, "nonsense\r\n", "ERROR\r\n");
    // One datagram can bring several commands; their replies are one message.
    peer.ask(
        6,
        "get a\r\nversion\r\n",
        "VALUE a 0 2\r\nyz\r\nEND\r\nVERSION 1.6.45\r\n",
    );
    // What has no reply is answered by nothing at all, not by an empty datagram.
    peer.send(7, "set q 0 0 1 noreply\r\n1\r\n");
    peer.send(8, "quit\r\n");
    peer.ask(9, "get q\r\n", "VALUE q 0 1\r\n1\r\nEND\r\n");
}

#[test]
fn binary_is_known_by_its_first_byte() {
    let server = TestServer::start_with(udp());
    let peer = Peer::of(&server);
    let set = Packet {
        opcode: 0x11,
        extras: &[0, 0, 0, 5, 0, 0, 0, 0],
        key: b"k",
        value: b"value",
        ..Packet::default()
    };
    let get = Packet {
        opcode: 0x00,
        key: b"k",
        opaque: 0x0102_0304,
        ..Packet::default()
    };
    peer.send(1, [set.bytes(), get.bytes()].concat());
    let answer = peer.receive(1);
    let mut rest = &answer[..];
    let found = Answer::take(&mut rest);
    assert_eq!(
        (found.opcode, found.status, found.opaque),
        (0, 0, 0x0102_0304)
    );
    assert_eq!(
        (&found.extras[..], &found.value[..]),
        (&[0, 0, 0, 5][..], &b"value"[..])
    );
    assert!(rest.is_empty(), "the quiet one says nothing");
    peer.send(2, [get.bytes(), b"abc".to_vec()].concat());
    assert_eq!(peer.receive(2).len(), 24 + 9, "the rest is no request");
}

#[test]
fn long_values_come_in_as_many_datagrams_as_they_need() {
    let server = TestServer::start_with(udp());
    let mut client = server.connect();
    let peer = Peer::of(&server);
    for length in [1392 - 23, 1392 - 22, 5_000, 60_000] {
        let value: String = (0..length)
            .map(|n| char::from(b'a' + (n % 26) as u8))
            .collect();
        client.ask(format!("set big 0 0 {length}\r\n{value}\r\n"), "STORED\r\n");
        peer.ask(
            9,
            "get big\r\n",
            format!("VALUE big 0 {length}\r\n{value}\r\nEND\r\n"),
        );
    }
    // As long as a datagram can be, on the way in.
    let value = "v".repeat(60_000);
    peer.ask(10, format!("set in 0 0 60000\r\n{value}\r\n"), "STORED\r\n");
    client.ask(
        "get in\r\n",
        format!("VALUE in 0 60000\r\n{value}\r\nEND\r\n"),
    );
}

#[test]
fn what_is_no_single_datagram_is_dropped() {
    let server = TestServer::start_with(udp());
    let peer = Peer::of(&server);
    for datagram in [
        &b""[..],
        b"\0\x01\0",
        b"\0\x01\0\0\0\x01\0\0",
        b"\0\x01\0\0\0\x02\0\0version\r\n",
        b"\0\x01\0\0\0\0\0\0version\r\n",
    ] {
        peer.socket.send(datagram).unwrap();
    }
    peer.ask(5, "version\r\n", "VERSION 1.6.45\r\n");
}

#[test]
fn what_is_cut_short_is_refused_and_holds_up_nobody() {
    let server = TestServer::start_with(udp());
    let peer = Peer::of(&server);
    peer.ask(1, "set a 0 0 10\r\nabc", "CLIENT_ERROR bad data chunk\r\n");
    peer.ask(
        2,
        "set a 0 0 100000\r\nabc",
        "CLIENT_ERROR bad data chunk\r\n",
    );
    peer.ask(3, "version", "CLIENT_ERROR bad command line format\r\n");
    peer.ask(4, "get a b", "CLIENT_ERROR bad command line format\r\n");
    peer.ask(5, "get a\r\n", "END\r\n");
    peer.ask(
        6,
        "set a 0 0 2000000\r\nabc",
        "CLIENT_ERROR bad data chunk\r\n",
    );
    peer.ask(7, "get a\r\n", "END\r\n");
}

#[test]
fn streams_are_refused() {
    let server = TestServer::start_with(udp());
    let peer = Peer::of(&server);
    peer.ask(
        1,
        "watch fetchers\r\n",
        "CLIENT_ERROR watch commands not allowed\r\n",
    );
    peer.ask(
        2,
        "lru_crawler metadump all\r\n",
        "ERROR metadump not allowed\r\n",
    );
    peer.ask(
        3,
        "lru_crawler mgdump hash\r\n",
        "ERROR key dump not allowed\r\n",
    );
    peer.ask(4, "get a\r\n", "END\r\n");
}

#[test]
fn an_answer_beyond_measure_is_not_given() {
    let server = TestServer::start_with(udp());
    let mut client = server.connect();
    let value = "v".repeat(900_000);
    client.ask(format!("set big 0 0 900000\r\n{value}\r\n"), "STORED\r\n");
    let peer = Peer::of(&server);
    peer.ask(
        1,
        "get big big big big big\r\n",
        "SERVER_ERROR out of memory writing get response\r\n",
    );
    peer.ask(2, "get b\r\n", "END\r\n");
}

#[test]
fn many_clients_ask_at_once() {
    let server = TestServer::start_with(udp());
    let address = &server;
    std::thread::scope(|scope| {
        for number in 0..4u16 {
            scope.spawn(move || {
                let peer = Peer::of(address);
                for id in 0..200 {
                    let value = format!("{number}-{id}");
                    let length = value.len();
                    peer.ask(
                        id,
                        format!("set k{number} 0 0 {length}\r\n{value}\r\nget k{number}\r\n"),
                        format!("STORED\r\nVALUE k{number} 0 {length}\r\n{value}\r\nEND\r\n"),
                    );
                }
            });
        }
    });
    assert_eq!(server.connect().stat("cmd_set"), "800");
}

#[test]
fn each_worker_has_the_socket() {
    let server = TestServer::start_with(udp());
    let mut client = server.connect();
    let address = format!("udp:{}", server.datagram_address());
    let since = Instant::now();
    // A worker enters its row when its thread begins.
    while datagram_rows(&mut client, &address) != 2 {
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "not one row for each worker"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn datagram_rows(client: &mut Client<TcpStream>, address: &str) -> usize {
    client.send("stats conns\r\n");
    let mut rows = 0;
    loop {
        let line = client.line();
        if line == "END" {
            return rows;
        }
        let mut words = line.split(' ').skip(1);
        let (name, value) = (words.next().unwrap(), words.next().unwrap());
        if name.ends_with(":UDP") {
            assert_eq!(value, "UDP");
            rows += 1;
        }
        if name.ends_with(":addr") && value.starts_with("udp") {
            assert_eq!(value, address);
        }
    }
}

#[test]
fn the_network_is_not_answered_unless_asked_for_twice() {
    let output = program(&["-p", "-1", "-U", "-1", "-l", "0.0.0.0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(71));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("-o udp_public"), "{said}");
    let public = ["-p", "-1", "-U", "-1", "-l", "0.0.0.0", "-o", "udp_public"];
    let server = Program::start(&public);
    assert!(server.ports().contains("UDP INET: "), "{}", server.ports());
    // Not asked for any address, it is the loopback.
    let server = Program::start(&["-p", "-1", "-U", "-1"]);
    let port: u16 = server
        .ports()
        .lines()
        .find_map(|line| line.strip_prefix("UDP INET: "))
        .unwrap()
        .parse()
        .unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
        .send_to(b"\0\x07\0\0\0\x01\0\0version\r\n", ("127.0.0.1", port))
        .unwrap();
    let mut answer = [0; 100];
    let (length, _) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"\0\x07\0\0\0\x01\0\0VERSION 1.6.45\r\n");
}
