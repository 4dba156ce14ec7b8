//! Timers: kept here, in order, and handed to the kernel as the longest time it may sleep.
//!
//! A sleep that is dropped costs no message to the kernel.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::ring::Core;

/// Nanoseconds of CLOCK_BOOTTIME: it goes on while the machine sleeps, as the leases of others do.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock");
    now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
}

/// A timer's deadline in nanoseconds, and a number that tells apart those of one deadline.
type Key = (u64, u64);

/// All timers that have not fired.
#[derive(Default)]
pub(super) struct Timers {
    waiting: BTreeMap<Key, Waker>,
    started: u64,
}

impl Timers {
    /// How long until the first timer is due.
    pub(super) fn first_due_in(&self) -> Option<Duration> {
        let (&(deadline, _), _) = self.waiting.first_key_value()?;
        Some(Duration::from_nanos(deadline.saturating_sub(now_ns())))
    }

    /// Wakes all that are due at `now`, in order of their deadlines.
    pub(super) fn fire(&mut self, now: u64) {
        while let Some(first) = self.waiting.first_entry() {
            if first.key().0 > now {
                break;
            }
            first.remove().wake();
        }
    }
}

/// Ends at least as long after its making as was asked for.
pub struct Sleep {
    core: Rc<Core>,
    deadline_ns: u64,
    key: Option<Key>,
}

impl Sleep {
    pub(super) fn new(core: &Rc<Core>, duration: Duration) -> Self {
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let deadline_ns = now_ns().saturating_add(duration_ns);
        Self { core: Rc::clone(core), deadline_ns, key: None }
    }

    fn timers(&self) -> &RefCell<Timers> {
        &self.core.timers
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if now_ns() >= self.deadline_ns {
            return Poll::Ready(());
        }
        let mut timers = self.timers().borrow_mut();
        let key = self.key.unwrap_or_else(|| {
            timers.started += 1;
            (self.deadline_ns, timers.started)
        });
        timers.waiting.insert(key, cx.waker().clone());
        drop(timers);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.timers().borrow_mut().waiting.remove(&key);
        }
    }
}
