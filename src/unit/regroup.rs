//! Volumes that go from one commit domain to another: a consistency group was made, changed, or
//! deleted (design section 6).
//!
//! # Contracts
//!
//! - **Instant**: a volume changes its domain at an instant when the one that it leaves has nothing
//!   pending and nothing in flight. New requests to that domain wait meanwhile, as they do when an
//!   epoch is full.
//! - **Alone**: what is pending in the domain that is left is committed by this unit alone. So a
//!   domain that other units have a part in is made this unit's own before
//!   ([`Membership::shared`](super::domain::Membership::shared)), while no transaction is under
//!   way.
//! - **Failure**: a volume stays where it is when that domain has stopped; the group is not served
//!   by this unit then.

use std::rc::Rc;
use std::sync::Arc;

use super::atomic::AtomicError;
use super::domain::{Domain, Membership, Point};
use super::error::IoError;
use super::state::VolumeState;
use super::{Inner, Unit};
use crate::env::Env;
use crate::format::ids::VolumeId;
use crate::txn::GroupId;

/// A group as a unit is to serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouping {
    /// Which group.
    pub group: GroupId,
    /// Its name.
    pub name: String,
    /// The membership's version.
    pub version: u32,
    /// The members on this unit; none: the group is over here.
    pub volumes: Vec<VolumeId>,
    /// Whether other units are in it, too.
    pub shared: bool,
    /// The life that the group is in.
    pub life: u32,
}

impl<E: Env> Unit<E> {
    /// Serves a group by that membership from now on; the error is why that cannot be.
    pub async fn regroup(&self, grouping: &Grouping) -> Result<(), Arc<str>> {
        self.0.regroup(grouping).await
    }
}

impl<E: Env> Inner<E> {
    /// As [`Unit::regroup`].
    pub(super) async fn regroup(self: &Rc<Self>, grouping: &Grouping) -> Result<(), Arc<str>> {
        let _one_at_a_time = self.management.lock.lock().await;
        let Some(domain) = self.group_domain(grouping) else { return Ok(()) };
        let served = self.state.borrow().domains[domain].serves();
        if served == Some(grouping.version) && !grouping.volumes.is_empty() {
            return Ok(());
        }
        let formed = self.form(domain, grouping).await;
        let mut state = self.state.borrow_mut();
        let of = &mut state.domains[domain];
        if let Some(membership) = &mut of.group {
            if let Err(reason) = &formed
                && membership.unformed.is_none()
            {
                tracing::error!(group = grouping.name, %reason, "the group cannot be served");
            }
            membership.unformed = formed.as_ref().err().cloned();
        }
        of.wake.notify_one();
        formed
    }

    async fn form(&self, domain: usize, grouping: &Grouping) -> Result<(), Arc<str>> {
        let leaves = |volume: &VolumeState| {
            volume.domain == domain && !grouping.volumes.contains(&volume.id)
        };
        let any_leaves = self.state.borrow().volumes.iter().any(leaves);
        if any_leaves || grouping.volumes.is_empty() {
            self.at_rest(domain).await?;
        }
        let moves: Vec<(usize, usize)> = {
            let mut state = self.state.borrow_mut();
            let volumes = state.volumes.iter().enumerate();
            let moves = volumes.filter_map(|(index, volume)| {
                let member = grouping.volumes.contains(&volume.id);
                let to = if member { domain } else { volume.alone };
                ((volume.domain == domain) != member).then_some((index, to))
            });
            let moves: Vec<_> = moves.collect();
            let membership = state.domains[domain].group.as_mut().expect("it is a group's");
            membership.name = grouping.name.as_str().into();
            if moves.iter().any(|(_, to)| *to != domain) {
                // What is pending is committed here alone.
                membership.shared = false;
            }
            moves
        };
        for (volume, to) in moves {
            self.move_volume(volume, to).await?;
        }
        let mut state = self.state.borrow_mut();
        let of = &mut state.domains[domain];
        let membership = of.group.as_mut().expect("it is a group's");
        if membership.standing.version == 0 {
            membership.standing.life = grouping.life;
        }
        membership.standing.version = grouping.version;
        membership.shared = grouping.shared;
        if grouping.volumes.is_empty() {
            of.end();
            of.group = None;
            self.talk.leave(grouping.group);
        }
        tracing::info!(
            group = grouping.name,
            volumes = grouping.volumes.len(),
            "a group is served"
        );
        Ok(())
    }

    /// Returns when a domain has nothing to do with any transaction, and its commit task does
    /// nothing that it was told: orders may arrive late, after those that say that the group is
    /// changed.
    async fn at_rest(&self, domain: usize) -> Result<(), Arc<str>> {
        loop {
            let decided = {
                let state = self.state.borrow();
                let of = &state.domains[domain];
                let busy = of.group.as_ref().is_some_and(|group| group.standing.is_busy());
                if !busy && !of.acting {
                    return Ok(());
                }
                if self.stopped.get() {
                    return Err(IoError::ShuttingDown.to_string().into());
                }
                Rc::clone(&of.decided)
            };
            decided.notified().await;
        }
    }

    /// The domain of a group, which is made where there is none; `None` where none is needed.
    fn group_domain(self: &Rc<Self>, grouping: &Grouping) -> Option<usize> {
        let mut state = self.state.borrow_mut();
        let known = state.group_domain(grouping.group);
        if known.is_some() || grouping.volumes.is_empty() {
            return known;
        }
        let Grouping { group, name, shared, life, .. } = grouping;
        state.domains.push(Domain::of_group(Membership::new(*group, name, *shared, *life)));
        let index = state.domains.len() - 1;
        drop(state);
        self.env.spawn(Rc::clone(self).commit_epochs(index));
        Some(index)
    }

    /// Moves a volume to another domain; see the module.
    async fn move_volume(&self, volume: usize, to: usize) -> Result<(), Arc<str>> {
        let from = self.state.borrow().volumes[volume].domain;
        self.state.borrow_mut().domains[from].leaving += 1;
        let left = self.leave_domain(volume, from, to).await;
        let mut state = self.state.borrow_mut();
        state.domains[from].leaving -= 1;
        state.domains[from].decided.notify_waiters();
        left
    }

    async fn leave_domain(&self, volume: usize, from: usize, to: usize) -> Result<(), Arc<str>> {
        loop {
            let point = {
                let mut state = self.state.borrow_mut();
                let changed = "a consistency group is changed".into();
                state.drop_waiting(from, AtomicError::Aborted(changed));
                let domain = &state.domains[from];
                if let Some(reason) = &domain.failed {
                    return Err(Arc::clone(reason));
                }
                if domain.is_clean() {
                    state.volumes[volume].domain = to;
                    return Ok(());
                }
                Point { domain: from, epoch: domain.open.number }
            };
            self.committed(point).await.map_err(|error| Arc::from(error.to_string()))?;
        }
    }
}
