#![forbid(unsafe_code)]
//! The options of replication, and what they mean together.

use std::fs;
use std::net::ToSocketAddrs;

use super::options::Row;
use super::{Exit, USAGE, atoi};
use crate::settings::{Ack, Backpressure, Forwarding, Journal, PeerTls, Settings};
use crate::store::journal::PARTITIONS;

/// Copies of one leader.
const COPIES_MAX: u8 = 4;
/// The leader and they.
const MEMBERS_MAX: u8 = COPIES_MAX + 1;
/// The least that is kept of the log, and its share of the memory for items.
const RING_LEAST: u64 = 64 << 20;
const RING_SHARE: u64 = 100;

/// A partition's log has room for a record with the longest key and so much more.
const RECORD_ROOM: u64 = 64 << 10;

pub(super) fn wrong(message: impl Into<String>) -> Exit {
    Exit::refused(message, USAGE)
}

/// An address and a port, both of them.
pub(super) fn address(option: &str, text: &str) -> Result<Option<String>, Exit> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            Ok(Some(text.to_owned()))
        }
        _ => Err(wrong(format!(
            "--{option} needs an address and a port, not {text}"
        ))),
    }
}

fn tls(settings: &mut Settings) -> &mut PeerTls {
    settings.replication.tls.get_or_insert_default()
}

/// A level of acknowledgement.
pub(super) fn level(option: &str, text: &str) -> Result<Ack, Exit> {
    match text.parse::<u8>() {
        _ if text == "async" => Ok(Ack::Async),
        _ if text == "2pc" => Ok(Ack::TwoPhase),
        Ok(copies @ 1..=COPIES_MAX) => Ok(Ack::Copies(copies)),
        _ => Err(wrong(format!(
            "--{option}: a level is async, 1 to {COPIES_MAX} or 2pc, not {text}"
        ))),
    }
}

