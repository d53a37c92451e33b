#![forbid(unsafe_code)]
//! The options, one row each: how it is spelt, what it takes, its help, and what it sets.
//!
//! clap declares and finds them; their values are applied in the order of the command line, as
//! memcached applies them, with its leniency for numbers and its words for what is wrong.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

use super::extended::{self, Effect};
use super::{Exit, USAGE, atof, atoi};
use super::{election, listen, proxy, replication};
use crate::settings::{
    KEY_MAX, LARDER_VERSION, MEMCACHED_VERSION, Protocol, Settings, TotalMemory,
};

const ITEM_SIZE_MIN: i64 = 1024;
const ITEM_SIZE_MAX: i64 = 1 << 30;
/// memcached's page, which `slab_chunk_max` must divide.
const PAGE: usize = 1 << 20;
const CLASSES_MAX: usize = 63;

/// Settings in the making.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub settings: Settings,
    pub warnings: Vec<String>,
    pub slab_sizes: Option<String>,
    pub chunk_max_given: bool,
    memory_given: bool,
    /// `--repl-ring`, bytes.
    pub ring_bytes: Option<usize>,
    pub election: election::Draft,
    /// Options of `larder proxy`, when it is that.
    pub proxy: Option<proxy::Draft>,
    protocol_given: bool,
    tcp_given: bool,
    udp_given: bool,
}

/// One option.
pub(super) struct Row {
    pub short: Option<char>,
    pub long: &'static str,
    /// What the value is called, for those that take one.
    pub value: Option<&'static str>,
    pub help: &'static str,
    pub apply: fn(&mut Draft, &str) -> Result<(), Exit>,
}

fn wrong(message: impl Into<String>) -> Exit {
    Exit::refused(message, 1)
}

fn check(holds: bool, message: &str) -> Result<(), Exit> {
    if holds { Ok(()) } else { Err(wrong(message)) }
}

macro_rules! rows {
    ($($short:expr, $long:literal $value:expr, $help:expr, $apply:expr;)*) => {
        &[$(Row { short: $short, long: $long, value: $value, help: $help, apply: $apply }),*]
    };
}

