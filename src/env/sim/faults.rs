//! What may go wrong, as data: one [`TABLE`], next to the promise that each fault leaves intact
//! (design section 11). The simulator injects exactly this, and a run checks exactly that.
//!
//! Always on, and so without a row: a crash at any call of the environment; unflushed writes lost,
//! reordered and torn at sector boundaries ([`super::medium`]); unpersisted words of persistent
//! memory lost or kept in any order ([`super::nvram`]).

use super::rng::Rng;

/// A thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An operation takes [`Faults::stall_ns`] more.
    Stall,
    /// The monotonic clock jumps forward by up to [`Faults::jump_ns`]: the machine was suspended.
    ClockJump,
    /// A sector that was under write when the power was lost cannot be read until it is rewritten.
    TornSector,
    /// A line of persistent memory that was being persisted when the power was lost is poisoned.
    TornLine,
    /// A write of a process that was killed arrives after its successor was started.
    LateWrite,
    /// A datagram is lost.
    DatagramLost,
    /// A datagram arrives twice.
    DatagramRepeated,
    /// A datagram takes [`LATE_NS`] more: it comes after what was sent later.
    DatagramLate,
    /// A datagram loses its end.
    DatagramTruncated,
    /// Up to three bits of a datagram are flipped.
    DatagramCorrupted,
    /// A datagram of an earlier operating period arrives again.
    DatagramReplayed,
    /// For [`Faults::partition_ns`] nothing arrives that is sent in one direction.
    Partition,
    /// One of two equal copies of a page of the region was lost at rest: a bit flipped, or it
    /// cannot be read.
    RottenCopy,
    /// Both copies of a page of the region were lost at rest.
    RottenPage,
    /// A journal slot was lost at rest; not one of the newest group.
    RottenSlot,
    /// A read fails; the same read may succeed later.
    ReadError,
    /// A read fails, and all others of that sector until it is rewritten; not while a recovery asks
    /// whether the newest commit came with its data.
    BadSector,
    /// A sector is dead: every read and every write of it fails.
    DeadSector,
    /// A write fails, leaving each of its sectors old or new.
    WriteError,
    /// A write is reported as cancelled, and was applied all the same.
    CancelledWrite,
    /// A flush fails, and drops any of what it should have made durable; the next one succeeds.
    FlushError,
}

/// How many faults there are.
pub const FAULTS: usize = 21;

/// What a fault leaves intact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Everything: clients see nothing but a delay.
    Recovered,
    /// The fault is seen, as errors of these kinds; data are never wrong, and every promise holds
    /// again after a restart without the fault.
    Detected(Errors),
}

/// Kinds of errors that a fault may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errors {
    /// Of requests that read the device meanwhile; and room may be missing for as long as a settle
    /// cannot read what it must copy.
    Reads,
    /// Of requests that read there meanwhile, and of every change from then on, until a restart
    /// (fail stop); and room may be missing that was on the failed device.
    Changes,
    /// Of the recovery, which refuses to serve.
    Recovery,
}

/// A row of the fault table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What goes wrong.
    pub fault: Fault,
    /// What it is called in reports.
    pub name: &'static str,
    /// What holds all the same.
    pub promise: Promise,
    /// The rates that a run draws from, in parts per million of the operations concerned.
    pub ppm: &'static [u32],
}

const fn row(fault: Fault, name: &'static str, promise: Promise, ppm: &'static [u32]) -> Row {
    Row { fault, name, promise, ppm }
}

const RECOVERED: Promise = Promise::Recovered;
const READS: Promise = Promise::Detected(Errors::Reads);
const CHANGES: Promise = Promise::Detected(Errors::Changes);
const RECOVERY: Promise = Promise::Detected(Errors::Recovery);

/// Everything that may be injected, in the order of [`Fault`].
pub const TABLE: [Row; FAULTS] = [
    row(Fault::Stall, "stall", RECOVERED, &[100, 1_000, 20_000]),
    row(Fault::ClockJump, "clock jump", RECOVERED, &[100, 1_000]),
    row(Fault::TornSector, "torn sector", RECOVERED, &[10_000, 300_000, 1_000_000]),
    row(Fault::TornLine, "torn line", RECOVERED, &[10_000, 300_000]),
    row(Fault::LateWrite, "late write", RECOVERED, &[300_000, 1_000_000]),
    row(Fault::DatagramLost, "datagram lost", RECOVERED, &[1_000, 50_000, 300_000]),
    row(Fault::DatagramRepeated, "datagram repeated", RECOVERED, &[1_000, 50_000, 300_000]),
    row(Fault::DatagramLate, "datagram late", RECOVERED, &[10_000, 100_000]),
    row(Fault::DatagramTruncated, "datagram truncated", RECOVERED, &[10_000, 200_000]),
    row(Fault::DatagramCorrupted, "datagram corrupted", RECOVERED, &[10_000, 200_000]),
    row(Fault::DatagramReplayed, "datagram replayed", RECOVERED, &[10_000, 200_000]),
    row(Fault::Partition, "one-way partition", RECOVERED, &[1_000, 20_000]),
    row(Fault::RottenCopy, "rotten copy", RECOVERED, &[100_000, 500_000]),
    row(Fault::RottenPage, "rotten page", RECOVERY, &[100_000, 500_000]),
    row(Fault::RottenSlot, "rotten slot", RECOVERY, &[100_000, 500_000]),
    row(Fault::ReadError, "read error", READS, &[300, 5_000, 50_000]),
    row(Fault::BadSector, "bad sector", READS, &[300, 5_000]),
    row(Fault::DeadSector, "dead sector", CHANGES, &[100, 1_000]),
    row(Fault::WriteError, "write error", CHANGES, &[300, 3_000]),
    row(Fault::CancelledWrite, "cancelled write", CHANGES, &[300, 3_000]),
    row(Fault::FlushError, "flush error", CHANGES, &[1_000, 10_000, 100_000]),
];

