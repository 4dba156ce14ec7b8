//! `flipside volume` on a real target: while clients are connected, on devices that are not served,
//! and on a pool that is full.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::{Value, json};
use support::nbd_client::{Client, option, option_reply};
use support::programs::{PATIENCE, directory, skip, wait_for};
use support::target::{Service, Target, format};

const MIB: u64 = 1 << 20;
/// Error numbers and options of the protocol.
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const OPT_LIST: u32 = 3;
const REP_SERVER: u32 = 2;
/// Exit codes as `src/cli/mod.rs` documents them.
const FAILED: i32 = 1;
const WRONG_USE: i32 = 2;

/// A pool in a file, and where its target's sockets are.
struct Pool {
    directory: tempfile::TempDir,
    device: PathBuf,
}

impl Pool {
    fn new(volume: &str) -> Pool {
        let directory = directory();
        let device = directory.path().join("pool");
        File::create(&device).unwrap().set_len(64 * MIB).unwrap();
        format(&device, &["--volume", volume]);
        Pool { directory, device }
    }

    fn serve(&self, arguments: &[&str]) -> Target {
        let mut service = Service::new(self.directory.path(), &self.device);
        service.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        service.serve()
    }

    /// `flipside volume` through the control socket, with how it must end; gives its words.
    #[track_caller]
    fn volume(&self, arguments: &[&str], code: i32) -> String {
        let control = self.directory.path().join("control.sock");
        volume(&[arguments, &["--control", control.to_str().unwrap()]].concat(), code)
    }

    /// The same on the device itself.
    #[track_caller]
    fn offline(&self, arguments: &[&str], code: i32) -> String {
        volume(&[arguments, &[self.device.to_str().unwrap()]].concat(), code)
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], words: &str) {
        let said = self.volume(arguments, FAILED);
        assert!(said.contains(words), "'{words}' is not in: {said}");
    }

    /// Name and size in MiB of every volume.
    fn list(&self) -> Vec<(String, u64)> {
        names(&self.volume(&["list", "--json"], 0))
    }

    fn list_offline(&self) -> Vec<(String, u64)> {
        names(&self.offline(&["list", "--json"], 0))
    }

    /// Blocks of the file that have room on their disk, in bytes.
    fn occupied(&self) -> u64 {
        fs::metadata(&self.device).unwrap().blocks() * 512
    }
}

/// Runs `flipside volume`; what it says on its output, or where it fails what it says about that.
#[track_caller]
fn volume(arguments: &[&str], code: i32) -> String {
    let mut command = Command::cargo_bin("flipside").expect("the binary was built");
    command.arg("volume").args(arguments).timeout(PATIENCE);
    let output = command.assert().code(code).get_output().clone();
    String::from_utf8(if code == 0 { output.stdout } else { output.stderr }).unwrap()
}

fn names(list: &str) -> Vec<(String, u64)> {
    let list: Vec<Value> = serde_json::from_str(list).unwrap();
    let volume =
        |of: &Value| (of["name"].as_str().unwrap().to_owned(), of["size"].as_u64().unwrap() / MIB);
    list.iter().map(volume).collect()
}

fn expected(volumes: &[(&str, u64)]) -> Vec<(String, u64)> {
    volumes.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
}

/// What the target tells a client who asks for the list of exports.
fn exports(socket: &Path) -> Vec<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    option(&mut stream, OPT_LIST, &[]).unwrap();
    let mut names = Vec::new();
    while let (REP_SERVER, data) = option_reply(&mut stream).unwrap() {
        names.push(String::from_utf8(data[4..].to_vec()).unwrap());
    }
    names
}

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    (0..len).map(|at| (seed * 31 + at / 4096 + at) as u8 | 1).collect()
}

fn write(client: &mut Client, from: u64, to: u64, seed: u64) {
    for at in (from..to).step_by(MIB as usize) {
        client.write(at, &pattern(seed + at, MIB.min(to - at))).unwrap();
    }
    client.flush().unwrap();
}

#[track_caller]
fn verify(client: &mut Client, from: u64, to: u64, seed: u64) {
    for at in (from..to).step_by(MIB as usize) {
        let len = MIB.min(to - at);
        assert!(client.read(at, len as u32).unwrap() == pattern(seed + at, len), "at {at}");
    }
}

