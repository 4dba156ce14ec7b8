//! What stands in for persistent memory, in the best way that its path allows.
//!
//! | what the path is | how it is written |
//! | --- | --- |
//! | a file on a DAX file system | a `MAP_SYNC` mapping, cache lines written back ([`mapping`]) |
//! | anything, where memory is trusted | a shared mapping, cache lines written back, no more |
//! | any other file or block device | direct I/O through the ring, durable before it is reported |
//!
//! # Contracts
//!
//! - **Claim**: as of a disk ([`super::disk`]), for as long as any handle of the region exists.
//! - **Durability**: what [`Region`] promises; with trusted memory only where the machine's memory
//!   survives its power, which is said loudly.
//! - **Failure**: with direct I/O the first failed write or flush is the last ([`Latching`]).

mod mapping;
mod write_back;

use std::fmt;
use std::io;
use std::path::Path;

use futures_util::future::Either;
use tracing::{info, warn};

use super::disk::{self, Caching, OsDisk};
use super::open_error::{DiskOpenError, DiskOpenErrorKind};
use super::probe;
use crate::env::latch::Latching;
use crate::env::region::DeviceRegion;
use crate::env::{Disk as _, Nvram, Region};
use crate::uring::Ring;
use crate::uring::buffers::View;
pub use mapping::MappedRegion;
use mapping::Mapping;

/// A place for flags and journal beside the data devices. Cheap to clone: a handle.
#[derive(Clone)]
pub enum OsNvram {
    /// Memory.
    Mapped(MappedRegion),
    /// A file or block device past the page cache.
    Direct(DeviceRegion<Latching<OsDisk>>),
}

/// What makes writes to an [`OsNvram`] durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// Write-back of cache lines to persistent memory.
    Dax,
    /// Nothing but the belief that memory survives.
    TrustedMemory,
    /// Direct I/O and flushes.
    DirectIo,
}

impl fmt::Display for Persistence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dax => "DAX",
            Self::TrustedMemory => "trusted memory",
            Self::DirectIo => "direct I/O",
        })
    }
}

impl OsNvram {
    /// Claims the whole of a file or block device, in the best way that it allows.
    pub async fn open(ring: &Ring, path: &Path, trust: bool) -> Result<Self, DiskOpenError> {
        let fail = |error| DiskOpenError::from_io(path, error);
        let (file, kind, _) = disk::claim_patiently(ring, path, Caching::Kernel).await?;
        let len = probe::size(&file, kind).map_err(fail)?;
        let len = len - len % u64::from(mapping::SECTOR);
        if len == 0 {
            return Err(DiskOpenError::new(DiskOpenErrorKind::Empty, path));
        }
        let name = path.display();
        if trust {
            warn!(
                nvram = %name,
                "memory is TRUSTED: unless it survives a loss of power, what was flushed is lost \
                 with it, and the pool too"
            );
            let mapping = Mapping::trusting(file, len, path).map_err(fail)?;
            return Ok(Self::Mapped(MappedRegion::whole(mapping)));
        }
        match Mapping::synchronous(file, len, path) {
            Ok(mapping) => {
                info!(nvram = %name, "persistent memory, mapped");
                Ok(Self::Mapped(MappedRegion::whole(mapping)))
            }
            Err(error) => {
                info!(nvram = %name, "no persistent memory ({error}): written with direct I/O");
                let disk = Latching::new(OsDisk::open(ring, path).await?);
                Ok(Self::Direct(DeviceRegion::whole(disk)))
            }
        }
    }

    /// What makes writes durable.
    pub fn persistence(&self) -> Persistence {
        match self {
            Self::Mapped(region) if region.is_trusting() => Persistence::TrustedMemory,
            Self::Mapped(_) => Persistence::Dax,
            Self::Direct(_) => Persistence::DirectIo,
        }
    }
}

impl Region for OsNvram {
    fn len(&self) -> u64 {
        match self {
            Self::Mapped(region) => region.len(),
            Self::Direct(region) => region.len(),
        }
    }

