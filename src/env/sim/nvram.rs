//! Simulated persistent memory: cache lines of 8-byte words, each of which may arrive on its own.
//!
//! What a `persist` under way has not yet made durable may be written back at any time, unasked
//! and in any order: at a crash any of its words are there. A line may be *poisoned*: then it
//! cannot be read until it is rewritten.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::faults::{Fault, Faults, Struck};
use super::image::Image;
use super::medium::Crash;
use super::parts::Parts;
use super::rng::Rng;

/// The unit that is written whole or not at all, in bytes.
pub(super) const WORD: usize = 8;
/// The unit of write-back, in bytes.
pub(super) const LINE: usize = 64;

/// Names a persist under way.
pub type PersistId = u64;

#[derive(Clone)]
pub(super) struct Persist {
    id: PersistId,
    pub pieces: Vec<(u64, Arc<[u8]>)>,
}

/// A persistent memory's bytes. Clones share what they have not changed since.
#[derive(Clone)]
pub struct NvramMedium {
    pub(super) image: Image,
    /// Poisoned lines.
    pub(super) poison: BTreeSet<u64>,
    sector: u32,
    pub(super) under_way: Vec<Persist>,
    pub(super) next_id: PersistId,
    parts: Parts,
}

impl NvramMedium {
    /// Memory of `len` bytes that was never written.
    pub fn new(len: u64, sector: u32, garbage: u64) -> Self {
        assert!(sector as usize >= WORD, "a sector of {sector} bytes is smaller than a word");
        let image = Image::new(len, Some(garbage));
        Self {
            image,
            poison: BTreeSet::new(),
            sector,
            under_way: Vec::new(),
            next_id: 0,
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

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.image.size()
    }

    /// The alignment of offsets and lengths, in bytes.
    pub fn sector(&self) -> u32 {
        self.sector
    }

    /// Pieces are on their way.
    pub fn begin(&mut self, pieces: Vec<(u64, Arc<[u8]>)>) -> PersistId {
        for (offset, data) in &pieces {
            self.check(*offset, data.len());
        }
        let id = self.next_id;
        self.next_id += 1;
        self.under_way.push(Persist { id, pieces });
        id
    }

    /// All pieces are durable.
    pub fn complete(&mut self, id: PersistId) {
        for (offset, data) in self.take(id).pieces {
            self.image.write(offset, &data);
            let lines = lines(offset, data.len());
            self.poison.retain(|line| !lines.contains(line));
        }
    }

    /// Reads; every word under way may be old or new. `Err` names a poisoned line.
    pub fn read(&self, offset: u64, out: &mut [u8], rng: &mut Rng) -> Result<(), u64> {
        self.check(offset, out.len());
        if let Some(&line) = self.poison.range(lines(offset, out.len())).next() {
            return Err(line);
        }
        let mut seen = self.image.clone();
        for persist in &self.under_way {
            arrive(&mut seen, persist, rng);
        }
        seen.read(offset, out);
        Ok(())
    }

    /// The machine stops: any words of what was under way arrive. Returns how often each fault
    /// struck whose rates are in `faults`.
    pub fn crash(&mut self, crash: Crash, faults: &Faults, rng: &mut Rng) -> Struck {
        let mut struck = Struck::default();
        for persist in std::mem::take(&mut self.under_way) {
            arrive(&mut self.image, &persist, rng);
            for line in persist.pieces.iter().flat_map(|(at, data)| lines(*at, data.len())) {
                if crash == Crash::Power && rng.chance(faults.rate(Fault::TornLine)) {
                    struck.add(Fault::TornLine);
                    self.poison.insert(line);
                }
            }
        }
        struck
    }

    /// Flips a bit, at rest.
    pub fn flip(&mut self, offset: u64, bit: u32) {
        let mut byte = [0];
        self.image.read(offset, &mut byte);
        byte[0] ^= 1 << bit;
        self.image.write(offset, &byte);
    }

    /// The line of a byte is poisoned, or is not any more.
    pub fn set_poison(&mut self, offset: u64, poisoned: bool) {
        let line = offset / LINE as u64;
        if poisoned {
            self.poison.insert(line);
        } else {
            self.poison.remove(&line);
        }
    }

    fn take(&mut self, id: PersistId) -> Persist {
        let at = self.under_way.iter().position(|p| p.id == id);
        self.under_way.swap_remove(at.expect("a persist under way ends once"))
    }

    fn check(&self, offset: u64, len: usize) {
        let sector = u64::from(self.sector);
        assert!(
            offset.is_multiple_of(sector) && (len as u64).is_multiple_of(sector) && len > 0,
            "{len} bytes at {offset} are not whole sectors of {sector}"
        );
    }
}

/// The lines of a range of bytes.
fn lines(offset: u64, len: usize) -> std::ops::Range<u64> {
    offset / LINE as u64..(offset + len as u64).div_ceil(LINE as u64)
}

/// Lets any words arrive: line by line all, none, or each word on its own; and at times all up to
/// some line.
fn arrive(image: &mut Image, persist: &Persist, rng: &mut Rng) {
    let inclined = rng.pick(&[100_000, 500_000, 900_000, 1_000_000]);
    let cut = rng.pick(&[0, 500_000]);
    for (offset, data) in &persist.pieces {
        if rng.chance(cut) {
            let arrived = rng.below((data.len() / LINE) as u64 + 1) as usize * LINE;
            image.write(*offset, &data[..arrived]);
            continue;
        }
        for (line, bytes) in data.chunks(LINE).enumerate() {
            let words = rng.chance(300_000);
            if !words && rng.chance(inclined) {
                image.write(offset + (line * LINE) as u64, bytes);
                continue;
            }
            for (word, bytes) in bytes.chunks(WORD).enumerate() {
                if words && rng.chance(inclined) {
                    image.write(offset + (line * LINE + word * WORD) as u64, bytes);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn words(nvram: &NvramMedium) -> (u64, u64) {
        let mut out = [0; 64];
        nvram.read(0, &mut out, &mut Rng::new(0)).unwrap();
        let word = |i: usize| u64::from_le_bytes(out[i * 8..i * 8 + 8].try_into().unwrap());
        (word(0), word(7))
    }

    /// Goal: what was persisted stays; of what was under way any words arrive.
    #[test]
    fn words_arrive_on_their_own() {
        let piece = |byte: u8| vec![(0, vec![byte; 64].into())];
        let outcomes: BTreeSet<_> = (0..300)
            .map(|seed| {
                let mut nvram = NvramMedium::new(4096, 64, 9);
                let id = nvram.begin(piece(0));
                nvram.complete(id);
                nvram.begin(piece(255));
                nvram.crash(Crash::Power, &Faults::none(), &mut Rng::new(seed));
                words(&nvram)
            })
            .collect();
        assert_eq!(
            outcomes,
            BTreeSet::from([(0, 0), (0, u64::MAX), (u64::MAX, 0), (u64::MAX, u64::MAX)])
        );
    }

    /// Goal: a line that was being persisted may be poisoned, and is well once it is rewritten.
    #[test]
    fn a_torn_line_is_an_error_until_rewritten() {
        let piece = || vec![(64, vec![1; 64].into())];
        let mut nvram = NvramMedium::new(4096, 64, 9);
        nvram.begin(piece());
        let torn = Faults::none().with(Fault::TornLine, 1_000_000);
        nvram.crash(Crash::Power, &torn, &mut Rng::new(1));
        let read = |nvram: &NvramMedium, at| nvram.read(at, &mut [0; 64], &mut Rng::new(0));
        assert_eq!((read(&nvram, 0), read(&nvram, 64)), (Ok(()), Err(1)));
        let id = nvram.begin(piece());
        nvram.complete(id);
        assert_eq!(read(&nvram, 64), Ok(()));
    }
}
