//! Load made on the ring itself, to measure what stands beneath the sockets: a device alone, or a
//! volume of the engine on it, by the same code.
//!
//! | file | what is in it |
//! | --- | --- |
//! | [`case`](mod@case) | what is asked for, and the standard cases |
//! | [`places`] | which place comes next: in order, at random, Zipfian |
//! | [`target`] | what is loaded |
//! | [`figure`] | what was measured |
//!
//! # Contracts
//!
//! - **Equality**: everything counted against one target is counted against the other: buffers from
//!   the same pool, one task a request in flight, two looks at the clock a request.
//! - **End**: a case ends when its time is over and every request of it was answered, or after the
//!   first error, which is returned.

pub mod case;
pub mod figure;
pub mod places;
pub mod target;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};
use tokio::sync::Notify;

pub use case::{Case, Direction, Flush, Order};
pub use figure::Figure;
use places::Places;
pub use target::{LoadError, Target};

use crate::env::sim::rng::Rng;
use crate::env::{Env, Moment};

/// One case under way.
struct Load<E: Env, T: Target> {
    env: E,
    target: T,
    case: Case,
    until: Moment,
    places: RefCell<Places>,
    figure: RefCell<Figure>,
    unflushed: Cell<u32>,
    failed: RefCell<Option<LoadError>>,
    /// Workers that have not ended.
    left: Cell<u32>,
    ended: Notify,
}

/// Loads the first `size` bytes of `target` for `duration`, with places drawn from `seed`.
pub async fn run<E: Env, T: Target>(
    env: &E,
    target: &T,
    case: Case,
    size: u64,
    duration: Duration,
    seed: u64,
) -> Result<Figure, LoadError> {
    let begun = env.now();
    let (user, system) = processor_time();
    let load = Rc::new(Load {
        env: env.clone(),
        target: target.clone(),
        case,
        until: Moment(begun.0 + duration.as_nanos() as u64),
        places: RefCell::new(Places::new(case.order, size / u64::from(case.block), Rng::new(seed))),
        figure: RefCell::new(Figure::new(case)),
        unflushed: Cell::new(0),
        failed: RefCell::new(None),
        left: Cell::new(case.depth),
        ended: Notify::new(),
    });
    for _ in 0..case.depth {
        let load = Rc::clone(&load);
        env.spawn(async move { load.work().await });
    }
    load.ended.notified().await;
    if let Some(error) = load.failed.take() {
        return Err(error);
    }
    let mut figure = load.figure.replace(Figure::new(case));
    let (user_now, system_now) = processor_time();
    figure.elapsed = env.now().since(begun);
    figure.user = user_now.saturating_sub(user);
    figure.system = system_now.saturating_sub(system);
    Ok(figure)
}

impl<E: Env, T: Target> Load<E, T> {
    /// One request after the other until the time is over.
    async fn work(&self) {
        while self.env.now() < self.until && self.failed.borrow().is_none() {
            if let Err(error) = self.request().await {
                self.failed.borrow_mut().get_or_insert(error);
            }
        }
        self.left.set(self.left.get() - 1);
        if self.left.get() == 0 {
            self.ended.notify_one();
        }
    }

    async fn request(&self) -> Result<(), LoadError> {
        let Case { block, direction, flush, .. } = self.case;
        let place = self.places.borrow_mut().draw();
        let offset = place * u64::from(block);
        let mut buf = self.env.buffers().acquire(block as usize).await;
        let begun = self.env.now();
        match direction {
            Direction::Read => drop(self.target.read(offset, buf, block).await?),
            Direction::Write => {
                buf.as_mut_slice()[..8].copy_from_slice(&begun.0.to_le_bytes());
                self.target.write(offset, buf, block).await?;
            }
        }
        if flush == Flush::Each {
            self.target.flush().await?;
        }
        self.figure.borrow_mut().note(self.env.now().since(begun));
        if let Flush::Every(count) = flush {
            self.unflushed.set(self.unflushed.get() + 1);
            if self.unflushed.get() == count {
                self.unflushed.set(0);
                self.target.flush().await?;
            }
        }
        Ok(())
    }
}

/// What this thread has used of its processor: in the program, and in the kernel.
fn processor_time() -> (Duration, Duration) {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("Linux knows a thread's usage");
    let duration = |time: TimeVal| Duration::from_micros(time.num_microseconds().cast_unsigned());
    (duration(usage.user_time()), duration(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::os::OsEnv;
    use crate::uring::buffers::Buf;
    use crate::uring::buffers::{ARENA_BLOCK, BufferPool};
    use crate::uring::{Ring, RingOptions};

    /// Counts what is asked of it, and fails at a write that it is told of.
    #[derive(Clone, Default)]
    struct Counted(Rc<[Cell<u64>; 3]>, Option<u64>);

    impl Target for Counted {
        async fn read(&self, _: u64, buf: Buf, _: u32) -> Result<Buf, LoadError> {
            self.0[0].set(self.0[0].get() + 1);
            Ok(buf)
        }

        async fn write(&self, _: u64, _: Buf, _: u32) -> Result<(), LoadError> {
            self.0[1].set(self.0[1].get() + 1);
            if self.1 == Some(self.0[1].get()) { Err(LoadError("no".into())) } else { Ok(()) }
        }

        async fn flush(&self) -> Result<(), LoadError> {
            self.0[2].set(self.0[2].get() + 1);
            Ok(())
        }
    }

    fn load(target: &Counted, case: Case) -> Result<Figure, LoadError> {
        let ring = Ring::new(&RingOptions::default()).unwrap();
        let env = OsEnv::new(ring.clone(), BufferPool::new(ARENA_BLOCK, ARENA_BLOCK).unwrap());
        let target = target.clone();
        let loaded = ring.block_on(async move {
            run(&env, &target, case, 1 << 20, Duration::from_millis(20), 1).await
        });
        ring.shutdown();
        loaded
    }

    /// Goal: every request is counted once, flushes come as often as the case says, and an error
    /// ends it.
    #[test]
    fn requests_are_counted() {
        let case = Case { flush: Flush::Every(4), block: 4096, ..case::STANDARD[0] };
        assert_eq!(case.direction, Direction::Write);
        let target = Counted::default();
        let figure = load(&target, case).unwrap();
        let [reads, writes, flushes] = [0, 1, 2].map(|kind| target.0[kind].get());
        assert_eq!((reads, writes, flushes), (0, figure.requests(), writes / 4));
        assert!(writes > 0);
        let failing = Counted(Rc::default(), Some(3));
        assert_eq!(load(&failing, case).unwrap_err().to_string(), "no");
    }
}
