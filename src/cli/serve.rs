//! `flipside serve`: serves the volumes of a pool until told to stop.
//!
//! # Contracts
//!
//! - **Ready**: a line `ready URI` for each export and address, once it can be used (for each
//!   address where there is no volume); then the service manager is told.
//! - **Stop**: SIGTERM or SIGINT: no more requests are taken, those under way are answered, all is
//!   committed, and the exit code is 0. A second signal does not wait for clients.

use std::iter;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::future::{Either, select};
use tracing::{debug, info, warn};

use super::block_devices::{Devices, DevicesArgs, Listen, Served};
use super::control::{make_runtime_dir, socket_path};
use super::device::{self, Claimed, PoolMember};
use super::follow;
use super::link::{self, MetadataServer, OwnServer};
use super::network::MdsArgs;
use super::nvram::{self, FlagsArgs};
use super::operator::{Target, Uris};
use super::owner::{OwnerArgs, Reservations};
use super::ready::say_ready;
use super::status::{FlagsReport, MdsReport, Recovery, Report};
use super::tuning::TuningArgs;
use super::values::{
    CommitInterval, DoubtTimeout, Grant, MdsTimeout, Mode, Settle, Size, SlowIo, WarnFull,
};
use super::warm::{self, Kept, WarmArgs};
use crate::env::Env as _;
use crate::env::aside::Aside;
use crate::env::flags::FlagsRegion;
use crate::env::latch::Latching;
use crate::env::os::activation::passed_sockets;
use crate::env::os::notify::notify;
use crate::env::os::{OsEnv, OsLink, OsNvram, Signals};
use crate::env::region::DeviceRegion;
use crate::format::ids::PoolId;
use crate::format::superblock::{FlagsPlace, Superblock};
use crate::front::control;
use crate::front::listen::{Address, Bound, raise_file_limit};
use crate::front::nbd::{Limits, Server};
use crate::observe::{Latencies, SlowWatch};
use crate::unit::grant::default_level;
use crate::unit::{Config, Member, Ownership, Unit, UnitParts, Volume};

/// How long clients are waited for when the target stops.
pub(super) const DRAIN_TIME_MAX: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  On a unix socket of its own (its path is printed):
    flipside serve /dev/sdx
  On a socket that a group may use, and on the loopback's port 10809:
    flipside serve --listen unix:/run/vm.sock --socket-mode 660 --listen tcp:10809 /dev/sdx
  As a file says, and more in the log:
    flipside --log debug serve --config /etc/flipside.toml
  With the journal in persistent memory, or in a file on a faster disk:
    flipside serve --flags nvram --nvram /mnt/pmem/flags /dev/sdx
  Beside the target that serves it, to read only, with the flags at the metadata server:
    flipside serve --mds 10.0.0.1:10810 --follow /dev/sdx
  To attach a volume:
    nbd-client -unix /run/vm.sock -N vol0 /dev/nbd0
  As a block device of this machine, /dev/ublkb0 (needs root and `modprobe ublk_drv`):
    flipside serve --listen ublk:0 /dev/sdx

The target prints 'ready nbd+unix:///vol0?socket=PATH' or 'ready nbd://HOST:PORT/vol0' for each
volume once it can be used, and 'ready /dev/ublkbID' for each block device. SIGTERM or SIGINT
commits everything and ends it.

Exit codes:
  0  stopped as it was told to, with everything committed
  1  failed; the reason is on the standard error
  2  the command line or the configuration file is wrong

Sockets that a service manager passes (LISTEN_FDS) are listened on as well.
Without --listen and --control, sockets are in /run/flipside (root) or $XDG_RUNTIME_DIR/flipside.";

