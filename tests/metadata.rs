//! `flipside metadata`: a dump holds all that a pool needs beside its extents.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flipside::check::dump::Dump;
use support::programs::directory;
use support::target::{AT_THE_SERVER, IN_NVRAM, ON_THE_DEVICE, Place, Service, format_at};

const DEVICE: u64 = 48 << 20;
const VOLUME: usize = 12 << 20;
const PIECE: usize = 1 << 20;
const BINARY: &str = env!("CARGO_BIN_EXE_flipside");

struct Pool {
    service: Service,
    document: PathBuf,
    nvram: Option<PathBuf>,
    model: Vec<u8>,
}

impl Pool {
    fn new(directory: &Path, place: Place) -> Pool {
        let devices = ["first", "second"].map(|name| directory.join(name));
        devices.iter().for_each(|path| File::create(path).unwrap().set_len(DEVICE).unwrap());
        let first = devices[0].to_str().unwrap();
        let volumes = ["--volume", "data=12M", "--volume", "other=1M", first];
        format_at(place, &devices[1], &volumes);
        let mut service = Service::new(directory, &devices[0]);
        service.devices = devices.to_vec();
        service.arguments = (place.serve)(directory);
        let nvram = service.arguments.last().map(PathBuf::from);
        let document = directory.join("dump.json");
        Pool { service, document, nvram, model: vec![0; VOLUME] }
    }

    /// Serves, writes, and ends or is killed.
    fn write(&mut self, round: u8, kill: bool) {
        let target = self.service.serve();
        let mut client = target.connect("data");
        for at in (0..VOLUME).step_by(PIECE * 2) {
            let at = at + usize::from(round) * 16384;
            let end = at + 100 * 1024;
            self.model[at..end].fill(round);
            client.write(at as u64, &self.model[at..end]).unwrap();
            client.flush().unwrap();
        }
        drop(client);
        if kill { target.kill() } else { assert!(target.stop().success()) }
    }

    fn verify(&self) {
        let target = self.service.serve();
        let mut client = target.connect("data");
        for at in (0..VOLUME).step_by(PIECE) {
            let read = client.read(at as u64, PIECE as u32).unwrap();
            assert!(read == self.model[at..at + PIECE], "at {at}");
        }
        assert_eq!(target.connect("other").read(0, 512).unwrap(), [0; 512]);
        drop(client);
        assert!(target.stop().success());
    }

    fn metadata(&self, arguments: &[&str], devices: &[PathBuf]) -> Output {
        let mut command = Command::new(BINARY);
        command.arg("metadata").args(arguments);
        if let Some(path) = &self.nvram {
            command.arg("--nvram").arg(path);
        }
        command.args(devices).output().unwrap()
    }

