//! Disks: block devices and regular files, past the page cache, claimed for this process alone.
//!
//! # Contracts
//!
//! - **Claim**: a block device is opened with `O_EXCL`, a regular file is locked as a whole; both
//!   hold as long as any operation on the disk is under way, even after its process was killed.
//!   So when [`OsDisk::open`] has succeeded, nothing of a predecessor can still arrive. A disk that
//!   is only observed ([`OsDisk::observe`]) is not claimed, and whoever has claimed it writes on.
//! - **Alignment**: offsets and lengths are asserted to be whole sectors inside the disk.
//! - **Failure**: nothing is repeated but what the kernel did not begin.

use std::cell::{Cell, OnceCell};
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::libc;

use super::open_error::{DiskOpenError, DiskOpenErrorKind};
use super::probe::{self, Kind};
use crate::env::{Disk, Durability};
use crate::observe::SlowWatch;
use crate::uring::buffers::View;
use crate::uring::{Fd, Ring};

/// How long a claim is tried for: a predecessor that was killed keeps its own until its last
/// operation has ended and the kernel has put its ring away, which took more than two seconds once
/// on a machine with twenty programs to run.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5);
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

/// The largest sector that the formats can do with, in bytes.
const SECTOR_MAX: u32 = 4096;

/// A disk of this machine. Cheap to clone: a handle. The claim ends with the last handle and the
/// last operation.
#[derive(Clone)]
pub struct OsDisk(Rc<Inner>);

struct Inner {
    ring: Ring,
    fd: Fd,
    kind: Kind,
    name: String,
    len: u64,
    sector: u32,
    volatile_cache: bool,
    discard: Cell<DiscardBy>,
    slow: OnceCell<Rc<SlowWatch>>,
}

/// How a range is discarded: the best way that has not failed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiscardBy {
    Command,
    Hole,
    Nothing,
}

impl OsDisk {
    /// Claims a disk and asks the kernel what it is.
    pub async fn open(ring: &Ring, path: &Path) -> Result<Self, DiskOpenError> {
        Self::of(ring, path, claim_patiently(ring, path, Caching::None).await?)
    }

    /// Opens a disk to read it beside the process that has claimed it: writes fail.
    pub fn observe(ring: &Ring, path: &Path) -> Result<Self, DiskOpenError> {
        let fail = |error| DiskOpenError::from_io(path, error);
        let kind = Kind::of(&fs::metadata(path).map_err(fail)?);
        let kind = kind.ok_or_else(|| DiskOpenError::new(DiskOpenErrorKind::NotADisk, path))?;
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
        let file = opened.map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        Self::of(ring, path, (file, kind, metadata))
    }

    /// Asks the kernel what an open disk is.
    fn of(
        ring: &Ring,
        path: &Path,
        (file, kind, metadata): (File, Kind, Metadata),
    ) -> Result<Self, DiskOpenError> {
        let fail = |error| DiskOpenError::from_io(path, error);
        let size = probe::size(&file, kind).map_err(fail)?;
        let sector = probe::sector(&file, kind).map_err(fail)?;
        let refusal = match sector {
            0 => Some(DiskOpenErrorKind::NoDirectIo),
            _ if sector > SECTOR_MAX => Some(DiskOpenErrorKind::SectorTooLarge { sector }),
            _ if size < u64::from(sector) => Some(DiskOpenErrorKind::Empty),
            _ => None,
        };
        if let Some(kind) = refusal {
            return Err(DiskOpenError::new(kind, path));
        }
        assert!(sector.is_power_of_two(), "the kernel's sectors are powers of two");
        Ok(Self(Rc::new(Inner {
            ring: ring.clone(),
            fd: ring.register_file(file),
            kind,
            name: path.display().to_string(),
            len: size - size % u64::from(sector),
            sector,
            volatile_cache: probe::volatile_cache(&metadata, kind),
            discard: Cell::new(if kind == Kind::Block {
                DiscardBy::Command
            } else {
                DiscardBy::Hole
            }),
            slow: OnceCell::new(),
        })))
    }

    /// Whether the disk is a block device rather than a file.
    pub fn is_block_device(&self) -> bool {
        self.0.kind == Kind::Block
    }

    /// Whether the disk has gone, or has lost some of its size, since it was opened.
    pub fn has_vanished(&self) -> bool {
        probe::size(&self.0.fd, self.0.kind).map_or(true, |size| size < self.0.len)
    }

    /// Has `slow` warn about operations from now on.
    ///
    /// # Panics
    /// If the disk is watched already.
    pub fn watch(&self, slow: Rc<SlowWatch>) {
        assert!(self.0.slow.set(slow).is_ok(), "a disk is watched once");
    }

    /// Times `operation`, which is `length` bytes at `offset`, by the turns of the ring.
    async fn timed(
        self,
        stage: &'static str,
        offset: u64,
        length: u64,
        operation: impl Future<Output = io::Result<()>>,
    ) -> io::Result<()> {
        let Inner { ring, slow, name, .. } = &*self.0;
        let Some(slow) = slow.get() else { return operation.await };
        let start_ns = ring.turned_ns();
        let ended = operation.await;
        let elapsed = Duration::from_nanos(ring.turned_ns() - start_ns);
        slow.check(stage, elapsed, format_args!("{name}: {length} bytes at {offset}"));
        ended
    }

