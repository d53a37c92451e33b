//! Groups of nodes behind a proxy: who is asked, who leads, who comes.

mod common;
#[path = "common/gateway.rs"]
mod gateway;

#[path = "failures/faults.rs"]
#[allow(dead_code)]
mod faults;
#[path = "common/group.rs"]
mod group;

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Client, TestServer, settings};
use faults::Faults;
use gateway::Gateway;
use group::{
    alone, arrives, copying, copying_from, elected, eventually, gets, is_asked, proxy_before,
    proxy_of, read, write,
};
use larder::settings::proxy::{Mode, parse};

/// One value of a server's `stats`.
fn stat(server: &TestServer, name: &str) -> String {
    group::stat(&mut server.connect(), "", name).unwrap_or_default()
}

/// Writes find the leader, whoever it is; reads find a follower while there is none.
#[test]
fn the_leader_is_found_and_followed() {
    let leader = TestServer::start_with(copying(None));
    let follower = TestServer::start_with(copying(Some(&leader)));
    // In the wrong order.
    let nodes = [follower.address(), leader.address()];
    let proxy = proxy_before(&nodes, "health = { failures = 1 }");
    let mut client = proxy.connect();
    write(&mut client, "k", "one");
    assert_eq!(read(&mut client, "k").as_deref(), Some("one"));
    arrives(&follower, "k", "one");
    drop(leader);
    eventually("a follower is read", || {
        let mut client = proxy.connect();
        client.send("get k\r\n");
        client.line() == "VALUE k 0 3" && client.line() == "one" && client.line() == "END"
    });
    client.send("set k 0 0 3\r\ntwo\r\n");
    let line = client.line();
    assert!(line.starts_with("SERVER_ERROR "), "{line}");
    let mut operator = follower.connect();
    operator.send("repl promote --force\r\n");
    let line = operator.line();
    assert!(line.starts_with("OK epoch"), "{line}");
    write(&mut client, "k", "two");
    client.ask("get k none\r\n", "VALUE k 0 3\r\ntwo\r\nEND\r\n");
}

/// A hot key is kept by the proxy, as the leader has it.
#[test]
fn a_hot_key_is_read_from_the_leader_and_kept() {
    let leader = TestServer::start_with(copying(None));
    let follower = TestServer::start_with(copying(Some(&leader)));
    for reads in ["leader", "own-writes"] {
        let mut settings = settings();
        settings.server.threads = 1;
        let text = format!(
            "hot_keys = {{ reads_per_second = 50, cache = \"30s\" }}\n[pools.main]\ntimeout = \"20s\"\n\
             reads = \"{reads}\"\n[pools.main.groups]\ng = [\"{}\", \"{}\"]",
            leader.address(),
            follower.address()
        );
        settings.proxy = Some(Mode {
            proxy: parse(&text).unwrap(),
            file: None,
        });
        let proxy = TestServer::start_with(settings);
        let mut client = proxy.connect();
        let asked = || gets(&leader) + gets(&follower);
        let before = asked();
        for number in 0..5 {
            let value = format!("{number}");
            write(&mut client, "hot", &value);
            let one = format!("VALUE hot 0 1\r\n{value}\r\nEND\r\nVA 1\r\n{value}\r\n");
            for _ in 0..20 {
                client.ask("get hot\r\nmg hot v\r\n".repeat(10), one.repeat(10));
            }
        }
        let asked = asked() - before;
        assert!(asked < 1000, "{reads}: {asked} of 2000");
    }
}

/// Reads are shared with the followers, as far as the policy allows.
#[test]
fn reads_go_where_the_policy_says() {
    let leader = TestServer::start_with(copying(None));
    let follower = TestServer::start_with(copying(Some(&leader)));
    let nodes = [leader.address(), follower.address()];
    let with = |reads: &str| proxy_before(&nodes, &format!("reads = \"{reads}\""));
    write(&mut leader.connect(), "k", "x");
    arrives(&follower, "k", "x");

    let before = gets(&follower);
    let plain = with("leader");
    let mut client = plain.connect();
    for _ in 0..50 {
        assert_eq!(read(&mut client, "k").as_deref(), Some("x"));
    }
    assert_eq!(gets(&follower), before);

    for policy in ["any", "5s", "own-writes"] {
        let shared = with(policy);
        is_asked(&follower, 10, || {
            let mut client = shared.connect();
            for _ in 0..50 {
                assert_eq!(read(&mut client, "k").as_deref(), Some("x"));
            }
        });
    }

    let own = with("own-writes");
    let mut client = own.connect();
    for number in 0..200 {
        let value = format!("{number}");
        write(&mut client, "k", &value);
        assert_eq!(read(&mut client, "k"), Some(value));
    }
}

