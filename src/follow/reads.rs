//! Reads of devices under way, each by the lines of a view and good for so long.
//!
//! What a read goes by is kept out of use for it, by all that is freed meanwhile. So that a device
//! that answers late, or never, does not hold that back for ever, a read counts for one lease; what
//! it brings after that may be anybody's, and is not answered.

use std::collections::BTreeMap;

use crate::env::Moment;

/// The reads under way.
#[derive(Debug, Default)]
pub struct Reads {
    last: u64,
    /// The view of each, and until when it is good.
    under_way: BTreeMap<u64, (u64, Moment)>,
}

impl Reads {
    /// One begins by the lines of that view; its number.
    pub fn enter(&mut self, view: u64, until: Moment) -> u64 {
        self.last += 1;
        self.under_way.insert(self.last, (view, until));
        self.last
    }

    /// One has ended.
    pub fn leave(&mut self, number: u64) {
        self.under_way.remove(&number);
    }

    /// Whether what it brings is still good.
    pub fn is_good(&self, number: u64, now: Moment) -> bool {
        let read = self.under_way.get(&number);
        read.is_some_and(|(_, until)| now < *until)
    }

    /// The oldest view that one goes by which is still good.
    pub fn oldest(&self, now: Moment) -> Option<u64> {
        let good = self.under_way.values().filter(|(_, until)| now < *until);
        good.map(|(view, _)| *view).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the oldest view of what is under way counts, and no longer than that read is good; at
    /// no moment does a read count no more whose contents would still be answered.
    #[test]
    fn late_reads_hold_nothing_back() {
        let mut reads = Reads::default();
        let numbers = [(5, 10), (5, 30), (7, 20), (9, 40)].map(|(view, until)| {
            let number = reads.enter(view, Moment(until));
            (number, view, until)
        });
        for (now, oldest) in [(0, Some(5)), (10, Some(5)), (29, Some(5)), (30, Some(9)), (40, None)]
        {
            assert_eq!(reads.oldest(Moment(now)), oldest, "{now}");
            for (number, view, until) in numbers {
                let good = reads.is_good(number, Moment(now));
                assert_eq!(good, now < until);
                assert!(!good || oldest.is_some_and(|oldest| oldest <= view));
            }
        }
        reads.leave(numbers[1].0);
        assert_eq!(reads.oldest(Moment(15)), Some(7));
        assert!(!reads.is_good(numbers[1].0, Moment(15)));
        numbers.iter().for_each(|(number, ..)| reads.leave(*number));
        assert_eq!(reads.oldest(Moment(0)), None);
    }
}
