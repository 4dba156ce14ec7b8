//! What a crash may leave is counted exactly: nothing twice, nothing left out, nothing else.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;

const SECTOR: usize = 512;
const SECTORS: usize = 5;
const LEN: u64 = (SECTORS * SECTOR) as u64;

fn disk() -> Medium {
    Medium::new(LEN, SECTOR as u32, true, None)
}

fn filled(sectors: usize, fill: u8) -> Arc<[u8]> {
    vec![fill; sectors * SECTOR].into()
}

/// Writes sectors; the write is under way.
fn begin(disk: &mut Medium, sector: u64, sectors: usize, fill: u8, how: Durability) -> u64 {
    disk.begin(sector * SECTOR as u64, filled(sectors, fill), how)
}

/// Writes one sector, to the end.
fn write(disk: &mut Medium, sector: u64, fill: u8, how: Durability) {
    let id = begin(disk, sector, 1, fill, how);
    disk.complete(id);
}

/// The first byte of each sector; `None` where it cannot be read.
fn seen(media: &Media) -> Vec<Option<u8>> {
    let mut rng = Rng::new(1);
    let mut read = |sector: usize| {
        let mut out = [0; SECTOR];
        let read = media.disks[0].read((sector * SECTOR) as u64, &mut out, &mut rng);
        assert!(out.iter().all(|byte| *byte == out[0]), "a sector is whole");
        read.is_ok().then_some(out[0])
    };
    (0..SECTORS).map(&mut read).collect()
}

/// Sector 0 was written twice since it was durable, 1 and 2 are under one write, 3 was written and
/// then again durably, 4 never: and what the media were before all that.
fn busy() -> (Media, Media) {
    let origin = Media { disks: vec![disk()], nvram: None };
    let mut disk = disk();
    write(&mut disk, 0, 1, Durability::Volatile);
    write(&mut disk, 0, 2, Durability::Volatile);
    write(&mut disk, 3, 3, Durability::Volatile);
    write(&mut disk, 3, 4, Durability::Durable);
    begin(&mut disk, 1, 2, 5, Durability::Volatile);
    (Media { disks: vec![disk], nvram: None }, origin)
}

/// Goal: a loss of power leaves each combination of the sectors' versions once, and hashes tell
/// them apart; then each sector under write cannot be read, beside all others old and all new; what
/// was written durably has one version.
#[test]
fn each_combination_of_versions_once() {
    let (media, origin) = busy();
    let outcomes = media.outcomes(&origin);
    assert_eq!(outcomes.count(), 3 * 2 * 2);
    let all = outcomes.choose(12, 0);
    let powers = |kept: &&Survival| matches!(kept, Survival::Power(_));
    let powers: Vec<_> = all.iter().filter(powers).collect();
    let images: Vec<_> = powers.iter().map(|kept| seen(&outcomes.media(kept))).collect();
    let product = [0, 1, 2].into_iter().flat_map(|first| {
        [(0, 0), (0, 5), (5, 0), (5, 5)].map(|(second, third)| [first, second, third, 4, 0])
    });
    let product: BTreeSet<_> = product.map(|image| image.map(Some).to_vec()).collect();
    assert_eq!(images[..12].iter().cloned().collect::<BTreeSet<_>>(), product);
    let torn = [[Some(0), None, Some(0)], [Some(2), None, Some(5)]]
        .into_iter()
        .chain([[Some(0), Some(0), None], [Some(2), Some(5), None]])
        .map(|front| [&front[..], &[Some(4), Some(0)]].concat());
    assert_eq!(images[12..], torn.collect::<Vec<_>>());
    let hashes: BTreeSet<_> = all.iter().map(|kept| outcomes.hash(kept)).collect();
    assert_eq!(hashes.len(), all.len(), "every outcome has its own hash");
}

/// Goal: a killed process leaves what had completed, and a write under way as a whole or not at
/// all, or still under way; neither is durable by that.
#[test]
fn a_kill_leaves_writes_whole_or_not() {
    let (media, origin) = busy();
    let outcomes = media.outcomes(&origin);
    let kills = |kept: &Survival| matches!(kept, Survival::Kill { .. });
    let kills: Vec<_> = outcomes.choose(12, 0).into_iter().filter(kills).collect();
    let kill = |arrive, late| Survival::Kill { arrive, late };
    assert_eq!(kills, [kill(0, 0), kill(1, 0), kill(0, 1)]);
    let mut late = outcomes.media(&kills[2]);
    assert_eq!(late.disks[0].late().collect::<Vec<_>>(), [0]);
    late.disks[0].complete(0);
    assert_eq!(seen(&late), [2, 5, 5, 4, 0].map(Some));
    for (kept, arrived) in kills.iter().zip([0, 5]) {
        let media = outcomes.media(kept);
        let expected = [2, arrived, arrived, 4, 0].map(Some);
        assert_eq!(seen(&media), expected);
        let lost = media.outcomes(&origin);
        assert_eq!(lost.count(), if arrived == 0 { 3 } else { 12 }, "{kept:?}");
    }
}

