//! The superblock: what makes a device a part of a pool, and says what lies where on it.
//!
//! Two copies, at the start and at the end of the device ([`super::layout`]), each:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic |
//! | 8 | 4 | version of the format |
//! | 12 | 4 | number of devices of the pool |
//! | 16 | 8 | revision: which copy is the newer one |
//! | 24 | 16 | pool id |
//! | 40 | 4 | which of the pool's devices this is |
//! | 44 | 4 | storage unit id |
//! | 48 | 12 | block, extent and sector size |
//! | 60 | 4 | place of the flags |
//! | 64 | 16 | NVRAM region id; zeros where the flags are not in NVRAM |
//! | 80 | 8 | NVRAM region length |
//! | 88 | 8 | when the pool was made, in seconds since 1970 |
//! | 96 | 8 | the device's size when it was formatted |
//! | 104 | 32 | unit region, store region: offset and length each |
//! | 136 | 16 | extents: offset, first, count |
//! | 152 | 4 | journal reserve, in extents |
//! | 156 | 4 | place of the metadata |
//! | 160 | 64 × 24 | each device: id, extents |
//! | 1696 | 2396 | zeros |
//! | 4092 | 4 | CRC32C of all before |
//!
//! # Why this order
//!
//! Magic and version first: any later version can be told from damage whatever else it changes.
//! The CRC is last, so that a copy of which only the first sectors arrived does not verify. The
//! list of devices is on every one of them: whichever is shown, it can be said which are missing.
//!
//! # Contracts
//!
//! - **Durability**: the copies are written in turn, the second first, with a flush between them:
//!   at any crash one of them is whole. Of two whole copies of one device the higher revision
//!   counts.
//! - **Trust**: [`Superblock::parse`] is the one door. Behind it every field is within its bounds,
//!   and the layout inside the device.

use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::ids::{ExtentId, PoolId, UnitId};
use super::layout::{
    DEVICES_MAX, DeviceExtents, DeviceLayout, Geometry, LayoutError, POOL_EXTENTS_MAX, Regions,
    SUPERBLOCK_LEN, Span, check_sector,
};

/// Length of a superblock, in bytes.
pub const LEN: usize = SUPERBLOCK_LEN as usize;
/// The first bytes of every superblock.
pub const MAGIC: [u8; 8] = *b"Flpside\0";
/// The version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 4;

const FLAGS_DEVICE: u32 = 0;
const FLAGS_NVRAM: u32 = 1;
const FLAGS_MDS: u32 = 2;

const METADATA_DEVICE: u32 = 0;
const METADATA_SERVER: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RawDevice {
    id: [u8; 16],
    extents: U32,
    reserved: U32,
}

#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RawSuperblock {
    magic: [u8; 8],
    version: U32,
    device_count: U32,
    revision: U64,
    pool: [u8; 16],
    device_index: U32,
    unit: U32,
    block_size: U32,
    extent_size: U32,
    sector: U32,
    flags: U32,
    nvram: [u8; 16],
    nvram_len: U64,
    created: U64,
    size: U64,
    unit_offset: U64,
    unit_len: U64,
    store_offset: U64,
    store_len: U64,
    extents_offset: U64,
    extents_first: U32,
    extents_count: U32,
    journal_reserve: U32,
    metadata: U32,
    devices: [RawDevice; DEVICES_MAX],
    tail: [u8; 2396],
    crc: U32,
}

const _: () = assert!(size_of::<RawDevice>() == 24);
const _: () = assert!(size_of::<RawSuperblock>() == LEN);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, pool) == 24);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, nvram) == 64);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, size) == 96);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, devices) == 160);
const _: () = assert!(std::mem::offset_of!(RawSuperblock, crc) == LEN - 4);

/// Names a device of a pool for ever: sixteen random bytes, drawn at format.
pub type DeviceId = [u8; 16];

/// Where a pool's flags and journal are kept (design section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagsPlace {
    /// In the unit region of device 0.
    Device,
    /// In an NVRAM region of this identity and length.
    Nvram {
        /// The region's identity: random bytes, never zeros.
        region: [u8; 16],
        /// Its length in bytes.
        len: u64,
    },
    /// At the metadata server.
    Mds,
}

