//! `flipside metadata`: all of a pool's metadata as JSON, and back onto the same devices.
//!
//! # Contracts
//!
//! - **Refusal**: `restore` writes nothing before all that can be checked was. Onto devices that
//!   hold another pool or anything else that is known, or were served since the dump was made, or
//!   whose flags were moved since, only with `--force`.
//! - **Ordering**: the superblocks go first and come back last, that of the first device after all
//!   others: a restore that is cut short leaves no pool, and can be begun again.
//! - **Durability**: a dump takes the place of the one before it when all of it is durable.
//! - **Incarnation**: never goes backward.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use indicatif::ProgressBar;
use tempfile::NamedTempFile;

use super::device;
use super::inspect::refuse_if_in_use;
use super::nvram::create;
use super::offline::Offline;
use super::{warm, zero};
use crate::check::devices::DeviceFacts;
use crate::check::dump::{Dump, Verified};
use crate::check::metadata::volumes;
use crate::env::Nvram as _;
use crate::env::flags::FlagsRegion;
use crate::env::os::{OsDisk, OsNvram};
use crate::env::region::DeviceRegion;
use crate::env::{Disk as _, Env as _, Region};
use crate::format::ids::Incarnation;
use crate::format::layout::Span;
use crate::format::nvram::{self, NvramIdentity, REGION_START};
use crate::format::superblock::{FlagsPlace, LEN, Superblock, SuperblockError, choose};
use crate::format::superblock_io;
use crate::journal::inspect::inspect;
use crate::journal::{Journal, identity};
use crate::mds::opening::MetadataPlace;
use crate::mds::volume_table::newest;

/// Memory for I/O, in bytes.
const BUFFERS_LEN: usize = 16 << 20;
/// Zeros written to a region at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// Where the unit's region is.
type UnitRegion = FlagsRegion<DeviceRegion<OsDisk>, OsNvram>;

const EXAMPLES: &str = "\
Examples:
  Keep the metadata elsewhere, with the target stopped:
    flipside metadata dump -o pool.json /dev/sdx
  Put it back, after the metadata of the device was lost:
    flipside metadata restore pool.json /dev/sdx

A dump says where each block of each volume is, and not what is in it. It is of use as long as the
pool was not served since: restore refuses an older one unless told --force, and then whatever was
written since may be lost or mixed with what was there before.";

/// Flags of `flipside metadata`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Write all metadata of a pool that is not served as JSON
    Dump(DumpArgs),
    /// Put dumped metadata onto the same devices; what metadata they have is lost
    Restore(RestoreArgs),
}

#[derive(clap::Args)]
struct DumpArgs {
    /// Where to write it, instead of the standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The NVRAM, for a pool that was served with --flags nvram
    #[arg(long, value_name = "PATH")]
    nvram: Option<PathBuf>,
    /// All devices of the pool, in any order
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
}

#[derive(clap::Args)]
struct RestoreArgs {
    /// The NVRAM, for a pool that was served with --flags nvram; a file is made
    #[arg(long, value_name = "PATH")]
    nvram: Option<PathBuf>,
    /// Restore onto devices that hold something else, or over newer metadata: that is lost
    #[arg(long)]
    force: bool,
    /// The dump
    #[arg(value_name = "FILE")]
    dump: PathBuf,
    /// All devices of the pool; those that cannot be recognised, in the order of the dump
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
}

/// Dumps or restores.
pub fn run(args: Args) -> Result<()> {
    let (ring, env) = device::environment(BUFFERS_LEN)?;
    let done = ring.block_on(async move {
        match args.what {
            What::Dump(args) => {
                let offline = Offline::claim(&env, &args.devices, args.nvram.as_deref()).await?;
                dump(&offline, args.output.as_deref()).await
            }
            What::Restore(args) => {
                let document = read(&args.dump)?;
                let verified = document.verify();
                let verified = verified.with_context(|| args.dump.display().to_string())?;
                if let (Some(path), Some(len)) = (&args.nvram, nvram_len(&verified)) {
                    create(path, REGION_START + len, REGION_START + len)?;
                }
                let offline = Offline::claim(&env, &args.devices, args.nvram.as_deref()).await?;
                restore(&offline, verified, args.force).await
            }
        }
    });
    ring.shutdown();
    done
}

