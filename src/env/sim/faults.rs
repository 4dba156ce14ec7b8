//! What may go wrong, as data (design section 11): the simulator injects exactly this.
//!
//! Every rate is in parts per million of the calls it concerns. The rows of the design's fault
//! table map to fields thus:
//!
//! | row | field |
//! | --- | --- |
//! | unflushed writes lost, reordered, torn | always on, in [`super::medium`] |
//! | a sector under write may read as an error | [`Faults::torn_sector_ppm`] |
//! | device error | `read_error_ppm`, `write_error_ppm`, `flush_error_ppm` |
//! | datagrams lost, repeated, delayed, reordered | `datagram_*` |
//! | stalls | `stall_ppm`, `stall_ns` |

use super::rng::Rng;

/// Which kinds of faults happen in a run, and how often.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Shortest and longest time that an I/O takes, in nanoseconds; each is drawn on a log scale.
    pub latency_ns: (u64, u64),
    /// How often an I/O takes [`Faults::stall_ns`] more.
    pub stall_ppm: u32,
    /// How long such an I/O stalls, in nanoseconds.
    pub stall_ns: u64,
    /// How often a read fails (transiently: the same read may succeed later).
    pub read_error_ppm: u32,
    /// How often a write fails, leaving each of its sectors old or new.
    pub write_error_ppm: u32,
    /// How often a flush fails, losing any of what it should have made durable.
    pub flush_error_ppm: u32,
    /// How often a sector that was under write when the power was lost reads as an error.
    pub torn_sector_ppm: u32,
    /// How often a datagram is lost.
    pub datagram_loss_ppm: u32,
    /// How often a datagram arrives twice.
    pub datagram_repeat_ppm: u32,
    /// Shortest and longest time that a datagram travels, in nanoseconds.
    pub datagram_ns: (u64, u64),
}

impl Faults {
    /// Nothing fails: I/O completes in any order, and that is all.
    pub fn none() -> Self {
        Self {
            latency_ns: (1_000, 200_000),
            stall_ppm: 0,
            stall_ns: 0,
            read_error_ppm: 0,
            write_error_ppm: 0,
            flush_error_ppm: 0,
            torn_sector_ppm: 0,
            datagram_loss_ppm: 0,
            datagram_repeat_ppm: 0,
            datagram_ns: (1_000, 100_000),
        }
    }

    /// The faults that must be recovered from without any client noticing more than a delay.
    pub fn draw_recoverable(rng: &mut Rng) -> Self {
        let sometimes = |rng: &mut Rng, options: &[u32]| {
            if rng.chance(500_000) { 0 } else { rng.pick(options) }
        };
        let fastest = rng.pick(&[100, 1_000, 10_000]);
        Self {
            latency_ns: (fastest, fastest * rng.pick(&[2, 20, 1_000])),
            stall_ppm: sometimes(rng, &[100, 1_000, 20_000]),
            stall_ns: rng.pick(&[1_000_000, 30_000_000, 300_000_000]),
            torn_sector_ppm: sometimes(rng, &[10_000, 300_000]),
            datagram_loss_ppm: sometimes(rng, &[1_000, 50_000, 300_000]),
            datagram_repeat_ppm: sometimes(rng, &[1_000, 50_000, 300_000]),
            datagram_ns: (1_000, rng.pick(&[10_000, 1_000_000, 50_000_000])),
            ..Self::none()
        }
    }

    /// Those, and errors of the devices, which clients are told of.
    pub fn draw_all(rng: &mut Rng) -> Self {
        Self {
            read_error_ppm: rng.pick(&[0, 300, 5_000]),
            write_error_ppm: rng.pick(&[0, 0, 300, 3_000]),
            flush_error_ppm: rng.pick(&[0, 0, 1_000, 10_000]),
            ..Self::draw_recoverable(rng)
        }
    }

    /// The same timing, with nothing lost and nothing failing any more.
    #[must_use]
    pub fn ceased(&self) -> Self {
        Self { torn_sector_ppm: self.torn_sector_ppm, latency_ns: self.latency_ns, ..Self::none() }
    }
}