/// Where a pool's metadata are kept: volumes, extents, pairs (design section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataAt {
    /// In the store region of device 0, by the server in the target's own process.
    Device,
    /// At a metadata server of its own, wherever that is.
    Server,
}

/// A device of the pool, as every device's superblock lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolDevice {
    /// Its identity.
    pub id: DeviceId,
    /// How many extents it holds.
    pub extents: u32,
}

/// A superblock whose every field was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Counts the changes of the superblock.
    pub revision: u64,
    /// The pool that the device is a part of.
    pub pool: PoolId,
    /// Which of [`Superblock::devices`] this one is.
    pub device_index: u32,
    /// The storage unit that owns the pool's pairs.
    pub unit: UnitId,
    /// The pool's sizes.
    pub geometry: Geometry,
    /// The device's logical sector at format, in bytes.
    pub sector: u32,
    /// Where the flags are.
    pub flags: FlagsPlace,
    /// Where the metadata are.
    pub metadata: MetadataAt,
    /// When the pool was made, in seconds since 1970.
    pub created_s: u64,
    /// What lies where on this device.
    pub layout: DeviceLayout,
    /// Extents of the pool that thin allocation leaves to the journal.
    pub journal_reserve: u32,
    /// All devices of the pool, in the order of their extents.
    pub devices: Vec<PoolDevice>,
}

/// What is wrong with one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Defect {
    /// It could not be read, or is not there at all.
    #[error("it cannot be read")]
    Unreadable,
    /// Something else lies there.
    #[error("there is no superblock")]
    Magic,
    /// Another version of the format.
    #[error("its format is version {0}, and this program knows version {VERSION}")]
    Version(u32),
    /// The bytes are not those that were written.
    #[error("its checksum is wrong")]
    Checksum,
    /// The number or the list of devices is not sound.
    #[error("its list of devices is not sound")]
    Devices,
    /// The place of the flags is none that is known.
    #[error("its place of the flags is not sound")]
    Flags,
    /// The place of the metadata is none that is known.
    #[error("its place of the metadata is not sound")]
    Metadata,
    /// The journal reserve is more than there is.
    #[error("its journal reserve is not sound")]
    Reserve,
    /// Bytes that must be zero are not.
    #[error("reserved bytes are in use")]
    Reserved,
    /// Sizes or layout are not sound.
    #[error("{0}")]
    Layout(LayoutError),
}

/// Which of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// At the start of the device.
    First,
    /// At the end of the device.
    Second,
}

/// What is to be said about a superblock that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Warning {
    /// One copy is damaged, and the other one was used.
    #[error("the {copy} superblock is damaged ({defect}); the other copy is used")]
    Damaged {
        /// The damaged copy.
        copy: Copy,
        /// What is wrong with it.
        defect: Defect,
    },
    /// One copy is older than the other one: a change was interrupted.
    #[error("the {0} superblock is older than the other, which is used")]
    Stale(Copy),
}

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SuperblockError {
    /// No copy has the magic: the device is not a part of a pool.
    #[error("it holds no pool: format it first")]
    NotFormatted,
    /// No copy can be used.
    #[error("both superblocks are damaged: first: {first}; second: {second}")]
    BothDamaged {
        /// What is wrong with the first copy.
        first: Defect,
        /// What is wrong with the second copy.
        second: Defect,
    },
    /// Both copies are whole and of different pools or devices.
    #[error("its two superblocks are of different pools or devices")]
    Contradiction,
    /// The device has become smaller.
    #[error("it has {now} bytes and had {then} when it was formatted: a part of it is missing")]
    Shrunk {
        /// Its size at format, in bytes.
        then: u64,
        /// Its size now, in bytes.
        now: u64,
    },
    /// The device's sectors have become larger than what was written to it assumed.
    #[error("its sectors are {now} bytes and were {then} when it was formatted")]
    SectorGrown {
        /// Its sector at format, in bytes.
        then: u32,
        /// Its sector now, in bytes.
        now: u32,
    },
    /// A copy that was older or damaged could not be written again.
    #[error("its {copy} superblock needs to be written again, and cannot be: {kind}")]
    NotMended {
        /// Which copy.
        copy: Copy,
        /// What the device said.
        kind: std::io::ErrorKind,
    },
}

impl std::fmt::Display for Copy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Copy::First => "first",
            Copy::Second => "second",
        })
    }
}