/// Flags of `flipside serve`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where to listen for NBD clients: unix:PATH, or tcp:[HOST:]PORT, by default the loopback; or
    /// ublk[:ID], for a block device of the kernel, /dev/ublkbID, of each volume there is now
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Listen>,
    /// Permissions of unix sockets for clients
    #[arg(long, value_name = "OCTAL", default_value = "600")]
    socket_mode: Mode,
    /// How long written data stays uncommitted at most, unless a client flushes
    #[arg(long, value_name = "TIME|never", default_value = "5s")]
    commit_interval: CommitInterval,
    /// When journal space is given back
    #[arg(long, value_enum, default_value = "pressure")]
    settle: Settle,
    /// Warn in the log when so much of the space for volumes is in use
    #[arg(long, value_name = "PERCENT,...|never", default_value = "80%,90%")]
    warn_full: WarnFull,
    /// Discard extents that are given back, so that a disk or a file under it can free them
    #[arg(long)]
    discard: bool,
    /// Refuse the clients' writes
    #[arg(long)]
    read_only: bool,
    /// Read the volumes beside the target that writes them, maybe on another machine with the same
    /// devices: nothing is claimed or written; needs the flags at the metadata server
    #[arg(long, requires = "mds", conflicts_with_all = ["shared", "fenced"])]
    follow: bool,
    /// The socket for status, commit, settle and volume
    #[arg(long, value_name = "PATH")]
    pub(super) control: Option<PathBuf>,
    /// Warn in the log of a request, or an operation on a disk, that takes longer
    #[arg(long, value_name = "TIME|never", default_value = "1s")]
    pub(super) slow_io: SlowIo,
    /// With the flags at the metadata server: how long a commit waits for it while it is silent,
    /// before the volumes take no more writes
    #[arg(long, value_name = "TIME|never", default_value = "10m")]
    mds_timeout: MdsTimeout,
    /// How long a request waits for blocks of which it is not known whether they were committed
    #[arg(long, value_name = "TIME", default_value = "30s")]
    doubt_timeout: DoubtTimeout,
    /// How many free extents to keep in hand, for when the metadata server is away [default: all;
    /// with --mds a sixteenth of the pool, and 1024 at least]
    #[arg(long, value_name = "EXTENTS|all")]
    grant: Option<Grant>,
    /// The most data that one atomic request (flipside txn apply) may have on this target
    #[arg(long, value_name = "SIZE", default_value = "16M")]
    txn_max: Size,
    /// A TOML file with any of these flags, by their names; the command line goes before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    pub(super) mds: MdsArgs,
    #[command(flatten)]
    pub(super) owner: OwnerArgs,
    #[command(flatten)]
    pub(super) warm: WarmArgs,
    #[command(flatten)]
    flags: FlagsArgs,
    #[command(flatten)]
    devices_of_kernel: DevicesArgs,
    #[command(flatten)]
    tuning: TuningArgs,
    /// All devices of the pool, in any order
    #[arg(required_unless_present = "config", value_name = "DEVICE")]
    pub(super) devices: Vec<PathBuf>,
}

impl Args {
    /// Whether volumes are to be block devices of the kernel.
    pub(super) fn serves_devices(&self) -> bool {
        self.listen.iter().any(|place| matches!(place, Listen::Ublk(_)))
    }
}

/// Serves a pool.
pub fn run(args: Args) -> Result<()> {
    // Before anything else is opened, which could take their numbers.
    let passed = passed_sockets().context("the sockets of the service manager")?;
    args.tuning.pin()?;
    let buffers_len = args.tuning.buffers_len()?;
    let (ring, env) = device::environment_with(&args.tuning.ring(), buffers_len)?;
    // Before any other thread is started, so that the signals come to this one alone.
    let signals = Signals::new(&ring)?;
    match raise_file_limit() {
        Ok(limit) => debug!(limit, "open files"),
        Err(error) => warn!("the limit of open files stays as it is: {error}"),
    }
    let served = ring.block_on(async {
        if args.follow {
            let followed = follow::serve(env, args, passed, signals).await;
            return (followed.map(|()| (Ok(()), None)), Reservations::default());
        }
        let mut reserved = Reservations::default();
        (serve(env, args, passed, signals, &mut reserved).await, reserved)
    });
    // Tasks hold the link to the metadata server, which ends when the last of them is gone.
    ring.shutdown();
    // Unless they are kept, reservations end here, when nothing is on its way to the devices.
    let (served, _reserved) = served;
    let (ended, own_server) = served?;
    if let Some(own_server) = own_server {
        own_server.await_end();
    }
    ended
}

/// How many extents of the pool's to keep in hand: all, where there is no other who serves them.
fn grant(args: &Args, pool_extents: u32) -> Option<u32> {
    let chosen = || args.mds.mds.is_some().then(|| default_level(pool_extents));
    args.grant.map_or_else(chosen, |grant| grant.0)
}

