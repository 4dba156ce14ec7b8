//! Clients that go from one machine to another: what each does next follows what it was told last,
//! wherever that was.
//!
//! A request is a task on the machine that it is sent to; whoever steps the machines hears of its
//! end, and has its client go on.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::Seen;
use super::atomics::Draft;
use super::ledger::Ledger;
use crate::env::Env as _;
use crate::env::sim::{Rng, SimEnv};
use crate::sim::engine::{Outcome, Refusal, Volume as _, Zeroing};
use crate::sim::flipside::Served;
use crate::sim::oracle::Violation;

/// Something that is to happen at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A client goes on.
    Step(usize),
    /// A unit is switched on.
    Boot(usize),
    /// Whoever looks after things looks.
    Look,
}

/// What a request does.
#[derive(Clone, Debug)]
pub(super) enum What {
    Write(Range<u32>, bool),
    Zero(Range<u32>, Zeroing, bool),
    Read(Range<u32>),
    Flush,
}

/// A request.
#[derive(Clone)]
pub(super) struct Request {
    pub client: usize,
    pub volume: usize,
    pub what: What,
    /// When it arrives, in nanoseconds of true time.
    pub at: u64,
    /// How long the client thinks afterwards, in nanoseconds.
    pub think: u64,
}

/// What a client waits for.
#[derive(Clone, Debug)]
pub(super) struct Busy {
    /// The unit that its request is at; none between two steps of an atomic request.
    pub unit: Option<usize>,
    /// The volumes that it is about.
    pub volumes: Vec<usize>,
}

/// An image of a volume that was read, by a handle.
pub(super) type Image = (Served, Vec<u8>);

/// What the tasks on all machines share with whoever steps these.
pub(super) struct Shared {
    pub ledger: RefCell<Ledger>,
    /// What happens when: in the order of time, then of planning.
    events: RefCell<BTreeMap<(u64, u64), Event>>,
    planned: Cell<u64>,
    /// What each client waits for.
    pub busy: RefCell<Vec<Option<Busy>>>,
    /// The atomic request that each client has under way.
    pub drafts: RefCell<Vec<Option<Draft>>>,
    /// Volumes whose handles are told that their group went back.
    pub lost: RefCell<Vec<bool>>,
    /// Images by the number of the check that they are for, and the volume.
    pub images: RefCell<BTreeMap<(u64, usize), Image>>,
    /// The newest job that makes or deletes the group of a class, and the jobs that are done.
    pub jobs: RefCell<BTreeMap<usize, u64>>,
    pub done: RefCell<BTreeSet<u64>>,
    /// When the last atomic request ended, in nanoseconds of true time.
    pub last_atomic: Cell<u64>,
    pub failed: RefCell<Option<String>>,
    pub ended: Cell<u64>,
    /// What atomic requests came to.
    pub seen: Cell<Seen>,
    /// Requests that failed, as they may.
    pub refused: Cell<u64>,
    /// Every operation has to succeed, and soon.
    pub bounded: Cell<bool>,
}

/// How long an operation takes at most once nothing fails any more.
const OPERATION_TIME: Duration = Duration::from_secs(120);
/// After so long, in nanoseconds, every unit has heard of a decision, once nothing fails any more.
const HEARD_NS: u64 = 1_000_000_000;
/// What requests fail with while other units, or the server, are away, or the unit has to be
/// started again; then they are sent again.
const WAITED: [&str; 5] = [IN_DOUBT, "has to wait", SILENT, FENCED, STOPPING];
/// What reads fail with of what a unit has voted for, if it waits for the decision for so long.
const IN_DOUBT: &str = "it is being committed";
/// What they fail with when the flags are at a server that was away for too long.
const SILENT: &str = "where the flags are, did not answer";
/// What they fail with when a claim of an earlier start came late to the server.
const FENCED: &str = "fenced: another target attached";
/// What they fail with when the unit was told to stop.
const STOPPING: &str = "is shutting down";
/// What they fail with when the group has lost what was pending.
const LOST: &str = "went back to its last cut";

impl Shared {
    pub fn new(ledger: Ledger, clients: usize) -> Self {
        let volumes = ledger.places.len();
        Self {
            ledger: RefCell::new(ledger),
            events: RefCell::default(),
            planned: Cell::new(0),
            busy: RefCell::new(vec![None; clients]),
            drafts: RefCell::new((0..clients).map(|_| None).collect()),
            lost: RefCell::new(vec![false; volumes]),
            images: RefCell::default(),
            jobs: RefCell::default(),
            done: RefCell::default(),
            last_atomic: Cell::new(0),
            failed: RefCell::default(),
            ended: Cell::new(0),
            seen: Cell::default(),
            refused: Cell::new(0),
            bounded: Cell::new(false),
        }
    }

