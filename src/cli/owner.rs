//! Owning a pool whose metadata are at a server of its own: which machine this is, the lease on
//! devices that several hosts reach, and taking a pool over (design section 8, ownership).
//!
//! # Contracts
//!
//! - **Ordering**: nothing is written to the devices before the metadata server was asked whether
//!   the pool is another host's, and before the devices were reserved.
//! - **Reservations** are given back where the pool could not be had, and by a target that stops
//!   well; one that serves, or failed when it did, keeps them ([`Reservations::keep`]).
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
use crate::env::os::reservation::{Key, Reservable, Reserved};
use crate::format::ids::{HostId, Incarnation, PoolId};
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

/// What this process holds of devices beside its claim. Given back when dropped, but where it is
/// kept: nothing that was sent to a device may be under way then.
pub struct Reservations<D: Reservable = File> {
    held: Vec<(D, Key)>,
    kept: bool,
}

impl<D: Reservable> Default for Reservations<D> {
    fn default() -> Self {
        Reservations { held: Vec::new(), kept: false }
    }
}

impl OwnerArgs {
    /// This machine.
    pub fn host(&self) -> Result<HostId> {
        host(self.host.as_deref())
    }

    /// Makes sure, before anything is written, that the pool on these devices is of the metadata
    /// server that was named, or of none, and not another host's, or that it is taken over; tells
    /// the terms on which it is claimed. A server in this process is the devices' own: they may be
    /// carried to another machine.
    pub async fn secure(
        &self,
        env: &OsEnv,
        mds: &MdsArgs,
        claimed: &[Claimed],
        held: &mut Reservations,
    ) -> Result<Ownership> {
        let [first, ..] = claimed else { bail!("no device") };
        let [one, other] = superblock_io::read_copies(&first.disk, env.buffers()).await;
        let (superblock, _) =
            choose(one, other).with_context(|| first.path.display().to_string())?;
        check_place(mds, &superblock)?;
        let Some(server) = &mds.mds else { return Ok(Ownership::default()) };
        let at = server.resolve()?;
        let seen = overview(env, mds.link_to(env.ring(), at)?);
        let seen = answered(env, at, None, seen).await?;
        let ours = self.host()?;
        let owner = owner(superblock.pool, &seen.sessions);
        let other = owner.filter(|of| of.host != ours);
        if let Some(of) = other.filter(|_| !self.fenced) {
            bail!(refusal(superblock.pool, of));
        }
        let former = other.map_or(0, |of| of.lease_ms);
        let former = Duration::from_millis(u64::from(former));
        if !former.is_zero() {
            info!(seconds = former.as_secs(), "waiting for the end of the former owner's lease");
        }
        let theirs = other.map(|of| Key::of(of.host));
        for of in claimed.iter().filter(|_| self.shared) {
            let device = || of.path.display().to_string();
            let file = File::options().read(true).write(true).open(&of.path);
            let file = file.with_context(device)?;
            let reserved = held.reserve(file, Key::of(ours), theirs, self.fenced);
            if !reserved.with_context(device)? {
                info!(
                    device = device(),
                    "the device has no reservations: the lease alone keeps other hosts away, and \
                     --fenced is believed"
                );
            }
        }
        Ok(Ownership {
            host: ours,
            lease: self.shared.then_some(self.lease.0),
            fenced: self.fenced,
            former_start: owner.map_or_else(Incarnation::default, |of| of.incarnation),
            former_lease: former,
        })
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

impl<D: Reservable> Reservations<D> {
    /// Reserves a device, where it has reservations at all: says whether it has.
    fn reserve(&mut self, device: D, ours: Key, theirs: Option<Key>, take: bool) -> Result<bool> {
        // From here on this host may be in the device's list.
        self.held.push((device, ours));
        let (device, _) = self.held.last().expect("it was put there");
        let mut reserved = device.reserve(ours)?;
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
            reserved = device.preempt(ours, theirs)?;
        }
        ensure!(reserved != Reserved::Elsewhere, "another host has reserved it");
        Ok(reserved == Reserved::Held)
    }

    /// They stay when this is dropped: the pool is this host's, and what was sent to the devices
    /// may still arrive.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Gives everything back: another host may have the devices.
    pub fn release(&mut self) {
        for (device, key) in self.held.drain(..) {
            if let Err(error) = device.release(key) {
                warn!("a device stays reserved for this host: {error}");
            }
        }
    }
}

impl<D: Reservable> Drop for Reservations<D> {
    fn drop(&mut self) {
        if !self.kept {
            self.release();
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
    use std::cell::Cell;
    use std::io;

    use super::*;
    use crate::format::ids::UnitId;

    /// A device with a list of one key and a reservation, as far as they matter here.
    #[derive(Default)]
    struct Disk {
        registered: Cell<bool>,
        held: Cell<Option<Key>>,
    }

    impl Reservable for &Disk {
        fn reserve(&self, key: Key) -> io::Result<Reserved> {
            self.registered.set(true);
            let holder = *self.held.get().get_or_insert(key);
            Ok(if self.take(holder, key) { Reserved::Held } else { Reserved::Elsewhere })
        }

        fn preempt(&self, ours: Key, theirs: Key) -> io::Result<Reserved> {
            let theirs = self.held.get() == Some(theirs);
            Ok(if theirs && self.take(ours, ours) { Reserved::Held } else { Reserved::Elsewhere })
        }

        fn release(&self, key: Key) -> io::Result<Reserved> {
            self.registered.set(false);
            self.held.set(self.held.get().filter(|holder| *holder != key));
            Ok(Reserved::Held)
        }
    }

    impl Disk {
        fn take(&self, holder: Key, key: Key) -> bool {
            self.held.set(Some(holder));
            holder == key
        }
    }

    /// Goal: whoever could not have all devices leaves nothing of itself on any of them, and takes
    /// nobody else's away; who serves keeps them, until it stops well.
    #[test]
    fn reservations_are_given_back() {
        let [ours, theirs] = ["a", "b"].map(|name| Key::of(hashed(name)));
        for (take, known) in [(false, None), (false, Some(theirs)), (true, None)] {
            let (free, taken) = (Disk::default(), Disk::default());
            taken.held.set(Some(theirs));
            let mut held = Reservations::default();
            assert!(held.reserve(&free, ours, known, take).unwrap());
            assert_eq!(free.held.get(), Some(ours));
            assert!(held.reserve(&taken, ours, known, take).is_err());
            drop(held);
            assert_eq!((free.held.get(), taken.held.get()), (None, Some(theirs)));
            assert!(!free.registered.get() && !taken.registered.get());
        }
        let disk = Disk::default();
        disk.held.set(Some(theirs));
        let mut held = Reservations::default();
        assert!(held.reserve(&disk, ours, Some(theirs), true).unwrap());
        held.keep();
        drop(held);
        assert_eq!(disk.held.get(), Some(ours), "a target that failed may still write");
        let mut held = Reservations::default();
        assert!(held.reserve(&disk, ours, None, false).unwrap());
        held.keep();
        held.release();
        assert_eq!(disk.held.get(), None);
    }

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
