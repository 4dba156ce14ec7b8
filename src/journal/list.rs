//! The list of linked groups, as kept in memory: which groups, in what order, and what changes when
//! some of them are unlinked. Pure: nothing here touches the region.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::Shown;
use crate::format::group::{GroupState, Link, TransactionId};
use crate::format::ids::{PairId, Sequence};
use crate::format::status::ROOT;
use crate::mutants::{Mutant, mutated};

/// A group that is linked in persisted state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The slots of its parts, the head's first.
    pub slots: Vec<u32>,
    /// The slots of its payload.
    pub payload: Vec<u32>,
    /// Where the next group is.
    pub link: Link,
    /// Its transaction.
    pub transaction: TransactionId,
    /// The commit domain.
    pub domain: u32,
    /// Bytes of its records.
    pub bytes: usize,
    /// It has sums of its data.
    pub summed: bool,
    /// Its transaction's state.
    pub state: GroupState,
    /// The pairs that it names, in order, each once.
    pub pairs: Vec<PairId>,
    /// Its effect is in the unit's maps.
    pub published: bool,
}

impl Linked {
    /// Whether a recovery would apply it, now or when it is decided. What was aborted it passes
    /// over, so that this may go, or stay, whatever others do.
    fn has_effect(&self) -> bool {
        self.state != GroupState::Aborted
    }
}

/// All linked groups, in the order of their sequences, which is that of the links.
#[derive(Debug)]
pub struct List {
    groups: BTreeMap<Sequence, Linked>,
    /// Where the first group is.
    root: Link,
    /// Where the next group will be.
    tail: Link,
    /// Slots that hold payload.
    payload_slots: usize,
}

impl List {
    /// A list whose root says `root`, with the groups that were found from there on.
    pub fn found(root: Link, groups: BTreeMap<Sequence, Linked>) -> Self {
        let tail = groups.last_key_value().map_or(root, |(_, last)| last.link);
        let payload_slots = groups.values().map(|linked| linked.payload.len()).sum();
        Self { groups, root, tail, payload_slots }
    }

    /// The newest group, where it is linked.
    pub fn newest(&self) -> Option<(Sequence, &Linked)> {
        let (sequence, linked) = self.groups.last_key_value()?;
        (sequence.0 + 1 == self.tail.sequence.0).then_some((*sequence, linked))
    }

    /// Where the next group goes.
    pub fn tail(&self) -> Link {
        self.tail
    }

