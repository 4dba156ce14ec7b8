//! '721 claims 1 and 13: many journal areas committed in one transaction, the smaller side of each
//! copied.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/simulated.rs"]
mod simulated;

use std::time::Duration;

use flipside::env::sim::{Crash, Limit};
use flipside::format::layout::Geometry;
use flipside::sim::engine::{Running as _, Volume as _, Zeroing};
use flipside::sim::flipside::{Flipside, Serving};
use flipside::unit::{Config, SettlePolicy, SettleReport};
use simulated::{formatted, started};

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 50_000_000 };
const BLOCK: u64 = 512;
const BLOCKS: u64 = 32;
const EXTENT: u64 = BLOCK * BLOCKS;

/// What is done to an area: blocks written and committed first, blocks overwritten after that, and
/// blocks of those trimmed again. Says by hand what its settling must be.
struct Case {
    used: u64,
    overwritten: u64,
    trimmed: u64,
    swap: bool,
    copied: u64,
}

const CASES: [Case; 6] = [
    // |D| = 20 > |C| = 12: the 12 are copied, and the areas swapped.
    Case { used: 32, overwritten: 20, trimmed: 0, swap: true, copied: 12 },
    // |D| = 5 < |C| = 27: the 5 are copied back.
    Case { used: 32, overwritten: 5, trimmed: 0, swap: false, copied: 5 },
    // |D| = |C| = 16: not greater, so copied back.
    Case { used: 32, overwritten: 16, trimmed: 0, swap: false, copied: 16 },
    // |C| = 0: all was overwritten; swapped without a copy.
    Case { used: 32, overwritten: 32, trimmed: 0, swap: true, copied: 0 },
    // |D| = 0: what was overwritten was trimmed; committed without a copy.
    Case { used: 32, overwritten: 4, trimmed: 4, swap: false, copied: 0 },
    // Of an area used in part, |D| = 3 > |C| = 2.
    Case { used: 5, overwritten: 3, trimmed: 0, swap: true, copied: 2 },
];

/// Where the flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Device,
    Nvram,
    Server,
}

const PLACES: [Place; 3] = [Place::Device, Place::Nvram, Place::Server];

fn engine(areas: u64, batch: usize, place: Place) -> Flipside {
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
    let config = Config {
        commit_interval: None,
        settle: SettlePolicy::Pressure,
        settle_batch: batch,
        tell_interval: Duration::from_millis(20),
        ..Config::default()
    };
    // Free extents never run short here, so that only the command settles.
    let plain = Flipside::plain(geometry, 3 * areas as u32, 8, areas * EXTENT, config);
    match place {
        Place::Device => plain,
        Place::Nvram => plain.with_nvrams(&[0], Some(0)),
        Place::Server => plain.at_the_server(),
    }
}

fn bytes(area: u64, round: u8, blocks: u64) -> Vec<u8> {
    (0..blocks * BLOCK).map(|i| (area as u8) ^ round ^ (i / BLOCK) as u8).collect()
}

/// Dirties every area as its case says.
async fn dirty(serving: &Serving, areas: u64) {
    let volume = serving.volumes().remove(0);
    for area in 0..areas {
        let case = &CASES[area as usize % CASES.len()];
        volume.write(area * EXTENT, bytes(area, 1, case.used), false).await.expect("written");
    }
    volume.flush().await.expect("committed");
    for area in 0..areas {
        let case = &CASES[area as usize % CASES.len()];
        volume
            .write(area * EXTENT, bytes(area, 2, case.overwritten), false)
            .await
            .expect("written");
    }
    volume.flush().await.expect("committed");
    for area in 0..areas {
        let len = CASES[area as usize % CASES.len()].trimmed * BLOCK;
        if len > 0 {
            volume.zero(area * EXTENT, len, Zeroing::Trim, false).await.expect("trimmed");
        }
    }
    volume.flush().await.expect("committed");
    assert_eq!(serving.unit().journal_areas() as u64, areas);
}

