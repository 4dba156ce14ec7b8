//! Free and granted extents, and the quota for data.

use super::rows::{self, UnitRow};
use super::{Catalog, Fault, Unit, refused};
use crate::format::ids::{ExtentId, ExtentRun, Incarnation, UnitId};
use crate::mds::error::Refusal;
use crate::mds::records::{ALLOCATION_RUNS_MAX, Grants};
use crate::mds::runs::RunSet;
use crate::mds::store::{self, StoreError, Table};

/// What extents are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Allocate_Journal_Space: any, from all that is free.
    Journal,
    /// As data areas: against the quota, which leaves the reserve.
    Data,
}

impl Catalog {
    /// Grants a unit up to `count` extents: fewer where there are no more, or not in few runs; and
    /// as many of the quota, where they are for data. That many are of the quota even where there
    /// are no extents for them: the unit may have them already, as journal areas.
    pub fn allocate(&mut self, unit: UnitId, purpose: Use, count: u32) -> Grants {
        let (count, data_quota) = match purpose {
            Use::Journal => (count, 0),
            Use::Data => {
                let limit = u64::from(self.info.extents - self.info.reserve);
                let count = count.min(limit.saturating_sub(self.data_quota()) as u32);
                (count, count.into())
            }
        };
        let runs = self.free.take(count, ALLOCATION_RUNS_MAX);
        let known = self.units.entry(unit).or_default();
        runs.iter().for_each(|run| known.granted.insert(*run));
        known.data_quota += data_quota;
        match purpose {
            Use::Journal => self.counters.journal_allocations += 1,
            Use::Data => self.counters.data_allocations += 1,
        }
        // Also where only runs changed: grants are those of units that have a row.
        self.put_unit(unit);
        Grants { runs, data_quota }
    }

    /// Takes back extents that are in no pair, and `data` of the unit's quota.
    pub fn give_back(&mut self, unit: UnitId, runs: &[ExtentRun], data: u32) -> Result<(), Fault> {
        let known = self.units.get(&unit);
        let known = known.ok_or(Fault::Refused(Refusal::NotGranted, 0))?;
        let mut together = RunSet::default();
        for (i, run) in runs.iter().enumerate() {
            if !known.granted.contains_run(*run) || together.overlaps(*run) {
                return Err(Fault::Refused(Refusal::NotGranted, i as u64));
            }
            if run.iter().any(|extent| self.holder(extent).is_some()) {
                return Err(Fault::Refused(Refusal::ExtentInUse, i as u64));
            }
            together.insert(*run);
        }
        if u64::from(data) > known.data_quota {
            return refused(Refusal::OutOfRange);
        }
        let known = self.units.get_mut(&unit).expect("looked up above");
        for run in runs {
            known.granted.remove(*run);
            self.free.insert(*run);
        }
        known.data_quota -= u64::from(data);
        self.counters.extents_returned += together.total();
        self.put_unit(unit);
        Ok(())
    }

    /// A page of a unit's granted runs from an extent on, and its quota for data.
    pub fn grants(&self, unit: UnitId, from: u64, count: usize) -> (u64, Vec<ExtentRun>) {
        let (Some(known), Ok(from)) = (self.units.get(&unit), u32::try_from(from)) else {
            return (0, Vec::new());
        };
        (known.data_quota, known.granted.iter_from(from).take(count).collect())
    }

    /// What is granted as data, over all units.
    pub(super) fn data_quota(&self) -> u64 {
        self.units.values().map(|unit| unit.data_quota).sum()
    }

    pub(super) fn is_granted(&self, unit: UnitId, extent: ExtentId) -> bool {
        self.units.get(&unit).is_some_and(|known| known.granted.contains(extent))
    }

    /// Reads units, free and granted runs, and checks that they add up to the pool.
    pub(super) fn load_space(&mut self) -> Result<(), StoreError> {
        let mut free = Vec::new();
        self.load(Table::Free, |key, row| {
            free.push(stored_run(store::numbers::<1>(key)?[0], row)?);
            Ok(())
        })?;
        let mut granted: Vec<(UnitId, ExtentRun)> = Vec::new();
        self.load(Table::Grants, |key, row| {
            let [unit, start] = store::numbers(key)?;
            granted.push((UnitId(unit), stored_run(start, row)?));
            Ok(())
        })?;
        let mut units = std::collections::BTreeMap::new();
        self.load(Table::Units, |key, row| {
            let [unit] = store::numbers(key)?;
            let row: UnitRow = rows::parsed(row)?;
            let runs = granted.iter().filter(|(of, _)| of.0 == unit).map(|(_, run)| *run);
            let known = Unit {
                incarnation: row.incarnation(),
                begun: row.begun(),
                readers: Incarnation::default(),
                session: row.session.get(),
                data_quota: row.data_quota.get(),
                granted: RunSet::from_stored(runs).ok_or_else(overlap)?,
                flags_here: row.flags_here(),
            };
            units.insert(UnitId(unit), known);
            Ok(())
        })?;
        let all = free.iter().copied().chain(granted.iter().map(|(_, run)| *run));
        let all = RunSet::from_stored(all).ok_or_else(overlap)?;
        let known: u64 = units.values().map(|unit: &Unit| unit.granted.total()).sum();
        self.free = RunSet::from_stored(free).ok_or_else(overlap)?;
        self.units = units;
        let beyond = all.iter().any(|run| run.end().0 as usize > self.holders.len());
        if beyond
            || all.total() != u64::from(self.info.extents)
            || self.free.total() + known != all.total()
        {
            let text = "free and granted extents are not all the pool's".to_owned();
            return Err(StoreError::Damaged(text));
        }
        Ok(())
    }
}

fn overlap() -> StoreError {
    StoreError::Damaged("an extent is free or granted twice".to_owned())
}

fn stored_run(start: u32, row: &[u8]) -> Result<ExtentRun, StoreError> {
    let [count] = store::numbers(row)?;
    if start.checked_add(count).is_none() {
        return Err(StoreError::Damaged("a run that there cannot be".to_owned()));
    }
    Ok(ExtentRun { start: ExtentId(start), count })
}
