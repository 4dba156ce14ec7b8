//! Admission ‡: the one instant at which a request joins the open epoch (design section 3).
//!
//! Before it, a request holds nothing that anyone could wait for. At that instant its payload is
//! complete, its blocks become held, its extents bound and room in the epoch's group counted.
//! After it, a request waits only for device I/O. So a commit never waits for a request that waits
//! for the commit.
//!
//! # Contracts
//!
//! - **Ordering**: requests that want a block in common are admitted in their order of arrival;
//!   so are those that wait for extents. An atomic request that holds blocks goes before all who
//!   wait, as they may be waiting for these.
//! - **Cancellation**: a request that still waits may be dropped. One that was admitted must be
//!   finished ([`Admitted::finish`]); dropping it stops its domain, since an epoch with half a
//!   request in it can never be committed.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::Inner;
use super::block::write_targets;
use super::domain::Point;
use super::error::IoError;
use super::grant::Amount;
use super::manage::check_there;
use super::policy::throttle;
use super::request::{Part, Parts, Seat};
use super::state::{Settling, State, Waiter};
use super::warm::Run;
use crate::env::Env;
use crate::format::blocks::{BlockSet, Location};
use crate::format::ids::{Generation, PairId, Slot};
use crate::format::record::{BINDING_BYTES, Binding, PLACE_BYTES};
use crate::mutants::{Mutant, mutated};
use crate::observe::Cause;
use crate::txn::AtomicId;

/// What a request needs beyond blocks.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    data_areas: u32,
    journal_areas: u32,
    record_bytes: usize,
}

/// What a request is admitted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be a part of its epoch.
    Epoch,
    /// To be held for an atomic request, which may hold something already: its epoch only binds
    /// what it needs.
    Atomic {
        /// Whether it does.
        holds: bool,
    },
}

impl Purpose {
    /// The place in the order of arrival that a request has before it waits, or has for good.
    ///
    /// Who waits with a block of an atomic request and for another one that this still wants would
    /// wait for it, and it for them (found by the simulator of groups, seed 884).
    fn ticket(self) -> Option<u64> {
        (self == Purpose::Atomic { holds: true }).then_some(FIRST)
    }
}

/// The ticket of who goes before all others.
const FIRST: u64 = 0;

/// Why a request cannot be admitted now.
enum Blocked {
    /// It never will be.
    Refused(IoError),
    /// Blocks that it wants are held.
    Held,
    /// The open epoch is full; it is being committed.
    EpochFull(Rc<Notify>),
    /// It is not known whether what it would change was committed.
    Doubt(Rc<Notify>),
    /// Extents are missing; a settle is under way, or the metadata server is asked.
    Space,
}

impl Blocked {
    /// What it waits for.
    fn cause(&self) -> Cause {
        match self {
            Self::EpochFull(_) => Cause::Epoch,
            Self::Space => Cause::Extents,
            Self::Held | Self::Doubt(_) | Self::Refused(_) => Cause::Blocks,
        }
    }
}

/// A request in an epoch.
pub struct Admitted<'a, E: Env> {
    unit: &'a Inner<E>,
    /// Its epoch.
    pub at: Point,
    /// Its parts, with pairs and targets.
    pub parts: Parts,
    /// An upper bound of the bytes that its records take.
    pub record_bytes: usize,
    /// Where the next start finds its bytes, while it writes over what is pending.
    pub intent: Cell<Option<Run>>,
    /// What its blocks sum up to, in their order, where that was asked for.
    pub sums: Cell<SmallVec<[u64; 4]>>,
    finished: bool,
}

/// How an admitted request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// All of it was written.
    Written,
    /// All of it, and these are the bytes of its blocks, is to be kept in memory for the journal.
    Kept(&'a [u8]),
    /// All of it was written, and is held for that atomic request, where that has not ended.
    Staged(AtomicId),
    /// Nothing of it was written.
    Nothing,
    /// Nobody can say what of it was written.
    Torn(&'a str),
}

/// A waiting request's place in the order of arrival.
struct Place<'a, E: Env> {
    unit: &'a Inner<E>,
    ticket: u64,
    wake: Rc<Notify>,
    pairs: SmallVec<[PairId; 2]>,
}

