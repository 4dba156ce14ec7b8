//! The metadata server in the simulated machine, over a store that costs little.
//!
//! The store keeps its tables in memory that outlives the crash; a commit that the crash strikes
//! was applied or was not, as chance has it when the store is opened again. The real store is tried
//! on a simulated medium by [`crate::env::sim::storage`].

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::flipside::UNIT;
use super::host::{LeaseWatch, Seat};
use crate::env::sim::calls::{Calls, Fate};
use crate::env::sim::{Peer, Server, SimEnv};
use crate::env::{Env as _, Moment};
use crate::format::ids::{Incarnation, PoolId};
use crate::mds::catalog::{Catalog, CatalogFacts, PoolSpec};
use crate::mds::client::{self, Client};
use crate::mds::error::MdsError;
use crate::mds::pools::Pools;
use crate::mds::records::Claim;
use crate::mds::server;
use crate::mds::store::{Changes, Row, Store, StoreError, Table};

impl Server for server::Server<Peer> {
    fn turn(&mut self, now: Moment, arrived: Vec<(Peer, Vec<u8>)>) -> Vec<(Peer, Vec<u8>)> {
        self.handle(now, arrived)
    }
}

/// What outlives a crash. Cheap to clone: a handle.
#[derive(Clone, Default)]
pub struct Tables(Arc<Mutex<Contents>>);

/// Where the metadata of a simulated pool are.
#[derive(Clone)]
pub(super) enum Metadata {
    /// With its machine's own server.
    Embedded(Tables),
    /// With a server that it shares.
    Hosted(Seat),
}

#[derive(Clone, Default)]
struct Contents {
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    /// The commit that was on its way when the crash struck.
    struck: Option<Changes>,
    /// The next commit that changes a volume fails, and was applied all the same, or not.
    fails: Option<bool>,
}

/// The store in one operating period.
pub struct SimStore {
    tables: Tables,
    calls: Calls,
}

impl Contents {
    fn apply(&mut self, changes: &Changes) {
        for (key, value) in changes {
            match value {
                Some(value) => drop(self.rows.insert(key.clone(), value.clone())),
                None => drop(self.rows.remove(key)),
            }
        }
    }
}

impl Tables {
    /// Opens the store; a commit that the last crash struck has `arrived`, or not.
    pub fn open(&self, calls: Calls, arrived: bool) -> SimStore {
        let mut rows = self.rows();
        if let Some(changes) = rows.struck.take()
            && arrived
        {
            rows.apply(&changes);
        }
        SimStore { tables: self.clone(), calls }
    }

    /// Has the next commit that changes a volume fail, after it was `applied` or before.
    pub fn fail_a_volume_commit(&self, applied: bool) {
        self.rows().fails = Some(applied);
    }

    /// Other tables, with what these hold now.
    #[must_use]
    pub fn fork(&self) -> Tables {
        Tables(Arc::new(Mutex::new(self.rows().clone())))
    }

    /// A hash of all rows.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.rows().rows.hash(&mut hasher);
        hasher.finish()
    }

    /// What is stored.
    pub fn facts(&self) -> Result<CatalogFacts, String> {
        let store = self.fork().open(Calls::new(None), false);
        let facts = Catalog::open(Box::new(store)).and_then(|catalog| catalog.facts());
        facts.map_err(|error| error.to_string())
    }

    fn rows(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for SimStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.tables.rows().rows.get(&(table, key.to_vec())).cloned())
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let rows = self.tables.rows();
        let of_table = rows.rows.range((table, from.to_vec())..).take_while(|(k, _)| k.0 == table);
        Ok(of_table.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        let mut rows = self.tables.rows();
        if changes.keys().any(|(table, _)| *table == Table::Volumes)
            && let Some(applied) = rows.fails.take()
        {
            if applied {
                rows.apply(changes);
            }
            return Err(StoreError::Failed(String::from("as planned")));
        }
        match self.calls.call() {
            Fate::Live => {
                rows.apply(changes);
                return Ok(());
            }
            Fate::Struck => rows.struck = Some(changes.clone()),
            Fate::Dead => {}
        }
        Err(StoreError::Failed(String::from("the machine has crashed")))
    }

    fn bytes_written(&self) -> u64 {
        0
    }
}

impl Default for Metadata {
    fn default() -> Self {
        Metadata::Embedded(Tables::default())
    }
}

impl Metadata {
    /// The same of a machine that parts from this one here.
    #[must_use]
    pub fn fork(&self) -> Self {
        match self {
            Metadata::Embedded(tables) => Metadata::Embedded(tables.fork()),
            Metadata::Hosted(seat) => Metadata::Hosted(seat.fork()),
        }
    }

    /// A hash of what is stored.
    pub fn stored(&self) -> u64 {
        match self {
            Metadata::Embedded(tables) => tables.hash(),
            Metadata::Hosted(seat) => seat.host().stored(),
        }
    }

    /// Has the next commit fail that changes a volume, `applied` all the same or not.
    pub fn fail_a_volume_commit(&self, applied: bool) {
        match self {
            Metadata::Embedded(tables) => tables.fail_a_volume_commit(applied),
            Metadata::Hosted(_) => unreachable!("of a shared server no commit fails"),
        }
    }