pub(super) const ROWS: &[Row] = &[
    Row {
        short: None,
        long: "repl-listen",
        value: Some("addr"),
        help: "lead: where followers connect to, host:port; see larder-replication(7)",
        apply: |draft, text| {
            draft.settings.replication.listen = address("repl-listen", text)?;
            Ok(())
        },
    },
    Row {
        short: None,
        long: "follow",
        value: Some("addr"),
        help: "be a copy of the leader there, host:port of its --repl-listen",
        apply: |draft, text| {
            draft.settings.replication.follow = address("follow", text)?;
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-secret-file",
        value: Some("file"),
        help: "what leader and followers must both know; needed beyond the loopback",
        apply: |draft, text| {
            let secret = fs::read(text)
                .map_err(|error| wrong(format!("cannot read the secret in {text}: {error}")))?;
            let secret = secret.trim_ascii().to_vec();
            if secret.len() < 16 {
                return Err(wrong(format!(
                    "the secret in {text} is shorter than 16 bytes"
                )));
            }
            draft.settings.replication.secret = Some(secret);
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-tls-cert",
        value: Some("file"),
        help: "TLS between nodes: this one's certificate (PEM), shown to leaders and followers",
        apply: |draft, text| {
            tls(&mut draft.settings).cert = text.into();
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-tls-key",
        value: Some("file"),
        help: "its key",
        apply: |draft, text| {
            tls(&mut draft.settings).key = text.into();
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-tls-ca",
        value: Some("file"),
        help: "who must have signed the other nodes' certificates",
        apply: |draft, text| {
            tls(&mut draft.settings).ca = text.into();
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-tls-name",
        value: Some("name"),
        help: "the name in the leader's certificate (default: the host of --follow)",
        apply: |draft, text| {
            tls(&mut draft.settings).name = Some(text.to_owned());
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-cluster",
        value: Some("name"),
        help: "nodes of another cluster are refused (default larder)",
        apply: |draft, text| {
            draft.settings.replication.cluster = text.to_owned();
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-ring",
        value: Some("num"),
        help: "megabytes of the log that are kept for followers that were away\n\
            (default 64, or 1 % of -m if that is more)",
        apply: |draft, text| {
            let megabytes = atoi(text);
            if megabytes < 8 {
                return Err(wrong("--repl-ring cannot be less than 8 megabytes"));
            }
            draft.ring_bytes = Some((megabytes as usize) << 20);
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-ack",
        value: Some("level"),
        help: "answer a mutation when it is here (async, the default), when 1 to 4 followers\n\
            have it, or when all in sync have agreed to it (2pc)",
        apply: |draft, text| {
            draft.settings.replication.ack = level("repl-ack", text)?;
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-ack-prefix",
        value: Some("prefix=level"),
        help: "another level for keys that begin so; may be given several times, the longest\n\
            prefix counts",
        apply: |draft, text| {
            let Some((prefix, text)) = text.rsplit_once('=').filter(|both| !both.0.is_empty())
            else {
                return Err(wrong(format!(
                    "--repl-ack-prefix needs a prefix and a level, prefix=level, not {text}"
                )));
            };
            let level = level("repl-ack-prefix", text)?;
            let prefixes = &mut draft.settings.replication.ack_prefixes;
            prefixes.push((prefix.as_bytes().to_vec(), level));
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-ack-timeout",
        value: Some("ms"),
        help: "how long to wait for them (default 500)",
        apply: |draft, text| {
            draft.settings.replication.ack_timeout_ms = atoi(text).max(1) as u64;
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-ack-policy",
        value: Some("name"),
        help: "then degrade (answer, and count it; the default) or fail (an error)",
        apply: |draft, text| {
            draft.settings.replication.ack_refuses = match text {
                "degrade" => false,
                "fail" => true,
                _ => {
                    return Err(wrong(format!(
                        "--repl-ack-policy is degrade or fail, not {text}"
                    )));
                }
            };
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-backpressure",
        value: Some("name"),
        help: "when a follower has fallen behind by three quarters of the log: off (it is\n\
            compared later; the default), delay (mutations wait for it) or refuse (they are\n\
            answered SERVER_ERROR 307 busy)",
        apply: |draft, text| {
            draft.settings.replication.backpressure = match text {
                "off" => Backpressure::Off,
                "delay" => Backpressure::Delay,
                "refuse" => Backpressure::Refuse,
                _ => {
                    return Err(wrong(format!(
                        "--repl-backpressure is off, delay or refuse, not {text}"
                    )));
                }
            };
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-min-isr",
        value: Some("n"),
        help: "2pc: refuse mutations while fewer are in sync, the leader counted (default 1)",
        apply: |draft, text| {
            draft.settings.replication.min_isr = match text.parse() {
                Ok(least @ 1..=MEMBERS_MAX) => least,
                _ => {
                    return Err(wrong(format!(
                        "--repl-min-isr is 1 to {MEMBERS_MAX}, not {text}"
                    )));
                }
            };
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-recover",
        value: Some("ms"),
        help: "how long a leader that starts empty waits for a follower that is not\n(default 10000; 0: not at all)",
        apply: |draft, text| {
            draft.settings.replication.recover_ms = atoi(text).max(0) as u64;
            Ok(())
        },
    },
    Row {
        short: None,
        long: "follower-writes",
        value: Some("name"),
        help: "mutations that come to a follower: refuse (SERVER_ERROR not leader; the default)\nor forward to its leader",
        apply: |draft, text| {
            draft.settings.replication.forwards = match text {
                "refuse" => false,
                "forward" => true,
                _ => {
                    return Err(wrong(format!(
                        "--follower-writes is refuse or forward, not {text}"
                    )));
                }
            };
            Ok(())
        },
    },
    Row {
        short: None,
        long: "forward-tls",
        value: Some("name"),
        help: "with --follower-writes=forward: whether the leader's clients use TLS, on or off\n(default: as those of this node, -Z)",
        apply: |draft, text| {
            draft.settings.replication.forwarding.tls = match text {
                "on" => Some(true),
                "off" => Some(false),
                _ => return Err(wrong(format!("--forward-tls is on or off, not {text}"))),
            };
            Ok(())
        },
    },
    Row {
        short: None,
        long: "forward-tls-ca",
        value: Some("file"),
        help: "who must have signed the certificate that the leader shows clients\n(default: that of -o ssl_ca_cert, else the system's)",
        apply: |draft, text| {
            let forwarding = &mut draft.settings.replication.forwarding;
            forwarding.ca = Some(text.into());
            Ok(())
        },
    },
    Row {
        short: None,
        long: "forward-tls-name",
        value: Some("name"),
        help: "the name in it (default: the host of --follow, or the leader's address)",
        apply: |draft, text| {
            let forwarding = &mut draft.settings.replication.forwarding;
            forwarding.name = Some(text.to_owned());
            Ok(())
        },
    },
    Row {
        short: None,
        long: "forward-user-file",
        value: Some("file"),
        help: "user:password that the leader is shown if it asks for them\n(default: the first user of -Y or of the SASL database of this node)",
        apply: |draft, text| {
            let forwarding = &mut draft.settings.replication.forwarding;
            forwarding.user_file = Some(text.into());
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-scrub",
        value: Some("seconds"),
        help: "compare all values with the followers' so often (default 0: never)",
        apply: |draft, text| {
            draft.settings.replication.scrub_seconds = atoi(text).max(0) as u64;
            Ok(())
        },
    },
];

/// Checks what the options mean together, and turns the log on if it is needed.
pub(super) fn finish(settings: &mut Settings, ring_bytes: Option<usize>) -> Result<(), Exit> {
    let replication = &settings.replication;
    let levels = settings
        .listen
        .endpoints
        .iter()
        .any(|one| one.ack.is_some());
    if replication.listen.is_none() && replication.follow.is_none() {
        if levels {
            return Err(wrong(
                "a listener has a level only with replication: add --repl-listen or --follow",
            ));
        }
        return Ok(());
    }
    if !settings.store.cas {
        return Err(wrong(
            "copies are told apart by CAS ids: -C cannot be used with replication",
        ));
    }
    if settings.store.memory_file.is_some() {
        return Err(wrong(
            "-e cannot be used with replication: a restarted node gets its items from a copy",
        ));
    }
    if settings.listen.udp_port != 0 && settings.levels().any(|level| level != Ack::Async) {
        return Err(wrong(
            "datagrams are not held back for copies: -U cannot be used with --repl-ack",
        ));
    }
    if !replication.forwards && replication.forwarding != Forwarding::default() {
        return Err(wrong(
            "--forward-tls, --forward-tls-ca, --forward-tls-name and --forward-user-file are for --follower-writes=forward",
        ));
    }
    if replication.forwarding.tls == Some(false)
        && (replication.forwarding.ca.is_some() || replication.forwarding.name.is_some())
    {
        return Err(wrong(
            "--forward-tls=off has no use for --forward-tls-ca and --forward-tls-name",
        ));
    }
    if settings.proxy.is_some() {
        return Err(wrong("a proxy has no items to replicate"));
    }
    if let Some(tls) = &replication.tls {
        let missing = [
            ("repl-tls-cert", &tls.cert),
            ("repl-tls-key", &tls.key),
            ("repl-tls-ca", &tls.ca),
        ]
        .into_iter()
        .find(|(_, file)| file.as_os_str().is_empty());
        if let Some((option, _)) = missing {
            return Err(wrong(format!("TLS between nodes needs --{option} too")));
        }
    }
    if let Some(listen) = &replication.listen
        && replication.secret.is_none()
        && replication.tls.is_none()
    {
        let public = listen
            .to_socket_addrs()
            .is_ok_and(|mut all| all.any(|address| !address.ip().is_loopback()));
        if public {
            return Err(wrong(format!(
                "--repl-listen={listen} would give all items to everybody: add --repl-secret-file or --repl-tls-ca"
            )));
        }
    }
    let least = PARTITIONS as u64 * (settings.store.key_max as u64 + RECORD_ROOM);
    if let Some(given) = ring_bytes
        && (given as u64) < least
    {
        return Err(wrong(format!(
            "--repl-ring must be at least {} with keys of up to {} bytes",
            least.div_ceil(1 << 20),
            settings.store.key_max
        )));
    }
    let most = settings.store.max_bytes / RING_SHARE;
    settings.store.journal = Some(Journal {
        ring_bytes: ring_bytes.unwrap_or(RING_LEAST.max(most).max(least) as usize),
        follower: true,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(change: impl FnOnce(&mut Settings)) -> Result<Settings, Exit> {
        let mut settings = Settings::default();
        change(&mut settings);
        finish(&mut settings, None).map(|()| settings)
    }

    #[test]
    fn the_log_is_kept_only_for_copies() {
        assert_eq!(finished(|_| ()).unwrap().store.journal, None);
        let leads = |settings: &mut Settings| {
            settings.replication.listen = Some("127.0.0.1:0".to_owned());
        };
        let journal = finished(leads).unwrap().store.journal.unwrap();
        assert_eq!(journal.ring_bytes, 64 << 20);
        let large = finished(|settings| {
            leads(settings);
            settings.store.max_bytes = 100 << 30;
        });
        assert_eq!(large.unwrap().store.journal.unwrap().ring_bytes, 1 << 30);
        // One record with the longest key fits.
        let long = |settings: &mut Settings| {
            leads(settings);
            settings.store.key_max = 8 << 20;
        };
        let ring = finished(long).unwrap().store.journal.unwrap().ring_bytes;
        assert!(ring / PARTITIONS > 8 << 20, "{ring}");
        let mut settings = Settings::default();
        long(&mut settings);
        let refused = finish(&mut settings, Some(64 << 20));
        assert!(matches!(refused, Err(Exit::Refused { code: 64, .. })));
    }

    #[test]
    fn what_would_not_work_is_refused() {
        let refused = |change: fn(&mut Settings)| {
            let outcome = finished(|settings| {
                settings.replication.listen = Some("127.0.0.1:0".to_owned());
                change(settings);
            });
            assert!(matches!(outcome, Err(Exit::Refused { code: 64, .. })));
        };
        refused(|settings| {
            settings.listen.udp_port = 1;
            settings.replication.ack_prefixes = vec![(b"a".to_vec(), Ack::Copies(1))];
        });
        refused(|settings| {
            settings.replication.tls = Some(PeerTls {
                cert: "cert".into(),
                ..PeerTls::default()
            });
        });
        refused(|settings| settings.replication.forwarding.tls = Some(true));
        refused(|settings| {
            settings.replication.forwards = true;
            settings.replication.forwarding.tls = Some(false);
            settings.replication.forwarding.ca = Some("ca".into());
        });
        refused(|settings| settings.store.cas = false);
        refused(|settings| settings.store.memory_file = Some("f".into()));
        refused(|settings| settings.replication.listen = Some("0.0.0.0:0".to_owned()));
    }
}