impl<E: Env> Inner<E> {
    /// Admits a request, waiting as long as it has to.
    pub(super) async fn admit(
        &self,
        seat: Seat,
        parts: Parts,
        bytes: u64,
    ) -> Result<Admitted<'_, E>, IoError> {
        self.admit_for(seat, parts, bytes, Purpose::Epoch).await
    }

    /// As [`Inner::admit`], for that purpose.
    pub(super) async fn admit_for(
        &self,
        seat: Seat,
        parts: Parts,
        bytes: u64,
        purpose: Purpose,
    ) -> Result<Admitted<'_, E>, IoError> {
        let volume = seat.volume;
        let mut since = None;
        let mut place: Option<Place<'_, E>> = None;
        let mut throttled = false;
        loop {
            self.check_owned()?;
            let delay = if throttled { Duration::ZERO } else { self.throttle_for(volume, &parts) };
            if !delay.is_zero() {
                throttled = true;
                self.settle_wanted.notify_one();
                let _wait = self.waiters.enter(Cause::Throttled);
                self.env.sleep(delay).await;
                continue;
            }
            let mut chosen = parts.clone();
            let ticket = place.as_ref().map(|place| place.ticket).or(purpose.ticket());
            let ticket = ticket.unwrap_or(u64::MAX);
            let blocked = match self.try_admit(seat, &mut chosen, bytes, (ticket, purpose)) {
                Ok((at, record_bytes)) => {
                    let parts = chosen;
                    let (intent, sums) = (Cell::default(), Cell::default());
                    let (unit, finished) = (self, false);
                    return Ok(Admitted { unit, at, parts, record_bytes, intent, sums, finished });
                }
                Err(Blocked::Refused(error)) => return Err(error),
                Err(blocked) => blocked,
            };
            let since = *since.get_or_insert_with(|| self.env.now());
            let place = place.get_or_insert_with(|| Place::new(self, purpose.ticket()));
            // With all blocks that it may change, the same each time: who waits behind it for one
            // of them is woken when it goes, and would not be where it had let go of some meanwhile
            // (found by the simulator, seed 700001509).
            place.enter_pairs(volume, if mutated(Mutant::PlaceShrinks) { &chosen } else { &parts });
            let wake = Rc::clone(&place.wake);
            let _wait = self.waiters.enter(blocked.cause());
            match blocked {
                Blocked::EpochFull(decided) => decided.notified().await,
                Blocked::Doubt(decided) => self.await_outcome(&decided, since).await?,
                Blocked::Space => {
                    // Whoever comes to be the first of those who wait looks at once: it may have
                    // been turned away only because another was the first.
                    if !place.enter_space_queue() {
                        self.settle_wanted.notify_one();
                        self.look_at_grant(&self.state.borrow());
                        wake.notified().await;
                    }
                }
                Blocked::Held | Blocked::Refused(_) => wake.notified().await,
            }
        }
    }

    /// How long a request that will take extents is held back first.
    fn throttle_for(&self, volume: usize, parts: &Parts) -> Duration {
        let state = self.state.borrow();
        if !state.is_short(self.watermarks.low) {
            return Duration::ZERO;
        }
        let needs = parts.iter().any(|part| {
            let pair = state.volumes[volume].pair(part.logical);
            pair.is_none_or(|pair| !state.pairs.binding(pair).has_journal_area())
        });
        if needs { throttle(state.pool.available(), self.watermarks) } else { Duration::ZERO }
    }

    /// Admits a request if that can be done now, and says in which epoch. Nothing has changed
    /// otherwise, but that a settle in its way may have been told to give up.
    fn try_admit(
        &self,
        seat: Seat,
        parts: &mut Parts,
        bytes: u64,
        (ticket, purpose): (u64, Purpose),
    ) -> Result<(Point, usize), Blocked> {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let volume = seat.volume;
        state.check_seat(seat).map_err(Blocked::Refused)?;
        let domain = state.domain_of(volume);
        if let Some(reason) = &domain.failed {
            return Err(Blocked::Refused(IoError::Latched(Arc::clone(reason))));
        }
        if domain.leaving > 0 || domain.returning {
            return Err(Blocked::EpochFull(Rc::clone(&domain.decided)));
        }
        if state.stopping {
            return Err(Blocked::Refused(IoError::ShuttingDown));
        }
        check_there(state, volume, parts, self.geometry).map_err(Blocked::Refused)?;
        for part in parts.iter_mut() {
            part.pair = state.volumes[volume].pair(part.logical);
        }
        // What was never written need not be trimmed.
        parts.retain(|part| part.pair.is_some() || !part.write.is_empty());
        if state.doubts > 0 && state.changes_doubt(parts) {
            return Err(Blocked::Doubt(Rc::clone(&state.domain_of(volume).decided)));
        }
        self.check_blocks(state, parts, ticket)?;
        if purpose != Purpose::Epoch {
            check_unpending(state, volume, parts)?;
        }
        let slots_each = self.payload_slots(bytes).map_or(1, |_| self.slots_of_block());
        let needs = choose_targets(state, parts, slots_each);
        self.check_room(state, volume, needs, bytes)?;
        check_turn(state, parts, ticket)?;
        check_space(state, volume, needs, ticket)?;
        Ok((self.join(state, volume, parts, needs, bytes), needs.record_bytes))
    }

    fn check_blocks(&self, state: &mut State, parts: &Parts, ticket: u64) -> Result<(), Blocked> {
        let short = state.must_settle() || state.is_short(self.watermarks.low);
        let mut held = false;
        for part in parts {
            let Some(work) = part.pair.and_then(|pair| state.pairs.work_if_any(pair)) else {
                continue;
            };
            if let Some(Settling::Copying { cancelled }) = &mut work.settling {
                // Where extents are short the settle goes first, or a busy pair would never be
                // settled.
                *cancelled |= !short;
            }
            held |= work.conflicts(part.blocks(), ticket);
        }
        if held { Err(Blocked::Held) } else { Ok(()) }
    }

    /// The most bytes of records that an epoch of a domain may have.
    pub(super) fn records_max(&self, state: &State, domain: usize) -> u64 {
        // Groups that are prepared stay in the journal until others have voted, who may have no
        // room for their own: all of them together fit what one epoch may take.
        let shared = state.domains.iter().filter(|of| of.is_shared()).count() as u64;
        let sharers = if state.domains[domain].is_shared() { shared } else { 1 };
        self.limits.epoch_record_bytes as u64 / sharers
    }

    fn check_room(
        &self,
        state: &mut State,
        volume: usize,
        needs: Needs,
        bytes: u64,
    ) -> Result<(), Blocked> {
        let limits = &self.limits;
        assert!(
            needs.record_bytes <= limits.epoch_record_bytes,
            "a request fits a group by itself"
        );
        let most = self.records_max(state, state.volumes[volume].domain);
        let set_aside = state.set_aside(state.volumes[volume].domain);
        let domain = state.domain_of_mut(volume);
        let open = &domain.open;
        // What is sealed becomes a part of the open epoch if its transaction is aborted.
        let sealed = domain.sealed.as_ref().filter(|_| domain.is_shared());
        let [records, data] = sealed.map_or([0; 2], |of| [of.record_bytes as u64, of.data_bytes]);
        let [records, data] = [records + set_aside[0], data + set_aside[1]];
        let full = open.record_bytes as u64 + records + needs.record_bytes as u64 > most
            || open.data_bytes + data + bytes > limits.epoch_data_bytes;
        if !full || open.is_clean() && records == 0 && data == 0 {
            return Ok(());
        }
        // An empty one is full only because of what else is to commit with it, and to commit that
        // again and again would help nobody (found by the simulator of groups, seed 2637).
        if !domain.open.is_clean() && !mutated(Mutant::EpochNotWanted) {
            domain.want(domain.open.number);
        }
        Err(Blocked::EpochFull(Rc::clone(&domain.decided)))
    }

    /// The instant itself.
    fn join(
        &self,
        state: &mut State,
        volume: usize,
        parts: &mut Parts,
        needs: Needs,
        bytes: u64,
    ) -> Point {
        for part in parts.iter_mut() {
            bind(state, volume, part);
            let pair = part.pair.expect("a part has a pair once it is bound");
            let work = state.pairs.work_mut(pair);
            work.busy |= part.blocks();
            if !std::mem::replace(&mut work.listed, true) {
                state.domain_of_mut(volume).open.pairs.push(pair);
            }
        }
        if needs.data_areas > 0 {
            state.watch_fullness();
        }
        let index = state.volumes[volume].domain;
        let domain = &mut state.domains[index];
        let open = &mut domain.open;
        if open.since.is_none() && !parts.is_empty() {
            open.since = Some(self.env.now());
            domain.wake.notify_one();
        }
        open.in_flight += 1;
        open.record_bytes += needs.record_bytes;
        open.data_bytes += bytes;
        let filling = open.data_bytes > self.limits.epoch_data_bytes / 2
            || open.record_bytes > self.limits.epoch_record_bytes / 2;
        if filling && !mutated(Mutant::EpochNotWanted) {
            domain.want(domain.open.number);
        }
        let at = Point { domain: index, epoch: domain.open.number };
        if state.is_short(self.watermarks.high) {
            self.settle_wanted.notify_one();
        }
        self.look_at_grant(state);
        at
    }
}