#[track_caller]
fn zeros(client: &mut Client, from: u64, to: u64) {
    for at in (from..to).step_by(MIB as usize) {
        let read = client.read(at, MIB as u32).unwrap();
        assert!(read.iter().all(|byte| *byte == 0), "at {at}");
    }
}

/// Goal: volumes come, are renamed and go while others are in use: clients see that in the list at
/// once, what was there stays as it was, and all of it survives SIGKILL.
#[test]
fn volumes_come_and_go() {
    let pool = Pool::new("vol0=8M");
    let target = pool.serve(&[]);
    let mut first = target.connect("vol0");
    write(&mut first, 0, 8 * MIB, 1);
    assert_eq!(pool.volume(&["create", "second", "12M"], 0), "volume second of 12.0 MiB\n");
    assert_eq!(exports(target.socket()), ["vol0", "second"]);
    let mut second = target.connect("second");
    assert_eq!(second.size(), 12 * MIB);
    zeros(&mut second, 0, 12 * MIB);
    write(&mut second, 2 * MIB, 5 * MIB, 2);
    pool.refused(&["create", "second", "1M"], "volume second: the name is taken");
    pool.refused(&["create", "odd", "1000"], "multiple of the block size");
    pool.refused(&["rename", "absent", "x"], "no volume is named absent");
    pool.refused(&["rename", "second", "vol0"], "the name is taken");
    pool.volume(&["rename", "second", "logs"], 0);
    assert_eq!(exports(target.socket()), ["vol0", "logs"]);
    assert!(Client::unix(target.socket(), "second").is_err(), "the old name is gone");
    write(&mut second, 5 * MIB, 6 * MIB, 2);
    let list: Value = serde_json::from_str(&pool.volume(&["list", "--json"], 0)).unwrap();
    let logs = json!({"name": "logs", "size": 12 * MIB, "allocated": 4 * MIB, "clients": 1});
    assert_eq!(list[1], logs);
    let table = pool.volume(&["list"], 0);
    assert!(table.contains("logs") && table.contains("12.0 MiB"), "{table}");
    let status = target.status();
    assert_eq!((status.volumes.len(), &*status.volumes[1].name), (2, "logs"));
    target.kill();
    let target = pool.serve(&[]);
    assert_eq!(pool.list(), expected(&[("vol0", 8), ("logs", 12)]));
    verify(&mut target.connect("vol0"), 0, 8 * MIB, 1);
    verify(&mut target.connect("logs"), 2 * MIB, 6 * MIB, 2);
    assert!(target.stop().success());
}

/// Goal: who connects after a resize sees the new size, who was connected keeps the old one; what
/// lies beyond a smaller end is refused as the protocol wants it, and never comes back.
#[test]
fn new_connections_see_the_new_size() {
    let pool = Pool::new("vol0=8M");
    let target = pool.serve(&[]);
    let mut old = target.connect("vol0");
    write(&mut old, 0, 8 * MIB, 3);
    pool.volume(&["resize", "vol0", "16M"], 0);
    let mut larger = target.connect("vol0");
    assert_eq!((old.size(), larger.size()), (8 * MIB, 16 * MIB));
    assert_eq!(old.write(8 * MIB, &[1; 4096]).unwrap_err().errno(), Some(ENOSPC));
    write(&mut larger, 10 * MIB, 12 * MIB, 4);
    zeros(&mut larger, 8 * MIB, 10 * MIB);
    verify(&mut old, 0, 8 * MIB, 3);
    pool.refused(&["resize", "vol0", "4M"], "say --shrink");
    pool.volume(&["resize", "vol0", "4M", "--shrink"], 0);
    assert_eq!(target.connect("vol0").size(), 4 * MIB);
    for client in [&mut old, &mut larger] {
        assert_eq!(client.write(6 * MIB, &[1; 4096]).unwrap_err().errno(), Some(ENOSPC));
        assert_eq!(client.read(6 * MIB, 4096).unwrap_err().errno(), Some(EINVAL));
        assert_eq!(client.trim(6 * MIB, 4096).unwrap_err().errno(), Some(ENOSPC));
        verify(client, 0, 4 * MIB, 3);
    }
    target.kill();
    let target = pool.serve(&[]);
    assert_eq!(target.connect("vol0").size(), 4 * MIB);
    pool.volume(&["resize", "vol0", "20M"], 0);
    let mut again = target.connect("vol0");
    verify(&mut again, 0, 4 * MIB, 3);
    zeros(&mut again, 4 * MIB, 20 * MIB);
    assert!(target.stop().success());
}

