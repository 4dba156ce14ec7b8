//! How a block device came to be: what `flipside ublk` says of it, and starts again.
//!
//! # Contracts
//!
//! - **Place**: a file for each device beside the sockets, in memory that goes with the boot, as
//!   the device does; for its owner alone.
//! - **Ownership**: whoever serves the device writes it, and whoever removes the device removes it.
//!   What is no good, or of another device that had the number, counts as not there.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::control::{make_runtime_dir, runtime_dir};
use crate::format::ids::PoolId;
use crate::front::ublk::wire::DeviceInfo;

/// What only the first start of a target wants: a device that waits is gone on with.
const ONCE: [&str; 2] = ["--cold", "--replace"];

/// How a block device came to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// What the kernel knows the device by.
    tag: u64,
    pool: String,
    volume: String,
    /// Where the target was started.
    directory: PathBuf,
    /// What it was told, without the program's name.
    arguments: Vec<OsString>,
}

impl Origin {
    /// Of a device that this process serves.
    pub fn here(tag: u64, pool: PoolId, volume: &str) -> Self {
        let arguments = std::env::args_os().skip(1);
        let arguments = arguments.filter(|given| ONCE.iter().all(|once| given != once)).collect();
        // Whoever has lost the directory has named the devices by whole paths, or cannot go on.
        let directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
        Self { tag, pool: pool.to_string(), volume: volume.to_owned(), directory, arguments }
    }

    /// Keeps it for the device with that number; the log says where that cannot be.
    pub fn keep(&self, device: u32) {
        let kept = make_runtime_dir().and_then(|directory| self.write(&file(&directory, device)));
        if let Err(error) = kept {
            warn!("`flipside ublk recover {device}` will not know how to go on: {error:#}");
        }
    }

    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec(self)?;
        let mut options = OpenOptions::new();
        let opened = options.write(true).create(true).truncate(true).mode(0o600).open(path);
        let written = opened.and_then(|mut file| file.write_all(&text));
        written.with_context(|| path.display().to_string())
    }

    /// Of a device, where it is known.
    pub fn of(info: &DeviceInfo) -> Option<Self> {
        let path = file(&runtime_dir().ok()?, info.id.get());
        Self::read(&path, info.server_flags.get())
    }

    fn read(path: &Path, tag: u64) -> Option<Self> {
        let origin: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (origin.tag == tag).then_some(origin)
    }

    /// Of a device that is no more.
    pub fn forget(device: u32) {
        // It may never have been there.
        let _ = runtime_dir().map(|directory| fs::remove_file(file(&directory, device)));
    }

    /// Whether one start goes on with both devices.
    pub fn is_of_same_target(&self, other: &Self) -> bool {
        let target = |origin: &Self| (origin.directory.clone(), origin.arguments.clone());
        target(self) == target(other)
    }

    /// Becomes the target again, as the program is now. Returns only why that cannot be.
    pub fn start_again(&self) -> anyhow::Error {
        let program = match std::env::current_exe() {
            Ok(program) => program,
            Err(error) => return anyhow!("the program cannot be found: {error}"),
        };
        let mut command = Command::new(&program);
        let error = command.args(&self.arguments).current_dir(&self.directory).exec();
        let (program, directory) = (program.display(), self.directory.display());
        anyhow!("{program} cannot be started in {directory}: {error}")
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {} of pool {}, by: flipside", self.volume, self.pool)?;
        self.arguments.iter().try_for_each(|given| write!(f, " {}", given.to_string_lossy()))?;
        write!(f, " (in {})", self.directory.display())
    }
}

fn file(directory: &Path, device: u32) -> PathBuf {
    directory.join(format!("ublk{device}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(tag: u64, arguments: &[&str]) -> Origin {
        let arguments = arguments.iter().map(OsString::from).collect();
        let (pool, volume) = ("a pool".to_owned(), "vol0".to_owned());
        Origin { tag, pool, volume, directory: "/srv".into(), arguments }
    }

    /// Goal: what is kept is found again by the device that it is of, and by no other; and what
    /// was cut short counts as not there.
    #[test]
    fn kept_and_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = file(directory.path(), 3);
        assert_eq!(Origin::read(&path, 7), None);
        let kept = origin(7, &["serve", "/dev/sdx"]);
        kept.write(&path).unwrap();
        assert_eq!(Origin::read(&path, 7), Some(kept));
        assert_eq!(Origin::read(&path, 8), None);
        let bytes = fs::read(&path).unwrap();
        for len in 0..bytes.len() {
            fs::write(&path, &bytes[..len]).unwrap();
            assert_eq!(Origin::read(&path, 7), None, "{len} bytes");
        }
    }

    /// Goal: devices of one start of a target are known to be that, and it is shown for people.
    #[test]
    fn of_one_target() {
        let one = origin(1, &["serve", "--listen", "ublk", "/dev/sdx"]);
        let other = Origin { tag: 2, volume: "vol1".into(), ..one.clone() };
        assert!(one.is_of_same_target(&other));
        assert!(!one.is_of_same_target(&origin(1, &["serve", "/dev/sdy"])));
        let shown =
            "volume vol0 of pool a pool, by: flipside serve --listen ublk /dev/sdx (in /srv)";
        assert_eq!(one.to_string(), shown);
    }
}
