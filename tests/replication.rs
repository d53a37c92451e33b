//! Copies over real sockets: a leader and followers in one process, or as programs of their own.

mod common;

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::binary::Packet;
use common::{Client, TestServer, settings};
use larder::cluster::replication::frame;
use larder::cluster::replication::message::Type;
use larder::settings::{Ack, Endpoint, Journal, Settings};

/// How long a test waits for what takes a moment.
const PATIENCE: Duration = Duration::from_secs(20);

fn keeping_a_log() -> Settings {
    let mut settings = settings();
    settings.store.journal = Some(Journal {
        ring_bytes: 16 << 20,
        follower: true,
    });
    settings
}

fn leading() -> Settings {
    let mut settings = keeping_a_log();
    settings.replication.listen = Some("127.0.0.1:0".to_owned());
    settings.replication.recover_ms = 0;
    settings
}

fn following(leader: &TestServer) -> Settings {
    let mut settings = keeping_a_log();
    settings.replication.listen = Some("127.0.0.1:0".to_owned());
    settings.replication.follow = Some(leader.copies_address().to_string());
    settings
}

/// The value of one line of `stats replication`; nothing if there is none.
fn told(client: &mut Client<TcpStream>, name: &str) -> Option<String> {
    let [found] = told_at_once(client, [name]);
    found
}