/// The CRC32C of everything in a superblock before its checksum.
fn crc(bytes: &[u8]) -> u32 {
    let covered = bytes.get(..LEN - 4).expect("a superblock is of fixed length");
    crc_fast::crc32_iscsi(covered)
}

impl Superblock {
    /// The pool's extents in all.
    pub fn pool_extents(&self) -> u32 {
        self.devices.iter().map(|device| device.extents).sum()
    }

    /// The bytes to write.
    pub fn encode(&self) -> [u8; LEN] {
        let bytes = self.bytes();
        assert_eq!(Self::parse(&bytes).as_ref(), Ok(self), "what is written can be read back");
        bytes
    }

    /// Whether it could be written: for one that was made of what somebody else says.
    pub fn check(&self) -> Result<(), Defect> {
        if self.devices.len() > DEVICES_MAX {
            return Err(Defect::Devices);
        }
        let parsed = Self::parse(&self.bytes())?;
        // What has no place in the bytes.
        if parsed == *self { Ok(()) } else { Err(Defect::Reserved) }
    }

    fn bytes(&self) -> [u8; LEN] {
        let mut raw = RawSuperblock::new_zeroed();
        raw.magic = MAGIC;
        raw.version = VERSION.into();
        raw.device_count = u32::try_from(self.devices.len()).expect("at most 64 devices").into();
        raw.revision = self.revision.into();
        raw.pool = self.pool.0;
        raw.device_index = self.device_index.into();
        raw.unit = self.unit.0.into();
        raw.block_size = self.geometry.block_size().into();
        raw.extent_size = self.geometry.extent_size().into();
        raw.sector = self.sector.into();
        raw.flags = match self.flags {
            FlagsPlace::Device => FLAGS_DEVICE,
            FlagsPlace::Mds => FLAGS_MDS,
            FlagsPlace::Nvram { region, len } => {
                raw.nvram = region;
                raw.nvram_len = len.into();
                FLAGS_NVRAM
            }
        }
        .into();
        raw.metadata = match self.metadata {
            MetadataAt::Device => METADATA_DEVICE,
            MetadataAt::Server => METADATA_SERVER,
        }
        .into();
        raw.created = self.created_s.into();
        raw.size = self.layout.size.into();
        if let Some(Regions { unit, store }) = self.layout.regions {
            raw.unit_offset = unit.offset.into();
            raw.unit_len = unit.len.into();
            raw.store_offset = store.offset.into();
            raw.store_len = store.len.into();
        }
        raw.extents_offset = self.layout.extents.offset.into();
        raw.extents_first = self.layout.extents.first.0.into();
        raw.extents_count = self.layout.extents.count.into();
        raw.journal_reserve = self.journal_reserve.into();
        for (entry, device) in raw.devices.iter_mut().zip(&self.devices) {
            entry.id = device.id;
            entry.extents = device.extents.into();
        }
        raw.crc = crc(raw.as_bytes()).into();
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Checks the bytes of one copy.
    pub fn parse(bytes: &[u8]) -> Result<Self, Defect> {
        let raw = RawSuperblock::ref_from_bytes(bytes).map_err(|_| Defect::Unreadable)?;
        if raw.magic != MAGIC {
            return Err(Defect::Magic);
        }
        // A later version may keep its checksum elsewhere.
        if raw.version.get() != VERSION {
            return Err(Defect::Version(raw.version.get()));
        }
        if raw.crc.get() != crc(bytes) {
            return Err(Defect::Checksum);
        }
        raw.verify()
    }
}

impl RawSuperblock {
    /// Checks every field but magic, version and checksum.
    fn verify(&self) -> Result<Superblock, Defect> {
        let geometry =
            Geometry::new(self.block_size.get(), self.extent_size.get()).map_err(Defect::Layout)?;
        check_sector(geometry, self.sector.get()).map_err(Defect::Layout)?;
        let layout = self.layout();
        layout.check(geometry).map_err(Defect::Layout)?;
        let devices = self.verify_devices(&layout)?;
        let pool_extents: u32 = devices.iter().map(|device| device.extents).sum();
        if self.journal_reserve.get() >= pool_extents {
            return Err(Defect::Reserve);
        }
        let spans = [self.unit_offset, self.unit_len, self.store_offset, self.store_len];
        if layout.regions.is_none() && spans.iter().any(|span| span.get() != 0) {
            return Err(Defect::Reserved);
        }
        if self.tail.iter().any(|&byte| byte != 0) {
            return Err(Defect::Reserved);
        }
        Ok(Superblock {
            revision: self.revision.get(),
            pool: PoolId(self.pool),
            device_index: self.device_index.get(),
            unit: UnitId(self.unit.get()),
            geometry,
            sector: self.sector.get(),
            flags: self.verify_flags()?,
            metadata: self.verify_metadata()?,
            created_s: self.created.get(),
            layout,
            journal_reserve: self.journal_reserve.get(),
            devices,
        })
    }