/// Checks that every area reads as its case leaves it.
async fn check(serving: &Serving, areas: u64) {
    let volume = serving.volumes().remove(0);
    for area in 0..areas {
        let case = &CASES[area as usize % CASES.len()];
        let mut expected = bytes(area, 1, case.used);
        expected.resize(EXTENT as usize, 0);
        let overwritten = bytes(area, 2, case.overwritten);
        expected[..overwritten.len()].copy_from_slice(&overwritten);
        expected[..(case.trimmed * BLOCK) as usize].fill(0);
        let read = volume.read(area * EXTENT, EXTENT as usize).await.expect("read");
        assert!(read == expected, "area {area} reads as something else");
    }
}

fn expected_report(areas: u64) -> SettleReport {
    let mut report = SettleReport::default();
    for area in 0..areas {
        let case = &CASES[area as usize % CASES.len()];
        report.swaps += u64::from(case.swap);
        report.commits += u64::from(!case.swap);
        report.blocks_copied += case.copied;
    }
    report
}

/// Goal: 1,000 areas dirtied and settled at a batch of 100 are exactly 10 transactions of the
/// metadata server, with the mix of swaps and commits, and the copies, that the counts of dirty
/// and clean blocks demand; and the contents stay what they were. Wherever the flags are.
#[test]
fn a_thousand_areas_in_ten_transactions() {
    PLACES.into_iter().for_each(a_thousand_areas);
}

fn a_thousand_areas(place: Place) {
    const AREAS: u64 = 1000;
    let engine = engine(AREAS, 100, place);
    let mut machine = formatted(&engine, 1, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let handle = serving.clone();
    let (report, before, after) = env
        .run(LIMIT, async move {
            dirty(&handle, AREAS).await;
            // All news of bindings are told before the count begins.
            let sleeper = handle.env().clone();
            flipside::env::Env::sleep(&sleeper, Duration::from_secs(10)).await;
            let before = handle.unit().server_status().await.expect("the server answers");
            let report = handle.unit().settle(None).await.expect("settled");
            let after = handle.unit().server_status().await.expect("the server answers");
            check(&handle, AREAS).await;
            (report, before, after)
        })
        .expect("everything ends");
    assert_eq!(report, expected_report(AREAS));
    assert_eq!(after.transactions - before.transactions, 10);
    assert_eq!(after.swaps - before.swaps, report.swaps);
    assert_eq!(after.commits - before.commits, report.commits);
    assert_eq!(serving.unit().journal_areas(), 0);
    serving.check().expect("the unit agrees with itself");
}

/// Goal: wherever a crash strikes while areas are settled, each batch is settled as a whole or not
/// at all, nothing committed is lost, and the rest can be settled afterwards.
#[test]
fn a_crash_leaves_each_batch_whole_or_absent() {
    PLACES.into_iter().for_each(crash_everywhere);
}

fn crash_everywhere(place: Place) {
    const AREAS: u64 = 18;
    const BATCH: usize = 6;
    let mut crash_at = 1;
    let mut seen = std::collections::BTreeSet::new();
    loop {
        let engine = engine(AREAS, BATCH, place);
        let mut machine = formatted(&engine, crash_at, LIMIT);
        let (env, serving) = started(&mut machine, &engine, LIMIT);
        let handle = serving.clone();
        env.run(LIMIT, async move { dirty(&handle, AREAS).await }).expect("dirtied");
        env.crash_in(Some(crash_at));
        let handle = serving.clone();
        let settled = env.run(LIMIT, async move { handle.unit().settle(None).await });
        drop(serving);
        machine.halt(&env, Crash::Power);
        let (env, serving) = started(&mut machine, &engine, LIMIT);
        let left = serving.unit().journal_areas();
        assert_eq!(left % BATCH, 0, "a crash at call {crash_at} left {left} areas");
        seen.insert(left);
        let handle = serving.clone();
        env.run(LIMIT, async move {
            check(&handle, AREAS).await;
            handle.unit().settle(None).await.expect("settled");
            check(&handle, AREAS).await;
        })
        .expect("everything ends");
        assert_eq!(serving.unit().journal_areas(), 0);
        serving.check().expect("the unit agrees with itself");
        if settled.is_ok() {
            break;
        }
        crash_at += 1;
    }
    assert!(crash_at > 30, "there are many places to crash at, and {crash_at} were tried");
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 6, 12, 18], "every number of batches");
}
