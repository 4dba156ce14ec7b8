//! Status entries: what changes of a group after it was written, its state and its link.
//!
//! There is one entry for each journal slot, and entry 0 for the list's root; they lie in two-copy
//! pages ([`super::page`]) of one sector each. An entry counts only for the group whose sequence it
//! names, so that reusing a slot needs no change here: what a group was written with holds until an
//! entry says otherwise.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | sequence of the group that the entry is about |
//! | 8 | 8 | sequence expected of the next group |
//! | 16 | 4 | slot of the next group |
//! | 20 | 1 | state |
//! | 21 | 3 | zero |

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::group::{GroupState, Link};
use super::ids::Sequence;
use super::page::PAGE_HEADER;

/// What names a status page.
pub const STATUS_MAGIC: [u8; 4] = *b"FSTA";
/// The sequence of the list's root, which is no group's.
pub const ROOT: Sequence = Sequence(0);

/// An entry, as kept and as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusEntry {
    /// The group that it is about.
    pub of: Sequence,
    /// Its state.
    pub state: GroupState,
    /// Its link.
    pub link: Link,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawStatus {
    of: U64,
    next_sequence: U64,
    next_slot: U32,
    state: u8,
    zero: [u8; 3],
}

const ENTRY: usize = size_of::<RawStatus>();
const _: () = assert!(ENTRY == 24);

/// How many entries a status page of so many bytes holds.
pub fn entries_per_page(page_bytes: usize) -> usize {
    (page_bytes - PAGE_HEADER) / ENTRY
}

impl StatusEntry {
    /// Stores the entry at its place among a page's contents.
    pub fn store(&self, page: &mut [u8], index_in_page: usize) {
        let raw = RawStatus {
            of: U64::new(self.of.0),
            next_sequence: U64::new(self.link.sequence.0),
            next_slot: U32::new(self.link.slot),
            state: self.state as u8,
            zero: [0; 3],
        };
        let at = PAGE_HEADER + index_in_page * ENTRY;
        page[at..at + ENTRY].copy_from_slice(raw.as_bytes());
    }

    /// The entry at its place in a verified page; `None` where none was stored.
    pub fn parse(page: &[u8], index_in_page: usize) -> Option<StatusEntry> {
        let at = PAGE_HEADER + index_in_page * ENTRY;
        let (raw, _) = RawStatus::ref_from_prefix(page.get(at..)?).ok()?;
        Some(StatusEntry {
            of: Sequence(raw.of.get()),
            state: GroupState::parse(raw.state)?,
            link: Link { slot: raw.next_slot.get(), sequence: Sequence(raw.next_sequence.get()) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: entries survive storing side by side, and a blank place holds none.
    #[test]
    fn entries_round_trip() {
        let mut page = vec![0; 512];
        let last = entries_per_page(512) - 1;
        let entry = |n: u64| StatusEntry {
            of: Sequence(n),
            state: GroupState::Done,
            link: Link { slot: n as u32 + 1, sequence: Sequence(n + 5) },
        };
        entry(1).store(&mut page, 0);
        entry(2).store(&mut page, last);
        assert_eq!(StatusEntry::parse(&page, 0), Some(entry(1)));
        assert_eq!(StatusEntry::parse(&page, 1), None);
        assert_eq!(StatusEntry::parse(&page, last), Some(entry(2)));
        assert_eq!(StatusEntry::parse(&page, last + 1), None);
    }
}
