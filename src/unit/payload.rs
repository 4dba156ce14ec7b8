//! Data in the journal: which blocks have their bytes in memory, for the journal or in it, and not
//! yet in their place on a device. Plain data; [`super::destage`] moves the bytes.
//!
//! ```text
//!   open ──seal──▶ sealed ──publish──▶ committed ──destaged, or superseded──▶ (gone)
//!   └ memory only          └ and in the journal, with the group
//! ```
//!
//! The state machine of [`super::block`] is not touched by this: a block whose bytes are here has
//! its side like any other, and only the bytes are not there yet.
//!
//! # Contracts
//!
//! - **Memory**: every block here is in memory, whole, until it is gone: as much as payload may
//!   take of the journal at most.
//! - **Supersession** ‡: committed payload is dropped for what is *committed* later, contents or a
//!   trim; never for what is pending.
//! - **Unlinking** ‡: a group stays linked while a block of it is here ([`Ledger::needs`]).

use std::collections::BTreeMap;

use super::block::Pending;
use super::state::Work;
use crate::format::blocks::BlockSet;
use crate::format::ids::Sequence;
use crate::journal::payload::Bytes;
use crate::mutants::{Mutant, mutated};

/// The bytes of some blocks of a pair.
#[derive(Clone, Debug)]
pub struct Layer<T> {
    blocks: BlockSet,
    bytes: BTreeMap<u16, T>,
}

impl<T> Default for Layer<T> {
    fn default() -> Self {
        Self { blocks: BlockSet::EMPTY, bytes: BTreeMap::new() }
    }
}

impl<T> Layer<T> {
    /// Which blocks.
    pub fn blocks(&self) -> BlockSet {
        self.blocks
    }

    /// Each block with its bytes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.bytes.iter().map(|(block, bytes)| (usize::from(*block), bytes))
    }

    fn get(&self, block: usize) -> Option<&T> {
        self.bytes.get(&(block as u16))
    }

    fn insert(&mut self, block: usize, bytes: T) -> Option<T> {
        self.blocks |= BlockSet::one(block);
        self.bytes.insert(block as u16, bytes)
    }

    /// Drops some blocks; returns what they were.
    fn remove(&mut self, blocks: BlockSet) -> Vec<T> {
        let gone = self.blocks & blocks;
        self.blocks -= gone;
        gone.iter().filter_map(|block| self.bytes.remove(&(block as u16))).collect()
    }
}

/// A block that is committed, and whose bytes no device has.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The group that has it.
    pub group: Sequence,
    /// Its bytes.
    pub bytes: Bytes,
}

/// What a pair has of this.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// Of the open epoch.
    pub open: Layer<Bytes>,
    /// Of the epoch that is being committed.
    pub sealed: Layer<Bytes>,
    /// Committed.
    pub committed: Layer<Committed>,
}

impl Overlay {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.committed.blocks.is_empty() && !self.is_pending()
    }

    /// Whether anything is not committed.
    pub fn is_pending(&self) -> bool {
        !self.open.blocks.is_empty() || !self.sealed.blocks.is_empty()
    }

    /// The blocks whose newest visible contents are here, by what is pending on the pair.
    pub fn seen(&self, open: &Pending, sealed: &Pending) -> BlockSet {
        let committed = self.committed.blocks - sealed.blocks();
        self.open.blocks | ((self.sealed.blocks | committed) - open.blocks())
    }

    /// The bytes of a block that is [seen](Overlay::seen).
    pub fn bytes(&self, block: usize) -> &[u8] {
        let pending = self.open.get(block).or_else(|| self.sealed.get(block));
        let bytes = pending.or_else(|| Some(&self.committed.get(block)?.bytes));
        bytes.expect("a block that is seen here has its bytes here")
    }

    /// The open epoch is being committed from here on.
    pub fn seal(&mut self) {
        assert!(self.sealed.blocks.is_empty(), "one epoch is committed at a time");
        self.sealed = std::mem::take(&mut self.open);
    }

    /// A block's committed contents, where they are here and of that group.
    pub fn committed_by(&self, block: usize, group: Sequence) -> Option<&Bytes> {
        let committed = self.committed.get(block).filter(|committed| committed.group == group);
        committed.map(|committed| &committed.bytes)
    }

    fn pending_layer(&mut self, open: bool) -> &mut Layer<Bytes> {
        if open { &mut self.open } else { &mut self.sealed }
    }
}

