//! A warm start: what the process before this one had acknowledged and not committed is pending
//! again, where it lies, and committed before anybody is served (design section 4).
//!
//! A pending block lies on the side where it is not committed, so its place is certain; what the
//! open epoch had bound is taken out of the grant again before anything else is taken from it. So
//! nothing is copied. Only what may have been cut short, was in memory alone, or may have been lost
//! with a flush ([`super::unheard`]) is written: over itself.
//!
//! # Contracts
//!
//! - **Ordering** ‡: nothing that the process before has sent to the devices can still arrive
//!   (their claim, which it holds until its last operation has ended). What is written again is
//!   written before any commit may begin.
//! - **Decided** ‡: what was committed before it could be forgotten is told by its place: contents
//!   that are pending are never where they are committed.
//! - **Whole**: a table that contradicts itself or the flags is not adopted at all.
//! - **Again**: a start that is cut short leaves the table as it was, for the next one.

use std::collections::{BTreeMap, BTreeSet};

use super::Inner;
use super::block::Pending;
use super::domain::Epoch;
use super::error::RecoverError;
use super::recovery::Parts;
use super::state::State;
use super::unheard::verify;
use super::warm::{Left, Table, WarmMemory};
use super::{Unit, commit};
use crate::env::{Disk, Durability, Env, Moment};
use crate::format::blocks::{BlockSet, Location};
use crate::format::home::{Applied, Line};
use crate::format::ids::{Incarnation, LogicalExtent, PairId, Slot, VolumeId};
use crate::format::layout::Geometry;
use crate::format::record::{Binding, Record};
use crate::format::warm::{Entry, Identity, has_payload};
use crate::mds::records::VolumeInfo;

/// What one epoch had pending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    pairs: BTreeMap<PairId, (Pending, Option<Binding>)>,
}

/// What is to be pending again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// By the domain's number, the epochs in their order: two at most, of which the older one was
    /// being committed.
    domains: BTreeMap<u32, Vec<Chain>>,
    /// Blocks to be written to their place again.
    redo: BTreeMap<(PairId, usize), Vec<u8>>,
    /// What the others sum up to that are on a side.
    sums: BTreeMap<(PairId, usize), u64>,
}

/// Whether and what a start inherits.
pub(super) struct Heir {
    /// The table, where there is memory for one.
    pub table: Option<Table>,
    left: Option<Left>,
}

/// A plan while it is made.
struct Planner<'a> {
    lines: &'a [Line],
    block_size: usize,
    chains: BTreeMap<(u32, u64), Chain>,
    /// The newest binding of pairs that have another one than their line.
    bindings: BTreeMap<PairId, Binding>,
    redo: BTreeMap<(PairId, usize), Vec<u8>>,
    sums: BTreeMap<(PairId, usize), u64>,
}

/// What is to be pending again, by the lines as they are and the entries in their order; volumes
/// that are not there any more have nothing. The error is what contradicts what. Pure.
pub(super) fn plan(
    lines: &[Line],
    entries: &[Entry],
    volumes: &[VolumeInfo],
    geometry: Geometry,
) -> Result<Plan, String> {
    let mut planner = Planner {
        lines,
        block_size: geometry.block_size() as usize,
        chains: BTreeMap::new(),
        bindings: BTreeMap::new(),
        redo: BTreeMap::new(),
        sums: BTreeMap::new(),
    };
    for entry in entries {
        let volume = volumes.iter().find(|volume| volume.id.0 == entry.domain);
        let Some(volume) = volume.filter(|volume| !volume.deleting) else { continue };
        let count = geometry.extents_for(volume.size);
        planner.add(entry, |logical| u64::from(logical.0) < count)?;
    }
    planner.finish()
}

impl Heir {
    /// Looks what the process before this one has left. The devices are claimed.
    pub fn look<E: Env>(parts: &Parts<E>, pairs: u32) -> Self {
        let Some(WarmMemory { memory, boot }) = parts.warm.clone() else {
            return Self { table: None, left: None };
        };
        let Parts { pool, unit, geometry, .. } = *parts;
        let table = Table::new(memory, Identity { boot, pool, unit, geometry, pairs });
        let mut heir = Self { left: None, table: None };
        match table.look() {
            Ok(left) => heir.left = Some(left),
            Err(why) => tracing::info!("a cold start: {why}"),
        }
        parts.devices.iter().for_each(|member| member.disk.watch(table.flushing()));
        heir.table = Some(table);
        heir
    }

