//! Reads into memory of others, on simulated machines.

use std::time::Duration;

use crate::env::Env as _;
use crate::env::sim::{Faults, Limit, Machine, SimEnv};
use crate::format::layout::Geometry;
use crate::sim::engine::Engine as _;
use crate::sim::flipside::Flipside;
use crate::unit::{Config, Volume};

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 5_000_000 };
const BLOCK: usize = 512;
const EXTENT: u64 = 32 * BLOCK as u64;
/// The longest write that the journal keeps.
const KEPT: u64 = 4 << 10;

/// What a straight read finds, where it reads.
fn straight(env: &SimEnv, volume: &Volume<SimEnv>, at: u64, len: usize) -> Option<Vec<u8>> {
    let (volume, buffers) = (volume.clone(), env.buffers().clone());
    let read = async move {
        let mut buf = buffers.acquire(len).await;
        buf.as_mut_slice().fill(0xEE);
        let read = volume.read_straight(at, len as u64, &mut buf).await.expect("no disk fails");
        let untouched = buf.as_slice().iter().all(|&byte| byte == 0xEE);
        assert!(read || untouched, "what is not read is not touched");
        read.then(|| buf.as_slice().to_vec())
    };
    env.run(LIMIT, read).expect("a read ends")
}

fn write(env: &SimEnv, volume: &Volume<SimEnv>, at: u64, data: Vec<u8>) {
    let (volume, buffers) = (volume.clone(), env.buffers().clone());
    let write = async move {
        let room = volume.buffer_for(at, data.len() as u64);
        let mut buf = buffers.acquire(room.total).await;
        buf.as_mut_slice()[room.place].copy_from_slice(&data);
        volume.write(at, data.len() as u64, buf, false).await
    };
    env.run(LIMIT, write).expect("a write ends").expect("it is written");
}

/// Goal: what the devices alone hold is read straight, committed or not, over extents and sides of
/// pairs; nothing is where a part is a hole, lies in the journal, or is no whole block.
#[test]
fn only_what_the_devices_hold_is_read_straight() {
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
    let tell_interval = Duration::from_millis(20);
    let config = Config { commit_interval: None, tell_interval, ..Config::default() };
    let plain = Flipside::plain(geometry, 24, 4, 8 * EXTENT, config).with_region(4 << 20);
    let engine = plain.with_nvrams(&[0], Some(0)).with_payload(KEPT);
    let mut machine = Machine::new(1, &engine.shape());
    let env = machine.boot(Faults::none());
    let made = engine.format(env.clone(), machine.storage());
    env.run(LIMIT, made).expect("formatting ends").expect("formatting succeeds");
    let opened = engine.open(env.clone(), machine.storage());
    let serving = env.run(LIMIT, opened).expect("recovery ends").expect("recovery succeeds");
    let volume = serving.unit().volumes().remove(0);
    let (extent, all) = (EXTENT as usize, 2 * EXTENT as usize);
    assert_eq!(straight(&env, &volume, 0, BLOCK), None, "a hole");
    write(&env, &volume, 0, vec![1; all]);
    assert_eq!(straight(&env, &volume, 0, all), Some(vec![1; all]), "not committed");
    let flushing = volume.clone();
    let flush = async move { flushing.flush().await };
    env.run(LIMIT, flush).expect("a flush ends").expect("it succeeds");
    assert_eq!(straight(&env, &volume, 0, all), Some(vec![1; all]), "committed");
    write(&env, &volume, 0, vec![2; extent]);
    let mixed = [vec![2; extent], vec![1; extent]].concat();
    assert_eq!(straight(&env, &volume, 0, all), Some(mixed), "on both sides");
    assert_eq!(straight(&env, &volume, 1, BLOCK), None, "no whole block");
    assert_eq!(straight(&env, &volume, 0, BLOCK - 1), None, "no whole block");
    assert_eq!(straight(&env, &volume, EXTENT, all), None, "a hole behind");
    write(&env, &volume, 3 * BLOCK as u64, vec![3; BLOCK]);
    assert_eq!(straight(&env, &volume, 0, all), None, "a block in the journal");
    let rest = vec![2; extent - 4 * BLOCK];
    let found = straight(&env, &volume, 4 * BLOCK as u64, rest.len());
    assert_eq!(found, Some(rest), "the blocks behind it");
    let trimming = volume.clone();
    let trim = async move { trimming.trim(5 * BLOCK as u64, BLOCK as u64, false).await };
    env.run(LIMIT, trim).expect("a trim ends").expect("it succeeds");
    assert_eq!(straight(&env, &volume, 4 * BLOCK as u64, 2 * BLOCK), None, "a trimmed block");
    assert_eq!(serving.unit().counters().reads.get(), 4, "what was not read is not counted");
}
