//! How long to look out for answers before a sleep: as long as that pays.
//!
//! A sleep costs a wake-up, which takes longer than many an answer. Looking out costs the processor
//! that others may want. So a look-out that saw nothing makes the next one half as long, and after
//! a few there is none for a while; one that saw something makes it as long as is allowed.

use std::cell::Cell;

/// A look-out that would be shorter than this is none, in nanoseconds.
const SHORTEST_NS: u64 = 4000;
/// So many sleeps without a look-out come before it is tried again.
const PAUSE: u32 = 32;

/// Decides how long to look out.
#[derive(Debug)]
pub(super) struct Lookout {
    longest_ns: u64,
    window_ns: Cell<u64>,
    slept: Cell<u32>,
}

impl Lookout {
    /// For at most so long; zero: never.
    pub(super) fn new(longest_ns: u64) -> Self {
        Self { longest_ns, window_ns: Cell::new(longest_ns), slept: Cell::new(0) }
    }

    /// For how many nanoseconds to look out before this sleep.
    pub(super) fn window_ns(&self) -> u64 {
        if self.window_ns.get() > 0 || self.longest_ns == 0 {
            return self.window_ns.get();
        }
        self.slept.set(self.slept.get() + 1);
        if self.slept.get() == PAUSE {
            self.slept.set(0);
            self.window_ns.set(self.longest_ns);
        }
        0
    }

    /// How the look-out ended.
    pub(super) fn note(&self, saw: bool) {
        let half = self.window_ns.get() / 2;
        let shorter = if half < SHORTEST_NS { 0 } else { half };
        self.window_ns.set(if saw { self.longest_ns } else { shorter });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what pays is done always, what never pays seldom, and it is found out again which.
    #[test]
    fn it_looks_out_where_that_pays() {
        let lookout = Lookout::new(50_000);
        let spent = |sleeps: u32, pays: bool| -> u64 {
            let one = |_| {
                let window = lookout.window_ns();
                if window > 0 {
                    lookout.note(pays);
                }
                window
            };
            (0..sleeps).map(one).sum()
        };
        assert_eq!(spent(100, true), 100 * 50_000);
        // 50, 25, 12.5 and 6.25 of every 36.
        assert!(spent(1000, false) < 30 * 94_000);
        assert!(spent(100, true) > 60 * 50_000);
        let never = Lookout::new(0);
        assert!((0..100).all(|_| never.window_ns() == 0));
    }
}
