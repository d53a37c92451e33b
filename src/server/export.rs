#![forbid(unsafe_code)]
//! The thread that fills a plain memcached, when somebody asks for that.

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::control::Control;
use crate::cluster::replication::data::StoreData;
use crate::cluster::replication::export::{Export, Failed};
use crate::cluster::replication::replicas::Replicas;
use crate::command::Shared;

/// How often it looks whether there is something to do.
const LOOK: Duration = Duration::from_millis(50);
/// The longest that the other server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Steps after which its answers are read.
const STEPS: usize = 4;

/// Starts it.
///
/// # Errors
/// No thread is to be had.
pub fn start(
    shared: &Arc<Shared>,
    replicas: &Arc<Replicas>,
    control: Arc<Control>,
) -> io::Result<Option<JoinHandle<()>>> {
    let counters = shared.registry.register();
    let Some(data) = StoreData::new(&shared.store, &shared.clock, counters) else {
        return Ok(None);
    };
    let replicas = replicas.clone();
    let thread = Builder::new().name("export".to_owned()).spawn(move || {
        while control.sleep(LOOK) {
            let Some(target) = replicas.export().target() else {
                continue;
            };
            if let Err(failed) = export(&data, &replicas, &control, &target) {
                log::warn!("cannot export to {target}: {failed}");
                replicas.export().end(failed.to_string());
            }
        }
    })?;
    Ok(Some(thread))
}

/// Until it is told to stop.
fn export(
    data: &StoreData,
    replicas: &Replicas,
    control: &Control,
    target: &str,
) -> Result<(), Failed> {
    let stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut replies = BufReader::new(stream.try_clone()?);
    let mut out = BufWriter::with_capacity(64 << 10, stream);
    let mut export = Export::new(data);
    let mut refused = 0;
    while replicas.export().target().as_deref() == Some(target) {
        let mut more = false;
        for _ in 0..STEPS {
            let now = data.clock.unix_now().clamp(0, i64::from(u32::MAX)) as u32;
            more = export.step(data, now, &mut out)?;
            if !more {
                break;
            }
        }
        // Quiet requests are answered where something is wrong only.
        out.write_all(b"mn\r\n")?;
        out.flush()?;
        refused += errors(&mut replies)?;
        replicas
            .export()
            .note(export.walked(), export.items, export.records, refused);
        if !more && !control.sleep(LOOK) || control.stopping().is_some() {
            return Ok(());
        }
    }
    Ok(())
}

/// Answers up to that of `mn`.
fn errors(replies: &mut impl BufRead) -> io::Result<u64> {
    let mut refused = 0;
    let mut line = String::new();
    loop {
        line.clear();
        if replies.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "MN" => return Ok(refused),
            // Deleting what is not there is no failure.
            "NF" => {}
            other => {
                log::debug!("export: {other}");
                refused += 1;
            }
        }
    }
}
