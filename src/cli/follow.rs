//! `flipside serve --follow`: the volumes of a pool, read beside the target that writes them.
//!
//! # Contracts
//!
//! - **Harmless**: nothing is claimed, and nothing is written to the devices.
//! - **Volumes**: exports come and go as volumes do at the target that writes, soon after.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures_util::future::{Either, select};
use serde_json::Value;
use tracing::{info, warn};

use super::device::{self, PoolMember};
use super::link::{self, MetadataServer};
use super::operator::Uris;
use super::ready::say_ready;
use super::serve::{Args, DRAIN_TIME_MAX, bind, fixed_report};
use super::status::{FlagsReport, FollowReport, Report};
use crate::env::aside::Aside;
use crate::env::os::notify::notify;
use crate::env::os::{OsDisk, OsEnv, Signals};
use crate::env::{Env as _, Moment};
use crate::follow::{Follower, LEASE_DEFAULT, Parts, Volume};
use crate::format::layout::DeviceExtents;
use crate::format::superblock::FlagsPlace;
use crate::front::control::{self, Operator, Request, Session};
use crate::front::listen::Bound;
use crate::front::nbd::{Limits, Server};
use crate::observe::{Counters, Gauges, Latencies, SlowWatch, Snapshot};

/// How long the metadata server may take to hear that the reader ends.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// Serves until told to stop.
pub async fn serve(env: OsEnv, args: Args, passed: Vec<OwnedFd>, signals: Signals) -> Result<()> {
    let members = device::observe(&env, &args.devices).await?;
    let [first, ..] = members.as_slice() else { unreachable!("a pool has a device") };
    link::check_place(&args.mds, &first.superblock)?;
    ensure!(
        first.superblock.flags == FlagsPlace::Mds,
        "the flags of pool {} are kept by the target that writes it: only a pool made with its \
         flags at the metadata server can be followed: flipside format --mds HOST:PORT --flags mds",
        first.superblock.pool
    );
    let slow = Rc::new(SlowWatch::new(args.slow_io.0));
    members.iter().for_each(|member| member.claimed.disk.watch(Rc::clone(&slow)));
    ensure!(!args.serves_devices(), "--follow serves NBD clients only: leave out --listen ublk");
    let (clients, operators) = bind(&args, passed, first.superblock.pool)?;
    let MetadataServer { link, at, .. } =
        link::connect(&env, &args.mds, first, Arc::new(Aside::alone()))?;
    let parts = Parts {
        env: env.clone(),
        pool: first.superblock.pool,
        unit: first.superblock.unit,
        host: args.owner.host()?,
        geometry: first.superblock.geometry,
        devices: members.iter().map(device_of).collect(),
        link,
        lease: LEASE_DEFAULT,
    };
    let opened = Box::pin(Follower::open(parts));
    let follower = match select(opened, Box::pin(signals.next())).await {
        Either::Left((opened, _)) => opened?,
        Either::Right(_) => {
            info!("told to stop before anything was served");
            return Ok(());
        }
    };
    let fixed = fixed_report(&members, FlagsReport::mds(), at);
    let reader = Reader::start(&env, follower, clients, slow, fixed)?;
    control::serve(env.ring(), operators, reader.clone())?;
    say_ready(reader.exports());
    let signal = signals.next().await?;
    info!(?signal, "stopping");
    reader.stop(&signals).await;
    Ok(())
}

fn device_of(member: &PoolMember) -> (OsDisk, DeviceExtents) {
    (member.claimed.disk.clone(), member.superblock.layout.extents)
}

/// A target that only reads, as its control socket sees it. Cheap to clone: a handle.
#[derive(Clone)]
struct Reader(Rc<Inner>);

struct Inner {
    env: OsEnv,
    follower: Follower<OsEnv>,
    server: Server<Volume<OsEnv>>,
    counters: Rc<Counters>,
    latencies: Rc<Latencies>,
    addresses: Vec<Uris>,
    fixed: Report,
    started: Moment,
}

impl Reader {
    /// Offers the volumes to clients from now on.
    fn start(
        env: &OsEnv,
        follower: Follower<OsEnv>,
        clients: Vec<Bound>,
        slow: Rc<SlowWatch>,
        fixed: Report,
    ) -> Result<Self> {
        let (counters, latencies) = (Rc::<Counters>::default(), Rc::new(Latencies::watched(slow)));
        let limits = Limits { read_only: true, ..Limits::default() };
        let (ring, buffers) = (env.ring(), env.buffers());
        let server =
            Server::new(ring, buffers, limits, Rc::clone(&counters), Rc::clone(&latencies))?;
        let addresses = clients.iter().map(|bound| Box::new(bound.uris()) as Uris).collect();
        let (env, started) = (env.clone(), env.now());
        let inner = Inner { env, follower, server, counters, latencies, addresses, fixed, started };
        let reader = Reader(Rc::new(inner));
        reader.offer();
        reader.0.env.spawn(reader.clone().offer_all());
        for bound in clients {
            reader.0.server.listen(bound)?;
        }
        Ok(reader)
    }

    /// Answers what is under way, and takes no more requests.
    async fn stop(&self, signals: &Signals) {
        let Inner { env, server, follower, .. } = &*self.0;
        // The manager waits for the end in any case.
        let _ = notify("STOPPING=1");
        let drained = Box::pin(server.drain());
        let enough = select(Box::pin(signals.next()), Box::pin(env.sleep(DRAIN_TIME_MAX)));
        if let Either::Right(_) = select(drained, enough).await {
            warn!("{} clients are left behind", server.connections_open());
        }
        follower.close(CLOSE_PATIENCE).await;
    }

    /// Offers the volumes that there are now, and no others.
    fn offer(&self) {
        let Inner { server, follower, .. } = &*self.0;
        server.replace_exports(follower.volumes());
    }

    /// Does that whenever they have changed.
    async fn offer_all(self) {
        loop {
            self.0.follower.volumes_changed().await;
            self.offer();
        }
    }

    /// Where clients find the volumes now; only the addresses where there is no volume.
    fn exports(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.0.follower.volumes().iter().filter_map(Volume::name).collect();
        if names.is_empty() {
            names.push(String::new());
        }
        let at = |uri: &Uris| names.iter().map(|name| uri(name)).collect::<Vec<_>>();
        self.0.addresses.iter().flat_map(at).collect()
    }

    fn report(&self) -> Report {
        let Inner { env, follower, server, counters, latencies, fixed, started, .. } = &*self.0;
        let gauges = Gauges { connections_open: server.connections_open(), ..Gauges::default() };
        Report {
            exports: self.exports(),
            uptime_s: env.now().since(*started).as_secs(),
            mds: fixed.mds.as_ref().map(|mds| mds.at(env.now(), follower.client_status(), None)),
            follow: Some(FollowReport::from(follower.status())),
            snapshot: Snapshot::take(counters, latencies, gauges),
            ..fixed.clone()
        }
    }
}

impl Operator for Reader {
    type Session = Self;

    fn session(&self) -> Self {
        self.clone()
    }
}

impl Session for Reader {
    fn operate(&self, request: Request) -> impl Future<Output = Result<Value, String>> + 'static {
        let reader = self.clone();
        async move {
            match request {
                Request::Status => {
                    serde_json::to_value(reader.report()).map_err(|error| error.to_string())
                }
                _ => Err("this target only reads: ask the one that writes the pool".to_owned()),
            }
        }
    }
}
