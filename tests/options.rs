//! The program as users start it: what it prints, writes and exits with.

mod common;

use common::{Program, program};

#[test]
fn the_port_chosen_is_written_down() {
    let server = Program::start(&["-p", "-1", "-l", "127.0.0.1"]);
    let mut client = server.connect();
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
}

#[test]
fn a_port_in_use_ends_the_program() {
    let first = Program::start(&["-p", "-1", "-l", "127.0.0.1"]);
    let port = first.port().to_string();
    let output = program(&["-p", &port, "-l", "127.0.0.1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "failed to listen on one of interface(s) 127.0.0.1: Address already in use\n"
    );
}

#[test]
fn a_socket_that_cannot_be_made_ends_the_program() {
    let output = program(&["-s", "/nonexistent/socket"]).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = "failed to listen on UNIX socket: /nonexistent/socket: ";
    assert!(said.starts_with(expected), "{said}");
}

#[test]
fn many_endpoints_are_all_listened_on() {
    let server = Program::start(&["-p", "-1", "-l", "127.0.0.1,127.0.0.2:0"]);
    let ports = server.ports();
    assert_eq!(ports.lines().count(), 2, "{ports}");
}
