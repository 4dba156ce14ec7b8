//! What a unit knows: the durable lines of its pairs, the work under way on some of them, volumes
//! and commit domains. Plain data and the bookkeeping on it; nothing here waits or does I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use tokio::sync::Notify;

use super::block::Pending;
use super::domain::Domain;
use super::error::IoError;
use super::extents::ExtentMap;
use super::fullness::{Crossing, Fullness};
use super::grant::{Grant, Step};
use super::pairs::Pairs;
use super::payload::{Ledger, Overlay};
use super::pool::{ExtentPool, Numbers};
use super::request::Seat;
use super::staged::Staged;
use crate::format::blocks::{BlockMap, BlockSet};
use crate::format::home::home_page;
use crate::format::ids::{LogicalExtent, PairId, VolumeId};
use crate::format::record::Binding;
use crate::mutants::{Mutant, mutated};
use crate::txn::GroupId;

/// A settle's hold on a pair (design section 7).
///
/// ```text
///   (none) → Copying → Hardening → (none; the other slot has left the pair)
///              └ a write that comes first cancels → (none)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// Blocks are being copied; nothing has changed yet.
    Copying {
        /// A write wants the pair: give it up once copies under way have ended.
        cancelled: bool,
    },
    /// The group that moves the blocks is being persisted.
    Hardening,
}

/// Someone who waits for blocks of a pair.
#[derive(Debug)]
pub struct Waiter {
    /// Its place in the order of arrival.
    pub ticket: u64,
    /// The blocks that it wants.
    pub blocks: BlockSet,
    /// To wake it.
    pub wake: Rc<Notify>,
}

/// What is under way on a pair. A pair has one of these only while something is.
#[derive(Debug, Default)]
pub struct Work {
    /// Written in the open epoch, and visible.
    pub open: Pending,
    /// Written in the epoch that is being committed.
    pub sealed: Pending,
    /// The pair's binding as the open epoch will make it.
    pub open_binding: Option<Binding>,
    /// The pair's binding as the epoch being committed makes it.
    pub sealed_binding: Option<Binding>,
    /// What is sealed is in doubt, and nobody sees it.
    pub doubt: bool,
    /// Held by requests in flight (the busy rule ‡).
    pub busy: BlockSet,
    /// A settle's hold on the whole pair.
    pub settling: Option<Settling>,
    /// Who waits, in no particular order.
    pub waiters: Vec<Waiter>,
    /// Whether the open epoch lists the pair.
    pub listed: bool,
    /// The bytes of blocks that are in no place of a device yet.
    pub payload: Overlay,
}

impl Work {
    /// Makes ended work as good as new; memory that it holds stays with it.
    pub fn reset(&mut self) {
        assert!(self.is_idle(), "only ended work is used again");
        let mut waiters = std::mem::take(&mut self.waiters);
        waiters.clear();
        *self = Self { waiters, ..Self::default() };
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.payload.is_empty() && self.is_at_rest()
    }

    /// Whether nothing is under way but that bytes are in the journal.
    pub fn is_at_rest(&self) -> bool {
        self.is_unchanged() && self.settling.is_none() && self.waiters.is_empty()
    }

    /// Whether the pair may be settled: no write of any epoch is under way or pending, and all
    /// bytes are in their place.
    pub fn is_quiet(&self) -> bool {
        self.payload.is_empty() && self.is_unchanged()
    }

    /// Whether no write of any epoch is under way or pending.
    fn is_unchanged(&self) -> bool {
        if mutated(Mutant::PendingSettled) {
            return self.busy.is_empty() && self.open_binding.is_none();
        }
        self.open.is_empty()
            && self.sealed.is_empty()
            && self.open_binding.is_none()
            && self.sealed_binding.is_none()
            && self.busy.is_empty()
            && !self.listed
    }

    /// Whether a request for `blocks` has to wait: for whoever holds them, for a commit, for a
    /// settle, or for someone who came earlier.
    pub fn conflicts(&self, blocks: BlockSet, ticket: u64) -> bool {
        self.settling.is_some() && !mutated(Mutant::SettlingIgnored)
            || blocks.meets(self.busy) && !mutated(Mutant::BusyIgnored)
            || blocks.meets(self.sealed.blocks()) && !mutated(Mutant::SealedIgnored)
            || self.waiters.iter().any(|w| w.ticket < ticket && w.blocks.meets(blocks))
    }

    /// Wakes those who wait for any of `blocks`.
    pub fn wake(&self, blocks: BlockSet) {
        for waiter in self.waiters.iter().filter(|waiter| waiter.blocks.meets(blocks)) {
            waiter.wake.notify_one();
        }
    }
}

/// What a volume lives through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It can be used.
    Live,
    /// It takes no requests any more, and its extents are being given back.
    Deleting,
    /// Nothing is left of it but its place, which is no other volume's: handles may remain.
    Gone,
}

