//! Where a pool's flags are kept, as `serve` is told: on the device, or in NVRAM.
//!
//! # Contracts
//!
//! - **Binding**: the first `serve` with NVRAM of a pool whose flags are on the device copies all
//!   of the device's region to it, then writes the identity, then the superblocks, that of the
//!   first device last. Each is durable before the next one: cut short, the flags are still where
//!   they were, and the next `serve` begins again.
//! - **Identity**: what a pool is bound to is named in its superblocks. Nothing else is served.
//! - **Refusal**: NVRAM that holds anything but zeros, noise or an unfinished binding of the same
//!   pool is not bound.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use tracing::info;
use uuid::Uuid;

use super::device::{PoolMember, same_file};
use super::inspect::refuse_if_in_use;
use super::status::FlagsReport;
use super::values::Size;
use crate::env::os::{OsEnv, OsNvram};
use crate::env::region::DeviceRegion;
use crate::env::{Env as _, Region};
use crate::format::nvram::{NvramIdentity, REGION_START};
use crate::format::superblock::FlagsPlace;
use crate::format::superblock_io;

/// Bytes that are copied at a time.
const CHUNK: u64 = 1 << 20;

/// What `--flags` may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// On the first device of the pool.
    Device,
    /// In NVRAM: see --nvram.
    Nvram,
}

/// Flags that say where the flags are.
#[derive(clap::Args)]
pub struct FlagsArgs {
    /// Where flags and journal are kept; a pool that was served with nvram stays with it
    #[arg(long, value_enum, default_value = "device")]
    flags: Place,
    /// The NVRAM: a file (best on a DAX file system) or block device; a file is made
    #[arg(long, value_name = "PATH", required_if_eq("flags", "nvram"))]
    nvram: Option<PathBuf>,
    /// The size of the file that is made; by default what the pool needs
    #[arg(long, value_name = "SIZE", requires = "nvram")]
    nvram_size: Option<Size>,
    /// Believe that memory survives a loss of power, as with batteries, or in a test
    #[arg(long, requires = "nvram")]
    nvram_trust_memory: bool,
}

