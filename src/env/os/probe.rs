//! What the kernel says of an open disk.

use std::ffi::CStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::{major, minor};

/// The smallest sector that is reckoned with, in bytes.
const SECTOR_MIN: u32 = 512;

mod ioctl {
    nix::ioctl_read!(size64, 0x12, 114, u64);
    nix::ioctl_read_bad!(sector_size, nix::libc::BLKSSZGET, nix::libc::c_int);
    nix::ioctl_read_bad!(read_only, 0x125e, nix::libc::c_int);
}

/// What kind of disk a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Block,
    Regular,
}

impl Kind {
    /// The kind, where it is one.
    pub(super) fn of(metadata: &Metadata) -> Option<Self> {
        let file_type = metadata.file_type();
        if file_type.is_block_device() {
            Some(Self::Block)
        } else {
            file_type.is_file().then_some(Self::Regular)
        }
    }
}

/// The size of an open disk, in bytes. Zero where a device has vanished.
pub(super) fn size(file: impl AsFd, kind: Kind) -> io::Result<u64> {
    let fd = file.as_fd();
    match kind {
        Kind::Block => {
            let mut size = 0;
            // SAFETY: the request writes one u64 to the place given (BLKGETSIZE64).
            unsafe { ioctl::size64(fd.as_raw_fd(), &raw mut size) }?;
            Ok(size)
        }
        Kind::Regular => Ok(nix::sys::stat::fstat(fd)?.st_size.cast_unsigned()),
    }
}

/// The unit of direct I/O on an open disk, in bytes; 0 where a file does not support it.
pub(super) fn sector(file: &File, kind: Kind) -> io::Result<u32> {
    match kind {
        Kind::Block => {
            let mut sector = 0;
            // SAFETY: the request writes one int to the place given (BLKSSZGET).
            unsafe { ioctl::sector_size(file.as_raw_fd(), &raw mut sector) }?;
            Ok(sector.cast_unsigned().max(SECTOR_MIN))
        }
        Kind::Regular => direct_alignment(file),
    }
}

/// What `statx` says of direct I/O; the smallest sector where file system or kernel do not say.
fn direct_alignment(file: &File) -> io::Result<u32> {
    const NO_NAME: &CStr = c"";
    // SAFETY: statx is a plain C struct of integers; all zero is a value of it.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the name is a C string, and the answer a struct of the size that the call fills.
    let failed = unsafe {
        libc::statx(
            file.as_raw_fd(),
            NO_NAME.as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut answer,
        )
    };
    Errno::result(failed)?;
    if answer.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(SECTOR_MIN);
    }
    match answer.stx_dio_offset_align {
        0 => Ok(0),
        offset => Ok(offset.max(answer.stx_dio_mem_align).max(SECTOR_MIN)),
    }
}

/// Whether an open block device refuses writes.
pub(super) fn read_only(file: &File) -> io::Result<bool> {
    let mut read_only = 0;
    // SAFETY: the request writes one int to the place given (BLKROGET).
    unsafe { ioctl::read_only(file.as_raw_fd(), &raw mut read_only) }?;
    Ok(read_only != 0)
}

/// Whether completed writes of a disk need a flush. Where nobody says, they do.
pub(super) fn volatile_cache(metadata: &Metadata, kind: Kind) -> bool {
    match kind {
        // What a file system still has to write of a file's metadata needs one in any case.
        Kind::Regular => true,
        Kind::Block => {
            let device = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
            let directory = PathBuf::from("/sys/dev/block").join(device);
            // A partition has no queue of its own, the disk above it has.
            ["queue/write_cache", "../queue/write_cache"]
                .iter()
                .find_map(|name| fs::read_to_string(directory.join(name)).ok())
                .is_none_or(|cache| cache.trim() != "write through")
        }
    }
}
