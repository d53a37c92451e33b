//! A group comes onto the ring, and two proxies hear of it one after the other.

mod common;
#[path = "common/dice.rs"]
mod dice;
#[path = "failures/faults.rs"]
#[allow(dead_code)]
mod faults;
#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/group.rs"]
mod group;

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{Client, TestServer, settings};
use dice::Dice;
use faults::Faults;
use gateway::Gateway;
use group::{copying, elected, eventually, read, stat, write};
use larder::settings::proxy::{Mode, parse};

/// How long what etcd has to say is on its way to one of the proxies, that something has changed, the question
/// what, and the answer.
const LATE: Duration = Duration::from_millis(150);

/// One node that has all keys, and two proxies in front of it.
struct Stage {
    gateway: Gateway,
    first: TestServer,
    second: Option<TestServer>,
    proxies: [TestServer; 2],
    _late: Faults,
}

impl Stage {
    fn set(rules: &str) -> Stage {
        let gateway = Gateway::start();
        let first = TestServer::start_with(elected(&gateway, "a", "g1"));
        eventually("the node is registered", || {
            gateway.with(|store| store.value("/larder/larder/g/g1/leader").is_some())
        });
        let url = gateway.url();
        let address: SocketAddr = url.trim_start_matches("http://").parse().unwrap();
        let late = Faults::before(address);
        let proxy = |url: &str, route: &str| {
            let text = format!(
                "hot_keys = false\n{route}\n[pools.main]\ntimeout = \"20s\"\n{rules}\n\
                 etcd = {{ endpoints = [\"{url}\"] }}"
            );
            let mut settings = settings();
            settings.proxy = Some(Mode {
                proxy: parse(&text).unwrap(),
                file: None,
            });
            TestServer::start_with(settings)
        };
        // Through one of them a pool is reached by a longer way.
        let limit = "route = { limit = { to = \"main\", in_flight = 1000 } }";
        let proxies = [
            proxy(&url, ""),
            proxy(&format!("http://{}", late.address()), limit),
        ];
        late.delay(LATE);
        write(&mut proxies[0].connect(), "k", "x");
        write(&mut proxies[1].connect(), "k", "x");
        Stage {
            gateway,
            first,
            second: None,
            proxies,
            _late: late,
        }
    }

    /// Another group comes.
    fn enter(&mut self) {
        let node = elected(&self.gateway, "b", "g2");
        self.second = Some(TestServer::start_with(node));
    }

    /// Whether it has got keys.
    fn has_moved(&self) -> bool {
        let second = self.second.as_ref().unwrap();
        let count = stat(&mut second.connect(), "", "curr_items").unwrap();
        count != "0"
    }
}

/// Whatever is done through one of them is read through both, before, while and after keys move.
#[test]
fn both_proxies_read_what_either_has_written() {
    const KEYS: usize = 24;
    let mut stage = Stage::set("settle = \"2s\"\nwarm = \"1h\"");
    let mut clients = [0, 1].map(|at| stage.proxies[at].connect());
    let mut values: Vec<Option<String>> = vec![None; KEYS];
    let mut dice = Dice::new(7);
    let mut count = 0;
    let mut moved = 0;
    let since = Instant::now();
    while moved < 500 {
        assert!(since.elapsed() < Duration::from_secs(60), "no key moves");
        count += 1;
        if count == 50 {
            stage.enter();
        }
        if moved > 0 || count % 50 == 0 && count > 50 && stage.has_moved() {
            moved += 1;
        }
        let at = dice.roll(KEYS as u64) as usize;
        let client = &mut clients[dice.roll(2) as usize];
        values[at] = change(
            client,
            &format!("m{at}"),
            values[at].take(),
            count,
            &mut dice,
        );
        for client in &mut clients {
            let held = read(client, &format!("m{at}"));
            assert_eq!(held, values[at], "m{at} after {count}");
        }
    }
    drop(stage.first);
}

/// Changes a key; what it holds then.
fn change(
    client: &mut Client<TcpStream>,
    key: &str,
    held: Option<String>,
    count: usize,
    dice: &mut Dice,
) -> Option<String> {
    let number = count.to_string();
    let length = number.len();
    match dice.roll(7) {
        0 => {
            let there = held.is_some();
            client.send(format!("delete {key}\r\n"));
            assert_eq!(client.line(), if there { "DELETED" } else { "NOT_FOUND" });
            None
        }
        1 => {
            client.send(format!("incr {key} 1\r\n"));
            let line = client.line();
            let next = held.map(|value| value.parse::<u64>().unwrap() + 1);
            let next = next.map(|value| value.to_string());
            assert_eq!(line, next.clone().unwrap_or("NOT_FOUND".to_owned()));
            next
        }
        2 => {
            client.send(format!("append {key} 0 0 1\r\n1\r\n"));
            let line = client.line();
            // It stays a number.
            let next = held.map(|value| format!("{value}1"));
            assert_eq!(line, next.as_ref().map_or("NOT_STORED", |_| "STORED"));
            if next.as_ref().is_some_and(|value| value.len() > 15) {
                client.ask(format!("set {key} 0 0 1\r\n5\r\n"), "STORED\r\n");
                return Some("5".to_owned());
            }
            next
        }
        3 => {
            client.send(format!("add {key} 0 0 {length}\r\n{number}\r\n"));
            let stored = held.is_none();
            assert_eq!(client.line(), if stored { "STORED" } else { "NOT_STORED" });
            held.or(Some(number))
        }
        4 => {
            client.send(format!("replace {key} 0 0 {length}\r\n{number}\r\n"));
            let stored = held.is_some();
            assert_eq!(client.line(), if stored { "STORED" } else { "NOT_STORED" });
            held.map(|_| number)
        }
        5 => {
            // Too long to be passed on in one piece.
            let long = format!("{number:0>40000}");
            client.send(format!("set {key} 0 0 {}\r\n{long}\r\n", long.len()));
            assert_eq!(client.line(), "STORED");
            client.ask(
                format!("set {key} 0 0 {length}\r\n{number}\r\n"),
                "STORED\r\n",
            );
            Some(number)
        }
        _ => {
            client.send(format!("set {key} 0 0 {length}\r\n{number}\r\n"));
            assert_eq!(client.line(), "STORED");
            Some(number)
        }
    }
}

