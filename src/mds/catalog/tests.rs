use proptest::prelude::*;

use super::space::Use;
use super::*;
use crate::format::ids::{Generation, LogicalExtent, Slot};
use crate::format::record::{Binding, Record};
use crate::mds::backend::RegionBackend;
use crate::mds::log::checkpoint::Checkpointer;
use crate::mds::log::format::{HALVES_OFFSET, Identity, LogHeader};
use crate::mds::log::place::MediumPlace;
use crate::mds::log::{LoggedStore, adopt};
use crate::mds::opening::log_len;
use crate::mds::records::{Grants, PairRecord, Primitive};
use crate::mds::redb_store::RedbStore;
use crate::mds::testing::{EXTENT_SIZE, create, open, pair};
use crate::mds::volume_table::TABLE_LEN;

const UNIT: UnitId = UnitId(1);
const OTHER: UnitId = UnitId(2);

fn run(start: u32, count: u32) -> ExtentRun {
    ExtentRun { start: ExtentId(start), count }
}

fn granted(catalog: &Catalog, unit: UnitId) -> (u64, Vec<ExtentRun>) {
    catalog.grants(unit, 0, 100)
}

/// A pool of 100 extents with one volume, and extents 0..20 granted to the unit.
fn prepared() -> (crate::mds::testing::Memory, Catalog) {
    let (memory, mut catalog) = create(100, 10);
    catalog.create_volume("vol0", 50 * u64::from(EXTENT_SIZE)).unwrap();
    assert_eq!(catalog.allocate(UNIT, Use::Journal, 20).runs, [run(0, 20)]);
    catalog.commit().unwrap();
    (memory, catalog)
}

fn refusal(result: Result<(), Fault>) -> (Refusal, u64) {
    match result {
        Err(Fault::Refused(refusal, detail)) => (refusal, detail),
        other => panic!("not refused: {other:?}"),
    }
}

/// Goal: data grants stop at the reserve, journal grants at the pool's end, and what is given back
/// can be granted again.
#[test]
fn quota_and_reserve() {
    let (_, mut catalog) = create(100, 10);
    let grants = |data_quota, runs| Grants { runs, data_quota };
    assert_eq!(catalog.allocate(UNIT, Use::Data, 60), grants(60, vec![run(0, 60)]));
    assert_eq!(catalog.allocate(OTHER, Use::Data, 60), grants(30, vec![run(60, 30)]));
    assert!(catalog.allocate(UNIT, Use::Data, 1).is_empty());
    assert_eq!(catalog.allocate(UNIT, Use::Journal, 60), grants(0, vec![run(90, 10)]));
    assert_eq!(granted(&catalog, UNIT), (60, vec![run(0, 60), run(90, 10)]));
    catalog.give_back(UNIT, &[run(10, 5)], 3).unwrap();
    assert_eq!(catalog.allocate(OTHER, Use::Data, 60), grants(3, vec![run(10, 3)]));
    assert_eq!(refusal(catalog.give_back(UNIT, &[run(0, 1), run(60, 1)], 0)).1, 1);
    assert_eq!(refusal(catalog.give_back(UNIT, &[run(0, 1)], 61)).0, Refusal::OutOfRange);
    assert_eq!(refusal(catalog.give_back(UNIT, &[run(0, 2), run(1, 2)], 0)).0, Refusal::NotGranted);
}

/// Goal: a life of a pair by the primitives; older generations change nothing.
#[test]
fn generations() {
    let (memory, mut catalog) = prepared();
    let bound = pair(3, 1, [Some(5), None], Slot::Zero);
    let both = pair(3, 2, [Some(5), Some(6)], Slot::Zero);
    let swapped = pair(3, 3, [Some(5), Some(6)], Slot::One);
    let alone = pair(3, 4, [None, Some(6)], Slot::One);
    let life = [
        Primitive::BindData(bound),
        Primitive::AssociateDataJournal(both),
        Primitive::SwapDataJournal(swapped),
        Primitive::DisassociateJournalExtent(alone),
    ];
    catalog.transact(UNIT, &life).unwrap();
    catalog.transact(UNIT, &life).unwrap();
    catalog.commit().unwrap();
    let counters = catalog.counters();
    assert_eq!((counters.stale, counters.swaps, counters.transactions), (4, 1, 2));
    let expected = vec![(UNIT, alone)];
    assert_eq!(catalog.layout(VolumeId(0), LogicalExtent(0), 10).unwrap(), expected);
    drop(catalog);
    let mut catalog = open(&memory);
    assert_eq!(catalog.layout(VolumeId(0), LogicalExtent(0), 10).unwrap(), expected);
    let released = pair(3, 9, [None, None], Slot::Zero);
    catalog.transact(UNIT, &[Primitive::ReleasePair(released)]).unwrap();
    catalog.transact(UNIT, &[Primitive::BindData(bound)]).unwrap();
    catalog.commit().unwrap();
    assert_eq!(catalog.layout(VolumeId(0), LogicalExtent(0), 10).unwrap(), []);
    catalog.give_back(UNIT, &[run(0, 20)], 0).unwrap();
}