const ROWS: &[Row] = rows! {
    Some('p'), "port" Some("num"), "TCP port (default 11211; 0: none, -1: chosen by the system)", |draft, text| {
        draft.settings.listen.tcp_port = atoi(text) as i32;
        draft.tcp_given = true;
        Ok(())
    };
    Some('U'), "udp-port" Some("num"), "UDP port (default 0: none); loopback only, see -o udp_public", |draft, text| {
        draft.settings.listen.udp_port = atoi(text) as i32;
        draft.udp_given = true;
        Ok(())
    };
    Some('s'), "unix-socket" Some("file"), "listen on a Unix socket instead of TCP and UDP", |draft, text| {
        draft.settings.listen.unix_socket = Some(text.into());
        Ok(())
    };
    Some('a'), "unix-mask" Some("mask"), "mode of the Unix socket, octal (default 700)", |draft, text| {
        let end = text.find(|letter: char| !('0'..='7').contains(&letter)).unwrap_or(text.len());
        draft.settings.listen.unix_mask = u32::from_str_radix(&text[..end], 8).unwrap_or(0);
        Ok(())
    };
    Some('A'), "enable-shutdown" None, "allow the \"shutdown\" command", |draft, _| {
        draft.settings.security.shutdown_command = true;
        Ok(())
    };
    Some('Z'), "enable-ssl" None, "TLS on all TCP ports; needs -o ssl_chain_cert and ssl_key", |draft, _| {
        draft.settings.tls.enabled = true;
        Ok(())
    };
    Some('l'), "listen" Some("addr"), "where to listen, several parted by commas (default: everywhere):\n\
        [notls:|btls:|mtls:][proto[ascii|binary|negotiating]:][tag[name]:][ack[level]:]host[:port]", |draft, text| {
        let interfaces = &mut draft.settings.listen.interfaces;
        match interfaces {
            Some(list) if list.split([',', ';']).any(|entry| entry == text) => {}
            Some(list) => {
                list.push(',');
                list.push_str(text);
            }
            None => *interfaces = Some(text.to_owned()),
        }
        Ok(())
    };
    Some('d'), "daemon" None, "run in the background", |draft, _| {
        draft.settings.process.daemonize = true;
        Ok(())
    };
    Some('r'), "enable-coredumps" None, "allow core files of any size", |draft, _| {
        draft.settings.process.core_dumps = true;
        Ok(())
    };
    Some('u'), "user" Some("user"), "become this user (when started as root)", |draft, text| {
        draft.settings.process.user = Some(text.to_owned());
        Ok(())
    };
    Some('m'), "memory-limit" Some("num"), "megabytes for items (default 64)", |draft, text| {
        draft.settings.store.max_bytes = (atoi(text).max(0) as u64) << 20;
        draft.memory_given = true;
        Ok(())
    };
    Some('M'), "disable-evictions" None, "answer with an error when memory is full, instead of evicting", |draft, _| {
        draft.settings.store.evict = false;
        Ok(())
    };
    Some('c'), "conn-limit" Some("num"), "clients at a time (default 1024)", |draft, text| {
        let most = atoi(text);
        check(most > 0, "Maximum connections must be greater than 0")?;
        draft.settings.server.max_connections = most as usize;
        Ok(())
    };
    Some('k'), "lock-memory" None, "keep all memory from being swapped out", |draft, _| {
        draft.settings.process.lock_memory = true;
        Ok(())
    };
    Some('P'), "pidfile" Some("file"), "write the process id here", |draft, text| {
        draft.settings.process.pid_file = Some(text.into());
        Ok(())
    };
    Some('f'), "slab-growth-factor" Some("num"), "from one slab class to the next (default 1.25)", |draft, text| {
        let factor = atof(text);
        check(factor > 1.0, "Factor must be greater than 1")?;
        draft.settings.store.growth_factor = factor;
        Ok(())
    };
    Some('n'), "slab-min-size" Some("bytes"), "for key, flags and value in the first slab class (default 48)", |draft, text| {
        let bytes = atoi(text);
        check(bytes > 0, "Chunk size must be greater than 0")?;
        draft.settings.store.chunk_size = bytes as usize;
        Ok(())
    };
    Some('L'), "enable-largepages" None, "take all item memory at start, in huge pages", |draft, _| {
        draft.settings.store.large_pages = true;
        Ok(())
    };
    Some('D'), "prefix-delimiter" Some("char"), "ends a key's prefix (default ':'); also turns \"stats detail\" on", |draft, text| {
        let Some(&delimiter) = text.as_bytes().first() else { return Err(wrong("No delimiter specified")) };
        draft.settings.store.prefix_delimiter = delimiter;
        draft.settings.store.detail = true;
        Ok(())
    };
    Some('t'), "threads" Some("num"), "worker threads (default 4)", |draft, text| {
        let threads = atoi(text);
        check(threads > 0, "Number of threads must be greater than 0")?;
        if threads > 64 {
            draft.warnings.push(
                "WARNING: Setting a high number of workerthreads is not recommended.\n \
                 Set this value to the number of cores in your machine or less."
                    .to_owned(),
            );
        }
        draft.settings.server.threads = threads as usize;
        Ok(())
    };
    Some('R'), "max-reqs-per-event" Some("num"), "times 32 requests or keys of one client before others get their turn (default 20)", |draft, text| {
        let most = atoi(text);
        check(most > 0, "Number of requests per event must be greater than 0")?;
        draft.settings.server.requests_per_event = most as usize;
        Ok(())
    };
    Some('C'), "disable-cas" None, "no CAS ids; 8 bytes less per item", |draft, _| {
        draft.settings.store.cas = false;
        Ok(())
    };
    Some('b'), "listen-backlog" Some("num"), "clients that may wait to be accepted (default 1024)", |draft, text| {
        draft.settings.listen.backlog = atoi(text) as i32;
        Ok(())
    };
    Some('B'), "protocol" Some("name"), "ascii, binary or auto (default: auto)", |draft, text| {
        draft.protocol_given = true;
        draft.settings.listen.protocol = match text {
            "auto" => Protocol::Negotiate,
            "ascii" => Protocol::Ascii,
            "binary" => Protocol::Binary,
            _ => {
                return Err(Exit::refused(
                    format!("Invalid value for binding protocol: {text}\n -- should be one of auto, binary, or ascii"),
                    USAGE,
                ));
            }
        };
        Ok(())
    };
    Some('I'), "max-item-size" Some("num"), "largest item, with k or m (default 1m, 1k to 1024m)", |draft, text| {
        draft.settings.store.item_size_max = size(text);
        Ok(())
    };
    Some('S'), "enable-sasl" None, "SASL (PLAIN) for the binary protocol, which is then the only one;\n\
        users from the files of -Y and of MEMCACHED_SASL_PWDB", |draft, _| {
        draft.settings.security.sasl = true;
        Ok(())
    };
    Some('F'), "disable-flush-all" None, "refuse flush_all", |draft, _| {
        draft.settings.store.flush_enabled = false;
        Ok(())
    };
    Some('X'), "disable-dumping" None, "refuse stats cachedump, stats detail and lru_crawler metadump", |draft, _| {
        draft.settings.store.dump_enabled = false;
        Ok(())
    };
    Some('W'), "disable-watch" None, "refuse watch", |draft, _| {
        draft.settings.watch.enabled = false;
        Ok(())
    };
    Some('Y'), "auth-file" Some("file"), "user:password lines that clients of the text protocol must know", |draft, text| {
        draft.settings.security.auth_file = Some(text.into());
        Ok(())
    };
    Some('e'), "memory-file" Some("file"), "keep items here over a planned restart", |draft, text| {
        draft.settings.store.memory_file = Some(text.into());
        Ok(())
    };
    Some('N'), "napi-ids" Some("num"), "accepted; workers are chosen in turn", |draft, text| {
        let ids = atoi(text);
        check(ids > 0, "Maximum number of NAPI IDs must be greater than 0")?;
        draft.settings.inert.napi_ids = ids as u32;
        Ok(())
    };
    Some('o'), "extended" Some("list"), "more options, parted by commas, see below", |draft, text| {
        extended::read(draft, text)
    };
    Some('v'), "verbose" None, "say on stderr what goes wrong; -vv: what clients ask, -vvv: more", |draft, _| {
        let verbosity = &mut draft.settings.process.verbosity;
        *verbosity = verbosity.saturating_add(1);
        Ok(())
    };
    Some('h'), "help" None, "print this help and exit", |draft, _| Err(Exit::Printed(help(draft.proxy.is_some())));
    Some('i'), "license" None, "print the licence and exit", |_, _| {
        Err(Exit::Printed(format!("{}\n{}", first_lines(), include_str!("../../LICENSE"))))
    };
    Some('V'), "version" None, "print the version and exit", |_, _| Err(Exit::Printed(first_lines()));
};

