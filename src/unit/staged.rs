//! What a unit holds for an atomic request: contents that lie on the free side of blocks, and that
//! nobody sees (design section 6, "Atomic requests"). Plain data and the bookkeeping on it;
//! [`super::atomic`] moves the bytes.
//!
//! ```text
//!   Writing ─▶ Ready ─apply─▶ Asked ─seal─▶ Joined ─▶ Voted ─committed─▶ (contents of the blocks)
//!      └─────────┴──────────────┴── dropped ──┴─ aborted ┴──▶ (nothing)
//! ```
//!
//! # Contracts
//!
//! - **Invisible** ‡: it is in no epoch, so that nobody sees it and no commit has it, until the
//!   instant of the seal; and then it is seen from the publication on.
//! - **Held** ‡: its blocks are busy from their admission on, until it is published or dropped. So
//!   their committed contents stay as they are, and no pending ones come beside it.
//! - **Room**: what its records take of a group is kept free from the moment it is counted.
//! - **One**: a unit holds one at a time. So no two wait for each other here.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::atomic::AtomicError;
use super::block::Pending;
use super::request::Part;
use super::state::State;
use crate::format::blocks::{BlockSet, Location};
use crate::format::group::TransactionId;
use crate::format::ids::{PairId, Slot};
use crate::mutants::{Mutant, mutated};
use crate::txn::{Atomic, AtomicId};

/// What became of an atomic request.
pub type Fate = Rc<OnceCell<Result<TransactionId, AtomicError>>>;

/// How far an atomic request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Its contents are being written.
    Writing,
    /// All of it is held.
    Ready,
    /// It is to commit with the next epoch.
    Asked,
    /// It commits with the sealed epoch, or not at all.
    Joined,
    /// As [`Progress::Joined`], and only the coordinator knows which.
    Voted,
}

/// An atomic request, as it is held.
#[derive(Debug)]
pub struct Staged {
    /// Its name, and how many units have a part in it.
    pub atomic: Atomic,
    /// The commit domain of all of its volumes.
    pub domain: usize,
    /// How far it is.
    pub progress: Progress,
    /// Where its contents lie.
    pub pending: BTreeMap<PairId, Pending>,
    /// An upper bound of the bytes that its records take.
    pub record_bytes: usize,
    /// Bytes of data.
    pub data_bytes: u64,
    /// The devices that it wrote to, a bit each.
    pub devices: u64,
    /// Where it is said what became of it.
    pub fate: Fate,
}

impl Staged {
    /// A request of which nothing was written yet.
    pub fn new(atomic: Atomic, domain: usize) -> Self {
        Self {
            atomic,
            domain,
            progress: Progress::Writing,
            pending: BTreeMap::new(),
            record_bytes: 0,
            data_bytes: 0,
            devices: 0,
            fate: Fate::default(),
        }
    }

    /// Whether others may wait for it.
    pub fn holds(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether it is a part of the sealed epoch.
    pub fn is_joined(&self) -> bool {
        self.progress >= Progress::Joined
    }
}

impl State {
    /// The atomic request of that name, where it is held.
    pub fn staged_mut(&mut self, id: AtomicId) -> Option<&mut Staged> {
        self.staged.as_mut().filter(|staged| staged.atomic.id == id)
    }

    /// What is held for a domain.
    pub fn staged_in(&self, domain: usize) -> Option<&Staged> {
        self.staged.as_ref().filter(|staged| staged.domain == domain)
    }

    /// What commits with the sealed epoch of a domain.
    pub fn joined_in(&self, domain: usize) -> Option<&Staged> {
        self.staged_in(domain).filter(|staged| staged.is_joined())
    }

    /// The request that a domain is to commit with its next epoch.
    pub fn asked_in(&self, domain: usize) -> Option<Atomic> {
        let asked = self.staged_in(domain).filter(|of| of.progress == Progress::Asked);
        asked.map(|staged| staged.atomic)
    }

    /// Bytes of records and of data that the open epoch of a domain must leave free.
    pub fn set_aside(&self, domain: usize) -> [u64; 2] {
        let waiting = self.staged_in(domain).filter(|staged| !staged.is_joined());
        waiting.map_or([0; 2], |of| [of.record_bytes as u64, of.data_bytes])
    }