/// Goal: a batch with one record that may not be changes nothing at all, and the record is named.
#[test]
fn refused_whole() {
    let (_, mut catalog) = prepared();
    let good = Primitive::BindData(pair(0, 1, [Some(5), None], Slot::Zero));
    let far = PairRecord { logical: LogicalExtent(50), ..pair(1, 1, [Some(6), None], Slot::Zero) };
    let lost = PairRecord { volume: VolumeId(9), ..pair(1, 1, [Some(6), None], Slot::Zero) };
    let bad = [
        (Primitive::BindData(pair(1, 1, [Some(20), None], Slot::Zero)), Refusal::NotGranted),
        (Primitive::BindData(pair(1, 1, [Some(5), None], Slot::Zero)), Refusal::ExtentInUse),
        (Primitive::BindData(far), Refusal::OutOfRange),
        (Primitive::BindData(lost), Refusal::UnknownVolume),
        (
            Primitive::AssociateDataJournal(pair(1, 1, [Some(6), None], Slot::Zero)),
            Refusal::Malformed,
        ),
        (Primitive::ReleasePair(pair(1, 1, [Some(6), None], Slot::Zero)), Refusal::Malformed),
        (
            Primitive::HardenExtentFlags(pair(1, 1, [Some(6), None], Slot::Zero)),
            Refusal::Unsupported,
        ),
    ];
    for (bad, reason) in bad {
        assert_eq!(refusal(catalog.transact(UNIT, &[good, bad])), (reason, 1));
    }
    assert_eq!(catalog.counters().transactions, 0);
    catalog.commit().unwrap();
    assert_eq!(catalog.layout(VolumeId(0), LogicalExtent(0), 10).unwrap(), []);
    catalog.transact(UNIT, &[good]).unwrap();
    let other = Primitive::BindData(pair(0, 1, [Some(5), None], Slot::Zero));
    assert_eq!(refusal(catalog.transact(OTHER, &[other])).0, Refusal::NotGranted);
    assert_eq!(refusal(catalog.give_back(UNIT, &[run(4, 2)], 0)), (Refusal::ExtentInUse, 0));
}

/// Goal: an extent may go from one pair to another within one batch, in any order of the records.
#[test]
fn extents_move_within_a_batch() {
    let (memory, mut catalog) = prepared();
    let both = pair(0, 1, [Some(5), Some(6)], Slot::Zero);
    catalog.transact(UNIT, &[Primitive::BindData(both)]).unwrap();
    let moved = [
        Primitive::BindData(pair(1, 1, [Some(6), None], Slot::Zero)),
        Primitive::DisassociateJournalExtent(pair(0, 2, [Some(5), None], Slot::Zero)),
    ];
    catalog.transact(UNIT, &moved).unwrap();
    catalog.commit().unwrap();
    drop(catalog);
    assert_eq!(open(&memory).holder(ExtentId(6)), Some((UNIT, PairId(1))));
}