async fn dump(offline: &Offline, output: Option<&Path>) -> Result<()> {
    let found = offline.examine(&ProgressBar::hidden()).await?;
    for finding in &found.findings {
        eprintln!("flipside: {finding}");
    }
    ensure!(
        !found.store_elsewhere,
        "the metadata of this pool are at a metadata server: keep a copy of its store"
    );
    let (Some(pool), Some(home), Some((_, metadata))) = (&found.pool, &found.home, &found.metadata)
    else {
        bail!("the metadata is damaged and cannot be dumped: see above");
    };
    let store = metadata.store.as_ref().ok();
    let kept = store.map(|store| &store.kept).or_else(|| newest(&metadata.table));
    let (Some(kept), Some(_)) = (kept, volumes(metadata)) else {
        bail!("the volumes are lost and cannot be dumped: see above");
    };
    let member = |index: &Option<usize>| {
        let [first, second] = found.devices.get((*index)?)?.copies.clone();
        choose(first, second).ok().map(|(superblock, _)| superblock)
    };
    let superblocks: Option<Vec<Superblock>> = pool.members.iter().map(member).collect();
    let superblocks = superblocks.context("not all devices of the pool are there: see above")?;
    let lines = home.lines.clone();
    let incarnation = home.incarnation;
    let verified = Verified { superblocks, incarnation, kept: kept.clone(), lines };
    ensure!(
        home.in_journal == 0,
        "the data of {} blocks is in the journal alone, which a dump is not of: serve the pool and \
         stop it, which puts all data in its place, and dump then",
        home.in_journal
    );
    ensure!(
        home.in_doubt == 0,
        "{} groups of the journal are in doubt: serve the pool, so that it asks the metadata \
         server what became of their transactions, stop it, and dump then",
        home.in_doubt
    );
    let document = Dump::new(&verified, home.groups, store.map(|store| &store.catalog));
    document.verify().context("the metadata contradicts itself: run flipside check")?;
    if home.groups > 0 {
        eprintln!("flipside: {} groups of the journal were applied for the dump", home.groups);
    }
    let Some(path) = output else {
        let mut out = std::io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, &document)?;
        return Ok(writeln!(out)?);
    };
    save(&document, path).with_context(|| format!("{} was not written", path.display()))
}

/// Writes a dump into a file, durably; one that was there stays until all of it is.
fn save(document: &Dump, path: &Path) -> Result<()> {
    let there = path.symlink_metadata().is_ok();
    let is_dump = || path.metadata().is_ok_and(|of| of.is_file()) && read(path).is_ok();
    ensure!(!there || is_dump(), "what is there is no dump; name another file");
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut out = BufWriter::new(NamedTempFile::new_in(folder)?);
    serde_json::to_writer_pretty(&mut out, document)?;
    writeln!(out)?;
    let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(File::open(folder)?.sync_all()?)
}

fn read(path: &Path) -> Result<Dump> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(name)?;
    serde_json::from_reader(BufReader::new(file)).with_context(name)
}

/// The length of the NVRAM's region, where there is one.
fn nvram_len(verified: &Verified) -> Option<u64> {
    match verified.superblocks.first()?.flags {
        FlagsPlace::Nvram { len, .. } => Some(len),
        FlagsPlace::Device | FlagsPlace::Mds => None,
    }
}