    /// Keeps what was written of a part; `false` where the request is not held any more.
    pub fn hold(&mut self, id: AtomicId, domain: usize, part: &Part) -> bool {
        let pair = part.pair.expect("an admitted part has a pair");
        let Some(staged) = self.staged_mut(id).filter(|staged| staged.domain == domain) else {
            return false;
        };
        let pending = staged.pending.entry(pair).or_default();
        for slot in Slot::BOTH {
            pending.set(part.targets[slot.index()], Location::At(slot));
        }
        !mutated(Mutant::StagedNotHeld)
    }

    /// At the instant before a domain is sealed: what is ready of that name becomes a part of the
    /// epoch. Says which request did.
    pub fn join_staged(&mut self, domain: usize, id: AtomicId) -> Option<Atomic> {
        let staged = self.staged.as_mut().filter(|of| {
            let waiting = matches!(of.progress, Progress::Ready | Progress::Asked);
            of.atomic.id == id && of.domain == domain && waiting
        })?;
        if staged.progress == Progress::Ready && mutated(Mutant::JoinedNotRecorded) {
            return Some(staged.atomic);
        }
        staged.progress = Progress::Joined;
        let open = &mut self.domains[domain].open;
        open.record_bytes += staged.record_bytes;
        open.data_bytes += staged.data_bytes;
        open.devices |= staged.devices;
        for &pair in staged.pending.keys() {
            if !std::mem::replace(&mut self.pairs.work_mut(pair).listed, true) {
                open.pairs.push(pair);
            }
        }
        Some(staged.atomic)
    }

    /// The unit has voted for the sealed epoch of a domain: from here on nobody reads what joined
    /// it, until it is known which contents are the true ones.
    pub fn note_vote(&mut self, domain: usize) {
        let staged = self.staged.as_mut().filter(|of| of.domain == domain && of.is_joined());
        if let Some(staged) = staged {
            staged.progress = Progress::Voted;
        }
    }

    /// Whether an atomic request was voted for that wants some blocks of a pair.
    pub fn is_voted(&self, pair: PairId, blocks: BlockSet) -> bool {
        let voted = self.staged.as_ref().filter(|of| of.progress == Progress::Voted);
        let pending = voted.and_then(|staged| staged.pending.get(&pair));
        pending.is_some_and(|pending| pending.blocks().meets(blocks)) && !mutated(Mutant::VotedRead)
    }

    /// The sealed epoch of a domain is not committed: what joined it is dropped, and counts for
    /// nothing there.
    pub fn drop_joined(&mut self, domain: usize, reason: AtomicError) {
        let Some(staged) = self.joined_in(domain) else { return };
        let (records, data) = (staged.record_bytes, staged.data_bytes);
        let sealed = self.domains[domain].sealed.as_mut().expect("it joined an epoch");
        sealed.record_bytes -= records;
        sealed.data_bytes -= data;
        self.drop_staged(reason);
    }

    /// What is held for a domain and has joined no epoch is dropped.
    pub fn drop_waiting(&mut self, domain: usize, reason: AtomicError) {
        if self.staged_in(domain).is_some_and(|staged| !staged.is_joined()) {
            self.drop_staged(reason);
        }
    }

    /// Drops what is held: its blocks are others' again, with the contents that they had.
    pub fn drop_staged(&mut self, reason: AtomicError) {
        let Some(staged) = self.staged.take() else { return };
        for (pair, pending) in &staged.pending {
            let held = self.pairs.work(*pair).map_or(BlockSet::EMPTY, |work| work.busy);
            self.release(*pair, pending.blocks() & held);
        }
        self.end_staged(&staged, Err(reason));
    }

    /// Says what became of a request that is not held any more.
    pub fn end_staged(&self, staged: &Staged, fate: Result<TransactionId, AtomicError>) {
        let first = staged.fate.set(fate);
        assert!(first.is_ok(), "a request ends once");
        self.domains[staged.domain].decided.notify_waiters();
        self.staged_ended.notify_waiters();
    }
}
