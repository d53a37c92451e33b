//! Nodes, as programs of their own.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Client, Program};

/// How long a test waits for what takes a moment.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    pub program: Program,
    /// Where copies connect to.
    pub copies: SocketAddr,
}

impl Node {
    pub fn start(options: &[&str]) -> Node {
        Node::start_with(options, |_| {})
    }

    /// The same, with something of the command changed.
    pub fn start_with(options: &[&str], change: impl FnOnce(&mut Command)) -> Node {
        let plain = ["-l", "127.0.0.1", "-p", "-1", "-t", "2", "-m", "256"];
        let here = "--repl-listen=127.0.0.1:0";
        let listens = options
            .iter()
            .any(|option| option.starts_with("--repl-listen"));
        let mut all = plain.to_vec();
        if !listens {
            all.push(here);
        }
        all.extend(options);
        let program = Program::start_with(&all, change);
        let copies = told(&mut program.connect(), "listens").parse();
        Node {
            program,
            copies: copies.expect("an address for copies"),
        }
    }

    pub fn leader(options: &[&str]) -> Node {
        let mut all = vec!["--repl-recover=0"];
        all.extend(options);
        Node::start(&all)
    }

    /// A copy of whoever listens there.
    pub fn follower(of: SocketAddr, options: &[&str]) -> Node {
        let follow = format!("--follow={of}");
        let mut all = vec![&follow[..]];
        all.extend(options);
        Node::start(&all)
    }

    pub fn connect(&self) -> Client<TcpStream> {
        self.program.connect()
    }

    /// Processor time that it has taken.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.program.id()));
        let stat = stat.expect("a process");
        // Behind the name, which may contain anything.
        let (_, fields) = stat.rsplit_once(')').expect("its name");
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks
            .map(|ticks| ticks.parse::<u64>().expect("ticks"))
            .sum();
        // Of a hundredth of a second each, on every Linux that is met.
        Duration::from_millis(ticks * 10)
    }

    /// Bytes of memory that it has touched.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.program.id()));
        let status = status.expect("a process");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let words: Vec<&str> = line.expect("a line").split_whitespace().collect();
        words[1].parse::<u64>().expect("a number") << 10
    }
}

/// Everything that `stats replication` tells. Of followers, by the last word; the last one counts.
pub fn all_told(client: &mut Client<TcpStream>) -> HashMap<String, String> {
    client.send("stats replication\r\n");
    let mut all = HashMap::new();
    loop {
        let line = client.line();
        if line == "END" {
            return all;
        }
        let mut words = line.splitn(3, ' ').skip(1);
        if let (Some(name), Some(value)) = (words.next(), words.next()) {
            let name = name.rsplit(':').next().expect("a name");
            let ours = all.contains_key(name) && !line.contains(':');
            if !ours {
                all.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}

#[track_caller]
pub fn told(client: &mut Client<TcpStream>, name: &str) -> String {
    let mut all = all_told(client);
    all.remove(name).unwrap_or_else(|| panic!("no {name}"))
}

#[track_caller]
pub fn number(client: &mut Client<TcpStream>, name: &str) -> u64 {
    told(client, name).parse().expect("a number")
}

/// Waits for something; how long it took.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    since.elapsed()
}

/// Waits until a copy has everything that its leader has logged.
#[track_caller]
pub fn caught_up(leader: &mut Client<TcpStream>, copy: &mut Client<TcpStream>) -> Duration {
    eventually("the copy has caught up", || {
        let copy = all_told(copy);
        copy.get("whole_partitions").map(String::as_str) == Some("64")
            && copy.get("records") == all_told(leader).get("records")
    })
}

/// Waits until a follower counts as in sync, and knows that.
#[track_caller]
pub fn in_sync(copy: &mut Client<TcpStream>) {
    eventually("it counts as in sync", || told(copy, "in_sync") == "1");
}

/// Reads keys; those that are there, with their values and CAS ids.
pub fn items(
    client: &mut Client<TcpStream>,
    keys: impl Iterator<Item = String>,
) -> HashMap<String, (String, u64)> {
    let keys: Vec<String> = keys.collect();
    let mut found = HashMap::new();
    for keys in keys.chunks(100) {
        client.send(format!("gets {}\r\n", keys.join(" ")));
        loop {
            let line = client.line();
            if line == "END" {
                break;
            }
            let words: Vec<&str> = line.split(' ').collect();
            let value = client.line();
            let cas = words[4].parse().expect("a CAS id");
            found.insert(words[1].to_owned(), (value, cas));
        }
    }
    found
}
