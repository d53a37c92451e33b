//! TLS: `-Z`, certificates on both sides, what breaks it, and what must not be held up by it.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder::settings::{Endpoint, EndpointTls, Journal, PeerTls, Settings};
use rcgen::{
    Certificate, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    SupportedProtocolVersion, version,
};

use common::{Client, Program, TestServer, program, settings};

const PATIENCE: Duration = Duration::from_secs(30);

type Secure = Client<StreamOwned<ClientConnection, TcpStream>>;

/// An authority, with the certificates it has signed in files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

/// A certificate and its key.
struct Identity {
    certificate: Certificate,
    key: KeyPair,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = Authority {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
            folder: tempfile::tempdir().unwrap(),
        };
        fs::write(authority.path("ca"), authority.issuer.pem()).unwrap();
        authority.install(&authority.sign("localhost"));
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sign(&self, name: &str) -> Identity {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate, key }
    }

    /// Makes it the server's, from its next reload on.
    fn install(&self, identity: &Identity) {
        fs::write(self.path("key"), identity.key.serialize_pem()).unwrap();
        fs::write(self.path("chain"), identity.certificate.pem()).unwrap();
    }

    fn settings(&self) -> Settings {
        let mut settings = settings();
        settings.tls.enabled = true;
        settings.tls.chain_cert = Some(self.path("chain"));
        settings.tls.key = Some(self.path("key"));
        settings.tls.ca_cert = Some(self.path("ca"));
        settings
    }

    /// The same for the program.
    fn options(&self) -> String {
        let shown = |name| self.path(name).display().to_string();
        format!("ssl_chain_cert={},ssl_key={}", shown("chain"), shown("key"))
    }

    /// What a client of these versions asks for, who shows `identity` if asked.
    fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<&Identity>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
                builder
                    .with_client_auth_cert(vec![identity.certificate.der().clone()], key)
                    .unwrap()
            }
        })
    }

    fn plain_client(&self) -> Arc<ClientConfig> {
        self.client(&[&version::TLS13, &version::TLS12], None)
    }
}

fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Secure {
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(config.clone(), name).unwrap();
    Client {
        stream: StreamOwned::new(session, Client::to(address).stream),
    }
}

/// Whether the server serves such a client.
fn is_served(address: SocketAddr, config: &Arc<ClientConfig>) -> bool {
    let mut client = connect(address, config);
    // TLS 1.3 tells a client that its certificate is wrong after it has sent its first request.
    let mut answer = [0; 7];
    client.stream.write_all(b"version\r\n").is_ok()
        && client.stream.read_exact(&mut answer).is_ok()
        && answer == *b"VERSION"
}

