//! Sets of the blocks of one extent, and the map of where their committed contents lie.
//!
//! An extent never has more than [`BLOCKS_MAX`] blocks, so that a set is four words and the map of
//! a pair one cache line (design section 3).

use std::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Range, Sub, SubAssign};

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::ids::Slot;

/// The most blocks that an extent can have.
pub const BLOCKS_MAX: usize = 256;
const WORDS: usize = BLOCKS_MAX / 64;

/// A set of blocks of one extent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct BlockSet([u64; WORDS]);

impl BlockSet {
    /// No block.
    pub const EMPTY: BlockSet = BlockSet([0; WORDS]);

    /// The blocks of a range, whose end is at most [`BLOCKS_MAX`].
    pub fn range(blocks: Range<usize>) -> Self {
        assert!(
            blocks.start <= blocks.end && blocks.end <= BLOCKS_MAX,
            "blocks {blocks:?} of an extent"
        );
        let mut set = Self::EMPTY;
        for (word, bits) in set.0.iter_mut().enumerate() {
            let low = blocks.start.clamp(word * 64, word * 64 + 64) - word * 64;
            let high = blocks.end.clamp(word * 64, word * 64 + 64) - word * 64;
            if low < high {
                *bits = (u64::MAX >> (64 - (high - low))) << low;
            }
        }
        set
    }

    /// One block.
    pub fn one(block: usize) -> Self {
        Self::range(block..block + 1)
    }

    /// Whether the block is in the set.
    pub fn contains(self, block: usize) -> bool {
        self.0[block / 64] >> (block % 64) & 1 == 1
    }

    /// Whether there is no block in the set.
    pub fn is_empty(self) -> bool {
        self.0 == [0; WORDS]
    }

    /// Whether the sets have a block in common.
    pub fn meets(self, other: Self) -> bool {
        !(self & other).is_empty()
    }

    /// Whether every block of this set is in the other.
    pub fn is_within(self, other: Self) -> bool {
        (self - other).is_empty()
    }

    /// How many blocks are in the set.
    pub fn len(self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The first block of the set that is not below `from`.
    fn first_from(self, from: usize) -> Option<usize> {
        let mut word = from / 64;
        if word >= WORDS {
            return None;
        }
        let mut bits = self.0[word] & (u64::MAX << (from % 64));
        loop {
            if bits != 0 {
                return Some(word * 64 + bits.trailing_zeros() as usize);
            }
            word += 1;
            bits = *self.0.get(word)?;
        }
    }

    /// The first block not below `from` that is not in the set; [`BLOCKS_MAX`] when there is none.
    fn first_gap(self, from: usize) -> usize {
        BlockSet(self.0.map(|word| !word)).first_from(from).unwrap_or(BLOCKS_MAX)
    }

    /// The blocks of the set as maximal runs, in order.
    pub fn runs(self) -> impl Iterator<Item = Range<usize>> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.first_from(from)?;
            from = self.first_gap(start);
            Some(start..from)
        })
    }

    /// The blocks of the set, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        self.runs().flatten()
    }
}

impl std::fmt::Debug for BlockSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.runs()).finish()
    }
}

impl BitOr for BlockSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        BlockSet(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }
}

impl BitAnd for BlockSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        BlockSet(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }
}

/// The blocks of the first set that are not in the second.
impl Sub for BlockSet {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        BlockSet(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }
}

impl BitOrAssign for BlockSet {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

impl BitAndAssign for BlockSet {
    fn bitand_assign(&mut self, other: Self) {
        *self = *self & other;
    }
}

impl SubAssign for BlockSet {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

/// Where a block's contents lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// Nowhere: the block reads as zeros.
    Unused,
    /// On that side of the pair.
    At(Slot),
}

/// Where the contents of each block of a pair lie: the blocks on either side, disjoint; what is on
/// neither side is [`Location::Unused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BlockMap {
    sides: [BlockSet; 2],
}

