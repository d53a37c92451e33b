#![forbid(unsafe_code)]
//! What `-l` may say:
//! `[notls:|btls:|mtls:][proto[ascii|binary|negotiating]:][tag[NAME]:|tag_NAME_:][ack[LEVEL]:]HOST[:PORT]`,
//! several of them parted by commas or semicolons. A host is a name, an address, an IPv6 address in
//! brackets (or bare, without a port), or `*`.

use super::{Exit, replication};
use crate::settings::{Ack, Endpoint, EndpointTls, Protocol};

/// `EX_OSERR`: what memcached says of listeners that cannot be.
const OSERR: u8 = 71;
const TAG_MAX: usize = 8;

/// What the other options mean for listeners.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    pub tls: bool,
    pub ascii_auth: bool,
    pub sasl: bool,
}

/// Takes a list apart. `warnings` collects what is allowed but changed.
pub(super) fn parse(
    list: &str,
    context: Context,
    warnings: &mut Vec<String>,
) -> Result<Vec<Endpoint>, Exit> {
    list.split([',', ';'])
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(|entry| endpoint(entry, context, warnings))
        .collect()
}

fn refused(message: String) -> Exit {
    Exit::refused(message, OSERR)
}

fn endpoint(entry: &str, context: Context, warnings: &mut Vec<String>) -> Result<Endpoint, Exit> {
    let (tls, rest) = tls(entry, context)?;
    let (protocol, rest) = protocol(rest, context, warnings)?;
    let (tag, rest) = tag(rest)?;
    let (ack, rest) = ack(rest)?;
    let (host, port) = host(rest)?;
    Ok(Endpoint {
        host,
        port,
        protocol,
        tls,
        tag,
        ack,
    })
}

fn tls(entry: &str, context: Context) -> Result<(EndpointTls, &str), Exit> {
    for (word, mode) in [
        ("notls", EndpointTls::Plain),
        ("btls", EndpointTls::Basic),
        ("mtls", EndpointTls::Mutual),
    ] {
        if let Some(rest) = entry
            .strip_prefix(word)
            .and_then(|rest| rest.strip_prefix(':'))
        {
            if !context.tls {
                return Err(refused(format!(
                    "'{word}' option is valid only when SSL is enabled"
                )));
            }
            return Ok((mode, rest));
        }
    }
    Ok((EndpointTls::Default, entry))
}

fn protocol<'e>(
    entry: &'e str,
    context: Context,
    warnings: &mut Vec<String>,
) -> Result<(Option<Protocol>, &'e str), Exit> {
    let Some(rest) = entry.strip_prefix("proto[") else {
        return Ok((None, entry));
    };
    let Some((name, rest)) = rest.split_once(']') else {
        return Err(refused(format!("Invalid protocol spec: \"{rest}\"")));
    };
    let rest = rest.strip_prefix(':').unwrap_or(rest);
    let is = |word: &str| !name.is_empty() && word.starts_with(name);
    let protocol = if is("ascii") {
        if context.sasl && !context.ascii_auth {
            return Err(refused(
                "Cannot use ascii protocol when SASL authentication enabled".to_owned(),
            ));
        }
        Protocol::Ascii
    } else if is("binary") {
        if context.ascii_auth && !context.sasl {
            return Err(refused(
                "Cannot use binary protocol when ascii authentication enabled".to_owned(),
            ));
        }
        Protocol::Binary
    } else if is("negotiating") {
        if context.sasl && !context.ascii_auth {
            return Err(refused(
                "Cannot use negotiating protocol when SASL authentication enabled".to_owned(),
            ));
        }
        if context.ascii_auth && !context.sasl {
            warnings.push(
                "WARNING: negotiating ports are ascii only when ascii authentication enabled"
                    .to_owned(),
            );
            Protocol::Ascii
        } else {
            Protocol::Negotiate
        }
    } else if is("proxy") {
        return Err(refused(format!("Server not built with proxy: \"{entry}\"")));
    } else {
        return Err(refused(format!(
            "Invalid protocol spec: \"{name}\" (it is one of ascii, binary, negotiating)"
        )));
    };
    Ok((Some(protocol), rest))
}

fn tag(entry: &str) -> Result<(Option<String>, &str), Exit> {
    let (name, rest) = if let Some(rest) = entry.strip_prefix("tag[") {
        match rest.split_once(']') {
            Some(parts) => parts,
            None => {
                return Err(refused(format!(
                    "Invalid tag in socket config: \"{entry}\""
                )));
            }
        }
    } else if let Some(rest) = entry.strip_prefix("tag_") {
        match rest.split_once('_') {
            Some(parts) => parts,
            None => return Ok((None, entry)),
        }
    } else {
        return Ok((None, entry));
    };
    if name.is_empty() || name.len() > TAG_MAX {
        return Err(refused(format!(
            "Listener tags must be between 1 and 8 characters: \"{name}\""
        )));
    }
    Ok((
        Some(name.to_owned()),
        rest.strip_prefix(':').unwrap_or(rest),
    ))
}

