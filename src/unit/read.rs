//! Reads: each block from where its newest visible contents lie (design section 3), in memory first
//! ([`super::payload`]).

use std::ops::Range;
use std::sync::Arc;

use futures_util::future::join_all;

use super::Inner;
use super::error::IoError;
use super::mixed::{Mixed, Runs, whole_side};
use super::request::extents;
use super::state::Work;
use super::write::{Piece, Pieces, push_piece};
use crate::env::{Disk, Env};
use crate::format::blocks::BlockSet;
use crate::format::ids::{ExtentId, Slot};
use crate::format::record::Binding;
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::Buf;

/// Where blocks lie on the devices.
#[derive(Debug, Default)]
struct Found {
    pieces: Pieces,
    /// Those of extents that are read whole.
    mixed: Vec<Mixed>,
    /// Whether any of all the blocks is not committed.
    uncommitted: bool,
}

impl<E: Env> Inner<E> {
    /// Reads whole blocks of a volume to a place in a buffer. Blocks that have no contents become
    /// zeros.
    pub(super) async fn read_blocks(
        &self,
        volume: usize,
        blocks: Range<u64>,
        buf: &mut Buf,
        place: Range<usize>,
    ) -> Result<(), IoError> {
        // Entered before the maps are looked at: what is found there is not freed until we leave.
        let _reading = self.readers.enter();
        let most = self.config.read_pieces_max;
        let found = self.find(volume, blocks, place.start, buf, most);
        self.read_found(volume, buf, found).await
    }

    /// Reads whole blocks of a volume to the beginning of a buffer whose bytes it does not touch,
    /// where the devices hold all of them in few pieces; `false` where they do not.
    pub(super) async fn read_blocks_straight(
        &self,
        volume: usize,
        blocks: Range<u64>,
        buf: &mut Buf,
    ) -> Result<bool, IoError> {
        let _reading = self.readers.enter();
        if !self.lie_on_devices(volume, blocks.clone()) {
            return Ok(false);
        }
        let found = self.find(volume, blocks, 0, buf, self.config.read_pieces_max);
        if !found.mixed.is_empty() {
            // To pick blocks out is to touch them; so many pieces cost more than a copy.
            return Ok(false);
        }
        let bytes: usize = found.pieces.iter().map(|piece| piece.range.len()).sum();
        assert_eq!(bytes, buf.len(), "the devices fill all of it: it may be another's memory");
        self.read_found(volume, buf, found).await.map(|()| true)
    }

    /// Whether all of the blocks have contents, and none of them in memory.
    fn lie_on_devices(&self, volume: usize, blocks: Range<u64>) -> bool {
        let state = self.state.borrow();
        extents(blocks, self.geometry).all(|(logical, local, _)| {
            let Some(pair) = state.volumes[volume].pair(logical) else { return false };
            let in_memory = state.pairs.work(pair).map_or(BlockSet::EMPTY, Work::in_memory);
            let missing = BlockSet::range(local) - (state.visible(pair).used() - in_memory);
            missing.is_empty()
        })
    }

    /// Reads what was found, and sees to it that it may be told.
    async fn read_found(&self, volume: usize, buf: &mut Buf, found: Found) -> Result<(), IoError> {
        let Found { pieces, mixed, uncommitted } = found;
        if mixed.is_empty() {
            self.read_pieces(buf, &pieces).await?;
        } else {
            self.read_mixed(buf, pieces, mixed).await?;
        }
        self.check_owned()?;
        // What was written and not committed when the device failed may be gone already, and
        // something else read in its place: then an error is the only true answer (promise 5).
        match &self.state.borrow().domain_of(volume).failed {
            Some(reason) if uncommitted && !mutated(Mutant::LostContentsRead) => {
                Err(IoError::Latched(Arc::clone(reason)))
            }
            _ => Ok(()),
        }
    }

