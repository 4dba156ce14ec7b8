//! The nonlinear journal of a storage unit, and the home beside it (design section 5).
//!
//! A group is one transaction's effect on the unit. Groups are appended one after another, each in
//! one persist, and linked in that order; they are unlinked in any order once their effect is in
//! the home.
//!
//! # Contracts
//!
//! - **Durability**: when [`Journal::append`] returns, the group is linked in persisted state; that
//!   is the commit point of a local transaction. When [`Journal::unlink`] returns, the groups are
//!   not; only then are their slots used again.
//! - **Ordering**: appends are persisted strictly one after another.
//! - **Failure**: the first failed persist latches: every later call fails with its reason, and
//!   what was being appended is neither acknowledged nor retried.
//! - **Space**: an append that finds no room waits for an unlink; [`Journal::crowded`] tells the
//!   unit in time that one is wanted. Half of the journal holds any two groups, so that an append
//!   that waits always waits for a group that can be unlinked. The caller keeps groups within
//!   [`Journal::group_bytes_max`], of which two fit at least, and payload ([`payload`]), that of
//!   linked groups included, within [`Journal::payload_room`].

mod carry;
pub mod decide;
mod error;
pub mod identity;
pub mod inspect;
pub mod layout;
mod list;
mod open;
mod pages;
pub mod payload;
pub mod place;
pub mod relocate;
mod replay;
mod slots;
pub mod sums;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::{Mutex, Notify};

pub use error::JournalError;
pub use layout::RegionLayout;
use list::{Linked, List};
pub use open::{Opened, Payloads, RecoveredGroup};
use pages::PageStore;
use payload::Bytes;
pub use replay::{as_if_committed, replay};
use slots::Slots;

use crate::env::Region;
use crate::format::group::{
    Group, GroupState, Link, Parts, SLOT_BYTES, TransactionId, parts_bound,
};
use crate::format::home::LINES_PER_PAGE;
use crate::format::home::Line;
use crate::format::ids::{Incarnation, PairId, PoolId, Sequence, UnitId};
use crate::format::record::Record;
use crate::format::status::{ROOT, StatusEntry, entries_per_page};
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::{Buf, View};

/// A unit's journal and home.
pub struct Journal<R: Region> {
    region: R,
    layout: RegionLayout,
    pool: PoolId,
    unit: UnitId,
    incarnation: Incarnation,
    inner: RefCell<Inner>,
    append_work: Mutex<AppendWork>,
    page_work: Mutex<PageWork>,
    room: Notify,
    crowded: Notify,
    bytes_written: Cell<u64>,
}

struct Inner {
    list: List,
    slots: Slots,
    /// For the root and for each slot, what was last persisted about the group there.
    status: Vec<Option<StatusEntry>>,
    failed: Option<Arc<str>>,
    transactions: u64,
}

struct AppendWork {
    parts: Buf,
    payload: Buf,
}

struct PageWork {
    buf: Buf,
    status: PageStore,
    home: PageStore,
}

/// The most bytes that the records of one group may take, by the journal's size: a quarter of it,
/// and no more than this.
const GROUP_BYTES_MAX: usize = 1 << 20;

/// Bytes of records that a group may have in a journal of so many slots.
pub fn group_bytes_max(slots: u32) -> usize {
    (slots as usize / 4 * SLOT_BYTES / 10 * 9).min(GROUP_BYTES_MAX)
}

/// Bytes of the buffer that appends need.
pub fn append_work_bytes(slots: u32) -> usize {
    parts_bound(group_bytes_max(slots)) * SLOT_BYTES
}

impl<R: Region> Journal<R> {
    /// This start of the unit.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Bytes that a group's records may take together.
    pub fn group_bytes_max(&self) -> usize {
        group_bytes_max(self.layout.slots)
    }

