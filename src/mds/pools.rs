//! The pools of a server: the one that an embedded server is for, or all that were registered with
//! a server of its own, in one store.
//!
//! In the store of many, each pool has a number, and its catalog the part of the store that
//! belongs to it ([`super::shared_store`]). Table [`Table::Pools`] has a row a pool, by its name:
//!
//! | bytes | field | |
//! | --- | --- | --- |
//! | 4 | version | 1 |
//! | 4 | number | little-endian |
//! | the rest | what it is made of | the body of a RegisterPool request |
//!
//! The next number is in table [`Table::Starts`], without a key, since the first registration.
//!
//! # Contracts
//!
//! - **One transaction**: what all catalogs have changed since the last time is made durable by
//!   [`Pools::commit`] as one transaction, with pools that were registered or forgotten.
//! - **Numbers**: none is used again, so that one stands for a registration.
//! - **Damage**: a pool of which a row is damaged is set aside, with the reason; the others are
//!   served. Its rows stay as they are.
//! - **Bounds**: [`POOLS_MAX`] pools with [`EXTENTS_MAX`] extents in all.

use std::collections::{BTreeMap, BTreeSet};

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::catalog::{Catalog, Fault, PoolSpec};
use super::error::Refusal;
use super::raw;
use super::records::ServerStatus;
use super::shared_store::{SharedStore, number_of, placed};
use super::store::{Changes, Row, Store, StoreError, Table};
use crate::format::ids::{PoolId, VolumeId};
use crate::mutants::{Mutant, mutated};

/// The most pools of one server.
pub const POOLS_MAX: usize = 1024;
/// The most extents of all pools of one server: who holds each is kept in memory.
pub const EXTENTS_MAX: u64 = 1 << 26;
/// The most sessions at a time with an embedded server.
const SESSIONS_MAX_SINGLE: usize = 256;
/// The most sessions at a time with a server of many pools.
const SESSIONS_MAX_HOSTED: usize = 1024;
/// Version of a pool's row.
const VERSION: u32 = 1;
/// Rows read at a time.
const LOAD_ROWS: usize = 4096;

/// The pools of a server.
pub struct Pools(Kind);

enum Kind {
    Single(Box<Catalog>),
    Hosted(Hosted),
}

/// Many pools in one store.
struct Hosted {
    store: SharedStore,
    pools: BTreeMap<PoolId, Pool>,
    /// Pools that were given out to be changed since the last commit.
    touched: BTreeSet<PoolId>,
    /// Rows of pools that were registered or forgotten since the last commit.
    changes: Changes,
    /// Older ones, which are stored when there is anything to be stored.
    late: Changes,
    next_number: u32,
    damaged: BTreeMap<PoolId, Damaged>,
}

/// A pool that is not served.
struct Damaged {
    /// None where that is damaged, too.
    number: Option<u32>,
    reason: String,
}

struct Pool {
    number: u32,
    spec: PoolSpec,
    catalog: Catalog,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRow {
    version: U32,
    number: U32,
}
const _: () = assert!(size_of::<RawRow>() == 8);

impl Pools {
    /// The one pool of an embedded server, whichever name a claim has for it: nobody but the
    /// process that serves the pool can ask.
    pub fn single(catalog: Catalog) -> Pools {
        Pools(Kind::Single(Box::new(catalog)))
    }

    /// All pools of a store, which may be empty.
    pub fn hosted(store: Box<dyn Store>) -> Result<Pools, StoreError> {
        let store = SharedStore::new(store);
        if store.get(Table::Pool, &[])?.is_some() {
            let text = "it is the store of one pool that serves itself".to_owned();
            return Err(StoreError::Damaged(text));
        }
        let mut hosted = Hosted {
            store,
            pools: BTreeMap::new(),
            touched: BTreeSet::new(),
            changes: Changes::new(),
            late: Changes::new(),
            next_number: 0,
            damaged: BTreeMap::new(),
        };
        if let Some(row) = hosted.store.get(Table::Starts, &[])? {
            let next = raw::one::<U32>(&row);
            let damaged = |_| StoreError::Damaged("the number of the next pool".to_owned());
            hosted.next_number = next.map_err(damaged)?.get();
        }
        for (key, row) in hosted.store.range(Table::Pools, &[], POOLS_MAX + 1)? {
            match hosted.load(&key, &row) {
                Err(StoreError::Damaged(reason)) => hosted.set_aside(&key, &row, reason)?,
                loaded => loaded?,
            }
        }
        Ok(Pools(Kind::Hosted(hosted)))
    }

