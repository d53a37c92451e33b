#![forbid(unsafe_code)]
//! `larder proxy`: the options it has beside those of a server.

use std::ffi::OsString;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use super::options::{self, Row};
use super::{Exit, USAGE};
use crate::cluster::membership::{self, Found};
use crate::cluster::ring::{Member, Ring};
use crate::cluster::route::{Question, Settled, Tree};
use crate::net::address::reason;
use crate::settings::proxy::{
    Command, EmptyTag, KeyHash, KeyPart, Mode, Pool, Proxy, RingKind, Scheme, parse,
};

/// `EX_OSERR`
const OS_ERROR: u8 = 71;

/// What the options of the proxy have said so far.
#[derive(Debug, Default)]
pub(super) struct Draft {
    servers: Option<String>,
    file: Option<PathBuf>,
    check: bool,
    /// Keys to be located, `-` for those on stdin.
    keys: Vec<String>,
    scheme: Scheme,
    /// An option of the ring, which the file would know better.
    ring_given: Option<&'static str>,
}

fn wrong(message: impl Into<String>) -> Exit {
    Exit::refused(message, USAGE)
}

/// The part of a draft the rows below are about.
fn own(draft: &mut options::Draft) -> &mut Draft {
    draft.proxy.get_or_insert_default()
}

pub(super) const ROWS: &[Row] = &[
    Row {
        short: None,
        long: "servers",
        value: Some("list"),
        help: "the servers behind the proxy, parted by commas: host[:port[:weight]] [name]",
        apply: |draft, text| {
            own(draft).servers = Some(text.to_owned());
            Ok(())
        },
    },
    Row {
        short: None,
        long: "config",
        value: Some("file"),
        help: "pools and routes, see larder-proxy.toml(5); read again on SIGHUP",
        apply: |draft, text| {
            own(draft).file = Some(text.into());
            Ok(())
        },
    },
    Row {
        short: None,
        long: "check",
        value: None,
        help: "say what is wrong with --servers or --config, and exit",
        apply: |draft, _| {
            own(draft).check = true;
            Ok(())
        },
    },
    Row {
        short: None,
        long: "where",
        value: Some("key"),
        help: "say which servers have this key, the owner first, and exit; may be given\n\
               again; - is the keys on stdin, one a line",
        apply: |draft, text| {
            own(draft).keys.push(text.to_owned());
            Ok(())
        },
    },
    Row {
        short: None,
        long: "ring",
        value: Some("name"),
        help: "whose placement of keys to follow (default libketama)",
        apply: |draft, text| {
            let draft = own(draft);
            draft.ring_given = Some("--ring");
            let known = RingKind::NAMES.iter().find(|(name, _)| *name == text);
            let Some((_, kind)) = known else {
                let names: Vec<&str> = RingKind::NAMES.iter().map(|(name, _)| *name).collect();
                return Err(wrong(format!(
                    "--ring: unknown ring `{text}`; there are {}",
                    names.join(", ")
                )));
            };
            draft.scheme.kind = *kind;
            Ok(())
        },
    },
    Row {
        short: None,
        long: "hash",
        value: Some("name"),
        help: "hash of keys, where it is not the ring's usual one",
        apply: |draft, text| {
            let draft = own(draft);
            draft.ring_given = Some("--hash");
            draft.scheme.key_hash = KeyHash::named(text);
            if draft.scheme.key_hash.is_none() {
                let names: Vec<&str> = KeyHash::ALL.iter().map(|hash| hash.name()).collect();
                return Err(wrong(format!(
                    "--hash: unknown hash `{text}`; there are {}",
                    names.join(", ")
                )));
            }
            Ok(())
        },
    },
    Row {
        short: None,
        long: "hash-tag",
        value: Some("pair"),
        help: "hash what stands between these two bytes of a key, as \"{}\"",
        apply: |draft, text| {
            let draft = own(draft);
            draft.ring_given = Some("--hash-tag");
            let &[open, close] = text.as_bytes() else {
                return Err(wrong("--hash-tag: two bytes are expected, as \"{}\""));
            };
            draft.scheme.part = KeyPart::Tag {
                open,
                close,
                empty: EmptyTag::Whole,
            };
            Ok(())
        },
    },
];

