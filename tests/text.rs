//! The classic commands over a socket: one conversation per table, in order.

mod common;

use common::TestServer;

/// Requests with their answers, one after the other on one connection.
fn converse(talk: &[(&str, &str)]) {
    let server = TestServer::start();
    let mut client = server.connect();
    for (request, answer) in talk {
        client.ask(request, answer);
    }
    // Nothing may be left over.
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
    // The same at once, one byte at a time, must not read differently.
    let all: String = talk.iter().map(|(request, _)| *request).collect();
    let answers: String = talk.iter().map(|(_, answer)| *answer).collect();
    let server = TestServer::start();
    let mut client = server.connect();
    client.ask(&all, &answers);
    let server = TestServer::start();
    let mut client = server.connect();
    for byte in all.bytes() {
        client.send([byte]);
    }
    client.expect(&answers);
}

#[test]
fn values_are_kept_and_found() {
    converse(&[
        ("get a\r\n", "END\r\n"),
        ("set a 5 0 3\r\nabc\r\n", "STORED\r\n"),
        ("get a\r\n", "VALUE a 5 3\r\nabc\r\nEND\r\n"),
        (
            "get b a  a \n",
            "VALUE a 5 3\r\nabc\r\nVALUE a 5 3\r\nabc\r\nEND\r\n",
        ),
        ("gets a\r\n", "VALUE a 5 3 2\r\nabc\r\nEND\r\n"),
        ("add a 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
        ("append a 0 0 2\r\nde\r\n", "STORED\r\n"),
        ("prepend a 0 0 1\r\n_\r\n", "STORED\r\n"),
        ("get a\r\n", "VALUE a 5 6\r\n_abcde\r\nEND\r\n"),
        ("cas a 0 0 1 77\r\nx\r\n", "EXISTS\r\n"),
        ("cas b 0 0 1 77\r\nx\r\n", "NOT_FOUND\r\n"),
        ("delete a\r\n", "DELETED\r\n"),
        ("delete a\r\n", "NOT_FOUND\r\n"),
        ("set e 0 0 0\r\n\r\n", "STORED\r\n"),
        ("get e\r\n", "VALUE e 0 0\r\n\r\nEND\r\n"),
        ("set gone 0 -1 1\r\nx\r\nget gone\r\n", "STORED\r\nEND\r\n"),
        ("add far 0 9223372036854775807 1\r\nx\r\n", "STORED\r\n"),
        (
            "set far 0 9223372036854775808 1\r\nx\r\n",
            "CLIENT_ERROR bad command line format\r\n",
        ),
    ]);
}

#[test]
fn numbers_go_up_and_down() {
    converse(&[
        ("incr n 1\r\n", "NOT_FOUND\r\n"),
        ("set n 0 0 2\r\n10\r\n", "STORED\r\n"),
        ("incr n 5\r\n", "15\r\n"),
        ("decr n 20\r\n", "0\r\n"),
        (
            "incr n x\r\n",
            "CLIENT_ERROR invalid numeric delta argument\r\n",
        ),
        ("touch n 100\r\n", "TOUCHED\r\n"),
        ("touch m 100\r\n", "NOT_FOUND\r\n"),
        ("gat 100 n\r\n", "VALUE n 0 2\r\n0 \r\nEND\r\n"),
    ]);
}

#[test]
fn silence_is_kept_where_asked_for() {
    converse(&[
        (
            "set a 0 0 1 noreply\r\nx\r\nget a\r\n",
            "VALUE a 0 1\r\nx\r\nEND\r\n",
        ),
        ("delete a noreply\r\nget a\r\n", "END\r\n"),
        ("bogus noreply\r\nversion\r\n", "VERSION 1.6.45\r\n"),
        (
            "flush_all noreply\r\nverbosity 1 noreply\r\nget a\r\n",
            "END\r\n",
        ),
    ]);
}

#[test]
fn what_is_wrong_is_answered_and_the_next_command_served() {
    const BAD_LINE: &str = "CLIENT_ERROR bad command line format\r\n";
    let long = "k".repeat(251);
    let fits = "k".repeat(250);
    converse(&[
        ("bogus\r\n", "ERROR\r\n"),
        (" get a\r\n", "ERROR\r\n"),
        ("\r\n", BAD_LINE),
        ("get \r\n", BAD_LINE),
        ("set a 0 0 -1\r\n", BAD_LINE),
        ("set a 0 0 4294967296\r\n", BAD_LINE),
        (
            "set a 0 0 3\r\nabcdX\r\n",
            "CLIENT_ERROR bad data chunk\r\nCLIENT_ERROR bad command line format\r\n",
        ),
        (
            "set a 0 0 3\r\nab\r\nversion\r\n",
            "CLIENT_ERROR bad data chunk\r\nERROR\r\n",
        ),
        (&format!("get {fits}\r\n"), "END\r\n"),
        (&format!("set {fits} 0 0 1\r\nx\r\n"), "STORED\r\n"),
        (
            &format!("get {fits}\r\n"),
            &format!("VALUE {fits} 0 1\r\nx\r\nEND\r\n"),
        ),
        (
            &format!("get {fits} {long} {fits}\r\nversion\r\n"),
            "CLIENT_ERROR bad command line format\r\nVERSION 1.6.45\r\n",
        ),
    ]);
}

#[test]
fn quit_sends_what_waits_and_hangs_up() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.ask("set a 0 0 1\r\nx\r\nquit\r\nget a\r\n", "STORED\r\n");
    client.expect_end();
}

#[test]
fn a_value_may_be_cut_anywhere() {
    let server = TestServer::start();
    let mut client = server.connect();
    // Beyond 16 KiB values take another way in; around it both are tried.
    for length in [0, 1, 16_383, 16_384, 16_385, 70_000, 1_000_000] {
        let value: Vec<u8> = (0..length).map(|n| (n % 253) as u8).collect();
        let request = [
            format!("set v 1 0 {length}\r\n").as_bytes(),
            &value,
            b"\r\nget v\r\n",
        ]
        .concat();
        let answer = [
            format!("STORED\r\nVALUE v 1 {length}\r\n").as_bytes(),
            &value,
            b"\r\nEND\r\n",
        ]
        .concat();
        for cut in [
            1,
            14,
            20,
            request.len() / 2,
            request.len() - 9,
            request.len() - 8,
        ] {
            let (first, second) = request.split_at(cut.min(request.len()));
            client.send(first);
            std::thread::yield_now();
            client.ask(second, &answer);
        }
    }
}

/// After the first value that filled the replies the get went on with the same key again.
#[test]
fn a_get_of_many_long_values_tells_each_once() {
    let server = TestServer::start();
    let mut client = server.connect();
    let mut get = "get".to_owned();
    let mut answer = Vec::new();
    for n in 0..8usize {
        let length = n * 40_000;
        let value = vec![b'a' + n as u8; length];
        client.send(format!("set v{n} 0 0 {length}\r\n"));
        client.send(&value);
        client.ask("\r\n", "STORED\r\n");
        get.push_str(&format!(" v{n}"));
        answer.extend_from_slice(format!("VALUE v{n} 0 {length}\r\n").as_bytes());
        answer.extend_from_slice(&value);
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(b"END\r\n");
    client.ask(format!("{get}\r\n"), &answer);
    client.ask(format!("{get}\r\n").repeat(3), answer.repeat(3));
}
