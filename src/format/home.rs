//! The home: for each pair its binding and the map of its blocks, in two-copy pages.
//!
//! A page holds [`LINES_PER_PAGE`] lines after the header of [`super::page`]; a line is
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | generation |
//! | 4 | 8 | owner: volume (all ones: the pair is free) and logical extent |
//! | 12 | 8 | the extents of slots 0 and 1 (all ones: none) |
//! | 20 | 1 | the data area's slot |
//! | 21 | 3 | zero |
//! | 24 | 64 | the blocks on side 0, then those on side 1 |
//!
//! Binding and map lie together because they become durable together: a binding of a new owner
//! means that none of the old owner's blocks is left.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::blocks::{BlockMap, Location, RawBlockMap};
use super::ids::{Generation, PairId, Slot};
use super::page::PAGE_HEADER;
use super::record::{Binding, Record, extent_field, owner_fields, parse_extent, parse_owner};
use crate::mutants::{Mutant, mutated};

/// Bytes of a home page.
pub const HOME_PAGE: usize = 4096;
/// What names a home page.
pub const HOME_MAGIC: [u8; 4] = *b"FHOM";
/// How many pairs a page describes.
pub const LINES_PER_PAGE: usize = (HOME_PAGE - PAGE_HEADER) / size_of::<RawLine>();
const _: () = assert!(size_of::<RawLine>() == 88 && LINES_PER_PAGE == 46);

/// Bytes of a line.
pub const LINE_BYTES: usize = size_of::<RawLine>();

/// The home page that describes a pair.
pub fn home_page(pair: PairId) -> u32 {
    pair.0 / LINES_PER_PAGE as u32
}

/// The durable state of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// What the pair is.
    pub binding: Binding,
    /// Where the committed contents of its blocks lie.
    pub map: BlockMap,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawLine {
    generation: U32,
    volume: U32,
    logical: U32,
    extents: [U32; 2],
    data_slot: u8,
    zero: [u8; 3],
    map: RawBlockMap,
}

/// What a line says that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A block lies on a side that has no extent: of a dirty block, the journal area.
    #[error("blocks lie in an area that the pair does not have")]
    BlocksWithoutExtent,
    /// Both sides are one extent.
    #[error("both areas are the same extent")]
    OneExtentTwice,
    /// A pair that belongs to nothing has extents.
    #[error("it is free and has extents")]
    FreeWithExtents,
    /// A pair of a volume has no data area.
    #[error("it has no data area")]
    NoDataArea,
}

/// What applying a record to a line did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The line now says what the record says.
    Changed,
    /// The record is of an earlier binding than the line's.
    Stale,
    /// The record cannot follow what the line says: something was lost.
    Impossible,
}

impl Line {
    /// A pair that never belonged to anything.
    pub const FREE: Line = Line { binding: Binding::FREE, map: BlockMap::NONE };

    /// Whether what the line says can be.
    pub fn is_sound(&self) -> bool {
        self.flaw().is_none()
    }

    /// What of a line cannot be, if anything.
    pub fn flaw(&self) -> Option<Flaw> {
        let binding = &self.binding;
        let unbacked = |s: &Slot| binding.extent(*s).is_none() && !self.map.side(*s).is_empty();
        if Slot::BOTH.iter().any(unbacked) {
            return Some(Flaw::BlocksWithoutExtent);
        }
        if binding.extents[0].is_some() && binding.extents[0] == binding.extents[1] {
            return Some(Flaw::OneExtentTwice);
        }
        match binding.owner {
            None if binding.extents != [None; 2] => Some(Flaw::FreeWithExtents),
            Some(_) if binding.extent(binding.data_slot).is_none() => Some(Flaw::NoDataArea),
            _ => None,
        }
    }

    /// Applies a record that names this pair. Pure, absolute, and in the order of the journal
    /// (design section 5): the older binding never overwrites the newer.
    pub fn apply(&mut self, record: &Record) -> Applied {
        match *record {
            Record::Participant(_) | Record::Sum(_) => Applied::Impossible,
            Record::Binding { binding, .. } => {
                let stale = binding.generation < self.binding.generation;
                if stale && !mutated(Mutant::StaleBindingApplied) {
                    return Applied::Stale;
                }
                if binding.owner != self.binding.owner || binding.owner.is_none() {
                    self.map = BlockMap::NONE;
                }
                self.binding = binding;
                if self.is_sound() { Applied::Changed } else { Applied::Impossible }
            }
            Record::Place { generation, first, count, location, .. } => {
                let stale = generation < self.binding.generation;
                if stale && !mutated(Mutant::StalePlaceApplied) {
                    return Applied::Stale;
                }
                if generation > self.binding.generation || self.binding.owner.is_none() {
                    return Applied::Impossible;
                }
                let first = usize::from(first);
                let blocks = super::blocks::BlockSet::range(first..first + usize::from(count));
                if let Location::At(slot) = location
                    && self.binding.extent(slot).is_none()
                {
                    return Applied::Impossible;
                }
                self.map.set(blocks, location);
                Applied::Changed
            }
        }
    }

