//! Every decision of a start about what a region holds.

use std::io;
use std::rc::Rc;

use futures_util::FutureExt as _;

use super::*;
use crate::env::sim::{DiskShape, Faults, Limit, Machine, Shape};
use crate::format::blocks::Location;
use crate::format::group::{Parts, TransactionId};
use crate::format::home::HOME_PAGE;
use crate::format::ids::{ExtentId, Generation, LogicalExtent, Slot, VolumeId};
use crate::format::page::PageIdentity;
use crate::format::record::{Binding, Payload};
use crate::journal::sums::{Sums, block_sum};
use crate::uring::buffers::{ARENA_BLOCK, View};

const POOL: PoolId = PoolId([5; 16]);
const UNIT: UnitId = UnitId(1);
const PAIRS: u32 = 46;
const LEN: u64 = 1 << 20;
const SLOTS: usize = 64;
/// The checksum of what is in a slot, where nobody looks at that.
const CRC: u32 = 7;

/// The pieces that are persisted together.
type Persist = Vec<(u64, Vec<u8>)>;

/// A region in memory.
#[derive(Clone)]
struct Memory {
    bytes: Rc<RefCell<Vec<u8>>>,
    sector: u32,
    /// Reads that touch this byte fail, with this error of the system.
    broken: Option<(u64, i32)>,
    /// What was persisted, a list of pieces each time.
    persisted: Rc<RefCell<Vec<Persist>>>,
}

impl Memory {
    fn put(&self, at: u64, bytes: &[u8]) {
        self.bytes.borrow_mut()[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }
}

impl Region for Memory {
    fn len(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn sector(&self) -> u32 {
        self.sector
    }

    fn read(&self, offset: u64, mut view: View) -> impl Future<Output = io::Result<()>> + 'static {
        let (memory, from) = (self.bytes.borrow(), offset as usize);
        view.with_mut(|out| out.copy_from_slice(&memory[from..from + out.len()]));
        let end = offset + view.len() as u64;
        let error = self.broken.filter(|(at, _)| (offset..end).contains(at));
        std::future::ready(
            error.map_or(Ok(()), |(_, code)| Err(io::Error::from_raw_os_error(code))),
        )
    }

    fn persist(&self, pieces: Vec<(u64, View)>) -> impl Future<Output = io::Result<()>> + 'static {
        let pieces = pieces.iter().map(|(at, view)| (*at, view.with(<[u8]>::to_vec)));
        let pieces: Vec<_> = pieces.collect();
        pieces.iter().for_each(|(at, bytes)| self.put(*at, bytes));
        self.persisted.borrow_mut().push(pieces);
        std::future::ready(Ok(()))
    }

    fn whole(&self) -> Option<Self> {
        Some(self.clone())
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::ready(Ok(()))
    }
}

/// Lays out a region of so many bytes, has `change` do something to it, and opens it as the unit's.
fn opened(
    len: u64,
    unit: UnitId,
    pairs: u32,
    change: impl FnOnce(&mut Memory, &RegionLayout),
) -> Result<Opened<Memory>, JournalError> {
    const LIMIT: Limit = Limit { time_ns: 1 << 40, steps: 10_000 };
    let bytes = Rc::new(RefCell::new(vec![0; len as usize]));
    let mut region = Memory { bytes, sector: 512, broken: None, persisted: Rc::default() };
    let disks = vec![DiskShape { len: 4096, sector: 512, volatile_cache: false }];
    let (parts, buffers_max) = (Vec::new(), 2 * ARENA_BLOCK);
    let shape = Shape { disks, nvram: None, parts, storage_max: 0, buffers_max };
    let env = Machine::new(0, &shape).boot(Faults::none());
    let (handle, made) = (env.clone(), region.clone());
    let made = async move { Journal::format(&made, POOL, UNIT, PAIRS, handle.buffers()).await };
    env.run(LIMIT, made).expect("formatting comes to an end")?;
    let layout = RegionLayout::compute(len, PAIRS, 512).expect("there is room: it was formatted");
    change(&mut region, &layout);
    let handle = env.clone();
    let opening = async move {
        let last = Journal::last_start(&handle, &region, POOL).await?;
        let start = (unit, Incarnation(last.0 + 1));
        Journal::open(&handle, region, POOL, start, pairs).await
    };
    env.run(LIMIT, opening).expect("opening comes to an end")
}

