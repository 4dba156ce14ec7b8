//! Looking at the metadata without changing it: for `flipside check` and `flipside metadata dump`.

use super::backend::{Medium, RegionBackend};
use super::catalog::{Catalog, CatalogFacts};
use super::groups::Groups;
use super::mirrored::kept_by;
use super::opening::{MetadataPlace, catching, failed};
use super::overlay::Overlay;
use super::pools::Pools;
use super::redb_store::RedbStore;
use super::server::Server;
use super::store::{Store, StoreError};
use super::volume_table::Kept;
use crate::format::ids::PoolId;

/// What was found.
#[derive(Debug)]
pub struct MetadataFacts {
    /// Which copies of the headers of the store's region and log are damaged.
    pub headers_damaged: [bool; 2],
    /// What each copy of the volume table holds; `None` where it is damaged.
    pub table: [Option<Kept>; 2],
    /// Whether the store has the only copy of the pairs' lines.
    pub has_lines: bool,
    /// What the store holds, or what is wrong with it.
    pub store: Result<StoreFacts, StoreError>,
}

/// What a store holds.
#[derive(Debug)]
pub struct StoreFacts {
    /// What the volume table should hold.
    pub kept: Kept,
    /// The rest.
    pub catalog: CatalogFacts,
}

/// What a store of many pools holds.
#[derive(Debug)]
pub struct HostedFacts {
    /// The pools, by name.
    pub pools: Vec<(PoolId, CatalogFacts)>,
    /// How many sessions are attached to them.
    pub sessions: u64,
    /// How many consistency groups there are.
    pub groups: u64,
    /// How many of those have a transaction that is not done everywhere.
    pub decisions: u64,
}

impl HostedFacts {
    /// How many volumes a pool has; none where there is no such pool.
    pub fn volumes_of(&self, pool: PoolId) -> usize {
        let found = self.pools.iter().find(|(of, _)| *of == pool);
        found.map_or(0, |(_, catalog)| catalog.volumes.len())
    }
}

/// Looks at a store of many pools against itself, whose own checks were made when it was opened:
/// every pool is sound and as it was registered, no extent is in two places, every pair is within
/// its volume, every session is a unit's or a reader's, every consistency group is of volumes that
/// are there, and no row is of no pool. The store is not written.
pub fn hosted(store: Box<dyn Store>) -> Result<HostedFacts, StoreError> {
    catching(|| {
        let pools = Pools::hosted(store)?;
        pools.check_whole()?;
        pools.check_strays()?;
        let facts = pools.iter().map(|(pool, catalog)| Ok((pool, catalog.facts()?)));
        let facts: Vec<(PoolId, CatalogFacts)> = facts.collect::<Result<_, StoreError>>()?;
        for (pool, of) in &facts {
            check_pairs(of).map_err(|what| StoreError::Damaged(format!("pool {pool}: {what}")))?;
        }
        let all = Groups::load(&pools)?;
        let groups = all.iter().count() as u64;
        let decisions = all.iter().filter(|of| of.decision().is_some()).count() as u64;
        let server: Server<()> = Server::new(pools)?;
        server.pools().check_whole()?;
        Ok(HostedFacts { pools: facts, sessions: server.status().sessions, groups, decisions })
    })
}

/// Whether every pair that backs something is within its volume.
fn check_pairs(facts: &CatalogFacts) -> Result<(), String> {
    let live = facts.pairs.iter().map(|(_, record)| record).filter(|pair| !pair.is_released());
    for pair in live {
        let found = facts.volumes.binary_search_by_key(&pair.volume, |volume| volume.id);
        let size = found.map_or(0, |index| facts.volumes[index].size);
        let extents = size.div_ceil(facts.pool.extent_size.into());
        if u64::from(pair.logical.0) >= extents {
            return Err(format!("pair {} is beyond its volume {}", pair.pair, pair.volume));
        }
    }
    Ok(())
}

impl<M: Medium> MetadataPlace<M> {
    /// Looks at store and volume table. Fails only where they cannot be read at all.
    pub fn examine(&self) -> Result<MetadataFacts, StoreError> {
        let (_, table) = self.table()?;
        let headers_damaged = self.headers_damaged()?;
        let store = catching(|| self.examine_store());
        Ok(MetadataFacts { headers_damaged, table, has_lines: self.has_lines, store })
    }

