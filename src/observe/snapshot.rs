//! What `status --json` shows: the counters at one moment, in names that stay.

use serde::{Deserialize, Serialize};

use super::{CommitGauges, Counters, Latencies, Rates, WaitGauges};

/// What is not counted but looked at when the snapshot is taken.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// Free extents that can become journal areas.
    pub journal_extents_free: u64,
    /// How full the pool is.
    pub space: SpaceGauges,
    /// What the metadata server has granted ahead of need.
    pub grant: GrantGauges,
    /// Free and all slots of the journal.
    pub journal_slots: [u64; 2],
    /// What waits, and for what.
    pub waiting: WaitGauges,
    /// What is done in a second.
    pub rates: Rates,
    /// Connections that are open.
    pub connections_open: u64,
    /// Each volume.
    pub volumes: Vec<VolumeGauges>,
}

/// How full the pool is at the moment of the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceGauges {
    /// Extents that volumes may take: all but the journal reserve.
    pub data_extents: u64,
    /// Extents that volumes have taken.
    pub data_extents_used: u64,
    /// Size of an extent in bytes.
    pub extent_size: u64,
    /// The used ones as a percentage of all, rounded down.
    pub percent: u8,
    /// The highest mark of `--warn-full` that is crossed.
    pub mark_crossed: Option<u8>,
}

/// What is left of what the metadata server has granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantGauges {
    /// Extents that are kept in hand (`--grant`); none where that is all of the pool.
    pub level: Option<u32>,
    /// Free extents in hand, for data and journal areas.
    pub extents_left: u64,
    /// How many of them may become data areas, and of those still to be granted.
    pub data_left: u64,
    /// Whether the metadata server may have more: it has not said that it has not.
    pub more: bool,
}

/// One volume at the moment of the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VolumeGauges {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// How many bytes of it have extents of the pool behind them.
    pub allocated: u64,
    /// The newest epoch of its commit domain that is committed.
    pub epoch: u64,
    /// Clients that are connected to it.
    pub clients: u64,
    /// The commit under way.
    pub commit: Option<CommitGauges>,
    /// Why it has stopped, where it has.
    pub latched: Option<String>,
}

/// Bytes written to the devices, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceBytes {
    /// Client data.
    pub data: u64,
    /// Copies made by settling.
    pub copies: u64,
    /// Client data that was in the journal first.
    #[serde(default)]
    pub destaged: u64,
    /// Everything else.
    pub metadata: u64,
}

/// How many requests of each kind came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounts {
    /// Reads.
    pub read: u64,
    /// Writes.
    pub write: u64,
    /// Flushes.
    pub flush: u64,
    /// Trims.
    pub trim: u64,
    /// Writes of zeroes.
    pub write_zeroes: u64,
    /// Those of any kind that were answered with an error.
    pub failed: u64,
}

/// Percentiles of one kind of operation, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// How many were timed.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// The percentiles of every kind of operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationLatencies {
    /// Reads.
    pub read: LatencySummary,
    /// Writes.
    pub write: LatencySummary,
    /// Flushes.
    pub flush: LatencySummary,
    /// Trims and writes of zeroes.
    pub trim: LatencySummary,
    /// Commits of epochs.
    pub commit: LatencySummary,
}

/// A target at one moment. The names are those of `status --json` and stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Bytes that clients wrote.
    pub client_bytes_written: u64,
    /// Bytes that clients read.
    pub client_bytes_read: u64,
    /// Of those, bytes that came from the devices into the client's own memory, without a copy.
    pub client_bytes_read_straight: u64,
    /// Bytes written to the devices.
    pub device_bytes_written: DeviceBytes,
    /// All bytes written to the devices for each byte written by clients; none before the first.
    pub write_amplification: Option<f64>,
    /// Epochs hardened.
    pub commits: u64,
    /// Those of them made because space ran out.
    pub early_commits: u64,
    /// The highest committed epoch of any volume.
    pub epoch: u64,
    /// Pairs settled by exchanging roles.
    pub swaps: u64,
    /// Pairs settled by copying back.
    pub area_commits: u64,
    /// Blocks that settling copied.
    pub blocks_copied: u64,
    /// Free extents that can become journal areas.
    pub journal_extents_free: u64,
    /// Slots of the journal that are free, for commits.
    pub journal_slots_free: u64,
    /// All slots of the journal.
    pub journal_slots: u64,
    /// How full the pool is.
    pub space: SpaceGauges,
    /// What the metadata server has granted ahead of need.
    pub grant: GrantGauges,
    /// What waits, and for what.
    pub waiting: WaitGauges,
    /// What is done in a second, over the last few.
    pub rates: Rates,
    /// Requests by kind.
    pub requests: RequestCounts,
    /// Connections that are open.
    pub connections_open: u64,
    /// Connections accepted since the start.
    pub connections: u64,
    /// Connections ended by the target.
    pub connections_dropped: u64,
    /// Latency percentiles in microseconds.
    pub latency_us: OperationLatencies,
    /// Each volume.
    pub volumes: Vec<VolumeGauges>,
}

