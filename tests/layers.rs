//! The layers of `src/lib.rs`, kept: a module uses only modules declared above it, and `protocol`,
//! `net` and `store` do not use one another at all. Unsafe code stays in the files that are meant
//! to have it.

use std::fs;
use std::path::{Path, PathBuf};

/// Strangers to each other, whatever their order.
const PILLARS: [&str; 3] = ["protocol", "net", "store"];
/// Files that may hold unsafe code, and parents of such files, which cannot forbid it.
const UNSAFE: [&str; 6] = [
    "lib.rs",
    "main.rs",
    "server/mod.rs",
    "server/process.rs",
    "store/mod.rs",
    "store/raw/",
];

/// The modules of a `lib.rs`, lowest first.
fn layers(lib: &str) -> Vec<String> {
    lib.lines()
        .filter_map(|line| {
            line.trim()
                .strip_prefix("pub mod ")
                .or_else(|| line.trim().strip_prefix("mod "))
        })
        .filter_map(|rest| rest.strip_suffix(';'))
        .map(str::to_owned)
        .collect()
}

/// The modules that a source text names as `crate::module`.
fn uses(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
    {
        for rest in line.split("crate::").skip(1) {
            let name: String = rest
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                .collect();
            if !name.is_empty() {
                found.push(name);
            }
        }
    }
    found
}

/// Every `.rs` file below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Every breach of the rules in a source tree, in words.
fn breaches(src: &Path) -> Vec<String> {
    let layers = layers(&fs::read_to_string(src.join("lib.rs")).unwrap());
    let mut breaches = Vec::new();
    for path in sources(src) {
        let file = path.strip_prefix(src).unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        if !UNSAFE.iter().any(|allowed| file.starts_with(allowed))
            && !text.contains("#![forbid(unsafe_code)]")
        {
            breaches.push(format!("{file} does not forbid unsafe code"));
        }
        let module = file.split(['/', '.']).next().unwrap();
        let Some(level) = layers.iter().position(|layer| layer == module) else {
            continue;
        };
        for used in uses(&text) {
            let Some(other) = layers.iter().position(|layer| *layer == used) else {
                continue;
            };
            if other > level {
                breaches.push(format!("{file} uses {used}, which lies above {module}"));
            }
            if other != level && PILLARS.contains(&module) && PILLARS.contains(&used.as_str()) {
                breaches.push(format!("{file} uses {used}, a stranger to {module}"));
            }
        }
    }
    breaches
}

#[test]
fn every_module_uses_only_what_lies_below_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert_eq!(breaches(&src), Vec::<String>::new());
}

#[test]
fn a_breach_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let src = folder.path();
    let write = |file: &str, text: &str| {
        let path = src.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let forbid = "#![forbid(unsafe_code)]\n";
    write(
        "lib.rs",
        "/// a\npub mod clock;\n\npub mod protocol;\n\npub mod store;\n\npub mod command;\n",
    );
    write("clock.rs", forbid);
    write("protocol/mod.rs", forbid);
    write(
        "command/mod.rs",
        &format!("{forbid}use crate::store::Store;\n"),
    );
    write(
        "store/mod.rs",
        "use crate::clock::Clock;\n// crate::command is only named here\n",
    );
    assert_eq!(breaches(src), Vec::<String>::new());

    write("store/mod.rs", "use crate::command::execute;\n");
    assert_eq!(
        breaches(src),
        ["store/mod.rs uses command, which lies above store"]
    );
    write("store/mod.rs", "fn f() { crate::protocol::parse() }\n");
    assert_eq!(
        breaches(src),
        ["store/mod.rs uses protocol, a stranger to store"]
    );
    write("store/mod.rs", "");
    write("clock.rs", "");
    assert_eq!(breaches(src), ["clock.rs does not forbid unsafe code"]);
}
