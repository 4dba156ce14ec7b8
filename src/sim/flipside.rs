//! The real engine under simulation: a pool drawn from the seed, small enough that journal space is
//! always short.
//!
//! The disks hold no superblocks here (those are tried by their own tests): what a superblock would
//! say is part of the engine's drawn configuration.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::churn;
use super::engine::{Engine, Outcome, Refusal, Room, Running, Volume, Zeroing};
use super::metadata::Tables;
use crate::env::flags::FlagsRegion;
use crate::env::latch::Latching;
use crate::env::region::DeviceRegion;
use crate::env::sim::calls::Calls;
use crate::env::sim::rng::Rng;
use crate::env::sim::{self, DiskShape, Shape, SimEnv, SimStorage};
use crate::env::{Env, Region};
use crate::format::group::{Group, Part, SLOT_BYTES};
use crate::format::ids::{ExtentId, ExtentRun, PoolId, UnitId};
use crate::format::layout::{DeviceExtents, Geometry};
use crate::journal::{Journal, RegionLayout};
use crate::mds::catalog::{Catalog, PoolSpec};
use crate::mds::server::Server;
use crate::unit::{self, Config, IoError, Member, SettlePolicy, Unit, UnitParts};

const POOL: PoolId = PoolId(*b"simulated pool!!");
const UNIT: UnitId = UnitId(1);
/// What the region has besides journal slots, in bytes: more than any pool here needs.
const REGION_BASE: u64 = 64 << 10;
const SLOT: u64 = SLOT_BYTES as u64;
/// The sector of the persistent memory, in bytes.
const NVRAM_SECTOR: u32 = 512;

/// A pool, and how it is served.
#[derive(Clone)]
pub struct Flipside {
    geometry: Geometry,
    sector: u32,
    volatile_cache: bool,
    nvram: bool,
    region_len: u64,
    /// Extents on each disk.
    disks: Vec<u32>,
    reserve: u32,
    volumes: Vec<u64>,
    granule: usize,
    config: Config,
    /// Whether other volumes come and go beside those that are checked.
    churn: bool,
    /// The metadata store's tables, which outlive every crash.
    tables: Tables,
}

impl Flipside {
    /// A pool on one disk without anything out of the ordinary, for scenarios: `extents` of them,
    /// `reserve` kept for journaling, and one volume of `size` bytes.
    pub fn plain(
        geometry: Geometry,
        extents: u32,
        reserve: u32,
        size: u64,
        config: Config,
    ) -> Self {
        Self {
            geometry,
            sector: 512,
            volatile_cache: true,
            nvram: false,
            region_len: 4 << 20,
            disks: vec![extents],
            reserve,
            volumes: vec![size],
            granule: 512,
            config,
            churn: false,
            tables: Tables::default(),
        }
    }

    fn extents(&self) -> u32 {
        self.disks.iter().sum()
    }

    /// Where extents begin on a disk, in bytes.
    fn head(&self, disk: usize) -> u64 {
        let head = if disk == 0 && !self.nvram { self.region_len } else { 0 };
        head.next_multiple_of(u64::from(self.geometry.extent_size()))
    }

    fn disk_extents(&self, disk: usize) -> DeviceExtents {
        let first = ExtentId(self.disks.iter().take(disk).sum());
        DeviceExtents { offset: self.head(disk), first, count: self.disks[disk] }
    }

    fn region_layout(&self) -> RegionLayout {
        let sector = if self.nvram { NVRAM_SECTOR } else { self.sector };
        RegionLayout::compute(self.region_len, self.extents(), sector).expect("room for a journal")
    }

    /// What lies where in the region.
    fn parts(&self) -> Vec<sim::Part> {
        let layout = self.region_layout();
        let names = [["header 0", "header 1"], ["status 0", "status 1"], ["home 0", "home 1"]];
        let runs = [layout.header, layout.status, layout.home];
        let mut parts = Vec::new();
        for (names, run) in names.into_iter().zip(runs) {
            let page = run.page as u64;
            for (copy, name) in names.into_iter().enumerate() {
                let start = run.copies[copy];
                let range = start..start + page * u64::from(run.count);
                let twofold = (copy == 0).then_some((page, run.copies[1]));
                parts.push(sim::Part { name, range, twofold });
            }
        }
        let range = layout.slots_at..layout.end();
        parts.push(sim::Part { name: "journal slot", range, twofold: None });
        parts
    }

