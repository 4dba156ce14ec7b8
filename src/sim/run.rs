//! One seed: format, then rounds of work, crash and recovery, and the checks in between.

use std::cell::RefCell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::engine::{Engine, Running};
use super::grouped;
use super::host;
use super::plan::{Plan, Rounds, Script};
use super::subject::{LIMIT, Subject};
use super::workload::{self, Habits};
use crate::env::Env;
use crate::env::sim::faults::Errors;
use crate::env::sim::rng::{Rng, mix};
use crate::env::sim::{Aim, Points, SimEnv, Stop, Struck};

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// A hash of all that happened: equal for equal seeds and code.
    pub trace: u64,
    /// Operations that clients saw end.
    pub operations: u64,
    /// Calls of the environment.
    pub calls: u64,
    /// Crashes, those during recovery included.
    pub crashes: u64,
    /// Images checked after a recovery.
    pub images: u64,
    /// Images that would have taken too long to judge, and were let pass.
    pub unexplained: u64,
    /// How often each fault struck.
    pub struck: Struck,
    /// The persist points seen and crashed at.
    pub points: Points,
    /// How often a pool went to another machine while the one that served it lived.
    pub takeovers: u64,
    /// Recoveries that had to find all that was acknowledged.
    pub warm: u64,
    /// What servers that are shared went through.
    pub hosts: host::Seen,
    /// What consistency groups went through.
    pub groups: grouped::Seen,
}

impl Report {
    /// All that another run did, too.
    pub fn add(&mut self, other: &Report) {
        self.trace = mix(self.trace ^ other.trace);
        self.operations += other.operations;
        self.calls += other.calls;
        self.crashes += other.crashes;
        self.images += other.images;
        self.unexplained += other.unexplained;
        self.struck.add_all(&other.struck);
        self.points.add_all(&other.points);
        self.takeovers += other.takeovers;
        self.warm += other.warm;
        self.hosts.add_all(&other.hosts);
        self.groups.add_all(&other.groups);
    }
}

/// A run that broke a promise, panicked, or hung.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed that does it again.
    pub seed: u64,
    /// What went wrong.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.what)
    }
}

/// Writes of several journal slots at once.
pub(super) const LONG_GROUP: &str = "journal slots";
/// Header, status and home: the copies of a page, and several pages at once.
pub(super) const PAGES: [[&str; 3]; 3] = [
    ["header 0", "header 1", "header pages"],
    ["status 0", "status 1", "status pages"],
    ["home 0", "home 1", "home pages"],
];
/// What crashes are aimed at: the parts of the region, however seldom they are written.
const PARTS: [&str; 7] =
    ["journal slot", LONG_GROUP, "status 0", "status 1", "home 0", "home 1", "home pages"];
/// How often the disks are in another machine after a crash or a shutdown.
const MOVED_PPM: u32 = 150_000;
/// How often a look ends with another machine having the pool.
const TAKEN_PPM: u32 = 150_000;
/// How long after a shutdown everything must have been given back.
const SHUTDOWN_TIME: Duration = Duration::from_secs(60);
/// How long after the clients have gone and all is committed nothing must be under way any more.
const QUIET_TIME: Duration = Duration::from_secs(600);

/// Runs one seed. `loud` prints every call of the environment.
pub fn run_seed<E: Engine>(seed: u64, loud: bool) -> Result<Report, Failure> {
    run_plan::<E>(&Plan::whole(seed), loud).0
}

/// Runs a plan; returns also the actions that were begun.
pub fn run_plan<E: Engine>(plan: &Plan, loud: bool) -> (Result<Report, Failure>, Rounds) {
    let script = Rc::new(Script::new(plan.clone()));
    let result = guarded(|| {
        let run = Run::<E>::new(Rc::clone(&script), loud).all();
        run.now_or_never().expect("it is alone, and waits for nobody")
    });
    (result.map_err(|what| Failure { seed: plan.seed, what }), script.begun.take())
}

/// The whole of one machine's run, beside others: what is left to draw comes from `rng`.
pub(super) async fn live<E: Engine>(
    script: Rc<Script>,
    subject: Subject<E>,
    rng: Rng,
) -> Result<Report, String> {
    Run::of(script, subject, rng).all().await
}

/// Runs something simulated; a panic in it is an error.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_panics();
    LAST_PANIC.take();
    SIMULATING.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    SIMULATING.set(false);
    let panicked = |_| Err(LAST_PANIC.take().unwrap_or_else(|| String::from("a panic")));
    result.unwrap_or_else(panicked)
}

thread_local! {
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static SIMULATING: RefCell<bool> = const { RefCell::new(false) };
}

/// Keeps the message and place of a panic inside a run; all others are printed as ever.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let former = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if SIMULATING.with_borrow(|on| *on) {
                let trace = std::backtrace::Backtrace::capture();
                LAST_PANIC.set(Some(format!("{info}\n{trace}")));
            } else {
                former(info);
            }
        }));
    });
}