/// An atomic request is written over nothing that is pending: there are only two sides. What is
/// pending is committed first.
fn check_unpending(state: &mut State, volume: usize, parts: &Parts) -> Result<(), Blocked> {
    let pending = |part: &Part| {
        let work = part.pair.and_then(|pair| state.pairs.work(pair));
        work.is_some_and(|work| work.open.blocks().meets(part.blocks()))
    };
    if !parts.iter().any(pending) {
        return Ok(());
    }
    let domain = state.domain_of_mut(volume);
    domain.want(domain.open.number);
    Err(Blocked::EpochFull(Rc::clone(&domain.decided)))
}

/// While someone waits for extents that a settle must bring, later requests for pairs that could be
/// settled wait behind them: or a pair that is always being written would never be quiet enough.
/// Nobody waits behind those whom the metadata server may help: it may be away for long.
fn check_turn(state: &State, parts: &Parts, ticket: u64) -> Result<(), Blocked> {
    let first = state.space_queue.front().filter(|_| state.must_settle());
    let later = first.is_some_and(|(first, _)| *first < ticket);
    let journaled = |part: &Part| part.pair.is_some_and(|pair| state.journaled.contains_key(&pair));
    if later && parts.iter().any(journaled) { Err(Blocked::Space) } else { Ok(()) }
}

