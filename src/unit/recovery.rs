//! Recovery: finding everything again, in the order of design section 5 ‡.
//!
//! 1. The devices are claimed and nothing of a predecessor can still arrive (the caller's part).
//! 2. Devices and region are flushed: what is read must not vanish later.
//! 3. The session with the metadata server begins: until it is granted, nothing is written. Home
//!    and list are read, every slot is scanned, and what was cut off is invalidated
//!    ([`Journal::open`]); or, where they are at the metadata server, it is asked for the lines.
//! 4. The linked groups are applied to the lines again, oldest first.
//!    What the process before this one had acknowledged and not committed is pending again, where
//!    that is known ([`super::adopt`]), and committed before requests are served.
//! 5. What the metadata server has granted and no pair names is free, and it is asked for more
//!    where that is less than the grant; then it is told what it missed.
//! 6. Groups are joined, and the coordinator is asked for what is in doubt ([`Unit::join_groups`]:
//!    the caller's part).
//! 7. Requests are served.
//!
//! Nothing depends on the size of a volume but loading the lines.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, RwLock};

use super::adopt::Heir;
use super::allotment::{AllotmentError, fill};
use super::copy::CopyBuffers;
use super::destage::DESTAGE_BYTES;
use super::domain::Domain;
use super::doubt::hold;
use super::fullness::Fullness;
use super::gauges::Progress;
use super::global::Talk;
use super::grant::Grant;
use super::lease::Hold;
use super::limits::Limits;
use super::linked::Ages;
use super::manage::Management;
use super::pairs::Pairs;
use super::payload::{Committed, Ledger};
use super::policy::Watermarks;
use super::pool::{ExtentPool, Numbers};
use super::readers::{Readers, followed};
use super::settle::bound;
use super::state::{Stage, State, VolumeState};
use super::warm::{Table, WarmMemory};
use super::{Config, Device, Inner, REGION_DEVICE, RecoverError, Unit};
use crate::env::flags::FlagsRegion;
use crate::env::latch::Latching;
use crate::env::region::DeviceRegion;
use crate::env::{Disk, Env, Moment, Region};
use crate::format::group::GroupState;
use crate::format::home::Line;
use crate::format::ids::{ExtentRun, Incarnation, LogicalExtent, PairId, PoolId, Sequence, UnitId};
use crate::format::layout::{DeviceExtents, Geometry};
use crate::journal::payload::{Bytes, Held};
use crate::journal::place::Place;
use crate::journal::{Journal, Opened, Payloads, RecoveredGroup, as_if_committed, replay};
use crate::mds::client::Client;
use crate::mds::records::{Claim, PairRecord, Primitive, TRANSACT_PRIMITIVES_MAX, VolumeInfo};
use crate::mutants::{Mutant, mutated};
use crate::observe::{Counters, Latencies, Waiters};

/// Where a unit of that environment keeps its journal and home.
pub type RegionOf<E> = FlagsRegion<DeviceRegion<Latching<<E as Env>::Disk>>, <E as Env>::Nvram>;

/// A device of the pool.
pub struct Member<E: Env> {
    /// The device, claimed.
    pub disk: Latching<E::Disk>,
    /// The extents on it.
    pub extents: DeviceExtents,
}

/// What a unit is made of.
pub struct Parts<E: Env> {
    /// The environment.
    pub env: E,
    /// The pool.
    pub pool: PoolId,
    /// The unit's number in it.
    pub unit: UnitId,
    /// The sizes of blocks and extents.
    pub geometry: Geometry,
    /// Extents kept from thin allocation.
    pub reserve: u32,
    /// All devices of the pool.
    pub devices: Vec<Member<E>>,
    /// Where journal and home are; `None`: at the metadata server.
    pub region: Option<RegionOf<E>>,
    /// The channel to the metadata server.
    pub link: E::Link,
    /// What can be tuned.
    pub config: Config,
    /// Where to count.
    pub counters: Rc<Counters>,
    /// Where to time commits.
    pub latencies: Rc<Latencies>,
    /// What outlives the process; `None`: every restart is cold, as it is where a pool is held by a
    /// lease.
    pub warm: Option<WarmMemory>,
}

