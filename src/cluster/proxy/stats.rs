#![forbid(unsafe_code)]
//! What a proxy shows of itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Proxy;
use crate::cluster::upstream::Upstream;
use crate::settings::proxy::Command;

/// Keys that are shown.
const TOP: usize = 100;

/// Where a name and its value go.
type Emit<'a> = dyn FnMut(std::fmt::Arguments<'_>, std::fmt::Arguments<'_>) + 'a;

/// The words of a key, for people: what is no text is escaped.
fn shown(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

impl Proxy {
    /// `stats proxy`: what this worker knows, but for the last lines.
    pub fn stats(&self, emit: &mut Emit<'_>) {
        let mut line = |name: &str, value: u64| {
            emit(format_args!("{name}"), format_args!("{value}"));
        };
        let (tasks, task_bytes) = self.tasks_open();
        let waiting = |what: fn(&Upstream) -> usize| -> u64 {
            self.upstreams.iter().map(|(_, it)| what(it) as u64).sum()
        };
        line("pools", self.plan.pools.len() as u64);
        line("servers", self.servers.len() as u64);
        line("configurations", self.generation);
        line("queued_bytes", self.cluster.queued() as u64);
        line("worker", self.number as u64);
        line("worker_clients", self.front.seats.len() as u64);
        line("worker_connections", self.upstreams.len() as u64);
        line("worker_requests", waiting(Upstream::requests));
        line("worker_request_bytes", waiting(Upstream::waiting));
        let owed = self.front.seats.iter().map(|(_, seat)| seat.slots.bytes());
        line("worker_answer_bytes", owed.sum::<usize>() as u64);
        line("worker_tasks", tasks as u64);
        line("worker_task_bytes", task_bytes as u64);
        line("worker_orphan_bytes", self.front.orphans);
        line("worker_hot_hits", self.heats.hits);
        // Those behind have the same servers again, for keys that move.
        let pools = self.plan.pools.iter().zip(&self.plan.settings.pools);
        let all = pools.flat_map(|(pool, _)| &pool.targets);
        let mut sums = [0; 5];
        for target in all {
            let counts = &target.counts;
            let of = [
                &counts.requests,
                &counts.failures,
                &counts.timeouts,
                &counts.busy,
                &counts.failovers,
            ];
            for (sum, count) in sums.iter_mut().zip(of) {
                *sum += count.load(Relaxed);
            }
        }
        for (name, sum) in ["requests", "failures", "timeouts", "busy", "failovers"]
            .iter()
            .zip(sums)
        {
            line(name, sum);
        }
        for command in Command::ALL {
            let at = command as usize;
            // This worker's are told before the others have seen them.
            let asked = self.cluster.asked[at].load(Relaxed) + self.asked[at];
            emit(
                format_args!("cmd_{}", command.name()),
                format_args!("{asked}"),
            );
        }
    }

    /// `stats servers`
    pub fn server_stats(&self, emit: &mut Emit<'_>) {
        for (pool, settings) in self.plan.pools.iter().zip(&self.plan.settings.pools) {
            for (at, target) in pool.targets.iter().enumerate() {
                let counts = &target.counts;
                let name = format!("{}:{}", settings.name, target.place);
                if let Some((group, leads)) = pool.seat_of(at) {
                    let role = if leads { "leader" } else { "follower" };
                    emit(format_args!("{name}:group"), format_args!("{group}"));
                    emit(format_args!("{name}:role"), format_args!("{role}"));
                }
                emit(
                    format_args!("{name}:state"),
                    format_args!("{}", target.state_name()),
                );
                let mut line = |what: &str, value: u64| {
                    emit(format_args!("{name}:{what}"), format_args!("{value}"));
                };
                let read = |count: &AtomicU64| count.load(Relaxed);
                line("requests", read(&counts.requests));
                line("failures", read(&counts.failures));
                line("timeouts", read(&counts.timeouts));
                line("busy", read(&counts.busy));
                line("connects", read(&counts.connects));
                line("state_changes", read(&counts.changes));
                line("failovers", read(&counts.failovers));
                line("deletes_waiting", target.deletes() as u64);
                line("deletes_sent", read(&counts.deletes_sent));
                line("deletes_forgotten", read(&counts.deletes_forgotten));
                line("copies_dropped", read(&counts.copies_dropped));
            }
        }
    }

    /// `stats hotkeys`: the keys that were read most in the last second, and how often.
    pub fn hot_key_stats(&self, emit: &mut Emit<'_>) {
        for key in self.cluster.hot_keys().iter().take(TOP) {
            let hot = if key.hot { " hot" } else { "" };
            emit(
                format_args!("{}", shown(&key.key)),
                format_args!("{}{hot}", key.reads),
            );
        }
    }
}
