//! `flipside flags move`: a crash at any moment leaves the flags wholly in the old place or wholly
//! in the new one, and to move again completes it.
//!
//! First in the simulator, at every call of the environment, with a loss of power or a death of the
//! process; then the real command, killed at random moments.
//!
//! `FLIPSIDE_ROUNDS` sets the number of real rounds, and of crashes of the repeated move for each
//! crash of a simulated one; `FLIPSIDE_SEED` the choices of the real ones (not the timing).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flipside::env::sim::faults::Fault;
use flipside::env::sim::rng::Rng;
use flipside::env::sim::{Crash, Faults, Limit, Machine, SimEnv, Stop};
use flipside::format::layout::Geometry;
use flipside::journal::relocate::Moved;
use flipside::sim::engine::{Engine as _, Running as _, Volume as _};
use flipside::sim::flipside::{Flipside, Serving};
use flipside::unit::{Config, SettlePolicy};
use support::device::Device;
use support::nbd_client::Client;
use support::programs::{PATIENCE, directory, say, wait_for};
use support::target::{BINARY, Service, Target, format};
use support::workload::{Load, Volume};

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 5_000_000 };
const BLOCK: usize = 512;
const EXTENT: usize = 32 * BLOCK;
const SIZE: usize = 6 * EXTENT;
/// How often each crash of a move is followed by one of the repeated move, without other words.
const NESTED: u64 = 3;

/// A move: of a pool with these NVRAMs (bytes more than what the region needs).
#[derive(Clone, Copy, Debug)]
struct Case {
    nvrams: &'static [u64],
    from: Option<usize>,
    to: Option<usize>,
    two_disks: bool,
}

const CASES: [Case; 7] = [
    Case { nvrams: &[0], from: None, to: Some(0), two_disks: false },
    Case { nvrams: &[128 << 10], from: None, to: Some(0), two_disks: true },
    Case { nvrams: &[0], from: Some(0), to: None, two_disks: false },
    Case { nvrams: &[128 << 10], from: Some(0), to: None, two_disks: true },
    Case { nvrams: &[0, 0], from: Some(0), to: Some(1), two_disks: false },
    Case { nvrams: &[0, 256 << 10], from: Some(0), to: Some(1), two_disks: true },
    Case { nvrams: &[256 << 10, 4 << 10], from: Some(0), to: Some(1), two_disks: true },
];

/// A pool on a machine that is switched off and on.
struct World {
    engine: Flipside,
    machine: Machine,
    rng: Rng,
    image: Vec<u8>,
}

impl World {
    /// A pool that was not stopped well: groups are linked, some with data, and an epoch was open.
    fn new(case: Case, seed: u64) -> World {
        let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
        let config = Config {
            commit_interval: None,
            settle: SettlePolicy::Pressure,
            settle_batch: 8,
            tell_interval: Duration::from_millis(20),
            ..Config::default()
        };
        let plain = Flipside::plain(geometry, 24, 4, SIZE as u64, config).with_region(384 << 10);
        let engine = plain.with_nvrams(case.nvrams, case.from).with_payload(1 << 20);
        let engine = if case.two_disks { engine.on_two_disks() } else { engine };
        let machine = Machine::new(seed, &engine.shape());
        let mut world = World { engine, machine, rng: Rng::new(seed), image: vec![0; SIZE] };
        let env = world.boot();
        let made = world.engine.format(env.clone(), world.machine.storage());
        env.run(LIMIT, made).expect("formatting ends").expect("formatting succeeds");
        world.machine.halt(&env, Crash::Power);
        world.serve(|world, env, serving| {
            for round in 1..4 {
                let at = world.rng.below(4) as usize * EXTENT;
                world.write(env, serving, at, 2 * EXTENT - 5 * BLOCK, round);
                // So little that its data is in the journal alone.
                world.write(env, serving, 5 * EXTENT, 3 * BLOCK, round + 10);
            }
            let volume = serving.volumes().remove(0);
            let lost = async move { volume.write(0, vec![0xEE; 3 * BLOCK], false).await };
            env.run(LIMIT, lost).expect("it ends").expect("it is written");
        });
        world
    }

    /// With whatever may happen that nobody should notice.
    fn boot(&mut self) -> SimEnv {
        let faults = Faults::draw(&mut self.rng, false);
        self.machine.boot(faults.with(Fault::Stall, 0).with(Fault::ClockJump, 0))
    }

    fn halt(&mut self, env: &SimEnv) {
        let how = self.rng.pick(&[Crash::Power, Crash::Process]);
        self.machine.halt(env, how);
    }

