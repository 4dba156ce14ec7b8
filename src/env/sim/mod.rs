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
//! A row in [`faults::TABLE`], with the promise that it leaves intact: a run draws its rate and
//! checks that promise. Where it strikes ([`faults::Fault`] asked for by `World::strikes`) is the
//! end of the operation, in `world`, or the sending of a datagram, in [`network`]; what it leaves
//! behind belongs to the medium. `tests/sim.rs` fails where a row never strikes.

pub mod calls;
pub mod disk;
pub mod faults;
pub mod image;
pub mod link;
pub mod machine;
pub mod medium;
pub mod network;
pub mod nvram;
pub mod outcomes;
pub mod pace;
pub mod parts;
pub mod points;
pub mod rng;
pub mod shared;
pub mod storage;
mod world;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

use calls::Calls;
pub use disk::{SimDisk, SimNvram};
pub use faults::{Fault, Faults, Struck};
pub use link::{Peer, Server, SimLink};
pub use machine::{DiskShape, Machine, Rot, Shape};
pub use medium::Crash;
pub use outcomes::Media;
pub use pace::Pace;
pub use parts::Part;
pub use points::{Point, Points};
pub use rng::Rng;
pub use storage::SimStorage;

use super::shared::SharedMemory;
use super::{Env, Moment};
use crate::uring::buffers::BufferPool;
use crate::uring::executor::Executor;
pub use world::Aim;
use world::World;

/// One operating period of a simulated machine. Cheap to clone: a handle.
#[derive(Clone)]
pub struct SimEnv(Rc<Shell>);

/// What the handles share.
struct Shell {
    world: RefCell<World>,
    executor: Executor,
    buffers: BufferPool,
    /// The number of persist points at which the run pauses.
    pause_at: Cell<u64>,
    /// Where the tasks woken by a failure begin on the ready list, while the run is paused before
    /// they hear of it.
    unheard: Cell<Option<usize>>,
    /// How far it may go, where other machines share its time.
    pace: Pace,
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
    /// There is something that [`SimEnv::pause_at`] wanted to look at.
    Paused,
}

