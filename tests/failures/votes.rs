//! Two-phase commit while votes are under way: who waits for whom, and what becomes of what was prepared
//! when the leader dies.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use larder::store::journal::{partition, place};

use crate::common::Client;
use crate::faults::{Faults, Way};
use crate::nodes::{Node, caught_up, eventually, in_sync, items, number};

const OPTIONS: [&str; 1] = ["--repl-ack=2pc"];

/// A leader and a follower of it, with the faults between them.
struct Pair {
    leader: Node,
    faults: Faults,
    _follower: Node,
    client: Client<TcpStream>,
    reader: Client<TcpStream>,
}

impl Pair {
    fn start() -> Pair {
        let leader = Node::leader(&OPTIONS);
        let faults = Faults::before(leader.copies);
        let follower = Node::follower(faults.address(), &OPTIONS);
        let (mut client, mut reader) = (leader.connect(), follower.connect());
        in_sync(&mut reader);
        client.ask("set k 0 0 1\r\n1\r\n", "STORED\r\n");
        caught_up(&mut client, &mut reader);
        Pair {
            leader,
            faults,
            _follower: follower,
            client,
            reader,
        }
    }

    /// A mutation of `k` whose vote does not arrive.
    fn begin(&mut self, request: &str) {
        let before = number(&mut self.reader, "records");
        self.faults.silence(Way::Up, true);
        self.client.send(request);
        let reader = &mut self.reader;
        eventually("the follower has it", || number(reader, "records") > before);
    }
}

/// Whether a second mutation of a key was run behind the first, instead of being refused.
fn queued() -> bool {
    let mut pair = Pair::start();
    let mut other = pair.leader.connect();
    pair.begin("incr k 1\r\n");
    // What does not touch the key waits for nobody, and sees what was.
    other.ask("get k\r\n", "VALUE k 0 1\r\n1\r\nEND\r\n");
    other.send("get k\r\nincr k 1\r\nget k\r\n");
    std::thread::sleep(Duration::from_millis(10));
    pair.faults.silence(Way::Up, false);
    pair.client.expect("2\r\n");
    other.line();
    other.line();
    other.expect("END\r\n");
    let ran = other.line() == "3";
    let left = if ran { 3 } else { 2 };
    other.expect(format!("VALUE k 0 1\r\n{left}\r\nEND\r\n"));
    ran
}

#[test]
fn a_mutation_waits_for_the_one_before_it() {
    // Fifty milliseconds may be too short on a machine that does other things.
    assert!((0..20).any(|_| queued()));
}

#[test]
fn a_mutation_that_has_waited_long_enough_is_refused() {
    let mut pair = Pair::start();
    let mut other = pair.leader.connect();
    pair.begin("incr k 1\r\n");
    let since = Instant::now();
    other.send("incr k 1\r\n");
    let answer = other.line();
    let took = since.elapsed();
    // On a slow machine the follower is counted out before that.
    assert!(
        answer == "SERVER_ERROR 307 busy" || answer == "3",
        "{answer}"
    );
    assert!(took >= Duration::from_millis(50), "{took:?}");
    // The same of a value that arrives in pieces.
    let value = "x".repeat(100_000);
    other.send(format!("set k 0 0 100000\r\n{value}\r\n"));
    let answer = other.line();
    assert!(
        answer == "SERVER_ERROR 307 busy" || answer == "STORED",
        "{answer}"
    );
    pair.faults.silence(Way::Up, false);
    pair.client.expect("2\r\n");
}

/// Whether a mutation was refused while others of its partition, and as much as that may hold, are being
/// voted on.
fn refused_for_room() -> bool {
    let options = ["--repl-ack=2pc", "-I", "12m"];
    let leader = Node::leader(&options);
    let faults = Faults::before(leader.copies);
    let follower = Node::follower(faults.address(), &options);
    let (mut client, mut other) = (leader.connect(), leader.connect());
    in_sync(&mut follower.connect());
    faults.silence(Way::Up, true);
    let number = |key: &str| partition(place(key.as_bytes()));
    let mut others = (0..).map(|n| format!("other{n}"));
    let second = others.find(|key| number(key) == number("k"));
    let value = "x".repeat(9 << 20);
    let set = |key: &str| format!("set {key} 0 0 {}\r\n{value}\r\n", value.len());
    client.send(set("k"));
    other.send(set(&second.expect("a key")));
    let answer = other.line();
    faults.silence(Way::Up, false);
    let (first, busy) = (client.line(), "SERVER_ERROR 307 busy");
    // Either was first; on a slow machine the follower is counted out before the other has come.
    assert!(
        [&first, &answer]
            .iter()
            .all(|one| *one == "STORED" || *one == busy)
    );
    first == busy || answer == busy
}

