//! A target's report as people read it: what `flipside status` prints.

use std::fmt::Write as _;
use std::ops::Range;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use super::status::Report;
use super::values::Size;
use crate::observe::{GrantGauges, LatencySummary, Rates, Snapshot, SpaceGauges, VolumeGauges};

/// Lines of a name and a value.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, name: &str, value: &str) {
        writeln!(self.0, "{name:<16} {value}").expect("a string takes all");
    }

    fn table(&mut self, table: &str) {
        write!(self.0, "\n{table}\n\n").expect("a string takes all");
    }
}

/// The report for people.
pub fn text(report: &Report) -> String {
    let now = &report.snapshot;
    let mut out = Lines::default();
    out.line("pool", &report.pool);
    out.line("devices", &report.devices.join(", "));
    out.line("flags", &report.flags.text());
    if let Some(mds) = &report.mds {
        out.line("metadata server", &mds.text());
    }
    for export in &report.exports {
        out.line("export", export);
    }
    out.line("serving", &format!("for {} s, version {}", report.uptime_s, report.version));
    match &report.follow {
        Some(follow) => out.line("follows", &follow.text()),
        None => out.line("recovered", &report.recovery.to_string()),
    }
    out.line("connections", &format!("{} open", now.connections_open));
    out.table(&volume_table(&now.volumes));
    out.line("space", &space_text(now.space));
    if let Some(level) = now.grant.level {
        let silent_ms = now.waiting.metadata_server_silent_ms;
        out.line("grant", &grant_text(now.grant, level, silent_ms));
    }
    let Snapshot { journal_extents_free, journal_slots_free, journal_slots, .. } = now;
    let journal = format!(
        "{journal_extents_free} extents free for new writes, {journal_slots_free} of \
         {journal_slots} slots for commits"
    );
    out.line("journal", &journal);
    if report.txn_max > 0 {
        let most = format!("{} of data at most (flipside txn)", Size(report.txn_max));
        out.line("atomic requests", &most);
    }
    let mut said = now.waiting.sentences(&now.volumes);
    if said.is_empty() {
        said.push("nothing".to_owned());
    }
    let names = std::iter::once("waiting").chain(std::iter::repeat(""));
    names.zip(&said).for_each(|(name, sentence)| out.line(name, sentence));
    out.table(&rate_table(&now.rates));
    totals(&mut out, now);
    let latency = &now.latency_us;
    let rows = [
        ("read", latency.read),
        ("write", latency.write),
        ("flush", latency.flush),
        ("trim", latency.trim),
        ("commit", latency.commit),
    ];
    out.table(&latency_table(&rows));
    out.0.truncate(out.0.trim_end().len());
    out.0 + "\n"
}

/// What was done since the start.
fn totals(out: &mut Lines, now: &Snapshot) {
    let written = now.device_bytes_written;
    out.line("clients wrote", &Size(now.client_bytes_written).to_string());
    let devices = format!(
        "{} (data {}, destaged {}, copies {}, metadata {})",
        Size(written.total()),
        Size(written.data),
        Size(written.destaged),
        Size(written.copies),
        Size(written.metadata)
    );
    out.line("devices wrote", &devices);
    if let Some(amplification) = now.write_amplification {
        out.line("amplification", &format!("{amplification:.3}"));
    }
    out.line("commits", &format!("{} ({} early)", now.commits, now.early_commits));
    let Snapshot { swaps, area_commits, blocks_copied, .. } = now;
    let settled =
        format!("{swaps} swaps, {area_commits} area commits, {blocks_copied} blocks copied");
    out.line("settled", &settled);
    if now.requests.failed > 0 {
        out.line("errors", &format!("{} requests were answered with one", now.requests.failed));
    }
}

fn space_text(space: SpaceGauges) -> String {
    let SpaceGauges { data_extents, data_extents_used, extent_size, percent, mark_crossed } = space;
    let [used, all] = [data_extents_used, data_extents].map(|count| Size(count * extent_size));
    let mark = mark_crossed.map(|mark| format!(", beyond the mark of {mark}%"));
    let mark = mark.unwrap_or_default();
    format!(
        "{used} of {all} used, {percent}%{mark} ({data_extents_used} of {data_extents} extents)"
    )
}

fn grant_text(grant: GrantGauges, level: u32, silent_ms: Option<u64>) -> String {
    let GrantGauges { extents_left, data_left, more, .. } = grant;
    let data_left = data_left.min(extents_left);
    let server = match silent_ms {
        Some(ms) => format!("silent for {} s: this is all there is until it is back", ms / 1000),
        None if more => "there".to_owned(),
        None => "there, and has no more".to_owned(),
    };
    format!(
        "{extents_left} extents in hand of the {level} to be kept, {data_left} of them for new \
         data; the metadata server is {server}"
    )
}

