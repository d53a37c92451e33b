//! A network that fails between nodes that live on.

use std::time::{Duration, Instant};

use crate::faults::{Faults, Tamper, Way};
use crate::nodes::{Node, all_told, caught_up, eventually, in_sync, items, number, told};
use crate::writers::{How, Memory, Writer};

const STEADY: How = How {
    name: "key",
    keys: 500,
    depth: 10,
    bytes: 100,
    pause: Duration::from_millis(1),
};

/// A leader and a follower with faults between them, as far as being in sync.
fn pair(leader: &[&str]) -> (Node, Faults, Node) {
    let leader = Node::leader(leader);
    let faults = Faults::before(leader.copies);
    let follower = Node::follower(faults.address(), &[]);
    in_sync(&mut follower.connect());
    (leader, faults, follower)
}

fn keys(how: How) -> impl Iterator<Item = String> {
    (0..how.keys).map(move |key| format!("{}{key}", how.name))
}

/// Both have the same, with the same CAS ids.
#[track_caller]
fn expect_equal(leader: &Node, follower: &Node, how: How) {
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    caught_up(&mut client, &mut reader);
    let theirs = items(&mut client, keys(how));
    assert!(!theirs.is_empty());
    assert_eq!(items(&mut reader, keys(how)), theirs);
}

/// Nothing comes through one way, and neither side is told. How long until the follower dials again,
/// and until the leader does not count on it any more.
fn goes_silent(way: Way) -> (Duration, Duration) {
    let (leader, faults, follower) = pair(&[]);
    let mut client = leader.connect();
    let address = client.stream.peer_addr().unwrap();
    let writer = Writer::start(address, STEADY);
    eventually("it writes", || writer.acked() > 100);
    let dialled = faults.accepted();
    let since = Instant::now();
    faults.silence(way, true);
    // The leader is the one that notices when it hears no more.
    let mut noticed = [None, None];
    eventually("somebody has noticed", || {
        if faults.accepted() > dialled {
            noticed[0].get_or_insert(since.elapsed());
        }
        if told(&mut client, "in_sync") == "0" {
            noticed[1].get_or_insert(since.elapsed());
        }
        noticed.iter().all(Option::is_some)
    });
    faults.silence(way, false);
    faults.cut();
    in_sync(&mut follower.connect());
    writer.end();
    expect_equal(&leader, &follower, STEADY);
    assert_eq!(told(&mut client, "full_syncs"), "0");
    (noticed[0].unwrap(), noticed[1].unwrap())
}

#[test]
fn silence_is_noticed_from_the_leader() {
    goes_silent(Way::Down);
}

#[test]
fn silence_is_noticed_from_the_follower() {
    goes_silent(Way::Up);
}

#[test]
#[ignore = "shows figures"]
fn how_soon_silence_is_noticed() {
    for way in [Way::Down, Way::Up] {
        let (follower, leader) = goes_silent(way);
        println!(
            "silent {way:?}: the follower dials again after {follower:?}, out of sync after {leader:?}"
        );
    }
}

/// A follower that is stopped under load: what the leader's clients feel of it, and its memory.
fn stopped_follower(time: Duration) -> (Memory, Memory, u64) {
    let leader = Node::leader(&["--repl-ring=64"]);
    let follower = Node::follower(leader.copies, &[]);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    in_sync(&mut reader);
    let address = client.stream.peer_addr().unwrap();
    let run = |time: Duration| {
        let writer = Writer::start(address, STEADY);
        std::thread::sleep(time);
        writer.end()
    };
    let before = run(time);
    let resident = leader.resident();
    follower.program.stop();
    let during = run(time);
    let grown = leader.resident().saturating_sub(resident);
    eventually("it is not counted on", || {
        told(&mut client, "in_sync") == "0"
    });
    follower.program.signal("CONT");
    in_sync(&mut reader);
    expect_equal(&leader, &follower, STEADY);
    let all = all_told(&mut client);
    assert_eq!((&all["full_syncs"][..], &all["diff_syncs"][..]), ("0", "0"));
    // What had waited for it to go on was no sign of another time.
    assert_eq!(number(&mut reader, "clock_alarms"), 0);
    assert!(grown < (64 + 8 + 4) << 20, "{grown} bytes more");
    (before, during, grown)
}

