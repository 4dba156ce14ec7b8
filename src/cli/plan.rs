//! What `format` is going to write, decided before anything is written.

use anyhow::{Context as _, Result, bail, ensure};

use super::values::{Percent, Size, VolumeSpec};
use crate::format::ids::{PoolId, UnitId};
use crate::format::layout::{DeviceFacts, Geometry, plan};
use crate::format::superblock::{FlagsPlace, MetadataAt, PoolDevice, Superblock};
use crate::unit::limits::REQUEST_MAX;

/// The volume that is made where none is asked for.
pub const DEFAULT_VOLUME: &str = "vol0";
/// The storage unit of a new pool.
pub const FIRST_UNIT: UnitId = UnitId(1);

/// What a new pool shall be.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Its block and extent size.
    pub geometry: Geometry,
    /// What thin allocation leaves to the journal.
    pub reserve: Percent,
    /// Its volumes; none stands for one of four fifths of the space.
    pub volumes: &'a [VolumeSpec],
    /// The time, in seconds since 1970.
    pub now_s: u64,
    /// Where flags and journal are from the beginning.
    pub flags: FlagsPlace,
    /// Where the metadata are.
    pub metadata: MetadataAt,
}

/// Everything about a new pool.
#[derive(Clone, Debug)]
pub struct PoolPlan {
    /// The superblock of each device, in their order.
    pub superblocks: Vec<Superblock>,
    /// Its volumes.
    pub volumes: Vec<VolumeSpec>,
}

impl PoolPlan {
    /// Decides. `identity` draws sixteen random bytes.
    pub fn new(
        wish: Wish<'_>,
        devices: &[DeviceFacts],
        identity: impl Fn() -> [u8; 16],
    ) -> Result<Self> {
        let layouts = plan(wish.geometry, devices)?;
        let list: Vec<_> = layouts
            .iter()
            .map(|layout| PoolDevice { id: identity(), extents: layout.extents.count })
            .collect();
        let pool = PoolId(identity());
        let extents: u64 = list.iter().map(|device| u64::from(device.extents)).sum();
        let reserve = reserve(&wish, extents);
        let superblocks = (0..)
            .zip(layouts.into_iter().zip(devices))
            .map(|(device_index, (layout, facts))| Superblock {
                revision: 1,
                pool,
                device_index,
                unit: FIRST_UNIT,
                geometry: wish.geometry,
                sector: facts.sector,
                flags: wish.flags,
                metadata: wish.metadata,
                created_s: wish.now_s,
                layout,
                journal_reserve: u32::try_from(reserve).expect("fewer than all extents"),
                devices: list.clone(),
            })
            .collect();
        let volumes = volumes(&wish, extents, reserve)?;
        Ok(Self { superblocks, volumes })
    }
}

/// The journal reserve, in extents: what is wished for, but at least what the largest request
/// touches, where that is no more than a fifth of the pool (in smaller pools requests are smaller).
fn reserve(wish: &Wish<'_>, extents: u64) -> u64 {
    let wished = (extents * u64::from(wish.reserve.0)).div_ceil(100);
    let largest_request = wish.geometry.extents_for(REQUEST_MAX) + 1;
    wished.max(largest_request.min(extents / 5))
}

/// The volumes that are asked for, checked, or the default one.
fn volumes(wish: &Wish<'_>, extents: u64, reserve: u64) -> Result<Vec<VolumeSpec>> {
    let extent_size = u64::from(wish.geometry.extent_size());
    if wish.volumes.is_empty() {
        let size = Size((extents * 4 / 5).min(extents - reserve) * extent_size);
        return Ok(vec![VolumeSpec { name: DEFAULT_VOLUME.into(), size }]);
    }
    for (i, VolumeSpec { name, size }) in wish.volumes.iter().enumerate() {
        let earlier = wish.volumes.get(..i).unwrap_or_default();
        ensure!(earlier.iter().all(|other| other.name != *name), "two volumes named {name}");
        check_volume_size(*size, wish.geometry).with_context(|| format!("volume {name}"))?;
    }
    Ok(wish.volumes.to_vec())
}

