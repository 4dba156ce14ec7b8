//! Epochs and group commit (design section 4).
//!
//! ```text
//!   seal → drain → flush the devices → harden the group → publish
//!                                       └ the commit point
//! ```
//!
//! Each domain has one task that commits its epochs one after another; flushes only say which
//! epoch they want and wait. So all flushes that arrive during a commit share the next one.
//!
//! # Contracts
//!
//! - **Ordering**: an epoch is not hardened before the one before it is published. Domains do not
//!   wait for each other, but for their turn at the journal.
//! - **Failure**: a failed flush or append stops the domain; the epoch is neither acknowledged nor
//!   tried again.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, join_all, select};

use super::atomic::AtomicError;
use super::block::Pending;
use super::domain::{Epoch, Point};
use super::error::IoError;
use super::policy::SettlePolicy;
use super::state::State;
use super::{Inner, REGION_DEVICE};
use crate::env::{Disk, Env, Moment};
use crate::format::blocks::Location;
use crate::format::ids::{Generation, PairId, Sequence, Slot};
use crate::format::record::{Record, SUM_BYTES};
use crate::journal::payload::Bytes;
use crate::mutants::{Mutant, mutated};
use crate::observe::{Cause, CommitStep, Operation};

impl<E: Env> Inner<E> {
    /// Makes durable all that had been acknowledged when this was called, on all units of the
    /// volume's group.
    pub(super) async fn flush(&self, volume: usize) -> Result<(), IoError> {
        let (newest, domain) = {
            let state = self.state.borrow();
            let domain = state.domain_of(volume);
            if let Some(reason) = &domain.failed {
                return Err(IoError::Latched(Arc::clone(reason)));
            }
            (domain.newest_anywhere(), state.volumes[volume].domain)
        };
        match newest {
            Some(epoch) => self.committed(Point { domain, epoch }).await,
            None => self.check_owned(),
        }
    }

    /// Returns when an epoch is committed, asking for that; refused where nobody does it any more.
    pub(super) async fn committed(&self, point: Point) -> Result<(), IoError> {
        let Point { domain, epoch } = point;
        if mutated(Mutant::NextEpochAcknowledged)
            && self.state.borrow().domains[domain].committed + 1 >= epoch
        {
            // Not at once: who asks again and again would let nothing else run.
            self.env.sleep(Duration::from_nanos(1)).await;
            return self.check_owned();
        }
        let since = self.env.now();
        loop {
            let decided = {
                let mut state = self.state.borrow_mut();
                let domain = &mut state.domains[domain];
                if domain.is_lost(epoch) {
                    return Err(domain.went_back());
                }
                if domain.committed >= epoch {
                    break;
                }
                if let Some(reason) = &domain.failed {
                    return Err(IoError::Latched(Arc::clone(reason)));
                }
                if domain.over {
                    return Err(IoError::Deleted);
                }
                if self.stopped.get() {
                    return Err(IoError::ShuttingDown);
                }
                domain.want(epoch);
                Rc::clone(&domain.decided)
            };
            let _wait = self.waiters.enter(Cause::Commit);
            self.group_news(domain, &decided, since).await?;
        }
        self.check_owned()
    }

    /// The commit task of a domain.
    pub(super) async fn commit_epochs(self: Rc<Self>, domain: usize) {
        loop {
            self.commit_wanted(domain).await;
            if self.is_over(domain) {
                return;
            }
            if self.state.borrow().domains[domain].is_shared() {
                self.take_part(domain).await;
                continue;
            }
            if let Err(reason) = self.commit_once(domain).await {
                tracing::error!(domain, %reason, "a commit failed: no more writes are taken");
                self.warm_void(&reason);
                if self.journal.is_at_server() {
                    self.env.spawn(Rc::clone(&self).learn_whether_replaced());
                }
                let mut state = self.state.borrow_mut();
                state.domains[domain].fail(&reason);
                state.drop_joined(domain, AtomicError::OutcomeUnknown(reason.into()));
                state.wake_everyone();
                return;
            }
        }
    }

