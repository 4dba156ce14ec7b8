//! A reader beside the unit that writes, through swaps and faults ('721 claim 11 from the other
//! side; design section 8).
//!
//! A writer overwrites logical extents whole or in part, flushes, and settles, in a pool so small
//! that extents go round at once. Meanwhile a follower on another machine reads anything. What is
//! checked:
//!
//! - every granule that a read returns was committed, or may have been, when the read ended, and is
//!   no older than what was known to be committed when it began;
//! - whatever is read from a disk while the lease lasts is the block's own, of any version: the
//!   unit gives no extent to another before;
//! - reads end: with an error where the lease is over, which it is not in a world without faults.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, join, join_all, select};

use super::engine::{Engine as _, Running as _, Volume as _, Zeroing};
use super::flipside::{Flipside, POOL, Served, Serving, UNIT};
use super::reader::{GRANULE, LEASE, ReaderEnv, Watch};
use super::stamp::{self, Seen, Stamp, ZEROS};
use crate::env::sim::{Fault, Faults, Limit, Machine, Rng, SimEnv};
use crate::env::{Env as _, Moment};
use crate::follow::{Follower, Parts, ReadError};
use crate::format::ids::HostId;
use crate::format::layout::Geometry;
use crate::unit::{Config, SettlePolicy};

const LIMIT: Limit = Limit { time_ns: 24 * 3600 * 1_000_000_000, steps: 50_000_000 };
const BLOCK: usize = 2 * GRANULE;
const EXTENT: usize = 16 << 10;
/// Logical extents of the volume, and extents of the pool.
const EXTENTS: usize = 5;
const POOL_EXTENTS: u32 = 11;
const RESERVE: u32 = 4;
const GRANULES: usize = EXTENTS * EXTENT / GRANULE;
const READERS: u64 = 3;
/// How long a read may take in virtual time.
const READ_TIME_MAX: Duration = Duration::from_secs(120);

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Areas that the writer ended by a swap.
    pub swaps: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Reads that failed because the lease was over.
    pub over: u64,
    /// Times that blocks were read again because they had changed.
    pub again: u64,
    /// Times that all lines were read.
    pub readings: u64,
    /// Reads of disks that were looked at.
    pub looked_at: u64,
}

/// A version of a granule.
#[derive(Clone, Copy, Debug)]
struct Version {
    stamp: Stamp,
    /// How often the unit had committed unasked when it was sent.
    early: u64,
    /// A flush that covers it was sent.
    flushed: bool,
}

/// The versions of a granule, and which of them is known to be committed.
#[derive(Clone, Debug)]
struct Granule {
    versions: Vec<Version>,
    floor: usize,
}

struct World {
    env: SimEnv,
    serving: Serving,
    volume: Served,
    number: u8,
    follower: Follower<ReaderEnv>,
    watch: Rc<Watch>,
    granules: RefCell<Vec<Granule>>,
    stamps: Cell<Stamp>,
    faulty: bool,
    done: Cell<bool>,
    reads: Cell<u64>,
    over: Cell<u64>,
    failed: RefCell<Option<String>>,
}

/// Runs a seed until the writer has swapped so many areas; the error is what was wrong.
pub fn run(seed: u64, swaps: u64) -> Result<Followed, String> {
    let mut rng = Rng::new(seed);
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
    let config = Config {
        commit_interval: None,
        settle: rng.pick(&[SettlePolicy::Pressure, SettlePolicy::Always]),
        settle_batch: rng.pick(&[1, 2, 8]),
        tell_interval: Duration::from_millis(rng.pick(&[1, 20])),
        mds_timeout: None,
        ..Config::default()
    };
    let size = (EXTENTS * EXTENT) as u64;
    let plain = Flipside::plain(geometry, POOL_EXTENTS, RESERVE, size, config);
    let engine = plain.with_region(384 << 10).at_the_server();
    let mut machine = Machine::new(seed, &engine.shape());
    let faulty = rng.chance(800_000);
    let env = machine.boot(Faults::none());
    let faults = if faulty { draw(&mut rng) } else { Faults::none() };
    let main = whole(env.clone(), engine, machine.storage(), faults, (faulty, swaps));
    match env.run(LIMIT, main) {
        Ok(outcome) => outcome,
        Err(stop) => Err(format!("the run did not end: {stop:?}")),
    }
}

