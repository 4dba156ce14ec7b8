//! Every planted fault is found: random seeds against each, until one fails.
//!
//! | variable | what | default |
//! | --- | --- | --- |
//! | `FLIPSIDE_SEEDS` | the seeds that a mutant may survive at most | 5000 |
//! | `FLIPSIDE_SECONDS` | the time that a mutant may survive at most | no limit |
//! | `FLIPSIDE_SEED` | the first seed | 1 |
//! | `FLIPSIDE_MUTANTS` | only those whose names contain this | all |
//! | `FLIPSIDE_RECORD` | `1` shrinks, and keeps as regressions those few of [`RECORDED`] | |
//! | `FLIPSIDE_SHRINK` | `1` shrinks what fails to few actions, or fails itself | |
//! | `FLIPSIDE_TRACE` | `1` prints every call of the environment, on one thread | |

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use flipside::mutants::{Mutant, choose};
use flipside::sim::cluster;
use flipside::sim::destaging;
use flipside::sim::flipside::Flipside;
use flipside::sim::follower;
use flipside::sim::grouped;
use flipside::sim::plan::Plan;
use flipside::sim::run::{Failure, Report, run_plan, run_seed};
use flipside::sim::shrink::shrink;
use flipside::sim::sweep::{Sweep, sweep};

#[path = "support/linking.rs"]
mod linking;
#[path = "support/peer.rs"]
mod peer;
#[path = "support/regressions.rs"]
mod regressions;
#[path = "support/repair.rs"]
mod repair;
#[path = "support/simulated.rs"]
mod simulated;
#[path = "support/steps.rs"]
mod steps;
#[path = "support/waiting.rs"]
mod waiting;

const SEEDS: u64 = 5000;
/// What a failure shrinks to at most, in actions.
const SMALL: usize = 20;
/// Those whose shrunk plans are kept: quick to find, and of every part of the engine.
const RECORDED: [Mutant; 16] = [
    Mutant::DataFlushDropped,
    Mutant::FlushBeforeDrain,
    Mutant::PublishedBeforeHardened,
    Mutant::NextEpochAcknowledged,
    Mutant::BindingNotRecorded,
    Mutant::TrimNotRecorded,
    Mutant::EdgesNotRead,
    Mutant::TrimRoundedOutward,
    Mutant::DrainSkipped,
    Mutant::LastRunNotRecorded,
    Mutant::SealedIgnored,
    Mutant::BusyIgnored,
    Mutant::PayloadNotRead,
    Mutant::SupersededDestaged,
    Mutant::UnlinkedBeforeDestaged,
    Mutant::PayloadCrcIgnored,
];
/// Those that want much to show: not recorded, and yet shrunk to few actions.
const SHRUNK: [Mutant; 1] = [Mutant::ServerToldFirst];
/// Those of readers beside the unit: a world of their own finds them.
const OF_READERS: [Mutant; 4] = [
    Mutant::ReaderNotWaitedFor,
    Mutant::ReaderLeaseBelievedTooLong,
    Mutant::ReadNotValidated,
    Mutant::StaleLineKept,
];
/// Those of destaging that a world of its own finds sooner.
const OF_DESTAGING: [Mutant; 2] = [Mutant::PayloadDroppedForPending, Mutant::DestageUnheld];
/// Those of atomic requests and of rare meetings, and the scenario that shows each.
const OF_SCENARIOS: [(Mutant, fn()); 7] = [
    (Mutant::DecisionNotStored, steps::a_loss_of_power_at_every_step),
    (Mutant::DoneBeforePersisted, steps::a_loss_of_power_at_every_step),
    (Mutant::GoodCopyMended, repair::cut_short_anywhere),
    (Mutant::PlaceShrinks, waiting::who_waits_behind_fewer_blocks_is_woken),
    (Mutant::UnlinkedInOneGo, linking::what_is_older_is_unlinked_before),
    (Mutant::GroupPartMissing, linking::what_is_cut_off_does_not_count),
    (Mutant::CutOffSuccessorIgnored, linking::what_rots_before_a_cut_off_is_missed),
];
/// The swaps of a world with a reader.
const SWAPS: u64 = 60;
/// Those that only show where several machines share a metadata server.
const OF_CLUSTERS: [Mutant; 5] = [
    Mutant::AnsweredBeforeCommit,
    Mutant::SessionNotStored,
    Mutant::RegisterOverwrites,
    Mutant::UnfencedGranted,
    Mutant::LeaseBelievedTooLong,
];
/// Those that only show where units have a consistency group together.
const OF_GROUPS: [Mutant; 18] = [
    Mutant::CommitBeforeDecision,
    Mutant::IdleMemberLeftOut,
    Mutant::CommitPresumed,
    Mutant::PreparedMemberForgotten,
    Mutant::LifeNotCounted,
    Mutant::AcknowledgedBeforeAllSealed,
    Mutant::CommitsWithoutDecision,
    Mutant::PreparedDroppedAtRecovery,
    Mutant::LifeIgnored,
    Mutant::PreparedAppliedEarly,
    Mutant::PreparedNotApplied,
    Mutant::PreparedKeptAtAbort,
    Mutant::PreparedOfAnyApplied,
    Mutant::StagedVisible,
    Mutant::StagedNotHeld,
    Mutant::JoinedNotRecorded,
    Mutant::VotedRead,
    Mutant::PartsNotCounted,
];
/// One mutant at a time, in the whole process.
static CHOICE: Mutex<()> = Mutex::new(());

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

