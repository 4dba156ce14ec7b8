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
//! - **Commits** are their callers': no operation makes any. A session's row joins what it has
//!   executed at the end of the turn, and a commit before that would have it executed again after a
//!   crash.
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

use zerocopy::little_endian::U32;

use self::rows::{PoolRow, UnitRow};
use self::views::Views;
use super::error::Refusal;
use super::overview::PoolSeen;
use super::ownership::{self, Start};
use super::raw::{self, NO_EXTENT, RawVolume};
use super::records::{PairRecord, PoolInfo, ServerStatus, VolumeInfo};
use super::runs::RunSet;
use super::store::{self, Changes, Row, Store, StoreError, Table};
use super::volume_table::KeptRows;
use crate::format::home::Line;
use crate::format::ids::{ExtentId, ExtentRun, Incarnation, PairId, PoolId, UnitId, VolumeId};
use crate::mutants::{Mutant, mutated};

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
    /// Whether there can be such a pool.
    pub fn is_sound(&self) -> bool {
        let all = RunSet::from_stored(self.devices.iter().copied());
        let fits = |all: RunSet| u64::from(self.reserve) <= all.total() && all.total() > 0;
        all.is_some_and(fits) && self.extent_size > 0 && self.end() < u64::from(NO_EXTENT)
    }

    /// One more than its highest extent.
    pub fn end(&self) -> u64 {
        self.devices.iter().map(|run| u64::from(run.end().0)).max().unwrap_or(0)
    }

    /// The pool, one more than its highest extent, and all of its extents.
    fn facts(&self) -> (PoolInfo, u32, RunSet) {
        let end = self.end() as u32;
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
    /// The last start that has changed anything here: those since then never began.
    begun: Incarnation,
    session: u64,
    data_quota: u64,
    granted: RunSet,
    /// The last start keeps its flags here.
    flags_here: bool,
    /// How often a claim to read beside it was granted.
    readers: Incarnation,
}

impl Unit {
    /// Whether there was ever a session of it.
    fn was_attached(&self) -> bool {
        self.session != 0 || self.incarnation != Incarnation::default()
    }
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
    /// How many extents are held.
    bound: u64,
    counters: ServerStatus,
    views: Views,
}

impl Catalog {
    /// The metadata of a new pool, made in an empty store and durable.
    pub fn create(store: Box<dyn Store>, pool: &PoolSpec) -> Result<Catalog, StoreError> {
        let mut catalog = Catalog::make(store, pool);
        catalog.commit()?;
        Ok(catalog)
    }

