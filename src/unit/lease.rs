//! Whether the unit still owns its pool: its lease, on devices that several hosts reach, and being
//! replaced (design section 8, ownership).
//!
//! Where one host alone reaches the devices, their exclusive claim is the fence, and there is no
//! lease. Elsewhere whoever takes over needs the word that this unit's writes arrive no more; the
//! lease lets it say so itself: at its end, less a margin for what is on its way to the devices,
//! the unit takes nothing more.
//!
//! # Contracts
//!
//! - **Time**: a lease counts from when the request was sent whose answer has renewed it.
//! - **Failure**: what has ended does not begin again: writes, reads, flushes and everything that
//!   goes to the devices fail with the reason until the next start.
//! - **Ordering**: asked when a write is admitted, before a group is hardened, when a read has
//!   ended, and before a flush is acknowledged.

use std::cell::{Cell, OnceCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Notify;

use super::Inner;
use super::error::IoError;
use crate::env::{Env, Moment};
use crate::format::ids::{HostId, Incarnation, PoolId, UnitId};
use crate::mds::error::{MdsError, Refusal};
use crate::mds::records::Claim;
use crate::mutants::{Mutant, mutated};

/// The least time that is kept for what is on its way to the devices.
const MARGIN_MIN: Duration = Duration::from_secs(1);
/// The shortest lease of which enough is left.
pub const LEASE_MIN: Duration = Duration::from_secs(3);

/// How soon a unit without a lease hears that another host has its pool.
const REPLACED_WITHIN: Duration = Duration::from_secs(1);
/// The most questions under way: as many as are sent in a lease.
const ASKED_MAX: usize = 4;

/// How a unit claims its pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ownership {
    /// The machine.
    pub host: HostId,
    /// How long the claim is good without being renewed; `None`: for ever, as nobody else reaches
    /// the devices.
    pub lease: Option<Duration>,
    /// Whether the writes of an owner on another host can arrive no more.
    pub fenced: bool,
    /// Which start that owner is, or one on this host; none: 0.
    pub former_start: Incarnation,
    /// How long that owner may go on reading by what it knows, after this claim was granted: its
    /// lease. Nothing is changed before.
    pub former_lease: Duration,
}

impl Ownership {
    /// The claim of the start of a unit after the last that its flags know, and after the one that
    /// it is taken over from.
    pub(super) fn claim_after(self, pool: PoolId, unit: UnitId, last: Incarnation) -> Claim {
        let start = Incarnation(last.max(self.former_start).0.saturating_add(1));
        self.claim(Claim { after: last, ..Claim::of(pool, unit, start) })
    }

    /// Whether another host could claim the pool: the metadata are not on its own devices.
    fn is_contested(&self) -> bool {
        self.host != HostId::default()
    }

    /// The claim on these terms.
    pub(super) fn claim(self, claim: Claim) -> Claim {
        let lease = self.lease.unwrap_or_default();
        let lease_ms = u32::try_from(lease.as_millis()).unwrap_or(u32::MAX);
        Claim { host: self.host, lease_ms, fenced: self.fenced, ..claim }
    }
}

/// What is left at `now` of a lease that was renewed by a request sent at `renewed`, its margin not
/// counted; zero where it has ended.
pub fn left(lease: Duration, renewed: Moment, now: Moment) -> Duration {
    let lease = if mutated(Mutant::LeaseBelievedTooLong) { 2 * lease } else { lease };
    let margin = (lease / 10).max(MARGIN_MIN);
    lease.saturating_sub(margin).saturating_sub(now.since(renewed))
}

/// How long after a renewal the next one is sent, where so much of the lease is left.
fn pause(lease: Duration, left: Duration) -> Duration {
    (lease / 3).min(left)
}

/// The unit's hold on its pool.
pub(super) struct Hold {
    /// Zero: for ever.
    lease: Duration,
    renewed: Cell<Moment>,
    /// Why it has ended.
    ended: OnceCell<Arc<str>>,
    stop: Notify,
}

impl Hold {
    /// A hold that was granted for `lease`, zero for ever, by a request sent at `claimed`.
    pub fn new(lease: Duration, claimed: Moment) -> Self {
        let renewed = Cell::new(claimed);
        Hold { lease, renewed, ended: OnceCell::new(), stop: Notify::new() }
    }

    /// What is left at `now`; `None`: there is no end.
    pub fn left(&self, now: Moment) -> Option<Duration> {
        (!self.is_endless()).then(|| left(self.lease, self.renewed.get(), now))
    }

    /// Whether it has no end, and nobody need look at a clock.
    fn is_endless(&self) -> bool {
        self.lease.is_zero()
    }

    /// Ends the task that renews.
    pub fn stop(&self) {
        self.stop.notify_one();
    }
}

/// Whether the server refused since another start of the unit has attached.
fn is_replaced(error: &MdsError) -> bool {
    matches!(error, MdsError::Refused { refusal: Refusal::UnknownSession, .. })
}

