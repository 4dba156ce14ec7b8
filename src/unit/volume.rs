//! A volume as a front end sees it: bytes, and the checks on every request, once.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::domain::Point;
use super::error::IoError;
use super::request::{Seat, Span, covering, extents};
use super::state::{Stage, VolumeState};
use crate::env::Env;
use crate::format::blocks::BlockSet;
use crate::format::ids::VolumeId;
use crate::uring::buffers::Buf;

/// A volume. Cheap to clone: a handle.
///
/// # Contracts
///
/// - **Buffers**: a request's buffer is as large as [`Volume::buffer_for`] says, and its bytes lie
///   where that says.
/// - **Durability**: [`Volume::flush`] makes durable all that had been acknowledged when it was
///   called.
/// - **Change**: name and size are those of the moment; a request beyond an end that has moved, or
///   on a volume that was deleted, is refused.
/// - **Life**: where a member of the volume's group lost what was not committed, all handles from
///   before fail for ever ([`IoError::WentBack`]); new ones find the last cut.
/// - **Atomicity**: a write is in the image after a crash wholly or not at all; trims and
///   write-zeroes of more than [`Volume::zero_max`] bytes are, piece by piece of that size.
pub struct Volume<E: Env> {
    unit: Rc<Inner<E>>,
    seat: Seat,
    id: VolumeId,
}

impl<E: Env> Clone for Volume<E> {
    fn clone(&self) -> Self {
        Self { unit: Rc::clone(&self.unit), seat: self.seat, id: self.id }
    }
}

/// The room that a request needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes of the buffer.
    pub total: usize,
    /// Where in it the request's own bytes lie.
    pub place: Range<usize>,
}

/// Bytes that follow each other and have contents of their own, or have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// How many bytes; not zero.
    pub len: u64,
    /// Whether they have contents, committed or not. Those that have none read as zeros.
    pub used: bool,
}

/// The extents that one query of the allocation looks at, at most: others wait meanwhile.
const WALK_MAX: usize = 1 << 14;
/// The pause between two pieces of a large change: long enough to let go of the thread.
const BREATH: Duration = Duration::from_micros(10);

impl<E: Env> Volume<E> {
    pub(super) fn new(unit: Rc<Inner<E>>, index: usize, of: &VolumeState) -> Self {
        Self { unit, seat: Seat { volume: index, life: of.life }, id: of.id }
    }

    /// A handle of the volume's present life, for a new client: as soon as all members of its group
    /// are in that life, who would otherwise lose what they still acknowledge in the one before ‡.
    pub async fn opened(&self) -> Self {
        loop {
            let decided = {
                let state = self.unit.state.borrow();
                let domain = state.domain_of(self.seat.volume);
                if !domain.returning || domain.failed.is_some() || state.stopping {
                    let of = &state.volumes[self.seat.volume];
                    return Self::new(Rc::clone(&self.unit), self.seat.volume, of);
                }
                Rc::clone(&domain.decided)
            };
            decided.notified().await;
        }
    }

    /// Its number.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Its name, as it is now.
    pub fn name(&self) -> Rc<str> {
        Rc::clone(&self.unit.state.borrow().volumes[self.seat.volume].name)
    }

    /// Whether all that was acknowledged of it before this start is there: it was a warm one, and
    /// the volume is in no consistency group, which goes back to its last cut.
    pub fn is_warm(&self) -> bool {
        let alone = self.unit.state.borrow().domain_of(self.seat.volume).group.is_none();
        alone && self.unit.adopted.get()
    }

    /// Its size in bytes, as it is now.
    pub fn size(&self) -> u64 {
        self.unit.state.borrow().volumes[self.seat.volume].size
    }

    /// How many bytes of it have extents of the pool behind them.
    pub fn allocated(&self) -> u64 {
        let backed = self.unit.state.borrow().volumes[self.seat.volume].extents.backed();
        u64::from(backed) * u64::from(self.unit.geometry.extent_size())
    }

    /// Bytes of a block: requests aligned to it need no read-modify-write.
    pub fn block_size(&self) -> u32 {
        self.unit.geometry.block_size()
    }

    /// The largest read or write, in bytes.
    pub fn request_max(&self) -> u64 {
        self.unit.limits.request_bytes
    }

    /// The largest piece of a trim or write-zeroes that is atomic, in bytes.
    pub fn zero_max(&self) -> u64 {
        self.unit.limits.zero_bytes
    }

    /// The room that a read or write takes.
    pub fn buffer_for(&self, offset: u64, len: u64) -> Room {
        let block = self.block_size() as usize;
        let blocks = covering(Span { offset, len }, self.unit.geometry);
        let whole = (blocks.end - blocks.start) as usize * block;
        let lead = (offset % block as u64) as usize;
        let aligned = lead == 0 && whole == len as usize;
        Room {
            total: if aligned { whole } else { whole + 2 * block },
            place: lead..lead + len as usize,
        }
    }

