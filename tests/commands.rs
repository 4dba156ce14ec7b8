//! The commands on their own: wrong command lines, and devices that must be refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use assert_cmd::Command;
use flipside::format::group::TransactionId;
use flipside::format::ids::{ExtentId, ExtentRun, Incarnation, PairId, PoolId};
use flipside::format::record::{self, Binding, Record};
use flipside::mds::catalog::PoolSpec;
use flipside::mds::groups::prepared::Part;
use flipside::mds::groups::rows::Deletion;
use flipside::mds::overview::Section;
use flipside::mds::raw::{self, RawForget};
use flipside::mds::records::ServerStatus;
use flipside::mds::wire::{self, Header, Kind, Operation};
use flipside::txn::{COORDINATOR, GroupId};
use support::device::attach;
use support::programs::{PATIENCE, directory, installed, run, skip, try_run, wait_for};
use support::target::Service;
use zerocopy::IntoBytes as _;

const SIZE: u64 = 64 << 20;
const SUPERBLOCK: u64 = 4096;
/// Exit codes as `src/cli/mod.rs` documents them.
const FAILED: i32 = 1;
const WRONG_USE: i32 = 2;

fn flipside(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("flipside").expect("the binary was built");
    command.args(arguments).timeout(PATIENCE);
    command
}

/// What the command says on its standard error when it ends with `code`.
fn says(arguments: &[&str], code: i32) -> String {
    let output = flipside(arguments).assert().code(code).get_output().stderr.clone();
    String::from_utf8(output).unwrap()
}

#[track_caller]
fn refused(arguments: &[&str], words: &str) {
    let error = says(arguments, FAILED);
    assert!(error.contains(words), "'{words}' is not in: {error}");
}

fn file(directory: &Path, name: &str, size: u64) -> String {
    let path = directory.join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path.to_str().unwrap().to_owned()
}

fn overwrite(path: &str, offset: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

fn read(path: &str, offset: u64, len: usize) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    let mut bytes = vec![0; len];
    file.read_exact(&mut bytes).unwrap();
    bytes
}

/// Goal: a command line that makes no sense ends with its own code and names what is wrong.
#[test]
fn wrong_command_lines() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["explode"], "explode"),
        (&["format"], "DEVICE"),
        (&["serve"], "DEVICE"),
        (&["format", "--volume", "v", "x"], "NAME=SIZE"),
        (&["format", "--volume", "a/b=1M", "x"], "name"),
        (&["format", "--volume", "v=1MB", "x"], "powers of two"),
        (&["format", "--journal-reserve", "10", "x"], "percentage"),
        (&["format", "--extent-size", "big", "x"], "size"),
        (&["serve", "--listen", "/run/x", "x"], "unix:PATH"),
        (&["serve", "--commit-interval", "0s", "x"], "time"),
        (&["serve", "--settle", "never", "x"], "pressure"),
        (&["serve", "--warn-full", "90", "x"], "percentages"),
        (&["serve", "--socket-mode", "999", "x"], "octal"),
        (&["status", "--xml"], "--xml"),
    ];
    for (arguments, words) in cases {
        let error = says(arguments, WRONG_USE);
        assert!(error.contains(words), "{arguments:?}: '{words}' is not in: {error}");
    }
}

/// Goal: every command explains itself by examples, and the exit codes are told.
#[test]
fn help_shows_examples() {
    let commands = [
        "format",
        "serve",
        "status",
        "check",
        "metadata",
        "commit",
        "settle",
        "volume",
        "group",
        "txn",
        "flags",
        "completions",
    ];
    for command in commands {
        let output = flipside(&[command, "--help"]).assert().success().get_output().stdout.clone();
        let text = String::from_utf8(output).unwrap();
        for part in ["Usage", "Examples:", &format!("flipside {command}")] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }
    let output = flipside(&["--help"]).assert().success().get_output().stdout.clone();
    let text = String::from_utf8(output).unwrap();
    assert!(text.contains("Examples:") && text.contains("Exit codes:"), "{text}");
    commands.iter().for_each(|command| assert!(text.contains(command), "{command} in:\n{text}"));
}

/// Goal: what cannot be formatted is refused with the reason, and left as it was.
#[test]
fn unusable_devices_are_refused() {
    let dir = directory();
    let absent = dir.path().join("absent").to_str().unwrap().to_owned();
    refused(&["format", &absent], "no such device or file");
    refused(&["format", dir.path().to_str().unwrap()], "neither a block device nor a regular file");
    refused(&["format", &file(dir.path(), "empty", 0)], "no bytes");
    let small = file(dir.path(), "small", 8 << 20);
    refused(&["format", &small], "at least");
    let device = file(dir.path(), "device", SIZE);
    refused(&["format", &device, &device], "named twice");
    refused(&["format", "--block-size", "3000", &device], "power of two");
    refused(&["format", "--extent-size", "16K", &device], "blocks");
    refused(&["format", "--volume", "v=1000", &device], "multiple of the block size");
    refused(&["format", "--volume", "v=1M", "--volume", "v=1M", &device], "two volumes");
    refused(&["serve", &device], "format it first");
    assert!(fs::read(&device).unwrap().iter().all(|&byte| byte == 0), "nothing was written");
}

