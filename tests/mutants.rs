//! Every planted fault is found: random seeds against each, until one fails.
//!
//! | variable | what | default |
//! | --- | --- | --- |
//! | `FLIPSIDE_SEEDS` | the seeds that a mutant may survive at most | 5000 |
//! | `FLIPSIDE_SECONDS` | the time that a mutant may survive at most | no limit |
//! | `FLIPSIDE_SEED` | the first seed | 1 |
//! | `FLIPSIDE_MUTANTS` | only those whose names contain this | all |
//! | `FLIPSIDE_TRACE` | `1` prints every call of the environment, on one thread | |

use std::io::Write as _;
use std::time::{Duration, Instant};

use flipside::mutants::{Mutant, choose};
use flipside::sim::flipside::Flipside;
use flipside::sim::sweep::{Sweep, sweep};

const SEEDS: u64 = 5000;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

fn plan() -> Sweep {
    let loud = number("FLIPSIDE_TRACE").is_some_and(|loud| loud > 0);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Sweep {
        base: number("FLIPSIDE_SEED").unwrap_or(1),
        count: number("FLIPSIDE_SEEDS").unwrap_or(SEEDS),
        time: number("FLIPSIDE_SECONDS").map(Duration::from_secs),
        threads: if loud { 1 } else { cores },
        loud,
        failures_max: 1,
        twice_every: 0,
    }
}

/// The first seed that fails, and how.
fn hunt(plan: Sweep) -> Option<(u64, String)> {
    let failures = sweep::<Flipside>(plan, Duration::MAX, |_| {}).err()?;
    let first = failures.iter().min_by_key(|failure| failure.seed)?;
    Some((first.seed, first.to_string()))
}

/// Goal: the simulator finds each of the faults in `flipside::mutants`, and none where there is
/// none.
#[test]
fn every_mutant_is_found() {
    let only = std::env::var("FLIPSIDE_MUTANTS").unwrap_or_default();
    let mut out = std::io::stderr();
    let mut survivors = Vec::new();
    writeln!(out, "| mutant | seeds | time | found by |\n| --- | --- | --- | --- |").unwrap();
    for mutant in Mutant::ALL.iter().copied().filter(|m| format!("{m:?}").contains(&only)) {
        choose(Some(mutant));
        let started = Instant::now();
        let found = hunt(plan());
        choose(None);
        let took = started.elapsed().as_secs_f64();
        let (seed, how) = found.unwrap_or_else(|| {
            survivors.push(mutant);
            (plan().count, "NOT FOUND in as many, or in the time".to_owned())
        });
        let how: String = how.lines().next().unwrap_or_default().chars().take(90).collect();
        let what = mutant.what();
        writeln!(out, "| {mutant:?}: {what} | {seed} | {took:.1} s | {how} |").unwrap();
    }
    assert!(survivors.is_empty(), "not found: {survivors:?}");
}
