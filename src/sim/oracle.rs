//! The reference model of a volume: which images a crash may leave, and what a read may return.
//!
//! The log holds every operation that changes a volume, with the moments at which it was sent and
//! acknowledged. *Before* means: acknowledged before the other was sent. After a recovery there
//! must be a **cut**, a set of operations such that (design section 1)
//!
//! 1. whatever is before a member is a member;
//! 2. whatever was acknowledged before the last acknowledged flush was sent is a member;
//! 3. some order of the members, one that respects *before*, leaves exactly the image that is seen:
//!    each member whole, and nothing else.
//!
//! How one is looked for: [`super::cut`].

use std::fmt::Write as _;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::cut::{self, Explained};
use super::stamp::{self, Seen, Stamp, ZEROS};

/// An operation that changes a volume.
#[derive(Clone, Debug, Hash, Serialize, Deserialize)]
pub(super) struct Op {
    pub stamp: Stamp,
    /// The granules that it covers: ranges that do not meet.
    pub pieces: Vec<Range<u32>>,
    pub zeros: bool,
    pub durable: bool,
    pub sent: u64,
    /// When it was acknowledged; never, where it failed or is under way.
    pub acknowledged: Option<u64>,
    pub failed: bool,
}

impl Op {
    pub fn is_before(&self, other: &Op) -> bool {
        self.acknowledged.is_some_and(|at| at < other.sent)
    }

    pub fn covers(&self, granule: u32) -> bool {
        self.pieces.iter().any(|piece| piece.contains(&granule))
    }

    /// What it leaves where it was the last.
    fn leaves(&self) -> Stamp {
        if self.zeros { ZEROS } else { self.stamp }
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.zeros { "zeros" } else { "write" };
        write!(f, "{what} #{} of granules {:?}, sent {}", self.stamp, self.pieces, self.sent)?;
        match (self.acknowledged, self.failed) {
            (Some(at), _) => write!(f, ", acknowledged {at}"),
            (None, true) => write!(f, ", failed"),
            (None, false) => write!(f, ", not acknowledged"),
        }?;
        if self.durable { write!(f, ", FUA") } else { Ok(()) }
    }
}

/// A read or a flush under way.
#[derive(Clone, Debug)]
pub struct Sent(u64);

/// What had been acknowledged at some instant, for a judge of what had been stored by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The model's clock.
    pub clock: u64,
    /// When the last flush that was acknowledged had been sent.
    pub flushed: u64,
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// The model of one volume. Cheap enough to clone at every persist point. It can be kept in a
/// file, for a process that judges later.
#[derive(Clone, Hash, Serialize, Deserialize)]
pub struct Oracle {
    volume: u8,
    granule: usize,
    clock: u64,
    /// The image that the last recovery, or the format, left.
    base: Vec<Stamp>,
    ops: Vec<Op>,
    /// When the last flush that was acknowledged had been sent.
    flushed: u64,
    /// Images that were let pass without a cut that explains them.
    unexplained: u64,
}

impl Oracle {
    /// A volume of `granules` granules, never written.
    pub fn new(volume: u8, granule: usize, granules: u32) -> Self {
        let base = vec![ZEROS; granules as usize];
        Self { volume, granule, clock: 0, base, ops: Vec::new(), flushed: 0, unexplained: 0 }
    }

    /// Begins with an image, by its writers.
    pub(super) fn begin_with(&mut self, seen: Vec<Stamp>) {
        assert!(self.ops.is_empty() && seen.len() == self.base.len(), "an image of a new volume");
        self.base = seen;
    }

    /// Number of granules.
    pub fn granules(&self) -> u32 {
        self.base.len() as u32
    }

    /// Images that were let pass, because to explain them would have taken too long.
    pub fn unexplained(&self) -> u64 {
        self.unexplained
    }

    /// Counts those that a fork of this model let pass, too.
    pub fn count_unexplained(&mut self, fork: &Oracle) {
        self.unexplained = self.unexplained.max(fork.unexplained);
    }

    /// This instant.
    pub fn moment(&self) -> Moment {
        Moment { clock: self.clock, flushed: self.flushed }
    }

    /// The model of a crash at some time after that moment: what was acknowledged later may be
    /// there, and is demanded by nothing but the order.
    #[must_use]
    pub fn demanding(&self, moment: Moment) -> Self {
        let mut model = self.clone();
        model.flushed = moment.flushed;
        for op in &mut model.ops {
            op.durable &= op.acknowledged.is_some_and(|at| at <= moment.clock);
        }
        model
    }

