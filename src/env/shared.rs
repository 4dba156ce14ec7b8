//! Memory that outlives the process, and not the machine: what a warm restart goes by (design
//! section 4, two kinds of crash).
//!
//! # Contracts
//!
//! - **Ordering**: at a process's death all of its stores up to some instant are there, and none
//!   that came later in the program. Nothing needs to be flushed.
//! - **Atomicity**: [`SharedMemory::store`] is there wholly or not at all; [`SharedMemory::write`]
//!   may be there in part.
//! - **Ownership**: one process at a time uses it: the one that has claimed the pool's devices.

use std::io;
use std::sync::Arc;

/// Memory that outlives the process.
pub trait SharedMemory: 'static {
    /// How many bytes there are.
    fn len(&self) -> u64;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Has at least so many bytes from now on, the new ones zero; an error where there is no room.
    fn grow(&self, len: u64) -> io::Result<()>;
    /// Fills `out` from byte `at` on.
    fn read(&self, at: u64, out: &mut [u8]);
    /// The eight bytes at `at`, as [`SharedMemory::store`] stored them.
    fn load(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        self.read(at, &mut word);
        u64::from_le_bytes(word)
    }
    /// Changes bytes from `at` on.
    fn write(&self, at: u64, bytes: &[u8]);
    /// Changes eight bytes at `at`, a multiple of eight, at once.
    fn store(&self, at: u64, word: u64);
}

impl<T: SharedMemory> SharedMemory for Arc<T> {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        (**self).grow(len)
    }

    fn read(&self, at: u64, out: &mut [u8]) {
        (**self).read(at, out);
    }

    fn load(&self, at: u64) -> u64 {
        (**self).load(at)
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        (**self).write(at, bytes);
    }

    fn store(&self, at: u64, word: u64) {
        (**self).store(at, word);
    }
}
