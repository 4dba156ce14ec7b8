//! Three targets in a consistency group, and their metadata server, are killed and stopped at
//! random moments under load: what was written to volumes of different targets, one after another,
//! must come back at one cut (promise 4).
//!
//! `FLIPSIDE_ROUNDS` sets the number of rounds, `FLIPSIDE_SEED` the choices (not the timing).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/chains.rs"]
mod chains;
#[path = "support/network.rs"]
mod network;
mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use chains::{Chain, Image, VOLUMES, blank};
use flipside::env::sim::rng::Rng;
use network::Network;
use serde_json::Value;
use support::killing::{choose, number, seed};
use support::metadata_server::{ANY_PORT, Server};
use support::nbd_client::Client;
use support::programs::{PATIENCE, directory, run, say, wait_for};
use support::target::{
    AT_THE_SERVER, BINARY, IN_NVRAM, ON_THE_DEVICE, Place, Service, Target, format_at,
};

const DEVICE: u64 = 64 << 20;
/// Rounds where nothing else was said.
const ROUNDS: u64 = 20;
/// Chains at the same time.
const CHAINS: u32 = 3;
/// Volumes, and the pools that they are in.
const NAMES: [&str; VOLUMES] = ["one", "two", "three"];
/// The pool whose NVRAM is always memory, so that data is in its journal.
const TRUSTING: usize = 2;
/// The pool whose NVRAM is memory in some rounds.
const SOMETIMES_TRUSTING: usize = 1;

fn flipside(arguments: &[&str]) -> String {
    run(BINARY, &arguments.iter().map(OsStr::new).collect::<Vec<_>>())
}

fn share(rng: &mut Rng, one_in: u64) -> bool {
    rng.below(one_in) == 0
}

/// What is struck in a round.
#[derive(Debug)]
struct Blow {
    victims: Vec<usize>,
    server: bool,
    /// Targets are told to stop, and not killed.
    gently: bool,
}

impl Blow {
    fn draw(rng: &mut Rng) -> Self {
        let mut order: Vec<usize> = (0..VOLUMES).collect();
        for last in (1..VOLUMES).rev() {
            order.swap(last, rng.below(last as u64 + 1) as usize);
        }
        let (count, server, gently) = rng.pick(&[
            (1, false, false),
            (2, false, false),
            (3, false, false),
            (1, true, false),
            (3, true, false),
            (0, true, false),
            (1, false, true),
            (3, false, true),
        ]);
        order.truncate(count);
        Self { victims: order, server, gently }
    }
}

/// The targets and their server.
struct World {
    path: PathBuf,
    server: Option<Server>,
    at: SocketAddr,
    network: Network,
    services: [Service; VOLUMES],
    targets: [Option<Target>; VOLUMES],
    places: [Place; VOLUMES],
    /// Nothing outlives a target's process.
    cold: bool,
}

impl World {
    /// One pool has its flags at `place`, the others in NVRAM.
    fn new(path: &Path, place: Place, seed: u64, rng: &mut Rng) -> Self {
        let places = [place, IN_NVRAM, IN_NVRAM];
        let server = Server::start(path, &["--listen", ANY_PORT]);
        let (at, network) = (server.at, Network::to(server.at, seed));
        let services = [0, 1, 2].map(|which| {
            let directory = path.join(NAMES[which]);
            fs::create_dir(&directory).unwrap();
            let device = directory.join("device");
            File::create(&device).unwrap().set_len(DEVICE).unwrap();
            let volume = format!("{}=8M", NAMES[which]);
            let arguments = ["--mds", &at.to_string(), "--volume", &volume];
            format_at(places[which], &device, &arguments);
            Service::new(&directory, &device)
        });
        let (path, server) = (path.to_owned(), Some(server));
        let targets = [const { None }; VOLUMES];
        let cold = false;
        let mut world = World { path, server, at, network, services, targets, places, cold };
        (0..VOLUMES).for_each(|which| world.start(which, rng));
        world.wait_ready(&[0, 1, 2]);
        world
    }

    fn start(&mut self, which: usize, rng: &mut Rng) {
        let service = &mut self.services[which];
        service.arguments = choose(rng);
        service.arguments.extend((self.places[which].serve)(&service.directory));
        if which == TRUSTING || which == SOMETIMES_TRUSTING && share(rng, 2) {
            service.arguments.push("--nvram-trust-memory".to_owned());
        }
        if self.cold {
            service.arguments.push("--cold".to_owned());
        }
        let at = if share(rng, 2) { self.network.at } else { self.at };
        service.arguments.extend(["--mds".to_owned(), at.to_string()]);
        self.targets[which] = Some(service.start());
    }

    fn wait_ready(&self, started: &[usize]) {
        for which in started {
            self.targets[*which].as_ref().expect("it was started").wait_ready();
        }
    }