impl<E: Env> Inner<E> {
    /// Refuses where the unit does not own its pool any more.
    pub(super) fn check_owned(&self) -> Result<(), IoError> {
        if self.hold.ended.get().is_none() {
            if self.hold.is_endless() {
                return Ok(());
            }
            match self.hold.left(self.env.now()) {
                Some(Duration::ZERO) => self.lease_over(),
                _ => return Ok(()),
            }
        }
        let reason = self.hold.ended.get().expect("it has ended");
        Err(IoError::Latched(Arc::clone(reason)))
    }

    fn lease_over(&self) {
        let lease = self.hold.lease.as_secs_f64();
        self.fence(&format!(
            "fenced: the lease of {lease} s ended, as the metadata server did not renew it"
        ));
    }

    /// Stops everything, reads included: the pool may be another's.
    fn fence(&self, reason: &str) {
        if self.hold.ended.set(reason.into()).is_err() {
            return;
        }
        for device in &self.devices {
            device.disk.fence(reason);
        }
        self.fail_all(reason);
    }

    /// Takes note of what the metadata server refused: perhaps the unit was replaced.
    pub(super) fn note_refusal(&self, error: &MdsError) {
        if is_replaced(error) && !self.stopped.get() {
            self.fence("fenced: another target attached to this pool at the metadata server");
        }
    }

    /// After the server refused something without a clear reason: learns whether the unit was
    /// replaced, since then its reads must end, too.
    pub(super) async fn learn_whether_replaced(self: Rc<Self>) {
        if let Err(error) = self.mds.renew().await {
            self.note_refusal(&error);
        }
    }

    /// Renews the lease, if there is one, and waits until that is done.
    pub(super) async fn renew(&self) -> Result<(), MdsError> {
        if self.hold.lease.is_zero() {
            return Ok(());
        }
        self.ask().await
    }

    /// Hears from the server that the pool is this unit's still. An answer counts whenever it
    /// comes, from when it was asked for.
    async fn ask(&self) -> Result<(), MdsError> {
        let sent = self.env.now();
        self.mds.renew().await?;
        self.hold.renewed.set(self.hold.renewed.get().max(sent));
        Ok(())
    }

    /// How long until the server is asked again; `None`: it needs not be.
    fn ask_after(&self) -> Option<Duration> {
        match self.hold.left(self.env.now()) {
            Some(left) => Some(pause(self.hold.lease, left)),
            None => self.config.ownership.is_contested().then_some(REPLACED_WITHIN),
        }
    }

    /// The task that asks, again and again: for the lease, before it ends; or, where there is none,
    /// whether another host has taken the pool. Questions are under way together, as a lease counts
    /// from when the one was sent that is answered.
    pub(super) async fn keep_lease(self: Rc<Self>) {
        let mut asked = FuturesUnordered::new();
        while let Some(pause) = self.ask_after()
            && !self.stopped.get()
            && self.check_owned().is_ok()
        {
            if asked.len() < ASKED_MAX {
                asked.push(self.ask());
            }
            let pause = pin!(self.env.sleep(pause));
            let stopped = pin!(self.hold.stop.notified());
            let mut idle = select(pause, stopped);
            loop {
                match select(asked.next(), &mut idle).await {
                    // What is wrong with the server now may be mended in time.
                    Either::Left((Some(answered), _)) => {
                        answered.unwrap_or_else(|error| self.note_refusal(&error));
                    }
                    Either::Left((None, idle)) => {
                        idle.await;
                        break;
                    }
                    Either::Right(_) => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: f64) -> Duration {
        Duration::from_secs_f64(s)
    }

    /// Goal: over leases and times: it ends a tenth, and at least a second, before the server's
    /// count of it can; never later, and it is renewed twice at least before that.
    #[test]
    fn a_lease_ends_early() {
        for lease in [3.0, 5.0, 10.0, 60.0, 3600.0].map(seconds) {
            let renewed = Moment(1_000_000_000);
            let at = |since: Duration| Moment(renewed.0 + since.as_nanos() as u64);
            let end = lease.saturating_sub((lease / 10).max(seconds(1.0)));
            for tenth in 0..20 {
                let now = at(lease * tenth / 10);
                let left = left(lease, renewed, now);
                assert_eq!(left, end.saturating_sub(now.since(renewed)));
                assert_eq!(left.is_zero(), now >= at(end), "{lease:?} {tenth}");
            }
            assert!(left(lease, renewed, at(end)).is_zero());
            let before = end.saturating_sub(Duration::from_nanos(1));
            assert!(!left(lease, renewed, at(before)).is_zero());
            assert!(lease / 3 * 2 <= end, "two renewals fit in {lease:?}");
            assert_eq!(pause(lease, end), lease / 3);
            assert_eq!(pause(lease, Duration::from_nanos(5)), Duration::from_nanos(5));
        }
        assert!(
            left(seconds(0.5), Moment(0), Moment(0)).is_zero(),
            "nothing is left of the margin"
        );
    }

    /// Goal: a hold without a lease has no end.
    #[test]
    fn no_lease_no_end() {
        let hold = Hold::new(Duration::ZERO, Moment(0));
        assert_eq!(hold.left(Moment(u64::MAX)), None);
    }
}
