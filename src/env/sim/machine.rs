//! What survives a crash, and how it gets from one operating period to the next.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::calls::Calls;
use super::faults::{Fault, Struck};
use super::medium::{Crash, Medium};
use super::network::Network;
use super::nvram::NvramMedium;
use super::outcomes::Media;
use super::pace::Pace;
use super::parts::{Part, Parts};
use super::points::Points;
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
    /// What lies where on the persistent memory or, where there is none, on the first disk.
    pub parts: Vec<Part>,
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
    /// What outlives a process.
    memory: Vec<u8>,
    storage: SimStorage,
    buffers: BufferPool,
    buffers_max: usize,
    /// Memory for machines that part from this one.
    spare: BufferPool,
    parts: Parts,
    network: Network,
    struck: Struck,
    points: Points,
    pace: Pace,
    now: u64,
    /// How far its clock has jumped in all, in nanoseconds.
    jumped: u64,
    trace: u64,
    calls: u64,
    loud: bool,
}

/// What has become of a byte at rest, and can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// A bit of it was flipped.
    Flipped {
        /// Which byte.
        offset: u64,
        /// Which bit of it.
        bit: u32,
    },
    /// It cannot be read until it is rewritten.
    Unreadable {
        /// Which byte.
        offset: u64,
    },
}

