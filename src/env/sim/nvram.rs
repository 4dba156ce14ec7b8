//! Simulated persistent memory: cache lines of 8-byte words, each of which may arrive on its own.
//!
//! What a `persist` under way has not yet made durable may be written back at any time, unasked
//! and in any order: at a crash any of its words are there.

use super::image::Image;
use super::rng::Rng;

/// The unit that is written whole or not at all, in bytes.
pub(super) const WORD: usize = 8;
/// The unit of write-back, in bytes.
const LINE: usize = 64;

/// Names a persist under way.
pub type PersistId = u64;

#[derive(Clone)]
pub(super) struct Persist {
    id: PersistId,
    pub pieces: Vec<(u64, Box<[u8]>)>,
}

/// A persistent memory's bytes.
#[derive(Clone)]
pub struct NvramMedium {
    pub(super) image: Image,
    sector: u32,
    pub(super) under_way: Vec<Persist>,
    pub(super) next_id: PersistId,
}

impl NvramMedium {
    /// Memory of `len` bytes that was never written.
    pub fn new(len: u64, sector: u32, garbage: u64) -> Self {
        assert!(sector as usize >= WORD, "a sector of {sector} bytes is smaller than a word");
        let image = Image::new(len, Some(garbage));
        Self { image, sector, under_way: Vec::new(), next_id: 0 }
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
    pub fn begin(&mut self, pieces: Vec<(u64, Box<[u8]>)>) -> PersistId {
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
        }
    }

    /// Reads; every word under way may be old or new.
    pub fn read(&self, offset: u64, out: &mut [u8], rng: &mut Rng) {
        self.check(offset, out.len());
        let mut seen = self.image.clone();
        for persist in &self.under_way {
            arrive(&mut seen, persist, rng);
        }
        seen.read(offset, out);
    }

    /// The machine stops: any words of what was under way arrive.
    pub fn crash(&mut self, rng: &mut Rng) {
        for persist in std::mem::take(&mut self.under_way) {
            arrive(&mut self.image, &persist, rng);
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

/// Lets any words arrive: line by line all, none, or each word on its own.
fn arrive(image: &mut Image, persist: &Persist, rng: &mut Rng) {
    let inclined = rng.pick(&[100_000, 500_000, 900_000, 1_000_000]);
    for (offset, data) in &persist.pieces {
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
        nvram.read(0, &mut out, &mut Rng::new(0));
        let word = |i: usize| u64::from_le_bytes(out[i * 8..i * 8 + 8].try_into().unwrap());
        (word(0), word(7))
    }

    /// Goal: what was persisted stays; of what was under way any words arrive.
    #[test]
    fn words_arrive_on_their_own() {
        let piece = |byte: u8| vec![(0, vec![byte; 64].into_boxed_slice())];
        let outcomes: BTreeSet<_> = (0..300)
            .map(|seed| {
                let mut nvram = NvramMedium::new(4096, 64, 9);
                let id = nvram.begin(piece(0));
                nvram.complete(id);
                nvram.begin(piece(255));
                nvram.crash(&mut Rng::new(seed));
                words(&nvram)
            })
            .collect();
        assert_eq!(
            outcomes,
            BTreeSet::from([(0, 0), (0, u64::MAX), (u64::MAX, 0), (u64::MAX, u64::MAX)])
        );
    }
}
