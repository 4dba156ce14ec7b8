//! Where the store's bytes lie: a region of a medium (a device or file, or a simulated one), and a
//! watch over any backend; and a part of fixed length for what has no length of its own.
//!
//! # The region
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 4 KiB | header, copy A |
//! | 4 KiB | 4 KiB | header, copy B |
//! | 8 KiB | capacity − 8 KiB | the store's bytes |
//!
//! A header holds the logical length of the store's bytes, since a region, other than a file, has
//! none of its own. The copies are written one after the other, the older first, each flushed
//! before the other is: one is always whole, the higher version is the newer, and at rest both say
//! the same.
//!
//! Growing writes zeros and flushes them *before* the header: a store may take what it never wrote
//! for zeros, and the region may hold an earlier life's bytes.
//!
//! # Contracts
//!
//! - **Capacity**: growing beyond the region fails as [`io::ErrorKind::StorageFull`] and changes
//!   nothing.
//! - **Fail stop** ([`Watched`]): after the first failed write, growth or flush, each later one
//!   fails too: a device that lost writes would otherwise be believed at the next flush.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use redb::StorageBackend;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::wire::crc32c;
use crate::env::aside::Aside;

/// Size of a header's copy, in bytes: no smaller than a device's sector.
const HEADER_BYTES: u64 = 4096;
/// Where the store's bytes begin.
const DATA_OFFSET: u64 = 2 * HEADER_BYTES;
/// The smallest region that a new store fits in.
pub const CAPACITY_MIN: u64 = 4 << 20;
/// Zeros written at a time.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
const MAGIC: [u8; 8] = *b"FSmdsReg";
const VERSION: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    format: U32,
    crc: U32,
    version: U64,
    length: U64,
}

const _: () = assert!(size_of::<RawHeader>() == 32);
const _: () = assert!(std::mem::offset_of!(RawHeader, crc) == 12);

/// What the newer valid header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    version: u64,
    length: u64,
}

impl RawHeader {
    fn new(header: Header) -> Self {
        let mut raw = RawHeader {
            magic: MAGIC,
            format: U32::new(VERSION),
            crc: U32::ZERO,
            version: U64::new(header.version),
            length: U64::new(header.length),
        };
        raw.crc = U32::new(raw.checksum());
        raw
    }

    fn checksum(&self) -> u32 {
        crc32c(RawHeader { crc: U32::ZERO, ..*self }.as_bytes())
    }

    fn verified(&self, capacity: u64) -> Option<Header> {
        let header = Header { version: self.version.get(), length: self.length.get() };
        let good = self.magic == MAGIC
            && self.format.get() == VERSION
            && self.crc.get() == self.checksum()
            && header.length <= capacity - DATA_OFFSET;
        good.then_some(header)
    }
}

/// What a store and its volume table have parts of. Nobody else may touch those parts.
pub trait Medium: fmt::Debug + Send + Sync + Sized + 'static {
    /// Another handle of the same bytes.
    fn handle(&self) -> io::Result<Self>;

    /// Reads all of `out` from that offset in bytes on.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of the data from that offset in bytes on.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Returns when all that was written is durable.
    fn sync(&self) -> io::Result<()>;
}

/// With buffered reads and writes.
impl Medium for File {
    /// Opened anew: a failed write-back is told once to each that is open, and handles that are
    /// copies of one another would take that from each other.
    fn handle(&self) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", self.as_raw_fd());
        OpenOptions::new().read(true).write(true).open(path)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// A medium on a device where others cache writes, too: its syncs and their flushes go one after
/// another, and the failure of one is that of all.
#[derive(Debug)]
pub struct Beside<M> {
    medium: M,
    aside: Arc<Aside>,
}

impl<M> Beside<M> {
    /// The medium, and who is told.
    pub fn new(medium: M, aside: Arc<Aside>) -> Self {
        Self { medium, aside }
    }
}

impl<M: Medium> Medium for Beside<M> {
    fn handle(&self) -> io::Result<Self> {
        Ok(Self { medium: self.medium.handle()?, aside: Arc::clone(&self.aside) })
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.medium.read_at(out, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.medium.write_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.aside.flush(|| self.medium.sync())
    }
}

/// A region of a medium as the store's storage.
#[derive(Debug)]
pub struct RegionBackend<M = File> {
    medium: M,
    offset: u64,
    capacity: u64,
    header: Mutex<Header>,
}

impl<M: Medium> RegionBackend<M> {
    /// An empty store's region of `capacity` bytes from `offset` on; what was there is gone.
    pub fn create(medium: M, offset: u64, capacity: u64) -> io::Result<Self> {
        check_capacity(capacity)?;
        medium.write_at(&[0; DATA_OFFSET as usize], offset)?;
        let header = write_headers(&medium, offset, Header { version: 0, length: 0 })?;
        Ok(RegionBackend { medium, offset, capacity, header: Mutex::new(header) })
    }

