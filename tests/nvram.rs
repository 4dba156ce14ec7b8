//! Flags and journal in NVRAM: bound once, and from then on nothing else will do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use support::device::Device;
use support::programs::{directory, run, try_run};
use support::target::{BINARY, Service, format};

const DEVICE: u64 = 64 << 20;
const BLOCK: usize = 4096;

struct Pool {
    service: Service,
    device: Device,
}

impl Pool {
    fn new(directory: &Path, name: &str) -> Self {
        let device = Device::create(directory, name, DEVICE);
        format(device.path(), &[]);
        Self { service: Service::new(directory, device.path()), device }
    }

    fn with(&self, arguments: &[&str]) -> Service {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Service { arguments, ..self.service.clone() }
    }

    /// Moves the flags; what is said.
    fn relocate(&self, arguments: &[&str]) -> Result<String, String> {
        let device = self.device.path().to_str().unwrap();
        let all = [&["flags", "move"], arguments, &[device]].concat();
        try_run(BINARY, &all.iter().map(OsStr::new).collect::<Vec<_>>())
    }

    #[track_caller]
    fn not_moved(&self, arguments: &[&str], words: &str) {
        let error = self.relocate(arguments).unwrap_err();
        assert!(error.contains(words), "'{words}' is not in: {error}");
    }