    /// The table is of no use, nor will it be before this start has begun its own.
    pub fn give_up(&mut self, why: &str) {
        if self.left.take().is_some() {
            tracing::warn!("a cold start: {why}");
            self.table.as_ref().expect("what is left is in it").void();
        }
    }

    /// This is start `next` of a unit whose flags start `last` was the last to change. Comes before
    /// it changes any.
    pub fn follow(&mut self, last: Incarnation, next: Incarnation) {
        match (&self.left, &self.table) {
            (Some(left), Some(table)) if left.follows(last) => table.note_start(last, next),
            _ => self.give_up(OTHER_START),
        }
    }

    /// This is start `own` of a unit whose starts the server counts.
    pub fn follow_counted(&mut self, own: Incarnation) {
        if self.left.as_ref().is_some_and(|left| !left.precedes(own)) {
            self.give_up(OTHER_START);
        }
    }

    /// What is to be pending again; `seen` are the lines if that is committed, from then on.
    pub async fn plan<E: Env>(
        &mut self,
        parts: &Parts<E>,
        lines: &[Line],
        seen: &mut Vec<Line>,
        volumes: &[VolumeInfo],
    ) -> Result<Option<Plan>, RecoverError> {
        let Some(left) = &self.left else { return Ok(None) };
        let plan = plan(lines, &left.entries, volumes, parts.geometry);
        let plan = plan.and_then(|plan| Ok((plan.applied(seen)?, plan)));
        let plan = plan.map_err(|why| format!("the warm table is damaged: {why}"));
        let plan = match plan {
            Ok((applied, plan)) if left.unheard => {
                verify(parts, &plan, &applied).await?.map(|()| (applied, plan))
            }
            plan => plan,
        };
        match plan {
            Ok((applied, plan)) => {
                *seen = applied;
                Ok(Some(plan))
            }
            Err(why) => {
                self.give_up(&why);
                Ok(None)
            }
        }
    }
}

/// Why a table is of no use.
const OTHER_START: &str = "the warm table is not of the start before this one";

