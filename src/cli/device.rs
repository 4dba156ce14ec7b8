//! Devices as the commands use them: claimed, and for `serve` recognised as one pool.

use std::path::{Path, PathBuf};

use crate::env::Env as _;
use crate::env::os::{OsDisk, OsEnv};
use crate::format::ids::{PoolId, UnitId};
use crate::format::superblock::Superblock;
use crate::format::superblock_io;
use crate::journal::relocate::{self, PoolDisk};
use crate::uring::buffers::BufferPool;
use crate::uring::{Ring, RingOptions};
use anyhow::{Context as _, Result, bail, ensure};
use tracing::warn;

/// What of the memory for I/O is registered with the ring at most, in bytes.
const ARENA_LEN: usize = 64 << 20;

/// A device that this process holds, or observes.
pub struct Claimed {
    /// Its path, as it was given.
    pub path: PathBuf,
    /// The device.
    pub disk: OsDisk,
}

/// The ring of this thread, and the world through it, with so many bytes of memory for I/O.
pub fn environment(buffers_len: usize) -> Result<(Ring, OsEnv)> {
    environment_with(&RingOptions::default(), buffers_len)
}

/// As [`environment`], with a ring of that kind.
pub fn environment_with(options: &RingOptions, buffers_len: usize) -> Result<(Ring, OsEnv)> {
    let ring = Ring::new(options)?;
    let buffers = BufferPool::new(buffers_len, ARENA_LEN).context("no memory for buffers")?;
    Ok((ring.clone(), OsEnv::new(ring, buffers)))
}

/// Claims devices for this process alone.
pub async fn claim_all(env: &OsEnv, paths: &[PathBuf]) -> Result<Vec<Claimed>> {
    for (i, path) in paths.iter().enumerate() {
        let same = |other: &PathBuf| same_file(other, path);
        let earlier = paths.get(..i).unwrap_or_default();
        ensure!(!earlier.iter().any(same), "{} is named twice", path.display());
    }
    let mut claimed = Vec::with_capacity(paths.len());
    for path in paths {
        let disk = OsDisk::open(env.ring(), path).await?;
        claimed.push(Claimed { path: path.clone(), disk });
    }
    Ok(claimed)
}

/// Whether two paths lead to the same file.
pub fn same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(one).is_some_and(|one| real(other) == Some(one))
}

/// A device of a pool.
pub struct PoolMember {
    /// The device.
    pub claimed: Claimed,
    /// What it says of itself and its pool.
    pub superblock: Superblock,
}

/// Which pool's and which unit's a device is. Writes nothing.
pub async fn identify(env: &OsEnv, claimed: &Claimed) -> Result<(PoolId, UnitId)> {
    let read = superblock_io::read(&claimed.disk, env.buffers()).await;
    let (superblock, _) = read.with_context(|| claimed.path.display().to_string())?;
    Ok((superblock.pool, superblock.unit))
}

/// Reads the superblocks of all devices of one pool, and puts the devices into their order.
pub async fn recognise(env: &OsEnv, claimed: Vec<Claimed>) -> Result<Vec<PoolMember>> {
    let mut members = Vec::with_capacity(claimed.len());
    for claimed in claimed {
        let path = claimed.path.display();
        let read = superblock_io::recover(&claimed.disk, env.buffers()).await;
        let (superblock, warning) = read.with_context(|| path.to_string())?;
        if let Some(warning) = warning {
            warn!(device = %path, "{warning}");
        }
        members.push(PoolMember { claimed, superblock });
    }
    let mut members = whole_pool(members)?;
    relocate::complete(env, &mut disks(&mut members)).await?;
    Ok(members)
}

/// Opens all devices of one pool to read them beside the target that has claimed them, which is
/// left to mend what there is to mend.
pub async fn observe(env: &OsEnv, paths: &[PathBuf]) -> Result<Vec<PoolMember>> {
    let mut members = Vec::with_capacity(paths.len());
    for path in paths {
        let disk = OsDisk::observe(env.ring(), path)?;
        let read = superblock_io::read(&disk, env.buffers()).await;
        let (superblock, _) = read.with_context(|| path.display().to_string())?;
        members.push(PoolMember { claimed: Claimed { path: path.clone(), disk }, superblock });
    }
    whole_pool(members)
}

