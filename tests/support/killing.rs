//! Rounds of a load that ends with the target's death, and the verdict on what is left.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flipside::env::sim::rng::Rng;

use super::nbd_client::Client;
use super::programs::say;
use super::target::{Service, Target};
use super::workload::{Load, Volume};

/// The number that an environment variable has.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// The seed of `FLIPSIDE_SEED`, or one of the clock's; said with the test's name.
pub fn seed(name: &str, count: u64) -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970");
    let seed = number("FLIPSIDE_SEED").unwrap_or(u64::from(clock.subsec_nanos()));
    say(&format!("kill test, {name}: {count} rounds, FLIPSIDE_SEED={seed}"));
    seed
}

/// How the target is run in one round.
pub fn choose(rng: &mut Rng) -> Vec<String> {
    let interval = rng.pick(&["20ms", "5s", "never"]);
    let settle = rng.pick(&["pressure", "idle", "always"]);
    ["--commit-interval", interval, "--settle", settle].map(String::from).to_vec()
}

/// Starts the target; now and then it is killed while it starts, so that recovery is cut short.
pub fn serve(service: &Service, rng: &mut Rng) -> Target {
    while rng.below(4) == 0 {
        let target = service.start();
        thread::sleep(Duration::from_micros(rng.below(40_000)));
        target.kill();
    }
    service.serve()
}

/// Loads the volume for a random time, in the midst of which something else happens, then ends the
/// target.
pub fn round(volume: &Volume, target: Target, rng: &mut Rng, meanwhile: impl FnOnce(&mut Rng)) {
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
        meanwhile(rng);
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

/// Whether the volume is a cut of what was written.
pub fn judge(volume: &Volume, target: &Target, when: &str) {
    let verdict = volume.verify(&mut target.connect("vol0"));
    verdict.unwrap_or_else(|violation| panic!("{when}: {violation}"));
}
