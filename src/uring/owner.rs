//! A cell that only the thread that made it can open.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells threads apart for the whole life of the process; unlike the address of a thread's local
/// memory it is never used again.
fn thread_token() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static TOKEN: Cell<u64> = const { Cell::new(0) });
    TOKEN.with(|token| {
        if token.get() == 0 {
            token.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        token.get()
    })
}

/// A value that may be shared between threads and opened by one of them.
pub struct OwnerCell<T> {
    owner: u64,
    value: RefCell<T>,
}

// SAFETY: the only way to the value is `get`, which refuses every thread but one. The reference it
// gives cannot leave that thread, since `RefCell` is not `Sync`. The value may be dropped by any
// thread, for which `T: Send` is enough.
unsafe impl<T: Send> Sync for OwnerCell<T> {}

impl<T> OwnerCell<T> {
    /// A cell that this thread can open.
    pub fn new(value: T) -> Self {
        Self { owner: thread_token(), value: RefCell::new(value) }
    }

    /// The value, on the thread that made the cell.
    pub fn get(&self) -> Option<&RefCell<T>> {
        (self.owner == thread_token()).then_some(&self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the owner gets in, nobody else does.
    #[test]
    fn only_the_owner_opens() {
        let cell = std::sync::Arc::new(OwnerCell::new(1));
        *cell.get().unwrap().borrow_mut() += 1;
        let other = std::sync::Arc::clone(&cell);
        assert!(std::thread::spawn(move || other.get().is_none()).join().unwrap());
        assert_eq!(*cell.get().unwrap().borrow(), 2);
    }
}