/// Takes the word `proxy` off a command line that begins with it. The program called `memcached`
/// knows no such word.
pub(super) fn mode(
    arguments: impl Iterator<Item = OsString>,
    draft: &mut options::Draft,
) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.collect();
    let is_memcached = arguments
        .first()
        .and_then(|name| Path::new(name).file_name())
        .is_some_and(|name| name == "memcached");
    if !is_memcached && arguments.get(1).is_some_and(|word| word == "proxy") {
        arguments.remove(1);
        draft.proxy = Some(Draft::default());
    }
    arguments
}

impl Draft {
    pub(super) fn finish(self) -> Result<Mode, Exit> {
        let mode = match (self.servers, self.file) {
            (Some(_), Some(_)) => {
                return Err(wrong(
                    "larder proxy: give it --servers or --config, not both",
                ));
            }
            (None, None) => {
                return Err(wrong(
                    "larder proxy: give it the servers, as --servers a:11211,b:11211, or a --config",
                ));
            }
            (Some(list), None) => {
                if self.scheme.key_hash.is_some() && !self.scheme.kind.takes_hash() {
                    return Err(wrong("--hash: this ring has a hash of its own"));
                }
                let proxy = Proxy::of_servers(&list, self.scheme)
                    .map_err(|error| wrong(error.to_string()))?;
                Mode { proxy, file: None }
            }
            (None, Some(file)) => {
                if let Some(option) = self.ring_given {
                    return Err(wrong(format!("{option}: with --config, pools say that")));
                }
                let shown = file.display();
                let text = std::fs::read_to_string(&file)
                    .map_err(|error| wrong(format!("{shown}: {}", reason(&error))))?;
                let proxy = parse(&text).map_err(|error| wrong(format!("{shown}: {error}")))?;
                Mode {
                    proxy,
                    file: Some(file),
                }
            }
        };
        if self.check {
            return Err(Exit::Printed(summary(&mode)));
        }
        if !self.keys.is_empty() {
            return Err(Exit::Printed(located(&mode.proxy, &self.keys)?));
        }
        Ok(mode)
    }
}

/// A line for each key: the key, the pool a read of it goes to, and its servers in the order in
/// which they are asked.
fn located(proxy: &Proxy, keys: &[String]) -> Result<String, Exit> {
    let failed = |pool: &Pool, error: &dyn std::fmt::Display| {
        Exit::refused(format!("pool {}: {error}", pool.name), OS_ERROR)
    };
    let mut pools = Vec::new();
    for pool in &proxy.pools {
        // Names have to be resolved only where the ring depends on what they resolve to.
        let found = if pool.srv.is_some() || pool.scheme.needs_addresses() {
            membership::look_up(pool).map_err(|error| failed(pool, &error))?
        } else {
            membership::unresolved(pool)
        };
        let members: Vec<Member> = found.iter().map(Found::member).collect();
        let ring = Ring::build(&pool.scheme, &members).map_err(|error| failed(pool, &error))?;
        pools.push((pool, found, ring));
    }
    let tree = Tree::build(proxy, "");
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let mut text = String::new();
    let mut locate = |key: &[u8]| {
        let question = Question {
            command: Command::Get,
            key,
            listener: None,
        };
        text.push_str(&key.escape_ascii().to_string());
        match tree.settle(tree.root(), &question, now) {
            Settled::Pool(pool) => {
                let (pool, found, ring) = &pools[pool];
                text.push_str(&format!(" {}", pool.name));
                for at in ring.preference(key) {
                    text.push_str(&format!(" {}", found[at].server.address));
                }
            }
            Settled::Route(_) => text.push_str(" (more than one pool)"),
        }
        text.push('\n');
    };
    for key in keys {
        if key == "-" {
            for line in std::io::stdin().lock().split(b'\n') {
                let line = line.map_err(|error| Exit::refused(reason(&error), OS_ERROR))?;
                locate(line.strip_suffix(b"\r").unwrap_or(&line));
            }
        } else {
            locate(key.as_bytes());
        }
    }
    Ok(text)
}

