//! A log before a store: a commit is one durable write, and the store below gets many at a time.
//!
//! ```text
//!   commit ──▶ append to the log ──▶ recent ──▶ acknowledged
//!                 │ half full
//!                 ▼
//!               older ──▶ one commit of the store below ──▶ half free
//!
//!   get, range:  recent, else older, else the store below
//! ```
//!
//! A transactional store writes pages and their parents for a row; a log writes the row. What is in
//! the log and not yet below is in memory too: `recent` are the net changes of the half that is
//! written now, `older` those of the other half while they go below. A row that changes often is
//! written below once a half, and the log's space bounds the memory.
//!
//! `older` stays when it is below, until the next change of halves: what changes often is read
//! often, and a map is quicker to look into than a database. Then it is let go of, a few rows with
//! each commit: all at once would hold a commit up, and so would another thread that frees what
//! this one has allocated, as they would wait for each other at the allocator.
//!
//! | part | what it is |
//! | --- | --- |
//! | [`format`] | the log's bytes |
//! | [`place`] | where they lie |
//! | [`recent`] | rows as the log leaves them |
//! | [`checkpoint`] | applying a half to the store below |
//!
//! # Recovery
//!
//! The store below says up to which epoch it has the log. Of the two epochs after that, the records
//! that are whole are applied in order, in one commit that also says that it has both: so nothing
//! that was in the log counts any more, a torn last write included, and nothing is applied twice.
//! Opening needs no write to the log, and cut short it begins again.
//!
//! # Contracts
//!
//! - **Whole, Durability**: as [`Store`]'s. A commit whose record does not fit a half is one
//!   of the store below, together with all before it.
//! - **Order**: the store below holds a prefix of the commits at any time.
//! - **Failure**: the first failed write, of log or store, is the answer to all that follows.
//! - **Ownership**: nobody else changes the store below, nor the log.

pub mod checkpoint;
pub mod format;
pub mod place;
pub mod recent;
#[cfg(test)]
mod tests;

use std::collections::btree_map;
use std::sync::Arc;

use self::checkpoint::Checkpointer;
use self::format::{Applied, BLOCK, COUNT_MAX, Identity, LogHeader, RecordBuffer};
use self::place::LogPlace;
use super::store::{Changes, Row, Store, StoreError, Table};

/// How many rows that are not needed any more are let go of with each that is changed.
const LEAVING_PER_CHANGE: usize = 2;

/// Where the next record goes.
#[derive(Clone, Copy, Debug)]
struct Tail {
    epoch: u64,
    /// Bytes of the epoch's half that are taken.
    used: u64,
    /// The last record's.
    sequence: u64,
}

/// A store with a log before it. Its parts are let go of in this order: the place, and with it the
/// lock, after the thread.
pub struct LoggedStore<S, L> {
    checkpointer: Checkpointer<S>,
    below: S,
    place: L,
    header: LogHeader,
    tail: Tail,
    record: RecordBuffer,
    recent: Changes,
    /// Those of the other half.
    older: Arc<Changes>,
    /// Whether those are on their way to the store below.
    applying: bool,
    /// What was `older` before.
    leaving: btree_map::IntoIter<(Table, Vec<u8>), Option<Vec<u8>>>,
    appended: u64,
    failed: Option<StoreError>,
}

/// Makes the store that is below a log of that identity know of it.
pub fn adopt(below: &mut impl Store, identity: Identity) -> Result<(), StoreError> {
    below.commit(&Changes::from([Applied { identity, epoch: 0, sequence: 0 }.row()]))
}

/// The log that the store is below of; `None` where it is below of none.
pub fn applied_by(below: &impl Store) -> Result<Option<Applied>, StoreError> {
    below.get(Table::Log, &[])?.map(|row| Applied::parse(&row)).transpose()
}

/// The header of a log; `None` where both copies are damaged or it is none.
pub fn header_at(place: &impl LogPlace) -> Result<Option<LogHeader>, StoreError> {
    Ok(header_copies(place)?.into_iter().flatten().next())
}

/// Both copies of a log's header; `None` for one that is damaged.
pub fn header_copies(place: &impl LogPlace) -> Result<[Option<LogHeader>; 2], StoreError> {
    let mut copies = [[0; BLOCK]; 2];
    place.read(0, copies.as_flattened_mut()).map_err(|error| log_failed(&error))?;
    Ok(copies.map(|copy| LogHeader::parse(&copy)))
}

/// Writes each damaged copy of a log's header again, from the other one.
pub fn mend_header(place: &mut impl LogPlace) -> Result<(), StoreError> {
    let copies = header_copies(place)?;
    let Some(good) = copies.into_iter().flatten().next() else { return Ok(()) };
    for (copy, _) in copies.iter().enumerate().filter(|(_, copy)| copy.is_none()) {
        let written = place.write((copy * BLOCK) as u64, &good.encode());
        written.map_err(|error| log_failed(&error))?;
    }
    Ok(())
}

fn log_failed(error: &std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => StoreError::Damaged("its log is cut off".to_owned()),
        _ => StoreError::Failed(format!("its log: {error}")),
    }
}

