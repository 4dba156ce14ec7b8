//! What a device holds already, judged by the signatures of others: so that nobody's data is
//! formatted away by a slip of the hand.
//!
//! A pure function over the first [`HEAD_LEN`] and the last [`TAIL_LEN`] bytes. It knows what is
//! usual on the disks of Linux machines; `blkid`, which knows more, is asked beside it by the
//! command. What nobody recognises is taken for nothing, as `mkfs` does.
//!
//! # Contracts
//!
//! - **Trust**: the bytes are anything at all; no bytes panic.
//! - **Direction of doubt**: a signature counts even where the rest of its structure looks damaged:
//!   what is refused can be forced, what is overwritten is gone.

use super::{nvram, superblock};

/// How much of the device's start is looked at, in bytes.
pub const HEAD_LEN: u64 = 2 << 20;
/// How much of the device's end is looked at, in bytes.
pub const TAIL_LEN: u64 = 1 << 20;

/// Something that was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is, for people.
    pub what: &'static str,
    /// Where its signature lies, in bytes.
    pub offset: u64,
}

/// The ends of a device.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    size: u64,
    head: &'a [u8],
    tail: &'a [u8],
}

/// A signature that is bytes at a fixed place.
struct Signature {
    what: &'static str,
    offset: u64,
    bytes: &'static [u8],
}

const fn at(offset: u64, bytes: &'static [u8], what: &'static str) -> Signature {
    Signature { what, offset, bytes }
}

const SIGNATURES: &[Signature] = &[
    at(0, &nvram::MAGIC, "the flags of a Flipside pool"),
    at(nvram::LEN as u64, &nvram::MAGIC, "the flags of a Flipside pool (their second copy)"),
    at(0, b"XFSB", "an XFS file system"),
    at((64 << 10) + 64, b"_BHRfS_M", "a btrfs file system"),
    at(1024, &0xF2F5_2010_u32.to_le_bytes(), "an F2FS file system"),
    at(1024, &0xE0F5_E1E2_u32.to_le_bytes(), "an EROFS file system"),
    at(0, b"hsqs", "a squashfs file system"),
    at(32_769, b"CD001", "an ISO 9660 file system"),
    at(3, b"NTFS    ", "an NTFS file system"),
    at(3, b"EXFAT   ", "an exFAT file system"),
    at(54, b"FAT12   ", "a FAT file system"),
    at(54, b"FAT16   ", "a FAT file system"),
    at(82, b"FAT32   ", "a FAT file system"),
    at(0, b"LUKS\xba\xbe", "a LUKS volume"),
    at(0x4000, b"SKUL\xba\xbe", "a LUKS volume (its second header)"),
    at(0, b"bluestore block device", "a Ceph BlueStore device"),
    at(4096 + 24, &BCACHE, "a bcache device"),
    at(4096 + 24, &BCACHEFS, "a bcachefs device"),
    at(0, &MD_MAGIC, "a member of a Linux RAID (version 1.1)"),
    at(4096, &MD_MAGIC, "a member of a Linux RAID (version 1.2)"),
    at(512, b"EFI PART", "a GPT partition table"),
    at(4096, b"EFI PART", "a GPT partition table"),
];

const BCACHE: [u8; 16] = 0xc685_73f6_4e1a_45ca_8265_f57f_48ba_6d81_u128.to_be_bytes();
const BCACHEFS: [u8; 16] = 0xc685_73f6_66ce_90a9_d96a_60cf_803d_f7ef_u128.to_be_bytes();
const MD_MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
const EXT_MAGIC: [u8; 2] = 0xEF53_u16.to_le_bytes();
const ZFS_LABEL_LEN: u64 = 256 << 10;
const ZFS_UBERBLOCK: u64 = 0x00ba_b10c;