    /// The layout as it is stored, unchecked.
    fn layout(&self) -> DeviceLayout {
        let span = |offset: U64, len: U64| Span { offset: offset.get(), len: len.get() };
        let regions = (self.device_index.get() == 0).then(|| Regions {
            unit: span(self.unit_offset, self.unit_len),
            store: span(self.store_offset, self.store_len),
        });
        DeviceLayout {
            size: self.size.get(),
            regions,
            extents: DeviceExtents {
                offset: self.extents_offset.get(),
                first: ExtentId(self.extents_first.get()),
                count: self.extents_count.get(),
            },
        }
    }

    /// The list of devices: this one in it where it says, extents numbered without gaps.
    fn verify_devices(&self, layout: &DeviceLayout) -> Result<Vec<PoolDevice>, Defect> {
        let count = self.device_count.get() as usize;
        let index = self.device_index.get() as usize;
        if index >= count {
            return Err(Defect::Devices);
        }
        let (named, unused) = self.devices.split_at_checked(count).ok_or(Defect::Devices)?;
        let reserved = named.iter().any(|entry| entry.reserved.get() != 0);
        if reserved || unused.iter().any(|entry| entry.as_bytes().iter().any(|&byte| byte != 0)) {
            return Err(Defect::Reserved);
        }
        let devices: Vec<_> = named
            .iter()
            .map(|entry| PoolDevice { id: entry.id, extents: entry.extents.get() })
            .collect();
        let mut next = 0u64;
        for (i, device) in devices.iter().enumerate() {
            let here = layout.extents.first.0;
            let extents_agree = device.extents == layout.extents.count && next == u64::from(here);
            let twice = devices.iter().skip(i + 1).any(|other| other.id == device.id);
            if device.extents == 0 || twice || (i == index && !extents_agree) {
                return Err(Defect::Devices);
            }
            next += u64::from(device.extents);
        }
        if next > u64::from(POOL_EXTENTS_MAX) {
            return Err(Defect::Devices);
        }
        Ok(devices)
    }

    fn verify_flags(&self) -> Result<FlagsPlace, Defect> {
        let (region, len) = (self.nvram, self.nvram_len.get());
        let no_nvram = region == [0; 16] && len == 0;
        match self.flags.get() {
            FLAGS_DEVICE if no_nvram => Ok(FlagsPlace::Device),
            FLAGS_MDS if no_nvram => Ok(FlagsPlace::Mds),
            FLAGS_NVRAM if region != [0; 16] && len != 0 => Ok(FlagsPlace::Nvram { region, len }),
            _ => Err(Defect::Flags),
        }
    }

