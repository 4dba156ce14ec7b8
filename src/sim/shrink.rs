//! Makes a failing run small: which few of its actions suffice?
//!
//! Delta debugging (Zeller and Hildebrandt's ddmin) over the actions that had begun when the run
//! failed. Leaving some out changes what follows, so a candidate is given several chances: its run
//! counts as failing when it fails with any of a few salts. Any failure will do; most often it is
//! the same, and where it is another, that one is worth knowing too.

use std::collections::BTreeSet;
use std::fmt;

use super::action::Action;
use super::engine::Engine;
use super::plan::{Number, Plan};
use super::run::run_plan;

/// How many runs are tried in all.
const RUNS_MAX: u64 = 20_000;
/// How many salts a candidate is tried with, of few actions and of many.
const SALTS_FEW: u64 = 200;
const SALTS_MANY: u64 = 8;
/// So many actions are few.
const FEW: usize = 60;

/// A failing run that became small.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// Fails every time.
    pub plan: Plan,
    /// What it does, in the order of beginning.
    pub actions: Vec<(Number, Action)>,
    /// What goes wrong.
    pub what: String,
    /// How many runs it took to get there.
    pub runs: u64,
}

impl fmt::Display for Shrunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} actions suffice (found in {} runs):", self.actions.len(), self.runs)?;
        for (number, action) in &self.actions {
            writeln!(f, "    {number}: {action:?}")?;
        }
        writeln!(f, "  {}", self.what)?;
        write!(
            f,
            "replay with: FLIPSIDE_PLAN={} FLIPSIDE_TRACE=1 cargo test --test plans -- --nocapture",
            self.plan
        )
    }
}

/// Shrinks the run of a plan; nothing where it does not fail.
pub fn shrink<E: Engine>(plan: &Plan) -> Option<Shrunk> {
    let mut runs = 0;
    let mut best = fails::<E>(plan, &mut runs)?;
    let mut pieces = 2;
    while best.actions.len() > 1 && runs < RUNS_MAX {
        let smaller = without_a_piece::<E>(&best, pieces, &mut runs);
        if let Some(smaller) = smaller {
            best = smaller;
            pieces = (pieces - 1).max(2);
        } else if pieces < best.actions.len() {
            pieces *= 2;
        } else {
            break;
        }
    }
    Some(Shrunk { runs, ..best })
}

/// The first failing run that lacks one of so many pieces of the actions.
fn without_a_piece<E: Engine>(best: &Shrunk, pieces: usize, runs: &mut u64) -> Option<Shrunk> {
    let all: BTreeSet<Number> = best.actions.iter().map(|(number, _)| *number).collect();
    let numbers: Vec<Number> = all.iter().copied().collect();
    let size = numbers.len().div_ceil(pieces);
    // Later actions first: most of them came after what matters.
    numbers.chunks(size).rev().find_map(|piece| {
        let keep: BTreeSet<Number> =
            all.iter().copied().filter(|number| !piece.contains(number)).collect();
        let salts = if keep.len() <= FEW { SALTS_FEW } else { SALTS_MANY };
        let salts = std::iter::once(best.plan.salt).chain(1..=salts);
        salts.take_while(|_| *runs < RUNS_MAX).collect::<Vec<_>>().into_iter().find_map(|salt| {
            fails::<E>(&Plan { salt, keep: Some(keep.clone()), ..best.plan }, runs)
        })
    })
}

/// Runs a plan; where it fails, what had begun is what to go on with.
fn fails<E: Engine>(plan: &Plan, runs: &mut u64) -> Option<Shrunk> {
    *runs += 1;
    let (result, actions) = run_plan::<E>(plan, false);
    let what = result.err()?.what;
    let keep = Some(actions.iter().map(|(number, _)| *number).collect());
    Some(Shrunk { plan: Plan { keep, ..*plan }, actions, what, runs: 0 })
}

#[cfg(test)]
mod tests {
    use super::super::run::run_seed;
    use super::super::toy::{Toy, fault};
    use super::*;

    /// The first seed that fails, shrunk; what it says twice is the same.
    fn shrunk<E: Engine>() -> Shrunk {
        let seed = (0..300).find(|&seed| run_seed::<E>(seed, false).is_err());
        let shrunk = shrink::<E>(&Plan::whole(seed.expect("a failing seed"))).unwrap();
        let plan = shrunk.plan.to_string().parse().unwrap();
        for _ in 0..2 {
            let (again, actions) = run_plan::<E>(&plan, false);
            assert_eq!(again.unwrap_err().what, shrunk.what);
            assert_eq!(actions, shrunk.actions);
        }
        shrunk
    }

    /// Goal: failures of whatever kind shrink to a few actions, and these fail every time.
    #[test]
    fn failures_become_small() {
        let sizes = [
            shrunk::<Toy<{ fault::NO_FLUSH }>>().actions.len(),
            shrunk::<Toy<{ fault::VOLATILE_HEADER }>>().actions.len(),
            shrunk::<Toy<{ fault::TORN_WRITE }>>().actions.len(),
            shrunk::<Toy<{ fault::EARLY_ACK }>>().actions.len(),
            shrunk::<Toy<{ fault::STALE_READ }>>().actions.len(),
            shrunk::<Toy<{ fault::HANGS }>>().actions.len(),
            shrunk::<Toy<{ fault::FUA_FORGOTTEN }>>().actions.len(),
        ];
        assert!(sizes.iter().all(|&actions| actions <= 6), "{sizes:?}");
    }

    /// Goal: what does not fail is not shrunk.
    #[test]
    fn what_passes_is_left_alone() {
        assert!(shrink::<Toy<{ fault::NONE }>>(&Plan::whole(1)).is_none());
    }
}
