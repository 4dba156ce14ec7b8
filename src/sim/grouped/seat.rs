//! A unit of the run: its machine, the engine on it, and what it is doing.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::select;
use tokio::sync::Notify;

use crate::env::Env as _;
use crate::env::sim::{Aim, Crash, Faults, Job, Limit, Machine, Pace, Rng, SimEnv, Stop};
use crate::observe::Counters;
use crate::sim::engine::{Engine as _, Running as _};
use crate::sim::flipside::{Flipside, Serving};

use super::Seen;

/// What a start, with all that is done until the next one, may take.
const LIMIT: Limit = Limit { time_ns: 400 * 3600 * 1_000_000_000, steps: 20_000_000 };
/// How long after a shutdown everything must have been given back.
const SHUTDOWN_TIME: Duration = Duration::from_secs(60);
/// How often that time is waited for.
const SHUTDOWN_TRIES: u32 = 10;
/// How often a unit with nothing to do has something to do all the same.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Why the job of a unit that was on ended.
pub(super) enum Ended {
    /// A planned crash has struck.
    Crashed,
    /// It was stopped as it should, and has left nothing pending.
    Stopped,
    /// Its commit at the end failed, as it may while others are away: it counts as a crash.
    StoppedBadly(String),
}

/// One unit.
pub(super) struct Unit {
    pub number: usize,
    engine: Flipside,
    pub machine: Machine,
    pace: Pace,
    pub faults: Faults,
    /// How often a crash is of the process only.
    process_ppm: u32,
    on: Option<On>,
}

/// Where what serves is, while it does.
pub(super) type Slot = Rc<RefCell<Option<Serving>>>;

/// What a unit is while it is on.
struct On {
    env: SimEnv,
    job: Job<Result<(), String>>,
    serving: Slot,
    stop: Rc<Notify>,
    stopping: bool,
    /// It was noticed that it serves.
    noticed: bool,
    counters: Option<Rc<Counters>>,
}

impl Unit {
    pub fn new(number: usize, engine: Flipside, rng: &mut Rng, loud: bool) -> Self {
        let mut machine = Machine::new(rng.bits(), &engine.shape());
        machine.loud(loud);
        let pace = Pace::beside(0);
        machine.set_pace(pace.clone());
        Self {
            number,
            engine,
            machine,
            pace,
            faults: Faults::draw(rng, false),
            process_ppm: rng.pick(&[50_000, 500_000]),
            on: None,
        }
    }

    /// Makes the pool, before all else.
    pub fn format(&mut self) -> Result<(), String> {
        let env = self.machine.boot(self.faults.ceased());
        let mut job = env.start(LIMIT, self.engine.format(env.clone(), self.machine.storage()));
        let made = loop {
            let moment = env.next_moment();
            self.pace.come_to(moment);
            if let Some(ended) = env.go_until(&mut job, moment + 1) {
                break ended;
            }
        };
        self.machine.halt(&env, Crash::Power);
        made.map_err(|stop| format!("formatting: {stop:?}"))?
    }

    pub fn volumes(&self) -> Vec<u64> {
        self.engine.volumes()
    }

    /// How far it has come.
    pub fn reached(&self) -> u64 {
        self.pace.next()
    }

    /// When the next thing happens on it, where it is on.
    pub fn next_moment(&self) -> Option<u64> {
        self.on.as_ref().map(|on| on.env.next_moment())
    }

    pub fn is_on(&self) -> bool {
        self.on.is_some()
    }

    /// What serves, unless it was told to stop.
    pub fn serving(&self) -> Option<(SimEnv, Serving)> {
        let on = self.on.as_ref().filter(|on| !on.stopping)?;
        on.serving.borrow().clone().map(|serving| (on.env.clone(), serving))
    }

    /// The same as long as it is there, for who must not keep it from stopping.
    pub fn slot(&self) -> Option<(SimEnv, Slot)> {
        let on = self.on.as_ref().filter(|on| !on.stopping)?;
        Some((on.env.clone(), Rc::clone(&on.serving)))
    }

    pub fn env(&self) -> Option<SimEnv> {
        self.on.as_ref().map(|on| on.env.clone())
    }

