//! Where the flags of a simulated pool may be, what lies where on its disks, and moves between the
//! places, by the superblocks and identities that a real pool has.

use super::flipside::UNIT;
use crate::env::flags::FlagsRegion;
use crate::env::latch::Latching;
use crate::env::region::DeviceRegion;
use crate::env::sim::{SimDisk, SimEnv, SimNvram};
use crate::env::{Env as _, Nvram as _};
use crate::format::ids::{ExtentId, PoolId};
use crate::format::layout::{
    DeviceExtents, DeviceLayout, Geometry, HEAD_LEN, REGION_ALIGN, Regions, SUPERBLOCK_LEN, Span,
};
use crate::format::nvram::REGION_START;
use crate::format::superblock::{FlagsPlace, MetadataAt, PoolDevice, Superblock};
use crate::format::superblock_io;
use crate::journal::identity;
use crate::journal::relocate::{self, Move, Moved, PoolDisk, relocate};

/// The sector of persistent memory, in bytes.
const NVRAM_SECTOR: u32 = 512;

type Region = FlagsRegion<DeviceRegion<Latching<SimDisk>>, SimNvram>;

/// The disks of a pool, and the NVRAMs beside them: parts of the machine's one.
#[derive(Clone)]
pub(super) struct Places {
    pool: PoolId,
    geometry: Geometry,
    sector: u32,
    region_len: u64,
    /// Extents on each disk.
    disks: Vec<u32>,
    reserve: u32,
    /// The bytes of each NVRAM.
    nvrams: Vec<u64>,
    /// The NVRAM that the flags are in from the beginning.
    begins_in: Option<usize>,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Places {
    /// A pool with a region of `region_len` bytes on its first disk, and no NVRAM.
    pub fn new(
        pool: PoolId,
        geometry: Geometry,
        sector: u32,
        region_len: u64,
        disks: Vec<u32>,
        reserve: u32,
    ) -> Self {
        let (nvrams, begins_in) = (Vec::new(), None);
        Self { pool, geometry, sector, region_len, disks, reserve, nvrams, begins_in }
    }

    pub fn set_pool(&mut self, pool: PoolId) {
        self.pool = pool;
    }

    pub fn pool(&self) -> PoolId {
        self.pool
    }

    pub fn set_region(&mut self, len: u64) {
        assert!(self.nvrams.is_empty(), "their sizes follow from the region's");
        self.region_len = len;
    }

    pub fn add_nvrams(&mut self, more: &[u64], begins_in: Option<usize>) {
        self.nvrams = more.iter().map(|more| REGION_START + self.region_len + more).collect();
        self.begins_in = begins_in;
    }

    pub fn split_disk(&mut self) {
        let all = self.extents();
        self.disks = vec![all / 2, all - all / 2];
    }

    pub fn extents(&self) -> u32 {
        self.disks.iter().sum()
    }

    pub fn sector(&self) -> u32 {
        self.sector
    }

    /// The region on the first disk.
    pub fn region(&self) -> Span {
        Span { offset: HEAD_LEN, len: self.region_len }
    }

    pub fn has_nvram(&self) -> bool {
        !self.nvrams.is_empty()
    }

    /// Size and sector of the machine's persistent memory.
    pub fn nvram_shape(&self) -> Option<(u64, u32)> {
        let total = self.nvrams.iter().sum();
        (total > 0).then_some((total, NVRAM_SECTOR))
    }

    /// Where the region begins on its medium, its length and its sector, in bytes: on the
    /// persistent memory where there is any; nothing where there is and the region is not there.
    pub fn fixed(&self) -> Option<(u64, u64, u32)> {
        if self.nvrams.is_empty() {
            return Some((HEAD_LEN, self.region_len, self.sector));
        }
        let number = self.begins_in?;
        let start: u64 = self.nvrams.iter().take(number).sum();
        Some((start + REGION_START, self.nvrams[number] - REGION_START, NVRAM_SECTOR))
    }

    /// One of the places: an NVRAM, or the disk.
    pub fn any(&self, random: u64) -> Option<usize> {
        (random as usize % (self.nvrams.len() + 1)).checked_sub(1)
    }

    /// What lies where on each disk.
    pub fn layouts(&self) -> Vec<DeviceLayout> {
        let mut first = 0;
        let mut layouts = Vec::new();
        for (disk, &count) in self.disks.iter().enumerate() {
            let unit = self.region();
            let store = Span { offset: unit.end(), len: REGION_ALIGN };
            let regions = (disk == 0).then_some(Regions { unit, store });
            let head = if disk == 0 { store.end() } else { HEAD_LEN };
            let offset = head.next_multiple_of(u64::from(self.geometry.extent_size()));
            let extents = DeviceExtents { offset, first: ExtentId(first), count };
            let end = offset + extents.len_bytes(self.geometry);
            let size = end.next_multiple_of(SUPERBLOCK_LEN) + SUPERBLOCK_LEN;
            let layout = DeviceLayout { size, regions, extents };
            layout.check(self.geometry).expect("a sound layout");
            layouts.push(layout);
            first += count;
        }
        layouts
    }

    fn superblocks(&self) -> Vec<Superblock> {
        let of_disk = |(number, &extents): (u8, &u32)| PoolDevice { id: [number; 16], extents };
        let devices: Vec<_> = (1..).zip(&self.disks).map(of_disk).collect();
        let superblock = |(device_index, layout)| Superblock {
            revision: 1,
            pool: self.pool,
            device_index,
            unit: UNIT,
            geometry: self.geometry,
            sector: self.sector,
            flags: FlagsPlace::Device,
            metadata: MetadataAt::Device,
            created_s: 0,
            layout,
            journal_reserve: self.reserve,
            devices: devices.clone(),
        };
        (0..).zip(self.layouts()).map(superblock).collect()
    }

    /// Writes the superblocks, and moves the flags where they begin.
    pub async fn format(&self, env: &SimEnv) -> Result<(), String> {
        for (disk, superblock) in env.disks().iter().zip(self.superblocks()).rev() {
            superblock_io::write(disk, env.buffers(), &superblock).await.map_err(text)?;
        }
        self.relocate(env, self.begins_in).await.map(drop)
    }

    fn nvram(&self, env: &SimEnv, number: usize) -> SimNvram {
        let start = self.nvrams.iter().take(number).sum();
        env.nvram().expect("a machine with NVRAM").part(start, self.nvrams[number])
    }

    /// The superblocks, as a start finds them and leaves them.
    async fn recognise(&self, env: &SimEnv) -> Result<Vec<Superblock>, String> {
        let mut superblocks = Vec::new();
        for disk in env.disks() {
            let (found, _) = superblock_io::recover(&disk, env.buffers()).await.map_err(text)?;
            superblocks.push(found);
        }
        let disks = env.disks();
        relocate::complete(env, &mut pool(&disks, &mut superblocks)).await.map_err(text)?;
        assert!(superblocks.iter().all(|of| of.flags == superblocks[0].flags));
        Ok(superblocks)
    }

    /// The NVRAM that the flags are in, and all that are of a pool.
    async fn identified(
        &self,
        env: &SimEnv,
        flags: FlagsPlace,
    ) -> Result<(Option<usize>, Vec<usize>), String> {
        let (mut bound, mut all) = (None, Vec::new());
        for number in 0..self.nvrams.len() {
            let found = identity::read(env, &self.nvram(env, number)).await;
            let Some(found) = found.map_err(text)? else { continue };
            all.push(number);
            if flags == (FlagsPlace::Nvram { region: found.region, len: found.len }) {
                bound = Some(number);
            }
        }
        let there = bound.is_some() || flags == FlagsPlace::Device;
        if there { Ok((bound, all)) } else { Err(format!("{flags:?} is in no NVRAM")) }
    }

    pub async fn find(&self, env: &SimEnv) -> Result<(Option<usize>, Vec<usize>), String> {
        let superblocks = self.recognise(env).await?;
        self.identified(env, superblocks[0].flags).await
    }

    /// Moves the flags, or completes that; names the NVRAM that they are in, or may have been.
    pub async fn relocate(&self, env: &SimEnv, to: Option<usize>) -> Result<Moved, String> {
        let mut superblocks = self.recognise(env).await?;
        let (bound, all) = self.identified(env, superblocks[0].flags).await?;
        let other = |number: &usize| Some(*number) != to;
        let from = bound.filter(other).or_else(|| all.into_iter().find(other));
        let [from, to] = [from, to].map(|number| number.map(|number| self.nvram(env, number)));
        let wanted = Move { from: from.as_ref(), to: to.as_ref(), force: false };
        let disks = env.disks();
        relocate(env, &mut pool(&disks, &mut superblocks), wanted).await.map_err(text)
    }

    /// The region, wherever it is.
    pub async fn open(&self, env: &SimEnv, first: &Latching<SimDisk>) -> Result<Region, String> {
        let superblocks = self.recognise(env).await?;
        let (bound, _) = self.identified(env, superblocks[0].flags).await?;
        let Some(number) = bound else {
            let Span { offset, len } = self.region();
            return Ok(FlagsRegion::Device(DeviceRegion::new(first.clone(), offset, len)));
        };
        let nvram = self.nvram(env, number);
        let part = relocate::bound_part(env, &superblocks[0], &nvram).await;
        part.map(FlagsRegion::Nvram).map_err(text)
    }
}

fn pool<'a>(disks: &'a [SimDisk], superblocks: &'a mut [Superblock]) -> Vec<PoolDisk<'a, SimDisk>> {
    let members = disks.iter().zip(superblocks);
    members.map(|(disk, superblock)| PoolDisk { disk, superblock }).collect()
}
