//! The lines that a reader goes by ('721 claim 11, on the other side), and whether what was read by
//! them holds. Plain data.
//!
//! A commit moves a block to its other side and changes no generation, and the next write of the
//! block goes where it was before. So what was read from a place is good where the block is there
//! still *and was not away meanwhile*. The server tells views, not steps, but in one view no block
//! moves twice: a commit is answered at the end of the turn that its view is, and only then may the
//! block be written on its old side. A line that changed in one view and shows a block where it was
//! has not moved it; one that is told with several views may have moved it there and back.

use std::collections::BTreeMap;

use crate::format::blocks::BlockSet;
use crate::format::home::Line;
use crate::format::ids::{ExtentId, LogicalExtent, PairId, Slot, VolumeId};
use crate::mds::records::LinesSeen;
use crate::mutants::{Mutant, mutated};

type Owner = (VolumeId, LogicalExtent);

/// The lines of a pool as of a view.
#[derive(Debug, Default)]
pub struct Cache {
    view: u64,
    /// How often all lines were read.
    reading: u64,
    lines: BTreeMap<PairId, Known>,
    owners: BTreeMap<Owner, PairId>,
}

/// A line, and how often it has changed since all were read; twice, where that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    line: Line,
    changes: u64,
}

/// What a read of some blocks of a logical extent goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    reading: u64,
    owner: Owner,
    blocks: BlockSet,
    pair: Option<(PairId, Known)>,
}

impl Sight {
    /// The blocks that have contents, and their extents.
    pub fn places(&self) -> impl Iterator<Item = (BlockSet, ExtentId)> {
        let line = self.pair.map(|(_, known)| known.line);
        let side = move |slot| Some((line?.map.side(slot) & self.blocks, line?, slot));
        let sides = Slot::BOTH.into_iter().filter_map(side);
        sides.filter(|(blocks, _, _)| !blocks.is_empty()).map(|(blocks, line, slot)| {
            let extent = line.binding.extent(slot);
            (blocks, extent.expect("a sound line has no blocks where it has no extent"))
        })
    }

    /// The logical extent.
    pub fn owner(&self) -> (VolumeId, LogicalExtent) {
        self.owner
    }

    /// The blocks that read as zeros.
    pub fn unused(&self) -> BlockSet {
        let used = self.pair.map_or(BlockSet::EMPTY, |(_, known)| known.line.map.used());
        self.blocks - used
    }
}

impl Cache {
    /// All lines, read for the time of that number.
    pub fn new(seen: LinesSeen, reading: u64) -> Self {
        let mut cache = Cache { view: seen.view, reading, ..Cache::default() };
        cache.put(seen.lines, 0);
        cache
    }

    /// The view that it is of.
    pub fn view(&self) -> u64 {
        self.view
    }

    /// The number of the next reading of all lines.
    pub fn next_reading(&self) -> u64 {
        self.reading + 1
    }

    /// Takes in the lines that changed since its view.
    pub fn apply(&mut self, seen: LinesSeen) {
        assert!(seen.view >= self.view, "a view from before what is known");
        let steps = (seen.view - self.view).min(2);
        self.view = seen.view;
        self.put(seen.lines, steps);
    }

    fn put(&mut self, lines: Vec<(PairId, Line)>, steps: u64) {
        // The last that was told of each.
        let lines: BTreeMap<PairId, Line> = lines.into_iter().collect();
        // What left its place first: another pair may stand there now.
        for pair in lines.keys() {
            let known = self.lines.get(pair);
            if let Some(owner) = known.and_then(|known| known.line.binding.owner)
                && self.owners.get(&owner) == Some(pair)
            {
                self.owners.remove(&owner);
            }
        }
        for (pair, mut line) in lines {
            let known = self.lines.get(&pair).copied();
            let changes = known.map_or(0, |known| known.changes) + steps;
            if let Some(Known { line: old, .. }) = known
                && mutated(Mutant::StaleLineKept)
                && old.binding.generation == line.binding.generation
            {
                line = old;
            }
            if let Some(owner) = line.binding.owner {
                self.owners.insert(owner, pair);
            }
            self.lines.insert(pair, Known { line, changes });
        }
    }

    fn find(&self, owner: Owner) -> Option<(PairId, Known)> {
        let pair = *self.owners.get(&owner)?;
        Some((pair, self.lines[&pair]))
    }

    /// What a read of those blocks goes by.
    pub fn look(&self, owner: Owner, blocks: BlockSet) -> Sight {
        Sight { reading: self.reading, owner, blocks, pair: self.find(owner) }
    }

    /// Whether what was read so is what the blocks held at this view, which the server told of
    /// after the read had ended.
    pub fn holds(&self, sight: &Sight) -> bool {
        if sight.reading != self.reading {
            return false;
        }
        let (before, now) = match (sight.pair, self.find(sight.owner)) {
            (None, None) => return true,
            (Some((was, before)), Some((is, now))) if was == is => (before, now),
            _ => return false,
        };
        let used = sight.blocks & before.line.map.used();
        let once = now.changes - before.changes <= 1 || used.is_empty();
        let there = |slot| {
            let blocks = before.line.map.side(slot) & sight.blocks;
            let same = now.line.map.side(slot) & sight.blocks == blocks;
            let extent = |known: &Known| known.line.binding.extent(slot);
            same && (blocks.is_empty() || extent(&before) == extent(&now))
        };
        once && Slot::BOTH.into_iter().all(there)
    }