    /// Reads pieces one beside the other.
    pub(super) async fn read_pieces(&self, buf: &mut Buf, pieces: &Pieces) -> Result<(), IoError> {
        if let [piece] = pieces.as_slice() {
            let disk = &self.devices[piece.device].disk;
            let read = disk.read(piece.offset, buf.view(piece.range.clone()));
            return read.await.map_err(|error| self.read_failed(piece.device, &error));
        }
        let reads: Vec<_> = pieces
            .iter()
            .map(|piece| {
                let disk = &self.devices[piece.device].disk;
                disk.read(piece.offset, buf.view(piece.range.clone()))
            })
            .collect();
        let results = join_all(reads).await;
        for (piece, result) in pieces.iter().zip(results) {
            result.map_err(|error| self.read_failed(piece.device, &error))?;
        }
        Ok(())
    }

    fn read_failed(&self, device: usize, error: &std::io::Error) -> IoError {
        IoError::DeviceRead(format!("{}: {error}", self.device_name(device)).into())
    }

    /// Finds where blocks lie, those of an extent in `most` pieces at most; zeros those that lie
    /// nowhere.
    fn find(
        &self,
        volume: usize,
        blocks: Range<u64>,
        mut at: usize,
        buf: &mut Buf,
        most: usize,
    ) -> Found {
        let mut all = Found::default();
        let block = self.geometry.block_size() as usize;
        let state = self.state.borrow();
        for (logical, local, _) in extents(blocks, self.geometry) {
            let start = at;
            let place = |b: usize| start + (b - local.start) * block;
            at += local.len() * block;
            let wanted = BlockSet::range(local.clone());
            let Some(pair) = state.volumes[volume].pair(logical) else {
                buf.as_mut_slice()[start..at].fill(0);
                continue;
            };
            let seen = state.visible(pair);
            all.uncommitted |= state.is_uncommitted(pair, wanted);
            for run in (wanted - seen.used()).runs() {
                if mutated(Mutant::UnusedReadFromDisk) {
                    break;
                }
                buf.as_mut_slice()[place(run.start)..place(run.end)].fill(0);
            }
            let in_memory =
                state.pairs.work(pair).map_or(BlockSet::EMPTY, Work::in_memory) & wanted;
            for block in in_memory.iter() {
                let bytes = state.pairs.work(pair).expect("as above").payload.bytes(block);
                buf.as_mut_slice()[place(block)..place(block + 1)].copy_from_slice(bytes);
            }
            let binding = state.pairs.binding(pair);
            let wanted = wanted - in_memory;
            let mut found = Runs::new();
            for slot in Slot::BOTH {
                found.extend((wanted & seen.side(slot)).runs().map(|run| (run, slot)));
            }
            found.sort_unstable_by_key(|(run, _)| run.start);
            match whole_side(&found, most) {
                Some(side) => {
                    all.mixed.push(self.mixed(&binding, &found, side, place(found[0].0.start)));
                }
                None => self.push_runs(&binding, &found, place, &mut all.pieces),
            }
        }
        all
    }

    /// The places of runs of one pair.
    fn push_runs(
        &self,
        binding: &Binding,
        runs: &Runs,
        place: impl Fn(usize) -> usize,
        pieces: &mut Pieces,
    ) {
        let block = self.geometry.block_size() as usize;
        for (run, slot) in runs {
            let (device, offset) =
                self.locate(contents(binding, *slot), (run.start * block) as u64);
            let range = place(run.start)..place(run.end);
            push_piece(pieces, Piece { device, offset, range });
        }
    }

    /// The same of runs that are read whole, of which most lie in that slot; they go to `start` of
    /// the buffer.
    fn mixed(&self, binding: &Binding, runs: &Runs, most: Slot, start: usize) -> Mixed {
        let block = self.geometry.block_size() as usize;
        let first = runs[0].0.start;
        let last = runs.last().expect("it has a first").0.end;
        let within = |run: &Range<usize>| (run.start - first) * block..(run.end - first) * block;
        let others = runs.iter().filter(|(_, slot)| *slot != most);
        let mut pieces = Pieces::new();
        self.push_runs(binding, runs, |b| start + (b - first) * block, &mut pieces);
        Mixed {
            range: start..start + (last - first) * block,
            places: [most, most.other()]
                .map(|slot| self.locate(contents(binding, slot), (first * block) as u64)),
            picked: others.map(|(run, _)| within(run)).collect(),
            pieces,
        }
    }
}

/// The extent that holds contents in that slot.
fn contents(binding: &Binding, slot: Slot) -> ExtentId {
    binding.extent(slot).expect("contents lie in an extent of the pair")
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
