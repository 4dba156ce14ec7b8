//! The identity of an NVRAM region: whose flags and journal lie behind it.
//!
//! Two copies of a page, at the start of the file or device; the region begins at
//! [`REGION_START`]. A page:
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic |
//! | 8 | 4 | version of the format |
//! | 12 | 4 | zeros |
//! | 16 | 16 | pool id |
//! | 32 | 16 | region id, as the pool's superblocks have it |
//! | 48 | 8 | the region's length in bytes |
//! | 56 | 4036 | zeros |
//! | 4092 | 4 | CRC32C of all before |
//!
//! # Contracts
//!
//! - **Durability**: written once, after all of the region and before the superblocks that name
//!   it; never changed. One copy is enough.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::ids::PoolId;

/// Length of a copy, in bytes.
pub const LEN: usize = 4096;
/// Where the region begins, in bytes: after both copies.
pub const REGION_START: u64 = 2 * LEN as u64;

const MAGIC: [u8; 8] = *b"FlpNvram";
const VERSION: u32 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RawIdentity {
    magic: [u8; 8],
    version: U32,
    reserved: U32,
    pool: [u8; 16],
    region: [u8; 16],
    len: U64,
    tail: [u8; 4036],
    crc: U32,
}

const _: () = assert!(size_of::<RawIdentity>() == LEN);
const _: () = assert!(std::mem::offset_of!(RawIdentity, len) == 48);

/// Whose region it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvramIdentity {
    /// The pool whose flags it keeps.
    pub pool: PoolId,
    /// Its own identity.
    pub region: [u8; 16],
    /// Its length in bytes.
    pub len: u64,
}

impl NvramIdentity {
    /// Both copies, as they are written.
    pub fn store(&self, bytes: &mut [u8]) {
        let mut raw = RawIdentity::new_zeroed();
        raw.magic = MAGIC;
        raw.version = VERSION.into();
        raw.pool = self.pool.0;
        raw.region = self.region;
        raw.len = self.len.into();
        raw.crc = crc_fast::crc32_iscsi(&raw.as_bytes()[..LEN - 4]).into();
        for copy in bytes.chunks_exact_mut(LEN).take(2) {
            copy.copy_from_slice(raw.as_bytes());
        }
    }

    /// The identity in the first bytes of a file or device, by either copy.
    pub fn find(bytes: &[u8]) -> Option<Self> {
        bytes.chunks_exact(LEN).take(2).find_map(Self::parse)
    }

    /// What each copy says; `None` where it is damaged.
    pub fn copies(bytes: &[u8]) -> [Option<Self>; 2] {
        let mut copies = bytes.chunks_exact(LEN).map(Self::parse);
        [copies.next().flatten(), copies.next().flatten()]
    }

    fn parse(copy: &[u8]) -> Option<Self> {
        let raw = RawIdentity::ref_from_bytes(copy).ok()?;
        let sound = raw.magic == MAGIC
            && raw.version.get() == VERSION
            && raw.crc.get() == crc_fast::crc32_iscsi(&copy[..LEN - 4]);
        sound.then(|| Self { pool: PoolId(raw.pool), region: raw.region, len: raw.len.get() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an identity survives damage to one copy and not to both; anything else is none.
    #[test]
    fn one_copy_is_enough() {
        let identity = NvramIdentity { pool: PoolId([1; 16]), region: [2; 16], len: 1 << 20 };
        let mut good = [0; 2 * LEN];
        identity.store(&mut good);
        assert_eq!(NvramIdentity::find(&good), Some(identity));
        for at in [0, 9, 20, 40, 50, 2000, LEN - 1] {
            let mut bytes = good;
            bytes[at] ^= 1;
            assert_eq!(NvramIdentity::find(&bytes), Some(identity));
            bytes[LEN + at] ^= 1;
            assert_eq!(NvramIdentity::find(&bytes), None);
        }
        assert_eq!(NvramIdentity::find(&[0; 2 * LEN]), None);
        assert_eq!(NvramIdentity::find(&[0; 5]), None);
    }
}