    /// The groups, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Sequence, &Linked)> {
        self.groups.iter().map(|(sequence, linked)| (*sequence, linked))
    }

    /// How many groups are linked.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// The slot of a group's head.
    pub fn head_slot(&self, sequence: Sequence) -> u32 {
        self.groups[&sequence].slots[0]
    }

    /// A group's state.
    pub fn state(&self, sequence: Sequence) -> GroupState {
        self.groups[&sequence].state
    }

    /// Where the group after a group is.
    pub fn link(&self, sequence: Sequence) -> Link {
        self.groups[&sequence].link
    }

    /// Notes a group's new state, which is durable.
    pub fn set_state(&mut self, sequence: Sequence, state: GroupState) {
        self.groups.get_mut(&sequence).expect("a group with a state is linked").state = state;
    }

    /// The groups as they are shown.
    pub fn show(&self) -> Vec<Shown> {
        let mut kept: BTreeMap<PairId, Sequence> = BTreeMap::new();
        let show = |(sequence, linked): (Sequence, &Linked)| {
            let follows = linked.pairs.iter().find_map(|pair| kept.get(pair)).copied();
            let Linked { transaction, domain, bytes, state, published, .. } = *linked;
            if linked.has_effect() {
                for pair in &linked.pairs {
                    kept.entry(*pair).or_insert(sequence);
                }
            }
            let slots = linked.slots.len() + linked.payload.len();
            Shown { sequence, transaction, domain, state, slots, bytes, published, follows }
        };
        self.iter().map(show).collect()
    }

    /// Adds the group that was written at the tail.
    pub fn append(&mut self, linked: Linked) -> Sequence {
        let sequence = self.tail.sequence;
        assert_eq!(linked.slots[0], self.tail.slot, "a group goes where the tail says");
        assert!(linked.link.sequence > sequence, "sequences ascend");
        self.tail = linked.link;
        self.payload_slots += linked.payload.len();
        self.groups.insert(sequence, linked);
        sequence
    }

    /// Notes that a group's effect is in the maps.
    pub fn publish(&mut self, sequence: Sequence) {
        let linked = self.groups.get_mut(&sequence).expect("a published group is linked");
        linked.published = true;
    }

    /// The slots that hold payload.
    pub fn payload_slots(&self) -> usize {
        self.payload_slots
    }

    /// The groups, ascending, that may go once their effect is durable in the home: all that are
    /// published and whose payload is not `needed` any more, but for those that follow a group of
    /// the same pair that stays; and all that were aborted. One that is not decided stays.
    pub fn unlinkable(&self, needed: impl Fn(Sequence) -> bool) -> Vec<Sequence> {
        let mut kept = BTreeSet::new();
        let mut chosen = Vec::new();
        for (sequence, linked) in self.iter() {
            if mutated(Mutant::NewerUnlinkedFirst) && chosen.is_empty() && kept.is_empty() {
                kept.extend(linked.pairs.iter().copied());
                continue;
            }
            let follows = names_any(linked, &kept) && !mutated(Mutant::NewerUnlinkedFirst);
            if !linked.has_effect() || linked.published && !needed(sequence) && !follows {
                chosen.push(sequence);
            } else {
                kept.extend(linked.pairs.iter().copied());
            }
        }
        chosen
    }

    /// Whether these groups (ascending) may go: none of them names a pair that an older group which
    /// stays names too, or replay would bring older locations back (design section 5 ‡).
    pub fn may_unlink(&self, chosen: &[Sequence]) -> bool {
        let mut kept = BTreeSet::new();
        let mut chosen = chosen.iter().peekable();
        self.iter().all(|(sequence, linked)| {
            if chosen.next_if_eq(&&sequence).is_some() {
                return mutated(Mutant::NewerUnlinkedFirst)
                    || !linked.has_effect()
                    || linked.state != GroupState::Prepared && !names_any(linked, &kept);
            }
            if !linked.has_effect() {
                return true;
            }
            kept.extend(linked.pairs.iter().copied());
            true
        })
    }

    /// The links that must be persisted for these groups (ascending) to be unlinked: for each
    /// predecessor that stays, what its link becomes.
    pub fn plan_unlink(&self, chosen: &[Sequence]) -> Vec<(Sequence, Link)> {
        let gone = |sequence: Sequence| chosen.binary_search(&sequence).is_ok();
        let mut plan = Vec::new();
        let mut predecessor = ROOT;
        let mut skipped = false;
        let ends = self.iter().map(|(sequence, linked)| (sequence, linked.slots[0]));
        for (sequence, slot) in ends.chain([(self.tail.sequence, self.tail.slot)]) {
            if gone(sequence) {
                skipped = true;
                continue;
            }
            if std::mem::take(&mut skipped) {
                plan.push((predecessor, Link { slot, sequence }));
            }
            predecessor = sequence;
        }
        plan
    }

    /// Carries out a plan that is persisted; returns the slots that are free from here on.
    pub fn unlink(&mut self, chosen: &[Sequence], plan: &[(Sequence, Link)]) -> Vec<u32> {
        for (of, link) in plan {
            match self.groups.get_mut(of) {
                Some(linked) => linked.link = *link,
                None => self.root = *link,
            }
        }
        let gone = chosen.iter().filter_map(|sequence| self.groups.remove(sequence));
        let mut free = Vec::new();
        for linked in gone {
            self.payload_slots -= linked.payload.len();
            free.extend(linked.slots.into_iter().chain(linked.payload));
        }
        free
    }
}

