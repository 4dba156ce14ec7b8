//! A single-threaded executor: tasks in a slab, and a list of those that are ready.
//!
//! It knows nothing of a ring: [`super::Ring`] drives it between two entries into the kernel, the
//! simulator drives it one chosen task at a time ([`Executor::poll_nth`]).
//!
//! # Contracts
//!
//! - **Threads**: tasks are polled and dropped on the thread that made the executor. Wakers may go
//!   anywhere: a wake on the own thread appends to the ready list without a lock, a wake on
//!   another thread goes through a locked list and the `notify` hook.
//! - **Ordering**: tasks woken on the own thread are ready in the order in which they were woken;
//!   [`Executor::poll_nth`] of 0 keeps that order. A task is on the list at most once.
//! - **Spurious polls**: a waker that outlives its task may wake the next task of the same slot.
//! - **Cancellation**: [`Executor::drop_all`] drops every task where it stands. An executor's tasks
//!   commonly own handles of it; only `drop_all` breaks that ring of ownership.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

use super::owner::OwnerCell;

/// Runs on the thread that wakes a task of another thread's executor.
type Notify = Box<dyn Fn() + Send + Sync>;

/// A single-threaded executor. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Executor(Rc<Inner>);

struct Inner {
    tasks: RefCell<Tasks>,
    ready: Arc<Ready>,
    /// Counts the calls of `drop_all`, so that a task that was being polled meanwhile is dropped.
    epoch: Cell<u64>,
}

#[derive(Default)]
struct Tasks {
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
}

struct Slot {
    /// `None` while the slot is free, and while its task is being polled.
    task: Option<Task>,
    wake: Arc<TaskWake>,
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
}

/// What wakers share with the executor.
struct Ready {
    /// Slots to poll, oldest first.
    local: OwnerCell<VecDeque<u32>>,
    /// Slots woken by other threads, not yet moved to `local`.
    remote: Mutex<Vec<u32>>,
    remote_waiting: AtomicBool,
    notify: Notify,
}

/// One slot's waker.
struct TaskWake {
    slot: u32,
    /// Whether the slot is on one of the lists.
    listed: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Acquire and release: who finds the slot listed hands all it did before to the poll that
        // clears the mark.
        if self.listed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(local) = self.ready.local.get() {
            local.borrow_mut().push_back(self.slot);
            return;
        }
        let mut remote = self.ready.remote.lock().unwrap_or_else(PoisonError::into_inner);
        remote.push(self.slot);
        let first = remote.len() == 1;
        self.ready.remote_waiting.store(true, Ordering::Release);
        drop(remote);
        if first {
            (self.ready.notify)();
        }
    }
}

impl Default for Executor {
    fn default() -> Self {
        Self::new()
    }
}

impl Executor {
    /// An executor that someone polls often enough without being told of wakes by other threads.
    pub fn new() -> Self {
        Self::with_notify(Box::new(|| ()))
    }

    #[must_use]
    /// An executor that calls `notify` on the waking thread when the first task becomes ready
    /// from outside, so that the owner does not sleep through it.
    pub fn with_notify(notify: Notify) -> Self {
        Self(Rc::new(Inner {
            tasks: RefCell::default(),
            ready: Arc::new(Ready {
                local: OwnerCell::new(VecDeque::new()),
                remote: Mutex::default(),
                remote_waiting: AtomicBool::new(false),
                notify,
            }),
            epoch: Cell::new(0),
        }))
    }