fn is_on(name: &str) -> bool {
    number(name).is_some_and(|on| on > 0)
}

fn plan() -> Sweep {
    let loud = number("FLIPSIDE_TRACE").is_some_and(|loud| loud > 0);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Sweep {
        base: number("FLIPSIDE_SEED").unwrap_or(1),
        count: number("FLIPSIDE_SEEDS").unwrap_or(SEEDS),
        time: number("FLIPSIDE_SECONDS").map(Duration::from_secs),
        threads: if loud { 1 } else { cores },
        loud,
        failures_max: 1,
        twice_every: 0,
    }
}

/// The first seed that fails, and how.
fn hunt(plan: Sweep) -> Option<(u64, String)> {
    let failures = sweep(plan, run_seed::<Flipside>, Duration::MAX, |_| {}).err()?;
    let first = failures.iter().min_by_key(|failure| failure.seed)?;
    Some((first.seed, first.to_string()))
}

/// The same with several machines and one metadata server, or with groups over several units.
fn hunt_beside(
    plan: Sweep,
    run_seed: fn(u64, bool) -> Result<Report, Failure>,
) -> Option<(u64, String)> {
    let failures = sweep(plan, run_seed, Duration::MAX, |_| {}).err()?;
    let first = failures.iter().min_by_key(|failure| failure.seed)?;
    Some((first.seed, first.to_string()))
}

/// The same with a reader beside the writer.
fn hunt_with_reader(plan: Sweep) -> Option<(u64, String)> {
    hunt_in(plan, |seed| follower::run(seed, SWAPS).err())
}

/// The same in worlds of another kind.
fn hunt_in(plan: Sweep, run: impl Fn(u64) -> Option<String>) -> Option<(u64, String)> {
    let until = plan.time.map(|time| Instant::now() + time);
    let mut seeds = plan.base..plan.base + plan.count;
    seeds.find_map(|seed| {
        let late = until.is_some_and(|until| Instant::now() > until);
        let failed = if late { None } else { run(seed) };
        failed.map(|how| (seed, how))
    })
}

/// Goal: each recorded plan shows its mutant within some salts, and the first failing seeds of
/// these mutants shrink to few actions.
#[test]
fn what_mutants_do_is_shown_in_few_actions() {
    let _one = CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
    let all = regressions::all();
    for mutant in RECORDED {
        let name = format!("{mutant:?}");
        choose(Some(mutant));
        let regression = all.iter().find(|one| one.name == name);
        let regression = regression.unwrap_or_else(|| panic!("{name} is not recorded"));
        let failing = |plan: Plan| run_plan::<Flipside>(&plan, false).0.is_err();
        let shown = regression.all_tries().any(failing);
        choose(None);
        assert!(shown, "the plan does not show {name} any more: FLIPSIDE_RECORD=1 make mutants");
    }
    for mutant in RECORDED.into_iter().step_by(4).chain(SHRUNK) {
        choose(Some(mutant));
        let seed = hunt(Sweep { base: 1, count: SEEDS, loud: false, ..plan() });
        let (seed, _) = seed.expect("a mutant that is found");
        let small = shrink::<Flipside>(&Plan::whole(seed)).expect("it fails again");
        choose(None);
        assert!(small.len() <= SMALL, "{mutant:?}: {small}");
    }
}

