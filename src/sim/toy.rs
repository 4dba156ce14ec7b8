//! Toy engines that keep the promises, or break one each: tests of the simulator itself.
//!
//! The toy holds its volume in memory. A flush writes the whole image to the older of two halves of
//! the disk, flushes, and durably writes a header that names the half.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::engine::{Engine, Outcome, Refusal, Room, Running, Volume, Zeroing};
use super::run::{Failure, run_seed};
use super::sweep::{Sweep, Totals, sweep};
use crate::env::sim::rng::{Rng, mix};
use crate::env::sim::{DiskShape, Shape, SimEnv, SimStorage};
use crate::env::{Disk, Durability, Env};

const SIZE: usize = 64 << 10;
const SECTOR: usize = 512;

/// What is wrong with a toy.
pub(super) mod fault {
    pub const NONE: u8 = 0;
    pub const NO_FLUSH: u8 = 1;
    pub const VOLATILE_HEADER: u8 = 2;
    pub const TORN_WRITE: u8 = 3;
    pub const EARLY_ACK: u8 = 4;
    pub const ONE_HALF: u8 = 5;
    pub const STALE_READ: u8 = 6;
    pub const HANGS: u8 = 7;
    pub const FUA_FORGOTTEN: u8 = 8;
    pub const FRESH_IS_GARBAGE: u8 = 9;
    pub const NO_CLAIM: u8 = 10;
    pub const GOES_ON: u8 = 11;
}

#[derive(Clone)]
pub(super) struct Toy<const FAULT: u8>;

#[derive(Clone)]
pub(super) struct Serving<const FAULT: u8> {
    env: SimEnv,
    image: Rc<RefCell<Vec<u8>>>,
    stale: Rc<RefCell<Vec<u8>>>,
    /// The sequence of the newest header; nothing once a write or a flush has failed.
    newest: Rc<Mutex<Option<u64>>>,
}

fn failed(error: impl std::borrow::Borrow<io::Error>) -> Refusal {
    Refusal::Failed(error.borrow().to_string())
}

/// Where the header, or the half, of a sequence lies.
fn header_at(sequence: u64) -> u64 {
    (sequence % 2) * SECTOR as u64
}

fn half_at<const FAULT: u8>(sequence: u64) -> u64 {
    let half = if FAULT == fault::ONE_HALF { 0 } else { sequence % 2 };
    2 * SECTOR as u64 + half * SIZE as u64
}

impl<const FAULT: u8> Engine for Toy<FAULT> {
    type Running = Serving<FAULT>;

    fn draw(_: &mut Rng) -> Self {
        Toy
    }

    fn shape(&self) -> Shape {
        let len = 2 * (SECTOR + SIZE) as u64;
        Shape {
            disks: vec![DiskShape { len, sector: SECTOR as u32, volatile_cache: true }],
            nvram: None,
            parts: Vec::new(),
            storage_max: 0,
            buffers_max: 4 << 20,
        }
    }

    fn volumes(&self) -> Vec<u64> {
        vec![SIZE as u64]
    }

    fn granule(&self) -> usize {
        512
    }

    fn room(&self) -> Room {
        Room { extent: SIZE as u64, extents: 1 }
    }

    fn fork(&self) -> Self {
        Toy
    }

    fn stored(&self) -> u64 {
        0
    }

    fn older_groups(&self, _: &dyn Fn(u64, &mut [u8]) -> bool) -> Vec<Range<u64>> {
        Vec::new()
    }

    fn format(
        &self,
        env: SimEnv,
        _: SimStorage,
    ) -> impl Future<Output = Result<(), String>> + 'static {
        Serving::<FAULT>::format(env)
    }

    fn open(
        &self,
        env: SimEnv,
        _: SimStorage,
    ) -> impl Future<Output = Result<Serving<FAULT>, String>> + 'static {
        Serving::recover(env)
    }
}

impl<const FAULT: u8> Serving<FAULT> {
    async fn format(env: SimEnv) -> Result<(), String> {
        let toy = Self::new(env, vec![0; SIZE], 0);
        let result = if FAULT == fault::FRESH_IS_GARBAGE {
            toy.header(1).await
        } else {
            toy.checkpoint().await
        };
        result.map_err(|e| format!("{e:?}"))
    }

