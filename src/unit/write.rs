//! Requests that change a volume: writes, trims, write-zeroes (design section 3).

use std::ops::Range;

use futures_util::future::join_all;
use smallvec::SmallVec;

use super::admission::{Admitted, Outcome};
use super::domain::Point;
use super::error::IoError;
use super::request::{Change, Parts, Seat, Span, covering, split};
use super::{Inner, REGION_DEVICE};
use crate::env::{Disk, Durability, Env};
use crate::format::ids::Slot;
use crate::journal::sums::block_sums;
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::Buf;

/// How an admitted request failed.
enum Failure {
    /// Before any of it was written: the epoch is as it was.
    Untouched(IoError),
    /// When some of it may have been written: the epoch can never be committed ‡.
    Torn(IoError),
}

/// A piece of a request on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The device's number.
    pub device: usize,
    /// The byte on it.
    pub offset: u64,
    /// The bytes of the request's buffer.
    pub range: Range<usize>,
}

/// The pieces of a request.
pub(super) type Pieces = SmallVec<[Piece; 2]>;

/// Adds a piece, joined to the last one where both continue it.
pub(super) fn push_piece(pieces: &mut Pieces, piece: Piece) {
    if let Some(last) = pieces.last_mut()
        && last.device == piece.device
        && last.range.end == piece.range.start
        && last.offset + last.range.len() as u64 == piece.offset
    {
        last.range.end = piece.range.end;
        return;
    }
    pieces.push(piece);
}

impl<E: Env> Inner<E> {
    /// Writes `len` bytes that lie in `buf` from `span.offset % block` on, to the devices or for
    /// the journal ([`super::payload`]). The buffer holds all blocks that the span touches, and two
    /// more where it does not begin and end at blocks.
    pub(super) async fn write(
        &self,
        seat: Seat,
        span: Span,
        mut buf: Buf,
    ) -> Result<Point, IoError> {
        let parts = split(Change::Write, span, self.geometry);
        let admitted = self.admit(seat, parts, span.len).await?;
        if self.is_kept(span) {
            let point = admitted.at;
            admitted.finish(Outcome::Kept(&buf.as_slice()[..span.len as usize]));
            self.counters.writes.increment();
            return self.acknowledged(point).await;
        }
        let done = self.carry_out_write(seat.volume, &admitted, span, &mut buf).await;
        self.counters.writes.increment();
        self.acknowledged(conclude(admitted, done)?).await
    }

    /// Makes a span read as zeros: whole blocks become unused, the rest is written.
    pub(super) async fn zero(&self, seat: Seat, span: Span) -> Result<Point, IoError> {
        let parts = split(Change::Zero, span, self.geometry);
        let edges = parts.iter().any(|part| !part.write.is_empty());
        if !edges {
            let admitted = self.admit(seat, parts, 0).await?;
            return self.acknowledged(conclude(admitted, Ok(()))?).await;
        }
        // The edges are written as whole blocks, read-modify-write, from a small buffer.
        let block = self.geometry.block_size() as usize;
        let mut buf = self.env.buffers().acquire(2 * block).await;
        let admitted = self.admit(seat, parts, 0).await?;
        let done = self.zero_edges(seat.volume, &admitted, span, &mut buf).await;
        self.acknowledged(conclude(admitted, done)?).await
    }

    /// Makes the whole blocks of a span unused.
    pub(super) async fn trim(&self, seat: Seat, span: Span) -> Result<Point, IoError> {
        let admitted = self.admit(seat, split(Change::Trim, span, self.geometry), 0).await?;
        self.acknowledged(conclude(admitted, Ok(()))?).await
    }