#[test]
fn a_stopped_follower_holds_nobody_up_and_goes_on_from_the_log() {
    let (_, during, _) = stopped_follower(Duration::from_millis(500));
    assert!(during.acks > 0);
}

#[test]
#[ignore = "shows figures"]
fn what_a_stopped_follower_costs() {
    let (mut before, mut during, grown) = stopped_follower(Duration::from_secs(10));
    println!(
        "follower stopped for 10 s: p99 {:?} before, {:?} during; {} and {} mutations; {grown} bytes more",
        before.wait(0.99),
        during.wait(0.99),
        before.acks,
        during.acks
    );
}

/// Cuts of 200 ms, one a second.
fn flaps(seconds: u64) {
    let (leader, faults, follower) = pair(&[]);
    let mut client = leader.connect();
    let address = client.stream.peer_addr().unwrap();
    let quiet = Writer::start(address, STEADY);
    std::thread::sleep(Duration::from_secs(seconds.min(10)));
    let quiet = quiet.end().acks as f64 / seconds.min(10) as f64;
    let changes = number(&mut client, "in_sync_changes");
    let writer = Writer::start(address, STEADY);
    for _ in 0..seconds {
        faults.down(true);
        std::thread::sleep(Duration::from_millis(200));
        faults.down(false);
        std::thread::sleep(Duration::from_millis(800));
    }
    let flapping = writer.end().acks as f64 / seconds as f64;
    expect_equal(&leader, &follower, STEADY);
    let all = all_told(&mut client);
    let changes = all["in_sync_changes"].parse::<u64>().unwrap() - changes;
    println!(
        "cut for 200 ms {seconds} times: {} full, {} compared; {changes} changes of who is in sync; \
         {flapping:.0} mutations a second, {quiet:.0} without",
        all["full_syncs"], all["diff_syncs"]
    );
    assert_eq!((&all["full_syncs"][..], &all["diff_syncs"][..]), ("0", "0"));
    assert!(changes <= 3, "{changes}");
}

#[test]
fn who_flaps_goes_on_from_the_log() {
    flaps(3);
}

#[test]
#[ignore = "takes a minute"]
fn who_flaps_for_a_minute_goes_on_from_the_log() {
    flaps(60);
}

/// A follower that takes less than is written.
fn throttled(policy: &str, seconds: u64) {
    let policy = format!("--repl-backpressure={policy}");
    let (leader, faults, follower) = pair(&[&policy, "--repl-ring=8"]);
    let mut client = leader.connect();
    let address = client.stream.peer_addr().unwrap();
    faults.throttle(1 << 20);
    let how = How {
        bytes: 1000,
        depth: 5,
        ..STEADY
    };
    let writer = Writer::start(address, how);
    let mut out_of_sync = false;
    let since = Instant::now();
    eventually("enough has been tried", || {
        out_of_sync |= told(&mut client, "in_sync") == "0";
        // Until it has been felt, or would have been.
        since.elapsed() > Duration::from_secs(seconds)
            && (policy.ends_with("off") || number(&mut client, "pressed_back") > 0)
    });
    faults.throttle(0);
    let memory = writer.end();
    in_sync(&mut follower.connect());
    expect_equal(&leader, &follower, how);
    let all = all_told(&mut client);
    println!(
        "{policy}, 1 MB/s for {seconds} s: {} stored, {} refused, {} full, {} compared, out of sync: {out_of_sync}",
        memory.acks, memory.refused, all["full_syncs"], all["diff_syncs"]
    );
    match &policy[..] {
        "--repl-backpressure=delay" => {
            assert_eq!((memory.refused, &all["diff_syncs"][..]), (0, "0"));
        }
        "--repl-backpressure=refuse" => {
            assert!(memory.refused > 0);
            assert_eq!(all["diff_syncs"], "0");
        }
        _ => assert_eq!(memory.refused, 0),
    }
    assert_eq!(all["full_syncs"], "0");
}

#[test]
fn mutations_wait_for_a_slow_follower_if_that_is_wanted() {
    throttled("delay", 1);
}