/// Long names that memcached's help has for options that it calls otherwise.
const SYNONYMS: &[(&str, &str)] = &[("napi_ids", "napi-ids")];

fn first_lines() -> String {
    format!("memcached {MEMCACHED_VERSION}\nlarder {LARDER_VERSION}\n")
}

/// The options of a server, or those of a proxy and a server.
fn rows(proxy: bool) -> impl Iterator<Item = &'static Row> {
    let own: &[Row] = if proxy { proxy::ROWS } else { &[] };
    let copies: [&[Row]; 2] = if proxy {
        [&[], &[]]
    } else {
        [replication::ROWS, election::ROWS]
    };
    own.iter().chain(ROWS).chain(copies.into_iter().flatten())
}

fn help(proxy: bool) -> String {
    let mut text = first_lines();
    for row in rows(proxy) {
        let long = row.long;
        let spelt = match (row.short, row.value) {
            (Some(short), Some(value)) => format!("-{short}, --{long}=<{value}>"),
            (Some(short), None) => format!("-{short}, --{long}"),
            (None, Some(value)) => format!("--{long}=<{value}>"),
            (None, None) => format!("--{long}"),
        };
        let help = row.help.replace('\n', &format!("\n{:32}", ""));
        text.push_str(&format!("{spelt:<32}{help}\n"));
    }
    text.push_str("\nNames for -o:\n");
    for name in extended::NAMES {
        if name.name == "no_drop_privileges" && !cfg!(feature = "debug-commands") {
            continue;
        }
        let note = match name.effect {
            Effect::Works => "",
            Effect::Shown => " [shown only]",
            Effect::Ignored => " [ignored]",
        };
        text.push_str(&format!("   - {:<25}{}{note}\n", name.name, name.help));
    }
    text
}

