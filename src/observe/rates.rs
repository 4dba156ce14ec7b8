//! What is done in a second, averaged over the last few: from samples of the counters that the
//! target takes in turn.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Counters;

/// The time between two samples.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Samples that are kept: rates are averages over one interval less.
const SAMPLES: usize = 6;

/// The counters that rates are made of, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    reads: u64,
    writes: u64,
    flushes: u64,
    commits: u64,
    bytes_read: u64,
    bytes_written: u64,
    blocks_copied: u64,
}

/// What is done in a second. The names are those of `status --json` and stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// The time that these are averages over, in seconds; zero where there was none yet.
    pub over_s: f64,
    /// Requests to read.
    pub reads: f64,
    /// Requests to write.
    pub writes: f64,
    /// Requests to flush.
    pub flushes: f64,
    /// Epochs committed.
    pub commits: f64,
    /// Bytes that clients read.
    pub bytes_read: u64,
    /// Bytes that clients wrote.
    pub bytes_written: u64,
    /// Blocks that settling copied.
    pub blocks_copied: f64,
}

/// The last few samples.
#[derive(Debug, Default)]
pub struct RateWindow {
    /// When, by a clock of the caller's, and what.
    samples: VecDeque<(Duration, Totals)>,
}

impl RateWindow {
    /// Adds a sample taken at `now`; the oldest one goes where there are too many.
    pub fn sample(&mut self, now: Duration, counters: &Counters) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now, Totals::of(counters)));
    }

    /// The averages from the oldest sample to `now`.
    pub fn rates(&self, now: Duration, counters: &Counters) -> Rates {
        let Some(&(then, before)) = self.samples.front() else { return Rates::default() };
        between(before, Totals::of(counters), now.saturating_sub(then))
    }
}

impl Totals {
    fn of(counters: &Counters) -> Self {
        Self {
            reads: counters.reads.get(),
            writes: counters.writes.get(),
            flushes: counters.flushes.get(),
            commits: counters.commits.get(),
            bytes_read: counters.client_bytes_read.get(),
            bytes_written: counters.client_bytes_written.get(),
            blocks_copied: counters.blocks_copied.get(),
        }
    }
}

fn between(before: Totals, after: Totals, elapsed: Duration) -> Rates {
    if elapsed.is_zero() {
        return Rates::default();
    }
    let over_s = elapsed.as_secs_f64();
    let grown = |of: fn(Totals) -> u64| of(after).saturating_sub(of(before));
    let rate = |of| grown(of) as f64 / over_s;
    let whole = |of| {
        let rate = u128::from(grown(of)) * 1_000_000_000 / elapsed.as_nanos();
        u64::try_from(rate).unwrap_or(u64::MAX)
    };
    Rates {
        over_s,
        reads: rate(|totals| totals.reads),
        writes: rate(|totals| totals.writes),
        flushes: rate(|totals| totals.flushes),
        commits: rate(|totals| totals.commits),
        bytes_read: whole(|totals| totals.bytes_read),
        bytes_written: whole(|totals| totals.bytes_written),
        blocks_copied: rate(|totals| totals.blocks_copied),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: rates are averages over what is kept, each of its own counter, and what is older is
    /// forgotten.
    #[test]
    fn rates_are_averages_over_the_window() {
        let second = Duration::from_secs(1);
        let counters = Counters::default();
        let mut window = RateWindow::default();
        assert_eq!(window.rates(second, &counters), Rates::default());
        counters.reads.add(1_000_000);
        window.sample(second, &counters);
        assert_eq!(window.rates(second, &counters), Rates::default(), "no time has passed");
        let counts = [
            &counters.reads,
            &counters.writes,
            &counters.flushes,
            &counters.commits,
            &counters.client_bytes_read,
            &counters.client_bytes_written,
            &counters.blocks_copied,
        ];
        for now in 2..=20 {
            counts.iter().zip(1..).for_each(|(count, amount)| count.add(amount));
            window.sample(second * now, &counters);
        }
        let expected = Rates {
            over_s: 5.0,
            reads: 1.0,
            writes: 2.0,
            flushes: 3.0,
            commits: 4.0,
            bytes_read: 5,
            bytes_written: 6,
            blocks_copied: 7.0,
        };
        assert_eq!(window.rates(second * 20, &counters), expected);
        let later = window.rates(second * 25, &counters);
        assert!((later.reads - 0.5).abs() < 1e-9 && (later.over_s - 10.0).abs() < 1e-9);
    }
}
