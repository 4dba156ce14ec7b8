//! `flipside status`: what a running target does, for people or as JSON.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::control::ControlArgs;
use super::values::Size;
use crate::env::os::nvram::Persistence;
use crate::front::control::Request;
use crate::observe::{LatencySummary, Snapshot, SpaceGauges};
use crate::unit::RecoveryReport;

/// Flags of `flipside status`.
#[derive(clap::Args)]
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

    /// In NVRAM.
    pub fn nvram(path: &Path, persistence: Persistence) -> Self {
        Self {
            place: "nvram".to_owned(),
            nvram: Some(path.display().to_string()),
            persistence: Some(persistence.to_string()),
            memory_trusted: persistence == Persistence::TrustedMemory,
        }
    }

    fn text(&self) -> String {
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
        print!("{}", text(&report));
    }
    Ok(())
}

/// The report for people.
fn text(report: &Report) -> String {
    let now = &report.snapshot;
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(out, "{name:<16} {value}").expect("a string takes all");
    };
    line("pool", report.pool.clone());
    line("devices", report.devices.join(", "));
    line("flags", report.flags.text());
    for export in &report.exports {
        line("export", export.clone());
    }
    line("serving", format!("for {} s, version {}", report.uptime_s, report.version));
    let recovery = report.recovery;
    line(
        "recovered",
        format!(
            "{} groups, {} pairs, in {:.1} ms",
            recovery.groups,
            recovery.pairs,
            recovery.took_us as f64 / 1000.0
        ),
    );
    let written = now.device_bytes_written;
    line("clients wrote", Size(now.client_bytes_written).to_string());
    line(
        "devices wrote",
        format!(
            "{} (data {}, copies {}, metadata {})",
            Size(written.total()),
            Size(written.data),
            Size(written.copies),
            Size(written.metadata)
        ),
    );
    if let Some(amplification) = now.write_amplification {
        line("amplification", format!("{amplification:.3}"));
    }
    line("commits", format!("{} ({} early)", now.commits, now.early_commits));
    line(
        "settled",
        format!(
            "{} swaps, {} area commits, {} blocks copied",
            now.swaps, now.area_commits, now.blocks_copied
        ),
    );
    line("journal", format!("{} extents free", now.journal_extents_free));
    line("space", space_text(now.space));
    line("connections", format!("{} open", now.connections_open));
    for volume in &now.volumes {
        let state = volume.latched.as_ref().map_or_else(
            || format!("epoch {}", volume.epoch),
            |reason| format!("epoch {}, STOPPED: {reason}", volume.epoch),
        );
        line("volume", format!("{} of {}, {state}", volume.name, Size(volume.size)));
    }
    let latency = &now.latency_us;
    let rows = [
        ("read", latency.read),
        ("write", latency.write),
        ("flush", latency.flush),
        ("trim", latency.trim),
        ("commit", latency.commit),
    ];
    out.push('\n');
    out.push_str(&latency_table(&rows));
    out.push('\n');
    out
}

fn space_text(space: SpaceGauges) -> String {
    let SpaceGauges { data_extents, data_extents_used, percent, mark_crossed } = space;
    let mark = mark_crossed.map(|mark| format!(", beyond the mark of {mark}%"));
    let mark = mark.unwrap_or_default();
    format!("{data_extents_used} of {data_extents} data extents used, {percent}%{mark}")
}

fn latency_table(rows: &[(&str, LatencySummary)]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["latency, µs", "count", "mean", "p50", "p90", "p99", "p99.9", "max"]);
    for (name, of) in rows {
        let numbers = [of.mean, of.p50, of.p90, of.p99, of.p999, of.max];
        let cells = numbers.iter().map(|number| format!("{number:.0}"));
        table.add_row([(*name).to_owned(), of.count.to_string()].into_iter().chain(cells));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::VolumeGauges;

    /// Goal: a report survives the way to the client, with the counters' published names on top.
    #[test]
    fn reports_round_trip() {
        let report = Report { pool: "p".into(), pid: 7, ..Report::default() };
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["commits"].is_u64() && json["pool"] == "p");
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }

    /// Goal: what an operator must not miss is in the text.
    #[test]
    fn a_stopped_volume_is_said() {
        let mut report = Report { pool: "pool-id".into(), ..Report::default() };
        let latched = Some("a flush failed".to_owned());
        let volume = VolumeGauges { name: "v".into(), size: 1 << 20, epoch: 3, latched };
        report.snapshot.volumes.push(volume);
        report.snapshot.space = SpaceGauges {
            data_extents: 10,
            data_extents_used: 9,
            percent: 90,
            mark_crossed: Some(80),
        };
        report.flags = FlagsReport::nvram(Path::new("/n"), Persistence::TrustedMemory);
        let text = text(&report);
        for part in [
            "pool-id",
            "v of 1.0 MiB",
            "STOPPED: a flush failed",
            "p99.9",
            "nvram, /n",
            "LOST",
            "9 of 10 data extents used, 90%, beyond the mark of 80%",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }
}
