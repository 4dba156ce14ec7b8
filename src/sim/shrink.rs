//! Makes a failing run small: which few of its actions suffice?
//!
//! In the manner of delta debugging (Zeller and Hildebrandt), pieces of what is left are taken out
//! as long as the rest fails: rounds, runs of actions, actions here and there, from halves down to
//! single ones; then kinds of faults and crashes; then actions become simpler. But to leave
//! something out changes all that follows, crash points and completions too, so that one run tells
//! little about a candidate. Therefore many candidates are run once each, most of them with a salt
//! of their own, where delta debugging would have few and trust each. Any failure will do; most
//! often it is the same, and where it is another, that one is worth knowing too.

use std::fmt;
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::plan::{Plan, Rounds, Without};
use super::run::run_plan;
use crate::env::sim::rng::{Rng, mix};

/// How much is tried in all, whichever ends first.
const RUNS_MAX: u64 = 8_000;
const TIME_MAX: Duration = Duration::from_secs(60);
/// So many candidates of one size fail to fail before smaller pieces are taken out; of single
/// actions, for each of them.
const TRIES: u64 = 30;
const TRIES_EACH: u64 = 12;
/// With so many actions it is good enough, once nothing is found to leave out.
const GOOD: usize = 20;

/// A failing run that became small.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// Fails every time.
    pub plan: Plan,
    /// What goes wrong.
    pub what: String,
    /// How many runs it took to get there.
    pub runs: u64,
    /// How many actions had begun when the run failed that was shrunk.
    pub before: usize,
}

impl Shrunk {
    /// How many actions are left.
    pub fn len(&self) -> usize {
        count(self.rounds())
    }

    /// Whether it fails with no action at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn rounds(&self) -> &Rounds {
        self.plan.rounds.as_ref().expect("what is shrunk was recorded")
    }
}

impl fmt::Display for Shrunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (left, before, runs) = (self.len(), self.before, self.runs);
        writeln!(f, "{left} actions of {before} suffice (found in {runs} runs):")?;
        for (round, actions) in self.rounds() {
            actions.iter().try_for_each(|action| writeln!(f, "    round {round}: {action:?}"))?;
        }
        writeln!(f, "  without: {}", self.plan.without)?;
        writeln!(f, "  {}", self.what)?;
        write!(
            f,
            "replay with: FLIPSIDE_PLAN='{}' FLIPSIDE_TRACE=1 cargo test --test plans -- \
             --nocapture",
            self.plan
        )
    }
}

/// Shrinks the run of a plan; nothing where it does not fail.
pub fn shrink<E: Engine>(plan: &Plan) -> Option<Shrunk> {
    let mut search = Search {
        best: fails::<E>(plan)?,
        runs: 1,
        rng: Rng::new(mix(plan.seed)),
        until: Instant::now() + TIME_MAX,
    };
    search.best.before = search.best.len();
    // What is found in one pass may help the next.
    while search.leave_out_actions::<E>() || search.best.len() > GOOD && search.may_go_on() {}
    search.leave_out_kinds::<E>();
    search.simplify::<E>();
    Some(Shrunk { runs: search.runs, ..search.best })
}

fn count(rounds: &Rounds) -> usize {
    rounds.values().map(Vec::len).sum()
}

/// Runs a plan; where it fails, what had begun is what to go on with.
fn fails<E: Engine>(plan: &Plan) -> Option<Shrunk> {
    let (result, begun) = run_plan::<E>(plan, false);
    let what = result.err()?.what;
    Some(Shrunk { plan: Plan { rounds: Some(begun), ..*plan }, what, runs: 0, before: 0 })
}

/// A search for smaller runs.
struct Search {
    best: Shrunk,
    runs: u64,
    rng: Rng,
    until: Instant,
}

impl Search {
    fn may_go_on(&self) -> bool {
        self.runs < RUNS_MAX && Instant::now() < self.until
    }

    /// Runs a candidate, with its own salt or a new one; keeps it where it fails.
    fn attempt<E: Engine>(&mut self, mut plan: Plan) -> bool {
        self.runs += 1;
        if self.rng.chance(700_000) {
            plan.salt = self.rng.between(1, 1 << 20);
        }
        let Some(smaller) = fails::<E>(&plan) else { return false };
        self.best = Shrunk { before: self.best.before, ..smaller };
        true
    }

