//! What lies where on the devices of a pool: plain arithmetic, done once when a pool is formatted.
//!
//! The first device of a pool (device 0):
//!
//! | offset | length | what |
//! | --- | --- | --- |
//! | 0 | 4 KiB | superblock, first copy |
//! | 1 MiB | [`unit_region_len`] | the storage unit's region: journal slots, home pages |
//! | after it | [`store_len`] | the metadata server's store |
//! | after it, aligned to an extent | | extents |
//! | the last whole 4 KiB | 4 KiB | superblock, second copy |
//!
//! Every other device: superblock, extents from the first multiple of the extent size that is not
//! below 1 MiB, superblock.
//!
//! # Why this order
//!
//! The first MiB is left alone beside the superblock, since boot loaders and partition tools write
//! there. What is written most (the unit's region) lies at the start, where rotating disks are
//! fast. Extents are aligned to their own size, so that no extent crosses more erase or RAID
//! stripes than it must. The second superblock is as far from the first as it can be: the usual
//! accidents hit one end of a disk.
//!
//! # Contracts
//!
//! - A layout is computed once and then *stored* in the superblock: what is computed here may
//!   change from version to version, what a pool has does not. [`DeviceLayout::check`] is the one
//!   door for both.
//! - Everything but the superblocks is aligned to [`REGION_ALIGN`] (extents: to their size).

use thiserror::Error;

use super::home::{HOME_PAGE, LINES_PER_PAGE};
use super::ids::ExtentId;

/// Length of a superblock copy, in bytes; also the alignment of both.
pub const SUPERBLOCK_LEN: u64 = 4096;
/// Where the first thing after the first superblock may lie, in bytes.
pub const HEAD_LEN: u64 = 1 << 20;
/// Alignment and unit of length of the unit region and the store region, in bytes.
pub const REGION_ALIGN: u64 = 64 << 10;
/// The largest logical sector that is supported, in bytes: a superblock copy is at least one.
pub const SECTOR_MAX: u32 = 4096;
/// The most devices that a pool can have: their list fits into the superblock.
pub const DEVICES_MAX: usize = 64;
/// The most extents that a pool can have, so that arithmetic on their numbers never overflows.
pub const POOL_EXTENTS_MAX: u32 = 1 << 30;
/// The fewest extents that a device must hold to be worth being one.
pub const DEVICE_EXTENTS_MIN: u32 = 16;

/// Bounds of the part of the unit region that is for journal slots, in bytes.
pub const JOURNAL_LEN_MIN: u64 = 2 << 20;
/// See [`JOURNAL_LEN_MIN`].
pub const JOURNAL_LEN_MAX: u64 = 64 << 20;
/// What of a device is for journal slots, as a divisor, within the bounds.
pub const JOURNAL_DIVISOR: u64 = 128;
/// A page of the unit's home, in bytes.
pub const HOME_PAGE_LEN: u64 = HOME_PAGE as u64;
/// Lines of the home map (one a pair) in a page.
pub const HOME_LINES_PER_PAGE: u64 = LINES_PER_PAGE as u64;
/// What the unit region has beside slots and home pages: header, links, status pages; in bytes.
pub const UNIT_SLACK_LEN: u64 = 2 << 20;
/// The part of the store region that does not depend on the pool's size, in bytes: the store's, its
/// log's, and the volume table's at its end.
pub const STORE_BASE_LEN: u64 = 8 << 20;
/// The part of the store region that each extent of the pool needs, in bytes, its line included:
/// rows, twice while all of them change in one commit, and twice that, as the store grows by
/// doubling; and the log.
pub const STORE_LEN_PER_EXTENT: u64 = 1664;

const _: () = assert!(HEAD_LEN.is_multiple_of(REGION_ALIGN) && HEAD_LEN >= SUPERBLOCK_LEN);
const _: () = assert!(SECTOR_MAX as u64 <= SUPERBLOCK_LEN, "a superblock is whole sectors");
const _: () = assert!(HOME_LINES_PER_PAGE == 46);
const _: () = assert!(REGION_ALIGN.is_multiple_of(SECTOR_MAX as u64));

/// The sizes that a pool is made of. Both are powers of two within their bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    block_size: u32,
    extent_size: u32,
}

/// A part of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first byte on the device.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// The extents that a device holds: a contiguous run of the pool's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceExtents {
    /// Where the first of them begins on the device, in bytes.
    pub offset: u64,
    /// The first of them.
    pub first: ExtentId,
    /// How many there are.
    pub count: u32,
}

