//! Telling the devices of extents that were given back (`--discard`).
//!
//! # Contracts
//!
//! - **Ordering**: an extent is discarded after everything that takes it away is durable, and
//!   before it may be used again; so no discard is on its way when somebody writes there.
//! - **Failure**: a discard that fails is harmless. The first one of a device is said.

use futures_util::future::join_all;

use super::Inner;
use crate::env::{Disk, Env};
use crate::format::ids::{ExtentId, ExtentRun};

/// The largest run that is discarded with one command, in bytes: some devices take long, and what
/// clients want waits behind it.
const DISCARD_MAX: u64 = 256 << 20;

impl<E: Env> Inner<E> {
    /// Discards extents that nothing names any more and that nobody may use yet, where that is
    /// wanted.
    pub(super) async fn discard(&self, extents: Vec<ExtentId>) {
        if !self.config.discard {
            return;
        }
        let size = u64::from(self.geometry.extent_size());
        let max = u32::try_from(DISCARD_MAX / size).expect("a few extents").max(1);
        let discards =
            runs(extents, max, |extent| self.locate(extent, 0).0).into_iter().map(|run| {
                let (device, offset) = self.locate(run.start, 0);
                let len = u64::from(run.count) * size;
                async move { (device, self.devices[device].disk.discard(offset, len).await) }
            });
        for (device, ended) in join_all(discards).await {
            if let Err(error) = ended
                && !self.devices[device].discard_failed.replace(true)
            {
                let device = self.device_name(device);
                tracing::warn!(device, %error, "a discard failed; this is not said again");
            }
        }
    }
}

/// Extents as runs of at most `max` that follow each other on one device.
fn runs(
    mut extents: Vec<ExtentId>,
    max: u32,
    device: impl Fn(ExtentId) -> usize,
) -> Vec<ExtentRun> {
    extents.sort_unstable();
    let mut runs: Vec<ExtentRun> = Vec::new();
    for extent in extents {
        match runs.last_mut() {
            Some(last)
                if last.end() == extent
                    && last.count < max
                    && device(last.start) == device(extent) =>
            {
                last.count += 1;
            }
            _ => runs.push(ExtentRun { start: extent, count: 1 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: neighbours go together, but not beyond the bound nor over the end of a device.
    #[test]
    fn neighbours_go_together() {
        let extents = [7, 3, 4, 5, 6, 9, 10, 11].map(ExtentId).to_vec();
        let device = |extent: ExtentId| usize::from(extent.0 >= 10);
        let found: Vec<_> =
            runs(extents, 4, device).iter().map(|run| (run.start.0, run.count)).collect();
        assert_eq!(found, [(3, 4), (7, 1), (9, 1), (10, 2)]);
    }
}
