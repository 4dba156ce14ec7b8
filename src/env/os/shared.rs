//! Memory that outlives the process: a file of a file system in memory, mapped.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::env::shared::SharedMemory;

/// Where the kernel tells this start of the machine from all others.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What the machine calls its present start.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string(BOOT_ID)?;
    let id = uuid::Uuid::parse_str(text.trim()).map_err(io::Error::other)?;
    Ok(id.into_bytes())
}

/// A file as memory. Its pages are there from [`SharedMemory::grow`] on, so that using them never
/// fails.
pub struct SharedFile {
    path: PathBuf,
    file: File,
    memory: MmapRaw,
    len: AtomicU64,
}

impl SharedFile {
    /// Opens or makes a file, for its owner alone, that may grow to so many bytes.
    pub fn open(path: &Path, capacity: u64) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let len = file.metadata()?.len().min(capacity);
        let bytes = usize::try_from(capacity).map_err(io::Error::other)?;
        let memory = MmapOptions::new().len(bytes).map_raw(&file)?;
        Ok(Self { path: path.to_owned(), file, memory, len: len.into() })
    }

    /// Removes the file: nothing of it is there for anyone who opens it later.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    fn place(&self, at: u64, len: usize) -> *mut u8 {
        let end = at.checked_add(len as u64).expect("a place in memory");
        assert!(end <= self.len(), "{len} bytes at {at} of {}", self.len());
        self.memory.as_mut_ptr().wrapping_add(at as usize)
    }

    fn word(&self, at: u64) -> &AtomicU64 {
        assert!(at.is_multiple_of(8), "a word at {at}");
        #[expect(clippy::cast_ptr_alignment, reason = "asserted, and a mapping begins at a page")]
        let place = self.place(at, 8).cast::<u64>();
        // SAFETY: the place is mapped as long as `self` is there, backed and aligned; as a word it
        // is only used through this.
        unsafe { AtomicU64::from_ptr(place) }
    }
}

impl SharedMemory for SharedFile {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        let before = self.len();
        if len <= before {
            return Ok(());
        }
        if len > self.memory.len() as u64 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let more = i64::try_from(len - before).map_err(io::Error::other)?;
        let from = i64::try_from(before).map_err(io::Error::other)?;
        fallocate(self.file.as_fd(), FallocateFlags::empty(), from, more)?;
        self.len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn read(&self, at: u64, out: &mut [u8]) {
        let from = self.place(at, out.len());
        // SAFETY: the place is mapped and backed by the assertion above, no reference to it exists,
        // and `out` is memory of our own.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let to = self.place(at, bytes.len());
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    fn load(&self, at: u64) -> u64 {
        u64::from_le(self.word(at).load(Ordering::SeqCst))
    }

    fn store(&self, at: u64, word: u64) {
        let place = self.word(at);
        // What was written before must not come after it in the program as it runs.
        std::sync::atomic::fence(Ordering::SeqCst);
        place.store(word.to_le(), Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what was stored is found by who opens the file next; new bytes are zero; it does not
    /// grow beyond what was said, nor is anything there once it is removed.
    #[test]
    fn memory_outlives_its_user() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let memory = SharedFile::open(&path, 1 << 16).unwrap();
        assert!(memory.is_empty());
        memory.grow(8192).unwrap();
        memory.grow(4096).unwrap();
        memory.grow(1 << 17).unwrap_err();
        memory.write(100, b"hello");
        memory.store(8, 77);
        drop(memory);
        let memory = SharedFile::open(&path, 1 << 16).unwrap();
        let mut found = [1; 24];
        memory.read(96, &mut found);
        assert_eq!((&found[..12], memory.len()), (&b"\0\0\0\0hello\0\0\0"[..], 8192));
        memory.read(8, &mut found[..8]);
        assert_eq!(found[..8], 77_u64.to_le_bytes());
        memory.remove().unwrap();
        assert!(SharedFile::open(&path, 1 << 16).unwrap().is_empty());
        assert_ne!(boot_id().unwrap(), [0; 16]);
    }
}
