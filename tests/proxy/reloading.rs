//! Configurations that change while requests are under way.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use larder::cluster::ring::{Member, Ring};
use larder::settings::proxy::{Mode, Proxy, Scheme, parse};

use crate::common::{self, Client, TestServer};
use crate::fleet;
use crate::misbehaviour::Mock;

#[test]
fn a_hundred_reloads_under_load() {
    let servers: Vec<TestServer> = (0..4).map(|_| TestServer::start()).collect();
    let names = fleet::addresses(&servers);
    let three = fleet::configuration(&names[..3], "");
    let four = fleet::configuration(&names, "connections = 2");
    let proxy = fleet::proxy_with(three.clone());
    let address = proxy.address();
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|number| {
            let over = over.clone();
            std::thread::spawn(move || {
                let mut client = Client::to(address);
                let mut rounds = 0;
                while !over.load(Relaxed) {
                    let key = format!("c{number}k{}", rounds % 50);
                    client.ask(format!("set {key} 0 0 1\r\nx\r\n"), "STORED\r\n");
                    client.ask(
                        format!("get {key} nope{rounds}\r\nmn\r\n"),
                        format!("VALUE {key} 0 1\r\nx\r\nEND\r\nMN\r\n"),
                    );
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    // A key that moves between two requests of one client is missed, so keys must not move.
    let mut same = three.clone();
    for n in 0..100 {
        same.pools[0].timeout_ms = 20_000 + n;
        same.pools[0].connections = 1 + n as usize % 3;
        proxy.reload(same.clone());
        std::thread::sleep(Duration::from_millis(5));
    }
    over.store(true, Relaxed);
    let rounds: usize = clients.into_iter().map(|it| it.join().unwrap()).sum();
    assert!(rounds > 50, "{rounds}");
    // Servers come and go.
    for servers in [four, three] {
        proxy.reload(servers);
        let mut client = proxy.connect();
        for n in 0..200 {
            client.ask(
                format!("set k{n} 0 0 1\r\nx\r\nget k{n}\r\n"),
                format!("STORED\r\nVALUE k{n} 0 1\r\nx\r\nEND\r\n"),
            );
        }
    }
    assert!(servers[3].connect().stat("cmd_set").parse::<u32>().unwrap() > 10);
}

/// A request whose routes lead on to a pool that has been taken out meanwhile, and one whose route is an error of
/// before, are answered as if that was down.
#[test]
fn a_pool_goes_while_a_request_is_on_its_way_to_it() {
    let good = TestServer::start();
    let stuck = TcpListener::bind("127.0.0.1:0").unwrap();
    let pools = |routes: &str, both: bool| {
        let stuck = stuck.local_addr().unwrap();
        let mut text = format!(
            "{routes}\n[defaults]\ntimeout = \"1s\"\nhealth = {{ failures = 1000 }}\n[pools.a]\nservers = [\"{stuck}\"]\n"
        );
        if both {
            text += &format!("[pools.b]\nservers = [\"{}\"]\n", good.address());
        }
        parse(&text).unwrap()
    };
    for last in ["\"b\"", "{ error = \"no\" }"] {
        let before = format!("route = {{ failover = [\"a\", {last}] }}");
        let proxy = fleet::proxy_with(pools(&before, true));
        let mut client = proxy.connect();
        client.send("get k\r\n");
        // It waits at the first pool.
        let (_held, _) = stuck.accept().unwrap();
        proxy.reload(pools("route = \"a\"", false));
        let line = client.line();
        assert!(line.starts_with("SERVER_ERROR "), "{line}");
        proxy.connect().ask("version\r\n", "VERSION 1.6.45\r\n");
    }
}

/// A server that keeps those who ask for something waiting.
#[derive(Default)]
struct Gate {
    asked: AtomicUsize,
    open: AtomicBool,
}

impl Gate {
    fn opened() -> Arc<Gate> {
        let gate = Arc::<Gate>::default();
        gate.open.store(true, Relaxed);
        gate
    }

    fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

/// Stores what it is given, and when the gate is open answers reads: with a value, or that there is none.
fn gated(gate: &Arc<Gate>, has: bool) -> Mock {
    let gate = gate.clone();
    Mock::start(move |mut stream| {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while let Some(Ok(line)) = lines.next() {
            let mut words = line.split(' ');
            let said = match words.next().unwrap() {
                read @ ("get" | "gets") => {
                    gate.asked.fetch_add(1, Relaxed);
                    while !gate.open.load(Relaxed) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    let cas = if read == "gets" { " 7" } else { "" };
                    match has {
                        true => value(words.next().unwrap(), cas, "x"),
                        false => "END\r\n".to_owned(),
                    }
                }
                "set" => {
                    lines.next();
                    "STORED\r\n".to_owned()
                }
                _ => "VERSION 1\r\n".to_owned(),
            };
            if stream.write_all(said.as_bytes()).is_err() {
                return;
            }
        }
    })
}

fn value(key: &str, cas: &str, value: &str) -> String {
    format!("VALUE {key} 0 {}{cas}\r\n{value}\r\nEND\r\n", value.len())
}

fn owner(servers: &[&str], key: &str) -> usize {
    let members = servers.iter().map(|server| {
        let (host, port) = server.split_once(':').unwrap();
        Member::new(host, port.parse().unwrap())
    });
    let members: Vec<Member> = members.collect();
    let ring = Ring::build(&Scheme::default(), &members).unwrap();
    ring.owner(key.as_bytes())
}

/// Pools with these names and servers, whose hot keys are read from several.
fn spreading(pool: &str, servers: &[&str]) -> Proxy {
    let text = format!(
        "hot_keys = {{ reads_per_second = 20, cache = \"0s\", spread_ttl = \"60s\" }}\n\
         [pools.{pool}]\nservers = {servers:?}\ntimeout = \"20s\"\n\
         health = {{ probe = \"60s\", probe_timeout = \"20s\" }}\n"
    );
    parse(&text).unwrap()
}

/// One worker, which knows all that is under way.
fn single(proxy: Proxy) -> TestServer {
    let mut settings = common::settings();
    settings.server.threads = 1;
    settings.proxy = Some(Mode { proxy, file: None });
    TestServer::start_with(settings)
}

/// The worker has taken up what it has been given.
fn reloaded(proxy: &TestServer, configuration: Proxy) {
    proxy.reload(configuration);
    proxy.connect().ask("mn\r\n", "MN\r\n");
}

/// A key that the servers at these places of these lists own.
fn owned(by: &[(&[&str], usize)]) -> String {
    let owned = |key: &String| by.iter().all(|(servers, at)| owner(servers, key) == *at);
    (0..).map(|n| format!("key{n}")).find(owned).unwrap()
}

/// A hot key is being read from a server that has a copy, which turns out to have none. Its owner has gone
/// meanwhile, and another server may be where that was in the worker's list: who owns the key now is asked.
#[test]
fn the_owner_of_a_hot_key_goes_while_a_copy_is_read() {
    for reloads in 0..3 {
        let (open, held) = (Gate::opened(), Arc::<Gate>::default());
        let (first, second) = (gated(&open, true), gated(&held, false));
        let others = [TestServer::start(), TestServer::start()];
        let [a, b] = [&first, &second].map(|mock| &mock.address[..]);
        let [c, d] = &fleet::addresses(&others)[..] else {
            unreachable!()
        };
        let key = owned(&[(&[a, b], 0), (&[b, c], 1), (&[b, c, d], 1)]);
        for (server, value) in others.iter().zip(["right", "wrong"]) {
            let set = format!("set {key} 0 0 5\r\n{value}\r\n");
            server.connect().ask(set, "STORED\r\n");
        }
        let proxy = single(spreading("all", &[a, b]));
        let mut client = proxy.connect();
        let since = Instant::now();
        loop {
            let before = open.asked();
            client.send(format!("get {key}\r\n"));
            while open.asked() == before && held.asked() == 0 {
                assert!(since.elapsed() < Duration::from_secs(20), "never asked");
                std::thread::yield_now();
            }
            if held.asked() > 0 {
                break;
            }
            client.expect(value(&key, "", "x"));
            assert!(since.elapsed() < Duration::from_secs(20), "never spread");
        }
        match reloads {
            0 => reloaded(&proxy, spreading("other", &[b, c])),
            _ => reloaded(&proxy, spreading("all", &[b, c])),
        }
        if reloads == 2 {
            reloaded(&proxy, spreading("all", &[b, c, d]));
        }
        held.open.store(true, Relaxed);
        client.expect(match reloads {
            0 => "SERVER_ERROR the pool has been taken out of the configuration\r\n".to_owned(),
            _ => value(&key, "", "right"),
        });
    }
}

/// A hot key's owner is being asked for what others are to be given, of which one has gone meanwhile: whoever
/// is in its place is given nothing.
#[test]
fn a_server_goes_that_was_to_be_given_a_copy() {
    const READS: usize = 100;
    for reloads in 1..3 {
        let (held, open) = (Arc::<Gate>::default(), Gate::opened());
        let (first, second) = (gated(&held, true), gated(&open, false));
        let others = [TestServer::start(), TestServer::start()];
        let [a, b] = [&first, &second].map(|mock| &mock.address[..]);
        let [c, d] = &fleet::addresses(&others)[..] else {
            unreachable!()
        };
        let key = owned(&[(&[a, b], 0)]);
        let proxy = single(spreading("all", &[a, b]));
        let mut client = proxy.connect();
        client.send(format!("get {key}\r\n").repeat(READS));
        // All have been sent on, and one of them is to bring what the second is given.
        let mut other = proxy.connect();
        other.ask("mn\r\n", "MN\r\n");
        reloaded(&proxy, spreading("all", &[a, c]));
        if reloads == 2 {
            reloaded(&proxy, spreading("all", &[a, c, d]));
        }
        held.open.store(true, Relaxed);
        client.expect(value(&key, "", "x").repeat(READS));
        // Behind whatever the last ones have been sent.
        for (number, server) in others.iter().enumerate().take(reloads) {
            let servers = &[a, c, d][..=reloads];
            let behind = owned(&[(servers, number + 1)]);
            other.ask(format!("set {behind} 0 0 1\r\ny\r\n"), "STORED\r\n");
            assert_eq!(server.connect().stat("cmd_set"), "1");
        }
    }
}
