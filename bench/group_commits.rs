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

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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

/// `flipside mds`, until it is dropped.
struct Server {
    child: Child,
    at: SocketAddr,
}

impl Server {
    fn start(store: &Path) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flipside"));
        command.args(["mds", "--listen", "127.0.0.1:0", "--store"]).arg(store);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary was built");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut line).expect("a line");
        let at = line.trim().strip_prefix("ready udp://").expect("a server that is ready");
        Server { at: at.parse().expect("an address"), child }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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

async fn case(env: &OsEnv, options: &Options, units: usize, volumes: usize) {
    let store = options.dir.join(format!("bench-groups.{}", std::process::id()));
    let server = Server::start(&store);
    let names: Vec<String> = (0..volumes).map(|number| format!("vol{number}")).collect();
    let mut members = Vec::new();
    for names in names.chunks(volumes / units) {
        members.push(unit(env, options, server.at, names).await);
    }
    let named: Vec<_> = names.iter().map(|name| (None, name.clone())).collect();
    let group = members[0].metadata_server().create_group("all", &named).await.expect("a group");
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
    let volumes: Vec<_> = members.iter().flat_map(Unit::volumes).collect();
    let mut rng = Rng::new(1);
    let round = async |rng: &mut Rng| {
        let writes = volumes.iter().map(|volume| {
            let offset = rng.below(VOLUME / BLOCK) * BLOCK;
            write(env, volume, offset)
        });
        join_all(writes.collect::<Vec<_>>()).await;
        volumes[0].flush().await.expect("a flush");
    };
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("sound bounds");
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(options.seconds) {
        let began = Instant::now();
        round(&mut rng).await;
        times.saturating_record(began.elapsed().as_nanos() as u64);
    }
    let us = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "  {units} units, {:2} volumes: {:8.0} commits a second  p50 {:8.1} us  p99 {:8.1} us",
        volumes.len(),
        times.len() as f64 / started.elapsed().as_secs_f64(),
        us(0.5),
        us(0.99)
    );
    for unit in members {
        unit.shut_down().await.expect("a good end");
    }
    drop(server);
    fs::remove_dir_all(&store).or_else(|_| fs::remove_file(&store)).expect("it is there");
}

fn main() {
    let options = Options::parse();
    let ring = Ring::new(&RingOptions::default()).expect("a ring");
    let buffers = BufferPool::new(64 * ARENA_BLOCK, ARENA_BLOCK).expect("memory");
    let env = OsEnv::new(ring.clone(), buffers);
    ring.block_on(async move {
        println!("a write of 4 KiB to each volume of a group, and a flush of one:");
        for (units, volumes) in [(1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (2, 4), (2, 8)] {
            case(&env, &options, units, volumes).await;
        }
    });
    ring.shutdown();
}
