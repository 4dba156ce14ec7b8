//! Several units in one time, with consistency groups over them and one metadata server for all:
//! promise 4, and the life of groups (design section 6).
//!
//! Clients go from unit to unit: what one is told by a unit comes before what it sends to the next.
//! Units crash, one or several at a time, in their work and in their recoveries, at any call; they
//! are away, and are stopped as they should; the server crashes as in [`super::host`]; groups are
//! deleted and made again while all of that goes on. The network does what the fault table says.
//!
//! | file | what it is about |
//! | --- | --- |
//! | this one | the order of events, and what is done to the units |
//! | [`ledger`] | what is known of volumes and groups |
//! | [`clients`] | requests |
//! | [`atomics`] | atomic requests over several volumes |
//! | [`seat`] | a unit on its machine |
//! | [`check`] | images after a crash, and when clients may go on |
//!
//! What is checked:
//!
//! | when | what |
//! | --- | --- |
//! | a read ends | it returns what was there meanwhile (promise 5) |
//! | a request fails | others are away, or the group went back to its last cut |
//! | an atomic request was applied | all of it is there, with what came before, on every unit |
//! | one was refused, or never asked for | nothing of it is ever there |
//! | a unit of a group crashed, and all serve again | all members together are one allowed cut |
//! | the faults have ceased | every operation ends, and nothing stays in doubt |
//! | all have stopped well | all that was acknowledged is there |

mod atomics;
mod check;
mod clients;
mod ledger;
mod seat;

use std::rc::Rc;

use super::flipside::{Flipside, Served};
use super::host::Host;
use super::run::{Failure, Report, guarded};
use crate::env::Env as _;
use crate::env::sim::rng::{Rng, mix};
use crate::env::sim::{Aim, SimEnv};
use crate::format::ids::PoolId;
use crate::observe::Counters;
use crate::sim::engine::{Running as _, Volume as _};
use check::Check;
use clients::{Busy, Event, Habits, Request, Shared};
use ledger::{Class, Ended, Ledger, Place};
use seat::Unit;

/// What groups went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Parts of units in global transactions that took place, and that did not.
    pub commits: u64,
    /// Those that did not.
    pub aborts: u64,
    /// Transactions found in doubt by a start that had taken place.
    pub doubts_committed: u64,
    /// Those that had not.
    pub doubts_aborted: u64,
    /// How often a unit dropped what was pending because another one had lost it.
    pub resets: u64,
    /// Images of whole groups that were checked.
    pub cuts: u64,
    /// Groups deleted and made again.
    pub regrouped: u64,
    /// Units stopped as they should be.
    pub stops: u64,
    /// Atomic requests that were applied.
    pub atomics: u64,
    /// Those that were refused, or whose clients left.
    pub atomics_refused: u64,
    /// Those of which that was not known.
    pub atomics_unknown: u64,
}

impl Seen {
    /// All of another's, too.
    pub fn add_all(&mut self, other: &Seen) {
        self.commits += other.commits;
        self.aborts += other.aborts;
        self.doubts_committed += other.doubts_committed;
        self.doubts_aborted += other.doubts_aborted;
        self.resets += other.resets;
        self.cuts += other.cuts;
        self.regrouped += other.regrouped;
        self.stops += other.stops;
        self.atomics += other.atomics;
        self.atomics_refused += other.atomics_refused;
        self.atomics_unknown += other.atomics_unknown;
    }

    /// An atomic request has ended.
    fn count_atomic(&mut self, ended: Ended) {
        match ended {
            Ended::Applied => self.atomics += 1,
            Ended::Refused => self.atomics_refused += 1,
            Ended::Unknown => self.atomics_unknown += 1,
        }
    }

    /// What one start of a unit counted.
    fn count(&mut self, counters: &Counters) {
        self.commits += counters.global_commits.get();
        self.aborts += counters.global_aborts.get();
        self.doubts_committed += counters.doubts_committed.get();
        self.doubts_aborted += counters.doubts_aborted.get();
        self.resets += counters.resets.get();
    }
}

