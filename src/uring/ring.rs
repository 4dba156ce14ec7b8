//! The ring and its loop: one entry into the kernel a turn.
//!
//! # Contracts
//!
//! - **Threads**: a ring, its tasks and its operations stay on one thread; wakers go anywhere.
//! - **Submission**: operations are queued when their future is first polled and go to the kernel
//!   together, at the end of the turn, or earlier when the queue is full.
//! - **Lifetime**: the kernel uses memory that the ring owns. The last handle of a ring waits for
//!   whatever the kernel has not answered. Tasks own handles: see [`Ring::shutdown`].

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::buffers::{BufferPool, REGISTERED_INDEX};
use super::error::RingError;
use super::executor::Executor;
use super::fd::Fd;
use super::lookout::Lookout;
use super::message::Message;
use super::operation::{Operations, Remains};
use super::setup;
use super::timer::{Sleep, Timers};

/// How many polls of tasks there are between two entries into the kernel, at most.
const POLLS_PER_TURN: usize = 256;
/// Places in the table of registered buffers: a pointer each.
const BUFFER_PLACES: u16 = 4096;
/// How many messages are kept for the next one who sends.
const MESSAGES_KEPT: usize = 64;
/// Answers to these are not those of operations.
const TOKEN_WAKE: u64 = u64::MAX;
const TOKEN_CANCEL: u64 = u64::MAX - 1;

/// What a ring is made with.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Operations that can be queued between two entries into the kernel; more need more entries.
    pub entries: u32,
    /// Places in the table of registered files; files beyond it work, a little slower.
    pub files: u32,
    /// How long to look out for answers before a sleep at most, as far as that pays: takes the time
    /// of a wake-up off what is answered soon, and keeps the processor busy for as long.
    pub poll: Duration,
    /// A thread of the kernel takes what is submitted, until so many milliseconds after the last.
    pub kernel_thread: Option<u32>,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { entries: 256, files: 1024, poll: Duration::ZERO, kernel_thread: None }
    }
}

/// A ring with its executor. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Ring(Rc<Core>);

/// What handles, operations and files share. The fields drop in this order: the kernel's end is
/// closed before the memory that was registered with it is freed.
pub(super) struct Core {
    executor: Executor,
    pub(super) operations: RefCell<Operations>,
    pub(super) timers: RefCell<Timers>,
    messages: RefCell<Vec<Message>>,
    /// Free places of the table of registered files.
    places: RefCell<Vec<u32>>,
    /// What ended orphans leave, until it can be dropped.
    remains: RefCell<Vec<Remains>>,
    io: RefCell<IoUring>,
    wake: Arc<EventFd>,
    /// Whether the kernel watches `wake`.
    wake_armed: Cell<bool>,
    /// The pool whose arena is registered.
    registered: RefCell<Option<BufferPool>>,
    /// Free places of the table of registered buffers.
    pub(super) buffer_places: RefCell<Vec<u16>>,
    /// The number of the next ring of buffers.
    next_group: Cell<u16>,
    /// How long to look out for answers before a sleep.
    lookout: Lookout,
    /// When the answers that are being worked on were taken.
    turned_ns: Cell<u64>,
}

