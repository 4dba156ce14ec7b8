//! The grant: what the unit has of the pool ahead of need, so that the metadata server is on
//! nobody's way (design section 8). When to ask for more and what to give back is decided here, by
//! plain functions.
//!
//! Two things are granted: extents, and the quota, which is how many of its extents the unit may
//! make data areas. A data area takes one of each, a journal area an extent alone. The unit keeps
//! a level of both in hand: with less than half of it left it asks, with more than twice as much it
//! gives the surplus back. Who needs more than is there waits while the server may have more, and
//! asks for what is missing, be it more than the level.
//!
//! # A full pool can still be overwritten and trimmed
//!
//! That is so however small the grant is, since no rule here depends on the level:
//!
//! - The server gives quota for all extents of the pool but the reserve, and no more. So as many
//!   extents as the reserve has are never data areas, wherever they are.
//! - The server gives any free extent to who asks for journal space. Only when it has said that it
//!   has none ([`Grant::more_extents`]), and thus every extent of the pool is in this unit's hands
//!   (a pool has one unit), does anyone wait for a settle, or is told that there is no space. From
//!   there on all is as if the whole pool had been granted at once: those as many as the reserve
//!   has are free, or are journal areas, which a settle frees; and no request needs more of them
//!   than there are ([`super::limits`]).
//! - What the server has said is forgotten as soon as something is given back. Nothing is given
//!   back while anyone waits: or what a settle has freed for them would go to and fro.
//!
//! While the server is silent the grant is all there is: no settle could free anything either, as
//! that waits for the server, too. Requests that need no extents go on.

use crate::mds::records::Grants;
use crate::mutants::{Mutant, mutated};

/// The smallest grant that is chosen unasked, in extents.
const DEFAULT_MIN: u32 = 1024;
/// Which part of the pool is chosen unasked where that is more.
const DEFAULT_PART: u32 = 16;

/// The grant of a unit that does not take the whole pool, where nothing else was said, in extents.
pub fn default_level(pool_extents: u32) -> u32 {
    (pool_extents / DEFAULT_PART).max(DEFAULT_MIN)
}

/// So many of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Extents.
    pub extents: u32,
    /// Data areas.
    pub data: u64,
}

/// What is to be said to the server next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask for so much of the quota, and as many extents.
    AskData(u32),
    /// Ask for so many extents.
    AskExtents(u32),
    /// Give so much back.
    Return(Amount),
}

/// What the unit keeps in hand, and what it knows of the server.
#[derive(Debug)]
pub struct Grant {
    /// Free extents, and unused quota, that it keeps in hand; without it, all that there is.
    level: Option<u32>,
    /// The server may have more extents.
    more_extents: bool,
    /// The server may have more of the quota.
    more_data: bool,
    /// The most that any of those needs who wait.
    wanted: Amount,
    /// Something that was said to the server is not answered.
    pub under_way: bool,
}

impl Grant {
    /// Of so many extents, or of all; nothing is known of the server.
    pub fn new(level: Option<u32>) -> Self {
        let wanted = Amount::default();
        Self { level, more_extents: true, more_data: true, wanted, under_way: false }
    }

    /// How many extents the unit keeps in hand, where it does not take all.
    pub fn level(&self) -> Option<u32> {
        self.level
    }

    /// Whether the server may have more extents.
    pub fn more_extents(&self) -> bool {
        self.more_extents
    }

    /// Whether the server may have more of the quota.
    pub fn more_data(&self) -> bool {
        self.more_data
    }

    /// Someone needs so much, and waits.
    pub fn want(&mut self, needs: Amount) {
        let Amount { extents, data } = self.wanted;
        self.wanted = Amount { extents: extents.max(needs.extents), data: data.max(needs.data) };
    }

    /// Nobody waits any more.
    pub fn nobody_waits(&mut self) {
        self.wanted = Amount::default();
    }

    /// Whether the server may have what those need who wait, of whom there are some.
    pub fn may_supply(&self, left: Amount) -> bool {
        let data = self.more_data && self.wanted.data > left.data;
        data || self.more_extents && self.wanted.extents > left.extents
    }

    /// What is to be done, with so much left, while anyone `waits` or not.
    pub fn step(&self, left: Amount, waits: bool) -> Option<Step> {
        let level = self.level.unwrap_or(u32::MAX);
        let Amount { extents, data } = left;
        if self.more_data && (is_low(data, level) || self.wanted.data > data) {
            let aim = self.wanted.data.max(level.into());
            return Some(Step::AskData(u32::try_from(aim - data).unwrap_or(u32::MAX)));
        }
        if self.more_extents && (is_low(extents.into(), level) || self.wanted.extents > extents) {
            return Some(Step::AskExtents(self.wanted.extents.max(level) - extents));
        }
        let surplus =
            |has: u64| if has > 2 * u64::from(level) { has - u64::from(level) } else { 0 };
        let extents = surplus(extents.into()) as u32;
        let back = Amount { extents, data: surplus(data).min(u32::MAX.into()) };
        (back != Amount::default() && !waits).then_some(Step::Return(back))
    }