/// Puts the same bytes over both copies of the first page of a kind.
fn over(memory: &Memory, runs: &PageRuns, bytes: &[u8]) {
    runs.copies.iter().for_each(|copy| memory.put(*copy, bytes));
}

/// Why a region is refused that so much was changed in.
fn refusal(change: impl FnOnce(&mut Memory, &RegionLayout)) -> String {
    let Err(error) = opened(LEN, UNIT, PAIRS, change) else { panic!("it was opened") };
    error.to_string()
}

/// Goal: a region that is another unit's or pool's, of other sizes, never formatted, or without a
/// header is refused as foreign; a short one as such, when it is made and later.
#[test]
fn only_the_units_own_region_is_opened() {
    assert_eq!(opened(LEN, UNIT, PAIRS, |_, _| ()).map(|all| all.groups.len()).ok(), Some(0));
    for (unit, pairs) in [(UnitId(2), PAIRS), (UNIT, PAIRS - 1)] {
        let error = opened(LEN, unit, pairs, |_, _| ()).err();
        assert!(matches!(error, Some(JournalError::Foreign(what)) if what.contains("unit 1's")));
    }
    for (words, page) in [("never formatted", [0; 4096]), ("neither copy", [9; 4096])] {
        let error = refusal(|memory, layout| over(memory, &layout.header, &page));
        assert!(error.contains(words), "'{words}' is not in: {error}");
    }
    let error = refusal(|memory, _| memory.sector = 4096);
    assert!(error.contains("in sectors of 512 bytes"), "{error}");
    let cut = |memory: &mut Memory, layout: &RegionLayout| {
        memory.bytes.borrow_mut().truncate(layout.end() as usize - 512);
    };
    for short in [opened(LEN, UNIT, PAIRS, cut), opened(100 << 10, UNIT, PAIRS, |_, _| ())] {
        let Err(JournalError::TooSmall { len, needed }) = short else { panic!("it is too short") };
        assert!(len < needed);
    }
}

/// Goal: one rotten copy of any page is survived; where both are, or where a page is whole and says
/// what cannot be, it is damage that is named.
#[test]
fn lost_pages_are_damage() {
    for copy in [0, 1] {
        let rot = |memory: &mut Memory, layout: &RegionLayout| {
            for runs in [layout.header, layout.status, layout.home] {
                memory.put(runs.copies[copy] + 40, &[0xff; 8]);
            }
        };
        assert!(opened(LEN, UNIT, PAIRS, rot).is_ok(), "copy {copy}");
    }
    let error = refusal(|memory, layout| over(memory, &layout.status, &[1; 512]));
    assert!(error.contains("status page 0 is lost"), "{error}");
    let error = refusal(|memory, layout| over(memory, &layout.home, &[1; HOME_PAGE]));
    assert!(error.contains("home page 0 is lost in both copies"), "{error}");
    let error = refusal(|memory, layout| over(memory, &layout.status, &[0; 512]));
    assert!(error.contains("the root of the list is lost"), "{error}");
    let error = refusal(|memory, layout| {
        let mut page = vec![0; HOME_PAGE];
        (0..LINES_PER_PAGE).for_each(|index| Line::FREE.store(&mut page, index));
        let extents = [Some(ExtentId(3)); 2];
        let owner = Some((VolumeId(1), LogicalExtent(0)));
        let twice = Binding { generation: Generation(1), owner, extents, data_slot: Slot::Zero };
        Line { binding: twice, ..Line::FREE }.store(&mut page, 7);
        PageIdentity { magic: HOME_MAGIC, pool: POOL, index: 0 }.seal(&mut page, 4);
        over(memory, &layout.home, &page);
    });
    assert!(error.contains("the home of pair 7 cannot be"), "{error}");
}

