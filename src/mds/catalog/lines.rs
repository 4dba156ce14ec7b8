//! The lines of pools whose flags are here ('721 claims 2, 3 and 8): hardening groups, and telling.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use zerocopy::little_endian::U32;

use super::rows::UnitRow;
use super::views::Views;
use super::{Catalog, Fault, Unit, rows};
use crate::format::home::{Applied, LINE_BYTES, Line};
use crate::format::ids::{Incarnation, PairId, UnitId};
use crate::format::record::Record;
use crate::mds::error::Refusal;
use crate::mds::records::LinesSeen;
use crate::mds::store::{self, Changes, StoreError, Table};
use crate::mutants::{Mutant, mutated};

impl Catalog {
    /// Harden_Extent_Flags: applies a group's records to the unit's lines, in their order, whole or
    /// not at all. A refusal's detail is the index of the record that it is for.
    pub fn harden(&mut self, unit: UnitId, records: &[Record]) -> Result<(), Fault> {
        self.check_hardenable(unit, records)?;
        let lines = self.hardened(unit, records)?;
        self.put_lines(unit, lines);
        Ok(())
    }

    /// What [`Catalog::harden`] would say; nothing is changed.
    pub fn may_harden(&self, unit: UnitId, records: &[Record]) -> Result<(), Fault> {
        self.check_hardenable(unit, records)?;
        self.hardened(unit, records).map(drop)
    }

    fn check_hardenable(&self, unit: UnitId, records: &[Record]) -> Result<(), Fault> {
        for (index, record) in records.iter().enumerate() {
            let refuse = |refusal| Fault::Refused(refusal, index as u64);
            self.hardenable(unit, record).map_err(refuse)?;
        }
        Ok(())
    }

    /// Applies a group that [`Catalog::may_harden`], and whose lines nothing has changed since.
    pub fn harden_prepared(&mut self, unit: UnitId, records: &[Record]) -> Result<(), StoreError> {
        let lines = match self.hardened(unit, records) {
            Ok(lines) => lines,
            Err(Fault::Store(error)) => return Err(error),
            Err(Fault::Refused(refusal, _)) => panic!("its lines were held: {refusal}"),
        };
        self.put_lines(unit, lines);
        Ok(())
    }

    /// The lines as they are with a group's records applied.
    fn hardened(&self, unit: UnitId, records: &[Record]) -> Result<BTreeMap<PairId, Line>, Fault> {
        let mut staged: BTreeMap<PairId, Line> = BTreeMap::new();
        for (index, record) in records.iter().enumerate() {
            let refuse = |refusal| Fault::Refused(refusal, index as u64);
            let pair = record.pair().ok_or(refuse(Refusal::Unsupported))?;
            let line = match staged.entry(pair) {
                Entry::Occupied(line) => line.into_mut(),
                Entry::Vacant(line) => line.insert(self.line(unit, pair)?),
            };
            if line.apply(record) == Applied::Impossible {
                return Err(refuse(Refusal::LineImpossible));
            }
        }
        Ok(staged)
    }

    fn put_lines(&mut self, unit: UnitId, lines: BTreeMap<PairId, Line>) {
        for (pair, line) in lines {
            let row = (Table::Lines, store::key(&[unit.0, pair.0]));
            if !mutated(Mutant::HardenNotStored) {
                self.changes.insert(row, Some(line.bytes().to_vec()));
            }
            self.views.note((unit, pair));
        }
        self.counters.hardens += 1;
    }

    /// Whether the unit may say such a thing.
    fn hardenable(&self, unit: UnitId, record: &Record) -> Result<(), Refusal> {
        let pair = match record {
            Record::Binding { pair, binding } => {
                let mut extents = binding.extents.into_iter().flatten();
                if !extents.all(|extent| self.is_granted(unit, extent)) {
                    return Err(Refusal::NotGranted);
                }
                *pair
            }
            Record::Place { pair, payload: None, .. } => *pair,
            Record::Place { .. } | Record::Participant(_) | Record::Sum(_) => {
                return Err(Refusal::Unsupported);
            }
        };
        if pair.0 < self.info.extents { Ok(()) } else { Err(Refusal::OutOfRange) }
    }

