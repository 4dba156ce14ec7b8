//! Scenarios of the journal alone, on a disk that loses power: tests, and what finds mutants.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use flipside::env::region::DeviceRegion;
use flipside::env::sim::{
    Crash, DiskShape, Fault, Faults, Limit, Machine, Rng, Shape, SimDisk, SimEnv, Stop,
};
use flipside::env::{Disk as _, Durability, Env as _, Region as _};
use flipside::format::group::{GroupState, Part, Parts, SLOT_BYTES};
use flipside::format::ids::{Generation, Incarnation, PairId, PoolId, Sequence, UnitId};
use flipside::format::record::{Binding, Record};
use flipside::journal::{Journal, JournalError, Opened, RegionLayout};

const LIMIT: Limit = Limit { time_ns: 3600 * 1_000_000_000, steps: 1_000_000 };
const POOL: PoolId = PoolId([5; 16]);
const UNIT: UnitId = UnitId(1);
const LEN: u64 = 1 << 20;
/// Of a disk on which a status page is small, and of one on which a slot arrives whole or not.
const SMALL: u32 = 512;
const LARGE: u32 = 4096;
const PAIRS: u32 = 512;
/// Runs of unlinking, and of commits that are cut off: seldom does a part of what is under way
/// arrive, and not all of it.
const UNLINKED: u64 = 1500;
const CUT_OFF: u64 = 300;
/// Groups that are linked before some are unlinked: their entries are on several status pages.
const GROUPS: u64 = 50;
/// The newest group where the next one is cut off.
const NEWEST: Sequence = Sequence(3);

type OnDisk = DeviceRegion<SimDisk>;

fn machine(seed: u64, sector: u32) -> Machine {
    let disk = DiskShape { len: LEN, sector, volatile_cache: true };
    let (disks, parts) = (vec![disk], Vec::new());
    Machine::new(seed, &Shape { disks, nvram: None, parts, storage_max: 0, buffers_max: 16 << 20 })
}

fn region(env: &SimEnv) -> OnDisk {
    DeviceRegion::new(env.disk(0), 0, LEN)
}

async fn open(env: &SimEnv, start: u32) -> Result<Opened<OnDisk>, JournalError> {
    let region = region(env);
    region.flush().await.unwrap();
    Journal::open(env, region, POOL, (UNIT, Incarnation(start)), PAIRS).await
}

/// A new journal.
async fn made(env: &SimEnv) -> Journal<OnDisk> {
    let mut zeros = env.buffers().acquire(LEN as usize).await;
    zeros.as_mut_slice().fill(0);
    env.disk(0).write(0, zeros.view_all(), Durability::Durable).await.unwrap();
    Journal::format(&region(env), POOL, UNIT, PAIRS, env.buffers()).await.unwrap();
    open(env, 1).await.unwrap_or_else(|error| panic!("a new region: {error}")).journal
}

/// Appends a group that names these pairs.
async fn append(journal: &Journal<OnDisk>, pairs: Range<u32>) -> Result<Sequence, JournalError> {
    let transaction = journal.local_transaction();
    journal.append(0, transaction, GroupState::Committed, records(pairs), Vec::new()).await
}

fn records(pairs: Range<u32>) -> Vec<Record> {
    let binding = Binding { generation: Generation(1), ..Binding::FREE };
    pairs.map(|pair| Record::Binding { pair: PairId(pair), binding }).collect()
}

/// The groups that a start finds, after a loss of power.
fn found(machine: &mut Machine) -> Result<BTreeSet<Sequence>, JournalError> {
    let env = machine.boot(Faults::none());
    let opening = env.clone();
    let opened = env.run(LIMIT, async move {
        let opened = open(&opening, 2).await?;
        Ok(opened.groups.iter().map(|group| group.sequence).collect())
    });
    opened.expect("a start ends")
}

/// Goal: whatever a loss of power leaves of an unlinking whose links are on several pages, no group
/// is gone while an older one of its pairs stays, which replay would bring back (seed 3006369).
pub fn what_is_older_is_unlinked_before() {
    let cut_short = (1..=UNLINKED).filter(|seed| unlink(*seed)).count();
    assert!(cut_short > 100, "{cut_short} of {UNLINKED} were cut short");
}

