#![forbid(unsafe_code)]
//! Signals: a thread of their own that stops the server or reads its files again.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};

use super::control::{Control, Stop};
use crate::cluster::Cluster;
use crate::command::Shared;
use crate::settings::proxy::{self, Mode};

/// The thread that waits for signals.
pub struct Listener {
    handle: Handle,
    thread: JoinHandle<()>,
}

/// From here on, signals stop the server or make it reload.
///
/// # Errors
/// The system gives no handler or no thread.
pub fn listen(
    control: Arc<Control>,
    shared: Arc<Shared>,
    cluster: Option<Arc<Cluster>>,
) -> io::Result<Listener> {
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
                    if let Some(cluster) = &cluster
                        && let Err(failure) = reload(&shared, cluster)
                    {
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

/// Reads the file of a proxy again. Listeners stay as they are.
fn reload(shared: &Shared, cluster: &Cluster) -> Result<(), String> {
    let Some(Mode {
        file: Some(file), ..
    }) = &shared.settings.proxy
    else {
        return Ok(());
    };
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| format!("{shown}: {error}"))?;
    let proxy = proxy::parse(&text).map_err(|error| format!("{shown}: {error}"))?;
    cluster.reload(proxy)
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
