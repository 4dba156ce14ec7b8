//! Makes a failing run small: which few of its actions suffice?
//!
//! In the manner of delta debugging (Zeller and Hildebrandt), pieces of what is left are taken out
//! as long as the rest fails: rounds, runs of actions, actions here and there, from halves down to
//! single ones; then kinds of faults and crashes; then actions become simpler. But to leave
//! something out changes all that follows, crash points and completions too, so that one run tells
//! little about a candidate. Therefore many candidates are run once each, most of them with a salt
//! of their own, where delta debugging would have few and trust each. Any failure will do; most
//! often it is the same, and where it is another, that one is worth knowing too.
//!
//! A fault that shows in one run of many, whatever is left out, is not met that way. Then a few
//! actions alone are tried, from anywhere: hundreds of such runs cost no more than one of the
//! whole.
//!
//! Where many writes are wanted for all that they take up (space, the journal, a long commit), none
//! can be left out alone: so one is made larger as others go, or a settle takes their place, which
//! is what a crowded journal leads to. And where the pool of the seed is large, or its policies
//! make a fault hard to meet, those of another seed do: the same actions are tried there, too.
//!
//! A search that ends with more than a few actions begins anew from whole runs of seeds near by, if
//! those fail, and keeps what became smallest.
//!
//! What is tried has a bound in work and none in time, so that the same run shrinks to the same
//! few actions on any machine.

use std::fmt;
use std::mem;

use super::action::Action;
use super::engine::Engine;
use super::plan::{Plan, Rounds, Without};
use super::run::run_plan;
use crate::env::sim::rng::{Rng, mix};

/// How much is tried from one failing run, and from all: actions, and so many more for each run
/// and for each image that is checked in it.
const WORK_MAX: u64 = 200_000;
const WORK_OF_ALL: u64 = 4 * WORK_MAX;
const WORK_OF_A_RUN: u64 = 20;
const WORK_OF_AN_IMAGE: u64 = 2;
/// So many candidates of one size fail to fail before smaller pieces are taken out; of single
/// actions, for each of them.
const TRIES: u64 = 30;
const TRIES_EACH: u64 = 12;
/// So many times few actions alone are tried at first, and later in between.
const FEW_AT_FIRST: u64 = 200;
const FEW_IN_BETWEEN: u64 = 2_000;
/// How large a write may become, in granules: what is too much for an engine, it cuts.
const LARGER: [u32; 4] = [16, 64, 512, 4096];
/// How often a candidate is tried with the engine and the habits of another seed.
const ELSEWHERE_PPM: u32 = 150_000;
/// So many seeds after the one that failed are tried for others that do.
const SEEDS_NEAR_BY: u64 = 100;
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
    let mut search = Search::from(run::<E>(plan).failed?);
    search.best.before = search.best.len();
    search.leave_out::<E>();
    for other in 1..=SEEDS_NEAR_BY {
        if search.best.len() <= GOOD || search.spent > WORK_OF_ALL {
            break;
        }
        search.begin_anew::<E>(&Plan::whole(plan.seed.wrapping_add(other)));
    }
    search.until = search.spent + WORK_MAX;
    search.leave_out_kinds::<E>();
    search.simplify::<E>();
    Some(Shrunk { runs: search.runs, ..search.best })
}

fn count(rounds: &Rounds) -> usize {
    rounds.values().map(Vec::len).sum()
}

/// The end of all that is written to a volume.
fn end(rounds: &Rounds, of: usize) -> u32 {
    let ends = rounds.values().flatten().map(|action| match action {
        Action::Write { volume, range, .. } if *volume == of => range.end,
        _ => 0,
    });
    ends.max().unwrap_or(0)
}

/// A write of so much more, where it is one, and no further than others to its volume.
fn larger(rounds: &Rounds, action: &Action, granules: u32) -> Option<Action> {
    let Action::Write { volume, range, fua } = action.clone() else { return None };
    let end = end(rounds, volume).min(range.start.saturating_add(granules)).max(range.end);
    Some(Action::Write { volume, range: range.start..end, fua })
}

/// What a run did.
struct Ran {
    /// What it cost; see [`WORK_MAX`].
    work: u64,
    /// Where it failed, the actions that had begun: with those one goes on.
    failed: Option<Shrunk>,
}

/// Runs a plan.
fn run<E: Engine>(plan: &Plan) -> Ran {
    let (result, begun) = run_plan::<E>(plan, false);
    let images = result.as_ref().map_or(0, |report| report.images);
    let work = count(&begun) as u64 + WORK_OF_A_RUN + images * WORK_OF_AN_IMAGE;
    let plan = Plan { rounds: Some(begun), ..*plan };
    let failed = result.err();
    Ran {
        work,
        failed: failed.map(|failure| Shrunk { plan, what: failure.what, runs: 0, before: 0 }),
    }
}

/// A search for smaller runs.
struct Search {
    best: Shrunk,
    runs: u64,
    /// The work that was done, and what it may become in this part of the search.
    spent: u64,
    until: u64,
    rng: Rng,
}

/// Which actions a candidate keeps, of those that are cut into pieces.
#[derive(Clone, Copy)]
enum Keep {
    /// All but some, here and there, as many as a piece has.
    HereAndThere,
    /// All but one piece.
    AllButOne,
    /// One piece alone.
    One,
    /// All but those of a round.
    AllButARound,
    /// All but one piece, whose first write stays and becomes larger by so many granules.
    LargerForAPiece(u32),
    /// All but one piece, for which there is a settle.
    SettleForAPiece,
}

