//! The polls: what changed, and that the session lives.
//!
//! One task asks, a question at a time: at once where a read waits, soon where the server does not
//! know yet how far lines were followed here, since extents wait for that, and seldom otherwise.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::cache::Cache;
use super::lease::Lease;
use super::{FollowError, Inner, Parts, ReadError, State, increment};
use crate::env::{Env, Moment};
use crate::mds::client::Client;
use crate::mds::error::MdsError;
use crate::mds::records::LinesSeen;
use crate::mutants::{Mutant, mutated};

/// How often the server is asked while nobody reads, unless the lease wants it more often.
const EVERY: Duration = Duration::from_millis(50);
/// The same while it does not know how far lines were followed.
const UNACKNOWLEDGED_EVERY: Duration = Duration::from_millis(5);
/// How many times in a lease the server is asked at least.
const TIMES_A_LEASE: u32 = 4;
/// How old the list of volumes gets.
pub const VOLUMES_EVERY: Duration = Duration::from_secs(1);
/// The pause before a session is begun again, in which the tasks of the one before end.
const ATTACH_PAUSE: Duration = Duration::from_millis(20);

/// Begins a session, with the lease that was granted.
pub(super) async fn attach<E: Env>(parts: &Parts<E>) -> Result<(Client<E>, Lease), MdsError> {
    let sent = parts.env.now();
    let client = Client::attach(parts.env.clone(), parts.link.clone(), parts.claim()).await?;
    let lease = Lease::new(client.lease(), sent);
    Ok((client, lease))
}

/// All lines as of one view, while what is older than the view `used` is used no more.
pub(super) async fn all_lines<E: Env>(
    parts: &Parts<E>,
    client: &Client<E>,
    used: u64,
    reading: u64,
) -> Result<Cache, FollowError> {
    loop {
        let seen = client.lines().await?;
        let mut cache = Cache::new(checked(parts, seen)?, reading);
        // What changed while they were read; where that is too much, they are read again.
        if let Some(seen) = client.changes(cache.view(), used).await? {
            cache.apply(checked(parts, seen)?);
            return Ok(cache);
        }
    }
}

/// The lines, if they are of pairs that there are and lie in extents that there are.
fn checked<E: Env>(parts: &Parts<E>, seen: LinesSeen) -> Result<LinesSeen, FollowError> {
    let known = |extent| parts.devices.iter().any(|(_, extents)| extents.contains(extent));
    let wrong = seen.lines.iter().find(|(_, line)| {
        let mut extents = line.binding.extents.into_iter().flatten();
        !extents.all(known)
    });
    wrong.map_or(Ok(()), |(pair, _)| Err(FollowError::Damaged(*pair)))?;
    Ok(seen)
}

impl<E: Env> Inner<E> {
    /// The task that asks.
    pub(super) async fn keep_up(self: Rc<Self>) {
        while !self.stopped.get() {
            let turn = Box::pin(self.turn());
            if let Either::Right(_) = select(turn, Box::pin(self.stop.notified())).await {
                return;
            }
        }
    }

    /// Waits until there is something to ask, and asks; where the session has ended, begins another
    /// one.
    async fn turn(&self) {
        self.due().await;
        let session = self.client.borrow().clone();
        let asked = match session {
            Some(client) => self.ask(&client).await,
            None => Err(FollowError::Mds(MdsError::Closed)),
        };
        let Err(error) = asked else { return };
        self.client.take();
        tracing::warn!(%error, "the session of a reader has ended; another one begins");
        let now = self.parts.env.now();
        self.state.borrow_mut().lease.end(now);
        self.told.notify_waiters();
        self.parts.env.sleep(ATTACH_PAUSE).await;
        if let Err(error) = self.begin_again().await {
            tracing::warn!(%error, "the pool cannot be followed; it is tried again");
            self.parts.env.sleep(VOLUMES_EVERY).await;
        }
    }

