//! Operations in flight: a slab of what the kernel is using, and the futures that wait for it.
//!
//! # Contracts
//!
//! - **Ownership**: a slot owns what its operation uses (buffer, message, address, file) from
//!   before the kernel hears of it until the kernel has answered.
//! - **Cancellation**: dropping an [`Operation`] leaves its slot behind as an orphan, which the
//!   answer frees. Operations that may take for ever are cancelled in the kernel as well.

use std::future::Future;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::cqueue;
use io_uring::squeue::{Entry, Flags};
use nix::sys::socket::SockaddrStorage;

use super::buffers::View;
use super::datagram::{Arrivals, Outgoing};
use super::fd::Fd;
use super::message::Message;
use super::ring::Core;

/// The most operations that may be in flight at a time.
pub const OPERATIONS_MAX: usize = 1 << 16;

/// What an operation uses besides its file.
pub(super) enum Held {
    Nothing,
    View(View),
    Message(Message),
    Address(#[expect(dead_code, reason = "only the kernel reads it")] Box<SockaddrStorage>),
    /// The answer is a new file, to be closed where nobody waits for it.
    NewFile,
    /// The answers are many; these take all of them.
    Arrivals(Rc<Arrivals>),
    Outgoing(#[expect(dead_code, reason = "only the kernel reads it")] Box<Outgoing>),
}

/// What becomes of an operation whose future is dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OnDrop {
    /// It ends by itself, soon.
    Await,
    /// It may wait for something that never happens.
    Cancel,
}

enum State {
    Free,
    /// In the kernel, or queued for it.
    InFlight(Option<Waker>),
    /// In the kernel, and nobody waits for it.
    Orphan,
    /// Answered, and the answer not yet taken.
    Done(i32),
}

struct Slot {
    generation: u32,
    state: State,
    on_drop: OnDrop,
    file: Option<Fd>,
    held: Held,
}

/// What an orphan leaves; dropping it may need the ring, so it happens outside its borrow.
pub(super) type Remains = (Option<Fd>, Held);

/// The slab of operations.
#[derive(Default)]
pub(super) struct Operations {
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: usize,
}

/// Names one operation for ever: the slot in the low half, its generation in the high.
fn token(index: u32, generation: u32) -> u64 {
    u64::from(index) | (u64::from(generation) << 32)
}

impl Operations {
    /// How many operations the kernel has not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn insert(&mut self, file: Option<Fd>, held: Held, on_drop: OnDrop) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            assert!(self.slots.len() < OPERATIONS_MAX, "more than {OPERATIONS_MAX} operations");
            self.slots.push(Slot {
                generation: 0,
                state: State::Free,
                on_drop,
                file: None,
                held: Held::Nothing,
            });
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        assert!(matches!(slot.state, State::Free), "a slot on the free list is in use");
        slot.state = State::InFlight(None);
        (slot.file, slot.held, slot.on_drop) = (file, held, on_drop);
        self.in_flight += 1;
        index
    }

    /// Takes one of the kernel's answers. What is returned was an orphan's.
    pub(super) fn complete(&mut self, token: u64, result: i32, flags: u32) -> Option<Remains> {
        let index = token as u32;
        let slot = &mut self.slots[index as usize];
        assert!(slot.generation == (token >> 32) as u32, "the kernel answered an operation twice");
        if let Held::Arrivals(arrivals) = &slot.held {
            arrivals.arrived(flags);
        }
        if cqueue::more(flags) {
            return None;
        }
        self.in_flight -= 1;
        match std::mem::replace(&mut slot.state, State::Done(result)) {
            State::InFlight(waker) => {
                if let Some(waker) = waker {
                    waker.wake();
                }
                None
            }
            State::Orphan => Some(self.discard(index, result)),
            State::Free | State::Done(_) => unreachable!("an answer to what was not in flight"),
        }
    }

    /// The tokens of operations that the kernel has not answered.
    pub(super) fn unanswered(&self) -> Vec<u64> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter(|(_, slot)| matches!(slot.state, State::InFlight(_) | State::Orphan))
            .map(|(index, slot)| token(index as u32, slot.generation))
            .collect()
    }

    fn poll(&mut self, index: u32, cx: &mut Context<'_>) -> Poll<(i32, Remains)> {
        match &mut self.slots[index as usize].state {
            State::Done(result) => {
                let result = *result;
                Poll::Ready((result, self.release(index)))
            }
            State::InFlight(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            State::Free | State::Orphan => unreachable!("polled without an operation"),
        }
    }

    /// The future is gone: gives back what it used, or says what to cancel.
    fn abandon(&mut self, index: u32) -> (Option<Remains>, Option<u64>) {
        let slot = &mut self.slots[index as usize];
        match slot.state {
            State::Done(result) => (Some(self.discard(index, result)), None),
            State::InFlight(_) => {
                slot.state = State::Orphan;
                let cancel = slot.on_drop == OnDrop::Cancel;
                (None, cancel.then(|| token(index, slot.generation)))
            }
            State::Free | State::Orphan => unreachable!("dropped without an operation"),
        }
    }

    /// Frees the slot of an operation whose answer nobody wants.
    fn discard(&mut self, index: u32, result: i32) -> Remains {
        let remains = self.release(index);
        if matches!(remains.1, Held::NewFile) && result >= 0 {
            // SAFETY: the kernel made this descriptor for this operation, whose future is gone:
            // nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(result) });
        }
        remains
    }

    fn release(&mut self, index: u32) -> Remains {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        (slot.file.take(), std::mem::replace(&mut slot.held, Held::Nothing))
    }
}

/// The future of one operation: the kernel's answer, and what it used.
pub(super) struct Operation {
    core: Rc<Core>,
    /// `None` once the answer was taken.
    index: Option<u32>,
}

impl Operation {
    /// Starts an operation: queues `entry` for the next entry into the kernel.
    ///
    /// `entry` must use no memory but what `held` owns, and no file but `file`.
    pub(super) fn start(
        core: &Rc<Core>,
        file: Option<Fd>,
        held: Held,
        on_drop: OnDrop,
        entry: Entry,
    ) -> Self {
        let flags = file.as_ref().map_or(Flags::empty(), Fd::flags);
        let mut operations = core.operations.borrow_mut();
        let index = operations.insert(file, held, on_drop);
        let token = token(index, operations.slots[index as usize].generation);
        drop(operations);
        core.push(&entry.flags(flags).user_data(token));
        Self { core: Rc::clone(core), index: Some(index) }
    }
}

impl Future for Operation {
    type Output = (io::Result<u32>, Held);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let index = self.index.expect("an operation is not polled after its end");
        let polled = self.core.operations.borrow_mut().poll(index, cx);
        polled.map(|(result, (file, held))| {
            self.index = None;
            drop(file);
            (answer(result), held)
        })
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        let Some(index) = self.index else { return };
        let (remains, cancel) = self.core.operations.borrow_mut().abandon(index);
        drop(remains);
        if let Some(token) = cancel {
            self.core.cancel(token);
        }
    }
}

/// The kernel's answer as a result.
fn answer(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
