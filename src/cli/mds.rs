//! `flipside mds`: serves the metadata of many pools to targets over UDP until told to stop; and
//! `flipside mds forget`: has such a server forget a pool.
//!
//! # Contracts
//!
//! - **Ready**: a line `ready udp://HOST:PORT`, once it can be used; then the service manager is
//!   told.
//! - **Stop**: SIGTERM or SIGINT: the turn under way ends, its answers leave, the store is closed,
//!   and the exit code is 0.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::{Either, select};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::network::{self, HostPort, KeyArgs, MdsArgs};
use super::ready::say_ready;
use crate::env::Moment;
use crate::env::os::Signals;
use crate::env::os::notify::notify;
use crate::format::ids::PoolId;
use crate::front::metadata::Port;
use crate::mds::client::pools::{forget, overview};
use crate::mds::hosted;
use crate::mds::pools::Pools;
use crate::mds::server::Server;
use crate::uring::{Ring, RingOptions};

/// How long a socket that cannot receive is left alone.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  For targets on this machine:
    flipside mds --listen 127.0.0.1:10810 --store /var/lib/flipside/mds
  For targets on a network, who must have the key:
    (umask 077; openssl rand -hex 32 >/etc/flipside.key)
    flipside mds --listen 10.0.0.1:10810 --store /var/lib/flipside/mds --key-file /etc/flipside.key

  Which pools has it, and one that is not wanted any more:
    flipside status --mds 127.0.0.1:10810
    flipside mds forget 0f9c6a0e-5b0c-4d0e-9f8e-2f6d3c1b7a55 --mds 127.0.0.1:10810

The server prints 'ready udp://HOST:PORT' once it can be used. SIGTERM or SIGINT ends it.
Datagrams carry the proof that their sender has the key; they are not encrypted.";

/// Flags of `flipside mds`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Where to listen for targets; port 0 is any that is free
    #[arg(long, value_name = "HOST:PORT", required = true)]
    listen: Option<HostPort>,
    /// The directory that keeps everything, of its own; made where there is none
    #[arg(long, value_name = "PATH", required = true)]
    store: Option<PathBuf>,
    #[command(flatten)]
    key: KeyArgs,
    /// Listen beyond this machine without a key: whoever can send a datagram may do anything
    #[arg(long)]
    allow_open: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Have a metadata server forget a pool: its volumes are lost
    Forget(ForgetArgs),
}

#[derive(clap::Args)]
struct ForgetArgs {
    /// The pool, as `flipside status --mds` lists it
    #[arg(value_name = "POOL")]
    pool: Uuid,
    /// Forget it even while a target is attached, which then stops
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    mds: MdsArgs,
}

/// Serves metadata, or has a pool forgotten.
pub fn run(args: &Args) -> Result<()> {
    match (&args.command, &args.listen, &args.store) {
        (Some(Command::Forget(args)), ..) => forget_pool(args),
        (None, Some(listen), Some(store)) => serve_store(args, listen, store),
        (None, ..) => unreachable!("clap requires them"),
    }
}

fn forget_pool(args: &ForgetArgs) -> Result<()> {
    let pool = PoolId(args.pool.into_bytes());
    let force = args.force;
    let known = network::ask(&args.mds, |server| async move {
        let seen = server.answered(overview(&server.env, server.link()?)).await?;
        server.answered(forget(&server.env, server.link()?, pool, force)).await?;
        Ok(seen.pools.iter().any(|of| of.pool == pool))
    })?;
    ensure!(known, "the metadata server knows no pool {pool}");
    println!("pool {pool} is forgotten");
    Ok(())
}

fn serve_store(args: &Args, listen: &HostPort, store: &Path) -> Result<()> {
    let key = args.key.read()?;
    let address = listen.resolve()?;
    ensure!(
        key.is_some() || args.allow_open || address.ip().is_loopback(),
        "{address} can be reached from other machines, and without a key whoever sends a datagram \
         may do anything: give a --key-file, listen at 127.0.0.1, or say --allow-open"
    );
    let ring = Ring::new(&RingOptions::default())?;
    let signals = Signals::new(&ring)?;
    let port = Port::bind(&ring, address, key).with_context(|| format!("{address}"))?;
    let server = open(store)?;
    let served = ring.block_on(serve(ring.clone(), port, server, signals));
    ring.shutdown();
    served
}

/// The server of what the store holds.
fn open(path: &Path) -> Result<Server<SocketAddr>> {
    let store = hosted::open(path)?;
    let pools = Pools::hosted(store).with_context(|| path.display().to_string())?;
    let server = Server::new(pools).with_context(|| path.display().to_string())?;
    for (pool, reason) in server.pools().damaged() {
        error!(
            %pool, reason,
            "a pool is damaged and not served; the others are. Bring the store back from a copy, \
             or have the pool forgotten"
        );
    }
    Ok(server)
}

async fn serve(
    ring: Ring,
    port: Port,
    mut server: Server<SocketAddr>,
    signals: Signals,
) -> Result<()> {
    say_ready([format!("udp://{}", port.at())]);
    let mut stopping = Box::pin(signals.next());
    loop {
        let turn = match select(stopping, Box::pin(port.turn())).await {
            Either::Left((signal, _)) => {
                info!(signal = ?signal?, "stopping");
                // The manager waits for the end in any case.
                let _ = notify("STOPPING=1");
                return Ok(());
            }
            Either::Right((turn, waiting)) => {
                stopping = waiting;
                match turn {
                    Ok(turn) => turn,
                    Err(error) => {
                        warn!(%error, "datagrams could not be received; trying again");
                        ring.sleep(RECEIVE_PAUSE).await;
                        continue;
                    }
                }
            }
        };
        server.note_unauthenticated(port.unauthenticated());
        let answers = server.handle(Moment(ring.now_ns()), turn);
        if let Some(error) = server.failure() {
            // Not answered: targets take a silent server for one that comes back, as it may.
            let error = anyhow::Error::new(error.clone());
            return Err(error.context("the server ends; mend its store and start it again"));
        }
        port.answer(answers);
    }
}