    /// Writes and commits.
    fn write(&mut self, env: &SimEnv, serving: &Serving, at: usize, len: usize, fill: u8) {
        self.image[at..at + len].fill(fill);
        let (volume, data) = (serving.volumes().remove(0), vec![fill; len]);
        let written = async move {
            volume.write(at as u64, data, false).await?;
            volume.flush().await
        };
        env.run(LIMIT, written).expect("it ends").expect("it is committed");
    }

    /// Starts the unit, checks that it has what was committed and nothing else, and crashes it.
    fn serve(&mut self, work: impl FnOnce(&mut World, &SimEnv, &Serving)) {
        let env = self.boot();
        let opened = self.engine.open(env.clone(), self.machine.storage());
        let serving = env.run(LIMIT, opened).expect("it ends").expect("recovery succeeds");
        let volume = serving.volumes().remove(0);
        let read = async move {
            let mut image = Vec::new();
            for at in (0..SIZE).step_by(EXTENT) {
                image.extend(volume.read(at as u64, EXTENT).await.expect("it can be read"));
            }
            image
        };
        let image = env.run(LIMIT, read).expect("it ends");
        let differs = (0..SIZE).find(|&i| image[i] != self.image[i]);
        assert_eq!(differs, None, "a byte is not what was committed");
        work(self, &env, &serving);
        serving.check().expect("the unit agrees with itself");
        drop(serving);
        self.halt(&env);
    }

    /// Moves; with a crash at a call of the environment where one is given.
    fn relocate(&mut self, to: Option<usize>, crash_at: Option<u64>) -> Option<Moved> {
        let env = self.boot();
        env.crash_in(crash_at);
        let moved = env.run(LIMIT, self.engine.move_flags(env.clone(), to));
        self.halt(&env);
        match moved {
            Ok(moved) => Some(moved.expect("nothing is wrong with the places")),
            Err(stop) => {
                assert_eq!(stop, Stop::Crashed);
                None
            }
        }
    }

    /// In which NVRAM the flags are, and which NVRAMs are of a pool.
    fn find(&mut self) -> (Option<usize>, Vec<usize>) {
        let env = self.boot();
        let found = env.run(LIMIT, self.engine.find_flags(env.clone()));
        let found = found.expect("it ends").expect("the place is there");
        self.halt(&env);
        found
    }
}

/// One run with a crash at a call, and perhaps another one in the repeated move; whether the move
/// got through before the crash.
fn crashed(case: Case, crash_at: u64, again_at: Option<u64>) -> bool {
    let mut world = World::new(case, crash_at * 1000 + again_at.unwrap_or(0));
    let through = world.relocate(case.to, Some(crash_at)).is_some();
    if again_at.is_some() {
        world.relocate(case.to, again_at);
    }
    let (place, _) = world.find();
    assert!([case.from, case.to].contains(&place), "the flags are in {place:?}");
    // The place is in use, whichever it is, and then the move is made again.
    world.serve(|world, env, serving| {
        let at = world.rng.below(5) as usize * EXTENT;
        world.write(env, serving, at, 7 * BLOCK, 9);
    });
    let moved = world.relocate(case.to, None).expect("nothing crashed");
    assert!(place == case.to || moved == Moved::Now, "{moved:?} from {place:?}");
    let everywhere: Vec<usize> = case.to.into_iter().collect();
    assert_eq!(world.find(), (case.to, everywhere), "the flags are there and nowhere else");
    assert_eq!(world.relocate(case.to, None), Some(Moved::Before));
    world.serve(|world, env, serving| world.write(env, serving, EXTENT, EXTENT, 10));
    world.serve(|_, _, _| ());
    through
}

/// Goal: wherever a crash strikes in a move, and again in the repeated one, all that was committed
/// and nothing else is at the place that the superblocks name; it can be used from there; and the
/// same move brings it to its end, after which the flags are in one place alone. In each direction,
/// between regions of different sizes, on one disk and on two.
#[test]
fn a_crash_at_any_call() {
    let nested = number("FLIPSIDE_ROUNDS").unwrap_or(NESTED);
    for case in CASES {
        let mut rng = Rng::new(7);
        let mut crash_at = 0;
        while !crashed(case, crash_at, None) {
            for _ in 0..nested {
                crashed(case, crash_at, Some(rng.below(crash_at + 20)));
            }
            crash_at += 1;
        }
        say(&format!("{case:?}: a crash at each of {crash_at} calls"));
        assert!(crash_at > 25, "there are more calls than {crash_at} in a move");
    }
}

const VOLUME: u64 = 16 << 20;
const DEVICE: u64 = 64 << 20;

/// A pool of the real program, and the places that its flags may be at.
struct Pool {
    service: Service,
    volume: Volume,
    /// Files that may be NVRAM.
    nvrams: [PathBuf; 2],
    _device: Device,
}

