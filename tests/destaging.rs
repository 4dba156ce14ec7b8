//! Blocks that are written again and again while they are destaged ([`flipside::sim::destaging`]).
//!
//! `FLIPSIDE_SEEDS` sets the number of worlds, `FLIPSIDE_SEED` the first.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use flipside::sim::destaging::run;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

/// Goal: however writes, commits, and destaging on slow disks meet, a block is what was written
/// last, and after a crash nothing older than the last flush; and there is something to destage.
#[test]
fn destaging_meets_writes() {
    let (first, count) = (number("FLIPSIDE_SEED", 1), number("FLIPSIDE_SEEDS", 100));
    let mut destaged = 0;
    for seed in first..first + count {
        destaged += run(seed).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
    println!("{destaged} bytes destaged in {count} worlds");
    assert!(destaged > 0);
}
