//! Copying blocks from one side of a pair to the other, for a settle.

use std::ops::Range;

use futures_util::future::join_all;

use super::Inner;
use super::policy::Settlement;
use crate::env::{Disk, Durability, Env};
use crate::format::record::Binding;
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::{Buf, BufferPool, View};

/// The most pairs that are copied at a time: the disk is not for settling alone.
const PAIRS_AT_A_TIME: usize = 16;

/// The memory that settling copies through, taken at the start so that it never waits for any.
pub(super) struct CopyBuffers(Buf);

/// What is copied of one pair.
pub(super) type Copy = (Binding, Settlement);

impl CopyBuffers {
    /// Room for the blocks of one extent.
    pub async fn acquire(buffers: &BufferPool, extent_size: u32) -> CopyBuffers {
        CopyBuffers(buffers.acquire(extent_size as usize).await)
    }
}

/// How many of these pairs, in order, are copied together, time after time: as many as have room
/// for that many blocks, of which one pair never has more.
pub(super) fn passes(costs: impl IntoIterator<Item = usize>, room: usize) -> Vec<usize> {
    let mut passes = Vec::new();
    let (mut pairs, mut blocks) = (0, 0);
    for cost in costs {
        if pairs == PAIRS_AT_A_TIME || blocks + cost > room {
            passes.push(pairs);
            (pairs, blocks) = (0, 0);
        }
        pairs += 1;
        blocks += cost;
    }
    passes.extend((pairs > 0).then_some(pairs));
    passes
}

impl<E: Env> Inner<E> {
    /// Copies what the settlements say, all at once; of each, the devices written to, a bit each.
    /// The copies are not durable yet. Nothing that counts is overwritten: on the side copied to,
    /// those blocks hold nothing.
    pub(super) async fn copy_pairs(
        &self,
        buffers: &mut CopyBuffers,
        copies: Vec<Copy>,
    ) -> Vec<Result<u64, String>> {
        let block = self.geometry.block_size() as usize;
        let mut at = 0;
        let copies = copies.into_iter().map(|copy| {
            let start = at;
            at += copy.1.copy.len() * block;
            self.copy_pair(buffers.0.view(start..at), copy)
        });
        let copies: Vec<_> = copies.collect();
        join_all(copies).await
    }

    /// Copies through `room`, which has that of all blocks of the pair that are copied.
    async fn copy_pair(&self, room: View, (binding, settlement): Copy) -> Result<u64, String> {
        if settlement.copy.is_empty() {
            return Ok(0);
        }
        let block = self.geometry.block_size() as usize;
        let extent = |slot| binding.extent(slot).expect("what is copied lies in an extent");
        let source = extent(settlement.keep.other());
        let (from_device, from) = self.locate(source, 0);
        let (to_device, to) = self.locate(extent(settlement.keep), 0);
        let mut at = 0;
        let runs = settlement.copy.runs().map(|run| {
            let start = at;
            at += run.len() * block;
            ((run.start * block) as u64, start..at)
        });
        let mut runs: Vec<(u64, Range<usize>)> = runs.collect();
        if mutated(Mutant::CopyIncomplete) {
            runs.pop();
        }
        let source = &self.devices[from_device].disk;
        let reads =
            runs.iter().map(|(run, place)| source.read(from + run, room.narrow(place.clone())));
        wait_for_all(reads.collect()).await.map_err(|error| {
            format!("reading from {} failed: {error}", self.device_name(from_device))
        })?;
        let target = &self.devices[to_device].disk;
        let writes = runs.iter().map(|(run, place)| {
            self.counters.device_bytes_copies.add(place.len() as u64);
            target.write(to + run, room.narrow(place.clone()), Durability::Volatile)
        });
        wait_for_all(writes.collect()).await.map_err(|error| {
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
    join_all(operations).await.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Goal: every pair has its turn, in order, and no pass has more than there is room for.
        #[test]
        fn all_have_their_turn(costs in prop::collection::vec(0_usize..=256, 0..100)) {
            let passes = passes(costs.iter().copied(), 256);
            prop_assert_eq!(passes.iter().sum::<usize>(), costs.len());
            let mut rest = costs.as_slice();
            for (index, count) in passes.iter().enumerate() {
                let (pass, after) = rest.split_at(*count);
                let blocks: usize = pass.iter().sum();
                prop_assert!((1..=PAIRS_AT_A_TIME).contains(count) && blocks <= 256);
                // It ends where one more would have been too many.
                let next = after.first().map_or(usize::MAX / 2, |cost| *cost);
                let is_full = *count == PAIRS_AT_A_TIME || blocks + next > 256;
                prop_assert!(is_full || index + 1 == passes.len());
                rest = after;
            }
        }
    }
}