/// Goal: a sector that the medium cannot give costs the copy that it is in; where the device cannot
/// be reached, nothing is taken for lost, and nothing is opened.
#[test]
fn unreadable_is_not_unreachable() {
    const EIO: i32 = 5;
    const ENXIO: i32 = 6;
    for place in [0, 4096 + 100] {
        assert!(opened(LEN, UNIT, PAIRS, |all, _| all.broken = Some((place, EIO))).is_ok());
        let error = refusal(|all, _| all.broken = Some((place, ENXIO)));
        assert!(error.contains("the journal failed"), "{error}");
    }
}

/// A group that has the data of a block in each of these slots.
fn part(sequence: u64, slot: u32, link: Link, held: &[u32]) -> Part {
    let (pair, generation) = (PairId(0), Generation(1));
    let records = held.iter().map(|&slot| {
        let payload = Some(Payload { slot, crc: CRC, veiled: false });
        let location = Location::At(Slot::Zero);
        Record::Place { pair, generation, first: slot as u16, count: 1, location, payload }
    });
    let records: Vec<_> = records.collect();
    let parts = Parts::of(&records);
    let group = Group {
        sequence: Sequence(sequence),
        incarnation: Incarnation(3),
        transaction: TransactionId { coordinator: 1, incarnation: Incarnation(3), number: 9 },
        domain: 0,
        state: GroupState::Committed,
        link,
        records,
    };
    let mut bytes = vec![0; SLOT_BYTES];
    group.store(POOL, &parts, &[slot], &mut bytes);
    Part::parse(&bytes, POOL).expect("what was stored")
}

fn link(slot: u32, sequence: u64) -> Link {
    Link { slot, sequence: Sequence(sequence) }
}

/// Walks from group 77 in slot 9 over these groups, with these entries of slots; returns the
/// sequences and states found.
fn walk(
    groups: &[(u32, u64, Link)],
    entries: &[(u32, StatusEntry)],
) -> Result<Vec<(u64, GroupState)>, String> {
    let parts =
        groups.iter().map(|&(slot, sequence, next)| (slot, part(sequence, slot, next, &[])));
    walk_over(parts.collect(), entries)
}

fn walk_over(
    parts: BTreeMap<u32, Part>,
    entries: &[(u32, StatusEntry)],
) -> Result<Vec<(u64, GroupState)>, String> {
    let mut status = vec![None; SLOTS + 1];
    status[0] = Some(StatusEntry { of: ROOT, state: GroupState::Done, link: link(9, 77) });
    entries.iter().for_each(|(slot, entry)| status[*slot as usize + 1] = Some(*entry));
    match (Scan { parts, crcs: vec![CRC; SLOTS] }).walk(&status) {
        Ok((_, found)) => Ok(found.iter().map(|group| (group.sequence.0, group.state)).collect()),
        Err(JournalError::Damaged(what)) => Err(what),
        Err(other) => panic!("{other}"),
    }
}

/// Goal: a list that ends where no group can go is damage, and nothing is wiped there: in a
/// slot that its own groups are in (found by fuzzing: that group was wiped, then a panic), in
/// none at all, backward, or at the end of all numbers.
#[test]
fn a_list_ends_where_a_group_can_go() {
    assert_eq!(walk(&[(9, 77, link(10, 78))], &[]).map(|found| found.len()), Ok(1));
    for (slot, sequence) in [(9, 78), (64, 78), (u32::MAX, 78), (10, 77), (10, u64::MAX)] {
        let result = walk(&[(9, 77, link(slot, sequence))], &[]);
        assert!(result.is_err(), "{slot} {sequence}");
    }
}

/// Goal: what is in a slot is of one group, and once; anything else is damage, also where all of it
/// has good checksums. (Found by fuzzing: a panic.)
#[test]
fn a_slot_is_of_one_group() {
    let two = |first: &[u32], second: &[u32]| {
        let parts =
            [(9, part(77, 9, link(10, 78), first)), (10, part(78, 10, link(11, 79), second))];
        walk_over(parts.into(), &[]).map(|found| found.len())
    };
    assert_eq!(two(&[20, 21], &[22, 63]), Ok(2));
    for [first, second] in [[[20, 20], [22, 23]], [[20, 9], [22, 23]], [[20, 21], [21, 22]]] {
        let what = two(&first, &second).expect_err("a slot is in two places");
        assert!(what.contains("which is taken"), "{what}");
    }
    assert!(two(&[20, 10], &[22, 23]).is_err(), "the data of the first are the second");
    assert!(two(&[20, 21], &[22, 11]).is_err(), "the next group would overwrite data");
}

