//! A unit's part in the transactions of one group: what it does when it is told something, and what
//! it says. Plain data: nothing here waits, sends or stores.
//!
//! ```text
//!            Seal            AllSealed: prepare          Committed
//!   (idle) ─────────▶ Sealed ──────────────────▶ Prepared ─────────▶ Done
//!                        └───────── Aborted ────────┴───────────────▶ Done
//! ```
//!
//! # Contracts
//!
//! - **Voted** ‡: who is prepared neither commits nor aborts before it is told.
//! - **Done** ‡: [`Progress::Done`] is said only when the outcome is durable.
//! - **Once**: a transaction is taken part in once; older ones are never begun again, whatever
//!   arrives late.

use super::wire::cut;
use super::{GroupId, Order, Phase, REASON_MAX, Report, Stage};
use crate::format::group::TransactionId;
use crate::mutants::{Mutant, mutated};

/// How far a unit is with a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Progress {
    /// Its epoch is sealed.
    Sealed,
    /// Its part is durable.
    Prepared,
    /// It is durably committed, or aborted.
    Done,
}

/// How a unit stands in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Standing {
    /// The membership that it serves by; 0: none yet.
    pub version: u32,
    /// The life that its pending writes belong to.
    pub life: u32,
    /// The newest transaction that it knows of.
    pub transaction: Option<(TransactionId, Progress)>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Seal the open epoch; from then on nothing newer is acknowledged.
    Seal(TransactionId),
    /// What is newer may be acknowledged; make the sealed epoch durable as prepared.
    Prepare,
    /// Make durable that it is committed, and publish it.
    Commit,
    /// Make durable that it is aborted; the sealed epoch becomes a part of the open one.
    Abort,
    /// Say that a transaction is done that was durable here before, or had no part here.
    Acknowledge(TransactionId),
    /// Forget what is pending: the group is in that life.
    GoBack(u32),
    /// Serve by another membership.
    Regroup,
}

impl Standing {
    /// Whether a transaction is under way here.
    pub fn is_busy(&self) -> bool {
        self.transaction.is_some_and(|(_, progress)| progress != Progress::Done)
    }

    /// What an order makes this unit do next, if anything.
    pub fn next(&self, order: &Order) -> Option<Action> {
        if let Some((own, progress)) = self.transaction
            && progress != Progress::Done
        {
            let told = order.transaction == Some(own);
            return match (order.stage, progress) {
                _ if !told => None,
                (Stage::AllSealed, Progress::Sealed) => Some(Action::Prepare),
                (Stage::Committed, Progress::Prepared) => Some(Action::Commit),
                (Stage::AllSealed, Progress::Prepared)
                    if mutated(Mutant::CommitsWithoutDecision) =>
                {
                    Some(Action::Commit)
                }
                (Stage::Aborted, _) => Some(Action::Abort),
                _ => None,
            };
        }
        let newest = self.transaction.map(|(newest, _)| newest);
        let unknown = order.transaction.filter(|told| newest.is_none_or(|newest| *told > newest));
        match (order.stage, unknown) {
            (Stage::Committed, Some(transaction)) => Some(Action::Acknowledge(transaction)),
            _ if order.version > self.version || order.volumes.is_empty() => Some(Action::Regroup),
            _ if order.life > self.life && !mutated(Mutant::LifeIgnored) => {
                Some(Action::GoBack(order.life))
            }
            (Stage::Seal, Some(transaction))
                if order.version == self.version && order.life >= self.life =>
            {
                Some(Action::Seal(transaction))
            }
            _ => None,
        }
    }