impl Snapshot {
    /// The counters as they are now, with what was looked at beside them.
    pub fn take(counters: &Counters, latencies: &Latencies, gauges: Gauges) -> Self {
        let client_bytes_written = counters.client_bytes_written.get();
        let device_bytes_written = DeviceBytes {
            data: counters.device_bytes_data.get(),
            copies: counters.device_bytes_copies.get(),
            destaged: counters.device_bytes_destaged.get(),
            metadata: counters.device_bytes_metadata.get(),
        };
        Self {
            client_bytes_written,
            client_bytes_read: counters.client_bytes_read.get(),
            client_bytes_read_straight: counters.client_bytes_read_straight.get(),
            device_bytes_written,
            write_amplification: (client_bytes_written > 0)
                .then(|| device_bytes_written.total() as f64 / client_bytes_written as f64),
            commits: counters.commits.get(),
            early_commits: counters.early_commits.get(),
            epoch: gauges.volumes.iter().map(|volume| volume.epoch).max().unwrap_or(0),
            swaps: counters.swaps.get(),
            area_commits: counters.area_commits.get(),
            blocks_copied: counters.blocks_copied.get(),
            journal_extents_free: gauges.journal_extents_free,
            journal_slots_free: gauges.journal_slots[0],
            journal_slots: gauges.journal_slots[1],
            space: gauges.space,
            grant: gauges.grant,
            waiting: gauges.waiting,
            rates: gauges.rates,
            requests: RequestCounts {
                read: counters.reads.get(),
                write: counters.writes.get(),
                flush: counters.flushes.get(),
                trim: counters.trims.get(),
                write_zeroes: counters.zeroes.get(),
                failed: counters.errors.get(),
            },
            connections_open: gauges.connections_open,
            connections: counters.connections.get(),
            connections_dropped: counters.connections_dropped.get(),
            latency_us: latencies.summary(),
            volumes: gauges.volumes,
        }
    }
}

impl DeviceBytes {
    /// All of them.
    pub fn total(self) -> u64 {
        [self.copies, self.destaged, self.metadata].into_iter().fold(self.data, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the amplification is all device bytes over client bytes, and the names are the
    /// published ones.
    #[test]
    fn snapshot_has_the_published_names() {
        let counters = Counters::default();
        counters.client_bytes_written.add(1000);
        counters.device_bytes_data.add(1000);
        counters.device_bytes_copies.add(20);
        counters.device_bytes_destaged.add(10);
        counters.device_bytes_metadata.add(20);
        let gauges = Gauges {
            journal_extents_free: 7,
            volumes: vec![VolumeGauges { epoch: 3, ..VolumeGauges::default() }],
            ..Gauges::default()
        };
        let snapshot = Snapshot::take(&counters, &Latencies::default(), gauges);
        let json = serde_json::to_value(&snapshot).unwrap();
        assert_eq!(json["write_amplification"], 1.05);
        assert_eq!(json["epoch"], 3);
        assert_eq!(json["journal_extents_free"], 7);
        for name in ["commits", "early_commits", "swaps", "area_commits", "blocks_copied"] {
            assert!(json[name].is_u64(), "{name}");
        }
        for name in ["data", "copies", "destaged", "metadata"] {
            assert!(json["device_bytes_written"][name].is_u64(), "{name}");
        }
        for name in ["read", "write", "flush", "trim", "commit"] {
            assert!(json["latency_us"][name]["p99"].is_f64(), "{name}");
        }
    }
}
