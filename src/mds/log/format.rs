//! The log's bytes.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 4 KiB | header, copy A |
//! | 4 KiB | 4 KiB | header, copy B |
//! | 8 KiB | half | records of the even epochs |
//! | 8 KiB + half | half | records of the odd epochs |
//!
//! A header is written once, when the log is made:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic |
//! | 8 | 4 | version of the format |
//! | 12 | 4 | CRC32C of the header, this field as zeros |
//! | 16 | 16 | identity: random, the store has it too |
//! | 32 | 8 | bytes of a half |
//!
//! A record is one commit. It begins at a multiple of [`BLOCK`], so that no write ever touches a
//! block of another record:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 4 | magic |
//! | 4 | 4 | CRC32C of header and changes, with the CRC32C of the identity in this field |
//! | 8 | 8 | epoch: how often halves were changed |
//! | 16 | 8 | sequence: counts the records of all epochs |
//! | 24 | 4 | bytes of the changes |
//! | 28 | 4 | number of changes |
//! | 32 | | changes: table (1 byte), kind (1), length of key (2), of value (4); key; value |
//!
//! A change's kind is 0 for a row, 1 for none.
//!
//! # Contract
//!
//! **Trust**: a record counts only where it is whole, of this log, and has exactly the epoch and
//! sequence that come next. A later one of the epoch behind one that is not whole is damage: of a
//! log whose last write was torn nothing lies behind that.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::mds::store::{Changes, StoreError, Table};
use crate::mds::wire::crc32c;

/// What records begin at multiples of, in bytes: no smaller than a device's sector.
pub const BLOCK: usize = 4096;
/// Where the halves begin, in bytes.
pub const HALVES_OFFSET: u64 = 2 * BLOCK as u64;
/// The smallest half, in bytes.
pub const HALF_MIN: u64 = 2 * BLOCK as u64;
/// The largest half, in bytes: a record's length is of 32 bits.
pub const HALF_MAX: u64 = 1 << 30;
/// No log comes so far: a stored number beyond is damage, and would overflow.
pub const COUNT_MAX: u64 = u64::MAX / 2;
const VERSION: u32 = 1;
const HEADER_MAGIC: [u8; 8] = *b"FSmdsLog";
const RECORD_MAGIC: [u8; 4] = *b"FSlr";

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    identity: [u8; 16],
    half: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRecord {
    magic: [u8; 4],
    crc: U32,
    epoch: U64,
    sequence: U64,
    length: U32,
    changes: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawChange {
    table: u8,
    kind: u8,
    key: U16,
    value: U32,
}

/// What the store below says of its log: a row of its own.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawApplied {
    version: U32,
    reserved: U32,
    identity: [u8; 16],
    epoch: U64,
    sequence: U64,
}

const RECORD_HEADER: usize = size_of::<RawRecord>();
const CRC_AT: usize = std::mem::offset_of!(RawRecord, crc);
const _: () = assert!(size_of::<RawHeader>() == 40);
const _: () = assert!(RECORD_HEADER == 32 && CRC_AT == 4);
const _: () = assert!(size_of::<RawChange>() == 8);
const _: () = assert!(size_of::<RawApplied>() == 40);
const _: () = assert!(Table::ALL.len() <= u8::MAX as usize);

/// What a row's change is.
const PUT: u8 = 0;
const REMOVE: u8 = 1;

/// What names a log, in its header and in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(pub [u8; 16]);

impl Identity {
    /// What the checksums of its records begin with.
    fn seed(self) -> u32 {
        crc32c(&self.0)
    }
}

/// What a log's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHeader {
    /// Whose log it is.
    pub identity: Identity,
    /// Bytes of each half.
    pub half: u64,
}

impl LogHeader {
    /// A copy's bytes: one block.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = RawHeader {
            magic: HEADER_MAGIC,
            version: U32::new(VERSION),
            crc: U32::ZERO,
            identity: self.identity.0,
            half: U64::new(self.half),
        };
        raw.crc = U32::new(crc32c(raw.as_bytes()));
        let mut block = raw.as_bytes().to_vec();
        block.resize(BLOCK, 0);
        block
    }

    /// What a copy says; `None` where it is damaged or of something else.
    pub fn parse(bytes: &[u8]) -> Option<LogHeader> {
        let (raw, _) = RawHeader::read_from_prefix(bytes).ok()?;
        let crc = crc32c(RawHeader { crc: U32::ZERO, ..raw }.as_bytes());
        let half = raw.half.get();
        let good = raw.magic == HEADER_MAGIC
            && raw.version.get() == VERSION
            && raw.crc.get() == crc
            && (HALF_MIN..=HALF_MAX).contains(&half)
            && half.is_multiple_of(BLOCK as u64);
        good.then_some(LogHeader { identity: Identity(raw.identity), half })
    }

    /// Bytes of the whole log.
    pub fn log_len(&self) -> u64 {
        HALVES_OFFSET + 2 * self.half
    }

    /// Where the half of an epoch begins.
    pub fn half_at(&self, epoch: u64) -> u64 {
        HALVES_OFFSET + epoch % 2 * self.half
    }
}

