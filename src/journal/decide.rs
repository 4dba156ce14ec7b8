//! What changes of a linked group: its transaction's state (design section 5).
//!
//! # Contracts
//!
//! - **Durability**: when [`Journal::set_state`] returns, a recovery finds the group in the new
//!   state.
//! - **Order**: states follow the transition relation ([`GroupState::may_become`]); anything else
//!   is a fault of ours.

use std::sync::Arc;

use super::{Journal, JournalError, PageWork};
use crate::env::Region;
use crate::format::group::{GroupState, TransactionId};
use crate::format::ids::Sequence;
use crate::format::status::StatusEntry;

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
            let entry = StatusEntry { of: sequence, state, link: inner.list.link(sequence) };
            let index = inner.status_index(sequence);
            inner.status[index] = Some(entry);
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

    /// The linked groups, oldest first.
    pub fn show(&self) -> Vec<Shown> {
        self.inner.borrow().list.show()
    }
}