/// Whether a volume of these blocks can have this size. It may be more than the pool holds.
fn check_volume_size(size: Size, geometry: Geometry) -> Result<()> {
    let block_size = geometry.block_size();
    if size.0 == 0 || !size.0.is_multiple_of(u64::from(block_size)) {
        bail!("its size must be a multiple of the block size, {block_size} bytes, and not zero");
    }
    let largest = u64::from(u32::MAX) * u64::from(geometry.extent_size());
    ensure!(size.0 <= largest, "it can have {} at most", Size(largest));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const DEVICE: DeviceFacts = DeviceFacts { size: 1 << 30, sector: 512 };

    fn wish(volumes: &[VolumeSpec]) -> Wish<'_> {
        let (flags, metadata) = (FlagsPlace::Device, MetadataAt::Device);
        let (geometry, reserve) = (Geometry::DEFAULT, Percent(10));
        Wish { geometry, reserve, volumes, now_s: 7, flags, metadata }
    }

    fn plan(volumes: &[VolumeSpec], devices: &[DeviceFacts]) -> Result<PoolPlan> {
        let next = Cell::new(0);
        PoolPlan::new(wish(volumes), devices, || {
            next.set(next.get() + 1);
            [next.get(); 16]
        })
    }

    /// Goal: each device gets a superblock that parses and names the same pool and devices.
    #[test]
    fn superblocks_agree() {
        let plan = plan(&[], &[DEVICE, DEVICE, DEVICE]).unwrap();
        let [first, ..] = plan.superblocks.as_slice() else { panic!("no superblock") };
        for (i, superblock) in plan.superblocks.iter().enumerate() {
            assert_eq!(superblock.device_index as usize, i);
            assert_eq!((&superblock.devices, superblock.pool), (&first.devices, first.pool));
            assert_eq!(Superblock::parse(&superblock.encode()).as_ref(), Ok(superblock));
        }
        let extents = first.pool_extents();
        assert!(first.journal_reserve * 10 >= extents && first.journal_reserve < extents);
    }

    /// Goal: the reserve holds the largest request where the pool is not too small for that.
    #[test]
    fn the_reserve_has_a_floor() {
        let reserve = |size| {
            let plan = plan(&[], &[DeviceFacts { size, ..DEVICE }]).unwrap();
            (plan.superblocks[0].pool_extents(), plan.superblocks[0].journal_reserve)
        };
        let (extents, small) = reserve(64 << 20);
        assert_eq!(small, extents / 5);
        assert_eq!(reserve(300 << 20).1, 33);
        let (extents, large) = reserve(10 << 30);
        assert_eq!(large, extents.div_ceil(10));
    }

    /// Goal: without a wish there is one volume of four fifths of the space.
    #[test]
    fn default_volume() {
        let plan = plan(&[], &[DEVICE]).unwrap();
        let extents = u64::from(plan.superblocks[0].pool_extents());
        let [VolumeSpec { name, size }] = plan.volumes.as_slice() else { panic!("one volume") };
        assert_eq!(name, "vol0");
        assert_eq!(size.0, extents * 4 / 5 * (1 << 20));
    }

    /// Goal: volumes may be larger than the pool, but not twice the same, empty or of half blocks.
    #[test]
    fn volumes_are_checked() {
        let spec = |text: &str| text.parse::<VolumeSpec>().unwrap();
        assert!(plan(&[spec("a=10T"), spec("b=4K")], &[DEVICE]).is_ok());
        for wrong in [["a=1M", "a=1M"], ["a=0", "b=1M"], ["a=1000", "b=1M"], ["a=1M", "b=16000P"]] {
            assert!(plan(&wrong.map(spec), &[DEVICE]).is_err(), "{wrong:?}");
        }
    }
}
