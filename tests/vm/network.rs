//! Two hosts in the machine: network namespaces with a wire between, a disk or a metadata server at
//! its far end, and weather on it as bad as the kernel can make it.
//!
//! The far disk is the machine's own, served by nbdkit and reached by the kernel's NBD client.
//! Flags and journal are on it with the data.
//!
//! `FLIPSIDE_ROUNDS` sets the number of kills of each; without it the bad network is left out.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use flipside::env::sim::rng::Rng;

use crate::arguments;
use crate::machine::{available, passes, sparse};
use crate::support::device::Device;
use crate::support::killing::{choose, judge, number, round, seed, serve};
use crate::support::metadata_server::Server;
use crate::support::programs::{PATIENCE, directory, installed, run, say, try_run, wait_for};
use crate::support::target::{PLACES, Place, Service, format, format_at};
use crate::support::workload::Volume;
use crate::ublk;

const VOLUME: u64 = 16 << 20;
const DISK: u64 = 512 << 20;
/// Kills where nothing else was said.
const ROUNDS: u64 = 2;
/// What runs a program on the far host, and the address of that.
const FAR: [&str; 4] = ["ip", "netns", "exec", "far"];
const FAR_ADDRESS: &str = "10.9.0.2";
/// Weather, in both directions.
const NETEM: &str = "delay 20ms 4ms loss 1% duplicate 1% reorder 10%";

fn words(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let arguments: Vec<_> = words[1..].iter().map(std::ffi::OsStr::new).collect();
    run(words[0], &arguments);
}

/// Makes the far host and the wire to it.
pub fn connect_hosts() {
    for line in [
        "modprobe -a veth nbd sch_netem",
        "ip netns add far",
        "ip link add near type veth peer name far netns far",
        "ip address add 10.9.0.1/24 dev near",
        "ip link set near up",
        "ip netns exec far ip address add 10.9.0.2/24 dev far",
        "ip netns exec far ip link set far up",
        "ip netns exec far ip link set lo up",
    ] {
        words(line);
    }
}

/// Makes the network a bad one.
fn bad_weather() {
    words(&format!("tc qdisc add dev near root netem {NETEM}"));
    words(&format!("ip netns exec far tc qdisc add dev far root netem {NETEM}"));
}

/// A disk of the far host as a block device of this one, until the machine ends.
pub struct FarDisk {
    server: Child,
}

impl FarDisk {
    /// Serves a disk there, and attaches it here as [`FarDisk::PATH`].
    pub fn attach(disk: &str) -> FarDisk {
        let mut server = Command::new(FAR[0]);
        server.args(&FAR[1..]).args(["nbdkit", "-f", "-p", "10809", "file", disk]);
        let server = server.stdin(Stdio::null()).spawn().unwrap();
        let attach = || try_run("nbd-client", arguments![FAR_ADDRESS, "10809", Self::PATH]).ok();
        wait_for("the far disk", PATIENCE, attach);
        FarDisk { server }
    }

    /// Where it is.
    pub const PATH: &str = "/dev/nbd0";
}

impl Drop for FarDisk {
    fn drop(&mut self) {
        let _ = try_run("nbd-client", arguments!["-d", Self::PATH]);
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Goal: over a disk that is reached by a network, with the flags on it: a target that is killed
/// under load comes back at a cut, and file systems on its volume are clean and whole.
#[test]
fn a_far_disk() {
    if available() && installed(&["nbdkit", "nbd-client"]) {
        let directory = directory();
        let disk = sparse(&directory.path().join("disk"), DISK);
        let options = ["--seconds", "3000", "--disk", &disk];
        passes(&options, "network::inner_a_far_disk");
    }
}

/// Goal: the inner half of `a_far_disk`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_a_far_disk() {
    connect_hosts();
    let disk = FarDisk::attach("/dev/vda");
    let path = Path::new(FarDisk::PATH);
    let count = number("FLIPSIDE_ROUNDS").unwrap_or(ROUNDS);
    let mut rng = Rng::new(seed("a far disk", count));
    let directory = directory();
    format(path, &["--volume", &format!("vol0={VOLUME}")]);
    let volume = Volume::new(VOLUME);
    let mut service = Service::new(directory.path(), path);
    for number in 1..=count {
        service.arguments = choose(&mut rng);
        let target = serve(&service, &mut rng);
        judge(&volume, &target, &format!("before round {number}"));
        round(&volume, target, &mut rng, |_| ());
    }
    let target = service.serve();
    judge(&volume, &target, "after the last round");
    assert!(target.stop().success());
    say(&format!("a far disk: {count} kills, {:?}", volume.tally));
    ublk::file_systems_on(path);
    drop(disk);
}

/// Goal: target and metadata server are killed in turn, on two hosts with a bad network between
/// them: the volume is a cut of what was written, wherever the flags are.
#[test]
fn a_bad_network() {
    if number("FLIPSIDE_ROUNDS").is_some() && available() {
        passes(&["--seconds", "3000"], "network::inner_a_bad_network");
    }
}

/// Goal: the inner half of `a_bad_network`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_a_bad_network() {
    connect_hosts();
    bad_weather();
    for (place, name) in PLACES.into_iter().zip(["on the device", "in NVRAM", "at the server"]) {
        kills_of_both(name, place);
    }
    say(&run("tc", arguments!["-s", "qdisc", "show", "dev", "near"]));
}

/// Rounds in which the target is killed, and the server now and then.
fn kills_of_both(name: &str, place: Place) {
    let count = number("FLIPSIDE_ROUNDS").unwrap_or(ROUNDS);
    let mut rng = Rng::new(seed(&format!("a bad network, flags {name}"), count));
    let directory = directory();
    let path = directory.path();
    let listen = format!("{FAR_ADDRESS}:0");
    let mut server = Server::start_within(&FAR, path, &["--listen", &listen, "--allow-open"]);
    let at = server.at.to_string();
    let device = Device::create(path, "device", 4 * VOLUME);
    format_at(place, device.path(), &["--mds", &at, "--volume", &format!("vol0={VOLUME}")]);
    let volume = Volume::new(VOLUME);
    let mut service = Service::new(path, device.path());
    let mut server_kills = 0;
    for number in 1..=count {
        service.arguments = choose(&mut rng);
        service.arguments.extend((place.serve)(path));
        service.arguments.extend(["--mds".to_owned(), at.clone()]);
        let target = serve(&service, &mut rng);
        judge(&volume, &target, &format!("before round {number}, flags {name}"));
        let mut slot = Some(server);
        round(&volume, target, &mut rng, |rng| {
            if rng.below(4) > 0 {
                let away = Duration::from_millis(rng.below(1000));
                let killed = slot.take();
                let again = |server: Server| {
                    server.restart(path, &["--allow-open"], || thread::sleep(away))
                };
                slot = killed.map(again);
                server_kills += 1;
            }
            thread::sleep(Duration::from_millis(rng.below(3000)));
        });
        server = slot.expect("it was started again");
    }
    judge(&volume, &serve(&service, &mut rng), &format!("after the last round, flags {name}"));
    let counters = &server.status(&[])["counters"];
    say(&format!(
        "a bad network, flags {name}: {count} kills of the target and {server_kills} of the \
         server, {:?}; the server: {counters}",
        volume.tally
    ));
}