    fn verify_metadata(&self) -> Result<MetadataAt, Defect> {
        match self.metadata.get() {
            METADATA_DEVICE => Ok(MetadataAt::Device),
            METADATA_SERVER => Ok(MetadataAt::Server),
            _ => Err(Defect::Metadata),
        }
    }
}

/// Decides which of a device's two copies counts.
pub fn choose(
    first: Result<Superblock, Defect>,
    second: Result<Superblock, Defect>,
) -> Result<(Superblock, Option<Warning>), SuperblockError> {
    match (first, second) {
        (Ok(first), Ok(second)) => {
            let names = |of: &Superblock| (of.pool, of.device_index, of.layout);
            if names(&first) != names(&second) {
                return Err(SuperblockError::Contradiction);
            }
            Ok(match first.revision.cmp(&second.revision) {
                std::cmp::Ordering::Less => (second, Some(Warning::Stale(Copy::First))),
                std::cmp::Ordering::Equal => (first, None),
                std::cmp::Ordering::Greater => (first, Some(Warning::Stale(Copy::Second))),
            })
        }
        (Ok(first), Err(defect)) => {
            Ok((first, Some(Warning::Damaged { copy: Copy::Second, defect })))
        }
        (Err(defect), Ok(second)) => {
            Ok((second, Some(Warning::Damaged { copy: Copy::First, defect })))
        }
        (Err(Defect::Magic), Err(Defect::Magic)) => Err(SuperblockError::NotFormatted),
        (Err(first), Err(second)) => Err(SuperblockError::BothDamaged { first, second }),
    }
}

/// Whether the device that a superblock was read from is still what it was at format.
pub fn check_device(
    superblock: &Superblock,
    size: u64,
    sector: u32,
) -> Result<(), SuperblockError> {
    let then = superblock.layout.size;
    if size < then {
        return Err(SuperblockError::Shrunk { then, now: size });
    }
    // What is written in place is torn in pieces of a sector: they may have become smaller.
    if sector > superblock.sector {
        return Err(SuperblockError::SectorGrown { then: superblock.sector, now: sector });
    }
    Ok(())
}

#[cfg(test)]
impl Superblock {
    /// A pool of one device of that size, with its flags on it.
    pub(crate) fn of_one_device(pool: PoolId, size: u64) -> Self {
        use super::layout::{DeviceFacts, plan};
        let layout = plan(Geometry::DEFAULT, &[DeviceFacts { size, sector: 512 }]).unwrap()[0];
        Self {
            revision: 1,
            pool,
            device_index: 0,
            unit: UnitId(1),
            geometry: Geometry::DEFAULT,
            sector: 512,
            flags: FlagsPlace::Device,
            metadata: MetadataAt::Device,
            created_s: 0,
            layout,
            journal_reserve: 5,
            devices: vec![PoolDevice { id: [1; 16], extents: layout.extents.count }],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::{DeviceFacts, plan};
    use super::*;

    /// The superblocks of a pool of devices of these sizes.
    fn pool(sizes: &[u64]) -> Vec<Superblock> {
        let facts: Vec<_> = sizes.iter().map(|&size| DeviceFacts { size, sector: 512 }).collect();
        let layouts = plan(Geometry::DEFAULT, &facts).unwrap();
        let devices: Vec<_> = (1..)
            .zip(&layouts)
            .map(|(id, layout)| PoolDevice { id: [id; 16], extents: layout.extents.count })
            .collect();
        (0..)
            .zip(layouts)
            .map(|(device_index, layout)| Superblock {
                revision: 1,
                pool: PoolId([7; 16]),
                device_index,
                unit: UnitId(1),
                geometry: Geometry::DEFAULT,
                sector: 512,
                flags: FlagsPlace::Device,
                metadata: MetadataAt::Device,
                created_s: 1_700_000_000,
                layout,
                journal_reserve: 5,
                devices: devices.clone(),
            })
            .collect()
    }

    fn seal(bytes: &mut [u8; LEN]) {
        let sum = crc(bytes);
        bytes[LEN - 4..].copy_from_slice(&sum.to_le_bytes());
    }

    /// Goal: what is encoded parses to the same, on every device and for every place of flags and
    /// metadata.
    #[test]
    fn round_trip() {
        let nvram = FlagsPlace::Nvram { region: [9; 16], len: 1 << 20 };
        for flags in [FlagsPlace::Device, nvram, FlagsPlace::Mds] {
            for superblock in pool(&[64 << 20, 1 << 30, (1 << 30) + 512]) {
                for metadata in [MetadataAt::Device, MetadataAt::Server] {
                    let superblock = Superblock { flags, metadata, ..superblock.clone() };
                    assert_eq!(Superblock::parse(&superblock.encode()), Ok(superblock));
                }
            }
        }
    }

    /// Goal: any single flipped bit is found.
    #[test]
    fn every_bit_counts() {
        let good = pool(&[64 << 20])[0].encode();
        for bit in 0..LEN * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let defect = Superblock::parse(&bytes).unwrap_err();
            match bit / 8 {
                0..8 => assert_eq!(defect, Defect::Magic),
                8..12 => assert!(matches!(defect, Defect::Version(_))),
                _ => assert_eq!(defect, Defect::Checksum),
            }
        }
    }

    /// Goal: a valid checksum over unsound fields is not enough.
    #[test]
    fn fields_are_checked_behind_the_checksum() {
        let good = pool(&[64 << 20, 64 << 20])[0].encode();
        let cases = [
            (12, 0, Defect::Devices),
            (12, 65, Defect::Devices),
            (40, 2, Defect::Devices),
            (60, 3, Defect::Flags),
            (60, 1, Defect::Flags),
            (64, 1, Defect::Flags),
            (48, 0, Defect::Layout(LayoutError::BlockSize(0))),
            (152, u32::MAX, Defect::Reserve),
            (156, 2, Defect::Metadata),
            (160 + 2 * 24, 1, Defect::Reserved),
            (160 + 20, 1, Defect::Reserved),
            (160 + 16, 1, Defect::Devices),
            (160 + 24 + 16, 0, Defect::Devices),
            (160 + 24 + 16, u32::MAX / 2, Defect::Devices),
            (4000, 1, Defect::Reserved),
        ];
        // Only the first device has regions.
        let second = pool(&[64 << 20, 64 << 20])[1].encode();
        let cases = cases.map(|case| (good, case)).into_iter();
        for (good, (offset, value, defect)) in
            cases.chain([(second, (104, 1 << 20, Defect::Reserved))])
        {
            let mut bytes = good;
            bytes[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
            seal(&mut bytes);
            assert_eq!(Superblock::parse(&bytes), Err(defect), "at {offset}");
        }
    }

    /// Goal: one damaged or older copy is survived and said; two damaged ones are refused.
    #[test]
    fn the_better_copy_is_used() {
        let good = pool(&[64 << 20])[0].clone();
        let newer = Superblock { revision: 2, ..good.clone() };
        let other = Superblock { pool: PoolId([8; 16]), ..good.clone() };
        let damaged = Defect::Checksum;
        let said = |copy| Some(Warning::Damaged { copy, defect: damaged });
        let cases = [
            (Ok(&good), Ok(&good), Ok((&good, None))),
            (Err(damaged), Ok(&good), Ok((&good, said(Copy::First)))),
            (Ok(&good), Err(damaged), Ok((&good, said(Copy::Second)))),
            (Ok(&good), Ok(&newer), Ok((&newer, Some(Warning::Stale(Copy::First))))),
            (Ok(&newer), Ok(&good), Ok((&newer, Some(Warning::Stale(Copy::Second))))),
            (Ok(&good), Ok(&other), Err(SuperblockError::Contradiction)),
            (Err(Defect::Magic), Err(Defect::Magic), Err(SuperblockError::NotFormatted)),
            (
                Err(Defect::Magic),
                Err(damaged),
                Err(SuperblockError::BothDamaged { first: Defect::Magic, second: damaged }),
            ),
        ];
        for (first, second, expected) in cases {
            let chosen = choose(first.cloned(), second.cloned());
            let expected = expected.map(|(of, warning)| (of.clone(), warning));
            assert_eq!(chosen, expected);
        }
    }

    /// Goal: a shrunk device is refused, a grown one is not; likewise with sectors the other way.
    #[test]
    fn devices_may_grow_and_not_shrink() {
        let superblock = pool(&[64 << 20])[0].clone();
        let check = |size, sector| check_device(&superblock, size, sector);
        assert_eq!(check(64 << 20, 512), Ok(()));
        assert_eq!(check(65 << 20, 512), Ok(()));
        assert!(matches!(check((64 << 20) - 1, 512), Err(SuperblockError::Shrunk { .. })));
        assert!(matches!(check(64 << 20, 4096), Err(SuperblockError::SectorGrown { .. })));
    }

    proptest! {
        /// Goal: no bytes panic, sealed with a valid checksum or not, whatever their length.
        #[test]
        fn any_bytes_are_parsed(
            noise in prop::collection::vec(any::<u8>(), 0..600),
            at in 12usize..1700,
            keep: bool,
        ) {
            let _ = Superblock::parse(&noise);
            let mut bytes = if keep { pool(&[64 << 20, 1 << 30])[0].encode() } else { [0; LEN] };
            bytes[at..at + noise.len()].copy_from_slice(&noise);
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
            seal(&mut bytes);
            if let Ok(superblock) = Superblock::parse(&bytes) {
                prop_assert_eq!(superblock.encode(), bytes);
            }
        }
    }
}
