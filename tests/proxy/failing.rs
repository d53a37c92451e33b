//! Servers that go down and come back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use larder::settings::proxy::parse;
use larder::settings::{Endpoint, EndpointTls, Settings};

use crate::common::binary::Packet;
use crate::common::{self, Client, TestServer};
use crate::fleet;

/// Quick enough for a test.
const HEALTH: &str =
    "timeout = \"5s\"\nhealth = { probe = \"100ms\", half_open = \"300ms\", flaps = 100 }\n";

/// A server at an address of its own, so that it can come back.
pub fn at(mut settings: Settings, address: SocketAddr) -> TestServer {
    settings.listen.tcp_port = i32::from(address.port());
    settings.listen.endpoints = vec![Endpoint {
        host: Some("127.0.0.1".to_owned()),
        port: Some(address.port()),
        protocol: None,
        tls: EndpointTls::Default,
        tag: None,
        ack: None,
    }];
    TestServer::start_with(settings)
}

fn stat(proxy: &TestServer, what: &str, name: &str) -> String {
    let mut client = proxy.connect();
    client.send(format!("stats {what}\r\n"));
    loop {
        let line = client.line();
        assert_ne!(line, "END", "no stat {name}");
        if let Some(value) = line
            .strip_prefix("STAT ")
            .and_then(|rest| rest.strip_prefix(name))
        {
            return value.trim().to_owned();
        }
    }
}

