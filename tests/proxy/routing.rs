//! Routes, and what becomes of requests on them.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use larder::settings::proxy::{Proxy, Route, parse};

use crate::common::TestServer;
use crate::fleet;

/// Servers of pools `a`, `b` and `c`, one each, and a proxy with these routes.
struct Pools {
    servers: Vec<TestServer>,
    proxy: TestServer,
}

fn pools(routes: &str) -> Pools {
    pools_with(routes, |_| {})
}

/// The same, with something of the configuration changed.
fn pools_with(routes: &str, change: impl FnOnce(&mut Proxy)) -> Pools {
    let servers: Vec<TestServer> = (0..3).map(|_| TestServer::start()).collect();
    let names = fleet::addresses(&servers);
    let mut text = routes.to_owned();
    for (pool, name) in ["a", "b", "c"].iter().zip(&names) {
        text.push_str(&format!(
            "\n[pools.{pool}]\nservers = [{name:?}]\ntimeout = \"20s\"\n"
        ));
    }
    let mut configuration = parse(&text).unwrap();
    change(&mut configuration);
    let proxy = fleet::proxy_with(configuration);
    Pools { servers, proxy }
}

impl Pools {
    #[track_caller]
    fn holds(&self, nth: usize, key: &str, value: &str) {
        let since = Instant::now();
        let mut direct = self.servers[nth].connect();
        loop {
            direct.send(format!("get {key}\r\n"));
            let found = match direct.line().as_str() {
                "END" => String::new(),
                _ => {
                    let value = direct.line();
                    direct.line();
                    value
                }
            };
            if found == value {
                return;
            }
            // What nobody waits for comes a little later.
            assert!(
                since.elapsed() < Duration::from_secs(10),
                "{nth} has {found:?} for {key}, not {value:?}"
            );
        }
    }
}

