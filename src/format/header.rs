//! The header page of a unit's region: whose it is, and how many starts the unit has had.
//!
//! Its contents, after the header of [`super::page`]:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | format version |
//! | 4 | 4 | the unit's number |
//! | 8 | 4 | incarnation: the unit's starts so far |
//! | 12 | 4 | number of journal slots |
//! | 16 | 4 | number of pairs |
//! | 20 | 4 | bytes of a sector: those of a status page |

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::ids::{Incarnation, UnitId};
use super::page::PAGE_HEADER;

/// What names the header page.
pub const HEADER_MAGIC: [u8; 4] = *b"FREG";
/// The version of the region's format.
pub const REGION_VERSION: u32 = 1;

/// What the header page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionHeader {
    /// Whose region it is.
    pub unit: UnitId,
    /// How many starts the unit has had.
    pub incarnation: Incarnation,
    /// How many journal slots there are.
    pub slots: u32,
    /// How many pairs the home describes.
    pub pairs: u32,
    /// Bytes of a sector.
    pub sector: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    version: U32,
    unit: U32,
    incarnation: U32,
    slots: U32,
    pairs: U32,
    sector: U32,
}

const _: () = assert!(size_of::<RawHeader>() == 24);

impl RegionHeader {
    /// Stores the header among a page's contents.
    pub fn store(&self, page: &mut [u8]) {
        let raw = RawHeader {
            version: U32::new(REGION_VERSION),
            unit: U32::new(self.unit.0),
            incarnation: U32::new(self.incarnation.0),
            slots: U32::new(self.slots),
            pairs: U32::new(self.pairs),
            sector: U32::new(self.sector),
        };
        page[PAGE_HEADER..PAGE_HEADER + size_of::<RawHeader>()].copy_from_slice(raw.as_bytes());
    }

    /// The header in a verified page; `None` where it is of another version or says what cannot be.
    pub fn parse(page: &[u8]) -> Option<RegionHeader> {
        let (raw, _) = RawHeader::ref_from_prefix(page.get(PAGE_HEADER..)?).ok()?;
        let sector = raw.sector.get();
        let sound = raw.version.get() == REGION_VERSION && (sector == 512 || sector == 4096);
        sound.then(|| RegionHeader {
            unit: UnitId(raw.unit.get()),
            incarnation: Incarnation(raw.incarnation.get()),
            slots: raw.slots.get(),
            pairs: raw.pairs.get(),
            sector,
        })
    }
}