/// What a recovery found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Groups that were applied again.
    pub groups: usize,
    /// Pairs in use.
    pub pairs: usize,
    /// Pairs that the metadata server had not been told of.
    pub told: usize,
    /// Blocks that the process before this one had not committed; `None`: it was a cold start.
    pub adopted: Option<usize>,
    /// How long it took.
    pub took: Duration,
}

impl<E: Env> Unit<E> {
    /// Recovers a unit and starts it. The devices must be claimed, and nothing that an earlier
    /// process sent to them may still be on its way.
    pub async fn recover(mut parts: Parts<E>) -> Result<(Unit<E>, RecoveryReport), RecoverError> {
        if parts.config.ownership.lease.is_some() {
            // Another host may have the pool as soon as the lease ends, and what a start has begun
            // to adopt is not given up for that ‡ (the simulator's seed 22 of clusters).
            parts.warm = None;
        }
        let started = parts.env.now();
        let pairs: u32 = parts.devices.iter().map(|member| member.extents.count).sum();
        let mut heir = Heir::look(&parts, pairs);
        if !mutated(Mutant::RecoveryFlushSkipped) {
            let stable = make_stable(&parts).await;
            stable.inspect_err(|error| heir.give_up(&error.to_string()))?;
        }
        let found = Found::find(&parts, pairs, &mut heir).await?;
        let Found { place: journal, client, claimed, lines, groups, stale_pages, doubts, payload } =
            found;
        let mut seen = as_if_committed(&lines, &doubts)?;
        // Who had the pool before may read what it knew until its lease has ended: until then no
        // extent is given another meaning.
        let former = parts.config.ownership.former_lease;
        if !former.is_zero() {
            parts.env.sleep(former).await;
        }
        let mut report = RecoveryReport { groups: groups.len(), ..RecoveryReport::default() };
        let volumes = client.volumes().await?;
        let plan = heir.plan(&parts, &lines, &mut seen, &volumes).await?;
        // Grants first: a store that was made anew must know of them before it is told of pairs.
        let (pool, grant) = granted(&client, parts.config.grant, &seen).await?;
        report.told = reconcile(&client, parts.unit, &volumes, &lines).await?;
        report.pairs = lines.iter().filter(|line| line.binding.owner.is_some()).count();
        let data_extents = pairs.saturating_sub(parts.reserve);
        let space = (pool, grant, data_extents);
        let mut state = build_state(parts.geometry, (lines, &seen), &volumes, space, stale_pages)?;
        hold(&mut state, &doubts, parts.env.now())?;
        if let Some(plan) = &plan {
            plan.apply(&mut state, u64::MAX, parts.env.now());
        }
        state.fullness = Fullness::new(&parts.config.warn_full);
        state.watch_fullness();
        keep_payload(&mut state, payload, parts.geometry)?;
        groups.into_iter().for_each(|sequence| journal.publish(sequence));
        let hold = Hold::new(client.lease(), claimed);
        let unit = assemble(parts, journal, (client, hold), (state, heir.table)).await?;
        unit.0.renew().await?;
        if let Some(plan) = &plan {
            unit.0.redo(plan).await?;
        }
        unit.start_commits();
        if let Some(plan) = &plan {
            unit.commit_adopted().await?;
            unit.0.adopted.set(true);
            report.adopted = Some(plan.blocks());
        }
        // A start waits for the server as long as it takes, whatever it has to commit.
        unit.0.journal.set_patience(unit.0.config.mds_timeout);
        if let Some(table) = &unit.0.warm {
            table.begin(unit.0.journal.incarnation());
        }
        unit.start_tasks();
        report.took = unit.0.env.now().since(started);
        Ok((unit, report))
    }

    /// Starts what a commit needs, and nothing that moves what is committed ‡: until the table of
    /// an earlier start is replaced, that says where its contents lie (found by the simulator, seed
    /// 2870).
    fn start_commits(&self) {
        let inner = &self.0;
        let domains = inner.state.borrow().domains.len();
        (0..domains).for_each(|domain| inner.env.spawn(Rc::clone(inner).commit_epochs(domain)));
        inner.env.spawn(Rc::clone(inner).checkpoint_when_crowded());
        inner.env.spawn(Rc::clone(inner).destage_when_wanted());
        inner.env.spawn(Rc::clone(inner).keep_lease());
    }

