//! Flushes of a device past its latch: those of the embedded metadata server, which has threads and
//! handles of its own. One that fails may take with it what others have in the device's cache.
//!
//! # Contracts
//!
//! - **Failure**: the first one is final, here and in the [`super::latch`] of the device, whichever
//!   of the two it went through.
//! - **Ordering**: none is under way together with another, or with a flush or a durable write
//!   through the latch ‡. Of two at once the one that fails may take data with it that the other
//!   then reports as durable.
//! - **Unheard**: it is said when the first begins, and when the last one under way has succeeded;
//!   after a failure it stays said.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::RwLock;

/// Who is told that flushes are under way, and that none is.
type Say = Box<dyn Fn(bool) + Send + Sync>;

/// The flushes of a device by others.
pub struct Aside {
    gate: Arc<RwLock<()>>,
    under_way: Mutex<u32>,
    failed: OnceLock<String>,
    say: Say,
}

impl fmt::Debug for Aside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aside").field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl Aside {
    /// None yet; `say` is told.
    pub fn new(say: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self {
            gate: Arc::default(),
            under_way: Mutex::default(),
            failed: OnceLock::new(),
            say: Box::new(say),
        }
    }

    /// Of a device where this process caches nothing else.
    pub fn alone() -> Self {
        Self::new(|_| {})
    }

    /// One is about to begin.
    pub fn begins(&self) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        *under_way += 1;
        if *under_way == 1 {
            (self.say)(true);
        }
    }

    /// One has ended so.
    pub fn ended(&self, ended: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &ended {
            self.fail(&error.to_string());
            return ended;
        }
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        *under_way -= 1;
        if *under_way == 0 {
            (self.say)(false);
        }
        ended
    }

    /// Makes one, when none is under way. Blocks until then: not for the thread of the latch once
    /// that may have one under way.
    pub fn flush(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.begins();
        let _alone = self.gate.blocking_write();
        let synced = match self.failure() {
            Some(cause) => Err(io::Error::other(cause.to_owned())),
            None => sync(),
        };
        self.ended(synced)
    }

    /// Shared by those who flush through the latch; here each is alone.
    pub(super) fn gate(&self) -> Arc<RwLock<()>> {
        Arc::clone(&self.gate)
    }

    /// A flush through the latch has failed so.
    pub(super) fn fail(&self, cause: &str) {
        // The first is as good.
        let _ = self.failed.set(cause.to_owned());
    }

    /// How the first failure was told.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Goal: it is said as long as any is under way, and for good after a failure.
    #[test]
    fn a_failure_stays() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&said);
        let aside = Aside::new(move |flushing| told.lock().unwrap().push(flushing));
        aside.begins();
        aside.begins();
        aside.ended(Ok(())).unwrap();
        assert_eq!(*said.lock().unwrap(), [true]);
        aside.ended(Ok(())).unwrap();
        assert_eq!((aside.failure(), &*said.lock().unwrap()), (None, &vec![true, false]));
        aside.begins();
        aside.begins();
        aside.ended(Err(io::Error::other("lost"))).unwrap_err();
        aside.ended(Ok(())).unwrap();
        assert_eq!(aside.failure(), Some("lost"));
        assert_eq!(*said.lock().unwrap(), [true, false, true]);
    }

    /// Goal: a flush waits for its turn, and is not made after a failure of another.
    #[test]
    fn one_at_a_time() {
        let aside = Arc::new(Aside::alone());
        let through_the_latch = aside.gate().try_read_owned().unwrap();
        let flushing = thread::spawn({
            let aside = Arc::clone(&aside);
            move || aside.flush(|| panic!("it was not to be made"))
        });
        aside.fail("lost");
        drop(through_the_latch);
        assert_eq!(flushing.join().unwrap().unwrap_err().to_string(), "lost");
    }
}