    /// The line as it is stored.
    pub fn bytes(&self) -> [u8; LINE_BYTES] {
        let (volume, logical) = owner_fields(self.binding.owner);
        zerocopy::transmute!(RawLine {
            generation: U32::new(self.binding.generation.0),
            volume,
            logical,
            extents: self.binding.extents.map(extent_field),
            data_slot: self.binding.data_slot as u8,
            zero: [0; 3],
            map: self.map.into(),
        })
    }

    /// The line that is stored so, even one that has a [`Flaw`]; `None` where it is none.
    pub fn from_bytes(bytes: &[u8; LINE_BYTES]) -> Option<Line> {
        let raw = RawLine::ref_from_bytes(bytes).ok()?;
        Some(Line {
            binding: Binding {
                generation: Generation(raw.generation.get()),
                owner: parse_owner(raw.volume, raw.logical),
                extents: raw.extents.map(parse_extent),
                data_slot: Slot::from_index(raw.data_slot)?,
            },
            map: raw.map.parse()?,
        })
    }

    /// Stores the line at its place among a page's contents.
    pub fn store(&self, page: &mut [u8], index_in_page: usize) {
        let at = PAGE_HEADER + index_in_page * LINE_BYTES;
        page[at..at + LINE_BYTES].copy_from_slice(&self.bytes());
    }

    /// The line at its place in a verified page; `None` where it says what cannot be.
    pub fn parse(page: &[u8], index_in_page: usize) -> Option<Line> {
        Line::parse_unsound(page, index_in_page).filter(Line::is_sound)
    }

    /// As [`Line::parse`], but with a line that has a [`Flaw`].
    pub fn parse_unsound(page: &[u8], index_in_page: usize) -> Option<Line> {
        let at = PAGE_HEADER + index_in_page * LINE_BYTES;
        Line::from_bytes(page.get(at..)?.first_chunk()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::blocks::BlockSet;
    use crate::format::ids::{ExtentId, LogicalExtent, VolumeId};

    fn binding(generation: u32, extents: [Option<u32>; 2]) -> Binding {
        Binding {
            generation: Generation(generation),
            owner: Some((VolumeId(1), LogicalExtent(2))),
            extents: extents.map(|e| e.map(ExtentId)),
            data_slot: Slot::Zero,
        }
    }

    fn place(generation: u32, blocks: std::ops::Range<u16>, location: Location) -> Record {
        Record::Place {
            pair: PairId(0),
            generation: Generation(generation),
            first: blocks.start,
            count: blocks.end - blocks.start,
            location,
            payload: None,
        }
    }

    fn bind(binding: Binding) -> Record {
        Record::Binding { pair: PairId(0), binding }
    }

    /// Goal: replaying a history again, from any point that the home had reached, ends in the same
    /// line: records are absolute and older bindings are passed over.
    #[test]
    fn replay_from_any_state_converges() {
        let other =
            Binding { owner: Some((VolumeId(9), LogicalExtent(9))), ..binding(5, [Some(7), None]) };
        let history = [
            bind(binding(1, [Some(10), None])),
            place(1, 0..4, Location::At(Slot::Zero)),
            bind(binding(2, [Some(10), Some(11)])),
            place(2, 1..3, Location::At(Slot::One)),
            place(2, 1..3, Location::At(Slot::Zero)),
            bind(binding(3, [Some(10), None])),
            place(3, 0..1, Location::Unused),
            bind(Binding {
                generation: Generation(4),
                owner: None,
                extents: [None; 2],
                data_slot: Slot::Zero,
            }),
            bind(other),
            place(5, 8..9, Location::At(Slot::Zero)),
        ];
        let mut states = vec![Line::FREE];
        for record in &history {
            let mut line = *states.last().unwrap();
            assert_eq!(line.apply(record), Applied::Changed);
            states.push(line);
        }
        let end = *states.last().unwrap();
        assert_eq!(end.map.used(), BlockSet::one(8));
        for reached in states {
            let mut line = reached;
            for record in &history {
                assert_ne!(line.apply(record), Applied::Impossible, "{record:?} on {line:?}");
            }
            assert_eq!(line, end, "from {reached:?}");
        }
    }

    /// Goal: what cannot follow is said, not applied.
    #[test]
    fn impossible_records_are_refused() {
        let mut line = Line::FREE;
        assert_eq!(line.apply(&place(0, 0..1, Location::Unused)), Applied::Impossible);
        assert_eq!(line.apply(&bind(binding(1, [Some(1), None]))), Applied::Changed);
        assert_eq!(line.apply(&place(1, 0..1, Location::At(Slot::One))), Applied::Impossible);
        assert_eq!(line.apply(&place(2, 0..1, Location::At(Slot::Zero))), Applied::Impossible);
        assert_eq!(line.apply(&place(1, 0..1, Location::At(Slot::Zero))), Applied::Changed);
    }

    /// Goal: a line survives storing; an unsound one is not read.
    #[test]
    fn lines_round_trip() {
        let mut page = vec![0; HOME_PAGE];
        let mut line = Line { binding: binding(3, [Some(1), Some(2)]), map: BlockMap::NONE };
        line.map.set(BlockSet::range(3..9), Location::At(Slot::One));
        line.store(&mut page, LINES_PER_PAGE - 1);
        assert_eq!(Line::parse(&page, LINES_PER_PAGE - 1), Some(line));
        line.binding.extents[1] = None;
        line.store(&mut page, 0);
        assert_eq!(Line::parse(&page, 0), None);
    }
}
