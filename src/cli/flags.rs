//! `flipside flags`: where a pool's flags and journal are kept, shown and changed.
//!
//! # Contracts
//!
//! - **Stopped**: the devices are claimed, so nobody serves the pool meanwhile.
//! - **Atomicity**: of `move`, see [`relocate`](mod@relocate): cut short, the flags are where they
//!   were or where they were to go, and the same command again completes it.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use uuid::Uuid;

use super::device::{self, PoolMember, disks, same_file};
use super::nvram::{NvramArgs, Place, first, open_existing, open_new};
use super::values::Size;
use super::warm;
use crate::env::os::{OsEnv, OsNvram};
use crate::format::superblock::FlagsPlace;
use crate::journal::relocate::{Move, Moved, relocate};

/// Memory for I/O, in bytes.
const BUFFERS_LEN: usize = 16 << 20;

const EXAMPLES: &str = "\
Examples:
  From the first device into a file on persistent memory, which is made:
    flipside flags move --to nvram --nvram /mnt/pmem/flags /dev/sdx
  Back, and the file is free for another pool:
    flipside flags move --to device --nvram /mnt/pmem/flags /dev/sdx
  Into another file, with more room for the journal:
    flipside flags move --to nvram --nvram /mnt/new --nvram-size 256M --from /mnt/old /dev/sdx
  Where are they?
    flipside flags show /dev/sdx

The pool must not be served meanwhile. What is moved is what a start would recover, so it need not
have been stopped well. A move that is cut short, at any moment, is completed by the same command.";

/// Flags of `flipside flags`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Move flags and journal of a pool that is not served to another place
    Move(MoveArgs),
    /// Show where flags and journal of a pool that is not served are
    Show(ShowArgs),
}

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
struct MoveArgs {
    /// Where they are to be
    #[arg(long, value_enum, requires_if("nvram", "nvram"))]
    to: Place,
    #[command(flatten)]
    nvram: NvramArgs,
    /// The NVRAM that they are in, where --nvram is another one
    #[arg(long, value_name = "PATH", requires = "nvram")]
    from: Option<PathBuf>,
    /// Overwrite what the new place holds, even a newer state of the same pool: that is lost
    #[arg(long)]
    force: bool,
    /// All devices of the pool, in any order
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
}

#[derive(clap::Args)]
struct ShowArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// All devices of the pool, in any order
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<PathBuf>,
}

/// Shows or moves.
pub fn run(args: Args) -> Result<()> {
    let (ring, env) = device::environment(BUFFERS_LEN)?;
    let done = ring.block_on(async move {
        match args.command {
            Command::Move(args) => move_flags(&env, &args).await,
            Command::Show(args) => show(&env, &args).await,
        }
    });
    ring.shutdown();
    println!("{}", done?);
    Ok(())
}

async fn recognised(env: &OsEnv, devices: &[PathBuf]) -> Result<Vec<PoolMember>> {
    device::recognise(env, warm::claim_unserved(env, devices).await?).await
}

async fn show(env: &OsEnv, args: &ShowArgs) -> Result<String> {
    let members = recognised(env, &args.devices).await?;
    if args.json {
        return Ok(shown(first(&members).flags, &members).to_string());
    }
    Ok(format!("the flags are {}", described(&members)))
}

/// The same for programs.
fn shown(flags: FlagsPlace, members: &[PoolMember]) -> serde_json::Value {
    match flags {
        FlagsPlace::Nvram { region, len } => {
            let region = Uuid::from_bytes(region).to_string();
            serde_json::json!({ "flags": "nvram", "region": region, "bytes": len })
        }
        FlagsPlace::Mds => serde_json::json!({ "flags": "mds" }),
        FlagsPlace::Device => {
            let device = members.first().map(|member| &member.claimed.path);
            serde_json::json!({ "flags": "device", "device": device })
        }
    }
}

fn described(members: &[PoolMember]) -> String {
    match (first(members).flags, members) {
        (FlagsPlace::Nvram { region, len }, _) => {
            format!("in the NVRAM region {} of {}", Uuid::from_bytes(region), Size(len))
        }
        (FlagsPlace::Mds, _) => "at the metadata server".to_owned(),
        (_, [first, ..]) => format!("on {}", first.claimed.path.display()),
        (_, []) => unreachable!("a pool has a device"),
    }
}

async fn move_flags(env: &OsEnv, args: &MoveArgs) -> Result<String> {
    let mut members = recognised(env, &args.devices).await?;
    ensure!(
        args.to != Place::Mds && first(&members).flags != FlagsPlace::Mds,
        "the flags are {}, and cannot be moved to or from the metadata server: copy the volumes \
         into a pool made with `flipside format --flags`",
        described(&members)
    );
    let (from, to) = ends(args, &members)?;
    let from = match from {
        Some(path) => Some(open_existing(env, &args.nvram, path, &members).await?),
        None => None,
    };
    let to: Option<OsNvram> = match to {
        Some(path) => Some(open_new(env, &args.nvram, path, &members, args.force).await?),
        None => None,
    };
    let wanted = Move { from: from.as_ref(), to: to.as_ref(), force: args.force };
    let moved = relocate(env, &mut disks(&mut members), wanted).await?;
    let place = described(&members);
    Ok(match moved {
        Moved::Now => format!("the flags are {place} from now on"),
        Moved::Completed => format!("the flags are {place}; what the move had left is erased"),
        Moved::Before => format!("the flags are {place} already"),
    })
}

/// The NVRAM that flags may be in, and the one that they go to, checked as far as their paths and
/// the pool tell.
fn ends<'a>(
    args: &'a MoveArgs,
    members: &[PoolMember],
) -> Result<(Option<&'a Path>, Option<&'a Path>)> {
    let (nvram, from) = (args.nvram.path.as_deref(), args.from.as_deref());
    if args.to == Place::Device {
        ensure!(from.is_none(), "--from is of use with --to nvram only: say --nvram");
        return Ok((nvram, None));
    }
    let place = described(members);
    let in_nvram = matches!(first(members).flags, FlagsPlace::Nvram { .. });
    let to = nvram.expect("clap requires it");
    match from {
        Some(from) => {
            ensure!(in_nvram, "the flags are {place}, not in {}: leave out --from", from.display());
            ensure!(!same_file(from, to), "--nvram and --from are the same");
        }
        // Nothing is made before it is of use.
        None => ensure!(!in_nvram || to.exists(), "the flags are {place}: say --from PATH too"),
    }
    Ok((from, Some(to)))
}