    /// Bytes written to the region since the start.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written.get()
    }

    /// How many groups are linked.
    pub fn linked(&self) -> usize {
        self.inner.borrow().list.len()
    }

    /// Free and total journal slots.
    pub fn slots(&self) -> (usize, usize) {
        let inner = self.inner.borrow();
        (inner.slots.available(), inner.slots.total())
    }

    /// Checks that every slot is accounted for: free, in one linked group, or the next tail. While
    /// an append is under way nothing can be said. Returns what is not so.
    pub fn check_invariants(&self) -> Result<(), String> {
        if self.append_work.try_lock().is_err() {
            return Ok(());
        }
        let inner = self.inner.borrow();
        let linked = inner.list.iter();
        let linked = linked.flat_map(|(_, linked)| linked.slots.iter().chain(&linked.payload));
        let mut taken = BTreeSet::new();
        for slot in linked.copied().chain([inner.list.tail().slot]) {
            if inner.slots.is_free(slot) {
                return Err(format!("journal slot {slot} is free, and a group is in it"));
            }
            if !taken.insert(slot) {
                return Err(format!("two groups are in journal slot {slot}"));
            }
        }
        let payload: usize = inner.list.iter().map(|(_, linked)| linked.payload.len()).sum();
        if payload != inner.list.payload_slots() {
            return Err(format!(
                "{payload} slots with data, {} counted",
                inner.list.payload_slots()
            ));
        }
        let (free, all) = (inner.slots.available(), inner.slots.total());
        if inner.failed.is_none() && taken.len() + free != all {
            return Err(format!("{} journal slots taken and {free} free, of {all}", taken.len()));
        }
        Ok(())
    }

    /// Why the journal takes no more writes, where it does not.
    pub fn failure(&self) -> Option<Arc<str>> {
        self.inner.borrow().failed.clone()
    }

    /// Whether more than half of the journal is taken.
    pub fn is_crowded(&self) -> bool {
        self.inner.borrow().is_crowded()
    }

    /// Returns when the journal may have become crowded, or [`Journal::look_again`] was called.
    pub async fn crowded(&self) {
        self.crowded.notified().await;
    }

    /// Makes [`Journal::crowded`] return.
    pub fn look_again(&self) {
        self.crowded.notify_one();
    }

    /// The identity of a new transaction that this unit decides alone.
    pub fn local_transaction(&self) -> TransactionId {
        let mut inner = self.inner.borrow_mut();
        inner.transactions += 1;
        TransactionId {
            coordinator: self.unit.0,
            incarnation: self.incarnation,
            number: inner.transactions,
        }
    }

    /// So many slots may hold payload.
    pub fn payload_slots_max(&self) -> usize {
        payload::payload_slots_max(self.layout.slots)
    }

    /// So many more slots may hold payload.
    pub fn payload_room(&self) -> usize {
        let held = self.inner.borrow().list.payload_slots();
        self.payload_slots_max().checked_sub(held).expect("payload within its share")
    }

    /// Whether data can be made durable by the flush of the group that names it ([`sums`]): it is
    /// on the device that the journal is on.
    pub fn is_beside_data(&self) -> bool {
        self.region.whole().is_some()
    }

    /// Appends a group, with the bytes of those blocks whose records have payload, in their order;
    /// when this returns all of it is durable and linked, by one persist where the payload is small
    /// ([`payload`]). Where sums are among the records, so is all that was written to the region's
    /// device before. The caller applies the effect and then says so by [`Journal::publish`].
    pub async fn append(
        &self,
        domain: u32,
        transaction: TransactionId,
        state: GroupState,
        records: Vec<Record>,
        blocks: Vec<Bytes>,
    ) -> Result<Sequence, JournalError> {
        let (mut records, payload) = payload::expand(records, &blocks);
        let bytes: usize = records.iter().map(Record::stored_len).sum();
        assert!(bytes <= self.group_bytes_max(), "a group of {bytes} bytes is too large");
        let parts = Parts::of(&records);
        // One append at a time: the tail that this group goes to is the last group's link.
        let mut work = self.append_work.lock().await;
        let mut more = self.take_slots(parts.count() + payload.len()).await?;
        assert!(payload.len() <= self.payload_room(), "payload beyond its share of the journal");
        let tail = self.inner.borrow().list.tail();
        let held = more.split_off(parts.count());
        let payload_pieces =
            self.lay_payload(&mut work.payload, &payload, &held, &mut records).await?;
        let (next, rest) = more.split_last().expect("at least the next tail was taken");
        let mut slots = vec![tail.slot];
        slots.extend_from_slice(rest);
        let link = Link { slot: *next, sequence: Sequence(tail.sequence.0 + 1) };
        let mut pairs: Vec<PairId> = records.iter().filter_map(Record::pair).collect();
        pairs.sort_unstable();
        pairs.dedup();
        let incarnation = self.incarnation;
        let sequence = tail.sequence;
        let group = Group { sequence, incarnation, transaction, domain, state, link, records };
        group.store(self.pool, &parts, &slots, work.parts.as_mut_slice());
        let summed = group.records.iter().any(|record| matches!(record, Record::Sum(_)));
        let mut pieces = self.part_pieces(&mut work.parts, &parts, &slots);
        pieces.extend(payload_pieces);
        if summed {
            self.persist_all(pieces).await?;
        } else {
            self.persist(pieces).await?;
        }
        let mut inner = self.inner.borrow_mut();
        let payload = held;
        let published = false;
        let linked = Linked {
            slots,
            payload,
            link,
            transaction,
            domain,
            bytes,
            summed,
            state,
            pairs,
            published,
        };
        let at = inner.list.append(linked);
        assert_eq!(at, sequence, "nothing else was appended meanwhile");
        Ok(sequence)
    }

    /// Takes the slots for a group's further parts and for the next tail.
    async fn take_slots(&self, count: usize) -> Result<Vec<u32>, JournalError> {
        loop {
            let room = self.room.notified();
            {
                let mut inner = self.inner.borrow_mut();
                if let Some(reason) = &inner.failed {
                    return Err(JournalError::Failed(Arc::clone(reason)));
                }
                if let Some(taken) = inner.slots.take(count) {
                    return Ok(taken);
                }
            }
            room.await;
        }
    }

    /// Lays payload out for its slots and notes in the records where it is; persists what the
    /// buffer has no room for, and returns the writes of the rest.
    async fn lay_payload(
        &self,
        work: &mut Buf,
        payload: &[payload::Piece],
        slots: &[u32],
        records: &mut [Record],
    ) -> Result<Vec<(u64, View)>, JournalError> {
        let batch = work.len() / SLOT_BYTES;
        let mut writes: Vec<(u64, View)> = Vec::new();
        for (pieces, slots) in payload.chunks(batch).zip(slots.chunks(batch)) {
            // What comes before is persisted by itself: nothing names it yet.
            if !writes.is_empty() {
                self.persist(std::mem::take(&mut writes)).await?;
            }
            let out = work.as_mut_slice().chunks_mut(SLOT_BYTES);
            for ((piece, &slot), out) in pieces.iter().zip(slots).zip(out) {
                piece.store(slot, out, records);
            }
            for (i, run) in runs(slots) {
                let view = work.view(i * SLOT_BYTES..(i + run.len()) * SLOT_BYTES);
                writes.push((self.layout.slot_at(run.start), view));
            }
        }
        Ok(writes)
    }

    /// The writes of a group's parts, in whole sectors, neighbours joined.
    fn part_pieces(&self, work: &mut Buf, parts: &Parts, slots: &[u32]) -> Vec<(u64, View)> {
        let sector = self.region.sector() as usize;
        let mut pieces: Vec<(u64, std::ops::Range<usize>)> = Vec::new();
        for (i, (used, &slot)) in parts.used().zip(slots).enumerate() {
            let at = self.layout.slot_at(slot);
            let range = i * SLOT_BYTES..i * SLOT_BYTES + used.next_multiple_of(sector);
            match pieces.last_mut() {
                Some((start, last))
                    if last.end == range.start && *start + last.len() as u64 == at =>
                {
                    last.end = range.end;
                }
                _ => pieces.push((at, range)),
            }
        }
        pieces.into_iter().map(|(at, range)| (at, work.view(range))).collect()
    }

    async fn persist(&self, pieces: Vec<(u64, View)>) -> Result<(), JournalError> {
        self.count(&pieces);
        let result = self.region.persist(pieces).await;
        self.latch(result)
    }

    /// The same, with all that is on the device of the region ([`sums`]).
    async fn persist_all(&self, pieces: Vec<(u64, View)>) -> Result<(), JournalError> {
        self.count(&pieces);
        let result = self.region.persist_all(pieces).await;
        self.latch(result)
    }

    fn count(&self, pieces: &[(u64, View)]) {
        let bytes: usize = pieces.iter().map(|(_, view)| view.len()).sum();
        self.bytes_written.set(self.bytes_written.get() + bytes as u64);
    }

    /// Passes a result on, and remembers the first failure for ever.
    fn latch(&self, result: io::Result<()>) -> Result<(), JournalError> {
        let mut inner = self.inner.borrow_mut();
        if let Err(error) = result
            && inner.failed.is_none()
        {
            inner.failed = Some(error.to_string().into());
            self.room.notify_waiters();
        }
        match &inner.failed {
            Some(reason) => Err(JournalError::Failed(Arc::clone(reason))),
            None => Ok(()),
        }
    }

    /// Notes that a group's effect is in the unit's maps.
    pub fn publish(&self, sequence: Sequence) {
        let mut inner = self.inner.borrow_mut();
        inner.list.publish(sequence);
        // Only now can a checkpoint unlink the group, so this is when to look.
        if inner.is_crowded() {
            self.crowded.notify_one();
        }
    }

    /// The groups that may be unlinked once the home holds their effect: none whose payload is
    /// `needed`.
    pub fn unlinkable(&self, needed: impl Fn(Sequence) -> bool) -> Vec<Sequence> {
        self.inner.borrow().list.unlinkable(needed)
    }

    /// Unlinks groups (ascending), whose effect must be durable in the home already; any of them,
    /// as long as no older group that stays names a pair of theirs (design section 5 ‡).
    pub async fn unlink(&self, chosen: &[Sequence]) -> Result<(), JournalError> {
        let mut work = self.page_work.lock().await;
        let (plan, steps) = {
            let mut guard = self.inner.borrow_mut();
            let inner = &mut *guard;
            if mutated(Mutant::SlotsReusedEarly) {
                let gone = inner.list.iter().filter(|(sequence, _)| chosen.contains(sequence));
                let slots: Vec<u32> =
                    gone.flat_map(|(_, of)| [&of.slots[..], &of.payload].concat()).collect();
                inner.slots.give(&slots);
                self.room.notify_waiters();
            }
            assert!(inner.list.may_unlink(chosen), "a group follows an older one of its pairs");
            let plan = inner.list.plan_unlink(chosen);
            let steps = self.unlink_steps(inner, &plan);
            (plan, steps)
        };
        for step in steps {
            let changes = &plan[step];
            {
                let mut guard = self.inner.borrow_mut();
                let inner = &mut *guard;
                for &(of, link) in changes {
                    let entry = StatusEntry { of, state: inner.state_of(of), link };
                    let index = inner.status_index(of);
                    inner.status[index] = Some(entry);
                }
            }
            let pages = self.status_pages(changes.iter().map(|(of, _)| *of));
            let PageWork { buf, status, .. } = &mut *work;
            self.write_status(status, buf, &pages).await?;
        }
        let mut inner = self.inner.borrow_mut();
        let slots = inner.list.unlink(chosen, &plan);
        if !mutated(Mutant::SlotsReusedEarly) {
            inner.slots.give(&slots);
        }
        self.room.notify_waiters();
        Ok(())
    }

    /// The changes of links in the order of their groups, split where one lies on another page than
    /// the one before. A crash leaves each page old or new, and what is on one page changes at
    /// once: so whatever it leaves of them, no group is gone while an older one of its pairs stays
    /// ‡.
    fn unlink_steps(&self, inner: &Inner, plan: &[(Sequence, Link)]) -> Vec<Range<usize>> {
        let entries = entries_per_page(self.layout.status.page);
        let page = |change: &(Sequence, Link)| inner.status_index(change.0) / entries;
        let mut from = 0;
        let together = |a: &_, b: &_| page(a) == page(b) || mutated(Mutant::UnlinkedInOneGo);
        let steps = plan.chunk_by(together).map(|step| {
            from += step.len();
            from - step.len()..from
        });
        steps.collect()
    }

    /// Persists some status pages as the entries are now.
    async fn write_status(
        &self,
        status: &mut PageStore,
        buf: &mut Buf,
        pages: &[u32],
    ) -> Result<(), JournalError> {
        let entries = entries_per_page(self.layout.status.page);
        let bytes = 2 * pages.len() * self.layout.status.page;
        let written = status
            .write(&self.region, buf, pages, |page, out| {
                let inner = self.inner.borrow();
                let first = page as usize * entries;
                for (i, entry) in inner.status.iter().skip(first).take(entries).enumerate() {
                    if let Some(entry) = entry {
                        entry.store(out, i);
                    }
                }
            })
            .await;
        self.bytes_written.set(self.bytes_written.get() + bytes as u64);
        self.latch(written)
    }

    /// The status pages that hold the entries of some groups, each once, in order.
    fn status_pages(&self, of: impl Iterator<Item = Sequence>) -> Vec<u32> {
        let inner = self.inner.borrow();
        let entries = entries_per_page(self.layout.status.page);
        let mut pages: Vec<u32> = of.map(|s| (inner.status_index(s) / entries) as u32).collect();
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    /// Makes the home pages of some pairs durable as `line` says they are now.
    pub async fn write_home(
        &self,
        pages: &[u32],
        line: impl Fn(PairId) -> Line,
    ) -> Result<(), JournalError> {
        let mut work = self.page_work.lock().await;
        let PageWork { buf, home, .. } = &mut *work;
        let written = home
            .write(&self.region, buf, pages, |page, out| {
                for i in 0..LINES_PER_PAGE {
                    let pair = page * LINES_PER_PAGE as u32 + i as u32;
                    if pair < self.layout.pairs {
                        line(PairId(pair)).store(out, i);
                    }
                }
            })
            .await;
        let bytes = 2 * pages.len() * self.layout.home.page;
        self.bytes_written.set(self.bytes_written.get() + bytes as u64);
        self.latch(written)
    }
}

/// Slots that follow on each other, as runs, each with the place of its first.
fn runs(slots: &[u32]) -> Vec<(usize, std::ops::Range<u32>)> {
    let mut found: Vec<(usize, std::ops::Range<u32>)> = Vec::new();
    for (i, &slot) in slots.iter().enumerate() {
        match found.last_mut() {
            Some((_, run)) if run.end == slot => run.end += 1,
            _ => found.push((i, slot..slot + 1)),
        }
    }
    found
}

impl Inner {
    fn is_crowded(&self) -> bool {
        self.slots.available() < self.slots.total() / 2
    }

    fn status_index(&self, of: Sequence) -> usize {
        if of == ROOT { 0 } else { self.list.head_slot(of) as usize + 1 }
    }

    /// Notes a linked group's state, and its link as it is, for its entry.
    fn note_entry(&mut self, of: Sequence, state: GroupState) {
        let entry = StatusEntry { of, state, link: self.list.link(of) };
        let index = self.status_index(of);
        self.status[index] = Some(entry);
    }

    fn state_of(&self, of: Sequence) -> GroupState {
        if of == ROOT { GroupState::Done } else { self.list.state(of) }
    }
}
