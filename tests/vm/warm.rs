//! Warm restarts under the kernel's file systems, in the machine: a target that is killed, or that
//! a new one replaces, is a pause to them. The kernel's NBD client, attached again, finds what it
//! was told was written.
//!
//! `FLIPSIDE_ROUNDS` sets the number of rounds.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use flipside::env::sim::rng::Rng;

use crate::arguments;
use crate::machine::{available, passes};
use crate::support::killing::number;
use crate::support::programs::{PATIENCE, directory, run, say, try_run};
use crate::support::target::{BINARY, Service, Target};
use crate::ublk::{BLOCK_DEVICE, MOUNT, mount, pool, queues, serve, with_queues};

const ROUNDS: u64 = 5;
const NBD_DEVICE: &str = "/dev/nbd0";
/// Of one write to it.
const PIECE: usize = 16 << 10;

fn rounds() -> u64 {
    number("FLIPSIDE_ROUNDS").unwrap_or(ROUNDS)
}

/// Goal: a target under a mounted ext4 that writes, with two queues, is killed again and again, and
/// replaced by a new one; each time the next one goes on, the file system sees no error, all files
/// are whole, flushed or not, and it is clean.
#[test]
fn killed_under_a_file_system() {
    if available() {
        passes(&[], "warm::inner_killed_under_a_file_system");
    }
}

/// The contents of a file of that number.
fn contents(number: u64) -> Vec<u8> {
    let mut rng = Rng::new(number);
    let words = rng.between(1, 12_000);
    (0..words).flat_map(|_| rng.bits().to_le_bytes()).collect()
}

fn path_of(number: u64) -> PathBuf {
    Path::new(MOUNT).join(format!("{number}"))
}

/// Writes files over and over until told to stop, some of them synced; how many there are.
fn keep_writing(stop: &AtomicBool) -> u64 {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let path = path_of(number);
        fs::write(&path, contents(number)).unwrap();
        match number % 8 {
            3 => fs::File::open(&path).unwrap().sync_all().unwrap(),
            // What is written back without a flush is what a cold restart would lose.
            7 => drop(run("sync", arguments!["-d", path])),
            _ => {}
        }
        if number > 200 {
            fs::remove_file(path_of(number - 200)).unwrap();
        }
        number += 1;
    }
    number
}

/// Another target takes over from one that runs, which ends by itself.
fn replace(service: &Service, mut target: Target) -> Target {
    let mut successor = service.clone();
    successor.arguments.push("--replace".to_owned());
    let next = serve(&successor);
    assert!(target.wait_ended(PATIENCE).success(), "it made way, and had committed everything");
    next
}

/// Goal: the inner half of `killed_under_a_file_system`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_killed_under_a_file_system() {
    let directory = directory();
    let (_device, service) = pool(directory.path());
    let mut service = with_queues(service);
    service.arguments.extend(["--commit-interval", "never"].map(String::from));
    let mut target = serve(&service);
    run("mkfs.ext4", arguments!["-q", "-F", BLOCK_DEVICE]);
    mount(BLOCK_DEVICE);
    run("dmesg", arguments!["--clear"]);
    let stop = AtomicBool::new(false);
    let (written, target) = thread::scope(|scope| {
        let writing = scope.spawn(|| keep_writing(&stop));
        for round in 0..rounds() {
            thread::sleep(Duration::from_millis(700 + 300 * (round % 5)));
            target = if round % 5 == 2 {
                replace(&service, target)
            } else {
                target.kill();
                let shown = run(BINARY, arguments!["ublk", "list"]);
                assert!(shown.contains(BLOCK_DEVICE), "{shown}");
                serve(&service)
            };
        }
        stop.store(true, Ordering::Relaxed);
        (writing.join().unwrap(), target)
    });
    assert_eq!(queues(), 2, "{}", target.log());
    let warm = target.log().matches(", warm: ").count() as u64;
    assert_eq!(warm, rounds(), "each start was a warm one: {}", target.log());
    let check = || {
        for number in written.saturating_sub(200)..written {
            assert_eq!(fs::read(path_of(number)).unwrap(), contents(number), "file {number}");
        }
    };
    check();
    run("umount", arguments![MOUNT]);
    run("e2fsck", arguments!["-f", "-n", BLOCK_DEVICE]);
    mount(BLOCK_DEVICE);
    check();
    run("umount", arguments![MOUNT]);
    let said = try_run("dmesg", arguments![]).unwrap();
    let bad = |line: &&str| line.contains("EXT4-fs error") || line.contains("I/O error");
    assert_eq!(said.lines().filter(bad).collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(target.stop().success());
    assert!(!Path::new(BLOCK_DEVICE).exists());
    say(&format!("{written} files over {} restarts of the target", rounds()));
}

/// Goal: the kernel's NBD client that is attached again finds all that it was told was written,
/// flushed or not, after each death of the target.
#[test]
fn the_kernels_client_is_attached_again() {
    if available() {
        passes(&[], "warm::inner_the_kernels_client_is_attached_again");
    }
}

/// Copies a piece between a file and the device, past the page cache and without a flush.
fn copy(from: &Path, to: &Path, options: &[String; 2]) -> Result<String, String> {
    let place = |way: &str, path: &Path| format!("{way}={}", path.display());
    let words = [place("if", from), place("of", to), format!("bs={PIECE}"), "count=1".to_owned()];
    let words: Vec<_> = words.iter().chain(options).map(OsStr::new).collect();
    try_run("dd", &words)
}

/// Goal: the inner half of `the_kernels_client_is_attached_again`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_the_kernels_client_is_attached_again() {
    let directory = directory();
    let (_device, service) = pool(directory.path());
    let arguments = ["--commit-interval", "never"].map(String::from).to_vec();
    let service = Service { arguments, ..service };
    run("modprobe", arguments!["nbd"]);
    let mut target = service.serve();
    let attach = |target: &Target| {
        run("nbd-client", arguments!["-unix", target.socket(), "-N", "vol0", NBD_DEVICE]);
    };
    attach(&target);
    let piece = |number: u64| Rng::new(number).bits().to_le_bytes().repeat(PIECE / 8);
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let write = |number: u64| {
        fs::write(&from, piece(number)).unwrap();
        let options = ["oflag=direct".to_owned(), format!("seek={number}")];
        copy(&from, Path::new(NBD_DEVICE), &options)
    };
    let read = |number: u64| {
        let options = ["iflag=direct".to_owned(), format!("skip={number}")];
        copy(Path::new(NBD_DEVICE), &to, &options).unwrap();
        assert!(fs::read(&to).unwrap() == piece(number), "piece {number} is lost");
    };
    let mut next = 0;
    for _ in 0..rounds() {
        for _ in 0..4 {
            write(next).unwrap();
            next += 1;
        }
        target.kill();
        run("nbd-client", arguments!["-d", NBD_DEVICE]);
        target = service.serve();
        attach(&target);
        (0..next).for_each(read);
    }
    let warm = target.log().matches(", warm: ").count() as u64;
    assert_eq!(warm, rounds(), "each start was a warm one: {}", target.log());
    run("nbd-client", arguments!["-d", NBD_DEVICE]);
    assert!(target.stop().success());
    say(&format!("{next} pieces over {} restarts of the target", rounds()));
}
