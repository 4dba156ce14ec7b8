//! What the harness demands of an engine, so that toys can be tried before and beside the real one.

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use crate::env::sim::rng::Rng;
use crate::env::sim::{Shape, SimEnv, SimStorage};

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No room: the volume goes on.
    NoSpace,
    /// A device failed, or one had failed before; the text says more.
    Failed(String),
}

/// The ways to make zeros of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// Trim: whole blocks become unused.
    Trim,
    /// Write-zeroes that may free space.
    Hole,
    /// Write-zeroes that may not.
    NoHole,
}

/// How much data a pool has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The unit of allocation, in bytes.
    pub extent: u64,
    /// How many such units volumes may touch before a write may find no room.
    pub extents: usize,
}

/// The result of an operation on a volume.
pub type Outcome<T> = Result<T, Refusal>;

/// A storage system of some geometry and with some policies, drawn from a seed.
pub trait Engine: Clone + 'static {
    /// The system, serving.
    type Running: Running;

    /// Draws geometry and policies.
    fn draw(rng: &mut Rng) -> Self;
    /// The machine that it runs on.
    fn shape(&self) -> Shape;
    /// The sizes of the volumes, in bytes.
    fn volumes(&self) -> Vec<u64>;
    /// The unit of requests' offsets and lengths, in bytes; a divisor of the volumes' sizes.
    fn granule(&self) -> usize;
    /// How much data the pool has room for.
    fn room(&self) -> Room;
    /// Where commits come only where clients ask for them, so that they may be large: the bytes
    /// between two writes that are not neighbours.
    fn long_epochs(&self) -> Option<u64> {
        None
    }
    /// How long it goes on at most when nobody renews its lease, where it has one.
    fn lease(&self) -> Option<Duration> {
        None
    }
    /// Whether a start after a crash of the process alone finds all that was acknowledged, as long
    /// as its table in the machine's memory is valid.
    fn is_warm(&self) -> bool {
        false
    }
    /// What serves it from outside fails no more.
    fn calm(&self) {}
    /// The same system for another machine that reaches its disks, where there may be one: which
    /// claims them from this one, with the word that it is `fenced` or without.
    fn elsewhere(&self, fenced: bool) -> Option<Self> {
        let _ = fenced;
        None
    }
    /// The machine before this one is gone: it claims from nobody any more.
    fn came_in(&mut self) {}
    /// Whether an open failed because the system is another machine's.
    fn is_owned_elsewhere(why: &str) -> bool {
        let _ = why;
        false
    }
    /// Whether an open that failed so is tried again by whoever runs the system, with better luck.
    fn starts_again(&self, why: &str) -> bool {
        let _ = why;
        false
    }
    /// The same system for a machine that parts from this one's: what is stored outside of the
    /// machine's media is copied.
    #[must_use]
    fn fork(&self) -> Self;
    /// A hash of what is stored outside of the machine's media.
    fn stored(&self) -> u64;
    /// Where in the region groups lie of which newer ones follow, oldest first: what may rot there
    /// is noticed.
    /// `read` gives what the region holds, and says whether it can be read.
    fn older_groups(&self, read: &dyn Fn(u64, &mut [u8]) -> bool) -> Vec<Range<u64>>;
    /// Makes the volumes on fresh media.
    fn format(
        &self,
        env: SimEnv,
        storage: SimStorage,
    ) -> impl Future<Output = Result<(), String>> + 'static;
    /// Recovers, and starts to serve.
    fn open(
        &self,
        env: SimEnv,
        storage: SimStorage,
    ) -> impl Future<Output = Result<Self::Running, String>> + 'static;
}

/// A system that serves. Cheap to clone: a handle.
pub trait Running: Clone + 'static {
    /// A volume of it.
    type Volume: Volume;

    /// The volumes, in the order of [`Engine::volumes`].
    fn volumes(&self) -> Vec<Self::Volume>;
    /// Commits what is open on every volume: a flush of all.
    fn commit(&self) -> impl Future<Output = Outcome<()>> + 'static;
    /// Takes back journal space, as a user's command does.
    fn settle(&self) -> impl Future<Output = Outcome<()>> + 'static;
    /// Commits, stops every task, gives back every buffer.
    fn shutdown(&self) -> impl Future<Output = Outcome<()>> + 'static;
    /// Invariants that hold at all times.
    fn check(&self) -> Result<(), String>;
    /// Whether nothing is under way, in the background either.
    fn is_quiet(&self) -> bool;
    /// Whether it takes no more changes, as it may, because it waited too long for an answer.
    fn has_given_up(&self) -> bool {
        false
    }
}

/// A volume. Cheap to clone: a handle.
pub trait Volume: Clone + 'static {
    /// The largest write, and read, in bytes.
    fn request_max(&self) -> u64;
    /// Reads `len` bytes from `offset`.
    fn read(&self, offset: u64, len: usize) -> impl Future<Output = Outcome<Vec<u8>>> + 'static;
    /// Writes `data` at `offset`.
    fn write(
        &self,
        offset: u64,
        data: Vec<u8>,
        fua: bool,
    ) -> impl Future<Output = Outcome<()>> + 'static;
    /// The parts of a range of which [`Volume::zero`] makes zeros, each of them atomically.
    fn zeroed(&self, offset: u64, len: u64, how: Zeroing) -> Vec<Range<u64>>;
    /// Makes zeros of a range.
    fn zero(
        &self,
        offset: u64,
        len: u64,
        how: Zeroing,
        fua: bool,
    ) -> impl Future<Output = Outcome<()>> + 'static;
    /// Makes durable what was acknowledged before.
    fn flush(&self) -> impl Future<Output = Outcome<()>> + 'static;
}
