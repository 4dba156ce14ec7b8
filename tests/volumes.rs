//! Volumes made, renamed, resized and deleted while others are in use, with a crash at every call.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/simulated.rs"]
mod simulated;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use flipside::env::Env;
use flipside::env::sim::{Crash, Faults, Limit};
use flipside::format::ids::VolumeId;
use flipside::format::layout::Geometry;
use flipside::sim::engine::{Engine as _, Refusal, Running as _, Volume as _, Zeroing};
use flipside::sim::flipside::{Flipside, Served, Serving};
use flipside::unit::{Config, ManageError, Volume};
use simulated::{formatted, started};

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 5_000_000 };
const BLOCK: u64 = 512;
const EXTENT: u64 = 32 * BLOCK;
/// The volume that nobody touches, and the one that is changed, in extents.
const KEPT: u64 = 6;
const CHANGED: u64 = 8;
/// What the second is cut to: in the middle of an extent.
const CUT: u64 = 3 * EXTENT + 5 * BLOCK;
const EXTENTS: u32 = 32;
const RESERVE: u32 = 8;

/// What is done while the machine crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Create,
    Rename,
    Grow,
    Shrink,
    Delete,
}

const CHANGES: [Change; 5] =
    [Change::Create, Change::Rename, Change::Grow, Change::Shrink, Change::Delete];

/// The volumes, by name, with their sizes in bytes.
type Volumes = BTreeMap<String, u64>;

fn volumes(of: &[(&str, u64)]) -> Volumes {
    of.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
}

impl Change {
    async fn make(self, serving: &Serving) -> Result<(), ManageError> {
        let unit = serving.unit();
        let id = VolumeId(1);
        match self {
            Change::Create => unit.create_volume("made", 5 * EXTENT).await.map(drop),
            Change::Rename => unit.rename_volume(id, "renamed").await,
            Change::Grow => unit.resize_volume(id, 9 * EXTENT, false).await,
            Change::Shrink => unit.resize_volume(id, CUT, true).await,
            Change::Delete => unit.delete_volume(id).await,
        }
    }

    /// What there is before and after.
    fn outcomes(self) -> [Volumes; 2] {
        let (kept, changed) = (("vol0", KEPT * EXTENT), ("second", CHANGED * EXTENT));
        let after = match self {
            Change::Create => volumes(&[kept, changed, ("made", 5 * EXTENT)]),
            Change::Rename => volumes(&[kept, ("renamed", CHANGED * EXTENT)]),
            Change::Grow => volumes(&[kept, ("second", 9 * EXTENT)]),
            Change::Shrink => volumes(&[kept, ("second", CUT)]),
            Change::Delete => volumes(&[kept]),
        };
        [volumes(&[kept, changed]), after]
    }
}

fn engine(discard: bool) -> Flipside {
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
    let config = Config { commit_interval: None, settle_batch: 3, discard, ..Config::default() };
    Flipside::plain(geometry, EXTENTS, RESERVE, KEPT * EXTENT, config)
}

/// What a volume holds: each block its own bytes, the same whenever they are written.
fn pattern(salt: u8, offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(|at| salt ^ (at / BLOCK) as u8 | 1).collect()
}

async fn fill(volume: &Served, salt: u8, size: u64) {
    for offset in (0..size).step_by(EXTENT as usize) {
        let len = EXTENT.min(size - offset);
        volume.write(offset, pattern(salt, offset, len), false).await.expect("written");
    }
    volume.flush().await.expect("committed");
    // Some pairs get journal areas.
    for offset in (0..size).step_by(2 * EXTENT as usize) {
        volume.write(offset, pattern(salt, offset, 3 * BLOCK), false).await.expect("written");
    }
    volume.flush().await.expect("committed");
}

async fn prepare(serving: &Serving) {
    serving.unit().create_volume("second", CHANGED * EXTENT).await.expect("made");
    let [kept, second] = serving.volumes().try_into().ok().expect("two volumes");
    fill(&kept, 0x40, KEPT * EXTENT).await;
    fill(&second, 0x80, CHANGED * EXTENT).await;
}

/// Writes to the second volume what is there already, until it is refused, and notes by what.
async fn keep_writing(second: Served) -> Refusal {
    loop {
        for offset in (0..CHANGED * EXTENT).step_by(7 * BLOCK as usize) {
            let len = (9 * BLOCK).min(CHANGED * EXTENT - offset);
            match second.write(offset, pattern(0x80, offset, len), len > 4 * BLOCK).await {
                Ok(()) => {}
                Err(refusal) => return refusal,
            }
        }
    }
}