const _: () = {
    let mut i = 0;
    while i < FAULTS {
        assert!(TABLE[i].fault as usize == i, "the rows are in the order of the faults");
        i += 1;
    }
};

/// How much longer than others a late datagram travels, at most, in nanoseconds.
pub const LATE_NS: u64 = 2_000_000_000;

/// Which kinds of faults happen in a run, how often, and how long things take.
#[derive(Clone, Debug)]
pub struct Faults {
    /// How often each happens, in parts per million, in the order of [`TABLE`].
    rates: [u32; FAULTS],
    /// Shortest and longest time that an I/O takes, in nanoseconds; each is drawn on a log scale.
    pub latency_ns: (u64, u64),
    /// How long an I/O stalls, in nanoseconds.
    pub stall_ns: u64,
    /// How far the clock jumps at most, in nanoseconds.
    pub jump_ns: u64,
    /// Shortest and longest time that a datagram travels, in nanoseconds.
    pub datagram_ns: (u64, u64),
    /// How long a partition lasts at most, in nanoseconds.
    pub partition_ns: u64,
}

impl Faults {
    /// Nothing fails: I/O completes in any order, and that is all.
    pub fn none() -> Self {
        Self {
            rates: [0; FAULTS],
            latency_ns: (1_000, 200_000),
            stall_ns: 0,
            jump_ns: 0,
            datagram_ns: (1_000, 100_000),
            partition_ns: 0,
        }
    }

    /// Those that are recovered from and, where `detected`, those that are told of too; half of the
    /// former and most of the latter are left out (swarm testing).
    pub fn draw(rng: &mut Rng, detected: bool) -> Self {
        let fastest = rng.pick(&[100, 1_000, 10_000]);
        let mut faults = Self {
            rates: [0; FAULTS],
            latency_ns: (fastest, fastest * rng.pick(&[2, 20, 1_000])),
            stall_ns: rng.pick(&[1_000_000, 30_000_000, 300_000_000]),
            jump_ns: rng.pick(&[60, 3_600, 12 * 3_600]) * 1_000_000_000,
            datagram_ns: (1_000, rng.pick(&[10_000, 1_000_000, 50_000_000])),
            partition_ns: rng.pick(&[10, 1_000, 60_000]) * 1_000_000,
        };
        for (rate, row) in faults.rates.iter_mut().zip(TABLE) {
            let present = match row.promise {
                Promise::Recovered => rng.chance(500_000),
                Promise::Detected(_) => rng.chance(350_000) && detected,
            };
            let drawn = rng.pick(row.ppm);
            *rate = if present { drawn } else { 0 };
        }
        faults
    }

    /// With one fault at a rate, in parts per million.
    #[must_use]
    pub fn with(mut self, fault: Fault, ppm: u32) -> Self {
        self.rates[fault as usize] = ppm;
        self
    }

    /// How often a fault happens, in parts per million.
    pub fn rate(&self, fault: Fault) -> u32 {
        self.rates[fault as usize]
    }

    /// The same timing, with nothing lost and nothing failing any more; what a crash does is as
    /// before.
    #[must_use]
    pub fn ceased(&self) -> Self {
        let mut faults = Self { latency_ns: self.latency_ns, ..Self::none() };
        for fault in [Fault::TornSector, Fault::TornLine, Fault::LateWrite] {
            faults.rates[fault as usize] = self.rate(fault);
        }
        faults
    }
}

/// How often each fault has struck, in the order of [`TABLE`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Struck(pub [u64; FAULTS]);

impl Struck {
    /// One more.
    pub fn add(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// All of another count, too.
    pub fn add_all(&mut self, other: &Struck) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }

    /// How often faults struck that may lead to such errors.
    pub fn that_lead_to(&self, errors: Errors) -> u64 {
        let leads = |row: &Row| row.promise == Promise::Detected(errors);
        TABLE.iter().zip(self.0).filter(|(row, _)| leads(row)).map(|(_, count)| count).sum()
    }
}

impl std::fmt::Display for Struck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = TABLE.iter().zip(self.0).map(|(row, count)| format!("{} {count}", row.name));
        f.write_str(&counts.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is drawn keeps its promise: without the detected ones no rate of theirs is set,
    /// and over many runs every row is drawn, and left out.
    #[test]
    fn every_row_is_drawn_and_left_out() {
        let mut rng = Rng::new(1);
        let mut seen = [[false; 2]; FAULTS];
        for _ in 0..100 {
            let recovered = Faults::draw(&mut rng, false);
            let all = Faults::draw(&mut rng, true);
            for (row, seen) in TABLE.iter().zip(&mut seen) {
                seen[usize::from(all.rate(row.fault) > 0)] = true;
                let allowed = row.promise == Promise::Recovered || recovered.rate(row.fault) == 0;
                assert!(allowed, "{}", row.name);
            }
        }
        assert_eq!(seen, [[true; 2]; FAULTS]);
    }
}
