//! Decisions about journal space, as plain functions: swap or commit, which pair first, when to
//! begin, and how much to slow writers (design section 7).

use std::time::Duration;

use crate::format::blocks::{BlockMap, BlockSet};
use crate::format::ids::Slot;

/// When journal areas are given back (`--settle`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SettlePolicy {
    /// When free extents run low.
    #[default]
    Pressure,
    /// Also when nothing else is to be done.
    Idle,
    /// After each commit, as the '721 patent describes it.
    Always,
}

/// How one pair's journaling ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The side that holds everything afterwards.
    pub keep: Slot,
    /// The blocks to copy to it from the other side.
    pub copy: BlockSet,
}

impl Settlement {
    /// Whether the journal area becomes the data area (Swap_Data_Journal), or its contents go to
    /// the data area (Commit_Data_Journal).
    pub fn is_swap(&self, data_slot: Slot) -> bool {
        self.keep != data_slot
    }
}

/// Swap or commit: copies the smaller side ('721 claim 1). With D the dirty blocks (those in the
/// journal area) and C the used ones that are not, D > C copies C and swaps; otherwise D is copied
/// and committed.
pub fn settlement(map: BlockMap, data_slot: Slot) -> Settlement {
    let dirty = map.side(data_slot.other());
    let clean = map.side(data_slot);
    if dirty.len() > clean.len() {
        Settlement { keep: data_slot.other(), copy: clean }
    } else {
        Settlement { keep: data_slot, copy: dirty }
    }
}

/// The two levels of free extents between which settling keeps the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Below this many free extents writers are slowed, and wait for a settle they meet.
    pub low: u32,
    /// Below this many free extents settling begins; it ends when there are this many.
    pub high: u32,
}

impl Watermarks {
    /// The levels for a pool that keeps `reserve` extents from thin allocation: the reserve is what
    /// a full pool has for journaling, and so many percent of it are kept free.
    pub fn for_reserve(reserve: u32, percent: u8) -> Watermarks {
        let high = (u64::from(reserve) * u64::from(percent) / 100) as u32;
        let high = high.max(2);
        Watermarks { low: (high / 2).max(1), high }
    }
}

/// The longest that one request is slowed for want of free extents.
pub const THROTTLE_MAX: Duration = Duration::from_millis(5);

/// How long a request that takes an extent is held back first: nothing above the low watermark,
/// and from there on the longer the fewer are left, so that writers come down to the speed of
/// settling before they have to stop.
pub fn throttle(free: u32, watermarks: Watermarks) -> Duration {
    let missing = watermarks.low.saturating_sub(free);
    THROTTLE_MAX * missing / watermarks.low.max(1)
}

/// What part of the high watermark is worth a transaction.
const WORTH_OF_HIGH: u32 = 16;

/// How many extents to settle for where so many are free and so many requests wait for one: those
/// that are missing, but enough to be worth a transaction.
pub fn missing(free: u32, waiting: u32, watermarks: Watermarks) -> u32 {
    let missing = (watermarks.high + waiting).saturating_sub(free);
    missing.max(watermarks.high / WORTH_OF_HIGH).max(1)
}

/// A pair that could be settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<T> {
    /// Which.
    pub pair: T,
    /// Blocks to copy.
    pub cost: usize,
    /// When it was last committed to; the lower the colder.
    pub touched: u64,
}

/// Puts the cheapest `count` candidates first, the coldest first among equals, and drops the rest.
pub fn cheapest<T: Copy + Ord>(mut candidates: Vec<Candidate<T>>, count: usize) -> Vec<T> {
    let key = |c: &Candidate<T>| (c.cost, c.touched, c.pair);
    if candidates.len() > count && count > 0 {
        candidates.select_nth_unstable_by_key(count - 1, key);
    }
    candidates.truncate(count);
    candidates.sort_unstable_by_key(key);
    candidates.into_iter().map(|c| c.pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::blocks::Location;
    use proptest::prelude::*;

    /// Goal: '721 claim 1 over all counts of dirty and clean blocks, either slot being the data
    /// area: the smaller side is copied, and a tie commits.
    #[test]
    fn the_smaller_side_is_copied() {
        for data_slot in Slot::BOTH {
            for dirty in 0..20 {
                for clean in 0..20 {
                    let mut map = BlockMap::NONE;
                    let (d, c) = (BlockSet::range(0..dirty), BlockSet::range(50..50 + clean));
                    map.set(d, Location::At(data_slot.other()));
                    map.set(c, Location::At(data_slot));
                    let settlement = settlement(map, data_slot);
                    assert_eq!(settlement.is_swap(data_slot), dirty > clean);
                    assert_eq!(settlement.copy, if dirty > clean { c } else { d });
                    assert_eq!(settlement.copy, map.side(settlement.keep.other()));
                }
            }
        }
    }

    /// Goal: no delay above the low watermark, the longest with nothing left, and never less with
    /// fewer extents.
    #[test]
    fn throttling_is_smooth() {
        for reserve in 0..500 {
            let marks = Watermarks::for_reserve(reserve, 50);
            assert!(marks.low >= 1 && marks.low < marks.high);
            assert_eq!(throttle(marks.low, marks), Duration::ZERO);
            assert_eq!(throttle(0, marks), THROTTLE_MAX);
            for free in 1..marks.high {
                assert!(throttle(free, marks) <= throttle(free - 1, marks));
            }
        }
    }

    /// Goal: settling goes on until the high watermark is reached, by steps that end.
    #[test]
    fn what_is_missing_is_settled() {
        for reserve in 0..500 {
            let marks = Watermarks::for_reserve(reserve, 50);
            for free in 0..marks.high {
                let count = missing(free, 0, marks);
                assert!(count >= 1 && free + count >= marks.high, "{marks:?} {free}");
                assert!(free + count <= marks.high + (marks.high / WORTH_OF_HIGH).max(1));
                // Those who wait get theirs, and again only once they have taken it.
                assert!((0..50).all(|n| missing(free, n, marks) >= marks.high - free + n));
                let least = (marks.high / WORTH_OF_HIGH).max(1);
                assert_eq!(missing(marks.high + free, free, marks), least);
            }
        }
    }

    proptest! {
        /// Goal: what is chosen is what sorting would choose.
        #[test]
        fn the_cheapest_come_first(
            all in prop::collection::vec((0_usize..9, 0_u64..9), 0..40),
            count in 0_usize..50,
        ) {
            let candidates: Vec<_> = all.iter().enumerate()
                .map(|(pair, &(cost, touched))| Candidate { pair, cost, touched }).collect();
            let mut sorted = candidates.clone();
            sorted.sort_by_key(|c| (c.cost, c.touched, c.pair));
            let expected: Vec<_> = sorted.iter().take(count).map(|c| c.pair).collect();
            prop_assert_eq!(cheapest(candidates, count), expected);
        }
    }
}