/// Goal: a volume in use is deleted only by force, its clients get errors and are disconnected, its
/// space comes back, and nothing of it is in a new one of its name; the last one may go, too.
#[test]
fn deleting() {
    let pool = Pool::new("vol0=30M");
    let target = pool.serve(&[]);
    let mut client = target.connect("vol0");
    write(&mut client, 0, 30 * MIB, 5);
    pool.refused(&["delete", "vol0"], "a client is connected");
    client.read(0, 4096).unwrap();
    pool.volume(&["delete", "vol0", "--force"], 0);
    match client.read(0, 4096) {
        Err(error) => assert!(matches!(error.errno(), None | Some(EIO)), "{error:?}"),
        Ok(_) => panic!("a deleted volume is read"),
    }
    assert!(Client::unix(target.socket(), "vol0").is_err());
    assert!(exports(target.socket()).is_empty() && pool.list().is_empty());
    pool.refused(&["delete", "vol0"], "no volume is named vol0");
    pool.volume(&["create", "vol0", "34M"], 0);
    let freed = || (target.status().space.data_extents_used == 0).then_some(());
    wait_for("the space of the deleted volume", PATIENCE, freed);
    let mut new = target.connect("vol0");
    zeros(&mut new, 0, 30 * MIB);
    write(&mut new, 0, 34 * MIB, 6);
    verify(&mut new, 0, 34 * MIB, 6);
    drop(new);
    let empty = || pool.list_clients().eq(&0).then_some(());
    wait_for("the client's leaving", PATIENCE, empty);
    pool.volume(&["delete", "vol0"], 0);
    target.kill();
    // The deletion goes on where it was cut short; a target without volumes is one, too.
    let target = pool.serve(&[]);
    wait_for("the rest of the deletion", PATIENCE, || {
        (target.status().space.data_extents_used == 0).then_some(())
    });
    assert!(pool.list().is_empty());
    assert!(target.stop().success());
}

impl Pool {
    /// How many clients are connected to any volume.
    fn list_clients(&self) -> u64 {
        let list = self.volume(&["list", "--json"], 0);
        let list: Vec<Value> = serde_json::from_str(&list).unwrap();
        list.iter().map(|volume| volume["clients"].as_u64().unwrap()).sum()
    }
}

/// Goal: the same commands do the same on devices that nobody serves, refuse those that somebody
/// does, and leave what a target finds.
#[test]
fn on_devices_that_are_not_served() {
    let pool = Pool::new("vol0=8M");
    let target = pool.serve(&[]);
    write(&mut target.connect("vol0"), 0, 8 * MIB, 7);
    let said = pool.offline(&["create", "second", "4M"], FAILED);
    assert!(said.contains("in use"), "{said}");
    target.kill();
    pool.offline(&["create", "second", "4M"], 0);
    pool.offline(&["create", "third", "4M"], 0);
    let said = pool.offline(&["create", "third", "4M"], FAILED);
    assert!(said.contains("volume third: the name is taken"), "{said}");
    pool.offline(&["rename", "second", "other"], 0);
    pool.offline(&["resize", "other", "6M"], 0);
    let said = pool.offline(&["resize", "vol0", "6M"], FAILED);
    assert!(said.contains("--shrink"), "{said}");
    pool.offline(&["resize", "vol0", "6M", "--shrink"], 0);
    pool.offline(&["delete", "third"], 0);
    assert_eq!(pool.list_offline(), expected(&[("vol0", 6), ("other", 6)]));
    let target = pool.serve(&[]);
    verify(&mut target.connect("vol0"), 0, 6 * MIB, 7);
    write(&mut target.connect("other"), 0, 6 * MIB, 8);
    assert_eq!(target.status().space.data_extents_used, 12);
    assert!(target.stop().success());
    pool.offline(&["delete", "vol0"], 0);
    let target = pool.serve(&[]);
    verify(&mut target.connect("other"), 0, 6 * MIB, 8);
    assert_eq!(target.status().space.data_extents_used, 6);
    assert!(target.stop().success());
}

