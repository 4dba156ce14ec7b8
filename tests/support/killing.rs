//! Rounds of a load that ends with the target's death, and the verdict on what is left.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flipside::env::sim::rng::Rng;
use tempfile::TempDir;

use super::device::Device;
use super::nbd_client::Client;
use super::programs::{directory, say};
use super::target::{Place, Service, Target, format_at};
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

/// A world of a new pool: a volume, and how it is served.
pub struct World {
    _device: Device,
    place: Place,
    directory: TempDir,
    service: Service,
    /// What was written.
    pub volume: Volume,
    /// All choices.
    pub rng: Rng,
}

impl World {
    /// Formats a device of that size for one volume.
    pub fn new(seed: u64, volume_bytes: u64, device_bytes: u64, place: Place) -> World {
        let directory = directory();
        let device = Device::create(directory.path(), "device", device_bytes);
        format_at(place, device.path(), &["--volume", &format!("vol0={volume_bytes}")]);
        let service = Service::new(directory.path(), device.path());
        let (volume, rng) = (Volume::new(volume_bytes), Rng::new(seed));
        World { _device: device, place, directory, service, volume, rng }
    }

    /// Starts the target in another way, with these arguments besides; see [`serve`].
    pub fn serve(&mut self, arguments: &[&str]) -> Target {
        self.service.arguments = choose(&mut self.rng);
        self.service.arguments.extend((self.place.serve)(self.directory.path()));
        self.service.arguments.extend(arguments.iter().map(ToString::to_string));
        serve(&self.service, &mut self.rng)
    }

    /// Starts the target in the way of the last time.
    pub fn serve_again(&self) -> Target {
        self.service.serve()
    }

    /// What outlives the target's process, where it has left anything.
    pub fn left(&self) -> Option<PathBuf> {
        let files = fs::read_dir(self.directory.path().join("warm"));
        files.ok()?.next().map(|file| file.expect("the directory is ours").path())
    }

    /// Loads the volume for a random time, then ends the target.
    pub fn round(&mut self, target: Target) {
        round(&self.volume, target, &mut self.rng, |_| ());
    }
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
    under_load(volume, target, load, |_, _| {
        thread::sleep(Duration::from_millis(rng.between(5, 600)));
        meanwhile(rng);
        rng.below(5) == 0
    });
}

/// Loads the volume while something happens, which is told whether the target is still there; then
/// the target is told to stop, where that says so, or killed.
pub fn under_load(
    volume: &Volume,
    target: Target,
    load: Load,
    meanwhile: impl FnOnce(&Target, &dyn Fn() -> bool) -> bool,
) {
    let socket = target.socket().to_owned();
    let connect = || Client::unix(&socket, "vol0");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let loading = scope.spawn(|| volume.load(&connect, load, &stop));
        let stops = meanwhile(&target, &|| !loading.is_finished());
        if stops {
            let status = target.stop();
            assert!(status.success(), "SIGTERM ends a target well: {status}");
            stop.store(true, Ordering::Relaxed);
        } else {
            target.kill();
        }
        loading.join().expect("the workload found nothing wrong");
        if stops {
            volume.settled();
        }
    });
}

/// Whether the volume is a cut of what was written.
pub fn judge(volume: &Volume, target: &Target, when: &str) {
    let verdict = volume.verify(&mut target.connect("vol0"));
    verdict.unwrap_or_else(|violation| panic!("{when}: {violation}"));
}
