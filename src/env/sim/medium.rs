//! A device's memory: what is durable, what is only in its cache, and what was still on its way.
//!
//! # Contracts
//!
//! - A write is *under way* from [`Medium::begin`] to [`Medium::complete`]; meanwhile a read may
//!   see any of its sectors, old or new, and writes under way at once land in the order of
//!   completion.
//! - A completed write is *cached* until a flush whose [`Medium::mark`] was taken after the
//!   completion is [`Medium::flushed`], or until a later durable write of the same sectors has
//!   completed. A [`Durability::Durable`] write makes its own sectors durable and nothing else.
//! - At a loss of power each sector independently keeps any version from its last durable one on,
//!   those under way included; one under way may instead read as an error, until it is rewritten
//!   or, by chance, until the next loss of power.
//! - When only the process dies, what has completed stays; each write under way arrives, does not,
//!   or stays under way to arrive in a later operating period ([`Medium::late`]).
//! - A sector that *fails* cannot be read until it is rewritten or, where it is dead, neither read
//!   nor written, until it is [healed](Medium::heal).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::faults::{Fault, Faults, Struck};
use super::image::{Image, garbage};
use super::parts::Parts;
use super::rng::Rng;
use crate::env::Durability;

/// Names a write under way.
pub type WriteId = u64;
/// A place in the order of completions.
pub type Mark = u64;

/// How an operating period of the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Everything volatile is lost.
    Power,
    /// The process is killed; devices and their caches live on.
    Process,
}

/// Why a sector fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// It cannot be read until it is rewritten.
    UntilRewritten,
    /// It can be neither read nor written.
    Dead,
}

/// Why a sector cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The sector's number.
    pub sector: u64,
    /// How it fails; `None` where it was torn by a loss of power.
    pub failing: Option<Failing>,
}

#[derive(Clone)]
pub(super) struct Write {
    pub id: WriteId,
    pub offset: u64,
    pub data: Arc<[u8]>,
    pub durability: Durability,
}

impl Write {
    /// The sectors that it writes.
    fn sectors(&self, sector: usize) -> std::ops::Range<u64> {
        let first = self.offset / sector as u64;
        first..first + (self.data.len() / sector) as u64
    }
}

/// A device's memory. Clones share what they have not changed since.
#[derive(Clone)]
pub struct Medium {
    pub(super) sector: usize,
    volatile_cache: bool,
    /// What reads see.
    pub(super) current: Image,
    /// What is certain to survive, as far as `cached` does not make newer versions durable.
    pub(super) durable: Image,
    /// Completed writes, oldest first; the mark is their place among all completions.
    pub(super) cached: Vec<(Mark, Write)>,
    pub(super) under_way: Vec<Write>,
    /// Sectors torn by a loss of power.
    pub(super) bad: BTreeSet<u64>,
    /// Sectors that fail at rest.
    failing: BTreeMap<u64, Failing>,
    pub(super) completions: Mark,
    pub(super) next_id: WriteId,
    garbage: u64,
    parts: Parts,
}

impl Medium {
    /// A medium never written. Without a garbage seed it reads as zeros.
    pub fn new(len: u64, sector: u32, volatile_cache: bool, garbage: Option<u64>) -> Self {
        let image = Image::new(len, garbage);
        Self {
            sector: sector as usize,
            volatile_cache,
            durable: image.clone(),
            current: image,
            cached: Vec::new(),
            under_way: Vec::new(),
            bad: BTreeSet::new(),
            failing: BTreeMap::new(),
            completions: 0,
            next_id: 0,
            garbage: garbage.unwrap_or(0),
            parts: Parts::default(),
        }
    }

    /// Says what lies where.
    pub fn set_parts(&mut self, parts: Parts) {
        self.parts = parts;
    }

