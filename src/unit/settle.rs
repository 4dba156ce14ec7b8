//! Settle: ending an area's journaling by swap or commit (design section 7; '721 claims 1 and 13).
//!
//! ```text
//!   begin → copy the smaller side → flush → harden (one group) → one metadata transaction → free
//!             └ a write cancels               └ Left: the slot has left the pair
//! ```
//!
//! A batch of areas is copied a few at a time and finished together: one group in the journal,
//! then one transaction at the metadata server. Pairs that hold nothing any more are released in
//! the same way.
//!
//! # Contracts
//!
//! - **Ordering**: the copies are flushed before the group that moves the blocks is hardened; that
//!   is durable before the metadata server is told; and an extent is free only when the server has
//!   answered, the readers from before have ended, and the device was told where that is wanted.
//! - **Cancellation**: a pair that a write wants leaves the batch while nothing of it has changed.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, select};

use super::Inner;
use super::copy::{CopyBuffers, passes};
use super::domain::{Domain, Point, SETTLES};
use super::policy::{Candidate, SettlePolicy, Settlement, cheapest, missing, settlement};
use super::readers::followed;
use super::state::{Settling, State, Work};
use crate::env::Env;
use crate::format::blocks::{BlockMap, Location};
use crate::format::home::home_page;
use crate::format::ids::{ExtentId, Generation, PairId, Slot, VolumeId};
use crate::format::record::{Binding, Record};
use crate::mds::error::MdsError;
use crate::mds::records::{PairRecord, Primitive, Told};
use crate::mutants::{Mutant, mutated};
use crate::observe::SettleStep;

/// What a settle did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SettleReport {
    /// Areas that ended by Swap_Data_Journal.
    pub swaps: u64,
    /// Areas that ended by Commit_Data_Journal.
    pub commits: u64,
    /// Pairs that held nothing and were given up.
    pub released: u64,
    /// Blocks copied.
    pub blocks_copied: u64,
}

/// After so long without a request a unit counts as idle.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// How long a pair that could not be read is passed over.
const SHUN_FOR: Duration = Duration::from_millis(100);
/// How long a settle that found every pair in use waits before it looks again.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(1);

/// A pair of a batch, from its beginning on.
struct Item {
    pair: PairId,
    binding: Binding,
    map: BlockMap,
    settlement: Settlement,
}

impl Item {
    /// The pair is to be given up altogether.
    fn is_release(&self) -> bool {
        self.map.used().is_empty()
    }

    /// The pair's binding after the batch, two generations on: that of the swap or commit, and
    /// that of the disassociation.
    fn after(&self) -> Binding {
        self.keeping(self.settlement.keep)
    }

    /// The same where that slot is the one that the pair keeps.
    fn keeping(&self, keep: Slot) -> Binding {
        let generation = Generation(self.binding.generation.0 + 2);
        if self.is_release() {
            return Binding { generation, ..Binding::FREE };
        }
        let mut after = Binding { generation, data_slot: keep, ..self.binding };
        after.extents[keep.other().index()] = None;
        after
    }

    /// The extents that the pair has no more.
    fn freed(&self) -> impl Iterator<Item = ExtentId> {
        let after = self.after();
        let before = self.binding.extents.into_iter().zip(after.extents);
        before.filter_map(|(before, after)| before.filter(|_| after.is_none()))
    }
}

impl<E: Env> Inner<E> {
    /// The task that settles when extents run short, and as the policy says.
    pub(super) async fn settle_when_wanted(self: Rc<Self>) {
        let mut requests = 0;
        loop {
            let idle = self.settle_turn(&mut requests).await;
            self.state.borrow_mut().shunned.clear();
            while !self.stopped.get() && self.journal.failure().is_none() {
                let Some(everything) = self.wants_settle(idle) else { break };
                let batch = self.cheapest_batch(everything, idle);
                if batch.is_empty() {
                    // Only where someone waits is an epoch cut short for its journal space.
                    // What is in the journal keeps pairs from being settled.
                    let destaged = everything && self.destage_all().await;
                    if destaged && !self.cheapest_batch(true, idle).is_empty() {
                        continue;
                    }
                    let waited_for = self.state.borrow().must_settle();
                    if !waited_for || !self.gain_extents().await {
                        break;
                    }
                } else if !self.settle_batch(batch).await {
                    // Nothing could be settled now; what is in the way comes to an end by itself.
                    self.env.sleep(RETRY_AFTER).await;
                }
                // Or those who waited for what was freed would seem to wait for more.
                others_run().await;
                if idle {
                    break;
                }
            }
            if self.stopped.get() {
                return;
            }
        }
    }