#[test]
fn by_prefix_and_command() {
    let pools = pools(
        "route = \"r\"\n[routes.r]\nmatch = [{ prefix = \"u:\", to = \"b\" }, { command = \"delete\", to = { error = \"no deletes\" } }]\notherwise = \"a\"\n",
    );
    let mut client = pools.proxy.connect();
    client.ask("set u:1 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("set v:1 0 0 1\r\ny\r\n", "STORED\r\n");
    client.ask("delete v:1\r\n", "SERVER_ERROR no deletes\r\n");
    client.ask(
        "get u:1 v:1 u:2\r\n",
        "VALUE u:1 0 1\r\nx\r\nVALUE v:1 0 1\r\ny\r\nEND\r\n",
    );
    pools.holds(1, "u:1", "x");
    pools.holds(0, "v:1", "y");
}

#[test]
fn to_all_and_to_the_next() {
    let pools = pools(
        "route = \"r\"\n[routes.r]\nmatch = [{ prefix = \"f:\", to = { failover = [{ error = \"down\" }, \"b\"], on = [\"error\", \"miss\"] } }, { prefix = \"n:\", to = { null = true } }]\notherwise = { fanout = [\"a\", \"b\", \"c\"] }\n",
    );
    let mut client = pools.proxy.connect();
    client.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    for nth in 0..3 {
        pools.holds(nth, "k", "x");
    }
    client.ask(
        "get k nope k\r\n",
        "VALUE k 0 1\r\nx\r\nVALUE k 0 1\r\nx\r\nEND\r\n",
    );
    client.ask(
        "ms k 1 q\r\ny\r\nmg k v k\r\nmn\r\n",
        "VA 1 kk\r\ny\r\nMN\r\n",
    );
    client.ask(
        "set f:1 0 0 1\r\nz\r\nget f:1\r\n",
        "STORED\r\nVALUE f:1 0 1\r\nz\r\nEND\r\n",
    );
    pools.holds(1, "f:1", "z");
    pools.holds(0, "f:1", "");
    client.ask(
        "get n:1\r\nset n:1 0 0 1\r\nx\r\ndelete n:1\r\n",
        "END\r\nNOT_STORED\r\nNOT_FOUND\r\n",
    );
    client.ask("flush_all\r\n", "OK\r\n");
    let long = "l".repeat(200_000);
    client.ask(format!("set long 0 0 200000\r\n{long}\r\n"), "STORED\r\n");
    client.ask(
        "get long\r\n",
        format!("VALUE long 0 200000\r\n{long}\r\nEND\r\n"),
    );
    for nth in 0..3 {
        pools.holds(nth, "long", &long);
    }
}

#[test]
fn warmup_shadow_and_rewrite() {
    let pools = pools(
        "route = \"r\"\n[routes.r]\nmatch = [{ prefix = \"w:\", to = { warmup = { cold = \"a\", warm = \"b\", ttl = \"60s\" } } }, { prefix = \"s:\", to = { shadow = { main = \"a\", copies = \"c\", share = 1.0 } } }]\notherwise = { rewrite = { to = \"a\", prefix = \"p:\", ttl_max = \"9s\" } }\n",
    );
    let mut client = pools.proxy.connect();
    pools.servers[1]
        .connect()
        .ask("set w:1 7 0 4\r\nwarm\r\n", "STORED\r\n");
    client.ask("get w:1\r\n", "VALUE w:1 7 4\r\nwarm\r\nEND\r\n");
    pools.holds(0, "w:1", "warm");
    client.ask("set s:1 0 0 1\r\nx\r\n", "STORED\r\n");
    pools.holds(0, "s:1", "x");
    pools.holds(2, "s:1", "x");
    client.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    pools.holds(0, "p:k", "x");
    client.ask("get k\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n");
    client.ask(
        "get k l k\r\n",
        "VALUE k 0 1\r\nx\r\nVALUE k 0 1\r\nx\r\nEND\r\n",
    );
    client.ask("mg k k v t\r\n", "VA 1 kk t9\r\nx\r\n");
    let mut direct = pools.servers[0].connect();
    direct.send("mg p:k t\r\n");
    let ttl = direct.line();
    assert!(["HD t9", "HD t8", "HD t7"].contains(&ttl.as_str()), "{ttl}");
}

#[test]
fn limits_and_faults() {
    let pools = pools(
        "route = \"r\"\n[routes.r]\nmatch = [{ prefix = \"l:\", to = { limit = { to = \"a\", rate = 0.001, burst = 2 } } }, { prefix = \"f:\", to = { fault = { to = \"a\", share = 1.0, delay = \"30ms\" } } }]\notherwise = \"a\"\n",
    );
    let mut client = pools.proxy.connect();
    client.ask(
        "get l:1\r\nget l:2\r\nget l:3\r\nget k\r\n",
        "END\r\nEND\r\nSERVER_ERROR 307 busy\r\nEND\r\n",
    );
    let since = Instant::now();
    client.ask("get f:1\r\nget k\r\n", "END\r\nEND\r\n");
    assert!(since.elapsed() >= Duration::from_millis(30));
}

/// Servers that are known to be down are answered for, whatever the route to them.
#[test]
fn all_that_a_route_leads_to_is_down() {
    for route in [
        "{ failover = [\"a\", \"b\"] }",
        "{ fanout = [\"a\", \"b\"] }",
        "{ warmup = { cold = \"a\", warm = \"b\", ttl = \"9s\" } }",
        "{ tier = { near = \"a\", far = \"b\", ttl = \"9s\" } }",
        "{ limit = { to = \"a\", in_flight = 9 } }",
        "{ rewrite = { to = \"a\", prefix = \"p\" } }",
    ] {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = gone.local_addr().unwrap();
        drop(gone);
        let text = format!(
            "route = \"r\"\n[routes]\nr = {route}\n[pools]\na = {{ servers = [\"{address}\"] }}\nb = {{ servers = [\"{address}\"] }}\n"
        );
        let proxy = fleet::proxy_with(parse(&text).unwrap());
        let mut client = proxy.connect();
        // The first finds out, the others know.
        for _ in 0..5 {
            for request in [
                "get k\r\n",
                "set k 0 0 1\r\nx\r\n",
                "incr k 1\r\n",
                "get k l\r\n",
            ] {
                client.send(request);
                let line = client.line();
                assert!(line.starts_with("SERVER_ERROR "), "{route}: {line}");
            }
            client.ask("version\r\n", "VERSION 1.6.45\r\n");
        }
    }
}

#[test]
fn near_and_far() {
    let pools =
        pools("route = \"r\"\n[routes.r]\ntier = { near = \"a\", far = \"b\", ttl = \"60s\" }\n");
    let mut client = pools.proxy.connect();
    client.ask("set k 7 0 3\r\none\r\n", "STORED\r\n");
    pools.holds(1, "k", "one");
    pools.holds(0, "k", "");
    client.ask("get k\r\n", "VALUE k 7 3\r\none\r\nEND\r\n");
    pools.holds(0, "k", "one");
    // From now on it is read near: what changes behind the proxy's back shows that.
    pools.servers[1]
        .connect()
        .ask("delete k\r\n", "DELETED\r\n");
    client.ask("get k\r\n", "VALUE k 7 3\r\none\r\nEND\r\n");
    client.ask(
        "get k nope\r\nmg k v f\r\n",
        "VALUE k 7 3\r\none\r\nEND\r\nVA 3 f7\r\none\r\n",
    );
    // A write makes the near one forget.
    client.ask("set k 8 0 3\r\ntwo\r\n", "STORED\r\n");
    pools.holds(0, "k", "");
    client.ask("get k\r\n", "VALUE k 8 3\r\ntwo\r\nEND\r\n");
    pools.holds(0, "k", "two");
    client.ask("delete k\r\nget k\r\n", "DELETED\r\nEND\r\n");
    pools.holds(0, "k", "");
}

#[test]
fn one_of_several_at_random() {
    let pools = pools("route = \"r\"\n[routes.r]\nrandom = [\"a\", \"b\", \"c\"]\n");
    for server in &pools.servers {
        server.connect().ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    }
    let mut client = pools.proxy.connect();
    for _ in 0..10 {
        client.ask(
            "get k\r\n".repeat(30),
            "VALUE k 0 1\r\nx\r\nEND\r\n".repeat(30),
        );
    }
    let hits = |server: &TestServer| -> u32 { server.connect().stat("get_hits").parse().unwrap() };
    let hits: Vec<u32> = pools.servers.iter().map(hits).collect();
    assert_eq!(hits.iter().sum::<u32>(), 300);
    // By chance alone this fails once in more than the age of the universe.
    assert!(hits.iter().all(|&hits| hits > 20), "{hits:?}");
}

#[test]
fn from_one_pool_to_another() {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let migrating = |begin: u64, hours: u64| {
        let text = "route = \"r\"\n[routes.r]\n\
             migrate = { from = \"a\", to = \"b\", start = 2026-01-01T00:00:00Z, over = \"1h\" }\n";
        pools_with(text, |proxy| {
            for route in &mut proxy.routes {
                if let Route::Migrate { start, length, .. } = route {
                    (*start, *length) = (begin, hours * 3600);
                }
            }
        })
    };
    let moved = |pools: &Pools| {
        let mut client = pools.proxy.connect();
        for n in 0..100 {
            client.ask(format!("set k{n} 0 0 1\r\nx\r\n"), "STORED\r\n");
            client.ask(
                format!("get k{n}\r\n"),
                format!("VALUE k{n} 0 1\r\nx\r\nEND\r\n"),
            );
        }
        pools.servers[1]
            .connect()
            .stat("curr_items")
            .parse::<usize>()
            .unwrap()
    };
    assert_eq!(moved(&migrating(now + 3600, 1)), 0, "it has not begun");
    assert_eq!(moved(&migrating(now - 7200, 1)), 100, "it is over");
    // Half of ten hours are over, and half of the keys have moved.
    let half = migrating(now - 18_000, 10);
    let count = moved(&half);
    assert!((25..75).contains(&count), "{count}");
    // Deletes go to both meanwhile, wherever the key is.
    for server in &half.servers[..2] {
        server
            .connect()
            .ask("set k1 0 0 3\r\nold\r\n", "STORED\r\n");
    }
    half.proxy.connect().ask("delete k1\r\n", "DELETED\r\n");
    half.holds(0, "k1", "");
    half.holds(1, "k1", "");
}