fn draw(rng: &mut Rng) -> Faults {
    let mut faults = Faults::none();
    faults.stall_ns = rng.pick(&[1, 300]) * 1_000_000;
    faults.partition_ns = rng.pick(&[10, 1_000]) * 1_000_000;
    faults.datagram_ns = (1_000, rng.pick(&[10_000, 1_000_000, 20_000_000]));
    let mut with = |faults: Faults, fault, rates: [u32; 3]| faults.with(fault, rng.pick(&rates));
    let faults = with(faults, Fault::Stall, [0, 1_000, 20_000]);
    let faults = with(faults, Fault::DatagramLost, [0, 10_000, 100_000]);
    let faults = with(faults, Fault::DatagramRepeated, [0, 10_000, 100_000]);
    let faults = with(faults, Fault::DatagramLate, [0, 0, 10_000]);
    with(faults, Fault::Partition, [0, 0, 500])
}

async fn whole(
    env: SimEnv,
    engine: Flipside,
    storage: crate::env::sim::SimStorage,
    faults: Faults,
    (faulty, swaps): (bool, u64),
) -> Result<Followed, String> {
    engine.format(env.clone(), storage.clone()).await?;
    let serving = engine.open(env.clone(), storage).await?;
    let [volume] = serving.volumes().try_into().map_err(|_| "one volume".to_owned())?;
    let number = serving.unit().volumes()[0].id().0 as u8;
    let watch = Rc::new(Watch::default());
    let follower = follow(&env, &engine, &watch).await?;
    watch.follower.replace(Some(follower.clone()));
    let zeros = Version { stamp: ZEROS, early: 0, flushed: true };
    let world = Rc::new(World {
        granules: RefCell::new(vec![Granule { versions: vec![zeros], floor: 0 }; GRANULES]),
        stamps: Cell::new(ZEROS),
        done: Cell::new(false),
        reads: Cell::new(0),
        over: Cell::new(0),
        failed: RefCell::new(None),
        env: env.clone(),
        serving,
        volume,
        number,
        follower,
        watch,
        faulty,
    });
    env.set_faults(faults);
    if faulty {
        env.spawn(Rc::clone(&world).disturb());
    }
    let readers = (0..READERS).map(|_| Rc::clone(&world).read_on());
    let (written, _) = join(world.write_on(swaps), join_all(readers)).await;
    written?;
    world.end().await
}

async fn follow(
    env: &SimEnv,
    engine: &Flipside,
    watch: &Rc<Watch>,
) -> Result<Follower<ReaderEnv>, String> {
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
    let machine = ReaderEnv::new(env, watch);
    let disks = env.disks().into_iter().zip(engine.layouts());
    let devices =
        disks.map(|(disk, layout)| (machine.spied(disk, layout.extents, geometry), layout.extents));
    let parts = Parts {
        pool: POOL,
        unit: UNIT,
        host: HostId([2; 16]),
        geometry,
        devices: devices.collect(),
        link: machine.cuttable(env.link(1)),
        lease: LEASE,
        env: machine,
    };
    Follower::open(parts).await.map_err(|error| error.to_string())
}

impl World {
    fn rng(&self) -> Rng {
        Rng::new(self.env.random())
    }

    fn fail(&self, text: String) {
        self.failed.borrow_mut().get_or_insert(text);
    }

    fn is_over(&self) -> bool {
        self.done.get() || self.failed.borrow().is_some() || self.watch.wrong.borrow().is_some()
    }

    fn swaps(&self) -> u64 {
        self.serving.unit().counters().swaps.get()
    }

    fn early(&self) -> u64 {
        self.serving.unit().counters().early_commits.get()
    }

    /// Overwrites, flushes and settles until there were so many swaps.
    async fn write_on(&self, swaps: u64) -> Result<(), String> {
        let mut rng = self.rng();
        let mut written = Ok(());
        while self.swaps() < swaps && !self.is_over() && written.is_ok() {
            written = self.epoch(&mut rng).await;
        }
        self.done.set(true);
        written
    }

