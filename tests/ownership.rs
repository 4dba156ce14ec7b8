//! A start attaches before it writes: who is refused has changed nothing, and a crash between
//! leaves a pool that can be started.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/simulated.rs"]
mod simulated;

use flipside::env::Env as _;
use flipside::env::sim::{Crash, Faults, Limit, Stop};
use flipside::format::ids::{HostId, Incarnation, PoolId, UnitId};
use flipside::format::layout::Geometry;
use flipside::mds::client::Client;
use flipside::mds::records::Claim;
use flipside::sim::engine::{Engine as _, Refusal, Running as _, Volume as _};
use flipside::sim::flipside::Flipside;
use flipside::unit::Config;
use std::time::Duration;

use simulated::{formatted, started};

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 5_000_000 };
const BLOCK: u64 = 512;
const EXTENT: u64 = 32 * BLOCK;

fn engine() -> Flipside {
    let geometry = Geometry::new(BLOCK as u32, EXTENT as u32).expect("sound sizes");
    let config = Config { commit_interval: None, ..Config::default() };
    Flipside::plain(geometry, 24, 4, 6 * EXTENT, config).on_host(HostId([1; 16]))
}

/// Goal: two hosts have both seen that nobody owns a pool whose flags are on its device, and one of
/// them has attached since: the other is refused, and not a byte of the device has changed.
#[test]
fn who_is_refused_has_written_nothing() {
    let engine = engine();
    let mut machine = formatted(&engine, 1, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let volume = serving.volumes().remove(0);
    let written = async move {
        volume.write(0, vec![7; EXTENT as usize], false).await?;
        volume.flush().await
    };
    env.run(LIMIT, written).unwrap().unwrap();
    machine.halt(&env, Crash::Process);
    let env = machine.boot(Faults::none());
    let before = env.media_version();
    let other = engine.clone().on_host(HostId([2; 16]));
    let opened = other.open(env.clone(), machine.storage());
    let refused = env.run(LIMIT, opened).expect("it ends").map(drop).unwrap_err();
    assert!(refused.contains("another host"), "{refused}");
    assert_eq!(env.media_version(), before, "the owner's device was written");
    machine.halt(&env, Crash::Process);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let volume = serving.volumes().remove(0);
    let read = async move { volume.read(0, EXTENT as usize).await };
    assert_eq!(env.run(LIMIT, read).unwrap().unwrap(), vec![7; EXTENT as usize]);
}

/// Goal: a start may end at every call that it makes, a few times one after another, so that the
/// server knows of starts that the device does not: the next one is another start, and is granted.
#[test]
fn a_start_that_never_began_is_counted_past() {
    for calls in 0.. {
        let engine = engine();
        let mut machine = formatted(&engine, calls, LIMIT);
        let mut whole = false;
        for _ in 0..3 {
            let env = machine.boot(Faults::none());
            env.crash_in(Some(calls));
            let opened = engine.open(env.clone(), machine.storage());
            match env.run(LIMIT, opened) {
                Err(Stop::Crashed) => {}
                ended => {
                    drop(ended.expect("it ends").expect("it is granted"));
                    whole = true;
                }
            }
            machine.halt(&env, Crash::Process);
        }
        started(&mut machine, &engine, LIMIT);
        if whole {
            assert!(calls > 20, "a start of {calls} calls");
            return;
        }
    }
}

/// Goal: a lease is kept by a server that always answers later than it is asked again, and well
/// before the lease ends.
#[test]
fn late_renewals_count() {
    let engine = engine().leased(Some(Duration::from_secs(12)));
    let mut machine = formatted(&engine, 1, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let way = 2_500_000_000;
    let mut faults = Faults::none();
    faults.datagram_ns = (way, way + 1);
    env.set_faults(faults);
    let volume = serving.volumes().remove(0);
    let handle = env.clone();
    let kept = async move {
        for _ in 0..60 {
            handle.sleep(Duration::from_secs(1)).await;
            volume.write(0, vec![7; BLOCK as usize], false).await?;
            volume.flush().await?;
        }
        Ok::<_, Refusal>(())
    };
    env.run(LIMIT, kept).unwrap().expect("the lease is kept");
}

/// Goal: who takes over what another host has had serves nobody until that host's lease is over;
/// without one nobody waits.
#[test]
fn the_lease_of_the_former_owner_is_waited_for() {
    for seconds in [0, 1, 30] {
        let former_lease = Duration::from_secs(seconds);
        let engine = engine();
        let mut machine = formatted(&engine, seconds, LIMIT);
        let (env, serving) = started(&mut machine, &engine, LIMIT);
        let volume = serving.volumes().remove(0);
        let written = async move { volume.write(0, vec![7; EXTENT as usize], true).await };
        env.run(LIMIT, written).unwrap().unwrap();
        machine.halt(&env, Crash::Process);

        let (env, serving) = started(&mut machine, &engine.after_lease(former_lease), LIMIT);
        let took = Duration::from_nanos(env.lived());
        let most = former_lease + Duration::from_secs(1);
        assert!(took >= former_lease && took < most, "{took:?} with a lease of {former_lease:?}");
        let volume = serving.volumes().remove(0);
        let read = async move { volume.read(0, EXTENT as usize).await };
        assert_eq!(env.run(LIMIT, read).unwrap().unwrap(), vec![7; EXTENT as usize]);
    }
}

/// Goal: a unit without a lease hears soon that another host has its pool, whether or not it has
/// anything to tell the server, and then its reads end, too.
#[test]
fn who_was_replaced_hears_of_it() {
    let engine = engine();
    let mut machine = formatted(&engine, 1, LIMIT);
    let (env, serving) = started(&mut machine, &engine, LIMIT);
    let handle = env.clone();
    let replaced = async move {
        let claim = Claim::of(PoolId::default(), UnitId(1), Incarnation(9));
        let claim = Claim { host: HostId([2; 16]), fenced: true, ..claim };
        let other = Client::attach(handle.clone(), handle.link(3), claim).await.map(drop);
        other.expect("it is granted");
        handle.sleep(Duration::from_secs(2)).await;
        let volume = serving.volumes().remove(0);
        volume.read(0, BLOCK as usize).await
    };
    assert!(env.run(LIMIT, replaced).unwrap().is_err(), "it reads what may be another's");
}
