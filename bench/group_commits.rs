//! Commits of consistency groups a second.
//!
//! ```text
//! cargo bench --bench group_commits -- [--dir DIR] [--nvram DIR] [--seconds N]
//! ```
//!
//! Groups of 1, 2, 4 and 8 volumes, on one unit and over two, with `flipside mds`, a process of its
//! own, over UDP on the loopback. A round is a write of 4 KiB to each volume, all at the same time,
//! and then a flush of one of them, which commits all: on one unit by itself, over two by the whole
//! protocol, whose decision is durable at the server, on what `--dir` is on. Both units are on one
//! thread and one ring, no front end; the NVRAM is trusted memory, and has the data, too.
//!
//! Beside them the device alone: one durable write of a block after the other, which is what a
//! decision has to wait for. Of each commit there are the durable transactions of the server, the
//! requests of all units, and the server's processor time.

#[path = "support/process.rs"]
mod process;
#[path = "support/writes.rs"]
mod writes;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use flipside::env::flags::FlagsRegion;
use flipside::env::latch::Latching;
use flipside::env::os::{OsDisk, OsEnv, OsLink, OsNvram};
use flipside::env::sim::rng::Rng;
use flipside::env::{Env, Nvram as _};
use flipside::format::ids::{ExtentId, ExtentRun, PoolId, UnitId};
use flipside::format::layout::{DeviceExtents, Geometry};
use flipside::journal::Journal;
use flipside::mds::catalog::PoolSpec;
use flipside::mds::client::pools;
use flipside::mds::wire::PAYLOAD_DEFAULT;
use flipside::unit::{Config, Member, Unit, UnitParts, Volume};
use flipside::uring::buffers::{ARENA_BLOCK, BufferPool};
use flipside::uring::{Ring, RingOptions};
use futures_util::future::join_all;
use hdrhistogram::Histogram;

use self::process::Process;
use self::writes::durable_writes;

const UNIT: UnitId = UnitId(1);
const EXTENT: u64 = 1 << 20;
const EXTENTS: u32 = 64;
const RESERVE: u32 = 16;
const VOLUME: u64 = 4 * EXTENT;
const NVRAM: u64 = 64 << 20;
const BLOCK: u64 = 4096;
/// How long units may take to serve a new group.
const FORMING: Duration = Duration::from_secs(10);

/// Commits of consistency groups a second.
#[derive(Parser)]
struct Options {
    /// Where the devices and the server's store are; a folder of the build by default
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Where the NVRAMs are, files; best on tmpfs
    #[arg(long, default_value = "/dev/shm")]
    nvram: PathBuf,
    /// For how long each case is measured
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A unit of a new pool, over a new device and a new NVRAM, with volumes of these names.
async fn unit(env: &OsEnv, options: &Options, at: SocketAddr, names: &[String]) -> Unit<OsEnv> {
    let path = options.dir.join("bench-groups.device");
    File::create(&path).and_then(|file| file.set_len(u64::from(EXTENTS) * EXTENT)).expect("a file");
    let disk = Latching::new(OsDisk::open(env.ring(), &path).await.expect("a device"));
    let memory = options.nvram.join(format!("bench-groups.{}", std::process::id()));
    File::create(&memory).and_then(|file| file.set_len(NVRAM)).expect("room for the NVRAM");
    let nvram = OsNvram::open(env.ring(), &memory, true).await.expect("an NVRAM");
    // Both stay as long as they are open.
    [path, memory].iter().for_each(|path| fs::remove_file(path).expect("it is there"));
    let mut pool = PoolId(*b"pool of 1st vol.");
    pool.0[15] = names[0].as_bytes()[3];
    let region = nvram.part(0, NVRAM);
    Journal::format(&region, pool, UNIT, EXTENTS, env.buffers()).await.expect("a journal");
    let run = ExtentRun { start: ExtentId(0), count: EXTENTS };
    let spec = PoolSpec { extent_size: EXTENT as u32, devices: vec![run], reserve: RESERVE };
    let link = || OsLink::udp(env.ring(), at, PAYLOAD_DEFAULT, None).expect("a socket");
    pools::register(env, link(), pool, &spec).await.expect("a new pool");
    let extents = DeviceExtents { offset: 0, first: ExtentId(0), count: EXTENTS };
    let parts = UnitParts {
        env: env.clone(),
        pool,
        unit: UNIT,
        geometry: Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes"),
        reserve: RESERVE,
        devices: vec![Member { disk, extents }],
        region: Some(FlagsRegion::Nvram(region)),
        link: link(),
        config: Config { nvram_write_max: BLOCK, ..Config::default() },
        counters: Rc::default(),
        latencies: Rc::default(),
        warm: None,
    };
    let (unit, _) = Unit::recover(parts).await.expect("a new pool");
    for name in names {
        unit.create_volume(name, VOLUME).await.expect("a volume");
    }
    unit
}

async fn write(env: &OsEnv, volume: &Volume<OsEnv>, offset: u64) {
    let mut buf = env.buffers().acquire(BLOCK as usize).await;
    buf.as_mut_slice()[..8].copy_from_slice(&offset.to_le_bytes());
    volume.write(offset, BLOCK, buf, false).await.expect("a write");
}

/// Units in one group.
struct Members {
    units: Vec<Unit<OsEnv>>,
    volumes: Vec<Volume<OsEnv>>,
}

impl Members {
    /// New ones, with so many volumes in all.
    async fn new(env: &OsEnv, options: &Options, at: SocketAddr, units: usize, all: usize) -> Self {
        let names: Vec<String> = (0..all).map(|number| format!("vol{number}")).collect();
        let mut members = Vec::new();
        for names in names.chunks(all / units) {
            members.push(unit(env, options, at, names).await);
        }
        let named: Vec<_> = names.iter().map(|name| (None, name.clone())).collect();
        let server = members[0].metadata_server();
        let group = server.create_group("all", &named).await.expect("a group");
        for unit in &members {
            unit.join_groups().await.expect("a group to join");
        }
        let forming = Instant::now();
        // What commits locally was joined at once.
        while units > 1 && members.iter().any(|unit| unit.last_cut(group).is_none()) {
            assert!(forming.elapsed() < FORMING, "the group is served");
            // Who comes before all have joined is sent away.
            let _ = members[0].volumes()[0].flush().await;
        }
        let volumes = members.iter().flat_map(Unit::volumes).collect();
        Members { units: members, volumes }
    }

