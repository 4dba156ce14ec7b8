//! The volume table: a second copy of what would lose every volume, outside of the store.
//!
//! All pairs are in the unit's home too; what only the store knows is the pool's row, the volumes
//! and their consistency groups. The table holds those rows as they are, without knowing what is in
//! them, in two places of [`PLACE_LEN`] bytes each:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic |
//! | 8 | 4 | version of the format |
//! | 12 | 4 | CRC32C of all that is used, this field as zeros |
//! | 16 | 8 | sequence: counts the changes |
//! | 24 | 16 | pool id |
//! | 40 | 4 | number of rows |
//! | 44 | 4 | bytes used, this header included |
//! | 48 | | rows: table (0 pool, 1 volumes, 2 groups), length of key, of value (2 each); both |
//!
//! # Contracts
//!
//! - **Durability**: [`VolumeTable::write`] returns when both places are durable. The place that is
//!   not the only good one goes first, and is durable before the other is touched: at any crash one
//!   is whole, and at rest both are the same, so that rot in either loses nothing.
//! - **Trust**: one checksum covers a place as a whole, and names the pool.

use std::collections::BTreeMap;
use std::io;

use redb::StorageBackend;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::store::Table;
use super::wire::crc32c;
use crate::format::ids::PoolId;

/// Bytes of one of the two places: room for as many volumes as there can be.
pub const PLACE_LEN: u64 = 768 << 10;
/// Bytes of both.
pub const TABLE_LEN: u64 = 2 * PLACE_LEN;
/// Written lengths are multiples of this: no smaller than a device's sector.
const WRITE_ALIGN: usize = 4096;
/// The tables whose rows are kept; their codes are their positions.
const KEPT: [Table; 3] = [Table::Pool, Table::Volumes, Table::Groups];
const MAGIC: [u8; 8] = *b"FSvolTab";
const VERSION: u32 = 1;
/// No table is changed so often: a stored sequence beyond is damage, and would overflow.
const SEQUENCE_MAX: u64 = u64::MAX / 2;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawTable {
    magic: [u8; 8],
    format: U32,
    crc: U32,
    sequence: U64,
    pool: [u8; 16],
    rows: U32,
    used: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRow {
    table: U16,
    key: U16,
    value: U16,
}

const HEADER: usize = size_of::<RawTable>();
const CRC_AT: usize = std::mem::offset_of!(RawTable, crc);
const _: () = assert!(HEADER == 48 && CRC_AT == 12);
const _: () = assert!(size_of::<RawRow>() == 6);

/// The rows that are kept, by table and key.
pub type KeptRows = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// What a table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Counts the changes; the store has it too.
    pub sequence: u64,
    /// The rows.
    pub rows: KeptRows,
}

/// Whether rows of that table are kept.
pub fn is_kept(table: Table) -> bool {
    KEPT.contains(&table)
}

impl Kept {
    /// The bytes of a place; `None` where it is too small for them.
    pub fn encode(&self, pool: PoolId) -> Option<Vec<u8>> {
        let mut bytes = vec![0; HEADER];
        for ((table, key), value) in &self.rows {
            let code = KEPT.iter().position(|kept| kept == table)?;
            let raw = RawRow {
                table: U16::new(u16::try_from(code).ok()?),
                key: U16::new(u16::try_from(key.len()).ok()?),
                value: U16::new(u16::try_from(value.len()).ok()?),
            };
            bytes.extend_from_slice(raw.as_bytes());
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value);
        }
        let raw = RawTable {
            magic: MAGIC,
            format: U32::new(VERSION),
            crc: U32::ZERO,
            sequence: U64::new(self.sequence),
            pool: pool.0,
            rows: U32::new(u32::try_from(self.rows.len()).ok()?),
            used: U32::new(u32::try_from(bytes.len()).ok()?),
        };
        bytes[..HEADER].copy_from_slice(raw.as_bytes());
        let crc = U32::new(crc32c(&bytes));
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(crc.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(WRITE_ALIGN), 0);
        (bytes.len() as u64 <= PLACE_LEN).then_some(bytes)
    }

    /// What a place holds; `None` where that is no whole table of the pool.
    pub fn parse(bytes: &[u8], pool: PoolId) -> Option<Kept> {
        let (raw, _) = RawTable::read_from_prefix(bytes).ok()?;
        let ours = raw.magic == MAGIC && raw.format.get() == VERSION && raw.pool == pool.0;
        if !ours || raw.sequence.get() > SEQUENCE_MAX {
            return None;
        }
        let mut used = bytes.get(..raw.used.get() as usize)?.to_vec();
        used.get_mut(CRC_AT..CRC_AT + 4)?.fill(0);
        if raw.crc.get() != crc32c(&used) {
            return None;
        }
        let mut rest = used.get(HEADER..)?;
        let mut rows = KeptRows::new();
        for _ in 0..raw.rows.get() {
            let (row, after) = RawRow::read_from_prefix(rest).ok()?;
            let table = *KEPT.get(usize::from(row.table.get()))?;
            let (key, after) = after.split_at_checked(usize::from(row.key.get()))?;
            let (value, after) = after.split_at_checked(usize::from(row.value.get()))?;
            rows.insert((table, key.to_vec()), value.to_vec());
            rest = after;
        }
        rest.is_empty().then_some(Kept { sequence: raw.sequence.get(), rows })
    }
}

