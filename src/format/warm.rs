//! The warm table: what a target has acknowledged and not committed, in memory that outlives its
//! process (design section 4). [`crate::unit`] says what it means; this is how it lies there.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 64 | identity: magic, version, checksum, boot, pool, unit, sizes |
//! | 64 | 8 | state: [`VALID`], or anything else |
//! | 72 | 8 | starts whose flags it follows: low half that of the table, high half the next one |
//! | 80 | 8 | starts that may have been counted since |
//! | 88 | 8 | whether a flush is under way: zero where the end of each was heard |
//! | 96 | 8 | the same of flushes past the unit |
//! | 4096 | 8 each | directory: of each chunk, the run that begins there, or zero |
//! | 64 KiB × n | | chunk n − 1 |
//!
//! A run is one or more chunks of one epoch of one domain, with entries one after another; an entry
//! is one request: records as those of a group, the bytes of the blocks whose record has payload,
//! and the sums (XXH3-64) of those that lie on a side without it. An entry is there when its
//! first word is, which is stored last; a run is when its directory word is. Both words check what
//! they stand for.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::blocks::Location;
use super::ids::{PoolId, UnitId};
use super::layout::Geometry;
use super::page::crc32c;
use super::record::{Record, unpack};

/// Bytes of a chunk.
pub const CHUNK: u64 = 64 << 10;
/// The most chunks.
pub const CHUNKS_MAX: u32 = ((CHUNK - DIRECTORY_AT) / 8) as u32;
/// The most bytes of a table.
pub const TABLE_BYTES_MAX: u64 = (CHUNKS_MAX as u64 + 1) * CHUNK;
/// Where the state is.
pub const STATE_AT: u64 = 64;
/// Where the starts are.
pub const STARTS_AT: u64 = 72;
/// Where the attempts are counted.
pub const ATTEMPTS_AT: u64 = 80;
/// Where it says whether a flush is under way.
pub const FLUSHING_AT: u64 = 88;
/// Where it says whether a flush past the unit is under way.
pub const ASIDE_AT: u64 = 96;
/// The state of a table that may be believed.
pub const VALID: u64 = u64::from_le_bytes(*b"FWvalid!");

const DIRECTORY_AT: u64 = 4096;
const MAGIC: [u8; 8] = *b"FLIPWARM";
const VERSION: u32 = 3;

/// Whose table it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The machine's start, by its own number.
    pub boot: [u8; 16],
    /// The pool.
    pub pool: PoolId,
    /// The unit.
    pub unit: UnitId,
    /// The sizes of blocks and extents.
    pub geometry: Geometry,
    /// How many pairs the unit has.
    pub pairs: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawIdentity {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    boot: [u8; 16],
    pool: [u8; 16],
    unit: U32,
    block_size: U32,
    extent_size: U32,
    pairs: U32,
}
const _: () = assert!(size_of::<RawIdentity>() == IDENTITY_BYTES);
const _: () = assert!(std::mem::offset_of!(RawIdentity, boot) == 16);
const _: () = assert!(IDENTITY_BYTES as u64 == STATE_AT);

/// Bytes of an identity.
pub const IDENTITY_BYTES: usize = 64;

/// The start of a run.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRun {
    domain: U32,
    zero: U32,
    epoch: U64,
}
const _: () = assert!(size_of::<RawRun>() == RUN_BYTES);

/// Bytes at the start of a run.
pub const RUN_BYTES: usize = 16;

/// The start of an entry.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    /// Bytes of the whole entry: a multiple of eight.
    len: U32,
    crc: U32,
    sequence: U64,
    record_bytes: U32,
    data_bytes: U32,
}
const _: () = assert!(size_of::<RawEntry>() == ENTRY_BYTES);
const _: () = assert!(std::mem::offset_of!(RawEntry, sequence) == 8);

const ENTRY_BYTES: usize = 24;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its domain's number in the journal.
    pub domain: u32,
    /// Its epoch.
    pub epoch: u64,
    /// Its place in the order of all entries.
    pub sequence: u64,
    /// What it did.
    pub records: Vec<Record>,
    /// The bytes of its blocks with payload, in their order.
    pub data: Vec<u8>,
    /// What the blocks sum up to that it put on a side without payload, in their order.
    pub sums: Vec<u64>,
}

