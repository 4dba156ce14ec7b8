//! What needs a kernel of its own: tests in the virtual machine (`tools/vm`), and of it.
//!
//! `make vm-test` runs them. Where the machine cannot be had they are skipped aloud.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod databases;
mod figures;
mod log;
mod log_writes;
mod lossy_disk;
mod machine;
mod network;
mod pmem;
mod power;
#[path = "../support/mod.rs"]
mod support;
mod ublk;
mod warm;
mod zero_copy;

use std::path::Path;
use std::process::Command;

use machine::{NO_STATUS, TIMED_OUT, available, run, sparse, text};
use support::programs::directory;

/// Goal: the command's output, errors and exit status come back, its words are its own, and the
/// kernel is not this machine's.
#[test]
fn a_command_is_run() {
    if !available() {
        return;
    }
    let script = "echo \"$0\"; uname -r; echo trouble >&2; exit 7";
    let output = run(&[], &["sh", "-c", script, "it's  one 'word'"]);
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(7), "{out}{errors}");
    assert_eq!(errors, "trouble\n");
    let (word, kernel) = out.trim_end().split_once('\n').unwrap();
    assert_eq!(word, "it's  one 'word'");
    let ours = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(kernel, ours.trim_end(), "it ran here");
}

/// Goal: the machine reads this machine's files and changes none: writes fail on the root itself,
/// and stay in the machine's memory above it.
#[test]
fn the_root_is_read_only() {
    if !available() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, "ours").unwrap();
    let script = "cat /host$0; (echo theirs >/host$0) 2>/dev/null && echo 'WROTE TO THE HOST'
        mkdir -p /usr/flipside-vm-test && echo above; exit 0";
    let output = run(&[], &["sh", "-c", script, path.to_str().unwrap()]);
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!((out.as_str(), output.status.code()), ("oursabove\n", Some(0)), "{errors}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "ours");
    assert!(!Path::new("/usr/flipside-vm-test").exists());
}

/// Goal: persistent memory outlives a machine that is cut off, and memory that goes with the
/// machine is there for quick tests.
#[test]
fn persistent_memory_survives() {
    if !available() {
        return;
    }
    let directory = directory();
    let file = sparse(&directory.path().join("pmem"), 128 << 20);
    let load = "for module in nfit nd_e820 nd_pmem; do modprobe $module || exit 3; done
                until [ -b /dev/pmem0 ]; do sleep 0.1; done";
    let write = format!(
        "{load}; echo remember me | dd of=/dev/pmem0 bs=4096 conv=sync oflag=direct 2>/dev/null
         echo written; sleep 1; echo b >/proc/sysrq-trigger; sleep 100"
    );
    let read = format!("{load}; head -c 11 /dev/pmem0");
    let cut_off = run(&["--pmem", &file], &["sh", "-c", &write]);
    assert_eq!(text(&cut_off.stdout), "written\n", "{}", text(&cut_off.stderr));
    assert_eq!(cut_off.status.code(), Some(NO_STATUS));
    let output = run(&["--pmem", &file], &["sh", "-c", &read]);
    assert_eq!(text(&output.stdout), "remember me", "{}", text(&output.stderr));
    let size = format!("{load}; cat /sys/block/pmem0/size");
    let output = run(&["--scratch-pmem", "128"], &["sh", "-c", &size]);
    assert_eq!(text(&output.stdout), "262144\n", "{}", text(&output.stderr));
}

/// Goal: the kernel has what tests in it need: ublk, NBD, dm-log-writes and its like, persistent
/// memory, file systems, bad networks.
#[test]
fn the_kernel_has_what_tests_need() {
    if !available() {
        return;
    }
    let modules = "ublk_drv nbd dm-log-writes dm-flakey nd_pmem nfit nd_e820 sch_netem brd \
                   null_blk scsi_debug loop ext4 xfs btrfs";
    let script = format!(
        "for module in {modules}; do modprobe $module || echo \"$module\"; done
         grep -c 'CONFIG_FS_DAX=y' /host$0/config"
    );
    let setup = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/vm/setup")).output();
    let kernel = text(&setup.unwrap().stdout);
    let output = run(&[], &["bash", "-c", &script, kernel.trim_end()]);
    assert_eq!(text(&output.stdout), "1\n", "{}", text(&output.stderr));
}

/// Goal: a machine that is not done in time is killed, and says so; what it printed is not lost.
#[test]
fn a_hung_command_is_killed() {
    if !available() {
        return;
    }
    let output = run(&["--seconds", "15"], &["sh", "-c", "echo begun; sleep 1000"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(TIMED_OUT), "{errors}");
    assert!(errors.contains("killed: not done after 15 seconds"), "{errors}");
    let out = text(&output.stdout);
    assert!(out.is_empty() || out == "begun\n", "a machine under load may not get so far: {out}");
}
