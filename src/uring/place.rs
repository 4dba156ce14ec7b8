//! Places in the ring's table of registered buffers for what others register there.

use std::rc::{Rc, Weak};

use super::ring::{Core, Ring};

/// A place in the ring's table of registered buffers, where the kernel may register memory of
/// others. It is given out again when this is dropped; what is registered there then stays until
/// whoever registered it takes it back.
#[derive(Debug)]
pub struct BufferPlace {
    number: u16,
    core: Weak<Core>,
}

impl BufferPlace {
    /// The number that operations name the memory by.
    pub fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for BufferPlace {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.buffer_places.borrow_mut().push(self.number);
        }
    }
}

impl Ring {
    /// Whether there is a place for memory of others: with a kernel of 5.19 or later, once the
    /// ring's own buffers are registered, until all are given out.
    pub fn has_buffer_place(&self) -> bool {
        !self.core().buffer_places.borrow().is_empty()
    }

    /// A place for memory of others, if there is one left.
    pub fn buffer_place(&self) -> Option<BufferPlace> {
        let number = self.core().buffer_places.borrow_mut().pop()?;
        Some(BufferPlace { number, core: Rc::downgrade(self.core()) })
    }
}