/// Shrinks a failing run where that is asked for, shows what is left, and keeps it; whether it is
/// small then.
fn is_small(mutant: Mutant, seed: u64) -> bool {
    let record = is_on("FLIPSIDE_RECORD") && RECORDED.contains(&mutant);
    if !record && !is_on("FLIPSIDE_SHRINK") {
        return true;
    }
    let started = Instant::now();
    let small = shrink::<Flipside>(&Plan::whole(seed)).expect("it fails again");
    let took = started.elapsed().as_secs_f64();
    let (before, left, runs) = (small.before, small.len(), small.runs);
    eprintln!("{before} actions shrink to {left} in {runs} runs, {took:.1} s: {}", small.plan);
    if record && left <= SMALL {
        regressions::record(&format!("{mutant:?}"), mutant.what(), &small.plan);
    }
    left <= SMALL
}

/// Goal: the simulator finds each of the faults in `flipside::mutants`, and none where there is
/// none.
#[test]
fn every_mutant_is_found() {
    let _one = CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
    let only = std::env::var("FLIPSIDE_MUTANTS").unwrap_or_default();
    let mut out = std::io::stderr();
    let (mut survivors, mut large) = (Vec::new(), Vec::new());
    writeln!(out, "| mutant | seeds | time | found by |\n| --- | --- | --- | --- |").unwrap();
    let elsewhere = |mutant: &Mutant| OF_SCENARIOS.iter().any(|(of, _)| of == mutant);
    let wanted = Mutant::ALL.iter().copied().filter(|m| format!("{m:?}").contains(&only));
    for mutant in wanted.filter(|mutant| !elsewhere(mutant)) {
        choose(Some(mutant));
        let started = Instant::now();
        let of_reader = OF_READERS.contains(&mutant);
        let of_cluster = OF_CLUSTERS.contains(&mutant);
        let of_groups = OF_GROUPS.contains(&mutant);
        let of_destaging = OF_DESTAGING.contains(&mutant);
        let found = match mutant {
            _ if of_reader => hunt_with_reader(plan()),
            _ if of_cluster => hunt_beside(plan(), cluster::run_seed),
            _ if of_groups => hunt_beside(plan(), grouped::run_seed),
            _ if of_destaging => hunt_in(plan(), |seed| destaging::run(seed).err()),
            _ => hunt(plan()),
        };
        let took = started.elapsed().as_secs_f64();
        if let Some((seed, _)) = &found
            && !of_reader
            && !of_cluster
            && !of_groups
            && !of_destaging
            && !is_small(mutant, *seed)
        {
            large.push(mutant);
        }
        choose(None);
        let (seed, how) = found.unwrap_or_else(|| {
            survivors.push(mutant);
            (plan().count, "NOT FOUND in as many, or in the time".to_owned())
        });
        let how: String = how.lines().next().unwrap_or_default().chars().take(90).collect();
        let what = mutant.what();
        writeln!(out, "| {mutant:?}: {what} | {seed} | {took:.1} s | {how} |").unwrap();
    }
    assert!(survivors.is_empty(), "not found: {survivors:?}");
    assert!(large.is_empty(), "more than {SMALL} actions are left of what shows {large:?}");
}

/// Goal: a scenario goes well without its mutant, and fails with it.
#[test]
fn mutants_of_scenarios_are_found() {
    let _one = CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
    for (mutant, scenario) in OF_SCENARIOS {
        scenario();
        choose(Some(mutant));
        let shown = std::panic::catch_unwind(scenario).is_err();
        choose(None);
        assert!(shown, "{mutant:?} is not found");
    }
}
