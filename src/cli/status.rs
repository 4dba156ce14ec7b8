//! `flipside status`: what a running target does, or a metadata server, for people or as JSON.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::control::ControlArgs;
use super::mds_overview::ServerReport;
use super::network::{self, MdsArgs};
use super::overview;
use super::values::Size;
use crate::env::Moment;
use crate::env::os::nvram::Persistence;
use crate::follow::FollowStatus;
use crate::front::control::Request;
use crate::mds::client::ClientStatus;
use crate::mds::client::pools::overview as overview_of;
use crate::observe::Snapshot;
use crate::unit::RecoveryReport;

const EXAMPLES: &str = "\
Examples:
  The only target that runs here:
    flipside status
  One of several, again every second:
    watch -n 1 flipside status --control /run/flipside/POOL-ID.control
  A metadata server: its pools, and who is attached to them:
    flipside status --mds 10.0.0.1:10810 --key-file /etc/flipside.key
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
    #[command(flatten)]
    mds: MdsArgs,
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
    /// Blocks that the target before it had acknowledged and not committed; none: that was not
    /// known, and it went back to the last commit.
    #[serde(default)]
    pub adopted: Option<u64>,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

impl From<RecoveryReport> for Recovery {
    fn from(report: RecoveryReport) -> Self {
        Self {
            groups: report.groups as u64,
            pairs: report.pairs as u64,
            told: report.told as u64,
            adopted: report.adopted.map(|blocks| blocks as u64),
            took_us: u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { groups, pairs, told, adopted, took_us } = self;
        let ms = *took_us as f64 / 1000.0;
        write!(f, "in {ms:.1} ms: {groups} groups of the journal applied, {pairs} extents in use")?;
        if *told > 0 {
            write!(f, ", {told} of them news to the metadata server")?;
        }
        match adopted {
            Some(blocks) => write!(f, ", warm: {blocks} blocks committed that were acknowledged"),
            None => Ok(()),
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
    /// The largest write whose data goes there too, in bytes; zero: none.
    #[serde(default)]
    pub write_max: u64,
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
    pub fn nvram(path: &Path, persistence: Persistence, write_max: u64) -> Self {
        Self {
            place: "nvram".to_owned(),
            nvram: Some(path.display().to_string()),
            persistence: Some(persistence.to_string()),
            memory_trusted: persistence == Persistence::TrustedMemory,
            write_max,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = self.place.clone();
        for more in [&self.nvram, &self.persistence].into_iter().flatten() {
            text.push_str(", ");
            text.push_str(more);
        }
        if self.write_max > 0 {
            text.push_str(", with the data of writes up to ");
            text.push_str(&Size(self.write_max).to_string());
        }
        if self.memory_trusted {
            text.push_str(": LOST with the machine's power unless its memory survives");
        }
        text
    }
}

/// How a target gets on with a metadata server on the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MdsReport {
    /// Where it is.
    pub address: String,
    /// For how long it is silent, in milliseconds, if it is.
    pub silent_ms: Option<u64>,
    /// Requests that wait for an answer.
    pub waiting: u64,
    /// Requests made.
    pub requests: u64,
    /// Requests sent again.
    pub repeated: u64,
    /// Datagrams that were no awaited answer.
    pub dropped: u64,
    /// The smoothed round trip, in microseconds, once there is one.
    pub round_trip_us: Option<u64>,
    /// What is left of the lease, in milliseconds, where there is one.
    pub lease_left_ms: Option<u64>,
}

impl MdsReport {
    /// For a server at that address.
    pub fn new(address: SocketAddr) -> Self {
        Self { address: address.to_string(), ..Self::default() }
    }

    /// As it is at `now`, by the client's counts.
    pub fn at(&self, now: Moment, status: ClientStatus, lease_left: Option<Duration>) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            address: self.address.clone(),
            silent_ms: status.silent_since.map(|since| ms(now.since(since))),
            waiting: status.waiting as u64,
            requests: status.requests,
            repeated: status.repeated,
            dropped: status.dropped,
            round_trip_us: status.round_trip.map(|time| time.as_micros() as u64),
            lease_left_ms: lease_left.map(ms),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = self.address.clone();
        let mut add = |part: String| {
            text.push_str(", ");
            text.push_str(&part);
        };
        if let Some(us) = self.round_trip_us {
            add(format!("round trip {us} µs"));
        }
        add(format!("{} requests, {} repeated", self.requests, self.repeated));
        if let Some(ms) = self.silent_ms {
            let s = ms as f64 / 1000.0;
            add(format!("SILENT for {s:.1} s, {} requests wait", self.waiting));
        }
        match self.lease_left_ms {
            Some(0) => add("the lease has ENDED".to_owned()),
            Some(ms) => add(format!("{:.1} s of the lease left", ms as f64 / 1000.0)),
            None => {}
        }
        text
    }
}

/// How a target that only reads follows the one that writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowReport {
    /// The view that it has seen.
    pub view: u64,
    /// How old that is, in milliseconds.
    pub age_ms: u64,
    /// What is left of the lease, in milliseconds; 0: reads fail.
    pub lease_left_ms: u64,
    /// Questions about what changed that were answered.
    pub polls: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Times that blocks were read again because they had changed meanwhile.
    pub again: u64,
    /// Times that all lines were read.
    pub readings: u64,
}

impl From<FollowStatus> for FollowReport {
    fn from(status: FollowStatus) -> Self {
        let FollowStatus { view, age, lease_left, polls, reads, again, readings } = status;
        let [age_ms, lease_left_ms] = [age, lease_left].map(|time| time.as_millis() as u64);
        Self { view, age_ms, lease_left_ms, polls, reads, again, readings }
    }
}

impl FollowReport {
    /// For people.
    pub fn text(&self) -> String {
        let Self { view, age_ms, lease_left_ms, polls, reads, again, readings } = self;
        let lease = match lease_left_ms {
            0 => "the lease is OVER: reads fail until the metadata server answers".to_owned(),
            left => format!("{:.1} s of the lease left", *left as f64 / 1000.0),
        };
        format!(
            "view {}.{}, {age_ms} ms old, {lease}; {reads} reads, {again} of them again, {polls} \
             polls, all lines read {readings} times",
            view >> 32,
            view & u64::from(u32::MAX)
        )
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
    /// The metadata server, where it is on the network.
    pub mds: Option<MdsReport>,
    /// Where its exports can be found.
    pub exports: Vec<String>,
    /// The most data that an atomic request may have, in bytes.
    pub txn_max: u64,
    /// How it follows the target that writes, where it only reads beside it.
    pub follow: Option<FollowReport>,
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
    if args.mds.mds.is_some() {
        return show_server(args);
    }
    let answer = args.control.ask(&Request::Status)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        let report = serde_json::from_value(answer).context("the target is of another version")?;
        print!("{}", overview::text(&report));
    }
    Ok(())
}

fn show_server(args: &Args) -> Result<()> {
    let seen = network::ask(&args.mds, |server| async move {
        server.answered(overview_of(&server.env, server.link()?)).await
    })?;
    let report = ServerReport::from(seen);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
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

    /// Goal: a metadata server that is silent, and a lease that ends, cannot be overlooked.
    #[test]
    fn silence_is_told() {
        let report = MdsReport::new("10.0.0.1:7".parse().unwrap());
        let second = |s: u64| Moment(s * 1_000_000_000);
        let status = ClientStatus {
            silent_since: Some(second(10)),
            waiting: 3,
            requests: 20,
            repeated: 2,
            dropped: 1,
            round_trip: Some(Duration::from_micros(150)),
        };
        let text = report.at(second(15), status, Some(Duration::ZERO)).text();
        let all = "10.0.0.1:7, round trip 150 µs, 20 requests, 2 repeated, SILENT for 5.0 s, 3 \
                   requests wait, the lease has ENDED";
        assert_eq!(text, all);
        let text = report.at(second(15), ClientStatus::default(), None).text();
        assert_eq!(text, "10.0.0.1:7, 0 requests, 0 repeated");
    }

    /// Goal: a reader whose lease is over cannot be overlooked.
    #[test]
    fn followers_are_told() {
        let second = std::time::Duration::from_secs(1);
        let status = FollowStatus { view: 3 << 32 | 7, lease_left: second, ..Default::default() };
        let mut report = FollowReport::from(status);
        let text = "view 3.7, 0 ms old, 1.0 s of the lease left; 0 reads, 0 of them again, 0 \
                    polls, all lines read 0 times";
        assert_eq!(report.text(), text);
        report.lease_left_ms = 0;
        assert!(report.text().contains("OVER"));
    }

    /// Goal: a recovery is told with all that it found.
    #[test]
    fn recoveries_are_told() {
        let mut recovery =
            Recovery { groups: 5, pairs: 120, took_us: 23_400, ..Recovery::default() };
        let all = "in 23.4 ms: 5 groups of the journal applied, 120 extents in use";
        assert_eq!(recovery.to_string(), all);
        recovery.told = 7;
        assert_eq!(recovery.to_string(), format!("{all}, 7 of them news to the metadata server"));
    }
}
