//! Part of the pool in hand: full pools, surplus, and the metadata server away.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/waiting.rs"]
mod scenarios;
#[path = "support/simulated.rs"]
mod simulated;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use flipside::env::Env;
use flipside::env::sim::rng::Rng;
use flipside::env::sim::{Crash, Faults, Limit, SimEnv};
use flipside::format::layout::Geometry;
use flipside::observe::Gauges;
use flipside::sim::engine::{Engine as _, Refusal, Running as _, Volume as _, Zeroing};
use flipside::sim::flipside::{Flipside, Served, Serving};
use flipside::unit::Config;
use simulated::{formatted, started};

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 5_000_000 };
const BLOCK: u64 = 512;
const EXTENT: u64 = 32 * BLOCK;
const EXTENTS: u64 = 40;
const RESERVE: u64 = 6;
/// What thin volumes can have.
const ROOM: u64 = EXTENTS - RESERVE;

/// A volume of two extents more than there is room for.
fn engine() -> Flipside {
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
    let config = Config { commit_interval: None, settle_batch: 4, ..Config::default() };
    let size = (ROOM + 2) * EXTENT;
    Flipside::plain(geometry, EXTENTS as u32, RESERVE as u32, size, config)
}

async fn write(volume: &Served, extent: u64, blocks: u64, byte: u8) -> Result<(), Refusal> {
    volume.write(extent * EXTENT, vec![byte; (blocks * BLOCK) as usize], false).await
}

async fn quiet(env: &SimEnv, serving: &Serving) -> Gauges {
    serving.unit().commit(None).await.unwrap();
    // What the commit left empty is released, and what that left over given back.
    env.sleep(Duration::from_secs(1)).await;
    while !serving.is_quiet() {
        env.sleep(Duration::from_millis(10)).await;
    }
    serving.check().unwrap();
    serving.unit().gauges()
}

/// Fills the pool, overwrites it, finds it full, trims half of it and fills it again.
async fn fill_and_overwrite(env: &SimEnv, serving: &Serving, rng: &mut Rng) {
    let [volume] = serving.volumes().try_into().ok().expect("one volume");
    for extent in 0..ROOM {
        write(&volume, extent, 32, 1).await.unwrap();
    }
    for round in 0..3 {
        for _ in 0..2 * ROOM {
            write(&volume, rng.below(ROOM), rng.between(1, 32), round).await.unwrap();
        }
        assert_eq!(write(&volume, ROOM, 1, 1).await, Err(Refusal::NoSpace));
        let first = rng.below(ROOM / 2);
        let (offset, len) = (first * EXTENT, ROOM / 2 * EXTENT);
        volume.zero(offset, len, Zeroing::Trim, false).await.unwrap();
        if rng.chance(500_000) {
            quiet(env, serving).await;
        }
        for extent in first..first + ROOM / 2 {
            write(&volume, extent, 1, 2).await.unwrap();
        }
    }
}

/// Goal: however small the grant is, a pool can be filled to the last extent of its room, then
/// overwritten and trimmed, also after a crash; and beyond the room there is no space.
#[test]
fn a_full_pool_can_be_overwritten() {
    for (seed, grant) in (0..).zip([None, Some(1), Some(2), Some(5), Some(16), Some(1000)]) {
        let engine = engine().with_grant(grant);
        let mut machine = formatted(&engine, seed, LIMIT);
        for _ in 0..2 {
            let (env, serving) = started(&mut machine, &engine, LIMIT);
            let (handle, mut rng) = (env.clone(), Rng::new(seed));
            let work = async move { fill_and_overwrite(&handle, &serving, &mut rng).await };
            env.run(LIMIT, work).expect("it ends");
            machine.halt(&env, Crash::Power);
        }
    }
}

