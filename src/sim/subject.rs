//! A machine under test with an engine on it, and what is known of both: it is booted, crashes,
//! rots, recovers, and is checked.

use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use super::engine::{Engine, Running};
use super::plan::Without;
use super::takeover::Former;
use super::workload::Models;
use crate::env::sim::faults::{Errors, Fault, TABLE};
use crate::env::sim::rng::Rng;
use crate::env::sim::{Crash, Faults, Limit, Machine, Rot, SimEnv, Stop};
use crate::format::warm::{ASIDE_AT, FLUSHING_AT, STATE_AT, VALID};

/// How deep crashes nest inside recovery.
const DEPTH_MAX: u32 = 3;
/// What a boot, or a round of work, may take: far more than any does that is not stuck.
pub(super) const LIMIT: Limit = Limit { time_ns: 24 * 3600 * 1_000_000_000, steps: 3_000_000 };

/// The machine, the engine, and the oracle's knowledge.
pub(super) struct Subject<E: Engine> {
    pub engine: E,
    pub machine: Machine,
    pub models: Rc<Models>,
    pub faults: Faults,
    pub rng: Rng,
    /// The machine that the pool was taken from, while it lives.
    pub former: Option<Former>,
    /// How often a crash is of the process only, and how often one strikes a recovery.
    process_ppm: u32,
    nested_ppm: u32,
    /// Whether the next recovery must find all that was acknowledged: since the image that was
    /// checked last every crash was of the process alone, with a valid table.
    demanding: bool,
    /// How often one did.
    pub warm: u64,
    /// Crashes, those during recovery included.
    pub crashes: u64,
    /// Images checked after a recovery.
    pub images: u64,
    /// How often the pool went to another machine.
    pub takeovers: u64,
}

/// What rotted before a recovery.
struct Rotten {
    rots: Vec<Rot>,
    expected: Expected,
}

/// What a recovery from rot must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Succeed.
    Success,
    /// Fail, or find the rot where it does no harm.
    Either,
    /// Fail.
    Failure,
}

impl<E: Engine> Subject<E> {
    /// Draws engine, machine and faults.
    pub fn draw(rng: &mut Rng, loud: bool) -> Self {
        let engine = E::draw(&mut rng.fork());
        Self::of(engine, rng, loud)
    }

    /// Draws machine and faults of an engine.
    pub fn of(engine: E, rng: &mut Rng, loud: bool) -> Self {
        let mut machine = Machine::new(rng.bits(), &engine.shape());
        machine.loud(loud);
        let models = Models::new(&engine.volumes(), engine.granule(), engine.room());
        let detected = rng.chance(400_000);
        Self {
            engine,
            machine,
            models: Rc::new(models),
            faults: Faults::draw(rng, detected),
            process_ppm: rng.pick(&[50_000, 250_000, 500_000, 800_000]),
            nested_ppm: rng.pick(&[0, 300_000, 800_000]),
            rng: rng.fork(),
            former: None,
            demanding: false,
            warm: 0,
            crashes: 0,
            images: 0,
            takeovers: 0,
        }
    }

    /// Whether commits come only where clients ask for them.
    pub fn long_epochs(&self) -> Option<u64> {
        self.engine.long_epochs()
    }

    /// How long the machine goes on at most when nobody renews its lease, where it has one.
    pub fn lease(&self) -> Option<Duration> {
        self.engine.lease()
    }

    /// From now on all that chance decides comes from `rng`.
    pub fn reseed(&mut self, rng: &mut Rng) {
        self.rng = rng.fork();
        self.machine.reseed(rng.fork());
    }

    /// Nothing fails any more, in the machine or beside it.
    pub fn calm(&mut self) {
        self.faults = self.faults.ceased();
        self.engine.calm();
    }

    /// What a plan leaves out does not happen.
    pub fn leave_out(&mut self, without: Without) {
        for row in TABLE.iter().filter(|row| without.fault(row.fault)) {
            self.faults = self.faults.clone().with(row.fault, 0);
        }
        if without.nested_crashes() {
            self.nested_ppm = 0;
        }
    }

    /// Makes the volumes.
    pub async fn format(&mut self) -> Result<(), String> {
        let env = self.machine.boot(self.faults.ceased());
        let format = self.engine.format(env.clone(), self.machine.storage());
        let made = env.run_beside(LIMIT, format).await;
        made.map_err(|stop| self.stuck("format", stop))??;
        self.machine.halt(&env, Crash::Power);
        self.demanding = false;
        Ok(())
    }

