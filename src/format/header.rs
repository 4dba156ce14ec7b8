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
use super::layout::SECTOR_MAX;
use super::page::PAGE_HEADER;

/// What names the header page.
pub const HEADER_MAGIC: [u8; 4] = *b"FREG";
/// The version of the region's format. Since 2 groups may have sums, which a program that does not
/// know them would take for groups that were cut off; 1 is read, and is 2 from then on.
pub const REGION_VERSION: u32 = 2;
/// The fewest journal slots that a region can work with.
pub const SLOTS_MIN: u32 = 64;
/// The most journal slots that a region uses: 256 MiB.
pub const SLOTS_MAX: u32 = 1 << 16;

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

    /// The incarnation of the next start. There is one: [`RegionHeader::parse`] lets no header
    /// through that has counted to the end.
    pub fn next_incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.0 + 1)
    }

    /// The header in a verified page; `None` where it is of another version or says what cannot be.
    pub fn parse(page: &[u8]) -> Option<RegionHeader> {
        let (raw, _) = RawHeader::ref_from_prefix(page.get(PAGE_HEADER..)?).ok()?;
        let sector = raw.sector.get();
        let sound = (1..=REGION_VERSION).contains(&raw.version.get())
            && (512..=SECTOR_MAX).contains(&sector)
            && sector.is_power_of_two()
            && (SLOTS_MIN..=SLOTS_MAX).contains(&raw.slots.get())
            && raw.incarnation.get() != u32::MAX;
        sound.then(|| RegionHeader {
            unit: UnitId(raw.unit.get()),
            incarnation: Incarnation(raw.incarnation.get()),
            slots: raw.slots.get(),
            pairs: raw.pairs.get(),
            sector,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: RegionHeader = RegionHeader {
        unit: UnitId(1),
        incarnation: Incarnation(7),
        slots: SLOTS_MIN,
        pairs: 46,
        sector: 512,
    };

    fn stored(header: RegionHeader) -> Option<RegionHeader> {
        let mut page = vec![0; 512];
        header.store(&mut page);
        RegionHeader::parse(&page)
    }

    /// Goal: a header survives storing up to its bounds; what the layout or the next start would
    /// overflow at is refused here (found by fuzzing, which made the checksum good).
    #[test]
    fn headers_have_bounds() {
        for slots in [SLOTS_MIN, SLOTS_MAX] {
            assert_eq!(stored(RegionHeader { slots, ..HEADER }).unwrap().slots, slots);
        }
        let last = RegionHeader { incarnation: Incarnation(u32::MAX - 1), ..HEADER };
        assert_eq!(stored(last).unwrap().next_incarnation(), Incarnation(u32::MAX));
        for slots in [0, SLOTS_MIN - 1, SLOTS_MAX + 1, u32::MAX] {
            assert_eq!(stored(RegionHeader { slots, ..HEADER }), None);
        }
        assert_eq!(stored(RegionHeader { incarnation: Incarnation(u32::MAX), ..HEADER }), None);
        for sector in [0, 256, 1000, 8192] {
            assert_eq!(stored(RegionHeader { sector, ..HEADER }), None);
        }
        assert_eq!(RegionHeader::parse(&[0; 512]), None);
        assert_eq!(RegionHeader::parse(&[0; 9]), None);
    }
}
