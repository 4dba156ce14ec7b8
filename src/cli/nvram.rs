//! Where a pool's flags are kept, as `serve` is told: on the device, in NVRAM, or at the metadata
//! server, where they were formatted to be.
//!
//! # Contracts
//!
//! - **Binding**: the first `serve` with NVRAM of a pool whose flags are on the device moves them
//!   there ([`relocate`](mod@relocate)). Cut short, the next `serve` begins again.
//! - **Identity**: what a pool is bound to is named in its superblocks. Nothing else is served.
//! - **Refusal**: NVRAM that holds anything but zeros, noise or what an unfinished move of the same
//!   pool left is not bound.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, fallocate};
use nix::unistd::linkat;
use tracing::info;
use uuid::Uuid;

use super::device::{PoolMember, disks, same_file};
use super::inspect::refuse_if_in_use;
use super::status::FlagsReport;
use super::values::Size;
use crate::env::Region as _;
use crate::env::os::nvram::Persistence;
use crate::env::os::{OsEnv, OsNvram};
use crate::format::superblock::{FlagsPlace, Superblock};
use crate::journal::identity;
use crate::journal::relocate::{self, Move, Moved, relocate};

/// Where flags and journal may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// On the first device of the pool.
    Device,
    /// In NVRAM: see --nvram.
    Nvram,
    /// At the metadata server, in its store: from `flipside format` on.
    Mds,
}

/// Flags that say where the flags are.
#[derive(clap::Args)]
pub struct FlagsArgs {
    /// Where flags and journal are kept, by default where the pool has them; nvram moves them there
    /// from the device, and only `flipside flags move` moves them back
    #[arg(long, value_enum, requires_if("nvram", "nvram"))]
    flags: Option<Place>,
    /// The largest write whose data goes to the journal too, and to the devices later, so that a
    /// flush does not wait for them; 0: none [default: 16K where the NVRAM is memory, otherwise 0]
    #[arg(long, value_name = "SIZE", requires = "nvram")]
    nvram_write_max: Option<Size>,
    #[command(flatten)]
    nvram: NvramArgs,
}

impl FlagsArgs {
    /// Where the pool was formatted to have them.
    pub fn formatted() -> Self {
        let nvram = NvramArgs { path: None, size: None, trust_memory: false };
        Self { flags: None, nvram_write_max: None, nvram }
    }

    /// In a file in memory that is believed to survive, which is made; with data in the journal up
    /// to that size.
    pub fn memory(path: PathBuf, write_max: u64) -> Self {
        let nvram = NvramArgs { path: Some(path), size: None, trust_memory: true };
        Self { flags: Some(Place::Nvram), nvram_write_max: Some(Size(write_max)), nvram }
    }
}

/// The largest write whose data goes to NVRAM where nothing else was said: those for which a device
/// takes hardly longer than for a sector, so that what counts is its latency.
const NVRAM_WRITE_MAX: u64 = 16 << 10;

/// Flags that say which NVRAM, and how it is used.
#[derive(clap::Args)]
pub struct NvramArgs {
    /// The NVRAM: a file (best on a DAX file system) or block device; a file is made
    #[arg(long = "nvram", id = "nvram", value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// The size of the file that is made, by default what the pool needs; more is more journal
    #[arg(long = "nvram-size", id = "nvram_size", value_name = "SIZE", requires = "nvram")]
    size: Option<Size>,
    /// Believe that memory survives a loss of power, as with batteries, or in a test
    #[arg(long = "nvram-trust-memory", id = "nvram_trust_memory", requires = "nvram")]
    trust_memory: bool,
}