/// How far a store has applied its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The log's name.
    pub identity: Identity,
    /// The last epoch that is applied, with all of its records.
    pub epoch: u64,
    /// The last record that is.
    pub sequence: u64,
}

impl Applied {
    /// The row that says so.
    pub fn row(&self) -> ((Table, Vec<u8>), Option<Vec<u8>>) {
        let raw = RawApplied {
            version: U32::new(VERSION),
            reserved: U32::ZERO,
            identity: self.identity.0,
            epoch: U64::new(self.epoch),
            sequence: U64::new(self.sequence),
        };
        ((Table::Log, Vec::new()), Some(raw.as_bytes().to_vec()))
    }

    /// What such a row says.
    pub fn parse(row: &[u8]) -> Result<Applied, StoreError> {
        let raw = RawApplied::read_from_bytes(row).ok();
        let sound = raw.filter(|raw| {
            raw.version.get() == VERSION
                && raw.epoch.get() <= COUNT_MAX
                && raw.sequence.get() <= COUNT_MAX
        });
        let raw = sound.ok_or_else(|| StoreError::Damaged("the row of its log".to_owned()))?;
        Ok(Applied {
            identity: Identity(raw.identity),
            epoch: raw.epoch.get(),
            sequence: raw.sequence.get(),
        })
    }
}

/// A record's bytes in the making; kept, so that its memory is used again.
#[derive(Debug, Default)]
pub struct RecordBuffer(Vec<u8>);

impl RecordBuffer {
    /// Puts the changes of a commit in; tells how many bytes the record takes in the log.
    pub fn fill(&mut self, changes: &Changes) -> u64 {
        let bytes = &mut self.0;
        bytes.clear();
        bytes.resize(RECORD_HEADER, 0);
        for ((table, key), value) in changes {
            let code = Table::ALL.iter().position(|known| known == table);
            let raw = RawChange {
                table: code.expect("all tables are among all") as u8,
                kind: if value.is_some() { PUT } else { REMOVE },
                key: U16::new(u16::try_from(key.len()).expect("keys are short")),
                value: U32::new(value.as_ref().map_or(0, Vec::len) as u32),
            };
            bytes.extend_from_slice(raw.as_bytes());
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value.as_deref().unwrap_or_default());
        }
        let raw = RawRecord {
            magic: RECORD_MAGIC,
            crc: U32::ZERO,
            epoch: U64::ZERO,
            sequence: U64::ZERO,
            length: U32::new((bytes.len() - RECORD_HEADER) as u32),
            changes: U32::new(changes.len() as u32),
        };
        bytes[..RECORD_HEADER].copy_from_slice(raw.as_bytes());
        bytes.len().next_multiple_of(BLOCK) as u64
    }

    /// Gives the record its place in the order, and what is to be written.
    pub fn seal(&mut self, identity: Identity, epoch: u64, sequence: u64) -> &[u8] {
        let bytes = &mut self.0;
        let (raw, _) = RawRecord::mut_from_prefix(bytes).expect("it was filled");
        raw.crc = U32::new(identity.seed());
        raw.epoch = U64::new(epoch);
        raw.sequence = U64::new(sequence);
        let length = RECORD_HEADER + raw.length.get() as usize;
        let crc = crc32c(&bytes[..length]);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(length.next_multiple_of(BLOCK), 0);
        bytes
    }
}

/// A record that is whole and of this log.
struct Record<'a> {
    raw: RawRecord,
    body: &'a [u8],
}

/// The record that the bytes begin with, if it is whole.
fn whole(bytes: &[u8], identity: Identity) -> Option<Record<'_>> {
    let (raw, rest) = RawRecord::read_from_prefix(bytes).ok()?;
    if raw.magic != RECORD_MAGIC {
        return None;
    }
    let body = rest.get(..raw.length.get() as usize)?;
    let mut covered = bytes[..RECORD_HEADER + body.len()].to_vec();
    covered[CRC_AT..CRC_AT + 4].copy_from_slice(&identity.seed().to_le_bytes());
    (raw.crc.get() == crc32c(&covered)).then_some(Record { raw, body })
}

/// Adds the changes of a record's body; `None` where there is anything else in it.
fn unpack(record: &Record<'_>, into: &mut Changes) -> Option<()> {
    let mut rest = record.body;
    for _ in 0..record.raw.changes.get() {
        let (raw, after) = RawChange::read_from_prefix(rest).ok()?;
        let table = *Table::ALL.get(usize::from(raw.table))?;
        let (key, after) = after.split_at_checked(usize::from(raw.key.get()))?;
        let (value, after) = after.split_at_checked(raw.value.get() as usize)?;
        let value = match raw.kind {
            PUT => Some(value.to_vec()),
            REMOVE if value.is_empty() => None,
            _ => return None,
        };
        into.insert((table, key.to_vec()), value);
        rest = after;
    }
    rest.is_empty().then_some(())
}