/// Goal: what others would miss is not overwritten unless it is asked for; a pool is one of these.
#[test]
fn contents_are_not_overwritten() {
    let dir = directory();
    let device = file(dir.path(), "device", SIZE);
    overwrite(&device, 4086, b"SWAPSPACE2");
    refused(&["format", &device], "swap");
    assert_eq!(read(&device, 4086, 10), b"SWAPSPACE2");
    flipside(&["format", "--force", &device]).assert().success();
    refused(&["format", &device], "Flipside pool");
    overwrite(&device, 0, &[0; SUPERBLOCK as usize]);
    refused(&["format", &device], "second superblock");
    flipside(&["format", "--force", &device]).assert().success();
    if installed(&["mkfs.ext4", "mkfs.xfs"]) {
        for (program, size) in [("mkfs.ext4", SIZE), ("mkfs.xfs", 512 << 20)] {
            let device = file(dir.path(), program, size);
            run(program, arguments!["-q", &device]);
            refused(&["format", &device], &program["mkfs.".len()..].to_lowercase());
        }
    }
}

/// Goal: a device that is served, or whose sectors are too large or cannot be written, is refused.
#[test]
fn devices_in_use_are_refused() {
    let dir = directory();
    let device = file(dir.path(), "device", SIZE);
    flipside(&["format", &device]).assert().success();
    let target = Service::new(dir.path(), Path::new(&device)).serve();
    let control = dir.path().join("second").to_str().unwrap().to_owned();
    refused(&["serve", "--control", &control, &device], "in use");
    refused(&["format", "--force", &device], "in use");
    assert!(target.stop().success());
    let backing = PathBuf::from(file(dir.path(), "backing", SIZE));
    let loop_device = |flag: &str| {
        let made = try_run("losetup", arguments!["--find", "--show", flag, &backing]);
        made.map(|name| name.trim().to_owned())
    };
    // Asked first, so that what is not allowed here is said once.
    if let Err(reason) = attach(&backing) {
        skip(&format!("loop devices: {reason}"));
        return;
    }
    for (flag, words) in [("--read-only", "read-only"), ("--sector-size=4096", "sectors of 4096")] {
        let name = loop_device(flag).unwrap();
        let error = says(&["format", "--block-size=512", "--extent-size=64K", &name], FAILED);
        run("losetup", arguments!["--detach", &name]);
        assert!(error.contains(words), "{error}");
    }
}

/// Goal: one damaged superblock is survived, said and mended, two are refused, a shrunk device is
/// refused and a grown one is not.
#[test]
fn damaged_and_resized_devices() {
    let dir = directory();
    let device = file(dir.path(), "device", SIZE);
    flipside(&["format", &device]).assert().success();
    let whole = fs::read(&device).unwrap();
    let service = Service::new(dir.path(), Path::new(&device));
    let (first, second) = (100, SIZE - SUPERBLOCK + 100);
    for (damage, words) in [(first, "first superblock is damaged"), (second, "second superblock")] {
        fs::write(&device, &whole).unwrap();
        overwrite(&device, damage, b"damage");
        let target = service.serve();
        assert!(target.log().contains(words), "{}", target.log());
        assert!(target.stop().success());
        let mended = read(&device, damage - 100, SUPERBLOCK as usize);
        assert!(mended == whole[damage as usize - 100..][..SUPERBLOCK as usize], "it is mended");
    }
    [first, second].into_iter().for_each(|at| overwrite(&device, at, b"damage"));
    refused(&["serve", &device], "both superblocks are damaged");
    fs::write(&device, &whole).unwrap();
    let resize = |size| File::options().write(true).open(&device).unwrap().set_len(size).unwrap();
    resize(SIZE - (1 << 20));
    refused(&["serve", &device], "a part of it is missing");
    fs::write(&device, &whole).unwrap();
    resize(SIZE + (1 << 20));
    assert!(service.serve().stop().success());
}