impl Work {
    /// The blocks whose newest visible contents are in memory.
    pub fn in_memory(&self) -> BlockSet {
        if mutated(Mutant::PayloadNotRead) {
            return BlockSet::EMPTY;
        }
        self.payload.seen(&self.open, &self.sealed)
    }
}

/// How much payload there is, and whose; kept with every change of an [`Overlay`].
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Blocks with bytes that are not committed.
    pending: usize,
    /// For each group, how many blocks the journal alone has of it.
    needed: BTreeMap<Sequence, usize>,
}

impl Ledger {
    /// Blocks that will be in the journal when they are committed.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Whether the journal alone has anything of a group.
    pub fn needs(&self, group: Sequence) -> bool {
        self.needed.contains_key(&group)
    }

    /// How many blocks of a group the journal alone has.
    pub fn blocks_of(&self, group: Sequence) -> usize {
        self.needed.get(&group).copied().unwrap_or(0)
    }

    /// The newest group that the journal alone has anything of.
    pub fn newest(&self) -> Option<Sequence> {
        self.needed.last_key_value().map(|(group, _)| *group)
    }

    /// A write of an epoch, the open one or the sealed one, has left bytes in memory.
    pub fn keep(&mut self, overlay: &mut Overlay, open: bool, block: usize, bytes: Bytes) {
        let before = overlay.pending_layer(open).insert(block, bytes);
        self.pending += usize::from(before.is_none());
    }

    /// An epoch has changed blocks otherwise: their bytes are on a device, or they have none.
    pub fn drop_kept(&mut self, overlay: &mut Overlay, open: bool, blocks: BlockSet) {
        self.pending -= overlay.pending_layer(open).remove(blocks).len();
    }

    /// All that an epoch, the open one or the sealed one, has kept is forgotten with it.
    pub fn forget(&mut self, overlay: &mut Overlay, open: bool) {
        self.pending -= std::mem::take(overlay.pending_layer(open)).bytes.len();
    }

    /// The sealed epoch becomes a part of the open one, which has changed some blocks since.
    pub fn merge_back(&mut self, overlay: &mut Overlay, changed: BlockSet) {
        let sealed = std::mem::take(&mut overlay.sealed);
        for (block, bytes) in sealed.bytes {
            let block = usize::from(block);
            if changed.contains(block) {
                self.pending -= 1;
            } else {
                overlay.open.insert(block, bytes);
            }
        }
    }

    /// What an epoch has changed of a pair is committed, by that group.
    pub fn publish(&mut self, overlay: &mut Overlay, changed: BlockSet, group: Option<Sequence>) {
        if !mutated(Mutant::SupersededDestaged) {
            self.supersede(overlay, changed);
        }
        let sealed = std::mem::take(&mut overlay.sealed);
        self.pending -= sealed.bytes.len();
        // Without a group only where a mutant publishes too early.
        let group = group.unwrap_or_default();
        for (block, bytes) in sealed.bytes {
            self.put_committed(overlay, usize::from(block), Committed { group, bytes });
        }
    }

    /// The journal alone has a block's committed contents.
    pub fn put_committed(&mut self, overlay: &mut Overlay, block: usize, committed: Committed) {
        *self.needed.entry(committed.group).or_default() += 1;
        if let Some(before) = overlay.committed.insert(block, committed) {
            self.let_go(before.group);
        }
    }

    /// A block's contents, those of that group, are durable in their place; unless others are
    /// committed meanwhile, the journal need not have them any more.
    pub fn destaged(&mut self, overlay: &mut Overlay, block: usize, group: Sequence) {
        if overlay.committed_by(block, group).is_some() {
            self.supersede(overlay, BlockSet::one(block));
        }
    }

    /// Committed contents of some blocks are not needed any more.
    pub fn supersede(&mut self, overlay: &mut Overlay, blocks: BlockSet) {
        overlay.committed.remove(blocks).into_iter().for_each(|gone| self.let_go(gone.group));
    }

