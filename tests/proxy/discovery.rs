//! Servers that are found by name: a name server of the test's own says which there are.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder::settings::proxy::parse;
use simple_dns::rdata::{RData, SRV};
use simple_dns::{CLASS, Name, Packet, ResourceRecord};

use crate::common::{self, Program, TestServer};
use crate::fleet;

/// Where the program is told to write down its ports.
const PORTS: &str = "MEMCACHED_PORT_FILENAME";

/// Answers SRV questions with the servers it has now; with none it says nothing of them.
struct Names {
    address: SocketAddr,
    servers: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Names {
    fn of(servers: &[SocketAddr]) -> Names {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let servers = Arc::new(Mutex::new(servers.to_vec()));
        let known = servers.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                let Ok(asked) = Packet::parse(&bytes[..length]) else {
                    continue;
                };
                let mut packet = Packet::new_reply(asked.id());
                packet.questions.clone_from(&asked.questions);
                for server in known.lock().unwrap().iter() {
                    packet.answers.push(ResourceRecord::new(
                        asked.questions[0].qname.clone(),
                        CLASS::IN,
                        1,
                        RData::SRV(SRV {
                            priority: 1,
                            weight: 1,
                            port: server.port(),
                            target: Name::new("localhost").unwrap(),
                        }),
                    ));
                }
                let answer = packet.build_bytes_vec_compressed().unwrap();
                let _ = socket.send_to(&answer, from);
            }
        });
        Names { address, servers }
    }

    fn change(&self, servers: &[SocketAddr]) {
        *self.servers.lock().unwrap() = servers.to_vec();
    }
}

#[test]
fn a_pool_follows_its_srv_records() {
    let servers: Vec<TestServer> = (0..3).map(|_| TestServer::start()).collect();
    let places: Vec<SocketAddr> = servers.iter().map(TestServer::address).collect();
    let names = Names::of(&places[..2]);
    let text = format!(
        "[pools.all]\nsrv = \"_memcache._tcp.cache.test\"\nnameserver = \"{}\"\nresolve = \"20ms\"\ntimeout = \"20s\"\n",
        names.address
    );
    let proxy = fleet::proxy_with(parse(&text).unwrap());
    let mut client = proxy.connect();
    let mut round = 0;
    let mut set_all = || {
        round += 1;
        for n in 0..60 {
            client.ask(format!("set k{n} 0 0 3\r\n{round:03}\r\n"), "STORED\r\n");
            client.send(format!("get k{n}\r\n"));
            // Between the two the key may have moved, but what is there is what was written.
            if client.line() != "END" {
                client.expect(format!("{round:03}\r\nEND\r\n"));
            }
        }
    };
    let sets = |nth: usize| -> u32 { servers[nth].connect().stat("cmd_set").parse().unwrap() };
    set_all();
    assert!(sets(0) > 0 && sets(1) > 0 && sets(2) == 0);
    assert_eq!(sets(0) + sets(1), 60);
    // One more: it gets its share, and nobody notices otherwise.
    names.change(&places);
    let since = Instant::now();
    while sets(2) == 0 {
        set_all();
        assert!(since.elapsed() < Duration::from_secs(20), "never joined");
    }
    // One less: it gets nothing any more.
    names.change(&places[1..]);
    let mut before = sets(0);
    loop {
        set_all();
        let now = sets(0);
        if now == before {
            break;
        }
        before = now;
        assert!(since.elapsed() < Duration::from_secs(20), "never left");
    }
    // A name server that knows of nobody takes no cache away.
    names.change(&[]);
    for _ in 0..10 {
        set_all();
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(sets(0), before);
}

/// The name of a server stands for another address: what the system's resolver reads is a file of the
/// test's own, for which it takes root and a kernel that lets it.
#[test]
fn a_server_follows_its_name() {
    let allowed = std::process::Command::new("unshare")
        .args(["-m", "true"])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !allowed {
        println!("skipped: a mount namespace of its own is not to be had");
        return;
    }
    let first = TestServer::start();
    let port = first.address().port();
    let mut settings = common::settings();
    settings.listen.endpoints[0].host = Some("127.0.0.2".to_owned());
    settings.listen.endpoints[0].port = Some(port);
    settings.listen.tcp_port = i32::from(port);
    let second = TestServer::start_with(settings);
    first
        .connect()
        .ask("set where 0 0 5\r\nfirst\r\n", "STORED\r\n");
    second
        .connect()
        .ask("set where 0 0 6\r\nsecond\r\n", "STORED\r\n");

    let folder = tempfile::tempdir().unwrap();
    let (hosts, config) = (folder.path().join("hosts"), folder.path().join("toml"));
    std::fs::write(&hosts, "127.0.0.1 cache.test\n").unwrap();
    let text = format!(
        "[pools.all]\nservers = [\"cache.test:{port}\"]\nresolve = \"20ms\"\ntimeout = \"20s\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let proxy = Program::start_with(&[], |command| {
        let ports = command.get_envs().find(|(name, _)| *name == PORTS);
        let ports = ports.and_then(|(_, value)| value).unwrap().to_owned();
        let inside = "mount --bind \"$1\" /etc/hosts; shift; exec \"$@\"";
        *command = std::process::Command::new("unshare");
        command
            .args(["-m", "sh", "-c", inside, "sh"])
            .arg(&hosts)
            .arg(env!("CARGO_BIN_EXE_larder"))
            .args([
                "proxy",
                "-u",
                "root",
                "-l",
                "127.0.0.1",
                "-p",
                "-1",
                "-t",
                "2",
                "--config",
            ])
            .arg(&config)
            .env(PORTS, ports);
    });
    let mut clients: Vec<_> = (0..4).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.ask("get where\r\n", "VALUE where 0 5\r\nfirst\r\nEND\r\n");
    }
    std::fs::write(&hosts, "127.0.0.2 cache.test\n").unwrap();
    let since = Instant::now();
    for client in &mut clients {
        loop {
            client.send("get where\r\n");
            client.line();
            let said = client.line();
            client.expect("END\r\n");
            if said == "second" {
                break;
            }
            assert_eq!(said, "first");
            assert!(since.elapsed() < Duration::from_secs(20), "never moved");
        }
    }
    // The connections to the old one have ended, but for the one that asks.
    let mut direct = first.connect();
    while direct.stat("curr_connections") != "1" {
        assert!(since.elapsed() < Duration::from_secs(20));
    }
}
