//! The real engine under simulation: a pool drawn from the seed, small enough that journal space is
//! always short.
//!
//! The flags begin on the first disk or in one of the machine's NVRAMs ([`Places`]), and a start
//! may move them before it recovers; or they are at the metadata server, and stay.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::churn;
use super::engine::{Engine, Outcome, Refusal, Room, Running, Volume, Zeroing};
use super::host::{LeaseWatch, Seat};
use super::metadata::Metadata;
use super::places::Places;
use crate::env::Env;
use crate::env::latch::Latching;
use crate::env::region::DeviceRegion;
use crate::env::sim::rng::Rng;
use crate::env::sim::{self, DiskShape, Shape, SimEnv, SimStorage};
use crate::format::group::{Group, Part, SLOT_BYTES};
use crate::format::ids::{ExtentRun, HostId, PoolId, UnitId};
use crate::format::layout::{DeviceLayout, Geometry, REGION_ALIGN};
use crate::journal::relocate::Moved;
use crate::journal::{Journal, RegionLayout};
use crate::mds::catalog::{PoolSpec, UnitFacts};
use crate::mds::client::pools::overview;
use crate::mds::records::Grants;
use crate::unit::limits::EPOCH_DATA_MAX;
use crate::unit::{
    self, Config, IoError, Member, Ownership, SettlePolicy, Unit, UnitParts, WarmMemory,
    keep_unheard, say_aside,
};

pub(super) const POOL: PoolId = PoolId(*b"simulated pool!!");
pub(super) const UNIT: UnitId = UnitId(1);
/// What a move of the flags is refused with where a group is in doubt.
const IN_DOUBT: &str = "of the journal is in doubt";
const SLOT: u64 = SLOT_BYTES as u64;
/// What a start that is fenced from others is told where a claim of an earlier one, which was long
/// on its way, came in between.
const ATTACHED_LATER: &str = "was attached with this or a later incarnation already";

