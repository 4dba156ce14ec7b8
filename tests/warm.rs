//! The process is killed at random moments under load, and the next one goes on where it was:
//! everything that was acknowledged is there, flushed or not (design section 4, two kinds of
//! crash).
//!
//! `FLIPSIDE_ROUNDS` sets the number of rounds, `FLIPSIDE_SEED` the choices (not the timing).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use flipside::format::warm::FLUSHING_AT;
use support::killing::{World, judge, number, seed};
use support::programs::say;
use support::target::{AT_THE_SERVER, IN_NVRAM, ON_THE_DEVICE, Place};

const VOLUME: u64 = 64 << 20;

fn all_rounds() -> u64 {
    number("FLIPSIDE_ROUNDS").unwrap_or(10)
}

/// Says in what a target has left that a flush was under way: the next start reads all of it.
fn say_flushing(left: &Path) {
    let file = File::options().write(true).open(left).unwrap();
    if file.metadata().unwrap().len() > FLUSHING_AT {
        file.write_all_at(&1_u64.to_le_bytes(), FLUSHING_AT).unwrap();
    }
}

/// Rounds that each end with a kill, or seldom with a stop; some starts are killed, too.
fn rounds(name: &str, device_bytes: u64, place: Place) {
    let count = all_rounds();
    let seed = seed(name, count);
    let mut world = World::new(seed, VOLUME, device_bytes, place);
    for number in 1..=count + 1 {
        if let Some(left) = world.left().filter(|_| world.rng.below(2) == 0) {
            say_flushing(&left);
        }
        let target = world.serve(&[]);
        world.volume.settled();
        judge(&world.volume, &target, &format!("before round {number} of {name}, seed {seed}"));
        if number <= count {
            world.round(target);
        }
    }
    say(&format!("warm kill test, {name}: {:?}", world.volume.tally));
}

/// Goal: killed at any moment, the target comes back with everything that was acknowledged, where
/// there is journal space for everything.
#[test]
fn warm_with_room() {
    rounds("warm, with room", 4 * VOLUME, ON_THE_DEVICE);
}

/// Goal: the same where journal space is short, so that areas are settled and epochs end early.
#[test]
fn warm_without_room() {
    rounds("warm, without room", VOLUME * 3 / 2, ON_THE_DEVICE);
}

/// Goal: the same with flags and journal, and small writes, in NVRAM.
#[test]
fn warm_with_nvram() {
    rounds("warm, nvram", VOLUME * 3 / 2, IN_NVRAM);
}

/// Goal: the same with the flags at the metadata server.
#[test]
fn warm_with_flags_at_the_server() {
    rounds("warm, mds", VOLUME * 3 / 2, AT_THE_SERVER);
}
