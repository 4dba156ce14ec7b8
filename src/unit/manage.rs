//! Volumes made, renamed, resized and deleted while the unit serves.
//!
//! The metadata server decides, durably; the unit follows, or goes ahead where something is lost:
//!
//! ```text
//!   create, rename, grow   server ─▶ unit
//!   shrink   unit: nothing beyond the end any more ─▶ empty the tail, commit ─▶ release its pairs
//!            ─▶ server: the new size
//!   delete   server: deleting ─▶ unit: no requests any more ─▶ empty all, commit ─▶ release all
//!            pairs ─▶ server: forget it
//! ```
//!
//! Emptying is what a client's trim does, and releasing is what a settle does.
//!
//! # Contracts
//!
//! - **Crash**: a volume is as before or as after. A shrink that is cut short leaves the old size,
//!   with zeros in some or all of the tail. A deletion that is cut short is gone on with at the
//!   next start; the volume is not seen again.
//! - **Doubt**: where the server fails, nobody knows whether it has decided. Until the next start
//!   tells, nothing is acknowledged that would be lost then: a volume that may be deleted stops,
//!   and one that may be cut stays cut.
//! - **Forgetting**: the server forgets a volume only when it has no pairs there, and a pair's
//!   release is told to the server after its group is durable. So whatever a recovery replays, no
//!   pair ends as one of a volume that there is not.
//! - **Requests**: one that is admitted before is carried out; one that comes later is refused
//!   ([`IoError::Deleted`], [`IoError::OutOfRange`]). Handles of volumes stay valid for ever.
//! - **Cancellation**: these futures must be driven to their end once polled.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};

use super::domain::Domain;
use super::error::{IoError, ManageError};
use super::request::{Parts, Seat, Span};
use super::settle::RETRY_AFTER;
use super::state::{Stage, State, VolumeState};
use super::{Inner, Unit, Volume};
use crate::env::Env;
use crate::format::ids::{LogicalExtent, PairId, VolumeId};
use crate::format::layout::Geometry;

/// How many extents are emptied, and how many released, at a time.
const BATCH: usize = 256;
/// The pause between two of them: clients come first.
const PAUSE: Duration = Duration::from_millis(1);

/// The changes of volumes under way.
#[derive(Default)]
pub(super) struct Management {
    /// One change at a time; what is left to do of a deletion is not counted.
    pub(super) lock: Mutex<()>,
    /// Woken when no volume is being emptied any more.
    emptied: Notify,
}

impl<E: Env> Unit<E> {
    /// Makes a thin volume; its size is in bytes, and whole blocks.
    pub async fn create_volume(&self, name: &str, size: u64) -> Result<Volume<E>, ManageError> {
        let inner = &self.0;
        let _one_at_a_time = inner.management.lock.lock().await;
        inner.check_change(Some(size))?;
        let made = inner.mds.create_volume(name, size).await?;
        let (index, domain) = {
            let mut state = inner.state.borrow_mut();
            let extents = inner.geometry.extents_for(size) as u32;
            let domain = state.domains.len();
            state.domains.push(Domain::alone(made.id));
            state.volumes.push(VolumeState::new(made.id, &made.name, made.size, extents, domain));
            (state.volumes.len() - 1, domain)
        };
        inner.env.spawn(Rc::clone(inner).commit_epochs(domain));
        tracing::info!(volume = name, size, "a volume was made");
        let state = inner.state.borrow();
        Ok(Volume::new(Rc::clone(inner), index, &state.volumes[index]))
    }

    /// Gives a volume another name.
    pub async fn rename_volume(&self, id: VolumeId, name: &str) -> Result<(), ManageError> {
        let inner = &self.0;
        let _one_at_a_time = inner.management.lock.lock().await;
        inner.check_change(None)?;
        let index = inner.live(id)?;
        inner.mds.rename_volume(id, name).await?;
        let before =
            std::mem::replace(&mut inner.state.borrow_mut().volumes[index].name, Rc::from(name));
        tracing::info!(volume = %before, name, "a volume was renamed");
        Ok(())
    }