/// The NVRAM that the pool's flags are in, bound to it now where that was asked for; `None` where
/// they are on the device. And the place for the status.
pub async fn place(
    env: &OsEnv,
    args: &FlagsArgs,
    members: &mut [PoolMember],
) -> Result<(Option<OsNvram>, FlagsReport)> {
    let superblock = first(members);
    let path = match (args.flags, &args.nvram.path) {
        _ if superblock.flags == FlagsPlace::Mds || args.flags == Some(Place::Mds) => {
            at_server(args, superblock)?;
            return Ok((None, FlagsReport::mds()));
        }
        (Some(Place::Nvram), Some(path)) => path,
        (_, given) => {
            if let FlagsPlace::Nvram { region, len } = superblock.flags {
                bail!(
                    "the pool's flags are in the NVRAM region {} of {}: say --flags nvram and \
                     --nvram PATH",
                    Uuid::from_bytes(region),
                    Size(len)
                );
            }
            ensure!(given.is_none(), "--nvram is of use with --flags nvram only");
            return Ok((None, FlagsReport::device()));
        }
    };
    let nvram = if let FlagsPlace::Nvram { region, .. } = superblock.flags {
        let region = Uuid::from_bytes(region);
        let wanted = || format!("pool {} wants the NVRAM region {region}", superblock.pool);
        let nvram = open_existing(env, &args.nvram, path, members).await.with_context(wanted)?;
        relocate::bound_part(env, superblock, &nvram).await?;
        nvram
    } else {
        open_new(env, &args.nvram, path, members, false).await?
    };
    let wanted = Move { from: None, to: Some(&nvram), force: false };
    if relocate(env, &mut disks(members), wanted).await? == Moved::Now {
        info!(nvram = %path.display(), "the flags are in NVRAM from now on");
    }
    let part = relocate::bound_part(env, first(members), &nvram).await?;
    let write_max = match (args.nvram_write_max, nvram.persistence()) {
        (Some(Size(given)), _) => given,
        (None, Persistence::Dax | Persistence::TrustedMemory) => NVRAM_WRITE_MAX,
        (None, Persistence::DirectIo) => 0,
    };
    Ok((Some(part), FlagsReport::nvram(path, nvram.persistence(), write_max)))
}

/// Refuses what contradicts flags at the metadata server.
fn at_server(args: &FlagsArgs, first: &Superblock) -> Result<()> {
    ensure!(
        first.flags == FlagsPlace::Mds,
        "the pool's flags are not at the metadata server; only `flipside format --flags mds` puts \
         them there"
    );
    ensure!(
        args.flags.is_none_or(|place| place == Place::Mds) && args.nvram.path.is_none(),
        "the pool's flags are at the metadata server and cannot be moved: leave out --flags"
    );
    Ok(())
}

/// What the first device of a pool says of it.
pub fn first(members: &[PoolMember]) -> &Superblock {
    let [first, ..] = members else { unreachable!("a pool has a device") };
    &first.superblock
}

/// Opens NVRAM that flags are in already.
pub async fn open_existing(
    env: &OsEnv,
    args: &NvramArgs,
    path: &Path,
    members: &[PoolMember],
) -> Result<OsNvram> {
    refuse_members(path, members)?;
    Ok(OsNvram::open(env.ring(), path, args.trust_memory).await?)
}

/// Opens NVRAM for flags to be moved to; makes the file where there is none.
pub async fn open_new(
    env: &OsEnv,
    args: &NvramArgs,
    path: &Path,
    members: &[PoolMember],
    force: bool,
) -> Result<OsNvram> {
    refuse_members(path, members)?;
    let needed = relocate::nvram_len_min(first(members));
    create(path, args.size.map_or(needed, |size| size.0), needed)?;
    let nvram = OsNvram::open(env.ring(), path, args.trust_memory).await?;
    let found = identity::read(env, &nvram).await;
    if found.with_context(|| path.display().to_string())?.is_none() && !force {
        refuse_if_in_use(path, nvram.len(), "`flipside flags move --force` takes it all the same")?;
    }
    Ok(nvram)
}

fn refuse_members(path: &Path, members: &[PoolMember]) -> Result<()> {
    for member in members {
        let taken = &member.claimed.path;
        ensure!(!same_file(taken, path), "{} is a device of the pool itself", path.display());
    }
    Ok(())
}

/// Makes the file, with all of its space, where there is nothing yet: it gets its name when it is
/// whole, so that nothing is left of it otherwise.
pub fn create(path: &Path, size: u64, needed: u64) -> Result<()> {
    let in_memory = path.starts_with("/dev/shm");
    if path.symlink_metadata().is_ok() || (path.starts_with("/dev") && !in_memory) {
        return Ok(());
    }
    make(path, size, needed).with_context(|| format!("{} cannot be made", path.display()))
}

fn make(path: &Path, size: u64, needed: u64) -> Result<()> {
    ensure!(size >= needed, "{size} bytes are too few: the pool needs {needed}");
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let mut unnamed = OpenOptions::new();
    unnamed.write(true).mode(0o600).custom_flags(OFlag::O_TMPFILE.bits());
    let file = match unnamed.open(parent) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            bail!("its file system has no unnamed files: make it first, `fallocate -l {size}`")
        }
        Err(error) => return Err(error.into()),
    };
    match fallocate(&file, FallocateFlags::empty(), 0, i64::try_from(size)?) {
        Ok(()) => {}
        Err(Errno::EOPNOTSUPP) => file.set_len(size)?,
        Err(errno) => return Err(errno.into()),
    }
    file.sync_all()?;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(AT_FDCWD, unnamed.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW) {
        // Somebody else was faster, and it is looked at like any other.
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    File::open(parent)?.sync_all().context("its directory")
}
