//! What must be true of a unit's own state at every quiet point.

use std::collections::BTreeSet;

use super::settle::pair_record;
use super::{Inner, Unit};
use crate::env::Env;
use crate::format::ids::{ExtentId, LogicalExtent, PairId};
use crate::mds::records::{Grants, PairRecord};
use crate::observe::Cause;

impl<E: Env> Unit<E> {
    /// Checks that the unit's state agrees with itself: no block without an extent, no extent in
    /// two places, none lost, every volume's pairs its own, every journal slot accounted for, and
    /// nobody waits unseen.
    /// Returns what does not.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.0.check_extents()?;
        self.0.check_volumes()?;
        self.0.check_gauges()?;
        self.0.journal.check_invariants()
    }

    /// Checks that the metadata server's records of the unit's pairs are what the lines say, which
    /// they are whenever the unit [is quiet](Unit::is_quiet). Returns what is not.
    ///
    /// Of a released pair the server need not know in which generation it was.
    pub fn check_told(&self, known: &[PairRecord]) -> Result<(), String> {
        let state = self.0.state.borrow();
        let mut owned: BTreeSet<PairId> = BTreeSet::new();
        owned.extend(state.pairs.lines().filter(|of| of.1.binding.owner.is_some()).map(|of| of.0));
        for record in known {
            let binding = state.pairs.line(record.pair).binding;
            let same = if record.is_released() {
                binding.owner.is_none() && record.generation <= binding.generation
            } else {
                owned.remove(&record.pair);
                *record == pair_record(record.pair, (record.volume, record.logical), &binding)
                    && binding.owner == Some((record.volume, record.logical))
            };
            if !same {
                return Err(format!("the server was told {record:?}, and the line is {binding:?}"));
            }
        }
        match owned.first() {
            Some(pair) => Err(format!("the server was never told of pair {pair}")),
            None => Ok(()),
        }
    }

    /// Checks that the metadata server has granted the extents that the unit has, and no others,
    /// and as much of the quota, which is so whenever the unit [is quiet](Unit::is_quiet). Returns
    /// what is not.
    pub fn check_granted(&self, granted: &Grants) -> Result<(), String> {
        let state = self.0.state.borrow();
        let mut extents = 0;
        for extent in granted.runs.iter().flat_map(|run| run.iter()) {
            extents += 1;
            if !state.pool.is_held(extent) {
                return Err(format!("extent {extent} is granted, and the unit does not know"));
            }
        }
        let (held, quota) = (state.pool.held(), state.pool.data_quota());
        if (held, quota) != (extents, granted.data_quota) {
            let data_quota = granted.data_quota;
            return Err(format!(
                "{extents} extents are granted, and {data_quota} for data; the unit counts {held} \
                 and {quota}"
            ));
        }
        Ok(())
    }

    /// Whether nothing is under way: no request, commit, settle or wait, and nothing that the
    /// metadata server is still to be told. Payload in the journal may stay there.
    pub fn is_quiet(&self) -> bool {
        let state = self.0.state.borrow();
        state.pairs.working().all(|(_, work)| work.is_at_rest())
            && state.space_queue.is_empty()
            && state.leaving == 0
            && !state.grant.under_way
            && state.emptying == 0
            && state.untold.is_empty()
            && !state.telling
            && state.domains.iter().all(|domain| domain.newest_dirty().is_none())
            && self.0.readers.count() == 0
    }
}

impl<E: Env> Inner<E> {
    fn check_extents(&self) -> Result<(), String> {
        let state = self.state.borrow();
        let mut named: BTreeSet<ExtentId> = BTreeSet::new();
        let mut data_areas = 0;
        for (pair, line) in state.pairs.lines() {
            if !line.is_sound() {
                return Err(format!("pair {pair} cannot be: {line:?}"));
            }
            let binding = state.pairs.binding(pair);
            data_areas += u64::from(binding.owner.is_some());
            for extent in binding.extents.into_iter().flatten() {
                if !named.insert(extent) {
                    return Err(format!("extent {extent} is in two places"));
                }
                if state.pool.is_free(extent) {
                    return Err(format!("extent {extent} of pair {pair} is free"));
                }
            }
        }
        let all = state.pool.granted();
        let counted = named.len() as u32 + state.pool.available() + state.leaving;
        if state.leaving == 0 && counted != all {
            return Err(format!("{counted} extents are accounted for, of {all}"));
        }
        if state.leaving == 0 && data_areas != state.pool.data_used() {
            return Err(format!("{data_areas} data areas, {} counted", state.pool.data_used()));
        }
        Ok(())
    }

    fn check_gauges(&self) -> Result<(), String> {
        let state = self.state.borrow();
        if state.domains.iter().any(|of| of.sealed.is_some() != of.commit.is_some()) {
            return Err("a commit is under way and is not seen, or seen and not under way".into());
        }
        let mut waiting: BTreeSet<u64> = state.space_queue.iter().map(|(of, _)| *of).collect();
        let works = state.pairs.working().flat_map(|(_, work)| &work.waiters);
        waiting.extend(works.map(|waiter| waiter.ticket));
        let causes = [Cause::Throttled, Cause::Blocks, Cause::Epoch, Cause::Extents];
        let seen: u64 = causes.map(|cause| self.waiters.count(cause)).iter().sum();
        if waiting.len() as u64 > seen {
            return Err(format!("{} requests wait, and {seen} are seen", waiting.len()));
        }
        Ok(())
    }

    fn check_volumes(&self) -> Result<(), String> {
        let state = self.state.borrow();
        let mut owned: BTreeSet<PairId> = BTreeSet::new();
        for volume in &state.volumes {
            for (logical, pair) in volume.extents.backed_from(LogicalExtent(0)) {
                owned.insert(pair);
                let owner = state.pairs.binding(pair).owner;
                if owner != Some((volume.id, logical)) {
                    return Err(format!("pair {pair} behind extent {logical} is {owner:?}'s"));
                }
            }
        }
        for (pair, _) in state.pairs.lines() {
            let free = state.free_pairs.contains(pair.0);
            if free == owned.contains(&pair) && state.leaving == 0 {
                return Err(format!("pair {pair} is free ({free}) and owned alike"));
            }
        }
        Ok(())
    }
}
