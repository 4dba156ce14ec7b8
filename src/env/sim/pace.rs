//! Several machines in one time: each has its turn while nothing of the others comes earlier.
//!
//! Machines touch each other only where their events do; so it is enough that all events of all of
//! them happen in the order of true time, which no jump of a clock changes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

/// How far a machine has come, and how far it may go. Cheap to clone: a handle.
#[derive(Clone)]
pub struct Pace(Rc<Moments>);

/// Something beside the machine: lets all happen there that comes before a moment.
type Follower = Box<dyn FnMut(u64)>;

struct Moments {
    /// When the next thing happens on the machine, in nanoseconds of true time.
    next: Cell<u64>,
    /// What comes later has to wait.
    until: Cell<u64>,
    follower: RefCell<Option<Follower>>,
}

impl Pace {
    /// That of a machine which shares its time with no other.
    pub fn alone() -> Self {
        Self::new(0, u64::MAX)
    }

    /// That of a machine which shares its time, and begins then.
    pub fn beside(from: u64) -> Self {
        Self::new(from, from)
    }

    fn new(next: u64, until: u64) -> Self {
        let (next, until) = (Cell::new(next), Cell::new(until));
        Self(Rc::new(Moments { next, until, follower: RefCell::default() }))
    }

    /// From now on what comes earlier beside the machine happens before each of its own events; or
    /// nothing is beside it any more.
    pub fn follow(&self, follower: Option<Follower>) {
        *self.0.follower.borrow_mut() = follower;
    }

    /// How far the machine has come: when the next thing happens on it, or what happens now does.
    pub fn next(&self) -> u64 {
        self.0.next.get()
    }

    /// The machine has come so far: whoever steps it knows.
    pub fn come_to(&self, moment: u64) {
        self.0.next.set(moment.max(self.next()));
    }

    /// Lets the machine do all that comes until then.
    pub fn let_go(&self, until: u64) {
        self.0.until.set(until);
    }

    /// Waits until it may do what comes at that moment. Whoever schedules the machines polls, and
    /// nobody is woken.
    pub(super) async fn reach(&self, moment: u64) {
        self.0.next.set(moment.max(self.next()));
        let may = || self.next() <= self.0.until.get();
        poll_fn(|_| if may() { Poll::Ready(()) } else { Poll::Pending }).await;
        if let Some(follower) = self.0.follower.borrow_mut().as_mut() {
            follower(moment);
        }
    }
}