/// Asks again and again until it is so.
fn wait_until(mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn values_go_both_ways_under_either_version() {
    let authority = Authority::new();
    let server = TestServer::start_with(authority.settings());
    let value = "0123456789".repeat(90_000);
    for version in [&version::TLS12, &version::TLS13] {
        let mut client = connect(server.address(), &authority.client(&[version], None));
        client.ask("set a 0 0 1\r\nx\r\n", "STORED\r\n");
        client.ask(
            "get a\r\n".repeat(500),
            "VALUE a 0 1\r\nx\r\nEND\r\n".repeat(500),
        );
        client.ask(
            format!("set big 5 0 {}\r\n{value}\r\n", value.len()),
            "STORED\r\n",
        );
        // Small and large replies in one batch: the large ones are sent from where they lie.
        let reply = format!("VALUE big 5 {}\r\n{value}\r\nEND\r\n", value.len());
        let both = format!("VALUE a 0 1\r\nx\r\nEND\r\n{reply}");
        client.ask("get a\r\nget big\r\n".repeat(5), both.repeat(5));
        // Requests that arrive in records of all sizes.
        for size in [1, 7, 100, 5000] {
            let text = format!("set b 0 0 20000\r\n{}\r\n", &value[..20_000]);
            for piece in text.as_bytes().chunks(size) {
                client.stream.write_all(piece).unwrap();
            }
            client.expect("STORED\r\n");
        }
        assert_eq!(client.stream.conn.protocol_version(), Some(version.version));
    }
}

#[test]
fn a_client_that_does_not_read_is_waited_for_alone() {
    let authority = Authority::new();
    let mut settings = authority.settings();
    settings.server.threads = 1;
    let server = TestServer::start_with(settings);
    let config = authority.plain_client();
    let mut slow = connect(server.address(), &config);
    let value = "v".repeat(900_000);
    slow.ask(format!("set big 0 0 900000\r\n{value}\r\n"), "STORED\r\n");
    slow.send("get big\r\n".repeat(30));
    let mut other = connect(server.address(), &config);
    other.ask("get a\r\n".repeat(100), "END\r\n".repeat(100));
    slow.expect(format!("VALUE big 0 900000\r\n{value}\r\nEND\r\n").repeat(30));
    other.ask("get a\r\n", "END\r\n");
}

#[test]
fn what_was_asked_before_the_end_is_answered() {
    let authority = Authority::new();
    let server = TestServer::start_with(authority.settings());
    let mut client = connect(server.address(), &authority.plain_client());
    client.ask("set a 0 0 1\r\nx\r\n", "STORED\r\n");
    client.send("get a\r\n".repeat(1000));
    client.stream.conn.send_close_notify();
    client.stream.flush().unwrap();
    client.expect("VALUE a 0 1\r\nx\r\nEND\r\n".repeat(1000));
    // The server ends it in order: without its farewell this read would fail.
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    // A client that only shuts its socket is answered, too.
    let mut client = connect(server.address(), &authority.plain_client());
    client.send("get a\r\n");
    client.stream.sock.shutdown(Shutdown::Write).unwrap();
    client.expect("VALUE a 0 1\r\nx\r\nEND\r\n");
}

#[test]
fn an_old_version_can_be_refused() {
    let authority = Authority::new();
    let mut settings = authority.settings();
    settings.tls.min_version = 3;
    let server = TestServer::start_with(settings);
    let old = authority.client(&[&version::TLS12], None);
    assert!(!is_served(server.address(), &old));
    let mut client = connect(
        server.address(),
        &authority.client(&[&version::TLS13], None),
    );
    assert_eq!(client.stat("ssl_handshake_errors"), "1");
}

#[test]
fn cipher_lists_hold() {
    let authority = Authority::new();
    let mut settings = authority.settings();
    settings.tls.ciphers = Some("ECDHE+AES128:!aRSA".to_owned());
    let server = TestServer::start_with(settings);
    let mut client = connect(
        server.address(),
        &authority.client(&[&version::TLS12], None),
    );
    client.ask("get a\r\n", "END\r\n");
    let suite = client.stream.conn.negotiated_cipher_suite().unwrap();
    assert_eq!(
        format!("{:?}", suite.suite()),
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"
    );
}

#[test]
fn sessions_are_resumed_if_so_configured() {
    let authority = Authority::new();
    for cache in [true, false] {
        let mut settings = authority.settings();
        settings.tls.session_cache = cache;
        let server = TestServer::start_with(settings);
        for version in [&version::TLS12, &version::TLS13] {
            let config = authority.client(&[version], None);
            for attempt in 0..3 {
                let mut client = connect(server.address(), &config);
                client.ask("get a\r\n", "END\r\n");
                let resumed = client.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed);
                assert_eq!(resumed, cache && attempt > 0, "{version:?} {attempt}");
            }
        }
        let mut client = connect(server.address(), &authority.plain_client());
        if cache {
            assert_eq!(client.stat("ssl_new_sessions"), "3");
        }
    }
}