    /// The metadata of a new pool, which is not in its empty store before the next commit.
    pub fn make(store: Box<dyn Store>, pool: &PoolSpec) -> Catalog {
        let (info, end, free) = pool.facts();
        let mut catalog = Catalog::empty(store, info, end);
        catalog.free = free;
        catalog.put_pool();
        catalog
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
            bound: 0,
            counters: ServerStatus::default(),
            views: Views::new(1),
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

    /// All changes since the last time, for who commits them in place of the catalog and says so
    /// by [`Catalog::committed`].
    pub fn take_changes(&mut self) -> Changes {
        self.put_runs();
        if !self.changes.is_empty() {
            self.put_start();
        }
        std::mem::take(&mut self.changes)
    }

    /// Up to `limit` committed rows of a table that is not of the pool, in a store of one pool.
    pub fn whole_rows(&self, table: Table, limit: usize) -> Result<Vec<Row>, StoreError> {
        self.store.range(table, &[], limit)
    }

    /// Makes changes of such tables part of the next commit.
    pub fn stage_whole(&mut self, changes: Changes) {
        self.changes.extend(changes);
    }

    /// What was taken is durable.
    pub fn committed(&mut self) {
        self.views.turn_ends();
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

    /// The pool of that name, as it is shown.
    pub fn seen(&self, pool: PoolId) -> PoolSeen {
        let free = self.free.total() as u32;
        PoolSeen {
            pool,
            extent_size: self.info.extent_size,
            volumes: self.volumes.len() as u32,
            extents: self.info.extents,
            reserve: self.info.reserve,
            free,
            granted: self.info.extents - free,
            bound: self.bound as u32,
            flags_here: self.flags_here(),
            damaged: false,
            transactions: self.counters.transactions,
        }
    }

    /// Begins a session of a start of a unit: tells which start it is, and the session of an
    /// earlier one, which has ended with that.
    pub fn attach(
        &mut self,
        unit: UnitId,
        asked: Start,
        session: u64,
    ) -> Result<(Incarnation, Option<u64>), Fault> {
        let incarnation = ownership::start(self.last_start(unit), asked);
        let incarnation = incarnation.map_err(|(refusal, last)| Fault::Refused(refusal, last))?;
        let known = self.units.entry(unit).or_default();
        let earlier = (known.session != 0).then_some(known.session);
        known.incarnation = incarnation;
        known.session = session;
        known.flags_here = matches!(asked, Start::After(_));
        if mutated(Mutant::StartBegunAtOnce) {
            known.begun = incarnation;
        }
        self.put_unit(unit);
        if let Some(earlier) = earlier {
            self.put_session(earlier, None);
        }
        Ok((incarnation, earlier))
    }

    /// The last start of a unit, if there was one.
    pub fn last_start(&self, unit: UnitId) -> Option<Incarnation> {
        let known = self.units.get(&unit).filter(|known| known.was_attached());
        known.map(|known| known.incarnation)
    }

    /// The last start of a unit that has begun, if there was any.
    pub fn last_begun(&self, unit: UnitId) -> Option<Incarnation> {
        let known = self.units.get(&unit).filter(|known| known.was_attached());
        known.map(|known| known.begun)
    }

    /// The start that a session is of has begun: a mutation of it was executed.
    pub fn begin(&mut self, unit: UnitId, session: u64) {
        if let Some(known) = self.units.get_mut(&unit)
            && known.session == session
            && known.begun != known.incarnation
        {
            known.begun = known.incarnation;
            self.put_unit(unit);
        }
    }

    /// How often a claim to read beside a unit was granted.
    pub fn readers(&self, unit: UnitId) -> Incarnation {
        self.units.get(&unit).map(|known| known.readers).unwrap_or_default()
    }

    /// Grants a claim to read beside a unit: it is the one of that number, counted from 1.
    pub fn attach_reader(&mut self, unit: UnitId, number: Incarnation) {
        self.units.entry(unit).or_default().readers = number;
        let row = rows::bytes(&U32::new(number.0));
        self.changes.insert((Table::Starts, store::key(&[unit.0])), Some(row));
    }

    /// Ends a session, which may be a unit's.
    pub fn detach(&mut self, unit: UnitId, session: u64) {
        if let Some(known) = self.units.get_mut(&unit)
            && known.session == session
        {
            known.session = 0;
            self.put_unit(unit);
        }
        self.put_session(session, None);
    }

    /// The session that is attached as a unit.
    pub fn attached(&self, unit: UnitId) -> Option<u64> {
        self.units.get(&unit).map(|known| known.session).filter(|session| *session != 0)
    }

    /// How many sessions are attached as units.
    pub fn attached_count(&self) -> usize {
        self.units.values().filter(|known| known.session != 0).count()
    }

    /// Whether the pool's flags are kept here: whoever attached last to write keeps none.
    pub fn flags_here(&self) -> bool {
        let mut attached = self.units.values().filter(|known| known.was_attached()).peekable();
        attached.peek().is_some() && attached.all(|known| known.flags_here)
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
        self.load(Table::Volumes, |key, row| {
            let damaged = || StoreError::Damaged("a volume's row".to_owned());
            let row: RawVolume = rows::parsed(row)?;
            let volume = VolumeInfo::try_from(&row).map_err(|raw::Malformed| damaged())?;
            if store::numbers(key)? != [volume.id.0] {
                return Err(damaged());
            }
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
        let row = UnitRow::new(known);
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
