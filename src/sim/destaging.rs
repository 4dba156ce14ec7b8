//! A few blocks that are written again and again while they are destaged, on slow disks.
//!
//! One client writes some of the blocks, so few that they go to the journal or so many that they go
//! to the disk, flushes now and then, and reads all of them; beside it everything is destaged all
//! the time. Then the power goes. What is checked: reads return what was written last, and after a
//! crash that or anything since the last flush.

use std::time::Duration;

use super::engine::{Engine as _, Running as _, Volume as _};
use super::flipside::{Flipside, Serving};
use crate::env::Env as _;
use crate::env::sim::{Crash, Faults, Limit, Machine, Rng};
use crate::format::layout::Geometry;
use crate::unit::Config;

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 10_000_000 };
const BLOCK: usize = 512;
const EXTENT: u32 = 16 << 10;
const BLOCKS: usize = 4;
/// Crashes of a run, and steps of the client before each.
const ROUNDS: u32 = 4;
const STEPS: u32 = 60;
/// The slowest operation of a disk, in nanoseconds: a commit in NVRAM takes far less.
const SLOWEST: u64 = 5_000_000;

/// The versions of a block: the last is what is read, and the first what is durable.
type Versions = Vec<u32>;

/// Runs one seed; returns how many bytes were destaged. The error is what was wrong.
pub fn run(seed: u64) -> Result<u64, String> {
    let mut rng = Rng::new(seed);
    let geometry = Geometry::new(BLOCK as u32, EXTENT).expect("sound sizes");
    let tell_interval = Duration::from_millis(1);
    let config = Config { commit_interval: None, tell_interval, ..Config::default() };
    let plain = Flipside::plain(geometry, 8, 4, EXTENT.into(), config).with_region(384 << 10);
    let engine = plain.with_nvrams(&[0], Some(0)).with_payload(BLOCK as u64);
    let mut machine = Machine::new(seed, &engine.shape());
    let env = machine.boot(Faults::none());
    ended(env.run(LIMIT, engine.format(env.clone(), machine.storage())))??;
    machine.halt(&env, Crash::Power);
    let mut model = vec![vec![0]; BLOCKS];
    let mut destaged = 0;
    for _ in 0..ROUNDS {
        let mut faults = Faults::none();
        faults.latency_ns = (1_000, SLOWEST);
        let env = machine.boot(faults);
        let serving = ended(env.run(LIMIT, engine.open(env.clone(), machine.storage())))??;
        let counters = serving.unit().counters();
        let (unit, handle) = (serving.unit().clone(), env.clone());
        env.spawn(async move {
            loop {
                unit.destage().await;
                handle.sleep(Duration::from_nanos(1 + handle.random() % SLOWEST)).await;
            }
        });
        model = ended(env.run(LIMIT, work(serving, model, rng.bits())))??;
        destaged += counters.device_bytes_destaged.get();
        machine.halt(&env, Crash::Power);
    }
    Ok(destaged)
}

fn ended<T>(run: Result<T, crate::env::sim::Stop>) -> Result<T, String> {
    run.map_err(|stop| format!("the run did not end: {stop:?}"))
}

fn contents(version: u32) -> Vec<u8> {
    version.to_le_bytes().repeat(BLOCK / 4)
}

async fn work(
    serving: Serving,
    mut model: Vec<Versions>,
    seed: u64,
) -> Result<Vec<Versions>, String> {
    let mut rng = Rng::new(seed);
    let [volume] = serving.volumes().try_into().map_err(|_| "one volume".to_owned())?;
    let said = |refusal| format!("refused: {refusal:?}");
    let mut newest = model.iter().flatten().copied().max().unwrap_or_default();
    for step in 0..STEPS {
        let read = volume.read(0, BLOCKS * BLOCK).await.map_err(said)?;
        for (number, (versions, bytes)) in model.iter_mut().zip(read.chunks(BLOCK)).enumerate() {
            // After a crash it may be any that no flush has left behind.
            let from = if step == 0 { 0 } else { versions.len() - 1 };
            let found = versions[from..].iter().rfind(|version| contents(**version) == bytes);
            let Some(&found) = found else {
                return Err(format!("block {number} is none of {:?}", &versions[from..]));
            };
            if step == 0 {
                *versions = vec![found];
            }
        }
        let count = rng.pick(&[1, 1, 1, 2, BLOCKS]);
        let first = rng.below((BLOCKS - count) as u64 + 1) as usize;
        newest += 1;
        let data = contents(newest).repeat(count);
        model[first..first + count].iter_mut().for_each(|versions| versions.push(newest));
        volume.write((first * BLOCK) as u64, data, false).await.map_err(said)?;
        if rng.chance(600_000) {
            volume.flush().await.map_err(said)?;
            model.iter_mut().for_each(|versions| drop(versions.drain(..versions.len() - 1)));
        }
    }
    Ok(model)
}