/// Whether the unlinking was cut short.
fn unlink(seed: u64) -> bool {
    // Every fourth stays, and nothing else is of its pair; the others are of three pairs.
    let stays = |n: u64| n.is_multiple_of(4);
    let pair = move |n: u64| if stays(n) { 100 + n as u32 } else { n as u32 % 3 };
    let mut machine = machine(seed, SMALL);
    let env = machine.boot(Faults::none());
    let (at_work, calls) = (env.clone(), Rng::new(seed).below(6));
    let ended = env.run(LIMIT, async move {
        let journal = made(&at_work).await;
        for n in 1..=GROUPS {
            append(&journal, pair(n)..pair(n) + 1).await.unwrap();
        }
        at_work.crash_in(Some(calls));
        let chosen: Vec<_> = (1..=GROUPS).filter(|n| !stays(*n)).map(Sequence).collect();
        journal.unlink(&chosen).await.unwrap();
    });
    machine.halt(&env, Crash::Power);
    let found = found(&mut machine).expect("the region is sound");
    for n in found.iter().map(|sequence| sequence.0) {
        let newer = (n + 1..=GROUPS).filter(|newer| pair(*newer) == pair(n));
        newer.for_each(|newer| {
            assert!(found.contains(&Sequence(newer)), "seed {seed}: {newer} is gone, {n} is not");
        });
    }
    matches!(ended, Err(Stop::Crashed))
}

/// A machine whose power was lost while a commit was under way, the newest but for that one being
/// [`NEWEST`]; and the parts that are there, by their slots.
struct CutOff {
    machine: Machine,
    rng: Rng,
    /// Of the commit that was cut off.
    records: Vec<Record>,
    layout: RegionLayout,
    parts: BTreeMap<u32, Part>,
}

impl CutOff {
    fn new(seed: u64) -> CutOff {
        let mut machine = machine(seed, LARGE);
        let env = machine.boot(Faults::none());
        let (at_work, mut rng) = (env.clone(), Rng::new(seed));
        // They take several slots.
        let many = rng.between(150, 400) as u32;
        let _ = env.run(LIMIT, async move {
            let journal = made(&at_work).await;
            for n in 1..=NEWEST.0 as u32 {
                append(&journal, n..n + 1).await.unwrap();
            }
            at_work.crash_in(Some(0));
            append(&journal, 0..many).await.unwrap();
        });
        machine.halt(&env, Crash::Power);
        let layout = RegionLayout::compute(LEN, PAIRS, LARGE).unwrap();
        let mut bytes = vec![0; SLOT_BYTES];
        let slots = (0..layout.slots).filter_map(|slot| {
            assert!(machine.read_region(layout.slot_at(slot), &mut bytes));
            Some((slot, Part::parse(&bytes, POOL)?))
        });
        let parts = slots.collect();
        CutOff { machine, rng, records: records(0..many), layout, parts }
    }

    /// How many parts of the commit that was cut off are there, and how many it has.
    fn arrived(&self) -> (usize, usize) {
        let there = self.parts.values().filter(|part| part.sequence > NEWEST).count();
        (there, Parts::of(&self.records).count())
    }
}

/// Goal: a commit of several parts counts where all of them have arrived, and only there.
pub fn what_is_cut_off_does_not_count() {
    let torn = (1..=CUT_OFF).filter(|seed| {
        let mut cut = CutOff::new(*seed);
        let (there, all) = cut.arrived();
        let found = found(&mut cut.machine).expect("the region is sound");
        let counts = found.contains(&Sequence(NEWEST.0 + 1));
        assert_eq!(counts, there == all, "seed {seed}: {there} of {all} parts are there");
        there > 0 && there < all
    });
    assert!(torn.count() > 20, "few of {CUT_OFF} were torn");
}

/// Goal: where the newest group has rotted, and all that tells of it is a part of the next one,
/// which was cut off, a start misses it.
pub fn what_rots_before_a_cut_off_is_missed() {
    let missed = (1..=CUT_OFF).filter(|seed| rot(*seed)).count();
    assert!(missed > 5, "{missed} of {CUT_OFF} were missed");
}

/// Whether the newest group rotted before one that was cut off, and was missed.
fn rot(seed: u64) -> bool {
    let mut cut = CutOff::new(seed);
    let (there, all) = cut.arrived();
    if there == 0 || there == all {
        return false;
    }
    let newest = cut.parts.iter().find(|(_, part)| part.sequence == NEWEST);
    let (&slot, _) = newest.expect("an acknowledged group is there");
    let (at, len) = (cut.layout.slot_at(slot), SLOT_BYTES as u64);
    cut.machine.rot(at, len, Fault::RottenSlot, &mut cut.rng);
    match found(&mut cut.machine) {
        Ok(found) => {
            assert!(found.contains(&NEWEST), "seed {seed}: a group is lost without a word");
            false
        }
        Err(_) => true,
    }
}