fn command(proxy: bool) -> Command {
    let mut command = Command::new("larder")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .infer_long_args(true)
        .args_override_self(true)
        // memcached ignores what is not an option.
        .arg(
            Arg::new("ignored")
                .num_args(0..)
                .allow_hyphen_values(false)
                .hide(true),
        );
    for row in rows(proxy) {
        let mut arg = Arg::new(row.long).long(row.long).help(row.help);
        if let Some(short) = row.short {
            arg = arg.short(short);
        }
        for (synonym, of) in SYNONYMS {
            if *of == row.long {
                arg = arg.alias(*synonym);
            }
        }
        command = command.arg(match row.value {
            Some(value) => arg
                .value_name(value)
                .num_args(1)
                .action(ArgAction::Append)
                .allow_hyphen_values(true),
            None => arg
                .num_args(0)
                .action(ArgAction::Append)
                .default_missing_value(""),
        });
    }
    command
}

/// Applies the options of a command line, left to right.
pub(super) fn read(
    arguments: impl Iterator<Item = OsString>,
    draft: &mut Draft,
) -> Result<(), Exit> {
    let arguments: Vec<OsString> = arguments.collect();
    let program = arguments.first().map_or_else(
        || "larder".into(),
        |name| name.to_string_lossy().into_owned(),
    );
    let words: Vec<String> = arguments
        .iter()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let arguments = arguments
        .into_iter()
        .map(|argument| match argument.to_str() {
            // memcached takes a value here and does nothing with it.
            Some(text) if text.starts_with("--verbose=") => "--verbose".into(),
            _ => argument,
        });
    let proxy = draft.proxy.is_some();
    let matches = command(proxy)
        .try_get_matches_from(arguments)
        .map_err(|error| unparsable(&program, &words, proxy, &error))?;
    let mut found: Vec<(usize, &Row, String)> = Vec::new();
    for row in rows(proxy) {
        let Some(indices) = matches.indices_of(row.long) else {
            continue;
        };
        let values = matches.get_raw(row.long).into_iter().flatten();
        for (index, value) in indices.zip(values) {
            found.push((index, row, value.to_string_lossy().trim_start().to_owned()));
        }
    }
    found.sort_by_key(|&(index, ..)| index);
    found
        .into_iter()
        .try_for_each(|(_, row, value)| (row.apply)(draft, &value))
}

/// What getopt would have said of this command line.
fn unparsable(program: &str, words: &[String], proxy: bool, error: &clap::Error) -> Exit {
    let given = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.split(' ').next().unwrap_or(""),
        _ => "",
    };
    let told = given.split('=').next().unwrap_or("").to_owned();
    // With its value, if it has been given one.
    let whole = words
        .iter()
        .find(|word| word.split('=').next() == Some(told.as_str()))
        .map_or(told.as_str(), String::as_str);
    let reason = match error.kind() {
        ErrorKind::UnknownArgument if told.starts_with("--") => {
            let wanted: Vec<String> = rows(proxy)
                .filter(|row| row.long.starts_with(told.trim_start_matches('-')))
                .map(|row| format!("'--{}'", row.long))
                .collect();
            match wanted.len() {
                0 => format!("unrecognized option '{whole}'"),
                _ => format!(
                    "option '{whole}' is ambiguous; possibilities: {}",
                    wanted.join(" ")
                ),
            }
        }
        ErrorKind::UnknownArgument => {
            format!("invalid option -- '{}'", told.trim_start_matches('-'))
        }
        ErrorKind::TooManyValues => format!("option '{told}' doesn't allow an argument"),
        _ => {
            let row = rows(proxy).find(|row| told == format!("--{}", row.long));
            // Only the last word can be without its value.
            let long = words.last().is_some_and(|word| word.starts_with("--"));
            match row.and_then(|row| row.short) {
                Some(short) if !long => format!("option requires an argument -- '{short}'"),
                _ => format!("option '{told}' requires an argument"),
            }
        }
    };
    wrong(format!("{program}: {reason}\nIllegal argument \"?\""))
}