/// A volume's place in the unit.
#[derive(Debug)]
pub struct VolumeState {
    /// Its number.
    pub id: VolumeId,
    /// Its name.
    pub name: Rc<str>,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it can be used.
    pub stage: Stage,
    /// How often what was not committed of it was lost while it was served: handles from before
    /// are of no use any more.
    pub life: u32,
    /// The commit domain that it is in now.
    pub domain: usize,
    /// The domain that it has to itself, where it is in no group.
    pub alone: usize,
    /// The pair behind each logical extent.
    pub extents: ExtentMap,
}

impl VolumeState {
    /// A volume of `extents` logical extents without any contents, with a domain to itself.
    pub fn new(id: VolumeId, name: &str, size: u64, extents: u32, alone: usize) -> Self {
        let (stage, extents) = (Stage::Live, ExtentMap::new(extents));
        Self { id, name: name.into(), size, stage, life: 0, domain: alone, alone, extents }
    }

    /// The pair behind a logical extent.
    pub fn pair(&self, logical: LogicalExtent) -> Option<PairId> {
        self.extents.get(logical)
    }

    /// Sets the pair behind a logical extent.
    pub fn set_pair(&mut self, logical: LogicalExtent, pair: Option<PairId>) {
        self.extents.set(logical, pair);
    }
}

/// Everything.
#[derive(Debug)]
pub struct State {
    /// The pairs.
    pub pairs: Pairs,
    /// The free extents.
    pub pool: ExtentPool,
    /// How many of them there shall be.
    pub grant: Grant,
    /// How many data areas volumes may have in all: the pool without the journal reserve.
    pub data_extents: u32,
    /// The pairs that belong to nothing.
    pub free_pairs: Numbers,
    /// The volumes; the index of each stays its own for ever.
    pub volumes: Vec<VolumeState>,
    /// The commit domains; the index of each stays its own for ever.
    pub domains: Vec<Domain>,
    /// How many of them have an epoch in doubt.
    pub doubts: u32,
    /// How full the pool is.
    pub fullness: Fullness,
    /// The pairs whose durable line has a journal area, and when each was last committed to.
    pub journaled: BTreeMap<PairId, u64>,
    /// The pairs none of whose blocks is used.
    pub empty: BTreeSet<PairId>,
    /// Pairs that could not be settled because of a read error; tried again after a while.
    pub shunned: BTreeSet<PairId>,
    /// How often in a row that was all there was to do for those who wait for extents.
    pub fruitless: u32,
    /// Pairs that were tried too often: nobody waits for them, until one can be read again.
    pub hopeless: BTreeSet<PairId>,
    /// The pairs whose durable binding the metadata server was not told yet.
    pub untold: BTreeSet<PairId>,
    /// Some of them are being told, or the server refused them.
    pub telling: bool,
    /// Home pages that are older than the lines.
    pub stale_pages: BTreeSet<u32>,
    /// How much payload there is.
    pub payload: Ledger,
    /// The atomic request that is held.
    pub staged: Option<Staged>,
    /// Wakes those who wait until it is not any more.
    pub staged_ended: Rc<Notify>,
    /// Tickets of those who wait for extents, in order.
    pub space_queue: VecDeque<(u64, Rc<Notify>)>,
    /// Volumes that are being deleted or cut, whose extents come back.
    pub emptying: u32,
    /// Extents that pairs have left and that are not free yet.
    pub leaving: u32,
    /// The next ticket.
    pub next_ticket: u64,
    /// Counts commits, to tell cold pairs from warm ones.
    pub commit_clock: u64,
    /// No more requests are taken.
    pub stopping: bool,
}

/// After so many fruitless attempts to read what a settle must copy, nobody waits for it any more.
const FRUITLESS_MAX: u32 = 100;

impl State {
    /// Nothing but pairs that cannot be read is left to be settled, once more.
    pub fn note_fruitless(&mut self) {
        self.fruitless += 1;
        if self.fruitless > FRUITLESS_MAX {
            self.fruitless = 0;
            self.hopeless.extend(&self.shunned);
        }
    }

    /// A pair could be read, to be settled.
    pub fn note_readable(&mut self, pair: PairId) {
        self.fruitless = 0;
        self.hopeless.remove(&pair);
    }

    /// Whether it makes sense to wait until the shunned pairs can be read: for a while it does.
    pub fn may_read_shunned(&self) -> bool {
        !self.shunned.is_subset(&self.hopeless)
    }

    /// The next place in the order of arrival.
    pub fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// The volumes that can be used, with their indices.
    pub fn live(&self) -> impl Iterator<Item = (usize, &VolumeState)> {
        let volumes = self.volumes.iter().enumerate();
        volumes.filter(|(_, volume)| volume.stage == Stage::Live)
    }

    /// The commit domain of a volume.
    pub fn domain_of(&self, volume: usize) -> &Domain {
        &self.domains[self.volumes[volume].domain]
    }

    /// The commit domain of a volume, to change.
    pub fn domain_of_mut(&mut self, volume: usize) -> &mut Domain {
        &mut self.domains[self.volumes[volume].domain]
    }

    /// Whether a client is still one of its volume.
    pub fn check_seat(&self, seat: Seat) -> Result<(), IoError> {
        let same = self.volumes[seat.volume].life == seat.life || mutated(Mutant::LifeIgnored);
        if same { Ok(()) } else { Err(self.domain_of(seat.volume).went_back()) }
    }