    /// Adds a task; it is first polled when its turn on the ready list comes.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn_boxed(Box::pin(task));
    }

    fn spawn_boxed(&self, future: Pin<Box<dyn Future<Output = ()>>>) {
        let mut tasks = self.0.tasks.borrow_mut();
        let index = tasks.free.pop().unwrap_or_else(|| {
            let slot = u32::try_from(tasks.slots.len()).expect("fewer than 2^32 tasks");
            let ready = Arc::clone(&self.0.ready);
            let wake = Arc::new(TaskWake { slot, listed: AtomicBool::new(false), ready });
            tasks.slots.push(Slot { task: None, wake });
            slot
        });
        let slot = &mut tasks.slots[index as usize];
        assert!(slot.task.is_none(), "a slot on the free list holds a task");
        slot.task = Some(Task { future, waker: Waker::from(Arc::clone(&slot.wake)) });
        slot.wake.wake_by_ref();
        tasks.live += 1;
    }

    /// How many tasks there are, ready or not.
    pub fn len(&self) -> usize {
        self.0.tasks.borrow().live
    }

    /// Whether there is no task.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries the ready list has.
    pub fn ready_len(&self) -> usize {
        self.collect_remote();
        self.local().borrow().len()
    }

    /// Polls the task at place `nth` of the ready list, 0 being the one that waits longest, and
    /// says whether there was such an entry.
    pub fn poll_nth(&self, nth: usize) -> bool {
        self.collect_remote();
        let taken = self.local().borrow_mut().remove(nth);
        if let Some(slot) = taken {
            self.poll_slot(slot);
        }
        taken.is_some()
    }

    /// Polls ready tasks in order, those included that become ready meanwhile, but no more than
    /// `limit`. Says how many it polled.
    pub fn run(&self, limit: usize) -> usize {
        self.collect_remote();
        let mut polled = 0;
        while polled < limit {
            let Some(slot) = self.local().borrow_mut().pop_front() else { break };
            self.poll_slot(slot);
            polled += 1;
        }
        polled
    }

    /// Polls ready tasks in order until none is ready.
    pub fn run_until_stalled(&self) {
        while self.run(usize::MAX) > 0 {}
    }

    /// Drops every task where it stands: what a crash does. Tasks that were spawned by the drop of
    /// others go too.
    pub fn drop_all(&self) {
        self.0.epoch.set(self.0.epoch.get() + 1);
        loop {
            // The destructors run without the borrow: they may wake and spawn.
            let tasks = self.0.tasks.borrow_mut().take_all();
            if tasks.is_empty() {
                break;
            }
        }
    }

    fn local(&self) -> &RefCell<VecDeque<u32>> {
        self.0.ready.local.get().expect("an executor's handles stay on its thread")
    }

    /// Moves what other threads woke to the ready list.
    fn collect_remote(&self) {
        let ready = &self.0.ready;
        // Acquire pairs with the release in `wake_by_ref`; a wake missed here has called `notify`
        // or found one before it that did.
        if ready.remote_waiting.load(Ordering::Acquire) {
            let mut remote = ready.remote.lock().unwrap_or_else(PoisonError::into_inner);
            ready.remote_waiting.store(false, Ordering::Relaxed);
            self.local().borrow_mut().extend(remote.drain(..));
        }
    }

    fn poll_slot(&self, index: u32) {
        let mut tasks = self.0.tasks.borrow_mut();
        let slot = &mut tasks.slots[index as usize];
        // Cleared before the poll: a wake during the poll lists the task again.
        slot.wake.listed.swap(false, Ordering::AcqRel);
        let Some(mut task) = slot.task.take() else { return };
        drop(tasks);

        let epoch = self.0.epoch.get();
        let polled = task.future.as_mut().poll(&mut Context::from_waker(&task.waker));
        let keep = polled.is_pending() && epoch == self.0.epoch.get();
        if keep {
            self.0.tasks.borrow_mut().slots[index as usize].task = Some(task);
        } else {
            // Dropped before the slot is free and without the borrow: its destructors may spawn.
            drop(task);
            self.0.tasks.borrow_mut().release(index);
        }
    }
}

impl Tasks {
    fn take_all(&mut self) -> Vec<Task> {
        let mut tasks = Vec::with_capacity(self.live);
        for index in 0..self.slots.len() {
            if let Some(task) = self.slots[index].task.take() {
                tasks.push(task);
                self.release(index as u32);
            }
        }
        tasks
    }

