//! Commit domains: what commits together (design section 4).
//!
//! A volume by itself is a domain; the volumes of a consistency group on this unit are one. Plain
//! data and the bookkeeping on it.
//!
//! # Contracts
//!
//! - **Numbers**: a domain's index never becomes another's; a volume may go from one to another
//!   ([`super::regroup`]), so whoever waits for an epoch says of which domain ([`Point`]).
//! - **Epochs**: each of a domain's epochs has the next number. When one is committed, all before
//!   it are.

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use super::error::IoError;
use crate::env::Moment;
use crate::format::group::TransactionId;
use crate::format::ids::{PairId, Sequence, VolumeId};
use crate::journal::sums::Sums;
use crate::mutants::{Mutant, mutated};
use crate::observe::CommitStep;
use crate::txn::participant::{Progress, Standing};
use crate::txn::{GroupId, Order, Trouble};

/// The pending writes of a domain between two commit points.
#[derive(Debug, Default)]
pub struct Epoch {
    /// Its number; each of a domain's epochs has the next one.
    pub number: u64,
    /// Requests admitted and not yet complete.
    pub in_flight: u32,
    /// The pairs that it touched.
    pub pairs: Vec<PairId>,
    /// An upper bound of the bytes that its group's records will take.
    pub record_bytes: usize,
    /// Bytes of data written in it.
    pub data_bytes: u64,
    /// The devices that it wrote to, a bit each.
    pub devices: u64,
    /// What it wrote sums up to.
    pub sums: Sums,
    /// When its first request was admitted.
    pub since: Option<Moment>,
}

impl Epoch {
    /// Whether nothing was admitted to it.
    pub fn is_clean(&self) -> bool {
        self.since.is_none()
    }

    /// What was counted of an older epoch is a part of this one; its pairs are listed already.
    pub fn absorb(&mut self, older: &Epoch) {
        self.in_flight += older.in_flight;
        self.record_bytes += older.record_bytes;
        self.data_bytes += older.data_bytes;
        self.devices |= older.devices;
        self.sums.give_up();
        self.since = older.since.or(self.since);
    }
}

/// An epoch of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The domain's index.
    pub domain: usize,
    /// The epoch's number.
    pub epoch: u64,
}

/// The consistency group that a domain is this unit's part of.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Which group.
    pub group: GroupId,
    /// Its name.
    pub name: Rc<str>,
    /// Whether other units have a part in it: then its epochs are committed as the coordinator
    /// says, and never by this unit alone.
    pub shared: bool,
    /// How the unit stands in it.
    pub standing: Standing,
    /// The group in the journal of the transaction under way, where it is prepared.
    pub prepared: Option<Sequence>,
    /// The sealed epoch was found in doubt by a recovery: nobody sees it yet.
    pub doubt: bool,
    /// What the coordinator said last.
    pub orders: Vec<Order>,
    /// Why no transaction can succeed now.
    pub trouble: Option<Trouble>,
    /// The coordinator was asked for a transaction.
    pub asked: bool,
    /// Why the volumes could not come together.
    pub unformed: Option<Arc<str>>,
    /// The transaction that committed last.
    pub last_cut: Option<TransactionId>,
}

impl Membership {
    /// In a group that is not served yet.
    pub fn new(group: GroupId, name: &str, shared: bool, life: u32) -> Self {
        Self {
            group,
            name: name.into(),
            shared,
            standing: Standing { version: 0, life, transaction: None },
            prepared: None,
            doubt: false,
            orders: Vec::new(),
            trouble: None,
            asked: false,
            unformed: None,
            last_cut: None,
        }
    }

    /// In the group of a domain of that number, for which a recovery has found that transaction
    /// prepared; `None` where it is no group's.
    pub fn in_doubt(number: u32, of: TransactionId, sequence: Sequence) -> Option<Self> {
        let mut membership = Self::new(group_of_domain(number)?, "in doubt", true, 0);
        membership.standing.transaction = Some((of, Progress::Prepared));
        membership.prepared = Some(sequence);
        membership.doubt = true;
        Some(membership)
    }
}

