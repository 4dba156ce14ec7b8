//! A part of a disk that stands in for persistent memory.
//!
//! # Contracts
//!
//! - **Durability**: [`Region::persist`] of one piece is one durable write; of several, writes side
//!   by side and one flush after the last. Where the disk has no volatile cache a completed write
//!   is durable already.
//! - **Failure**: where any piece or the flush fails, any of the pieces may or may not be durable.
//!   Nothing is repeated.

use std::io;

use futures_util::future::join_all;

use super::{Disk, Durability, Region};
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::View;

/// A part of a disk, as a region. Cheap to clone: a handle.
#[derive(Clone)]
pub struct DeviceRegion<D> {
    disk: D,
    start: u64,
    len: u64,
}

impl<D: Disk> DeviceRegion<D> {
    /// The `len` bytes of `disk` from `start`. They must be whole sectors of it.
    pub fn new(disk: D, start: u64, len: u64) -> Self {
        let sector = u64::from(disk.sector());
        assert!(
            start.is_multiple_of(sector) && len.is_multiple_of(sector),
            "a region of {len} bytes at {start} is not whole sectors of {sector} bytes"
        );
        let end = start.checked_add(len).expect("a region ends within 2^64 bytes");
        assert!(end <= disk.len(), "a region ends at {end}, {} at {}", disk.name(), disk.len());
        Self { disk, start, len }
    }

    /// The whole of `disk`.
    pub fn whole(disk: D) -> Self {
        let len = disk.len();
        Self::new(disk, 0, len)
    }

    /// The disk that the region is a part of.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The `len` bytes of it from `start`, which must be whole sectors.
    #[must_use]
    pub fn part(&self, start: u64, len: u64) -> Self {
        let end = start.checked_add(len).expect("a part ends within 2^64 bytes");
        assert!(end <= self.len, "a part ends at {end}, its region at {}", self.len);
        Self::new(self.disk.clone(), self.start + start, len)
    }

    /// Where a piece of the region lies on the disk.
    fn place(&self, offset: u64, len: usize) -> u64 {
        let end = offset.checked_add(len as u64).expect("a piece ends within 2^64 bytes");
        assert!(end <= self.len, "a piece ends at {end}, its region at {}", self.len);
        let sector = u64::from(self.disk.sector());
        assert!(
            offset.is_multiple_of(sector) && (len as u64).is_multiple_of(sector),
            "a piece of {len} bytes at {offset} is not whole sectors of {sector} bytes"
        );
        self.start + offset
    }
}

impl<D: Disk> Region for DeviceRegion<D> {
    fn len(&self) -> u64 {
        self.len
    }

    fn sector(&self) -> u32 {
        self.disk.sector()
    }

    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static {
        self.disk.read(self.place(offset, view.len()), view)
    }

    #[track_caller]
    fn persist(&self, pieces: Vec<(u64, View)>) -> impl Future<Output = io::Result<()>> + 'static {
        let disk = self.disk.clone();
        let volatile = disk.volatile_cache() && !mutated(Mutant::PersistNotDurable);
        let flush = pieces.len() > 1 && volatile;
        let durability =
            if pieces.len() == 1 && volatile { Durability::Durable } else { Durability::Volatile };
        let mut writes = Vec::with_capacity(pieces.len());
        for (offset, view) in pieces {
            writes.push(self.disk.write(self.place(offset, view.len()), view, durability));
        }
        async move {
            // All are awaited even where one fails: what returns must be over.
            join_all(writes).await.into_iter().collect::<io::Result<()>>()?;
            if flush { disk.flush().await } else { Ok(()) }
        }
    }

    #[track_caller]
    fn persist_all(
        &self,
        pieces: Vec<(u64, View)>,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let disk = self.disk.clone();
        let flush = disk.volatile_cache() && !mutated(Mutant::SumsNotFlushed);
        let writes: Vec<_> = pieces
            .into_iter()
            .map(|(offset, view)| {
                self.disk.write(self.place(offset, view.len()), view, Durability::Volatile)
            })
            .collect();
        async move {
            join_all(writes).await.into_iter().collect::<io::Result<()>>()?;
            if flush { disk.flush().await } else { Ok(()) }
        }
    }

    fn whole(&self) -> Option<Self> {
        Some(Self::whole(self.disk.clone()))
    }

    #[track_caller]
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        self.disk.flush()
    }
}

#[cfg(test)]
#[path = "region_tests.rs"]
mod tests;
