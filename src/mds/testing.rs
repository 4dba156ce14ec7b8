//! What the tests of this room share.

use std::io;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::catalog::{Catalog, PoolSpec};
use super::pools::Pools;
use super::records::PairRecord;
use super::redb_store::RedbStore;
use super::server::Server;
use crate::format::ids::{ExtentId, ExtentRun, Generation, LogicalExtent, PairId, Slot, VolumeId};

/// Size of an extent in tests, in bytes.
pub const EXTENT_SIZE: u32 = 1 << 20;

/// A store's bytes in memory, which can be looked at as after a crash.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    /// The bytes as they are now, on a medium of their own.
    pub fn snapshot(&self) -> Memory {
        Memory(Arc::new(Mutex::new(self.0.lock().unwrap().clone())))
    }
}

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        out.copy_from_slice(&self.0.lock().unwrap()[offset..offset + out.len()]);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(length as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = offset as usize;
        self.0.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// A pool of that many extents and reserve, in memory.
pub fn create(extents: u32, reserve: u32) -> (Memory, Catalog) {
    let memory = Memory::default();
    let store = Box::new(RedbStore::open(memory.clone()).unwrap());
    let devices = vec![ExtentRun { start: ExtentId(0), count: extents }];
    let spec = PoolSpec { extent_size: EXTENT_SIZE, devices, reserve };
    (memory, Catalog::create(store, &spec).unwrap())
}

/// The pool that those bytes hold.
pub fn open(memory: &Memory) -> Catalog {
    Catalog::open(Box::new(RedbStore::open(memory.clone()).unwrap())).unwrap()
}

/// A server of the pool that those bytes hold.
pub fn serve<P: Clone + PartialEq>(memory: &Memory) -> Server<P> {
    Server::new(Pools::single(open(memory))).unwrap()
}

/// Pair `pair` of volume 0 at the logical extent of the same number.
pub fn pair(pair: u32, generation: u32, slots: [Option<u32>; 2], data_slot: Slot) -> PairRecord {
    PairRecord {
        volume: VolumeId(0),
        logical: LogicalExtent(pair),
        pair: PairId(pair),
        generation: Generation(generation),
        slots: slots.map(|slot| slot.map(ExtentId)),
        data_slot,
    }
}
