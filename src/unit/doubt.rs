//! Recovery with doubt: transactions that this unit has voted for, and whose outcome it does not
//! know yet (design section 6).
//!
//! What such a group wrote is held as the sealed epoch of its domain that it was, with two
//! differences until the coordinator has answered: nobody sees it, and who would see it waits.
//!
//! # Contracts
//!
//! - **Held**: blocks that the group names are neither read nor written; its extents and pairs are
//!   nobody else's; its pairs are not settled, and not bound anew: a later binding that were
//!   durable first would make the group impossible to apply.
//! - **Waiting**: a request that touches them waits as long as the configuration says, and then
//!   fails with the reason.

use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};
use tokio::sync::Notify;

use super::Inner;
use super::domain::{Domain, Epoch, Membership};
use super::error::{IoError, RecoverError};
use super::request::{Parts, extents};
use super::state::State;
use crate::env::{Env, Moment};
use crate::format::blocks::BlockSet;
use crate::format::ids::PairId;
use crate::format::layout::Geometry;
use crate::format::record::Record;
use crate::journal::RecoveredGroup;
use crate::observe::CommitStep;

/// Holds what is in doubt.
pub(super) fn hold(
    state: &mut State,
    doubts: &[RecoveredGroup],
    now: Moment,
) -> Result<(), RecoverError> {
    for group in doubts {
        let membership = Membership::in_doubt(group.domain, group.transaction, group.sequence);
        let membership = membership.filter(|of| state.group_domain(of.group).is_none());
        let Some(membership) = membership else {
            let RecoveredGroup { sequence, domain, .. } = group;
            return Err(RecoverError::Damaged(format!(
                "group {sequence} of domain {domain} is in doubt, and is not of a group of volumes \
                 or not the only one of it"
            )));
        };
        let mut domain = Domain::of_group(membership);
        let number = domain.open.number;
        domain.open.number += 1;
        domain.sealed = Some(Epoch { number, pairs: pairs_of(group), ..Epoch::default() });
        domain.commit = Some((CommitStep::Hardening, now));
        state.domains.push(domain);
        state.doubts += 1;
        for record in &group.records {
            let Some(pair) = record.pair() else { continue };
            let work = state.pairs.work_mut(pair);
            work.doubt = true;
            match *record {
                Record::Place { first, count, location, .. } => {
                    let first = usize::from(first);
                    let blocks = BlockSet::range(first..first + usize::from(count));
                    work.sealed.set(blocks, location);
                }
                Record::Binding { binding, .. } => work.sealed_binding = Some(binding),
                Record::Participant(_) | Record::Sum(_) => {}
            }
        }
    }
    Ok(())
}

fn pairs_of(group: &RecoveredGroup) -> Vec<PairId> {
    let mut pairs: Vec<PairId> = group.records.iter().filter_map(Record::pair).collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

impl State {
    /// Whether contents of some blocks of a volume are in doubt.
    fn is_in_doubt(&self, volume: usize, blocks: &Range<u64>, geometry: Geometry) -> bool {
        extents(blocks.clone(), geometry).any(|(logical, local, _)| {
            let pair = self.volumes[volume].pair(logical);
            let Some(pair) = pair else { return false };
            let blocks = BlockSet::range(local);
            let work = self.pairs.work(pair);
            work.is_some_and(|work| work.doubt && work.sealed.blocks().meets(blocks))
                || self.is_voted(pair, blocks)
        })
    }

    /// Whether a request would change what is in doubt, or bind a pair anew that is.
    pub fn changes_doubt(&self, parts: &Parts) -> bool {
        parts.iter().any(|part| {
            let Some(pair) = part.pair else { return false };
            let Some(work) = self.pairs.work(pair).filter(|work| work.doubt) else { return false };
            let whole = self.pairs.line(pair).binding.has_journal_area();
            !whole || work.sealed_binding.is_some() || work.sealed.blocks().meets(part.blocks())
        })
    }
}

impl<E: Env> Inner<E> {
    /// Whether nothing of some blocks is in doubt.
    pub(super) fn is_certain(&self, volume: usize, blocks: &Range<u64>) -> bool {
        let state = self.state.borrow();
        let nothing = state.doubts == 0 && state.staged.is_none();
        nothing || !state.is_in_doubt(volume, blocks, self.geometry)
    }

    /// Returns when none of some blocks of a volume is in doubt.
    pub(super) async fn certain(&self, volume: usize, blocks: &Range<u64>) -> Result<(), IoError> {
        let since = self.env.now();
        loop {
            if self.is_certain(volume, blocks) {
                return Ok(());
            }
            let decided = Rc::clone(&self.state.borrow().domain_of(volume).decided);
            self.await_outcome(&decided, since).await?;
        }
    }

    /// Waits until something is decided; the error is that this takes too long for somebody who
    /// has waited since then.
    pub(super) async fn await_outcome(
        &self,
        decided: &Notify,
        since: Moment,
    ) -> Result<(), IoError> {
        let left = self.config.doubt_timeout.saturating_sub(self.env.now().since(since));
        if left.is_zero() {
            return Err(IoError::InDoubt);
        }
        let timer = self.env.sleep(left);
        match select(pin!(decided.notified()), pin!(timer)).await {
            Either::Left(_) | Either::Right(_) => Ok(()),
        }
    }

    /// What was in doubt in a domain, if anything was, is not any more.
    pub(super) fn resolve(&self, domain: usize) -> bool {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let membership = state.domains[domain].group.as_mut().expect("it is a group's");
        let doubt = std::mem::take(&mut membership.doubt);
        if doubt {
            state.doubts -= 1;
            let domain = &state.domains[domain];
            domain.decided.notify_waiters();
            state.wake_everyone();
        }
        doubt
    }
}

impl Domain {
    /// Whether its sealed epoch is one that a recovery found in doubt.
    pub fn is_in_doubt(&self) -> bool {
        self.group.as_ref().is_some_and(|membership| membership.doubt)
    }
}
