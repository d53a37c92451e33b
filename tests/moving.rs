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

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::binary::Packet;
use common::{Client, TestServer, settings};
use dice::Dice;
use faults::Faults;
use gateway::Gateway;
use group::{copying, elected, eventually, read, stat, write};
use larder::settings::proxy::{Mode, parse};
use serde_json::json;

/// How long what etcd has to say is on its way to one of the proxies, that something has changed, the question
/// what, and the answer.
const LATE: Duration = Duration::from_millis(150);

/// One node that has all keys, groups that have come since, and two proxies in front of them.
struct Stage {
    gateway: Gateway,
    first: TestServer,
    groups: Vec<TestServer>,
    proxies: [TestServer; 2],
    _late: Faults,
}

impl Stage {
    fn set(rules: &str) -> Stage {
        let gateway = Gateway::start();
        let first = node(&gateway, "g1");
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
            groups: Vec::new(),
            proxies,
            _late: late,
        }
    }

    /// Another group comes.
    fn enter(&mut self) {
        let group = format!("g{}", self.groups.len() + 2);
        self.groups.push(node(&self.gateway, &group));
    }

    /// Whether the last one has got keys.
    fn has_moved(&self) -> bool {
        let last = self.groups.last().unwrap();
        let count = stat(&mut last.connect(), "", "curr_items").unwrap();
        count != "0"
    }
}

/// The only node of a group, which takes long values.
fn node(gateway: &Gateway, group: &str) -> TestServer {
    let mut settings = elected(gateway, &format!("of-{group}"), group);
    settings.store.item_size_max = 16 << 20;
    TestServer::start_with(settings)
}

/// What keys hold, as clients of both proxies have left them.
struct Kept {
    clients: [Client<TcpStream>; 2],
    values: Vec<Option<String>>,
    dice: Dice,
    count: usize,
}

impl Kept {
    fn new(stage: &Stage, through: [usize; 2]) -> Kept {
        Kept {
            clients: through.map(|at| stage.proxies[at].connect()),
            values: vec![None; 24],
            dice: Dice::new(7),
            count: 0,
        }
    }

    /// Changes a key through one of them, and reads it through both.
    fn step(&mut self) {
        self.count += 1;
        let at = self.dice.roll(self.values.len() as u64) as usize;
        let client = &mut self.clients[self.dice.roll(2) as usize];
        let key = format!("m{at}");
        let held = self.values[at].take();
        self.values[at] = change(client, &key, held, self.count, &mut self.dice);
        for client in &mut self.clients {
            let held = read(client, &key);
            assert_eq!(held, self.values[at], "{key} after {}", self.count);
        }
    }

    /// Goes on until keys have moved to the group that has come last, and for so many steps.
    fn follow(&mut self, stage: &Stage, more: usize) {
        let since = Instant::now();
        while !stage.has_moved() {
            assert!(since.elapsed() < Duration::from_secs(60), "no key moves");
            (0..50).for_each(|_| self.step());
        }
        (0..more).for_each(|_| self.step());
    }
}

/// Whatever is done through one of them is read through both, before, while and after keys move.
#[test]
fn both_proxies_read_what_either_has_written() {
    let mut stage = Stage::set("settle = \"2s\"\nwarm = \"1h\"");
    let mut kept = Kept::new(&stage, [0, 1]);
    (0..50).for_each(|_| kept.step());
    stage.enter();
    kept.follow(&stage, 500);
}

/// Nothing is lost if another group comes while keys go to the first: one move ends before the next begins.
/// (How far apart two proxies are in that is tried where there is no clock.)
#[test]
fn a_group_that_comes_while_keys_move_gets_them_after_that() {
    let mut stage = Stage::set("settle = \"500ms\"\nwarm = \"1h\"");
    let mut kept = Kept::new(&stage, [0, 0]);
    stage.enter();
    kept.follow(&stage, 200);
    stage.enter();
    kept.follow(&stage, 300);
}

