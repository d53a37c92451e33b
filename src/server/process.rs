//! The process: limits, user, daemon, pid file, locked memory.
//!
//! Everything here happens while there is one thread, before any socket; only the pid file comes
//! after them. Unsafe is needed for the calls that the standard library does not have: none of them
//! is given memory that outlives the call.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Failure;
use crate::net::address::reason;
use crate::settings::Process;

const NO_USER: i32 = 67;
const OS_ERROR: i32 = 71;
/// Descriptors that are not clients: listeners, polls, wakers, standard streams.
const RESERVED: u64 = 64;

fn failure(message: impl Into<String>, code: i32) -> Failure {
    Failure {
        message: message.into(),
        code,
    }
}

/// Turns -1 into the error that it stands for.
fn cerr(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes the process what the options ask for.
///
/// # Errors
/// A limit cannot be had, the user does not exist, the system refuses.
pub fn prepare(process: &Process, clients: usize, threads: usize) -> Result<(), Failure> {
    if process.core_dumps {
        allow_core_files()?;
    }
    let clients = clients as u64;
    raise_descriptor_limit(clients + 2 * threads as u64 + RESERVED, clients)?;
    become_user(process.user.as_deref())?;
    ignore_broken_pipes();
    if process.daemonize {
        daemonize(process)?;
    }
    if process.lock_memory {
        // Not before it is used: far more is reserved than there is memory.
        let when = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
        // SAFETY: takes flags and no memory.
        if let Err(error) = cerr(unsafe { libc::mlockall(when) }) {
            eprintln!("warning: -k invalid, mlockall() failed: {error}");
        }
    }
    Ok(())
}

fn limit(resource: libc::__rlimit_resource_t) -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable and of the type that the call fills in.
    cerr(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    Ok(limit)
}

fn set_limit(resource: libc::__rlimit_resource_t, limit: &libc::rlimit) -> io::Result<()> {
    // SAFETY: `limit` is readable and of the type that the call reads.
    cerr(unsafe { libc::setrlimit(resource, limit) })
}

fn allow_core_files() -> Result<(), Failure> {
    let refused = || failure("failed to ensure corefile creation", OS_ERROR);
    let before = limit(libc::RLIMIT_CORE).map_err(|_| refused())?;
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    if set_limit(libc::RLIMIT_CORE, &unlimited).is_err() {
        // Without the right to more, the hard limit is all there is; checked below.
        let _ = set_limit(
            libc::RLIMIT_CORE,
            &libc::rlimit {
                rlim_cur: before.rlim_max,
                ..before
            },
        );
    }
    match limit(libc::RLIMIT_CORE) {
        Ok(after) if after.rlim_cur > 0 => Ok(()),
        _ => Err(refused()),
    }
}

/// Raises the number of descriptors to `wanted`, or to `least` where the system allows no more; one
/// that is higher already stays.
fn raise_descriptor_limit(wanted: u64, least: u64) -> Result<(), Failure> {
    let refused = |_| {
        failure(
            "failed to set rlimit for open files. Try starting as root or requesting smaller maxconns value.",
            OS_ERROR,
        )
    };
    let before = limit(libc::RLIMIT_NOFILE).map_err(refused)?;
    if before.rlim_cur >= wanted {
        return Ok(());
    }
    let raised = |most: u64| libc::rlimit {
        rlim_cur: most,
        rlim_max: before.rlim_max.max(most),
    };
    let most = wanted.min(before.rlim_max.max(least));
    set_limit(libc::RLIMIT_NOFILE, &raised(wanted))
        .or_else(|_| set_limit(libc::RLIMIT_NOFILE, &raised(most)))
        .or_else(|error| {
            if before.rlim_cur >= least {
                Ok(())
            } else {
                Err(error)
            }
        })
        .map_err(refused)
}

/// Root becomes `user`; anybody else stays who they are.
fn become_user(user: Option<&str>) -> Result<(), Failure> {
    // SAFETY: these two read ids and cannot fail.
    let root = unsafe { libc::getuid() == 0 || libc::geteuid() == 0 };
    if !root {
        return Ok(());
    }
    let Some(user) = user else {
        log::warn!("running as root: give -u USER to become somebody with fewer rights");
        return Ok(());
    };
    let (uid, gid) = look_up(user)
        .ok_or_else(|| failure(format!("can't find the user {user} to switch to"), NO_USER))?;
    // SAFETY: no groups are given, so no memory is read.
    if let Err(error) = cerr(unsafe { libc::setgroups(0, std::ptr::null()) })
        && error.raw_os_error() != Some(libc::EPERM)
    {
        return Err(failure(
            format!("failed to drop supplementary groups: {error}"),
            OS_ERROR,
        ));
    }
    // SAFETY: both take a number.
    let done = cerr(unsafe { libc::setgid(gid) }).and_then(|()| cerr(unsafe { libc::setuid(uid) }));
    done.map_err(|_| {
        failure(
            format!("failed to assume identity of user {user}"),
            OS_ERROR,
        )
    })
}

fn look_up(user: &str) -> Option<(libc::uid_t, libc::gid_t)> {
    let name = CString::new(user).ok()?;
    // SAFETY: `name` is a C string that outlives the call; there is only one thread yet, so nobody
    // else calls into the user database while its answer is read.
    let entry = unsafe { libc::getpwnam(name.as_ptr()).as_ref() }?;
    Some((entry.pw_uid, entry.pw_gid))
}

/// A client that went away is told by the write that fails, not by a signal.
fn ignore_broken_pipes() {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

fn daemonize(process: &Process) -> Result<(), Failure> {
    let refused = |error: io::Error| {
        failure(
            format!("failed to daemon() in order to daemonize: {error}"),
            1,
        )
    };
    // SAFETY: there is one thread, so the child is a whole program.
    match unsafe { libc::fork() } {
        -1 => return Err(refused(io::Error::last_os_error())),
        0 => {}
        // SAFETY: leaves at once, running nothing of ours twice.
        _ => unsafe { libc::_exit(0) },
    }
    // SAFETY: takes nothing.
    cerr(unsafe { libc::setsid() }).map_err(refused)?;
    if !process.core_dumps {
        std::env::set_current_dir("/").map_err(refused)?;
    }
    if process.verbosity == 0 {
        let null = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(refused)?;
        for stream in 0..3 {
            // SAFETY: both are descriptors that are open.
            cerr(unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), stream) })
                .map_err(refused)?;
        }
    }
    Ok(())
}

