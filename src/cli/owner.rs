//! Owning a pool whose metadata are at a server of its own: which machine this is, the lease on
//! devices that several hosts reach, and taking a pool over (design section 8, ownership).
//!
//! # Contracts
//!
//! - **Ordering**: nothing is written to the devices before the metadata server was asked whether
//!   the pool is another host's, and before the devices were reserved.
//! - **Takeover**: only with --fenced. Where the devices have reservations they are taken from the
//!   old owner here; elsewhere the operator's word stands for it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tracing::{info, warn};
use uuid::Uuid;

use super::control::make_runtime_dir;
use super::device::Claimed;
use super::link::check_place;
use super::network::{MdsArgs, answered};
use super::values::LeaseTime;
use crate::env::Env as _;
use crate::env::os::OsEnv;
use crate::env::os::reservation::{self, Key, Reserved};
use crate::format::ids::{HostId, PoolId};
use crate::format::superblock::choose;
use crate::format::superblock_io;
use crate::mds::client::pools::overview;
use crate::mds::overview::SessionSeen;
use crate::unit::Ownership;

/// What the names of machines are hashed with.
const HOST_CONTEXT: &str = "flipside 2026 the id of a host at a metadata server";
/// Where a machine has its own name.
const MACHINE_ID: &str = "/etc/machine-id";
/// In the runtime directory: a name of a machine that has none.
const HOST_FILE: &str = "host-id";

/// Flags that say on which terms a pool is owned.
#[derive(clap::Args, Clone, Debug)]
pub struct OwnerArgs {
    /// The devices are reached by several hosts: hold the pool by a lease, and reserve the devices
    /// where they can be
    #[arg(long, requires = "mds")]
    shared: bool,
    /// With --shared: how long the pool is held without word from the metadata server
    #[arg(long, value_name = "TIME", default_value = "10s", requires = "shared")]
    lease: LeaseTime,
    /// Take the pool over from another host, whose writes can arrive no more: it is off, or the
    /// devices were taken from it, or have reservations, which are taken now
    #[arg(long, requires = "mds")]
    fenced: bool,
    /// A name of this machine instead of /etc/machine-id, where that is not its own
    #[arg(long, value_name = "NAME", requires = "mds")]
    host: Option<String>,
}

/// What this process holds of devices beside its claim, to be given back at the end.
#[derive(Default)]
pub struct Reservations(Vec<(File, Key)>);

impl OwnerArgs {
    /// The terms on which the pool is claimed. A server in this process is the devices' own: they
    /// may be carried to another machine.
    pub fn terms(&self, mds: &MdsArgs) -> Result<Ownership> {
        if mds.mds.is_none() {
            return Ok(Ownership::default());
        }
        let lease = self.shared.then_some(self.lease.0);
        Ok(Ownership { host: self.host()?, lease, fenced: self.fenced, ..Ownership::default() })
    }

    /// This machine.
    pub fn host(&self) -> Result<HostId> {
        host(self.host.as_deref())
    }

    /// Makes sure, before anything is written, that the pool on these devices is of the metadata
    /// server that was named, or of none, and not another host's, or that it is taken over: then
    /// tells the lease of who had it, who reads by what it knows until that has ended.
    pub async fn secure(
        &self,
        env: &OsEnv,
        mds: &MdsArgs,
        claimed: &[Claimed],
    ) -> Result<(Reservations, Duration)> {
        let [first, ..] = claimed else { bail!("no device") };
        let [one, other] = superblock_io::read_copies(&first.disk, env.buffers()).await;
        let (superblock, _) =
            choose(one, other).with_context(|| first.path.display().to_string())?;
        check_place(mds, &superblock)?;
        let Some(server) = &mds.mds else { return Ok(Default::default()) };
        let at = server.resolve()?;
        let seen = overview(env, mds.link_to(env.ring(), at)?);
        let seen = answered(env, at, None, seen).await?;
        let ours = self.host()?;
        let other = owner(superblock.pool, &seen.sessions).filter(|of| of.host != ours);
        if let Some(of) = other.filter(|_| !self.fenced) {
            bail!(refusal(superblock.pool, of));
        }
        let former = other.map_or(0, |of| of.lease_ms);
        let former = Duration::from_millis(u64::from(former));
        if !former.is_zero() {
            info!(seconds = former.as_secs(), "waiting for the end of the former owner's lease");
        }
        if !self.shared {
            return Ok((Reservations::default(), former));
        }
        let theirs = other.map(|of| of.host);
        let mut held = Reservations::default();
        for of in claimed {
            held.reserve(&of.path, Key::of(ours), theirs.map(Key::of), self.fenced)
                .with_context(|| of.path.display().to_string())?;
        }
        Ok((held, former))
    }
}