/// After so long, in nanoseconds, all must be well once nothing fails any more.
const MENDED_NS: u64 = 2 * 3600 * 1_000_000_000;
/// Where nobody gets on, something is done to the units after so long, in nanoseconds.
const IDLE_NS: u64 = 20_000_000_000;
/// For so long all has to be well, in nanoseconds, until it is believed.
const WELL_NS: u64 = 10_000_000_000;
/// The parts that crashes are aimed at.
const PARTS: [&str; 3] = ["journal slot", "status 0", "status 1"];
/// Operations after all faults have ceased.
const LAST_OPERATIONS: u64 = 20;

/// Runs one seed. `loud` prints every call of the environment.
pub fn run_seed(seed: u64, loud: bool) -> Result<Report, Failure> {
    run_some(seed, true, loud)
}

/// The same without atomic requests.
pub fn run_without_atomics(seed: u64, loud: bool) -> Result<Report, Failure> {
    run_some(seed, false, loud)
}

fn run_some(seed: u64, atomics: bool, loud: bool) -> Result<Report, Failure> {
    let run = || Run::draw(seed, atomics, loud)?.all();
    guarded(run).map_err(|what| Failure { seed, what })
}

struct Run {
    rng: Rng,
    host: Host,
    units: Vec<Unit>,
    shared: Rc<Shared>,
    habits: Habits,
    atomics: atomics::Habits,
    checks: Vec<Check>,
    /// The volume that each client went to last, and how many requests were begun.
    last: Vec<usize>,
    begun: u64,
    operations: u64,
    /// How often something more is done to the units, and when it was last.
    disturbances: u64,
    disturbed: u64,
    /// After so many requests it is done again.
    strike_at: u64,
    /// How long a unit is away at most, in nanoseconds.
    away_ns: u64,
    /// How often a unit goes down soon after the server did, and the server's crashes so far.
    falls_with_ppm: u32,
    server_crashes: u64,
    /// By which clients reach the volumes.
    handles: Vec<Option<Served>>,
    /// Numbers of checks and of what is done to groups, so far.
    jobs: u64,
    now: u64,
    /// Since when every unit serves, and nothing is broken.
    well_since: u64,
    calm: bool,
    /// Who has stopped stays so.
    ending: bool,
    images: u64,
    crashes: u64,
    seen: Seen,
}

impl Run {
    /// Draws units, volumes, groups and habits, and makes the pools.
    fn draw(seed: u64, atomics: bool, loud: bool) -> Result<Self, String> {
        // Other draws than those of the same seed elsewhere.
        let mut rng = Rng::new(mix(seed ^ 0x6e0_0b5));
        let host = Host::draw(&mut rng);
        let granule = rng.pick(&[512, 512, 128]);
        let count = rng.pick(&[2, 2, 3]);
        let mut units: Vec<Unit> =
            (0..count).map(|number| unit(&host, number, granule, &mut rng, loud)).collect();
        units.iter_mut().try_for_each(Unit::format)?;
        let now = units.iter().map(Unit::reached).max().unwrap_or(0) + 1;
        let ledger = draw_groups(&units, granule, &mut rng);
        let clients = rng.between(1, 6) as usize;
        let habits = Habits::draw(&mut rng);
        let checks = ledger.classes.iter().map(|class| Check::new(class.group.is_some()));
        let checks = checks.collect();
        let handles = vec![None; ledger.places.len()];
        let shared = Rc::new(Shared::new(ledger, clients));
        for unit in 0..units.len() {
            shared.plan(now + rng.below(1_000_000), Event::Boot(unit));
        }
        (0..clients).for_each(|client| shared.plan(now + 1, Event::Step(client)));
        shared.plan(now + 1, Event::Look);
        Ok(Self {
            operations: u64::MAX,
            disturbances: rng.log_between(3, 60),
            disturbed: now,
            strike_at: rng.between(5, 60),
            away_ns: rng.pick(&[1_000_000, 1_000_000_000, 100_000_000_000]),
            falls_with_ppm: rng.pick(&[0, 300_000]),
            server_crashes: 0,
            last: vec![0; clients],
            begun: 0,
            calm: false,
            ending: false,
            well_since: now,
            jobs: 0,
            handles,
            images: 0,
            crashes: 0,
            seen: Seen::default(),
            rng,
            host,
            units,
            shared,
            habits,
            atomics: atomics::Habits::draw(seed, atomics),
            checks,
            now,
        })
    }

