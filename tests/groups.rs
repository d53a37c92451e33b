//! Groups of nodes behind a proxy: who is asked, who leads, who comes.

mod common;
#[path = "common/gateway.rs"]
mod gateway;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Client, TestServer, settings};
use gateway::Gateway;
use larder::settings::proxy::{Mode, parse};
use larder::settings::{Election, Etcd, Journal, Settings};

/// How long a test waits for what takes a moment.
const PATIENCE: Duration = Duration::from_secs(30);

fn copying(follow: Option<&TestServer>) -> Settings {
    let mut settings = settings();
    settings.store.journal = Some(Journal {
        ring_bytes: 16 << 20,
        follower: true,
    });
    settings.replication.listen = Some("127.0.0.1:0".to_owned());
    settings.replication.recover_ms = 0;
    settings.replication.follow = follow.map(|leader| leader.copies_address().to_string());
    settings
}

fn elected(gateway: &Gateway, name: &str, group: &str) -> Settings {
    let mut settings = copying(None);
    settings.replication.election = Some(Election {
        etcd: Etcd {
            endpoints: vec![gateway.url()],
            ..Etcd::default()
        },
        node: name.to_owned(),
        group: group.to_owned(),
        advertise: None,
        repl_advertise: None,
        ttl_ms: 2000,
    });
    settings
}

fn proxy(text: &str) -> TestServer {
    let mut settings = settings();
    let text = format!("[defaults]\ntimeout = \"20s\"\n{text}");
    settings.proxy = Some(Mode {
        proxy: parse(&text).unwrap(),
        file: None,
    });
    TestServer::start_with(settings)
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn write(client: &mut Client<TcpStream>, key: &str, value: &str) {
    eventually("a write goes through", || {
        client.send(format!("set {key} 0 0 {}\r\n{value}\r\n", value.len()));
        let reply = client.line();
        assert!(
            reply == "STORED" || reply.starts_with("SERVER_ERROR "),
            "{reply}"
        );
        reply == "STORED"
    });
}

fn read(client: &mut Client<TcpStream>, key: &str) -> Option<String> {
    client.send(format!("get {key}\r\n"));
    let mut value = None;
    loop {
        let line = client.line();
        match &*line {
            "END" => return value,
            head if head.starts_with("VALUE ") => value = Some(client.line()),
            other => panic!("{other}"),
        }
    }
}

fn stat(server: &TestServer, what: &str, name: &str) -> String {
    let mut client = server.connect();
    client.send(format!("stats{what}\r\n"));
    let mut found = String::new();
    loop {
        let line = client.line();
        if line == "END" {
            return found;
        }
        let mut words = line.splitn(3, ' ').skip(1);
        if words.next() == Some(name) {
            found = words.next().unwrap_or_default().to_owned();
        }
    }
}

/// Writes find the leader, whoever it is; reads find a follower while there is none.
#[test]
fn the_leader_is_found_and_followed() {
    let leader = TestServer::start_with(copying(None));
    let follower = TestServer::start_with(copying(Some(&leader)));
    // In the wrong order.
    let nodes = [follower.address(), leader.address()];
    let proxy = proxy(&format!(
        "[pools.main]\nhealth = {{ failures = 1 }}\n[pools.main.groups]\ng = [\"{}\", \"{}\"]",
        nodes[0], nodes[1]
    ));
    let mut client = proxy.connect();
    write(&mut client, "k", "one");
    assert_eq!(read(&mut client, "k").as_deref(), Some("one"));
    eventually("the follower has it", || {
        read(&mut follower.connect(), "k").is_some()
    });
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

/// Reads are shared with the followers, as far as the policy allows.
#[test]
fn reads_go_where_the_policy_says() {
    let leader = TestServer::start_with(copying(None));
    let follower = TestServer::start_with(copying(Some(&leader)));
    let nodes = format!("g = [\"{}\", \"{}\"]", leader.address(), follower.address());
    let with = |reads: &str| {
        proxy(&format!(
            "[pools.main]\nreads = \"{reads}\"\n[pools.main.groups]\n{nodes}"
        ))
    };
    let asked = || -> u64 { stat(&follower, "", "cmd_get").parse().unwrap() };
    let mut direct = leader.connect();
    direct.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    eventually("the follower has it", || {
        read(&mut follower.connect(), "k").is_some()
    });

    let before = asked();
    let plain = with("leader");
    let mut client = plain.connect();
    for _ in 0..50 {
        assert_eq!(read(&mut client, "k").as_deref(), Some("x"));
    }
    assert_eq!(asked(), before);

    for policy in ["any", "5s", "own-writes"] {
        let shared = with(policy);
        let before = asked();
        eventually("the follower is asked, too", || {
            let mut client = shared.connect();
            for _ in 0..50 {
                assert_eq!(read(&mut client, "k").as_deref(), Some("x"));
            }
            let half = asked() - before;
            half > 10
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
    let first = TestServer::start_with(elected(&gateway, "a", "g1"));
    eventually("the node is registered", || {
        gateway.with(|store| store.value("/larder/larder/g/g1/leader").is_some())
    });
    let proxy = proxy(&format!(
        "[pools.main]\netcd = {{ endpoints = [\"{}\"] }}",
        gateway.url()
    ));
    let mut client = proxy.connect();
    for number in 0..100 {
        write(&mut client, &format!("k{number}"), &format!("v{number}"));
    }
    let second = TestServer::start_with(elected(&gateway, "b", "g2"));
    eventually("the new group gets what is written", || {
        for number in 100..120 {
            write(&mut client, &format!("k{number}"), &format!("v{number}"));
        }
        stat(&second, "", "curr_items") != "0"
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
        stat(&second, "", "curr_items").parse::<u32>().unwrap() > 30
    });
    // A delete reaches both places.
    for key in &keys {
        client.ask(format!("delete {key}\r\n"), "DELETED\r\n");
        assert_eq!(read(&mut client, key), None);
    }
    eventually("nothing is left where it was", || {
        stat(&first, "", "curr_items") == "0"
    });
}
