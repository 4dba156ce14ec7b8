//! Reads: by the lines that are known, until what was read was where it is still.

use std::ops::Range;
use std::rc::Rc;

use futures_util::future::join_all;

use super::cache::Sight;
use super::{Inner, ReadError, increment};
use crate::env::{Disk, Env, Moment};
use crate::format::blocks::BlockSet;
use crate::format::ids::{ExtentId, VolumeId};
use crate::unit::request::extents;
use crate::uring::buffers::Buf;

/// How often blocks are read that change each time.
const TURNS_MAX: u32 = 100;

/// The blocks of one logical extent, and where in the buffer the first of the extent would lie.
struct Piece {
    sight: Sight,
    /// The byte of the buffer for the first of `blocks`.
    at: usize,
    blocks: Range<usize>,
}

/// A read of devices under way.
struct UnderWay<E: Env> {
    inner: Rc<Inner<E>>,
    number: u64,
    since: Moment,
}

impl<E: Env> UnderWay<E> {
    /// Entered before the lines are looked at.
    fn enter(inner: &Rc<Inner<E>>) -> Self {
        let since = inner.parts.env.now();
        let mut state = inner.state.borrow_mut();
        let (view, lease) = (state.cache.view(), state.lease.length());
        let until = Moment(since.0.saturating_add(lease.as_nanos() as u64));
        let number = state.reads.enter(view, until);
        UnderWay { inner: Rc::clone(inner), number, since }
    }

    /// The devices have answered: refused where nothing was held back any more for this read.
    fn ended(self) -> Result<(), ReadError> {
        let now = self.inner.parts.env.now();
        if self.inner.state.borrow().reads.is_good(self.number, now) {
            return Ok(());
        }
        let took_ms = now.since(self.since).as_millis() as u64;
        Err(ReadError::TooSlow { took_ms })
    }
}

impl<E: Env> Drop for UnderWay<E> {
    fn drop(&mut self) {
        self.inner.state.borrow_mut().reads.leave(self.number);
    }
}

/// Reads whole blocks of a volume to the beginning of a buffer.
pub(super) async fn read_blocks<E: Env>(
    inner: &Rc<Inner<E>>,
    volume: VolumeId,
    blocks: Range<u64>,
    buf: &mut Buf,
) -> Result<(), ReadError> {
    let block = inner.parts.geometry.block_size() as usize;
    let (mut todo, mut at) = (Vec::new(), 0);
    for (logical, blocks, _) in extents(blocks, inner.parts.geometry) {
        todo.push(((volume, logical), at, blocks.clone()));
        at += blocks.len() * block;
    }
    for _ in 0..TURNS_MAX {
        inner.lease_left()?;
        let pieces: Vec<Piece> = {
            let under_way = UnderWay::enter(inner);
            let look = |(owner, at, blocks): (_, usize, Range<usize>)| {
                let cache = &inner.state.borrow().cache;
                let sight = cache.look(owner, BlockSet::range(blocks.clone()));
                Piece { sight, at, blocks }
            };
            let pieces = todo.drain(..).map(look).collect::<Vec<_>>();
            read_pieces(inner, &pieces, buf).await?;
            under_way.ended()?;
            pieces
        };
        inner.validated().await?;
        let state = inner.state.borrow();
        let moved = pieces.into_iter().filter(|piece| !state.cache.holds(&piece.sight));
        todo.extend(moved.map(|piece| (piece.sight.owner(), piece.at, piece.blocks)));
        if todo.is_empty() {
            increment(&inner.counters.reads);
            return Ok(());
        }
        increment(&inner.counters.again);
    }
    Err(ReadError::Unsettled(TURNS_MAX))
}

async fn read_pieces<E: Env>(
    inner: &Inner<E>,
    pieces: &[Piece],
    buf: &mut Buf,
) -> Result<(), ReadError> {
    let block = inner.parts.geometry.block_size() as usize;
    let mut reads = Vec::new();
    for piece in pieces {
        let place = |run: &Range<usize>| {
            let start = piece.at + (run.start - piece.blocks.start) * block;
            start..start + run.len() * block
        };
        for run in piece.sight.unused().runs() {
            buf.as_mut_slice()[place(&run)].fill(0);
        }
        for (blocks, extent) in piece.sight.places() {
            for run in blocks.runs() {
                reads.push((extent, (run.start * block) as u64, place(&run)));
            }
        }
    }
    let reads = reads.into_iter().map(|(extent, offset, place)| {
        let (disk, at) = locate(inner, extent);
        let read = disk.read(at + offset, buf.view(place));
        async move {
            let failed = |error| ReadError::Device(format!("{}: {error}", disk.name()).into());
            read.await.map_err(failed)
        }
    });
    // All of them, so that the guard outlives each.
    let ended = join_all(reads).await;
    ended.into_iter().collect()
}

/// The device of an extent, and where on it that begins.
fn locate<E: Env>(inner: &Inner<E>, extent: ExtentId) -> (&E::Disk, u64) {
    let geometry = inner.parts.geometry;
    let mut devices = inner.parts.devices.iter();
    let found = devices.find_map(|(disk, on)| Some((disk, on.offset_of(extent, geometry)?)));
    found.expect("lines were checked to be of extents that there are")
}
