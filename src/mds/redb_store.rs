//! The store on redb, over any of its storage backends.
//!
//! Commits are `Immediate` with quick repair: two phases, so that a torn commit is never taken for
//! one, and the allocator's state saved with each, so that opening after a crash takes
//! milliseconds.
//!
//! redb has checksums of its pages and does not look at them when it reads. So each row carries a
//! CRC32C of its table, key and value after the value: a row that is not what was written is
//! [`StoreError::Damaged`], and never believed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{Database, Durability, ReadableDatabase, StorageBackend, TableDefinition, TableError};

use super::backend::Watched;
use super::store::{Changes, Row, Store, StoreError, Table};
use super::wire::crc32c;

/// Memory for the store's pages, in bytes.
const CACHE_BYTES: usize = 64 << 20;

/// A store in a redb database. Cheap to clone: a handle.
#[derive(Clone)]
pub struct RedbStore {
    database: Arc<Database>,
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
        Ok(RedbStore { database: Arc::new(database), written })
    }

    /// Looks at the checksum of every page. What redb could repair is damage too.
    ///
    /// # Panics
    ///
    /// Where there are other handles of it.
    pub fn verify(&mut self) -> Result<(), StoreError> {
        let database = Arc::get_mut(&mut self.database).expect("verified before it is shared");
        match database.check_integrity() {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::Damaged("its pages are not as written".to_owned())),
            Err(error) => Err(failed(error)),
        }
    }
}

fn row_crc(table: Table, key: &[u8], value: &[u8]) -> [u8; 4] {
    let length = (key.len() as u64).to_le_bytes();
    crc32c(&[table.name().as_bytes(), &length, key, value].concat()).to_le_bytes()
}

/// A value as it is stored.
fn sealed(table: Table, key: &[u8], value: &[u8]) -> Vec<u8> {
    [value, &row_crc(table, key, value)].concat()
}

/// The value in what is stored.
fn unsealed(table: Table, key: &[u8], stored: &[u8]) -> Result<Vec<u8>, StoreError> {
    match stored.split_last_chunk() {
        Some((value, crc)) if *crc == row_crc(table, key, value) => Ok(value.to_vec()),
        _ => Err(StoreError::Damaged(format!("a row of its table of {}", table.name()))),
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
        redb::Error::Io(cause) if is_nonsense(cause) => StoreError::Damaged(error.to_string()),
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableTypeMismatch { .. } => StoreError::Damaged(error.to_string()),
        _ => StoreError::Failed(error.to_string()),
    }
}

/// Whether the failure is that of a place which there is not, and not a device's.
fn is_nonsense(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    error.raw_os_error().is_none()
        && matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

impl Store for RedbStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let rows = match transaction.open_table(definition(table)) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let row = rows.get(key).map_err(failed)?;
        row.map(|row| unsealed(table, key, row.value())).transpose()
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let transaction = self.database.begin_read().map_err(failed)?;
        let rows = match transaction.open_table(definition(table)) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let rows = rows.range(from..).map_err(failed)?.take(limit);
        rows.map(|row| {
            let (key, value) = row.map_err(failed)?;
            let value = unsealed(table, key.value(), value.value())?;
            Ok((key.value().to_vec(), value))
        })
        .collect()
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
                    Some(value) => {
                        table.insert(key.as_slice(), sealed(name, key, value).as_slice())
                    }
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
