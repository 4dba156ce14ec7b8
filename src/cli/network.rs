//! What commands need to talk over a network: addresses, the size of datagrams, and the key.

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::{Either, select};
use tracing::warn;

use super::device;
use super::values::ValueError;
use crate::env::Env as _;
use crate::env::os::{OsEnv, OsLink, Seal};
use crate::mds::auth::Key;
use crate::mds::error::MdsError;
use crate::mds::wire::{PAYLOAD_MIN, PAYLOAD_UDP_MAX};
use crate::uring::Ring;

/// More than any key file has, in bytes.
const KEY_FILE_LEN_MAX: u64 = 1000;
/// How often it is said that a metadata server does not answer.
const SILENCE_SAID_EACH: Duration = Duration::from_secs(5);
/// Memory for I/O of a command that asks a server, in bytes.
const BUFFERS_LEN: usize = 1 << 20;
/// How long a command waits for the metadata server.
const COMMAND_PATIENCE: Duration = Duration::from_secs(10);
/// Permissions of those who are neither the owner nor of the group.
const OTHERS: u32 = 0o007;

/// A host, by name or address, and a port; not looked up yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort(String);

impl FromStr for HostPort {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (host, port) = text.rsplit_once(':').ok_or(ValueError::HostPort)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        // A colon in the host is an IPv6 address's, which needs its brackets.
        let sound = bare.map_or(!host.contains([':', '[', ']']), |bare| bare.contains(':'));
        match (sound && !host.is_empty(), port.parse::<u16>()) {
            (true, Ok(_)) => Ok(Self(text.to_owned())),
            _ => Err(ValueError::HostPort),
        }
    }
}

impl HostPort {
    /// Its first address.
    pub fn resolve(&self) -> Result<SocketAddr> {
        let found = self.0.to_socket_addrs().with_context(|| self.0.clone())?.next();
        found.with_context(|| format!("{} has no address", self.0))
    }
}

/// The largest datagram that is sent and taken, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramSize(pub usize);

impl FromStr for DatagramSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let size = text.parse().map_err(|_| ValueError::DatagramSize)?;
        let sound = (PAYLOAD_MIN..=PAYLOAD_UDP_MAX).contains(&size);
        sound.then_some(Self(size)).ok_or(ValueError::DatagramSize)
    }
}

/// Whose key the datagrams carry the proof of.
#[derive(clap::Args, Clone, Debug)]
pub struct KeyArgs {
    /// The key that targets and metadata server share, 64 hex digits: (umask 077; openssl rand
    /// -hex 32 >FILE) makes one
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl KeyArgs {
    /// The key, where there is one.
    pub fn read(&self) -> Result<Option<Key>> {
        let path = self.key_file.as_deref();
        path.map(|path| read_key(path).with_context(|| path.display().to_string())).transpose()
    }
}

/// Which metadata server is talked to over the network, and how.
#[derive(clap::Args, Clone, Debug)]
pub struct MdsArgs {
    /// The metadata server
    #[arg(long, value_name = "HOST:PORT")]
    pub mds: Option<HostPort>,
    /// The largest datagram to and from the metadata server, in bytes; more than 1472 needs jumbo
    /// frames all the way, or the loopback
    #[arg(long, value_name = "BYTES", default_value = "1472")]
    pub datagram_size: DatagramSize,
    #[allow(missing_docs, reason = "a doc comment would become help text")]
    #[command(flatten)]
    pub key: KeyArgs,
}

impl MdsArgs {
    /// A link to the server at that address. Nothing is sent yet.
    pub fn link_to(&self, ring: &Ring, at: SocketAddr) -> Result<OsLink> {
        let seal = self.key.read()?.map(|key| Box::new(key) as Box<dyn Seal>);
        let link = OsLink::udp(ring, at, self.datagram_size.0, seal);
        link.with_context(|| format!("the metadata server at {at}"))
    }
}

/// A metadata server as a command asks it.
#[derive(Clone)]
pub struct Remote {
    /// The world.
    pub env: OsEnv,
    /// Where it is.
    pub at: SocketAddr,
    args: MdsArgs,
}

impl Remote {
    /// The server that was named.
    pub fn new(env: &OsEnv, args: &MdsArgs) -> Result<Self> {
        let mds = args.mds.as_ref().context("no metadata server: say --mds HOST:PORT")?;
        Ok(Remote { env: env.clone(), at: mds.resolve()?, args: args.clone() })
    }

