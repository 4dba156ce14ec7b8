//! Who might still be reading an extent: nothing is freed under a reader.
//!
//! Readers do not hold blocks. They enter here before they look up where contents lie and leave
//! when their reads have ended; whoever took an extent out of every map waits for those that had
//! entered before. Those who read beside the unit, by lines that the metadata server tells them,
//! say there how far they have followed, and are waited for as well.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};

use crate::env::Env;
use crate::mds::client::Client;
use crate::mds::error::MdsError;
use crate::mds::records::Told;
use crate::mutants::{Mutant, mutated};

/// How often the server is asked whether readers have followed.
const ASKED_EVERY: Duration = Duration::from_millis(10);

/// Returns when nobody beside the unit reads by lines from before what was told (design section 8),
/// or the lease of who might has ended.
pub async fn followed<E: Env>(env: &E, mds: &Client<E>, told: Told) -> Result<(), MdsError> {
    let Told { view, mut horizon } = told;
    while horizon < view && !mutated(Mutant::ReaderNotWaitedFor) {
        env.sleep(ASKED_EVERY).await;
        horizon = mds.renew().await?.horizon;
    }
    Ok(())
}

/// The reads under way.
#[derive(Default)]
pub struct Readers {
    phase: Cell<usize>,
    active: [Cell<u64>; 2],
    left: Notify,
    waiting: Mutex<()>,
}

/// A read under way; leaves when dropped.
pub struct Reading<'a> {
    readers: &'a Readers,
    phase: usize,
}

impl Readers {
    /// A reader enters.
    pub fn enter(&self) -> Reading<'_> {
        let phase = self.phase.get();
        self.active[phase].set(self.active[phase].get() + 1);
        Reading { readers: self, phase }
    }

    /// Returns when everyone who had entered before the call has left.
    pub async fn grace(&self) {
        let _one_at_a_time = self.waiting.lock().await;
        let old = self.phase.get();
        assert_eq!(self.active[1 - old].get(), 0, "the phase before was waited for");
        self.phase.set(1 - old);
        while self.active[old].get() > 0 {
            self.left.notified().await;
        }
    }

    /// How many reads are under way.
    pub fn count(&self) -> u64 {
        self.active.iter().map(Cell::get).sum()
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let active = &self.readers.active[self.phase];
        active.set(active.get() - 1);
        if active.get() == 0 {
            self.readers.left.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    /// Goal: a grace period ends when the readers from before it have left, not earlier, and later
    /// readers do not hold it up.
    #[test]
    fn grace_waits_for_earlier_readers_only() {
        let readers = Readers::default();
        assert_eq!(readers.grace().now_or_never(), Some(()));
        let early = readers.enter();
        let mut grace = Box::pin(readers.grace());
        assert_eq!(grace.as_mut().now_or_never(), None);
        let late = readers.enter();
        drop(early);
        assert_eq!(grace.as_mut().now_or_never(), Some(()));
        drop(grace);
        assert_eq!(readers.count(), 1);
        drop(late);
    }
}
