#![forbid(unsafe_code)]
//! The options of nodes among which etcd chooses the leader.

use std::path::PathBuf;

use super::options::Row;
use super::replication::{address, wrong};
use super::{Exit, atoi};
use crate::settings::{Election, Etcd, Settings};

/// etcd gives no shorter leases.
const TTL_LEAST: i64 = 2;
const TTL_MOST: i64 = 3600;

/// What the options have said so far.
#[derive(Debug, Default)]
pub(super) struct Draft {
    etcd: Etcd,
    node: Option<String>,
    group: Option<String>,
    advertise: Option<String>,
    repl_advertise: Option<String>,
    ttl_seconds: Option<u64>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    /// The first option that means nothing without `--etcd`.
    needs_etcd: Option<&'static str>,
}

/// Part of a key at etcd.
fn name(option: &str, text: &str) -> Result<Option<String>, Exit> {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    if text.is_empty() || text.len() > 128 || !text.bytes().all(sound) {
        return Err(wrong(format!(
            "--{option} is made of letters, digits and . _ - : only, not `{text}`"
        )));
    }
    Ok(Some(text.to_owned()))
}

fn endpoint(text: &str) -> Result<String, Exit> {
    let text = text.trim().trim_end_matches('/');
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    match url.split_once("://") {
        Some(("http" | "https", rest)) if !rest.is_empty() && !rest.contains('/') => Ok(url),
        _ => Err(wrong(format!(
            "--etcd needs URLs as http://10.0.0.1:2379, with commas between them, not `{text}`"
        ))),
    }
}

pub(super) const ROWS: &[Row] = &[
    Row {
        short: None,
        long: "etcd",
        value: Some("urls"),
        help: "let etcd decide which node of a group leads, e.g.\n\
            http://10.0.0.1:2379,http://10.0.0.2:2379; needs --node and --repl-listen",
        apply: |draft, text| {
            let endpoints = text.split(',').map(endpoint).collect::<Result<_, _>>()?;
            draft.election.etcd.endpoints = endpoints;
            Ok(())
        },
    },
    Row {
        short: None,
        long: "node",
        value: Some("name"),
        help: "this node's name, which no other node of the cluster has",
        apply: |draft, text| {
            draft.election.node = name("node", text)?;
            draft.election.needs_etcd.get_or_insert("--node");
            Ok(())
        },
    },
    Row {
        short: None,
        long: "group",
        value: Some("name"),
        help: "the nodes that hold the same keys, one of which leads (default main)",
        apply: |draft, text| {
            draft.election.group = name("group", text)?;
            draft.election.needs_etcd.get_or_insert("--group");
            Ok(())
        },
    },
    Row {
        short: None,
        long: "advertise",
        value: Some("addr"),
        help: "where clients and proxies reach this node, host:port\n(default: what it listens on)",
        apply: |draft, text| {
            draft.election.advertise = address("advertise", text)?;
            draft.election.needs_etcd.get_or_insert("--advertise");
            Ok(())
        },
    },
    Row {
        short: None,
        long: "repl-advertise",
        value: Some("addr"),
        help: "where followers reach this node, host:port\n(default: the port of --repl-listen, on its host or that of --advertise)",
        apply: |draft, text| {
            draft.election.repl_advertise = address("repl-advertise", text)?;
            draft.election.needs_etcd.get_or_insert("--repl-advertise");
            Ok(())
        },
    },
    Row {
        short: None,
        long: "etcd-ttl",
        value: Some("seconds"),
        help: "how long a leader that is not heard of any more keeps others from leading\n(default 5, at least 2)",
        apply: |draft, text| {
            let seconds = atoi(text);
            if !(TTL_LEAST..=TTL_MOST).contains(&seconds) {
                return Err(wrong(format!(
                    "--etcd-ttl is {TTL_LEAST} to {TTL_MOST} seconds, not {text}"
                )));
            }
            draft.election.ttl_seconds = Some(seconds as u64);
            draft.election.needs_etcd.get_or_insert("--etcd-ttl");
            Ok(())
        },
    },
    Row {
        short: None,
        long: "etcd-ca",
        value: Some("file"),
        help: "whose certificates etcd shows (PEM); else the well-known authorities",
        apply: |draft, text| {
            draft.election.etcd.ca = Some(text.into());
            draft.election.needs_etcd.get_or_insert("--etcd-ca");
            Ok(())
        },
    },
    Row {
        short: None,
        long: "etcd-cert",
        value: Some("file"),
        help: "certificate to show to etcd (PEM), with --etcd-key",
        apply: |draft, text| {
            draft.election.certificate = Some(text.into());
            draft.election.needs_etcd.get_or_insert("--etcd-cert");
            Ok(())
        },
    },
    Row {
        short: None,
        long: "etcd-key",
        value: Some("file"),
        help: "its key (PEM)",
        apply: |draft, text| {
            draft.election.key = Some(text.into());
            draft.election.needs_etcd.get_or_insert("--etcd-key");
            Ok(())
        },
    },
    Row {
        short: None,
        long: "etcd-user-file",
        value: Some("file"),
        help: "a file that holds user:password for etcd",
        apply: |draft, text| {
            draft.election.etcd.user_file = Some(text.into());
            draft.election.needs_etcd.get_or_insert("--etcd-user-file");
            Ok(())
        },
    },
];