    /// Changes a volume's size. A smaller one loses what is beyond it, for which `shrink` is the
    /// caller's word.
    pub async fn resize_volume(
        &self,
        id: VolumeId,
        size: u64,
        shrink: bool,
    ) -> Result<(), ManageError> {
        let inner = &self.0;
        let _one_at_a_time = inner.management.lock.lock().await;
        inner.check_change(Some(size))?;
        let index = inner.live(id)?;
        let before = inner.state.borrow().volumes[index].size;
        if size < before && !shrink {
            return Err(ManageError::Shrinks { from: before, to: size });
        }
        let extents = inner.geometry.extents_for(size) as u32;
        if size < before {
            // From here on nothing is written beyond the new end.
            inner.set_size(index, size);
            inner.emptying_begins();
            let shrunk = inner.shrink(index, id, size).await;
            inner.emptying_ends();
            if let Err(error) = shrunk {
                if !error.is_in_doubt() {
                    inner.set_size(index, before);
                }
                return Err(error);
            }
            inner.state.borrow_mut().volumes[index].extents.resize(extents);
        } else {
            inner.mds.resize_volume(id, size).await?;
            inner.state.borrow_mut().volumes[index].extents.resize(extents);
            inner.set_size(index, size);
        }
        tracing::info!(volume = %inner.state.borrow().volumes[index].name, before, size, "resized");
        Ok(())
    }

    /// Deletes a volume: when this returns, it is gone for clients, and for ever. Its extents come
    /// back in the background; [`Unit::deletions_ended`] waits for that.
    pub async fn delete_volume(&self, id: VolumeId) -> Result<(), ManageError> {
        let inner = &self.0;
        let _one_at_a_time = inner.management.lock.lock().await;
        inner.check_change(None)?;
        let index = inner.live(id)?;
        if let Err(error) = inner.mds.delete_volume(id).await.map_err(ManageError::from) {
            if error.is_in_doubt() {
                inner.stop_in_doubt(index, &error);
            }
            return Err(error);
        }
        {
            let mut state = inner.state.borrow_mut();
            state.volumes[index].stage = Stage::Deleting;
            state.wake_everyone();
            tracing::info!(volume = %state.volumes[index].name, "a volume was deleted");
        }
        inner.begin_deletion(index);
        Ok(())
    }

    /// Returns when no deletion goes on any more: all have ended, or wait for the next start.
    pub async fn deletions_ended(&self) {
        self.0.emptied().await;
    }
}

impl<E: Env> Inner<E> {
    /// Whether volumes may be changed now, one of them perhaps to this size.
    fn check_change(&self, size: Option<u64>) -> Result<(), ManageError> {
        if self.state.borrow().stopping {
            return Err(IoError::ShuttingDown.into());
        }
        let block = self.geometry.block_size();
        let whole = |size: u64| size > 0 && size.is_multiple_of(u64::from(block));
        if size.is_some_and(|size| !whole(size)) {
            return Err(ManageError::Size { block });
        }
        Ok(())
    }

    /// The index of a volume that can be used.
    fn live(&self, id: VolumeId) -> Result<usize, ManageError> {
        let state = self.state.borrow();
        let wanted = |volume: &VolumeState| volume.id == id && volume.stage == Stage::Live;
        state.volumes.iter().position(wanted).ok_or(ManageError::Unknown)
    }

    fn set_size(&self, index: usize, size: u64) {
        let mut state = self.state.borrow_mut();
        state.volumes[index].size = size;
        // Those who wait may be beyond the end now.
        state.wake_everyone();
    }

    /// Stops a volume that may have been deleted.
    fn stop_in_doubt(&self, index: usize, error: &ManageError) {
        let reason = format!("it may have been deleted, which the next start will tell: {error}");
        let mut state = self.state.borrow_mut();
        tracing::error!(volume = %state.volumes[index].name, reason, "no more writes are taken");
        state.domain_of_mut(index).fail(&reason);
        state.wake_everyone();
    }

    /// Of the unit itself, in the volume's present life.
    fn seat(&self, index: usize) -> Seat {
        Seat { volume: index, life: self.state.borrow().volumes[index].life }
    }

    async fn shrink(&self, index: usize, id: VolumeId, size: u64) -> Result<(), ManageError> {
        self.empty(index, size).await?;
        Ok(self.mds.resize_volume(id, size).await?)
    }

    /// Goes on with a deletion, in the background.
    pub(super) fn begin_deletion(self: &Rc<Self>, index: usize) {
        self.emptying_begins();
        let inner = Rc::clone(self);
        self.env.spawn(async move {
            inner.finish_deletion(index).await;
            inner.emptying_ends();
        });
    }

    /// Extents will come back: those who find none wait.
    fn emptying_begins(&self) {
        self.state.borrow_mut().emptying += 1;
    }