struct Run<E: Engine> {
    script: Rc<Script>,
    round: u32,
    subject: Subject<E>,
    habits: Habits,
    rng: Rng,
    /// How often a round of work is looked at, and how many crash images are made each time.
    looks: u64,
    images_each: u64,
}

impl<E: Engine> Run<E> {
    fn new(script: Rc<Script>, loud: bool) -> Self {
        let mut rng = Rng::new(mix(script.plan.seed));
        let subject = Subject::<E>::draw(&mut rng, loud);
        Self::of(script, subject, rng)
    }

    /// What is left to draw comes from `rng`.
    fn of(script: Rc<Script>, mut subject: Subject<E>, mut rng: Rng) -> Self {
        subject.leave_out(script.plan.without);
        let apart = subject.long_epochs().map(|bytes| bytes / subject.models.granule as u64);
        let mut habits = Habits::draw(&mut rng, apart);
        if let Some(lease) = subject.lease().filter(|_| rng.chance(500_000)) {
            habits = habits.slower(lease);
        }
        Self {
            script,
            round: 0,
            subject,
            habits,
            looks: rng.pick(&[0, 1, 4, 10]),
            images_each: rng.pick(&[1, 2, 4]),
            rng,
        }
    }

    async fn all(mut self) -> Result<Report, String> {
        self.subject.format().await?;
        let rounds = self.rng.between(3, 6) as u32;
        for round in 0..rounds {
            if !self.script.plan.has_round(round) {
                continue;
            }
            self.enter(round);
            if self.subject.may_be_taken_over() && self.rng.chance(MOVED_PPM) {
                self.subject.move_disks();
            }
            let (env, running) = self.subject.recover().await?;
            self.work(&env, running).await?;
        }
        self.enter(rounds);
        // With nothing failing any more, everything must come to an end.
        self.subject.calm();
        let (env, running) = self.subject.recover().await?;
        self.finish(&env, running).await?;
        let machine = &self.subject.machine;
        Ok(Report {
            trace: machine.trace(),
            operations: self.subject.models.ended.get(),
            calls: machine.calls(),
            crashes: self.subject.crashes,
            images: self.subject.images,
            unexplained: self.subject.models.unexplained(),
            struck: *machine.struck(),
            points: machine.points().clone(),
            takeovers: self.subject.takeovers,
            warm: self.subject.warm,
            hosts: host::Seen::default(),
            groups: grouped::Seen::default(),
        })
    }

    /// From here on all chance is that of the round.
    fn enter(&mut self, round: u32) {
        self.round = round;
        self.rng = self.script.plan.chance(round);
        self.subject.reseed(&mut self.rng);
    }

    /// Clients work until the crash, or until they have done enough.
    async fn work(&mut self, env: &SimEnv, running: E::Running) -> Result<(), String> {
        let full = self.quiet(env, &running).await?;
        env.set_faults(self.subject.faults.clone());
        let crashes = !self.script.plan.without.work_crashes();
        // A group of several parts is rare, and what is torn of it is rarer.
        if self.habits.apart.is_some() && crashes && self.rng.chance(700_000) {
            let (passes, calls) = (self.rng.between(1, 3), self.rng.below(6));
            env.crash_at(Some(Aim { part: LONG_GROUP, passes, calls }));
        } else if self.rng.chance(600_000) && crashes {
            env.crash_in(Some(self.rng.log_between(1, self.script.plan.crash_within(self.round))));
        } else if crashes && self.rng.chance(700_000) {
            let (passes, calls) = (self.rng.log_between(1, 20), self.rng.below(4));
            env.crash_at(Some(Aim { part: self.rng.pick(&PARTS), passes, calls }));
        }
        match self.run_clients(env, &running, self.habits.clone(), false).await {
            Ok(result) => result?,
            Err(Looked::At(Stop::Crashed)) => {
                self.subject.crash(env);
                return Ok(());
            }
            Err(Looked::At(stop)) => return Err(self.subject.stuck("the work", stop)),
            Err(Looked::Wrong(what)) => return Err(what),
            Err(Looked::TakenOver) => return Ok(()),
        }
        env.crash_at(None);
        env.crash_in(None);
        if self.rng.chance(500_000) {
            self.subject.crash(env);
            return Ok(());
        }
        self.check_quiet(env, &running, full).await?;
        self.stop(env, running).await
    }

    /// Work without faults or crashes, then a shutdown after which everything must be found.
    async fn finish(&mut self, env: &SimEnv, running: E::Running) -> Result<(), String> {
        let mut habits = self.habits.clone();
        habits.operations = 20;
        let full = self.quiet(env, &running).await?;
        match self.run_clients(env, &running, habits, true).await {
            Ok(result) => result?,
            Err(Looked::At(stop)) => {
                return Err(self.subject.stuck("the work after all faults ceased", stop));
            }
            Err(Looked::Wrong(what)) => return Err(what),
            Err(Looked::TakenOver) => unreachable!("the last round ends where it began"),
        }
        self.check_quiet(env, &running, full).await?;
        self.stop(env, running).await?;
        let (env, running) = self.subject.recover().await?;
        drop(running);
        self.subject.crash(&env);
        Ok(())
    }

