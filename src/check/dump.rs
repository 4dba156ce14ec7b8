//! The whole of a pool's metadata as a document, for `flipside metadata dump` and `restore`.
//!
//! # Contracts
//!
//! - **Whole**: with a dump and the devices' extents, a pool is what it was. What is not in it
//!   follows at the next start: the journal is empty, and the store is told of all pairs.
//! - **Trust**: [`Dump::verify`] is the one door from a document to metadata: behind it
//!   superblocks, lines and rows are sound, and none contradicts another.

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::lines;
use super::metadata::volumes_of;
use crate::format::blocks::RawBlockMap;
use crate::format::home::Line;
use crate::format::ids::{
    ExtentId, Generation, Incarnation, LogicalExtent, PairId, PoolId, Slot, UnitId, VolumeId,
};
use crate::format::layout::{DeviceExtents, DeviceLayout, Geometry, Regions, Span};
use crate::format::record::Binding;
use crate::format::superblock::{FlagsPlace, MetadataAt, PoolDevice, Superblock};
use crate::mds::catalog::{CatalogFacts, fresh_rows};
use crate::mds::opening::pool_spec;
use crate::mds::store::Table;
use crate::mds::volume_table::{Kept, KeptRows};

/// What the document calls itself.
const FORMAT: &str = "flipside-metadata";
/// The version of the document.
const VERSION: u32 = 1;
/// Bytes of one side of a pair's blocks.
const SIDE: usize = 32;

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dump {
    format: String,
    version: u32,
    pool: PoolPart,
    devices: Vec<DevicePart>,
    /// The unit's starts so far.
    pub incarnation: u32,
    /// Groups of the journal whose effect is in the pairs here, and not yet in the home.
    pub groups_applied: usize,
    volumes: VolumesPart,
    /// What was granted to units; the next start is granted all again.
    pub grants: Vec<GrantPart>,
    pairs: Vec<PairPart>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolPart {
    id: String,
    unit: u32,
    block_size: u32,
    extent_size: u32,
    created_s: u64,
    journal_reserve: u32,
    flags: FlagsPart,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum FlagsPart {
    Device,
    Nvram { region: String, len: u64 },
    Mds,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DevicePart {
    id: String,
    revision: u64,
    sector: u32,
    size: u64,
    /// On the first device: where the unit's region and the store's are, as offset and length.
    regions: Option<[[u64; 2]; 2]>,
    extents_offset: u64,
    extents_first: u32,
    extents: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumesPart {
    sequence: u64,
    pool_row: String,
    volumes: Vec<VolumePart>,
    /// Consistency groups: keys and rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<[String; 2]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumePart {
    /// For people; the row counts.
    id: u32,
    /// For people.
    name: String,
    /// For people.
    size: u64,
    row: String,
}

/// What one unit was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantPart {
    unit: u32,
    data_quota: u64,
    /// First extent and count of each run.
    runs: Vec<[u32; 2]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PairPart {
    pair: u32,
    generation: u32,
    /// Volume and logical extent; nothing where the pair is free.
    owner: Option<[u32; 2]>,
    extents: [Option<u32>; 2],
    data_slot: u8,
    /// The blocks on each side, block 0 in the lowest bit of the first byte.
    blocks: [String; 2],
}

/// Metadata that can be put onto devices.
#[derive(Debug)]
pub struct Verified {
    /// One for each device, in their order.
    pub superblocks: Vec<Superblock>,
    /// The unit's starts so far.
    pub incarnation: Incarnation,
    /// The rows of the volumes.
    pub kept: Kept,
    /// The line of each pair.
    pub lines: Vec<Line>,
}

/// Why a document is no metadata.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsound(String);

fn unsound<T>(what: impl Into<String>) -> Result<T, Unsound> {
    Err(Unsound(what.into()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

fn unhex(text: &str) -> Result<Vec<u8>, Unsound> {
    let digit = |byte: &u8| (*byte as char).to_digit(16).map(|digit| digit as u8);
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(pair).collect();
    bytes.ok_or_else(|| Unsound(format!("'{text}' is not made of hexadecimal bytes")))
}

fn sixteen(text: &str) -> Result<[u8; 16], Unsound> {
    let wrong = |_| Unsound(format!("'{text}' is not of 16 bytes"));
    unhex(text)?.try_into().map_err(wrong)
}

impl Dump {
    /// The document of a pool with these superblocks, in their order, and lines.
    pub fn new(verified: &Verified, groups_applied: usize, catalog: Option<&CatalogFacts>) -> Self {
        let [first, ..] = verified.superblocks.as_slice() else { panic!("a pool has a device") };
        let units = catalog.map(|catalog| catalog.units.as_slice()).unwrap_or_default();
        let grants = units.iter().map(|of| GrantPart {
            unit: of.unit.0,
            data_quota: of.data_quota,
            runs: of.granted.iter().map(|run| [run.start.0, run.count]).collect(),
        });
        let lines = verified.lines.iter().enumerate();
        let lines = lines.filter(|(_, line)| **line != Line::FREE);
        Dump {
            format: FORMAT.to_owned(),
            version: VERSION,
            pool: PoolPart::new(first),
            devices: verified.superblocks.iter().map(DevicePart::new).collect(),
            incarnation: verified.incarnation.0,
            groups_applied,
            volumes: VolumesPart::new(&verified.kept),
            grants: grants.collect(),
            pairs: lines.map(|(pair, line)| PairPart::new(pair as u32, line)).collect(),
        }
    }

    /// The metadata in the document.
    pub fn verify(&self) -> Result<Verified, Unsound> {
        if self.format != FORMAT || self.version != VERSION {
            let (format, version) = (&self.format, self.version);
            return unsound(format!(
                "it is '{format}' version {version}, and this program knows '{FORMAT}' version \
                 {VERSION}"
            ));
        }
        let superblocks = self.superblocks()?;
        let [first, ..] = superblocks.as_slice() else { return unsound("it has no device") };
        let mut lines = vec![Line::FREE; first.pool_extents() as usize];
        for part in &self.pairs {
            let Some(line) = lines.get_mut(part.pair as usize) else {
                return unsound(format!("pair {} is beyond the pool", part.pair));
            };
            if *line != Line::FREE {
                return unsound(format!("pair {} is there twice", part.pair));
            }
            *line = part.line()?;
        }
        let kept = self.volumes.kept()?;
        fresh_rows(&pool_spec(first), &kept.rows).map_err(|error| Unsound(error.to_string()))?;
        let volumes = volumes_of(&kept);
        if volumes.len() != self.volumes.volumes.len() {
            return unsound("a volume's row is not one");
        }
        if let Some(finding) = lines::judge(&lines, first.geometry, &volumes).first() {
            return unsound(finding.to_string());
        }
        let incarnation = Incarnation(self.incarnation);
        Ok(Verified { superblocks, incarnation, kept, lines })
    }

    fn superblocks(&self) -> Result<Vec<Superblock>, Unsound> {
        let ids = self.devices.iter().map(|device| sixteen(&device.id));
        let ids: Vec<[u8; 16]> = ids.collect::<Result<_, _>>()?;
        let counts = self.devices.iter().map(|device| device.extents);
        let devices: Vec<_> =
            ids.into_iter().zip(counts).map(|(id, extents)| PoolDevice { id, extents }).collect();
        let geometry = Geometry::new(self.pool.block_size, self.pool.extent_size);
        let geometry = geometry.map_err(|error| Unsound(error.to_string()))?;
        let flags = self.pool.flags.place()?;
        let pool = PoolId(sixteen(&self.pool.id)?);
        let mut superblocks = Vec::with_capacity(devices.len());
        for (index, device) in (0..).zip(&self.devices) {
            let superblock = Superblock {
                revision: device.revision,
                pool,
                device_index: index,
                unit: UnitId(self.pool.unit),
                geometry,
                sector: device.sector,
                flags,
                metadata: MetadataAt::Device,
                created_s: self.pool.created_s,
                layout: device.layout(),
                journal_reserve: self.pool.journal_reserve,
                devices: devices.clone(),
            };
            if let Err(defect) = superblock.check() {
                return unsound(format!("device {}: {defect}", index + 1));
            }
            superblocks.push(superblock);
        }
        Ok(superblocks)
    }
}

impl PoolPart {
    fn new(superblock: &Superblock) -> Self {
        PoolPart {
            id: hex(&superblock.pool.0),
            unit: superblock.unit.0,
            block_size: superblock.geometry.block_size(),
            extent_size: superblock.geometry.extent_size(),
            created_s: superblock.created_s,
            journal_reserve: superblock.journal_reserve,
            flags: match superblock.flags {
                FlagsPlace::Nvram { region, len } => FlagsPart::Nvram { region: hex(&region), len },
                FlagsPlace::Device => FlagsPart::Device,
                FlagsPlace::Mds => FlagsPart::Mds,
            },
        }
    }
}

impl FlagsPart {
    fn place(&self) -> Result<FlagsPlace, Unsound> {
        Ok(match self {
            FlagsPart::Device => FlagsPlace::Device,
            FlagsPart::Mds => FlagsPlace::Mds,
            FlagsPart::Nvram { region, len } => {
                FlagsPlace::Nvram { region: sixteen(region)?, len: *len }
            }
        })
    }
}

impl DevicePart {
    fn new(superblock: &Superblock) -> Self {
        let layout = &superblock.layout;
        let span = |span: Span| [span.offset, span.len];
        let own = superblock.devices.get(superblock.device_index as usize);
        DevicePart {
            id: hex(&own.expect("a superblock lists its device").id),
            revision: superblock.revision,
            sector: superblock.sector,
            size: layout.size,
            regions: layout.regions.map(|regions| [span(regions.unit), span(regions.store)]),
            extents_offset: layout.extents.offset,
            extents_first: layout.extents.first.0,
            extents: layout.extents.count,
        }
    }

    fn layout(&self) -> DeviceLayout {
        let span = |[offset, len]: [u64; 2]| Span { offset, len };
        DeviceLayout {
            size: self.size,
            regions: self
                .regions
                .map(|[unit, store]| Regions { unit: span(unit), store: span(store) }),
            extents: DeviceExtents {
                offset: self.extents_offset,
                first: ExtentId(self.extents_first),
                count: self.extents,
            },
        }
    }
}

impl VolumesPart {
    fn new(kept: &Kept) -> Self {
        let volumes = volumes_of(kept).into_iter().filter_map(|volume| {
            let key = (Table::Volumes, crate::mds::store::key(&[volume.id.0]));
            let row = hex(kept.rows.get(&key)?);
            Some(VolumePart { id: volume.id.0, name: volume.name, size: volume.size, row })
        });
        let pool_row = kept.rows.get(&(Table::Pool, Vec::new()));
        VolumesPart {
            sequence: kept.sequence,
            pool_row: hex(pool_row.map(Vec::as_slice).unwrap_or_default()),
            volumes: volumes.collect(),
            groups: kept
                .rows
                .iter()
                .filter(|((table, _), _)| *table == Table::Groups)
                .map(|((_, key), row)| [hex(key), hex(row)])
                .collect(),
        }
    }

    fn kept(&self) -> Result<Kept, Unsound> {
        let mut rows = KeptRows::new();
        rows.insert((Table::Pool, Vec::new()), unhex(&self.pool_row)?);
        for volume in &self.volumes {
            let key = (Table::Volumes, crate::mds::store::key(&[volume.id]));
            rows.insert(key, unhex(&volume.row)?);
        }
        for [key, row] in &self.groups {
            rows.insert((Table::Groups, unhex(key)?), unhex(row)?);
        }
        let kept = Kept { sequence: self.sequence, rows };
        let ids = volumes_of(&kept).into_iter().map(|volume| volume.id);
        if ids.ne(self.volumes.iter().map(|volume| VolumeId(volume.id))) {
            return unsound("the volumes' rows are not those of their numbers, in order");
        }
        if self.sequence > u64::MAX / 2 || kept.encode(PoolId::default()).is_none() {
            return unsound("the volumes do not fit into their table");
        }
        Ok(kept)
    }
}

impl PairPart {
    fn new(pair: u32, line: &Line) -> Self {
        let map = RawBlockMap::from(line.map);
        let (side0, side1) = map.as_bytes().split_at(SIDE);
        PairPart {
            pair,
            generation: line.binding.generation.0,
            owner: line.binding.owner.map(|(volume, logical)| [volume.0, logical.0]),
            extents: line.binding.extents.map(|extent| extent.map(|extent| extent.0)),
            data_slot: line.binding.data_slot as u8,
            blocks: [hex(side0), hex(side1)],
        }
    }

    fn line(&self) -> Result<Line, Unsound> {
        let wrong = |what: &str| Unsound(format!("pair {}: {what}", PairId(self.pair)));
        let [side0, side1] = &self.blocks;
        let sides = [unhex(side0)?, unhex(side1)?];
        if sides.iter().any(|side| side.len() != SIDE) {
            return Err(wrong("its blocks are not of 32 bytes a side"));
        }
        let map = RawBlockMap::read_from_bytes(&sides.concat()).ok();
        let map = map.and_then(|map| map.parse());
        let data_slot = Slot::from_index(self.data_slot);
        let line = Line {
            binding: Binding {
                generation: Generation(self.generation),
                owner: self
                    .owner
                    .map(|[volume, logical]| (VolumeId(volume), LogicalExtent(logical))),
                extents: self.extents.map(|extent| extent.map(ExtentId)),
                data_slot: data_slot.ok_or_else(|| wrong("its data slot is neither 0 nor 1"))?,
            },
            map: map.ok_or_else(|| wrong("a block is on both sides"))?,
        };
        match line.flaw() {
            None => Ok(line),
            Some(flaw) => Err(wrong(&flaw.to_string())),
        }
    }
}
