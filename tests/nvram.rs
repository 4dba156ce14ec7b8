//! Flags and journal in NVRAM: bound once, and from then on nothing else will do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::path::Path;

use support::device::Device;
use support::programs::directory;
use support::target::{Service, format};

const DEVICE: u64 = 64 << 20;
const BLOCK: usize = 4096;

struct Pool {
    service: Service,
    _device: Device,
}

impl Pool {
    fn new(directory: &Path, name: &str) -> Self {
        let device = Device::create(directory, name, DEVICE);
        format(device.path(), &[]);
        Self { service: Service::new(directory, device.path()), _device: device }
    }

    fn with(&self, arguments: &[&str]) -> Service {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Service { arguments, ..self.service.clone() }
    }

    fn in_nvram(&self, path: &Path) -> Service {
        self.with(&["--flags", "nvram", "--nvram", path.to_str().unwrap()])
    }
}

/// Starting it must fail with these words in its log.
#[track_caller]
fn refused(service: &Service, words: &str) {
    let before = fs::read_to_string(service.directory.join("target.log")).unwrap_or_default().len();
    let target = service.start();
    assert!(!target.ready_or_ended(), "it serves");
    let log = target.log();
    assert!(log[before..].contains(words), "'{words}' is not in: {}", &log[before..]);
}

/// Goal: a pool with data moves into NVRAM with all of it, and is served from there alone: without
/// it, with none there, with another's or with none of a pool, it is refused by name.
#[test]
fn bound_for_good() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let pool = Pool::new(directory.path(), "device");
    let target = pool.with(&[]).serve();
    let mut client = target.connect("vol0");
    client.write(0, &[7; BLOCK]).unwrap();
    client.flush().unwrap();
    drop(client);
    target.kill();

    let target = pool.in_nvram(&path("ours")).serve();
    let mut client = target.connect("vol0");
    assert_eq!(client.read(0, BLOCK as u32).unwrap(), [7; BLOCK]);
    client.write(0, &[8; BLOCK]).unwrap();
    client.flush().unwrap();
    drop(client);
    target.kill();

    refused(&pool.with(&[]), "in the NVRAM region");
    refused(&pool.in_nvram(&path("missing")), "wants the NVRAM region");
    assert!(!path("missing").exists(), "nothing is made for a pool that has its own");
    File::create(path("blank")).unwrap().set_len(DEVICE).unwrap();
    refused(&pool.in_nvram(&path("blank")), "no NVRAM of a pool");

    let other = Pool::new(directory.path(), "other");
    refused(&other.in_nvram(&path("ours")), "holds the flags of pool");
    assert!(other.in_nvram(&path("theirs")).serve().stop().success());
    refused(&pool.in_nvram(&path("theirs")), "wants the NVRAM region");

    let target = pool.in_nvram(&path("ours")).serve();
    assert_eq!(target.connect("vol0").read(0, BLOCK as u32).unwrap(), [8; BLOCK]);
    assert!(target.stop().success());
}

/// Goal: what is too small, or holds something, is refused before anything is written.
#[test]
fn only_what_is_fit_is_bound() {
    let directory = directory();
    let path = directory.path().join("nvram");
    let pool = Pool::new(directory.path(), "device");
    let mut small = pool.in_nvram(&path);
    small.arguments.extend(["--nvram-size", "1M"].map(String::from));
    refused(&small, "too few");
    assert!(!path.exists());
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    refused(&pool.in_nvram(&path), "the pool needs");
    let mut file_system = vec![0; DEVICE as usize];
    file_system[..4].copy_from_slice(b"XFSB");
    fs::write(&path, &file_system).unwrap();
    refused(&pool.in_nvram(&path), "XFS");
    assert!(fs::read(&path).unwrap() == file_system, "nothing was changed");
    assert!(pool.with(&[]).serve().stop().success());
}