/// Whether the extents that a request needs are there, and it is its turn to take them. Notes what
/// is needed where it has to wait for that.
fn check_space(state: &mut State, volume: usize, needs: Needs, ticket: u64) -> Result<(), Blocked> {
    let extents = needs.data_areas + needs.journal_areas;
    let wanted = Amount { extents, data: needs.data_areas.into() };
    let checked = if extents == 0 { Ok(()) } else { check_amount(state, volume, wanted, ticket) };
    if let Err(Blocked::Space) = &checked {
        state.grant.want(wanted);
    }
    checked
}

fn check_amount(
    state: &mut State,
    volume: usize,
    wanted: Amount,
    ticket: u64,
) -> Result<(), Blocked> {
    if wanted.data > state.pool.data_left() {
        if state.grant.more_data() {
            return Err(Blocked::Space);
        }
        // Pairs that are empty, or will be when the open epoch is committed, come back.
        let index = state.volumes[volume].domain;
        let domain = &mut state.domains[index];
        let trimmed = domain.open.pairs.iter().any(|pair| {
            let work = state.pairs.work(*pair);
            work.is_some_and(|w| w.open.over(state.pairs.line(*pair).map).used().is_empty())
        });
        if trimmed {
            domain.want(domain.open.number);
        } else if state.empty.is_empty()
            && state.leaving + state.emptying == 0
            && domain.sealed.is_none()
        {
            return Err(Blocked::Refused(IoError::NoSpace));
        }
        return Err(Blocked::Space);
    }
    let first = state.space_queue.front().is_none_or(|(first, _)| *first == ticket);
    if wanted.extents > state.pool.available() && !state.may_gain_extents() {
        return Err(Blocked::Refused(IoError::NoSpace));
    }
    if first && wanted.extents <= state.pool.available() { Ok(()) } else { Err(Blocked::Space) }
}

