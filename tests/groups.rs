//! Groups of nodes behind a proxy: who is asked, who leads, who comes.

mod common;
#[path = "common/gateway.rs"]
mod gateway;

#[path = "common/group.rs"]
mod group;

use common::{TestServer, settings};
use gateway::Gateway;
use group::{copying, elected, eventually, read, write};
use larder::settings::proxy::{Mode, parse};

fn proxy(text: &str) -> TestServer {
    let mut settings = settings();
    let text = format!("[defaults]\ntimeout = \"20s\"\n{text}");
    settings.proxy = Some(Mode {
        proxy: parse(&text).unwrap(),
        file: None,
    });
    TestServer::start_with(settings)
}

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
    let asked = || -> u64 { stat(&follower, "cmd_get").parse().unwrap() };
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
    // A delete reaches both places.
    for key in &keys {
        client.ask(format!("delete {key}\r\n"), "DELETED\r\n");
        assert_eq!(read(&mut client, key), None);
    }
    eventually("nothing is left where it was", || {
        stat(&first, "curr_items") == "0"
    });
}