    /// The device writes of an admitted write.
    async fn carry_out_write(
        &self,
        volume: usize,
        admitted: &Admitted<'_, E>,
        span: Span,
        buf: &mut Buf,
    ) -> Result<(), Failure> {
        let block = u64::from(self.geometry.block_size());
        let blocks = covering(span, self.geometry);
        let (start, end) = (blocks.start * block, blocks.end * block);
        let aligned = start == span.offset && end == span.offset + span.len;
        if !aligned && !mutated(Mutant::EdgesNotRead) {
            self.fill_edges(volume, span, buf).await.map_err(Failure::Untouched)?;
        }
        let pieces = self.write_pieces(&admitted.parts, |at| (at - start) as usize);
        self.write_all(admitted, buf, &pieces).await.map_err(Failure::Torn)
    }

    /// Reads the blocks that a span covers in part, and puts what it leaves of them beside it.
    async fn fill_edges(&self, volume: usize, span: Span, buf: &mut Buf) -> Result<(), IoError> {
        let block = self.geometry.block_size() as usize;
        let blocks = covering(span, self.geometry);
        let scratch = (blocks.end - blocks.start) as usize * block;
        let head = (span.offset % block as u64) as usize;
        let tail_at = head + span.len as usize;
        if head > 0 {
            self.read_block(volume, blocks.start, buf, scratch).await?;
            buf.as_mut_slice().copy_within(scratch..scratch + head, 0);
        }
        if !tail_at.is_multiple_of(block) {
            self.read_block(volume, blocks.end - 1, buf, scratch + block).await?;
            let from = scratch + block + tail_at % block;
            buf.as_mut_slice().copy_within(from..scratch + 2 * block, tail_at);
        }
        Ok(())
    }

    /// Reads one block, which is held, to a place in a buffer.
    async fn read_block(
        &self,
        volume: usize,
        block: u64,
        buf: &mut Buf,
        at: usize,
    ) -> Result<(), IoError> {
        let size = self.geometry.block_size() as usize;
        self.read_blocks(volume, block..block + 1, buf, at..at + size).await
    }

    /// Zeroes the ends of a span in the blocks that it covers in part.
    async fn zero_edges(
        &self,
        volume: usize,
        admitted: &Admitted<'_, E>,
        span: Span,
        buf: &mut Buf,
    ) -> Result<(), Failure> {
        let block = u64::from(self.geometry.block_size());
        let blocks = covering(span, self.geometry);
        let last = blocks.end - 1;
        for (number, at) in [(blocks.start, 0), (last, block as usize)] {
            let start = number * block;
            let from = span.offset.clamp(start, start + block);
            let to = (span.offset + span.len).clamp(start, start + block);
            let whole = to - from == block;
            if whole || (number == last && last == blocks.start && at > 0) {
                continue;
            }
            self.read_block(volume, number, buf, at).await.map_err(Failure::Untouched)?;
            let place = at + (from - start) as usize..at + (to - start) as usize;
            buf.as_mut_slice()[place].fill(0);
        }
        // The first block lies at the start of the buffer, the last one after it.
        let place = |at: u64| if at / block == blocks.start { 0 } else { block as usize };
        let pieces = self.write_pieces(&admitted.parts, place);
        self.write_all(admitted, buf, &pieces).await.map_err(Failure::Torn)
    }

    /// Where the written blocks of a request go, run by run. `place` says where in the buffer
    /// the block that begins at a byte of the volume lies.
    pub(super) fn write_pieces(&self, parts: &Parts, place: impl Fn(u64) -> usize) -> Pieces {
        let block = self.geometry.block_size() as usize;
        let state = self.state.borrow();
        let mut pieces = Pieces::new();
        for part in parts {
            let pair = part.pair.expect("an admitted part has a pair");
            let binding = state.pairs.binding(pair);
            let base = u64::from(part.logical.0) * u64::from(self.geometry.extent_size());
            let mut runs: SmallVec<[(Range<usize>, Slot); 4]> = SmallVec::new();
            for slot in Slot::BOTH {
                runs.extend(part.targets[slot.index()].runs().map(|run| (run, slot)));
            }
            runs.sort_unstable_by_key(|(run, _)| run.start);
            for (run, slot) in runs {
                let extent = binding.extent(slot).expect("admission bound what is written to");
                let (device, offset) = self.locate(extent, (run.start * block) as u64);
                let at = place(base + (run.start * block) as u64);
                let range = at..at + run.len() * block;
                push_piece(&mut pieces, Piece { device, offset, range });
            }
        }
        pieces
    }

