//! What the data path allocates once it is warm: counted on the thread of the unit, which serves a
//! file through the ring as the target does.
//!
//! Reads and writes allocate nothing: payloads are in pools, and so is a request's bookkeeping.
//! What is left are the small vectors of a commit; the bound holds them where they are.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use flipside::env::Env;
use flipside::env::flags::FlagsRegion;
use flipside::env::latch::Latching;
use flipside::env::os::{OsDisk, OsEnv, OsLink};
use flipside::env::region::DeviceRegion;
use flipside::env::sim::calls::Calls;
use flipside::env::sim::rng::Rng;
use flipside::format::ids::{ExtentId, ExtentRun, PoolId, UnitId};
use flipside::format::layout::{DeviceExtents, Geometry};
use flipside::journal::Journal;
use flipside::mds::catalog::{Catalog, PoolSpec};
use flipside::mds::embedded;
use flipside::mds::pools::Pools;
use flipside::mds::server::Server;
use flipside::sim::metadata::Tables;
use flipside::unit::{Config, Member, Unit, UnitParts, Volume};
use flipside::uring::buffers::{ARENA_BLOCK, BufferPool};
use flipside::uring::{Ring, RingOptions};

/// Counts what the thread asks of the system's allocator.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came; the counter neither allocates nor
// has a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const POOL: PoolId = PoolId(*b"allocations test");
const UNIT: UnitId = UnitId(1);
const EXTENT: u64 = 1 << 20;
const EXTENTS: u32 = 48;
const RESERVE: u32 = 24;
/// The volume takes what is not in reserve.
const VOLUME: u64 = (EXTENTS - RESERVE) as u64 * EXTENT;
const REGION: u64 = 4 << 20;
const BLOCK: u64 = 4096;
/// Operations that are counted, and those before.
const COUNTED: u64 = 2000;
const WARM_UP: u64 = 3_000;

/// A unit over a fresh file, with its metadata server on a thread.
async fn serve(env: &OsEnv, path: &std::path::Path) -> Unit<OsEnv> {
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).unwrap();
    let disk = Latching::new(OsDisk::open(env.ring(), path).await.unwrap());
    let region = DeviceRegion::new(disk.clone(), 0, REGION);
    Journal::format(&region, POOL, UNIT, EXTENTS, env.buffers()).await.unwrap();
    let run = ExtentRun { start: ExtentId(0), count: EXTENTS };
    let extent_size = geometry.extent_size();
    let spec = PoolSpec { extent_size, devices: vec![run], reserve: RESERVE };
    let store = Box::new(Tables::default().open(Calls::new(None), false));
    let mut catalog = Catalog::create(store, &spec).unwrap();
    catalog.create_volume("vol0", VOLUME).unwrap();
    catalog.commit().unwrap();
    let server = embedded::start(Server::new(Pools::single(catalog)).unwrap()).unwrap();
    let extents = DeviceExtents { offset: REGION, first: ExtentId(0), count: EXTENTS };
    let parts = UnitParts {
        env: env.clone(),
        pool: POOL,
        unit: UNIT,
        geometry,
        reserve: RESERVE,
        devices: vec![Member { disk, extents }],
        region: Some(FlagsRegion::Device(region)),
        link: OsLink::new(60_000, server.requests, server.replies),
        config: Config { commit_interval: None, ..Config::default() },
        counters: Rc::default(),
        latencies: Rc::default(),
        warm: None,
    };
    Unit::recover(parts).await.unwrap().0
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// Writes with a flush after every sixteenth.
    FlushedWrite,
}

async fn work(env: &OsEnv, volume: &Volume<OsEnv>, kind: Kind, count: u64, rng: &mut Rng) {
    for number in 0..count {
        let offset = rng.below(VOLUME / BLOCK) * BLOCK;
        let buf = env.buffers().acquire(BLOCK as usize).await;
        if kind == Kind::Read {
            drop(volume.read(offset, BLOCK, buf).await.unwrap());
        } else {
            volume.write(offset, BLOCK, buf, false).await.unwrap();
        }
        if kind == Kind::FlushedWrite && number % 16 == 15 {
            volume.flush().await.unwrap();
        }
    }
}

/// Goal: a warm unit allocates nothing for a read or a write, and little for a commit.
#[test]
fn the_data_path_allocates_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let len = REGION + u64::from(EXTENTS) * EXTENT;
    std::fs::File::create(&path).unwrap().set_len(len).unwrap();
    let ring = Ring::new(&RingOptions::default()).unwrap();
    let buffers = BufferPool::new(32 * ARENA_BLOCK, ARENA_BLOCK).unwrap();
    let env = OsEnv::new(ring.clone(), buffers);
    ring.block_on(async move {
        let unit = serve(&env, &path).await;
        let volume = unit.volume("vol0").unwrap();
        let mut rng = Rng::new(1);
        work(&env, &volume, Kind::FlushedWrite, WARM_UP, &mut rng).await;
        for (kind, bound) in [(Kind::Read, 0.0), (Kind::Write, 0.0), (Kind::FlushedWrite, 24.0)] {
            volume.flush().await.unwrap();
            // What was committed is told to the metadata server some time later.
            while !unit.is_quiet() {
                env.sleep(Duration::from_millis(1)).await;
            }
            // The first writes of an epoch to a pair note it.
            work(&env, &volume, kind, COUNTED / 4, &mut rng).await;
            let before = ALLOCATIONS.get();
            work(&env, &volume, kind, COUNTED, &mut rng).await;
            let each = (ALLOCATIONS.get() - before) as f64 / COUNTED as f64;
            eprintln!("{kind:?}: {each:.2} allocations each");
            assert!(each <= bound, "{kind:?}: {each:.2} allocations each, {bound} are allowed");
        }
        unit.shut_down().await.unwrap();
    });
    ring.shutdown();
}
