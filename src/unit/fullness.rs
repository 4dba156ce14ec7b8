//! How full the pool is, and when to say so: plain decisions.
//!
//! What counts are data extents: those that thin volumes take, of those that they may take (the
//! journal reserve is not theirs).

/// A mark is left only when this many percent points below it are free again, so that a pool that
/// stays about there does not warn again and again.
pub const HYSTERESIS: u8 = 2;

/// Marks at which to warn, and the highest that is crossed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fullness {
    /// In percent, rising.
    marks: Vec<u8>,
    crossed: Option<u8>,
}

/// What there is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// The pool has reached this mark.
    Reached(u8),
    /// The pool is below this mark again.
    Left(u8),
}

impl Fullness {
    /// Nothing is crossed yet. Marks are in percent, in any order.
    pub fn new(marks: &[u8]) -> Self {
        let mut marks = marks.to_vec();
        marks.sort_unstable();
        marks.dedup();
        Self { marks, crossed: None }
    }

    /// The highest mark that is crossed, in percent.
    pub fn crossed(&self) -> Option<u8> {
        self.crossed
    }

    /// Looks at the pool, and says what has changed since the last time.
    pub fn look(&mut self, used: u64, total: u64) -> Option<Crossing> {
        let before = self.crossed;
        self.crossed = highest(&self.marks, before, used, total);
        match (before, self.crossed) {
            (old, Some(new)) if old < Some(new) => Some(Crossing::Reached(new)),
            (Some(old), new) if new < Some(old) => Some(Crossing::Left(old)),
            _ => None,
        }
    }
}

/// The highest mark that counts as crossed, where `before` was until now.
fn highest(marks: &[u8], before: Option<u8>, used: u64, total: u64) -> Option<u8> {
    let holds = |mark: &u8| {
        let kept = before.is_some_and(|before| *mark <= before);
        let from = if kept { mark.saturating_sub(HYSTERESIS) } else { *mark };
        at_least(used, total, from)
    };
    marks.iter().copied().rfind(holds)
}

/// Whether `used` of `total` are at least so many percent.
fn at_least(used: u64, total: u64, percent: u8) -> bool {
    u128::from(used) * 100 >= u128::from(total) * u128::from(percent)
}

/// How many percent `used` of `total` are, rounded down.
pub fn percent(used: u64, total: u64) -> u8 {
    (u128::from(used) * 100).checked_div(u128::from(total)).map_or(100, |part| part.min(100) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: over all fillings, up and down again, each mark is reached once at its own percentage
    /// and left once, two points below it.
    #[test]
    fn each_mark_is_said_once_each_way() {
        let mut pool = Fullness::new(&[90, 80, 80, 100]);
        let mut said = Vec::new();
        for used in (0..=1000).chain((0..1000).rev()) {
            said.extend(pool.look(used, 1000).map(|crossing| (used, crossing)));
        }
        let reached = [80, 90, 100].map(|mark| (u64::from(mark) * 10, Crossing::Reached(mark)));
        let left = [(979, 100), (879, 90), (779, 80)].map(|(at, mark)| (at, Crossing::Left(mark)));
        assert_eq!(said, [reached, left].concat());
    }

    /// Goal: a pool that stays about a mark warns once.
    #[test]
    fn it_does_not_flap() {
        let mut pool = Fullness::new(&[80]);
        let said = (0..100).filter_map(|i| pool.look(79 + i % 2, 100));
        assert_eq!(said.collect::<Vec<_>>(), [Crossing::Reached(80)]);
        assert_eq!(pool.crossed(), Some(80));
    }

    /// Goal: marks may be passed several at a time; without marks, or space, nothing breaks.
    #[test]
    fn leaps_and_nothing() {
        let mut pool = Fullness::new(&[50, 80]);
        assert_eq!(pool.look(99, 100), Some(Crossing::Reached(80)));
        assert_eq!(pool.look(60, 100), Some(Crossing::Left(80)));
        assert_eq!(pool.crossed(), Some(50));
        assert_eq!(pool.look(0, 100), Some(Crossing::Left(50)));
        assert_eq!(Fullness::new(&[]).look(5, 5), None);
        assert_eq!(Fullness::new(&[80]).look(0, 0), Some(Crossing::Reached(80)));
        assert_eq!((percent(0, 0), percent(1, 3), percent(5, 4)), (100, 33, 100));
    }
}
