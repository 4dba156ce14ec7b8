//! What was measured, and how it is shown.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

/// What was measured of one case.
#[derive(Clone, Default, Serialize)]
pub struct Outcome {
    /// Who was asked: the server's process, a store, the device or the clock alone.
    pub who: &'static str,
    /// How: closed, paced, or one after the other.
    pub load: &'static str,
    pub sessions: u32,
    /// Requests of a session that were on their way at a time, at most.
    pub window: u64,
    /// Primitives of a request, or commit.
    pub batch: u32,
    /// Primitives a second; of the device writes, of the clock wakes.
    pub per_second: u64,
    /// How many latencies there are: one a request, commit, write or wake.
    pub samples: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
    pub primitives_per_commit: u64,
    pub bytes_per_primitive: u64,
    /// Processor time of who was asked, in percent of one processor.
    pub cpu_percent: u64,
    /// Requests that were sent again.
    pub repeated: u64,
}

/// Latencies, in microseconds.
pub struct Times(Histogram<u64>);

impl Times {
    /// None yet; up to a minute.
    pub fn new() -> Times {
        Times(Histogram::new_with_bounds(1, 60_000_000, 3).expect("sound bounds"))
    }

    /// What began then ends now.
    pub fn end(&mut self, began: Instant) {
        self.0.saturating_record(began.elapsed().as_micros() as u64);
    }

    /// Of so many primitives, or writes, in that time.
    pub fn outcome(&self, done: u64, elapsed: Duration) -> Outcome {
        let at = |quantile| self.0.value_at_quantile(quantile);
        Outcome {
            per_second: per_second(done, elapsed),
            samples: self.0.len(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.0.max(),
            ..Outcome::default()
        }
    }
}

/// How many of that in a second.
pub fn per_second(count: u64, elapsed: Duration) -> u64 {
    (u128::from(count) * 1_000_000 / elapsed.as_micros().max(1)) as u64
}

/// The line over the outcomes.
pub fn show_head() {
    println!(
        "{:7} {:7} {:>8} {:>6} {:>5} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10} {:>5} {:>6}",
        "who",
        "load",
        "sessions",
        "window",
        "batch",
        "a second",
        "samples",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "per commit",
        "bytes each",
        "cpu %",
        "resent"
    );
}

/// A line for each.
pub fn show(of: &Outcome) {
    println!(
        "{:7} {:7} {:8} {:6} {:5} {:9} {:8} {:8} {:8} {:8} {:8} {:10} {:10} {:5} {:6}",
        of.who,
        of.load,
        of.sessions,
        of.window,
        of.batch,
        of.per_second,
        of.samples,
        of.p50_us,
        of.p99_us,
        of.p999_us,
        of.max_us,
        of.primitives_per_commit,
        of.bytes_per_primitive,
        of.cpu_percent,
        of.repeated
    );
}
