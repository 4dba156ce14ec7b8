//! Disks that are files, and loop devices where this user may make them.

use std::os::unix::fs::symlink;
use std::process::Command;

use tempfile::{NamedTempFile, TempPath};

use super::*;
use crate::uring::RingOptions;
use crate::uring::buffers::{ARENA_BLOCK, BufferPool};

const LEN: u64 = 1 << 20;

fn on_ring<F: Future<Output = ()> + 'static>(test: impl FnOnce(Ring) -> F) {
    let ring = Ring::new(&RingOptions::default()).unwrap();
    ring.block_on(test(ring.clone()));
    ring.shutdown();
}

fn file_of(len: u64) -> TempPath {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(len).unwrap();
    file.into_temp_path()
}

async fn refusal(ring: &Ring, path: &Path) -> DiskOpenError {
    OsDisk::open(ring, path).await.err().unwrap()
}

/// A loop device over a file, detached when dropped.
struct Loop {
    device: String,
    _file: TempPath,
}

impl Loop {
    /// `None` where this user or this machine cannot have one.
    fn new(options: &[&str]) -> Option<Self> {
        let file = file_of(LEN);
        let mut command = Command::new("losetup");
        let output = command.args(["--find", "--show"]).args(options).arg(&file).output().ok()?;
        let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        if device.is_empty() {
            eprintln!("skipped: no loop device can be made here");
            return None;
        }
        Some(Self { device, _file: file })
    }

    fn path(&self) -> &Path {
        Path::new(&self.device)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup").args(["--detach", &self.device]).status().unwrap();
    }
}

/// Writes, reads, flushes and discards; what was discarded is not asked about.
async fn exercise(disk: &OsDisk) {
    let pool = BufferPool::new(ARENA_BLOCK, ARENA_BLOCK).unwrap();
    let mut buf = pool.try_acquire(16384).unwrap();
    for (offset, durability) in [(0, Durability::Durable), (LEN - 16384, Durability::Volatile)] {
        buf.as_mut_slice().fill(offset as u8 ^ 0x5a);
        disk.write(offset, buf.view_all(), durability).await.unwrap();
        buf.as_mut_slice().fill(0);
        disk.read(offset, buf.view_all()).await.unwrap();
        assert!(buf.as_slice().iter().all(|&byte| byte == offset as u8 ^ 0x5a));
    }
    disk.flush().await.unwrap();
    disk.discard(65536, 65536).await.unwrap();
    disk.read(0, buf.view_all()).await.unwrap();
    assert!(buf.as_slice().iter().all(|&byte| byte == 0x5a));
}

/// Goal: a regular file serves as a disk; a rest that is no whole sector is not part of it.
#[test]
fn a_file_is_a_disk() {
    on_ring(|ring| async move {
        let path = file_of(LEN + 100);
        let disk = OsDisk::open(&ring, &path).await.unwrap();
        assert_eq!(disk.len(), LEN);
        assert!((512..=4096).contains(&disk.sector()));
        assert!(disk.volatile_cache() && !disk.is_block_device());
        assert_eq!(disk.name(), path.display().to_string());
        exercise(&disk).await;
        assert!(!disk.has_vanished());
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        assert!(disk.has_vanished());
    });
}

/// Goal: a block device serves as a disk, under any name, and says that it needs flushes.
#[test]
fn a_loop_device_is_a_disk() {
    let Some(device) = Loop::new(&[]) else { return };
    on_ring(|ring| async move {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("disk");
        symlink(device.path(), &name).unwrap();
        let disk = OsDisk::open(&ring, &name).await.unwrap();
        assert_eq!((disk.len(), disk.sector()), (LEN, 512));
        assert!(disk.volatile_cache() && disk.is_block_device() && !disk.has_vanished());
        exercise(&disk).await;
        drop(disk);
        drop(device);
    });
}

/// Goal: larger sectors of a device are found out.
#[test]
fn sectors_are_found_out() {
    let Some(device) = Loop::new(&["--sector-size", "4096"]) else { return };
    on_ring(|ring| async move {
        let disk = OsDisk::open(&ring, device.path()).await.unwrap();
        assert_eq!(disk.sector(), 4096);
        exercise(&disk).await;
        drop(disk);
        drop(device);
    });
}

/// Goal: a read-only device is refused, by that name.
#[test]
fn read_only_devices_are_refused() {
    let Some(device) = Loop::new(&["--read-only"]) else { return };
    on_ring(|ring| async move {
        let error = refusal(&ring, device.path()).await;
        assert_eq!(error.kind, DiskOpenErrorKind::ReadOnly);
        drop(device);
    });
}

/// Goal: a disk has one owner at a time, whether file or device, and it is said who has it not.
#[test]
fn a_disk_has_one_owner() {
    let device = Loop::new(&[]);
    on_ring(|ring| async move {
        let file = file_of(LEN);
        let mut paths = vec![&*file];
        paths.extend(device.as_ref().map(Loop::path));
        for path in paths {
            let disk = OsDisk::open(&ring, path).await.unwrap();
            let start = ring.now_ns();
            let error = refusal(&ring, path).await;
            assert_eq!(error.kind, DiskOpenErrorKind::InUse);
            assert!(ring.now_ns() - start >= CLAIM_PATIENCE.as_nanos() as u64);
            assert!(error.to_string().contains("in use; stop the target"), "{error}");
            drop(disk);
            drop(OsDisk::open(&ring, path).await.unwrap());
        }
        drop(device);
    });
}

/// Goal: whoever waits for a claim gets it as soon as its holder is gone.
#[test]
fn a_claim_is_waited_for() {
    on_ring(|ring| async move {
        let path = file_of(LEN);
        let holder = OsDisk::open(&ring, &path).await.unwrap();
        let sleeper = ring.clone();
        ring.spawn(async move {
            sleeper.sleep(Duration::from_millis(100)).await;
            drop(holder);
        });
        let start = ring.now_ns();
        OsDisk::open(&ring, &path).await.unwrap();
        assert!(ring.now_ns() - start >= 100_000_000);
    });
}

/// Goal: what is no disk is refused, each for its own reason.
#[test]
fn what_is_no_disk_is_refused() {
    on_ring(|ring| async move {
        let directory = tempfile::tempdir().unwrap();
        let empty = file_of(0);
        for (path, kind) in [
            (&*directory.path().join("none"), DiskOpenErrorKind::NotFound),
            (directory.path(), DiskOpenErrorKind::NotADisk),
            (Path::new("/dev/null"), DiskOpenErrorKind::NotADisk),
            (&*empty, DiskOpenErrorKind::Empty),
        ] {
            let error = refusal(&ring, path).await;
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()));
        }
    });
}

/// Goal: nothing outside a disk, and no part of a sector, is ever asked for.
#[test]
fn operations_are_checked_before_they_leave() {
    let ring = Ring::new(&RingOptions::default()).unwrap();
    let (opener, path) = (ring.clone(), file_of(LEN));
    let disk = ring.block_on(async move { OsDisk::open(&opener, &path).await.unwrap() });
    for (offset, length) in [(LEN, 4096), (LEN - 4096, 8192), (100, 4096), (0, 100), (u64::MAX, 1)]
    {
        let check = std::panic::AssertUnwindSafe(|| disk.check(offset, length));
        assert!(std::panic::catch_unwind(check).is_err(), "{length} bytes at {offset}");
    }
    disk.check(LEN - 4096, 4096);
}
