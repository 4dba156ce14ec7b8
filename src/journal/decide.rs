//! What changes of a linked group: its transaction's state (design section 5).
//!
//! # Contracts
//!
//! - **Durability**: when [`Journal::set_state`] returns, a recovery finds the group in the new
//!   state.
//! - **Order**: states follow the transition relation ([`GroupState::may_become`]); anything else
//!   is a fault of ours.

use std::sync::Arc;

use super::{Inner, Journal, JournalError, PageWork};
use crate::env::Region;
use crate::format::group::{GroupState, TransactionId};
use crate::format::ids::Sequence;

/// A linked group, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its place in the order.
    pub sequence: Sequence,
    /// Its transaction.
    pub transaction: TransactionId,
    /// The commit domain.
    pub domain: u32,
    /// Its state.
    pub state: GroupState,
    /// How many slots it takes.
    pub slots: usize,
    /// Bytes of its records.
    pub bytes: usize,
    /// Its effect is in the unit's maps.
    pub published: bool,
    /// An older group of one of its pairs stays: that one goes first.
    pub follows: Option<Sequence>,
}

impl<R: Region> Journal<R> {
    /// Makes a linked group's new state durable. One that is aborted has no effect from then on,
    /// and may be unlinked; one that is committed is the caller's to publish.
    pub async fn set_state(
        &self,
        sequence: Sequence,
        state: GroupState,
    ) -> Result<(), JournalError> {
        let mut work = self.page_work.lock().await;
        {
            let mut inner = self.inner.borrow_mut();
            if let Some(reason) = &inner.failed {
                return Err(JournalError::Failed(Arc::clone(reason)));
            }
            let before = inner.list.state(sequence);
            assert!(before.may_become(state), "group {sequence} is {before:?}, never {state:?}");
            inner.note_entry(sequence, state);
        }
        let pages = self.status_pages(std::iter::once(sequence));
        let PageWork { buf, status, .. } = &mut *work;
        self.write_status(status, buf, &pages).await?;
        let mut inner = self.inner.borrow_mut();
        inner.list.set_state(sequence, state);
        if inner.is_crowded() {
            self.crowded.notify_one();
        }
        Ok(())
    }

    /// When this returns, no recovery asks for the data of a linked group ([`super::sums`]): it has
    /// an entry of its own then. This is for what relies on a group elsewhere, and would have to
    /// follow it where damage to its data looks as if it had been cut off.
    pub async fn vouch(&self) -> Result<(), JournalError> {
        let doubted = |inner: &Inner| {
            let (sequence, newest) = inner.list.newest()?;
            let index = inner.status_index(sequence);
            let known = inner.status[index].is_some_and(|entry| entry.of == sequence);
            (newest.summed && !known).then_some((sequence, newest.state))
        };
        if doubted(&self.inner.borrow()).is_none() {
            return Ok(());
        }
        let mut work = self.page_work.lock().await;
        let sequence = {
            let mut inner = self.inner.borrow_mut();
            if let Some(reason) = &inner.failed {
                return Err(JournalError::Failed(Arc::clone(reason)));
            }
            let Some((sequence, state)) = doubted(&inner) else { return Ok(()) };
            inner.note_entry(sequence, state);
            sequence
        };
        let pages = self.status_pages(std::iter::once(sequence));
        let PageWork { buf, status, .. } = &mut *work;
        self.write_status(status, buf, &pages).await
    }

    /// The linked groups, oldest first.
    pub fn show(&self) -> Vec<Shown> {
        self.inner.borrow().list.show()
    }
}