    async fn make(self, env: SimEnv) -> Result<(), String> {
        let wrong = |error: &dyn std::fmt::Debug| format!("{error:?}");
        let starts = (0..self.disks.len()).map(|disk| self.disk_extents(disk));
        let pool = PoolSpec {
            extent_size: self.geometry.extent_size(),
            devices: starts.map(|on| ExtentRun { start: on.first, count: on.count }).collect(),
            reserve: self.reserve,
        };
        let store = Box::new(self.tables.open(Calls::new(None), false));
        let mut catalog = Catalog::create(store, &pool).map_err(|e| wrong(&e))?;
        for (number, size) in self.volumes.iter().enumerate() {
            catalog.create_volume(&format!("vol{number}"), *size).map_err(|e| wrong(&e))?;
        }
        catalog.commit().map_err(|e| wrong(&e))?;
        if let Some(nvram) = env.nvram() {
            self.make_region(&env, nvram).await
        } else {
            let region = DeviceRegion::new(env.disk(0), 0, self.region_len);
            self.make_region(&env, region).await
        }
    }

    /// The region: zeros, then an empty journal.
    async fn make_region(&self, env: &SimEnv, region: impl Region) -> Result<(), String> {
        let mut zeros = env.buffers().acquire(SLOT as usize).await;
        zeros.as_mut_slice().fill(0);
        for at in (0..self.region_len).step_by(SLOT as usize) {
            let piece = vec![(at, zeros.view_all())];
            region.persist(piece).await.map_err(|error| error.to_string())?;
        }
        Journal::format(&region, POOL, UNIT, self.extents(), env.buffers())
            .await
            .map_err(|error| error.to_string())
    }

    async fn start(self, env: SimEnv) -> Result<Serving, String> {
        env.claim().await;
        let store = self.tables.open(env.call_counter(), env.random().is_multiple_of(2));
        let catalog = Catalog::open(Box::new(store)).map_err(|error| error.to_string())?;
        let server = Server::new(catalog).map_err(|error| error.to_string())?;
        env.serve(Box::new(server));
        let disks: Vec<_> = env.disks().into_iter().map(Latching::new).collect();
        let region = match env.nvram() {
            Some(nvram) => FlagsRegion::Nvram(nvram),
            None => FlagsRegion::Device(DeviceRegion::new(disks[0].clone(), 0, self.region_len)),
        };
        let devices = disks.into_iter().enumerate();
        let devices = devices
            .map(|(number, disk)| Member { disk, extents: self.disk_extents(number) })
            .collect();
        let link = env.link(0);
        let parts = UnitParts {
            env: env.clone(),
            pool: POOL,
            unit: UNIT,
            geometry: self.geometry,
            reserve: self.reserve,
            devices,
            region,
            link,
            config: self.config,
            counters: Rc::default(),
            latencies: Rc::default(),
        };
        let (unit, _) = Unit::recover(parts).await.map_err(|error| error.to_string())?;
        if self.churn {
            let extent = u64::from(self.geometry.extent_size());
            env.spawn(churn::keep_changing(env.clone(), unit.clone(), extent));
        }
        Ok(Serving { env, unit })
    }
}

impl Engine for Flipside {
    type Running = Serving;

    fn draw(rng: &mut Rng) -> Self {
        let block_shift = rng.pick(&[9u32, 9, 10, 12]);
        // Large extents, and many, are drawn seldom: their images take long to check.
        let ratio = if rng.chance(60_000) { rng.between(7, 8) } else { rng.between(3, 6) } as u32;
        let extent_shift = (block_shift + ratio).max(14);
        let geometry = Geometry::new(1 << block_shift, 1 << extent_shift).expect("sound sizes");
        let sector = if block_shift == 12 { rng.pick(&[512, 4096]) } else { 512 };
        let nvram = rng.chance(350_000);
        let many = ratio < 7 && rng.chance(100_000);
        let extents = rng.between(20, if many { 200 } else { 60 }) as u32;
        let disks = if rng.chance(250_000) {
            let first = rng.between(4, u64::from(extents) - 4) as u32;
            vec![first, extents - first]
        } else {
            vec![extents]
        };
        // A small reserve makes extents go round fast.
        let most = if rng.chance(400_000) { 4 } else { extents / 3 };
        let reserve = rng.between(2, u64::from(most)) as u32;
        let config = Config {
            commit_interval: rng
                .pick(&[None, Some(1), Some(50), Some(5_000)])
                .map(Duration::from_millis),
            settle: rng.pick(&[
                SettlePolicy::Pressure,
                SettlePolicy::Pressure,
                SettlePolicy::Idle,
                SettlePolicy::Always,
            ]),
            settle_batch: rng.pick(&[1, 2, 8, 100]),
            tell_interval: Duration::from_millis(rng.pick(&[1, 20, 500])),
            discard: rng.chance(400_000),
            ..Config::default()
        };
        let room = extents - reserve;
        let volumes = draw_volumes(rng, geometry, room);
        Self {
            geometry,
            sector,
            volatile_cache: rng.chance(900_000),
            nvram,
            region_len: REGION_BASE + rng.pick(&[64, 66, 100, 200]) * SLOT,
            disks,
            reserve,
            volumes,
            granule: rng.pick(&[512, 512, 128]),
            config,
            churn: rng.chance(250_000),
            tables: Tables::default(),
        }
    }

