//! Atomic requests on one unit: writes to several volumes that take place together or not at all,
//! at every crash; what is staged is seen by nobody and in nobody's way for long.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/simulated.rs"]
mod simulated;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use flipside::env::Env;
use flipside::env::sim::{Crash, Limit, Machine, SimEnv};
use flipside::format::ids::VolumeId;
use flipside::format::layout::Geometry;
use flipside::sim::engine::{Running as _, Volume as _};
use flipside::sim::flipside::{Flipside, Served, Serving};
use flipside::txn::{Atomic, AtomicId, GroupId};
use flipside::unit::{AtomicError, AtomicWrite, Config, Grouping, HOLD_MAX, IoError};
use simulated::{formatted, started};

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 5_000_000 };
const BLOCK: u64 = 512;
const EXTENT: u64 = 32 * BLOCK;
const LOCAL: Atomic = Atomic { id: AtomicId(1), members: 1 };

fn engine() -> Flipside {
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

async fn write(volume: &Served, block: u64, byte: u8) {
    volume.write(block * BLOCK, vec![byte; BLOCK as usize], false).await.unwrap();
}

async fn byte_at(volume: &Served, block: u64) -> u8 {
    volume.read(block * BLOCK, BLOCK as usize).await.unwrap()[0]
}

/// Runs something on a new pool whose volumes are in one group.
fn on_a_group<F: Future<Output = ()> + 'static>(
    seed: u64,
    work: impl FnOnce(SimEnv, Serving, [Served; 2]) -> F + 'static,
) {
    let engine = engine();
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

/// Goal: whichever call of the unit a loss of power meets, what is found afterwards is all of the
/// request or nothing of it; all of it, and what was acknowledged before it, where it was applied.
#[test]
fn all_or_nothing_at_every_call() {
    let (mut nothing, mut all) = (0, 0);
    for call in 0.. {
        let engine = engine();
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
            all += 1
        } else {
            nothing += 1
        }
        if !crashed {
            break;
        }
    }
    assert!(nothing > 5 && all > 2, "{nothing} without, {all} with it");
}

/// Goal: what is staged is seen by nobody and goes with nobody's commit; its blocks are held until
/// it is dropped, and then have what they had, which was pending when it came.
#[test]
fn staged_writes_are_invisible_and_held() {
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

/// Goal: what cannot be one request is refused, and says why.
#[test]
fn refusals() {
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

/// Goal: who holds blocks for long loses them; others wait for their turn until then; a request
/// that is staged when the target stops is told so.
#[test]
fn nobody_holds_for_ever() {
    on_a_group(3, |env, serving, [first, _]| async move {
        let unit = serving.unit();
        let writes = [write_of(&serving, 0, 0, vec![2; 512])];
        let idle = unit.stage(LOCAL, &writes).await.unwrap();
        let since = env.now();
        env.sleep(HOLD_MAX / 2).await;
        let next = Atomic { id: AtomicId(2), members: 1 };
        let ready = unit.stage(next, &writes).await.unwrap();
        let waited = env.now().since(since);
        assert!(waited >= HOLD_MAX - Duration::from_secs(1), "{waited:?}");
        assert!(matches!(idle.apply().await, Err(AtomicError::Late(_))));
        ready.apply().await.unwrap();
        assert_eq!(byte_at(&first, 0).await, 2);
        let last = unit.stage(LOCAL, &writes).await.unwrap();
        serving.shutdown().await.unwrap();
        assert_eq!(last.apply().await, Err(AtomicError::Io(IoError::ShuttingDown)));
    });
}