    /// The pools that are not served, and what is wrong with them.
    pub fn damaged(&self) -> impl Iterator<Item = (PoolId, &str)> {
        let hosted = match &self.0 {
            Kind::Single(_) => None,
            Kind::Hosted(hosted) => Some(hosted),
        };
        let damaged = hosted.into_iter().flat_map(|hosted| &hosted.damaged);
        damaged.map(|(pool, damaged)| (*pool, damaged.reason.as_str()))
    }

    /// Whether a pool is not served as something of it is damaged.
    pub fn is_damaged(&self, pool: PoolId) -> bool {
        matches!(&self.0, Kind::Hosted(hosted) if hosted.damaged.contains_key(&pool))
    }

    /// Serves a pool no more, of which something was found to be damaged.
    pub fn set_aside(&mut self, pool: PoolId, reason: String) {
        if let Kind::Hosted(hosted) = &mut self.0
            && let Some(known) = hosted.pools.remove(&pool)
        {
            hosted.damaged.insert(pool, Damaged { number: Some(known.number), reason });
        }
    }

    /// The sessions of pools that are not served.
    pub fn sessions_set_aside(&self) -> Result<BTreeSet<u64>, StoreError> {
        let Kind::Hosted(hosted) = &self.0 else { return Ok(BTreeSet::new()) };
        let mut sessions = BTreeSet::new();
        for number in hosted.damaged.values().filter_map(|damaged| damaged.number) {
            let rows = hosted.store.view(number).range(Table::Sessions, &[], LOAD_ROWS)?;
            let ids = rows.iter().filter_map(|(key, _)| key.as_slice().try_into().ok());
            sessions.extend(ids.map(u64::from_be_bytes));
        }
        Ok(sessions)
    }

    /// The number of a pool, which no later registration has.
    pub fn number(&self, pool: PoolId) -> Option<u32> {
        let Kind::Hosted(hosted) = &self.0 else { return None };
        let damaged = || hosted.damaged.get(&pool).map(|known| known.number.unwrap_or_default());
        hosted.pools.get(&pool).map(|known| known.number).or_else(damaged)
    }

    /// Whether it is the one pool of an embedded server.
    pub fn is_single(&self) -> bool {
        matches!(self.0, Kind::Single(_))
    }

    /// The most sessions at a time.
    pub fn sessions_max(&self) -> usize {
        match &self.0 {
            Kind::Single(_) => SESSIONS_MAX_SINGLE,
            Kind::Hosted(_) => SESSIONS_MAX_HOSTED,
        }
    }

    /// A pool's metadata, to be asked.
    pub fn catalog(&self, pool: PoolId) -> Option<&Catalog> {
        match &self.0 {
            Kind::Single(catalog) => Some(catalog),
            Kind::Hosted(hosted) => hosted.pools.get(&pool).map(|known| &known.catalog),
        }
    }

    /// A pool's metadata, to be changed: the changes are part of the next commit.
    pub fn catalog_mut(&mut self, pool: PoolId) -> Option<&mut Catalog> {
        match &mut self.0 {
            Kind::Single(catalog) => Some(catalog),
            Kind::Hosted(hosted) => {
                let known = hosted.pools.get_mut(&pool)?;
                hosted.touched.insert(pool);
                Some(&mut known.catalog)
            }
        }
    }

    /// Every pool's metadata, by name; the name of a single one is all zeros.
    pub fn iter(&self) -> impl Iterator<Item = (PoolId, &Catalog)> {
        let (single, hosted) = match &self.0 {
            Kind::Single(catalog) => (Some((PoolId::default(), &**catalog)), None),
            Kind::Hosted(hosted) => (None, Some(hosted)),
        };
        let pools = hosted.into_iter().flat_map(|hosted| &hosted.pools);
        single.into_iter().chain(pools.map(|(pool, known)| (*pool, &known.catalog)))
    }

    /// Makes a pool known; does nothing where it is known as made of the same.
    pub fn register(&mut self, pool: PoolId, spec: PoolSpec) -> Result<(), Fault> {
        let Kind::Hosted(hosted) = &mut self.0 else {
            return Err(Fault::Refused(Refusal::Unsupported, 0));
        };
        hosted.register(pool, spec)
    }