fn volume_table(volumes: &[VolumeGauges]) -> String {
    let header = ["volume", "size", "allocated", "epoch", "clients", "state"];
    let rows = volumes.iter().map(|volume| {
        let VolumeGauges { name, size, allocated, epoch, clients, latched, .. } = volume;
        let stopped = latched.as_ref().map(|reason| format!("STOPPED: {reason}"));
        [
            name.clone(),
            Size(*size).to_string(),
            Size(*allocated).to_string(),
            epoch.to_string(),
            clients.to_string(),
            stopped.unwrap_or_else(|| "serving".to_owned()),
        ]
    });
    table(header, rows, 1..5)
}

fn rate_table(rates: &Rates) -> String {
    let header = ["each second", "reads", "writes", "flushes", "commits", "read", "written"];
    let Rates { over_s, reads, writes, flushes, commits, bytes_read, bytes_written, .. } = *rates;
    let counts = [reads, writes, flushes, commits].map(|count| format!("{count:.0}"));
    let bytes = [bytes_read, bytes_written].map(|bytes| Size(bytes).to_string());
    let row = std::iter::once(format!("over the last {over_s:.0} s")).chain(counts).chain(bytes);
    table(header, [row], 1..7)
}

fn latency_table(rows: &[(&str, LatencySummary)]) -> String {
    let header = ["latency, µs", "count", "mean", "p50", "p90", "p99", "p99.9", "max"];
    let rows = rows.iter().map(|(name, of)| {
        let numbers = [of.mean, of.p50, of.p90, of.p99, of.p999, of.max];
        let cells = numbers.map(|number| format!("{number:.0}"));
        [(*name).to_owned(), of.count.to_string()].into_iter().chain(cells)
    });
    table(header, rows, 1..8)
}

/// A table whose `numbers` are the columns that end at the same place.
pub fn table<const COLUMNS: usize, Row: IntoIterator<Item = String>>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = Row>,
    numbers: Range<usize>,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(numbers.start).take(numbers.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cli::status::FlagsReport;
    use crate::env::os::nvram::Persistence;

    /// Goal: what an operator must not miss is in the text.
    #[test]
    fn nothing_is_missed() {
        let mut report = Report { pool: "pool-id".into(), ..Report::default() };
        let latched = Some("a flush failed".to_owned());
        let size = 1 << 20;
        let (name, clients) = ("v".to_owned(), 2);
        let volume = VolumeGauges { name, size, clients, latched, ..VolumeGauges::default() };
        let now = &mut report.snapshot;
        now.volumes = vec![volume, VolumeGauges { name: "w".into(), ..VolumeGauges::default() }];
        now.space = SpaceGauges {
            data_extents: 10,
            data_extents_used: 9,
            extent_size: 1 << 20,
            percent: 90,
            mark_crossed: Some(80),
        };
        now.waiting.extents = 3;
        now.rates = Rates { over_s: 5.0, writes: 1234.4, ..Rates::default() };
        now.requests.failed = 17;
        report.flags = FlagsReport::nvram(Path::new("/n"), Persistence::TrustedMemory, 4096);
        let text = text(&report);
        for part in [
            "pool-id",
            "1.0 MiB",
            "STOPPED: a flush failed",
            "serving",
            "p99.9",
            "nvram, /n",
            "with the data of writes up to 4.0 KiB",
            "LOST",
            "9.0 MiB of 10.0 MiB used, 90%, beyond the mark of 80% (9 of 10 extents)",
            "3 requests wait for journal space",
            "over the last 5 s",
            "1234",
            "17 requests",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }

    /// Goal: with part of the pool in hand, what is left of it is said, and whether more may come.
    #[test]
    fn the_grant_is_told() {
        let grant = GrantGauges { level: Some(64), extents_left: 9, data_left: 20, more: true };
        for (silent, more, server) in [
            (None, true, "is there"),
            (None, false, "is there, and has no more"),
            (Some(61_500), true, "is silent for 61 s: this is all there is until it is back"),
        ] {
            let mut report = Report::default();
            report.snapshot.grant = GrantGauges { more, ..grant };
            report.snapshot.waiting.metadata_server_silent_ms = silent;
            let text = text(&report);
            let line = text.lines().find(|line| line.starts_with("grant")).expect("a line of it");
            assert!(line.contains("9 extents in hand of the 64 to be kept, 9 of them"), "{line}");
            assert!(line.ends_with(&format!("the metadata server {server}")), "{line}");
        }
        assert!(!text(&Report::default()).contains("grant"));
    }

    /// Goal: a target at rest says that nothing waits.
    #[test]
    fn nothing_waits() {
        let text = text(&Report::default());
        assert!(text.lines().any(|line| line.split_whitespace().eq(["waiting", "nothing"])));
    }
}
