//! Every decision about what an earlier process has left, as plain data.

use super::*;
use crate::format::blocks::BlockMap;
use crate::format::ids::{ExtentId, Generation};
use crate::format::warm::summed_blocks;

const GEOMETRY: fn() -> Geometry = || Geometry::new(512, 1 << 14).expect("sound sizes");

fn volume(deleting: bool) -> VolumeInfo {
    VolumeInfo { id: VolumeId(7), name: "v".into(), size: 1 << 15, deleting }
}

fn binding(generation: u32, extents: [Option<u32>; 2]) -> Binding {
    Binding {
        generation: Generation(generation),
        owner: Some((VolumeId(7), LogicalExtent(0))),
        extents: extents.map(|extent| extent.map(ExtentId)),
        data_slot: Slot::Zero,
    }
}

fn bound(generation: u32, extents: [Option<u32>; 2]) -> Record {
    Record::Binding { pair: PairId(1), binding: binding(generation, extents) }
}

fn placed(first: usize, location: Location) -> Record {
    Record::placed(PairId(1), Generation(1), &(first..first + 2), location)
}

fn kept(block: usize, slot: Slot) -> Record {
    Record::kept(PairId(1), Generation(1), block, Location::At(slot))
}

fn entry(epoch: u64, sequence: u64, records: &[Record]) -> Entry {
    let count = records.iter().filter(|record| has_payload(record)).count();
    let data = vec![sequence as u8; count * 512];
    let summed: usize = records.iter().map(summed_blocks).sum();
    let sums = (0..summed as u64).map(|nth| sequence << 8 | nth).collect();
    Entry { domain: 7, epoch, sequence, records: records.to_vec(), data, sums }
}

/// Three pairs, of which the second has blocks 0 and 1 on side 0.
fn lines() -> Vec<Line> {
    let mut map = BlockMap::NONE;
    map.set(BlockSet::range(0..2), Location::At(Slot::Zero));
    vec![Line::FREE, Line { binding: binding(1, [Some(3), Some(4)]), map }, Line::FREE]
}

fn planned(entries: &[Entry]) -> Result<Plan, String> {
    plan(&lines(), entries, &[volume(false)], GEOMETRY())
}

/// Goal: what was committed before it could be forgotten is not pending again, whichever of its
/// entries are left; a volume that is not there any more has nothing.
#[test]
fn what_is_committed_is_not_adopted() {
    let (zero, one) = (Location::At(Slot::Zero), Location::At(Slot::One));
    let again = [entry(1, 1, &[placed(0, zero)]), entry(1, 2, &[placed(8, Location::Unused)])];
    assert_eq!(planned(&again), Ok(Plan::default()));
    let entries = [entry(1, 1, &[placed(0, Location::Unused)]), entry(1, 2, &[placed(0, one)])];
    let plan_of_two = planned(&entries).unwrap();
    assert_eq!(plan_of_two.blocks(), 2);
    assert_eq!(plan(&lines(), &entries, &[volume(true)], GEOMETRY()), Ok(Plan::default()));
    assert_eq!(plan(&lines(), &entries, &[], GEOMETRY()), Ok(Plan::default()));
}

/// Goal: bytes are written again where nothing newer has come to their block.
#[test]
fn only_the_newest_bytes_are_done_again() {
    let one = Location::At(Slot::One);
    let entries = [
        entry(1, 1, &[kept(0, Slot::One), kept(1, Slot::One)]),
        entry(1, 2, &[kept(1, Slot::One)]),
        entry(1, 3, &[placed(2, one)]),
        entry(1, 4, &[kept(3, Slot::One)]),
        entry(1, 5, &[placed(0, one)]),
    ];
    let redo = |count: usize| {
        let redo = planned(&entries[..count]).unwrap().redo;
        redo.into_iter().map(|((_, block), bytes)| (block, bytes[0])).collect::<Vec<_>>()
    };
    assert_eq!(redo(4), [(0, 1), (1, 2), (3, 4)]);
    assert_eq!(redo(5), [(3, 4)]);
}

