//! `flipside volume`: makes, lists, resizes, renames and deletes volumes, of a running target or of
//! devices that are not served.
//!
//! On devices, the pool is recovered in this process as `serve` does it, changed, and shut down
//! cleanly; so what is left of a crash or of a deletion is ended on the way.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde_json::Value;

use super::control::ControlArgs;
use super::device;
use super::link::{self, OwnServer};
use super::nvram::{self, FlagsArgs};
use super::serve;
use super::values::{Name, Size};
use super::volumes::{self, Listed};
use super::warm;
use crate::env::aside::Aside;
use crate::env::os::OsEnv;
use crate::format::superblock::MetadataAt;
use crate::front::control::{Request, VolumeRequest};
use crate::observe::Latencies;
use crate::unit::{Config, Unit};

/// Memory for I/O on devices that are not served, in bytes.
const BUFFERS_LEN: usize = 64 << 20;

const EXAMPLES: &str = "\
Examples:
  Of the target that runs:
    flipside volume create logs 20G
    flipside volume list
    flipside volume resize logs 40G
    flipside volume rename logs archive
    flipside volume delete archive
  Of a pool that is not being served, naming all of its devices:
    flipside volume create logs 20G /dev/sdx /dev/sdy

Volumes are thin: together they may be larger than the pool. Clients see a new size when they
connect again. A deleted volume's space is free again a while after the command has ended.

Exit codes:
  0  done
  1  failed; the reason is on the standard error
  2  the command line is wrong";

/// Flags of `flipside volume`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Make a volume
    Create {
        /// Its name
        name: Name,
        /// Its size: a number with K, M, G or T
        size: Size,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// List the volumes
    List {
        /// Print JSON, whose names stay from version to version
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Change the size of a volume
    Resize {
        /// Its name
        name: String,
        /// Its new size
        size: Size,
        /// Accept a smaller size: what is beyond it is lost
        #[arg(long)]
        shrink: bool,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Delete a volume and all that is on it
    Delete {
        /// Its name
        name: String,
        /// Delete it even while clients are connected: they get errors, and are disconnected
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Give a volume another name
    Rename {
        /// Its name
        name: String,
        /// Its new name
        #[arg(value_name = "NEW_NAME")]
        to: Name,
        #[command(flatten)]
        place: PlaceArgs,
    },
}

/// Where the pool is.
#[derive(clap::Args)]
#[command(mut_arg("nvram", |nvram| nvram.requires("devices")))]
struct PlaceArgs {
    #[command(flatten)]
    control: ControlArgs,
    #[command(flatten)]
    flags: FlagsArgs,
    /// All devices of a pool that is not being served; without any, the target that runs is asked
    #[arg(value_name = "DEVICE", conflicts_with = "control")]
    devices: Vec<PathBuf>,
}

/// Carries out one of the actions.
pub fn run(args: Args) -> Result<()> {
    match args.action {
        Action::Create { name: Name(name), size, place } => {
            place.ask(VolumeRequest::Create { name: name.clone(), size: size.0 })?;
            println!("volume {name} of {size}");
        }
        Action::List { json, place } => {
            let answer = place.ask(VolumeRequest::List)?;
            if json {
                println!("{}", serde_json::to_string_pretty(&answer)?);
            } else {
                let volumes = serde_json::from_value(answer);
                println!("{}", table(volumes.context("the target is of another version")?));
            }
        }
        Action::Resize { name, size, shrink, place } => {
            place.ask(VolumeRequest::Resize { name: name.clone(), size: size.0, shrink })?;
            println!("volume {name} of {size}");
        }
        Action::Delete { name, force, place } => {
            place.ask(VolumeRequest::Delete { name, force })?;
        }
        Action::Rename { name, to: Name(to), place } => {
            place.ask(VolumeRequest::Rename { name, to })?;
        }
    }
    Ok(())
}

/// The list for people.
fn table(volumes: Vec<Listed>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["volume", "size", "allocated", "clients"]);
    for volume in volumes {
        let sizes = [volume.size, volume.allocated].map(|size| Size(size).to_string());
        let [size, allocated] = sizes;
        table.add_row([volume.name, size, allocated, volume.clients.to_string()]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

impl PlaceArgs {
    fn ask(self, request: VolumeRequest) -> Result<Value> {
        if self.devices.is_empty() {
            return self.control.ask(&Request::Volume(request));
        }
        let (ring, env) = device::environment(BUFFERS_LEN)?;
        let done = ring.block_on(on_devices(env, self.devices, self.flags, request));
        // Tasks hold the link to the metadata server, which ends when the last of them is gone.
        ring.shutdown();
        let (done, own_server) = done?;
        own_server.await_end();
        done
    }
}

/// Carries out a request on a pool that nobody serves; how that went, and the metadata server
/// that is left.
async fn on_devices(
    env: OsEnv,
    devices: Vec<PathBuf>,
    flags: FlagsArgs,
    request: VolumeRequest,
) -> Result<(Result<Value>, OwnServer)> {
    let claimed = warm::claim_unserved(&env, &devices).await?;
    let mut members = device::recognise(&env, claimed).await?;
    ensure!(
        nvram::first(&members).metadata == MetadataAt::Device,
        "the metadata of this pool are at a metadata server: serve it, and leave out the devices"
    );
    let (nvram, _) = nvram::place(&env, &flags, &mut members).await?;
    let [first, ..] = members.as_slice() else { unreachable!("a pool has a device") };
    let aside = Arc::new(Aside::alone());
    let (link, own_server) = link::start_own(first, Arc::clone(&aside))?;
    let latencies = Rc::new(Latencies::default());
    let parts = serve::parts(&env, Config::default(), &members, nvram, link, aside, latencies);
    let (unit, _) = Unit::recover(parts).await?;
    let done = volumes::carry_out(&unit, None, request).await.map_err(|reason| anyhow!(reason));
    unit.deletions_ended().await;
    let stopped = unit.shut_down().await.context("not everything could be committed");
    Ok((done.and_then(|value| stopped.map(|()| value)), own_server))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the list for people shows what the other one has.
    #[test]
    fn the_list_is_a_table() {
        let volume = Listed { name: "logs".into(), size: 3 << 30, allocated: 5 << 20, clients: 2 };
        let text = table(vec![volume]);
        for part in ["volume", "logs", "3.0 GiB", "5.0 MiB", " 2"] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }
}
