//! The device alone: durable writes of a block, one after the other.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use flipside::mds::log::format::BLOCK;
use nix::libc;

/// Bytes of the file that is written to, again and again.
const FILE_LEN: u64 = 64 << 20;

/// Writes to a file in that folder for so long, each block durably and past the page cache where
/// the filesystem can; when each write began is given once it has ended. Gives how long it took.
pub fn durable_writes(dir: &Path, length: Duration, mut ended: impl FnMut(Instant)) -> Duration {
    let path = dir.join("blocks");
    fs::write(&path, vec![0; FILE_LEN as usize]).expect("a new file");
    let open =
        |flags| OpenOptions::new().write(true).custom_flags(libc::O_DSYNC | flags).open(&path);
    let file = open(libc::O_DIRECT).or_else(|_| open(0)).expect("the file");
    file.sync_all().expect("the file is durable");
    let memory = vec![7; 2 * BLOCK];
    let block = &memory[memory.as_ptr().align_offset(BLOCK)..][..BLOCK];
    let start = Instant::now();
    let mut writes = 0;
    while start.elapsed() < length {
        let began = Instant::now();
        file.write_all_at(block, writes * BLOCK as u64 % FILE_LEN).expect("a write");
        ended(began);
        writes += 1;
    }
    let elapsed = start.elapsed();
    fs::remove_file(&path).expect("the file goes");
    elapsed
}
