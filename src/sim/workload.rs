//! Random clients of the volumes, each operation of which the oracle hears of.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::action::{Action, Stage};
use super::engine::{Outcome, Refusal, Room, Running, Volume, Zeroing};
use super::oracle::{Oracle, Violation};
use super::plan::Script;
use super::stamp::Stamp;
use crate::env::Env;
use crate::env::sim::faults::Errors;
use crate::env::sim::rng::Rng;
use crate::env::sim::{SimEnv, Struck};

/// How often each kind of operation is drawn, relative to the others.
#[derive(Clone, Debug)]
struct Weights {
    write: u32,
    zero: u32,
    read: u32,
    flush: u32,
    commit: u32,
    settle: u32,
    pause: u32,
}

/// What the clients of one run tend to do.
#[derive(Clone, Debug)]
pub struct Habits {
    clients: u64,
    /// Operations of all clients in one round.
    pub operations: u64,
    weights: Weights,
    fua_ppm: u32,
    /// How often a request is drawn from the hot range, and how much of the volume that is.
    hot_ppm: u32,
    hot_share: u64,
    /// How often a request is of the largest sizes.
    large_ppm: u32,
    /// The longest of the others, in granules.
    usual_max: u64,
    /// How often offset and length are multiples of [`Habits::aligned_to`] granules.
    aligned_ppm: u32,
    aligned_to: u32,
    pause_ns: u64,
    /// Where writes shall not be neighbours, so that their groups have several parts: how many
    /// granules there are from one to the next.
    pub apart: Option<u64>,
}

impl Habits {
    /// Draws habits: each seed does some things often, and some never.
    ///
    /// Where epochs are long, `apart` says how many granules are between writes that are not
    /// neighbours.
    pub fn draw(rng: &mut Rng, apart: Option<u64>) -> Self {
        let habits = Self::draw_any(rng);
        match apart {
            Some(apart) if rng.chance(500_000) => habits.scattered(rng, apart),
            _ => habits,
        }
    }

    /// Small writes all over the place and few commits: groups of many records, and so of several
    /// parts.
    fn scattered(self, rng: &mut Rng, apart: u64) -> Self {
        let weights =
            Weights { write: 400, zero: 0, read: 1, flush: 1, commit: 0, settle: 0, pause: 0 };
        Self {
            operations: rng.between(300, 900),
            weights,
            fua_ppm: 0,
            hot_ppm: 0,
            large_ppm: 0,
            usual_max: 1,
            aligned_ppm: 0,
            apart: Some(apart),
            ..self
        }
    }

    /// The same with pauses, so that clients are still at work when a lease ends, and with writes
    /// that are durable at once.
    #[must_use]
    pub fn slower(self, lease: Duration) -> Self {
        let weights = Weights { pause: 20, ..self.weights };
        let pause_ns = lease.as_nanos() as u64 / 4;
        Self { weights, fua_ppm: 200_000, pause_ns, ..self }
    }

    fn draw_any(rng: &mut Rng) -> Self {
        let weights = Weights {
            write: rng.pick(&[20, 50, 80]),
            zero: rng.pick(&[0, 2, 10, 25]),
            read: rng.pick(&[2, 10, 40]),
            flush: rng.pick(&[0, 2, 8, 30]),
            commit: rng.pick(&[0, 0, 2]),
            settle: rng.pick(&[0, 1, 5]),
            pause: rng.pick(&[0, 2, 20]),
        };
        Self {
            clients: rng.pick(&[1, 2, 3, 4, 6, 12]),
            operations: rng.log_between(10, 400),
            weights,
            fua_ppm: rng.pick(&[0, 0, 30_000, 200_000]),
            hot_ppm: rng.pick(&[0, 500_000, 900_000]),
            hot_share: rng.pick(&[2, 4, 16, 64]),
            large_ppm: rng.pick(&[0, 20_000, 200_000]),
            usual_max: 64,
            aligned_ppm: rng.pick(&[0, 500_000, 1_000_000]),
            aligned_to: rng.pick(&[1, 8, 8, 64]),
            pause_ns: rng.log_between(1_000, 20_000_000_000),
            apart: None,
        }
    }
}

