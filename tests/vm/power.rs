//! Loss of power: the machine is killed at random times under load, with a disk that loses what was
//! not flushed, started again, and judged.
//!
//! The disk, the load and the judge are on the host, which does not lose its memory: the disk is
//! [`LossyDisk`], and the load goes to the target in the machine by NBD over TCP. That the judge
//! finds something to judge a disk shows that acknowledges flushes and does nothing.
//!
//! `FLIPSIDE_ROUNDS` sets the number of losses of power of each.

use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use flipside::env::sim::rng::Rng;
use tempfile::TempDir;

use crate::arguments;
use crate::lossy_disk::{Attached, LossyDisk};
use crate::machine::{Machine, available, sparse};
use crate::pmem;
use crate::support::killing::{choose, number, seed};
use crate::support::nbd_client::Client;
use crate::support::programs::{directory, run, say, try_run};
use crate::support::target::BINARY;
use crate::support::workload::{Load, Volume};

const VOLUME: u64 = 16 << 20;
const DISK: u64 = 40 << 20;
/// Losses of power where nothing else was said.
const ROUNDS: u64 = 1;
/// Where the target listens in the machine: of all the machine's networks there is one.
const LISTEN: &str = "10.0.2.15:10809";
const DEVICE: &str = "/dev/vda";
/// A loss of power waits so long for something to lose.
const PATIENCE: Duration = Duration::from_secs(1);
/// A seed by which the first loss of power takes half of what it may.
const LOSING: u64 = 1;
/// What is under the target, and goes on over the machines.
struct World {
    directory: TempDir,
    disk: LossyDisk,
    pmem: Option<String>,
    inner: &'static str,
    port: u16,
    rng: Rng,
    seed: u64,
}

impl World {
    fn new(seed: u64, lies: bool, inner: &'static str) -> World {
        let directory = directory();
        let disk = LossyDisk::new(directory.path(), DISK, lies, seed);
        // Free now, and nobody else's in the next moment most probably.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        World { directory, disk, pmem: None, inner, port, rng: Rng::new(seed), seed }
    }

    fn with_pmem(mut self) -> World {
        self.pmem = Some(sparse(&self.directory.path().join("pmem"), pmem::PMEM));
        self
    }

    /// A machine with the disk.
    fn machine(&mut self) -> Powered {
        let disk = self.disk.attach();
        let forward = format!("{}:10809", self.port);
        let mut options = vec!["--disk", &disk.uri, "--forward", &forward];
        options.extend(self.pmem.iter().flat_map(|file| ["--pmem", file]));
        let machine = Machine::start(&options, self.inner);
        Powered { machine, disk, port: self.port }
    }

    /// Judges the volume.
    fn verdict(&mut self, volume: &Volume) -> Result<(), String> {
        let mut machine = self.machine();
        let verdict = machine.judge(volume);
        machine.cut_off();
        verdict
    }

    /// A machine that is cut off while it boots or its target recovers.
    fn cut_short(&mut self) {
        let machine = self.machine();
        thread::sleep(Duration::from_millis(self.rng.between(4000, 9000)));
        machine.cut_off();
    }

    /// Judges the volume, and loads it until the power is lost. How many writes were at stake.
    fn life(&mut self, volume: &Volume) -> Result<usize, String> {
        let mut machine = self.machine();
        machine.judge(volume)?;
        Ok(machine.load(volume, &mut self.rng))
    }
}

/// A machine and its disk, with power.
struct Powered {
    machine: Machine,
    disk: Attached,
    port: u16,
}

impl Powered {
    /// The power is lost. How many writes were at stake.
    fn cut_off(self) -> usize {
        let at_stake = self.disk.lose_power(PATIENCE);
        self.machine.cut_off();
        at_stake
    }

    /// Waits until the target can be used, and judges the volume.
    fn judge(&mut self, volume: &Volume) -> Result<(), String> {
        if !self.machine.prints("ready nbd://") {
            return Err(format!("the target does not serve: {}", self.machine.errors()));
        }
        let mut client = Client::tcp(self.port, "vol0").map_err(|error| error.to_string())?;
        volume.verify(&mut client)
    }

