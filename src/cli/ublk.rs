//! `flipside ublk`: block devices of the kernel that are served, and those that are left behind.

use anyhow::{Result, anyhow, bail, ensure};

use super::origin::Origin;
use crate::front::ublk::wire::DeviceInfo;
use crate::front::ublk::{Control, block_device, feature_names};

const EXAMPLES: &str = "\
Examples:
  What block devices there are, served by whatever program, and what the kernel can do:
    flipside ublk list
  A device whose target was killed waits, and the next target of the pool on the same boot goes on
  with it. To start that again as it was started before, here, until it is told to stop:
    flipside ublk recover 0
  To remove it instead, so that its clients see errors:
    flipside ublk delete 0
  All that nobody serves:
    flipside ublk delete --dead";

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
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Start again the target that served a block device, and go on with it
    Recover {
        /// Its number; where the devices of one target alone wait it is found without
        #[arg(value_name = "ID")]
        id: Option<u32>,
    },
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
        Command::List { json: false } => list(&control),
        Command::List { json: true } => list_json(&control),
        Command::Recover { id } => recover(&control, *id),
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
        let id = info.id.get();
        println!(
            "{}: {}, process {}, {} queue(s) of {} requests of up to {} bytes; {}",
            block_device(id).display(),
            info.state_name(),
            info.pid,
            info.queues,
            info.depth,
            info.request_max,
            feature_names(info.features.get()).join(" ")
        );
        if let Some(origin) = Origin::of(&info) {
            println!("  {origin}");
        }
        if info.is_quiesced() {
            println!("  its clients wait: flipside ublk recover {id}, or delete {id}");
        }
    }
    println!("the kernel has: {}", feature_names(control.features()?).join(" "));
    Ok(())
}

fn list_json(control: &Control) -> Result<()> {
    let device = |info: &DeviceInfo| {
        serde_json::json!({
            "id": info.id.get(),
            "device": block_device(info.id.get()),
            "state": info.state_name(),
            "pid": info.pid.get(),
            "queues": info.queues.get(),
            "depth": info.depth.get(),
            "request_max": info.request_max.get(),
            "features": feature_names(info.features.get()),
            "origin": Origin::of(info).map(|origin| origin.to_string()),
            "recoverable": info.is_quiesced(),
        })
    };
    let devices: Vec<_> = control.list()?.iter().map(device).collect();
    let features = feature_names(control.features()?);
    println!("{}", serde_json::json!({ "devices": devices, "kernel_features": features }));
    Ok(())
}

/// Becomes the target that served a device, or all that wait.
fn recover(control: &Control, id: Option<u32>) -> Result<()> {
    let waiting = match id {
        Some(id) => vec![control.info(id)?],
        None => control.list()?.into_iter().filter(DeviceInfo::is_quiesced).collect(),
    };
    let mut origins = Vec::with_capacity(waiting.len());
    for info in &waiting {
        origins.push((info.id.get(), origin_of_waiting(info)?));
    }
    let [(_, first), others @ ..] = origins.as_slice() else { bail!("no ublk device waits") };
    if others.iter().any(|(_, other)| !other.is_of_same_target(first)) {
        let list: Vec<_> = origins.iter().map(|(id, origin)| format!("{id}: {origin}")).collect();
        bail!("devices of several targets wait; choose one of them:\n  {}", list.join("\n  "));
    }
    eprintln!("{first}");
    Err(first.start_again())
}

fn origin_of_waiting(info: &DeviceInfo) -> Result<Origin> {
    let (id, pid) = (info.id, info.pid);
    ensure!(!info.is_served(), "ublk device {id} is served by process {pid}: nothing is lost");
    ensure!(
        info.is_quiesced(),
        "ublk device {id} is {} and cannot be gone on with; `flipside ublk delete {id}` removes it",
        info.state_name()
    );
    Origin::of(info).ok_or_else(|| {
        anyhow!(
            "it is not known how ublk device {id} was served; if it was by Flipside, start that as \
             before (flipside serve --listen ublk DEVICE...)"
        )
    })
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
    control.delete(id)?;
    Origin::forget(id);
    Ok(())
}
