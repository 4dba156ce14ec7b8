//! The metadata store's storage: redb's backend on a simulated medium.
//!
//! The server runs synchronously inside one event, so a crash cannot stop it in the middle.
//! Instead the medium stands still from the crash on, and what the server does after it goes to a
//! copy that nobody will ever read.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use super::calls::{Calls, Fate};
use super::faults::Faults;
use super::image::Image;
use super::medium::{Crash, Medium};
use super::rng::Rng;
use crate::env::Durability;
use crate::mds::backend;

/// The sectors of the simulated storage, in bytes.
const SECTOR: usize = 512;

/// A file's worth of storage. Cheap to clone: a handle.
#[derive(Clone)]
pub struct SimStorage(Arc<Mutex<State>>);

struct State {
    medium: Medium,
    len: u64,
    calls: Calls,
    /// What a server that does not know of the crash sees.
    afterlife: Option<Afterlife>,
}

struct Afterlife {
    image: Image,
    len: u64,
}

impl std::fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimStorage")
    }
}

impl SimStorage {
    /// Storage that may grow to `capacity` bytes; now it has none.
    pub fn new(capacity: u64) -> Self {
        let medium = Medium::new(capacity, SECTOR as u32, true, None);
        let calls = Calls::new(None);
        Self(Arc::new(Mutex::new(State { medium, len: 0, calls, afterlife: None })))
    }

    /// The next operating period begins, with calls counted there.
    pub fn boot(&self, calls: Calls) {
        let mut state = self.state();
        state.calls = calls;
        state.afterlife = None;
    }

    /// The machine stops.
    pub fn crash(&self, crash: Crash, rng: &mut Rng) {
        self.state().medium.crash(crash, &Faults::none(), rng);
    }

    /// Another storage, with what this one has now.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.state();
        let (medium, len) = (state.medium.clone(), state.len);
        let calls = Calls::new(None);
        Self(Arc::new(Mutex::new(State { medium, len, calls, afterlife: None })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fate(&mut self) -> Fate {
        let fate = self.calls.call();
        if fate != Fate::Live && self.afterlife.is_none() {
            self.afterlife = Some(Afterlife { image: self.medium.image().clone(), len: self.len });
        }
        fate
    }

    fn len(&self) -> u64 {
        self.afterlife.as_ref().map_or(self.len, |after| after.len)
    }

    fn set_len(&mut self, len: u64) {
        match &mut self.afterlife {
            Some(after) => after.len = len,
            None => self.len = len,
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        match &self.afterlife {
            Some(after) => after.image.read(offset, out),
            None => self.medium.image().read(offset, out),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let fate = self.fate();
        if fate != Fate::Dead {
            let sector = SECTOR as u64;
            let start = offset / sector * sector;
            let end = (offset + data.len() as u64).next_multiple_of(sector);
            let mut whole = vec![0; (end - start) as usize];
            self.medium.image().read(start, &mut whole);
            let lead = (offset - start) as usize;
            whole[lead..lead + data.len()].copy_from_slice(data);
            let id = self.medium.begin(start, whole.into(), Durability::Volatile);
            if fate == Fate::Live {
                self.medium.complete(id);
            }
        }
        if let Some(after) = &mut self.afterlife {
            after.image.write(offset, data);
        }
    }
}

/// As a medium it has the length that it was given.
impl backend::Medium for SimStorage {
    fn handle(&self) -> io::Result<Self> {
        Ok(self.clone())
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(offset, out)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write(offset, data)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

impl StorageBackend for SimStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if offset + out.len() as u64 > state.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        state.read(offset, out);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if len > state.medium.size() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // What is cut off reads as zeros should the storage grow again.
        let old = state.len();
        if len < old {
            let zeros = vec![0; (old - len) as usize];
            state.write(len, &zeros);
        }
        state.set_len(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.fate() == Fate::Live {
            let mark = state.medium.mark();
            state.medium.flushed(mark);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        if offset + data.len() as u64 > state.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !data.is_empty() {
            state.write(offset, data);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::{Database, ReadableDatabase, TableDefinition};

    const TABLE: TableDefinition<u64, u64> = TableDefinition::new("numbers");

    fn put(db: &Database, key: u64) -> Result<(), redb::Error> {
        let transaction = db.begin_write()?;
        transaction.open_table(TABLE)?.insert(key, key)?;
        transaction.commit()?;
        Ok(())
    }

    /// Goal: a store on this storage keeps what it committed before a crash at any of its calls.
    #[test]
    fn commits_survive_a_crash_at_any_call() {
        for crash_at in (1..160).step_by(3) {
            let storage = SimStorage::new(16 << 20);
            let mut rng = Rng::new(crash_at);
            let db = Database::builder().create_with_backend(storage.clone()).unwrap();
            put(&db, 0).unwrap();
            let calls = Calls::new(Some(crash_at));
            storage.boot(calls.clone());
            let mut committed = 0;
            for key in 1..20 {
                if put(&db, key).is_ok() && !calls.crashed() {
                    committed = key;
                }
            }
            drop(db);
            storage.crash(Crash::Power, &mut rng);
            storage.boot(Calls::new(None));
            let db = Database::builder().create_with_backend(storage).unwrap();
            let table = db.begin_read().unwrap().open_table(TABLE).unwrap();
            for key in 0..=committed {
                assert_eq!(table.get(key).unwrap().map(|v| v.value()), Some(key), "{crash_at}");
            }
        }
    }
}
