//! The lines of all pairs, and the work under way on some of them.
//!
//! Both are found by the pair's number without a search: every request looks several times. What
//! ended work leaves is kept for the next pair that has any, so that a working set of pairs that
//! come and go takes nothing from the system's memory.

use super::state::Work;
use crate::format::home::Line;
use crate::format::ids::PairId;
use crate::format::record::Binding;

/// Nothing is under way on the pair.
const NOWHERE: u32 = u32::MAX;
/// Pairs that lie together: where none of them was ever used, they take no memory.
const PAGE: usize = 256;
/// How much ended work is kept.
const SPARE_MAX: usize = 1024;

/// The lines of all pairs, and the work under way.
#[derive(Debug)]
pub struct Pairs {
    /// By pages; of [`Line::FREE`] alone where there is none.
    lines: Vec<Option<Box<[Line]>>>,
    /// For each pair, where its work is.
    places: Vec<u32>,
    /// The work under way, in an order that tells nothing.
    work: Vec<(PairId, Box<Work>)>,
    #[expect(clippy::vec_box, reason = "boxes move between this and the list above")]
    spare: Vec<Box<Work>>,
}

impl Pairs {
    /// Pairs with nothing under way.
    pub fn new(lines: &[Line]) -> Self {
        let places = vec![NOWHERE; lines.len()];
        let used = |page: &[Line]| page.iter().any(|line| *line != Line::FREE);
        let lines = lines.chunks(PAGE).map(|page| used(page).then(|| page.into())).collect();
        Self { lines, places, work: Vec::new(), spare: Vec::new() }
    }

    /// The durable line of a pair.
    pub fn line(&self, pair: PairId) -> &Line {
        let page = &self.lines[pair.0 as usize / PAGE];
        page.as_ref().map_or(&Line::FREE, |page| &page[pair.0 as usize % PAGE])
    }

    /// The durable line, to change.
    pub fn line_mut(&mut self, pair: PairId) -> &mut Line {
        let page = &mut self.lines[pair.0 as usize / PAGE];
        let page = page.get_or_insert_with(|| vec![Line::FREE; PAGE].into());
        &mut page[pair.0 as usize % PAGE]
    }

    /// Every pair with its durable line.
    pub fn lines(&self) -> impl Iterator<Item = (PairId, &Line)> {
        self.numbers().map(|pair| (pair, self.line(pair)))
    }

    /// What is under way on a pair.
    pub fn work(&self, pair: PairId) -> Option<&Work> {
        let place = self.place(pair)?;
        Some(&self.work[place].1)
    }

    /// What is under way on a pair, to change, where anything is.
    pub fn work_if_any(&mut self, pair: PairId) -> Option<&mut Work> {
        let place = self.place(pair)?;
        Some(&mut self.work[place].1)
    }

    /// What is under way on a pair, to add to.
    pub fn work_mut(&mut self, pair: PairId) -> &mut Work {
        let place = self.place(pair).unwrap_or_else(|| {
            self.work.push((pair, self.spare.pop().unwrap_or_default()));
            self.places[pair.0 as usize] = (self.work.len() - 1) as u32;
            self.work.len() - 1
        });
        &mut self.work[place].1
    }

    /// Pairs with something under way, in no particular order.
    pub fn working(&self) -> impl Iterator<Item = (PairId, &Work)> {
        self.work.iter().map(|(pair, work)| (*pair, &**work))
    }

    /// Forgets a pair's work when it has ended.
    pub fn tidy(&mut self, pair: PairId) {
        let Some(place) = self.place(pair) else { return };
        if !self.work[place].1.is_idle() {
            return;
        }
        let (_, mut ended) = self.work.swap_remove(place);
        self.places[pair.0 as usize] = NOWHERE;
        if let Some((moved, _)) = self.work.get(place) {
            self.places[moved.0 as usize] = place as u32;
        }
        if self.spare.len() < SPARE_MAX {
            ended.reset();
            self.spare.push(ended);
        }
    }

    /// Every pair's binding as the newest write sees it.
    pub fn bindings(&self) -> impl Iterator<Item = Binding> {
        self.numbers().map(|pair| self.binding(pair))
    }

    /// The numbers of all pairs.
    fn numbers(&self) -> impl Iterator<Item = PairId> + use<> {
        (0..self.places.len() as u32).map(PairId)
    }

    /// The pair's binding as the newest write sees it.
    pub fn binding(&self, pair: PairId) -> Binding {
        let newest = self.work(pair).and_then(|work| work.open_binding.or(work.sealed_binding));
        newest.unwrap_or(self.line(pair).binding)
    }

    fn place(&self, pair: PairId) -> Option<usize> {
        let place = self.places[pair.0 as usize];
        (place != NOWHERE).then_some(place as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::env::sim::rng::Rng;
    use crate::format::blocks::BlockSet;

    /// Goal: lines that were used are found as they were, all others are free and take no memory
    /// until they are changed, in the last page as in any.
    #[test]
    fn unused_lines_take_no_memory() {
        let mut lines = vec![Line::FREE; 3 * PAGE + 5];
        lines[PAGE + 1].binding.generation.0 = 7;
        let mut pairs = Pairs::new(&lines);
        let pages = |pairs: &Pairs| pairs.lines.iter().filter(|page| page.is_some()).count();
        assert_eq!(pages(&pairs), 1);
        let last = PairId(3 * PAGE as u32 + 4);
        pairs.line_mut(last).binding.generation.0 = 9;
        lines[last.0 as usize].binding.generation.0 = 9;
        assert!(pairs.lines().map(|(_, line)| *line).eq(lines));
        assert_eq!(pages(&pairs), 2);
    }

    /// Goal: whatever pairs begin and end work in whatever order, each finds its own, what is new
    /// begins empty, and the list names just those that work.
    #[test]
    fn work_is_found_by_its_pair() {
        const PAIRS: u64 = 8;
        let mut rng = Rng::new(1);
        let mut pairs = Pairs::new(&[Line::FREE; PAIRS as usize]);
        let mut busy = BTreeSet::new();
        for _ in 0..2000 {
            let pair = PairId(rng.below(PAIRS) as u32);
            let mark = BlockSet::one(pair.0 as usize);
            let work = pairs.work_mut(pair);
            assert_eq!(work.busy, if busy.contains(&pair) { mark } else { BlockSet::EMPTY });
            if busy.remove(&pair) {
                work.busy = BlockSet::EMPTY;
            } else {
                work.busy = mark;
                busy.insert(pair);
            }
            pairs.tidy(pair);
            assert_eq!(pairs.working().map(|(pair, _)| pair).collect::<BTreeSet<_>>(), busy);
            assert!(
                pairs.working().all(|(pair, work)| work.busy.meets(BlockSet::one(pair.0 as usize)))
            );
        }
    }
}