    /// Ends some targets and starts them again; now and then it kills them on their way, so that
    /// recovery is cut short. Says whether any was killed.
    fn restart(&mut self, blow: &Blow, rng: &mut Rng) -> bool {
        let of = blow.victims.iter();
        let mut victims: Vec<_> = of.filter_map(|which| self.targets[*which].take()).collect();
        if blow.gently {
            victims.iter().for_each(Target::terminate);
            for victim in &mut victims {
                let status = victim.wait_ended(PATIENCE);
                assert!(status.success(), "SIGTERM ends a target well: {status}");
            }
        } else {
            for victim in victims {
                victim.kill();
                thread::sleep(Duration::from_micros(rng.below(3) * rng.below(20_000)));
            }
        }
        thread::sleep(Duration::from_millis(rng.below(100)));
        for &which in &blow.victims {
            self.start(which, rng);
            while !blow.gently && share(rng, 4) {
                thread::sleep(Duration::from_micros(rng.below(60_000)));
                self.targets[which].take().expect("it was started").kill();
                self.start(which, rng);
            }
        }
        !blow.victims.is_empty() && !blow.gently
    }

    /// Strikes, and waits until all serve again; says whether a target was killed.
    fn strike(&mut self, blow: &Blow, rng: &mut Rng) -> bool {
        let targets_first = share(rng, 2) || !blow.server;
        let mut lost = targets_first && self.restart(blow, rng);
        if blow.server {
            let server = self.server.take().expect("it was started");
            let path = self.path.clone();
            self.server = Some(server.restart(&path, &[], || {
                // Targets that start meanwhile find nobody there.
                lost |= !targets_first && self.restart(blow, rng);
                thread::sleep(Duration::from_millis(rng.below(300)));
            }));
        }
        self.wait_ready(&blow.victims);
        lost
    }

    fn connect(&self) -> Option<[Client; VOLUMES]> {
        let connect = |which: usize| {
            let target: &Target = self.targets[which].as_ref()?;
            Client::unix(target.socket(), NAMES[which]).ok()
        };
        Some([connect(0)?, connect(1)?, connect(2)?])
    }

    /// The group as it is listed, if there is one.
    fn group(&self) -> Value {
        let list = flipside(&["group", "list", "--json", "--mds", &self.at.to_string()]);
        let list: Value = serde_json::from_str(&list).unwrap();
        list[0].clone()
    }

    /// Waits until all members have heard of one another.
    fn wait_whole(&self) {
        let whole = || self.group()["trouble"].is_null().then_some(());
        wait_for("the group being whole", PATIENCE, whole);
    }

    /// What the chains have left. Who came before all had heard of each other is sent away again.
    fn read(&self, chains: &[Mutex<Chain>]) -> Vec<Image> {
        wait_for("reading all of it", PATIENCE, || {
            let mut clients = self.connect()?;
            let read = |chain: &Mutex<Chain>| chain.lock().unwrap().read(&mut clients).ok();
            chains.iter().map(read).collect()
        })
    }
}

/// Writes a chain, until it is told to stop or something is refused; says whether it was told.
fn write(
    chains: &[Mutex<Chain>],
    which: usize,
    clients: &mut [Client; VOLUMES],
    flushes: bool,
    mut rng: Rng,
    stop: &AtomicBool,
) -> bool {
    let chain = &chains[which];
    while !stop.load(Ordering::Relaxed) {
        let write = chain.lock().unwrap().send(&mut rng);
        if clients[write.volume].write(write.offset(), &write.bytes()).is_err() {
            return false;
        }
        chain.lock().unwrap().acknowledge();
        if flushes && share(&mut rng, 24) {
            // It is for all volumes, and for what others have written, too.
            let counts: Vec<_> =
                chains.iter().map(|chain| chain.lock().unwrap().acknowledged()).collect();
            if clients[rng.below(VOLUMES as u64) as usize].flush().is_err() {
                return false;
            }
            let hardened = chains.iter().zip(counts);
            hardened.for_each(|(chain, count)| chain.lock().unwrap().harden(count));
        }
    }
    true
}

/// Loads all volumes, and strikes in the midst of it; says whether a target was killed.
fn round(
    world: &mut World,
    chains: &[Mutex<Chain>],
    blow: &Blow,
    grouped: bool,
    rng: &mut Rng,
) -> bool {
    let stop = AtomicBool::new(false);
    let mut all: Vec<_> = chains.iter().map(|_| world.connect().expect("they serve")).collect();
    let lost = thread::scope(|scope| {
        let load = all.iter_mut().enumerate().map(|(which, clients)| {
            let (rng, stop) = (Rng::new(rng.bits()), &stop);
            scope.spawn(move || write(chains, which, clients, grouped, rng, stop))
        });
        let load: Vec<_> = load.collect();
        thread::sleep(Duration::from_millis(rng.between(5, 600)));
        let lost = world.strike(blow, rng);
        thread::sleep(Duration::from_millis(rng.below(200)));
        stop.store(true, Ordering::Relaxed);
        for chain in load {
            let told = chain.join().expect("a chain does not panic");
            assert!(told || !blow.victims.is_empty(), "refused though all targets serve");
        }
        lost
    });
    world.wait_whole();
    if lost && grouped {
        for client in all.iter_mut().flatten() {
            assert!(client.read(0, 512).is_err(), "it was there before, and is not told");
        }
    }
    lost
}

