//! Data in the journal beside the device alone.
//!
//! ```text
//! cargo bench --bench journal -- [--dir DIR] [--nvram DIR] [--seconds N]
//! ```
//!
//! One thread and one ring, no front end: the engine's own path. The NVRAM is a file of trusted
//! memory, which belongs on tmpfs; the device is a file, or stands on whatever `--dir` is on.
//!
//! - *latency* of a 4 KiB write and a flush, one at a time, over random blocks: the device alone
//!   (a write and an fsync through the ring), the engine with its journal in NVRAM, and the same
//!   with data in the journal.
//! - *overwrites* under a Zipfian load (s = 0.99), a flush after every 16 writes: how much of what
//!   was overwritten never reached the device.
//! - *when the journal is full*: random writes over the whole volume, 32 at a time and then a
//!   flush, as fast as they are answered, with data in the journal and without.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use flipside::env::flags::FlagsRegion;
use flipside::env::latch::Latching;
use flipside::env::os::{OsDisk, OsEnv, OsLink, OsNvram};
use flipside::env::sim::calls::Calls;
use flipside::env::sim::rng::Rng;
use flipside::env::{Disk, Durability, Env, Nvram as _};
use flipside::format::ids::{ExtentId, ExtentRun, PoolId, UnitId};
use flipside::format::layout::{DeviceExtents, Geometry};
use flipside::journal::Journal;
use flipside::load::case::Order;
use flipside::load::places::Places;
use flipside::mds::catalog::{Catalog, PoolSpec};
use flipside::mds::embedded;
use flipside::mds::pools::Pools;
use flipside::mds::server::Server;
use flipside::mds::wire::PAYLOAD_MAX;
use flipside::sim::metadata::Tables;
use flipside::unit::{Config, Member, Unit, UnitParts, Volume};
use flipside::uring::buffers::{ARENA_BLOCK, BufferPool};
use flipside::uring::{Ring, RingOptions};
use futures_util::future::join_all;
use hdrhistogram::Histogram;

const POOL: PoolId = PoolId(*b"journal's bench.");
const UNIT: UnitId = UnitId(1);
const EXTENT: u64 = 1 << 20;
const EXTENTS: u32 = 320;
const RESERVE: u32 = 192;
const VOLUME: u64 = (EXTENTS - RESERVE) as u64 * EXTENT;
const NVRAM: u64 = 64 << 20;
const BLOCK: u64 = 4096;
const BLOCKS: u64 = VOLUME / BLOCK;
/// Writes between two flushes of the Zipfian load, and of the one that fills the journal.
const ZIPF_BATCH: u64 = 16;
const FULL_BATCH: u64 = 32;
const ZIPF_EXPONENT: f64 = 0.99;

