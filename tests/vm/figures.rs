//! What ways to attach a volume cost, beside each other in one machine: absolute figures mean
//! nothing under emulation.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;

use crate::arguments;
use crate::machine::{available, passes};
use crate::support::programs::{directory, installed, run, say};
use crate::support::target::{Service, format};
use crate::ublk::{BLOCK_DEVICE, serve, with_queues};

const VOLUME: u64 = 64 << 20;
const NBD_DEVICE: &str = "/dev/nbd0";
const SECONDS: u32 = 8;

/// Goal: requests a second of a block device by ublk, with one queue and with two, as a multiple of
/// those of the kernel's NBD client over a unix socket, on a disk of memory, are said.
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

/// The loads that are compared.
const LOADS: [(&str, u32); 4] =
    [("randread", 1), ("randread", 16), ("randwrite", 1), ("randwrite", 16)];

/// Goal: the inner half of `ublk_beside_nbd`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_ublk_beside_nbd() {
    for line in ["ublk_drv", "nbd"] {
        run("modprobe", arguments![line]);
    }
    run("modprobe", arguments!["brd", "rd_nr=1", "rd_size=262144"]);
    let directory = directory();
    let disk = Path::new("/dev/ram0");
    format(disk, &["--volume", &format!("vol0={VOLUME}")]);
    let mut service = Service::new(directory.path(), disk);
    let target = service.serve();
    run("nbd-client", arguments!["-unix", target.socket(), "-N", "vol0", NBD_DEVICE]);
    // What was never written is not read from anywhere.
    run("dd", arguments!["if=/dev/urandom", "of=/dev/nbd0", "bs=1M", "count=64", "conv=fsync"]);
    let nbd = LOADS.map(|(kind, depth)| rate(NBD_DEVICE, kind, depth));
    run("nbd-client", arguments!["-d", NBD_DEVICE]);
    assert!(target.stop().success());
    service.arguments = ["--listen", "ublk:0"].map(String::from).to_vec();
    for (queues, service) in [(1, service.clone()), (2, with_queues(service))] {
        let target = serve(&service);
        for ((kind, depth), nbd) in LOADS.into_iter().zip(nbd) {
            let ublk = rate(BLOCK_DEVICE, kind, depth);
            assert!(ublk > 0.0 && nbd > 0.0, "{kind}, {depth} at a time: {ublk} and {nbd}");
            let ratio = ublk / nbd;
            say(&format!(
                "ublk with {queues} queue(s) beside NBD over a unix socket, {kind}, 4 KiB, {depth} \
                 at a time: {ratio:.2} times the requests a second"
            ));
        }
        assert!(target.stop().success());
    }
}
