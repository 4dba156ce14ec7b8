//! The rules: what is asked of the server, carried out on the store.
//!
//! Small things (volumes, units, free and granted runs, who holds an extent) are mirrored in
//! memory; pairs are read from the store. Every change goes into one batch, which
//! [`Catalog::commit`] makes durable as one transaction.
//!
//! # Contracts
//!
//! - **Invariants**: an extent is free or granted to exactly one unit; the slots of a unit's pairs
//!   are within its grant; no extent is in two pairs; what is granted as data leaves the reserve.
//! - **Whole**: an operation that is refused has changed nothing.
//! - **Failure**: after [`Fault::Store`] the catalog is not to be used any more: its mirror may be
//!   ahead of the store.

pub mod lines;
mod pairs;
mod rows;
pub mod space;
#[cfg(test)]
mod tests;
mod views;
pub mod volumes;

use std::collections::BTreeMap;

use self::rows::{PoolRow, UnitRow};
use self::views::Views;
use super::error::Refusal;
use super::raw::{self, NO_EXTENT, RawVolume};
use super::records::{PairRecord, PoolInfo, ServerStatus, VolumeInfo};
use super::runs::RunSet;
use super::store::{self, Changes, Store, StoreError, Table};
use super::volume_table::KeptRows;
use crate::format::home::Line;
use crate::format::ids::{ExtentId, ExtentRun, Incarnation, PairId, UnitId, VolumeId};

/// Rows read at a time when the store is opened.
const LOAD_ROWS: usize = 4096;

/// What a new pool is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Size of an extent, in bytes.
    pub extent_size: u32,
    /// The extents of each device.
    pub devices: Vec<ExtentRun>,
    /// Extents that thin allocation cannot take.
    pub reserve: u32,
}

impl PoolSpec {
    /// The pool, one more than its highest extent, and all of its extents.
    fn facts(&self) -> (PoolInfo, u32, RunSet) {
        let end = self.devices.iter().map(|run| run.end().0).max().unwrap_or(0);
        assert!(end < NO_EXTENT, "a pool of too many extents");
        let runs = RunSet::from_stored(self.devices.iter().copied());
        let mut all = RunSet::default();
        runs.expect("devices own distinct extents").iter().for_each(|run| all.insert(run));
        let extents = all.total() as u32;
        assert!(self.reserve <= extents, "the reserve is larger than the pool");
        let (reserve, extent_size) = (self.reserve, self.extent_size);
        (PoolInfo { extents, reserve, extent_size }, end, all)
    }
}

/// The rows of a store that knows only what the volume table kept, of a pool of which nothing is
/// granted; refused where that is no such pool's.
pub fn fresh_rows(pool: &PoolSpec, kept: &KeptRows) -> Result<Changes, StoreError> {
    let (info, end, mut free) = pool.facts();
    let row = kept.get(&(Table::Pool, Vec::new()));
    let row = row.ok_or_else(|| StoreError::Damaged("the volume table has no pool".to_owned()))?;
    let row: PoolRow = rows::parsed(row)?;
    if row.info()? != info || row.extents_end.get() != end {
        return Err(StoreError::Damaged("the volume table is of another pool".to_owned()));
    }
    let runs = free.take_changes().into_iter();
    let runs = runs.map(|(start, count)| {
        ((Table::Free, store::key(&[start])), count.map(|count| store::key(&[count])))
    });
    let kept = kept.iter().map(|(key, value)| (key.clone(), Some(value.clone())));
    Ok(runs.chain(kept).collect())
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It must not be; nothing was changed. With what the refusal tells besides.
    Refused(Refusal, u64),
    /// The store failed.
    Store(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Fault::Store(error)
    }
}

fn refused<T>(refusal: Refusal) -> Result<T, Fault> {
    Err(Fault::Refused(refusal, 0))
}

/// What the server holds of one unit.
#[derive(Debug, Default)]
struct Unit {
    incarnation: Incarnation,
    session: u64,
    data_quota: u64,
    granted: RunSet,
}

/// What a catalog holds of one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFacts {
    /// The unit.
    pub unit: UnitId,
    /// Its last start.
    pub incarnation: Incarnation,
    /// How many data areas it may have.
    pub data_quota: u64,
    /// The extents that are its own.
    pub granted: Vec<ExtentRun>,
}