/// Ours alone: when mutations of those who come in here are answered.
fn ack(entry: &str) -> Result<(Option<Ack>, &str), Exit> {
    let Some(rest) = entry.strip_prefix("ack[") else {
        return Ok((None, entry));
    };
    let Some((name, rest)) = rest.split_once(']') else {
        return Err(refused(format!(
            "Invalid level in socket config: \"{entry}\""
        )));
    };
    let ack = replication::level("listen", name)?;
    Ok((Some(ack), rest.strip_prefix(':').unwrap_or(rest)))
}

fn host(entry: &str) -> Result<(Option<String>, Option<u16>), Exit> {
    let (host, port) = if let Some(rest) = entry.strip_prefix('[') {
        let Some((host, rest)) = rest.split_once(']') else {
            return Err(refused(format!("Invalid IPv6 address: \"{entry}\"")));
        };
        (host, rest.strip_prefix(':'))
    } else if entry.matches(':').count() > 1 {
        (entry, None)
    } else {
        match entry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (entry, None),
        }
    };
    let port = match port {
        None => None,
        Some(text) => match text.trim().parse::<u16>() {
            Ok(port) => Some(port),
            Err(_) => return Err(refused(format!("Invalid port number: \"{text}\""))),
        },
    };
    let host = (host != "*" && !host.is_empty()).then(|| host.to_owned());
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Context = Context {
        tls: true,
        ascii_auth: false,
        sasl: false,
    };

    fn one(entry: &str) -> Endpoint {
        let mut endpoints = parse(entry, OPEN, &mut Vec::new()).unwrap();
        assert_eq!(endpoints.len(), 1, "{entry}");
        endpoints.remove(0)
    }

    #[test]
    fn hosts_and_ports() {
        for (entry, host, port) in [
            ("127.0.0.1", Some("127.0.0.1"), None),
            ("127.0.0.1:11300", Some("127.0.0.1"), Some(11300)),
            ("*", None, None),
            ("*:5", None, Some(5)),
            ("[::1]:7", Some("::1"), Some(7)),
            ("::1", Some("::1"), None),
            ("tagserver", Some("tagserver"), None),
            ("protohost:3", Some("protohost"), Some(3)),
            ("mtlshost", Some("mtlshost"), None),
        ] {
            let endpoint = one(entry);
            assert_eq!(
                (endpoint.host.as_deref(), endpoint.port),
                (host, port),
                "{entry}"
            );
        }
    }

    #[test]
    fn prefixes() {
        let endpoint = one("mtls:proto[ascii]:tag[db]:127.0.0.1:9");
        assert_eq!(endpoint.tls, EndpointTls::Mutual);
        assert_eq!(endpoint.protocol, Some(Protocol::Ascii));
        assert_eq!(endpoint.tag.as_deref(), Some("db"));
        assert_eq!(one("tag_b_:h").tag.as_deref(), Some("b"));
        assert_eq!(one("tag[b]:ack[2pc]:h").ack, Some(Ack::TwoPhase));
        assert_eq!(one("ack[2]:h").ack, Some(Ack::Copies(2)));
        assert!(parse("ack[9]:h", OPEN, &mut Vec::new()).is_err());
        assert!(parse("ack[2pc:h", OPEN, &mut Vec::new()).is_err());
        assert_eq!(one("proto[bin]:h").protocol, Some(Protocol::Binary));
    }

    #[test]
    fn what_cannot_be() {
        let closed = Context {
            tls: false,
            ascii_auth: true,
            sasl: false,
        };
        let sasl = Context {
            sasl: true,
            ascii_auth: false,
            ..closed
        };
        for (entry, context, message) in [
            ("h:abc", OPEN, "Invalid port number: \"abc\""),
            (
                "notls:h",
                closed,
                "'notls' option is valid only when SSL is enabled",
            ),
            (
                "proto[binary]:h",
                closed,
                "Cannot use binary protocol when ascii authentication enabled",
            ),
            (
                "tag[123456789]:h",
                OPEN,
                "Listener tags must be between 1 and 8 characters: \"123456789\"",
            ),
            (
                "proto[ascii]:h",
                sasl,
                "Cannot use ascii protocol when SASL authentication enabled",
            ),
        ] {
            let Err(Exit::Refused {
                message: said,
                code: 71,
            }) = parse(entry, context, &mut Vec::new())
            else {
                panic!("{entry}");
            };
            assert_eq!(said, message);
        }
        // With both kinds of users, every dialect has a way in.
        let both = Context {
            sasl: true,
            ..closed
        };
        let list = "proto[ascii]:h,proto[binary]:h,proto[negotiating]:h";
        assert_eq!(parse(list, both, &mut Vec::new()).unwrap().len(), 3);
        let mut warnings = Vec::new();
        parse("proto[negotiating]:h", closed, &mut warnings).unwrap();
        assert_eq!(warnings.len(), 1);
    }
}
