//! Consistency groups of targets as processes, with a metadata server: made, listed, committed at
//! one cut, gone back together, deleted.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

#[path = "support/gate.rs"]
mod gate;
mod support;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use flipside::client::{ApplyError, Transaction};
use gate::Gate;
use nix::sys::signal::Signal;
use serde_json::Value;
use support::metadata_server::{ANY_PORT, Server};
use support::nbd_client::Client;
use support::programs::{PATIENCE, directory, try_run, wait_for};
use support::target::{
    AT_THE_SERVER, BINARY, IN_NVRAM, ON_THE_DEVICE, PLACES, Place, Service, Target, format_at,
};

const DEVICE: u64 = 100 << 20;
const BLOCK: usize = 4096;

fn flipside(arguments: &[&str]) -> Result<String, String> {
    try_run(BINARY, &arguments.iter().map(OsStr::new).collect::<Vec<_>>())
}

fn refused(arguments: &[&str], text: &str) {
    let told = flipside(arguments).expect_err("it is refused");
    assert!(told.contains(text), "'{text}' is not in: {told}");
}

/// A pool with a volume `data` and one of another name, in a directory of its own.
fn pool(directory: &Path, name: &str, mds: &[&str]) -> Service {
    pool_at(ON_THE_DEVICE, directory, name, mds)
}

/// The same, with its flags at a place.
fn pool_at(place: Place, directory: &Path, name: &str, mds: &[&str]) -> Service {
    let directory = directory.join(name);
    fs::create_dir(&directory).unwrap();
    let device = directory.join("device");
    fs::File::create(&device).unwrap().set_len(DEVICE).unwrap();
    let own = format!("{name}=8M");
    let volumes = ["--volume", "data=8M", "--volume", &own];
    format_at(place, &device, &[mds, volumes.as_slice()].concat());
    let more = ["--commit-interval", "never"];
    let arguments = mds.iter().chain(&more).map(ToString::to_string);
    let arguments = arguments.chain((place.serve)(&directory)).collect();
    Service { arguments, ..Service::new(&directory, &device) }
}

fn control(service: &Service) -> String {
    service.directory.join("control.sock").display().to_string()
}

/// The group of that name, as it is listed.
fn listed(mds: &[&str], name: &str) -> Value {
    let list = flipside(&[["group", "list", "--json"].as_slice(), mds].concat()).unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    list.as_array().unwrap().iter().find(|of| of["name"] == name).cloned().unwrap_or_default()
}

fn commit(service: &Service, group: &str) -> Result<String, String> {
    flipside(&["commit", "--group", group, "--control", &control(service)])
}

fn write(client: &mut Client, byte: u8) {
    client.write(0, &[byte; BLOCK]).unwrap();
}

/// The volume's first byte. A client that connects while the group is on its way back is told so,
/// and connects again.
fn first(target: &Target, volume: &str) -> u8 {
    wait_for("a client that may stay", PATIENCE, || {
        target.connect(volume).read(0, 1).ok().map(|bytes| bytes[0])
    })
}

/// Goal: a group of two targets: a flush of one makes durable what was written to both, killed
/// members come back to one cut, survivors included, who tell their clients; a decided commit
/// outlives the server; what a group holds is not deleted. So it is with the flags at any place.
#[test]
fn two_targets_commit_together() {
    PLACES.into_iter().for_each(commit_together);
}

fn commit_together(place: Place) {
    let directory = directory();
    let path = directory.path();
    let server = Server::start(path, &["--listen", ANY_PORT]);
    let at = server.at.to_string();
    let mds = ["--mds", at.as_str()];
    let (one, two) = (pool(path, "one", &mds), pool_at(place, path, "two", &mds));
    let (first_target, second_target) = (one.serve(), two.serve());
    refused(&[["group", "create", "pair", "data", "two"].as_slice(), &mds].concat(), "POOL:NAME");
    flipside(&[["group", "create", "pair", "one", "two"].as_slice(), &mds].concat()).unwrap();
    refused(&["volume", "delete", "one", "--control", &control(&one)], "consistency group");
    let group = listed(&mds, "pair");
    assert_eq!((&group["trouble"], group["volumes"].as_array().unwrap().len()), (&Value::Null, 2));

    let (mut a, mut b) = (first_target.connect("one"), second_target.connect("two"));
    write(&mut a, 1);
    write(&mut b, 1);
    b.flush().unwrap();
    let cut = commit(&one, "pair").unwrap();
    assert!(cut.starts_with("mds-"), "{cut}");
    write(&mut a, 2);
    write(&mut b, 2);
    second_target.kill();
    let second_target = two.serve();
    wait_for("the survivor's return", PATIENCE, || {
        (a.read(0, 1).is_err() || a.write(4096, &[9; BLOCK]).is_err()).then_some(())
    });
    assert_eq!((first(&first_target, "one"), first(&second_target, "two")), (1, 1));
    assert_eq!(listed(&mds, "pair")["life"], 2);

    let (mut a, mut b) = (first_target.connect("one"), second_target.connect("two"));
    write(&mut b, 3);
    write(&mut a, 3);
    a.flush().unwrap();
    let server = server.restart(path, &[], || ());
    first_target.kill();
    second_target.kill();
    let (first_target, second_target) = (one.serve(), two.serve());
    assert_eq!((first(&first_target, "one"), first(&second_target, "two")), (3, 3));

    assert!(first_target.stop().success());
    assert!(second_target.stop().success());
    assert_eq!(listed(&mds, "pair")["stage"], "rest");
    flipside(&[["group", "delete", "pair"].as_slice(), &mds].concat()).unwrap();
    assert_eq!(listed(&mds, "pair"), Value::Null);
    assert_eq!(server.signal(Signal::SIGTERM), Some(0));
    flipside(&["check", "--mds-store", path.join("store").to_str().unwrap()]).unwrap();
}

