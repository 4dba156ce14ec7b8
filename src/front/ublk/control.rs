//! Making and removing devices: `/dev/ublk-control`.
//!
//! All of it waits; [`aside`] lets a ring go on meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;
use tokio::sync::oneshot;
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::wire::{
    DeviceInfo, FEATURE_NAMES, FEATURES_LENDING, FEATURES_NEEDED, Parameters, command,
};
use crate::uring::ublk::{ControlCommand, control};

const PATH: &str = "/dev/ublk-control";
/// Where the kernel lists the devices.
const LIST: &str = "/sys/class/ublk-char";

/// Why something could not be done with a device.
#[derive(Debug, thiserror::Error)]
pub enum UblkError {
    /// There is no driver.
    #[error("{PATH} is not there: load the driver with `modprobe ublk_drv` (Linux 6.5 or later)")]
    NoDriver,
    /// The driver cannot be used.
    #[error("{PATH}: {0}; making block devices needs root")]
    Control(io::Error),
    /// The driver lacks something.
    #[error("the kernel's ublk_drv cannot copy on the server's demand: Linux 6.5 or later can")]
    TooOld,
    /// It is another's.
    #[error("ublk device {0} is there already; `flipside ublk list` shows the devices")]
    Exists(u32),
    /// It is not there.
    #[error("there is no ublk device {0}; `flipside ublk list` shows the devices")]
    Missing(u32),
    /// A step failed.
    #[error("ublk device {device} could not be {step}: {error}")]
    Step {
        /// The number of the device.
        device: u32,
        /// What failed, as a participle.
        step: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// The driver. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Control(Arc<File>);

impl Control {
    /// Opens the driver.
    pub fn open() -> Result<Self, UblkError> {
        match OpenOptions::new().read(true).write(true).open(PATH) {
            Ok(file) => Ok(Self(Arc::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(UblkError::NoDriver),
            Err(error) => Err(UblkError::Control(error)),
        }
    }

    fn send(&self, number: u32, device: u32, word: u64, data: &mut [u8]) -> io::Result<()> {
        control(self.0.as_fd(), ControlCommand { number, device, word }, data)
    }

    fn step(
        &self,
        step: &'static str,
        (number, device, word): (u32, u32, u64),
        data: &mut [u8],
    ) -> Result<(), UblkError> {
        self.send(number, device, word, data).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENOENT) => UblkError::Missing(device),
            Some(libc::EEXIST) => UblkError::Exists(device),
            _ => UblkError::Step { device, step, error },
        })
    }

    /// What the driver can do, as bits.
    pub fn features(&self) -> Result<u64, UblkError> {
        let mut features = 0_u64;
        match self.send(command::FEATURES, 0, 0, features.as_mut_bytes()) {
            Ok(()) => Ok(features),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                Err(UblkError::Control(error))
            }
            // Older drivers do not know the question.
            Err(_) => Err(UblkError::TooOld),
        }
    }

    /// Fails where the driver cannot do what we need; says whether it can lend us the data of
    /// requests.
    pub fn suffices(&self) -> Result<bool, UblkError> {
        let features = self.features()?;
        if features & FEATURES_NEEDED != FEATURES_NEEDED {
            return Err(UblkError::TooOld);
        }
        Ok(features & FEATURES_LENDING == FEATURES_LENDING)
    }

    /// Makes a device, whose number is in what is given back; no block device yet.
    pub fn add(&self, mut info: DeviceInfo) -> Result<DeviceInfo, UblkError> {
        let id = info.id.get();
        self.step("made", (command::ADD, id, 0), info.as_mut_bytes())?;
        Ok(info)
    }

    /// Says what the block device will be.
    pub fn set(&self, device: u32, mut parameters: Parameters) -> Result<(), UblkError> {
        let step = (command::SET_PARAMETERS, device, 0);
        self.step("set up", step, parameters.as_mut_bytes())
    }

    /// Makes the block device. It is read at once, for partitions.
    pub fn start(&self, device: u32) -> Result<(), UblkError> {
        let pid = std::process::id().into();
        self.step("started", (command::START, device, pid), &mut [])
    }

    /// Takes over a device that lost its process; its requests wait. `false`: not yet, the kernel
    /// is still busy with the end of that process.
    pub fn start_recovery(&self, device: u32) -> Result<bool, UblkError> {
        match self.step("taken over", (command::START_RECOVERY, device, 0), &mut []) {
            Err(UblkError::Step { error, .. }) if error.raw_os_error() == Some(libc::EBUSY) => {
                Ok(false)
            }
            done => done.map(|()| true),
        }
    }

    /// Goes on with it: what was not answered is asked again.
    pub fn end_recovery(&self, device: u32) -> Result<(), UblkError> {
        let pid = std::process::id().into();
        self.step("taken over", (command::END_RECOVERY, device, pid), &mut [])
    }

    /// Removes the block device: what is dirty is written before, and what is open fails from then
    /// on.
    pub fn stop(&self, device: u32) -> Result<(), UblkError> {
        self.step("stopped", (command::STOP, device, 0), &mut [])
    }

    /// Removes the device, once nobody serves it any more.
    pub fn delete(&self, device: u32) -> Result<(), UblkError> {
        self.step("deleted", (command::DELETE, device, 0), &mut [])
    }

    /// What the kernel knows of a device.
    pub fn info(&self, device: u32) -> Result<DeviceInfo, UblkError> {
        let mut info = DeviceInfo::new_zeroed();
        self.step("looked at", (command::INFO, device, 0), info.as_mut_bytes())?;
        Ok(info)
    }

    /// All devices, of whatever program.
    pub fn list(&self) -> Result<Vec<DeviceInfo>, UblkError> {
        let entries = match fs::read_dir(LIST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(UblkError::Control)?,
        };
        let number = |name: &str| name.strip_prefix("ublkc")?.parse::<u32>().ok();
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut ids: Vec<u32> = names.filter_map(|name| number(name.to_str()?)).collect();
        ids.sort_unstable();
        let mut found = Vec::new();
        for id in ids {
            match self.info(id) {
                Ok(info) => found.push(info),
                // Gone meanwhile.
                Err(UblkError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// Does what waits on a thread of its own.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = oneshot::channel();
    // Who asked may be gone, with its ring.
    std::thread::spawn(move || drop(sender.send(work())));
    receiver.await.expect("the thread sends before it ends")
}

/// The file through which a device is served.
pub fn character_file(device: u32) -> PathBuf {
    Path::new("/dev").join(format!("ublkc{device}"))
}

/// The block device.
pub fn block_device(device: u32) -> PathBuf {
    Path::new("/dev").join(format!("ublkb{device}"))
}

/// The names of features, for people.
pub fn feature_names(features: u64) -> Vec<&'static str> {
    let has = |bit: u32| features & (1 << bit) != 0;
    FEATURE_NAMES.iter().filter(|(bit, _)| has(*bit)).map(|(_, name)| *name).collect()
}
