//! `--follower-writes=forward` where the leader wants TLS, or to know who comes.

mod common;
#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/group.rs"]
mod group;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use common::binary::Packet;
use common::{Client, TestServer, program};
use group::{copying, eventually, read, stat};
use larder::settings::{Endpoint, EndpointTls, Protocol, Settings};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

const SET: u8 = 0x01;
const GET: u8 = 0x00;
const SASL_AUTH: u8 = 0x21;

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

/// A leader as `leads` has it, and a follower as `follows` has it, which forwards.
fn pair(
    leads: impl Fn(&mut Settings),
    follows: impl Fn(&mut Settings),
) -> (TestServer, TestServer) {
    let mut settings = copying(None);
    leads(&mut settings);
    let leader = TestServer::start_with(settings);
    let mut settings = copying(Some(&leader));
    settings.replication.forwards = true;
    follows(&mut settings);
    (leader, TestServer::start_with(settings))
}

fn say_who(client: &mut Client<TcpStream>, who: &str) {
    let request = format!("set auth 0 0 {}\r\n{who}\r\n", who.len());
    client.ask(request, "STORED\r\n");
}

/// The leader is connected when a write goes through; replies before that are refusals.
fn write_through(client: &mut Client<TcpStream>, key: &str) {
    eventually("a write goes through", || {
        client.send(format!("set {key} 0 0 1\r\nx\r\n"));
        let reply = client.line();
        assert!(
            ["STORED", "SERVER_ERROR not leader"].contains(&&*reply),
            "{reply}"
        );
        reply == "STORED"
    });
}

/// It never does.
fn is_refused(client: &mut Client<TcpStream>, follower: &TestServer) {
    eventually("the leader is known", || {
        group::told(&mut follower.connect(), "leader_clients").is_some()
    });
    for _ in 0..3 {
        client.ask("set k 0 0 1\r\nx\r\n", "SERVER_ERROR not leader\r\n");
    }
}

fn users(path: &Path) -> impl Fn(&mut Settings) {
    let path = path.to_owned();
    move |settings| {
        settings.security.auth_file = Some(path.clone());
        settings.listen.protocol = Protocol::Ascii;
    }
}

/// The users of `-Y`, by default the first of the follower's own.
#[test]
fn a_leader_with_users_is_shown_one() {
    let folder = tempfile::tempdir().unwrap();
    let known = file(folder.path(), "users", "foo:bar\nme:two words\n");
    let (leader, follower) = pair(users(&known), users(&known));
    let mut client = follower.connect();
    client.ask("repl forwarded\r\n", "CLIENT_ERROR unauthenticated\r\n");
    let mut client = follower.connect();
    say_who(&mut client, "me two words");
    write_through(&mut client, "k");
    client.ask(
        "incr n 1\r\nadd n 0 0 1\r\n1\r\nincr n 4\r\ndelete k\r\n",
        "NOT_FOUND\r\nSTORED\r\n5\r\nDELETED\r\n",
    );
    let mut direct = leader.connect();
    say_who(&mut direct, "foo bar");
    assert_eq!(read(&mut direct, "n").as_deref(), Some("5"));
    assert_eq!(read(&mut direct, "k"), None);
}

/// A file says who it is; the follower's own clients need not be anybody.
#[test]
fn whom_the_leader_is_shown_can_be_said() {
    let folder = tempfile::tempdir().unwrap();
    let known = file(folder.path(), "users", "foo:bar\nme:two words\n");
    let own = file(folder.path(), "own", "me:two words\n");
    let (_leader, follower) = pair(users(&known), |settings| {
        settings.replication.forwarding.user_file = Some(own.clone());
    });
    write_through(&mut follower.connect(), "k");

    let wrong = file(folder.path(), "wrong", "me:two word\n");
    let (_leader, follower) = pair(users(&known), |settings| {
        settings.replication.forwarding.user_file = Some(wrong.clone());
    });
    is_refused(&mut follower.connect(), &follower);

    // It has nobody to show.
    let (_leader, follower) = pair(users(&known), |_| {});
    is_refused(&mut follower.connect(), &follower);
}

/// To a leader that asks for nothing, credentials would be a value to store.
#[test]
fn a_leader_that_does_not_ask_is_shown_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let known = file(folder.path(), "users", "foo:bar\n");
    let (leader, follower) = pair(|_| {}, users(&known));
    let mut client = follower.connect();
    say_who(&mut client, "foo bar");
    write_through(&mut client, "k");
    assert_eq!(
        stat(&mut leader.connect(), "", "total_items").as_deref(),
        Some("1")
    );
    assert_eq!(read(&mut leader.connect(), "auth"), None);
}

