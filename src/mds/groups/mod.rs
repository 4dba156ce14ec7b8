//! The consistency groups of a server, over all of its pools, and their transactions.
//!
//! A pool is one unit and has one session, so its name stands for the unit: that of a server of a
//! single pool is all zeros. What a unit reports is taken as it arrives; once all of a turn has,
//! each group that heard anything goes a step on; what that changes is in the turn's store
//! transaction; then the units are answered, and those whose orders have changed are told them
//! unasked.
//!
//! # Contracts
//!
//! - **Durability**: [`Groups::stage`] is called before the turn's commit, and nothing is answered
//!   before it. Who is done with a transaction is stored with what else there is: see
//!   [`crate::txn::coordinator`].
//! - **Names of transactions**: each has the number of the server's start that began it, which is
//!   stored with or before the first of them; none is ever used again.
//! - **Once**: a group is made with the next free number, which the request names, and deleted by
//!   its number, which is never used again: requests that are repeated, or replayed, do nothing.
//! - **Bounds**: [`GROUPS_MAX`] groups of [`VOLUMES_MAX`] volumes.

pub mod prepared;
pub mod rows;
pub mod seen;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::prepared::{Part, Prepared};
use self::rows::{Deletion, Head, NamedVolume, NewGroup};
use super::catalog::Fault;
use super::catalog::volumes::is_name;
use super::error::Refusal;
use super::pools::Pools;
use super::store::{Changes, StoreError, Table};
use crate::env::Moment;
use crate::format::group::TransactionId;
use crate::format::ids::{Incarnation, PoolId, UnitId, VolumeId};
use crate::format::record::Record;
use crate::mutants::{Mutant, mutated};
use crate::txn::coordinator::{Coordinator, Group, Present};
use crate::txn::{COORDINATOR, GroupId, Order, Phase, Report, Stage};

/// The most groups of a server.
pub const GROUPS_MAX: usize = 256;
/// The most volumes of a group.
pub const VOLUMES_MAX: usize = 64;
/// How long a unit has to report after a nudge before it is nudged again.
const NUDGE_PAUSE: Duration = Duration::from_millis(20);

/// The groups.
pub struct Groups {
    head: Head,
    /// Transactions that this start has begun.
    begun: u64,
    start_stored: bool,
    all: BTreeMap<GroupId, Coordinator>,
    /// What each unit was told last of each group, or nudged about.
    told: BTreeMap<(GroupId, PoolId), Told>,
    /// Groups that heard anything in this turn, or of which a unit has not asked for the news.
    touched: BTreeSet<GroupId>,
    /// Rows of groups that were made or deleted in this turn.
    changes: Changes,
    prepared: Prepared,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    present: Option<Present>,
    nudged: Option<Moment>,
}

fn refused<T>(refusal: Refusal, detail: u64) -> Result<T, Fault> {
    Err(Fault::Refused(refusal, detail))
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(what.to_owned())
}

