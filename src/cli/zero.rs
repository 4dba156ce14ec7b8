//! Zeroes parts of a device, by the device's own means where it has them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::format::layout::{SECTOR_MAX, Span};

/// Alignment of what is zeroed, in bytes: devices zero whole sectors.
pub const ALIGN: u64 = SECTOR_MAX as u64;
/// Zeros written at a time where the device must be written to.
const CHUNK: u64 = 1 << 20;

/// Makes the parts read as zeros, durably.
pub fn zero(path: &Path, parts: &[Span]) -> Result<()> {
    let failed = || format!("{} cannot be zeroed", path.display());
    let file = OpenOptions::new().write(true).open(path).with_context(failed)?;
    let total = parts.iter().map(|part| part.len).sum();
    let progress = ProgressBar::new(total).with_message(format!("zeroing {}", path.display()));
    progress.set_style(
        ProgressStyle::with_template("{msg} {bar:30} {bytes} of {total_bytes}")
            .expect("the template is a constant"),
    );
    for part in parts {
        if !zero_at_once(&file, *part).with_context(failed)? {
            write_zeros(&file, *part, &progress).with_context(failed)?;
        }
    }
    progress.finish_and_clear();
    file.sync_all().with_context(failed)
}

/// Lets the file system or the device do it; `false` where neither can.
fn zero_at_once(file: &File, part: Span) -> io::Result<bool> {
    let offset = i64::try_from(part.offset).map_err(io::Error::other)?;
    let len = i64::try_from(part.len).map_err(io::Error::other)?;
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    // A file on a file system that knows no zeroed ranges may still have holes.
    let ways = [FallocateFlags::FALLOC_FL_ZERO_RANGE, FallocateFlags::FALLOC_FL_PUNCH_HOLE];
    for way in ways {
        match fallocate(file, way | keep, offset, len) {
            Ok(()) => return Ok(true),
            Err(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENODEV | Errno::ENOSYS) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(false)
}

fn write_zeros(file: &File, part: Span, progress: &ProgressBar) -> io::Result<()> {
    let zeros = vec![0; CHUNK as usize];
    let mut offset = part.offset;
    while offset < part.end() {
        let len = CHUNK.min(part.end() - offset);
        file.write_all_at(zeros.get(..len as usize).expect("no longer than a chunk"), offset)?;
        progress.inc(len);
        offset += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: both ways zero exactly what they were told to, and keep the size.
    #[test]
    fn exactly_the_parts_are_zeroed() {
        let parts = [Span { offset: 4096, len: 8192 }, Span { offset: 2 << 20, len: 3 << 19 }];
        let size = 4 << 20;
        for by_hand in [false, true] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(&file, vec![0xEE; size]).unwrap();
            if by_hand {
                for part in parts {
                    write_zeros(file.as_file(), part, &ProgressBar::hidden()).unwrap();
                }
            } else {
                zero(file.path(), &parts).unwrap();
            }
            let bytes = std::fs::read(&file).unwrap();
            assert_eq!(bytes.len(), size);
            for (i, byte) in (0..).zip(bytes) {
                let inside = parts.iter().any(|part| (part.offset..part.end()).contains(&i));
                assert_eq!(byte == 0, inside, "at {i}");
            }
        }
    }
}
