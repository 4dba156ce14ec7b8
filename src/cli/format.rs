//! `flipside format`: makes a pool of volumes on one or more devices.
//!
//! # Contracts
//!
//! - **Refusal**: nothing is written before all that can be checked was.
//! - **Ordering**: what the devices held is made unrecognisable first and the superblocks are
//!   written last, that of the first device after all others: a format that is cut short leaves no
//!   pool, neither the old nor half of a new one.
//! - **At a metadata server** the pool is registered and its volumes are made before anything is
//!   written to the devices, so that a server that refuses or is silent costs nothing. Cut short
//!   after that, the server has a pool that no device knows: the same command makes another one,
//!   and `flipside mds forget` removes the first, whose name was said before it was registered.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use uuid::Uuid;

use super::device::{self, Claimed};
use super::inspect::refuse_if_in_use;
use super::network::{MdsArgs, Remote};
use super::nvram::Place;
use super::owner::host;
use super::plan::{PoolPlan, Wish};
use super::values::{Percent, Size, VolumeSpec};
use super::zero;
use crate::env::os::OsEnv;
use crate::env::region::DeviceRegion;
use crate::env::{Disk as _, Env as _};
use crate::format::ids::Incarnation;
use crate::format::layout::{DeviceFacts, DeviceLayout, Geometry, HEAD_LEN, Span};
use crate::format::superblock::{FlagsPlace, MetadataAt, Superblock};
use crate::format::superblock_io;
use crate::journal::Journal;
use crate::mds::catalog::Fault;
use crate::mds::client::Client;
use crate::mds::client::pools::{forget, overview, register};
use crate::mds::opening::{MetadataPlace, pool_spec};
use crate::mds::records::Claim;

/// Memory for I/O, in bytes.
const BUFFERS_LEN: usize = 16 << 20;

/// What `format` makes where it is not told otherwise.
const BLOCK_SIZE: u32 = 4 << 10;
const EXTENT_SIZE: u32 = 1 << 20;
const RESERVE: u8 = 10;

/// How a device is formatted that holds something.
const FORCE: &str = "say --force if that is what you want";

const EXAMPLES: &str = "\
Examples:
  One volume of four fifths of a disk, the rest for journaling:
    flipside format /dev/sdx
  Two volumes on two disks:
    flipside format --volume db=200G --volume logs=20G /dev/sdx /dev/sdy
  Of which a metadata server keeps the metadata:
    flipside format --mds 10.0.0.1:10810 --key-file /etc/flipside.key --volume db=200G /dev/sdx
  A file, to try it out:
    truncate -s 1G pool.img && flipside format pool.img

Sizes are powers of two: K, M, G and T stand for KiB, MiB, GiB and TiB. Volumes are thin: together
they may be larger than the pool.";

/// Flags of `flipside format`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A volume to make; without any, one named vol0 of four fifths of the space
    #[arg(long = "volume", value_name = "NAME=SIZE")]
    volumes: Vec<VolumeSpec>,
    /// The unit of allocation: a power of two from 16K to 16M, 8 to 256 blocks
    #[arg(long, value_name = "SIZE", default_value = "1M")]
    extent_size: Size,
    /// The unit of journaling: a power of two from 512 to 64K, no less than the devices' sector
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    block_size: Size,
    /// Space that volumes cannot fill, so that a full pool can still be overwritten
    #[arg(long, value_name = "PERCENT", default_value = "10%")]
    journal_reserve: Percent,
    /// Where flags and journal are kept: device, or mds for the metadata server (for nvram, say
    /// device here and --flags nvram to serve)
    #[arg(long, value_enum, default_value = "device")]
    flags: Place,
    #[command(flatten)]
    mds: MdsArgs,
    /// Format even what holds something already: that is lost
    #[arg(long)]
    force: bool,
    /// The disks, partitions, loop devices or files; the first one holds the metadata
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
}

