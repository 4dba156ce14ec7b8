//! What recovery reads: pages, groups and records.

use std::collections::BTreeMap;

use flipside::format::group::{Group, Part, Parts, SLOT_BYTES};
use flipside::format::header::{HEADER_MAGIC, RegionHeader};
use flipside::format::home::{Applied, HOME_MAGIC, HOME_PAGE, LINES_PER_PAGE, Line};
use flipside::format::ids::PoolId;
use flipside::format::page::{CopyState, PAGE_HEADER, PageIdentity, crc32c};
use flipside::format::record::Record;
use flipside::format::status::{STATUS_MAGIC, StatusEntry, entries_per_page};
use flipside::format::warm;
use flipside::journal::layout::RegionLayout;

use super::cursor::Cursor;

/// The pool that all inputs are of.
pub const POOL: PoolId = PoolId([5; 16]);
/// Where the contents of a part begin that its checksum covers.
const PART_CRC_FROM: usize = 8;
/// The fewest bytes of a part.
const PART_MIN: usize = 40;

/// A page with `contents` as far as they fit, its header made good. The raw bytes are tried too.
pub fn sealed(magic: [u8; 4], len: usize, contents: &[u8], version: u64) -> Vec<u8> {
    let identity = PageIdentity { magic, pool: POOL, index: 0 };
    let _ = identity.verify(contents);
    let mut page = vec![0; len];
    let taken = contents.len().min(len - PAGE_HEADER);
    page[PAGE_HEADER..PAGE_HEADER + taken].copy_from_slice(&contents[..taken]);
    identity.seal(&mut page, version);
    assert_eq!(identity.verify(&page), CopyState::Good(version));
    page
}

/// A region's header page, and the layout that follows from it.
pub fn region(data: &[u8]) -> bool {
    let _ = RegionHeader::parse(data);
    let mut page = sealed(HEADER_MAGIC, 4096, data, 1);
    let Some(header) = RegionHeader::parse(&page) else { return false };
    header.store(&mut page);
    assert_eq!(RegionHeader::parse(&page), Some(header));
    let layout = RegionLayout::with_slots(header.pairs, header.sector, header.slots);
    assert!(layout.end() >= layout.slots_at);
    let next = RegionHeader { incarnation: header.next_incarnation(), ..header };
    assert!(next.incarnation > header.incarnation, "a start is told from all before it");
    true
}

/// A status page in sectors of either size: every entry, and beyond the last.
pub fn status(data: &[u8]) -> bool {
    let mut any = false;
    for sector in [512, 4096] {
        let _ = StatusEntry::parse(data, 0);
        let mut page = sealed(STATUS_MAGIC, sector, data, 1);
        for index in 0..entries_per_page(sector) + 2 {
            let Some(entry) = StatusEntry::parse(&page, index) else { continue };
            entry.store(&mut page, index);
            assert_eq!(StatusEntry::parse(&page, index), Some(entry));
            any = true;
        }
    }
    any
}