#[test]
fn mutations_are_refused_while_a_follower_is_slow_if_that_is_wanted() {
    throttled("refuse", 1);
}

#[test]
#[ignore = "takes minutes"]
fn a_slow_follower_for_a_minute() {
    for policy in ["off", "delay", "refuse"] {
        throttled(policy, 60);
    }
}

/// Frames that are lost, doubled or damaged do no harm.
#[test]
fn what_is_tampered_with_does_no_harm() {
    let (leader, faults, follower) = pair(&[]);
    let mut client = leader.connect();
    let address = client.stream.peer_addr().unwrap();
    let writer = Writer::start(address, STEADY);
    for tamper in [Tamper::Drop, Tamper::Double, Tamper::Flip] {
        faults.tamper(tamper);
        eventually("that has been done", || faults.tampered());
        in_sync(&mut follower.connect());
    }
    writer.end();
    expect_equal(&leader, &follower, STEADY);
    let all = all_told(&mut client);
    assert_eq!((&all["full_syncs"][..], &all["diff_syncs"][..]), ("0", "0"));
}

/// Everything is late, and nothing is lost.
#[test]
fn a_long_way_is_no_failure() {
    let (leader, faults, follower) = pair(&[]);
    let address = leader.connect().stream.peer_addr().unwrap();
    let dialled = faults.accepted();
    faults.delay(Duration::from_millis(100));
    let writer = Writer::start(address, STEADY);
    eventually("it writes", || writer.acked() > 2000);
    writer.end();
    expect_equal(&leader, &follower, STEADY);
    assert_eq!(faults.accepted(), dialled, "the connection has held");
}

/// A follower's clients write through it. When the leader hangs, they hear of it and wait no longer.
#[test]
fn a_leader_that_hangs_holds_up_no_client_of_a_follower() {
    let leader = Node::leader(&[]);
    let follower = Node::follower(leader.copies, &["--follower-writes=forward"]);
    let mut client = follower.connect();
    in_sync(&mut client);
    eventually("mutations go to the leader", || {
        client.send("set k 0 0 1\r\nx\r\n");
        client.line() == "STORED"
    });
    let mut other = leader.connect();
    other.ask("get k\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n");
    leader.program.stop();
    client.send("set k 0 0 1\r\ny\r\n");
    let gone = "SERVER_ERROR the leader has gone, outcome unknown";
    assert_eq!(client.line(), gone);
    client.expect_end();
    // Once the follower has noticed, nothing is sent any more.
    let mut client = follower.connect();
    eventually("it is known that there is no leader", || {
        let mut asked = follower.connect();
        asked.send("set k 0 0 1\r\nz\r\n");
        asked.line() == "SERVER_ERROR not leader"
    });
    client.ask("get none\r\n", "END\r\n");
    leader.program.signal("CONT");
    eventually("it goes on", || {
        let mut asked = follower.connect();
        asked.send("set k 0 0 1\r\nz\r\n");
        asked.line() == "STORED"
    });
    other.ask("get k\r\n", "VALUE k 0 1\r\nz\r\nEND\r\n");
}

/// A follower comes again on another way before its leader has noticed that the first connection is dead.
#[test]
fn a_dead_connection_that_ends_late_takes_nobody_with_it() {
    let (leader, faults, follower) = pair(&["--repl-ack=1", "--repl-ack-timeout=60000"]);
    let (mut client, mut reader) = (leader.connect(), follower.connect());
    client.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    let sockets = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", leader.program.id()));
        let open = open.expect("its files").flatten();
        let targets = open.flat_map(|file| std::fs::read_link(file.path()));
        targets
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count()
    };
    let before = sockets();
    faults.silence(Way::Up, true);
    faults.silence(Way::Down, true);
    reader.ask(format!("repl follow {}\r\n", leader.copies), "OK\r\n");
    client.ask("set k 0 0 1\r\ny\r\n", "STORED\r\n");
    faults.cut();
    eventually("the first one has ended", || sockets() == before);
    assert_eq!(told(&mut client, "state"), "streaming");
    client.ask("set k 0 0 1\r\nz\r\n", "STORED\r\n");
    reader.ask("get k\r\n", "VALUE k 0 1\r\nz\r\nEND\r\n");
}