impl<'a> Image<'a> {
    /// A device of `size` bytes, of which these are the start and the end. Where the device is
    /// shorter than [`HEAD_LEN`] or [`TAIL_LEN`], they are the whole.
    pub fn new(size: u64, head: &'a [u8], tail: &'a [u8]) -> Self {
        assert!(head.len() as u64 == HEAD_LEN.min(size), "the head is of the documented length");
        assert!(tail.len() as u64 == TAIL_LEN.min(size), "the tail is of the documented length");
        Self { size, head, tail }
    }

    /// Whether nothing was ever written to either end, as far as can be seen.
    pub fn is_blank(&self) -> bool {
        self.head.iter().chain(self.tail).all(|&byte| byte == 0)
    }

    /// Everything that was recognised, in the order of places to look.
    pub fn probe(&self) -> Vec<Found> {
        let mut found: Vec<_> = SIGNATURES
            .iter()
            .filter(|signature| self.matches(signature.offset, signature.bytes))
            .map(|signature| Found { what: signature.what, offset: signature.offset })
            .collect();
        found.extend(self.flipside());
        found.extend(self.ext());
        found.extend(self.lvm());
        found.extend(self.raid_at_end());
        found.extend(self.swap());
        found.extend(self.zfs());
        found.extend(self.gpt_backup());
        if found.is_empty() {
            found.extend(self.mbr());
        }
        found
    }

