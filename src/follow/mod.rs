//! A follower: reads the volumes of a pool beside the unit that writes them, on another machine
//! with the same disks, where the pool's flags are at the metadata server (design section 8).
//!
//! | file | what it is about |
//! | --- | --- |
//! | [`cache`], [`lease`], [`reads`] | decisions: plain functions over plain data |
//! | [`poll`] | what changed, and that the session lives |
//! | [`read`], [`volume`] | requests |
//! | [`error`] | why not |
//!
//! A block is read by the line that is known, and then the server is asked what has changed: one
//! question, sent after the read has ended, for all reads that wait for it. What was where it is
//! still is answered; the rest is read again by the new lines.
//!
//! # Contracts
//!
//! - **Committed**: a read returns of each block what was committed at some moment between its
//!   beginning and its end: never what is not committed, never what was replaced before it began.
//! - **Freed extents**: the server is told of the oldest view that a read under way goes by, and
//!   what was freed later is kept out of use. So an extent is not read after it became another's,
//!   but by one whose lease is over, and that is never answered; nor is one that took longer than
//!   a lease, for which nothing is held back any more.
//! - **Lease**: renewed by each answer, counted from when its question was sent. When it is over,
//!   every read fails with that reason until the server answers again, and then all lines are read
//!   anew.
//! - **Volumes** made, resized and deleted are seen within [`VOLUMES_EVERY`].
//! - **Cancellation**: a read's future must be driven to its end once polled.

pub mod cache;
mod error;
pub mod lease;
mod poll;
mod read;
pub mod reads;
mod volume;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

pub use error::{FollowError, ReadError};
pub use poll::VOLUMES_EVERY;
pub use volume::Volume;

use self::cache::Cache;
use self::lease::Lease;
use self::reads::Reads;
use crate::env::{Env, Moment};
use crate::format::ids::{ExtentId, HostId, Incarnation, LogicalExtent, PoolId, UnitId, VolumeId};
use crate::format::layout::{DeviceExtents, Geometry};
use crate::mds::client::{Client, ClientStatus};
use crate::mds::records::{Claim, VolumeInfo};

/// The lease of a follower where nothing else was said.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(5);

/// What a follower is made of.
pub struct Parts<E: Env> {
    /// The environment.
    pub env: E,
    /// The pool.
    pub pool: PoolId,
    /// The unit that writes it.
    pub unit: UnitId,
    /// This machine.
    pub host: HostId,
    /// The sizes of blocks and extents.
    pub geometry: Geometry,
    /// All devices of the pool, which need not be claimed, and the extents on them.
    pub devices: Vec<(E::Disk, DeviceExtents)>,
    /// The channel to the metadata server.
    pub link: E::Link,
    /// For how long it may be silent before reads fail; the server may grant less.
    pub lease: Duration,
}

/// How a follower does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FollowStatus {
    /// The view that it has seen.
    pub view: u64,
    /// How old that is: the time since the last question was sent that was answered.
    pub age: Duration,
    /// How long it can be relied on; zero: reads fail.
    pub lease_left: Duration,
    /// Questions that were answered.
    pub polls: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Times that blocks were read again because they had changed meanwhile.
    pub again: u64,
    /// Times that all lines were read.
    pub readings: u64,
}

/// A follower of a pool. Cheap to clone: a handle.
pub struct Follower<E: Env>(Rc<Inner<E>>);

impl<E: Env> Clone for Follower<E> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

struct Inner<E: Env> {
    parts: Parts<E>,
    /// The session; none between one that has ended and the next.
    client: RefCell<Option<Client<E>>>,
    state: RefCell<State>,
    counters: Counters,
    /// A read waits for an answer.
    wanted: Notify,
    /// A question was answered, or all is over.
    told: Notify,
    /// Volumes were made, changed or deleted.
    volumes_changed: Notify,
    stop: Notify,
    stopped: Cell<bool>,
}

#[derive(Default)]
struct Counters {
    polls: Cell<u64>,
    reads: Cell<u64>,
    again: Cell<u64>,
    readings: Cell<u64>,
}