/// A group that is taken off while keys come to it takes with it what it had, and no more.
#[test]
fn a_group_that_is_gone_is_missed() {
    let mut stage = Stage::set("settle = \"500ms\"\nwarm = \"1h\"");
    let mut client = stage.proxies[0].connect();
    let keys: Vec<String> = (0..16).map(|at| format!("k{at}")).collect();
    stage.enter();
    eventually("the new group gets what is written", || {
        keys.iter().for_each(|key| write(&mut client, key, "x"));
        stage.has_moved()
    });
    drop(stage.groups.pop());
    let isr = STANDARD.encode("/larder/larder/g/g2/isr");
    let delete = json!({"success": [{"request_delete_range": {"key": isr}}]});
    stage
        .gateway
        .with(|store| store.call("/v3/kv/txn", &delete, 0).unwrap());
    let mut missed = 0;
    eventually("its keys are where they are written now", || {
        missed = 0;
        keys.iter().all(|key| {
            client.send(format!("get {key}\r\n"));
            let line = client.line();
            match &*line {
                "END" => missed += 1,
                refusal if refusal.starts_with("SERVER_ERROR ") => return false,
                _ => {
                    assert_eq!(client.line(), "x");
                    assert_eq!(client.line(), "END");
                }
            }
            true
        })
    });
    assert!((1..keys.len()).contains(&missed), "{missed} are missed");
    keys.iter().for_each(|key| write(&mut client, key, "y"));
    for key in &keys {
        assert_eq!(read(&mut client, key).as_deref(), Some("y"));
    }
}

/// A counter that begins where it is not found goes on when its key is in another place.
#[test]
fn a_counter_goes_on_while_its_key_moves() {
    let mut stage = Stage::set("settle = \"2s\"\nwarm = \"1h\"");
    let mut text = [0, 1].map(|at| stage.proxies[at].connect());
    let mut binary = [0, 1].map(|at| stage.proxies[at].connect());
    let mut counts = [0; 16];
    let mut dice = Dice::new(11);
    let mut moved = 0;
    let since = Instant::now();
    for step in 0.. {
        if step == 50 {
            stage.enter();
        }
        if moved > 0 || step % 50 == 0 && step > 50 && stage.has_moved() {
            moved += 1;
        }
        if moved > 300 {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "no key moves");
        let at = dice.roll(counts.len() as u64) as usize;
        let key = format!("c{at}");
        let proxy = dice.roll(2) as usize;
        counts[at] += 1;
        if dice.roll(2) == 0 {
            text[proxy].send(format!("ma {key} N0 J1 v\r\n"));
            text[proxy].line();
            assert_eq!(text[proxy].line(), counts[at].to_string(), "{key}");
        } else {
            let mut extras = [1_u64.to_be_bytes(); 2].concat();
            extras.extend_from_slice(&[0; 4]);
            let answer = binary[proxy].call(Packet {
                opcode: 0x05,
                extras: &extras,
                key: key.as_bytes(),
                ..Packet::default()
            });
            let value = u64::from_be_bytes(answer.value.try_into().unwrap());
            assert_eq!((answer.status, value), (0, counts[at]), "{key}");
        }
    }
}

/// A value that is too long to be kept takes its time: what its key is given in the other place meanwhile has
/// gone before the client is told.
#[test]
fn a_long_value_is_what_both_places_have_come_to() {
    let long = |digit: char| String::from(digit).repeat(9 << 20);
    // It stays where it was.
    let mut stage = Stage::set("settle = \"60s\"");
    let mut client = stage.proxies[0].connect();
    stage.enter();
    let mut second = stage.groups[0].connect();
    // What is in the new place only is read from the time on when the group is known.
    for at in 0..8 {
        write(&mut second, &format!("k{at}"), "new");
    }
    let mut moves = None;
    eventually("a key belongs to the new group", || {
        moves = (0..8).find(|at| read(&mut client, &format!("k{at}")).is_some());
        moves.is_some()
    });
    let key = format!("k{}", moves.unwrap());
    let mut told = long_value(&mut client, &format!("set {key} 0 0"), &long('1'), || {
        write(&mut second, &key, "brought over");
    });
    assert_eq!(told, "STORED");
    assert_eq!(
        read(&mut second, &key),
        None,
        "the new place has forgotten it"
    );
    holds(&mut client, &key, &long('1'));

    // It is brought over.
    let mut stage = Stage::set("settle = \"300ms\"\nwarm = \"1h\"");
    client = stage.proxies[0].connect();
    write(&mut client, &key, "x");
    stage.enter();
    let mut first = stage.first.connect();
    second = stage.groups[0].connect();
    eventually("keys come over", || {
        assert_eq!(read(&mut client, &key).as_deref(), Some("x"));
        read(&mut second, &key).is_some()
    });
    told = long_value(&mut client, &format!("set {key} 0 0"), &long('2'), || {
        eventually("the old place has forgotten it", || {
            read(&mut first, &key).is_none()
        });
        write(&mut first, &key, "through another proxy");
    });
    assert_eq!(told, "STORED");
    assert_eq!(read(&mut first, &key), None, "once more");
    holds(&mut client, &key, &long('2'));

    // What needs a value has it brought over first.
    client.ask(format!("delete {key}\r\n"), "DELETED\r\n");
    write(&mut first, &key, "begun");
    told = long_value(
        &mut client,
        &format!("append {key} 0 0"),
        &long('3'),
        || {
            eventually("it has come over", || {
                read(&mut second, &key).as_deref() == Some("begun")
            });
        },
    );
    assert_eq!(told, "STORED");
    assert_eq!(read(&mut first, &key), None);
    holds(&mut client, &key, &format!("begun{}", long('3')));

    // Who goes before it is whole has stored nothing, and holds up nobody.
    let mut gone = stage.proxies[0].connect();
    gone.send(format!("set {key} 0 0 {}\r\nhalf", 9 << 20));
    drop(gone);
    client.ask(format!("delete {key}\r\n"), "DELETED\r\n");
    told = long_value(
        &mut client,
        &format!("replace {key} 0 0"),
        &long('4'),
        || {},
    );
    assert_eq!(told, "NOT_STORED");
    assert_eq!(read(&mut client, &key), None);
}