/// Data in the journal beside the device alone.
#[derive(Parser)]
struct Options {
    /// Where the device is, a file; a folder of the build by default
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Where the NVRAM is, a file; best on tmpfs
    #[arg(long, default_value = "/dev/shm")]
    nvram: PathBuf,
    /// For how long each case is measured
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A unit over a new device and a new NVRAM.
struct World {
    env: OsEnv,
    unit: Unit<OsEnv>,
    volume: Volume<OsEnv>,
}

impl World {
    /// `write_max` as `--nvram-write-max`.
    async fn new(env: &OsEnv, options: &Options, write_max: u64) -> World {
        let path = options.dir.join("bench-journal.device");
        let disk = Latching::new(device(env, &path).await);
        let memory = options.nvram.join(format!("bench-journal.{}", std::process::id()));
        File::create(&memory).expect("an NVRAM").set_len(NVRAM).expect("room for the NVRAM");
        let nvram = OsNvram::open(env.ring(), &memory, true).await.expect("an NVRAM");
        // Both stay as long as they are open.
        std::fs::remove_file(&memory).expect("it is there");
        let region = nvram.part(0, NVRAM);
        Journal::format(&region, POOL, UNIT, EXTENTS, env.buffers()).await.expect("a journal");
        let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
        let run = ExtentRun { start: ExtentId(0), count: EXTENTS };
        let spec = PoolSpec { extent_size: EXTENT as u32, devices: vec![run], reserve: RESERVE };
        let store = Box::new(Tables::default().open(Calls::new(None), false));
        let mut catalog = Catalog::create(store, &spec).expect("a store");
        catalog.create_volume("vol0", VOLUME).expect("a volume");
        catalog.commit().expect("a store in memory");
        let server = Server::new(Pools::single(catalog)).expect("a server");
        let server = embedded::start(server).expect("a thread");
        let extents = DeviceExtents { offset: 0, first: ExtentId(0), count: EXTENTS };
        let config = Config { nvram_write_max: write_max, ..Config::default() };
        let parts = UnitParts {
            env: env.clone(),
            pool: POOL,
            unit: UNIT,
            geometry,
            reserve: RESERVE,
            devices: vec![Member { disk, extents }],
            region: Some(FlagsRegion::Nvram(region)),
            link: OsLink::new(PAYLOAD_MAX, server.requests, server.replies),
            config,
            counters: Rc::default(),
            latencies: Rc::default(),
            warm: None,
        };
        let (unit, _) = Unit::recover(parts).await.expect("a new pool");
        let volume = unit.volume("vol0").expect("it was made");
        let world = World { env: env.clone(), unit, volume };
        // All is backed, on both sides: what is measured is the steady state.
        for _ in 0..2 {
            for offset in (0..VOLUME).step_by(EXTENT as usize) {
                world.write(offset, EXTENT).await;
            }
            world.volume.flush().await.expect("a flush");
        }
        world
    }

    async fn write(&self, offset: u64, len: u64) {
        let mut buf = self.env.buffers().acquire(len as usize).await;
        buf.as_mut_slice()[..8].copy_from_slice(&offset.to_le_bytes());
        self.volume.write(offset, len, buf, false).await.expect("a write");
    }

    /// So many bytes were written to the device, copies of settling left out.
    fn reached(&self) -> u64 {
        let counters = self.unit.counters();
        counters.device_bytes_data.get() + counters.device_bytes_destaged.get()
    }

    async fn end(self) {
        self.unit.shut_down().await.expect("a good end");
    }
}

/// A file with every block written once.
async fn device(env: &OsEnv, path: &Path) -> OsDisk {
    let mut file = File::create(path).expect("a device");
    let zeros = vec![0; EXTENT as usize];
    for _ in 0..EXTENTS {
        file.write_all(&zeros).expect("room for the device");
    }
    file.sync_all().expect("a device");
    drop(file);
    let disk = OsDisk::open(env.ring(), path).await.expect("a device");
    std::fs::remove_file(path).expect("it is there");
    disk
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("sound bounds")
}

fn say(name: &str, times: &Histogram<u64>) {
    let us = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "  {name:28} p50 {:8.1} us  p99 {:8.1} us  mean {:8.1} us  ({} of them)",
        us(0.5),
        us(0.99),
        times.mean() / 1000.0,
        times.len()
    );
}

/// The device alone: a write, and then a flush.
async fn raw(env: &OsEnv, options: &Options) -> Histogram<u64> {
    let disk = device(env, &options.dir.join("bench-journal.raw")).await;
    let mut buf = env.buffers().acquire(BLOCK as usize).await;
    let (mut times, mut rng) = (histogram(), Rng::new(1));
    let until = Instant::now() + Duration::from_secs(options.seconds);
    while Instant::now() < until {
        let started = Instant::now();
        let at = rng.below(BLOCKS) * BLOCK;
        disk.write(at, buf.view_all(), Durability::Volatile).await.expect("a write");
        disk.flush().await.expect("a flush");
        times.saturating_record(started.elapsed().as_nanos() as u64);
    }
    times
}

