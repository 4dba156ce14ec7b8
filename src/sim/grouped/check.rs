//! Images after a crash, and when clients may go on; groups deleted and made again.
//!
//! The volumes of a class, one of whose units crashed, are *broken*: clients of the others go on as
//! they can. Once all units serve, no new request is sent; when the last has ended every volume is
//! flushed and read by a new handle, and the images, all of them by handles that are still good,
//! must be one cut. That is what the models go on from, and clients with these handles.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::clients::Image;
use super::{Run, Unit};
use crate::env::Env as _;
use crate::env::sim::SimEnv;
use crate::mds::client::groups;
use crate::mds::groups::rows::Deletion;
use crate::sim::engine::Running as _;
use crate::sim::flipside::Served;
use crate::sim::oracle::Violation;

/// Whether a class is a group now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is a volume by itself.
    #[default]
    Alone,
    /// It serves.
    Serving,
    /// It is being deleted, in the job of that number.
    Deleting(u64),
    /// It is deleted.
    Gone,
    /// It is being made.
    Making(u64),
    /// It is made; not every unit may know.
    Made,
}

/// How it stands with a class.
#[derive(Debug, Default)]
pub(super) struct Check {
    pub stage: Stage,
    broken: bool,
    paused: bool,
    /// The number of the check whose images are being read.
    reading: Option<u64>,
    /// How often each unit had dropped what was pending when clients went on.
    resets: BTreeMap<usize, u64>,
}

impl Check {
    /// Of a class of volumes that were never written, and nobody has opened.
    pub fn new(is_group: bool) -> Self {
        let stage = if is_group { Stage::Gone } else { Stage::Alone };
        Self { stage, broken: true, ..Self::default() }
    }

    pub fn is_well(&self) -> bool {
        !self.broken && matches!(self.stage, Stage::Alone | Stage::Serving)
    }
}

/// How often a job is begun again that may be lost, and how often what waits goes on, when it is
/// looked at.
const AGAIN_PPM: u32 = 20_000;
const GO_ON_PPM: u32 = 200_000;
/// The first client of the server that jobs are.
const JOBS: usize = 10;

impl Run {
    /// Clients may not know what a unit had that was not committed.
    pub(super) fn broken(&mut self, number: usize) {
        let classes: Vec<usize> = {
            let ledger = self.shared.ledger.borrow();
            let of_unit = ledger.places.iter().filter(|place| place.unit == number);
            of_unit.map(|place| place.class).collect()
        };
        classes.into_iter().for_each(|class| self.break_class(class));
    }

    fn break_class(&mut self, class: usize) {
        let check = &mut self.checks[class];
        (check.broken, check.paused, check.reading) = (true, false, None);
    }

    /// A unit has stopped as it should: what it acknowledged is durable, unless its groups went
    /// back since clients were told.
    pub(super) fn stopped(&mut self, number: usize) {
        let resets = self.units[number].resets();
        let kept = self.volumes_of(number).into_iter().all(|volume| {
            let class = self.shared.ledger.borrow().places[volume].class;
            let check = &self.checks[class];
            !check.broken && check.resets.get(&number) == Some(&resets)
        });
        if kept {
            self.shared.ledger.borrow_mut().settled(number);
        } else {
            self.broken(number);
        }
    }

    /// The handle by which clients reach a volume now.
    pub(super) fn handle(&self, volume: usize) -> Option<(SimEnv, Served)> {
        let (unit, class) = {
            let place = &self.shared.ledger.borrow().places[volume];
            (place.unit, place.class)
        };
        if self.checks[class].paused || self.shared.lost.borrow()[volume] {
            return None;
        }
        let (env, _) = self.units[unit].serving()?;
        Some((env, self.handles[volume].clone()?))
    }

    /// Whether clients may not know all that happened to a volume.
    pub(super) fn is_broken(&self, volume: usize) -> bool {
        self.checks[self.shared.ledger.borrow().places[volume].class].broken
    }

    pub(super) fn forget_handles(&mut self, number: usize) {
        let volumes = self.volumes_of(number);
        self.shared.images.borrow_mut().retain(|(_, volume), _| !volumes.contains(volume));
        volumes.into_iter().for_each(|volume| self.handles[volume] = None);
    }

