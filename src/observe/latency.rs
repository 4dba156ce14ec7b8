//! How long operations take: one histogram for each kind.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::slow::SlowWatch;
use super::snapshot::{LatencySummary, OperationLatencies};

/// The longest time that is told apart, in nanoseconds; what takes longer counts as this.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// Two significant digits: within one percent, in a histogram that fits the second-level cache.
const SIGNIFICANT_DIGITS: u8 = 2;

/// The kinds of operation that are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A client's read, from its parsing to its reply.
    Read,
    /// A client's write, from its whole payload to its reply.
    Write,
    /// A client's flush.
    Flush,
    /// A client's trim or write of zeroes.
    Trim,
    /// An epoch's way from sealing to its end.
    Commit,
}

/// Histograms of all kinds of operation.
pub struct Latencies {
    read: RefCell<Histogram<u64>>,
    write: RefCell<Histogram<u64>>,
    flush: RefCell<Histogram<u64>>,
    trim: RefCell<Histogram<u64>>,
    commit: RefCell<Histogram<u64>>,
    slow: Rc<SlowWatch>,
}

impl Default for Latencies {
    fn default() -> Self {
        let empty = || {
            RefCell::new(
                Histogram::new_with_bounds(1, LATENCY_NS_MAX, SIGNIFICANT_DIGITS)
                    .expect("the bounds are constants that a histogram takes"),
            )
        };
        Self {
            read: empty(),
            write: empty(),
            flush: empty(),
            trim: empty(),
            commit: empty(),
            slow: Rc::default(),
        }
    }
}

impl Operation {
    /// What it is called in a warning.
    fn stage(self) -> &'static str {
        match self {
            Self::Read => "client read",
            Self::Write => "client write",
            Self::Flush => "client flush",
            Self::Trim => "client trim",
            Self::Commit => "commit",
        }
    }
}

impl Latencies {
    /// Histograms beside which `slow` warns about single operations.
    pub fn watched(slow: Rc<SlowWatch>) -> Self {
        Self { slow, ..Self::default() }
    }

    /// Counts one operation that took `elapsed`.
    pub fn record(&self, operation: Operation, elapsed: Duration) {
        let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.of(operation).borrow_mut().saturating_record(nanoseconds.clamp(1, LATENCY_NS_MAX));
        self.slow.check(operation.stage(), elapsed, "from its arrival to its end");
    }

    /// The percentiles of all kinds.
    pub fn summary(&self) -> OperationLatencies {
        OperationLatencies {
            read: self.summary_of(Operation::Read),
            write: self.summary_of(Operation::Write),
            flush: self.summary_of(Operation::Flush),
            trim: self.summary_of(Operation::Trim),
            commit: self.summary_of(Operation::Commit),
        }
    }

    fn of(&self, operation: Operation) -> &RefCell<Histogram<u64>> {
        match operation {
            Operation::Read => &self.read,
            Operation::Write => &self.write,
            Operation::Flush => &self.flush,
            Operation::Trim => &self.trim,
            Operation::Commit => &self.commit,
        }
    }

    fn summary_of(&self, operation: Operation) -> LatencySummary {
        let histogram = self.of(operation).borrow();
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        let at = |quantile: f64| microseconds(histogram.value_at_quantile(quantile));
        LatencySummary {
            count: histogram.len(),
            mean: histogram.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: microseconds(histogram.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: percentiles come back within the promised one percent, and kinds are apart.
    #[test]
    fn percentiles_are_close() {
        let latencies = Latencies::default();
        for us in 1..=1000 {
            latencies.record(Operation::Read, Duration::from_micros(us));
        }
        let summary = latencies.summary();
        assert_eq!(summary.read.count, 1000);
        assert!((summary.read.p50 - 500.0).abs() < 5.0, "{:?}", summary.read);
        assert!((summary.read.p99 - 990.0).abs() < 10.0, "{:?}", summary.read);
        assert_eq!(summary.write.count, 0);
    }

    /// Goal: times beyond the histogram's range are counted at its ends.
    #[test]
    fn extremes_are_counted() {
        let latencies = Latencies::default();
        latencies.record(Operation::Commit, Duration::ZERO);
        latencies.record(Operation::Commit, Duration::MAX);
        assert_eq!(latencies.summary().commit.count, 2);
    }
}