/// Goal: state and link are those of the slot's entry where that is of the same group, and the
/// group's own where it is of an older one; a group of another sequence than the link expects ends
/// the list; one that is as new as the list's end and that no link reaches is damage.
#[test]
fn links_are_followed_as_last_changed() {
    use GroupState::{Committed, Done};
    let groups = [(9, 77, link(10, 78)), (10, 78, link(11, 79)), (11, 79, link(12, 80))];
    let entry = |of, link| StatusEntry { of: Sequence(of), state: Done, link };
    let all = [(77, Committed), (78, Committed), (79, Committed)];
    assert_eq!(walk(&groups, &[]).as_deref(), Ok(&all[..]));
    let older = (9, entry(60, link(20, 61)));
    assert_eq!(walk(&groups, &[older]).as_deref(), Ok(&all[..]));
    let unlinked = (9, entry(77, link(11, 79)));
    assert_eq!(walk(&groups, &[unlinked]).as_deref(), Ok(&[(77, Done), (79, Committed)][..]));

    let leftover = [(9, 77, link(10, 78)), (10, 60, link(30, 61))];
    assert_eq!(walk(&leftover, &[]).as_deref(), Ok(&all[..1]));
    for newer in [78, 79, 1000] {
        let lost = [(9, 77, link(10, 78)), (20, newer, link(21, newer + 1))];
        let what = walk(&lost, &[]).expect_err("a group is lost");
        assert!(what.contains(&format!("group {newer} in slot 20 is newer")), "{what}");
    }
    // Cut off, its data missing, it still says that the group was durable which the list ends
    // before (seed 3006369); one in the place of the next group is that group, cut off before.
    let cut_off = |sequence| {
        let missing = [SLOTS as u32];
        let next = link(21, sequence + 1);
        let parts = [(9, part(77, 9, link(10, 78), &[])), (20, part(sequence, 20, next, &missing))];
        walk_over(parts.into(), &[])
    };
    let what = cut_off(79).expect_err("a group is lost");
    assert!(what.contains("group 79 in slot 20 is newer"), "{what}");
    assert_eq!(cut_off(78).as_deref(), Ok(&all[..1]));
}

/// A new region with a group that has the data of these blocks, as bytes; and the slots of it.
fn with_data(blocks: &[Vec<u8>]) -> (Vec<u8>, Vec<u32>) {
    let Opened { journal, .. } = opened(LEN, UNIT, PAIRS, |_, _| ()).expect("a new region");
    let (pair, location) = (PairId(0), Location::At(Slot::Zero));
    let binding = Binding {
        generation: Generation(1),
        owner: Some((VolumeId(1), LogicalExtent(0))),
        extents: [Some(ExtentId(0)), None],
        data_slot: Slot::Zero,
    };
    let places =
        (0..blocks.len()).map(|block| Record::kept(pair, Generation(1), 2 * block, location));
    let records = [Record::Binding { pair, binding }].into_iter().chain(places).collect();
    let data = blocks.iter().map(|block| block.as_slice().into()).collect();
    let transaction = journal.local_transaction();
    let append = journal.append(0, transaction, GroupState::Committed, records, data);
    append.now_or_never().expect("memory does not wait").expect("memory does not fail");
    let payload =
        journal.inner.borrow().list.iter().flat_map(|(_, of)| of.payload.clone()).collect();
    let bytes = journal.region.bytes.borrow().clone();
    (bytes, payload)
}

/// Appends a group that names that pair.
fn append(journal: &Journal<Memory>, pair: u32) {
    let binding = Binding { generation: Generation(1), ..Binding::FREE };
    let records = vec![Record::Binding { pair: PairId(pair), binding }];
    let transaction = journal.local_transaction();
    let append = journal.append(0, transaction, GroupState::Committed, records, Vec::new());
    append.now_or_never().expect("memory does not wait").expect("memory does not fail");
}

