//! Groups whose leader is chosen with the help of a service that speaks as etcd does: whole servers,
//! over real sockets.

mod common;
#[path = "common/gateway.rs"]
mod gateway;

#[path = "common/group.rs"]
mod group;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Client, TestServer};
use gateway::Gateway;
use group::{elected, eventually, in_sync, is, told};
use larder::settings::{Ack, Settings};

fn node(gateway: &Gateway, name: &str) -> Settings {
    elected(gateway, name, "g")
}

/// Tries to write until that works.
fn write(client: &mut Client<TcpStream>, key: &str) {
    group::write(client, key, "x");
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
    // Nor is anything read: another may lead by now, and have changed it.
    for request in [
        "set k 0 0 1\r\nx\r\n",
        "get one\r\n",
        "gets one two\r\n",
        "gat 0 one\r\n",
        "mg one v\r\n",
    ] {
        client.ask(request, "SERVER_ERROR not leader\r\n");
    }
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
    gateway.set_deaf(false);
    write(&mut client, "three");
    assert_ne!(told(&mut client, "epoch"), epoch, "it was chosen again");
    client.ask("get one\r\n", "VALUE one 0 1\r\nx\r\nEND\r\n");
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

/// With a copy asked for, nothing is taken without one, and what is refused for that has not been done.
#[test]
fn too_few_in_sync_take_nothing() {
    let gateway = Gateway::start();
    let with = |name| {
        let mut settings = node(&gateway, name);
        settings.replication.ack = Ack::TwoPhase;
        settings.replication.min_isr = 2;
        settings
    };
    let first = TestServer::start_with(with("a"));
    let mut client = first.connect();
    eventually("it leads", || is(&mut client, "role", "leader"));
    let too_few = "SERVER_ERROR not enough copies in sync\r\n";
    client.ask("set k 0 0 1\r\nx\r\n", too_few);
    client.ask("ms k 1\r\nx\r\n", too_few);
    client.ask("delete k\r\n", too_few);
    let second = TestServer::start_with(with("b"));
    write(&mut client, "k");
    in_sync(&mut client, 2);
    client.ask("get k\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n");
    drop(second);
    eventually("nothing is taken", || {
        // The outcome of what waited for the copy's vote is unknown, and ends the connection.
        let mut client = first.connect();
        client.send("set k 0 0 1\r\ny\r\n");
        format!("{}\r\n", client.line()) == too_few
    });
    client.send("get k\r\n");
    let line = client.line();
    assert_eq!(line, "VALUE k 0 1", "what is there is read");
    client.line();
    client.expect("END\r\n");
    let _back = TestServer::start_with(with("b"));
    write(&mut client, "k");
}