    fn examine_store(&self) -> Result<StoreFacts, StoreError> {
        let (medium, offset, capacity) = self.rows_span()?;
        let region = RegionBackend::open(medium, offset, capacity);
        let region = region.and_then(Overlay::new).map_err(|error| failed(&error))?;
        let mut rows = RedbStore::open(region)?;
        rows.verify()?;
        // What opening applies stays in memory, and nothing is appended.
        let store = self.with_log(rows)?;
        let kept = kept_by(&store)?;
        let catalog = Catalog::open(Box::new(store))?;
        self.check_pool(&catalog)?;
        let facts = catalog.facts()?;
        Groups::load(&Pools::single(catalog))?;
        Ok(StoreFacts { kept, catalog: facts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Moment;
    use crate::env::sim::rng::Rng;
    use crate::format::ids::{ExtentId, ExtentRun, Incarnation, UnitId};
    use crate::mds::catalog::{PoolSpec, space::Use};
    use crate::mds::groups::rows::{NamedVolume, NewGroup};
    use crate::mds::ownership::Start;
    use crate::mds::records::Claim;
    use crate::mds::session::Session;
    use crate::mds::store::{Changes, Table};
    use crate::mds::testing::{EXTENT_SIZE, Memory, pair};

    const POOL: PoolId = PoolId([3; 16]);
    const UNIT: UnitId = UnitId(0);

    /// A store of two pools, of which one has a session, a volume and pairs.
    fn made() -> Memory {
        use crate::format::ids::Slot::Zero;
        use crate::mds::records::Primitive::BindData;
        let memory = Memory::default();
        let store = RedbStore::open(memory.clone()).unwrap();
        let mut pools = Pools::hosted(Box::new(store)).unwrap();
        let devices = vec![ExtentRun { start: ExtentId(0), count: 50 }];
        let spec = PoolSpec { extent_size: EXTENT_SIZE, devices, reserve: 0 };
        for pool in [POOL, PoolId([4; 16])] {
            pools.register(pool, spec.clone()).unwrap();
        }
        let catalog = pools.catalog_mut(POOL).unwrap();
        catalog.create_volume("v", 50 * u64::from(EXTENT_SIZE)).unwrap();
        catalog.allocate(UNIT, Use::Data, 20);
        let binds: Vec<_> = (0..10).map(|i| BindData(pair(i, 1, [Some(i), None], Zero))).collect();
        catalog.transact(UNIT, &binds).unwrap();
        catalog.attach(UNIT, Start::Is(Incarnation(1)), 7).unwrap();
        let session: Session<()> = Session::new(Claim::of(POOL, UNIT, Incarnation(1)), 1472, 0);
        catalog.put_session(7, Some(session.row()));
        pools.commit().unwrap();
        let mut groups = Groups::load(&pools).unwrap();
        let volumes = vec![NamedVolume { pool: None, name: "v".to_owned() }];
        let asked = NewGroup { number: 0, name: "g".to_owned(), volumes };
        groups.create(&asked, &pools, Moment::default()).unwrap();
        groups.stage(Moment::default(), &mut pools).unwrap();
        pools.commit().unwrap();
        memory
    }

    /// Goal: a sound store is found sound; any row that is lost, or put where it does not belong,
    /// is seen.
    #[test]
    fn a_store_of_many() {
        let good = made();
        let opened = |memory: &Memory| RedbStore::open(memory.snapshot()).unwrap();
        let facts = hosted(Box::new(opened(&good))).unwrap();
        assert_eq!((facts.pools.len(), facts.sessions, facts.groups), (2, 1, 1));
        assert_eq!(facts.pools[0].1.pairs.len(), 10);
        let mut rng = Rng::new(1);
        // A count of starts that is missing reads as that of a store before its first.
        for table in Table::ALL.into_iter().filter(|table| *table != Table::Starts) {
            for (key, value) in opened(&good).range(table, &[], 100).unwrap() {
                let place = (table, key.clone());
                let mut elsewhere = key.clone();
                let at = rng.below(key.len() as u64) as usize;
                elsewhere[at] ^= 0x41;
                let moved =
                    Changes::from([(place.clone(), None), ((table, elsewhere), Some(value))]);
                for changes in [Changes::from([(place, None)]), moved] {
                    let bad = good.snapshot();
                    let mut store = RedbStore::open(bad.clone()).unwrap();
                    store.commit(&changes).unwrap();
                    drop(store);
                    let verdict = hosted(Box::new(opened(&bad)));
                    assert!(matches!(verdict, Err(StoreError::Damaged(_))), "{changes:?}");
                }
            }
        }
    }
}
