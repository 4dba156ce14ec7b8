//! A disk for the unit tests of this room: it notes what is asked of it, and fails on demand.

use std::cell::RefCell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{Disk, Durability};
use crate::uring::buffers::{ARENA_BLOCK, BufferPool, View};

#[derive(Clone)]
pub struct FakeDisk(Rc<Inner>);

struct Inner {
    len: u64,
    volatile_cache: bool,
    log: RefCell<Vec<String>>,
    fail: RefCell<Option<&'static str>>,
}

impl FakeDisk {
    pub fn new(len: u64, volatile_cache: bool) -> Self {
        let (log, fail) = (RefCell::default(), RefCell::default());
        Self(Rc::new(Inner { len, volatile_cache, log, fail }))
    }

    /// The next operation fails with this reason.
    pub fn fail_next(&self, reason: &'static str) {
        *self.0.fail.borrow_mut() = Some(reason);
    }

    /// What was asked of the disk, in order.
    pub fn log(&self) -> Vec<String> {
        self.0.log.borrow().clone()
    }

    fn answer(&self, asked: String) -> impl Future<Output = io::Result<()>> + 'static {
        let disk = self.clone();
        async move {
            disk.0.log.borrow_mut().push(asked);
            disk.0.fail.borrow_mut().take().map_or(Ok(()), |reason| Err(io::Error::other(reason)))
        }
    }
}

impl Disk for FakeDisk {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn len(&self) -> u64 {
        self.0.len
    }

    fn sector(&self) -> u32 {
        512
    }

    fn volatile_cache(&self) -> bool {
        self.0.volatile_cache
    }

    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static {
        self.answer(format!("read {offset}+{}", view.len()))
    }

    fn write(
        &self,
        offset: u64,
        view: View,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let how = if durability == Durability::Durable { "durable write" } else { "write" };
        self.answer(format!("{how} {offset}+{}", view.len()))
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        self.answer("flush".to_owned())
    }

    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + 'static {
        self.answer(format!("discard {offset}+{length}"))
    }
}

/// Runs a future that never waits.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the future waits for something"),
    }
}

/// A pool that is large enough for a unit test.
pub fn buffers() -> BufferPool {
    BufferPool::new(ARENA_BLOCK, ARENA_BLOCK).unwrap()
}
