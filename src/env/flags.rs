//! Where a unit keeps its journal and home (`--flags`): on a device or in persistent memory.

use std::io;

use futures_util::future::Either;

use super::Region;
use crate::uring::buffers::View;

/// One of two kinds of region.
#[derive(Clone)]
pub enum FlagsRegion<D, N> {
    /// A part of a data device ('721 claim 10).
    Device(D),
    /// Persistent memory ('721 claim 9).
    Nvram(N),
}

impl<D: Region, N: Region> Region for FlagsRegion<D, N> {
    fn len(&self) -> u64 {
        match self {
            FlagsRegion::Device(region) => region.len(),
            FlagsRegion::Nvram(region) => region.len(),
        }
    }

    fn sector(&self) -> u32 {
        match self {
            FlagsRegion::Device(region) => region.sector(),
            FlagsRegion::Nvram(region) => region.sector(),
        }
    }

    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static {
        match self {
            FlagsRegion::Device(region) => Either::Left(region.read(offset, view)),
            FlagsRegion::Nvram(region) => Either::Right(region.read(offset, view)),
        }
    }

    #[track_caller]
    fn persist(&self, pieces: Vec<(u64, View)>) -> impl Future<Output = io::Result<()>> + 'static {
        match self {
            FlagsRegion::Device(region) => Either::Left(region.persist(pieces)),
            FlagsRegion::Nvram(region) => Either::Right(region.persist(pieces)),
        }
    }

    #[track_caller]
    fn persist_all(
        &self,
        pieces: Vec<(u64, View)>,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        match self {
            FlagsRegion::Device(region) => Either::Left(region.persist_all(pieces)),
            FlagsRegion::Nvram(region) => Either::Right(region.persist_all(pieces)),
        }
    }

    fn whole(&self) -> Option<Self> {
        match self {
            FlagsRegion::Device(region) => region.whole().map(FlagsRegion::Device),
            FlagsRegion::Nvram(region) => region.whole().map(FlagsRegion::Nvram),
        }
    }

    #[track_caller]
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        match self {
            FlagsRegion::Device(region) => Either::Left(region.flush()),
            FlagsRegion::Nvram(region) => Either::Right(region.flush()),
        }
    }
}
