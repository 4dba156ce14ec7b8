//! A unit in a consistency group with another one, whose part and whose coordinator are played
//! here: the real state machine of the coordinator, and a member that does what the test says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/simulated.rs"]
mod simulated;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use flipside::env::Env;
use flipside::env::sim::rng::Rng;
use flipside::env::sim::{Crash, Limit, Machine, SimEnv};
use flipside::format::group::{GroupState, TransactionId};
use flipside::format::ids::{Incarnation, PoolId, Sequence, VolumeId};
use flipside::format::layout::Geometry;
use flipside::mds::error::MdsError;
use flipside::sim::engine::{Running as _, Volume as _};
use flipside::sim::flipside::{Flipside, Served, Serving};
use flipside::txn::coordinator::{Coordinator as Machinery, Group};
use flipside::txn::participant::{Action, Progress, Standing};
use flipside::txn::{Atomic, AtomicId, COORDINATOR, GroupId, Order, Phase, Report, Stage};
use flipside::unit::{AtomicError, AtomicWrite, Config, Coordinator, LinkedGroup, Ready};
use simulated::{formatted, started};
use tokio::sync::Notify;

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 5_000_000 };
const BLOCK: u64 = 512;
const EXTENT: u64 = 32 * BLOCK;
const GROUP: GroupId = GroupId(7);
const OURS: PoolId = PoolId([1; 16]);
const PEER: PoolId = PoolId([2; 16]);

