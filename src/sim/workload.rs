//! Random clients of the volumes, each operation of which the oracle hears of.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::engine::{Outcome, Refusal, Room, Running, Volume, Zeroing};
use super::oracle::{Oracle, Violation};
use super::stamp::{self, Stamp};
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
    /// How often offset and length are multiples of [`Habits::aligned_to`] granules.
    aligned_ppm: u32,
    aligned_to: u32,
    pause_ns: u64,
}

impl Habits {
    /// Draws habits: each seed does some things often, and some never.
    pub fn draw(rng: &mut Rng) -> Self {
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
            aligned_ppm: rng.pick(&[0, 500_000, 1_000_000]),
            aligned_to: rng.pick(&[1, 8, 8, 64]),
            pause_ns: rng.log_between(1_000, 20_000_000_000),
        }
    }
}

/// What the clients share.
pub struct Clients<R: Running> {
    env: SimEnv,
    running: R,
    volumes: Vec<R::Volume>,
    models: Rc<Models>,
    habits: Habits,
    left: Cell<u64>,
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
    fn touch(&self, volume: usize, bytes: Range<u64>) {
        let extents = bytes.start / self.room.extent..=(bytes.end - 1) / self.room.extent;
        self.touched.borrow_mut().extend(extents.map(|extent| (volume, extent)));
    }

    /// Whether the data may be more than there is room for.
    fn may_be_full(&self) -> bool {
        self.touched.borrow().len() > self.room.extents
    }

