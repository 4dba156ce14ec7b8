//! A unit in a consistency group with another one, which [`peer`] plays: one cut for both.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/peer.rs"]
mod peer;
#[path = "support/simulated.rs"]
mod simulated;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use flipside::env::Env;
use flipside::env::sim::{Crash, Machine};
use flipside::sim::engine::{Running as _, Volume as _};
use flipside::sim::flipside::Served;
use flipside::txn::participant::{Progress, Standing};
use flipside::txn::{Phase, Report, Stage};
use peer::*;
use simulated::started;

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
                // Of the member's vote the coordinator has heard before.
                let transaction = there.peer.borrow().transaction.unwrap().0;
                let (group, version, life) = (GROUP, 1, 1);
                let (wants, transaction) = (false, Some(transaction));
                let phase = Phase::Prepared;
                let atomic = None;
                let vote = Report { group, version, life, wants, atomic, transaction, phase };
                there.machinery.borrow_mut().hear(OURS, &vote, of.now());
                there.go_on(of.now());
                assert_eq!(there.machinery.borrow().progress().1, Stage::Committed);
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
