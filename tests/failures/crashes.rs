//! Leaders that are killed: what is lost at each level, and what a leader that comes back gets.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::faults::{Faults, Way};
use crate::nodes::{Node, caught_up, eventually, in_sync, items, number, told};
use crate::writers::{How, Memory, Watcher, Writer};

/// What became of one kill.
#[derive(Debug, Default)]
struct Fall {
    acked: u64,
    /// Acknowledged and not there on the new leader.
    lost: u64,
    /// How long before the kill the first of those was acknowledged.
    lost_since: Duration,
    /// Seen by somebody before the kill, and not there after it.
    unseen: u64,
    /// From the kill to the first mutation that the new leader took.
    writable: Duration,
    /// What the leader had said a moment before that the follower lacked, at most.
    lag: u64,
}

const WRITERS: [How; 2] = [
    How {
        name: "a",
        keys: 400,
        depth: 20,
        bytes: 10,
        pause: Duration::ZERO,
    },
    How {
        name: "b",
        keys: 300,
        depth: 10,
        bytes: 100,
        pause: Duration::ZERO,
    },
];

/// Kills a leader after so many acknowledgements, and lets its follower lead.
fn fall(level: &str, acks: u64) -> Fall {
    let ack = format!("--repl-ack={level}");
    // Whoever is told that it was late ends, and a loaded machine stops processes for long.
    let options = [
        &ack[..],
        "--repl-ack-policy=fail",
        "--repl-ack-timeout=30000",
    ];
    // A copy that is held up for half a second by a loaded machine is counted out, and what is acknowledged
    // then would be lost with the leader.
    let mut strict = options.to_vec();
    strict.extend((level == "2pc").then_some("--repl-min-isr=2"));
    let leader = Node::leader(&strict);
    // Alone, it would acknowledge nothing at level 1.
    let plain: &[&str] = if level == "2pc" { &options } else { &[] };
    let follower = Node::follower(leader.copies, plain);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    in_sync(&mut reader);
    let address = client.stream.peer_addr().unwrap();
    let keys: Vec<String> = WRITERS
        .iter()
        .flat_map(|how| (0..how.keys).map(|key| format!("{}{key}", how.name)))
        .collect();
    let writers = WRITERS.map(|how| Writer::start(address, how));
    let watchers = [&leader, &follower].map(|node| {
        let address = node.connect().stream.peer_addr().unwrap();
        Watcher::start(address, keys.clone())
    });
    let mut lag = 0;
    eventually("enough is written", || {
        lag = lag.max(number(&mut client, "lag_records"));
        writers.iter().map(Writer::acked).sum::<u64>() >= acks
    });
    leader.program.signal("KILL");
    let killed = Instant::now();
    let memories = writers.map(Writer::end);
    let seen = watchers.map(Watcher::end);
    eventually("the follower leads", || {
        reader.send("repl promote\r\n");
        reader.line().starts_with("OK")
    });
    reader.ask("set new 0 0 1\r\n1\r\n", "STORED\r\n");
    let writable = killed.elapsed();
    let now: HashMap<String, u64> = items(&mut reader, keys.iter().cloned())
        .into_iter()
        .map(|(key, (value, _))| (key, value.trim().parse().expect("a number")))
        .collect();
    let mut fall = Fall {
        writable,
        lag,
        ..Fall::default()
    };
    for (memory, how) in memories.iter().zip(WRITERS) {
        fall.count(memory, how, &now, killed);
    }
    for (key, number) in seen.iter().flatten() {
        fall.unseen += u64::from(now.get(key).copied().unwrap_or(0) < *number);
    }
    // Nothing is in doubt any more, and a new copy gets the same.
    for key in &keys {
        reader.ask(format!("set {key} 0 0 1\r\n0\r\n"), "STORED\r\n");
    }
    let third = Node::follower(follower.copies, plain);
    let mut other = third.connect();
    caught_up(&mut reader, &mut other);
    let all = || keys.iter().cloned();
    assert_eq!(items(&mut other, all()), items(&mut reader, all()));
    fall
}

impl Fall {
    fn count(&mut self, memory: &Memory, how: How, now: &HashMap<String, u64>, killed: Instant) {
        self.acked += memory.acks;
        for (key, there) in now.iter().filter(|(key, _)| key.starts_with(how.name)) {
            assert!(*there <= memory.sent[key], "{key} has a value from nowhere");
        }
        for (when, number) in &memory.when {
            let key = format!("{}{}", how.name, number % how.keys);
            if now.get(&key).copied().unwrap_or(0) < *number {
                self.lost += 1;
                self.lost_since = self.lost_since.max(killed.saturating_duration_since(*when));
            }
        }
    }
}

fn falls(level: &str, times: u64, acks: u64) -> Fall {
    let mut all = Fall::default();
    for _ in 0..times {
        let one = fall(level, acks);
        all = Fall {
            acked: all.acked + one.acked,
            lost: all.lost + one.lost,
            lost_since: all.lost_since.max(one.lost_since),
            unseen: all.unseen + one.unseen,
            writable: all.writable.max(one.writable),
            lag: all.lag.max(one.lag),
        };
    }
    println!(
        "--repl-ack={level}, {times} kills: {} acknowledged, {} lost (from {:?} before the kill on), \
         {} seen and gone, lag at most {} records, writable after at most {:?}",
        all.acked, all.lost, all.lost_since, all.unseen, all.lag, all.writable
    );
    all
}

