//! What ways to attach a volume cost, beside each other in one machine: absolute figures mean
//! nothing under emulation.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;

use crate::arguments;
use crate::machine::{available, passes};
use crate::support::killing::number;
use crate::support::programs::{directory, installed, run, say};
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

/// Requests of 4 KiB a second.
fn rate(device: &str, kind: &str, depth: u32) -> f64 {
    let options = [
        format!("--filename={device}"),
        format!("--rw={kind}"),
        format!("--iodepth={depth}"),
        format!("--runtime={SECONDS}"),
    ];
    let fixed = "--name=figure --ioengine=io_uring --direct=1 --bs=4k --time_based \
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
    run("modprobe", arguments!["-a", "ublk_drv", "nbd"]);
    run("modprobe", arguments!["brd", "rd_nr=1", "rd_size=262144"]);
    let directory = directory();
    let disk = Path::new("/dev/ram0");
    format(disk, &["--volume", &format!("vol0={VOLUME}")]);
    let mut service = Service::new(directory.path(), disk);
    service.arguments = ["--listen", "ublk:0"].map(String::from).to_vec();
    compare(&service);
    if number("FLIPSIDE_ROUNDS").is_some() {
        compare(&with_queues(service));
    }
}

/// The volume by one way and the other in turn.
fn compare(service: &Service) {
    let target = serve(service);
    run("nbd-client", arguments!["-unix", target.socket(), "-N", "vol0", NBD_DEVICE]);
    // What was never written is not read from anywhere.
    let everything = format!("of={BLOCK_DEVICE}");
    run("dd", arguments!["if=/dev/urandom", everything, "bs=1M", "oflag=direct", "count=64"]);
    for (kind, depth) in LOADS {
        let [nbd, ublk] = [NBD_DEVICE, BLOCK_DEVICE].map(|device| rate(device, kind, depth));
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