    /// The server has answered a question with so much.
    pub fn answered(&mut self, step: Step, given: &Grants) {
        match step {
            Step::AskData(_) => self.more_data = given.data_quota > 0,
            Step::AskExtents(_) => self.more_extents = !given.runs.is_empty(),
            Step::Return(_) => {}
        }
    }

    /// Something is given back: the server has that, at least.
    pub fn returning(&mut self, back: Amount) {
        if !mutated(Mutant::ExhaustedBelieved) {
            self.more_extents |= back.extents > 0;
            self.more_data |= back.data > 0;
        }
    }
}

/// Whether less than half of the level is left.
fn is_low(left: u64, level: u32) -> bool {
    2 * left < level.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{ExtentId, ExtentRun};

    fn given(extents: u32, data_quota: u64) -> Grants {
        let runs = (extents > 0).then_some(ExtentRun { start: ExtentId(0), count: extents });
        Grants { runs: runs.into_iter().collect(), data_quota }
    }

    /// Goal: over all levels, all that may be left and wanted, and all that a server may have: it
    /// is asked until there is enough or it has no more, which takes few questions; what is given
    /// back leaves the level, only where nobody waits; and then there is nothing more to do.
    #[test]
    fn every_case_comes_to_rest() {
        for (level, left, wanted, has) in cases() {
            let mut grant = Grant::new((level > 0).then_some(level));
            grant.want(wanted);
            let waits = wanted != Amount::default();
            let (mut left, mut has, before) = (left, has, (left, has));
            let mut steps = 0;
            while let Some(step) = grant.step(left, waits) {
                steps += 1;
                assert!(steps < 9, "{level} {wanted:?} {before:?}: {step:?} again and again");
                let mut answer = given(0, 0);
                match step {
                    Step::AskData(count) => {
                        let data = has.data.min(count.into());
                        answer = given(has.extents.min(data as u32), data);
                    }
                    Step::AskExtents(count) => answer = given(has.extents.min(count), 0),
                    Step::Return(back) => {
                        assert!(!waits && back != Amount::default());
                        grant.returning(back);
                        left = Amount {
                            extents: left.extents - back.extents,
                            data: left.data - back.data,
                        };
                        has = Amount {
                            extents: has.extents + back.extents,
                            data: has.data + back.data,
                        };
                    }
                }
                grant.answered(step, &answer);
                let extents = answer.runs.iter().map(|run| run.count).sum::<u32>();
                (left.extents, has.extents) = (left.extents + extents, has.extents - extents);
                (left.data, has.data) =
                    (left.data + answer.data_quota, has.data - answer.data_quota);
            }
            let full = level == 0;
            assert!(!grant.may_supply(left), "who waits waits for nothing that the server has");
            assert!(left.extents >= wanted.extents || has.extents == 0);
            assert!(left.data >= wanted.data || has.data == 0);
            assert!(full || 2 * left.extents >= level || has.extents == 0);
            assert!(
                full || waits || left.extents <= 2 * level && left.data <= 2 * u64::from(level)
            );
            assert!(!full || has == Amount::default(), "without a level all is taken");
        }
    }

    fn cases() -> impl Iterator<Item = (u32, Amount, Amount, Amount)> {
        let counts = [0, 1, 2, 3, 5, 20];
        let amounts = move || {
            let pairs = counts.into_iter().flat_map(move |a| counts.map(|b| (a, b)));
            pairs.map(|(extents, data)| Amount { extents, data: data.into() })
        };
        let all = counts.into_iter().flat_map(move |level| amounts().map(move |a| (level, a)));
        let all = all.flat_map(move |(level, a)| amounts().map(move |b| (level, a, b)));
        all.flat_map(move |(level, a, b)| amounts().map(move |c| (level, a, b, c)))
    }

    /// Goal: what the server has said is believed until something is given back to it.
    #[test]
    fn nothing_is_believed_for_ever() {
        let mut grant = Grant::new(Some(4));
        let none = Amount::default();
        assert_eq!(grant.step(none, false), Some(Step::AskData(4)));
        grant.answered(Step::AskData(4), &given(0, 0));
        assert_eq!(grant.step(none, false), Some(Step::AskExtents(4)));
        grant.answered(Step::AskExtents(4), &given(0, 0));
        assert_eq!(grant.step(none, false), None);
        let back = Amount { extents: 5, data: 5 };
        let left = Amount { extents: 9, data: 9 };
        assert_eq!(grant.step(left, true), None);
        assert_eq!(grant.step(left, false), Some(Step::Return(back)));
        grant.returning(Amount { extents: 5, data: 0 });
        assert_eq!((grant.more_extents(), grant.more_data()), (true, false));
        assert_eq!(grant.step(none, false), Some(Step::AskExtents(4)));
    }

    /// Goal: the default is a sixteenth of a large pool, and something of a small one.
    #[test]
    fn the_default_level() {
        assert_eq!(default_level(100), 1024);
        assert_eq!(default_level(1 << 20), 1 << 16);
    }
}