    /// Waits until there may be something to settle; says whether that is because no request came
    /// for a while, which only the policy `idle` looks for.
    async fn settle_turn(&self, requests: &mut u64) -> bool {
        if self.config.settle != SettlePolicy::Idle {
            self.settle_wanted.notified().await;
            return false;
        }
        let wanted = Box::pin(self.settle_wanted.notified());
        match select(wanted, Box::pin(self.env.sleep(IDLE_AFTER))).await {
            Either::Left(_) => false,
            Either::Right(_) => {
                let now = self.counters.reads.get() + self.counters.writes.get();
                std::mem::replace(requests, now) == now
            }
        }
    }

    /// Whether anything should be settled, and if so whether that goes for pairs that hold
    /// something, too, and not only for the empty ones.
    fn wants_settle(&self, idle: bool) -> Option<bool> {
        let state = self.state.borrow();
        let waited_for = state.must_settle();
        let short = state.is_short(self.watermarks.high) || waited_for;
        let policy = idle || self.config.settle == SettlePolicy::Always;
        let everything = (short || policy) && !state.journaled.is_empty();
        let wanted = everything || waited_for || !state.empty.is_empty();
        wanted.then_some(everything)
    }

    /// How many pairs to settle next that hold something. Under pressure no more than are missing:
    /// what is settled later costs fewer copies, as more of it has been written over, and what
    /// keeps its journal area costs none.
    fn batch_size(&self, state: &State, idle: bool) -> usize {
        let most = self.config.settle_batch;
        if idle || self.config.settle == SettlePolicy::Always {
            return most;
        }
        let waiting = state.space_queue.len() as u32;
        most.min(missing(state.pool.available(), waiting, self.watermarks) as usize)
    }

    /// The pairs to settle next: all that are empty, then the cheapest ones.
    fn cheapest_batch(&self, everything: bool, idle: bool) -> Vec<PairId> {
        let state = self.state.borrow();
        let most = self.config.settle_batch;
        let quiet = |pair: &PairId| {
            state.pairs.work(*pair).is_none_or(Work::is_quiet) && state.may_settle(*pair)
        };
        let mut batch: Vec<PairId> = state.empty.iter().copied().filter(quiet).take(most).collect();
        if everything {
            let journaled = state.journaled.iter().filter(|(pair, _)| quiet(pair));
            let candidates = journaled.map(|(&pair, &touched)| {
                let line = state.pairs.line(pair);
                let cost = settlement(line.map, line.binding.data_slot).copy.len();
                Candidate { pair, cost, touched }
            });
            let count = self.batch_size(&state, idle).saturating_sub(batch.len());
            let chosen = cheapest(candidates.collect(), count);
            batch.extend(chosen.into_iter().filter(|pair| !state.empty.contains(pair)));
        }
        batch
    }

    /// Does what can be done for those who wait for extents when no pair can be settled now; says
    /// whether to look again. A sector that cannot be read may be readable later, but nobody waits
    /// for that for ever ‡.
    async fn gain_extents(&self) -> bool {
        if self.commit_early().await {
            return true;
        }
        self.state.borrow_mut().note_fruitless();
        if !self.state.borrow().may_read_shunned() {
            if !self.state.borrow().may_gain_extents() {
                // They will be told that there is no room.
                self.state.borrow().wake_everyone();
            }
            return false;
        }
        self.env.sleep(SHUN_FOR).await;
        self.state.borrow_mut().shunned.clear();
        true
    }

    /// Commits what is open, so that its pairs can be settled; says whether anything was. Where
    /// journal space runs out inside an epoch this is still a correct cut, only an early one.
    async fn commit_early(&self) -> bool {
        let dirty: Vec<Point> = {
            let state = self.state.borrow();
            let domains = state.domains.iter().enumerate();
            let healthy = domains.filter(|(_, domain)| domain.failed.is_none());
            let point = |(i, domain): (usize, &Domain)| {
                Some(Point { domain: i, epoch: domain.newest_dirty()? })
            };
            healthy.filter_map(point).collect()
        };
        for &point in &dirty {
            self.counters.early_commits.increment();
            // A domain that fails meanwhile says so to its own clients; one that other units have a
            // part in may wait for them, and nobody else does.
            let committed = pin!(self.committed(point));
            if self.state.borrow().domains[point.domain].is_shared() {
                select(committed, pin!(self.env.sleep(SHUN_FOR))).await;
            } else {
                let _ = committed.await;
            }
        }
        !dirty.is_empty()
    }