impl Groups {
    /// The groups that a store holds, which is that of these pools.
    pub fn load(pools: &Pools) -> Result<Groups, StoreError> {
        let (mut head, mut groups) = (None, Vec::new());
        for (key, row) in pools.whole_rows(Table::Groups, GROUPS_MAX + 2)? {
            match Head::parse(&key, &row)? {
                Some(found) => head = Some(found),
                None => groups.push(rows::parse_group(&key, &row).map_err(|_| damaged("a group"))?),
            }
        }
        let head = head.unwrap_or_default();
        let mut decisions = BTreeMap::new();
        for (key, row) in pools.whole_rows(Table::Decisions, GROUPS_MAX + 1)? {
            let decision = rows::parse_decision(&key, &row).map_err(|_| damaged("a decision"))?;
            decisions.insert(decision.0, decision.1);
        }
        if groups.len() != head.groups as usize || groups.len() > GROUPS_MAX {
            return Err(damaged("a group is lost"));
        }
        let starts = head.starts.checked_add(1).ok_or_else(|| damaged("the count of starts"))?;
        let mut loaded = Groups {
            head: Head { starts, ..head },
            begun: 0,
            start_stored: false,
            all: BTreeMap::new(),
            told: BTreeMap::new(),
            touched: BTreeSet::new(),
            changes: Changes::new(),
            prepared: Prepared::default(),
        };
        for group in groups {
            let decision = decisions.remove(&group.id);
            let apart = loaded.check_apart(&group).is_ok() && group.id.0 < head.next;
            let known = group.members.iter().all(|(pool, volumes)| {
                volumes.iter().all(|volume| pools.has_volume(*pool, *volume))
            });
            let waited = decision.as_ref().is_none_or(|decision| {
                let members = decision.waiting.iter().all(|of| group.members.contains_key(of));
                members && decision.transaction.incarnation.0 < starts
            });
            if !(apart && known && waited) {
                return Err(damaged("a group of volumes that are not there, or are in another"));
            }
            let attached = |pool| pools.is_attached(pool);
            let coordinator = Coordinator::new(group, decision, attached, Moment::default());
            loaded.all.insert(coordinator.group().id, coordinator);
        }
        if decisions.is_empty() { Ok(loaded) } else { Err(damaged("a decision of no group")) }
    }

    /// Every group.
    pub fn iter(&self) -> impl Iterator<Item = &Coordinator> {
        self.all.values()
    }

    /// Makes a group, unless it was made by the same request before; gives its number. A refusal's
    /// detail is the next free number, or the index of the volume that it is for.
    pub fn create(&mut self, asked: &NewGroup, pools: &Pools, now: Moment) -> Result<u32, Fault> {
        let members = resolve(&asked.volumes, pools);
        if asked.number != self.head.next {
            let made = self.all.get(&GroupId(asked.number)).map(Coordinator::group);
            let same = made.is_some_and(|made| {
                made.name == asked.name && members.as_ref() == Ok(&made.members)
            });
            let next = u64::from(self.head.next);
            return if same { Ok(asked.number) } else { refused(Refusal::GroupStale, next) };
        }
        if !is_name(&asked.name) {
            return refused(Refusal::NameInvalid, 0);
        }
        if self.iter().any(|of| of.group().name == asked.name) {
            return refused(Refusal::NameTaken, 0);
        }
        let too_large = !(1..=VOLUMES_MAX).contains(&asked.volumes.len());
        if too_large || self.all.len() >= GROUPS_MAX || self.head.next >= u32::MAX - 1 {
            return refused(Refusal::TooLarge, VOLUMES_MAX as u64);
        }
        let group = Group {
            id: GroupId(asked.number),
            name: asked.name.clone(),
            version: 1,
            life: 1,
            members: members?,
        };
        self.check_apart(&group)?;
        self.head.next += 1;
        self.head.groups += 1;
        self.changes.extend([self.head_row(), rows::group_row(&group)]);
        self.touched.insert(group.id);
        let coordinator = Coordinator::new(group, None, |pool| pools.is_attached(pool), now);
        self.all.insert(GroupId(asked.number), coordinator);
        Ok(asked.number)
    }

    /// Deletes a group, if it is there: its volumes commit by themselves from now on. By force also
    /// where units that are not attached have not said that what took place is done: should they
    /// come back, they take it for aborted.
    pub fn delete(&mut self, Deletion { group: id, force }: Deletion) -> Result<(), Fault> {
        if id.0 >= self.head.next {
            return refused(Refusal::UnknownGroup, id.0.into());
        }
        let Some(coordinator) = self.all.get(&id) else { return Ok(()) };
        if let Some(decision) = coordinator.decision() {
            let attached = decision.waiting.iter().any(|pool| coordinator.is_attached(*pool));
            if attached || !force {
                return refused(Refusal::GroupInDoubt, decision.waiting.len() as u64);
            }
        }
        self.all.remove(&id);
        self.told.retain(|(of, _), _| *of != id);
        self.prepared.retain(id, None);
        self.head.groups -= 1;
        // The last unit may have said in this very turn that the last transaction is done.
        let no_decision = rows::decision_row(id, None);
        self.changes.extend([self.head_row(), rows::no_group(id), no_decision]);
        Ok(())
    }

