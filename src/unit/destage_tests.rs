//! Data in the journal, on simulated machines.

use std::time::Duration;

use crate::env::sim::{Crash, Faults, Limit, Machine, SimEnv};
use crate::format::layout::Geometry;
use crate::journal::place::Place;
use crate::sim::engine::{Engine as _, Outcome, Running as _, Volume as _};
use crate::sim::flipside::{Flipside, Serving};
use crate::unit::Config;

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 5_000_000 };
const BLOCK: usize = 512;
const EXTENT: u64 = 32 * BLOCK as u64;
/// Bytes of a region with more journal than a test needs.
const ROOMY: u64 = 4 << 20;

fn plain(block: usize, extents: u32, size: u64, region: u64) -> Flipside {
    let geometry = Geometry::new(block as u32, 32 * block as u32).expect("sound sizes");
    let tell_interval = Duration::from_millis(20);
    let config = Config { commit_interval: None, tell_interval, ..Config::default() };
    let plain = Flipside::plain(geometry, extents, 4, size, config).with_region(region);
    plain.with_nvrams(&[0], Some(0)).with_payload(16 << 10)
}

fn formatted(engine: &Flipside) -> Machine {
    let mut machine = Machine::new(1, &engine.shape());
    let env = machine.boot(Faults::none());
    let made = engine.format(env.clone(), machine.storage());
    env.run(LIMIT, made).expect("formatting ends").expect("formatting succeeds");
    machine.halt(&env, Crash::Power);
    machine
}

fn started(machine: &mut Machine, engine: &Flipside) -> (SimEnv, Serving) {
    let env = machine.boot(Faults::none());
    let opened = engine.open(env.clone(), machine.storage());
    let serving = env.run(LIMIT, opened).expect("recovery ends").expect("recovery succeeds");
    (env, serving)
}

/// Writes and flushes.
fn write(serving: &Serving, volume: usize, at: u64, data: Vec<u8>) -> Outcome<()> {
    let volume = serving.volumes().remove(volume);
    let write = async move {
        volume.write(at, data, false).await?;
        volume.flush().await
    };
    serving.env().run(LIMIT, write).expect("a write ends")
}

fn read(serving: &Serving, volume: usize, at: u64, len: usize) -> Vec<u8> {
    let volume = serving.volumes().remove(volume);
    let read = async move { volume.read(at, len).await };
    serving.env().run(LIMIT, read).expect("a read ends").expect("it is read")
}

/// Destages what can be; how many groups are linked after that.
fn linked_after_destaging(serving: &Serving) -> usize {
    let unit = serving.unit().clone();
    let linked = async move {
        unit.0.destage_all().await;
        unit.0.checkpoint().await.expect("NVRAM that works");
        let Place::Local(journal) = &unit.0.journal else { unreachable!("the flags are here") };
        journal.linked()
    };
    serving.env().run(LIMIT, linked).expect("destaging ends")
}

/// Goal: a device that fails while the journal has data for it stops its own volume, whose data is
/// read all the same; its groups stay, and those of other devices go. At the next start, on a
/// device that works again, nothing is missing.
#[test]
fn a_failed_device_keeps_only_its_own_groups() {
    // Extents are taken in order: the first volume fills the first disk.
    let engine = plain(BLOCK, 24, 12 * EXTENT, ROOMY).on_two_disks().with_volume(6 * EXTENT);
    let mut machine = formatted(&engine);
    let (env, serving) = started(&mut machine, &engine);
    for extent in 0..12 {
        assert_eq!(write(&serving, 0, extent * EXTENT, vec![1; BLOCK]), Ok(()));
    }
    for extent in 0..3 {
        assert_eq!(write(&serving, 1, extent * EXTENT, vec![2; BLOCK]), Ok(()));
        let at = extent * EXTENT + BLOCK as u64;
        assert_eq!(write(&serving, 0, at, vec![3; BLOCK]), Ok(()));
    }
    serving.unit().0.device_failed(1, "the test has it fail");
    assert_eq!(linked_after_destaging(&serving), 3);
    assert!(write(&serving, 1, 0, vec![4; BLOCK]).is_err());
    assert_eq!(write(&serving, 0, 2 * BLOCK as u64, vec![5; BLOCK]), Ok(()));
    assert_eq!(linked_after_destaging(&serving), 3);
    assert_eq!(read(&serving, 1, 2 * EXTENT, BLOCK), [2; BLOCK]);
    drop(serving);
    machine.halt(&env, Crash::Power);
    let (_env, serving) = started(&mut machine, &engine);
    for _ in 0..2 {
        for extent in 0..3 {
            let expected = [vec![1; BLOCK], vec![3; BLOCK]].concat();
            assert_eq!(read(&serving, 0, extent * EXTENT, 2 * BLOCK), expected);
            assert_eq!(read(&serving, 1, extent * EXTENT, BLOCK), [2; BLOCK]);
        }
        // Once from the journal, and once from the devices.
        assert_eq!(linked_after_destaging(&serving), 0);
    }
}

