//! The engine at small scope: every crash of a few operations on a few blocks, in both places of
//! the flags, from a fresh volume and from one that has dirty blocks; and the same with each write
//! and each flush of a disk failing.
//!
//! Without variables a fixed part runs ([`TIERS`]). With any of these, all of it, or one in
//! `FLIPSIDE_EVERY`:
//!
//! | variable | what | default |
//! | --- | --- | --- |
//! | `FLIPSIDE_ACTIONS` | operations at most | 3 |
//! | `FLIPSIDE_DEPTH` | how deep crashes nest inside recoveries | 2 |
//! | `FLIPSIDE_EVERY` | of so many sequences one is looked at | 1 |
//! | `FLIPSIDE_ERRORS` | of so many of these one is looked at with errors, too | 1 |
//! | `FLIPSIDE_NESTED` | images of a crash inside a recovery, at most | 64 |
//! | `FLIPSIDE_BLOCK` | block size in bytes | 512 |

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use flipside::format::layout::Geometry;
use flipside::sim::action::Action;
use flipside::sim::engine::Zeroing;
use flipside::sim::exhaustive::{Case, Counts, Explorer, Scope, sequences};
use flipside::sim::flipside::Flipside;
use indicatif::{ProgressBar, ProgressStyle};

/// The smallest extent there may be, in bytes.
const EXTENT_MIN: u32 = 16 << 10;
/// Blocks to an extent, where that is enough for the smallest extent.
const BLOCKS: u32 = 8;
const IMAGES_MAX: u64 = 4096;
const SAMPLE: u64 = 64;
/// Unless told otherwise.
const NESTED_MAX: u64 = 64;

/// Which sequences are looked at.
#[derive(Clone, Copy)]
struct Tier {
    /// Actions to a sequence.
    lengths: (usize, usize),
    /// How deep crashes nest.
    depth: u32,
    /// Of so many sequences one.
    every: usize,
    /// Of so many of these one, with each write and flush failing, too.
    errors: usize,
}

/// What every test run looks at: everything short without nesting, some of the rest.
const TIERS: [Tier; 4] = [
    Tier { lengths: (1, 2), depth: 0, every: 1, errors: 8 },
    Tier { lengths: (3, 3), depth: 0, every: 17, errors: 25 },
    Tier { lengths: (1, 2), depth: 1, every: 23, errors: 20 },
    Tier { lengths: (1, 1), depth: 2, every: 15, errors: 1 },
];

