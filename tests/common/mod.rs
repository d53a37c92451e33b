//! A server of one's own on a port the kernel chooses, and a plain client.
#![allow(dead_code)]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use larder::cluster::Cluster;
use larder::server::control::{Control, Stop};
use larder::server::{Failure, Server};
use larder::settings::{Endpoint, Settings, proxy};

/// How long a client waits for an answer before the test fails; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server in this process; it ends with the value.
pub struct TestServer {
    addresses: Vec<SocketAddr>,
    datagrams: Vec<SocketAddr>,
    copies: Option<SocketAddr>,
    control: Arc<Control>,
    cluster: Option<Arc<Cluster>>,
    thread: Option<JoinHandle<Result<Stop, Failure>>>,
}

/// Settings for a test: a port of the kernel's choice on the loopback, few threads.
pub fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.listen.tcp_port = -1;
    settings.listen.interfaces = Some("127.0.0.1".to_owned());
    settings.listen.endpoints = vec![Endpoint {
        host: Some("127.0.0.1".to_owned()),
        ..Endpoint::default()
    }];
    settings.server.threads = 2;
    settings
}

impl TestServer {
    pub fn start() -> TestServer {
        TestServer::start_with(settings())
    }

    pub fn start_with(settings: Settings) -> TestServer {
        let server = Server::bind(settings).expect("the server starts");
        TestServer {
            addresses: server.addresses(),
            datagrams: server.datagram_addresses().to_vec(),
            copies: server.copies_address(),
            control: server.control(),
            cluster: server.cluster(),
            thread: Some(thread::spawn(|| server.serve())),
        }
    }

    /// Where copies connect to.
    pub fn copies_address(&self) -> SocketAddr {
        self.copies.expect("a port for copies")
    }

    pub fn address(&self) -> SocketAddr {
        *self.addresses.first().expect("a network address")
    }

    /// Those of all listeners, in their order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where it answers datagrams.
    pub fn datagram_address(&self) -> SocketAddr {
        *self.datagrams.first().expect("a UDP address")
    }

    pub fn connect(&self) -> Client<TcpStream> {
        Client::to(self.address())
    }

    /// Gives a proxy another configuration; its workers take it up when they next have something to do.
    pub fn reload(&self, proxy: proxy::Proxy) {
        let cluster = self.cluster.as_ref().expect("a proxy");
        cluster.reload(proxy).expect("sound");
    }

    /// Waits until it has stopped by itself.
    pub fn wait(mut self) -> Stop {
        let thread = self.thread.take().expect("waited for once");
        thread.join().unwrap().expect("a clean end")
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.control.stop(Stop::Normal).unwrap();
        let ended = thread.join();
        if !thread::panicking() {
            ended.unwrap().expect("a clean end");
        }
    }
}

/// The program, as the user that runs the tests may start it; another build of it, if
/// `LARDER_PROGRAM` names one.
pub fn program(arguments: &[&str]) -> Command {
    let built = env!("CARGO_BIN_EXE_larder").into();
    let mut command = Command::new(std::env::var_os("LARDER_PROGRAM").unwrap_or(built));
    let named = arguments
        .first()
        .is_some_and(|first| !first.starts_with('-'));
    let (mode, options) = arguments.split_at(usize::from(named));
    // Asked for by name, root may serve; anybody else has no use for the option.
    command.args(mode).args(["-u", "root"]).args(options);
    command.stdin(Stdio::null());
    command
}

/// The program itself, running; it is killed with the value.
pub struct Program {
    child: Child,
    ports: String,
    _folder: tempfile::TempDir,
}

impl Program {
    /// Starts it and waits until it has written down its ports.
    pub fn start(arguments: &[&str]) -> Program {
        Program::start_with(arguments, |_| {})
    }

    /// The same, with something of the command changed.
    pub fn start_with(arguments: &[&str], change: impl FnOnce(&mut Command)) -> Program {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ports");
        let mut command = program(arguments);
        command.env("MEMCACHED_PORT_FILENAME", &file);
        change(&mut command);
        let mut child = command.spawn().expect("the program starts");
        let since = Instant::now();
        let ports = loop {
            if let Ok(ports) = fs::read_to_string(&file) {
                break ports;
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("ended at once: {status}");
            }
            assert!(since.elapsed() < PATIENCE, "no ports written");
            thread::sleep(Duration::from_millis(5));
        };
        Program {
            child,
            ports,
            _folder: folder,
        }
    }

    /// What it wrote down.
    pub fn ports(&self) -> &str {
        &self.ports
    }

    /// The first port it wrote down.
    pub fn port(&self) -> u16 {
        let line = self.ports.lines().next().expect("a line");
        let port = line.rsplit(' ').next().expect("a number");
        port.parse().expect("a number")
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn connect(&self) -> Client<TcpStream> {
        Client::to(SocketAddr::from(([127, 0, 0, 1], self.port())))
    }

    /// Sends it a signal, by its name without SIG.
    pub fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &id])
            .status();
        assert!(sent.expect("kill").success());
    }

    /// Stops it, and comes back when none of its threads runs any more: on a loaded machine some go on for
    /// a while after the signal.
    pub fn stop(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.id());
        let runs = |task: io::Result<fs::DirEntry>| {
            let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat")));
            // The state follows the name, which stands in parentheses.
            stat.is_ok_and(|stat| !stat.rsplit(") ").next().unwrap().starts_with('T'))
        };
        while fs::read_dir(&tasks).expect("its threads").any(runs) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for its end; returns the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that says what it is told and insists on what it expects.
