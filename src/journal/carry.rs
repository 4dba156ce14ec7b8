//! Destaging where nobody serves: what data the journal alone has goes to its place on the devices,
//! before the journal is left behind.
//!
//! # Contracts
//!
//! - **Durability**: when [`carry`] returns, all of it is durable in its place. The journal has it
//!   still, so that to do it again after a crash is harmless.
//! - **Ownership**: devices and region are claimed, and nobody uses them meanwhile.

use super::open::Payloads;
use super::payload::runs;
use super::relocate::{PoolDisk, Problem, RelocateError, at};
use crate::env::{Disk, Durability};
use crate::format::blocks::Location;
use crate::format::home::Line;
use crate::uring::buffers::Buf;

/// Writes payload to its place, which the lines name, from a buffer that has room for a block.
pub async fn carry<D: Disk>(
    pool: &[PoolDisk<'_, D>],
    mut work: Buf,
    lines: &[Line],
    payload: Payloads,
) -> Result<(), RelocateError> {
    let [PoolDisk { superblock, disk }, ..] = pool else { unreachable!("a pool has a device") };
    let geometry = superblock.geometry;
    let block = geometry.block_size() as usize;
    let mut blocks = Vec::new();
    for ((pair, number), (held, bytes)) in payload {
        let line = &lines[pair.0 as usize];
        held.check((pair, number), line).map_err(Problem::Journal).map_err(at(disk.name()))?;
        let Location::At(slot) = held.location else { continue };
        let extent = line.binding.extent(slot).expect("a sound line");
        let on = |member: &PoolDisk<'_, D>| member.superblock.layout.extents;
        let device = pool.iter().position(|member| on(member).contains(extent));
        let device = device.expect("every extent of the pool is on one of its devices");
        let start = on(&pool[device]).offset_of(extent, geometry).expect("it is on the device");
        blocks.push(((device, start + u64::from(number) * block as u64), bytes));
    }
    blocks.sort_unstable_by_key(|(place, _)| *place);
    for blocks in blocks.chunks((work.len() / block).max(1)) {
        for ((_, bytes), out) in blocks.iter().zip(work.as_mut_slice().chunks_mut(block)) {
            out.copy_from_slice(&bytes[..block]);
        }
        let places: Vec<_> = blocks.iter().map(|(place, _)| *place).collect();
        for run in runs(&places, geometry.block_size()) {
            let (device, offset) = places[run.start];
            let disk = pool[device].disk;
            let bytes = work.view(run.start * block..run.end * block);
            let written = disk.write(offset, bytes, Durability::Volatile).await;
            written.map_err(at(disk.name()))?;
        }
    }
    if blocks.is_empty() {
        return Ok(());
    }
    for member in pool {
        member.disk.flush().await.map_err(at(member.disk.name()))?;
    }
    Ok(())
}
