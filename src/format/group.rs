//! Groups of the nonlinear journal: one transaction's effect on one unit (design section 5).
//!
//! A group is a chain of *parts*, each in a journal slot of its own, any slots in any order; the
//! first part is the group's head and names the group in the list.
//!
//! | offset in a part | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic |
//! | 4 | 4 | CRC32C of the pool's identity and of all that follows, up to the used length |
//! | 8 | 8 | sequence of the group |
//! | 16 | 4 | incarnation of the unit that wrote it |
//! | 20 | 4 | number of this part, number of parts |
//! | 24 | 4 | used bytes of this part |
//! | 28 | 4 | slot of the next part (all ones: none) |
//! | 32 | 4 | number of records in this part |
//! | 36 | 4 | zero |
//! | 40 | 48 | in the head only: transaction, domain, state, link to the next group |
//! | 40 or 88 | | records |
//!
//! **Why this order.** Nothing of a part ever changes once it is written: what changes (the link
//! and the state) has pages of its own ([`super::status`]), because a sector that is overwritten
//! may be unreadable after a crash, and a committed group must not be. The link is written with the
//! group, naming a slot that is reserved already, so that writing the next group there *is* linking
//! it. A part is written in whole sectors, not pages: the used length says how many.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::ids::{Incarnation, PoolId, Sequence};
use super::record::{NONE, Payload, Record};
use crate::mutants::{Mutant, mutated};

/// Bytes of a journal slot.
pub const SLOT_BYTES: usize = 4096;
const MAGIC: [u8; 4] = *b"FGRP";
const HEAD: usize = size_of::<RawPart>() + size_of::<RawHead>();
const TAIL: usize = size_of::<RawPart>();
const CRC_FROM: usize = 8;

/// Who decides a transaction, and which of its transactions it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId {
    /// The coordinator: a unit's number, or all ones for the metadata server.
    pub coordinator: u32,
    /// The coordinator's start that began it.
    pub incarnation: Incarnation,
    /// Counts the coordinator's transactions within that start.
    pub number: u64,
}

impl std::fmt::Display for TransactionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let TransactionId { coordinator, incarnation, number } = self;
        match *coordinator {
            u32::MAX => write!(f, "mds-{incarnation}-{number}"),
            unit => write!(f, "unit{unit}-{incarnation}-{number}"),
        }
    }
}

/// How far a group's transaction has come (design section 5).
///
/// ```text
///   Building (unlinked) → Prepared → Committed → Done
///                            └─────→ Aborted
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum GroupState {
    /// This unit has voted; the coordinator decides.
    Prepared = 1,
    /// The transaction took place.
    Committed = 2,
    /// It took place on every unit, and nobody will ask again.
    Done = 3,
    /// It did not take place.
    Aborted = 4,
}

impl GroupState {
    /// The state of that number, where there is one.
    pub fn parse(field: u8) -> Option<GroupState> {
        [GroupState::Prepared, GroupState::Committed, GroupState::Done, GroupState::Aborted]
            .into_iter()
            .find(|state| *state as u8 == field)
    }

    /// The transition relation.
    pub fn may_become(self, next: GroupState) -> bool {
        use GroupState::{Aborted, Committed, Done, Prepared};
        matches!((self, next), (Prepared, Committed | Aborted) | (Committed, Done))
    }
}

/// Where the next group of the list is expected: exactly that sequence in that slot, or the list
/// ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The slot of its head.
    pub slot: u32,
    /// Its sequence.
    pub sequence: Sequence,
}