    /// Loads the volume for a random time, until the power is lost. How many writes were at stake.
    fn load(self, volume: &Volume, rng: &mut Rng) -> usize {
        let load = Load {
            connections: rng.between(1, 3),
            depth: rng.between(4, 32) as usize,
            flushes_percent: rng.pick(&[0, 1, 5]),
            seed: rng.bits(),
        };
        let port = self.port;
        let connect = || Client::tcp(port, "vol0");
        thread::scope(|scope| {
            let loading = scope.spawn(|| volume.load(&connect, load, &AtomicBool::new(false)));
            thread::sleep(Duration::from_millis(rng.between(100, 3000)));
            assert!(!loading.is_finished(), "the target is gone: {}", self.machine.output());
            let at_stake = self.cut_off();
            loading.join().unwrap();
            at_stake
        })
    }
}

fn count() -> u64 {
    number("FLIPSIDE_ROUNDS").unwrap_or(ROUNDS)
}

/// Losses of power, each judged.
fn rounds(name: &str, mut world: World) {
    let count = count();
    let began = Instant::now();
    let volume = Volume::new(VOLUME);
    let (mut at_stake, mut cut_short) = (0, 0);
    for round in 1..=count {
        while round > 1 && world.rng.below(5) == 0 {
            world.cut_short();
            cut_short += 1;
        }
        let lived = world.life(&volume);
        let context = |violation| panic!("{name}, round {round}, seed {}: {violation}", world.seed);
        at_stake += lived.unwrap_or_else(context);
    }
    let verdict = world.verdict(&volume);
    verdict.unwrap_or_else(|violation| panic!("{name}, seed {}: {violation}", world.seed));
    say(&format!(
        "loss of power, {name}: {count} under load with {at_stake} unflushed writes at stake, \
         {cut_short} at boots and recoveries, all right in {:?}; {:?}",
        began.elapsed(),
        volume.tally
    ));
}

/// Goal: power is lost at any time under load, and the volume is a cut that has what was flushed,
/// with flags and journal on the disk that loses what was not.
#[test]
fn on_the_device() {
    if available() {
        let seed = seed("loss of power, flags on the device", count());
        rounds("flags on the device", World::new(seed, false, "power::inner_on_the_device"));
    }
}

/// Goal: the same with flags, journal and small writes in persistent memory, which survives.
#[test]
fn in_persistent_memory() {
    if available() {
        let seed = seed("loss of power, flags in persistent memory", count());
        let world = World::new(seed, false, "power::inner_in_persistent_memory").with_pmem();
        rounds("flags in persistent memory", world);
    }
}

/// Goal: a disk that lies about flushes loses data, and the judge sees it.
#[test]
fn a_lying_disk_is_noticed() {
    if !available() {
        return;
    }
    let mut world = World::new(LOSING, true, "power::inner_on_the_device");
    let volume = Volume::new(VOLUME);
    let at_stake = world.life(&volume).expect("nothing was lost before the first loss of power");
    let violation = world.verdict(&volume).expect_err("what was flushed and lost is missed");
    let reason = violation.lines().find(|line| line.contains("promise") || line.contains("ERROR"));
    let reason = reason.unwrap_or(&violation);
    say(&format!("loss of power, a disk that lies: {at_stake} writes at stake, noticed: {reason}"));
}

/// Goal: the inner half of those with flags on the device.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_on_the_device() {
    serve(&[]);
}

/// Goal: the inner half of `in_persistent_memory`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_in_persistent_memory() {
    pmem::prepare();
    std::fs::create_dir_all(pmem::MOUNT).unwrap();
    if try_run("mount", arguments!["-o", "dax=always", "/dev/pmem0", pmem::MOUNT]).is_err() {
        run(pmem::MAKES[0].0, arguments![pmem::MAKES[0].1, "/dev/pmem0"]);
        pmem::mount();
    }
    serve(&["--flags", "nvram", "--nvram", &format!("{}/flags", pmem::MOUNT)]);
}

/// Serves the machine's disk on its network until the power is lost.
fn serve(arguments: &[&str]) {
    run("modprobe", arguments!["virtio_net"]);
    run("ip", arguments!["link", "set", "eth0", "up"]);
    run("ip", arguments!["address", "add", "10.0.2.15/24", "dev", "eth0"]);
    // Refused where there is a pool already.
    let size = format!("vol0={VOLUME}");
    let _ = try_run(BINARY, arguments!["format", "--volume", &size, DEVICE]);
    let mut rng = Rng::new(seed("serving in the machine", 1));
    let mut serving = Command::new(BINARY);
    serving.args(["serve", "--listen", &format!("tcp:{LISTEN}"), DEVICE]);
    let status = serving.args(arguments).args(choose(&mut rng)).status();
    panic!("the target has ended: {status:?}");
}
