//! A device used up for measuring: first by itself, then under a new pool, and so on in turns.
//!
//! # Contracts
//!
//! - **Claim**: the device is claimed for each phase and let go of after it, with all that ran.
//! - **Refusal**: a device that holds something is refused before anything is written, unless
//!   forced.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::device::{self, Claimed};
use super::inspect::refuse_if_in_use;
use super::link::start_own;
use super::nvram::{self, FlagsArgs};
use super::serve;
use super::values::{Size, VolumeSpec};
use super::{format, plan};
use crate::env::aside::Aside;
use crate::env::os::{OsDisk, OsEnv};
use crate::env::{Disk as _, Env as _};
use crate::format::superblock::FlagsPlace;
use crate::load::Target as _;
use crate::load::target::Alone;
use crate::observe::Latencies;
use crate::unit::{Config, Unit, Volume};
use crate::uring::RingOptions;

/// How a device is measured that holds something.
const FORCE: &str = "say --force if that may be lost";
/// Memory for I/O, in bytes.
const BUFFERS_LEN: usize = 256 << 20;
/// Requests of this size fill a device before it is measured.
const FILL: u32 = 1 << 20;

/// A device that is used up.
pub struct Scratch {
    /// The device.
    pub path: PathBuf,
    /// How much of it is loaded, from the start, in bytes; and the size of the volume.
    pub size: u64,
    /// Where the flags are.
    pub flags: Flags,
}

/// Where a pool that is measured keeps its flags.
#[derive(Clone, Debug)]
pub enum Flags {
    /// On the device.
    Device,
    /// In a file in memory, which is made anew for each pool; with writes up to that size.
    Memory(PathBuf, u64),
    /// At the metadata server, the pool's own.
    Server,
}

/// What an engine phase measures with.
pub struct Engine {
    /// The world.
    pub env: OsEnv,
    /// A volume of the pool, filled on both sides.
    pub volume: Volume<OsEnv>,
    /// The unit, to ask it what it has written.
    pub unit: Unit<OsEnv>,
}

impl Scratch {
    /// Looks whether the device may be used, and how much of it: `size`, or by default two fifths,
    /// so that all of the volume fits twice, and no more than `size_max`.
    pub fn new(path: &Path, size: Option<u64>, size_max: u64, force: bool) -> Result<Self> {
        let (ring, env) = device::environment(BUFFERS_LEN)?;
        let owned = path.to_owned();
        let len = ring.block_on(async move {
            let disk = OsDisk::open(env.ring(), &owned).await?;
            if !force {
                refuse_if_in_use(&owned, disk.len(), FORCE)?;
            }
            anyhow::Ok(disk.len())
        });
        ring.shutdown();
        let most = len? / 5 * 2 / u64::from(FILL) * u64::from(FILL);
        let size = size.map_or(most.min(size_max), |size| size / u64::from(FILL) * u64::from(FILL));
        anyhow::ensure!(
            size >= u64::from(FILL) && size <= most,
            "{} can be measured on {FILL} to {most} bytes of it, so that a volume fits twice, not \
             on {size}",
            path.display()
        );
        Ok(Self { path: path.to_owned(), size, flags: Flags::Device })
    }

    /// Measures the device by itself.
    pub fn alone<F>(&self, measure: impl FnOnce(OsEnv, Alone<OsDisk>) -> F + 'static) -> Result<()>
    where
        F: Future<Output = Result<()>> + 'static,
    {
        let (ring, env) = device::environment(BUFFERS_LEN)?;
        let (path, size) = (self.path.clone(), self.size);
        let measured = ring.block_on(async move {
            let disk = Alone(OsDisk::open(env.ring(), &path).await?);
            fill(size, async |offset| {
                let buf = env.buffers().acquire(FILL as usize).await;
                Ok(disk.write(offset, buf, FILL).await?)
            })
            .await?;
            measure(env, disk).await
        });
        ring.shutdown();
        measured
    }

    /// Measures a volume of a new pool on the device, on a ring of that kind.
    pub fn engine<F>(
        &self,
        options: &RingOptions,
        config: Config,
        measure: impl FnOnce(Engine) -> F + 'static,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>> + 'static,
    {
        let (ring, env) = device::environment_with(options, BUFFERS_LEN)?;
        let (path, size) = (self.path.clone(), self.size);
        let flags = self.flags.clone();
        let own: Rc<Cell<Option<_>>> = Rc::default();
        let server = Rc::clone(&own);
        let measured = ring.block_on(async move {
            let (unit, started) = start(&env, &path, size, flags, config).await?;
            server.set(Some(started));
            let volume = unit.volume(plan::DEFAULT_VOLUME).context("the volume that was made")?;
            for _side in 0..2 {
                fill(size, async |offset| {
                    let buf = env.buffers().acquire(FILL as usize).await;
                    Ok(volume.write(offset, FILL.into(), buf, false).await?)
                })
                .await?;
                volume.flush().await?;
            }
            measure(Engine { env: env.clone(), volume, unit: unit.clone() }).await?;
            Ok(unit.shut_down().await?)
        });
        ring.shutdown();
        if let Some(own) = own.take() {
            own.await_end();
        }
        if let Flags::Memory(path, _) = &self.flags {
            // Not made if the pool was not.
            let _ = std::fs::remove_file(path);
        }
        measured
    }
}

/// Makes a pool with a volume on the device, and starts a unit and a metadata server on it.
async fn start(
    env: &OsEnv,
    path: &Path,
    size: u64,
    flags: Flags,
    mut config: Config,
) -> Result<(Unit<OsEnv>, super::link::OwnServer)> {
    let disk = OsDisk::open(env.ring(), path).await?;
    let claimed = Claimed { path: path.to_owned(), disk };
    let volume = VolumeSpec { name: plan::DEFAULT_VOLUME.to_owned(), size: Size(size) };
    let formatted = if let Flags::Server = flags { FlagsPlace::Mds } else { FlagsPlace::Device };
    format::plain(env, &claimed, volume, formatted).await?;
    let mut members = device::recognise(env, vec![claimed]).await?;
    let flags = match flags {
        Flags::Device | Flags::Server => FlagsArgs::formatted(),
        Flags::Memory(path, most) => FlagsArgs::memory(path, most),
    };
    let (nvram, place) = nvram::place(env, &flags, &mut members).await?;
    config.nvram_write_max = place.write_max;
    let [first, ..] = members.as_slice() else { unreachable!("a pool has a device") };
    let aside = Arc::new(Aside::alone());
    let (link, own) = start_own(first, Arc::clone(&aside))?;
    let latencies = Rc::new(Latencies::default());
    let parts = serve::parts(env, config, &members, nvram, link, aside, latencies);
    let (unit, _) = Unit::recover(parts).await?;
    Ok((unit, own))
}

/// Writes everything once, piece by piece.
async fn fill(size: u64, write: impl AsyncFn(u64) -> Result<()>) -> Result<()> {
    for offset in (0..size).step_by(FILL as usize) {
        write(offset).await?;
    }
    Ok(())
}

/// A bar over so many cases, with an estimate, where someone looks.
pub fn progress(json: bool, cases: u64) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let progress = ProgressBar::new(cases);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg:32} {eta} left");
    progress.set_style(style.expect("the template is a constant"));
    progress
}