/// A pool, and how it is served.
#[derive(Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is one thing that a pool has or has not")]
pub struct Flipside {
    geometry: Geometry,
    volatile_cache: bool,
    places: Places,
    /// Whether the flags are at the metadata server.
    at_server: bool,
    /// How often a start moves the flags, in parts per million.
    moves_ppm: u32,
    reserve: u32,
    volumes: Vec<u64>,
    granule: usize,
    config: Config,
    /// Whether other volumes come and go beside those that are checked.
    churn: bool,
    /// Whether what is acknowledged outlives the process.
    warm: bool,
    metadata: Metadata,
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
            volatile_cache: true,
            places: Places::new(POOL, geometry, 512, 4 << 20, vec![extents], reserve),
            at_server: false,
            moves_ppm: 0,
            reserve,
            volumes: vec![size],
            granule: 512,
            config,
            churn: false,
            warm: false,
            metadata: Metadata::default(),
        }
    }

    /// The same with NVRAMs that have so many bytes more than the region on the disk, the flags in
    /// the one of number `begins_in` from the beginning, or on the disk.
    #[must_use]
    pub fn with_nvrams(mut self, more: &[u64], begins_in: Option<usize>) -> Self {
        self.places.add_nvrams(more, begins_in);
        self
    }

    /// The same with the data of writes of so many bytes at most in the journal, where that is not
    /// at a server.
    #[must_use]
    pub fn with_payload(mut self, write_max: u64) -> Self {
        self.config.nvram_write_max = write_max;
        self
    }

    /// The same with one more volume, of so many bytes.
    #[must_use]
    pub fn with_volume(mut self, size: u64) -> Self {
        self.volumes.push(size);
        self
    }

    /// The same with the flags at the metadata server.
    #[must_use]
    pub fn at_the_server(mut self) -> Self {
        self.at_server = true;
        self
    }

    /// The same pool with that grant from the next start on.
    #[must_use]
    pub fn with_grant(mut self, grant: Option<u32>) -> Self {
        self.config.grant = grant;
        self
    }

    /// One for members of groups: with volumes of these sizes at most, in extents, and with
    /// requests in multiples of `granule` bytes.
    pub(super) fn draw_member(rng: &mut Rng, volumes: &[u64], granule: usize) -> Self {
        let (nvram, at_server) =
            rng.pick(&[(true, false), (true, false), (false, false), (false, true)]);
        let fits = |drawn: &Self| {
            let room = u64::from(drawn.extents() - drawn.reserve);
            let small = drawn.geometry.extent_size() <= 1 << 17;
            let place = (drawn.places.has_nvram(), drawn.at_server) == (nvram, at_server);
            place && small && room >= 2 * volumes.len() as u64
        };
        let mut drawn = Self::draw(rng);
        while !fits(&drawn) {
            drawn = Self::draw(rng);
        }
        let room = u64::from(drawn.extents() - drawn.reserve) / volumes.len() as u64;
        let extent = u64::from(drawn.geometry.extent_size());
        drawn.volumes = volumes.iter().map(|most| room.min(*most) * extent).collect();
        let timeout = rng.pick(&[Some(1), Some(1_000), Some(30_000)]);
        drawn.config.doubt_timeout = Duration::from_millis(timeout.unwrap_or_default());
        Self { granule, churn: rng.chance(150_000), warm: false, ..drawn }
    }

    /// The same as a pool of that name at a host that it shares with others.
    #[must_use]
    pub fn hosted(mut self, pool: PoolId, seat: Seat) -> Self {
        self.places.set_pool(pool);
        self.metadata = Metadata::Hosted(seat);
        self
    }

    /// The same pool claimed by a machine of that name from the next start on.
    #[must_use]
    pub fn on_host(mut self, host: HostId) -> Self {
        self.config.ownership.host = host;
        self
    }

    /// The same with a lease.
    #[must_use]
    pub fn leased(mut self, lease: Option<Duration>) -> Self {
        self.config.ownership.lease = lease;
        self
    }

    /// The same, taken over from a host that may go by its lease for so long.
    #[must_use]
    pub fn after_lease(mut self, former: Duration) -> Self {
        self.config.ownership.former_lease = former;
        self
    }

    /// The same with a region of so many bytes on the disk.
    #[must_use]
    pub fn with_region(mut self, len: u64) -> Self {
        self.places.set_region(len);
        self
    }

    /// The same on two disks.
    #[must_use]
    pub fn on_two_disks(mut self) -> Self {
        self.places.split_disk();
        self
    }

    /// Has the metadata store fail at the next change of a volume, `applied` all the same or not.
    pub fn fail_the_store(&self, applied: bool) {
        self.metadata.fail_a_volume_commit(applied);
    }

    /// Moves the flags, as a user does while nothing is served: into an NVRAM, or to the disk.
    pub fn move_flags(
        &self,
        env: SimEnv,
        to: Option<usize>,
    ) -> impl Future<Output = Result<Moved, String>> + 'static {
        let places = self.places.clone();
        async move {
            env.claim().await;
            places.relocate(&env, to).await
        }
    }

    /// Where the flags are: in which NVRAM, or on the disk; and which NVRAMs are of a pool.
    pub fn find_flags(
        &self,
        env: SimEnv,
    ) -> impl Future<Output = Result<(Option<usize>, Vec<usize>), String>> + 'static {
        let places = self.places.clone();
        async move {
            env.claim().await;
            places.find(&env).await
        }
    }

    /// A pool as small as one can be, with one volume of two extents.
    pub fn small(geometry: Geometry, nvram: bool) -> Self {
        let config = Config {
            commit_interval: None,
            settle: SettlePolicy::Pressure,
            settle_batch: 2,
            tell_interval: Duration::from_millis(1),
            // Both forms of a commit.
            sum_blocks_max: 2,
            ..Config::default()
        };
        let size = 2 * u64::from(geometry.extent_size());
        let granule = geometry.block_size() as usize / 4;
        let plain = Self { granule, ..Self::plain(geometry, 12, 4, size, config) };
        let small = plain.with_region(5 * REGION_ALIGN);
        if nvram { small.with_nvrams(&[0], Some(0)).with_payload(1 << 20) } else { small }
    }

    /// What lies where on each disk.
    pub(super) fn layouts(&self) -> Vec<DeviceLayout> {
        self.places.layouts()
    }

    fn extents(&self) -> u32 {
        self.places.extents()
    }

    /// Where the region begins and what lies where in it, unless it may move or there is none.
    fn region_layout(&self) -> Option<(u64, RegionLayout)> {
        let stays = self.moves_ppm == 0 && !self.at_server;
        let (base, len, sector) = self.places.fixed().filter(|_| stays)?;
        let layout = RegionLayout::compute(len, self.extents(), sector);
        Some((base, layout.expect("room for a journal")))
    }

    /// What lies where on the medium of the region.
    fn parts(&self) -> Vec<sim::Part> {
        let Some((base, layout)) = self.region_layout() else { return Vec::new() };
        let names = super::run::PAGES;
        let runs = [layout.header, layout.status, layout.home];
        let mut parts = Vec::new();
        for ([first, second, several], run) in names.into_iter().zip(runs) {
            let page = run.page as u64;
            for (copy, name) in [first, second].into_iter().enumerate() {
                let start = base + run.copies[copy];
                let range = start..start + page * u64::from(run.count);
                let twofold = (copy == 0).then_some((page, base + run.copies[1]));
                parts.push(sim::Part { name, range, long: Some((page, several)), twofold });
            }
        }
        let range = base + layout.slots_at..base + layout.end();
        let long = Some((SLOT, super::run::LONG_GROUP));
        parts.push(sim::Part { name: "journal slot", range, long, twofold: None });
        parts
    }

    fn draw_any(rng: &mut Rng) -> Self {
        let block_shift = rng.pick(&[9u32, 9, 10, 12]);
        // Large extents, and many, are drawn seldom: their images take long to check.
        let ratio = if rng.chance(60_000) { rng.between(7, 8) } else { rng.between(3, 6) } as u32;
        let extent_shift = (block_shift + ratio).max(14);
        let geometry = Geometry::new(1 << block_shift, 1 << extent_shift).expect("sound sizes");
        let sector = if block_shift == 12 { rng.pick(&[512, 4096]) } else { 512 };
        let at_server = rng.chance(200_000);
        let nvrams = if rng.chance(300_000) && !at_server { rng.between(1, 2) } else { 0 };
        let more: Vec<u64> = (0..nvrams).map(|_| rng.below(40) * SLOT).collect();
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
            epoch_data_max: rng.pick(&[0, 64 << 10, EPOCH_DATA_MAX]),
            // Long enough for most, or none: what is given up ends the work.
            mds_timeout: rng.pick(&[None, None, None, Some(Duration::from_secs(2))]),
            ..Config::default()
        };
        let room = extents - reserve;
        let volumes = draw_volumes(rng, geometry, room);
        // From 64 slots on, and more pages than any pool here needs.
        let region_len = rng.between(5, 14) * REGION_ALIGN;
        let mut places = Places::new(POOL, geometry, sector, region_len, disks, reserve);
        places.add_nvrams(&more, (0..more.len()).next_back());
        Self {
            geometry,
            volatile_cache: rng.chance(900_000),
            places,
            at_server,
            moves_ppm: if more.is_empty() { 0 } else { rng.pick(&[0, 300_000]) },
            reserve,
            volumes,
            granule: rng.pick(&[512, 512, 128]),
            config,
            churn: rng.chance(250_000),
            warm: false,
            metadata: Metadata::default(),
        }
    }

    /// The same where epochs end only when somebody asks for it or space is short: groups get
    /// large.
    fn with_long_epochs(mut self) -> Self {
        self.config.commit_interval = None;
        self.config.epoch_data_max = EPOCH_DATA_MAX;
        self
    }

    async fn make(self, env: SimEnv) -> Result<(), String> {
        let layouts = self.places.layouts();
        let starts = layouts.iter().map(|layout| layout.extents);
        let pool = PoolSpec {
            extent_size: self.geometry.extent_size(),
            devices: starts.map(|on| ExtentRun { start: on.first, count: on.count }).collect(),
            reserve: self.reserve,
        };
        self.metadata.make(&env, self.places.pool(), &pool, &self.volumes).await?;
        if !self.at_server {
            self.make_region(&env).await?;
        }
        self.places.format(&env).await
    }

    /// The region: zeros, then an empty journal.
    async fn make_region(&self, env: &SimEnv) -> Result<(), String> {
        let span = self.places.region();
        let region = DeviceRegion::new(env.disk(0), span.offset, span.len);
        let mut zeros = env.buffers().acquire(SLOT as usize).await;
        zeros.as_mut_slice().fill(0);
        for at in (0..span.len).step_by(SLOT as usize) {
            let piece = vec![(at, zeros.view_all())];
            crate::env::Region::persist(&region, piece).await.map_err(|error| error.to_string())?;
        }
        Journal::format(&region, self.places.pool(), UNIT, self.extents(), env.buffers())
            .await
            .map_err(|error| error.to_string())
    }

    async fn start(mut self, env: SimEnv) -> Result<Serving, String> {
        env.claim().await;
        self.metadata.serve(&env)?;
        if self.warm {
            keep_unheard(&*env.shared()).map_err(|error| error.to_string())?;
            say_aside(&*env.shared(), true);
        }
        if env.random() % 1_000_000 < u64::from(self.moves_ppm) {
            let to = self.places.any(env.random());
            match self.places.relocate(&env, to).await {
                Err(why) if !why.contains(IN_DOUBT) => return Err(why),
                Ok(_) | Err(_) => {}
            }
        }
        let disks: Vec<_> = env.disks().into_iter().map(Latching::new).collect();
        let region =
            if self.at_server { None } else { Some(self.places.open(&env, &disks[0]).await?) };
        if self.warm {
            say_aside(&*env.shared(), false);
        }
        let devices = disks.into_iter().zip(self.places.layouts());
        let devices = devices.map(|(disk, layout)| Member { disk, extents: layout.extents });
        let devices = devices.collect();
        let lease = self.config.ownership.lease;
        let watch = lease.and_then(|lease| self.metadata.watch(&env, lease));
        if self.config.ownership.fenced {
            // From whom is asked first, as the command does.
            let seen = overview(&env, env.link(1)).await.map_err(|error| error.to_string())?;
            let pool = self.places.pool();
            let owner = seen.sessions.iter().find(|of| of.pool == pool && !of.reads);
            self.config.ownership.former_start = owner.map(|of| of.incarnation).unwrap_or_default();
        }
        let link = env.link(0);
        let parts = UnitParts {
            env: env.clone(),
            pool: self.places.pool(),
            unit: UNIT,
            geometry: self.geometry,
            reserve: self.reserve,
            devices,
            region,
            link,
            config: self.config,
            counters: Rc::default(),
            latencies: Rc::default(),
            warm: self.warm.then(|| WarmMemory { memory: env.shared(), boot: [1; 16] }),
        };
        let (unit, _) = Unit::recover(parts).await.map_err(|error| error.to_string())?;
        let others_busy = Rc::new(Cell::new(false));
        if self.churn {
            let extent = u64::from(self.geometry.extent_size());
            let busy = Rc::clone(&others_busy);
            env.spawn(churn::keep_changing(env.clone(), unit.clone(), extent, busy));
        }
        let pool = self.places.pool();
        Ok(Serving { env, unit, others_busy, pool, metadata: self.metadata, watch })
    }
}