/// Goal: beyond what can be tried all at once, the extremes are there, and nothing that is no
/// outcome; of many writes under way the first six arrive or not, the others do not.
#[test]
fn samples_are_outcomes() {
    let (media, origin) = busy();
    let outcomes = media.outcomes(&origin);
    let whole: BTreeSet<_> = (0..12).map(|n| outcomes.nth(n)).collect();
    let some = outcomes.some(20);
    assert!(some.iter().all(|kept| whole.contains(kept)));
    assert_eq!(some.len(), 2 + 2 * 3 + 20);
    let ends = [vec![0, 0, 0], vec![2, 1, 1], vec![2, 0, 0], vec![2, 1, 0]];
    assert!(ends.iter().all(|kept| some.contains(kept)), "{some:?}");
    assert_eq!(outcomes.choose(11, 0).len(), 2 + 2 * 3 + 4 + 3, "as many are sampled");

    let mut disk = disk();
    (0..8).for_each(|fill| {
        begin(&mut disk, 4, 1, 10 + fill, Durability::Volatile);
    });
    let outcomes = Media { disks: vec![disk], nvram: None }.outcomes(&origin);
    let kills = outcomes.choose(0, 0).into_iter();
    let kills = kills.filter(|kept| matches!(kept, Survival::Kill { .. }));
    let at_once = |kept: &Survival| matches!(kept, Survival::Kill { late: 0, .. });
    let kills = kills.filter(at_once);
    let last: BTreeSet<_> = kills.map(|kept| seen(&outcomes.media(&kept))[4]).collect();
    assert_eq!(last, [0, 10, 11, 12, 13, 14, 15].map(Some).into());
}

/// Goal: a torn sector stays unreadable until a version arrives there.
#[test]
fn what_arrives_mends_a_torn_sector() {
    let (media, origin) = busy();
    let outcomes = media.outcomes(&origin);
    let mut torn = outcomes.media(&Survival::Power(vec![0, UNREADABLE, 0]));
    assert_eq!(seen(&torn)[1], None);
    begin(&mut torn.disks[0], 1, 1, 9, Durability::Volatile);
    let outcomes = torn.outcomes(&origin);
    let all = outcomes.choose(2, 0);
    let power = |kept: &&Survival| matches!(kept, Survival::Power(_));
    let sector = all.iter().filter(power).map(|kept| seen(&outcomes.media(kept))[1]);
    assert_eq!(sector.collect::<Vec<_>>(), [None, Some(9), None, None]);
    let [old, new] = [0, 1].map(|version| outcomes.hash(&Survival::Power(vec![version])));
    assert_ne!(old, new);
}

/// Goal: of a persist under way each word arrives or does not, on its own; words that it does not
/// change count for nothing. Its line may be poisoned instead. At a kill it arrives as a whole or
/// not.
#[test]
fn words_of_nvram_arrive_alone() {
    let origin = Media { disks: vec![disk()], nvram: Some(NvramMedium::new(64, 8, 7)) };
    let mut media = origin.clone();
    let nvram = media.nvram.as_mut().expect("it was put there");
    let mut same = [0; WORD];
    nvram.image.read(8, &mut same);
    let words = [[1; WORD], same, [2; WORD]].concat();
    nvram.begin(vec![(0, words.into())]);
    let outcomes = media.outcomes(&origin);
    assert_eq!(outcomes.count(), 4);
    let read = |kept: &Survival| {
        let (media, mut out) = (outcomes.media(kept), [0; 3 * WORD]);
        media.nvram.expect("it is still there").image.read(0, &mut out);
        assert_eq!(out[WORD..2 * WORD], same);
        (out[0] == 1, out[2 * WORD] == 2)
    };
    let all = outcomes.choose(4, 0);
    let left: Vec<_> = all.iter().map(read).collect();
    let (no, yes) = (false, true);
    let powers = [(no, no), (yes, no), (no, yes), (yes, yes)];
    assert_eq!(left, [&powers[..], &[(no, no), (no, yes)], &[(no, no), (yes, yes)]].concat());
    let poisoned = |kept: &Survival| {
        let nvram = outcomes.media(kept).nvram.expect("it is still there");
        nvram.read(0, &mut [0; WORD], &mut Rng::new(1)) == Err(0)
    };
    let bad: Vec<_> = all.iter().map(poisoned).collect();
    assert_eq!(bad, [no, no, no, no, yes, yes, no, no]);
    let hashes: BTreeSet<_> = all.iter().map(|kept| outcomes.hash(kept)).collect();
    assert_eq!(hashes.len(), all.len(), "every outcome has its own hash");
}
