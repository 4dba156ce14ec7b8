//! The channel to the metadata server, and the server as one more actor.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;

use super::Shell;
use super::calls::Fate;
use super::network::Towards;
use crate::env::{Link, Moment};

/// Names a client of the server.
pub type Peer = usize;

/// The largest datagram, in bytes: what fits a frame of an ordinary network, so that larger
/// requests must be split.
const PAYLOAD_MAX: usize = 1472;

/// A server of datagrams that lives in the simulated machine.
pub trait Server {
    /// Handles all that has arrived by `now` since the last turn, and answers.
    fn turn(&mut self, now: Moment, arrived: Vec<(Peer, Vec<u8>)>) -> Vec<(Peer, Vec<u8>)>;
}

/// A client's end of the channel. Cheap to clone: a handle.
#[derive(Clone)]
pub struct SimLink {
    shell: Rc<Shell>,
    peer: Peer,
}

impl SimLink {
    pub(super) fn new(shell: Rc<Shell>, peer: Peer) -> Self {
        Self { shell, peer }
    }
}

impl Link for SimLink {
    fn payload_max(&self) -> usize {
        PAYLOAD_MAX
    }

    fn send(&self, datagram: Vec<u8>) {
        assert!(datagram.len() <= PAYLOAD_MAX, "a datagram of {} bytes", datagram.len());
        let peer = self.peer;
        let mut world = self.shell.world.borrow_mut();
        if world.call("send", peer as u64, datagram.len() as u64) != Fate::Dead {
            world.send(Towards::Server, peer, &datagram.into());
        }
    }

    fn receive(&self) -> impl Future<Output = Vec<u8>> {
        poll_fn(move |context| {
            let mut world = self.shell.world.borrow_mut();
            let inbox = world.inboxes.entry(self.peer).or_default();
            if let Some(datagram) = inbox.datagrams.pop_front() {
                return Poll::Ready(datagram);
            }
            inbox.waiter = Some(context.waker().clone());
            Poll::Pending
        })
    }
}
