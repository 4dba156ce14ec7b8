//! Parts of transactions that units whose flags are here have prepared (design section 6): a
//! group's records, applied to their lines with the decision, or dropped with the abort.
//!
//! | operation | request's body | reply's body |
//! | --- | --- | --- |
//! | PrepareExtentFlags | one transaction; records as in HardenExtentFlags | one RawTold |
//!
//! # Contracts
//!
//! - **Volatile**: a start of the server forgets what is under way and so aborts it, and these are
//!   of nothing else. What is applied is durable with the decision, in one store transaction.
//! - **Held**: nothing else hardens a pair that a part names, so that what could be applied when it
//!   was prepared can be when it is decided.

use std::collections::BTreeMap;

use zerocopy::IntoBytes;

use crate::format::group::TransactionId;
use crate::format::ids::{PairId, PoolId, UnitId};
use crate::format::record::{self, Record};
use crate::mds::raw::{Malformed, first};
use crate::mutants::{Mutant, mutated};
use crate::txn::GroupId;
use crate::txn::wire::RawTransaction;

/// A unit's part of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which transaction.
    pub transaction: TransactionId,
    /// What it does to the unit's lines.
    pub records: Vec<Record>,
}

/// All parts: one of each unit and group at most, as a group has one transaction at a time.
#[derive(Debug, Default)]
pub struct Prepared(BTreeMap<(GroupId, PoolId), (UnitId, Part)>);

impl Part {
    /// The body that says so.
    pub fn body(&self) -> Vec<u8> {
        let transaction = RawTransaction::from(self.transaction);
        [transaction.as_bytes(), &record::pack(&self.records)].concat()
    }

    /// What a body says.
    pub fn parse(body: &[u8]) -> Result<Part, Malformed> {
        let (transaction, rest) = first::<RawTransaction>(body)?;
        let records = record::unpack(rest).ok_or(Malformed)?;
        Ok(Part { transaction: transaction.into(), records })
    }
}

fn pairs(records: &[Record]) -> impl Iterator<Item = PairId> {
    records.iter().filter_map(Record::pair)
}

impl Prepared {
    /// Keeps a unit's part of the transaction under way.
    pub fn keep(&mut self, group: GroupId, pool: PoolId, unit: UnitId, part: Part) {
        self.0.insert((group, pool), (unit, part));
    }

    /// Whether a unit of that pool has prepared something of a pair of these.
    pub fn holds(&self, pool: PoolId, records: &[Record]) -> bool {
        let own = self.0.iter().filter(|((_, of), _)| *of == pool);
        let mut held = own.flat_map(|(_, (_, part))| pairs(&part.records));
        held.any(|pair| pairs(records).any(|other| other == pair))
    }

    /// Takes all parts of a group out, of which those of `transaction`, which took place, are
    /// given.
    pub fn decided(
        &mut self,
        group: GroupId,
        transaction: TransactionId,
    ) -> Vec<(PoolId, UnitId, Vec<Record>)> {
        let (first, last) = (PoolId([0; 16]), PoolId([255; 16]));
        let of_group = self.0.range((group, first)..=(group, last));
        let any = mutated(Mutant::PreparedOfAnyApplied);
        let own = of_group.filter(|(_, (_, part))| any || part.transaction == transaction);
        let given = own.map(|((_, pool), (unit, part))| (*pool, *unit, part.records.clone()));
        let given = given.collect();
        self.0.retain(|(of, _), _| *of != group);
        given
    }

    /// Drops what is not of the transaction that a group has under way.
    pub fn retain(&mut self, group: GroupId, under_way: Option<TransactionId>) {
        if mutated(Mutant::PreparedKeptAtAbort) || mutated(Mutant::PreparedOfAnyApplied) {
            return;
        }
        self.0.retain(|(of, _), (_, part)| *of != group || Some(part.transaction) == under_way);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::blocks::Location;
    use crate::format::ids::{Generation, Incarnation};
    use crate::txn::COORDINATOR;

    fn transaction(number: u64) -> TransactionId {
        TransactionId { coordinator: COORDINATOR, incarnation: Incarnation(1), number }
    }

    fn part(number: u64, pair: u32) -> Part {
        let record = Record::placed(PairId(pair), Generation(1), &(0..4), Location::Unused);
        Part { transaction: transaction(number), records: vec![record] }
    }

    /// Goal: a part survives its bytes; what is cut off is refused.
    #[test]
    fn round_trips() {
        let body = part(3, 5).body();
        assert_eq!(Part::parse(&body), Ok(part(3, 5)));
        assert_eq!(Part::parse(&body[..body.len() - 1]), Err(Malformed));
        assert_eq!(Part::parse(&body[..15]), Err(Malformed));
    }

    /// Goal: what is prepared holds its pairs, in its pool alone, until it is decided or dropped;
    /// a decision gives the parts of its transaction and no others.
    #[test]
    fn held_until_decided() {
        let (one, two) = (PoolId([1; 16]), PoolId([2; 16]));
        let (group, other) = (GroupId(1), GroupId(2));
        let mut prepared = Prepared::default();
        prepared.keep(group, one, UnitId(0), part(3, 5));
        prepared.keep(group, two, UnitId(0), part(2, 6));
        prepared.keep(other, one, UnitId(0), part(4, 7));
        assert!(prepared.holds(one, &part(9, 5).records));
        assert!(!prepared.holds(two, &part(9, 5).records));
        let given = prepared.decided(group, transaction(3));
        assert_eq!(given, [(one, UnitId(0), part(3, 5).records)]);
        assert!(!prepared.holds(one, &part(9, 5).records));
        assert!(!prepared.holds(two, &part(9, 6).records));
        prepared.retain(group, None);
        prepared.retain(other, Some(transaction(4)));
        assert!(prepared.holds(one, &part(9, 7).records));
        prepared.retain(other, Some(transaction(5)));
        assert!(!prepared.holds(one, &part(9, 7).records));
    }
}
