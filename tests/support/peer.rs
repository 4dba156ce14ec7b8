//! A unit in a consistency group with another one, whose part and whose coordinator are played
//! here: the real state machine of the coordinator, and a member that does what the test says.

#![allow(dead_code, reason = "no test uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use flipside::env::Env;
use flipside::env::sim::{Crash, Limit, Machine, SimEnv};
use flipside::format::group::TransactionId;
use flipside::format::ids::{Incarnation, PoolId, VolumeId};
use flipside::format::layout::Geometry;
use flipside::mds::error::MdsError;
use flipside::sim::engine::{Running as _, Volume as _};
use flipside::sim::flipside::{Flipside, Served, Serving};
use flipside::txn::coordinator::{Coordinator as Machinery, Decision, Group};
use flipside::txn::participant::{Action, Progress, Standing};
use flipside::txn::{Atomic, COORDINATOR, GroupId, Order, Phase, Report, Stage};
use flipside::unit::{Config, Coordinator};
use tokio::sync::Notify;

use crate::simulated::{formatted, started};

pub const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 5_000_000 };
pub const BLOCK: u64 = 512;
pub const EXTENT: u64 = 32 * BLOCK;
pub const GROUP: GroupId = GroupId(7);
pub const OURS: PoolId = PoolId([1; 16]);
pub const PEER: PoolId = PoolId([2; 16]);

pub fn engine() -> Flipside {
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
    let config = Config {
        commit_interval: None,
        doubt_timeout: Duration::from_secs(5),
        mds_timeout: Some(Duration::from_secs(60)),
        ..Config::default()
    };
    Flipside::plain(geometry, 32, 8, 4 * EXTENT, config)
}

/// The coordinator and the other member; goes on over crashes of the unit.
pub struct World {
    pub engine: Flipside,
    pub machinery: RefCell<Machinery>,
    /// What the coordinator has stored.
    pub stored: RefCell<(Group, Option<Decision>)>,
    pub next: Cell<u64>,
    pub peer: RefCell<Standing>,
    /// The peer does not go beyond this.
    pub peer_stops_at: Cell<Option<Progress>>,
    /// No answer reaches the unit while this is so of what it says.
    pub deaf_to: Cell<fn(&Report) -> bool>,
    pub heard: RefCell<Vec<Report>>,
    pub nudge: Notify,
    /// How long what the unit says is under way.
    pub delay: Cell<Duration>,
    /// The part that the peer has of an atomic request, and whether it is the one that wants it.
    pub peer_part: Cell<(Option<Atomic>, bool)>,
}

impl World {
    pub fn new() -> Rc<Self> {
        Self::of(engine())
    }

    pub fn of(engine: Flipside) -> Rc<Self> {
        let volumes: BTreeSet<VolumeId> = [VolumeId(0), VolumeId(1)].into();
        let members = BTreeMap::from([(OURS, volumes), (PEER, [VolumeId(0)].into())]);
        let group = Group { id: GROUP, name: "pair".to_owned(), version: 1, life: 1, members };
        let now = flipside::env::Moment::default();
        let mut machinery = Machinery::new(group.clone(), None, |_| false, now);
        machinery.attached(PEER, false, false, now);
        Rc::new(World {
            engine,
            machinery: RefCell::new(machinery),
            stored: RefCell::new((group, None)),
            next: Cell::new(1),
            peer: RefCell::new(Standing { version: 1, life: 1, transaction: None }),
            peer_stops_at: Cell::new(None),
            deaf_to: Cell::new(|_| false),
            heard: RefCell::default(),
            nudge: Notify::new(),
            delay: Cell::new(Duration::from_micros(200)),
            peer_part: Cell::default(),
        })
    }

    pub fn transaction(&self) -> TransactionId {
        let number = self.next.replace(self.next.get() + 1);
        TransactionId { coordinator: COORDINATOR, incarnation: Incarnation(1), number }
    }

    /// The machinery goes on, and the peer does what it is told, as far as it shall.
    pub fn go_on(&self, now: flipside::env::Moment) {
        let mut machinery = self.machinery.borrow_mut();
        let mut peer = self.peer.borrow_mut();
        for _ in 0..10 {
            let (part, wants) = self.peer_part.get();
            let mut reports = peer.reports(GROUP, wants, None);
            for report in &mut reports {
                let said = report.phase == Phase::Sealed || wants;
                report.atomic = part.filter(|_| said);
            }
            reports.iter().for_each(|report| machinery.hear(PEER, report, now));
            machinery.step(now, || self.transaction());
            self.store(&mut machinery);
            let reports: Vec<&Report> = reports.iter().collect();
            let orders = machinery.orders(PEER, &reports, now);
            let Some(action) = orders.iter().find_map(|order| peer.next(order)) else { continue };
            let own = peer.transaction.map(|(own, _)| own);
            let (to, progress) = match action {
                Action::Seal(to) => (to, Progress::Sealed),
                Action::Prepare => (own.unwrap(), Progress::Prepared),
                Action::Commit | Action::Abort => (own.unwrap(), Progress::Done),
                Action::Acknowledge(to) => (to, Progress::Done),
                Action::GoBack(life) => {
                    peer.life = life;
                    continue;
                }
                Action::Regroup => unreachable!("the membership does not change"),
            };
            if self.peer_stops_at.get().is_none_or(|stop| progress <= stop) {
                peer.transaction = Some((to, progress));
                if progress == Progress::Done {
                    self.peer_part.take();
                }
            }
        }
    }