impl Pool {
    fn new(directory: &Path) -> Pool {
        let device = Device::create(directory, "device", DEVICE);
        format(device.path(), &["--volume", &format!("vol0={VOLUME}")]);
        Pool {
            service: Service::new(directory, device.path()),
            volume: Volume::new(VOLUME),
            nvrams: ["one", "two"].map(|name| directory.join(name)),
            _device: device,
        }
    }

    /// Starts the target with the flags where they are, and judges the volume. A start without
    /// NVRAM is refused where they are in one, and changes nothing; so is one with the other NVRAM.
    fn serve(&self, when: &str) -> (Target, Option<usize>) {
        let places = [None, Some(0), Some(1)];
        let started = places.into_iter().find_map(|place| {
            let arguments = place.map_or_else(Vec::new, |number: usize| {
                let path = self.nvrams[number].display().to_string();
                ["--flags", "nvram", "--nvram", &path].map(String::from).to_vec()
            });
            let target = Service { arguments, ..self.service.clone() }.start();
            target.ready_or_ended().then_some((target, place))
        });
        let (target, place) = started.unwrap_or_else(|| panic!("{when}: the flags are nowhere"));
        let verdict = self.volume.verify(&mut target.connect("vol0"));
        verdict.unwrap_or_else(|violation| panic!("{when}: {violation}\n{}", target.log()));
        (target, place)
    }

    /// The command that moves the flags.
    fn relocation(&self, from: Option<usize>, to: Option<usize>) -> Command {
        let mut command = Command::new(BINARY);
        command.args(["flags", "move", "--to"]);
        match (from, to) {
            (None, None) => command.arg("device"),
            (Some(from), None) => command.args(["device", "--nvram"]).arg(&self.nvrams[from]),
            (_, Some(to)) => command.args(["nvram", "--nvram"]).arg(&self.nvrams[to]),
        };
        if let (Some(from), Some(_)) = (from, to) {
            command.arg("--from").arg(&self.nvrams[from]);
        }
        command.args(&self.service.devices).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// Loads the volume for a moment and kills the target.
fn load_and_kill(pool: &Pool, target: Target, rng: &mut Rng) {
    let load = Load { connections: 2, depth: 8, flushes_percent: 5, seed: rng.bits() };
    let socket = target.socket().to_owned();
    let connect = || Client::unix(&socket, "vol0");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let loading = scope.spawn(|| pool.volume.load(&connect, load, &stop));
        thread::sleep(Duration::from_millis(rng.between(20, 200)));
        target.kill();
        loading.join().expect("the workload found nothing wrong");
    });
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Goal: the command killed at any moment, in any direction, of a pool that was itself killed under
/// load, loses nothing; the same command again ends where it was to, wherever it was cut short.
#[test]
fn the_command_is_killed() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970");
    let seed = number("FLIPSIDE_SEED").unwrap_or(u64::from(clock.subsec_nanos()));
    let rounds = number("FLIPSIDE_ROUNDS").unwrap_or(12);
    let mut rng = Rng::new(seed);
    let directory = directory();
    let pool = Pool::new(directory.path());
    let (mut killed, mut place) = (0, None);
    // How long a move takes here, as the last one did: it is killed within that.
    let mut took = Duration::from_millis(10);
    for round in 1..=rounds {
        let when = format!("round {round}, FLIPSIDE_SEED={seed}");
        let (target, found) = pool.serve(&when);
        assert_eq!(found, place, "{when}");
        load_and_kill(&pool, target, &mut rng);
        let others: Vec<_> =
            [None, Some(0), Some(1)].into_iter().filter(|&other| other != place).collect();
        let to = rng.pick(&others);
        for _ in 0..rng.between(1, 4) {
            let mut running = pool.relocation(place, to).stderr(Stdio::null()).spawn().unwrap();
            thread::sleep(Duration::from_nanos(rng.below(took.as_nanos() as u64)));
            running.kill().unwrap();
            killed += usize::from(!running.wait().unwrap().success());
        }
        if rng.below(2) == 0 {
            let (target, found) = pool.serve(&when);
            assert!([place, to].contains(&found), "{when}: {found:?}");
            load_and_kill(&pool, target, &mut rng);
        }
        // The claim of one that was killed may outlive it for a moment.
        wait_for("the end of the move", PATIENCE, || {
            let begun = Instant::now();
            let output = pool.relocation(place, to).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            took = begun.elapsed();
            assert!(output.status.success() || said.contains("in use"), "{when}: {said}");
            output.status.success().then_some(())
        });
        place = to;
    }
    let (target, found) = pool.serve("at the end");
    assert_eq!(found, place, "FLIPSIDE_SEED={seed}");
    assert!(target.stop().success());
    say(&format!("flags move: {killed} killed in {rounds} rounds; {:?}", pool.volume.tally));
    assert!(killed > 0, "no move was cut short");
}