pub struct Client<S> {
    pub stream: S,
}

impl Client<UnixStream> {
    pub fn local(path: &Path) -> Client<UnixStream> {
        let stream = UnixStream::connect(path).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream }
    }
}

impl Client<TcpStream> {
    pub fn to(address: SocketAddr) -> Client<TcpStream> {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream }
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

impl<S: Read + Write> Client<S> {
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("sent");
    }

    /// Reads as many bytes as `expected` has and compares.
    #[track_caller]
    pub fn expect(&mut self, expected: impl AsRef<[u8]>) {
        let expected = expected.as_ref();
        let mut found = vec![0; expected.len()];
        let mut have = 0;
        while have < found.len() {
            match self.stream.read(&mut found[have..]) {
                Ok(n) if n > 0 => have += n,
                end => {
                    let found = show(&found[..have]);
                    panic!("{end:?} after {found:?}, expected {:?}", show(expected));
                }
            }
        }
        assert!(
            found == expected,
            "found {:?}, expected {:?}",
            show(&found),
            show(expected)
        );
    }

    #[track_caller]
    pub fn ask(&mut self, request: impl AsRef<[u8]>, expected: impl AsRef<[u8]>) {
        self.send(request);
        self.expect(expected);
    }

    /// One line, without its CRLF.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\n") {
            assert_eq!(self.stream.read(&mut byte).unwrap(), 1, "after {line:?}");
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    /// The value of one line of `stats`.
    #[track_caller]
    pub fn stat(&mut self, name: &str) -> String {
        self.stat_of("", name)
    }

    /// The value of one line of `stats WHICH`.
    #[track_caller]
    pub fn stat_of(&mut self, which: &str, name: &str) -> String {
        self.send(format!("stats {which}\r\n"));
        let mut found = None;
        loop {
            let line = self.line();
            if line == "END" {
                return found.unwrap_or_else(|| panic!("no stat {name}"));
            }
            let mut words = line.splitn(3, ' ').skip(1);
            if words.next() == Some(name) {
                found = words.next().map(str::to_owned);
            }
        }
    }

    /// The server has hung up, and nothing more is to be read.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => assert_eq!(show(&rest), ""),
            // It hung up while something of ours was still unread.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

fn show(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], bytes.len()),
        None => text.into_owned(),
    }
}

/// The binary protocol, as a client writes and reads it.
pub mod binary {
    use std::io::{Read, Write};

    use super::Client;

    /// What a client sends.
    #[derive(Debug, Clone, Copy, Default)]
    pub struct Packet<'a> {
        pub opcode: u8,
        pub extras: &'a [u8],
        pub key: &'a [u8],
        pub value: &'a [u8],
        pub opaque: u32,
        pub cas: u64,
    }

    impl Packet<'_> {
        pub fn bytes(&self) -> Vec<u8> {
            let body = self.extras.len() + self.key.len() + self.value.len();
            let mut bytes = vec![0x80, self.opcode];
            bytes.extend_from_slice(&(self.key.len() as u16).to_be_bytes());
            bytes.extend_from_slice(&[self.extras.len() as u8, 0, 0, 0]);
            bytes.extend_from_slice(&(body as u32).to_be_bytes());
            bytes.extend_from_slice(&self.opaque.to_be_bytes());
            bytes.extend_from_slice(&self.cas.to_be_bytes());
            for part in [self.extras, self.key, self.value] {
                bytes.extend_from_slice(part);
            }
            bytes
        }
    }

    /// What the server answers.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Answer {
        pub opcode: u8,
        pub status: u16,
        pub extras: Vec<u8>,
        pub key: Vec<u8>,
        pub value: Vec<u8>,
        pub opaque: u32,
        pub cas: u64,
    }

    impl Answer {
        /// Takes the first one off `bytes`.
        pub fn take(bytes: &mut &[u8]) -> Answer {
            let (header, rest) = bytes.split_at(24);
            assert_eq!((header[0], header[5]), (0x81, 0), "{header:?}");
            let key = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let extras = usize::from(header[4]);
            let body = u32::from_be_bytes(header[8..12].try_into().unwrap()) as usize;
            let (body, rest) = rest.split_at(body);
            *bytes = rest;
            Answer {
                opcode: header[1],
                status: u16::from_be_bytes([header[6], header[7]]),
                extras: body[..extras].to_vec(),
                key: body[extras..extras + key].to_vec(),
                value: body[extras + key..].to_vec(),
                opaque: u32::from_be_bytes(header[12..16].try_into().unwrap()),
                cas: u64::from_be_bytes(header[16..24].try_into().unwrap()),
            }
        }
    }

    impl<S: Read + Write> Client<S> {
        /// The next answer.
        #[track_caller]
        pub fn answer(&mut self) -> Answer {
            let mut bytes = vec![0; 24];
            self.stream.read_exact(&mut bytes).expect("a header");
            let body = u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
            bytes.resize(24 + body, 0);
            self.stream.read_exact(&mut bytes[24..]).expect("a body");
            Answer::take(&mut &bytes[..])
        }

        /// Sends one and reads the answer, which has to be its own.
        #[track_caller]
        pub fn call(&mut self, packet: Packet<'_>) -> Answer {
            self.send(packet.bytes());
            let answer = self.answer();
            assert_eq!(
                (answer.opcode, answer.opaque),
                (packet.opcode, packet.opaque)
            );
            answer
        }
    }
}
