#![forbid(unsafe_code)]
//! Names and ports to socket addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

/// Every address a host name stands for; no name is the wildcard of both families, IPv4 first.
///
/// # Errors
/// The resolver's.
pub fn resolve(host: Option<&str>, port: u16) -> io::Result<Vec<SocketAddr>> {
    let Some(host) = host else {
        return Ok(vec![
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        ]);
    };
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in (host, port).to_socket_addrs()? {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    Ok(found)
}

/// The system's words for an error, as `perror` prints them: without Rust's error number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text
        .strip_prefix("failed to lookup address information: ")
        .unwrap_or(&text);
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_resolve() {
        let texts = |host| -> Vec<String> {
            resolve(host, 7)
                .unwrap()
                .iter()
                .map(SocketAddr::to_string)
                .collect()
        };
        assert_eq!(texts(None), ["0.0.0.0:7", "[::]:7"]);
        assert_eq!(texts(Some("127.0.0.1")), ["127.0.0.1:7"]);
        assert_eq!(texts(Some("::1")), ["[::1]:7"]);
        assert!(texts(Some("localhost")).contains(&"127.0.0.1:7".to_owned()));
    }

    #[test]
    fn reasons_have_no_numbers() {
        let error = io::Error::from_raw_os_error(libc::EADDRINUSE);
        assert_eq!(reason(&error), "Address already in use");
    }
}
