//! The primitives: what a batch does to the pairs of a unit.

use std::collections::{BTreeMap, BTreeSet};

use super::rows;
use super::{Catalog, Fault};
use crate::format::ids::{ExtentId, LogicalExtent, PairId, UnitId, VolumeId};
use crate::mds::error::Refusal;
use crate::mds::raw::{Malformed, RawPair};
use crate::mds::records::{PairRecord, Primitive};
use crate::mds::store::{self, StoreError, Table};
use crate::mutants::{Mutant, mutated};

/// How many pairs may stand for one logical extent at a time while changes are on their way; a page
/// of a layout is read with so many rows more, so that it ends between logical extents.
const PAIRS_OF_ONE_EXTENT_MAX: usize = 8;

/// A pair that the batch changes: the record that does, and how it was before the batch.
struct Staged {
    index: usize,
    old: Option<PairRecord>,
    new: PairRecord,
}

impl Catalog {
    /// Executes a batch for a unit, whole or not at all. A refusal's detail is the index of the
    /// record that it is for.
    pub fn transact(&mut self, unit: UnitId, batch: &[Primitive]) -> Result<(), Fault> {
        let (staged, counted) = self.stage(unit, batch)?;
        let (freed, claimed) = self.check_extents(unit, &staged)?;
        self.bound = self.bound - freed.len() as u64 + claimed.len() as u64;
        for extent in freed {
            self.holders[extent.0 as usize] = None;
        }
        for (extent, pair) in claimed {
            self.holders[extent.0 as usize] = Some((unit, pair));
        }
        for change in staged.values() {
            self.put_pair(unit, change);
        }
        for applied in counted {
            self.count(applied);
        }
        self.counters.transactions += 1;
        Ok(())
    }

    /// A page of the live pairs of a volume, with their units: `count`, or a few more so that it
    /// ends between logical extents. Asks the store alone: what is not committed is not in it.
    pub fn layout(
        &self,
        volume: VolumeId,
        from: LogicalExtent,
        count: usize,
    ) -> Result<Vec<(UnitId, PairRecord)>, StoreError> {
        let from = store::key(&[volume.0, from.0]);
        let limit = count + PAIRS_OF_ONE_EXTENT_MAX;
        let mut page: Vec<(UnitId, PairRecord)> = Vec::new();
        for (key, _) in self.store.range(Table::Layout, &from, limit)? {
            let [of, logical, unit, pair] = store::numbers(&key)?;
            let full = page.len() >= count
                && page.last().is_some_and(|(_, last)| last.logical.0 != logical);
            if of != volume.0 || full {
                break;
            }
            let row = self.store.get(Table::Pairs, &store::key(&[unit, pair]))?;
            let row = row.ok_or_else(|| StoreError::Damaged("a pair without a row".to_owned()))?;
            page.push((UnitId(unit), pair_of(&row)?));
        }
        Ok(page)
    }

    /// Whether any extent of a volume from `from` on is bound: in the batch or, where that says
    /// nothing of it, in the store.
    pub(super) fn is_bound(
        &self,
        volume: VolumeId,
        from: LogicalExtent,
    ) -> Result<bool, StoreError> {
        let (own, from) = (store::key(&[volume.0]), store::key(&[volume.0, from.0]));
        let changes = self.changes.range((Table::Layout, from.clone())..);
        let changes = changes
            .take_while(|((table, key), _)| *table == Table::Layout && key.starts_with(&own));
        let (bound, released): (Vec<_>, Vec<_>) = changes.partition(|(_, row)| row.is_some());
        if !bound.is_empty() {
            return Ok(true);
        }
        // One row more than the batch takes out.
        let rows = self.store.range(Table::Layout, &from, released.len() + 1)?;
        let mut rows = rows.into_iter().map(|(key, _)| key).filter(|key| key.starts_with(&own));
        Ok(rows.any(|key| !self.changes.contains_key(&(Table::Layout, key))))
    }

