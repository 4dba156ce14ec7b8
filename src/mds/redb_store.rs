//! The store on redb, over any of its storage backends.
//!
//! Commits are `Immediate` with quick repair: two phases, so that a torn commit is never taken for
//! one, and the allocator's state saved with each, so that opening after a crash takes
//! milliseconds.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{
    Database, Durability, ReadableDatabase, StorageBackend, StorageError, TableDefinition,
    TableError,
};

use super::backend::Watched;
use super::store::{Changes, Row, Store, StoreError, Table};

/// Memory for the store's pages, in bytes.
const CACHE_BYTES: usize = 64 << 20;

/// A store in a redb database.
pub struct RedbStore {
    database: Database,
    written: Arc<AtomicU64>,
}

impl RedbStore {
    /// Opens the database behind `backend`; makes a new one where the backend is empty.
    pub fn open(backend: impl StorageBackend) -> Result<Self, StoreError> {
        let written = Arc::new(AtomicU64::new(0));
        let watched = Watched::new(backend, Arc::clone(&written));
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = builder.create_with_backend(watched).map_err(failed)?;
        Ok(RedbStore { database, written })
    }
}

fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

/// Tells a full store from a failed or damaged one.
fn failed(error: impl Into<redb::Error>) -> StoreError {
    let error = error.into();
    match &error {
        redb::Error::Io(cause) if cause.kind() == io::ErrorKind::StorageFull => {
            StoreError::Full(error.to_string())
        }
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableTypeMismatch { .. } => StoreError::Damaged(error.to_string()),
        _ => StoreError::Failed(error.to_string()),
    }
}

impl Store for RedbStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = match transaction.open_table(definition(table)) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let row = table.get(key).map_err(failed)?;
        Ok(row.map(|row| row.value().to_vec()))
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let table = match transaction.open_table(definition(table)) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let rows = table.range(from..).map_err(failed)?.take(limit);
        rows.map(|row| {
            let (key, value) = row?;
            Ok((key.value().to_vec(), value.value().to_vec()))
        })
        .collect::<Result<Vec<Row>, StorageError>>()
        .map_err(failed)
    }

    fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        let mut transaction = self.database.begin_write().map_err(failed)?;
        transaction.set_durability(Durability::Immediate).map_err(failed)?;
        transaction.set_quick_repair(true);
        let mut rows = changes.iter().peekable();
        while let Some(&(&(name, _), _)) = rows.peek() {
            let mut table = transaction.open_table(definition(name)).map_err(failed)?;
            while let Some(((_, key), value)) = rows.next_if(|((table, _), _)| *table == name) {
                match value {
                    Some(value) => table.insert(key.as_slice(), value.as_slice()),
                    None => table.remove(key.as_slice()),
                }
                .map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)
    }

    fn bytes_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}