/// Goal: volumes keep to names and bounds, neither shrink nor go under bound extents, and are
/// deleted in two steps that each survive.
#[test]
fn volumes() {
    let (memory, mut catalog) = prepared();
    let size = u64::from(EXTENT_SIZE);
    for name in ["", "a b", "a/b", "-a", "a=b", &"v".repeat(129)] {
        let result = catalog.create_volume(name, size).map(drop);
        assert_eq!(refusal(result).0, Refusal::NameInvalid, "{name}");
    }
    assert_eq!(refusal(catalog.create_volume("vol0", size).map(drop)).0, Refusal::NameTaken);
    assert_eq!(refusal(catalog.create_volume("v", 0).map(drop)).0, Refusal::OutOfRange);
    let bind = Primitive::BindData(pair(9, 1, [Some(5), None], Slot::Zero));
    catalog.transact(UNIT, &[bind]).unwrap();
    let vol0 = VolumeId(0);
    assert_eq!(refusal(catalog.resize_volume(vol0, 9 * size)).0, Refusal::VolumeBusy);
    catalog.resize_volume(vol0, 9 * size + 1).unwrap();
    assert_eq!(refusal(catalog.remove_volume(vol0)).0, Refusal::VolumeBusy, "it is in use");
    catalog.delete_volume(vol0).unwrap();
    catalog.commit().unwrap();
    drop(catalog);
    let mut catalog = open(&memory);
    assert!(catalog.list_volumes(0, 10)[0].deleting);
    let unknown = |result| assert_eq!(refusal(result).0, Refusal::UnknownVolume);
    unknown(catalog.delete_volume(vol0));
    unknown(catalog.rename_volume(vol0, "v"));
    unknown(catalog.resize_volume(vol0, 20 * size));
    assert_eq!(refusal(catalog.remove_volume(vol0)).0, Refusal::VolumeBusy, "it has an extent");
    assert_eq!(catalog.create_volume("vol0", size).unwrap().id, VolumeId(1));
    let released = Primitive::ReleasePair(pair(9, 2, [None, None], Slot::Zero));
    catalog.transact(UNIT, &[released]).unwrap();
    catalog.remove_volume(vol0).unwrap();
    unknown(catalog.remove_volume(vol0));
    catalog.commit().unwrap();
    let listed: Vec<_> = catalog.list_volumes(0, 10).into_iter().map(|v| v.id.0).collect();
    assert_eq!(listed, [1]);
}

/// Goal: whichever extents the store has as bound, and whichever a turn has bound or released
/// since, a volume shrinks as far as none of its own is bound, and nothing is committed for that.
#[test]
fn shrinking_sees_the_turn() {
    let bits = |of: u32| (0..3).filter(move |bit| of >> bit & 1 == 1);
    let bind = |number| Primitive::BindData(pair(number, 1, [Some(number), None], Slot::Zero));
    let release = |number| Primitive::ReleasePair(pair(number, 2, [None, None], Slot::Zero));
    let of_another = |number| {
        let record = pair(number, 1, [Some(number), None], Slot::Zero);
        Primitive::BindData(PairRecord { volume: VolumeId(1), ..record })
    };
    for (stored, changed) in (0..8).flat_map(|stored| (0..8).map(move |changed| (stored, changed)))
    {
        let (_, mut catalog) = prepared();
        catalog.create_volume("other", 50 * u64::from(EXTENT_SIZE)).unwrap();
        let before: Vec<Primitive> = bits(stored).map(bind).chain([of_another(9)]).collect();
        catalog.transact(UNIT, &before).unwrap();
        catalog.commit().unwrap();
        let change =
            |number| if stored >> number & 1 == 1 { release(number) } else { bind(number) };
        let since: Vec<Primitive> = bits(changed).map(change).chain([of_another(10)]).collect();
        catalog.transact(UNIT, &since).unwrap();
        let commits = catalog.counters().store_commits;
        for extents in (1..=3).rev() {
            let shrunk = catalog.resize_volume(VolumeId(0), extents * u64::from(EXTENT_SIZE));
            let busy = (stored ^ changed) >> extents != 0;
            let expected = if busy { Err(Fault::Refused(Refusal::VolumeBusy, 0)) } else { Ok(()) };
            assert_eq!(shrunk, expected, "{stored:b} ^ {changed:b}, to {extents}");
        }
        assert_eq!(catalog.counters().store_commits, commits);
    }
}