    /// Where in which volume an extent is, as far as is known.
    pub fn owner_of(&self, extent: ExtentId) -> Option<(VolumeId, LogicalExtent)> {
        let has = |known: &&Known| known.line.binding.extents.contains(&Some(extent));
        self.lines.values().find(has).and_then(|known| known.line.binding.owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::blocks::{BlockMap, Location};
    use crate::format::ids::Generation;
    use crate::format::record::Binding;

    const OWNER: Owner = (VolumeId(1), LogicalExtent(7));

    fn line(generation: u32, extents: [Option<u32>; 2], one: BlockSet) -> Line {
        let binding = Binding {
            generation: Generation(generation),
            owner: Some(OWNER),
            extents: extents.map(|extent| extent.map(ExtentId)),
            data_slot: if extents[0].is_some() { Slot::Zero } else { Slot::One },
        };
        let mut map = BlockMap::NONE;
        map.set(BlockSet::range(0..4), Location::At(Slot::Zero));
        map.set(one, Location::At(Slot::One));
        Line { binding, map }
    }

    fn seen(view: u64, lines: Vec<(u32, Line)>) -> LinesSeen {
        let lines = lines.into_iter().map(|(pair, line)| (PairId(pair), line)).collect();
        LinesSeen { view, lines }
    }

    fn both(generation: u32, one: BlockSet) -> Line {
        line(generation, [Some(4), Some(5)], one)
    }

    /// Goal: over all sets of four blocks on the other side before and after, told in one view or
    /// in more: what was read holds where no block of it moved, and not where one may have been
    /// away.
    #[test]
    fn what_moved_does_not_hold() {
        let set = |bits: u32| {
            let blocks = (0..4).filter(|block| bits >> block & 1 == 1);
            blocks.fold(BlockSet::EMPTY, |all, block| all | BlockSet::one(block))
        };
        for (before, after) in (0..16).flat_map(|b| (0..16).map(move |a| (b, a))) {
            for (views, wanted) in [1, 2, 9].into_iter().flat_map(|v| (1..16).map(move |w| (v, w)))
            {
                let first = seen(10, vec![(3, both(2, set(before)))]);
                let mut cache = Cache::new(first, 1);
                let sight = cache.look(OWNER, set(wanted));
                assert!(cache.holds(&sight));
                cache.apply(seen(10 + views, vec![(3, both(2, set(after)))]));
                let still = (before ^ after) & wanted == 0;
                assert_eq!(cache.holds(&sight), still && views == 1, "{before} {after} {views}");
                let again = cache.look(OWNER, set(wanted));
                assert!(cache.holds(&again));
                cache.apply(seen(99, vec![]));
                assert!(cache.holds(&again), "other lines changed");
            }
        }
    }

    /// Goal: a place that another extent has taken, or another pair, or nobody has, or that was
    /// read anew, does not hold; blocks without contents hold while they have none.
    #[test]
    fn places() {
        let none = BlockSet::EMPTY;
        let cached = || Cache::new(seen(10, vec![(3, both(2, none))]), 1);
        let blocks = BlockSet::range(2..6);
        let sight = cached().look(OWNER, blocks);
        assert_eq!(sight.unused(), BlockSet::range(4..6));
        let places: Vec<_> = sight.places().collect();
        assert_eq!(places, [(BlockSet::range(2..4), ExtentId(4))]);
        let told = |lines| {
            let mut cache = cached();
            cache.apply(seen(11, lines));
            (cache.holds(&sight), cache.holds(&cached().look(OWNER, BlockSet::one(5))))
        };
        let free = Line { binding: Binding { owner: None, ..Binding::FREE }, ..Line::FREE };
        assert_eq!(told(vec![(3, line(3, [Some(4), None], none))]), (true, true));
        assert_eq!(told(vec![(3, line(3, [Some(6), Some(5)], none))]), (false, true));
        assert_eq!(told(vec![(3, free), (2, both(1, none))]), (false, false));
        assert_eq!(told(vec![(2, both(1, none)), (3, free)]), (false, false));
        assert_eq!(told(vec![(3, free)]), (false, false));
        let anew = Cache::new(seen(10, vec![(3, both(2, none))]), cached().next_reading());
        assert!(!anew.holds(&sight));
        let nothing = Cache::default().look(OWNER, blocks);
        assert_eq!((nothing.unused(), nothing.places().count()), (blocks, 0));
        assert!(Cache::default().holds(&nothing));
    }

    /// Goal: an extent is found with who has it, and with nobody when it was given up.
    #[test]
    fn owners() {
        let mut cache = Cache::new(seen(10, vec![(3, both(2, BlockSet::EMPTY))]), 1);
        assert_eq!(cache.owner_of(ExtentId(5)), Some(OWNER));
        cache.apply(seen(11, vec![(3, line(4, [Some(4), None], BlockSet::EMPTY))]));
        assert_eq!(cache.owner_of(ExtentId(5)), None);
    }
}
