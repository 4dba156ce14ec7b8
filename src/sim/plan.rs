//! Runs as data: a seed, or a few actions recorded from its run.
//!
//! A whole run draws everything from its seed. What is left of one names its actions itself, round
//! by round, so that any can be left out or made simpler; the engine, the rates of faults and the
//! habits are still those of the seed. All else that chance decides in a round (crash points,
//! completions, what survives) is drawn from the seed, the round, and the plan's salt: the same
//! plan runs the same way every time, and another salt gives what is left another chance to fail.
//!
//! As a text a plan is `seed:salt:without:rounds`, where *without* is [`Without`] in hexadecimal
//! and *rounds* are like `0 = w0@8-12f, f0; 2 = c` ([`Action`]'s texts); blanks do not count.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::action::Action;
use crate::env::sim::faults::{FAULTS, Fault, TABLE};
use crate::env::sim::rng::{Rng, mix};

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is drawn, engine and actions included.
    pub seed: u64,
    /// Zero for the run of the seed; others draw crash points that suit fewer actions, and where
    /// it is odd one client does all of them, one after another.
    pub salt: u64,
    /// What does not happen, though the seed has it.
    pub without: Without,
    /// The actions, in place of those that the seed draws.
    pub rounds: Option<Rounds>,
}

/// The actions of each round between two recoveries, in the order of beginning; rounds that are
/// not there are left out.
pub type Rounds = BTreeMap<u32, Vec<Action>>;

/// Kinds of things that do not happen: a bit for each fault, in the order of the table, then one
/// for planned crashes of the work, and one for those of recoveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without(u32);

/// A plan, and what has been begun of it.
pub(super) struct Script {
    pub plan: Plan,
    pub begun: RefCell<Rounds>,
}

/// Calls of the environment within which a crash is planned: in a whole round, and for each action
/// that is left of it.
const CRASH_WITHIN: u64 = 6_000;
const CRASH_WITHIN_EACH: u64 = 40;
/// So many actions of a round are few.
const FEW: usize = 40;

impl Without {
    /// How many kinds there are.
    pub const KINDS: u32 = FAULTS as u32 + 2;
    const WORK_CRASHES: u32 = FAULTS as u32;
    const NESTED_CRASHES: u32 = FAULTS as u32 + 1;

    /// The same, and without one more.
    #[must_use]
    pub fn and(self, kind: u32) -> Self {
        assert!(kind < Self::KINDS, "there is no kind {kind}");
        Self(self.0 | 1 << kind)
    }

    /// Whether a kind is left out.
    pub fn leaves_out(self, kind: u32) -> bool {
        self.0 >> kind & 1 == 1
    }

    pub(super) fn fault(self, fault: Fault) -> bool {
        self.leaves_out(fault as u32)
    }

    pub(super) fn work_crashes(self) -> bool {
        self.leaves_out(Self::WORK_CRASHES)
    }

    pub(super) fn nested_crashes(self) -> bool {
        self.leaves_out(Self::NESTED_CRASHES)
    }
}

impl Plan {
    /// The whole run of a seed.
    pub fn whole(seed: u64) -> Self {
        Self { seed, salt: 0, without: Without::default(), rounds: None }
    }

    /// Whether anything is done in a round.
    pub(super) fn has_round(&self, round: u32) -> bool {
        self.rounds.as_ref().is_none_or(|rounds| rounds.contains_key(&round))
    }

    /// What an action of a round is drawn from, by its place, where the seed draws them.
    pub(super) fn action(&self, round: u32, index: u64) -> Rng {
        Rng::new(mix(mix(mix(self.seed) ^ u64::from(round)) ^ index))
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
        let left = self.rounds.as_ref().filter(|_| self.salt > 0);
        left.map_or(CRASH_WITHIN, |rounds| {
            (rounds.get(&round).map_or(0, Vec::len) as u64 + 1) * CRASH_WITHIN_EACH
        })
    }

    /// How often a round is looked at, where so often was drawn, and how many persist points go by
    /// before the next look at most: few actions are looked at closely.
    pub(super) fn looks(&self, round: u32, drawn: u64) -> (u64, u64) {
        let left = self.rounds.as_ref().and_then(|rounds| rounds.get(&round)).map_or(0, Vec::len);
        match self.salt % 3 {
            _ if self.salt == 0 || left > FEW => (drawn, 100),
            0 => (drawn, 20),
            1 => (4, 10),
            _ => (20, 4),
        }
    }
}

