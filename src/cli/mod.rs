//! The commands, one file each.
//!
//! # Exit codes
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | done; of `serve`: stopped as it was told to, everything committed |
//! | 1 | failed; the reason is on the standard error; of `check`: the pool is damaged |
//! | 2 | the command line or the configuration file is wrong; of `check`: it could not be done |

mod atomic;
mod bench;
mod block_devices;
mod check;
mod commit;
pub mod config;
mod control;
mod device;
mod documents;
mod flags;
mod follow;
mod format;
mod group;
mod groups;
mod inspect;
mod journal;
mod link;
mod log;
mod mds;
mod mds_overview;
mod metadata;
pub mod network;
mod nvram;
mod offline;
mod operator;
mod origin;
mod overview;
mod owner;
mod plan;
mod ready;
mod scratch;
mod serve;
mod settle;
mod status;
mod tune;
mod tuning;
pub mod txn;
mod ublk;
pub mod values;
mod volume;
mod volumes;
mod warm;
mod wire_dump;
mod zero;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use log::LogFilter;

/// Block volumes on which every flush is an atomic transaction.
///
/// A disk is formatted once and then served; clients attach its volumes over NBD. After any crash
/// a volume is exactly what it was at a commit, no older than the last acknowledged flush.
#[derive(Parser)]
#[command(name = "flipside", version, after_help = EXAMPLES)]
struct Cli {
    /// What is logged: error, warn, info (the default), debug, trace, or levels of modules as in
    /// info,flipside::unit=debug; goes before RUST_LOG
    #[arg(long, global = true, value_name = "LEVEL|FILTER")]
    log: Option<LogFilter>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  flipside format --volume data=100G /dev/sdx
  flipside serve /dev/sdx
  flipside status
  flipside volume create logs 20G

Exit codes:
  0  done; of serve: stopped as it was told to, with everything committed
  1  failed; the reason is on the standard error; of check: the pool is damaged
  2  the command line or the configuration file is wrong; of check: it could not be done";

#[derive(Subcommand)]
enum Command {
    /// Make a pool of volumes on one or more devices; what they hold is lost
    Format(format::Args),
    /// Serve the volumes of a pool until told to stop
    Serve(Box<serve::Args>),
    /// Show what a running target does
    Status(status::Args),
    /// Look for damages in a pool that is not served, and repair what can be
    Check(check::Args),
    /// Keep all metadata of a pool as JSON, and put it back
    Metadata(metadata::Args),
    /// Make everything written so far durable
    Commit(commit::Args),
    /// Give back all journal space that can be
    Settle(settle::Args),
    /// Show what a running target keeps in its journal
    Journal(journal::Args),
    /// Make, list, resize, rename and delete volumes
    Volume(volume::Args),
    /// Make, list and delete consistency groups, whose volumes commit together
    Group(group::Args),
    /// Write to several volumes, of one target or of several, all of it or nothing
    Txn(txn::Args),
    /// Show or change where a pool's flags and journal are kept
    Flags(flags::Args),
    /// Show block devices of the kernel that are served from here, and go on with what is left
    Ublk(ublk::Args),
    /// Measure the engine on a device beside the device alone; what it holds is lost
    Bench(bench::Args),
    /// Measure a device for a minute and say which flags of serve suit it; what it holds is lost
    Tune(tune::Args),
    /// Serve the metadata of pools to their targets until told to stop
    Mds(mds::Args),
    /// Show the metadata protocol in a network capture
    WireDump(wire_dump::Args),
    /// Print what a shell needs to complete command lines
    Completions(documents::CompletionsArgs),
    /// Write the manual's pages into a directory
    #[command(hide = true)]
    Man(documents::ManArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = command_line();
    log::start(cli.log);
    let done = match cli.command {
        Command::Format(args) => format::run(args),
        Command::Serve(args) => serve::run(*args),
        Command::Status(args) => status::run(&args),
        Command::Check(args) => return check::run(args),
        Command::Metadata(args) => metadata::run(args),
        Command::Commit(args) => commit::run(&args),
        Command::Journal(args) => journal::run(&args),
        Command::Settle(args) => settle::run(&args),
        Command::Volume(args) => volume::run(args),
        Command::Group(args) => group::run(&args),
        Command::Txn(args) => txn::run(&args),
        Command::Flags(args) => flags::run(args),
        Command::Ublk(args) => ublk::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Mds(args) => mds::run(&args),
        Command::WireDump(args) => wire_dump::run(&args),
        Command::Completions(args) => documents::print_completions(&args, Cli::command()),
        Command::Man(args) => documents::write_man_pages(&args, Cli::command()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flipside: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The definitions of all commands.
pub fn definitions() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// The command line, with what a configuration file adds to it; ends the process if one is wrong.
fn command_line() -> Cli {
    let given: Vec<OsString> = std::env::args_os().collect();
    let mut command = definitions();
    let matches = command.clone().get_matches_from(&given);
    let extended = config::extend(given.clone(), &command, &matches);
    let extended = extended
        .unwrap_or_else(|wrong| command.error(ErrorKind::InvalidValue, wrong.to_string()).exit());
    let matches = if extended == given { matches } else { command.get_matches_from(&extended) };
    Cli::from_arg_matches(&matches).unwrap_or_else(|wrong| wrong.exit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the definitions of all commands are consistent.
    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
    }
}