/// Reads the records of an epoch, the first of which follows `sequence`, into `changes`; gives the
/// last one's sequence.
pub fn replay(
    half: &[u8],
    identity: Identity,
    epoch: u64,
    mut sequence: u64,
    changes: &mut Changes,
) -> Result<u64, StoreError> {
    let damaged = |at: usize| {
        let text = format!("its log at byte {at} of the half of epoch {epoch}");
        StoreError::Damaged(text)
    };
    let mut at = 0;
    while let Some(record) = half.get(at..).and_then(|bytes| whole(bytes, identity)) {
        if record.raw.epoch.get() != epoch || record.raw.sequence.get() != sequence + 1 {
            break;
        }
        unpack(&record, changes).ok_or_else(|| damaged(at))?;
        sequence += 1;
        at += (RECORD_HEADER + record.body.len()).next_multiple_of(BLOCK);
    }
    // Nothing of this epoch may follow what ends it.
    for from in (at..half.len()).step_by(BLOCK) {
        let (raw, _) = RawRecord::read_from_prefix(&half[from..]).map_err(|_| damaged(from))?;
        let same = raw.magic == RECORD_MAGIC && raw.epoch.get() == epoch;
        if same && whole(&half[from..], identity).is_some() {
            return Err(damaged(at));
        }
    }
    Ok(sequence)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: Identity = Identity([7; 16]);
    const HALF: usize = 8 * BLOCK;

    fn row(byte: u8, len: usize) -> Changes {
        let gone = ((Table::Layout, vec![byte; 16]), None);
        Changes::from([gone, ((Table::Pairs, vec![byte]), Some(vec![byte; len]))])
    }

    /// A half with these records of epoch 3, from sequence 11 on.
    fn half(records: &[Changes]) -> Vec<u8> {
        let mut buffer = RecordBuffer::default();
        let mut bytes = Vec::new();
        for (changes, sequence) in records.iter().zip(11..) {
            let length = buffer.fill(changes);
            let sealed = buffer.seal(IDENTITY, 3, sequence);
            assert_eq!(sealed.len() as u64, length);
            bytes.extend_from_slice(sealed);
        }
        bytes.resize(HALF, 0xEE);
        bytes
    }

    fn read(half: &[u8], sequence: u64) -> Result<(u64, Changes), StoreError> {
        let mut changes = Changes::new();
        Ok((replay(half, IDENTITY, 3, sequence, &mut changes)?, changes))
    }

    /// Goal: header and applied row survive their bytes; every flipped bit of a header is seen.
    #[test]
    fn header_and_row() {
        let header = LogHeader { identity: IDENTITY, half: 1 << 20 };
        let bytes = header.encode();
        assert_eq!(LogHeader::parse(&bytes), Some(header));
        for bit in 0..40 * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(LogHeader::parse(&bad), None, "bit {bit}");
        }
        let applied = Applied { identity: IDENTITY, epoch: 5, sequence: 77 };
        let (_, row) = applied.row();
        assert_eq!(Applied::parse(&row.unwrap()), Ok(applied));
        assert!(Applied::parse(&[0; 40]).is_err() && Applied::parse(&[0; 39]).is_err());
    }

    /// Goal: the records come back in order, and only those of the epoch, log and sequence.
    #[test]
    fn records_come_back() {
        let (a, b) = (row(1, 100), row(1, 5000));
        let bytes = half(&[a.clone(), b.clone()]);
        assert_eq!(read(&bytes, 10).unwrap(), (12, b));
        let mut changes = Changes::new();
        assert_eq!(replay(&bytes, IDENTITY, 5, 10, &mut changes), Ok(10));
        assert_eq!(replay(&bytes, Identity([8; 16]), 3, 10, &mut changes), Ok(10));
        assert!(changes.is_empty());
        // The first record of the epoch is not the one that follows: it lacks its predecessor.
        assert!(read(&bytes, 9).is_err());
    }

    /// Goal: a torn last record is none; a hole before a later one is damage.
    #[test]
    fn torn_or_damaged() {
        let records = [row(1, 9000), row(2, 9000), row(3, 100)];
        let bytes = half(&records);
        for block in 0..7 {
            let mut torn = bytes.clone();
            torn[block * BLOCK..(block + 1) * BLOCK].fill(0);
            let read = read(&torn, 10);
            match block {
                6 => assert_eq!(read.unwrap().0, 12),
                _ => assert!(matches!(read, Err(StoreError::Damaged(_))), "block {block}"),
            }
        }
    }

    proptest! {
        /// Goal: whatever changes a commit has, its record has the same; any flipped bit of it
        /// leaves none of it.
        #[test]
        fn any_changes_round_trip(
            rows in proptest::collection::btree_map(
                (prop::sample::select(&Table::ALL[..]), prop::collection::vec(any::<u8>(), 0..20)),
                prop::option::of(prop::collection::vec(any::<u8>(), 0..200)), 0..40),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut bytes = half(std::slice::from_ref(&rows));
            prop_assert_eq!(read(&bytes, 10).unwrap(), (11, rows));
            let length = u32::from_le_bytes(bytes[24..28].try_into().unwrap());
            let used = RECORD_HEADER + length as usize;
            let bit = bit.index(used * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(read(&bytes, 10).unwrap(), (10, Changes::new()));
        }
    }
}