impl Machine {
    /// A machine with nothing written on its media.
    pub fn new(seed: u64, shape: &Shape) -> Self {
        let mut rng = Rng::new(seed);
        let disks = shape
            .disks
            .iter()
            .map(|disk| Medium::new(disk.len, disk.sector, disk.volatile_cache, Some(rng.bits())));
        let mut disks: Vec<Medium> = disks.collect();
        let nvram = shape.nvram.map(|(len, sector)| NvramMedium::new(len, sector, rng.bits()));
        let parts = Parts::new(shape.parts.clone());
        let nvram = nvram.map(|mut nvram| {
            nvram.set_parts(parts.clone());
            nvram
        });
        if nvram.is_none() {
            disks[0].set_parts(parts.clone());
        }
        Self {
            disks,
            nvram,
            memory: Vec::new(),
            storage: SimStorage::new(shape.storage_max),
            buffers: pool(shape.buffers_max),
            buffers_max: shape.buffers_max,
            spare: pool(shape.buffers_max),
            parts,
            network: Network::default(),
            struck: Struck::default(),
            points: Points::default(),
            pace: Pace::alone(),
            now: 0,
            jumped: 0,
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

    /// From the next operating period on it goes at that pace.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
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
        (self.network, self.now, self.jumped) = (Network::default(), 0, 0);
        self.memory.clear();
        self.reseed(Rng::new(seed));
    }

    /// What was in its memory is lost: the disks are in another machine.
    pub fn lose_memory(&mut self) {
        self.memory.clear();
    }

    /// Time passes while the machine is switched off.
    pub fn rest_until(&mut self, moment: u64) {
        self.now = self.now.max(moment + self.jumped);
    }

    /// What chance decides from now on comes from `rng`.
    pub fn reseed(&mut self, rng: Rng) {
        self.rng = rng;
    }

    /// How often each fault has struck.
    pub fn struck(&self) -> &Struck {
        &self.struck
    }

    /// The persist points that were seen, and those at which it crashed.
    pub fn points(&self) -> &Points {
        &self.points
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
        (world.now, world.jumped) = (self.now, self.jumped);
        world.trace = self.trace;
        world.memory = std::mem::take(&mut self.memory);
        world.calls = Calls::new(None);
        world.loud = self.loud;
        world.network = std::mem::take(&mut self.network);
        world.points.crashed.clone_from(&self.points.crashed);
        world.schedule_late_writes();
        self.storage.boot(world.calls.clone());
        SimEnv(Rc::new(Shell {
            world: RefCell::new(world),
            executor: Executor::new(),
            buffers: self.buffers.clone(),
            pause_at: Cell::new(u64::MAX),
            unheard: Cell::new(None),
            pace: self.pace.clone(),
        }))
    }

    /// Switches the machine off, in the way that `crash` says.
    pub fn halt(&mut self, env: &SimEnv, crash: Crash) {
        // Whatever the tasks' destructors do has no effect any more.
        env.0.world.borrow().calls.crash_now();
        env.0.executor.drop_all();
        let mut world = env.0.world.borrow_mut();
        world.stop();
        world.points.crash();
        (self.now, self.jumped) = (world.now, world.jumped);
        self.trace = world.trace;
        self.calls += world.calls.made();
        self.struck.add_all(&world.struck);
        self.points.add_all(&world.points);
        self.network = std::mem::take(&mut world.network).next_period();
        self.disks = std::mem::take(&mut world.disks);
        self.nvram = world.nvram.take();
        self.memory = std::mem::take(&mut world.memory);
        let faults = world.faults.clone();
        self.resolve(crash, &faults);
    }

    /// Another machine, switched off by a crash at this instant, while this one runs on as if
    /// nothing had happened. Both streams of chance are the other's own, drawn from `rng`.
    #[must_use]
    pub fn fork(&mut self, env: &SimEnv, crash: Crash, rng: &mut Rng) -> Machine {
        let mut world = env.0.world.borrow_mut();
        world.points.crash();
        let faults = world.faults.clone();
        let mut fork = Machine {
            rng: rng.fork(),
            disks: world.disks.clone(),
            nvram: world.nvram.clone(),
            memory: world.memory.clone(),
            storage: self.storage.fork(),
            buffers: self.fork_buffers(),
            buffers_max: self.buffers_max,
            spare: self.buffers.clone(),
            parts: self.parts.clone(),
            network: world.network.clone().next_period(),
            struck: Struck::default(),
            points: Points::default(),
            pace: Pace::alone(),
            now: world.now,
            jumped: world.jumped,
            trace: rng.bits(),
            calls: 0,
            loud: self.loud,
        };
        drop(world);
        fork.resolve(crash, &faults);
        fork
    }

    /// The same with the disks of this one, which are taken from it: it runs on without them. The
    /// other takes its place in time.
    #[must_use]
    pub fn take_over(&mut self, env: &SimEnv, crash: Crash, rng: &mut Rng) -> Machine {
        let mut other = self.fork(env, crash, rng);
        other.pace = self.pace.clone();
        env.take_disks();
        other
    }

    /// Takes over what another machine saw.
    pub fn absorb(&mut self, fork: &Machine) {
        self.struck.add_all(&fork.struck);
        self.points.add_all(&fork.points);
        self.calls += fork.calls;
        self.trace = super::rng::mix(self.trace ^ fork.trace);
    }

    /// Memory for another machine: that of the last one, if it has given back all of it.
    fn fork_buffers(&mut self) -> BufferPool {
        if self.spare.available() != self.spare.capacity() {
            self.spare = pool(self.buffers_max);
        }
        self.spare.clone()
    }

    /// Resolves what was volatile.
    fn resolve(&mut self, crash: Crash, faults: &Faults) {
        for disk in &mut self.disks {
            self.struck.add_all(&disk.crash(crash, faults, &mut self.rng));
        }
        if let Some(nvram) = &mut self.nvram {
            self.struck.add_all(&nvram.crash(crash, faults, &mut self.rng));
        }
        self.storage.crash(crash, &mut self.rng);
        if crash == Crash::Power {
            self.memory.clear();
        }
    }

    /// Whether nothing is volatile, so that rot can be told from what a crash leaves.
    pub fn is_at_rest(&self) -> bool {
        self.disks.iter().all(Medium::is_at_rest)
    }

    /// What the region holds, at rest; `false` where it cannot be read.
    pub fn read_region(&self, offset: u64, out: &mut [u8]) -> bool {
        let mut rng = Rng::new(0);
        match &self.nvram {
            Some(nvram) => nvram.read(offset, out, &mut rng).is_ok(),
            None => self.disks[0].read(offset, out, &mut rng).is_ok(),
        }
    }

    /// The pages of the region that are there in two equal copies now: where these lie, and their
    /// bytes.
    pub fn equal_copies(&self) -> Vec<([u64; 2], u64)> {
        let equal = |(copies, len): &([u64; 2], u64)| {
            let mut bytes = [vec![0; *len as usize], vec![0; *len as usize]];
            let read = |(at, out): (&u64, &mut Vec<u8>)| self.read_region(*at, out);
            copies.iter().zip(&mut bytes).all(read) && bytes[0] == bytes[1]
        };
        self.parts.twofold().filter(equal).collect()
    }

    /// Something in a range of the region rots, in one way or another.
    pub fn rot(&mut self, offset: u64, len: u64, kind: Fault, rng: &mut Rng) -> Rot {
        self.struck.add(kind);
        let offset = offset + rng.below(len);
        let rot = if rng.chance(700_000) {
            Rot::Flipped { offset, bit: rng.below(8) as u32 }
        } else {
            Rot::Unreadable { offset }
        };
        self.apply_rot(rot, true);
        rot
    }

    /// Undoes it.
    pub fn mend(&mut self, rot: Rot) {
        self.apply_rot(rot, false);
    }

    fn apply_rot(&mut self, rot: Rot, on: bool) {
        match (rot, &mut self.nvram) {
            (Rot::Flipped { offset, bit }, Some(nvram)) => nvram.flip(offset, bit),
            (Rot::Flipped { offset, bit }, None) => self.disks[0].flip(offset, bit),
            (Rot::Unreadable { offset }, Some(nvram)) => nvram.set_poison(offset, on),
            (Rot::Unreadable { offset }, None) => self.disks[0].set_torn(offset, on),
        }
    }
}

fn pool(max: usize) -> BufferPool {
    BufferPool::new(max, ARENA_BLOCK).expect("memory for the simulated machine's buffers")
}
