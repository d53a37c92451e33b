#![forbid(unsafe_code)]
//! The names behind `-o`: one row each, with what it takes, whether it changes anything, and its help.

use super::options::Draft;
use super::{Exit, atof, atoi};
use crate::settings::{HashAlgorithm, KEY_LONGEST, KEY_MAX, TotalMemory, Verify};

/// Whether a name changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Works,
    /// Checked and shown by `stats settings`; what it would tune is done otherwise here.
    Shown,
    /// Accepted in silence, as memcached does.
    Ignored,
}

/// One name.
pub(super) struct Name {
    pub name: &'static str,
    pub value: Value,
    pub effect: Effect,
    pub help: &'static str,
    apply: fn(&mut Draft, &str) -> Result<(), Exit>,
}

/// What stands behind the `=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    None,
    Optional,
    /// With what is said when it is missing.
    Required(&'static str),
}

use Effect::{Ignored, Shown, Works};
use Value::{None as Bare, Optional, Required};

const CHUNK_KILOBYTES_MAX: i64 = 1024;

fn wrong(message: impl Into<String>) -> Exit {
    Exit::refused(message, 1)
}

fn check(holds: bool, message: &str) -> Result<(), Exit> {
    if holds { Ok(()) } else { Err(wrong(message)) }
}

/// A `u32` as C's `strtoul` with a check behind it reads it.
fn number(name: &str, text: &str) -> Result<u32, Exit> {
    text.trim()
        .parse()
        .map_err(|_| wrong(format!("could not parse argument to {name}")))
}

/// As [`number`], with a sign.
fn signed(name: &str, text: &str) -> Result<i32, Exit> {
    text.trim()
        .parse()
        .map_err(|_| wrong(format!("could not parse argument to {name}")))
}

macro_rules! names {
    ($($name:literal $value:expr, $effect:expr, $help:literal, $apply:expr;)*) => {
        &[$(Name { name: $name, value: $value, effect: $effect, help: $help, apply: $apply }),*]
    };
}

