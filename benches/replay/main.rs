#![forbid(unsafe_code)]
//! Replays traces, read or made from a seed, and prints the miss ratio of each policy, of our store,
//! of servers that are running, and Belady's bound.
//!
//! ```text
//! cargo bench --bench replay -- --load mixed -m 64
//! cargo bench --bench replay -- --trace cluster52.csv --format twitter -m 256
//! zstdcat w106.oracleGeneral.zst | cargo bench --bench replay -- --trace - --format oracle --items 80000
//! cargo bench --bench replay -- --load mixed --live 127.0.0.1:11211 --live 127.0.0.1:11311
//! cargo bench --bench replay -- --all --start /usr/bin/memcached --start target/release/larder
//! ```
//!
//! Ratios are those of the second half of a trace, when the cache is warm.

mod loads;
mod policies;
mod run;
mod trace;

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use larder::settings;

use loads::Load;
use policies::{Belady, Lru, Policy, S3Fifo, Segmented};
use run::Outcome;
use trace::{Format, Request, Trace};

/// Replays a trace and prints miss ratios.
#[derive(Parser)]
#[command(name = "replay")]
struct Options {
    /// A trace file; `-` is standard input.
    #[arg(long, requires = "format")]
    trace: Option<PathBuf>,
    #[arg(long)]
    format: Option<Format>,
    /// A load made from the seed; may be given several times.
    #[arg(long)]
    load: Vec<Load>,
    /// All loads.
    #[arg(long)]
    all: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests of a load, or the most that is read of a trace.
    #[arg(long, default_value_t = 3_000_000)]
    requests: usize,
    /// Keys that a load knows.
    #[arg(long, default_value_t = 500_000)]
    keys: usize,
    /// Bytes of values whose size the trace does not tell.
    #[arg(long, default_value_t = loads::SIZE)]
    size: u32,
    /// Megabytes, as for servers: policies are charged what memcached would take for each item. By
    /// default 16 for loads of one size, 64 for others.
    #[arg(short)]
    m: Option<u64>,
    /// Instead of memory: so many items, whatever their size, for the policies.
    #[arg(long)]
    items: Option<u64>,
    /// A server to replay to as well; it should be empty.
    #[arg(long)]
    live: Vec<String>,
    /// A server program to start with the same -m, on a free port of the loopback.
    #[arg(long)]
    start: Vec<String>,
    /// One more argument for the servers that are started.
    #[arg(long, allow_hyphen_values = true)]
    option: Vec<String>,
    /// To servers, no request is sent before its time.
    #[arg(long)]
    paced: bool,
    /// Leave the policies out.
    #[arg(long)]
    only_servers: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("replay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), String> {
    let mut inputs: Vec<(String, u64, Trace)> = Vec::new();
    if let (Some(path), Some(format)) = (&options.trace, options.format) {
        let name = path.file_stem().unwrap_or(path.as_os_str());
        let read =
            |input: &mut dyn io::Read| Trace::read(input, format, options.size, options.requests);
        let trace = if path.as_os_str() == "-" {
            read(&mut io::stdin().lock())
        } else {
            File::open(path).and_then(|mut file| read(&mut file))
        };
        let trace = trace.map_err(|error| format!("{}: {error}", path.display()))?;
        inputs.push((
            name.to_string_lossy().into_owned(),
            options.m.unwrap_or(64),
            trace,
        ));
    }
    let loads: &[Load] = if options.all {
        &Load::ALL
    } else {
        &options.load
    };
    if inputs.is_empty() && loads.is_empty() {
        return Err("nothing to replay: give --trace, --load or --all".to_owned());
    }
    let mut table = Table::default();
    for input in &inputs {
        table.add(options, &input.0, input.1, &input.2)?;
    }
    for &load in loads {
        let megabytes = options.m.unwrap_or(if load.sized() { 64 } else { 16 });
        let trace = loads::make(load, options.seed, options.requests, options.keys);
        let name = format!("{load:?}").to_lowercase();
        table.add(options, &name, megabytes, &trace)?;
    }
    table.finish();
    Ok(())
}

/// The table as it grows, a line for each trace.
#[derive(Default)]
struct Table {
    titled: bool,
    /// By column: logarithms of the ratio to the first server's, or to the segmented policy's.
    ratios: Vec<Vec<f64>>,
}

impl Table {
    fn add(
        &mut self,
        options: &Options,
        name: &str,
        megabytes: u64,
        trace: &Trace,
    ) -> Result<(), String> {
        let mut columns: Vec<(String, Outcome)> = Vec::new();
        if !options.only_servers {
            columns.extend(simulate(options, megabytes, trace)?);
        }
        for address in &options.live {
            let outcome = run::server(trace, address, options.paced)
                .map_err(|error| format!("{address}: {error}"))?;
            columns.push((address.clone(), outcome));
        }
        for program in &options.start {
            let server = Started::new(program, megabytes, &options.option)?;
            let outcome = run::server(trace, &server.address, options.paced)
                .map_err(|error| format!("{program}: {error}"))?;
            let short = program.rsplit('/').next().unwrap_or(program);
            columns.push((format!("{short} live"), outcome));
        }
        if !self.titled {
            self.titled = true;
            let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
            println!("| trace | keys | -m | {} |", names.join(" | "));
            println!("|---|---|---|{}", "---|".repeat(columns.len()));
        }
        print!("| {name} | {} | {megabytes} |", trace.keys);
        for (_, outcome) in &columns {
            print!(
                " {:.4} ({:.3}) |",
                outcome.miss_ratio(),
                outcome.byte_miss_ratio()
            );
        }
        println!();
        eprintln!(
            "{name}: {}",
            columns
                .iter()
                .map(|(name, outcome)| format!("{name} {:.1} s", outcome.took.as_secs_f64()))
                .collect::<Vec<_>>()
                .join(", ")
        );
        let base = columns
            .iter()
            .position(|(name, _)| name.ends_with("live"))
            .or_else(|| columns.iter().position(|(name, _)| name == SEGMENTED))
            .unwrap_or(0);
        self.ratios.resize(columns.len(), Vec::new());
        let base = columns[base].1.miss_ratio();
        for (ratios, (_, outcome)) in self.ratios.iter_mut().zip(&columns) {
            ratios.push((outcome.miss_ratio() / base).ln());
        }
        Ok(())
    }

