//! The engine under simulation: thousands of seeds of random work, faults and crashes.
//! `support/seeds.rs` says which.

use flipside::env::sim::faults::TABLE;
use flipside::env::sim::{Fault, Faults, Limit, Machine, SimEnv};
use flipside::format::layout::Geometry;
use flipside::sim::engine::{Engine, Outcome, Refusal, Running, Volume};
use flipside::sim::flipside::{Flipside, Serving};
use flipside::sim::plan::Plan;
use flipside::sim::run::run_seed;
use flipside::sim::shrink::shrink;
use flipside::sim::sweep::Totals;
use flipside::unit::Config;

#[path = "support/seeds.rs"]
mod seeds;

const SEEDS: u64 = 2000;
/// From so many seeds on every row of the fault table must have struck, and every persist point
/// that was seen must have been crashed at.
const ENOUGH: u64 = 1000;
/// Where moves of the region persist what they do.
const MOVES: [&str; 3] =
    ["src/journal/relocate.rs", "src/journal/identity.rs", "src/journal/carry.rs"];

/// Goal: no promise is broken, nothing hangs and nothing is lost, whatever the seed; a seed runs
/// the same way every time; nothing that could be tried is left out.
#[test]
fn seeds_keep_every_promise() {
    match seeds::run("sim", SEEDS, run_seed::<Flipside>) {
        Ok(totals) => judge(&totals),
        Err(failures) => {
            if let Some(small) = shrink::<Flipside>(&Plan::whole(failures[0].seed)) {
                eprintln!("\n{small}");
            }
            panic!("{} seeds failed", failures.len());
        }
    }
}

/// Whether what was done was enough.
fn judge(totals: &Totals) {
    let points = &totals.did.points;
    // A pool moves once in a while only; `tests/flags_move.rs` crashes at every call of moves.
    let missed = points.seen.difference(&points.crashed);
    let missed: Vec<_> = missed.filter(|point| !MOVES.contains(&point.file)).collect();
    let (seen, crashed) = (points.seen.len(), points.crashed.len());
    eprintln!("persist points: {seen} seen, {crashed} crashed at");
    eprintln!("{} warm recoveries had to find all that was acknowledged", totals.did.warm);
    for point in &points.seen {
        eprintln!("    {point}{}", if missed.contains(&point) { ", never crashed at" } else { "" });
    }
    assert!(
        totals.did.unexplained * 1000 <= totals.did.images,
        "{} images unjudged",
        totals.did.unexplained
    );
    if totals.seeds >= ENOUGH {
        for (row, count) in TABLE.iter().zip(totals.did.struck.0) {
            assert!(count > 0, "no {} in {} seeds", row.name, totals.seeds);
        }
        assert!(totals.did.warm > 0, "no recovery was warm");
        assert!(missed.is_empty(), "{} persist points were never crashed at", missed.len());
    }
}

/// Blocks of an extent, of 512 bytes each.
const BLOCKS: u64 = 32;
const EXTENT: u64 = BLOCKS * 512;
const HOUR: Limit = Limit { time_ns: 3_600_000_000_000, steps: 3_000_000 };

/// Writes every `step`th block of an extent, durably.
fn write(env: &SimEnv, serving: &Serving, extent: u64, step: usize) -> Outcome<()> {
    let volume = serving.volumes().remove(0);
    let writes = async move {
        for block in (0..BLOCKS).step_by(step) {
            volume.write(extent * EXTENT + block * 512, vec![1; 512], true).await?;
        }
        Ok(())
    };
    env.run(HOUR, writes).expect("a write ends, one way or the other")
}

/// Goal: where no extent can be given back because what a settle must copy cannot be read, a write
/// that waits for one is refused after a while; and once it can be read, writes go on. (Found by
/// the simulator as a write that waited for ever: a settle was tried again and again.)
#[test]
fn bad_sectors_keep_nobody_waiting() {
    let geometry = Geometry::new(512, EXTENT as u32).expect("sound sizes");
    let engine = Flipside::plain(geometry, 8, 2, 6 * EXTENT, Config::default());
    let mut machine = Machine::new(1, &engine.shape());
    let env = machine.boot(Faults::none());
    let (maker, starter) = (engine.clone(), engine.clone());
    let (storage, handle) = (machine.storage(), env.clone());
    let started = async move {
        maker.format(handle.clone(), storage.clone()).await?;
        starter.open(handle, storage).await
    };
    let serving = env.run(HOUR, started).expect("no crash").expect("a fresh pool");
    for extent in 0..6 {
        assert_eq!(write(&env, &serving, extent, 1), Ok(()));
    }
    env.set_faults(Faults::none().with(Fault::BadSector, 1_000_000));
    let ends: Vec<_> = (0..6).map(|extent| write(&env, &serving, extent, 2)).collect();
    assert!(ends.contains(&Err(Refusal::NoSpace)), "{ends:?}");
    env.set_faults(Faults::none());
    env.heal();
    for extent in 0..6 {
        assert_eq!(write(&env, &serving, extent, 2), Ok(()));
    }
}
