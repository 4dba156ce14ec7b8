//! Consistency groups over several units under simulation: hundreds of seeds of random work,
//! faults and crashes of units and of the metadata server. `support/seeds.rs` says which.

use flipside::sim::grouped::{run_seed, run_without_atomics};

#[path = "support/seeds.rs"]
mod seeds;

const SEEDS: u64 = 300;
/// From so many seeds on everything that groups go through must have happened.
const ENOUGH: u64 = 150;

/// Goal: no promise is broken, nothing hangs and nothing is lost, whatever the seed; a seed runs
/// the same way every time; nothing that could be tried is left out.
#[test]
fn seeds_keep_every_promise() {
    let totals = match seeds::run("grouped", SEEDS, run_seed) {
        Ok(totals) => totals,
        Err(failures) => panic!("{} seeds failed", failures.len()),
    };
    let (groups, hosts) = (totals.did.groups, totals.did.hosts);
    eprintln!("the groups: {groups:?}");
    eprintln!("the servers: {hosts:?}");
    if totals.seeds >= ENOUGH {
        let all = [
            groups.commits,
            groups.aborts,
            groups.doubts_committed,
            groups.doubts_aborted,
            groups.resets,
            groups.cuts,
            groups.regrouped,
            groups.stops,
            groups.atomics,
            groups.atomics_refused,
            groups.atomics_unknown,
        ];
        assert!(all.iter().all(|count| *count > 0), "{groups:?}");
    }
}

/// Goal: an atomic request and a write that want two blocks in common never wait for each other
/// (884, 1775), nor does one commit nothing again and again (2637); and a server that crashes in
/// a turn has not done half of it, to do that again (12190).
#[test]
fn seeds_of_atomic_requests() {
    for seed in [717, 884, 1775, 2637, 12190] {
        run_seed(seed, false).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

/// Goal: seeds that showed something once are as they should be: a group that never came together
/// (93, 7), a request counted in the wrong epoch (408), pairs held for a deleted group (239), a
/// volume that late orders took out of its group (3010), and what the simulator itself did wrong.
#[test]
fn seeds_that_showed_something() {
    for seed in [7, 10, 40, 54, 93, 104, 178, 239, 266, 408, 697, 744, 816, 881, 892, 955, 3010] {
        run_without_atomics(seed, false).unwrap_or_else(|failure| panic!("{failure}"));
    }
}
