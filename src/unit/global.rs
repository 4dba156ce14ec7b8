//! This unit's part in global transactions: what [`crate::txn::participant`] decides, done (design
//! section 6).
//!
//! One task speaks with the coordinator: it says how the unit stands in all of its groups, and
//! hands the orders to the domains. The task of each shared domain carries them out.
//!
//! ```text
//!   flush ─▶ wanted ─▶ Report ─▶ Seal: seal; what is newer is not acknowledged ‡
//!                             ─▶ AllSealed: acknowledge, drain, flush, append as prepared
//!                             ─▶ Committed: persist that, publish, then say that it is done ‡
//!                             ─▶ Aborted: persist that, the epoch becomes a part of the open one
//! ```
//!
//! # Contracts
//!
//! - **Silence**: a unit in no group that others have a part in asks seldom, and is nudged when it
//!   comes into one. Others ask again by themselves, quickly while something is under way.
//! - **Failure**: a domain that has stopped says so. Flushes on the other members fail with that
//!   reason, or, where nobody answers, after the patience of the configuration; their epochs stay
//!   pending and are tried again.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::Notify;

use super::atomic::AtomicError;
use super::domain::Point;
use super::error::IoError;
use super::regroup::Grouping;
use super::state::State;
use super::state::VolumeState;
use super::{Inner, Unit};
use crate::env::{Env, Moment};
use crate::format::group::{GroupState, TransactionId};
use crate::mds::client::Client;
use crate::mds::error::MdsError;
use crate::mutants::{Mutant, mutated};
use crate::observe::{CommitStep, Operation};
use crate::txn::participant::{Action, Progress};
use crate::txn::{GroupId, Order, Phase, Report, Trouble};

/// How often is asked while a transaction is under way or wanted.
const BUSY: Duration = Duration::from_millis(20);
/// How often is asked while there are groups.
const IDLE: Duration = Duration::from_millis(300);
/// How often is asked while there are none: a server that was started meanwhile does not know whom
/// it has to nudge (found by the simulator of groups, seed 93).
const SELDOM: Duration = Duration::from_secs(5);
/// How long a start waits until the other members have heard of it, at most.
const JOIN: Duration = Duration::from_secs(2);

/// Whom a unit asks for orders.
pub trait Coordinator: 'static {
    /// Says how the unit stands; the answer is what it shall do. Waits for as long as nobody
    /// answers.
    fn coordinate(
        &self,
        reports: Vec<Report>,
    ) -> impl Future<Output = Result<Vec<Order>, MdsError>>;

    /// Returns when there is news: what this unit is to do, of all of its groups, or nothing where
    /// it is to ask at once.
    fn nudged(&self) -> impl Future<Output = Vec<Order>>;
}

/// The conversation with the coordinator.
#[derive(Default)]
pub(super) struct Talk {
    /// Wakes the task that speaks.
    wake: Notify,
    /// The groups whose volumes are being moved.
    forming: RefCell<BTreeSet<GroupId>>,
    /// The groups that are over: what is still said of them is late. Volumes that had come into
    /// another group meanwhile would go back, and then out of both (found by the simulator of
    /// groups, seed 3010).
    over: RefCell<BTreeSet<GroupId>>,
}

impl Talk {
    /// The group is over.
    pub fn leave(&self, group: GroupId) {
        self.over.borrow_mut().insert(group);
    }

    /// There is something to say.
    pub fn speak(&self) {
        self.wake.notify_one();
    }
}

impl<E: Env> Coordinator for Client<E> {
    async fn coordinate(&self, reports: Vec<Report>) -> Result<Vec<Order>, MdsError> {
        Client::coordinate(self, &reports).await
    }

    async fn nudged(&self) -> Vec<Order> {
        Client::nudged(self).await
    }
}

impl<E: Env> Unit<E> {
    /// As [`Unit::follow`], with the metadata server as the coordinator.
    pub async fn join_groups(&self) -> Result<(), MdsError> {
        self.follow(self.0.mds.clone()).await
    }

