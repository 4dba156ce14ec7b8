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
            GroupState::Prepared => {
                return Err(JournalError::Damaged(format!(
                    "group {} waits for a coordinator that there is not",
                    group.sequence
                )));
            }
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