impl Draft {
    /// Checks what the options mean together, in memcached's order.
    pub(super) fn finish(mut self) -> Result<(Settings, Vec<String>), Exit> {
        let refuse = |message: String| Err(Exit::refused(message, USAGE));
        let settings = &mut self.settings;
        let (ids, threads) = (settings.inert.napi_ids, settings.server.threads);
        if ids as usize > threads {
            return refuse(format!(
                "Number of napi_ids({ids}) cannot be greater than number of threads({threads})"
            ));
        }
        let store = &mut settings.store;
        if let (Some(total), false) = (store.total_memory, self.memory_given) {
            store.max_bytes = match total {
                TotalMemory::Bytes(bytes) => bytes,
                // The server will know.
                TotalMemory::Cgroup => u64::MAX,
            };
        }
        if store.total_memory.is_some() && (store.large_pages || store.memory_file.is_some()) {
            return refuse(
                "total_memory cannot be kept with -L or -e, whose memory stays taken.".to_owned(),
            );
        }
        if store.key_max > KEY_MAX && store.key_max >= store.item_size_max {
            return refuse(format!(
                "max_key_size ({}) must be smaller than the largest item, of which a key is part: raise -I ({}).",
                store.key_max, store.item_size_max
            ));
        }
        let item_max = store.item_size_max as i64;
        if item_max < ITEM_SIZE_MIN {
            return refuse(format!(
                "Item max size cannot be less than {ITEM_SIZE_MIN} bytes."
            ));
        }
        if item_max as u64 > store.max_bytes / 2 {
            return refuse("Cannot set item size limit higher than 1/2 of memory max.".to_owned());
        }
        if item_max > ITEM_SIZE_MAX {
            return refuse("Cannot set item size limit higher than a gigabyte.".to_owned());
        }
        if item_max as usize > PAGE && !self.chunk_max_given {
            store.slab_chunk_max = PAGE / 2;
        }
        let chunk_max = store.slab_chunk_max;
        if chunk_max > item_max as usize {
            return refuse(format!(
                "slab_chunk_max (bytes: {chunk_max}) cannot be larger than -I (item_size_max {item_max})"
            ));
        }
        if !(item_max as usize).is_multiple_of(chunk_max) {
            return refuse(format!(
                "-I (item_size_max: {item_max}) must be evenly divisible by slab_chunk_max (bytes: {chunk_max})"
            ));
        }
        if !PAGE.is_multiple_of(chunk_max) {
            return refuse(format!(
                "slab_chunk_max (bytes: {chunk_max}) must divide evenly into {PAGE} (slab_page_size)"
            ));
        }
        if let Some(text) = &self.slab_sizes {
            store.slab_sizes = slab_sizes(text, store.chunk_size, chunk_max)?;
        }
        if store.hot_lru_pct + store.warm_lru_pct > 80 {
            return refuse(
                "hot_lru_pct + warm_lru_pct cannot be more than 80% combined".to_owned(),
            );
        }
        if store.temporary_ttl.is_some() && !store.lru_maintainer {
            return refuse("temporary_ttl requires lru_maintainer to be enabled".to_owned());
        }
        let (sasl, file) = (
            settings.security.sasl,
            settings.security.auth_file.is_some(),
        );
        let protocol = settings.listen.protocol;
        if !self.protocol_given {
            settings.listen.protocol = match (sasl, file) {
                (true, false) => Protocol::Binary,
                (false, true) => Protocol::Ascii,
                // With both, each dialect has its own way in.
                (true, true) | (false, false) => Protocol::Negotiate,
            };
        } else if sasl && !file && protocol != Protocol::Binary {
            return refuse(
                "ERROR: You cannot allow the ASCII protocol while using SASL.".to_owned(),
            );
        } else if file && !sasl && protocol != Protocol::Ascii {
            return refuse(
                "ERROR: You cannot allow the BINARY protocol while using ascii authentication tokens.".to_owned(),
            );
        }
        if settings.listen.udp_port != 0 && sasl {
            return refuse(
                "ERROR: Cannot enable UDP while using binary SASL authentication.".to_owned(),
            );
        }
        if settings.listen.udp_port != 0 && file {
            return refuse(
                "Cannot use UDP with ascii authentication enabled (-U 0 to disable)".to_owned(),
            );
        }
        let listen = &mut settings.listen;
        if self.udp_given && listen.udp_port != 0 && !self.tcp_given {
            listen.tcp_port = listen.udp_port;
        }
        for port in [listen.tcp_port, listen.udp_port] {
            if !(-1..=i32::from(u16::MAX)).contains(&port) {
                return refuse(format!("ERROR: Invalid port number {port}."));
            }
        }
        if settings.tls.enabled && listen.tcp_port == 0 {
            return refuse("ERROR: You cannot enable SSL without a TCP port.".to_owned());
        }
        if let Some(list) = &listen.interfaces {
            let context = listen::Context {
                tls: settings.tls.enabled,
                ascii_auth: settings.security.auth_file.is_some(),
                sasl: settings.security.sasl,
            };
            listen.endpoints = listen::parse(list, context, &mut self.warnings)?;
        }
        replication::finish(settings, self.ring_bytes)?;
        election::finish(settings, self.election)?;
        Ok((self.settings, self.warnings))
    }
}