/// Makes a pool.
pub fn run(args: Args) -> Result<()> {
    let geometry = geometry(&args)?;
    let (ring, env) = device::environment(BUFFERS_LEN)?;
    let made = ring.block_on(async move { make(&env, &args, geometry).await });
    ring.shutdown();
    let plan = made?;
    let [first, ..] = plan.superblocks.as_slice() else { unreachable!("a pool has a device") };
    println!(
        "pool {} of {} extents of {}",
        first.pool,
        first.pool_extents(),
        Size(u64::from(geometry.extent_size()))
    );
    for VolumeSpec { name, size } in &plan.volumes {
        println!("volume {name} of {size}");
    }
    Ok(())
}

fn geometry(args: &Args) -> Result<Geometry> {
    let small = |size: Size| u32::try_from(size.0).map_err(|_| anyhow!("{size} is too large"));
    let block_size = small(args.block_size).context("--block-size")?;
    let extent_size = small(args.extent_size).context("--extent-size")?;
    Ok(Geometry::new(block_size, extent_size)?)
}

async fn make(env: &OsEnv, args: &Args, geometry: Geometry) -> Result<PoolPlan> {
    let claimed = device::claim_all(env, &args.devices).await?;
    let facts: Vec<_> = claimed
        .iter()
        .map(|of| DeviceFacts { size: of.disk.len(), sector: of.disk.sector() })
        .collect();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let wish = Wish {
        geometry,
        reserve: args.journal_reserve,
        volumes: &args.volumes,
        now_s: now.map_or(0, |since| since.as_secs()),
        metadata: match args.mds.mds {
            Some(_) => MetadataAt::Server,
            None => MetadataAt::Device,
        },
        flags: match args.flags {
            Place::Device => FlagsPlace::Device,
            Place::Mds => FlagsPlace::Mds,
            Place::Nvram => bail!(
                "a pool begins with its flags on the device: `flipside serve --flags nvram` moves \
                 them"
            ),
        },
    };
    let plan = PoolPlan::new(wish, &facts, || Uuid::new_v4().into_bytes())?;
    if !args.force {
        for of in &claimed {
            refuse_if_in_use(&of.path, of.disk.len(), FORCE)?;
        }
    }
    if args.mds.mds.is_none() {
        write(env, &plan, &claimed).await?;
        return Ok(plan);
    }
    let server = RemotePool { server: Remote::new(env, &args.mds)?, plan: &plan };
    server.make().await?;
    if let Err(error) = write(env, &plan, &claimed).await {
        server.forget().await;
        return Err(error);
    }
    Ok(plan)
}

/// Makes a pool of one device with one volume and its flags there, as `format` would that is told
/// nothing else, whatever the device holds.
pub async fn plain(
    env: &OsEnv,
    device: &Claimed,
    volume: VolumeSpec,
    flags: FlagsPlace,
) -> Result<()> {
    let facts = DeviceFacts { size: device.disk.len(), sector: device.disk.sector() };
    let wish = Wish {
        geometry: Geometry::new(BLOCK_SIZE, EXTENT_SIZE)?,
        reserve: Percent(RESERVE),
        volumes: &[volume],
        now_s: 0,
        metadata: MetadataAt::Device,
        flags,
    };
    let plan = PoolPlan::new(wish, &[facts], || Uuid::new_v4().into_bytes())?;
    write(env, &plan, std::slice::from_ref(device)).await
}

/// A pool as a metadata server of its own has it.
struct RemotePool<'a> {
    server: Remote,
    plan: &'a PoolPlan,
}