    /// A write, or what leaves zeros, is sent.
    pub fn send(&mut self, stamp: Stamp, granules: Range<u32>, zeros: bool, durable: bool) {
        self.send_all(stamp, vec![granules], zeros, durable);
    }

    /// One operation over several ranges, no two of which meet: all of it or nothing.
    pub(super) fn send_all(
        &mut self,
        stamp: Stamp,
        pieces: Vec<Range<u32>>,
        zeros: bool,
        durable: bool,
    ) {
        let (sent, acknowledged, failed) = (self.tick(), None, false);
        self.ops.push(Op { stamp, pieces, zeros, durable, sent, acknowledged, failed });
    }

    /// What was sent has not taken place, nor will it.
    pub(super) fn withdraw(&mut self, stamp: Stamp) {
        self.tick();
        self.ops.retain(|op| op.stamp != stamp);
    }

    /// It has ended.
    pub fn end(&mut self, stamp: Stamp, success: bool) {
        let now = self.tick();
        let op = self.ops.iter_mut().rev().find(|op| op.stamp == stamp);
        let op = op.expect("what ends was sent");
        if success {
            op.acknowledged = Some(now);
            if op.durable {
                self.flushed = self.flushed.max(op.sent);
            }
        } else {
            op.failed = true;
        }
    }

    /// A flush or a read is sent.
    pub fn send_other(&mut self) -> Sent {
        Sent(self.tick())
    }

    /// The flush is acknowledged.
    pub fn end_flush(&mut self, flush: &Sent) {
        self.tick();
        self.flushed = self.flushed.max(flush.0);
    }

    /// A flush of a part of the volume is acknowledged: it covers what that part has.
    pub(super) fn end_flush_of(&mut self, flush: &Sent, part: &Range<u32>) {
        self.tick();
        let within = |op: &&mut Op| {
            op.pieces.iter().all(|piece| part.contains(&piece.start))
                && op.acknowledged.is_some_and(|at| at < flush.0)
        };
        self.ops.iter_mut().filter(within).for_each(|op| op.durable = true);
    }

    /// The read has returned `bytes`, from granule `first` on.
    pub fn end_read(&mut self, read: &Sent, first: u32, bytes: &[u8]) -> Result<(), Violation> {
        self.tick();
        let range = first..first + (bytes.len() / self.granule) as u32;
        let near = |op: &&Op| {
            op.pieces.iter().any(|piece| piece.start < range.end && range.start < piece.end)
        };
        let ops: Vec<&Op> = self.ops.iter().filter(near).collect();
        for (number, bytes) in range.clone().zip(bytes.chunks_exact(self.granule)) {
            let seen = self.seen(number, bytes)?;
            let over: Vec<&Op> = ops.iter().copied().filter(|op| op.covers(number)).collect();
            // What an operation left is gone once another came after it and ended before the read.
            let gone = |op: Option<&Op>| {
                over.iter().find(|o| {
                    o.acknowledged.is_some_and(|at| at < read.0)
                        && op.is_none_or(|op| op.is_before(o))
                })
            };
            let from_base = self.base[number as usize] == seen && gone(None).is_none();
            let mut origins = over.iter().filter(|op| op.leaves() == seen);
            if !from_base && !origins.any(|op| gone(Some(op)).is_none()) {
                let why = gone(over.iter().copied().find(|op| op.leaves() == seen));
                return Err(self.violation(
                    5,
                    number,
                    seen,
                    &format!(
                        "a read sent at {} returned what is not there any more, or never was: {}",
                        read.0,
                        why.map_or(String::from("nobody wrote that"), |op| format!(
                            "{op} replaced it"
                        )),
                    ),
                ));
            }
        }
        Ok(())
    }

    /// What is under way or failed, for the report of a run that hangs.
    pub fn pending(&self) -> impl Iterator<Item = String> {
        self.ops.iter().filter(|op| op.acknowledged.is_none() && !op.failed).map(Op::to_string)
    }

    /// Nothing is under way: all that was acknowledged is what the next recovery must find.
    pub fn settled(&mut self) {
        self.flushed = self.tick();
    }

    /// The volume was recovered and its image read: checks it, and takes it as the new base.
    pub fn recovered(&mut self, image: &[u8]) -> Result<(), Violation> {
        let seen = self.stamps(image)?;
        self.recovered_as(seen)
    }

    /// Who wrote each granule of an image.
    pub(super) fn stamps(&self, image: &[u8]) -> Result<Vec<Stamp>, Violation> {
        assert!(image.len() == self.base.len() * self.granule, "an image of another size");
        (0..).zip(image.chunks_exact(self.granule)).map(|(nth, of)| self.seen(nth, of)).collect()
    }