async fn contents(volume: &Served, size: u64) -> Vec<u8> {
    let mut all = Vec::new();
    for offset in (0..size).step_by(EXTENT as usize) {
        let len = EXTENT.min(size - offset) as usize;
        all.extend(volume.read(offset, len).await.expect("read"));
    }
    all
}

fn listed(serving: &Serving) -> Volumes {
    let volumes = serving.unit().volumes();
    volumes.iter().map(|volume| (volume.name().to_string(), volume.size())).collect()
}

/// Checks everything after a recovery; `done` says that the change had been reported as done.
async fn check(serving: &Serving, change: Change, done: bool) {
    let [before, after] = change.outcomes();
    let now = listed(serving);
    assert!(now == after || (now == before && !done), "{change:?}: {now:?}");
    serving.unit().deletions_ended().await;
    assert_eq!(listed(serving), now, "nothing comes back");
    let all = serving.volumes();
    let kept = contents(&all[0], KEPT * EXTENT).await;
    assert!(kept == pattern(0x40, 0, KEPT * EXTENT), "the other volume has changed");
    let second = now.iter().find(|(name, _)| *name == "second" || *name == "renamed");
    if let Some((_, &size)) = second {
        let found = contents(&all[1], size).await;
        let len = size.min(CHANGED * EXTENT);
        let expected = pattern(0x80, 0, len);
        for (at, (byte, wanted)) in found.iter().zip(&expected).enumerate() {
            // Of a shrink that was cut short, parts of the tail may be empty already.
            let emptied = change == Change::Shrink && at as u64 >= CUT && *byte == 0;
            assert!(byte == wanted || emptied, "byte {at} of the second volume is {byte}");
        }
        assert!(found[len as usize..].iter().all(|byte| *byte == 0), "what was never written");
        all[1].write(0, pattern(0x80, 0, BLOCK), true).await.expect("written");
        let allocated = serving.unit().volumes()[1].allocated();
        assert!(change == Change::Shrink || allocated == CHANGED * EXTENT);
    }
    settled(serving).await;
    let allocated = serving.unit().volumes().iter().map(Volume::allocated).sum::<u64>();
    let used = serving.unit().gauges().space.data_extents_used;
    assert_eq!(used * EXTENT, allocated, "extents of nobody");
    serving.check().expect("the unit agrees with itself");
}

/// Waits until nothing is under way: a recovery may have found pairs to release.
async fn settled(serving: &Serving) {
    while !serving.unit().is_quiet() {
        Env::sleep(serving.env(), Duration::from_millis(1)).await;
    }
}

/// What is there can be used after the change: all that is free can be filled, and read.
async fn use_what_is_free(serving: &Serving) {
    let unit = serving.unit();
    let space = unit.gauges().space;
    let free = space.data_extents - space.data_extents_used;
    let size = free * EXTENT;
    unit.create_volume("filler", size).await.expect("made");
    let filler = serving.volumes().pop().expect("it is the last");
    fill(&filler, 0x20, size).await;
    assert!(contents(&filler, size).await == pattern(0x20, 0, size));
    let refusal = unit.create_volume("filler", size).await.map(drop).unwrap_err();
    assert!(refusal.to_string().contains("taken"), "{refusal}");
    serving.check().expect("the unit agrees with itself");
}

/// Crashes at every call of the change and of what follows it, and again at some call of the
/// recovery; what was found is checked after each.
fn crash_everywhere(change: Change, discard: bool) {
    let mut crash_at = 1;
    let mut seen = [false; 2];
    loop {
        let engine = engine(discard);
        let mut machine = formatted(&engine, crash_at, LIMIT);
        let (env, serving) = started(&mut machine, &engine, LIMIT);
        let handle = serving.clone();
        env.run(LIMIT, async move { prepare(&handle).await }).expect("prepared");
        env.crash_in(Some(crash_at));
        let (handle, main) = (serving.clone(), env.clone());
        let outcome = Rc::new(Cell::new(false));
        let done = Rc::clone(&outcome);
        let ended = env.run(LIMIT, async move {
            let second = handle.volumes().remove(1);
            Env::spawn(&main, async move {
                keep_writing(second).await;
            });
            change.make(&handle).await.expect("changed");
            done.set(true);
            handle.unit().deletions_ended().await;
        });
        drop(serving);
        machine.halt(&env, Crash::Power);
        let env = machine.boot(Faults::none());
        env.crash_in(Some(crash_at * 7 % 90 + 1));
        let opened = engine.open(env.clone(), machine.storage());
        // It may come through, and may not.
        let _ = env.run(LIMIT, async move {
            let serving = opened.await.expect("recovery succeeds");
            serving.unit().deletions_ended().await;
        });
        machine.halt(&env, Crash::Power);
        let (env, serving) = started(&mut machine, &engine, LIMIT);
        let [before, _] = change.outcomes();
        seen[usize::from(listed(&serving) != before)] = true;
        let done = outcome.get();
        env.run(LIMIT, async move {
            check(&serving, change, done).await;
            use_what_is_free(&serving).await;
        })
        .expect("everything ends");
        if ended.is_ok() {
            break;
        }
        crash_at += 1;
    }
    assert!(crash_at > 3, "{change:?}: {crash_at} places to crash at");
    assert_eq!(seen, [true; 2], "{change:?}: both outcomes were seen");
}