/// Goal: whatever a crash leaves of an unlinking whose links are on several pages, no group is gone
/// while an older one of its pairs stays, which replay would bring back (seed 3006369).
#[test]
fn links_on_several_pages_are_changed_in_order() {
    let Opened { journal, .. } = opened(LEN, UNIT, PAIRS, |_, _| ()).expect("a new region");
    // Every fourth stays, and nothing else is of its pair; the others are of three pairs.
    let stays = |n: u64| n.is_multiple_of(4);
    let pair = |n: u64| if stays(n) { n as u32 / 4 } else { 20 + n as u32 % 3 };
    (1..=50).for_each(|n| append(&journal, pair(n)));
    let before = journal.region.bytes.borrow().clone();
    journal.region.persisted.borrow_mut().clear();
    let chosen: Vec<Sequence> = (1..=50).filter(|n| !stays(*n)).map(Sequence).collect();
    let unlink = journal.unlink(&chosen);
    unlink.now_or_never().expect("memory does not wait").expect("memory does not fail");
    let calls = journal.region.persisted.borrow().clone();
    let mut looked_at = 0;
    for (at, call) in calls.iter().enumerate() {
        let sectors = call.iter().flat_map(|(offset, bytes)| {
            bytes.chunks(512).zip(0..).map(move |(bytes, n)| (offset + n * 512, bytes))
        });
        let sectors: Vec<_> = sectors.collect();
        for arrived in 0..1_u32 << sectors.len() {
            let found = opened(LEN, UNIT, PAIRS, |memory, _| {
                memory.put(0, &before);
                calls[..at].iter().flatten().for_each(|(offset, bytes)| memory.put(*offset, bytes));
                let sectors = sectors.iter().enumerate().filter(|(n, _)| arrived >> n & 1 == 1);
                sectors.for_each(|(_, (offset, bytes))| memory.put(*offset, bytes));
            });
            let groups = found.expect("the region is sound").groups;
            let there = |n: u64| groups.iter().any(|group| group.sequence == Sequence(n));
            for n in (1..=50).filter(|n| there(*n)) {
                let newer = (n + 1..=50).filter(|newer| pair(*newer) == pair(n));
                newer.for_each(|newer| assert!(there(newer), "{newer} is gone, {n} is not: {at}"));
            }
            looked_at += 1;
        }
    }
    assert!(calls.len() > 4 && looked_at > 10, "{} calls, {looked_at} images", calls.len());
}

/// Goal: the data of blocks is found again whatever it is, also where it looks like a group of the
/// journal, and however many slots a block takes; and with any bit of it gone there is no group.
#[test]
fn a_group_is_whole_only_with_its_data() {
    // A group that would be missed: it is newer than the end of the list.
    let (sequence, link) = (Sequence(9), link(1, 10));
    let transaction = TransactionId { coordinator: 1, incarnation: Incarnation(1), number: 9 };
    let (incarnation, state, records) = (Incarnation(1), GroupState::Committed, Vec::new());
    let group = Group { sequence, incarnation, transaction, domain: 0, state, link, records };
    let mut other = vec![0; SLOT_BYTES];
    group.store(POOL, &Parts::of(&[]), &[0], &mut other);
    assert!(Part::parse(&other, POOL).is_some(), "a group as data");
    for block in [vec![7; 512], vec![0; 4096], other, (0..16384_u32).map(|i| i as u8).collect()] {
        let slots = block.len().div_ceil(SLOT_BYTES);
        let blocks = [block.clone(), block.clone()];
        let (bytes, payload) = with_data(&blocks);
        assert_eq!(payload.len(), 2 * slots);
        let again = |change: &dyn Fn(&mut Memory, &RegionLayout)| {
            opened(LEN, UNIT, PAIRS, |memory, layout| {
                memory.put(0, &bytes);
                change(memory, layout);
            })
            .expect("the region is sound")
        };
        let found = again(&|_, _| ());
        assert_eq!((found.groups.len(), found.payload[0].len()), (1, 2));
        for (_, data) in found.payload[0].values() {
            assert!(data[..block.len()] == block, "what was written is what is read");
        }
        assert_eq!(found.journal.check_invariants(), Ok(()));
        for slot in payload {
            for byte in [1, 511, 4095] {
                let torn = again(&|memory, layout| {
                    let at = layout.slot_at(slot) + byte;
                    let old = memory.bytes.borrow()[at as usize];
                    memory.put(at, &[!old]);
                });
                assert_eq!((torn.groups.len(), torn.payload[0].len()), (0, 0));
            }
        }
    }
}

