//! Copying blocks from one side of a pair to the other, for a settle.

use std::ops::Range;

use super::Inner;
use super::policy::Settlement;
use crate::env::{Disk, Durability, Env};
use crate::format::record::Binding;
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::{Buf, BufferPool};

/// The memory that settling copies through, taken at the start so that it never waits for any.
pub(super) struct CopyBuffers(Buf);

impl CopyBuffers {
    /// Room for the blocks of one extent.
    pub async fn acquire(buffers: &BufferPool, extent_size: u32) -> CopyBuffers {
        CopyBuffers(buffers.acquire(extent_size as usize).await)
    }
}

impl<E: Env> Inner<E> {
    /// Copies what a settlement says; returns the devices written to, a bit each. The copies are
    /// not durable yet. Nothing that counts is overwritten: on the side copied to, those blocks
    /// hold nothing.
    pub(super) async fn copy_pair(
        &self,
        buffers: &mut CopyBuffers,
        binding: &Binding,
        settlement: Settlement,
    ) -> Result<u64, String> {
        if settlement.copy.is_empty() {
            return Ok(0);
        }
        let block = self.geometry.block_size() as usize;
        let extent = |slot| binding.extent(slot).expect("what is copied lies in an extent");
        let source = extent(settlement.keep.other());
        let (from_device, from) = self.locate(source, 0);
        let (to_device, to) = self.locate(extent(settlement.keep), 0);
        let runs: Vec<Range<usize>> =
            settlement.copy.runs().map(|run| run.start * block..run.end * block).collect();
        let runs = match runs.split_last() {
            Some((_, all_but_the_last)) if mutated(Mutant::CopyIncomplete) => {
                all_but_the_last.to_vec()
            }
            _ => runs,
        };
        let buf = &mut buffers.0;
        let source = &self.devices[from_device].disk;
        let reads =
            runs.iter().map(|run| source.read(from + run.start as u64, buf.view(run.clone())));
        let reads: Vec<_> = reads.collect();
        wait_for_all(reads).await.map_err(|error| {
            format!("reading from {} failed: {error}", self.device_name(from_device))
        })?;
        let target = &self.devices[to_device].disk;
        let writes = runs.iter().map(|run| {
            self.counters.device_bytes_copies.add(run.len() as u64);
            target.write(to + run.start as u64, buf.view(run.clone()), Durability::Volatile)
        });
        let writes: Vec<_> = writes.collect();
        wait_for_all(writes).await.map_err(|error| {
            let what = format!("writing to {} failed: {error}", self.device_name(to_device));
            self.device_failed(to_device, &what);
            what
        })?;
        Ok(1 << to_device)
    }
}

/// Waits for every operation, whatever the others say: they all use one buffer.
async fn wait_for_all(
    operations: Vec<impl Future<Output = std::io::Result<()>>>,
) -> std::io::Result<()> {
    let results = futures_util::future::join_all(operations).await;
    results.into_iter().collect()
}