/// Goal: a group of one target with its own metadata server, through its control socket.
#[test]
fn a_group_of_one_target() {
    let directory = directory();
    let one = pool(directory.path(), "one", &[]);
    let target = one.serve();
    let control = control(&one);
    let at = ["--control", control.as_str()];
    flipside(&[["group", "create", "g", "data", "one"].as_slice(), &at].concat()).unwrap();
    let mut client = target.connect("data");
    write(&mut client, 5);
    commit(&one, "g").unwrap();
    refused(&["commit", "--group", "h", "--control", &control], "no volume of group h");
    target.kill();
    let target = one.serve();
    assert_eq!(first(&target, "data"), 5);
    assert_eq!(listed(&at, "g")["volumes"][0]["pool"], Value::Null);
    flipside(&[["group", "delete", "g"].as_slice(), &at].concat()).unwrap();
    flipside(&["volume", "delete", "one", "--control", &control]).unwrap();
}

/// Puts writes into a file: each of a target's socket, a volume, an offset and a byte for a whole
/// block.
fn writes_file(directory: &Path, writes: &[(&Service, &str, u64, u8)]) -> String {
    let write = |(service, volume, offset, byte): &(&Service, &str, u64, u8)| {
        let hex = format!("{byte:02x}").repeat(BLOCK);
        let target = control(service);
        serde_json::json!({ "target": target, "volume": volume, "offset": offset, "hex": hex })
    };
    let writes: Vec<Value> = writes.iter().map(write).collect();
    let path = directory.join("writes.json");
    fs::write(&path, serde_json::json!({ "writes": writes }).to_string()).unwrap();
    path.display().to_string()
}

/// Goal: writes to two volumes of one target take place together and are durable, by the command
/// and by the library; what cannot be one request is refused, with what to do.
#[test]
fn atomic_requests_of_one_target() {
    let directory = directory();
    let mut one = pool(directory.path(), "one", &[]);
    one.arguments.extend(["--txn-max", "64K"].map(str::to_owned));
    let target = one.serve();
    let at = control(&one);
    let path = directory.path();
    let file = writes_file(path, &[(&one, "data", 0, 1), (&one, "one", 8192, 1)]);
    refused(&["txn", "apply", &file], "flipside group create");
    flipside(&["group", "create", "g", "data", "one", "--control", &at]).unwrap();
    write(&mut target.connect("data"), 9);
    target.connect("one").write(4096, &[7; BLOCK]).unwrap();
    flipside(&["txn", "apply", &file]).unwrap();
    let large: Vec<_> = (0..17).map(|block| (&one, "data", block * 4096, 3)).collect();
    refused(&["txn", "apply", &writes_file(path, &large)], "--txn-max");
    let found = path.join("found.json");
    let text = r#"{"writes": [{"volume": "data", "offset": 5000, "text": "hello"}]}"#;
    fs::write(&found, text).unwrap();
    let found = found.display().to_string();
    flipside(&["txn", "apply", &found, "--control", &at]).unwrap();
    let status = flipside(&["status", "--json", "--control", &at]).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&status).unwrap()["txn_max"], 64 << 10);
    target.kill();
    let target = one.serve();
    let mut data = target.connect("data");
    assert_eq!((data.read(0, 1).unwrap()[0], data.read(5000, 5).unwrap()), (1, b"hello".to_vec()));
    let mut other = target.connect("one");
    assert_eq!((other.read(8192, 1).unwrap()[0], other.read(4096, 1).unwrap()[0]), (1, 7));

    let mut transaction = Transaction::new();
    transaction.write(&at, "data", 0, vec![4; 10]).write(&at, "one", 0, vec![4; 10_000]);
    transaction.apply().unwrap();
    assert_eq!((first(&target, "data"), first(&target, "one")), (4, 4));
    target.kill();
    assert!(matches!(transaction.apply(), Err(ApplyError::Unreachable { .. })));
}