    /// What this unit says: how far it is, and, where it cannot commit, why; nothing of atomic
    /// requests.
    pub fn reports(&self, group: GroupId, wants: bool, refused: Option<&str>) -> Vec<Report> {
        let Standing { version, life, .. } = *self;
        let report = |transaction, phase| {
            let atomic = None;
            Report { group, version, life, wants, atomic, transaction, phase }
        };
        let refusal = refused.map(|reason| Phase::Refused(cut(reason, REASON_MAX).to_owned()));
        match self.transaction {
            // Who has voted keeps its word, whatever became of it since.
            Some((of, Progress::Prepared)) => vec![report(Some(of), Phase::Prepared)],
            Some((of, Progress::Sealed)) => {
                vec![report(Some(of), refusal.unwrap_or(Phase::Sealed))]
            }
            Some((of, Progress::Done)) => {
                let refusal = refusal.map(|refusal| report(None, refusal));
                std::iter::once(report(Some(of), Phase::Done)).chain(refusal).collect()
            }
            None => vec![report(None, refusal.unwrap_or(Phase::Idle))],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::{Incarnation, VolumeId};
    use crate::txn::COORDINATOR;

    const STAGES: [Stage; 5] =
        [Stage::Rest, Stage::Seal, Stage::AllSealed, Stage::Committed, Stage::Aborted];
    const PROGRESS: [Progress; 3] = [Progress::Sealed, Progress::Prepared, Progress::Done];

    fn transaction(number: u64) -> TransactionId {
        let incarnation = Incarnation(1);
        TransactionId { coordinator: COORDINATOR, incarnation, number }
    }

    fn standings() -> impl Iterator<Item = Standing> {
        let mut all = Vec::new();
        for (version, life) in [(0, 1), (3, 1), (3, 2)] {
            all.push(Standing { version, life, transaction: None });
            for progress in PROGRESS {
                let transaction = Some((transaction(5), progress));
                all.push(Standing { version, life, transaction });
            }
        }
        all.into_iter()
    }

    fn orders() -> impl Iterator<Item = Order> {
        let mut all = Vec::new();
        for stage in STAGES {
            for number in [None, Some(4), Some(5), Some(6)] {
                for (version, life, member) in
                    [(3, 1, true), (3, 2, true), (4, 2, true), (4, 2, false)]
                {
                    all.push(Order {
                        group: GroupId(1),
                        name: "group".into(),
                        version,
                        volumes: member.then_some(VolumeId(1)).into_iter().collect(),
                        shared: true,
                        life,
                        whole: true,
                        transaction: number.map(transaction),
                        atomic: None,
                        stage,
                        trouble: None,
                    });
                }
            }
        }
        all.into_iter()
    }

    /// Goal: over all standings and orders: who is in a transaction moves only when it is told of
    /// that one, and as the picture says; nobody begins an old one again, in an old life, or by
    /// another membership.
    #[test]
    fn every_order_has_its_answer() {
        for standing in standings() {
            for order in orders() {
                let action = standing.next(&order);
                let own = standing.transaction.filter(|(_, progress)| *progress != Progress::Done);
                let what = format!("{standing:?}, {order:?}: {action:?}");
                match action {
                    Some(Action::Prepare) => {
                        assert_eq!(own, Some((order.transaction.unwrap(), Progress::Sealed)));
                        assert_eq!(order.stage, Stage::AllSealed, "{what}");
                    }
                    Some(Action::Commit) => {
                        assert_eq!(own, Some((order.transaction.unwrap(), Progress::Prepared)));
                        assert_eq!(order.stage, Stage::Committed, "{what}");
                    }
                    Some(Action::Abort) => {
                        assert_eq!(own.map(|own| own.0), order.transaction, "{what}");
                        assert_eq!(order.stage, Stage::Aborted, "{what}");
                    }
                    Some(Action::Seal(begun)) => {
                        assert_eq!((own, order.stage), (None, Stage::Seal), "{what}");
                        assert!(standing.transaction.is_none_or(|of| of.0 < begun), "{what}");
                        assert_eq!(order.life, standing.life, "{what}");
                        assert_eq!(order.version, standing.version, "{what}");
                    }
                    Some(Action::Acknowledge(of)) => {
                        assert_eq!((own, order.stage), (None, Stage::Committed), "{what}");
                        assert!(standing.transaction.is_none_or(|known| known.0 < of), "{what}");
                    }
                    Some(Action::GoBack(life)) => {
                        assert!(own.is_none() && life > standing.life, "{what}");
                    }
                    Some(Action::Regroup) => {
                        let left = order.volumes.is_empty();
                        assert!(own.is_none() && (order.version > standing.version || left));
                    }
                    None => {
                        let told = own.is_some() && own.map(|own| own.0) == order.transaction;
                        assert!(!told || order.stage != Stage::Aborted, "{what}");
                    }
                }
            }
        }
    }

    /// Goal: who has voted says so for ever, and who cannot commit says why, in few bytes.
    #[test]
    fn what_is_said() {
        let reason = "ü".repeat(REASON_MAX);
        for standing in standings() {
            for refused in [None, Some(reason.as_str())] {
                let said = standing.reports(GroupId(1), true, refused);
                let phases: Vec<_> = said.iter().map(|report| &report.phase).collect();
                let refusing = phases.iter().any(|phase| {
                    matches!(phase, Phase::Refused(why) if (1..=REASON_MAX).contains(&why.len()))
                });
                let voted = matches!(standing.transaction, Some((_, Progress::Prepared)));
                assert_eq!(refusing, refused.is_some() && !voted, "{standing:?}");
                assert_eq!(phases.contains(&&Phase::Prepared), voted);
                let done = matches!(standing.transaction, Some((_, Progress::Done)));
                assert_eq!(phases.contains(&&Phase::Done), done);
            }
        }
    }
}