#[test]
fn client_certificates_are_asked_for_as_configured() {
    let authority = Authority::new();
    let versions = [&version::TLS13, &version::TLS12];
    let right = authority.sign("client");
    let wrong = Authority::new().sign("client");
    for (mode, none, wrong_one) in [
        (0, true, true),
        (1, true, false),
        (2, false, false),
        (3, false, false),
    ] {
        let mut settings = authority.settings();
        settings.tls.verify_mode = mode;
        let server = TestServer::start_with(settings);
        for version in versions {
            let served =
                |identity| is_served(server.address(), &authority.client(&[version], identity));
            assert_eq!(served(None), none, "{mode} {version:?}");
            assert_eq!(served(Some(&wrong)), wrong_one, "{mode} {version:?}");
            assert!(served(Some(&right)), "{mode} {version:?}");
        }
    }
}

#[test]
fn each_listener_has_its_own_terms() {
    let authority = Authority::new();
    let mut settings = authority.settings();
    settings.tls.session_cache = true;
    let endpoint = settings.listen.endpoints.remove(0);
    for tls in [
        EndpointTls::Plain,
        EndpointTls::Basic,
        EndpointTls::Mutual,
        EndpointTls::Default,
    ] {
        settings.listen.endpoints.push(Endpoint {
            tls,
            port: Some(0),
            ..endpoint.clone()
        });
    }
    settings.tls.verify_mode = 2;
    let server = TestServer::start_with(settings);
    let [plain, basic, mutual, default] = server.addresses()[..] else {
        panic!("{:?}", server.addresses());
    };
    Client::to(plain).ask("get a\r\n", "END\r\n");
    let stranger = authority.plain_client();
    assert!(is_served(basic, &stranger));
    // Not even with a ticket from where none was needed.
    for address in [mutual, default] {
        assert!(!is_served(address, &stranger));
        let known = authority.client(&[&version::TLS13], Some(&authority.sign("client")));
        assert!(is_served(address, &known));
    }
}

#[test]
fn without_an_authority_no_client_certificate_is_right() {
    let authority = Authority::new();
    let own = authority.sign("client");
    for (mode, stranger) in [(1, true), (2, false)] {
        let mut settings = authority.settings();
        settings.tls.ca_cert = None;
        settings.tls.verify_mode = mode;
        let server = TestServer::start_with(settings);
        for version in [&version::TLS13, &version::TLS12] {
            let address = server.address();
            assert_eq!(
                is_served(address, &authority.client(&[version], None)),
                stranger
            );
            assert!(!is_served(
                address,
                &authority.client(&[version], Some(&own))
            ));
        }
    }
}

#[test]
fn plaintext_on_a_tls_port_is_counted_told_and_closed() {
    let authority = Authority::new();
    let server = TestServer::start_with(authority.settings());
    let mut watcher = connect(server.address(), &authority.plain_client());
    watcher.ask("watch connevents\r\n", "OK\r\n");
    let mut client = server.connect();
    client.send("get a\r\n");
    let mut rest = Vec::new();
    // An alert, perhaps, and the end.
    client.stream.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < 16, "{rest:?}");
    let told = loop {
        let line = watcher.line();
        if line.contains("type=conntlserr") {
            break line;
        }
    };
    assert!(
        told.contains(" fd=") && told.contains(" msg=received corrupt message"),
        "{told}"
    );
    let closed = loop {
        let line = watcher.line();
        if line.contains("type=conn_close") {
            break line;
        }
    };
    assert!(closed.contains("reason=error"), "{closed}");
    let mut client = connect(server.address(), &authority.plain_client());
    assert_eq!(client.stat("ssl_handshake_errors"), "1");
    assert_eq!(client.stat("ssl_proto_errors"), "0");
}

