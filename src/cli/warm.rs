//! Restarts that lose nothing: where `serve` keeps what outlives its process, and taking over from
//! a target that runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use super::control::{runtime_dir, socket_path};
use super::device::{self, Claimed};
use super::serve::Args;
use crate::env::aside::Aside;
use crate::env::os::OsEnv;
use crate::env::os::shared::{SharedFile, boot_id};
use crate::env::shared::SharedMemory;
use crate::format::ids::PoolId;
use crate::format::ids::UnitId;
use crate::format::warm::{CHUNK, FLUSHING_AT, STATE_AT, TABLE_BYTES_MAX};
use crate::front::control::{Connection, ControlError, Request};
use crate::unit::{WarmMemory, keep_unheard, say_aside};

/// A file system in memory.
const MEMORY: &str = "/dev/shm";
/// Begins the names of directories there.
const DIRECTORY: &str = "flipside";

/// Flags of a restart.
#[derive(clap::Args)]
pub struct WarmArgs {
    /// Where to keep what is acknowledged and not committed, so that a restart on the same boot of
    /// the machine loses nothing of it: a directory in memory; where it is not the default, no
    /// other command may flush the devices of a target that was killed [default: /dev/shm/flipside]
    #[arg(long, value_name = "DIRECTORY")]
    warm_dir: Option<PathBuf>,
    /// Go back to the last commit, as after a loss of power, whatever an earlier target of the pool
    /// has left in memory
    #[arg(long)]
    pub(super) cold: bool,
    /// Take the pool over from the target that serves it here, as for an upgrade: it answers what
    /// is under way, commits and ends; clients that connect again find everything
    #[arg(long, conflicts_with_all = ["cold", "follow"])]
    replace: bool,
}

/// What outlives this process, where anything does.
pub struct Kept(Option<Arc<SharedFile>>);

impl WarmArgs {
    /// Opens what outlives this process. Where that cannot be, restarts are cold.
    pub fn open(&self, pool: PoolId, unit: UnitId) -> Kept {
        let directory = self.warm_dir.clone().unwrap_or_else(own_directory);
        let path = file_in(&directory, pool, unit);
        let opened = SharedFile::open(&path, TABLE_BYTES_MAX);
        let opened = opened.and_then(|file| keep_unheard(&file).map(|()| file));
        match opened {
            Ok(file) => Kept(Some(Arc::new(file))),
            Err(error) => {
                warn!("{}: {error}: a restart would be cold (--warm-dir)", path.display());
                Kept(None)
            }
        }
    }
}

/// The default for what outlives a process, each user's own.
fn own_directory() -> PathBuf {
    let name = match nix::unistd::geteuid() {
        root if root.is_root() => DIRECTORY.to_owned(),
        user => format!("{DIRECTORY}-{user}"),
    };
    Path::new(MEMORY).join(name)
}

fn file_in(directory: &Path, pool: PoolId, unit: UnitId) -> PathBuf {
    directory.join(format!("{pool}.{unit}"))
}

/// Claims devices for a command that does not look at what a killed target has left, and may flush
/// them: who hears whether that succeeds is not who believes what is there. So the next start reads
/// all of it first.
pub async fn claim_unserved(env: &OsEnv, paths: &[PathBuf]) -> Result<Vec<Claimed>> {
    let claimed = device::claim_all(env, paths).await?;
    for of in &claimed {
        // What has no superblock any more may be of a pool that another one names.
        if let Ok((pool, unit)) = device::identify(env, of).await {
            each_left(Path::new(MEMORY), pool, unit, |left| left.store(FLUSHING_AT, 1));
        }
    }
    Ok(claimed)
}

/// The pool is not any more what a killed target has left: nobody believes it.
pub fn void(pool: PoolId, unit: UnitId) {
    each_left(Path::new(MEMORY), pool, unit, |left| left.store(STATE_AT, 0));
}

