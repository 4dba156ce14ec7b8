//! What is asked for.

/// In which order places come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// One after the other, from the first again after the last.
    Sequential,
    /// Each as likely as any other.
    Uniform,
    /// Rank k with weight k^-exponent; ranks lie scattered.
    Zipf(f64),
}

/// What is done at each place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It is read.
    Read,
    /// It is written.
    Write,
}

/// When a flush comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Never.
    Never,
    /// With each request, whose time includes it.
    Each,
    /// After so many requests of all that are in flight.
    Every(u32),
}

/// A case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// Bytes of a request.
    pub block: u32,
    /// Requests in flight.
    pub depth: u32,
    /// What each of them does.
    pub direction: Direction,
    /// Where.
    pub order: Order,
    /// With flushes.
    pub flush: Flush,
}

const SMALL: u32 = 4 << 10;
const LARGE: u32 = 1 << 20;

/// Small requests at random places.
const fn random(name: &'static str, direction: Direction, depth: u32, flush: Flush) -> Case {
    Case { name, block: SMALL, depth, direction, order: Order::Uniform, flush }
}

/// Large requests in order.
const fn sequential(name: &'static str, direction: Direction) -> Case {
    let order = Order::Sequential;
    Case { name, block: LARGE, depth: 8, direction, order, flush: Flush::Never }
}

/// What `flipside bench` measures where it is not told otherwise, in this order: the case that
/// reads in order after random writes finds blocks on both sides.
pub const STANDARD: [Case; 12] = [
    sequential("sequential-write-qd8", Direction::Write),
    sequential("sequential-read-qd8", Direction::Read),
    random("random-write-qd32", Direction::Write, 32, Flush::Never),
    random("random-read-qd32", Direction::Read, 32, Flush::Never),
    random("random-write-qd1", Direction::Write, 1, Flush::Never),
    random("random-read-qd1", Direction::Read, 1, Flush::Never),
    random("random-write-qd32-flush32", Direction::Write, 32, Flush::Every(32)),
    random("write-flush-1", Direction::Write, 1, Flush::Each),
    random("write-flush-4", Direction::Write, 4, Flush::Each),
    random("write-flush-16", Direction::Write, 16, Flush::Each),
    random("write-flush-64", Direction::Write, 64, Flush::Each),
    sequential("sequential-read-mixed-qd8", Direction::Read),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Goal: a case is found by its name alone, and what flushes also writes.
    #[test]
    fn standard_cases_are_sound() {
        let names: BTreeSet<_> = STANDARD.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), STANDARD.len());
        let flushing = |case: &&Case| case.flush != Flush::Never;
        assert!(STANDARD.iter().filter(flushing).all(|case| case.direction == Direction::Write));
    }
}
