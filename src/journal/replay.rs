//! Applying linked groups to the home again: what a recovery does, and what a move carries over.

use std::collections::BTreeSet;

use super::{JournalError, RecoveredGroup};
use crate::format::group::GroupState;
use crate::format::home::{Applied, Line, home_page};
use crate::mutants::{Mutant, mutated};

/// Applies the linked groups to the lines, oldest first; returns the home pages that this changed.
pub fn replay(
    lines: &mut [Line],
    groups: &[RecoveredGroup],
) -> Result<BTreeSet<u32>, JournalError> {
    let mut stale = BTreeSet::new();
    let mut groups: Vec<&RecoveredGroup> = groups.iter().collect();
    if mutated(Mutant::ReplayReversed) {
        groups.reverse();
    }
    for group in groups {
        match group.state {
            GroupState::Committed | GroupState::Done => {}
            GroupState::Aborted => continue,
            GroupState::Prepared => return Err(JournalError::InDoubt(group.sequence)),
        }
        for record in &group.records {
            let Some(pair) = record.pair() else { continue };
            let line = lines.get_mut(pair.0 as usize);
            let line = line.ok_or_else(|| JournalError::Damaged(format!("no pair {pair}")))?;
            if line.apply(record) == Applied::Impossible {
                return Err(JournalError::Damaged(format!(
                    "group {} says {record:?}, which cannot follow {line:?}",
                    group.sequence
                )));
            }
            stale.insert(home_page(pair));
        }
    }
    Ok(stale)
}

/// The lines as they are if all that is in doubt took place: what they name is nobody else's.
pub fn as_if_committed(
    lines: &[Line],
    doubts: &[RecoveredGroup],
) -> Result<Vec<Line>, JournalError> {
    let mut seen = lines.to_vec();
    for record in doubts.iter().flat_map(|group| &group.records) {
        let Some(pair) = record.pair() else { continue };
        let line = seen.get_mut(pair.0 as usize);
        if line.is_none_or(|line| line.apply(record) != Applied::Changed) {
            return Err(JournalError::Damaged(format!("{record:?} is in doubt and cannot be")));
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::blocks::Location;
    use crate::format::group::TransactionId;
    use crate::format::ids::{
        ExtentId, Generation, Incarnation, LogicalExtent, PairId, Sequence, Slot, VolumeId,
    };
    use crate::format::record::{Binding, Record};

    /// Binds the pair to an extent.
    fn bind(pair: u32, generation: u32, extent: u32) -> Record {
        let binding = Binding {
            generation: Generation(generation),
            owner: Some((VolumeId(1), LogicalExtent(0))),
            extents: [Some(ExtentId(extent)), None],
            data_slot: Slot::Zero,
        };
        Record::Binding { pair: PairId(pair), binding }
    }

    fn place(pair: u32, generation: u32, slot: Slot) -> Record {
        let (pair, generation) = (PairId(pair), Generation(generation));
        let location = Location::At(slot);
        Record::Place { pair, generation, first: 0, count: 1, location, payload: None }
    }

    fn replayed(groups: &[(GroupState, &[Record])]) -> Result<(Vec<Line>, Vec<u32>), String> {
        let mut lines = vec![Line::FREE; 100];
        let group = |(sequence, (state, records)): (u64, &(GroupState, &[Record]))| {
            let (sequence, state) = (Sequence(sequence), *state);
            let (coordinator, incarnation) = (0, Incarnation(1));
            let transaction = TransactionId { coordinator, incarnation, number: sequence.0 };
            RecoveredGroup { sequence, transaction, domain: 0, state, records: records.to_vec() }
        };
        let groups: Vec<_> = (1..).zip(groups).map(group).collect();
        match replay(&mut lines, &groups) {
            Ok(stale) => Ok((lines, stale.into_iter().collect())),
            Err(JournalError::Damaged(what)) => Err(what),
            Err(other) => Err(other.to_string()),
        }
    }

    /// Goal: what was decided is applied, oldest first, and what was aborted is not; the pages of
    /// the pairs that were named are stale, and no others.
    #[test]
    fn decided_groups_are_applied_in_order() {
        use GroupState::{Aborted, Committed, Done};
        let (lines, stale) = replayed(&[
            (Done, &[bind(0, 1, 5)]),
            (Aborted, &[bind(99, 9, 9)]),
            (Committed, &[bind(0, 2, 6), place(0, 2, Slot::Zero), bind(50, 1, 7)]),
            (Done, &[]),
        ])
        .unwrap();
        assert_eq!(lines[0].binding.extents, [Some(ExtentId(6)), None]);
        assert_eq!(lines[0].map.get(0), Location::At(Slot::Zero));
        assert_eq!((lines[50].binding.generation, lines[99]), (Generation(1), Line::FREE));
        assert_eq!(stale, [0, 50].map(|pair| home_page(PairId(pair))));
    }

    /// Goal: a group of a pair that there is not, or that cannot follow, is damage; one in doubt is
    /// not, and is not passed over either.
    #[test]
    fn what_cannot_be_is_refused() {
        let committed = GroupState::Committed;
        for (state, records, words) in [
            (GroupState::Prepared, vec![bind(0, 1, 5)], "group 1 of the journal is in doubt"),
            (committed, vec![bind(100, 1, 5)], "no pair 100"),
            (committed, vec![bind(0, 1, 5), place(0, 1, Slot::One)], "which cannot follow"),
        ] {
            let what = replayed(&[(state, &records)]).expect_err("it is found");
            assert!(what.contains(words), "'{words}' is not in: {what}");
        }
    }
}