/// What [`SimEnv::start`] has started.
pub struct Job<T>(Rc<RefCell<Option<T>>>, Limit);

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
        let mut job = self.start(limit, main);
        loop {
            match self.go_on(&mut job) {
                Err(Stop::Paused) => {}
                other => return other,
            }
        }
    }

    /// Starts `main`; [`SimEnv::go_on`] runs it.
    pub fn start<T: 'static>(
        &self,
        limit: Limit,
        main: impl Future<Output = T> + 'static,
    ) -> Job<T> {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        self.spawn(async move {
            let output = main.await;
            *slot.borrow_mut() = Some(output);
        });
        // Jumps of the clock do not count.
        let time_ns = self.lived().saturating_add(limit.time_ns);
        Job(result, Limit { time_ns, ..limit })
    }

    /// Runs until `main` has ended, calling `watch` after each step.
    pub fn run_watched<T: 'static>(
        &self,
        limit: Limit,
        main: impl Future<Output = T> + 'static,
        watch: impl FnMut(),
    ) -> Result<T, Stop> {
        let mut job = self.start(limit, main);
        self.go_on_watched(&mut job, watch)
    }

    /// Runs until a job has ended, or until a pause.
    pub fn go_on<T>(&self, job: &mut Job<T>) -> Result<T, Stop> {
        self.go_on_watched(job, || ())
    }

    fn go_on_watched<T>(&self, job: &mut Job<T>, mut watch: impl FnMut()) -> Result<T, Stop> {
        loop {
            if let Some(ended) = self.advance(job, &mut watch) {
                return ended;
            }
        }
    }

    /// As [`SimEnv::run`], beside other machines: at this one's pace.
    pub async fn run_beside<T: 'static>(
        &self,
        limit: Limit,
        main: impl Future<Output = T> + 'static,
    ) -> Result<T, Stop> {
        let mut job = self.start(limit, main);
        loop {
            match self.go_on_beside(&mut job).await {
                Err(Stop::Paused) => {}
                other => return other,
            }
        }
    }

    /// As [`SimEnv::go_on`], beside other machines: nothing happens here before it is its turn.
    pub async fn go_on_beside<T>(&self, job: &mut Job<T>) -> Result<T, Stop> {
        loop {
            self.0.pace.reach(self.next_moment()).await;
            if let Some(ended) = self.advance(job, &mut || ()) {
                return ended;
            }
        }
    }

    /// Does all of a job that comes before a moment; what it ended with, if it has.
    pub fn go_until<T>(&self, job: &mut Job<T>, moment: u64) -> Option<Result<T, Stop>> {
        while self.next_moment() < moment {
            match self.advance(job, &mut || ()) {
                None | Some(Err(Stop::Paused)) => {}
                ended => return ended,
            }
        }
        None
    }

    /// The disks are taken away: from now on they do nothing of what they are told, and say so.
    pub fn take_disks(&self) {
        let mut world = self.0.world.borrow_mut();
        for fault in [Fault::ReadError, Fault::WriteError, Fault::FlushError] {
            world.faults = world.faults.clone().with(fault, 1_000_000);
        }
    }

    /// The server has a turn at that moment, for what it has to say by itself.
    pub fn hear_server(&self, moment: u64) {
        let until = moment.saturating_sub(self.lived());
        self.0.world.borrow_mut().hear_server(until);
    }

    /// When the next thing happens, as [`SimEnv::lived`] counts.
    pub fn next_moment(&self) -> u64 {
        let world = self.0.world.borrow();
        let event = world.next_event().filter(|_| self.0.executor.ready_len() == 0);
        event.map_or(world.now, |at| at.0.max(world.now)) - world.jumped
    }

    /// One step of a job; what it ended with, if it has.
    fn advance<T>(&self, job: &mut Job<T>, watch: &mut impl FnMut()) -> Option<Result<T, Stop>> {
        if self.crashed() {
            return Some(Err(Stop::Crashed));
        }
        if let Some(output) = job.0.borrow_mut().take() {
            return Some(Ok(output));
        }
        if job.1.steps == 0 || self.lived() > job.1.time_ns {
            return Some(Err(Stop::Limit));
        }
        job.1.steps -= 1;
        let unheard = self.0.unheard.take();
        if let Some(ready) = unheard {
            self.hear_failure(ready);
        } else if !self.step() {
            return Some(Err(Stop::Stuck));
        }
        watch();
        let paused = (self.pause_is_due() || self.0.unheard.get().is_some()) && !self.crashed();
        paused.then_some(Err(Stop::Paused))
    }

    /// The pace that it goes at.
    pub fn pace(&self) -> &Pace {
        &self.0.pace
    }

    /// Virtual time without the clock's jumps, in nanoseconds.
    pub fn lived(&self) -> u64 {
        let world = self.0.world.borrow();
        world.now - world.jumped
    }

    /// Pauses once when so many more persist points were passed, or one at which this machine never
    /// crashed, or when a write or a flush has failed, and nobody was told yet; or never.
    pub fn pause_at(&self, more: Option<u64>) {
        let at = more.map_or(u64::MAX, |more| self.0.world.borrow().points.count() + more);
        self.0.pause_at.set(at);
    }

    fn pause_is_due(&self) -> bool {
        let at = self.0.pause_at.get();
        if at == u64::MAX {
            return false;
        }
        let world = self.0.world.borrow();
        let due = world.points.is_fresh() || world.points.count() >= at;
        if due {
            self.0.pause_at.set(u64::MAX);
        }
        due
    }

    /// Polls one task or lets one event happen; false when there is neither.
    fn step(&self) -> bool {
        let ready = self.0.executor.ready_len();
        let mut world = self.0.world.borrow_mut();
        let due = world.next_event().is_some_and(|at| at.0 <= world.now);
        if ready == 0 || (due && world.rng.chance(500_000)) {
            let any = world.next_event().is_some();
            world.fire();
            let failed = std::mem::take(&mut world.change_failed);
            drop(world);
            if failed && self.0.pause_at.replace(u64::MAX) != u64::MAX {
                self.0.unheard.set(Some(ready));
            } else if failed {
                self.hear_failure(ready);
            }
            return any;
        }
        let nth = world.rng.below(ready as u64);
        world.now += world.rng.below(POLL_NS_MAX);
        drop(world);
        self.0.executor.poll_nth(nth as usize)
    }

    /// Polls those that a failed write or flush woke before all others: what ends later must not
    /// be heard earlier (a read of what the failure lost, say), and on the ring it is not, since
    /// there tasks run in the order in which they were woken.
    fn hear_failure(&self, ready: usize) {
        for _ in ready..self.0.executor.ready_len() {
            self.0.executor.poll_nth(ready);
        }
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

    /// Cuts the network between clients and server, both ways, or makes it whole again.
    pub fn cut_network(&self, cut: bool) {
        self.0.world.borrow_mut().network.cut(cut);
    }

    /// Plans the crash for the environment call after `more` others, or calls it off.
    pub fn crash_in(&self, more: Option<u64>) {
        self.0.world.borrow().calls.crash_in(more);
    }

    /// Plans the crash for a write of a certain part of a medium, or calls that off.
    pub fn crash_at(&self, aim: Option<Aim>) {
        self.0.world.borrow_mut().aim = aim;
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

    /// From now on flushes of disks do nothing but return: to try whether that is noticed.
    pub fn ignore_flushes(&self) {
        self.0.world.borrow_mut().flushes_ignored = true;
    }

    /// One write or flush of a disk fails: that after so many others that end from now on.
    pub fn fail_change_after(&self, others: u64) {
        self.0.world.borrow_mut().fails_in = Some(others);
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

    /// The memory that outlives the process.
    pub fn shared(&self) -> Rc<dyn SharedMemory> {
        Rc::new(shared::SimShared(self.clone()))
    }

    /// The faults that are being injected.
    pub fn faults(&self) -> Faults {
        self.0.world.borrow().faults.clone()
    }

    /// Which faults struck in this period.
    pub fn struck(&self) -> Struck {
        self.0.world.borrow().struck
    }

    /// No sector fails any more, as a drive may recover after some tries.
    pub fn heal(&self) {
        self.0.world.borrow_mut().disks.iter_mut().for_each(medium::Medium::heal);
    }

    /// The same of those that are bad only, and none of those that are dead.
    pub fn heal_bad(&self) {
        self.0.world.borrow_mut().disks.iter_mut().for_each(medium::Medium::heal_bad);
    }

    /// Claims the disks: returns when nothing that an earlier process sent can still arrive.
    pub fn claim(&self) -> impl Future<Output = ()> + 'static {
        let mut world = self.0.world.borrow_mut();
        let left = world.late_until.saturating_sub(world.now);
        ended(world.sleep(Duration::from_nanos(left + 1)))
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
