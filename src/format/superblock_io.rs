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
use super::superblock::{Defect, LEN, Superblock, SuperblockError, Warning, check_device, choose};
use crate::env::{Disk, Durability};
use crate::uring::buffers::BufferPool;

/// Reads the superblock of a device: the better of its two copies.
pub async fn read<D: Disk>(
    disk: &D,
    buffers: &BufferPool,
) -> Result<(Superblock, Option<Warning>), SuperblockError> {
    let [first, second] = read_copies(disk, buffers).await;
    if let Ok(first) = &first {
        check_device(first, disk.len(), disk.sector())?;
    }
    let (superblock, warning) = choose(first, second)?;
    check_device(&superblock, disk.len(), disk.sector())?;
    Ok((superblock, warning))
}

/// Reads both copies.
pub async fn read_copies<D: Disk>(
    disk: &D,
    buffers: &BufferPool,
) -> [Result<Superblock, Defect>; 2] {
    let first = read_copy(disk, buffers, 0).await;
    // The size at format says where the second copy is; without it, the size now is a good guess.
    let size = first.as_ref().map_or(disk.len(), |first| first.layout.size);
    let second = read_copy(disk, buffers, second_superblock(size)).await;
    [first, second]
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
        let offset = superblock.layout.superblocks()[copy as usize];
        let mended = async {
            disk.flush().await?;
            write_copy(disk, buffers, &superblock, offset).await?;
            disk.flush().await
        };
        mended.await.map_err(|error| SuperblockError::NotMended { copy, kind: error.kind() })?;
    }
    Ok((superblock, warning))
}

/// Writes both copies, durably, after everything written before.
pub async fn write<D: Disk>(
    disk: &D,
    buffers: &BufferPool,
    superblock: &Superblock,
) -> io::Result<()> {
    let [first, second] = superblock.layout.superblocks();
    for offset in [second, first] {
        disk.flush().await?;
        write_copy(disk, buffers, superblock, offset).await?;
    }
    disk.flush().await
}

/// Writes one copy, durably, at its place.
pub async fn write_copy<D: Disk>(
    disk: &D,
    buffers: &BufferPool,
    superblock: &Superblock,
    offset: u64,
) -> io::Result<()> {
    let mut buffer = buffers.acquire(LEN).await;
    buffer.as_mut_slice().copy_from_slice(&superblock.encode());
    disk.write(offset, buffer.view_all(), Durability::Durable).await
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
    use super::super::ids::PoolId;
    use super::*;
    use crate::env::fake::{FakeDisk, block_on, buffers};
    use crate::uring::buffers::ARENA_BLOCK;

    fn superblock(size: u64) -> Superblock {
        Superblock::of_one_device(PoolId([7; 16]), size)
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

    /// Goal: whatever rots in one copy, and at whatever call the power is lost while a new one is
    /// written, a superblock is read, the old or the new one; with both copies rotten, none is.
    #[test]
    fn one_copy_suffices() {
        use crate::env::Env;
        use crate::env::sim::{Crash, DiskShape, Fault, Faults, Limit, Machine, Rng, Shape};

        const SIZE: u64 = 64 << 20;
        const LIMIT: Limit = Limit { time_ns: 1 << 40, steps: 10_000 };
        let disk = DiskShape { len: SIZE, sector: 512, volatile_cache: true };
        let shape = Shape {
            disks: vec![disk],
            nvram: None,
            parts: Vec::new(),
            storage_max: 0,
            buffers_max: ARENA_BLOCK,
        };
        let faults = Faults::none().with(Fault::TornSector, 200_000);
        let revision = |machine: &mut Machine| {
            let env = machine.boot(Faults::none());
            let handle = env.clone();
            let read = async move { read(&handle.disk(0), handle.buffers()).await };
            let read = env.run(LIMIT, read).unwrap();
            // Whatever cannot be read stays so.
            machine.halt(&env, Crash::Process);
            read.map(|(superblock, _)| superblock.revision)
        };
        for seed in 0..400 {
            let mut rng = Rng::new(seed);
            let mut machine = Machine::new(seed, &shape);
            for (new, crash_in) in [(1, None), (2, Some(rng.below(6)))] {
                let env = machine.boot(faults.clone());
                env.crash_in(crash_in);
                let (handle, block) =
                    (env.clone(), Superblock { revision: new, ..superblock(SIZE) });
                let written = env.run(LIMIT, async move {
                    write(&handle.disk(0), handle.buffers(), &block).await
                });
                assert!(new == 2 || written.is_ok_and(|written| written.is_ok()));
                machine.halt(&env, Crash::Power);
            }
            let found = revision(&mut machine).unwrap();
            assert!((1..=2).contains(&found), "seed {seed}: revision {found}");
            let copies = superblock(SIZE).layout.superblocks();
            let whole = {
                let mut bytes = [vec![0; LEN], vec![0; LEN]];
                let read = |(at, out): (&u64, &mut Vec<u8>)| machine.read_region(*at, out);
                copies.iter().zip(&mut bytes).all(read) && bytes[0] == bytes[1]
            };
            let used = superblock(SIZE).encode().len() as u64;
            let first = usize::from(rng.chance(500_000));
            if whole {
                machine.rot(copies[first], used, Fault::RottenCopy, &mut rng);
                assert_eq!(revision(&mut machine).unwrap(), found, "seed {seed}");
                machine.rot(copies[1 - first], used, Fault::RottenPage, &mut rng);
                assert!(revision(&mut machine).is_err(), "seed {seed}");
            }
        }
    }
}
