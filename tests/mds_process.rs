//! Targets with a metadata server of its own, as processes: what is served, who owns it, and what
//! goes on while the server is away.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;

use nix::sys::signal::Signal;
use support::metadata_server::{ANY_PORT, Server};
use support::programs::{PATIENCE, directory, try_run, wait_for};
use support::target::{AT_THE_SERVER, BINARY, ON_THE_DEVICE, Place, Service, format_at};

const DEVICE: u64 = 100 << 20;
const BLOCK: usize = 4096;

fn flipside(arguments: &[&str]) -> Result<String, String> {
    try_run(BINARY, &arguments.iter().map(OsStr::new).collect::<Vec<_>>())
}

fn refused(arguments: &[&str], text: &str) {
    let told = flipside(arguments).expect_err("it is refused");
    assert!(told.contains(text), "'{text}' is not in: {told}");
}

fn blank(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    fs::File::create(&path).unwrap().set_len(DEVICE).unwrap();
    path
}

/// A device of a pool at that server, with a volume of 32 MiB, and how it is served from a
/// directory of its own.
fn pool(directory: &Path, server: &Server, place: Place, more: &[&str]) -> Service {
    let device = blank(directory, "device");
    let at = server.at.to_string();
    let mds = [&["--mds", &at], more].concat();
    format_at(place, &device, &[&mds, ["--volume", "vol0=32M"].as_slice()].concat());
    let arguments = mds.iter().map(ToString::to_string).collect();
    Service { arguments, ..Service::new(directory, &device) }
}

/// The same pool as another host has it, on a copy of its device as that is now.
fn elsewhere(service: &Service, more: &[&str]) -> Service {
    let directory = service.directory.join("elsewhere");
    fs::create_dir_all(&directory).unwrap();
    let device = directory.join("device");
    fs::copy(&service.devices[0], &device).unwrap();
    let mut other =
        Service { arguments: service.arguments.clone(), ..Service::new(&directory, &device) };
    other.arguments.extend(["--host", "another"].iter().chain(more).map(ToString::to_string));
    other
}

