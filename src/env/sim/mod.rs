//! The simulated environment: the engine's world as a deterministic function of a seed.
//!
//! A [`Machine`] is what survives: disks, persistent memory, the metadata store's storage. It is
//! booted into a [`SimEnv`], which runs tasks one at a time in virtual time until they are done or
//! the planned crash strikes; [`Machine::halt`] then resolves what was volatile, by chance, and the
//! machine can boot again.
//!
//! # Contracts
//!
//! - **Determinism**: whoever uses nothing but the environment runs the same way for the same seed,
//!   to the last event; [`Machine::trace`] is a hash of all of it.
//! - **Order**: of the tasks that are ready any may run next; an I/O takes any time within the
//!   [`Faults`] table's bounds, so completions come in any order.
//! - **Crash**: at the call that [`SimEnv::crash_in`] names, or when [`Machine::halt`] is called.
//!   Then every task is dropped where it stands, and each medium keeps what its module says.
//!
//! # Adding a fault
//!
//! A rate in [`faults`], drawn in one of its `draw_…` functions; the place where it strikes is the
//! end of the operation, in `world`; what it leaves behind belongs to the medium.

pub mod calls;
pub mod disk;
pub mod faults;
pub mod image;
pub mod link;
pub mod machine;
pub mod medium;
pub mod nvram;
pub mod outcomes;
pub mod rng;
pub mod storage;
mod world;

use std::cell::RefCell;
use std::future::{Future, pending};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use calls::Calls;
pub use disk::{SimDisk, SimNvram};
pub use faults::Faults;
pub use link::{Peer, Server, SimLink};
pub use machine::{DiskShape, Machine, Shape};
pub use medium::Crash;
pub use outcomes::Media;
pub use rng::Rng;
pub use storage::SimStorage;

use super::{Env, Moment};
use crate::uring::buffers::BufferPool;
use crate::uring::executor::Executor;
use world::World;

/// One operating period of a simulated machine. Cheap to clone: a handle.
#[derive(Clone)]
pub struct SimEnv(Rc<Shell>);

/// What the handles share.
struct Shell {
    world: RefCell<World>,
    executor: Executor,
    buffers: BufferPool,
}

/// Why a run ended before what it was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The planned crash has struck.
    Crashed,
    /// Nothing is ready, and nothing will ever happen.
    Stuck,
    /// The time or the steps allowed are used up.
    Limit,
}

/// How long a run may take.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Virtual time, in nanoseconds.
    pub time_ns: u64,
    /// Tasks polled and events happened.
    pub steps: u64,
}

/// The longest a poll of a task takes in virtual time, in nanoseconds.
const POLL_NS_MAX: u64 = 400;

impl SimEnv {
    /// Runs until `main` has ended.
    pub fn run<T: 'static>(
        &self,
        limit: Limit,
        main: impl Future<Output = T> + 'static,
    ) -> Result<T, Stop> {
        self.run_watched(limit, main, || ())
    }

    /// Runs until `main` has ended, calling `watch` after each step.
    pub fn run_watched<T: 'static>(
        &self,
        limit: Limit,
        main: impl Future<Output = T> + 'static,
        mut watch: impl FnMut(),
    ) -> Result<T, Stop> {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        self.spawn(async move {
            let output = main.await;
            *slot.borrow_mut() = Some(output);
        });
        let deadline = self.now().0.saturating_add(limit.time_ns);
        for _ in 0..limit.steps {
            if self.crashed() {
                return Err(Stop::Crashed);
            }
            if let Some(output) = result.borrow_mut().take() {
                return Ok(output);
            }
            if self.now().0 > deadline {
                return Err(Stop::Limit);
            }
            if !self.step() {
                return Err(Stop::Stuck);
            }
            watch();
        }
        Err(Stop::Limit)
    }

    /// Polls one task or lets one event happen; false when there is neither.
    fn step(&self) -> bool {
        let ready = self.0.executor.ready_len();
        let mut world = self.0.world.borrow_mut();
        let due = world.next_event().is_some_and(|at| at.0 <= world.now);
        if ready == 0 || (due && world.rng.chance(500_000)) {
            let any = world.next_event().is_some();
            world.fire();
            return any;
        }
        let nth = world.rng.below(ready as u64);
        world.now += world.rng.below(POLL_NS_MAX);
        drop(world);
        self.0.executor.poll_nth(nth as usize)
    }

    /// A disk of the machine.
    pub fn disk(&self, index: usize) -> SimDisk {
        SimDisk::new(Rc::clone(&self.0), index)
    }

    /// All disks of the machine.
    pub fn disks(&self) -> Vec<SimDisk> {
        let count = self.0.world.borrow().disks.len();
        (0..count).map(|index| self.disk(index)).collect()
    }

    /// The machine's persistent memory, where it has one.
    pub fn nvram(&self) -> Option<SimNvram> {
        let there = self.0.world.borrow().nvram.is_some();
        there.then(|| SimNvram::new(Rc::clone(&self.0)))
    }

    /// A client's channel to the server.
    pub fn link(&self, peer: Peer) -> SimLink {
        SimLink::new(Rc::clone(&self.0), peer)
    }

    /// Starts the server; datagrams sent while there is none are lost.
    pub fn serve(&self, server: Box<dyn Server>) {
        self.0.world.borrow_mut().server = Some(server);
    }

    /// Plans the crash for the environment call after `more` others, or calls it off.
    pub fn crash_in(&self, more: Option<u64>) {
        self.0.world.borrow().calls.crash_in(more);
    }

    /// Whether the crash has struck.
    pub fn crashed(&self) -> bool {
        self.0.world.borrow().calls.crashed()
    }

    /// How many environment calls there were in this period.
    pub fn calls(&self) -> u64 {
        self.0.world.borrow().calls.made()
    }

    /// The counter of environment calls, for what makes some besides the environment.
    pub fn call_counter(&self) -> Calls {
        self.0.world.borrow().calls.clone()
    }

    /// What the media hold at this instant, volatile or not.
    pub fn media(&self) -> Media {
        let world = self.0.world.borrow();
        Media { disks: world.disks.clone(), nvram: world.nvram.clone() }
    }

    /// A number that is another one after anything was written, has arrived or became durable.
    pub fn media_version(&self) -> u64 {
        let world = self.0.world.borrow();
        outcomes::version(&world.disks, world.nvram.as_ref())
    }

    /// From now on these faults are injected.
    pub fn set_faults(&self, faults: Faults) {
        self.0.world.borrow_mut().faults = faults;
    }

    /// The faults that are being injected.
    pub fn faults(&self) -> Faults {
        self.0.world.borrow().faults.clone()
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.0.executor.len()
    }

    /// Adds to the trace, for what happens above the environment.
    pub fn note(&self, what: &str, place: u64, len: u64) {
        self.0.world.borrow_mut().note(what, place, len);
    }
}

impl Env for SimEnv {
    type Disk = SimDisk;
    type Nvram = SimNvram;
    type Link = SimLink;

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if !self.crashed() {
            self.0.executor.spawn(task);
        }
    }

    fn now(&self) -> Moment {
        Moment(self.0.world.borrow().now)
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        ended(self.0.world.borrow_mut().sleep(duration))
    }

    fn random(&self) -> u64 {
        self.0.world.borrow_mut().rng.bits()
    }

    fn buffers(&self) -> &BufferPool {
        &self.0.buffers
    }
}

/// Waits for the end of an operation; for ever when the crash came first.
async fn ended<T>(receiver: oneshot::Receiver<T>) -> T {
    match receiver.await {
        Ok(result) => result,
        Err(_) => pending().await,
    }
}
