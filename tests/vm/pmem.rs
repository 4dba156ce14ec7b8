//! Flags and journal in persistent memory, in the machine: in DAX files, and in the device itself.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use crate::arguments;
use crate::machine::{NO_STATUS, available, passes, run_inner, sparse, text};
use crate::support::device::Device;
use crate::support::programs::{PATIENCE, directory, run, wait_for};
use crate::support::target::{Service, Target, format};

/// Bytes of persistent memory.
pub const PMEM: u64 = 512 << 20;
const DEVICE: u64 = 64 << 20;
const BLOCK: usize = 4096;
/// File systems that map persistent memory directly: their blocks must be pages.
pub const MAKES: [(&str, &str); 2] = [("mkfs.ext4", "-qFb4096"), ("mkfs.xfs", "-qf")];
/// Where it is mounted.
pub const MOUNT: &str = "/mnt/pmem";

/// Makes `/dev/pmem0` one that file systems can map directly, if it is not so yet.
pub fn prepare() {
    for module in ["nfit", "nd_pmem"] {
        run("modprobe", arguments![module]);
    }
    // The kernel finds it in its own time.
    let dax = || fs::read_to_string("/sys/block/pmem0/queue/dax").ok();
    if wait_for("/dev/pmem0", PATIENCE, dax).trim() == "1" {
        return;
    }
    let arguments = ["create-namespace", "-f", "-e", "namespace0.0", "-m", "fsdax", "--map=mem"];
    run("ndctl", &arguments.map(OsStr::new));
}

/// Mounts its file system.
pub fn mount() {
    fs::create_dir_all(MOUNT).unwrap();
    run("mount", arguments!["-o", "dax=always", "/dev/pmem0", MOUNT]);
}

fn service(directory: &Path, device: &Path, nvram: &str) -> Service {
    let arguments = ["--flags", "nvram", "--nvram", nvram].map(String::from).to_vec();
    Service { arguments, ..Service::new(directory, device) }
}

/// Whether a process has a file mapped so that its bytes are durable with their cache lines: what
/// the kernel shows of `MAP_SYNC`.
fn is_mapped_synchronously(target: &Target, file: &str) -> bool {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", target.pid())).unwrap();
    let of_file = maps.lines().skip_while(|line| !line.ends_with(file));
    let flags = of_file.into_iter().find(|line| line.starts_with("VmFlags:"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "sf"))
}

/// What is written after the flush of a life.
const LATER: u8 = 99;

/// Committed blocks of three lives of a target, each killed; `look` sees each.
fn lives(service: &Service, look: impl Fn(&Target)) {
    for life in 0..3 {
        let target = service.serve();
        look(&target);
        let mut client = target.connect("vol0");
        for before in 0..life {
            let offset = u64::from(before) * BLOCK as u64;
            // What came after the flush may have been committed before the kill, too.
            let found = client.read(offset, BLOCK as u32).unwrap();
            let whole = [before + 1, LATER].iter().any(|byte| found == [*byte; BLOCK]);
            assert!(whole, "life {life}, block {before} begins with {:?}", &found[..8]);
        }
        client.write(u64::from(life) * BLOCK as u64, &[life + 1; BLOCK]).unwrap();
        client.flush().unwrap();
        client.write(u64::from(life) * BLOCK as u64, &[LATER; BLOCK]).unwrap();
        drop(client);
        target.kill();
    }
}

/// Goal: with the journal in a DAX file, of ext4 and of xfs, the mapping is synchronous and what
/// was committed outlives the kill; `/dev/pmem0` itself is written with direct I/O, to that end.
#[test]
fn dax_files_and_the_device() {
    if !available() {
        return;
    }
    let directory = directory();
    let file = sparse(&directory.path().join("pmem"), PMEM);
    passes(&["--pmem", &file], "pmem::inner_dax_files_and_the_device");
}

/// Goal: the inner half of `dax_files_and_the_device`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_dax_files_and_the_device() {
    prepare();
    for (make, options) in MAKES {
        run(make, arguments![options, "/dev/pmem0"]);
        mount();
        let directory = directory();
        let device = Device::create(directory.path(), "device", DEVICE);
        format(device.path(), &[]);
        let nvram = format!("{MOUNT}/flags");
        lives(&service(directory.path(), device.path(), &nvram), |target| {
            assert!(target.log().contains("persistent memory, mapped"), "{}", target.log());
            assert!(is_mapped_synchronously(target, &nvram), "{make}: no MAP_SYNC");
        });
        run("umount", arguments![MOUNT]);
    }
    run("wipefs", arguments!["-aq", "/dev/pmem0"]);
    let directory = directory();
    let device = Device::create(directory.path(), "device", DEVICE);
    format(device.path(), &[]);
    lives(&service(directory.path(), device.path(), "/dev/pmem0"), |target| {
        assert!(target.log().contains("written with direct I/O"), "{}", target.log());
    });
}

/// Goal: what was committed to persistent memory and disk is there after the machine was cut off,
/// in a machine that has nothing else of the first one.
#[test]
fn a_machine_is_cut_off() {
    if !available() {
        return;
    }
    let directory = directory();
    let pmem = sparse(&directory.path().join("pmem"), PMEM);
    let disk = sparse(&directory.path().join("disk"), DEVICE);
    let options = ["--pmem", &pmem, "--disk", &disk];
    let output = run_inner(&options, "pmem::inner_first_machine");
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(NO_STATUS), "{said}");
    assert!(said.contains("all is committed"), "{said}");
    passes(&options, "pmem::inner_second_machine");
}

/// Goal: the first half of `a_machine_is_cut_off`: commits, and is cut off with more uncommitted.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_first_machine() {
    prepare();
    run(MAKES[0].0, arguments![MAKES[0].1, "/dev/pmem0"]);
    mount();
    let directory = directory();
    let disk = Path::new("/dev/vda");
    format(disk, &[]);
    let service = service(directory.path(), disk, &format!("{MOUNT}/flags"));
    let target = service.serve();
    let mut client = target.connect("vol0");
    for block in 0..64_u8 {
        client.write(u64::from(block) * BLOCK as u64, &[block + 1; BLOCK]).unwrap();
        client.flush().unwrap();
    }
    client.write(0, &[99; BLOCK]).unwrap();
    println!("all is committed");
    fs::write("/proc/sysrq-trigger", "b").unwrap();
    unreachable!("the machine goes on after it was cut off");
}

/// Goal: the second half of `a_machine_is_cut_off`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_second_machine() {
    prepare();
    mount();
    let directory = directory();
    let service = service(directory.path(), Path::new("/dev/vda"), &format!("{MOUNT}/flags"));
    let target = service.serve();
    let mut client = target.connect("vol0");
    for block in 0..64_u8 {
        let found = client.read(u64::from(block) * BLOCK as u64, BLOCK as u32).unwrap();
        assert_eq!(found, [block + 1; BLOCK], "block {block}");
    }
    drop(client);
    assert!(target.stop().success());
    run("umount", arguments![MOUNT]);
}