/// As [`read`], for long values.
#[track_caller]
fn holds(client: &mut Client<TcpStream>, key: &str, value: &str) {
    let told = format!("VALUE {key} 0 {}\r\n{value}\r\nEND\r\n", value.len());
    client.ask(format!("get {key}\r\n"), told);
}

/// Sends a value in two pieces, with something between them.
fn long_value(
    client: &mut Client<TcpStream>,
    head: &str,
    value: &str,
    between: impl FnOnce(),
) -> String {
    let (one, other) = value.split_at(value.len() / 2);
    client.send(format!("{head} {}\r\n{one}", value.len()));
    between();
    client.send(format!("{other}\r\n"));
    client.line()
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
    match dice.roll(10) {
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
            client.send(format!("ma {key} N0 J5 v\r\n"));
            client.line();
            let next = held.map_or(5, |value| value.parse::<u64>().unwrap() + 1);
            assert_eq!(client.line(), next.to_string());
            Some(next.to_string())
        }
        6 => {
            client.ask(format!("ms {key} 1 MA N0\r\n1\r\n"), "HD\r\n");
            let next = held.map_or("1".to_owned(), |value| value + "1");
            if next.len() > 15 {
                client.ask(format!("set {key} 0 0 1\r\n5\r\n"), "STORED\r\n");
                return Some("5".to_owned());
            }
            Some(next)
        }
        7 => {
            // It is created empty.
            client.send(format!("mg {key} v N0\r\n"));
            client.line();
            assert_eq!(client.line(), held.clone().unwrap_or_default());
            if held.is_none() {
                client.ask(format!("set {key} 0 0 1\r\n5\r\n"), "STORED\r\n");
            }
            held.or(Some("5".to_owned()))
        }
        8 => {
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
            threads.push(scope.spawn(move || {
                until_over(addresses, number, over, |client, dice| match number {
                    0 | 1 => change_one(client, acked, number, dice),
                    _ => read_one(client, acked, dice),
                })
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

/// Takes steps through either proxy until it is over; how many.
fn until_over(
    proxies: [SocketAddr; 2],
    number: usize,
    over: &AtomicBool,
    mut step: impl FnMut(&mut Client<TcpStream>, &mut Dice),
) -> usize {
    let mut clients = proxies.map(Client::<TcpStream>::to);
    let mut dice = Dice::new(number as u64 + 1);
    let mut steps = 0;
    while !over.load(SeqCst) {
        let client = &mut clients[dice.roll(2) as usize];
        step(client, &mut dice);
        steps += 1;
    }
    steps
}

/// Writes or deletes a key of one's own; what it is given rises.
fn change_one(client: &mut Client<TcpStream>, acked: &[AtomicU64], number: usize, dice: &mut Dice) {
    let at = dice.roll(acked.len() as u64 / 2) as usize * 2 + number;
    let next = acked[at].load(SeqCst) + 1;
    if dice.roll(3) == 0 {
        client.send(format!("delete v{at}\r\n"));
    } else {
        let length = next.to_string().len();
        client.send(format!("set v{at} 0 0 {length}\r\n{next}\r\n"));
    }
    let line = client.line();
    let told = ["STORED", "DELETED", "NOT_FOUND"];
    assert!(told.contains(&&*line), "{line}");
    acked[at].store(next, SeqCst);
}

fn read_one(client: &mut Client<TcpStream>, acked: &[AtomicU64], dice: &mut Dice) {
    let at = dice.roll(acked.len() as u64) as usize;
    let least = acked[at].load(SeqCst);
    let held = read(client, &format!("v{at}"));
    let held = held.map(|value| value.parse::<u64>().unwrap());
    assert!(
        held.is_none_or(|held| held >= least),
        "v{at}: {held:?} is older than {least}"
    );
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