/// In a domain's number in the journal, that it is a group's and not a volume's.
const GROUP_BIT: u32 = 1 << 31;
/// The number in the journal of what is of no domain: groups of settles.
pub const SETTLES: u32 = u32::MAX;

/// The consistency group of a domain's number in the journal; none of a volume's, and of settles.
pub fn group_of_domain(number: u32) -> Option<GroupId> {
    let of_group = number & GROUP_BIT != 0 && number != SETTLES;
    of_group.then_some(GroupId(number & !GROUP_BIT))
}

/// What commits together: a volume by itself, or the volumes of a group.
#[derive(Debug)]
pub struct Domain {
    /// Its number in the journal.
    pub number: u32,
    /// The group that it is a part of.
    pub group: Option<Membership>,
    /// It has no volumes any more, nor will it.
    pub over: bool,
    /// Volumes that are to leave it; until they have, nothing is admitted.
    pub leaving: u32,
    /// It begins a life in which not all other members may be yet; until they are, nothing is
    /// admitted: what they still acknowledge in the old life is lost, and must not be followed.
    pub returning: bool,
    /// Its commit task does what it was told: until that has ended no volume leaves.
    pub acting: bool,
    /// From this epoch on nothing is acknowledged: not all other members have sealed yet ‡.
    pub withheld: Option<u64>,
    /// The epochs that were never committed, nor will be.
    pub lost: Vec<RangeInclusive<u64>>,
    /// Where writes go.
    pub open: Epoch,
    /// What is being committed.
    pub sealed: Option<Epoch>,
    /// How far that has come, and when it was begun.
    pub commit: Option<(CommitStep, Moment)>,
    /// The newest epoch that is committed.
    pub committed: u64,
    /// The newest epoch that someone wants committed.
    pub wanted: u64,
    /// Why it takes no more writes (promise 6).
    pub failed: Option<Arc<str>>,
    /// Wakes the commit task.
    pub wake: Rc<Notify>,
    /// Wakes everyone who waits for an epoch to be decided, or for room in the open one.
    pub decided: Rc<Notify>,
    /// Wakes the commit task when the sealed epoch has nothing in flight.
    pub drained: Rc<Notify>,
}

impl Domain {
    /// The domain of a volume by itself, with nothing pending.
    pub fn alone(volume: VolumeId) -> Self {
        Self::new(volume.0)
    }

    /// The domain of a group, with nothing pending.
    pub fn of_group(membership: Membership) -> Self {
        let number = GROUP_BIT | membership.group.0;
        Self { group: Some(membership), ..Self::new(number) }
    }

    /// A domain with nothing pending.
    fn new(number: u32) -> Self {
        Self {
            number,
            group: None,
            over: false,
            leaving: 0,
            returning: false,
            acting: false,
            withheld: None,
            lost: Vec::new(),
            open: Epoch { number: 1, ..Epoch::default() },
            sealed: None,
            commit: None,
            committed: 0,
            wanted: 0,
            failed: None,
            wake: Rc::default(),
            decided: Rc::default(),
            drained: Rc::default(),
        }
    }

    /// The epoch that must be committed for all that was acknowledged here so far to be durable.
    pub fn newest_dirty(&self) -> Option<u64> {
        if !self.open.is_clean() {
            return Some(self.open.number);
        }
        let sealed = self.sealed.as_ref().filter(|_| !mutated(Mutant::CommitUnderWayIgnored));
        sealed.map(|sealed| sealed.number)
    }

    /// The epoch that must be committed for all that was acknowledged so far to be durable, on all
    /// units ‡: others may have something to commit where this one has nothing.
    pub fn newest_anywhere(&self) -> Option<u64> {
        if self.is_shared() { Some(self.open.number) } else { self.newest_dirty() }
    }

    /// Whether nothing was admitted that is not committed.
    pub fn is_clean(&self) -> bool {
        self.open.is_clean() && self.open.in_flight == 0 && self.sealed.is_none()
    }

