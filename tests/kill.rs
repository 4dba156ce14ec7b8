//! The process is killed at random moments under load and must come back at a commit point.
//!
//! A kill cannot show whether flushes reach the medium in the right order, since the kernel keeps
//! what was written: the simulator shows that. This shows that nothing the real process holds in
//! memory is needed to recover, on real devices and sockets.
//!
//! `FLIPSIDE_ROUNDS` sets the number of rounds, `FLIPSIDE_SEED` the choices (not the timing).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;

use support::killing::{World, judge, number, seed};
use support::programs::say;
use support::target::{AT_THE_SERVER, IN_NVRAM, ON_THE_DEVICE, Place};

const VOLUME: u64 = 64 << 20;

fn half_of_all() -> u64 {
    number("FLIPSIDE_ROUNDS").unwrap_or(20).div_ceil(2)
}

fn rounds(name: &str, device_bytes: u64, count: u64, place: Place) {
    let seed = seed(name, count);
    let mut world = World::new(seed, VOLUME, device_bytes, place);
    for number in 1..=count {
        let target = world.serve(&["--cold"]);
        judge(&world.volume, &target, &format!("before round {number} of {name}, seed {seed}"));
        world.round(target);
    }
    let target = world.serve(&["--cold"]);
    judge(&world.volume, &target, &format!("after the last round of {name}, seed {seed}"));
    assert!(target.stop().success());
    let target = world.serve_again();
    judge(&world.volume, &target, &format!("after an idle restart of {name}, seed {seed}"));
    say(&format!("kill test, {name}: {:?}", world.volume.tally));
}

/// Goal: killed at any moment, the volume is a cut of what was written (promises 1, 2, 3 and 5),
/// where there is journal space for everything.
#[test]
fn killed_with_room() {
    rounds("with room", 4 * VOLUME, half_of_all(), ON_THE_DEVICE);
}

/// Goal: the same where journal space is short, so that areas are settled and epochs end early.
#[test]
fn killed_without_room() {
    rounds("without room", VOLUME * 3 / 2, half_of_all(), ON_THE_DEVICE);
}

/// Goal: the same with flags and journal in NVRAM that is written with direct I/O, from the
/// binding on, which may be cut short too.
#[test]
fn killed_with_nvram() {
    rounds("nvram", VOLUME * 3 / 2, half_of_all(), IN_NVRAM);
}

/// Goal: the same with memory that is trusted.
#[test]
fn killed_with_trusted_memory() {
    let serve = |directory: &Path| {
        let mut arguments = (IN_NVRAM.serve)(directory);
        arguments.push("--nvram-trust-memory".to_owned());
        arguments
    };
    rounds("trusted memory", VOLUME * 3 / 2, half_of_all(), Place { serve, ..IN_NVRAM });
}

/// Goal: the same with the flags at the metadata server, and nothing of them with the target.
#[test]
fn killed_with_flags_at_the_server() {
    rounds("mds", VOLUME * 3 / 2, half_of_all(), AT_THE_SERVER);
}