/// Goal: a volume gets any name that is sound and free, also its own, and keeps it.
#[test]
fn renaming() {
    let (memory, mut catalog) = prepared();
    let vol0 = VolumeId(0);
    catalog.create_volume("other", u64::from(EXTENT_SIZE)).unwrap();
    assert_eq!(refusal(catalog.rename_volume(vol0, "other")).0, Refusal::NameTaken);
    assert_eq!(refusal(catalog.rename_volume(vol0, "a b")).0, Refusal::NameInvalid);
    assert_eq!(refusal(catalog.rename_volume(VolumeId(7), "x")).0, Refusal::UnknownVolume);
    catalog.rename_volume(vol0, "vol0").unwrap();
    catalog.rename_volume(vol0, "new").unwrap();
    catalog.commit().unwrap();
    drop(catalog);
    let mut catalog = open(&memory);
    assert_eq!(catalog.list_volumes(0, 1)[0].name, "new");
    catalog.create_volume("vol0", u64::from(EXTENT_SIZE)).unwrap();
}

/// Goal: pages of a layout, put together, are the layout.
#[test]
fn layout_pages() {
    let (_, mut catalog) = prepared();
    let pairs: Vec<PairRecord> =
        (0..20).map(|i| pair(i, 1, [Some(19 - i), None], Slot::Zero)).collect();
    let binds: Vec<Primitive> = pairs.iter().map(|pair| Primitive::BindData(*pair)).collect();
    catalog.transact(UNIT, &binds).unwrap();
    catalog.commit().unwrap();
    let mut all = Vec::new();
    let mut from = 0;
    loop {
        let page = catalog.layout(VolumeId(0), LogicalExtent(from), 7).unwrap();
        all.extend(page.iter().map(|(_, pair)| *pair));
        match page.last() {
            Some((_, last)) => from = last.logical.0 + 1,
            None => break,
        }
    }
    assert_eq!(all, pairs);
}

