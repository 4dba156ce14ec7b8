//! A second target reads a volume beside the one that writes it (issue 5, item 4): through swaps,
//! lost datagrams, cuts longer than its lease, stalls of its disks, and restarts of the metadata
//! server.
//!
//! `FLIPSIDE_SEEDS` sets the number of worlds, `FLIPSIDE_SEED` the first.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use flipside::sim::follower::{Followed, run};

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap())
}

/// Goal: through more than a thousand swaps in one world, and through faults in many, a reader
/// returns of each block what was committed last before the read, or later, and nothing else; it
/// never reads a place that is another's while its lease lasts; and the faults do strike.
#[test]
fn a_reader_follows_through_swaps() {
    let (first, count) = (number("FLIPSIDE_SEED", 1), number("FLIPSIDE_SEEDS", 40));
    let mut all = Followed::default();
    for seed in first..first + count {
        let swaps = if seed == first { 1000 } else { 60 };
        let did = run(seed, swaps).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        assert!(did.swaps >= swaps && did.reads > 0, "seed {seed}: {did:?}");
        all.swaps += did.swaps;
        all.reads += did.reads;
        all.over += did.over;
        all.again += did.again;
        all.readings += did.readings;
        all.looked_at += did.looked_at;
    }
    println!("{all:?} in {count} worlds");
    assert!(all.again > 0 && all.over > 0 && all.readings > count, "{all:?}");
}
