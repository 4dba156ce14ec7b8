//! The clients that people use, against an export in memory and against the real target.
//! `make setup` installs them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use flipside::front::nbd::Limits;
use support::device::Device;
use support::memory_server::{MemoryServer, SIZE};
use support::nbd_client::{Client, EPERM, FUA, TRIM, WRITE_ZEROES};
use support::programs::{directory, say, skip};
use support::target::{Service, format};

/// Runs a tool and gives its standard output; it must succeed.
fn run(tool: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(tool)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{tool}: {error}; `make setup` installs it"));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{tool} {arguments:?}: {status}\n{stdout}{stderr}");
    stdout.into_owned()
}

/// Goal: libnbd's nbdinfo sees both exports and what they offer.
#[test]
fn nbdinfo() {
    let server = MemoryServer::start(Limits::default());
    let info: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--json", &server.uri("vol1")])).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "vol1");
    assert_eq!(export["export-size"], SIZE);
    assert_eq!(export["contexts"][0], "base:allocation");
    for can in [
        "can_cache",
        "can_df",
        "can_fast_zero",
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
    ] {
        assert_eq!(export[can], true, "{can}");
    }
    let limits = (
        &export["block_size_minimum"],
        &export["block_size_preferred"],
        &export["block_size_maximum"],
    );
    assert_eq!(limits, (&1.into(), &4096.into(), &(32 << 20).into()));
    let list = run("nbdinfo", &["--list", &server.uri("")]);
    assert!(list.contains("export=\"vol0\"") && list.contains("export=\"vol1\""), "{list}");
}

/// Goal: nbdcopy copies in over several connections and qemu-img copies out again, without a
/// changed byte.
#[test]
fn nbdcopy_and_qemu_img() {
    let server = MemoryServer::start(Limits::default());
    let dir = tempfile::tempdir().unwrap();
    let (source, back) = (dir.path().join("source"), dir.path().join("back"));
    let bytes: Vec<u8> = (0..SIZE as u32 / 8)
        .flat_map(|index| u64::from(index / 4096).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        .collect();
    // The last blocks of the export fail.
    let good = SIZE as usize - 12288;
    fs::write(&source, &bytes[..good]).unwrap();
    run("nbdcopy", &["--flush", source.to_str().unwrap(), &server.uri("vol0")]);
    let image = format!(
        "driver=raw,size={good},file.driver=nbd,file.export=vol0,file.server.type=unix,\
         file.server.path={}",
        server.socket().display()
    );
    run("qemu-img", &["convert", "--image-opts", &image, "-O", "raw", back.to_str().unwrap()]);
    assert!(fs::read(&back).unwrap() == bytes[..good]);
    let mut client = Client::unix(&server.socket(), "vol0").unwrap();
    assert!(client.read(0, 1 << 20).unwrap() == bytes[..1 << 20]);
}

/// Goal: QEMU's client agrees about patterns, zeroes, discards and errors.
#[test]
fn qemu_io() {
    let server = MemoryServer::start(Limits::default());
    let uri = server.uri("vol0");
    let commands = [
        "write -P 0x5a 0 1M",
        "write -f -P 0xa5 1000 777",
        "read -P 0xa5 1000 777",
        "read -P 0x5a 1777 100000",
        "write -z 4096 8192",
        "read -P 0 4096 8192",
        "discard 65536 65536",
        "read -P 0 65536 65536",
        "aio_write -P 1 2M 1M",
        "aio_write -P 2 3M 1M",
        "aio_flush",
        "read -P 1 2M 1M",
        "read -P 2 3M 1M",
        "flush",
    ];
    let mut arguments = vec!["-f", "raw", "-t", "writeback"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    arguments.push(&uri);
    let output = run("qemu-io", &arguments);
    assert!(!output.contains("failed") && !output.contains("Pattern verification"), "{output}");
    let bad = format!("read {} 512", SIZE - 8192);
    let failed = Command::new("qemu-io").args(["-f", "raw", "-c", &bad, &uri]).output().unwrap();
    let said = [failed.stdout, failed.stderr].concat();
    assert!(String::from_utf8_lossy(&said).contains("Input/output error"));
}

/// Goal: fio verifies what it wrote, random sizes and offsets, several jobs.
#[test]
fn fio_verifies() {
    let server = MemoryServer::start(Limits::default());
    let uri = format!("--uri={}", server.uri("vol1"));
    let dir = tempfile::tempdir().unwrap();
    let aux = format!("--aux-path={}", dir.path().display());
    run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            &aux,
            "--rw=randwrite",
            "--bsrange=512-128k",
            "--blocksize_unaligned=1",
            "--iodepth=16",
            "--numjobs=3",
            "--size=16m",
            "--offset_increment=20m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fsync=16",
        ],
    );
    assert!(server.status("flushes_done") > 100);
    assert_eq!(server.status("connections_dropped"), 0);
}

