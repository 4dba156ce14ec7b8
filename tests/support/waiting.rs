//! A scenario of requests that wait for others: a test, and what finds a mutant.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use flipside::env::Env;
use flipside::env::sim::{Limit, SimEnv};
use flipside::format::layout::Geometry;
use flipside::sim::engine::{Running as _, Volume as _, Zeroing};
use flipside::sim::flipside::{Flipside, Serving};
use flipside::unit::Config;
use futures_util::future::join4;

use crate::simulated::{formatted, started};

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 5_000_000 };
const BLOCK: u64 = 512;
const EXTENT: u64 = 32 * BLOCK;
/// Extents that the volume has, each with a block that is committed.
const EXTENTS: u64 = 12;
/// Meetings that are tried.
const SEEDS: u64 = 20;
/// The block that is committed.
const COMMITTED: u64 = 20;

/// Goal: a request that waits for a block, and then for extents with zeros that nothing needs any
/// more, keeps nobody waiting for ever who came later for one of those. (Found by the simulator,
/// seed 700001509: "the work hangs".)
pub fn who_waits_behind_fewer_blocks_is_woken() {
    // How long devices take decides whether something else happens to wake who waits.
    (1..=SEEDS).for_each(meet);
}

fn meet(seed: u64) {
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
    let config = Config { commit_interval: None, ..Config::default() };
    let engine = Flipside::plain(geometry, 40, 6, EXTENTS * EXTENT, config).with_grant(Some(4));
    let mut machine = formatted(&engine, seed, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let work = without_extents(env.clone(), serving);
    env.run(LIMIT, work).expect("nobody waits for ever");
}

async fn without_extents(env: SimEnv, serving: Serving) {
    let [volume] = serving.volumes().try_into().ok().expect("one volume");
    let block = |extent, block| {
        volume.write(extent * EXTENT + block * BLOCK, vec![1; BLOCK as usize], false)
    };
    for extent in 0..EXTENTS {
        block(extent, COMMITTED).await.unwrap();
    }
    volume.flush().await.unwrap();
    while !serving.is_quiet() {
        env.sleep(Duration::from_millis(10)).await;
    }
    // All extents in hand are taken, one of them by the second pair, and no more can be had.
    env.cut_network(true);
    for extent in (1..).take_while(|_| serving.unit().gauges().grant.extents_left > 0) {
        block(extent, COMMITTED).await.unwrap();
    }
    // From the middle of the committed block to that of one that is being written: in between
    // nothing was ever written, and an extent is needed for the first one.
    let zeros = |how| {
        let (start, len) = (COMMITTED * BLOCK + BLOCK / 2, EXTENT - COMMITTED * BLOCK);
        volume.zero(start, len, how, false)
    };
    let waiting = || serving.unit().gauges().waiting;
    let behind = join4(block(1, 0), zeros(Zeroing::Hole), block(0, COMMITTED + 1), async {
        assert_eq!((waiting().blocks, waiting().extents), (2, 0), "both wait for blocks");
        env.sleep(Duration::from_secs(1)).await;
        assert_eq!((waiting().blocks, waiting().extents), (1, 1), "one waits for extents");
        env.cut_network(false);
    });
    let (written, zeroed, later, ()) = behind.await;
    assert_eq!((written, zeroed, later), (Ok(()), Ok(()), Ok(())));
    let read = volume.read((COMMITTED + 1) * BLOCK, BLOCK as usize).await;
    assert_eq!(read, Ok(vec![1; BLOCK as usize]), "what came later is what is there");
}