    /// A page of the unit's lines from a pair on. Asks the store alone.
    pub fn lines(
        &self,
        unit: UnitId,
        from: PairId,
        count: usize,
    ) -> Result<Vec<(PairId, Line)>, StoreError> {
        let rows = self.store.range(Table::Lines, &store::key(&[unit.0, from.0]), count)?;
        let mut lines = Vec::with_capacity(rows.len());
        for (key, row) in rows {
            let [of, pair] = store::numbers(&key)?;
            if of == unit.0 {
                lines.push((PairId(pair), line_of(&row)?));
            }
        }
        Ok(lines)
    }

    /// The unit's lines that changed since a view, no more than `count`; `None` where that is not
    /// known any more: then all of them are to be asked for.
    pub fn changes(
        &self,
        unit: UnitId,
        since: u64,
        count: usize,
    ) -> Result<Option<LinesSeen>, StoreError> {
        let Some((view, changed)) = self.views.since(since, count) else { return Ok(None) };
        let mut lines = Vec::with_capacity(changed.len());
        for (of, pair) in changed {
            if of == unit {
                lines.push((pair, self.line(unit, pair)?));
            }
        }
        Ok(Some(LinesSeen { view, lines }))
    }

    /// The view that holds everything done so far, what is not committed yet included.
    pub fn view(&self) -> u64 {
        self.views.now()
    }

    /// The line as it is, in the batch or else in the store.
    fn line(&self, unit: UnitId, pair: PairId) -> Result<Line, StoreError> {
        let key = (Table::Lines, store::key(&[unit.0, pair.0]));
        let row = match self.changes.get(&key) {
            Some(row) => row.clone(),
            None => self.store.get(key.0, &key.1)?,
        };
        row.as_deref().map_or(Ok(Line::FREE), line_of)
    }

    /// Reads how often the store was opened and readers were let in, and looks at every line.
    pub(super) fn load_lines(&mut self) -> Result<(), StoreError> {
        let starts = self.store.get(Table::Starts, &[])?;
        let starts =
            starts.as_deref().map_or(Ok(0), |row| rows::parsed::<U32>(row).map(U32::get))?;
        let next = starts.checked_add(1);
        let next = next.ok_or_else(|| StoreError::Damaged("the number of its starts".into()))?;
        self.views = Views::new(next);
        for (unit, known) in &mut self.units {
            let readers = self.store.get(Table::Starts, &store::key(&[unit.0]))?;
            let readers = readers.as_deref().map_or(Ok(U32::ZERO), rows::parsed::<U32>)?;
            known.readers = Incarnation(readers.get());
        }
        self.stored_lines().map(drop)
    }

    /// Puts this start into the batch: views go on from it, and only what was changed needs them.
    pub(super) fn put_start(&mut self) {
        if let Some(start) = self.views.start_to_store() {
            let row = rows::bytes(&U32::new(start));
            self.changes.insert((Table::Starts, Vec::new()), Some(row));
        }
    }

    /// Every line that is stored, with unit and number.
    pub(super) fn stored_lines(&self) -> Result<Vec<(UnitId, PairId, Line)>, StoreError> {
        let mut lines = Vec::new();
        self.load(Table::Lines, |key, row| {
            let [unit, pair] = store::numbers(key)?;
            if pair >= self.info.extents {
                return Err(StoreError::Damaged(format!("a line of pair {pair}")));
            }
            lines.push((UnitId(unit), PairId(pair), line_of(row)?));
            Ok(())
        })?;
        Ok(lines)
    }
}

/// The rows of a unit after so many starts, with these lines, of which nothing is granted to it.
pub fn line_rows(unit: UnitId, incarnation: Incarnation, lines: &[Line]) -> Changes {
    let known = Unit { incarnation, begun: incarnation, flags_here: true, ..Unit::default() };
    let row = rows::bytes(&UnitRow::new(&known));
    let of_unit = ((Table::Units, store::key(&[unit.0])), Some(row));
    let known = (0..).zip(lines).filter(|(_, line)| **line != Line::FREE);
    let lines = known.map(|(pair, line)| {
        ((Table::Lines, store::key(&[unit.0, pair])), Some(line.bytes().to_vec()))
    });
    lines.chain([of_unit]).collect()
}

