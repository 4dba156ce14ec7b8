//! Many seeds, as the environment asks for them, with a bar; and what is said of those that fail.
//!
//! | variable | what | default |
//! | --- | --- | --- |
//! | `FLIPSIDE_SEED` | the first seed | 1 |
//! | `FLIPSIDE_SEEDS` | how many | the test's own, or any number within `FLIPSIDE_SECONDS` |
//! | `FLIPSIDE_SECONDS` | how long | until the last seed |
//! | `FLIPSIDE_FAILURES` | stop after so many failures | 1 |
//! | `FLIPSIDE_TRACE` | `1` prints every call of the environment, on one thread | |

use std::time::{Duration, Instant};

use flipside::sim::run::{Failure, Report};
use flipside::sim::sweep::{Sweep, Totals, sweep};
use indicatif::{ProgressBar, ProgressStyle};

const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// One seed in so many runs twice, and must do the same again.
const TWICE_EVERY: u64 = 50;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// The seeds that are asked for: `count` of them, if nothing else is said.
fn asked(count: u64) -> Sweep {
    let loud = number("FLIPSIDE_TRACE").is_some_and(|loud| loud > 0);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let time = number("FLIPSIDE_SECONDS").map(Duration::from_secs);
    let default = if time.is_some() { u64::MAX } else { count };
    Sweep {
        base: number("FLIPSIDE_SEED").unwrap_or(1),
        count: number("FLIPSIDE_SEEDS").unwrap_or(default),
        time,
        threads: if loud { 1 } else { cores },
        loud,
        failures_max: number("FLIPSIDE_FAILURES").unwrap_or(1) as usize,
        twice_every: if loud { 0 } else { TWICE_EVERY },
    }
}

/// Runs them, `count` if nothing else is said; prints how to replay the ones that fail, in the test
/// of that name.
pub fn run(
    test: &str,
    count: u64,
    run_seed: impl Fn(u64, bool) -> Result<Report, Failure> + Sync,
) -> Result<Totals, Vec<Failure>> {
    let seeds = asked(count);
    let bar = bar(&seeds);
    let started = Instant::now();
    let result = sweep(seeds, run_seed, PROGRESS_EVERY, |totals| {
        let timed = seeds.count == u64::MAX;
        let place = if timed { started.elapsed().as_secs() } else { totals.seeds };
        bar.set_position(place);
        bar.set_message(totals.to_string());
    });
    bar.finish_and_clear();
    match &result {
        Ok(totals) => {
            eprintln!("{totals} in {:.1} s", started.elapsed().as_secs_f64());
            eprintln!("{}", totals.rates(started.elapsed(), seeds.threads));
            eprintln!("faults struck: {}", totals.did.struck);
        }
        Err(failures) => {
            for failure in failures {
                eprintln!(
                    "\n{failure}\nreplay with: FLIPSIDE_SEED={} FLIPSIDE_SEEDS=1 FLIPSIDE_TRACE=1 \
                     cargo test --test {test} -- --nocapture",
                    failure.seed
                );
            }
        }
    }
    result
}

/// A bar over the seeds or, where their number is open, over the seconds; none without a terminal.
fn bar(seeds: &Sweep) -> ProgressBar {
    let seconds = seeds.time.map_or(0, |time| time.as_secs());
    let length = if seeds.count == u64::MAX { seconds } else { seeds.count };
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta}\n{msg}");
    let bar = ProgressBar::new(length);
    bar.with_style(style.expect("a template that indicatif knows"))
}