/// All of a group but the places where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its place in the journal's order.
    pub sequence: Sequence,
    /// The start of the unit that wrote it.
    pub incarnation: Incarnation,
    /// Whose effect it is.
    pub transaction: TransactionId,
    /// The commit domain.
    pub domain: u32,
    /// The state it was written with.
    pub state: GroupState,
    /// The link it was written with.
    pub link: Link,
    /// What it did, in order.
    pub records: Vec<Record>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPart {
    magic: [u8; 4],
    crc: U32,
    sequence: U64,
    incarnation: U32,
    part: U16,
    parts: U16,
    used: U32,
    next_part: U32,
    records: U32,
    zero: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHead {
    coordinator: U32,
    coordinator_incarnation: U32,
    transaction: U64,
    domain: U32,
    state: u8,
    zero: [u8; 3],
    link_slot: U32,
    zero_too: U32,
    link_sequence: U64,
    records: U32,
    zero_three: U32,
}

const _: () = assert!(TAIL == 40 && HEAD == 88);

/// How the records of a group are dealt out to parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// For each part, how many records it holds and how many bytes it uses.
    parts: Vec<(usize, usize)>,
}

impl Parts {
    /// Deals out records, as many to a part as fit.
    pub fn of(records: &[Record]) -> Parts {
        let mut parts = vec![(0, HEAD)];
        for record in records {
            let len = record.stored_len();
            match parts.last_mut() {
                Some((count, used)) if *used + len <= SLOT_BYTES => {
                    *count += 1;
                    *used += len;
                }
                _ => parts.push((1, TAIL + len)),
            }
        }
        Parts { parts }
    }

    /// How many parts there are; at least one.
    pub fn count(&self) -> usize {
        self.parts.len()
    }

    /// The used bytes of each part, in order.
    pub fn used(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().map(|(_, used)| *used)
    }
}

/// The most parts that records of so many bytes can take.
pub const fn parts_bound(record_bytes: usize) -> usize {
    // A part leaves less than the largest record unused.
    record_bytes / (SLOT_BYTES - HEAD - super::record::BINDING_BYTES) + 1
}

impl Group {
    /// Stores the group: part `i` at `out[i * SLOT_BYTES..]`, to be written to `slots[i]`. The
    /// bytes of each part after its used length are zeroed.
    pub fn store(&self, pool: PoolId, parts: &Parts, slots: &[u32], out: &mut [u8]) {
        assert_eq!(slots.len(), parts.count(), "a slot for each part");
        let mut records = self.records.as_slice();
        for (number, &(count, used)) in parts.parts.iter().enumerate() {
            let bytes = &mut out[number * SLOT_BYTES..(number + 1) * SLOT_BYTES];
            bytes.fill(0);
            let mut part = RawPart {
                magic: MAGIC,
                crc: U32::ZERO,
                sequence: U64::new(self.sequence.0),
                incarnation: U32::new(self.incarnation.0),
                part: U16::new(number as u16),
                parts: U16::new(slots.len() as u16),
                used: U32::new(used as u32),
                next_part: U32::new(slots.get(number + 1).copied().unwrap_or(NONE)),
                records: U32::new(count as u32),
                zero: U32::ZERO,
            };
            bytes[..TAIL].copy_from_slice(part.as_bytes());
            let mut at = TAIL;
            if number == 0 {
                bytes[TAIL..HEAD].copy_from_slice(self.raw_head().as_bytes());
                at = HEAD;
            }
            let (here, later) = records.split_at(count);
            records = later;
            for record in here {
                record.store(&mut bytes[at..]);
                at += record.stored_len();
            }
            assert_eq!(at, used, "a part's length is what its records take");
            part.crc = U32::new(part_crc(pool, &bytes[CRC_FROM..used]));
            bytes[..TAIL].copy_from_slice(part.as_bytes());
        }
        assert!(records.is_empty(), "every record is in a part");
    }

    /// Where the payload of its records is, in their order.
    pub fn payload(&self) -> impl Iterator<Item = Payload> {
        self.records.iter().filter_map(|record| match record {
            Record::Place { payload, .. } => *payload,
            _ => None,
        })
    }