    /// Whether a pool, or this volume of it, is in a group.
    pub fn holds(&self, pool: PoolId, volume: Option<VolumeId>) -> bool {
        let of = self.iter().filter_map(|of| of.group().members.get(&pool));
        of.into_iter().any(|volumes| volume.is_none_or(|volume| volumes.contains(&volume)))
    }

    /// The first turn begins: units are counted as heard.
    pub fn begin(&mut self, now: Moment) {
        self.all.values_mut().for_each(|of| of.listen(now));
    }

    /// As [`Coordinator::attached`].
    pub fn attached(&mut self, pool: PoolId, cold: bool, keeps_nothing: bool, now: Moment) {
        self.each_of(pool, |of| of.attached(pool, cold, keeps_nothing, now));
        self.told.retain(|(_, of), _| *of != pool);
    }

    /// As [`Coordinator::detached`].
    pub fn detached(&mut self, pool: PoolId) {
        self.each_of(pool, |of| of.detached(pool));
    }

    /// Takes what a unit reports.
    pub fn hear(&mut self, pool: PoolId, reports: &[Report], now: Moment) {
        for report in reports {
            if let Some(of) = self.all.get_mut(&report.group) {
                of.hear(pool, report, now);
                self.touched.insert(report.group);
            }
        }
    }

    /// Keeps what a unit whose flags are here has prepared, where that transaction is under way; of
    /// another one it is told that it was aborted.
    pub fn prepare(&mut self, pool: PoolId, unit: UnitId, part: Part) {
        let under_way = |of: &&Coordinator| {
            let present = of.present(pool);
            (present.transaction, present.stage) == (Some(part.transaction), Stage::AllSealed)
        };
        let group = self.iter().find(under_way).map(|of| of.group().id);
        if let Some(group) = group {
            self.prepared.keep(group, pool, unit, part);
        }
    }

    /// Whether a pair of these records is in something prepared.
    pub fn holds_pair(&self, pool: PoolId, records: &[Record]) -> bool {
        self.prepared.holds(pool, records)
    }

    /// All of the turn has been heard: what it led to becomes part of the next commit.
    pub fn stage(&mut self, now: Moment, pools: &mut Pools) -> Result<(), StoreError> {
        for id in &self.touched {
            let Some(of) = self.all.get_mut(id) else { continue };
            let (begun, incarnation) = (&mut self.begun, Incarnation(self.head.starts));
            of.step(now, || {
                *begun += 1;
                TransactionId { coordinator: COORDINATOR, incarnation, number: *begun }
            });
            let changed = of.take_changes();
            if changed.group {
                self.changes.extend([rows::group_row(of.group())]);
            }
            let row = rows::decision_row(*id, of.decision());
            let (under_way, ..) = of.progress();
            if let (true, Some(transaction)) = (changed.decided, under_way) {
                self.changes.extend([row]);
                for (pool, unit, records) in self.prepared.decided(*id, transaction) {
                    if mutated(Mutant::PreparedNotApplied) {
                        continue;
                    }
                    let catalog = pools.catalog_mut(pool).expect("a pool of a group is known");
                    catalog.harden_prepared(unit, &records)?;
                }
            } else if changed.done {
                pools.stage_late([row].into());
            }
            self.prepared.retain(*id, under_way);
        }
        if self.begun > 0 && !self.start_stored {
            self.start_stored = true;
            self.changes.extend([self.head.row()]);
        }
        pools.stage(std::mem::take(&mut self.changes));
        Ok(())
    }

