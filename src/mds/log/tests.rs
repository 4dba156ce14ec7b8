use std::io;

use proptest::prelude::*;
use redb::StorageBackend;

use super::*;
use crate::env::sim::Crash;
use crate::env::sim::calls::Calls;
use crate::env::sim::rng::Rng;
use crate::env::sim::storage::SimStorage;
use crate::mds::redb_store::RedbStore;

const IDENTITY: Identity = Identity([9; 16]);
/// So small that halves change all the time.
const HALF: u64 = 4 * BLOCK as u64;

/// A simulated medium as the log's place: a write, and a flush after it.
struct SimPlace(SimStorage);

impl LogPlace for SimPlace {
    fn length(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        StorageBackend::read(&self.0, offset, out)
    }

    fn write(&mut self, offset: u64, blocks: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(BLOCK as u64) && blocks.len().is_multiple_of(BLOCK));
        StorageBackend::write(&self.0, offset, blocks)?;
        self.0.sync_data()
    }
}

type Logged = LoggedStore<RedbStore, SimPlace>;

/// The media of a store and its log.
#[derive(Clone)]
struct Media {
    rows: SimStorage,
    log: SimStorage,
}

impl Media {
    fn new() -> Self {
        let media = Media { rows: SimStorage::new(16 << 20), log: SimStorage::new(1 << 20) };
        let header = LogHeader { identity: IDENTITY, half: HALF };
        media.log.set_len(header.log_len()).unwrap();
        let copies = [header.encode(), header.encode()].concat();
        SimPlace(media.log.clone()).write(0, &copies).unwrap();
        adopt(&mut RedbStore::open(media.rows.clone()).unwrap(), IDENTITY).unwrap();
        media
    }

    fn boot(&self, calls: &Calls) {
        self.rows.boot(calls.clone());
        self.log.boot(calls.clone());
    }

    fn crash(&self, crash: Crash, rng: &mut Rng) {
        self.rows.crash(crash, rng);
        self.log.crash(crash, rng);
    }

    fn open(&self) -> Result<Logged, StoreError> {
        let below = RedbStore::open(self.rows.clone())?;
        let place = SimPlace(self.log.clone());
        LoggedStore::open(below.clone(), place, Checkpointer::Inline(below))
    }
}

/// Commit `number`: a row that all commits write, some that come and go, and sometimes a size that
/// fills a half or is beyond one.
fn changes_of(number: u64) -> Changes {
    let row = |key: u8, value: Option<Vec<u8>>| ((Table::Pairs, vec![key]), value);
    let bytes = match number % 11 {
        4 => 2 * BLOCK,
        7 => 5 * BLOCK,
        other => 10 + other as usize,
    };
    Changes::from([
        row(0, Some(number.to_le_bytes().to_vec())),
        row(1 + (number % 5) as u8, Some(vec![number as u8; bytes])),
        row(1 + ((number + 2) % 5) as u8, None),
        ((Table::Layout, number.to_be_bytes().to_vec()), Some(Vec::new())),
    ])
}

/// The rows that the first commits leave.
fn rows_after(commits: u64) -> Vec<(Table, Row)> {
    let mut rows = Changes::new();
    for number in 1..=commits {
        rows.extend(changes_of(number));
    }
    let there = rows.into_iter().filter_map(|((table, key), value)| Some((table, (key, value?))));
    there.collect()
}

fn rows_of(store: &impl Store) -> Vec<(Table, Row)> {
    let of = |table| {
        let rows = store.range(table, &[], 1000).unwrap();
        // Page by page it is the same.
        let pages = (0..).scan(Vec::new(), |from: &mut Vec<u8>, _| {
            let page = store.range(table, from, 3).unwrap();
            let (last, _) = page.last()?;
            *from = [last.as_slice(), &[0]].concat();
            Some(page)
        });
        assert_eq!(pages.flatten().collect::<Vec<Row>>(), rows);
        for (key, value) in &rows {
            assert_eq!(store.get(table, key).unwrap().as_ref(), Some(value));
        }
        rows.into_iter().map(move |row| (table, row))
    };
    of(Table::Pairs).chain(of(Table::Layout)).collect()
}