/// The values of some lines at one moment.
fn told_at_once<const N: usize>(
    client: &mut Client<TcpStream>,
    names: [&str; N],
) -> [Option<String>; N] {
    client.send("stats replication\r\n");
    let mut found = [const { None }; N];
    loop {
        let line = client.line();
        if line == "END" {
            return found;
        }
        let mut words = line.splitn(3, ' ').skip(1);
        let word = words.next().unwrap_or_default();
        for (name, found) in names.iter().zip(&mut found) {
            if word == *name || word.ends_with(&format!(":{name}")) {
                *found = words.next().map(str::to_owned);
            }
        }
    }
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The reply to a request of one key, to its end.
fn get(client: &mut Client<TcpStream>, request: &str) -> String {
    client.send(request);
    let mut reply = String::new();
    loop {
        let line = client.line();
        if line == "END" {
            return reply;
        }
        reply.push_str(&line);
        reply.push('\n');
    }
}

/// Waits until a copy has everything that its leader has logged.
fn caught_up(leader: &mut Client<TcpStream>, copy: &mut Client<TcpStream>) {
    eventually("the copy has caught up", || {
        // A copy that begins anew is at its leader's place at once, and whole when it has all.
        let [whole, records] = told_at_once(copy, ["whole_partitions", "records"]);
        whole.as_deref() == Some("64") && records == told(leader, "records")
    });
}

#[test]
fn a_follower_has_what_its_leader_has() {
    let leader = TestServer::start_with(leading());
    let mut client = leader.connect();
    for number in 0..500 {
        client.ask(
            format!("set before{number} {number} 0 5\r\nvalue\r\n"),
            "STORED\r\n",
        );
    }
    let follower = TestServer::start_with(following(&leader));
    let mut reader = follower.connect();
    client.ask("set k 7 0 3\r\none\r\n", "STORED\r\n");
    client.ask("append k 0 0 3\r\ntwo\r\n", "STORED\r\n");
    client.ask("set n 0 0 1\r\n1\r\n", "STORED\r\n");
    client.ask("incr n 41\r\n", "42\r\n");
    client.ask("set gone 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("delete gone\r\n", "DELETED\r\n");
    client.ask("set ttl 0 9000 1\r\nx\r\n", "STORED\r\n");
    let long = "y".repeat(300_000);
    client.ask(format!("set long 0 0 300000\r\n{long}\r\n"), "STORED\r\n");
    client.ask("append long 0 0 1\r\nz\r\n", "STORED\r\n");
    caught_up(&mut client, &mut reader);
    for key in ["k", "n", "gone", "long", "before0", "before499"] {
        let request = format!("gets {key}\r\n");
        let theirs = get(&mut client, &request);
        assert_eq!(get(&mut reader, &request), theirs, "with the same CAS");
    }
    reader.send("mg ttl t\r\n");
    let left: u32 = reader.line().strip_prefix("HD t").unwrap().parse().unwrap();
    assert!((8000..=9000).contains(&left), "{left}");
    client.send("flush_all\r\n");
    client.expect("OK\r\n");
    client.ask("set after 0 0 1\r\nx\r\n", "STORED\r\n");
    caught_up(&mut client, &mut reader);
    assert_eq!(get(&mut reader, "get k\r\n"), "");
    assert_eq!(get(&mut reader, "get after\r\n"), "VALUE after 0 1\nx\n");
}

#[test]
fn of_a_long_value_only_what_is_added_is_sent() {
    let leader = TestServer::start_with(leading());
    let follower = TestServer::start_with(following(&leader));
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    for (key, length) in [("chunks", 500_000), ("verified", 70_000), ("grows", 4000)] {
        let value = "y".repeat(length);
        client.ask(
            format!("set {key} 3 0 {length}\r\n{value}\r\n"),
            "STORED\r\n",
        );
    }
    caught_up(&mut client, &mut reader);
    let sent = |client: &mut Client<TcpStream>| {
        let sent = told(client, "sent_bytes").expect("a follower");
        sent.parse::<u64>().expect("a number")
    };
    let before = sent(&mut client);
    for round in 0..100 {
        for key in ["chunks", "verified", "grows"] {
            for command in ["append", "prepend"] {
                client.ask(
                    format!("{command} {key} 0 0 6\r\n+{round:05}\r\n"),
                    "STORED\r\n",
                );
            }
        }
    }
    caught_up(&mut client, &mut reader);
    let sent = sent(&mut client) - before;
    assert!(sent < 200_000, "{sent} bytes");
    for key in ["chunks", "verified", "grows"] {
        let request = format!("gets {key}\r\n");
        let theirs = get(&mut client, &request);
        assert_eq!(get(&mut reader, &request), theirs, "with the same CAS");
    }
    client.ask("repl verify\r\n", "OK\r\n");
    caught_up(&mut client, &mut reader);
    assert_ne!(told(&mut reader, "digests_equal").as_deref(), Some("0"));
    assert_eq!(told(&mut reader, "digests_differed").as_deref(), Some("0"));
    // One that is not there as it should be is fetched.
    let [fetched, _] = told_at_once(&mut client, ["scrub_repairs", "role"]);
    assert_eq!(fetched.as_deref(), Some("0"));
}

#[test]
fn mutations_go_to_the_leader() {
    let leader = TestServer::start_with(leading());
    let follower = TestServer::start_with(following(&leader));
    let mut client = follower.connect();
    let refusal = "SERVER_ERROR not leader\r\n";
    for request in [
        "set k 0 0 1\r\nx\r\n",
        "delete k\r\n",
        "incr k 1\r\n",
        "touch k 1\r\n",
        "gat 1 k\r\n",
        "flush_all\r\n",
        "ms k 1\r\nx\r\n",
        "md k\r\n",
        "mg k T30\r\n",
    ] {
        client.ask(request, refusal);
    }
    let long = "x".repeat(100_000);
    client.ask(format!("set k 0 0 100000\r\n{long}\r\n"), refusal);
    client.ask("get k\r\n", "END\r\n");
    client.ask("mg k v\r\n", "EN\r\n");
}

#[test]
fn writes_to_a_follower_can_go_to_its_leader() {
    let leader = TestServer::start_with(leading());
    let mut forwarding = following(&leader);
    forwarding.replication.forwards = true;
    let follower = TestServer::start_with(forwarding);
    let (mut client, mut theirs) = (follower.connect(), leader.connect());
    let address = leader.address().to_string();
    eventually("it knows where its leader is", || {
        told(&mut client, "leader_clients").as_deref() == Some(&address)
    });
    let long = "y".repeat(300_000);
    let error = "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n";
    // In order, whoever answers; as quiet as was asked for; whatever values look like.
    for (request, reply) in [
        ("set k 7 0 3\r\none\r\n", "STORED\r\n"),
        (
            "add k 0 0 1\r\nx\r\nget none\r\nset n 0 0 1\r\n1\r\nincr n 41\r\nversion\r\ndelete n\r\n",
            "NOT_STORED\r\nEND\r\nSTORED\r\n42\r\nVERSION 1.6.45\r\nDELETED\r\n",
        ),
        (
            "set q 0 0 1 noreply\r\nx\r\ndelete q noreply\r\ndelete q\r\n",
            "NOT_FOUND\r\n",
        ),
        (
            "ms m 2 q\r\nhi\r\nma m q\r\nmn\r\n",
            &format!("{error}MN\r\n"),
        ),
        ("set v 0 0 8\r\n\r\nMN\r\n\r\n\r\n", "STORED\r\n"),
        (
            "gat 900 v none k\r\nmg v T800 v\r\n",
            "VALUE v 0 8\r\n\r\nMN\r\n\r\n\r\nVALUE k 7 3\r\none\r\nEND\r\nVA 8\r\n\r\nMN\r\n\r\n\r\n",
        ),
        (
            &format!("set long 0 0 300000\r\n{long}\r\ntouch long 0\r\n"),
            "STORED\r\nTOUCHED\r\n",
        ),
        (
            "set bad 0 0 1\r\nxyzset bad 0 0 1\r\nx\r\n",
            "CLIENT_ERROR bad data chunk\r\nSTORED\r\n",
        ),
    ] {
        client.ask(request, reply);
    }
    caught_up(&mut theirs, &mut client);
    for key in ["k", "n", "q", "m", "v", "long", "bad"] {
        let request = format!("gets {key}\r\n");
        assert_eq!(get(&mut client, &request), get(&mut theirs, &request));
    }
    let mut binary = follower.connect();
    let mut delta = [0; 20];
    delta[7] = 2;
    let packet = |opcode, extras, key, value| Packet {
        opcode,
        extras,
        key,
        value,
        opaque: u32::from_be_bytes(*b"fwd:"),
        cas: 0,
    };
    // Quiet, then aloud, then one that is answered here, then aloud again.
    binary.send(packet(0x11, &[0; 8], b"b", b"5").bytes());
    binary.send(packet(0x05, &delta, b"b", b"").bytes());
    binary.send(packet(0x0a, b"", b"", b"").bytes());
    binary.send(packet(0x04, b"", b"none", b"").bytes());
    for (opcode, status) in [(0x05, 0), (0x0a, 0), (0x04, 1)] {
        let answer = binary.answer();
        assert_eq!((answer.opcode, answer.status), (opcode, status));
    }
    // The token of a lease is the leader's, who is asked for it.
    client.send("lease-get lease\r\n");
    let line = client.line();
    let token = line.split(' ').nth(2).unwrap().to_owned();
    client.expect("\r\nEND\r\n");
    client.ask(
        format!("lease-set lease {token} 0 0 1\r\nx\r\n"),
        "STORED\r\n",
    );
    client.ask("flush_all\r\n", "OK\r\n");
    assert_eq!(get(&mut theirs, "get k\r\n"), "");
    caught_up(&mut theirs, &mut client);

    // What has been forwarded goes no further.
    let mut forwarded = follower.connect();
    forwarded.ask("repl forwarded\r\n", "OK\r\n");
    forwarded.ask(
        "set k 0 0 1\r\nx\r\nget k\r\n",
        "SERVER_ERROR not leader\r\nEND\r\n",
    );
    // Nor does anything when there is no leader.
    drop((theirs, leader));
    eventually("it misses its leader", || {
        told(&mut client, "leader_clients").is_none()
    });
    client.ask(
        "set k 0 0 1\r\nx\r\nset k 0 0 1 noreply\r\nx\r\nincr k 1\r\nget k\r\n",
        "SERVER_ERROR not leader\r\nSERVER_ERROR not leader\r\nEND\r\n",
    );
    client.ask("repl promote --force\r\n", "OK epoch 2\r\n");
    client.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
}

#[test]
fn what_expires_goes_when_the_leader_says_so() {
    let leader = TestServer::start_with(leading());
    let follower = TestServer::start_with(following(&leader));
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    client.ask("set k 0 1 1\r\nx\r\n", "STORED\r\n");
    caught_up(&mut client, &mut reader);
    eventually("it has expired", || {
        get(&mut reader, "get k\r\n").is_empty()
    });
    eventually("it is gone on both sides", || {
        // Its second may begin a moment later.
        if !get(&mut client, "get k\r\n").is_empty() {
            return false;
        }
        caught_up(&mut client, &mut reader);
        reader.stat("curr_items") == "0"
    });
}

#[test]
fn expiry_times_that_hardly_move_are_not_told() {
    let leader = TestServer::start_with(leading());
    let follower = TestServer::start_with(following(&leader));
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    client.ask("set k 0 90000 1\r\nx\r\n", "STORED\r\n");
    let records = |client: &mut Client<TcpStream>| -> u64 {
        told(client, "records").unwrap().parse().unwrap()
    };
    caught_up(&mut client, &mut reader);
    let before = records(&mut client);
    for _ in 0..50 {
        client.ask("touch k 90000\r\n", "TOUCHED\r\n");
        client.ask("gat 90000 k\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n");
    }
    // A digest every ten seconds, in every partition that is used, and a step of the expiry.
    let told = records(&mut client) - before;
    assert!(told < 20, "{told}");
    client.ask("touch k 500\r\n", "TOUCHED\r\n");
    caught_up(&mut client, &mut reader);
    reader.send("mg k t\r\n");
    let left: u32 = reader.line().strip_prefix("HD t").unwrap().parse().unwrap();
    assert!((400..=505).contains(&left), "{left}");
}

#[test]
fn a_follower_that_was_away_gets_the_rest() {
    let leader = TestServer::start_with(leading());
    let mut client = leader.connect();
    for number in 0..2000 {
        client.send(format!("set key{number} 0 0 3 noreply\r\nold\r\n"));
    }
    let follower = TestServer::start_with(following(&leader));
    let mut reader = follower.connect();
    caught_up(&mut client, &mut reader);
    let address = leader.copies_address();
    // It follows nobody for a while.
    reader.ask("repl follow 127.0.0.1:1\r\n", "OK\r\n");
    client.ask("set key1 0 0 3\r\nnew\r\n", "STORED\r\n");
    client.ask("delete key2\r\n", "DELETED\r\n");
    reader.ask(format!("repl follow {address}\r\n"), "OK\r\n");
    caught_up(&mut client, &mut reader);
    assert_eq!(
        get(&mut reader, "get key1 key2\r\n"),
        "VALUE key1 0 3\nnew\n"
    );
    assert_eq!(
        told(&mut client, "full_syncs").as_deref(),
        Some("0"),
        "from the log"
    );
    assert_eq!(told(&mut client, "diff_syncs").as_deref(), Some("0"));
    // Further than the log goes.
    reader.ask("repl follow 127.0.0.1:1\r\n", "OK\r\n");
    let filler = "f".repeat(4000);
    for number in 0..8000 {
        client.send(format!(
            "set fill{} 0 0 4000 noreply\r\n{filler}\r\n",
            number % 50
        ));
    }
    client.ask("set key3 0 0 3\r\nnew\r\n", "STORED\r\n");
    client.ask("delete key4\r\n", "DELETED\r\n");
    reader.ask(format!("repl follow {address}\r\n"), "OK\r\n");
    caught_up(&mut client, &mut reader);
    assert_eq!(
        get(&mut reader, "get key3 key4 key5\r\n"),
        "VALUE key3 0 3\nnew\nVALUE key5 0 3\nold\n"
    );
    assert_eq!(
        told(&mut client, "diff_syncs").as_deref(),
        Some("1"),
        "what differs"
    );
    let repaired: u64 = told(&mut client, "items_repaired")
        .unwrap()
        .parse()
        .unwrap();
    assert!(repaired < 200, "{repaired} of 2000 items were sent");
}

#[test]
fn a_follower_takes_over() {
    let leader = TestServer::start_with(leading());
    let follower = TestServer::start_with(following(&leader));
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    client.ask("set k 0 0 3\r\none\r\n", "STORED\r\n");
    caught_up(&mut client, &mut reader);
    eventually("it counts as in sync", || {
        told(&mut reader, "in_sync").as_deref() == Some("1")
    });
    let theirs = get(&mut client, "gets k\r\n");
    drop(client);
    drop(leader);
    reader.send("repl promote\r\n");
    assert_eq!(reader.line(), "OK epoch 2");
    assert_eq!(get(&mut reader, "gets k\r\n"), theirs);
    reader.ask("set k 0 0 3\r\ntwo\r\n", "STORED\r\n");
    let reply = get(&mut reader, "gets k\r\n");
    let cas = |reply: &str| -> u64 {
        let line = reply.lines().next().unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(
        cas(&reply) > cas(&theirs) + (1 << 31),
        "no id is given out twice"
    );
    // Another one follows the new leader.
    let third = TestServer::start_with(following(&follower));
    let mut other = third.connect();
    caught_up(&mut reader, &mut other);
    assert_eq!(get(&mut other, "gets k\r\n"), reply);
    reader.ask(
        "repl promote\r\n",
        "CLIENT_ERROR this node leads already\r\n",
    );
}

#[test]
fn a_leader_that_comes_back_empty_gets_its_items_from_a_follower() {
    let leader = TestServer::start_with(leading());
    let follower = TestServer::start_with(following(&leader));
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    for number in 0..1000 {
        client.send(format!("set key{number} 0 0 5 noreply\r\nvalue\r\n"));
    }
    caught_up(&mut client, &mut reader);
    let address = leader.copies_address();
    drop(client);
    drop(leader);
    let mut again = leading();
    again.replication.listen = Some(address.to_string());
    again.replication.recover_ms = 60_000;
    let leader = TestServer::start_with(again);
    let mut client = leader.connect();
    client.ask("set early 0 0 1\r\nx\r\n", "SERVER_ERROR not leader\r\n");
    eventually("it leads again", || {
        told(&mut client, "role").as_deref() == Some("leader")
    });
    assert_eq!(client.stat("curr_items"), "1000");
    client.ask("set key1 0 0 3\r\nnew\r\n", "STORED\r\n");
    caught_up(&mut client, &mut reader);
    assert_eq!(get(&mut reader, "get key1\r\n"), "VALUE key1 0 3\nnew\n");
    assert_eq!(reader.stat("curr_items"), "1000");
}

#[test]
fn an_empty_stranger_does_not_flush_a_follower() {
    let leader = TestServer::start_with(leading());
    let follower = TestServer::start_with(following(&leader));
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    client.ask("set k 0 0 3\r\none\r\n", "STORED\r\n");
    caught_up(&mut client, &mut reader);
    let other = TestServer::start_with(leading());
    let mut stranger = other.connect();
    stranger.ask("set k 0 0 3\r\nbad\r\n", "STORED\r\n");
    let address = other.copies_address();
    reader.ask(format!("repl follow {address}\r\n"), "OK\r\n");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(get(&mut reader, "get k\r\n"), "VALUE k 0 3\none\n");
}

#[test]
fn only_who_knows_the_secret_gets_anything() {
    let mut with_secret = leading();
    with_secret.replication.secret = Some(b"sixteen bytes or more".to_vec());
    let leader = TestServer::start_with(with_secret);
    let mut client = leader.connect();
    client.ask("set k 0 0 3\r\none\r\n", "STORED\r\n");
    let follow = |secret: Option<&[u8]>| {
        let mut settings = following(&leader);
        settings.replication.secret = secret.map(<[u8]>::to_vec);
        TestServer::start_with(settings)
    };
    let strangers = [follow(None), follow(Some(b"another secret, as long"))];
    let friend = follow(Some(b"sixteen bytes or more"));
    let mut reader = friend.connect();
    caught_up(&mut client, &mut reader);
    assert_eq!(get(&mut reader, "get k\r\n"), "VALUE k 0 3\none\n");
    for stranger in &strangers {
        assert_eq!(get(&mut stranger.connect(), "get k\r\n"), "");
    }
}

#[test]
fn mutations_can_wait_for_followers() {
    let mut settings = leading();
    settings.replication.ack = Ack::Copies(1);
    settings.replication.ack_timeout_ms = 200;
    settings.replication.ack_refuses = true;
    let leader = TestServer::start_with(settings);
    let mut client = leader.connect();
    client.ask(
        "set k 0 0 3\r\none\r\n",
        "SERVER_ERROR not enough copies in time, outcome unknown\r\n",
    );
    client.expect_end();
    let mut client = leader.connect();
    client.ask("get k\r\n", "VALUE k 0 3\r\none\r\nEND\r\n");
    let follower = TestServer::start_with(following(&leader));
    let mut reader = follower.connect();
    caught_up(&mut client, &mut reader);
    for number in 0..200 {
        client.ask(format!("set key{number} 0 0 5\r\nvalue\r\n"), "STORED\r\n");
        let request = format!("get key{number}\r\n");
        assert!(
            !get(&mut reader, &request).is_empty(),
            "answered and not there"
        );
    }
    // Many at a time wait together.
    let many: String = (0..500)
        .map(|n| format!("set m{n} 0 0 1\r\nx\r\n"))
        .collect();
    client.ask(many, "STORED\r\n".repeat(500));
    assert_eq!(told(&mut client, "ack_late").as_deref(), Some("1"));
}

#[test]
fn levels_go_by_prefixes() {
    let mut settings = leading();
    settings.replication.ack_timeout_ms = 100;
    settings.replication.ack_refuses = true;
    settings.replication.ack_prefixes = vec![
        (b"sure:".to_vec(), Ack::Copies(1)),
        (b"sure:not:".to_vec(), Ack::Async),
        (b"agreed:".to_vec(), Ack::TwoPhase),
    ];
    let leader = TestServer::start_with(settings);
    let mut client = leader.connect();
    // There is no copy that could have it.
    client.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("set sure:not:k 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("set agreed:k 0 0 1\r\nx\r\n", "STORED\r\n");
    assert_eq!(told(&mut client, "committed").as_deref(), Some("1"));
    let refusal = "SERVER_ERROR not enough copies in time, outcome unknown\r\n";
    client.ask("incr sure:n 1\r\nset sure:k 0 0 1\r\nx\r\n", refusal);
    client.expect_end();
    let mut client = leader.connect();
    client.ask("ms c3VyZTpr 1 b\r\nx\r\n", refusal);
    client.expect_end();
    let follower = TestServer::start_with(following(&leader));
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    caught_up(&mut client, &mut reader);
    client.ask("set sure:k 0 0 1\r\ny\r\n", "STORED\r\n");
    assert_eq!(get(&mut reader, "get sure:k\r\n"), "VALUE sure:k 0 1\ny\n");
}

#[test]
fn noise_on_the_port_of_copies_does_no_harm() {
    let leader = TestServer::start_with(leading());
    let address = leader.copies_address();
    let mut long = Vec::new();
    frame::write(&mut long, Type::Batch, 1, 0, 0, |_| ());
    let mut unknown = long.clone();
    // One of 4 GiB, and a version that does not exist.
    long[4..8].fill(0xff);
    unknown[2] = 99;
    let noises: [&[u8]; 4] = [b"GET / HTTP/1.1\r\n\r\n", &[0xff; 100], &long, &unknown];
    for noise in noises {
        let mut stranger = Client::to(address);
        stranger.send(noise);
        stranger.expect_end();
    }
    let mut silent = Client::to(address);
    silent.finish();
    silent.expect_end();
    let follower = TestServer::start_with(following(&leader));
    let mut client = leader.connect();
    client.ask("set k 0 0 3\r\none\r\n", "STORED\r\n");
    caught_up(&mut client, &mut follower.connect());
}

#[test]
fn strangers_keep_no_copy_out() {
    let leader = TestServer::start_with(leading());
    let connect = |_| TcpStream::connect(leader.copies_address()).unwrap();
    let mut strangers: Vec<_> = (0..16).map(connect).collect();
    let mut newcomer = connect(16);
    // Whoever has said nothing for longest makes room, and the one who comes is let in.
    assert_eq!(strangers[0].read(&mut [0; 100]).unwrap(), 0);
    let patience = Some(Duration::from_millis(300));
    newcomer.set_read_timeout(patience).unwrap();
    let refused = newcomer.read(&mut [0; 100]);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::WouldBlock);
    let follower = TestServer::start_with(following(&leader));
    let mut client = leader.connect();
    client.ask("set k 0 0 3\r\none\r\n", "STORED\r\n");
    caught_up(&mut client, &mut follower.connect());
}

#[test]
fn two_phase_commit_answers_when_all_have_agreed() {
    let mut settings = leading();
    settings.replication.ack = Ack::TwoPhase;
    let leader = TestServer::start_with(settings.clone());
    let mut client = leader.connect();
    // Alone it agrees with itself.
    client.ask("set k 7 0 3\r\none\r\n", "STORED\r\n");
    client.ask("get k\r\n", "VALUE k 7 3\r\none\r\nEND\r\n");
    let follower = TestServer::start_with(following(&leader));
    let mut reader = follower.connect();
    eventually("it counts as in sync", || {
        told(&mut reader, "in_sync").as_deref() == Some("1")
    });
    // Every command means what it means without votes.
    client.ask("add k 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
    client.ask("append k 0 0 3\r\ntwo\r\n", "STORED\r\n");
    client.ask("get k\r\n", "VALUE k 7 6\r\nonetwo\r\nEND\r\n");
    client.ask("set n 0 0 1\r\n9\r\n", "STORED\r\n");
    client.ask("incr n 2\r\n", "11\r\n");
    client.ask(
        "incr k 2\r\n",
        "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
    );
    client.ask("touch n 100\r\n", "TOUCHED\r\n");
    client.ask("delete k\r\n", "DELETED\r\n");
    client.ask("delete k\r\n", "NOT_FOUND\r\n");
    client.send("ms m 2 T0 c\r\nhi\r\n");
    assert!(client.line().starts_with("HD c"));
    client.ask("cas m 0 0 3 1\r\nbad\r\n", "EXISTS\r\n");
    for number in 0..100 {
        client.ask(format!("set key{number} 0 0 5\r\nvalue\r\n"), "STORED\r\n");
    }
    caught_up(&mut client, &mut reader);
    for key in ["k", "n", "m", "key99"] {
        let request = format!("gets {key}\r\n");
        assert_eq!(get(&mut reader, &request), get(&mut client, &request));
    }
    assert_eq!(told(&mut client, "aborted").as_deref(), Some("0"));
    drop((client, leader));
    reader.send("repl promote\r\n");
    assert_eq!(reader.line(), "OK epoch 2");
    assert_eq!(get(&mut reader, "get n\r\n"), "VALUE n 0 2\n11\n");
}

#[test]
fn whatever_changes_an_item_is_voted_on() {
    let mut settings = leading();
    settings.replication.ack = Ack::TwoPhase;
    settings.replication.ack_timeout_ms = 30_000;
    let leader = TestServer::start_with(settings);
    let follower = TestServer::start_with(following(&leader));
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    eventually("it counts as in sync", || {
        told(&mut reader, "in_sync").as_deref() == Some("1")
    });
    let mut committed = 0;
    let mut voted = |client: &mut Client<TcpStream>, more: u64| {
        committed += more;
        assert_eq!(told(client, "committed"), Some(committed.to_string()));
    };
    // Values of any length: at hand, in pieces, longer than a partition's log.
    for length in [10, 5000, 20_000, 400_000, 1_040_000] {
        let value = "v".repeat(length);
        client.ask(format!("set k 5 0 {length}\r\n{value}\r\n"), "STORED\r\n");
        client.ask("append k 0 0 1\r\n+\r\n", "STORED\r\n");
        client.ask("touch k 1000\r\n", "TOUCHED\r\n");
        voted(&mut client, 3);
        caught_up(&mut client, &mut reader);
        let theirs = get(&mut client, "gets k\r\n");
        assert_eq!(theirs.lines().nth(1), Some(&format!("{value}+")[..]));
        assert!(get(&mut reader, "gets k\r\n") == theirs, "{length}");
    }
    let long = "w".repeat(100_000);
    client.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask(format!("ms k 100000 MP\r\n{long}\r\n"), "HD\r\n");
    client.ask(format!("cas k 0 0 100000 1\r\n{long}\r\n"), "EXISTS\r\n");
    client.ask(format!("add k 0 0 100000\r\n{long}\r\n"), "NOT_STORED\r\n");
    client.ask(
        format!("set k 0 0 100000\r\n{long}-too-long\r\n"),
        "CLIENT_ERROR bad data chunk\r\nERROR\r\n",
    );
    voted(&mut client, 2);

    // A key of a get that is given a new expiry is a mutation.
    client.ask(
        "set a 0 0 1\r\n1\r\nset b 0 0 1\r\n2\r\n",
        "STORED\r\nSTORED\r\n",
    );
    client.ask(
        "gat 900 a none b\r\n",
        "VALUE a 0 1\r\n1\r\nVALUE b 0 1\r\n2\r\nEND\r\n",
    );
    client.ask("mg a T800 v\r\n", "VA 1\r\n1\r\n");
    voted(&mut client, 5);
    caught_up(&mut client, &mut reader);
    for (key, least) in [("a", 700), ("b", 800)] {
        reader.send(format!("mg {key} t\r\n"));
        let left = reader.line().strip_prefix("HD t").unwrap().parse::<u32>();
        assert!((least..=900).contains(&left.unwrap()), "{key}");
    }
    client.ask("gat 0 none\r\n", "END\r\n");
    // A flush is not, but waits until all in sync have it. A loaded machine may have counted the copy out.
    let changes = told(&mut client, "in_sync_changes");
    client.ask("flush_all\r\n", "OK\r\n");
    voted(&mut client, 0);
    if changes != Some("1".to_owned()) || told(&mut client, "in_sync_changes") != changes {
        caught_up(&mut client, &mut reader);
    }
    assert_eq!(get(&mut reader, "get a b k\r\n"), "");

    // A lease's token is good for a vote, once.
    client.send("lease-get l\r\n");
    let line = client.line();
    let token = line.split(' ').nth(2).unwrap().to_owned();
    client.line();
    client.expect("END\r\n");
    let set = format!("lease-set l {token} 0 0 1\r\nx\r\n");
    client.ask(&set, "STORED\r\n");
    client.ask(&set, "NOT_STORED\r\n");
    voted(&mut client, 1);
    assert_eq!(told(&mut client, "aborted").as_deref(), Some("0"));
}

#[test]
fn levels_go_by_listeners() {
    let mut settings = leading();
    settings.replication.ack_timeout_ms = 100;
    settings.replication.ack_refuses = true;
    settings.replication.ack_prefixes = vec![(b"free:".to_vec(), Ack::Async)];
    let plain = settings.listen.endpoints[0].clone();
    for ack in [Ack::Copies(1), Ack::TwoPhase] {
        settings.listen.endpoints.push(Endpoint {
            ack: Some(ack),
            ..plain.clone()
        });
    }
    let leader = TestServer::start_with(settings);
    let addresses = leader.addresses();
    let [mut plain, mut sure, mut agreed] = [0, 1, 2].map(|at| Client::to(addresses[at]));
    plain.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    assert_eq!(told(&mut plain, "committed").as_deref(), Some("0"));
    agreed.ask("set k 0 0 1\r\ny\r\n", "STORED\r\n");
    assert_eq!(told(&mut plain, "committed").as_deref(), Some("1"));
    // A key's level goes before a listener's.
    sure.ask("set free:k 0 0 1\r\nx\r\n", "STORED\r\n");
    agreed.ask("set free:k 0 0 1\r\nx\r\n", "STORED\r\n");
    assert_eq!(told(&mut plain, "committed").as_deref(), Some("1"));
    // There is no copy.
    sure.ask(
        "set k 0 0 1\r\nx\r\n",
        "SERVER_ERROR not enough copies in time, outcome unknown\r\n",
    );
    sure.expect_end();
}

#[test]
fn a_plain_server_can_be_filled() {
    let leader = TestServer::start_with(leading());
    let mut client = leader.connect();
    for number in 0..500 {
        client.send(format!(
            "set key{number} {number} 100 5 noreply\r\nvalue\r\n"
        ));
    }
    let long = "y".repeat(300_000);
    client.ask(format!("set long 0 0 300000\r\n{long}\r\n"), "STORED\r\n");
    client.ask("ms YSBi 1 b\r\nx\r\n", "HD\r\n");
    let plain = TestServer::start();
    let mut reader = plain.connect();
    client.ask(format!("repl export {}\r\n", plain.address()), "OK\r\n");
    eventually("all items are there", || {
        told(&mut client, "export_state").as_deref() == Some("following")
    });
    client.ask("append key1 0 0 4\r\nmore\r\n", "STORED\r\n");
    client.ask("delete key2\r\n", "DELETED\r\n");
    client.ask("touch key3 1000\r\n", "TOUCHED\r\n");
    client.ask(
        "incr key4 1\r\n",
        "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
    );
    client.ask("set last 0 0 1\r\nx\r\n", "STORED\r\n");
    eventually("what came later is there too", || {
        !get(&mut reader, "get last\r\n").is_empty()
    });
    for key in ["key0", "key1", "key2", "key499", "long", "last"] {
        let request = format!("gets {key}\r\n");
        assert_eq!(get(&mut reader, &request), get(&mut client, &request));
    }
    reader.ask("mg YSBi b v k\r\n", "VA 1 kYSBi b\r\nx\r\n");
    reader.send("mg key3 t\r\n");
    let left: u32 = reader.line().strip_prefix("HD t").unwrap().parse().unwrap();
    assert!((900..=1000).contains(&left), "{left}");
    assert_eq!(told(&mut client, "export_refused").as_deref(), Some("0"));
    client.ask("flush_all\r\n", "OK\r\n");
    eventually("it is empty", || {
        get(&mut reader, "get key0\r\n").is_empty()
    });
    client.ask("repl export stop\r\n", "OK\r\n");
    client.ask("repl export 127.0.0.1:1\r\n", "OK\r\n");
    eventually("that failed", || {
        told(&mut client, "export_failed").is_some()
    });
}