/// A group that registers itself comes onto the ring; what has been written before is found still, and
/// moves.
#[test]
fn a_new_group_comes_onto_the_ring() {
    let gateway = Gateway::start();
    let first = alone(&gateway, "a", "g1");
    let proxy = proxy_of(&gateway, "");
    let mut client = proxy.connect();
    for number in 0..100 {
        write(&mut client, &format!("k{number}"), &format!("v{number}"));
    }
    for number in 0..30 {
        client.ask(format!("set t{number} 0 500 1\r\nx\r\n"), "STORED\r\n");
    }
    let second = TestServer::start_with(elected(&gateway, "b", "g2"));
    eventually("the new group gets what is written", || {
        for number in 100..120 {
            write(&mut client, &format!("k{number}"), &format!("v{number}"));
        }
        stat(&second, "curr_items") != "0"
    });
    for number in 0..120 {
        let (key, value) = (format!("k{number}"), format!("v{number}"));
        assert_eq!(read(&mut client, &key), Some(value), "{key}");
    }
    let keys: Vec<String> = (0..120).map(|number| format!("k{number}")).collect();
    client.send(format!("get {}\r\n", keys.join(" ")));
    for number in 0..120 {
        let key = format!("k{number}");
        client.expect(format!("VALUE {key} 0 {}\r\nv{number}\r\n", key.len()));
    }
    client.expect("END\r\n");
    eventually("what was read has moved", || {
        stat(&second, "curr_items").parse::<u32>().unwrap() > 30
    });
    // What is brought over lives no longer than it would have.
    let mortal: Vec<String> = (0..30).map(|number| format!("t{number}")).collect();
    for key in &mortal {
        assert_eq!(read(&mut client, key).as_deref(), Some("x"));
    }
    let mut there = second.connect();
    eventually("some have moved", || {
        let mut lives = Vec::new();
        for key in &mortal {
            there.send(format!("mg {key} t\r\n"));
            let line = there.line();
            lives.extend(
                line.strip_prefix("HD t")
                    .map(|life| life.parse::<i32>().unwrap()),
            );
        }
        assert!(
            lives.iter().all(|life| (1..=500).contains(life)),
            "{lives:?}"
        );
        lives.len() > 5
    });
    there.send("mg k0 t\r\n");
    let line = there.line();
    assert!(["EN", "HD t-1"].contains(&&*line), "{line}");
    // A delete reaches both places.
    for key in keys.iter().chain(&mortal) {
        client.ask(format!("delete {key}\r\n"), "DELETED\r\n");
        assert_eq!(read(&mut client, key), None);
    }
    eventually("nothing is left where it was", || {
        stat(&first, "curr_items") == "0"
    });
}

/// One key whose value is a number that rises, and when each was written.
struct Versions {
    client: Client<TcpStream>,
    written: Vec<Instant>,
}

impl Versions {
    fn write(&mut self) {
        let version = self.written.len();
        write(&mut self.client, "k", &version.to_string());
        self.written.push(Instant::now());
    }

    /// What whoever reads gets at least who is this far behind.
    fn least(&self, behind: Duration) -> usize {
        let old = |written: &&Instant| written.elapsed() >= behind;
        self.written.iter().filter(old).count().saturating_sub(1)
    }
}

fn version(client: &mut Client<TcpStream>) -> usize {
    read(client, "k").map_or(0, |value| value.parse().unwrap())
}