    fn all(mut self) -> Result<Report, String> {
        self.go("the work", u64::MAX, |run| run.disturbances == 0)?;
        self.calm = true;
        // What was lost before is sent again only after a while.
        self.well_since = self.now;
        self.operations = self.begun;
        self.host.calm();
        self.units.iter().for_each(Unit::calm);
        let limit = self.now + MENDED_NS;
        self.go("mending everything", limit, |run| {
            run.is_well() && run.now > run.well_since + WELL_NS
        })?;
        self.shared.bounded.set(true);
        self.operations = self.begun + LAST_OPERATIONS;
        let limit = self.now + MENDED_NS;
        self.go("the last work", limit, Self::is_done)?;
        self.stop_all()?;
        self.start_again()?;
        Ok(self.report())
    }

    fn report(mut self) -> Report {
        for unit in &mut self.units {
            unit.halt(&mut self.rng, &mut self.seen);
        }
        self.seen.add_all(&self.shared.seen.get());
        let mut report = Report {
            operations: self.shared.ended.get(),
            crashes: self.crashes,
            images: self.images,
            unexplained: self.shared.ledger.borrow().unexplained(),
            hosts: self.host.seen(),
            groups: self.seen,
            ..Report::default()
        };
        for machine in self.units.iter().map(|unit| &unit.machine) {
            report.trace = mix(report.trace ^ machine.trace());
            report.calls += machine.calls();
            report.struck.add_all(machine.struck());
            report.points.add_all(machine.points());
        }
        report.trace = mix(report.trace ^ self.host.stored());
        report
    }

