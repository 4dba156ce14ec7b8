//! The records of a group: what one transaction did to the pairs of a unit (design section 5).
//!
//! Four kinds, told apart by their first byte; the records of a group are applied in their order.
//!
//! | kind | bytes | what it says |
//! | --- | --- | --- |
//! | 1 participant | 8 | a storage unit that takes part in the transaction |
//! | 2 binding | 32 | the pair as it is from here on: owner, extents, data area, generation |
//! | 3 place | 24 | a run of blocks and where their contents lie from here on |
//! | 4 sum | 24 | what some bytes of the device were when this was written, and perhaps volatile |
//!
//! Both that change a pair are absolute, so that applying one again changes nothing, and carry the
//! pair's generation, so that one of an earlier binding is never applied to a later one.

use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::blocks::{BLOCKS_MAX, Location};
use super::ids::{ExtentId, Generation, LogicalExtent, PairId, Slot, UnitId, VolumeId};

const KIND_PARTICIPANT: u8 = 1;
const KIND_BINDING: u8 = 2;
const KIND_PLACE: u8 = 3;
const KIND_SUM: u8 = 4;
/// In a stored field: no volume, no extent, no slot.
pub const NONE: u32 = u32::MAX;

/// What a pair is: whose contents it holds, and in which extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Counts the changes of this pair's binding.
    pub generation: Generation,
    /// The place in a volume whose contents the pair holds; `None` while the pair is free.
    pub owner: Option<(VolumeId, LogicalExtent)>,
    /// The extents of the two slots.
    pub extents: [Option<ExtentId>; 2],
    /// The slot of the data area.
    pub data_slot: Slot,
}

impl Binding {
    /// A pair that never belonged to anything.
    pub const FREE: Binding = Binding {
        generation: Generation(0),
        owner: None,
        extents: [None; 2],
        data_slot: Slot::Zero,
    };

    /// The extent of a slot.
    pub fn extent(&self, slot: Slot) -> Option<ExtentId> {
        self.extents[slot.index()]
    }

    /// Whether a journal area is associated.
    pub fn has_journal_area(&self) -> bool {
        self.extent(self.data_slot.other()).is_some()
    }
}

/// Where the bytes of a block, or a slot's worth of them, lie while they are still in the journal.
/// A block of more than a slot has a record for each of its slots, one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The journal slot.
    pub slot: u32,
    /// CRC32C of all that is in the slot.
    pub crc: u32,
    /// The first byte is inverted: or the slot would begin as a part of a group does.
    pub veiled: bool,
}

impl Payload {
    /// That a block's bytes will be in the journal, before it is known where.
    pub const UNPLACED: Payload = Payload { slot: NONE - 1, crc: 0, veiled: false };
}

/// A run of blocks on the device that the journal is on, which may not have been durable when this
/// was written, and what they sum up to ([`crate::journal::sums`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Where the run begins on the device, in bytes.
    pub offset: u64,
    /// Bytes of a block.
    pub block: u32,
    /// How many blocks.
    pub count: u16,
    /// XXH3-64 of the XXH3-64 of each, little-endian.
    pub sum: u64,
}