    fn start_tasks(&self) {
        let inner = &self.0;
        let stages: Vec<_> = inner.state.borrow().volumes.iter().map(|v| v.stage).collect();
        for (volume, stage) in stages.into_iter().enumerate() {
            if stage == Stage::Deleting {
                inner.begin_deletion(volume);
            }
        }
        inner.env.spawn(Rc::clone(inner).settle_when_wanted());
        inner.env.spawn(Rc::clone(inner).tell_news());
        inner.env.spawn(Rc::clone(inner).keep_grant());
        inner.look_at_grant(&inner.state.borrow());
        inner.look_at_payload();
        // Pairs left empty by a crash are released, and a pool left short is settled.
        inner.settle_wanted.notify_one();
    }
}

/// Makes durable everything that can be read.
async fn make_stable<E: Env>(parts: &Parts<E>) -> Result<(), RecoverError> {
    for member in &parts.devices {
        let flushed = member.disk.flush().await;
        let device = || member.disk.name().to_owned();
        flushed.map_err(|error| RecoverError::Device { device: device(), error })?;
    }
    let Some(region) = &parts.region else { return Ok(()) };
    let flushed = region.flush().await;
    flushed.map_err(|error| RecoverError::Device { device: "the journal region".into(), error })
}

/// The unit's lines, and where they go on.
struct Found<E: Env> {
    place: Place<E, RegionOf<E>>,
    client: Client<E>,
    /// When the session was asked for.
    claimed: Moment,
    lines: Vec<Line>,
    /// The groups whose effect the lines have, and the home not yet.
    groups: Vec<Sequence>,
    stale_pages: BTreeSet<u32>,
    /// The groups of which it is not known whether they took place.
    doubts: Vec<RecoveredGroup>,
    /// The blocks whose contents are in the journal alone: decided ones, and those in doubt.
    payload: [Payloads; 2],
}

impl<E: Env> Found<E> {
    /// Finds the lines of so many pairs, and begins the session with the metadata server.
    async fn find(parts: &Parts<E>, pairs: u32, heir: &mut Heir) -> Result<Self, RecoverError> {
        match &parts.region {
            Some(region) => Self::in_region(parts, region.clone(), pairs, heir).await,
            None => Self::at_server(parts, pairs, heir).await,
        }
    }

    /// The session comes before anything is written: another host may be refused for it, or have
    /// attached and be the one who writes.
    async fn in_region(
        parts: &Parts<E>,
        region: RegionOf<E>,
        pairs: u32,
        heir: &mut Heir,
    ) -> Result<Self, RecoverError> {
        let Parts { env, pool, unit, .. } = parts;
        let last = Journal::last_start(env, &region, *pool).await?;
        let claim = parts.config.ownership.claim_after(*pool, *unit, last);
        let claimed = env.now();
        let client = Client::attach(env.clone(), parts.link.clone(), claim).await?;
        let start = (*unit, client.incarnation());
        heir.follow(last, client.incarnation());
        let mut opened = Journal::open(env, region, *pool, start, pairs).await?;
        client.begin().await?;
        let mut doubts = opened.take_doubts();
        if mutated(Mutant::PreparedDroppedAtRecovery) {
            doubts.clear();
            opened.payload[1].clear();
        }
        let Opened { journal, mut lines, groups, payload } = opened;
        let stale_pages = replay(&mut lines, &groups)?;
        // What was aborted has no effect to be published.
        let decided = groups.iter().filter(|group| group.state != GroupState::Aborted);
        let groups = decided.map(|group| group.sequence).collect();
        let place = Place::Local(Box::new(journal));
        Ok(Found { place, client, claimed, lines, groups, stale_pages, doubts, payload })
    }

    /// The session comes first: from then on nothing of an earlier start changes the lines.
    async fn at_server(
        parts: &Parts<E>,
        pairs: u32,
        heir: &mut Heir,
    ) -> Result<Self, RecoverError> {
        let Parts { env, pool, unit, .. } = parts;
        let counted = Claim::of(*pool, *unit, Incarnation::default());
        let claim = parts.config.ownership.claim(Claim { incarnation: None, ..counted });
        let client = Client::attach(env.clone(), parts.link.clone(), claim).await?;
        heir.follow_counted(client.incarnation());
        // What an earlier start has freed may be read still, for as long as a reader's lease.
        followed(env, &client, client.renew().await?).await?;
        let claimed = env.now();
        client.renew().await?;
        let lines = kept(pairs, client.lines().await?.lines)?;
        let place = Place::at_server(env.clone(), client.clone(), *unit);
        let (groups, stale_pages, doubts, payload) = Default::default();
        Ok(Found { place, client, claimed, lines, groups, stale_pages, doubts, payload })
    }
}