/// Goal: a pool of several devices is served when all are named, in any order, and only then.
#[test]
fn pools_of_several_devices() {
    let dir = directory();
    let devices: Vec<_> = ["a", "b", "c"].map(|name| file(dir.path(), name, SIZE)).to_vec();
    let [a, b, c] = devices.as_slice() else { unreachable!() };
    flipside(&["format", "--volume", "data=120M", a, b, c]).assert().success();
    let mut service = Service::new(dir.path(), Path::new(c));
    service.devices.extend([a, b].map(PathBuf::from));
    let target = service.serve();
    let mut client = target.connect("data");
    let extent = 1 << 20;
    for i in 0..120u64 {
        client.write(i * extent, &[i as u8 + 1; 8192]).unwrap();
    }
    client.flush().unwrap();
    target.kill();
    let target = service.serve();
    let mut client = target.connect("data");
    for i in 0..120u64 {
        assert_eq!(client.read(i * extent, 8192).unwrap(), vec![i as u8 + 1; 8192], "extent {i}");
    }
    assert!(target.stop().success());
    refused(&["serve", a, b], "device 3 is missing");
    refused(&["serve", b], "device 1 and 3");
    let other = file(dir.path(), "other", SIZE);
    flipside(&["format", &other]).assert().success();
    refused(&["serve", a, &other], "different pools");
}

/// Goal: a format that is killed leaves the old pool, no pool, or the new one, and never a part.
#[test]
fn a_format_cut_short_leaves_no_half_pool() {
    let dir = directory();
    let (a, b) = (file(dir.path(), "a", SIZE), file(dir.path(), "b", SIZE));
    let mut service = Service::new(dir.path(), Path::new(&a));
    service.devices.push(PathBuf::from(&b));
    let arguments = ["format", "--force", "--volume", "new=8M", &a, &b];
    let mut outcomes = [0; 2];
    for delay_ms in (0..150).step_by(6) {
        flipside(&["format", "--force", "--volume", "old=8M", &a, &b]).assert().success();
        let mut format = std::process::Command::new(env!("CARGO_BIN_EXE_flipside"))
            .args(arguments)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        format.kill().unwrap();
        format.wait().unwrap();
        let mut target = service.start();
        if target.ready_or_ended() {
            outcomes[0] += 1;
            let [volume] = target.status().volumes.try_into().unwrap();
            target.connect(&volume.name).write(0, &[1; 4096]).unwrap();
            assert!(target.stop().success());
        } else {
            outcomes[1] += 1;
            assert_eq!(target.wait_ended(PATIENCE).code(), Some(FAILED));
        }
    }
    assert!(outcomes[0] > 0, "{outcomes:?}");
}

/// Goal: without a target the commands say so; with one they reach it, for a volume or all.
#[test]
fn targets_are_asked() {
    let dir = directory();
    let device = file(dir.path(), "device", SIZE);
    let control = dir.path().join("control.sock").to_str().unwrap().to_owned();
    refused(&["status", "--control", &control], "no target answers");
    flipside(&["format", "--volume", "a=8M", "--volume", "b=8M", &device]).assert().success();
    let target = Service::new(dir.path(), Path::new(&device)).serve();
    target.connect("b").write(0, &[7; 4096]).unwrap();
    for command in ["commit", "settle"] {
        flipside(&[command, "--control", &control]).assert().success();
        flipside(&[command, "b", "--control", &control]).assert().success();
        refused(&[command, "c", "--control", &control], "no volume is named c");
    }
    let status = target.status();
    assert_eq!((status.client_bytes_written, status.volumes.len()), (4096, 2));
    assert!(status.commits > 0);
    let mut client = target.connect("b");
    wait_for("rates of the writes", PATIENCE, || {
        client.write(0, &[7; 4096]).unwrap();
        let rates = target.status().rates;
        (rates.writes > 0.0 && rates.bytes_written > 0 && rates.over_s > 0.0).then_some(())
    });
    wait_for("the one client", PATIENCE, || {
        let volumes = target.status().volumes;
        let volume = volumes.iter().find(|volume| volume.name == "b").unwrap();
        (volume.clients == 1 && volume.allocated == 1 << 20).then_some(())
    });
    drop(client);
    let text = wait_for("all waits to end", PATIENCE, || {
        let text = flipside(&["status", "--control", &control]).assert().success();
        let text = String::from_utf8(text.get_output().stdout.clone()).unwrap();
        text.contains("waiting          nothing").then_some(text)
    });
    let row = text.lines().find(|line| line.starts_with(" b ")).expect("b has a row");
    assert!(row.contains("8.0 MiB") && row.contains("serving"), "{text}");
    assert!(target.stop().success());
}