    /// Joins the groups that the coordinator knows of, and takes part in their transactions from
    /// then on.
    pub async fn follow(&self, coordinator: impl Coordinator) -> Result<(), MdsError> {
        let inner = &self.0;
        let started = inner.env.now();
        loop {
            let orders = coordinator.coordinate(inner.reports()).await?;
            let groupings: Vec<Grouping> = orders.iter().map(Grouping::from).collect();
            // A group that is over is left when what is in doubt of it is resolved.
            for grouping in groupings.into_iter().filter(|of| !of.volumes.is_empty()) {
                // What cannot be served is said to the coordinator, and in the status.
                let _ = inner.regroup(&grouping).await;
            }
            inner.await_whole();
            inner.take_orders(&orders);
            let joining = inner.state.borrow().domains.iter().any(|domain| domain.returning);
            if !joining || inner.env.now().since(started) >= JOIN {
                break;
            }
            inner.env.sleep(BUSY).await;
        }
        inner.env.spawn(Rc::clone(inner).keep_groups(coordinator));
        Ok(())
    }

    /// The last transaction that was committed for a group.
    pub fn last_cut(&self, group: GroupId) -> Option<TransactionId> {
        let state = self.0.state.borrow();
        let domain = &state.domains[state.group_domain(group)?];
        domain.group.as_ref().and_then(|membership| membership.last_cut)
    }
}

impl From<&Order> for Grouping {
    fn from(order: &Order) -> Self {
        let Order { group, name, version, volumes, shared, life, .. } = order.clone();
        Grouping { group, name, version, volumes, shared, life }
    }
}

impl<E: Env> Inner<E> {
    /// Nothing is admitted to shared domains that were joined just now, before all members know.
    fn await_whole(&self) {
        let mut state = self.state.borrow_mut();
        let joined = state.domains.iter_mut().filter(|domain| domain.is_shared());
        joined.for_each(|domain| domain.returning = true);
    }

    /// The task that speaks with the coordinator.
    async fn keep_groups(self: Rc<Self>, coordinator: impl Coordinator) {
        let mut asked = self.env.now();
        loop {
            let told = self.wait_to_speak(&coordinator, asked).await;
            if self.stopped.get() {
                return;
            }
            if !told.is_empty() {
                self.receive(&told);
                continue;
            }
            asked = self.env.now();
            match coordinator.coordinate(self.reports()).await {
                Ok(orders) => self.receive(&orders),
                // The session has ended with it.
                Err(_) if self.stopped.get() => return,
                Err(error) => {
                    tracing::error!(%error, "the metadata server refused what groups need");
                    self.note_refusal(&error);
                    self.env.sleep(IDLE).await;
                }
            }
        }
    }

    /// Returns when it is time to ask, where that was done last at that moment, or with what the
    /// coordinator said unasked. That does not put off asking: only who reports a group that is
    /// over hears that it is (found by the simulator of groups, seed 7).
    async fn wait_to_speak(&self, coordinator: &impl Coordinator, last: Moment) -> Vec<Order> {
        let asked = pin!(self.talk.wake.notified());
        let nudged = pin!(coordinator.nudged());
        let woken = select(asked, nudged);
        let pace = {
            let state = self.state.borrow();
            let shared = state.domains.iter().filter(|domain| domain.is_shared());
            shared.map(|domain| if domain.is_hasty() { BUSY } else { IDLE }).min()
        };
        let passed = self.env.now().since(last);
        let pause = pace.unwrap_or(SELDOM).saturating_sub(passed);
        if pause.is_zero() {
            return Vec::new();
        }
        match select(woken, pin!(self.env.sleep(pause))).await {
            Either::Left((Either::Right((told, _)), _)) => told,
            Either::Left(_) | Either::Right(_) => Vec::new(),
        }
    }

    /// How this unit stands in its groups.
    fn reports(&self) -> Vec<Report> {
        let state = self.state.borrow();
        let reports = state.domains.iter().enumerate().filter_map(|(index, domain)| {
            let membership = domain.group.as_ref()?;
            let refused = domain.failed.as_deref().or(membership.unformed.as_deref());
            let wants = self.is_wanted(&state, index);
            let mut said = membership.standing.reports(membership.group, wants, refused);
            let joined = state.joined_in(index).map(|staged| staged.atomic);
            for report in &mut said {
                let asks = matches!(report.phase, Phase::Idle | Phase::Done);
                report.atomic = if asks { state.asked_in(index) } else { joined };
            }
            Some(said)
        });
        reports.flatten().collect()
    }