impl Sum {
    /// The first byte after the run.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.count) * u64::from(self.block)
    }
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A unit that takes part.
    Participant(UnitId),
    /// A pair as it is from here on. A pair that changes owner loses all its blocks.
    Binding {
        /// Which pair.
        pair: PairId,
        /// What it is.
        binding: Binding,
    },
    /// Where blocks lie from here on.
    Place {
        /// Which pair.
        pair: PairId,
        /// The pair's generation when this was written.
        generation: Generation,
        /// The first block.
        first: u16,
        /// How many blocks.
        count: u16,
        /// Where they are.
        location: Location,
        /// Their bytes, where they are still in the journal.
        payload: Option<Payload>,
    },
    /// The group counts only where this is so, as long as it is the newest one.
    Sum(Sum),
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawParticipant {
    kind: u8,
    zero: [u8; 3],
    unit: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBinding {
    kind: u8,
    data_slot: u8,
    zero: [u8; 2],
    pair: U32,
    generation: U32,
    volume: U32,
    logical: U32,
    extents: [U32; 2],
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPlace {
    kind: u8,
    location: u8,
    first: U16,
    count: U16,
    veiled: u8,
    zero: u8,
    pair: U32,
    generation: U32,
    payload_slot: U32,
    payload_crc: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSum {
    kind: u8,
    zero: u8,
    count: U16,
    block: U32,
    offset: U64,
    sum: U64,
}

/// Bytes of a stored binding record.
pub const BINDING_BYTES: usize = size_of::<RawBinding>();
/// Bytes of a stored place record.
pub const PLACE_BYTES: usize = size_of::<RawPlace>();
/// Bytes of a stored sum.
pub const SUM_BYTES: usize = size_of::<RawSum>();
const PARTICIPANT_BYTES: usize = size_of::<RawParticipant>();
const _: () = assert!(PARTICIPANT_BYTES == 8 && BINDING_BYTES == 32 && PLACE_BYTES == 24);
const _: () = assert!(SUM_BYTES == 24);
const _: () = assert!(BLOCKS_MAX <= u16::MAX as usize, "a block's number fits its field");

impl Record {
    /// A run of blocks of a pair, and the side or nowhere that their contents are from here on.
    pub fn placed(
        pair: PairId,
        generation: Generation,
        run: &Range<usize>,
        location: Location,
    ) -> Record {
        let (first, count) = (run.start as u16, run.len() as u16);
        Record::Place { pair, generation, first, count, location, payload: None }
    }

    /// A block of a pair, the side that its contents belong to, and that they are in the journal.
    pub fn kept(pair: PairId, generation: Generation, block: usize, location: Location) -> Record {
        let payload = Some(Payload::UNPLACED);
        Record::Place { pair, generation, first: block as u16, count: 1, location, payload }
    }

    /// The pair that the record names, where it names one.
    pub fn pair(&self) -> Option<PairId> {
        match *self {
            Record::Participant(_) | Record::Sum(_) => None,
            Record::Binding { pair, .. } | Record::Place { pair, .. } => Some(pair),
        }
    }

    /// How many bytes the record takes when stored.
    pub fn stored_len(&self) -> usize {
        match self {
            Record::Participant(_) => PARTICIPANT_BYTES,
            Record::Binding { .. } => BINDING_BYTES,
            Record::Place { .. } => PLACE_BYTES,
            Record::Sum(_) => SUM_BYTES,
        }
    }

    /// Stores the record at the start of `out`.
    pub fn store(&self, out: &mut [u8]) {
        match *self {
            Record::Participant(unit) => put(
                out,
                &RawParticipant { kind: KIND_PARTICIPANT, zero: [0; 3], unit: U32::new(unit.0) },
            ),
            Record::Binding { pair, binding } => {
                let (volume, logical) = owner_fields(binding.owner);
                let raw = RawBinding {
                    kind: KIND_BINDING,
                    data_slot: binding.data_slot as u8,
                    zero: [0; 2],
                    pair: U32::new(pair.0),
                    generation: U32::new(binding.generation.0),
                    volume,
                    logical,
                    extents: binding.extents.map(extent_field),
                    reserved: U32::ZERO,
                };
                put(out, &raw);
            }
            Record::Place { pair, generation, first, count, location, payload } => {
                let raw = RawPlace {
                    kind: KIND_PLACE,
                    location: location_field(location),
                    first: U16::new(first),
                    count: U16::new(count),
                    veiled: payload.is_some_and(|p| p.veiled).into(),
                    zero: 0,
                    pair: U32::new(pair.0),
                    generation: U32::new(generation.0),
                    payload_slot: U32::new(payload.map_or(NONE, |p| p.slot)),
                    payload_crc: U32::new(payload.map_or(0, |p| p.crc)),
                };
                put(out, &raw);
            }
            Record::Sum(sum) => put(out, &raw_sum(sum)),
        }
    }

    /// The record at the start of `bytes`, and what follows it. `None` where there is no such
    /// record.
    pub fn parse(bytes: &[u8]) -> Option<(Record, &[u8])> {
        match *bytes.first()? {
            KIND_PARTICIPANT => {
                let (raw, rest) = RawParticipant::ref_from_prefix(bytes).ok()?;
                Some((Record::Participant(UnitId(raw.unit.get())), rest))
            }
            KIND_BINDING => {
                let (raw, rest) = RawBinding::ref_from_prefix(bytes).ok()?;
                let binding = Binding {
                    generation: Generation(raw.generation.get()),
                    owner: parse_owner(raw.volume, raw.logical),
                    extents: raw.extents.map(parse_extent),
                    data_slot: Slot::from_index(raw.data_slot)?,
                };
                Some((Record::Binding { pair: PairId(raw.pair.get()), binding }, rest))
            }
            KIND_PLACE => {
                let (raw, rest) = RawPlace::ref_from_prefix(bytes).ok()?;
                Some((parse_place(raw)?, rest))
            }
            KIND_SUM => {
                let (raw, rest) = RawSum::ref_from_prefix(bytes).ok()?;
                Some((parse_sum(raw)?, rest))
            }
            _ => None,
        }
    }
}

/// Records one after another, as they are stored.
pub fn pack(records: &[Record]) -> Vec<u8> {
    let mut bytes = vec![0; records.iter().map(Record::stored_len).sum()];
    let mut rest = bytes.as_mut_slice();
    for record in records {
        let (place, after) = rest.split_at_mut(record.stored_len());
        record.store(place);
        rest = after;
    }
    bytes
}

/// All of `bytes` as records; `None` where they are anything else.
pub fn unpack(mut bytes: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (record, rest) = Record::parse(bytes)?;
        records.push(record);
        bytes = rest;
    }
    Some(records)
}

fn raw_sum(sum: Sum) -> RawSum {
    RawSum {
        kind: KIND_SUM,
        zero: 0,
        count: U16::new(sum.count),
        block: U32::new(sum.block),
        offset: U64::new(sum.offset),
        sum: U64::new(sum.sum),
    }
}

fn parse_sum(raw: &RawSum) -> Option<Record> {
    let RawSum { count, block, offset, sum, .. } = raw;
    let sum = Sum { offset: offset.get(), block: block.get(), count: count.get(), sum: sum.get() };
    let len = u64::from(sum.count) * u64::from(sum.block);
    let sound = len > 0 && usize::from(sum.count) <= BLOCKS_MAX;
    (sound && sum.offset.checked_add(len).is_some()).then_some(Record::Sum(sum))
}

fn parse_place(raw: &RawPlace) -> Option<Record> {
    let (first, count) = (raw.first.get(), raw.count.get());
    if count == 0 || usize::from(first) + usize::from(count) > BLOCKS_MAX {
        return None;
    }
    let payload = parse_payload(raw);
    // A slot has the bytes of one block.
    let sound = if payload.is_some() { count == 1 } else { raw.veiled == 0 };
    if raw.veiled > 1 || !sound {
        return None;
    }
    Some(Record::Place {
        pair: PairId(raw.pair.get()),
        generation: Generation(raw.generation.get()),
        first,
        count,
        location: parse_location(raw.location)?,
        payload,
    })
}

fn put<T: IntoBytes + Immutable>(out: &mut [u8], raw: &T) {
    out[..size_of::<T>()].copy_from_slice(raw.as_bytes());
}

/// An owner as two stored fields.
pub(super) fn owner_fields(owner: Option<(VolumeId, LogicalExtent)>) -> (U32, U32) {
    let (volume, logical) = owner.map_or((NONE, 0), |(v, l)| (v.0, l.0));
    (U32::new(volume), U32::new(logical))
}

/// An owner from its two stored fields.
pub(super) fn parse_owner(volume: U32, logical: U32) -> Option<(VolumeId, LogicalExtent)> {
    (volume.get() != NONE).then(|| (VolumeId(volume.get()), LogicalExtent(logical.get())))
}

/// An extent, or none, as a stored field.
pub(super) fn extent_field(extent: Option<ExtentId>) -> U32 {
    U32::new(extent.map_or(NONE, |e| e.0))
}

/// An extent, or none, from its stored field.
pub(super) fn parse_extent(field: U32) -> Option<ExtentId> {
    (field.get() != NONE).then(|| ExtentId(field.get()))
}

/// Where a block's bytes are in the journal, if they are.
fn parse_payload(raw: &RawPlace) -> Option<Payload> {
    let (slot, crc) = (raw.payload_slot.get(), raw.payload_crc.get());
    (slot != NONE).then_some(Payload { slot, crc, veiled: raw.veiled == 1 })
}

fn location_field(location: Location) -> u8 {
    match location {
        Location::Unused => 2,
        Location::At(slot) => slot as u8,
    }
}

fn parse_location(field: u8) -> Option<Location> {
    match field {
        2 => Some(Location::Unused),
        slot => Slot::from_index(slot).map(Location::At),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent() -> impl Strategy<Value = Option<ExtentId>> {
        prop::option::of((0..NONE).prop_map(ExtentId))
    }

    fn slot() -> impl Strategy<Value = Slot> {
        prop::sample::select(Slot::BOTH.to_vec())
    }

    /// Any record that can be stored.
    pub fn record() -> impl Strategy<Value = Record> {
        let binding = (
            any::<u32>(),
            any::<u32>(),
            prop::option::of((0..NONE, any::<u32>())),
            [extent(), extent()],
            slot(),
        )
            .prop_map(|(pair, generation, owner, extents, data_slot)| Record::Binding {
                pair: PairId(pair),
                binding: Binding {
                    generation: Generation(generation),
                    owner: owner.map(|(v, l)| (VolumeId(v), LogicalExtent(l))),
                    extents,
                    data_slot,
                },
            });
        let location = prop_oneof![Just(Location::Unused), slot().prop_map(Location::At)];
        let payload = prop::option::of(
            (0..NONE, any::<u32>(), any::<bool>()).prop_map(|(slot, crc, veiled)| Payload {
                slot,
                crc,
                veiled,
            }),
        );
        let place = (any::<u32>(), any::<u32>(), 0..256_u16, 1..=256_u16, location, payload)
            .prop_map(|(pair, generation, first, count, location, payload)| Record::Place {
                pair: PairId(pair),
                generation: Generation(generation),
                first,
                count: if payload.is_some() { 1 } else { count.min(256 - first) },
                location,
                payload,
            });
        let sum = (0..1_u64 << 60, 1..1_u32 << 20, 1..=256_u16, any::<u64>())
            .prop_map(|(offset, block, count, sum)| Sum { offset, block, count, sum });
        let participant = any::<u32>().prop_map(|u| Record::Participant(UnitId(u)));
        prop_oneof![participant, binding, place, sum.prop_map(Record::Sum)]
    }

    proptest! {
        /// Goal: what is stored is what is read.
        #[test]
        fn records_round_trip(record in record()) {
            let mut bytes = vec![0xff; 64];
            record.store(&mut bytes);
            let (again, rest) = Record::parse(&bytes).unwrap();
            prop_assert_eq!(again, record);
            prop_assert_eq!(rest.len(), 64 - record.stored_len());
        }

        /// Goal: many records survive being packed, and a piece of a record is refused.
        #[test]
        fn packed_records_unpack(
            records in prop::collection::vec(record(), 0..9),
            cut in 1..8_usize,
        ) {
            let bytes = pack(&records);
            prop_assert_eq!(unpack(&bytes), Some(records));
            if let Some(short) = bytes.len().checked_sub(cut) {
                prop_assert_eq!(unpack(&bytes[..short]), None);
            }
        }

        /// Goal: no bytes make the parser panic.
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Record::parse(&bytes);
            let _ = unpack(&bytes);
        }
    }
}