    /// An epoch: no granule is written twice in it, so that each version may be committed.
    async fn epoch(&self, rng: &mut Rng) -> Result<(), String> {
        let wrong = |refusal| format!("the writer failed: {refusal:?}");
        let first = rng.below(EXTENTS as u64) as usize;
        let count = rng.between(1, 2) as usize;
        let mut touched = Vec::new();
        for number in (0..count).map(|nth| (first + nth) % EXTENTS) {
            let part = if rng.chance(700_000) { 0..EXTENT } else { part(rng, GRANULE) };
            let trim = rng.chance(50_000);
            let (offset, len) = ((number * EXTENT + part.start) as u64, part.len());
            let stamp = if trim { ZEROS } else { self.next_stamp() };
            let whole = if trim { blocks_inside(offset, len) } else { offset..offset + len as u64 };
            let granules = whole.start as usize / GRANULE..whole.end as usize / GRANULE;
            for granule in &mut self.granules.borrow_mut()[granules.clone()] {
                granule.versions.push(Version { stamp, early: self.early(), flushed: false });
            }
            if trim {
                let trimmed = self.volume.zero(offset, len as u64, Zeroing::Trim, false);
                trimmed.await.map_err(wrong)?;
            } else {
                let mut data = vec![0; len];
                let first = granules.start as u32;
                stamp::fill(&mut data, GRANULE, self.number, first, stamp);
                self.volume.write(offset, data, false).await.map_err(wrong)?;
            }
            touched.push(granules);
        }
        let each = |what: &dyn Fn(&mut Granule)| {
            let mut granules = self.granules.borrow_mut();
            touched.iter().flat_map(Clone::clone).for_each(|number| what(&mut granules[number]));
        };
        if rng.chance(300_000) {
            self.env.sleep(Duration::from_micros(rng.below(2_000))).await;
        }
        each(&|granule| granule.versions.last_mut().expect("just written").flushed = true);
        self.volume.flush().await.map_err(wrong)?;
        each(&|granule| granule.floor = granule.versions.len() - 1);
        if rng.chance(500_000) {
            self.serving.settle().await.map_err(wrong)?;
        }
        Ok(())
    }

    fn next_stamp(&self) -> Stamp {
        self.stamps.set(self.stamps.get() + 1);
        self.stamps.get()
    }

    /// Reads anything, and checks it, until the writer has ended.
    async fn read_on(self: Rc<Self>) {
        let mut rng = self.rng();
        while !self.is_over() {
            let from = rng.below(GRANULES as u64) as usize;
            let most = (GRANULES - from).min(2 * EXTENT / GRANULE) as u64;
            let granules = from..from + rng.between(1, most) as usize;
            if let Err(text) = self.read(granules).await {
                self.fail(text);
            }
            self.env.sleep(Duration::from_micros(rng.log_between(1, 5_000))).await;
        }
    }

    async fn read(&self, granules: Range<usize>) -> Result<(), String> {
        let volumes = self.follower.volumes();
        let volume = volumes.first().ok_or("the volume is not seen")?;
        let (offset, len) = ((granules.start * GRANULE) as u64, granules.len() * GRANULE);
        let blocks = volume.blocks(offset, len as u64);
        let whole = (blocks.end - blocks.start) as usize * BLOCK;
        let buf = self.env.buffers().acquire(whole).await;
        let floors: Vec<usize> =
            self.granules.borrow()[granules.clone()].iter().map(|granule| granule.floor).collect();
        let read = Box::pin(volume.read(offset, len as u64, buf));
        let limit = Box::pin(self.env.sleep(READ_TIME_MAX));
        match select(read, limit).await {
            Either::Left((Ok(buf), _)) => {
                self.reads.set(self.reads.get() + 1);
                let lead = offset as usize % BLOCK;
                self.check(&buf.as_slice()[lead..lead + len], granules, &floors)
            }
            Either::Left((Err(ReadError::LeaseOver { .. } | ReadError::TooSlow { .. }), _))
                if self.faulty =>
            {
                self.over.set(self.over.get() + 1);
                self.env.sleep(LEASE / 10).await;
                Ok(())
            }
            Either::Left((Err(error), _)) => Err(format!("a read failed: {error}")),
            Either::Right(_) => Err(format!("a read of {granules:?} does not end")),
        }
    }

