//! Keeping the grant: the task that asks the metadata server for extents ahead of need, and gives
//! surplus back. What it shall do is decided in [`super::grant`].
//!
//! # Contracts
//!
//! - **Ownership**: an extent leaves the pool before the server is told that it is given back, and
//!   enters it after the server has granted it durably. So whatever a crash cuts off, what the
//!   server has granted contains all that the unit could use; the next start asks for that.
//!   Extents that pairs have left are in no pool while anyone may read them, and are not given
//!   back.
//! - **Silence**: while the server is silent one question or return waits, and is told once when it
//!   is back.
//! - **Failure**: where the server refuses, the unit stops: nobody knows what it has granted.

use std::rc::Rc;

use super::Inner;
use super::grant::{Grant, Step};
use super::pool::ExtentPool;
use super::state::State;
use crate::env::Env;
use crate::format::ids::ExtentRun;
use crate::mds::client::Client;
use crate::mds::error::MdsError;
use crate::mds::records::Grants;

/// Why the grant cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum AllotmentError {
    /// The server refused.
    #[error("the metadata server failed: {0}")]
    Metadata(#[from] MdsError),
    /// What it granted was granted before, or is not of the pool.
    #[error(
        "the metadata server granted {} extents from {} on, some of them twice or beyond the pool",
        .0.count,
        .0.start
    )]
    Unsound(ExtentRun),
}

impl<E: Env> Inner<E> {
    /// Wakes the task that keeps the grant where there is anything to do.
    pub(super) fn look_at_grant(&self, state: &State) {
        if !state.grant.under_way && state.grant_step().is_some() {
            self.grant_wanted.notify_one();
        }
    }

    /// The task that keeps the grant.
    pub(super) async fn keep_grant(self: Rc<Self>) {
        loop {
            self.grant_wanted.notified().await;
            while !self.stopped.get()
                && let Some(step) = self.grant_step()
            {
                if let Err(error) = self.take_step(step).await {
                    if let AllotmentError::Metadata(refused) = &error {
                        self.note_refusal(refused);
                    }
                    self.fail_all(&error.to_string());
                    return;
                }
            }
            if self.stopped.get() {
                return;
            }
        }
    }

    fn grant_step(&self) -> Option<Step> {
        self.state.borrow().grant_step()
    }

    async fn take_step(&self, step: Step) -> Result<(), AllotmentError> {
        self.state.borrow_mut().grant.under_way = true;
        let given = match step {
            Step::Return(back) => {
                let (runs, data) = {
                    let mut guard = self.state.borrow_mut();
                    let state = &mut *guard;
                    state.grant.returning(back);
                    state.pool.shrink(back)
                };
                self.mds.return_extents(&runs, data).await?;
                Grants::default()
            }
            _ => ask(&self.mds, step).await?,
        };
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        state.grant.under_way = false;
        take(&mut state.pool, &mut state.grant, step, &given)?;
        state.wake_space();
        if !state.space_queue.is_empty() {
            self.settle_wanted.notify_one();
        }
        Ok(())
    }
}

/// Asks until the grant is as large as it shall be, or the server has no more: at the start.
pub(super) async fn fill<E: Env>(
    client: &Client<E>,
    pool: &mut ExtentPool,
    grant: &mut Grant,
) -> Result<(), AllotmentError> {
    while let Some(step @ (Step::AskData(_) | Step::AskExtents(_))) = grant.step(pool.left(), false)
    {
        let given = ask(client, step).await?;
        take(pool, grant, step, &given)?;
    }
    Ok(())
}

async fn ask<E: Env>(client: &Client<E>, step: Step) -> Result<Grants, MdsError> {
    match step {
        Step::AskData(count) => client.allocate_data_extents(count).await,
        Step::AskExtents(count) => client.allocate_journal_space(count).await,
        Step::Return(_) => unreachable!("what is given back is no question"),
    }
}

fn take(
    pool: &mut ExtentPool,
    grant: &mut Grant,
    step: Step,
    given: &Grants,
) -> Result<(), AllotmentError> {
    pool.grow(given).map_err(AllotmentError::Unsound)?;
    grant.answered(step, given);
    Ok(())
}
