//! Memory that a file is mapped to, written by this thread and written back line by line.
//!
//! # Contracts
//!
//! - **Durability**: [`MappedRegion`]'s `persist` returns after the last cache line of every piece
//!   has left the caches, and a fence. Behind a `MAP_SYNC` mapping that is durable: the kernel
//!   keeps what it needs to find the bytes again durable too. Behind any other it is so where
//!   memory is.
//! - **Bounds**: every access is asserted to lie in the mapping. Whoever makes the file shorter
//!   meanwhile ends the process (SIGBUS): the file's claim is there to be respected.

use std::fs::File;
use std::future::ready;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;
use std::rc::Rc;

use memmap2::{MmapMut, MmapOptions};
use nix::libc::c_void;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::write_back::WriteBack;
use crate::env::Region;
use crate::uring::buffers::View;

/// The unit in which memory is written, in bytes: what the formats call a sector.
pub(super) const SECTOR: u32 = 512;

/// Pieces of so many bytes go past the caches: data, which nobody reads soon again.
const STREAMED_MIN: usize = 4096;

/// A mapping of a whole file.
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    name: Box<str>,
    write_back: WriteBack,
    memory: Memory,
    /// Claimed as long as it is open.
    _file: File,
}

/// What is to be unmapped.
enum Memory {
    Trusted(#[expect(dead_code, reason = "its only use is to unmap when dropped")] MmapMut),
    Synchronous,
}

impl Mapping {
    /// Maps persistent memory; fails where the file is not in any.
    pub(super) fn synchronous(file: File, len: u64, path: &Path) -> io::Result<Self> {
        let len = NonZeroUsize::new(usize::try_from(len).map_err(io::Error::other)?)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED_VALIDATE | MapFlags::MAP_SYNC;
        // SAFETY: a new mapping at a place of the kernel's choice takes no memory from anyone.
        let start = unsafe { mmap(None, len, protection, flags, &file, 0) }?;
        Ok(Self {
            start: start.cast(),
            len: len.get(),
            name: name(path),
            write_back: WriteBack::of_this_machine(),
            memory: Memory::Synchronous,
            _file: file,
        })
    }

    /// Maps a file, whatever it lies in.
    pub(super) fn trusting(file: File, len: u64, path: &Path) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        // SAFETY: the file is claimed, and all access is by copying through raw pointers: no
        // reference is made to bytes that another process could change.
        let mut map = unsafe { MmapOptions::new().len(len).map_mut(&file) }?;
        let start = NonNull::new(map.as_mut_ptr()).expect("a mapping is not at address zero");
        let write_back = WriteBack::of_this_machine();
        let (name, memory) = (name(path), Memory::Trusted(map));
        Ok(Self { start, len, name, write_back, memory, _file: file })
    }

    /// The address of a range, which must lie in the mapping.
    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        let offset = usize::try_from(offset).expect("an offset into memory");
        let end = offset.checked_add(len).expect("a range ends within 2^64 bytes");
        assert!(end <= self.len, "a range ends at {end}, its mapping at {}", self.len);
        self.start.as_ptr().wrapping_add(offset)
    }

    fn read(&self, offset: u64, out: &mut [u8]) {
        let from = self.at(offset, out.len());
        // SAFETY: `at` checked the range; `out` is memory of a buffer, never of a mapping.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
    }

    /// Changes the bytes; they are durable after [`Mapping::write_back`] and [`Mapping::fence`].
    fn write(&self, offset: u64, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: `at` checked the range; `bytes` are memory of a buffer, never of a mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Changes whole sectors past the caches; they are durable after [`Mapping::fence`].
    fn stream(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let to = self.at(offset, bytes.len());
        // SAFETY: `at` checked the range; `bytes` are memory of a buffer, never of a mapping.
        unsafe { self.write_back.stream(bytes, to) }
    }

    fn write_back(&self, offset: u64, len: usize) -> io::Result<()> {
        let start = self.at(offset, len);
        // SAFETY: `at` checked the range.
        unsafe { self.write_back.lines(start, len) }
    }

    fn fence(&self) {
        self.write_back.fence();
    }
}

fn name(path: &Path) -> Box<str> {
    path.display().to_string().into()
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Memory::Synchronous = self.memory {
            let start: NonNull<c_void> = self.start.cast();
            // SAFETY: the mapping was made with this length, and nothing points into it any more:
            // its regions hold it, and no slice of it is ever made.
            let unmapped = unsafe { munmap(start, self.len) };
            unmapped.expect("a mapping that was made can be unmapped");
        }
    }
}

/// A part of a mapping. Cheap to clone: a handle.
#[derive(Clone)]
pub struct MappedRegion {
    mapping: Rc<Mapping>,
    start: u64,
    len: u64,
}

impl MappedRegion {
    pub(super) fn whole(mapping: Mapping) -> Self {
        let len = mapping.len as u64;
        Self { mapping: Rc::new(mapping), start: 0, len }
    }

    /// The `len` bytes of it from `start`.
    #[must_use]
    pub fn part(&self, start: u64, len: u64) -> Self {
        Self { mapping: Rc::clone(&self.mapping), start: self.place(start, len), len }
    }

    /// The path of the file.
    pub fn name(&self) -> &str {
        &self.mapping.name
    }

    /// Whether nothing but the memory makes it durable.
    pub fn is_trusting(&self) -> bool {
        matches!(self.mapping.memory, Memory::Trusted(_))
    }

    fn place(&self, offset: u64, len: u64) -> u64 {
        let end = offset.checked_add(len).expect("a piece ends within 2^64 bytes");
        assert!(end <= self.len, "a piece ends at {end}, its region at {}", self.len);
        let sector = u64::from(SECTOR);
        assert!(
            offset.is_multiple_of(sector) && len.is_multiple_of(sector),
            "a piece of {len} bytes at {offset} is not whole sectors of {sector} bytes"
        );
        self.start + offset
    }

    fn persist_now(&self, pieces: &[(u64, View)]) -> io::Result<()> {
        for (offset, view) in pieces {
            let place = self.place(*offset, view.len() as u64);
            if view.len() >= STREAMED_MIN {
                view.with(|bytes| self.mapping.stream(place, bytes))?;
                continue;
            }
            view.with(|bytes| self.mapping.write(place, bytes));
            self.mapping.write_back(place, view.len())?;
        }
        self.mapping.fence();
        Ok(())
    }
}

impl Region for MappedRegion {
    fn len(&self) -> u64 {
        self.len
    }

    fn sector(&self) -> u32 {
        SECTOR
    }

    fn read(&self, offset: u64, mut view: View) -> impl Future<Output = io::Result<()>> + 'static {
        let place = self.place(offset, view.len() as u64);
        view.with_mut(|out| self.mapping.read(place, out));
        ready(Ok(()))
    }

    fn persist(&self, pieces: Vec<(u64, View)>) -> impl Future<Output = io::Result<()>> + 'static {
        ready(self.persist_now(&pieces))
    }

    /// A predecessor may have been killed between writing and writing back.
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let len = usize::try_from(self.len).expect("a length in memory");
        let flushed = self.mapping.write_back(self.start, len);
        self.mapping.fence();
        ready(flushed)
    }
}