/// Goal: no more is taken than the grant says, and what is trimmed goes back to the server, also
/// what an earlier start had taken.
#[test]
fn surplus_goes_back() {
    let pool = engine();
    let mut machine = formatted(&pool, 1, LIMIT);
    for (grant, most) in [(None, EXTENTS), (Some(3), 6), (Some(1), 2)] {
        let engine = pool.clone().with_grant(grant);
        let (env, serving) = started(&mut machine, &engine, LIMIT);
        let handle = env.clone();
        let work = async move {
            let [volume] = serving.volumes().try_into().ok().expect("one volume");
            let all = EXTENTS - ROOM / 2;
            for round in 0..2 {
                for extent in 0..ROOM / 2 {
                    write(&volume, extent, 32, round).await.unwrap();
                }
                let left = quiet(&handle, &serving).await.grant.extents_left;
                assert!(left <= most && (grant.is_some() || left <= all), "{left} at {grant:?}");
                volume.zero(0, ROOM / 2 * EXTENT, Zeroing::Trim, false).await.unwrap();
                let gauges = quiet(&handle, &serving).await;
                assert_eq!(gauges.space.data_extents_used, 0);
                assert_eq!(gauges.space.data_extents, ROOM);
                assert!(gauges.grant.extents_left <= most && gauges.grant.data_left <= most);
                assert!(gauges.grant.extents_left >= most / 4);
            }
        };
        env.run(LIMIT, work).expect("it ends");
        machine.halt(&env, Crash::Power);
    }
}

/// Goal: a store that was made anew knows of no grant and no pair, and learns both from the device:
/// all data is there, every extent of it is granted, and what is too much goes back.
#[test]
fn a_store_that_was_made_anew_learns_what_is_granted() {
    for (seed, used) in (0..).zip([0, 1, ROOM / 2, ROOM]) {
        let engine = engine().with_grant(Some(3));
        let mut machine = formatted(&engine, seed, LIMIT);
        let (env, serving) = started(&mut machine, &engine, LIMIT);
        let work = async move {
            let [volume] = serving.volumes().try_into().ok().expect("one volume");
            for extent in 0..used {
                write(&volume, extent, 32, extent as u8 + 1).await.unwrap();
            }
            volume.flush().await.unwrap();
        };
        env.run(LIMIT, work).expect("it ends");
        machine.halt(&env, Crash::Power);

        let anew = self::engine().with_grant(Some(3));
        formatted(&anew, seed, LIMIT);
        let (env, serving) = started(&mut machine, &anew, LIMIT);
        let handle = env.clone();
        let work = async move {
            let gauges = quiet(&handle, &serving).await;
            assert_eq!(gauges.space.data_extents_used, used);
            assert!(gauges.grant.extents_left <= 6, "{:?}", gauges.grant);
            let [volume] = serving.volumes().try_into().ok().expect("one volume");
            for extent in 0..used {
                let bytes = volume.read(extent * EXTENT, EXTENT as usize).await.unwrap();
                assert!(bytes.iter().all(|byte| *byte == extent as u8 + 1), "extent {extent}");
            }
            for extent in used..ROOM {
                write(&volume, extent, 1, 1).await.unwrap();
            }
            assert_eq!(write(&volume, ROOM, 1, 1).await, Err(Refusal::NoSpace));
            quiet(&handle, &serving).await;
        };
        env.run(LIMIT, work).expect("it ends");
    }
}

/// Goal: a pool that keeps too few extents for the smallest request is not served, and the error
/// says how few; with one more it is.
#[test]
fn a_reserve_that_is_too_small_is_refused() {
    for (reserve, enough) in [(1, false), (2, true)] {
        let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
        let engine = Flipside::plain(geometry, 20, reserve, EXTENT, Config::default());
        let mut machine = formatted(&engine, 1, LIMIT);
        let env = machine.boot(Faults::none());
        let opened = engine.open(env.clone(), machine.storage());
        match env.run(LIMIT, opened).expect("it ends") {
            Ok(_) => assert!(enough),
            Err(why) => assert!(!enough && why.contains("too small") && why.contains("1 extents")),
        }
    }
}