    async fn recover(env: SimEnv) -> Result<Self, String> {
        if FAULT != fault::NO_CLAIM {
            env.claim().await;
        }
        // What is read must not vanish later.
        env.disk(0).flush().await.map_err(|e| e.to_string())?;
        let mut newest = 0;
        for slot in 0..2 {
            let bytes = match read(&env, header_at(slot), SECTOR).await {
                Ok(bytes) => bytes,
                // It was being written when the power was lost.
                Err(Refusal::Failed(why)) if why.contains("torn") => continue,
                Err(why) => return Err(format!("{why:?}")),
            };
            let word = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().unwrap());
            if word(8) == mix(word(0)) {
                newest = word(0).max(newest);
            }
        }
        let image =
            read(&env, half_at::<FAULT>(newest), SIZE).await.map_err(|e| format!("{e:?}"))?;
        Ok(Serving::new(env, image, newest))
    }
}

async fn read(env: &SimEnv, offset: u64, len: usize) -> Outcome<Vec<u8>> {
    let mut buf = env.buffers().acquire(len).await;
    env.disk(0).read(offset, buf.view_all()).await.map_err(failed)?;
    Ok(buf.as_slice().to_vec())
}

async fn write(env: &SimEnv, offset: u64, data: &[u8], durability: Durability) -> Outcome<()> {
    let mut buf = env.buffers().acquire(data.len()).await;
    buf.as_mut_slice().copy_from_slice(data);
    env.disk(0).write(offset, buf.view_all(), durability).await.map_err(failed)
}

impl<const FAULT: u8> Serving<FAULT> {
    fn new(env: SimEnv, image: Vec<u8>, newest: u64) -> Self {
        let stale = Rc::new(RefCell::new(image.clone()));
        let (image, newest) = (Rc::new(RefCell::new(image)), Rc::new(Mutex::new(Some(newest))));
        Self { env, image, stale, newest }
    }

    async fn header(&self, sequence: u64) -> Outcome<()> {
        let mut bytes = vec![0; SECTOR];
        bytes[..8].copy_from_slice(&sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&mix(sequence).to_le_bytes());
        let volatile = FAULT == fault::VOLATILE_HEADER && sequence > 1;
        let durability = if volatile { Durability::Volatile } else { Durability::Durable };
        write(&self.env, header_at(sequence), &bytes, durability).await
    }

    async fn checkpoint(&self) -> Outcome<()> {
        let mut newest = self.newest.lock().await;
        let stopped = || Refusal::Failed(String::from("a write or a flush had failed"));
        let last = newest.ok_or_else(stopped)?;
        if FAULT != fault::GOES_ON {
            *newest = None;
        }
        let sequence = last + 1;
        let image = self.image.borrow().clone();
        write(&self.env, half_at::<FAULT>(sequence), &image, Durability::Volatile).await?;
        if FAULT != fault::NO_FLUSH || sequence == 1 {
            self.env.disk(0).flush().await.map_err(failed)?;
        }
        self.header(sequence).await?;
        *newest = Some(sequence);
        *self.stale.borrow_mut() = image;
        Ok(())
    }

    async fn put(&self, offset: u64, data: Vec<u8>, fua: bool) -> Outcome<()> {
        self.env.sleep(Duration::from_micros(5)).await;
        let start = offset as usize;
        let middle = if FAULT == fault::TORN_WRITE { data.len() / 1024 * 512 } else { 0 };
        self.image.borrow_mut()[start..start + middle].copy_from_slice(&data[..middle]);
        if middle > 0 {
            self.env.sleep(Duration::from_micros(50)).await;
        }
        self.image.borrow_mut()[start + middle..start + data.len()]
            .copy_from_slice(&data[middle..]);
        if FAULT == fault::HANGS && self.env.random().is_multiple_of(50) {
            std::future::pending::<()>().await;
        }
        if fua && FAULT != fault::FUA_FORGOTTEN {
            self.checkpoint().await?;
        }
        Ok(())
    }
}

impl<const FAULT: u8> Running for Serving<FAULT> {
    type Volume = Self;

    fn volumes(&self) -> Vec<Self> {
        vec![self.clone()]
    }

    fn commit(&self) -> impl Future<Output = Outcome<()>> + 'static {
        let toy = self.clone();
        async move { toy.checkpoint().await }
    }

    fn settle(&self) -> impl Future<Output = Outcome<()>> + 'static {
        std::future::ready(Ok(()))
    }

    fn shutdown(&self) -> impl Future<Output = Outcome<()>> + 'static {
        self.commit()
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn is_quiet(&self) -> bool {
        self.newest.try_lock().is_ok()
    }
}

impl<const FAULT: u8> Volume for Serving<FAULT> {
    fn request_max(&self) -> u64 {
        SIZE as u64
    }