    /// Returns when it is time to ask.
    async fn due(&self) {
        let every = {
            let state = self.state.borrow();
            if state.needed > state.begun {
                return;
            }
            let unacknowledged = state.acknowledged < state.cache.view();
            let every = if unacknowledged { UNACKNOWLEDGED_EVERY } else { EVERY };
            every.min(state.lease.length() / TIMES_A_LEASE)
        };
        let sleep = Box::pin(self.parts.env.sleep(every));
        select(sleep, Box::pin(self.wanted.notified())).await;
    }

    /// Asks what has changed, and takes it in.
    async fn ask(&self, client: &Client<E>) -> Result<(), FollowError> {
        let sent = self.parts.env.now();
        let (number, since, used) = {
            let mut state = self.state.borrow_mut();
            state.begun += 1;
            (state.begun, state.cache.view(), state.used(sent))
        };
        let seen = client.changes(since, used).await?;
        let over = self.state.borrow().lease.left(self.parts.env.now()).is_zero();
        match seen {
            Some(seen) if !over => {
                let seen = checked(&self.parts, seen)?;
                self.state.borrow_mut().cache.apply(seen);
            }
            _ => self.read_anew(client).await?,
        }
        self.answered(sent, number, used);
        self.list_volumes(client).await
    }

    async fn read_anew(&self, client: &Client<E>) -> Result<(), FollowError> {
        let (used, reading) = {
            let state = self.state.borrow();
            (state.used(self.parts.env.now()), state.cache.next_reading())
        };
        let cache = all_lines(&self.parts, client, used, reading).await?;
        increment(&self.counters.readings);
        self.state.borrow_mut().cache = cache;
        Ok(())
    }

    /// A question that was sent then was answered, and all it told is taken in.
    fn answered(&self, sent: Moment, number: u64, used: u64) {
        let mut state = self.state.borrow_mut();
        state.lease.renew(sent);
        state.answered_at = sent;
        state.answered = number;
        state.acknowledged = used;
        increment(&self.counters.polls);
        self.told.notify_waiters();
    }

    /// Begins another session, in which nothing counts that was known.
    async fn begin_again(&self) -> Result<(), FollowError> {
        let sent = self.parts.env.now();
        let (client, lease) = attach(&self.parts).await?;
        self.read_anew(&client).await?;
        self.client.replace(Some(client));
        let number = {
            let mut state = self.state.borrow_mut();
            state.lease = lease;
            state.begun += 1;
            state.begun
        };
        self.answered(sent, number, 0);
        Ok(())
    }

    /// Lists the volumes, where that was not done for a while.
    async fn list_volumes(&self, client: &Client<E>) -> Result<(), FollowError> {
        let now = self.parts.env.now();
        if now.since(self.state.borrow().volumes_seen) < VOLUMES_EVERY {
            return Ok(());
        }
        let volumes = client.volumes().await?;
        let mut state = self.state.borrow_mut();
        state.volumes_seen = now;
        if state.volumes != volumes {
            state.volumes = volumes;
            self.volumes_changed.notify_one();
        }
        Ok(())
    }

    /// Returns when a question that is sent from now on was answered.
    pub(super) async fn validated(&self) -> Result<(), ReadError> {
        if mutated(Mutant::ReadNotValidated) {
            return Ok(());
        }
        let number = {
            let mut state = self.state.borrow_mut();
            let next = state.begun + 1;
            state.needed = state.needed.max(next);
            next
        };
        self.wanted.notify_one();
        loop {
            let told = self.told.notified();
            let left = self.lease_left()?;
            if self.state.borrow().answered >= number {
                return Ok(());
            }
            select(Box::pin(told), Box::pin(self.parts.env.sleep(left))).await;
        }
    }

    /// How long the lease can be relied on; an error where it is over.
    pub(super) fn lease_left(&self) -> Result<Duration, ReadError> {
        if self.stopped.get() {
            return Err(ReadError::ShuttingDown);
        }
        let (now, state) = (self.parts.env.now(), self.state.borrow());
        let left = state.lease.left(now);
        if left.is_zero() {
            return Err(over(&state, now));
        }
        Ok(left)
    }
}

fn over(state: &State, now: Moment) -> ReadError {
    let silent_ms = now.since(state.answered_at).as_millis() as u64;
    ReadError::LeaseOver { silent_ms }
}