    /// Returns when the open epoch should be committed: when someone wants it, or when it has been
    /// open as long as the commit interval allows.
    async fn commit_wanted(&self, domain: usize) {
        loop {
            let (wake, age) = {
                let state = self.state.borrow();
                let of = &state.domains[domain];
                if of.wanted > of.committed || of.is_shared() || self.is_over(domain) {
                    return;
                }
                let since = of.open.since;
                (Rc::clone(&of.wake), since.map(|since| self.env.now().since(since)))
            };
            let (Some(interval), Some(age)) = (self.config.commit_interval, age) else {
                wake.notified().await;
                continue;
            };
            if age >= interval {
                return;
            }
            let timer = Box::pin(self.env.sleep(interval.saturating_sub(age)));
            if let Either::Left(_) = select(timer, Box::pin(wake.notified())).await {}
        }
    }

    /// Whether the domain needs its commit task no more.
    fn is_over(&self, domain: usize) -> bool {
        self.stopped.get() || self.state.borrow().domains[domain].over
    }

    /// Commits the open epoch; the error is why it cannot be.
    async fn commit_once(&self, domain: usize) -> Result<(), String> {
        let started = self.env.now();
        // One that a warm start found sealed is committed first.
        if self.state.borrow().domains[domain].sealed.is_none() {
            self.join_asked(domain);
            self.seal(domain);
        }
        self.note_step(domain, CommitStep::Draining, started);
        if mutated(Mutant::FlushBeforeDrain) {
            self.flush_written(domain).await?;
        }
        if !mutated(Mutant::DrainSkipped) {
            self.drain(domain).await?;
        }
        self.note_step(domain, CommitStep::Flushing, started);
        let sums = self.sums_of(domain);
        let early = mutated(Mutant::DataFlushDropped) || mutated(Mutant::FlushBeforeDrain);
        if sums.is_none() && !early {
            self.flush_written(domain).await?;
        }
        let (mut records, blocks) = self.group_of(domain);
        let slots_each = if blocks.is_empty() { 1 } else { self.slots_of_block() };
        let bytes: usize = records.iter().map(|record| stored_len(record, slots_each)).sum();
        let counted = sealed_of(&self.state.borrow(), domain).record_bytes;
        assert!(bytes <= counted, "a group of {bytes} bytes, {counted} were counted");
        records.extend(sums.into_iter().flatten());
        self.note_step(domain, CommitStep::Hardening, started);
        self.check_owned().map_err(|error| error.to_string())?;
        let mut sequence = None;
        if mutated(Mutant::PublishedBeforeHardened) {
            self.publish(domain, None);
        }
        if !records.is_empty() {
            let number = self.state.borrow().domains[domain].number;
            match self.journal.append(number, records, blocks).await {
                Ok(appended) => {
                    self.ages.note(appended, self.env.now());
                    sequence = Some(appended);
                }
                Err(error) => {
                    self.fail_all(&error.to_string());
                    return Err(error.to_string());
                }
            }
        }
        if !mutated(Mutant::PublishedBeforeHardened) {
            self.publish(domain, sequence);
        } else if let Some(sequence) = sequence {
            self.journal.publish(sequence);
        }
        self.counters.commits.increment();
        self.latencies.record(Operation::Commit, self.env.now().since(started));
        if self.config.settle == SettlePolicy::Always {
            self.settle_wanted.notify_one();
        }
        Ok(())
    }

    /// Says how far the commit has come.
    pub(super) fn note_step(&self, domain: usize, step: CommitStep, started: Moment) {
        self.state.borrow_mut().domains[domain].commit = Some((step, started));
    }

    /// What is asked for is a part of the epoch that is sealed now.
    fn join_asked(&self, domain: usize) {
        let mut state = self.state.borrow_mut();
        match state.asked_in(domain) {
            Some(asked) if asked.members == 1 => drop(state.join_staged(domain, asked.id)),
            Some(_) => state.drop_waiting(domain, AtomicError::Apart),
            None => {}
        }
    }

