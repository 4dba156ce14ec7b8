//! A metadata store in memory: sorted rows, nothing else.

use std::collections::BTreeMap;

use flipside::mds::store::{Changes, Row, Store, StoreError, Table};

/// The rows of all tables.
#[derive(Default)]
pub struct Rows(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

impl Store for Rows {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let rows = self.0.range((table, from.to_vec())..);
        let rows = rows.take_while(|((of, _), _)| *of == table).take(limit);
        Ok(rows.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        for (key, value) in changes {
            match value {
                Some(value) => self.0.insert(key.clone(), value.clone()),
                None => self.0.remove(key),
            };
        }
        Ok(())
    }

    fn bytes_written(&self) -> u64 {
        0
    }
}
