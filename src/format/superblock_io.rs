//! Reading and writing the two superblocks of a device.
//!
//! # Contracts
//!
//! - **Ordering**: [`write`] makes everything durable that was written before it, then the second
//!   copy, then the first: at any crash at least one copy is whole, and the first copy exists only
//!   when all that it speaks of does.
//! - **Trust**: what [`read`] returns was checked, against the device too.

use std::io;

use super::layout::second_superblock;
use super::superblock::{
    Copy, Defect, LEN, Superblock, SuperblockError, Warning, check_device, choose,
};
use crate::env::{Disk, Durability};
use crate::uring::buffers::BufferPool;

/// Reads the superblock of a device: the better of its two copies.
pub async fn read<D: Disk>(
    disk: &D,
    buffers: &BufferPool,
) -> Result<(Superblock, Option<Warning>), SuperblockError> {
    let first = read_copy(disk, buffers, 0).await;
    // The size at format says where the second copy is; without it, the size now is a good guess.
    let size = first.as_ref().map_or(disk.len(), |first| first.layout.size);
    let second = read_copy(disk, buffers, second_superblock(size)).await;
    if let Ok(first) = &first {
        check_device(first, disk.len(), disk.sector())?;
    }
    let (superblock, warning) = choose(first, second)?;
    check_device(&superblock, disk.len(), disk.sector())?;
    Ok((superblock, warning))
}

/// As [`read`]; a copy that is older or damaged is then written again. Which copy counts must not
/// change any more once it was acted upon, and the next change must not hit the only good one.
pub async fn recover<D: Disk>(
    disk: &D,
    buffers: &BufferPool,
) -> Result<(Superblock, Option<Warning>), SuperblockError> {
    let (superblock, warning) = read(disk, buffers).await?;
    let copy = match warning {
        // Another version of this program may know what to do with it.
        Some(Warning::Damaged { defect: Defect::Version(_), .. }) | None => None,
        Some(Warning::Stale(copy) | Warning::Damaged { copy, .. }) => Some(copy),
    };
    if let Some(copy) = copy {
        let mended = write_copies(disk, buffers, &superblock, &[copy]).await;
        mended.map_err(|error| SuperblockError::NotMended { copy, kind: error.kind() })?;
    }
    Ok((superblock, warning))
}

/// Writes both copies, durably, after everything written before.
pub async fn write<D: Disk>(
    disk: &D,
    buffers: &BufferPool,
    superblock: &Superblock,
) -> io::Result<()> {
    write_copies(disk, buffers, superblock, &[Copy::Second, Copy::First]).await
}

async fn write_copies<D: Disk>(
    disk: &D,
    buffers: &BufferPool,
    superblock: &Superblock,
    copies: &[Copy],
) -> io::Result<()> {
    let bytes = superblock.encode();
    for &copy in copies {
        disk.flush().await?;
        let mut buffer = buffers.acquire(LEN).await;
        buffer.as_mut_slice().copy_from_slice(&bytes);
        let offset = superblock.layout.superblocks()[copy as usize];
        disk.write(offset, buffer.view_all(), Durability::Durable).await?;
    }
    disk.flush().await
}

async fn read_copy<D: Disk>(
    disk: &D,
    buffers: &BufferPool,
    offset: u64,
) -> Result<Superblock, Defect> {
    if offset.checked_add(LEN as u64).is_none_or(|end| end > disk.len()) {
        return Err(Defect::Unreadable);
    }
    let mut buffer = buffers.acquire(LEN).await;
    disk.read(offset, buffer.view_all()).await.map_err(|_| Defect::Unreadable)?;
    Superblock::parse(buffer.as_slice())
}

#[cfg(test)]
mod tests {
    use super::super::ids::{PoolId, UnitId};
    use super::super::layout::{DeviceFacts, Geometry, plan};
    use super::super::superblock::{FlagsPlace, PoolDevice};
    use super::*;
    use crate::env::fake::{FakeDisk, block_on, buffers};

    fn superblock(size: u64) -> Superblock {
        let layout = plan(Geometry::DEFAULT, &[DeviceFacts { size, sector: 512 }]).unwrap()[0];
        Superblock {
            revision: 1,
            pool: PoolId([7; 16]),
            device_index: 0,
            unit: UnitId(1),
            geometry: Geometry::DEFAULT,
            sector: 512,
            flags: FlagsPlace::Device,
            created_s: 0,
            layout,
            journal_reserve: 5,
            devices: vec![PoolDevice { id: [1; 16], extents: layout.extents.count }],
        }
    }

    /// Goal: everything before is durable before the second copy is, and that before the first.
    #[test]
    fn the_first_copy_is_written_last() {
        let size = 64 << 20;
        let disk = FakeDisk::new(size, true);
        block_on(write(&disk, &buffers(), &superblock(size))).unwrap();
        let second = format!("durable write {}+4096", size - 4096);
        assert_eq!(disk.log(), ["flush", &second, "flush", "durable write 0+4096", "flush"]);
    }

    /// Goal: a write that fails ends it; the first copy is not written after a failed second.
    #[test]
    fn a_failure_leaves_the_first_copy_alone() {
        let disk = FakeDisk::new(64 << 20, true);
        disk.fail_next("broken");
        block_on(write(&disk, &buffers(), &superblock(64 << 20))).unwrap_err();
        assert_eq!(disk.log().len(), 1);
    }
}
