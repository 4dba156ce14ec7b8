//! `flipside commit`: makes everything written so far durable, as a client's flush would.

use anyhow::Result;
use serde_json::Value;

use super::control::ControlArgs;
use crate::front::control::Request;

const EXAMPLES: &str = "\
Examples:
  All volumes of the only target that runs here, before a snapshot of its disk, say:
    flipside commit
  One volume:
    flipside commit data
  A consistency group, on all of its targets at one cut, whose name is printed:
    flipside commit --group database";

/// Flags of `flipside commit`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The volume; without it, all of them
    volume: Option<String>,
    /// A consistency group that the target has volumes of: makes one cut of all of its volumes, and
    /// prints the cut's name, which is the same on all targets
    #[arg(long, value_name = "NAME", conflicts_with = "volume")]
    group: Option<String>,
    #[command(flatten)]
    control: ControlArgs,
}

/// Make everything written so far durable.
pub fn run(args: &Args) -> Result<()> {
    let (volume, group) = (args.volume.clone(), args.group.clone());
    let answer = args.control.ask(&Request::Commit { volume, group })?;
    if args.group.is_some() {
        let Value::String(cut) = answer else { return Ok(()) };
        println!("{cut}");
    }
    Ok(())
}
