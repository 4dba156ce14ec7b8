//! Block devices of the kernel: `serve --listen ublk`, and `flipside ublk` for what is left behind.

use std::fmt;
use std::rc::Rc;
use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use tracing::warn;

use crate::env::os::OsEnv;
use crate::format::ids::{PoolId, VolumeId};
use crate::front::listen::{Address, NotAnAddress};
use crate::front::nbd::Server;
use crate::front::ublk::{Control, Device, Shared, block_device, feature_names};
use crate::unit::{Unit, Volume};

const EXAMPLES: &str = "\
Examples:
  What block devices there are, served by whatever program, and what the kernel can do:
    flipside ublk list
  A device whose target was killed waits, and the next target of the pool on the same boot goes on
  with it (flipside serve). To remove it instead, so that its clients see errors:
    flipside ublk delete 0
  All that nobody serves:
    flipside ublk delete --dead";

/// Where clients are served, as `serve --listen` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// NBD clients at a socket.
    Socket(Address),
    /// The kernel, by a block device for each volume: with this number and the following, or any.
    Ublk(Option<u32>),
}

/// Not a place to serve at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAPlace {
    /// Not an address.
    #[error("{0}, or ublk[:ID]")]
    Address(#[from] NotAnAddress),
    /// Not a number of a device.
    #[error("'{0}' is no number of a block device: use ublk or ublk:ID, as in ublk:0")]
    Device(String),
}

impl FromStr for Listen {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        match text.split_once(':') {
            None if text == "ublk" => Ok(Self::Ublk(None)),
            Some(("ublk", id)) => match id.parse() {
                Ok(id) if id < u32::MAX => Ok(Self::Ublk(Some(id))),
                _ => Err(NotAPlace::Device(id.to_owned())),
            },
            _ => Ok(Self::Socket(text.parse()?)),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Ublk(None) => f.write_str("ublk"),
            Self::Ublk(Some(id)) => write!(f, "ublk:{id}"),
        }
    }
}

/// The block devices of a target.
#[derive(Default)]
pub struct Devices(Vec<Device>);

impl Devices {
    /// Makes a block device of each volume, as often as `places` say, or goes on with those that a
    /// target of that pool left behind. The volumes count as having a client from then on.
    pub async fn start(
        env: &OsEnv,
        places: &[Listen],
        (unit, pool): (&Unit<OsEnv>, PoolId),
        server: &Server<Volume<OsEnv>>,
        read_only: bool,
    ) -> Result<Self> {
        let mut devices = Self::default();
        let first_ids = places.iter().filter_map(|place| match place {
            Listen::Ublk(id) => Some(*id),
            Listen::Socket(_) => None,
        });
        for first in first_ids {
            if let Err(error) = devices.add(env, first, (unit, pool), server, read_only).await {
                devices.stop().await;
                return Err(error);
            }
        }
        Ok(devices)
    }

    async fn add(
        &mut self,
        env: &OsEnv,
        first: Option<u32>,
        (unit, pool): (&Unit<OsEnv>, PoolId),
        server: &Server<Volume<OsEnv>>,
        read_only: bool,
    ) -> Result<()> {
        let (ring, buffers) = (env.ring(), crate::env::Env::buffers(env));
        let shared = Shared::new(ring, buffers, unit.counters(), unit.latencies()).await?;
        for (place, volume) in (0..).zip(unit.volumes()) {
            let name: Rc<str> = volume.name();
            let id = first.map(|first| first.saturating_add(place));
            let tag = tag(pool, volume.id());
            let device = match Device::left(&shared, tag).await? {
                Some(left) if volume.is_warm() => {
                    Device::resume(&shared, volume.clone(), &left, read_only).await
                }
                left => {
                    if let Some(left) = left {
                        warn!(
                            volume = %name,
                            "ublk device {} is removed: what it acknowledged may be lost",
                            left.id
                        );
                        Device::remove(&shared, &left).await?;
                    }
                    Device::start(&shared, volume.clone(), (id, tag), read_only).await
                }
            };
            self.0.push(device.with_context(|| format!("volume {name}"))?);
            server.attach(volume);
        }
        Ok(())
    }

    /// Where the block devices are.
    pub fn paths(&self) -> Vec<String> {
        self.0.iter().map(|device| block_device(device.id()).display().to_string()).collect()
    }

    /// Removes them all, after what is dirty was written; what cannot be removed is said.
    pub async fn stop(self) {
        for device in self.0 {
            if let Err(error) = device.stop().await {
                warn!("{error}");
            }
        }
    }
}

/// What the device of a volume is known by.
fn tag(pool: PoolId, volume: VolumeId) -> u64 {
    let [high, low] = [0, 8].map(|at| {
        let word = pool.0[at..].first_chunk().expect("a pool's name has two words");
        u64::from_le_bytes(*word)
    });
    (high ^ low.rotate_left(32)).wrapping_add(volume.0.into())
}

/// Flags of `flipside ublk`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show all block devices that programs serve, and what the kernel can do
    List,
    /// Remove block devices that are left behind
    Delete {
        /// Their numbers
        #[arg(value_name = "ID", required_unless_present = "dead")]
        ids: Vec<u32>,
        /// All that nobody serves
        #[arg(long)]
        dead: bool,
        /// Also one that is served: it is taken away from whoever serves and uses it
        #[arg(long)]
        force: bool,
    },
}

/// Shows or removes block devices.
pub fn run(args: &Args) -> Result<()> {
    let control = Control::open()?;
    match &args.command {
        Command::List => list(&control),
        Command::Delete { ids, dead, force } => {
            let mut ids = ids.clone();
            if *dead {
                let all = control.list()?.into_iter().filter(|info| !info.is_served());
                ids.extend(all.map(|info| info.id.get()));
            }
            ids.iter().try_for_each(|&id| delete(&control, id, *force))
        }
    }
}

fn list(control: &Control) -> Result<()> {
    for info in control.list()? {
        println!(
            "{}: {}, process {}, {} queue(s) of {} requests of up to {} bytes; {}",
            block_device(info.id.get()).display(),
            info.state_name(),
            info.pid,
            info.queues,
            info.depth,
            info.request_max,
            feature_names(info.features.get()).join(" ")
        );
    }
    println!("the kernel has: {}", feature_names(control.features()?).join(" "));
    Ok(())
}

fn delete(control: &Control, id: u32, force: bool) -> Result<()> {
    let info = control.info(id)?;
    if info.is_served() {
        let pid = info.pid;
        ensure!(force, "ublk device {id} is served by process {pid}; stop that, or say --force");
    }
    if info.is_there() {
        control.stop(id)?;
    }
    Ok(control.delete(id)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: places are read and shown as documented, and what is none says what would be one.
    #[test]
    fn places() {
        for text in ["ublk", "ublk:0", "ublk:17", "unix:/run/x", "tcp:10809"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in ["ublk:", "ublk:x", "ublk:-1", "ublk:4294967295"] {
            let error = text.parse::<Listen>().unwrap_err();
            assert!(error.to_string().contains("ublk:ID"), "{error}");
        }
        let error = "ublks".parse::<Listen>().unwrap_err();
        assert!(
            error.to_string().contains("unix:PATH or tcp:[HOST:]PORT, or ublk[:ID]"),
            "{error}"
        );
    }
}
