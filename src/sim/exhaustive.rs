//! Small scope, exhaustively: everything that may happen to a few operations.
//!
//! A [`Case`] is a handful of actions, one after another or all at once. It is run once. At every
//! step after which a crash could leave something else, or something else would be demanded of what
//! it leaves, the state is kept: media, what else outlives a crash, the oracle. From each of these
//! instants **every image** that a crash may leave ([`Outcomes`]) is recovered and checked, and
//! every recovery is treated in the same way, to the depth that [`Scope::depth`] says. Nothing is
//! run again to get to a crash.
//!
//! [`Explorer::look_at_errors`] runs the case once more for each write and flush of a disk that it
//! makes, which then fails, and looks at what follows in the same way.
//!
//! States that were recovered before (equal media, equal rest, equal oracle) are counted and not
//! recovered again: recovery is a function of them, since all that it draws is drawn from their
//! hash.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use tokio::sync::mpsc;

use super::action::{Action, Stage};
use super::engine::{Engine, Running};
use super::oracle::Violation;
use super::run::guarded;
use super::subject::LIMIT;
use super::workload::Models;
use crate::env::Env;
use crate::env::sim::faults::Errors;
use crate::env::sim::outcomes::{Outcomes, Survival};
use crate::env::sim::rng::mix;
use crate::env::sim::{Crash, Faults, Machine, Media, SimEnv, Stop};

/// What is looked at.
#[derive(Clone)]
pub struct Scope<E> {
    /// The system.
    pub engine: E,
    /// What is done before, one after another and without crashes; a commit follows.
    pub prelude: Vec<Action>,
    /// How deep crashes nest: 0 is a crash during the actions alone.
    pub depth: u32,
    /// All images of an instant are looked at where they are no more than this.
    pub images_max: u64,
    /// Where they are more: how many are drawn.
    pub sample: u64,
    /// The same at an instant within a recovery.
    pub nested_max: u64,
}

/// Some actions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// In the order of sending.
    pub actions: Vec<Action>,
    /// Whether all are sent at once; else each after the one before has ended.
    pub at_once: bool,
    /// Chooses the order of completions: 0 is that of submission.
    pub schedule: u64,
    /// The write or flush of a disk that fails: how many others end before it.
    pub error: Option<u64>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.at_once { "at once" } else { "one after another" };
        write!(f, "{how}, schedule {}", self.schedule)?;
        if let Some(error) = self.error {
            write!(f, ", a write or flush fails after {error} others")?;
        }
        write!(f, ":")?;
        self.actions.iter().try_for_each(|action| write!(f, "\n    {action:?}"))
    }
}

/// All sequences of one to `most` of the actions, shorter ones first.
pub fn sequences(actions: &[Action], most: usize) -> Vec<Vec<Action>> {
    let mut all: Vec<Vec<Action>> = Vec::new();
    let mut longest = vec![Vec::new()];
    for _ in 0..most {
        let longer = |sequence: &Vec<Action>, action: &Action| {
            let mut sequence = sequence.clone();
            sequence.push(action.clone());
            sequence
        };
        longest = longest.iter().flat_map(|s| actions.iter().map(move |a| longer(s, a))).collect();
        all.extend(longest.iter().cloned());
    }
    all
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Cases run.
    pub cases: u64,
    /// The same with a write or a flush that fails.
    pub errors: u64,
    /// Instants at which a crash was tried, while actions were under way.
    pub instants: u64,
    /// The same within recoveries, and right after them.
    pub nested_instants: u64,
    /// Images that a crash left.
    pub images: u64,
    /// Those that had not been seen before: so many were recovered and checked.
    pub recovered: u64,
    /// Those of them that a crash within or after a recovery left.
    pub nested: u64,
    /// Instants with more images than all of them could be looked at.
    pub sampled: u64,
}

impl Counts {
    /// Adds what another look saw.
    pub fn add(&mut self, other: &Counts) {
        self.cases += other.cases;
        self.errors += other.errors;
        self.instants += other.instants;
        self.nested_instants += other.nested_instants;
        self.images += other.images;
        self.recovered += other.recovered;
        self.nested += other.nested;
        self.sampled += other.sampled;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cases and {} with an error, {} instants and {} within recoveries ({} of them \
             sampled), {} images, of which {} differ and were recovered ({} nested)",
            self.cases,
            self.errors,
            self.instants,
            self.nested_instants,
            self.sampled,
            self.images,
            self.recovered,
            self.nested
        )
    }
}