    /// Asks for an epoch to be committed.
    pub fn want(&mut self, epoch: u64) {
        if epoch > self.wanted {
            self.wanted = epoch;
            self.wake.notify_one();
        }
    }

    /// Stops the domain: nothing more is acknowledged as durable.
    pub fn fail(&mut self, reason: &str) {
        if self.failed.is_none() {
            self.failed = Some(reason.into());
        }
        self.wake.notify_one();
        self.drained.notify_one();
        self.decided.notify_waiters();
    }

    /// Its last volume has gone: who still waits for it to be committed waits for nothing.
    pub fn end(&mut self) {
        assert!(self.is_clean(), "volumes go when nothing is pending");
        self.over = true;
        self.committed = self.open.number;
        // Who gives up what is not there any more is let through still.
        self.open.number += 1;
        self.wake.notify_one();
        self.decided.notify_waiters();
    }

    /// Whether the epoch of a request is the sealed one, or has become a part of it: it was merged
    /// back into what is sealed now (found by the simulator of groups, seed 408). Otherwise it is
    /// the open one, or a part of that.
    pub fn is_sealed(&self, number: u64) -> bool {
        self.sealed.as_ref().is_some_and(|sealed| number <= sealed.number)
    }

    /// The epoch of a request.
    pub fn epoch_mut(&mut self, number: u64) -> &mut Epoch {
        assert!(number > self.committed && number <= self.open.number, "its epoch is not over");
        match &mut self.sealed {
            Some(sealed) if number <= sealed.number => sealed,
            _ => &mut self.open,
        }
    }

    /// The membership that it serves by; 0: none yet.
    pub fn serves(&self) -> Option<u32> {
        self.group.as_ref().map(|membership| membership.standing.version)
    }

    /// Whether others have a part in it.
    pub fn is_shared(&self) -> bool {
        self.group.as_ref().is_some_and(|membership| membership.shared)
    }

    /// Whether news of the coordinator are waited for.
    pub fn is_hasty(&self) -> bool {
        let busy = |membership: &Membership| membership.standing.is_busy() || membership.asked;
        self.returning || self.group.as_ref().is_some_and(busy)
    }

    /// The newest global transaction, and how far this unit is with it.
    pub fn transaction(&self) -> Option<(TransactionId, Progress)> {
        self.group.as_ref().and_then(|membership| membership.standing.transaction)
    }

    /// This unit has come so far with a global transaction.
    pub fn note_progress(&mut self, transaction: TransactionId, progress: Progress) {
        let membership = self.group.as_mut().expect("a transaction is a group's");
        membership.standing.transaction = Some((transaction, progress));
    }

    /// Whether an epoch was given up.
    pub fn is_lost(&self, epoch: u64) -> bool {
        self.lost.iter().any(|lost| lost.contains(&epoch))
    }

    /// What clients are told whose writes are lost.
    pub fn went_back(&self) -> IoError {
        IoError::WentBack(
            self.group.as_ref().map_or_else(|| "".into(), |of| of.name.as_ref().into()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a request that was admitted to an epoch that was merged back, and sealed again with
    /// what came after it, is counted where it is, and its blocks are what is sealed.
    #[test]
    fn a_request_is_counted_where_its_epoch_has_gone() {
        let mut domain = Domain::alone(VolumeId(1));
        domain.open.in_flight = 1;
        let first = domain.open.number;
        let older = std::mem::take(&mut domain.open);
        domain.open.number = first + 1;
        domain.open.absorb(&older);
        assert!(!domain.is_sealed(first));
        let next = Epoch { number: first + 2, ..Epoch::default() };
        domain.sealed = Some(std::mem::replace(&mut domain.open, next));
        assert!(domain.is_sealed(first) && domain.is_sealed(first + 1));
        assert!(!domain.is_sealed(first + 2));
        domain.epoch_mut(first).in_flight -= 1;
        assert_eq!(domain.sealed.as_ref().map(|sealed| sealed.in_flight), Some(0));
        assert_eq!(domain.epoch_mut(first + 2).number, first + 2);
    }
}