fn names_any(linked: &Linked, pairs: &BTreeSet<PairId>) -> bool {
    !pairs.is_empty() && linked.pairs.iter().any(|pair| pairs.contains(pair))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ids::Incarnation;
    use proptest::prelude::*;

    fn link(n: u64) -> Link {
        Link { slot: n as u32 * 10, sequence: Sequence(n) }
    }

    fn list(groups: u64, pairs: impl Fn(u64) -> Vec<PairId>) -> List {
        let mut list = List::found(link(1), BTreeMap::new());
        let (coordinator, incarnation) = (0, Incarnation(1));
        let transaction = TransactionId { coordinator, incarnation, number: 1 };
        for n in 1..=groups {
            list.append(Linked {
                slots: vec![n as u32 * 10],
                payload: Vec::new(),
                link: link(n + 1),
                transaction,
                domain: 0,
                bytes: 0,
                summed: false,
                state: GroupState::Committed,
                pairs: pairs(n),
                published: true,
            });
        }
        list
    }

    /// Follows the links as a recovery would.
    fn walk(list: &List) -> Vec<u64> {
        let mut at = list.root;
        let mut seen = Vec::new();
        while let Some(linked) = list.groups.get(&at.sequence) {
            assert_eq!(linked.slots[0], at.slot);
            seen.push(at.sequence.0);
            at = linked.link;
        }
        assert_eq!(at, list.tail);
        seen
    }

    proptest! {
        /// Goal: whatever is unlinked in whatever order, following the links finds exactly the
        /// rest.
        #[test]
        fn unlinking_any_groups_leaves_the_rest(
            groups in 1_u64..12,
            rounds in prop::collection::vec(any::<u16>(), 1..6),
        ) {
            let mut list = list(groups, |_| Vec::new());
            let mut left: Vec<u64> = (1..=groups).collect();
            for mask in rounds {
                let chosen: Vec<Sequence> =
                    left.iter().copied().filter(|n| mask >> n & 1 == 1).map(Sequence).collect();
                let plan = list.plan_unlink(&chosen);
                let slots = list.unlink(&chosen, &plan);
                prop_assert_eq!(slots.len(), chosen.len());
                left.retain(|n| !chosen.contains(&Sequence(*n)));
                prop_assert_eq!(walk(&list), left.clone());
            }
        }
    }

    /// Goal: '800 claim 1: the second of three groups is unlinked while the first and the third
    /// stay, by linking the first to the third.
    #[test]
    fn the_middle_group_goes_first() {
        let mut list = list(3, |n| vec![PairId(n as u32)]);
        assert!(list.may_unlink(&[Sequence(2)]));
        let plan = list.plan_unlink(&[Sequence(2)]);
        assert_eq!(plan, [(Sequence(1), link(3))]);
        list.unlink(&[Sequence(2)], &plan);
        assert_eq!(walk(&list), [1, 3]);
    }

    /// Goal: a group waits for an older one of the same pair, unless that goes with it.
    #[test]
    fn an_older_group_of_the_same_pair_holds_back() {
        let list = list(3, |n| vec![PairId(n as u32 % 2), PairId(7 + n as u32)]);
        assert!(!list.may_unlink(&[Sequence(3)]));
        assert!(list.may_unlink(&[Sequence(1), Sequence(3)]));
        assert!(list.may_unlink(&[Sequence(2)]));
    }

    /// Goal: a group in doubt stays, and with it what follows it on its pairs; when it is aborted
    /// it goes at once and holds nothing back.
    #[test]
    fn doubt_stays_and_what_was_aborted_goes() {
        let mut list = list(3, |n| vec![PairId(n as u32 % 2)]);
        let doubt = list.groups.get_mut(&Sequence(1)).unwrap();
        (doubt.state, doubt.published) = (GroupState::Prepared, false);
        assert_eq!(list.unlinkable(|_| false), [Sequence(2)]);
        assert!(!list.may_unlink(&[Sequence(1)]));
        assert_eq!(list.show()[2].follows, Some(Sequence(1)));
        list.set_state(Sequence(1), GroupState::Aborted);
        assert_eq!(list.unlinkable(|_| false), [1, 2, 3].map(Sequence));
        assert!(list.may_unlink(&[Sequence(3)]), "what was aborted may stay, too");
        assert_eq!(list.show()[2].follows, None);
    }

    proptest! {
        /// Goal: whichever groups are published, all of those go that may, and no others.
        #[test]
        fn everything_goes_that_may(
            pairs in prop::collection::vec((0_u32..4, any::<bool>(), any::<bool>()), 0..10),
        ) {
            let mut list = list(pairs.len() as u64, |n| vec![PairId(pairs[n as usize - 1].0)]);
            for (linked, (_, published, _)) in list.groups.values_mut().zip(&pairs) {
                linked.published = *published;
            }
            let chosen = list.unlinkable(|sequence| pairs[sequence.0 as usize - 1].2);
            prop_assert!(list.may_unlink(&chosen));
            for (i, (_, published, needed)) in pairs.iter().enumerate() {
                let sequence = Sequence(i as u64 + 1);
                let may = *published && !needed;
                let Err(at) = chosen.binary_search(&sequence) else {
                    prop_assert!(may);
                    continue;
                };
                let mut more = chosen.clone();
                more.insert(at, sequence);
                prop_assert!(!may || !list.may_unlink(&more));
            }
        }
    }
}
