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
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flipside::env::sim::rng::Rng;
use support::device::Device;
use support::nbd_client::Client;
use support::programs::{directory, say};
use support::target::{AT_THE_SERVER, IN_NVRAM, ON_THE_DEVICE, Place, Service, Target, format_at};
use support::workload::{Load, Volume};

const VOLUME: u64 = 64 << 20;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// How the target is run in one round.
fn choose(rng: &mut Rng) -> Vec<String> {
    let interval = rng.pick(&["20ms", "5s", "never"]);
    let settle = rng.pick(&["pressure", "idle", "always"]);
    ["--commit-interval", interval, "--settle", settle].map(String::from).to_vec()
}

/// Starts the target; now and then it is killed while it starts, so that recovery is cut short.
fn serve(service: &Service, rng: &mut Rng) -> Target {
    while rng.below(4) == 0 {
        let target = service.start();
        thread::sleep(Duration::from_micros(rng.below(40_000)));
        target.kill();
    }
    service.serve()
}

/// Loads the volume for a random time, then ends the target in the midst of it.
fn round(volume: &Volume, target: Target, rng: &mut Rng) {
    let load = Load {
        connections: rng.between(1, 4),
        depth: rng.between(1, 16) as usize,
        flushes_percent: rng.pick(&[1, 5, 20]),
        seed: rng.bits(),
    };
    let socket = target.socket().to_owned();
    let connect = || Client::unix(&socket, "vol0");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let loading = scope.spawn(|| volume.load(&connect, load, &stop));
        thread::sleep(Duration::from_millis(rng.between(5, 600)));
        if rng.below(5) == 0 {
            let status = target.stop();
            assert!(status.success(), "SIGTERM ends a target well: {status}");
            stop.store(true, Ordering::Relaxed);
            loading.join().expect("the workload found nothing wrong");
            volume.settled();
        } else {
            target.kill();
            loading.join().expect("the workload found nothing wrong");
        }
    });
}

fn half_of_all() -> u64 {
    number("FLIPSIDE_ROUNDS").unwrap_or(20).div_ceil(2)
}

fn rounds(name: &str, device_bytes: u64, count: u64, place: Place) {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970");
    let seed = number("FLIPSIDE_SEED").unwrap_or(u64::from(clock.subsec_nanos()));
    say(&format!("kill test, {name}: {count} rounds, FLIPSIDE_SEED={seed}"));
    let mut rng = Rng::new(seed);
    let directory = directory();
    let device = Device::create(directory.path(), "device", device_bytes);
    format_at(place, device.path(), &["--volume", &format!("vol0={VOLUME}")]);
    let volume = Volume::new(VOLUME);
    let mut service = Service::new(directory.path(), device.path());
    for number in 1..=count {
        service.arguments = choose(&mut rng);
        service.arguments.extend((place.serve)(directory.path()));
        let target = serve(&service, &mut rng);
        judge(&volume, &target, &format!("before round {number} of {name}, seed {seed}"));
        round(&volume, target, &mut rng);
    }
    let target = serve(&service, &mut rng);
    judge(&volume, &target, &format!("after the last round of {name}, seed {seed}"));
    assert!(target.stop().success());
    judge(&volume, &service.serve(), &format!("after an idle restart of {name}, seed {seed}"));
    say(&format!("kill test, {name}: {:?}", volume.tally));
}

fn judge(volume: &Volume, target: &Target, when: &str) {
    let verdict = volume.verify(&mut target.connect("vol0"));
    verdict.unwrap_or_else(|violation| panic!("{when}: {violation}"));
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
