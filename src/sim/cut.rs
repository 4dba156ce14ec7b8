//! The search for a cut that explains an image.
//!
//! Members are what the image shows and what promise 2 demands, closed under *before*. Nothing is
//! gained by more members: each only demands to be overwritten wherever it is not seen. Then an
//! order must exist in which, at each granule, all others come before the one that is seen.
//!
//! Zeros are the exception, since they do not tell who left them. Where zeros are seen over a write
//! that is a member, or over what was there before, some operation that leaves zeros must be the
//! last. Who could be is narrowed down as far as the order says; where several remain they are
//! tried.

use std::collections::BTreeMap;

use super::oracle::{Op, Oracle, Violation};
use super::stamp::{Stamp, ZEROS};

/// The most guesses that are made of who left which zeros. Beyond that the image is let pass, and
/// counted: it takes many operations at once over the same blocks to get there.
const GUESSES_MAX: u32 = 3_000;

/// Granules that the same operations cover, and that show the same.
struct Place {
    /// One of the granules.
    granule: u32,
    /// Who covers them, by index, in the order of sending.
    over: Vec<u32>,
    /// Who is seen; nobody where zeros or the base are.
    writer: Option<u32>,
    /// Whether zeros are seen, and whether zeros were there before.
    zeros: Option<bool>,
}

/// What does not change during the search.
struct Image<'a> {
    oracle: &'a Oracle,
    ops: &'a [Op],
    seen: &'a [Stamp],
    places: Vec<Place>,
    /// The granule that shows that an operation is not a member.
    barred: Vec<Option<u32>>,
    /// Who is seen somewhere in an operation's range, and so comes after it.
    followers: Vec<Vec<u32>>,
    /// When the last acknowledgement came of an operation and all that were sent before it.
    ended: Vec<Option<u64>>,
}

/// Members, and who must come before whom.
#[derive(Clone)]
struct Guess {
    member: Vec<bool>,
    earlier: Vec<Vec<u32>>,
}

/// A set of operations.
#[derive(Clone)]
struct Set(Vec<u64>);

impl Set {
    fn none(ops: usize) -> Self {
        Set(vec![0; ops.div_ceil(64)])
    }

    fn add(&mut self, index: u32) {
        self.0[index as usize / 64] |= 1 << (index % 64);
    }

    fn has(&self, index: u32) -> bool {
        self.0[index as usize / 64] >> (index % 64) & 1 == 1
    }

    fn add_all(&mut self, other: &Set) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, more)| *word |= more);
    }
}

/// How sure it is that an image is explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Explained {
    /// A cut was found.
    Surely,
    /// The search would have taken too long.
    Perhaps,
}

/// Whether some cut leaves exactly what is seen.
pub(super) fn find(oracle: &Oracle, seen: &[Stamp]) -> Result<Explained, Violation> {
    let image = Image::new(oracle, seen)?;
    let ops = image.ops;
    let mut member: Vec<bool> = ops.iter().map(|op| oracle.is_due(op)).collect();
    for writer in image.places.iter().filter_map(|place| place.writer) {
        member[writer as usize] = true;
    }
    let guess = Guess { member, earlier: vec![Vec::new(); ops.len()] };
    image.solve(guess, &mut 0)
}

impl<'a> Image<'a> {
    fn new(oracle: &'a Oracle, seen: &'a [Stamp]) -> Result<Self, Violation> {
        let ops = oracle.ops();
        let mut over = vec![Vec::new(); seen.len()];
        for (op, index) in ops.iter().zip(0..) {
            let granules = op.pieces.iter().cloned().flatten();
            granules.for_each(|granule| over[granule as usize].push(index));
        }
        let by_stamp: BTreeMap<Stamp, u32> =
            ops.iter().zip(0..).filter(|(op, _)| !op.zeros).map(|(op, i)| (op.stamp, i)).collect();
        let mut places = BTreeMap::new();
        for ((granule, over), &seen) in (0..).zip(over).zip(seen) {
            let writer = by_stamp.get(&seen).copied();
            let base = oracle.base(granule);
            if writer.is_none() && seen != ZEROS && seen != base {
                let what = "it is neither the base nor written since: it was replaced long ago";
                return Err(oracle.violation(5, granule, seen, what));
            }
            let zeros = (seen == ZEROS).then_some(base == ZEROS);
            if !over.is_empty() || zeros == Some(false) {
                places.entry((over, writer, zeros)).or_insert(granule);
            }
        }
        let places = places.into_iter().map(|((over, writer, zeros), granule)| Place {
            granule,
            over,
            writer,
            zeros,
        });
        let places = places.collect();
        let (barred, followers) = (vec![None; ops.len()], vec![Vec::new(); ops.len()]);
        let last_end = |last: &mut Option<u64>, op: &Op| {
            *last = op.acknowledged.max(*last);
            Some(*last)
        };
        let ended = ops.iter().scan(None, last_end).collect();
        let mut image = Image { oracle, ops, seen, places, barred, followers, ended };
        image.bar();
        Ok(image)
    }