    fn next_stamp(&self) -> Stamp {
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
pub async fn run<R: Running>(
    env: SimEnv,
    running: R,
    models: Rc<Models>,
    habits: Habits,
    bounded: bool,
    mut rng: Rng,
) -> Result<(), String> {
    let clients = Rc::new(Clients {
        volumes: running.volumes(),
        left: Cell::new(habits.operations),
        failures: Cell::new(0),
        env,
        running,
        models,
        habits,
        bounded,
    });
    // Each client is a task of its own, so that the scheduler chooses among them.
    let (sender, mut ended) = mpsc::unbounded_channel();
    for _ in 0..clients.habits.clients {
        let task = client(Rc::clone(&clients), rng.fork());
        let sender = sender.clone();
        clients.env.spawn(async move { drop(sender.send(task.await)) });
    }
    drop(sender);
    while let Some(result) = ended.recv().await {
        result?;
    }
    Ok(())
}

/// Failures after which the clients of a failing machine go home.
const FAILURES_MAX: u32 = 20;

async fn client<R: Running>(clients: Rc<Clients<R>>, mut rng: Rng) -> Result<(), String> {
    while clients.left.get() > 0 && clients.failures.get() < FAILURES_MAX {
        clients.left.set(clients.left.get() - 1);
        let before = clients.env.struck();
        let result = clients.operation(&mut rng).await;
        clients.models.ended.set(clients.models.ended.get() + 1);
        let refused = match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => clients.judge(&before, why),
            Err(Violation(what)) => Err(what),
        };
        if let Err(what) = refused {
            clients.left.set(0);
            return Err(what);
        }
    }
    Ok(())
}

impl<R: Running> Clients<R> {
    /// Whether an operation may have failed so: only faults that lead to such errors, and that
    /// struck, excuse it. `before` is what had struck when it was sent.
    fn judge(&self, before: &Struck, why: Refusal) -> Result<(), String> {
        let now = self.env.struck();
        let since = |kind| now.that_lead_to(kind) > before.that_lead_to(kind);
        let stopped = now.that_lead_to(Errors::Changes) > 0;
        match why {
            // A failed device takes its free extents with it.
            Refusal::NoSpace if self.models.may_be_full() || stopped => Ok(()),
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

    /// The operation was sent then, and has ended: not too late?
    fn check_time(&self, sent: u64) -> Result<(), Violation> {
        let took = Duration::from_nanos(self.env.lived() - sent);
        if self.bounded && took > OPERATION_TIME {
            return Err(Violation(format!("an operation took {took:?}, and nothing failed")));
        }
        Ok(())
    }

    /// One operation of a random kind.
    async fn operation(&self, rng: &mut Rng) -> Result<Outcome<()>, Violation> {
        let volume = rng.below(self.volumes.len() as u64) as usize;
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
        let sent = self.env.lived();
        let result = match kind {
            Some(0) => self.write(volume, rng).await,
            Some(1) => self.zero(volume, rng).await,
            Some(2) => self.read(volume, rng).await?,
            Some(3) => self.flush(volume).await,
            Some(4) => self.commit().await,
            Some(5) => self.running.settle().await,
            _ => {
                let pause = rng.between(1, self.habits.pause_ns);
                self.env.sleep(Duration::from_nanos(pause)).await;
                return Ok(Ok(()));
            }
        };
        self.check_time(sent)?;
        Ok(result)
    }

    /// A range of granules to work on.
    fn range(&self, volume: usize, rng: &mut Rng) -> Range<u32> {
        let habits = &self.habits;
        let total = u64::from(self.models.oracles[volume].borrow().granules());
        let most = self.volumes[volume].request_max() / self.models.granule as u64;
        let most = most.min(total);
        let len = if rng.chance(habits.large_ppm) {
            rng.between(1, most)
        } else {
            rng.log_between(1, most.min(64))
        };
        let hot = rng.chance(habits.hot_ppm);
        let within = if hot { (total / habits.hot_share).max(1) } else { total };
        let start = rng.below(within);
        let unit = u64::from(if rng.chance(habits.aligned_ppm) { habits.aligned_to } else { 1 });
        let start = start / unit * unit;
        let end = (start + len.next_multiple_of(unit)).min(total).min(start + most);
        start as u32..end as u32
    }

    fn offset(&self, range: &Range<u32>) -> u64 {
        u64::from(range.start) * self.models.granule as u64
    }

    async fn write(&self, volume: usize, rng: &mut Rng) -> Outcome<()> {
        let range = self.range(volume, rng);
        let fua = rng.chance(self.habits.fua_ppm);
        let stamp = self.models.next_stamp();
        let granule = self.models.granule;
        let mut data = vec![0; range.len() * granule];
        stamp::fill(&mut data, granule, volume as u8, range.start, stamp);
        let offset = self.offset(&range);
        self.models.touch(volume, offset..offset + data.len() as u64);
        let model = &self.models.oracles[volume];
        self.env.note("client write", offset, data.len() as u64);
        model.borrow_mut().send(stamp, range, false, fua);
        let result = self.volumes[volume].write(offset, data, fua).await;
        model.borrow_mut().end(stamp, result.is_ok());
        self.env.note("client write end", u64::from(stamp), u64::from(result.is_ok()));
        result
    }

    async fn zero(&self, volume: usize, rng: &mut Rng) -> Outcome<()> {
        let range = self.range(volume, rng);
        let fua = rng.chance(self.habits.fua_ppm);
        let how = rng.pick(&[Zeroing::Trim, Zeroing::Trim, Zeroing::Hole, Zeroing::NoHole]);
        let granule = self.models.granule as u64;
        let (offset, len) = (self.offset(&range), range.len() as u64 * granule);
        self.models.touch(volume, offset..offset + len);
        let model = &self.models.oracles[volume];
        self.env.note("client zero", offset, len);
        let mut stamps = Vec::new();
        for piece in self.volumes[volume].zeroed(offset, len, how) {
            let stamp = self.models.next_stamp();
            let granules = (piece.start / granule) as u32..(piece.end / granule) as u32;
            model.borrow_mut().send(stamp, granules, true, fua);
            stamps.push(stamp);
        }
        let result = self.volumes[volume].zero(offset, len, how, fua).await;
        for stamp in stamps {
            model.borrow_mut().end(stamp, result.is_ok());
            self.env.note("client zero end", u64::from(stamp), u64::from(result.is_ok()));
        }
        result
    }

    async fn read(&self, volume: usize, rng: &mut Rng) -> Result<Outcome<()>, Violation> {
        let range = self.range(volume, rng);
        let model = &self.models.oracles[volume];
        let sent = model.borrow_mut().send_other();
        let len = range.len() * self.models.granule;
        let read = self.volumes[volume].read(self.offset(&range), len).await;
        match read {
            Ok(bytes) => {
                assert!(bytes.len() == len, "a read of {len} bytes returned {}", bytes.len());
                model.borrow_mut().end_read(&sent, range.start, &bytes)?;
                Ok(Ok(()))
            }
            Err(why) => Ok(Err(why)),
        }
    }

    async fn flush(&self, volume: usize) -> Outcome<()> {
        let model = &self.models.oracles[volume];
        let sent = model.borrow_mut().send_other();
        self.env.note("client flush", volume as u64, 0);
        let result = self.volumes[volume].flush().await;
        if result.is_ok() {
            model.borrow_mut().end_flush(&sent);
        }
        self.env.note("client flush end", volume as u64, u64::from(result.is_ok()));
        result
    }

    async fn commit(&self) -> Outcome<()> {
        let models = &self.models.oracles;
        let sent: Vec<_> = models.iter().map(|model| model.borrow_mut().send_other()).collect();
        let result = self.running.commit().await;
        if result.is_ok() {
            models.iter().zip(&sent).for_each(|(model, sent)| model.borrow_mut().end_flush(sent));
        }
        result
    }
}
