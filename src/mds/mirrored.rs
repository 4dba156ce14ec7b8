//! A store whose volumes are written a second time, into the volume table.
//!
//! # Which of the two counts
//!
//! Both have a sequence that counts the changes of the rows that are kept. The store commits first,
//! then the table is written, then the caller goes on: so an acknowledged volume is in both, and
//! the table never lacks a volume that a pair can be of.
//!
//! | sequences | meaning | what is done |
//! | --- | --- | --- |
//! | the store's is higher | a crash came between, or the table is damaged | it is written |
//! | the same, and the same rows | all is well | nothing |
//! | anything else | the store has lost what it had committed | it is damaged |
//!
//! # Contract
//!
//! **Failure**: as [`Store`]'s; a table that cannot be written is a failed commit.

use redb::StorageBackend;

use super::store::{Changes, Row, Store, StoreError, Table};
use super::volume_table::{Kept, KeptRows, VolumeTable, is_kept, newest};

/// Rows read at a time: more than there can be volumes.
const LOAD_ROWS: usize = 8192;

/// A store with its volume table.
pub struct Mirrored<S, B> {
    store: S,
    table: VolumeTable<B>,
    kept: Kept,
}

/// How a store and the copies in its volume table stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Both copies say what the store says.
    Same,
    /// A copy is damaged, or older than the store.
    TableBehind,
    /// The table knows of changes that the store does not have.
    StoreBehind,
}

/// How they stand to each other: see the module.
pub fn compare(stored: &Kept, copies: &[Option<Kept>; 2]) -> Agreement {
    match newest(copies) {
        Some(table) if table.sequence > stored.sequence => Agreement::StoreBehind,
        Some(table) if table.sequence == stored.sequence && table.rows != stored.rows => {
            Agreement::StoreBehind
        }
        _ if copies.iter().all(|copy| copy.as_ref() == Some(stored)) => Agreement::Same,
        _ => Agreement::TableBehind,
    }
}

/// What a store holds of what the table keeps.
pub fn kept_by(store: &impl Store) -> Result<Kept, StoreError> {
    let mut rows = KeptRows::new();
    for table in Table::ALL.into_iter().filter(|table| is_kept(*table)) {
        let stored = store.range(table, &[], LOAD_ROWS)?;
        rows.extend(stored.into_iter().map(|(key, value)| ((table, key), value)));
    }
    let sequence = store.get(Table::Mirror, &[])?.unwrap_or_default();
    let damaged = |_| StoreError::Damaged("the sequence of its volumes".to_owned());
    let sequence = u64::from_le_bytes(sequence.try_into().map_err(damaged)?);
    Ok(Kept { sequence, rows })
}

/// The row that says which sequence a store has.
pub fn sequence_row(sequence: u64) -> ((Table, Vec<u8>), Option<Vec<u8>>) {
    ((Table::Mirror, Vec::new()), Some(sequence.to_le_bytes().to_vec()))
}

impl<S: Store, B: StorageBackend> Mirrored<S, B> {
    /// A new store, empty, whose table holds nothing yet.
    pub fn create(store: S, table: VolumeTable<B>) -> Self {
        Mirrored { store, table, kept: Kept::default() }
    }

    /// A store and its table with these copies, which agree from now on.
    pub fn open(
        store: S,
        mut table: VolumeTable<B>,
        copies: &[Option<Kept>; 2],
    ) -> Result<Self, StoreError> {
        let kept = kept_by(&store)?;
        match compare(&kept, copies) {
            Agreement::Same => {}
            Agreement::TableBehind => write(&mut table, &kept)?,
            Agreement::StoreBehind => {
                let text = "it is older than the volume table beside it".to_owned();
                return Err(StoreError::Damaged(text));
            }
        }
        Ok(Mirrored { store, table, kept })
    }

