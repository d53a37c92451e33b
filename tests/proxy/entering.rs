//! Servers that want TLS or credentials, and clients of the proxy that are asked for them.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use larder::settings::Settings;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::common::{self, TestServer};
use crate::fleet;
use crate::group;

/// Files of an authority and of one certificate it has signed, for `localhost`.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
        write("ca", issuer.pem());
        write("key", key.serialize_pem());
        write("chain", certificate.pem());
        write("users", "me:secret\n".to_owned());
        write("password", "secret\n".to_owned());
        write("wrong", "guess\n".to_owned());
        Files { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        format!("{:?}", self.path(name))
    }

    fn secure(&self) -> Settings {
        self.secured(common::settings())
    }

    fn secured(&self, mut settings: Settings) -> Settings {
        settings.tls.enabled = true;
        settings.tls.chain_cert = Some(self.path("chain"));
        settings.tls.key = Some(self.path("key"));
        settings
    }
}

#[test]
fn servers_under_tls() {
    let files = Files::new();
    let servers: Vec<TestServer> = (0..3)
        .map(|_| TestServer::start_with(files.secure()))
        .collect();
    let names = fleet::addresses(&servers);
    let tls = format!(
        "tls = {{ ca = {}, server_name = \"localhost\" }}",
        files.text("ca")
    );
    let proxy = fleet::proxy(&names, &tls);
    let mut client = proxy.connect();
    let value = "v".repeat(300_000);
    for n in 0..20 {
        client.ask(format!("set k{n} 0 0 1\r\nx\r\n"), "STORED\r\n");
        client.ask(
            format!("set big{n} 0 0 300000\r\n{value}\r\n"),
            "STORED\r\n",
        );
    }
    let mut get = "get".to_owned();
    let mut expected = String::new();
    for n in 0..20 {
        get.push_str(&format!(" k{n} big{n}"));
        expected.push_str(&format!(
            "VALUE k{n} 0 1\r\nx\r\nVALUE big{n} 0 300000\r\n{value}\r\n"
        ));
    }
    client.ask(format!("{get}\r\n"), format!("{expected}END\r\n"));
    // A name that is not in the certificate is not believed.
    let tls = format!(
        "tls = {{ ca = {}, server_name = \"other\" }}",
        files.text("ca")
    );
    let proxy = fleet::proxy(&names, &tls);
    let mut client = proxy.connect();
    client.send("get k1\r\n");
    let said = client.line();
    assert!(said.starts_with("SERVER_ERROR "), "{said}");
    let proxy = fleet::proxy(&names, "tls = { verify = false }");
    proxy
        .connect()
        .ask("get k1\r\n", "VALUE k1 0 1\r\nx\r\nEND\r\n");
}

#[test]
fn servers_that_want_credentials() {
    let files = Files::new();
    let mut settings = common::settings();
    settings.security.auth_file = Some(files.path("users"));
    let server = TestServer::start_with(settings);
    let names = fleet::addresses(std::slice::from_ref(&server));
    let auth = |password: &str| {
        format!(
            "auth = {{ user = \"me\", password_file = {} }}",
            files.text(password)
        )
    };
    let proxy = fleet::proxy(&names, &auth("password"));
    let mut client = proxy.connect();
    client.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("get k l\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n");
    let proxy = fleet::proxy(&names, &auth("wrong"));
    let mut client = proxy.connect();
    client.send("get k\r\n");
    let said = client.line();
    assert!(
        said.starts_with("SERVER_ERROR ") && said.contains("credentials"),
        "{said}"
    );
}