/// A file that says which process serves; gone when this is dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes it, by way of a temporary name. A file that cannot be written is told and done without.
    pub fn write(path: &Path) -> Option<PidFile> {
        if let Some(pid) = running(path) {
            eprintln!("WARNING: The pid file contained the following (running) pid: {pid}");
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let written = fs::File::create(&temporary)
            .and_then(|mut file| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            eprintln!(
                "Could not open the pid file {} for writing: {}",
                temporary.display(),
                reason(&error)
            );
            return None;
        }
        if let Err(error) = fs::rename(&temporary, path) {
            eprintln!(
                "Could not rename the pid file from {} to {}: {}",
                temporary.display(),
                path.display(),
                reason(&error)
            );
            return None;
        }
        Some(PidFile {
            path: path.to_owned(),
        })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            eprintln!(
                "Could not remove the pid file {}: {}",
                self.path.display(),
                reason(&error)
            );
        }
    }
}

/// The process that a pid file names, if it is alive.
fn running(path: &Path) -> Option<libc::pid_t> {
    let pid = fs::read_to_string(path)
        .ok()?
        .trim()
        .parse()
        .ok()
        .filter(|&pid| pid > 0)?;
    // SAFETY: signal 0 is sent to nobody; it only asks whether the process exists.
    (unsafe { libc::kill(pid, 0) } == 0).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_comes_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let file = PidFile::write(&path).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            format!("{}\n", std::process::id())
        );
        assert_eq!(running(&path), Some(std::process::id() as libc::pid_t));
        drop(file);
        assert!(!path.exists());
        assert!(PidFile::write(&folder.path().join("no/such/folder")).is_none());
    }

    #[test]
    fn users_are_found_by_name() {
        assert_eq!(look_up("root"), Some((0, 0)));
        assert_eq!(look_up("no-such-user-anywhere"), None);
    }
}