    /// Writes and commits a block, after a look at what was written last; the target is killed.
    fn exchange(service: &Service, before: u8, after: u8) {
        let target = service.serve();
        let mut client = target.connect("vol0");
        assert_eq!(client.read(0, BLOCK as u32).unwrap(), [before; BLOCK]);
        client.write(0, &[after; BLOCK]).unwrap();
        client.flush().unwrap();
        drop(client);
        target.kill();
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

/// Goal: flags move into NVRAM, from one to another of another size, and back, with everything that
/// was committed; what they left is free for another pool; a move that was made is not made again.
#[test]
fn moved_about() {
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let (one, two) = (path("one"), path("two"));
    let [a, b] = [&one, &two].map(|path| path.to_str().unwrap());
    let pool = Pool::new(directory.path(), "device");
    let device = pool.device.path().to_owned();
    let show = || run(BINARY, arguments!["flags", "show", &device]);
    Pool::exchange(&pool.with(&[]), 0, 1);
    assert!(show().contains(device.to_str().unwrap()));
    assert!(pool.relocate(&["--to", "nvram", "--nvram", a]).unwrap().contains("from now on"));
    assert!(pool.relocate(&["--to", "nvram", "--nvram", a]).unwrap().contains("already"));
    let json = run(BINARY, arguments!["flags", "show", "--json", &device]);
    assert!(json.contains("\"flags\":\"nvram\"") && json.contains("\"region\":"), "{json}");
    let small = show();
    Pool::exchange(&pool.in_nvram(&one), 1, 2);

    pool.not_moved(&["--to", "nvram", "--nvram", b], "--from");
    assert!(!two.exists(), "nothing is made in vain");
    let larger = ["--to", "nvram", "--nvram", b, "--nvram-size", "64M", "--from", a];
    pool.relocate(&larger).unwrap();
    let large = show();
    assert!(small.contains("4.1 MiB") && large.contains("64.0 MiB"), "{small} {large}");
    pool.relocate(&larger).unwrap();
    Pool::exchange(&pool.in_nvram(&two), 2, 3);
    let other = Pool::new(directory.path(), "other");
    assert!(other.in_nvram(&one).serve().stop().success());

    pool.not_moved(&["--to", "device"], "name it with --nvram");
    pool.not_moved(&["--to", "device", "--nvram", a], "wants the NVRAM region");
    pool.relocate(&["--to", "device", "--nvram", b]).unwrap();
    assert!(pool.relocate(&["--to", "device", "--nvram", b]).unwrap().contains("already"));
    pool.not_moved(&["--to", "device", "--nvram", a], "holds the flags of pool");
    Pool::exchange(&pool.with(&[]), 3, 4);
    pool.not_moved(&["--to", "nvram", "--nvram", a], "holds the flags of pool");
    assert!(other.in_nvram(&one).serve().stop().success());
    pool.relocate(&["--to", "nvram", "--nvram", b]).unwrap();
    Pool::exchange(&pool.in_nvram(&two), 4, 5);
}

/// Goal: what is in use, or of the pool itself, is not moved to; bound NVRAM is not formatted
/// unless that is asked for.
#[test]
fn what_is_in_use_stays() {
    let directory = directory();
    let path = directory.path().join("nvram");
    let name = path.to_str().unwrap();
    let pool = Pool::new(directory.path(), "device");
    let to_nvram = ["--to", "nvram", "--nvram", name];
    let target = pool.with(&[]).serve();
    pool.not_moved(&to_nvram, "in use");
    assert!(target.stop().success());
    let device = pool.device.path().to_str().unwrap().to_owned();
    pool.not_moved(&["--to", "nvram", "--nvram", &device], "of the pool itself");
    pool.not_moved(&["--to", "nvram", "--nvram", "/dev/null"], "neither a block device");
    pool.not_moved(&[&to_nvram[..], &["--nvram-size", "1000T"]].concat(), "cannot be made");
    assert!(fs::read_dir(directory.path()).unwrap().all(|entry| entry.unwrap().path() != path));
    pool.relocate(&to_nvram).unwrap();
    let target = pool.in_nvram(&path).serve();
    let other = Pool::new(directory.path(), "other");
    other.not_moved(&to_nvram, "in use");
    assert!(target.stop().success());
    other.not_moved(&to_nvram, "holds the flags of pool");
    File::options().write(true).open(&path).unwrap().set_len(DEVICE).unwrap();
    let refused = try_run(BINARY, arguments!["format", &path]).unwrap_err();
    assert!(refused.contains("flags of a Flipside pool"), "{refused}");
    run(BINARY, arguments!["format", "--force", &path]);
}

/// Goal: a binding that was cut short before the superblocks is made again. Superblocks from before
/// a binding do not lead back to what was left, and can be told of the NVRAM. A device that was
/// brought back whole from before its binding does not overwrite what is newer in the NVRAM,
/// neither when it is served nor when its flags are moved, unless that is asked for.
#[test]
fn what_is_newer_is_not_overwritten() {
    let directory = directory();
    let path = directory.path().join("nvram");
    let name = path.to_str().unwrap();
    let pool = Pool::new(directory.path(), "device");
    let device = File::options().read(true).write(true).open(pool.device.path()).unwrap();
    let save = |at, len| {
        let mut bytes = vec![0; len];
        device.read_exact_at(&mut bytes, at).unwrap();
        (at, bytes)
    };
    let restore = |saved: &[(u64, Vec<u8>)]| {
        saved.iter().for_each(|(at, bytes)| device.write_all_at(bytes, *at).unwrap());
        device.sync_all().unwrap();
    };
    Pool::exchange(&pool.with(&[]), 0, 1);
    let superblocks = [save(0, BLOCK), save(DEVICE - BLOCK as u64, BLOCK)];
    let before_moving = [save(0, DEVICE as usize)];
    pool.relocate(&["--to", "nvram", "--nvram", name]).unwrap();
    restore(&before_moving);
    Pool::exchange(&pool.with(&[]), 1, 2);
    let before_moving = [save(0, DEVICE as usize)];
    Pool::exchange(&pool.in_nvram(&path), 2, 3);

    restore(&superblocks);
    refused(&pool.with(&[]), "holds no journal");
    refused(&pool.in_nvram(&path), "have them name this place");
    pool.relocate(&["--to", "nvram", "--nvram", name, "--force"]).unwrap();
    Pool::exchange(&pool.in_nvram(&path), 3, 4);

    restore(&before_moving);
    let before = fs::read(&path).unwrap();
    refused(&pool.in_nvram(&path), "newer state of the same pool");
    pool.not_moved(&["--to", "nvram", "--nvram", name], "newer state of the same pool");
    pool.not_moved(&["--to", "device", "--nvram", name], "newer state of the same pool");
    assert!(fs::read(&path).unwrap() == before, "nothing was changed");
    pool.relocate(&["--to", "nvram", "--nvram", name, "--force"]).unwrap();
    Pool::exchange(&pool.in_nvram(&path), 2, 5);
}

/// Goal: with memory that is trusted, what was flushed is in the journal alone when the target is
/// killed: it is found again, counted, not dumped without, and put in its place by a move and by a
/// good stop. Elsewhere there is no such thing, and to ask for it is refused.
#[test]
fn data_in_the_journal() {
    let directory = directory();
    let path = directory.path().join("nvram");
    let name = path.to_str().unwrap();
    let pool = Pool::new(directory.path(), "device");
    let device = pool.device.path().to_owned();
    let mut trusting = pool.in_nvram(&path);
    trusting.arguments.push("--nvram-trust-memory".to_owned());
    let check = || run(BINARY, arguments!["check", "--nvram", &path, &device]);
    let words = "the data of 1 blocks is in the journal alone";
    Pool::exchange(&trusting, 0, 1);
    assert!(check().contains(words), "{}", check());
    Pool::exchange(&trusting, 1, 2);
    assert!(check().contains(words), "{}", check());
    let journal = run(BINARY, arguments!["journal", "--nvram", &path, &device]);
    let shown = "of volume vol0, this unit, ";
    assert!(journal.contains(shown) && journal.contains("the data of 1 blocks"), "{journal}");
    let dumped = try_run(BINARY, arguments!["metadata", "dump", "--nvram", &path, &device]);
    assert!(dumped.unwrap_err().contains("the data of 1 blocks"));
    assert!(trusting.serve().stop().success());
    assert!(!check().contains("in the journal alone"), "{}", check());
    Pool::exchange(&trusting, 2, 3);
    pool.relocate(&["--to", "device", "--nvram", name]).unwrap();
    Pool::exchange(&pool.with(&[]), 3, 4);

    pool.relocate(&["--to", "nvram", "--nvram", name]).unwrap();
    Pool::exchange(&pool.in_nvram(&path), 4, 5);
    assert!(!check().contains("in the journal alone"), "off without memory");
    let mut asked = pool.in_nvram(&path);
    asked.arguments.extend(["--nvram-write-max", "4K"].map(String::from));
    Pool::exchange(&asked, 5, 6);
    assert!(check().contains(words), "{}", check());
    trusting.arguments.extend(["--nvram-write-max", "0"].map(String::from));
    Pool::exchange(&trusting, 6, 7);
    pool.relocate(&["--to", "device", "--nvram", name]).unwrap();
    Pool::exchange(&pool.with(&[]), 7, 8);
    let journal = run(BINARY, arguments!["journal", &device]);
    assert!(journal.contains(shown) && !journal.contains("the data of"), "{journal}");
    let target = pool.with(&["--nvram-write-max", "4K"]).start();
    assert!(!target.ready_or_ended(), "it serves");
}