    fn op(&self, index: u32) -> &'a Op {
        &self.ops[index as usize]
    }

    /// Whoever would have replaced what is seen is not a member.
    fn bar(&mut self) {
        for place in &self.places {
            for &index in &place.over {
                let replaces = match place.writer {
                    Some(writer) if writer == index => false,
                    Some(writer) => {
                        self.followers[index as usize].push(writer);
                        self.ops[writer as usize].is_before(&self.ops[index as usize])
                    }
                    None => place.zeros.is_none(),
                };
                if replaces {
                    self.barred[index as usize].get_or_insert(place.granule);
                }
            }
        }
    }

    /// Searches on from a guess.
    fn solve(&self, mut guess: Guess, guesses: &mut u32) -> Result<Explained, Violation> {
        *guesses += 1;
        loop {
            self.close(&mut guess);
            self.check_members(&guess)?;
            self.put_in_order(&mut guess);
            let before = self.predecessors(&guess)?;
            let mut open = None;
            let mut changed = false;
            for place in self.places.iter().filter(|place| place.zeros.is_some()) {
                let Some(candidates) = self.candidates(&guess, &before, place)? else { continue };
                if let [only] = candidates[..] {
                    changed |= guess.let_zero(self, only, place);
                } else {
                    open.get_or_insert((place, candidates));
                }
            }
            if changed {
                continue;
            }
            let Some((place, candidates)) = open else { return Ok(Explained::Surely) };
            let mut result = Ok(Explained::Perhaps);
            for candidate in candidates {
                if *guesses > GUESSES_MAX {
                    return Ok(Explained::Perhaps);
                }
                let mut next = guess.clone();
                next.let_zero(self, candidate, place);
                result = self.solve(next, guesses);
                if result.is_ok() {
                    break;
                }
            }
            return result;
        }
    }

    /// Whatever is before a member is a member.
    fn close(&self, guess: &mut Guess) {
        let members = self.ops.iter().zip(&guess.member).filter(|(_, member)| **member);
        let Some(last) = members.map(|(op, _)| op.sent).max() else { return };
        for (op, member) in self.ops.iter().zip(&mut guess.member) {
            *member |= op.acknowledged.is_some_and(|at| at < last);
        }
    }

    fn check_members(&self, guess: &Guess) -> Result<(), Violation> {
        for ((op, barred), member) in self.ops.iter().zip(&self.barred).zip(&guess.member) {
            let (Some(granule), true) = (*barred, *member) else { continue };
            let (promise, why) = if self.oracle.is_due(op) {
                (2, "was flushed")
            } else {
                (1, "is seen elsewhere (promise 3), or is before something that is seen")
            };
            let what = format!("{op} {why}, and should have replaced this");
            let seen = self.seen[granule as usize];
            return Err(self.oracle.violation(promise, granule, seen, &what));
        }
        Ok(())
    }

    /// At each granule that shows a write, all others come before it.
    fn put_in_order(&self, guess: &mut Guess) {
        for place in &self.places {
            let Some(writer) = place.writer else { continue };
            for &other in place.over.iter().filter(|&&other| other != writer) {
                guess.put_before(other, writer);
            }
        }
    }

    /// Who must come before each member; or there is a circle.
    fn predecessors(&self, guess: &Guess) -> Result<Vec<Set>, Violation> {
        let mut before = vec![Set::none(self.ops.len()); self.ops.len()];
        let mut done = Set::none(self.ops.len());
        let members = (0..self.ops.len() as u32).filter(|&i| guess.is_member(i));
        let mut left: Vec<u32> = members.collect();
        while !left.is_empty() {
            // Whoever was sent before any that is left ended has nobody left before it.
            let first_end = left.iter().filter_map(|&i| self.op(i).acknowledged).min();
            let count = left.len();
            let ready = |i: u32, done: &Set| {
                let sent = self.op(i).sent;
                first_end.is_none_or(|at| sent < at) && guess.earlier(i).all(|e| done.has(e))
            };
            let (now, rest): (Vec<u32>, _) = left.into_iter().partition(|&i| ready(i, &done));
            for &i in &now {
                let mut mine = Set::none(self.ops.len());
                for e in guess.earlier(i).chain(self.last_before(i, &done)) {
                    mine.add(e);
                    mine.add_all(&before[e as usize]);
                }
                before[i as usize] = mine;
            }
            for &i in &now {
                done.add(i);
            }
            left = rest;
            if left.len() == count {
                return Err(self.circle(guess, &left));
            }
        }
        Ok(before)
    }

    /// Those of the members in `done` that are before one, but for those that are before another of
    /// these: their own predecessors have them.
    fn last_before(&self, index: u32, done: &Set) -> impl Iterator<Item = u32> {
        let before = move |&e: &u32| done.has(e) && self.op(e).is_before(self.op(index));
        let last_sent = (0..index).rev().find(&before).map(|e| self.op(e).sent);
        let ended_since = move |&e: &u32| self.op(e).acknowledged > last_sent;
        let may_have = (0..index).rev().take_while(move |&e| self.ended[e as usize] > last_sent);
        may_have.filter(before).filter(ended_since)
    }

    fn circle(&self, guess: &Guess, left: &[u32]) -> Violation {
        let place = self.places.iter().find(|place| {
            let within = |&i: &u32| guess.is_member(i) && left.contains(&i);
            place.writer.as_ref().is_some_and(within)
                && place.over.iter().filter(|i| within(i)).count() > 1
        });
        let granule = place.map_or(0, |place| place.granule);
        let ops: Vec<_> = left.iter().map(|&i| format!("\n    {}", self.op(i))).collect();
        let what = format!(
            "there is no order in which each of these is whole: {}\n  over it:",
            ops.concat()
        );
        self.oracle.violation(3, granule, self.seen[granule as usize], &what)
    }

    /// Who may have left the zeros of a place; `None` where nobody needs to, or someone surely has.
    fn candidates(
        &self,
        guess: &Guess,
        before: &[Set],
        place: &Place,
    ) -> Result<Option<Vec<u32>>, Violation> {
        let members = place.over.iter().copied().filter(|&i| guess.is_member(i));
        let writes: Vec<u32> = members.filter(|&i| !self.op(i).zeros).collect();
        if writes.is_empty() && place.zeros == Some(true) {
            return Ok(None);
        }
        let precedes = |z: u32, write: u32| {
            let follower = |f: &u32| *f == write || before[write as usize].has(*f);
            before[write as usize].has(z)
                || self.op(z).is_before(self.op(write))
                || self.followers[z as usize].iter().any(follower)
        };
        let fits = |z: &u32| {
            self.op(*z).zeros
                && self.barred[*z as usize].is_none()
                && !writes.iter().any(|&write| precedes(*z, write))
        };
        let mut all: Vec<u32> = place.over.iter().copied().filter(fits).collect();
        if all.is_empty() {
            let what = "what was there is lost, and nobody can have left zeros";
            return Err(self.oracle.violation(2, place.granule, ZEROS, what));
        }
        let surely = |z: &u32| {
            let after = |write: &u32| before[*z as usize].has(*write);
            guess.is_member(*z) && writes.iter().all(after)
        };
        if all.iter().any(surely) {
            return Ok(None);
        }
        // Members first, the latest first; then those that need not be, the earliest first.
        all.sort_by_key(|&z| {
            let (member, sent) = (guess.is_member(z), self.op(z).sent);
            if member { (0, u64::MAX - sent) } else { (1, sent) }
        });
        Ok(Some(all))
    }
}

impl Guess {
    fn is_member(&self, index: u32) -> bool {
        self.member[index as usize]
    }

    /// The members that were put before one.
    fn earlier(&self, index: u32) -> impl Iterator<Item = u32> {
        self.earlier[index as usize].iter().copied().filter(|&e| self.is_member(e))
    }

    fn put_before(&mut self, earlier: u32, later: u32) -> bool {
        let earliers = &mut self.earlier[later as usize];
        let new = !earliers.contains(&earlier);
        if new {
            earliers.push(earlier);
        }
        new
    }

    /// Takes it that `zeroing` was the last at a place.
    fn let_zero(&mut self, image: &Image<'_>, zeroing: u32, place: &Place) -> bool {
        let mut changed = !std::mem::replace(&mut self.member[zeroing as usize], true);
        for &write in place.over.iter().filter(|&&i| !image.op(i).zeros) {
            if self.is_member(write) {
                changed |= self.put_before(write, zeroing);
            }
        }
        changed
    }
}