impl Script {
    pub fn new(plan: Plan) -> Self {
        Self { plan, begun: RefCell::default() }
    }

    /// An action begins.
    pub fn begin(&self, round: u32, action: &Action) {
        self.begun.borrow_mut().entry(round).or_default().push(action.clone());
    }
}

/// What still happens is more telling, and the text is one for the eye: names, or `nothing`.
impl fmt::Display for Without {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = TABLE.iter().map(|row| row.name).chain(["crash in work", "crash in recovery"]);
        let out = (0..).zip(names).filter(|(kind, _)| self.leaves_out(*kind));
        let out: Vec<_> = out.map(|(_, name)| name).collect();
        f.write_str(if out.is_empty() { "nothing" } else { "" })?;
        f.write_str(&out.join(", "))
    }
}

/// The seed alone where everything is drawn.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        let Some(rounds) = &self.rounds else { return Ok(()) };
        write!(f, ":{}:{:x}:", self.salt, self.without.0)?;
        for ((round, actions), place) in rounds.iter().zip(0..) {
            let actions: Vec<_> = actions.iter().map(Action::to_string).collect();
            let between = if place > 0 { ";" } else { "" };
            write!(f, "{between}{round}={}", actions.join(","))?;
        }
        Ok(())
    }
}

/// A text that is not a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a plan: it should be a seed, or like 7:3:0:0=w0@8-12f,f0;2=c")]
pub struct NotAPlan(String);

impl FromStr for Plan {
    type Err = NotAPlan;

    fn from_str(text: &str) -> Result<Self, NotAPlan> {
        let dense: String = text.split_whitespace().collect();
        parse(&dense).ok_or_else(|| NotAPlan(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Plan> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [seed] => Some(Plan::whole(seed.parse().ok()?)),
        [seed, salt, without, rounds] => {
            let without = Without(u32::from_str_radix(without, 16).ok()?);
            let rounds = rounds.split(';').filter(|text| !text.is_empty()).map(round);
            Some(Plan {
                seed: seed.parse().ok()?,
                salt: salt.parse().ok()?,
                without: (without.0 >> Without::KINDS == 0).then_some(without)?,
                rounds: Some(rounds.collect::<Option<Rounds>>()?),
            })
        }
        _ => None,
    }
}

fn round(text: &str) -> Option<(u32, Vec<Action>)> {
    let (round, actions) = text.split_once('=')?;
    let actions: Result<_, _> = actions.split(',').map(str::parse).collect();
    Some((round.parse().ok()?, actions.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a plan that was printed can be read again, and other texts are told apart.
    #[test]
    fn plans_are_printed_and_read() {
        let text = "7:3:20001:0=w0@8-12f,f0;2=c,s,p77,t1@0-4,h0@1-2,n0@1-2f,r0@0-9";
        let plan: Plan = text.parse().unwrap();
        assert_eq!((plan.seed, plan.salt, plan.to_string()), (7, 3, text.to_owned()));
        assert!(plan.without.fault(Fault::Stall) && !plan.without.fault(Fault::ClockJump));
        assert_eq!("7 : 3 : 0 :\n0 = f0,\n  c\n".parse(), "7:3:0:0=f0,c".parse::<Plan>());
        let nothing = Plan { rounds: Some(Rounds::new()), ..plan.clone() };
        for plan in [plan, nothing, Plan::whole(9)] {
            assert_eq!(plan.to_string().parse(), Ok(plan));
        }
        for text in ["", "x", "7:3", "7:3:0", "7:3:0:1", "7:3:0:1=", "7:3:0:1=x", "7:3:0:1=c:"] {
            assert!(text.parse::<Plan>().is_err(), "{text}");
        }
        for text in ["7:3:x:", "7:3:ffffffff:", "7:3:0:1=w0@4-4", "7:3:0:1=w0@9-4", "7::0:1=c"] {
            assert!(text.parse::<Plan>().is_err(), "{text}");
        }
    }
}
