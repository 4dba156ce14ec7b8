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

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::env::Moment;
use crate::format::ids::{PairId, VolumeId};
use crate::mutants::{Mutant, mutated};
use crate::observe::CommitStep;
use crate::txn::GroupId;

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
    /// When its first request was admitted.
    pub since: Option<Moment>,
}

impl Epoch {
    /// Whether nothing was admitted to it.
    pub fn is_clean(&self) -> bool {
        self.since.is_none()
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Which group.
    pub group: GroupId,
    /// Its name.
    pub name: Rc<str>,
    /// The membership that is served; 0: none yet.
    pub version: u32,
    /// Whether other units have a part in it: then its epochs are committed as the coordinator
    /// says, and never by this unit alone.
    pub shared: bool,
    /// The group's life that what is pending belongs to.
    pub life: u32,
}

/// In a domain's number in the journal, that it is a group's and not a volume's.
const GROUP_BIT: u32 = 1 << 31;

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

    /// The epoch that must be committed for all that was acknowledged so far to be durable.
    pub fn newest_dirty(&self) -> Option<u64> {
        if !self.open.is_clean() {
            return Some(self.open.number);
        }
        let sealed = self.sealed.as_ref().filter(|_| !mutated(Mutant::CommitUnderWayIgnored));
        sealed.map(|sealed| sealed.number)
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

    /// Its last volume has gone.
    pub fn end(&mut self) {
        self.over = true;
        self.wake.notify_one();
        self.decided.notify_waiters();
    }

    /// The epoch of that number, which is open or being committed.
    pub fn epoch_mut(&mut self, number: u64) -> &mut Epoch {
        if self.open.number == number {
            return &mut self.open;
        }
        let sealed = self.sealed.as_mut().expect("a request's epoch is open or being committed");
        assert_eq!(sealed.number, number, "a request's epoch is open or being committed");
        sealed
    }
}
