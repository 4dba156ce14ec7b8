//! Flags of `serve` that change how fast, and nothing else. Each says when to change it; `flipside
//! tune` measures a device and says which.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::builder::RangedI64ValueParser;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::values::{Percent, Size};
use crate::front::nbd::{Limits, PAYLOADS_MIN};
use crate::unit::{Config, READ_PIECES_MAX, SUM_BLOCKS_MAX};
use crate::uring::RingOptions;

const POLL_US: u64 = 50;

/// What can be tuned.
#[derive(clap::Args)]
#[command(next_help_heading = "Tuning")]
pub struct TuningArgs {
    /// Look out for answers up to so many microseconds before a sleep, as far as that pays: lower
    /// it to save the processor's time, raise it for slower devices [default: 50, but 0 where there
    /// is one processor]
    #[arg(long, value_name = "MICROSECONDS", value_parser = up_to(0, 10_000))]
    poll_us: Option<u32>,
    /// Let a thread of the kernel take what is submitted, for so many milliseconds after the last;
    /// 0: no. Costs a processor of its own: of use with many, and devices of a million requests
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0, value_parser = up_to(0, 60_000))]
    sqpoll_ms: u32,
    /// Stay on this processor: of use where others are kept off it, and it is near the device
    #[arg(long, value_name = "NUMBER")]
    cpu: Option<usize>,
    /// Memory for all I/O: raise it for many clients with large requests, lower it to save memory
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    buffers: Size,
    /// Requests of a client that may be under way: raise it for clients that go deeper
    #[arg(long, value_name = "COUNT", default_value_t = 128, value_parser = up_to(1, 4096))]
    queue_depth: u32,
    /// Bytes of replies that the kernel holds for a client on a unix socket: raise it for clients
    /// with large reads, 0 leaves it at the system's default
    #[arg(long, value_name = "SIZE", default_value = "2M")]
    socket_buffer: Size,
    /// Clients at a time; more are sent away at once
    #[arg(long, value_name = "COUNT", default_value_t = 2048, value_parser = up_to(1, 65536))]
    connections: u32,
    /// Commit unasked when so much was written since the last time: lower it so that a flush never
    /// has much left to do, raise it to overwrite more in place
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    commit_size: Size,
    /// Have commits of up to so many blocks take one flush instead of two, by sums of their data,
    /// where flags and data are on one device: raise it where flushes are slow, 0 for never
    #[arg(long, value_name = "COUNT", default_value_t = SUM_BLOCKS_MAX as u32,
          value_parser = up_to(0, 1024))]
    sum_blocks: u32,
    /// Read both places of an extent whole where a read finds its blocks in more pieces than this:
    /// lower it where requests are dear (hard disks, IOPS that are paid for), raise it where bytes
    /// are
    #[arg(long, value_name = "COUNT", default_value_t = READ_PIECES_MAX as u32,
          value_parser = up_to(2, 65536))]
    read_pieces: u32,
    /// Settle so many extents in one transaction: raise it where the metadata server is far
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = up_to(1, 1000))]
    settle_batch: u32,
    /// Begin to settle when less than so much of the journal reserve is free: raise it where bursts
    /// of writes are slowed down, lower it to copy less
    #[arg(long, value_name = "PERCENT", default_value = "50%")]
    settle_below: Percent,
}

/// For how long to look out for answers unless told otherwise: about the time of two wake-ups, and
/// of an answer of a fast device.
pub fn default_poll() -> Duration {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Duration::from_micros(if processors > 1 { POLL_US } else { 0 })
}

/// A number in a range.
fn up_to(least: i64, most: i64) -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(least..=most)
}

impl TuningArgs {
    /// Memory for I/O, in bytes.
    pub fn buffers_len(&self) -> Result<usize> {
        let least = Size(2 * PAYLOADS_MIN as u64);
        ensure!(
            self.buffers.0 >= least.0,
            "--buffers {}: the largest requests of clients need {least}",
            self.buffers
        );
        usize::try_from(self.buffers.0).context("--buffers")
    }

    /// How the ring is made.
    pub fn ring(&self) -> RingOptions {
        let given = self.poll_us.map(|us| Duration::from_micros(us.into()));
        let poll = given.unwrap_or_else(default_poll);
        RingOptions {
            poll,
            kernel_thread: (self.sqpoll_ms > 0).then_some(self.sqpoll_ms),
            ..RingOptions::default()
        }
    }

    /// Keeps this thread, and those that it starts from now on, on the processor that was asked
    /// for.
    pub fn pin(&self) -> Result<()> {
        let Some(cpu) = self.cpu else { return Ok(()) };
        let mut cpus = CpuSet::new();
        let pinned = cpus.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus));
        pinned.with_context(|| format!("--cpu {cpu}: this process may not run there"))
    }

    /// The bounds of clients.
    pub fn limits(&self) -> Limits {
        Limits {
            connections: self.connections,
            requests_per_connection: self.queue_depth,
            send_buffer: usize::try_from(self.socket_buffer.0).unwrap_or(usize::MAX),
            ..Limits::default()
        }
    }

    /// Puts into the unit's configuration what is the unit's.
    pub fn configure(&self, config: &mut Config) {
        config.epoch_data_max = self.commit_size.0;
        config.sum_blocks_max = self.sum_blocks as usize;
        config.read_pieces_max = self.read_pieces as usize;
        config.settle_batch = self.settle_batch as usize;
        config.settle_below = self.settle_below.0;
    }
}
