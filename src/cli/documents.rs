//! `flipside completions` and `flipside man`: what a shell and `man` know about the commands.
//!
//! Both are made from the definitions of the commands, so that they cannot differ from them.

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  For this session of bash:
    source <(flipside completions bash)
  For every session of fish:
    flipside completions fish > ~/.config/fish/completions/flipside.fish";

/// Flags of `flipside completions`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell they are for
    #[arg(value_enum)]
    shell: Shell,
}

/// Flags of `flipside man`.
#[derive(clap::Args)]
pub struct ManArgs {
    /// Where the pages are put; made if it is not there
    directory: PathBuf,
}

/// Prints what a shell needs to complete command lines of `command`.
pub fn print_completions(args: &CompletionsArgs, mut command: Command) -> Result<()> {
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut text);
    io::stdout().write_all(&text).context("the completions could not be written")
}

/// Writes a page for `command` and one for each of its commands.
pub fn write_man_pages(args: &ManArgs, command: Command) -> Result<()> {
    let place = || args.directory.display().to_string();
    fs::create_dir_all(&args.directory).with_context(place)?;
    clap_mangen::generate_to(command.disable_help_subcommand(true), &args.directory)
        .with_context(place)
}
