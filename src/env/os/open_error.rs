//! Why a disk cannot be used, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc;

/// A disk could not be opened.
#[derive(Debug)]
pub struct DiskOpenError {
    /// What kind of failure it was.
    pub kind: DiskOpenErrorKind,
    /// The disk.
    pub path: PathBuf,
    /// What the kernel said, where it said anything.
    pub source: Option<io::Error>,
}

/// The kinds of [`DiskOpenError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOpenErrorKind {
    /// There is no such file, or no device behind it.
    NotFound,
    /// It is neither a block device nor a regular file.
    NotADisk,
    /// Someone else has claimed it.
    InUse,
    /// It cannot be written.
    ReadOnly,
    /// Its sectors are larger than a block can be.
    SectorTooLarge {
        /// The size of its sectors, in bytes.
        sector: u32,
    },
    /// It has no bytes at all.
    Empty,
    /// This user may not open it.
    Permission,
    /// It cannot be read and written past the page cache.
    NoDirectIo,
    /// Anything else.
    Other,
}

impl DiskOpenError {
    pub(super) fn new(kind: DiskOpenErrorKind, path: &Path) -> Self {
        Self { kind, path: path.to_owned(), source: None }
    }

    /// Names the kind behind an error of opening or asking.
    pub(super) fn from_io(path: &Path, source: io::Error) -> Self {
        use DiskOpenErrorKind as Kind;
        let kind = match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM) => {
                Kind::NotFound
            }
            Some(libc::EISDIR) => Kind::NotADisk,
            Some(libc::EBUSY | libc::ETXTBSY | libc::EWOULDBLOCK) => Kind::InUse,
            Some(libc::EROFS) => Kind::ReadOnly,
            Some(libc::EACCES | libc::EPERM) => Kind::Permission,
            // The only argument that opening can find fault with is O_DIRECT.
            Some(libc::EINVAL | libc::EOPNOTSUPP) => Kind::NoDirectIo,
            _ => Kind::Other,
        };
        Self { kind, path: path.to_owned(), source: Some(source) }
    }
}

impl fmt::Display for DiskOpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use DiskOpenErrorKind as Kind;
        write!(f, "cannot use {}: ", self.path.display())?;
        match self.kind {
            Kind::NotFound => f.write_str(
                "there is no such device or file; check the path (`lsblk` lists block devices), \
                 or create the file first",
            ),
            Kind::NotADisk => f.write_str(
                "it is neither a block device nor a regular file; name a disk, a partition, a \
                 loop device or a file",
            ),
            Kind::InUse => f.write_str(
                "it is in use; stop the target that serves it, or unmount it (`lsblk`, `fuser` \
                 and `lslocks` tell who holds it)",
            ),
            Kind::ReadOnly => f.write_str(
                "it is read-only; make it writable (`blockdev --setrw`, or remount its file \
                 system), or use another",
            ),
            Kind::SectorTooLarge { sector } => write!(
                f,
                "its sectors have {sector} bytes, more than the 4096 that are supported; use \
                 another disk, or format it with smaller sectors"
            ),
            Kind::Empty => f.write_str(
                "it has no bytes; attach a medium, or give the file a size (`truncate -s`)",
            ),
            Kind::Permission => f.write_str(
                "permission denied; run as root or as a member of the group that owns it \
                 (commonly `disk`)",
            ),
            Kind::NoDirectIo => f.write_str(
                "it does not support direct I/O; use a block device, or a file on a file system \
                 that supports it (ext4, xfs)",
            ),
            Kind::Other => match &self.source {
                Some(source) => write!(f, "{source}; see the kernel's log (`dmesg`)"),
                None => f.write_str("the kernel refuses; see its log (`dmesg`)"),
            },
        }
    }
}

impl std::error::Error for DiskOpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