    /// The orders for a unit that reported this: of its groups, and of those that it takes for its
    /// own.
    pub fn orders(&mut self, pool: PoolId, reports: &[Report], now: Moment) -> Vec<Order> {
        let mut orders = Vec::new();
        for (id, of) in self.all.iter().filter(|(_, of)| of.group().members.contains_key(&pool)) {
            let said: Vec<&Report> = reports.iter().filter(|of| of.group == *id).collect();
            orders.extend(of.orders(pool, &said, now));
            let present = Some(of.present(pool));
            self.told.insert((*id, pool), Told { present, nudged: None });
        }
        let is_member =
            |id| self.all.get(&id).is_some_and(|of| of.group().members.contains_key(&pool));
        let others = reports.iter().filter(|report| !is_member(report.group));
        orders.extend(others.map(no_group));
        orders
    }

    /// The orders that a unit would be given if it reported nothing; it has not heard them before
    /// it says so.
    pub fn news(&self, pool: PoolId, now: Moment) -> Vec<Order> {
        let own = self.all.values().filter(|of| of.group().members.contains_key(&pool));
        own.flat_map(|of| of.orders(pool, &[], now)).collect()
    }

    /// The units of groups of this turn that are to be told something new.
    pub fn to_nudge(&mut self, now: Moment) -> BTreeSet<PoolId> {
        let (mut nudged, mut untold) = (BTreeSet::new(), BTreeSet::new());
        for id in std::mem::take(&mut self.touched) {
            let Some(of) = self.all.get(&id) else { continue };
            let attached = of.group().members.keys().filter(|pool| of.is_attached(**pool));
            for pool in attached {
                let nothing = Told { present: None, nudged: None };
                let told = self.told.entry((id, *pool)).or_insert(nothing);
                let news = told.present != Some(of.present(*pool));
                let due = told.nudged.is_none_or(|at| now.since(at) >= NUDGE_PAUSE);
                if news && due {
                    told.nudged = Some(now);
                    nudged.insert(*pool);
                }
                if news {
                    untold.insert(id);
                }
            }
        }
        // Whoever is the next to say anything has the others nudged again.
        self.touched = untold;
        nudged
    }

    fn head_row(&self) -> rows::RowChange {
        // A start counts once it has begun a transaction.
        let starts = self.head.starts - u32::from(!self.start_stored);
        Head { starts, ..self.head }.row()
    }

    fn each_of(&mut self, pool: PoolId, mut change: impl FnMut(&mut Coordinator)) {
        for (id, of) in &mut self.all {
            if of.group().members.contains_key(&pool) {
                change(of);
                self.touched.insert(*id);
            }
        }
    }

    /// Refuses a group of which a volume is in another one.
    fn check_apart(&self, group: &Group) -> Result<(), Fault> {
        for (pool, volumes) in &group.members {
            if let Some(taken) = volumes.iter().find(|volume| self.holds(*pool, Some(**volume))) {
                return refused(Refusal::VolumeInGroup, taken.0.into());
            }
        }
        Ok(())
    }
}

type Members = BTreeMap<PoolId, BTreeSet<VolumeId>>;

/// The volumes of those names.
fn resolve(named: &[NamedVolume], pools: &Pools) -> Result<Members, Fault> {
    let mut members = Members::new();
    for (index, of) in named.iter().enumerate() {
        let refuse = |refusal| refused(refusal, index as u64);
        let mut found = pools.volumes_named(of.pool, &of.name);
        match (found.pop(), found.pop()) {
            (None, _) => return refuse(Refusal::UnknownVolume),
            (Some(_), Some(_)) => return refuse(Refusal::VolumeAmbiguous),
            (Some((pool, volume)), None) => {
                if !members.entry(pool).or_default().insert(volume) {
                    return refuse(Refusal::VolumeInGroup);
                }
            }
        }
    }
    Ok(members)
}

/// What a unit is told of a group that it is not in.
fn no_group(report: &Report) -> Order {
    let open = !matches!(report.phase, Phase::Idle | Phase::Done);
    let transaction = report.transaction.filter(|_| open);
    Order {
        group: report.group,
        name: String::new(),
        version: 0,
        volumes: Vec::new(),
        shared: false,
        life: 0,
        whole: false,
        atomic: None,
        transaction,
        stage: if transaction.is_some() { Stage::Aborted } else { Stage::Rest },
        trouble: None,
    }
}
