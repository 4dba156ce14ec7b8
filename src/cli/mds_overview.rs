//! What a metadata server tells of itself: `flipside status --mds`, for people or as JSON.

use std::fmt::Write as _;

use serde::Serialize;
use uuid::Uuid;

use super::group;
use super::groups::{ListedGroup, listed};
use super::overview::table;
use super::values::Size;
use crate::mds::overview::{Overview, PoolSeen, SessionSeen};
use crate::mds::records::ServerStatus;

/// A server at one moment. The names are those of `status --mds --json` and stay.
#[derive(Debug, Serialize)]
pub struct ServerReport {
    /// Its counters, all pools together.
    counters: ServerStatus,
    /// Its pools, by name.
    pools: Vec<PoolReport>,
    /// Who is attached.
    sessions: Vec<SessionReport>,
    /// The consistency groups, by number.
    groups: Vec<ListedGroup>,
}

#[derive(Debug, Serialize)]
struct PoolReport {
    pool: String,
    extent_size: u32,
    volumes: u32,
    extents: u32,
    extents_reserved: u32,
    extents_free: u32,
    extents_granted: u32,
    extents_bound: u32,
    flags_here: bool,
    damaged: bool,
    transactions: u64,
}

#[derive(Debug, Serialize)]
struct SessionReport {
    pool: String,
    host: String,
    unit: u32,
    incarnation: Option<u32>,
    reads_only: bool,
    lease_ms: Option<u32>,
    lease_left_ms: Option<u64>,
    age_ms: u64,
    requests: u64,
}

impl From<Overview> for ServerReport {
    fn from(seen: Overview) -> Self {
        ServerReport {
            counters: seen.counters,
            pools: seen.pools.iter().map(PoolReport::from).collect(),
            sessions: seen.sessions.iter().map(SessionReport::from).collect(),
            groups: listed((seen.groups, seen.members)),
        }
    }
}

impl From<&PoolSeen> for PoolReport {
    fn from(seen: &PoolSeen) -> Self {
        PoolReport {
            pool: seen.pool.to_string(),
            extent_size: seen.extent_size,
            volumes: seen.volumes,
            extents: seen.extents,
            extents_reserved: seen.reserve,
            extents_free: seen.free,
            extents_granted: seen.granted,
            extents_bound: seen.bound,
            flags_here: seen.flags_here,
            damaged: seen.damaged,
            transactions: seen.transactions,
        }
    }
}

impl PoolReport {
    /// Where its flags are, if anything is known of it.
    fn flags(&self) -> &'static str {
        match (self.damaged, self.flags_here) {
            (true, _) => "DAMAGED",
            (false, true) => "here",
            (false, false) => "at the target",
        }
    }
}

impl From<&SessionSeen> for SessionReport {
    fn from(seen: &SessionSeen) -> Self {
        let leased = seen.lease_ms > 0;
        SessionReport {
            pool: seen.pool.to_string(),
            host: Uuid::from_bytes(seen.host.0).to_string(),
            unit: seen.unit.0,
            incarnation: (!seen.reads).then_some(seen.incarnation.0),
            reads_only: seen.reads,
            lease_ms: leased.then_some(seen.lease_ms),
            lease_left_ms: leased.then_some(seen.left_ms),
            age_ms: seen.age_ms,
            requests: seen.requests,
        }
    }
}

impl ServerReport {
    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let header =
            ["pool", "volumes", "size", "free", "granted", "in use", "flags", "transactions"];
        let rows = self.pools.iter().map(|of| {
            let size =
                |extents: u32| Size(u64::from(extents) * u64::from(of.extent_size)).to_string();
            [
                of.pool.clone(),
                of.volumes.to_string(),
                size(of.extents),
                size(of.extents_free),
                size(of.extents_granted),
                size(of.extents_bound),
                of.flags().to_owned(),
                of.transactions.to_string(),
            ]
        });
        section(&mut out, &table(header, rows, 1..6));
        let header = ["attached to", "host", "as", "start", "for", "lease", "left", "requests"];
        let rows = self.sessions.iter().map(|of| {
            let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1000.0);
            let left = |ms| if ms == 0 { "ENDED".to_owned() } else { seconds(ms) };
            let none = || "-".to_owned();
            [
                of.pool.clone(),
                of.host.clone(),
                if of.reads_only { "reader".to_owned() } else { format!("unit {}", of.unit) },
                of.incarnation.map_or_else(none, |number| number.to_string()),
                seconds(of.age_ms),
                of.lease_ms.map_or_else(none, |ms| seconds(ms.into())),
                of.lease_left_ms.map_or_else(none, left),
                of.requests.to_string(),
            ]
        });
        section(&mut out, &table(header, rows, 3..8));
        if !self.groups.is_empty() {
            section(&mut out, &group::text(&self.groups));
        }
        let ServerStatus { store_commits, store_bytes_written, .. } = self.counters;
        let written = Size(store_bytes_written);
        line(&mut out, "store", &format!("{store_commits} commits, {written} written"));
        let all = serde_json::to_value(self.counters).unwrap_or_default();
        for (name, count) in all.as_object().into_iter().flatten() {
            if !name.starts_with("store") {
                line(&mut out, &name.replace('_', " "), &count.to_string());
            }
        }
        out
    }
}

fn section(out: &mut String, table: &str) {
    writeln!(out, "{table}\n").expect("a string takes all");
}

fn line(out: &mut String, name: &str, value: &str) {
    writeln!(out, "{name:<24} {value}").expect("a string takes all");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{HostId, Incarnation, PoolId, UnitId};

    /// Goal: pools, owners, readers and the state of leases are in the text; nothing is made up
    /// where there is none.
    #[test]
    fn all_is_shown() {
        let pool = PoolId([1; 16]);
        let seen = PoolSeen {
            pool,
            extent_size: 1 << 20,
            volumes: 3,
            extents: 1000,
            reserve: 100,
            free: 10,
            granted: 990,
            bound: 512,
            flags_here: true,
            damaged: false,
            transactions: 77,
        };
        let owner = SessionSeen {
            pool,
            host: HostId([2; 16]),
            unit: UnitId(1),
            incarnation: Incarnation(9),
            reads: false,
            lease_ms: 10_000,
            age_ms: 61_000,
            left_ms: 0,
            requests: 5,
        };
        let reader = SessionSeen { reads: true, left_ms: 2500, ..owner };
        let overview = Overview {
            counters: ServerStatus { unauthenticated: 4, ..ServerStatus::default() },
            pools: vec![seen, PoolSeen::damaged(PoolId([5; 16]))],
            sessions: vec![owner, reader],
            ..Overview::default()
        };
        let report = ServerReport::from(overview);
        let text = report.text();
        for part in [
            "512.0 MiB",
            "here",
            "DAMAGED",
            "77",
            "unit 1",
            "reader",
            "ENDED",
            "2.5 s",
            "61.0 s",
            "02020202",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
        let strangers = |line: &str| line.split_whitespace().eq(["unauthenticated", "4"]);
        assert!(text.lines().any(strangers), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["sessions"][1]["incarnation"], serde_json::Value::Null);
        assert_eq!(json["pools"][0]["extents_bound"], 512);
    }
}