fn increment(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

struct State {
    cache: Cache,
    lease: Lease,
    volumes: Vec<VolumeInfo>,
    volumes_seen: Moment,
    /// When the last question was sent that was answered.
    answered_at: Moment,
    /// The numbers of the last question begun, of the last answered, and of the highest one that a
    /// read waits for.
    begun: u64,
    answered: u64,
    needed: u64,
    /// The oldest view that the server knows to be used here.
    acknowledged: u64,
    reads: Reads,
}

impl State {
    /// The oldest view that anything here goes by.
    fn used(&self, now: Moment) -> u64 {
        self.reads.oldest(now).unwrap_or(u64::MAX).min(self.cache.view())
    }
}

impl<E: Env> Follower<E> {
    /// Begins to follow. Returns when the server has told of all there is; waits for as long as it
    /// is silent.
    pub async fn open(parts: Parts<E>) -> Result<Follower<E>, FollowError> {
        let (client, lease) = poll::attach(&parts).await?;
        let cache = poll::all_lines(&parts, &client, 0, 1).await?;
        let sent = parts.env.now();
        let volumes = client.volumes().await?;
        let state = State {
            acknowledged: 0,
            answered_at: sent,
            volumes_seen: sent,
            cache,
            lease,
            volumes,
            begun: 0,
            answered: 0,
            needed: 0,
            reads: Reads::default(),
        };
        let inner = Rc::new(Inner {
            client: RefCell::new(Some(client)),
            state: RefCell::new(state),
            counters: Counters { readings: Cell::new(1), ..Counters::default() },
            wanted: Notify::new(),
            told: Notify::new(),
            volumes_changed: Notify::new(),
            stop: Notify::new(),
            stopped: Cell::new(false),
            parts,
        });
        inner.parts.env.spawn(Rc::clone(&inner).keep_up());
        Ok(Follower(inner))
    }

    /// The volumes that there are, by number.
    pub fn volumes(&self) -> Vec<Volume<E>> {
        let state = self.0.state.borrow();
        let live = state.volumes.iter().filter(|volume| !volume.deleting);
        live.map(|volume| Volume::new(Rc::clone(&self.0), volume.id)).collect()
    }

    /// Returns when volumes were made, changed or deleted since the last time that it did. One
    /// caller at a time.
    pub async fn volumes_changed(&self) {
        self.0.volumes_changed.notified().await;
    }

    /// How it does.
    pub fn status(&self) -> FollowStatus {
        let (state, counters) = (self.0.state.borrow(), &self.0.counters);
        let now = self.0.parts.env.now();
        FollowStatus {
            view: state.cache.view(),
            age: now.since(state.answered_at),
            lease_left: state.lease.left(now),
            polls: counters.polls.get(),
            reads: counters.reads.get(),
            again: counters.again.get(),
            readings: counters.readings.get(),
        }
    }

    /// How the exchange with the metadata server goes, where there is a session.
    pub fn client_status(&self) -> ClientStatus {
        self.0.client.borrow().as_ref().map(Client::status).unwrap_or_default()
    }

    /// Where in which volume an extent is, as far as is known here.
    pub fn owner_of(&self, extent: ExtentId) -> Option<(VolumeId, LogicalExtent)> {
        self.0.state.borrow().cache.owner_of(extent)
    }

    /// Takes no more reads, and ends the session where the server answers within `patience`.
    pub async fn close(&self, patience: Duration) {
        let inner = &self.0;
        inner.stopped.set(true);
        inner.stop.notify_one();
        inner.told.notify_waiters();
        let Some(client) = inner.client.take() else { return };
        let enough = Box::pin(inner.parts.env.sleep(patience));
        // Where it does not hear of it, the lease ends by itself.
        let _ = futures_util::future::select(Box::pin(client.detach()), enough).await;
    }
}

impl<E: Env> Parts<E> {
    fn claim(&self) -> Claim {
        Claim {
            pool: self.pool,
            host: self.host,
            unit: self.unit,
            incarnation: None,
            after: Incarnation::default(),
            lease_ms: u32::try_from(self.lease.as_millis()).unwrap_or(u32::MAX),
            fenced: false,
            reads: true,
        }
    }
}