    /// Lets everything happen in the order of time, until that is so.
    fn go(
        &mut self,
        what: &str,
        limit: u64,
        mut until: impl FnMut(&Self) -> bool,
    ) -> Result<(), String> {
        while !until(self) {
            let unit =
                self.units.iter().filter_map(|unit| Some((unit.next_moment()?, unit.number)));
            let unit = unit.min();
            let event = self.shared.next_event();
            match (unit, event) {
                (Some((moment, number)), event) if event.is_none_or(|event| moment < event) => {
                    self.now = self.now.max(moment);
                    self.step_unit(number)?;
                }
                (_, Some(moment)) => {
                    self.now = self.now.max(moment);
                    let event = self.shared.take_event().expect("it was just seen");
                    self.happen(event)?;
                }
                (_, None) => return Err(format!("{what} hangs: nothing is to come")),
            }
            if let Some(wrong) = self.shared.failed.take() {
                return Err(format!("at {} ns: {wrong}", self.now));
            }
            if self.now > limit {
                let pending = self.shared.ledger.borrow().pending().join("\n    ");
                let checks = &self.checks;
                return Err(format!("{what} takes too long: {checks:?}\n    {pending}"));
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.begun >= self.operations && self.shared.busy.borrow().iter().all(Option::is_none)
    }

    /// Whether every unit serves, and clients may go on everywhere.
    fn is_well(&self) -> bool {
        let served = self.units.iter().all(|unit| unit.serving().is_some());
        served && self.checks.iter().all(Check::is_well)
    }

    fn step_unit(&mut self, number: usize) -> Result<(), String> {
        let ended = self.units[number].step()?;
        for other in &self.units {
            if self.host.has_mail(other.number)
                && let Some(env) = other.env().filter(|_| other.number != number)
            {
                env.hear_server(self.now);
            }
        }
        self.fall_with_the_server();
        match ended {
            Some(seat::Ended::Stopped) => {
                self.seen.stops += 1;
                self.stopped(number);
                self.off(number);
            }
            Some(seat::Ended::StoppedBadly(why)) if self.ending => {
                return Err(format!("unit {number} does not stop as it should: {why}"));
            }
            Some(seat::Ended::Crashed | seat::Ended::StoppedBadly(_)) => self.crash(number),
            None if self.units[number].has_given_up() => self.crash(number),
            None => {
                if self.units[number].has_come_up() {
                    self.came_up(number);
                }
            }
        }
        Ok(())
    }

    /// What the server had said to some units, and had forgotten, is found out by others only if
    /// those lose what they know.
    fn fall_with_the_server(&mut self) {
        let crashes = self.host.seen().crashes;
        if std::mem::replace(&mut self.server_crashes, crashes) == crashes || self.calm {
            return;
        }
        for unit in &self.units {
            if self.rng.chance(self.falls_with_ppm) {
                unit.plan_crash(Some(self.rng.log_between(1, 100)), None);
            }
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Step(client) => self.step_client(client),
            Event::Boot(unit) => self.boot(unit),
            Event::Look => {
                self.look()?;
                if self.now > self.disturbed + IDLE_NS {
                    self.disturb();
                }
                let pause = self.rng.log_between(1_000_000, 300_000_000);
                self.shared.plan(self.now + pause, Event::Look);
            }
        }
        Ok(())
    }

    fn boot(&mut self, number: usize) {
        if self.units[number].is_on() {
            return;
        }
        self.units[number].boot(self.now, self.calm);
        if !self.calm && self.rng.chance(200_000) {
            let calls = self.rng.log_between(1, 400);
            self.units[number].plan_crash(Some(calls), None);
        }
    }

    /// Requests of clients to a unit that is gone are over.
    fn off(&mut self, number: usize) {
        self.shared.drop_parts(number);
        self.units[number].halt(&mut self.rng, &mut self.seen);
        let waits = |on: &Option<Busy>| on.as_ref().is_some_and(|on| on.unit == Some(number));
        let orphans: Vec<usize> = {
            let busy = self.shared.busy.borrow();
            (0..busy.len()).filter(|client| waits(&busy[*client])).collect()
        };
        for client in orphans {
            let think = self.habits.think(&mut self.rng);
            self.shared.leave(client, self.now + think);
        }
        self.forget_handles(number);
        if self.ending {
            return;
        }
        let longest = if self.calm { 1_000_000 } else { self.away_ns };
        let away = self.rng.log_between(1, longest);
        self.shared.plan(self.now + away, Event::Boot(number));
    }

    /// Tells a unit to stop as it should.
    fn stop(&mut self, number: usize) {
        self.units[number].stop();
        self.forget_handles(number);
    }

    fn crash(&mut self, number: usize) {
        self.crashes += 1;
        self.off(number);
        self.broken(number);
    }

    fn volumes_of(&self, number: usize) -> Vec<usize> {
        let ledger = self.shared.ledger.borrow();
        (0..ledger.places.len()).filter(|volume| ledger.places[*volume].unit == number).collect()
    }

    /// Something more is done to the units.
    fn disturb(&mut self) {
        if self.calm || self.disturbances == 0 {
            return;
        }
        self.disturbances -= 1;
        self.disturbed = self.now;
        self.strike_at = self.begun + self.rng.log_between(1, 100);
        let number = self.rng.below(self.units.len() as u64) as usize;
        let chosen = number;
        match self.rng.below(10) {
            0 => {
                if self.units[number].is_on() {
                    self.crash(number);
                }
            }
            1 => {
                for number in 0..self.units.len() {
                    if self.rng.chance(700_000) && self.units[number].is_on() {
                        self.crash(number);
                    }
                }
            }
            2 | 3 => self.stop(number),
            4 => self.regroup(),
            5 => {
                let calls = self.rng.log_between(1, 500);
                self.units[number].plan_crash(Some(calls), None);
            }
            _ => {
                // In the middle of a transaction: most often of one unit, or of another, too.
                for number in 0..self.units.len() {
                    let (passes, calls) = (self.rng.between(1, 3), self.rng.log_between(1, 40));
                    let aim = Aim { part: self.rng.pick(&PARTS), passes, calls: calls - 1 };
                    if number == chosen || self.rng.chance(200_000) {
                        self.units[number].plan_crash(None, Some(aim));
                    }
                }
            }
        }
    }

    fn step_client(&mut self, client: usize) {
        if self.shared.drafts.borrow()[client].is_some() {
            self.go_on_with_atomic(client);
            return;
        }
        if self.begun >= self.operations {
            // It looks again, since there may be more to do later.
            self.shared.plan(self.now + 50_000_000, Event::Step(client));
            return;
        }
        let volumes = self.shared.ledger.borrow().places.len();
        let volume = self.habits.volume(&mut self.rng, self.last[client], volumes);
        let Some((env, served)) = self.handle(volume) else {
            self.last[client] = self.rng.below(volumes as u64) as usize;
            let pause = self.rng.log_between(100_000, 100_000_000);
            self.shared.plan(self.now + pause, Event::Step(client));
            return;
        };
        self.begun += 1;
        self.last[client] = volume;
        if self.atomics.is_next() && !self.is_broken(volume) {
            self.begin_atomic(client, volume);
        } else {
            self.begin_request(client, volume, &env, served);
        }
        if self.begun >= self.strike_at {
            self.disturb();
        }
    }

    /// A client sends a request to one volume.
    fn begin_request(&mut self, client: usize, volume: usize, env: &SimEnv, served: Served) {
        let (unit, granules, granule) = {
            let ledger = self.shared.ledger.borrow();
            let place = &ledger.places[volume];
            (place.unit, place.granules, ledger.granule as u64)
        };
        let what = self.habits.what(&mut self.rng, granules, served.request_max() / granule);
        let at = self.now + self.rng.log_between(1_000, 200_000);
        let think = self.habits.think(&mut self.rng);
        let busy = Busy { unit: Some(unit), volumes: vec![volume] };
        self.shared.busy.borrow_mut()[client] = Some(busy);
        let request = Request { client, volume, what, at, think };
        env.spawn(Rc::clone(&self.shared).carry_out(env.clone(), served, request));
    }

    /// Stops every unit as it should be, when all is quiet.
    fn stop_all(&mut self) -> Result<(), String> {
        for (env, serving) in self.units.iter().filter_map(Unit::serving) {
            let shared = Rc::clone(&self.shared);
            env.spawn(async move {
                if let Err(why) = serving.commit().await {
                    shared.fail(format!("a commit failed: {why:?}"));
                }
            });
        }
        let limit = self.now + MENDED_NS;
        self.go("becoming quiet", limit, |run| {
            let mut serving = run.units.iter().filter_map(Unit::serving);
            serving.all(|(_, serving)| serving.is_quiet())
        })?;
        for unit in &self.units {
            let Some((_, serving)) = unit.serving() else { continue };
            serving.check().map_err(|why| format!("unit {}: {why}", unit.number))?;
        }
        let stops = self.seen.stops + self.units.len() as u64;
        self.ending = true;
        (0..self.units.len()).for_each(|number| self.stop(number));
        let limit = self.now + MENDED_NS;
        self.go("stopping", limit, |run| run.seen.stops == stops)
    }

    /// All that was acknowledged is found.
    fn start_again(&mut self) -> Result<(), String> {
        self.ending = false;
        for number in 0..self.units.len() {
            self.broken(number);
            self.shared.plan(self.now + 1, Event::Boot(number));
        }
        let limit = self.now + MENDED_NS;
        self.go("the last start", limit, Self::is_well)
    }
}

/// A unit with some volumes, and its pool at the host.
fn unit(host: &Host, number: usize, granule: usize, rng: &mut Rng, loud: bool) -> Unit {
    let volumes: Vec<u64> = (0..rng.pick(&[1, 2, 2, 3])).map(|_| rng.between(1, 5)).collect();
    let engine = Flipside::draw_member(&mut rng.fork(), &volumes, granule);
    let engine = engine.hosted(pool(number), host.seat(number));
    Unit::new(number, engine, rng, loud)
}

/// The pool of a unit.
fn pool(number: usize) -> PoolId {
    PoolId([number as u8 + 1; 16])
}

/// A group over all units; of the volumes that are left some are in another one, and some in none.
fn draw_groups(units: &[Unit], granule: usize, rng: &mut Rng) -> Ledger {
    let mut places = Vec::new();
    for unit in units {
        for (nth, size) in unit.volumes().into_iter().enumerate() {
            let granules = (size / granule as u64) as u32;
            places.push(Place { unit: unit.number, nth, class: usize::MAX, granules });
        }
    }
    let other = rng.chance(300_000);
    let group = |name: &str| Class { members: Vec::new(), group: Some(name.to_owned()) };
    let (mut first, mut second, mut alone) = (group("first"), group("second"), Vec::new());
    for (volume, place) in places.iter().enumerate() {
        if place.nth == 0 || rng.chance(500_000) {
            first.members.push(volume);
        } else if other && rng.chance(700_000) {
            second.members.push(volume);
        } else {
            alone.push(Class { members: vec![volume], group: None });
        }
    }
    let groups = [first, second].into_iter().filter(|class| !class.members.is_empty());
    let classes: Vec<Class> = groups.chain(alone).collect();
    for (number, class) in classes.iter().enumerate() {
        class.members.iter().for_each(|member| places[*member].class = number);
    }
    Ledger::new(granule, places, classes)
}
