//! The coordinator of one consistency group: what it has heard of its units, and what it makes of
//! it. Plain data: nothing here waits, sends or stores.
//!
//! | happens | by | makes |
//! | --- | --- | --- |
//! | a unit attaches | [`Coordinator::attached`] | a new life, an abort |
//! | a unit detaches | [`Coordinator::detached`] | an abort |
//! | a unit reports | [`Coordinator::hear`] | votes, what is done |
//! | then, always | [`Coordinator::step`] | the next stage |
//! | a unit is answered | [`Coordinator::orders`] | nothing |
//!
//! # Contracts
//!
//! - **Durability**: what [`Coordinator::take_changes`] gives is durable before any order is given
//!   out, but for who is done, which may be stored later, or never. The decision is the commit
//!   point; all before it is forgotten by a start of the server, and so aborted.
//! - **Done again**: a start of the server may wait for units that had said that they are done.
//!   They say it again, or speak of a later transaction, which says the same: a unit begins one
//!   when it is done with all before.
//! - **Monotone**: reports may be lost, repeated and reordered within their session. Those of
//!   sessions that have ended are not for [`Coordinator::hear`].
//! - **Everyone** ‡: every attached unit takes part in every transaction, idle ones too. One that
//!   has detached has nothing pending; one that attaches before all have sealed aborts what is
//!   under way, as its writes may be acknowledged before the others seal.
//! - **Silence**: a unit whose vote is missing and that is not heard for [`SILENT_AFTER`] aborts
//!   what is under way, and nothing begins before it is heard again: nobody's blocks wait for the
//!   dead. After the decision there is nothing to abort.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Atomic, GroupId, Order, Phase, Report, Stage, Trouble};
use crate::env::Moment;
use crate::format::group::TransactionId;
use crate::format::ids::{PoolId, VolumeId};
use crate::mutants::{Mutant, mutated};

/// After how long a unit that says nothing counts as silent. Units say something many times as
/// often.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);

/// A consistency group, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// Its number.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// Which of its memberships this is; from 1.
    pub version: u32,
    /// How often, and once more, members lost what was not committed.
    pub life: u32,
    /// The units, by their pools, and the volumes of each; none is without one.
    pub members: BTreeMap<PoolId, BTreeSet<VolumeId>>,
}

/// A transaction that took place, as it is stored until all of its units have said so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// Which.
    pub transaction: TransactionId,
    /// The units that have not said that it is done.
    pub waiting: BTreeSet<PoolId>,
}

/// What is to be stored, as it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Changes {
    /// The group has another life.
    pub group: bool,
    /// A transaction was decided.
    pub decided: bool,
    /// Fewer units are waited for, or none any more: this may be stored later.
    pub done: bool,
}

/// How one unit stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Unit {
    attached: bool,
    /// The membership and the life that it serves by; 0: not said.
    version: u32,
    life: u32,
    wants: bool,
    /// The atomic request that it wants.
    atomic: Option<Atomic>,
    refuses: Option<String>,
    heard: Moment,
}

/// A unit's part in the transaction under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Vote {
    Missing,
    Sealed,
    Prepared,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct UnderWay {
    transaction: TransactionId,
    votes: BTreeMap<PoolId, Vote>,
    /// It was announced that all are sealed.
    all_sealed: bool,
    /// The atomic request that it carries, and who has it.
    atomic: Option<Atomic>,
    joined: BTreeSet<PoolId>,
}

/// What a unit is told of the present, besides troubles: it is nudged where it was told another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    version: u32,
    life: u32,
    whole: bool,
    /// The transaction that the unit has to do with.
    pub transaction: Option<TransactionId>,
    /// How far it is.
    pub stage: Stage,
}

/// The coordinator of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coordinator {
    group: Group,
    units: BTreeMap<PoolId, Unit>,
    under_way: Option<UnderWay>,
    decision: Option<Decision>,
    changed: Changes,
}

