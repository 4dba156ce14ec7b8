//! What ways to attach a volume cost, beside each other in one machine: absolute figures mean
//! nothing under emulation.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;

use crate::arguments;
use crate::machine::{available, passes};
use crate::support::killing::number;
use crate::support::programs::{directory, installed, run, say, skip};
use crate::support::target::{Service, format};
use crate::ublk::{BLOCK_DEVICE, queues, serve, with_queues};

const VOLUME: u64 = 64 << 20;
const NBD_DEVICE: &str = "/dev/nbd0";
/// How long each load is measured.
const SECONDS: u32 = 3;

/// Goal: requests a second of a block device by ublk, as a multiple of those of the kernel's NBD
/// client over a unix socket, of one volume on a disk of memory, are said; with `FLIPSIDE_ROUNDS`
/// those of one with two queues, too.
#[test]
fn ublk_beside_nbd() {
    if available() && installed(&["fio", "nbd-client"]) {
        passes(&["--memory", "1536"], "figures::inner_ublk_beside_nbd");
    }
}

/// Requests of so many KiB a second.
fn rate(device: &str, kind: &str, size: u32, depth: u32) -> f64 {
    let options = [
        format!("--filename={device}"),
        format!("--rw={kind}"),
        format!("--bs={size}k"),
        format!("--iodepth={depth}"),
        format!("--runtime={SECONDS}"),
    ];
    let fixed = "--name=figure --ioengine=io_uring --direct=1 --time_based \
                 --ramp_time=1 --output-format=json";
    let words: Vec<&OsStr> = fixed
        .split_whitespace()
        .chain(options.iter().map(String::as_str))
        .map(OsStr::new)
        .collect();
    let report: Value = serde_json::from_str(&run("fio", &words)).unwrap();
    let job = &report["jobs"][0];
    let rates = ["read", "write"].map(|way| job[way]["iops"].as_f64().unwrap());
    rates.iter().sum()
}

/// The loads that are compared: the kind, and requests at a time.
const LOADS: [(&str, u32); 4] =
    [("randread", 1), ("randread", 16), ("randwrite", 1), ("randwrite", 16)];

/// Goal: the inner half of `ublk_beside_nbd`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_ublk_beside_nbd() {
    let directory = directory();
    let service = service(directory.path());
    compare(&service);
    if number("FLIPSIDE_ROUNDS").is_some() {
        compare(&with_queues(service));
    }
}

/// A volume on a disk of memory, to be served as a block device.
fn service(directory: &Path) -> Service {
    run("modprobe", arguments!["-a", "ublk_drv", "nbd"]);
    run("modprobe", arguments!["brd", "rd_nr=1", "rd_size=262144"]);
    let disk = Path::new("/dev/ram0");
    format(disk, &["--volume", &format!("vol0={VOLUME}")]);
    let mut service = Service::new(directory, disk);
    service.arguments = ["--listen", "ublk:0"].map(String::from).to_vec();
    service
}

/// What was never written is not read from anywhere.
fn write_everything() {
    let everything = format!("of={BLOCK_DEVICE}");
    run("dd", arguments!["if=/dev/urandom", everything, "bs=1M", "oflag=direct", "count=64"]);
}

/// The volume by one way and the other in turn.
fn compare(service: &Service) {
    let target = serve(service);
    run("nbd-client", arguments!["-unix", target.socket(), "-N", "vol0", NBD_DEVICE]);
    write_everything();
    for (kind, depth) in LOADS {
        let [nbd, ublk] = [NBD_DEVICE, BLOCK_DEVICE].map(|device| rate(device, kind, 4, depth));
        assert!(ublk > 0.0 && nbd > 0.0, "{kind}, {depth} at a time: {ublk} and {nbd}");
        say(&format!(
            "ublk with {} queue(s) beside NBD over a unix socket, {kind}, 4 KiB, {depth} at a \
             time: {:.2} times the requests a second",
            queues(),
            ublk / nbd
        ));
    }
    run("nbd-client", arguments!["-d", NBD_DEVICE]);
    assert!(target.stop().success());
}

/// Goal: requests a second of reads that are not copied, as a multiple of those that are, are said,
/// where the machine's kernel lends us the memory of who reads.
#[test]
fn reads_without_a_copy() {
    if available() && installed(&["fio"]) {
        passes(&["--memory", "1536"], "figures::inner_reads_without_a_copy");
    }
}

/// Goal: the inner half of `reads_without_a_copy`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_reads_without_a_copy() {
    const LOADS: [(u32, u32); 4] = [(4, 1), (4, 16), (1024, 1), (1024, 4)];
    let directory = directory();
    let straight = service(directory.path());
    let mut copying = straight.clone();
    copying.arguments.push("--ublk-copy".to_owned());
    // In turn, twice: what else the host does changes slowly.
    for _ in 0..2 {
        let rates = [&straight, &copying].map(|service| {
            let target = serve(service);
            write_everything();
            let rates = LOADS.map(|(size, depth)| rate(BLOCK_DEVICE, "randread", size, depth));
            let read = target.status().client_bytes_read_straight;
            assert!(target.stop().success());
            (rates, read)
        });
        let [(straight, read), (copied, 0)] = rates else { panic!("{rates:?}") };
        if read == 0 {
            return skip("this kernel's ublk_drv lends no memory");
        }
        for ((size, depth), (straight, copied)) in LOADS.iter().zip(straight.iter().zip(copied)) {
            let ratio = straight / copied;
            say(&format!(
                "ublk without copies beside with, randread, {size} KiB, {depth} at a time: \
                 {ratio:.2} times the requests a second"
            ));
        }
    }
}