fn engine() -> Flipside {
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
struct World {
    engine: Flipside,
    machinery: RefCell<Machinery>,
    next: Cell<u64>,
    peer: RefCell<Standing>,
    /// The peer does not go beyond this.
    peer_stops_at: Cell<Option<Progress>>,
    /// No answer reaches the unit while this is so of what it says.
    deaf_to: Cell<fn(&Report) -> bool>,
    heard: RefCell<Vec<Report>>,
    nudge: Notify,
    /// The part that the peer has of an atomic request, and whether it is the one that wants it.
    peer_part: Cell<(Option<Atomic>, bool)>,
}

impl World {
    fn new() -> Rc<Self> {
        Self::of(engine())
    }

    fn of(engine: Flipside) -> Rc<Self> {
        let volumes: BTreeSet<VolumeId> = [VolumeId(0), VolumeId(1)].into();
        let members = BTreeMap::from([(OURS, volumes), (PEER, [VolumeId(0)].into())]);
        let group = Group { id: GROUP, name: "pair".to_owned(), version: 1, life: 1, members };
        let now = flipside::env::Moment::default();
        let mut machinery = Machinery::new(group, None, |_| false, now);
        machinery.attached(PEER, false, false, now);
        Rc::new(World {
            engine,
            machinery: RefCell::new(machinery),
            next: Cell::new(1),
            peer: RefCell::new(Standing { version: 1, life: 1, transaction: None }),
            peer_stops_at: Cell::new(None),
            deaf_to: Cell::new(|_| false),
            heard: RefCell::default(),
            nudge: Notify::new(),
            peer_part: Cell::default(),
        })
    }

    fn transaction(&self) -> TransactionId {
        let number = self.next.replace(self.next.get() + 1);
        TransactionId { coordinator: COORDINATOR, incarnation: Incarnation(1), number }
    }

    /// The machinery goes on, and the peer does what it is told, as far as it shall.
    fn go_on(&self, now: flipside::env::Moment) {
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

    /// Lets the peer go on, and the unit ask.
    fn release(&self, stop: Option<Progress>) {
        self.peer_stops_at.set(stop);
        self.nudge.notify_one();
    }

    /// Of the unit's vote the coordinator had heard before, and so it has decided.
    fn has_voted(&self, now: flipside::env::Moment) {
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
    fn has_heard(&self, phase: &Phase) -> bool {
        self.heard.borrow().iter().any(|report| report.phase == *phase)
    }
}

/// The way from the unit to the world.
struct Way {
    env: SimEnv,
    world: Rc<World>,
}

impl Coordinator for Way {
    async fn coordinate(&self, reports: Vec<Report>) -> Result<Vec<Order>, MdsError> {
        loop {
            self.env.sleep(Duration::from_micros(200)).await;
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

    async fn nudged(&self) {
        self.world.nudge.notified().await;
    }
}

async fn write(volume: &Served, block: u64, byte: u8) {
    volume.write(block * BLOCK, vec![byte; BLOCK as usize], false).await.unwrap();
}

async fn byte_at(volume: &Served, block: u64) -> u8 {
    volume.read(block * BLOCK, BLOCK as usize).await.unwrap()[0]
}

async fn until(env: &SimEnv, mut so: impl FnMut() -> bool) {
    while !so() {
        env.sleep(Duration::from_micros(100)).await;
    }
}

/// Three volumes, the first two of them in the group.
async fn joined(env: &SimEnv, serving: &Serving, world: &Rc<World>, cold: bool) -> [Served; 3] {
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
fn before_power_loss<F: Future<Output = ()> + 'static>(
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
fn found_after(machine: &mut Machine, world: &Rc<World>) -> [u8; 2] {
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

/// Goal: a flush of one member commits the group everywhere, in one transaction, whose name the
/// unit can tell; what it covers survives.
#[test]
fn a_flush_is_a_global_transaction() {
    for seed in 0..4 {
        let world = World::new();
        let mut machine = before_power_loss(
            seed,
            &world,
            |_, serving, [first, second, third], world| async move {
                for round in 1..=3 {
                    write(&first, 0, round).await;
                    write(&second, 0, round).await;
                    first.flush().await.unwrap();
                    let cut = serving.unit().last_cut(GROUP).unwrap();
                    assert_eq!(cut.number, u64::from(round));
                    assert!(world.peer.borrow().transaction.unwrap().0 == cut);
                }
                write(&third, 0, 1).await;
                third.flush().await.unwrap();
                assert_eq!(world.next.get(), 4, "a volume by itself needs nobody");
                serving.check().unwrap();
            },
        );
        assert_eq!(found_after(&mut machine, &world), [3, 3]);
    }
}

/// Goal: a flush where nothing is pending is a global transaction, too: what was acknowledged by
/// another member before it is durable after it (found by `tests/group_kill.rs`: the write was in
/// the epoch after the one being committed there, and this unit had nothing in its own).
#[test]
fn an_idle_member_flushes_for_the_others() {
    let world = World::new();
    before_power_loss(22, &world, |_, serving, [first, second, third], world| async move {
        for round in 1..=3 {
            [&first, &second][round % 2].flush().await.unwrap();
            let cut = serving.unit().last_cut(GROUP).unwrap();
            assert_eq!(
                (cut.number, world.peer.borrow().transaction),
                (round as u64, Some((cut, Progress::Done)))
            );
        }
        third.flush().await.unwrap();
        assert_eq!(world.next.get(), 4, "a volume by itself needs nobody");
    });
}

/// Goal: what is written after the seal is not acknowledged before the other member has sealed ‡,
/// and what was written before it waits for nobody.
#[test]
fn acknowledgements_wait_for_the_last_seal() {
    let world = World::new();
    before_power_loss(5, &world, |env, _, [first, second, _], world| async move {
        // The peer begins nothing.
        world.peer_stops_at.set(Some(Progress::Sealed));
        *world.peer.borrow_mut() = Standing { version: 1, life: 1, transaction: None };
        let stopped = Rc::new(Cell::new(false));
        write(&first, 0, 1).await;
        world.deaf_to.set(|report| report.phase == Phase::Sealed);
        let flush = {
            let first = first.clone();
            async move { first.flush().await.unwrap() }
        };
        env.spawn(flush);
        until(&env, || world.has_heard(&Phase::Sealed)).await;
        let acknowledged = Rc::clone(&stopped);
        let write_more = async move {
            write(&second, 0, 2).await;
            acknowledged.set(true);
        };
        env.spawn(write_more);
        env.sleep(Duration::from_secs(1)).await;
        assert!(!stopped.get(), "acknowledged though nobody has said that all are sealed");
        world.deaf_to.set(|_| false);
        until(&env, || stopped.get()).await;
        assert!(!world.has_heard(&Phase::Done), "it does not wait for the commit");
        world.release(None);
        until(&env, || world.has_heard(&Phase::Done)).await;
    });
}

/// Goal: an epoch whose transaction is aborted stays pending, whatever was written meanwhile, and
/// the flush is served by the next transaction.
#[test]
fn an_aborted_epoch_is_not_lost() {
    for (seed, stop) in [(6, Progress::Sealed), (7, Progress::Prepared)] {
        let world = World::new();
        let mut machine =
            before_power_loss(seed, &world, move |env, serving, [first, second, _], world| {
                async move {
                    world.peer_stops_at.set(Some(Progress::Sealed));
                    write(&first, 0, 1).await;
                    let flushed = Rc::new(Cell::new(false));
                    let ends = Rc::clone(&flushed);
                    let of = first.clone();
                    env.spawn(async move {
                        of.flush().await.unwrap();
                        ends.set(true);
                    });
                    let phase =
                        if stop == Progress::Sealed { Phase::Sealed } else { Phase::Prepared };
                    until(&env, || world.has_heard(&phase)).await;
                    write(&second, 0, 2).await;
                    write(&first, 1, 3).await;
                    assert!(!flushed.get());
                    // The peer goes well and comes back.
                    let now = env.now();
                    world.machinery.borrow_mut().detached(PEER);
                    world.peer.borrow_mut().transaction = None;
                    world.machinery.borrow_mut().attached(PEER, false, false, now);
                    world.release(None);
                    until(&env, || flushed.get()).await;
                    assert_eq!([byte_at(&first, 0).await, byte_at(&first, 1).await], [1, 3]);
                    second.flush().await.unwrap();
                    serving.check().unwrap();
                }
            });
        assert_eq!(found_after(&mut machine, &world), [1, 2]);
    }
}

/// A unit that loses its power with a transaction prepared, first committed contents being 1.
fn in_doubt(seed: u64, world: &Rc<World>) -> Machine {
    before_power_loss(seed, world, |env, _, [first, second, third], world| async move {
        for volume in [&first, &second, &third] {
            write(volume, 0, 1).await;
            volume.flush().await.unwrap();
        }
        world.heard.borrow_mut().clear();
        world.deaf_to.set(|report| report.phase == Phase::Prepared);
        write(&first, 0, 2).await;
        // A pair that is bound in the transaction.
        write(&second, 33, 2).await;
        write(&second, 0, 2).await;
        env.spawn(async move { drop(first.flush().await) });
        until(&env, || world.has_heard(&Phase::Prepared)).await;
    })
}

/// Goal: what is in doubt is neither read nor written until the coordinator has answered, all else
/// is served; then it is there or it is not, whole, and stays so.
#[test]
fn doubt_is_held_and_resolved() {
    for (seed, took_place) in [(8, true), (9, false), (10, true), (11, false)] {
        let world = World::new();
        let mut machine = in_doubt(seed, &world);
        world.deaf_to.set(|_| false);
        let (env, serving) = started(&mut machine, &world.engine, LIMIT);
        let (of, there) = (env.clone(), Rc::clone(&world));
        env.run(LIMIT, async move {
            serving.check().unwrap();
            let [first, second, third]: [Served; 3] =
                serving.volumes().try_into().ok().expect("three volumes");
            // What is not in doubt is served.
            assert_eq!([byte_at(&third, 0).await, byte_at(&first, 1).await], [1, 0]);
            write(&third, 0, 1).await;
            third.flush().await.unwrap();
            let since = of.now();
            assert!(first.read(0, BLOCK as usize).await.is_err());
            assert_eq!(of.now().since(since).as_secs(), 5, "it waits as long as was said");
            assert!(second.write(34 * BLOCK, vec![9; BLOCK as usize], false).await.is_err());
            if took_place {
                there.has_voted(of.now());
            }
            let [first, second, _] = joined(&of, &serving, &there, true).await;
            let now = if took_place { 2 } else { 1 };
            assert_eq!([byte_at(&first, 0).await, byte_at(&second, 0).await], [now, now]);
            let bound = byte_at(&second, 33).await;
            assert_eq!(bound, if took_place { 2 } else { 0 });
            write(&second, 34, 7).await;
            second.flush().await.unwrap();
            serving.check().unwrap();
        })
        .unwrap();
        machine.halt(&env, Crash::Power);
        let now = if took_place { 2 } else { 1 };
        assert_eq!(found_after(&mut machine, &world), [now, now]);
    }
}

/// Goal: when another member has lost what was not committed, what is pending here is lost, too;
/// who was there before is told so, whatever it does, and who comes finds the last cut and goes on.
#[test]
fn the_group_goes_back_together() {
    let world = World::new();
    let mut machine = before_power_loss(12, &world, |env, serving, volumes, world| async move {
        let [first, second, third] = volumes;
        write(&first, 0, 1).await;
        first.flush().await.unwrap();
        write(&first, 0, 2).await;
        write(&second, 40, 2).await;
        write(&third, 0, 2).await;
        world.machinery.borrow_mut().attached(PEER, true, false, env.now());
        *world.peer.borrow_mut() = Standing { version: 1, life: 2, transaction: None };
        world.nudge.notify_one();
        until(&env, || world.machinery.borrow().is_whole()).await;
        env.sleep(Duration::from_secs(1)).await;
        assert!(first.read(0, BLOCK as usize).await.is_err());
        assert!(first.flush().await.is_err());
        assert!(second.write(0, vec![9; BLOCK as usize], false).await.is_err());
        assert_eq!(byte_at(&third, 0).await, 2, "a volume by itself has lost nothing");
        let [first, second, _]: [Served; 3] = serving.volumes().try_into().ok().unwrap();
        assert_eq!([byte_at(&first, 0).await, byte_at(&second, 40).await], [1, 0]);
        write(&second, 0, 5).await;
        second.flush().await.unwrap();
        serving.check().unwrap();
    });
    assert_eq!(found_after(&mut machine, &world), [1, 5]);
}

/// Blocks of each volume that others than the group write.
const OTHERS: u64 = 8 * 32;

/// What passed through the journal behind a transaction in doubt.
#[derive(Debug, Default)]
struct Passed {
    /// The one in doubt.
    doubt: Sequence,
    /// The newest that was seen.
    newest: Sequence,
    /// Groups that are linked behind it, as last seen.
    linked: BTreeSet<Sequence>,
    /// How many of them went before others that were linked earlier and are not in doubt.
    overtook: u64,
    /// The slots that all of them took.
    slots: u64,
    /// The most that were linked, and the most slots taken, at one time.
    most: [usize; 2],
}

impl Passed {
    /// Looks at what is linked after a commit; the one in doubt is, always.
    fn look(&mut self, groups: &[LinkedGroup]) {
        let doubt = groups.iter().find(|group| group.sequence == self.doubt);
        assert!(doubt.is_some_and(|doubt| doubt.state == GroupState::Prepared));
        let behind = || groups.iter().filter(|group| group.sequence > self.doubt);
        let linked: BTreeSet<Sequence> = behind().map(|group| group.sequence).collect();
        let oldest = linked.first();
        for gone in self.linked.difference(&linked) {
            self.overtook += u64::from(oldest.is_some_and(|oldest| oldest < gone));
        }
        let newer = behind().filter(|group| group.sequence > self.newest);
        self.slots += newer.map(|group| group.slots as u64).sum::<u64>();
        self.newest = linked.last().copied().unwrap_or(self.newest);
        self.linked = linked;
        let taken = groups.iter().map(|group| group.slots).sum();
        self.most = [self.most[0].max(groups.len()), self.most[1].max(taken)];
    }
}

/// Small writes to volumes that are in no group, each with a flush; `contents` is what they have.
async fn pass(
    serving: &Serving,
    count: u64,
    rng: &mut Rng,
    contents: &mut [Vec<u8>; 2],
    passed: &mut Passed,
) {
    let volumes = serving.volumes();
    for _ in 0..count {
        let (which, block, byte) = (rng.below(2) as usize, rng.below(OTHERS), rng.bits() as u8);
        write(&volumes[2 + which], block, byte).await;
        volumes[2 + which].flush().await.unwrap();
        contents[which][block as usize] = byte;
        passed.look(&serving.unit().linked_groups());
    }
}

/// The group's contents: what was committed first, or what was in doubt.
async fn look_at_all(serving: &Serving, first: u8, contents: &[Vec<u8>; 2]) {
    serving.check().unwrap();
    let volumes = serving.volumes();
    assert_eq!([byte_at(&volumes[0], 0).await, byte_at(&volumes[1], 0).await], [first; 2]);
    let bound = if first == 2 { 2 } else { 0 };
    assert_eq!(byte_at(&volumes[1], 33).await, bound);
    for (volume, contents) in volumes[2..].iter().zip(contents) {
        for (block, byte) in (0..).zip(contents) {
            assert_eq!(byte_at(volume, block).await, *byte, "block {block}");
        }
    }
}

/// Joins the group.
fn join(
    env: &SimEnv,
    serving: &Serving,
    world: &Rc<World>,
    cold: bool,
) -> impl Future<Output = ()> + 'static {
    world.machinery.borrow_mut().attached(OURS, cold, false, env.now());
    let way = Way { env: env.clone(), world: Rc::clone(world) };
    let unit = serving.unit().clone();
    async move { unit.follow(way).await.unwrap() }
}

/// Bytes of a region with a small journal.
const REGION: u64 = 1 << 20;

/// A pool with data in its journal, a small one; two volumes of it are in no group.
fn with_payload() -> Flipside {
    let engine = engine().with_volume(4 * EXTENT);
    let engine = engine.with_volume(OTHERS * BLOCK).with_volume(OTHERS * BLOCK);
    engine.with_region(REGION).with_nvrams(&[0], Some(0)).with_payload(16 << 10)
}

/// One transaction is prepared and not answered for, and `count` groups of others pass by it,
/// half of them before a crash and half of them after it; then it is decided.
fn past_the_doubt(seed: u64, took_place: bool, count: u64) {
    let limit = Limit { time_ns: LIMIT.time_ns, steps: LIMIT.steps + 1000 * count };
    let world = World::of(with_payload());
    let mut machine = formatted(&world.engine, seed, limit);
    let (env, serving) = started(&mut machine, &world.engine, limit);
    let (of, there) = (env.clone(), Rc::clone(&world));
    let before = env.run(limit, async move {
        join(&of, &serving, &there, false).await;
        let [first, second, _, _]: [Served; 4] =
            serving.volumes().try_into().ok().expect("four volumes");
        write(&first, 0, 1).await;
        write(&second, 0, 1).await;
        first.flush().await.unwrap();
        there.heard.borrow_mut().clear();
        there.deaf_to.set(|report| report.phase == Phase::Prepared);
        write(&first, 0, 2).await;
        write(&second, 33, 2).await;
        write(&second, 0, 2).await;
        of.spawn(async move { drop(first.flush().await) });
        until(&of, || there.has_heard(&Phase::Prepared)).await;
        let groups = serving.unit().linked_groups();
        let doubt = groups.iter().find(|group| group.state == GroupState::Prepared);
        let doubt = doubt.expect("it has voted").sequence;
        let mut passed = Passed { doubt, newest: doubt, ..Passed::default() };
        let mut contents = [(); 2].map(|()| vec![0; OTHERS as usize]);
        let mut rng = Rng::new(seed);
        pass(&serving, count / 2, &mut rng, &mut contents, &mut passed).await;
        (passed, contents, rng)
    });
    let (mut passed, mut contents, mut rng) = before.unwrap();
    machine.halt(&env, Crash::Power);

    let (env, serving) = started(&mut machine, &world.engine, limit);
    let (of, there) = (env.clone(), Rc::clone(&world));
    let now = if took_place { 2 } else { 1 };
    let after = env.run(limit, async move {
        if took_place {
            there.has_voted(of.now());
        }
        there.deaf_to.set(|_| true);
        of.spawn(join(&of, &serving, &there, true));
        passed.look(&serving.unit().linked_groups());
        pass(&serving, count - count / 2, &mut rng, &mut contents, &mut passed).await;
        assert!(serving.volumes()[0].read(0, BLOCK as usize).await.is_err(), "it is in doubt");
        there.deaf_to.set(|_| false);
        look_at_all(&serving, now, &contents).await;
        (passed, contents)
    });
    let (passed, contents) = after.unwrap();
    machine.halt(&env, Crash::Power);
    let (env, serving) = started(&mut machine, &world.engine, limit);
    let slots = serving.unit().gauges().journal_slots[1];
    env.run(limit, async move { look_at_all(&serving, now, &contents).await }).unwrap();

    let linked = passed.newest.0 - passed.doubt.0;
    let Passed { linked: left, overtook, most, slots: taken, .. } = passed;
    let unlinked = linked - left.len() as u64;
    eprintln!(
        "{linked} groups linked behind one in doubt, {taken} slots of a journal of {slots}; \
         {unlinked} unlinked before it, {overtook} of them before others that are older; at most \
         {} linked, and {} slots taken",
        most[0], most[1]
    );
    assert!(linked >= count && taken > 100 * slots, "a hundred times the journal passes");
    assert!(left.len() < 100 && most[1] < slots as usize, "all but the last of them are gone");
}

/// Goal: a transaction stays in doubt while many others, with data in the journal, pass by it
/// through a journal a hundred times smaller than what passes, over a crash in the midst of it: it
/// holds back nothing but its own blocks. Then it is decided, either way, and is there or not.
#[test]
fn one_in_doubt_and_many_pass() {
    let count = std::env::var("FLIPSIDE_GROUPS").map_or(20_000, |count| count.parse().unwrap());
    past_the_doubt(20, true, count);
    past_the_doubt(21, false, count);
}

const BOTH: Atomic = Atomic { id: AtomicId(9), members: 2 };

/// Stages byte 2 for the first block of the first two volumes, and for a place that was never
/// written.
async fn staged(serving: &Serving) -> Ready<SimEnv> {
    let volumes = serving.unit().volumes();
    let write = |index: usize, block: u64| AtomicWrite {
        volume: volumes[index].name().to_string(),
        offset: block * BLOCK,
        bytes: vec![2; BLOCK as usize],
    };
    serving.unit().stage(BOTH, &[write(0, 0), write(1, 0), write(1, 40)]).await.unwrap()
}

/// Goal: an atomic request of two units takes place where both have their part, whichever of them
/// was asked; one whose other part is missing does not, and harms nobody.
#[test]
fn atomic_requests_of_two_units() {
    for (seed, asked_here, part) in
        [(20, true, Some(BOTH)), (21, false, Some(BOTH)), (22, true, None)]
    {
        let world = World::new();
        let mut machine =
            before_power_loss(seed, &world, move |env, serving, [first, second, _], world| {
                async move {
                    write(&first, 0, 1).await;
                    write(&second, 0, 1).await;
                    first.flush().await.unwrap();
                    let ready = staged(&serving).await;
                    // Acknowledged before it.
                    write(&second, 1, 7).await;
                    assert_eq!([byte_at(&first, 0).await, byte_at(&second, 40).await], [1, 0]);
                    world.peer_part.set((part, !asked_here));
                    world.nudge.notify_one();
                    if asked_here {
                        let applied = ready.apply().await;
                        assert_eq!(applied.is_ok(), part.is_some(), "{applied:?}");
                        assert!(part.is_some() || matches!(applied, Err(AtomicError::Aborted(_))));
                    } else {
                        until(&env, || world.has_heard(&Phase::Done)).await;
                        while byte_at(&first, 0).await == 1 {
                            env.sleep(Duration::from_millis(1)).await;
                        }
                    }
                    let now = if part.is_some() { 2 } else { 1 };
                    assert_eq!([byte_at(&first, 0).await, byte_at(&second, 0).await], [now, now]);
                    if part.is_none() {
                        first.flush().await.unwrap();
                    }
                    assert_eq!(byte_at(&second, 40).await, if part.is_some() { 2 } else { 0 });
                    write(&first, 9, 1).await;
                    serving.check().unwrap();
                }
            });
        let now = if part.is_some() { 2 } else { 1 };
        let (env, serving) = started(&mut machine, &world.engine, LIMIT);
        let (of, there) = (env.clone(), Rc::clone(&world));
        let found = env.run(LIMIT, async move {
            let [first, second, _] = joined(&of, &serving, &there, true).await;
            [byte_at(&first, 0).await, byte_at(&second, 0).await, byte_at(&second, 1).await]
        });
        assert_eq!(found.unwrap(), [now, now, 7], "what was acknowledged before is with it");
    }
}

/// Goal: a unit that has voted for an atomic request lets nobody read its blocks before the
/// decision, as another may show the new contents already; and nobody sees half of it after a loss
/// of power at that point, however it was decided.
#[test]
fn nobody_reads_between_vote_and_decision() {
    for (seed, lost, took_place) in [(23, false, true), (24, true, true), (25, true, false)] {
        let world = World::new();
        let mut machine = before_power_loss(
            seed,
            &world,
            move |env, serving, [first, second, _], world| async move {
                write(&first, 0, 1).await;
                write(&second, 0, 1).await;
                first.flush().await.unwrap();
                world.heard.borrow_mut().clear();
                world.deaf_to.set(|report| report.phase == Phase::Prepared);
                let ready = staged(&serving).await;
                world.peer_part.set((Some(BOTH), false));
                env.spawn(async move { drop(ready.apply().await) });
                until(&env, || world.has_heard(&Phase::Prepared)).await;
                let seen = Rc::new(Cell::new(0));
                let (of, to) = (first.clone(), Rc::clone(&seen));
                env.spawn(async move { to.set(byte_at(&of, 0).await) });
                env.sleep(Duration::from_millis(500)).await;
                assert_eq!((seen.get(), byte_at(&first, 1).await), (0, 0));
                if lost {
                    return;
                }
                world.deaf_to.set(|_| false);
                world.release(None);
                until(&env, || seen.get() != 0).await;
                assert_eq!([seen.get(), byte_at(&second, 0).await], [2, 2]);
                serving.check().unwrap();
            },
        );
        world.deaf_to.set(|_| false);
        if lost && took_place {
            // The vote of the unit has reached the coordinator.
            let heard = world.heard.borrow().clone();
            let now = flipside::env::Moment::default();
            let votes = heard.iter().filter(|report| report.phase == Phase::Prepared);
            votes.for_each(|vote| world.machinery.borrow_mut().hear(OURS, vote, now));
            world.go_on(now);
        }
        let now = if took_place { 2 } else { 1 };
        assert_eq!(found_after(&mut machine, &world), [now, now]);
    }
}