impl Engine for Flipside {
    type Running = Serving;

    fn draw(rng: &mut Rng) -> Self {
        let mut drawn = Self::draw_any(rng);
        if rng.chance(120_000) {
            drawn = drawn.with_long_epochs();
        }
        drawn.config.grant = rng.pick(&[None, None, None, Some(1), Some(2), Some(8)]);
        if drawn.places.has_nvram() {
            drawn.config.nvram_write_max = rng.pick(&[0, 512, 4 << 10, 16 << 10, 1 << 20]);
        }
        // Last, so that what was drawn before stays what it was.
        drawn.warm = rng.chance(300_000);
        drawn.config.sum_blocks_max = rng.pick(&[0, 0, 3, 64]);
        // Without a draw of its own: seeds are what they were.
        drawn.config.read_pieces_max =
            if drawn.config.sum_blocks_max == 0 { usize::MAX } else { 2 };
        drawn
    }

    fn shape(&self) -> Shape {
        let disks = self.places.layouts().into_iter().map(|layout| DiskShape {
            len: layout.size,
            sector: self.places.sector(),
            volatile_cache: self.volatile_cache,
        });
        Shape {
            disks: disks.collect(),
            nvram: self.places.nvram_shape(),
            parts: self.parts(),
            storage_max: 0,
            buffers_max: 128 << 20,
        }
    }

