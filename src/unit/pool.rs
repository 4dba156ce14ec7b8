//! The extents that a unit may bind: those granted to it that no pair has.

use super::grant::Amount;
use crate::format::ids::{ExtentId, ExtentRun};
use crate::mds::records::{Grants, RETURN_RUNS_MAX};
use crate::mutants::{Mutant, mutated};

/// A set of numbers below a bound, from which the next one at or after a cursor is taken.
#[derive(Debug)]
pub struct Numbers {
    words: Vec<u64>,
    count: u32,
    cursor: usize,
}

impl Numbers {
    /// No number, of those below `bound`.
    pub fn none(bound: u32) -> Self {
        Self { words: vec![0; (bound as usize).div_ceil(64)], count: 0, cursor: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether a number is in the set.
    pub fn contains(&self, number: u32) -> bool {
        let word = self.words.get(number as usize / 64);
        word.is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Adds a number, which must not be there.
    pub fn insert(&mut self, number: u32) {
        assert!(!self.contains(number), "{number} is free twice");
        self.words[number as usize / 64] |= 1 << (number % 64);
        self.count += 1;
    }

    /// Removes a number, which must be there.
    pub fn remove(&mut self, number: u32) {
        assert!(self.contains(number), "{number} is not free");
        self.words[number as usize / 64] &= !(1 << (number % 64));
        self.count -= 1;
    }

    /// All of them, the highest first.
    pub fn descending(&self) -> impl Iterator<Item = u32> {
        let words = self.words.iter().enumerate().rev().filter(|(_, word)| **word != 0);
        words.flat_map(|(at, &word)| {
            let bits = (0..64).rev().filter(move |bit| word >> bit & 1 == 1);
            bits.map(move |bit| at as u32 * 64 + bit)
        })
    }

    /// Takes the next number from the cursor on; after the last comes the first again.
    pub fn take(&mut self) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        while self.words[self.cursor] == 0 {
            self.cursor = (self.cursor + 1) % self.words.len();
        }
        let number = self.cursor as u32 * 64 + self.words[self.cursor].trailing_zeros();
        self.remove(number);
        Some(number)
    }
}

/// The free extents of a unit, and how many it may use as data areas.
#[derive(Debug)]
pub struct ExtentPool {
    bound: u32,
    free: Numbers,
    /// Every extent that the metadata server has granted, whatever became of it.
    held: Numbers,
    granted: u32,
    /// Runs on failed devices.
    withdrawn: Vec<ExtentRun>,
    /// Data areas that the metadata server lets this unit have.
    data_quota: u64,
    /// Data areas that it has.
    data_used: u64,
}

impl ExtentPool {
    /// A pool of the granted runs, all free, out of extents numbered below `bound`.
    pub fn new(bound: u32, granted: &[ExtentRun], data_quota: u64) -> Self {
        let none = || Numbers::none(bound);
        let (free, held, withdrawn) = (none(), none(), Vec::new());
        let mut pool = Self { bound, free, held, granted: 0, withdrawn, data_quota, data_used: 0 };
        granted.iter().for_each(|run| pool.hold(*run));
        pool
    }

    fn hold(&mut self, run: ExtentRun) {
        for extent in run.iter() {
            self.held.insert(extent.0);
            self.granted += 1;
            self.give(extent);
        }
    }

    /// Takes what was granted; where some of it cannot be, as it is held already or of no such
    /// pool, that run, and nothing has changed.
    pub fn grow(&mut self, grants: &Grants) -> Result<(), ExtentRun> {
        let mut before = 0;
        for run in &grants.runs {
            let sound = run.start.0 >= before && run.end().0 <= self.bound;
            if !sound || run.iter().any(|extent| self.is_held(extent)) {
                return Err(*run);
            }
            before = run.end().0;
        }
        let forgotten = usize::from(mutated(Mutant::GrantForgotten)).min(grants.runs.len());
        grants.runs[forgotten..].iter().for_each(|run| self.hold(*run));
        self.data_quota += grants.data_quota;
        Ok(())
    }

    /// Lets go of free extents, the highest ones, and of unused quota: at most so much, in no more
    /// runs than can be given back at a time.
    pub fn shrink(&mut self, back: Amount) -> (Vec<ExtentRun>, u32) {
        let mut runs: Vec<ExtentRun> = Vec::new();
        let mut left = back.extents;
        for number in self.free.descending() {
            if left == 0 || runs.len() == RETURN_RUNS_MAX {
                break;
            }
            left -= 1;
            let start = ExtentId(number);
            match runs.last_mut().filter(|last| last.start.0 == number + 1) {
                Some(last) => *last = ExtentRun { start, count: last.count + 1 },
                None => runs.push(ExtentRun { start, count: 1 }),
            }
        }
        runs.reverse();
        for extent in runs.iter().flat_map(|run| run.iter()) {
            if !mutated(Mutant::ReturnedTwice) {
                self.free.remove(extent.0);
                self.held.remove(extent.0);
                self.granted -= 1;
            }
        }
        let data = back.data.min(self.data_quota.saturating_sub(self.data_used)) as u32;
        self.data_quota -= u64::from(data);
        (runs, data)
    }

    /// Whether an extent was granted, and not given back.
    pub fn is_held(&self, extent: ExtentId) -> bool {
        self.held.contains(extent.0)
    }

    /// How many extents were granted and not given back, those withdrawn with them.
    pub fn held(&self) -> u32 {
        self.held.len()
    }

    /// What is left of the grant.
    pub fn left(&self) -> Amount {
        Amount { extents: self.available(), data: self.data_left() }
    }

    /// Whether an extent is free.
    pub fn is_free(&self, extent: ExtentId) -> bool {
        self.free.contains(extent.0)
    }

    /// How many extents were granted in all, without those withdrawn.
    pub fn granted(&self) -> u32 {
        self.granted
    }

    /// Takes the free extents of a run out of the pool for good: their device failed.
    pub fn withdraw(&mut self, run: ExtentRun) {
        for extent in run.iter() {
            if self.is_free(extent) {
                self.free.remove(extent.0);
                self.granted -= 1;
            }
        }
        self.withdrawn.push(run);
    }

    /// How many extents are free.
    pub fn available(&self) -> u32 {
        self.free.len()
    }

    /// How many more data areas there may be.
    pub fn data_left(&self) -> u64 {
        if mutated(Mutant::ReserveIgnored) {
            return u64::from(self.available());
        }
        self.data_quota.saturating_sub(self.data_used)
    }

    /// How many data areas there may be.
    pub fn data_quota(&self) -> u64 {
        self.data_quota
    }

    /// How many data areas there are.
    pub fn data_used(&self) -> u64 {
        self.data_used
    }

    /// Notes, at recovery, an extent that a pair has, and that is free.
    pub fn claim(&mut self, extent: ExtentId) {
        self.free.remove(extent.0);
    }

    /// Notes, at recovery, a pair that has a data area.
    pub fn claim_data(&mut self) {
        self.data_used += 1;
    }

    /// Takes an extent for a new pair's data area. The caller has checked that there is one.
    pub fn take_data(&mut self) -> ExtentId {
        assert!(
            self.data_left() > 0 || mutated(Mutant::ReserveIgnored),
            "a data area beyond the quota"
        );
        self.data_used += 1;
        self.take_journal()
    }

    /// Takes an extent for a journal area. The caller has checked that there is one.
    pub fn take_journal(&mut self) -> ExtentId {
        ExtentId(self.free.take().expect("a free extent was counted before"))
    }

    /// Gives back an extent that no pair, bit or reader can see.
    pub fn give(&mut self, extent: ExtentId) {
        let is_in = |run: &ExtentRun| run.start <= extent && extent < run.end();
        if self.withdrawn.iter().any(is_in) {
            self.granted -= 1;
        } else {
            self.free.insert(extent.0);
        }
    }

    /// Notes that a pair ceased to be.
    pub fn give_data(&mut self) {
        assert!(self.data_used > 0, "a data area that was not counted");
        self.data_used -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is granted is there once, and only where it can be; what is given back is the
    /// surplus, in runs, and may be granted again; what was withdrawn stays so.
    #[test]
    fn pools_grow_and_shrink() {
        let run = |start, count| ExtentRun { start: ExtentId(start), count };
        let grants = |runs: &[ExtentRun]| Grants { runs: runs.to_vec(), data_quota: 3 };
        let mut pool = ExtentPool::new(100, &[run(0, 10)], 2);
        pool.withdraw(run(50, 5));
        for wrong in [run(9, 2), run(99, 2), run(5, 1)] {
            assert_eq!(pool.grow(&grants(&[run(20, 1), wrong])), Err(wrong));
        }
        assert_eq!(pool.grow(&grants(&[run(30, 2), run(31, 1)])), Err(run(31, 1)));
        assert_eq!(pool.left(), Amount { extents: 10, data: 2 });
        pool.grow(&grants(&[run(40, 12), run(90, 1)])).unwrap();
        assert_eq!(pool.left(), Amount { extents: 21, data: 5 });
        assert_eq!((pool.held(), pool.granted(), pool.is_held(ExtentId(51))), (23, 21, true));
        assert_eq!(pool.take_data(), ExtentId(0));
        let back = pool.shrink(Amount { extents: 12, data: 9 });
        assert_eq!(back, (vec![run(9, 1), run(40, 10), run(90, 1)], 4));
        assert_eq!(pool.left(), Amount { extents: 8, data: 0 });
        assert_eq!((pool.held(), pool.granted(), pool.is_held(ExtentId(45))), (11, 9, false));
        pool.grow(&grants(&[run(40, 10)])).unwrap();
        assert_eq!(pool.shrink(Amount { extents: 18, data: 0 }).0, [run(1, 8), run(40, 10)]);
    }

    /// Goal: extents come in order, round and round, each once; quota and count are kept.
    #[test]
    fn extents_come_in_order() {
        let run = ExtentRun { start: ExtentId(60), count: 10 };
        let mut pool = ExtentPool::new(200, &[run], 2);
        pool.claim(ExtentId(61));
        assert_eq!(pool.take_data(), ExtentId(60));
        assert_eq!(pool.take_journal(), ExtentId(62));
        pool.give(ExtentId(60));
        assert_eq!((pool.available(), pool.data_left()), (8, 1));
        let rest: Vec<_> = (0..8).map(|_| pool.take_journal().0).collect();
        assert_eq!(rest, [60, 63, 64, 65, 66, 67, 68, 69].map(|n| n));
        assert_eq!(pool.available(), 0);
    }
}
