//! Nodes of a group within the test's own process, with or without something that speaks as etcd does.
#![allow(dead_code)]

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use larder::settings::proxy::{Mode, parse};
use larder::settings::{Election, Etcd, Journal, Settings};

use crate::common::{Client, TestServer, settings};
use crate::gateway::Gateway;

/// How long a test waits for what takes a moment.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node that leads, or one that follows another.
pub fn copying(follow: Option<&TestServer>) -> Settings {
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

/// One that follows whoever is reached there.
pub fn copying_from(address: SocketAddr) -> Settings {
    let mut settings = copying(None);
    settings.replication.follow = Some(address.to_string());
    settings
}

/// A proxy with this configuration, which keeps no hot keys: tests read one key again and again, and see
/// who is asked.
pub fn proxy(text: &str) -> TestServer {
    let mut settings = settings();
    let text = format!("hot_keys = false\n[defaults]\ntimeout = \"20s\"\n{text}");
    settings.proxy = Some(Mode {
        proxy: parse(&text).unwrap(),
        file: None,
    });
    TestServer::start_with(settings)
}

/// In front of one group of these nodes. `more` says more of the pool, a line for each thing.
pub fn proxy_before(nodes: &[SocketAddr], more: &str) -> TestServer {
    let nodes: Vec<_> = nodes.iter().map(|node| format!("\"{node}\"")).collect();
    let nodes = nodes.join(", ");
    proxy(&format!(
        "[pools.main]\n{more}\n[pools.main.groups]\ng = [{nodes}]"
    ))
}

/// In front of the groups that register themselves, which get their keys soon.
pub fn proxy_of(gateway: &Gateway, more: &str) -> TestServer {
    let url = gateway.url();
    proxy(&format!(
        "[pools.main]\nsettle = \"300ms\"\n{more}\netcd = {{ endpoints = [\"{url}\"] }}"
    ))
}

/// A node of this name among those that a leader is chosen from.
pub fn elected(gateway: &Gateway, name: &str, group: &str) -> Settings {
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

/// The only node of a group, once it leads.
pub fn alone(gateway: &Gateway, name: &str, group: &str) -> TestServer {
    let node = TestServer::start_with(elected(gateway, name, group));
    let leads = format!("/larder/larder/g/{group}/leader");
    eventually("the node is registered", || {
        gateway.with(|store| store.value(&leads).is_some())
    });
    node
}

#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Tries to write until that works; replies before that are refusals.
pub fn write(client: &mut Client<TcpStream>, key: &str, value: &str) {
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

pub fn read(client: &mut Client<TcpStream>, key: &str) -> Option<String> {
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

/// One value of `stats`, or of those of this name.
pub fn stat(client: &mut Client<TcpStream>, what: &str, name: &str) -> Option<String> {
    client.send(format!("stats {what}\r\n").replace(" \r", "\r"));
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

/// Gets that a node has been asked for.
pub fn gets(node: &TestServer) -> u64 {
    let count = stat(&mut node.connect(), "", "cmd_get");
    count.expect("shown").parse().expect("a number")
}

/// Waits until a node has an item.
pub fn arrives(node: &TestServer, key: &str, value: &str) {
    eventually("the node has it", || {
        read(&mut node.connect(), key).as_deref() == Some(value)
    });
}

/// Waits until a node has been asked for so many more than it was.
pub fn is_asked(node: &TestServer, more: u64, mut ask: impl FnMut()) {
    let before = gets(node);
    eventually("the node is asked", || {
        ask();
        gets(node) >= before + more
    });
}

/// One value of `stats replication`.
pub fn told(client: &mut Client<TcpStream>, name: &str) -> Option<String> {
    stat(client, "replication", name)
}

pub fn is(client: &mut Client<TcpStream>, name: &str, value: &str) -> bool {
    told(client, name).as_deref() == Some(value)
}

/// Waits until so many nodes are in sync, the leader among them, whose client this is.
pub fn in_sync(client: &mut Client<TcpStream>, count: usize) {
    eventually("all are in sync", || {
        told(client, "in_sync_names").is_some_and(|names| names.split(' ').count() == count)
    });
}