/// Whether each chain is at a cut, from which it goes on; how many writes are in them.
fn judge(world: &World, chains: &[Mutex<Chain>], lost: bool) -> Result<usize, String> {
    let mut left = 0;
    for (chain, found) in chains.iter().zip(world.read(chains)) {
        let mut chain = chain.lock().unwrap();
        if !lost {
            // Nothing was killed that had anything pending.
            let count = chain.acknowledged();
            chain.harden(count);
        }
        let cut = chain.cut(&found)?;
        chain.go_on(cut);
        left += cut;
    }
    if !lost {
        wait_for("a flush", PATIENCE, || world.connect()?[0].flush().ok());
    }
    Ok(left)
}

fn chains() -> Vec<Mutex<Chain>> {
    (0..CHAINS).map(|number| Mutex::new(Chain::new(number))).collect()
}

/// Rounds with a group of three targets, of which one has its flags at that place.
fn rounds(place: Place, name: &str) {
    let count = number("FLIPSIDE_ROUNDS").unwrap_or(ROUNDS);
    let seed = seed(name, count);
    let mut rng = Rng::new(seed);
    let directory = directory();
    let mut world = World::new(directory.path(), place, seed, &mut rng);
    let mds = world.at.to_string();
    flipside(&[["group", "create", "all", "--mds", &mds].as_slice(), &NAMES].concat());
    let chains = chains();
    let mut writes = 0;
    for number in 1..=count {
        let blow = Blow::draw(&mut rng);
        let what = format!("round {number} of seed {seed}, {blow:?}");
        let lost = round(&mut world, &chains, &blow, true, &mut rng);
        let left = judge(&world, &chains, lost);
        writes += left.unwrap_or_else(|why| panic!("{what}: {why}"));
    }
    let group = world.group();
    say(&format!("kill test, {name}: {writes} writes left, life {}", group["life"]));
}

/// Goal: three targets and their metadata server killed and stopped, one, some and all of them, the
/// network bad for some: what is left is always one cut of what was written to the three, no older
/// than the last flush of any; where nothing pending was lost, it is everything; and who was there
/// before a loss is told.
#[test]
fn one_cut_over_three_targets() {
    rounds(ON_THE_DEVICE, "a group of three targets");
}

/// Goal: the same where one of them has its flags at the metadata server.
#[test]
fn one_cut_with_flags_at_the_server() {
    rounds(AT_THE_SERVER, "a group with flags at the server");
}

/// Goal: the rounds above can fail: volumes that are in no group do not come back at one cut.
#[test]
fn without_a_group_the_cut_breaks() {
    let seed = seed("no group", ROUNDS);
    let mut rng = Rng::new(seed);
    let directory = directory();
    let mut world = World::new(directory.path(), ON_THE_DEVICE, seed, &mut rng);
    // Warm starts would keep all of it.
    world.cold = true;
    let chains = chains();
    let broken = (0..ROUNDS).any(|number| {
        let victims = vec![number as usize % VOLUMES];
        let blow = Blow { victims, server: false, gently: false };
        let lost = round(&mut world, &chains, &blow, false, &mut rng);
        judge(&world, &chains, lost).is_err()
    });
    assert!(broken, "each volume came back by itself, and nothing was noticed");
}

/// Goal: the verdict takes every cut of a chain, and nothing else: no gap, nothing half there,
/// nothing older than what was flushed.
#[test]
fn the_verdict() {
    let (mut chain, mut rng) = (Chain::new(1), Rng::new(7));
    let mut images = vec![blank()];
    let mut last = None;
    for _ in 0..9 {
        let write = chain.send(&mut rng);
        let mut image = images.last().unwrap().clone();
        write.apply(&mut image);
        images.push(image);
        chain.acknowledge();
        last = Some(write);
    }
    let counts = || 0..images.len();
    // So many of the first writes have gone to each volume.
    let shares = |count: usize| [0, 1, 2].map(|volume| (count + 2 - volume) / 3);
    for (a, b, c) in
        counts().flat_map(|a| counts().flat_map(move |b| counts().map(move |c| (a, b, c))))
    {
        let found = [images[a][0].clone(), images[b][1].clone(), images[c][2].clone()];
        let of = [shares(a)[0], shares(b)[1], shares(c)[2]];
        let cut = counts().find(|count| shares(*count) == of);
        assert_eq!(chain.cut(&found).ok(), cut, "{a}, {b}, {c}");
    }
    let last = last.unwrap();
    let mut half = images[9].clone();
    half[last.volume][last.granules.start as usize] =
        images[8][last.volume][last.granules.start as usize];
    assert!(chain.cut(&half).is_err());
    chain.harden(5);
    assert!(chain.cut(&images[4]).is_err());
    assert_eq!(chain.cut(&images[5]), Ok(5));
}