/// The NVRAM that the pool's flags are in, bound to it now where that was asked for; `None` where
/// they are on the device. And the place for the status.
pub async fn place(
    env: &OsEnv,
    args: &FlagsArgs,
    members: &mut [PoolMember],
) -> Result<(Option<OsNvram>, FlagsReport)> {
    let bound = match members {
        [first, ..] => first.superblock.flags,
        [] => unreachable!("a pool has a device"),
    };
    let path = match (args.flags, &args.nvram) {
        (Place::Nvram, Some(path)) => path,
        (_, given) => {
            if let FlagsPlace::Nvram { region, len } = bound {
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
    for member in &*members {
        let taken = &member.claimed.path;
        ensure!(!same_file(taken, path), "{} is a device of the pool itself", path.display());
    }
    let nvram = match bound {
        FlagsPlace::Nvram { region, len } => open_bound(env, args, path, members, (region, len)),
        _ => return bind(env, args, path, members).await,
    };
    nvram.await
}

/// What is used of the NVRAM, and how that is reported.
fn used(path: &Path, nvram: &OsNvram, len: u64) -> (Option<OsNvram>, FlagsReport) {
    let report = FlagsReport::nvram(path, nvram.persistence());
    (Some(nvram.part(REGION_START, len)), report)
}

/// Opens the NVRAM that the pool is bound to, and no other.
async fn open_bound(
    env: &OsEnv,
    args: &FlagsArgs,
    path: &Path,
    members: &[PoolMember],
    (region, len): ([u8; 16], u64),
) -> Result<(Option<OsNvram>, FlagsReport)> {
    let [first, ..] = members else { unreachable!("a pool has a device") };
    let pool = first.superblock.pool;
    let wanted = format!("pool {pool} wants the NVRAM region {}", Uuid::from_bytes(region));
    let opened = OsNvram::open(env.ring(), path, args.nvram_trust_memory).await;
    let nvram = opened.with_context(|| wanted.clone())?;
    let Some(found) = identity(env, &nvram).await.with_context(|| path.display().to_string())?
    else {
        bail!("{} is no NVRAM of a pool: {wanted}", path.display());
    };
    ensure!(
        found == NvramIdentity { pool, region, len },
        "{} is the NVRAM region {} of pool {}: {wanted}",
        path.display(),
        Uuid::from_bytes(found.region),
        found.pool
    );
    let needed = REGION_START + len;
    ensure!(
        nvram.len() >= needed,
        "{} has {} bytes and had {needed}: a part of it is missing",
        path.display(),
        nvram.len()
    );
    Ok(used(path, &nvram, len))
}

/// Moves the flags from the device into the NVRAM; see the module.
async fn bind(
    env: &OsEnv,
    args: &FlagsArgs,
    path: &Path,
    members: &mut [PoolMember],
) -> Result<(Option<OsNvram>, FlagsReport)> {
    let [first, ..] = &*members else { unreachable!("a pool has a device") };
    let superblock = &first.superblock;
    let name = path.display();
    let unit = superblock.layout.regions.expect("the first device has the regions").unit;
    let needed = REGION_START + unit.len;
    create(path, args.nvram_size.map_or(needed, |size| size.0), needed)?;
    let nvram = OsNvram::open(env.ring(), path, args.nvram_trust_memory).await?;
    let size = nvram.len();
    ensure!(size >= needed, "{name} has {size} bytes, and the pool needs {needed}");
    // What is written whole must not become larger than what the formats assumed.
    ensure!(
        nvram.sector() <= superblock.sector,
        "{name} is written in sectors of {} bytes, and the pool was formatted for {}",
        nvram.sector(),
        superblock.sector
    );
    match identity(env, &nvram).await.with_context(|| name.to_string())? {
        Some(found) if found.pool == superblock.pool => {
            info!(nvram = %name, "an unfinished binding is begun again");
        }
        Some(found) => bail!("{name} holds the flags of pool {}; nothing was changed", found.pool),
        None => refuse_if_in_use(path, size)?,
    }
    let region = DeviceRegion::new(first.claimed.disk.clone(), unit.offset, unit.len);
    let to = nvram.part(REGION_START, unit.len);
    copy(env, &region, &to).await.with_context(|| format!("copying the flags to {name}"))?;
    let id = Uuid::new_v4().into_bytes();
    let identity = NvramIdentity { pool: superblock.pool, region: id, len: unit.len };
    let mut buffer = env.buffers().acquire(REGION_START as usize).await;
    identity.store(buffer.as_mut_slice());
    let written = nvram.persist(vec![(0, buffer.view_all())]).await;
    written.with_context(|| format!("writing to {name}"))?;
    for member in members.iter_mut().rev() {
        member.superblock.flags = FlagsPlace::Nvram { region: id, len: unit.len };
        member.superblock.revision += 1;
        superblock_io::write(&member.claimed.disk, env.buffers(), &member.superblock)
            .await
            .with_context(|| format!("{} cannot be written", member.claimed.path.display()))?;
    }
    info!(nvram = %name, region = %Uuid::from_bytes(id), "the flags are in NVRAM from now on");
    Ok(used(path, &nvram, unit.len))
}

/// Makes the file, with all of its space, where there is nothing yet.
pub fn create(path: &Path, size: u64, needed: u64) -> Result<()> {
    let name = path.display();
    let volatile = path.starts_with("/dev") && !path.starts_with("/dev/shm");
    let file = match OpenOptions::new().write(true).create_new(!volatile).open(path) {
        Ok(_) if volatile => return Ok(()),
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("{name} cannot be made")),
    };
    let made = reserve(&file, size, needed).with_context(|| format!("{name} cannot be made"));
    if made.is_err() {
        // It is of no use, and nobody else has it.
        let _ = std::fs::remove_file(path);
    }
    made?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new(".")))?;
    directory.sync_all().with_context(|| format!("the directory of {name}"))
}

fn reserve(file: &File, size: u64, needed: u64) -> Result<()> {
    ensure!(size >= needed, "{size} bytes are too few: the pool needs {needed}");
    match fallocate(file, FallocateFlags::empty(), 0, i64::try_from(size)?) {
        Ok(()) => {}
        Err(Errno::EOPNOTSUPP) => file.set_len(size)?,
        Err(errno) => return Err(errno.into()),
    }
    Ok(file.sync_all()?)
}

/// The identity that NVRAM has, where it has one.
async fn identity(env: &OsEnv, nvram: &OsNvram) -> Result<Option<NvramIdentity>> {
    if nvram.len() < REGION_START {
        return Ok(None);
    }
    let mut buffer = env.buffers().acquire(REGION_START as usize).await;
    nvram.read(0, buffer.view_all()).await?;
    Ok(NvramIdentity::find(buffer.as_slice()))
}

/// Copies a whole region, durably, as it will be after any crash.
async fn copy(env: &OsEnv, from: &impl Region, to: &impl Region) -> Result<()> {
    from.flush().await?;
    let mut buffer = env.buffers().acquire(CHUNK as usize).await;
    let mut offset = 0;
    while offset < from.len() {
        let len = CHUNK.min(from.len() - offset) as usize;
        from.read(offset, buffer.view(0..len)).await?;
        to.persist(vec![(offset, buffer.view(0..len))]).await?;
        offset += len as u64;
    }
    Ok(to.flush().await?)
}
