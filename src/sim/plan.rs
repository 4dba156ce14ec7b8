//! Runs as data: a seed, or what is left of its run.
//!
//! Every action of a run has a name ([`Number`]) and is drawn from the seed and that name alone, so
//! that some can be left out and the others stay what they are. All else that chance decides in a
//! round (crash points, completions, what survives) is drawn from the seed, the round, and the
//! plan's salt: the same plan runs the same way every time, and another salt gives what is left
//! another chance to fail.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::action::Action;
use crate::env::sim::rng::{Rng, mix};

/// Names an action of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    /// The round between two recoveries.
    pub round: u32,
    /// The place in the order of beginning.
    pub index: u64,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is drawn, engine and actions included.
    pub seed: u64,
    /// Zero for the run of the seed; others draw crash points that suit fewer actions, and where
    /// it is odd one client does all of them, one after another.
    pub salt: u64,
    /// The actions that are carried out; rounds that have none are left out. `None`: all.
    pub keep: Option<BTreeSet<Number>>,
}

/// A plan, and what has been begun of it.
pub(super) struct Script {
    pub plan: Plan,
    pub begun: RefCell<Vec<(Number, Action)>>,
}

/// Calls of the environment within which a crash is planned: in a whole round, and for each action
/// that is left of it.
const CRASH_WITHIN: u64 = 6_000;
const CRASH_WITHIN_EACH: u64 = 40;

impl Plan {
    /// The whole run of a seed.
    pub fn whole(seed: u64) -> Self {
        Self { seed, salt: 0, keep: None }
    }

    /// Whether anything is done in a round.
    pub(super) fn has_round(&self, round: u32) -> bool {
        self.keep.as_ref().is_none_or(|keep| keep.iter().any(|number| number.round == round))
    }

    /// What actions of a round are drawn from, each by its place.
    pub(super) fn action(&self, number: Number) -> Rng {
        Rng::new(mix(mix(mix(self.seed) ^ u64::from(number.round)) ^ number.index))
    }

    /// What all else in a round is drawn from.
    pub(super) fn chance(&self, round: u32) -> Rng {
        Rng::new(mix(mix(mix(self.seed) ^ mix(self.salt)) ^ u64::from(round)))
    }

    /// How many clients share the actions, where so many were drawn.
    pub(super) fn clients(&self, drawn: u64) -> u64 {
        if self.salt % 2 == 1 { 1 } else { drawn }
    }

    /// How many calls of the environment come before a planned crash at most.
    pub(super) fn crash_within(&self, round: u32) -> u64 {
        match &self.keep {
            Some(keep) if self.salt > 0 => {
                let left = keep.iter().filter(|number| number.round == round).count() as u64;
                (left + 1) * CRASH_WITHIN_EACH
            }
            _ => CRASH_WITHIN,
        }
    }
}

impl Script {
    pub fn new(plan: Plan) -> Self {
        Self { plan, begun: RefCell::default() }
    }

    pub fn keeps(&self, number: Number) -> bool {
        self.plan.keep.as_ref().is_none_or(|keep| keep.contains(&number))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round, self.index)
    }
}

/// The seed, and where something is left out the salt and what is kept: `7:3:0.12,2.5`.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        let Some(keep) = &self.keep else { return Ok(()) };
        let numbers: Vec<_> = keep.iter().map(Number::to_string).collect();
        write!(f, ":{}:{}", self.salt, numbers.join(","))
    }
}

/// A text that is not a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a plan: it should be a seed, or like 7:3:0.12,2.5 (seed, salt, actions)")]
pub struct NotAPlan(String);

impl FromStr for Plan {
    type Err = NotAPlan;

    fn from_str(text: &str) -> Result<Self, NotAPlan> {
        let plan = || {
            let mut parts = text.split(':');
            let seed = parts.next()?.parse().ok()?;
            let Some(salt) = parts.next() else { return Some(Plan::whole(seed)) };
            let number = |text: &str| {
                let (round, index) = text.split_once('.')?;
                Some(Number { round: round.parse().ok()?, index: index.parse().ok()? })
            };
            let keep = parts.next()?.split(',').filter(|text| !text.is_empty()).map(number);
            let keep = Some(keep.collect::<Option<BTreeSet<Number>>>()?);
            let plan = Plan { seed, salt: salt.parse().ok()?, keep };
            parts.next().is_none().then_some(plan)
        };
        plan().ok_or_else(|| NotAPlan(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a plan that was printed can be read again, and other texts are told apart.
    #[test]
    fn plans_are_printed_and_read() {
        let keep = [(0, 12), (2, 5)].map(|(round, index)| Number { round, index });
        let plan = Plan { seed: 7, salt: 3, keep: Some(keep.into()) };
        assert_eq!(plan.to_string(), "7:3:0.12,2.5");
        let nothing = Plan { keep: Some(BTreeSet::new()), ..plan.clone() };
        for plan in [plan, nothing, Plan::whole(9)] {
            assert_eq!(plan.to_string().parse(), Ok(plan));
        }
        for text in ["", "x", "7:3", "7:3:1", "7:3:1.2:4", "7:3:1.x", "7::1.2"] {
            assert!(text.parse::<Plan>().is_err(), "{text}");
        }
    }
}
