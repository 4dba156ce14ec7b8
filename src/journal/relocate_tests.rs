//! Every decision of a move: what is refused, what is overwritten all the same where that is asked
//! for. That a crash leaves either place whole is for `tests/flags_move.rs`.

use super::*;
use crate::env::sim::{DiskShape, Faults, Limit, Machine, Shape, SimDisk, SimEnv, SimNvram};
use crate::format::home::Line;
use crate::journal::Journal;
use crate::uring::buffers::ARENA_BLOCK;

const SIZE: u64 = 32 << 20;
const POOL: PoolId = PoolId([5; 16]);
const LIMIT: Limit = Limit { time_ns: 1 << 40, steps: 1_000_000 };

/// A pool of one device, whose flags are there, beside memory of nobody.
struct Pool {
    env: SimEnv,
    disk: SimDisk,
    superblock: Superblock,
    nvram: SimNvram,
}

fn superblock() -> Superblock {
    Superblock::of_one_device(POOL, SIZE)
}

fn with_pool<F: Future<Output = ()> + 'static>(work: impl FnOnce(Pool) -> F) {
    let superblock = superblock();
    let disks = vec![DiskShape { len: SIZE, sector: 512, volatile_cache: true }];
    let nvram = Some((nvram_len_min(&superblock), 512));
    let buffers_max = 4 * ARENA_BLOCK;
    let shape = Shape { disks, nvram, parts: Vec::new(), storage_max: 0, buffers_max };
    let env = Machine::new(1, &shape).boot(Faults::none());
    let (disk, nvram) = (env.disk(0), env.nvram().unwrap());
    let pool = Pool { env: env.clone(), disk, superblock, nvram };
    let prepared = pool.restore(0);
    env.run(LIMIT, prepared).unwrap();
    env.run(LIMIT, work(pool)).unwrap();
}

impl Pool {
    /// The region on the device, as it is for a unit that has had so many starts.
    fn restore(&self, starts: u32) -> impl Future<Output = ()> + 'static {
        let (env, disk, superblock) = (self.env.clone(), self.disk.clone(), superblock());
        async move {
            let unit = super::Unit { env: &env, disk: &disk, superblock: &superblock };
            let region = unit.on_device();
            wipe(&env, &region).await.unwrap();
            let lines = vec![Line::FREE; superblock.pool_extents() as usize];
            let unit = (superblock.unit, Incarnation(starts));
            Journal::restore(&region, POOL, unit, &lines, env.buffers()).await.unwrap();
        }
    }

    /// Moves between the device and the memory, or a part of it.
    async fn relocate(&mut self, wanted: Move<'_, SimNvram>) -> Result<Moved, String> {
        let disk = self.disk.clone();
        let mut pool = [PoolDisk { disk: &disk, superblock: &mut self.superblock }];
        relocate(&self.env, &mut pool, wanted).await.map_err(|error| error.to_string())
    }

    /// Moves into the memory.
    async fn enter(&mut self, force: bool) -> Result<Moved, String> {
        let nvram = self.nvram.clone();
        self.relocate(Move { from: None, to: Some(&nvram), force }).await
    }

    /// Moves back to the device.
    async fn leave(&mut self, force: bool) -> Result<Moved, String> {
        let nvram = self.nvram.clone();
        self.relocate(Move { from: Some(&nvram), to: None, force }).await
    }

    async fn identify(&self, pool: PoolId, len: u64) {
        let identity = NvramIdentity { pool, region: [7; 16], len };
        identity::write(&self.nvram, self.env.buffers(), &identity).await.unwrap();
    }
}

#[track_caller]
fn refused(result: Result<Moved, String>, words: &str) {
    let error = result.expect_err("it is refused");
    assert!(error.contains(words), "'{words}' is not in: {error}");
}