/// Binary, with SASL.
#[test]
fn a_leader_with_sasl_is_shown_one_of_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let database = file(folder.path(), "database", "joe@example:secret\nann:pass\n");
    let sasl = |settings: &mut Settings| {
        settings.security.sasl_password_file = Some(database.clone());
        settings.security.sasl = true;
        settings.listen.protocol = Protocol::Binary;
    };
    let (leader, follower) = pair(sasl, sasl);
    let enter = |server: &TestServer| {
        let mut client = server.connect();
        let entered = client.call(Packet {
            opcode: SASL_AUTH,
            key: b"PLAIN",
            value: b"\0ann\0pass",
            ..Packet::default()
        });
        assert_eq!(entered.status, 0);
        client
    };
    // Nobody is let in by saying that he forwards.
    let stranger = follower.connect().call(Packet {
        opcode: 0xe0,
        key: b"forwarded",
        ..Packet::default()
    });
    assert_eq!(stranger.status, 0x20);
    let mut client = enter(&follower);
    let set = Packet {
        opcode: SET,
        extras: &[0; 8],
        key: b"k",
        value: b"x",
        ..Packet::default()
    };
    eventually("a write goes through", || {
        let status = client.call(set).status;
        assert!([0, 0x86].contains(&status), "{status}");
        status == 0
    });
    let got = enter(&leader).call(Packet {
        opcode: GET,
        key: b"k",
        ..Packet::default()
    });
    assert_eq!(got.value, b"x");
}

/// An authority, and a certificate that it has signed, in files.
struct Authority {
    folder: tempfile::TempDir,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        file(folder.path(), "ca", &issuer.pem());
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        file(folder.path(), "chain", &certificate.pem());
        file(folder.path(), "key", &key.serialize_pem());
        Authority { folder }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.path().join(name))
    }

    /// As with `-Z`, and certificates of clients looked at.
    fn guard(&self, settings: &mut Settings) {
        settings.tls.enabled = true;
        settings.tls.chain_cert = self.path("chain");
        settings.tls.key = self.path("key");
        settings.tls.ca_cert = self.path("ca");
        settings.tls.verify_mode = 2;
    }

    /// The same, and a listener without TLS for the test.
    fn guard_but_one(&self, settings: &mut Settings) {
        self.guard(settings);
        settings.listen.endpoints.insert(
            0,
            Endpoint {
                host: Some("127.0.0.1".to_owned()),
                tls: EndpointTls::Plain,
                ..Endpoint::default()
            },
        );
    }
}

/// A follower with `-Z` goes to its leader as its own clients come to it.
#[test]
fn a_leader_with_tls_is_spoken_to_so() {
    let authority = Authority::new("127.0.0.1");
    let guard = |settings: &mut Settings| authority.guard(settings);
    let (_leader, follower) = pair(guard, |settings| authority.guard_but_one(settings));
    write_through(&mut follower.connect(), "k");

    // Where the certificate has another name, that has to be said.
    let named = Authority::new("cache.example");
    let guard = |settings: &mut Settings| named.guard(settings);
    let (_leader, follower) = pair(guard, |settings| named.guard_but_one(settings));
    is_refused(&mut follower.connect(), &follower);
    let (_leader, follower) = pair(guard, |settings| {
        named.guard_but_one(settings);
        settings.replication.forwarding.name = Some("cache.example".to_owned());
    });
    write_through(&mut follower.connect(), "k");
}

/// A follower without TLS can speak it to its leader, and one with TLS need not.
#[test]
fn what_the_leader_speaks_counts() {
    let folder = tempfile::tempdir().unwrap();
    let known = file(folder.path(), "users", "foo:bar\n");
    let authority = Authority::new("127.0.0.1");
    // Both at once: TLS, and users.
    let guard = |settings: &mut Settings| {
        authority.guard(settings);
        settings.tls.verify_mode = 0;
        users(&known)(settings);
    };
    let (_leader, follower) = pair(guard, |settings| {
        settings.replication.forwarding.ca = authority.path("ca");
        settings.replication.forwarding.user_file = Some(known.clone());
    });
    write_through(&mut follower.connect(), "k");

    // Signed by somebody else.
    let other = Authority::new("127.0.0.1");
    let (_leader, follower) = pair(guard, |settings| {
        settings.replication.forwarding.ca = other.path("ca");
        settings.replication.forwarding.user_file = Some(known.clone());
    });
    is_refused(&mut follower.connect(), &follower);

    let (_leader, follower) = pair(
        |_| {},
        |settings| {
            authority.guard_but_one(settings);
            settings.replication.forwarding.tls = Some(false);
        },
    );
    write_through(&mut follower.connect(), "k");
}

/// Options that say nothing are refused.
#[test]
fn what_is_for_forwarding_needs_it() {
    let refused = |options: &[&str]| {
        let base = ["-p", "0", "--repl-listen=127.0.0.1:0"];
        let output = program(&[&base, options].concat()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{said}");
        said
    };
    assert!(refused(&["--forward-tls=on"]).contains("--follower-writes=forward"));
    assert!(refused(&["--follower-writes=forward", "--forward-tls=yes"]).contains("on or off"));
}
