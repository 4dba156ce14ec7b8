//! The unit's region: its pages, the list of its groups, and their replay.

use super::finding::{Code, Finding, Mend};
use crate::format::group::GroupState;
use crate::format::home::Line;
use crate::format::ids::{Incarnation, PairId};
use crate::format::page::CopyState;
use crate::format::superblock::Superblock;
use crate::journal::inspect::{PageKind, RegionFacts, UnevenPage, runs};
use crate::journal::payload::{DECIDED, held};
use crate::journal::{RecoveredGroup, as_if_committed, replay};

/// What a region says when all of it can be believed.
#[derive(Debug)]
pub struct Recovered {
    /// The line of each pair with all groups applied that are decided.
    pub lines: Vec<Line>,
    /// The unit's starts so far.
    pub incarnation: Incarnation,
    /// Groups that were applied.
    pub groups: usize,
    /// Groups that are not, since only the coordinator knows what became of their transactions.
    pub in_doubt: usize,
    /// Blocks whose data is in the journal alone.
    pub in_journal: usize,
}

/// What is wrong with a region called `name`, and what it says where all of it can be read.
pub fn judge(
    facts: &RegionFacts,
    superblock: &Superblock,
    name: &str,
) -> (Option<Recovered>, Vec<Finding>) {
    let mut findings = Vec::new();
    let layout = facts.header.as_ref().map(|(_, layout)| layout);
    for (kind, page) in &facts.uneven {
        let runs = runs(*kind, layout);
        let at = runs.copies[0] + u64::from(page.index) * runs.page as u64;
        findings.extend(judge_page(*kind, *page, &format!("{name} at {at}")));
    }
    let Some((header, _)) = facts.header else {
        if !findings.iter().any(|finding| finding.code == Code::HeaderLost) {
            let what = "there is no region of this pool, or it does not fit";
            findings.push(Finding::lasting(Code::RegionForeign, name, what));
        }
        return (None, findings);
    };
    if header.unit != superblock.unit || header.pairs != superblock.pool_extents() {
        let what = format!(
            "the region is of unit {} with {} pairs, and the pool has {}",
            header.unit,
            header.pairs,
            superblock.pool_extents()
        );
        findings.push(Finding::lasting(Code::RegionForeign, name, what));
        return (None, findings);
    }
    let lines = judge_lines(facts, name, &mut findings);
    let groups = match &facts.groups {
        Ok(groups) => groups,
        Err(error) => {
            findings.push(Finding::lasting(Code::GroupList, name, error));
            return (None, findings);
        }
    };
    let Some(mut lines) = lines else { return (None, findings) };
    let prepared = |group: &RecoveredGroup| group.state == GroupState::Prepared;
    let (doubts, decided): (Vec<_>, Vec<_>) = groups.iter().cloned().partition(prepared);
    let possible =
        replay(&mut lines, &decided).and_then(|_| as_if_committed(&lines, &doubts).map(drop));
    if let Err(error) = possible {
        findings.push(Finding::lasting(Code::GroupReplay, name, error));
        return (None, findings);
    }
    let payload = held(groups, &DECIDED);
    for (block, held) in &payload {
        if let Err(error) = held.check(*block, &lines[block.0.0 as usize]) {
            findings.push(Finding::lasting(Code::GroupReplay, name, error));
            return (None, findings);
        }
    }
    let (groups, in_doubt, in_journal) = (decided.len(), doubts.len(), payload.len());
    let incarnation = header.incarnation;
    (Some(Recovered { lines, incarnation, groups, in_doubt, in_journal }), findings)
}

/// What is wrong with a page whose copies differ, if that is not what a crash leaves: copies are
/// written one after the other.
fn judge_page(kind: PageKind, page: UnevenPage, place: &str) -> Option<Finding> {
    use CopyState::{Blank, Good};
    let between = match page.copies {
        [Good(a), Good(b)] => a.abs_diff(b) == 1,
        [Good(1), Blank] | [Blank, Good(1)] => kind != PageKind::Header,
        _ => false,
    };
    if between {
        return None;
    }
    let (copy, lost, called) = match kind {
        PageKind::Header => (Code::HeaderCopy, Code::HeaderLost, "the region's header"),
        PageKind::Status => (Code::StatusCopy, Code::StatusLost, "a status page"),
        PageKind::Home => (Code::HomeCopy, Code::HomeLost, "a home page"),
    };
    Some(if page.is_lost() {
        let what = format!(
            "both copies of {called} (number {}) are damaged: restore a dump of the metadata, or \
             the volumes from a copy",
            page.index
        );
        Finding::lasting(lost, place, what)
    } else {
        let what = format!("one copy of {called} (number {}) is damaged", page.index);
        Finding::mendable(copy, place, what, Mend::Page(kind, page))
    })
}

/// The lines as last checkpointed, where all of them are sound.
fn judge_lines(facts: &RegionFacts, name: &str, findings: &mut Vec<Finding>) -> Option<Vec<Line>> {
    let lost = |pair: usize| {
        let page = crate::format::home::home_page(PairId(pair as u32));
        let is_it = |of: &UnevenPage| of.index == page && of.is_lost();
        facts.uneven.iter().any(|(kind, of)| *kind == PageKind::Home && is_it(of))
    };
    let mut all = Vec::with_capacity(facts.lines.len());
    for (pair, line) in facts.lines.iter().enumerate() {
        let place = || format!("pair {pair} in {name}");
        match line {
            None if lost(pair) => {}
            None => {
                let what = "its line is not one: restore a dump of the metadata";
                findings.push(Finding::lasting(Code::LineUnreadable, place(), what));
            }
            Some(line) => match line.flaw() {
                None => all.push(*line),
                Some(flaw) => {
                    let what = format!("{flaw}: {line:?}");
                    findings.push(Finding::lasting(Code::LineUnsound, place(), what));
                }
            },
        }
    }
    (all.len() == facts.lines.len()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what a crash between two copies leaves is no damage, in all combinations; everything
    /// else is, and is mendable as long as one copy is good or the page was never written.
    #[test]
    fn pages() {
        use CopyState::{Blank, Damaged, Good};
        let judged = |kind, copies| {
            let finding = judge_page(kind, UnevenPage { index: 3, copies }, "there");
            finding.map(|finding| (finding.code, finding.repairable))
        };
        let mendable = Some((Code::HomeCopy, true));
        let cases = [
            ([Good(4), Good(5)], None),
            ([Good(5), Good(4)], None),
            ([Good(1), Blank], None),
            ([Blank, Good(1)], None),
            ([Good(7), Good(5)], mendable),
            ([Good(2), Blank], mendable),
            ([Good(5), Damaged], mendable),
            ([Damaged, Good(1)], mendable),
            ([Blank, Damaged], mendable),
            ([Damaged, Damaged], Some((Code::HomeLost, false))),
        ];
        for (copies, expected) in cases {
            assert_eq!(judged(PageKind::Home, copies), expected, "{copies:?}");
        }
        assert_eq!(judged(PageKind::Header, [Good(1), Blank]), Some((Code::HeaderCopy, true)));
    }
}
