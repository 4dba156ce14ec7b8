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
  All members of a group at one cut, here and elsewhere; its identity is printed:
    flipside commit --group databases";

/// Flags of `flipside commit`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The volume; without it, all of them
    volume: Option<String>,
    /// A consistency group with a member here: all of it, on all targets, at one cut
    #[arg(long, value_name = "NAME", conflicts_with = "volume")]
    group: Option<String>,
    #[command(flatten)]
    control: ControlArgs,
}

/// Make everything written so far durable.
pub fn run(args: &Args) -> Result<()> {
    let (volume, group) = (args.volume.clone(), args.group.clone());
    if let Value::String(cut) = args.control.ask(&Request::Commit { volume, group })? {
        println!("{cut}");
    }
    Ok(())
}