/// All that a catalog holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogFacts {
    /// The pool.
    pub pool: PoolInfo,
    /// The volumes, by number.
    pub volumes: Vec<VolumeInfo>,
    /// The units.
    pub units: Vec<UnitFacts>,
    /// The extents of no unit.
    pub free: Vec<ExtentRun>,
    /// The pairs, released ones included, by unit and number.
    pub pairs: Vec<(UnitId, PairRecord)>,
    /// The lines, by unit and number: of pools whose flags are here.
    pub lines: Vec<(UnitId, PairId, Line)>,
}

/// The metadata of a pool.
pub struct Catalog {
    store: Box<dyn Store>,
    changes: Changes,
    info: PoolInfo,
    next_volume: u32,
    volumes: BTreeMap<VolumeId, VolumeInfo>,
    units: BTreeMap<UnitId, Unit>,
    free: RunSet,
    /// Who holds each extent, by its number.
    holders: Vec<Option<(UnitId, PairId)>>,
    counters: ServerStatus,
    views: Views,
}

impl Catalog {
    /// The metadata of a new pool, made in an empty store and durable.
    pub fn create(store: Box<dyn Store>, pool: &PoolSpec) -> Result<Catalog, StoreError> {
        let (info, end, free) = pool.facts();
        let mut catalog = Catalog::empty(store, info, end);
        catalog.free = free;
        catalog.put_pool();
        catalog.commit()?;
        Ok(catalog)
    }

    /// The metadata that a store holds.
    pub fn open(store: Box<dyn Store>) -> Result<Catalog, StoreError> {
        let row = store.get(Table::Pool, &[])?;
        let row = row.ok_or_else(|| StoreError::Damaged("it holds no pool".to_owned()))?;
        let row: PoolRow = rows::parsed(&row)?;
        let mut catalog = Catalog::empty(store, row.info()?, row.extents_end.get());
        catalog.next_volume = row.next_volume.get();
        catalog.load_volumes()?;
        catalog.load_space()?;
        catalog.load_holders()?;
        catalog.load_lines()?;
        catalog.check_layout()?;
        Ok(catalog)
    }

    /// Whether it is the metadata of such a pool.
    pub fn is_of(&self, pool: &PoolSpec) -> bool {
        let (info, end, _) = pool.facts();
        (info, end as usize) == (self.info, self.holders.len())
    }

    fn empty(store: Box<dyn Store>, info: PoolInfo, extents_end: u32) -> Catalog {
        Catalog {
            store,
            changes: Changes::new(),
            info,
            next_volume: 0,
            volumes: BTreeMap::new(),
            units: BTreeMap::new(),
            free: RunSet::default(),
            holders: vec![None; extents_end as usize],
            counters: ServerStatus::default(),
            views: Views::new(0),
        }
    }

    /// All that it holds.
    pub fn facts(&self) -> Result<CatalogFacts, StoreError> {
        let unit = |(unit, known): (&UnitId, &Unit)| UnitFacts {
            unit: *unit,
            incarnation: known.incarnation,
            data_quota: known.data_quota,
            granted: known.granted.iter().collect(),
        };
        Ok(CatalogFacts {
            pool: self.info,
            volumes: self.volumes.values().cloned().collect(),
            units: self.units.iter().map(unit).collect(),
            free: self.free.iter().collect(),
            pairs: self.stored_pairs()?,
            lines: self.stored_lines()?,
        })
    }

    /// The pool.
    pub fn pool(&self) -> PoolInfo {
        self.info
    }