    fn store(&self, machinery: &mut Machinery) {
        let changes = machinery.take_changes();
        let mut stored = self.stored.borrow_mut();
        if changes.group {
            stored.0 = machinery.group().clone();
        }
        // Who is done is stored late: with the next decision.
        if changes.decided {
            stored.1 = machinery.decision().cloned();
        }
    }

    /// The coordinator loses all that it has not stored.
    pub fn restart(&self, now: flipside::env::Moment) {
        let (group, decision) = self.stored.borrow().clone();
        *self.machinery.borrow_mut() = Machinery::new(group, decision, |_| true, now);
    }

    /// Lets the peer go on, and the unit ask.
    pub fn release(&self, stop: Option<Progress>) {
        self.peer_stops_at.set(stop);
        self.nudge.notify_one();
    }

    /// Of the unit's vote the coordinator had heard before, and so it has decided.
    pub fn has_voted(&self, now: flipside::env::Moment) {
        let transaction = self.peer.borrow().transaction.unwrap().0;
        let (group, version, life) = (GROUP, 1, 1);
        let (wants, transaction) = (false, Some(transaction));
        let phase = Phase::Prepared;
        let atomic = None;
        let vote = Report { group, version, life, wants, atomic, transaction, phase };
        self.machinery.borrow_mut().hear(OURS, &vote, now);
        self.go_on(now);
        assert_eq!(self.machinery.borrow().progress().1, Stage::Committed);
    }

    /// Whether the unit has said that it is that far with a transaction.
    pub fn has_heard(&self, phase: &Phase) -> bool {
        self.heard.borrow().iter().any(|report| report.phase == *phase)
    }
}

/// The way from the unit to the world.
pub struct Way {
    pub env: SimEnv,
    pub world: Rc<World>,
}

impl Coordinator for Way {
    async fn coordinate(&self, reports: Vec<Report>) -> Result<Vec<Order>, MdsError> {
        loop {
            self.env.sleep(self.world.delay.get()).await;
            self.world.heard.borrow_mut().extend(reports.iter().cloned());
            if !reports.iter().any(self.world.deaf_to.get()) {
                break;
            }
            self.env.sleep(Duration::from_millis(5)).await;
        }
        let now = self.env.now();
        let mut machinery = self.world.machinery.borrow_mut();
        reports.iter().for_each(|report| machinery.hear(OURS, report, now));
        drop(machinery);
        self.world.go_on(now);
        let reports: Vec<&Report> = reports.iter().collect();
        Ok(self.world.machinery.borrow().orders(OURS, &reports, now))
    }

    async fn nudged(&self) -> Vec<Order> {
        self.world.nudge.notified().await;
        Vec::new()
    }
}

pub async fn write(volume: &Served, block: u64, byte: u8) {
    volume.write(block * BLOCK, vec![byte; BLOCK as usize], false).await.unwrap();
}

pub async fn byte_at(volume: &Served, block: u64) -> u8 {
    volume.read(block * BLOCK, BLOCK as usize).await.unwrap()[0]
}

pub async fn until(env: &SimEnv, mut so: impl FnMut() -> bool) {
    while !so() {
        env.sleep(Duration::from_micros(100)).await;
    }
}

/// Three volumes, the first two of them in the group.
pub async fn joined(env: &SimEnv, serving: &Serving, world: &Rc<World>, cold: bool) -> [Served; 3] {
    for name in ["second", "third"].into_iter().skip(serving.volumes().len() - 1) {
        serving.unit().create_volume(name, 4 * EXTENT).await.unwrap();
    }
    let now = env.now();
    world.machinery.borrow_mut().attached(OURS, cold, false, now);
    let way = Way { env: env.clone(), world: Rc::clone(world) };
    serving.unit().follow(way).await.unwrap();
    serving.volumes().try_into().ok().expect("three volumes")
}

/// Starts a new pool, does something in the group, and loses the power.
pub fn before_power_loss<F: Future<Output = ()> + 'static>(
    seed: u64,
    world: &Rc<World>,
    work: impl FnOnce(SimEnv, Serving, [Served; 3], Rc<World>) -> F + 'static,
) -> Machine {
    let mut machine = formatted(&world.engine, seed, LIMIT);
    let (env, serving) = started(&mut machine, &world.engine, LIMIT);
    let (of, world) = (env.clone(), Rc::clone(world));
    let worked = env.run(LIMIT, async move {
        let volumes = joined(&of, &serving, &world, false).await;
        work(of, serving, volumes, world).await;
    });
    worked.unwrap();
    machine.halt(&env, Crash::Power);
    machine
}

/// The first block of the first two volumes, after a start that joins the group again.
pub fn found_after(machine: &mut Machine, world: &Rc<World>) -> [u8; 2] {
    let (env, serving) = started(machine, &world.engine, LIMIT);
    let (of, world) = (env.clone(), Rc::clone(world));
    let read = env.run(LIMIT, async move {
        let [first, second, _] = joined(&of, &serving, &world, true).await;
        let found = [byte_at(&first, 0).await, byte_at(&second, 0).await];
        serving.check().unwrap();
        found
    });
    read.unwrap()
}