impl Ring {
    /// A ring for this thread.
    pub fn new(options: &RingOptions) -> Result<Self, RingError> {
        let io = setup::build(options)?;
        let places = match io.submitter().register_files_sparse(options.files) {
            Ok(()) => (0..options.files).rev().collect(),
            Err(error) => {
                tracing::info!(%error, "files are not registered with the ring: a little slower");
                Vec::new()
            }
        };
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| RingError::from_setup(errno.into()))?;
        let wake = Arc::new(wake);
        let notified = Arc::clone(&wake);
        let executor = Executor::with_notify(Box::new(move || {
            // A counter that is full is readable already, which is all that is wanted.
            let _ = notified.write(1);
        }));
        Ok(Self(Rc::new(Core {
            executor,
            operations: RefCell::default(),
            timers: RefCell::default(),
            messages: RefCell::default(),
            places: RefCell::new(places),
            remains: RefCell::default(),
            io: RefCell::new(io),
            wake,
            wake_armed: Cell::new(false),
            registered: RefCell::new(None),
            buffer_places: RefCell::default(),
            next_group: Cell::new(0),
            lookout: Lookout::new(options.poll.as_nanos() as u64),
            turned_ns: Cell::new(super::timer::now_ns()),
        })))
    }

    /// Adds a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.executor.spawn(task);
    }

    /// Runs tasks and operations until `future` has ended. What else was spawned stays, and goes
    /// on at the next call.
    pub fn block_on<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let output = Rc::new(Cell::new(None));
        let result = Rc::clone(&output);
        self.spawn(async move { result.set(Some(future.await)) });
        loop {
            let polled = self.0.executor.run(POLLS_PER_TURN);
            if let Some(output) = output.take() {
                return output;
            }
            assert!(!self.0.executor.is_empty(), "the task that is waited for was dropped");
            self.0.turn(polled < POLLS_PER_TURN);
        }
    }

    /// Drops all tasks, cancels what may wait for ever, and waits until the kernel has answered
    /// everything. Needed to take a ring down whose tasks own handles of it.
    pub fn shutdown(&self) {
        self.0.executor.drop_all();
        self.0.drain();
    }

    /// Ends when at least `duration` has passed since the call.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        Sleep::new(&self.0, duration)
    }

    /// Nanoseconds of the clock that [`Ring::sleep`] goes by: CLOCK_BOOTTIME.
    pub fn now_ns(&self) -> u64 {
        super::timer::now_ns()
    }

    /// When the answers that are being worked on were taken, by the same clock: what has just
    /// arrived arrived no later. Costs nothing.
    pub fn turned_ns(&self) -> u64 {
        self.0.turned_ns.get()
    }

    /// Makes an open file known to the ring. It must not be non-blocking.
    pub fn register_file(&self, file: impl Into<OwnedFd>) -> Fd {
        Fd::new(&self.0, file.into())
    }

    /// An open file for the ring that is not registered with it. Up to Linux 6.12 the kernel keeps
    /// a registered one open until all operations on registered files that began before it was
    /// taken back have ended, which may be never; this one is closed when its last handle goes.
    pub fn plain_file(&self, file: impl Into<OwnedFd>) -> Fd {
        Fd::without_place(&self.0, file.into())
    }

    /// Registers the pool's arena, so that file operations on its buffers skip the look-up of
    /// pages. Where the kernel refuses, it says so in the log, and all works without.
    pub fn register_buffers(&self, pool: &BufferPool) {
        assert!(self.0.registered.borrow().is_none(), "a ring registers one pool");
        match self.0.register_arena(pool) {
            Ok(()) => {
                pool.set_registered(true);
                *self.0.registered.borrow_mut() = Some(pool.clone());
            }
            Err(error) => {
                let reason = RingError::from_setup(error);
                tracing::warn!("buffers are not registered with the ring (slower): {reason}");
            }
        }
    }

    /// How many operations the kernel has not answered.
    pub fn in_flight(&self) -> usize {
        self.0.operations.borrow().in_flight()
    }

    pub(super) fn core(&self) -> &Rc<Core> {
        &self.0
    }
}

impl Core {
    /// Queues an entry. Its memory and file belong to its operation's slot.
    pub(super) fn push(&self, entry: &Entry) {
        loop {
            // SAFETY: what the entry points to is owned by the slab until the kernel has answered
            // (`operation`), or is nothing at all (cancel, wake).
            if unsafe { self.io.borrow_mut().submission().push(entry) }.is_ok() {
                return;
            }
            self.enter(0, None);
        }
    }

    /// Asks the kernel to end an operation early. Its slot is freed by its own answer.
    pub(super) fn cancel(&self, token: u64) {
        self.push(&opcode::AsyncCancel::new(token).build().user_data(TOKEN_CANCEL));
    }

    /// One turn: hands over what is queued, waits for an answer or a timer if asked to, takes all
    /// answers, fires timers.
    fn turn(&self, wait: bool) {
        if !self.wake_armed.replace(true) {
            let fd = types::Fd(self.wake.as_fd().as_raw_fd());
            let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
            self.push(&entry.user_data(TOKEN_WAKE));
        }
        // Queueing may have entered the kernel already, and its answers made tasks ready.
        let wait = wait && self.executor.ready_len() == 0;
        let wait = wait && !self.look_out();
        let timeout = if wait { self.timers.borrow().first_due_in() } else { None };
        self.enter(usize::from(wait), timeout);
        self.turned_ns.set(super::timer::now_ns());
        self.timers.borrow_mut().fire(self.turned_ns.get());
    }

    /// Hands over what is queued and looks out for answers for a while, without a sleep. Says
    /// whether there are any, or a timer is due.
    fn look_out(&self) -> bool {
        let window = self.lookout.window_ns();
        if window == 0 {
            return false;
        }
        self.enter(0, None);
        let timer = self.timers.borrow().first_due_in();
        let patience = timer.map_or(window, |due| window.min(due.as_nanos() as u64));
        let since = super::timer::now_ns();
        loop {
            let found = self.executor.ready_len() > 0 || self.has_answers();
            let is_over = super::timer::now_ns() - since >= patience;
            if found || is_over {
                // What came while others had the processor for longer than that came no sooner
                // than to a sleeper.
                self.lookout.note(found && !is_over);
                return found || patience < window;
            }
            // Who waits for this processor gets it: the answer may be theirs to give.
            std::thread::yield_now();
        }
    }

    /// Whether the kernel has answers, or work to do before it has.
    fn has_answers(&self) -> bool {
        let mut io = self.io.borrow_mut();
        let submission = io.submission();
        let work = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        work || !io.completion().is_empty()
    }

