//! Requests and their answers over a link that loses, repeats and reorders.
//!
//! Two tasks: one receives, one sends again what is due. A call registers its request and waits for
//! a one-shot; so a call that is dropped leaves no gap in the order of mutations.
//!
//! The tasks hold what is shared; the [`Exchange`] is the handle whose end ends them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::{Notify, Semaphore, oneshot};

use super::ClientStatus;
use super::timer::{Timer, later};
use crate::env::{Env, Link, Moment};
use crate::mds::assembly::{Added, Assembly};
use crate::mds::error::{MdsError, Refusal};
use crate::mds::rtt::Estimator;
use crate::mds::wire::{self, Datagram, Header, Kind, Operation, WINDOW};
use crate::mutants::{Mutant, mutated};

/// The handle of a session's traffic.
pub(super) struct Exchange<E: Env>(Rc<Shared<E>>);

struct Shared<E: Env> {
    env: E,
    link: E::Link,
    session: u64,
    state: RefCell<State>,
    /// Something is due earlier than the sending task thinks, or all is over.
    due: Notify,
    /// The receiving task shall end.
    closed: Notify,
    /// The server has news of consistency groups.
    nudged: Notify,
    lanes: [Lane; 2],
}

/// A space of sequence numbers: mutations or queries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum LaneId {
    Mutations = 0,
    Queries = 1,
}

/// Where the calls of a lane wait for room in its window, in order of arrival.
struct Lane {
    gate: Semaphore,
    room: Notify,
}

type Outcome = Result<Vec<u8>, (Refusal, u64)>;

/// A request without its answer.
struct Request {
    operation: Operation,
    datagrams: Vec<Vec<u8>>,
    sent_first: Moment,
    sent_last: Moment,
    /// The timeout at that time.
    timeout: Duration,
    sendings: u32,
    answer: Option<Assembly>,
    outcome: oneshot::Sender<Outcome>,
}

#[derive(Default)]
struct State {
    requests: BTreeMap<(LaneId, u64), Request>,
    next: [u64; 2],
    /// What the newest nudge that nobody has taken says.
    nudge: Option<Vec<u8>>,
    estimator: Estimator,
    timer: Timer,
    /// Until when the sending task sleeps; none: until it is woken.
    wakes: Option<Moment>,
    heard: Moment,
    status: ClientStatus,
    closed: bool,
}

impl Request {
    /// When it is sent again, if it is a query.
    fn due(&self) -> Moment {
        later(self.sent_last, self.timeout)
    }
}

impl LaneId {
    fn of(operation: Operation) -> Self {
        if operation.is_ordered() { LaneId::Mutations } else { LaneId::Queries }
    }
}

impl State {
    /// The lowest number of the lane that has no answer yet.
    fn floor(&self, lane: LaneId) -> u64 {
        let mut waiting = self.requests.range((lane, 0)..=(lane, u64::MAX));
        waiting.next().map_or(self.next[lane as usize], |((_, sequence), _)| *sequence)
    }

    fn has_room(&self, lane: LaneId) -> bool {
        self.next[lane as usize] - self.floor(lane) < WINDOW
    }

    /// Where something is to be sent again next, and when: the oldest mutation ([`Timer`]), or
    /// queries, which do not wait for each other.
    fn next_due(&self) -> Option<(Moment, LaneId)> {
        let lane = |lane| self.requests.range((lane, 0)..=(lane, u64::MAX)).map(|(_, of)| of);
        let oldest = lane(LaneId::Mutations).next();
        let mutation = oldest.map(|of| self.timer.due(of.sent_last, &self.estimator));
        let query = lane(LaneId::Queries).map(Request::due).min();
        let of = |lane| move |due| (due, lane);
        let both = [mutation.map(of(LaneId::Mutations)), query.map(of(LaneId::Queries))];
        both.into_iter().flatten().min()
    }

