//! All that a crash may leave of a machine's media, one choice after another: where
//! [`super::Machine::halt`] draws, this counts.
//!
//! A loss of power leaves one version of each *cell*: a sector of a disk, a word of persistent
//! memory; or it can be read no more, where it was under write. A killed process leaves what had
//! completed, and each write under way as a whole or not at all (parts of it: the loss of power has
//! them), or a write to a disk is still to come, and arrives after the successor has started.
//! Outcomes are told apart by a hash that costs little, so that those already seen are not looked
//! at again.

use super::image::{Image, word_hash};
use super::medium::Medium;
use super::nvram::{LINE, NvramMedium, WORD};
use super::rng::{Rng, mix};
use crate::env::Durability;

/// What a machine's media hold, also what of it is volatile.
#[derive(Clone)]
pub struct Media {
    pub(super) disks: Vec<Medium>,
    pub(super) nvram: Option<NvramMedium>,
}

/// What becomes of everything volatile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Power is lost: for each cell the version that it keeps.
    Power(Vec<u16>),
    /// The process is killed: a bit for each write under way, those of the disks first.
    Kill {
        /// Set where it arrives.
        arrive: u64,
        /// Set where it arrives after the start of a successor; of disks only.
        late: u64,
    },
}

/// The version of a sector under write that reads as an error, and of a word whose line does.
const UNREADABLE: u16 = u16::MAX;

/// Of so many writes under way it is tried which arrive at a kill; those beyond do not.
const KILLS_MAX: u32 = 6;

/// Something that a crash leaves in one of several versions.
struct Cell {
    /// The disk's number; one more than the last for persistent memory.
    medium: usize,
    offset: u64,
    /// Oldest first; at least two, all of them different.
    versions: Vec<Box<[u8]>>,
    /// For each version its share of the hash.
    hashes: Vec<u64>,
    under_way: bool,
}

/// All outcomes of a crash at one instant.
pub struct Outcomes {
    media: Media,
    /// What is left for certain, with the first version in every cell.
    base: Media,
    base_hash: u64,
    kept_hash: u64,
    cells: Vec<Cell>,
    /// Writes under way, and those of them that are to disks.
    writes: u32,
    disk_writes: u32,
}

/// A number that is another one after anything was written, has arrived or became durable.
pub(super) fn version(disks: &[Medium], nvram: Option<&NvramMedium>) -> u64 {
    let of_disk = |disk: &Medium| {
        let (begun, arrived) = (disk.next_id, disk.completions);
        mix(mix(mix(begun) ^ arrived) ^ disk.cached.len() as u64)
    };
    let memory = nvram.map_or(0, |nvram| mix(nvram.next_id) ^ nvram.under_way.len() as u64);
    disks.iter().fold(memory, |hash, disk| mix(hash ^ of_disk(disk)))
}

impl Media {
    /// Everything that a crash now may leave. Hashes tell where it differs from `origin`.
    pub fn outcomes(self, origin: &Media) -> Outcomes {
        let mut base = self.clone();
        let (mut cells, mut base_hash, mut kept_hash) = (Vec::new(), 0, 0);
        let mut writes = 0;
        for (number, disk) in base.disks.iter_mut().enumerate() {
            let origin = &origin.disks[number].durable;
            kept_hash ^= kept(disk, origin, place(number, 0));
            writes += disk.under_way.len();
            cells.extend(settle_disk(disk, number, origin));
            base_hash ^= disk.durable.difference(origin, place(number, 0)) ^ bad(disk, number);
        }
        let disk_writes = writes as u32;
        if let (Some(nvram), Some(origin)) = (&mut base.nvram, &origin.nvram) {
            let number = base.disks.len();
            let poison = poisoned(nvram, number);
            kept_hash ^= nvram.image.difference(&origin.image, place(number, 0)) ^ poison;
            writes += nvram.under_way.len();
            cells.extend(settle_nvram(nvram, number, &origin.image));
            base_hash ^= nvram.image.difference(&origin.image, place(number, 0)) ^ poison;
        }
        let writes = writes as u32;
        assert!(writes < 64, "{writes} writes under way at once");
        Outcomes { media: self, base, base_hash, kept_hash, cells, writes, disk_writes }
    }
}

