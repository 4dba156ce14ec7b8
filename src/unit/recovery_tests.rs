//! Every decision of a recovery about what home and server say of the same pairs.

use super::*;
use crate::format::blocks::BlockMap;
use crate::format::ids::{ExtentId, Generation, Slot, VolumeId};
use crate::format::record::Binding;

const VOLUME: VolumeId = VolumeId(3);
const EXTENTS: u32 = 10;

/// A pair of the volume.
fn line(logical: u32, generation: u32, extents: [Option<u32>; 2]) -> Line {
    let binding = Binding {
        generation: Generation(generation),
        owner: Some((VOLUME, LogicalExtent(logical))),
        extents: extents.map(|extent| extent.map(ExtentId)),
        data_slot: Slot::Zero,
    };
    Line { binding, map: BlockMap::NONE }
}

/// A pair that was released in that generation.
fn released(generation: u32) -> Line {
    let generation = Generation(generation);
    Line { binding: Binding { generation, ..Binding::FREE }, map: BlockMap::NONE }
}

/// The pair of a line as the server knows it.
fn known(pair: u32, line: &Line) -> (PairId, PairRecord) {
    let Binding { generation, owner, extents: slots, data_slot } = line.binding;
    let (volume, logical) = owner.expect("a pair that backs something");
    let pair = PairId(pair);
    (pair, PairRecord { volume, logical, pair, generation, slots, data_slot })
}

/// Of ten extents all but the last are granted.
fn pool() -> ExtentPool {
    let run = ExtentRun { start: ExtentId(0), count: EXTENTS - 1 };
    ExtentPool::new(EXTENTS, &[run], 5)
}

fn damage<T>(result: Result<T, RecoverError>) -> Option<String> {
    match result {
        Ok(_) => None,
        Err(RecoverError::Damaged(what)) => Some(what),
        Err(other) => panic!("{other}"),
    }
}

/// Goal: what a server grants is taken only where it is in order, disjoint and in the pool; a store
/// of another pool is damage, and no panic.
#[test]
fn grants_are_checked() {
    let runs = |runs: &[(u32, u32)]| -> Vec<ExtentRun> {
        let run = |&(start, count)| ExtentRun { start: ExtentId(start), count };
        runs.iter().map(run).collect()
    };
    for (granted, sound) in [
        (&[][..], true),
        (&[(0, 10)], true),
        (&[(0, 3), (3, 1), (5, 5)], true),
        (&[(0, 3), (2, 1)], false),
        (&[(5, 1), (0, 1)], false),
        (&[(0, 11)], false),
        (&[(0, 1), (10, 1)], false),
    ] {
        let result = damage(check_grants(&runs(granted), EXTENTS));
        assert_eq!(result.is_none(), sound, "{granted:?}: {result:?}");
    }
}

/// Goal: extents are taken once each; one that two pairs have, that was never granted, or that
/// there is not, is damage.
#[test]
fn each_extent_has_one_pair() {
    let mut free = pool();
    let lines = [line(0, 1, [Some(0), Some(4)]), released(3), line(1, 1, [None, Some(8)])];
    claim_extents(&mut free, &lines).unwrap();
    assert_eq!((free.available(), free.data_used()), (EXTENTS - 1 - 3, 2));
    for taken in [0, 4, 9, 10, 64, u32::MAX - 1] {
        let lines = [line(0, 1, [Some(0), Some(4)]), line(1, 1, [Some(taken), None])];
        let what = damage(claim_extents(&mut pool(), &lines)).expect("it is found");
        assert!(what.contains("pair 1") && what.contains(&taken.to_string()), "{what}");
    }
}

/// Goal: the server is told of what it does not know or knows from before, and of nothing else;
/// what was released comes first. It knows nothing that is newer than the home.
#[test]
fn the_server_is_told_what_it_missed() {
    let (same, older) = (line(0, 4, [Some(0), None]), line(1, 5, [Some(1), None]));
    let newer = line(1, 6, [Some(1), Some(2)]);
    let of = BTreeMap::from([known(0, &same), known(1, &older), known(2, &older)]);
    let lines = [same, newer, released(9), line(3, 1, [Some(3), None])];
    let told = missed(&of, &lines).unwrap();
    let [
        Primitive::ReleasePair(first),
        Primitive::BindData(new),
        Primitive::AssociateDataJournal(grown),
    ] = told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!((first.pair, first.generation, first.slots), (PairId(2), Generation(9), [None; 2]));
    assert_eq!((new.pair, new.logical), (PairId(3), LogicalExtent(3)));
    assert_eq!((grown.pair, grown.generation), (PairId(1), Generation(6)));

    let of_newer = BTreeMap::from([known(1, &newer)]);
    for home in [&[same, older][..], &[same, released(5)], &[same]] {
        let what = damage(missed(&of_newer, home)).expect("the home is older");
        assert!(what.contains("pair 1 in generation 6"), "{what}");
    }
}

