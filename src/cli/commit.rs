//! `flipside commit`: makes everything written so far durable, as a client's flush would.

use anyhow::Result;

use super::control::ControlArgs;
use crate::front::control::Request;

const EXAMPLES: &str = "\
Examples:
  All volumes of the only target that runs here, before a snapshot of its disk, say:
    flipside commit
  One volume:
    flipside commit data";

/// Flags of `flipside commit`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The volume; without it, all of them
    volume: Option<String>,
    #[command(flatten)]
    control: ControlArgs,
}

/// Make everything written so far durable.
pub fn run(args: &Args) -> Result<()> {
    args.control.ask(&Request::Commit { volume: args.volume.clone() }).map(drop)
}
