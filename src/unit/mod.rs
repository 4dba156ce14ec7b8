//! The storage unit: one thread, one journal, and the area pairs that it owns (design sections
//! 3, 4 and 7).
//!
//! | file | what it is about |
//! | --- | --- |
//! | [`block`], [`policy`], [`limits`], [`request`] | decisions: plain functions over plain data |
//! | [`grant`], [`allotment`] | what the unit has of the pool ahead of need |
//! | [`fullness`] | when to warn that the pool fills up: a plain decision, too |
//! | [`state`], [`domain`], [`extents`], [`pool`], [`readers`] | what the unit knows |
//! | [`admission`] | the instant at which a request joins an epoch |
//! | [`read`], [`write`](mod@write), [`volume`] | requests |
//! | [`commit`] | epochs: seal, drain, flush, harden, publish |
//! | [`staged`], [`atomic`] | writes to several volumes that take place together |
//! | [`payload`], [`destage`] | data in the journal |
//! | [`global`], [`undo`], [`doubt`] | groups that other units have a part in |
//! | [`settle`], [`copy`], [`discard`] | giving journal areas back |
//! | [`regroup`] | volumes that go from one commit domain to another |
//! | [`manage`] | volumes made, renamed, resized, deleted |
//! | [`lease`] | whether the pool is still this unit's |
//! | [`upkeep`] | checkpoints of the home, telling the metadata server |
//! | [`recovery`] | finding everything again |
//! | [`warm`], [`adopt`] | what outlives the process, and finding that |
//! | [`linked`] | what is in the journal, and why |
//! | [`gauges`] | what status shows of all this |
//!
//! # Contracts
//!
//! - **Durability**: what [`Volume::flush`] covers is in the image after any crash (promises 1 to 3
//!   of `docs/design.md`).
//! - **Failure**: a failed device write or flush stops the domains that it concerns; a failed
//!   journal stops all. Reads go on (promise 6).
//! - **Cancellation**: a request's future must be driven to its end once polled; a front end runs
//!   it as a task of its own.

mod admission;
mod adopt;
mod allotment;
mod atomic;
pub mod block;
mod commit;
mod copy;
mod cut;
mod destage;
mod discard;
mod domain;
mod doubt;
mod error;
mod extents;
pub mod fullness;
mod gauges;
mod global;
pub mod grant;
mod invariants;
pub mod lease;
pub mod limits;
mod linked;
mod manage;
mod mixed;
mod pairs;
mod payload;
pub mod policy;
mod pool;
mod read;
mod readers;
mod recovery;
mod regroup;
pub mod request;
mod settle;
mod staged;
mod state;
mod undo;
mod unheard;
mod upkeep;
mod volume;
mod warm;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, RwLock};

pub use atomic::{AtomicError, AtomicWrite, HOLD_MAX, Ready, TXN_MAX_DEFAULT};
pub use domain::{SETTLES, group_of_domain};
pub use error::{IoError, ManageError, RecoverError};
pub use global::Coordinator;
pub use lease::Ownership;
pub use linked::LinkedGroup;
pub use policy::SettlePolicy;
pub use recovery::{Member, Parts as UnitParts, RecoveryReport};
pub use regroup::Grouping;
pub use settle::SettleReport;
pub use unheard::{keep_unheard, say_aside};
pub use volume::Volume;
pub use warm::WarmMemory;

use crate::env::latch::Latching;
use crate::env::{Disk, Env};
use crate::format::ids::{ExtentId, ExtentRun, VolumeId};
use crate::format::layout::{DeviceExtents, Geometry};
use crate::journal::place::Place;
use crate::mds::client::{Client, ClientStatus};
use crate::mds::error::MdsError;
use crate::mds::records::ServerStatus;
use crate::mutants::{Mutant, mutated};
use crate::observe::{Counters, Latencies, Waiters};
use crate::uring::buffers::Buf;
use gauges::Progress;
use lease::Hold;
use limits::Limits;
use manage::Management;
use policy::Watermarks;
use readers::Readers;
use state::{Stage, State};

use self::recovery::RegionOf;

/// How long a commit waits for a metadata server that is silent, where nothing else was said.
pub const MDS_TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

