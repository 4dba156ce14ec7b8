//! One store that the catalogs of many pools share: each sees the rows whose keys begin with its
//! number, and nothing else.
//!
//! # Contracts
//!
//! - **Keys**: a pool's rows have its number, four bytes, big-endian, before the keys that its
//!   catalog knows; so the rows of one pool lie together in each table.
//! - **Together**: [`SharedStore::commit`] makes the changes of any number of pools durable as one
//!   transaction, each put into place by [`placed`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::store::{Changes, Row, Store, StoreError, Table};

/// Bytes of a pool's number before its keys.
const PREFIX: usize = 4;

/// The store of many pools. Cheap to clone: a handle.
#[derive(Clone)]
pub struct SharedStore(Arc<Mutex<Inner>>);

struct Inner {
    store: Box<dyn Store>,
    commits: u64,
}

/// One pool's part of a shared store.
pub struct PoolView {
    store: SharedStore,
    number: u32,
}

impl SharedStore {
    /// The store for all of them.
    pub fn new(store: Box<dyn Store>) -> Self {
        SharedStore(Arc::new(Mutex::new(Inner { store, commits: 0 })))
    }

    /// The part of the pool of that number.
    pub fn view(&self, number: u32) -> Box<PoolView> {
        Box::new(PoolView { store: self.clone(), number })
    }

    /// Makes changes of whichever pools durable, as one transaction.
    pub fn commit(&self, changes: &Changes) -> Result<(), StoreError> {
        let mut inner = self.inner();
        inner.commits += 1;
        inner.store.commit(changes)
    }

    /// How many transactions were made.
    pub fn commits(&self) -> u64 {
        self.inner().commits
    }

    /// Bytes written to the device so far.
    pub fn bytes_written(&self) -> u64 {
        self.inner().store.bytes_written()
    }

    /// A row, by its whole key.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner().store.get(table, key)
    }

    /// Rows by their whole keys.
    pub fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.inner().store.range(table, from, limit)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The changes of the pool of that number, as the shared store takes them.
pub fn placed(number: u32, changes: Changes) -> impl Iterator<Item = (Place, Option<Vec<u8>>)> {
    changes.into_iter().map(move |((table, key), value)| ((table, under(number, &key)), value))
}

/// A row's table and key.
pub type Place = (Table, Vec<u8>);

/// The pool's number that a row's whole key begins with.
pub fn number_of(key: &[u8]) -> Option<u32> {
    key.first_chunk().map(|number| u32::from_be_bytes(*number))
}

fn under(number: u32, key: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes(), key].concat()
}

impl Store for PoolView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.get(table, &under(self.number, key))
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let rows = self.store.range(table, &under(self.number, from), limit)?;
        let own = rows.into_iter().take_while(|(key, _)| number_of(key) == Some(self.number));
        Ok(own.map(|(key, value)| (key[PREFIX..].to_vec(), value)).collect())
    }

    fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        self.store.commit(&placed(self.number, changes.clone()).collect())
    }

    fn bytes_written(&self) -> u64 {
        self.store.bytes_written()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mds::redb_store::RedbStore;
    use crate::mds::testing::Memory;

    /// Goal: neighbours neither see nor touch each other's rows, at any key and number.
    #[test]
    fn views_are_apart() {
        let store = RedbStore::open(Memory::default()).unwrap();
        let shared = SharedStore::new(Box::new(store));
        let keys = [vec![], vec![0], vec![0xFF; 4], vec![0xFF; 12]];
        let numbers = [0, 1, 255, 256, u32::MAX];
        for number in numbers {
            let rows = keys.iter().map(|key| {
                ((Table::Pairs, key.clone()), Some(vec![number as u8, key.len() as u8]))
            });
            shared.view(number).commit(&rows.collect()).unwrap();
        }
        for number in numbers {
            let rows = shared.view(number).range(Table::Pairs, &[], 100).unwrap();
            let expected = keys.iter().map(|k| (k.clone(), vec![number as u8, k.len() as u8]));
            assert_eq!(rows, expected.collect::<Vec<_>>(), "{number}");
            let gone = ((Table::Pairs, vec![0xFF; 4]), None);
            shared.view(number).commit(&Changes::from([gone])).unwrap();
            assert_eq!(shared.view(number).get(Table::Pairs, &[0xFF; 4]).unwrap(), None);
            assert_eq!(shared.view(number).range(Table::Pairs, &[0], 2).unwrap().len(), 2);
        }
        assert_eq!(shared.commits(), 10);
    }
}
