//! Data in the journal: the bytes of blocks in slots of their own, beside the group that names
//! them.
//!
//! # Contracts
//!
//! - **Atomicity**: the bytes are persisted with the group or before it, and it names the CRC of
//!   each slot: a group any of whose slots holds anything else was cut off, and is not whole.
//! - **Space**: slots with payload, those of appends to come included, are a quarter of the journal
//!   at most ([`payload_slots_max`]); the caller counts. A group's parts are another quarter at
//!   most, so that half of the journal always holds any group with its payload.
//! - **Confusion**: what a client writes is never taken for a part of a group: a slot that would
//!   begin as one is stored with its first byte inverted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use super::layout::RegionLayout;
use super::pages::read_what_can_be;
use super::{JournalError, RecoveredGroup, open};
use crate::env::{Env, Region};
use crate::format::blocks::Location;
use crate::format::group::{GroupState, SLOT_BYTES, begins_as_part};
use crate::format::home::Line;
use crate::format::ids::{PairId, Sequence};
use crate::format::record::{Payload, Record};
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::Buf;

/// The bytes of a block.
pub type Bytes = Rc<[u8]>;

/// Bytes of the buffer that payload is persisted from.
pub(super) const PAYLOAD_WORK: usize = 64 * SLOT_BYTES;

/// How many slots of a journal of `slots` may hold payload.
pub fn payload_slots_max(slots: u32) -> usize {
    slots as usize / 4
}

/// How many slots a block takes.
pub fn slots_of(block_size: u32) -> usize {
    (block_size as usize).div_ceil(SLOT_BYTES)
}

/// A slot's worth of a block, and the record that says so.
pub(super) struct Piece {
    pub record: usize,
    bytes: Bytes,
    range: Range<usize>,
}

/// Gives every block with payload a record for each slot that it takes. `blocks` are the bytes of
/// the records with payload, in their order.
pub(super) fn expand(records: Vec<Record>, blocks: &[Bytes]) -> (Vec<Record>, Vec<Piece>) {
    if blocks.is_empty() {
        return (records, Vec::new());
    }
    let mut blocks = blocks.iter();
    let (mut expanded, mut pieces) = (Vec::new(), Vec::new());
    for record in records {
        if !matches!(record, Record::Place { payload: Some(_), .. }) {
            expanded.push(record);
            continue;
        }
        let bytes = blocks.next().expect("the bytes of every block with payload");
        for start in (0..bytes.len()).step_by(SLOT_BYTES) {
            let range = start..bytes.len().min(start + SLOT_BYTES);
            pieces.push(Piece { record: expanded.len(), bytes: Rc::clone(bytes), range });
            expanded.push(record);
        }
    }
    assert!(blocks.next().is_none(), "bytes of a block that no record names");
    (expanded, pieces)
}

impl Piece {
    /// Lays the bytes out as they are stored in a slot, and says so in the piece's record.
    pub fn store(&self, slot: u32, out: &mut [u8], records: &mut [Record]) {
        let bytes = &self.bytes[self.range.clone()];
        out[..bytes.len()].copy_from_slice(bytes);
        out[bytes.len()..].fill(0);
        let veiled = begins_as_part(out);
        if veiled {
            out[0] = !out[0];
        }
        let Record::Place { payload, .. } = &mut records[self.record] else {
            unreachable!("a piece is of a place record")
        };
        *payload = Some(Payload { slot, crc: slot_crc(out), veiled });
    }
}

/// The checksum of all that is in a slot.
pub(super) fn slot_crc(slot: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, slot) as u32
}

/// The places of blocks (a device's number, and the offset on it), which are in order, as runs of
/// blocks that one write can put there.
pub fn runs(places: &[(usize, u64)], block_size: u32) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (i, &(device, offset)) in places.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if places[i - 1] == (device, offset.wrapping_sub(block_size.into())) => {
                run.end += 1;
            }
            _ => runs.push(i..i + 1),
        }
    }
    runs
}

/// A block whose newest contents are in the journal, as recovery finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The group that names it.
    pub group: Sequence,
    /// The side that it belongs to.
    pub location: Location,
    /// Its slots, in order.
    slots: Vec<Payload>,
}

/// The states of groups that took place.
pub const DECIDED: [GroupState; 2] = [GroupState::Committed, GroupState::Done];

/// The blocks that the linked groups of these states hold and that no later one names: whatever a
/// later group says of a block, it says instead. All groups that name a pair and follow one that
/// stays are linked, too, so nothing is missed.
pub fn held(groups: &[RecoveredGroup], of: &[GroupState]) -> BTreeMap<(PairId, u16), Held> {
    let mut found: BTreeMap<(PairId, u16), Held> = BTreeMap::new();
    for group in groups.iter().filter(|group| of.contains(&group.state)) {
        for record in &group.records {
            match *record {
                Record::Participant(_) | Record::Sum(_) => {}
                Record::Binding { pair, binding } => {
                    if binding.owner.is_none() {
                        found.retain(|(of, _), _| *of != pair);
                    }
                }
                Record::Place { pair, first, payload: Some(payload), location, .. } => {
                    let slots = vec![payload];
                    let new = Held { group: group.sequence, location, slots };
                    match found.get_mut(&(pair, first)) {
                        Some(held) if held.group == group.sequence => held.slots.push(payload),
                        _ => drop(found.insert((pair, first), new)),
                    }
                }
                Record::Place { pair, first, count, payload: None, .. } => {
                    for block in first..first + count {
                        found.remove(&(pair, block));
                    }
                }
            }
        }
    }
    found
}

impl Held {
    /// Whether the pair's line, with all groups applied, says that the block is where this has it.
    pub fn check(&self, (pair, block): (PairId, u16), line: &Line) -> Result<(), JournalError> {
        if line.map.get(usize::from(block)) == self.location && line.is_sound() {
            return Ok(());
        }
        Err(JournalError::Damaged(format!(
            "group {} has block {block} of pair {pair}, and the pair is {line:?}",
            self.group
        )))
    }
}

/// Reads a held block, whole slots of it.
pub(super) async fn load<E: Env, R: Region>(
    env: &E,
    region: &R,
    layout: &RegionLayout,
    held: &Held,
    work: &mut Buf,
) -> Result<Vec<u8>, JournalError> {
    let mut bytes = Vec::with_capacity(held.slots.len() * SLOT_BYTES);
    for payload in &held.slots {
        let at = layout.slot_at(payload.slot);
        read_what_can_be(env, region, at, work, 0..SLOT_BYTES).await.map_err(open::failed)?;
        let slot = &work.as_slice()[..SLOT_BYTES];
        if slot_crc(slot) != payload.crc && !mutated(Mutant::PayloadCrcIgnored) {
            return Err(JournalError::Damaged(format!(
                "journal slot {}, which has data of group {}, cannot be read any more",
                payload.slot, held.group
            )));
        }
        let first = if payload.veiled { !slot[0] } else { slot[0] };
        bytes.push(first);
        bytes.extend_from_slice(&slot[1..]);
    }
    Ok(bytes)
}