    /// The name of the part that a write of `len` bytes begins in.
    pub fn part_at(&self, offset: u64, len: u64) -> &'static str {
        self.parts.name_at(offset, len)
    }

    /// Whether a byte is in no part that has a name.
    pub fn is_data(&self, offset: u64) -> bool {
        self.parts.is_data(offset)
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.current.size()
    }

    /// The unit that is written whole or not at all, in bytes.
    pub fn sector(&self) -> u32 {
        self.sector as u32
    }

    /// Whether completed writes need a flush to be durable.
    pub fn volatile_cache(&self) -> bool {
        self.volatile_cache
    }

    /// A write is on its way.
    pub fn begin(&mut self, offset: u64, data: Arc<[u8]>, durability: Durability) -> WriteId {
        self.check(offset, data.len());
        let id = self.next_id;
        self.next_id += 1;
        let durability = if self.volatile_cache { durability } else { Durability::Durable };
        self.under_way.push(Write { id, offset, data, durability });
        id
    }

    /// The write has arrived.
    pub fn complete(&mut self, id: WriteId) {
        let write = self.take(id);
        self.land(write);
    }

    /// The write has failed: each of its sectors is old or new.
    pub fn fail(&mut self, id: WriteId, rng: &mut Rng) {
        let mut write = self.take(id);
        write.durability = Durability::Volatile;
        let mut left = write.data.to_vec();
        for at in (0..left.len()).step_by(self.sector) {
            if rng.chance(500_000) {
                self.current.read(write.offset + at as u64, &mut left[at..at + self.sector]);
            }
        }
        write.data = left.into();
        self.land(write);
    }

    /// Whether a dead sector is among those that a write under way is to.
    pub fn hits_dead(&self, id: WriteId) -> bool {
        let write = self.under_way.iter().find(|write| write.id == id);
        let sectors = write.expect("a write under way").sectors(self.sector);
        self.failing.range(sectors).any(|(_, failing)| *failing == Failing::Dead)
    }

    /// Whether a write under way is durable when it has arrived.
    pub fn is_durable(&self, id: WriteId) -> bool {
        let write = self.under_way.iter().find(|write| write.id == id);
        write.expect("a write under way").durability == Durability::Durable
    }

    /// Where a write under way is to, in bytes.
    pub fn offset_of(&self, id: WriteId) -> u64 {
        let write = self.under_way.iter().find(|write| write.id == id);
        write.expect("a write under way").offset
    }

    /// A sector of a range fails from now on.
    pub fn break_sector(&mut self, offset: u64, len: usize, failing: Failing, rng: &mut Rng) {
        let sectors = (len / self.sector) as u64;
        let sector = offset / self.sector as u64 + rng.below(sectors);
        self.failing.insert(sector, failing);
    }

    /// No sector fails any more; those torn by a loss of power stay as they are.
    pub fn heal(&mut self) {
        self.failing.clear();
    }

    /// No sector that may be rewritten fails any more.
    pub fn heal_bad(&mut self) {
        self.failing.retain(|_, failing| *failing == Failing::Dead);
    }

    /// The writes under way, those of a process that was killed before among them.
    pub fn late(&self) -> impl Iterator<Item = WriteId> {
        self.under_way.iter().map(|write| write.id)
    }

    /// Flips a bit, at rest: nothing is under way or cached.
    pub fn flip(&mut self, offset: u64, bit: u32) {
        assert!(self.cached.is_empty() && self.under_way.is_empty(), "bits rot at rest");
        let mut byte = [0];
        self.durable.read(offset, &mut byte);
        byte[0] ^= 1 << bit;
        self.durable.write(offset, &byte);
        self.current.write(offset, &byte);
    }

    /// The sector of a byte cannot be read until it is rewritten, or can be read again.
    pub fn set_torn(&mut self, offset: u64, torn: bool) {
        let sector = offset / self.sector as u64;
        if torn {
            self.bad.insert(sector);
        } else {
            self.bad.remove(&sector);
        }
    }

    /// Whether nothing is under way or cached.
    pub fn is_at_rest(&self) -> bool {
        self.cached.is_empty() && self.under_way.is_empty()
    }

    /// What a discard leaves behind: something.
    pub fn discarded(&mut self, len: usize) -> Arc<[u8]> {
        let mut data = vec![0; len];
        garbage(self.garbage ^ self.next_id, 0, &mut data);
        data.into()
    }

    /// Reads at this instant; every sector that is under way may be old or new. `Err` where a
    /// sector cannot be read.
    pub fn read(&self, offset: u64, out: &mut [u8], rng: &mut Rng) -> Result<(), Unreadable> {
        self.check(offset, out.len());
        let end = offset + out.len() as u64;
        let sectors = offset / self.sector as u64..end / self.sector as u64;
        if let Some((&sector, &failing)) = self.failing.range(sectors.clone()).next() {
            return Err(Unreadable { sector, failing: Some(failing) });
        }
        if let Some(&sector) = self.bad.range(sectors).next() {
            return Err(Unreadable { sector, failing: None });
        }
        self.current.read(offset, out);
        for write in &self.under_way {
            for at in (0..write.data.len()).step_by(self.sector) {
                let place = write.offset + at as u64;
                if (offset..end).contains(&place) && rng.chance(500_000) {
                    let start = (place - offset) as usize;
                    out[start..start + self.sector]
                        .copy_from_slice(&write.data[at..at + self.sector]);
                }
            }
        }
        Ok(())
    }

    /// What reads see while nothing is under way.
    pub fn image(&self) -> &Image {
        &self.current
    }

    /// The order's present place, for a flush that is submitted now.
    pub fn mark(&self) -> Mark {
        self.completions
    }

    /// A flush submitted at `mark` has returned.
    pub fn flushed(&mut self, mark: Mark) {
        let covered = self.cached.partition_point(|(at, _)| *at <= mark);
        for (_, write) in self.cached.drain(..covered) {
            self.durable.write(write.offset, &write.data);
        }
    }

    /// A flush submitted at `mark` has failed, and what it covered may be lost or not, though it
    /// could be read before.
    pub fn flush_failed(&mut self, mark: Mark, rng: &mut Rng) {
        let covered = self.cached.partition_point(|(at, _)| *at <= mark);
        let lost: Vec<_> = self.cached.drain(..covered).map(|(_, write)| write).collect();
        let keep = Keep::draw(rng);
        for write in &lost {
            apply_some(&mut self.durable, write, self.sector, keep, rng);
        }
        for write in &lost {
            self.current.copy_from(&self.durable, write.offset, write.data.len());
        }
        for (_, write) in &self.cached {
            self.current.write(write.offset, &write.data);
        }
    }

    /// The machine stops: resolves everything volatile. Returns how often each fault struck whose
    /// rates are in `faults`.
    pub fn crash(&mut self, crash: Crash, faults: &Faults, rng: &mut Rng) -> Struck {
        let mut struck = Struck::default();
        let mut under_way = std::mem::take(&mut self.under_way);
        for i in (1..under_way.len()).rev() {
            under_way.swap(i, rng.below(i as u64 + 1) as usize);
        }
        if crash == Crash::Process {
            for mut write in under_way {
                // What nobody was told of may be in the cache only.
                if self.volatile_cache && rng.chance(500_000) {
                    write.durability = Durability::Volatile;
                }
                if rng.chance(faults.rate(Fault::LateWrite)) {
                    struck.add(Fault::LateWrite);
                    self.under_way.push(write);
                } else if rng.chance(500_000) {
                    self.land(write);
                }
            }
            return struck;
        }
        self.bad.retain(|_| rng.chance(500_000));
        let keep = Keep::draw(rng);
        for (_, write) in std::mem::take(&mut self.cached) {
            apply_some(&mut self.durable, &write, self.sector, keep, rng);
        }
        for mut write in under_way {
            write.durability = Durability::Volatile;
            apply_some(&mut self.durable, &write, self.sector, keep, rng);
            for sector in write.sectors(self.sector) {
                if rng.chance(faults.rate(Fault::TornSector)) {
                    struck.add(Fault::TornSector);
                    self.bad.insert(sector);
                }
            }
        }
        self.current = self.durable.clone();
        struck
    }

    /// How many writes are under way, and how many are cached.
    pub fn volatile_writes(&self) -> (usize, usize) {
        (self.under_way.len(), self.cached.len())
    }

    fn take(&mut self, id: WriteId) -> Write {
        let at = self.under_way.iter().position(|w| w.id == id);
        self.under_way.swap_remove(at.expect("a write under way ends once"))
    }

    pub(super) fn land(&mut self, write: Write) {
        self.current.write(write.offset, &write.data);
        let sectors = write.sectors(self.sector);
        self.bad.retain(|sector| !sectors.contains(sector));
        self.failing
            .retain(|sector, failing| *failing == Failing::Dead || !sectors.contains(sector));
        self.completions += 1;
        let overlaps = |other: &Write| {
            other.offset < write.offset + write.data.len() as u64
                && write.offset < other.offset + other.data.len() as u64
        };
        let durable = write.durability == Durability::Durable;
        if durable && !self.cached.iter().any(|(_, other)| overlaps(other)) {
            self.durable.write(write.offset, &write.data);
        } else {
            // A durable write above cached ones keeps its place in the order of versions.
            self.cached.push((self.completions, write));
        }
    }

    fn check(&self, offset: u64, len: usize) {
        let sector = self.sector as u64;
        assert!(
            offset.is_multiple_of(sector) && len.is_multiple_of(self.sector) && len > 0,
            "{len} bytes at {offset} are not whole sectors of {sector}"
        );
    }
}

