//! What a request costs a server, ours and the original side by side: CPU time per operation, read
//! from the kernel's account of the server's threads. That holds to a few per cent on a machine
//! where throughput moves by a third.
//!
//! ```text
//! cargo bench --bench serve                          all workloads, Debian's memcached as the other
//! cargo bench --bench serve -- -w get,mget -r 15     two of them, more rounds
//! cargo bench --bench serve -- --other /path/to/memcached
//! ```
//!
//! Both servers run with one worker, on a core of their own if `taskset` is there and the machine
//! has two. They take turns, a few milliseconds each; every answer is compared with what it must be.
//! The ratio is the median over the rounds, beside the smallest and the largest.
//!
//! Measured on two cores, against memcached 1.6.18 (under TLS 1.6.45), as ratios
//! of CPU per operation:
//!
//! | get | get16 | mget | mg | set | sets | ms | getkq | miss | tls | tls16 |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | 0.87 | 0.08 | 0.19 | 0.24 | 0.87 | 0.28 | 0.29 | 0.23 | 0.90 | 0.68 | 0.38 |

mod load;
mod servers;

use clap::Parser;

use load::{WORKLOADS, Workload};
use servers::{Certificate, Server};

#[derive(Parser)]
struct Options {
    /// Workloads to run, by name.
    #[arg(short, long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Turns that each server gets.
    #[arg(short, long, default_value_t = 9)]
    rounds: usize,
    /// Batches that each of the 50 connections sends in a turn.
    #[arg(short, long, default_value_t = 40)]
    batches: usize,
    /// The server to compare with.
    #[arg(long, default_value = "memcached")]
    other: String,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    let chosen = |workload: &&Workload| {
        options.workloads.is_empty() || options.workloads.iter().any(|name| name == workload.name)
    };
    println!(
        "| workload | larder, ns | {} , ns | ratio | least to most |\n| --- | --- | --- | --- | --- |",
        options.other
    );
    let certificate = Certificate::new();
    for tls in [false, true] {
        let workloads: Vec<&Workload> = WORKLOADS
            .iter()
            .filter(|w| w.tls == tls)
            .filter(chosen)
            .collect();
        if workloads.is_empty() {
            continue;
        }
        let certificate = tls.then_some(&certificate);
        let ours = Server::start(env!("CARGO_BIN_EXE_larder"), certificate)
            .expect("our own server starts");
        let theirs = Server::start(&options.other, certificate);
        if let Err(error) = &theirs {
            println!("{}: {error}; measuring ours alone", options.other);
        }
        let servers: Vec<&Server> = [Some(&ours), theirs.as_ref().ok()]
            .into_iter()
            .flatten()
            .collect();
        for server in &servers {
            load::fill(server);
        }
        for workload in workloads {
            measure(workload, &servers, &options);
        }
    }
}

/// One line of the table.
fn measure(workload: &Workload, servers: &[&Server], options: &Options) {
    let mut clients: Vec<load::Clients> = servers
        .iter()
        .map(|server| load::Clients::connect(server))
        .collect();
    let mut costs: Vec<Vec<f64>> = vec![Vec::new(); servers.len()];
    // The first round warms up.
    for round in 0..=options.rounds {
        for (at, server) in servers.iter().enumerate() {
            let before = server.cpu();
            let operations = clients[at].run(workload, options.batches, round as u64);
            let spent = server.cpu() - before;
            if round > 0 {
                costs[at].push(spent as f64 / operations as f64);
            }
        }
    }
    let ours = median(costs[0].clone());
    let Some(theirs) = costs.get(1) else {
        println!("| {} | {ours:.0} | | | |", workload.title);
        return;
    };
    let mut ratios: Vec<f64> = costs[0]
        .iter()
        .zip(theirs)
        .map(|(ours, theirs)| ours / theirs)
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "| {} | {ours:.0} | {:.0} | {:.3} | {:.3} to {:.3} |",
        workload.title,
        median(theirs.clone()),
        median(ratios.clone()),
        ratios[0],
        ratios[ratios.len() - 1],
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
