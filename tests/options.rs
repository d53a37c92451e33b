//! The program as users start it: what it prints, writes and exits with.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Program, program};

#[test]
fn the_port_chosen_is_written_down() {
    let server = Program::start(&["-p", "-1", "-l", "127.0.0.1"]);
    let mut client = server.connect();
    client.ask("version\r\n", "VERSION 1.6.45\r\n");
}

#[test]
fn a_port_in_use_ends_the_program() {
    let first = Program::start(&["-p", "-1", "-l", "127.0.0.1"]);
    let port = first.port().to_string();
    let output = program(&["-p", &port, "-l", "127.0.0.1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "failed to listen on one of interface(s) 127.0.0.1: Address already in use\n"
    );
}

#[test]
fn a_socket_that_cannot_be_made_ends_the_program() {
    let output = program(&["-s", "/nonexistent/socket"]).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    let said = String::from_utf8(output.stderr).unwrap();
    let expected = "failed to listen on UNIX socket: /nonexistent/socket: ";
    assert!(said.starts_with(expected), "{said}");
}

#[test]
fn many_endpoints_are_all_listened_on() {
    let server = Program::start(&["-p", "-1", "-l", "127.0.0.1,127.0.0.2:0"]);
    let ports = server.ports();
    assert_eq!(ports.lines().count(), 2, "{ports}");
}

#[test]
fn memory_is_locked_as_it_is_used() {
    let server = Program::start(&["-p", "-1", "-l", "127.0.0.1", "-k"]);
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .expect("a size");
    // What is only reserved would take all that the machine has.
    assert!(
        resident.parse::<u64>().unwrap() < 256 << 10,
        "{resident} kB"
    );
}

/// What memcached 1.6.45 does with each of many command lines; `compat/command_lines.py` makes it,
/// and says how it is to be read.
const MEMCACHED: &str = include_str!("data/command_lines.txt");

/// Where Larder does something else: the arguments, what it does, and why.
const DIFFERENT: &[(&str, &str, &str)] = &[
    (
        "-p -2",
        "exits 64\tERROR: Invalid port number -2.",
        "told before anything is bound",
    ),
    (
        "-U -2",
        "exits 64\tERROR: Invalid port number -2.",
        "likewise",
    ),
    (
        "-m -1",
        "exits 64\tCannot set item size limit higher than 1/2 of memory max.",
        "not 16 exbibytes",
    ),
    (
        "-Y FOLDER",
        "exits 1\tCould not open authfile [FOLDER] for reading, error Is a directory: Is a directory",
        "memcached serves, and lets nobody in",
    ),
    (
        "-o hashpower=12",
        "serves\t\thashpower_init=12",
        "there is no table of locks that could be larger",
    ),
    (
        "-o lru_crawler_tocrawl=4294967296",
        "exits 1\tlru_crawler_tocrawl takes a numeric 32bit value",
        "memcached takes it for 0",
    ),
    (
        "-Z -o TLS,ssl_ciphers=nonsense",
        "exits 64\tError setting the provided cipher(s): nonsense\\nThere are: ECDHE-ECDSA-AES256-GCM-SHA384:\
         ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
         ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305",
        "what there is helps",
    ),
    (
        "-l mtls:127.0.0.1",
        "exits 71\t'mtls' option is valid only when SSL is enabled",
        "a slip of memcached's",
    ),
    (
        "-l proto[proxy]:127.0.0.1",
        "exits 71\tServer not built with proxy: \"proto[proxy]:127.0.0.1\"",
        "the whole of it",
    ),
    (
        "-l 127.0.0.1:65536",
        "exits 71\tInvalid port number: \"65536\"",
        "memcached listens on a port that nobody has asked for",
    ),
    (
        "-l 127.0.0.1:-1",
        "exits 71\tInvalid port number: \"-1\"",
        "likewise",
    ),
    (
        "-s FOLDER/none/socket",
        "exits 71\tfailed to listen on UNIX socket: FOLDER/none/socket: No such file or directory",
        "one line, with the reason",
    ),
    (
        "-s FOLDER",
        "exits 71\tfailed to listen on UNIX socket: FOLDER: Address already in use",
        "likewise",
    ),
];

/// A directory with what the command lines name, as `prepare` of `compat/command_lines.py` makes it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let many: String = (0..9)
        .map(|number| format!("user{number}:secret\n"))
        .collect();
    for (name, content) in [
        ("users", "foo:bar\n"),
        ("empty", ""),
        ("malformed", "foo\n"),
        ("two", "a:b\nc:d\n"),
        ("long", &format!("a:{}\n", "b".repeat(300))),
        ("many", &many),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    for (key, certificate) in [("key", "chain"), ("other", "ca")] {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(folder.path().join(certificate), made.cert.pem()).unwrap();
        fs::write(folder.path().join(key), made.signing_key.serialize_pem()).unwrap();
    }
    folder
}

/// An argument as the program is given it.
fn written(argument: &str, folder: &str) -> String {
    let mut argument = match argument {
        "''" => String::new(),
        _ => argument.replace(r"\s", " "),
    };
    for size in [62, 63, 64] {
        let sizes: Vec<String> = (0..size)
            .map(|step| (100 + 10 * step).to_string())
            .collect();
        argument = argument.replace(&format!("SIZES{size}"), &sizes.join("-"));
    }
    argument
        .replace("TLS", "ssl_chain_cert=FOLDER/chain,ssl_key=FOLDER/key")
        .replace("FOLDER", folder)
}

/// What `stats settings` says there, by name; nothing where that cannot be asked.
fn settings(socket: UnixStream) -> Vec<(String, String)> {
    let mut shown = Vec::new();
    if (&socket).write_all(b"stats settings\r\n").is_err() {
        return shown;
    }
    for line in BufReader::new(&socket).lines().map_while(Result::ok) {
        let Some((name, value)) = line
            .strip_prefix("STAT ")
            .and_then(|line| line.split_once(' '))
        else {
            break;
        };
        if name != "domain_socket" {
            shown.push((name.to_owned(), value.to_owned()));
        }
    }
    shown
}

/// Runs the program with these arguments until it serves or ends, and describes that as the table
/// does; `usual` are the settings that go without saying, and `number` is no other's.
fn tried(
    folder: &Path,
    number: usize,
    arguments: &str,
    usual: &[(String, String)],
) -> (String, Vec<(String, String)>) {
    let path = folder.display().to_string();
    let socket = folder.join(format!("socket{number}"));
    let ports = folder.join(format!("ports{number}"));
    let listens = arguments.split(' ').any(|word| {
        ["-l", "--listen", "-s", "--unix-s"]
            .iter()
            .any(|start| word.starts_with(start))
    });
    let mut command = program(&[]);
    if listens {
        command.args(["-p", "-1"]);
    } else {
        command.arg("-s").arg(&socket);
    }
    command.args(
        arguments
            .split_whitespace()
            .map(|word| written(word, &path)),
    );
    command.env("MEMCACHED_PORT_FILENAME", &ports);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let since = Instant::now();
    let mut shown = Vec::new();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if let Ok(socket) = UnixStream::connect(&socket) {
            shown = settings(socket);
            break None;
        }
        if ports.exists()
            || (arguments.contains("other.sock") && folder.join("other.sock").exists())
        {
            break None;
        }
        assert!(
            since.elapsed().as_secs() < 60,
            "{arguments}: neither serves nor ends"
        );
        std::thread::sleep(Duration::from_millis(2));
    };
    // It may have ended by itself.
    let _ = child.kill();
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    let said = said
        .replace(&path, "FOLDER")
        .replace(env!("CARGO_BIN_EXE_larder"), "PROGRAM");
    let busy = |word: &str| {
        ["-v", "--v", "-k", "--lock"]
            .iter()
            .any(|start| word.starts_with(start))
    };
    let said = match arguments.split(' ').any(busy) {
        true => String::new(),
        false => said.trim_end_matches('\n').replace('\n', "\\n"),
    };
    let mut row = match status {
        Some(code) => format!("exits {code}\t{said}"),
        None => format!("serves\t{said}"),
    };
    for (name, value) in &shown {
        if !usual
            .iter()
            .any(|one| one == &(name.clone(), value.clone()))
        {
            row += &format!("\t{name}={}", value.replace(&path, "FOLDER"));
        }
    }
    (row.trim_end_matches('\t').to_owned(), shown)
}