    pub fn plan(&self, at: u64, event: Event) {
        self.planned.set(self.planned.get() + 1);
        self.events.borrow_mut().insert((at, self.planned.get()), event);
    }

    /// When the next event is.
    pub fn next_event(&self) -> Option<u64> {
        self.events.borrow().keys().next().map(|(at, _)| *at)
    }

    pub fn take_event(&self) -> Option<Event> {
        self.events.borrow_mut().pop_first().map(|(_, event)| event)
    }

    pub fn fail(&self, what: String) {
        self.failed.borrow_mut().get_or_insert(what);
    }

    /// Whether a request is under way on one of these volumes.
    pub fn is_busy(&self, volumes: &[usize]) -> bool {
        let busy = self.busy.borrow();
        let mut under_way = busy.iter().flatten().flat_map(|busy| &busy.volumes);
        under_way.any(|volume| volumes.contains(volume))
    }

    /// Carries out a request on its machine.
    pub async fn carry_out(self: Rc<Self>, env: SimEnv, served: Served, request: Request) {
        let early = request.at.saturating_sub(env.lived());
        env.sleep(Duration::from_nanos(early)).await;
        let sent = env.lived();
        let result = self.perform(&env, &served, &request).await;
        match result {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                let what = format!("{:?} on volume {}", request.what, request.volume);
                self.judge(&[request.volume], sent, &what, why);
            }
            Err(Violation(what)) => self.fail(what),
        }
        let took = Duration::from_nanos(env.lived() - sent);
        if self.bounded.get() && took > OPERATION_TIME {
            self.fail(format!("{:?} took {took:?}, and nothing failed", request.what));
        }
        self.ended.set(self.ended.get() + 1);
        self.busy.borrow_mut()[request.client] = None;
        self.plan(env.lived() + request.think, Event::Step(request.client));
    }

    async fn perform(
        &self,
        env: &SimEnv,
        served: &Served,
        request: &Request,
    ) -> Result<Outcome<()>, Violation> {
        let Request { volume, what, .. } = request;
        let volume = *volume;
        env.note("client", volume as u64, request.client as u64);
        let result = match what {
            What::Write(range, fua) => Ok(self.write(served, volume, range, *fua).await),
            What::Zero(range, how, fua) => Ok(self.zero(served, volume, range, *how, *fua).await),
            What::Read(range) => self.read(served, volume, range).await,
            What::Flush => {
                let sent = self.ledger.borrow_mut().send_flush(volume);
                let flushed = served.flush().await;
                if flushed.is_ok() {
                    self.ledger.borrow_mut().end_flush(volume, &sent);
                }
                Ok(flushed)
            }
        };
        env.note("client end", volume as u64, u64::from(matches!(result, Ok(Ok(())))));
        result
    }

    pub fn granule(&self) -> u64 {
        self.ledger.borrow().granule as u64
    }

    async fn write(
        &self,
        served: &Served,
        volume: usize,
        range: &Range<u32>,
        fua: bool,
    ) -> Outcome<()> {
        let (stamp, bytes) = {
            let mut ledger = self.ledger.borrow_mut();
            let stamp = ledger.send(volume, range.clone(), false, fua);
            (stamp, ledger.bytes(volume, range, stamp))
        };
        let offset = u64::from(range.start) * self.granule();
        let result = served.write(offset, bytes, fua).await;
        self.ledger.borrow_mut().end(volume, stamp, result.is_ok());
        result
    }

    async fn zero(
        &self,
        served: &Served,
        volume: usize,
        range: &Range<u32>,
        how: Zeroing,
        fua: bool,
    ) -> Outcome<()> {
        let granule = self.granule();
        let (offset, len) = (u64::from(range.start) * granule, range.len() as u64 * granule);
        let pieces = served.zeroed(offset, len, how).into_iter();
        let stamps: Vec<_> = pieces
            .map(|piece| {
                let granules = (piece.start / granule) as u32..(piece.end / granule) as u32;
                self.ledger.borrow_mut().send(volume, granules, true, fua)
            })
            .collect();
        let result = served.zero(offset, len, how, fua).await;
        for stamp in stamps {
            self.ledger.borrow_mut().end(volume, stamp, result.is_ok());
        }
        result
    }

    async fn read(
        &self,
        served: &Served,
        volume: usize,
        range: &Range<u32>,
    ) -> Result<Outcome<()>, Violation> {
        let sent = self.ledger.borrow_mut().send_read(volume);
        let granule = self.granule();
        let len = range.len() * granule as usize;
        match served.read(u64::from(range.start) * granule, len).await {
            Ok(bytes) => {
                self.ledger.borrow_mut().end_read(volume, &sent, range.start, &bytes)?;
                Ok(Ok(()))
            }
            Err(why) => Ok(Err(why)),
        }
    }

    /// Whether an atomic request was under way since then, or ended so shortly before that units
    /// had yet to hear of it.
    fn met_atomic(&self, sent: u64) -> bool {
        let under_way = self.drafts.borrow().iter().any(Option::is_some);
        under_way || self.last_atomic.get() + HEARD_NS >= sent
    }

    /// Whether a request to some volumes of a unit, sent at that moment, may have failed so.
    pub fn judge(&self, volumes: &[usize], sent: u64, what: &str, why: Refusal) {
        self.refused.set(self.refused.get() + 1);
        match why {
            Refusal::Failed(why) if why.contains(LOST) && !self.bounded.get() => {
                volumes.iter().for_each(|volume| self.lost.borrow_mut()[*volume] = true);
            }
            Refusal::Failed(why)
                if WAITED.iter().any(|waited| why.contains(waited)) && !self.bounded.get() => {}
            Refusal::Failed(why) if why.contains(IN_DOUBT) && self.met_atomic(sent) => {}
            other => self.fail(format!("{what} failed, and no device had: {other:?}")),
        }
    }

    /// Reads a volume for a check, again until that succeeds or there is nothing to open; nothing
    /// is pending on it then.
    pub async fn read_whole(
        self: Rc<Self>,
        env: SimEnv,
        open: impl Fn() -> Option<Served>,
        volume: usize,
        check: u64,
    ) {
        while let Some(served) = open() {
            match self.image(&served, volume).await {
                // It must not keep a unit from stopping.
                Ok(_) if open().is_none() => return,
                Ok(image) => {
                    self.images.borrow_mut().insert((check, volume), (served, image));
                    return;
                }
                // It holds nothing of the unit any more.
                Err(Refusal::Failed(why)) if why.contains(STOPPING) => return,
                Err(_) => {}
            }
            drop(served);
            env.sleep(Duration::from_millis(50)).await;
        }
    }

    async fn image(&self, served: &Served, volume: usize) -> Outcome<Vec<u8>> {
        served.flush().await?;
        let granules = self.ledger.borrow().places[volume].granules;
        let size = u64::from(granules) * self.granule();
        let most = served.request_max() / self.granule() * self.granule();
        let mut image = Vec::new();
        for offset in (0..size).step_by(most as usize) {
            let len = most.min(size - offset) as usize;
            image.extend(served.read(offset, len).await?);
        }
        Ok(image)
    }
}

