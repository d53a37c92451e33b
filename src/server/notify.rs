#![forbid(unsafe_code)]
//! Tells the service manager how the server fares: `sd_notify(3)`, over the socket that
//! `NOTIFY_SOCKET` names. Without one, nothing is told.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// It serves.
pub const READY: &str = "READY=1\nSTATUS=serving";

/// It has been told to stop.
pub const STOPPING: &str = "STOPPING=1\nSTATUS=stopping";

/// Sends a state, if somebody wants to know. That nobody listens is no reason not to serve.
pub fn tell(state: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket, state)
    {
        log::warn!(
            "cannot tell the service manager ({}): {error}",
            socket.display()
        );
    }
}

fn send(name: &OsStr, state: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    socket.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_arrive_under_either_kind_of_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), READY).unwrap();
        let mut state = [0; 100];
        let length = manager.recv(&mut state).unwrap();
        assert_eq!(&state[..length], READY.as_bytes());

        let name = format!("larder-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), STOPPING).unwrap();
        let length = manager.recv(&mut state).unwrap();
        assert_eq!(&state[..length], STOPPING.as_bytes());
        assert!(send(OsStr::new("/nonexistent/notify"), READY).is_err());
    }
}