/// How long a request waits for what is in doubt, where nothing else was said.
pub const DOUBT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// What can be tuned of a unit.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long writes stay uncommitted at most; `None`: until something asks.
    pub commit_interval: Option<Duration>,
    /// The most data that an epoch holds before it is committed unasked, in bytes.
    pub epoch_data_max: u64,
    /// When journal areas are given back.
    pub settle: SettlePolicy,
    /// Below how much of the journal reserve, in percent, settling begins under pressure; writers
    /// are slowed down below half of that.
    pub settle_below: u8,
    /// How many areas are settled in one metadata transaction.
    pub settle_batch: usize,
    /// How long news for the metadata server are gathered.
    pub tell_interval: Duration,
    /// How full the pool's data space is, in percent, when that is warned of.
    pub warn_full: Vec<u8>,
    /// Whether extents that are given back are discarded on their device.
    pub discard: bool,
    /// Where the flags are at the metadata server: how long a commit waits for its answer before
    /// the volumes take no more writes; `None`: for ever.
    pub mds_timeout: Option<Duration>,
    /// On which terms the pool is claimed at the metadata server.
    pub ownership: Ownership,
    /// The largest write whose bytes go to the journal with its group, in bytes; zero: none.
    pub nvram_write_max: u64,
    /// How many free extents, and how much of the quota for data, the unit keeps in hand; `None`:
    /// all that there is.
    pub grant: Option<u32>,
    /// How long a request waits for contents of which it is not known whether they were committed.
    pub doubt_timeout: Duration,
    /// The most data of an atomic request, in bytes.
    pub txn_max: u64,
    /// The most pieces in which blocks of one extent are read; where there are more, on both sides,
    /// both places are read whole.
    pub read_pieces_max: usize,
    /// Commits of at most so many blocks go with sums of their data, where one flush is saved by
    /// that; zero: none.
    pub sum_blocks_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            commit_interval: Some(Duration::from_secs(5)),
            epoch_data_max: limits::EPOCH_DATA_MAX,
            settle: SettlePolicy::Pressure,
            settle_below: 50,
            settle_batch: 100,
            tell_interval: Duration::from_millis(500),
            warn_full: vec![80, 90],
            discard: false,
            mds_timeout: Some(MDS_TIMEOUT_DEFAULT),
            ownership: Ownership::default(),
            nvram_write_max: 0,
            grant: None,
            doubt_timeout: DOUBT_TIMEOUT_DEFAULT,
            txn_max: TXN_MAX_DEFAULT,
            read_pieces_max: READ_PIECES_MAX,
            sum_blocks_max: SUM_BLOCKS_MAX,
        }
    }
}

/// In how many pieces blocks of an extent are read, unless something else was said.
pub const READ_PIECES_MAX: usize = 32;

/// The device that the region is on, where it is on one.
const REGION_DEVICE: usize = 0;
/// Commits of more blocks than these are not slowed down much by a second flush.
pub const SUM_BLOCKS_MAX: usize = 64;

/// A device of the pool, with the extents on it.
pub(crate) struct Device<E: Env> {
    disk: Latching<E::Disk>,
    extents: DeviceExtents,
    /// A write or flush failed: nothing more is put there.
    failed: Cell<bool>,
    /// A discard failed, and that was said.
    discard_failed: Cell<bool>,
}

/// A storage unit. Cheap to clone: a handle.
pub struct Unit<E: Env>(Rc<Inner<E>>);

impl<E: Env> Clone for Unit<E> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