    /// Takes out pieces, ever smaller ones; whether any was found.
    fn leave_out_actions<E: Engine>(&mut self) -> bool {
        let (mut pieces, mut tries, mut found) = (2, 0, false);
        while !self.best.is_empty() && self.may_go_on() {
            let left = self.best.len();
            pieces = pieces.min(left);
            let smaller = self.without_a_piece(pieces);
            if smaller.rounds.as_ref().is_some_and(|rounds| count(rounds) < left)
                && self.attempt::<E>(smaller)
            {
                (tries, pieces, found) = (0, (pieces / 2).max(2), true);
                continue;
            }
            tries += 1;
            let last = pieces == left;
            let most = if last { TRIES.max(left as u64 * TRIES_EACH) } else { TRIES };
            if tries < most {
                continue;
            }
            if last {
                break;
            }
            (tries, pieces) = (0, pieces * 2);
        }
        found
    }

    /// The best plan without one of so many pieces of its actions.
    fn without_a_piece(&mut self, pieces: usize) -> Plan {
        let rounds = self.best.rounds();
        let (left, rng) = (count(rounds), &mut self.rng);
        let size = left.div_ceil(pieces);
        let way = rng.below(if rounds.len() > 1 { 5 } else { 4 });
        let numbers: Vec<u32> = rounds.keys().copied().collect();
        let round = numbers.get(rng.below(numbers.len().max(1) as u64) as usize).copied();
        let start = rng.below((left - size + 1) as u64) as usize;
        let mut place = 0;
        let mut keeps = |of: u32| {
            place += 1;
            let within = (start..start + size).contains(&(place - 1));
            match way {
                // Here and there.
                0 => !rng.chance((1_000_000 / pieces) as u32),
                // All but one piece, or one piece alone.
                1 | 2 => !within,
                3 => within,
                _ => Some(of) != round,
            }
        };
        let mut smaller = Rounds::new();
        for (round, actions) in rounds {
            let kept: Vec<_> = actions.iter().filter(|_| keeps(*round)).cloned().collect();
            if !kept.is_empty() {
                smaller.insert(*round, kept);
            }
        }
        Plan { rounds: Some(smaller), ..self.best.plan.clone() }
    }

    /// Leaves out kinds of faults and crashes.
    fn leave_out_kinds<E: Engine>(&mut self) {
        for kind in (0..Without::KINDS).cycle().take(3 * Without::KINDS as usize) {
            let plan = self.best.plan.clone();
            if !plan.without.leaves_out(kind) && self.may_go_on() {
                self.attempt::<E>(Plan { without: plan.without.and(kind), ..plan });
            }
        }
    }

    /// Makes actions do less.
    fn simplify<E: Engine>(&mut self) {
        let mut tries = 0;
        while tries < self.best.len() as u64 * TRIES_EACH && self.may_go_on() {
            tries += 1;
            let mut plan = self.best.plan.clone();
            let actions = plan.rounds.iter_mut().flat_map(|rounds| rounds.values_mut().flatten());
            let nth = self.rng.below(self.best.len() as u64) as usize;
            let action = actions.into_iter().nth(nth).expect("it is one of them");
            let simpler = action.simpler();
            if simpler.is_empty() {
                continue;
            }
            action.clone_from(&simpler[self.rng.below(simpler.len() as u64) as usize]);
            if self.attempt::<E>(plan) {
                tries = 0;
            }
        }
    }
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
            assert_eq!(Some(actions), shrunk.plan.rounds);
        }
        shrunk
    }

    /// Goal: failures of whatever kind shrink to a few actions, and these fail every time.
    #[test]
    fn failures_become_small() {
        let sizes = [
            shrunk::<Toy<{ fault::NO_FLUSH }>>().len(),
            shrunk::<Toy<{ fault::VOLATILE_HEADER }>>().len(),
            shrunk::<Toy<{ fault::TORN_WRITE }>>().len(),
            shrunk::<Toy<{ fault::EARLY_ACK }>>().len(),
            shrunk::<Toy<{ fault::STALE_READ }>>().len(),
            shrunk::<Toy<{ fault::HANGS }>>().len(),
            shrunk::<Toy<{ fault::FUA_FORGOTTEN }>>().len(),
        ];
        assert!(sizes.iter().all(|&actions| actions <= 6), "{sizes:?}");
    }

    /// Goal: what does not fail is not shrunk.
    #[test]
    fn what_passes_is_left_alone() {
        assert!(shrink::<Toy<{ fault::NONE }>>(&Plan::whole(1)).is_none());
    }
}