/// The two places, on storage of [`TABLE_LEN`] bytes.
#[derive(Debug)]
pub struct VolumeTable<B> {
    storage: B,
    pool: PoolId,
    /// The place that is written first: never the only good one.
    first: usize,
}

impl<B: StorageBackend> VolumeTable<B> {
    /// The table on that storage, and what each place holds: `None` where it is damaged or
    /// cannot be read.
    pub fn open(storage: B, pool: PoolId) -> (Self, [Option<Kept>; 2]) {
        let mut copies = [None, None];
        for (place, copy) in copies.iter_mut().enumerate() {
            let mut bytes = vec![0; PLACE_LEN as usize];
            let read = storage.read(place as u64 * PLACE_LEN, &mut bytes);
            // What a copy is for: the other one has all that was ever acknowledged.
            *copy = read.ok().and_then(|()| Kept::parse(&bytes, pool));
        }
        let sequence = |copy: &Option<Kept>| copy.as_ref().map(|kept| kept.sequence);
        let first = usize::from(sequence(&copies[0]) > sequence(&copies[1]));
        (VolumeTable { storage, pool, first }, copies)
    }

    /// Writes both places, durably.
    pub fn write(&mut self, kept: &Kept) -> io::Result<()> {
        let bytes = kept.encode(self.pool).ok_or(io::ErrorKind::StorageFull)?;
        for place in [self.first, 1 - self.first] {
            self.storage.write(place as u64 * PLACE_LEN, &bytes)?;
            self.storage.sync_data()?;
        }
        Ok(())
    }

    /// Whether a table with these contents fits.
    pub fn fits(&self, kept: &Kept) -> bool {
        kept.encode(self.pool).is_some()
    }
}

/// The newer of two copies.
pub fn newest(copies: &[Option<Kept>; 2]) -> Option<&Kept> {
    copies.iter().flatten().max_by_key(|kept| kept.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mds::testing::Memory;

    const POOL: PoolId = PoolId([7; 16]);

    fn kept(sequence: u64, volumes: u32, bytes: usize) -> Kept {
        let mut rows = KeptRows::new();
        rows.insert((Table::Pool, Vec::new()), vec![1; 24]);
        for volume in 0..volumes {
            let value = vec![volume as u8; bytes];
            rows.insert((Table::Volumes, volume.to_be_bytes().to_vec()), value);
        }
        Kept { sequence, rows }
    }

    /// Goal: a table survives its bytes, also the largest; any flipped bit of what is used, another
    /// pool and a cut are refused.
    #[test]
    fn round_trip_and_damage() {
        for (volumes, bytes) in [(0, 0), (1, 144), (4096, 170)] {
            let kept = kept(9, volumes, bytes);
            let good = kept.encode(POOL).unwrap();
            assert_eq!(Kept::parse(&good, POOL), Some(kept));
            assert_eq!(Kept::parse(&good, PoolId([8; 16])), None);
            assert_eq!(Kept::parse(&good[..40], POOL), None);
        }
        let good = kept(9, 3, 144).encode(POOL).unwrap();
        let used = HEADER + 6 + 24 + 3 * (6 + 4 + 144);
        for bit in 0..used * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Kept::parse(&bad, POOL), None, "bit {bit}");
        }
        assert_eq!(kept(1, 4096, 1000).encode(POOL), None);
    }

    /// Goal: both places hold what was written, and the only good one is never written first.
    #[test]
    fn the_only_good_place_is_written_last() {
        let memory = Memory::default();
        memory.set_len(TABLE_LEN).unwrap();
        let (mut table, copies) = VolumeTable::open(memory.clone(), POOL);
        assert_eq!(copies, [None, None]);
        table.write(&kept(1, 2, 10)).unwrap();
        for bad in [0, 1] {
            memory.write(bad as u64 * PLACE_LEN + 20, &[0xEE]).unwrap();
            let (mut table, copies) = VolumeTable::open(memory.clone(), POOL);
            assert_eq!((copies[bad].is_none(), table.first), (true, bad));
            assert_eq!(newest(&copies), copies[1 - bad].as_ref());
            table.write(&kept(2, 2, 10)).unwrap();
            let (_, copies) = VolumeTable::open(memory.clone(), POOL);
            assert_eq!(copies, [Some(kept(2, 2, 10)), Some(kept(2, 2, 10))]);
        }
    }

    /// Memory of which one place cannot be read.
    #[derive(Debug)]
    struct HalfReadable(Memory, u64);

    impl StorageBackend for HalfReadable {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let bad = offset / PLACE_LEN == self.1;
            if bad { Err(io::Error::other("bad sector")) } else { self.0.read(offset, out) }
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }

    /// Goal: a place that the medium cannot give is one that is damaged; it is written first, and
    /// the other one is used.
    #[test]
    fn a_place_that_cannot_be_read_is_damaged() {
        let memory = Memory::default();
        memory.set_len(TABLE_LEN).unwrap();
        let (mut table, _) = VolumeTable::open(memory.clone(), POOL);
        table.write(&kept(1, 2, 10)).unwrap();
        for bad in [0, 1] {
            let (table, copies) = VolumeTable::open(HalfReadable(memory.clone(), bad as u64), POOL);
            assert_eq!((newest(&copies), table.first), (Some(&kept(1, 2, 10)), bad));
        }
    }
}