    /// Takes orders, and begins to move volumes where a membership has changed.
    fn receive(self: &Rc<Self>, orders: &[Order]) {
        self.take_orders(orders);
        for order in orders {
            let wanted = {
                let state = self.state.borrow();
                let at = state.group_domain(order.group);
                let known = at.map(|at| &state.domains[at]);
                let changed = match known.and_then(|domain| domain.group.as_ref()) {
                    Some(of) => of.standing.next(order) == Some(Action::Regroup),
                    None => !order.volumes.is_empty(),
                };
                // Those that are in another group still leave that first: it is over, and until
                // this unit has taken that in, others would have to commit what is pending there
                // (found by the simulator).
                let mut members = state.volumes.iter().filter(|of| order.volumes.contains(&of.id));
                let free = |of: &VolumeState| of.domain == of.alone || Some(of.domain) == at;
                let over = self.talk.over.borrow().contains(&order.group);
                changed && !over && members.all(free)
            };
            if wanted && self.talk.forming.borrow_mut().insert(order.group) {
                let (inner, grouping) = (Rc::clone(self), Grouping::from(order));
                self.env.spawn(async move {
                    let _ = inner.regroup(&grouping).await;
                    inner.talk.forming.borrow_mut().remove(&grouping.group);
                    inner.talk.speak();
                });
            }
        }
    }

