//! Two-copy pages: how everything that is updated in place is stored.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic: what kind of page it is |
//! | 4 | 4 | CRC32C of all that follows |
//! | 8 | 8 | version: counts the page's changes |
//! | 16 | 8 | first half of the pool's identity |
//! | 24 | 4 | index of the page among those of its kind |
//! | 28 | 4 | zero |
//! | 32 | | contents |
//!
//! **Why two copies.** A sector that is being overwritten when power fails may be old, new, or
//! unreadable. So one copy is written and made durable before the other is touched, and the copy
//! that is written first is never the only good one. At rest both hold the same version, so that
//! rot in either is mended from the other.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::ids::PoolId;
use crate::mutants::{Mutant, mutated};

/// Bytes of a page before its contents.
pub const PAGE_HEADER: usize = size_of::<RawPageHeader>();

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPageHeader {
    magic: [u8; 4],
    crc: U32,
    version: U64,
    pool: [u8; 8],
    index: U32,
    zero: U32,
}

const _: () = assert!(size_of::<RawPageHeader>() == 32);
const CRC_FROM: usize = 8;
/// No page is changed so often: a stored version beyond is damage, and would overflow.
pub const VERSION_MAX: u64 = u64::MAX / 2;

/// What a page is, and of which pool: two pages of different identity are never taken for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageIdentity {
    /// What kind of page.
    pub magic: [u8; 4],
    /// Of which pool.
    pub pool: PoolId,
    /// Which of its kind.
    pub index: u32,
}

impl PageIdentity {
    fn pool_half(&self) -> [u8; 8] {
        std::array::from_fn(|i| self.pool.0[i])
    }

    /// Fills in the header of a page whose contents are ready.
    pub fn seal(&self, page: &mut [u8], version: u64) {
        let mut header = RawPageHeader {
            magic: self.magic,
            crc: U32::ZERO,
            version: U64::new(version),
            pool: self.pool_half(),
            index: U32::new(self.index),
            zero: U32::ZERO,
        };
        page[..PAGE_HEADER].copy_from_slice(header.as_bytes());
        header.crc = U32::new(crc32c(&page[CRC_FROM..]));
        page[..PAGE_HEADER].copy_from_slice(header.as_bytes());
    }

    /// What one copy of the page holds.
    pub fn verify(&self, page: &[u8]) -> CopyState {
        let Ok((header, _)) = RawPageHeader::ref_from_prefix(page) else {
            return CopyState::Damaged;
        };
        // Each byte is as the one before it: two slices are compared faster than bytes are.
        if page[0] == 0 && page[1..] == page[..page.len() - 1] {
            return CopyState::Blank;
        }
        let good = header.magic == self.magic
            && header.pool == self.pool_half()
            && header.index.get() == self.index
            && header.version.get() <= VERSION_MAX
            && (header.crc.get() == crc32c(&page[CRC_FROM..])
                || mutated(Mutant::PageChecksumIgnored));
        if good { CopyState::Good(header.version.get()) } else { CopyState::Damaged }
    }
}

/// What one copy of a page was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// A page of that version.
    Good(u64),
    /// Nothing but zeros: it was never written.
    Blank,
    /// Neither: torn, rotten or unreadable.
    Damaged,
}

/// What to do with a page of two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Use the copy of that number (0 or 1). The next change goes to the other one first.
    Use {
        /// Which copy.
        copy: usize,
        /// Its version.
        version: u64,
        /// The other copy is not the same version: what it holds is not to be relied on.
        alone: bool,
    },
    /// The page was never written: its contents are zeros. The first change goes to the other copy
    /// than this one first, as above.
    Blank {
        /// The copy that says so.
        copy: usize,
    },
    /// No copy can be used.
    Lost,
}

/// Which copy of a page counts. Pure.
///
/// A page whose first writing was cut off has one damaged copy and one blank one: nothing was
/// unlinked on its account yet, so it counts as blank.
pub fn choose(copies: [CopyState; 2]) -> Choice {
    use CopyState::{Blank, Damaged, Good};
    match copies {
        [Good(a), Good(b)] if a != b && mutated(Mutant::OlderCopyChosen) => {
            Choice::Use { copy: usize::from(b < a), version: a.max(b), alone: true }
        }
        [Good(a), Good(b)] if b > a => Choice::Use { copy: 1, version: b, alone: true },
        [Good(a), Good(b)] => Choice::Use { copy: 0, version: a, alone: a != b },
        [Good(a), _] => Choice::Use { copy: 0, version: a, alone: true },
        [_, Good(b)] => Choice::Use { copy: 1, version: b, alone: true },
        [_, Blank] => Choice::Blank { copy: 1 },
        [Blank, _] => Choice::Blank { copy: 0 },
        [Damaged, Damaged] => Choice::Lost,
    }
}

/// CRC32C (Castagnoli) of some bytes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: PageIdentity =
        PageIdentity { magic: *b"TEST", pool: PoolId([3; 16]), index: 7 };

    /// Goal: a sealed page is good, and any flipped bit makes it damaged.
    #[test]
    fn every_bit_is_covered() {
        let mut page = vec![0_u8; 512];
        page[100] = 1;
        assert_eq!(IDENTITY.verify(&[0; 512]), CopyState::Blank);
        IDENTITY.seal(&mut page, 9);
        assert_eq!(IDENTITY.verify(&page), CopyState::Good(9));
        for bit in 0..512 * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(IDENTITY.verify(&page), CopyState::Damaged, "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// Goal: a page is not taken for that of another pool, kind or index, nor short bytes for any.
    #[test]
    fn identity_matters() {
        let mut page = vec![0_u8; 512];
        IDENTITY.seal(&mut page, 1);
        for other in [
            PageIdentity { magic: *b"TESS", ..IDENTITY },
            PageIdentity { pool: PoolId([4; 16]), ..IDENTITY },
            PageIdentity { index: 8, ..IDENTITY },
        ] {
            assert_eq!(other.verify(&page), CopyState::Damaged);
        }
        assert_eq!(IDENTITY.verify(&page[..10]), CopyState::Damaged);
        IDENTITY.seal(&mut page, VERSION_MAX);
        assert_eq!(IDENTITY.verify(&page), CopyState::Good(VERSION_MAX));
        IDENTITY.seal(&mut page, VERSION_MAX + 1);
        assert_eq!(IDENTITY.verify(&page), CopyState::Damaged);
    }

    /// Goal: over all pairs of copies, the newest good one is used, it is never written first while
    /// alone, and only two damaged copies are a loss.
    #[test]
    fn choice_over_all_inputs() {
        let all = [CopyState::Good(1), CopyState::Good(2), CopyState::Blank, CopyState::Damaged];
        for a in all {
            for b in all {
                let best = [a, b]
                    .iter()
                    .filter_map(|c| if let CopyState::Good(v) = c { Some(*v) } else { None })
                    .max();
                match choose([a, b]) {
                    Choice::Use { copy, version, alone } => {
                        assert_eq!(Some(version), best);
                        assert_eq!([a, b][copy], CopyState::Good(version));
                        assert_eq!(alone, a != b);
                    }
                    Choice::Blank { copy } => {
                        assert!(best.is_none() && [a, b][copy] == CopyState::Blank);
                    }
                    Choice::Lost => assert_eq!([a, b], [CopyState::Damaged; 2]),
                }
            }
        }
    }
}
