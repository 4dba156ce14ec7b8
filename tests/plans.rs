//! Failing runs made small, and replayed: `FLIPSIDE_PLAN` is a plan as a failure prints it, and
//! `FLIPSIDE_TRACE=1` prints every call of the environment.

use std::ops::Range;

use flipside::env::sim::rng::Rng;
use flipside::env::sim::{Shape, SimEnv, SimStorage};
use flipside::sim::engine::{Engine, Room};
use flipside::sim::flipside::{Flipside, Serving};
use flipside::sim::plan::Plan;
use flipside::sim::run::{run_plan, run_seed};
use flipside::sim::shrink::shrink;

#[path = "support/regressions.rs"]
mod regressions;

/// The engine on disks whose flushes do nothing.
#[derive(Clone)]
struct OnLyingDisks(Flipside);

impl Engine for OnLyingDisks {
    type Running = Serving;

    fn draw(rng: &mut Rng) -> Self {
        Self(Flipside::draw(rng))
    }

    fn shape(&self) -> Shape {
        self.0.shape()
    }

    fn volumes(&self) -> Vec<u64> {
        self.0.volumes()
    }

    fn granule(&self) -> usize {
        self.0.granule()
    }

    fn room(&self) -> Room {
        self.0.room()
    }

    fn fork(&self) -> Self {
        Self(self.0.fork())
    }

    fn stored(&self) -> u64 {
        self.0.stored()
    }

    fn older_groups(&self, read: &dyn Fn(u64, &mut [u8]) -> bool) -> Vec<Range<u64>> {
        self.0.older_groups(read)
    }

    fn format(
        &self,
        env: SimEnv,
        storage: SimStorage,
    ) -> impl Future<Output = Result<(), String>> + 'static {
        self.0.format(env, storage)
    }

    fn open(
        &self,
        env: SimEnv,
        storage: SimStorage,
    ) -> impl Future<Output = Result<Serving, String>> + 'static {
        env.ignore_flushes();
        self.0.open(env, storage)
    }
}

/// Goal: disks that lie are found out, and the run that shows it shrinks to a few actions, which
/// fail in the same way every time.
#[test]
fn a_lying_disk_is_shown_in_a_few_actions() {
    let failing = |seed: &u64| run_seed::<OnLyingDisks>(*seed, false).is_err();
    let seed = (1..100).find(failing).expect("a seed that finds the lie");
    let shrunk = shrink::<OnLyingDisks>(&Plan::whole(seed)).expect("it fails again");
    eprintln!("{shrunk}");
    assert!(shrunk.len() <= 20, "{shrunk}");
    for _ in 0..2 {
        let again = run_plan::<OnLyingDisks>(&shrunk.plan, false).0;
        assert_eq!(again.expect_err("it fails every time").what, shrunk.what);
    }
}

/// Goal: what showed a fault once passes on healthy code, with its own salt and with others.
#[test]
fn regressions_pass() {
    let all = regressions::all();
    assert!(!all.is_empty(), "no plan is recorded");
    for regression in all {
        for plan in regression.tries(10) {
            let result = run_plan::<Flipside>(&plan, false).0;
            assert!(result.is_ok(), "{}: {plan}: {}", regression.name, result.unwrap_err());
        }
    }
}

/// Goal: a plan that somebody asks for is run, and what goes wrong is said.
#[test]
fn a_plan_is_replayed() {
    let Ok(text) = std::env::var("FLIPSIDE_PLAN") else { return };
    let plan: Plan = text.parse().unwrap_or_else(|why| panic!("{why}"));
    let loud = std::env::var("FLIPSIDE_TRACE").is_ok_and(|loud| loud == "1");
    let (result, actions) = run_plan::<Flipside>(&plan, loud);
    for (round, actions) in actions {
        eprintln!("round {round}: {actions:?}");
    }
    match result {
        Ok(report) => eprintln!("it passes: {report:?}"),
        Err(failure) => panic!("{failure}"),
    }
}