/// A follower that is always behind is read from as far as the policy allows, and no further.
#[test]
fn followers_that_are_behind_are_read_as_far_as_the_policy_allows() {
    let leader = TestServer::start_with(copying(None));
    let way = Faults::before(leader.copies_address());
    let follower = TestServer::start_with(copying_from(way.address()));
    let nodes = [leader.address(), follower.address()];
    let with = |reads: &str| proxy_before(&nodes, &format!("reads = \"{reads}\""));
    let mut versions = Versions {
        client: leader.connect(),
        written: Vec::new(),
    };
    versions.write();
    arrives(&follower, "k", "0");
    way.delay(Duration::from_millis(300));

    // Any: it is seen that it is behind.
    let any = with("any");
    let mut client = any.connect();
    eventually("what is older is read, too", || {
        versions.write();
        (0..20).any(|_| version(&mut client) + 1 < versions.written.len())
    });

    let strict = with("leader");
    let mut client = strict.connect();
    for _ in 0..50 {
        versions.write();
        assert_eq!(version(&mut client) + 1, versions.written.len());
    }

    // Bounded: whoever reads gets what was written so long ago at least, and followers are asked.
    let bound = Duration::from_secs(2);
    let bounded = with("2s");
    let mut client = bounded.connect();
    is_asked(&follower, 20, || {
        versions.write();
        for _ in 0..20 {
            let least = versions.least(bound);
            let version = version(&mut client);
            assert!(version >= least, "{version} of {least}");
        }
    });
    // When it is too far behind, it is not.
    way.delay(Duration::from_secs(5));
    let since = Instant::now();
    while since.elapsed() < bound + Duration::from_millis(500) {
        versions.write();
        let least = versions.least(bound);
        let version = version(&mut client);
        assert!(version >= least, "{version} of {least}");
        std::thread::sleep(Duration::from_millis(5));
    }
    way.delay(Duration::from_millis(300));
    // What was late has to pass, or be given up.
    way.cut();

    // Own writes: whoever writes reads that, and once the follower has it, from there as well.
    let own = with("own-writes");
    let mut client = own.connect();
    let mut number = 0;
    eventually("the follower is asked by who has written", || {
        number += 1;
        let value = number.to_string();
        write(&mut client, "own", &value);
        let (since, before) = (Instant::now(), gets(&follower));
        while since.elapsed() < Duration::from_millis(1500) && gets(&follower) < before + 10 {
            assert_eq!(read(&mut client, "own").as_ref(), Some(&value));
        }
        gets(&follower) >= before + 10
    });
}

/// A follower that has restarted is not read from before it has everything again.
#[test]
fn a_follower_that_begins_anew_is_not_read() {
    let leader = TestServer::start_with(copying(None));
    let way = Faults::before(leader.copies_address());
    let behind = |port: i32| {
        let mut settings = copying_from(way.address());
        settings.listen.tcp_port = port;
        settings
    };
    let follower = TestServer::start_with(behind(-1));
    let address = follower.address();
    let nodes = [leader.address(), address];
    let proxies = ["any", "5s", "own-writes"].map(|reads| {
        proxy_before(
            &nodes,
            &format!("reads = \"{reads}\"\nhealth = {{ failures = 1000 }}"),
        )
    });
    write(&mut leader.connect(), "k", "x");
    arrives(&follower, "k", "x");
    let mut clients = proxies.each_ref().map(TestServer::connect);
    for client in &mut clients {
        is_asked(&follower, 1, || {
            for _ in 0..20 {
                assert_eq!(read(client, "k").as_deref(), Some("x"));
            }
        });
    }
    way.down(true);
    drop(follower);
    let follower = TestServer::start_with(behind(address.port().into()));
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(700) {
        for client in &mut clients {
            client.send("get k\r\n");
            match &*client.line() {
                // The connection that the request was on has ended.
                line if line.starts_with("SERVER_ERROR ") => continue,
                "VALUE k 0 1" => client.expect("x\r\nEND\r\n"),
                other => panic!("{other}"),
            }
        }
    }
    assert_eq!(gets(&follower), 0, "it has nothing yet");
    way.down(false);
    for client in &mut clients {
        is_asked(&follower, 1, || {
            for _ in 0..20 {
                assert_eq!(read(client, "k").as_deref(), Some("x"));
            }
        });
    }
}

/// While etcd does not answer, groups and nodes stay; what has come meanwhile is seen afterwards.
#[test]
fn without_etcd_groups_stay() {
    let gateway = Gateway::start();
    let first = alone(&gateway, "a", "g1");
    let proxy = proxy_of(&gateway, "");
    let mut client = proxy.connect();
    write(&mut client, "k", "one");
    gateway.set_deaf(true);
    gateway.end_watches();
    // Alone it needs nobody's word but its own to go on.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(1500) {
        assert_eq!(read(&mut client, "k").as_deref(), Some("one"));
        client.ask("set k 0 0 3\r\none\r\n", "STORED\r\n");
        std::thread::sleep(Duration::from_millis(10));
    }
    gateway.set_deaf(false);
    let second = TestServer::start_with(elected(&gateway, "b", "g2"));
    eventually("the new group gets what is written", || {
        for number in 0..20 {
            write(&mut client, &format!("k{number}"), "x");
        }
        stat(&second, "curr_items") != "0"
    });
    drop(first);
}

