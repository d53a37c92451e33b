//! Several listeners: `-l` with protocols, tags and ports of their own, and the file of ports.

mod common;

use std::net::{Ipv6Addr, SocketAddr, TcpListener};

use common::binary::Packet;
use common::{Client, Program, program};

/// The ports of one kind, in order.
fn ports(server: &Program, kind: &str) -> Vec<u16> {
    server
        .ports()
        .lines()
        .filter_map(|line| line.strip_prefix(kind)?.strip_prefix(": "))
        .map(|port| port.parse().unwrap())
        .collect()
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn each_entry_has_its_own_protocol() {
    let list = "proto[ascii]:127.0.0.1:0,tag[bin]:127.0.0.1:0,proto[binary]:127.0.0.1:0;proto[negotiating]:tag_any_127.0.0.1:0";
    let server = Program::start(&["-p", "-1", "-B", "binary", "-l", list]);
    let ports = ports(&server, "TCP INET");
    assert_eq!(ports.len(), 4, "{}", server.ports());
    let version = Packet {
        opcode: 0x0b,
        ..Packet::default()
    };
    let text = |port| {
        let mut client = Client::to(local(port));
        client.send("version\r\n");
        client
    };
    for port in [ports[0], ports[3]] {
        text(port).expect("VERSION 1.6.45\r\n");
    }
    for port in [ports[1], ports[2]] {
        text(port).expect_end();
    }
    for port in [ports[1], ports[2], ports[3]] {
        assert_eq!(Client::to(local(port)).call(version).value, b"1.6.45");
    }
    let mut client = Client::to(local(ports[0]));
    client.send(version.bytes());
    client.send("\r\n");
    assert_eq!(client.line(), "ERROR");
}

#[test]
fn the_option_may_be_given_several_times() {
    let server = Program::start(&[
        "-p",
        "-1",
        "-l",
        "127.0.0.1",
        "-l",
        " 127.0.0.2",
        "-l",
        "127.0.0.1",
    ]);
    assert_eq!(ports(&server, "TCP INET").len(), 2, "{}", server.ports());
    let port = ports(&server, "TCP INET")[1];
    let mut client = Client::to(SocketAddr::from(([127, 0, 0, 2], port)));
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
}

#[test]
fn ports_of_udp_are_written_down_as_well() {
    let server = Program::start(&["-p", "-1", "-U", "-1", "-l", "127.0.0.1"]);
    assert_eq!(ports(&server, "TCP INET").len(), 1);
    assert_eq!(ports(&server, "UDP INET").len(), 1);
    // Alone, the one of UDP is that of TCP, too.
    let server = Program::start(&["-U", "-1", "-l", "127.0.0.1"]);
    assert_eq!(server.ports().lines().count(), 2, "{}", server.ports());
}

#[test]
fn ipv6_stands_in_brackets_or_alone() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("no IPv6 here: not tested");
        return;
    }
    for entry in ["[::1]:0", "::1", "[::1]"] {
        let server = Program::start(&["-p", "-1", "-l", entry]);
        let port = ports(&server, "TCP INET6")[0];
        let mut client = Client::to(SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
        client.ask("version\r\n", "VERSION 1.6.45\r\n");
        client.send("stats conns\r\n");
        let mut shown = Vec::new();
        while shown.last().is_none_or(|line: &String| line != "END") {
            shown.push(client.line());
        }
        let address = format!("addr tcp6:[::1]:{port}");
        assert!(
            shown.iter().any(|line| line.ends_with(&address)),
            "{shown:?}"
        );
    }
}

#[test]
fn every_address_is_meant_by_none_and_by_a_star() {
    for arguments in [
        &["-p", "-1"][..],
        &["-p", "-1", "-l", "*"],
        &["-p", "-1", "-l", "*:0"],
    ] {
        let server = Program::start(arguments);
        let port = ports(&server, "TCP INET")[0];
        for host in [[127, 0, 0, 1], [127, 0, 0, 9]] {
            let mut client = Client::to(SocketAddr::from((host, port)));
            client.ask("version\r\n", "VERSION 1.6.45\r\n");
        }
    }
}

#[test]
fn what_cannot_be_listened_on_ends_the_program() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let entry = format!("127.0.0.1:{port}");
    for (list, message) in [
        ("127.0.0.1:abc", "Invalid port number: \"abc\""),
        (
            "tag[123456789]:127.0.0.1",
            "Listener tags must be between 1 and 8 characters: \"123456789\"",
        ),
        ("proto[http]:127.0.0.1", "Invalid protocol spec: \"http\""),
        (
            "notls:127.0.0.1",
            "'notls' option is valid only when SSL is enabled",
        ),
        ("192.0.2.77", "Cannot assign requested address"),
        (entry.as_str(), "Address already in use"),
        // One that fails is one too many, whatever the others do.
        (&format!("127.0.0.1:0,{entry}"), "Address already in use"),
    ] {
        let output = program(&["-p", "-1", "-l", list]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(71), "{list}: {said}");
        assert!(said.contains(message), "{list}: {said}");
    }
}