struct Inner<E: Env> {
    env: E,
    geometry: Geometry,
    limits: Limits,
    watermarks: Watermarks,
    config: Config,
    devices: Vec<Device<E>>,
    journal: Place<E, RegionOf<E>>,
    mds: Client<E>,
    hold: Hold,
    counters: Rc<Counters>,
    latencies: Rc<Latencies>,
    /// Requests that wait.
    waiters: Waiters,
    /// What the background does.
    progress: Progress,
    readers: Readers,
    state: RefCell<State>,
    /// Wakes the settle task.
    settle_wanted: Notify,
    /// One settle at a time.
    settle_lock: Mutex<copy::CopyBuffers>,
    /// Shared by settles that free what pairs left, of which there may be many.
    freeing: RwLock<()>,
    /// One checkpoint at a time.
    checkpoint_lock: Mutex<()>,
    /// Wakes the task that destages.
    destage_wanted: Notify,
    /// One destaging at a time.
    destage_lock: Mutex<Buf>,
    /// Wakes the task that tells the metadata server.
    news: Notify,
    /// Wakes the task that keeps the grant.
    grant_wanted: Notify,
    /// Volumes being changed.
    management: Management,
    /// When it was started.
    started: crate::env::Moment,
    /// When groups were linked in the journal.
    ages: linked::Ages,
    /// What is said to the coordinator of groups.
    talk: global::Talk,
    /// What outlives this process, where anything does.
    warm: Option<warm::Table>,
    /// What an earlier process had acknowledged is there, too.
    adopted: Cell<bool>,
    /// The background tasks end when this is set and they are woken.
    stopped: Cell<bool>,
}

/// Where an extent of the pool begins: the device's number, and the offset on it.
fn locate(
    devices: impl Iterator<Item = DeviceExtents>,
    extent: ExtentId,
    geometry: Geometry,
) -> (usize, u64) {
    let mut places = devices.map(|device| device.offset_of(extent, geometry)).enumerate();
    let found = places.find_map(|(device, at)| at.map(|at| (device, at)));
    found.expect("every extent of the pool is on one of its devices")
}

impl<E: Env> Inner<E> {
    /// Where a byte of an extent lies: the device's number, and the offset on it.
    fn locate(&self, extent: ExtentId, offset_in_extent: u64) -> (usize, u64) {
        let devices = self.devices.iter().map(|device| device.extents);
        let (device, at) = locate(devices, extent, self.geometry);
        (device, at + offset_in_extent)
    }

    /// A device takes no more writes: the domains that have extents there stop, and no other gets
    /// any.
    fn device_failed(&self, number: usize, reason: &str) {
        let device = &self.devices[number];
        if mutated(Mutant::FailedWriteForgotten) || device.failed.replace(true) {
            return;
        }
        tracing::error!(reason, "a device takes no more writes");
        self.warm_void(reason);
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let on = device.extents;
        let affected: BTreeSet<VolumeId> = state
            .pairs
            .bindings()
            .filter(|binding| binding.extents.into_iter().flatten().any(|e| on.contains(e)))
            .filter_map(|binding| binding.owner.map(|(volume, _)| volume))
            .collect();
        for volume in state.volumes.iter().filter(|volume| affected.contains(&volume.id)) {
            state.domains[volume.domain].fail(reason);
        }
        state.pool.withdraw(ExtentRun { start: on.first, count: on.count });
        state.wake_everyone();
    }

    /// Stops every domain: the journal failed, and nothing can be made durable any more.
    fn fail_all(&self, reason: &str) {
        let mut state = self.state.borrow_mut();
        tracing::error!(reason, "the unit takes no more writes");
        self.warm_void(reason);
        for domain in &mut state.domains {
            domain.fail(reason);
        }
        state.wake_everyone();
    }
}

impl<E: Env> Unit<E> {
    /// The volume of that name.
    pub fn volume(&self, name: &str) -> Option<Volume<E>> {
        let state = self.0.state.borrow();
        let (index, volume) = state.live().find(|(_, volume)| &*volume.name == name)?;
        Some(Volume::new(Rc::clone(&self.0), index, volume))
    }

    /// All volumes, in the order of their numbers.
    pub fn volumes(&self) -> Vec<Volume<E>> {
        let state = self.0.state.borrow();
        let volumes = state.live();
        volumes.map(|(i, volume)| Volume::new(Rc::clone(&self.0), i, volume)).collect()
    }

    /// Counters of this unit.
    pub fn counters(&self) -> Rc<Counters> {
        Rc::clone(&self.0.counters)
    }

    /// How long this unit's operations took.
    pub fn latencies(&self) -> Rc<Latencies> {
        Rc::clone(&self.0.latencies)
    }

    /// How many pairs have a journal area.
    pub fn journal_areas(&self) -> usize {
        self.0.state.borrow().journaled.len()
    }

    /// Bytes of metadata written to the unit's region.
    pub fn metadata_bytes(&self) -> u64 {
        self.0.journal.bytes_written()
    }

