//! The engine under simulation: thousands of seeds of random work, faults and crashes.
//!
//! | variable | what | default |
//! | --- | --- | --- |
//! | `FLIPSIDE_SEED` | the first seed | 1 |
//! | `FLIPSIDE_SEEDS` | how many | 2000 |
//! | `FLIPSIDE_FAILURES` | stop after so many failures | 1 |
//! | `FLIPSIDE_TRACE` | `1` prints every call of the environment, on one thread | |

use std::time::{Duration, Instant};

use flipside::sim::flipside::Flipside;
use flipside::sim::plan::Plan;
use flipside::sim::shrink::shrink;
use flipside::sim::sweep::{Sweep, sweep};

const SEEDS: u64 = 2000;
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// One seed in so many runs twice, and must do the same again.
const TWICE_EVERY: u64 = 50;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// Goal: no promise is broken, nothing hangs and nothing is lost, whatever the seed; and a seed
/// runs the same way every time.
#[test]
fn seeds_keep_every_promise() {
    let loud = number("FLIPSIDE_TRACE").is_some_and(|loud| loud > 0);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let seeds = Sweep {
        base: number("FLIPSIDE_SEED").unwrap_or(1),
        count: number("FLIPSIDE_SEEDS").unwrap_or(SEEDS),
        threads: if loud { 1 } else { cores },
        loud,
        failures_max: number("FLIPSIDE_FAILURES").unwrap_or(1) as usize,
        twice_every: if loud { 0 } else { TWICE_EVERY },
    };
    let started = Instant::now();
    let result = sweep::<Flipside>(seeds, PROGRESS_EVERY, |totals| {
        eprintln!("{:>4} s: {totals}", started.elapsed().as_secs());
    });
    match result {
        Ok(totals) => eprintln!("{totals} in {:.1} s", started.elapsed().as_secs_f64()),
        Err(failures) => {
            for failure in &failures {
                eprintln!(
                    "\n{failure}\nreplay with: FLIPSIDE_SEED={} FLIPSIDE_SEEDS=1 FLIPSIDE_TRACE=1 \
                     cargo test --test sim -- --nocapture",
                    failure.seed
                );
            }
            if let Some(small) = shrink::<Flipside>(Plan::whole(failures[0].seed)) {
                eprintln!("\n{small}");
            }
            panic!("{} seeds failed", failures.len());
        }
    }
}
