//! `flipside status`: what a running target does, for people or as JSON.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::control::ControlArgs;
use super::overview;
use crate::env::os::nvram::Persistence;
use crate::front::control::Request;
use crate::observe::Snapshot;
use crate::unit::RecoveryReport;

const EXAMPLES: &str = "\
Examples:
  The only target that runs here:
    flipside status
  One of several, again every second:
    watch -n 1 flipside status --control /run/flipside/POOL-ID.control
  For a program:
    flipside status --json | jq .rates";

/// Flags of `flipside status`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print JSON, whose names stay from version to version
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    control: ControlArgs,
}

/// What a target found when it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Groups of the journal that were applied again.
    pub groups: u64,
    /// Area pairs in use.
    pub pairs: u64,
    /// Pairs that the metadata server had not been told of.
    pub told: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

impl From<RecoveryReport> for Recovery {
    fn from(report: RecoveryReport) -> Self {
        Self {
            groups: report.groups as u64,
            pairs: report.pairs as u64,
            told: report.told as u64,
            took_us: u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { groups, pairs, told, took_us } = self;
        let ms = *took_us as f64 / 1000.0;
        write!(f, "in {ms:.1} ms: {groups} groups of the journal applied, {pairs} extents in use")?;
        match told {
            0 => Ok(()),
            told => write!(f, ", {told} of them news to the metadata server"),
        }
    }
}

/// Where a target keeps flags and journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlagsReport {
    /// As `--flags` has it.
    pub place: String,
    /// The NVRAM, where they are in one.
    pub nvram: Option<String>,
    /// What makes writes to it durable.
    pub persistence: Option<String>,
    /// Whether it is durable only as far as memory is.
    pub memory_trusted: bool,
}

impl FlagsReport {
    /// On the first device.
    pub fn device() -> Self {
        Self { place: "device".to_owned(), ..Self::default() }
    }

    /// At the metadata server.
    pub fn mds() -> Self {
        Self { place: "mds".to_owned(), ..Self::default() }
    }

    /// In NVRAM.
    pub fn nvram(path: &Path, persistence: Persistence) -> Self {
        Self {
            place: "nvram".to_owned(),
            nvram: Some(path.display().to_string()),
            persistence: Some(persistence.to_string()),
            memory_trusted: persistence == Persistence::TrustedMemory,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = self.place.clone();
        for more in [&self.nvram, &self.persistence].into_iter().flatten() {
            text.push_str(", ");
            text.push_str(more);
        }
        if self.memory_trusted {
            text.push_str(": LOST with the machine's power unless its memory survives");
        }
        text
    }
}

/// A target at one moment. The names are those of `status --json` and stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The program's version.
    pub version: String,
    /// The pool's id.
    pub pool: String,
    /// The target's process.
    pub pid: u32,
    /// How long it has been serving, in seconds.
    pub uptime_s: u64,
    /// The devices of the pool.
    pub devices: Vec<String>,
    /// Where flags and journal are.
    pub flags: FlagsReport,
    /// Where its exports can be found.
    pub exports: Vec<String>,
    /// What it found when it started.
    pub recovery: Recovery,
    /// What the metadata server counts, where it answered in time.
    pub metadata_server: Option<Value>,
    /// What it has counted and timed.
    #[serde(flatten)]
    pub snapshot: Snapshot,
}

/// Shows what a target does.
pub fn run(args: &Args) -> Result<()> {
    let answer = args.control.ask(&Request::Status)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        let report = serde_json::from_value(answer).context("the target is of another version")?;
        print!("{}", overview::text(&report));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a report survives the way to the client, with the counters' published names on top.
    #[test]
    fn reports_round_trip() {
        let report = Report { pool: "p".into(), pid: 7, ..Report::default() };
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["commits"].is_u64() && json["pool"] == "p");
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }

    /// Goal: a recovery is told with all that it found.
    #[test]
    fn recoveries_are_told() {
        let mut recovery = Recovery { groups: 5, pairs: 120, told: 0, took_us: 23_400 };
        let all = "in 23.4 ms: 5 groups of the journal applied, 120 extents in use";
        assert_eq!(recovery.to_string(), all);
        recovery.told = 7;
        assert_eq!(recovery.to_string(), format!("{all}, 7 of them news to the metadata server"));
    }
}
