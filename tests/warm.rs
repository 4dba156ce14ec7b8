//! The process is killed at random moments under load, and the next one goes on where it was:
//! everything that was acknowledged is there, flushed or not (design section 4, two kinds of
//! crash).
//!
//! `FLIPSIDE_ROUNDS` sets the number of rounds, `FLIPSIDE_SEED` the choices (not the timing).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use flipside::format::warm::FLUSHING_AT;
use support::device::Device;
use support::killing::{World, judge, number, seed};
use support::programs::{directory, installed, say};
use support::target::{AT_THE_SERVER, IN_NVRAM, ON_THE_DEVICE, Place, Service, format};

const VOLUME: u64 = 64 << 20;

fn all_rounds() -> u64 {
    number("FLIPSIDE_ROUNDS").unwrap_or(10)
}

/// Says in what a target has left that a flush was under way: the next start reads all of it.
fn say_flushing(left: &Path) {
    let file = File::options().write(true).open(left).unwrap();
    if file.metadata().unwrap().len() > FLUSHING_AT {
        file.write_all_at(&1_u64.to_le_bytes(), FLUSHING_AT).unwrap();
    }
}

/// Rounds that each end with a kill, or seldom with a stop; some starts are killed, too.
fn rounds(name: &str, device_bytes: u64, place: Place) {
    let count = all_rounds();
    let seed = seed(name, count);
    let mut world = World::new(seed, VOLUME, device_bytes, place);
    for number in 1..=count + 1 {
        if let Some(left) = world.left().filter(|_| world.rng.below(2) == 0) {
            say_flushing(&left);
        }
        let target = world.serve(&[]);
        world.volume.settled();
        judge(&world.volume, &target, &format!("before round {number} of {name}, seed {seed}"));
        if number <= count {
            world.round(target);
        }
    }
    say(&format!("warm kill test, {name}: {:?}", world.volume.tally));
}

/// Goal: killed at any moment, the target comes back with everything that was acknowledged, where
/// there is journal space for everything.
#[test]
fn warm_with_room() {
    rounds("warm, with room", 4 * VOLUME, ON_THE_DEVICE);
}

/// Goal: the same where journal space is short, so that areas are settled and epochs end early.
#[test]
fn warm_without_room() {
    rounds("warm, without room", VOLUME * 3 / 2, ON_THE_DEVICE);
}

/// Goal: the same with flags and journal, and small writes, in NVRAM.
#[test]
fn warm_with_nvram() {
    rounds("warm, nvram", VOLUME * 3 / 2, IN_NVRAM);
}

/// Goal: the same with the flags at the metadata server.
#[test]
fn warm_with_flags_at_the_server() {
    rounds("warm, mds", VOLUME * 3 / 2, AT_THE_SERVER);
}

/// Of one write of QEMU's.
const PIECE: u64 = 64 << 10;

/// A `qemu-io` that takes one command after another, and connects again by itself.
struct QemuIo {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl QemuIo {
    fn start(socket: &Path) -> QemuIo {
        let image = format!(
            "driver=raw,file.driver=nbd,file.export=vol0,file.reconnect-delay=600,\
             file.server.type=unix,file.server.path={}",
            socket.display()
        );
        let mut command = Command::new("qemu-io");
        command.args(["--image-opts", &image]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        QemuIo { child, said }
    }

    fn asks(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Waits until the last command has ended, and well.
    fn hears(&mut self) {
        loop {
            let mut line = String::new();
            let read = self.said.read_line(&mut line).unwrap();
            assert!(read > 0 && !line.contains("failed"), "qemu-io says: {line}");
            if line.contains(" bytes at offset ") {
                return;
            }
        }
    }
}

/// Goal: to QEMU's client, which connects again, the death of the target is a pause: no request
/// fails, one under way is done by the next target, and what it was told was written is there,
/// flushed or not.
#[test]
fn qemu_connects_again() {
    if !installed(&["qemu-io"]) {
        return;
    }
    let directory = directory();
    let device = Device::create(directory.path(), "device", 2 * VOLUME);
    format(device.path(), &["--volume", &format!("vol0={VOLUME}")]);
    let mut service = Service::new(directory.path(), device.path());
    service.arguments = ["--commit-interval", "never"].map(String::from).to_vec();
    let mut target = service.serve();
    let mut qemu = QemuIo::start(target.socket());
    for round in 0..all_rounds() {
        let place = |piece: u64| format!("{} {PIECE}", (2 * round + piece) * PIECE % VOLUME);
        let pattern = round % 255 + 1;
        qemu.asks(&format!("write -P {pattern} {}", place(0)));
        qemu.hears();
        target.kill();
        qemu.asks(&format!("write -P {pattern} {}", place(1)));
        target = service.serve();
        qemu.hears();
        for piece in [0, 1] {
            qemu.asks(&format!("read -P {pattern} {}", place(piece)));
            qemu.hears();
        }
    }
    let warm = target.log().matches(", warm: ").count() as u64;
    assert_eq!(warm, all_rounds(), "each start was a warm one: {}", target.log());
    qemu.asks("quit");
    assert!(qemu.child.wait().unwrap().success());
    assert!(target.stop().success());
}