    /// The region of a store that was made before.
    pub fn open(medium: M, offset: u64, capacity: u64) -> io::Result<Self> {
        check_capacity(capacity)?;
        let copies = [read_header(&medium, offset)?, read_header(&medium, offset + HEADER_BYTES)?];
        let verified = copies.iter().filter_map(|raw| raw.verified(capacity));
        let newest = verified.max_by_key(|header| header.version);
        let damaged = || {
            let text = "both copies of the metadata region's header are damaged";
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let header = newest.ok_or_else(damaged)?;
        Ok(RegionBackend { medium, offset, capacity, header: Mutex::new(header) })
    }

    /// Which copies of a region's header are damaged.
    pub fn headers_damaged(medium: &M, offset: u64, capacity: u64) -> io::Result<[bool; 2]> {
        let copies = [read_header(medium, offset)?, read_header(medium, offset + HEADER_BYTES)?];
        Ok(copies.map(|raw| raw.verified(capacity).is_none()))
    }

    fn header(&self) -> Header {
        *self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what lies beyond the logical length.
    fn check_range(&self, offset: u64, length: usize) -> io::Result<()> {
        let end = offset.checked_add(length as u64);
        if end.is_some_and(|end| end <= self.header().length) {
            return Ok(());
        }
        let text = format!("{length} bytes at {offset} are beyond the store's end");
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    fn write_zeros(&self, mut from: u64, to: u64) -> io::Result<()> {
        while from < to {
            let length = (to - from).min(ZEROS.len() as u64);
            self.medium.write_at(&ZEROS[..length as usize], self.offset + DATA_OFFSET + from)?;
            from += length;
        }
        self.medium.sync()
    }
}

/// Writes both copies, as the versions after that one; returns the last.
fn write_headers(medium: &impl Medium, offset: u64, mut header: Header) -> io::Result<Header> {
    for _ in 0..2 {
        header.version += 1;
        let raw = RawHeader::new(header);
        medium.write_at(raw.as_bytes(), offset + copy_offset(header.version))?;
        medium.sync()?;
    }
    Ok(header)
}

fn read_header(medium: &impl Medium, at: u64) -> io::Result<RawHeader> {
    let mut raw = RawHeader::new(Header { version: 0, length: 0 });
    medium.read_at(raw.as_mut_bytes(), at)?;
    Ok(raw)
}

fn check_capacity(capacity: u64) -> io::Result<()> {
    if capacity >= CAPACITY_MIN {
        return Ok(());
    }
    let text = format!("a metadata region of {capacity} bytes is less than {CAPACITY_MIN}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Where the copy of that version goes: versions take turns.
fn copy_offset(version: u64) -> u64 {
    version % 2 * HEADER_BYTES
}

impl<M: Medium> StorageBackend for RegionBackend<M> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.header().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, out.len())?;
        self.medium.read_at(out, self.offset + DATA_OFFSET + offset)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        if length > self.capacity - DATA_OFFSET {
            let text = format!(
                "{length} bytes do not fit the metadata region of {} bytes",
                self.capacity - DATA_OFFSET
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        let old = self.header();
        if length > old.length {
            self.write_zeros(old.length, length)?;
        }
        let new = write_headers(&self.medium, self.offset, Header { length, ..old })?;
        *self.header.lock().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.medium.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_range(offset, data.len())?;
        self.medium.write_at(data, self.offset + DATA_OFFSET + offset)
    }
}

/// A part of a medium that has always the same length.
#[derive(Debug)]
pub struct FixedBackend<M = File> {
    medium: M,
    offset: u64,
    len: u64,
}

impl<M: Medium> FixedBackend<M> {
    /// `len` bytes of the medium from `offset` on.
    pub fn new(medium: M, offset: u64, len: u64) -> Self {
        FixedBackend { medium, offset, len }
    }

    /// The position on the medium; beyond the part is refused.
    fn place(&self, offset: u64, length: usize) -> io::Result<u64> {
        let inside = offset.checked_add(length as u64).is_some_and(|end| end <= self.len);
        inside.then_some(self.offset + offset).ok_or(io::ErrorKind::InvalidInput.into())
    }
}

impl<M: Medium> StorageBackend for FixedBackend<M> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.medium.read_at(out, self.place(offset, out.len())?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len == self.len { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.medium.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.medium.write_at(data, self.place(offset, data.len())?)
    }
}

/// Any backend, its written bytes counted and its first failure kept.
#[derive(Debug)]
pub struct Watched<B> {
    inner: B,
    written: Arc<AtomicU64>,
    failed: OnceLock<(io::ErrorKind, String)>,
}

impl<B: StorageBackend> Watched<B> {
    /// Watches `inner`, adding what is written (growth included) to `written`.
    pub fn new(inner: B, written: Arc<AtomicU64>) -> Self {
        Watched { inner, written, failed: OnceLock::new() }
    }

    fn latch(&self, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if let Some((kind, text)) = self.failed.get() {
            return Err(io::Error::new(*kind, text.clone()));
        }
        change().inspect_err(|error| {
            // A second thread's failure, at the same moment, is no news.
            let _ = self.failed.set((error.kind(), format!("failed before: {error}")));
        })
    }
}

impl<B: StorageBackend> StorageBackend for Watched<B> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let grown = length.saturating_sub(self.inner.len()?);
        self.written.fetch_add(grown, Ordering::Relaxed);
        self.latch(|| self.inner.set_len(length))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.latch(|| self.inner.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.latch(|| self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(offset: u64, capacity: u64) -> (File, RegionBackend) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![0xEE; (offset + capacity) as usize], 0).unwrap();
        let backend = RegionBackend::create(file.try_clone().unwrap(), offset, capacity).unwrap();
        (file, backend)
    }

    /// Goal: length and bytes survive; new positions read as zeros over an earlier life's bytes,
    /// also when the store had shrunk; nothing outside of the region is touched.
    #[test]
    fn grows_and_shrinks() {
        let (file, backend) = region(1 << 20, CAPACITY_MIN);
        backend.set_len(100_000).unwrap();
        backend.write(50_000, &[7; 1000]).unwrap();
        backend.set_len(50_500).unwrap();
        backend.set_len(200_000).unwrap();
        let again = RegionBackend::open(file.try_clone().unwrap(), 1 << 20, CAPACITY_MIN).unwrap();
        assert_eq!(again.len().unwrap(), 200_000);
        let mut bytes = vec![1; 200_000];
        again.read(0, &mut bytes).unwrap();
        let sevens = 50_000..50_500;
        for (i, byte) in bytes.iter().enumerate() {
            assert_eq!(*byte, if sevens.contains(&i) { 7 } else { 0 }, "at {i}");
        }
        let mut edge = [0; 16];
        file.read_exact_at(&mut edge, (1 << 20) - 16).unwrap();
        assert_eq!(edge, [0xEE; 16]);
        assert!(again.read(199_999, &mut [0; 2]).is_err());
        assert!(again.write(200_000, &[0]).is_err());
    }

    /// Goal: beyond the capacity is StorageFull and changes nothing.
    #[test]
    fn full_region() {
        let (_, backend) = region(0, CAPACITY_MIN);
        let error = backend.set_len(CAPACITY_MIN).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(backend.len().unwrap(), 0);
        backend.set_len(CAPACITY_MIN - DATA_OFFSET).unwrap();
    }

    /// Goal: either header may be damaged, and a new one that is torn leaves the old length; both
    /// damaged are refused.
    #[test]
    fn torn_headers() {
        let (file, backend) = region(0, CAPACITY_MIN);
        backend.set_len(10_000).unwrap();
        let old = backend.header();
        backend.set_len(20_000).unwrap();
        let newest = backend.header().version;
        let open = || RegionBackend::open(file.try_clone().unwrap(), 0, CAPACITY_MIN);
        let damaged = || RegionBackend::headers_damaged(&file, 0, CAPACITY_MIN).unwrap();
        for version in [newest, newest + 1] {
            assert_eq!(damaged(), [false; 2]);
            file.write_all_at(&[0xFF; 5], copy_offset(version) + 20).unwrap();
            assert_eq!(damaged().iter().filter(|damaged| **damaged).count(), 1);
            let again = open().unwrap();
            assert_eq!(again.len().unwrap(), 20_000);
            again.set_len(20_000).unwrap();
        }
        // The growth was cut off in its first header.
        file.write_all_at(RawHeader::new(old).as_bytes(), copy_offset(old.version)).unwrap();
        file.write_all_at(&[0xFF; 5], copy_offset(old.version + 1) + 20).unwrap();
        assert_eq!(open().unwrap().len().unwrap(), 10_000);
        file.write_all_at(&[0xFF; 5], copy_offset(old.version) + 20).unwrap();
        assert!(open().is_err());
    }

    /// Goal: written bytes are counted and the first failure is the last success.
    #[test]
    fn watched() {
        let (_, backend) = region(0, CAPACITY_MIN);
        let written = Arc::new(AtomicU64::new(0));
        let watched = Watched::new(backend, Arc::clone(&written));
        watched.set_len(4096).unwrap();
        watched.write(0, &[1; 100]).unwrap();
        assert_eq!(written.load(Ordering::Relaxed), 4196);
        watched.sync_data().unwrap();
        watched.set_len(1 << 40).unwrap_err();
        assert!(watched.write(0, &[1]).is_err());
        assert_eq!(watched.sync_data().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
