//! Warm restarts under the kernel's file systems, in the machine: a target that is killed, or that
//! a new one replaces, is a pause to them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use flipside::env::sim::rng::Rng;

use crate::arguments;
use crate::machine::{available, passes};
use crate::support::programs::{PATIENCE, directory, run, say, try_run};
use crate::support::target::{BINARY, Service, Target};
use crate::ublk::{BLOCK_DEVICE, MOUNT, mount, pool, queues, serve, with_queues};

const ROUNDS: u64 = 5;

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
        for round in 0..ROUNDS {
            thread::sleep(Duration::from_millis(700 + 300 * round));
            target = if round == 2 {
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
    assert_eq!(warm, ROUNDS, "each start was a warm one: {}", target.log());
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
    say(&format!("{written} files over {ROUNDS} restarts of the target"));
}