/// Decides where each block goes, and what that takes, where each written block may need a record
/// for so many journal slots.
fn choose_targets(state: &State, parts: &mut Parts, slots_each: usize) -> Needs {
    let mut needs = Needs::default();
    for part in parts.iter_mut() {
        let Some(pair) = part.pair else {
            part.targets[Slot::Zero.index()] = part.write;
            needs.data_areas += 1;
            needs.record_bytes += BINDING_BYTES + PLACE_BYTES * (part.write.len() * slots_each + 1);
            continue;
        };
        let map = state.pairs.line(pair).map;
        let binding = state.pairs.binding(pair);
        let work = state.pairs.work(pair);
        let open = work.map(|work| work.open).unwrap_or_default();
        // Where all is unused already there is nothing to do; otherwise the range stays one run.
        if !part.zero.meets(open.over(map).used()) {
            part.zero = BlockSet::EMPTY;
        }
        part.targets = write_targets(part.write, map, &open, binding.data_slot);
        let wants_extent = Slot::BOTH
            .into_iter()
            .any(|s| !part.targets[s.index()].is_empty() && binding.extent(s).is_none());
        needs.journal_areas += u32::from(wants_extent);
        // Blocks that are pending in place add nothing to the group; each other one a run at most,
        // and each run of changed blocks may split another.
        let counted = match work {
            Some(work) if slots_each > 1 => work.payload.open.blocks(),
            _ => open.side(Slot::Zero) | open.side(Slot::One),
        };
        let runs = (part.write - counted).len() * slots_each + part.zero.runs().count();
        if runs > 0 {
            needs.record_bytes += PLACE_BYTES * (runs + part.blocks().runs().count());
        }
        if wants_extent {
            needs.record_bytes += BINDING_BYTES;
        }
    }
    parts.retain(|part| !part.blocks().is_empty());
    needs
}

/// Notes the bytes of the blocks that a part has written, where they are to be kept in memory, and
/// drops those that were kept before.
fn change_payload<'a>(
    state: &mut State,
    part: &Part,
    open: bool,
    kept: &mut impl Iterator<Item = &'a [u8]>,
) {
    let pair = part.pair.expect("an admitted part has a pair");
    let overlay = &mut state.pairs.work_mut(pair).payload;
    if mutated(Mutant::PayloadDroppedForPending) {
        state.payload.supersede(overlay, part.blocks());
    }
    let mut dropped = part.blocks();
    for (block, bytes) in part.write.iter().zip(kept) {
        state.payload.keep(overlay, open, block, bytes.into());
        dropped -= BlockSet::one(block);
    }
    state.payload.drop_kept(overlay, open, dropped);
}

/// Gives a part's pair the extents that it writes to. They become durable with the epoch's group.
fn bind(state: &mut State, volume: usize, part: &mut Part) {
    let binding = match part.pair {
        None => {
            let pair = PairId(state.free_pairs.take().expect("as many pairs as extents"));
            let logical = part.logical;
            part.pair = Some(pair);
            state.volumes[volume].set_pair(logical, Some(pair));
            Binding {
                generation: Generation(state.pairs.line(pair).binding.generation.0 + 1),
                owner: Some((state.volumes[volume].id, logical)),
                extents: [Some(state.pool.take_data()), None],
                data_slot: Slot::Zero,
            }
        }
        Some(pair) => {
            let mut binding = state.pairs.binding(pair);
            let missing = Slot::BOTH
                .into_iter()
                .find(|s| !part.targets[s.index()].is_empty() && binding.extent(*s).is_none());
            let Some(slot) = missing else { return };
            binding.extents[slot.index()] = Some(state.pool.take_journal());
            binding.generation.0 += 1;
            binding
        }
    };
    let pair = part.pair.expect("set above where it was not");
    state.pairs.work_mut(pair).open_binding = Some(binding);
}