    /// All that is stored of a pool.
    pub fn facts(&self, pool: PoolId) -> Result<CatalogFacts, String> {
        match self {
            Metadata::Embedded(tables) => tables.facts(),
            Metadata::Hosted(seat) => seat.host().facts(pool),
        }
    }

    /// Who looks after a machine's lease.
    pub fn watch(&self, env: &SimEnv, lease: Duration) -> Option<LeaseWatch> {
        match self {
            Metadata::Embedded(_) => None,
            Metadata::Hosted(seat) => Some(seat.watch(env, lease)),
        }
    }

    /// The machine's server begins to serve.
    pub fn serve(&self, env: &SimEnv) -> Result<(), String> {
        match self {
            Metadata::Embedded(tables) => {
                let store = tables.open(env.call_counter(), env.random().is_multiple_of(2));
                let catalog = Catalog::open(Box::new(store)).map_err(|error| error.to_string())?;
                let server = server::Server::new(Pools::single(catalog));
                env.serve(Box::new(server.map_err(|error| error.to_string())?));
            }
            Metadata::Hosted(seat) => seat.serve(env),
        }
        Ok(())
    }

    /// Makes a pool with volumes of these sizes.
    pub async fn make(
        &self,
        env: &SimEnv,
        pool: PoolId,
        spec: &PoolSpec,
        volumes: &[u64],
    ) -> Result<(), String> {
        let named =
            volumes.iter().enumerate().map(|(number, size)| (format!("vol{number}"), *size));
        match self {
            Metadata::Embedded(tables) => {
                let wrong = |error: &dyn std::fmt::Debug| format!("{error:?}");
                let store = Box::new(tables.open(Calls::new(None), false));
                let mut catalog = Catalog::create(store, spec).map_err(|e| wrong(&e))?;
                for (name, size) in named {
                    catalog.create_volume(&name, size).map_err(|e| wrong(&e))?;
                }
                catalog.commit().map_err(|e| wrong(&e))
            }
            Metadata::Hosted(seat) => {
                seat.serve(env);
                let made = async {
                    client::pools::register(env, env.link(1), pool, spec).await?;
                    let claim = Claim::of(pool, UNIT, Incarnation(0));
                    let client = Client::attach(env.clone(), env.link(2), claim).await?;
                    for (name, size) in named {
                        client.create_volume(&name, size).await?;
                    }
                    client.detach().await
                };
                made.await.map_err(|error: MdsError| error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;
    use crate::env::sim::{DiskShape, Faults, Limit, Machine, Rng, Shape};
    use crate::format::ids::{ExtentId, ExtentRun, UnitId};

    const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 1_000_000 };

    fn serve(env: &SimEnv, tables: &Tables) {
        let store = tables.open(env.call_counter(), env.random().is_multiple_of(2));
        let catalog = Catalog::open(Box::new(store)).unwrap();
        env.serve(Box::new(server::Server::new(Pools::single(catalog)).unwrap()));
    }

    /// Goal: the client gets everything done over a bad network, and what was answered survives
    /// crashes of the machine.
    #[test]
    fn a_grant_survives_loss_and_crashes() {
        for seed in 0..60 {
            let mut rng = Rng::new(seed);
            let disk = DiskShape { len: 1 << 20, sector: 512, volatile_cache: true };
            let shape = Shape {
                disks: vec![disk],
                nvram: None,
                parts: Vec::new(),
                storage_max: 0,
                buffers_max: 4 << 20,
            };
            let mut machine = Machine::new(seed, &shape);
            let tables = Tables::default();
            let pool = PoolSpec {
                extent_size: 1 << 20,
                devices: vec![ExtentRun { start: ExtentId(0), count: 100 }],
                reserve: 10,
            };
            let store = tables.open(Calls::new(None), false);
            Catalog::create(Box::new(store), &pool).unwrap();
            let mut granted = 0;
            for incarnation in 1..=5 {
                let env = machine.boot(Faults::draw(&mut rng, false));
                serve(&env, &tables);
                env.crash_in((incarnation < 5).then(|| rng.between(1, 60)));
                let main = env.clone();
                let result = env.run(LIMIT, async move {
                    let link = main.link(0);
                    let (unit, incarnation) = (UnitId(1), Incarnation(incarnation));
                    let claim = Claim::of(PoolId::default(), unit, incarnation);
                    let client = Client::attach(main.clone(), link, claim).await?;
                    for _ in 0..4 {
                        main.sleep(Duration::from_millis(1)).await;
                        client.allocate_journal_space(2).await?;
                    }
                    client.grants().await
                });
                if let Ok(grants) = result {
                    let count = grants.unwrap().runs.iter().map(|run| run.count).sum::<u32>();
                    assert!(count >= granted + 8, "{count} after {granted}");
                    granted = count;
                }
                machine.halt(&env, rng.pick(&[crate::env::sim::Crash::Power]));
            }
            assert!(granted >= 8, "seed {seed}");
        }
    }
}
