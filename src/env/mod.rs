//! What the engine may touch: disk, NVRAM, network, clock, randomness (design section 10).
//!
//! The engine is generic over [`Env`], so that the same code runs on io_uring ([`os`]) and inside
//! the deterministic simulator ([`sim`]). Nothing above this room calls the system's clock, threads
//! or random numbers.
//!
//! # Contracts
//!
//! - **Ownership**: an operation owns its [`View`] until it has ended, even when its future is
//!   dropped; the memory is not given out again before that.
//! - **Cancellation**: dropping a future does not stop the operation: it may still be applied.
//! - **Ordering**: operations under way at the same time are applied in any order.
//!   What ends earlier is heard earlier: a task that awaits an operation is polled before one whose
//!   operation ended later (the ring's tasks run in the order in which they were woken). So
//!   nothing is believed that came after a failure, as long as who awaits it is the one who acts.
//! - **Durability**: a completed [`Disk::write`] is durable only when a [`Disk::flush`] that was
//!   *submitted after its completion* has returned, or when it was [`Durability::Durable`] itself.
//! - **Failure**: nothing is retried here. A failed flush or durable write says nothing about what
//!   is on the medium; the caller must treat the device as failed.

pub mod aside;
#[cfg(test)]
pub(crate) mod fake;
pub mod flags;
pub mod latch;
pub mod os;
pub mod region;
pub mod shared;
pub mod sim;

use std::future::Future;
use std::io;
use std::time::Duration;

use crate::uring::buffers::{BufferPool, View};

/// A moment of the environment's monotonic clock, in nanoseconds since an arbitrary origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// The time from `earlier` to this moment; zero where `earlier` is the later one.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Everything that the engine may touch of the world. Cheap to clone: a handle.
pub trait Env: Clone + 'static {
    /// A data device.
    type Disk: Disk;
    /// Persistent memory.
    type Nvram: Nvram;
    /// The channel to the metadata server.
    type Link: Link;

    /// Runs a task on this unit's executor until it ends.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// The monotonic clock, which goes on while the machine sleeps.
    fn now(&self) -> Moment;

    /// Returns when at least `duration` has passed.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static;

    /// Sixty-four random bits.
    fn random(&self) -> u64;

    /// The aligned buffers for I/O.
    fn buffers(&self) -> &BufferPool;
}

/// How far a write has got when it is reported as complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// In the device, perhaps only in its volatile cache.
    Volatile,
    /// On the medium (FUA; `RWF_DSYNC`). Says nothing about any other write.
    Durable,
}

/// A data device: a raw disk, a partition, a loop device or a file. Cheap to clone: a handle.
///
/// Offsets and lengths are in bytes and multiples of [`Disk::sector`]; the caller asserts it.
pub trait Disk: Clone + 'static {
    /// The device's name for messages: its path.
    fn name(&self) -> &str;
    /// Size in bytes.
    fn len(&self) -> u64;
    /// Whether the device has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The unit that is written whole or not at all, in bytes: the logical sector.
    fn sector(&self) -> u32;
    /// Whether completed writes need a flush to be durable.
    fn volatile_cache(&self) -> bool;

    /// Fills `view` from `offset`.
    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static;
    /// Writes `view` at `offset`.
    fn write(
        &self,
        offset: u64,
        view: View,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static;
    /// Makes durable every write that had completed when this was called.
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static;
    /// Tells the device that the bytes are not needed; what they read as afterwards is undefined.
    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + 'static;
}

/// A place for dirty flags and journal: persistent memory, or a part of a device that stands in for
/// it ([`region::DeviceRegion`]). Cheap to clone: a handle.
pub trait Region: Clone + 'static {
    /// Size in bytes.
    fn len(&self) -> u64;
    /// Whether the region has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The alignment of offsets and lengths, in bytes. A piece of this size that was being written
    /// at a crash is old, new, torn, or unreadable: whoever overwrites keeps a second copy.
    fn sector(&self) -> u32;
    /// Fills `view` from `offset`.
    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static;
    /// Writes every piece and returns when all of them are durable. At a crash before that, any
    /// part of any of them may have arrived.
    fn persist(&self, pieces: Vec<(u64, View)>) -> impl Future<Output = io::Result<()>> + 'static;
    /// Writes every piece and returns when all of them are durable, and so is every write to the
    /// device beneath ([`Region::whole`]) that had completed before this was called: where there is
    /// none, or every write is durable when it has completed, the same as [`Region::persist`].
    #[track_caller]
    fn persist_all(
        &self,
        pieces: Vec<(u64, View)>,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.persist(pieces)
    }
    /// Makes durable everything that can be read now, whoever wrote it: a recovery must not act on
    /// what may vanish later.
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static;
    /// The device that the region is a part of, where there is data beside it.
    #[must_use]
    fn whole(&self) -> Option<Self> {
        None
    }
}

/// Persistent memory beside the data devices: a region of which parts are used.
pub trait Nvram: Region {
    /// Its name for messages: its path.
    fn name(&self) -> &str;
    /// The `len` bytes of it from `start`. They must be whole sectors of it.
    #[must_use]
    fn part(&self, start: u64, len: u64) -> Self;
}

/// The channel to the metadata server: datagrams that may be lost, repeated or reordered.
pub trait Link: Clone + 'static {
    /// The largest datagram that can be sent, in bytes.
    fn payload_max(&self) -> usize;
    /// Sends one datagram; it may never arrive.
    fn send(&self, datagram: Vec<u8>);
    /// The next datagram that has arrived. One caller at a time.
    fn receive(&self) -> impl Future<Output = Vec<u8>>;
}
