//! `reads = "own-writes"`: who writes behind a proxy reads that, and from followers where they have it.

mod common;
#[path = "failures/faults.rs"]
#[allow(dead_code)]
mod faults;
#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/group.rs"]
mod group;

use std::net::TcpStream;
use std::time::Duration;

use common::binary::Packet;
use common::{Client, TestServer};
use faults::Faults;
use group::{
    arrives, copying, copying_from, eventually, gets, is_asked, proxy_before, read, write,
};
use larder::store::journal;

/// How far a follower is behind that is behind.
const BEHIND: Duration = Duration::from_millis(400);

const SET: u8 = 0x01;
const GETK: u8 = 0x0c;

fn proxy(nodes: &[&TestServer]) -> TestServer {
    let nodes: Vec<_> = nodes.iter().map(|node| node.address()).collect();
    proxy_before(&nodes, "reads = \"own-writes\"")
}

/// A key like this one in another partition.
fn elsewhere(key: &str) -> String {
    let partition = |key: &str| journal::partition(journal::place(key.as_bytes()));
    let mut keys = (0..).map(|number| format!("{key}{number}"));
    keys.find(|other| partition(other) != partition(key))
        .unwrap()
}

/// A leader, a follower behind a connection that can be slow, and a proxy.
struct Group {
    leader: TestServer,
    follower: TestServer,
    way: Faults,
    proxy: TestServer,
}

impl Group {
    fn start() -> Group {
        let leader = TestServer::start_with(copying(None));
        let way = Faults::before(leader.copies_address());
        let follower = TestServer::start_with(copying_from(way.address()));
        let proxy = proxy(&[&leader, &follower]);
        Group {
            leader,
            follower,
            way,
            proxy,
        }
    }

    /// Writes directly, and waits until it is everywhere.
    fn has(&self, key: &str, value: &str) {
        write(&mut self.leader.connect(), key, value);
        arrives(&self.follower, key, value);
    }

    /// So many more gets of the follower than there were.
    fn is_asked(&self, more: u64, ask: impl FnMut()) {
        is_asked(&self.follower, more, ask);
    }
}

/// A follower that is behind is asked for what the client has not written, and not for what it has.
#[test]
fn a_follower_that_is_behind_is_asked_for_other_keys() {
    let group = Group::start();
    let other = elsewhere("own");
    group.has(&other, "x");
    group.way.delay(BEHIND);
    let mut client = group.proxy.connect();
    let mut number = 0;
    group.is_asked(20, || {
        for _ in 0..10 {
            number += 1;
            let value = number.to_string();
            write(&mut client, "own", &value);
            assert_eq!(read(&mut client, "own"), Some(value));
            assert_eq!(read(&mut client, &other).as_deref(), Some("x"));
        }
    });
    // Nothing at all was written on this one.
    let mut stranger = group.proxy.connect();
    group.is_asked(5, || {
        assert_eq!(read(&mut stranger, &other).as_deref(), Some("x"));
    });
}

/// As soon as the follower has it, it is asked for what the client has written as well.
#[test]
fn a_follower_that_has_it_is_asked_for_own_writes() {
    let group = Group::start();
    let mut client = group.proxy.connect();
    let mut number = 0;
    group.is_asked(20, || {
        number += 1;
        let value = number.to_string();
        write(&mut client, "own", &value);
        for _ in 0..10 {
            assert_eq!(read(&mut client, "own").as_ref(), Some(&value));
        }
    });
}

/// One write and one read of a client in one dialect; what was read.
type WriteAndRead = fn(&mut Client<TcpStream>, &str) -> String;

fn pipelined(client: &mut Client<TcpStream>, value: &str) -> String {
    client.send(format!(
        "set own 0 0 {}\r\n{value}\r\nget own\r\n",
        value.len()
    ));
    assert_eq!(client.line(), "STORED");
    client.line();
    let value = client.line();
    client.expect("END\r\n");
    value
}

fn unheard(client: &mut Client<TcpStream>, value: &str) -> String {
    client.send(format!(
        "set own 0 0 {} noreply\r\n{value}\r\nmn\r\nget none own\r\n",
        value.len()
    ));
    client.expect("MN\r\n");
    client.line();
    let value = client.line();
    client.expect("END\r\n");
    value
}

fn meta(client: &mut Client<TcpStream>, value: &str) -> String {
    client.send(format!("ms own {}\r\n{value}\r\n", value.len()));
    client.expect("HD\r\n");
    client.send("mg own v\r\n");
    client.line();
    client.line()
}

/// The same key in base64.
fn encoded(client: &mut Client<TcpStream>, value: &str) -> String {
    client.send(format!("ms b3du {} b q\r\n{value}\r\nmn\r\n", value.len()));
    client.expect("MN\r\n");
    client.send("get own\r\n");
    client.line();
    let value = client.line();
    client.expect("END\r\n");
    value
}

fn binary(client: &mut Client<TcpStream>, value: &str) -> String {
    let set = client.call(Packet {
        opcode: SET,
        extras: &[0; 8],
        key: b"own",
        value: value.as_bytes(),
        ..Packet::default()
    });
    assert_eq!(set.status, 0);
    let got = client.call(Packet {
        opcode: GETK,
        key: b"own",
        ..Packet::default()
    });
    String::from_utf8(got.value).unwrap()
}