    /// Notes where an admitted request is about to write, and what its blocks sum up to, as far as
    /// somebody will ask.
    fn note_write(&self, admitted: &Admitted<'_, E>, buf: &Buf, pieces: &Pieces) {
        let (block, most) = (self.geometry.block_size() as usize, self.config.sum_blocks_max);
        let mut state = self.state.borrow_mut();
        let domain = &mut state.domains[admitted.at.domain];
        // Epochs of groups are not in the warm table.
        let kept = domain.group.is_none() && self.keeps_warm();
        let epoch = domain.epoch_mut(admitted.at.epoch);
        let bytes: usize = pieces.iter().map(|piece| piece.range.len()).sum();
        if bytes > most * block {
            epoch.sums.give_up();
        }
        let asked = kept || !epoch.sums.is_given_up();
        let bytes = |piece: &Piece| &buf.as_slice()[piece.range.clone()];
        let sums = |piece| block_sums(bytes(piece), block);
        let sums: SmallVec<[u64; 4]> = pieces.iter().filter(|_| asked).flat_map(sums).collect();
        let mut rest = sums.as_slice();
        for piece in pieces {
            let of_piece = rest.split_off(..(piece.range.len() / block).min(rest.len()));
            epoch.devices |= 1 << piece.device;
            if piece.device == REGION_DEVICE {
                epoch.sums.note(piece.offset, of_piece.unwrap_or_default(), block, most);
            }
            if mutated(Mutant::DeviceOfEpochForgotten) {
                break;
            }
        }
        admitted.sums.set(sums);
    }

    /// Writes the pieces of an admitted request.
    pub(super) async fn write_all(
        &self,
        admitted: &Admitted<'_, E>,
        buf: &mut Buf,
        pieces: &Pieces,
    ) -> Result<(), IoError> {
        self.note_write(admitted, buf, pieces);
        self.warm_intend(admitted, buf, pieces);
        let bytes: usize = pieces.iter().map(|piece| piece.range.len()).sum();
        self.counters.device_bytes_data.add(bytes as u64);
        let mut start = |piece: &Piece| {
            let disk = &self.devices[piece.device].disk;
            (
                piece.device,
                disk.write(piece.offset, buf.view(piece.range.clone()), Durability::Volatile),
            )
        };
        let failed = |device: usize, error: std::io::Error| {
            let what = format!("writing to {} failed: {error}", self.device_name(device));
            self.device_failed(device, &what);
            Err(IoError::Latched(what.into()))
        };
        if let [piece] = pieces.as_slice() {
            let (device, write) = start(piece);
            return write.await.or_else(|error| failed(device, error));
        }
        let writes: Vec<_> = pieces.iter().map(start).collect();
        // All of them are waited for, whatever the first says: the buffer is theirs until then.
        let (devices, writes): (Vec<_>, Vec<_>) = writes.into_iter().unzip();
        let results = join_all(writes).await;
        for (device, result) in devices.into_iter().zip(results) {
            if let Err(error) = result {
                return failed(device, error);
            }
        }
        Ok(())
    }
}

/// Ends an admitted request as it went, and says in which epoch it was.
fn conclude<E: Env>(
    admitted: Admitted<'_, E>,
    done: Result<(), Failure>,
) -> Result<Point, IoError> {
    let at = admitted.at;
    match done {
        Ok(()) => {
            admitted.finish(Outcome::Written);
            Ok(at)
        }
        Err(Failure::Untouched(error)) => {
            admitted.finish(Outcome::Nothing);
            Err(error)
        }
        Err(Failure::Torn(error)) => {
            let reason = error.to_string();
            tracing::error!(reason, "a write failed");
            admitted.finish(Outcome::Torn(&reason));
            Err(error)
        }
    }
}
