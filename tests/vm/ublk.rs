//! Volumes as block devices of the kernel, in the machine: by ublk, and by its NBD client.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

/// A pool, and a target of it that is to serve its volume as a block device.
pub fn pool(directory: &Path) -> (Device, Service) {
    run("modprobe", arguments!["ublk_drv"]);
    let device = Device::create(directory, "device", 2 * VOLUME);
    format(device.path(), &["--volume", &format!("vol0={VOLUME}")]);
    let mut service = Service::new(directory, device.path());
    service.arguments = ["--listen", "ublk:0"].map(String::from).to_vec();
    (device, service)
}

/// The same with two queues.
pub fn with_queues(mut service: Service) -> Service {
    service.arguments.extend(["--ublk-queues", "2"].map(String::from));
    service
}

/// How many queues the kernel has for the device.
pub fn queues() -> usize {
    fs::read_dir("/sys/block/ublkb0/mq").unwrap().count()
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
/// behind; file systems on it, with two queues, hold a tree, over a restart of the target, and are
/// found clean.
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
    assert_eq!(queues(), 1);
    assert!(target.stop().success());
    assert!(!Path::new(BLOCK_DEVICE).exists() && !Path::new("/dev/ublkc0").exists());
    let serve_two = |service: &Service| {
        let target = serve(service);
        assert_eq!(queues(), 2, "{}", target.log());
        target
    };
    trees(directory.path(), &with_queues(service), BLOCK_DEVICE, serve_two, |_| ());
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

fn list() -> String {
    run(BINARY, arguments!["ublk", "list"])
}

/// Kills a target, and waits until the kernel has noticed.
fn kill(target: Target) {
    target.kill();
    wait_for("the kernel's notice of the death", PATIENCE, || {
        list().contains("/dev/ublkb0: quiesced").then_some(())
    });
}

fn write_blocks() {
    let file = OpenOptions::new().read(true).write(true).open(BLOCK_DEVICE).unwrap();
    for block in 0..32_u8 {
        file.write_all_at(&[block + 1; 5000], u64::from(block) * 8192 + 100).unwrap();
    }
    file.sync_all().unwrap();
}

fn read_blocks() {
    let file = OpenOptions::new().read(true).open(BLOCK_DEVICE).unwrap();
    for block in 0..32_u8 {
        let mut found = [0; 5000];
        file.read_exact_at(&mut found, u64::from(block) * 8192 + 100).unwrap();
        assert_eq!(found, [block + 1; 5000], "block {block}");
    }
}

/// What `flipside ublk` says to these words where it refuses.
fn refused(words: &[&str]) -> String {
    let words: Vec<_> = ["ublk"].iter().chain(words).map(OsStr::new).collect();
    try_run(BINARY, &words).unwrap_err()
}

/// Goal: the inner half of `what_is_left_behind`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_what_is_left_behind() {
    let directory = directory();
    let (_device, service) = pool(directory.path());
    let target = serve(&service);
    write_blocks();
    let shown = list();
    assert!(shown.contains(&format!("/dev/ublkb0: live, process {}", target.pid())), "{shown}");
    assert!(shown.contains("the kernel has: ") && shown.contains("user-copy"), "{shown}");
    let json = run(BINARY, arguments!["ublk", "list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["devices"][0]["pid"], target.pid(), "{json}");
    assert_eq!(json["devices"][0]["state"], "live", "{json}");
    assert!(refused(&["delete", "0"]).contains("is served by process"));
    kill(target);
    run(BINARY, arguments!["ublk", "delete", "--dead"]);
    assert!(!list().contains("/dev/ublkb0"));
    assert!(refused(&["delete", "0"]).contains("there is no ublk device 0"));
    kill(serve(&service));
    let mut cold = service.clone();
    cold.arguments.push("--cold".to_owned());
    let target = serve(&cold);
    assert!(target.log().contains("ublk device 0 is removed"), "{}", target.log());
    read_blocks();
    assert!(target.stop().success());
}

/// Goal: a device whose target was killed says whose it was, and one command, without a word of
/// how it was served, goes on with it, in another directory too; where there is nothing to go on
/// with, it says so.
#[test]
fn a_device_is_recovered() {
    if available() {
        passes(&[], "ublk::inner_a_device_is_recovered");
    }
}

/// Goal: the inner half of `a_device_is_recovered`.
#[test]
#[ignore = "runs in the virtual machine"]
fn inner_a_device_is_recovered() {
    let directory = directory();
    let (_device, mut service) = pool(directory.path());
    assert!(refused(&["recover"]).contains("no ublk device waits"));
    assert!(refused(&["recover", "0"]).contains("there is no ublk device 0"));
    service.arguments.extend(["--cold", "--commit-interval", "never"].map(String::from));
    let target = serve(&service);
    assert!(refused(&["recover", "0"]).contains("is served by process"));
    write_blocks();
    kill(target);
    let shown = list();
    assert!(shown.contains("  volume vol0 of pool ") && shown.contains("recover 0"), "{shown}");
    let mut recovering = Command::new(BINARY);
    recovering.args(["ublk", "recover"]).current_dir("/").stdout(Stdio::null());
    let mut recovering = recovering.spawn().unwrap();
    let live = format!("/dev/ublkb0: live, process {}", recovering.id());
    wait_for("the target", PATIENCE, || list().contains(&live).then_some(()));
    read_blocks();
    run("kill", arguments![recovering.id().to_string()]);
    assert!(recovering.wait().unwrap().success());
    assert!(!Path::new(BLOCK_DEVICE).exists() && !Path::new("/run/flipside/ublk0.json").exists());
    kill(serve(&service));
    fs::remove_file("/run/flipside/ublk0.json").unwrap();
    assert!(refused(&["recover"]).contains("it is not known how ublk device 0 was served"));
    run(BINARY, arguments!["ublk", "delete", "--dead"]);
}