/// What the clients share.
struct Clients<R: Running> {
    stage: Stage<R>,
    habits: Habits,
    /// The round, and what is done in it.
    round: u32,
    script: Rc<Script>,
    /// Actions drawn.
    drawn: Cell<u64>,
    /// Whether every operation must end within [`OPERATION_TIME`].
    bounded: bool,
    failures: Cell<u32>,
}

/// How long an operation takes at most once nothing fails any more.
const OPERATION_TIME: Duration = Duration::from_secs(120);

/// What the oracle knows, which outlives every crash.
pub struct Models {
    /// One for each volume.
    pub oracles: Vec<RefCell<Oracle>>,
    /// The unit of offsets and lengths, in bytes.
    pub granule: usize,
    last_stamp: Cell<Stamp>,
    /// Operations that ended.
    pub ended: Cell<u64>,
    room: Room,
    /// The extents of volumes that a write was ever sent to.
    touched: RefCell<BTreeSet<(usize, u64)>>,
}

impl Models {
    /// Volumes of these sizes, never written.
    pub fn new(volumes: &[u64], granule: usize, room: Room) -> Self {
        let oracle = |(size, number): (&u64, u8)| {
            RefCell::new(Oracle::new(number, granule, (size / granule as u64) as u32))
        };
        let oracles = volumes.iter().zip(0..).map(oracle).collect();
        let (last_stamp, ended) = (Cell::new(0), Cell::new(0));
        Self { oracles, granule, last_stamp, ended, room, touched: RefCell::default() }
    }

    /// The same knowledge, for a machine that parts from this one's.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            oracles: self.oracles.clone(),
            last_stamp: self.last_stamp.clone(),
            ended: Cell::new(0),
            touched: self.touched.clone(),
            ..*self
        }
    }

    /// A hash of what the oracle knows.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.oracles.iter().for_each(|oracle| oracle.borrow().hash(&mut hasher));
        hasher.finish()
    }

    /// Images that were let pass, because to explain them would have taken too long.
    pub fn unexplained(&self) -> u64 {
        self.oracles.iter().map(|oracle| oracle.borrow().unexplained()).sum()
    }

    /// Takes over what was learnt while checking an image on another machine.
    pub fn absorb(&self, fork: &Models) {
        let pairs = self.oracles.iter().zip(&fork.oracles);
        pairs.for_each(|(mine, other)| mine.borrow_mut().count_unexplained(&other.borrow()));
    }

    /// A write is sent to these bytes.
    pub(super) fn touch(&self, volume: usize, bytes: Range<u64>) {
        let extents = bytes.start / self.room.extent..=(bytes.end - 1) / self.room.extent;
        self.touched.borrow_mut().extend(extents.map(|extent| (volume, extent)));
    }

    /// Whether the data may be more than there is room for.
    fn may_be_full(&self) -> bool {
        self.touched.borrow().len() > self.room.extents
    }

    pub(super) fn next_stamp(&self) -> Stamp {
        self.last_stamp.set(self.last_stamp.get() + 1);
        self.last_stamp.get()
    }

    /// Reads whole volumes and checks that a crash may have left them so.
    pub async fn verify<V: Volume>(&self, volumes: &[V]) -> Result<(), String> {
        for ((volume, model), number) in volumes.iter().zip(&self.oracles).zip(0..) {
            let granules = model.borrow().granules();
            let mut image = Vec::with_capacity(granules as usize * self.granule);
            let most = (volume.request_max() / self.granule as u64) as u32;
            for start in (0..granules).step_by(most as usize) {
                let count = most.min(granules - start) as usize;
                let offset = u64::from(start) * self.granule as u64;
                let bytes = volume.read(offset, count * self.granule).await;
                let bytes = bytes.map_err(|why| {
                    format!("volume {number} cannot be read at {offset} after recovery: {why:?}")
                })?;
                image.extend_from_slice(&bytes);
            }
            let checked = model.borrow_mut().recovered(&image);
            checked.map_err(|Violation(what)| what)?;
        }
        Ok(())
    }
}