    fn raw_head(&self) -> RawHead {
        RawHead {
            coordinator: U32::new(self.transaction.coordinator),
            coordinator_incarnation: U32::new(self.transaction.incarnation.0),
            transaction: U64::new(self.transaction.number),
            domain: U32::new(self.domain),
            state: self.state as u8,
            zero: [0; 3],
            link_slot: U32::new(self.link.slot),
            zero_too: U32::ZERO,
            link_sequence: U64::new(self.link.sequence.0),
            records: U32::new(self.records.len() as u32),
            zero_three: U32::ZERO,
        }
    }

    /// Puts a group together from its verified parts, found by `part_in(slot)`; also says in which
    /// slots they lie. `None` where a part is missing or does not belong.
    pub fn assemble<'a>(
        head_slot: u32,
        part_in: impl Fn(u32) -> Option<&'a Part>,
    ) -> Option<(Group, Vec<u32>)> {
        let head = part_in(head_slot)?;
        let raw = head.head.as_ref()?;
        let mut group = Group {
            sequence: head.sequence,
            incarnation: head.incarnation,
            transaction: raw.transaction,
            domain: raw.domain,
            state: raw.state,
            link: raw.link,
            records: Vec::new(),
        };
        let mut slots = Vec::new();
        let mut slot = head_slot;
        loop {
            let Some(part) = part_in(slot) else {
                return mutated(Mutant::GroupPartMissing).then_some((group, slots));
            };
            let belongs = part.sequence == head.sequence
                && part.incarnation == head.incarnation
                && part.count == head.count
                && usize::from(part.number) == slots.len();
            if !belongs {
                return None;
            }
            slots.push(slot);
            group.records.extend_from_slice(&part.records);
            match part.next {
                Some(next) => slot = next,
                None => break,
            }
        }
        let whole = slots.len() == usize::from(head.count) && group.records.len() == raw.records;
        whole.then_some((group, slots))
    }
}

/// A part whose CRC was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The group it is of.
    pub sequence: Sequence,
    incarnation: Incarnation,
    number: u16,
    count: u16,
    next: Option<u32>,
    head: Option<Head>,
    records: Vec<Record>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Head {
    transaction: TransactionId,
    domain: u32,
    state: GroupState,
    link: Link,
    records: usize,
}

impl Part {
    /// Whether the part is a group's head.
    pub fn is_head(&self) -> bool {
        self.head.is_some()
    }

    /// Reads the part in a slot; `None` where there is none of this pool, whole and unharmed.
    pub fn parse(slot: &[u8], pool: PoolId) -> Option<Part> {
        let (raw, _) = RawPart::ref_from_prefix(slot).ok()?;
        let used = raw.used.get() as usize;
        if raw.magic != MAGIC || used < TAIL || used > slot.len() {
            return None;
        }
        let sound = raw.crc.get() == part_crc(pool, &slot[CRC_FROM..used]);
        if !sound && !mutated(Mutant::GroupChecksumIgnored) {
            return None;
        }
        let mut rest = &slot[TAIL..used];
        let mut head = None;
        if raw.part.get() == 0 {
            let (raw_head, after) = RawHead::ref_from_prefix(rest).ok()?;
            head = Some(Head::parse(raw_head)?);
            rest = after;
        }
        let mut records = Vec::new();
        while !rest.is_empty() {
            let (record, after) = Record::parse(rest)?;
            records.push(record);
            rest = after;
        }
        (records.len() == raw.records.get() as usize).then_some(Part {
            sequence: Sequence(raw.sequence.get()),
            incarnation: Incarnation(raw.incarnation.get()),
            number: raw.part.get(),
            count: raw.parts.get(),
            next: (raw.next_part.get() != NONE).then(|| raw.next_part.get()),
            head,
            records,
        })
    }
}

impl Head {
    fn parse(raw: &RawHead) -> Option<Head> {
        Some(Head {
            transaction: TransactionId {
                coordinator: raw.coordinator.get(),
                incarnation: Incarnation(raw.coordinator_incarnation.get()),
                number: raw.transaction.get(),
            },
            domain: raw.domain.get(),
            state: GroupState::parse(raw.state)?,
            link: Link { slot: raw.link_slot.get(), sequence: Sequence(raw.link_sequence.get()) },
            records: raw.records.get() as usize,
        })
    }
}