/// Serves until told to stop; how that went, and the metadata server that is left.
async fn serve(
    env: OsEnv,
    args: Args,
    passed: Vec<OwnedFd>,
    signals: Signals,
    reserved: &mut Reservations,
) -> Result<(Result<()>, Option<OwnServer>)> {
    warm::replace(&env, &args).await?;
    let claimed = device::claim_all(&env, &args.devices).await?;
    let ownership = args.owner.secure(&env, &args.mds, &claimed, reserved).await?;
    let [first, ..] = claimed.as_slice() else { bail!("no device") };
    let (pool, unit) = device::identify(&env, first).await?;
    let (clients, operators) = bind(&args, passed, pool)?;
    let kept = args.warm.open(pool, unit);
    let Found { members, aside, nvram, flags, metadata } =
        Found::find(&env, &args, claimed, &kept).await?;
    let MetadataServer { link, own: own_server, at: mds } = metadata;
    let slow = Rc::new(SlowWatch::new(args.slow_io.0));
    members.iter().for_each(|member| member.claimed.disk.watch(Rc::clone(&slow)));
    let latencies = Rc::new(Latencies::watched(slow));
    let mut config = config(&args, &members[0].superblock, ownership);
    config.nvram_write_max = flags.write_max;
    let mut parts = parts(&env, config, &members, nvram, link, aside, latencies);
    parts.warm = kept.memory();
    let recovered = Box::pin(Unit::recover(parts));
    // A recovery that is cut short is as one that was never begun.
    let (unit, report) = match select(recovered, Box::pin(signals.next())).await {
        Either::Left((recovered, _)) => recovered?,
        Either::Right(_) => {
            info!("told to stop before anything was served");
            return Ok((Ok(()), own_server));
        }
    };
    reserved.keep();
    unit.join_groups().await.context("the consistency groups of the pool")?;
    let recovery = Recovery::from(report);
    let Recovery { groups, pairs, told, took_us, .. } = recovery;
    info!(%pool, groups, pairs, told, took_us, "recovered pool {pool} {recovery}");
    let (counters, latencies) = (unit.counters(), unit.latencies());
    let (ring, buffers) = (env.ring(), env.buffers());
    let limits = Limits { read_only: args.read_only, ..args.tuning.limits() };
    let server: Server<Volume<OsEnv>> =
        Server::new(ring, buffers, limits, Rc::clone(&counters), Rc::clone(&latencies))?;
    for volume in unit.volumes() {
        server.add_export(volume);
    }
    let addresses = clients.iter().map(|bound| Box::new(bound.uris()) as Uris).collect();
    for bound in clients {
        server.listen(bound)?;
    }
    let fixed = Report { recovery, ..fixed_report(&members, flags, mds) };
    let target = Target::new(&env, unit.clone(), server.clone(), latencies, addresses, fixed);
    let exports = target.exports();
    control::serve(ring, operators, target.clone())?;
    let served = Served { server: &server, unit: &unit, pool, read_only: args.read_only };
    let devices = Devices::start(&env, &args.listen, &args.devices_of_kernel, served).await?;
    say_ready(exports.into_iter().chain(devices.paths()));
    let told = select(Box::pin(signals.next()), Box::pin(target.replaced())).await;
    let Either::Left((signal, _)) = told else {
        return Err(make_way(&env, &unit, &server, &signals).await);
    };
    info!(signal = ?signal?, "stopping");
    devices.stop().await;
    let ended = stop(&env, &unit, &server, &signals).await;
    if ended.is_ok() {
        reserved.release();
        kept.remove();
    }
    Ok((ended, own_server))
}

/// What a unit is found on.
struct Found {
    members: Vec<PoolMember>,
    aside: Arc<Aside>,
    nvram: Option<OsNvram>,
    flags: FlagsReport,
    metadata: MetadataServer,
}

impl Found {
    /// Mends and completes what has to be, and starts the metadata server. All of that flushes the
    /// devices: what outlives the process says so.
    async fn find(env: &OsEnv, args: &Args, claimed: Vec<Claimed>, kept: &Kept) -> Result<Self> {
        let aside = kept.aside();
        aside.begins();
        let mut members = device::recognise(env, claimed).await?;
        let (nvram, flags) = nvram::place(env, &args.flags, &mut members).await?;
        let metadata = link::connect(env, &args.mds, &members[0], Arc::clone(&aside))?;
        aside.ended(Ok(()))?;
        if args.warm.cold {
            kept.give_up();
        }
        Ok(Self { members, aside, nvram, flags, metadata })
    }
}

/// What does not change of a target's reports.
pub(super) fn fixed_report(
    members: &[PoolMember],
    flags: FlagsReport,
    mds: Option<SocketAddr>,
) -> Report {
    let [first, ..] = members else { unreachable!("a pool has a device") };
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pool: first.superblock.pool.to_string(),
        pid: std::process::id(),
        devices: members.iter().map(|member| member.claimed.path.display().to_string()).collect(),
        flags,
        mds: mds.map(MdsReport::new),
        ..Report::default()
    }
}

/// What the unit is told of all that can be tuned.
fn config(args: &Args, first: &Superblock, ownership: Ownership) -> Config {
    let mut config = Config {
        commit_interval: args.commit_interval.0,
        settle: args.settle.into(),
        warn_full: args.warn_full.0.clone(),
        discard: args.discard,
        mds_timeout: args.mds_timeout.0,
        ownership,
        grant: grant(args, first.pool_extents()),
        doubt_timeout: args.doubt_timeout.0,
        txn_max: args.txn_max.0,
        ..Config::default()
    };
    args.tuning.configure(&mut config);
    config
}