/// Goal: the kernel client's own tool lists our exports over both kinds of socket, and where the
/// kernel has its client, a device that it attaches takes and gives bytes.
#[test]
fn nbd_client() {
    say_version("nbd-client");
    let server = MemoryServer::start(Limits::default());
    let socket = server.socket();
    let socket = socket.to_str().unwrap();
    for place in [&["127.0.0.1", &server.port.to_string()][..], &["-unix", socket]] {
        let list = run("nbd-client", &[&["-l"], place].concat());
        assert!(list.contains("vol0") && list.contains("vol1"), "{list}");
    }
    let device = "/dev/nbd15";
    if !nix::unistd::geteuid().is_root() || !Path::new(device).exists() {
        return skip("nbd-client attaches (needs root, and a kernel with /dev/nbd15)");
    }
    run("nbd-client", &["-unix", socket, "-N", "vol0", device]);
    fs::write(device, [0x5a; 8192]).unwrap();
    run("nbd-client", &["-d", device]);
    let mut client = Client::unix(&server.socket(), "vol0").unwrap();
    assert!(client.read(0, 8192).unwrap() == [0x5a; 8192]);
}

/// Goal: QEMU's own list of exports names ours, and what they offer.
#[test]
fn qemu_nbd_lists() {
    say_version("qemu-nbd");
    let server = MemoryServer::start(Limits::default());
    let list = run("qemu-nbd", &["--list", "-k", server.socket().to_str().unwrap()]);
    for part in ["exports available: 2", "'vol0'", "'vol1'", "base:allocation", "fast-zero"] {
        assert!(list.contains(part), "{list}");
    }
    // QEMU says so from 8.2 on.
    assert!(!list.contains("transaction size") || list.contains("transaction size: 64-bit"));
}

/// Goal: a whole session of libnbd, from patterns to what is refused, on a thin volume much larger
/// than its device; with extended headers where its version has them.
#[test]
fn nbdsh() {
    let dir = directory();
    let device = Device::create(dir.path(), "disk", 256 << 20);
    format(device.path(), &["--volume", "large=64G"]);
    let target = Service::new(dir.path(), device.path()).serve();
    let script = include_str!("support/nbdsh.py");
    let uri = target.uri("large");
    // The module is the system's Python's, whatever Python comes first.
    let path = format!("/usr/bin:{}", std::env::var("PATH").unwrap());
    let output = Command::new("nbdsh")
        .env("PATH", path)
        .args(["--base-allocation", "-u", &uri, "-c", script])
        .output()
        .unwrap_or_else(|error| panic!("nbdsh: {error}; `make setup` installs it"));
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("done\n"), "{said}{errors}");
    say(&format!("tested with {}", said.lines().next().unwrap()));
    assert!(target.stop().success());
}

/// Goal: with extended headers one request trims or zeroes terabytes, is durable where it says so,
/// and what is left is found again after a kill.
#[test]
fn large_ranges() {
    const TERABYTE: u64 = 1 << 40;
    let dir = directory();
    let device = Device::create(dir.path(), "disk", 256 << 20);
    format(device.path(), &["--volume", "large=2T"]);
    let service = Service::new(dir.path(), device.path());
    let target = service.serve();
    let mut client = Client::unix_extended(target.socket(), "large").unwrap();
    let places = [0, TERABYTE - 4096, TERABYTE, 2 * TERABYTE - 4096];
    places.iter().for_each(|&at| client.write(at, &[7; 4096]).unwrap());
    client.call_long(WRITE_ZEROES, 0, 4096, TERABYTE - 4096, &[]).unwrap();
    let trim = client.send_long(TRIM, FUA, TERABYTE + 4096, TERABYTE - 4096, &[]).unwrap();
    let reply = client.receive().unwrap();
    assert_eq!((reply.cookie, reply.result), (trim, Ok(Vec::new())));
    target.kill();
    let target = service.serve();
    let mut client = Client::unix_extended(target.socket(), "large").unwrap();
    let left: Vec<u8> = places.map(|at| client.read(at, 1).unwrap()[0]).to_vec();
    assert_eq!(left, [7, 0, 7, 0]);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < 2 * TERABYTE {
        let found = client.status_long(0, at, 2 * TERABYTE - at, None).unwrap();
        for (length, flags) in found {
            at += length;
            match runs.last_mut() {
                Some(last) if last.1 == flags => last.0 += length,
                _ => runs.push((length, flags)),
            }
        }
    }
    let holes = TERABYTE - 4096;
    assert_eq!(runs, [(4096, 0), (holes, 3), (4096, 0), (holes, 3)]);
    assert!(target.stop().success());
}

