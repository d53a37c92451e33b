#![forbid(unsafe_code)]
//! Servers as users write them.

use std::fmt;
use std::path::PathBuf;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A name or an address (IPv6 without brackets), and a port.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl Address {
    pub fn tcp(host: impl Into<String>, port: u16) -> Address {
        Address::Tcp {
            host: host.into(),
            port,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// One server of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    pub address: Address,
    /// At least 1.
    pub weight: u32,
    /// What twemproxy's rings hash instead of the address.
    pub name: Option<String>,
}

const PORT: u16 = 11211;

impl Server {
    pub fn new(address: Address) -> Server {
        Server {
            address,
            weight: 1,
            name: None,
        }
    }

    /// `host[:port[:weight]] [name]`, as twemproxy has it; `[address]` for IPv6; `/path[:weight]
    /// [name]` for a Unix socket.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Server, String> {
        let text = text.trim();
        let (place, name) = match text.split_once(char::is_whitespace) {
            Some((place, name)) => (place, Some(name.trim())),
            None => (text, None),
        };
        if place.is_empty() {
            return Err("a server is missing between two commas".to_owned());
        }
        if let Some(name) = name
            && name.contains(char::is_whitespace)
        {
            return Err(format!("`{text}`: a name has no blanks"));
        }
        let (address, weight) = if place.starts_with('/') {
            unix(place)?
        } else {
            tcp(place)?
        };
        Ok(Server {
            address,
            weight,
            name: name.map(str::to_owned),
        })
    }
}

fn unix(place: &str) -> Result<(Address, u32), String> {
    match place.rsplit_once(':') {
        Some((path, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok((Address::Unix(path.into()), weight(place, digits)?))
        }
        _ => Ok((Address::Unix(place.into()), 1)),
    }
}

fn tcp(place: &str) -> Result<(Address, u32), String> {
    let (host, rest) = if let Some(inner) = place.strip_prefix('[') {
        let (host, rest) = inner
            .split_once(']')
            .ok_or_else(|| format!("`{place}`: the bracket is not closed"))?;
        host.parse::<std::net::Ipv6Addr>()
            .map_err(|_| format!("`{place}`: no IPv6 address stands in the brackets"))?;
        match rest.strip_prefix(':') {
            Some(rest) => (host, Some(rest)),
            None if rest.is_empty() => (host, None),
            None => return Err(format!("`{place}`: a colon must follow the bracket")),
        }
    } else {
        match place.split_once(':') {
            Some((host, rest)) => (host, Some(rest)),
            None => (place, None),
        }
    };
    if host.is_empty() {
        return Err(format!("`{place}`: the host is missing"));
    }
    let Some(rest) = rest else {
        return Ok((Address::tcp(host, PORT), 1));
    };
    let (port, heavy) = match rest.split_once(':') {
        Some((_, heavy)) if heavy.contains(':') => {
            return Err(format!(
                "`{place}`: too many colons; an IPv6 address stands in brackets"
            ));
        }
        Some((port, heavy)) => (port, Some(heavy)),
        None => (rest, None),
    };
    let port = port
        .parse::<u16>()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("`{place}`: the port must be 1 to 65535, not `{port}`"))?;
    let heavy = heavy.map_or(Ok(1), |digits| weight(place, digits))?;
    Ok((Address::tcp(host, port), heavy))
}

fn weight(place: &str, digits: &str) -> Result<u32, String> {
    digits
        .parse::<u32>()
        .ok()
        .filter(|weight| *weight > 0)
        .ok_or_else(|| format!("`{place}`: the weight must be 1 to 4294967295, not `{digits}`"))
}

/// No server twice: the place of the second in the list, and what to say.
pub(super) fn distinct(servers: &[Server]) -> Result<(), (usize, String)> {
    for (index, server) in servers.iter().enumerate() {
        let earlier = &servers[..index];
        if earlier.iter().any(|other| other.address == server.address) {
            return Err((index, format!("`{}` is there twice", server.address)));
        }
        if let Some(name) = &server.name
            && earlier
                .iter()
                .any(|other| other.name.as_ref() == Some(name))
        {
            return Err((index, format!("two servers are named `{name}`")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_as_written() {
        let server = |address, weight, name: Option<&str>| Server {
            address,
            weight,
            name: name.map(str::to_owned),
        };
        let tcp = Address::tcp;
        for (text, expected) in [
            ("a", server(tcp("a", 11211), 1, None)),
            ("a:1", server(tcp("a", 1), 1, None)),
            ("a:1:7", server(tcp("a", 1), 7, None)),
            (
                " 10.0.0.1:1:7  n-1 ",
                server(tcp("10.0.0.1", 1), 7, Some("n-1")),
            ),
            ("[::1]", server(tcp("::1", 11211), 1, None)),
            ("[::1]:2:3", server(tcp("::1", 2), 3, None)),
            ("/run/s", server(Address::Unix("/run/s".into()), 1, None)),
            (
                "/run/s:4 x",
                server(Address::Unix("/run/s".into()), 4, Some("x")),
            ),
        ] {
            assert_eq!(Server::parse(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            ":1",
            "a:0",
            "a:65536",
            "a:x",
            "a:1:0",
            "a:1:x",
            "::1",
            "[::1",
            "[a]:1",
            "[::1]1",
            "a:1:2:3",
            "a b c",
            "a:1:4294967296",
        ] {
            assert!(Server::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_shown_as_written() {
        for text in ["a:11211", "[::1]:2", "/run/s"] {
            assert_eq!(Server::parse(text).unwrap().address.to_string(), text);
        }
    }
}
