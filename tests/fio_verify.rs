//! fio writes checksummed blocks of random sizes at random offsets, and reads them back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;

use support::device::Device;
use support::programs::{directory, installed};
use support::target::{PLACES, Service, Target, format_at};

const JOB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/fio/verify.fio");

/// Runs the job with `option`.
fn fio(target: &Target, option: &str) {
    let output = Command::new("fio")
        .args([option, JOB])
        .env("FLIPSIDE_URI", target.uri("vol0"))
        .output()
        .expect("fio is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "fio {option} {JOB}:\n{text}\n{errors}");
}

/// Goal: what fio wrote from several jobs at once it reads back, from the same process, after a
/// restart, and after a kill (each of its jobs ends with a flush); wherever the flags are.
#[test]
fn what_fio_wrote_is_read_back() {
    if !installed(&["fio"]) {
        return;
    }
    for place in PLACES {
        let directory = directory();
        let device = Device::create(directory.path(), "device", 512 << 20);
        format_at(place, device.path(), &["--volume", "vol0=256M"]);
        let mut service = Service::new(directory.path(), device.path());
        service.arguments = (place.serve)(directory.path());
        let target = service.serve();
        fio(&target, "--do_verify=1");
        fio(&target, "--do_verify=0");
        target.kill();
        let target = service.serve();
        fio(&target, "--verify_only");
        assert!(target.stop().success());
        fio(&service.serve(), "--verify_only");
    }
}
