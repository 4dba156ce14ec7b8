//! The commands, one file each.
//!
//! # Exit codes
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | done; of `serve`: stopped as it was told to, everything committed |
//! | 1 | failed; the reason is on the standard error |
//! | 2 | the command line is wrong |

mod commit;
mod control;
mod device;
mod format;
mod inspect;
mod nvram;
mod operator;
mod plan;
mod serve;

mod settle;
mod status;
pub mod values;
mod zero;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Block volumes on which every flush is an atomic transaction.
///
/// A disk is formatted once and then served; clients attach its volumes over NBD. After any crash
/// a volume is exactly what it was at a commit, no older than the last acknowledged flush.
#[derive(Parser)]
#[command(name = "flipside", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  flipside format --volume data=100G /dev/sdx
  flipside serve /dev/sdx
  flipside status

Exit codes: 0 done, 1 failed, 2 wrong command line.";

#[derive(Subcommand)]
enum Command {
    /// Make a pool of volumes on one or more devices; what they hold is lost
    Format(format::Args),
    /// Serve the volumes of a pool until told to stop
    Serve(serve::Args),
    /// Show what a running target does
    Status(status::Args),
    /// Make everything written so far durable
    Commit(commit::Args),
    /// Give back all journal space that can be
    Settle(settle::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log();
    let done = match cli.command {
        Command::Format(args) => format::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Status(args) => status::run(&args),
        Command::Commit(args) => commit::run(&args),
        Command::Settle(args) => settle::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flipside: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs to the standard error what `RUST_LOG` asks for; by default what an operator should know.
fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the definitions of all commands are consistent.
    #[test]
    fn definitions_are_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