    /// New writes go to the next epoch from here on.
    pub(super) fn seal(&self, domain: usize) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let domain = &mut state.domains[domain];
        assert!(domain.sealed.is_none(), "one epoch of a domain is committed at a time");
        let next = Epoch { number: domain.open.number + 1, ..Epoch::default() };
        let sealed = std::mem::replace(&mut domain.open, next);
        for &pair in &sealed.pairs {
            let work = state.pairs.work_mut(pair);
            assert!(work.sealed.is_empty() && work.sealed_binding.is_none());
            work.sealed = std::mem::take(&mut work.open);
            work.sealed_binding = work.open_binding.take();
            work.payload.seal();
            work.listed = false;
        }
        domain.sealed = Some(sealed);
        // Those who found the open epoch full find an empty one now.
        domain.decided.notify_waiters();
    }

    /// Waits for the requests that had been admitted.
    pub(super) async fn drain(&self, domain: usize) -> Result<(), String> {
        loop {
            let drained = {
                let state = self.state.borrow();
                let of = &state.domains[domain];
                if let Some(reason) = &of.failed {
                    return Err(reason.to_string());
                }
                if sealed_of(&state, domain).in_flight == 0 {
                    return Ok(());
                }
                Rc::clone(&of.drained)
            };
            drained.notified().await;
        }
    }

    /// Flushes the devices that the sealed epoch wrote to. This comes before its group is
    /// hardened: the group says that the data is there.
    pub(super) async fn flush_written(&self, domain: usize) -> Result<(), String> {
        let devices = sealed_of(&self.state.borrow(), domain).devices;
        self.flush_devices(devices).await
    }

    /// Flushes some devices, a bit each; those without a volatile cache need none.
    pub(super) async fn flush_devices(&self, devices: u64) -> Result<(), String> {
        let volatile =
            self.devices.iter().enumerate().filter(|(number, device)| {
                devices >> number & 1 == 1 && device.disk.volatile_cache()
            });
        // The domains are stopped as soon as one has failed, whatever the others do: what it lost
        // must not be read meanwhile (found by the simulator, seed 3008417).
        let flushes = volatile.map(|(number, device)| {
            let flush = device.disk.flush();
            async move {
                let ended = flush.await;
                if mutated(Mutant::FlushRetried) {
                    // The latch is passed over as well, or it would know better.
                    let _ = device.disk.disk().flush().await;
                    return Ok(());
                }
                ended.map_err(|error| {
                    let what = format!("flushing {} failed: {error}", self.device_name(number));
                    self.device_failed(number, &what);
                    what
                })
            }
        });
        join_all(flushes).await.into_iter().collect()
    }

    /// What the sealed epoch wrote sums up to, where its group and all its data are made durable by
    /// one flush ([`crate::journal::sums`]).
    fn sums_of(&self, domain: usize) -> Option<Vec<Record>> {
        let state = self.state.borrow();
        let sealed = sealed_of(&state, domain);
        if sealed.devices != 1 << REGION_DEVICE || state.joined_in(domain).is_some() {
            return None;
        }
        let block = self.geometry.block_size();
        let mut sums = Vec::new();
        for &pair in &sealed.pairs {
            let Some(work) = state.pairs.work(pair) else { continue };
            // What the journal has is written to its place later.
            if !work.payload.sealed.blocks().is_empty() {
                return None;
            }
            let binding = work.sealed_binding.unwrap_or(state.pairs.line(pair).binding);
            for slot in Slot::BOTH {
                for run in work.sealed.side(slot).runs() {
                    let extent = binding.extent(slot).expect("what was written to is bound");
                    let within = run.start as u64 * u64::from(block);
                    let (_, offset) = self.locate(extent, within);
                    let sum = sealed.sums.of(offset, run.len() as u16, block)?;
                    sums.push(Record::Sum(sum));
                }
            }
        }
        let room = self.journal.group_bytes_max() - sealed.record_bytes;
        (sums.len() * SUM_BYTES <= room).then_some(sums)
    }

    /// What the sealed epoch did, as a group's records, and the bytes of the blocks with payload,
    /// in their order.
    pub(super) fn group_of(&self, domain: usize) -> (Vec<Record>, Vec<Bytes>) {
        let state = self.state.borrow();
        let mut records = Vec::new();
        let mut blocks = Vec::new();
        let joined = state.joined_in(domain);
        for &pair in &sealed_of(&state, domain).pairs {
            // Where a request failed before it wrote anything, nothing is left of it.
            let Some(work) = state.pairs.work(pair) else { continue };
            if let Some(binding) = work.sealed_binding
                && !mutated(Mutant::BindingNotRecorded)
            {
                records.push(Record::Binding { pair, binding });
            }
            let binding = work.sealed_binding.unwrap_or(state.pairs.line(pair).binding);
            let kept = &work.payload.sealed;
            let mut written = work.sealed.without(kept.blocks());
            if let Some(joined) = joined.and_then(|joined| joined.pending.get(&pair)) {
                written = written.then(joined);
            }
            records.extend(place_records(pair, binding.generation, &written));
            for (block, bytes) in kept.iter() {
                let location = work.sealed.location(block);
                let generation = binding.generation;
                records.push(Record::kept(pair, generation, block, location));
                blocks.push(Rc::clone(bytes));
            }
        }
        (records, blocks)
    }

    /// Makes the sealed epoch's contents the committed ones.
    pub(super) fn publish(&self, domain: usize, sequence: Option<Sequence>) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let sealed = state.domains[domain].sealed.take().expect("an epoch is being committed");
        state.commit_clock += 1;
        let joined = state.joined_in(domain).is_some().then(|| state.staged.take()).flatten();
        for &pair in &sealed.pairs {
            let work = state.pairs.work_mut(pair);
            let mut pending = std::mem::take(&mut work.sealed);
            if let Some(joined) = joined.as_ref().and_then(|joined| joined.pending.get(&pair)) {
                work.busy -= joined.blocks();
                pending = pending.then(joined);
            }
            let binding = work.sealed_binding.take();
            work.doubt = false;
            work.wake(pending.blocks());
            state.payload.publish(&mut work.payload, pending.blocks(), sequence);
            let line = state.pairs.line_mut(pair);
            if let Some(binding) = binding {
                line.binding = binding;
                state.untold.insert(pair);
                self.news.notify_one();
            }
            pending.apply_to(&mut line.map);
            assert!(line.is_sound(), "{pair} is committed to what cannot be: {line:?}");
            state.line_changed(pair);
            state.pairs.tidy(pair);
        }
        let domain = &mut state.domains[domain];
        if let Some(table) = &self.warm {
            table.forget(domain.number, sealed.number);
        }
        domain.committed = sealed.number;
        domain.commit = None;
        domain.decided.notify_waiters();
        if let Some(joined) = joined {
            let cut = self.cut_of(domain);
            state.end_staged(&joined, Ok(cut));
        }
        if let Some(sequence) = sequence {
            self.journal.publish(sequence);
        }
        state.wake_space();
        if !state.empty.is_empty() || !state.space_queue.is_empty() {
            self.settle_wanted.notify_one();
        }
        drop(guard);
        self.look_at_payload();
    }
}

/// The bytes of a record, one for each of `slots_each` slots where it has payload.
fn stored_len(record: &Record, slots_each: usize) -> usize {
    let kept = matches!(record, Record::Place { payload: Some(_), .. });
    record.stored_len() * if kept { slots_each } else { 1 }
}

fn sealed_of(state: &State, domain: usize) -> &Epoch {
    state.domains[domain].sealed.as_ref().expect("an epoch is being committed")
}

/// The records of what is pending on a pair.
pub(super) fn place_records(
    pair: PairId,
    generation: Generation,
    pending: &Pending,
) -> impl Iterator<Item = Record> {
    let lost = |location| mutated(Mutant::TrimNotRecorded) && location == Location::Unused;
    let all_but_the_last = || (pending.runs().count() - 1).max(1);
    let lost_run = mutated(Mutant::LastRunNotRecorded);
    let count = if lost_run { all_but_the_last() } else { usize::MAX };
    let runs = pending.runs().filter(move |(_, location)| !lost(*location)).take(count);
    runs.map(move |(run, location)| Record::placed(pair, generation, &run, location))
}