/// Listens for clients and operators, before anything is recovered: who comes early waits.
pub(super) fn bind(args: &Args, passed: Vec<OwnedFd>, pool: PoolId) -> Result<(Vec<Bound>, Bound)> {
    // The one that writes and one that follows may be on one machine.
    let name = if args.follow { format!("{pool}.follow") } else { pool.to_string() };
    let control = match &args.control {
        Some(path) => path.clone(),
        None => socket_path(&make_runtime_dir()?, &name),
    };
    let operators = Address::Unix(control).bind(crate::front::listen::SOCKET_MODE_DEFAULT)?;
    let own = if args.listen.is_empty() && passed.is_empty() {
        vec![Address::Unix(make_runtime_dir()?.join(format!("{name}.nbd")))]
    } else {
        Vec::new()
    };
    let sockets = args.listen.iter().filter_map(|place| match place {
        Listen::Socket(address) => Some(address),
        Listen::Ublk(_) => None,
    });
    let addresses = sockets.chain(&own);
    let bound = addresses.map(|address| address.bind(args.socket_mode.0));
    let clients = passed.into_iter().map(Bound::adopt).chain(bound);
    Ok((clients.collect::<Result<_, _>>()?, operators))
}

/// What the unit is made of.
pub(super) fn parts(
    env: &OsEnv,
    config: Config,
    members: &[PoolMember],
    nvram: Option<OsNvram>,
    link: OsLink,
    aside: Arc<Aside>,
    latencies: Rc<Latencies>,
) -> UnitParts<OsEnv> {
    let [first, ..] = members else { unreachable!("a pool has a device") };
    // The metadata server is on the first.
    let asides = iter::once(aside).chain(iter::repeat_with(|| Arc::new(Aside::alone())));
    let devices: Vec<_> = members
        .iter()
        .zip(asides)
        .map(|(member, aside)| Member {
            disk: Latching::beside(member.claimed.disk.clone(), aside),
            extents: member.superblock.layout.extents,
        })
        .collect();
    let [Member { disk, .. }, ..] = devices.as_slice() else { unreachable!("as many") };
    let region = first.superblock.layout.regions.expect("the first device has the regions").unit;
    UnitParts {
        env: env.clone(),
        pool: first.superblock.pool,
        unit: first.superblock.unit,
        geometry: first.superblock.geometry,
        reserve: first.superblock.journal_reserve,
        region: match (first.superblock.flags, nvram) {
            (FlagsPlace::Mds, _) => None,
            (_, Some(nvram)) => Some(FlagsRegion::Nvram(nvram)),
            (_, None) => {
                let region = DeviceRegion::new(disk.clone(), region.offset, region.len);
                Some(FlagsRegion::Device(region))
            }
        },
        devices,
        link,
        config,
        counters: Rc::default(),
        latencies,
        warm: None,
    }
}

/// Answers what is under way, commits everything, and ends the process as if it were killed, so
/// that the kernel keeps the block devices for the successor: what it was not answered it asks
/// again there. Returns only why that cannot be.
async fn make_way(
    env: &OsEnv,
    unit: &Unit<OsEnv>,
    server: &Server<Volume<OsEnv>>,
    signals: &Signals,
) -> anyhow::Error {
    info!("making way for a successor");
    drain(env, server, signals).await;
    match unit.commit(None).await.context("not everything could be committed") {
        Ok(()) => std::process::exit(0),
        Err(error) => error,
    }
}

/// Answers what is under way, and takes no more requests from clients of sockets.
async fn drain(env: &OsEnv, server: &Server<Volume<OsEnv>>, signals: &Signals) {
    let drained = Box::pin(server.drain());
    let enough = select(Box::pin(signals.next()), Box::pin(env.sleep(DRAIN_TIME_MAX)));
    if let Either::Right(_) = select(drained, enough).await {
        warn!("{} clients are left behind", server.connections_open());
    }
}

/// Answers what is under way, commits everything, and takes no more requests.
async fn stop(
    env: &OsEnv,
    unit: &Unit<OsEnv>,
    server: &Server<Volume<OsEnv>>,
    signals: &Signals,
) -> Result<()> {
    // The manager waits for the end in any case.
    let _ = notify("STOPPING=1");
    drain(env, server, signals).await;
    unit.shut_down().await.context("not everything could be committed")?;
    info!("everything is committed");
    Ok(())
}