/// Goal: wrong command lines end with their own code, and the help shows examples.
#[test]
fn command_lines() {
    let cases: [(&[&str], &str); 7] = [
        (&["create", "a/b", "1M"], "name"),
        (&["create", "a", "1MB"], "powers of two"),
        (&["create", "a"], "SIZE"),
        (&["rename", "a", "b c"], "name"),
        (&["explode"], "explode"),
        (&["list", "--control", "/c", "/dev/x"], "cannot be used with"),
        (&[], "Usage"),
    ];
    for (arguments, words) in cases {
        let said = volume(arguments, WRONG_USE);
        assert!(said.contains(words), "{arguments:?}: '{words}' is not in: {said}");
    }
    assert!(volume(&["--help"], 0).contains("Examples:"));
}

/// Goal: a pool that is full says so before it acknowledges, has warned before, loses nothing, and
/// goes on with overwrites and trims; what is trimmed can be written again; also after a restart.
#[test]
fn a_full_pool() {
    let pool = Pool::new("big=1G");
    let target = pool.serve(&["--warn-full", "50%,90%", "--commit-interval", "never"]);
    let mut client = target.connect("big");
    let mut full = 0;
    let refusal = loop {
        match client.write(full, &pattern(9 + full, MIB)) {
            Ok(()) => full += MIB,
            Err(error) => break error,
        }
    };
    assert_eq!(refusal.errno(), Some(ENOSPC));
    let space = target.status().space;
    assert_eq!((space.percent, space.mark_crossed), (100, Some(90)));
    assert_eq!((space.data_extents_used * MIB, space.data_extents * MIB), (full, full));
    for mark in ["50%", "90%"] {
        let line = format!("{mark} of the pool's data extents are in use");
        assert_eq!(target.log().matches(&line).count(), 1, "{}", target.log());
    }
    // Half of it has room: nothing of it is done.
    let both = client.write(full - MIB / 2, &pattern(1, MIB)).unwrap_err();
    assert_eq!(both.errno(), Some(ENOSPC));
    verify(&mut client, 0, full, 9);
    for round in 10..13 {
        write(&mut client, 0, full, round);
        verify(&mut client, 0, full, round);
    }
    client.trim(3 * MIB, 2 * MIB as u32).unwrap();
    write(&mut client, full + MIB, full + 3 * MIB, 12);
    assert_eq!(client.write(full, &[1; 4096]).unwrap_err().errno(), Some(ENOSPC));
    target.kill();
    let target = pool.serve(&["--warn-full", "never"]);
    let mut client = target.connect("big");
    verify(&mut client, 0, 3 * MIB, 12);
    zeros(&mut client, 3 * MIB, 5 * MIB);
    verify(&mut client, 5 * MIB, full, 12);
    zeros(&mut client, full, full + MIB);
    verify(&mut client, full + MIB, full + 3 * MIB, 12);
    // Emptied, the pool says that, too.
    client.trim(0, 900 * MIB as u32).unwrap();
    client.flush().unwrap();
    wait_for("the trimmed extents", PATIENCE, || {
        (target.status().space.data_extents_used == 0).then_some(())
    });
    assert_eq!(target.status().space.mark_crossed, None);
    assert!(target.stop().success());
}

/// Goal: with `--discard` what is given back is given back by the file under the pool, too, and
/// what is not is still there; without it nothing is.
#[test]
fn discards_reach_the_device() {
    for discard in [true, false] {
        let pool = Pool::new("vol0=8M");
        let target = pool.serve(if discard { &["--discard"] } else { &[] });
        write(&mut target.connect("vol0"), 0, 8 * MIB, 20);
        pool.volume(&["create", "second", "20M"], 0);
        write(&mut target.connect("second"), 0, 20 * MIB, 21);
        let before = pool.occupied();
        pool.volume(&["delete", "second", "--force"], 0);
        wait_for("the end of the deletion", PATIENCE, || {
            target.log().contains("the space of a deleted volume is free").then_some(())
        });
        if target.log().contains("cannot discard") {
            skip("the file system under the test's directory has no holes");
            return;
        }
        let given = before.saturating_sub(pool.occupied());
        if discard {
            assert!(given >= 19 * MIB, "{given} bytes were given back");
        } else {
            assert!(given < MIB, "{given} bytes were given back");
        }
        verify(&mut target.connect("vol0"), 0, 8 * MIB, 20);
        target.kill();
        let target = pool.serve(&[]);
        verify(&mut target.connect("vol0"), 0, 8 * MIB, 20);
        assert!(target.stop().success());
    }
}
