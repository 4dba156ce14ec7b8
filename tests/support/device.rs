//! Devices to serve: loop devices where they are allowed, files otherwise.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::programs::{run, skip, try_run};
use crate::arguments;

/// Bytes of the sectors in which the kernel counts.
const COUNTED_SECTOR: u64 = 512;

/// How long a device that was detached may stay in use.
const DETACH_PATIENCE: Duration = Duration::from_secs(10);

/// A device for one test; gone when dropped.
pub struct Device {
    path: PathBuf,
    is_loop: bool,
}

/// What the kernel counted on a device since it was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Bytes written.
    pub written: u64,
    /// Requests to write.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
}

impl Device {
    /// A device of `bytes` zeros in `directory`: a loop device, or a file and a word about it.
    pub fn create(directory: &Path, name: &str, bytes: u64) -> Device {
        let file = sparse(directory, name, bytes);
        attach(&file).unwrap_or_else(|reason| {
            skip(&format!("loop devices (a file is served instead): {reason}"));
            Device { path: file, is_loop: false }
        })
    }

    /// A loop device of `bytes` zeros in `directory`; nothing, and a word about it, where loop
    /// devices are not allowed.
    pub fn create_loop(directory: &Path, name: &str, bytes: u64) -> Option<Device> {
        let attached = attach(&sparse(directory, name, bytes));
        attached.map_err(|reason| skip(&format!("this needs a loop device: {reason}"))).ok()
    }

    /// What to open.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn in_sysfs(&self, attribute: &str) -> PathBuf {
        let name = self.path.file_name().expect("a device's name");
        Path::new("/sys/block").join(name).join(attribute)
    }

    /// What the kernel has counted.
    ///
    /// # Panics
    /// If this is no loop device.
    pub fn counters(&self) -> Counters {
        assert!(self.is_loop, "only devices are counted");
        let text = fs::read_to_string(self.in_sysfs("stat")).expect("sysfs");
        let fields: Vec<u64> =
            text.split_whitespace().map(|field| field.parse().expect("a number")).collect();
        Counters {
            writes: fields[4],
            written: fields[6] * COUNTED_SECTOR,
            flushes: fields.get(15).copied().unwrap_or(0),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.is_loop {
            return;
        }
        let backing = fs::read(self.in_sysfs("loop/backing_file"));
        if let Err(message) = try_run("losetup", arguments!["--detach", &self.path]) {
            eprintln!("{message}");
            return;
        }
        // Detached is when the last one has closed it: a killed target's ring may take a moment.
        let deadline = Instant::now() + DETACH_PATIENCE;
        let attached = || fs::read(self.in_sysfs("loop/backing_file"));
        let is_ours = |now: Vec<u8>| {
            backing.as_ref().is_ok_and(|file| now.starts_with(file.trim_ascii_end()))
        };
        while attached().is_ok_and(is_ours) {
            if Instant::now() > deadline {
                eprintln!("{} is still in use by somebody", self.path.display());
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn sparse(directory: &Path, name: &str, bytes: u64) -> PathBuf {
    let path = directory.join(name);
    let file = File::create(&path).expect("a file can be made in the test's directory");
    file.set_len(bytes).expect("a sparse file takes no room");
    path
}

/// Attaches `file` as a loop device that does not go through the page cache.
pub fn attach(file: &Path) -> Result<Device, String> {
    let direct = arguments!["--find", "--show", "--direct-io=on", file];
    // Some file systems under the file have no direct I/O.
    let buffered = arguments!["--find", "--show", file];
    let name = try_run("losetup", direct).or_else(|_| try_run("losetup", buffered))?;
    Ok(Device { path: PathBuf::from(name.trim()), is_loop: true })
}

/// Makes sure that everything written to `path` has left the page cache.
pub fn sync(path: &Path) {
    run("sync", arguments![path]);
}
