//! What happens to a block: the state machine of design section 3, as plain functions over plain
//! data.
//!
//! A block's committed contents lie on one side of its pair, or nowhere; contents written since lie
//! on the other side until a commit makes that side count. Nothing is copied.
//!
//! ```text
//!   committed      pending (open epoch)   a write goes to        a commit makes
//!   ─────────      ────────────────────   ───────────────        ──────────────
//!   Unused         none or Unused         the data area          that slot
//!   Slot s         none or Unused         the other side, 1−s    1−s
//!   any            Slot p                 p, in place            p
//!   any            any, being committed   waits
//!   any            any                    (trim: nowhere)        Unused
//! ```

use crate::format::blocks::{BlockMap, BlockSet, Location};
use crate::format::ids::Slot;
use crate::mutants::{Mutant, mutated};

/// Contents of some blocks of a pair that are written and not committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pending {
    blocks: BlockSet,
    at: BlockMap,
}

impl Pending {
    /// Nothing pending.
    pub const NONE: Pending = Pending { blocks: BlockSet::EMPTY, at: BlockMap::NONE };

    /// The blocks that have pending contents, or are pending to be unused.
    pub fn blocks(&self) -> BlockSet {
        self.blocks
    }

    /// The blocks whose pending contents lie on one side.
    pub fn side(&self, slot: Slot) -> BlockSet {
        self.at.side(slot)
    }

    /// The same, but for some blocks.
    #[must_use]
    pub fn without(mut self, blocks: BlockSet) -> Pending {
        self.at.set(blocks, Location::Unused);
        self.blocks -= blocks;
        self
    }

    /// Where the pending contents of a block lie.
    pub fn location(&self, block: usize) -> Location {
        self.at.get(block)
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Notes new contents of some blocks, or that they are to be unused.
    pub fn set(&mut self, blocks: BlockSet, location: Location) {
        self.blocks |= blocks;
        self.at.set(blocks, location);
    }

    /// The runs of blocks with the same new location, as a group's records say them.
    pub fn runs(&self) -> impl Iterator<Item = (std::ops::Range<usize>, Location)> {
        let unused = self.blocks - self.at.used();
        let sides = Slot::BOTH.map(|slot| (self.side(slot), Location::At(slot)));
        sides
            .into_iter()
            .chain([(unused, Location::Unused)])
            .flat_map(|(set, location)| set.runs().map(move |run| (run, location)))
    }

    /// Applies what is pending to a map: what a commit makes of it.
    pub fn apply_to(&self, map: &mut BlockMap) {
        map.set(self.blocks, Location::Unused);
        for slot in Slot::BOTH {
            map.set(self.side(slot), Location::At(slot));
        }
    }

    /// What is pending after something newer, too.
    #[must_use]
    pub fn then(mut self, newer: &Pending) -> Pending {
        self.blocks |= newer.blocks;
        newer.apply_to(&mut self.at);
        self
    }

    /// Where reads find each of some blocks, over what is committed: the pending contents first.
    pub fn over(&self, committed: BlockMap) -> BlockMap {
        let mut seen = committed;
        self.apply_to(&mut seen);
        seen
    }
}

/// For each side, which of some blocks a write puts there.
///
/// `open` is what is pending in the open epoch. Blocks of an epoch that is being committed are not
/// written at all until it is decided; the caller waits for that.
pub fn write_targets(
    blocks: BlockSet,
    committed: BlockMap,
    open: &Pending,
    data_slot: Slot,
) -> [BlockSet; 2] {
    let in_place = Slot::BOTH.map(|slot| blocks & open.side(slot));
    let fresh = blocks - in_place[0] - in_place[1];
    let mut targets = in_place;
    for slot in Slot::BOTH {
        // Never the side that is committed, not even where a trim is pending over it ‡: until that
        // trim is committed, a crash goes back to the committed contents.
        let over =
            if mutated(Mutant::CommittedSideOverwritten) { open.blocks() } else { BlockSet::EMPTY };
        targets[slot.index()] |= (fresh - over) & committed.side(slot.other());
        targets[slot.index()] |= fresh & over & committed.side(slot);
    }
    targets[data_slot.index()] |= fresh - committed.used();
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCATIONS: [Location; 3] =
        [Location::Unused, Location::At(Slot::Zero), Location::At(Slot::One)];
    const BLOCK: usize = 77;

    /// The table of design section 3, one row after the other.
    fn table(committed: Location, pending: Option<Location>, data_slot: Slot) -> Slot {
        match (committed, pending) {
            (_, Some(Location::At(p))) => p,
            (Location::At(s), None | Some(Location::Unused)) => s.other(),
            (Location::Unused, None | Some(Location::Unused)) => data_slot,
        }
    }

    fn pending_of(pending: Option<Location>) -> Pending {
        let mut open = Pending::NONE;
        if let Some(location) = pending {
            open.set(BlockSet::one(BLOCK), location);
        }
        open
    }

    fn map_of(location: Location) -> BlockMap {
        let mut map = BlockMap::NONE;
        map.set(BlockSet::one(BLOCK), location);
        map
    }

    /// Goal: over all states of a block, a write goes where the table says, once, and never over
    /// the committed contents.
    #[test]
    fn writes_follow_the_table() {
        for committed in LOCATIONS {
            for pending in [None].into_iter().chain(LOCATIONS.map(Some)) {
                // Pending contents are never on the committed side: the table's own doing.
                if pending == Some(committed) && committed != Location::Unused {
                    continue;
                }
                for data_slot in Slot::BOTH {
                    let targets = write_targets(
                        BlockSet::one(BLOCK),
                        map_of(committed),
                        &pending_of(pending),
                        data_slot,
                    );
                    let expected = table(committed, pending, data_slot);
                    assert_eq!(targets[expected.index()], BlockSet::one(BLOCK));
                    assert!(targets[expected.other().index()].is_empty());
                    assert_ne!(Location::At(expected), committed, "{pending:?}");
                }
            }
        }
    }

    /// Goal: a read sees pending contents first, and a commit makes them the committed ones.
    #[test]
    fn reads_and_commits_follow_the_table() {
        for committed in LOCATIONS {
            for pending in [None].into_iter().chain(LOCATIONS.map(Some)) {
                let open = pending_of(pending);
                let seen = open.over(map_of(committed));
                assert_eq!(seen.get(BLOCK), pending.unwrap_or(committed));
                assert_eq!(seen.get(BLOCK + 1), Location::Unused);
                let runs: Vec<_> = open.runs().collect();
                let expected: Vec<_> =
                    pending.into_iter().map(|location| (BLOCK..BLOCK + 1, location)).collect();
                assert_eq!(runs, expected);
            }
        }
    }
}
