//! A running target as its control socket sees it.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use serde_json::Value;
use tokio::sync::Notify;

use super::atomic::Draft;
use super::groups;
use super::journal::Entry;
use super::status::Report;
use super::volumes;
use crate::env::os::OsEnv;
use crate::env::{Env as _, Moment};
use crate::format::ids::VolumeId;
use crate::front::control::{Operator, Request, Session};
use crate::front::nbd::Server;
use crate::mds::records::ServerStatus;
use crate::observe::{Latencies, RateWindow, SAMPLE_INTERVAL, Snapshot};
use crate::unit::{Unit, Volume};

/// How long a report waits for the metadata server; without it, it is shown without.
const METADATA_TIME_MAX: Duration = Duration::from_secs(1);

/// The URI of the export of a name, at one address.
pub type Uris = Box<dyn Fn(&str) -> String>;

/// A running target. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Target(Rc<Inner>);

struct Inner {
    env: OsEnv,
    unit: Unit<OsEnv>,
    server: Server<Volume<OsEnv>>,
    latencies: Rc<Latencies>,
    /// Where clients find an export of some name.
    addresses: Vec<Uris>,
    /// What does not change: the pool and its devices.
    fixed: Report,
    rates: RefCell<RateWindow>,
    started: Moment,
    /// Told when a successor wants the pool.
    replaced: Notify,
}

impl Target {
    /// A target that serves from now on; `fixed` is what will not change of its reports.
    pub fn new(
        env: &OsEnv,
        unit: Unit<OsEnv>,
        server: Server<Volume<OsEnv>>,
        latencies: Rc<Latencies>,
        addresses: Vec<Uris>,
        fixed: Report,
    ) -> Self {
        let started = env.now();
        let target = Self(Rc::new(Inner {
            env: env.clone(),
            unit,
            server,
            latencies,
            addresses,
            fixed,
            rates: RefCell::default(),
            started,
            replaced: Notify::new(),
        }));
        env.spawn(target.clone().sample());
        target
    }

    /// Returns when a successor wants the pool.
    pub async fn replaced(&self) {
        self.0.replaced.notified().await;
    }

    /// Samples what rates are made of, for as long as the target runs.
    async fn sample(self) {
        let Inner { env, unit, rates, started, .. } = &*self.0;
        loop {
            rates.borrow_mut().sample(env.now().since(*started), &unit.counters());
            env.sleep(SAMPLE_INTERVAL).await;
        }
    }

    /// Where clients find the volumes now; only the addresses where there is no volume.
    pub fn exports(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.unit.volumes().iter().map(Volume::name).collect();
        if names.is_empty() {
            names.push(Rc::from(""));
        }
        let at = |uri: &Uris| names.iter().map(|name| uri(name)).collect();
        let all: Vec<Vec<String>> = self.0.addresses.iter().map(at).collect();
        all.concat()
    }

    async fn report(&self) -> Report {
        let Inner { env, unit, server, latencies, fixed, started, .. } = &*self.0;
        let metadata_server = self.metadata_server().await;
        let counters = unit.counters();
        // What the journal and the store count themselves joins the other metadata here.
        let store = metadata_server.map_or(0, |status| status.store_bytes_written);
        let written = unit.metadata_bytes() + store;
        let known = counters.device_bytes_metadata.get();
        counters.device_bytes_metadata.add(written.saturating_sub(known));
        let mut gauges = unit.gauges();
        gauges.connections_open = server.connections_open();
        for volume in &mut gauges.volumes {
            volume.clients = server.clients_of(&volume.name) as u64;
        }
        let uptime = env.now().since(*started);
        gauges.rates = self.0.rates.borrow().rates(uptime, &counters);
        Report {
            exports: self.exports(),
            uptime_s: uptime.as_secs(),
            txn_max: unit.txn_max(),
            mds: fixed
                .mds
                .as_ref()
                .map(|mds| mds.at(env.now(), unit.link_status(), unit.lease_left())),
            metadata_server: metadata_server.and_then(|of| serde_json::to_value(of).ok()),
            snapshot: Snapshot::take(&counters, latencies, gauges),
            ..fixed.clone()
        }
    }

    /// What the metadata server counts, where it answers.
    async fn metadata_server(&self) -> Option<ServerStatus> {
        let asked = Box::pin(self.0.unit.server_status());
        match select(asked, Box::pin(self.0.env.sleep(METADATA_TIME_MAX))).await {
            Either::Left((answer, _)) => answer.ok(),
            Either::Right(_) => None,
        }
    }

    /// The number of a volume, where one is named.
    fn find(&self, name: Option<&str>) -> Result<Option<VolumeId>, String> {
        let Some(name) = name else { return Ok(None) };
        let volume =
            self.0.unit.volume(name).ok_or_else(|| format!("no volume is named {name}"))?;
        Ok(Some(volume.id()))
    }

    async fn carry_out(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::Status => {
                serde_json::to_value(self.report().await).map_err(|error| error.to_string())
            }
            Request::Volume(request) => {
                volumes::carry_out(&self.0.unit, Some(&self.0.server), request).await
            }
            Request::Journal => {
                let groups = self.0.unit.linked_groups().into_iter().map(Entry::from);
                serde_json::to_value(groups.collect::<Vec<_>>()).map_err(|error| error.to_string())
            }
            Request::Group(request) => groups::carry_out(&self.0.unit, request).await,
            Request::Commit { group: Some(group), .. } => {
                let cut = self.0.unit.cut(&group).await;
                let cut =
                    cut.ok_or_else(|| format!("this target has no volume of group {group}"))?;
                cut.map(|cut| Value::String(cut.to_string())).map_err(|error| error.to_string())
            }
            Request::Commit { volume, group: None } => {
                let volume = self.find(volume.as_deref())?;
                let done = self.0.unit.commit(volume).await;
                done.map(|()| Value::Null).map_err(|error| error.to_string())
            }
            Request::Txn(_) => unreachable!("a session's own"),
            Request::Replace => {
                self.0.replaced.notify_one();
                Ok(Value::Null)
            }
            Request::Settle { volume } => {
                let volume = self.find(volume.as_deref())?;
                let report = self.0.unit.settle(volume).await.map_err(|error| error.to_string())?;
                Ok(serde_json::json!({
                    "swaps": report.swaps,
                    "area_commits": report.commits,
                    "released": report.released,
                    "blocks_copied": report.blocks_copied,
                }))
            }
        }
    }
}

/// A running target as one client of its control socket sees it.
pub struct TargetSession {
    target: Target,
    draft: Rc<Draft>,
}

impl Operator for Target {
    type Session = TargetSession;

    fn session(&self) -> TargetSession {
        TargetSession { target: self.clone(), draft: Rc::default() }
    }
}

impl Session for TargetSession {
    fn operate(&self, request: Request) -> impl Future<Output = Result<Value, String>> + 'static {
        let (target, draft) = (self.target.clone(), Rc::clone(&self.draft));
        async move {
            match request {
                Request::Txn(request) => {
                    let Inner { unit, fixed, .. } = &*target.0;
                    draft.carry_out(unit, &fixed.pool, request).await
                }
                request => target.carry_out(request).await,
            }
        }
    }
}