/// Every name, in the order of the help.
pub(super) const NAMES: &[Name] = names! {
    "maxconns_fast" Bare, Works, "tell clients over the limit and close (default)", |draft, _| {
        draft.settings.server.maxconns_fast = true;
        Ok(())
    };
    "no_maxconns_fast" Bare, Works, "over the limit, stop accepting", |draft, _| {
        draft.settings.server.maxconns_fast = false;
        Ok(())
    };
    "hashpower" Required("Missing numeric argument for hashpower"), Works,
        "size of the hash table at start, as a power of two (12 to 32)", |draft, text| {
        let power = atoi(text);
        if power < 12 {
            return Err(wrong(format!("Initial hashtable multiplier of {power} is too low")));
        }
        if power > 32 {
            return Err(wrong(format!(
                "Initial hashtable multiplier of {power} is too high\n\
                 Choose a value based on \"STAT hash_power_level\" from a running instance"
            )));
        }
        draft.settings.store.hash_power = power as u32;
        Ok(())
    };
    "no_hashexpand" Bare, Works, "keep the hash table at its size", |draft, _| {
        draft.settings.store.hash_expand = false;
        Ok(())
    };
    "hash_algorithm" Required("Missing hash_algorithm argument"), Works,
        "jenkins, murmur3 or xxh3 (default: keyed with a random seed)", |draft, text| {
        draft.settings.store.hash_algorithm = Some(match text {
            "jenkins" => HashAlgorithm::Jenkins,
            "murmur3" => HashAlgorithm::Murmur3,
            "xxh3" => HashAlgorithm::Xxh3,
            _ => return Err(wrong("Unknown hash_algorithm option (jenkins, murmur3, xxh3)")),
        });
        Ok(())
    };
    "crash_restart" Bare, Works, "with -e: items outlive a crash, too (4 bytes each)", |draft, _| {
        draft.settings.store.crash_restart = true;
        Ok(())
    };
    "total_memory" Required("Missing total_memory argument"), Works,
        "megabytes for items, table, buffers and clients together, or cgroup; -m is a bound for items then", |draft, text| {
        draft.settings.store.total_memory = Some(match text {
            "cgroup" => TotalMemory::Cgroup,
            _ => {
                let megabytes = u64::from(number("total_memory", text)?);
                check(megabytes >= 24, "total_memory must be at least 24 megabytes")?;
                TotalMemory::Bytes(megabytes << 20)
            }
        });
        Ok(())
    };
    "long_ttl" Bare, Works, "expiry times up to 31 years are relative, dates may lie beyond 2038", |draft, _| {
        draft.settings.store.long_ttl = true;
        Ok(())
    };
    "max_key_size" Required("Missing max_key_size argument"), Works,
        "longest key, in bytes or with k or m (250, the default, to 8m)", |draft, text| {
        let size = super::options::size(text);
        check(
            (KEY_MAX..=KEY_LONGEST).contains(&size),
            "max_key_size must be between 250 bytes and 8m",
        )?;
        draft.settings.store.key_max = size;
        Ok(())
    };
    "verify" Required("Missing verify argument"), Works,
        "values of 64 KiB or more: off, read or scrub (default scrub)", |draft, text| {
        draft.settings.store.verify = match text {
            "off" => Verify::Off,
            "read" => Verify::Read,
            "scrub" => Verify::Scrub,
            _ => return Err(wrong("Unknown verify option (off, read, scrub)")),
        };
        Ok(())
    };
    "scrub_rate" Required("Missing scrub_rate argument"), Works,
        "megabytes of values that the scrubber reads in a second, 0 for none (default 32)", |draft, text| {
        draft.settings.store.scrub_rate = u64::from(number("scrub_rate", text)?) << 20;
        Ok(())
    };
    "slab_reassign" Bare, Works, "allow pages to move between classes (default)", |draft, _| {
        draft.settings.store.slab_reassign = true;
        Ok(())
    };
    "no_slab_reassign" Bare, Works, "pages stay where they are", |draft, _| {
        draft.settings.store.slab_reassign = false;
        Ok(())
    };
    "slab_automove" Optional, Works, "0, 1 or 2: whether pages move by themselves (default 1)", |draft, text| {
        let mode = if text.is_empty() { 1 } else { atoi(text) };
        check((0..=2).contains(&mode), "slab_automove must be between 0 and 2")?;
        draft.settings.store.slab_automove = mode as u32;
        Ok(())
    };
    "no_slab_automove" Bare, Works, "as slab_automove=0", |draft, _| {
        draft.settings.store.slab_automove = 0;
        Ok(())
    };
    "slab_automove_ratio" Required("Missing slab_automove_ratio argument"), Shown,
        "age ratio of memcached's mover (default 0.8)", |draft, text| {
        let ratio = atof(text);
        check(ratio > 0.0 && ratio <= 1.0, "slab_automove_ratio must be > 0 and < 1")?;
        draft.settings.store.slab_automove_ratio = ratio;
        Ok(())
    };
    "slab_automove_window" Required("Missing slab_automove_window argument"), Shown,
        "window of memcached's mover in seconds, 3 to 1800 (default 10)", |draft, text| {
        let window = atoi(text);
        check((3..=1800).contains(&window), "slab_automove_window must be > 2 and < 1800")?;
        draft.settings.store.slab_automove_window = window as u32;
        Ok(())
    };
    "slab_sizes" Required("Missing slab_sizes argument"), Works,
        "chunk sizes of the slab classes, parted by dashes", |draft, text| {
        draft.slab_sizes = Some(text.to_owned());
        Ok(())
    };
    "slab_chunk_max" Required("Missing slab_chunk_max argument"), Works,
        "largest chunk in kilobytes (default 512)", |draft, text| {
        let Ok(kilobytes) = text.trim().parse::<i64>() else {
            return Err(wrong("could not parse argument to slab_chunk_max"));
        };
        check(kilobytes > 0, "slab_chunk_max must be >= 0")?;
        check(kilobytes <= CHUNK_KILOBYTES_MAX, "slab_chunk_max must be specified in kilobytes.")?;
        draft.settings.store.slab_chunk_max = (kilobytes as usize) << 10;
        draft.chunk_max_given = true;
        Ok(())
    };
    "no_chunked_items" Bare, Works, "largest chunk is a page of 1 MiB", |draft, _| {
        draft.settings.store.slab_chunk_max = 1 << 20;
        Ok(())
    };
    "track_sizes" Bare, Works, "enable \"stats sizes\"", |draft, _| {
        draft.settings.store.track_sizes = true;
        Ok(())
    };
    "tail_repair_time" Required("Missing numeric argument for tail_repair_time"), Shown,
        "nothing here can leak a reference that would need repair", |draft, text| {
        let seconds = atoi(text);
        check(seconds >= 10, "Cannot set tail_repair_time to less than 10 seconds")?;
        draft.settings.inert.tail_repair_time = seconds as u32;
        Ok(())
    };
    "lru_crawler" Bare, Works, "free expired items in the background (default)", |draft, _| {
        draft.settings.store.lru_crawler = true;
        Ok(())
    };
    "no_lru_crawler" Bare, Works, "free expired items when they are found", |draft, _| {
        draft.settings.store.lru_crawler = false;
        Ok(())
    };
    "lru_crawler_sleep" Required("Missing lru_crawler_sleep value"), Works,
        "microseconds between two steps of the crawler (default 100)", |draft, text| {
        let pause = atoi(text);
        check((0..=1_000_000).contains(&pause), "LRU crawler sleep must be between 0 and 1 second")?;
        draft.settings.store.lru_crawler_sleep = pause as u32;
        Ok(())
    };
    "lru_crawler_tocrawl" Required("Missing lru_crawler_tocrawl value"), Works,
        "items per run of the crawler, 0 for all (default 0)", |draft, text| {
        let Ok(items) = text.trim().parse() else {
            return Err(wrong("lru_crawler_tocrawl takes a numeric 32bit value"));
        };
        draft.settings.store.lru_crawler_tocrawl = items;
        Ok(())
    };
    "lru_maintainer" Bare, Works, "new items prove themselves before they stay (default)", |draft, _| {
        draft.settings.store.lru_maintainer = true;
        Ok(())
    };
    "no_lru_maintainer" Bare, Works, "one flat LRU per class", |draft, _| {
        draft.settings.store.lru_maintainer = false;
        Ok(())
    };
    "hot_lru_pct" Required("Missing hot_lru_pct argument"), Shown,
        "the HOT ring finds its own share (default 20)", |draft, text| {
        let share = atoi(text);
        check((1..80).contains(&share), "hot_lru_pct must be > 1 and < 80")?;
        draft.settings.store.hot_lru_pct = share as u32;
        Ok(())
    };
    "warm_lru_pct" Required("Missing warm_lru_pct argument"), Shown,
        "likewise (default 40)", |draft, text| {
        let share = atoi(text);
        check((1..80).contains(&share), "warm_lru_pct must be > 1 and < 80")?;
        draft.settings.store.warm_lru_pct = share as u32;
        Ok(())
    };
    "hot_max_factor" Required("Missing hot_max_factor argument"), Shown, "likewise (default 0.20)", |draft, text| {
        let factor = atof(text);
        check(factor > 0.0, "hot_max_factor must be > 0")?;
        draft.settings.store.hot_max_factor = factor;
        Ok(())
    };
    "warm_max_factor" Required("Missing warm_max_factor argument"), Shown, "likewise (default 2.00)", |draft, text| {
        let factor = atof(text);
        check(factor > 0.0, "warm_max_factor must be > 0")?;
        draft.settings.store.warm_max_factor = factor;
        Ok(())
    };
    "temporary_ttl" Required("Missing temporary_ttl argument"), Works,
        "items that live no longer than this many seconds are never evicted", |draft, text| {
        draft.settings.store.temporary_ttl = Some(atoi(text).max(0) as u32);
        Ok(())
    };
    "idle_timeout" Required("Missing numeric argument for idle_timeout"), Works,
        "seconds after which an idle client is closed, 0 for never (default 0)", |draft, text| {
        draft.settings.server.idle_timeout = atoi(text).max(0) as u32;
        Ok(())
    };
    "watcher_logbuf_size" Required("Missing watcher_logbuf_size argument"), Works,
        "kilobytes that may wait for one watcher (default 256)", |draft, text| {
        draft.settings.watch.watcher_buffer = number("watcher_logbuf_size", text)? as usize * 1024;
        Ok(())
    };
    "worker_logbuf_size" Required("Missing worker_logbuf_size argument"), Works,
        "kilobytes of log lines that one thread may hold (default 64)", |draft, text| {
        draft.settings.watch.worker_buffer = number("worker_logbuf_size", text)? as usize * 1024;
        Ok(())
    };
    "read_buf_mem_limit" Required("Missing read_buf_mem_limit argument"), Works,
        "megabytes for unfinished commands and replies not taken, 0 for no limit (default 0)", |draft, text| {
        draft.settings.server.read_buffer_limit = (number("read_buf_mem_limit", text)? as usize) << 20;
        Ok(())
    };
    "resp_obj_mem_limit" Optional, Ignored, "gone; see read_buf_mem_limit", |draft, _| {
        draft.warnings.push("DEPRECATED: resp_obj_mem_limit no longer used. See read_buf_mem_limit,".to_owned());
        Ok(())
    };
    "inline_ascii_resp" Bare, Ignored, "no effect", |_, _| Ok(());
    "no_inline_ascii_resp" Bare, Ignored, "no effect", |_, _| Ok(());
    "modern" Bare, Ignored, "the default", |_, _| Ok(());
    "no_modern" Bare, Works, "the defaults of memcached 1.4", |draft, _| {
        if !draft.chunk_max_given {
            draft.settings.store.slab_chunk_max = 1 << 20;
        }
        draft.settings.server.maxconns_fast = false;
        let store = &mut draft.settings.store;
        store.slab_reassign = false;
        store.slab_automove = 0;
        store.lru_crawler = false;
        store.lru_maintainer = false;
        store.hash_algorithm = Some(HashAlgorithm::Jenkins);
        Ok(())
    };
    "drop_privileges" Bare, Shown, "the unit file's sandbox does this (see larder(1))", |draft, _| {
        draft.settings.process.drop_privileges = true;
        Ok(())
    };
    "no_drop_privileges" Bare, Works, "the default", |draft, _| {
        draft.settings.process.drop_privileges = false;
        Ok(())
    };
    "sock_cookie_id" Optional, Shown, "mark of the sockets", |draft, text| {
        draft.settings.inert.sock_cookie_id = atoi(text).max(0) as u32;
        Ok(())
    };
    "ssl_chain_cert" Required("Missing ssl_chain_cert argument"), Works, "certificate chain, PEM", |draft, text| {
        draft.settings.tls.chain_cert = Some(text.into());
        Ok(())
    };
    "ssl_key" Required("Missing ssl_key argument"), Works, "private key, if not beside the certificate", |draft, text| {
        draft.settings.tls.key = Some(text.into());
        Ok(())
    };
    "ssl_verify_mode" Required("Missing ssl_verify_mode argument"), Works,
        "client certificates: 0 none, 1 request, 2 require, 3 once (default 0)", |draft, text| {
        let mode = signed("ssl_verify_mode", text)?;
        check((0..=3).contains(&mode), "Invalid ssl_verify_mode. Use help to see valid options.")?;
        draft.settings.tls.verify_mode = mode as u32;
        Ok(())
    };
    "ssl_keyformat" Required("Missing ssl_keyformat argument"), Works, "1 is PEM, 2 is DER (default 1)", |draft, text| {
        draft.settings.tls.key_format = number("ssl_keyformat", text)?;
        Ok(())
    };
    "ssl_ciphers" Required("Missing ssl_ciphers argument"), Works,
        "cipher suites of TLS 1.2, in OpenSSL's names", |draft, text| {
        draft.settings.tls.ciphers = Some(text.to_owned());
        Ok(())
    };
    "ssl_ca_cert" Required("Missing ssl_ca_cert argument"), Works, "authorities of client certificates, PEM", |draft, text| {
        draft.settings.tls.ca_cert = Some(text.into());
        Ok(())
    };
    "ssl_wbuf_size" Required("Missing ssl_wbuf_size argument"), Shown,
        "records are as long as TLS allows (default 16)", |draft, text| {
        draft.settings.tls.write_buffer = number("ssl_wbuf_size", text)? as usize * 1024;
        Ok(())
    };
    "ssl_session_cache" Bare, Works, "let clients resume sessions", |draft, _| {
        draft.settings.tls.session_cache = true;
        Ok(())
    };
    "ssl_kernel_tls" Bare, Shown, "TLS in the kernel is not used", |draft, _| {
        draft.warnings.push("Kernel TLS offload is not available".to_owned());
        draft.settings.tls.kernel_tls = true;
        Ok(())
    };
    "ssl_min_version" Required("Missing ssl_min_version argument"), Works,
        "2 or 3: TLS 1.2 or 1.3 (default 2; 0 and 1 are refused)", |draft, text| {
        let version = signed("ssl_min_version", text)?;
        check((0..=3).contains(&version), "Invalid ssl_min_version. Use help to see valid options.")?;
        check(version >= 2, "ssl_min_version 0 and 1 (TLS 1.0 and 1.1) are not safe and not there: use 2 or 3")?;
        draft.settings.tls.min_version = version as u32;
        Ok(())
    };
    "udp_public" Bare, Works, "Larder's own: allow UDP on addresses that are not loopback", |draft, _| {
        draft.settings.listen.udp_public = true;
        Ok(())
    };
};

