//! A lease by the clock of who holds it: counted from when the request that renewed it was sent,
//! less a margin for clocks that do not run alike.
//!
//! A reader sends nothing to devices that could arrive late, so the margin is smaller than that of
//! a unit; and what has ended begins again when the server answers.

use std::time::Duration;

use crate::env::Moment;
use crate::mutants::{Mutant, mutated};

/// What part of a lease is not relied on.
const MARGIN: u32 = 8;

/// A lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    length: Duration,
    until: Moment,
}

impl Lease {
    /// A lease of that length, which was asked for at `sent`.
    pub fn new(length: Duration, sent: Moment) -> Self {
        let mut lease = Lease { length, until: sent };
        lease.renew(sent);
        lease
    }

    /// How long it is after each renewal, by the server's clock.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// A request that was sent then was answered. One that was sent earlier than another changes
    /// nothing.
    pub fn renew(&mut self, sent: Moment) {
        let good = self.length.saturating_sub(self.length / MARGIN);
        self.until = self.until.max(Moment(sent.0.saturating_add(good.as_nanos() as u64)));
    }

    /// It is over whatever was believed: the server has forgotten it.
    pub fn end(&mut self, now: Moment) {
        self.until = self.until.min(now);
    }

    /// How long it can be relied on from now; zero: it is over.
    pub fn left(&self, now: Moment) -> Duration {
        if mutated(Mutant::ReaderLeaseBelievedTooLong) {
            return self.length;
        }
        self.until.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    /// Goal: a lease counts from the sending, ends before the server's, is not shortened by an
    /// older answer, and ends at once when the server says so.
    #[test]
    fn leases_end_early() {
        let mut lease = Lease::new(Duration::from_millis(800), ms(100));
        assert_eq!(lease.left(ms(100)), Duration::from_millis(700));
        assert_eq!(lease.left(ms(799)), Duration::from_millis(1));
        assert_eq!(lease.left(ms(800)), Duration::ZERO);
        lease.renew(ms(500));
        lease.renew(ms(400));
        assert_eq!(lease.left(ms(1000)), Duration::from_millis(200));
        lease.end(ms(600));
        assert_eq!(lease.left(ms(600)), Duration::ZERO);
        lease.renew(ms(601));
        assert!(lease.left(ms(601)) > Duration::ZERO);
    }
}