impl BlockMap {
    /// Every block unused.
    pub const NONE: BlockMap = BlockMap { sides: [BlockSet::EMPTY; 2] };

    /// A map of the two sides; `None` when a block is on both.
    pub fn new(sides: [BlockSet; 2]) -> Option<Self> {
        (!sides[0].meets(sides[1])).then_some(Self { sides })
    }

    /// The blocks on one side.
    pub fn side(self, slot: Slot) -> BlockSet {
        self.sides[slot.index()]
    }

    /// The blocks that are on a side at all.
    pub fn used(self) -> BlockSet {
        self.sides[0] | self.sides[1]
    }

    /// Where one block is.
    pub fn get(self, block: usize) -> Location {
        match Slot::BOTH.into_iter().find(|s| self.side(*s).contains(block)) {
            Some(slot) => Location::At(slot),
            None => Location::Unused,
        }
    }

    /// Puts blocks somewhere, wherever they were before.
    pub fn set(&mut self, blocks: BlockSet, location: Location) {
        for slot in Slot::BOTH {
            if location == Location::At(slot) {
                self.sides[slot.index()] |= blocks;
            } else {
                self.sides[slot.index()] -= blocks;
            }
        }
    }
}

/// A [`BlockMap`] as it is stored: one cache line.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawBlockMap {
    sides: [[U64; WORDS]; 2],
}

const _: () = assert!(size_of::<RawBlockMap>() == 64, "a pair's map is one cache line");

impl From<BlockMap> for RawBlockMap {
    fn from(map: BlockMap) -> Self {
        Self { sides: map.sides.map(|set| set.0.map(U64::new)) }
    }
}

impl RawBlockMap {
    /// The map, or `None` when a block is on both sides.
    pub fn parse(&self) -> Option<BlockMap> {
        BlockMap::new(self.sides.map(|set| BlockSet(set.map(U64::get))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn model() -> impl Strategy<Value = BTreeSet<usize>> {
        prop::collection::btree_set(0..BLOCKS_MAX, 0..BLOCKS_MAX)
    }

    fn set(model: &BTreeSet<usize>) -> BlockSet {
        model.iter().fold(BlockSet::EMPTY, |set, &b| set | BlockSet::one(b))
    }

    proptest! {
        /// Goal: set operations agree with a plain set of numbers.
        #[test]
        fn operations_agree_with_a_model(a in model(), b in model()) {
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!((x | y).iter().collect::<BTreeSet<_>>(), &a | &b);
            prop_assert_eq!((x & y).iter().collect::<BTreeSet<_>>(), &a & &b);
            prop_assert_eq!((x - y).iter().collect::<BTreeSet<_>>(), &a - &b);
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x.meets(y), !a.is_disjoint(&b));
            prop_assert_eq!(x.is_within(y), a.is_subset(&b));
        }

        /// Goal: a range is exactly its blocks, and runs are maximal.
        #[test]
        fn ranges_and_runs(start in 0..=BLOCKS_MAX, len in 0..=BLOCKS_MAX, a in model()) {
            let end = (start + len).min(BLOCKS_MAX);
            let blocks: Vec<_> = BlockSet::range(start..end).iter().collect();
            prop_assert_eq!(blocks, (start..end).collect::<Vec<_>>());
            let runs: Vec<_> = set(&a).runs().collect();
            for pair in runs.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
        }

        /// Goal: a map survives storing, and a block on both sides is refused.
        #[test]
        fn maps_round_trip(a in model(), b in model()) {
            let sides = [set(&a), set(&b)];
            let raw = RawBlockMap { sides: sides.map(|s| s.0.map(U64::new)) };
            prop_assert_eq!(raw.parse().is_some(), a.is_disjoint(&b));
            if let Some(map) = raw.parse() {
                let again = RawBlockMap::from(map);
                prop_assert_eq!(again.as_bytes(), raw.as_bytes());
            }
        }
    }
}