/// All that targets of a pool have left in the default directories of any user.
fn each_left(memory: &Path, pool: PoolId, unit: UnitId, then: impl Fn(&SharedFile)) {
    let all = fs::read_dir(memory).into_iter().flatten().filter_map(Result::ok);
    let ours = all.filter(|entry| {
        let name = entry.file_name();
        name.to_str()
            .and_then(|name| name.strip_prefix(DIRECTORY))
            .is_some_and(|user| user.is_empty() || user.starts_with('-'))
    });
    for path in ours.map(|directory| file_in(&directory.path(), pool, unit)) {
        let left = match path.try_exists() {
            Ok(false) => continue,
            Ok(true) => SharedFile::open(&path, TABLE_BYTES_MAX),
            Err(error) => Err(error),
        };
        match left {
            Ok(left) if left.len() >= CHUNK => then(&left),
            Ok(_) => (),
            Err(error) => warn!(
                "{}: {error}: where a target of pool {pool} was killed, start the next one with \
                 --cold",
                path.display()
            ),
        }
    }
}

impl Kept {
    /// For the unit.
    pub fn memory(&self) -> Option<WarmMemory> {
        let memory = self.0.clone()?;
        let boot = boot_id().inspect_err(|error| warn!("a restart would be cold: {error}")).ok()?;
        Some(WarmMemory { memory: Rc::new(memory), boot })
    }

    /// What is to be told of flushes past the unit.
    pub fn aside(&self) -> Arc<Aside> {
        let file = self.0.clone();
        Arc::new(Aside::new(move |flushing| {
            if let Some(file) = &file {
                say_aside(file, flushing);
            }
        }))
    }

    /// Nobody believes what an earlier target has left.
    pub fn give_up(&self) {
        if let Some(file) = &self.0 {
            file.store(STATE_AT, 0);
        }
    }

    /// Everything is committed: the next start has nothing to find.
    pub fn remove(&self) {
        if let Some(Err(error)) = self.0.as_ref().map(|file| file.remove()) {
            warn!("what would outlive this process could not be removed: {error}");
        }
    }
}

/// Has the target that serves the pool end, where `--replace` says so and there is one, and waits
/// for its end.
pub async fn replace(env: &OsEnv, args: &Args) -> Result<()> {
    if !args.warm.replace {
        return Ok(());
    }
    let members = device::observe(env, &args.devices).await?;
    let [first, ..] = members.as_slice() else { unreachable!("a pool has a device") };
    let path = match &args.control {
        Some(path) => path.clone(),
        None => socket_path(&runtime_dir()?, &first.superblock.pool.to_string()),
    };
    drop(members);
    let mut target = match Connection::open(&path) {
        Ok(target) => target,
        Err(ControlError::Unreachable { .. }) => {
            info!("no target serves the pool at {}: there is nothing to replace", path.display());
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    match target.ask(&Request::Replace) {
        // With nothing to commit it may have ended before its answer had left.
        Ok(_) | Err(ControlError::Broken(_)) => {}
        Err(error) => return Err(error).context("the target that serves the pool"),
    }
    target.await_end();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what killed targets of a pool have left is found, whosever it is, and nothing else;
    /// nothing is made where there is none.
    #[test]
    fn what_was_left_is_found() {
        let memory = tempfile::tempdir().unwrap();
        let (pool, unit) = (PoolId::default(), UnitId(3));
        let names = ["flipside", "flipside-7", "flipsides", "other"];
        let directories = names.map(|name| memory.path().join(name));
        directories.iter().for_each(|directory| fs::create_dir(directory).unwrap());
        let doubt = |left: &SharedFile| left.store(FLUSHING_AT, 1);
        each_left(memory.path(), pool, unit, doubt);
        assert!(directories.iter().all(|directory| !file_in(directory, pool, unit).exists()));
        let open = |directory: &PathBuf| {
            SharedFile::open(&file_in(directory, pool, unit), TABLE_BYTES_MAX).unwrap()
        };
        let empty = directories.each_ref().map(open);
        each_left(memory.path(), pool, unit, doubt);
        assert!(empty.iter().all(SharedMemory::is_empty), "they have nothing to believe");
        empty.iter().for_each(|left| left.grow(CHUNK).unwrap());
        each_left(memory.path(), pool, UnitId(4), doubt);
        assert!(empty.iter().all(|left| left.load(FLUSHING_AT) == 0), "they are of another unit");
        each_left(memory.path(), pool, unit, doubt);
        assert_eq!(empty.each_ref().map(|left| left.load(FLUSHING_AT)), [1, 1, 0, 0]);
    }
}
