//! `flipside settle`: gives back the journal space of areas by swapping or copying, now.

use anyhow::Result;
use serde_json::Value;

use super::control::ControlArgs;
use crate::front::control::Request;

const EXAMPLES: &str = "\
Examples:
  All volumes of the only target that runs here, in a quiet hour:
    flipside settle
  One volume:
    flipside settle data";

/// Flags of `flipside settle`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The volume; without it, all of them
    volume: Option<String>,
    #[command(flatten)]
    control: ControlArgs,
}

/// Give back all journal space that can be.
pub fn run(args: &Args) -> Result<()> {
    let done = args.control.ask(&Request::Settle { volume: args.volume.clone() })?;
    let count = |name: &str| done.get(name).and_then(Value::as_u64).unwrap_or(0);
    println!(
        "{} areas swapped, {} committed, {} released; {} blocks copied",
        count("swaps"),
        count("area_commits"),
        count("released"),
        count("blocks_copied")
    );
    Ok(())
}
