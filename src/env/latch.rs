//! A disk that fails for good with its first failed write or flush.
//!
//! # Contracts
//!
//! - **Failure**: after a write or a flush has failed, every later write, flush and discard fails
//!   with the reason of the first, and so does every one under way when it ends. After a failed
//!   flush nobody knows which earlier writes are durable, and the kernel may report success for a
//!   repetition: nothing that comes after may be believed. Reads go on, and latch nothing.
//! - **Ordering**: one flush at a time, shared by all who asked before it began ‡. Of two at once
//!   the one that fails may take data with it that the other then reports as durable, and whoever
//!   awaits that other may be heard first: its success would be believed. Neither it nor a durable
//!   write, which may be one, is under way together with a flush by others ([`super::aside`]).
//! - **Cancellation**: a flush or a durable write that is given up half-way latches: nobody heard
//!   how it ended.
//! - **Scope**: the latch is of the handle and its clones; it does not outlive the process.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockReadGuard};

use super::aside::Aside;
use super::{Disk, Durability};
use crate::mutants::{Mutant, mutated};
use crate::uring::buffers::View;

/// A disk whose first failed write or flush is its last. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Latching<D> {
    disk: D,
    latch: Rc<OnceCell<Latched>>,
    flushes: Rc<Flushes>,
}

/// The flushes of a disk, which are numbered.
struct Flushes {
    begun: Cell<u64>,
    ended: Cell<u64>,
    turn: Arc<Mutex<()>>,
    watch: RefCell<Option<Rc<dyn FlushWatch>>>,
    aside: Arc<Aside>,
}

/// Is told of the flushes of a disk, whoever asks for them, durable writes among them: where a disk
/// has no such thing, the system flushes it after each.
pub trait FlushWatch {
    /// One begins.
    fn begins(&self);
    /// One has succeeded, and was heard. One that failed, or that nobody hears, never ends.
    fn succeeded(&self);
}

/// Keeps flushes by others away.
type Pass = OwnedRwLockReadGuard<()>;

/// A flush or a durable write under way; latches where it is dropped before its end was heard.
struct UnderWay<D: Disk> {
    latching: Option<Latching<D>>,
    operation: FailedOperation,
}

impl<D: Disk> UnderWay<D> {
    /// It has ended so; how that is to be reported.
    fn heard(mut self, ended: io::Result<()>) -> io::Result<()> {
        let latching = self.latching.take().expect("it ends once");
        let flushes = &latching.flushes;
        if self.operation == FailedOperation::Flush {
            flushes.ended.set(flushes.begun.get());
        }
        latching.settle(self.operation, ended)?;
        if let Some(watch) = &*flushes.watch.borrow() {
            watch.succeeded();
        }
        Ok(())
    }
}

impl<D: Disk> Drop for UnderWay<D> {
    fn drop(&mut self) {
        if let Some(latching) = &self.latching {
            // Nobody is left to be told; later writes are.
            let _ = latching.settle(self.operation, Err(io::Error::other("given up")));
        }
    }
}

/// When a flush can begin.
enum Turn<D: Disk, F> {
    /// It has begun. Where it is given up that latches before another begins: fields are dropped
    /// in their order.
    Now(UnderWay<D>, F, (OwnedMutexGuard<()>, Pass)),
    /// After the one under way; any that begins from that number on will do.
    Later(u64),
}

/// When a write can begin.
enum Writing<D: Disk, F> {
    /// It has begun, with what a durable one has; dropped as that of [`Turn`].
    Now(Option<UnderWay<D>>, F, Option<Pass>),
    /// After the flush by others that is under way.
    Later(View),
}

/// Why a disk takes no more writes. It is the inner error of what later writes fail with.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{disk} takes no more writes since {operation} failed: {cause}")]
pub struct Latched {
    /// The disk's name.
    pub disk: String,
    /// What failed.
    pub operation: FailedOperation,
    /// What the disk said.
    pub cause: String,
    /// The kind of the first error.
    kind: io::ErrorKind,
}

/// What failed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedOperation {
    /// A write.
    Write {
        /// Where it began, in bytes.
        offset: u64,
        /// How many bytes it had.
        len: usize,
        /// Whether it was one and a flush.
        flushes: bool,
    },
    /// A flush.
    Flush,
    /// A flush by the metadata server, past the latch.
    FlushAside,
    /// The owner's claim to the disk.
    Claim,
}