    fn check(&self, what: &'static str, offset: u64, len: u64, max: u64) -> Result<Span, IoError> {
        self.check_live()?;
        let size = self.size();
        let inside = offset.checked_add(len).is_some_and(|end| end <= size);
        if !inside || len > max {
            return Err(IoError::OutOfRange { what, offset, len, size });
        }
        Ok(Span { offset, len })
    }

    fn check_live(&self) -> Result<(), IoError> {
        let state = self.unit.state.borrow();
        if state.volumes[self.seat.volume].stage != Stage::Live {
            return Err(IoError::Deleted);
        }
        state.check_seat(self.seat)
    }

    /// Reads; the bytes lie in the returned buffer where [`Volume::buffer_for`] says.
    pub async fn read(&self, offset: u64, len: u64, mut buf: Buf) -> Result<Buf, IoError> {
        let span = self.check("a read", offset, len, self.request_max())?;
        self.unit.counters.reads.increment();
        if len > 0 {
            let blocks = covering(span, self.unit.geometry);
            let bytes = (blocks.end - blocks.start) as usize * self.block_size() as usize;
            assert!(buf.len() >= bytes, "a buffer for whole blocks");
            self.unit.certain(self.seat.volume, &blocks).await?;
            self.unit.read_blocks(self.seat.volume, blocks, &mut buf, 0..bytes).await?;
            self.unit.state.borrow().check_seat(self.seat)?;
        }
        Ok(buf)
    }

    /// Reads whole blocks of which the devices alone hold all bytes, without touching the buffer's
    /// ([`BufferPool::lent`](crate::uring::buffers::BufferPool::lent)), from its beginning.
    /// `false`: these are none, and nothing was read. After an error some of the buffer may have
    /// been filled.
    pub async fn read_straight(
        &self,
        offset: u64,
        len: u64,
        buf: &mut Buf,
    ) -> Result<bool, IoError> {
        let span = self.check("a read", offset, len, self.request_max())?;
        let block = u64::from(self.block_size());
        if len == 0 || !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Ok(false);
        }
        assert_eq!(buf.len() as u64, len, "a buffer for just these blocks");
        let blocks = covering(span, self.unit.geometry);
        if !self.unit.is_certain(self.seat.volume, &blocks) {
            // Whoever then reads in the ordinary way waits for that, and waits once.
            return Ok(false);
        }
        let read = self.unit.read_blocks_straight(self.seat.volume, blocks, buf).await?;
        self.unit.state.borrow().check_seat(self.seat)?;
        if read {
            self.unit.counters.reads.increment();
        }
        Ok(read)
    }

    /// Which bytes have contents, as reads would find them now: runs from `offset` on, of which
    /// neighbours differ, and at most `runs_max` of them; there is one, but they may end before the
    /// range does. It waits for nothing and reads nothing.
    pub fn allocation(
        &self,
        offset: u64,
        len: u64,
        runs_max: usize,
    ) -> Result<Vec<Allocation>, IoError> {
        let span = self.check("a query of the allocation", offset, len, u64::MAX)?;
        let (end, block) = (offset + len, u64::from(self.block_size()));
        let mut found: Vec<Allocation> = Vec::new();
        if len == 0 {
            return Ok(found);
        }
        let geometry = self.unit.geometry;
        let state = self.unit.state.borrow();
        let failed = &state.domain_of(self.seat.volume).failed;
        for (logical, local, first) in extents(covering(span, geometry), geometry).take(WALK_MAX) {
            let wanted = BlockSet::range(local);
            let mut used = BlockSet::EMPTY;
            if let Some(pair) = state.volumes[self.seat.volume].pair(logical) {
                // Reads of these fail too: nothing is known of them.
                if let Some(reason) = failed
                    && state.is_uncommitted(pair, wanted)
                {
                    return Err(IoError::Latched(Arc::clone(reason)));
                }
                used = state.visible(pair).used() & wanted;
            }
            for (run, used) in alternating(wanted, used) {
                let from = ((first + run.start as u64) * block).max(offset);
                let to = ((first + run.end as u64) * block).min(end);
                if let Some(last) = found.last_mut()
                    && last.used == used
                {
                    last.len += to - from;
                } else if found.len() == runs_max {
                    return Ok(found);
                } else {
                    found.push(Allocation { len: to - from, used });
                }
            }
        }
        Ok(found)
    }

    /// Writes; the bytes lie in the buffer where [`Volume::buffer_for`] says. With `fua`, returns
    /// when they are durable.
    pub async fn write(&self, offset: u64, len: u64, buf: Buf, fua: bool) -> Result<(), IoError> {
        let span = self.check("a write", offset, len, self.request_max())?;
        if len == 0 {
            return Ok(());
        }
        assert!(buf.len() >= self.buffer_for(offset, len).total, "a buffer for whole blocks");
        let at = self.unit.write(self.seat, span, buf).await?;
        self.harden(at, fua).await
    }

    /// Makes durable all that was acknowledged when this was called.
    pub async fn flush(&self) -> Result<(), IoError> {
        self.unit.counters.flushes.increment();
        self.check_live()?;
        self.unit.flush(self.seat.volume).await?;
        self.unit.state.borrow().check_seat(self.seat)
    }

    /// Makes the whole blocks of a span unused: they read as zeros.
    pub async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.unit.counters.trims.increment();
        let span = self.check("a trim", offset, len, u64::MAX)?;
        let mut newest = None;
        for piece in pieces(span, self.zero_max()) {
            self.breathe(newest).await;
            newest = Some(self.unit.trim(self.seat, piece).await?);
        }
        self.harden_newest(newest, fua).await
    }

    /// Makes a span read as zeros. With `no_hole`, it is written as zeros, so that later writes
    /// there find their place taken already; otherwise whole blocks become unused.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        fua: bool,
        no_hole: bool,
    ) -> Result<(), IoError> {
        self.unit.counters.zeroes.increment();
        let span = self.check("a write of zeros", offset, len, u64::MAX)?;
        let mut newest = None;
        if no_hole {
            for piece in pieces(span, self.request_max()) {
                let total = self.buffer_for(piece.offset, piece.len).total;
                let mut buf = self.unit.env.buffers().acquire(total).await;
                buf.as_mut_slice().fill(0);
                newest = Some(self.unit.write(self.seat, piece, buf).await?);
            }
        } else {
            for piece in pieces(span, self.zero_max()) {
                self.breathe(newest).await;
                newest = Some(self.unit.zero(self.seat, piece).await?);
            }
        }
        self.harden_newest(newest, fua).await
    }

    /// Lets others have a turn before a piece that is not the first: a change of terabytes that
    /// touches no device would wait for nothing.
    async fn breathe(&self, newest: Option<Point>) {
        if newest.is_some() {
            self.unit.env.sleep(BREATH).await;
        }
    }

    async fn harden_newest(&self, newest: Option<Point>, fua: bool) -> Result<(), IoError> {
        match newest {
            Some(at) => self.harden(at, fua).await,
            None => Ok(()),
        }
    }

    async fn harden(&self, at: Point, fua: bool) -> Result<(), IoError> {
        if fua { self.unit.committed(at).await } else { Ok(()) }
    }
}