/// A place among those of all media.
fn place(medium: usize, offset: u64) -> u64 {
    (medium as u64) << 40 | offset
}

/// A hash of all that a disk keeps when the process is killed.
fn kept(disk: &Medium, origin: &Image, first: u64) -> u64 {
    let durable = mix(disk.durable.difference(origin, first));
    let cached = disk.cached.iter().fold(durable, |hash, (_, write)| {
        let zeros = vec![0; write.data.len()];
        let written = word_hash(first + write.offset, &write.data, &zeros);
        mix(hash ^ written ^ write.durability as u64)
    });
    let under_way = disk.under_way.iter().fold(cached, |hash, write| {
        let zeros = vec![0; write.data.len()];
        mix(hash ^ word_hash(first + write.offset, &write.data, &zeros))
    });
    mix(under_way ^ disk.current.difference(origin, first))
}

fn bad(disk: &Medium, medium: usize) -> u64 {
    let hash = |sector: &u64| unreadable(medium, sector * disk.sector as u64);
    disk.bad.iter().map(hash).fold(0, |all, hash| all ^ hash)
}

fn poisoned(nvram: &NvramMedium, medium: usize) -> u64 {
    let hash = |line: &u64| unreadable(medium, line * LINE as u64);
    nvram.poison.iter().map(hash).fold(0, |all, hash| all ^ hash)
}

fn unreadable(medium: usize, offset: u64) -> u64 {
    mix(mix(place(medium, offset)) ^ u64::from(UNREADABLE))
}

/// Lets everything volatile take its oldest version, and returns the others.
fn settle_disk(disk: &mut Medium, medium: usize, origin: &Image) -> Vec<Cell> {
    let size = disk.sector;
    let mut cells: Vec<Cell> = Vec::new();
    let cached = std::mem::take(&mut disk.cached).into_iter().map(|(_, write)| (write, false));
    let under_way = std::mem::take(&mut disk.under_way).into_iter().map(|write| (write, true));
    for (write, under_way) in cached.chain(under_way) {
        for (bytes, place) in write.data.chunks(size).zip(0..) {
            let offset = write.offset + place * size as u64;
            let at = cells.iter().position(|cell| cell.offset == offset);
            let at = at.unwrap_or_else(|| {
                let mut old = vec![0; size].into_boxed_slice();
                disk.durable.read(offset, &mut old);
                cells.push(Cell::new(medium, offset, old));
                cells.len() - 1
            });
            let cell = &mut cells[at];
            cell.under_way |= under_way;
            if !under_way && write.durability == Durability::Durable {
                cell.versions.clear();
            }
            cell.add(bytes);
        }
    }
    for cell in &cells {
        disk.durable.write(cell.offset, &cell.versions[0]);
    }
    disk.current = disk.durable.clone();
    (disk.completions, disk.next_id) = (0, 0);
    let mut cells = finish(cells, origin);
    // A version that arrived makes a sector readable that was not.
    for cell in &mut cells {
        if disk.bad.contains(&(cell.offset / size as u64)) {
            let arrived = unreadable(medium, cell.offset);
            cell.hashes.iter_mut().skip(1).for_each(|hash| *hash ^= arrived);
        }
    }
    cells
}

fn settle_nvram(nvram: &mut NvramMedium, medium: usize, origin: &Image) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for (start, data) in std::mem::take(&mut nvram.under_way).into_iter().flat_map(|p| p.pieces) {
        for (bytes, place) in data.chunks(WORD).zip(0..) {
            let offset = start + place * WORD as u64;
            let mut old = [0; WORD];
            nvram.image.read(offset, &mut old);
            if old == bytes {
                continue;
            }
            let at = cells.iter().position(|cell| cell.offset == offset);
            let at = at.unwrap_or_else(|| {
                // The first of a line stands for the line, where that is poisoned.
                let line = offset / LINE as u64;
                let first = cells.iter().all(|cell| cell.offset / LINE as u64 != line);
                let cell = Cell::new(medium, offset, old.into());
                cells.push(Cell { under_way: first, ..cell });
                cells.len() - 1
            });
            cells[at].add(bytes);
        }
    }
    nvram.next_id = 0;
    finish(cells, origin)
}