/// Runs the clients until they have done what they should, or until a promise is broken.
pub(super) async fn run<R: Running>(
    env: SimEnv,
    running: R,
    models: Rc<Models>,
    habits: Habits,
    bounded: bool,
    (round, script): (u32, Rc<Script>),
) -> Result<(), String> {
    let clients = Rc::new(Clients {
        stage: Stage::new(env, running, models),
        round,
        script,
        drawn: Cell::new(0),
        failures: Cell::new(0),
        habits,
        bounded,
    });
    // Each client is a task of its own, so that the scheduler chooses among them.
    let (sender, mut ended) = mpsc::unbounded_channel();
    for _ in 0..clients.script.plan.clients(clients.habits.clients) {
        let task = client(Rc::clone(&clients));
        let sender = sender.clone();
        clients.stage.env.spawn(async move { drop(sender.send(task.await)) });
    }
    drop(sender);
    while let Some(result) = ended.recv().await {
        result?;
    }
    Ok(())
}

/// Failures after which the clients of a failing machine go home.
const FAILURES_MAX: u32 = 20;

async fn client<R: Running>(clients: Rc<Clients<R>>) -> Result<(), String> {
    let (stage, drawn) = (&clients.stage, &clients.drawn);
    while clients.failures.get() < FAILURES_MAX
        && let Some(action) = clients.action(drawn.get())
    {
        drawn.set(drawn.get() + 1);
        clients.script.begin(clients.round, &action);
        let before = stage.env.struck();
        let result = clients.perform(action).await;
        stage.models.ended.set(stage.models.ended.get() + 1);
        let refused = match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => clients.judge(&before, why),
            Err(Violation(what)) => Err(what),
        };
        if let Err(what) = refused {
            drawn.set(u64::MAX);
            return Err(what);
        }
    }
    Ok(())
}

impl<R: Running> Clients<R> {
    /// Whether an operation may have failed so: only faults that lead to such errors, and that
    /// struck, excuse it. `before` is what had struck when it was sent.
    fn judge(&self, before: &Struck, why: Refusal) -> Result<(), String> {
        let now = self.stage.env.struck();
        let since = |kind| now.that_lead_to(kind) > before.that_lead_to(kind);
        let unread = now.that_lead_to(Errors::Reads) > 0;
        let given_up = self.stage.running.has_given_up();
        let stopped = given_up || now.that_lead_to(Errors::Changes) > 0;
        match why {
            // A failed device takes its free extents with it, and what cannot be read keeps its
            // pair from being settled.
            Refusal::NoSpace if self.stage.models.may_be_full() || stopped || unread => Ok(()),
            Refusal::NoSpace => {
                Err(String::from("no space, though all that was ever written fits the pool"))
            }
            Refusal::Failed(_) if stopped || since(Errors::Reads) => {
                self.failures.set(self.failures.get() + 1);
                Ok(())
            }
            Refusal::Failed(why) => Err(format!("an operation failed, and no device had: {why}")),
        }
    }

    /// The next action, where `index` were begun: the plan's, or a drawn one.
    fn action(&self, index: u64) -> Option<Action> {
        let plan = &self.script.plan;
        if let Some(rounds) = &plan.rounds {
            return rounds.get(&self.round)?.get(index as usize).map(|action| self.fit(action));
        }
        let draw = || self.draw(&mut plan.action(self.round, index));
        (index < self.habits.operations).then(draw)
    }

    /// The action, or the nearest to it that there is, where a plan is of another version or seed.
    fn fit(&self, action: &Action) -> Action {
        let mut action = action.clone();
        let place = match &mut action {
            Action::Write { volume, range, .. }
            | Action::Zero { volume, range, .. }
            | Action::Read { volume, range } => Some((volume, range)),
            Action::Flush(volume) => {
                *volume %= self.stage.volumes.len();
                None
            }
            Action::Commit | Action::Settle | Action::Pause(_) => None,
        };
        if let Some((volume, range)) = place {
            *volume %= self.stage.volumes.len();
            let granules = self.stage.models.oracles[*volume].borrow().granules();
            let most = self.stage.volumes[*volume].request_max() / self.stage.models.granule as u64;
            *range = fitted(range, granules, most.min(granules.into()) as u32);
        }
        action
    }

