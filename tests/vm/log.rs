//! The log of the kernel's dm-log-writes: all that was written to a device, in the order in which
//! it became durable, with the flushes, the FUA writes and the marks between.
//!
//! The format is the kernel's (`Documentation/admin-guide/device-mapper/log-writes.rst`): a
//! superblock in the first sector, then the entries. Each has a sector of its own, with a mark's
//! text in the rest of it, and is followed by the data of a write. A write that is neither FUA nor
//! a flush is logged when the next flush after its completion has ended: so a log that is cut off
//! anywhere is what a disk may have kept at a loss of power.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// The log's first bytes.
#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout)]
struct Superblock {
    magic: U64,
    version: U64,
    entries: U64,
    sector_bytes: U32,
}

/// The first bytes of an entry.
#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout)]
struct Head {
    sector: U64,
    sectors: U64,
    flags: U64,
    text_bytes: U64,
}

const _: () = assert!(size_of::<Superblock>() == 28 && size_of::<Head>() == 32);

/// What an entry did to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// These bytes went there; none for a flush alone.
    Write { offset: u64, data: Vec<u8> },
    /// So many bytes are of no use any more.
    Discard { offset: u64, bytes: u64 },
    /// Somebody said this.
    Mark(String),
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it did.
    pub deed: Deed,
    /// Whether it is a flush or a FUA write: all before it was durable once it had ended.
    pub is_barrier: bool,
}

/// A log, entry by entry.
pub struct Log {
    file: BufReader<File>,
    sector_bytes: usize,
    left: u64,
}

impl Log {
    /// A log in a file, or on a device.
    pub fn open(path: &Path) -> Log {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path).expect("the log"));
        let mut sector = [0; 512];
        file.read_exact(&mut sector).expect("a superblock");
        let (head, _) = Superblock::read_from_prefix(&sector).expect("it is long enough");
        assert_eq!((head.magic.get(), head.version.get()), (MAGIC, VERSION), "this is no log");
        assert_eq!(head.sector_bytes.get(), 512, "the sectors are those that were read");
        Log { file, sector_bytes: sector.len(), left: head.entries.get() }
    }
}

impl Iterator for Log {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        self.left = self.left.checked_sub(1)?;
        let mut sector = vec![0; self.sector_bytes];
        self.file.read_exact(&mut sector).expect("an entry");
        let (head, text) = Head::read_from_prefix(&sector).expect("it is long enough");
        let [offset, bytes] = [head.sector, head.sectors].map(|n| n.get() * sector.len() as u64);
        let flags = head.flags.get();
        let deed = if flags & MARK != 0 {
            let text = &text[..head.text_bytes.get() as usize];
            let text = text.strip_suffix(&[0]).unwrap_or(text);
            Deed::Mark(String::from_utf8_lossy(text).into_owned())
        } else if flags & DISCARD != 0 {
            Deed::Discard { offset, bytes }
        } else {
            let mut data = vec![0; bytes as usize];
            self.file.read_exact(&mut data).expect("the data of an entry");
            Deed::Write { offset, data }
        };
        Some(Entry { deed, is_barrier: flags & (FLUSH | FUA) != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each kind of entry is read as the kernel writes it.
    #[test]
    fn a_log_is_read() {
        let words = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
        let sector = |mut bytes: Vec<u8>| {
            bytes.resize(512, 0);
            bytes
        };
        let mark = [words(&[0, 0, MARK, 5]), b"here\0".to_vec()].concat();
        let log = [
            sector(words(&[MAGIC, VERSION, 5, 512])),
            sector(words(&[3, 1, 0, 0])),
            vec![7; 512],
            sector(words(&[0, 0, FLUSH, 0])),
            sector(words(&[4, 9, DISCARD, 0])),
            sector(mark),
            sector(words(&[1, 1, FUA, 0])),
            vec![8; 512],
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), log.concat()).unwrap();
        let write = |offset, data: &[u8], is_barrier| Entry {
            deed: Deed::Write { offset, data: data.to_vec() },
            is_barrier,
        };
        let other = |deed| Entry { deed, is_barrier: false };
        let expected = [
            write(1536, &[7; 512], false),
            write(0, &[], true),
            other(Deed::Discard { offset: 2048, bytes: 4608 }),
            other(Deed::Mark("here".to_owned())),
            write(512, &[8; 512], true),
        ];
        assert_eq!(Log::open(file.path()).collect::<Vec<_>>(), expected);
    }
}
