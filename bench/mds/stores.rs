//! Stores alone, and the device alone: one commit, or write, after the other, by one thread; and
//! the clock, by a thread that does nothing else.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use flipside::format::ids::ExtentId;
use flipside::mds::hosted;
use flipside::mds::raw::RawPair;
use flipside::mds::records::Primitive;
use flipside::mds::redb_store::RedbStore;
use flipside::mds::store::{self, Changes, Store, Table};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use zerocopy::IntoBytes;

use crate::outcome::{Outcome, Times, per_second};
use crate::work::Work;
use crate::writes::durable_writes;

/// A store in a new folder: redb behind our log, as the server has it, or redb alone.
fn new_store(folder: &Path, logged: bool) -> Box<dyn Store> {
    fs::create_dir_all(folder).expect("a folder");
    if logged {
        return hosted::open(&folder.join("logged")).expect("a new store");
    }
    let mut how = File::options();
    let how = how.read(true).write(true).create_new(true);
    let file = how.open(folder.join("redb")).expect("a new file");
    let backend = redb::backends::FileBackend::new(file).expect("a new file");
    Box::new(RedbStore::open(backend).expect("a new store"))
}

/// The rows that a batch changes: one a primitive, as in the server's store of many pools.
fn rows(batch: &[Primitive]) -> Changes {
    let row = |primitive: &Primitive| {
        let pair = primitive.pair();
        let key = store::key(&[0, 0, pair.pair.0]);
        ((Table::Pairs, key), Some(RawPair::from(pair).as_bytes().to_vec()))
    };
    batch.iter().map(row).collect()
}

/// A store that commits a batch a transaction, of so many pairs.
pub fn store(folder: &Path, logged: bool, pairs: u32, batch: u32, length: Duration) -> Outcome {
    let mut store = new_store(folder, logged);
    let mut work = Work::new((0..2 * pairs).map(ExtentId).collect());
    while !work.is_made() {
        store.commit(&rows(&work.batch(256))).expect("a commit");
    }
    let mut times = Times::new();
    let (start, cpu, bytes) = (Instant::now(), cpu_time(), store.bytes_written());
    let mut commits = 0;
    while start.elapsed() < length {
        let changes = rows(&work.batch(batch));
        let began = Instant::now();
        store.commit(&changes).expect("a commit");
        times.end(began);
        commits += 1;
    }
    let (elapsed, done) = (start.elapsed(), commits * u64::from(batch));
    let outcome = Outcome {
        who: if logged { "log" } else { "redb" },
        load: "single",
        batch,
        primitives_per_commit: batch.into(),
        bytes_per_primitive: (store.bytes_written() - bytes) / done.max(1),
        cpu_percent: per_second(cpu_time() - cpu, elapsed) / 10_000,
        ..times.outcome(done, elapsed)
    };
    drop(store);
    fs::remove_dir_all(folder).expect("the folder goes");
    outcome
}

/// The device: see [`crate::writes`].
pub fn device(dir: &Path, length: Duration) -> Outcome {
    let mut times = Times::new();
    let (cpu, mut writes) = (cpu_time(), 0);
    let elapsed = durable_writes(dir, length, |began| {
        times.end(began);
        writes += 1;
    });
    let cpu_percent = per_second(cpu_time() - cpu, elapsed) / 10_000;
    Outcome { who: "device", load: "single", cpu_percent, ..times.outcome(writes, elapsed) }
}

/// The clock: how late a thread is that is to be woken each millisecond.
pub fn clock(length: Duration) -> Outcome {
    let mut times = Times::new();
    let (start, mut due, mut wakes) = (Instant::now(), Instant::now(), 0);
    while start.elapsed() < length {
        due += Duration::from_millis(1);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        times.end(due);
        wakes += 1;
    }
    Outcome { who: "clock", load: "single", ..times.outcome(wakes, start.elapsed()) }
}

/// Processor time of all threads so far, in microseconds.
fn cpu_time() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("one's own usage");
    let times = [usage.user_time(), usage.system_time()];
    let micros =
        |time: &TimeVal| time.tv_sec().cast_unsigned() * 1_000_000 + time.tv_usec().cast_unsigned();
    times.iter().map(micros).sum()
}