/// Goal: an older or equal incarnation is refused and told the last one; a newer one ends the
/// session of the older.
#[test]
fn incarnations() {
    let (memory, mut catalog) = create(10, 1);
    let is = |incarnation| Start::Is(Incarnation(incarnation));
    assert_eq!(catalog.attach(UNIT, is(4), 77), Ok((Incarnation(4), None)));
    for stale in [3, 4] {
        let result = catalog.attach(UNIT, is(stale), 78).map(drop);
        assert_eq!(refusal(result), (Refusal::StaleIncarnation, 4));
    }
    catalog.put_session(77, Some(b"row".to_vec()));
    catalog.commit().unwrap();
    drop(catalog);
    let mut catalog = open(&memory);
    assert_eq!(catalog.sessions().unwrap(), [(77, b"row".to_vec())]);
    assert!(!catalog.flags_here());
    let next = Start::After(Incarnation(4));
    assert_eq!(catalog.attach(UNIT, next, 79), Ok((Incarnation(5), Some(77))));
    assert!(catalog.flags_here());
    catalog.commit().unwrap();
    assert_eq!(catalog.sessions().unwrap(), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Goal: whatever two units ask in whatever order, free and granted extents add up, no extent
    /// is in two pairs (opening checks both), and what was refused has left no trace.
    #[test]
    fn any_history_keeps_the_invariants(
        steps in proptest::collection::vec((0..6u8, 0..2u32, 0..12u32, 0..40u32, 0..40u32), 1..60)
    ) {
        let (memory, mut catalog) = create(40, 6);
        catalog.create_volume("v", 10 * u64::from(EXTENT_SIZE)).unwrap();
        for (generation, (what, unit, line, a, b)) in steps.into_iter().enumerate() {
            let unit = UnitId(unit);
            let generation = generation as u32 + 1;
            let batch = match what {
                0 => {
                    let purpose = if a % 2 == 0 { Use::Data } else { Use::Journal };
                    catalog.allocate(unit, purpose, b % 9);
                    continue;
                }
                1 => {
                    let _ = catalog.give_back(unit, &[run(a, b % 4 + 1)], b % 3);
                    continue;
                }
                2 => Primitive::ReleasePair(pair(line, generation, [None, None], Slot::Zero)),
                3 if a != b => {
                    let slots = [Some(a), Some(b)];
                    Primitive::AssociateDataJournal(pair(line, generation, slots, Slot::One))
                }
                _ => Primitive::BindData(pair(line, generation, [Some(a), None], Slot::Zero)),
            };
            let _ = catalog.transact(unit, &[batch]);
            if b % 3 == 0 {
                catalog.commit().unwrap();
            }
        }
        catalog.commit().unwrap();
        prop_assert!(catalog.data_quota() <= 34);
        let again = open(&memory.snapshot());
        prop_assert_eq!(&again.holders, &catalog.holders);
        prop_assert_eq!(&again.free, &catalog.free);
        for unit in [UnitId(0), UnitId(1)] {
            prop_assert_eq!(granted(&again, unit), granted(&catalog, unit));
        }
    }
}

/// A record that binds the pair at the logical extent of the same number.
fn bound(pair: u32, generation: u32, extents: [Option<u32>; 2]) -> Record {
    let binding = Binding {
        generation: Generation(generation),
        owner: Some((VolumeId(0), LogicalExtent(pair))),
        extents: extents.map(|extent| extent.map(ExtentId)),
        data_slot: Slot::Zero,
    };
    Record::Binding { pair: PairId(pair), binding }
}

/// Goal: a store of the size that format gives it holds the pool at its worst (every extent bound,
/// in no order, every grant a run of its own, every line in it) through many changes, in small
/// batches and large, as its log has them applied.
#[test]
fn the_planned_size_is_enough() {
    for extents in [16, 2_000, 19_000, 30_000u32] {
        let log = log_len(u64::from(extents));
        let capacity = crate::format::layout::store_len(u64::from(extents)) - TABLE_LEN - log;
        let file = tempfile::tempfile().unwrap();
        let handle = || file.try_clone().unwrap();
        let backend = RegionBackend::create(handle(), 0, capacity).unwrap();
        let mut rows = RedbStore::open(backend).unwrap();
        let identity = Identity([7; 16]);
        let header = LogHeader { identity, half: (log - HALVES_OFFSET) / 2 };
        let mut place = MediumPlace::new(handle(), capacity, log);
        place.clear(&[header.encode(), header.encode()].concat()).unwrap();
        adopt(&mut rows, identity).unwrap();
        let applier = Checkpointer::Inline(rows.clone());
        let store = Box::new(LoggedStore::open(rows, place, applier).unwrap());
        let spec =
            PoolSpec { extent_size: EXTENT_SIZE, devices: vec![run(0, extents)], reserve: 0 };
        let mut catalog = Catalog::create(store, &spec).unwrap();
        catalog.create_volume("v", u64::from(extents) * u64::from(EXTENT_SIZE)).unwrap();
        catalog.commit().unwrap();
        catalog.allocate(UNIT, Use::Data, extents);
        // A stride that shares no factor with the counts visits all in no order.
        let order: Vec<u32> =
            (0..u64::from(extents)).map(|i| ((i * 7_919) % u64::from(extents)) as u32).collect();
        for round in 1..=3 {
            let batch = if round == 2 { 2000 } else { 200 };
            for lines in order.chunks(batch) {
                let slots = |line: u32| [Some(line), None];
                let binds: Vec<Primitive> = lines
                    .iter()
                    .map(|&line| Primitive::BindData(pair(line, round, slots(line), Slot::Zero)))
                    .collect();
                catalog.transact(UNIT, &binds).unwrap();
                let records: Vec<Record> =
                    lines.iter().map(|&line| bound(line, round, slots(line))).collect();
                catalog.harden(UNIT, &records).unwrap();
                catalog.commit().unwrap();
            }
        }
        for lines in order.chunks(500) {
            let odd = lines.iter().copied().filter(|line| line % 2 == 1);
            let released: Vec<Primitive> = odd
                .clone()
                .map(|line| Primitive::ReleasePair(pair(line, 9, [None, None], Slot::Zero)))
                .collect();
            catalog.transact(UNIT, &released).unwrap();
            let runs: Vec<ExtentRun> = odd.map(|line| run(line, 1)).collect();
            catalog.give_back(UNIT, &runs, runs.len() as u32).unwrap();
            catalog.commit().unwrap();
        }
        drop(catalog);
        let rows = RedbStore::open(RegionBackend::open(handle(), 0, capacity).unwrap()).unwrap();
        let place = MediumPlace::new(handle(), capacity, log);
        let applier = Checkpointer::Inline(rows.clone());
        let store = LoggedStore::open(rows, place, applier).unwrap();
        let catalog = Catalog::open(Box::new(store)).unwrap();
        assert_eq!(catalog.counters().extents_free, u64::from(extents / 2));
    }
}
