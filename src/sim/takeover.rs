//! A pool goes to another machine while the one that serves it lives: its disks are taken away.
//!
//! 1. Another machine claims the pool, and is refused: the first one lives.
//! 2. The disks are taken from the first one. What had ended is on them; what was under way has
//!    arrived or not. It does not know: its clients go on, and so do its datagrams.
//! 3. The other machine claims the pool with the word that the first is fenced, recovers, crashes
//!    and recovers again, as any other.
//! 4. When it serves, and after a while, the first one is switched off; and everything that *it*
//!    has ever acknowledged as durable must be there.

use std::time::Duration;

use super::engine::Engine;
use super::subject::{LIMIT, Subject};
use crate::env::Env as _;
use crate::env::sim::{Crash, Job, Machine, SimEnv, Stop};

/// How long the first machine goes on beside the other that serves, at most, in nanoseconds.
const BESIDE_NS: u64 = 10_000_000_000;

/// A machine without its disks, and what runs on it.
pub(super) struct Former {
    machine: Machine,
    env: SimEnv,
}

impl<E: Engine> Subject<E> {
    /// Whether another machine could.
    pub fn may_be_taken_over(&self) -> bool {
        self.former.is_none() && self.engine.elsewhere(true).is_some()
    }

    /// The disks are found in another machine, whose user says that the first one has them no more.
    pub fn move_disks(&mut self) {
        self.engine = self.engine.elsewhere(true).expect("another machine may");
        self.lose_memory();
    }

    /// Another machine takes the pool over from the one that serves it, whose `work` goes on.
    pub async fn take_over<T: 'static>(
        &mut self,
        env: &SimEnv,
        mut work: Job<T>,
    ) -> Result<(), String> {
        let there = |fenced| self.engine.elsewhere(fenced).expect("another machine may");
        let (hopeful, engine) = (there(false), there(true));
        self.try_unfenced(env, hopeful).await?;
        let crash = self.draw_crash();
        let machine = self.machine.take_over(env, crash, &mut self.rng);
        let pace = env.pace().clone();
        let former = env.clone();
        pace.follow(Some(Box::new(move |moment| {
            // Whatever its clients see: they are told of failures now.
            drop(former.go_until(&mut work, moment));
        })));
        let machine = std::mem::replace(&mut self.machine, machine);
        self.lose_memory();
        self.former = Some(Former { machine, env: env.clone() });
        self.engine = engine;
        self.crashes += 1;
        self.takeovers += 1;
        Ok(())
    }

    /// Nobody gets the pool while the machine lives that serves it.
    async fn try_unfenced(&mut self, env: &SimEnv, engine: E) -> Result<(), String> {
        let crash = self.draw_crash();
        let mut machine = self.machine.fork(env, crash, &mut self.rng);
        let other = machine.boot(self.faults.ceased());
        let opening = engine.open(other.clone(), machine.storage());
        let opened = other.run_beside(LIMIT, opening).await;
        let opened = opened.map_err(|stop| self.stuck("a claim of another's pool", stop))?;
        let verdict = match opened {
            Ok(_) => Err(String::from("another machine has the pool, and the first one lives")),
            Err(why) if E::is_owned_elsewhere(&why) => Ok(()),
            Err(why) => Err(format!("a claim of another's pool failed otherwise: {why}")),
        };
        machine.halt(&other, Crash::Power);
        verdict
    }

    /// The machine that served before is switched off, after a while beside the one that does now.
    pub(super) async fn end_former(&mut self, env: &SimEnv) -> Result<(), String> {
        let Some(Former { mut machine, env: former }) = self.former.take() else { return Ok(()) };
        let beside = Duration::from_nanos(self.rng.log_between(1, BESIDE_NS));
        let slept = env.run_beside(LIMIT, env.sleep(beside)).await;
        env.pace().follow(None);
        machine.halt(&former, Crash::Process);
        self.machine.absorb(&machine);
        match slept {
            Ok(()) | Err(Stop::Crashed) => Ok(()),
            Err(stop) => Err(self.stuck("a while beside the former machine", stop)),
        }
    }
}