    /// Makes all changes since the last time durable, as one transaction; none, none.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        self.put_runs();
        if self.changes.is_empty() {
            return Ok(());
        }
        self.put_start();
        self.store.commit(&self.changes)?;
        self.changes.clear();
        self.views.turn_ends();
        self.counters.store_commits += 1;
        Ok(())
    }

    /// What was done since the catalog was opened, and what it holds; the server adds its own.
    pub fn counters(&self) -> ServerStatus {
        ServerStatus {
            volumes: self.volumes.len() as u64,
            extents: u64::from(self.info.extents),
            extents_free: self.free.total(),
            data_quota: self.data_quota(),
            store_bytes_written: self.store.bytes_written(),
            ..self.counters
        }
    }

    /// The unit's last start; 0 where it was never attached.
    pub fn incarnation(&self, unit: UnitId) -> Incarnation {
        self.units.get(&unit).map_or(Incarnation::default(), |known| known.incarnation)
    }

    /// Begins a session: gives the one of the unit's earlier start, which has ended with that.
    pub fn attach(
        &mut self,
        unit: UnitId,
        incarnation: Incarnation,
        session: u64,
    ) -> Result<Option<u64>, Fault> {
        let known = self.units.entry(unit).or_default();
        if known.session != 0 || known.incarnation != Incarnation::default() {
            let last = known.incarnation;
            if incarnation <= last {
                return Err(Fault::Refused(Refusal::StaleIncarnation, u64::from(last.0)));
            }
        }
        let earlier = (known.session != 0).then_some(known.session);
        known.incarnation = incarnation;
        known.session = session;
        self.put_unit(unit);
        if let Some(earlier) = earlier {
            self.put_session(earlier, None);
        }
        Ok(earlier)
    }

    /// Ends a unit's session.
    pub fn detach(&mut self, unit: UnitId, session: u64) {
        if let Some(known) = self.units.get_mut(&unit)
            && known.session == session
        {
            known.session = 0;
            self.put_unit(unit);
        }
        self.put_session(session, None);
    }

    /// Keeps what a session has executed, or forgets it.
    pub fn put_session(&mut self, session: u64, row: Option<Vec<u8>>) {
        self.changes.insert((Table::Sessions, session.to_be_bytes().to_vec()), row);
    }

    /// Every session that is kept.
    pub fn sessions(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut sessions = Vec::new();
        self.load(Table::Sessions, |key, row| {
            let damaged = |_| StoreError::Damaged("a session's key".to_owned());
            sessions.push((u64::from_be_bytes(key.try_into().map_err(damaged)?), row.to_vec()));
            Ok(())
        })?;
        Ok(sessions)
    }

    /// Calls `each` for every committed row of a table.
    fn load(
        &self,
        table: Table,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut from = Vec::new();
        loop {
            let rows = self.store.range(table, &from, LOAD_ROWS)?;
            for (key, value) in &rows {
                each(key, value)?;
            }
            match rows.last() {
                Some((last, _)) if rows.len() == LOAD_ROWS => {
                    from.clone_from(last);
                    from.push(0);
                }
                _ => return Ok(()),
            }
        }
    }

    fn load_volumes(&mut self) -> Result<(), StoreError> {
        let mut volumes = BTreeMap::new();
        self.load(Table::Volumes, |_, row| {
            let row: RawVolume = rows::parsed(row)?;
            let volume = VolumeInfo::try_from(&row)
                .map_err(|raw::Malformed| StoreError::Damaged("a volume's row".to_owned()))?;
            volumes.insert(volume.id, volume);
            Ok(())
        })?;
        self.volumes = volumes;
        Ok(())
    }

    fn put_pool(&mut self) {
        let row = PoolRow::new(self.info, self.holders.len() as u32, self.next_volume);
        self.changes.insert((Table::Pool, Vec::new()), Some(rows::bytes(&row)));
    }

    fn put_unit(&mut self, unit: UnitId) {
        let known = self.units.entry(unit).or_default();
        let row = UnitRow::new(known.incarnation, known.session, known.data_quota);
        self.changes.insert((Table::Units, store::key(&[unit.0])), Some(rows::bytes(&row)));
    }

    /// Puts the runs that changed into the batch.
    fn put_runs(&mut self) {
        let row = |count: Option<u32>| count.map(|count| store::key(&[count]));
        for (start, count) in self.free.take_changes() {
            self.changes.insert((Table::Free, store::key(&[start])), row(count));
        }
        for (unit, known) in &mut self.units {
            for (start, count) in known.granted.take_changes() {
                self.changes.insert((Table::Grants, store::key(&[unit.0, start])), row(count));
            }
        }
    }

    fn holder(&self, extent: ExtentId) -> Option<(UnitId, PairId)> {
        self.holders.get(extent.0 as usize).copied().flatten()
    }
}