/// The lines of so many pairs, where a server keeps these, which are in order. Pure.
fn kept(pairs: u32, told: Vec<(PairId, Line)>) -> Result<Vec<Line>, RecoverError> {
    let mut lines = vec![Line::FREE; pairs as usize];
    let mut first = PairId(0);
    for (pair, line) in told {
        if pair < first || pair.0 >= pairs {
            return Err(RecoverError::Damaged(format!(
                "the metadata server has a line of pair {pair}, which the pool does not have or \
                 which it had before"
            )));
        }
        first = PairId(pair.0 + 1);
        if !mutated(Mutant::LinesNotRead) {
            lines[pair.0 as usize] = line;
        }
    }
    Ok(lines)
}

/// What the pairs have, and free ones as many as the grant shall be.
///
/// A store that was made anew knows of no grants. Extents cannot be asked for by their numbers: so
/// all are taken, and what is too much is given back later.
async fn granted<E: Env>(
    client: &Client<E>,
    level: Option<u32>,
    lines: &[Line],
) -> Result<(ExtentPool, Grant), RecoverError> {
    let extents = lines.len() as u32;
    let mut grants = client.grants().await?;
    if !has_all(&grants.runs, lines) {
        while !client.allocate_journal_space(extents).await?.is_empty() {}
        grants = client.grants().await?;
    }
    check_grants(&grants.runs, extents)?;
    let mut pool = ExtentPool::new(extents, &grants.runs, grants.data_quota);
    claim_extents(&mut pool, lines)?;
    let mut grant = Grant::new(level);
    fill(client, &mut pool, &mut grant).await?;
    Ok((pool, grant))
}

/// Whether every extent that a pair has is in one of the runs, which are in order.
fn has_all(runs: &[ExtentRun], lines: &[Line]) -> bool {
    let mut named = lines.iter().flat_map(|line| line.binding.extents).flatten();
    named.all(|extent| {
        let at = runs.partition_point(|run| run.end() <= extent);
        runs.get(at).is_some_and(|run| run.start <= extent)
    })
}

impl From<AllotmentError> for RecoverError {
    fn from(error: AllotmentError) -> Self {
        match error {
            AllotmentError::Metadata(error) => Self::Metadata(error),
            unsound @ AllotmentError::Unsound(_) => Self::Damaged(unsound.to_string()),
        }
    }
}

/// Whether the granted runs are in order, disjoint and in the pool.
fn check_grants(runs: &[ExtentRun], extents: u32) -> Result<(), RecoverError> {
    let ends = std::iter::once(0).chain(runs.iter().map(|run| run.end().0));
    let wrong = runs.iter().zip(ends).find(|(run, end)| run.start.0 < *end);
    let wrong = wrong.map(|(run, _)| run).or(runs.last().filter(|run| run.end().0 > extents));
    match wrong {
        None => Ok(()),
        Some(ExtentRun { start, count }) => Err(RecoverError::Damaged(format!(
            "the metadata server grants {count} extents from {start} on, some of them twice or of \
             a pool larger than {extents}"
        ))),
    }
}

/// Takes from the pool what the pairs have.
fn claim_extents(pool: &mut ExtentPool, lines: &[Line]) -> Result<(), RecoverError> {
    for (pair, line) in lines.iter().enumerate() {
        for extent in line.binding.extents.into_iter().flatten() {
            if !pool.is_free(extent) {
                return Err(RecoverError::Damaged(format!(
                    "pair {pair} has extent {extent}, which another pair has too or which was \
                     never granted"
                )));
            }
            pool.claim(extent);
        }
        if line.binding.owner.is_some() {
            pool.claim_data();
        }
    }
    Ok(())
}

/// Tells the server of every pair that it knows differently; returns how many there were.
async fn reconcile<E: Env>(
    client: &Client<E>,
    unit: UnitId,
    volumes: &[VolumeInfo],
    lines: &[Line],
) -> Result<usize, RecoverError> {
    let news = missed(&known_pairs(client, unit, volumes).await?, lines)?;
    if mutated(Mutant::ReconcileSkipped) {
        return Ok(0);
    }
    for batch in news.chunks(TRANSACT_PRIMITIVES_MAX) {
        client.transact(batch).await?;
    }
    Ok(news.len())
}