/// A group comes onto the ring while everything is written, read and deleted: nobody reads what is
/// older than what has been acknowledged, wherever it is at the time.
#[test]
fn keys_move_while_they_are_written() {
    const CLIENTS: usize = 4;
    const KEYS: usize = 40;
    let gateway = Gateway::start();
    let _first = alone(&gateway, "a", "g1");
    let proxy = proxy_of(&gateway, "warm_ttl = \"1m\"");
    write(&mut proxy.connect(), "k", "x");
    let over = AtomicBool::new(false);
    let mut moved = 0;
    let rounds: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (over, proxy) = (&over, &proxy);
                scope.spawn(move || change_and_read(proxy, number, KEYS, over))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200));
        let second = TestServer::start_with(elected(&gateway, "b", "g2"));
        let found = eventually_or_panic(|| stat(&second, "curr_items") != "0", &over);
        // For as long again as it has taken so far.
        std::thread::sleep(Duration::from_millis(500));
        moved = gets(&second);
        over.store(true, Ordering::SeqCst);
        let rounds = clients.into_iter().map(|client| client.join().unwrap());
        let rounds = rounds.sum();
        assert!(found, "the new group gets keys");
        rounds
    });
    assert!(rounds > CLIENTS * KEYS && moved > 0, "{rounds} {moved}");
}

/// As [`eventually`], but lets those who are waited for end first.
fn eventually_or_panic(mut holds: impl FnMut() -> bool, over: &AtomicBool) -> bool {
    let since = Instant::now();
    while !holds() {
        if since.elapsed() > Duration::from_secs(30) {
            over.store(true, Ordering::SeqCst);
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// One client with keys of its own. How many it has changed.
fn change_and_read(proxy: &TestServer, number: usize, keys: usize, over: &AtomicBool) -> usize {
    let mut client = proxy.connect();
    let mut values: Vec<Option<String>> = vec![None; keys];
    let mut rounds = 0;
    while !over.load(Ordering::SeqCst) {
        let at = rounds % keys;
        let key = format!("m{number}-{at}");
        let held = read(&mut client, &key);
        assert_eq!(held, values[at], "{key} before round {rounds}");
        // The end of one life must not bring back what was there before it.
        let value = match rounds / keys % 5 {
            3 => {
                client.send(format!("delete {key}\r\n"));
                client.line();
                None
            }
            2 => {
                let value = format!("{rounds}");
                client.send(format!("set {key} 0 -1 {}\r\n{value}\r\n", value.len()));
                assert_eq!(client.line(), "STORED");
                None
            }
            1 if values[at].is_some() => {
                client.send(format!("incr {key} 1\r\n"));
                let next = values[at].as_ref().unwrap().parse::<u64>().unwrap() + 1;
                assert_eq!(client.line(), next.to_string(), "{key}");
                Some(next.to_string())
            }
            _ => {
                let value = format!("{rounds}");
                client.send(format!("set {key} 0 0 {}\r\n{value}\r\n", value.len()));
                assert_eq!(client.line(), "STORED");
                Some(value)
            }
        };
        assert_eq!(read(&mut client, &key), value, "{key} in round {rounds}");
        values[at] = value;
        rounds += 1;
    }
    rounds
}

/// A proxy starts while etcd does not answer, or knows of nobody, and goes on when there are groups; and so does
/// a node.
#[test]
fn without_etcd_all_start() {
    let gateway = Gateway::start();
    gateway.set_deaf(true);
    let proxy = proxy_of(&gateway, "reads = \"own-writes\"");
    let mut client = proxy.connect();
    let unknown = "SERVER_ERROR a group (none is known yet) cannot be reached\r\n";
    let long = "x".repeat(50_000);
    for round in 0..3 {
        client.ask("set k 0 0 1\r\nx\r\n", unknown);
        client.ask("get k\r\n", unknown);
        client.ask("get k l\r\nmg k v\r\nma k\r\n", unknown.repeat(3));
        client.ask("touch k 0\r\ndelete k\r\n", unknown.repeat(2));
        client.ask(format!("set k 0 0 50000\r\n{long}\r\n"), unknown);
        client.ask("flush_all\r\n", unknown);
        client.ask("version\r\n", "VERSION 1.6.45\r\n");
        // Then it answers, and knows of nobody.
        gateway.set_deaf(round == 0);
    }
    gateway.set_deaf(true);
    let node = TestServer::start_with(elected(&gateway, "a", "g1"));
    let mut direct = node.connect();
    direct.ask("get k\r\n", "END\r\n");
    direct.ask("set k 0 0 1\r\nx\r\n", "SERVER_ERROR not leader\r\n");
    gateway.set_deaf(false);
    write(&mut client, "k", "x");
    assert_eq!(read(&mut client, "k").as_deref(), Some("x"));
    client.ask("flush_all\r\nget k\r\n", "OK\r\nEND\r\n");
    drop(node);
}