    /// What the records that are new change, and which they are (`None` for each stale one).
    #[expect(clippy::type_complexity, reason = "two results of one pass, used at one place")]
    fn stage<'a>(
        &self,
        unit: UnitId,
        batch: &'a [Primitive],
    ) -> Result<(BTreeMap<PairId, Staged>, Vec<Option<&'a Primitive>>), Fault> {
        let mut staged: BTreeMap<PairId, Staged> = BTreeMap::new();
        let mut counted = Vec::with_capacity(batch.len());
        for (index, primitive) in batch.iter().enumerate() {
            let new = *primitive.pair();
            let refuse = |refusal| Fault::Refused(refusal, index as u64);
            check_shape(primitive).map_err(refuse)?;
            let old = match staged.get(&new.pair) {
                Some(before) => before.old,
                None => self.pair(unit, new.pair)?,
            };
            let current = staged.get(&new.pair).map(|before| before.new).or(old);
            let stale = current.is_some_and(|current| new.generation <= current.generation);
            if stale && !mutated(Mutant::GenerationUnchecked) {
                counted.push(None);
                continue;
            }
            if !new.is_released() {
                let size =
                    self.volume(new.volume).map_err(|_| refuse(Refusal::UnknownVolume))?.size;
                if u64::from(new.logical.0) >= self.extents_of(size) {
                    return Err(refuse(Refusal::OutOfRange));
                }
            }
            staged.insert(new.pair, Staged { index, old, new });
            counted.push(Some(primitive));
        }
        Ok((staged, counted))
    }

    /// Which extents leave their pairs and which are in pairs afterwards, if all of it may be.
    fn check_extents(
        &self,
        unit: UnitId,
        staged: &BTreeMap<PairId, Staged>,
    ) -> Result<(BTreeSet<ExtentId>, BTreeMap<ExtentId, PairId>), Fault> {
        let old = staged.values().filter_map(|change| change.old);
        let freed: BTreeSet<ExtentId> = old.flat_map(|old| old.slots).flatten().collect();
        let mut claimed = BTreeMap::new();
        for (pair, change) in staged {
            let refuse = |refusal| Fault::Refused(refusal, change.index as u64);
            for extent in change.new.slots.into_iter().flatten() {
                if !self.is_granted(unit, extent) {
                    return Err(refuse(Refusal::NotGranted));
                }
                let held = self.holder(extent).is_some() && !freed.contains(&extent);
                if held || claimed.insert(extent, *pair).is_some() {
                    return Err(refuse(Refusal::ExtentInUse));
                }
            }
        }
        Ok((freed, claimed))
    }

    /// The pair as it is, in the batch or else in the store.
    fn pair(&self, unit: UnitId, pair: PairId) -> Result<Option<PairRecord>, StoreError> {
        let key = (Table::Pairs, store::key(&[unit.0, pair.0]));
        match self.changes.get(&key) {
            Some(row) => row.as_deref().map(pair_of).transpose(),
            None => self.store.get(key.0, &key.1)?.as_deref().map(pair_of).transpose(),
        }
    }

    fn put_pair(&mut self, unit: UnitId, change: &Staged) {
        let place = |pair: PairRecord| {
            let key = store::key(&[pair.volume.0, pair.logical.0, unit.0, pair.pair.0]);
            (!pair.is_released()).then_some(key)
        };
        let new = change.new;
        let (old_place, new_place) = (change.old.and_then(place), place(new));
        if old_place != new_place {
            if let Some(key) = old_place {
                self.changes.insert((Table::Layout, key), None);
            }
            if let Some(key) = new_place {
                self.changes.insert((Table::Layout, key), Some(Vec::new()));
            }
        }
        let key = store::key(&[unit.0, new.pair.0]);
        self.changes.insert((Table::Pairs, key), Some(rows::bytes(&RawPair::from(&new))));
    }

    fn count(&mut self, applied: Option<&Primitive>) {
        let counters = &mut self.counters;
        let counter = match applied {
            None => &mut counters.stale,
            Some(Primitive::AssociateDataJournal(_)) => &mut counters.associates,
            Some(Primitive::SwapDataJournal(_)) => &mut counters.swaps,
            Some(Primitive::CommitDataJournal(_)) => &mut counters.commits,
            Some(Primitive::DisassociateJournalExtent(_)) => &mut counters.disassociates,
            Some(Primitive::BindData(_)) => &mut counters.binds,
            Some(Primitive::ReleasePair(_)) => &mut counters.releases,
            Some(Primitive::HardenExtentFlags(_)) => unreachable!("refused by its shape"),
        };
        *counter += 1;
    }

    /// Reads who holds which extent, and checks it against the grants.
    pub(super) fn load_holders(&mut self) -> Result<(), StoreError> {
        let mut holders = std::mem::take(&mut self.holders);
        self.load(Table::Pairs, |key, row| {
            let [unit, pair] = store::numbers(key)?;
            let (unit, pair) = (UnitId(unit), PairId(pair));
            for extent in pair_of(row)?.slots.into_iter().flatten() {
                let holder = holders.get_mut(extent.0 as usize);
                let holder = holder.filter(|holder| holder.is_none());
                let holder = holder.filter(|_| self.is_granted(unit, extent)).ok_or_else(|| {
                    let text = format!("extent {extent} of pair {pair} is not that pair's alone");
                    StoreError::Damaged(text)
                })?;
                *holder = Some((unit, pair));
            }
            Ok(())
        })?;
        self.bound = holders.iter().flatten().count() as u64;
        self.holders = holders;
        Ok(())
    }

    /// Every pair that is stored, with its unit.
    pub(super) fn stored_pairs(&self) -> Result<Vec<(UnitId, PairRecord)>, StoreError> {
        let mut pairs = Vec::new();
        self.load(Table::Pairs, |key, row| {
            let [unit, pair] = store::numbers(key)?;
            let record = pair_of(row)?;
            if record.pair.0 != pair {
                return Err(StoreError::Damaged(format!("pair {pair} is stored as another")));
            }
            pairs.push((UnitId(unit), record));
            Ok(())
        })?;
        Ok(pairs)
    }

    /// Checks that the layout names each live pair where it belongs, and nothing else.
    pub(super) fn check_layout(&self) -> Result<(), StoreError> {
        let pairs = self.stored_pairs()?.into_iter();
        let live = pairs.filter(|(_, record)| !record.is_released());
        let mut live: BTreeSet<[u32; 4]> =
            live.map(|(unit, of)| [of.volume.0, of.logical.0, unit.0, of.pair.0]).collect();
        let damaged = || StoreError::Damaged("its layout is not that of its pairs".to_owned());
        self.load(Table::Layout, |key, _| {
            if live.remove(&store::numbers::<4>(key)?) { Ok(()) } else { Err(damaged()) }
        })?;
        if live.is_empty() { Ok(()) } else { Err(damaged()) }
    }
}

/// Whether the pair that shall be is what the primitive can leave.
fn check_shape(primitive: &Primitive) -> Result<(), Refusal> {
    let pair = primitive.pair();
    let slots = pair.slots.iter().flatten().count();
    let right = match primitive {
        Primitive::AssociateDataJournal(_) => slots == 2,
        Primitive::DisassociateJournalExtent(_) => slots == 1,
        Primitive::SwapDataJournal(_)
        | Primitive::CommitDataJournal(_)
        | Primitive::BindData(_) => slots >= 1,
        Primitive::ReleasePair(_) => slots == 0,
        Primitive::HardenExtentFlags(_) => return Err(Refusal::Unsupported),
    };
    if right { Ok(()) } else { Err(Refusal::Malformed) }
}

fn pair_of(row: &[u8]) -> Result<PairRecord, StoreError> {
    let row: RawPair = rows::parsed(row)?;
    PairRecord::try_from(&row).map_err(|Malformed| StoreError::Damaged("a pair's row".to_owned()))
}
