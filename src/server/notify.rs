//! What systemd wants to be told (`sd_notify(3)`): a datagram to the socket it names.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// This process serves, and is the service's main process from now on: after an upgrade it is another
/// one than was started.
pub(super) fn ready() {
    say(&format!("READY=1\nMAINPID={}", std::process::id()));
}

pub(super) fn stopping() {
    say("STOPPING=1");
}

/// Does nothing where nobody asked to be told.
fn say(state: &str) {
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&path, state) {
        tracing::warn!(%error, "systemd can't be told about the service");
    }
}

fn send(path: &str, state: &str) -> io::Result<()> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_and_an_abstract_socket_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let named = UnixDatagram::bind(&path).unwrap();
        send(path.to_str().unwrap(), "READY=1").unwrap();
        let mut said = [0; 32];
        assert_eq!(named.recv(&mut said).unwrap(), 7);
        let name = format!("wasm-wizard-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let hidden = UnixDatagram::bind_addr(&address).unwrap();
        send(&format!("@{name}"), "STOPPING=1").unwrap();
        assert_eq!(hidden.recv(&mut said).unwrap(), 10);
        assert!(send("/nowhere/at/all", "READY=1").is_err());
    }
}
