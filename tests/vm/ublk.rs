//! Volumes as block devices of the kernel, in the machine: by ublk, and by its NBD client.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use flipside::env::sim::rng::Rng;

use crate::arguments;
use crate::machine::{available, passes};
use crate::support::device::Device;
use crate::support::programs::{PATIENCE, directory, run, try_run, wait_for};
use crate::support::target::{BINARY, Service, Target, format};

const VOLUME: u64 = 128 << 20;
pub const MOUNT: &str = "/mnt/ublk";
pub const BLOCK_DEVICE: &str = "/dev/ublkb0";

/// How file systems are made and checked. What mkfs.xfs supports is larger than our volume.
const FILE_SYSTEMS: [([&str; 3], [&str; 3]); 3] = [
    (["mkfs.ext4", "-q", "-F"], ["e2fsck", "-f", "-n"]),
    (["mkfs.xfs", "--unsupported", "-qf"], ["xfs_repair", "-n", "-P"]),
    (["mkfs.btrfs", "-q", "-fM"], ["btrfs", "check", "--readonly"]),
];

pub fn pool(directory: &Path) -> (Device, Service) {
    run("modprobe", arguments!["ublk_drv"]);
    let device = Device::create(directory, "device", 2 * VOLUME);
    format(device.path(), &["--volume", &format!("vol0={VOLUME}")]);
    let mut service = Service::new(directory, device.path());
    service.arguments = ["--listen", "ublk:0"].map(String::from).to_vec();
    (device, service)
}

/// Starts a target, and waits for its block device.
pub fn serve(service: &Service) -> Target {
    let target = service.start();
    target.wait_ready_at(BLOCK_DEVICE);
    target
}

/// What the kernel says of the device's queue.
fn limit(name: &str) -> String {
    fs::read_to_string(format!("/sys/block/ublkb0/queue/{name}")).unwrap().trim().to_owned()
}

/// Files of random sizes and contents, in folders.
fn write_tree(folder: &Path, seed: u64) {
    let mut rng = Rng::new(seed);
    for number in 0..60 {
        let path = folder.join(format!("{}/{number}", rng.below(7)));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let len = rng.below(300_000) as usize;
        let mut bytes = vec![0; len.next_multiple_of(8)];
        bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&rng.bits().to_le_bytes()));
        fs::write(path, &bytes[..len]).unwrap();
    }
}

pub fn mount(device: &str) {
    fs::create_dir_all(MOUNT).unwrap();
    run("mount", arguments!["-o", "discard", device, MOUNT]);
}

/// Goal: the kernel is told the truth about the device, and a target that stops leaves none
/// behind; file systems on it hold a tree, over a restart of the target, and are found clean.
#[test]
fn file_systems() {
    if available() {
        passes(&[], "ublk::inner_file_systems");
    }
}

/// Goal: the inner half of `file_systems`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_file_systems() {
    let directory = directory();
    let (_device, service) = pool(directory.path());
    let target = serve(&service);
    let told = ["logical_block_size", "physical_block_size", "write_cache", "fua"].map(limit);
    assert_eq!(told, ["512", "4096", "write back", "1"]);
    let told = ["discard_granularity", "max_sectors_kb", "rotational"].map(limit);
    assert_eq!(told, ["4096", "512", "0"]);
    let sectors = fs::read_to_string("/sys/block/ublkb0/size").unwrap();
    assert_eq!(sectors.trim(), (VOLUME / 512).to_string());
    assert!(target.stop().success());
    assert!(!Path::new(BLOCK_DEVICE).exists() && !Path::new("/dev/ublkc0").exists());
    trees(directory.path(), &service, BLOCK_DEVICE, serve, |_| ());
}

/// Goal: the same file systems on the kernel's NBD client.
#[test]
fn file_systems_over_nbd() {
    if available() {
        passes(&[], "ublk::inner_file_systems_over_nbd");
    }
}

/// Goal: the inner half of `file_systems_over_nbd`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_file_systems_over_nbd() {
    let directory = directory();
    let (_device, service) = pool(directory.path());
    let service = Service { arguments: Vec::new(), ..service };
    run("modprobe", arguments!["nbd"]);
    let attach = |service: &Service| {
        let target = service.serve();
        let socket = target.socket();
        run("nbd-client", arguments!["-unix", socket, "-N", "vol0", "/dev/nbd0"]);
        target
    };
    let detach = |device: &str| drop(run("nbd-client", arguments!["-d", device]));
    trees(directory.path(), &service, "/dev/nbd0", attach, detach);
}

