//! Warnings about what took too long, each with the stage that it took too long in.
//!
//! # Contracts
//!
//! - **Stages**: a request of a client is warned about, and so is the operation on a disk that it
//!   waited for: where there is only the first, the time was lost in between.
//! - **Rate**: one warning for each stage in [`PAUSE`]; the next one says how many were left out.
//! - **Cost**: what is not slow costs one comparison. Where no limit is set, no clock is read.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::time::{Duration, Instant};

/// The time between two warnings of a stage.
pub const PAUSE: Duration = Duration::from_secs(1);

/// Warns about slow stages.
#[derive(Debug, Default)]
pub struct SlowWatch {
    /// What takes longer is slow; nothing is where there is none.
    limit: Option<Duration>,
    stages: RefCell<Vec<Stage>>,
    warnings: Cell<u64>,
}

#[derive(Debug)]
struct Stage {
    name: &'static str,
    warned: Instant,
    left_out: u64,
}

impl SlowWatch {
    /// Warns about what takes longer than `limit`, if there is one.
    pub fn new(limit: Option<Duration>) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Warns, if `elapsed` is too long for `stage`, of which `what` was one.
    pub fn check(&self, stage: &'static str, elapsed: Duration, what: impl fmt::Display) {
        if self.limit.is_some_and(|limit| elapsed > limit) {
            self.warn(stage, elapsed, &what);
        }
    }

    /// How many warnings there were.
    pub fn warnings(&self) -> u64 {
        self.warnings.get()
    }

    #[cold]
    fn warn(&self, stage: &'static str, took: Duration, what: &dyn fmt::Display) {
        let mut stages = self.stages.borrow_mut();
        let now = Instant::now();
        let left_out = match stages.iter_mut().find(|known| known.name == stage) {
            Some(known) if now.duration_since(known.warned) < PAUSE => {
                known.left_out += 1;
                return;
            }
            Some(known) => {
                known.warned = now;
                std::mem::take(&mut known.left_out)
            }
            None => {
                stages.push(Stage { name: stage, warned: now, left_out: 0 });
                0
            }
        };
        self.warnings.set(self.warnings.get() + 1);
        tracing::warn!(stage, ?took, left_out, "slow I/O: {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is slow is warned about, once in a while for each stage; without a limit nothing.
    #[test]
    fn slow_stages_are_warned_about() {
        let watch = SlowWatch::new(Some(Duration::from_secs(1)));
        let (fast, slow) = (Duration::from_secs(1), Duration::from_millis(1001));
        watch.check("disk write", fast, "x");
        assert_eq!(watch.warnings(), 0);
        for _ in 0..3 {
            watch.check("disk write", slow, "x");
        }
        assert_eq!((watch.warnings(), watch.stages.borrow()[0].left_out), (1, 2));
        watch.check("disk read", slow, "x");
        assert_eq!(watch.warnings(), 2);
        let watch = SlowWatch::default();
        watch.check("disk write", Duration::MAX, "x");
        assert_eq!(watch.warnings(), 0);
    }
}