    /// Hands orders to their domains. Those of which nothing is said keep what they were told.
    fn take_orders(&self, orders: &[Order]) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        for (index, domain) in state.domains.iter_mut().enumerate() {
            let Some(membership) = &mut domain.group else { continue };
            let group = membership.group;
            let told = || orders.iter().filter(|of| of.group == group);
            let Some(order) = told().next_back() else { continue };
            membership.orders = told().cloned().collect();
            membership.trouble.clone_from(&order.trouble);
            let standing = membership.standing;
            let here = (order.version, order.life) == (standing.version, standing.life);
            if order.whole && here && std::mem::take(&mut domain.returning) {
                // Whoever came before all members had heard of this life begins anew.
                let members = state.volumes.iter_mut().filter(|volume| volume.domain == index);
                members.for_each(|volume| volume.life += 1);
                domain.decided.notify_waiters();
            }
            if order.trouble.is_some() {
                domain.decided.notify_waiters();
            }
            domain.wake.notify_one();
        }
    }

    /// Does what a shared domain is told next, or waits.
    pub(super) async fn take_part(self: &Rc<Self>, domain: usize) {
        let Some(action) = self.next_action(domain) else {
            self.wait_for_orders(domain).await;
            return;
        };
        self.state.borrow_mut().domains[domain].acting = true;
        self.act(domain, action).await;
        {
            let of = &mut self.state.borrow_mut().domains[domain];
            of.acting = false;
            of.decided.notify_waiters();
        }
        self.talk.speak();
    }

    async fn act(self: &Rc<Self>, domain: usize, action: Action) {
        match action {
            Action::Seal(transaction) => {
                self.seal_globally(domain, transaction);
            }
            Action::Prepare => {
                if let Err(reason) = self.prepare(domain).await {
                    tracing::error!(domain, %reason, "a global commit failed here");
                    if self.journal.is_at_server() {
                        self.env.spawn(Rc::clone(self).learn_whether_replaced());
                    }
                    let mut state = self.state.borrow_mut();
                    state.domains[domain].fail(&reason);
                    state.wake_everyone();
                }
            }
            Action::Commit => self.carry_out(domain).await,
            Action::Abort => self.abort(domain).await,
            Action::Acknowledge(transaction) => {
                let mut state = self.state.borrow_mut();
                state.domains[domain].note_progress(transaction, Progress::Done);
            }
            Action::GoBack(life) => self.go_back(domain, life).await,
            Action::Regroup => unreachable!("volumes are moved by a task of their own"),
        }
    }

    fn next_action(&self, domain: usize) -> Option<Action> {
        let state = self.state.borrow();
        let of = &state.domains[domain];
        let membership = of.group.as_ref()?;
        let next = membership.orders.iter().find_map(|order| membership.standing.next(order))?;
        let journal_failed = self.journal.failure().is_some();
        let cannot = match next {
            Action::Regroup => true,
            Action::Prepare => of.failed.is_some(),
            Action::Commit | Action::Abort => membership.prepared.is_some() && journal_failed,
            _ => false,
        };
        (!cannot).then_some(next)
    }

    /// Waits for orders; asks for a transaction where one is wanted.
    async fn wait_for_orders(&self, domain: usize) {
        let (wake, age) = {
            let mut state = self.state.borrow_mut();
            let wanted = self.is_wanted(&state, domain);
            let of = &mut state.domains[domain];
            let since = of.open.since.filter(|_| !wanted);
            let wake = Rc::clone(&of.wake);
            if let Some(membership) = &mut of.group
                && std::mem::replace(&mut membership.asked, wanted) != wanted
            {
                self.talk.speak();
            }
            (wake, since.map(|since| self.env.now().since(since)))
        };
        let (Some(interval), Some(age)) = (self.config.commit_interval, age) else {
            wake.notified().await;
            return;
        };
        let timer = pin!(self.env.sleep(interval.saturating_sub(age)));
        select(timer, pin!(wake.notified())).await;
    }

    /// Whether somebody wants the open epoch committed, or it has been open for long.
    fn is_wanted(&self, state: &State, index: usize) -> bool {
        let domain = &state.domains[index];
        let age = domain.open.since.map(|since| self.env.now().since(since));
        let old = self.config.commit_interval.is_some_and(|max| age.is_some_and(|age| age >= max));
        domain.wanted >= domain.open.number || old || state.asked_in(index).is_some()
    }

    fn seal_globally(&self, domain: usize, transaction: TransactionId) {
        {
            let mut state = self.state.borrow_mut();
            let orders = state.domains[domain].group.iter().flat_map(|of| &of.orders);
            let mut of_it = orders.filter(|order| order.transaction == Some(transaction));
            if let Some(carried) = of_it.find_map(|order| order.atomic) {
                state.join_staged(domain, carried.id);
            }
        }
        self.seal(domain);
        self.note_step(domain, CommitStep::Draining, self.env.now());
        let mut state = self.state.borrow_mut();
        let of = &mut state.domains[domain];
        of.withheld = Some(of.open.number);
        of.note_progress(transaction, Progress::Sealed);
    }

    /// All are sealed: makes the sealed epoch durable, so that it can be committed or aborted.
    async fn prepare(&self, domain: usize) -> Result<(), String> {
        self.announce(domain);
        let started = self.env.now();
        self.drain(domain).await?;
        self.note_step(domain, CommitStep::Flushing, started);
        self.flush_written(domain).await?;
        let (records, blocks) = self.group_of(domain);
        self.note_step(domain, CommitStep::Hardening, started);
        self.check_owned().map_err(|error| error.to_string())?;
        let (number, transaction) = {
            let state = self.state.borrow();
            let of = &state.domains[domain];
            (of.number, of.transaction().expect("an epoch is sealed for a transaction").0)
        };
        let mut prepared = None;
        if !records.is_empty() {
            let appended = self.journal.prepare(number, transaction, records, blocks).await;
            let appended = appended.map_err(|error| {
                self.fail_all(&error.to_string());
                error.to_string()
            })?;
            self.ages.note(appended, self.env.now());
            prepared = Some(appended);
        }
        let mut state = self.state.borrow_mut();
        state.note_vote(domain);
        let of = &mut state.domains[domain];
        of.group.as_mut().expect("it is a group's").prepared = prepared;
        of.note_progress(transaction, Progress::Prepared);
        Ok(())
    }

    /// What was written after the seal may be acknowledged.
    fn announce(&self, domain: usize) {
        let mut state = self.state.borrow_mut();
        state.domains[domain].withheld = None;
        state.domains[domain].decided.notify_waiters();
    }

    /// The transaction took place.
    async fn carry_out(&self, domain: usize) {
        let (transaction, prepared) = self.voted(domain);
        if mutated(Mutant::DoneBeforePersisted) {
            self.state.borrow_mut().domains[domain].note_progress(transaction, Progress::Done);
            self.talk.speak();
        }
        if let Some(sequence) = prepared
            && let Err(error) = self.journal.set_state(sequence, GroupState::Committed).await
        {
            // It stays prepared, and the next start asks again.
            self.fail_all(&error.to_string());
            return;
        }
        let started = self.state.borrow().domains[domain].commit.map(|(_, started)| started);
        self.publish(domain, prepared);
        if self.resolve(domain) {
            self.counters.doubts_committed.increment();
        }
        self.conclude(domain, transaction, true);
        self.counters.commits.increment();
        self.counters.global_commits.increment();
        if let Some(started) = started {
            self.latencies.record(Operation::Commit, self.env.now().since(started));
        }
        if self.config.settle == super::SettlePolicy::Always {
            self.settle_wanted.notify_one();
        }
    }

    /// The transaction did not take place.
    async fn abort(&self, domain: usize) {
        let (transaction, prepared) = self.voted(domain);
        if let Some(sequence) = prepared
            && let Err(error) = self.journal.set_state(sequence, GroupState::Aborted).await
        {
            self.fail_all(&error.to_string());
            return;
        }
        let doubt = self.state.borrow().domains[domain].is_in_doubt();
        if doubt {
            self.drop_sealed(domain).await;
            self.resolve(domain);
            self.counters.doubts_aborted.increment();
        } else {
            self.counters.global_aborts.increment();
            let reason = "not all of its targets were ready, or one of them cannot commit";
            self.state.borrow_mut().drop_joined(domain, AtomicError::Aborted(reason.into()));
            self.merge_back(domain);
            // The group goes at once: what it has of the room for payload is wanted again.
            if let Err(error) = self.checkpoint().await {
                self.fail_all(&error.to_string());
                return;
            }
        }
        self.announce(domain);
        self.conclude(domain, transaction, false);
    }

    /// The transaction under way, and its group in the journal.
    fn voted(&self, domain: usize) -> (TransactionId, Option<crate::format::ids::Sequence>) {
        let state = self.state.borrow();
        let of = &state.domains[domain];
        let prepared = of.group.as_ref().and_then(|membership| membership.prepared);
        (of.transaction().expect("a transaction is under way").0, prepared)
    }

    fn conclude(&self, domain: usize, transaction: TransactionId, committed: bool) {
        let mut state = self.state.borrow_mut();
        let of = &mut state.domains[domain];
        of.note_progress(transaction, Progress::Done);
        let membership = of.group.as_mut().expect("it is a group's");
        membership.prepared = None;
        membership.asked = false;
        if committed {
            membership.last_cut = Some(transaction);
        }
    }

    /// Returns when a request of that epoch, which has ended, may be acknowledged: when all members
    /// have sealed that could still commit what follows it in a cut without it ‡.
    pub(super) async fn acknowledged(&self, point: Point) -> Result<Point, IoError> {
        loop {
            let decided = {
                let state = self.state.borrow();
                let of = &state.domains[point.domain];
                if of.is_lost(point.epoch) {
                    return Err(of.went_back());
                }
                let withheld = of.withheld.is_some_and(|from| point.epoch >= from);
                if !withheld || mutated(Mutant::AcknowledgedBeforeAllSealed) {
                    return Ok(point);
                }
                if let Some(reason) = &of.failed {
                    return Err(IoError::Latched(Arc::clone(reason)));
                }
                if self.stopped.get() {
                    return Err(IoError::ShuttingDown);
                }
                Rc::clone(&of.decided)
            };
            decided.notified().await;
        }
    }

    /// Waits for news of a domain that others have a part in; the error is why it makes no sense to
    /// wait any longer, where somebody has waited since then.
    pub(super) async fn group_news(
        &self,
        domain: usize,
        decided: &Notify,
        since: Moment,
    ) -> Result<(), IoError> {
        let waited = self.env.now().since(since);
        let shared = self.state.borrow().domains[domain].is_shared();
        if !shared {
            decided.notified().await;
            return Ok(());
        }
        let why = {
            let state = self.state.borrow();
            let membership = state.domains[domain].group.as_ref();
            let membership = membership.expect("a shared domain is of a group");
            let patience = self.config.mds_timeout;
            let over = patience.is_some_and(|patience| waited >= patience);
            let name = &membership.name;
            match &membership.trouble {
                Some(Trouble::Refused { unit, reason }) => {
                    Some(format!("unit {unit} of group {name} cannot commit: {reason}"))
                }
                _ if !over => None,
                Some(Trouble::Silent(unit)) => {
                    Some(format!("unit {unit} of group {name} does not answer"))
                }
                Some(Trouble::Forming) => Some(format!("group {name} is being formed")),
                None => Some(format!("no transaction of group {name} has come to an end")),
            }
        };
        if let Some(why) = why {
            return Err(IoError::Group(why.into()));
        }
        let Some(patience) = self.config.mds_timeout else {
            decided.notified().await;
            return Ok(());
        };
        let timer = self.env.sleep(patience.saturating_sub(waited));
        match select(pin!(decided.notified()), pin!(timer)).await {
            Either::Left(_) | Either::Right(_) => Ok(()),
        }
    }
}