/// In every dialect, however the requests come: nothing older than what was written is read, be the follower
/// behind or not; and it is asked where it is not.
#[test]
fn nobody_reads_older_than_the_own_write() {
    let group = Group::start();
    group.has("own", "before");
    let dialects: [WriteAndRead; 5] = [pipelined, unheard, meta, encoded, binary];
    for (at, write_and_read) in dialects.into_iter().enumerate() {
        let mut client = group.proxy.connect();
        group.way.delay(BEHIND);
        for number in 0..50 {
            let value = format!("{at}-{number}");
            assert_eq!(write_and_read(&mut client, &value), value);
        }
        group.way.delay(Duration::ZERO);
        group.way.cut();
        let value = format!("{at}-over");
        assert_eq!(write_and_read(&mut client, &value), value);
        group.is_asked(10, || {
            let value = format!("{at}-over");
            match at {
                4 => {
                    let got = client.call(Packet {
                        opcode: GETK,
                        key: b"own",
                        ..Packet::default()
                    });
                    assert_eq!(got.value, value.as_bytes());
                }
                _ => assert_eq!(read(&mut client, "own"), Some(value)),
            }
        });
    }
}

/// What is deleted, flushed or too long to be passed on whole is not read from who still has what was before.
#[test]
fn deletes_flushes_and_long_values_are_own_writes_too() {
    let group = Group::start();
    for round in 0..3 {
        for key in ["a", "b", "c"] {
            group.has(key, "before");
        }
        group.way.delay(BEHIND);
        let mut client = group.proxy.connect();
        client.ask("delete a\r\n", "DELETED\r\n");
        for _ in 0..20 {
            assert_eq!(read(&mut client, "a"), None, "round {round}");
        }
        let long = "x".repeat(100_000 + round);
        write(&mut client, "b", &long);
        for _ in 0..20 {
            assert_eq!(read(&mut client, "b").as_ref(), Some(&long));
        }
        client.ask("flush_all\r\n", "OK\r\n");
        for _ in 0..20 {
            assert_eq!(read(&mut client, "c"), None, "round {round}");
        }
        group.way.delay(Duration::ZERO);
        group.way.cut();
    }
}

/// Another leads: what was written before is read from it, and from its follower in time.
#[test]
fn after_a_failover_the_new_leader_has_it() {
    let leader = TestServer::start_with(copying(None));
    let second = TestServer::start_with(copying(Some(&leader)));
    let third = TestServer::start_with(copying(Some(&leader)));
    let proxy = proxy(&[&leader, &second, &third]);
    let mut client = proxy.connect();
    write(&mut client, "own", "x");
    for node in [&second, &third] {
        arrives(node, "own", "x");
    }
    drop(leader);
    let mut operator = second.connect();
    operator.send("repl promote --force\r\n");
    assert!(operator.line().starts_with("OK epoch"));
    let follow = format!("repl follow {}\r\n", second.copies_address());
    third.connect().ask(follow, "OK\r\n");
    let mut read_own = |value: &str| {
        client.send("get own\r\n");
        let line = client.line();
        if line.starts_with("SERVER_ERROR ") {
            return false;
        }
        assert_eq!(line, format!("VALUE own 0 {}", value.len()));
        assert_eq!(client.line(), value);
        client.expect("END\r\n");
        true
    };
    let before = gets(&third);
    eventually("the new leader's follower is asked", || {
        read_own("x") && gets(&third) > before + 5
    });
    write(&mut client, "own", "yy");
    let before = gets(&third);
    eventually("it is asked for what was written since", || {
        assert_eq!(read(&mut client, "own").as_deref(), Some("yy"));
        gets(&third) > before + 5
    });
}

/// What proxies ask of a node, as it stands on the wire.
#[test]
fn positions_are_told_in_both_dialects() {
    let leader = TestServer::start_with(copying(None));
    let follower = TestServer::start_with(copying(Some(&leader)));
    let mut client = leader.connect();
    write(&mut client, "own", "x");
    let partition = journal::partition(journal::place(b"own"));
    client.send(format!("repl position {partition}\r\n"));
    let line = client.line();
    let words: Vec<_> = line.split(' ').collect();
    assert_eq!((words[0], words.len()), ("POSITION", 3), "{line}");
    let seq: u64 = words[2].parse().unwrap();
    assert!(seq > 0);
    for wrong in ["position 64", "position -1", "position", "positions 1"] {
        client.send(format!("repl {wrong}\r\n"));
        let line = client.line();
        assert!(line.starts_with("CLIENT_ERROR usage: "), "{line}");
    }
    let packet = |words: &'static str| Packet {
        opcode: 0xe0,
        key: words.as_bytes(),
        opaque: 7,
        ..Packet::default()
    };
    let mut binary = leader.connect();
    let all = binary.call(packet("positions"));
    assert_eq!(all.status, 0);
    let all = String::from_utf8(all.value).unwrap();
    let all: Vec<_> = all.split(' ').collect();
    assert_eq!(all[..2], words[..2]);
    assert_eq!(all.len(), 2 + journal::PARTITIONS);
    assert_eq!(all[2 + partition], words[2]);
    let wrong = binary.call(packet("promote"));
    assert_eq!(
        (wrong.status, &*wrong.value),
        (4, &b"Invalid arguments"[..])
    );

    // The follower is as far in the same log.
    eventually("the follower is there", || {
        let mut client = follower.connect();
        client.send("repl positions\r\n");
        let line = client.line();
        let its: Vec<_> = line.split(' ').collect();
        its[1] == words[1] && its[2 + partition].parse::<u64>().unwrap() >= seq
    });
    follower
        .connect()
        .ask("repl position 1\r\n", "SERVER_ERROR not leader\r\n");
    let refused = follower.connect().call(packet("position 1"));
    assert_eq!(
        (refused.status, &*refused.value),
        (0x86, &b"Not leader"[..])
    );

    // Where nothing is copied it is no command, as with memcached.
    let alone = TestServer::start();
    let unknown = alone.connect().call(packet("positions"));
    assert_eq!(
        (unknown.status, &*unknown.value),
        (0x81, &b"Unknown command"[..])
    );
}