/// Chunk sizes as `-o slab_sizes` lists them.
/// A number of bytes, perhaps with `k` or `m`.
pub(super) fn size(text: &str) -> usize {
    let unit = match text.as_bytes().last() {
        Some(b'k' | b'K') => 1 << 10,
        Some(b'm' | b'M') => 1 << 20,
        _ => 1,
    };
    (atoi(text).max(0) * unit) as usize
}

fn slab_sizes(text: &str, least: usize, most: usize) -> Result<Vec<usize>, Exit> {
    let refuse = |message: String| Err(Exit::refused(message, USAGE));
    let mut sizes: Vec<usize> = Vec::new();
    for word in text.split('-').filter(|word| !word.is_empty()) {
        let size = word.trim().parse::<usize>().unwrap_or(0);
        if size < least || size > most {
            return refuse(format!("slab size {size} is out of valid range"));
        }
        if let Some(&last) = sizes.last() {
            if size <= last {
                return refuse(format!(
                    "slab size {size} cannot be lower than or equal to a previous class size"
                ));
            }
            if size <= last + 8 {
                return refuse(format!(
                    "slab size {size} must be at least 8 bytes larger than previous class"
                ));
            }
        }
        if sizes.len() >= CLASSES_MAX - 1 {
            return refuse("too many slab classes specified".to_owned());
        }
        sizes.push(size);
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Settings, Exit> {
        let mut draft = Draft::default();
        let line = std::iter::once("larder")
            .chain(arguments.iter().copied())
            .map(OsString::from);
        read(line, &mut draft)?;
        draft.finish().map(|(settings, _)| settings)
    }

    fn refused(arguments: &[&str]) -> (String, u8) {
        match run(arguments) {
            Err(Exit::Refused { message, code }) => (message, code),
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    #[test]
    fn getopt_habits() {
        let settings = run(&[
            "-vvt4",
            "-m128",
            "-l",
            " 127.0.0.1",
            "-l",
            "::1",
            "-p",
            "-1",
            "stray",
            "-c",
            "7x",
        ])
        .unwrap();
        assert_eq!(settings.process.verbosity, 2);
        assert_eq!(settings.server.threads, 4);
        assert_eq!(settings.store.max_bytes, 128 << 20);
        assert_eq!(settings.listen.interfaces.as_deref(), Some("127.0.0.1,::1"));
        assert_eq!(settings.listen.endpoints.len(), 2);
        assert_eq!(settings.listen.tcp_port, -1);
        assert_eq!(settings.server.max_connections, 7);
        assert_eq!(run(&["--conn", "64"]).unwrap().server.max_connections, 64);
        assert_eq!(
            run(&["--conn-limit=65"]).unwrap().server.max_connections,
            65
        );
        assert_eq!(
            run(&["-m", "1", "-m", "64MB"]).unwrap().store.max_bytes,
            64 << 20
        );
        assert_eq!(run(&["-p", "abc"]).unwrap().listen.tcp_port, 0);
        assert_eq!(run(&["-U", "5"]).unwrap().listen.tcp_port, 5);
        assert_eq!(run(&["-AA", "--verbose=3"]).unwrap().process.verbosity, 1);
        assert_eq!(run(&["-D", "/"]).unwrap().store.prefix_delimiter, b'/');
        assert_eq!(run(&["-I", "2m"]).unwrap().store.item_size_max, 2 << 20);
        assert_eq!(run(&["-a", "0777"]).unwrap().listen.unix_mask, 0o777);
    }

    #[test]
    fn wrong_lines_end_as_with_memcached() {
        let illegal = "\nIllegal argument \"?\"";
        for (arguments, message, code) in [
            (&["-x"][..], format!("larder: invalid option -- 'x'{illegal}"), 1),
            (&["--foo"], format!("larder: unrecognized option '--foo'{illegal}"), 1),
            (
                &["--mem", "5"],
                format!("larder: option '--mem' is ambiguous; possibilities: '--memory-limit' '--memory-file'{illegal}"),
                1,
            ),
            (&["-m"], format!("larder: option requires an argument -- 'm'{illegal}"), 1),
            (&["-c", "0"], "Maximum connections must be greater than 0".into(), 1),
            (&["-c", "-1"], "Maximum connections must be greater than 0".into(), 1),
            (&["-t", "0"], "Number of threads must be greater than 0".into(), 1),
            (&["-f", "1"], "Factor must be greater than 1".into(), 1),
            (&["-n", "0"], "Chunk size must be greater than 0".into(), 1),
            (&["-R", "0"], "Number of requests per event must be greater than 0".into(), 1),
            (&["-D", ""], "No delimiter specified".into(), 1),
            (&["-m", "0"], "Cannot set item size limit higher than 1/2 of memory max.".into(), 64),
            (&["-I", "1000"], "Item max size cannot be less than 1024 bytes.".into(), 64),
            (&["-I", "256m"], "Cannot set item size limit higher than 1/2 of memory max.".into(), 64),
            (&["-m", "8192", "-I", "2048m"], "Cannot set item size limit higher than a gigabyte.".into(), 64),
            (
                &["-I", "512"],
                "Item max size cannot be less than 1024 bytes.".into(),
                64,
            ),
            (
                &["-I", "256k"],
                "slab_chunk_max (bytes: 524288) cannot be larger than -I (item_size_max 262144)".into(),
                64,
            ),
            (
                &["-o", "slab_chunk_max=3", "-I", "3m"],
                "slab_chunk_max (bytes: 3072) must divide evenly into 1048576 (slab_page_size)".into(),
                64,
            ),
            (&["-p", "70000"], "ERROR: Invalid port number 70000.".into(), 64),
            (
                &["-B", "http"],
                "Invalid value for binding protocol: http\n -- should be one of auto, binary, or ascii".into(),
                64,
            ),
            (&["-o", "slab_sizes=100-50"], "slab size 50 cannot be lower than or equal to a previous class size".into(), 64),
            (&["-o", "no_modern,temporary_ttl=3"], "temporary_ttl requires lru_maintainer to be enabled".into(), 64),
            (&["-Y", "f", "-B", "binary"], "ERROR: You cannot allow the BINARY protocol while using ascii authentication tokens.".into(), 64),
        ] {
            assert_eq!(refused(arguments), (message, code), "{arguments:?}");
        }
    }

    #[test]
    fn what_is_printed_begins_as_scripts_expect() {
        for option in ["-V", "-h", "-i", "--version"] {
            match run(&[option]) {
                Err(Exit::Printed(text)) => {
                    assert!(text.starts_with("memcached 1.6.45\nlarder "), "{option}")
                }
                other => panic!("{option}: {other:?}"),
            }
        }
        let Err(Exit::Printed(help)) = run(&["-h"]) else {
            panic!()
        };
        assert!(help.contains("unix-socket"));
        for absent in ["ext_path", "proxy_config"] {
            assert!(!help.contains(absent), "{absent}");
        }
        assert!(help.contains("enable-ssl") && help.contains("enable-sasl"));
    }

    #[test]
    fn options_stand_once() {
        command(false).debug_assert();
        command(true).debug_assert();
    }
}
