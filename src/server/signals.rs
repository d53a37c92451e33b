#![forbid(unsafe_code)]
//! Signals, turned into calls of [`Control`] by a thread of their own.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};

use super::control::{Control, Stop};

/// The thread that waits for signals.
pub struct Listener {
    handle: Handle,
    thread: JoinHandle<()>,
}

/// From here on, signals stop the server or make it reload.
///
/// # Errors
/// The system gives no handler or no thread.
pub fn listen(control: Arc<Control>) -> io::Result<Listener> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGHUP])?;
    let handle = signals.handle();
    let thread = Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let done = match signal {
                SIGHUP => {
                    control.request_reload();
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
