//! Scenarios of atomic requests: tests, and what finds the mutants of them.

#![allow(dead_code, reason = "no test uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use flipside::env::Env;
use flipside::env::sim::{Crash, Machine, SimEnv};
use flipside::format::ids::VolumeId;
use flipside::format::layout::Geometry;
use flipside::sim::engine::{Running as _, Volume as _};
use flipside::sim::flipside::{Flipside, Served, Serving};
use flipside::txn::{Atomic, AtomicId, GroupId, Phase};
use flipside::unit::{AtomicError, AtomicWrite, Config, Grouping, HOLD_MAX, IoError, Ready};

use crate::peer::{
    BLOCK, EXTENT, LIMIT, OURS, World, before_power_loss, byte_at, found_after, joined, until,
    write,
};
use crate::simulated::{formatted, started};

const LOCAL: Atomic = Atomic { id: AtomicId(1), members: 1 };

fn two_volumes() -> Flipside {
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
    let config = Config { commit_interval: None, txn_max: 64 << 10, ..Config::default() };
    Flipside::plain(geometry, 40, 12, 4 * EXTENT, config).with_volume(4 * EXTENT)
}

fn name_of(serving: &Serving, index: usize) -> String {
    serving.unit().volumes()[index].name().to_string()
}

fn write_of(serving: &Serving, index: usize, offset: u64, bytes: Vec<u8>) -> AtomicWrite {
    AtomicWrite { volume: name_of(serving, index), offset, bytes }
}

/// Both volumes in one group, which is this unit's alone.
async fn grouped(serving: &Serving) -> [Served; 2] {
    let grouping = Grouping {
        group: GroupId(1),
        name: "both".to_owned(),
        version: 1,
        volumes: vec![VolumeId(0), VolumeId(1)],
        shared: false,
        life: 1,
    };
    serving.unit().regroup(&grouping).await.unwrap();
    serving.volumes().try_into().ok().expect("two volumes")
}