/// The runs of the blocks of a range, in order, and which of them are used.
fn alternating(wanted: BlockSet, used: BlockSet) -> Vec<(Range<usize>, bool)> {
    let with = used.runs().map(|run| (run, true));
    let mut all: Vec<_> = with.chain((wanted - used).runs().map(|run| (run, false))).collect();
    all.sort_unstable_by_key(|(run, _)| run.start);
    all
}

/// A span as it is where it is no longer than `max`, otherwise cut at multiples of `max`.
///
/// Each piece is atomic by itself: a request that can be one piece must be.
fn pieces(span: Span, max: u64) -> impl Iterator<Item = Span> {
    let end = span.offset + span.len;
    let mut at = span.offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let offset = at;
            at = if span.len <= max { end } else { end.min((at / max + 1) * max) };
            Span { offset, len: at - offset }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what fits one piece is one, wherever it lies; the rest is cut into aligned ones.
    #[test]
    fn only_what_must_be_is_cut() {
        let cut = |offset, len| -> Vec<_> {
            pieces(Span { offset, len }, 8).map(|piece| (piece.offset, piece.len)).collect()
        };
        assert_eq!(cut(5, 8), [(5, 8)]);
        assert_eq!(cut(5, 9), [(5, 3), (8, 6)]);
        assert_eq!(cut(0, 17), [(0, 8), (8, 8), (16, 1)]);
        assert_eq!(cut(3, 0), []);
    }

    /// Goal: every block is in one run, in order, with what it is.
    #[test]
    fn runs_alternate() {
        let used = BlockSet::range(3..5) | BlockSet::one(9);
        let runs = alternating(BlockSet::range(2..10), used);
        assert_eq!(runs, [(2..3, false), (3..5, true), (5..9, false), (9..10, true)]);
        assert_eq!(alternating(BlockSet::range(0..4), BlockSet::EMPTY), [(0..4, false)]);
    }
}