/// Cells of more than one version, or that may be unreadable, with the hashes of their versions.
fn finish(cells: Vec<Cell>, origin: &Image) -> Vec<Cell> {
    let with_hashes = |mut cell: Cell| {
        let mut old = vec![0; cell.versions[0].len()];
        origin.read(cell.offset, &mut old);
        let first = place(cell.medium, cell.offset);
        let hashes = cell.versions.iter().map(|version| word_hash(first, version, &old));
        cell.hashes = hashes.collect();
        cell
    };
    let open = |cell: &Cell| cell.versions.len() > 1 || cell.under_way;
    cells.into_iter().filter(open).map(with_hashes).collect()
}

impl Cell {
    fn new(medium: usize, offset: u64, old: Box<[u8]>) -> Self {
        Self { medium, offset, versions: vec![old], hashes: Vec::new(), under_way: false }
    }

    fn add(&mut self, bytes: &[u8]) {
        if !self.versions.iter().any(|version| **version == *bytes) {
            self.versions.push(bytes.into());
        }
    }
}

impl Outcomes {
    /// How many outcomes there are of a loss of power with every sector readable.
    pub fn count(&self) -> u64 {
        let versions = self.cells.iter().map(|cell| cell.versions.len() as u64);
        versions.fold(1, u64::saturating_mul)
    }

    /// All outcomes of a loss of power where they are no more than `most`; else `sample` drawn
    /// ones, and those in which no cell, all, one, or all but one have their newest version. Then
    /// each sector or line under write that cannot be read, beside others all old and all new; then
    /// every outcome of a killed process with nothing late, and those with one write late beside
    /// others that do not arrive and that do, and with all.
    pub fn choose(&self, most: u64, sample: u64) -> Vec<Survival> {
        let all = self.count();
        let powers =
            if all <= most { (0..all).map(|n| self.nth(n)).collect() } else { self.some(sample) };
        let ends = [self.oldest(), self.newest()];
        let torn = self.cells.iter().enumerate().filter(|(_, cell)| cell.under_way);
        let torn = torn.flat_map(|(at, _)| {
            ends.iter().map(move |end| {
                let mut kept = end.clone();
                kept[at] = UNREADABLE;
                kept
            })
        });
        let powers = powers.into_iter().chain(torn.collect::<Vec<_>>()).map(Survival::Power);
        let volatile = self.writes > 0 || self.media.disks.iter().any(|d| !d.cached.is_empty());
        let kills: Vec<_> = if volatile { self.kills() } else { Vec::new() };
        powers.chain(kills).collect()
    }

    fn kills(&self) -> Vec<Survival> {
        let every = 1_u64 << self.writes.min(KILLS_MAX);
        let (disks, all) = (self.disk_writes.min(KILLS_MAX), (1 << self.disk_writes) - 1);
        let late = (0..disks).map(|write| 1 << write);
        let late = late.flat_map(|late| [(0, late), ((every - 1) & !late, late)]);
        let late = late.chain((disks > 1).then_some((0, all)));
        let kills = (0..every).map(|arrive| (arrive, 0)).chain(late);
        let mut kills: Vec<_> = kills.collect();
        kills.sort_by_key(|&(arrive, late)| (late, arrive));
        kills.dedup();
        kills.into_iter().map(|(arrive, late)| Survival::Kill { arrive, late }).collect()
    }

    fn oldest(&self) -> Vec<u16> {
        vec![0; self.cells.len()]
    }

    fn newest(&self) -> Vec<u16> {
        self.cells.iter().map(|cell| cell.versions.len() as u16 - 1).collect()
    }

