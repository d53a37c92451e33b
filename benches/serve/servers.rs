//! The servers that are measured: started, watched and ended.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};

/// What both servers show under TLS, and what their clients trust.
pub struct Certificate {
    folder: tempfile::TempDir,
    pub client: Arc<ClientConfig>,
}

impl Certificate {
    pub fn new() -> Certificate {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(["localhost".to_owned()])
            .and_then(|params| params.self_signed(&key))
            .expect("a certificate");
        fs::write(folder.path().join("chain"), certificate.pem()).expect("written");
        fs::write(folder.path().join("key"), key.serialize_pem()).expect("written");
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Certificate {
            folder,
            client: Arc::new(client),
        }
    }
}

/// A server with one worker on a port of its own; it ends with the value.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
}

impl Server {
    /// Starts a program that takes memcached's options.
    pub fn start(program: &str, certificate: Option<&Certificate>) -> io::Result<Server> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = pinned(program);
        command.args([
            "-l",
            "127.0.0.1",
            "-U",
            "0",
            "-t",
            "1",
            "-m",
            "1024",
            "-c",
            "1024",
        ]);
        // Asked for by name, root may serve; anybody else has no use for the option.
        command.args(["-u", "root", "-p", &port.to_string()]);
        if let Some(certificate) = certificate {
            let path = certificate.folder.path().display();
            command.args([
                "-Z",
                "-o",
                &format!("ssl_chain_cert={path}/chain,ssl_key={path}/key"),
            ]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Server {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            tls: certificate.map(|certificate| certificate.client.clone()),
        };
        for _ in 0..200 {
            if TcpStream::connect(server.address).is_ok() {
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("ended at once: {status}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(io::Error::other("does not listen"))
    }

    /// Nanoseconds that its threads have spent on a core.
    pub fn cpu(&self) -> u64 {
        let tasks = format!("/proc/{}/task", self.child.id());
        let tasks = fs::read_dir(tasks).expect("a server that lives");
        let spent = tasks.flatten().filter_map(|task| {
            let account = fs::read_to_string(task.path().join("schedstat")).ok()?;
            account.split(' ').next()?.parse::<u64>().ok()
        });
        spent.sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// On the first core, if there is another one for us.
fn pinned(program: &str) -> Command {
    let several = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    let taskset = Command::new("taskset")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if !several || taskset.is_err() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", "0", program]);
    command
}