    /// Forgets a pool and all that is known of it, if it is known.
    pub fn forget(&mut self, pool: PoolId) -> Result<(), Fault> {
        let Kind::Hosted(hosted) = &mut self.0 else {
            return Err(Fault::Refused(Refusal::Unsupported, 0));
        };
        if let Some(known) = hosted.pools.remove(&pool) {
            let rows = hosted.rows_under(known.number)?;
            hosted.changes.extend(rows.into_iter().map(|row| (row, None)));
            hosted.changes.insert((Table::Pools, pool.0.to_vec()), None);
        }
        if let Some(Damaged { number, .. }) = hosted.damaged.remove(&pool) {
            hosted.changes.insert((Table::Pools, pool.0.to_vec()), None);
            if let Some(number) = number.filter(|number| !hosted.numbers().any(|of| of == *number))
            {
                let rows = hosted.rows_under(number)?;
                hosted.changes.extend(rows.into_iter().map(|row| (row, None)));
            }
        }
        Ok(())
    }

    /// Up to `limit` rows of a table that is of the server as a whole.
    pub fn whole_rows(&self, table: Table, limit: usize) -> Result<Vec<Row>, StoreError> {
        assert!(table.is_of_server(), "{} are rows of pools", table.name());
        match &self.0 {
            Kind::Single(catalog) => catalog.whole_rows(table, limit),
            Kind::Hosted(hosted) => hosted.store.range(table, &[], limit),
        }
    }

    /// Makes changes of such tables part of the next commit.
    pub fn stage(&mut self, changes: Changes) {
        match &mut self.0 {
            Kind::Single(catalog) => catalog.stage_whole(changes),
            Kind::Hosted(hosted) => {
                hosted.late.retain(|row, _| !changes.contains_key(row));
                hosted.changes.extend(changes);
            }
        }
    }

    /// Makes changes of such tables, which need not be durable, part of the next commit that there
    /// is for another reason.
    pub fn stage_late(&mut self, changes: Changes) {
        match &mut self.0 {
            // Its one unit has nobody to share a transaction with: there are none.
            Kind::Single(catalog) => catalog.stage_whole(changes),
            Kind::Hosted(hosted) => hosted.late.extend(changes),
        }
    }

    /// The name that a pool has here: that of a single one is all zeros, whatever claims say.
    pub fn name_here(&self, pool: PoolId) -> PoolId {
        if self.is_single() { PoolId::default() } else { pool }
    }

    /// Whether somebody is attached as a unit of that pool.
    pub fn is_attached(&self, pool: PoolId) -> bool {
        self.catalog(pool).is_some_and(|catalog| catalog.attached_count() > 0)
    }

    /// Whether a pool has that volume, and it is not being deleted.
    pub fn has_volume(&self, pool: PoolId, volume: VolumeId) -> bool {
        self.catalog(pool).is_some_and(|catalog| catalog.name_of(volume).is_some())
    }

    /// The volumes of that name, of one pool or of all.
    pub fn volumes_named(&self, pool: Option<PoolId>, name: &str) -> Vec<(PoolId, VolumeId)> {
        let asked = pool.map(|pool| self.name_here(pool));
        let pools = self.iter().filter(|(of, _)| asked.is_none_or(|asked| asked == *of));
        let found = pools.map(|(of, catalog)| catalog.volume_named(name).map(|id| (of, id)));
        found.flatten().collect()
    }

    /// Makes durable what was changed since the last time, as one transaction; nothing, none.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        match &mut self.0 {
            Kind::Single(catalog) => catalog.commit(),
            Kind::Hosted(hosted) => hosted.commit(),
        }
    }

    /// A pool's counters. Transactions and bytes are of the whole store.
    pub fn counters(&self, pool: PoolId) -> ServerStatus {
        let counters = self.catalog(pool).map(Catalog::counters).unwrap_or_default();
        self.with_store(counters)
    }

    /// The counters of all pools together.
    pub fn totals(&self) -> ServerStatus {
        let counters = self.iter().map(|(_, catalog)| catalog.counters());
        self.with_store(counters.reduce(|a, b| a.plus(&b)).unwrap_or_default())
    }

    fn with_store(&self, counters: ServerStatus) -> ServerStatus {
        match &self.0 {
            Kind::Single(_) => counters,
            Kind::Hosted(hosted) => ServerStatus {
                store_commits: hosted.store.commits(),
                store_bytes_written: hosted.store.bytes_written(),
                ..counters
            },
        }
    }

    /// Checks that no pool of a store of many is damaged.
    pub fn check_whole(&self) -> Result<(), StoreError> {
        let damaged = |(pool, reason)| StoreError::Damaged(format!("pool {pool}: {reason}"));
        self.damaged().next().map_or(Ok(()), |found| Err(damaged(found)))
    }

    /// Checks that every row of a store of many belongs to one of its pools.
    pub fn check_strays(&self) -> Result<(), StoreError> {
        let Kind::Hosted(hosted) = &self.0 else { return Ok(()) };
        let known: BTreeSet<u32> = hosted.numbers().collect();
        for table in Table::ALL.into_iter().filter(|table| !table.is_of_server()) {
            // The next pool's number has no key.
            let mut from = if table == Table::Starts { vec![0] } else { Vec::new() };
            // From each pool's last row on to the first row after it: a read a pool.
            while let Some((key, _)) = hosted.store.range(table, &from, 1)?.first() {
                let number = number_of(key).filter(|number| known.contains(number));
                let number = number.ok_or_else(|| {
                    let text = format!("a row of its table of {} is of no pool", table.name());
                    StoreError::Damaged(text)
                })?;
                let Some(next) = number.checked_add(1) else { break };
                from = next.to_be_bytes().to_vec();
            }
        }
        Ok(())
    }
}

