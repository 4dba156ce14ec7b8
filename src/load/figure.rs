//! What was measured.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::case::Case;

/// The longest time that is told apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// What one case came to.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The case.
    pub case: Case,
    /// How long it took.
    pub elapsed: Duration,
    /// What the thread used of its processor in the program.
    pub user: Duration,
    /// And in the kernel.
    pub system: Duration,
    latencies: Histogram<u64>,
}

/// A figure as `flipside bench --json` shows it. The names stay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Requests a second.
    pub iops: f64,
    /// MiB a second.
    pub mib_s: f64,
    /// The median of the requests' times, in microseconds; a flush that comes with each is in it.
    pub p50_us: f64,
    /// Of a hundred requests one takes longer, in microseconds.
    pub p99_us: f64,
    /// Of a thousand requests one takes longer, in microseconds.
    pub p999_us: f64,
    /// Processor time of the thread a request, in the program, in microseconds.
    pub user_us: f64,
    /// And in the kernel.
    pub system_us: f64,
}

impl Figure {
    /// Of a case that has not begun.
    pub(super) fn new(case: Case) -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        Self {
            case,
            elapsed: Duration::ZERO,
            user: Duration::ZERO,
            system: Duration::ZERO,
            latencies: latencies.expect("the bounds are constants that a histogram takes"),
        }
    }

    pub(super) fn note(&mut self, took: Duration) {
        self.latencies.saturating_record((took.as_nanos() as u64).clamp(1, LATENCY_NS_MAX));
    }

    /// How many requests were answered.
    pub fn requests(&self) -> u64 {
        self.latencies.len()
    }

    /// In numbers.
    pub fn summary(&self) -> Summary {
        let count = self.requests() as f64;
        let seconds = self.elapsed.as_secs_f64();
        let at = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Summary {
            iops: count / seconds,
            mib_s: count * f64::from(self.case.block) / seconds / f64::from(1 << 20),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            user_us: self.user.as_secs_f64() * 1e6 / count,
            system_us: self.system.as_secs_f64() * 1e6 / count,
        }
    }
}