    /// Settles all journal areas, of one volume or of all, a batch at a time.
    pub(super) async fn settle_all(
        &self,
        volume: Option<VolumeId>,
    ) -> Result<SettleReport, String> {
        let mut report = SettleReport::default();
        let mut after = None;
        loop {
            let batch: Vec<PairId> = {
                let state = self.state.borrow();
                let rest = state.journaled.keys().filter(|pair| Some(**pair) > after);
                let wanted = rest.filter(|pair| {
                    let owner = state.pairs.line(**pair).binding.owner;
                    volume.is_none_or(|id| owner.is_some_and(|(of, _)| of == id))
                });
                wanted.copied().take(self.config.settle_batch).collect()
            };
            let Some(&last) = batch.last() else { return Ok(report) };
            after = Some(last);
            let did = self.settle_pairs(batch).await?;
            report.swaps += did.swaps;
            report.commits += did.commits;
            report.released += did.released;
            report.blocks_copied += did.blocks_copied;
        }
    }

    /// Settles a batch, for the background task; says whether anything was settled.
    async fn settle_batch(&self, batch: Vec<PairId>) -> bool {
        match self.settle_pairs(batch).await {
            Ok(report) => report.swaps + report.commits + report.released > 0,
            Err(reason) => {
                tracing::error!(reason, "settling failed");
                false
            }
        }
    }

    /// Settles some pairs in one go; those that are in use are passed over.
    pub(super) async fn settle_pairs(&self, pairs: Vec<PairId>) -> Result<SettleReport, String> {
        let mut buffers = self.settle_lock.lock().await;
        let mut report = SettleReport::default();
        if self.stopped.get() {
            return Ok(report);
        }
        let begun = self.begin(&pairs);
        let (areas, started) = (begun.len() as u64, self.env.now());
        let at = |step| (step, areas, started);
        let under_way = self.progress.settle.begin(at(SettleStep::Copying));
        let (items, mut devices) = self.copy_batch(&mut buffers, begun).await;
        let copied = items.iter().map(|item| item.settlement.copy.len() as u64);
        report.blocks_copied = copied.sum();
        under_way.note(at(SettleStep::Hardening));
        if mutated(Mutant::CopyFlushDropped) {
            devices = 0;
        }
        if let Err(reason) = self.flush_devices(devices).await {
            items.iter().for_each(|item| self.release_settling(item.pair));
            return Err(reason);
        }
        let mut items = self.harden_begin(items);
        if items.is_empty() {
            return Ok(report);
        }
        if mutated(Mutant::ServerToldFirst) {
            let primitives: Vec<Primitive> = items.iter().flat_map(primitives).collect();
            let _ = self.mds.transact(&primitives).await;
        }
        self.harden(&mut items).await?;
        for item in items.iter().filter(|item| !item.is_release()) {
            if item.settlement.is_swap(item.binding.data_slot) {
                report.swaps += 1;
            } else {
                report.commits += 1;
            }
        }
        report.released = items.iter().filter(|item| item.is_release()).count() as u64;
        self.counters.swaps.add(report.swaps);
        self.counters.area_commits.add(report.commits);
        self.counters.blocks_copied.add(report.blocks_copied);
        under_way.note(at(SettleStep::Freeing));
        let told = self.tell_settled(&items).await?;
        // Readers may take as long as their lease: nobody else waits for them but who stops.
        let _freeing = self.freeing.read().await;
        drop(under_way);
        drop(buffers);
        self.finish(&items, told).await?;
        Ok(report)
    }

    /// Copies what is to be copied of a batch, and gives the devices written to, a bit each. A pair
    /// that a write wants meanwhile leaves the batch, and so does one that cannot be copied.
    async fn copy_batch(&self, buffers: &mut CopyBuffers, begun: Vec<Item>) -> (Vec<Item>, u64) {
        let mut copied = Vec::new();
        let mut devices = 0;
        let costs = begun.iter().map(|item| item.settlement.copy.len());
        let passes = passes(costs, self.geometry.blocks_per_extent() as usize);
        let mut begun = begun.into_iter();
        for count in passes {
            let turn = begun.by_ref().take(count);
            let (cancelled, pass): (Vec<_>, Vec<_>) =
                turn.partition(|item| self.is_cancelled(item.pair));
            cancelled.iter().for_each(|item| self.release_settling(item.pair));
            let copies = pass.iter().map(|item| (item.binding, item.settlement)).collect();
            let outcomes = self.copy_pairs(buffers, copies).await;
            for (item, outcome) in pass.into_iter().zip(outcomes) {
                match outcome {
                    Ok(written) => {
                        self.state.borrow_mut().note_readable(item.pair);
                        devices |= written;
                        copied.push(item);
                    }
                    Err(reason) => {
                        tracing::error!(pair = %item.pair, reason, "an area could not be settled");
                        self.state.borrow_mut().shunned.insert(item.pair);
                        self.release_settling(item.pair);
                    }
                }
            }
        }
        (copied, devices)
    }

