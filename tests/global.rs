//! A unit in a consistency group with another one, which [`peer`] plays: one cut for both.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/peer.rs"]
mod peer;
#[path = "support/simulated.rs"]
mod simulated;
#[path = "support/steps.rs"]
mod steps;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use flipside::env::Env;
use flipside::env::sim::rng::Rng;
use flipside::env::sim::{Crash, Limit, Machine, SimEnv};
use flipside::format::group::GroupState;
use flipside::format::ids::Sequence;
use flipside::sim::engine::{Running as _, Volume as _};
use flipside::sim::flipside::{Flipside, Served, Serving};
use flipside::txn::Phase;
use flipside::txn::participant::{Progress, Standing};
use flipside::unit::LinkedGroup;
use peer::{
    BLOCK, EXTENT, GROUP, LIMIT, OURS, PEER, Way, World, before_power_loss, byte_at, engine,
    found_after, joined, until, write,
};
use simulated::{formatted, started};

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

/// Goal: see [`steps::a_loss_of_power_at_every_step`].
#[test]
fn a_loss_of_power_at_every_step() {
    steps::a_loss_of_power_at_every_step();
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