async fn restore(offline: &Offline, mut verified: Verified, force: bool) -> Result<()> {
    let order = order(offline, &verified, force).await?;
    let (Some(first), Some(superblock)) = (order.first(), verified.superblocks.first()) else {
        unreachable!("a pool has a device");
    };
    let of = offline.claimed.get(*first).expect("it is one of these");
    let (disk, path) = (of.disk.clone(), of.path.clone());
    let region = region(offline, &disk, superblock, force).await?;
    let place = MetadataPlace::on(&path, superblock)?;
    let there = newest_start(offline, region.as_ref(), &place, superblock).await;
    ensure!(
        force || there <= verified.incarnation,
        "the pool was served since the dump was made (start {there}, and the dump is of {}); with \
         --force what was written since may be lost; nothing was changed",
        verified.incarnation
    );
    verified.incarnation = verified.incarnation.max(there);
    warm::void(superblock.pool, superblock.unit);
    write(offline, &verified, &order, region.as_ref(), &place).await?;
    println!(
        "pool {} restored: {} volumes, start {}",
        verified.superblocks.first().map_or_else(String::new, |of| of.pool.to_string()),
        crate::check::metadata::volumes_of(&verified.kept).len(),
        verified.incarnation
    );
    Ok(())
}

/// For each device of the dump, the position of the one that was given.
async fn order(offline: &Offline, verified: &Verified, force: bool) -> Result<Vec<usize>> {
    let wanted = &verified.superblocks;
    ensure!(
        wanted.len() == offline.claimed.len(),
        "the dump is of {} devices, and {} were given",
        wanted.len(),
        offline.claimed.len()
    );
    let mut places: Vec<Option<usize>> = vec![None; wanted.len()];
    let mut unknown = Vec::new();
    for (index, of) in offline.claimed.iter().enumerate() {
        let name = of.path.display().to_string();
        let facts: DeviceFacts =
            crate::check::devices::look(&of.disk, offline.env.buffers(), name.clone()).await;
        let [first, second] = facts.copies;
        match choose(first, second) {
            Ok((known, _)) if wanted.iter().any(|of| is_same(of, &known)) => {
                let number = known.device_index as usize;
                // Where the dump has the flags there is nothing of what was served since.
                let moved = number == 0 && wanted.first().is_some_and(|of| of.flags != known.flags);
                ensure!(
                    force || !moved,
                    "the pool's flags were moved since the dump was made; with --force what was \
                     written since may be lost; nothing was changed"
                );
                let place = places.get_mut(number).expect("it is one of them");
                ensure!(place.replace(index).is_none(), "{name} is there twice");
            }
            Ok((known, _)) => {
                ensure!(force, "{name} is of pool {}; nothing was changed", known.pool);
                unknown.push(index);
            }
            Err(error) => {
                if error == SuperblockError::NotFormatted && !force {
                    let anyway = "`--force` restores there all the same";
                    refuse_if_in_use(&of.path, of.disk.len(), anyway)?;
                }
                unknown.push(index);
            }
        }
    }
    let mut unknown = unknown.into_iter();
    let order = places.into_iter().map(|place| place.or_else(|| unknown.next()));
    let order: Vec<usize> = order.map(|place| place.expect("as many as there are")).collect();
    for (index, superblock) in order.iter().zip(wanted) {
        let of = offline.claimed.get(*index).expect("it is one of these");
        let (size, sector) = (of.disk.len(), of.disk.sector());
        crate::format::superblock::check_device(superblock, size, sector)
            .with_context(|| of.path.display().to_string())?;
    }
    Ok(order)
}

fn is_same(one: &Superblock, other: &Superblock) -> bool {
    (one.pool, one.device_index, &one.devices) == (other.pool, other.device_index, &other.devices)
}