    fn let_go(&mut self, group: Sequence) {
        let left = self.needed.get_mut(&group).expect("a block that is here is counted");
        *left -= 1;
        if *left == 0 {
            self.needed.remove(&group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::blocks::Location;
    use crate::format::ids::Slot;

    const BLOCK: usize = 77;

    /// Where a version of a block is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Version {
        Kept(u8),
        Elsewhere,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Step {
        Keep,
        WriteToDevice,
        Trim,
        Seal,
        Publish,
        /// The sealed epoch becomes a part of the open one.
        Merge,
        /// The open epoch is forgotten.
        Forget,
        /// What is chosen now is destaged.
        Choose,
        Destage,
    }

    const STEPS: [Step; 9] = [
        Step::Keep,
        Step::WriteToDevice,
        Step::Trim,
        Step::Seal,
        Step::Publish,
        Step::Merge,
        Step::Forget,
        Step::Choose,
        Step::Destage,
    ];

    /// A block as it should be, beside what is tested.
    #[derive(Default)]
    struct Model {
        open: Option<Version>,
        sealed: Option<Version>,
        committed: Option<(Version, Sequence)>,
        chosen: Option<Sequence>,
        overlay: Overlay,
        ledger: Ledger,
        pending: [Pending; 2],
        counter: u8,
    }

    impl Model {
        /// Takes a step, where it can be taken.
        fn step(&mut self, step: Step) {
            let one = BlockSet::one(BLOCK);
            self.counter += 1;
            match step {
                Step::Keep => {
                    self.open = Some(Version::Kept(self.counter));
                    self.pending[0].set(one, Location::At(Slot::One));
                    let bytes = vec![self.counter].into();
                    self.ledger.keep(&mut self.overlay, true, BLOCK, bytes);
                }
                Step::WriteToDevice | Step::Trim => {
                    let trim = step == Step::Trim;
                    let location = if trim { Location::Unused } else { Location::At(Slot::One) };
                    self.open = Some(Version::Elsewhere);
                    self.pending[0].set(one, location);
                    self.ledger.drop_kept(&mut self.overlay, true, one);
                }
                Step::Seal if self.sealed.is_none() => {
                    self.sealed = self.open.take();
                    self.pending = [Pending::NONE, self.pending[0]];
                    self.overlay.seal();
                }
                Step::Publish => {
                    let group = Sequence(self.counter.into());
                    if let Some(version) = self.sealed.take() {
                        self.committed = Some((version, group));
                    }
                    let changed = std::mem::take(&mut self.pending[1]).blocks();
                    self.ledger.publish(&mut self.overlay, changed, Some(group));
                }
                Step::Merge => {
                    self.open = self.open.or(self.sealed.take());
                    let [open, sealed] = self.pending;
                    self.ledger.merge_back(&mut self.overlay, open.blocks());
                    self.pending = [sealed.then(&open), Pending::NONE];
                }
                Step::Forget => {
                    self.open = None;
                    self.pending[0] = Pending::NONE;
                    self.ledger.forget(&mut self.overlay, true);
                }
                Step::Choose => {
                    self.chosen = self.overlay.committed.get(BLOCK).map(|of| of.group);
                }
                Step::Destage => {
                    let Some(group) = self.chosen.take() else { return };
                    if let Some((version @ Version::Kept(_), of)) = &mut self.committed
                        && *of == group
                    {
                        *version = Version::Elsewhere;
                    }
                    self.ledger.destaged(&mut self.overlay, BLOCK, group);
                }
                Step::Seal => {}
            }
        }

        fn check(&self, path: &[Step]) {
            let committed = self.committed.map(|(version, _)| version);
            let newest = self.open.or(self.sealed).or(committed);
            let seen = self.overlay.seen(&self.pending[0], &self.pending[1]).contains(BLOCK);
            let expected = match newest {
                Some(Version::Kept(number)) => Some(number),
                _ => None,
            };
            let found = seen.then(|| self.overlay.bytes(BLOCK)[0]);
            assert_eq!(found, expected, "{path:?}");
            let kept = |version: &Option<Version>| matches!(version, Some(Version::Kept(_)));
            let pending = [self.open, self.sealed].iter().filter(|of| kept(of)).count();
            assert_eq!(self.ledger.pending(), pending, "{path:?}");
            let needed = self.committed.filter(|(version, _)| kept(&Some(*version)));
            let needed: Vec<_> = needed.map(|(_, group)| (group, 1)).into_iter().collect();
            let counted: Vec<_> = self.ledger.needed.clone().into_iter().collect();
            assert_eq!(counted, needed, "{path:?}");
        }
    }

    /// Goal: over all that can happen to a block in six steps, reads find its newest version
    /// where that is, and the journal is needed for a committed version until that is destaged or a
    /// newer one is committed, and no longer.
    #[test]
    fn whatever_happens_to_a_block() {
        for number in 0..STEPS.len().pow(6) {
            let digit = |place: u32| number / STEPS.len().pow(place) % STEPS.len();
            let path: Vec<Step> = (0..6).map(|place| STEPS[digit(place)]).collect();
            let mut model = Model::default();
            for step in &path {
                model.step(*step);
                model.check(&path);
            }
        }
    }
}
