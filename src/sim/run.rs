//! One seed: format, then rounds of work, crash and recovery, and the checks in between.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use super::engine::{Engine, Running};
use super::workload::{self, Habits, Models};
use crate::env::Env;
use crate::env::sim::rng::{Rng, mix};
use crate::env::sim::{Crash, Faults, Limit, Machine, SimEnv, Stop};

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

/// How deep crashes nest inside recovery.
const DEPTH_MAX: u32 = 3;
/// What a boot, or a round of work, may take: far more than any does that is not stuck.
pub(super) const LIMIT: Limit = Limit { time_ns: 4 * 3600 * 1_000_000_000, steps: 3_000_000 };

/// How long after a shutdown everything must have been given back.
const SHUTDOWN_TIME: Duration = Duration::from_secs(60);

/// Runs one seed. `loud` prints every call of the environment.
pub fn run_seed<E: Engine>(seed: u64, loud: bool) -> Result<Report, Failure> {
    guarded(|| Run::<E>::new(seed, loud).all()).map_err(|what| Failure { seed, what })
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
    engine: E,
    machine: Machine,
    models: Rc<Models>,
    habits: Habits,
    faults: Faults,
    rng: Rng,
    report: Report,
}

impl<E: Engine> Run<E> {
    fn new(seed: u64, loud: bool) -> Self {
        let mut rng = Rng::new(mix(seed));
        let engine = E::draw(&mut rng.fork());
        let mut machine = Machine::new(rng.bits(), &engine.shape());
        machine.loud(loud);
        let models = Models::new(&engine.volumes(), engine.granule());
        let faults = if rng.chance(750_000) {
            Faults::draw_recoverable(&mut rng)
        } else {
            Faults::draw_all(&mut rng)
        };
        Self {
            engine,
            machine,
            models: Rc::new(models),
            habits: Habits::draw(&mut rng),
            faults,
            rng,
            report: Report::default(),
        }
    }

    fn all(mut self) -> Result<Report, String> {
        let env = self.machine.boot(self.faults.ceased());
        let format = self.engine.format(env.clone(), self.machine.storage());
        env.run(LIMIT, format).map_err(|stop| self.stuck("format", stop))??;
        self.machine.halt(&env, Crash::Power);
        for _ in 0..self.rng.between(3, 6) {
            let (env, running) = self.recover()?;
            self.work(&env, running)?;
        }
        // With nothing failing any more, everything must come to an end.
        self.faults = self.faults.ceased();
        let (env, running) = self.recover()?;
        self.finish(&env, running)?;
        self.report.trace = self.machine.trace();
        self.report.calls = self.machine.calls();
        self.report.operations = self.models.ended.get();
        Ok(self.report)
    }