fn line_of(row: &[u8]) -> Result<Line, StoreError> {
    let bytes: Option<&[u8; LINE_BYTES]> = row.try_into().ok();
    let line = bytes.and_then(Line::from_bytes).filter(Line::is_sound);
    line.ok_or_else(|| StoreError::Damaged("a line's row".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::blocks::Location;
    use crate::format::ids::{ExtentId, Generation, LogicalExtent, Slot, VolumeId};
    use crate::format::record::Binding;
    use crate::mds::catalog::space::Use;
    use crate::mds::testing;

    const UNIT: UnitId = UnitId(3);

    fn bind(pair: u32, generation: u32, extent: u32) -> Record {
        let binding = Binding {
            generation: Generation(generation),
            owner: Some((VolumeId(1), LogicalExtent(pair))),
            extents: [Some(ExtentId(extent)), None],
            data_slot: Slot::Zero,
        };
        Record::Binding { pair: PairId(pair), binding }
    }

    fn place(pair: u32, generation: u32, slot: Slot) -> Record {
        let (pair, location) = (PairId(pair), Location::At(slot));
        Record::placed(pair, Generation(generation), &(0..4), location)
    }

    /// Goal: a group is applied whole and survives the store's closing; what cannot follow, is not
    /// granted or is of no pair is refused with its index, and changes nothing.
    #[test]
    fn groups_are_whole() {
        let (memory, mut catalog) = testing::create(10, 1);
        catalog.allocate(UNIT, Use::Journal, 5);
        catalog.harden(UNIT, &[bind(2, 1, 4), place(2, 1, Slot::Zero), bind(3, 1, 0)]).unwrap();
        catalog.commit().unwrap();
        for (records, refusal, index) in [
            (vec![bind(2, 2, 4), place(2, 2, Slot::One)], Refusal::LineImpossible, 1),
            (vec![bind(4, 1, 1), bind(5, 1, 5)], Refusal::NotGranted, 1),
            (vec![bind(10, 1, 1)], Refusal::OutOfRange, 0),
            (vec![bind(4, 1, 1), Record::Participant(UNIT)], Refusal::Unsupported, 1),
        ] {
            let refused = catalog.harden(UNIT, &records);
            assert_eq!(refused, Err(Fault::Refused(refusal, index)));
        }
        catalog.commit().unwrap();
        drop(catalog);
        let catalog = testing::open(&memory);
        let lines = catalog.lines(UNIT, PairId(0), 9).unwrap();
        let pairs: Vec<u32> = lines.iter().map(|(pair, _)| pair.0).collect();
        assert_eq!(pairs, [2, 3]);
        assert_eq!(lines[0].1.map.get(3), Location::At(Slot::Zero));
        assert_eq!(catalog.lines(UnitId(2), PairId(0), 9).unwrap(), []);
        assert_eq!(catalog.lines(UNIT, PairId(3), 9).unwrap(), lines[1..]);
    }

    /// Goal: a turn that changes lines is a new view, and one that does not is none; who asks is
    /// told what changed since; views go on over a start, which makes everything new.
    #[test]
    fn views() {
        let (memory, mut catalog) = testing::create(10, 1);
        catalog.allocate(UNIT, Use::Journal, 9);
        let first = catalog.view();
        catalog.commit().unwrap();
        assert_eq!(catalog.view(), first, "nothing of the lines changed");
        catalog.harden(UNIT, &[bind(2, 1, 4)]).unwrap();
        catalog.harden(UNIT, &[bind(5, 1, 5)]).unwrap();
        let second = catalog.view();
        assert!(second > first, "what is to be answered at the end of the turn is in its view");
        catalog.commit().unwrap();
        assert_eq!(catalog.view(), second);
        catalog.harden(UNIT, &[place(2, 1, Slot::Zero)]).unwrap();
        catalog.commit().unwrap();
        let changed = |catalog: &Catalog, since| {
            let seen = catalog.changes(UNIT, since, 9).unwrap()?;
            assert_eq!(seen.view, catalog.view());
            Some(seen.lines.iter().map(|(pair, _)| pair.0).collect::<Vec<_>>())
        };
        assert_eq!(changed(&catalog, first), Some(vec![2, 5]));
        assert_eq!(changed(&catalog, second), Some(vec![2]));
        assert_eq!(changed(&catalog, catalog.view()), Some(vec![]));
        assert_eq!(changed(&catalog, catalog.view() + 1), None);
        let last = catalog.view();
        drop(catalog);
        let catalog = testing::open(&memory);
        assert!(catalog.view() > last);
        assert_eq!(changed(&catalog, last), None);
    }
}