    fn check(&self, offset: u64, length: u64) {
        let Inner { name, len, sector, .. } = &*self.0;
        let end = offset.checked_add(length).expect("an operation ends within 2^64 bytes");
        assert!(end <= *len, "an operation ends at {end}, {name} at {len}");
        let sector = u64::from(*sector);
        assert!(
            offset.is_multiple_of(sector) && length.is_multiple_of(sector),
            "{length} bytes at {offset} are not whole sectors of {sector} bytes"
        );
    }

    async fn discard_somehow(self, offset: u64, length: u64) -> io::Result<()> {
        let Inner { ring, fd, discard, name, .. } = &*self.0;
        loop {
            let by = discard.get();
            let ended = match by {
                DiscardBy::Command => ring.discard_blocks(fd, offset, length).await,
                DiscardBy::Hole => ring.punch_hole(fd, offset, length).await,
                // What a discarded range reads as is undefined: leaving it as it is will do.
                DiscardBy::Nothing => return Ok(()),
            };
            match ended.as_ref().map_err(io::Error::raw_os_error) {
                // Not known to this kernel, or to this device.
                Err(Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY | libc::ENOSYS)) => (),
                _ => return ended,
            }
            // Others may have found out meanwhile, and be further on.
            if discard.get() == by {
                let next =
                    if by == DiscardBy::Command { DiscardBy::Hole } else { DiscardBy::Nothing };
                if next == DiscardBy::Nothing {
                    tracing::info!(disk = %name, "the disk cannot discard; it is not asked again");
                }
                discard.set(next);
            }
        }
    }
}

impl Disk for OsDisk {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn len(&self) -> u64 {
        self.0.len
    }

    fn sector(&self) -> u32 {
        self.0.sector
    }

    fn volatile_cache(&self) -> bool {
        self.0.volatile_cache
    }

    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static {
        self.check(offset, view.len() as u64);
        let length = view.len() as u64;
        let read = self.0.ring.read_at(&self.0.fd, offset, view);
        self.clone().timed("disk read", offset, length, read)
    }

    fn write(
        &self,
        offset: u64,
        view: View,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.check(offset, view.len() as u64);
        let length = view.len() as u64;
        let write = self.0.ring.write_at(&self.0.fd, offset, view, durability);
        self.clone().timed("disk write", offset, length, write)
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        // The data and what is needed to find it again; the time of the last change is not.
        let flush = self.0.ring.fsync(&self.0.fd, true);
        self.clone().timed("disk flush", 0, self.0.len, flush)
    }

    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + 'static {
        self.check(offset, length);
        let discard = self.clone().discard_somehow(offset, length);
        self.clone().timed("disk discard", offset, length, discard)
    }
}

/// Whether what is read and written goes through the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caching {
    None,
    Kernel,
}

/// Claims a disk, again and again while another process holds it.
pub(super) async fn claim_patiently(
    ring: &Ring,
    path: &Path,
    caching: Caching,
) -> Result<(File, Kind, Metadata), DiskOpenError> {
    let patience_ns = CLAIM_PATIENCE.as_nanos() as u64;
    let start_ns = ring.now_ns();
    loop {
        match claim(path, caching) {
            Err(error)
                if error.kind == DiskOpenErrorKind::InUse
                    && ring.now_ns() - start_ns < patience_ns =>
            {
                ring.sleep(CLAIM_PAUSE).await;
            }
            claimed => return claimed,
        }
    }
}

fn claim(path: &Path, caching: Caching) -> Result<(File, Kind, Metadata), DiskOpenError> {
    let fail = |error| DiskOpenError::from_io(path, error);
    let not_a_disk = || DiskOpenError::new(DiskOpenErrorKind::NotADisk, path);
    let kind = Kind::of(&fs::metadata(path).map_err(fail)?).ok_or_else(not_a_disk)?;
    // Without O_CREAT the flag means nothing to a regular file, and a claim to a block device.
    let direct = if caching == Caching::None { libc::O_DIRECT } else { 0 };
    let flags = direct | libc::O_EXCL;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| refused(path, kind, error))?;
    let metadata = file.metadata().map_err(fail)?;
    if Kind::of(&metadata) != Some(kind) {
        return Err(not_a_disk());
    }
    match kind {
        // Some devices let themselves be opened for writing and refuse the writes.
        Kind::Block if probe::read_only(&file).map_err(fail)? => {
            Err(DiskOpenError::new(DiskOpenErrorKind::ReadOnly, path))
        }
        Kind::Block => Ok((file, kind, metadata)),
        Kind::Regular => match file.try_lock() {
            Ok(()) => Ok((file, kind, metadata)),
            Err(TryLockError::WouldBlock) => {
                Err(DiskOpenError::new(DiskOpenErrorKind::InUse, path))
            }
            Err(TryLockError::Error(error)) => Err(fail(error)),
        },
    }
}

/// Why a disk could not be opened: some devices that are read-only say that it is forbidden.
fn refused(path: &Path, kind: Kind, error: io::Error) -> DiskOpenError {
    let mut refused = DiskOpenError::from_io(path, error);
    let read_only = || File::open(path).and_then(|file| probe::read_only(&file));
    if refused.kind == DiskOpenErrorKind::Permission
        && kind == Kind::Block
        && read_only().unwrap_or(false)
    {
        refused.kind = DiskOpenErrorKind::ReadOnly;
    }
    refused
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