/// Nodes of a group are asked which leads in the way in which clients' requests go to them.
#[test]
fn groups_under_tls_with_credentials() {
    let files = Files::new();
    let node = |follow: Option<&TestServer>| {
        let mut settings = files.secured(group::copying(follow));
        settings.security.auth_file = Some(files.path("users"));
        TestServer::start_with(settings)
    };
    let leader = node(None);
    let follower = node(Some(&leader));
    let with = |password: &str| {
        let text = format!(
            "[pools.all]\ntimeout = \"20s\"\nreads = \"any\"\n\
             tls = {{ ca = {}, server_name = \"localhost\" }}\n\
             auth = {{ user = \"me\", password_file = {} }}\n\
             [pools.all.groups]\ng = [\"{}\", \"{}\"]\n",
            files.text("ca"),
            files.text(password),
            // In the wrong order.
            follower.address(),
            leader.address()
        );
        fleet::proxy_with(larder::settings::proxy::parse(&text).unwrap())
    };
    let proxy = with("password");
    let mut client = proxy.connect();
    group::write(&mut client, "k", "x");
    // Its own clients need not be secured: the follower is seen to be asked in what the proxy has sent.
    let asked = |proxy: &TestServer| -> u64 {
        let name = format!("all:{}:requests", follower.address());
        let told = group::stat(&mut proxy.connect(), "servers", &name);
        told.expect("it is one of the servers").parse().unwrap()
    };
    group::eventually("the follower is read", || {
        let before = asked(&proxy);
        for _ in 0..20 {
            assert_eq!(group::read(&mut client, "k").as_deref(), Some("x"));
        }
        asked(&proxy) > before
    });
    let stranger = with("wrong");
    let mut client = stranger.connect();
    client.send("get k\r\n");
    let said = client.line();
    assert!(said.starts_with("SERVER_ERROR "), "{said}");
}

#[test]
fn clients_that_have_to_show_credentials() {
    let files = Files::new();
    let server = TestServer::start();
    let names = fleet::addresses(std::slice::from_ref(&server));
    let mut settings = common::settings();
    settings.security.auth_file = Some(files.path("users"));
    settings.proxy = Some(larder::settings::proxy::Mode {
        proxy: fleet::configuration(&names, ""),
        file: None,
    });
    let proxy = TestServer::start_with(settings);
    let mut client = proxy.connect();
    client.ask("get k\r\n", "CLIENT_ERROR unauthenticated\r\n");
    let mut client = proxy.connect();
    client.ask("set a 0 0 9\r\nme secret\r\n", "STORED\r\n");
    client.ask(
        "set k 0 0 1\r\nx\r\nget k\r\n",
        "STORED\r\nVALUE k 0 1\r\nx\r\nEND\r\n",
    );
}

#[test]
fn servers_that_are_down_leave_the_ring_if_that_is_wanted() {
    let mut servers: Vec<Option<TestServer>> = (0..3).map(|_| Some(TestServer::start())).collect();
    let places: Vec<SocketAddr> = servers.iter().flatten().map(TestServer::address).collect();
    let names: Vec<String> = places.iter().map(ToString::to_string).collect();
    let proxy = fleet::proxy(&names, "eject = true\nhealth = { probe = \"100ms\" }");
    let mut client = proxy.connect();
    for n in 0..50 {
        client.ask(format!("set k{n} 0 0 1\r\nx\r\n"), "STORED\r\n");
    }
    servers[0] = None;
    let since = Instant::now();
    let mut served = 0;
    while served < 50 {
        client.send(format!("set k{served} 0 0 1\r\ny\r\n"));
        if client.line() == "STORED" {
            served += 1;
        }
        assert!(since.elapsed() < Duration::from_secs(20));
    }
    for n in 0..50 {
        client.ask(
            format!("get k{n}\r\n"),
            format!("VALUE k{n} 0 1\r\ny\r\nEND\r\n"),
        );
    }
}

#[test]
fn a_listener_may_have_a_route_of_its_own() {
    let servers: Vec<TestServer> = (0..2).map(|_| TestServer::start()).collect();
    let names = fleet::addresses(&servers);
    let text = format!(
        "route = \"a\"\n[[listen]]\naddress = \"127.0.0.1:0\"\ntag = \"own\"\nroute = \"b\"\n\
         [pools.a]\nservers = [{:?}]\n[pools.b]\nservers = [{:?}]\n",
        names[0], names[1]
    );
    let proxy = match larder::settings::proxy::parse(&text) {
        Ok(proxy) => proxy,
        // A port that the system chooses cannot be asked for: one that is free has to do.
        Err(_) => {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let text = text.replace("127.0.0.1:0\"", &format!("127.0.0.1:{port}\""));
            larder::settings::proxy::parse(&text).unwrap()
        }
    };
    let proxy = fleet::proxy_with(proxy);
    let [usual, own] = proxy.addresses() else {
        panic!("{:?}", proxy.addresses());
    };
    common::Client::to(*own).ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    common::Client::to(*usual).ask("get k\r\n", "END\r\n");
    common::Client::to(*own).ask("get k\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n");
    servers[1]
        .connect()
        .ask("get k\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n");
}
