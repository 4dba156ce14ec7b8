//! Restarts that lose nothing: where `serve` keeps what outlives its process, and taking over from
//! a target that runs.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tracing::{info, warn};

use super::control::{runtime_dir, socket_path};
use super::device;
use super::serve::Args;
use crate::env::aside::Aside;
use crate::env::os::OsEnv;
use crate::env::os::shared::{SharedFile, boot_id};
use crate::env::shared::SharedMemory as _;
use crate::format::ids::PoolId;
use crate::format::ids::UnitId;
use crate::format::warm::{CHUNK, FLUSHING_AT, STATE_AT, TABLE_BYTES_MAX};
use crate::front::control::{Connection, ControlError, Request};
use crate::unit::{WarmMemory, keep_unheard, say_aside};

/// Flags of a restart.
#[derive(clap::Args)]
pub struct WarmArgs {
    /// Where to keep what is acknowledged and not committed, so that a restart on the same boot of
    /// the machine loses nothing of it: a directory in memory [default: /dev/shm/flipside]
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
        let path = path(self.warm_dir.as_ref().unwrap_or(&directory()), pool, unit);
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
pub fn directory() -> PathBuf {
    match nix::unistd::geteuid() {
        root if root.is_root() => "/dev/shm/flipside".into(),
        user => format!("/dev/shm/flipside-{user}").into(),
    }
}

fn path(directory: &Path, pool: PoolId, unit: UnitId) -> PathBuf {
    directory.join(format!("{pool}.{unit}"))
}

/// Whoever is next to believe what a killed target has left there, reads it all first: others flush
/// its devices, and who hears whether that succeeds is not the one who is to believe.
pub fn doubt(directory: &Path, pool: PoolId, unit: UnitId) {
    let path = path(directory, pool, unit);
    if !path.exists() {
        return;
    }
    match SharedFile::open(&path, TABLE_BYTES_MAX) {
        Ok(file) if file.len() >= CHUNK => file.store(FLUSHING_AT, 1),
        Ok(_) => (),
        Err(error) => warn!("{}: {error}: a later start may believe it", path.display()),
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

    /// Goal: what a killed target has left is in doubt where there is any, and nothing is made
    /// where there is none.
    #[test]
    fn what_is_there_is_doubted() {
        let directory = tempfile::tempdir().unwrap();
        let (pool, unit) = (PoolId::default(), UnitId(3));
        doubt(directory.path(), pool, unit);
        let path = path(directory.path(), pool, unit);
        assert!(!path.exists());
        let left = SharedFile::open(&path, TABLE_BYTES_MAX).unwrap();
        doubt(directory.path(), pool, unit);
        assert!(left.is_empty(), "there is no room to say so, nor anything to believe");
        left.grow(CHUNK).unwrap();
        doubt(directory.path(), pool, unit);
        assert_eq!(left.load(FLUSHING_AT), 1);
    }
}