#[test]
fn no_more_is_voted_on_than_fits() {
    assert!((0..20).any(|_| refused_for_room()));
}

/// What a follower has been sent when the leader dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Got {
    Nothing,
    Prepare,
    /// Its vote has been counted, and the mutation answered; of the commit it has not heard.
    Counted,
}

/// Kills a leader at one moment of a vote of two followers, and lets the first of them lead. The value
/// that both have then; nothing if the machine was too slow for that moment.
fn fallen(got: [Got; 2], length: usize) -> Option<String> {
    let leader = Node::leader(&OPTIONS);
    let faults = [(); 2].map(|()| Faults::before(leader.copies));
    let followers = [0, 1].map(|at| Node::follower(faults[at].address(), &OPTIONS));
    let mut client = leader.connect();
    let mut readers = [0, 1].map(|at| followers[at].connect());
    readers.iter_mut().for_each(in_sync);
    client.ask("set k 0 0 3\r\nold\r\n", "STORED\r\n");
    for reader in &mut readers {
        caught_up(&mut client, reader);
    }
    let before = [0, 1].map(|at| number(&mut readers[at], "records"));
    for (faults, got) in faults.iter().zip(got) {
        faults.silence(Way::Up, true);
        faults.silence(Way::Down, got == Got::Nothing);
    }
    let value = "n".repeat(length);
    client.send(format!("set k 0 0 {length}\r\n{value}\r\n"));
    for at in [0, 1] {
        if got[at] != Got::Nothing {
            eventually("it is prepared", || {
                number(&mut readers[at], "records") > before[at]
            });
        }
        // Nobody sees it.
        readers[at].ask("get k\r\n", "VALUE k 0 3\r\nold\r\nEND\r\n");
    }
    if got[0] == Got::Counted {
        for faults in &faults {
            faults.silence(Way::Down, true);
            faults.silence(Way::Up, false);
        }
        client.expect("STORED\r\n");
        for reader in &mut readers {
            reader.ask("get k\r\n", "VALUE k 0 3\r\nold\r\nEND\r\n");
        }
    }
    leader.program.signal("KILL");
    client.stream.set_read_timeout(None).unwrap();
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.stream, &mut answer);
    let [first, second] = &mut readers;
    first.send("repl promote\r\n");
    if !answer.is_empty() || !first.line().starts_with("OK") {
        // Somebody was counted out.
        return None;
    }
    second.ask(format!("repl follow {}\r\n", followers[0].copies), "OK\r\n");
    first.ask("set after 0 0 1\r\nx\r\n", "STORED\r\n");
    caught_up(first, second);
    let keys = || ["k", "after"].map(str::to_owned).into_iter();
    let there = items(first, keys());
    assert_eq!(items(second, keys()), there, "the same on both");
    Some(there["k"].0.clone())
}

/// Tries until the leader has died at the right moment.
fn falls(got: [Got; 2], length: usize) -> String {
    let mut found = (0..20).filter_map(|_| fallen(got, length));
    found.next().expect("a machine that is quick enough once")
}

#[test]
fn a_leader_that_dies_between_the_last_vote_and_the_commit_has_committed() {
    for length in [3, 200_000] {
        let found = falls([Got::Counted; 2], length);
        assert!(
            found == "n".repeat(length),
            "what was acknowledged is there"
        );
    }
}

#[test]
fn a_leader_that_dies_before_the_votes_leaves_the_same_everywhere() {
    assert_eq!(falls([Got::Prepare; 2], 3), "nnn");
    assert_eq!(falls([Got::Prepare, Got::Nothing], 3), "nnn");
    assert_eq!(falls([Got::Nothing, Got::Prepare], 3), "old");
    assert_eq!(falls([Got::Nothing; 2], 3), "old");
}