impl<E: Env> Admitted<'_, E> {
    /// Ends the request: what was written becomes visible and pending; where nobody can say what
    /// reached the disk, the domain stops ‡.
    pub fn finish(mut self, outcome: Outcome<'_>) {
        self.finished = true;
        let mut guard = self.unit.state.borrow_mut();
        let state = &mut *guard;
        self.unit.warm_record(state, &self, outcome);
        let open = !state.domains[self.at.domain].is_sealed(self.at.epoch);
        let kept = if let Outcome::Kept(bytes) = outcome { bytes } else { &[] };
        let mut kept = kept.chunks_exact(self.unit.geometry.block_size() as usize);
        for part in &self.parts {
            let pair = part.pair.expect("an admitted part has a pair");
            if matches!(outcome, Outcome::Written | Outcome::Kept(_)) {
                let work = state.pairs.work_mut(pair);
                let open = open || mutated(Mutant::WrittenToOpenEpoch);
                let pending = if open { &mut work.open } else { &mut work.sealed };
                for slot in Slot::BOTH {
                    pending.set(part.targets[slot.index()], Location::At(slot));
                }
                pending.set(part.zero, Location::Unused);
                change_payload(state, part, open, &mut kept);
            }
            let held = if let Outcome::Staged(id) = outcome {
                state.hold(id, self.at.domain, part)
            } else {
                false
            };
            if !held {
                state.release(pair, part.blocks());
            }
        }
        let domain = &mut state.domains[self.at.domain];
        let epoch = domain.epoch_mut(self.at.epoch);
        epoch.in_flight -= 1;
        if epoch.in_flight == 0 {
            domain.drained.notify_one();
        }
        if let Outcome::Torn(reason) = outcome
            && !mutated(Mutant::FailedWriteForgotten)
        {
            domain.fail(reason);
            state.wake_everyone();
        }
    }
}

impl<E: Env> Drop for Admitted<'_, E> {
    fn drop(&mut self) {
        if !self.finished
            && let Ok(mut state) = self.unit.state.try_borrow_mut()
        {
            state.domains[self.at.domain].fail("a request was abandoned half-way");
            state.wake_everyone();
        }
    }
}

impl<'a, E: Env> Place<'a, E> {
    /// A place at the end, unless it has that ticket.
    fn new(unit: &'a Inner<E>, ticket: Option<u64>) -> Self {
        let ticket = ticket.unwrap_or_else(|| unit.state.borrow_mut().ticket());
        Self { unit, ticket, wake: Rc::default(), pairs: SmallVec::new() }
    }

    /// Waits with every pair of the request, so that later requests for the same blocks come later.
    /// Whoever waits there again wakes nobody: two that wait for a third would wake each other for
    /// ever.
    fn enter_pairs(&mut self, volume: usize, parts: &Parts) {
        let mut state = self.unit.state.borrow_mut();
        let mut entered = SmallVec::new();
        for part in parts {
            let Some(pair) = state.volumes[volume].pair(part.logical) else { continue };
            let waiters = &mut state.pairs.work_mut(pair).waiters;
            waiters.retain(|waiter| waiter.ticket != self.ticket);
            let wake = Rc::clone(&self.wake);
            waiters.push(Waiter { ticket: self.ticket, blocks: part.blocks(), wake });
            entered.push(pair);
        }
        drop(state);
        self.pairs.retain(|pair| !entered.contains(pair));
        self.leave_pairs();
        self.pairs = entered;
    }

    /// Stops waiting with pairs; those who came later look again.
    fn leave_pairs(&mut self) {
        let mut state = self.unit.state.borrow_mut();
        for pair in self.pairs.drain(..) {
            if let Some(work) = state.pairs.work_if_any(pair) {
                let mine = work.waiters.iter().position(|w| w.ticket == self.ticket);
                let blocks = mine.map_or(BlockSet::EMPTY, |i| work.waiters.swap_remove(i).blocks);
                work.wake(blocks);
            }
            state.pairs.tidy(pair);
        }
    }

    /// Waits for extents in the order of arrival; says whether that has made it the first.
    fn enter_space_queue(&self) -> bool {
        let mut state = self.unit.state.borrow_mut();
        if state.space_queue.iter().any(|(ticket, _)| *ticket == self.ticket) {
            return false;
        }
        let at = state.space_queue.partition_point(|(ticket, _)| *ticket < self.ticket);
        state.space_queue.insert(at, (self.ticket, Rc::clone(&self.wake)));
        at == 0
    }
}

impl<E: Env> Drop for Place<'_, E> {
    fn drop(&mut self) {
        self.leave_pairs();
        let mut state = self.unit.state.borrow_mut();
        state.space_queue.retain(|(ticket, _)| *ticket != self.ticket);
        if state.space_queue.is_empty() {
            state.grant.nobody_waits();
        }
        state.wake_space();
    }
}