    /// Switches it on at that moment.
    pub fn boot(&mut self, moment: u64, calm: bool) {
        assert!(self.on.is_none(), "a unit is switched on that is on");
        self.machine.rest_until(moment);
        let faults = if calm { self.faults.ceased() } else { self.faults.clone() };
        let env = self.machine.boot(faults);
        let serving = Rc::new(RefCell::new(None));
        let stop = Rc::new(Notify::new());
        let opening = self.engine.open(env.clone(), self.machine.storage());
        let life = live(env.clone(), opening, Rc::clone(&serving), Rc::clone(&stop));
        let job = env.start(LIMIT, life);
        let (stopping, noticed, counters) = (false, false, None);
        self.on = Some(On { env, job, serving, stop, stopping, noticed, counters });
    }

    /// Has a crash strike after so many calls, or in a part of the region.
    pub fn plan_crash(&self, calls: Option<u64>, aim: Option<Aim>) {
        if let Some(on) = &self.on {
            on.env.crash_in(calls);
            on.env.crash_at(aim);
        }
    }

    /// Tells it to stop.
    pub fn stop(&mut self) {
        if let Some(on) = &mut self.on {
            on.stopping = true;
            on.serving.take();
            on.stop.notify_one();
        }
    }

    /// Whether it serves nothing any more, and was not told to stop: a late claim of an earlier
    /// start has taken its place at the server, say. Whoever looks after it starts it again.
    pub fn has_given_up(&self) -> bool {
        self.serving().is_some_and(|(_, serving)| serving.has_given_up())
    }

    /// Whether it serves since the last time.
    pub fn has_come_up(&mut self) -> bool {
        let Some(on) = &mut self.on else { return false };
        let up = on.serving.borrow().is_some();
        if let (None, Some(serving)) = (&on.counters, &*on.serving.borrow()) {
            on.counters = Some(serving.unit().counters());
        }
        up && !std::mem::replace(&mut on.noticed, up)
    }

    /// Does what is due; what became of it, where it ended.
    pub fn step(&mut self) -> Result<Option<Ended>, String> {
        let Some(on) = &mut self.on else { return Ok(None) };
        let moment = on.env.next_moment();
        self.pace.come_to(moment);
        match on.env.go_until(&mut on.job, moment + 1) {
            None => Ok(None),
            Some(Ok(Ok(()))) => {
                let (free, all) = (on.env.buffers().available(), on.env.buffers().capacity());
                if free != all {
                    return Err(format!("{} bytes of buffers are lost at shutdown", all - free));
                }
                Ok(Some(Ended::Stopped))
            }
            Some(Ok(Err(why))) if on.stopping => Ok(Some(Ended::StoppedBadly(why))),
            Some(Ok(Err(why))) => Err(format!("unit {}: recovery failed: {why}", self.number)),
            Some(Err(Stop::Crashed)) => Ok(Some(Ended::Crashed)),
            Some(Err(stop)) => Err(format!("unit {} hangs: {stop:?}", self.number)),
        }
    }

    /// Switches it off.
    pub fn halt(&mut self, rng: &mut Rng, seen: &mut Seen) {
        let Some(on) = self.on.take() else { return };
        let crash = if rng.chance(self.process_ppm) { Crash::Process } else { Crash::Power };
        self.machine.halt(&on.env, crash);
        if let Some(counters) = &on.counters {
            seen.count(counters);
        }
    }

    /// How often it dropped what was pending because another unit had lost that.
    pub fn resets(&self) -> u64 {
        let counters = self.on.as_ref().and_then(|on| on.counters.as_ref());
        counters.map_or(0, |counters| counters.resets.get())
    }

    /// Nothing fails on it any more.
    pub fn calm(&self) {
        self.plan_crash(None, None);
        if let Some(on) = &self.on {
            on.env.set_faults(self.faults.ceased());
            on.env.cut_network(false);
        }
    }
}

/// All that a unit does from one start to the next.
async fn live(
    env: SimEnv,
    opening: impl Future<Output = Result<Serving, String>>,
    slot: Slot,
    stop: Rc<Notify>,
) -> Result<(), String> {
    let serving = opening.await?;
    serving.join_groups().await?;
    slot.replace(Some(serving.clone()));
    let stopped = Cell::new(false);
    let told = async {
        stop.notified().await;
        stopped.set(true);
    };
    let mut told = pin!(told);
    while !stopped.get() {
        select(told.as_mut(), pin!(env.sleep(HEARTBEAT))).await;
    }
    let result = serving.shutdown().await;
    drop(slot.take());
    drop(serving);
    // The tasks that were told to stop do so, some of them once the server has answered.
    for _ in 0..SHUTDOWN_TRIES {
        env.sleep(SHUTDOWN_TIME).await;
        if env.buffers().available() == env.buffers().capacity() {
            break;
        }
    }
    result.map_err(|why| format!("{why:?}"))
}