/// Runs something on a new pool whose volumes are in one group.
fn on_a_group<F: Future<Output = ()> + 'static>(
    seed: u64,
    work: impl FnOnce(SimEnv, Serving, [Served; 2]) -> F + 'static,
) {
    let engine = two_volumes();
    let mut machine = formatted(&engine, seed, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let of = env.clone();
    env.run(LIMIT, async move {
        let volumes = grouped(&serving).await;
        work(of, serving, volumes).await;
    })
    .unwrap();
}

/// What a request writes in [`crashed_at`]: some blocks, one of a place that was never written, and
/// bytes that begin and end inside blocks.
fn request(serving: &Serving) -> Vec<AtomicWrite> {
    vec![
        write_of(serving, 0, 0, vec![2; 2 * BLOCK as usize]),
        write_of(serving, 1, 0, vec![2; BLOCK as usize]),
        write_of(serving, 1, 100 * BLOCK, vec![2; BLOCK as usize]),
        write_of(serving, 0, 40 * BLOCK + 100, vec![9; 700]),
        write_of(serving, 0, 40 * BLOCK + 100, vec![2; 600]),
        write_of(serving, 0, 40 * BLOCK + 700, vec![2; 100]),
    ]
}

/// What of the request is there: each place's byte.
async fn found(first: &Served, second: &Served) -> Vec<u8> {
    let odd = first.read(40 * BLOCK, 2 * BLOCK as usize).await.unwrap();
    assert!(odd[..100].iter().chain(&odd[800..]).all(|byte| *byte == 1), "beside the request");
    assert!(odd[100..800].iter().all(|byte| *byte == odd[100]), "torn");
    let others = [byte_at(first, 0).await, byte_at(first, 1).await, byte_at(second, 0).await];
    [others.as_slice(), &[byte_at(second, 100).await.max(1), odd[100]]].concat()
}

/// Crashes at a call of an atomic request; says whether it was applied before, and whether the
/// crash came at all.
fn crashed_at(machine: &mut Machine, engine: &Flipside, call: u64) -> (bool, bool) {
    let (env, serving) = started(machine, engine, LIMIT);
    let applied = Rc::new(Cell::new(false));
    let (of, done) = (env.clone(), Rc::clone(&applied));
    let ended = env.run(LIMIT, async move {
        let [first, second] = grouped(&serving).await;
        for block in [0, 1, 40, 41] {
            write(&first, block, 1).await;
        }
        write(&second, 0, 1).await;
        first.flush().await.unwrap();
        write(&first, 5, 7).await;
        // Pending where the request writes, too.
        write(&second, 0, 1).await;
        of.crash_in(Some(call));
        let beside = first.clone();
        of.spawn(async move {
            for _ in 0..3 {
                write(&beside, 6, 8).await;
                let _ = beside.flush().await;
            }
        });
        let ready = serving.unit().stage(LOCAL, &request(&serving)).await.unwrap();
        ready.apply().await.unwrap();
        done.set(true);
        assert_eq!(found(&first, &second).await, [2; 5]);
        of.sleep(Duration::from_secs(1)).await;
        of.crash_in(None);
        serving.check().unwrap();
    });
    machine.halt(&env, Crash::Power);
    (applied.get(), ended.is_err())
}

/// Whichever call of the unit a loss of power meets, what is found afterwards is all of the
/// request or nothing of it; all of it, and what was acknowledged before it, where it was applied.
pub fn all_or_nothing_at_every_call() {
    let (mut nothing, mut all) = (0, 0);
    for call in 0.. {
        let engine = two_volumes();
        let mut machine = formatted(&engine, 100 + call, LIMIT);
        let (applied, crashed) = crashed_at(&mut machine, &engine, call);
        let (env, serving) = started(&mut machine, &engine, LIMIT);
        let seen = env.run(LIMIT, async move {
            let [first, second] = grouped(&serving).await;
            let seen = found(&first, &second).await;
            if seen == [2; 5] {
                assert_eq!(byte_at(&first, 5).await, 7, "call {call}: acknowledged before");
            }
            serving.check().unwrap();
            seen
        });
        let seen = seen.unwrap();
        assert!(seen == [1; 5] || seen == [2; 5], "call {call}: {seen:?}");
        assert!(!applied || seen == [2; 5], "call {call}: it was applied");
        if seen == [2; 5] {
            all += 1;
        } else {
            nothing += 1;
        }
        if !crashed {
            break;
        }
    }
    assert!(nothing > 5 && all > 2, "{nothing} without, {all} with it");
}

/// What is staged is seen by nobody and goes with nobody's commit; its blocks are held until
/// it is dropped, and then have what they had, which was pending when it came.
pub fn staged_writes_are_invisible_and_held() {
    on_a_group(1, |env, serving, [first, second]| async move {
        write(&first, 0, 1).await;
        let writes = [
            write_of(&serving, 0, 0, vec![2; 512]),
            write_of(&serving, 1, 64 * BLOCK, vec![2; 512]),
        ];
        let ready = serving.unit().stage(LOCAL, &writes).await.unwrap();
        let written = Rc::new(Cell::new(false));
        let (volume, done) = (first.clone(), Rc::clone(&written));
        env.spawn(async move {
            write(&volume, 0, 3).await;
            done.set(true);
        });
        write(&second, 65, 4).await;
        second.flush().await.unwrap();
        env.sleep(Duration::from_secs(1)).await;
        assert_eq!([byte_at(&first, 0).await, byte_at(&second, 64).await], [1, 0]);
        assert!(!written.get(), "its blocks are held");
        serving.check().unwrap();
        drop(ready);
        env.sleep(Duration::from_secs(1)).await;
        assert!(written.get(), "its blocks are free");
        assert_eq!([byte_at(&first, 0).await, byte_at(&second, 64).await], [3, 0]);
        first.flush().await.unwrap();
        serving.settle().await.unwrap();
        serving.check().unwrap();
    });
}

/// What cannot be one request is refused, and says why.
pub fn refusals() {
    on_a_group(2, |_, serving, _| async move {
        let unit = serving.unit();
        let stage = async |writes: &[AtomicWrite]| unit.stage(LOCAL, writes).await.err().unwrap();
        let nobody = AtomicWrite { volume: "nobody".into(), offset: 0, bytes: vec![1] };
        assert_eq!(stage(&[nobody]).await, AtomicError::Unknown("nobody".into()));
        let beyond = write_of(&serving, 0, 4 * EXTENT - 1, vec![1; 2]);
        assert!(matches!(stage(&[beyond]).await, AtomicError::Io(IoError::OutOfRange { .. })));
        let max = unit.txn_max();
        let large = [0, 1].map(|index| write_of(&serving, index, 0, vec![1; max as usize / 2 + 1]));
        assert_eq!(stage(&large).await, AtomicError::TooLarge { bytes: max + 2, max });
        unit.create_volume("alone", EXTENT).await.unwrap();
        let alone = AtomicWrite { volume: "alone".into(), offset: 0, bytes: vec![1] };
        let apart = [write_of(&serving, 0, 0, vec![1]), alone.clone()];
        assert_eq!(stage(&apart).await, AtomicError::Apart);
        // By itself it can be one, but not with other units.
        let several = Atomic { members: 2, ..LOCAL };
        let ready = unit.stage(several, std::slice::from_ref(&alone)).await.unwrap();
        assert_eq!(ready.apply().await, Err(AtomicError::Apart));
        let ready = unit.stage(LOCAL, &[alone]).await.unwrap();
        ready.apply().await.unwrap();
        serving.check().unwrap();
    });
}

/// Who holds blocks for long loses them; others wait for their turn until then; a request
/// that is staged when the target stops is told so.
pub fn nobody_holds_for_ever() {
    on_a_group(3, |env, serving, [first, _]| async move {
        let unit = serving.unit();
        let writes = [write_of(&serving, 0, 0, vec![2; 512])];
        let idle = unit.stage(LOCAL, &writes).await.unwrap();
        let since = env.now();
        env.sleep(HOLD_MAX / 2).await;
        let next = Atomic { id: AtomicId(2), members: 1 };
        let ready = unit.stage(next, &writes).await.unwrap();
        let waited = env.now().since(since);
        assert!(waited + Duration::from_secs(1) >= HOLD_MAX, "{waited:?}");
        assert!(matches!(idle.apply().await, Err(AtomicError::Late(_))));
        ready.apply().await.unwrap();
        assert_eq!(byte_at(&first, 0).await, 2);
        let last = unit.stage(LOCAL, &writes).await.unwrap();
        serving.shutdown().await.unwrap();
        assert_eq!(last.apply().await, Err(AtomicError::Io(IoError::ShuttingDown)));
    });
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

/// An atomic request of two units takes place where both have their part, whichever of them
/// was asked; one whose other part is missing does not, and harms nobody.
pub fn atomic_requests_of_two_units() {
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

/// A unit that has voted for an atomic request lets nobody read its blocks before the
/// decision, as another may show the new contents already; and nobody sees half of it after a loss
/// of power at that point, however it was decided.
pub fn nobody_reads_between_vote_and_decision() {
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