/// A volume, and what is done on it that begins with one action.
struct Job {
    nvram: bool,
    used: bool,
    tier: Tier,
    /// Each with whether writes and flushes fail, too.
    sequences: Vec<(Vec<Action>, bool)>,
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

fn tiers() -> Vec<Tier> {
    let names = ["FLIPSIDE_ACTIONS", "FLIPSIDE_DEPTH", "FLIPSIDE_EVERY"];
    if names.iter().all(|name| number(name).is_none()) {
        return TIERS.to_vec();
    }
    let [actions, depth, every] = names.map(number);
    vec![Tier {
        lengths: (1, actions.unwrap_or(3) as usize),
        depth: depth.unwrap_or(2) as u32,
        every: every.unwrap_or(1) as usize,
        errors: number("FLIPSIDE_ERRORS").unwrap_or(1) as usize,
    }]
}

fn geometry() -> Geometry {
    let block = number("FLIPSIDE_BLOCK").unwrap_or(512) as u32;
    Geometry::new(block, (block * BLOCKS).max(EXTENT_MIN)).expect("sound sizes")
}

fn write(granules: Range<u32>, fua: bool) -> Action {
    Action::Write { volume: 0, range: granules, fua }
}

fn trim(range: Range<u32>) -> Action {
    Action::Zero { volume: 0, range, how: Zeroing::Trim, fua: false }
}

/// The last two blocks of the first extent, and the first block of the second: in granules, four of
/// which are a block.
fn blocks() -> [Range<u32>; 3] {
    let border = geometry().blocks_per_extent() * 4;
    [border - 8..border - 4, border - 4..border, border..border + 4]
}

/// Everything that may be done: on a block, another one of its extent, one of another extent, and
/// over the borders between them.
fn actions() -> Vec<Action> {
    let [x, y, z] = blocks();
    let both = y.start..z.end;
    vec![
        write(x.clone(), false),
        write(y.clone(), false),
        write(z.clone(), false),
        write(both.clone(), false),
        write(y.start + 1..y.end - 1, false),
        write(x.start + 2..y.end - 2, false),
        write(y.start + 2..z.end - 2, false),
        write(y.clone(), true),
        write(z.clone(), true),
        write(both.clone(), true),
        trim(y),
        trim(z),
        trim(both),
        Action::Flush(0),
        Action::Settle,
    ]
}

fn jobs() -> Vec<Job> {
    let actions = actions();
    let mut jobs = Vec::new();
    for tier in tiers() {
        let (shortest, longest) = tier.lengths;
        let all = sequences(&actions, longest).into_iter();
        let all = all.filter(|s| s.len() >= shortest).step_by(tier.every).zip(0_usize..);
        let all: Vec<_> = all.map(|(s, place)| (s, place.is_multiple_of(tier.errors))).collect();
        for (nvram, used) in [(false, false), (false, true), (true, false), (true, true)] {
            for first in &actions {
                let mine = all.iter().filter(|(sequence, _)| sequence[0] == *first);
                jobs.push(Job { nvram, used, tier, sequences: mine.cloned().collect() });
            }
        }
    }
    jobs
}

/// Each sequence one after another, and at once in two orders of completion.
fn cases(actions: &[Action]) -> impl Iterator<Item = Case> {
    let ways = [(false, 0), (true, 0), (true, 1)];
    ways.into_iter().filter(|(at_once, _)| !at_once || actions.len() > 1).map(
        |(at_once, schedule)| Case { actions: actions.to_vec(), at_once, schedule, error: None },
    )
}

fn run(job: &Job, bar: &ProgressBar) -> Result<Counts, String> {
    let [x, y, z] = blocks();
    let all = write(x.start..z.end, false);
    let prelude = if job.used { vec![all, Action::Commit, write(y, false)] } else { Vec::new() };
    let engine = Flipside::small(geometry(), job.nvram);
    let depth = job.tier.depth;
    let nested_max = number("FLIPSIDE_NESTED").unwrap_or(NESTED_MAX);
    let (images_max, sample) = (IMAGES_MAX, SAMPLE);
    let mut explorer =
        Explorer::new(Scope { engine, prelude, depth, images_max, sample, nested_max })?;
    for (sequence, errors) in &job.sequences {
        for case in cases(sequence) {
            explorer.look(&case)?;
            if *errors {
                explorer.look_at_errors(&case)?;
            }
        }
        bar.inc(1);
    }
    Ok(explorer.counts)
}

/// Goal: no crash of a few operations, nor of the recovery from it, breaks a promise.
#[test]
fn every_crash_of_a_few_operations_keeps_every_promise() {
    let (jobs, started) = (jobs(), Instant::now());
    let total = jobs.iter().map(|job| job.sequences.len() as u64).sum();
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} sequences, {eta}");
    let bar = ProgressBar::new(total).with_style(style.expect("a template that indicatif knows"));
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new((Counts::default(), Vec::new()));
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let result = run(job, &bar);
            let mut results = results.lock().expect("no thread panics with the lock held");
            match result {
                Ok(counts) => results.0.add(&counts),
                Err(why) => {
                    failed.store(true, Ordering::Relaxed);
                    results.1.push(format!("nvram {}, used {}: {why}", job.nvram, job.used));
                }
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    bar.finish_and_clear();
    let (counts, failures) = results.into_inner().expect("no thread panicked");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    eprintln!("{counts} in {:.1} s", started.elapsed().as_secs_f64());
}
