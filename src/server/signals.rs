#![forbid(unsafe_code)]
//! Signals: a thread of their own that stops the server or reads its files again.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};

use super::control::{Control, Stop};
use crate::command::Shared;

/// The thread that waits for signals.
pub struct Listener {
    handle: Handle,
    thread: JoinHandle<()>,
}

/// From here on, signals stop the server or make it reload.
///
/// # Errors
/// The system gives no handler or no thread.
pub fn listen(control: Arc<Control>, shared: Arc<Shared>) -> io::Result<Listener> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGHUP])?;
    let handle = signals.handle();
    let thread = Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let done = match signal {
                SIGHUP => {
                    // Whoever sent it looks for the outcome, with or without -v.
                    for failure in shared.reload() {
                        eprintln!("{failure}");
                    }
                    Ok(())
                }
                SIGUSR1 => control.stop(Stop::Graceful),
                _ => control.stop(Stop::Normal),
            };
            if let Err(error) = done {
                log::error!("signal {signal}: {error}");
            }
        }
    })?;
    Ok(Listener { handle, thread })
}

impl Listener {
    /// Waits for no more signals.
    pub fn end(self) {
        self.handle.close();
        if self.thread.join().is_err() {
            log::error!("the signal thread has panicked");
        }
    }
}
