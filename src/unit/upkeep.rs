//! Upkeep in the background: checkpoints of the home so that groups can be unlinked (design section
//! 5), and telling the metadata server what was bound (section 8).

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::Inner;
use super::domain::Domain;
use super::settle::bound;
use crate::env::Env;
use crate::format::ids::PairId;
use crate::journal::JournalError;
use crate::mds::error::MdsError;
use crate::mds::records::TRANSACT_PRIMITIVES_MAX;
use crate::mutants::{Mutant, mutated};

/// How long a silent metadata server is waited for when the unit stops.
const SILENCE_MAX: Duration = Duration::from_secs(10);

impl<E: Env> Inner<E> {
    /// The task that checkpoints the home whenever the journal runs low.
    pub(super) async fn checkpoint_when_crowded(self: Rc<Self>) {
        loop {
            self.journal.crowded().await;
            if self.stopped.get() {
                return;
            }
            if !self.journal.is_crowded() {
                continue;
            }
            if let Err(error) = self.checkpoint().await {
                self.fail_all(&error.to_string());
                return;
            }
        }
    }

    /// Makes the effect of every published group durable in the home, and unlinks those groups.
    ///
    /// Groups that the journal is still needed for stay. A page may get newer contents than those
    /// groups': lines hold nothing but what is hardened.
    pub(super) async fn checkpoint(&self) -> Result<(), JournalError> {
        let _one_at_a_time = self.checkpoint_lock.lock().await;
        let groups = self.journal.unlinkable(|group| self.state.borrow().payload.needs(group));
        if groups.is_empty() {
            return Ok(());
        }
        let _under_way = self.progress.checkpoint.begin(self.env.now());
        self.journal.vouch().await?;
        let pages = std::mem::take(&mut self.state.borrow_mut().stale_pages);
        let pages: Vec<u32> = pages.into_iter().collect();
        let line = |pair: PairId| *self.state.borrow().pairs.line(pair);
        if !mutated(Mutant::HomeNotWritten) {
            self.journal.write_home(&pages, line).await?;
        }
        self.journal.unlink(&groups).await?;
        self.ages.forget(&groups);
        Ok(())
    }

    /// The task that tells the metadata server of new bindings, a batch at a time. No group and no
    /// request waits for it.
    pub(super) async fn tell_news(self: Rc<Self>) {
        loop {
            self.news.notified().await;
            self.env.sleep(self.config.tell_interval).await;
            if self.stopped.get() {
                return;
            }
            if let Err(error) = self.tell().await {
                self.note_refusal(&error);
                // The pairs are told at the next start, where everything is compared.
                tracing::error!(%error, "the metadata server refused what it was told");
            }
        }
    }

    /// Tells the metadata server what it was not told yet, and ends the session where nothing is
    /// left to be done, and nothing in the journal that it has voted for and not carried out ‡;
    /// gives up on a server that is silent.
    pub(super) async fn leave(&self, done: bool) {
        let voted = |domain: &Domain| domain.group.as_ref().is_some_and(|of| of.prepared.is_some());
        let goodbye = async {
            self.tell().await?;
            let done = done && !self.state.borrow().domains.iter().any(voted);
            if done { self.mds.detach().await } else { Ok(()) }
        };
        if let Some(Err(error)) = self.unless_silent(goodbye).await {
            tracing::warn!(%error, "the metadata server will be told at the next start");
        }
    }

    /// Waits for `work`, which may wait for the metadata server, but not for a server that is
    /// silent for long: what it was not told it is told at the next start.
    pub(super) async fn unless_silent<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            match select(work, pin!(self.env.sleep(SILENCE_MAX))).await {
                Either::Left((done, _)) => return Some(done),
                Either::Right(((), waiting)) => work = waiting,
            }
            let silent = self.mds.status().silent_since;
            if silent.is_some_and(|since| self.env.now().since(since) >= SILENCE_MAX) {
                tracing::warn!(
                    "the metadata server does not answer; it will be told at the next start"
                );
                return None;
            }
        }
    }

    /// Tells the metadata server everything that it was not told yet: net changes only.
    pub(super) async fn tell(&self) -> Result<(), MdsError> {
        loop {
            let mut batch = Vec::new();
            {
                let mut state = self.state.borrow_mut();
                while batch.len() < TRANSACT_PRIMITIVES_MAX
                    && let Some(pair) = state.untold.pop_first()
                {
                    let binding = state.pairs.line(pair).binding;
                    let Some(owner) = binding.owner else { continue };
                    batch.push(bound(pair, owner, &binding));
                }
                state.telling |= !batch.is_empty();
            }
            if batch.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.journal.vouch().await {
                self.fail_all(&error.to_string());
                return Ok(());
            }
            self.mds.transact(&batch).await?;
            self.state.borrow_mut().telling = false;
        }
    }
}
