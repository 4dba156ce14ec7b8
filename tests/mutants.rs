//! Every planted fault is found: random seeds against each, until one fails.
//!
//! | variable | what | default |
//! | --- | --- | --- |
//! | `FLIPSIDE_SEEDS` | the seeds that a mutant may survive at most | 5000 |
//! | `FLIPSIDE_MUTANTS` | only those whose names contain this | all |

use std::io::Write as _;
use std::time::{Duration, Instant};

use flipside::mutants::{Mutant, choose};
use flipside::sim::flipside::Flipside;
use flipside::sim::sweep::{Sweep, sweep};

const SEEDS: u64 = 5000;

fn seeds() -> u64 {
    let text = std::env::var("FLIPSIDE_SEEDS").ok();
    text.map_or(SEEDS, |text| text.parse().expect("FLIPSIDE_SEEDS is a number"))
}

/// The first seed that fails, and how.
fn hunt(seeds: u64) -> Option<(u64, String)> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let plan =
        Sweep { base: 1, count: seeds, threads, loud: false, failures_max: 1, twice_every: 0 };
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
        let found = hunt(seeds());
        choose(None);
        let took = started.elapsed().as_secs_f64();
        let (seed, how) = found.unwrap_or_else(|| {
            survivors.push(mutant);
            (seeds(), "NOT FOUND".to_owned())
        });
        let how: String = how.lines().next().unwrap_or_default().chars().take(90).collect();
        let what = mutant.what();
        writeln!(out, "| {mutant:?}: {what} | {seed} | {took:.1} s | {how} |").unwrap();
    }
    assert!(survivors.is_empty(), "not found: {survivors:?}");
}
