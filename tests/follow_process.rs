//! `flipside serve --follow`: a second process reads the volumes beside the one that writes them,
//! with a metadata server of their own, which is killed.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use support::device::Device;
use support::nbd_client::Client;
use support::programs::{PATIENCE, directory, wait_for};
use support::target::{BINARY, Service, Target, format};

const EXTENT: usize = 1 << 20;
const EXTENTS: usize = 6;
const BLOCK: usize = 4096;
const ROUNDS: u64 = 150;
/// The error of a device, and that of what is not permitted.
const EIO: u32 = 5;
const EPERM: u32 = 1;

/// A metadata server; killed when dropped.
struct Mds {
    child: Child,
    at: String,
}

impl Mds {
    fn start(directory: &Path, at: &str) -> Mds {
        let mut command = Command::new(BINARY);
        command.args(["mds", "--store"]).arg(directory.join("store")).args(["--listen", at]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let at = line.trim().strip_prefix("ready udp://").unwrap_or_else(|| panic!("{line:?}"));
        Mds { child, at: at.to_owned() }
    }
}

impl Drop for Mds {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(directory: &Path, name: &str, device: &Path, arguments: &[&str]) -> Target {
    let directory = directory.join(name);
    fs::create_dir(&directory).unwrap();
    let arguments = arguments.iter().map(ToString::to_string).collect();
    Service { arguments, ..Service::new(&directory, device) }.serve()
}

/// Every word of a block says which version of which block it is.
fn fill(bytes: &mut [u8], first: usize, version: u64) {
    for (number, block) in bytes.chunks_exact_mut(BLOCK).enumerate() {
        let word = (version << 32 | (first + number) as u64).to_le_bytes();
        block.chunks_exact_mut(8).for_each(|place| place.copy_from_slice(&word));
    }
}

/// The version of a block that was read whole.
fn version_of(block: &[u8], number: usize) -> u64 {
    let word: [u8; 8] = block[..8].try_into().unwrap();
    assert!(block.chunks_exact(8).all(|other| other == word), "block {number} is torn");
    let word = u64::from_le_bytes(word);
    assert!(word == 0 || word as u32 == number as u32, "block {number} is block {}", word as u32);
    word >> 32
}

/// What the writer has done with each extent.
#[derive(Default)]
struct Progress {
    committed: [AtomicU64; EXTENTS],
    flushing: [AtomicU64; EXTENTS],
    done: AtomicBool,
}

fn write(client: &mut Client, progress: &Progress) {
    let mut data = vec![0; EXTENT];
    for version in 1..=ROUNDS {
        let extent = (version * 7 % EXTENTS as u64) as usize;
        fill(&mut data, extent * EXTENT / BLOCK, version);
        client.write((extent * EXTENT) as u64, &data).unwrap();
        progress.flushing[extent].store(version, Ordering::SeqCst);
        client.flush().unwrap();
        progress.committed[extent].store(version, Ordering::SeqCst);
    }
    progress.done.store(true, Ordering::SeqCst);
}

/// Reads pieces of all extents until the writer has ended; how many.
fn follow(client: &mut Client, progress: &Progress) -> u64 {
    let (mut reads, piece) = (0, EXTENT / 16);
    while !progress.done.load(Ordering::SeqCst) {
        let place = (reads as usize * 37) % (EXTENTS * 16);
        let extent = place / 16;
        let least = progress.committed[extent].load(Ordering::SeqCst);
        let bytes = client.read((place * piece) as u64, piece as u32).unwrap();
        let most = progress.flushing[extent].load(Ordering::SeqCst);
        for (number, block) in bytes.chunks_exact(BLOCK).enumerate() {
            let version = version_of(block, place * piece / BLOCK + number);
            assert!((least..=most).contains(&version), "{version}, not {least} to {most}");
        }
        reads += 1;
    }
    reads
}

/// Goal: while one process overwrites, commits and swaps, another reads what is committed and
/// nothing else; it refuses writes; when the metadata server is killed its reads fail when the
/// lease is over, and go on when the server is back; its status says so.
#[test]
fn a_second_process_reads() {
    let directory = directory();
    let directory = directory.path();
    let device = Device::create(directory, "disk", 64 << 20);
    let mds = Mds::start(directory, "127.0.0.1:0");
    let at = mds.at.clone();
    let volume = format!("v={}", EXTENTS * EXTENT);
    format(device.path(), &["--mds", &at, "--flags", "mds", "--volume", &volume]);
    let writer = serve(directory, "writer", device.path(), &["--mds", &at, "--settle", "always"]);
    let reader = serve(directory, "reader", device.path(), &["--mds", &at, "--follow"]);
    let progress = Progress::default();
    let (mut to_write, mut to_read) = (writer.connect("v"), reader.connect("v"));
    let reads = thread::scope(|scope| {
        scope.spawn(|| write(&mut to_write, &progress));
        follow(&mut to_read, &progress)
    });
    let swaps = writer.status().swaps;
    println!("{reads} reads beside {ROUNDS} commits and {swaps} swaps");
    assert!(reads > 0 && swaps > 0, "{reads} reads, {swaps} swaps");
    assert_eq!(to_read.write(0, &[1; BLOCK]).unwrap_err().errno(), Some(EPERM));
    drop(mds);
    let failed = wait_for("the lease's end", PATIENCE, || {
        thread::sleep(Duration::from_millis(100));
        to_read.read(0, BLOCK as u32).err()
    });
    assert_eq!(failed.errno(), Some(EIO));
    let _mds = Mds::start(directory, &at);
    let bytes = wait_for("reads to go on", PATIENCE, || {
        thread::sleep(Duration::from_millis(100));
        to_read.read(0, BLOCK as u32).ok()
    });
    assert_eq!(version_of(&bytes, 0), progress.committed[0].load(Ordering::SeqCst));
    drop((to_read, to_write));
    assert!(reader.stop().success() && writer.stop().success());
}

/// Goal: a pool whose flags are with its target is not followed, and what to do is said.
#[test]
fn flags_elsewhere() {
    let directory = directory();
    let directory = directory.path();
    let device = Device::create(directory, "disk", 64 << 20);
    let mds = Mds::start(directory, "127.0.0.1:0");
    format(device.path(), &["--mds", &mds.at, "--volume", "v=1M"]);
    let mut command = Command::new(BINARY);
    command.args(["serve", "--follow", "--mds", &mds.at]).arg(device.path());
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("flipside format --mds HOST:PORT --flags mds"), "{told}");
}