/// Goal: the sums that are known are those of what was written last, and of nothing that is written
/// again, committed or zeros.
#[test]
fn the_newest_sums_are_known() {
    let one = Location::At(Slot::One);
    let entries = [
        entry(1, 1, &[placed(0, one), placed(4, one)]),
        entry(1, 2, &[placed(1, one)]),
        entry(1, 3, &[kept(4, Slot::One)]),
        entry(1, 4, &[placed(2, Location::Unused)]),
        entry(1, 5, &[placed(8, Location::At(Slot::Zero))]),
    ];
    let known = |count: usize| {
        let plan = planned(&entries[..count]).unwrap();
        plan.summed().map(|(_, block, slot, sum)| (block, slot.index(), sum)).collect::<Vec<_>>()
    };
    assert_eq!(known(1), [(0, 1, 0x100), (1, 1, 0x101), (4, 1, 0x102), (5, 1, 0x103)]);
    assert_eq!(
        known(2),
        [(0, 1, 0x100), (1, 1, 0x200), (2, 1, 0x201), (4, 1, 0x102), (5, 1, 0x103)]
    );
    assert_eq!(known(4), [(0, 1, 0x100), (1, 1, 0x200), (5, 1, 0x103)]);
    let with_zero = known(5);
    assert_eq!(with_zero[..2], [(8, 0, 0x500), (9, 0, 0x501)]);
    assert_eq!(with_zero[2..], known(4));
}

/// Goal: an epoch that was being committed and the open one after it stay two, in their order, and
/// their extents are nobody else's.
#[test]
fn epochs_stay_apart() {
    let new = |pair, generation, extents| Record::Binding {
        pair: PairId(pair),
        binding: Binding {
            owner: Some((VolumeId(7), LogicalExtent(1))),
            ..binding(generation, extents)
        },
    };
    let one = Location::At(Slot::One);
    let place = Record::placed(PairId(2), Generation(1), &(4..5), Location::At(Slot::Zero));
    let entries =
        [entry(4, 1, &[placed(0, one)]), entry(5, 2, &[new(2, 1, [Some(9), None]), place])];
    let plan = planned(&entries).unwrap();
    assert_eq!((plan.domains[&7].len(), plan.blocks()), (2, 3));
    let seen = plan.applied(&lines()).unwrap();
    assert_eq!(seen[2].binding.extents, [Some(ExtentId(9)), None]);
    let twice = planned(&[entry(5, 2, &[new(2, 1, [Some(4), None])])]).unwrap();
    assert!(twice.applied(&lines()).unwrap_err().contains("two pairs"));
    let twice = planned(&[entry(5, 2, &[new(0, 1, [Some(8), None]), new(2, 1, [Some(9), None])])]);
    assert!(twice.unwrap().applied(&lines()).unwrap_err().contains("two pairs"));
}

/// Goal: what contradicts itself or the flags is refused.
#[test]
fn contradictions_are_refused() {
    let (zero, one) = (Location::At(Slot::Zero), Location::At(Slot::One));
    let stray = Record::placed(PairId(2), Generation(1), &(0..1), zero);
    let beyond = Record::placed(PairId(3), Generation(1), &(0..1), zero);
    let theirs = Binding { owner: Some((VolumeId(8), LogicalExtent(0))), ..binding(2, [None; 2]) };
    let theirs = Record::Binding { pair: PairId(1), binding: theirs };
    for records in
        [&[stray][..], &[beyond], &[theirs], &[bound(2, [Some(3), None]), placed(0, one)]]
    {
        planned(&[entry(1, 1, records)]).unwrap_err();
    }
    let overlapping = [entry(1, 1, &[placed(0, one)]), entry(2, 2, &[placed(1, one)])];
    planned(&overlapping).unwrap_err();
    let three: Vec<_> = [1, 2, 3].map(|n| entry(n, n, &[placed(10 * n as usize, one)])).into();
    planned(&three).unwrap_err();
}