/// Which commit was the last, by the row that all of them write.
fn last_of(store: &impl Store) -> u64 {
    let row = store.get(Table::Pairs, &[0]).unwrap();
    row.map_or(0, |row| u64::from_le_bytes(row.try_into().unwrap()))
}

/// Commits from the last on, until `until` or the crash; gives the last one acknowledged before it.
fn run(store: &mut Logged, calls: &Calls, until: u64) -> u64 {
    let mut acknowledged = last_of(store);
    for number in acknowledged + 1..=until {
        store.commit(&changes_of(number)).unwrap();
        if calls.crashed() {
            break;
        }
        acknowledged = number;
    }
    acknowledged
}

/// Goal: without any crash the rows are those of all commits, at each of them, from the log alone
/// and from what is below; opened again, too.
#[test]
fn rows_are_those_of_all_commits() {
    let media = Media::new();
    let mut store = media.open().unwrap();
    for number in 1..=60 {
        store.commit(&changes_of(number)).unwrap();
        assert_eq!(rows_of(&store), rows_after(number), "after {number}");
        if number % 7 == 0 {
            drop(store);
            store = media.open().unwrap();
            assert_eq!(rows_of(&store), rows_after(number), "opened after {number}");
        }
    }
    assert!(store.tail.epoch > 20);
}

/// Goal: under commits of one size, what was applied and is not read any more has all been let go
/// of, a little with each commit, when the halves change again.
#[test]
fn what_is_applied_is_let_go_of() {
    let media = Media::new();
    let mut store = media.open().unwrap();
    let mut epochs = 0;
    for number in 1..=200 {
        let (epoch, left) = (store.tail.epoch, store.leaving.len());
        store.commit(&changes_of(number * 11)).unwrap();
        if store.tail.epoch != epoch {
            assert_eq!(left, 0, "at commit {number}");
            epochs += 1;
        }
    }
    assert!(epochs > 40 && !store.older.is_empty());
}

/// Goal: crashed at any write or flush of log or store, and again during the recovery and after
/// it, all that was acknowledged is there in order, what was not is whole or absent, and nothing
/// else is.
#[test]
fn crashed_at_any_call() {
    let mut struck = [0; 2];
    for crash_at in 1..=200 {
        for (which, crash) in [Crash::Power, Crash::Process].into_iter().enumerate() {
            let media = Media::new();
            let mut rng = Rng::new(crash_at);
            let mut acknowledged = 0;
            // The first crash, and one in what comes after it, recovery first.
            for at in [Some(crash_at), Some(1 + rng.below(40)), Some(1 + rng.below(15)), None] {
                let calls = Calls::new(at);
                media.boot(&calls);
                let mut store = media.open().unwrap();
                if !calls.crashed() {
                    let last = last_of(&store);
                    let fits = last == acknowledged || last == acknowledged + 1;
                    assert!(fits, "crash at {crash_at}: {last}, not {acknowledged}");
                    assert_eq!(rows_of(&store), rows_after(last), "crash at {crash_at}");
                    acknowledged = run(&mut store, &calls, last + 25);
                }
                drop(store);
                struck[which] += u32::from(calls.crashed());
                media.crash(crash, &mut rng);
            }
        }
    }
    assert!(struck.iter().all(|struck| *struck > 400), "{struck:?}");
}