impl Planner<'_> {
    fn binding(&self, pair: PairId) -> Result<Binding, String> {
        let line = self.lines.get(pair.0 as usize).ok_or_else(|| format!("no pair {pair}"))?;
        Ok(self.bindings.get(&pair).copied().unwrap_or(line.binding))
    }

    fn add(&mut self, entry: &Entry, there: impl Fn(LogicalExtent) -> bool) -> Result<(), String> {
        let mut data = entry.data.chunks_exact(self.block_size);
        let mut sums = entry.sums.iter();
        let volume = VolumeId(entry.domain);
        for record in &entry.records {
            let Some(pair) = record.pair() else { return Err("a participant".to_owned()) };
            let bytes = if has_payload(record) { data.next() } else { None };
            let before = self.binding(pair)?;
            let chain = self.chains.entry((entry.domain, entry.epoch)).or_default();
            let (pending, bound) = chain.pairs.entry(pair).or_default();
            match *record {
                Record::Binding { binding, .. } => {
                    if binding.generation <= self.lines[pair.0 as usize].binding.generation {
                        continue;
                    }
                    let owner =
                        binding.owner.filter(|(of, logical)| *of == volume && there(*logical));
                    if owner.is_none() || before.owner.is_some_and(|of| Some(of) != owner) {
                        return Err(format!("pair {pair} of {before:?} becomes {binding:?}"));
                    }
                    newest(bound, binding);
                    let known = self.bindings.entry(pair).or_insert(binding);
                    if known.generation < binding.generation {
                        *known = binding;
                    }
                }
                Record::Place { first, count, location, .. } => {
                    if before.owner.is_none_or(|(of, _)| of != volume) {
                        return Err(format!("pair {pair} of {before:?} is not of volume {volume}"));
                    }
                    let blocks = usize::from(first)..usize::from(first) + usize::from(count);
                    for block in blocks.clone() {
                        self.redo.remove(&(pair, block));
                        self.sums.remove(&(pair, block));
                    }
                    if let Some(bytes) = bytes {
                        self.redo.insert((pair, blocks.start), bytes.to_vec());
                    } else if let Location::At(_) = location {
                        let sums = blocks.clone().zip(sums.by_ref());
                        self.sums.extend(sums.map(|(block, sum)| ((pair, block), *sum)));
                    }
                    pending.set(BlockSet::range(blocks), location);
                }
                Record::Participant(_) | Record::Sum(_) => {}
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Plan, String> {
        let mut domains: BTreeMap<u32, Vec<Chain>> = BTreeMap::new();
        for ((domain, _), mut chain) in std::mem::take(&mut self.chains) {
            for (pair, (pending, _)) in &mut chain.pairs {
                let decided = decided(pending, self.lines[pair.0 as usize]);
                *pending = pending.without(decided);
                for block in decided.iter() {
                    self.redo.remove(&(*pair, block));
                    self.sums.remove(&(*pair, block));
                }
                let binding = self.binding(*pair)?;
                let unbacked = |slot: &Slot| {
                    !pending.side(*slot).is_empty() && binding.extent(*slot).is_none()
                };
                if Slot::BOTH.iter().any(unbacked) {
                    return Err(format!("pair {pair} has blocks where it has no extent"));
                }
            }
            chain.pairs.retain(|_, (pending, binding)| !pending.is_empty() || binding.is_some());
            if !chain.pairs.is_empty() {
                domains.entry(domain).or_default().push(chain);
            }
        }
        for (domain, chains) in &mut domains {
            if let [older, newer] = chains.as_mut_slice() {
                leave_to(older, newer);
            }
            let pending = |chain: &Chain, pair| {
                chain.pairs.get(pair).map_or(BlockSet::EMPTY, |(pending, _)| pending.blocks())
            };
            let sound = match chains.as_slice() {
                [older, newer] => {
                    older.pairs.keys().all(|pair| !pending(older, pair).meets(pending(newer, pair)))
                }
                chains => chains.len() == 1,
            };
            if !sound {
                return Err(format!("domain {domain} has {} epochs at a time", chains.len()));
            }
        }
        Ok(Plan { domains, redo: self.redo, sums: self.sums })
    }
}

/// The newer of two bindings of a pair.
fn newest(known: &mut Option<Binding>, binding: Binding) {
    if known.is_none_or(|known| known.generation < binding.generation) {
        *known = Some(binding);
    }
}

/// What the older epoch binds the newer one need not: whichever of their requests ended first.
fn leave_to(older: &Chain, newer: &mut Chain) {
    for (pair, (_, binding)) in &mut newer.pairs {
        let known = older.pairs.get(pair).and_then(|(_, known)| *known);
        *binding = binding.filter(|of| known.is_none_or(|known| known.generation < of.generation));
    }
}

/// The pending blocks that are committed already.
fn decided(pending: &Pending, line: Line) -> BlockSet {
    let same = |slot| pending.side(slot) & line.map.side(slot);
    let unused = pending.blocks() - pending.side(Slot::Zero) - pending.side(Slot::One);
    same(Slot::Zero) | same(Slot::One) | (unused - line.map.used())
}

impl Plan {
    /// How many blocks are to be pending again.
    pub fn blocks(&self) -> usize {
        let chains = self.domains.values().flatten();
        chains.flat_map(|chain| chain.pairs.values()).map(|(of, _)| of.blocks().len()).sum()
    }

    /// The blocks that must be on a side already: where, and what they sum up to.
    pub fn summed(&self) -> impl Iterator<Item = (PairId, usize, Slot, u64)> {
        let chains = self.domains.values().flatten();
        let pending = chains.flat_map(|chain| &chain.pairs);
        pending.flat_map(move |(&pair, (pending, _))| {
            Slot::BOTH.into_iter().flat_map(move |slot| {
                let sum_of =
                    move |block| Some((pair, block, slot, *self.sums.get(&(pair, block))?));
                pending.side(slot).iter().filter_map(sum_of)
            })
        })
    }

    /// The lines as they are if all of it is committed; the error is which extent two pairs have.
    pub fn applied(&self, lines: &[Line]) -> Result<Vec<Line>, String> {
        let mut seen = lines.to_vec();
        for chain in self.domains.values().flatten() {
            for (pair, (_, binding)) in &chain.pairs {
                let Some(binding) = *binding else { continue };
                let record = Record::Binding { pair: *pair, binding };
                if seen[pair.0 as usize].apply(&record) != Applied::Changed {
                    return Err(format!("pair {pair} cannot become {binding:?}"));
                }
            }
        }
        let (mut extents, mut owners) = (BTreeSet::new(), BTreeSet::new());
        for line in &seen {
            let twice = line.binding.extents.into_iter().flatten().find(|of| !extents.insert(*of));
            if let Some(extent) = twice {
                return Err(format!("two pairs have extent {extent}"));
            }
            if line.binding.owner.is_some_and(|owner| !owners.insert(owner)) {
                return Err(format!("two pairs are {:?}", line.binding.owner));
            }
        }
        Ok(seen)
    }

    /// Makes all of it pending. The extents are the pairs' already ([`Plan::applied`]).
    pub fn apply(&self, state: &mut State, devices: u64, now: Moment) {
        for (number, chains) in &self.domains {
            let is_it = |domain: &super::domain::Domain| domain.number == *number;
            let index = state.domains.iter().position(is_it).expect("the volume is there");
            let newest = chains.len() - 1;
            for (place, chain) in chains.iter().enumerate() {
                let sealed = place < newest;
                let mut records = Vec::new();
                for (&pair, &(pending, binding)) in &chain.pairs {
                    let work = state.pairs.work_mut(pair);
                    if sealed {
                        (work.sealed, work.sealed_binding) = (pending, binding);
                    } else {
                        (work.open, work.open_binding) = (pending, binding);
                        work.listed = true;
                    }
                    records.extend(binding.map(|binding| Record::Binding { pair, binding }));
                    let generation = state.pairs.binding(pair).generation;
                    records.extend(commit::place_records(pair, generation, &pending));
                }
                let domain = &mut state.domains[index];
                let epoch = Epoch {
                    number: domain.open.number,
                    pairs: chain.pairs.keys().copied().collect(),
                    record_bytes: records.iter().map(Record::stored_len).sum(),
                    devices,
                    since: Some(now),
                    ..Epoch::default()
                };
                if sealed {
                    domain.open.number += 1;
                    domain.sealed = Some(epoch);
                } else {
                    domain.open = epoch;
                }
            }
        }
    }
}

impl<E: Env> Unit<E> {
    /// Commits what was adopted, which is in its place again.
    pub(super) async fn commit_adopted(&self) -> Result<(), RecoverError> {
        let committed = self.commit(None).await;
        committed.map_err(|error| {
            self.0.stop();
            RecoverError::Adopt(error.to_string())
        })
    }
}

impl<E: Env> Inner<E> {
    /// Writes again what may have been cut short, or was in memory alone.
    pub(super) async fn redo(&self, plan: &Plan) -> Result<(), RecoverError> {
        let mut buf = self.env.buffers().acquire(self.geometry.block_size() as usize).await;
        for ((pair, block), bytes) in &plan.redo {
            let (device, offset) = {
                let state = self.state.borrow();
                let Some(work) = state.pairs.work(*pair) else { continue };
                let open = work.open.blocks().contains(*block);
                let location = if open { work.open } else { work.sealed }.location(*block);
                let Location::At(slot) = location else { continue };
                let extent = state.pairs.binding(*pair).extent(slot).expect("the plan is sound");
                self.locate(extent, (*block * bytes.len()) as u64)
            };
            buf.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
            let disk = &self.devices[device].disk;
            let written = disk.write(offset, buf.view(0..bytes.len()), Durability::Volatile).await;
            written.map_err(|error| RecoverError::Device {
                device: self.device_name(device).to_owned(),
                error,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