/// What a server that knows these pairs must be told, what was released first. Pure.
///
/// What was released comes in the same transaction as what took its extents.
fn missed(
    known: &BTreeMap<PairId, PairRecord>,
    lines: &[Line],
) -> Result<Vec<Primitive>, RecoverError> {
    let mut news = Vec::new();
    for (pair, record) in known {
        let line = lines.get(pair.0 as usize).map(|line| line.binding);
        let Some(binding) = line.filter(|binding| binding.generation >= record.generation) else {
            return Err(RecoverError::Damaged(format!(
                "the metadata server knows pair {pair} in generation {}, and the home is older",
                record.generation
            )));
        };
        if binding.owner.is_none() {
            let generation = binding.generation;
            let released = PairRecord { generation, slots: [None; 2], ..*record };
            news.push(Primitive::ReleasePair(released));
        }
    }
    for (number, line) in lines.iter().enumerate() {
        let (pair, binding) = (PairId(number as u32), line.binding);
        let Some(owner) = binding.owner else { continue };
        if known.get(&pair).is_some_and(|record| record.generation == binding.generation) {
            continue;
        }
        news.push(bound(pair, owner, &binding));
    }
    // Leavings first: a transaction too large for one must not claim what a later one frees.
    news.sort_by_key(|primitive| {
        (!primitive.pair().is_released(), primitive.pair().slots[1].is_some())
    });
    Ok(news)
}

/// Every pair of this unit that the server knows.
async fn known_pairs<E: Env>(
    client: &Client<E>,
    unit: UnitId,
    volumes: &[VolumeInfo],
) -> Result<BTreeMap<PairId, PairRecord>, RecoverError> {
    let mut known = BTreeMap::new();
    for volume in volumes {
        let mut from = Some(LogicalExtent(0));
        while let Some(start) = from {
            let page = client.layout(volume.id, start).await?;
            let mine = page.pairs.into_iter().filter(|(of, _)| *of == unit);
            known.extend(mine.map(|(_, record)| (record.pair, record)));
            from = page.next;
        }
    }
    Ok(known)
}

/// The block that a group has in these slots. Pure.
fn block_of(group: Sequence, slots: &[u8], geometry: Geometry) -> Result<Bytes, RecoverError> {
    match slots.get(..geometry.block_size() as usize) {
        Some(bytes) => Ok(Bytes::from(bytes)),
        None => Err(RecoverError::Damaged(format!("group {group} lacks some data"))),
    }
}

/// Has the unit keep what is in the journal alone.
fn keep_payload(
    state: &mut State,
    [decided, doubtful]: [Payloads; 2],
    geometry: Geometry,
) -> Result<(), RecoverError> {
    let whole = |held: &Held, slots: Vec<u8>| block_of(held.group, &slots, geometry);
    for ((pair, block), (held, bytes)) in decided {
        held.check((pair, block), state.pairs.line(pair))?;
        let committed = Committed { group: held.group, bytes: whole(&held, bytes)? };
        let overlay = &mut state.pairs.work_mut(pair).payload;
        state.payload.put_committed(overlay, block.into(), committed);
    }
    for ((pair, block), (held, bytes)) in doubtful {
        let overlay = &mut state.pairs.work_mut(pair).payload;
        state.payload.keep(overlay, false, block.into(), whole(&held, bytes)?);
    }
    Ok(())
}

/// The volumes without anything behind them, each in a domain of its own.
fn volume_states(geometry: Geometry, volumes: &[VolumeInfo]) -> Vec<VolumeState> {
    let state = |(alone, info): (usize, &VolumeInfo)| {
        let extents = geometry.extents_for(info.size) as u32;
        let stage = if info.deleting { Stage::Deleting } else { Stage::Live };
        let state = VolumeState::new(info.id, &info.name, info.size, extents, alone);
        VolumeState { stage, ..state }
    };
    volumes.iter().enumerate().map(state).collect()
}

