//! Servers that stall, answer nonsense, close, or never read: clients of other keys see nothing of it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use larder::settings::proxy::parse;

use crate::common::{Client, TestServer};
use crate::fleet;

/// A server that is played by a test, once for each connection.
pub struct Mock {
    pub address: String,
    over: Arc<AtomicBool>,
}

impl Mock {
    pub fn start(play: impl Fn(TcpStream) + Send + Sync + 'static) -> Mock {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let play = Arc::new(play);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Relaxed) {
                    return;
                }
                let play = play.clone();
                std::thread::spawn(move || play(stream));
            }
        });
        Mock { address, over }
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        // Wakes the one that accepts.
        let _ = TcpStream::connect(&self.address);
    }
}

/// A mock and a real server behind one proxy.
struct Pair {
    _mock: Mock,
    _real: TestServer,
    proxy: TestServer,
    /// A key of each.
    bad: String,
    good: String,
}

impl Pair {
    fn start(play: impl Fn(TcpStream) + Send + Sync + 'static) -> Pair {
        let (mock, real) = (Mock::start(play), TestServer::start());
        let servers = [mock.address.clone(), real.address().to_string()];
        let proxy = fleet::proxy(&servers, "timeout = \"300ms\"");
        // Whose key is whose is found by looking into the real one.
        let owner = |key: &str| -> bool {
            use larder::cluster::ring::{Member, Ring};
            let members: Vec<Member> = servers
                .iter()
                .map(|server| {
                    let (host, port) = server.split_once(':').unwrap();
                    Member::new(host, port.parse().unwrap())
                })
                .collect();
            Ring::build(&larder::settings::proxy::Scheme::default(), &members)
                .unwrap()
                .owner(key.as_bytes())
                == 0
        };
        let key = |wanted: bool| {
            (0..)
                .map(|n| format!("key{n}"))
                .find(|key| owner(key) == wanted)
                .unwrap()
        };
        let (bad, good) = (key(true), key(false));
        let mut client = real.connect();
        client.ask(format!("set {good} 0 0 4\r\ngood\r\n"), "STORED\r\n");
        Pair {
            _mock: mock,
            _real: real,
            proxy,
            bad,
            good,
        }
    }

    fn connect(&self) -> Client<TcpStream> {
        self.proxy.connect()
    }

    fn value(&self) -> String {
        format!("VALUE {} 0 4\r\ngood\r\nEND\r\n", self.good)
    }

    /// The other server's keys are answered at once.
    fn is_well(&self) {
        let mut client = self.connect();
        for _ in 0..20 {
            client.ask(format!("get {}\r\n", self.good), self.value());
        }
    }
}

fn read_line(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        if byte[0] == b'\n' {
            return true;
        }
    }
    false
}

/// What is there is not kept for what may never come, though it has been asked for in one piece.
#[test]
fn answers_before_that_of_one_that_stalls() {
    let mock = Mock::start(|mut stream| while stream.read(&mut [0; 64]).is_ok_and(|n| n > 0) {});
    let real = TestServer::start();
    let pools = format!(
        "[pools.bad]\nservers = [{:?}]\ntimeout = \"60s\"\nhealth = {{ probe_timeout = \"60s\" }}\n\
         [pools.good]\nservers = [\"{}\"]\ntimeout = \"60s\"\n",
        mock.address,
        real.address()
    );
    let route = "route = { match = [{ prefix = \"bad\", to = \"bad\" }], otherwise = \"good\" }\n";
    let proxy = fleet::proxy_with(parse(&format!("{route}{pools}")).expect("sound"));
    let mut client = proxy.connect();
    client.ask(
        "set a 0 0 1\r\nx\r\nget a\r\nget bad\r\nget a\r\n",
        "STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n",
    );
    // The values of a get of several keys, too.
    let mut client = proxy.connect();
    client.ask("get a a bad a\r\n", "VALUE a 0 1\r\nx\r\n".repeat(2));
}

#[test]
fn one_that_stalls() {
    let pair = Pair::start(|stream| {
        std::thread::sleep(Duration::from_secs(5));
        drop(stream);
    });
    let mut client = pair.connect();
    client.send(format!("get {}\r\nget {}\r\n", pair.bad, pair.good));
    pair.is_well();
    let said = client.line();
    assert!(
        said.starts_with("SERVER_ERROR ") && said.ends_with("in time"),
        "{said}"
    );
    client.expect(pair.value());
    // A get of several tells what it has.
    client.send(format!("get {} {}\r\n", pair.good, pair.bad));
    client.expect(format!("VALUE {} 0 4\r\ngood\r\n", pair.good));
    assert!(client.line().starts_with("SERVER_ERROR "));
    client.ask(format!("get {}\r\n", pair.good), pair.value());
}