    fn sector(&self) -> u32 {
        match self {
            Self::Mapped(region) => region.sector(),
            Self::Direct(region) => region.sector(),
        }
    }

    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static {
        match self {
            Self::Mapped(region) => Either::Left(region.read(offset, view)),
            Self::Direct(region) => Either::Right(region.read(offset, view)),
        }
    }

    fn persist(&self, pieces: Vec<(u64, View)>) -> impl Future<Output = io::Result<()>> + 'static {
        match self {
            Self::Mapped(region) => Either::Left(region.persist(pieces)),
            Self::Direct(region) => Either::Right(region.persist(pieces)),
        }
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        match self {
            Self::Mapped(region) => Either::Left(region.flush()),
            Self::Direct(region) => Either::Right(region.flush()),
        }
    }
}

impl Nvram for OsNvram {
    fn name(&self) -> &str {
        match self {
            Self::Mapped(region) => region.name(),
            Self::Direct(region) => region.disk().name(),
        }
    }

    fn part(&self, start: u64, len: u64) -> Self {
        match self {
            Self::Mapped(region) => Self::Mapped(region.part(start, len)),
            Self::Direct(region) => Self::Direct(region.part(start, len)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::{NamedTempFile, TempPath};

    use super::*;
    use crate::uring::RingOptions;
    use crate::uring::buffers::{ARENA_BLOCK, BufferPool};

    const LEN: u64 = 1 << 20;

    fn on_ring<F: Future<Output = ()> + 'static>(test: impl FnOnce(Ring) -> F) {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        ring.block_on(test(ring.clone()));
        ring.shutdown();
    }

    fn file() -> TempPath {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(LEN).unwrap();
        file.into_temp_path()
    }

    /// Goal: trusted or not, on a file system without DAX: what is persisted is read again, by this
    /// handle and by a later one, at the place that its part says, and nothing beside it changes.
    #[test]
    fn what_is_persisted_is_there() {
        for (trust, expected) in
            [(true, Persistence::TrustedMemory), (false, Persistence::DirectIo)]
        {
            on_ring(async move |ring| {
                let path = file();
                let pool = BufferPool::new(ARENA_BLOCK, ARENA_BLOCK).unwrap();
                let mut buf = pool.try_acquire(3 * 4096).unwrap();
                buf.as_mut_slice()[..4096].fill(1);
                buf.as_mut_slice()[4096..].fill(2);
                let nvram = OsNvram::open(&ring, &path, trust).await.unwrap();
                assert_eq!((nvram.persistence(), nvram.len()), (expected, LEN));
                let part = nvram.part(8192, LEN / 2);
                let pieces = vec![(0, buf.view(0..4096)), (12288, buf.view(4096..12288))];
                part.persist(pieces).await.unwrap();
                drop((nvram, part));
                let again = OsNvram::open(&ring, &path, trust).await.unwrap().part(8192, LEN / 2);
                again.flush().await.unwrap();
                again.read(8192, buf.view_all()).await.unwrap();
                assert!(buf.as_slice()[..4096].iter().all(|&byte| byte == 0));
                assert!(buf.as_slice()[4096..].iter().all(|&byte| byte == 2));
                let bytes = std::fs::read(&path).unwrap();
                let ones: Vec<_> = (0..bytes.len()).filter(|&at| bytes[at] == 1).collect();
                assert_eq!((ones.first(), ones.len()), (Some(&8192), 4096));
            });
        }
    }

    /// Goal: what another holds is refused, and so is nothing at all.
    #[test]
    fn claims_exclude() {
        on_ring(async |ring| {
            let path = file();
            let _held = OsNvram::open(&ring, &path, true).await.unwrap();
            let refused = OsNvram::open(&ring, &path, false).await.err().unwrap();
            assert_eq!(refused.kind, DiskOpenErrorKind::InUse);
            let empty = NamedTempFile::new().unwrap();
            let refused = OsNvram::open(&ring, empty.path(), true).await.err().unwrap();
            assert_eq!(refused.kind, DiskOpenErrorKind::Empty);
        });
    }
}