/// A journal with so many groups, each with the sum of a block of data behind the region: all that
/// is on the device.
fn with_sums(groups: u64) -> Journal<Memory> {
    let grow = |memory: &mut Memory, _: &RegionLayout| {
        memory.bytes.borrow_mut().resize(LEN as usize + SLOT_BYTES, 0);
    };
    let Opened { journal, .. } = opened(LEN, UNIT, PAIRS, grow).expect("a new region");
    for number in 0..groups {
        let (at, data) = (LEN + number * 512, [number as u8 + 1; 512]);
        journal.region.put(at, &data);
        let mut sums = Sums::default();
        sums.note(at, &[block_sum(&data)], 512, 1);
        let records = vec![Record::Sum(sums.of(at, 1, 512).expect("it was noted"))];
        let transaction = journal.local_transaction();
        let append = journal.append(0, transaction, GroupState::Committed, records, Vec::new());
        append.now_or_never().expect("memory does not wait").expect("memory does not fail");
    }
    journal
}

/// What a start finds on the device of a journal in which something was changed: how many groups,
/// and the journal that goes on.
fn found_again(
    journal: &Journal<Memory>,
    change: impl FnOnce(&mut Memory),
) -> Result<(usize, Journal<Memory>), JournalError> {
    let bytes = journal.region.bytes.borrow().clone();
    let again = opened(LEN, UNIT, PAIRS, |memory, _| {
        *memory.bytes.borrow_mut() = bytes;
        change(memory);
    });
    again.map(|again| (again.groups.len(), again.journal))
}

/// Goal: the newest group counts only with the data that it sums up, and once it was dropped it
/// does not come back with that; an older one counts whatever became of its data, and so does one
/// that was vouched for, or that a start has found before.
#[test]
fn the_newest_group_is_doubted_until_something_relies_on_it() {
    let lose = |memory: &mut Memory| memory.put(LEN + 512, &[0; 512]);
    let lose_older = |memory: &mut Memory| memory.put(LEN, &[0; 512]);
    let journal = with_sums(2);
    let (found, next) = found_again(&journal, |_| ()).expect("all is there");
    assert_eq!(found, 2);
    assert_eq!(found_again(&next, lose).expect("a start vouched for it").0, 2);
    assert_eq!(found_again(&journal, lose_older).expect("it is not looked for").0, 2);
    let (found, next) = found_again(&journal, lose).expect("one was cut off");
    assert_eq!(found, 1);
    let back = |memory: &mut Memory| memory.put(LEN + 512, &[2; 512]);
    assert_eq!(found_again(&next, back).expect("it stays away").0, 1);
    journal.vouch().now_or_never().expect("memory does not wait").expect("memory does not fail");
    assert_eq!(found_again(&journal, lose).expect("it was vouched for").0, 2);
}

/// Goal: data that the medium cannot give is missing, and so is what lies beyond the end of the
/// device; where the device cannot be asked, nothing is said.
#[test]
fn data_that_cannot_be_read_is_missing() {
    let journal = with_sums(1);
    let broken = |code| move |memory: &mut Memory| memory.broken = Some((LEN + 7, code));
    assert_eq!(found_again(&journal, broken(5)).expect("EIO").0, 0);
    let Err(JournalError::Failed(what)) = found_again(&journal, broken(19)) else {
        panic!("ENODEV says nothing of the data");
    };
    assert!(what.contains("No such device"), "{what}");
    let cut = |memory: &mut Memory| memory.bytes.borrow_mut().truncate(LEN as usize);
    assert_eq!(found_again(&journal, cut).expect("a smaller device").0, 0);
}
