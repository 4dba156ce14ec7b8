//! Several machines, each with a pool of its own, and one metadata server for all of them
//! ([`super::host`]): the runs of [`super::run`] side by side in one time.
//!
//! Each run draws, works, crashes, recovers and is checked as if it were alone; what it shares with
//! the others is the server, which has crashes of its own. So a machine goes on while the server is
//! away, the server while a machine is, and a turn of the server is for several pools.
//!
//! A pool that is not in the persistent memory of its machine may go to another machine, at the
//! same place in time: its disks are moved, or taken away ([`super::takeover`]).
//!
//! Machines are stepped in the order of true time, the earliest first ([`Pace`]): a seed runs the
//! same way every time.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::flipside::Flipside;
use super::host::Host;
use super::plan::{Plan, Script};
use super::run::{self, Failure, Report, guarded};
use super::subject::Subject;
use crate::env::sim::Pace;
use crate::env::sim::rng::{Rng, mix};
use crate::format::ids::PoolId;
use crate::sim::engine::Engine as _;

/// A machine in the cluster, and what becomes of it.
struct Member {
    pace: Pace,
    life: Pin<Box<dyn Future<Output = Result<Report, String>>>>,
}

/// Runs one seed. `loud` prints every call of the environment.
pub fn run_seed(seed: u64, loud: bool) -> Result<Report, Failure> {
    guarded(|| run(seed, loud)).map_err(|what| Failure { seed, what })
}

fn run(seed: u64, loud: bool) -> Result<Report, String> {
    // Other draws than those of the same seed alone.
    let mut rng = Rng::new(mix(!seed));
    let host = Host::draw(&mut rng);
    let machines = rng.pick(&[2, 2, 3]);
    let members = (0..machines).map(|seat| member(&host, seat, &mut rng, loud)).collect();
    let mut report = go(members)?;
    report.hosts = host.seen();
    report.trace = mix(report.trace ^ host.stored());
    Ok(report)
}

/// A machine with a pool, and the run of it.
fn member(host: &Host, seat: usize, rng: &mut Rng, loud: bool) -> Member {
    let seed = rng.bits();
    let mut rng = rng.fork();
    let pool = PoolId([seat as u8 + 1; 16]);
    let engine = Flipside::draw(&mut rng.fork()).hosted(pool, host.seat(seat));
    let engine =
        engine.leased(rng.pick(&[None, Some(3), Some(3), Some(20)]).map(Duration::from_secs));
    let pace = Pace::beside(rng.below(1_000_000));
    let mut subject = Subject::of(engine, &mut rng, loud);
    subject.machine.set_pace(pace.clone());
    let script = Rc::new(Script::new(Plan::whole(seed)));
    Member { pace, life: Box::pin(run::live(script, subject, rng)) }
}

/// Lets each go on while it is the earliest, until all have ended or one has failed.
fn go(mut members: Vec<Member>) -> Result<Report, String> {
    let mut report = Report::default();
    while let Some(first) = (0..members.len()).min_by_key(|&nth| members[nth].pace.next()) {
        let others = members.iter().enumerate().filter(|(nth, _)| *nth != first);
        let until = others.map(|(_, other)| other.pace.next()).min().unwrap_or(u64::MAX);
        let member = &mut members[first];
        member.pace.let_go(until);
        match member.life.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ended) => {
                report.add(&ended?);
                drop(members.swap_remove(first));
            }
            Poll::Pending => assert!(member.pace.next() > until, "it waits for something else"),
        }
    }
    Ok(report)
}