    /// The domain of a group.
    pub fn group_domain(&self, group: GroupId) -> Option<usize> {
        let is_it = |of: &Domain| of.group.as_ref().is_some_and(|of| of.group == group);
        self.domains.iter().position(is_it)
    }

    /// Says so where the pool has crossed a mark.
    pub fn watch_fullness(&mut self) {
        let (used, total) = (self.pool.data_used(), u64::from(self.data_extents));
        match self.fullness.look(used, total) {
            Some(Crossing::Reached(mark)) => tracing::warn!(
                used,
                total,
                "{mark}% of the pool's data extents are in use: trim or delete something before \
                 writes find no space"
            ),
            Some(Crossing::Left(mark)) => {
                tracing::info!(used, total, "less than {mark}% of the data extents are in use");
            }
            None => {}
        }
    }

    /// Whether the pair's domain still takes writes, and so may be settled.
    pub fn may_settle(&self, pair: PairId) -> bool {
        let owner = self.pairs.line(pair).binding.owner;
        let volume =
            self.volumes.iter().find(|volume| owner.is_some_and(|(id, _)| id == volume.id));
        let healthy = volume.is_some_and(|volume| self.domains[volume.domain].failed.is_none());
        !self.shunned.contains(&pair) && healthy
    }

    /// Whether fewer extents are free than that, and the metadata server has no more.
    pub fn is_short(&self, mark: u32) -> bool {
        !self.grant.more_extents() && self.pool.available() < mark
    }

    /// Whether someone waits for extents that only a settle may bring.
    pub fn must_settle(&self) -> bool {
        !self.space_queue.is_empty() && !self.grant.may_supply(self.pool.left())
    }

    /// What is to be said to the metadata server of the grant.
    pub fn grant_step(&self) -> Option<Step> {
        self.grant.step(self.pool.left(), !self.space_queue.is_empty())
    }

    /// Whether extents may come back some day without anyone's doing.
    pub fn may_gain_extents(&self) -> bool {
        let healthy = |domain: &Domain| domain.failed.is_none();
        self.grant.more_extents()
            || self.leaving > 0
            || self.emptying > 0
            || self.may_read_shunned()
            || self.domains.iter().any(|d| healthy(d) && d.newest_dirty().is_some())
            || self
                .journaled
                .keys()
                .chain(&self.empty)
                .any(|pair| self.may_settle(*pair) && !self.hopeless.contains(pair))
    }

    /// Wakes the first of those who wait for extents.
    pub fn wake_space(&self) {
        if let Some((_, wake)) = self.space_queue.front() {
            wake.notify_one();
        }
    }

    /// Wakes whoever waits for anything, to look again.
    pub fn wake_everyone(&self) {
        for (_, work) in self.pairs.working() {
            work.waiters.iter().for_each(|waiter| waiter.wake.notify_one());
        }
        self.space_queue.iter().for_each(|(_, wake)| wake.notify_one());
        self.domains.iter().for_each(|domain| domain.decided.notify_waiters());
    }

    /// Where the newest visible contents of a pair's blocks lie.
    pub fn visible(&self, pair: PairId) -> BlockMap {
        let mut committed = self.pairs.line(pair).map;
        if mutated(Mutant::StagedVisible)
            && let Some(staged) = self.staged.as_ref().and_then(|of| of.pending.get(&pair))
        {
            committed = staged.over(committed);
        }
        match self.pairs.work(pair) {
            Some(_) if mutated(Mutant::PendingNotRead) => committed,
            Some(work) if mutated(Mutant::SealedNotRead) => work.open.over(committed),
            Some(work) if work.doubt => work.open.over(committed),
            Some(work) => work.open.over(work.sealed.over(committed)),
            None => committed,
        }
    }

    /// Whether any of some blocks has been changed since the last commit.
    pub fn is_uncommitted(&self, pair: PairId, blocks: BlockSet) -> bool {
        let work = self.pairs.work(pair);
        work.is_some_and(|work| blocks.meets(work.open.blocks() | work.sealed.blocks()))
    }

    /// Brings what is derived from a pair's durable line up to date with it.
    pub fn line_changed(&mut self, pair: PairId) {
        let line = *self.pairs.line(pair);
        if line.binding.owner.is_some() && line.binding.has_journal_area() {
            self.journaled.insert(pair, self.commit_clock);
        } else {
            self.journaled.remove(&pair);
        }
        if line.binding.owner.is_some() && line.map.used().is_empty() {
            self.empty.insert(pair);
        } else {
            self.empty.remove(&pair);
        }
        self.stale_pages.insert(home_page(pair));
    }

    /// Lets go of blocks that a request held, and wakes those who wait for them.
    pub fn release(&mut self, pair: PairId, blocks: BlockSet) {
        if let Some(work) = self.pairs.work_if_any(pair) {
            assert!(blocks.is_within(work.busy), "only held blocks are let go");
            work.busy -= blocks;
            if !mutated(Mutant::WakeLost) {
                work.wake(blocks);
            }
        }
        self.pairs.tidy(pair);
    }
}
