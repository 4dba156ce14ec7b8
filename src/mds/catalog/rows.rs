//! The rows of the store that are not records of the wire.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Unit;
use crate::format::ids::Incarnation;
use crate::mds::records::PoolInfo;
use crate::mds::store::StoreError;

/// Version of the rows' layout.
const VERSION: u32 = 2;

/// The pool: the one row of its table.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PoolRow {
    version: U32,
    extents: U32,
    reserve: U32,
    extent_size: U32,
    /// One more than the highest extent.
    pub(super) extents_end: U32,
    pub(super) next_volume: U32,
}
const _: () = assert!(size_of::<PoolRow>() == 24);

/// A unit.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct UnitRow {
    pub(super) session: U64,
    pub(super) data_quota: U64,
    incarnation: U32,
    options: U32,
}
const _: () = assert!(size_of::<UnitRow>() == 24);
/// The unit's last start keeps its flags here.
const OPTION_FLAGS_HERE: u32 = 1;
/// Above that: how many starts ago the last one was that has begun.
const UNBEGUN_SHIFT: u32 = 1;

impl PoolRow {
    pub(super) fn new(info: PoolInfo, extents_end: u32, next_volume: u32) -> Self {
        PoolRow {
            version: U32::new(VERSION),
            extents: U32::new(info.extents),
            reserve: U32::new(info.reserve),
            extent_size: U32::new(info.extent_size),
            extents_end: U32::new(extents_end),
            next_volume: U32::new(next_volume),
        }
    }

    pub(super) fn info(&self) -> Result<PoolInfo, StoreError> {
        if self.version.get() != VERSION {
            let text = format!("its rows are of version {}, not {VERSION}", self.version);
            return Err(StoreError::Damaged(text));
        }
        Ok(PoolInfo {
            extents: self.extents.get(),
            reserve: self.reserve.get(),
            extent_size: self.extent_size.get(),
        })
    }
}

impl UnitRow {
    pub(super) fn new(unit: &Unit) -> Self {
        let unbegun = unit.incarnation.0.saturating_sub(unit.begun.0).min(u32::MAX >> 1);
        let flags_here = if unit.flags_here { OPTION_FLAGS_HERE } else { 0 };
        UnitRow {
            session: U64::new(unit.session),
            data_quota: U64::new(unit.data_quota),
            incarnation: U32::new(unit.incarnation.0),
            options: U32::new(flags_here | unbegun << UNBEGUN_SHIFT),
        }
    }

    pub(super) fn flags_here(&self) -> bool {
        self.options.get() & OPTION_FLAGS_HERE != 0
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.get())
    }

    pub(super) fn begun(&self) -> Incarnation {
        let unbegun = self.options.get() >> UNBEGUN_SHIFT;
        Incarnation(self.incarnation.get().saturating_sub(unbegun))
    }
}

/// A row of exactly that type.
pub(super) fn parsed<T: FromBytes>(bytes: &[u8]) -> Result<T, StoreError> {
    let damaged = |_| StoreError::Damaged(format!("a row of {} bytes", bytes.len()));
    T::read_from_bytes(bytes).map_err(damaged)
}

/// A row's bytes.
pub(super) fn bytes(row: &(impl IntoBytes + Immutable)) -> Vec<u8> {
    row.as_bytes().to_vec()
}