impl Hosted {
    fn load(&mut self, key: &[u8], row: &[u8]) -> Result<(), StoreError> {
        let damaged = || StoreError::Damaged("a pool's row".to_owned());
        let (head, body) = raw::first::<RawRow>(row).map_err(|_| damaged())?;
        if head.version.get() != VERSION {
            let text = format!("a pool's row is of version {}, not {VERSION}", head.version);
            return Err(StoreError::Damaged(text));
        }
        let (pool, spec) = raw::pool_spec(body).map_err(|_| damaged())?;
        let number = head.number.get();
        let again = self.pools.values().any(|other| other.number == number);
        if key != pool.0 || again || self.pools.len() >= POOLS_MAX {
            return Err(damaged());
        }
        self.check_room(&spec).map_err(|_| damaged())?;
        let catalog = Catalog::open(self.store.view(number))?;
        if !catalog.is_of(&spec) {
            return Err(StoreError::Damaged(format!("pool {pool} is not as it was registered")));
        }
        self.next_number = self.next_number.max(number.checked_add(1).ok_or_else(damaged)?);
        self.pools.insert(pool, Pool { number, spec, catalog });
        Ok(())
    }

    /// Serves a pool not, as it could not be loaded. Its number must be known, or that none is used
    /// again.
    fn set_aside(&mut self, key: &[u8], row: &[u8], reason: String) -> Result<(), StoreError> {
        let head = raw::first::<RawRow>(row).ok().map(|(head, _)| head);
        let number =
            head.filter(|head| head.version.get() == VERSION).map(|head| head.number.get());
        let next = number.map_or(Some(self.next_number), |number| number.checked_add(1));
        let (Ok(pool), Some(next)) = (key.try_into().map(PoolId), next) else {
            return Err(StoreError::Damaged(reason));
        };
        if number.is_none() && self.store.get(Table::Starts, &[])?.is_none() {
            return Err(StoreError::Damaged(reason));
        }
        self.next_number = self.next_number.max(next);
        self.damaged.insert(pool, Damaged { number, reason });
        Ok(())
    }

    /// The numbers of all pools.
    fn numbers(&self) -> impl Iterator<Item = u32> {
        let damaged = self.damaged.values().filter_map(|known| known.number);
        self.pools.values().map(|known| known.number).chain(damaged)
    }

    /// Refuses a pool with which there would be too many extents.
    fn check_room(&self, spec: &PoolSpec) -> Result<(), Fault> {
        let known: u64 = self.pools.values().map(|known| known.spec.end()).sum();
        if known + spec.end() > EXTENTS_MAX {
            return Err(Fault::Refused(Refusal::TooLarge, EXTENTS_MAX));
        }
        Ok(())
    }

