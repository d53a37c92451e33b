#![forbid(unsafe_code)]
//! One limit for all the memory of the process (`-o total_memory`).
//!
//! What items may take is what the limit leaves beside everything else: table, buffers, connections,
//! stacks, the program. That is not added up but looked at, as what the system says the process
//! holds less the pages of items. When clients come, items go, and the other way round.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::command::Shared;
use crate::settings::TotalMemory;
use crate::store::Store;

/// How often it is looked at: what can grow until then is what is kept free for it.
const EVERY: Duration = Duration::from_millis(50);
/// The share of the limit that is kept free, and the least.
const FREE_SHARE: u64 = 32;
const FREE_LEAST: u64 = 4 << 20;
/// Items always have that much.
const ITEMS_LEAST: u64 = 8 << 20;

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";
/// What older systems show for no limit is not quite the largest number.
const NO_LIMIT: u64 = 1 << 60;

/// The limit, and what there is under it.
pub struct Budget {
    limit: u64,
    group: Option<PathBuf>,
    page_size: u64,
    /// What was kept for others when it was looked at last: it shrinks slowly.
    others: AtomicU64,
}

impl Budget {
    /// # Errors
    /// A line for the user: there is no control group with a limit.
    pub fn new(total: TotalMemory) -> Result<Budget, String> {
        let (limit, group) = match total {
            TotalMemory::Bytes(bytes) => (bytes, None),
            TotalMemory::Cgroup => {
                let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
                let found = limit_of_group(&memberships, Path::new(GROUPS));
                let (limit, group) = found.ok_or(
                    "total_memory=cgroup: no control group of this process has a memory limit",
                )?;
                (limit, Some(group))
            }
        };
        Ok(Budget {
            limit,
            group,
            page_size: page_size(),
            others: AtomicU64::new(0),
        })
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Looks at what there is, and tells the store what items may take. Returns when to look again.
    pub fn step(&self, shared: &Shared) -> Duration {
        let items = shared.store.state().page_bytes;
        let mut others = resident(self.page_size).saturating_sub(items);
        if let Some(group) = &self.group {
            // Others in the group, and what the kernel holds for our sockets.
            others = others.max(held_by(group).saturating_sub(items));
        }
        // Buffers that were given back will be wanted again.
        let kept = self.others.load(Relaxed);
        others = others.max(kept - kept / 64);
        self.others.store(others, Relaxed);
        self.tell(&shared.store, others);
        EVERY
    }

    fn tell(&self, store: &Store, others: u64) {
        let free = (self.limit / FREE_SHARE).max(FREE_LEAST);
        let items = self.limit.saturating_sub(others + free);
        store.set_budget(items.max(ITEMS_LEAST));
    }
}

/// Bytes of memory that the process holds.
fn resident(page_size: u64) -> u64 {
    let read = || -> Option<u64> {
        let text = fs::read_to_string("/proc/self/statm").ok()?;
        text.split(' ').nth(1)?.parse().ok()
    };
    read().unwrap_or(0) * page_size
}

/// From the auxiliary vector's page size, which is what the system counts in.
fn page_size() -> u64 {
    const AT_PAGESZ: u64 = 6;
    let read = || -> Option<u64> {
        let bytes = fs::read("/proc/self/auxv").ok()?;
        let mut words = bytes.chunks_exact(8);
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            let word = |bytes: &[u8]| Some(u64::from_ne_bytes(*bytes.first_chunk()?));
            if word(name)? == AT_PAGESZ {
                return word(value);
            }
        }
        None
    };
    read().unwrap_or(4096)
}

/// The lowest limit of the groups that a process is in, and the folder of that group.
fn limit_of_group(memberships: &str, groups: &Path) -> Option<(u64, PathBuf)> {
    let mut lowest: Option<(u64, PathBuf)> = None;
    for line in memberships.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (base, file) = match controllers {
            "" => (groups.to_path_buf(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (groups.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut folder = base.join(path.trim_start_matches('/'));
        // Seen from inside a container, the path may lead nowhere; the limit is at the root then.
        while folder.starts_with(&base) {
            let limit = fs::read_to_string(folder.join(file)).ok();
            let limit = limit.and_then(|text| text.trim().parse().ok());
            if let Some(limit) = limit.filter(|&limit| limit < NO_LIMIT)
                && lowest.as_ref().is_none_or(|&(least, _)| limit < least)
            {
                lowest = Some((limit, folder.clone()));
            }
            if !folder.pop() {
                break;
            }
        }
    }
    lowest
}

/// Bytes that a group holds and could not give back: all but the pages of files.
fn held_by(group: &Path) -> u64 {
    let number = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(group.join(file)).ok()?;
        text.trim().parse().ok()
    };
    let Some(held) = number("memory.current").or_else(|| number("memory.usage_in_bytes")) else {
        return 0;
    };
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let line = |name: &str| -> Option<u64> {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        lines.find_map(|(other, value)| (other == name).then(|| value.parse().ok())?)
    };
    let files = line("file").or_else(|| line("total_cache")).unwrap_or(0);
    let shared = line("shmem").or_else(|| line("total_shmem")).unwrap_or(0);
    held.saturating_sub(files.saturating_sub(shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_of_all_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let find = |memberships: &str| limit_of_group(memberships, root.path());
        assert_eq!(find("0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        assert_eq!(find("0::/a/b\n"), None);
        write("a/memory.max", "1000000\n");
        let of_a = (1_000_000, root.path().join("a"));
        assert_eq!(find("0::/a/b\n"), Some(of_a.clone()));
        write("a/b/memory.max", "2000000\n");
        assert_eq!(find("0::/a/b\n"), Some(of_a), "the outer one is lower");
        write("memory.max", "3000\n");
        assert_eq!(
            find("0::/elsewhere\n"),
            Some((3000, root.path().to_path_buf()))
        );
        write("memory/x/memory.limit_in_bytes", "5000\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let old = "7:cpu,cpuacct:/x\n4:memory:/x\n";
        assert_eq!(find(old), Some((5000, root.path().join("memory/x"))));
    }

    #[test]
    fn what_a_group_holds_is_all_but_files() {
        let group = tempfile::tempdir().unwrap();
        assert_eq!(held_by(group.path()), 0);
        fs::write(group.path().join("memory.current"), "1000\n").unwrap();
        assert_eq!(held_by(group.path()), 1000);
        fs::write(
            group.path().join("memory.stat"),
            "anon 500\nfile 400\nshmem 100\n",
        )
        .unwrap();
        assert_eq!(held_by(group.path()), 700);
    }

    #[test]
    fn this_process_holds_something() {
        let page = page_size();
        assert!(page.is_power_of_two());
        assert!(resident(page) > 1 << 20);
    }
}