pub fn wait_for_state(proxy: &TestServer, server: SocketAddr, wanted: &str) {
    let since = Instant::now();
    while stat(proxy, "servers", &format!("all:{server}:state")) != wanted {
        assert!(since.elapsed() < Duration::from_secs(20), "never {wanted}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One of five goes and comes back, with what it had, under load: each key is always read as its
/// client has last written it, or missed.
#[test]
fn nothing_stale_is_read_from_a_server_that_comes_back() {
    const KEYS: usize = 40;
    let mut servers: Vec<Option<TestServer>> = (0..5).map(|_| Some(TestServer::start())).collect();
    let places: Vec<SocketAddr> = servers.iter().flatten().map(TestServer::address).collect();
    let names: Vec<String> = places.iter().map(ToString::to_string).collect();
    // In front of the one that goes, so that it can be cut off and keep what it has.
    let wire = Wire::start(places[2]);
    let mut behind = names.clone();
    behind[2] = wire.address.to_string();
    let proxy = fleet::proxy(&behind, &format!("{HEALTH}failover = 2"));
    let over = Arc::new(AtomicBool::new(false));
    let failures = Arc::new(AtomicU64::new(0));
    let address = proxy.address();
    let clients: Vec<_> = (0..3)
        .map(|number| {
            let (over, failures) = (over.clone(), failures.clone());
            std::thread::spawn(move || {
                let mut client = Client::to(address);
                let mut versions = [0u64; KEYS];
                let mut round = 0u64;
                while !over.load(Relaxed) {
                    round += 1;
                    let key = (round as usize * 7) % KEYS;
                    if round.is_multiple_of(3) {
                        client.send(format!("set c{number}k{key} 0 0 10\r\n{round:010}\r\n"));
                        if client.line() == "STORED" {
                            versions[key] = round;
                        } else {
                            // It may have been done or not.
                            versions[key] = 0;
                            failures.fetch_add(1, Relaxed);
                        }
                    } else {
                        client.send(format!("get c{number}k{key}\r\n"));
                        let said = client.line();
                        if said.starts_with("SERVER_ERROR") {
                            failures.fetch_add(1, Relaxed);
                        } else if said != "END" {
                            let version: u64 = client.line().parse().unwrap();
                            assert_eq!(client.line(), "END");
                            assert!(
                                versions[key] == 0 || version == versions[key],
                                "stale: {version} instead of {}",
                                versions[key]
                            );
                        }
                    }
                }
                round
            })
        })
        .collect();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(150));
        wire.cut(true);
        wait_for_state(&proxy, wire.address, "down");
        std::thread::sleep(Duration::from_millis(150));
        wire.cut(false);
        wait_for_state(&proxy, wire.address, "up");
    }
    over.store(true, Relaxed);
    let rounds: u64 = clients.into_iter().map(|it| it.join().unwrap()).sum();
    assert!(rounds > 100, "{rounds}");
    // Each of three clients had one request under way, at most, with each failure of three in a row.
    assert!(failures.load(Relaxed) <= 3 * 3 * 3, "{failures:?}");
    let deleted = stat(
        &proxy,
        "servers",
        &format!("all:{}:deletes_sent", wire.address),
    );
    assert_ne!(deleted, "0");
    servers.clear();
}

/// Passes bytes on, until it is cut.
struct Wire {
    address: SocketAddr,
    down: Arc<AtomicBool>,
    open: Arc<std::sync::Mutex<Vec<std::net::TcpStream>>>,
}

impl Wire {
    fn start(to: SocketAddr) -> Wire {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let down = Arc::new(AtomicBool::new(false));
        let open = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (is_down, streams) = (down.clone(), open.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = std::net::TcpStream::connect(to) else {
                    return;
                };
                if is_down.load(Relaxed) {
                    continue;
                }
                for stream in [&near, &far] {
                    stream.set_nodelay(true).unwrap();
                    streams.lock().unwrap().push(stream.try_clone().unwrap());
                }
                let pairs = [
                    (near.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far, near),
                ];
                for (mut from, mut into) in pairs {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut into);
                        let _ = into.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Wire {
            address,
            down,
            open,
        }
    }

    fn cut(&self, down: bool) {
        self.down.store(down, Relaxed);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[test]
fn keys_of_other_servers_stay_where_they_are() {
    let mut servers: Vec<Option<TestServer>> = (0..5).map(|_| Some(TestServer::start())).collect();
    let places: Vec<SocketAddr> = servers.iter().flatten().map(TestServer::address).collect();
    let names: Vec<String> = places.iter().map(ToString::to_string).collect();
    let proxy = fleet::proxy(&names, &format!("{HEALTH}failover = 1"));
    let mut client = proxy.connect();
    for n in 0..300 {
        client.ask(format!("set k{n} 0 0 1\r\nx\r\n"), "STORED\r\n");
    }
    servers[1] = None;
    wait_for_state(&proxy, places[1], "down");
    let mut missed = 0;
    for n in 0..300 {
        client.send(format!("get k{n}\r\n"));
        match client.line().as_str() {
            "END" => missed += 1,
            value => {
                assert!(value.starts_with("VALUE "), "{value}");
                client.expect("x\r\nEND\r\n");
            }
        }
    }
    // A fifth, as chance has it.
    assert!((20..120).contains(&missed), "{missed}");
    // Keys of the lost one live elsewhere meanwhile, and not for long.
    client.ask("set k1 0 0 1\r\ny\r\n".repeat(50), "STORED\r\n".repeat(50));
    for n in 0..300 {
        client.ask(format!("set k{n} 0 0 1\r\ny\r\n"), "STORED\r\n");
        client.ask(
            format!("get k{n}\r\n"),
            format!("VALUE k{n} 0 1\r\ny\r\nEND\r\n"),
        );
    }
    client.send("mg k0 t\r\nmg k1 t\r\n");
    let mut get = "get".to_owned();
    for n in 0..300 {
        get.push_str(&format!(" k{n}"));
    }
    client.line();
    client.line();
    client.send(format!("{get}\r\n"));
    for n in 0..300 {
        client.expect(format!("VALUE k{n} 0 1\r\ny\r\n"));
    }
    client.expect("END\r\n");
    let short = (0..300)
        .filter(|n| {
            client.send(format!("mg k{n} t\r\n"));
            let said = client.line();
            let ttl = said.strip_prefix("HD t").unwrap();
            ttl != "-1" && ttl.parse::<u32>().unwrap() <= 10
        })
        .count();
    assert_eq!(short, missed);
    // It comes back empty, and gets its keys again.
    let back = at(common::settings(), places[1]);
    wait_for_state(&proxy, places[1], "up");
    for n in 0..300 {
        client.ask(format!("set k{n} 0 0 1\r\nz\r\n"), "STORED\r\n");
    }
    assert_eq!(back.connect().stat("curr_items"), missed.to_string());
}

#[test]
fn without_failover_deletes_are_remembered() {
    let first = TestServer::start();
    let wire = Wire::start(first.address());
    let proxy = fleet::proxy(&[wire.address.to_string()], HEALTH);
    let mut client = proxy.connect();
    client.ask("set k 0 0 3\r\nold\r\n", "STORED\r\n");
    // Text has no such keys, or takes them for something else.
    let odd: [&[u8]; 3] = [b"a b", b"noreply", &[0; 20]];
    let packet = |opcode, key| Packet {
        opcode,
        key,
        extras: if opcode == 0x01 { &[0; 8] } else { &[] },
        ..Packet::default()
    };
    let mut binary = proxy.connect();
    for key in odd {
        assert_eq!(binary.call(packet(0x01, key)).status, 0);
    }
    wire.cut(true);
    wait_for_state(&proxy, wire.address, "down");
    client.send("set l 0 0 1\r\nx\r\n");
    assert!(client.line().starts_with("SERVER_ERROR "));
    client.ask(
        "delete k\r\nmd k\r\ndelete k noreply\r\n",
        "NOT_FOUND\r\nNF\r\n",
    );
    for key in odd {
        assert_eq!(binary.call(packet(0x04, key)).status, 1);
    }
    wire.cut(false);
    wait_for_state(&proxy, wire.address, "up");
    client.ask("get k\r\n", "END\r\n");
    first.connect().ask("get k\r\n", "END\r\n");
    let mut direct = first.connect();
    for key in odd {
        assert_eq!(direct.call(packet(0x00, key)).status, 1, "{key:?}");
    }
}

#[test]
fn copies_follow_the_owner() {
    let mut servers: Vec<TestServer> = (0..3).map(|_| TestServer::start()).collect();
    let names = fleet::addresses(&servers);
    let proxy = fleet::proxy(&names, &format!("{HEALTH}replicas = 3"));
    let mut client = proxy.connect();
    client.ask("set a 5 0 3\r\none\r\n", "STORED\r\n");
    client.ask("add a 5 0 3\r\ntwo\r\n", "NOT_STORED\r\n");
    client.ask("append a 0 0 1\r\n!\r\n", "STORED\r\n");
    client.send("gets a\r\n");
    let cas = client.line().rsplit(' ').next().unwrap().to_owned();
    client.expect("one!\r\nEND\r\n");
    client.ask(format!("cas a 6 0 3 {cas}\r\nnew\r\n"), "STORED\r\n");
    client.ask("set n 0 0 1 noreply\r\n5\r\nincr n 2\r\n", "7\r\n");
    client.ask("ms m 2 ME F3\r\nxy\r\n", "HD\r\n");
    client.ask("set gone 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("delete gone\r\n", "DELETED\r\n");
    let long = "v".repeat(100_000);
    client.ask(format!("set long 0 0 100000\r\n{long}\r\n"), "STORED\r\n");
    for server in &servers {
        let mut direct = server.connect();
        for (key, flags, value) in [
            ("a", 6, "new"),
            ("n", 0, "7"),
            ("m", 3, "xy"),
            ("long", 0, &long),
        ] {
            let expected = format!("VALUE {key} {flags} {}\r\n{value}\r\nEND\r\n", value.len());
            // Copies are on their way when the client has its answer.
            let since = Instant::now();
            loop {
                direct.send(format!("get {key}\r\n"));
                let said = direct.line();
                if said == "END" || !expected.starts_with(&said) {
                    if said != "END" {
                        direct.line();
                        direct.line();
                    }
                    assert!(since.elapsed() < Duration::from_secs(20), "{key}: {said}");
                    continue;
                }
                let (got, end) = (direct.line(), direct.line());
                if got == value {
                    assert_eq!(end, "END");
                    break;
                }
            }
        }
        direct.ask("get gone\r\n", "END\r\n");
    }
    // Readers find what the lost one had.
    drop(servers.remove(0));
    for key in ["a", "n", "m"] {
        let since = Instant::now();
        loop {
            client.send(format!("get {key}\r\n"));
            let said = client.line();
            if said.starts_with("VALUE ") {
                client.line();
                assert_eq!(client.line(), "END");
                break;
            }
            assert!(said.starts_with("SERVER_ERROR"), "{said}");
            assert!(since.elapsed() < Duration::from_secs(20));
        }
    }
}

/// More keys are written elsewhere than are remembered: the server that comes back is emptied, and no
/// version is read that is older than the last one written, be it in reach or not.
#[test]
fn a_server_whose_deletes_have_been_forgotten_comes_back_empty() {
    const KEYS: usize = 60;
    let servers = [TestServer::start(), TestServer::start()];
    let wire = Wire::start(servers[0].address());
    let names = [wire.address.to_string(), servers[1].address().to_string()];
    let config = |rest: &str| {
        format!(
            "[limits]\ndeletes = 5\n[pools.all]\nservers = {names:?}\nfailover = 1\n{HEALTH}{rest}"
        )
    };
    for (rest, emptied) in [("", true), ("forgotten_deletes = \"serve\"\n", false)] {
        let proxy = fleet::proxy_with(parse(&config(rest)).expect("sound"));
        let mut client = proxy.connect();
        for n in 0..KEYS {
            client.ask(format!("set k{n} 0 0 1\r\n1\r\n"), "STORED\r\n");
        }
        let count = |name| stat(&proxy, "servers", &format!("all:{}:{name}", wire.address));
        wire.cut(true);
        wait_for_state(&proxy, wire.address, "down");
        for n in 0..KEYS {
            client.ask(
                format!("delete k{n} noreply\r\nset k{n} 0 0 1\r\n2\r\n"),
                "STORED\r\n",
            );
        }
        assert_ne!(count("deletes_forgotten"), "0");
        wire.cut(false);
        wait_for_state(&proxy, wire.address, "up");
        let mut stale = 0;
        for n in 0..KEYS {
            client.send(format!("get k{n}\r\n"));
            if client.line() != "END" {
                stale += usize::from(client.line() == "1");
                assert_eq!(client.line(), "END");
            }
        }
        if emptied {
            assert_eq!((stale, count("deletes_waiting")), (0, "0".to_owned()));
            assert_eq!(servers[0].connect().stat("cmd_flush"), "1");
        } else {
            assert!(stale > 0, "the test shows nothing");
        }
    }
}