    fn register(&mut self, pool: PoolId, spec: PoolSpec) -> Result<(), Fault> {
        if let Some(known) = self.pools.get(&pool)
            && !mutated(Mutant::RegisterOverwrites)
        {
            let same = known.spec == spec;
            return if same { Ok(()) } else { Err(Fault::Refused(Refusal::PoolExists, 0)) };
        }
        if self.damaged.contains_key(&pool) {
            return Err(Fault::Refused(Refusal::PoolDamaged, 0));
        }
        if self.pools.len() >= POOLS_MAX || self.next_number == u32::MAX {
            return Err(Fault::Refused(Refusal::TooLarge, POOLS_MAX as u64));
        }
        self.check_room(&spec)?;
        let number = self.next_number;
        self.next_number += 1;
        let head = RawRow { version: U32::new(VERSION), number: U32::new(number) };
        let row = [head.as_bytes(), &raw::pool_spec_body(pool, &spec)].concat();
        self.changes.insert((Table::Pools, pool.0.to_vec()), Some(row));
        let next = U32::new(self.next_number).as_bytes().to_vec();
        self.changes.insert((Table::Starts, Vec::new()), Some(next));
        let catalog = Catalog::make(self.store.view(number), &spec);
        self.pools.insert(pool, Pool { number, spec, catalog });
        self.touched.insert(pool);
        Ok(())
    }