/// Goal: wherever a crash strikes while a volume is made, renamed, resized or deleted, there is
/// the old list or the new one, and the new one once the change was reported; other volumes are
/// untouched; a deletion is gone on with to its end; and every extent is accounted for.
#[test]
fn a_crash_leaves_the_old_volumes_or_the_new_ones() {
    for change in CHANGES {
        crash_everywhere(change, false);
    }
}

/// Goal: the same where extents that are given back are discarded, and so become garbage at once.
#[test]
fn discards_change_nothing() {
    for change in [Change::Shrink, Change::Delete] {
        crash_everywhere(change, true);
    }
}

/// Goal: whoever uses a volume while it is cut or deleted gets errors beyond the end, or at all,
/// and a handle from before stays harmless.
#[test]
fn requests_meet_a_change() {
    let engine = engine(true);
    let mut machine = formatted(&engine, 5, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    env.run(LIMIT, async move {
        prepare(&serving).await;
        let (unit, id) = (serving.unit().clone(), VolumeId(1));
        let second = serving.volumes().remove(1);
        let refused = |result: Result<(), ManageError>, words: &str| {
            let text = result.unwrap_err().to_string();
            assert!(text.contains(words), "{text}");
        };
        refused(unit.resize_volume(id, CUT, false).await, "--shrink");
        refused(unit.resize_volume(id, CUT + 1, true).await, "multiple of the block size");
        refused(unit.resize_volume(id, 0, true).await, "not zero");
        refused(unit.resize_volume(VolumeId(9), EXTENT, true).await, "no such volume");
        refused(unit.rename_volume(id, "vol0").await, "taken");
        refused(unit.create_volume("a b", EXTENT).await.map(drop), "characters");
        unit.resize_volume(id, CUT, true).await.expect("cut");
        assert!(second.write(CUT - BLOCK, vec![1; BLOCK as usize], true).await.is_ok());
        for offset in [CUT - BLOCK, CUT, 7 * EXTENT] {
            let beyond = second.write(offset, vec![1; 2 * BLOCK as usize], false).await;
            let Err(Refusal::Failed(text)) = beyond else { panic!("{beyond:?}") };
            assert!(text.contains("beyond the volume's"), "{text}");
            assert!(second.read(offset, 2 * BLOCK as usize).await.is_err());
        }
        unit.resize_volume(id, CHANGED * EXTENT, false).await.expect("grown");
        let tail = contents(&second, CHANGED * EXTENT).await.split_off(CUT as usize);
        assert!(tail.iter().all(|byte| *byte == 0), "the cut tail does not come back");
        unit.delete_volume(id).await.expect("deleted");
        for moment in ["while it is emptied", "when it is gone"] {
            let write = second.write(0, vec![1; BLOCK as usize], true).await;
            let expected = Err(Refusal::Failed("the volume was deleted".to_owned()));
            assert_eq!(write, expected, "{moment}");
            assert_eq!(second.flush().await, expected, "{moment}");
            assert!(second.read(0, BLOCK as usize).await.is_err(), "{moment}");
            unit.deletions_ended().await;
        }
        refused(unit.delete_volume(id).await, "no such volume");
        assert_eq!(unit.gauges().space.data_extents_used, KEPT);
        use_what_is_free(&serving).await;
        unit.shut_down().await.expect("everything is committed");
    })
    .expect("everything ends");
}

/// Goal: a request of many pieces that is on its way when its volume is cut or deleted puts nothing
/// beyond the end, wherever it is just then: what was given up stays given up.
#[test]
fn long_requests_meet_a_change() {
    const PARTS: u64 = 5;
    let engine = engine(false);
    let mut machine = formatted(&engine, 11, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let main = env.clone();
    let refusals = env
        .run(LIMIT, async move {
            let unit = serving.unit().clone();
            let refusals = Rc::new(Cell::new(0));
            for round in 0..120 {
                let name = format!("round{round}");
                let size = PARTS * EXTENT;
                let id = unit.create_volume(&name, size).await.expect("made").id();
                let volume = serving.volumes().pop().expect("it is the last");
                let counted = Rc::clone(&refusals);
                Env::spawn(&main, async move {
                    let all = || volume.zero(0, size, Zeroing::NoHole, false);
                    while all().await.is_ok() {}
                    counted.set(counted.get() + 1);
                });
                Env::sleep(&main, Duration::from_micros(round * 13)).await;
                if round % 2 == 0 {
                    unit.resize_volume(id, CUT, true).await.expect("cut");
                    let left = CUT.div_ceil(EXTENT) * EXTENT;
                    let allocated = unit.volume(&name).expect("it is there").allocated();
                    assert!(allocated <= left, "{allocated} bytes after round {round}");
                }
                unit.delete_volume(id).await.expect("deleted");
                unit.deletions_ended().await;
                let used = unit.gauges().space.data_extents_used;
                assert_eq!(used, 0, "after round {round}");
            }
            settled(&serving).await;
            serving.check().expect("the unit agrees with itself");
            refusals.get()
        })
        .expect("everything ends");
    assert_eq!(refusals, 120, "every request met its change");
}

/// Goal: where the metadata store fails at a change, nobody knows whether it was made. Whatever was
/// acknowledged as durable afterwards is there after a restart, and the pool can be served.
#[test]
fn a_store_that_fails_at_a_change_loses_nothing() {
    for change in [Change::Shrink, Change::Delete] {
        for applied in [false, true] {
            let engine = engine(false);
            let mut machine = formatted(&engine, 21, LIMIT);
            let (env, serving) = started(&mut machine, &engine, LIMIT);
            let (handle, failing) = (serving.clone(), engine.clone());
            let durable = env.run(LIMIT, async move {
                prepare(&handle).await;
                failing.fail_the_store(applied);
                change.make(&handle).await.expect_err("the store fails");
                write_everywhere(&handle.volumes()).await
            });
            let durable = durable.expect("everything ends");
            drop(serving);
            machine.halt(&env, Crash::Power);
            let (env, serving) = started(&mut machine, &engine, LIMIT);
            env.run(LIMIT, async move {
                let second = serving.volumes().into_iter().nth(1);
                for offset in durable {
                    let second = second.as_ref().expect("a volume with durable writes is there");
                    let found = second.read(offset, BLOCK as usize).await.expect("read");
                    assert!(found == pattern(0x11, offset, BLOCK), "{change:?} {applied} {offset}");
                }
            })
            .expect("everything ends");
        }
    }
}

/// Writes where the second volume was before any change, and says which writes are durable.
async fn write_everywhere(volumes: &[Served]) -> Vec<u64> {
    let mut durable = Vec::new();
    for offset in (0..CHANGED * EXTENT).step_by(BLOCK as usize) {
        let written = match volumes.get(1) {
            Some(second) => second.write(offset, pattern(0x11, offset, BLOCK), true).await.is_ok(),
            None => false,
        };
        durable.extend(written.then_some(offset));
    }
    durable
}

/// Goal: a long trim that is to be durable ends, also where its volume is gone before its last
/// piece: nobody commits that any more.
#[test]
fn a_long_durable_trim_ends_with_its_volume() {
    let engine = engine(false);
    let mut machine = formatted(&engine, 31, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let main = env.clone();
    env.run(LIMIT, async move {
        let unit = serving.unit().clone();
        let size = 4 << 30;
        let id = unit.create_volume("thin", size).await.expect("made").id();
        let volume = serving.volumes().pop().expect("it is the last");
        let ended = Rc::new(Cell::new(false));
        let done = Rc::clone(&ended);
        Env::spawn(&main, async move {
            // However it ends.
            let _ = volume.zero(0, size, Zeroing::Trim, true).await;
            done.set(true);
        });
        Env::sleep(&main, Duration::from_micros(50)).await;
        unit.delete_volume(id).await.expect("deleted");
        unit.deletions_ended().await;
        assert!(!ended.get(), "the trim is longer than the deletion");
        while !ended.get() {
            Env::sleep(&main, Duration::from_millis(1)).await;
        }
        unit.shut_down().await.expect("everything is committed");
    })
    .expect("everything ends");
}