/// The engine: the same.
async fn engine(env: &OsEnv, options: &Options, write_max: u64) -> Histogram<u64> {
    let world = World::new(env, options, write_max).await;
    let (mut times, mut rng) = (histogram(), Rng::new(1));
    let until = Instant::now() + Duration::from_secs(options.seconds);
    while Instant::now() < until {
        let mut buf = env.buffers().acquire(BLOCK as usize).await;
        buf.as_mut_slice()[0] = rng.bits() as u8;
        let started = Instant::now();
        let at = rng.below(BLOCKS) * BLOCK;
        world.volume.write(at, BLOCK, buf, false).await.expect("a write");
        world.volume.flush().await.expect("a flush");
        times.saturating_record(started.elapsed().as_nanos() as u64);
    }
    world.end().await;
    times
}

async fn overwrites(env: &OsEnv, options: &Options) {
    let world = World::new(env, options, BLOCK).await;
    let mut places = Places::new(Order::Zipf(ZIPF_EXPONENT), BLOCKS, Rng::new(2));
    let mut written = vec![false; BLOCKS as usize];
    let (mut count, mut first) = (0_u64, 0_u64);
    let before = world.reached();
    let until = Instant::now() + Duration::from_secs(options.seconds);
    while Instant::now() < until {
        for _ in 0..ZIPF_BATCH {
            let block = places.draw();
            first += u64::from(!std::mem::replace(&mut written[block as usize], true));
            count += 1;
            world.write(block * BLOCK, BLOCK).await;
        }
        world.volume.flush().await.expect("a flush");
    }
    world.unit.settle(None).await.expect("all is put in its place");
    let reached = (world.reached() - before) / BLOCK;
    let (overwritten, spared) = (count - first, count - reached);
    println!(
        "  {count} blocks written, {first} of them for the first time; {reached} reached the \
         device: {:.1} % of {overwritten} overwritten ones never did",
        100.0 * spared as f64 / overwritten as f64
    );
    world.end().await;
}

async fn full(env: &OsEnv, options: &Options, write_max: u64) {
    let world = World::new(env, options, write_max).await;
    let mut rng = Rng::new(3);
    let (mut count, mut times) = (0_u64, histogram());
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(options.seconds) {
        let batch = Instant::now();
        let writes: Vec<_> =
            (0..FULL_BATCH).map(|_| world.write(rng.below(BLOCKS) * BLOCK, BLOCK)).collect();
        join_all(writes).await;
        world.volume.flush().await.expect("a flush");
        times.saturating_record(batch.elapsed().as_nanos() as u64);
        count += FULL_BATCH;
    }
    let seconds = started.elapsed().as_secs_f64();
    let past = world.unit.counters().device_bytes_data.get() / BLOCK - 2 * BLOCKS;
    let name = if write_max > 0 { "with data in the journal" } else { "without" };
    println!(
        "  {name}: {:.0} writes a second ({:.1} MB/s); {:.1} % went past the journal",
        count as f64 / seconds,
        (count * BLOCK) as f64 / seconds / 1e6,
        100.0 * past as f64 / count as f64
    );
    say("32 writes and a flush", &times);
    world.end().await;
}

fn main() {
    let options = Options::parse();
    let ring = Ring::new(&RingOptions::default()).expect("a ring");
    let buffers = BufferPool::new(64 * ARENA_BLOCK, ARENA_BLOCK).expect("memory");
    let env = OsEnv::new(ring.clone(), buffers);
    ring.block_on(async move {
        println!("latency of a 4 KiB write and a flush:");
        let alone = raw(&env, &options).await;
        say("device alone", &alone);
        say("journal in NVRAM", &engine(&env, &options, 0).await);
        let kept = engine(&env, &options, BLOCK).await;
        say("data in the journal, too", &kept);
        let share = |of: f64, to: f64| 100.0 * of / to;
        println!(
            "  that is {:.1} % of the device's own at p50, {:.1} % at the mean",
            share(kept.value_at_quantile(0.5) as f64, alone.value_at_quantile(0.5) as f64),
            share(kept.mean(), alone.mean())
        );
        println!("overwrites, Zipfian with s = {ZIPF_EXPONENT}:");
        overwrites(&env, &options).await;
        println!("when the journal is full, uniformly random writes:");
        full(&env, &options, 0).await;
        full(&env, &options, BLOCK).await;
    });
    ring.shutdown();
}
