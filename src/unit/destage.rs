//! Destaging: payload from the journal to its place on the devices, in the background.
//!
//! ```text
//!   choose the oldest ─▶ hold ─▶ write, in order of place ─▶ let go ─▶ flush ─▶ checkpoint
//! ```
//!
//! # Contracts
//!
//! - **Ordering** ‡: a block is held while it is written to its place, as a request would hold it:
//!   nobody else writes there meanwhile. What is superseded before that is not written at all.
//! - **Durability** ‡: the journal has a block until the devices were flushed after it was written.
//! - **Failure**: a device that fails stops the volumes on it, as any failed write does; what the
//!   journal has for it stays there, and reads find it. Other devices' payload goes on.
//! - **Memory**: a buffer of its own, so that this never waits for requests that wait for it.

use std::rc::Rc;

use futures_util::future::join_all;

use super::Inner;
use super::request::Span;
use super::settle::RETRY_AFTER;
use super::state::State;
use crate::env::{Disk, Durability, Env};
use crate::format::blocks::{BlockSet, Location};
use crate::format::ids::{PairId, Sequence};
use crate::journal::payload::{runs, slots_of};
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::Buf;

/// Bytes of the buffer that is destaged from: the longest run that is written at once.
pub(super) const DESTAGE_BYTES: usize = 1 << 20;

/// A block to be destaged, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    device: usize,
    offset: u64,
    pair: PairId,
    block: usize,
    group: Sequence,
}

/// How much to destage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// The older half of all that there is: the rest may still be superseded.
    OlderHalf,
    /// Groups up to this one.
    UpTo(Sequence),
}

/// How a round went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Something was destaged.
    Done,
    /// There is something, and others hold it.
    Held,
    /// There is nothing that could be destaged.
    Nothing,
}

impl<E: Env> Inner<E> {
    /// So many journal slots would a write of so many bytes take, where it may be kept in the
    /// journal at all.
    pub(super) fn payload_slots(&self, bytes: u64) -> Option<usize> {
        let block = self.geometry.block_size();
        let blocks = bytes.div_ceil(u64::from(block)) as usize;
        let slots = blocks * self.slots_of_block();
        let small = bytes > 0 && bytes <= self.config.nvram_write_max;
        (small && slots <= self.journal.payload_room().0 / 2).then_some(slots)
    }

    /// The journal slots that a block takes.
    pub(super) fn slots_of_block(&self) -> usize {
        slots_of(self.geometry.block_size())
    }

    /// Whether a write that was just admitted is kept in memory for the journal: a small one of
    /// whole blocks while there is room. Where there is none it goes to the devices, as it would
    /// without NVRAM: so nothing waits for room, and writers come down to the devices' own speed.
    pub(super) fn is_kept(&self, span: Span) -> bool {
        let block = u64::from(self.geometry.block_size());
        let whole = span.offset.is_multiple_of(block) && span.len.is_multiple_of(block);
        let Some(slots) = self.payload_slots(span.len).filter(|_| whole) else { return false };
        let pending = self.state.borrow().payload.pending() * self.slots_of_block();
        pending + slots <= self.journal.payload_room().1
    }

    /// The task that destages when the journal runs low.
    pub(super) async fn destage_when_wanted(self: Rc<Self>) {
        loop {
            self.destage_wanted.notified().await;
            while !self.stopped.get() && self.wants_destage() {
                match self.destage(Share::OlderHalf).await {
                    Round::Done => {}
                    Round::Held => self.env.sleep(RETRY_AFTER).await,
                    Round::Nothing => break,
                }
            }
            if self.stopped.get() {
                return;
            }
        }
    }

    /// Wakes that task where there is a reason to.
    pub(super) fn look_at_payload(&self) {
        if self.wants_destage() {
            self.destage_wanted.notify_one();
        }
    }

    /// Half of the room for payload is taken, or half of the journal.
    fn wants_destage(&self) -> bool {
        let (most, room) = self.journal.payload_room();
        self.journal.failure().is_none()
            && self.state.borrow().payload.newest().is_some()
            && (room < most - most / 2 || self.journal.is_crowded())
    }

    /// Destages all that is committed now; says whether there was any that could be.
    pub(super) async fn destage_all(&self) -> bool {
        let newest = self.state.borrow().payload.newest();
        let Some(newest) = newest else { return false };
        let mut any = false;
        loop {
            match self.destage(Share::UpTo(newest)).await {
                Round::Done => any = true,
                Round::Held => self.env.sleep(RETRY_AFTER).await,
                Round::Nothing => return any,
            }
        }
    }

