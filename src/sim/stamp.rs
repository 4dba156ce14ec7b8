//! Stamped data: every granule says which write put it there, and where it belongs.
//!
//! A granule is the smallest piece whose origin can be told: 512 bytes or less. All of its words
//! depend on volume, place and write, so that no mixture of two passes for either.

use crate::env::sim::rng::mix;

/// Names one write of a run; never used twice. Zero stands for "zeros".
pub type Stamp = u32;
/// What never-written and trimmed granules hold.
pub const ZEROS: Stamp = 0;

const WORD: usize = 8;

/// What a granule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// What the write put there, or zeros.
    Write(Stamp),
    /// The data of another place.
    Misplaced {
        /// The volume it was written to.
        volume: u8,
        /// The granule it was written to.
        granule: u32,
        /// The write.
        stamp: Stamp,
    },
    /// Nothing that was ever written.
    Fabricated,
}

/// Fills whole granules, the first of them being number `first` of the volume.
pub fn fill(out: &mut [u8], granule: usize, volume: u8, first: u32, stamp: Stamp) {
    for (bytes, number) in out.chunks_exact_mut(granule).zip(first..) {
        let head = head(volume, number, stamp);
        for (word, i) in bytes.chunks_exact_mut(WORD).zip(0..) {
            word.copy_from_slice(&word_at(head, i).to_le_bytes());
        }
    }
}

/// Says what the granule of that number holds.
pub fn read(bytes: &[u8], volume: u8, number: u32) -> Seen {
    let mut words = bytes
        .chunks_exact(WORD)
        .map(|word| u64::from_le_bytes(word.try_into().expect("chunks of the size of a word")));
    let head = words.next().expect("a granule has a word");
    if head == 0 {
        let zeros = words.all(|word| word == 0);
        return if zeros { Seen::Write(ZEROS) } else { Seen::Fabricated };
    }
    if !words.zip(1..).all(|(word, i)| word == word_at(head, i)) {
        return Seen::Fabricated;
    }
    let (of, at, stamp) = ((head >> 56) as u8, (head >> 32) as u32 & 0xff_ffff, head as u32);
    if (of, at) == (volume, number) && stamp != ZEROS {
        Seen::Write(stamp)
    } else {
        Seen::Misplaced { volume: of, granule: at, stamp }
    }
}

fn head(volume: u8, granule: u32, stamp: Stamp) -> u64 {
    assert!(granule < 1 << 24, "granule {granule} does not fit its field");
    u64::from(volume) << 56 | u64::from(granule) << 32 | u64::from(stamp)
}

fn word_at(head: u64, index: u64) -> u64 {
    if index == 0 { head } else { mix(head).wrapping_add(index.wrapping_mul(head | 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a stamp is read back where it belongs, and anything else is told apart.
    #[test]
    fn stamps_tell_where_bytes_come_from() {
        let mut bytes = vec![0; 2048];
        assert_eq!(read(&bytes[..512], 1, 7), Seen::Write(ZEROS));
        fill(&mut bytes, 512, 1, 6, 99);
        assert_eq!(read(&bytes[512..1024], 1, 7), Seen::Write(99));
        let misplaced = Seen::Misplaced { volume: 1, granule: 7, stamp: 99 };
        assert_eq!(read(&bytes[512..1024], 1, 8), misplaced);
        bytes[1023] ^= 1;
        assert_eq!(read(&bytes[512..1024], 1, 7), Seen::Fabricated);
    }
}