/// Goal: while the server is silent what is in hand is used, requests that need no extents go on
/// when that is used up, those that need some wait and are seen to; when the server is back they
/// are carried out, and it is told all, once.
#[test]
fn the_server_is_away() {
    const GRANT: u32 = 4;
    let engine = engine().with_grant(Some(GRANT));
    let mut machine = formatted(&engine, 7, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let handle = env.clone();
    let work = async move {
        let [volume] = serving.volumes().try_into().ok().expect("one volume");
        for extent in 0..3 {
            write(&volume, extent, 8, 1).await.unwrap();
        }
        let before = quiet(&handle, &serving).await;
        let told = serving.unit().server_status().await.unwrap();
        handle.cut_network(true);
        let ended = Rc::new(RefCell::new(Vec::new()));
        for extent in 3..3 + u64::from(GRANT) * 3 {
            let (volume, ended) = (volume.clone(), Rc::clone(&ended));
            handle.spawn(async move {
                write(&volume, extent, 8, 2).await.unwrap();
                ended.borrow_mut().push(extent);
            });
        }
        handle.sleep(Duration::from_secs(100)).await;
        let gauges = serving.unit().gauges();
        let done = ended.borrow().len() as u64;
        assert_eq!((done, gauges.grant.extents_left), (before.grant.extents_left, 0));
        assert!(gauges.grant.more && gauges.waiting.extents_asked_for);
        assert_eq!(gauges.waiting.extents + done, u64::from(GRANT) * 3);
        assert!(gauges.waiting.metadata_server_silent_ms.unwrap() > 90_000);
        // Blocks that are pending are written in place, and others that are unused in their area.
        let bound = ended.borrow().clone();
        for extent in bound {
            write(&volume, extent, 16, 3).await.unwrap();
        }
        volume.flush().await.unwrap();
        volume.zero(0, EXTENT, Zeroing::Trim, true).await.unwrap();
        assert_eq!(ended.borrow().len() as u64, done);
        serving.check().unwrap();
        handle.cut_network(false);
        while ended.borrow().len() < GRANT as usize * 3 {
            handle.sleep(Duration::from_millis(10)).await;
        }
        let gauges = quiet(&handle, &serving).await;
        assert_eq!(gauges.waiting.metadata_server_silent_ms, None);
        let now = serving.unit().server_status().await.unwrap();
        let bound = u64::from(GRANT) * 3;
        assert_eq!(
            (now.binds - told.binds, now.releases - told.releases, now.stale),
            (bound, 1, 0)
        );
    };
    env.run(LIMIT, work).expect("it ends");
    machine.halt(&env, Crash::Power);
}

/// Goal: a target that is told to stop while the server is silent, and a settle waits for it, ends
/// with everything committed; the server is told at the next start.
#[test]
fn a_stop_does_not_wait_for_a_silent_server() {
    let engine = engine().with_grant(None);
    let mut machine = formatted(&engine, 9, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let handle = env.clone();
    let work = async move {
        let [volume] = serving.volumes().try_into().ok().expect("one volume");
        for stamp in 1..=2 {
            write(&volume, 0, 8, stamp).await.unwrap();
            volume.flush().await.unwrap();
        }
        quiet(&handle, &serving).await;
        handle.cut_network(true);
        let unit = serving.unit().clone();
        let settled = Rc::new(RefCell::new(false));
        let done = Rc::clone(&settled);
        handle.spawn(async move {
            // It may never end.
            let _ = unit.settle(None).await;
            *done.borrow_mut() = true;
        });
        handle.sleep(Duration::from_secs(1)).await;
        assert!(!*settled.borrow(), "the settle waits for the server");
        serving.unit().shut_down().await.expect("everything is committed");
    };
    env.run(LIMIT, work).expect("it ends");
    machine.halt(&env, Crash::Power);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let handle = env.clone();
    let told = env.run(LIMIT, async move { quiet(&handle, &serving).await });
    assert_eq!(told.expect("it ends").waiting.metadata_server_silent_ms, None);
}

/// Goal: who waits for a block that another gave up while it waited for extents gets it.
#[test]
fn who_waits_behind_fewer_blocks_is_woken() {
    scenarios::who_waits_behind_fewer_blocks_is_woken();
}
