//! What is linked in the unit's journal, as it is shown, and why it still is.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use super::domain::Domain;
use super::{Inner, Unit};
use crate::env::{Env, Moment};
use crate::format::group::{GroupState, TransactionId};
use crate::format::ids::Sequence;
use crate::journal::decide::Shown;

/// A group of data that is linked in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkedGroup {
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its transaction.
    pub transaction: TransactionId,
    /// Its state.
    pub state: GroupState,
    /// How long it has been linked; of one that a recovery found, since then.
    pub age: Duration,
    /// Whose it is: a volume, a group of volumes, or none, of a settle.
    pub of: Option<String>,
    /// Whether other units take part in the transaction.
    pub global: bool,
    /// How many slots of the journal it takes.
    pub slots: usize,
    /// Bytes of its records.
    pub bytes: usize,
    /// Why it is still linked.
    pub why: String,
}

/// When groups were linked.
#[derive(Debug, Default)]
pub(super) struct Ages(RefCell<BTreeMap<Sequence, Moment>>);

impl Ages {
    /// A group was linked.
    pub fn note(&self, sequence: Sequence, now: Moment) {
        self.0.borrow_mut().insert(sequence, now);
    }

    /// Some were unlinked, ascending.
    pub fn forget(&self, gone: &[Sequence]) {
        let mut ages = self.0.borrow_mut();
        ages.retain(|sequence, _| gone.binary_search(sequence).is_err());
    }

    fn get(&self, sequence: Sequence) -> Option<Moment> {
        self.0.borrow().get(&sequence).copied()
    }
}

impl<E: Env> Unit<E> {
    /// The groups that are linked in the journal now, oldest first. Where the flags are at the
    /// metadata server there are none.
    pub fn linked_groups(&self) -> Vec<LinkedGroup> {
        let inner = &self.0;
        inner.journal.show().iter().map(|shown| inner.linked_group(shown)).collect()
    }
}

impl<E: Env> Inner<E> {
    fn linked_group(&self, shown: &Shown) -> LinkedGroup {
        let state = self.state.borrow();
        let of = state.domains.iter().find(|domain| domain.number == shown.domain);
        let alone = |domain: &Domain| {
            let volume = state.volumes.iter().find(|volume| volume.id.0 == domain.number);
            volume.map(|volume| format!("volume {}", volume.name))
        };
        let of = of.and_then(|domain| match &domain.group {
            Some(membership) => Some(format!("group {}", membership.name)),
            None => alone(domain),
        });
        let since = self.ages.get(shown.sequence).unwrap_or(self.started);
        LinkedGroup {
            sequence: shown.sequence,
            transaction: shown.transaction,
            state: shown.state,
            age: self.env.now().since(since),
            of,
            global: shown.transaction.coordinator == crate::txn::COORDINATOR,
            slots: shown.slots,
            bytes: shown.bytes,
            why: why(shown, state.payload.blocks_of(shown.sequence)),
        }
    }
}

/// Why a group is still linked, of which so many blocks are in the journal alone.
fn why(shown: &Shown, blocks: usize) -> String {
    match (shown.state, shown.follows) {
        (GroupState::Prepared, _) => "the coordinator has not said whether it took place".into(),
        (GroupState::Aborted, _) => "it did not take place; the next checkpoint takes it".into(),
        _ if !shown.published => "it is being applied".into(),
        _ if blocks > 0 => format!("the data of {blocks} blocks is not destaged yet"),
        (_, Some(older)) => format!("group {older} names one of its extents and goes first"),
        _ => "the home is older than it; the next checkpoint takes it".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::Incarnation;

    /// Goal: each reason is said where it holds.
    #[test]
    fn every_group_has_its_reason() {
        let transaction = TransactionId { coordinator: 0, incarnation: Incarnation(1), number: 1 };
        let shown = |state, published, follows: Option<u64>| Shown {
            sequence: Sequence(5),
            transaction,
            domain: 0,
            state,
            slots: 1,
            bytes: 100,
            published,
            follows: follows.map(Sequence),
        };
        for (shown, blocks, words) in [
            (shown(GroupState::Prepared, false, Some(2)), 4, "coordinator"),
            (shown(GroupState::Aborted, false, None), 0, "did not take place"),
            (shown(GroupState::Committed, false, None), 4, "being applied"),
            (shown(GroupState::Committed, true, Some(3)), 4, "4 blocks is not destaged"),
            (shown(GroupState::Committed, true, Some(3)), 0, "group 3 names"),
            (shown(GroupState::Done, true, None), 0, "home is older"),
        ] {
            let said = why(&shown, blocks);
            assert!(said.contains(words), "'{words}' is not in: {said}");
        }
    }
}