/// Goal: what is below lacks nothing of a log that lost a record in the middle: the log is refused
/// as damaged, and nothing of it is applied out of order. A log that was cut at its end is not.
#[test]
fn a_hole_is_damage() {
    let fill = || {
        let media = Media::new();
        let mut store = media.open().unwrap();
        for number in 1..=3 {
            store.commit(&changes_of(number)).unwrap();
        }
        (media, store.header.half_at(store.tail.epoch))
    };
    for record in 0..3 {
        let (media, half) = fill();
        let hole = half + record * BLOCK as u64;
        SimPlace(media.log.clone()).write(hole, &[0; BLOCK]).unwrap();
        match media.open() {
            Ok(store) => assert_eq!((record, last_of(&store)), (2, 2)),
            Err(error) => assert!(record < 2 && matches!(error, StoreError::Damaged(_))),
        }
    }
}

/// A place whose write fails, once, after so many.
struct Failing(SimPlace, Option<u32>);

impl LogPlace for Failing {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn write(&mut self, offset: u64, blocks: &[u8]) -> io::Result<()> {
        let left = self.1;
        self.1 = left.and_then(|left| left.checked_sub(1));
        match left {
            Some(0) => Err(io::ErrorKind::Other.into()),
            _ => self.0.write(offset, blocks),
        }
    }
}

/// Goal: after the first failed write every commit fails with its error, also when the device
/// would take writes again.
#[test]
fn the_first_failure_stays() {
    let media = Media::new();
    let below = RedbStore::open(media.rows.clone()).unwrap();
    let place = Failing(SimPlace(media.log.clone()), Some(2));
    let opened = LoggedStore::open(below.clone(), place, Checkpointer::Inline(below));
    let mut store = opened.unwrap();
    store.commit(&changes_of(1)).unwrap();
    store.commit(&changes_of(2)).unwrap();
    let first = store.commit(&changes_of(3)).unwrap_err();
    assert!(matches!(&first, StoreError::Failed(text) if text.contains("log")));
    assert_eq!(store.commit(&changes_of(3)), Err(first));
    drop(store);
    let again = media.open().unwrap();
    assert_eq!(rows_of(&again), rows_after(2));
}

/// A store below whose commits fail.
#[derive(Clone)]
struct Full(RedbStore);

impl Store for Full {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get(table, key)
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.0.range(table, from, limit)
    }

    fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        match changes.len() {
            1 => self.0.commit(changes),
            _ => Err(StoreError::Full("as planned".to_owned())),
        }
    }

    fn bytes_written(&self) -> u64 {
        0
    }
}

/// Goal: a store below that takes no more, on its thread, ends the commits with its error, and what
/// was acknowledged until then is in the log.
#[test]
fn a_full_store_below() {
    let media = Media::new();
    let below = Full(RedbStore::open(media.rows.clone()).unwrap());
    let place = SimPlace(media.log.clone());
    let applier = Checkpointer::on_thread(below.clone()).unwrap();
    let mut store = LoggedStore::open(below, place, applier).unwrap();
    let mut acknowledged = 0;
    let error = loop {
        match store.commit(&changes_of(acknowledged + 1)) {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(acknowledged >= 3);
    assert_eq!(error, StoreError::Full("as planned".to_owned()));
    assert_eq!(store.commit(&changes_of(1)), Err(error));
    drop(store);
    assert_eq!(rows_of(&media.open().unwrap()), rows_after(acknowledged));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Goal: on a thread, too, whichever commit it is that waits for it, rows are those of all
    /// commits.
    #[test]
    fn on_a_thread(counts in proptest::collection::vec(1..30u64, 1..5)) {
        let media = Media::new();
        let mut number = 0;
        for count in counts {
            let below = RedbStore::open(media.rows.clone()).unwrap();
            let applier = Checkpointer::on_thread(below.clone()).unwrap();
            let place = SimPlace(media.log.clone());
            let mut store = LoggedStore::open(below, place, applier).unwrap();
            for _ in 0..count {
                number += 1;
                store.commit(&changes_of(number)).unwrap();
                prop_assert_eq!(rows_of(&store), rows_after(number));
            }
        }
    }
}