    /// Boots until a recovery has got through and left an image that is allowed.
    pub async fn recover(&mut self) -> Result<(SimEnv, E::Running), String> {
        for depth in 0.. {
            // The first attempts may crash, and may meet failing devices; the last may not.
            let trying = depth < DEPTH_MAX;
            let rotten = if trying { self.rot() } else { Rotten::none() };
            // An unreadable sector of the newest commit looks like one that a crash left: a start
            // takes that commit for one that was cut off (seed 5091).
            let readable = self.faults.clone().with(Fault::BadSector, 0);
            let env = self.machine.boot(if trying { readable } else { self.faults.ceased() });
            env.heal_bad();
            if !trying {
                env.heal();
            } else if rotten.expected == Expected::Success && self.rng.chance(self.nested_ppm) {
                env.crash_in(Some(self.rng.log_between(1, 400)));
            }
            let Some(running) = self.open(&env, &rotten).await? else { continue };
            self.engine.came_in();
            if self.demanding {
                self.settled();
                self.warm += 1;
            }
            env.set_faults(self.faults.ceased());
            env.heal();
            self.end_former(&env).await?;
            let (models, volumes) = (Rc::clone(&self.models), running.volumes());
            let verified = async move { models.verify(&volumes).await };
            match env.run_beside(LIMIT, verified).await {
                Ok(Ok(())) => {
                    env.crash_in(None);
                    self.images += 1;
                    self.demanding = true;
                    running.check()?;
                    return Ok((env, running));
                }
                // What the machine gave up meanwhile cannot be read; the next start may.
                Ok(Err(_)) if running.has_given_up() => self.crash(&env),
                Ok(Err(why)) => return Err(why),
                Err(Stop::Crashed) => self.crash(&env),
                Err(stop) => return Err(self.stuck("the reading after recovery", stop)),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// One attempt at a recovery; nothing where it crashed, or failed as it may.
    async fn open(&mut self, env: &SimEnv, rotten: &Rotten) -> Result<Option<E::Running>, String> {
        let engine = self.engine.clone();
        let (storage, handle) = (self.machine.storage(), env.clone());
        let opening = async move { engine.open(handle, storage).await };
        let opened = env.run_beside(LIMIT, opening).await;
        let struck = env.struck();
        let failing = [Errors::Reads, Errors::Changes, Errors::Recovery]
            .iter()
            .any(|kind| struck.that_lead_to(*kind) > 0);
        match opened {
            Ok(Ok(_)) if rotten.expected == Expected::Failure => {
                Err(String::from("a recovery succeeded with a page rotten in both copies"))
            }
            Ok(Ok(running)) => Ok(Some(running)),
            Ok(Err(_)) if rotten.expected != Expected::Success => {
                // Without power nothing is on its way any more: bits are mended at rest, too.
                self.demanding = false;
                self.machine.halt(env, Crash::Power);
                self.crashes += 1;
                rotten.rots.iter().for_each(|rot| self.machine.mend(*rot));
                Ok(None)
            }
            Ok(Err(_)) if failing => {
                self.crash(env);
                Ok(None)
            }
            Ok(Err(why)) if self.engine.starts_again(&why) => {
                self.machine.halt(env, Crash::Process);
                self.crashes += 1;
                Ok(None)
            }
            Ok(Err(why)) => Err(format!("recovery failed: {why}")),
            Err(Stop::Crashed) => {
                self.crash(env);
                Ok(None)
            }
            Err(stop) => Err(self.stuck("recovery", stop)),
        }
    }

    /// Lets the region rot while the machine is off, as the fault table says.
    fn rot(&mut self) -> Rotten {
        let none = Rotten::none();
        if !self.machine.is_at_rest() {
            return none;
        }
        let kinds = [Fault::RottenCopy, Fault::RottenPage, Fault::RottenSlot];
        let chosen = kinds.into_iter().find(|&kind| self.rng.chance(self.faults.rate(kind)));
        match chosen {
            Some(Fault::RottenSlot) => self.rot_slot().unwrap_or(none),
            Some(kind) => self.rot_page(kind).unwrap_or(none),
            None => none,
        }
    }

    fn rot_page(&mut self, kind: Fault) -> Option<Rotten> {
        let pages = self.machine.equal_copies();
        let nth = self.rng.below(pages.len().max(1) as u64) as usize;
        let (copies, len) = *pages.get(nth)?;
        let (copies, expected) = match kind {
            Fault::RottenCopy => (vec![self.rng.pick(&copies)], Expected::Success),
            _ => (copies.to_vec(), Expected::Failure),
        };
        let rot = |at| self.machine.rot(at, len, kind, &mut self.rng);
        Some(Rotten { rots: copies.into_iter().map(rot).collect(), expected })
    }

    fn rot_slot(&mut self) -> Option<Rotten> {
        let machine = &self.machine;
        let groups = self.engine.older_groups(&|at, out| machine.read_region(at, out));
        // The newest as often as all others together: where what came after it was cut off, little
        // else says that it was there.
        let nth = self.rng.below(2 * groups.len().max(1) as u64) as usize;
        let slot = groups.get(nth).or(groups.last())?.clone();
        let len = slot.end - slot.start;
        let rot = self.machine.rot(slot.start, len, Fault::RottenSlot, &mut self.rng);
        Some(Rotten { rots: vec![rot], expected: Expected::Either })
    }

    /// Checks the image that a crash at this instant would leave, while the machine runs on: on
    /// another machine, which recovers from it.
    pub async fn check_image(&mut self, env: &SimEnv) -> Result<(), String> {
        let crash = self.draw_crash();
        let demanding = self.demanding && self.demands(env, crash);
        let machine = self.machine.fork(env, crash, &mut self.rng);
        let mut fork = Subject {
            engine: self.engine.fork(),
            machine,
            models: Rc::new(self.models.fork()),
            faults: self.faults.clone(),
            rng: self.rng.fork(),
            process_ppm: self.process_ppm,
            nested_ppm: self.nested_ppm,
            former: None,
            demanding,
            warm: 0,
            crashes: 1,
            images: 0,
            takeovers: 0,
        };
        let (other, running) = fork.recover().await.map_err(|why| {
            format!("after a crash ({crash:?}) at {} ns of a run that went on: {why}", env.lived())
        })?;
        drop(running);
        fork.crash(&other);
        self.machine.absorb(&fork.machine);
        self.models.absorb(&fork.models);
        self.crashes += fork.crashes;
        self.images += fork.images;
        self.warm += fork.warm;
        Ok(())
    }

    /// Nothing is under way: all that was acknowledged must be found from now on.
    pub fn settled(&self) {
        self.models.oracles.iter().for_each(|model| model.borrow_mut().settled());
    }

    /// The machine stops, in one way or another.
    pub fn crash(&mut self, env: &SimEnv) {
        let crash = self.draw_crash();
        self.demanding &= self.demands(env, crash);
        self.machine.halt(env, crash);
        self.crashes += 1;
    }

    /// Another machine has the disks: nothing that outlives a process is there.
    pub fn lose_memory(&mut self) {
        self.machine.lose_memory();
        self.demanding = false;
    }

    /// Whether a recovery from a crash at this instant must find all that was acknowledged.
    fn demands(&self, env: &SimEnv, crash: Crash) -> bool {
        let memory = env.shared();
        if crash != Crash::Process || !self.engine.is_warm() || memory.is_empty() {
            return false;
        }
        // What a failed flush has lost before anybody heard of it is lost to the next start, too.
        let unheard = memory.load(FLUSHING_AT) != 0 || memory.load(ASIDE_AT) != 0;
        let may_be_lost = unheard && env.struck().that_lead_to(Errors::Changes) > 0;
        memory.load(STATE_AT) == VALID && !may_be_lost
    }

    pub fn draw_crash(&mut self) -> Crash {
        if self.rng.chance(self.process_ppm) { Crash::Process } else { Crash::Power }
    }

    /// What a run says that does not come to an end.
    pub fn stuck(&self, what: &str, stop: Stop) -> String {
        let mut text = match stop {
            Stop::Stuck => format!("{what} hangs: no task is ready and nothing is to come"),
            Stop::Limit => format!("{what} takes more than any time allowed"),
            Stop::Crashed => format!("{what} met a crash that was not planned"),
            Stop::Paused => format!("{what} paused, and nobody had asked for it"),
        };
        for (model, volume) in self.models.oracles.iter().zip(0..) {
            for op in model.borrow().pending() {
                let _ = write!(text, "\n    under way on volume {volume}: {op}");
            }
        }
        text
    }
}

impl Rotten {
    fn none() -> Self {
        Self { rots: Vec::new(), expected: Expected::Success }
    }
}