    fn shape(&self) -> Shape {
        let disks = (0..self.disks.len()).map(|disk| DiskShape {
            len: self.head(disk) + self.disk_extents(disk).len_bytes(self.geometry),
            sector: self.sector,
            volatile_cache: self.volatile_cache,
        });
        Shape {
            disks: disks.collect(),
            nvram: self.nvram.then_some((self.region_len, NVRAM_SECTOR)),
            parts: self.parts(),
            storage_max: 0,
            buffers_max: 128 << 20,
        }
    }

    fn volumes(&self) -> Vec<u64> {
        self.volumes.clone()
    }

    fn granule(&self) -> usize {
        self.granule
    }

    fn room(&self) -> Room {
        let extent = u64::from(self.geometry.extent_size());
        let others = if self.churn { churn::EXTENTS_MAX as u32 } else { 0 };
        let extents = (self.extents() - self.reserve).saturating_sub(others);
        Room { extent, extents: extents as usize }
    }

    fn fork(&self) -> Self {
        Self { tables: self.tables.fork(), ..self.clone() }
    }

    fn older_groups(&self, read: &dyn Fn(u64, &mut [u8]) -> bool) -> Vec<Range<u64>> {
        let layout = self.region_layout();
        let mut bytes = vec![0; SLOT_BYTES];
        let mut parts: BTreeMap<u32, Part> = BTreeMap::new();
        for slot in 0..layout.slots {
            if read(layout.slot_at(slot), &mut bytes)
                && let Some(part) = Part::parse(&bytes, POOL)
            {
                parts.insert(slot, part);
            }
        }
        let whole = parts.keys().filter_map(|&slot| Group::assemble(slot, |slot| parts.get(&slot)));
        let mut groups: Vec<(Group, Vec<u32>)> = whole.collect();
        groups.sort_by_key(|(group, _)| group.sequence);
        groups.pop();
        let slots = groups.into_iter().flat_map(|(_, slots)| slots);
        slots.map(|slot| layout.slot_at(slot)..layout.slot_at(slot + 1)).collect()
    }

    fn format(
        &self,
        env: SimEnv,
        _: SimStorage,
    ) -> impl Future<Output = Result<(), String>> + 'static {
        self.clone().make(env)
    }

    fn open(
        &self,
        env: SimEnv,
        _: SimStorage,
    ) -> impl Future<Output = Result<Serving, String>> + 'static {
        self.clone().start(env)
    }
}

/// One or two volumes, most often of all the room there is.
fn draw_volumes(rng: &mut Rng, geometry: Geometry, room: u32) -> Vec<u64> {
    let extent = u64::from(geometry.extent_size());
    let mut total = u64::from(room);
    if rng.chance(150_000) {
        total += total / 2;
    } else if rng.chance(300_000) {
        total = rng.between(2, total);
    }
    let mut sizes = vec![total * extent];
    if total > 2 && rng.chance(400_000) {
        let first = rng.between(1, total - 1);
        sizes = vec![first * extent, (total - first) * extent];
    }
    // A volume may end in the middle of an extent.
    if rng.chance(300_000) && sizes[0] > extent {
        sizes[0] -= u64::from(geometry.block_size());
    }
    sizes
}

/// A unit that serves.
#[derive(Clone)]
pub struct Serving {
    env: SimEnv,
    unit: Unit<SimEnv>,
}