/// Says which version of a client is tested.
fn say_version(tool: &str) {
    let version = run(tool, &["--version"]);
    say(&format!("tested with {}", version.lines().next().unwrap_or(tool)));
}

/// The bytes of an export that have contents, as nbdinfo maps them; the map must cover it all.
fn used_by_nbdinfo(uri: &str) -> u64 {
    let map: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--map", "--json", uri])).unwrap();
    let (mut end, mut used) = (0, 0);
    for run in map.as_array().unwrap() {
        let number = |name: &str| run[name].as_u64().unwrap();
        assert_eq!(number("offset"), end);
        end += number("length");
        match number("type") {
            0 => used += number("length"),
            kind => assert_eq!(kind, 3, "a hole that reads as zeros"),
        }
    }
    assert_eq!(end, VOLUME);
    used
}

/// The same as qemu-img maps it.
fn used_by_qemu_img(uri: &str) -> u64 {
    let map: serde_json::Value =
        serde_json::from_str(&run("qemu-img", &["map", "-f", "raw", "--output=json", uri]))
            .unwrap();
    let runs = map.as_array().unwrap();
    assert_eq!(runs.iter().map(|run| run["length"].as_u64().unwrap()).sum::<u64>(), VOLUME);
    let used = runs.iter().filter(|run| run["data"] == true);
    used.map(|run| run["length"].as_u64().unwrap()).sum()
}

/// Size of the real target's volume.
const VOLUME: u64 = 64 << 20;

/// Goal: on the real target nbdcopy and qemu-img copy and compare without a changed byte, sparse
/// stays sparse, and both see the same map; QEMU's patterns hold; read-only is read-only.
#[test]
fn the_real_target() {
    for tool in ["nbdinfo", "nbdcopy", "qemu-img", "qemu-io"] {
        say_version(tool);
    }
    let dir = directory();
    let device = Device::create(dir.path(), "disk", 256 << 20);
    format(device.path(), &["--volume", "vol0=64M"]);
    let mut service = Service::new(dir.path(), device.path());
    let target = service.serve();
    let uri = target.uri("vol0");
    assert_eq!((used_by_nbdinfo(&uri), used_by_qemu_img(&uri)), (0, 0));

    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (source, back, converted) = (path("source"), path("back"), path("converted"));
    let mut bytes = vec![0; VOLUME as usize];
    let parts = [0..1 << 20, 4 << 20..(4 << 20) + (64 << 10), (60 << 20) + 4096..61 << 20];
    for part in parts.clone() {
        bytes[part].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8 | 1);
    }
    fs::write(&source, &bytes).unwrap();
    run("nbdcopy", &["--flush", "--sparse=4096", &source, &uri]);
    let used: u64 = parts.map(|part| part.len() as u64).iter().sum();
    assert_eq!((used_by_nbdinfo(&uri), used_by_qemu_img(&uri)), (used, used));
    run("nbdcopy", &[&uri, &back]);
    assert!(fs::read(&back).unwrap() == bytes);
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, &converted]);
    assert!(fs::read(&converted).unwrap() == bytes);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &uri]);

    let commands = [
        "write -P 0x5a 8M 1M",
        "write -P 0xa5 8389000 777",
        "read -P 0xa5 8389000 777",
        "write -z -u -n 8M 64k",
        "read -P 0 8M 64k",
        "discard 9M 4k",
        "write -z 8912896 10000",
        "read -P 0 8912896 10000",
        "read -P 0x5a 8922896 4096",
        "flush",
    ];
    let mut arguments = vec!["-f", "raw", "-t", "writeback", "-d", "unmap"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    arguments.push(&uri);
    let output = run("qemu-io", &arguments);
    assert!(!output.contains("failed") && !output.contains("Pattern verification"), "{output}");
    assert_eq!(used_by_nbdinfo(&uri), used_by_qemu_img(&uri));
    let before = used_by_nbdinfo(&uri);
    assert!(target.stop().success());

    service.arguments.push("--read-only".into());
    let target = service.serve();
    let info: serde_json::Value = serde_json::from_str(&run("nbdinfo", &["--json", &uri])).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true);
    assert_eq!(used_by_nbdinfo(&uri), before);
    let refused = target.connect("vol0").write(0, &[1; 4096]).unwrap_err();
    assert_eq!(refused.errno(), Some(EPERM));
    assert!(target.stop().success());
}
