//! Where a unit hardens its groups (`--flags`): one interface, whatever the place.
//!
//! | place | appending a group is | its home |
//! | --- | --- | --- |
//! | device, NVRAM | a write to the nonlinear journal ([`Journal`]) | pages beside it, later |
//! | metadata server | one Harden_Extent_Flags, a transaction | the lines there, at once |
//!
//! What others decide is kept by the metadata server until then, and applied with the decision.
//!
//! # Contracts
//!
//! - **Durability**: when [`Place::append`] returns, the group's effect is found by a recovery,
//!   whole.
//! - **Ordering**: groups take effect in the order in which their appends were first polled.
//! - **Failure**: the first failed append latches: every later one fails with its reason. An
//!   outcome that did not come in time is a failure, too: whether the group took effect is found
//!   out by the next start alone.
//! - **Cancellation**: an append that is dropped may still take effect.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::Notify;

use super::decide::Shown;
use super::payload::Bytes;
use super::{Journal, JournalError};
use crate::env::{Env, Region};
use crate::format::group::{GroupState, TransactionId};
use crate::format::home::Line;
use crate::format::ids::{Incarnation, PairId, Sequence, UnitId};
use crate::format::record::Record;
use crate::mds::client::Client;
use crate::mds::error::{MdsError, Refusal};
use crate::mds::groups::prepared::Part;
use crate::mds::records::Told;
use crate::mds::wire::MESSAGE_BYTES_MAX;
use crate::mutants::{Mutant, mutated};

/// Where groups are hardened.
pub enum Place<E: Env, R: Region> {
    /// In the nonlinear journal of a region ('721 claims 9 and 10).
    Local(Box<Journal<R>>),
    /// At the metadata server ('721 claims 2, 3 and 8): nothing is kept here.
    Server(ServerPlace<E>),
}

/// Groups hardened at the metadata server.
pub struct ServerPlace<E: Env> {
    env: E,
    client: Client<E>,
    unit: UnitId,
    /// How long an answer is waited for; `None`: for ever.
    patience: Cell<Option<Duration>>,
    appended: Cell<u64>,
    /// An answer did not come in time.
    unanswered: Cell<bool>,
    failed: RefCell<Option<Arc<str>>>,
    look: Notify,
}

impl<E: Env, R: Region> Place<E, R> {
    /// At the metadata server, by that session of the unit, which waits for an answer as long as it
    /// takes.
    pub fn at_server(env: E, client: Client<E>, unit: UnitId) -> Self {
        Place::Server(ServerPlace {
            env,
            client,
            unit,
            patience: Cell::default(),
            appended: Cell::new(0),
            unanswered: Cell::new(false),
            failed: RefCell::new(None),
            look: Notify::new(),
        })
    }

    /// From now on an answer of the server is waited for so long; `None`: for ever.
    pub fn set_patience(&self, patience: Option<Duration>) {
        if let Place::Server(server) = self {
            server.patience.set(patience);
        }
    }

    /// This start of the unit.
    pub fn incarnation(&self) -> Incarnation {
        match self {
            Place::Local(journal) => journal.incarnation(),
            Place::Server(server) => server.client.incarnation(),
        }
    }

    /// Bytes that a group's records may take together.
    pub fn group_bytes_max(&self) -> usize {
        match self {
            Place::Local(journal) => journal.group_bytes_max(),
            Place::Server(_) => MESSAGE_BYTES_MAX,
        }
    }

    /// Bytes written to the region since the start.
    pub fn bytes_written(&self) -> u64 {
        match self {
            Place::Local(journal) => journal.bytes_written(),
            Place::Server(_) => 0,
        }
    }

    /// Free and total journal slots; none at a server.
    pub fn slots(&self) -> (usize, usize) {
        match self {
            Place::Local(journal) => journal.slots(),
            Place::Server(_) => (0, 0),
        }
    }

    /// As [`Journal::check_invariants`].
    pub fn check_invariants(&self) -> Result<(), String> {
        match self {
            Place::Local(journal) => journal.check_invariants(),
            Place::Server(_) => Ok(()),
        }
    }

    /// As [`Journal::is_beside_data`].
    pub fn is_beside_data(&self) -> bool {
        match self {
            Place::Local(journal) => journal.is_beside_data(),
            Place::Server(_) => false,
        }
    }

    /// Whether the flags are at the metadata server.
    pub fn is_at_server(&self) -> bool {
        matches!(self, Place::Server(_))
    }

    /// Why no more groups are taken, where none are.
    pub fn failure(&self) -> Option<Arc<str>> {
        match self {
            Place::Local(journal) => journal.failure(),
            Place::Server(server) => server.failed.borrow().clone(),
        }
    }

    /// Whether no more groups are taken because a server did not answer in time.
    pub fn is_without_answer(&self) -> bool {
        match self {
            Place::Local(_) => false,
            Place::Server(server) => server.unanswered.get(),
        }
    }

    /// Whether groups should be unlinked. A server keeps none.
    pub fn is_crowded(&self) -> bool {
        match self {
            Place::Local(journal) => journal.is_crowded(),
            Place::Server(_) => false,
        }
    }

    /// Returns when the place may have become crowded, or [`Place::look_again`] was called.
    pub async fn crowded(&self) {
        match self {
            Place::Local(journal) => journal.crowded().await,
            Place::Server(server) => server.look.notified().await,
        }
    }

    /// Makes [`Place::crowded`] return.
    pub fn look_again(&self) {
        match self {
            Place::Local(journal) => journal.look_again(),
            Place::Server(server) => server.look.notify_one(),
        }
    }