    fn zeroed(&self, offset: u64, len: u64, _: Zeroing) -> Vec<Range<u64>> {
        std::iter::once(offset..offset + len).collect()
    }

    fn read(&self, offset: u64, len: usize) -> impl Future<Output = Outcome<Vec<u8>>> + 'static {
        let image = if FAULT == fault::STALE_READ { &self.stale } else { &self.image };
        let start = offset as usize;
        std::future::ready(Ok(image.borrow()[start..start + len].to_vec()))
    }

    fn write(
        &self,
        offset: u64,
        data: Vec<u8>,
        fua: bool,
    ) -> impl Future<Output = Outcome<()>> + 'static {
        let toy = self.clone();
        async move { toy.put(offset, data, fua).await }
    }

    fn zero(
        &self,
        offset: u64,
        len: u64,
        _: Zeroing,
        fua: bool,
    ) -> impl Future<Output = Outcome<()>> + 'static {
        self.write(offset, vec![0; len as usize], fua)
    }

    fn flush(&self) -> impl Future<Output = Outcome<()>> + 'static {
        let toy = self.clone();
        async move {
            if FAULT == fault::EARLY_ACK {
                let later = toy.clone();
                toy.env.spawn(async move { drop(later.checkpoint().await) });
                return Ok(());
            }
            toy.checkpoint().await
        }
    }
}

/// The first failure within that many seeds.
fn first_failure<const FAULT: u8>(seeds: u64) -> Option<Failure> {
    (0..seeds).find_map(|seed| run_seed::<Toy<FAULT>>(seed, false).err())
}

/// Goal: an engine that keeps the promises passes, and a seed runs the same way twice.
#[test]
fn a_correct_toy_passes() {
    for seed in 0..300 {
        let run = || run_seed::<Toy<{ fault::NONE }>>(seed, false);
        let report = run().unwrap_or_else(|failure| panic!("{failure}"));
        if seed % 10 == 0 {
            assert_eq!(report.trace, run().unwrap().trace);
        }
    }
}

/// Goal: each way to break a promise is found, and called by its name.
#[test]
fn broken_toys_are_caught() {
    let caught = |failure: Option<Failure>, words: &[&str]| {
        let what = failure.expect("the fault is not found").what;
        assert!(words.iter().any(|word| what.contains(word)), "not one of {words:?}: {what}");
    };
    caught(first_failure::<{ fault::NO_FLUSH }>(300), &["promise"]);
    caught(first_failure::<{ fault::VOLATILE_HEADER }>(300), &["promise"]);
    caught(first_failure::<{ fault::TORN_WRITE }>(300), &["promise"]);
    caught(first_failure::<{ fault::EARLY_ACK }>(300), &["promise 2"]);
    caught(first_failure::<{ fault::ONE_HALF }>(300), &["promise", "unreadable"]);
    caught(first_failure::<{ fault::STALE_READ }>(300), &["promise 5"]);
    caught(first_failure::<{ fault::HANGS }>(300), &["hangs", "more than any time"]);
    caught(first_failure::<{ fault::FUA_FORGOTTEN }>(300), &["promise 2"]);
    caught(first_failure::<{ fault::FRESH_IS_GARBAGE }>(300), &["promise 5"]);
    // A predecessor's writes arrive over what this one has written.
    caught(first_failure::<{ fault::NO_CLAIM }>(1000), &["promise"]);
}

/// Goal: a sweep runs every seed once, on several threads, and finds what one run finds.
#[test]
fn a_sweep_runs_all_seeds() {
    let seeds = Sweep {
        base: 100,
        count: 40,
        time: None,
        threads: 2,
        loud: false,
        twice_every: 10,
        failures_max: 1,
    };
    let quiet = |_: &Totals| ();
    let totals = sweep(seeds, run_seed::<Toy<{ fault::NONE }>>, Duration::ZERO, quiet).unwrap();
    assert_eq!(totals.seeds, 40);
    assert!(totals.did.crashes >= 40 && totals.did.images >= 40);
    assert!(sweep(seeds, run_seed::<Toy<{ fault::EARLY_ACK }>>, Duration::ZERO, quiet).is_err());
    // However short the time, one seed is run.
    let short = Sweep { time: Some(Duration::ZERO), ..seeds };
    let totals = sweep(short, run_seed::<Toy<{ fault::NONE }>>, Duration::ZERO, quiet).unwrap();
    assert_eq!(totals.seeds, 1);
}