    /// Takes hold of the pairs that are quiet.
    fn begin(&self, pairs: &[PairId]) -> Vec<Item> {
        let mut state = self.state.borrow_mut();
        let mut items = Vec::new();
        for &pair in pairs {
            let line = *state.pairs.line(pair);
            let binding = line.binding;
            let is_candidate = state.journaled.contains_key(&pair) || state.empty.contains(&pair);
            let work = state.pairs.work_mut(pair);
            if is_candidate && work.is_quiet() && work.settling.is_none() {
                work.settling = Some(Settling::Copying { cancelled: false });
                let settlement = settlement(line.map, binding.data_slot);
                items.push(Item { pair, binding, map: line.map, settlement });
            }
            state.pairs.tidy(pair);
        }
        items
    }

    /// Whether a write wants a pair that is being copied.
    fn is_cancelled(&self, pair: PairId) -> bool {
        let state = self.state.borrow();
        let settling = state.pairs.work(pair).and_then(|work| work.settling);
        settling == Some(Settling::Copying { cancelled: true })
    }

    /// Lets go of a pair that is not settled after all: nothing of it has changed.
    fn release_settling(&self, pair: PairId) {
        let mut state = self.state.borrow_mut();
        end_settling(&mut state, pair);
    }

    /// From here on writes to the pairs wait; those that a write wanted before are let go.
    fn harden_begin(&self, items: Vec<Item>) -> Vec<Item> {
        let mut state = self.state.borrow_mut();
        let keep = items.into_iter().filter(|item| {
            let work = state.pairs.work_mut(item.pair);
            if work.settling == Some(Settling::Copying { cancelled: true }) {
                end_settling(&mut state, item.pair);
                return false;
            }
            work.settling = Some(Settling::Hardening);
            true
        });
        keep.collect()
    }

    /// Persists the group that moves the blocks and takes the slots out of the pairs, and makes it
    /// so. From then on the slots are Left: no map names them.
    ///
    /// A group is of one volume's pairs: one of two volumes that has to wait for an older group of
    /// the one would keep later groups of the other linked.
    async fn harden(&self, items: &mut [Item]) -> Result<(), String> {
        let of = |item: &Item| item.binding.owner.map(|(volume, _)| volume);
        items.sort_by_key(of);
        let volumes = items.chunk_by(|a, b| of(a) == of(b));
        for items in volumes.flat_map(|items| items.chunks(self.items_per_group())) {
            let mut records = Vec::new();
            for item in items {
                let generation = item.binding.generation;
                let location = Location::At(item.settlement.keep);
                let runs = item.settlement.copy.runs();
                records
                    .extend(runs.map(|run| Record::placed(item.pair, generation, &run, location)));
                records.push(Record::Binding { pair: item.pair, binding: item.after() });
            }
            let appended = self.journal.append(SETTLES, records, Vec::new());
            let sequence = appended.await.map_err(|error| {
                self.fail_all(&error.to_string());
                error.to_string()
            })?;
            self.ages.note(sequence, self.env.now());
            let mut state = self.state.borrow_mut();
            for item in items {
                leave(&mut state, item);
            }
            self.journal.publish(sequence);
        }
        Ok(())
    }

    /// How many items surely fit one group.
    fn items_per_group(&self) -> usize {
        use crate::format::blocks::BLOCKS_MAX;
        use crate::format::record::{BINDING_BYTES, PLACE_BYTES};
        (self.limits.epoch_record_bytes / (BINDING_BYTES + BLOCKS_MAX / 2 * PLACE_BYTES)).max(1)
    }

    /// Tells the metadata server in one transaction.
    async fn tell_settled(&self, items: &[Item]) -> Result<Told, String> {
        let primitives: Vec<Primitive> = items.iter().flat_map(primitives).collect();
        if mutated(Mutant::LeftSlotReused) {
            self.free(items);
        }
        self.mds.transact(&primitives).await.map_err(|error| self.cannot_free(&error))
    }