/// What clients of a run tend to do.
#[derive(Clone, Debug)]
pub(super) struct Habits {
    /// How often each kind of request is drawn: writes, zeros, reads, flushes.
    weights: [u64; 4],
    fua_ppm: u32,
    /// How often a client goes on at another volume than before.
    wanders_ppm: u32,
    /// The longest request, in granules, and how much of a volume they are drawn from.
    longest: u64,
    hot: u64,
    think_ns: u64,
}

impl Habits {
    pub fn draw(rng: &mut Rng) -> Self {
        Self {
            weights: [
                rng.pick(&[30, 60]),
                rng.pick(&[0, 3, 10]),
                rng.pick(&[2, 20]),
                rng.pick(&[1, 4, 15]),
            ],
            fua_ppm: rng.pick(&[0, 20_000, 200_000]),
            wanders_ppm: rng.pick(&[300_000, 800_000, 1_000_000]),
            longest: rng.pick(&[1, 8, 32, 64]),
            hot: rng.pick(&[8, 64, 1 << 20]),
            think_ns: rng.pick(&[1_000, 1_000_000, 100_000_000, 3_000_000_000]),
        }
    }

    /// One that mostly goes to another volume than `last`, of which there are so many.
    pub fn volume(&self, rng: &mut Rng, last: usize, volumes: usize) -> usize {
        if rng.chance(self.wanders_ppm) { rng.below(volumes as u64) as usize } else { last }
    }

    pub fn think(&self, rng: &mut Rng) -> u64 {
        rng.log_between(1, self.think_ns)
    }

    /// A request of at most so many granules to a volume of so many.
    pub fn what(&self, rng: &mut Rng, granules: u32, most: u64) -> What {
        let total = u64::from(granules);
        let len = rng.log_between(1, self.longest.min(total).min(most));
        let from = rng.below(total.min(self.hot));
        let range = from as u32..(from + len).min(total) as u32;
        let mut drawn = rng.below(self.weights.iter().sum());
        let kind = self.weights.iter().position(|weight| {
            let hit = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            hit
        });
        let fua = rng.chance(self.fua_ppm);
        match kind {
            Some(0) => What::Write(range, fua),
            Some(1) => {
                let how = rng.pick(&[Zeroing::Trim, Zeroing::Hole, Zeroing::NoHole]);
                What::Zero(range, how, fua)
            }
            Some(2) => What::Read(range),
            _ => What::Flush,
        }
    }
}