    /// The bytes at an offset from the device's start, where they were read.
    fn get(&self, offset: u64, len: usize) -> Option<&'a [u8]> {
        let within = |part: &'a [u8], start: u64| {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            part.get(from..from.checked_add(len)?)
        };
        within(self.head, 0).or_else(|| within(self.tail, self.size - self.tail.len() as u64))
    }

    fn array<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        self.get(offset, N)?.try_into().ok()
    }

    fn matches(&self, offset: u64, bytes: &[u8]) -> bool {
        self.get(offset, bytes.len()) == Some(bytes)
    }

    fn at(&self, offset: Option<u64>, bytes: &[u8], what: &'static str) -> Option<Found> {
        let offset = offset?;
        self.matches(offset, bytes).then_some(Found { what, offset })
    }

    fn flipside(&self) -> impl Iterator<Item = Found> {
        let second = super::layout::second_superblock(self.size);
        let places = [(0, "a Flipside pool"), (second, "a Flipside pool (its second superblock)")];
        let image = *self;
        places
            .into_iter()
            .filter_map(move |(offset, what)| image.at(Some(offset), &superblock::MAGIC, what))
    }

    /// The three generations of ext, told apart by their features.
    fn ext(&self) -> Option<Found> {
        const HAS_JOURNAL: u32 = 0x4;
        const INCOMPATIBLE_UNTIL_EXT3: u32 = 0x2 | 0x4 | 0x8 | 0x10;
        const READ_ONLY_UNTIL_EXT3: u32 = 0x1 | 0x2 | 0x4;
        let offset = 1024 + 56;
        if !self.matches(offset, &EXT_MAGIC) {
            return None;
        }
        let word = |offset: u64| self.array(1024 + offset).map_or(0, u32::from_le_bytes);
        let (compatible, incompatible, read_only) = (word(92), word(96), word(100));
        let newer = incompatible & !INCOMPATIBLE_UNTIL_EXT3 | read_only & !READ_ONLY_UNTIL_EXT3;
        let what = match (newer != 0, compatible & HAS_JOURNAL != 0) {
            (true, _) => "an ext4 file system",
            (false, true) => "an ext3 file system",
            (false, false) => "an ext2 file system",
        };
        Some(Found { what, offset })
    }

    /// LVM's label lies in one of the first four sectors.
    fn lvm(&self) -> Option<Found> {
        [0, 512, 1024, 1536].into_iter().find_map(|offset| {
            let kind = self.get(offset + 24, 8)?;
            let label = self.at(Some(offset), b"LABELONE", "an LVM physical volume")?;
            (kind == b"LVM2 001").then_some(label)
        })
    }

    /// The versions of Linux RAID whose superblock is at the end.
    fn raid_at_end(&self) -> Option<Found> {
        const SMALL: u64 = 4 << 10;
        const LARGE: u64 = 64 << 10;
        let old = (self.size / LARGE * LARGE).checked_sub(LARGE);
        let new = self.size.checked_sub(2 * SMALL).map(|offset| offset / SMALL * SMALL);
        let big_endian = 0xa92b_4efc_u32.to_be_bytes();
        self.at(old, &MD_MAGIC, "a member of a Linux RAID (version 0.90)")
            .or_else(|| self.at(old, &big_endian, "a member of a Linux RAID (version 0.90)"))
            .or_else(|| self.at(new, &MD_MAGIC, "a member of a Linux RAID (version 1.0)"))
    }

    /// Swap's signature ends the first page, whose size depends on the machine.
    fn swap(&self) -> Option<Found> {
        let pages = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10];
        pages.into_iter().map(|page| Some(page - 10)).find_map(|offset| {
            self.at(offset, b"SWAPSPACE2", "a swap area")
                .or_else(|| self.at(offset, b"SWAP-SPACE", "a swap area"))
                .or_else(|| self.at(offset, b"S1SUSPEND\0", "a suspended system in a swap area"))
        })
    }

    /// ZFS keeps two labels at each end, an array of uberblocks in the second half of each.
    fn zfs(&self) -> Option<Found> {
        const SLOT_LEN: u64 = 1024;
        let end = self.size / ZFS_LABEL_LEN * ZFS_LABEL_LEN;
        let labels = [
            Some(0),
            Some(ZFS_LABEL_LEN),
            end.checked_sub(2 * ZFS_LABEL_LEN),
            end.checked_sub(ZFS_LABEL_LEN),
        ];
        let (little, big) = (ZFS_UBERBLOCK.to_le_bytes(), ZFS_UBERBLOCK.to_be_bytes());
        labels.into_iter().flatten().find_map(|label| {
            let slots = label + ZFS_LABEL_LEN / 2..label + ZFS_LABEL_LEN;
            slots.step_by(SLOT_LEN as usize).map(Some).find_map(|slot| {
                self.at(slot, &little, "a member of a ZFS pool")
                    .or_else(|| self.at(slot, &big, "a member of a ZFS pool"))
            })
        })
    }

    /// GPT's second header lies in the last sector, whatever its size.
    fn gpt_backup(&self) -> Option<Found> {
        [512, 4096].into_iter().find_map(|sector| {
            let last = self.size.checked_sub(sector);
            self.at(last, b"EFI PART", "a GPT partition table (its second header)")
        })
    }

    /// A master boot record with a partition in it. File systems have boot sectors that end alike,
    /// so nothing else must have been found.
    fn mbr(&self) -> Option<Found> {
        const TABLE: usize = 446;
        let sector: [u8; 512] = self.array(0)?;
        let (table, signature) = sector.get(TABLE..)?.split_at(64);
        let mut entries = table.as_chunks::<16>().0.iter();
        let used = |entry: &[u8; 16]| {
            let [status, _, _, _, kind, _, _, _, _, _, _, _, sectors @ ..] = *entry;
            matches!(status, 0x00 | 0x80) && kind != 0 && u32::from_le_bytes(sectors) != 0
        };
        (signature == [0x55, 0xAA] && entries.any(used))
            .then_some(Found { what: "an MBR partition table", offset: TABLE as u64 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 64 << 20;

    /// A device of `size` bytes whose ends can be written to.
    struct Disk {
        size: u64,
        head: Vec<u8>,
        tail: Vec<u8>,
    }

    impl Disk {
        fn blank(size: u64) -> Self {
            let of = |len: u64| vec![0; len.min(size) as usize];
            Self { size, head: of(HEAD_LEN), tail: of(TAIL_LEN) }
        }

        fn put(&mut self, offset: u64, bytes: &[u8]) {
            let tail_start = self.size - self.tail.len() as u64;
            let (part, start) =
                if offset < HEAD_LEN { (&mut self.head, 0) } else { (&mut self.tail, tail_start) };
            let from = (offset - start) as usize;
            part[from..from + bytes.len()].copy_from_slice(bytes);
        }

        fn probe(&self) -> Vec<&'static str> {
            let image = Image::new(self.size, &self.head, &self.tail);
            image.probe().iter().map(|found| found.what).collect()
        }
    }

    /// Goal: each signature alone is recognised as what it is.
    #[test]
    fn each_signature_is_known() {
        let end = SIZE;
        let mut lvm = [0; 32];
        lvm[..8].copy_from_slice(b"LABELONE");
        lvm[24..].copy_from_slice(b"LVM2 001");
        let mut mbr = [0; 66];
        mbr[4] = 0x83;
        mbr[12] = 1;
        mbr[64..].copy_from_slice(&[0x55, 0xAA]);
        let zfs = ZFS_UBERBLOCK.to_le_bytes();
        let cases: &[(u64, &[u8], &str)] = &[
            (0, &superblock::MAGIC, "a Flipside pool"),
            (end - 4096, &superblock::MAGIC, "a Flipside pool (its second superblock)"),
            (512, &lvm, "an LVM physical volume"),
            (446, &mbr, "an MBR partition table"),
            (end - 512, b"EFI PART", "a GPT partition table (its second header)"),
            (end - 4096, b"EFI PART", "a GPT partition table (its second header)"),
            (end - 65_536, &MD_MAGIC, "a member of a Linux RAID (version 0.90)"),
            (end - 8192, &MD_MAGIC, "a member of a Linux RAID (version 1.0)"),
            (4086, b"SWAPSPACE2", "a swap area"),
            (65_526, b"SWAPSPACE2", "a swap area"),
            ((128 << 10) + 5 * 1024, &zfs, "a member of a ZFS pool"),
            (end - (128 << 10), &zfs, "a member of a ZFS pool"),
            (1024 + 56, &EXT_MAGIC, "an ext2 file system"),
        ];
        let fixed = SIGNATURES.iter().map(|of| (of.offset, of.bytes, of.what));
        for (offset, bytes, what) in cases.iter().copied().chain(fixed) {
            let mut disk = Disk::blank(SIZE);
            disk.put(offset, bytes);
            assert_eq!(disk.probe(), [what], "at {offset}");
        }
    }

    /// Goal: the three generations of ext are told apart by their features.
    #[test]
    fn ext_has_generations() {
        let cases = [
            (92, 4, "an ext3 file system"),
            (96, 0x40, "an ext4 file system"),
            (100, 0x400, "an ext4 file system"),
        ];
        for (offset, feature, what) in cases {
            let mut disk = Disk::blank(SIZE);
            disk.put(1024 + 56, &EXT_MAGIC);
            disk.put(1024 + offset, &u32::to_le_bytes(feature));
            assert_eq!(disk.probe(), [what]);
        }
    }

    /// Goal: zeros are blank; noise without a signature is neither blank nor refused; a boot sector
    /// without partitions is not a partition table.
    #[test]
    fn nothing_is_found_where_nothing_is() {
        let mut disk = Disk::blank(SIZE);
        assert!(Image::new(SIZE, &disk.head, &disk.tail).is_blank());
        disk.put(510, &[0x55, 0xAA]);
        disk.put(SIZE - 1, &[1]);
        assert!(!Image::new(SIZE, &disk.head, &disk.tail).is_blank());
        assert!(disk.probe().is_empty());
    }

    proptest! {
        /// Goal: no contents and no size panic, however small.
        #[test]
        fn any_device_is_probed(size in 0u64..300_000, fill: u8, noise: [u8; 32], at: u64) {
            let mut disk = Disk::blank(size);
            disk.head.fill(fill);
            disk.tail.fill(fill);
            if size > 32 {
                let at = (at % (size - 32)) as usize;
                disk.head[at..at + 32].copy_from_slice(&noise);
                disk.tail[at..at + 32].copy_from_slice(&noise);
            }
            let _ = disk.probe();
        }
    }
}