impl Identity {
    /// The identity as it is stored.
    pub fn bytes(&self) -> [u8; IDENTITY_BYTES] {
        let mut raw = RawIdentity {
            magic: MAGIC,
            version: VERSION.into(),
            crc: U32::ZERO,
            boot: self.boot,
            pool: self.pool.0,
            unit: self.unit.0.into(),
            block_size: self.geometry.block_size().into(),
            extent_size: self.geometry.extent_size().into(),
            pairs: self.pairs.into(),
        };
        raw.crc = crc32c(raw.as_bytes()).into();
        zerocopy::transmute!(raw)
    }
}

/// Where the directory's word of a chunk is.
pub fn directory_at(chunk: u32) -> u64 {
    DIRECTORY_AT + 8 * u64::from(chunk)
}

/// Where a chunk begins.
pub fn chunk_at(chunk: u32) -> u64 {
    CHUNK * (u64::from(chunk) + 1)
}

/// What a run begins with.
pub fn run_head(domain: u32, epoch: u64) -> [u8; RUN_BYTES] {
    zerocopy::transmute!(RawRun { domain: domain.into(), zero: U32::ZERO, epoch: epoch.into() })
}

/// The directory's word of a run of so many chunks from one on.
pub fn run_word(chunk: u32, chunks: u32, head: &[u8; RUN_BYTES]) -> u64 {
    let mut checked = [0; RUN_BYTES + 8];
    checked[..RUN_BYTES].copy_from_slice(head);
    checked[RUN_BYTES..RUN_BYTES + 4].copy_from_slice(&chunk.to_le_bytes());
    checked[RUN_BYTES + 4..].copy_from_slice(&chunks.to_le_bytes());
    u64::from(crc32c(&checked)) << 32 | u64::from(chunks)
}

/// How many chunks a directory's word says that a run has; it need not be true.
pub fn chunks_of(word: u64) -> u32 {
    word as u32
}

/// Bytes that an entry takes.
pub fn entry_len(record_bytes: usize, data_bytes: usize) -> usize {
    (ENTRY_BYTES + record_bytes + data_bytes).next_multiple_of(8)
}

/// An entry as it is stored, from its second word on, and its first word; `data` are the bytes, and
/// then the sums.
pub fn entry_bytes(sequence: u64, records: &[u8], data: &[&[u8]]) -> (u64, Vec<u8>) {
    let data_bytes: usize = data.iter().map(|piece| piece.len()).sum();
    let len = entry_len(records.len(), data_bytes);
    let raw = RawEntry {
        len: (len as u32).into(),
        crc: U32::ZERO,
        sequence: sequence.into(),
        record_bytes: (records.len() as u32).into(),
        data_bytes: (data_bytes as u32).into(),
    };
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&raw.as_bytes()[8..]);
    bytes.extend_from_slice(records);
    data.iter().for_each(|piece| bytes.extend_from_slice(piece));
    bytes.resize(len - 8, 0);
    (u64::from(crc32c(&bytes)) << 32 | len as u64, bytes)
}

/// The entries of a run with that directory word; `None` where anything of it cannot be.
pub fn parse_run(chunk: u32, word: u64, bytes: &[u8], block_size: u32) -> Option<Vec<Entry>> {
    let (head, _) = bytes.split_first_chunk::<RUN_BYTES>()?;
    if run_word(chunk, chunks_of(word), head) != word {
        return None;
    }
    let raw: RawRun = zerocopy::transmute!(*head);
    let mut entries = Vec::new();
    let mut at = RUN_BYTES;
    while let Some(entry) = bytes.get(at..).filter(|rest| rest.len() >= 8) {
        if entry[..8] == [0; 8] {
            break;
        }
        let (head, _) = RawEntry::ref_from_prefix(entry).ok()?;
        let len = head.len.get() as usize;
        let body = entry.get(8..len)?;
        let (records, data) = (head.record_bytes.get() as usize, head.data_bytes.get() as usize);
        let fits = records <= len && data <= len && entry_len(records, data) == len;
        if !fits || crc32c(body) != head.crc.get() {
            return None;
        }
        let records_at = ENTRY_BYTES - 8;
        let data_at = records_at + records;
        let records = unpack(&body[records_at..data_at])?;
        let kept = records.iter().filter(|record| has_payload(record)).count();
        let summed: usize = records.iter().map(summed_blocks).sum();
        let sums_at = data_at + kept * block_size as usize;
        if sums_at + 8 * summed != data_at + data {
            return None;
        }
        let (sums, _) = body[sums_at..data_at + data].as_chunks::<8>();
        entries.push(Entry {
            domain: raw.domain.get(),
            epoch: raw.epoch.get(),
            sequence: head.sequence.get(),
            records,
            data: body[data_at..sums_at].to_vec(),
            sums: sums.iter().map(|sum| u64::from_le_bytes(*sum)).collect(),
        });
        at += len;
    }
    Some(entries)
}