/// All that outlives a crash, before it is decided what of it does.
struct Instant<E> {
    media: Media,
    engine: E,
    models: Models,
}

impl<E: Engine> Instant<E> {
    fn now(env: &SimEnv, engine: &E, models: &Models) -> Self {
        Self { media: env.media(), engine: engine.fork(), models: models.fork() }
    }
}

/// Collects the instants of a run.
struct Watch<E> {
    instants: Vec<Instant<E>>,
    last: Option<(u64, u64, u64)>,
}

impl<E: Engine> Watch<E> {
    fn new() -> Self {
        Self { instants: Vec::new(), last: None }
    }

    fn look(&mut self, env: &SimEnv, engine: &E, models: &Models) {
        let now = (env.media_version(), engine.stored(), models.hash());
        if self.last.replace(now) != Some(now) {
            self.instants.push(Instant::now(env, engine, models));
        }
    }
}

/// Looks at cases of one scope.
pub struct Explorer<E: Engine> {
    scope: Scope<E>,
    machine: Machine,
    start: Instant<E>,
    /// Formatted, and nothing else: hashes tell the difference to it.
    origin: Media,
    /// States that were recovered, each with the depth that was left there.
    seen: HashMap<u64, u32>,
    /// What was looked at.
    pub counts: Counts,
}

/// So many states are remembered; then all are forgotten, and some will be recovered again.
const SEEN_MAX: usize = 8 << 20;

/// I/O that takes the same time always completes in the order of submission.
fn faults(schedule: u64) -> Faults {
    let latency_ns = if schedule == 0 { (10_000, 10_000) } else { (1_000, 200_000) };
    let mut faults = Faults::none();
    (faults.latency_ns, faults.datagram_ns) = (latency_ns, latency_ns);
    faults
}

impl<E: Engine> Explorer<E> {
    /// Formats, does what goes before, and looks at every crash of the start from there.
    pub fn new(scope: Scope<E>) -> Result<Self, String> {
        let mut machine = Machine::new(1, &scope.engine.shape());
        let engine = scope.engine.fork();
        let models = Models::new(&engine.volumes(), engine.granule(), engine.room());
        let env = machine.boot(faults(0));
        let format = engine.format(env.clone(), machine.storage());
        env.run(LIMIT, format).map_err(|stop| format!("format: {stop:?}"))??;
        machine.halt(&env, Crash::Power);
        let origin = machine.media();
        let start = Instant { media: origin.clone(), engine, models };
        let (seen, counts) = (HashMap::new(), Counts::default());
        let mut explorer = Self { scope, machine, start, origin, seen, counts };
        guarded(|| explorer.prepare())?;
        Ok(explorer)
    }

    fn prepare(&mut self) -> Result<(), String> {
        let mut actions = self.scope.prelude.clone();
        actions.push(Action::Commit);
        let case = Case { actions, at_once: false, schedule: 0, error: None };
        let (instants, _) = self.live(&case)?;
        let last = instants.into_iter().next_back().ok_or("nothing happens at the start")?;
        let media = last.media.outcomes(&self.origin).media(&Survival::Power(Vec::new()));
        self.start = Instant { media, ..last };
        self.start.models.oracles.iter().for_each(|model| model.borrow_mut().settled());
        let Instant { media, engine, models } = &self.start;
        let start = Instant { media: media.clone(), engine: engine.fork(), models: models.fork() };
        self.crash(start, self.scope.depth, self.scope.images_max)
    }

    /// Runs a case once with each write and flush of a disk failing, and looks at every crash from
    /// then on. An error says how to get there.
    pub fn look_at_errors(&mut self, case: &Case) -> Result<(), String> {
        for others in 0.. {
            let case = Case { error: Some(others), ..case.clone() };
            if !self.look(&case)? {
                break;
            }
            self.counts.errors += 1;
        }
        Ok(())
    }

    /// Runs a case and looks at every crash of it; whether a write or a flush failed. An error says
    /// how to get there.
    pub fn look(&mut self, case: &Case) -> Result<bool, String> {
        let look = || {
            let (instants, failed) = self.live(case)?;
            self.counts.cases += u64::from(case.error.is_none());
            self.counts.instants += instants.len() as u64;
            for (number, instant) in instants.into_iter().enumerate() {
                let depth = self.scope.depth;
                self.crash(instant, depth, self.scope.images_max)
                    .map_err(|why| format!("crash at instant {number}, {why}"))?;
            }
            Ok(failed)
        };
        guarded(look).map_err(|why: String| format!("{case}\n  {why}"))
    }