/// Goal: there and back, and what was made is not made again; a move away from where the flags
/// cannot be reached is refused, and says what it wants.
#[test]
fn the_source_must_be_there() {
    with_pool(|mut pool| async move {
        assert_eq!(pool.enter(false).await, Ok(Moved::Now));
        assert_eq!(pool.enter(false).await, Ok(Moved::Before));
        let none = Move { from: None, to: None, force: true };
        refused(pool.relocate(none).await, "name it with --nvram");
        assert_eq!(pool.leave(false).await, Ok(Moved::Now));
        assert_eq!(pool.leave(false).await, Ok(Moved::Before));
        pool.superblock.flags = FlagsPlace::Mds;
        refused(pool.enter(true).await, "at a metadata server");

        let len = superblock().layout.regions.unwrap().unit.len;
        pool.superblock.flags = FlagsPlace::Nvram { region: [7; 16], len };
        refused(pool.leave(true).await, "it is no NVRAM of a pool");
        pool.identify(POOL, len - 512).await;
        refused(pool.leave(true).await, "wants the NVRAM region");
        pool.identify(POOL, len).await;
        let short = pool.nvram.part(0, REGION_START + 512);
        let [away, into] = [(Some(&short), None), (None, Some(&short))];
        for (from, to) in [away, into] {
            let wanted = Move { from, to, force: true };
            refused(pool.relocate(wanted).await, "a part of it is missing");
        }
    });
}

/// Goal: a target that is too small is refused, whatever is asked for; one that is another pool's,
/// or of this pool and cannot be read, is overwritten only where that is asked for.
#[test]
fn the_target_must_be_free() {
    with_pool(|mut pool| async move {
        let len = pool.nvram.len() - REGION_START;
        let short = pool.nvram.part(0, pool.nvram.len() - 512);
        let wanted = Move { from: None, to: Some(&short), force: true };
        refused(pool.relocate(wanted).await, "and the pool needs");
        pool.identify(PoolId([6; 16]), len).await;
        refused(pool.enter(false).await, "the flags of pool");
        pool.identify(POOL, len + 512).await;
        refused(pool.enter(false).await, "a part of it is missing");
        pool.identify(POOL, len).await;
        refused(pool.enter(false).await, "that cannot be read");
        assert_eq!(pool.superblock, superblock(), "nothing was changed");
        assert_eq!(pool.enter(true).await, Ok(Moved::Now));
    });
}

/// Goal: superblocks from before a move do not lead to a place that was left, and do not have it
/// overwrite what is newer, in either direction, unless that is asked for; older leavings go.
#[test]
fn nothing_goes_backward() {
    with_pool(|mut pool| async move {
        pool.restore(3).await;
        assert_eq!(pool.enter(false).await, Ok(Moved::Now));
        // The superblock alone is from before.
        pool.superblock = superblock();
        refused(pool.enter(false).await, "the place that the superblocks name holds none");
        assert_eq!(pool.enter(true).await, Ok(Moved::Now));
        assert!(matches!(pool.superblock.flags, FlagsPlace::Nvram { .. }));
        // The device as a whole is.
        let moved = std::mem::replace(&mut pool.superblock, superblock());
        pool.restore(2).await;
        refused(pool.enter(false).await, "start 3, group 1) than");
        // An older region on the device is of no use, a newer one is not thrown away.
        pool.superblock = moved;
        assert_eq!(pool.enter(false).await, Ok(Moved::Completed));
        pool.restore(4).await;
        refused(pool.enter(false).await, "a newer state of the same pool (start 4");
        refused(pool.leave(false).await, "a newer state of the same pool (start 4");
        assert_eq!(pool.enter(true).await, Ok(Moved::Completed));
        assert_eq!(pool.leave(false).await, Ok(Moved::Now));
        // Another pool's memory is no place to go on in.
        pool.superblock = superblock();
        let env = pool.env.clone();
        let (disk, superblock) = (pool.disk.clone(), superblock());
        let unit = super::Unit { env: &env, disk: &disk, superblock: &superblock };
        wipe_header(&env, &unit.on_device()).await.unwrap();
        pool.identify(PoolId([6; 16]), 512).await;
        refused(pool.enter(true).await, "the flags of pool");
        identity::erase(&pool.nvram, env.buffers()).await.unwrap();
        refused(pool.enter(true).await, "never formatted");
    });
}
