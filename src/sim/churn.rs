//! Volumes that come and go beside those that the oracle checks: made, written, renamed, resized
//! and deleted, one at a time, for as long as the unit serves.
//!
//! They take extents and give them back, which others then get. What was written to one is
//! checked in its own life: it is there, and all else is zeros. After a crash one may be there or
//! not; the next life begins with its deletion.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::env::Env;
use crate::env::sim::SimEnv;
use crate::format::ids::VolumeId;
use crate::unit::{IoError, ManageError, Unit, Volume};

/// How their names begin.
const PREFIX: &str = "scratch";
/// The longest pause, in nanoseconds, as a power of two: well below the time for a shutdown.
const PAUSE_BITS: u32 = 33;
/// The largest of them, in extents.
pub const EXTENTS_MAX: u64 = 12;

/// Whether a volume of that name is one of these.
pub fn is_scratch(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Makes, changes and deletes volumes until that fails.
/// Meanwhile `busy` says whether anything is being done, and so memory held, or only waited.
pub async fn keep_changing(env: SimEnv, unit: Unit<SimEnv>, extent: u64, busy: Rc<Cell<bool>>) {
    // A failed device, or the end: others see what became of that.
    let _ = change(&env, &unit, extent, &busy).await;
    busy.set(false);
}

async fn change(
    env: &SimEnv,
    unit: &Unit<SimEnv>,
    extent: u64,
    busy: &Cell<bool>,
) -> Result<(), ManageError> {
    for life in 0_u64.. {
        pause(env, busy).await;
        for volume in unit.volumes().iter().filter(|volume| is_scratch(&volume.name())) {
            unit.delete_volume(volume.id()).await?;
        }
        let size = (env.random() % EXTENTS_MAX + 1) * extent;
        let volume = unit.create_volume(&format!("{PREFIX}{life}"), size).await?;
        live(env, unit, &volume, (size, extent), busy).await?;
    }
    Ok(())
}

/// One volume's life but for its end.
async fn live(
    env: &SimEnv,
    unit: &Unit<SimEnv>,
    volume: &Volume<SimEnv>,
    (mut size, extent): (u64, u64),
    busy: &Cell<bool>,
) -> Result<(), ManageError> {
    let id: VolumeId = volume.id();
    let block = u64::from(volume.block_size());
    // What each block was written with; zero where it was not.
    let mut written = vec![0_u8; (size / block) as usize];
    for _ in 0..env.random() % 12 {
        pause(env, busy).await;
        match env.random() % 8 {
            0 => unit.rename_volume(id, &format!("{PREFIX}-{}", env.random())).await?,
            1 => {
                size = (env.random() % (EXTENTS_MAX * extent / block) + 1) * block;
                unit.resize_volume(id, size, true).await?;
                written.resize((size / block) as usize, 0);
            }
            2 => volume.flush().await?,
            _ => {
                let at = env.random() % written.len() as u64;
                let byte = env.random() as u8 | 1;
                match write(env, volume, at, byte).await {
                    Ok(()) => written[at as usize] = byte,
                    Err(IoError::NoSpace) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let at = env.random() % written.len() as u64;
        let found = read(env, volume, at).await?;
        let wanted = written[at as usize];
        assert!(
            found.iter().all(|byte| *byte == wanted),
            "block {at} of {} has {found:?}, not {wanted}",
            volume.name()
        );
    }
    Ok(())
}

async fn write(env: &SimEnv, volume: &Volume<SimEnv>, block: u64, byte: u8) -> Result<(), IoError> {
    let (offset, len) = place(volume, block);
    let mut buf = env.buffers().acquire(len as usize).await;
    buf.as_mut_slice().fill(byte);
    volume.write(offset, len, buf, false).await
}

async fn read(env: &SimEnv, volume: &Volume<SimEnv>, block: u64) -> Result<Vec<u8>, IoError> {
    let (offset, len) = place(volume, block);
    let buf = env.buffers().acquire(len as usize).await;
    Ok(volume.read(offset, len, buf).await?.as_slice()[..len as usize].to_vec())
}

fn place(volume: &Volume<SimEnv>, block: u64) -> (u64, u64) {
    let len = u64::from(volume.block_size());
    (block * len, len)
}

/// A pause of any order of magnitude.
async fn pause(env: &SimEnv, busy: &Cell<bool>) {
    let bits = env.random() % u64::from(PAUSE_BITS);
    busy.set(false);
    env.sleep(Duration::from_nanos(env.random() % (1 << bits) + 1)).await;
    busy.set(true);
}