#[test]
fn one_that_answers_nonsense() {
    for nonsense in [
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "VALUE k 0 99999999999\r\n",
        "STORED\r\n",
        "END\r\nEND\r\n",
        "VALUE key 0 1\r\nabc\r\nEND\r\n",
    ] {
        let pair = Pair::start(move |mut stream| {
            while read_line(&mut stream) {
                if stream.write_all(nonsense.as_bytes()).is_err() {
                    return;
                }
            }
        });
        let mut client = pair.connect();
        client.send(format!("get {}\r\nget {}\r\n", pair.bad, pair.good));
        let said = client.line();
        let surplus = nonsense.starts_with("END");
        assert!(said.starts_with("SERVER_ERROR ") != surplus, "{said}");
        client.expect(pair.value());
        pair.is_well();
    }
}

#[test]
fn one_that_closes_after_each_answer() {
    let pair = Pair::start(|mut stream| {
        if read_line(&mut stream) {
            let _ = stream.write_all(b"END\r\n");
        }
    });
    let mut client = pair.connect();
    let mut answered = 0;
    for _ in 0..50 {
        client.send(format!("get {}\r\nget {}\r\n", pair.bad, pair.good));
        let said = client.line();
        assert!(said == "END" || said.starts_with("SERVER_ERROR "), "{said}");
        answered += usize::from(said == "END");
        client.expect(pair.value());
    }
    assert!(answered > 0);
    pair.is_well();
}

#[test]
fn one_that_never_reads() {
    let pair = Pair::start(|stream| {
        std::thread::sleep(Duration::from_secs(5));
        drop(stream);
    });
    let mut client = pair.connect();
    let value = "x".repeat(20_000);
    let request = format!("set {} 0 0 20000\r\n{value}\r\n", pair.bad);
    // More than the sockets' buffers and the queue hold.
    let mut stream = client.stream.try_clone().unwrap();
    let count = 2000;
    let sender = std::thread::spawn(move || {
        for _ in 0..count {
            stream.write_all(request.as_bytes()).unwrap();
        }
    });
    pair.is_well();
    for n in 0..count {
        let said = client.line();
        assert!(said.starts_with("SERVER_ERROR "), "{n}: {said}");
    }
    sender.join().unwrap();
    client.ask(format!("get {}\r\n", pair.good), pair.value());
}

#[test]
fn one_that_answers_probes_and_nothing_else() {
    let probes = Arc::new(AtomicUsize::new(0));
    let count = probes.clone();
    let mock = Mock::start(move |mut stream| {
        let mut line = [0; 9];
        while stream.read_exact(&mut line).is_ok() && line == *b"version\r\n" {
            let _ = stream.write_all(b"VERSION 1\r\n");
            count.fetch_add(1, Relaxed);
        }
    });
    let health = "timeout = \"20s\"\nhealth = { probe = \"20ms\" }";
    let proxy = fleet::proxy(std::slice::from_ref(&mock.address), health);
    let mut client = proxy.connect();
    for _ in 0..3 {
        // A good probe before each request makes up for none of them.
        let before = probes.load(Relaxed);
        while probes.load(Relaxed) < before + 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        client.send("get key\r\n");
        let said = client.line();
        assert!(said.starts_with("SERVER_ERROR "), "{said}");
    }
    client.send("stats servers\r\n");
    let mut downs = None;
    loop {
        let line = client.line();
        if line == "END" {
            break;
        }
        if let Some((_, changes)) = line.split_once(":state_changes ") {
            downs = Some(changes.to_owned());
        }
    }
    // It may be half open again by now.
    assert_ne!(downs.as_deref(), Some("0"));
}

#[test]
fn none_that_listens() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let proxy = fleet::proxy(std::slice::from_ref(&address), "");
    let mut client = proxy.connect();
    for _ in 0..3 {
        client.ask(
            "get k\r\n",
            format!("SERVER_ERROR {address} cannot be reached\r\n"),
        );
        client.send("get k l\r\n");
        client.expect(format!("SERVER_ERROR {address} cannot be reached\r\n"));
    }
    client.ask("set k 0 0 1 noreply\r\nx\r\nmn\r\n", "MN\r\n");
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let fleet = fleet::Fleet::start(1);
    let mut client = fleet.connect();
    let value = vec![b'v'; 900_000];
    client.send("set big 0 0 900000\r\n");
    client.send(&value);
    client.ask("\r\n", "STORED\r\n");
    let mut slow = fleet.connect();
    slow.send("get big\r\n".repeat(200));
    for _ in 0..100 {
        client.ask("get small\r\n", "END\r\n");
    }
}