    /// A link of its own for each session.
    pub fn link(&self) -> Result<OsLink> {
        self.args.link_to(self.env.ring(), self.at)
    }

    /// What it answers in good time.
    pub async fn answered<T>(&self, asked: impl Future<Output = Result<T, MdsError>>) -> Result<T> {
        answered(&self.env, self.at, Some(COMMAND_PATIENCE), asked).await
    }
}

/// Asks the server that was named, on a ring of its own.
pub fn ask<T: 'static, F: Future<Output = Result<T>> + 'static>(
    args: &MdsArgs,
    asking: impl FnOnce(Remote) -> F,
) -> Result<T> {
    let (ring, env) = device::environment(BUFFERS_LEN)?;
    let remote = Remote::new(&env, args)?;
    let answer = ring.block_on(asking(remote));
    ring.shutdown();
    answer
}

/// What the metadata server at that address answers; for as long as it is silent that is said, and
/// after `patience`, if there is one, given up.
pub async fn answered<T>(
    env: &OsEnv,
    at: SocketAddr,
    patience: Option<Duration>,
    asked: impl Future<Output = Result<T, MdsError>>,
) -> Result<T> {
    let mut asked = pin!(asked);
    let mut waited = Duration::ZERO;
    loop {
        match select(asked, pin!(env.sleep(SILENCE_SAID_EACH))).await {
            Either::Left((answer, _)) => {
                return answer.with_context(|| format!("the metadata server at {at}"));
            }
            Either::Right(((), waiting)) => asked = waiting,
        }
        waited += SILENCE_SAID_EACH;
        let silent = format!(
            "the metadata server at {at} has not answered for {} s: is `flipside mds` running \
             there, does the network let UDP pass, and do both have the same --key-file?",
            waited.as_secs()
        );
        if patience.is_some_and(|patience| waited >= patience) {
            bail!(silent);
        }
        warn!("{silent}");
    }
}

fn read_key(path: &Path) -> Result<Key> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    ensure!(
        mode & OTHERS == 0,
        "everybody may use this key: its mode is {:o}; make a new key with mode 600",
        mode & 0o777
    );
    let mut contents = Vec::new();
    file.take(KEY_FILE_LEN_MAX).read_to_end(&mut contents)?;
    Ok(Key::parse(&contents)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: hosts and ports are told from what is none.
    #[test]
    fn hosts_and_ports() {
        for good in ["localhost:7", "10.0.0.1:0", "[::1]:65535", "a.example:10810"] {
            assert!(good.parse::<HostPort>().is_ok(), "{good}");
        }
        for bad in ["", ":1", "localhost", "::1:7", "[::1]", "[a]:1", "host:65536", "host:x"] {
            assert_eq!(bad.parse::<HostPort>(), Err(ValueError::HostPort), "{bad}");
        }
        let at = "[::1]:7".parse::<HostPort>().unwrap().resolve().unwrap();
        assert_eq!(at, "[::1]:7".parse().unwrap());
    }

    /// Goal: datagrams are of sizes that the protocol and UDP can have.
    #[test]
    fn sizes_of_datagrams() {
        for good in [1200, 1472, 8972, 65507] {
            assert_eq!(good.to_string().parse(), Ok(DatagramSize(good)));
        }
        for bad in ["1199", "65508", "1K", "-1", ""] {
            assert_eq!(bad.parse::<DatagramSize>(), Err(ValueError::DatagramSize));
        }
    }

    /// Goal: a key is read where only its owner can; else one is told what is wrong.
    #[test]
    fn keys_are_secret() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let read = |contents: &str, mode: u32| {
            std::fs::write(&path, contents).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            KeyArgs { key_file: Some(path.clone()) }.read().map(|key| key.is_some())
        };
        let digits = "5a".repeat(32) + "\n";
        assert!(read(&digits, 0o600).unwrap() && read(&digits, 0o640).unwrap());
        assert!(format!("{:#}", read(&digits, 0o644).unwrap_err()).contains("mode is 644"));
        assert!(format!("{:#}", read("secret", 0o600).unwrap_err()).contains("64 hex digits"));
        assert!(KeyArgs { key_file: None }.read().unwrap().is_none());
    }
}