impl fmt::Display for FailedOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { offset, len, .. } => write!(f, "a write of {len} bytes at {offset}"),
            Self::Flush => f.write_str("a flush"),
            Self::FlushAside => f.write_str("a flush by the metadata server"),
            Self::Claim => f.write_str("the claim to it"),
        }
    }
}

impl Latched {
    fn to_error(&self) -> io::Error {
        io::Error::new(self.kind, self.clone())
    }
}

impl<D: Disk> Latching<D> {
    /// Watches over `disk`, which nobody else flushes.
    pub fn new(disk: D) -> Self {
        Self::beside(disk, Arc::new(Aside::alone()))
    }

    /// Watches over `disk`, where flushes by others and those here go one after another, and the
    /// failure of one is that of all.
    pub fn beside(disk: D, aside: Arc<Aside>) -> Self {
        let flushes = Flushes {
            begun: Cell::default(),
            ended: Cell::default(),
            turn: Arc::default(),
            watch: RefCell::default(),
            aside,
        };
        Self { disk, latch: Rc::default(), flushes: Rc::new(flushes) }
    }

    /// Why the disk takes no more writes, where it does not.
    pub fn latched(&self) -> Option<&Latched> {
        self.latch.get()
    }

    /// Has `watch` be told of all flushes from here on.
    pub fn watch(&self, watch: Rc<dyn FlushWatch>) {
        *self.flushes.watch.borrow_mut() = Some(watch);
    }

    /// Takes no more writes, as the disk is not this owner's any more.
    pub fn fence(&self, reason: &str) {
        // What has latched before is as good.
        let _ = self.settle(FailedOperation::Claim, Err(io::Error::other(reason.to_owned())));
    }

    /// The disk itself.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Begins a flush where none is under way: one under way may have begun too early for what has
    /// completed since.
    #[track_caller]
    fn take_turn(&self) -> Turn<D, impl Future<Output = io::Result<()>> + 'static> {
        let turn = Arc::clone(&self.flushes.turn).try_lock_owned();
        match (turn, self.flushes.aside.gate().try_read_owned()) {
            (Ok(turn), Ok(pass)) => {
                Turn::Now(self.begins(FailedOperation::Flush), self.disk.flush(), (turn, pass))
            }
            _ => Turn::Later(self.flushes.begun.get() + 1),
        }
    }

    /// A flush or a durable write does; it is called that where it fails.
    fn begins(&self, operation: FailedOperation) -> UnderWay<D> {
        if let Some(watch) = &*self.flushes.watch.borrow() {
            watch.begins();
        }
        if operation == FailedOperation::Flush {
            self.flushes.begun.set(self.flushes.begun.get() + 1);
        }
        UnderWay { latching: Some(self.clone()), operation }
    }

    fn check(&self) -> io::Result<()> {
        if let Some(cause) = self.flushes.aside.failure() {
            self.latch(FailedOperation::FlushAside, &io::Error::other(cause.to_owned()));
        }
        self.latch.get().map_or(Ok(()), |latched| Err(latched.to_error()))
    }

    /// Notes how a write or a flush ended, and says how it is to be reported.
    fn settle(&self, operation: FailedOperation, ended: io::Result<()>) -> io::Result<()> {
        if mutated(Mutant::FailedWriteForgotten) {
            return ended;
        }
        if let Err(error) = ended {
            self.latch(operation, &error);
        }
        self.check()
    }

    /// Latches, where that has not been done before.
    fn latch(&self, operation: FailedOperation, error: &io::Error) {
        // Others are told of each: the first may be a write, which has lost nothing of theirs.
        if let FailedOperation::Flush | FailedOperation::Write { flushes: true, .. } = operation {
            self.flushes.aside.fail(&format!("{operation} failed: {error}"));
        }
        if self.latch.get().is_some() {
            return;
        }
        let latched = Latched {
            disk: self.disk.name().to_owned(),
            operation,
            cause: error.to_string(),
            kind: error.kind(),
        };
        tracing::error!("{latched}");
        let set = self.latch.set(latched);
        assert!(set.is_ok(), "a latch that was open is set once");
    }
}

impl<D: Disk> Disk for Latching<D> {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn sector(&self) -> u32 {
        self.disk.sector()
    }

    fn volatile_cache(&self) -> bool {
        self.disk.volatile_cache()
    }