/// How much of what is volatile a crash tends to keep, in parts per million.
#[derive(Clone, Copy)]
struct Keep {
    /// Writes kept whole, and writes lost whole; the others are decided sector by sector.
    whole: u32,
    none: u32,
    sector: u32,
    /// Of those others, the ones that are cut off at some sector instead.
    cut: u32,
}

impl Keep {
    fn draw(rng: &mut Rng) -> Self {
        let whole = rng.pick(&[0, 0, 100_000, 500_000, 1_000_000]);
        let none = rng.pick(&[0, 0, 100_000, 500_000, 1_000_000]);
        let sector = rng.pick(&[50_000, 500_000, 950_000]);
        Self { whole, none, sector, cut: rng.pick(&[0, 0, 500_000, 1_000_000]) }
    }
}

/// Lets any of a write's sectors take effect; those of a durable write all do. Called in the order
/// of versions, so that each sector ends with one of its versions from the last durable one on.
fn apply_some(image: &mut Image, write: &Write, sector: usize, keep: Keep, rng: &mut Rng) {
    let durable = write.durability == Durability::Durable;
    let (none, whole) = (rng.chance(keep.none), rng.chance(keep.whole));
    // Where a crash is inclined to both, each write draws which it is.
    let whole = whole && !(none && rng.chance(500_000));
    if durable || whole {
        image.write(write.offset, &write.data);
    } else if !none && rng.chance(keep.cut) {
        let sectors = (write.data.len() / sector) as u64;
        let arrived = rng.below(sectors + 1) as usize * sector;
        image.write(write.offset, &write.data[..arrived]);
    } else if !none {
        for at in (0..write.data.len()).step_by(sector) {
            if rng.chance(keep.sector) {
                image.write(write.offset + at as u64, &write.data[at..at + sector]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: u32 = 512;

    fn medium() -> Medium {
        Medium::new(1 << 20, SECTOR, true, Some(1))
    }

    fn write(medium: &mut Medium, offset: u64, byte: u8, durability: Durability) {
        let id = medium.begin(offset, vec![byte; 1024].into(), durability);
        medium.complete(id);
    }

    /// The first byte of a sector.
    fn byte(medium: &Medium, offset: u64) -> Option<u8> {
        let mut out = [0; SECTOR as usize];
        medium.read(offset, &mut out, &mut Rng::new(0)).ok()?;
        assert!(out.iter().all(|&b| b == out[0]), "a sector is never torn");
        Some(out[0])
    }

    /// The values that two sectors have after a crash, over many crashes of the same history.
    fn outcomes(history: impl Fn(&mut Medium)) -> BTreeSet<(Option<u8>, Option<u8>)> {
        (0..4000)
            .map(|seed| {
                let mut medium = medium();
                write(&mut medium, 0, 1, Durability::Durable);
                history(&mut medium);
                medium.crash(Crash::Power, &Faults::none(), &mut Rng::new(seed));
                (byte(&medium, 0), byte(&medium, 512))
            })
            .collect()
    }

    fn all_of(values: &[u8]) -> BTreeSet<(Option<u8>, Option<u8>)> {
        values.iter().flat_map(|&a| values.iter().map(move |&b| (Some(a), Some(b)))).collect()
    }

    /// Goal: each sector keeps any version from the last durable one on, independently.
    #[test]
    fn a_crash_keeps_any_version() {
        let any = outcomes(|m| {
            write(m, 0, 2, Durability::Volatile);
            write(m, 0, 3, Durability::Volatile);
            m.begin(0, vec![4; 1024].into(), Durability::Volatile);
        });
        assert_eq!(any, all_of(&[1, 2, 3, 4]));
    }

    /// Goal: a flush covers what completed before it was submitted, and nothing later.
    #[test]
    fn a_flush_covers_what_had_completed() {
        let any = outcomes(|m| {
            write(m, 0, 2, Durability::Volatile);
            let mark = m.mark();
            write(m, 0, 3, Durability::Volatile);
            m.flushed(mark);
        });
        assert_eq!(any, all_of(&[2, 3]));
    }

    /// Goal: a durable write covers itself, whatever older versions are flushed after it.
    #[test]
    fn a_durable_write_covers_itself() {
        let any = outcomes(|m| {
            write(m, 0, 2, Durability::Volatile);
            let mark = m.mark();
            write(m, 0, 3, Durability::Durable);
            write(m, 0, 4, Durability::Volatile);
            m.flushed(mark);
        });
        assert_eq!(any, all_of(&[3, 4]));
    }

    /// Goal: a killed process loses nothing that had completed.
    #[test]
    fn a_kill_loses_nothing_completed() {
        for seed in 0..20 {
            let mut medium = medium();
            write(&mut medium, 0, 1, Durability::Volatile);
            medium.begin(512, vec![2; 512].into(), Durability::Volatile);
            let torn = Faults::none().with(Fault::TornSector, 1_000_000);
            medium.crash(Crash::Process, &torn, &mut Rng::new(seed));
            assert_eq!(byte(&medium, 0), Some(1));
            assert!(matches!(byte(&medium, 512), Some(1 | 2)));
        }
    }

    /// Goal: a torn sector reads as an error until it is written again.
    #[test]
    fn a_torn_sector_is_an_error_until_rewritten() {
        let mut medium = medium();
        medium.begin(0, vec![2; 512].into(), Durability::Durable);
        let torn = Faults::none().with(Fault::TornSector, 1_000_000);
        medium.crash(Crash::Power, &torn, &mut Rng::new(1));
        assert_eq!(byte(&medium, 0), None);
        write(&mut medium, 0, 3, Durability::Volatile);
        assert_eq!(byte(&medium, 0), Some(3));
    }

    /// Goal: a failed flush may lose what could be read before, and keeps what came after it.
    #[test]
    fn a_failed_flush_drops_data() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let mut medium = medium();
            write(&mut medium, 0, 1, Durability::Durable);
            write(&mut medium, 0, 2, Durability::Volatile);
            let mark = medium.mark();
            write(&mut medium, 512, 3, Durability::Volatile);
            medium.flush_failed(mark, &mut Rng::new(seed));
            assert_eq!(byte(&medium, 512), Some(3));
            seen.insert(byte(&medium, 0));
        }
        assert_eq!(seen, BTreeSet::from([Some(1), Some(2)]));
    }

    /// Goal: a write of a killed process arrives in a later period, and not at all when the power
    /// is lost first.
    #[test]
    fn a_late_write_arrives_later() {
        let late = Faults::none().with(Fault::LateWrite, 1_000_000);
        let mut medium = medium();
        write(&mut medium, 0, 1, Durability::Durable);
        medium.begin(0, vec![2; 1024].into(), Durability::Volatile);
        medium.crash(Crash::Process, &late, &mut Rng::new(1));
        let ids: Vec<WriteId> = medium.late().collect();
        let mut lost = medium.clone();
        for id in ids {
            medium.complete(id);
        }
        assert_eq!(byte(&medium, 0), Some(2));
        lost.crash(Crash::Power, &late, &mut Rng::new(1));
        assert_eq!(lost.late().count(), 0);
    }

    /// Goal: a bad sector fails until it is rewritten, a dead one until it is healed.
    #[test]
    fn failing_sectors_stay_so() {
        let mut medium = medium();
        write(&mut medium, 0, 1, Durability::Durable);
        medium.break_sector(0, 512, Failing::UntilRewritten, &mut Rng::new(1));
        medium.break_sector(512, 512, Failing::Dead, &mut Rng::new(1));
        assert_eq!((byte(&medium, 0), byte(&medium, 512)), (None, None));
        let id = medium.begin(0, vec![2; 1024].into(), Durability::Volatile);
        assert!(medium.hits_dead(id));
        medium.fail(id, &mut Rng::new(1));
        assert_eq!(byte(&medium, 512), None);
        assert!(byte(&medium, 0).is_some());
        medium.heal();
        assert!(byte(&medium, 512).is_some());
    }
}
