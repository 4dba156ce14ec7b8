//! Reading what lies in many pieces on both sides of a pair: both places whole, and the blocks
//! picked out (design section 3).
//!
//! It moves twice the bytes in two requests. Where a request costs a device more than some blocks
//! do, that is less than one request a piece.
//!
//! # Contracts
//!
//! - **Trust**: of a side only what the map finds there reaches the reader; what else was read with
//!   it, old contents or what is being written, is thrown away.
//! - **Failure**: where a place cannot be read whole, or there is no memory for that, its blocks
//!   are read one piece after the other: what nobody asked for must not fail a read.

use std::ops::Range;

use futures_util::future::{join, join_all};
use smallvec::SmallVec;

use super::Inner;
use super::error::IoError;
use super::write::Pieces;
use crate::env::{Disk, Env};
use crate::format::ids::Slot;
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::{Buf, View};

/// Blocks of an extent and the slots where they lie, in order.
pub(super) type Runs = SmallVec<[(Range<usize>, Slot); 4]>;

/// Blocks that follow each other, some on either side of a pair.
#[derive(Debug)]
pub(super) struct Mixed {
    /// Where they go in the buffer of the request.
    pub range: Range<usize>,
    /// Device and byte of the first block's place on either side; most blocks lie on the first.
    pub places: [(usize, u64); 2],
    /// Those that lie on the second: bytes of the range.
    pub picked: Vec<Range<usize>>,
    /// The same blocks, one piece after the other.
    pub pieces: Pieces,
}

/// The slot that most of these blocks lie in, where they are to be read whole: without a gap, on
/// both sides, and in more pieces than `most`.
pub(super) fn whole_side(runs: &Runs, most: usize) -> Option<Slot> {
    let is_gapless = runs.windows(2).all(|pair| pair[0].0.end == pair[1].0.start);
    let on = |slot| runs.iter().filter(|run| run.1 == slot).map(|run| run.0.len()).sum::<usize>();
    let [zero, one] = Slot::BOTH.map(on);
    let wanted = runs.len() > most && is_gapless && zero > 0 && one > 0;
    wanted.then_some(if one > zero { Slot::One } else { Slot::Zero })
}

impl<E: Env> Inner<E> {
    /// Reads these pieces and what is mixed besides.
    pub(super) async fn read_mixed(
        &self,
        buf: &mut Buf,
        mut pieces: Pieces,
        mixed: Vec<Mixed>,
    ) -> Result<(), IoError> {
        let mut wholes = Vec::new();
        for mixed in mixed {
            match self.env.buffers().try_acquire(mixed.range.len()) {
                Some(room) => {
                    wholes.push(self.read_whole(buf.view(mixed.range.clone()), mixed, room));
                }
                None => pieces.extend(mixed.pieces),
            }
        }
        let (read, unread) = join(self.read_pieces(buf, &pieces), join_all(wholes)).await;
        let unread: Pieces = unread.into_iter().filter_map(Result::err).flatten().collect();
        read?;
        self.read_pieces(buf, &unread).await
    }

    /// Reads both places, one of them into `room`, and picks; gives the pieces back where it
    /// cannot.
    async fn read_whole(&self, view: View, mixed: Mixed, mut room: Buf) -> Result<(), Pieces> {
        let read =
            |(device, offset): (usize, u64), view| self.devices[device].disk.read(offset, view);
        let [first, second] = mixed.places;
        let length = view.len();
        let both = join(read(first, view.narrow(0..length)), read(second, room.view_all())).await;
        let (Ok(()), Ok(())) = both else { return Err(mixed.pieces) };
        for range in mixed.picked {
            if mutated(Mutant::MixedNotPicked) {
                break;
            }
            let bytes = &room.as_slice()[range.clone()];
            view.narrow(range).with_mut(|out| out.copy_from_slice(bytes));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: over all maps of six blocks (either side, or neither) and all bounds: read whole is
    /// what lies on both sides without a gap in more pieces than the bound, and most of it is on
    /// the side that is named.
    #[test]
    fn what_is_read_whole() {
        for map in 0..3_usize.pow(6) {
            let at = |block: usize| {
                [None, Some(Slot::Zero), Some(Slot::One)][map / 3_usize.pow(block as u32) % 3]
            };
            let mut runs = Runs::new();
            for block in 0..6 {
                let Some(slot) = at(block) else { continue };
                match runs.last_mut() {
                    Some((run, of)) if run.end == block && *of == slot => run.end += 1,
                    _ => runs.push((block..block + 1, slot)),
                }
            }
            let held: Vec<usize> = (0..6).filter(|block| at(*block).is_some()).collect();
            let on = |slot| held.iter().filter(|block| at(**block) == Some(slot)).count();
            let (zero, one) = (on(Slot::Zero), on(Slot::One));
            let gapless = held.last().is_some_and(|last| last - held[0] + 1 == held.len());
            for most in 0..6 {
                let expected = gapless && zero > 0 && one > 0 && runs.len() > most;
                let side = whole_side(&runs, most);
                assert_eq!(side.is_some(), expected, "{map} {most}");
                assert!(side.is_none_or(|side| on(side) >= on(side.other())));
            }
        }
    }
}
