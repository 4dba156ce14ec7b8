//! Consistency groups over several units under simulation: hundreds of seeds of random work,
//! faults and crashes of units and of the metadata server. `support/seeds.rs` says which.

use flipside::sim::grouped::run_seed;

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
        ];
        assert!(all.iter().all(|count| *count > 0), "{groups:?}");
    }
}