    /// What of the lane is sent again now: its datagrams.
    fn send_again(&mut self, lane: LaneId, now: Moment) -> Vec<Vec<u8>> {
        let State { requests, estimator, timer, heard, status, .. } = self;
        let mut of_lane = requests.range_mut((lane, 0)..=(lane, u64::MAX)).map(|(_, of)| of);
        let due: Vec<&mut Request> = match lane {
            LaneId::Mutations => {
                let oldest = of_lane.next();
                oldest.iter().for_each(|of| timer.expire(of.sent_last, now, estimator));
                oldest.into_iter().collect()
            }
            LaneId::Queries => {
                estimator.back_off();
                of_lane.filter(|of| of.due() <= now).collect()
            }
        };
        let mut datagrams = Vec::new();
        for request in due {
            (request.sent_last, request.timeout) = (now, estimator.timeout());
            request.sendings += 1;
            status.repeated += 1;
            if *heard <= request.sent_first {
                let since = status.silent_since.get_or_insert(request.sent_first);
                *since = (*since).min(request.sent_first);
            }
            datagrams.extend(request.datagrams.iter().cloned());
        }
        datagrams
    }

    /// Ends everything: whoever waits is told that it is closed.
    fn close(&mut self) {
        self.closed = true;
        self.requests.clear();
    }
}

impl<E: Env> Exchange<E> {
    /// A new session over `link`, with its tasks.
    pub(super) fn start(env: &E, link: E::Link) -> Rc<Self> {
        let lane = || Lane { gate: Semaphore::new(1), room: Notify::new() };
        let shared = Rc::new(Shared {
            session: env.random().max(1),
            env: env.clone(),
            link,
            state: RefCell::default(),
            due: Notify::new(),
            closed: Notify::new(),
            nudged: Notify::new(),
            lanes: [lane(), lane()],
        });
        env.spawn(Rc::clone(&shared).receive_all());
        env.spawn(Rc::clone(&shared).send_again());
        Rc::new(Exchange(shared))
    }

    /// Asks, and waits for the answer however long it takes.
    pub(super) async fn call(
        &self,
        operation: Operation,
        body: &[u8],
    ) -> Result<Vec<u8>, MdsError> {
        let answer = self.0.admit(operation, body).await?;
        match answer.await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err((refusal, detail))) => {
                Err(MdsError::Refused { operation: operation.name(), refusal, detail })
            }
            Err(_) => Err(MdsError::Closed),
        }
    }

    /// Returns what the server's newest nudge since the last time says.
    pub(super) async fn nudged(&self) -> Vec<u8> {
        loop {
            if let Some(said) = self.0.state.borrow_mut().nudge.take() {
                return said;
            }
            self.0.nudged.notified().await;
        }
    }

    /// The largest datagram that can be sent, in bytes.
    pub(super) fn payload_max(&self) -> usize {
        self.0.link.payload_max()
    }

    /// How it goes.
    pub(super) fn status(&self) -> ClientStatus {
        let state = self.0.state.borrow();
        ClientStatus {
            waiting: state.requests.len(),
            round_trip: state.estimator.round_trip(),
            ..state.status
        }
    }
}

impl<E: Env> Drop for Exchange<E> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl<E: Env> Shared<E> {
    fn end(&self) {
        self.state.borrow_mut().close();
        self.due.notify_one();
        self.closed.notify_one();
        self.lanes.iter().for_each(|lane| lane.room.notify_one());
    }

    /// Waits for room in the window, then sends the request and gives where its answer will be.
    async fn admit(
        &self,
        operation: Operation,
        body: &[u8],
    ) -> Result<oneshot::Receiver<Outcome>, MdsError> {
        let id = LaneId::of(operation);
        let lane = &self.lanes[id as usize];
        let _turn = lane.gate.acquire().await.map_err(|_| MdsError::Closed)?;
        while !self.state.borrow().closed && !self.state.borrow().has_room(id) {
            lane.room.notified().await;
        }
        let mut state = self.state.borrow_mut();
        if state.closed {
            return Err(MdsError::Closed);
        }
        let floor = state.floor(LaneId::Mutations);
        let sequence = state.next[id as usize];
        state.next[id as usize] += 1;
        let header = Header {
            kind: Kind::Request,
            operation,
            session: self.session,
            sequence,
            detail: floor,
        };
        let datagrams = wire::encode(&header, body, self.link.payload_max());
        let now = self.env.now();
        let (outcome, answer) = oneshot::channel();
        let request = Request {
            operation,
            datagrams: datagrams.clone(),
            sent_first: now,
            sent_last: now,
            timeout: state.estimator.timeout(),
            sendings: 1,
            answer: None,
            outcome,
        };
        state.requests.insert((id, sequence), request);
        state.status.requests += 1;
        self.look_at_timer(&state);
        drop(state);
        for datagram in datagrams {
            self.link.send(datagram);
        }
        Ok(answer)
    }

