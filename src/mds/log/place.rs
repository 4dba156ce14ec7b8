//! Where the log's bytes lie: something of a fixed length whose writes are durable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use super::format::BLOCK;
use crate::mds::backend::Medium;

/// A place for a log.
///
/// # Contract
///
/// **Durability**: what was written is durable when [`LogPlace::write`] returns. After a failed
/// write nothing more is asked of the place.
pub trait LogPlace: Send {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Reads all of `out` from that offset on.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes blocks, durably: offset and length are multiples of [`BLOCK`].
    fn write(&mut self, offset: u64, blocks: &[u8]) -> io::Result<()>;
}

/// A file that has all of its blocks already: a write changes nothing but their contents.
///
/// Writes go past the page cache where the filesystem can do that, each as one durable write.
#[derive(Debug)]
pub struct FilePlace {
    reader: File,
    writer: File,
    blocks: AlignedBlocks,
    _lock: File,
}

impl FilePlace {
    /// The file of a log that was made before. `lock` is held as long as the place is.
    pub fn open(path: &Path, lock: File) -> io::Result<Self> {
        let open = |flags| {
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_DSYNC | flags).open(path)
        };
        let writer = match open(libc::O_DIRECT) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0)?,
            opened => opened?,
        };
        let blocks = AlignedBlocks::default();
        Ok(FilePlace { reader: File::open(path)?, writer, blocks, _lock: lock })
    }

    /// Makes the file of a new log, which must not exist: `header`, then zeros up to `len` bytes.
    ///
    /// The zeros are written and not only allocated: the first write to a block that was only
    /// allocated would have to change the filesystem's own records, too.
    pub fn create(path: &Path, header: &[u8], len: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < len {
            let count = (len - at).min(zeros.len() as u64);
            file.write_all_at(&zeros[..count as usize], at)?;
            at += count;
        }
        file.write_all_at(header, 0)?;
        file.sync_all()
    }
}

impl LogPlace for FilePlace {
    fn length(&self) -> io::Result<u64> {
        Ok(self.reader.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact_at(out, offset)
    }

    fn write(&mut self, offset: u64, blocks: &[u8]) -> io::Result<()> {
        self.writer.write_all_at(self.blocks.copy(blocks), offset)
    }
}

/// A file that is only looked at.
#[derive(Debug)]
pub struct ReadOnlyPlace {
    file: File,
    _lock: File,
}

impl ReadOnlyPlace {
    /// The file of a log that was made before. `lock` is held as long as the place is.
    pub fn open(path: &Path, lock: File) -> io::Result<Self> {
        Ok(ReadOnlyPlace { file: File::open(path)?, _lock: lock })
    }
}

impl LogPlace for ReadOnlyPlace {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn write(&mut self, _offset: u64, _blocks: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// A part of a medium, beside a store's.
#[derive(Debug)]
pub struct MediumPlace<M> {
    medium: M,
    offset: u64,
    len: u64,
}

impl<M: Medium> MediumPlace<M> {
    /// `len` bytes of the medium from `offset` on.
    pub fn new(medium: M, offset: u64, len: u64) -> Self {
        MediumPlace { medium, offset, len }
    }

    /// Makes it the place of a new log: `header`, then zeros. What was there counts no more, nor
    /// does the log before its header is durable, which is written last.
    pub fn clear(&mut self, header: &[u8]) -> io::Result<()> {
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < self.len {
            let count = (self.len - at).min(zeros.len() as u64);
            self.medium.write_at(&zeros[..count as usize], self.offset + at)?;
            at += count;
        }
        self.medium.sync()?;
        self.write(0, header)
    }
}

impl<M: Medium> LogPlace for MediumPlace<M> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.medium.read_at(out, self.offset + offset)
    }

    fn write(&mut self, offset: u64, blocks: &[u8]) -> io::Result<()> {
        let end = offset + blocks.len() as u64;
        assert!(end <= self.len, "{end} is beyond the log's {} bytes", self.len);
        self.medium.write_at(blocks, self.offset + offset)?;
        self.medium.sync()
    }
}

/// Memory that begins at a multiple of a block, as writes past the page cache want it.
#[derive(Debug, Default)]
struct AlignedBlocks(Vec<u8>);

impl AlignedBlocks {
    /// A copy of these bytes in such memory.
    fn copy(&mut self, bytes: &[u8]) -> &[u8] {
        let room = bytes.len() + BLOCK;
        if self.0.len() < room {
            self.0.resize(room.next_power_of_two(), 0);
        }
        let lead = self.0.as_ptr().align_offset(BLOCK);
        let aligned = &mut self.0[lead..lead + bytes.len()];
        aligned.copy_from_slice(bytes);
        aligned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a file's length and bytes are as made and written, and an existing file is left alone.
    #[test]
    fn a_file_as_a_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        FilePlace::create(&path, &[7; BLOCK], 10 * BLOCK as u64).unwrap();
        let again = FilePlace::create(&path, &[8; BLOCK], BLOCK as u64).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let mut place = FilePlace::open(&path, File::open(folder.path()).unwrap()).unwrap();
        assert_eq!(place.length().unwrap(), 10 * BLOCK as u64);
        for (offset, blocks) in [(2, 3), (4, 1), (9, 1), (3, 5)] {
            let bytes = vec![offset as u8; blocks * BLOCK];
            place.write(offset * BLOCK as u64, &bytes).unwrap();
        }
        let mut out = vec![1; 10 * BLOCK];
        place.read(0, &mut out).unwrap();
        let blocks: Vec<u8> = out.chunks(BLOCK).map(|block| block[BLOCK - 1]).collect();
        assert_eq!(blocks, [7, 0, 2, 3, 3, 3, 3, 3, 0, 9]);
    }

    /// Goal: copies are aligned whatever their length.
    #[test]
    fn copies_are_aligned() {
        let mut blocks = AlignedBlocks::default();
        for count in [1, 3, 2, 17] {
            let bytes: Vec<u8> = (0..count * BLOCK).map(|i| i as u8).collect();
            let copy = blocks.copy(&bytes);
            assert!(copy == bytes && copy.as_ptr().align_offset(BLOCK) == 0);
        }
    }
}
