//! Where clients find the target: unix sockets and TCP ports.
//!
//! # Contracts
//!
//! - **Stale sockets**: a socket file that nobody listens on is replaced; one that somebody listens
//!   on, and anything that is no socket, is left alone and refused.
//! - **Mode**: a unix socket never has more permissions than asked for, not even for a moment.
//! - **Ownership**: a [`Bound`] removes its socket file when it is dropped, if it is still its own;
//!   never that of a socket that was passed to this process.

use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, getsockname,
    getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};

/// The port that is registered for NBD.
pub const NBD_PORT: u16 = 10809;
/// Permissions of a unix socket when none are asked for: its owner's alone.
pub const SOCKET_MODE_DEFAULT: u32 = 0o600;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A place to listen at: `unix:PATH` or `tcp:[HOST:]PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket file.
    Unix(PathBuf),
    /// A TCP port, on the loopback address unless a host is named.
    Tcp {
        /// A name or address.
        host: Option<String>,
        /// Zero for any free one.
        port: u16,
    },
}

/// Not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an address: use unix:PATH or tcp:[HOST:]PORT")]
pub struct NotAnAddress(String);

/// Why a place could not be listened at.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process is there.
    #[error("{0}: another process listens there")]
    InUse(String),
    /// Something that is no socket has the path.
    #[error("{}: exists and is no socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("{address}: {error}")]
    System {
        /// The place.
        address: String,
        /// What the system said.
        error: io::Error,
    },
}

/// A socket that listens, before a ring serves it.
#[derive(Debug)]
pub struct Bound {
    fd: OwnedFd,
    place: Place,
}

/// Where a socket listens.
#[derive(Clone, Debug)]
enum Place {
    /// The inode is that of the socket's file; none where somebody else made and removes it.
    Unix {
        path: PathBuf,
        inode: Option<u64>,
    },
    Tcp(SocketAddr),
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let wrong = || NotAnAddress(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", rest)) => {
                let (host, port) = match rest.rsplit_once(':') {
                    Some((host, port)) => (Some(host), port),
                    None => (None, rest),
                };
                let host = host.map(|host| {
                    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
                });
                if host.is_some_and(|host| host.is_empty() || host.contains(['[', ']'])) {
                    return Err(wrong());
                }
                let port = port.parse().map_err(|_| wrong())?;
                Ok(Self::Tcp { host: host.map(str::to_owned), port })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host: None, port } => write!(f, "tcp:{port}"),
            Self::Tcp { host: Some(host), port } if host.contains(':') => {
                write!(f, "tcp:[{host}]:{port}")
            }
            Self::Tcp { host: Some(host), port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl Address {
    /// Listens there. A unix socket gets the permissions `socket_mode`.
    pub fn bind(&self, socket_mode: u32) -> Result<Bound, ListenError> {
        let system = |error| ListenError::System { address: self.to_string(), error };
        match self {
            Self::Unix(path) => {
                remove_stale(path)?;
                bind_unix(path, socket_mode).map_err(system)
            }
            Self::Tcp { host, port } => {
                let listener = match host {
                    None => TcpListener::bind((Ipv4Addr::LOCALHOST, *port)),
                    Some(host) => (host.as_str(), *port)
                        .to_socket_addrs()
                        .and_then(|all| TcpListener::bind(all.collect::<Vec<_>>().as_slice())),
                };
                let listener = listener.map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => ListenError::InUse(self.to_string()),
                    _ => system(error),
                })?;
                let address = listener.local_addr().map_err(system)?;
                Ok(Bound { fd: listener.into(), place: Place::Tcp(address) })
            }
        }
    }
}

/// Removes a socket file that a dead process left behind.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let address = || format!("unix:{}", path.display());
    let system = |error| ListenError::System { address: address(), error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(system)
        }
        Ok(_) => Err(ListenError::InUse(address())),
        Err(error) => Err(system(error)),
    }
}

fn bind_unix(path: &Path, socket_mode: u32) -> io::Result<Bound> {
    let address = UnixAddr::new(path)?;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The file that bind makes takes its permissions from the socket, less the umask, so that
    // nobody gets in between bind and the chmod that sets them exactly.
    fchmod(&fd, Mode::from_bits_truncate(socket_mode))?;
    bind(fd.as_raw_fd(), &address)?;
    fs::set_permissions(path, fs::Permissions::from_mode(socket_mode))?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    let inode = fs::symlink_metadata(path)?.ino();
    Ok(Bound { fd, place: Place::Unix { path: path.to_owned(), inode: Some(inode) } })
}

/// Where a socket listens that somebody else opened.
fn adopted_place(fd: &OwnedFd) -> io::Result<Place> {
    if getsockopt(fd, sockopt::SockType)? != SockType::Stream
        || !getsockopt(fd, sockopt::AcceptConn)?
    {
        return Err(io::Error::other("it is no stream socket that listens"));
    }
    let address: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    if let Some(address) = address.as_unix_addr() {
        let path = address.path().ok_or_else(|| io::Error::other("it has no path"))?;
        return Ok(Place::Unix { path: path.to_owned(), inode: None });
    }
    Ok(Place::Tcp(TcpListener::from(fd.try_clone()?).local_addr()?))
}

impl Bound {
    /// A socket that listens already, opened by whoever started this process.
    pub fn adopt(fd: OwnedFd) -> Result<Self, ListenError> {
        let address = format!("the passed socket {}", fd.as_raw_fd());
        let place = adopted_place(&fd);
        let place = place.map_err(|error| ListenError::System { address, error })?;
        Ok(Self { fd, place })
    }

    /// Where a client finds this export, as an NBD URI.
    pub fn uri(&self, export: &str) -> String {
        self.uris()(export)
    }

    /// Where a client finds any export, also after this was given to a server.
    pub fn uris(&self) -> impl Fn(&str) -> String + use<> {
        let place = self.place.clone();
        move |export| match &place {
            Place::Unix { path, .. } => format!(
                "nbd+unix:///{}?socket={}",
                percent(export),
                percent(&path.to_string_lossy())
            ),
            Place::Tcp(address) => format!("nbd://{address}/{}", percent(export)),
        }
    }

    /// Whether it is a TCP port.
    pub fn is_tcp(&self) -> bool {
        matches!(self.place, Place::Tcp(_))
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Place::Unix { path, inode: Some(inode) } = &self.place
            && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.ino() == *inode)
        {
            // A file that stays behind is replaced at the next start.
            let _ = fs::remove_file(path);
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Unix { path, .. } => write!(f, "unix:{}", path.display()),
            Place::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// Percent-encodes what does not stand for itself in a URI's path or query.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            _ => write!(out, "%{byte:02X}").expect("a string takes all"),
        }
    }
    out
}

/// Raises the limit of open files as far as the system lets this process, and says what it is now.
pub fn raise_file_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn parse(text: &str) -> Result<Address, NotAnAddress> {
        text.parse()
    }

    /// Goal: addresses are read and shown as documented.
    #[test]
    fn addresses() {
        for text in ["unix:/run/a b", "tcp:10809", "tcp:localhost:1", "tcp:[::1]:5", "tcp:0"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        for text in ["", "unix:", "tcp:", "tcp:x", "tcp::5", "tcp:h:70000", "udp:5", "/run/a"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    /// Goal: a stale socket is replaced, a live one and a file are not; permissions are exact; the
    /// file goes with its owner.
    #[test]
    fn unix_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s k");
        let address = Address::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let bound = address.bind(0o660).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(UnixStream::connect(&path).is_ok());
        let uri = bound.uri("v 0");
        assert!(uri.starts_with("nbd+unix:///v%200?socket=/") && uri.ends_with("/s%20k"), "{uri}");
        assert!(matches!(address.bind(0o660), Err(ListenError::InUse(_))));
        drop(bound);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(address.bind(0o660), Err(ListenError::NotASocket(_))));
        assert!(path.exists());
    }

    /// Goal: a socket that was opened elsewhere is used as it is, and its file is left alone; what
    /// does not listen is refused.
    #[test]
    fn passed_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passed");
        let bound = Bound::adopt(UnixListener::bind(&path).unwrap().into()).unwrap();
        assert_eq!(bound.to_string(), format!("unix:{}", path.display()));
        drop(bound);
        assert!(path.exists());
        let bound = Bound::adopt(TcpListener::bind("127.0.0.1:0").unwrap().into()).unwrap();
        assert!(bound.is_tcp() && bound.uri("v").starts_with("nbd://127.0.0.1:"));
        let (one, _other) = UnixStream::pair().unwrap();
        let error = Bound::adopt(one.into()).unwrap_err();
        assert!(error.to_string().contains("no stream socket that listens"), "{error}");
    }

    /// Goal: TCP is the loopback's unless an address is given, and the URI names the real port.
    #[test]
    fn tcp_ports() {
        let bound = parse("tcp:0").unwrap().bind(0).unwrap();
        let uri = bound.uri("vol0");
        assert!(uri.starts_with("nbd://127.0.0.1:") && uri.ends_with("/vol0"), "{uri}");
        let port = uri.trim_start_matches("nbd://127.0.0.1:").trim_end_matches("/vol0");
        let again = parse(&format!("tcp:{port}")).unwrap().bind(0);
        assert!(matches!(again, Err(ListenError::InUse(_))));
    }
}