    /// A unit serves: clients come, where nothing is lost.
    pub(super) fn came_up(&mut self, number: usize) {
        let resets = self.units[number].resets();
        for volume in self.volumes_of(number) {
            let (class, nth) = {
                let place = &self.shared.ledger.borrow().places[volume];
                (place.class, place.nth)
            };
            if !self.checks[class].broken
                && let Some((_, serving)) = self.units[number].serving()
            {
                self.handles[volume] = Some(serving.volumes()[nth].clone());
                self.checks[class].resets.insert(number, resets);
            }
        }
    }

    /// Goes on with what is broken, and with groups that are deleted or made.
    pub(super) fn look(&mut self) -> Result<(), String> {
        if self.calm {
            self.find_stale();
        }
        for class in 0..self.checks.len() {
            self.note_lost(class);
            self.go_on_with_group(class);
            if self.checks[class].broken {
                self.mend(class)?;
            }
        }
        if !self.is_well() {
            self.well_since = self.now;
        }
        Ok(())
    }

    /// Volumes whose handles are not good any more, though nobody has tried.
    fn find_stale(&self) {
        for (volume, handle) in self.handles.iter().enumerate() {
            if handle.as_ref().is_some_and(|handle| !handle.is_current()) {
                self.shared.lost.borrow_mut()[volume] = true;
            }
        }
    }

    /// Clients were told that the group went back.
    fn note_lost(&mut self, class: usize) {
        let members = self.members(class);
        for volume in members {
            if std::mem::take(&mut self.shared.lost.borrow_mut()[volume]) {
                self.handles[volume] = None;
                self.checks[class].broken = true;
            }
        }
    }

    fn members(&self, class: usize) -> Vec<usize> {
        self.shared.ledger.borrow().classes[class].members.clone()
    }

    fn mend(&mut self, class: usize) -> Result<(), String> {
        let members = self.members(class);
        let units: Vec<usize> = {
            let ledger = self.shared.ledger.borrow();
            members.iter().map(|member| ledger.places[*member].unit).collect()
        };
        if units.iter().any(|unit| self.units[*unit].serving().is_none()) {
            self.checks[class].reading = None;
            return Ok(());
        }
        if !self.checks[class].paused {
            self.checks[class].paused = self.calm || self.rng.chance(GO_ON_PPM);
            return Ok(());
        }
        if self.shared.is_busy(&members) {
            return Ok(());
        }
        match self.checks[class].reading {
            None => {
                self.begin_reading(class, &members);
                Ok(())
            }
            Some(check) => self.end_reading(class, &members, check),
        }
    }

    fn begin_reading(&mut self, class: usize, members: &[usize]) {
        let number = self.next_job();
        self.checks[class].reading = Some(number);
        let group = self.shared.ledger.borrow().classes[class].group.clone();
        let made = group.filter(|_| self.checks[class].stage == Stage::Made);
        for &volume in members {
            let place = self.shared.ledger.borrow().places[volume].clone();
            let Some((env, slot)) = self.units[place.unit].slot() else { continue };
            let (shared, made) = (Rc::clone(&self.shared), made.clone());
            let handle = env.clone();
            env.spawn(async move {
                if let Some(name) = made {
                    served(&handle, number, volume, &name).await;
                }
                let open = move || {
                    let slot = slot.borrow();
                    slot.as_ref().map(|serving| serving.volumes()[place.nth].clone())
                };
                shared.read_whole(handle, open, volume, number).await;
            });
        }
    }

    fn end_reading(&mut self, class: usize, members: &[usize], number: u64) -> Result<(), String> {
        let images: Option<Vec<Image>> = {
            let images = self.shared.images.borrow();
            members.iter().map(|member| images.get(&(number, *member)).cloned()).collect()
        };
        let Some(images) = images else { return Ok(()) };
        self.shared.images.borrow_mut().retain(|(of, _), _| *of != number);
        if !images.iter().all(|(handle, _)| handle.is_current()) {
            // The group went back meanwhile.
            self.checks[class].reading = None;
            return Ok(());
        }
        let (handles, bytes): (Vec<_>, Vec<_>) = images.into_iter().unzip();
        let mut ledger = self.shared.ledger.borrow_mut();
        let was_group = ledger.has_group(class);
        let seen = ledger.recovered(class, &bytes).map_err(|Violation(what)| what)?;
        if self.checks[class].stage == Stage::Made {
            ledger.begin_group(class, seen);
        }
        drop(ledger);
        self.images += 1;
        self.seen.cuts += u64::from(was_group);
        let check = &mut self.checks[class];
        if check.stage == Stage::Made {
            check.stage = Stage::Serving;
        }
        (check.broken, check.paused, check.reading) = (false, false, None);
        for (volume, handle) in members.iter().zip(handles) {
            self.handles[*volume] = Some(handle);
            let unit = self.shared.ledger.borrow().places[*volume].unit;
            self.checks[class].resets.insert(unit, self.units[unit].resets());
        }
        Ok(())
    }

