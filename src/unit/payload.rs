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
use super::state::{State, Work};
use crate::format::blocks::BlockSet;
use crate::format::ids::{PairId, Sequence};
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

/// How much payload there is, and whose.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Blocks with bytes that are not committed.
    pending: usize,
    /// For each group, how many blocks the journal alone has of it.
    needed: BTreeMap<Sequence, usize>,
    /// Bytes that went to the journal and were superseded before they went to a device.
    pub superseded_blocks: u64,
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

    /// Whether the journal alone has anything.
    pub fn needs_any(&self) -> bool {
        !self.needed.is_empty()
    }

    fn add(&mut self, group: Sequence) {
        *self.needed.entry(group).or_default() += 1;
    }

    fn remove(&mut self, group: Sequence) {
        let left = self.needed.get_mut(&group).expect("a block that is here is counted");
        *left -= 1;
        if *left == 0 {
            self.needed.remove(&group);
        }
    }
}

impl State {
    /// A write of an epoch, the open one or the sealed one, has left bytes in memory.
    pub fn keep(&mut self, pair: PairId, open: bool, block: usize, bytes: Bytes) {
        let overlay = &mut self.pairs.work_mut(pair).payload;
        let before = overlay.pending_layer(open).insert(block, bytes);
        self.payload.pending += usize::from(before.is_none());
        if before.is_some() {
            self.payload.superseded_blocks += 1;
        }
        if mutated(Mutant::PayloadDroppedForPending) {
            self.supersede(pair, BlockSet::one(block));
        }
    }

    /// An epoch has changed blocks otherwise: their bytes are on a device, or they have none.
    pub fn drop_kept(&mut self, pair: PairId, open: bool, blocks: BlockSet) {
        let overlay = &mut self.pairs.work_mut(pair).payload;
        let dropped = overlay.pending_layer(open).remove(blocks).len();
        self.payload.pending -= dropped;
        self.payload.superseded_blocks += dropped as u64;
    }

    /// What an epoch has done to a pair is committed, by that group.
    pub fn publish_payload(&mut self, pair: PairId, changed: BlockSet, group: Option<Sequence>) {
        if !mutated(Mutant::SupersededDestaged) {
            self.supersede(pair, changed);
        }
        let overlay = &mut self.pairs.work_mut(pair).payload;
        let sealed = std::mem::take(&mut overlay.sealed);
        self.payload.pending -= sealed.bytes.len();
        // Without a group only where a mutant publishes too early.
        let group = group.unwrap_or_default();
        for (block, bytes) in sealed.bytes {
            self.put_committed(pair, usize::from(block), Committed { group, bytes });
        }
    }

    /// The journal alone has a block's committed contents.
    pub fn put_committed(&mut self, pair: PairId, block: usize, committed: Committed) {
        self.payload.add(committed.group);
        let overlay = &mut self.pairs.work_mut(pair).payload;
        if let Some(before) = overlay.committed.insert(block, committed) {
            self.payload.remove(before.group);
        }
    }

    fn supersede(&mut self, pair: PairId, blocks: BlockSet) {
        let overlay = &mut self.pairs.work_mut(pair).payload;
        for gone in overlay.committed.remove(blocks) {
            self.payload.remove(gone.group);
            self.payload.superseded_blocks += 1;
        }
    }

    /// The contents that a block has, where the journal alone has them, by that group.
    pub fn committed_payload(&self, pair: PairId, block: usize, group: Sequence) -> Option<&Bytes> {
        let committed = self.pairs.work(pair)?.payload.committed.get(block)?;
        (committed.group == group).then_some(&committed.bytes)
    }

    /// A block's contents, those of that group, are durable in their place; unless others are
    /// committed meanwhile, the journal need not have them any more.
    pub fn destaged(&mut self, pair: PairId, block: usize, group: Sequence) {
        if self.committed_payload(pair, block, group).is_some() {
            let overlay = &mut self.pairs.work_mut(pair).payload;
            overlay.committed.remove(BlockSet::one(block));
            self.payload.remove(group);
        }
        self.pairs.tidy(pair);
    }
}