/// A classic capture of raw IPv4 with these UDP datagrams, from port 7 to port 10810.
fn capture(datagrams: &[Vec<u8>]) -> Vec<u8> {
    let header: [u32; 6] = [0xA1B2_C3D4, 0x0004_0002, 0, 0, 65535, 101];
    let mut bytes: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    for (second, payload) in datagrams.iter().enumerate() {
        let (udp, ip) = (8 + payload.len(), 28 + payload.len());
        let record = [second as u32, 5, ip as u32, ip as u32];
        bytes.extend(record.into_iter().flat_map(u32::to_le_bytes));
        bytes.extend([0x45, 0, (ip >> 8) as u8, ip as u8, 0, 0, 0, 0, 64, 17, 0, 0]);
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2, 0, 7, 0x2A, 0x3A]);
        bytes.extend([(udp >> 8) as u8, udp as u8, 0, 0]);
        bytes.extend(payload);
    }
    bytes
}

/// Goal: a capture is shown, each operation with what is in it; what is of another protocol is
/// counted, as JSON as well; what is no capture is refused.
#[test]
fn a_capture_is_shown() {
    let dir = directory();
    let path = dir.path().join("mds.pcap");
    let shown = path.to_str().unwrap();
    let datagram = |kind, operation, body: &[u8]| {
        let header = Header { kind, operation, session: 0xfeed, sequence: 9, detail: 0 };
        wire::encode(&header, body, wire::PAYLOAD_MIN).remove(0)
    };
    let ask = |operation, body: &[u8]| datagram(Kind::Request, operation, body);
    let answer = |operation, body: &[u8]| datagram(Kind::Reply(Ok(())), operation, body);
    let told = [5_u64, u64::MAX].map(u64::to_le_bytes).concat();
    let record = Record::Binding { pair: PairId(77), binding: Binding::FREE };
    let devices = vec![ExtentRun { start: ExtentId(3), count: 40 }];
    let spec = PoolSpec { extent_size: 65536, devices, reserve: 4 };
    let pool = PoolId([0xAB; 16]);
    let (coordinator, incarnation) = (COORDINATOR, Incarnation(1));
    let transaction = TransactionId { coordinator, incarnation, number: 9 };
    let part = Part { transaction, records: Vec::new() };
    let deletion = Deletion { group: GroupId(3), force: true };
    let expected = [
        (ask(Operation::HardenExtentFlags, &record::pack(&[record])), "PairId(77)"),
        (answer(Operation::HardenExtentFlags, &told), "view 5 horizon -"),
        (answer(Operation::Renew, &told), "view 5 horizon -"),
        (answer(Operation::Transact, &told), "view 5 horizon -"),
        (ask(Operation::Changes, &told), "since view 5"),
        (
            answer(Operation::Changes, &[5_u64.to_le_bytes().as_slice(), &[0; 4]].concat()),
            "up to view 5",
        ),
        (answer(Operation::Lines, &5_u64.to_le_bytes()), "view 5"),
        (ask(Operation::RegisterPool, &raw::pool_spec_body(pool, &spec)), "extents 3+40"),
        (ask(Operation::ForgetPool, RawForget::new(pool, 6, true).as_bytes()), "registered as 6"),
        (ask(Operation::Overview, &Section::Sessions(8).body(100)), "Sessions(8)"),
        (ask(Operation::PrepareExtentFlags, &part.body()), "for mds-1-9"),
        (ask(Operation::DeleteGroup, &deletion.body()), "group 3 by force"),
        (answer(Operation::Status, &[0; 8 * ServerStatus::COUNT]), "unauthenticated: 0"),
    ];
    let mut datagrams: Vec<Vec<u8>> = expected.iter().map(|(bytes, _)| bytes.clone()).collect();
    datagrams.push(b"another protocol".to_vec());
    fs::write(&path, capture(&datagrams)).unwrap();
    let output = flipside(&["wire-dump", "--verbose", shown]).assert().success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    let blocks: Vec<&str> = text.split_inclusive('\n').collect();
    let heads = blocks.iter().filter(|line| !line.starts_with(' ')).count();
    assert_eq!(heads, expected.len(), "{text}");
    for (_, words) in expected {
        let lines = text.lines().filter(|line| line.starts_with("    "));
        assert!(lines.clone().any(|line| line.contains(words)), "'{words}' is not in: {text}");
    }
    assert!(text.contains("10.0.0.1:7 > 10.0.0.2:10810 request HardenExtentFlags"), "{text}");
    let rest = String::from_utf8(output.get_output().stderr.clone()).unwrap();
    assert!(rest.contains("1 datagrams of other protocols"), "{rest}");
    let output = flipside(&["wire-dump", "--json", shown]).assert().success();
    let lines = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["operation"], "HardenExtentFlags");
    fs::write(&path, "no capture").unwrap();
    refused(&["wire-dump", shown], "is no network capture");
}