/// What `--check` has to say about a configuration that is sound.
fn summary(mode: &Mode) -> String {
    let count = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    };
    let mut text = String::new();
    for pool in &mode.proxy.pools {
        let servers = match &pool.srv {
            Some(name) => format!("servers from {name}"),
            None => count(pool.servers.len(), "server"),
        };
        text.push_str(&format!("pool {}: {servers}\n", pool.name));
    }
    text.push_str(&format!(
        "{}, {}: sound\n",
        count(mode.proxy.pools.len(), "pool"),
        count(mode.proxy.routes.len(), "route")
    ));
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn run(arguments: &[&str]) -> Result<Option<Mode>, Exit> {
        let line = arguments.iter().map(OsString::from);
        super::super::settings(line).map(|(settings, _)| settings.proxy)
    }

    fn refused(arguments: &[&str]) -> String {
        match run(arguments) {
            Err(Exit::Refused { message, code }) => {
                assert_eq!(code, USAGE);
                message
            }
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    #[test]
    fn servers_and_ring() {
        let mode = run(&[
            "larder",
            "proxy",
            "-p",
            "11210",
            "--servers",
            "a:11211,b:11211:2",
            "--ring",
            "twemproxy",
            "--hash",
            "md5",
            "--hash-tag",
            "{}",
        ])
        .unwrap()
        .unwrap();
        let pool = &mode.proxy.pools[0];
        assert_eq!(pool.servers.len(), 2);
        assert_eq!(pool.scheme.kind, RingKind::Twemproxy);
        assert_eq!(pool.scheme.key_hash, Some(KeyHash::Md5));
        assert_eq!(mode.file, None);
    }

    #[test]
    fn the_word_comes_first_and_is_no_word_of_memcached() {
        assert_eq!(run(&["larder", "-v", "proxy"]).unwrap(), None);
        assert_eq!(run(&["/usr/bin/memcached", "proxy"]).unwrap(), None);
        assert!(matches!(
            run(&["larder", "--servers", "a"]),
            Err(Exit::Refused { .. })
        ));
    }

    #[test]
    fn what_is_missing_or_too_much() {
        let own = |rest: &[&'static str]| refused(&[&["larder", "proxy"], rest].concat());
        assert_eq!(
            own(&[]),
            "larder proxy: give it the servers, as --servers a:11211,b:11211, or a --config"
        );
        assert_eq!(
            own(&["--servers", "a", "--config", "f"]),
            "larder proxy: give it --servers or --config, not both"
        );
        assert_eq!(
            own(&["--servers", "a:0"]),
            "--servers: `a:0`: the port must be 1 to 65535, not `0`"
        );
        assert_eq!(
            own(&["--servers", "a,b:1:2", "--ring", "jump"]),
            "--servers: this ring has no weights"
        );
        assert_eq!(
            own(&["--servers", "a", "--ring", "ch3", "--hash", "md5"]),
            "--hash: this ring has a hash of its own"
        );
        assert!(own(&["--servers", "a", "--ring", "x"]).starts_with("--ring: unknown ring `x`"));
        assert_eq!(
            own(&["--config", "/nowhere.toml"]),
            "/nowhere.toml: No such file or directory"
        );
        assert_eq!(
            own(&["--config", "f", "--hash", "md5"]),
            "--hash: with --config, pools say that"
        );
    }

    #[test]
    fn keys_are_located() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        file.write_all(
            b"route = { match = [{ prefix = 'b:', to = 'b' }, { prefix = 'f:', to = { failover = ['a', 'b'] } }], otherwise = 'a' }\n\
              [pools.a]\nservers = ['10.0.0.1', '10.0.0.2', '10.0.0.3']\n[pools.b]\nservers = ['/run/b']\n",
        )
        .unwrap();
        let line = ["larder", "proxy", "--config", &path];
        let line = [
            &line[..],
            &["--where", "a", "--where", "b:1", "--where", "f:1"],
        ]
        .concat();
        // The owner is libmemcached's for kw_eq3_11211.
        assert_eq!(
            run(&line),
            Err(Exit::Printed(
                "a a 10.0.0.2:11211 10.0.0.1:11211 10.0.0.3:11211\nb:1 b /run/b\nf:1 (more than one pool)\n"
                    .to_owned()
            ))
        );
    }

    #[test]
    fn files_are_checked() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        file.write_all(b"[pools.a]\nservers = ['a', 'b']\n")
            .unwrap();
        let line = ["larder", "proxy", "--config", &path, "--check"];
        assert_eq!(
            run(&line),
            Err(Exit::Printed(
                "pool a: 2 servers\n1 pool, 1 route: sound\n".to_owned()
            ))
        );
        assert!(run(&line[..4]).unwrap().unwrap().file.is_some());
        file.write_all(b"tiemout = '1s'\n").unwrap();
        assert_eq!(
            refused(&line),
            format!(
                "{path}: line 3: pools.a.tiemout: unknown field `tiemout`; did you mean `timeout`?"
            )
        );
    }
}
