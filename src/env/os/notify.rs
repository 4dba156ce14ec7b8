//! Telling a service manager how this process fares: systemd's notification protocol.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says that the service serves. Does nothing where no manager asked to be told.
pub fn notify_ready() -> io::Result<()> {
    notify("READY=1")
}

/// Tells the manager `state`: lines of `NAME=value`, `STATUS=…` and `STOPPING=1` among them. Does
/// nothing where no manager asked to be told.
pub fn notify(state: &str) -> io::Result<()> {
    std::env::var_os("NOTIFY_SOCKET").map_or(Ok(()), |address| notify_at(&address, state))
}

fn notify_at(address: &OsStr, state: &str) -> io::Result<()> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the state arrives, whether the manager's socket is a file or has an abstract name.
    #[test]
    fn the_manager_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("flipside-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&abstract_address).unwrap(), format!("@{name}").into()),
        ] {
            notify_at(&address, "READY=1").unwrap();
            let mut bytes = [0; 100];
            let len = socket.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..len], b"READY=1");
        }
        assert!(notify_at(OsStr::new("/nonexistent/socket"), "READY=1").is_err());
    }
}
