//! Memory that outlives a process: a crash of the machine loses it, and one of the process alone
//! keeps every store that came before it.

use super::SimEnv;
use super::calls::Fate;
use crate::env::shared::SharedMemory;

/// The memory of one operating period. Each change is a call at which a crash may strike.
pub struct SimShared(pub(super) SimEnv);

impl SimShared {
    /// Changes bytes; where the crash strikes here, a part of them.
    fn change(&self, what: &str, at: u64, bytes: &[u8]) {
        let mut world = self.0.0.world.borrow_mut();
        let len = bytes.len();
        let changed = match world.call(what, at, len as u64) {
            Fate::Live => len,
            // A word is there or not; of more, whole words in their order.
            Fate::Struck => world.rng.below(len as u64 / 8 + 1) as usize * 8,
            Fate::Dead => 0,
        };
        let start = at as usize;
        world.memory[start..start + changed].copy_from_slice(&bytes[..changed]);
    }
}

impl SharedMemory for SimShared {
    fn len(&self) -> u64 {
        self.0.0.world.borrow().memory.len() as u64
    }

    fn grow(&self, len: u64) -> std::io::Result<()> {
        let mut world = self.0.0.world.borrow_mut();
        if len as usize > world.memory.len() {
            world.memory.resize(len as usize, 0);
        }
        Ok(())
    }

    fn read(&self, at: u64, out: &mut [u8]) {
        let start = at as usize;
        out.copy_from_slice(&self.0.0.world.borrow().memory[start..start + out.len()]);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.change("shared write", at, bytes);
    }

    fn store(&self, at: u64, word: u64) {
        self.change("shared store", at, &word.to_le_bytes());
    }
}