    /// Whether nothing can be committed any more, because the metadata server, where the flags are,
    /// was silent for too long.
    pub fn is_without_answer(&self) -> bool {
        self.0.journal.is_without_answer()
    }

    /// What the metadata server counts. Waits for as long as it does not answer.
    pub async fn server_status(&self) -> Result<ServerStatus, MdsError> {
        self.0.mds.server_status().await
    }

    /// How the exchange with the metadata server goes.
    pub fn link_status(&self) -> ClientStatus {
        self.0.mds.status()
    }

    /// What is left of the lease; `None`: there is none.
    pub fn lease_left(&self) -> Option<Duration> {
        self.0.hold.left(self.0.env.now())
    }

    /// Whether the pool is not the unit's any more: its lease has ended, or it was replaced.
    pub fn is_fenced(&self) -> bool {
        self.0.check_owned().is_err()
    }

    /// Commits all volumes, or one: when this returns, all that was acknowledged before the call is
    /// durable.
    pub async fn commit(&self, volume: Option<VolumeId>) -> Result<(), IoError> {
        let count = self.0.state.borrow().volumes.len();
        let mut result = Ok(());
        for index in 0..count {
            let (id, stage) = {
                let volume = &self.0.state.borrow().volumes[index];
                (volume.id, volume.stage)
            };
            if stage != Stage::Gone && volume.is_none_or(|wanted| wanted == id) {
                let flushed = self.0.flush(index).await;
                // One that has stopped does not keep the others from being committed; one that is
                // being deleted has nothing to lose.
                if stage == Stage::Live {
                    result = result.and(flushed);
                }
            }
        }
        result
    }

    /// Puts all data that is committed, and in the journal alone, in its place on the devices, as
    /// far as those work.
    pub async fn destage(&self) {
        self.0.destage_all().await;
    }

    /// Ends the journaling of all areas, or of one volume's, after a commit; areas that are in use
    /// meanwhile are passed over.
    pub async fn settle(&self, volume: Option<VolumeId>) -> Result<SettleReport, IoError> {
        self.commit(volume).await?;
        self.0.destage_all().await;
        let settled = self.0.settle_all(volume).await;
        settled.map_err(|reason| IoError::Latched(reason.into()))
    }

    /// Commits everything, brings the home and the metadata server up to date, and takes no more
    /// requests. Where a group goes back to its last cut meanwhile, what is left is committed: its
    /// clients are told of what is lost, and a stop has nothing to add to that.
    pub async fn shut_down(&self) -> Result<(), IoError> {
        {
            let mut state = self.0.state.borrow_mut();
            state.stopping = true;
            if state.staged.as_ref().is_some_and(|staged| !staged.is_joined()) {
                state.drop_staged(AtomicError::Io(IoError::ShuttingDown));
            }
            state.wake_everyone();
        }
        let committed = loop {
            match self.commit(None).await {
                Err(IoError::WentBack(_)) => {}
                committed => break committed,
            }
        };
        let emptied = self.0.unless_silent(self.0.emptied()).await.is_some();
        if emptied
            && self.0.journal.failure().is_none()
            && let Some(_one_at_a_time) = self.0.unless_silent(self.0.settle_lock.lock()).await
            && let Some(_all_freed) = self.0.unless_silent(self.0.freeing.write()).await
        {
            self.0.destage_all().await;
            self.0
                .checkpoint()
                .await
                .map_err(|error| IoError::Latched(error.to_string().into()))?;
            self.0.leave(committed.is_ok()).await;
        }
        self.0.stop();
        committed
    }
}

impl<E: Env> Inner<E> {
    /// Ends the background tasks.
    fn stop(&self) {
        self.stopped.set(true);
        self.settle_wanted.notify_one();
        self.destage_wanted.notify_one();
        self.news.notify_one();
        self.hold.stop();
        self.grant_wanted.notify_one();
        self.journal.look_again();
        self.talk.speak();
        for domain in &self.state.borrow().domains {
            domain.wake.notify_one();
            domain.decided.notify_waiters();
        }
    }

    /// Names of all devices, for messages.
    fn device_name(&self, device: usize) -> &str {
        self.devices[device].disk.name()
    }
}
