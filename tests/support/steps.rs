//! A loss of power at every call of a unit that takes part in a global transaction, and of the
//! coordinator with it: a test, and what finds mutants.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use flipside::env::sim::{Crash, Stop};
use flipside::env::{Env as _, Moment};
use flipside::sim::engine::Volume as _;
use flipside::txn::Phase;

use crate::peer::{LIMIT, World, found_after, joined, write};
use crate::simulated::{formatted, started};

const SEEDS: u64 = 6;
/// More calls than a commit has.
const CALLS: u64 = 4000;
/// Much shorter than a write takes.
const MOMENT: Duration = Duration::from_micros(10);

/// What the crash at one call has met.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Met {
    Nothing,
    Undecided,
    Decided,
    Done,
}

/// Goal: whichever call of a unit a loss of power meets, what is found afterwards is the part of a
/// transaction that took place, and nothing of one that did not. What the unit has said to be done,
/// and the coordinator has forgotten, is there ‡. Every other time the coordinator loses what it
/// has not stored.
pub fn a_loss_of_power_at_every_step() {
    for seed in 0..SEEDS {
        let met: Vec<Met> = (1..=CALLS)
            .map(|call| met_at(seed, call))
            .take_while(|met| *met != Met::Nothing)
            .collect();
        assert!(met.len() < CALLS as usize, "the commit takes more calls");
        for some in [Met::Undecided, Met::Decided, Met::Done] {
            assert!(met.contains(&some), "not every step was met");
        }
    }
}

fn met_at(seed: u64, call: u64) -> Met {
    let world = World::new();
    world.delay.set(MOMENT);
    let mut machine = formatted(&world.engine, seed, LIMIT);
    let (env, serving) = started(&mut machine, &world.engine, LIMIT);
    let (of, there) = (env.clone(), Rc::clone(&world));
    let ended = env.run(LIMIT, async move {
        let [first, second, _] = joined(&of, &serving, &there, false).await;
        write(&first, 0, 1).await;
        write(&second, 0, 1).await;
        of.crash_in(Some(call));
        let flushed = Rc::new(Cell::new(false));
        let told = Rc::clone(&flushed);
        of.spawn(async move {
            first.flush().await.unwrap();
            told.set(true);
        });
        while !(flushed.get() && there.has_heard(&Phase::Done)) {
            of.sleep(MOMENT).await;
        }
        of.crash_in(None);
    });
    let met = match ended {
        Ok(()) => Met::Nothing,
        Err(Stop::Crashed) if world.has_heard(&Phase::Done) => Met::Done,
        Err(Stop::Crashed) if world.machinery.borrow().decision().is_some() => Met::Decided,
        Err(Stop::Crashed) => Met::Undecided,
        Err(stop) => panic!("{stop:?}"),
    };
    machine.halt(&env, Crash::Power);
    if seed % 2 == 1 {
        world.restart(Moment::default());
    }
    let there = u8::from(met != Met::Undecided);
    assert_eq!(found_after(&mut machine, &world), [there; 2], "seed {seed}, call {call}");
    met
}