/// Whether two descriptions are the same but for what a library has to say in its own words, and for
/// the last line of memcached's about listeners, whose reason is always "Success".
fn same(memcached: &str, ours: &str) -> bool {
    if let Some((start, _)) = memcached.split_once(" : WHY") {
        return ours
            .strip_prefix(start)
            .is_some_and(|rest| rest.starts_with(" : "));
    }
    let told = match memcached.split_once("\\nfailed to listen on one of interface(s) ") {
        Some((told, rest)) if rest.ends_with(": Success") => told,
        _ => memcached,
    };
    told == ours
}

#[test]
fn command_lines_do_as_with_memcached() {
    let folder = folder();
    let folder = folder.path();
    let rows: Vec<&str> = MEMCACHED.lines().collect();
    assert!(rows.len() > 400);
    let (plain, usual) = tried(folder, rows.len(), "", &[]);
    assert!(plain.starts_with("serves") && usual.len() > 50, "{plain}");
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(row) = rows.get(number) else { break };
                    let (arguments, memcached) = row.split_once('\t').unwrap();
                    let (ours, _) = tried(folder, number, arguments, &usual);
                    let known = DIFFERENT.iter().find(|(of, ..)| *of == arguments);
                    let right = match known {
                        Some((_, expected, _)) => ours == *expected && !same(memcached, &ours),
                        None => same(memcached, &ours),
                    };
                    if !right {
                        let expected = known.map_or(memcached, |(_, expected, _)| expected);
                        let told = format!("{arguments}\n  expected {expected}\n  found    {ours}");
                        wrong.lock().unwrap().push(told);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