/// What only the first device of a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regions {
    /// The storage unit's region: journal and home.
    pub unit: Span,
    /// The metadata server's store.
    pub store: Span,
}

/// What lies where on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLayout {
    /// The device's size that the layout was made for, in bytes.
    pub size: u64,
    /// On device 0, the regions; on others nothing.
    pub regions: Option<Regions>,
    /// The extents.
    pub extents: DeviceExtents,
}

/// What is known of a device before it is formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its size in bytes.
    pub size: u64,
    /// Its logical sector in bytes.
    pub sector: u32,
}

/// Why sizes do not make a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The block size is not usable.
    #[error("a block of {0} bytes: it must be a power of two from 512 to 65536")]
    BlockSize(u32),
    /// The extent size is not usable.
    #[error("an extent of {0} bytes: it must be a power of two from 16 KiB to 16 MiB")]
    ExtentSize(u32),
    /// The ratio of the two is not usable.
    #[error("{blocks} blocks of {block_size} bytes to an extent: there must be from 8 to 256")]
    Ratio {
        /// Blocks to an extent.
        blocks: u32,
        /// Bytes to a block.
        block_size: u32,
    },
    /// The device's sectors are not supported at all.
    #[error("sectors of {0} bytes: they must be a power of two from 512 to 4096")]
    Sector(u32),
    /// A block is less than a sector.
    #[error(
        "blocks of {block_size} bytes on a device with sectors of {sector} bytes: a block \
             must be at least a sector"
    )]
    SectorLargerThanBlock {
        /// Bytes to a sector.
        sector: u32,
        /// Bytes to a block.
        block_size: u32,
    },
    /// The device cannot hold what it must.
    #[error("device {index} has {size} bytes, and at least {needed} are needed")]
    TooSmall {
        /// Which of the pool's devices.
        index: usize,
        /// Its size in bytes.
        size: u64,
        /// What it would need, in bytes.
        needed: u64,
    },
    /// More extents than have numbers.
    #[error("{0} extents: a pool can have {POOL_EXTENTS_MAX}; larger extents are needed")]
    TooManyExtents(u64),
    /// More devices than the superblock can name, or none.
    #[error("{0} devices: a pool has from 1 to {DEVICES_MAX}")]
    Devices(usize),
    /// A stored layout contradicts itself.
    #[error("the layout is not sound: {0}")]
    Unsound(Flaw),
}

/// What is wrong with a stored layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Flaw {
    /// A region's start or length is not a multiple of what it must be.
    #[error("a part is not aligned")]
    Alignment,
    /// Parts are out of order or overlap.
    #[error("parts overlap")]
    Overlap,
    /// A part reaches beyond the device.
    #[error("a part reaches beyond the device")]
    Beyond,
    /// The numbers of extents are out of bounds.
    #[error("the number of extents is out of bounds")]
    Extents,
}

impl Geometry {
    /// The default sizes: blocks of 4 KiB, extents of 1 MiB.
    pub const DEFAULT: Geometry = Geometry { block_size: 4096, extent_size: 1 << 20 };

    /// The geometry of these sizes in bytes, where they make one.
    pub fn new(block_size: u32, extent_size: u32) -> Result<Self, LayoutError> {
        if !block_size.is_power_of_two() || !(512..=64 << 10).contains(&block_size) {
            return Err(LayoutError::BlockSize(block_size));
        }
        if !extent_size.is_power_of_two() || !(16 << 10..=16 << 20).contains(&extent_size) {
            return Err(LayoutError::ExtentSize(extent_size));
        }
        let blocks = extent_size / block_size;
        if !(8..=256).contains(&blocks) {
            return Err(LayoutError::Ratio { blocks, block_size });
        }
        Ok(Self { block_size, extent_size })
    }

    /// Bytes to a block: the unit of journaling.
    pub fn block_size(self) -> u32 {
        self.block_size
    }

    /// Bytes to an extent: the unit of allocation, pairing and swap.
    pub fn extent_size(self) -> u32 {
        self.extent_size
    }

    /// Blocks to an extent: from 8 to 256.
    pub fn blocks_per_extent(self) -> u32 {
        self.extent_size / self.block_size
    }

    /// The base-two logarithm of the block size.
    pub fn block_shift(self) -> u32 {
        self.block_size.trailing_zeros()
    }

    /// The base-two logarithm of the extent size.
    pub fn extent_shift(self) -> u32 {
        self.extent_size.trailing_zeros()
    }