    /// Wakes the sending task where something is due earlier than it thinks.
    fn look_at_timer(&self, state: &State) {
        let due = state.next_due().map(|(due, _)| due);
        if due.is_some_and(|due| state.wakes.is_none_or(|wakes| due < wakes)) {
            self.due.notify_one();
        }
    }

    async fn receive_all(self: Rc<Self>) {
        loop {
            let arrived = {
                let receive = pin!(self.link.receive());
                let closed = pin!(self.closed.notified());
                match select(receive, closed).await {
                    Either::Left((bytes, _)) => bytes,
                    Either::Right(_) => return,
                }
            };
            self.take(&arrived);
        }
    }

    /// Takes what arrived: the answer to a request that waits, or nothing.
    fn take(&self, bytes: &[u8]) {
        let taken = match wire::parse(bytes) {
            Ok(datagram)
                if datagram.header.session == self.session || mutated(Mutant::SessionUnchecked) =>
            {
                self.take_part(&datagram)
            }
            _ => false,
        };
        if !taken {
            self.state.borrow_mut().status.dropped += 1;
        }
    }

    fn take_part(&self, datagram: &Datagram<'_>) -> bool {
        if datagram.header.kind == Kind::Nudge {
            let whole = datagram.parts == 1;
            if whole {
                self.state.borrow_mut().nudge = Some(datagram.body.to_vec());
                self.nudged.notify_one();
            }
            return whole;
        }
        let Kind::Reply(verdict) = datagram.header.kind else {
            return false;
        };
        let now = self.env.now();
        let mut state = self.state.borrow_mut();
        state.heard = now;
        state.status.silent_since = None;
        let lane = LaneId::of(datagram.header.operation);
        let key = (lane, datagram.header.sequence);
        let Some(request) = state.requests.get_mut(&key) else {
            return false;
        };
        if request.operation != datagram.header.operation {
            return false;
        }
        let outcome = if let Err(refusal) = verdict {
            Err((refusal, datagram.header.detail))
        } else {
            let answer = request.answer.get_or_insert_with(|| Assembly::new(datagram));
            match answer.add(datagram) {
                Added::Whole(body) => Ok(body),
                Added::Waiting => return true,
                Added::Useless => return false,
            }
        };
        let request = state.requests.remove(&key).expect("found a moment ago");
        if request.sendings == 1 {
            state.estimator.sample(now.since(request.sent_first));
        }
        if lane == LaneId::Mutations {
            state.timer.answered(now);
        }
        self.look_at_timer(&state);
        drop(state);
        // The caller may have given up the answer: nobody is left to be told.
        let _ = request.outcome.send(outcome);
        self.lanes[lane as usize].room.notify_one();
        true
    }

    async fn send_again(self: Rc<Self>) {
        loop {
            let now = self.env.now();
            let next = {
                let mut state = self.state.borrow_mut();
                if state.closed {
                    return;
                }
                let next = state.next_due();
                state.wakes = next.map(|(due, _)| due);
                next
            };
            match next {
                None => self.due.notified().await,
                Some((due, lane)) if due <= now => {
                    let datagrams = self.state.borrow_mut().send_again(lane, now);
                    datagrams.into_iter().for_each(|datagram| self.link.send(datagram));
                }
                Some((due, _)) => {
                    let sleep = pin!(self.env.sleep(due.since(now)));
                    let sooner = pin!(self.due.notified());
                    select(sleep, sooner).await;
                }
            }
        }
    }
}