/// Where the unit's region is to be; nowhere where the flags are at the metadata server.
async fn region(
    offline: &Offline,
    disk: &OsDisk,
    superblock: &Superblock,
    force: bool,
) -> Result<Option<UnitRegion>> {
    let span = superblock.layout.regions.expect("the first device has the regions").unit;
    match (superblock.flags, offline.nvram()) {
        (FlagsPlace::Nvram { .. }, None) => {
            bail!("the pool's flags are in NVRAM: say --nvram PATH")
        }
        (FlagsPlace::Nvram { region, len }, Some(nvram)) => {
            let wanted = NvramIdentity { pool: superblock.pool, region, len };
            ensure!(nvram.len() >= REGION_START + len, "the NVRAM is too small");
            ensure!(nvram.sector() <= superblock.sector, "the NVRAM's sectors are too large");
            let found = identity::read(&offline.env, nvram).await?;
            ensure!(
                force || found.is_none_or(|found| found == wanted),
                "the NVRAM is another one; nothing was changed"
            );
            Ok(Some(FlagsRegion::Nvram(nvram.part(REGION_START, len))))
        }
        (_, Some(_)) => bail!("the pool's flags are not in NVRAM: --nvram is of no use"),
        (FlagsPlace::Mds, None) => Ok(None),
        (FlagsPlace::Device, None) => {
            let region = DeviceRegion::new(disk.clone(), span.offset, span.len);
            Ok(Some(FlagsRegion::Device(region)))
        }
    }
}

/// The last start that region or store know of, as far as they can be read.
async fn newest_start(
    offline: &Offline,
    region: Option<&UnitRegion>,
    place: &MetadataPlace,
    superblock: &Superblock,
) -> Incarnation {
    let mut header = None;
    if let Some(region) = region {
        let inspected = inspect(&offline.env, region, superblock.pool).await.ok();
        header = inspected.and_then(|facts| facts.header);
    }
    let store = place.examine().ok().and_then(|facts| facts.store.ok());
    let units = store.iter().flat_map(|store| &store.catalog.units);
    let units = units.filter(|of| of.unit == superblock.unit).map(|of| of.incarnation);
    units.chain(header.map(|(header, _)| header.incarnation)).max().unwrap_or_default()
}

/// Writes everything, in the order that the module promises.
async fn write(
    offline: &Offline,
    verified: &Verified,
    order: &[usize],
    region: Option<&UnitRegion>,
    place: &MetadataPlace,
) -> Result<()> {
    let buffers = offline.env.buffers();
    let claimed: Vec<_> = order.iter().filter_map(|index| offline.claimed.get(*index)).collect();
    for (of, superblock) in claimed.iter().zip(&verified.superblocks) {
        let copies = superblock.layout.superblocks();
        let copies = copies.map(|offset| Span { offset, len: LEN as u64 });
        zero::zero(&of.path, &copies)?;
    }
    let [superblock, ..] = verified.superblocks.as_slice() else { unreachable!("a device") };
    let start = (superblock.unit, verified.incarnation);
    if let Some(region) = region {
        clear(offline, region).await.context("the journal's region cannot be written")?;
        Journal::restore(region, superblock.pool, start, &verified.lines, buffers).await?;
    }
    if let (FlagsPlace::Nvram { region, len }, Some(nvram)) = (superblock.flags, offline.nvram()) {
        let identity = NvramIdentity { pool: superblock.pool, region, len };
        let mut buffer = buffers.acquire(2 * nvram::LEN).await;
        identity.store(&mut buffer.as_mut_slice()[..2 * nvram::LEN]);
        nvram.persist(vec![(0, buffer.view(0..2 * nvram::LEN))]).await?;
    }
    place.restore(&verified.kept, start, &verified.lines)?;
    for (of, superblock) in claimed.iter().zip(&verified.superblocks).rev() {
        superblock_io::write(&of.disk, buffers, superblock)
            .await
            .with_context(|| format!("{} cannot be written", of.path.display()))?;
    }
    Ok(())
}

/// Makes a region read as zeros, durably.
async fn clear(offline: &Offline, region: &UnitRegion) -> std::io::Result<()> {
    let mut zeros = offline.env.buffers().acquire(CHUNK).await;
    zeros.as_mut_slice().fill(0);
    let mut offset = 0;
    while offset < region.len() {
        let len = (CHUNK as u64).min(region.len() - offset) as usize;
        region.persist(vec![(offset, zeros.view(0..len))]).await?;
        offset += len as u64;
    }
    Ok(())
}