    /// One entry into the kernel, then all answers there are.
    fn enter(&self, want: usize, timeout: Option<Duration>) {
        let mut io = self.io.borrow_mut();
        let submission = io.submission();
        let idle = submission.is_empty() && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        if want > 0 || !idle {
            let entered = match timeout {
                Some(timeout) => {
                    let timeout = types::Timespec::from(timeout);
                    let args = types::SubmitArgs::new().timespec(&timeout);
                    io.submitter().submit_with_args(want, &args)
                }
                None => io.submit_and_wait(want),
            };
            if let Err(error) = entered {
                // Interrupted; timed out; too many answers waiting to be taken; out of memory for
                // the moment: the caller's loop comes again, with the answers taken.
                let passing = [libc::EINTR, libc::ETIME, libc::EBUSY, libc::EAGAIN];
                let errno = error.raw_os_error().unwrap_or_default();
                assert!(passing.contains(&errno), "entering the ring failed: {error}");
            }
        }
        for answer in io.completion() {
            match answer.user_data() {
                TOKEN_CANCEL => (),
                TOKEN_WAKE => {
                    // The tasks themselves are on the executor's list; this only ended the sleep.
                    let _ = self.wake.read();
                    self.wake_armed.set(false);
                }
                token => {
                    let mut operations = self.operations.borrow_mut();
                    self.remains.borrow_mut().extend(operations.complete(
                        token,
                        answer.result(),
                        answer.flags(),
                    ));
                }
            }
        }
        drop(io);
        self.drop_remains();
    }

    /// Drops what orphans left. It may come back here: dropping a file unregisters it.
    fn drop_remains(&self) {
        loop {
            let Some(remains) = self.remains.borrow_mut().pop() else { break };
            drop(remains);
        }
    }

    /// Cancels what can be, and waits until the kernel has answered everything.
    fn drain(&self) {
        let unanswered = self.operations.borrow().unanswered();
        for token in unanswered {
            self.cancel(token);
        }
        while self.operations.borrow().in_flight() > 0 {
            self.enter(1, None);
        }
    }

    /// Registers the arena of a pool, which is kept until after the ring, in a table with places
    /// for memory of others where the kernel knows such tables (5.19).
    fn register_arena(&self, pool: &BufferPool) -> io::Result<()> {
        let (start, len) = pool.arena();
        let piece = [libc::iovec { iov_base: start.cast_mut().cast(), iov_len: len }];
        let io = self.io.borrow();
        let submitter = io.submitter();
        if submitter.register_buffers_sparse(BUFFER_PLACES.into()).is_err() {
            // SAFETY: the arena is mapped as long as the pool, which the caller keeps in a field
            // that drops after the ring.
            return unsafe { submitter.register_buffers(&piece) };
        }
        *self.buffer_places.borrow_mut() = (REGISTERED_INDEX + 1..BUFFER_PLACES).rev().collect();
        // SAFETY: as above.
        unsafe { submitter.register_buffers_update(REGISTERED_INDEX.into(), &piece, None) }
    }

    /// Finds a place for a file in the table of registered files.
    pub(super) fn place_file(&self, file: &OwnedFd) -> Option<u32> {
        let place = self.places.borrow_mut().pop()?;
        let io = self.io.borrow();
        match io.submitter().register_files_update(place, &[file.as_raw_fd()]) {
            Ok(_) => Some(place),
            Err(error) => {
                tracing::info!(%error, "a file is not registered with the ring: a little slower");
                self.places.borrow_mut().push(place);
                None
            }
        }
    }

    /// Gives a place of the table back.
    pub(super) fn release_file(&self, place: u32) {
        let io = self.io.borrow();
        match io.submitter().register_files_update(place, &[-1]) {
            Ok(_) => self.places.borrow_mut().push(place),
            // The place is lost and the file stays open until the ring ends.
            Err(error) => tracing::warn!(%error, "a file stays registered with the ring"),
        }
    }

    /// Makes a ring of buffers known, from which the kernel takes those that it fills: `count`
    /// entries at `address`, mapped until it is unregistered or the ring has ended. Gives the
    /// number that receives name it by.
    pub(super) fn register_buffer_ring(&self, address: u64, count: u16) -> io::Result<u16> {
        let group = self.next_group.get();
        self.next_group.set(group.checked_add(1).expect("fewer than 2^16 rings of buffers"));
        let io = self.io.borrow();
        // SAFETY: the caller keeps the entries mapped; the kernel holds their pages besides.
        let done = unsafe { io.submitter().register_buf_ring_with_flags(address, count, group, 0) };
        done.map(|()| group)
    }

    /// Forgets a ring of buffers that no receive uses.
    pub(super) fn unregister_buffer_ring(&self, group: u16) {
        if let Err(error) = self.io.borrow().submitter().unregister_buf_ring(group) {
            tracing::warn!(%error, "a ring of buffers stays registered");
        }
    }

    pub(super) fn take_message(&self) -> Message {
        self.messages.borrow_mut().pop().unwrap_or_else(Message::new)
    }

    pub(super) fn keep_message(&self, mut message: Message) {
        message.clear();
        let mut messages = self.messages.borrow_mut();
        if messages.len() < MESSAGES_KEPT {
            messages.push(message);
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // No future is left, each would own a handle; but their operations may be in flight.
        self.drain();
        if let Some(pool) = self.registered.borrow().as_ref() {
            pool.set_registered(false);
        }
    }
}

/// A refusal of the kernel in words that name the operation.
pub(super) fn ended_early(what: &str, missing: usize) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("{what} ended {missing} bytes early"))
}
