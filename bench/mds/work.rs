//! What a target asks for: swaps, round and round over the pairs of its unit.

use flipside::format::ids::{
    ExtentId, ExtentRun, Generation, LogicalExtent, PairId, Slot, VolumeId,
};
use flipside::mds::catalog::PoolSpec;
use flipside::mds::records::{PairRecord, Primitive};

/// Bytes of an extent.
pub const EXTENT_SIZE: u32 = 1 << 20;

/// The pairs of one unit, each with two extents.
pub struct Work {
    extents: Vec<ExtentId>,
    next_pair: u32,
    generation: u32,
}

/// The pool of a unit of so many pairs.
pub fn pool_of(pairs: u32) -> PoolSpec {
    let devices = vec![ExtentRun { start: ExtentId(0), count: pairs * 2 }];
    PoolSpec { extent_size: EXTENT_SIZE, devices, reserve: 0 }
}

impl Work {
    /// Of pairs that are to be made first, of these extents.
    pub fn new(extents: Vec<ExtentId>) -> Work {
        assert!(!extents.is_empty() && extents.len().is_multiple_of(2), "pairs of extents");
        Work { extents, next_pair: 0, generation: 1 }
    }

    /// Whether all pairs have been asked for.
    pub fn is_made(&self) -> bool {
        self.generation > 1
    }

    /// The next primitives: pairs are made, one after the other, and then swapped.
    pub fn batch(&mut self, count: u32) -> Vec<Primitive> {
        let primitive = |pair: PairRecord| match pair.generation {
            Generation(1) => Primitive::AssociateDataJournal(pair),
            _ => Primitive::SwapDataJournal(pair),
        };
        (0..count).map(|_| primitive(self.next())).collect()
    }

    fn next(&mut self) -> PairRecord {
        let (pair, generation) = (self.next_pair, self.generation);
        self.next_pair = (pair + 1) % (self.extents.len() as u32 / 2);
        self.generation += u32::from(self.next_pair == 0);
        let first = pair as usize * 2;
        PairRecord {
            volume: VolumeId(0),
            logical: LogicalExtent(pair),
            pair: PairId(pair),
            generation: Generation(generation),
            slots: [Some(self.extents[first]), Some(self.extents[first + 1])],
            data_slot: if generation.is_multiple_of(2) { Slot::Zero } else { Slot::One },
        }
    }
}