    /// Runs a case to its end without a crash. Returns the instants, those from its error on where
    /// it has one, and whether that came.
    fn live(&mut self, case: &Case) -> Result<(Vec<Instant<E>>, bool), String> {
        let (engine, models) = (self.start.engine.fork(), Rc::new(self.start.models.fork()));
        // Sessions with the metadata server have names drawn at random, each boot other ones.
        self.machine.insert(self.start.media.clone(), mix(case.schedule ^ engine.stored()));
        let env = self.machine.boot(faults(case.schedule));
        let running = self.open(&env, &engine, || ())?;
        let stage = Rc::new(Stage::new(env.clone(), running.clone(), Rc::clone(&models)));
        if let Some(others) = case.error {
            env.fail_change_after(others);
        }
        let failed = || env.struck().that_lead_to(Errors::Changes) > 0;
        let mut watch = Watch::new();
        let look = || {
            if case.error.is_none() || failed() {
                watch.look(&env, &engine, &models);
            }
        };
        let (actions, at_once) = (case.actions.clone(), case.at_once);
        let main = perform(stage, actions, at_once);
        env.run_watched(LIMIT, main, look)
            .map_err(|stop| format!("the actions end with {stop:?}"))??;
        running.check()?;
        let failed = failed();
        self.machine.halt(&env, Crash::Power);
        Ok((watch.instants, failed))
    }

    /// Tries every image that a crash at an instant leaves.
    fn crash(&mut self, instant: Instant<E>, depth: u32, most: u64) -> Result<(), String> {
        let Instant { media, engine, models } = instant;
        let outcomes = media.outcomes(&self.origin);
        self.counts.sampled += u64::from(outcomes.count() > most);
        let rest = mix(engine.stored() ^ mix(models.hash()));
        for survival in outcomes.choose(most, self.scope.sample) {
            self.counts.images += 1;
            let state = mix(rest ^ outcomes.hash(&survival));
            if self.seen.get(&state).is_some_and(|seen| *seen >= depth) {
                continue;
            }
            if self.seen.len() >= SEEN_MAX {
                self.seen.clear();
            }
            self.seen.insert(state, depth);
            self.counts.nested += u64::from(depth < self.scope.depth);
            self.recover((outcomes.media(&survival), state), &engine, &models, depth)
                .map_err(|why| describe(&outcomes, &survival, &why))?;
        }
        Ok(())
    }

    /// Recovers, checks the image, and goes on to the crashes of this recovery.
    fn recover(
        &mut self,
        (media, state): (Media, u64),
        engine: &E,
        models: &Models,
        depth: u32,
    ) -> Result<(), String> {
        self.counts.recovered += 1;
        let (engine, models) = (engine.fork(), Rc::new(models.fork()));
        self.machine.insert(media, state);
        let env = self.machine.boot(faults(0));
        let watch = RefCell::new(Watch::new());
        let look = || {
            if depth > 0 {
                watch.borrow_mut().look(&env, &engine, &models);
            }
        };
        let running = self.open(&env, &engine, look)?;
        let (reader, volumes) = (Rc::clone(&models), running.volumes());
        env.run_watched(LIMIT, async move { reader.verify(&volumes).await }, look)
            .map_err(|stop| format!("the reading after recovery ends with {stop:?}"))??;
        running.check()?;
        look();
        drop(running);
        self.machine.halt(&env, Crash::Power);
        let instants = watch.into_inner().instants;
        self.counts.nested_instants += instants.len() as u64;
        for (number, instant) in instants.into_iter().enumerate() {
            self.crash(instant, depth - 1, self.scope.nested_max).map_err(|why| {
                format!("then a crash at instant {number} of the recovery, {why}")
            })?;
        }
        Ok(())
    }

    fn open(
        &self,
        env: &SimEnv,
        engine: &E,
        look: impl FnMut(),
    ) -> Result<<E as Engine>::Running, String> {
        let open = engine.open(env.clone(), self.machine.storage());
        let opened = env.run_watched(LIMIT, open, look);
        let opened = opened.map_err(|stop: Stop| format!("recovery ends with {stop:?}"))?;
        opened.map_err(|why| format!("recovery failed: {why}"))
    }
}