/// Whether the bytes of a slot begin as those of a part do.
pub fn begins_as_part(slot: &[u8]) -> bool {
    slot.starts_with(&MAGIC)
}

fn part_crc(pool: PoolId, bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(&pool.0);
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::tests::record;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const POOL: PoolId = PoolId([5; 16]);

    fn group(records: Vec<Record>) -> Group {
        Group {
            sequence: Sequence(77),
            incarnation: Incarnation(3),
            transaction: TransactionId { coordinator: 1, incarnation: Incarnation(3), number: 9 },
            domain: 4,
            state: GroupState::Committed,
            link: Link { slot: 12, sequence: Sequence(78) },
            records,
        }
    }

    fn store(group: &Group) -> (Vec<u32>, Vec<u8>) {
        let parts = Parts::of(&group.records);
        let slots: Vec<u32> = (0..parts.count() as u32).map(|i| 100 - 3 * i).collect();
        let mut out = vec![0xee; parts.count() * SLOT_BYTES];
        group.store(POOL, &parts, &slots, &mut out);
        (slots, out)
    }

    fn read(slots: &[u32], bytes: &[u8]) -> Option<Group> {
        let parts: BTreeMap<u32, Part> = slots
            .iter()
            .zip(bytes.chunks(SLOT_BYTES))
            .filter_map(|(&slot, bytes)| Some((slot, Part::parse(bytes, POOL)?)))
            .collect();
        Group::assemble(slots[0], |slot| parts.get(&slot)).map(|(group, found)| {
            assert_eq!(found, slots);
            group
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Goal: a group of any size survives storing, and its bound on parts holds.
        #[test]
        fn groups_round_trip(records in prop::collection::vec(record(), 0..600)) {
            let group = group(records);
            let bytes: usize = group.records.iter().map(Record::stored_len).sum();
            let (slots, stored) = store(&group);
            prop_assert!(slots.len() <= parts_bound(bytes));
            prop_assert_eq!(read(&slots, &stored), Some(group));
        }

        /// Goal: a group with any bit of its used bytes flipped is no group.
        #[test]
        fn no_bit_may_flip(
            records in prop::collection::vec(record(), 0..300),
            at in any::<prop::sample::Index>(),
        ) {
            let group = group(records);
            let (slots, mut stored) = store(&group);
            let used: Vec<usize> = Parts::of(&group.records).used().enumerate()
                .flat_map(|(part, used)| part * SLOT_BYTES..part * SLOT_BYTES + used)
                .collect();
            let bit = at.index(used.len() * 8);
            stored[used[bit / 8]] ^= 1 << (bit % 8);
            prop_assert_eq!(read(&slots, &stored), None);
        }

        /// Goal: no bytes make the parser panic.
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            let _ = Part::parse(&bytes, POOL);
        }
    }

    /// Goal: a part of another writing of the same sequence is not mixed in.
    #[test]
    fn parts_of_different_incarnations_do_not_mix() {
        let records = vec![Record::Participant(crate::format::ids::UnitId(1)); 1000];
        let old = group(records);
        let new = Group { incarnation: Incarnation(4), ..old.clone() };
        let ((slots, old), (_, mut new)) = (store(&old), store(&new));
        new[SLOT_BYTES..].copy_from_slice(&old[SLOT_BYTES..]);
        assert_eq!(read(&slots, &new), None);
    }

    /// Goal: the transition relation is the diagram's, over all inputs.
    #[test]
    fn states_move_only_forward() {
        use GroupState::{Aborted, Committed, Done, Prepared};
        let all = [Prepared, Committed, Done, Aborted];
        let allowed = [(Prepared, Committed), (Prepared, Aborted), (Committed, Done)];
        for from in all {
            for to in all {
                assert_eq!(from.may_become(to), allowed.contains(&(from, to)));
            }
        }
    }
}