    fn dump(&self) -> Dump {
        let path = self.document.to_str().unwrap();
        let output = self.metadata(&["dump", "-o", path], &self.service.devices);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&fs::read(&self.document).unwrap()).unwrap()
    }

    fn restore(&self, arguments: &[&str]) -> Output {
        let path = self.document.to_str().unwrap();
        self.metadata(&[&["restore", path], arguments].concat(), &self.service.devices)
    }

    #[track_caller]
    fn refused(&self, words: &str) {
        let before = self.images();
        let output = self.restore(&[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "'{words}' is not in: {said}");
        assert!(self.images() == before, "it was refused, and something was changed");
    }

    fn images(&self) -> Vec<Vec<u8>> {
        self.service.devices.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    /// Overwrites all metadata: everything before the extents, and the second superblocks.
    fn destroy(&self) {
        let document: serde_json::Value =
            serde_json::from_slice(&fs::read(&self.document).unwrap()).unwrap();
        for (path, device) in
            self.service.devices.iter().zip(document["devices"].as_array().unwrap())
        {
            let file = File::options().write(true).open(path).unwrap();
            let extents = device["extents_offset"].as_u64().unwrap();
            file.write_all_at(&vec![0xD5; extents as usize], 0).unwrap();
            file.write_all_at(&[0xD5; 4096], DEVICE - 4096).unwrap();
        }
        if let Some(path) = &self.nvram {
            fs::remove_file(path).unwrap();
        }
    }
}

/// What has to be the same; grants are given anew, and starts are counted.
fn lasting(mut dump: Dump) -> Dump {
    dump.grants.clear();
    dump.incarnation = 0;
    dump.groups_applied = 0;
    dump
}

fn round_trip(place: Place) {
    let directory = directory();
    let mut pool = Pool::new(directory.path(), place);
    pool.write(1, false);
    pool.write(2, true);
    let dumped = pool.dump();
    let has_groups = place.format.is_empty();
    assert_eq!(dumped.groups_applied > 0, has_groups, "it was killed");
    pool.destroy();
    assert!(!pool.service.start().ready_or_ended());
    let output = pool.restore(&[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let again = pool.dump();
    assert_eq!(again.incarnation, dumped.incarnation);
    assert_eq!(lasting(again), lasting(dumped.clone()));
    pool.verify();
    let served = pool.dump();
    assert!(served.incarnation > dumped.incarnation);
    assert_eq!(lasting(served), lasting(dumped));
    pool.write(3, false);
    pool.verify();
}

/// Goal: with superblocks, home, journal, store and volume table gone, a dump brings all data back,
/// and what is dumped then is the same.
#[test]
fn dump_and_restore() {
    round_trip(ON_THE_DEVICE);
}

/// Goal: the same with the flags in NVRAM that is lost.
#[test]
fn dump_and_restore_in_nvram() {
    round_trip(IN_NVRAM);
}

/// Goal: the same with the flags at the metadata server, whose store is lost.
#[test]
fn dump_and_restore_with_flags_at_the_server() {
    round_trip(AT_THE_SERVER);
}

/// Goal: what would lose something is refused with words, and nothing is changed; with `--force` it
/// is done, and the count of starts does not go back.
#[test]
fn refusals() {
    let directory = directory();
    let mut pool = Pool::new(directory.path(), ON_THE_DEVICE);
    pool.write(1, false);
    let dumped = pool.dump();
    pool.verify();
    pool.refused("was served since");
    assert!(pool.restore(&["--force"]).status.success());
    let forced = pool.dump();
    assert!(forced.incarnation > dumped.incarnation);
    pool.verify();

    let good = fs::read_to_string(&pool.document).unwrap();
    let cases = [
        ("not json at all", "expected"),
        ("{}", "missing field"),
        (&good.replace("\"version\": 1", "\"version\": 2"), "version 2"),
        (&good.replace("\"incarnation\"", "\"incarnations\""), "unknown field"),
        (&good.replace("\"data_slot\": 0", "\"data_slot\": 7"), "data slot"),
        (&good.replace("\"size\": 50331648", "\"size\": 50331650000"), "a part of it is missing"),
        (&good.replace("\"extent_size\": 1048576", "\"extent_size\": 3"), "extent of 3"),
    ];
    for (text, words) in cases {
        assert_ne!(*text, *good, "{words}");
        fs::write(&pool.document, text).unwrap();
        pool.refused(words);
    }
    fs::write(&pool.document, &good).unwrap();
    let other = tempfile::tempdir().unwrap();
    let others = Pool::new(other.path(), ON_THE_DEVICE);
    fs::write(&others.document, &good).unwrap();
    others.refused("is of pool");
    let output = pool.metadata(&["dump"], &pool.service.devices[..1]);
    assert!(!output.status.success(), "a device is missing");
}

/// Goal: a dump takes the place of another, and of nothing else.
#[test]
fn a_dump_overwrites_nothing_else() {
    let directory = directory();
    let mut pool = Pool::new(directory.path(), ON_THE_DEVICE);
    pool.write(1, false);
    pool.dump();
    pool.dump();
    for kept in [pool.service.devices[0].as_path(), Path::new("/dev/null"), directory.path()] {
        let before = pool.images();
        let output = pool.metadata(&["dump", "-o", kept.to_str().unwrap()], &pool.service.devices);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("is no dump"), "{said}");
        assert!(pool.images() == before);
    }
}

/// Goal: a device that holds something else is not taken for one whose superblocks are lost.
#[test]
fn what_is_not_a_pool_is_not_overwritten() {
    let directory = directory();
    let mut pool = Pool::new(directory.path(), ON_THE_DEVICE);
    pool.write(1, false);
    pool.dump();
    pool.destroy();
    let wrong = File::options().write(true).open(&pool.service.devices[1]).unwrap();
    wrong.write_all_at(b"XFSB", 0).unwrap();
    pool.refused("XFS");
    assert!(pool.restore(&["--force"]).status.success());
    pool.verify();
}

/// Goal: a dump from before the flags were moved does not overwrite what was written since, even
/// where the store, which counts the starts too, is lost.
#[test]
fn a_dump_from_before_a_move_is_refused() {
    let directory = directory();
    let mut pool = Pool::new(directory.path(), ON_THE_DEVICE);
    pool.write(1, false);
    pool.dump();
    let nvram = directory.path().join("nvram");
    let arguments = ["--flags", "nvram", "--nvram", nvram.to_str().unwrap()];
    pool.service.arguments.extend(arguments.map(String::from));
    pool.write(2, false);
    let document: serde_json::Value =
        serde_json::from_slice(&fs::read(&pool.document).unwrap()).unwrap();
    let store = &document["devices"][0]["regions"][1];
    let [offset, len] = [0, 1].map(|i| store[i].as_u64().unwrap());
    let first = File::options().write(true).open(&pool.service.devices[0]).unwrap();
    first.write_all_at(&vec![0xD5; len as usize], offset).unwrap();
    pool.refused("flags were moved");
}
