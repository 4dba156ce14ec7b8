//! Block devices of the kernel, of the volumes that `serve --listen ublk` serves.

use std::fmt;
use std::rc::Rc;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use tracing::warn;

use super::origin::Origin;
use crate::env::os::OsEnv;
use crate::format::ids::{PoolId, VolumeId};
use crate::front::listen::{Address, NotAnAddress};
use crate::front::nbd::Server;
use crate::front::ublk::wire::QUEUES_MAX;
use crate::front::ublk::{Device, Shared, UblkError, Wanted, block_device};
use crate::unit::{Unit, Volume};

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

/// Flags of block devices.
#[derive(clap::Args)]
pub struct DevicesArgs {
    /// With --listen ublk: queues of a new block device; no more than there are processors. One
    /// thread serves them all: more of them spread the kernel's side alone
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(QUEUES_MAX)))]
    ublk_queues: u16,
    /// With --listen ublk: new block devices copy the data of every request, where the kernel could
    /// (Linux 6.16) let devices fill the memory of those who read
    #[arg(long)]
    ublk_copy: bool,
}

/// What there is to serve, and how.
pub struct Served<'a> {
    /// Serves NBD clients the same volumes.
    pub server: &'a Server<Volume<OsEnv>>,
    /// The volumes.
    pub unit: &'a Unit<OsEnv>,
    /// Their pool.
    pub pool: PoolId,
    /// Whether clients may only read.
    pub read_only: bool,
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
        args: &DevicesArgs,
        served: Served<'_>,
    ) -> Result<Self> {
        let mut devices = Self::default();
        let first_ids = places.iter().filter_map(|place| match place {
            Listen::Ublk(id) => Some(*id),
            Listen::Socket(_) => None,
        });
        for first in first_ids {
            if let Err(error) = devices.add(env, first, args, &served).await {
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
        args: &DevicesArgs,
        served: &Served<'_>,
    ) -> Result<()> {
        let Served { server, unit, pool, .. } = served;
        let (ring, buffers) = (env.ring(), crate::env::Env::buffers(env));
        let (counters, latencies) = (unit.counters(), unit.latencies());
        let shared = Shared::new(ring, buffers, args.ublk_copy, counters, latencies).await?;
        for (place, volume) in (0..).zip(unit.volumes()) {
            let wanted = Wanted {
                id: first.map(|first| first.saturating_add(place)),
                tag: tag(*pool, volume.id()),
                queues: args.ublk_queues,
            };
            let name: Rc<str> = volume.name();
            let device = serve(&shared, &volume, wanted, served.read_only).await;
            let device = device.with_context(|| format!("volume {name}"))?;
            Origin::here(wanted.tag, *pool, &name).keep(device.id());
            self.0.push(device);
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
            let id = device.id();
            match device.stop().await {
                Ok(()) => Origin::forget(id),
                Err(error) => warn!("{error}"),
            }
        }
    }
}

/// Makes a volume's block device, or goes on with the one that was left behind.
async fn serve(
    shared: &Shared,
    volume: &Volume<OsEnv>,
    wanted: Wanted,
    read_only: bool,
) -> Result<Device, UblkError> {
    match Device::left(shared, wanted.tag).await? {
        Some(left) if volume.is_warm() => {
            return Device::resume(shared, volume.clone(), &left, read_only).await;
        }
        Some(left) => {
            warn!(
                volume = %volume.name(),
                "ublk device {} is removed: what it acknowledged may be lost",
                left.id
            );
            Device::remove(shared, &left).await?;
        }
        None => {}
    }
    Device::start(shared, volume.clone(), wanted, read_only).await
}

/// What the device of a volume is known by.
fn tag(pool: PoolId, volume: VolumeId) -> u64 {
    let [high, low] = [0, 8].map(|at| {
        let word = pool.0[at..].first_chunk().expect("a pool's name has two words");
        u64::from_le_bytes(*word)
    });
    (high ^ low.rotate_left(32)).wrapping_add(volume.0.into())
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