#[test]
fn two_phase_commit_loses_nothing_that_was_acknowledged_or_seen() {
    let all = falls("2pc", 1, 2000);
    assert_eq!((all.lost, all.unseen), (0, 0));
}

#[test]
fn an_acknowledgement_of_a_copy_loses_nothing_that_was_acknowledged() {
    let all = falls("1", 1, 3000);
    assert_eq!(all.lost, 0);
}

#[test]
#[ignore = "takes minutes"]
fn fifty_kills_under_two_phase_commit() {
    let all = falls("2pc", 50, 20_000);
    assert_eq!((all.lost, all.unseen), (0, 0));
    assert!(all.acked >= 1_000_000);
}

#[test]
#[ignore = "takes minutes"]
fn twenty_kills_under_ack_1() {
    assert_eq!(falls("1", 20, 30_000).lost, 0);
}

#[test]
#[ignore = "takes minutes"]
fn twenty_kills_under_async() {
    let all = falls("async", 20, 50_000);
    assert!(all.lost_since < Duration::from_secs(1));
}

/// Prepared, and the leader dies before it knows the vote: the copy has it, and commits it.
#[test]
fn what_is_in_doubt_when_the_leader_dies_is_committed_by_the_next() {
    let mut tried = 0;
    while !in_doubt(Way::Up, "new") {
        // It was quicker than the kill.
        tried += 1;
        assert!(tried < 20);
    }
}

/// The leader dies before anybody has heard of it: nobody has it.
#[test]
fn what_nobody_has_heard_of_is_not_there_afterwards() {
    let mut tried = 0;
    while !in_doubt(Way::Down, "old") {
        tried += 1;
        assert!(tried < 20);
    }
}

/// Kills a leader while a mutation waits, with one way to the copy silent. False: it did not wait.
fn in_doubt(silent: Way, expected: &str) -> bool {
    let leader = Node::leader(&["--repl-ack=2pc"]);
    let faults = Faults::before(leader.copies);
    let follower = Node::follower(faults.address(), &["--repl-ack=2pc"]);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    in_sync(&mut reader);
    client.ask("set k 0 0 3\r\nold\r\n", "STORED\r\n");
    eventually("that has been committed", || {
        reader.send("get k\r\n");
        let there = reader.line() != "END";
        if there {
            assert_eq!(
                (reader.line(), reader.line()),
                ("old".to_owned(), "END".to_owned())
            );
        }
        there
    });
    let before = number(&mut reader, "records");
    faults.silence(silent, true);
    client.send("set k 0 0 3\r\nnew\r\n");
    if silent == Way::Up {
        eventually("the copy has it", || {
            number(&mut reader, "records") > before
        });
    }
    leader.program.signal("KILL");
    client.stream.set_read_timeout(None).unwrap();
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.stream, &mut answer);
    reader.send("repl promote\r\n");
    if !answer.is_empty() || !reader.line().starts_with("OK") {
        // It has counted the copy out.
        return false;
    }
    reader.ask("get k\r\n", format!("VALUE k 0 3\r\n{expected}\r\nEND\r\n"));
    reader.ask("set k 0 0 3\r\nnow\r\n", "STORED\r\n");
    true
}

/// How much a leader gets back that comes back empty.
fn comes_back(count: u64) -> (Duration, u64) {
    let leader = Node::leader(&[]);
    let copies = leader.copies.to_string();
    let follower = Node::follower(leader.copies, &[]);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    for key in 0..count {
        client.send(format!("set key{key} 0 0 100 noreply\r\n{key:<100}\r\n"));
    }
    client.ask("mn\r\n", "MN\r\n");
    caught_up(&mut client, &mut reader);
    let before = number(&mut reader, "epoch");
    leader.program.signal("KILL");
    drop(leader);
    let listen = format!("--repl-listen={copies}");
    let since = Instant::now();
    let leader = Node::start(&["--repl-recover=60000", &listen]);
    let mut client = leader.connect();
    eventually("it leads again", || {
        // Nobody is made to forget anything meanwhile.
        assert_eq!(reader.stat("curr_items"), count.to_string());
        told(&mut client, "role") == "leader"
    });
    let took = since.elapsed();
    assert!(number(&mut client, "epoch") > before);
    let there = client.stat("curr_items").parse().expect("a number");
    client.ask("set key0 0 0 1\r\nx\r\n", "STORED\r\n");
    caught_up(&mut client, &mut reader);
    assert_eq!(reader.stat("curr_items"), count.to_string());
    (took, there)
}

#[test]
fn a_leader_that_was_killed_gets_its_items_back() {
    assert_eq!(comes_back(2000).1, 2000);
}

#[test]
#[ignore = "takes a while"]
fn a_leader_that_was_killed_gets_a_million_items_back() {
    let (took, there) = comes_back(1_000_000);
    println!("an empty leader with a full follower: {there} of 1000000 items after {took:?}");
    assert!(there >= 999_000);
}
