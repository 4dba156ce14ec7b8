//! What can be seen of a unit at one moment. Nothing here changes anything.

use std::cell::Cell;

use super::domain::Domain;
use super::{Inner, Unit, fullness};
use crate::env::{Env, Moment};
use crate::observe::{
    Cause, CommitGauges, Gauges, GrantGauges, SettleGauges, SettleStep, SpaceGauges, VolumeGauges,
    WaitGauges,
};

/// What the background does.
#[derive(Default)]
pub(super) struct Progress {
    /// A settle: how far it is, of how many areas, and since when.
    pub settle: UnderWay<(SettleStep, u64, Moment)>,
    /// A checkpoint, and since when.
    pub checkpoint: UnderWay<Moment>,
}

/// Something that one at a time does, while it does it.
pub(super) struct UnderWay<T>(Cell<Option<T>>);

/// Ends what is under way, however that comes.
pub(super) struct Ending<'a, T>(&'a UnderWay<T>);

impl<T> Default for UnderWay<T> {
    fn default() -> Self {
        Self(Cell::new(None))
    }
}

impl<T: Copy> UnderWay<T> {
    /// It is under way until what is returned is dropped.
    pub fn begin(&self, what: T) -> Ending<'_, T> {
        self.0.set(Some(what));
        Ending(self)
    }

    /// What is under way.
    pub fn get(&self) -> Option<T> {
        self.0.get()
    }
}

impl<T> Ending<'_, T> {
    /// It has come so far.
    pub fn note(&self, what: T) {
        self.0.0.set(Some(what));
    }
}

impl<T> Drop for Ending<'_, T> {
    fn drop(&mut self) {
        self.0.0.set(None);
    }
}

impl<E: Env> Unit<E> {
    /// What can be measured now. Connections and rates are not the unit's to know.
    pub fn gauges(&self) -> Gauges {
        let state = self.0.state.borrow();
        let extent_size = u64::from(self.0.geometry.extent_size());
        let volumes = state.live().map(|(index, volume)| VolumeGauges {
            name: volume.name.to_string(),
            size: volume.size,
            allocated: u64::from(volume.extents.backed()) * extent_size,
            epoch: state.domain_of(index).committed,
            clients: 0,
            commit: self.0.commit_gauges(state.domain_of(index)),
            latched: state.domain_of(index).failed.as_deref().map(str::to_owned),
        });
        let (used, total) = (state.pool.data_used(), u64::from(state.data_extents));
        let (slots_free, slots) = self.0.journal.slots();
        Gauges {
            journal_extents_free: state.pool.available().into(),
            journal_slots: [slots_free as u64, slots as u64],
            space: SpaceGauges {
                data_extents: total,
                data_extents_used: used,
                extent_size,
                percent: fullness::percent(used, total),
                mark_crossed: state.fullness.crossed(),
            },
            grant: GrantGauges {
                level: state.grant.level(),
                extents_left: state.pool.available().into(),
                data_left: state.pool.data_left(),
                more: state.grant.more_extents(),
            },
            waiting: self.0.wait_gauges(state.grant.may_supply(state.pool.left())),
            volumes: volumes.collect(),
            ..Gauges::default()
        }
    }
}

impl<E: Env> Inner<E> {
    fn age_ms(&self, since: Moment) -> u64 {
        self.env.now().since(since).as_millis() as u64
    }

    fn commit_gauges(&self, domain: &Domain) -> Option<CommitGauges> {
        let (step, started) = domain.commit.filter(|_| domain.failed.is_none())?;
        let in_flight = domain.sealed.as_ref().map_or(0, |sealed| sealed.in_flight.into());
        Some(CommitGauges { step, since_ms: self.age_ms(started), in_flight })
    }

    fn wait_gauges(&self, extents_asked_for: bool) -> WaitGauges {
        let server = self.mds.status();
        let count = |cause| self.waiters.count(cause);
        let settle = self.progress.settle.get().filter(|(_, areas, _)| *areas > 0);
        let settle = settle.map(|(step, areas, started)| SettleGauges {
            step,
            areas,
            since_ms: self.age_ms(started),
        });
        WaitGauges {
            throttled: count(Cause::Throttled),
            blocks: count(Cause::Blocks),
            epoch: count(Cause::Epoch),
            extents: count(Cause::Extents),
            commit: count(Cause::Commit),
            metadata_server: server.waiting as u64,
            metadata_server_silent_ms: server.silent_since.map(|since| self.age_ms(since)),
            extents_asked_for,
            settle,
            checkpoint_ms: self.progress.checkpoint.get().map(|since| self.age_ms(since)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is under way is seen until it has ended, however it ends.
    #[test]
    fn what_is_under_way_ends() {
        let under_way = UnderWay::default();
        assert_eq!(under_way.get(), None);
        let ending = under_way.begin(1);
        ending.note(2);
        assert_eq!(under_way.get(), Some(2));
        drop(ending);
        assert_eq!(under_way.get(), None);
    }
}