    /// How many extents `bytes` need.
    pub fn extents_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.extent_size))
    }
}

impl Span {
    /// The first byte after it.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

impl DeviceExtents {
    /// The first extent after the run.
    pub fn end(self) -> ExtentId {
        ExtentId(self.first.0 + self.count)
    }

    /// Whether the extent lies on this device.
    pub fn contains(self, extent: ExtentId) -> bool {
        (self.first..self.end()).contains(&extent)
    }

    /// Where an extent begins on the device, in bytes; `None` where it lies on another.
    pub fn offset_of(self, extent: ExtentId, geometry: Geometry) -> Option<u64> {
        let within = u64::from(extent.0.checked_sub(self.first.0)?);
        (within < u64::from(self.count))
            .then(|| self.offset + within * u64::from(geometry.extent_size))
    }

    /// The bytes that the extents take.
    pub fn len_bytes(self, geometry: Geometry) -> u64 {
        u64::from(self.count) * u64::from(geometry.extent_size)
    }
}

/// The length of the unit region: for a first device of `size` bytes in a pool of `pairs` pairs.
pub fn unit_region_len(size: u64, pairs: u64) -> u64 {
    let journal = (size / JOURNAL_DIVISOR).clamp(JOURNAL_LEN_MIN, JOURNAL_LEN_MAX);
    let home = 2 * HOME_PAGE_LEN * pairs.div_ceil(HOME_LINES_PER_PAGE);
    (journal + home + UNIT_SLACK_LEN).next_multiple_of(REGION_ALIGN)
}

/// The length of the store region in a pool of `extents` extents.
pub fn store_len(extents: u64) -> u64 {
    (STORE_BASE_LEN + STORE_LEN_PER_EXTENT * extents).next_multiple_of(REGION_ALIGN)
}

/// Where the second superblock lies on a device of `size` bytes.
pub fn second_superblock(size: u64) -> u64 {
    (size / SUPERBLOCK_LEN).saturating_sub(1) * SUPERBLOCK_LEN
}

/// Plans a pool: what lies where on each of its devices, in their order.
pub fn plan(geometry: Geometry, devices: &[DeviceFacts]) -> Result<Vec<DeviceLayout>, LayoutError> {
    if devices.is_empty() || devices.len() > DEVICES_MAX {
        return Err(LayoutError::Devices(devices.len()));
    }
    for facts in devices {
        check_sector(geometry, facts.sector)?;
    }
    let extent = u64::from(geometry.extent_size);
    // No device holds more extents than this, whatever else it holds: an upper bound is good
    // enough to size the regions, and does not depend on their sizes in turn.
    let others: u64 = devices.iter().skip(1).map(|facts| facts.size / extent).sum();
    let mut first = 0;
    let mut layouts = Vec::with_capacity(devices.len());
    for (index, facts) in devices.iter().enumerate() {
        let others = (index == 0).then_some(others);
        let extents_offset = extents_offset(geometry, facts.size, others);
        let room = second_superblock(facts.size).saturating_sub(extents_offset) / extent;
        if room < u64::from(DEVICE_EXTENTS_MIN) {
            let needed = needed(geometry, others);
            return Err(LayoutError::TooSmall { index, size: facts.size, needed });
        }
        let total = u64::from(first) + room;
        if total > u64::from(POOL_EXTENTS_MAX) {
            return Err(LayoutError::TooManyExtents(total));
        }
        let count = room as u32;
        let layout = DeviceLayout {
            size: facts.size,
            regions: others.map(|others| regions(geometry, facts.size, others)),
            extents: DeviceExtents { offset: extents_offset, first: ExtentId(first), count },
        };
        layout.check(geometry).expect("what was planned is sound");
        layouts.push(layout);
        first += count;
    }
    Ok(layouts)
}

/// Whether a device with such sectors can hold such blocks.
pub fn check_sector(geometry: Geometry, sector: u32) -> Result<(), LayoutError> {
    if !sector.is_power_of_two() || !(512..=SECTOR_MAX).contains(&sector) {
        return Err(LayoutError::Sector(sector));
    }
    if sector > geometry.block_size {
        let block_size = geometry.block_size;
        return Err(LayoutError::SectorLargerThanBlock { sector, block_size });
    }
    Ok(())
}

/// The regions of a first device of `size` bytes, where other devices hold at most `others`
/// extents.
fn regions(geometry: Geometry, size: u64, others: u64) -> Regions {
    let pairs = size / u64::from(geometry.extent_size) + others;
    let unit = Span { offset: HEAD_LEN, len: unit_region_len(size, pairs) };
    let store = Span { offset: unit.end(), len: store_len(pairs) };
    Regions { unit, store }
}

/// Where extents begin on a device of `size` bytes; `others` is given for the first device.
fn extents_offset(geometry: Geometry, size: u64, others: Option<u64>) -> u64 {
    let before = others.map_or(HEAD_LEN, |others| regions(geometry, size, others).store.end());
    before.next_multiple_of(u64::from(geometry.extent_size))
}

/// The least size of a device that could hold what it must, in bytes.
fn needed(geometry: Geometry, others: Option<u64>) -> u64 {
    let extents = u64::from(DEVICE_EXTENTS_MIN) * u64::from(geometry.extent_size);
    // The regions grow with the device, but by less than a tenth of what it grows by: this ends.
    let mut size = 0;
    loop {
        let needed = extents_offset(geometry, size, others) + extents + SUPERBLOCK_LEN;
        if needed <= size {
            return size;
        }
        size = needed;
    }
}

impl DeviceLayout {
    /// Where the two copies of the superblock lie.
    pub fn superblocks(&self) -> [u64; 2] {
        [0, second_superblock(self.size)]
    }