    fn release(&mut self, index: u32) {
        assert!(self.live > 0, "more tasks ended than were spawned");
        self.live -= 1;
        self.free.push(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Poll;
    use tokio::sync::{Notify, oneshot};

    /// Goal: tasks run in the order of their wakes, and one that waits is not polled again.
    #[test]
    fn ready_tasks_run_in_order() {
        let executor = Executor::new();
        let log = Rc::new(RefCell::new(Vec::new()));
        let gate = Rc::new(Notify::new());
        for name in 0..3 {
            let (log, gate) = (Rc::clone(&log), Rc::clone(&gate));
            executor.spawn(async move {
                log.borrow_mut().push(name);
                gate.notified().await;
                log.borrow_mut().push(10 + name);
            });
        }
        executor.run_until_stalled();
        assert_eq!(*log.borrow(), [0, 1, 2]);
        assert_eq!((executor.len(), executor.ready_len()), (3, 0));
        gate.notify_waiters();
        executor.run_until_stalled();
        assert_eq!(*log.borrow(), [0, 1, 2, 10, 11, 12]);
        assert!(executor.is_empty());
    }

    /// Goal: the simulator can poll ready tasks in any order.
    #[test]
    fn the_next_task_can_be_chosen() {
        let executor = Executor::new();
        let log = Rc::new(RefCell::new(Vec::new()));
        for name in 0..3 {
            let log = Rc::clone(&log);
            executor.spawn(async move { log.borrow_mut().push(name) });
        }
        assert_eq!(executor.ready_len(), 3);
        assert!(executor.poll_nth(2) && executor.poll_nth(0) && executor.poll_nth(0));
        assert!(!executor.poll_nth(0));
        assert_eq!(*log.borrow(), [2, 0, 1]);
    }

    /// Goal: slots are used again, and a waker of the former task does no harm to the next.
    #[test]
    fn a_stale_waker_only_polls_in_vain() {
        let executor = Executor::new();
        let kept: Rc<RefCell<Option<Waker>>> = Rc::default();
        let inner = Rc::clone(&kept);
        executor.spawn(std::future::poll_fn(move |cx| {
            *inner.borrow_mut() = Some(cx.waker().clone());
            Poll::Ready(())
        }));
        executor.run_until_stalled();
        let (sender, receiver) = oneshot::channel::<()>();
        executor.spawn(async move { receiver.await.unwrap() });
        executor.run_until_stalled();
        kept.borrow().as_ref().unwrap().wake_by_ref();
        executor.run_until_stalled();
        assert_eq!(executor.len(), 1);
        sender.send(()).unwrap();
        executor.run_until_stalled();
        assert_eq!((executor.len(), executor.0.tasks.borrow().slots.len()), (0, 1));
    }

    /// Goal: a crash drops all tasks, also the one that asks for it and those spawned by drops.
    #[test]
    fn drop_all_leaves_nothing() {
        struct SpawnsWhenDropped(Executor);
        impl Drop for SpawnsWhenDropped {
            fn drop(&mut self) {
                self.0.spawn(async {});
            }
        }
        let executor = Executor::new();
        for _ in 0..3 {
            let guard = SpawnsWhenDropped(executor.clone());
            executor.spawn(async move {
                std::future::pending::<()>().await;
                drop(guard);
            });
        }
        let handle = executor.clone();
        executor.spawn(async move {
            handle.drop_all();
            std::future::pending::<()>().await;
        });
        executor.run_until_stalled();
        assert!(executor.is_empty());
        assert_eq!(Rc::strong_count(&executor.0), 1);
    }

    /// Goal: wakes from other threads arrive, each exactly once however many threads wake at once.
    #[test]
    fn wakes_cross_threads() {
        const THREADS: usize = 4;
        const ROUNDS: usize = 500;
        let notified = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&notified);
        let executor = Executor::with_notify(Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        let mut senders = Vec::new();
        for _ in 0..THREADS {
            let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<usize>();
            senders.push(sender);
            executor.spawn(async move {
                for round in 0..ROUNDS {
                    assert_eq!(receiver.recv().await, Some(round));
                }
                assert_eq!(receiver.recv().await, None);
            });
        }
        // All of them wait: whatever is sent has to wake.
        executor.run_until_stalled();
        let send_all = |sender: tokio::sync::mpsc::UnboundedSender<usize>| {
            std::thread::spawn(move || (0..ROUNDS).for_each(|round| sender.send(round).unwrap()))
        };
        let threads: Vec<_> = senders.into_iter().map(send_all).collect();
        while !executor.is_empty() {
            executor.run_until_stalled();
            std::thread::yield_now();
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(notified.load(Ordering::Relaxed) > 0);
    }

    /// Goal: a waker may outlive the executor and die on another thread.
    #[test]
    fn a_waker_may_outlive_its_executor() {
        let executor = Executor::new();
        let (sender, receiver) = std::sync::mpsc::channel();
        executor.spawn(std::future::poll_fn(move |cx| {
            sender.send(cx.waker().clone()).unwrap();
            Poll::Pending
        }));
        executor.run_until_stalled();
        let waker = receiver.recv().unwrap();
        drop(executor);
        std::thread::spawn(move || waker.wake()).join().unwrap();
    }
}
