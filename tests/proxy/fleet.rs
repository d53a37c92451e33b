//! A proxy, and servers behind it.

use std::net::TcpStream;

use larder::settings::proxy::{Mode, Proxy, parse};

use crate::common::{self, Client, TestServer};

/// Real servers, in this process.
pub struct Fleet {
    pub servers: Vec<TestServer>,
    pub proxy: TestServer,
}

/// A proxy in front of servers at these addresses, with further lines for their pool.
pub fn proxy(servers: &[String], pool: &str) -> TestServer {
    proxy_with(configuration(servers, pool))
}

pub fn configuration(servers: &[String], pool: &str) -> Proxy {
    // Machines that run tests are slow at times.
    let timeout = if pool.contains("timeout") {
        ""
    } else {
        "timeout = \"20s\""
    };
    let text = format!("[pools.all]\nservers = {servers:?}\n{timeout}\n{pool}\n");
    parse(&text).expect("sound")
}

pub fn proxy_with(proxy: Proxy) -> TestServer {
    let mut settings = common::settings();
    settings.proxy = Some(Mode { proxy, file: None });
    settings.store.max_bytes = 1 << 20;
    TestServer::start_with(settings)
}

impl Fleet {
    pub fn start(count: usize) -> Fleet {
        Fleet::with(count, "")
    }

    /// With further lines for the pool.
    pub fn with(count: usize, pool: &str) -> Fleet {
        let servers: Vec<TestServer> = (0..count).map(|_| TestServer::start()).collect();
        let proxy = proxy(&addresses(&servers), pool);
        Fleet { servers, proxy }
    }

    pub fn connect(&self) -> Client<TcpStream> {
        self.proxy.connect()
    }
}

pub fn addresses(servers: &[TestServer]) -> Vec<String> {
    let address = |server: &TestServer| server.address().to_string();
    servers.iter().map(address).collect()
}