/// How many blocks of a record have their sums beside it: those put on a side without payload.
pub fn summed_blocks(record: &Record) -> usize {
    match record {
        Record::Place { count, location: Location::At(_), payload: None, .. } => (*count).into(),
        _ => 0,
    }
}

/// Whether a record's block has its bytes beside it.
pub fn has_payload(record: &Record) -> bool {
    matches!(record, Record::Place { payload: Some(_), .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{Generation, PairId, Slot};
    use crate::format::record::pack;

    const BLOCK: u32 = 512;

    fn stored() -> (u64, Vec<u8>) {
        let head = run_head(7, 3);
        let mut bytes = vec![0; CHUNK as usize];
        bytes[..RUN_BYTES].copy_from_slice(&head);
        let place = Record::placed(PairId(1), Generation(2), &(3..5), Location::Unused);
        let kept = Record::kept(PairId(1), Generation(2), 9, Location::At(Slot::One));
        let put = Record::placed(PairId(1), Generation(2), &(6..8), Location::At(Slot::Zero));
        let mut at = RUN_BYTES;
        for (sequence, records) in [(4, vec![place]), (6, vec![place, kept, put])] {
            let data = [1; BLOCK as usize + 16];
            let data: &[&[u8]] =
                if records.len() > 1 { &[&data[..100], &data[100..]] } else { &[] };
            let (word, rest) = entry_bytes(sequence, &pack(&records), data);
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            bytes[at + 8..at + 8 + rest.len()].copy_from_slice(&rest);
            at += 8 + rest.len();
        }
        (run_word(5, 1, &head), bytes)
    }

    /// Goal: what is stored is found; any flipped bit of it is noticed, or is of the end.
    #[test]
    fn runs_are_found_whole() {
        let (word, bytes) = stored();
        let found = parse_run(5, word, &bytes, BLOCK).unwrap();
        let shown: Vec<_> = found.iter().map(|of| (of.domain, of.epoch, of.sequence)).collect();
        assert_eq!(shown, [(7, 3, 4), (7, 3, 6)]);
        assert_eq!((found[1].records.len(), found[1].data.len()), (3, 512));
        assert_eq!(found[1].sums, [0x0101_0101_0101_0101; 2]);
        assert_eq!(parse_run(4, word, &bytes, BLOCK), None);
        let end = RUN_BYTES + entry_len(24, 0) + entry_len(72, 512 + 16);
        for bit in 0..end * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse_run(5, word, &bytes, BLOCK), None, "bit {bit}");
        }
        let mut cut = bytes;
        cut[RUN_BYTES + entry_len(24, 0)..][..8].fill(0);
        assert_eq!(parse_run(5, word, &cut, BLOCK).unwrap(), found[..1]);
    }

    proptest::proptest! {
        /// Goal: whatever lies there, it is refused or read, and nothing panics.
        #[test]
        fn nothing_panics(mut bytes: Vec<u8>, word: u64, sealed: bool, chunks in 0_u32..3) {
            let mut word = word;
            if sealed && bytes.len() > RUN_BYTES + ENTRY_BYTES {
                let head = *bytes.first_chunk::<RUN_BYTES>().unwrap();
                word = run_word(1, chunks, &head);
                let len = bytes.len() - RUN_BYTES;
                let crc = crc32c(&bytes[RUN_BYTES + 8..]);
                bytes[RUN_BYTES..RUN_BYTES + 4].copy_from_slice(&(len as u32).to_le_bytes());
                bytes[RUN_BYTES + 4..RUN_BYTES + 8].copy_from_slice(&crc.to_le_bytes());
            }
            parse_run(1, word, &bytes, BLOCK);
        }
    }
}
