//! The count of environment calls: the places where a run can be told to crash.
//!
//! A crash strikes *at* a call: the call is on its way and nobody ever hears of its end. Calls made
//! after it, until the current task yields, have no effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// No crash is planned.
const NEVER: u64 = u64::MAX;

/// Counts the calls of one operating period. Cheap to clone: a handle.
#[derive(Clone, Debug)]
pub struct Calls(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    made: AtomicU64,
    crash_at: AtomicU64,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is carried out.
    Live,
    /// It is on its way when the crash strikes.
    Struck,
    /// It comes after the crash.
    Dead,
}

impl Calls {
    /// Counts from zero; the crash strikes at call `crash_at`, the first being 1.
    pub fn new(crash_at: Option<u64>) -> Self {
        Self(Arc::new(Counters {
            made: AtomicU64::new(0),
            crash_at: AtomicU64::new(crash_at.unwrap_or(NEVER)),
        }))
    }

    /// One more call. Relaxed: a simulated machine lives on one thread.
    pub fn call(&self) -> Fate {
        let number = self.0.made.fetch_add(1, Ordering::Relaxed) + 1;
        match number.cmp(&self.0.crash_at.load(Ordering::Relaxed)) {
            std::cmp::Ordering::Less => Fate::Live,
            std::cmp::Ordering::Equal => Fate::Struck,
            std::cmp::Ordering::Greater => Fate::Dead,
        }
    }

    /// How many calls there were.
    pub fn made(&self) -> u64 {
        self.0.made.load(Ordering::Relaxed)
    }

    /// Plans the crash for the call after `more` others, or calls it off; one that has struck
    /// stays (seed 178 of the groups: a machine that neither went on nor was found dead).
    pub fn crash_in(&self, more: Option<u64>) {
        if self.crashed() {
            return;
        }
        let at = more.map_or(NEVER, |more| self.made() + more + 1);
        self.0.crash_at.store(at, Ordering::Relaxed);
    }

    /// The crash strikes between two calls.
    pub fn crash_now(&self) {
        let made = self.made();
        self.0.crash_at.store(made.min(self.0.crash_at.load(Ordering::Relaxed)), Ordering::Relaxed);
    }

    /// Whether the crash has struck.
    pub fn crashed(&self) -> bool {
        self.made() >= self.0.crash_at.load(Ordering::Relaxed)
    }
}
