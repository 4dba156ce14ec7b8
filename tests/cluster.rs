//! Several machines and one metadata server under simulation: hundreds of seeds of random work,
//! faults and crashes of each of them. `support/seeds.rs` says which.

use flipside::env::sim::faults::TABLE;
use flipside::sim::cluster::run_seed;

#[path = "support/seeds.rs"]
mod seeds;

const SEEDS: u64 = 150;
/// From so many seeds on every row of the fault table must have struck, and every fault of the
/// server.
const ENOUGH: u64 = 150;

/// Goal: no promise is broken, nothing hangs and nothing is lost, whatever the seed; a seed runs
/// the same way every time; nothing that could be tried is left out.
#[test]
fn seeds_keep_every_promise() {
    let totals = match seeds::run("cluster", SEEDS, run_seed) {
        Ok(totals) => totals,
        Err(failures) => panic!("{} seeds failed", failures.len()),
    };
    let hosts = totals.did.hosts;
    eprintln!("the servers: {hosts:?}; {} takeovers", totals.did.takeovers);
    if totals.seeds >= ENOUGH {
        for (row, count) in TABLE.iter().zip(totals.did.struck.0) {
            assert!(count > 0, "no {} in {} seeds", row.name, totals.seeds);
        }
        assert!(totals.did.takeovers > 0, "nobody has taken over");
        let unplanned = hosts.crashes - hosts.struck;
        assert!(hosts.shared > 0 && hosts.struck > 0 && unplanned > 0, "{hosts:?}");
    }
}