/// Names that need what is not there, and what to do instead.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "ext_",
        "there is no flash tier: leave the ext_* options away and give the memory to -m",
    ),
    (
        "slab_automove_freeratio",
        "there is no flash tier: leave slab_automove_freeratio away",
    ),
    (
        "proxy_",
        "there is no Lua proxy: put a ring in front of the servers instead",
    ),
    (
        "routelib",
        "there is no Lua proxy: put a ring in front of the servers instead",
    ),
];

/// Applies one `name[=value]`.
fn apply(draft: &mut Draft, option: &str) -> Result<(), Exit> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    if cfg!(feature = "debug-commands") && name == "relaxed_privileges" {
        return Ok(());
    }
    if let Some(row) = NAMES.iter().find(|row| row.name == name) {
        return match (row.value, value) {
            (Required(missing), None) => Err(wrong(missing)),
            _ => (row.apply)(draft, value.unwrap_or("")),
        };
    }
    if let Some((_, advice)) = ELSEWHERE
        .iter()
        .find(|(prefix, _)| name.starts_with(prefix))
    {
        return Err(wrong(format!("Illegal suboption \"{name}\": {advice}")));
    }
    Err(wrong(format!("Illegal suboption \"{option}\"")))
}

/// Applies a list of names parted by commas.
pub(super) fn read(draft: &mut Draft, list: &str) -> Result<(), Exit> {
    if list.is_empty() {
        return Ok(());
    }
    // As getsubopt takes it apart: a comma at the end begins nothing.
    let list = list.strip_suffix(',').unwrap_or(list);
    list.split(',').try_for_each(|option| apply(draft, option))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(list: &str) -> Result<Draft, Exit> {
        let mut draft = Draft::default();
        read(&mut draft, list).map(|()| draft)
    }

    #[test]
    fn names_stand_once_and_have_help() {
        for (at, row) in NAMES.iter().enumerate() {
            assert!(!row.help.is_empty(), "{}", row.name);
            assert!(
                NAMES[at + 1..].iter().all(|other| other.name != row.name),
                "{}",
                row.name
            );
        }
        assert!(
            NAMES.iter().any(|row| row.effect == Shown)
                && NAMES.iter().any(|row| row.effect == Ignored)
        );
    }

    #[test]
    fn wrong_values_are_told_as_memcached_tells_them() {
        for (list, message) in [
            ("foo", "Illegal suboption \"foo\""),
            ("foo=3", "Illegal suboption \"foo=3\""),
            ("hashpower", "Missing numeric argument for hashpower"),
            (
                "hashpower=3",
                "Initial hashtable multiplier of 3 is too low",
            ),
            ("slab_automove=5", "slab_automove must be between 0 and 2"),
            (
                "slab_automove_ratio=0",
                "slab_automove_ratio must be > 0 and < 1",
            ),
            (
                "slab_automove_window=2",
                "slab_automove_window must be > 2 and < 1800",
            ),
            ("slab_chunk_max=0", "slab_chunk_max must be >= 0"),
            (
                "slab_chunk_max=x",
                "could not parse argument to slab_chunk_max",
            ),
            (
                "slab_chunk_max=2048",
                "slab_chunk_max must be specified in kilobytes.",
            ),
            (
                "hash_algorithm=md5",
                "Unknown hash_algorithm option (jenkins, murmur3, xxh3)",
            ),
            (
                "tail_repair_time=9",
                "Cannot set tail_repair_time to less than 10 seconds",
            ),
            (
                "lru_crawler_sleep=1000001",
                "LRU crawler sleep must be between 0 and 1 second",
            ),
            (
                "lru_crawler_tocrawl=x",
                "lru_crawler_tocrawl takes a numeric 32bit value",
            ),
            ("hot_lru_pct=80", "hot_lru_pct must be > 1 and < 80"),
            ("hot_max_factor=0", "hot_max_factor must be > 0"),
            (
                "ssl_min_version=1",
                "ssl_min_version 0 and 1 (TLS 1.0 and 1.1) are not safe and not there: use 2 or 3",
            ),
            (
                "ssl_verify_mode=4",
                "Invalid ssl_verify_mode. Use help to see valid options.",
            ),
        ] {
            match read_one(list) {
                Err(Exit::Refused {
                    message: said,
                    code: 1,
                }) => assert_eq!(said, message),
                other => panic!("{list}: {:?}", other.is_ok()),
            }
        }
        assert!(read_one("ext_path=/x:1g").is_err());
    }

    #[test]
    fn values_arrive() {
        let draft = read_one(
            "no_modern,hashpower=20,idle_timeout=3,slab_chunk_max=16,watcher_logbuf_size=8",
        )
        .unwrap();
        let settings = &draft.settings;
        assert_eq!(settings.store.hash_power, 20);
        assert_eq!(settings.server.idle_timeout, 3);
        assert_eq!(settings.store.slab_chunk_max, 16 << 10);
        assert_eq!(settings.watch.watcher_buffer, 8 << 10);
        assert!(!settings.server.maxconns_fast && !settings.store.lru_maintainer);
    }
}