/// Goal: writes to volumes of two targets take place together; where one of them is killed in the
/// middle, both have all of it or nothing of it afterwards, and all where it was told so.
#[test]
fn atomic_requests_of_two_targets() {
    let directory = directory();
    let path = directory.path();
    let server = Server::start(path, &["--listen", ANY_PORT]);
    let at = server.at.to_string();
    let mds = ["--mds", at.as_str()];
    let (one, two) = (pool(path, "one", &mds), pool(path, "two", &mds));
    let (mut first_target, mut second_target) = (one.serve(), two.serve());
    let writes = |byte| writes_file(path, &[(&one, "one", 0, byte), (&two, "two", 0, byte)]);
    refused(&["txn", "apply", &writes(1)], "flipside group create");
    flipside(&[["group", "create", "pair", "one", "two"].as_slice(), &mds].concat()).unwrap();
    let applied = flipside(&["txn", "apply", &writes(1)]).unwrap();
    assert!(applied.starts_with("mds-"), "{applied}");
    assert_eq!((first(&first_target, "one"), first(&second_target, "two")), (1, 1));

    let mut before = 1;
    for round in 2..10_u8 {
        let file = writes(round);
        let mut command = Command::new(BINARY);
        command.args(["txn", "apply", &file]).stdin(Stdio::null()).stderr(Stdio::null());
        let mut applying = command.stdout(Stdio::null()).spawn().unwrap();
        // Whatever it meets: what counts is what is found.
        std::thread::sleep(Duration::from_millis(5 * u64::from(round)));
        if round.is_multiple_of(2) {
            first_target.kill();
            first_target = one.serve();
        } else {
            second_target.kill();
            second_target = two.serve();
        }
        let applied = applying.wait().unwrap().success();
        wait_for("the group", PATIENCE, || commit(&one, "pair").ok());
        let found = (first(&first_target, "one"), first(&second_target, "two"));
        assert!(found == (before, before) || found == (round, round), "round {round}: {found:?}");
        assert!(!applied || found.0 == round, "round {round}: it was applied");
        before = found.0;
    }
    wait_for("a request", PATIENCE, || flipside(&["txn", "apply", &writes(99)]).ok());
    assert_eq!((first(&first_target, "one"), first(&second_target, "two")), (99, 99));
    assert!(first_target.stop().success());
    assert!(second_target.stop().success());
}

/// Who is killed while all have voted and one vote has not been heard.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// A target; it starts again before the vote is heard, or after it.
    Target(usize, bool),
    Server,
}

/// Goal: an atomic request over three targets, of which one, or the server, is killed after all
/// have prepared and before the decision: it takes place nowhere where the server had not heard all
/// votes when that one came back, and everywhere where it had.
#[test]
fn killed_between_prepare_and_decision() {
    const NAMES: [&str; 3] = ["one", "two", "three"];
    let directory = directory();
    let path = directory.path();
    let mut server = Server::start(path, &["--listen", ANY_PORT]);
    let at = server.at.to_string();
    let mds = ["--mds", at.as_str()];
    let gates = [(); 3].map(|()| Gate::to(server.at));
    let places = [ON_THE_DEVICE, AT_THE_SERVER, IN_NVRAM];
    let services = [0, 1, 2].map(|which| {
        let way = gates[which].at.to_string();
        pool_at(places[which], path, NAMES[which], &["--mds", &way])
    });
    let mut targets = [0, 1, 2].map(|which| services[which].serve());
    flipside(&[["group", "create", "all"].as_slice(), &NAMES, &mds].concat()).unwrap();
    let (mut before, withheld) = (0, 2);
    for (round, victim) in [
        Victim::Target(0, false),
        Victim::Target(0, true),
        Victim::Target(withheld, false),
        Victim::Server,
        Victim::Target(1, true),
    ]
    .into_iter()
    .enumerate()
    {
        wait_for("the group", PATIENCE, || commit(&services[1], "all").ok());
        let byte = round as u8 + 1;
        let writes: Vec<_> = (0..3).map(|nth| (&services[nth], NAMES[nth], 0, byte)).collect();
        let file = writes_file(path, &writes);
        let last = gates[0].voted();
        gates[withheld].close(true);
        let mut command = Command::new(BINARY);
        command.args(["txn", "apply", &file]).stdin(Stdio::null()).stderr(Stdio::null());
        let mut applying = command.stdout(Stdio::null()).spawn().unwrap();
        wait_for("all votes", PATIENCE, || {
            let votes = [0, 1, 2].map(|nth| gates[nth].voted());
            (votes.iter().all(|vote| *vote == votes[0]) && votes[0] > last).then_some(())
        });
        let heard = match victim {
            Victim::Target(which, heard) => {
                targets[which].strike();
                gates[withheld].close(!heard);
                if heard {
                    let decided = || (listed(&mds, "all")["stage"] == "committing").then_some(());
                    wait_for("the decision", PATIENCE, decided);
                }
                targets[which] = services[which].serve();
                heard
            }
            Victim::Server => {
                server = server.restart(path, &[], || ());
                false
            }
        };
        gates[withheld].close(false);
        let applied = applying.wait().unwrap().success();
        wait_for("the group", PATIENCE, || commit(&services[1], "all").ok());
        let found = [0, 1, 2].map(|nth| first(&targets[nth], NAMES[nth]));
        let expected = if heard { byte } else { before };
        assert_eq!(found, [expected; 3], "{victim:?}");
        assert!(heard || !applied, "{victim:?}: it was applied");
        before = expected;
    }
    targets.into_iter().for_each(|target| assert!(target.stop().success()));
}
