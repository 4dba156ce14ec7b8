//! Volumes that commit together: consistency groups on one unit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/simulated.rs"]
mod simulated;

use std::time::Duration;

use flipside::env::Env;
use flipside::env::sim::{Crash, Limit, SimEnv};
use flipside::format::ids::VolumeId;
use flipside::format::layout::Geometry;
use flipside::sim::engine::{Running as _, Volume as _};
use flipside::sim::flipside::{Flipside, Served, Serving};
use flipside::txn::GroupId;
use flipside::unit::{Config, Grouping};
use futures_util::future::join;
use simulated::{formatted, started};

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 5_000_000 };
const BLOCK: u64 = 512;
const EXTENT: u64 = 32 * BLOCK;

fn engine() -> Flipside {
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
    let config = Config { commit_interval: None, ..Config::default() };
    Flipside::plain(geometry, 32, 8, 4 * EXTENT, config)
}

/// The first and the second volume, in one group or in none.
fn grouping(version: u32, volumes: &[u32]) -> Grouping {
    let volumes = volumes.iter().copied().map(VolumeId).collect();
    let name = "pair".to_owned();
    Grouping { group: GroupId(7), name, version, volumes, shared: false, life: 1 }
}

async fn write(volume: &Served, block: u64, byte: u8) {
    volume.write(block * BLOCK, vec![byte; BLOCK as usize], false).await.unwrap();
}

async fn first_byte(volume: &Served, block: u64) -> u8 {
    volume.read(block * BLOCK, BLOCK as usize).await.unwrap()[0]
}

async fn two_volumes(serving: &Serving) -> [Served; 2] {
    if serving.volumes().len() == 1 {
        serving.unit().create_volume("second", 4 * EXTENT).await.unwrap();
    }
    serving.volumes().try_into().ok().expect("two volumes")
}

/// Does something with two volumes, loses the power, and says what the first block of each holds
/// after the next start.
fn after_power_loss<F: Future<Output = ()> + 'static>(
    seed: u64,
    work: impl FnOnce(SimEnv, Serving, [Served; 2]) -> F + 'static,
) -> [u8; 2] {
    let engine = engine();
    let mut machine = formatted(&engine, seed, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let of = env.clone();
    let worked = env.run(LIMIT, async move {
        let volumes = two_volumes(&serving).await;
        work(of, serving, volumes).await;
    });
    worked.unwrap();
    machine.halt(&env, Crash::Power);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let read = env.run(LIMIT, async move {
        serving.check().unwrap();
        let [first, second] = two_volumes(&serving).await;
        [first_byte(&first, 0).await, first_byte(&second, 0).await]
    });
    read.unwrap()
}

/// Goal: what one member of a group has when the other is flushed is committed with it, in one
/// group of the journal; without the group it is not.
#[test]
fn members_commit_together() {
    for (seed, grouped) in [(1, false), (2, true), (3, true)] {
        let found = after_power_loss(seed, move |_, serving, [first, second]| async move {
            if grouped {
                serving.unit().regroup(&grouping(1, &[0, 1])).await.unwrap();
            }
            write(&first, 0, 5).await;
            write(&second, 0, 6).await;
            let commits = serving.unit().counters().commits.get();
            first.flush().await.unwrap();
            assert_eq!(serving.unit().counters().commits.get() - commits, 1);
            serving.check().unwrap();
        });
        let second = found[1];
        assert_eq!(found[0], 5);
        // Without a commit nobody knows.
        assert!(!grouped || second == 6, "{found:?}");
    }
}

/// Goal: a volume goes into a group and out of it while both are written without a pause: nothing
/// that was acknowledged is missing, and what was flushed survives.
#[test]
fn volumes_move_while_they_are_written() {
    for seed in 0..8 {
        let found = after_power_loss(seed, |env, serving, [first, second]| async move {
            let write_on = |volume: Served| {
                let env = env.clone();
                async move {
                    for round in 0..200_u64 {
                        write(&volume, round % 40, round as u8).await;
                        assert_eq!(first_byte(&volume, round % 40).await, round as u8);
                        if round % 7 == 0 {
                            volume.flush().await.unwrap();
                        }
                        env.sleep(Duration::from_micros(30)).await;
                    }
                    write(&volume, 0, 250).await;
                    volume.flush().await.unwrap();
                }
            };
            let regroup = async {
                for version in 1..20 {
                    let members: &[u32] = if version % 2 == 1 { &[0, 1] } else { &[1] };
                    serving.unit().regroup(&grouping(version, members)).await.unwrap();
                    env.sleep(Duration::from_micros(300)).await;
                }
                serving.unit().regroup(&grouping(20, &[])).await.unwrap();
            };
            join(join(write_on(first), write_on(second)), regroup).await;
            serving.check().unwrap();
        });
        assert_eq!(found, [250, 250]);
    }
}