    fn check(&self, bytes: &[u8], numbers: Range<usize>, floors: &[usize]) -> Result<(), String> {
        let (granules, early) = (self.granules.borrow(), self.early());
        for ((number, bytes), floor) in numbers.zip(bytes.chunks_exact(GRANULE)).zip(floors) {
            let seen = stamp::read(bytes, self.number, number as u32);
            let Seen::Write(stamp) = seen else {
                return Err(format!("granule {number} was read as {seen:?}"));
            };
            let mut allowed = granules[number].versions[*floor..].iter();
            let known = |version: &Version| {
                let committed = version.flushed || early > version.early;
                version.stamp == stamp && committed
            };
            if !allowed.any(known) {
                let all = &granules[number].versions;
                let at = all.iter().rposition(|version| version.stamp == stamp);
                return Err(format!(
                    "granule {number} was read as version {at:?} of {}, with {floor} committed \
                     when the read began: {:?}",
                    all.len(),
                    at.map(|at| all[at])
                ));
            }
        }
        Ok(())
    }

    /// Cuts the reader off, has its disks stall, and restarts the metadata server.
    async fn disturb(self: Rc<Self>) {
        let mut rng = self.rng();
        loop {
            self.env.sleep(Duration::from_millis(rng.log_between(10, 3_000))).await;
            if self.is_over() {
                return;
            }
            match rng.below(4) {
                0 => {
                    let lease = LEASE.as_nanos() as u64;
                    let long = rng.chance(500_000);
                    let [least, most] = if long { [lease, 4 * lease] } else { [1_000_000, lease] };
                    let until = self.env.now().0 + rng.log_between(least, most);
                    self.watch.cut_until.set(Moment(until));
                }
                1 => {
                    if let Err(text) = self.serving.restart_server() {
                        self.fail(text);
                    }
                }
                2 => self.watch.stalls.set((0, Duration::ZERO)),
                _ => {
                    let longest = 3 * LEASE.as_millis() as u64;
                    let stall = Duration::from_millis(rng.log_between(1, longest));
                    self.watch.stalls.set((rng.pick(&[1_000, 50_000]), stall));
                }
            }
        }
    }

    /// The faults cease: everything is read as it was committed last.
    async fn end(&self) -> Result<Followed, String> {
        let wrong = || self.failed.take().or_else(|| self.watch.wrong.take());
        wrong().map_or(Ok(()), Err)?;
        self.env.set_faults(Faults::none());
        self.watch.cut_until.set(Moment::default());
        self.watch.stalls.set((0, Duration::ZERO));
        self.env.sleep(10 * LEASE).await;
        let over = self.over.get();
        for number in 0..EXTENTS {
            self.read(number * EXTENT / GRANULE..(number + 1) * EXTENT / GRANULE).await?;
        }
        if self.over.get() > over {
            return Err("reads fail after the faults have ceased".to_owned());
        }
        wrong().map_or(Ok(()), Err)?;
        let status = self.follower.status();
        self.follower.close(LEASE).await;
        self.watch.follower.take();
        self.serving.shutdown().await.map_err(|refusal| format!("{refusal:?}"))?;
        Ok(Followed {
            swaps: self.swaps(),
            reads: self.reads.get(),
            over: self.over.get(),
            again: status.again,
            readings: status.readings,
            looked_at: self.watch.looked_at.get(),
        })
    }
}

/// A part of an extent: whole granules.
fn part(rng: &mut Rng, unit: usize) -> Range<usize> {
    let from = rng.below((EXTENT / unit) as u64) as usize;
    let count = rng.between(1, (EXTENT / unit - from) as u64) as usize;
    from * unit..(from + count) * unit
}

/// The bytes of the whole blocks inside a range.
fn blocks_inside(offset: u64, len: usize) -> Range<u64> {
    let block = BLOCK as u64;
    let (start, end) = (offset.next_multiple_of(block), (offset + len as u64) / block * block);
    start..end.max(start)
}
