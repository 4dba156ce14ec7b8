//! What can be seen of a running target: counters, latencies, and the snapshot that `status` shows;
//! and what a capture of the network has seen ([`pcap`]).
//!
//! Nothing here decides anything; every room may count, none may read a counter to act on it.
//!
//! # Contracts
//!
//! - **Threads**: counters are plain cells of one thread; a snapshot may go anywhere.
//! - **Cost**: counting and recording allocate nothing.

mod counters;
mod latency;
pub mod pcap;
mod rates;
mod slow;
mod snapshot;
mod waiting;

pub use counters::{Count, Counters};
pub use latency::{Latencies, Operation};
pub use rates::{RateWindow, Rates, SAMPLE_INTERVAL};
pub use slow::SlowWatch;
pub use snapshot::{
    DeviceBytes, Gauges, GrantGauges, LatencySummary, OperationLatencies, RequestCounts, Snapshot,
    SpaceGauges, VolumeGauges,
};
pub use waiting::{
    Cause, CommitGauges, CommitStep, SettleGauges, SettleStep, Wait, WaitGauges, Waiters,
};
