//! The environment on a real kernel: disks and sockets through the ring, its clock, its random
//! numbers.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`disk`], `probe`, [`open_error`] | disks: claiming, asking what they are, using them |
//! | [`reservation`] | keeping other hosts' writes out of a shared disk |
//! | [`nvram`] | what stands in for persistent memory |
//! | [`link`] | the channel to a metadata server: another thread, or UDP |
//! | [`shared`] | memory that outlives the process |
//! | [`signals`], [`notify`] | the ends of a service: being stopped, saying that it is ready |
//! | [`activation`] | sockets that a service manager opened for this process |

pub mod activation;
pub mod disk;
pub mod link;
pub mod notify;
pub mod nvram;
pub mod open_error;
mod probe;
pub mod reservation;
pub mod shared;
pub mod signals;

use std::future::Future;
use std::time::Duration;

use uuid::Uuid;

pub use disk::OsDisk;
pub use link::{OsLink, Seal};
pub use notify::notify_ready;
pub use nvram::OsNvram;
pub use open_error::{DiskOpenError, DiskOpenErrorKind};
pub use signals::{Signals, StopSignal};

use super::{Env, Moment};
use crate::uring::Ring;
use crate::uring::buffers::BufferPool;

/// The world as it is. Cheap to clone: a handle.
#[derive(Clone)]
pub struct OsEnv {
    ring: Ring,
    buffers: BufferPool,
}

impl OsEnv {
    /// The world seen from `ring`, with `buffers` for its I/O, which are registered with it.
    pub fn new(ring: Ring, buffers: BufferPool) -> Self {
        ring.register_buffers(&buffers);
        Self { ring, buffers }
    }

    /// The ring that everything goes through.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }
}

impl Env for OsEnv {
    type Disk = OsDisk;
    type Nvram = OsNvram;
    type Link = OsLink;

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.ring.spawn(task);
    }

    fn now(&self) -> Moment {
        Moment(self.ring.now_ns())
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.ring.sleep(duration)
    }

    fn random(&self) -> u64 {
        // Six bits of such a number are always the same, four in the high half and two in the low;
        // turned by half a word they meet random ones.
        let (high, low) = Uuid::new_v4().as_u64_pair();
        high ^ low.rotate_left(32)
    }

    fn buffers(&self) -> &BufferPool {
        &self.buffers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::RingOptions;
    use crate::uring::buffers::ARENA_BLOCK;

    /// Goal: all bits of random numbers vary; time passes while one sleeps; tasks run.
    #[test]
    fn the_world_is_there() {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        let buffers = BufferPool::new(ARENA_BLOCK, ARENA_BLOCK).unwrap();
        let env = OsEnv::new(ring.clone(), buffers);
        let (mut ones, mut zeros) = (0, 0);
        for _ in 0..200 {
            let random = env.random();
            (ones, zeros) = (ones | random, zeros | !random);
        }
        assert_eq!((ones, zeros), (u64::MAX, u64::MAX));
        let world = env.clone();
        ring.block_on(async move {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let start = world.now();
            let inner = world.clone();
            world.spawn(async move {
                inner.sleep(Duration::from_millis(2)).await;
                sender.send(inner.now()).unwrap();
            });
            assert!(receiver.await.unwrap().since(start) >= Duration::from_millis(2));
        });
        assert!(env.buffers().try_acquire(10).unwrap().view_all().registered().is_some());
        ring.shutdown();
    }
}