/// Checks what the options mean together.
pub(super) fn finish(settings: &mut Settings, draft: Draft) -> Result<(), Exit> {
    let mut etcd = draft.etcd;
    if etcd.endpoints.is_empty() {
        return match draft.needs_etcd {
            Some(option) => Err(wrong(format!("{option} means nothing without --etcd"))),
            None => Ok(()),
        };
    }
    etcd.identity = match (draft.certificate, draft.key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(wrong("--etcd-cert and --etcd-key need each other")),
    };
    let replication = &mut settings.replication;
    let Some(node) = draft.node else {
        return Err(wrong(
            "--etcd needs --node=NAME, a name that no other node of the cluster has",
        ));
    };
    if replication.listen.is_none() {
        return Err(wrong(
            "--etcd needs --repl-listen=HOST:PORT: any node may be the one that others copy",
        ));
    }
    if replication.follow.is_some() {
        return Err(wrong(
            "with --etcd it is etcd that says whom to follow: take --follow away",
        ));
    }
    if name("repl-cluster", &replication.cluster).is_err() {
        return Err(wrong(
            "with --etcd, --repl-cluster is made of letters, digits and . _ - : only",
        ));
    }
    replication.election = Some(Election {
        etcd,
        node,
        group: draft.group.unwrap_or_else(|| "main".to_owned()),
        advertise: draft.advertise,
        repl_advertise: draft.repl_advertise,
        ttl_ms: draft.ttl_seconds.unwrap_or(5) * 1000,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafted(change: impl FnOnce(&mut Draft, &mut Settings)) -> Result<Settings, Exit> {
        let mut settings = Settings::default();
        settings.replication.listen = Some("127.0.0.1:0".to_owned());
        let mut draft = Draft {
            node: Some("a".to_owned()),
            ..Draft::default()
        };
        draft.etcd.endpoints = vec![endpoint("127.0.0.1:2379/").ok().unwrap()];
        change(&mut draft, &mut settings);
        finish(&mut settings, draft).map(|()| settings)
    }

    #[test]
    fn what_is_not_said_is_usual() {
        let election = drafted(|_, _| ()).unwrap().replication.election.unwrap();
        assert_eq!(election.etcd.endpoints, ["http://127.0.0.1:2379"]);
        assert_eq!((&*election.group, election.ttl_ms), ("main", 5000));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let refused = |change: fn(&mut Draft, &mut Settings)| {
            assert!(matches!(
                drafted(change),
                Err(Exit::Refused { code: 64, .. })
            ));
        };
        refused(|draft, _| draft.node = None);
        refused(|draft, _| draft.key = Some("k".into()));
        refused(|_, settings| settings.replication.listen = None);
        refused(|_, settings| settings.replication.follow = Some("a:1".to_owned()));
        refused(|_, settings| settings.replication.cluster = "a/b".to_owned());
        refused(|draft, _| {
            draft.etcd.endpoints.clear();
            draft.needs_etcd = Some("--node");
        });
        assert!(endpoint("ftp://x").is_err() && endpoint("http://x/y").is_err());
        assert!(name("node", "a/b").is_err() && name("node", "").is_err());
    }
}