    /// One action of a random kind.
    fn draw(&self, rng: &mut Rng) -> Action {
        let volume = rng.below(self.stage.volumes.len() as u64) as usize;
        let weights = &self.habits.weights;
        let all = [
            weights.write,
            weights.zero,
            weights.read,
            weights.flush,
            weights.commit,
            weights.settle,
            weights.pause,
        ];
        let mut drawn = rng.below(all.iter().map(|&w| u64::from(w)).sum());
        let kind = all.iter().position(|&weight| {
            let hit = drawn < u64::from(weight);
            drawn = drawn.saturating_sub(u64::from(weight));
            hit
        });
        match kind {
            Some(0) => {
                let range = self.range(volume, rng);
                Action::Write { volume, range, fua: rng.chance(self.habits.fua_ppm) }
            }
            Some(1) => {
                let range = self.range(volume, rng);
                let fua = rng.chance(self.habits.fua_ppm);
                let ways = [Zeroing::Trim, Zeroing::Trim, Zeroing::Hole, Zeroing::NoHole];
                Action::Zero { volume, range, how: rng.pick(&ways), fua }
            }
            Some(2) => Action::Read { volume, range: self.range(volume, rng) },
            Some(3) => Action::Flush(volume),
            Some(4) => Action::Commit,
            Some(5) => Action::Settle,
            _ => Action::Pause(rng.between(1, self.habits.pause_ns)),
        }
    }

    /// Carries out one action, which must not take too long where all is well.
    async fn perform(&self, action: Action) -> Result<Outcome<()>, Violation> {
        let (pause, sent) = (matches!(action, Action::Pause(_)), self.stage.env.lived());
        let result = self.stage.perform(action).await;
        let took = Duration::from_nanos(self.stage.env.lived() - sent);
        if self.bounded && !pause && took > OPERATION_TIME {
            return Err(Violation(format!("an operation took {took:?}, and nothing failed")));
        }
        result
    }

    /// A range of granules to work on.
    fn range(&self, volume: usize, rng: &mut Rng) -> Range<u32> {
        let habits = &self.habits;
        let total = u64::from(self.stage.models.oracles[volume].borrow().granules());
        let most = self.stage.volumes[volume].request_max() / self.stage.models.granule as u64;
        let most = most.min(total);
        let len = if rng.chance(habits.large_ppm) {
            rng.between(1, most)
        } else {
            rng.log_between(1, most.min(habits.usual_max))
        };
        let hot = rng.chance(habits.hot_ppm);
        let within = if hot { (total / habits.hot_share).max(1) } else { total };
        let start = rng.below(within);
        let unit = u64::from(if rng.chance(habits.aligned_ppm) { habits.aligned_to } else { 1 });
        let start = start / unit * unit;
        let start = habits.apart.map_or(start, |apart| start / apart * apart);
        let end = (start + len.next_multiple_of(unit)).min(total).min(start + most);
        start as u32..end as u32
    }
}

/// The range, no longer than `most`, and moved to where it is within so many granules.
fn fitted(range: &Range<u32>, granules: u32, most: u32) -> Range<u32> {
    let len = (range.end - range.start).min(most);
    let last = granules - len;
    let start = if range.start > last { range.start % (last + 1) } else { range.start };
    start..start + len
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what fits stays as it is, and all else is made to fit, whatever it is.
    #[test]
    fn ranges_are_fitted() {
        for (start, len, granules, most) in (0..24).flat_map(|start| {
            (1..12).flat_map(move |len| {
                (1..16).flat_map(move |granules| {
                    (1..=granules).map(move |most| (start, len, granules, most))
                })
            })
        }) {
            let range = start..start + len;
            let fitted = fitted(&range, granules, most);
            assert_eq!(fitted.len(), range.len().min(most as usize));
            assert!(fitted.end <= granules);
            let fits = range.end <= granules && len <= most;
            assert_eq!(fits, fitted == range);
        }
    }
}