/// The devices in their order, if they are all of one pool.
fn whole_pool(mut members: Vec<PoolMember>) -> Result<Vec<PoolMember>> {
    members.sort_by_key(|member| member.superblock.device_index);
    let named: Vec<_> =
        members.iter().map(|member| (member.claimed.path.as_path(), &member.superblock)).collect();
    check_pool(&named)?;
    Ok(members)
}

/// The devices as what moves the flags takes them.
pub fn disks(members: &mut [PoolMember]) -> Vec<PoolDisk<'_, OsDisk>> {
    let mut disks = Vec::with_capacity(members.len());
    for PoolMember { claimed, superblock } in members {
        disks.push(PoolDisk { disk: &claimed.disk, superblock });
    }
    disks
}

/// Whether these devices, in their order, are all of one pool.
fn check_pool(members: &[(&Path, &Superblock)]) -> Result<()> {
    let [(first_path, first), ..] = members else { bail!("no device") };
    for (path, superblock) in members {
        let (one, other) = (first_path.display(), path.display());
        ensure!(superblock.pool == first.pool, "{one} and {other} are of different pools");
        ensure!(
            superblock.devices == first.devices && superblock.geometry == first.geometry,
            "{one} and {other} contradict each other about their pool"
        );
    }
    for pair in members.windows(2) {
        let [(one, a), (other, b)] = pair else { unreachable!("windows are of two") };
        ensure!(
            a.device_index != b.device_index,
            "{} and {} are the same device of the pool: one is a copy of the other",
            one.display(),
            other.display()
        );
    }
    let total = first.devices.len();
    let present = |index: usize| members.iter().any(|(_, of)| of.device_index as usize == index);
    let missing: Vec<_> =
        (0..total).filter(|&index| !present(index)).map(|index| (index + 1).to_string()).collect();
    ensure!(
        missing.is_empty(),
        "the pool {} has {total} devices, and device {} is missing: name all of them",
        first.pool,
        missing.join(" and ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::plan::{PoolPlan, Wish};
    use super::super::values::Percent;
    use super::*;
    use crate::format::layout::{DeviceFacts, Geometry};
    use crate::format::superblock::{FlagsPlace, MetadataAt};

    fn pool(seed: u8) -> Vec<Superblock> {
        let next = std::cell::Cell::new(seed);
        let wish = Wish {
            geometry: Geometry::DEFAULT,
            reserve: Percent(10),
            volumes: &[],
            now_s: 0,
            flags: FlagsPlace::Device,
            metadata: MetadataAt::Device,
        };
        let facts = [DeviceFacts { size: 1 << 30, sector: 512 }; 3];
        let identity = || {
            next.set(next.get() + 1);
            [next.get(); 16]
        };
        PoolPlan::new(wish, &facts, identity).unwrap().superblocks
    }

    fn check(superblocks: &[&Superblock]) -> Result<(), String> {
        let paths = ["a", "b", "c"].map(Path::new);
        let members: Vec<_> = paths.into_iter().zip(superblocks.iter().copied()).collect();
        check_pool(&members).map_err(|error| error.to_string())
    }

    /// Goal: all devices of one pool, each once; anything else is said.
    #[test]
    fn pools_must_be_whole() {
        let (ours, others) = (pool(0), pool(100));
        let [a, b, c] = ours.as_slice() else { panic!("three devices") };
        assert_eq!(check(&[a, b, c]), Ok(()));
        let says = |superblocks: &[&Superblock], words: &str| {
            let error = check(superblocks).unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        says(&[a, b], "device 3 is missing");
        says(&[b], "device 1 and 3 is missing");
        says(&[a, b, b], "a copy");
        says(&[a, &others[1], c], "different pools");
        says(&[], "no device");
    }
}