/// Who is attached to write to that pool.
fn owner(pool: PoolId, sessions: &[SessionSeen]) -> Option<&SessionSeen> {
    sessions.iter().find(|of| of.pool == pool && !of.reads)
}

/// Why a pool is not taken from another host.
fn refusal(pool: PoolId, owner: &SessionSeen) -> String {
    let lease = match owner.left_ms {
        u64::MAX => "it has no lease".to_owned(),
        0 => "its lease has ended, but what it sent to the devices may still arrive".to_owned(),
        left => format!("its lease ends in {:.1} s unless it renews it", left as f64 / 1000.0),
    };
    format!(
        "pool {pool} is attached to host {} ({lease}); nothing was changed. Stop the target there; \
         or, if that host is off or cannot reach the devices any more, say --fenced",
        Uuid::from_bytes(owner.host.0)
    )
}

impl Reservations {
    fn reserve(&mut self, path: &Path, ours: Key, theirs: Option<Key>, take: bool) -> Result<()> {
        let file = File::options().read(true).write(true).open(path)?;
        let mut reserved = reservation::reserve(&file, ours)?;
        if reserved == Reserved::Elsewhere {
            ensure!(
                take,
                "another host has reserved it; nothing was changed. Stop the target there, or say \
                 --fenced to take it"
            );
            let theirs = theirs.context(
                "another host has reserved it, which the metadata server does not know: remove its \
                 key first (sg_persist, or nvme resv-release)",
            )?;
            reserved = reservation::preempt(&file, ours, theirs)?;
        }
        match reserved {
            Reserved::Held => self.0.push((file, ours)),
            Reserved::Elsewhere => bail!("another host has reserved it"),
            Reserved::Unsupported => info!(
                device = %path.display(),
                "the device has no reservations: the lease alone keeps other hosts away, and \
                 --fenced is believed"
            ),
        }
        Ok(())
    }

    /// Gives everything back: another host may have the devices.
    pub fn release(self) {
        for (file, key) in self.0 {
            if let Err(error) = reservation::release(&file, key) {
                warn!("a device stays reserved for this host: {error}");
            }
        }
    }
}

/// This machine: by the name given, or its own, or one that it is given until it is started again.
pub fn host(name: Option<&str>) -> Result<HostId> {
    if let Some(name) = name {
        return Ok(hashed(name));
    }
    match fs::read_to_string(MACHINE_ID) {
        Ok(id) if !id.trim().is_empty() => return Ok(hashed(id.trim())),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).context(MACHINE_ID),
    }
    let path = make_runtime_dir()?.join(HOST_FILE);
    let made = drawn(&path).with_context(|| path.display().to_string())?;
    Ok(hashed(made.trim()))
}

/// What the file holds, which is made with a random name where there is none.
fn drawn(path: &Path) -> std::io::Result<String> {
    match File::create_new(path) {
        Ok(mut file) => file.write_all(Uuid::new_v4().to_string().as_bytes())?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    fs::read_to_string(path)
}

fn hashed(name: &str) -> HostId {
    let hash = blake3::derive_key(HOST_CONTEXT, name.as_bytes());
    HostId(*hash.first_chunk().expect("sixteen of 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{Incarnation, UnitId};

    /// Goal: names make hosts, the same ones the same; without one there is one all the same.
    #[test]
    fn hosts_have_names() {
        assert_eq!(host(Some("a")).unwrap(), host(Some("a")).unwrap());
        assert_ne!(host(Some("a")).unwrap(), host(Some("b")).unwrap());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(HOST_FILE);
        let first = drawn(&path).unwrap();
        assert_eq!((first.len(), drawn(&path).unwrap()), (36, first));
    }

    /// Goal: who reads owns nothing; the refusal says how the lease stands and what to do.
    #[test]
    fn owners_are_told() {
        let seen = |pool, reads, left_ms| SessionSeen {
            pool: PoolId([pool; 16]),
            host: HostId([7; 16]),
            unit: UnitId(1),
            incarnation: Incarnation(1),
            reads,
            lease_ms: 10_000,
            age_ms: 1,
            left_ms,
            requests: 3,
        };
        let sessions = [seen(1, true, 5), seen(2, false, 5), seen(1, false, 2500)];
        let of = owner(PoolId([1; 16]), &sessions).unwrap();
        assert_eq!(of, &sessions[2]);
        assert_eq!(owner(PoolId([3; 16]), &sessions), None);
        assert!(refusal(of.pool, of).contains("ends in 2.5 s"));
        let ended = refusal(of.pool, &seen(1, false, 0));
        assert!(ended.contains("has ended") && ended.contains("--fenced"), "{ended}");
        assert!(refusal(of.pool, &seen(1, false, u64::MAX)).contains("no lease"));
    }
}
