//! The metadata store is destroyed, and every volume is there with its data all the same.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use flipside::env::sim::rng::Rng;
use flipside::format::layout::Span;
use flipside::format::superblock::{LEN, Superblock};
use flipside::mds::volume_table::TABLE_LEN;
use support::programs::directory;
use support::target::{Service, Target, format};

const DEVICE: u64 = 64 << 20;
const BLOCK: usize = 4096;
const WRITTEN: u64 = 12 << 20;

/// Where the store lies on a device.
fn store_of(device: &File) -> Span {
    let mut bytes = [0; LEN];
    device.read_exact_at(&mut bytes, 0).unwrap();
    Superblock::parse(&bytes).unwrap().layout.regions.unwrap().store
}

fn write_all(target: &Target, round: u8) {
    let mut client = target.connect("data");
    for at in (0..WRITTEN).step_by(1 << 20) {
        client.write(at + u64::from(round) * BLOCK as u64, &[round; BLOCK]).unwrap();
    }
    client.flush().unwrap();
}

fn check_all(target: &Target, rounds: u8) {
    let mut client = target.connect("data");
    for at in (0..WRITTEN).step_by(1 << 20) {
        for round in 1..=rounds {
            let found = client.read(at + u64::from(round) * BLOCK as u64, BLOCK as u32).unwrap();
            assert_eq!(found, [round; BLOCK], "round {round} at {at}");
        }
    }
}

/// What is done to the store's bytes.
fn destroy(file: &File, store: Span, round: u8) {
    let len = store.len - TABLE_LEN;
    let fill = |byte, from, len| {
        file.write_all_at(&vec![byte; len as usize], store.offset + from).unwrap();
    };
    match round {
        1 => fill(0, 0, len),
        2 => fill(0xFF, 0, len),
        3 => fill(0, 0, 8192),
        4 => fill(0xA5, 8192, 4096),
        _ => {
            let mut rng = Rng::new(u64::from(round));
            for _ in 0..2000 {
                let at = store.offset + rng.below(1 << 20);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ (1 << rng.below(8))], at).unwrap();
            }
        }
    }
}

/// Goal: with the store zeroed, overwritten, without its headers or full of flipped bits, after a
/// clean stop and after a kill, the pool is served with its volumes and all that was flushed, and
/// the damage is told in the log.
#[test]
fn a_destroyed_store_costs_nothing() {
    let directory = directory();
    let path = directory.path().join("device");
    File::create(&path).unwrap().set_len(DEVICE).unwrap();
    format(&path, &["--volume", "data=40M", "--volume", "other=3M"]);
    let service = Service::new(directory.path(), Path::new(&path));
    for round in 1..=8 {
        let target = service.serve();
        check_all(&target, round - 1);
        write_all(&target, round);
        if round % 2 == 0 {
            target.kill();
        } else {
            assert!(target.stop().success());
        }
        let file = File::options().read(true).write(true).open(&path).unwrap();
        destroy(&file, store_of(&file), round);
        drop(file);
        let target = service.serve();
        check_all(&target, round);
        let told = target.log().matches("the metadata store was damaged").count();
        assert_eq!(told, usize::from(round), "{}", target.log());
        assert_eq!(target.connect("other").read(0, 512).unwrap(), [0; 512]);
        assert!(target.stop().success());
    }
}
