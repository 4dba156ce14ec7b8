//! Sums of data: one flush for the data of a commit and its group (design section 4).
//!
//! A group says that its data is there, so the data is made durable before it is written. Where
//! both are on one device that takes two waits for its cache. Instead a small commit's group has
//! with it what the data sums up to, is written when the data is, and one flush covers both. A
//! crash may then leave the group without its data; a recovery reads it and sees.
//!
//! # Contracts
//!
//! - **Only the newest group is ever doubted** ‡: groups are appended one after another, each when
//!   the flush of the one before has returned. What an older one names may have been written over
//!   since.
//! - **A group without its data is one that was cut off**: it is not in the list, and is durably
//!   invalidated before anything else is written ‡, or a client that writes the same data again
//!   would bring it back.
//! - **What is summed is what is on the device**: whoever writes a block again in the same epoch
//!   notes it again. A block that nobody noted makes its epoch one of two flushes.

use std::io;

use twox_hash::XxHash3_64;

use super::open::RecoveredGroup;
use super::pages::is_readable;
use crate::env::{Env, Region};
use crate::format::record::{Record, Sum};
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::Buf;

/// The blocks that an epoch has written, by their place on the device, and what each sums up to;
/// as long as they are few.
#[derive(Debug, Default)]
pub struct Sums {
    blocks: Vec<(u64, u64)>,
    given_up: bool,
}

impl Sums {
    /// Notes what the blocks of that size from `offset` on sum up to ([`block_sums`]); gives up
    /// where it would be more than `most` blocks.
    pub fn note(&mut self, offset: u64, sums: &[u64], block: usize, most: usize) {
        for (number, sum) in sums.iter().enumerate() {
            if self.given_up {
                return;
            }
            let at = offset + (number * block) as u64;
            match self.blocks.iter().position(|(of, _)| *of == at) {
                Some(_) if mutated(Mutant::SumKept) => {}
                Some(known) => self.blocks[known].1 = *sum,
                None if self.blocks.len() < most => self.blocks.push((at, *sum)),
                None => self.give_up(),
            }
        }
    }

    /// Not all that was written is known any more.
    pub fn give_up(&mut self) {
        self.given_up = true;
        self.blocks = Vec::new();
    }

    /// Whether that is so.
    pub fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// What `count` blocks from `offset` on sum up to; `None` where one of them is not known.
    pub fn of(&self, offset: u64, count: u16, block: u32) -> Option<Sum> {
        let known = |number: u16| {
            let at = offset + u64::from(number) * u64::from(block);
            self.blocks.iter().find(|(of, _)| *of == at).map(|(_, sum)| *sum)
        };
        let sums: Option<Vec<u64>> = (0..count).map(known).collect();
        Some(Sum { offset, block, count, sum: run_sum(&sums?) })
    }
}

/// XXH3-64 of a block: it is to tell a block from one that is not there, not to find flipped bits,
/// and each block written goes through it, so the fastest that does is taken.
pub(crate) fn block_sum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// The sum of each block of that size.
pub(crate) fn block_sums(bytes: &[u8], block: usize) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(block).map(block_sum)
}

/// XXH3-64 of the sums of a run's blocks, little-endian.
fn run_sum(blocks: &[u64]) -> u64 {
    let bytes: Vec<u8> = blocks.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    XxHash3_64::oneshot(&bytes)
}

/// Whether the data that a group sums up is on the device of its region. What can be read must be
/// durable already ([`Region::flush`]). Fails where the device cannot be asked.
pub(super) async fn is_there<E: Env, R: Region>(
    env: &E,
    region: &R,
    group: &RecoveredGroup,
    work: &mut Buf,
) -> io::Result<bool> {
    for record in &group.records {
        let Record::Sum(sum) = record else { continue };
        let Some(device) = region.whole().filter(|device| sum.end() <= device.len()) else {
            return Ok(false);
        };
        let (block, sector) = (u64::from(sum.block), u64::from(device.sector()));
        let whole = block.is_multiple_of(sector) && sum.offset.is_multiple_of(sector);
        if !whole || sum.block as usize > work.len() {
            return Ok(false);
        }
        let mut sums = Vec::with_capacity(sum.count.into());
        for number in 0..u64::from(sum.count) {
            let at = sum.offset + number * block;
            if !is_readable(env, &device, at, work, 0..sum.block as usize).await? {
                return Ok(mutated(Mutant::SumIgnored));
            }
            sums.push(block_sum(&work.as_slice()[..sum.block as usize]));
        }
        if run_sum(&sums) != sum.sum && !mutated(Mutant::SumIgnored) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 512;

    fn bytes(of: u8, blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK).map(|i| of ^ (i / BLOCK) as u8).collect()
    }

    fn note(sums: &mut Sums, offset: u64, bytes: &[u8], most: usize) {
        let of: Vec<u64> = block_sums(bytes, BLOCK).collect();
        sums.note(offset, &of, BLOCK, most);
    }

    /// Goal: a run is summed up block by block, as it was written last, whatever pieces it came in;
    /// a block that is not known makes it unknown.
    #[test]
    fn what_was_written_last_counts() {
        let sum_of = |writes: &[(u64, Vec<u8>)], offset, count| {
            let mut sums = Sums::default();
            writes.iter().for_each(|(at, bytes)| note(&mut sums, *at, bytes, 8));
            sums.of(offset, count, BLOCK as u32).map(|sum| sum.sum)
        };
        let whole = sum_of(&[(4096, bytes(1, 3))], 4096, 3);
        assert!(whole.is_some());
        let pieces = [
            (4096 + 1024, bytes(1, 3)[1024..].to_vec()),
            (4096, bytes(9, 1)),
            (4096, bytes(1, 3)[..1024].to_vec()),
        ];
        assert_eq!(sum_of(&pieces, 4096, 3), whole);
        assert_ne!(sum_of(&[(4096, bytes(2, 3))], 4096, 3), whole);
        assert_eq!(sum_of(&[(4096, bytes(1, 3))], 4096, 4), None);
        assert_eq!(sum_of(&[(4096, bytes(1, 3))], 3584, 3), None);
    }

    /// Goal: more blocks than may be known are none, and stay so; the same ones again are no more.
    #[test]
    fn many_blocks_are_given_up() {
        let mut sums = Sums::default();
        note(&mut sums, 0, &bytes(1, 4), 4);
        note(&mut sums, 0, &bytes(2, 4), 4);
        assert!(sums.of(0, 4, BLOCK as u32).is_some());
        note(&mut sums, 1 << 20, &bytes(3, 1), 4);
        note(&mut sums, 0, &bytes(1, 1), 4);
        assert_eq!(sums.of(0, 1, BLOCK as u32), None);
        let mut none = Sums::default();
        note(&mut none, 0, &bytes(1, 1), 0);
        assert_eq!(none.of(0, 1, BLOCK as u32), None);
    }
}