impl RemotePool<'_> {
    fn superblock(&self) -> &Superblock {
        self.plan.superblocks.first().expect("a pool has a device")
    }

    /// Registers the pool and makes its volumes, or leaves nothing of it.
    async fn make(&self) -> Result<()> {
        let (server, superblock) = (&self.server, self.superblock());
        let pool = superblock.pool;
        eprintln!("flipside: registering pool {pool} with the metadata server at {}", server.at);
        let spec = pool_spec(superblock);
        // Whose answer is not understood must not be told to do anything.
        server.answered(overview(&server.env, server.link()?)).await?;
        server.answered(register(&server.env, server.link()?, pool, &spec)).await?;
        let made = self.make_volumes().await;
        if made.is_err() {
            self.forget().await;
        }
        made
    }

    /// Attaches as the unit before its first start, so that this counts for nothing.
    async fn make_volumes(&self) -> Result<()> {
        let Superblock { pool, unit, flags, .. } = *self.superblock();
        let claim = Claim::of(pool, unit, Incarnation::default());
        let counted_there = flags == FlagsPlace::Mds;
        let incarnation = claim.incarnation.filter(|_| !counted_there);
        let claim = Claim { host: host(None)?, incarnation, ..claim };
        let server = &self.server;
        let client = Client::attach(server.env.clone(), server.link()?, claim);
        let client = server.answered(client).await?;
        for VolumeSpec { name, size } in &self.plan.volumes {
            let made = server.answered(client.create_volume(name, size.0)).await;
            made.with_context(|| format!("volume {name}"))?;
        }
        server.answered(client.detach()).await
    }

    /// Has the server forget the pool, as far as it can be told.
    async fn forget(&self) {
        let pool = self.superblock().pool;
        let Ok(link) = self.server.link() else { return };
        let forgotten = forget(&self.server.env, link, pool, true);
        let forgotten = self.server.answered(forgotten).await;
        if let Err(error) = forgotten {
            eprintln!("flipside: pool {pool} stays registered ({error:#}): flipside mds forget");
        }
    }
}

/// Writes what was planned, in the order that the module promises.
async fn write(env: &OsEnv, plan: &PoolPlan, claimed: &[Claimed]) -> Result<()> {
    let layouts = plan.superblocks.iter().map(|superblock| &superblock.layout);
    for (of, layout) in claimed.iter().zip(layouts) {
        zero::zero(&of.path, &ends(layout))?;
    }
    let (Some(first), Some(superblock)) = (claimed.first(), plan.superblocks.first()) else {
        unreachable!("a pool has a device");
    };
    let regions = superblock.layout.regions.expect("the first device has the regions");
    zero::zero(&first.path, &[regions.unit])?;
    if superblock.metadata == MetadataAt::Device {
        create_store(&first.path, plan).with_context(|| {
            format!("the metadata cannot be stored on {}", first.path.display())
        })?;
    }
    write_journal(env, first, superblock).await?;
    for (of, superblock) in claimed.iter().zip(&plan.superblocks).rev() {
        superblock_io::write(&of.disk, env.buffers(), superblock)
            .await
            .with_context(|| format!("{} cannot be written", of.path.display()))?;
    }
    Ok(())
}

/// Lays out an empty journal; its region stays unused where the flags are at the metadata server.
async fn write_journal(env: &OsEnv, first: &Claimed, superblock: &Superblock) -> Result<()> {
    if superblock.flags == FlagsPlace::Mds {
        return Ok(());
    }
    let regions = superblock.layout.regions.expect("the first device has the regions");
    let region = DeviceRegion::new(first.disk.clone(), regions.unit.offset, regions.unit.len);
    let pairs = superblock.pool_extents();
    Journal::format(&region, superblock.pool, superblock.unit, pairs, env.buffers())
        .await
        .map_err(|error| anyhow!("{error}"))
}

/// The parts of a device where others look for what they know.
fn ends(layout: &DeviceLayout) -> [Span; 2] {
    let start = (layout.size - HEAD_LEN) / zero::ALIGN * zero::ALIGN;
    [Span { offset: 0, len: HEAD_LEN }, Span { offset: start, len: layout.size - start }]
}

/// Makes the metadata server's store, with the volumes in it.
fn create_store(path: &Path, plan: &PoolPlan) -> Result<()> {
    let [superblock, ..] = plan.superblocks.as_slice() else {
        unreachable!("a pool has a device");
    };
    let mut catalog = MetadataPlace::on(path, superblock)?.create()?;
    for VolumeSpec { name, size } in &plan.volumes {
        let made = catalog.create_volume(name, size.0);
        made.map_err(|fault| match fault {
            Fault::Refused(refusal, _) => anyhow!("volume {name}: {refusal}"),
            Fault::Store(error) => error.into(),
        })?;
    }
    ensure!(catalog.pool().extents == superblock.pool_extents(), "the store counts differently");
    Ok(catalog.commit()?)
}
