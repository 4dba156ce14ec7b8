//! File systems on a volume: made, filled, compared, and found clean by their own checkers.
//!
//! The volume is mounted as a file by nbdfuse, and a loop device over that file is what the
//! kernel's file systems see; so all of it runs without a kernel NBD client.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use flipside::env::sim::rng::Rng;
use support::device::{self, Device};
use support::programs::{PATIENCE, directory, installed, run, skip, try_run, wait_for};
use support::target::{PLACES, Place, Service, Target, format_at};

const VOLUME: u64 = 512 << 20;

/// A volume as a file.
struct FuseFile {
    process: Child,
    folder: PathBuf,
}

impl FuseFile {
    fn mount(target: &Target, folder: &Path) -> FuseFile {
        fs::create_dir_all(folder).expect("a mount point");
        let process = Command::new("nbdfuse")
            .arg(folder.join("volume"))
            .arg(target.uri("vol0"))
            .stdin(Stdio::null())
            .spawn()
            .expect("nbdfuse is installed");
        let mounted = FuseFile { process, folder: folder.to_owned() };
        let size = || fs::metadata(mounted.path()).ok().filter(|file| file.len() == VOLUME);
        wait_for("nbdfuse's mount", PATIENCE, size);
        mounted
    }

    fn path(&self) -> PathBuf {
        self.folder.join("volume")
    }

    /// Unmounts and waits until nbdfuse has ended: then its session with the target has too.
    fn unmount(mut self) {
        run("fusermount3", arguments!["-u", &self.folder]);
        let status = wait_for("nbdfuse's end", PATIENCE, || self.process.try_wait().ok().flatten());
        assert!(status.success(), "nbdfuse: {status}");
    }
}

impl Drop for FuseFile {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            // A test that failed: what is still there is taken away as far as it goes.
            let _ = try_run("fusermount3", arguments!["-u", "-z", &self.folder]);
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// A mounted file system.
struct Mount(PathBuf);

impl Mount {
    fn new(device: &Device, folder: &Path) -> Result<Mount, String> {
        fs::create_dir_all(folder).expect("a mount point");
        try_run("mount", arguments![device.path(), folder])?;
        Ok(Mount(folder.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(message) = try_run("umount", arguments![&self.0]) {
            eprintln!("{message}");
        }
    }
}

/// A tree of files of all sizes, links and folders.
fn plant(root: &Path) {
    let mut rng = Rng::new(13);
    for folder in 0..24 {
        let folder = root.join(format!("folder {folder}/inner"));
        fs::create_dir_all(&folder).expect("a folder");
        for file in 0..24 {
            let size = if rng.below(12) == 0 { rng.below(3 << 20) } else { rng.below(48 << 10) };
            let words = size.div_ceil(8);
            let bytes: Vec<u8> = (0..words).flat_map(|_| rng.bits().to_le_bytes()).collect();
            fs::write(folder.join(format!("file {file}")), &bytes[..size as usize]).expect("room");
        }
        std::os::unix::fs::symlink("file 0", folder.join("a link")).expect("a link");
    }
}

/// Makes a file system, fills it, and has it compared and checked after a restart of the target;
/// wherever the flags are.
fn file_system(make: &[&OsStr], check: &[&OsStr]) {
    PLACES.into_iter().for_each(|place| file_system_with(place, make, check));
}

fn file_system_with(place: Place, make: &[&OsStr], check: &[&OsStr]) {
    let directory = directory();
    let tree = directory.path().join("tree");
    plant(&tree);
    let at = |name: &str| directory.path().join(name);
    let device = Device::create(directory.path(), "device", 2 * VOLUME);
    format_at(place, device.path(), &["--volume", &format!("vol0={VOLUME}")]);
    let mut service = Service::new(directory.path(), device.path());
    service.arguments = (place.serve)(directory.path());

    let target = service.serve();
    let fuse = FuseFile::mount(&target, &at("fuse"));
    let Ok(block) = device::attach(&fuse.path()) else {
        return skip("file systems need loop devices");
    };
    with(make, block.path());
    let mount = match Mount::new(&block, &at("mount")) {
        Ok(mount) => mount,
        Err(message) => return skip(&format!("file systems cannot be mounted: {message}")),
    };
    for copy in ["copy 1", "copy 2"] {
        run("cp", arguments!["-a", &tree, at("mount").join(copy)]);
    }
    fs::remove_dir_all(at("mount").join("copy 1")).expect("the copy is there");
    // Not every stack under the file system passes discards on; where it does, they are tried.
    let _ = try_run("fstrim", arguments![at("mount")]);
    run("cp", arguments!["-a", &tree, at("mount").join("copy 3")]);
    drop(mount);
    device::sync(block.path());
    drop(block);
    fuse.unmount();
    assert!(target.stop().success());

    let target = service.serve();
    let fuse = FuseFile::mount(&target, &at("fuse"));
    let block = device::attach(&fuse.path()).expect("it was possible before");
    with(check, block.path());
    let mount = Mount::new(&block, &at("mount")).expect("it was possible before");
    for copy in ["copy 2", "copy 3"] {
        let copy = at("mount").join(copy);
        run("diff", arguments!["--recursive", "--no-dereference", &tree, copy]);
    }
    drop(mount);
    with(check, block.path());
    drop(block);
    fuse.unmount();
    assert!(target.stop().success());
}

/// Runs a program with the device as its last argument.
fn with(command: &[&OsStr], device: &Path) {
    let program = command[0].to_str().expect("a program's name");
    run(program, &[&command[1..], &[device.as_os_str()]].concat());
}

fn possible(programs: &[&str]) -> bool {
    if !Path::new("/dev/fuse").exists() {
        skip("file systems need /dev/fuse");
        return false;
    }
    installed(&[programs, &["nbdfuse", "fusermount3", "losetup", "mount"]].concat())
}

/// Goal: ext4 works on a volume, and e2fsck finds nothing.
#[test]
fn ext4_is_clean() {
    if possible(&["mkfs.ext4", "e2fsck"]) {
        file_system(arguments!["mkfs.ext4", "-q"], arguments!["e2fsck", "-f", "-n"]);
    }
}

/// Goal: xfs works on a volume, and xfs_repair finds nothing.
#[test]
fn xfs_is_clean() {
    if possible(&["mkfs.xfs", "xfs_repair"]) {
        file_system(arguments!["mkfs.xfs", "-q"], arguments!["xfs_repair", "-n"]);
    }
}
