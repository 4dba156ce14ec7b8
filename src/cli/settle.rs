//! `flipside settle`: gives back the journal space of areas by swapping or copying, now.

use anyhow::Result;

use super::control::ControlArgs;
use crate::front::control::Request;

/// Flags of `flipside settle`.
#[derive(clap::Args)]
pub struct Args {
    /// The volume; without it, all of them
    volume: Option<String>,
    #[command(flatten)]
    control: ControlArgs,
}

/// Give back all journal space that can be.
pub fn run(args: &Args) -> Result<()> {
    args.control.ask(&Request::Settle { volume: args.volume.clone() }).map(drop)
}