    /// As [`Oracle::recovered`], of an image by its writers.
    pub(super) fn recovered_as(&mut self, seen: Vec<Stamp>) -> Result<(), Violation> {
        self.unexplained += u64::from(cut::find(self, &seen)? == Explained::Perhaps);
        self.base = seen;
        self.ops.clear();
        self.flushed = 0;
        Ok(())
    }

    pub(super) fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Whether promise 2 demands the operation.
    pub(super) fn is_due(&self, op: &Op) -> bool {
        op.acknowledged.is_some_and(|at| op.durable || at < self.flushed)
    }

    pub(super) fn base(&self, granule: u32) -> Stamp {
        self.base[granule as usize]
    }

    fn seen(&self, number: u32, bytes: &[u8]) -> Result<Stamp, Violation> {
        match stamp::read(bytes, self.volume, number) {
            Seen::Write(stamp) => Ok(stamp),
            other => Err(Violation(format!(
                "promise 5: granule {number} of volume {} holds {other:x?}: {:x?}",
                self.volume,
                &bytes[..bytes.len().min(32)]
            ))),
        }
    }

    pub(super) fn violation(
        &self,
        promise: u8,
        granule: u32,
        seen: Stamp,
        what: &str,
    ) -> Violation {
        let volume = self.volume;
        let base = self.base[granule as usize];
        let mut text = format!(
            "promise {promise}: volume {volume}, granule {granule} ({} bytes each) shows #{seen}, \
             was #{base} before, last flush sent {}: {what}",
            self.granule, self.flushed
        );
        for op in self.ops.iter().filter(|op| op.covers(granule)) {
            let _ = write!(text, "\n    {op}");
        }
        Violation(text)
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANULE: usize = 16;
    const GRANULES: u32 = 4;

    fn oracle() -> Oracle {
        Oracle::new(0, GRANULE, GRANULES)
    }

    fn image(stamps: [Stamp; GRANULES as usize]) -> Vec<u8> {
        let mut bytes = vec![0; GRANULE * stamps.len()];
        for ((granule, stamp), number) in bytes.chunks_mut(GRANULE).zip(stamps).zip(0..) {
            if stamp != ZEROS {
                stamp::fill(granule, GRANULE, 0, number, stamp);
            }
        }
        bytes
    }

    fn write(oracle: &mut Oracle, stamp: Stamp, granules: Range<u32>) {
        oracle.send(stamp, granules, false, false);
        oracle.end(stamp, true);
    }

    fn zero(oracle: &mut Oracle, stamp: Stamp, granules: Range<u32>) {
        oracle.send(stamp, granules, true, false);
        oracle.end(stamp, true);
    }

    /// The images of all those tried that a history allows.
    fn allowed(history: impl Fn(&mut Oracle), tried: &[[Stamp; 4]]) -> Vec<[Stamp; 4]> {
        let recovers = |stamps: &&[Stamp; 4]| {
            let mut oracle = oracle();
            history(&mut oracle);
            oracle.recovered(&image(**stamps)).is_ok()
        };
        tried.iter().filter(recovers).copied().collect()
    }

    /// Goal: what was acknowledged before something in the cut was sent is in the cut.
    #[test]
    fn the_cut_is_a_prefix() {
        let history = |o: &mut Oracle| {
            write(o, 1, 0..1);
            write(o, 2, 1..2);
            write(o, 3, 0..1);
        };
        let good = [[0, 0, 0, 0], [1, 0, 0, 0], [1, 2, 0, 0], [3, 2, 0, 0]];
        let bad = [[0, 2, 0, 0], [3, 0, 0, 0]];
        assert_eq!(allowed(history, &[good.as_slice(), &bad].concat()), good);
    }

    /// Goal: a flush demands what was acknowledged before it was sent, and nothing else.
    #[test]
    fn a_flush_is_a_floor() {
        let history = |o: &mut Oracle| {
            write(o, 1, 0..1);
            let flush = o.send_other();
            write(o, 2, 1..2);
            o.end_flush(&flush);
        };
        let good = [[1, 0, 0, 0], [1, 2, 0, 0]];
        assert_eq!(allowed(history, &[[0, 0, 0, 0], good[0], good[1], [0, 2, 0, 0]]), good);
        let durable = |o: &mut Oracle| {
            write(o, 1, 0..1);
            o.send(2, 1..2, false, true);
            o.end(2, true);
        };
        assert_eq!(allowed(durable, &[[0, 0, 0, 0], good[0], good[1]]), [good[1]]);
    }

    /// Goal: a crash in the past demands what was durable then, and the order of what came after.
    #[test]
    fn a_moment_is_demanded() {
        let history = |o: &mut Oracle| {
            write(o, 1, 0..1);
            o.settled();
            let moment = o.moment();
            o.send(2, 1..2, false, true);
            o.end(2, true);
            write(o, 3, 2..3);
            o.settled();
            moment
        };
        let good = [[1, 0, 0, 0], [1, 2, 0, 0], [1, 2, 3, 0]];
        let tried = [good.as_slice(), &[[0, 0, 0, 0], [1, 0, 3, 0]]].concat();
        let then = |o: &mut Oracle| {
            let moment = history(o);
            *o = o.demanding(moment);
        };
        assert_eq!(allowed(then, &tried), good);
        let now = |o: &mut Oracle| {
            history(o);
        };
        assert_eq!(allowed(now, &tried), [good[2]]);
    }

    /// Goal: a write is in the cut whole or not at all; of writes at once either may be the last,
    /// but the same one everywhere.
    #[test]
    fn writes_are_whole() {
        let history = |o: &mut Oracle| {
            o.send(1, 0..2, false, false);
            o.send(2, 0..2, false, false);
            o.end(1, true);
            o.end(2, true);
            o.settled();
        };
        let good = [[1, 1, 0, 0], [2, 2, 0, 0]];
        let bad = [[1, 2, 0, 0], [2, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]];
        assert_eq!(allowed(history, &[good.as_slice(), &bad].concat()), good);
    }

    /// Goal: an operation of several pieces is in the cut with all of them or with none, with what
    /// was acknowledged before it; what was withdrawn is nowhere.
    #[test]
    fn pieces_are_together() {
        let history = |o: &mut Oracle| {
            write(o, 1, 3..4);
            o.send_all(2, vec![0..1, 2..3], false, true);
        };
        let good = [[0, 0, 0, 0], [0, 0, 0, 1], [2, 0, 2, 1]];
        let bad = [[2, 0, 0, 1], [0, 0, 2, 1], [2, 0, 2, 0]];
        let tried = [good.as_slice(), &bad].concat();
        assert_eq!(allowed(history, &tried), good);
        let acknowledged = |o: &mut Oracle| {
            history(o);
            o.end(2, true);
        };
        assert_eq!(allowed(acknowledged, &tried), good[2..]);
        let withdrawn = |o: &mut Oracle| {
            history(o);
            o.withdraw(2);
        };
        assert_eq!(allowed(withdrawn, &tried), good[..2]);
    }

    /// Goal: zeros are explained by whoever may have left them, and by nobody else.
    #[test]
    fn zeros_need_someone_to_have_left_them() {
        let history = |o: &mut Oracle| {
            write(o, 1, 0..2);
            o.settled();
            zero(o, 2, 0..1);
            write(o, 3, 2..3);
        };
        let good = [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 3, 0]];
        let bad = [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 3, 0]];
        assert_eq!(allowed(history, &[good.as_slice(), &bad].concat()), good);
        let at_once = |o: &mut Oracle| {
            o.send(1, 0..2, false, false);
            o.send(2, 0..2, true, false);
            o.end(1, true);
            o.end(2, true);
            o.settled();
        };
        let good = [[0, 0, 0, 0], [1, 1, 0, 0]];
        assert_eq!(allowed(at_once, &[good[0], good[1], [0, 1, 0, 0], [1, 0, 0, 0]]), good);
    }

    /// Goal: a later recovery shows what the earlier one showed, not what that one had dropped.
    #[test]
    fn a_recovered_image_is_the_new_base() {
        let mut oracle = oracle();
        write(&mut oracle, 1, 0..1);
        write(&mut oracle, 2, 0..1);
        oracle.recovered(&image([1, 0, 0, 0])).unwrap();
        assert!(oracle.recovered(&image([2, 0, 0, 0])).is_err());
        assert!(oracle.recovered(&image([0, 0, 0, 0])).is_err());
        assert!(oracle.recovered(&image([1, 0, 0, 0])).is_ok());
    }

    /// Goal: a read returns the newest of what ended before it, or something sent since.
    #[test]
    fn reads_are_current() {
        let reads = |stamp: Stamp| {
            let mut o = oracle();
            write(&mut o, 1, 0..1);
            write(&mut o, 2, 0..1);
            o.send(3, 0..1, false, false);
            let read = o.send_other();
            o.end(3, true);
            o.end_read(&read, 0, &image([stamp, 0, 0, 0])[..GRANULE]).is_ok()
        };
        assert_eq!([0, 1, 2, 3].map(reads), [false, false, true, true]);
    }
}