fn describe(outcomes: &Outcomes, survival: &Survival, why: &str) -> String {
    format!("which leaves {survival:?} of {} images: {why}", outcomes.count())
}

/// How long after the actions their consequences are watched, in nanoseconds.
const AFTERMATH_NS: u64 = 5_000_000;

/// Does all actions, waits a little, and reads everything.
async fn perform<R: Running>(
    stage: Rc<Stage<R>>,
    actions: Vec<Action>,
    at_once: bool,
) -> Result<(), String> {
    let (sender, mut ended) = mpsc::unbounded_channel();
    for action in actions {
        let (actor, sender) = (Rc::clone(&stage), sender.clone());
        let task = async move { drop(sender.send(actor.perform(action).await)) };
        if at_once {
            stage.env.spawn(task);
        } else {
            task.await;
        }
    }
    drop(sender);
    let whole = |oracle: &RefCell<super::oracle::Oracle>| 0..oracle.borrow().granules();
    let ranges: Vec<_> = stage.models.oracles.iter().map(whole).collect();
    let reads = ranges.into_iter().enumerate();
    let reads = reads.map(|(volume, range)| Action::Read { volume, range });
    let last = std::iter::once(Action::Pause(AFTERMATH_NS)).chain(reads);
    let mut results = Vec::new();
    while let Some(result) = ended.recv().await {
        results.push(result);
    }
    for action in last {
        results.push(stage.perform(action).await);
    }
    let failed = stage.env.struck().that_lead_to(Errors::Changes) > 0;
    for result in results {
        match result {
            Ok(Ok(())) => {}
            Ok(Err(_)) if failed => {}
            Ok(Err(why)) => return Err(format!("an action failed, and no device had: {why:?}")),
            Err(Violation(what)) => return Err(what),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::toy::{Toy, fault};
    use super::*;

    /// Looks at all that two actions may lead to.
    fn hunt<const FAULT: u8>() -> Result<Counts, String> {
        let engine = Toy::<FAULT>;
        let scope = Scope {
            engine,
            prelude: Vec::new(),
            depth: 1,
            images_max: 64,
            sample: 8,
            nested_max: 8,
        };
        let write = |range, fua| Action::Write { volume: 0, range, fua };
        let actions = [write(0..4, false), write(2..3, true), Action::Flush(0)];
        let mut explorer = Explorer::new(scope)?;
        for actions in sequences(&actions, 2) {
            for at_once in [false, true] {
                let case = Case { actions: actions.clone(), at_once, schedule: 0, error: None };
                explorer.look(&case)?;
                explorer.look_at_errors(&case)?;
            }
        }
        Ok(explorer.counts)
    }

    /// Goal: sequences are all there, and once each.
    #[test]
    fn sequences_are_complete() {
        let actions = [Action::Commit, Action::Settle];
        let all = sequences(&actions, 3);
        assert_eq!(all.len(), 2 + 4 + 8);
        assert!(all.iter().enumerate().all(|(at, one)| !all[..at].contains(one)));
    }

    /// Goal: what keeps the promises passes, and the same is looked at every time.
    #[test]
    fn a_correct_toy_passes() {
        let counts = hunt::<{ fault::NONE }>().unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(counts.cases, 24);
        assert!(counts.errors > 24, "{counts}");
        assert!(counts.recovered > 100 && counts.nested > 0 && counts.sampled > 0, "{counts}");
        assert_eq!(hunt::<{ fault::NONE }>(), Ok(counts));
    }

    /// Goal: each way to break a promise at a crash is found within two actions.
    #[test]
    fn broken_toys_are_caught() {
        let caught = |result: Result<Counts, String>| {
            let why = result.expect_err("the fault is not found");
            assert!(why.contains("promise") || why.contains("unreadable"), "{why}");
        };
        caught(hunt::<{ fault::NO_FLUSH }>());
        caught(hunt::<{ fault::VOLATILE_HEADER }>());
        caught(hunt::<{ fault::EARLY_ACK }>());
        caught(hunt::<{ fault::ONE_HALF }>());
        caught(hunt::<{ fault::FUA_FORGOTTEN }>());
        caught(hunt::<{ fault::TORN_WRITE }>());
        caught(hunt::<{ fault::GOES_ON }>());
    }
}