/// Serves what is refused; what it says.
fn not_served(service: &Service) -> String {
    let mut target = service.start();
    let status = target.wait_ended(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", target.log());
    target.log()
}

/// Goal: with a key, for flags on the device and at the server: what was flushed is there after
/// target and server were killed, volumes are made through the target, all is seen in both
/// statuses, a target that stops leaves no session, and store and device are sound and agree.
#[test]
fn a_pool_at_a_server() {
    for place in [ON_THE_DEVICE, AT_THE_SERVER] {
        let directory = directory();
        let path = directory.path();
        let key = path.join("key");
        fs::write(&key, [7; 32]).unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        let key = ["--key-file", key.to_str().unwrap()];
        let server = Server::start(path, &[&["--listen", ANY_PORT], &key[..]].concat());
        let service = pool(path, &server, place, &key);
        let target = service.serve();
        let mut client = target.connect("vol0");
        client.write(0, &[1; BLOCK]).unwrap();
        client.write(8 << 20, &[2; BLOCK]).unwrap();
        client.flush().unwrap();
        target.kill();
        let server = server.restart(path, &key, || ());
        let target = service.serve();
        let mut client = target.connect("vol0");
        assert_eq!(client.read(0, BLOCK as u32).unwrap(), [1; BLOCK]);
        assert_eq!(client.read(8 << 20, BLOCK as u32).unwrap(), [2; BLOCK]);
        let control = path.join("control.sock");
        let control = control.to_str().unwrap();
        flipside(&["volume", "create", "logs", "10M", "--control", control]).unwrap();
        target.connect("logs").write_fua(0, &[3; BLOCK]).unwrap();
        let seen = server.status(&key);
        let [pool, session] = [&seen["pools"][0], &seen["sessions"][0]];
        assert_eq!((pool["volumes"].as_u64(), session["lease_ms"].as_u64()), (Some(2), None));
        assert_eq!(
            (&pool["pool"], pool["flags_here"].as_bool()),
            (&session["pool"], Some(!place.format.is_empty()))
        );
        let status = flipside(&["status", "--control", control]).unwrap();
        assert!(status.contains(&format!("metadata server  {}", server.at)), "{status}");
        assert!(target.stop().success());
        assert_eq!(server.status(&key)["sessions"].as_array().unwrap().len(), 0);
        let store = path.join("store");
        let store = store.to_str().unwrap();
        refused(&["check", "--mds-store", store], "in use by another process");
        assert_eq!(server.signal(Signal::SIGTERM), Some(0));
        let device = service.devices[0].to_str().unwrap();
        let told = flipside(&["check", "--mds-store", store]).unwrap();
        assert!(told.contains("2 volumes, 3 pairs"), "{told}");
        let told = flipside(&["check", "--mds-store", store, device]).unwrap();
        assert!(told.contains("3 of") && told.contains("by 2 volumes"), "{told}");
        assert!(flipside(&["check", device]).unwrap().contains("--mds-store"));
    }
}

/// Goal: while the server is away, reads and writes go on; a flush ends where the flags are on the
/// device, and where they are at the server it waits, which the status shows, and ends when the
/// server is back.
#[test]
fn the_server_is_away() {
    for (place, waits) in [(ON_THE_DEVICE, false), (AT_THE_SERVER, true)] {
        let directory = directory();
        let server = Server::start(directory.path(), &["--listen", ANY_PORT]);
        let service = pool(directory.path(), &server, place, &[]);
        let target = service.serve();
        let mut client = target.connect("vol0");
        server.tell(Signal::SIGSTOP);
        client.write(0, &[1; BLOCK]).unwrap();
        assert_eq!(client.read(0, BLOCK as u32).unwrap(), [1; BLOCK]);
        let (flushed, outcome) = channel();
        let mut other = target.connect("vol0");
        let flushing = thread::spawn(move || flushed.send(other.flush().is_ok()));
        let silent = wait_for("silence", PATIENCE, || {
            let waiting = target.status().waiting;
            waiting.metadata_server_silent_ms.map(|_| waiting)
        });
        assert!(silent.metadata_server > 0);
        if waits {
            assert!(outcome.try_recv().is_err(), "a commit without its commit point");
            client.write(BLOCK as u64, &[2; BLOCK]).unwrap();
        } else {
            assert!(outcome.recv().unwrap());
            client.write_fua(BLOCK as u64, &[2; BLOCK]).unwrap();
        }
        server.tell(Signal::SIGCONT);
        assert!(!waits || outcome.recv().unwrap());
        flushing.join().unwrap().unwrap();
        client.flush().unwrap();
        target.kill();
        let target = service.serve();
        let mut client = target.connect("vol0");
        let both = [[1; BLOCK], [2; BLOCK]].concat();
        assert_eq!(client.read(0, 2 * BLOCK as u32).unwrap(), both);
    }
}

/// Goal: a pool is one host's: another is refused, with its owner and what to do, also when the
/// owner is dead; --fenced takes it over with everything that was flushed; the old owner, still
/// alive, then gets errors, and does not get the pool back by being started again.
#[test]
fn two_hosts_claim_one_pool() {
    let directory = directory();
    let server = Server::start(directory.path(), &["--listen", ANY_PORT]);
    let service = pool(directory.path(), &server, AT_THE_SERVER, &[]);
    let target = service.serve();
    let mut client = target.connect("vol0");
    client.write_fua(0, &[1; BLOCK]).unwrap();
    let told = not_served(&elsewhere(&service, &[]));
    assert!(told.contains("is attached to host") && told.contains("--fenced"), "{told}");
    let new = elsewhere(&service, &["--fenced"]).serve();
    assert_eq!(new.connect("vol0").read(0, BLOCK as u32).unwrap(), [1; BLOCK]);
    new.connect("vol0").write_fua(0, &[2; BLOCK]).unwrap();
    client.write(0, &[3; BLOCK]).unwrap();
    client.flush().unwrap_err();
    assert!(target.log().contains("fenced: another target attached"), "{}", target.log());
    target.kill();
    new.kill();
    let told = not_served(&service);
    assert!(told.contains("is attached to host"), "{told}");
    assert_eq!(server.status(&[])["sessions"].as_array().unwrap().len(), 1);
}

/// Goal: a target with a lease serves for as long as the server renews it; when the server is
/// silent for longer it stops by itself, reads included, says why, and a restart goes on; a short
/// silence costs nothing.
#[test]
fn a_lease_ends() {
    let directory = directory();
    let server = Server::start(directory.path(), &["--listen", ANY_PORT]);
    let mut service = pool(directory.path(), &server, ON_THE_DEVICE, &[]);
    service.arguments.extend(["--shared", "--lease", "6s"].map(String::from));
    let target = service.serve();
    let session = || server.status(&[])["sessions"][0].clone();
    assert_eq!(session()["lease_ms"], 6000);
    let requests = || session()["requests"].as_u64().unwrap();
    let before = requests();
    wait_for("two renewals", PATIENCE, || (requests() >= before + 2).then_some(()));
    let mut client = target.connect("vol0");
    client.write_fua(0, &[1; BLOCK]).unwrap();
    server.tell(Signal::SIGSTOP);
    wait_for("the lease's end", PATIENCE, || client.write_fua(0, &[2; BLOCK]).err());
    client.read(0, BLOCK as u32).unwrap_err();
    client.flush().unwrap_err();
    assert!(target.log().contains("fenced: the lease of 6 s ended"), "{}", target.log());
    server.tell(Signal::SIGCONT);
    client.flush().unwrap_err();
    target.kill();
    let target = service.serve();
    let mut client = target.connect("vol0");
    client.read(0, BLOCK as u32).unwrap();
    client.write_fua(0, &[3; BLOCK]).unwrap();
}

/// Goal: what does not fit together is refused and says what to do: a pool of a server without one,
/// a pool of its own with one, a forgotten one; a format that finds no server, or one with another
/// key, changes nothing; a pool in use is not forgotten.
#[test]
fn refusals_say_what_to_do() {
    let directory = directory();
    let path = directory.path();
    let server = Server::start(path, &["--listen", ANY_PORT]);
    let at = server.at.to_string();
    let service = pool(path, &server, ON_THE_DEVICE, &[]);
    let device = service.devices[0].to_str().unwrap();
    let control = path.join("control.sock");
    let serve = ["serve", "--control", control.to_str().unwrap()];
    refused(&[&serve[..], &[device]].concat(), "say --mds HOST:PORT");
    refused(&["volume", "list", device], "serve it, and leave out the devices");
    refused(&["metadata", "dump", device], "at a metadata server");
    let own = blank(path, "own");
    format_at(ON_THE_DEVICE, &own, &[]);
    let own = own.to_str().unwrap();
    refused(&[&serve[..], &["--mds", &at, own]].concat(), "leave out --mds");

    let target = service.serve();
    let pool = server.status(&[])["pools"][0]["pool"].as_str().unwrap().to_owned();
    refused(&["mds", "forget", &pool, "--mds", &at], "stop the target");
    assert!(target.stop().success());
    flipside(&["mds", "forget", &pool, "--mds", &at]).unwrap();
    refused(&["mds", "forget", &pool, "--mds", &at], "knows no pool");
    assert!(not_served(&service).contains("not registered there"));

    let key = path.join("key");
    fs::write(&key, [9; 32]).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let fresh = blank(path, "fresh");
    let fresh = fresh.to_str().unwrap();
    let with_key = ["format", "--mds", &at, "--key-file", key.to_str().unwrap(), fresh];
    refused(&with_key, "both have the same --key-file");
    assert!(fs::read(fresh).unwrap().iter().all(|byte| *byte == 0), "nothing was written");
    assert_eq!(server.status(&[])["pools"].as_array().unwrap().len(), 0);
}

/// Goal: a metadata server that would be open to strangers, a store that is none, and flags that do
/// not go together are refused, with what to say instead.
#[test]
fn command_lines_are_refused() {
    let directory = directory();
    let path = directory.path();
    let store = path.join("store");
    let store = store.to_str().unwrap();
    let open = ["mds", "--listen", "0.0.0.0:0", "--store", store];
    refused(&open, "say --allow-open");
    assert!(!Path::new(store).exists(), "a store was made");
    let file = blank(path, "file");
    let file = file.to_str().unwrap();
    refused(&["mds", "--listen", ANY_PORT, "--store", file], "is not a directory");
    fs::create_dir(store).unwrap();
    fs::write(path.join("store/letter"), "dear").unwrap();
    refused(&["mds", "--listen", ANY_PORT, "--store", store], "holds no metadata store, but");
    refused(&["check", "--mds-store", store], "holds no metadata store");
    let key = path.join("key");
    fs::write(&key, "short").unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    let key = ["--key-file", key.to_str().unwrap()];
    refused(&[&["mds", "--listen", ANY_PORT, "--store", store], &key[..]].concat(), "64 hex");
    for alone in [
        &["mds"][..],
        &["mds", "--listen", ANY_PORT],
        &["mds", "--store", store],
        &["serve", "--shared", file],
        &["serve", "--fenced", file],
        &["serve", "--host", "a", file],
        &["serve", "--follow", file],
        &["serve", "--mds", ANY_PORT, "--lease", "5s", file],
        &["serve", "--mds", ANY_PORT, "--follow", "--fenced", file],
    ] {
        let told = flipside(alone).expect_err("it is wrong use");
        assert!(told.contains("Usage:"), "{alone:?}: {told}");
    }
}

/// Goal: `check` finds that a server's store is damaged, wherever that is, names it, and changes
/// nothing; the server does not start on it, or serves what is whole.
#[test]
fn a_damaged_store_is_found() {
    let directory = directory();
    let path = directory.path();
    let server = Server::start(path, &["--listen", ANY_PORT]);
    pool(path, &server, AT_THE_SERVER, &[]);
    assert_eq!(server.signal(Signal::SIGTERM), Some(0));
    let store = path.join("store");
    let check = ["check", "--mds-store", store.to_str().unwrap()];
    assert!(flipside(&check).unwrap().contains("the metadata store is sound"));
    let rows = store.join("metadata/rows");
    let whole = fs::read(&rows).unwrap();
    let pages: Vec<usize> = (4096..whole.len()).step_by(4096).collect();
    let used = pages.into_iter().filter(|at| whole[*at..at + 8] != [0; 8]);
    let mut found = 0;
    for at in used {
        let file = File::options().write(true).open(&rows).unwrap();
        file.write_all_at(
            &whole[at..at + 64].iter().map(|byte| !byte).collect::<Vec<_>>(),
            at as u64,
        )
        .unwrap();
        let damaged = fs::read(&rows).unwrap();
        if let Err(told) = flipside(&check) {
            found += 1;
            assert!(told.contains("damaged"), "at {at}: {told}");
        }
        assert!(fs::read(&rows).unwrap() == damaged, "looking has written");
        fs::write(&rows, &whole).unwrap();
    }
    assert!(found > 0, "of no page's damage anything was told");
    let log = store.join("metadata/log");
    fs::rename(&log, path.join("elsewhere")).unwrap();
    refused(&check, "has lost its log");
    fs::rename(path.join("elsewhere"), &log).unwrap();
    assert!(flipside(&check).unwrap().contains("the metadata store is sound"));
}
