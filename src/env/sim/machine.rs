//! What survives a crash, and how it gets from one operating period to the next.

use std::cell::RefCell;
use std::rc::Rc;

use super::calls::Calls;
use super::medium::{Crash, Medium};
use super::nvram::NvramMedium;
use super::outcomes::Media;
use super::rng::Rng;
use super::storage::SimStorage;
use super::world::World;
use super::{Faults, Shell, SimEnv};
use crate::uring::buffers::{ARENA_BLOCK, BufferPool};
use crate::uring::executor::Executor;

/// A disk of a machine to be made.
#[derive(Clone, Copy, Debug)]
pub struct DiskShape {
    /// Size in bytes.
    pub len: u64,
    /// The logical sector, in bytes.
    pub sector: u32,
    /// Whether completed writes need a flush to be durable.
    pub volatile_cache: bool,
}

/// A machine to be made.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its disks.
    pub disks: Vec<DiskShape>,
    /// Size and sector of its persistent memory, in bytes.
    pub nvram: Option<(u64, u32)>,
    /// The most that the metadata store's storage may hold, in bytes.
    pub storage_max: u64,
    /// The most that all buffers together may hold, in bytes.
    pub buffers_max: usize,
}

/// A machine that is switched off.
pub struct Machine {
    rng: Rng,
    disks: Vec<Medium>,
    nvram: Option<NvramMedium>,
    storage: SimStorage,
    buffers: BufferPool,
    buffers_max: usize,
    now: u64,
    trace: u64,
    calls: u64,
    loud: bool,
}

impl Machine {
    /// A machine with nothing written on its media.
    pub fn new(seed: u64, shape: &Shape) -> Self {
        let mut rng = Rng::new(seed);
        let disks = shape
            .disks
            .iter()
            .map(|disk| Medium::new(disk.len, disk.sector, disk.volatile_cache, Some(rng.bits())));
        let disks = disks.collect();
        let nvram = shape.nvram.map(|(len, sector)| NvramMedium::new(len, sector, rng.bits()));
        Self {
            disks,
            nvram,
            storage: SimStorage::new(shape.storage_max),
            buffers: pool(shape.buffers_max),
            buffers_max: shape.buffers_max,
            now: 0,
            trace: rng.bits(),
            calls: 0,
            rng,
            loud: false,
        }
    }

    /// Prints every environment call from now on.
    pub fn loud(&mut self, loud: bool) {
        self.loud = loud;
    }

    /// Where the metadata store lives.
    pub fn storage(&self) -> SimStorage {
        self.storage.clone()
    }

    /// A hash of all that ever happened on this machine.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// All environment calls that were ever made.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// What the media of the machine hold, which is switched off.
    pub fn media(&self) -> Media {
        Media { disks: self.disks.clone(), nvram: self.nvram.clone() }
    }

    /// Puts other media into the machine, which is switched off; what follows is chosen by `seed`.
    pub fn insert(&mut self, media: Media, seed: u64) {
        (self.disks, self.nvram) = (media.disks, media.nvram);
        (self.rng, self.now) = (Rng::new(seed), 0);
    }

    /// Switches the machine on.
    pub fn boot(&mut self, faults: Faults) -> SimEnv {
        let disks = std::mem::take(&mut self.disks);
        assert!(!disks.is_empty(), "a machine is switched on that is on");
        if self.buffers.available() != self.buffers.capacity() {
            // What crashed may hold itself in circles; a new process has new memory.
            self.buffers = pool(self.buffers_max);
        }
        let mut world = World::new(self.rng.bits(), disks, self.nvram.take(), faults);
        world.now = self.now;
        world.trace = self.trace;
        world.calls = Calls::new(None);
        world.loud = self.loud;
        self.storage.boot(world.calls.clone());
        SimEnv(Rc::new(Shell {
            world: RefCell::new(world),
            executor: Executor::new(),
            buffers: self.buffers.clone(),
        }))
    }

    /// Switches the machine off, in the way that `crash` says.
    pub fn halt(&mut self, env: &SimEnv, crash: Crash) {
        // Whatever the tasks' destructors do has no effect any more.
        env.0.world.borrow().calls.crash_now();
        env.0.executor.drop_all();
        let mut world = env.0.world.borrow_mut();
        world.stop();
        self.now = world.now;
        self.trace = world.trace;
        self.calls += world.calls.made();
        self.disks = std::mem::take(&mut world.disks);
        self.nvram = world.nvram.take();
        let torn = world.faults.torn_sector_ppm;
        for disk in &mut self.disks {
            disk.crash(crash, torn, &mut self.rng);
        }
        if let Some(nvram) = &mut self.nvram {
            nvram.crash(&mut self.rng);
        }
        self.storage.crash(crash, &mut self.rng);
    }
}

fn pool(max: usize) -> BufferPool {
    BufferPool::new(max, ARENA_BLOCK).expect("memory for the simulated machine's buffers")
}