impl Coordinator {
    /// The coordinator of a group as it is stored, of whose units those are attached; `now` they
    /// were heard.
    pub fn new(
        group: Group,
        decision: Option<Decision>,
        attached: impl Fn(PoolId) -> bool,
        now: Moment,
    ) -> Self {
        let unit = |pool: &PoolId| {
            (*pool, Unit { attached: attached(*pool), heard: now, ..Unit::default() })
        };
        let units = group.members.keys().map(unit).collect();
        Coordinator { group, units, under_way: None, decision, changed: Changes::default() }
    }

    /// All units are counted as heard now, which is when the server hears anything at all.
    pub fn listen(&mut self, now: Moment) {
        self.units.values_mut().for_each(|unit| unit.heard = now);
    }

    /// The group.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// The transaction that took place and is not done everywhere.
    pub fn decision(&self) -> Option<&Decision> {
        self.decision.as_ref()
    }

    /// Whether it has units that are not each other's.
    pub fn is_shared(&self) -> bool {
        self.units.len() > 1
    }

    /// Whether a unit of it is attached.
    pub fn is_attached(&self, pool: PoolId) -> bool {
        self.units.get(&pool).is_some_and(|unit| unit.attached)
    }

    /// What was changed since the last time.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changed)
    }

    /// A unit has attached. `cold`: an earlier start of it had not detached, so what that had
    /// pending is lost. `keeps_nothing`: its flags are where the decision is, and took it there.
    pub fn attached(&mut self, pool: PoolId, cold: bool, keeps_nothing: bool, now: Moment) {
        let shared = self.is_shared();
        let Some(unit) = self.units.get_mut(&pool) else { return };
        *unit = Unit { attached: true, heard: now, ..Unit::default() };
        if cold && shared && !mutated(Mutant::LifeNotCounted) {
            self.group.life += 1;
            self.changed.group = true;
        }
        let aborts = |under_way: &UnderWay| {
            cold || !under_way.all_sealed || under_way.votes.contains_key(&pool)
        };
        if self.under_way.as_ref().is_some_and(aborts) {
            self.under_way = None;
        }
        if keeps_nothing {
            self.done(pool);
        }
    }

    /// A unit has detached: it has nothing pending, and what it voted for is durable there, whether
    /// it has come to say so or not.
    pub fn detached(&mut self, pool: PoolId) {
        if let Some(unit) = self.units.get_mut(&pool) {
            *unit = Unit::default();
        }
        if self.takes_part(pool) {
            self.under_way = None;
        }
        self.done(pool);
    }

    /// Takes a report of the unit's present session.
    pub fn hear(&mut self, pool: PoolId, report: &Report, now: Moment) {
        let Some(unit) = self.units.get_mut(&pool) else { return };
        unit.heard = unit.heard.max(now);
        if report.version <= self.group.version && report.life <= self.group.life {
            unit.version = unit.version.max(report.version);
            unit.life = unit.life.max(report.life);
        }
        unit.wants = report.wants;
        let sealed = matches!(report.phase, Phase::Sealed | Phase::Prepared);
        unit.atomic = report.atomic.filter(|_| !sealed);
        if let Phase::Refused(reason) = &report.phase {
            unit.refuses = Some(reason.clone());
        }
        let Some(transaction) = report.transaction else { return };
        let decided = self.decision.as_ref().map(|of| of.transaction);
        let is_done = |of| transaction > of || transaction == of && report.phase == Phase::Done;
        if decided.is_some_and(is_done) {
            self.done(pool);
        }
        let vote = match report.phase {
            Phase::Sealed => Vote::Sealed,
            Phase::Prepared => Vote::Prepared,
            Phase::Idle | Phase::Refused(_) | Phase::Done => return,
        };
        let under_way = self.under_way.as_mut().filter(|of| of.transaction == transaction);
        let Some(of) = under_way else { return };
        if let Some(known) = of.votes.get_mut(&pool) {
            *known = vote.max(*known);
            if sealed && report.atomic.is_some() && report.atomic == of.atomic {
                of.joined.insert(pool);
            }
        }
    }

    /// Goes on as far as what was heard allows. A transaction that begins takes its name from
    /// `next`.
    pub fn step(&mut self, now: Moment, next: impl FnOnce() -> TransactionId) {
        if let Some(under_way) = &mut self.under_way {
            let missing = |(pool, vote): (&PoolId, &Vote)| {
                let unit = &self.units[pool];
                let owes = *vote < if under_way.all_sealed { Vote::Prepared } else { Vote::Sealed };
                unit.refuses.is_some() || owes && unit.is_silent(now)
            };
            let sealed = under_way.votes.values().all(|vote| *vote >= Vote::Sealed);
            let incomplete = sealed && !under_way.all_sealed && !under_way.has_all_parts();
            if under_way.votes.iter().any(missing) || incomplete {
                self.under_way = None;
            } else if sealed {
                under_way.all_sealed = true;
                if under_way.votes.values().all(|vote| *vote == Vote::Prepared) {
                    self.decide();
                }
            }
        }
        let free = self.under_way.is_none() && self.decision.is_none() && self.is_shared();
        if free && self.units.values().any(|unit| unit.wants) && self.trouble(now).is_none() {
            self.begin(next());
        }
    }

    /// The orders for a unit that said this of the group, in the order in which they were given:
    /// of older transactions first.
    pub fn orders(&self, pool: PoolId, reports: &[&Report], now: Moment) -> Vec<Order> {
        let present = self.present(pool);
        let asked = reports.iter().filter_map(|report| {
            let transaction = report.transaction.filter(|_| asks(report, &present))?;
            let decided = self.decision.as_ref().is_some_and(|of| of.transaction == transaction);
            let took_place = decided || mutated(Mutant::CommitPresumed);
            let stage = if took_place { Stage::Committed } else { Stage::Aborted };
            Some((Some(transaction), stage))
        });
        let all = asked.chain([(present.transaction, present.stage)]);
        all.map(|(transaction, stage)| Order {
            group: self.group.id,
            name: self.group.name.clone(),
            version: self.group.version,
            volumes: self.volumes(pool),
            shared: self.is_shared(),
            life: self.group.life,
            whole: present.whole,
            transaction,
            atomic: self.carried_by(transaction),
            stage,
            trouble: self.trouble(now),
        })
        .collect()
    }

    /// The atomic request of the transaction under way, where it is that one.
    fn carried_by(&self, transaction: Option<TransactionId>) -> Option<Atomic> {
        let under_way = self.under_way.as_ref();
        under_way.filter(|of| Some(of.transaction) == transaction)?.atomic
    }

    /// How the group stands for a unit.
    pub fn present(&self, pool: PoolId) -> Present {
        let (transaction, stage) = match (&self.under_way, &self.decision) {
            (Some(of), _) if self.takes_part(pool) => {
                let early = mutated(Mutant::CommitBeforeDecision)
                    && of.all_sealed
                    && of.votes[&pool] == Vote::Prepared;
                let stage = if of.all_sealed { Stage::AllSealed } else { Stage::Seal };
                (Some(of.transaction), if early { Stage::Committed } else { stage })
            }
            (_, Some(of)) if of.waiting.contains(&pool) => (Some(of.transaction), Stage::Committed),
            _ => (None, Stage::Rest),
        };
        let Group { version, life, .. } = self.group;
        Present { version, life, whole: self.is_whole(), transaction, stage }
    }

    /// Whether every attached unit has said that it serves by this membership in this life.
    pub fn is_whole(&self) -> bool {
        self.units.values().all(|unit| !unit.attached || self.has_joined(unit))
    }

    /// The transaction under way or decided, how far it is, and who is waited for.
    pub fn progress(&self) -> (Option<TransactionId>, Stage, Vec<PoolId>) {
        match (&self.under_way, &self.decision) {
            (Some(of), _) => {
                let (stage, wanted) = if of.all_sealed {
                    (Stage::AllSealed, Vote::Prepared)
                } else {
                    (Stage::Seal, Vote::Sealed)
                };
                let owing = of.votes.iter().filter(|(_, vote)| **vote < wanted);
                (Some(of.transaction), stage, owing.map(|(pool, _)| *pool).collect())
            }
            (None, Some(of)) => {
                (Some(of.transaction), Stage::Committed, of.waiting.iter().copied().collect())
            }
            (None, None) => {
                let joining = |(pool, unit): (&PoolId, &Unit)| {
                    (unit.attached && !self.has_joined(unit)).then_some(*pool)
                };
                (None, Stage::Rest, self.units.iter().filter_map(joining).collect())
            }
        }
    }

    /// Why no transaction can succeed now.
    pub fn trouble(&self, now: Moment) -> Option<Trouble> {
        let name = |pool: &PoolId| pool.to_string();
        let attached = || self.units.iter().filter(|(_, unit)| unit.attached);
        let refusing = |(pool, unit): (&PoolId, &Unit)| {
            unit.refuses.clone().map(|reason| Trouble::Refused { unit: name(pool), reason })
        };
        if let Some(refused) = attached().find_map(refusing) {
            return Some(refused);
        }
        if let Some((pool, _)) = attached().find(|(_, unit)| unit.is_silent(now)) {
            return Some(Trouble::Silent(name(pool)));
        }
        (!self.is_whole()).then_some(Trouble::Forming)
    }

    fn volumes(&self, pool: PoolId) -> Vec<VolumeId> {
        self.group.members.get(&pool).into_iter().flatten().copied().collect()
    }

    fn has_joined(&self, unit: &Unit) -> bool {
        (unit.version, unit.life) == (self.group.version, self.group.life)
    }

    fn takes_part(&self, pool: PoolId) -> bool {
        self.under_way.as_ref().is_some_and(|of| of.votes.contains_key(&pool))
    }

    fn begin(&mut self, transaction: TransactionId) {
        let left_out = |unit: &Unit| !unit.wants && mutated(Mutant::IdleMemberLeftOut);
        let units = self.units.iter().filter(|(_, unit)| unit.attached && !left_out(unit));
        let votes = units.map(|(pool, _)| (*pool, Vote::Missing)).collect();
        let atomic = self.units.values().find_map(|unit| unit.atomic);
        let (all_sealed, joined) = (false, BTreeSet::new());
        self.under_way = Some(UnderWay { transaction, votes, all_sealed, atomic, joined });
        for unit in self.units.values_mut() {
            (unit.wants, unit.atomic) = (false, None);
        }
    }

    fn decide(&mut self) {
        let Some(UnderWay { transaction, votes, .. }) = self.under_way.take() else { return };
        self.decision = Some(Decision { transaction, waiting: votes.into_keys().collect() });
        self.changed.decided = !mutated(Mutant::DecisionNotStored);
    }

    fn done(&mut self, pool: PoolId) {
        let Some(decision) = &mut self.decision else { return };
        if decision.waiting.remove(&pool) {
            self.changed.done = true;
            if decision.waiting.is_empty() || mutated(Mutant::PreparedMemberForgotten) {
                self.decision = None;
            }
        }
    }
}

/// Whether a report asks about another transaction than the present one.
fn asks(report: &Report, present: &Present) -> bool {
    let open = !matches!(report.phase, Phase::Idle | Phase::Done);
    open && report.transaction.is_some() && report.transaction != present.transaction
}

impl UnderWay {
    /// Whether all parts of the atomic request, where there is one, are in it.
    fn has_all_parts(&self) -> bool {
        let missing = |atomic: Atomic| atomic.members as usize != self.joined.len();
        !self.atomic.is_some_and(missing) || mutated(Mutant::PartsNotCounted)
    }
}

impl Unit {
    fn is_silent(&self, now: Moment) -> bool {
        now.since(self.heard) > SILENT_AFTER
    }
}