    fn long_epochs(&self) -> Option<u64> {
        let long =
            self.config.commit_interval.is_none() && self.config.epoch_data_max == EPOCH_DATA_MAX;
        long.then_some(2 * u64::from(self.geometry.block_size()))
    }

    fn is_warm(&self) -> bool {
        self.warm && self.config.ownership.lease.is_none()
    }

    fn lease(&self) -> Option<Duration> {
        self.config.ownership.lease
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

    fn calm(&self) {
        if let Metadata::Hosted(seat) = &self.metadata {
            seat.host().calm();
        }
    }

    fn elsewhere(&self, fenced: bool) -> Option<Self> {
        // What is in the persistent memory of a machine is nobody else's.
        let reached = matches!(self.metadata, Metadata::Hosted(_)) && !self.places.has_nvram();
        let mut other = self.clone();
        if let Metadata::Hosted(seat) = &mut other.metadata {
            *seat = seat.of_another_machine();
        }
        let Ownership { host, .. } = &mut other.config.ownership;
        *host = HostId([host.0[0].wrapping_add(1); 16]);
        other.config.ownership.fenced = fenced;
        reached.then_some(other)
    }

    fn came_in(&mut self) {
        self.config.ownership.fenced = false;
    }

    fn is_owned_elsewhere(why: &str) -> bool {
        why.contains("attached to another host")
    }

    fn starts_again(&self, why: &str) -> bool {
        let Ownership { fenced, .. } = self.config.ownership;
        fenced && why.contains(ATTACHED_LATER)
    }

    fn fork(&self) -> Self {
        Self { metadata: self.metadata.fork(), ..self.clone() }
    }

    fn stored(&self) -> u64 {
        self.metadata.stored()
    }

    fn older_groups(&self, read: &dyn Fn(u64, &mut [u8]) -> bool) -> Vec<Range<u64>> {
        let Some((base, layout)) = self.region_layout() else { return Vec::new() };
        let (mut bytes, mut parts) = (vec![0; SLOT_BYTES], BTreeMap::<u32, Part>::new());
        for slot in 0..layout.slots {
            if read(base + layout.slot_at(slot), &mut bytes)
                && let Some(part) = Part::parse(&bytes, self.places.pool())
            {
                parts.insert(slot, part);
            }
        }
        let whole = parts.keys().filter_map(|&slot| Group::assemble(slot, |slot| parts.get(&slot)));
        let mut groups: Vec<(Group, Vec<u32>)> = whole.collect();
        groups.sort_by_key(|(group, _)| group.sequence);
        // Of one behind which something was begun it is known that it was whole.
        groups.pop_if(|(last, _)| parts.values().all(|part| part.sequence <= last.sequence));
        let slots = groups.into_iter().flat_map(|(_, slots)| slots);
        slots.map(|slot| base + layout.slot_at(slot)..base + layout.slot_at(slot + 1)).collect()
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
    /// Whether one of the volumes that come and go is being changed.
    others_busy: Rc<Cell<bool>>,
    pool: PoolId,
    metadata: Metadata,
    watch: Option<LeaseWatch>,
}

/// A volume of it.
#[derive(Clone)]
pub struct Served {
    env: SimEnv,
    volume: unit::Volume<SimEnv>,
    watch: Option<LeaseWatch>,
}

/// The result of something that made durable what was acknowledged before, or was to.
fn hardened(result: Result<(), IoError>, watch: Option<&LeaseWatch>) -> Outcome<()> {
    if let (Ok(()), Some(watch)) = (&result, watch) {
        watch.acknowledged();
    }
    result.map_err(refused)
}

fn refused(error: IoError) -> Refusal {
    match error {
        IoError::NoSpace => Refusal::NoSpace,
        other => Refusal::Failed(other.to_string()),
    }
}

impl Serving {
    /// Takes its place in its consistency groups.
    pub(super) async fn join_groups(&self) -> Result<(), String> {
        self.unit.join_groups().await.map_err(|error| error.to_string())
    }

    /// The environment that it runs in.
    pub fn env(&self) -> &SimEnv {
        &self.env
    }

    /// Ends the metadata server, and starts another one with what it has stored.
    pub(super) fn restart_server(&self) -> Result<(), String> {
        self.metadata.serve(&self.env)
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
        let served = |volume| {
            let (env, watch) = (self.env.clone(), self.watch.clone());
            Served { env, volume, watch }
        };
        volumes.map(served).collect()
    }

    fn commit(&self) -> impl Future<Output = Outcome<()>> + 'static {
        let (unit, watch) = (self.unit.clone(), self.watch.clone());
        async move { hardened(unit.commit(None).await, watch.as_ref()) }
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
        self.unit.check_invariants()?;
        if !self.is_quiet() {
            return Ok(());
        }
        let stored = self.metadata.facts(self.pool)?;
        let pairs: Vec<_> = stored.pairs.into_iter().map(|(_, pair)| pair).collect();
        self.unit.check_told(&pairs)?;
        let unit = stored.units.into_iter().find(|unit| unit.unit == UNIT);
        let grants = |unit: UnitFacts| Grants { runs: unit.granted, data_quota: unit.data_quota };
        self.unit.check_granted(&unit.map(grants).unwrap_or_default())
    }

    fn is_quiet(&self) -> bool {
        self.unit.is_quiet() && !self.others_busy.get()
    }

    fn has_given_up(&self) -> bool {
        self.unit.is_without_answer() || self.unit.is_fenced()
    }
}

impl Served {
    /// Whether requests by this handle are served still.
    pub(super) fn is_current(&self) -> bool {
        self.volume.allocation(0, 1, 1).is_ok()
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
            let mut buf = served.env.buffers().acquire(room.total).await;
            // Half of the reads go the way of those that fill others' memory, where they can.
            let straight = (offset / u64::from(served.volume.block_size())).is_multiple_of(2)
                && served.volume.read_straight(offset, len as u64, &mut buf).await.unwrap_or(false);
            if straight {
                return Ok(buf.as_slice().to_vec());
            }
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
            let written = served.volume.write(offset, data.len() as u64, buf, fua).await;
            hardened(written, served.watch.as_ref().filter(|_| fua))
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
        let served = self.clone();
        async move { hardened(served.volume.flush().await, served.watch.as_ref()) }
    }
}