    /// Whether the parts are aligned, in order, disjoint and inside the device. Holds for whatever
    /// [`plan`] returned; for what was read from a disk it is to be asked.
    pub fn check(&self, geometry: Geometry) -> Result<(), LayoutError> {
        let unsound = |flaw| Err(LayoutError::Unsound(flaw));
        let extent = u64::from(geometry.extent_size);
        let mut end = HEAD_LEN;
        for span in self.regions.iter().flat_map(|regions| [regions.unit, regions.store]) {
            let aligned = |bytes: u64| bytes.is_multiple_of(REGION_ALIGN);
            if !aligned(span.offset) || !aligned(span.len) || span.len == 0 {
                return unsound(Flaw::Alignment);
            }
            if span.offset < end {
                return unsound(Flaw::Overlap);
            }
            end = span.end();
            if end > self.size {
                return unsound(Flaw::Beyond);
            }
        }
        if !self.extents.offset.is_multiple_of(extent) {
            return unsound(Flaw::Alignment);
        }
        if self.extents.offset < end {
            return unsound(Flaw::Overlap);
        }
        let last = u64::from(self.extents.first.0) + u64::from(self.extents.count);
        if self.extents.count == 0 || last > u64::from(POOL_EXTENTS_MAX) {
            return unsound(Flaw::Extents);
        }
        let bytes = self.extents.len_bytes(geometry);
        if self.extents.offset.saturating_add(bytes) > second_superblock(self.size) {
            return unsound(Flaw::Beyond);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts(size: u64) -> DeviceFacts {
        DeviceFacts { size, sector: 512 }
    }

    /// Goal: exactly the sizes that are documented make a geometry.
    #[test]
    fn geometry_has_bounds() {
        for block_shift in 0..32 {
            for extent_shift in 0..32 {
                let good = (9..=16).contains(&block_shift)
                    && (14..=24).contains(&extent_shift)
                    && (block_shift + 3..=block_shift + 8).contains(&extent_shift);
                let made = Geometry::new(1 << block_shift, 1 << extent_shift);
                assert_eq!(made.is_ok(), good, "{block_shift} {extent_shift}");
            }
        }
        assert_eq!(Geometry::new(5000, 1 << 20), Err(LayoutError::BlockSize(5000)));
        assert_eq!(Geometry::new(4096, (1 << 20) + 1), Err(LayoutError::ExtentSize((1 << 20) + 1)));
        assert_eq!(Geometry::new(4096, 1 << 20), Ok(Geometry::DEFAULT));
    }

    /// Goal: the small files that tests use hold a pool, most of which is extents.
    #[test]
    fn small_devices_work() {
        let layout = plan(Geometry::DEFAULT, &[facts(64 << 20)]).unwrap()[0];
        assert!(layout.extents.count >= 48, "{layout:?}");
        assert_eq!(layout.superblocks(), [0, (64 << 20) - 4096]);
    }

    /// Goal: what is too small is refused with the size that would do, and that size does.
    #[test]
    fn too_small_says_what_is_needed() {
        for (block, extent) in [(4096, 1 << 20), (512, 16 << 10), (65_536, 16 << 20)] {
            let geometry = Geometry::new(block, extent).unwrap();
            let Err(LayoutError::TooSmall { index: 0, size: 4096, needed }) =
                plan(geometry, &[facts(4096)])
            else {
                panic!("4 KiB cannot hold a pool");
            };
            assert!(plan(geometry, &[facts(needed)]).is_ok());
            let first = facts(1 << 30);
            let second = plan(geometry, &[first, facts(0)]).unwrap_err();
            let LayoutError::TooSmall { index: 1, needed, .. } = second else {
                panic!("{second}");
            };
            assert!(plan(geometry, &[first, facts(needed)]).is_ok());
            assert!(plan(geometry, &[first, facts(needed - 1)]).is_err());
        }
    }

    /// Goal: sectors that cannot hold the promise are refused before anything is planned.
    #[test]
    fn sectors_are_checked() {
        let geometry = Geometry::new(512, 64 << 10).unwrap();
        let plan = |sector| plan(geometry, &[DeviceFacts { size: 1 << 30, sector }]);
        assert_eq!(
            plan(4096),
            Err(LayoutError::SectorLargerThanBlock { sector: 4096, block_size: 512 })
        );
        assert_eq!(plan(8192), Err(LayoutError::Sector(8192)));
        assert_eq!(plan(520), Err(LayoutError::Sector(520)));
        assert!(plan(512).is_ok());
    }

    /// Goal: a pool cannot have more extents or devices than have numbers.
    #[test]
    fn numbers_run_out_with_an_error() {
        let geometry = Geometry::new(512, 16 << 10).unwrap();
        assert!(matches!(plan(geometry, &[facts(1 << 50)]), Err(LayoutError::TooManyExtents(_))));
        assert_eq!(plan(geometry, &[]), Err(LayoutError::Devices(0)));
        assert_eq!(plan(geometry, &[facts(1 << 30); 65]), Err(LayoutError::Devices(65)));
    }

    fn geometries() -> impl Strategy<Value = Geometry> {
        (9u32..=16, 3u32..=8).prop_filter_map("extent size", |(block, ratio)| {
            Geometry::new(1 << block, 1 << (block + ratio)).ok()
        })
    }

    proptest! {
        /// Goal: in every pool that can be planned, parts are disjoint, aligned and inside their
        /// device, extents are numbered without gaps, and the room between extents and the second
        /// superblock is less than an extent.
        #[test]
        fn plans_are_sound(
            geometry in geometries(),
            sizes in prop::collection::vec(0u64..1 << 42, 1..8),
        ) {
            let devices: Vec<_> = sizes.iter().map(|&size| facts(size)).collect();
            let Ok(layouts) = plan(geometry, &devices) else { return Ok(()) };
            let mut next = 0;
            for (index, layout) in layouts.iter().enumerate() {
                prop_assert_eq!(layout.check(geometry), Ok(()));
                prop_assert_eq!(layout.regions.is_some(), index == 0);
                prop_assert_eq!(layout.extents.first.0, next);
                next += layout.extents.count;
                let [_, second] = layout.superblocks();
                prop_assert!(second + SUPERBLOCK_LEN <= layout.size);
                let end = layout.extents.offset + layout.extents.len_bytes(geometry);
                prop_assert!(second - end < u64::from(geometry.extent_size));
            }
            let Regions { unit, store } = layouts[0].regions.unwrap();
            let home = 2 * HOME_PAGE_LEN * u64::from(next).div_ceil(HOME_LINES_PER_PAGE);
            prop_assert!(unit.len >= home + JOURNAL_LEN_MIN + UNIT_SLACK_LEN);
            prop_assert!(store.len >= STORE_BASE_LEN + STORE_LEN_PER_EXTENT * u64::from(next));
        }

        /// Goal: checking any numbers at all neither panics nor accepts a part beyond the device.
        #[test]
        fn any_stored_layout_is_checked(
            geometry in geometries(),
            size: u64,
            unit: (u64, u64),
            store: (u64, u64),
            extents: (u64, u32, u32),
            first_device: bool,
        ) {
            let span = |(offset, len)| Span { offset, len };
            let layout = DeviceLayout {
                size,
                regions: first_device.then(|| Regions { unit: span(unit), store: span(store) }),
                extents: DeviceExtents {
                    offset: extents.0,
                    first: ExtentId(extents.1),
                    count: extents.2,
                },
            };
            if layout.check(geometry).is_ok() {
                prop_assert!(layout.extents.offset + layout.extents.len_bytes(geometry) < size);
            }
        }
    }
}
