//! Target and metadata server are killed at random moments under load, with a bad network between
//! them, and must come back at a commit point (as `tests/kill.rs`, whose rounds these are).
//!
//! `FLIPSIDE_ROUNDS` sets the number of rounds of each, `FLIPSIDE_SEED` the choices (not the
//! timing).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/network.rs"]
mod network;
mod support;

use std::thread;
use std::time::Duration;

use flipside::env::sim::rng::Rng;
use network::Network;
use support::device::Device;
use support::killing::{choose, judge, number, round, seed, serve};
use support::metadata_server::{ANY_PORT, Server};
use support::programs::{directory, say};
use support::target::{AT_THE_SERVER, IN_NVRAM, ON_THE_DEVICE, Place, Service, format_at};
use support::workload::Volume;

const VOLUME: u64 = 64 << 20;
/// Rounds where nothing else was said.
const ROUNDS: u64 = 4;

fn rounds(name: &str, place: Place) {
    let count = number("FLIPSIDE_ROUNDS").unwrap_or(ROUNDS);
    let seed = seed(name, count);
    let mut rng = Rng::new(seed);
    let directory = directory();
    let path = directory.path();
    let mut server = Server::start(path, &["--listen", ANY_PORT]);
    let network = Network::to(server.at, seed);
    let at = network.at.to_string();
    let device = Device::create(path, "device", VOLUME * 3 / 2);
    format_at(place, device.path(), &["--mds", &at, "--volume", &format!("vol0={VOLUME}")]);
    let volume = Volume::new(VOLUME);
    let mut service = Service::new(path, device.path());
    for number in 1..=count {
        service.arguments = choose(&mut rng);
        service.arguments.extend((place.serve)(path));
        service.arguments.extend(["--mds".to_owned(), at.clone()]);
        let target = serve(&service, &mut rng);
        judge(&volume, &target, &format!("before round {number} of {name}, seed {seed}"));
        let mut slot = Some(server);
        round(&volume, target, &mut rng, |rng| {
            if rng.below(4) > 0 {
                let away = Duration::from_millis(rng.below(200));
                let killed =
                    slot.take().map(|server| server.restart(path, &[], || thread::sleep(away)));
                slot = killed;
                thread::sleep(Duration::from_millis(rng.below(300)));
            }
        });
        server = slot.expect("it was started again");
    }
    let target = serve(&service, &mut rng);
    judge(&volume, &target, &format!("after the last round of {name}, seed {seed}"));
    assert!(target.stop().success());
    judge(&volume, &service.serve(), &format!("after an idle restart of {name}, seed {seed}"));
    let counters = &server.status(&[])["counters"];
    say(&format!("kill test, {name}: {:?}; the server: {counters}", volume.tally));
}

/// Goal: target and metadata server killed in turn, the network bad: the volume is a cut of what
/// was written (promises 1, 2, 3 and 5), with the flags on the device.
#[test]
fn killed_with_flags_on_the_device() {
    rounds("a server, flags on the device", ON_THE_DEVICE);
}

/// Goal: the same with the flags in NVRAM.
#[test]
fn killed_with_flags_in_nvram() {
    rounds("a server, flags in NVRAM", IN_NVRAM);
}

/// Goal: the same with the flags at the server.
#[test]
fn killed_with_flags_at_the_server() {
    rounds("a server, flags there", AT_THE_SERVER);
}
