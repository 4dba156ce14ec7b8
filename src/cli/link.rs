//! The metadata server that a pool is served with: in this process, or over the network.
//!
//! # Contract
//!
//! **Agreement**: the superblock says which of the two has the pool; the other is refused, with
//! what to say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tracing::{error, warn};

use super::device::PoolMember;
use super::network::MdsArgs;
use crate::env::aside::Aside;
use crate::env::os::{OsDisk, OsEnv, OsLink};
use crate::format::superblock::{MetadataAt, Superblock};
use crate::mds::opening::MetadataPlace;
use crate::mds::pools::Pools;
use crate::mds::{embedded, server, wire};

/// How long the metadata server may take to close its store.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(10);
const CLOSE_PAUSE: Duration = Duration::from_millis(5);

/// A pool's metadata server, as this process reaches it.
pub struct MetadataServer {
    /// The channel to it.
    pub link: OsLink,
    /// The server itself, where it is in this process.
    pub own: Option<OwnServer>,
    /// Where it is on the network.
    pub at: Option<SocketAddr>,
}

/// A metadata server on a thread of this process, and the claim to the device that its store is on.
pub struct OwnServer {
    thread: JoinHandle<()>,
    _claim: OsDisk,
}

/// Refuses a server that is not the one that has the pool.
pub fn check_place(args: &MdsArgs, first: &Superblock) -> Result<()> {
    match (first.metadata, &args.mds) {
        (MetadataAt::Server, None) => bail!(
            "the metadata of pool {} are at a metadata server: say --mds HOST:PORT",
            first.pool
        ),
        (MetadataAt::Device, Some(_)) => bail!(
            "pool {} has its metadata on its first device: leave out --mds (only a pool made by \
             `flipside format --mds` is served with it)",
            first.pool
        ),
        _ => Ok(()),
    }
}

/// Reaches the server over the network where `args` name one, or else opens the store on the first
/// device and starts the server on its thread.
pub fn connect(
    env: &OsEnv,
    args: &MdsArgs,
    first: &PoolMember,
    aside: Arc<Aside>,
) -> Result<MetadataServer> {
    if let Some(mds) = &args.mds {
        let at = mds.resolve()?;
        return Ok(MetadataServer { link: args.link_to(env.ring(), at)?, own: None, at: Some(at) });
    }
    let (link, own) = start_own(first, aside)
        .with_context(|| format!("the metadata on {}", first.claimed.path.display()))?;
    Ok(MetadataServer { link, own: Some(own), at: None })
}

/// Opens the store on the first device and starts the server on its thread.
pub fn start_own(first: &PoolMember, aside: Arc<Aside>) -> Result<(OsLink, OwnServer)> {
    let place = MetadataPlace::on(&first.claimed.path, &first.superblock)?;
    let opened = place.beside(aside).open()?;
    if let Some(damage) = opened.rebuilt {
        error!(%damage, "the metadata store was damaged; a new one was made from its second copy");
    }
    let embedded = embedded::start(server::Server::new(Pools::single(opened.catalog))?)?;
    let link = OsLink::new(wire::PAYLOAD_MAX, embedded.requests, embedded.replies);
    Ok((link, OwnServer { thread: embedded.thread, _claim: first.claimed.disk.clone() }))
}

impl OwnServer {
    /// Waits until it has closed its store. All handles of the link must be gone.
    pub fn await_end(self) {
        let mut waited = Duration::ZERO;
        while !self.thread.is_finished() {
            if waited >= CLOSE_TIME_MAX {
                warn!("the metadata server has not ended; its store is as after a crash");
                return;
            }
            std::thread::sleep(CLOSE_PAUSE);
            waited += CLOSE_PAUSE;
        }
    }
}
