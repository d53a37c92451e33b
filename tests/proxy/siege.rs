//! What servers and clients that do all they can can make a proxy hold: the program runs by itself, and
//! the most memory it ever had is looked at.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::common::{Client, Program, TestServer};
use crate::misbehaviour::Mock;

/// More than any queue holds.
const FLOOD: usize = 16 << 20;

struct Siege {
    proxy: Program,
    _folder: tempfile::TempDir,
    before: usize,
}

impl Siege {
    /// A proxy in front of one server, with two workers and little room.
    fn of(server: &str) -> Siege {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proxy.toml");
        let text = format!(
            "limits = {{ queue_bytes = \"4m\", client_bytes = \"1m\" }}\n\
             [pools.all]\nservers = [{server:?}]\ntimeout = \"20s\"\nqueue_bytes = \"8m\"\n"
        );
        std::fs::write(&file, text).unwrap();
        let arguments = [
            "proxy",
            "-l",
            "127.0.0.1",
            "-p",
            "-1",
            "-t",
            "2",
            "--config",
        ];
        let proxy = Program::start_with(&arguments, |command| {
            command.arg(&file);
        });
        let before = most_held(&proxy);
        Siege {
            proxy,
            _folder: folder,
            before,
        }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.proxy.port()))
    }

    /// It is well, and has never held much more than when it began.
    fn has_held(self, most: usize, what: &str) {
        self.proxy.connect().ask("mn\r\n", "MN\r\n");
        let grown = most_held(&self.proxy) - self.before;
        println!("{what}: {} KiB more than at the beginning", grown >> 10);
        assert!(grown < most, "{grown} bytes: {what}");
    }
}

/// The most memory a program ever had in use, in bytes.
fn most_held(program: &Program) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes << 10
}

/// Sends a request over and over, and drops what is answered, if anything is read at all; ends when
/// much has been sent or nothing has been taken for a while.
fn flood(address: SocketAddr, request: &[u8], reads: bool) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nonblocking(true).unwrap();
    let (mut sent, mut at, mut moved) = (0, 0, Instant::now());
    let mut buffer = vec![0; 1 << 16];
    while sent < FLOOD && moved.elapsed() < Duration::from_millis(150) {
        match stream.write(&request[at..]) {
            Ok(n) => {
                sent += n;
                at = (at + n) % request.len();
                moved = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => break,
        }
        while reads && stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
    }
    stream
}

#[test]
fn servers_that_do_not_take_what_they_are_sent() {
    let mock = Mock::start(|stream| {
        std::thread::sleep(Duration::from_secs(15));
        drop(stream);
    });
    let siege = Siege::of(&mock.address);
    let value = "x".repeat(20_000);
    let requests: Vec<u8> = (0..50)
        .flat_map(|n| format!("set key{n} 0 0 20000\r\n{value}\r\n").into_bytes())
        .collect();
    let clients: Vec<_> = (0..4)
        .map(|_| flood(siege.address(), &requests, true))
        .collect();
    let mut client = Client::to(siege.address());
    let busy: u64 = client.stat_of("proxy", "busy").parse().unwrap();
    assert!(busy > 0, "the clients have been told");
    let queued: usize = client.stat_of("proxy", "queued_bytes").parse().unwrap();
    // Each of two connections may have been one turn of one client over the limit.
    assert!((1 << 20..8 << 20).contains(&queued), "{queued}");
    siege.has_held(16 << 20, "a server that never reads");
    drop(clients);
}

#[test]
fn servers_that_never_end_what_they_say() {
    for (start, what) in [
        ("VALUE key 0 1000000000\r\n", "an endless value"),
        ("", "an endless line"),
        ("VALUE key 0 0\r\n\r\n", "values without an end"),
    ] {
        let mock = Mock::start(move |mut stream| {
            let _ = stream.read(&mut [0; 100]);
            let endless = if start.ends_with("\r\n\r\n") {
                start.repeat(1000)
            } else {
                "x".repeat(16_000)
            };
            let mut said = start.as_bytes();
            while stream.write_all(said).is_ok() {
                said = endless.as_bytes();
            }
        });
        let siege = Siege::of(&mock.address);
        let mut clients: Vec<TcpStream> = Vec::new();
        for _ in 0..8 {
            let mut stream = TcpStream::connect(siege.address()).unwrap();
            stream.write_all(b"get key\r\nget key other\r\n").unwrap();
            clients.push(stream);
        }
        // None of them reads. Whether it does is not to be known, but that others are served is.
        for _ in 0..20 {
            siege.proxy.connect().ask("mn\r\n", "MN\r\n");
            std::thread::sleep(Duration::from_millis(5));
        }
        siege.has_held(24 << 20, what);
    }
}

#[test]
fn servers_that_close_after_each_answer() {
    let mock = Mock::start(|mut stream| {
        let _ = stream.read(&mut [0; 100]);
        let _ = stream.write_all(b"END\r\n");
    });
    let siege = Siege::of(&mock.address);
    let requests = "get key\r\n".repeat(1000);
    let mut client = Client::to(siege.address());
    for _ in 0..10 {
        client.send(&requests);
        for _ in 0..1000 {
            let said = client.line();
            assert!(said == "END" || said.starts_with("SERVER_ERROR"), "{said}");
        }
    }
    siege.has_held(16 << 20, "a server that closes after each answer");
}

#[test]
fn clients_that_never_read() {
    let server = TestServer::start();
    let length = 900_000;
    let value = "v".repeat(length);
    let mut client = server.connect();
    client.ask(format!("set big 0 0 {length}\r\n{value}\r\n"), "STORED\r\n");
    client.ask(
        format!("set mid 0 0 4000\r\n{}\r\n", &value[..4000]),
        "STORED\r\n",
    );
    for request in ["get big\r\n", "get mid\r\n", "get mid big mid\r\n"] {
        let siege = Siege::of(&server.address().to_string());
        let clients: Vec<_> = (0..6)
            .map(|_| flood(siege.address(), request.repeat(1000).as_bytes(), false))
            .collect();
        siege.has_held(32 << 20, &format!("six that never read, {request:?}"));
        drop(clients);
    }
}
