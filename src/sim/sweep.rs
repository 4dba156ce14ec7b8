//! Many seeds on all cores, until the first failure, the last seed, or the end of the time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::run::{Failure, Report};

/// Which seeds to run.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// The first seed.
    pub base: u64,
    /// How many.
    pub count: u64,
    /// How long seeds are begun; without a time, until the last one.
    pub time: Option<Duration>,
    /// How many threads.
    pub threads: usize,
    /// Prints every call of the environment.
    pub loud: bool,
    /// Every so many seeds, one runs twice and must do the same again; 0 is never.
    pub twice_every: u64,
    /// After so many failures no more seeds are run.
    pub failures_max: usize,
}

/// What a sweep did.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Seeds that passed.
    pub seeds: u64,
    /// What they did together.
    pub did: Report,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.did.add(report);
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} seeds, {} operations, {} calls of the environment, {} crashes, {} images checked",
            self.seeds, self.did.operations, self.did.calls, self.did.crashes, self.did.images
        )?;
        if self.did.unexplained > 0 {
            write!(f, " ({} of them not to the end)", self.did.unexplained)?;
        }
        Ok(())
    }
}

impl Totals {
    /// The same for each second of each core.
    pub fn rates(&self, time: Duration, cores: usize) -> String {
        let core_seconds = time.as_secs_f64() * cores as f64;
        let rate = |count: u64| (count as f64 / core_seconds).round();
        format!(
            "a second on each of {cores} cores: {:.1} seeds, {} operations, {} crashes, {} images",
            self.seeds as f64 / core_seconds,
            rate(self.did.operations),
            rate(self.did.crashes),
            rate(self.did.images)
        )
    }
}

/// Runs the seeds, at least one, each by `run_seed`, reporting progress every `interval`. Returns
/// the failures where there are any.
pub fn sweep(
    sweep: Sweep,
    run_seed: impl Fn(u64, bool) -> Result<Report, Failure> + Sync,
    interval: Duration,
    progress: impl Fn(&Totals) + Sync,
) -> Result<Totals, Vec<Failure>> {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let totals = Mutex::new((Totals::default(), Instant::now()));
    let failures = Mutex::new(Vec::new());
    let started = Instant::now();
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let late = index > 0 && sweep.time.is_some_and(|time| started.elapsed() >= time);
            if late || index >= sweep.count {
                break;
            }
            let seed = sweep.base + index;
            let twice = sweep.twice_every > 0 && index.is_multiple_of(sweep.twice_every);
            match run(&run_seed, seed, sweep.loud, twice) {
                Ok(report) => {
                    let mut totals = totals.lock().expect("no thread panics with the lock held");
                    totals.0.add(&report);
                    if totals.1.elapsed() >= interval {
                        totals.1 = Instant::now();
                        progress(&totals.0);
                    }
                }
                Err(what) => {
                    let mut failures = failures.lock().expect("no thread panics with it held");
                    failures.push(what);
                    if failures.len() >= sweep.failures_max {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..sweep.threads {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().expect("no thread panicked");
    if failures.is_empty() {
        Ok(totals.into_inner().expect("no thread panicked").0)
    } else {
        Err(failures)
    }
}

fn run(
    run_seed: &impl Fn(u64, bool) -> Result<Report, Failure>,
    seed: u64,
    loud: bool,
    twice: bool,
) -> Result<Report, Failure> {
    let report = run_seed(seed, loud)?;
    if twice && run_seed(seed, loud)?.trace != report.trace {
        let what = String::from("the same seed ran differently the second time");
        return Err(Failure { seed, what });
    }
    Ok(report)
}