    /// Appends the group of a transaction that this unit decides alone, with the bytes of blocks
    /// as [`Journal::append`] takes them; when this returns its effect is durable. The caller makes
    /// it so and then says so by [`Place::publish`].
    pub async fn append(
        &self,
        domain: u32,
        records: Vec<Record>,
        blocks: Vec<Bytes>,
    ) -> Result<Sequence, JournalError> {
        match self {
            Place::Local(journal) => {
                let transaction: TransactionId = journal.local_transaction();
                journal.append(domain, transaction, GroupState::Committed, records, blocks).await
            }
            Place::Server(server) => {
                assert!(blocks.is_empty(), "a server takes no payload");
                server.append(server.client.harden(&records)).await
            }
        }
    }

    /// Appends the group of a transaction that others decide, as [`Place::append`] does; when this
    /// returns it is durable, and this unit can carry it out, or not, whatever happens.
    pub async fn prepare(
        &self,
        domain: u32,
        transaction: TransactionId,
        records: Vec<Record>,
        blocks: Vec<Bytes>,
    ) -> Result<Sequence, JournalError> {
        match self {
            Place::Local(journal) => {
                journal.append(domain, transaction, GroupState::Prepared, records, blocks).await
            }
            Place::Server(server) => {
                assert!(blocks.is_empty(), "a server takes no payload");
                let part = Part { transaction, records };
                server.append(server.client.prepare(&part)).await
            }
        }
    }

    /// As [`Journal::vouch`].
    pub async fn vouch(&self) -> Result<(), JournalError> {
        match self {
            Place::Local(journal) => journal.vouch().await,
            Place::Server(_) => Ok(()),
        }
    }

    /// As [`Journal::set_state`].
    pub async fn set_state(
        &self,
        sequence: Sequence,
        state: GroupState,
    ) -> Result<(), JournalError> {
        match self {
            Place::Local(journal) => journal.set_state(sequence, state).await,
            Place::Server(_) => Ok(()),
        }
    }

    /// As [`Journal::show`].
    pub fn show(&self) -> Vec<Shown> {
        match self {
            Place::Local(journal) => journal.show(),
            Place::Server(_) => Vec::new(),
        }
    }

    /// Notes that a group's effect is in the unit's maps.
    pub fn publish(&self, sequence: Sequence) {
        if let Place::Local(journal) = self {
            journal.publish(sequence);
        }
    }

    /// So many slots may hold payload, and so many more than do.
    pub fn payload_room(&self) -> (usize, usize) {
        match self {
            Place::Local(journal) => (journal.payload_slots_max(), journal.payload_room()),
            Place::Server(_) => (0, 0),
        }
    }

    /// As [`Journal::unlinkable`].
    pub fn unlinkable(&self, needed: impl Fn(Sequence) -> bool) -> Vec<Sequence> {
        match self {
            Place::Local(journal) => journal.unlinkable(needed),
            Place::Server(_) => Vec::new(),
        }
    }

    /// As [`Journal::unlink`].
    pub async fn unlink(&self, chosen: &[Sequence]) -> Result<(), JournalError> {
        match self {
            Place::Local(journal) => journal.unlink(chosen).await,
            Place::Server(_) => Ok(()),
        }
    }

    /// As [`Journal::write_home`].
    pub async fn write_home(
        &self,
        pages: &[u32],
        line: impl Fn(PairId) -> Line,
    ) -> Result<(), JournalError> {
        match self {
            Place::Local(journal) => journal.write_home(pages, line).await,
            Place::Server(_) => Ok(()),
        }
    }
}

impl<E: Env> ServerPlace<E> {
    /// Waits for the answer to what was asked of the server.
    async fn append(
        &self,
        answer: impl Future<Output = Result<Told, MdsError>>,
    ) -> Result<Sequence, JournalError> {
        if let Some(reason) = &*self.failed.borrow() {
            return Err(JournalError::Failed(Arc::clone(reason)));
        }
        let hardened = self.answered(answer).await;
        let mut failed = self.failed.borrow_mut();
        if let Err(reason) = hardened {
            failed.get_or_insert(reason.into());
        }
        if let Some(reason) = &*failed {
            // Also what was answered: an earlier group may be missing before it.
            return Err(JournalError::Failed(Arc::clone(reason)));
        }
        self.appended.set(self.appended.get() + 1);
        Ok(Sequence(self.appended.get()))
    }

    /// The error is why the outcome is none or not known.
    async fn answered(
        &self,
        answer: impl Future<Output = Result<Told, MdsError>>,
    ) -> Result<(), String> {
        let answer = pin!(answer);
        let answer = match self.patience.get() {
            None => answer.await,
            Some(patience) => match select(answer, pin!(self.env.sleep(patience))).await {
                Either::Left((answer, _)) => answer,
                Either::Right(_) if mutated(Mutant::HardenUnknownBelieved) => return Ok(()),
                Either::Right(_) => {
                    self.unanswered.set(true);
                    return Err(silent(patience));
                }
            },
        };
        answer.map(drop).map_err(|error| match error {
            MdsError::Refused { refusal: Refusal::UnknownSession, .. } => fenced(self.unit),
            other => other.to_string(),
        })
    }
}

fn silent(patience: Duration) -> String {
    format!(
        "the metadata server, where the flags are, did not answer for {} s; whether the last \
         commit was done is not known",
        patience.as_secs_f64()
    )
}

fn fenced(unit: UnitId) -> String {
    format!(
        "fenced: another target attached as unit {unit} of this pool at the metadata server, where \
         the flags are"
    )
}
