//! Taking back what is pending: an epoch that was not committed becomes a part of the open one, or
//! is forgotten (design section 6).
//!
//! # Contracts
//!
//! - **Merging**: what was sealed stays visible and pending, older than what is open; nothing is
//!   lost. Flushes that wait for it are served by the next commit.
//! - **Forgetting**: what is visible afterwards is the last commit. It is done when no request of
//!   the epoch is in flight; extents that only it had come back when nobody can be reading them.
//!   Requests of clients that were there before fail.

use std::rc::Rc;

use super::Inner;
use super::atomic::AtomicError;
use super::domain::Epoch;
use super::state::State;
use crate::env::Env;
use crate::format::ids::{ExtentId, PairId};

/// What pairs had only in an epoch that is forgotten.
#[derive(Debug, Default)]
struct Freed {
    extents: Vec<ExtentId>,
    /// Pairs that belong to nothing without it.
    pairs: Vec<PairId>,
}

/// Which of a pair's epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Open,
    Sealed,
}

impl<E: Env> Inner<E> {
    /// The sealed epoch of a domain becomes a part of the open one.
    pub(super) fn merge_back(&self, domain: usize) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let of = &mut state.domains[domain];
        let sealed = of.sealed.take().expect("an epoch is sealed");
        of.commit = None;
        for &pair in &sealed.pairs {
            // Where a request failed before it wrote anything, nothing is left of it.
            let Some(work) = state.pairs.work_if_any(pair) else { continue };
            let older = std::mem::take(&mut work.sealed);
            state.payload.merge_back(&mut work.payload, work.open.blocks());
            work.open = older.then(&work.open);
            let binding = work.sealed_binding.take();
            work.open_binding = work.open_binding.or(binding);
            work.wake(older.blocks());
            if !std::mem::replace(&mut work.listed, true) {
                of.open.pairs.push(pair);
            }
        }
        of.open.absorb(&sealed);
        if of.wanted >= sealed.number {
            // Whoever waits for it waits for the open one now.
            of.wanted = of.wanted.max(of.open.number);
        }
        of.decided.notify_waiters();
        of.wake.notify_one();
    }

    /// The group has lost what a member had pending: forgets what is pending here, too, and goes on
    /// in that life.
    pub(super) async fn go_back(&self, domain: usize, life: u32) {
        self.counters.resets.increment();
        {
            let mut guard = self.state.borrow_mut();
            let state = &mut *guard;
            state.domains[domain].returning = true;
            let members = state.volumes.iter_mut().filter(|volume| volume.domain == domain);
            members.for_each(|volume| volume.life += 1);
            state.wake_everyone();
        }
        self.all_ended(domain).await;
        let epoch = {
            let mut state = self.state.borrow_mut();
            let lost = state.domains[domain].went_back();
            state.drop_waiting(domain, AtomicError::Io(lost));
            let of = &mut state.domains[domain];
            assert!(of.sealed.is_none(), "no transaction is under way");
            let next = Epoch { number: of.open.number + 1, ..Epoch::default() };
            of.lost.push(of.committed + 1..=of.open.number);
            std::mem::replace(&mut of.open, next)
        };
        self.forget_epoch(&epoch, Side::Open).await;
        let mut state = self.state.borrow_mut();
        let of = &mut state.domains[domain];
        let membership = of.group.as_mut().expect("it is a group's");
        membership.standing.life = life;
        tracing::warn!(
            group = %membership.name,
            life,
            "the group went back to its last cut, because a unit of it lost what was not committed"
        );
        of.decided.notify_waiters();
        state.wake_everyone();
    }

    /// Forgets the sealed epoch of a domain, which a recovery found in doubt.
    pub(super) async fn drop_sealed(&self, domain: usize) {
        let epoch = {
            let mut state = self.state.borrow_mut();
            let of = &mut state.domains[domain];
            of.commit = None;
            of.sealed.take().expect("an epoch is in doubt")
        };
        self.forget_epoch(&epoch, Side::Sealed).await;
        self.state.borrow().wake_everyone();
    }

    /// Returns when no request of a domain is in flight.
    async fn all_ended(&self, domain: usize) {
        loop {
            let drained = {
                let state = self.state.borrow();
                let of = &state.domains[domain];
                if of.open.in_flight == 0 {
                    return;
                }
                Rc::clone(&of.drained)
            };
            drained.notified().await;
        }
    }

    async fn forget_epoch(&self, epoch: &Epoch, side: Side) {
        let freed = {
            let mut state = self.state.borrow_mut();
            let mut freed = Freed::default();
            for &pair in &epoch.pairs {
                forget_pair(&mut state, pair, side, &mut freed);
            }
            state.leaving += freed.extents.len() as u32;
            freed
        };
        if !freed.extents.is_empty() {
            self.readers.grace().await;
            self.discard(freed.extents.clone()).await;
        }
        let mut state = self.state.borrow_mut();
        for extent in freed.extents {
            state.pool.give(extent);
            state.leaving -= 1;
        }
        for pair in freed.pairs {
            state.pool.give_data();
            state.free_pairs.insert(pair.0);
        }
        state.watch_fullness();
        self.look_at_grant(&state);
        state.wake_space();
    }
}

fn forget_pair(state: &mut State, pair: PairId, side: Side, freed: &mut Freed) {
    let line = state.pairs.line(pair).binding;
    let Some(work) = state.pairs.work_if_any(pair) else { return };
    let (pending, binding) = match side {
        Side::Open => {
            work.listed = false;
            state.payload.forget(&mut work.payload, true);
            (std::mem::take(&mut work.open), work.open_binding.take())
        }
        Side::Sealed => {
            work.doubt = false;
            state.payload.forget(&mut work.payload, false);
            (std::mem::take(&mut work.sealed), work.sealed_binding.take())
        }
    };
    work.wake(pending.blocks());
    state.pairs.tidy(pair);
    let Some(binding) = binding else { return };
    let only = binding.extents.into_iter().zip(line.extents).filter(|(_, known)| known.is_none());
    freed.extents.extend(only.filter_map(|(extent, _)| extent));
    if line.owner.is_none() {
        let (id, logical) = binding.owner.expect("a pair that was written belongs to something");
        let volume = state.volumes.iter_mut().find(|volume| volume.id == id);
        volume.expect("its volume is there").set_pair(logical, None);
        freed.pairs.push(pair);
    }
}
