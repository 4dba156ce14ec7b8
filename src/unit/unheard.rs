//! A flush whose end nobody heard.
//!
//! A device whose flush fails may lose what it had cached, and takes no more writes: who hears the
//! failure stops ([`crate::env::latch`]). Where the process is killed meanwhile nobody hears it,
//! and the next flush succeeds. So the warm table says whether a flush is under way, and what the
//! blocks sum up to that were acknowledged: a start that finds a flush under way reads them before
//! it believes them.
//!
//! # Contracts
//!
//! - **Ordering** ‡: the table says that a flush is under way before it begins, and until its
//!   success was heard. A start goes on saying so until it has begun a table of its own.
//! - **Durable** ‡: what was read is written again, and flushed by the commit that comes before
//!   anybody is served: after a failed flush a cache may go on showing what it will never write.
//! - **Failure**: what cannot be read now is no reason to give it up: the start fails.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use futures_util::future::join_all;

use super::adopt::Plan;
use super::error::RecoverError;
use super::locate;
use super::recovery::Parts;
use crate::env::latch::FlushWatch;
use crate::env::shared::SharedMemory;
use crate::env::{Disk, Durability, Env};
use crate::format::home::Line;
use crate::format::warm::{ASIDE_AT, CHUNK, FLUSHING_AT};
use crate::journal::sums::block_sums;
use crate::mutants::{Mutant, mutated};

/// Bytes of a piece that is read at a time, where a block is not larger.
const PIECE_BYTES: usize = 16 << 10;
/// How many of them are read at a time.
const PIECES: usize = 16;

/// What the warm table says of flushes under way.
pub(super) struct Flushing {
    memory: Rc<dyn SharedMemory>,
    under_way: Cell<u32>,
    /// The end of one under an earlier start was not heard.
    kept: Cell<bool>,
}

impl Flushing {
    pub fn new(memory: Rc<dyn SharedMemory>) -> Self {
        Self { memory, under_way: Cell::new(0), kept: Cell::new(false) }
    }

    /// From here on that of an earlier start is said, too, or is not.
    pub fn keep(&self, earlier: bool) {
        self.kept.set(earlier);
        self.say();
    }

    fn say(&self) {
        if self.memory.len() >= CHUNK {
            let flushing = self.kept.get() || self.under_way.get() > 0;
            self.memory.store(FLUSHING_AT, u64::from(flushing));
        }
    }
}

impl FlushWatch for Flushing {
    fn begins(&self) {
        if mutated(Mutant::WarmFlushUnnoted) {
            return;
        }
        self.under_way.set(self.under_way.get() + 1);
        if self.under_way.get() == 1 {
            self.say();
        }
    }

    fn succeeded(&self) {
        if mutated(Mutant::WarmFlushUnnoted) {
            return;
        }
        self.under_way.set(self.under_way.get() - 1);
        if self.under_way.get() == 0 {
            self.say();
        }
    }
}

/// What the last process left unheard in the table goes on being unheard, whatever comes before the
/// unit looks there; there is room to say so.
pub fn keep_unheard(memory: &dyn SharedMemory) -> io::Result<()> {
    memory.grow(CHUNK)?;
    if memory.load(ASIDE_AT) != 0 {
        memory.store(FLUSHING_AT, 1);
    }
    Ok(())
}

/// Says in the table whether flushes past the unit are under way.
pub fn say_aside(memory: &dyn SharedMemory, flushing: bool) {
    memory.store(ASIDE_AT, u64::from(flushing));
}

/// Blocks that follow each other on a device: which one, from which byte on, and what each sums up
/// to.
struct Wanted {
    device: usize,
    offset: u64,
    sums: Vec<u64>,
}

/// Reads what is to be pending again, and writes it again where it is: what can be read need not be
/// durable after a failed flush. The error within is what is not there. `seen` are the lines as
/// they are when all of it is committed.
pub(super) async fn verify<E: Env>(
    parts: &Parts<E>,
    plan: &Plan,
    seen: &[Line],
) -> Result<Result<(), String>, RecoverError> {
    let block = parts.geometry.block_size() as usize;
    let piece = PIECE_BYTES.max(block);
    let summed = plan.summed().map(|(pair, number, slot, sum)| {
        let extent = seen[pair.0 as usize].binding.extent(slot).expect("the plan is sound");
        let devices = parts.devices.iter().map(|member| member.extents);
        let (device, offset) = locate(devices, extent, parts.geometry);
        (device, offset + (number * block) as u64, sum)
    });
    let wanted = pieces(summed.collect(), block, piece);
    let mut buf = parts.env.buffers().acquire(PIECES * piece).await;
    for wanted in wanted.chunks(PIECES) {
        let places = || {
            wanted.iter().zip((0..).step_by(piece)).map(|(of, at)| {
                (of, at..at + of.sums.len() * block, &parts.devices[of.device].disk)
            })
        };
        let reads = places().map(|(of, at, disk)| disk.read(of.offset, buf.view(at)));
        let reads: Vec<_> = reads.collect();
        for (ended, (_, _, disk)) in join_all(reads).await.into_iter().zip(places()) {
            ended.map_err(|error| cannot("read", disk.name(), &error))?;
        }
        for (of, at, disk) in places() {
            if !block_sums(&buf.as_slice()[at], block).eq(of.sums.iter().copied()) {
                return Ok(Err(format!(
                    "a flush was under way when the last process ended, and {} has lost some of \
                     what was written from {} on before it",
                    disk.name(),
                    of.offset
                )));
            }
        }
        let writes = places()
            .map(|(of, at, disk)| disk.write(of.offset, buf.view(at), Durability::Volatile));
        let writes: Vec<_> = writes.collect();
        for (ended, (_, _, disk)) in join_all(writes).await.into_iter().zip(places()) {
            ended.map_err(|error| cannot("write", disk.name(), &error))?;
        }
    }
    Ok(Ok(()))
}

fn cannot(what: &str, device: &str, error: &io::Error) -> RecoverError {
    let text = format!(
        "cannot {what} again what was acknowledged before this start: {error}; start once more, or \
         with `serve --cold`, which goes back to the last commit"
    );
    RecoverError::Device { device: device.to_owned(), error: io::Error::new(error.kind(), text) }
}

/// Blocks by their places, joined where they follow each other, into pieces of so many bytes at
/// most. Pure.
fn pieces(mut blocks: Vec<(usize, u64, u64)>, block: usize, most: usize) -> Vec<Wanted> {
    blocks.sort_unstable();
    let mut pieces: Vec<Wanted> = Vec::new();
    for (device, offset, sum) in blocks {
        match pieces.last_mut() {
            Some(last)
                if last.device == device
                    && last.offset + (last.sums.len() * block) as u64 == offset
                    && (last.sums.len() + 1) * block <= most =>
            {
                last.sums.push(sum);
            }
            _ => pieces.push(Wanted { device, offset, sums: vec![sum] }),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: blocks that follow each other on one device go together, up to a bound.
    #[test]
    fn neighbours_go_together() {
        let blocks =
            [(0, 512, 2), (1, 2048, 9), (0, 0, 1), (0, 1024, 3), (0, 1536, 4), (0, 4096, 5)];
        let found = pieces(blocks.to_vec(), 512, 1536);
        let shown: Vec<_> =
            found.iter().map(|of| (of.device, of.offset, of.sums.as_slice())).collect();
        let expected: [(usize, u64, &[u64]); 4] =
            [(0, 0, &[1, 2, 3]), (0, 1536, &[4]), (0, 4096, &[5]), (1, 2048, &[9])];
        assert_eq!(shown, expected);
    }
}