    async fn destage(&self, share: Share) -> Round {
        let mut buf = self.destage_lock.lock().await;
        if self.check_owned().is_err() || self.journal.failure().is_some() {
            return Round::Nothing;
        }
        let (items, held) = self.choose_payload(share);
        if items.is_empty() {
            return if held { Round::Held } else { Round::Nothing };
        }
        let per_fill = (buf.len() / self.geometry.block_size() as usize).max(1);
        let mut written = Vec::new();
        for items in items.chunks(per_fill) {
            written.extend(self.write_payload(&mut buf, items).await);
        }
        let devices = written.iter().fold(0, |devices, item| devices | 1 << item.device);
        if !mutated(Mutant::UnlinkedBeforeDestaged) {
            // Who failed is known by its mark, and the others were flushed.
            let _ = self.flush_devices(devices).await;
        }
        {
            let mut state = self.state.borrow_mut();
            for item in written.iter().filter(|item| !self.devices[item.device].failed.get()) {
                let State { pairs, payload, .. } = &mut *state;
                payload.destaged(&mut pairs.work_mut(item.pair).payload, item.block, item.group);
                pairs.tidy(item.pair);
            }
        }
        // Pairs that waited for this may be settled, and groups go.
        self.settle_wanted.notify_one();
        if let Err(error) = self.checkpoint().await {
            self.fail_all(&error.to_string());
        }
        Round::Done
    }

    /// The blocks to destage, in the order of their places; and whether others are held.
    fn choose_payload(&self, share: Share) -> (Vec<Item>, bool) {
        let state = self.state.borrow();
        let mut held = false;
        let mut items = Vec::new();
        for (pair, work) in state.pairs.working() {
            for (block, committed) in work.payload.committed.iter() {
                if matches!(share, Share::UpTo(last) if committed.group > last) {
                    continue;
                }
                let (device, offset) = self.place_of(&state, pair, block);
                if self.devices[device].failed.get() {
                    continue;
                }
                if work.busy.contains(block) {
                    held = true;
                    continue;
                }
                items.push(Item { device, offset, pair, block, group: committed.group });
            }
        }
        if share == Share::OlderHalf && !items.is_empty() {
            items.sort_unstable_by_key(|item| item.group);
            let last = items[(items.len() - 1) / 2].group;
            items.retain(|item| item.group <= last);
        }
        items.sort_unstable();
        (items, held)
    }

    /// Where the committed contents of a block belong.
    fn place_of(&self, state: &State, pair: PairId, block: usize) -> (usize, u64) {
        let line = state.pairs.line(pair);
        let Location::At(slot) = line.map.get(block) else { unreachable!("payload has a side") };
        let extent = line.binding.extent(slot).expect("a side with contents has an extent");
        self.locate(extent, block as u64 * u64::from(self.geometry.block_size()))
    }

    /// Holds the blocks, as far as they are still to be destaged and nobody else holds them, writes
    /// them to their places, and lets them go; returns those that were written.
    async fn write_payload(&self, buf: &mut Buf, items: &[Item]) -> Vec<Item> {
        let block = self.geometry.block_size() as usize;
        let mut taken: Vec<Item> = Vec::new();
        {
            let mut state = self.state.borrow_mut();
            for &item in items {
                let one = BlockSet::one(item.block);
                let Some(work) = state.pairs.work_if_any(item.pair) else { continue };
                let Some(bytes) = work.payload.committed_by(item.block, item.group) else {
                    continue;
                };
                if work.busy.meets(one) || self.devices[item.device].failed.get() {
                    continue;
                }
                let at = taken.len() * block;
                buf.as_mut_slice()[at..at + block].copy_from_slice(bytes);
                if !mutated(Mutant::DestageUnheld) {
                    work.busy |= one;
                }
                taken.push(item);
            }
        }
        let places: Vec<_> = taken.iter().map(|item| (item.device, item.offset)).collect();
        let runs = runs(&places, block as u32);
        let writes = runs.iter().map(|run| {
            let first = taken[run.start];
            let bytes = buf.view(run.start * block..run.end * block);
            self.counters.device_bytes_destaged.add(bytes.len() as u64);
            let disk = &self.devices[first.device].disk;
            disk.write(first.offset, bytes, Durability::Volatile)
        });
        let results = join_all(writes.collect::<Vec<_>>()).await;
        for (run, result) in runs.iter().zip(results) {
            if let Err(error) = result {
                let device = taken[run.start].device;
                let name = self.device_name(device);
                self.device_failed(device, &format!("writing to {name} failed: {error}"));
            }
        }
        if !mutated(Mutant::DestageUnheld) {
            let mut state = self.state.borrow_mut();
            taken.iter().for_each(|item| state.release(item.pair, BlockSet::one(item.block)));
        }
        taken
    }
}

#[cfg(test)]
#[path = "destage_tests.rs"]
mod tests;