    fn finish(&self) {
        print!("| misses relative to the first server's, or to segmented: mean (worst) | | |");
        for ratios in &self.ratios {
            let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
            let worst = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            print!(" {:.3} ({:.3}) |", mean.exp(), worst.exp());
        }
        println!();
    }
}

const SEGMENTED: &str = "segmented";

/// The policies, and our store in this process.
fn simulate(
    options: &Options,
    megabytes: u64,
    trace: &Trace,
) -> Result<Vec<(String, Outcome)>, String> {
    let next_uses = trace.next_uses();
    let keys = trace.keys;
    let bytes = megabytes << 20;
    let capacity = options.items.unwrap_or(bytes);
    let charge = |request: &Request| match options.items {
        Some(_) => 1,
        None => run::chunk_bytes(request),
    };
    let bare = |request: &Request| match options.items {
        Some(_) => 1,
        None => u32::from(request.key_length) + request.size,
    };
    let mut columns = Vec::new();
    let policies: [(&str, Box<dyn Policy>); 3] = [
        ("LRU", Box::new(Lru::new(keys, capacity))),
        (SEGMENTED, Box::new(Segmented::new(keys, capacity))),
        ("S3-FIFO", Box::new(S3Fifo::new(keys, capacity))),
    ];
    for (name, mut policy) in policies {
        let outcome = run::policy(trace, &next_uses, policy.as_mut(), charge);
        columns.push((name.to_owned(), outcome));
    }
    let settings = settings::Store {
        max_bytes: bytes,
        ..settings::Store::default()
    };
    columns.push(("larder".to_owned(), run::store(trace, &settings)?));
    let mut belady = Belady::new(keys, capacity);
    let outcome = run::policy(trace, &next_uses, &mut belady, bare);
    columns.push(("Belady".to_owned(), outcome));
    Ok(columns)
}

/// A server of our own; it ends with the value.
struct Started {
    child: Child,
    address: String,
}

impl Started {
    fn new(program: &str, megabytes: u64, more: &[String]) -> Result<Started, String> {
        let probe = TcpListener::bind(("127.0.0.1", 0)).map_err(|error| error.to_string())?;
        let address = probe.local_addr().map_err(|error| error.to_string())?;
        drop(probe);
        let child = Command::new(program)
            .args(["-u", "root", "-l", "127.0.0.1", "-U", "0", "-t", "2"])
            .args(["-p", &address.port().to_string()])
            .args(["-m", &megabytes.to_string()])
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        let server = Started {
            child,
            address: address.to_string(),
        };
        for _ in 0..200 {
            if TcpStream::connect(address).is_ok() {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("{program} does not answer at {address}"))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