/// Many read and bring over what others write and delete at the same time: nobody reads what is older than what
/// had been acknowledged when he asked, wherever it is, and when keys are looked for no more where they were.
#[test]
fn nothing_old_comes_back_while_keys_move() {
    const KEYS: usize = 24;
    let mut stage = Stage::set("settle = \"1500ms\"\nwarm = \"1s\"");
    let acked: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
    let over = AtomicBool::new(false);
    let addresses = [0, 1].map(|at| stage.proxies[at].address());
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..5 {
            let (acked, over) = (&acked, &over);
            threads.push(scope.spawn(move || match number {
                0 | 1 => change_all(addresses, acked, number, over),
                _ => read_all(addresses, acked, number, over),
            }));
        }
        std::thread::sleep(Duration::from_millis(200));
        stage.enter();
        let since = Instant::now();
        let all_is_well = || threads.iter().all(|thread| !thread.is_finished());
        while !stage.has_moved() && since.elapsed() < Duration::from_secs(30) && all_is_well() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let moved = stage.has_moved();
        // Until nothing is looked for any more where it was.
        while since.elapsed() < Duration::from_secs(5) && all_is_well() {
            std::thread::sleep(Duration::from_millis(20));
        }
        over.store(true, SeqCst);
        let steps: Vec<usize> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert!(
            moved && steps.iter().all(|steps| *steps > KEYS),
            "{steps:?}"
        );
    });
}

/// Writes and deletes keys of its own, each with a number that rises.
fn change_all(
    proxies: [SocketAddr; 2],
    acked: &[AtomicU64],
    number: usize,
    over: &AtomicBool,
) -> usize {
    let mut clients = proxies.map(Client::<TcpStream>::to);
    let mut dice = Dice::new(number as u64 + 1);
    let mut steps = 0;
    while !over.load(SeqCst) {
        let at = dice.roll(acked.len() as u64 / 2) as usize * 2 + number;
        let client = &mut clients[dice.roll(2) as usize];
        let next = acked[at].load(SeqCst) + 1;
        if dice.roll(3) == 0 {
            client.send(format!("delete v{at}\r\n"));
        } else {
            let length = next.to_string().len();
            client.send(format!("set v{at} 0 0 {length}\r\n{next}\r\n"));
        }
        let line = client.line();
        assert!(
            ["STORED", "DELETED", "NOT_FOUND"].contains(&&*line),
            "{line}"
        );
        acked[at].store(next, SeqCst);
        steps += 1;
    }
    steps
}

fn read_all(
    proxies: [SocketAddr; 2],
    acked: &[AtomicU64],
    number: usize,
    over: &AtomicBool,
) -> usize {
    let mut clients = proxies.map(Client::<TcpStream>::to);
    let mut dice = Dice::new(number as u64 + 1);
    let mut steps = 0;
    while !over.load(SeqCst) {
        let at = dice.roll(acked.len() as u64) as usize;
        let least = acked[at].load(SeqCst);
        let held = read(&mut clients[dice.roll(2) as usize], &format!("v{at}"));
        let held = held.map(|value| value.parse::<u64>().unwrap());
        assert!(
            held.is_none_or(|held| held >= least),
            "v{at}: {held:?} is older than {least}"
        );
        steps += 1;
    }
    steps
}

/// What fills a key by a token does so only if nobody has changed or deleted it since.
#[test]
fn a_token_is_void_when_its_key_has_changed() {
    let leader = TestServer::start_with(copying(None));
    let follower = TestServer::start_with(copying(Some(&leader)));
    let mut client = leader.connect();
    let token = |client: &mut Client<TcpStream>| {
        client.send("repl lease k\r\n");
        let line = client.line();
        line.strip_prefix("LEASE ").expect(&line).to_owned()
    };
    let fill = |client: &mut Client<TcpStream>, token: &str| {
        client.send(format!("lease-set k {token} 0 0 3\r\nold\r\n"));
        client.line()
    };
    let first = token(&mut client);
    assert_eq!(token(&mut client), first, "those who bring it share it");
    client.ask("delete k\r\n", "NOT_FOUND\r\n");
    assert_eq!(fill(&mut client, &first), "NOT_STORED");
    let second = token(&mut client);
    assert_ne!(second, first);
    client.ask("set k 0 0 3\r\nnew\r\n", "STORED\r\n");
    assert_eq!(fill(&mut client, &second), "NOT_STORED");
    // It is there already, whoever has a token.
    let third = token(&mut client);
    assert_eq!(fill(&mut client, &third), "NOT_STORED");
    assert_eq!(read(&mut client, "k").as_deref(), Some("new"));
    client.ask("delete k\r\n", "DELETED\r\n");
    let fourth = token(&mut client);
    assert_eq!(fill(&mut client, &fourth), "STORED");
    client.ask("delete k\r\n", "DELETED\r\n");
    assert_eq!(fill(&mut client, &fourth), "NOT_STORED", "once");
    follower
        .connect()
        .ask("repl lease k\r\n", "SERVER_ERROR not leader\r\n");
}