/// Goal: of a block that is overwritten again and again one version goes to a device, and that is
/// the newest; nothing goes there before.
#[test]
fn superseded_data_never_reaches_a_device() {
    let engine = plain(BLOCK, 24, 6 * EXTENT, ROOMY);
    let mut machine = formatted(&engine);
    let (env, serving) = started(&mut machine, &engine);
    for round in 1..=20 {
        assert_eq!(write(&serving, 0, 0, vec![round; 2 * BLOCK]), Ok(()));
    }
    let counters = serving.unit().counters();
    assert_eq!((counters.device_bytes_data.get(), counters.device_bytes_destaged.get()), (0, 0));
    assert_eq!(linked_after_destaging(&serving), 0);
    assert_eq!(counters.device_bytes_destaged.get(), 2 * BLOCK as u64);
    drop(serving);
    machine.halt(&env, Crash::Power);
    let (_env, serving) = started(&mut machine, &engine);
    assert_eq!(read(&serving, 0, 0, 2 * BLOCK), [20; 2 * BLOCK]);
}

/// Goal: a block of several slots is kept in the journal, whole, whatever a client wrote: also what
/// begins as a part of a group does.
#[test]
fn large_blocks_take_several_slots() {
    const LARGE: usize = 16 << 10;
    let engine = plain(LARGE, 12, 4 * 32 * LARGE as u64, ROOMY);
    let mut machine = formatted(&engine);
    let (env, serving) = started(&mut machine, &engine);
    let block = |number: u8| {
        let slots = (0..4).map(|slot| [b"FGRP".to_vec(), vec![number + slot; 4092]].concat());
        slots.collect::<Vec<_>>().concat()
    };
    for number in 0..5 {
        assert_eq!(write(&serving, 0, u64::from(number) * LARGE as u64, block(number)), Ok(()));
    }
    assert_eq!(serving.unit().counters().device_bytes_data.get(), 0);
    drop(serving);
    machine.halt(&env, Crash::Power);
    let (_env, serving) = started(&mut machine, &engine);
    for _ in 0..2 {
        for number in 0..5 {
            assert!(read(&serving, 0, u64::from(number) * LARGE as u64, LARGE) == block(number));
        }
        assert_eq!(linked_after_destaging(&serving), 0);
    }
}

/// Goal: more data than the journal has room for goes to the devices, a good end of it at once:
/// nothing waits, and payload stays within its share.
#[test]
fn more_than_there_is_room_for() {
    let engine = plain(BLOCK, 60, 40 * EXTENT, 384 << 10);
    let mut machine = formatted(&engine);
    let (env, serving) = started(&mut machine, &engine);
    let (most, _) = serving.unit().0.journal.payload_room();
    let volume = serving.volumes().remove(0);
    let writes = async move {
        for number in 0..40 * 32_u64 {
            volume.write(number * BLOCK as u64, vec![number as u8; BLOCK], false).await?;
            if number % 100 == 99 {
                volume.flush().await?;
            }
        }
        volume.flush().await
    };
    assert_eq!(env.run(LIMIT, writes).expect("nothing waits for ever"), Ok(()));
    assert!(serving.unit().counters().device_bytes_data.get() > 0, "some went past the journal");
    assert!(most * BLOCK < 40 * EXTENT as usize);
    drop(serving);
    machine.halt(&env, Crash::Power);
    let (_env, serving) = started(&mut machine, &engine);
    for number in 0..40 * 32_u64 {
        assert_eq!(read(&serving, 0, number * BLOCK as u64, BLOCK), [number as u8; BLOCK]);
    }
}