    /// They have come, or do not: those who wait look again.
    fn emptying_ends(&self) {
        let mut state = self.state.borrow_mut();
        state.emptying -= 1;
        state.wake_everyone();
        if state.emptying == 0 {
            self.management.emptied.notify_waiters();
        }
    }

    async fn finish_deletion(&self, index: usize) {
        let (id, name) = {
            let volume = &self.state.borrow().volumes[index];
            (volume.id, Rc::clone(&volume.name))
        };
        if let Err(reason) = self.forget(index, id).await {
            tracing::warn!(volume = %name, %reason, "the deletion goes on at the next start");
            return;
        }
        let mut state = self.state.borrow_mut();
        let volume = &mut state.volumes[index];
        volume.stage = Stage::Gone;
        volume.extents.resize(0);
        // The commit task of its domain ends, and nobody waits for that any more.
        let alone = volume.alone;
        state.domains[alone].end();
        tracing::info!(volume = %name, "the space of a deleted volume is free again");
    }

    async fn forget(&self, index: usize, id: VolumeId) -> Result<(), ManageError> {
        self.empty(index, 0).await?;
        Ok(self.mds.remove_volume(id).await?)
    }

    /// Returns when no volume is being emptied any more.
    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.management.emptied.notified();
            if self.state.borrow().emptying == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Makes everything from a byte on unused, durably, and gives back the extents there. No
    /// request may write there any more.
    async fn empty(&self, index: usize, from: u64) -> Result<(), ManageError> {
        for span in self.backed_spans(index, from) {
            self.trim(self.seat(index), span).await?;
            self.env.sleep(PAUSE).await;
        }
        self.flush(index).await?;
        let first = LogicalExtent(self.geometry.extents_for(from) as u32);
        loop {
            let pairs: Vec<PairId> = {
                let state = self.state.borrow();
                let backed = state.volumes[index].extents.backed_from(first);
                backed.map(|(_, pair)| pair).take(BATCH).collect()
            };
            if pairs.is_empty() {
                break;
            }
            if self.state.borrow().stopping {
                return Err(IoError::ShuttingDown.into());
            }
            let settled = self.settle_pairs(pairs).await;
            let report = settled.map_err(|reason| IoError::Latched(reason.into()))?;
            if report.released == 0 {
                // A settle has them already, or a request holds them for a moment.
                self.env.sleep(RETRY_AFTER).await;
            }
        }
        // Whoever released the last of them has told the metadata server when it lets go of this.
        drop(self.settle_lock.lock().await);
        Ok(())
    }

    /// The parts of a volume from a byte on that are backed, each of at most [`BATCH`] extents and
    /// no more than one trim can be.
    fn backed_spans(&self, index: usize, from: u64) -> Vec<Span> {
        let extent = u64::from(self.geometry.extent_size());
        let max = (BATCH as u64 * extent).min(self.limits.zero_bytes);
        let state = self.state.borrow();
        let first = LogicalExtent((from / extent) as u32);
        let mut spans: Vec<Span> = Vec::new();
        for (logical, _) in state.volumes[index].extents.backed_from(first) {
            let start = u64::from(logical.0) * extent;
            match spans.last_mut() {
                Some(last) if last.offset + last.len == start && last.len + extent <= max => {
                    last.len += extent;
                }
                _ => {
                    let offset = start.max(from);
                    spans.push(Span { offset, len: start + extent - offset });
                }
            }
        }
        spans
    }
}

/// Why a request cannot be admitted to its volume any more, if it cannot. Whoever only gives space
/// up is let through: that is how a volume is emptied.
pub(super) fn check_there(
    state: &State,
    volume: usize,
    parts: &Parts,
    geometry: Geometry,
) -> Result<(), IoError> {
    let volume = &state.volumes[volume];
    let mut writing = parts.iter().filter(|part| !part.write.is_empty()).peekable();
    if writing.peek().is_some() && volume.stage != Stage::Live {
        return Err(IoError::Deleted);
    }
    let (extent, block) = (u64::from(geometry.extent_size()), u64::from(geometry.block_size()));
    for part in writing {
        let start = u64::from(part.logical.0) * extent;
        if start + extent <= volume.size {
            continue;
        }
        for run in part.write.runs() {
            let (offset, len) = (start + run.start as u64 * block, run.len() as u64 * block);
            if offset + len > volume.size {
                let (what, size) = ("a write", volume.size);
                return Err(IoError::OutOfRange { what, offset, len, size });
            }
        }
    }
    Ok(())
}
