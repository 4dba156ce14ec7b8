//! Target and metadata server are killed at random moments under load, with a bad network between
//! them, and must come back at a commit point (as `tests/kill.rs`, whose rounds these are).
//!
//! `FLIPSIDE_ROUNDS` sets the number of rounds of each, `FLIPSIDE_SEED` the choices (not the
//! timing).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "it is a program of its own, with its own tests")]
#[path = "../tools/lossy.rs"]
mod lossy;
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flipside::env::sim::rng::Rng;
use lossy::{Proxy, Weather};
use support::device::Device;
use support::killing::{choose, judge, number, round, seed, serve};
use support::metadata_server::{ANY_PORT, Server};
use support::programs::{directory, say};
use support::target::{AT_THE_SERVER, IN_NVRAM, ON_THE_DEVICE, Place, Service, format_at};
use support::workload::Volume;

const VOLUME: u64 = 64 << 20;
/// Rounds where nothing else was said.
const ROUNDS: u64 = 4;

/// A bad network, until it is dropped.
struct Network {
    at: SocketAddr,
    ended: Arc<AtomicBool>,
    passing: Option<JoinHandle<()>>,
}

impl Network {
    fn to(server: SocketAddr, seed: u64) -> Network {
        let delay = Duration::ZERO..=Duration::from_millis(2);
        let weather = Weather { loss: 0.01, repeat: 0.01, reorder: 0.01, delay };
        let mut proxy = Proxy::new(ANY_PORT, &server.to_string(), weather, seed).unwrap();
        let at = proxy.front.local_addr().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let passing = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                if !proxy.step().unwrap() {
                    thread::sleep(Duration::from_micros(100));
                }
            }
        });
        Network { at, ended, passing: Some(passing) }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let ended = self.passing.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

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
