//! Counters of one thread.

use std::cell::Cell;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(Cell<u64>);

impl Count {
    /// Adds `amount`; at the end of the numbers it stays there.
    pub fn add(&self, amount: u64) {
        self.0.set(self.0.get().saturating_add(amount));
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// All counters of a target since it started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of the write requests that clients were told are done (zeroes and trims not counted).
    pub client_bytes_written: Count,
    /// Bytes of the read requests that were answered.
    pub client_bytes_read: Count,
    /// Of those, bytes that came from the devices into the client's own memory, without a copy.
    pub client_bytes_read_straight: Count,
    /// Client data written to the devices, with the rest of the blocks it fills only in part.
    pub device_bytes_data: Count,
    /// Blocks written by settling: taken from one side of a pair to the other.
    pub device_bytes_copies: Count,
    /// Client data destaged: written to its place after it was committed in the journal.
    pub device_bytes_destaged: Count,
    /// All else written: groups, home pages, superblocks, the metadata store.
    pub device_bytes_metadata: Count,
    /// Epochs hardened.
    pub commits: Count,
    /// Those of them that nobody asked for, made because space ran out.
    pub early_commits: Count,
    /// Epochs hardened as a part of a global transaction.
    pub global_commits: Count,
    /// Epochs whose global transaction did not take place.
    pub global_aborts: Count,
    /// Transactions that a start found in doubt, and that took place.
    pub doubts_committed: Count,
    /// Transactions that a start found in doubt, and that did not take place.
    pub doubts_aborted: Count,
    /// How often a group went back to its last cut because another unit lost what was pending.
    pub resets: Count,
    /// Pairs settled by exchanging the roles of their areas.
    pub swaps: Count,
    /// Pairs settled by copying back into the data area.
    pub area_commits: Count,
    /// Blocks that settling copied.
    pub blocks_copied: Count,
    /// Requests to read.
    pub reads: Count,
    /// Requests to write.
    pub writes: Count,
    /// Requests to flush.
    pub flushes: Count,
    /// Requests to trim.
    pub trims: Count,
    /// Requests to write zeroes.
    pub zeroes: Count,
    /// Requests answered with an error, the malformed ones included.
    pub errors: Count,
    /// Client connections accepted.
    pub connections: Count,
    /// Client connections that the target ended: garbage, stalls, too many.
    pub connections_dropped: Count,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a count never wraps.
    #[test]
    fn counts_saturate() {
        let count = Count::default();
        count.increment();
        count.add(u64::MAX);
        assert_eq!(count.get(), u64::MAX);
    }
}
