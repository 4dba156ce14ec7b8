//! A request as blocks: which are written, which become unused, and to which pairs they belong.

use std::ops::Range;

use smallvec::SmallVec;

use crate::format::blocks::BlockSet;
use crate::format::ids::{LogicalExtent, PairId};
use crate::format::layout::Geometry;
use crate::mutants::{Mutant, mutated};

/// Whose a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The volume's index.
    pub volume: usize,
    /// The life of the volume in which its client came.
    pub life: u32,
}

/// A request on a volume, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub offset: u64,
    /// How many bytes; not zero.
    pub len: u64,
}

/// What a changing request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes every block that it touches.
    Write,
    /// Makes whole blocks unused, and writes the rest of blocks that it covers in part.
    Zero,
    /// Makes whole blocks unused, and leaves blocks that it covers in part alone.
    Trim,
}

/// The blocks of one pair that a request changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The place in the volume.
    pub logical: LogicalExtent,
    /// The pair there, where there is one or from admission on.
    pub pair: Option<PairId>,
    /// The blocks that are written.
    pub write: BlockSet,
    /// The blocks that become unused.
    pub zero: BlockSet,
    /// Of the written blocks, those that go to either side; set at admission.
    pub targets: [BlockSet; 2],
}

/// The parts of a request; most have one.
pub type Parts = SmallVec<[Part; 1]>;

impl Part {
    /// All blocks that are changed.
    pub fn blocks(&self) -> BlockSet {
        self.write | self.zero
    }
}

/// The whole blocks that cover a span, as numbers from the start of the volume.
pub fn covering(span: Span, geometry: Geometry) -> Range<u64> {
    let shift = geometry.block_shift();
    let end = (span.offset + span.len).next_multiple_of(u64::from(geometry.block_size()));
    span.offset >> shift..end >> shift
}

/// The whole blocks inside a span.
fn inside(span: Span, geometry: Geometry) -> Range<u64> {
    let shift = geometry.block_shift();
    let start = span.offset.next_multiple_of(u64::from(geometry.block_size())) >> shift;
    let end = (span.offset + span.len) >> shift;
    start..end.max(start)
}

/// Splits a changing request into the parts of each pair.
pub fn split(change: Change, span: Span, geometry: Geometry) -> Parts {
    let (write, zero) = match change {
        Change::Write => (covering(span, geometry), 0..0),
        Change::Trim if mutated(Mutant::TrimRoundedOutward) => (0..0, covering(span, geometry)),
        Change::Trim => (0..0, inside(span, geometry)),
        Change::Zero => (covering(span, geometry), inside(span, geometry)),
    };
    let all = if write.is_empty() { zero.clone() } else { write.clone() };
    extents(all, geometry)
        .map(|(logical, blocks, first)| {
            let zero = local(&zero, first, geometry);
            let write = if write.is_empty() { BlockSet::EMPTY } else { BlockSet::range(blocks) };
            Part { logical, pair: None, write: write - zero, zero, targets: Default::default() }
        })
        .filter(|part| !part.blocks().is_empty())
        .collect()
}

/// The blocks of a range that lie in the extent that begins with block `first`.
fn local(blocks: &Range<u64>, first: u64, geometry: Geometry) -> BlockSet {
    let end = first + u64::from(geometry.blocks_per_extent());
    let (from, to) = (blocks.start.clamp(first, end), blocks.end.clamp(first, end));
    if from < to {
        BlockSet::range((from - first) as usize..(to - first) as usize)
    } else {
        BlockSet::EMPTY
    }
}

/// The extents of a range of blocks: for each, its place in the volume, the range of its own
/// blocks, and the number of its first block.
pub fn extents(
    blocks: Range<u64>,
    geometry: Geometry,
) -> impl Iterator<Item = (LogicalExtent, Range<usize>, u64)> {
    let per_extent = u64::from(geometry.blocks_per_extent());
    let mut from = blocks.start;
    std::iter::from_fn(move || {
        if from >= blocks.end {
            return None;
        }
        let extent = from / per_extent;
        let first = extent * per_extent;
        let to = blocks.end.min(first + per_extent);
        let local = (from - first) as usize..(to - first) as usize;
        from = to;
        Some((LogicalExtent(extent as u32), local, first))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Goal: every byte of a request is written or made unused exactly as its kind says, in the
        /// right block of the right extent.
        #[test]
        fn splitting_covers_each_byte(
            offset in 0_u64..300_000,
            len in 1_u64..300_000,
            kind in 0..3_usize,
        ) {
            let change = [Change::Write, Change::Zero, Change::Trim][kind];
            let geometry = Geometry::new(4096, 65536).unwrap();
            let span = Span { offset, len };
            let parts = split(change, span, geometry);
            for block in 0..600_000_u64 / 4096 {
                let (extent, local) = ((block / 16) as u32, (block % 16) as usize);
                let part = parts.iter().find(|p| p.logical.0 == extent);
                let written = part.is_some_and(|p| p.write.contains(local));
                let zeroed = part.is_some_and(|p| p.zero.contains(local));
                let (start, end) = (block * 4096, block * 4096 + 4096);
                let touched = start < offset + len && end > offset;
                let whole = start >= offset && end <= offset + len;
                let expected = match change {
                    Change::Write => (touched, false),
                    Change::Zero => (touched && !whole, whole),
                    Change::Trim => (false, whole),
                };
                prop_assert_eq!((written, zeroed), expected, "block {}", block);
            }
        }
    }
}
