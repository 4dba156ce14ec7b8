//! Which lines changed in which turn, so that readers beside the unit can follow.
//!
//! A view is a number: how often the store was opened, and the turns since that changed lines. So
//! views grow over the server's starts, and what was seen of an earlier start is told from what is
//! seen of this one. What changed is kept in memory, of no more than [`LOGGED_MAX`] lines: who is
//! further behind asks for all of them.

use std::collections::{BTreeSet, VecDeque};

use crate::format::ids::{PairId, UnitId};

/// The most changed lines that are remembered.
const LOGGED_MAX: usize = 64 << 10;
/// Bits of a view that count turns.
const TURN_BITS: u32 = 32;

type Pair = (UnitId, PairId);

/// The views of one start.
pub(super) struct Views {
    /// The last one that is durable.
    committed: u64,
    /// What this turn has changed.
    open: BTreeSet<Pair>,
    /// Each view since `known_from`, and what it changed.
    log: VecDeque<(u64, BTreeSet<Pair>)>,
    logged: usize,
    /// What changed after this view is in the log.
    known_from: u64,
    /// This start's number is in the store.
    stored: bool,
}

impl Views {
    /// The views of a start.
    pub fn new(start: u32) -> Self {
        let first = u64::from(start) << TURN_BITS;
        Views {
            committed: first,
            open: BTreeSet::new(),
            log: VecDeque::new(),
            logged: 0,
            known_from: first,
            stored: false,
        }
    }

    /// The number of this start, unless it is in the store.
    pub fn start_to_store(&mut self) -> Option<u32> {
        let stored = std::mem::replace(&mut self.stored, true);
        (!stored).then_some((self.committed >> TURN_BITS) as u32)
    }

    /// A line was changed.
    pub fn note(&mut self, pair: Pair) {
        self.open.insert(pair);
    }

    /// The view that this turn's changes are in.
    pub fn now(&self) -> u64 {
        self.committed + u64::from(!self.open.is_empty())
    }

    /// What the turn changed is durable.
    pub fn turn_ends(&mut self) {
        self.committed = self.now();
        if self.open.is_empty() {
            return;
        }
        let changed = std::mem::take(&mut self.open);
        self.logged += changed.len();
        self.log.push_back((self.committed, changed));
        while self.logged > LOGGED_MAX
            && let Some((view, forgotten)) = self.log.pop_front()
        {
            self.logged -= forgotten.len();
            self.known_from = view;
        }
    }

    /// The lines that changed after a view, no more than `count`, and up to which view that tells;
    /// `None` where it is not known, or too many to tell.
    pub fn since(&self, view: u64, count: usize) -> Option<(u64, BTreeSet<Pair>)> {
        if view < self.known_from || view > self.committed {
            return None;
        }
        let (mut up_to, mut all) = (view, BTreeSet::new());
        for (next, changed) in self.log.iter().filter(|(next, _)| *next > view) {
            if all.len() + changed.len() > count {
                break;
            }
            all.extend(changed.iter().copied());
            up_to = *next;
        }
        (up_to > view || view == self.committed).then_some((up_to, all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(views: &mut Views, pairs: std::ops::Range<u32>) {
        pairs.for_each(|pair| views.note((UnitId(0), PairId(pair))));
        views.turn_ends();
    }

    /// Goal: an answer ends with a whole view, and one that does not fit alone cannot be told.
    #[test]
    fn answers_hold_whole_views() {
        let mut views = Views::new(1);
        let first = views.now();
        turn(&mut views, 0..3);
        turn(&mut views, 2..5);
        let told = |since, count| views.since(since, count).map(|(to, all)| (to, all.len()));
        assert_eq!(told(first, 6), Some((first + 2, 5)));
        assert_eq!(told(first, 5), Some((first + 1, 3)));
        assert_eq!(told(first + 1, 5), Some((first + 2, 3)));
        assert_eq!(told(first, 2), None);
        assert_eq!(told(first + 2, 0), Some((first + 2, 0)));
    }

    /// Goal: what is forgotten is not told as unchanged.
    #[test]
    fn the_log_is_bounded() {
        let mut views = Views::new(7);
        let first = views.now();
        for _ in 0..10 {
            turn(&mut views, 0..LOGGED_MAX as u32 / 4);
        }
        assert!(views.logged <= LOGGED_MAX);
        assert_eq!(views.since(first, usize::MAX), None);
        assert!(views.since(first + 6, usize::MAX).is_some());
        assert_eq!(views.since(first + 5, usize::MAX), None);
    }

    /// Goal: a start is stored once, and its views come after those of the one before.
    #[test]
    fn starts() {
        let mut views = Views::new(3);
        turn(&mut views, 0..1);
        assert_eq!((views.start_to_store(), views.start_to_store()), (Some(3), None));
        assert!(Views::new(4).now() > views.now());
    }
}