fn build_state(
    geometry: Geometry,
    (lines, seen): (Vec<Line>, &[Line]),
    volumes: &[VolumeInfo],
    (pool, grant, data_extents): (ExtentPool, Grant, u32),
    stale_pages: BTreeSet<u32>,
) -> Result<State, RecoverError> {
    let mut states = volume_states(geometry, volumes);
    let mut free_pairs = Numbers::none(lines.len() as u32);
    let mut bound = Vec::new();
    // Where a pair belongs is what it is if all that is in doubt took place.
    for (number, line) in seen.iter().enumerate() {
        let pair = PairId(number as u32);
        let Some((id, logical)) = line.binding.owner else {
            free_pairs.insert(pair.0);
            continue;
        };
        let volume = states.iter_mut().find(|volume| volume.id == id);
        let volume = volume.filter(|volume| logical.0 < volume.extents.count());
        let Some(volume) = volume else {
            return Err(RecoverError::Damaged(format!(
                "pair {pair} belongs to extent {logical} of volume {id}, which there is not"
            )));
        };
        if let Some(other) = volume.pair(logical) {
            return Err(RecoverError::Damaged(format!(
                "pairs {other} and {pair} are both extent {logical} of volume {id}"
            )));
        }
        volume.set_pair(logical, Some(pair));
        if lines[number].binding.owner.is_some() {
            bound.push(pair);
        }
    }
    let domains = states.iter().map(|volume| Domain::alone(volume.id)).collect();
    let mut state = State {
        pairs: Pairs::new(&lines),
        pool,
        grant,
        data_extents,
        free_pairs,
        volumes: states,
        domains,
        doubts: 0,
        fullness: Fullness::default(),
        journaled: BTreeMap::new(),
        empty: BTreeSet::new(),
        shunned: BTreeSet::new(),
        fruitless: 0,
        hopeless: BTreeSet::new(),
        untold: BTreeSet::new(),
        telling: false,
        stale_pages: BTreeSet::new(),
        payload: Ledger::default(),
        space_queue: VecDeque::new(),
        emptying: 0,
        leaving: 0,
        next_ticket: 0,
        commit_clock: 0,
        staged: None,
        staged_ended: Rc::default(),
        stopping: false,
    };
    bound.into_iter().for_each(|pair| state.line_changed(pair));
    state.stale_pages = stale_pages;
    Ok(state)
}

async fn assemble<E: Env>(
    mut parts: Parts<E>,
    journal: Place<E, RegionOf<E>>,
    (mds, hold): (Client<E>, Hold),
    (state, warm): (State, Option<Table>),
) -> Result<Unit<E>, RecoverError> {
    let geometry = parts.geometry;
    let (group_bytes, reserve) = (journal.group_bytes_max(), parts.reserve);
    let limits = Limits::new(geometry, group_bytes, reserve, parts.config.epoch_data_max);
    let limits = limits.ok_or_else(|| {
        let small = format!("{reserve} extents in reserve and groups of {group_bytes} bytes");
        RecoverError::TooSmall(small)
    })?;
    if !journal.is_beside_data() || !parts.devices[REGION_DEVICE].disk.volatile_cache() {
        parts.config.sum_blocks_max = 0;
    }
    let destage = parts.env.buffers().acquire(DESTAGE_BYTES).await;
    let buffers = CopyBuffers::acquire(parts.env.buffers(), geometry.extent_size()).await;
    let devices = parts
        .devices
        .into_iter()
        .map(|Member { disk, extents }| Device {
            disk,
            extents,
            failed: Cell::new(false),
            discard_failed: Cell::new(false),
        })
        .collect();
    let started = parts.env.now();
    Ok(Unit(Rc::new(Inner {
        env: parts.env,
        geometry,
        limits,
        watermarks: Watermarks::for_reserve(parts.reserve, parts.config.settle_below),
        config: parts.config,
        devices,
        journal,
        mds,
        hold,
        counters: parts.counters,
        latencies: parts.latencies,
        waiters: Waiters::default(),
        progress: Progress::default(),
        readers: Readers::default(),
        state: RefCell::new(state),
        settle_wanted: Notify::new(),
        settle_lock: Mutex::new(buffers),
        freeing: RwLock::new(()),
        checkpoint_lock: Mutex::new(()),
        destage_wanted: Notify::new(),
        destage_lock: Mutex::new(destage),
        news: Notify::new(),
        grant_wanted: Notify::new(),
        management: Management::default(),
        started,
        ages: Ages::default(),
        talk: Talk::default(),
        warm,
        adopted: Cell::new(false),
        stopped: Cell::new(false),
    })))
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