/// A run of the warm table: what passes has as many bytes as its records say.
pub fn warm_table(data: &[u8]) -> bool {
    const BLOCK: u32 = 512;
    let _ = warm::parse_run(0, 1, data, BLOCK);
    let Some(head) = data.first_chunk::<{ warm::RUN_BYTES }>() else { return false };
    let word = warm::run_word(3, 1, head);
    let _ = warm::parse_run(3, word, data, BLOCK);
    let mut good = data.to_vec();
    let mut at = warm::RUN_BYTES;
    while let Some(len) = good.get(at..at + 4) {
        let len = u32::from_le_bytes(len.try_into().expect("four bytes")) as usize;
        let Some(body) = at.checked_add(len).and_then(|end| good.get(at + 8..end)) else { break };
        let crc = crc32c(body);
        good[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        at += len;
    }
    let Some(entries) = warm::parse_run(3, word, &good, BLOCK) else { return false };
    for entry in &entries {
        let with_data = entry.records.iter().filter(|record| warm::has_payload(record)).count();
        assert_eq!(entry.data.len(), with_data * BLOCK as usize);
        let summed: usize = entry.records.iter().map(warm::summed_blocks).sum();
        assert_eq!(entry.sums.len(), summed);
    }
    !entries.is_empty()
}

/// A home page: every line that passes is sound, and stored as it was parsed.
pub fn home(data: &[u8]) -> bool {
    let mut any = false;
    let _ = Line::parse(data, 0);
    let mut page = sealed(HOME_MAGIC, HOME_PAGE, data, 1);
    for index in 0..=LINES_PER_PAGE {
        let Some(line) = Line::parse(&page, index) else { continue };
        assert!(line.is_sound());
        line.store(&mut page, index);
        assert_eq!(Line::parse(&page, index), Some(line));
        any |= line != Line::FREE;
    }
    any
}

/// Records one after another, applied to a line: what was applied leaves the line sound.
pub fn record(data: &[u8]) -> bool {
    let mut rest = data;
    let mut line = Line::FREE;
    let mut any = false;
    while let Some((record, after)) = Record::parse(rest) {
        assert_eq!(rest.len() - after.len(), record.stored_len());
        let mut bytes = vec![0; record.stored_len()];
        record.store(&mut bytes);
        assert_eq!(Record::parse(&bytes), Some((record, [].as_slice())));
        let before = line;
        match line.apply(&record) {
            Applied::Changed => assert!(line.is_sound(), "{record:?} made {before:?} {line:?}"),
            Applied::Stale => assert_eq!(line, before),
            Applied::Impossible => line = before,
        }
        (rest, any) = (after, true);
    }
    any
}

/// A journal's slots, each a number and a piece; every group that can be put together is stored
/// again and put together again.
pub fn group(data: &[u8]) -> bool {
    let mut cursor = Cursor(data);
    let mut parts = BTreeMap::new();
    while !cursor.is_empty() {
        let slot = cursor.number(1) as u32;
        let mut bytes = cursor.piece().to_vec();
        let as_it_is = Part::parse(&bytes, POOL);
        seal_part(&mut bytes);
        if let Some(part) = as_it_is.or_else(|| Part::parse(&bytes, POOL)) {
            parts.insert(slot, part);
        }
    }
    let heads: Vec<u32> =
        parts.iter().filter(|(_, part)| part.is_head()).map(|(slot, _)| *slot).collect();
    let mut any = false;
    for head in heads {
        let Some((group, slots)) = Group::assemble(head, |slot| parts.get(&slot)) else { continue };
        assert!(slots.first() == Some(&head) && slots.iter().all(|slot| parts.contains_key(slot)));
        assert_eq!(stored_again(&group), group);
        any = true;
    }
    any
}

/// Makes a part's magic and checksum good.
pub fn seal_part(bytes: &mut [u8]) {
    if bytes.len() < PART_MIN {
        return;
    }
    bytes[..4].copy_from_slice(b"FGRP");
    let used = Cursor(&bytes[24..28]).number(4) as usize;
    if let Some(covered) = bytes.get(PART_CRC_FROM..used) {
        let crc = crc32c(&[&POOL.0, covered].concat());
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

fn stored_again(group: &Group) -> Group {
    let parse = |bytes: &[u8]| Part::parse(bytes, POOL).expect("what is stored can be read");
    let parts: BTreeMap<u32, Part> =
        stored_parts(group, 3).into_iter().map(|(slot, bytes)| (slot, parse(&bytes))).collect();
    let first = *parts.keys().next().expect("a group has a part");
    Group::assemble(first, |slot| parts.get(&slot)).expect("all parts are there").0
}

/// The parts of a group, in slots from `first` on, each without the zeros after its used bytes.
pub fn stored_parts(group: &Group, first: u32) -> Vec<(u32, Vec<u8>)> {
    let parts = Parts::of(&group.records);
    let slots: Vec<u32> = (first..).take(parts.count()).collect();
    let mut out = vec![0; parts.count() * SLOT_BYTES];
    group.store(POOL, &parts, &slots, &mut out);
    let pieces = out.chunks(SLOT_BYTES).zip(parts.used()).map(|(part, used)| part[..used].to_vec());
    slots.into_iter().zip(pieces).collect()
}