    /// Boots until a recovery has got through and left an image that is allowed.
    fn recover(&mut self) -> Result<(SimEnv, E::Running), String> {
        for depth in 0.. {
            // The first attempts may crash, and may meet failing devices; the last may not.
            let trying = depth < DEPTH_MAX;
            let faults = if trying { self.faults.clone() } else { self.faults.ceased() };
            let env = self.machine.boot(faults);
            if trying && self.rng.chance(350_000) {
                env.crash_in(Some(self.rng.log_between(1, 400)));
            }
            let engine = self.engine.clone();
            let (storage, handle) = (self.machine.storage(), env.clone());
            let opened = env.run(LIMIT, async move { engine.open(handle, storage).await });
            let running = match opened {
                Ok(Ok(running)) => running,
                Ok(Err(_)) if trying && self.devices_fail() => {
                    self.crash(&env);
                    continue;
                }
                Ok(Err(why)) => return Err(format!("recovery failed: {why}")),
                Err(Stop::Crashed) => {
                    self.crash(&env);
                    continue;
                }
                Err(stop) => return Err(self.stuck("recovery", stop)),
            };
            env.set_faults(self.faults.ceased());
            let (models, volumes) = (Rc::clone(&self.models), running.volumes());
            match env.run(LIMIT, async move { models.verify(&volumes).await }) {
                Ok(Ok(())) => {
                    env.crash_in(None);
                    self.report.images += 1;
                    running.check()?;
                    return Ok((env, running));
                }
                Ok(Err(why)) => return Err(why),
                Err(Stop::Crashed) => self.crash(&env),
                Err(stop) => return Err(self.stuck("the reading after recovery", stop)),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Clients work until the crash, or until they have done enough.
    fn work(&mut self, env: &SimEnv, running: E::Running) -> Result<(), String> {
        env.set_faults(self.faults.clone());
        if self.rng.chance(850_000) {
            env.crash_in(Some(self.rng.log_between(1, 6_000)));
        }
        match self.run_clients(env, &running, self.habits.clone()) {
            Ok(result) => result?,
            Err(Stop::Crashed) => {
                self.crash(env);
                return Ok(());
            }
            Err(stop) => return Err(self.stuck("the work", stop)),
        }
        if self.rng.chance(500_000) {
            self.crash(env);
            return Ok(());
        }
        self.stop(env, running)
    }

    /// Work without faults or crashes, then a shutdown after which everything must be found.
    fn finish(&mut self, env: &SimEnv, running: E::Running) -> Result<(), String> {
        let mut habits = self.habits.clone();
        habits.operations = 20;
        match self.run_clients(env, &running, habits) {
            Ok(result) => result?,
            Err(stop) => return Err(self.stuck("the work after all faults ceased", stop)),
        }
        running.check()?;
        self.stop(env, running)?;
        let (env, running) = self.recover()?;
        drop(running);
        self.crash(&env);
        Ok(())
    }

    fn run_clients(
        &mut self,
        env: &SimEnv,
        running: &E::Running,
        habits: Habits,
    ) -> Result<Result<(), String>, Stop> {
        let (models, rng) = (Rc::clone(&self.models), self.rng.fork());
        let may_fill = self.engine.may_fill();
        let running = running.clone();
        env.run(LIMIT, workload::run(env.clone(), running, models, habits, may_fill, rng))
    }

    /// An orderly shutdown: what was acknowledged is durable, and nothing is left over.
    fn stop(&mut self, env: &SimEnv, running: E::Running) -> Result<(), String> {
        let handle = env.clone();
        let result = env.run(LIMIT, async move {
            let result = running.shutdown().await;
            drop(running);
            // The tasks that were told to stop do so.
            handle.sleep(SHUTDOWN_TIME).await;
            result
        });
        match result {
            Ok(Ok(())) => {
                self.models.oracles.iter().for_each(|model| model.borrow_mut().settled());
                let (free, all) = (env.buffers().available(), env.buffers().capacity());
                if free != all {
                    return Err(format!(
                        "{} bytes of buffers are lost at shutdown, {} tasks are left",
                        all - free,
                        env.tasks()
                    ));
                }
            }
            Ok(Err(_)) if self.devices_fail() => {}
            Ok(Err(why)) => return Err(format!("shutdown failed, and no device had: {why:?}")),
            Err(Stop::Crashed) => {}
            Err(stop) => return Err(self.stuck("shutdown", stop)),
        }
        self.crash(env);
        Ok(())
    }

    fn crash(&mut self, env: &SimEnv) {
        let crash = if self.rng.chance(750_000) { Crash::Power } else { Crash::Process };
        self.machine.halt(env, crash);
        self.report.crashes += 1;
    }

    fn devices_fail(&self) -> bool {
        let faults = &self.faults;
        faults.read_error_ppm + faults.write_error_ppm + faults.flush_error_ppm > 0
    }

    fn stuck(&self, what: &str, stop: Stop) -> String {
        let mut text = match stop {
            Stop::Stuck => format!("{what} hangs: no task is ready and nothing is to come"),
            Stop::Limit => format!("{what} takes more than any time allowed"),
            Stop::Crashed => format!("{what} met a crash that was not planned"),
        };
        for (model, volume) in self.models.oracles.iter().zip(0..) {
            for op in model.borrow().pending() {
                let _ = write!(text, "\n    under way on volume {volume}: {op}");
            }
        }
        text
    }
}