    /// The places of all committed rows of the pool of that number.
    fn rows_under(&self, number: u32) -> Result<Vec<(Table, Vec<u8>)>, StoreError> {
        let mut places = Vec::new();
        for table in Table::ALL.into_iter().filter(|table| !table.is_of_server()) {
            let mut from = number.to_be_bytes().to_vec();
            loop {
                let rows = self.store.range(table, &from, LOAD_ROWS)?;
                let found = rows.len();
                let own = rows.into_iter().map(|(key, _)| key);
                let before = places.len();
                places.extend(
                    own.take_while(|key| number_of(key) == Some(number)).map(|key| (table, key)),
                );
                if places.len() - before < LOAD_ROWS || found < LOAD_ROWS {
                    break;
                }
                from.clone_from(&places.last().expect("a full page was added").1);
                from.push(0);
            }
        }
        Ok(places)
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        let mut all = std::mem::take(&mut self.changes);
        let touched = std::mem::take(&mut self.touched);
        for pool in &touched {
            if let Some(known) = self.pools.get_mut(pool) {
                all.extend(placed(known.number, known.catalog.take_changes()));
            }
        }
        if !all.is_empty() {
            all.extend(std::mem::take(&mut self.late));
            self.store.commit(&all)?;
        }
        let known = self.pools.iter_mut().filter(|(pool, _)| touched.contains(pool));
        known.for_each(|(_, known)| known.catalog.committed());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{
        ExtentId, ExtentRun, Generation, LogicalExtent, PairId, Slot, UnitId, VolumeId,
    };
    use crate::format::record::{Binding, Record};
    use crate::mds::catalog::space::Use;
    use crate::mds::redb_store::RedbStore;
    use crate::mds::testing::{EXTENT_SIZE, Memory};

    const ONE: PoolId = PoolId([1; 16]);
    const TWO: PoolId = PoolId([2; 16]);
    const UNIT: UnitId = UnitId(0);

    fn spec(extents: u32) -> PoolSpec {
        let devices = vec![ExtentRun { start: ExtentId(0), count: extents }];
        PoolSpec { extent_size: EXTENT_SIZE, devices, reserve: 0 }
    }

    fn open(memory: &Memory) -> Pools {
        Pools::hosted(Box::new(RedbStore::open(memory.clone()).unwrap())).unwrap()
    }

    fn refusal(result: Result<(), Fault>) -> Refusal {
        match result {
            Err(Fault::Refused(refusal, _)) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Goal: pools are apart, are durable with one transaction, and survive; what is registered
    /// again is the same pool.
    #[test]
    fn many_pools_in_one_store() {
        let memory = Memory::default();
        let mut pools = open(&memory);
        for (pool, extents) in [(ONE, 10), (TWO, 20), (ONE, 10)] {
            pools.register(pool, spec(extents)).unwrap();
        }
        assert_eq!(refusal(pools.register(ONE, spec(11))), Refusal::PoolExists);
        let one = pools.catalog_mut(ONE).unwrap();
        assert_eq!(one.allocate(UNIT, Use::Data, 20).runs[0].count, 10);
        pools.catalog_mut(TWO).unwrap().create_volume("v", 5 << 20).unwrap();
        pools.commit().unwrap();
        assert_eq!(pools.totals().store_commits, 1);
        pools.commit().unwrap();
        assert_eq!(pools.totals().store_commits, 1, "nothing was changed");
        drop(pools);
        let mut pools = open(&memory);
        pools.check_strays().unwrap();
        assert_eq!((pools.counters(ONE).extents_free, pools.counters(ONE).volumes), (0, 0));
        assert_eq!((pools.counters(TWO).extents_free, pools.counters(TWO).volumes), (20, 1));
        assert_eq!((pools.totals().extents, pools.totals().volumes), (30, 1));
        pools.register(ONE, spec(10)).unwrap();
        assert_eq!(pools.counters(ONE).extents_free, 0);
        assert!(pools.catalog(PoolId([3; 16])).is_none());
    }

    /// Goal: lines of a pool among others that change are a new view of it and of no other, which
    /// tells what changed; views grow over a start of the server.
    #[test]
    fn views_of_many_pools() {
        let memory = Memory::default();
        let mut pools = open(&memory);
        for pool in [ONE, TWO] {
            pools.register(pool, spec(10)).unwrap();
        }
        pools.commit().unwrap();
        let view = |pools: &Pools, pool| pools.catalog(pool).unwrap().view();
        let first = view(&pools, ONE);
        let one = pools.catalog_mut(ONE).unwrap();
        one.allocate(UNIT, Use::Data, 10);
        let binding = Binding {
            generation: Generation(1),
            owner: Some((VolumeId(1), LogicalExtent(0))),
            extents: [Some(ExtentId(3)), None],
            data_slot: Slot::Zero,
        };
        one.harden(UNIT, &[Record::Binding { pair: PairId(2), binding }]).unwrap();
        pools.commit().unwrap();
        let second = view(&pools, ONE);
        assert!(second > first);
        assert_eq!(view(&pools, TWO), first);
        let changes = |since| pools.catalog(ONE).unwrap().changes(UNIT, since, 9).unwrap();
        assert_eq!(changes(first).unwrap().lines.len(), 1);
        assert_eq!(changes(second).unwrap().lines, []);
        drop(pools);
        assert!(view(&open(&memory), ONE) > second);
    }

    /// Goal: of a forgotten pool nothing is left, whether it was durable or not; it may be
    /// registered again in the same turn, and is new.
    #[test]
    fn forgotten_pools() {
        let memory = Memory::default();
        let mut pools = open(&memory);
        pools.register(ONE, spec(10)).unwrap();
        pools.register(TWO, spec(10)).unwrap();
        pools.catalog_mut(ONE).unwrap().allocate(UNIT, Use::Data, 10);
        pools.commit().unwrap();
        pools.forget(ONE).unwrap();
        pools.forget(ONE).unwrap();
        pools.register(ONE, spec(12)).unwrap();
        assert_eq!(pools.counters(ONE).extents_free, 12);
        pools.commit().unwrap();
        pools.register(PoolId([3; 16]), spec(1)).unwrap();
        pools.forget(PoolId([3; 16])).unwrap();
        pools.forget(TWO).unwrap();
        pools.commit().unwrap();
        drop(pools);
        let pools = open(&memory);
        pools.check_strays().unwrap();
        assert_eq!(pools.iter().map(|(pool, _)| pool).collect::<Vec<_>>(), [ONE]);
        assert_eq!(pools.totals().extents_free, 12);
    }

    /// Goal: a row of no pool, and the store of a single pool, are seen.
    #[test]
    fn strays() {
        let memory = Memory::default();
        let mut pools = open(&memory);
        pools.register(ONE, spec(10)).unwrap();
        pools.commit().unwrap();
        drop(pools);
        let stray = ((Table::Grants, 7_u32.to_be_bytes().to_vec()), Some(vec![1]));
        let mut store = RedbStore::open(memory.clone()).unwrap();
        store.commit(&Changes::from([stray])).unwrap();
        drop(store);
        assert!(open(&memory).check_strays().unwrap_err().to_string().contains("no pool"));
        let (single, catalog) = crate::mds::testing::create(10, 1);
        drop(catalog);
        let single = RedbStore::open(single).unwrap();
        assert!(Pools::hosted(Box::new(single)).is_err());
    }

    /// Goal: memory for extents has a bound, and an embedded server knows no other pools.
    #[test]
    fn bounds() {
        let mut pools = open(&Memory::default());
        pools.register(ONE, spec(10)).unwrap();
        let most = EXTENTS_MAX as u32;
        assert_eq!(refusal(pools.register(TWO, spec(most))), Refusal::TooLarge);
        let (_, catalog) = crate::mds::testing::create(10, 1);
        let mut single = Pools::single(catalog);
        assert_eq!(refusal(single.register(ONE, spec(1))), Refusal::Unsupported);
        assert_eq!(refusal(single.forget(ONE)), Refusal::Unsupported);
    }
}