    /// Runs the clients. From time to time, at a persist point or before somebody hears of a failed
    /// write or flush, the machine is looked at: what must always be true is checked, and so are
    /// the images that crashes would leave there and then, while the run goes on.
    async fn run_clients(
        &mut self,
        env: &SimEnv,
        running: &E::Running,
        habits: Habits,
        bounded: bool,
    ) -> Result<Result<(), String>, Looked> {
        let models = Rc::clone(&self.subject.models);
        let part = (self.round, Rc::clone(&self.script));
        let work = workload::run(env.clone(), running.clone(), models, habits, bounded, part);
        let mut job = env.start(LIMIT, work);
        let (looks, within) = self.script.plan.looks(self.round, self.looks);
        for look in 0.. {
            let more = self.rng.log_between(1, within);
            env.pause_at((look < looks).then_some(more));
            match env.go_on_beside(&mut job).await {
                Ok(result) => return Ok(result),
                Err(Stop::Paused) => {}
                Err(stop) => return Err(Looked::At(stop)),
            }
            running.check().map_err(Looked::Wrong)?;
            for _ in 0..self.images_each {
                self.subject.check_image(env).await.map_err(Looked::Wrong)?;
            }
            if !bounded && self.subject.may_be_taken_over() && self.rng.chance(TAKEN_PPM) {
                self.subject.take_over(env, job).await.map_err(Looked::Wrong)?;
                return Err(Looked::TakenOver);
            }
        }
        unreachable!("without a pause the job ends")
    }

    /// Commits, and waits until nothing is under way; returns the free buffers then, in bytes. Not
    /// where changes fail: then nothing can be committed.
    async fn quiet(&mut self, env: &SimEnv, running: &E::Running) -> Result<Option<usize>, String> {
        env.set_faults(self.subject.faults.ceased());
        env.heal();
        if env.struck().that_lead_to(Errors::Changes) > 0 {
            return Ok(None);
        }
        let (handle, serving) = (env.clone(), running.clone());
        let quiet = async move {
            let since = handle.lived();
            match serving.commit().await {
                Err(_) if serving.has_given_up() => return Ok(None),
                committed => committed.map_err(|why| format!("a commit failed: {why:?}"))?,
            }
            while !serving.is_quiet() {
                // What comes and goes beside the clients' volumes may wait too long, too.
                if serving.has_given_up() {
                    return Ok(None);
                }
                if handle.lived() - since > QUIET_TIME.as_nanos() as u64 {
                    return Err(String::from("long after the last request something is under way"));
                }
                handle.sleep(Duration::from_millis(100)).await;
            }
            Ok(Some(handle.buffers().available()))
        };
        let quiet = env.run_beside(LIMIT, quiet).await;
        let free = quiet.map_err(|stop| self.subject.stuck("becoming quiet", stop))??;
        running.check()?;
        if free.is_some() {
            self.subject.settled();
        }
        Ok(free)
    }

    /// Nothing that was there when all was quiet before is missing now.
    async fn check_quiet(
        &mut self,
        env: &SimEnv,
        running: &E::Running,
        before: Option<usize>,
    ) -> Result<(), String> {
        let now = self.quiet(env, running).await?;
        match (before, now) {
            (Some(before), Some(now)) if before != now => {
                Err(format!("{before} bytes of buffers were free, and when all is quiet {now} are"))
            }
            _ => Ok(()),
        }
    }

    /// An orderly shutdown: what was acknowledged is durable, and nothing is left over.
    async fn stop(&mut self, env: &SimEnv, running: E::Running) -> Result<(), String> {
        env.set_faults(self.subject.faults.clone());
        let (handle, ceased) = (env.clone(), self.subject.faults.ceased());
        let stopped = async move {
            let result = running.shutdown().await;
            let given_up = running.has_given_up();
            drop(running);
            handle.set_faults(ceased);
            // The tasks that were told to stop do so.
            handle.sleep(SHUTDOWN_TIME).await;
            result.map_err(|why| (why, given_up))
        };
        let result = env.run_beside(LIMIT, stopped).await;
        let struck = env.struck();
        let failing = struck.that_lead_to(Errors::Changes) + struck.that_lead_to(Errors::Reads) > 0;
        match result {
            Ok(Ok(())) => {
                self.subject.settled();
                let (free, all) = (env.buffers().available(), env.buffers().capacity());
                if free != all {
                    return Err(format!(
                        "{} bytes of buffers are lost at shutdown, {} tasks are left",
                        all - free,
                        env.tasks()
                    ));
                }
            }
            Ok(Err((_, given_up))) if failing || given_up => {}
            Ok(Err((why, _))) => {
                return Err(format!("shutdown failed, and no device had: {why:?}"));
            }
            Err(stop) => return Err(self.subject.stuck("shutdown", stop)),
        }
        self.subject.crash(env);
        Ok(())
    }
}

/// Why the clients' work ended early.
enum Looked {
    /// The run stopped.
    At(Stop),
    /// Something is wrong.
    Wrong(String),
    /// Another machine has the pool.
    TakenOver,
}