/// A volume of it.
#[derive(Clone)]
pub struct Served {
    env: SimEnv,
    volume: unit::Volume<SimEnv>,
}

fn refused(error: IoError) -> Refusal {
    match error {
        IoError::NoSpace => Refusal::NoSpace,
        other => Refusal::Failed(other.to_string()),
    }
}

impl Serving {
    /// The environment that it runs in.
    pub fn env(&self) -> &SimEnv {
        &self.env
    }

    /// The unit itself.
    pub fn unit(&self) -> &Unit<SimEnv> {
        &self.unit
    }
}

impl Running for Serving {
    type Volume = Served;

    fn volumes(&self) -> Vec<Served> {
        let volumes = self.unit.volumes().into_iter();
        let volumes = volumes.filter(|volume| !churn::is_scratch(&volume.name()));
        volumes.map(|volume| Served { env: self.env.clone(), volume }).collect()
    }

    fn commit(&self) -> impl Future<Output = Outcome<()>> + 'static {
        let unit = self.unit.clone();
        async move { unit.commit(None).await.map_err(refused) }
    }

    fn settle(&self) -> impl Future<Output = Outcome<()>> + 'static {
        let unit = self.unit.clone();
        async move { unit.settle(None).await.map(drop).map_err(refused) }
    }

    fn shutdown(&self) -> impl Future<Output = Outcome<()>> + 'static {
        let unit = self.unit.clone();
        async move { unit.shut_down().await.map_err(refused) }
    }

    fn check(&self) -> Result<(), String> {
        self.unit.check_invariants()
    }

    fn is_quiet(&self) -> bool {
        self.unit.is_quiet()
    }
}

impl Volume for Served {
    fn request_max(&self) -> u64 {
        self.volume.request_max()
    }

    fn read(&self, offset: u64, len: usize) -> impl Future<Output = Outcome<Vec<u8>>> + 'static {
        let served = self.clone();
        async move {
            let room = served.volume.buffer_for(offset, len as u64);
            let buf = served.env.buffers().acquire(room.total).await;
            let read = served.volume.read(offset, len as u64, buf).await;
            let buf = read.map_err(refused)?;
            Ok(buf.as_slice()[room.place].to_vec())
        }
    }

    fn write(
        &self,
        offset: u64,
        data: Vec<u8>,
        fua: bool,
    ) -> impl Future<Output = Outcome<()>> + 'static {
        let served = self.clone();
        async move {
            let room = served.volume.buffer_for(offset, data.len() as u64);
            let mut buf = served.env.buffers().acquire(room.total).await;
            buf.as_mut_slice()[room.place].copy_from_slice(&data);
            served.volume.write(offset, data.len() as u64, buf, fua).await.map_err(refused)
        }
    }

    fn zeroed(&self, offset: u64, len: u64, how: Zeroing) -> Vec<Range<u64>> {
        let block = u64::from(self.volume.block_size());
        let end = offset + len;
        let max = match how {
            Zeroing::Trim | Zeroing::Hole => self.volume.zero_max(),
            Zeroing::NoHole => self.volume.request_max().min(1 << 20),
        };
        let cuts = (offset / max + 1..=(end - 1) / max).map(|piece| piece * max);
        let mut from = offset;
        let mut pieces = Vec::new();
        for to in cuts.chain([end]) {
            let piece = match how {
                Zeroing::Trim => from.next_multiple_of(block)..to / block * block,
                Zeroing::Hole | Zeroing::NoHole => from..to,
            };
            if !piece.is_empty() {
                pieces.push(piece);
            }
            from = to;
        }
        pieces
    }

    fn zero(
        &self,
        offset: u64,
        len: u64,
        how: Zeroing,
        fua: bool,
    ) -> impl Future<Output = Outcome<()>> + 'static {
        let volume = self.volume.clone();
        async move {
            let result = match how {
                Zeroing::Trim => volume.trim(offset, len, fua).await,
                Zeroing::Hole => volume.write_zeroes(offset, len, fua, false).await,
                Zeroing::NoHole => volume.write_zeroes(offset, len, fua, true).await,
            };
            result.map_err(refused)
        }
    }

    fn flush(&self) -> impl Future<Output = Outcome<()>> + 'static {
        let volume = self.volume.clone();
        async move { volume.flush().await.map_err(refused) }
    }
}
