//! A simulated machine with the real engine on it, formatted and started, for scenarios.

use flipside::env::sim::{Crash, Faults, Limit, Machine, SimEnv};
use flipside::sim::engine::Engine as _;
use flipside::sim::flipside::{Flipside, Serving};

/// A machine with a new pool on it, off.
pub fn formatted(engine: &Flipside, seed: u64, limit: Limit) -> Machine {
    let mut machine = Machine::new(seed, &engine.shape());
    let env = machine.boot(Faults::none());
    let made = engine.format(env.clone(), machine.storage());
    env.run(limit, made).expect("formatting ends").expect("formatting succeeds");
    machine.halt(&env, Crash::Power);
    machine
}

/// Boots it, and recovers.
pub fn started(machine: &mut Machine, engine: &Flipside, limit: Limit) -> (SimEnv, Serving) {
    let env = machine.boot(Faults::none());
    let opened = engine.open(env.clone(), machine.storage());
    let serving = env.run(limit, opened).expect("recovery ends").expect("recovery succeeds");
    (env, serving)
}