    fn nth(&self, number: u64) -> Vec<u16> {
        let mut rest = number;
        let digit = |cell: &Cell| {
            let versions = cell.versions.len() as u64;
            let digit = rest % versions;
            rest /= versions;
            digit as u16
        };
        self.cells.iter().map(digit).collect()
    }

    fn some(&self, sample: u64) -> Vec<Vec<u16>> {
        let (oldest, newest) = (self.oldest(), self.newest());
        let mut some = vec![oldest.clone(), newest.clone()];
        for at in 0..self.cells.len() {
            let (mut one, mut all_but_one) = (oldest.clone(), newest.clone());
            (one[at], all_but_one[at]) = (newest[at], 0);
            some.extend([one, all_but_one]);
        }
        let mut rng = Rng::new(self.base_hash);
        some.extend((0..sample).map(|_| {
            let kept = self.cells.iter().map(|cell| rng.below(cell.versions.len() as u64) as u16);
            kept.collect()
        }));
        some
    }

    /// A hash of what is left.
    pub fn hash(&self, survival: &Survival) -> u64 {
        match survival {
            Survival::Kill { arrive, late } => mix(self.kept_hash ^ mix(arrive ^ mix(*late))),
            Survival::Power(kept) => {
                self.cells.iter().zip(kept).fold(self.base_hash, |hash, (cell, &kept)| {
                    hash ^ match kept {
                        0 => 0,
                        UNREADABLE if cell.medium < self.media.disks.len() => {
                            unreadable(cell.medium, cell.offset)
                        }
                        UNREADABLE => {
                            unreadable(cell.medium, cell.offset / LINE as u64 * LINE as u64)
                        }
                        version => cell.hashes[0] ^ cell.hashes[usize::from(version)],
                    }
                })
            }
        }
    }

    /// What is left.
    pub fn media(&self, survival: &Survival) -> Media {
        match survival {
            Survival::Power(kept) => self.after_power(kept),
            Survival::Kill { arrive, late } => self.after_kill(*arrive, *late),
        }
    }

    fn after_power(&self, kept: &[u16]) -> Media {
        let mut media = self.base.clone();
        for (cell, &kept) in self.cells.iter().zip(kept).filter(|(_, kept)| **kept > 0) {
            let disk = media.disks.get_mut(cell.medium);
            match (disk, kept) {
                (Some(disk), UNREADABLE) => {
                    disk.bad.insert(cell.offset / disk.sector as u64);
                }
                (Some(disk), version) => {
                    let bytes = &cell.versions[usize::from(version)];
                    disk.durable.write(cell.offset, bytes);
                    disk.current.write(cell.offset, bytes);
                    disk.bad.remove(&(cell.offset / disk.sector as u64));
                }
                (None, version) => {
                    let nvram = media.nvram.as_mut().expect("the cell's medium is there");
                    if version == UNREADABLE {
                        nvram.set_poison(cell.offset, true);
                    } else {
                        nvram.image.write(cell.offset, &cell.versions[usize::from(version)]);
                    }
                }
            }
        }
        media
    }

    fn after_kill(&self, arrive: u64, late: u64) -> Media {
        let mut media = self.media.clone();
        let fate = |write: u32| (arrive >> write & 1 == 1, late >> write & 1 == 1);
        let mut fates = (0..self.writes).map(fate);
        let mut next = || fates.next().expect("a bit for each write under way");
        for disk in &mut media.disks {
            disk.next_id = 0;
            for mut write in std::mem::take(&mut disk.under_way) {
                let (arrives, late) = next();
                // What nobody was told of may be in the cache only.
                write.durability = Durability::Volatile;
                if late {
                    write.id = disk.next_id;
                    disk.next_id += 1;
                    disk.under_way.push(write);
                } else if arrives {
                    disk.land(write);
                }
            }
        }
        if let Some(nvram) = &mut media.nvram {
            for persist in std::mem::take(&mut nvram.under_way) {
                if next().0 {
                    persist.pieces.iter().for_each(|(at, data)| nvram.image.write(*at, data));
                }
            }
            nvram.next_id = 0;
        }
        media
    }
}

#[cfg(test)]
#[path = "outcomes_tests.rs"]
mod tests;