impl Search {
    fn from(best: Shrunk) -> Self {
        let rng = Rng::new(mix(best.plan.seed));
        Search { best, runs: 1, spent: 0, until: WORK_MAX, rng }
    }

    fn may_go_on(&self) -> bool {
        self.spent < self.until
    }

    /// Runs a candidate, with its own salt or a new one, and seldom with another seed's engine;
    /// keeps it where it fails.
    fn attempt<E: Engine>(&mut self, mut plan: Plan) -> bool {
        if self.rng.chance(700_000) {
            plan.salt = self.rng.between(1, 1 << 20);
        }
        if self.rng.chance(ELSEWHERE_PPM) {
            plan.seed = self.rng.bits() >> 32;
        }
        let Some(smaller) = self.run::<E>(&plan) else { return false };
        // Without any action it is what another seed does beside them that fails.
        if smaller.is_empty() && plan.seed != self.best.plan.seed {
            return false;
        }
        self.best = Shrunk { before: self.best.before, ..smaller };
        true
    }

    /// Runs a plan, and counts it; what is left of it where it fails.
    fn run<E: Engine>(&mut self, plan: &Plan) -> Option<Shrunk> {
        let Ran { work, failed } = run::<E>(plan);
        self.runs += 1;
        self.spent += work;
        failed
    }

    /// Leaves out what can be, in one pass and in the next, which what was found in one may help.
    fn leave_out<E: Engine>(&mut self) {
        self.until = self.spent + WORK_MAX;
        self.try_few::<E>(FEW_AT_FIRST);
        while self.leave_out_actions::<E>()
            || self.best.len() > GOOD && (self.try_few::<E>(FEW_IN_BETWEEN) || self.may_go_on())
        {
        }
    }

    /// Tries whether a whole run becomes smaller than what there is, where it fails.
    fn begin_anew<E: Engine>(&mut self, plan: &Plan) {
        let Some(failed) = self.run::<E>(plan) else { return };
        let before = self.best.before;
        let former = mem::replace(&mut self.best, Shrunk { before, ..failed });
        self.leave_out::<E>();
        if self.best.len() >= former.len() {
            self.best = former;
        }
    }

    /// Takes out pieces, ever smaller ones; whether any was found.
    fn leave_out_actions<E: Engine>(&mut self) -> bool {
        let (mut pieces, mut tries, mut found) = (2, 0, false);
        while !self.best.is_empty() && self.may_go_on() {
            let left = self.best.len();
            pieces = pieces.min(left);
            let keep = match self.rng.below(if self.best.rounds().len() > 1 { 7 } else { 6 }) {
                0 => Keep::HereAndThere,
                1 | 2 => Keep::AllButOne,
                3 => Keep::One,
                4 => Keep::LargerForAPiece(self.rng.pick(&LARGER)),
                5 => Keep::SettleForAPiece,
                _ => Keep::AllButARound,
            };
            let smaller = self.of_pieces(pieces, keep);
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

    /// Tries few actions alone, so many times where there are more; whether that was enough once.
    fn try_few<E: Engine>(&mut self, times: u64) -> bool {
        (0..times).any(|_| {
            if self.best.len() <= GOOD || !self.may_go_on() {
                return false;
            }
            let few = self.rng.between(2, GOOD as u64) as usize;
            let few = self.of_pieces(self.best.len().div_ceil(few), Keep::One);
            let salt = self.rng.between(1, 1 << 20);
            self.attempt::<E>(Plan { salt, ..few })
        })
    }

    /// The best plan with what is to be kept of its actions, in so many pieces.
    fn of_pieces(&mut self, pieces: usize, keep: Keep) -> Plan {
        let rounds = self.best.rounds();
        let (left, rng) = (count(rounds), &mut self.rng);
        let size = left.div_ceil(pieces);
        let numbers: Vec<u32> = rounds.keys().copied().collect();
        let round = numbers.get(rng.below(numbers.len().max(1) as u64) as usize).copied();
        let start = rng.below((left - size + 1) as u64) as usize;
        let mut place = 0;
        let mut keeps = |of: u32| {
            place += 1;
            let within = (start..start + size).contains(&(place - 1));
            match keep {
                Keep::HereAndThere => !rng.chance((1_000_000 / pieces) as u32),
                Keep::AllButOne | Keep::LargerForAPiece(_) | Keep::SettleForAPiece => !within,
                Keep::One => within,
                Keep::AllButARound => Some(of) != round,
            }
        };
        let mut smaller = Rounds::new();
        let in_its_place = |action: &Action| match keep {
            Keep::LargerForAPiece(granules) => larger(rounds, action, granules),
            Keep::SettleForAPiece => Some(Action::Settle),
            Keep::HereAndThere | Keep::AllButOne | Keep::One | Keep::AllButARound => None,
        };
        let mut replaced = false;
        for (round, actions) in rounds {
            let kept = actions.iter().filter_map(|action| {
                if keeps(*round) {
                    return Some(action.clone());
                }
                let other = in_its_place(action).filter(|_| !replaced);
                replaced |= other.is_some();
                other
            });
            let kept: Vec<_> = kept.collect();
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
