//! Persist points: the places in the code that make something durable, and which of them a run has
//! crashed at.
//!
//! A point is a call of a flush, a durable write or a persist, told apart by the line of code that
//! makes it and, where several things are written from one line, by the part of the medium that is
//! written. Wrappers of disks and regions pass their caller on (`#[track_caller]`). What the
//! harness itself writes does not count.

use std::collections::BTreeSet;
use std::panic::Location;

/// A persist point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// The file of the call.
    pub file: &'static str,
    /// The line of the call.
    pub line: u32,
    /// What is made durable there: the part of the medium, or all of it.
    pub part: &'static str,
}

impl Point {
    /// The point of a call.
    pub fn new(caller: &'static Location<'static>, part: &'static str) -> Self {
        Self { file: caller.file(), line: caller.line(), part }
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{} ({})", self.file, self.line, self.part)
    }
}

/// The persist points that were seen, and those at which a crash struck.
#[derive(Clone, Debug, Default)]
pub struct Points {
    /// Those that were passed.
    pub seen: BTreeSet<Point>,
    /// Those at which a crash struck: while the call was under way, or as it ended.
    pub crashed: BTreeSet<Point>,
    /// The point passed last.
    last: Option<Point>,
    /// How many were passed, a call and its end each counting.
    count: u64,
    /// Whether the point passed last was never crashed at.
    fresh: bool,
}

impl Points {
    /// A call at this point is made, or has ended; nothing where it is no persist point.
    pub fn passed(&mut self, point: Option<Point>) {
        let harness = |point: &Point| point.file.contains("/sim/");
        if let Some(point) = point.filter(|point| !harness(point)) {
            self.seen.insert(point);
            self.last = Some(point);
            self.fresh = !self.crashed.contains(&point);
            self.count += 1;
        }
    }

    /// How many were passed.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether the point passed last was never crashed at.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// A crash strikes now.
    pub fn crash(&mut self) {
        self.crashed.extend(self.last);
        self.fresh = false;
    }

    /// All of another run, too.
    pub fn add_all(&mut self, other: &Points) {
        self.seen.extend(&other.seen);
        self.crashed.extend(&other.crashed);
    }
}