/// Makes a pool on a device, and each file system on a block device of its volume.
pub fn file_systems_on(device: &Path) {
    run("modprobe", arguments!["ublk_drv"]);
    format(device, &["--force", "--volume", &format!("vol0={VOLUME}")]);
    let directory = directory();
    let mut service = Service::new(directory.path(), device);
    service.arguments = ["--listen", "ublk:0"].map(String::from).to_vec();
    trees(directory.path(), &service, BLOCK_DEVICE, serve, |_| ());
}

/// Each file system in turn: made, filled, trimmed, and after a restart of the target found clean
/// and whole.
fn trees(
    directory: &Path,
    service: &Service,
    device: &str,
    attach: impl Fn(&Service) -> Target,
    detach: impl Fn(&str),
) {
    let original = directory.join("tree");
    write_tree(&original, 7);
    let copy = PathBuf::from(MOUNT).join("tree");
    for (make, check) in FILE_SYSTEMS {
        let target = attach(service);
        run(make[0], &words(&make[1..], device));
        mount(device);
        run("cp", arguments!["-r", original, copy]);
        run("diff", arguments!["-r", original, copy]);
        run("fstrim", arguments![MOUNT]);
        run("umount", arguments![MOUNT]);
        detach(device);
        assert!(target.stop().success());
        let target = attach(service);
        run(check[0], &words(&check[1..], device));
        mount(device);
        run("diff", arguments!["-r", original, copy]);
        run("umount", arguments![MOUNT]);
        detach(device);
        assert!(target.stop().success());
    }
}

fn words<'a>(options: &[&'a str], device: &'a str) -> Vec<&'a OsStr> {
    options.iter().copied().chain([device]).map(OsStr::new).collect()
}

/// Goal: what was flushed outlives the death of the target; the device it leaves behind is shown,
/// and removed by who asks for that, or by a target that starts cold; a served one is not taken
/// away without force.
#[test]
fn what_is_left_behind() {
    if available() {
        passes(&[], "ublk::inner_what_is_left_behind");
    }
}

/// Goal: the inner half of `what_is_left_behind`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_what_is_left_behind() {
    let directory = directory();
    let (_device, service) = pool(directory.path());
    let target = serve(&service);
    let file = OpenOptions::new().read(true).write(true).open(BLOCK_DEVICE).unwrap();
    for block in 0..32_u8 {
        file.write_all_at(&[block + 1; 5000], u64::from(block) * 8192 + 100).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    let list = || run(BINARY, arguments!["ublk", "list"]);
    let shown = list();
    assert!(shown.contains(&format!("/dev/ublkb0: live, process {}", target.pid())), "{shown}");
    assert!(shown.contains("the kernel has: ") && shown.contains("user-copy"), "{shown}");
    let refused = try_run(BINARY, arguments!["ublk", "delete", "0"]).unwrap_err();
    assert!(refused.contains("is served by process"), "{refused}");
    target.kill();
    let quiesced = || {
        wait_for("the kernel's notice of the death", PATIENCE, || {
            list().contains("/dev/ublkb0: quiesced").then_some(())
        });
    };
    quiesced();
    run(BINARY, arguments!["ublk", "delete", "--dead"]);
    assert!(!list().contains("/dev/ublkb0"));
    let missing = try_run(BINARY, arguments!["ublk", "delete", "0"]).unwrap_err();
    assert!(missing.contains("there is no ublk device 0"), "{missing}");
    let target = serve(&service);
    target.kill();
    quiesced();
    let mut cold = service.clone();
    cold.arguments.push("--cold".to_owned());
    let target = serve(&cold);
    assert!(target.log().contains("ublk device 0 is removed"), "{}", target.log());
    let file = OpenOptions::new().read(true).open(BLOCK_DEVICE).unwrap();
    for block in 0..32_u8 {
        let mut found = [0; 5000];
        file.read_exact_at(&mut found, u64::from(block) * 8192 + 100).unwrap();
        assert_eq!(found, [block + 1; 5000], "block {block}");
    }
    drop(file);
    assert!(target.stop().success());
}