    fn read(&self, offset: u64, view: View) -> impl Future<Output = io::Result<()>> + 'static {
        self.disk.read(offset, view)
    }

    #[track_caller]
    fn write(
        &self,
        offset: u64,
        view: View,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let this = self.clone();
        let flushes = durability == Durability::Durable && self.volatile_cache();
        let operation = FailedOperation::Write { offset, len: view.len(), flushes };
        let pass = flushes.then(|| self.flushes.aside.gate().try_read_owned()).transpose();
        // No closures around what makes it: those do not pass the caller on.
        let writing = match (self.check(), pass) {
            (Ok(()), Ok(pass)) => {
                let under_way = flushes.then(|| self.begins(operation));
                Ok(Writing::Now(under_way, self.disk.write(offset, view, durability), pass))
            }
            (Ok(()), Err(_)) => Ok(Writing::Later(view)),
            (Err(latched), _) => Err(latched),
        };
        async move {
            let (_pass, under_way, ended) = match writing? {
                Writing::Now(under_way, writing, pass) => (pass, under_way, writing.await),
                Writing::Later(view) => {
                    let pass = this.flushes.aside.gate().read_owned().await;
                    this.check()?;
                    let under_way = this.begins(operation);
                    (Some(pass), Some(under_way), this.disk.write(offset, view, durability).await)
                }
            };
            match under_way {
                Some(under_way) => under_way.heard(ended),
                None => this.settle(operation, ended),
            }
        }
    }

    #[track_caller]
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let this = self.clone();
        let turn = match self.check() {
            Ok(()) => Ok(self.take_turn()),
            Err(latched) => Err(latched),
        };
        async move {
            let (_turn, under_way, ended) = match turn? {
                Turn::Now(under_way, flushing, turn) => (turn, under_way, flushing.await),
                Turn::Later(wanted) => {
                    let turn = Arc::clone(&this.flushes.turn).lock_owned().await;
                    let pass = this.flushes.aside.gate().read_owned().await;
                    this.check()?;
                    if this.flushes.ended.get() >= wanted {
                        return Ok(());
                    }
                    let under_way = this.begins(FailedOperation::Flush);
                    ((turn, pass), under_way, this.disk.flush().await)
                }
            };
            under_way.heard(ended)
        }
    }

    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let this = self.clone();
        async move {
            this.check()?;
            this.disk.discard(offset, length).await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::env::fake::{FakeDisk, block_on, buffers};

    /// Goal: the first failure is the reason for all that come after; reads go on.
    #[test]
    fn the_first_failure_is_final() {
        let pool = buffers();
        let mut buf = pool.try_acquire(4096).unwrap();
        let fake = FakeDisk::new(1 << 20, true);
        let disk = Latching::new(fake.clone());
        block_on(disk.write(0, buf.view_all(), Durability::Volatile)).unwrap();
        fake.fail_next("bad sector");
        let first = block_on(disk.write(4096, buf.view_all(), Durability::Volatile)).unwrap_err();
        let text =
            "fake takes no more writes since a write of 4096 bytes at 4096 failed: bad sector";
        assert_eq!(first.to_string(), text);
        for later in [
            block_on(disk.write(8192, buf.view_all(), Durability::Durable)),
            block_on(disk.flush()),
            block_on(disk.clone().discard(0, 4096)),
        ] {
            assert_eq!(later.unwrap_err().to_string(), text);
        }
        block_on(disk.read(0, buf.view_all())).unwrap();
        assert_eq!(fake.log(), ["write 0+4096", "write 4096+4096", "read 0+4096"]);
        assert!(matches!(disk.latched().unwrap().operation, FailedOperation::Write { .. }));
    }

    /// Goal: a flush that fails latches like a write, a read that fails latches nothing.
    #[test]
    fn flushes_latch_and_reads_do_not() {
        let pool = buffers();
        let mut buf = pool.try_acquire(4096).unwrap();
        let fake = FakeDisk::new(1 << 20, true);
        let disk = Latching::new(fake.clone());
        fake.fail_next("unreadable");
        block_on(disk.read(0, buf.view_all())).unwrap_err();
        assert!(disk.latched().is_none());
        fake.fail_next("lost");
        block_on(disk.flush()).unwrap_err();
        assert_eq!(disk.latched().unwrap().operation, FailedOperation::Flush);
    }

    /// Goal: flushes that are asked for during one share the next, which begins when that one has
    /// ended: the failure of one is known before another is believed.
    #[test]
    fn one_flush_at_a_time() {
        let fake = FakeDisk::new(1 << 20, true);
        let disk = Latching::new(fake.clone());
        let turn = Arc::clone(&disk.flushes.turn).try_lock_owned().unwrap();
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(disk.flush())).collect();
        assert!(waiting.iter_mut().all(|flush| flush.now_or_never().is_none()));
        drop(turn);
        waiting.into_iter().for_each(|flush| block_on(flush).unwrap());
        assert_eq!(fake.log(), ["flush"]);
        block_on(disk.flush()).unwrap();
        assert_eq!(fake.log(), ["flush", "flush"]);
    }

    fn beside_others() -> (FakeDisk, Latching<FakeDisk>, Arc<Aside>) {
        let (fake, aside) = (FakeDisk::new(1 << 20, true), Arc::new(Aside::alone()));
        let disk = Latching::beside(fake.clone(), Arc::clone(&aside));
        (fake, disk, aside)
    }

    /// Goal: others flush when neither a flush nor a durable write is under way here, and not after
    /// one that failed or was given up, whatever had failed before.
    #[test]
    fn others_do_not_flush_after_our_failure() {
        let pool = buffers();
        let mut buf = pool.try_acquire(4096).unwrap();
        let kinds = [(false, false), (false, true), (true, false), (true, true)];
        for (durable_write, write_failed_before) in kinds {
            let (fake, disk, aside) = beside_others();
            let under_way: Pin<Box<dyn Future<Output = io::Result<()>>>> = if durable_write {
                Box::pin(disk.write(0, buf.view_all(), Durability::Durable))
            } else {
                Box::pin(disk.flush())
            };
            let others = std::thread::spawn({
                let aside = Arc::clone(&aside);
                move || aside.flush(|| panic!("it comes after one that failed"))
            });
            if write_failed_before {
                fake.fail_next("bad sector");
                let view = buf.view_all();
                block_on(disk.write(4096, view, Durability::Volatile)).unwrap_err();
            }
            drop(under_way);
            let error = others.join().unwrap().unwrap_err();
            assert!(error.to_string().contains("failed: given up"), "{error}");
        }
    }

    /// Goal: flushes and durable writes here wait for a flush by others, and are not made after one
    /// that failed.
    #[test]
    fn nothing_is_made_durable_after_the_failure_of_others() {
        let pool = buffers();
        let mut buf = pool.try_acquire(4096).unwrap();
        let (fake, disk, aside) = beside_others();
        let theirs = aside.gate().try_write_owned().unwrap();
        let mut flush = Box::pin(disk.flush());
        let mut write = Box::pin(disk.write(0, buf.view_all(), Durability::Durable));
        assert!(flush.as_mut().now_or_never().is_none());
        assert!(write.as_mut().now_or_never().is_none());
        aside.ended(Err(io::Error::other("lost"))).unwrap_err();
        drop(theirs);
        for error in [block_on(flush).unwrap_err(), block_on(write).unwrap_err()] {
            assert!(error.to_string().contains("by the metadata server failed: lost"), "{error}");
        }
        assert_eq!(fake.log(), [""; 0]);
    }

    /// Goal: a flush or a durable write whose end nobody heard is believed by nobody; a write that
    /// is not durable is as good as never made.
    #[test]
    fn a_flush_that_is_given_up_latches() {
        let pool = buffers();
        let mut buf = pool.try_acquire(4096).unwrap();
        let disk = Latching::new(FakeDisk::new(1 << 20, true));
        drop(disk.write(0, buf.view_all(), Durability::Volatile));
        drop(disk.flush());
        let error = block_on(disk.flush()).unwrap_err();
        assert!(error.to_string().contains("a flush failed: given up"), "{error}");
        let disk = Latching::new(FakeDisk::new(1 << 20, true));
        drop(disk.write(0, buf.view_all(), Durability::Durable));
        let error = block_on(disk.flush()).unwrap_err();
        assert!(error.to_string().contains("4096 bytes at 0 failed: given up"), "{error}");
    }

    /// Goal: what was under way at the failure of another does not report success.
    #[test]
    fn what_is_under_way_at_a_failure_fails() {
        let pool = buffers();
        let mut buf = pool.try_acquire(4096).unwrap();
        let fake = FakeDisk::new(1 << 20, true);
        let disk = Latching::new(fake.clone());
        let under_way = disk.settle(FailedOperation::Flush, Ok(()));
        under_way.unwrap();
        fake.fail_next("lost");
        block_on(disk.write(0, buf.view_all(), Durability::Volatile)).unwrap_err();
        disk.settle(FailedOperation::Flush, Ok(())).unwrap_err();
    }
}
