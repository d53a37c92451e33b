//! Groups whose leader is chosen with the help of a service that speaks as etcd does: whole servers,
//! over real sockets.

mod common;
#[path = "common/gateway.rs"]
mod gateway;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Client, TestServer, settings};
use gateway::Gateway;
use larder::settings::{Ack, Election, Etcd, Journal, Settings};

/// How long a test waits for what takes a moment.
const PATIENCE: Duration = Duration::from_secs(30);

fn node(gateway: &Gateway, name: &str) -> Settings {
    let mut settings = settings();
    settings.store.journal = Some(Journal {
        ring_bytes: 16 << 20,
        follower: true,
    });
    settings.replication.listen = Some("127.0.0.1:0".to_owned());
    settings.replication.recover_ms = 0;
    settings.replication.election = Some(Election {
        etcd: Etcd {
            endpoints: vec![gateway.url()],
            ..Etcd::default()
        },
        node: name.to_owned(),
        group: "g".to_owned(),
        advertise: None,
        repl_advertise: None,
        ttl_ms: 2000,
    });
    settings
}

fn told(client: &mut Client<TcpStream>, name: &str) -> Option<String> {
    client.send("stats replication\r\n");
    let mut found = None;
    loop {
        let line = client.line();
        if line == "END" {
            return found;
        }
        let mut words = line.splitn(3, ' ').skip(1);
        if words.next() == Some(name) {
            found = words.next().map(str::to_owned);
        }
    }
}

fn is(client: &mut Client<TcpStream>, name: &str, value: &str) -> bool {
    told(client, name).as_deref() == Some(value)
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Tries to write until that works; the reply before that is always the same.
fn write(client: &mut Client<TcpStream>, key: &str) {
    eventually("a mutation is taken", || {
        client.send(format!("set {key} 0 0 1\r\nx\r\n"));
        let reply = client.line();
        assert!(
            reply == "STORED" || reply == "SERVER_ERROR not leader",
            "{reply}"
        );
        reply == "STORED"
    });
}

fn in_sync(client: &mut Client<TcpStream>, count: usize) {
    eventually("all are in sync", || {
        told(client, "in_sync_names").is_some_and(|names| names.split(' ').count() == count)
    });
}

/// One leads, the others have what it has; when it goes another leads, with everything, in a later
/// epoch; and whoever comes back follows.
#[test]
fn another_leads_when_the_leader_goes() {
    let gateway = Gateway::start();
    let first = TestServer::start_with(node(&gateway, "a"));
    let mut client = first.connect();
    write(&mut client, "one");
    let second = TestServer::start_with(node(&gateway, "b"));
    let third = TestServer::start_with(node(&gateway, "c"));
    in_sync(&mut client, 3);
    write(&mut client, "two");
    let epoch: u64 = told(&mut client, "epoch").unwrap().parse().unwrap();
    client.send("repl promote\r\n");
    client.expect("CLIENT_ERROR this node leads already\r\n");
    let mut others = [second.connect(), third.connect()];
    for other in &mut others {
        for refused in ["repl promote\r\n", "repl follow 127.0.0.1:1\r\n"] {
            other.send(refused);
            let line = other.line();
            assert!(line.starts_with("SERVER_ERROR etcd decides"), "{line}");
        }
    }
    drop(first);
    eventually("another leads", || {
        others.iter_mut().any(|other| is(other, "role", "leader"))
    });
    let leader = others
        .iter_mut()
        .position(|other| is(other, "role", "leader"));
    let leader = &mut others[leader.unwrap()];
    write(leader, "three");
    assert!(told(leader, "epoch").unwrap().parse::<u64>().unwrap() > epoch);
    leader.ask(
        "get one two three\r\n",
        "VALUE one 0 1\r\nx\r\nVALUE two 0 1\r\nx\r\nVALUE three 0 1\r\nx\r\nEND\r\n",
    );
    let back = TestServer::start_with(node(&gateway, "a"));
    let mut client = back.connect();
    in_sync(leader, 3);
    assert!(is(&mut client, "role", "follower"));
    client.ask("set k 0 0 1\r\nx\r\n", "SERVER_ERROR not leader\r\n");
}

/// Writes for twice as long as a lease lasts while etcd does not answer. Whether all was taken, in one
/// reign.
fn holds_without_etcd(gateway: &Gateway, client: &mut Client<TcpStream>) -> bool {
    in_sync(client, 2);
    let epoch = told(client, "epoch");
    gateway.set_deaf(true);
    let since = Instant::now();
    let (mut number, mut refused) = (0, 0);
    while since.elapsed() < Duration::from_secs(4) {
        number += 1;
        client.send(format!("set k{number} 0 0 1\r\nx\r\n"));
        refused += u32::from(client.line() != "STORED");
    }
    eventually("etcd is missed", || is(client, "etcd_reached", "0"));
    gateway.set_deaf(false);
    eventually("etcd is there again", || is(client, "etcd_reached", "1"));
    write(client, "two");
    refused == 0 && told(client, "epoch") == epoch
}

/// Without etcd everything goes on as long as the copies vouch for the leader, under two-phase commit
/// as well; when one stops to, the leader does.
#[test]
fn copies_that_vouch_are_as_good_as_a_lease() {
    let gateway = Gateway::start();
    let with = |name| {
        let mut settings = node(&gateway, name);
        settings.replication.ack = Ack::TwoPhase;
        settings
    };
    let first = TestServer::start_with(with("a"));
    let mut client = first.connect();
    write(&mut client, "one");
    let second = TestServer::start_with(with("b"));
    in_sync(&mut client, 2);
    // Whoever does not run for two seconds cannot vouch: on a machine that slow it is tried again.
    let held = (0..5).any(|_| holds_without_etcd(&gateway, &mut client));
    assert!(held, "nobody else has led, and everything was taken");
    let epoch = told(&mut client, "epoch");
    let fenced: u32 = told(&mut client, "fenced").unwrap().parse().unwrap();

    in_sync(&mut client, 2);
    gateway.set_deaf(true);
    drop(second);
    eventually("it is fenced", || {
        told(&mut client, "fenced").unwrap().parse::<u32>().unwrap() > fenced
    });
    client.ask("set k 0 0 1\r\nx\r\n", "SERVER_ERROR not leader\r\n");
    client.ask("get one\r\n", "VALUE one 0 1\r\nx\r\nEND\r\n");
    gateway.set_deaf(false);
    write(&mut client, "three");
    assert_ne!(told(&mut client, "epoch"), epoch, "it was chosen again");
}

/// All nodes have gone and one comes back under its name: it is known that nobody has the items.
#[test]
fn a_group_that_has_gone_begins_again() {
    let gateway = Gateway::start();
    for _ in 0..2 {
        let only = TestServer::start_with(node(&gateway, "a"));
        let mut client = only.connect();
        client.ask("get k\r\n", "END\r\n");
        write(&mut client, "k");
        drop(only);
    }
    // Another name does not say that; an operator can.
    let other = TestServer::start_with(node(&gateway, "b"));
    let mut client = other.connect();
    eventually("etcd is read", || is(&mut client, "leader_name", "none"));
    client.ask("set k 0 0 1\r\nx\r\n", "SERVER_ERROR not leader\r\n");
    client.send("repl promote --force\r\n");
    let line = client.line();
    assert!(line.starts_with("OK it stands"), "{line}");
    write(&mut client, "k");
}
