//! The bytes of a simulated medium: sparse, cheap to clone, and never silently zero.
//!
//! What was never written reads as garbage that depends on the seed and the place, so that whoever
//! serves a fresh extent's bytes is found out. (A medium of seed `None` reads as zeros there:
//! files.)

use std::ops::Range;
use std::sync::Arc;

use super::rng::mix;

/// The unit of storage and of sharing between clones, in bytes.
const CHUNK: usize = 16 << 10;

/// The contents of a medium. Clones share what they have not changed since.
#[derive(Clone)]
pub struct Image {
    chunks: Vec<Option<Arc<[u8]>>>,
    len: u64,
    garbage: Option<u64>,
}

impl Image {
    /// A medium of `len` bytes that was never written.
    pub fn new(len: u64, garbage: Option<u64>) -> Self {
        Self { chunks: vec![None; len.div_ceil(CHUNK as u64) as usize], len, garbage }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Copies the bytes from `offset` to `out`.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        self.check(offset, out.len());
        for (chunk, inner, outer) in pieces(offset, out.len()) {
            let out = &mut out[outer];
            match &self.chunks[chunk] {
                Some(bytes) => out.copy_from_slice(&bytes[inner]),
                None => self.fill(chunk, inner.start, out),
            }
        }
    }

    /// Sets the bytes from `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.check(offset, data.len());
        for (chunk, inner, outer) in pieces(offset, data.len()) {
            let whole = inner.len() == CHUNK;
            if whole && self.chunks[chunk].as_mut().is_none_or(|c| Arc::get_mut(c).is_none()) {
                self.chunks[chunk] = Some(Arc::from(&data[outer]));
                continue;
            }
            if self.chunks[chunk].is_none() {
                let mut fresh = vec![0; CHUNK];
                self.fill(chunk, 0, &mut fresh);
                self.chunks[chunk] = Some(fresh.into());
            }
            let bytes = self.chunks[chunk].as_mut().expect("just made");
            Arc::make_mut(bytes)[inner].copy_from_slice(&data[outer]);
        }
    }

    /// Sets the bytes of a range to what another image of the same size has there.
    pub fn copy_from(&mut self, other: &Image, offset: u64, len: usize) {
        for (chunk, inner, _) in pieces(offset, len) {
            if inner.len() == CHUNK {
                self.chunks[chunk].clone_from(&other.chunks[chunk]);
                continue;
            }
            let mut bytes = vec![0; inner.len()];
            let start = (chunk * CHUNK + inner.start) as u64;
            other.read(start, &mut bytes);
            self.write(start, &bytes);
        }
    }

    /// A hash of where and how it differs from `origin`: zero where nowhere, and the exclusive or
    /// of the hashes of disjoint differences ([`word_hash`]). `first` is added to every place.
    pub fn difference(&self, origin: &Image, first: u64) -> u64 {
        let mut hash = 0;
        let (mut mine, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
        for (chunk, pair) in self.chunks.iter().zip(&origin.chunks).enumerate() {
            let same = match pair {
                (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs),
                (None, None) => true,
                _ => false,
            };
            if same {
                continue;
            }
            let start = (chunk * CHUNK) as u64;
            let len = CHUNK.min((self.len - start) as usize);
            self.read(start, &mut mine[..len]);
            origin.read(start, &mut theirs[..len]);
            hash ^= word_hash(first + start, &mine[..len], &theirs[..len]);
        }
        hash
    }

    fn check(&self, offset: u64, len: usize) {
        assert!(
            offset.checked_add(len as u64).is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} of a medium of {}",
            self.len
        );
    }

    /// Fills `out` with what was there before anything was written.
    fn fill(&self, chunk: usize, inner: usize, out: &mut [u8]) {
        let Some(seed) = self.garbage else {
            out.fill(0);
            return;
        };
        let start = (chunk * CHUNK + inner) as u64;
        garbage(seed, start, out);
    }
}

/// A hash of the words, and their places from `start` on, that differ from those of the `origin`.
pub fn word_hash(start: u64, bytes: &[u8], origin: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8).zip(origin.chunks_exact(8)).zip(start / 8..);
    words.filter(|((word, old), _)| word != old).fold(0, |hash, ((word, _), place)| {
        let word = u64::from_le_bytes(word.try_into().expect("chunks of the size of a word"));
        hash ^ mix(mix(place) ^ word)
    })
}

/// Fills `out` with bytes that depend on the seed and on their place only.
pub fn garbage(seed: u64, start: u64, out: &mut [u8]) {
    let mut at = start;
    let mut rest = out;
    while !rest.is_empty() {
        let word = mix(seed ^ (at / 8)).to_le_bytes();
        let skip = (at % 8) as usize;
        let take = rest.len().min(8 - skip);
        let (head, tail) = rest.split_at_mut(take);
        head.copy_from_slice(&word[skip..skip + take]);
        rest = tail;
        at += take as u64;
    }
}

/// Cuts a range at chunk boundaries: chunk, range within the chunk, range within the whole.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let start = offset as usize;
    let end = start + len;
    let mut at = start;
    std::iter::from_fn(move || {
        if at == end {
            return None;
        }
        let chunk = at / CHUNK;
        let stop = end.min((chunk + 1) * CHUNK);
        let piece = (chunk, at - chunk * CHUNK..stop - chunk * CHUNK, at - start..stop - start);
        at = stop;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: bytes come back, across chunks; what was not written is garbage and stays the same;
    /// clones are independent.
    #[test]
    fn writes_come_back_and_clones_part() {
        let mut image = Image::new(5 * CHUNK as u64 + 512, Some(3));
        let mut before = vec![0; 3 * CHUNK];
        image.read(512, &mut before);
        assert!(before.iter().any(|&b| b != before[0]));
        let data: Vec<u8> = (0..2 * CHUNK + 100).map(|i| i as u8).collect();
        let old = image.clone();
        image.write(1000, &data);
        let mut after = vec![0; 3 * CHUNK];
        image.read(512, &mut after);
        assert_eq!(after[488..488 + data.len()], data);
        assert_eq!(after[..488], before[..488]);
        assert_eq!(after[488 + data.len()..], before[488 + data.len()..]);
        let changed = image.clone();
        image.copy_from(&old, 1000, data.len());
        assert_eq!((image.difference(&old, 0), changed.difference(&old, 0) == 0), (0, false));
        image.read(512, &mut after);
        assert_eq!(after, before);
    }
}