    /// The kept rows after these changes; `None` where they stay as they are.
    fn next(&self, changes: &Changes) -> Option<Kept> {
        let mut rows = self.kept.rows.clone();
        for (key, value) in changes.iter().filter(|((table, _), _)| is_kept(*table)) {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        let sequence = self.kept.sequence + 1;
        (rows != self.kept.rows).then_some(Kept { sequence, rows })
    }
}

fn write<B: StorageBackend>(table: &mut VolumeTable<B>, kept: &Kept) -> Result<(), StoreError> {
    let written = table.write(kept);
    written.map_err(|error| StoreError::Failed(format!("the volume table: {error}")))
}

impl<S: Store, B: StorageBackend + Send> Store for Mirrored<S, B> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.get(table, key)
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.store.range(table, from, limit)
    }

    fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        if !changes.keys().any(|(table, _)| is_kept(*table)) {
            return self.store.commit(changes);
        }
        let Some(next) = self.next(changes) else { return self.store.commit(changes) };
        if !self.table.fits(&next) {
            return Err(StoreError::Full("its volume table has no room".to_owned()));
        }
        let mut changes = changes.clone();
        changes.extend([sequence_row(next.sequence)]);
        self.store.commit(&changes)?;
        write(&mut self.table, &next)?;
        self.kept = next;
        Ok(())
    }

    fn bytes_written(&self) -> u64 {
        self.store.bytes_written()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::sim::Crash;
    use crate::env::sim::calls::Calls;
    use crate::env::sim::rng::Rng;
    use crate::env::sim::storage::SimStorage;
    use crate::format::ids::PoolId;
    use crate::mds::redb_store::RedbStore;
    use crate::mds::volume_table::TABLE_LEN;

    const POOL: PoolId = PoolId([5; 16]);

    fn volume(number: u8) -> (Table, Vec<u8>) {
        (Table::Volumes, vec![number])
    }

    fn opened(store: &SimStorage, table: &SimStorage) -> Mirrored<RedbStore, SimStorage> {
        let (table, copies) = VolumeTable::open(table.clone(), POOL);
        let store = RedbStore::open(store.clone()).unwrap();
        Mirrored::open(store, table, &copies).unwrap()
    }

    /// Goal: whenever power is lost, store and table agree after the next opening, hold every
    /// change that was acknowledged and at most one more; and before that opening the table alone
    /// has every volume that was ever acknowledged and not deleted.
    #[test]
    fn power_is_lost_at_any_call() {
        let mut cut = 0;
        for crash_at in 1..140 {
            let (store, table) = (SimStorage::new(16 << 20), SimStorage::new(TABLE_LEN));
            table.set_len(TABLE_LEN).unwrap();
            let (new, _) = VolumeTable::open(table.clone(), POOL);
            let mut first = Mirrored::create(RedbStore::open(store.clone()).unwrap(), new);
            let pool = (Table::Pool, Vec::new());
            first.commit(&Changes::from([(pool, Some(vec![1]))])).unwrap();
            drop(first);
            let mut rng = Rng::new(crash_at);
            let calls = Calls::new(Some(crash_at));
            store.boot(calls.clone());
            table.boot(calls.clone());
            let mut acknowledged = 0;
            let mut running = opened(&store, &table);
            for number in 1..=6 {
                // Other changes pass between those of volumes.
                let other = ((Table::Units, vec![number]), Some(vec![0; 16]));
                running.commit(&Changes::from([other])).unwrap();
                running
                    .commit(&Changes::from([(volume(number), Some(vec![number; 144]))]))
                    .unwrap();
                if !calls.crashed() {
                    acknowledged = number;
                }
            }
            drop(running);
            store.crash(Crash::Power, &mut rng);
            table.crash(Crash::Power, &mut rng);
            cut += u32::from(acknowledged < 6);
            store.boot(Calls::new(None));
            table.boot(Calls::new(None));
            let (_, copies) = VolumeTable::open(table.clone(), POOL);
            let alone = newest(&copies).expect("one is always whole").clone();
            let has = |kept: &Kept, number| kept.rows.contains_key(&volume(number));
            assert!((1..=acknowledged).all(|number| has(&alone, number)), "crash at {crash_at}");
            let again = opened(&store, &table);
            let (_, copies) = VolumeTable::open(table.clone(), POOL);
            assert_eq!(compare(&again.kept, &copies), Agreement::Same);
            assert!((1..=acknowledged).all(|number| has(&again.kept, number)));
            assert!((acknowledged + 2..=6).all(|number| !has(&again.kept, number)));
        }
        assert!(cut > 60, "{cut} runs were cut short");
    }

    /// Goal: every standing of store and table is told apart.
    #[test]
    fn who_is_behind() {
        let kept =
            |sequence, value| Kept { sequence, rows: KeptRows::from([(volume(1), vec![value])]) };
        let stored = kept(5, 1);
        let same = Some(stored.clone());
        let cases = [
            ([same.clone(), same.clone()], Agreement::Same),
            ([same.clone(), None], Agreement::TableBehind),
            ([None, same.clone()], Agreement::TableBehind),
            ([None, None], Agreement::TableBehind),
            ([Some(kept(4, 1)), same.clone()], Agreement::TableBehind),
            ([Some(kept(4, 2)), Some(kept(4, 2))], Agreement::TableBehind),
            ([Some(kept(6, 1)), same.clone()], Agreement::StoreBehind),
            ([Some(kept(6, 1)), None], Agreement::StoreBehind),
            ([Some(kept(5, 2)), Some(kept(5, 2))], Agreement::StoreBehind),
        ];
        for (copies, expected) in cases {
            assert_eq!(compare(&stored, &copies), expected, "{copies:?}");
        }
    }
}
