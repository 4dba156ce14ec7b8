//! A flush whose end nobody heard.
//!
//! A device whose flush fails may lose what it had cached, and takes no more writes: who hears the
//! failure stops ([`crate::env::latch`]). Where the process is killed meanwhile nobody hears it, and
//! the next flush succeeds. So the warm table says whether a flush is under way, and what the blocks
//! sum up to that were acknowledged: a start that finds a flush under way reads them before it
//! believes them.
//!
//! # Contracts
//!
//! - **Ordering** ‡: the table says that a flush is under way before it begins, and until its
//!   success was heard. A start goes on saying so until it has begun a table of its own.
//! - **Durable**: what is read has been flushed by this start.
//! - **Unreadable** blocks are taken for what they should be: whoever reads them hears of it.

use std::cell::Cell;
use std::rc::Rc;

use super::adopt::Plan;
use super::recovery::Parts;
use crate::env::latch::FlushWatch;
use crate::env::shared::SharedMemory;
use crate::env::{Disk, Env};
use crate::format::home::Line;
use crate::format::ids::ExtentId;
use crate::format::warm::{CHUNK, FLUSHING_AT};
use crate::journal::sums::block_sum;
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::Buf;

/// Bytes that are read at a time.
const READ_BYTES: usize = 256 << 10;

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

/// A block that is to be on a device: which one, from which byte on, and what it sums up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    device: usize,
    offset: u64,
    sum: u64,
}

/// Reads what is to be pending again; the error is what is not there. `seen` are the lines as they
/// are when that is committed.
pub(super) async fn verify<E: Env>(
    parts: &Parts<E>,
    plan: &Plan,
    seen: &[Line],
) -> Result<(), String> {
    let block = parts.geometry.block_size() as usize;
    let mut wanted = Vec::new();
    for (pair, number, slot, sum) in plan.summed() {
        let extent = seen[pair.0 as usize].binding.extent(slot).expect("the plan is sound");
        let (device, offset) = locate(parts, extent);
        wanted.push(Wanted { device, offset: offset + (number * block) as u64, sum });
    }
    wanted.sort_unstable();
    let mut buf = parts.env.buffers().acquire(READ_BYTES.max(block)).await;
    let follows =
        |a: &Wanted, b: &Wanted| a.device == b.device && a.offset + block as u64 == b.offset;
    for run in wanted.chunk_by(follows) {
        for run in run.chunks(READ_BYTES.div_ceil(block)) {
            verify_run(parts, run, block, &mut buf).await?;
        }
    }
    Ok(())
}

/// The same of blocks that follow each other; one by one where they cannot be read together.
async fn verify_run<E: Env>(
    parts: &Parts<E>,
    run: &[Wanted],
    block: usize,
    buf: &mut Buf,
) -> Result<(), String> {
    let disk = &parts.devices[run[0].device].disk;
    let together = disk.read(run[0].offset, buf.view(0..run.len() * block)).await.is_ok();
    for (nth, wanted) in run.iter().enumerate() {
        let at = if together { nth * block } else { 0 };
        if !together && disk.read(wanted.offset, buf.view(0..block)).await.is_err() {
            continue;
        }
        if block_sum(&buf.as_slice()[at..at + block]) != wanted.sum {
            let (disk, offset) = (disk.name(), wanted.offset);
            return Err(format!(
                "a flush was under way when the last process ended, and {disk} has lost what was \
                 written at {offset} before it"
            ));
        }
    }
    Ok(())
}

fn locate<E: Env>(parts: &Parts<E>, extent: ExtentId) -> (usize, u64) {
    let mut devices = parts.devices.iter().enumerate();
    let found = devices.find_map(|(device, member)| {
        member.extents.offset_of(extent, parts.geometry).map(|offset| (device, offset))
    });
    found.expect("every extent of the pool is on one of its devices")
}