#[test]
fn a_broken_record_ends_a_session() {
    let authority = Authority::new();
    let server = TestServer::start_with(authority.settings());
    let mut broken = connect(server.address(), &authority.plain_client());
    broken.ask("get a\r\n", "END\r\n");
    let record = [&[23, 3, 3, 0, 40][..], &[0; 40]].concat();
    broken.stream.sock.write_all(&record).unwrap();
    let mut rest = Vec::new();
    assert!(
        broken.stream.read_to_end(&mut rest).is_err(),
        "a fatal alert"
    );
    let mut client = connect(server.address(), &authority.plain_client());
    assert_eq!(client.stat("ssl_proto_errors"), "1");
    assert_eq!(client.stat("ssl_handshake_errors"), "0");
}

#[test]
fn a_slow_handshake_holds_up_nobody() {
    let authority = Authority::new();
    let mut settings = authority.settings();
    settings.server.threads = 1;
    let server = TestServer::start_with(settings);
    let config = authority.plain_client();
    let mut other = connect(server.address(), &config);
    let mut slow = connect(server.address(), &config);
    let mut hello = Vec::new();
    slow.stream.conn.write_tls(&mut hello).unwrap();
    for byte in &hello {
        slow.stream.sock.write_all(&[*byte]).unwrap();
        other.ask("get a\r\n", "END\r\n");
    }
    // It is a handshake like any other, when it is there.
    slow.ask("get a\r\n", "END\r\n");
}

#[test]
fn the_idle_timeout_ends_a_stalled_handshake() {
    let authority = Authority::new();
    let mut settings = authority.settings();
    settings.server.idle_timeout = 1;
    let server = TestServer::start_with(settings);
    let mut slow = connect(server.address(), &authority.plain_client());
    let mut hello = Vec::new();
    slow.stream.conn.write_tls(&mut hello).unwrap();
    let mut bytes = hello.iter();
    // It says something now and then, but never the end of what it has to say.
    slow.stream
        .sock
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    wait_until(|| {
        let sent = bytes
            .next()
            .map(|byte| slow.stream.sock.write_all(&[*byte]));
        let end = slow.stream.sock.read(&mut [0; 64]);
        let waits = matches!(&end, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        !waits || matches!(sent, Some(Err(_)))
    });
    let mut client = connect(server.address(), &authority.plain_client());
    assert_eq!(client.stat("idle_kicks"), "1");
}

#[test]
fn certificates_are_exchanged_while_requests_run() {
    let authority = Authority::new();
    let server = TestServer::start_with(authority.settings());
    let config = authority.plain_client();
    let shown = || {
        let mut client = connect(server.address(), &config);
        client.ask("get a\r\n", "END\r\n");
        client.stream.conn.peer_certificates().unwrap()[0].clone()
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut client = connect(server.address(), &config);
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds < 10 {
                client.ask("get a\r\n", "END\r\n");
                rounds += 1;
            }
        });
        let mut client = connect(server.address(), &config);
        for _ in 0..10 {
            let identity = authority.sign("localhost");
            authority.install(&identity);
            client.ask("refresh_certs\r\n", "OK\r\n");
            assert_eq!(shown(), *identity.certificate.der());
        }
        let before = shown();
        fs::write(authority.path("chain"), "no certificate").unwrap();
        client.send("refresh_certs\r\n");
        let said = client.line();
        let expected = format!(
            "Error loading the certificate chain: {} : no certificate (PEM) in it",
            authority.path("chain").display()
        );
        assert_eq!(said, expected);
        assert_eq!(shown(), before, "the old one stays");
        done.store(true, Ordering::Relaxed);
        busy.join().unwrap();
    });
}

#[test]
fn an_authority_that_is_gone_is_trusted_no_longer() {
    let authority = Authority::new();
    let other = Authority::new();
    let mut settings = authority.settings();
    settings.tls.verify_mode = 2;
    settings.tls.session_cache = true;
    let server = TestServer::start_with(settings);
    let known = authority.client(&[&version::TLS13], Some(&authority.sign("client")));
    let mut client = connect(server.address(), &known);
    client.ask("get a\r\n", "END\r\n");
    fs::copy(other.path("ca"), authority.path("ca")).unwrap();
    client.ask("refresh_certs\r\n", "OK\r\n");
    assert!(
        !is_served(server.address(), &known),
        "not even by its ticket"
    );
    client.ask("get a\r\n", "END\r\n");
}