    /// What pairs left can neither be given back nor bound again.
    fn cannot_free(&self, error: &MdsError) -> String {
        self.note_refusal(error);
        let reason = format!("the metadata server failed: {error}");
        self.fail_all(&reason);
        reason
    }

    /// Frees what the pairs left, when nobody reads it any more.
    async fn finish(&self, items: &[Item], told: Told) -> Result<(), String> {
        let followed = followed(&self.env, &self.mds, told).await;
        followed.map_err(|error| self.cannot_free(&error))?;
        if !mutated(Mutant::ReadersNotAwaited) {
            self.readers.grace().await;
        }
        self.discard(items.iter().flat_map(Item::freed).collect()).await;
        if !mutated(Mutant::LeftSlotReused) {
            self.free(items);
        }
        Ok(())
    }

    /// What the pairs left is free.
    fn free(&self, items: &[Item]) {
        let mut state = self.state.borrow_mut();
        for item in items {
            for extent in item.freed() {
                state.pool.give(extent);
                state.leaving -= 1;
            }
            if item.is_release() {
                state.pool.give_data();
                state.free_pairs.insert(item.pair.0);
            }
        }
        state.watch_fullness();
        self.look_at_grant(&state);
        if !mutated(Mutant::SpaceWakeLost) {
            state.wake_space();
        }
    }
}

/// Ends when everyone has run who was ready at the call.
async fn others_run() {
    let mut called = false;
    let turn = |context: &mut Context<'_>| {
        if std::mem::replace(&mut called, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    };
    poll_fn(turn).await;
}

/// Makes a hardened settlement so in memory.
fn leave(state: &mut State, item: &Item) {
    let line = state.pairs.line_mut(item.pair);
    assert_eq!(line.binding, item.binding, "a pair that is settled is not changed by others");
    line.map.set(item.settlement.copy, Location::At(item.settlement.keep));
    line.binding = item.after();
    assert!(line.is_sound(), "{} is settled to what cannot be", item.pair);
    if item.is_release() {
        let (id, logical) = item.binding.owner.expect("an empty pair belongs to something");
        let volume = state.volumes.iter_mut().find(|volume| volume.id == id);
        volume.expect("its volume is there").set_pair(logical, None);
    }
    state.leaving += item.freed().count() as u32;
    state.line_changed(item.pair);
    if mutated(Mutant::StalePageForgotten) {
        state.stale_pages.remove(&home_page(item.pair));
    }
    state.untold.remove(&item.pair);
    end_settling(state, item.pair);
}

fn end_settling(state: &mut State, pair: PairId) {
    let work = state.pairs.work_mut(pair);
    work.settling = None;
    work.waiters.iter().for_each(|waiter| waiter.wake.notify_one());
    state.pairs.tidy(pair);
}

/// What the metadata server is told of one settled pair.
fn primitives(item: &Item) -> Vec<Primitive> {
    let owner = item.binding.owner.expect("a settled pair belongs to something");
    let record = |binding: Binding| pair_record(item.pair, owner, &binding);
    if item.is_release() {
        return vec![Primitive::ReleasePair(record(item.after()))];
    }
    let data_slot = item.binding.data_slot;
    let keep = if mutated(Mutant::SwapNotTold) { data_slot } else { item.settlement.keep };
    let generation = Generation(item.binding.generation.0 + 1);
    let settled = Binding { generation, data_slot: keep, ..item.binding };
    let verb = if keep == data_slot {
        Primitive::CommitDataJournal(record(settled))
    } else {
        Primitive::SwapDataJournal(record(settled))
    };
    vec![verb, Primitive::DisassociateJournalExtent(record(item.keeping(keep)))]
}

/// A pair as the metadata server is told of it.
pub(super) fn pair_record(
    pair: PairId,
    owner: (VolumeId, crate::format::ids::LogicalExtent),
    binding: &Binding,
) -> PairRecord {
    PairRecord {
        volume: owner.0,
        logical: owner.1,
        pair,
        generation: binding.generation,
        slots: binding.extents,
        data_slot: binding.data_slot,
    }
}

/// What the metadata server is told of a pair as it is bound: with its journal area, where it has
/// one.
pub(super) fn bound(
    pair: PairId,
    owner: (VolumeId, crate::format::ids::LogicalExtent),
    binding: &Binding,
) -> Primitive {
    let record = pair_record(pair, owner, binding);
    if binding.has_journal_area() {
        Primitive::AssociateDataJournal(record)
    } else {
        Primitive::BindData(record)
    }
}