    /// A write to each volume, and a flush of one.
    async fn round(&self, env: &OsEnv, rng: &mut Rng) {
        let writes = self.volumes.iter().map(|volume| {
            let offset = rng.below(VOLUME / BLOCK) * BLOCK;
            write(env, volume, offset)
        });
        join_all(writes.collect::<Vec<_>>()).await;
        self.volumes[0].flush().await.expect("a flush");
    }

    /// What they have asked the server, and what it has stored.
    async fn asked(&self) -> (u64, u64) {
        let requests = self.units.iter().map(|unit| unit.metadata_server().status().requests);
        let status = self.units[0].metadata_server().server_status().await.expect("counters");
        (requests.sum(), status.store_commits)
    }
}

fn new_times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("sound bounds")
}

fn show(what: &str, times: &Histogram<u64>, elapsed: Duration, more: &str) {
    let us = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    let per_second = times.len() as f64 / elapsed.as_secs_f64();
    println!("{what:22} {per_second:8.0} {:9.1} {:9.1} {more}", us(0.5), us(0.99));
}

async fn case(env: &OsEnv, options: &Options, units: usize, volumes: usize) {
    let folder = tempfile::Builder::new().prefix("bench-groups.").tempdir_in(&options.dir);
    // Beside its store the server has more files.
    let folder = folder.expect("a folder for the server");
    let server = Process::start(&folder.path().join("store"));
    let members = Members::new(env, options, server.at, units, volumes).await;
    let mut rng = Rng::new(1);
    let mut times = new_times();
    let (requests, commits) = members.asked().await;
    let (started, cpu) = (Instant::now(), server.cpu_time());
    while started.elapsed() < Duration::from_secs(options.seconds) {
        let began = Instant::now();
        members.round(env, &mut rng).await;
        times.saturating_record(began.elapsed().as_nanos() as u64);
    }
    let (elapsed, cpu) = (started.elapsed(), server.cpu_time() - cpu);
    let after = members.asked().await;
    let each = |count: u64| count as f64 / times.len() as f64;
    let (requests, commits) = (each(after.0 - requests), each(after.1 - commits));
    let more = format!("{commits:8.2} {requests:8.2} {:8.1}", each(cpu));
    show(&format!("{units} units, {volumes} volumes"), &times, elapsed, &more);
    for unit in members.units {
        unit.shut_down().await.expect("a good end");
    }
    drop(server);
    folder.close().expect("it is there");
}

fn main() {
    let options = Options::parse();
    let ring = Ring::new(&RingOptions::default()).expect("a ring");
    let buffers = BufferPool::new(64 * ARENA_BLOCK, ARENA_BLOCK).expect("memory");
    let env = OsEnv::new(ring.clone(), buffers);
    ring.block_on(async move {
        println!("a write of 4 KiB to each volume of a group, and a flush of one; times in us");
        println!(
            "{:22} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8}",
            "", "a second", "p50", "p99", "stored", "requests", "cpu"
        );
        let mut times = new_times();
        let elapsed = durable_writes(&options.dir, Duration::from_secs(options.seconds), |began| {
            times.saturating_record(began.elapsed().as_nanos() as u64);
        });
        show("the device alone", &times, elapsed, "");
        for (units, volumes) in [(1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (2, 4), (2, 8)] {
            case(&env, &options, units, volumes).await;
        }
    });
    ring.shutdown();
}