#[test]
fn sighup_exchanges_certificates() {
    let authority = Authority::new();
    let server = Program::start(&[
        "-p",
        "-1",
        "-l",
        "127.0.0.1",
        "-Z",
        "-o",
        &authority.options(),
    ]);
    let address = SocketAddr::from(([127, 0, 0, 1], server.port()));
    let config = authority.plain_client();
    let mut old = connect(address, &config);
    old.ask("get a\r\n", "END\r\n");
    let identity = authority.sign("localhost");
    authority.install(&identity);
    let id = server.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-HUP", &id])
            .status()
            .unwrap()
            .success()
    );
    wait_until(|| {
        let mut client = connect(address, &config);
        client.ask("get a\r\n", "END\r\n");
        client.stream.conn.peer_certificates().unwrap()[0] == *identity.certificate.der()
    });
    old.ask("get a\r\n", "END\r\n");
}

#[test]
fn a_thousand_handshakes() {
    let authority = Authority::new();
    let server = TestServer::start_with(authority.settings());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let config = authority.plain_client();
                for _ in 0..250 {
                    connect(server.address(), &config).ask("get a\r\n", "END\r\n");
                }
            });
        }
    });
    let mut client = connect(server.address(), &authority.plain_client());
    assert_eq!(client.stat("ssl_handshake_errors"), "0");
    // Its listener is counted, too.
    assert_eq!(client.stat("total_connections"), "1002");
}

#[test]
fn the_program_does_not_start_without_its_certificates() {
    let output = program(&[
        "-p",
        "-1",
        "-Z",
        "-o",
        "ssl_chain_cert=/nonexistent/cert,ssl_key=/nonexistent/key",
    ])
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "Error loading the certificate chain: /nonexistent/cert : No such file or directory\n"
    );
    let output = program(&["-p", "0", "-Z"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "ERROR: You cannot enable SSL without a TCP port.\n"
    );
}

#[test]
fn nodes_show_each_other_their_certificates() {
    let (authority, other) = (Authority::new(), Authority::new());
    let node = |authority: Option<&Authority>| {
        let mut settings = settings();
        settings.store.journal = Some(Journal {
            ring_bytes: 8 << 20,
            follower: true,
        });
        settings.replication.listen = Some("127.0.0.1:0".to_owned());
        settings.replication.recover_ms = 0;
        settings.replication.tls = authority.map(|authority| PeerTls {
            cert: authority.path("chain"),
            key: authority.path("key"),
            ca: authority.path("ca"),
            name: Some("localhost".to_owned()),
        });
        settings
    };
    let leader = TestServer::start_with(node(Some(&authority)));
    let mut client = leader.connect();
    let value = "x".repeat(200_000);
    for key in 0..20 {
        client.ask(
            format!("set key{key} 0 0 200000\r\n{value}\r\n"),
            "STORED\r\n",
        );
    }
    let follow = |authority: Option<&Authority>| {
        let mut settings = node(authority);
        settings.replication.follow = Some(leader.copies_address().to_string());
        TestServer::start_with(settings)
    };
    let strangers = [follow(None), follow(Some(&other))];
    let friend = follow(Some(&authority));
    let mut reader = friend.connect();
    let since = Instant::now();
    while reader.stat_of("replication", "whole_partitions") != "64" {
        assert!(since.elapsed() < PATIENCE, "it has no copy");
        std::thread::sleep(Duration::from_millis(5));
    }
    reader.ask(
        "get key19\r\n",
        format!("VALUE key19 0 200000\r\n{value}\r\nEND\r\n"),
    );
    for stranger in &strangers {
        assert_eq!(stranger.connect().stat("curr_items"), "0");
    }
}