/// Goal: a store that lacks an extent of a pair, as it was made anew, is told from one that does
/// not, wherever the runs end.
#[test]
fn missing_grants_are_seen() {
    let lines = [line(0, 1, [Some(2), None]), released(3), line(1, 1, [Some(7), Some(4)])];
    let run = |(start, count)| ExtentRun { start: ExtentId(start), count };
    for (runs, all) in [
        (vec![(0, 10)], true),
        (vec![(2, 1), (4, 1), (7, 1)], true),
        (vec![(2, 3), (6, 2)], true),
        (vec![], false),
        (vec![(0, 2), (3, 7)], false),
        (vec![(0, 7), (8, 2)], false),
        (vec![(0, 4), (5, 5)], false),
    ] {
        let runs: Vec<ExtentRun> = runs.into_iter().map(run).collect();
        assert_eq!(has_all(&runs, &lines), all, "{runs:?}");
    }
    assert!(has_all(&[], &[released(1)]));
}

/// Goal: pairs come to their volumes, and free ones to the pool of numbers; a pair of a volume that
/// there is not, of an extent beyond its end, or of one that another pair has, is damage.
#[test]
fn each_pair_has_its_place() {
    let geometry = Geometry::DEFAULT;
    let size = 2 * u64::from(geometry.extent_size());
    let volume = VolumeInfo { id: VOLUME, name: "v".into(), size, deleting: true };
    let build = |lines: &[Line], volumes: &[VolumeInfo]| {
        let space = (pool(), Grant::new(None), 5);
        build_state(geometry, (lines.to_vec(), lines), volumes, space, BTreeSet::from([7]))
    };
    let [first, second] = [0, 1].map(|logical| line(logical, 1, [Some(logical), None]));
    let state = build(&[released(1), first, second], std::slice::from_ref(&volume)).unwrap();
    assert_eq!(state.volumes[0].stage, Stage::Deleting);
    assert_eq!(state.volumes[0].pair(LogicalExtent(1)), Some(PairId(2)));
    assert!(state.free_pairs.len() == 1 && state.free_pairs.contains(0));
    assert_eq!(state.empty, BTreeSet::from([PairId(1), PairId(2)]));
    assert_eq!(state.stale_pages, BTreeSet::from([7]), "the pages that the replay changed");

    let beyond = line(2, 1, [Some(2), None]);
    let volumes = [volume];
    for (lines, volumes, words) in [
        (&[first][..], &[][..], "which there is not"),
        (&[first, beyond], &volumes, "which there is not"),
        (&[first, first], &volumes, "pairs 0 and 1 are both extent 0"),
    ] {
        let what = damage(build(lines, volumes)).expect("it is found");
        assert!(what.contains(words), "{what}");
    }
}

/// Goal: the lines that a server keeps come to their pairs, and all others are free; one of a pair
/// that there is not, or two of one pair, are damage.
#[test]
fn each_pair_has_one_line() {
    let [first, second] = [0, 1].map(|logical| line(logical, 1, [Some(logical), None]));
    let told = |pairs: &[(u32, Line)]| -> Vec<(PairId, Line)> {
        pairs.iter().map(|&(pair, line)| (PairId(pair), line)).collect()
    };
    let lines = kept(3, told(&[(0, first), (2, second)])).unwrap();
    assert_eq!(lines, [first, Line::FREE, second]);
    assert_eq!(kept(0, Vec::new()).unwrap(), []);
    for (pairs, wrong) in [
        (&[(3, first)][..], 3),
        (&[(0, first), (u32::MAX, second)], u32::MAX),
        (&[(1, first), (1, second)], 1),
        (&[(2, first), (0, second)], 0),
    ] {
        let what = damage(kept(3, told(pairs))).expect("it is found");
        assert!(what.contains(&format!("a line of pair {wrong},")), "{what}");
    }
}

/// Goal: of whole slots those bytes count that a block has; a group whose slots have less lacks
/// data, and says so.
#[test]
fn a_block_is_whole_or_damage() {
    let geometry = Geometry::DEFAULT;
    let block = geometry.block_size() as usize;
    let slots: Vec<u8> = (0..=255).cycle().take(2 * block).collect();
    for len in [block, block + 1, 2 * block] {
        let bytes = block_of(Sequence(5), &slots[..len], geometry).unwrap();
        assert_eq!(bytes[..], slots[..block]);
    }
    for len in [0, 1, block - 1] {
        let what = damage(block_of(Sequence(5), &slots[..len], geometry));
        assert_eq!(what.as_deref(), Some("group 5 lacks some data"));
    }
}