impl<S: Store, L: LogPlace> LoggedStore<S, L> {
    /// Opens log and store: what the log has and the store has not is applied first. The
    /// checkpointer is another handle of the same store.
    pub fn open(mut below: S, place: L, checkpointer: Checkpointer<S>) -> Result<Self, StoreError> {
        let damaged = |text: &str| StoreError::Damaged(text.to_owned());
        let header = header_at(&place)?.ok_or_else(|| damaged("its log has no whole header"))?;
        let applied = applied_by(&below)?.ok_or_else(|| damaged("it knows of no log"))?;
        if applied.identity != header.identity {
            return Err(damaged("the log is that of another store"));
        }
        let mut changes = Changes::new();
        let mut sequence = applied.sequence;
        for epoch in [applied.epoch + 1, applied.epoch + 2] {
            let mut half = vec![0; header.half as usize];
            let read = place.read(header.half_at(epoch), &mut half);
            read.map_err(|error| log_failed(&error))?;
            sequence = format::replay(&half, header.identity, epoch, sequence, &mut changes)?;
        }
        let applied = Applied { epoch: applied.epoch + 2, sequence, ..applied };
        changes.extend([applied.row()]);
        below.commit(&changes)?;
        Ok(LoggedStore {
            checkpointer,
            below,
            place,
            header,
            tail: Tail { epoch: applied.epoch + 1, used: 0, sequence },
            record: RecordBuffer::default(),
            recent: Changes::new(),
            older: Arc::default(),
            applying: false,
            leaving: btree_map::IntoIter::default(),
            appended: 0,
            failed: None,
        })
    }
}

impl<S: Store + 'static, L: LogPlace> LoggedStore<S, L> {
    /// Appends a commit's record, which is then durable.
    fn append(&mut self, changes: &Changes) -> Result<(), StoreError> {
        self.settle(false)?;
        let length = self.record.fill(changes);
        if length > self.header.half {
            return self.apply_beside_the_log(changes);
        }
        if self.tail.used + length > self.header.half {
            self.change_halves()?;
        }
        let sequence = self.tail.sequence + 1;
        assert!(sequence <= COUNT_MAX, "no log comes so far");
        let record = self.record.seal(self.header.identity, self.tail.epoch, sequence);
        let at = self.header.half_at(self.tail.epoch) + self.tail.used;
        self.place.write(at, record).map_err(|error| log_failed(&error))?;
        self.tail.used += length;
        self.tail.sequence = sequence;
        self.appended += length;
        self.remember(changes);
        self.leaving.by_ref().take(LEAVING_PER_CHANGE * changes.len()).for_each(drop);
        Ok(())
    }

    fn remember(&mut self, changes: &Changes) {
        let rows = changes.iter().map(|(key, value)| (key.clone(), value.clone()));
        self.recent.extend(rows);
    }

    /// Looks whether what is on its way below has come there; `wait`s for that.
    fn settle(&mut self, wait: bool) -> Result<(), StoreError> {
        if !self.applying {
            return Ok(());
        }
        let Some(outcome) = self.checkpointer.outcome(wait) else { return Ok(()) };
        self.applying = false;
        outcome
    }

    /// Begins to apply the half that is full, and goes on in the other, which is free when what was
    /// in it is below.
    fn change_halves(&mut self) -> Result<(), StoreError> {
        self.settle(true)?;
        let Tail { epoch, sequence, .. } = self.tail;
        let applied = Applied { identity: self.header.identity, epoch, sequence };
        self.recent.extend([applied.row()]);
        let older = Arc::new(std::mem::take(&mut self.recent));
        let left = Arc::into_inner(std::mem::replace(&mut self.older, older));
        self.leaving = left.expect("whoever applied it has let go of it").into_iter();
        self.tail = Tail { epoch: epoch + 1, used: 0, sequence };
        let outcome = self.checkpointer.begin(&self.older);
        self.applying = outcome.is_none();
        outcome.unwrap_or(Ok(()))
    }

    /// A commit that is too large for the log goes below with all before it.
    fn apply_beside_the_log(&mut self, changes: &Changes) -> Result<(), StoreError> {
        self.remember(changes);
        self.change_halves()?;
        self.settle(true)?;
        self.older = Arc::default();
        Ok(())
    }
}

impl<S: Store + 'static, L: LogPlace> Store for LoggedStore<S, L> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let row = (table, key.to_vec());
        match self.recent.get(&row).or_else(|| self.older.get(&row)) {
            Some(value) => Ok(value.clone()),
            None => self.below.get(table, key),
        }
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        let mut rows = Vec::new();
        let mut from = from.to_vec();
        loop {
            let page = self.below.range(table, &from, limit)?;
            let last = page.last().filter(|_| page.len() == limit).map(|(key, _)| key.clone());
            let newer = [&self.recent, &*self.older];
            let left = limit - rows.len();
            rows.extend(recent::after(newer, table, &from, last.as_deref(), &page, left));
            match last {
                Some(last) if rows.len() < limit => {
                    from = last;
                    from.push(0);
                }
                _ => return Ok(rows),
            }
        }
    }

    fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.append(changes).inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn bytes_written(&self) -> u64 {
        self.below.bytes_written() + self.appended
    }
}
