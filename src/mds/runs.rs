//! A set of extents kept as runs, which remembers what of it changed since it was last stored.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::ids::{ExtentId, ExtentRun};

/// Extents as runs that neither overlap nor touch, by their start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunSet {
    runs: BTreeMap<u32, u32>,
    total: u64,
    /// Starts whose rows differ from what is stored.
    changed: BTreeSet<u32>,
}

impl RunSet {
    /// The set of these runs, as stored; `None` where they overlap or are empty.
    pub fn from_stored(stored: impl IntoIterator<Item = ExtentRun>) -> Option<Self> {
        let mut set = RunSet::default();
        for run in stored {
            if run.count == 0 || set.overlaps(run) {
                return None;
            }
            set.runs.insert(run.start.0, run.count);
            set.total += u64::from(run.count);
        }
        Some(set)
    }

    /// How many extents there are.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The runs in order.
    pub fn iter(&self) -> impl Iterator<Item = ExtentRun> {
        self.runs.iter().map(|(&start, &count)| ExtentRun { start: ExtentId(start), count })
    }

    /// The runs that begin at or after `from`, in order.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = ExtentRun> {
        let runs = self.runs.range(from..);
        runs.map(|(&start, &count)| ExtentRun { start: ExtentId(start), count })
    }

    /// Whether the extent is in the set.
    pub fn contains(&self, extent: ExtentId) -> bool {
        self.contains_run(ExtentRun { start: extent, count: 1 })
    }

    /// Whether all of the run is in the set.
    pub fn contains_run(&self, run: ExtentRun) -> bool {
        self.around(run.start.0).is_some_and(|around| run.end() <= around.end())
    }

    /// Whether any of the run is in the set.
    pub fn overlaps(&self, run: ExtentRun) -> bool {
        let before_end = self.runs.range(..run.end().0).next_back();
        before_end.is_some_and(|(&start, &count)| start + count > run.start.0)
    }

    /// Adds a run of which nothing is in the set yet.
    pub fn insert(&mut self, run: ExtentRun) {
        assert!(run.count > 0 && !self.overlaps(run), "{run:?} is there already");
        let (mut start, mut count) = (run.start.0, run.count);
        if let Some((&before, &length)) = self.runs.range(..start).next_back()
            && before + length == start
        {
            self.drop_row(before);
            (start, count) = (before, length + count);
        }
        if let Some(&length) = self.runs.get(&(start + count)) {
            self.drop_row(start + count);
            count += length;
        }
        self.put_row(start, count);
        self.total += u64::from(run.count);
    }

    /// Takes out a run of which everything is in the set.
    pub fn remove(&mut self, run: ExtentRun) {
        assert!(run.count > 0 && self.contains_run(run), "{run:?} is not all there");
        let around = self.around(run.start.0).expect("contained a moment ago");
        self.drop_row(around.start.0);
        if around.start < run.start {
            self.put_row(around.start.0, run.start.0 - around.start.0);
        }
        if run.end() < around.end() {
            self.put_row(run.end().0, around.end().0 - run.end().0);
        }
        self.total -= u64::from(run.count);
    }

    /// Takes out up to `count` extents in at most `runs_max` runs: from the first run that holds
    /// them all, or else from the longest ones.
    pub fn take(&mut self, count: u32, runs_max: usize) -> Vec<ExtentRun> {
        let mut wanted = count;
        let whole = self.iter().find(|run| run.count >= count);
        let mut sources = if let Some(run) = whole {
            vec![run]
        } else {
            let mut all: Vec<ExtentRun> = self.iter().collect();
            all.sort_by_key(|run| (std::cmp::Reverse(run.count), run.start));
            all.truncate(runs_max);
            all
        };
        let mut taken = Vec::new();
        for source in &mut sources {
            let count = source.count.min(wanted);
            if count == 0 {
                break;
            }
            let run = ExtentRun { start: source.start, count };
            self.remove(run);
            taken.push(run);
            wanted -= count;
        }
        taken.sort();
        taken
    }

    /// What changed since the last time: each start with its new count, or `None` where no run
    /// starts any more.
    pub fn take_changes(&mut self) -> Vec<(u32, Option<u32>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|start| (start, self.runs.get(&start).copied())).collect()
    }

    /// The run that holds `extent`.
    fn around(&self, extent: u32) -> Option<ExtentRun> {
        let (&start, &count) = self.runs.range(..=extent).next_back()?;
        (extent < start + count).then_some(ExtentRun { start: ExtentId(start), count })
    }

    fn put_row(&mut self, start: u32, count: u32) {
        self.runs.insert(start, count);
        self.changed.insert(start);
    }

    fn drop_row(&mut self, start: u32) {
        self.runs.remove(&start);
        self.changed.insert(start);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn run(start: u32, count: u32) -> ExtentRun {
        ExtentRun { start: ExtentId(start), count }
    }

    proptest! {
        /// Goal: against a plain set, through any history: same members, runs that never touch, and
        /// changes that bring a stored copy to the same runs.
        #[test]
        fn behaves_as_a_set(
            steps in proptest::collection::vec((0..4u8, 0..60u32, 1..12u32), 1..120)
        ) {
            let (mut set, mut model) = (RunSet::default(), BTreeSet::new());
            let mut stored: BTreeMap<u32, u32> = BTreeMap::new();
            for (what, start, count) in steps {
                let run = run(start, count);
                let inside = run.iter().filter(|extent| model.contains(extent)).count() as u32;
                prop_assert_eq!(set.overlaps(run), inside > 0);
                prop_assert_eq!(set.contains_run(run), inside == count);
                match what {
                    0 | 1 if inside == 0 => {
                        set.insert(run);
                        model.extend(run.iter());
                    }
                    2 if inside == count => {
                        set.remove(run);
                        run.iter().for_each(|extent| assert!(model.remove(&extent)));
                    }
                    3 => {
                        let before = model.len();
                        let taken = set.take(count, 3);
                        prop_assert!(taken.len() <= 3);
                        for extent in taken.iter().flat_map(|run| run.iter()) {
                            prop_assert!(model.remove(&extent));
                        }
                        prop_assert!(before - model.len() <= count as usize);
                        prop_assert!(before == 0 || model.len() < before);
                    }
                    _ => {}
                }
                for (start, count) in set.take_changes() {
                    match count {
                        Some(count) => stored.insert(start, count),
                        None => stored.remove(&start),
                    };
                }
                prop_assert_eq!(&stored, &set.runs);
                prop_assert_eq!(set.total(), model.len() as u64);
                prop_assert!(set.iter().flat_map(|run| run.iter().collect::<Vec<_>>())
                    .eq(model.iter().copied()));
                let runs: Vec<ExtentRun> = set.iter().collect();
                prop_assert!(runs.windows(2).all(|two| two[0].end() < two[1].start));
            }
        }
    }

    /// Goal: rows that overlap are seen as damage.
    #[test]
    fn damaged_rows() {
        assert!(RunSet::from_stored([run(0, 5), run(4, 2)]).is_none());
        assert!(RunSet::from_stored([run(0, 5), run(5, 2)]).is_some());
    }
}