    fn next_job(&mut self) -> u64 {
        self.jobs += 1;
        self.jobs
    }

    /// A group is deleted, to be made again.
    pub(super) fn regroup(&mut self) {
        let class = self.rng.below(self.checks.len() as u64) as usize;
        if self.checks[class].stage == Stage::Serving {
            self.shared.ledger.borrow_mut().end_group(class);
            let job = self.next_job();
            self.checks[class].stage = Stage::Deleting(job);
            self.begin_job(class, job, false);
        }
    }

    fn go_on_with_group(&mut self, class: usize) {
        let done = |job| self.shared.done.borrow().contains(&job);
        match self.checks[class].stage {
            Stage::Deleting(job) if done(job) => self.checks[class].stage = Stage::Gone,
            Stage::Making(job) if done(job) => {
                self.checks[class].stage = Stage::Made;
                self.seen.regrouped += 1;
                self.break_class(class);
            }
            Stage::Gone
                if self.units.iter().any(|unit| unit.serving().is_some())
                    && (self.calm || self.rng.chance(GO_ON_PPM)) =>
            {
                let job = self.next_job();
                self.checks[class].stage = Stage::Making(job);
                self.begin_job(class, job, true);
            }
            Stage::Alone | Stage::Serving | Stage::Made | Stage::Gone => {}
            stage @ (Stage::Deleting(_) | Stage::Making(_)) => {
                if self.rng.chance(AGAIN_PPM) {
                    let (job, making) = (self.next_job(), matches!(stage, Stage::Making(_)));
                    self.checks[class].stage =
                        if making { Stage::Making(job) } else { Stage::Deleting(job) };
                    self.begin_job(class, job, making);
                }
            }
        }
    }

    /// Has any unit's machine make or delete a group; a job that was begun later ends it.
    fn begin_job(&mut self, class: usize, job: u64, making: bool) {
        let Some((env, _)) = self.units.iter().find_map(Unit::serving) else { return };
        let ledger = self.shared.ledger.borrow();
        let name = ledger.classes[class].group.clone().expect("a group");
        let volumes = ledger.classes[class].members.iter().map(|member| {
            let place = &ledger.places[*member];
            (Some(super::pool(place.unit)), format!("vol{}", place.nth))
        });
        let volumes: Vec<_> = volumes.collect();
        self.shared.jobs.borrow_mut().insert(class, job);
        let shared = Rc::clone(&self.shared);
        let handle = env.clone();
        env.spawn(async move {
            let current = || shared.jobs.borrow().get(&class) == Some(&job);
            while current() && !changed(&handle, job, &name, &volumes, making, &current).await {
                handle.sleep(Duration::from_millis(10)).await;
            }
            if current() {
                shared.done.borrow_mut().insert(job);
            }
        });
    }
}

/// Whether the group is there, or is not, as it shall; if not, something is done about it, where
/// the job is `current` still.
async fn changed(
    env: &SimEnv,
    job: u64,
    name: &str,
    volumes: &[(Option<crate::format::ids::PoolId>, String)],
    making: bool,
    current: impl Fn() -> bool,
) -> bool {
    let link = || env.link(JOBS + job as usize);
    let Ok((groups, _)) = groups::groups_at(env, link()).await else { return false };
    let there = groups.iter().find(|group| group.name == name);
    match (there, making) {
        (Some(_), true) | (None, false) => return true,
        _ if !current() => {}
        (None, true) => drop(groups::create_at(env, link(), name, volumes).await),
        (Some(group), false) => {
            let deletion = Deletion { group: group.group, force: false };
            drop(groups::delete_at(env, link(), deletion).await);
        }
    }
    false
}

/// Returns when every unit of a group serves it.
async fn served(env: &SimEnv, check: u64, volume: usize, name: &str) {
    loop {
        let link = env.link(JOBS + (check << 8) as usize + volume);
        if let Ok((groups, _)) = groups::groups_at(env, link).await
            && groups.iter().any(|group| group.name == name && group.trouble.is_none())
        {
            return;
        }
        env.sleep(Duration::from_millis(20)).await;
    }
}
